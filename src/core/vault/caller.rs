//! Callers' tokens: Entra ID access tokens, v1 and v2, verified against the signing keys
//! (facts/entra-and-key-vault.md §B).
//!
//! Two steps, because one costs about 1.5 ms in wasm and its result may be kept, while the other depends on the settings
//! and the time and is done for every request, and first, so that nothing is fetched for a token that is not for this app:
//!
//! 1. [`Claims::accept_user`], [`Claims::accept_app`]: tenant, audience, times, scope or role.
//! 2. [`Unverified::verify`]: signature and issuer, with a signing key.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rsa::pkcs1v15::{Signature, VerifyingKey};
use rsa::signature::Verifier as _;
use rsa::{BoxedUint, PublicKey};
use serde::Deserialize;
use sha2::Sha256;
use url::Url;

use crate::error::{AccountKind, CallerError, TokenDefect};
use crate::identity::{Guid, PERSONAL_ACCOUNTS, Subject, TenantId};
use crate::secret::Bearer;
use crate::vault::settings::{IssuerTemplate, Settings};

/// Clock skew allowed, in seconds (the default of Microsoft's own libraries).
const SKEW: u64 = 300;
/// Longest token read. Entra ID's own are 1 to 4 KiB.
const LONGEST: usize = 32 * 1024;
/// Most signing keys kept of one document; Entra ID publishes fewer than ten.
const MOST_KEYS: usize = 64;
/// Weakest key accepted, in bits.
const LEAST_BITS: u32 = 2048;

/// A token whose form and algorithm are right. Its claims must not be acted on, other than to refuse early.
#[derive(Debug)]
pub struct Unverified<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    key_id: String,
    claims: Claims,
}

impl<'a> Unverified<'a> {
    /// Reads a compact JWT. The algorithm is checked before any claim is looked at.
    ///
    /// # Errors
    /// [`TokenDefect::Missing`], [`TokenDefect::Malformed`], [`TokenDefect::WrongAlgorithm`],
    /// [`TokenDefect::ProofOfPossession`]; [`CallerError::AccountNotSupported`].
    pub fn parse(bearer: &'a Bearer) -> Result<Self, CallerError> {
        let token = bearer.expose();
        if token.is_empty() {
            return Err(TokenDefect::Missing.into());
        }
        if token.len() > LONGEST {
            return Err(TokenDefect::Malformed.into());
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenDefect::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenDefect::Malformed)?;
        let decode = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| TokenDefect::Malformed)
        };

        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| TokenDefect::Malformed)?;
        // What the holder of a bound token signs around it.
        if header
            .typ
            .is_some_and(|typ| typ.eq_ignore_ascii_case("pop"))
        {
            return Err(TokenDefect::ProofOfPossession.into());
        }
        if header.alg != "RS256" {
            return Err(TokenDefect::WrongAlgorithm.into());
        }
        // RFC 7515 §4.1.11: an extension that is not understood must not be ignored.
        if header.crit.is_some() {
            return Err(TokenDefect::Malformed.into());
        }
        let payload = decode(payload)?;
        // First, because such tokens need not have the claims of the others.
        let kind: Kind = serde_json::from_slice(&payload).map_err(|_| TokenDefect::Malformed)?;
        kind.check()?;
        let claims: RawClaims =
            serde_json::from_slice(&payload).map_err(|_| TokenDefect::Malformed)?;
        Ok(Self {
            signed,
            signature: decode(signature)?,
            key_id: header.kid.ok_or(TokenDefect::Malformed)?,
            claims: Claims::read(claims).ok_or(TokenDefect::Malformed)?,
        })
    }

    /// What it says: to be refused before anything is fetched for it.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The signing key it says it is signed with.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Verifies the signature, and that the key may sign for the token's issuer.
    ///
    /// # Errors
    /// [`TokenDefect::BadSignature`], [`TokenDefect::WrongIssuer`].
    pub fn verify(
        self,
        key: &SigningKey,
        issuers: &[IssuerTemplate],
    ) -> Result<Claims, TokenDefect> {
        let signature = Signature::try_from(self.signature.as_slice())
            .map_err(|_| TokenDefect::BadSignature)?;
        key.key
            .verify(self.signed.as_bytes(), &signature)
            .map_err(|_| TokenDefect::BadSignature)?;
        let claims = self.claims;
        let is_issuer =
            |template: &IssuerTemplate| template.matches(&claims.issuer, &claims.subject.tenant);
        // A key with an issuer of its own signs for that one alone: the key of personal accounts must not sign for a
        // work tenant. Keys name the v2 issuer, also where they sign a v1 token, so a v1 issuer is held to the settings.
        let key_may = key
            .issuer
            .as_ref()
            .is_none_or(|own| own.is_template() || is_issuer(own));
        if key_may && issuers.iter().any(is_issuer) {
            Ok(claims)
        } else {
            Err(TokenDefect::WrongIssuer)
        }
    }
}

/// What a verified token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claims {
    /// Who it is about.
    pub subject: Subject,
    /// Client id of the application that got it: `azp` of a v2 token, `appid` of a v1 token. None if it has neither.
    pub client: Option<Guid>,
    is_apps_own: bool,
    issuer: String,
    audience: String,
    scopes: Vec<String>,
    roles: Vec<String>,
    expires_at: u64,
    not_before: u64,
}

impl Claims {
    /// Accepts a delegated token: a user, in this app's audience, with the required scope.
    ///
    /// # Errors
    /// [`CallerError`].
    pub fn accept_user(&self, settings: &Settings, now: u64) -> Result<(), CallerError> {
        // Whoever is served is refreshed, and that goes by the setting `tenants` alone.
        self.accept(settings.tenants.allow(&self.subject.tenant), settings, now)?;
        if !self.is_apps_own && self.scopes.contains(&settings.required_scope) {
            Ok(())
        } else {
            Err(CallerError::InsufficientScope(
                settings.required_scope.clone(),
            ))
        }
    }

    /// Accepts an app's own token with a role, to act on `tenant`; none: on all. A role acts on the token's own tenant,
    /// and on others only from the operator tenant: anyone's administrator can assign any role in his own tenant
    /// (facts/threats.md 1).
    ///
    /// # Errors
    /// [`CallerError`].
    pub fn accept_app(
        &self,
        role: &str,
        tenant: Option<&TenantId>,
        settings: &Settings,
        now: u64,
    ) -> Result<(), CallerError> {
        let own = &self.subject.tenant;
        let is_operators = settings.operator_tenant.as_ref() == Some(own);
        self.accept(is_operators || settings.tenants.allow(own), settings, now)?;
        let reaches = is_operators || tenant == Some(own);
        if reaches && self.is_apps_own && self.roles.iter().any(|held| held == role) {
            Ok(())
        } else {
            Err(CallerError::InsufficientScope(role.into()))
        }
    }

    /// Until when the token is good, in Unix seconds, skew included.
    #[must_use]
    pub fn good_until(&self) -> u64 {
        self.expires_at.saturating_add(SKEW)
    }

    fn accept(
        &self,
        is_tenant_allowed: bool,
        settings: &Settings,
        now: u64,
    ) -> Result<(), CallerError> {
        if !is_tenant_allowed {
            return Err(CallerError::TenantNotAllowed);
        }
        if !settings.audiences.contains(&self.audience) {
            return Err(TokenDefect::WrongAudience.into());
        }
        if now >= self.good_until() {
            return Err(TokenDefect::Expired.into());
        }
        if now.saturating_add(SKEW) < self.not_before {
            return Err(TokenDefect::NotYetValid.into());
        }
        Ok(())
    }

    fn read(raw: RawClaims) -> Option<Self> {
        let words = |text: String| text.split_ascii_whitespace().map(Into::into).collect();
        let scopes: Vec<String> = raw.scp.map(words).unwrap_or_default();
        // An app's own token has no scopes, and says `idtyp` only if it is configured to. Without it, `sub` = `oid` tells it
        // from a user's ID token, which has no scopes either but may have roles (§B).
        let is_apps_own = scopes.is_empty()
            && raw
                .idtyp
                .map_or(raw.sub == raw.oid, |kind| kind.eq_ignore_ascii_case("app"));
        let client = match raw.azp.or(raw.appid) {
            Some(client) => Some(Guid::parse(&client)?),
            None => None,
        };
        Some(Self {
            client,
            is_apps_own,
            subject: Subject {
                tenant: Guid::parse(&raw.tid)?,
                object: Guid::parse(&raw.oid)?,
                // It may come to stand in a user id.
                sub: Some(raw.sub)
                    .filter(|sub| {
                        sub.len() <= 256 && sub.bytes().all(|byte| byte.is_ascii_graphic())
                    })?
                    .into(),
            },
            issuer: raw.iss,
            audience: raw.aud,
            scopes,
            roles: raw.roles,
            expires_at: raw.exp,
            not_before: raw.nbf.unwrap_or(0),
        })
    }
}

/// Entra ID's signing keys.
#[derive(Debug)]
pub struct SigningKeys(Vec<SigningKey>);

impl SigningKeys {
    /// Reads a JWK set (RFC 7517 §5). Keys of another kind or use are passed over, as the RFC says.
    ///
    /// # Errors
    /// None if it is no JWK set, or holds no usable key.
    #[must_use]
    pub fn parse(document: &[u8]) -> Option<Self> {
        let set: RawKeys = serde_json::from_slice(document).ok()?;
        let keys: Vec<_> = set
            .keys
            .into_iter()
            .filter_map(SigningKey::read)
            .take(MOST_KEYS)
            .collect();
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// The key of this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&SigningKey> {
        self.0.iter().find(|key| key.id == id)
    }
}

/// One signing key.
#[derive(Debug)]
pub struct SigningKey {
    id: String,
    issuer: Option<IssuerTemplate>,
    key: VerifyingKey<Sha256>,
}

impl SigningKey {
    fn read(raw: serde_json::Value) -> Option<Self> {
        let raw: RawKey = serde_json::from_value(raw).ok()?;
        if raw.kty != "RSA" || raw.r#use.is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let number = |text: String| {
            Some(BoxedUint::from_be_slice_vartime(
                &URL_SAFE_NO_PAD.decode(text).ok()?,
            ))
        };
        let (modulus, exponent) = (number(raw.n)?, number(raw.e)?);
        if modulus.bit_width_vartime() < LEAST_BITS {
            return None;
        }
        Some(Self {
            id: raw.kid,
            issuer: raw.issuer.as_deref().map(IssuerTemplate::new),
            key: VerifyingKey::new(PublicKey::new(modulus, exponent).ok()?),
        })
    }
}

#[derive(Deserialize)]
struct Header {
    typ: Option<String>,
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

/// Claims that tell another kind of token.
#[derive(Deserialize)]
struct Kind {
    iss: Option<String>,
    tid: Option<String>,
    cnf: Option<serde_json::Value>,
}

impl Kind {
    fn check(&self) -> Result<(), CallerError> {
        if self.cnf.is_some() {
            return Err(TokenDefect::ProofOfPossession.into());
        }
        let is_personal = |tid: &str| tid.eq_ignore_ascii_case(PERSONAL_ACCOUNTS);
        if self.tid.as_deref().is_some_and(is_personal) {
            return Err(CallerError::AccountNotSupported(AccountKind::Personal));
        }
        let issuer = self.iss.as_deref().and_then(|iss| Url::parse(iss).ok());
        if issuer.is_some_and(|issuer| is_external(&issuer)) {
            return Err(CallerError::AccountNotSupported(AccountKind::External));
        }
        Ok(())
    }
}

/// Whether a URL is one of External ID's or Azure AD B2C's, whose keys are each tenant's own: `{name}.ciamlogin.com`,
/// `{name}.b2clogin.com`, and the same under the endings of other clouds
/// (<https://learn.microsoft.com/entra/external-id/customers/concept-custom-url-domain>,
/// <https://learn.microsoft.com/azure/active-directory-b2c/b2clogin>).
pub(crate) fn is_external(url: &Url) -> bool {
    let domain = url.domain().unwrap_or_default();
    let second = domain.rsplit('.').nth(1);
    matches!(second, Some("ciamlogin" | "b2clogin"))
}

#[derive(Deserialize)]
struct RawClaims {
    iss: String,
    aud: String,
    exp: u64,
    nbf: Option<u64>,
    tid: String,
    oid: String,
    sub: String,
    azp: Option<String>,
    appid: Option<String>,
    idtyp: Option<String>,
    scp: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

#[derive(Deserialize)]
struct RawKeys {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    r#use: Option<String>,
    kid: String,
    n: String,
    e: String,
    issuer: Option<String>,
}

#[cfg(test)]
pub(crate) mod tests {
    use rsa::PrivateKey;
    use rsa::signature::{SignatureEncoding as _, Signer as _};
    use rsa::traits::PublicKeyParts as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::vault::settings::tests::{CLIENT, TENANT, least};

    pub(crate) const NOW: u64 = 1_793_606_000;
    pub(crate) const USER: &str = "44444444-4444-4444-4444-444444444444";

    /// A signing key of a pretended Entra ID, made by OpenSSL for these tests alone.
    pub(crate) fn private_key() -> rsa::pkcs1v15::SigningKey<Sha256> {
        use rsa::pkcs8::DecodePrivateKey as _;
        rsa::pkcs1v15::SigningKey::new(
            PrivateKey::from_pkcs8_pem(include_str!("tests/signing-key.pem")).unwrap(),
        )
    }

    pub(crate) fn jwks(issuer: Value) -> Vec<u8> {
        jwks_of("k1", issuer)
    }

    pub(crate) fn jwks_of(kid: &str, issuer: Value) -> Vec<u8> {
        key_set(kid, private_key().into(), issuer)
    }

    /// With a key of this name that did not sign anything here.
    pub(crate) fn jwks_of_another_key(kid: &str) -> Vec<u8> {
        use rsa::pkcs8::DecodePrivateKey as _;
        let pem = crate::vault::credential::tests::PRIVATE_KEY;
        key_set(kid, PrivateKey::from_pkcs8_pem(pem).unwrap(), template())
    }

    fn key_set(kid: &str, key: PrivateKey, issuer: Value) -> Vec<u8> {
        let public = PublicKey::from(key);
        let number =
            |number: &BoxedUint| URL_SAFE_NO_PAD.encode(number.to_be_bytes_trimmed_vartime());
        json!({"keys": [
            {"kty": "EC", "kid": "ec", "crv": "P-256", "x": "AA", "y": "AA"},
            {"kty": "RSA", "use": "sig", "kid": kid, "n": number(public.n()), "e": number(public.e()), "issuer": issuer},
        ]})
        .to_string()
        .into_bytes()
    }

    pub(crate) fn claims() -> Value {
        json!({
            "aud": CLIENT, "iss": format!("https://login.microsoftonline.com/{TENANT}/v2.0"), "iat": NOW, "nbf": NOW,
            "exp": NOW + 3900, "azp": "33333333-3333-3333-3333-333333333333", "azpacr": "1", "oid": USER,
            "scp": "other access_as_user", "sub": "pairwise-opaque", "tid": TENANT, "ver": "2.0",
        })
    }

    pub(crate) fn sign(header: &Value, claims: &Value) -> Bearer {
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(private_key().sign(signed.as_bytes()).to_bytes());
        Bearer::new(format!("{signed}.{signature}"))
    }

    fn check(header: &Value, claims: &Value, issuer: Value) -> Result<Claims, CallerError> {
        let settings = Settings::read(&least()).unwrap();
        let keys = SigningKeys::parse(&jwks(issuer)).unwrap();
        let bearer = sign(header, claims);
        let unverified = Unverified::parse(&bearer)?;
        let key = keys
            .find(unverified.key_id())
            .ok_or(TokenDefect::UnknownKey)?;
        let claims = unverified.verify(key, &settings.issuers)?;
        claims.accept_user(&settings, NOW)?;
        Ok(claims)
    }

    fn header() -> Value {
        json!({"typ": "JWT", "alg": "RS256", "kid": "k1"})
    }

    fn template() -> Value {
        json!("https://login.microsoftonline.com/{tenantid}/v2.0")
    }

    fn with(name: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[name] = value;
        claims
    }

    #[test]
    fn good_tokens_of_both_versions_are_accepted() {
        let user = check(&header(), &claims(), template()).unwrap();
        assert_eq!(user.subject.tenant.as_str(), TENANT);
        assert_eq!(user.subject.object.as_str(), USER);
        let client = "33333333-3333-3333-3333-333333333333";
        assert_eq!(user.client, Guid::parse(client));
        let mut v1 = with("iss", json!(format!("https://sts.windows.net/{TENANT}/")));
        v1["aud"] = json!(format!("api://{CLIENT}"));
        v1["ver"] = json!("1.0");
        v1["appid"] = v1["azp"].take();
        let user = check(&header(), &v1, template()).unwrap();
        assert_eq!(user.client, Guid::parse(client));
        check(&header(), &claims(), Value::Null).unwrap();
    }

    #[test]
    fn each_defect_is_told() {
        use TokenDefect::{
            Expired, Malformed, NotYetValid, UnknownKey, WrongAlgorithm, WrongAudience, WrongIssuer,
        };
        let invalid = |defect: TokenDefect| CallerError::InvalidToken(defect);
        for (what, header, claims, expected) in [
            (
                "expired",
                header(),
                with("exp", json!(NOW - 300)),
                invalid(Expired),
            ),
            (
                "not yet valid",
                header(),
                with("nbf", json!(NOW + 301)),
                invalid(NotYetValid),
            ),
            (
                "audience",
                header(),
                with("aud", json!("https://graph.microsoft.com")),
                invalid(WrongAudience),
            ),
            (
                "issuer of another tenant",
                header(),
                with(
                    "iss",
                    json!(
                        "https://login.microsoftonline.com/33333333-3333-3333-3333-333333333333/v2.0"
                    ),
                ),
                invalid(WrongIssuer),
            ),
            (
                "v1 issuer without slash",
                header(),
                with("iss", json!(format!("https://sts.windows.net/{TENANT}"))),
                invalid(WrongIssuer),
            ),
            (
                "tenant no GUID",
                header(),
                with("tid", json!("../x")),
                invalid(Malformed),
            ),
            (
                "oid missing",
                header(),
                with("oid", Value::Null),
                invalid(Malformed),
            ),
            (
                "exp missing",
                header(),
                with("exp", Value::Null),
                invalid(Malformed),
            ),
            (
                "exp a text",
                header(),
                with("exp", json!("1893456000")),
                invalid(Malformed),
            ),
            (
                "client no GUID",
                header(),
                with("azp", json!("front-end")),
                invalid(Malformed),
            ),
            (
                "sub with a space",
                header(),
                with("sub", json!("a b")),
                invalid(Malformed),
            ),
            (
                "alg none",
                json!({"alg": "none", "kid": "k1"}),
                claims(),
                invalid(WrongAlgorithm),
            ),
            (
                "alg HS256",
                json!({"alg": "HS256", "kid": "k1"}),
                claims(),
                invalid(WrongAlgorithm),
            ),
            (
                "unknown key",
                json!({"alg": "RS256", "kid": "k2"}),
                claims(),
                invalid(UnknownKey),
            ),
            (
                "no key",
                json!({"alg": "RS256"}),
                claims(),
                invalid(Malformed),
            ),
            (
                "crit",
                json!({"alg": "RS256", "kid": "k1", "crit": ["b64"]}),
                claims(),
                invalid(Malformed),
            ),
            (
                "an app's token",
                header(),
                with("scp", Value::Null),
                CallerError::InsufficientScope("access_as_user".into()),
            ),
            (
                "a part of the scope's name",
                header(),
                with("scp", json!("access_as_user2")),
                CallerError::InsufficientScope("access_as_user".into()),
            ),
        ] {
            assert_eq!(
                check(&header, &claims, template()).map(|_| ()),
                Err(expected),
                "{what}"
            );
        }
    }

    /// Whatever else they have or lack: B2C's have no `tid`.
    #[test]
    fn accounts_that_are_not_supported_are_told_by_name() {
        use AccountKind::{External, Personal};
        let issuer = |host: &str| with("iss", json!(format!("https://{host}/{TENANT}/v2.0/")));
        let without = |mut claims: Value, name: &str| {
            claims.as_object_mut().unwrap().remove(name);
            claims
        };
        for (claims, expected) in [
            (with("tid", json!(PERSONAL_ACCOUNTS)), Personal),
            (issuer(&format!("{TENANT}.ciamlogin.com")), External),
            (issuer("contoso.ciamlogin.com"), External),
            (without(issuer("contoso.b2clogin.com"), "tid"), External),
            (issuer("contoso.b2clogin.cn"), External),
        ] {
            assert_eq!(
                check(&header(), &claims, template()).map(|_| ()),
                Err(CallerError::AccountNotSupported(expected)),
                "{claims}"
            );
        }
        for host in [
            "evil.example",
            "b2clogin.com.evil.example",
            "notb2clogin.com",
        ] {
            assert_eq!(
                check(&header(), &issuer(host), template()).map(|_| ()),
                Err(TokenDefect::WrongIssuer.into()),
                "{host}"
            );
        }
    }

    /// In the claims of Entra ID's own token, or as the signed request around it
    /// (draft-ietf-oauth-signed-http-request), which is no access token at all.
    #[test]
    fn a_token_that_is_bound_to_a_key_is_no_bearer_token() {
        let request = json!({"at": "a.b.c", "ts": NOW, "cnf": {"jwk": {"kty": "RSA"}}});
        for (header, claims) in [
            (header(), with("cnf", json!({"kid": "k"}))),
            (header(), request.clone()),
            (json!({"typ": "pop", "alg": "ES256", "kid": "k"}), request),
        ] {
            assert_eq!(
                check(&header, &claims, template()).map(|_| ()),
                Err(TokenDefect::ProofOfPossession.into()),
                "{claims}"
            );
        }
        check(&header(), &with("cnf", Value::Null), template()).unwrap();
    }

    #[test]
    fn another_tenant_is_not_allowed() {
        let other = "55555555-5555-5555-5555-555555555555";
        let mut claims = with("tid", json!(other));
        claims["iss"] = json!(format!("https://login.microsoftonline.com/{other}/v2.0"));
        assert_eq!(
            check(&header(), &claims, template()).map(|_| ()),
            Err(CallerError::TenantNotAllowed)
        );
    }

    #[test]
    fn the_key_of_personal_accounts_does_not_sign_for_a_work_tenant() {
        let fixed = json!(format!(
            "https://login.microsoftonline.com/{PERSONAL_ACCOUNTS}/v2.0"
        ));
        assert_eq!(
            check(&header(), &claims(), fixed).map(|_| ()),
            Err(TokenDefect::WrongIssuer.into())
        );
    }

    #[test]
    fn a_changed_token_does_not_verify() {
        let token = sign(&header(), &claims()).expose().to_owned();
        let settings = Settings::read(&least()).unwrap();
        let keys = SigningKeys::parse(&jwks(template())).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = signed.split_once('.').unwrap();
        let forged = URL_SAFE_NO_PAD
            .encode(with("oid", json!("66666666-6666-6666-6666-666666666666")).to_string());
        for token in [
            format!("{header}.{forged}.{signature}"),
            format!("{signed}."),
            format!("{signed}.AAAA"),
        ] {
            let bearer = Bearer::new(token);
            let unverified = Unverified::parse(&bearer).unwrap();
            let key = keys.find("k1").unwrap();
            assert_eq!(
                unverified.verify(key, &settings.issuers),
                Err(TokenDefect::BadSignature)
            );
        }
    }

    #[test]
    fn what_is_no_token_is_malformed_or_missing() {
        for (token, defect) in [
            ("", TokenDefect::Missing),
            ("a", TokenDefect::Malformed),
            ("a.b", TokenDefect::Malformed),
            ("a.b.c", TokenDefect::Malformed),
            ("e30.e30.", TokenDefect::Malformed),
            ("eyJhbGciOiJSUzI1NiJ9.bnVsbA.AA", TokenDefect::Malformed),
        ] {
            assert_eq!(
                Unverified::parse(&Bearer::new(token.into())).map(|_| ()),
                Err(defect.into()),
                "{token}"
            );
        }
    }

    #[test]
    fn a_role_counts_for_an_app_of_the_operator_tenant_alone() {
        let settings = |operator: &str| {
            let mut values = least();
            values.insert("operator_tenant", operator.to_owned());
            Settings::read(&values).unwrap()
        };
        let read = |claims: Value| Claims::read(serde_json::from_value(claims).unwrap()).unwrap();
        let mut app = with("roles", json!(["Behalf.Sweep"]));
        app.as_object_mut().unwrap().remove("scp");
        // A user's ID token for this app: no scopes, but roles that were assigned to the user.
        let id_token = app.clone();
        let mut said = app.clone();
        said["idtyp"] = json!("app");
        assert_eq!(
            read(said).accept_app("Behalf.Sweep", None, &settings(TENANT), NOW),
            Ok(())
        );
        app["sub"] = app["oid"].clone();
        let mut users = app.clone();
        users["idtyp"] = json!("user");
        let delegated = with("roles", json!(["Behalf.Sweep"]));
        assert_eq!(
            read(app.clone()).accept_app("Behalf.Sweep", None, &settings(TENANT), NOW),
            Ok(())
        );
        let refused = Err(CallerError::InsufficientScope("Behalf.Sweep".into()));
        assert_eq!(
            read(app.clone()).accept_app("Behalf.Sweep", None, &settings(""), NOW),
            refused
        );
        for claims in [delegated, id_token, users] {
            assert_eq!(
                read(claims).accept_app("Behalf.Sweep", None, &settings(TENANT), NOW),
                refused
            );
        }
        assert_eq!(
            read(app).accept_app("Behalf.Read", None, &settings(TENANT), NOW),
            Err(CallerError::InsufficientScope("Behalf.Read".into()))
        );
    }

    #[test]
    fn key_sets_without_a_usable_key_are_refused() {
        for document in [
            "",
            "{}",
            r#"{"keys":[]}"#,
            r#"{"keys":[{"kty":"RSA","kid":"weak","n":"AQAB","e":"AQAB"}]}"#,
            r#"{"keys":[7]}"#,
        ] {
            assert!(
                SigningKeys::parse(document.as_bytes()).is_none(),
                "{document}"
            );
        }
    }
}
