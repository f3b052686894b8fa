//! Errors as HTTP: RFC 9457 `application/problem+json`, each with a stable `code`. One table, without a catch-all arm:
//! an error that is added does not compile until it is placed here.

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
    /// Status and stable code.
    #[must_use]
    pub fn status_and_code(&self) -> (StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::NotFound => (S::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed(_) => (S::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::BodyTooLarge => (S::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyBrokenOff => (S::BAD_REQUEST, "body_broken_off"),
            Self::InvalidJson { .. } => (S::BAD_REQUEST, "invalid_json"),
            Self::InvalidBody(_) => (S::BAD_REQUEST, "invalid_request"),
            Self::Keeper(error) => match error {
                KeeperError::Store(_) => (S::SERVICE_UNAVAILABLE, "store_unavailable"),
                KeeperError::NotEnrolled => (S::NOT_FOUND, "not_enrolled"),
                KeeperError::NoRefreshToken => (S::CONFLICT, "no_refresh_token"),
                KeeperError::RecordDamaged => (S::INTERNAL_SERVER_ERROR, "record_damaged"),
                KeeperError::RecordTooNew => (S::INTERNAL_SERVER_ERROR, "record_too_new"),
                KeeperError::RecordLost => (S::INTERNAL_SERVER_ERROR, "record_lost"),
                KeeperError::TenantRemoved => (S::FORBIDDEN, "tenant_being_removed"),
                KeeperError::Busy => (S::SERVICE_UNAVAILABLE, "busy"),
                KeeperError::Vault(error) => of_vault(error),
            },
        }
    }

    /// The whole response.
    #[must_use]
    pub fn to_response(&self) -> Response<Bytes> {
        let (status, code) = self.status_and_code();
        let problem = ProblemBody {
            title: status.canonical_reason(),
            status: status.as_u16(),
            code,
            detail: self.to_string(),
            claims: self.claims_to_ask_for(),
        };
        let mut response = json_response(status, &problem);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        for (name, value) in [
            (WWW_AUTHENTICATE, self.challenge()),
            (RETRY_AFTER, self.retry_after()),
            (ALLOW, self.allow()),
        ] {
            insert(headers, name, value);
        }
        response
    }

    fn claims_to_ask_for(&self) -> Option<&str> {
        match self {
            Self::Keeper(KeeperError::Vault(VaultError::User(UserError::InteractionRequired(
                interaction,
            )))) => interaction.claims.as_deref(),
            _ => None,
        }
    }

    /// RFC 6750 §3; for interaction as facts/entra-and-key-vault.md §A.9 has it, so that front ends that know Microsoft's
    /// challenges know this one.
    fn challenge(&self) -> Option<String> {
        let Self::Keeper(KeeperError::Vault(error)) = self else {
            return None;
        };
        match error {
            VaultError::Caller(
                CallerError::InvalidToken(TokenDefect::Missing) | CallerError::SweepNotAuthorized,
            ) => Some("Bearer".into()),
            VaultError::Caller(CallerError::InvalidToken(defect)) => Some(format!(
                r#"Bearer error="invalid_token", error_description="{}""#,
                defect.to_string().replace(['`', '"'], "'")
            )),
            VaultError::Caller(CallerError::InsufficientScope(scope)) => {
                // A setting, so without quotes only if the operator wrote none.
                Some(format!(
                    r#"Bearer error="insufficient_scope", scope="{}""#,
                    scope.replace(['"', '\\'], "")
                ))
            }
            VaultError::User(UserError::InteractionRequired(interaction)) => {
                let claims = interaction
                    .claims
                    .as_ref()
                    .map(|claims| format!(r#", claims="{}""#, STANDARD.encode(claims)));
                Some(format!(
                    r#"Bearer error="insufficient_claims"{}"#,
                    claims.unwrap_or_default()
                ))
            }
            VaultError::Caller(
                CallerError::InvalidRequest(_)
                | CallerError::TenantNotAllowed
                | CallerError::ScopeNotGranted,
            )
            | VaultError::User(UserError::ReenrolmentRequired(_))
            | VaultError::Stored(_)
            | VaultError::Operator(_)
            | VaultError::Upstream(_) => None,
        }
    }

    fn retry_after(&self) -> Option<String> {
        let seconds = match self {
            Self::Keeper(KeeperError::Vault(VaultError::Upstream(error))) => {
                error.retry_after_seconds.unwrap_or(5)
            }
            Self::Keeper(KeeperError::Store(_) | KeeperError::Busy) => 1,
            _ => return None,
        };
        Some(seconds.to_string())
    }

    fn allow(&self) -> Option<String> {
        match self {
            Self::MethodNotAllowed(methods) => Some((*methods).into()),
            _ => None,
        }
    }
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

fn insert(headers: &mut http::HeaderMap, name: HeaderName, value: Option<String>) {
    if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
        headers.insert(name, value);
    }
}

fn of_vault(error: &VaultError) -> (StatusCode, &'static str) {
    use StatusCode as S;
    match error {
        VaultError::Caller(error) => match error {
            CallerError::InvalidRequest(_) => (S::BAD_REQUEST, "invalid_request"),
            CallerError::InvalidToken(defect) => (S::UNAUTHORIZED, of_token(*defect)),
            CallerError::TenantNotAllowed => (S::FORBIDDEN, "tenant_not_allowed"),
            CallerError::InsufficientScope(_) => (S::FORBIDDEN, "insufficient_scope"),
            CallerError::ScopeNotGranted => (S::FORBIDDEN, "scope_not_granted"),
            CallerError::SweepNotAuthorized => (S::UNAUTHORIZED, "sweep_not_authorized"),
        },
        VaultError::User(error) => match error {
            UserError::InteractionRequired(_) => (S::UNAUTHORIZED, "interaction_required"),
            UserError::ReenrolmentRequired(_) => (S::CONFLICT, "reenrolment_required"),
        },
        VaultError::Stored(error) => match error {
            StoredError::Damaged => (S::INTERNAL_SERVER_ERROR, "record_damaged"),
            StoredError::NotBound => (S::INTERNAL_SERVER_ERROR, "record_not_bound"),
        },
        VaultError::Operator(error) => match error {
            OperatorError::Setting { .. } => (S::INTERNAL_SERVER_ERROR, "setting"),
            OperatorError::KeyNotFound(_) => (S::INTERNAL_SERVER_ERROR, "key_not_found"),
            OperatorError::KeyDisabled(_) => (S::INTERNAL_SERVER_ERROR, "key_disabled"),
            OperatorError::KeyNotValid(_) => (S::INTERNAL_SERVER_ERROR, "key_not_valid"),
            OperatorError::KeyMalformed(_) => (S::INTERNAL_SERVER_ERROR, "key_malformed"),
            OperatorError::KeyWornOut(_) => (S::INTERNAL_SERVER_ERROR, "key_worn_out"),
            OperatorError::KeyVaultRefused => (S::INTERNAL_SERVER_ERROR, "key_vault_refused"),
            OperatorError::EntraRefused(_) => (S::INTERNAL_SERVER_ERROR, "entra_refused"),
            OperatorError::CredentialRefused { .. } => {
                (S::INTERNAL_SERVER_ERROR, "credential_refused")
            }
            OperatorError::ClockWrong => (S::INTERNAL_SERVER_ERROR, "clock_wrong"),
            OperatorError::NoRefreshToken => {
                (S::INTERNAL_SERVER_ERROR, "entra_gave_no_refresh_token")
            }
        },
        VaultError::Upstream(error) => match error.system {
            System::Entra => (S::SERVICE_UNAVAILABLE, "entra_unavailable"),
            System::SigningKeys => (S::SERVICE_UNAVAILABLE, "signing_keys_unavailable"),
            System::KeyVault => (S::SERVICE_UNAVAILABLE, "key_vault_unavailable"),
            System::ManagedIdentity => (S::SERVICE_UNAVAILABLE, "managed_identity_unavailable"),
        },
    }
}

fn of_token(defect: TokenDefect) -> &'static str {
    match defect {
        TokenDefect::Missing => "token_missing",
        TokenDefect::Malformed => "token_malformed",
        TokenDefect::WrongAlgorithm => "token_wrong_algorithm",
        TokenDefect::UnknownKey => "token_unknown_key",
        TokenDefect::BadSignature => "token_bad_signature",
        TokenDefect::WrongIssuer => "token_wrong_issuer",
        TokenDefect::WrongAudience => "token_wrong_audience",
        TokenDefect::Expired => "token_expired",
        TokenDefect::NotYetValid => "token_not_yet_valid",
        TokenDefect::Rejected => "token_rejected",
    }
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
