//! The form of a caller's token: an Entra ID access token, v1 or v2 (Microsoft Learn, "Access tokens in the Microsoft
//! identity platform", <https://learn.microsoft.com/entra/identity-platform/access-tokens>), as a compact JWT (RFC
//! 7519) signed with RS256.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rsa::pkcs1v15::Signature;
use rsa::signature::Verifier as _;
use serde::Deserialize;
use url::Url;

use crate::error::{AccountKind, CallerError, TokenDefect};
use crate::identity::PERSONAL_ACCOUNTS;
use crate::json;
use crate::secret::Bearer;
use crate::vault::authenticator::claims::Claims;
use crate::vault::authenticator::signing_keys::SigningKey;
use crate::vault::issuer::{IssuerTemplate, is_external};

/// Longest token read. Entra ID's own are 1 to 4 KiB.
const LONGEST: usize = 32 * 1024;

/// A token whose form and algorithm are right. Its claims must not be acted on, other than to refuse early.
///
/// ```
/// use behalf_core::error::TokenDefect;
/// use behalf_core::secret::Bearer;
/// use behalf_core::vault::authenticator::token::Unverified;
///
/// // {"alg":"none"} and {}: the algorithm is looked at first (RFC 8725 §3.1).
/// let unsigned = Bearer::new("eyJhbGciOiJub25lIn0.e30.".into());
/// assert_eq!(Unverified::parse(&unsigned).unwrap_err(), TokenDefect::WrongAlgorithm.into());
/// ```
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

        let header: Header = json::object(&decode(header)?).ok_or(TokenDefect::Malformed)?;
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
        let kind: Kind = json::object(&payload).ok_or(TokenDefect::Malformed)?;
        kind.check()?;
        Ok(Self {
            signed,
            signature: decode(signature)?,
            key_id: header.kid.ok_or(TokenDefect::Malformed)?,
            claims: Claims::parse(&payload).ok_or(TokenDefect::Malformed)?,
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
        // work tenant. Keys name the v2 issuer, also where they sign a v1 token, so a v1 issuer is held to the
        // settings.
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::identity::Guid;
    use crate::vault::authenticator::signing_keys::SigningKeys;
    use crate::vault::samples::{
        CLIENT, NOW, TENANT, USER, claims, claims_with, header, jwks, least, sign, template,
    };
    use crate::vault::settings::Settings;

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

    #[test]
    fn good_tokens_of_both_versions_are_accepted() {
        let user = check(&header(), &claims(), template()).unwrap();
        assert_eq!(user.subject.tenant.as_str(), TENANT);
        assert_eq!(user.subject.object.as_str(), USER);
        let client = "33333333-3333-3333-3333-333333333333";
        assert_eq!(user.app().client, Guid::parse(client));
        let mut v1 = claims_with("iss", json!(format!("https://sts.windows.net/{TENANT}/")));
        v1["aud"] = json!(format!("api://{CLIENT}"));
        v1["ver"] = json!("1.0");
        v1["appid"] = v1["azp"].take();
        v1["appidacr"] = v1["azpacr"].take();
        let user = check(&header(), &v1, template()).unwrap();
        assert_eq!(user.app().client, Guid::parse(client));
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
                claims_with("exp", json!(NOW - 300)),
                invalid(Expired),
            ),
            (
                "not yet valid",
                header(),
                claims_with("nbf", json!(NOW + 301)),
                invalid(NotYetValid),
            ),
            (
                "audience",
                header(),
                claims_with("aud", json!("https://graph.microsoft.com")),
                invalid(WrongAudience),
            ),
            (
                "issuer of another tenant",
                header(),
                claims_with(
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
                claims_with("iss", json!(format!("https://sts.windows.net/{TENANT}"))),
                invalid(WrongIssuer),
            ),
            (
                "tenant no GUID",
                header(),
                claims_with("tid", json!("../x")),
                invalid(Malformed),
            ),
            (
                "oid missing",
                header(),
                claims_with("oid", Value::Null),
                invalid(Malformed),
            ),
            (
                "exp missing",
                header(),
                claims_with("exp", Value::Null),
                invalid(Malformed),
            ),
            (
                "exp a text",
                header(),
                claims_with("exp", json!("1893456000")),
                invalid(Malformed),
            ),
            (
                "client no GUID",
                header(),
                claims_with("azp", json!("front-end")),
                invalid(Malformed),
            ),
            (
                "sub with a space",
                header(),
                claims_with("sub", json!("a b")),
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
                claims_with("scp", Value::Null),
                CallerError::InsufficientScope("access_as_user".into()),
            ),
            (
                "a part of the scope's name",
                header(),
                claims_with("scp", json!("access_as_user2")),
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
        let issuer =
            |host: &str| claims_with("iss", json!(format!("https://{host}/{TENANT}/v2.0/")));
        let without = |mut claims: Value, name: &str| {
            claims.as_object_mut().unwrap().remove(name);
            claims
        };
        for (claims, expected) in [
            (claims_with("tid", json!(PERSONAL_ACCOUNTS)), Personal),
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
            (header(), claims_with("cnf", json!({"kid": "k"}))),
            (header(), request.clone()),
            (json!({"typ": "pop", "alg": "ES256", "kid": "k"}), request),
        ] {
            assert_eq!(
                check(&header, &claims, template()).map(|_| ()),
                Err(TokenDefect::ProofOfPossession.into()),
                "{claims}"
            );
        }
        check(&header(), &claims_with("cnf", Value::Null), template()).unwrap();
    }

    #[test]
    fn another_tenant_is_not_allowed() {
        let other = "55555555-5555-5555-5555-555555555555";
        let mut claims = claims_with("tid", json!(other));
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
            .encode(claims_with("oid", json!("66666666-6666-6666-6666-666666666666")).to_string());
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

    /// What serde alone would take for a header without its members' names.
    #[test]
    fn a_header_that_is_a_list_is_malformed() {
        let nameless = json!(["JWT", "RS256", header()["kid"], null]);
        assert_eq!(
            check(&nameless, &claims(), template()),
            Err(TokenDefect::Malformed.into())
        );
        let nameless = json!(["an-issuer", TENANT, null]);
        assert_eq!(
            check(&header(), &nameless, template()),
            Err(TokenDefect::Malformed.into())
        );
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
}
