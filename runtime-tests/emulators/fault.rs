//! Faults: answers that an emulator gives instead of its own, a number of times.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::entra::error::TokenError;
use super::journal::{Entry, Target};
use super::key_vault::SecretError;
use super::server::Close;

/// For how long a fault waits for another request.
const LONGEST: Duration = Duration::from_secs(30);

/// A fault, and which requests it meets.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The endpoint that fails.
    pub target: Target,
    /// Only requests with this `grant_type`; `user`: with any but the app's own, `client_credentials`.
    #[serde(default)]
    pub grant: Option<String>,
    /// How many requests it meets.
    #[serde(default = "once")]
    pub count: u32,
    /// Milliseconds to wait before the answer.
    #[serde(default)]
    pub delay_ms: u64,
    /// Wait before the answer until a request for this arrives, of those that come once the fault is there; for half a minute.
    #[serde(default)]
    pub until: Option<Target>,
    /// Value of `Retry-After`.
    #[serde(default)]
    pub retry_after: Option<String>,
    /// Value of `Date`: the emulator's clock is wrong, or the app's.
    #[serde(default)]
    pub date: Option<String>,
    /// Value of `WWW-Authenticate`: what an API wants of an access token besides.
    #[serde(default)]
    pub challenge: Option<String>,
    /// What is answered.
    pub answer: Answer,
}

/// What a fault answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Answer {
    /// What the emulator would have answered: a delay alone.
    Pass,
    /// Any status and body.
    Status {
        /// HTTP status.
        status: u16,
        /// Body.
        #[serde(default)]
        body: String,
        /// Media type of the body.
        #[serde(default = "json_type")]
        content_type: String,
    },
    /// An error of Entra ID's token endpoint (PLATFORMS.md, "Errors of the token endpoint").
    Entra {
        /// AADSTS code; `error`, status and `suberror` follow from it.
        code: u32,
        /// `suberror` other than the usual one.
        #[serde(default)]
        suberror: Option<String>,
        /// `claims`: JSON text.
        #[serde(default)]
        claims: Option<String>,
        /// `error` other than the usual one.
        #[serde(default)]
        error: Option<String>,
        /// HTTP status other than the usual one.
        #[serde(default)]
        status: Option<u16>,
    },
    /// An error of Key Vault (PLATFORMS.md, "Errors of Key Vault").
    KeyVault {
        /// HTTP status.
        status: u16,
        /// `code`.
        code: String,
        /// `innererror.code`.
        #[serde(default)]
        inner: Option<String>,
    },
    /// The page of a front end: 502, HTML.
    BadGateway,
    /// The connection is closed without an answer.
    Close,
}

impl Fault {
    /// A fault that meets the next request for `target`.
    #[must_use]
    pub fn new(target: Target, answer: Answer) -> Self {
        Self {
            target,
            grant: None,
            count: 1,
            delay_ms: 0,
            until: None,
            retry_after: None,
            date: None,
            challenge: None,
            answer,
        }
    }

    /// An AADSTS error for the next request to the token endpoint.
    #[must_use]
    pub fn entra(code: u32) -> Self {
        let answer = Answer::Entra {
            code,
            suberror: None,
            claims: None,
            error: None,
            status: None,
        };
        Self::new(Target::EntraToken, answer)
    }

    /// Only requests with this `grant_type`.
    #[must_use]
    pub fn grant(mut self, grant: &str) -> Self {
        self.grant = Some(grant.to_owned());
        self
    }

    /// Meets this many requests.
    #[must_use]
    pub fn times(mut self, count: u32) -> Self {
        self.count = count;
        self
    }

    /// Waits before the answer until a request for this arrives.
    #[must_use]
    pub fn until(mut self, target: Target) -> Self {
        self.until = Some(target);
        self
    }

    /// Adds `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, value: &str) -> Self {
        self.retry_after = Some(value.to_owned());
        self
    }

    /// The answer; none to pass the request on.
    pub(crate) fn response(&self, correlation_id: Option<&str>) -> Option<Response> {
        Some(match &self.answer {
            Answer::Pass => return None,
            Answer::Close => return Some(Close.into_response()),
            Answer::BadGateway => (
                StatusCode::BAD_GATEWAY,
                [(header::CONTENT_TYPE, "text/html")],
                "<html><head><title>502 Bad Gateway</title></head><body>Our services aren't available right now</body></html>",
            )
                .into_response(),
            Answer::Status { status, body, content_type } => {
                (status_code(*status), [(header::CONTENT_TYPE, content_type.clone())], body.clone()).into_response()
            }
            Answer::Entra { code, suberror, claims, error, status } => {
                let mut fault = TokenError::new(*code);
                if let Some(suberror) = suberror {
                    fault.suberror = Some(suberror.clone());
                }
                if let Some(error) = error {
                    fault.error.clone_from(error);
                }
                if let Some(status) = status {
                    fault.status = status_code(*status);
                }
                fault.claims.clone_from(claims);
                fault.response(correlation_id)
            }
            Answer::KeyVault { status, code, inner } => {
                let message = format!("{code}: injected by a test.");
                let error = SecretError::new(status_code(*status), code.clone(), message);
                match inner {
                    Some(inner) => error.inner(inner.clone()).into_response(),
                    None => error.into_response(),
                }
            }
        })
    }

    /// Sets the headers that it has.
    pub(crate) fn adorn(&self, response: &mut Response) {
        for (name, value) in [
            (header::RETRY_AFTER, &self.retry_after),
            (header::DATE, &self.date),
            (header::WWW_AUTHENTICATE, &self.challenge),
        ] {
            if let Some(value) = value {
                let value = HeaderValue::from_str(value).expect("a header's value");
                response.headers_mut().insert(name, value);
            }
        }
    }
}

/// The faults that wait, oldest first.
#[derive(Default)]
pub(crate) struct Faults {
    faults: Mutex<Vec<Fault>>,
    /// What requests have arrived for, of all that a fault waits for.
    arrived: watch::Sender<BTreeSet<Target>>,
}

impl Faults {
    pub(crate) fn add(&self, fault: Fault) {
        if let Some(target) = fault.until {
            self.arrived.send_modify(|arrived| {
                arrived.remove(&target);
            });
        }
        self.faults.lock().unwrap().push(fault);
    }

    pub(crate) fn clear(&self) {
        self.faults.lock().unwrap().clear();
    }

    /// How many requests they can still meet.
    pub(crate) fn left(&self) -> u32 {
        let faults = self.faults.lock().unwrap();
        faults.iter().map(|fault| fault.count).sum()
    }

    /// A request has arrived.
    pub(crate) fn arrive(&self, target: Target) {
        self.arrived
            .send_if_modified(|arrived| arrived.insert(target));
    }

    /// Waits for as long as a fault says.
    pub(crate) async fn wait(&self, fault: &Fault) {
        tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await;
        if let Some(target) = &fault.until {
            let mut arrived = self.arrived.subscribe();
            let awaited = arrived.wait_for(|arrived| arrived.contains(target));
            let _ = tokio::time::timeout(LONGEST, awaited).await;
        }
    }

    /// The oldest fault that meets this request, used up by one.
    pub(crate) fn take(&self, request: &Entry) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let at = faults.iter().position(|fault| {
            fault.target == request.target
                && match fault.grant.as_deref() {
                    None => true,
                    Some("user") => request.grant.as_deref() != Some("client_credentials"),
                    grant => request.grant.as_deref() == grant,
                }
        })?;
        let fault = faults[at].clone();
        if fault.count <= 1 {
            faults.remove(at);
        } else {
            faults[at].count -= 1;
        }
        Some(fault)
    }
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).expect("an HTTP status")
}

fn once() -> u32 {
    1
}

fn json_type() -> String {
    "application/json".to_owned()
}
