//! Claims requests: what a token has to have, in the words of the parameter `claims` (`OpenID` Connect Core 1.0 §5.5).
//!
//! An API or Entra ID asks for one in a challenge, and whoever is challenged passes it on to Entra ID when it asks for
//! the next token (Microsoft Learn, "Claims challenges, claims requests and client capabilities",
//! <https://learn.microsoft.com/entra/identity-platform/claims-challenge>).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};

use crate::error::CallerError;

/// Longest claims request that a caller may make, in bytes: each costs a request to Entra ID.
const LONGEST: usize = 4096;

/// Whether a text can be a claims request: a JSON object.
pub(crate) fn is_claims_request(claims: &str) -> bool {
    serde_json::from_str::<Map<String, Value>>(claims).is_ok()
}

/// Reads one: as JSON text, or as the challenge of an API carries it, in base64 or base64url.
pub(crate) fn parse(text: &str) -> Option<String> {
    let text = text.trim();
    let encoded = text.trim_end_matches('=');
    let decoded = STANDARD_NO_PAD
        .decode(encoded)
        .or_else(|_| URL_SAFE_NO_PAD.decode(encoded));
    let claims = match decoded {
        Ok(claims) => String::from_utf8(claims).ok()?,
        // A JSON object is no base64: it has braces.
        Err(_) => text.to_owned(),
    };
    is_claims_request(&claims).then_some(claims)
}

/// Reads one that a caller makes.
///
/// # Errors
/// [`CallerError::InvalidRequest`].
pub(crate) fn of_caller(text: &str) -> Result<String, CallerError> {
    parse(text)
        .filter(|claims| claims.len() <= LONGEST)
        .ok_or_else(|| {
            CallerError::InvalidRequest(
                "`claims` must be a JSON object of at most 4096 bytes, as text or in base64 as challenges carry it".into(),
            )
        })
}

/// The `claims` parameter: what is asked for, with the capabilities of this app declared in it; none if it would be
/// empty.
///
/// What is asked for was checked to be a JSON object. Should it hold no object where the capabilities belong, they
/// take its place: they are this app's promise, not the caller's.
///
/// ```
/// use behalf_core::vault::claims_request::merged_claims;
///
/// let asked = r#"{"access_token":{"nbf":{"essential":true,"value":"1793608800"}}}"#;
/// assert_eq!(
///     merged_claims(&["cp1".to_owned()], Some(asked)).unwrap(),
///     r#"{"access_token":{"nbf":{"essential":true,"value":"1793608800"},"xms_cc":{"values":["cp1"]}}}"#
/// );
/// assert_eq!(merged_claims(&[], None), None);
/// ```
#[must_use]
pub fn merged_claims(capabilities: &[String], asked: Option<&str>) -> Option<String> {
    if capabilities.is_empty() {
        return asked.map(Into::into);
    }
    let mut claims: Map<String, Value> = asked
        .and_then(|asked| serde_json::from_str(asked).ok())
        .unwrap_or_default();
    let own = ("xms_cc".to_owned(), json!({"values": capabilities}));
    match claims.get_mut("access_token") {
        Some(Value::Object(access_token)) => access_token.extend([own]),
        Some(_) | None => {
            claims.insert(
                "access_token".into(),
                Value::Object([own].into_iter().collect()),
            );
        }
    }
    Some(Value::Object(claims).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIMS: &str = "{\"c\":1}";

    #[test]
    fn capabilities_are_merged_into_the_claims_asked_for() {
        let cp1 = ["cp1".to_owned()];
        let declared = json!({"values": ["cp1"]});
        for (asked, expected) in [
            (None, json!({"access_token": {"xms_cc": declared}})),
            (
                Some(json!({"access_token": {"nbf": {"essential": true, "value": "1793608800"}}})),
                json!({"access_token": {"nbf": {"essential": true, "value": "1793608800"}, "xms_cc": declared}}),
            ),
            (
                Some(json!({"id_token": {"auth_time": null}})),
                json!({"id_token": {"auth_time": null}, "access_token": {"xms_cc": declared}}),
            ),
            (
                Some(json!({"access_token": {"xms_cc": {"values": ["cp9"]}}})),
                json!({"access_token": {"xms_cc": declared}}),
            ),
            (
                Some(json!({"access_token": null})),
                json!({"access_token": {"xms_cc": declared}}),
            ),
        ] {
            let asked = asked.map(|asked| asked.to_string());
            let merged = merged_claims(&cp1, asked.as_deref()).unwrap();
            assert_eq!(serde_json::from_str::<Value>(&merged).unwrap(), expected);
        }
        assert_eq!(merged_claims(&[], Some(CLAIMS)).as_deref(), Some(CLAIMS));
        assert_eq!(merged_claims(&[], None), None);
    }
}
