//! Errors as HTTP: RFC 9457 `application/problem+json`, each with a stable `code`. One table, without a catch-all arm:
//! an error that is added does not compile until it is placed here.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use thiserror::Error;

use crate::error::{
    CallerError, OperatorError, StoredError, System, TokenDefect, UserError, VaultError,
};
use crate::keeper::KeeperError;

/// Longest request body accepted, in bytes.
pub const LONGEST_BODY: usize = 64 * 1024;

/// How long a request's body may take. Whoever sends one slowly holds a place in an instance.
pub const BODY_TIME: Duration = Duration::from_secs(10);

/// Why a request is not answered as asked.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ApiError {
    /// The operation failed.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// No such path.
    #[error("there is nothing here; the paths are in README.md, \"API\"")]
    NotFound,
    /// The path has other methods.
    #[error("this path takes {0}")]
    MethodNotAllowed(
        /// The methods it has, for the header `Allow`.
        &'static str,
    ),
    /// The body is over [`LONGEST_BODY`].
    #[error("the body may have 65,536 bytes")]
    BodyTooLarge,
    /// The body took longer than [`BODY_TIME`].
    #[error("the body did not arrive within 10 seconds; send it at once")]
    BodyTooSlow,
    /// The body broke off.
    #[error("the body broke off")]
    BodyBrokenOff,
    /// The body is not JSON.
    #[error("the body is not valid JSON (line {line}, column {column})")]
    InvalidJson {
        /// Line of the first error, from 1.
        line: usize,
        /// Column of the first error, from 1.
        column: usize,
    },
    /// The body is JSON, but not what this path takes.
    #[error("the body must be a JSON object with {0}")]
    InvalidBody(
        /// The members it takes.
        &'static str,
    ),
}

impl From<VaultError> for ApiError {
    fn from(error: VaultError) -> Self {
        Self::Keeper(error.into())
    }
}

impl ApiError {
    /// The whole response.
    #[must_use]
    pub fn to_response(&self) -> Response<Bytes> {
        let Row { status, code, more } = self.row();
        let (header, claims) = more.header();
        let problem = ProblemBody {
            title: status.canonical_reason(),
            status: status.as_u16(),
            code,
            detail: self.to_string(),
            claims,
        };
        let mut response = json_response(status, &problem);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some((name, value)) = header
            && let Ok(value) = HeaderValue::try_from(value)
        {
            headers.insert(name, value);
        }
        response
    }

    fn row(&self) -> Row<'_> {
        use StatusCode as S;
        match self {
            Self::NotFound => Row::new(S::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed(methods) => {
                Row::new(S::METHOD_NOT_ALLOWED, "method_not_allowed").with(More::Allow(methods))
            }
            Self::BodyTooLarge => Row::new(S::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyTooSlow => Row::new(S::REQUEST_TIMEOUT, "body_too_slow"),
            Self::BodyBrokenOff => Row::new(S::BAD_REQUEST, "body_broken_off"),
            Self::InvalidJson { .. } => Row::new(S::BAD_REQUEST, "invalid_json"),
            Self::InvalidBody(_) => Row::new(S::BAD_REQUEST, "invalid_request"),
            Self::Keeper(error) => of_keeper(error),
        }
    }
}

/// How an error is told: a row of the table.
struct Row<'a> {
    status: StatusCode,
    /// Stays the same from version to version.
    code: &'static str,
    more: More<'a>,
}

/// What a client needs to know besides.
enum More<'a> {
    Nothing,
    /// The methods that the path has.
    Allow(&'static str),
    /// Seconds to wait.
    RetryAfter(u32),
    /// To send a token.
    Authenticate,
    /// To send another token: what is wrong with this one.
    InvalidToken(TokenDefect),
    /// To send a token with this scope.
    InsufficientScope(&'a str),
    /// To let the user sign in, with a claims request as JSON text.
    Interaction(Option<&'a str>),
}

impl<'a> Row<'a> {
    fn new(status: StatusCode, code: &'static str) -> Self {
        Self {
            status,
            code,
            more: More::Nothing,
        }
    }

    fn with(self, more: More<'a>) -> Self {
        Self { more, ..self }
    }
}

impl<'a> More<'a> {
    /// As a header, and as the claims of the body. Challenges are RFC 6750 §3; for interaction as
    /// facts/entra-and-key-vault.md §A.9 has it, so that front ends that know Microsoft's challenges know this one.
    fn header(&self) -> (Option<(HeaderName, String)>, Option<&'a str>) {
        let header = match self {
            Self::Nothing => return (None, None),
            Self::Allow(methods) => (ALLOW, (*methods).to_owned()),
            Self::RetryAfter(seconds) => (RETRY_AFTER, seconds.to_string()),
            Self::Authenticate => (WWW_AUTHENTICATE, "Bearer".to_owned()),
            Self::InvalidToken(defect) => {
                let what = defect.to_string().replace(['`', '"'], "'");
                let challenge =
                    format!(r#"Bearer error="invalid_token", error_description="{what}""#);
                (WWW_AUTHENTICATE, challenge)
            }
            Self::InsufficientScope(scope) => {
                // A setting, so without quotes only if the operator wrote none.
                let scope = scope.replace(['"', '\\'], "");
                let challenge = format!(r#"Bearer error="insufficient_scope", scope="{scope}""#);
                (WWW_AUTHENTICATE, challenge)
            }
            Self::Interaction(claims) => {
                let encoded = claims
                    .map(|claims| format!(r#", claims="{}""#, STANDARD.encode(claims)))
                    .unwrap_or_default();
                let challenge = format!(r#"Bearer error="insufficient_claims"{encoded}"#);
                return (Some((WWW_AUTHENTICATE, challenge)), *claims);
            }
        };
        (Some(header), None)
    }
}

fn of_keeper(error: &KeeperError) -> Row<'_> {
    use StatusCode as S;
    match error {
        KeeperError::Store(_) => {
            Row::new(S::SERVICE_UNAVAILABLE, "store_unavailable").with(More::RetryAfter(1))
        }
        KeeperError::Busy => Row::new(S::SERVICE_UNAVAILABLE, "busy").with(More::RetryAfter(1)),
        KeeperError::NotEnrolled => Row::new(S::NOT_FOUND, "not_enrolled"),
        KeeperError::NoRefreshToken => Row::new(S::CONFLICT, "no_refresh_token"),
        KeeperError::RecordDamaged => Row::new(S::INTERNAL_SERVER_ERROR, "record_damaged"),
        KeeperError::RecordTooNew => Row::new(S::INTERNAL_SERVER_ERROR, "record_too_new"),
        KeeperError::RecordLost => Row::new(S::INTERNAL_SERVER_ERROR, "record_lost"),
        KeeperError::TenantRemoved => Row::new(S::FORBIDDEN, "tenant_being_removed"),
        KeeperError::Vault(error) => match error {
            VaultError::Caller(error) => of_caller(error),
            VaultError::User(error) => match error {
                UserError::InteractionRequired(interaction) => {
                    Row::new(S::UNAUTHORIZED, "interaction_required")
                        .with(More::Interaction(interaction.claims.as_deref()))
                }
                UserError::ReenrolmentRequired(_) => Row::new(S::CONFLICT, "reenrolment_required"),
            },
            VaultError::Stored(error) => match error {
                StoredError::Damaged => Row::new(S::INTERNAL_SERVER_ERROR, "record_damaged"),
                StoredError::NotBound => Row::new(S::INTERNAL_SERVER_ERROR, "record_not_bound"),
            },
            VaultError::Operator(error) => Row::new(S::INTERNAL_SERVER_ERROR, of_operator(error)),
            VaultError::Upstream(error) => {
                let code = match error.system {
                    System::Entra => "entra_unavailable",
                    System::SigningKeys => "signing_keys_unavailable",
                    System::KeyVault => "key_vault_unavailable",
                    System::ManagedIdentity => "managed_identity_unavailable",
                };
                let seconds = error.retry_after_seconds.unwrap_or(5);
                Row::new(S::SERVICE_UNAVAILABLE, code).with(More::RetryAfter(seconds))
            }
        },
    }
}

fn of_caller(error: &CallerError) -> Row<'_> {
    use StatusCode as S;
    match error {
        CallerError::InvalidRequest(_) => Row::new(S::BAD_REQUEST, "invalid_request"),
        CallerError::InvalidToken(defect) => {
            let (code, more) = of_token(*defect);
            Row::new(S::UNAUTHORIZED, code).with(more)
        }
        CallerError::TenantNotAllowed => Row::new(S::FORBIDDEN, "tenant_not_allowed"),
        CallerError::AccountNotSupported(_) => Row::new(S::FORBIDDEN, "account_not_supported"),
        CallerError::InsufficientScope(scope) => {
            Row::new(S::FORBIDDEN, "insufficient_scope").with(More::InsufficientScope(scope))
        }
        CallerError::ScopeNotGranted => Row::new(S::FORBIDDEN, "scope_not_granted"),
        CallerError::SweepNotAuthorized => {
            Row::new(S::UNAUTHORIZED, "sweep_not_authorized").with(More::Authenticate)
        }
    }
}

fn of_operator(error: &OperatorError) -> &'static str {
    match error {
        OperatorError::Setting { .. } => "setting",
        OperatorError::KeyNotFound(_) => "key_not_found",
        OperatorError::KeyDisabled(_) => "key_disabled",
        OperatorError::KeyNotValid(_) => "key_not_valid",
        OperatorError::KeyMalformed(_) => "key_malformed",
        OperatorError::KeyWornOut(_) => "key_worn_out",
        OperatorError::KeyVaultForbidden => "key_vault_forbidden",
        OperatorError::KeyVaultFirewall => "key_vault_firewall",
        OperatorError::KeyVaultRefused => "key_vault_refused",
        OperatorError::EntraRefused(_) => "entra_refused",
        OperatorError::CredentialRefused { .. } => "credential_refused",
        OperatorError::ClockWrong => "clock_wrong",
        OperatorError::NoRefreshToken => "entra_gave_no_refresh_token",
    }
}

fn of_token(defect: TokenDefect) -> (&'static str, More<'static>) {
    let code = match defect {
        // RFC 6750 §3.1: without a token, no error.
        TokenDefect::Missing => return ("token_missing", More::Authenticate),
        TokenDefect::Malformed => "token_malformed",
        TokenDefect::WrongAlgorithm => "token_wrong_algorithm",
        TokenDefect::ProofOfPossession => "token_proof_of_possession",
        TokenDefect::UnknownKey => "token_unknown_key",
        TokenDefect::BadSignature => "token_bad_signature",
        TokenDefect::WrongIssuer => "token_wrong_issuer",
        TokenDefect::WrongAudience => "token_wrong_audience",
        TokenDefect::Expired => "token_expired",
        TokenDefect::NotYetValid => "token_not_yet_valid",
        TokenDefect::Rejected => "token_rejected",
    };
    (code, More::InvalidToken(defect))
}

#[derive(Serialize)]
struct ProblemBody<'a> {
    title: Option<&'static str>,
    status: u16,
    code: &'static str,
    detail: String,
    /// What to ask the user for, as JSON text; the header `WWW-Authenticate` has it in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    claims: Option<&'a str>,
}

/// A JSON response that is not to be cached: every one is about one user, or holds a token.
#[must_use]
pub fn json_response(status: StatusCode, body: &impl Serialize) -> Response<Bytes> {
    // Structs of texts and numbers: serialising them to memory does not fail.
    let mut response = Response::new(Bytes::from(serde_json::to_vec(body).unwrap_or_default()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Interaction, UpstreamError};

    fn header(response: &Response<Bytes>, name: HeaderName) -> Option<&str> {
        response
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap())
    }

    #[test]
    fn interaction_carries_the_claims_in_both_forms() {
        let claims = r#"{"access_token":{"capolids":{"essential":true}}}"#;
        let interaction = Interaction {
            claims: Some(claims.into()),
            code: Some(53003),
        };
        let response = ApiError::from(VaultError::from(UserError::InteractionRequired(
            interaction,
        )))
        .to_response();
        assert_eq!(response.status(), 401);
        assert_eq!(
            header(&response, WWW_AUTHENTICATE),
            Some(&*format!(
                r#"Bearer error="insufficient_claims", claims="{}""#,
                STANDARD.encode(claims)
            ))
        );
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(
            (body["code"].as_str(), body["claims"].as_str()),
            (Some("interaction_required"), Some(claims))
        );
    }

    #[test]
    fn problems_have_their_headers() {
        let throttled = UpstreamError {
            system: System::Entra,
            retry_after_seconds: Some(17),
        };
        let response = ApiError::from(VaultError::from(throttled)).to_response();
        assert_eq!(
            (response.status().as_u16(), header(&response, RETRY_AFTER)),
            (503, Some("17"))
        );
        assert_eq!(
            header(&response, CONTENT_TYPE),
            Some("application/problem+json")
        );
        assert_eq!(header(&response, CACHE_CONTROL), Some("no-store"));
        let response = ApiError::MethodNotAllowed("GET, PUT").to_response();
        assert_eq!(
            (response.status().as_u16(), header(&response, ALLOW)),
            (405, Some("GET, PUT"))
        );
        let response = ApiError::from(VaultError::from(TokenDefect::Missing)).to_response();
        assert_eq!(header(&response, WWW_AUTHENTICATE), Some("Bearer"));
    }

    #[test]
    fn the_challenge_of_every_token_defect_is_a_header() {
        for defect in [
            TokenDefect::Malformed,
            TokenDefect::WrongAlgorithm,
            TokenDefect::ProofOfPossession,
            TokenDefect::UnknownKey,
            TokenDefect::BadSignature,
            TokenDefect::WrongIssuer,
            TokenDefect::WrongAudience,
            TokenDefect::Expired,
            TokenDefect::NotYetValid,
            TokenDefect::Rejected,
        ] {
            let response = ApiError::from(VaultError::from(defect)).to_response();
            let challenge = header(&response, WWW_AUTHENTICATE).unwrap();
            assert!(
                challenge.starts_with(r#"Bearer error="invalid_token", error_description=""#),
                "{challenge}"
            );
            assert_eq!(challenge.matches('"').count(), 4, "{challenge}");
        }
    }
}
