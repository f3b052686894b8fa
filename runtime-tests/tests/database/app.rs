//! The app on a database of a test's own, and what has to hold whatever is wrong with that.

use std::process::Command;
use std::sync::Mutex;

use anyhow::ensure;
use reqwest::Method;
use runtime_tests::app::{self, Answer, App, Options};
use runtime_tests::emulators::{self, Emulators};
use runtime_tests::leaks;
use runtime_tests::postgres::Postgres;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) type Result<T = ()> = anyhow::Result<T>;

pub(crate) const DATABASE: &str = "behalf";
pub(crate) const ROLE: &str = "behalf_app";
pub(crate) const PASSWORD: &str = "a canary of a password";

/// A server with all that the app needs.
pub(crate) fn prepared(settings: &[&str]) -> Result<Postgres> {
    let postgres = Postgres::start_with(settings)?;
    postgres.create_role(ROLE, PASSWORD)?;
    postgres.create_database(DATABASE)?;
    apply(&postgres, &["--role", ROLE])?;
    Ok(postgres)
}

/// `behalf schema apply`, as the superuser.
pub(crate) fn apply(postgres: &Postgres, words: &[&str]) -> Result {
    let applied = Command::new(app::behalf()?)
        .args([
            "schema",
            "apply",
            "--database",
            &postgres.superuser(DATABASE),
        ])
        .args(words)
        .output()?;
    ensure!(applied.status.success(), "{applied:?}");
    Ok(())
}

/// The app on emulators of its own.
pub(crate) struct Scene {
    emulators: Emulators,
    app: App,
    options: Options,
    answers: Mutex<Vec<String>>,
    _folder: TempDir,
}

impl Scene {
    /// Starts both, with these settings besides those of the database.
    pub(crate) async fn start(postgres: &Postgres, settings: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = app::postgres_manifest(folder.path())?;
        let emulators = Emulators::start(emulators::Options::default()).await?;
        // The same is asked again and again here.
        emulators.refuse_loops(false);
        let options = Options {
            manifest: Some(file),
            embedded: Some(Vec::new()),
            ..Options::for_emulators(&emulators)
        };
        let options = options
            .set("postgres_host", postgres.host())
            .set("postgres_port", &postgres.port().to_string())
            .set("postgres_database", DATABASE)
            .set("postgres_user", ROLE)
            .set("postgres_password", PASSWORD);
        let options = with(options, settings);
        Ok(Self {
            app: App::start(options.clone()).await?,
            options,
            emulators,
            answers: Mutex::default(),
            _folder: folder,
        })
    }

    /// Ends the app, and starts it with some settings changed.
    pub(crate) async fn again(self, settings: &[(&str, &str)]) -> Result<Self> {
        let options = with(self.options, settings);
        let output = self.app.stop().await?;
        let mut answers = self.answers.into_inner().unwrap();
        answers.extend(output);
        Ok(Self {
            app: App::start(options.clone()).await?,
            options,
            answers: Mutex::new(answers),
            ..self
        })
    }

    /// A request of a user.
    pub(crate) async fn send(&self, user: u32, method: Method, path: &str) -> Result<Answer> {
        let user = format!("{user:08}-0000-4000-8000-000000000000");
        let token = self.emulators.caller().user(&user).mint();
        let answer = self.app.send(method, path, Some(&token), None).await?;
        let place = leaks::place_of(&answer, path);
        self.answers.lock().unwrap().push(place);
        Ok(answer)
    }

    pub(crate) async fn enrol(&self, user: u32) -> Result<Answer> {
        self.send(user, Method::PUT, "/v1/me").await
    }

    pub(crate) async fn draw(&self, user: u32) -> Result {
        let drawn = self.send(user, Method::POST, "/v1/me/access-token").await?;
        ensure!(drawn.status == 200, "user {user}: {drawn:?}");
        Ok(())
    }

    /// A probe.
    pub(crate) async fn probe(&self, path: &str) -> Result<Answer> {
        self.app.send(Method::GET, path, None, None).await
    }

    /// What a sweep says.
    pub(crate) async fn sweep(&self) -> Result<Value> {
        let key = &self.emulators.options().sweep_key;
        let swept = self.app.send(Method::POST, "/v1/sweep", Some(key), None);
        let swept = swept.await?;
        ensure!(swept.status == 200, "{swept:?}");
        Ok(swept.json)
    }

    /// A line of the log has this word.
    pub(crate) async fn says(&self, before: usize, word: &str) -> Result {
        let line = |line: &str| line.contains(word).then_some(());
        self.app.wait_for_line_after(before, line).await
    }

    /// An enrolment fails, and a line of the log has all these words.
    pub(crate) async fn fails(&self, words: &[&str]) -> Result {
        let before = self.output().len();
        let answer = self.enrol(0).await?;
        self.is_told(&answer, before, words).await
    }

    /// The caller is told to come again, and the operator why, behind so many lines of the log.
    pub(crate) async fn is_told(&self, answer: &Answer, before: usize, words: &[&str]) -> Result {
        ensure!(
            (answer.status.as_u16(), answer.code()) == (503, "store_unavailable"),
            "{words:?}: {answer:?}"
        );
        ensure!(!answer.header("retry-after").is_empty(), "{answer:?}");
        ensure!(!answer.text.contains("postgres"), "{answer:?}");
        self.told(before, words).await
    }

    /// A line of the log that says why storage failed has all these words.
    pub(crate) async fn told(&self, before: usize, words: &[&str]) -> Result {
        let found = self
            .app
            .wait_for_line_after(before, |line| {
                line.contains("store_failed").then(|| line.to_owned())
            })
            .await?;
        ensure!(
            words.iter().all(|word| found.contains(word)),
            "{words:?}: {found}"
        );
        Ok(())
    }

    /// An enrolment and a draw work.
    pub(crate) async fn is_well(&self) -> Result {
        let before = self.output().len();
        let answer = self.enrol(0).await?;
        ensure!(
            answer.status.is_success(),
            "{answer:?}\n{}",
            self.output()[before..].join("\n")
        );
        self.draw(0).await
    }

    /// What the app has said.
    pub(crate) fn output(&self) -> Vec<String> {
        self.app.output()
    }

    /// Ends it, and looks for secrets in all that it has said: no password is there, nor one of these.
    pub(crate) async fn end(self, passwords: &[&str]) -> Result {
        let output = self.app.stop().await?;
        let answers = self.answers.into_inner().unwrap();
        for place in output.iter().chain(&answers) {
            for password in passwords.iter().chain(&[PASSWORD]) {
                ensure!(!place.contains(password), "{place}");
            }
        }
        leaks::none_in(&self.emulators, output.into_iter().chain(answers))?;
        self.emulators.stop().await;
        Ok(())
    }
}

fn with(options: Options, settings: &[(&str, &str)]) -> Options {
    let settings = settings.iter();
    settings.fold(options, |options, (name, value)| options.set(name, value))
}
