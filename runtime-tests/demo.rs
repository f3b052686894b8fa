//! One token's whole life, over real HTTP, told in one line a step.
//!
//! A step that does not hold is an error that says what was expected and what was seen.

use std::fmt::Debug;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::app::{self, Answer, App};
use crate::emulators::{self, EVENT, Emulators, TENANT, Target, USER, key_name};
use crate::operator::Operator;
use crate::store::Store;

/// Another scope of the same resource than the default one, so that no cached access token answers.
const USER_READ: &str = "https://graph.microsoft.com/User.Read";
/// What apps ask for about the user, as it is told.
const OF_USER: &str = "/v1/users/{tenant}/{object-id}";
/// What is called of the API `graph`, and what its setting does not let be called.
const EVENTS: &str = "/call/graph/v1.0/me/calendar/events";
const MAIL: &str = "/call/graph/v1.0/me/messages";
/// An app that nothing is granted to.
const ANOTHER_APP: &str = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb";

/// Starts emulators and the app, walks through the story and stops them.
pub async fn run(out: &mut (impl Write + Send)) -> anyhow::Result<()> {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let options = app::Options::for_emulators(&emulators).set("refresh_after_seconds", "1");
    let app = App::start(options).await?;
    Story {
        emulators: &emulators,
        app: &app,
        out,
    }
    .tell()
    .await?;
    app.stop().await?;
    emulators.stop().await;
    Ok(())
}

struct Story<'a, W> {
    emulators: &'a Emulators,
    app: &'a App,
    out: &'a mut W,
}

impl<W: Write> Story<'_, W> {
    async fn tell(&mut self) -> anyhow::Result<()> {
        let first_key = self.enrol().await.context("enrol")?;
        self.nothing_readable_is_stored(&first_key)
            .context("store")?;
        self.draw().await.context("draw")?;
        self.call_for_the_user().await.context("call")?;
        let second_key = self.rotate().await.context("rotate")?;
        self.sweep(&second_key).await.context("sweep")?;
        self.token_was_replaced().await.context("replace")?;
        self.remove().await.context("remove")?;
        self.enrol_again().await.context("enrol again")?;
        self.draw_for_the_absent().await.context("job")?;
        self.call_for_the_absent()
            .await
            .context("call of the job")?;
        self.call_what_is_not_allowed()
            .await
            .context("no pattern")?;
        self.draw_without_a_grant().await.context("no grant")?;
        self.see_and_remove().await.context("admin")?;
        self.draw_for_nobody().await.context("job, at the end")
    }

    async fn enrol(&mut self) -> anyhow::Result<String> {
        let answer = self.call(Method::PUT, "/v1/me", None).await?;
        expect(
            "status of PUT /v1/me",
            StatusCode::CREATED,
            answer.status,
            &answer.text,
        )?;
        let key = text(&answer.json, "key_version")?;
        expect(
            "`status` of the user",
            "active",
            text(&answer.json, "status")?,
            &answer.text,
        )?;
        self.line(
            "enrol",
            &format!("PUT /v1/me: 201, active, sealed under key version {key}"),
        )?;
        Ok(key)
    }

    fn nothing_readable_is_stored(&mut self, key: &str) -> anyhow::Result<()> {
        let (name, record) = self.app.store().record()?;
        let (parts, header) = jwe(&record)?;
        expect("number of parts of the sealed token", 5, parts, &header)?;
        let expected =
            json!({ "alg": "dir", "enc": "A256GCM", "kid": format!("{}/{key}", key_name(TENANT)) });
        for name in ["alg", "enc", "kid"] {
            expect(
                &format!("`{name}` of the sealed token"),
                &expected[name],
                &header[name],
                &header,
            )?;
        }
        let searched = self.canary(&self.app.store())?;
        let size = record["sealed"].as_str().unwrap_or_default().len();
        let name = name.get(..12).unwrap_or(&name);
        self.line(
            "store",
            &format!("{name}… is {size} bytes of JWE; none of the {searched} tokens and keys so far is in any row"),
        )
    }

    async fn draw(&mut self) -> anyhow::Result<()> {
        let answer = self
            .call(Method::POST, "/v1/me/access-token", Some(json!({})))
            .await?;
        expect(
            "status of POST /v1/me/access-token",
            StatusCode::OK,
            answer.status,
            &answer.text,
        )?;
        self.is_of_the_user(&text(&answer.json, "access_token")?)
            .await?;
        self.line(
            "draw",
            &format!("POST /v1/me/access-token: 200; the downstream API sees user {USER}"),
        )
    }

    async fn call_for_the_user(&mut self) -> anyhow::Result<()> {
        let path = format!("/v1/me{EVENTS}");
        let answer = self.call(Method::GET, &path, None).await?;
        self.is_the_calendar(&answer)?;
        self.line(
            "call",
            &format!("GET {path}: 200, with \"{EVENT}\"; the access token went to the API alone"),
        )
    }

    async fn rotate(&mut self) -> anyhow::Result<String> {
        let operator = Operator::new(self.emulators)?;
        let words = ["key", "rotate", "--json", TENANT];
        let said = operator.run(self.emulators, &words).await?;
        ensure!(said.code == Some(0), "{said:?}");
        let version = text(&said.json()?["rotated"][0], "version")?;
        self.line(
            "rotate",
            &format!(
                "behalf key rotate {TENANT}: Key Vault has a new version of {}: {version}",
                key_name(TENANT)
            ),
        )?;
        Ok(version)
    }

    async fn sweep(&mut self, newest: &str) -> anyhow::Result<()> {
        // Due one second after the enrolment, give or take the spread; a sweep before that re-seals only.
        let deadline = Instant::now() + Duration::from_secs(20);
        let before = self.app.store().record()?.1["refreshed_at"].clone();
        loop {
            let answer = self
                .app
                .send(
                    Method::POST,
                    "/v1/sweep",
                    Some(&self.emulators.options().sweep_key),
                    None,
                )
                .await?;
            expect(
                "status of POST /v1/sweep",
                StatusCode::OK,
                answer.status,
                &answer.text,
            )?;
            let record = self.app.store().record()?.1;
            if answer.json["refreshed"] == 1 {
                expect(
                    "`key_version` of the record",
                    newest,
                    text(&record, "key_version")?,
                    &answer.text,
                )?;
                let kid = jwe(&record)?.1["kid"].clone();
                expect(
                    "`kid` of the sealed token",
                    json!(format!("{}/{newest}", key_name(TENANT))),
                    kid,
                    &answer.text,
                )?;
                ensure!(
                    record["refreshed_at"] != before,
                    "`refreshed_at` of the record is still {before}"
                );
                self.canary(&self.app.store())?;
                return self.line(
                    "sweep",
                    &format!("POST /v1/sweep: 200, refreshed 1, sealed under key version {newest}"),
                );
            }
            ensure!(
                Instant::now() < deadline,
                "expected a sweep to refresh the record within 20 s, the last one: {}",
                answer.text
            );
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    async fn token_was_replaced(&mut self) -> anyhow::Result<()> {
        let redeemed = |emulators: &Emulators| -> Vec<String> {
            emulators
                .journal()
                .into_iter()
                .filter_map(|entry| entry.redeemed)
                .collect()
        };
        let before = redeemed(self.emulators);
        let enrolled = self
            .emulators
            .journal()
            .into_iter()
            .find_map(|entry| entry.issued)
            .context("no token was issued")?;
        ensure!(
            before.iter().all(|token| *token == enrolled),
            "expected only {enrolled} to be redeemed so far, not {before:?}"
        );
        let answer = self
            .call(
                Method::POST,
                "/v1/me/access-token",
                Some(json!({ "scope": USER_READ })),
            )
            .await?;
        expect(
            "status of POST /v1/me/access-token",
            StatusCode::OK,
            answer.status,
            &answer.text,
        )?;
        let after = redeemed(self.emulators);
        let Some(new) = after.get(before.len()) else {
            bail!("expected Entra ID to see a refresh, it saw none");
        };
        ensure!(
            *new != enrolled,
            "expected another refresh token than {enrolled} to be redeemed"
        );
        self.line("replace", &format!("the next refresh redeemed token #{new}, no longer #{enrolled} (journal of Entra ID)"))
    }

    async fn remove(&mut self) -> anyhow::Result<()> {
        let answer = self.call(Method::DELETE, "/v1/me", None).await?;
        expect(
            "status of DELETE /v1/me",
            StatusCode::NO_CONTENT,
            answer.status,
            &answer.text,
        )?;
        let rows: Vec<_> = self.app.store().rows()?.into_keys().collect();
        expect("rows that are left", Vec::<String>::new(), rows, &"")?;
        self.line(
            "remove",
            "DELETE /v1/me: 204, nothing of the user is in the store",
        )?;
        let answer = self
            .call(Method::POST, "/v1/me/access-token", Some(json!({})))
            .await?;
        expect_problem(
            "status of POST /v1/me/access-token",
            StatusCode::NOT_FOUND,
            "not_enrolled",
            &answer,
        )?;
        self.line("draw", "POST /v1/me/access-token: 404, not_enrolled")
    }

    async fn enrol_again(&mut self) -> anyhow::Result<()> {
        let answer = self.call(Method::PUT, "/v1/me", None).await?;
        expect(
            "status of PUT /v1/me",
            StatusCode::CREATED,
            answer.status,
            &answer.text,
        )?;
        self.line("enrol", "PUT /v1/me: 201, and the user goes away")
    }

    async fn draw_for_the_absent(&mut self) -> anyhow::Result<()> {
        let answer = self.job(Method::POST, "/access-token").await?;
        expect(
            "status of the job's draw",
            StatusCode::OK,
            answer.status,
            &answer.text,
        )?;
        self.is_of_the_user(&text(&answer.json, "access_token")?)
            .await?;
        self.line(
            "job",
            &format!("POST {OF_USER}/access-token, with the job's own token: 200; the downstream API sees user {USER}"),
        )
    }

    async fn call_for_the_absent(&mut self) -> anyhow::Result<()> {
        let answer = self.job(Method::GET, EVENTS).await?;
        self.is_the_calendar(&answer)?;
        self.line(
            "call",
            &format!("GET {OF_USER}{EVENTS}, with the job's own token: 200, with \"{EVENT}\""),
        )
    }

    async fn call_what_is_not_allowed(&mut self) -> anyhow::Result<()> {
        let before = self.emulators.journal().len();
        let answer = self.job(Method::GET, MAIL).await?;
        expect_problem(
            "status of the call of what is not allowed",
            StatusCode::FORBIDDEN,
            "call_not_allowed",
            &answer,
        )?;
        let after = self.emulators.journal().len();
        expect("requests to anybody", before, after, &answer.text)?;
        self.line(
            "refuse",
            &format!("GET {OF_USER}{MAIL}, which no pattern of `apis` allows: 403, call_not_allowed, and nobody was asked"),
        )
    }

    async fn draw_without_a_grant(&mut self) -> anyhow::Result<()> {
        let another = self.emulators.caller().app(&["Behalf.Act"]);
        let another = another.claim("azp", ANOTHER_APP).mint();
        let answer = self.of_user(Method::POST, "/access-token", &another);
        let answer = answer.await?;
        expect_problem(
            "status of the draw of an app without a grant",
            StatusCode::FORBIDDEN,
            "not_granted",
            &answer,
        )?;
        self.line(
            "refuse",
            &format!("POST {OF_USER}/access-token, of an app that no rule of `grants` names: 403, not_granted"),
        )
    }

    async fn see_and_remove(&mut self) -> anyhow::Result<()> {
        let admin = self.emulators.caller().app(&["Behalf.Admin"]).mint();
        let answer = self.of_user(Method::GET, "", &admin).await?;
        expect(
            "status of the admin's GET",
            StatusCode::OK,
            answer.status,
            &answer.text,
        )?;
        let app = text(&answer.json, "enrolled_by")?;
        let front_end = &self.emulators.options().front_end_id;
        expect("`enrolled_by`", front_end, &app, &answer.text)?;
        let turn = text(&answer.json, "turn")?;
        expect("`turn`", "nobody", &*turn, &answer.text)?;
        let secrets = self.emulators.secrets();
        ensure!(
            !secrets.iter().any(|secret| answer.text.contains(secret)),
            "the answer holds a secret"
        );
        self.line(
            "admin",
            &format!("GET {OF_USER}: 200, active, enrolled by app {app}, no token"),
        )?;
        let answer = self.of_user(Method::DELETE, "", &admin).await?;
        expect(
            "status of the admin's DELETE",
            StatusCode::NO_CONTENT,
            answer.status,
            &answer.text,
        )?;
        let rows: Vec<_> = self.app.store().rows()?.into_keys().collect();
        expect("rows that are left", Vec::<String>::new(), rows, &"")?;
        self.line(
            "remove",
            &format!("DELETE {OF_USER}: 204, nothing of the user is in the store"),
        )
    }

    async fn draw_for_nobody(&mut self) -> anyhow::Result<()> {
        let answer = self.job(Method::POST, "/access-token").await?;
        expect_problem(
            "status of the job's draw",
            StatusCode::NOT_FOUND,
            "not_enrolled",
            &answer,
        )?;
        self.line(
            "job",
            &format!("POST {OF_USER}/access-token: 404, not_enrolled"),
        )
    }

    /// Calls the downstream API with an access token, and looks whom it sees.
    async fn is_of_the_user(&self, access_token: &str) -> anyhow::Result<()> {
        let url = format!("{}/v1.0/me", self.emulators.downstream_url());
        let request = reqwest::Client::new().get(url).bearer_auth(access_token);
        let me = Answer::read(request.send().await?).await?;
        expect(
            "status of the downstream API",
            StatusCode::OK,
            me.status,
            &me.text,
        )?;
        expect(
            "user that the downstream API saw",
            USER,
            text(&me.json, "id")?,
            &me.text,
        )
    }

    /// Whether an answer is the API's, for the user, and has no token in it.
    fn is_the_calendar(&self, answer: &Answer) -> anyhow::Result<()> {
        expect("status", StatusCode::OK, answer.status, &answer.text)?;
        let upstream = answer.header("behalf-upstream");
        expect("`Behalf-Upstream`", "graph", upstream, &answer.text)?;
        let event = text(&answer.json["value"][0], "subject")?;
        expect("the event", EVENT, &*event, &answer.text)?;
        let journal = self.emulators.journal();
        let last = journal.last().map(|entry| entry.target);
        expect(
            "the last one asked",
            Some(Target::Downstream),
            last,
            &answer.text,
        )?;
        let secrets = self.emulators.secrets();
        let all = format!("{:?} {}", answer.headers, answer.text);
        ensure!(
            !secrets.iter().any(|secret| all.contains(secret)),
            "the answer holds a secret"
        );
        Ok(())
    }

    /// As the background job, about the user.
    async fn job(&self, method: Method, path: &str) -> anyhow::Result<Answer> {
        let token = self.emulators.caller().app(&["Behalf.Act"]).mint();
        self.of_user(method, path, &token).await
    }

    /// With an app's own token, about the user.
    async fn of_user(&self, method: Method, path: &str, token: &str) -> anyhow::Result<Answer> {
        let path = format!("/v1/users/{TENANT}/{USER}{path}");
        self.app.send(method, &path, Some(token), None).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Answer> {
        self.app
            .send(
                method,
                path,
                Some(&self.emulators.caller().mint()),
                body.as_ref(),
            )
            .await
    }

    /// Looks for every secret in every stored value; returns how many were looked for.
    fn canary(&self, store: &Store) -> anyhow::Result<usize> {
        let secrets = self.emulators.secrets();
        for (key, value) in store.rows()? {
            let value = String::from_utf8_lossy(&value);
            ensure!(
                !secrets.iter().any(|secret| value.contains(secret)),
                "the value of {key} holds a secret"
            );
        }
        Ok(secrets.len())
    }

    fn line(&mut self, step: &str, what: &str) -> anyhow::Result<()> {
        writeln!(self.out, "{step:<9}{what}")?;
        Ok(self.out.flush()?)
    }
}

/// Number of parts, and the header, of a record's sealed token.
fn jwe(record: &Value) -> anyhow::Result<(usize, Value)> {
    let sealed = text(record, "sealed")?;
    let header = sealed.split('.').next().unwrap_or_default();
    let header = BASE64_URL_SAFE_NO_PAD
        .decode(header)
        .context("the sealed token is no JWE")?;
    Ok((sealed.split('.').count(), serde_json::from_slice(&header)?))
}

fn text(json: &Value, name: &str) -> anyhow::Result<String> {
    json[name]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("expected a text `{name}`, seen: {json}"))
}

/// A refusal, by its status and its code.
fn expect_problem(
    what: &str,
    status: StatusCode,
    code: &str,
    answer: &Answer,
) -> anyhow::Result<()> {
    expect(what, status, answer.status, &answer.text)?;
    expect("`code` of the answer", code, answer.code(), &answer.text)
}

#[expect(clippy::needless_pass_by_value, reason = "the calls read better")]
fn expect<E: PartialEq<S> + Debug, S: Debug>(
    what: &str,
    expected: E,
    seen: S,
    all: &impl std::fmt::Display,
) -> anyhow::Result<()> {
    ensure!(
        expected == seen,
        "{what}: expected {expected:?}, seen {seen:?}\n{all}"
    );
    Ok(())
}
