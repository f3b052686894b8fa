//! What an answer of Entra ID's token endpoint means.
//!
//! A success is that of RFC 6749 §5.1. A refusal has `error` (RFC 6749 §5.2) and, beyond the standard, the numbers in
//! `error_codes` that are known as AADSTS…, a `suberror`, and `claims` for the next sign-in, as JSON text inside the
//! JSON (Microsoft Learn, "Microsoft Entra authentication and authorization error codes",
//! <https://learn.microsoft.com/entra/identity-platform/reference-error-codes>). Microsoft warns that numbers change,
//! and what is sure goes before them: first the status and `Retry-After`, then `suberror`, then the numbers that are
//! known here, then `error`. A refused grant that nothing of this names is the user's turn, and the refresh token
//! stays.

use http::header::RETRY_AFTER;
use http::{Response, StatusCode};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::error::{HoldsUp, Reason, Suberror};
use crate::json::{self, number_or_text};
use crate::port::SecretBody;
use crate::secret::{AccessToken, RefreshToken};
use crate::vault::claims_request::is_claims_request;
use crate::vault::pause::retry_after;
use crate::vault::scope::Scope;
use crate::vault::token_client::grant::Grant;

/// Longest answer read, in bytes.
pub const LONGEST_ANSWER: usize = 256 * 1024;

/// Longest claims that are passed on to the user, in bytes.
const LONGEST_CLAIMS: usize = 16 * 1024;

/// Seconds of pause after AADSTS50196: identical requests are to stop for minutes.
const LOOP_SECONDS: u32 = 300;

/// What the token endpoint gave.
#[derive(Debug)]
pub struct Granted {
    /// The access token: opaque, never parsed.
    pub access_token: AccessToken,
    /// `Bearer`.
    pub token_type: String,
    /// Seconds it is valid for.
    pub expires_in: u32,
    /// The scopes granted; empty if the answer did not say.
    pub scope: String,
    /// The refresh token, if one came back.
    pub refresh_token: Option<RefreshToken>,
}

impl Granted {
    /// The scopes granted: those asked for, if the answer did not say (RFC 6749 §5.1).
    #[must_use]
    pub fn scope_or<'a>(&'a self, asked: &'a Scope) -> &'a str {
        match self.scope.as_str() {
            "" => asked.as_str(),
            granted => granted,
        }
    }
}

/// A refusal, and whose turn it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The class.
    pub class: Class,
    /// What Entra ID gave as its reason: the number that decided, or the first.
    pub reason: Reason,
    /// Entra ID's trace id, for its support; validated, so that it can be logged.
    pub trace_id: Option<String>,
}

/// The classes of refusals. The letters are those of the table in `classify`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Class {
    /// T: try again later. The token is as good as before.
    Transient {
        /// Seconds to wait, if it said.
        retry_after_seconds: Option<u32>,
        /// Whom it holds up until then.
        holds_up: HoldsUp,
    },
    /// U: the user has to act; the refresh token may work again, or for another resource.
    Interaction {
        /// Claims for the interactive sign-in, as JSON text.
        claims: Option<String>,
    },
    /// D: the refresh token is dead.
    Dead,
    /// O: the user's organisation has to act; nobody else is concerned.
    Organisation,
    /// C: this app's configuration or permissions.
    Operator(Suspect),
    /// A scope that this app does not get: the fault of whoever chose it.
    Scope,
    /// A: the caller's assertion is bad.
    Assertion,
}

/// What an operator is to look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suspect {
    /// The app's credential.
    Credential,
    /// The app's registration, its permissions, or the request.
    App,
}

/// Reads an answer of the token endpoint, received now.
///
/// ```
/// use behalf_core::port::SecretBody;
/// use behalf_core::secret::RefreshToken;
/// use behalf_core::vault::scope::Scope;
/// use behalf_core::vault::token_client::answer::{Class, read_token_response};
/// use behalf_core::vault::token_client::grant::Grant;
///
/// let grant = Grant::Refresh {
///     token: &RefreshToken::new("0.AX…".into()),
///     scope: &Scope::parse("https://graph.microsoft.com/.default").unwrap(),
///     claims: None,
/// };
/// let body = r#"{"error":"invalid_grant","error_codes":[50173],"suberror":"bad_token"}"#;
/// let answer = http::Response::builder().status(400).body(SecretBody::new(body.into())).unwrap();
/// let refusal = read_token_response(&answer, &grant, 1_793_606_000).unwrap_err();
/// assert_eq!(refusal.class, Class::Dead);
/// assert_eq!(refusal.reason.aadsts, Some(50173));
/// ```
///
/// # Errors
/// [`Refusal`] for everything but a complete success; an answer that cannot be read is transient.
pub fn read_token_response(
    response: &Response<SecretBody>,
    grant: &Grant<'_>,
    now: u64,
) -> Result<Granted, Refusal> {
    let retry_after_seconds = retry_after(response.headers(), now);
    // Whatever the body says: it may be of a front end, which answers in HTML or with nothing.
    let throttled = response.headers().contains_key(RETRY_AFTER)
        || response.status() == StatusCode::TOO_MANY_REQUESTS
        || response.status().is_server_error();
    let transient = |holds_up| Class::Transient {
        retry_after_seconds,
        holds_up,
    };
    let without_body = || Refusal {
        class: transient(if throttled {
            HoldsUp::Tenant
        } else {
            HoldsUp::Request
        }),
        reason: Reason::default(),
        trace_id: None,
    };
    if response.status() == StatusCode::OK {
        let body: Success = json::object(response.body()).ok_or_else(without_body)?;
        if !body.token_type.eq_ignore_ascii_case("Bearer") {
            return Err(without_body());
        }
        return Ok(Granted {
            access_token: AccessToken::new(body.access_token),
            token_type: body.token_type,
            expires_in: body
                .expires_in
                .and_then(|seconds| u32::try_from(seconds).ok())
                .ok_or_else(without_body)?,
            scope: body.scope,
            refresh_token: body
                .refresh_token
                .filter(|token| !token.is_empty())
                .map(RefreshToken::new),
        });
    }
    let Some(body) = json::object::<Failure>(response.body()) else {
        return Err(without_body());
    };
    // First of all, whatever else the answer says: throttling comes in the disguise of other refusals.
    let (class, decisive) = if body.error_codes.contains(&50_196) {
        let class = Class::Transient {
            retry_after_seconds: Some(retry_after_seconds.unwrap_or(LOOP_SECONDS)),
            holds_up: HoldsUp::User,
        };
        (class, Some(50_196))
    } else if body.error_codes.contains(&90_055) {
        (transient(HoldsUp::Tenant), Some(90_055))
    } else if throttled {
        (transient(HoldsUp::Tenant), None)
    } else {
        classify(&body)
    };
    let is_id = |id: &String| {
        id.len() <= 64
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    Err(Refusal {
        class: class.on(grant),
        reason: Reason {
            aadsts: decisive.or(body.error_codes.first().copied()),
            suberror: body.suberror(),
        },
        trace_id: body.trace_id.filter(is_id),
    })
}

/// Whose turn it is, of a refusal that is no throttling, and the AADSTS number if one decided.
///
/// The documented fields decide first: `suberror`, which Microsoft's client libraries go by, then the numbers below,
/// then `error`. Microsoft asks not to depend on numbers, and adds to them, so an `invalid_grant` that nothing here
/// names is the user's turn: most of them want the user
/// (<https://learn.microsoft.com/entra/identity-platform/reference-error-codes>).
fn classify(body: &Failure) -> (Class, Option<u32>) {
    // A suberror is about a grant. Whatever came with it, a credential that is refused says nothing of a grant.
    let suberror = body.suberror().filter(|_| body.error != "invalid_client");
    if let Some(class) = suberror.and_then(|suberror| of_suberror(suberror, body)) {
        return (class, None);
    }
    let numbers = body.error_codes.iter();
    let of_number = |number: &u32| Some((of_number(*number, body)?, Some(*number)));
    numbers
        .copied()
        .find_map(|number| of_number(&number))
        .unwrap_or_else(|| (of_error(body), None))
}

/// None: it does not say whose turn it is.
fn of_suberror(suberror: Suberror, body: &Failure) -> Option<Class> {
    match suberror {
        Suberror::BadToken | Suberror::TokenExpired => Some(Class::Dead),
        Suberror::BasicAction
        | Suberror::AdditionalAction
        | Suberror::ConsentRequired
        | Suberror::UserPasswordExpired
        | Suberror::UiNotAllowed => Some(body.interaction()),
        Suberror::MessageOnly => Some(Class::Organisation),
        Suberror::ClientMismatch | Suberror::ProtectionPolicyRequired => {
            Some(Class::Operator(Suspect::App))
        }
        Suberror::DeviceAuthenticationFailed | Suberror::InterruptedUser => None,
    }
}

/// None: the number is not known.
fn of_number(number: u32, body: &Failure) -> Option<Class> {
    Some(match number {
        // The assertion's audience, signature or time.
        500_131 | 50_013 | 500_133 => Class::Assertion,
        // Revoked, expired, unknown; account disabled or gone; session ended, password changed.
        50_173 | 700_082 | 70_008 | 700_084 | 70_043 | 70_000 | 50_057 | 50_034 | 50_132
        | 50_133 => Class::Dead,
        9_002_313 if body.error == "invalid_grant" => Class::Dead,
        // Multi-factor authentication, consent, device, membership.
        50_072 | 50_074 | 50_076 | 50_078 | 50_079 | 50_097 | 50_158 | 53_000 | 53_001 | 53_002
        | 530_003 | 530_032 | 65_001 | 65_004 | 50_020 | 90_072 => body.interaction(),
        // A policy that the user can meet says with which claims.
        53_003 if body.claims.is_some() => body.interaction(),
        // The user is not assigned, an administrator has not consented, a policy blocks; the app is not, or no longer,
        // in the customer's tenant, or is disabled there; the tenant is gone; the resource is not in it.
        53_003 | 50_105 | 90_094 | 700_016 | 7_000_229 | 7_000_112 | 90_002 | 500_011 | 650_052 => {
            Class::Organisation
        }
        // The scope does not exist, is not among the app's permissions, or is none with others.
        70_011 | 650_053 | 650_057 | 28_002 | 28_003 => Class::Scope,
        // Secret: none, wrong, expired. Certificate: time, signature. Federated credential: no match, wrong kind.
        7_000_218 | 7_000_215 | 7_000_222 | 700_024 | 700_027 | 70_021 | 700_211 | 700_212
        | 700_213 | 7_002_137 | 7_002_138 | 700_229 => Class::Operator(Suspect::Credential),
        // The app's registration, the request, a policy that no server can meet.
        53_005 | 7_000_114 | 9_002_313 | 900_144 | 9_001_023 | 700_022 => {
            Class::Operator(Suspect::App)
        }
        // The service itself.
        90_033 | 90_006 | 90_012 | 90_024 | 50_033 | 50_087 => Class::Transient {
            retry_after_seconds: None,
            holds_up: HoldsUp::Tenant,
        },
        _ => return None,
    })
}

fn of_error(body: &Failure) -> Class {
    let transient = |holds_up| Class::Transient {
        retry_after_seconds: None,
        holds_up,
    };
    match body.error.as_str() {
        "invalid_grant"
        | "interaction_required"
        | "consent_required"
        | "login_required"
        | "access_denied" => body.interaction(),
        "invalid_client" => Class::Operator(Suspect::Credential),
        "unauthorized_client"
        | "invalid_resource"
        | "unsupported_grant_type"
        | "invalid_request"
        | "invalid_tenant" => Class::Operator(Suspect::App),
        "invalid_scope" => Class::Scope,
        "temporarily_unavailable" => transient(HoldsUp::Tenant),
        _ => transient(HoldsUp::Request),
    }
}

impl Class {
    /// What it comes to for this grant: only an On-Behalf-Of request has an assertion.
    fn on(self, grant: &Grant<'_>) -> Self {
        match (self, grant) {
            (Self::Assertion, Grant::Refresh { .. } | Grant::ClientCredentials { .. }) => {
                Self::Operator(Suspect::App)
            }
            (class, _) => class,
        }
    }
}

#[derive(Deserialize)]
struct Success {
    access_token: String,
    token_type: String,
    #[serde(default, deserialize_with = "number_or_text")]
    expires_in: Option<u64>,
    #[serde(default)]
    scope: String,
    refresh_token: Option<String>,
}

/// What a refusal says: `error_description` is left out, because it can name people.
#[derive(Deserialize)]
struct Failure {
    error: String,
    #[serde(default, deserialize_with = "aadsts_numbers")]
    error_codes: Vec<u32>,
    suberror: Option<String>,
    claims: Option<String>,
    trace_id: Option<String>,
}

impl Failure {
    fn suberror(&self) -> Option<Suberror> {
        self.suberror.as_deref().and_then(Suberror::parse)
    }

    /// Passed on unchanged, if it can be a claims request.
    fn interaction(&self) -> Class {
        let is_usable =
            |claims: &String| claims.len() <= LONGEST_CLAIMS && is_claims_request(claims);
        Class::Interaction {
            claims: self.claims.clone().filter(is_usable),
        }
    }
}

/// Numbers, or texts that are; whatever else stands there is left out, so that the rest of the answer counts.
fn aadsts_numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    let number = |value: &Value| match value {
        Value::Number(number) => number.as_u64().and_then(|number| number.try_into().ok()),
        Value::String(digits) => digits.parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    Ok(match Value::deserialize(deserializer)? {
        Value::Array(values) => values.iter().filter_map(number).collect(),
        value => number(&value).into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use zeroize::Zeroizing;

    use super::*;
    use crate::secret::Bearer;
    use crate::vault::samples::NOW;

    const CLAIMS: &str = "{\"c\":1}";

    fn scope() -> Scope {
        Scope::parse("https://graph.microsoft.com/User.Read").unwrap()
    }

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Response<SecretBody> {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response
            .body(Zeroizing::new(body.as_bytes().to_vec()))
            .unwrap()
    }

    fn on_refresh(response: &Response<SecretBody>) -> Result<Granted, Refusal> {
        let grant = Grant::Refresh {
            token: &RefreshToken::new("rt".into()),
            scope: &scope(),
            claims: None,
        };
        read_token_response(response, &grant, NOW)
    }

    fn class(status: u16, headers: &[(&str, &str)], body: &str) -> Class {
        on_refresh(&answer(status, headers, body))
            .unwrap_err()
            .class
    }

    fn transient(retry_after_seconds: Option<u32>, holds_up: HoldsUp) -> Class {
        Class::Transient {
            retry_after_seconds,
            holds_up,
        }
    }

    #[test]
    fn a_success_is_read_and_its_tokens_are_not_shown() {
        // Numbers may be texts, as the v1 endpoint has them.
        for expires_in in [json!(3599), json!("3599")] {
            let body = json!({"token_type": "Bearer", "scope": "User.Read", "expires_in": expires_in,
                "ext_expires_in": 3599, "access_token": "at-canary", "refresh_token": "rt-canary", "foci": "1"});
            let granted = on_refresh(&answer(200, &[], &body.to_string())).unwrap();
            assert_eq!(
                (granted.expires_in, granted.scope.as_str()),
                (3599, "User.Read")
            );
            assert_eq!(
                granted.refresh_token.as_ref().unwrap().expose(),
                "rt-canary"
            );
            assert!(!format!("{granted:?}").contains("canary"));
        }
    }

    #[test]
    fn answers_that_cannot_be_read_are_transient() {
        for (status, body, holds_up) in [
            (200, "{}", HoldsUp::Request),
            (200, "<html>", HoldsUp::Request),
            (
                200,
                r#"{"access_token":"a","token_type":"mac","expires_in":1}"#,
                HoldsUp::Request,
            ),
            (
                200,
                r#"{"access_token":"a","token_type":"Bearer","expires_in":"soon"}"#,
                HoldsUp::Request,
            ),
            (
                200,
                r#"{"access_token":"a","token_type":"Bearer"}"#,
                HoldsUp::Request,
            ),
            (502, "<html>Bad Gateway</html>", HoldsUp::Tenant),
            (429, "", HoldsUp::Tenant),
            (400, "", HoldsUp::Request),
            (400, "{}", HoldsUp::Request),
            // serde alone would take a list for the members without their names.
            (
                200,
                r#"["a","Bearer",1,"User.Read","rt"]"#,
                HoldsUp::Request,
            ),
            (
                400,
                r#"["invalid_grant",[70043],"bad_token"]"#,
                HoldsUp::Request,
            ),
            (401, "<html>", HoldsUp::Request),
            (302, "", HoldsUp::Request),
        ] {
            assert_eq!(
                class(status, &[], body),
                transient(None, holds_up),
                "{status} {body}"
            );
        }
    }

    #[test]
    fn throttling_is_transient_in_every_disguise() {
        let body = |code: u32| {
            json!({"error": "invalid_grant", "error_codes": [code], "suberror": "bad_token"})
                .to_string()
        };
        let in_a_minute = httpdate::fmt_http_date(
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(NOW + 60),
        );
        for (status, header, code, seconds, holds_up) in [
            (400, None, 50_196, Some(300), HoldsUp::User),
            (429, None, 50_196, Some(300), HoldsUp::User),
            (400, Some("60"), 50_196, Some(60), HoldsUp::User),
            (429, Some("17"), 50_173, Some(17), HoldsUp::Tenant),
            (429, None, 50_173, None, HoldsUp::Tenant),
            (400, Some("99999"), 50_173, Some(3600), HoldsUp::Tenant),
            (400, Some(&*in_a_minute), 50_173, Some(60), HoldsUp::Tenant),
            (400, Some("soon"), 50_173, None, HoldsUp::Tenant),
            (503, None, 90_033, None, HoldsUp::Tenant),
            (500, None, 50_173, None, HoldsUp::Tenant),
        ] {
            let headers: Vec<_> = header
                .map(|value| ("retry-after", value))
                .into_iter()
                .collect();
            assert_eq!(
                class(status, &headers, &body(code)),
                transient(seconds, holds_up),
                "{status} {header:?} {code}"
            );
        }
    }

    /// Numbers, statuses, `error`s, suberrors, and whose turn it is on a refresh.
    type Row<'a> = (
        &'a [u32],
        &'a [u16],
        &'a [&'a str],
        &'a [Option<&'a str>],
        Class,
    );

    fn asks() -> Class {
        Class::Interaction {
            claims: Some(CLAIMS.into()),
        }
    }

    /// What a number means where no suberror decides.
    fn by_number() -> Vec<Row<'static>> {
        let app = || Class::Operator(Suspect::App);
        let credential = || Class::Operator(Suspect::Credential);
        let down = || transient(None, HoldsUp::Tenant);
        let grant = &["invalid_grant"][..];
        let wants = &["interaction_required", "invalid_grant"][..];
        let any = &[
            "invalid_grant",
            "invalid_request",
            "unauthorized_client",
            "invalid_client",
            "interaction_required",
        ][..];
        let none = &[None, Some("something_new"), Some("interrupted_user")][..];
        vec![
            (
                &[
                    50_173, 700_082, 70_008, 700_084, 70_043, 50_057, 50_034, 50_132, 50_133,
                    70_000,
                ],
                &[400],
                grant,
                none,
                Class::Dead,
            ),
            (&[9_002_313], &[400], grant, none, Class::Dead),
            (&[9_002_313], &[400], &["invalid_request"], none, app()),
            (
                &[
                    50_072, 50_074, 50_076, 50_078, 50_079, 50_158, 53_000, 53_001, 53_002, 53_003,
                    530_003, 530_032, 65_001,
                ],
                &[400],
                wants,
                none,
                asks(),
            ),
            (&[50_097], &[400, 401], wants, none, asks()),
            (
                &[65_004],
                &[400],
                &["access_denied", "consent_required"],
                none,
                asks(),
            ),
            (&[50_020, 90_072], &[400], grant, none, asks()),
            // Whatever their `error`: the state of one user or tenant.
            (
                &[
                    50_105, 90_094, 700_016, 7_000_229, 7_000_112, 90_002, 500_011, 650_052,
                ],
                &[400, 401],
                any,
                none,
                Class::Organisation,
            ),
            (
                &[70_011, 650_053, 650_057, 28_002, 28_003],
                &[400, 401],
                &["invalid_scope", "invalid_resource", "invalid_client"],
                none,
                Class::Scope,
            ),
            (&[7_000_114], &[400], grant, none, app()),
            (
                &[53_005, 900_144, 9_001_023, 700_022],
                &[400],
                &["invalid_request", "unauthorized_client"],
                none,
                app(),
            ),
            // There is no assertion on a refresh.
            (&[500_131, 50_013, 500_133], &[400], grant, none, app()),
            (
                &[7_000_218, 7_000_215, 7_000_222, 700_024, 700_027, 7_002_137],
                &[400, 401],
                &["invalid_client"],
                none,
                credential(),
            ),
            (
                &[70_021, 700_211, 700_212, 700_213, 7_002_138, 700_229],
                &[400],
                &["invalid_request", "invalid_client"],
                none,
                credential(),
            ),
            (
                &[90_033, 90_006, 90_012, 90_024, 50_033, 50_087],
                &[503, 400],
                &["temporarily_unavailable", "invalid_grant"],
                none,
                down(),
            ),
            (
                &[90_055],
                &[429, 400],
                &["temporarily_unavailable", "invalid_grant"],
                &[None, Some("bad_token")],
                down(),
            ),
            (
                &[50_196],
                &[400, 429, 503],
                grant,
                &[None, Some("bad_token")],
                transient(Some(300), HoldsUp::User),
            ),
        ]
    }

    /// What a suberror means, whatever the number.
    fn by_suberror() -> Vec<Row<'static>> {
        let app = || Class::Operator(Suspect::App);
        let numbers = &[1, 50_105, 50_173, 53_003, 53_005, 65_001, 70_000, 9_002_313][..];
        let errors = &[
            "invalid_grant",
            "interaction_required",
            "unauthorized_client",
        ][..];
        vec![
            (
                numbers,
                &[400, 401],
                errors,
                &[Some("bad_token"), Some("token_expired")],
                Class::Dead,
            ),
            (
                numbers,
                &[400, 401],
                errors,
                &[
                    Some("basic_action"),
                    Some("additional_action"),
                    Some("consent_required"),
                    Some("user_password_expired"),
                    Some("ui_not_allowed"),
                ],
                asks(),
            ),
            (
                numbers,
                &[400, 401],
                errors,
                &[Some("message_only")],
                Class::Organisation,
            ),
            (
                numbers,
                &[400, 401],
                errors,
                &[Some("client_mismatch"), Some("protection_policy_required")],
                app(),
            ),
            // Of a credential that is refused, it says nothing about a grant.
            (
                &[1, 7_000_215],
                &[401],
                &["invalid_client"],
                &[Some("bad_token"), Some("basic_action"), None],
                Class::Operator(Suspect::Credential),
            ),
        ]
    }

    /// What `error` means where nothing else decides.
    fn by_error() -> Vec<Row<'static>> {
        let unknown = &[1][..];
        let none = &[
            None,
            Some("something_new"),
            Some("device_authentication_failed"),
        ][..];
        vec![
            (
                unknown,
                &[400, 401],
                &[
                    "invalid_grant",
                    "interaction_required",
                    "consent_required",
                    "login_required",
                    "access_denied",
                ],
                none,
                asks(),
            ),
            (
                unknown,
                &[400, 401],
                &["invalid_client"],
                none,
                Class::Operator(Suspect::Credential),
            ),
            (
                unknown,
                &[400],
                &[
                    "unauthorized_client",
                    "invalid_resource",
                    "unsupported_grant_type",
                    "invalid_request",
                    "invalid_tenant",
                ],
                none,
                Class::Operator(Suspect::App),
            ),
            (unknown, &[400], &["invalid_scope"], none, Class::Scope),
            (
                unknown,
                &[400],
                &["temporarily_unavailable"],
                none,
                transient(None, HoldsUp::Tenant),
            ),
            (
                unknown,
                &[400],
                &["something_new"],
                none,
                transient(None, HoldsUp::Request),
            ),
        ]
    }

    #[test]
    fn refusals_fall_into_the_classes_of_the_decision_table() {
        let mut cases = 0;
        let rows = [by_number(), by_suberror(), by_error()];
        for (codes, statuses, errors, suberrors, expected) in rows.into_iter().flatten() {
            for code in codes {
                for status in statuses {
                    for error in errors {
                        for suberror in suberrors {
                            let body = json!({"error": error, "error_codes": [code], "suberror": suberror,
                                "claims": CLAIMS, "trace_id": "t-1", "error_description": "AADSTS1: user@contoso"});
                            assert_eq!(
                                class(*status, &[], &body.to_string()),
                                expected,
                                "{status} {error} {code} {suberror:?}"
                            );
                            cases += 1;
                        }
                    }
                }
            }
        }
        assert!(cases > 500, "{cases}");
    }

    /// Answers of real tenants, as they were recorded but for their names, times and texts.
    #[test]
    fn recorded_answers_are_told_apart() {
        let asks = |claims: Option<&str>| Class::Interaction {
            claims: claims.map(Into::into),
        };
        let reason = |aadsts: u32, suberror| Reason {
            aadsts: (aadsts > 0).then_some(aadsts),
            suberror,
        };
        for (status, body, class, expected) in [
            (
                401,
                r#"{"error":"invalid_grant","error_codes":[50097]}"#,
                asks(None),
                reason(50_097, None),
            ),
            (
                400,
                r#"{"error":"invalid_grant"}"#,
                asks(None),
                reason(0, None),
            ),
            (
                400,
                r#"{"error":"invalid_grant","error_codes":[530003],"suberror":"message_only","claims":"{\"access_token\":{}}"}"#,
                Class::Organisation,
                reason(530_003, Some(Suberror::MessageOnly)),
            ),
            (
                400,
                r#"{"error":"interaction_required","error_codes":[530003],"claims":"{\"access_token\":{}}"}"#,
                asks(Some(r#"{"access_token":{}}"#)),
                reason(530_003, None),
            ),
            // A policy that nobody can meet now; and one that asks for claims.
            (
                400,
                r#"{"error":"invalid_grant","error_codes":[53003]}"#,
                Class::Organisation,
                reason(53_003, None),
            ),
            (
                400,
                r#"{"error":"interaction_required","error_codes":[53003],"claims":"{\"c\":1}"}"#,
                asks(Some(CLAIMS)),
                reason(53_003, None),
            ),
            // Claims that are none are not passed on.
            (
                400,
                r#"{"error":"interaction_required","error_codes":[50076],"claims":"user@contoso"}"#,
                asks(None),
                reason(50_076, None),
            ),
            (
                400,
                r#"{"error":"invalid_grant","error_codes":["50173"]}"#,
                Class::Dead,
                reason(50_173, None),
            ),
            (
                400,
                r#"{"error":"invalid_grant","error_codes":[99999999999,"x",null,50173]}"#,
                Class::Dead,
                reason(50_173, None),
            ),
            (
                400,
                r#"{"error":"invalid_grant","error_codes":99999999999}"#,
                asks(None),
                reason(0, None),
            ),
            (
                400,
                r#"{"error":"invalid_grant","error_codes":[70000],"error_description":"AADSTS70000: The grant is expired."}"#,
                Class::Dead,
                reason(70_000, None),
            ),
            (
                401,
                r#"{"error":"invalid_client","error_codes":[7000229]}"#,
                Class::Organisation,
                reason(7_000_229, None),
            ),
            (
                400,
                r#"{"error":"invalid_client","error_codes":[650053]}"#,
                Class::Scope,
                reason(650_053, None),
            ),
            // The number that decided, not the first.
            (
                400,
                r#"{"error":"invalid_grant","error_codes":[1,50105],"suberror":"user@contoso"}"#,
                Class::Organisation,
                reason(50_105, None),
            ),
        ] {
            let refusal = on_refresh(&answer(status, &[], body)).unwrap_err();
            assert_eq!((refusal.class, refusal.reason), (class, expected), "{body}");
        }
    }

    #[test]
    fn a_bad_assertion_is_the_callers_fault_on_behalf_of_him_alone() {
        for code in [500_131, 500_133, 50_013] {
            let body = json!({"error": "invalid_grant", "error_codes": [code]}).to_string();
            let response = answer(400, &[], &body);
            let grant = Grant::OnBehalfOf {
                assertion: &Bearer::new("a".into()),
                scope: &scope(),
            };
            assert_eq!(
                read_token_response(&response, &grant, NOW)
                    .unwrap_err()
                    .class,
                Class::Assertion
            );
            assert_eq!(class(400, &[], &body), Class::Operator(Suspect::App));
        }
    }

    #[test]
    fn a_trace_id_that_is_none_is_dropped() {
        let body =
            json!({"error": "invalid_client", "trace_id": "x\n{\"event\":\"forged\"}"}).to_string();
        let refusal = on_refresh(&answer(401, &[], &body)).unwrap_err();
        assert_eq!(refusal.trace_id, None);
    }
}
