//! Errors of Entra ID's token endpoint, as its documentation and recorded answers have them.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::server::Remarks;

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
    /// The usual form of an AADSTS code; one that is not listed is 400 `invalid_grant`.
    pub(crate) fn new(code: u32) -> Self {
        let (_, status, error, suberror, message) = USUAL
            .iter()
            .find(|usual| usual.0 == code)
            .unwrap_or(&(0, 400, "invalid_grant", "", "The request was refused."));
        Self {
            code,
            status: StatusCode::from_u16(*status).expect("an HTTP status"),
            error: (*error).to_owned(),
            suberror: (!suberror.is_empty()).then(|| (*suberror).to_owned()),
            claims: None,
            message: (*message).to_owned(),
        }
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
        let mut response = respond(
            self.status,
            &body,
            &trace,
            &format!("1,{},0,{age},", self.code),
        );
        response.extensions_mut().insert(Remarks {
            aadsts: Some(self.code),
            issued: None,
        });
        response
    }
}

/// An answer of the token endpoint, with the headers of facts §A.1.
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

/// Descriptions of this kind name the user, which is why none may be logged or passed on.
const USER_NAMED: &str = "User account 'demo.user@contoso.example' from identity provider 'https://sts.windows.net/' \
                          does not exist in the tenant or is not assigned to a role for the application.";

/// Code, status, `error`, `suberror` (empty: none), text.
const USUAL: &[(u32, u16, &str, &str, &str)] = &[
    (
        28_002,
        400,
        "invalid_scope",
        "",
        "Provided value for the input parameter scope is not valid when requesting an access token.",
    ),
    (
        28_003,
        400,
        "invalid_scope",
        "",
        "Provided value for the input parameter scope can't be empty when requesting an access token.",
    ),
    (
        50_013,
        400,
        "invalid_grant",
        "",
        "Assertion failed signature validation. [Reason - The key was not found.]",
    ),
    (50_020, 400, "invalid_grant", "", USER_NAMED),
    (
        50_033,
        503,
        "temporarily_unavailable",
        "",
        "A retryable error has occurred.",
    ),
    (50_034, 400, "invalid_grant", "bad_token", USER_NAMED),
    (
        50_057,
        400,
        "invalid_grant",
        "",
        "The user account is disabled.",
    ),
    (
        50_072,
        400,
        "interaction_required",
        "",
        "You must enroll in multi-factor authentication to access the resource.",
    ),
    (
        50_074,
        400,
        "interaction_required",
        "",
        "Strong authentication is required.",
    ),
    (
        50_076,
        400,
        "invalid_grant",
        "basic_action",
        "You must use multi-factor authentication to access the resource.",
    ),
    (
        50_078,
        400,
        "invalid_grant",
        "basic_action",
        "Presented multi-factor authentication has expired.",
    ),
    (
        50_079,
        400,
        "interaction_required",
        "basic_action",
        "You must enroll in multi-factor authentication.",
    ),
    (
        50_087,
        503,
        "temporarily_unavailable",
        "",
        "A transient error has occurred during strong authentication.",
    ),
    (
        50_097,
        401,
        "invalid_grant",
        "",
        "Device authentication is required.",
    ),
    (50_105, 400, "invalid_grant", "", USER_NAMED),
    (
        50_132,
        400,
        "invalid_grant",
        "",
        "The session has been revoked.",
    ),
    (
        50_133,
        400,
        "invalid_grant",
        "",
        "The session is not valid due to password expiration or a recent password change.",
    ),
    (
        50_158,
        400,
        "interaction_required",
        "",
        "External security challenge not satisfied.",
    ),
    (
        50_173,
        400,
        "invalid_grant",
        "bad_token",
        "The provided grant has expired due to it being revoked.",
    ),
    (
        50_196,
        400,
        "invalid_grant",
        "",
        "The server terminated an operation because it encountered a client request loop.",
    ),
    (
        53_000,
        400,
        "interaction_required",
        "",
        "Your device is required to be compliant to access this resource.",
    ),
    (
        53_001,
        400,
        "interaction_required",
        "",
        "Device is not domain joined.",
    ),
    (
        53_002,
        400,
        "interaction_required",
        "",
        "Application used is not an approved application for conditional access.",
    ),
    (
        53_003,
        400,
        "invalid_grant",
        "message_only",
        "Access has been blocked by Conditional Access policies.",
    ),
    (
        53_005,
        400,
        "unauthorized_client",
        "protection_policy_required",
        "The application needs to enforce Intune policies.",
    ),
    (
        65_001,
        400,
        "invalid_grant",
        "consent_required",
        "The user or administrator has not consented to the application.",
    ),
    (
        65_004,
        400,
        "access_denied",
        "",
        "User declined to consent to access the application.",
    ),
    (
        70_000,
        400,
        "invalid_grant",
        "",
        "The provided grant is invalid or malformed.",
    ),
    (
        70_003,
        400,
        "unsupported_grant_type",
        "",
        "The app requested an unsupported grant type.",
    ),
    (
        70_008,
        400,
        "invalid_grant",
        "",
        "The provided authorization code or refresh token has expired.",
    ),
    (
        70_011,
        400,
        "invalid_scope",
        "",
        "The provided value for the input parameter 'scope' is not valid.",
    ),
    (
        70_043,
        400,
        "invalid_grant",
        "bad_token",
        "The refresh token has expired due to sign-in frequency checks.",
    ),
    (
        90_002,
        400,
        "invalid_request",
        "",
        "Tenant not found. Check that you have the correct tenant ID.",
    ),
    (
        90_006,
        503,
        "temporarily_unavailable",
        "",
        "The service is temporarily unavailable.",
    ),
    (
        90_012,
        503,
        "temporarily_unavailable",
        "",
        "A request timed out.",
    ),
    (
        90_024,
        503,
        "temporarily_unavailable",
        "",
        "The request budget was exceeded. A transient error has occurred.",
    ),
    (
        90_033,
        503,
        "temporarily_unavailable",
        "",
        "A transient error has occurred. Please try again.",
    ),
    (
        90_055,
        429,
        "temporarily_unavailable",
        "",
        "The tenant is throttled due to too many requests.",
    ),
    (90_072, 400, "invalid_grant", "", USER_NAMED),
    (
        90_094,
        400,
        "access_denied",
        "",
        "Admin consent is required for the permissions requested by this application.",
    ),
    (
        500_011,
        400,
        "invalid_resource",
        "",
        "The resource principal was not found in the tenant.",
    ),
    (
        500_131,
        400,
        "invalid_grant",
        "",
        "Assertion audience does not match the Client app presenting the assertion.",
    ),
    (
        500_133,
        400,
        "invalid_grant",
        "",
        "Assertion is not within its valid time range.",
    ),
    (
        530_003,
        400,
        "interaction_required",
        "",
        "Your device is required to be managed to access this resource.",
    ),
    (
        530_032,
        400,
        "interaction_required",
        "",
        "Access has been blocked by a security policy.",
    ),
    (
        650_052,
        400,
        "invalid_client",
        "",
        "The app is trying to access a service that the organization lacks a service principal for.",
    ),
    (
        650_053,
        400,
        "invalid_client",
        "",
        "The application asked for a scope that doesn't exist on the resource.",
    ),
    (
        650_057,
        400,
        "invalid_resource",
        "",
        "The resource is not listed in the requested permissions of the client.",
    ),
    (
        700_016,
        400,
        "unauthorized_client",
        "",
        "Application was not found in the directory.",
    ),
    (
        700_022,
        400,
        "invalid_request",
        "",
        "The 'scope' is not valid because it contains more than one resource.",
    ),
    (
        700_024,
        401,
        "invalid_client",
        "",
        "Client assertion is not within its valid time range.",
    ),
    (
        700_027,
        401,
        "invalid_client",
        "",
        "The certificate used to sign the client assertion is not registered.",
    ),
    (
        700_082,
        400,
        "invalid_grant",
        "bad_token",
        "The refresh token has expired due to inactivity.",
    ),
    (
        700_084,
        400,
        "invalid_grant",
        "",
        "The refresh token was issued to a single page app and has expired.",
    ),
    (
        900_144,
        400,
        "invalid_request",
        "",
        "The request body must contain a required parameter.",
    ),
    (
        7_000_112,
        400,
        "unauthorized_client",
        "",
        "Application is disabled.",
    ),
    (
        7_000_114,
        400,
        "invalid_grant",
        "",
        "Application is not allowed to make application on-behalf-of calls.",
    ),
    (
        7_000_215,
        401,
        "invalid_client",
        "",
        "Invalid client secret provided.",
    ),
    (
        7_000_218,
        401,
        "invalid_client",
        "",
        "The request body must contain 'client_assertion' or 'client_secret'.",
    ),
    (
        7_000_222,
        401,
        "invalid_client",
        "",
        "The provided client secret keys are expired.",
    ),
    (
        7_000_229,
        401,
        "invalid_client",
        "",
        "The client application is missing service principal in the tenant.",
    ),
    (
        9_001_023,
        400,
        "invalid_request",
        "",
        "The grant type is not supported over the /common or /consumers endpoints.",
    ),
    (
        9_002_313,
        400,
        "invalid_grant",
        "bad_token",
        "Invalid request. Request is malformed or invalid.",
    ),
];
