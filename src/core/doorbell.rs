//! The doorbell of the sweep: what a component on a schedule does until nothing remains to be swept.
//!
//! It holds the sweep key and nothing else of the settings, and decides without input and output: whoever drives it
//! sends [`Doorbell::request`] and tells [`Doorbell::hear`] what came back, until that says that it is over. Who calls in
//! another way, as `behalf sweep` does, tells a [`Tally`] what came back.

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;
use url::Url;
use zeroize::Zeroizing;

use crate::endpoint::{self, is_confidential};
use crate::error::SettingFault;
use crate::json;
use crate::port::{Config, HttpError, Limits, SecretBody, trimmed};
use crate::secret::SweepKey;

/// For how long it rings again. Less than the five minutes of the schedule in `spin.toml`, so that its next time is the
/// next try.
const PATIENCE: Duration = Duration::from_mins(4);

/// The origin by which such a component reaches the app on a host that runs it beside the app, as `behalf up` does: its
/// setting `app_origin` is this one, and what is sent there goes through no network. No name server knows it.
pub const APP_ORIGIN: &str = "http://app.behalf.internal";

/// Where to ring there.
const BESIDE_THE_APP: &str = "http://app.behalf.internal/v1/sweep";

/// Where to ring elsewhere, unless `sweep_url` says: where `spin up` serves by default.
const DEFAULT_URL: &str = "http://127.0.0.1:3000/v1/sweep";

/// Limits of one call: a sweep works for `sweep_seconds`, 25 at most, and finishes what it has begun.
pub const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    first_byte: Duration::from_mins(1),
    between_bytes: Duration::from_secs(10),
    body: 64 * 1024,
};

/// A doorbell in use.
#[derive(Debug)]
pub struct Doorbell {
    url: Url,
    authorization: HeaderValue,
    tally: Tally,
}

/// What calls of the sweep have come to, and whether another one follows.
#[derive(Debug)]
pub struct Tally {
    patience: Duration,
    sum: Counts,
    calls: u32,
}

/// What follows an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Send the request again.
    Ring,
    /// It is over.
    Done(Outcome),
}

/// How it ended well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing remains.
    Swept {
        /// How many calls were made.
        calls: u32,
        /// What they counted, by name.
        counts: Vec<(&'static str, u64)>,
    },
    /// Another sweep is under way, and does the work.
    LeftToAnother,
}

/// Why the sweep did not end well. No case holds a secret, or text of an answer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DoorbellError {
    /// A setting is missing or wrong.
    #[error("{0}")]
    Setting(SettingFault),
    /// The host forbids the call.
    #[error("the host does not allow calls of `sweep_url`: set `sweep_origin` to its origin")]
    Denied,
    /// There was no answer.
    #[error("no answer to the sweep's call number {call}: {error}; check `sweep_url`")]
    NoAnswer {
        /// Which call, from 1.
        call: u32,
        /// Why.
        error: HttpError,
    },
    /// The app refused.
    #[error("the sweep's call number {call} was answered with status {status}{}", .code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default())]
    Refused {
        /// Which call, from 1.
        call: u32,
        /// The status.
        status: StatusCode,
        /// Its `code`, if it is one of the app's problems.
        code: Option<String>,
    },
    /// What answered is no sweep.
    #[error(
        "the answer to the sweep's call number {call} is none of this app's; check `sweep_url`"
    )]
    Strange {
        /// Which call, from 1.
        call: u32,
    },
    /// The sweep stopped before its time.
    #[error("the sweep's call number {call} stopped{}; its log says why", .code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default())]
    Stopped {
        /// Which call, from 1.
        call: u32,
        /// Why, if it is one of the app's codes.
        code: Option<String>,
    },
    /// Calls no longer get anything done.
    #[error("{remaining} records remain and no call gets further; the log of the sweep says why")]
    Stuck {
        /// Records that remain.
        remaining: u64,
    },
    /// Records remain, and the time is up.
    #[error(
        "{remaining} records remain after {calls} calls; sweep more often, or raise `sweep_concurrency`"
    )]
    TimeIsUp {
        /// Records that remain.
        remaining: u64,
        /// How many calls were made.
        calls: u32,
    },
}

impl Doorbell {
    /// A doorbell with these settings; none if there is no sweep key, which switches it off.
    ///
    /// # Errors
    /// [`DoorbellError::Setting`].
    pub fn new(settings: &impl Config) -> Result<Option<Self>, DoorbellError> {
        let wrong = |name, expected| DoorbellError::Setting(SettingFault::new(name, expected));
        let get = |name| {
            let value = settings
                .get(name)
                .map_err(|_| wrong(name, "is not known to the host"))?
                .map(Zeroizing::new)
                .unwrap_or_default();
            Ok(Zeroizing::new(trimmed(&value).to_owned()))
        };
        let key = SweepKey::new(get("sweep_key")?.to_string());
        if key.expose().is_empty() {
            return Ok(None);
        }
        let authorization = Zeroizing::new(format!("Bearer {}", key.expose()));
        let mut authorization = HeaderValue::try_from(authorization.as_str())
            .map_err(|_| wrong("sweep_key", "may hold visible ASCII characters only"))?;
        authorization.set_sensitive(true);

        let expected = "must be the https:// URL of the app's /v1/sweep (http:// on loopback)";
        let set = get("sweep_url")?;
        // A host that runs components on a schedule beside the app lets them reach it without a network.
        let beside =
            set.is_empty() && settings.get("app_origin") == Ok(Some(APP_ORIGIN.to_owned()));
        let url = match set.as_str() {
            "" if beside => BESIDE_THE_APP,
            "" => DEFAULT_URL,
            url => url,
        };
        let is_safe = |url: &Url| beside || is_confidential(url);
        let is_bare = |url: &Url| url.query().is_none() && url.fragment().is_none();
        let url = endpoint::url(url)
            .filter(|url| is_safe(url) && is_bare(url))
            .ok_or_else(|| wrong("sweep_url", expected))?;
        Ok(Some(Self {
            url,
            authorization,
            tally: Tally::new(PATIENCE),
        }))
    }

    /// The request to send.
    #[must_use]
    pub fn request(&self) -> Request<SecretBody> {
        let mut request = Request::new(SecretBody::default());
        *request.method_mut() = Method::POST;
        // A URL is a URI.
        if let Ok(uri) = self.url.as_str().parse() {
            *request.uri_mut() = uri;
        }
        request
            .headers_mut()
            .insert(AUTHORIZATION, self.authorization.clone());
        request
    }

    /// Says what follows an answer that came `elapsed` after the first request was sent.
    ///
    /// # Errors
    /// It is over, and not well; see [`DoorbellError`].
    pub fn hear(
        &mut self,
        answer: Result<Response<SecretBody>, HttpError>,
        elapsed: Duration,
    ) -> Result<Next, DoorbellError> {
        let call = self.tally.calls.saturating_add(1);
        let response = answer.map_err(|error| match error {
            HttpError::Denied => DoorbellError::Denied,
            HttpError::Unreachable | HttpError::TimedOut | HttpError::TooLong => {
                DoorbellError::NoAnswer { call, error }
            }
        })?;
        if response.status() != StatusCode::OK {
            return Err(DoorbellError::Refused {
                call,
                status: response.status(),
                code: code(response.body()),
            });
        }
        self.tally.hear(response.body(), elapsed)
    }
}

impl Tally {
    /// Of calls that go on for so long.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            sum: Counts::default(),
            calls: 0,
        }
    }

    /// Says what follows a report that came `elapsed` after the first call was sent.
    ///
    /// # Errors
    /// It is over, and not well; see [`DoorbellError`].
    pub fn hear(&mut self, report: &[u8], elapsed: Duration) -> Result<Next, DoorbellError> {
        self.calls = self.calls.saturating_add(1);
        let (call, calls) = (self.calls, self.calls);
        let answer: Answer = json::object(report).ok_or(DoorbellError::Strange { call })?;
        if !answer.lease_held {
            return Ok(Next::Done(Outcome::LeftToAnother));
        }
        if let Some(code) = &answer.stopped {
            let code = is_code(code).then(|| code.clone());
            return Err(DoorbellError::Stopped { call, code });
        }
        let remaining = answer.remaining.saturating_add(answer.unchecked);
        let done = answer.done();
        self.sum.add(&answer);
        if remaining == 0 {
            let counts = self.sum.counts().into();
            return Ok(Next::Done(Outcome::Swept { calls, counts }));
        }
        if done == 0 {
            return Err(DoorbellError::Stuck { remaining });
        }
        if elapsed >= self.patience {
            return Err(DoorbellError::TimeIsUp { remaining, calls });
        }
        Ok(Next::Ring)
    }
}

impl Outcome {
    /// One object, for the log and for programs.
    #[must_use]
    pub fn line(&self) -> String {
        let (calls, counts) = match self {
            Self::Swept { calls, counts } => (calls, counts),
            Self::LeftToAnother => {
                let reason = "another sweep is under way, and does the work";
                return json!({"event": "sweep_left_to_another", "reason": reason}).to_string();
            }
        };
        let mut line = json!({"event": "swept", "calls": calls});
        if let Some(line) = line.as_object_mut() {
            let counts = counts.iter();
            line.extend(counts.map(|&(name, count)| (name.to_owned(), count.into())));
        }
        line.to_string()
    }
}

/// What a component says when it is switched off.
#[must_use]
pub fn switched_off() -> String {
    json!({"event": "sweep_off", "reason": "the setting `sweep_key` is empty"}).to_string()
}

/// What a component says when the sweep did not end well.
#[must_use]
pub fn failure(error: &DoorbellError) -> String {
    json!({"event": "sweep_failed", "reason": error.to_string()}).to_string()
}

/// A sweep's report, as far as it matters here: its other members may come and go.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
struct Answer {
    /// Reports before this member was there were of sweeps that worked.
    #[serde(default = "yes")]
    lease_held: bool,
    remaining: u64,
    #[serde(default)]
    unchecked: u64,
    #[serde(default)]
    stopped: Option<String>,
    #[serde(flatten)]
    counts: Counts,
}

/// What a sweep counts: first what will not be there in the next call because of this one.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default)]
struct Counts {
    refreshed: u64,
    resealed: u64,
    interaction_required: u64,
    organisation_required: u64,
    quarantined: u64,
    expired: u64,
    retrying: u64,
    refused: u64,
    damaged: u64,
    cleared: u64,
    checked: u64,
    failed: u64,
    waiting: u64,
    not_served: u64,
}

impl Answer {
    /// How much this call has got done. Questions for keys count while there are more to ask.
    fn done(&self) -> u64 {
        let Counts {
            failed: _,
            waiting: _,
            not_served: _,
            checked,
            refreshed,
            resealed,
            interaction_required,
            organisation_required,
            quarantined,
            expired,
            retrying,
            refused,
            damaged,
            cleared,
        } = self.counts;
        let checked = if self.unchecked > 0 { checked } else { 0 };
        [
            refreshed,
            resealed,
            interaction_required,
            organisation_required,
            quarantined,
            expired,
            retrying,
            refused,
            damaged,
            cleared,
            checked,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }
}

impl Counts {
    fn add(&mut self, other: &Answer) {
        let other = &other.counts;
        for (sum, count) in [
            (&mut self.refreshed, other.refreshed),
            (&mut self.resealed, other.resealed),
            (&mut self.interaction_required, other.interaction_required),
            (&mut self.organisation_required, other.organisation_required),
            (&mut self.quarantined, other.quarantined),
            (&mut self.expired, other.expired),
            (&mut self.retrying, other.retrying),
            (&mut self.refused, other.refused),
            (&mut self.damaged, other.damaged),
            (&mut self.cleared, other.cleared),
            (&mut self.checked, other.checked),
            (&mut self.failed, other.failed),
        ] {
            *sum = sum.saturating_add(count);
        }
        // These are the same ones in every call.
        (self.waiting, self.not_served) = (other.waiting, other.not_served);
    }

    fn counts(&self) -> [(&'static str, u64); 14] {
        [
            ("refreshed", self.refreshed),
            ("resealed", self.resealed),
            ("interaction_required", self.interaction_required),
            ("organisation_required", self.organisation_required),
            ("quarantined", self.quarantined),
            ("expired", self.expired),
            ("retrying", self.retrying),
            ("refused", self.refused),
            ("damaged", self.damaged),
            ("failed", self.failed),
            ("waiting", self.waiting),
            ("not_served", self.not_served),
            ("cleared", self.cleared),
            ("checked", self.checked),
        ]
    }
}

fn yes() -> bool {
    true
}

/// The `code` of a problem, if it looks like one of the app's: anything else could be another system's text.
fn code(body: &SecretBody) -> Option<String> {
    #[derive(Deserialize)]
    struct Problem {
        code: String,
    }
    let problem: Problem = json::object(body)?;
    is_code(&problem.code).then_some(problem.code)
}

/// Whether a text looks like a code of the app's.
fn is_code(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 64 && bytes.all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::report::SweepReport;
    use crate::simulation::world::SWEEP_KEY;
    use crate::vault::samples::Values;

    fn values(url: &str, key: &str) -> Values {
        Values::from([("sweep_url", url.to_owned()), ("sweep_key", key.to_owned())])
    }

    fn doorbell() -> Doorbell {
        let values = values("http://127.0.0.1:3000/v1/sweep", SWEEP_KEY);
        Doorbell::new(&values).unwrap().unwrap()
    }

    type Heard = Result<Response<SecretBody>, HttpError>;

    fn answer(status: u16, body: &str) -> Heard {
        let body = SecretBody::new(body.as_bytes().to_vec());
        let response = Response::builder().status(status).body(body);
        response.map_err(|_| HttpError::Unreachable)
    }

    fn report(report: &SweepReport) -> Heard {
        answer(200, &serde_json::to_string(report).unwrap())
    }

    const SOON: Duration = Duration::from_secs(1);

    #[test]
    fn it_rings_until_nothing_remains() {
        let mut doorbell = doorbell();
        let request = doorbell.request();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri(), "http://127.0.0.1:3000/v1/sweep");
        let authorization = request.headers().get(AUTHORIZATION).unwrap();
        assert_eq!(authorization, &format!("Bearer {SWEEP_KEY}"));
        assert!(authorization.is_sensitive());
        let some = SweepReport {
            lease_held: true,
            waiting: 5,
            refreshed: 2,
            failed: 1,
            remaining: 3,
            ..SweepReport::default()
        };
        assert_eq!(doorbell.hear(report(&some), SOON), Ok(Next::Ring));
        let last = SweepReport {
            lease_held: true,
            waiting: 4,
            refreshed: 3,
            resealed: 4,
            ..SweepReport::default()
        };
        let Next::Done(outcome) = doorbell.hear(report(&last), SOON).unwrap() else {
            panic!("nothing remains");
        };
        let line: serde_json::Value = serde_json::from_str(&outcome.line()).unwrap();
        assert_eq!(
            line,
            json!({
                "event": "swept", "calls": 2, "refreshed": 5, "resealed": 4, "interaction_required": 0,
                "organisation_required": 0, "quarantined": 0, "expired": 0, "retrying": 0, "refused": 0, "damaged": 0,
                "failed": 1, "waiting": 4, "not_served": 0, "cleared": 0, "checked": 0,
            })
        );
    }

    #[test]
    fn it_gives_up_when_its_time_is_up_or_nothing_gets_done() {
        let working = SweepReport {
            lease_held: true,
            refreshed: 1,
            remaining: 9,
            ..SweepReport::default()
        };
        let mut bell = doorbell();
        assert_eq!(bell.hear(report(&working), SOON), Ok(Next::Ring));
        let late = DoorbellError::TimeIsUp {
            remaining: 9,
            calls: 2,
        };
        assert_eq!(bell.hear(report(&working), PATIENCE), Err(late));
        let stuck = SweepReport {
            lease_held: true,
            failed: 1,
            remaining: 9,
            ..SweepReport::default()
        };
        assert_eq!(
            doorbell().hear(report(&stuck), SOON),
            Err(DoorbellError::Stuck { remaining: 9 })
        );
    }

    /// Everything that will not be there in the next call is work done.
    #[test]
    fn it_rings_again_after_any_work() {
        let all = SweepReport {
            lease_held: true,
            remaining: 9,
            ..SweepReport::default()
        };
        let counted: [fn(&mut SweepReport); 11] = [
            |report| report.refreshed = 1,
            |report| report.resealed = 1,
            |report| report.interaction_required = 1,
            |report| report.organisation_required = 1,
            |report| report.quarantined = 1,
            |report| report.expired = 1,
            |report| report.retrying = 1,
            |report| report.refused = 1,
            |report| report.damaged = 1,
            |report| report.cleared = 1,
            |report| (report.checked, report.unchecked) = (1, 1),
        ];
        for count in counted {
            let mut report = all.clone();
            count(&mut report);
            assert_eq!(doorbell().hear(self::report(&report), SOON), Ok(Next::Ring));
        }
        let none: [fn(&mut SweepReport); 4] = [
            |report| report.failed = 1,
            |report| report.waiting = 1,
            |report| report.not_served = 1,
            |report| report.checked = 1,
        ];
        for count in none {
            let mut report = all.clone();
            count(&mut report);
            assert_eq!(
                doorbell().hear(self::report(&report), SOON),
                Err(DoorbellError::Stuck { remaining: 9 })
            );
        }
    }

    #[test]
    fn it_says_when_another_sweep_does_the_work_and_when_one_was_stopped() {
        let heard = doorbell().hear(report(&SweepReport::default()), SOON);
        assert_eq!(heard, Ok(Next::Done(Outcome::LeftToAnother)));
        let line = Outcome::LeftToAnother.line();
        assert!(line.contains("sweep_left_to_another"), "{line}");
        for (code, message) in [
            (
                "clock_wrong",
                "the sweep's call number 1 stopped (clock_wrong); its log says why",
            ),
            (
                "<secret text>",
                "the sweep's call number 1 stopped; its log says why",
            ),
        ] {
            let stopped = SweepReport {
                lease_held: true,
                stopped: Some(code.into()),
                ..SweepReport::default()
            };
            let error = doorbell().hear(report(&stopped), SOON).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn everything_else_is_an_error_that_quotes_nothing() {
        for (answer, message) in [
            (
                Err(HttpError::Denied),
                "the host does not allow calls of `sweep_url`: set `sweep_origin` to its origin",
            ),
            (
                Err(HttpError::TimedOut),
                "no answer to the sweep's call number 1: timed out; check `sweep_url`",
            ),
            (
                answer(401, r#"{"code":"sweep_not_authorized"}"#),
                "the sweep's call number 1 was answered with status 401 Unauthorized (sweep_not_authorized)",
            ),
            (
                answer(503, r#"{"code":"<secret text>"}"#),
                "the sweep's call number 1 was answered with status 503 Service Unavailable",
            ),
            (
                answer(302, ""),
                "the sweep's call number 1 was answered with status 302 Found",
            ),
            (
                answer(200, "<html>"),
                "the answer to the sweep's call number 1 is none of this app's; check `sweep_url`",
            ),
            (
                answer(200, "{}"),
                "the answer to the sweep's call number 1 is none of this app's; check `sweep_url`",
            ),
        ] {
            let error = doorbell().hear(answer, SOON).unwrap_err();
            assert_eq!(error.to_string(), message);
            assert!(failure(&error).contains("sweep_failed"));
        }
    }

    #[test]
    fn settings() {
        let off = Doorbell::new(&values("nonsense", " ")).unwrap();
        assert!(off.is_none());
        assert!(switched_off().contains("`sweep_key` is empty"));
        for (url, key, name) in [
            ("/v1/sweep", SWEEP_KEY, "sweep_url"),
            ("http://app.example/v1/sweep", SWEEP_KEY, "sweep_url"),
            ("https://user@app.example/v1/sweep", SWEEP_KEY, "sweep_url"),
            ("https://app.example/v1/sweep?x", SWEEP_KEY, "sweep_url"),
            ("https://app.example/v1/sweep", "two\nlines", "sweep_key"),
        ] {
            let error = Doorbell::new(&values(url, key)).unwrap_err();
            let variable = format!("`{name}` (SPIN_VARIABLE_{})", name.to_ascii_uppercase());
            assert!(error.to_string().contains(&variable), "{error}");
            assert!(!error.to_string().contains("two"), "{error}");
        }
        // As a file can hold it.
        let key = format!("\u{feff}{SWEEP_KEY}\r\n");
        let unset = |origin: &str| {
            let mut values = values(" ", SWEEP_KEY);
            values.insert("app_origin", origin.to_owned());
            let bell = Doorbell::new(&values).unwrap().unwrap();
            bell.request().uri().to_string()
        };
        assert_eq!(unset(APP_ORIGIN), format!("{APP_ORIGIN}/v1/sweep"));
        for other in ["", "http://elsewhere.test"] {
            assert_eq!(unset(other), "http://127.0.0.1:3000/v1/sweep");
        }
        let mut named = values(APP_ORIGIN, SWEEP_KEY);
        assert!(
            Doorbell::new(&named).is_err(),
            "in clear, through a network"
        );
        named.insert("app_origin", APP_ORIGIN.to_owned());
        assert!(Doorbell::new(&named).is_err(), "a setting is a setting");
        for url in ["https://app.example/v1/sweep", "http://[::1]:1/v1/sweep"] {
            let bell = Doorbell::new(&values(url, &key)).unwrap().unwrap();
            let sent = bell.request().headers()[AUTHORIZATION].clone();
            assert_eq!(sent, format!("Bearer {SWEEP_KEY}"));
            assert_eq!(bell.request().uri(), url);
            assert!(!format!("{bell:?}").contains(SWEEP_KEY));
        }
    }
}
