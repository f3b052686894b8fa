//! The cases of `runtime-tests/cases`: each file is one test, and `cases/README.md` says what can be in it.
//!
//! They run on the embedded host, or on Spin if `$SPIN_BIN` is set. Those with `cron` need the cron plugin there, and are
//! reported as ignored without it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use libtest_mimic::{Arguments, Trial};
use reqwest::Method;
use runtime_tests::app::{self, Answer, App, root};
use runtime_tests::emulators::{
    Emulators, Fault, OTHER_TENANT, OTHER_USER, Options, TENANT, Target, USER,
};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let plugin = std::env::var_os("SPIN_BIN").is_none_or(|spin| {
        let help = Command::new(spin).args(["trigger-cron", "--help"]).output();
        help.is_ok_and(|help| help.status.success())
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "toml"))
        .collect();
    files.sort();
    let trials = files
        .into_iter()
        .map(|file| {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&file).unwrap();
            // What is wrong with a file fails its test, and no other.
            let case = toml::from_str::<Case>(&text).map_err(|error| error.to_string());
            let on_schedule = case.as_ref().is_ok_and(|case| case.cron.is_some());
            let run = move || {
                let runtime = tokio::runtime::Runtime::new()?;
                runtime
                    .block_on(case?.run())
                    .map_err(|error| format!("{}: {error:#}", file.display()))?;
                Ok(())
            };
            Trial::test(name, run).with_ignored_flag(on_schedule && !plugin)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A case.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What it shows, in a sentence.
    #[serde(rename = "about")]
    _about: String,
    /// Runs what is on a schedule, at these times.
    cron: Option<String>,
    /// Prints the manifest without what is on a schedule, and runs that.
    #[serde(default)]
    no_cron: bool,
    /// Settings, besides those for the emulators.
    #[serde(default)]
    settings: BTreeMap<String, String>,
    /// Texts of the manifest and what stands in their place.
    #[serde(default)]
    manifest: Vec<(String, String)>,
    /// Graph permissions that users have consented to.
    consented: Option<Vec<String>>,
    /// How many apps run on the one store.
    #[serde(default = "one")]
    apps: usize,
    step: Vec<Step>,
}

/// One thing that happens, and what is expected then.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Step {
    /// Method and path of a request.
    request: Option<String>,
    /// Whose token: `user`, `other-user`, `other-tenant`, `sweep`, `expired`, `none`, or any text to be sent itself.
    bearer: String,
    /// Which of the apps is asked, from 0.
    app: usize,
    body: Option<String>,
    /// How many times the request is sent at once.
    times: usize,
    /// What each answer must have.
    status: u16,
    code: Option<String>,
    header: BTreeMap<String, String>,
    /// Members of each answer's body.
    json: BTreeMap<String, Value>,

    /// The next requests to an emulator fail.
    fault: Option<Fault>,
    /// Names of things to do: see [`Step::act`].
    act: Option<String>,
    /// A row of the store whose key begins so: removed, or replaced by a text.
    remove: Option<String>,
    replace: Option<(String, String)>,
    /// Settings that change; the app is started anew.
    restart: Option<BTreeMap<String, String>>,
    /// A text that a line of output comes to hold.
    output: Option<String>,

    /// How many keys of the store begin so, and values hold texts.
    store: BTreeMap<String, usize>,
    /// What has reached the emulators since the last look.
    journal: Option<Vec<Target>>,
}

impl Default for Step {
    fn default() -> Self {
        Self {
            request: None,
            bearer: "user".to_owned(),
            app: 0,
            body: None,
            times: 1,
            status: 200,
            code: None,
            header: BTreeMap::new(),
            json: BTreeMap::new(),
            fault: None,
            act: None,
            remove: None,
            replace: None,
            restart: None,
            output: None,
            store: BTreeMap::new(),
            journal: None,
        }
    }
}

fn one() -> usize {
    1
}

/// The world of a running case.
struct World {
    emulators: Emulators,
    options: app::Options,
    apps: Vec<App>,
    answers: Vec<String>,
    output: Vec<String>,
    _folder: TempDir,
}

impl Case {
    async fn run(self) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let mut emulated = Options::default();
        if let Some(consented) = self.consented {
            emulated.consented = consented;
        }
        let emulators = Emulators::start(emulated).await?;
        let mut options = app::Options::for_emulators(&emulators).state_dir(folder.path());
        options.cron = self.cron.is_some();
        options.settings.extend(self.settings);
        options.manifest = manifest(folder.path(), self.cron, self.no_cron, &self.manifest)?;
        let mut world = World {
            emulators,
            options,
            apps: Vec::new(),
            answers: Vec::new(),
            output: Vec::new(),
            _folder: folder,
        };
        for _ in 0..self.apps {
            world.apps.push(App::start(world.options.clone()).await?);
        }
        for (number, step) in self.step.into_iter().enumerate() {
            let number = number.saturating_add(1);
            step.take(&mut world)
                .await
                .with_context(|| format!("step {number}"))?;
        }
        world.end().await
    }
}

/// The manifest that the case runs on; none for the workspace's own.
fn manifest(
    folder: &Path,
    cron: Option<String>,
    no_cron: bool,
    changes: &[(String, String)],
) -> anyhow::Result<Option<PathBuf>> {
    if cron.is_none() && !no_cron && changes.is_empty() {
        return Ok(None);
    }
    let mut print = Command::new(root().join("scripts/manifest"));
    if no_cron {
        print.arg("--no-cron");
    }
    let printed = print.output()?;
    ensure!(printed.status.success(), "scripts/manifest fails");
    let mut text = String::from_utf8(printed.stdout)?;
    let every_5_minutes = r#"cron_expression = "0 */5 * * * *""#.to_owned();
    let schedule = cron.map(|cron| (every_5_minutes, format!("cron_expression = {cron:?}")));
    for (from, to) in schedule.iter().chain(changes) {
        ensure!(text.contains(from), "the manifest does not hold {from:?}");
        text = text.replace(from, to);
    }
    let file = folder.join("spin.toml");
    std::fs::write(&file, text)?;
    Ok(Some(file))
}

impl Step {
    async fn take(self, world: &mut World) -> anyhow::Result<()> {
        let skipped = world.apps[0].output().len();
        if let Some(fault) = self.fault.clone() {
            world.emulators.fault(fault);
        }
        if let Some(act) = &self.act {
            Self::act(world, act)?;
        }
        let store = world.apps[0].store();
        if let Some(prefix) = &self.remove {
            store.delete(&the_key(world, prefix)?)?;
        }
        if let Some((prefix, text)) = &self.replace {
            store.replace(&the_key(world, prefix)?, text.as_bytes())?;
        }
        if let Some(settings) = self.restart.clone() {
            world.options.settings.extend(settings);
            for app in world.apps.drain(..) {
                world.output.extend(app.stop().await?);
            }
            world.apps.push(App::start(world.options.clone()).await?);
        }
        if let Some(request) = &self.request {
            let answers = try_join_all((0..self.times).map(|_| self.send(world, request))).await?;
            for answer in &answers {
                self.check(answer)?;
                let issued = answer.status == 200 && request.ends_with("/access-token");
                if !issued {
                    world
                        .answers
                        .push(format!("{:?}\n{}", answer.headers, answer.text));
                }
            }
        }
        if let Some(text) = &self.output {
            // What was there before may be of another tick.
            world.apps[0].wait_for_output_after(skipped, text).await?;
        }
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
        }
        if self.journal.is_some() {
            world.emulators.clear_journal();
        }
        Ok(())
    }

    fn act(world: &World, act: &str) -> anyhow::Result<()> {
        let emulators = &world.emulators;
        match act {
            "make-due" => world.apps[0].store().make_due()?,
            "rotate-key" => drop(emulators.rotate_key(TENANT)?),
            "rotate-signing-keys" => emulators.rotate_signing_keys(),
            "revoke" => emulators.revoke(TENANT, USER),
            "disable-user" => emulators.set_user_enabled(TENANT, USER, false),
            "clear-journal" => emulators.clear_journal(),
            _ => bail!("there is no act {act:?}"),
        }
        Ok(())
    }

    async fn send(&self, world: &World, request: &str) -> anyhow::Result<Answer> {
        let (method, path) = request.split_once(' ').context("METHOD PATH")?;
        let app = world.apps.get(self.app).context("no such app")?;
        let mut request = app.request(Method::from_bytes(method.as_bytes())?, path);
        let caller = world.emulators.caller();
        let bearer = match self.bearer.as_str() {
            "user" => caller.mint(),
            "other-user" => caller.user(OTHER_USER).mint(),
            "other-tenant" => caller.tenant(OTHER_TENANT).mint(),
            "expired" => caller.claim("exp", 1_000_000_000).mint(),
            "sweep" => world.emulators.options().sweep_key.clone(),
            text => text.to_owned(),
        };
        if bearer != "none" {
            request = request.bearer_auth(bearer);
        }
        if let Some(body) = &self.body {
            request = request
                .header("content-type", "application/json")
                .body(body.clone());
        }
        Answer::read(request.send().await?).await
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
        for (name, value) in &self.header {
            ensure!(
                answer.header(name) == value,
                "expected {name}: {value}: {answer:?}"
            );
        }
        for (name, value) in &self.json {
            ensure!(
                answer.json[name] == *value,
                "expected {name}: {value}: {answer:?}"
            );
        }
        Ok(())
    }
}

/// The one key of the store that begins so.
fn the_key(world: &World, prefix: &str) -> anyhow::Result<String> {
    let keys = world.apps[0].store().keys(prefix)?;
    ensure!(keys.len() == 1, "{} keys begin with {prefix}", keys.len());
    Ok(keys[0].clone())
}

impl World {
    /// Stops everything, in order, and looks for secrets in all that left the app.
    async fn end(mut self) -> anyhow::Result<()> {
        let rows = self.apps[0].store().rows()?;
        for app in self.apps {
            self.output.extend(app.stop().await?);
        }
        let values = rows
            .iter()
            .map(|(key, value)| format!("{key} = {}", String::from_utf8_lossy(value)));
        let mut secrets = self.emulators.secrets();
        // From Entra ID's descriptions of errors, which name users (design §3).
        secrets.push("demo.user@contoso.example".to_owned());
        for place in self
            .output
            .iter()
            .cloned()
            .chain(self.answers)
            .chain(values)
        {
            ensure!(
                !secrets.iter().any(|secret| place.contains(secret)),
                "a secret is in: {place}"
            );
        }
        self.emulators.stop().await;
        Ok(())
    }
}
