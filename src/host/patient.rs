//! The app's vault as `behalf doctor` runs it: by the app's own settings, with nothing but the reach that its manifest gives it,
//! and with an eye on what others answer.

use crate::allow_list::AllowList;
use crate::console::{CommandSettings, Console};
use crate::outbound::OutboundClient;
use crate::variables::{ComponentVariables, LookupError};
use behalf_core::port::{
    Background, Clock, Config, ConfigError, Http, HttpError, Limits, Log, Random, SecretBody, Timer,
};
use chrono::DateTime;
use http::header::DATE;
use http::{Request, Response};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The world of the app's vault. All clones are the same one.
#[derive(Clone)]
pub(crate) struct Patient(Rc<Inner>);

struct Inner {
    console: Console,
    variables: ComponentVariables,
    allowed: AllowList,
    seen: RefCell<Vec<Seen>>,
}

/// An answer of another system, or that there was none. Nothing of it is secret.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Where it was asked: origin and path.
    pub(crate) place: String,
    /// How many signing keys are in it, if it has any.
    pub(crate) keys: Option<usize>,
    /// By how many seconds this machine's clock is ahead of its date.
    pub(crate) ahead: Option<i64>,
    /// How long it took.
    pub(crate) took: Duration,
}

impl Patient {
    /// A component with these variables, which reaches so far.
    pub(crate) fn new(
        client: OutboundClient,
        variables: ComponentVariables,
        allowed: AllowList,
    ) -> Self {
        Self(Rc::new(Inner {
            console: Console::new(client, CommandSettings::default()),
            variables,
            allowed,
            seen: RefCell::default(),
        }))
    }

    /// What was seen since the last time that this was asked.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        self.0.seen.take()
    }

    fn see(&self, place: String, answer: &Response<SecretBody>, took: Duration) {
        let date = answer.headers().get(DATE);
        let date = date.and_then(|date| DateTime::parse_from_rfc2822(date.to_str().ok()?).ok());
        let now = i64::try_from(self.now()).unwrap_or(i64::MAX);
        let keys: Option<serde_json::Value> = serde_json::from_slice(answer.body()).ok();
        let keys = keys.and_then(|body| Some(body.get("keys")?.as_array()?.len()));
        self.0.seen.borrow_mut().push(Seen {
            place,
            keys,
            ahead: date.map(|date| now.saturating_sub(date.timestamp())),
            took,
        });
    }
}

impl Http for Patient {
    async fn send(
        &self,
        request: Request<SecretBody>,
        limits: Limits,
    ) -> Result<Response<SecretBody>, HttpError> {
        let uri = request.uri();
        let (scheme, host) = (uri.scheme_str(), uri.host());
        let (Some(scheme), Some(host)) = (scheme, host) else {
            return Err(HttpError::Denied);
        };
        if !self.0.allowed.permits(scheme, host, uri.port_u16()) {
            return Err(HttpError::Denied);
        }
        let authority = uri.authority().map_or("", |it| it.as_str());
        let place = format!("{scheme}://{authority}{}", uri.path());
        let began = Instant::now();
        let answer = self.0.console.send(request, limits).await?;
        self.see(place, &answer, began.elapsed());
        Ok(answer)
    }
}

impl Config for Patient {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        match self.0.variables.get(name) {
            Ok(value) => Ok(Some(value)),
            Err(LookupError::Undefined(_) | LookupError::InvalidName(_)) => Ok(None),
            Err(error) => {
                tracing::error!("{error}");
                Err(ConfigError)
            }
        }
    }
}

impl Clock for Patient {
    fn now(&self) -> u64 {
        self.0.console.now()
    }
}

impl Timer for Patient {
    fn elapsed(&self) -> Duration {
        self.0.console.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        self.0.console.sleep(duration).await;
    }
}

impl Random for Patient {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.console.fill(buffer);
    }
}

impl Log for Patient {
    /// What there is to tell is in the errors.
    fn line(&self, _: &str) {}
}

impl Background for Patient {
    fn begin(&self, _: impl Future<Output = ()> + 'static) {}
}
