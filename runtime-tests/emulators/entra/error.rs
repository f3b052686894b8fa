//! Errors of Entra ID's token endpoint, as its documentation and recorded answers have them.

use std::collections::HashMap;
use std::sync::OnceLock;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::emulators::journal::Remarks;

/// An error answer.
#[derive(Clone, Debug)]
pub(crate) struct TokenError {
    pub(crate) code: u32,
    pub(crate) status: StatusCode,
    pub(crate) error: String,
    pub(crate) suberror: Option<String>,
    pub(crate) claims: Option<String>,
    message: String,
}

impl TokenError {
    /// The usual form of an AADSTS code: `errors.md`.
    pub(crate) fn new(code: u32) -> Self {
        usual().get(&code).cloned().unwrap_or_else(|| Self {
            code,
            status: StatusCode::BAD_REQUEST,
            error: "invalid_grant".to_owned(),
            suberror: None,
            claims: None,
            message: "The request was refused.".to_owned(),
        })
    }

    /// A parameter that is not there.
    pub(crate) fn missing(parameter: &str) -> Self {
        let message =
            format!("The request body must contain the following parameter: '{parameter}'.");
        Self {
            message,
            ..Self::new(900_144)
        }
    }

    /// A grant from before `TokensValidFrom`.
    pub(crate) fn revoked(since: Timestamp) -> Self {
        let message = format!(
            "The provided grant has expired due to it being revoked, a fresh auth token is needed. The user might have \
             changed or reset their password. TokensValidFrom date (before which tokens are not valid) for this user \
             is '{}'.",
            since.strftime("%Y-%m-%dT%H:%M:%S.0000000Z")
        );
        Self {
            message,
            ..Self::new(50_173)
        }
    }

    pub(crate) fn response(&self, correlation_id: Option<&str>) -> Response {
        let trace = Uuid::new_v4().to_string();
        let correlation = correlation_id.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
        let time = Timestamp::now().strftime("%Y-%m-%d %H:%M:%SZ").to_string();
        let mut body = json!({
            "error": self.error,
            "error_description": format!(
                "AADSTS{}: {}\r\nTrace ID: {trace}\r\nCorrelation ID: {correlation}\r\nTimestamp: {time}",
                self.code, self.message,
            ),
            "error_codes": [self.code], "timestamp": time, "trace_id": trace, "correlation_id": correlation,
        });
        // Only codes that have a page.
        if ![90_033, 50_196].contains(&self.code) {
            body["error_uri"] = json!(format!(
                "https://login.microsoftonline.com/error?code={}",
                self.code
            ));
        }
        if let Some(suberror) = &self.suberror {
            body["suberror"] = json!(suberror);
        }
        if let Some(claims) = &self.claims {
            body["claims"] = json!(claims);
        }
        let age = if self.code == 50_173 { "604687.01" } else { "" };
        let telemetry = format!("1,{},0,{age},", self.code);
        let mut response = respond(self.status, &body, &trace, &telemetry);
        response.extensions_mut().insert(Remarks {
            aadsts: Some(self.code),
            issued: None,
        });
        response
    }
}

/// An answer of the token endpoint, with the headers that it has whatever it says.
pub(crate) fn respond(
    status: StatusCode,
    body: &Value,
    request_id: &str,
    telemetry: &str,
) -> Response {
    let mut response = (status, axum::Json(body)).into_response();
    for (name, value) in [
        ("cache-control", "no-store, no-cache"),
        ("pragma", "no-cache"),
        ("x-ms-request-id", request_id),
        ("x-ms-ests-server", "2.1.0 - emulator ProdSlices"),
        ("x-ms-clitelem", telemetry),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_str(value).expect("a header value"));
    }
    response
}

/// The rows of `errors.md`, by code.
fn usual() -> &'static HashMap<u32, TokenError> {
    static USUAL: OnceLock<HashMap<u32, TokenError>> = OnceLock::new();
    USUAL.get_or_init(|| include_str!("errors.md").lines().filter_map(row).collect())
}

/// A row of the table; none if the line is another.
fn row(line: &str) -> Option<(u32, TokenError)> {
    let cells = line.strip_prefix("| ")?.strip_suffix(" |")?;
    let mut cells = cells.split(" | ").map(str::trim);
    let code = cells.next()?.parse().ok()?;
    let status = cells.next()?.parse().expect("an HTTP status");
    let mut text = || cells.next().expect("five columns").to_owned();
    let (error, suberror, message) = (text(), text(), text());
    Some((
        code,
        TokenError {
            code,
            status: StatusCode::from_u16(status).expect("an HTTP status"),
            error,
            suberror: Some(suberror).filter(|suberror| !suberror.is_empty()),
            claims: None,
            message,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_is_read() {
        let rows = include_str!("errors.md")
            .lines()
            .filter(|line| line.starts_with("| "));
        // Without the headings.
        assert_eq!(usual().len(), rows.count() - 1);
        let device = TokenError::new(50_097);
        assert_eq!(
            (device.status, device.error.as_str(), device.suberror),
            (StatusCode::UNAUTHORIZED, "invalid_grant", None)
        );
        let dead = TokenError::new(700_082);
        assert_eq!(dead.suberror.as_deref(), Some("bad_token"));
        assert_eq!(TokenError::new(1).error, "invalid_grant");
    }
}
