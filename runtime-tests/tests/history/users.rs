//! Users, and what is asked for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use fastrand::Rng;
use reqwest::Method;
use runtime_tests::app::Answer;
use runtime_tests::emulators::{OTHER_TENANT, TENANT};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::PATIENCE;
use crate::hosts::{HOSTS, Hosts};
use crate::promises::{Asked, Outcome, Request, Session, View};

/// How many.
pub(crate) const USERS: usize = 24;

/// All of them.
pub(crate) struct Users {
    hosts: Arc<Hosts>,
    start: Instant,
    /// The callers' tokens.
    tokens: Vec<String>,
    sessions: AtomicU64,
    asked: Mutex<Vec<Request>>,
}

impl Users {
    /// Nobody is enrolled yet.
    pub(crate) fn new(hosts: &Arc<Hosts>, start: Instant) -> Self {
        Self {
            hosts: Arc::clone(hosts),
            start,
            tokens: (0..USERS).map(|user| token(hosts, user, None)).collect(),
            sessions: AtomicU64::new(0),
            asked: Mutex::default(),
        }
    }

    /// What was asked of the app, as far as there is something to know of it.
    pub(crate) fn asked(self) -> Vec<Request> {
        self.asked.into_inner().unwrap()
    }

    /// Asks until then.
    pub(crate) async fn ask_at_random(
        &self,
        mut random: Rng,
        until: Instant,
    ) -> anyhow::Result<()> {
        while Instant::now() < until {
            // Half of it for two of them, so that there is something to disagree on.
            let number = if random.bool() { 2 } else { USERS };
            let user = random.usize(0..number);
            let mut host = random.usize(0..HOSTS);
            if !self.hosts.is_up(host) {
                // Mostly another one is.
                host = (host + 1) % HOSTS;
            }
            let asked = match random.u32(0..100) {
                0..50 => Asked::Draw,
                50..75 => Asked::Enrol(self.sessions.fetch_add(1, Ordering::Relaxed)),
                75..88 => Asked::RemoveToken,
                _ => Asked::Remove,
            };
            self.ask(user, host, asked).await?;
            sleep(Duration::from_millis(random.u64(0..20))).await;
        }
        Ok(())
    }

    /// Draws, until there is an answer.
    pub(crate) async fn look(&self, user: usize, host: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !self.ask(user, host, Asked::Draw).await? {
            ensure!(begun.elapsed() < PATIENCE, "host {host} does not recover");
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Asks once; whether the answer says what is.
    async fn ask(&self, user: usize, host: usize, asked: Asked) -> anyhow::Result<bool> {
        let process = self.hosts.process(host).await;
        let body = json!({"scope": "https://graph.microsoft.com/User.Read"});
        let (method, path, body) = match asked {
            Asked::Enrol(_) => (Method::PUT, "/v1/me", None),
            // Sweeps ask for another one, so that the journal tells who has redeemed a refresh token.
            Asked::Draw => (Method::POST, "/v1/me/access-token", Some(&body)),
            Asked::RemoveToken => (Method::DELETE, "/v1/me/refresh-token", None),
            Asked::Remove => (Method::DELETE, "/v1/me", None),
        };
        let signed_in = match asked {
            Asked::Enrol(session) => Some(token(&self.hosts, user, Some(session))),
            Asked::Draw | Asked::RemoveToken | Asked::Remove => None,
        };
        let token = signed_in.as_ref().unwrap_or(&self.tokens[user]);
        let began = self.start.elapsed();
        let answer = timeout(PATIENCE, process.app.send(method, path, Some(token), body)).await;
        let ended = self.start.elapsed();
        let outcome = match answer.context("a request has no end")? {
            Ok(answer) => outcome(asked, &answer)?,
            Err(error) => match error.downcast_ref::<reqwest::Error>() {
                // It was not sent.
                Some(error) if error.is_connect() => {
                    sleep(Duration::from_millis(20)).await;
                    return Ok(false);
                }
                _ => Outcome::Unknown,
            },
        };
        // A draw changes nothing.
        let is_told = asked != Asked::Draw || outcome != Outcome::Unknown;
        if is_told {
            self.asked.lock().unwrap().push(Request {
                user,
                host,
                asked,
                began,
                ended,
                outcome,
            });
        }
        Ok(is_told)
    }
}

/// What an answer says.
fn outcome(asked: Asked, answer: &Answer) -> anyhow::Result<Outcome> {
    Ok(match (asked, answer.status.as_u16(), answer.code()) {
        (_, 500.., _) => Outcome::Unknown,
        (Asked::Enrol(_), 201, _) => Outcome::Enrolled { is_new: true },
        (Asked::Enrol(_), 200, _) => Outcome::Enrolled { is_new: false },
        (Asked::Remove | Asked::RemoveToken, 204, _) => Outcome::Removed,
        (Asked::Draw, 200, _) => Outcome::Saw(View::Has(session(&answer.json)?)),
        (Asked::Draw, 404, "not_enrolled") => Outcome::Saw(View::Absent),
        (Asked::Draw, 409, "no_refresh_token") => Outcome::Saw(View::NoToken),
        _ => bail!("{asked:?} is answered with {answer:?}"),
    })
}

/// Whose sign-in an access token comes from.
fn session(drawn: &Value) -> anyhow::Result<Session> {
    let token = drawn["access_token"].as_str().context("an access token")?;
    let claims = token.split('.').nth(1).context("a JSON Web Token")?;
    let claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims)?)?;
    Ok(claims["sid"].as_str().context("sid")?.parse()?)
}

/// A caller's token, of a sign-in if there is one.
fn token(hosts: &Hosts, user: usize, session: Option<Session>) -> String {
    let tenant = [TENANT, OTHER_TENANT][user % 2];
    let caller = hosts.emulators.caller().tenant(tenant);
    let caller = caller.user(&format!("{user:08}-0000-4000-8000-000000000000"));
    match session {
        Some(session) => caller.claim("sid", session.to_string()).mint(),
        None => caller.mint(),
    }
}
