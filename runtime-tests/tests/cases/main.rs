//! The cases of `runtime-tests/cases`: each file is one test, and `cases/README.md` says what can be in it.
//!
//! They run on the embedded host, or on Spin if `$SPIN_BIN` is set. Those with `cron` need the cron plugin there, and are
//! reported as ignored without it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

mod codes;
mod lines;
mod request;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Trial};
use runtime_tests::app::{self, App, root};
use runtime_tests::emulators::{Emulators, Options};
use runtime_tests::leaks;
use runtime_tests::redis::Redis;
use runtime_tests::store::tables::Tables;
use serde::Deserialize;
use tempfile::TempDir;

use crate::codes::every_code_has_a_case;
use crate::step::Step;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // As of other tests.
    let threads = std::env::var("RUST_TEST_THREADS").ok();
    let threads = threads.and_then(|it| it.parse().ok());
    arguments.test_threads = arguments.test_threads.or(threads);
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
    let mut met = BTreeSet::new();
    let mut trials = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        // What is wrong with a file fails its test, and no other.
        let read = || toml::from_str::<Case>(&text).map_err(|error| error.to_string());
        let case = read();
        let on_schedule = case.as_ref().is_ok_and(|case| case.cron.is_some());
        let trial = |name: String, case: Result<Case, String>, kept: Kept| {
            let file = file.clone();
            let run = move || {
                let runtime = tokio::runtime::Runtime::new()?;
                runtime
                    .block_on(case?.run(kept))
                    .map_err(|error| format!("{}: {error:#}", file.display()))?;
                Ok(())
            };
            Trial::test(name, run).with_ignored_flag(on_schedule && !plugin)
        };
        if let Ok(case) = &case {
            met.extend(case.step.iter().filter_map(|step| step.code.clone()));
            if case.on_redis {
                trials.push(trial(format!("{name}, on Redis"), read(), Kept::Redis));
            }
            if case.on_key_value_alone.is_none() {
                trials.push(trial(
                    format!("{name}, on PostgreSQL"),
                    read(),
                    Kept::Postgres,
                ));
            }
        }
        trials.push(trial(name, case, Kept::File));
    }
    trials.push(Trial::test("every code has a case", move || {
        Ok(every_code_has_a_case(met)?)
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A case.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "words of a file")]
struct Case {
    /// What it shows, in a sentence.
    #[serde(rename = "about")]
    _about: String,
    /// Runs once more, with its store in Redis.
    #[serde(default)]
    on_redis: bool,
    /// Why it does not run on PostgreSQL: it is about something that there is not there.
    on_key_value_alone: Option<String>,
    /// Runs what is on a schedule, at these times.
    cron: Option<String>,
    /// Prints the manifest without what is on a schedule, and runs that.
    #[serde(default)]
    no_cron: bool,
    /// Settings, besides those for the emulators.
    #[serde(default)]
    settings: BTreeMap<String, String>,
    /// How the app proves who it is, if not by its client secret.
    credential: Option<String>,
    /// Texts of the manifest and what stands in their place.
    #[serde(default)]
    manifest: Vec<(String, String)>,
    /// Runs one instance, however busy the machine is; on Spin, nearly always.
    #[serde(default)]
    one_instance: bool,
    /// Graph permissions that users have consented to.
    consented: Option<Vec<String>>,
    /// Tokens carry all of them, not only those asked for.
    #[serde(default)]
    over_grant: bool,
    /// Entra ID is to take requests for a loop (AADSTS50196), which fails every other case.
    #[serde(default)]
    provokes_loop: bool,
    /// How many apps run on the one store.
    #[serde(default = "one")]
    apps: usize,
    step: Vec<Step>,
}

/// Where a case keeps records.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    File,
    Redis,
    Postgres,
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
    /// The access token that was drawn last, and its `expires_in`.
    drawn: Option<(String, u64)>,
    output: Vec<String>,
    _folder: TempDir,
    _redis: Option<Redis>,
}

impl Case {
    async fn run(self, kept: Kept) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let mut emulated = Options {
            over_grant: self.over_grant,
            provokes_loop: self.provokes_loop,
            ..Options::default()
        };
        if let Some(consented) = self.consented {
            emulated.consented = consented;
        }
        let emulators = Emulators::start(emulated).await?;
        let mut options = app::Options::for_emulators(&emulators).state_dir(folder.path());
        // Without what is on a schedule, all components are for HTTP.
        options.cron = self.cron.is_some() || self.no_cron;
        if self.one_instance {
            options = options.one_instance();
        }
        if let Some(kind) = self.credential {
            options.settings.extend(emulators.credential(&kind));
        }
        let downstream = emulators.downstream_url();
        let settings = self.settings.into_iter();
        options.settings.extend(
            settings.map(|(name, value)| (name, value.replace("{downstream}", &downstream))),
        );
        options.manifest = manifest(folder.path(), self.cron, self.no_cron, &self.manifest, kept)?;
        let redis = (kept == Kept::Redis).then(Redis::start).transpose()?;
        options.redis = redis.as_ref().map(Redis::url);
        let tables = (kept == Kept::Postgres).then(Tables::create);
        options.tables = tables.transpose()?;
        let mut world = World {
            emulators,
            options,
            apps: Vec::new(),
            answers: Vec::new(),
            drawn: None,
            output: Vec::new(),
            _folder: folder,
            _redis: redis,
        };
        for _ in 0..self.apps {
            world.apps.push(App::start(world.options.clone()).await?);
        }
        for (number, step) in self.step.into_iter().enumerate() {
            let number = number.saturating_add(1);
            step.take(&mut world).await.with_context(|| {
                let output = world.apps.first().map_or_else(Vec::new, App::output);
                let last = &output[output.len().saturating_sub(20)..];
                format!("step {number}; the app says:\n{}\n", last.join("\n"))
            })?;
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
    kept: Kept,
) -> anyhow::Result<Option<PathBuf>> {
    let is_in_postgres = kept == Kept::Postgres;
    if cron.is_none() && !no_cron && changes.is_empty() && !is_in_postgres {
        return Ok(None);
    }
    let mut print = Command::new(root().join("scripts/manifest"));
    if no_cron {
        print.arg("--no-cron");
    }
    if is_in_postgres {
        print.args(["--ledger", "postgres"]);
    }
    let printed = print.output()?;
    ensure!(printed.status.success(), "scripts/manifest fails");
    let mut text = String::from_utf8(printed.stdout)?;
    let every_5_minutes = r#"cron_expression = "0 */5 * * * *""#.to_owned();
    let schedule = cron.map(|cron| (every_5_minutes, format!("cron_expression = {cron:?}")));
    for (from, to) in schedule.iter().chain(changes) {
        ensure!(text.contains(from), "the manifest does not hold {from:?}");
        let to = to.replace("{root}", &root().display().to_string());
        text = text.replace(from, &to);
    }
    let file = folder.join("spin.toml");
    std::fs::write(&file, text)?;
    Ok(Some(file))
}

impl World {
    /// Stops everything, in order, and looks for secrets in all that left the app.
    async fn end(mut self) -> anyhow::Result<()> {
        let rows = self.apps[0].store().all_rows()?;
        for app in self.apps {
            self.output.extend(app.stop().await?);
        }
        let values = rows
            .iter()
            .map(|(key, value)| format!("{key} = {}", String::from_utf8_lossy(value)));
        let places = self.output.into_iter().chain(self.answers).chain(values);
        leaks::none_in(&self.emulators, places)?;
        self.emulators.stop().await;
        Ok(())
    }
}
