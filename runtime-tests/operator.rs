//! Whoever operates the app, at a command line: the program `behalf`, and what it says.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::app::behalf;
use crate::emulators::Emulators;
use crate::leaks;

/// Long enough for whatever waits for a busy machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_mins(2);

/// An operator with settings.
pub struct Operator {
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    /// Away from any `.env`.
    folder: TempDir,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub log: String,
}

impl Said {
    /// Standard output as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("{self:?}"))
    }
}

/// The tenants in which apps have asked for tokens of their own for a resource, one after another.
#[must_use]
pub fn asked_in(emulators: &Emulators, resource: &str) -> Vec<String> {
    let journal = emulators.journal().into_iter();
    let asked = journal.filter(|it| it.grant.as_deref() == Some("client_credentials"));
    let for_it = |scope: &str| scope.starts_with(resource);
    let asked = asked.filter(|it| it.scope.as_deref().is_some_and(for_it));
    asked.filter_map(|it| it.tenant).collect()
}

/// Sends a signal to a command that runs.
pub fn signal(child: &Child, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(child.id().context("it runs")?)?;
    Ok(kill_process(
        Pid::from_raw(pid).context("a process")?,
        signal,
    )?)
}

impl Operator {
    /// One with the app's settings for these emulators.
    pub fn new(emulators: &Emulators) -> anyhow::Result<Self> {
        Self::with(emulators.settings())
    }

    /// One with these settings.
    pub fn with(settings: Vec<(String, String)>) -> anyhow::Result<Self> {
        Ok(Self {
            settings,
            environment: Vec::new(),
            folder: tempfile::Builder::new().prefix("behalf-").tempdir()?,
        })
    }

    /// With another setting.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a variable of the environment that is no setting.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With several.
    #[must_use]
    pub fn environments(mut self, variables: &[(&str, String)]) -> Self {
        let named = |(name, value): &(&str, String)| ((*name).to_owned(), value.clone());
        self.environment.extend(variables.iter().map(named));
        self
    }

    /// With an app token in the file `token` of its folder, with these roles.
    pub fn with_token(self, emulators: &Emulators, roles: &[&str]) -> anyhow::Result<Self> {
        let token = emulators.caller().app(roles).mint();
        std::fs::write(self.folder.path().join("token"), token)?;
        Ok(self)
    }

    /// The folder that commands run in.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Runs `behalf` with these words, and checks that it says no secret and leaves no file.
    pub async fn run(&self, emulators: &Emulators, words: &[&str]) -> anyhow::Result<Said> {
        self.end(emulators, self.begin(words)?).await
    }

    /// Begins to run it.
    pub fn begin(&self, words: &[&str]) -> anyhow::Result<Child> {
        self.spawn(Command::new(behalf()?).args(words))
    }

    /// Begins to run another program as this operator.
    pub fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        command.env_clear().current_dir(self.folder.path());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        for (name, value) in &self.settings {
            command.env(format!("SPIN_VARIABLE_{}", name.to_uppercase()), value);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("behalf cannot be run")
    }

    /// Waits for its end, and makes the same checks.
    pub async fn end(&self, emulators: &Emulators, child: Child) -> anyhow::Result<Said> {
        let before = self.files()?;
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        let output = output.context("it does not end")??;
        let said = Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout)?,
            log: String::from_utf8(output.stderr)?,
        };
        leaks::none_in(emulators, [said.out.clone(), said.log.clone()])?;
        ensure!(self.files()? == before, "it left a file");
        Ok(said)
    }

    fn files(&self) -> anyhow::Result<Vec<std::ffi::OsString>> {
        let entries = std::fs::read_dir(self.folder.path())?;
        let mut names: Vec<_> = entries
            .map(|it| Ok(it?.file_name()))
            .collect::<std::io::Result<_>>()?;
        names.sort();
        Ok(names)
    }
}
