//! What most cases need: emulators, the app on them, and an eye on everything that leaves the app.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::ensure;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{self, Answer, App};
use crate::emulators::{self, Emulators};
use crate::leaks;
use crate::store::Store;

/// The app on emulators of its own.
///
/// [`Scene::end`] belongs at the end of every case: it checks that the app still lives, and that no secret was in an
/// answer, in the output or in the store.
pub struct Scene {
    /// The emulators.
    pub emulators: Emulators,
    /// The app.
    pub app: App,
    answers: Mutex<Vec<String>>,
}

impl Scene {
    /// Starts both with the defaults.
    pub async fn start() -> anyhow::Result<Self> {
        Self::with(emulators::Options::default(), |options| options).await
    }

    /// Starts both. `adjust` changes the options of the app, which come filled in for the emulators.
    pub async fn with(
        emulators: emulators::Options,
        adjust: impl FnOnce(app::Options) -> app::Options,
    ) -> anyhow::Result<Self> {
        let emulators = Emulators::start(emulators).await?;
        let app = App::start(adjust(app::Options::for_emulators(&emulators))).await?;
        Ok(Self::of(emulators, app))
    }

    /// Puts the two together.
    #[must_use]
    pub fn of(emulators: Emulators, app: App) -> Self {
        Self {
            emulators,
            app,
            answers: Mutex::default(),
        }
    }

    /// Sends a request with a token of the caller's choice.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        bearer: Option<&str>,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let answer = self.app.send(method, path, bearer, body).await?;
        self.remember(&answer, path);
        Ok(answer)
    }

    /// Sends a request as the demo user.
    pub async fn call(&self, method: Method, path: &str) -> anyhow::Result<Answer> {
        self.send(method, path, Some(&self.emulators.caller().mint()), None)
            .await
    }

    /// Sweeps with the sweep key.
    pub async fn sweep(&self) -> anyhow::Result<Value> {
        let key = &self.emulators.options().sweep_key;
        let answer = self
            .send(Method::POST, "/v1/sweep", Some(key), None)
            .await?;
        ensure!(answer.status == StatusCode::OK, "{answer:?}");
        Ok(answer.json)
    }

    /// Enrols the demo user and returns the one record.
    pub async fn enrol(&self) -> anyhow::Result<Value> {
        let answer = self.call(Method::PUT, "/v1/me").await?;
        ensure!(answer.status == StatusCode::CREATED, "{answer:?}");
        Ok(self.store().record()?.1)
    }

    /// Draws an access token as the demo user and returns it.
    pub async fn draw(&self) -> anyhow::Result<String> {
        let answer = self.call(Method::POST, "/v1/me/access-token").await?;
        ensure!(answer.status == StatusCode::OK, "{answer:?}");
        Ok(answer.json["access_token"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    /// What the app stored.
    #[must_use]
    pub fn store(&self) -> Store {
        self.app.store()
    }

    /// Every row.
    pub fn rows(&self) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        self.store().rows()
    }

    /// Checks that a request was refused as it should be, and without an effect on the store since `before`.
    pub fn refused(
        &self,
        answer: &Answer,
        status: u16,
        code: &str,
        before: &BTreeMap<String, Vec<u8>>,
    ) -> anyhow::Result<()> {
        ensure!(
            (answer.status.as_u16(), answer.code()) == (status, code),
            "expected {status} {code}: {answer:?}"
        );
        ensure!(
            answer.header("content-type") == "application/problem+json",
            "{answer:?}"
        );
        ensure!(answer.header("cache-control") == "no-store", "{answer:?}");
        ensure!(answer.json["status"] == json!(status), "{answer:?}");
        ensure!(
            answer.json["title"].is_string() && answer.json["detail"].is_string(),
            "{answer:?}"
        );
        ensure!(self.rows()? == *before, "{code}: the store was changed");
        Ok(())
    }

    /// Keeps an answer for the search at the end, without the access token that it may be there to hold.
    pub fn remember(&self, answer: &Answer, path: &str) {
        let place = leaks::place_of(answer, path);
        self.answers.lock().unwrap().push(place);
    }

    /// The last checks. Returns the app's output.
    pub async fn end(self) -> anyhow::Result<Vec<String>> {
        let alive = self.app.send(Method::GET, "/healthz", None, None).await?;
        ensure!(
            alive.status == StatusCode::OK,
            "the app is not well: {alive:?}"
        );
        let rows = self.store().all_rows()?;
        let output = self.app.stop().await?;
        let answers = self.answers.into_inner()?;
        let values = rows
            .iter()
            .map(|(key, value)| format!("{key} = {}", String::from_utf8_lossy(value)));
        let places = output.iter().cloned().chain(answers).chain(values);
        leaks::none_in(&self.emulators, places)?;
        self.emulators.stop().await;
        Ok(output)
    }
}
