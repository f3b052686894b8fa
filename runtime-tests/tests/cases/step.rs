//! A step of a case: what it can say, and how it is done.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::iter::repeat_n;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::future::{try_join, try_join_all};
use runtime_tests::app::{Answer, App, is_on_spin};
use runtime_tests::emulators::{Emulators, Fault, TENANT, Target, USER, key_name};
use runtime_tests::leaks;
use runtime_tests::store::Store;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::World;
use crate::lines::{self, is_like};
use crate::request::{Bearer, Body, now, send};

/// One thing that happens, and what is expected then. What is a list here can be written as one thing alone.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Step {
    /// Methods and paths of requests: each is sent with each of the bearers, bodies and faults.
    #[serde(deserialize_with = "one_or_many")]
    request: Vec<String>,
    #[serde(deserialize_with = "one_or_many")]
    bearer: Vec<Bearer>,
    #[serde(deserialize_with = "one_or_many")]
    body: Vec<Body>,
    /// Headers that each request has besides.
    request_header: BTreeMap<String, String>,
    /// The next requests to an emulator fail.
    #[serde(deserialize_with = "one_or_many")]
    fault: Vec<Fault>,
    /// Which of the apps is asked, from 0.
    app: usize,
    /// How many times the request is sent at once.
    times: usize,
    /// How many times all requests are sent, one after another.
    again: usize,
    /// Method and path of what the same caller sends again and again, half a second apart, until the answers are there.
    meanwhile: Option<String>,
    /// Another process holds the store's lock meanwhile.
    locked: bool,
    /// The user enrols again before each fault: what was drawn or refused before is of an enrolment that is over.
    anew: bool,

    /// What each answer must have.
    status: u16,
    pub(crate) code: Option<String>,
    /// A text of a problem's `detail`.
    detail: Option<String>,
    header: BTreeMap<String, String>,
    /// Headers that no answer has.
    #[serde(deserialize_with = "one_or_many")]
    no_header: Vec<String>,
    /// What is refused is written down, of the one user.
    noted: bool,
    /// Members of each answer's body.
    json: BTreeMap<String, Value>,
    /// Each answer's access token, beside the one that was drawn last.
    access_token: Option<Likeness>,

    /// Names of things to do: see [`Step::act`].
    act: Option<String>,
    /// Entra ID refuses the user with this AADSTS number from now on; 0: no more.
    refuse: Option<u32>,
    /// Changes of the tenant's key in Key Vault.
    key: Option<Key>,
    /// Changes of the one row of the store whose key begins so: removed, replaced by a text, or a member of its JSON set.
    remove: Option<String>,
    replace: Option<(String, String)>,
    edit: Option<(String, String, Value)>,
    /// The two rows whose keys begin so exchange their values.
    swap: Option<String>,
    /// A new row.
    write: Option<(String, String)>,
    /// Settings that change; the app is started anew.
    restart: Option<BTreeMap<String, String>>,
    /// Texts: some line of output comes to hold each.
    #[serde(deserialize_with = "one_or_many")]
    output: Vec<String>,
    /// Texts that no line of output holds since the step began.
    #[serde(deserialize_with = "one_or_many")]
    no_output: Vec<String>,
    /// Members of lines of the log: some line comes to have each of these.
    #[serde(deserialize_with = "one_or_many")]
    log: Vec<BTreeMap<String, Value>>,
    /// Which emulators have seen the correlation id of each of those lines since the last look.
    correlated: Option<BTreeSet<Target>>,

    /// How many keys of the store begin so.
    store: BTreeMap<String, usize>,
    /// What has reached the emulators since the last look.
    journal: Option<Vec<Target>>,
}

impl Default for Step {
    fn default() -> Self {
        Self {
            request: Vec::new(),
            bearer: vec![Bearer::Named("user".to_owned())],
            body: vec![Body::Text(String::new())],
            request_header: BTreeMap::new(),
            fault: Vec::new(),
            app: 0,
            times: 1,
            again: 1,
            meanwhile: None,
            locked: false,
            anew: false,
            status: 200,
            code: None,
            detail: None,
            header: BTreeMap::new(),
            no_header: Vec::new(),
            noted: false,
            json: BTreeMap::new(),
            access_token: None,
            act: None,
            refuse: None,
            key: None,
            remove: None,
            replace: None,
            edit: None,
            swap: None,
            write: None,
            restart: None,
            output: Vec::new(),
            no_output: Vec::new(),
            log: Vec::new(),
            correlated: None,
            store: BTreeMap::new(),
            journal: None,
        }
    }
}

/// Whether an access token is the one that was drawn last, and not for longer, or another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Likeness {
    Same,
    Another,
}

/// Changes of the newest version of the tenant's key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    /// Makes a version of this value the newest.
    value: Option<String>,
    enabled: Option<bool>,
    /// In seconds from now.
    nbf: Option<i64>,
    exp: Option<i64>,
}

/// A list, or one thing alone.
fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let values = match toml::Value::deserialize(deserializer)? {
        toml::Value::Array(values) => values,
        value => vec![value],
    };
    let things = values.into_iter().map(toml::Value::try_into);
    things.collect::<Result<_, _>>().map_err(D::Error::custom)
}

impl Step {
    pub(crate) async fn take(self, world: &mut World) -> anyhow::Result<()> {
        // What is there already may be of another tick.
        let mut skipped = world.apps[0].output().len();
        if let Some(act) = &self.act {
            Self::act(world, act)?;
        }
        if let Some(code) = self.refuse {
            let code = (code > 0).then_some(code);
            world.emulators.refuse(TENANT, USER, code);
        }
        if let Some(key) = &self.key {
            key.change(&world.emulators)?;
        }
        self.change_rows(world)?;
        if let Some(settings) = self.restart.clone() {
            world.options.settings.extend(settings);
            for app in world.apps.drain(..) {
                world.output.extend(app.stop().await?);
            }
            world.apps.push(App::start(world.options.clone()).await?);
            skipped = 0;
        }
        let answered = self.ask(world).await?;
        let app = &world.apps[0];
        for text in &self.output {
            app.wait_for_output_after(skipped, text).await?;
        }
        for members in &self.log {
            let line = lines::wait_for(app, skipped, members).await?;
            self.check_line(world, &line, &answered)?;
        }
        if !self.no_output.is_empty() && !is_on_spin() {
            // The last line of a request is the embedded host's own.
            for id in &answered {
                let last = format!("request_id={id}");
                app.wait_for_output_after(skipped, &last).await?;
            }
        }
        for text in &self.no_output {
            let output = app.output();
            let found = output.iter().skip(skipped).find(|it| it.contains(text));
            ensure!(found.is_none(), "{found:?}");
        }
        world.emulators.clear_faults();
        for (prefix, count) in &self.store {
            let found = world.apps[0].store().keys(prefix)?.len();
            ensure!(found == *count, "{found} keys begin with {prefix}");
        }
        if let Some(expected) = &self.journal {
            let seen: Vec<_> = world
                .emulators
                .journal()
                .iter()
                .map(|it| it.target)
                .collect();
            ensure!(seen == *expected, "the emulators have seen {seen:?}");
            world.emulators.clear_journal();
        }
        Ok(())
    }

    fn act(world: &World, act: &str) -> anyhow::Result<()> {
        let emulators = &world.emulators;
        match act {
            "make-due" => world.apps[0].store().make_due()?,
            "rotate-key" => drop(emulators.rotate_key(TENANT)?),
            "delete-key" => emulators.delete_secret(&key_name(TENANT))?,
            "recover-key" => emulators.recover_secret(&key_name(TENANT))?,
            "rotate-signing-keys" => emulators.rotate_signing_keys(),
            "revoke" => emulators.revoke(TENANT, USER),
            "disable-user" => emulators.set_user_enabled(TENANT, USER, false),
            "clear-journal" => emulators.clear_journal(),
            "five-minutes-pass" => emulators.pass(Duration::from_mins(5)),
            _ => bail!("there is no act {act:?}"),
        }
        Ok(())
    }

    fn change_rows(&self, world: &World) -> anyhow::Result<()> {
        let store = world.apps[0].store();
        if let Some(prefix) = &self.remove {
            store.delete(&the_key(&store, prefix)?)?;
        }
        if let Some((prefix, text)) = &self.replace {
            store.replace(&the_key(&store, prefix)?, text.as_bytes())?;
        }
        if let Some((prefix, member, value)) = &self.edit {
            let key = the_key(&store, prefix)?;
            let mut json: Value = serde_json::from_slice(&store.rows()?[&key])?;
            json[member] = value.clone();
            store.replace(&key, json.to_string().as_bytes())?;
        }
        if let Some(prefix) = &self.swap {
            let rows = store.rows()?;
            let mut found = rows.iter().filter(|(key, _)| key.starts_with(prefix));
            let (Some(one), Some(other), None) = (found.next(), found.next(), found.next()) else {
                bail!("not two keys begin with {prefix}");
            };
            store.replace(one.0, other.1)?;
            store.replace(other.0, one.1)?;
        }
        if let Some((key, text)) = &self.write {
            store.insert(key, text.as_bytes())?;
        }
        Ok(())
    }

    /// Sends every request with every bearer, body and fault, and checks each answer.
    async fn ask(&self, world: &mut World) -> anyhow::Result<BTreeSet<String>> {
        ensure!(
            self.fault.is_empty() || !self.request.is_empty(),
            "a fault without a request"
        );
        let faults: Vec<_> = self.fault.iter().map(Some).collect();
        let faults = if faults.is_empty() {
            vec![None]
        } else {
            faults
        };
        let mut answered = BTreeSet::new();
        for fault in faults {
            if self.anew {
                self.enrol_anew(world).await?;
            }
            let store = world.apps[0].store();
            let before = store.rows()?;
            let lock = self.locked.then(|| store.lock()).transpose()?;
            for request in repeat_n(&self.request, self.again).flatten() {
                for bearer in &self.bearer {
                    for body in &self.body {
                        world.emulators.clear_faults();
                        if let Some(fault) = fault {
                            world.emulators.fault(fault.clone());
                        }
                        let ids = self.ask_one(world, request, bearer, body);
                        let context = || format!("{request}, {bearer:?}, {body:?}, {fault:?}");
                        answered.extend(ids.await.with_context(context)?);
                        let left = world.emulators.faults_left();
                        ensure!(
                            fault.is_none_or(|fault| left < fault.count),
                            "{request} does not meet {fault:?}"
                        );
                    }
                }
            }
            drop(lock);
            // A refusal has no effect but that it may be noted.
            if self.code.is_some() && self.meanwhile.is_none() {
                let is_changed = store.rows()? != before;
                ensure!(
                    is_changed == self.noted,
                    "the store was {}changed: {fault:?}",
                    if is_changed { "" } else { "not " }
                );
            }
        }
        Ok(answered)
    }

    async fn enrol_anew(&self, world: &World) -> anyhow::Result<()> {
        world.emulators.clear_faults();
        let token = world.emulators.caller().mint();
        let app = world.apps.get(self.app).context("no such app")?;
        let nothing = Body::Text(String::new());
        let answer = send(app, "PUT /v1/me", Some(&token), &BTreeMap::new(), &nothing).await?;
        ensure!(answer.status == 200, "no enrolment anew: {answer:?}");
        Ok(())
    }

    async fn ask_one(
        &self,
        world: &mut World,
        request: &str,
        bearer: &Bearer,
        body: &Body,
    ) -> anyhow::Result<Vec<String>> {
        let app = world.apps.get(self.app).context("no such app")?;
        if request == "POST /v1/sweep" {
            app.store().pass_a_minute()?;
        }
        let token = bearer.token(&world.emulators);
        let token = token.as_deref();
        let headers = &self.request_header;
        let answers =
            try_join_all((0..self.times).map(|_| send(app, request, token, headers, body)));
        let (answers, others) = match &self.meanwhile {
            None => (answers.await?, Vec::new()),
            Some(other) => {
                let nothing = Body::Text(String::new());
                let is_over = Cell::new(false);
                let answers = async {
                    let answers = answers.await;
                    is_over.set(true);
                    answers
                };
                let others = async {
                    let mut others = Vec::new();
                    while !is_over.get() {
                        others.push(send(app, other, token, headers, &nothing).await?);
                        // Often, and yet no loop to Entra ID.
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                    Ok(others)
                };
                try_join(answers, others).await?
            }
        };
        for answer in &answers {
            self.check(answer)?;
            self.check_access_token(world, answer)?;
        }
        let places = answers
            .iter()
            .map(|answer| leaks::place_of(answer, request));
        world.answers.extend(places);
        let other = self.meanwhile.as_deref().unwrap_or_default();
        let places = others.iter().map(|answer| leaks::place_of(answer, other));
        world.answers.extend(places);
        let ids = answers.iter().map(|answer| answer.header("x-request-id"));
        Ok(ids.map(str::to_owned).collect())
    }

    /// Compares an access token with the one that was drawn last, and is that then.
    fn check_access_token(&self, world: &mut World, answer: &Answer) -> anyhow::Result<()> {
        let Some(token) = answer.json["access_token"].as_str() else {
            ensure!(self.access_token.is_none(), "no access token: {answer:?}");
            return Ok(());
        };
        let left = answer.json["expires_in"].as_u64().context("expires_in")?;
        let now = (token.to_owned(), left);
        if let Some(expected) = self.access_token {
            let last = world.drawn.as_ref().context("none was drawn before")?;
            let found = if last.0 == now.0 {
                ensure!(left <= last.1, "{left} s, and {} s before", last.1);
                Likeness::Same
            } else {
                Likeness::Another
            };
            ensure!(found == expected, "the access token is {found:?}");
        }
        world.drawn = Some(now);
        Ok(())
    }

    /// Whether a line of the log is about one of the requests, and who else has seen its correlation id.
    fn check_line(
        &self,
        world: &World,
        line: &Value,
        answered: &BTreeSet<String>,
    ) -> anyhow::Result<()> {
        if let Some(id) = line["request_id"].as_str() {
            ensure!(answered.contains(id), "{line} is of none of {answered:?}");
        }
        let Some(expected) = &self.correlated else {
            return Ok(());
        };
        let journal = world.emulators.journal();
        let id = line["correlation_id"].as_str();
        let seen = journal
            .iter()
            .filter(|it| it.correlation_id.as_deref() == id);
        let seen: BTreeSet<_> = seen.map(|entry| entry.target).collect();
        ensure!(
            id.is_some() && seen == *expected,
            "{seen:?} have seen the id of {line}"
        );
        Ok(())
    }

    fn check(&self, answer: &Answer) -> anyhow::Result<()> {
        ensure!(
            answer.status == self.status,
            "expected {}: {answer:?}",
            self.status
        );
        if let Some(code) = &self.code {
            ensure!(answer.code() == code, "expected {code}: {answer:?}");
            ensure!(
                answer.header("content-type") == "application/problem+json"
                    && answer.header("cache-control") == "no-store"
                    && answer.json["status"] == self.status
                    && answer.json["title"].is_string()
                    && answer.json["detail"].is_string(),
                "no problem of this app: {answer:?}"
            );
        }
        if let Some(detail) = &self.detail {
            let found = answer.json["detail"].as_str().unwrap_or_default();
            ensure!(found.contains(detail), "expected {detail}: {answer:?}");
        }
        for (name, value) in &self.header {
            let found = answer.header(name);
            let is_number = value == "<number>" && found.parse::<u64>().is_ok();
            ensure!(
                is_number || found == value,
                "expected {name}: {value}: {answer:?}"
            );
        }
        for name in &self.no_header {
            ensure!(!answer.headers.contains_key(name), "{name}: {answer:?}");
        }
        for (name, value) in &self.json {
            ensure!(
                is_like(&answer.json[name], value),
                "expected {name}: {value}: {answer:?}"
            );
        }
        Ok(())
    }
}

impl Key {
    fn change(&self, emulators: &Emulators) -> anyhow::Result<()> {
        let name = key_name(TENANT);
        if let Some(value) = &self.value {
            emulators.put_secret(&name, value)?;
        }
        if let Some(enabled) = self.enabled {
            emulators.set_secret_enabled(&name, None, enabled)?;
        }
        let [nbf, exp] = [self.nbf, self.exp].map(|seconds| Some(now() + seconds?));
        emulators.set_secret_validity(&name, nbf, exp)?;
        Ok(())
    }
}

/// The one key of the store that begins so.
fn the_key(store: &Store, prefix: &str) -> anyhow::Result<String> {
    let keys = store.keys(prefix)?;
    ensure!(keys.len() == 1, "{} keys begin with {prefix}", keys.len());
    Ok(keys[0].clone())
}
