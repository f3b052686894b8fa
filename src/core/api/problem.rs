//! Errors as HTTP: RFC 9457 `application/problem+json`, each with a stable `code`. One table, without a catch-all arm:
//! an error that is added does not compile until it is placed here. Those that are the operator's turn, or about a stored
//! token, are all 500, and have their codes in [`crate::error`].

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use thiserror::Error;

use crate::error::call::{CallDefect, CallRefusal, NoAnswer};
use crate::error::{
    CallerError, Interaction, OrganisationError, Reason, Suberror, TokenDefect, UserError,
    VaultError,
};
use crate::keeper::KeeperError;
use crate::ledger::LedgerError;
use crate::vault::port::Remembered;

/// Longest request body accepted, in bytes.
pub const LONGEST_BODY: usize = 64 * 1024;

/// How long a request's body may take. Whoever sends one slowly holds a place in an instance.
pub const BODY_TIME: Duration = Duration::from_secs(10);

/// Longest value of `WWW-Authenticate`, in bytes: proxies often allow 4 KiB for the whole head of an answer
/// (nginx, `proxy_buffer_size`).
const LONGEST_CHALLENGE: usize = 3500;

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
    /// The query is not what this path takes.
    #[error("the query may have {0}")]
    InvalidQuery(
        /// What it takes.
        &'static str,
    ),
    /// The path does not name what it has to.
    #[error("the path must have {0}")]
    InvalidPath(
        /// What it has.
        &'static str,
    ),
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

/// Whom an error is told to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reader {
    /// Whoever sent the request.
    Caller,
    /// Whoever operates the app: the names of secrets and settings are for him.
    Operator,
}

impl ApiError {
    /// The whole response, to the request with this id.
    #[must_use]
    pub fn to_response(&self, request_id: &str, reader: Reader) -> Response<Bytes> {
        let Row {
            status,
            code,
            addition,
            retry_after,
        } = self.row();
        let reason = addition.reason();
        let problem = ProblemBody {
            title: status.canonical_reason(),
            status: status.as_u16(),
            code,
            detail: self.detail(reader),
            request_id,
            claims: addition.claims(),
            aadsts: reason.aadsts,
            suberror: reason.suberror.map(Suberror::as_str),
        };
        let mut response = json_response(status, &problem);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some((name, value)) = addition.header()
            && let Ok(value) = HeaderValue::try_from(value)
        {
            headers.insert(name, value);
        }
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }

    /// What happened, and what to do.
    #[must_use]
    pub fn detail(&self, reader: Reader) -> String {
        match (self, reader) {
            (
                Self::Keeper(
                    KeeperError::Vault(error) | KeeperError::Remembered(Remembered { error, .. }),
                ),
                Reader::Caller,
            ) => error.for_caller(),
            (Self::Keeper(KeeperError::ChangedSettings(_)), Reader::Caller) => {
                "this app is not set up as it should be: whoever operates this app finds why in its log, under the request id".into()
            }
            (error, Reader::Caller | Reader::Operator) => error.to_string(),
        }
    }

    /// The word for it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.row().code
    }

    fn row(&self) -> Row<'_> {
        use StatusCode as S;
        match self {
            Self::NotFound => Row::new(S::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed(methods) => {
                Row::new(S::METHOD_NOT_ALLOWED, "method_not_allowed").with(Addition::Allow(methods))
            }
            Self::BodyTooLarge => Row::new(S::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyTooSlow => Row::new(S::REQUEST_TIMEOUT, "body_too_slow"),
            Self::BodyBrokenOff => Row::new(S::BAD_REQUEST, "body_broken_off"),
            Self::InvalidJson { .. } => Row::new(S::BAD_REQUEST, "invalid_json"),
            Self::InvalidBody(_) | Self::InvalidQuery(_) | Self::InvalidPath(_) => {
                Row::new(S::BAD_REQUEST, "invalid_request")
            }
            Self::Keeper(error) => of_keeper(error),
        }
    }
}

/// How an error is told: a row of the table.
struct Row<'a> {
    status: StatusCode,
    /// Stays the same from version to version.
    code: &'static str,
    addition: Addition<'a>,
    /// Seconds to wait, because the same was refused a moment ago.
    retry_after: Option<u32>,
}

/// What a client needs to know besides.
enum Addition<'a> {
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
    /// To let the user sign in.
    Interaction(&'a Interaction),
    /// Why Entra ID refused.
    Refused(Reason),
}

impl<'a> Row<'a> {
    fn new(status: StatusCode, code: &'static str) -> Self {
        Self {
            status,
            code,
            addition: Addition::Nothing,
            retry_after: None,
        }
    }

    fn with(self, addition: Addition<'a>) -> Self {
        Self { addition, ..self }
    }
}

impl<'a> Addition<'a> {
    /// As a header. Challenges are RFC 6750 §3; for interaction as Microsoft's own APIs have it, so that front ends that
    /// know theirs know this one (<https://learn.microsoft.com/entra/identity-platform/claims-challenge>).
    fn header(&self) -> Option<(HeaderName, String)> {
        Some(match self {
            Self::Nothing | Self::Refused(_) => return None,
            Self::Allow(methods) => (ALLOW, (*methods).to_owned()),
            Self::RetryAfter(seconds) => (RETRY_AFTER, seconds.to_string()),
            Self::Authenticate => (WWW_AUTHENTICATE, "Bearer".to_owned()),
            Self::InvalidToken(defect) => {
                let what = defect.for_caller().replace(['`', '"'], "'");
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
            Self::Interaction(interaction) => {
                let challenge = r#"Bearer error="insufficient_claims""#.to_owned();
                let claims = interaction.claims.as_ref();
                let with_claims = claims
                    .map(|claims| format!(r#"{challenge}, claims="{}""#, STANDARD.encode(claims)));
                // The body has them, too.
                let with_claims = with_claims.filter(|header| header.len() <= LONGEST_CHALLENGE);
                (WWW_AUTHENTICATE, with_claims.unwrap_or(challenge))
            }
        })
    }

    /// As the claims of the body.
    fn claims(&self) -> Option<&'a str> {
        match self {
            Self::Interaction(interaction) => interaction.claims.as_deref(),
            Self::Nothing
            | Self::Allow(_)
            | Self::RetryAfter(_)
            | Self::Authenticate
            | Self::InvalidToken(_)
            | Self::InsufficientScope(_)
            | Self::Refused(_) => None,
        }
    }

    /// As number and suberror of the body.
    fn reason(&self) -> Reason {
        match self {
            Self::Interaction(interaction) => interaction.reason,
            Self::Refused(reason) => *reason,
            Self::Nothing
            | Self::Allow(_)
            | Self::RetryAfter(_)
            | Self::Authenticate
            | Self::InvalidToken(_)
            | Self::InsufficientScope(_) => Reason::default(),
        }
    }
}

fn of_keeper(error: &KeeperError) -> Row<'_> {
    use StatusCode as S;
    match error {
        KeeperError::Ledger(error) => of_ledger(error),
        KeeperError::ChangedSettings(_) => Row::new(S::INTERNAL_SERVER_ERROR, error.code()),
        KeeperError::Vault(error) => of_vault(error),
        KeeperError::Remembered(Remembered {
            error,
            retry_after_seconds,
        }) => Row {
            retry_after: Some(*retry_after_seconds),
            ..of_vault(error)
        },
    }
}

fn of_ledger(error: &LedgerError) -> Row<'_> {
    use StatusCode as S;
    let (status, addition) = match error {
        LedgerError::Store(_) | LedgerError::Busy => {
            (S::SERVICE_UNAVAILABLE, Addition::RetryAfter(1))
        }
        LedgerError::NotEnrolled => (S::NOT_FOUND, Addition::Nothing),
        LedgerError::NoRefreshToken => (S::CONFLICT, Addition::Nothing),
        LedgerError::RecordDamaged | LedgerError::RecordTooNew | LedgerError::RecordLost => {
            (S::INTERNAL_SERVER_ERROR, Addition::Nothing)
        }
        LedgerError::TenantRemoved => (S::FORBIDDEN, Addition::Nothing),
    };
    Row::new(status, error.code()).with(addition)
}

fn of_vault(error: &VaultError) -> Row<'_> {
    use StatusCode as S;
    let row = |status, addition| Row::new(status, error.code()).with(addition);
    match error {
        VaultError::Caller(error) => match error {
            CallerError::InvalidRequest(_) => row(S::BAD_REQUEST, Addition::Nothing),
            CallerError::InvalidScope(reason) => row(S::BAD_REQUEST, Addition::Refused(*reason)),
            // RFC 6750 §3.1: without a token, no error.
            CallerError::InvalidToken(TokenDefect::Missing) => {
                row(S::UNAUTHORIZED, Addition::Authenticate)
            }
            CallerError::InvalidToken(defect) => {
                row(S::UNAUTHORIZED, Addition::InvalidToken(*defect))
            }
            CallerError::UserRoutesOff
            | CallerError::CallNotAllowed(CallRefusal {
                defect: CallDefect::Api,
                ..
            }) => row(S::NOT_FOUND, Addition::Nothing),
            CallerError::TenantNotAllowed
            | CallerError::TenantNotOnboarded(_)
            | CallerError::AccountNotSupported(_)
            | CallerError::CallNotAllowed(_)
            | CallerError::NotGranted(_) => row(S::FORBIDDEN, Addition::Nothing),
            CallerError::InsufficientScope(scope) => {
                row(S::FORBIDDEN, Addition::InsufficientScope(scope))
            }
            CallerError::SweepNotAuthorized => row(S::UNAUTHORIZED, Addition::Authenticate),
        },
        VaultError::User(UserError::InteractionRequired(interaction)) => {
            row(S::UNAUTHORIZED, Addition::Interaction(interaction))
        }
        VaultError::User(UserError::ReenrolmentRequired(reason)) => {
            row(S::CONFLICT, Addition::Refused(*reason))
        }
        // Not 401: a client would let the user sign in, and be here again.
        VaultError::Organisation(OrganisationError(reason)) => {
            row(S::FORBIDDEN, Addition::Refused(*reason))
        }
        VaultError::Stored(_) | VaultError::Operator(_) => {
            row(S::INTERNAL_SERVER_ERROR, Addition::Nothing)
        }
        VaultError::Upstream(error) => {
            let seconds = error.retry_after_seconds.unwrap_or(5);
            row(S::SERVICE_UNAVAILABLE, Addition::RetryAfter(seconds))
        }
        // As a gateway says it (RFC 9110 §15.6.3, §15.6.5).
        VaultError::Api(error) => match error {
            NoAnswer::Unreachable | NoAnswer::Garbled => row(S::BAD_GATEWAY, Addition::Nothing),
            NoAnswer::TimedOut => row(S::GATEWAY_TIMEOUT, Addition::Nothing),
            NoAnswer::BodyBrokeOff => row(S::BAD_REQUEST, Addition::Nothing),
        },
    }
}

#[derive(Serialize)]
struct ProblemBody<'a> {
    title: Option<&'static str>,
    status: u16,
    code: &'static str,
    detail: String,
    /// Under which the log has more of it.
    request_id: &'a str,
    /// What to ask the user for, as JSON text; the header `WWW-Authenticate` has it in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    claims: Option<&'a str>,
    /// The number that Entra ID gave as its reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    aadsts: Option<u32>,
    /// The suberror that it gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    suberror: Option<&'static str>,
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
    use crate::error::{HoldsUp, System, UpstreamError};

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
            reason: Reason {
                aadsts: Some(53_003),
                suberror: Some(Suberror::BasicAction),
            },
        };
        let response = ApiError::from(VaultError::from(UserError::InteractionRequired(
            interaction,
        )))
        .to_response("id", Reader::Caller);
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
        assert_eq!(
            (body["aadsts"].as_u64(), body["suberror"].as_str()),
            (Some(53_003), Some("basic_action"))
        );
    }

    #[test]
    fn claims_too_long_for_a_header_are_in_the_body_alone() {
        for (length, is_in_header) in [(2500, true), (2700, false), (16_000, false)] {
            let claims = format!(r#"{{"c":"{}"}}"#, "c".repeat(length));
            let interaction = Interaction {
                claims: Some(claims.clone()),
                reason: Reason::default(),
            };
            let error = UserError::InteractionRequired(interaction);
            let response =
                ApiError::from(VaultError::from(error)).to_response("id", Reader::Caller);
            let challenge = header(&response, WWW_AUTHENTICATE).unwrap();
            assert!(challenge.starts_with(r#"Bearer error="insufficient_claims""#));
            assert!(challenge.len() < 4096, "{length}");
            assert_eq!(challenge.contains("claims="), is_in_header, "{length}");
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["claims"], claims);
        }
    }

    #[test]
    fn whose_turn_it_is_is_told_with_number_and_suberror() {
        let reason = Reason {
            aadsts: Some(50_105),
            suberror: Some(Suberror::MessageOnly),
        };
        for (error, status, code, says) in [
            (
                VaultError::from(OrganisationError(reason)),
                403,
                "organisation_required",
                "its administrators",
            ),
            (
                UserError::ReenrolmentRequired(reason).into(),
                409,
                "reenrolment_required",
                "PUT /v1/me",
            ),
            (
                UserError::InteractionRequired(Interaction {
                    claims: None,
                    reason,
                })
                .into(),
                401,
                "interaction_required",
                "PUT /v1/me",
            ),
            (
                CallerError::InvalidScope(reason).into(),
                400,
                "invalid_scope",
                "AADSTS50105",
            ),
        ] {
            let response = ApiError::from(error).to_response("id", Reader::Caller);
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(
                (response.status().as_u16(), &body["code"]),
                (status, &code.into())
            );
            assert_eq!(
                (&body["aadsts"], &body["suberror"]),
                (&50_105.into(), &"message_only".into())
            );
            let detail = body["detail"].as_str().unwrap();
            assert!(
                detail.contains(says) && detail.contains("AADSTS50105"),
                "{detail}"
            );
        }
    }

    /// The names of secrets and settings are for whoever operates the app.
    #[test]
    fn no_caller_is_told_a_secrets_or_a_settings_name() {
        let manifest = include_str!("../../../spin.toml");
        let (_, variables) = manifest.split_once("[variables]").unwrap();
        let (variables, _) = variables.split_once("\n[").unwrap();
        let names: Vec<_> = variables
            .lines()
            .filter_map(|line| line.split_once(" = ").map(|(name, _)| name))
            .collect();
        assert!(names.len() > 30, "{names:?}");
        let defects = [
            TokenDefect::Missing,
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
        ];
        let errors = crate::keeper::verdict::tests::every_error().into_iter();
        for error in errors.chain(defects.map(VaultError::from)) {
            let error = ApiError::from(error);
            let response = error.to_response("id", Reader::Caller);
            let challenge = header(&response, WWW_AUTHENTICATE).unwrap_or_default();
            let body = String::from_utf8_lossy(response.body()).replace(error.code(), "");
            let told = format!("{body} {challenge}");
            let words: Vec<_> = told
                .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
                .collect();
            let unspecific = ["scope", "audience", "authority", "tenants", "credential"];
            let mut own = names.iter().filter(|name| !unspecific.contains(name));
            assert!(own.all(|name| !words.contains(name)), "{told}");
            assert!(
                !told.contains("the setting") && !told.contains("obo-"),
                "{told}"
            );
            assert!(!told.contains("SPIN_VARIABLE"), "{told}");
        }
    }

    #[test]
    fn problems_have_their_headers() {
        let throttled = UpstreamError {
            system: System::Entra,
            retry_after_seconds: Some(17),
            holds_up: HoldsUp::Tenant,
        };
        let response =
            ApiError::from(VaultError::from(throttled)).to_response("id", Reader::Caller);
        assert_eq!(
            (response.status().as_u16(), header(&response, RETRY_AFTER)),
            (503, Some("17"))
        );
        assert_eq!(
            header(&response, CONTENT_TYPE),
            Some("application/problem+json")
        );
        assert_eq!(header(&response, CACHE_CONTROL), Some("no-store"));
        let response = ApiError::MethodNotAllowed("GET, PUT").to_response("id", Reader::Caller);
        assert_eq!(
            (response.status().as_u16(), header(&response, ALLOW)),
            (405, Some("GET, PUT"))
        );
        let response = ApiError::from(VaultError::from(TokenDefect::Missing))
            .to_response("id", Reader::Caller);
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
            let response =
                ApiError::from(VaultError::from(defect)).to_response("id", Reader::Caller);
            let challenge = header(&response, WWW_AUTHENTICATE).unwrap();
            assert!(
                challenge.starts_with(r#"Bearer error="invalid_token", error_description=""#),
                "{challenge}"
            );
            assert_eq!(challenge.matches('"').count(), 4, "{challenge}");
        }
    }
}
