//! Azure Key Vault secrets: the two reads that behalf does, and what an answer means.
//!
//! The request is "Get Secret" of version 7.6
//! (<https://learn.microsoft.com/rest/api/keyvault/secrets/get-secret/get-secret>), with or without a version; a
//! refusal is told by its status and by the code in `error.innererror` (Microsoft Learn, "Azure Key Vault REST API
//! error codes", <https://learn.microsoft.com/azure/key-vault/general/rest-error-codes>). A request without a token is
//! answered with a challenge that names the tenant to get a token in (Microsoft Learn, "Authentication, requests and
//! responses", <https://learn.microsoft.com/azure/key-vault/general/authentication-requests-and-responses>).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::request::Builder;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::endpoint;
use crate::error::{OperatorError, System, VaultError};
use crate::identity::{KeyVersion, SecretName, TenantId};
use crate::json::{self, Object};
use crate::port::SecretBody;
use crate::secret::{AccessToken, EncryptionKey};
use crate::vault::claims_request;
use crate::vault::settings::Settings;

/// Longest answer read, in bytes: a secret's value may have 25 KB.
pub const LONGEST_ANSWER: usize = 64 * 1024;

const API_VERSION: &str = "7.6";

/// A key, as Key Vault holds it.
#[derive(Debug)]
pub struct Key {
    /// Which version this is.
    pub version: KeyVersion,
    /// The key.
    pub key: EncryptionKey,
    /// When this version was made, in Unix seconds; none: Key Vault does not say.
    pub created_at: Option<u64>,
    not_before: u64,
    expires_at: u64,
}

impl Key {
    /// Whether something may be opened with it now: so long before and after it is valid, too.
    #[must_use]
    pub fn opens_at(&self, now: u64, grace: u32) -> bool {
        let first = self.not_before.saturating_sub(grace.into());
        let end = self.expires_at.saturating_add(grace.into());
        (first..end).contains(&now)
    }

    /// When nothing may be sealed under it any more, in Unix seconds; none: never.
    #[must_use]
    pub fn expires_at(&self) -> Option<u64> {
        (self.expires_at != u64::MAX).then_some(self.expires_at)
    }

    /// Whether something may be sealed under it now. Key Vault itself gives out expired and future secrets: the
    /// times are for whoever reads them (Microsoft Learn, "About Azure Key Vault secrets",
    /// <https://learn.microsoft.com/azure/key-vault/secrets/about-secrets>).
    #[must_use]
    pub fn is_valid_at(&self, now: u64) -> bool {
        (self.not_before..self.expires_at).contains(&now)
    }
}

/// Asks for a secret: its newest version, or the one given.
///
/// # Errors
/// [`http::Error`] if the parts make no URL: all are checked, so it does not occur.
pub fn secret_request(
    settings: &Settings,
    secret: &SecretName,
    version: Option<&KeyVersion>,
    token: &AccessToken,
) -> Result<Request<SecretBody>, http::Error> {
    let version = version.map_or("", KeyVersion::as_str);
    let secret = secret.as_str();
    let request = request(settings, &format!("secrets/{secret}/{version}"));
    with_token(request, token)?.body(Zeroizing::default())
}

/// With this app's token, for Key Vault.
///
/// # Errors
/// As [`secret_request`].
pub(crate) fn with_token(request: Builder, token: &AccessToken) -> Result<Builder, http::Error> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))?;
    value.set_sensitive(true);
    Ok(request.header(AUTHORIZATION, value))
}

/// Asks for the challenge, which is the same whatever is asked for without a token: so nothing in this request is of a tenant.
///
/// # Errors
/// As [`secret_request`].
pub fn challenge_request(settings: &Settings) -> Result<Request<SecretBody>, http::Error> {
    request(settings, "secrets").body(Zeroizing::default())
}

/// A request for a path of Key Vault; a reading one.
pub(crate) fn request(settings: &Settings, path: &str) -> Builder {
    let vault = &settings.key_vault_url;
    Request::builder()
        .method(Method::GET)
        .uri(format!("{vault}{path}?api-version={API_VERSION}"))
}

/// Reads the answer.
///
/// # Errors
/// [`SecretError`].
pub fn read_secret(
    response: &Response<SecretBody>,
    secret: &SecretName,
    version: Option<&KeyVersion>,
) -> Result<Key, SecretError> {
    let name = || OperatorError::name(secret);
    match response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => {
            return Err(SecretError::Unauthorized(Unauthorized::read(response)));
        }
        StatusCode::FORBIDDEN => {
            return Err(match inner_code(response).as_deref() {
                Some("SecretDisabled") => OperatorError::KeyDisabled(name()).into(),
                Some("AccessDenied" | "ForbiddenByPolicy" | "ForbiddenByRbac") => {
                    OperatorError::KeyVaultForbidden.into()
                }
                Some("ForbiddenByFirewall" | "ForbiddenByConnection") => {
                    OperatorError::KeyVaultFirewall.into()
                }
                _ => OperatorError::KeyVaultRefused.into(),
            });
        }
        StatusCode::NOT_FOUND => return Err(OperatorError::KeyNotFound(name()).into()),
        StatusCode::BAD_REQUEST => return Err(OperatorError::KeyVaultRefused.into()),
        // An outage, or no Key Vault at all.
        _ => return Err(unavailable()),
    }
    let bundle: Bundle = json::object(response.body()).ok_or_else(unavailable)?;
    let value = Zeroizing::new(bundle.value.unwrap_or_default());
    let found = version_of(&bundle.id, secret).ok_or_else(unavailable)?;
    if version.is_some_and(|asked| *asked != found) {
        return Err(unavailable());
    }
    let Object(attributes) = bundle.attributes;
    Ok(Key {
        version: found,
        key: read_key(&value).ok_or_else(|| OperatorError::KeyMalformed(name()))?,
        created_at: attributes.created,
        not_before: attributes.nbf.unwrap_or(0),
        expires_at: attributes.exp.unwrap_or(u64::MAX),
    })
}

/// Why there is no key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SecretError {
    /// The token was not accepted: get a new one, and try once more.
    Unauthorized(Unauthorized),
    /// Anything else.
    Other(VaultError),
}

/// What Key Vault says of a token that it does not accept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unauthorized {
    /// What to ask for with the next one, as JSON text, if Key Vault says so (continuous access evaluation).
    pub claims: Option<String>,
    /// The tenant that the next one has to be of: a vault can move.
    pub tenant: Option<TenantId>,
    /// Whether it is about the token's audience or issuer, which the settings decide: AKV10022, AKV10032. Others pass,
    /// as AKV10046 does a second later.
    pub is_ours: bool,
}

impl Unauthorized {
    /// Reads an answer whose status is 401.
    pub(crate) fn read(response: &Response<SecretBody>) -> Self {
        Self {
            claims: challenged_claims(response),
            tenant: challenged_tenant(response),
            is_ours: is_about_audience_or_issuer(response),
        }
    }
}

impl From<OperatorError> for SecretError {
    fn from(error: OperatorError) -> Self {
        Self::Other(error.into())
    }
}

/// The tenant that Key Vault's challenge names: the first segment of the path of `authorization`.
///
/// Only the tenant is taken from it. The token is asked for at our own authority and sent to our own Key Vault, so a
/// forged challenge can at most name a tenant where this app gets no token.
#[must_use]
pub fn challenged_tenant(response: &Response<SecretBody>) -> Option<TenantId> {
    if response.status() != StatusCode::UNAUTHORIZED {
        return None;
    }
    let authorization = challenge(response, &["authorization", "authorization_uri"])?;
    let url = endpoint::url(authorization)?;
    TenantId::parse(url.path_segments()?.next()?)
}

/// Whether Key Vault refuses a token for its audience or issuer, by the number at the front of its message.
fn is_about_audience_or_issuer(response: &Response<SecretBody>) -> bool {
    let body: Option<Failure> = json::object(response.body());
    let message = body.and_then(
        |Failure {
             error: Object(error),
         }| error.message,
    );
    let number = message
        .as_deref()
        .and_then(|message| message.split(':').next());
    matches!(number, Some("AKV10022" | "AKV10032"))
}

/// The claims request of a challenge that has one. It goes to our own authority alone, for a token of this app.
fn challenged_claims(response: &Response<SecretBody>) -> Option<String> {
    claims_request::parse(challenge(response, &["claims"])?)
}

/// A parameter of the challenge `Bearer …`, under any of these names.
fn challenge<'a>(response: &'a Response<SecretBody>, names: &[&str]) -> Option<&'a str> {
    let challenge = response.headers().get(WWW_AUTHENTICATE)?.to_str().ok()?;
    let (scheme, parameters) = challenge.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("Bearer") {
        return None;
    }
    // No parameter that matters here holds a quoted comma; the order is not given.
    parameters.split(',').find_map(|parameter| {
        let (name, value) = parameter.trim().split_once('=')?;
        names.contains(&name).then(|| value.trim_matches('"'))
    })
}

fn unavailable() -> SecretError {
    SecretError::Other(VaultError::upstream(System::KeyVault))
}

/// 32 bytes in base64 or base64url, padded or not. Anything else is an error, never a guess.
fn read_key(value: &str) -> Option<EncryptionKey> {
    let engine = match (value.len(), value.contains(['-', '_'])) {
        (44, false) => &STANDARD,
        (44, true) => &URL_SAFE,
        (43, false) => &STANDARD_NO_PAD,
        (43, true) => &URL_SAFE_NO_PAD,
        _ => return None,
    };
    // One byte more than is wanted: the engines reckon with a text that is not padded.
    let mut decoded = Zeroizing::new([0; 33]);
    let length = engine.decode_slice(value, decoded.as_mut_slice()).ok()?;
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(decoded.get(..length).filter(|bytes| bytes.len() == 32)?);
    Some(EncryptionKey::new(key))
}

/// What tells one refusal from another of the same status.
pub(crate) fn inner_code(response: &Response<SecretBody>) -> Option<String> {
    let body: Option<Failure> = json::object(response.body());
    let Failure {
        error: Object(error),
    } = body?;
    error.innererror.map(|Object(inner)| inner.code)
}

/// `https://{vault}/secrets/{name}/{version}`; the host may carry `:443` and the name another case.
pub(crate) fn version_of(id: &str, secret: &SecretName) -> Option<KeyVersion> {
    let url = endpoint::url(id)?;
    let mut path = url.path_segments()?;
    let fits = path.next()? == "secrets" && path.next()?.eq_ignore_ascii_case(secret.as_str());
    let version = KeyVersion::parse(path.next()?)?;
    (fits && path.next().is_none()).then_some(version)
}

#[derive(Deserialize)]
struct Bundle {
    value: Option<String>,
    id: String,
    #[serde(default)]
    attributes: Object<Attributes>,
}

#[derive(Deserialize, Default)]
struct Attributes {
    created: Option<u64>,
    nbf: Option<u64>,
    exp: Option<u64>,
}

#[derive(Deserialize)]
struct Failure {
    error: Object<FailureBody>,
}

#[derive(Deserialize)]
struct FailureBody {
    message: Option<String>,
    innererror: Option<Object<InnerError>>,
}

#[derive(Deserialize)]
struct InnerError {
    code: String,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::vault::samples::least;

    const VERSION: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

    fn name() -> SecretName {
        SecretName::parse("obo-t").unwrap()
    }

    fn answer(status: u16, body: &Value) -> Response<SecretBody> {
        Response::builder()
            .status(status)
            .body(Zeroizing::new(body.to_string().into_bytes()))
            .unwrap()
    }

    fn bundle(value: &str) -> Value {
        json!({"value": value, "id": format!("https://demo.vault.azure.net/secrets/OBO-t/{VERSION}"),
            "attributes": {"enabled": true, "nbf": 100, "exp": 200, "created": 1, "updated": 1}})
    }

    #[test]
    fn requests_name_secret_and_version() {
        let settings = Settings::read(&least()).unwrap();
        let version = KeyVersion::parse(VERSION).unwrap();
        let token = AccessToken::new("at-canary".into());
        let newest = secret_request(&settings, &name(), None, &token).unwrap();
        assert_eq!(
            newest.uri(),
            "https://demo.vault.azure.net/secrets/obo-t/?api-version=7.6"
        );
        let exact = secret_request(&settings, &name(), Some(&version), &token).unwrap();
        assert_eq!(
            exact.uri(),
            &*format!("https://demo.vault.azure.net/secrets/obo-t/{VERSION}?api-version=7.6")
        );
        assert!(!format!("{exact:?}").contains("canary"));
        let challenge = challenge_request(&settings).unwrap();
        assert_eq!(
            challenge.uri(),
            "https://demo.vault.azure.net/secrets?api-version=7.6"
        );
        assert!(challenge.headers().is_empty());
    }

    #[test]
    fn a_key_is_read_in_every_base64() {
        let bytes: [u8; 32] = std::array::from_fn(|at| 255 - u8::try_from(at).unwrap());
        for value in [
            STANDARD.encode(bytes),
            STANDARD_NO_PAD.encode(bytes),
            URL_SAFE.encode(bytes),
            URL_SAFE_NO_PAD.encode(bytes),
        ] {
            let key = read_secret(&answer(200, &bundle(&value)), &name(), None).unwrap();
            assert_eq!(key.key.expose(), &bytes, "{value}");
            assert_eq!(key.version.as_str(), VERSION);
            assert_eq!((key.created_at, key.expires_at()), (Some(1), Some(200)));
            assert!(
                key.is_valid_at(100)
                    && key.is_valid_at(199)
                    && !key.is_valid_at(99)
                    && !key.is_valid_at(200)
            );
            assert!(key.opens_at(199, 0) && !key.opens_at(200, 0) && !key.opens_at(99, 0));
            assert!(key.opens_at(209, 10) && !key.opens_at(210, 10) && key.opens_at(90, 10));
        }
    }

    #[test]
    fn what_is_no_key_is_malformed() {
        let long = STANDARD.encode([7; 33]);
        let short = STANDARD.encode([7; 31]);
        for value in [
            "",
            "password",
            &long,
            &short,
            &"ab".repeat(32),
            &format!("{}=", "A".repeat(42)),
            &"é".repeat(22),
        ] {
            let error = read_secret(&answer(200, &bundle(value)), &name(), None).unwrap_err();
            assert_eq!(
                error,
                OperatorError::KeyMalformed("obo-t".into()).into(),
                "{value}"
            );
        }
    }

    /// What serde alone would take for the same members without their names.
    #[test]
    fn a_list_is_no_answer() {
        let value = STANDARD.encode([7; 32]);
        let id = &bundle(&value)["id"];
        assert_eq!(
            read_secret(&answer(200, &json!([value, id, {}])), &name(), None).unwrap_err(),
            unavailable()
        );
        let mut times = bundle(&value);
        times["attributes"] = json!([100, 200]);
        assert_eq!(
            read_secret(&answer(200, &times), &name(), None).unwrap_err(),
            unavailable()
        );
        for failure in [
            json!([{"innererror": {"code": "SecretDisabled"}}]),
            json!({"error": ["m", {"code": "SecretDisabled"}]}),
            json!({"error": {"innererror": ["SecretDisabled"]}}),
        ] {
            assert_eq!(
                read_secret(&answer(403, &failure), &name(), None).unwrap_err(),
                OperatorError::KeyVaultRefused.into(),
                "{failure}"
            );
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        let forbidden = |inner: &str| json!({"error": {"code": "Forbidden", "message": "m", "innererror": {"code": inner}}});
        let read =
            |status, body: &Value| read_secret(&answer(status, body), &name(), None).unwrap_err();
        for (message, is_ours) in [
            ("AKV10022: Invalid audience.", true),
            ("AKV10032: Invalid issuer.", true),
            (
                "AKV10046: Unable to resolve the key used for signature validation.",
                false,
            ),
            ("AKV10000: Request is missing a Bearer or PoP token.", false),
            ("", false),
        ] {
            let body = json!({"error": {"code": "Unauthorized", "message": message}});
            let said = Unauthorized {
                claims: None,
                tenant: None,
                is_ours,
            };
            assert_eq!(read(401, &body), SecretError::Unauthorized(said));
        }
        assert_eq!(
            read(403, &forbidden("SecretDisabled")),
            OperatorError::KeyDisabled("obo-t".into()).into()
        );
        for (inner, error) in [
            ("AccessDenied", OperatorError::KeyVaultForbidden),
            ("ForbiddenByPolicy", OperatorError::KeyVaultForbidden),
            ("ForbiddenByRbac", OperatorError::KeyVaultForbidden),
            ("ForbiddenByFirewall", OperatorError::KeyVaultFirewall),
            ("ForbiddenByConnection", OperatorError::KeyVaultFirewall),
            ("SomethingNew", OperatorError::KeyVaultRefused),
        ] {
            assert_eq!(read(403, &forbidden(inner)), error.into(), "{inner}");
        }
        assert_eq!(
            read(403, &json!("<html>")),
            OperatorError::KeyVaultRefused.into()
        );
        assert_eq!(
            read(404, &json!({"error": {"code": "SecretNotFound"}})),
            OperatorError::KeyNotFound("obo-t".into()).into()
        );
        for status in [429, 500, 503, 302] {
            assert_eq!(read(status, &json!({})), unavailable(), "{status}");
        }
    }

    #[test]
    fn another_secret_or_version_is_not_taken_for_the_one_asked() {
        let value = STANDARD.encode([7; 32]);
        let other = KeyVersion::parse(&"0".repeat(32)).unwrap();
        assert_eq!(
            read_secret(&answer(200, &bundle(&value)), &name(), Some(&other)).unwrap_err(),
            unavailable()
        );
        let another = SecretName::parse("obo-u").unwrap();
        assert_eq!(
            read_secret(&answer(200, &bundle(&value)), &another, None).unwrap_err(),
            unavailable()
        );
    }

    #[test]
    fn a_challenge_names_the_tenant_in_any_order() {
        let tenant = "11111111-1111-1111-1111-111111111111";
        let challenge = |text: String| {
            let response = Response::builder()
                .status(401)
                .header(WWW_AUTHENTICATE, text)
                .body(Zeroizing::default())
                .unwrap();
            challenged_tenant(&response).map(|tenant| tenant.to_string())
        };
        let expected = Some(tenant.to_owned());
        assert_eq!(
            challenge(format!(
                r#"Bearer authorization="https://login.windows.net/{tenant}", resource="https://vault.azure.net""#
            )),
            expected
        );
        assert_eq!(
            challenge(format!(
                r#"bearer resource="https://vault.azure.net",authorization_uri="https://login.windows.net/{tenant}/x""#
            )),
            expected
        );
        for text in [
            "Basic realm=\"x\"",
            "Bearer",
            "Bearer resource=\"x\"",
            "Bearer authorization=\"https://login.windows.net/common\"",
            "Bearer authorization=\"https://login.windows.net/11111111-1\t111-1111-1111-111111111111\"",
            "Bearer authorization=\"https:\\\\login.windows.net\\11111111-1111-1111-1111-111111111111\"",
            "Bearer authorization=\"x\"",
        ] {
            assert_eq!(challenge(text.into()), None, "{text}");
        }
    }
}
