//! The app as a child process.
//!
//! It runs on the embedded host (the program `behalf`: `$BEHALF_BIN`, else next to this program or in the workspace's
//! target folder), or on Spin if `$SPIN_BIN` names its CLI. It never outlives its parent: both hosts are tied to the
//! other end of a pipe.

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
#[cfg(target_os = "linux")]
use procfs::process;
use reqwest::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process_group};
#[cfg(target_os = "linux")]
use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

use crate::store::Store;
use crate::store::tables::Tables;

/// Long enough for a host that compiles two components on a busy machine; only a failure waits for it.
const START: Duration = Duration::from_mins(2);
const STOP: Duration = Duration::from_secs(40);

/// The root folder of the workspace, where `spin.toml` is.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is in the workspace's folder")
}

/// Whether the app runs on Spin, whose semantics are not all of them ours.
#[must_use]
pub fn is_on_spin() -> bool {
    std::env::var_os("SPIN_BIN").is_some()
}

/// Writes the manifest of the app on PostgreSQL into a folder, and returns where it is.
pub fn postgres_manifest(folder: &Path) -> anyhow::Result<PathBuf> {
    let file = folder.join("spin.toml");
    std::fs::write(&file, manifest(&["--ledger", "postgres"])?)?;
    Ok(file)
}

/// What `scripts/manifest` prints with these arguments.
pub fn manifest(arguments: &[&str]) -> anyhow::Result<String> {
    said(std::process::Command::new(root().join("scripts/manifest")).args(arguments))
}

/// Lays a release out in a folder, as `scripts/dist` does, of the host that the other tests run.
pub fn lay_out_release(folder: &Path) -> anyhow::Result<()> {
    let mut dist = std::process::Command::new(root().join("scripts/dist"));
    said(dist.arg("--layout").arg(folder))?;
    std::os::unix::fs::symlink(behalf()?, folder.join("behalf"))?;
    for name in ["vault", "http", "http_postgres", "cron"] {
        let file = format!("behalf_{name}.wasm");
        let built = root().join("target/wasm32-wasip2/release").join(&file);
        std::os::unix::fs::symlink(built, folder.join(file))?;
    }
    Ok(())
}

/// What a program prints, which has to succeed.
pub fn said(program: &mut std::process::Command) -> anyhow::Result<String> {
    let output = program
        .output()
        .with_context(|| format!("cannot run {program:?}"))?;
    ensure!(
        output.status.success(),
        "{program:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// How the app is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address to listen on; port 0: any that is free.
    pub listen: SocketAddr,
    /// State directory; none: a temporary one, removed at the end.
    pub state_dir: Option<PathBuf>,
    /// The address of the Redis server that is the store; none: a file in the state directory is.
    pub redis: Option<String>,
    /// The tables that are the store, with a manifest of that ledger; none: key-value storage is.
    pub tables: Option<Tables>,
    /// Settings, by name as in `spin.toml`; a later one wins.
    pub settings: Vec<(String, String)>,
    /// Variables of the environment that are no settings.
    pub variables: Vec<(String, String)>,
    /// Whether settings come from the environment and the workspace's `.env` besides. Not for tests.
    pub environment: bool,
    /// Whether what is on a schedule runs too. On Spin it needs the cron plugin.
    pub cron: bool,
    /// The manifest; none: the workspace's.
    pub manifest: Option<PathBuf>,
    /// Further arguments of `up`.
    pub arguments: Vec<String>,
    /// If there is one, it runs on the embedded host whatever `$SPIN_BIN` says: the program that runs that, with its
    /// arguments; empty: nothing in between.
    pub embedded: Option<Vec<String>>,
    /// Where the app's output goes besides [`App::output`]: standard error, if true.
    pub echo: bool,
}

impl Default for Options {
    fn default() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            listen,
            state_dir: None,
            redis: None,
            tables: None,
            settings: Vec::new(),
            variables: Vec::new(),
            environment: false,
            cron: false,
            manifest: None,
            arguments: Vec::new(),
            embedded: None,
            echo: false,
        }
    }
}

impl Options {
    /// The settings for these emulators.
    #[must_use]
    pub fn for_emulators(emulators: &crate::emulators::Emulators) -> Self {
        Self {
            settings: emulators.settings(),
            ..Self::default()
        }
    }

    /// With a setting of another value.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With further arguments of `up`.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|&it| it.to_owned()));
        self
    }

    /// With one instance that serves every request and does not end. Spin, which has no such limit, makes more of them only
    /// for requests at once.
    #[must_use]
    pub fn one_instance(self) -> Self {
        let patient = self.arguments(&["--idle-instance-timeout", "600s"]);
        if is_on_spin() {
            patient
        } else {
            patient.arguments(&["--max-instances", "1"])
        }
    }

    /// With instances that live as long as the embedded host lets them by itself.
    #[must_use]
    pub fn long_lived(self) -> Self {
        self.arguments(&[
            "--max-instance-reuse-count",
            "10000",
            "--idle-instance-timeout",
            "600s",
        ])
    }

    /// On a state directory that outlives the app.
    #[must_use]
    pub fn state_dir(mut self, path: &Path) -> Self {
        self.state_dir = Some(path.to_owned());
        self
    }
}

/// The running app. Killed when this is dropped.
pub struct App {
    address: SocketAddr,
    process: Process,
    store: Store,
    client: reqwest::Client,
    _temporary: Option<TempDir>,
}

/// Why the app did not start: it ended, or it never said where it serves.
#[derive(Debug)]
pub struct StartFailure {
    /// Exit code; none if it was killed, by a signal or because it took too long.
    pub code: Option<i32>,
    /// What it wrote to standard output and standard error.
    pub output: Vec<String>,
}

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "the app ended with exit code {code}")?,
            None => write!(f, "the app did not start")?,
        }
        for line in &self.output {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StartFailure {}

impl App {
    /// Starts the app and waits until it serves. An error of type [`StartFailure`] is the app's own.
    pub async fn start(mut options: Options) -> anyhow::Result<Self> {
        let (temporary, state_dir) = if let Some(path) = options.state_dir {
            (None, path)
        } else {
            let directory = tempfile::Builder::new().prefix("behalf-").tempdir()?;
            let path = directory.path().to_owned();
            (Some(directory), path)
        };
        std::fs::create_dir_all(&state_dir)
            .with_context(|| format!("cannot make {}", state_dir.display()))?;
        let state_dir = std::path::absolute(state_dir)?;
        let mut listen = options.listen;
        let spin = std::env::var_os("SPIN_BIN").filter(|_| options.embedded.is_none());
        if spin.is_some() {
            if listen.port() == 0 {
                // The doorbell has to know it; and Spin cannot say which it found.
                listen = TcpListener::bind(listen)?.local_addr()?;
            }
            for (name, value) in [
                ("sweep_origin", format!("http://{listen}")),
                ("sweep_url", format!("http://{listen}/v1/sweep")),
            ] {
                options.settings.insert(0, (name.to_owned(), value));
            }
        }
        let mut command = match spin {
            Some(spin) => on_spin(&spin),
            None => embedded(options.embedded.as_deref().unwrap_or_default())?,
        };
        command
            .arg("-f")
            .arg(options.manifest.unwrap_or_else(|| root().join("spin.toml")));
        command.arg("--state-dir").arg(&state_dir);
        let store = match (options.redis, options.tables) {
            (_, Some(tables)) => {
                options.settings.extend(tables.settings());
                Store::Postgres(tables)
            }
            (Some(url), None) => {
                let file = state_dir.join("runtime-config.toml");
                let text = format!("[key_value_store.default]\ntype = \"redis\"\nurl = {url:?}\n");
                std::fs::write(&file, text)?;
                command.arg("--runtime-config-file").arg(file);
                Store::Redis(url)
            }
            (None, None) => Store::of(&state_dir),
        };
        command.args(options.arguments);
        if !options.cron {
            command.args(["-c", "http"]);
        }
        // Not as --listen, which Spin passes on to the cron plugin.
        command.env("SPIN_HTTP_LISTEN_ADDR", listen.to_string());
        if options.environment {
            command.current_dir(root());
        } else {
            // Away from any `.env`, which hosts read from the working directory.
            command.current_dir(&state_dir);
            for (name, _) in std::env::vars_os() {
                // Nor through a proxy to emulators on this machine.
                let is_ours = |name: &str| {
                    name.starts_with("SPIN_VARIABLE_")
                        || name == "RUNTIME_CONFIG_FILE"
                        || name.to_ascii_uppercase().ends_with("_PROXY")
                };
                if name.to_str().is_some_and(is_ours) {
                    command.env_remove(name);
                }
            }
        }
        for (name, value) in &options.settings {
            command.env(format!("SPIN_VARIABLE_{}", name.to_uppercase()), value);
        }
        command.envs(options.variables);
        Self::serving(command, store, options.echo, temporary).await
    }

    /// Runs a command, which has to serve as `behalf up` does, with its store in this folder, and to end with its standard
    /// input. An error of type [`StartFailure`] is the app's own.
    pub async fn run(command: Command, state_dir: &Path) -> anyhow::Result<Self> {
        Self::serving(command, Store::of(state_dir), false, None).await
    }

    /// The same, whatever its store; the folder lives as long as the app.
    pub(crate) async fn serving(
        command: Command,
        store: Store,
        echo: bool,
        temporary: Option<TempDir>,
    ) -> anyhow::Result<Self> {
        let mut process = Process::spawn(command, echo)?;
        let address = process.serving().await?;
        // What is answered is looked at, redirects too.
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        Ok(Self {
            address,
            process,
            store,
            client: client.build()?,
            _temporary: temporary,
        })
    }

    /// Origin of the app.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The processes of its group: itself, and all that it started.
    #[cfg(target_os = "linux")]
    pub fn processes(&self) -> anyhow::Result<Vec<process::Process>> {
        let group = self.process.group.as_raw_nonzero().get();
        let is_its = |it: &process::Process| it.stat().is_ok_and(|stat| stat.pgrp == group);
        // Others come and go meanwhile.
        let found: Vec<_> = process::all_processes()?.flatten().filter(is_its).collect();
        ensure!(!found.is_empty(), "the app has ended");
        Ok(found)
    }

    /// What it stored.
    #[must_use]
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// The lines that it has written to standard output and standard error so far.
    #[must_use]
    pub fn output(&self) -> Vec<String> {
        self.process.output.lines()
    }

    /// Waits for a line of output that holds `text`, behind the first `skipped` lines.
    pub async fn wait_for_output_after(
        &self,
        skipped: usize,
        text: &str,
    ) -> anyhow::Result<String> {
        self.wait_for_line_after(skipped, |line| line.contains(text).then(|| line.to_owned()))
            .await
            .with_context(|| format!("no line of output holds {text:?}"))
    }

    /// Waits for a line of output that `pick` picks, behind the first `skipped` lines; returns what it makes of it.
    pub async fn wait_for_line_after<T>(
        &self,
        skipped: usize,
        pick: impl Fn(&str) -> Option<T>,
    ) -> anyhow::Result<T> {
        let found = self.process.output.find(skipped, pick);
        tokio::time::timeout(START, found)
            .await
            .context("no line of output is as expected")
    }

    /// Sends a request. `bearer` is the token alone; `body` is sent as JSON.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        bearer: Option<&str>,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.url()));
        if let Some(bearer) = bearer {
            request = request.bearer_auth(bearer);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        Answer::read(request.send().await?).await
    }

    /// A request to be filled in, for what [`App::send`] cannot say.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url()))
    }

    /// Waits until the app ends by itself.
    pub async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.process.child.wait().await?)
    }

    /// Sends SIGKILL, as a crash would end it.
    pub fn kill(&self) {
        self.process.signal(Signal::KILL);
    }

    /// Sends SIGTERM and waits for nothing: what is under way may end.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Lets no file of the embedded host grow beyond this many bytes; none: any may.
    #[cfg(target_os = "linux")]
    pub fn limit_files(&self, bytes: Option<u64>) -> anyhow::Result<()> {
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        prlimit(Some(self.process.group), Resource::Fsize, limit)?;
        Ok(())
    }

    /// Sends SIGTERM and waits for the end, which has to be clean. Returns all output.
    pub async fn stop(mut self) -> anyhow::Result<Vec<String>> {
        if let Some(status) = self.process.child.try_wait()? {
            anyhow::bail!("the app had ended before, with {status}");
        }
        self.process.signal(Signal::TERM);
        let status = tokio::time::timeout(STOP, self.process.child.wait())
            .await
            .context("the app did not end on SIGTERM")??;
        let output = self.process.output.lines();
        anyhow::ensure!(
            status.success(),
            "the app ended with {status} on SIGTERM:\n{}",
            output.join("\n")
        );
        Ok(output)
    }
}

/// An answer of the app, read whole.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Headers.
    pub headers: reqwest::header::HeaderMap,
    /// Body as text.
    pub text: String,
    /// Body as JSON; null if it is none.
    pub json: Value,
}

impl Answer {
    /// Reads the body.
    pub async fn read(response: reqwest::Response) -> anyhow::Result<Self> {
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await?;
        let json = serde_json::from_str(&text).unwrap_or_default();
        Ok(Self {
            status,
            headers,
            text,
            json,
        })
    }

    /// A header's value; empty if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// `code` of a problem document; empty if there is none.
    #[must_use]
    pub fn code(&self) -> &str {
        self.json["code"].as_str().unwrap_or_default()
    }
}

fn embedded(through: &[String]) -> anyhow::Result<Command> {
    let behalf = behalf()?;
    let mut command = match through {
        [] => Command::new(behalf),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(behalf);
            command
        }
    };
    // Nobody balances load on it, and what holds on Spin holds here.
    command.args([
        "up",
        "--exit-on-stdin-close",
        "--lame-duck",
        "0s",
        "--instances-as-on-spin",
    ]);
    Ok(command)
}

/// The embedded host's program: `$BEHALF_BIN`, or the one that was built last.
pub fn behalf() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BEHALF_BIN") {
        return Ok(std::path::absolute(path)?);
    }
    let this = std::env::current_exe()?;
    // Test programs are in `deps`, one folder below.
    let beside = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("behalf"));
    let in_workspace = root().join("target/debug/behalf");
    beside
        .chain([in_workspace])
        .find(|path| path.is_file())
        .context(
            "the embedded host `behalf` is not built: run scripts/build, or set BEHALF_BIN to it",
        )
}

/// Spin has no way to end with its parent; the shell does that for it.
fn on_spin(spin: &OsString) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(
        // What watches the pipe holds no end of the output, which is read to its end when Spin does not start.
        r#"exec 3<&0; "$@" </dev/null & app=$!; { cat <&3; kill "$app"; } >/dev/null 2>&1 & exec 3<&-
           trap 'kill "$app"' TERM; wait "$app"; code=$?
           if kill -0 "$app" 2>/dev/null; then wait "$app"; code=$?; fi; exit "$code""#,
    );
    command.arg("sh").arg(spin).arg("up");
    // As README has it: by default a burst can need more places than Spin's pool has for a composition, and Spin does not
    // let it wait.
    command.env("SPIN_MAX_INSTANCE_COUNT", "4000");
    command
}

struct Process {
    child: Child,
    group: Pid,
    output: Output,
    /// The child lives while this is open.
    _stdin: Option<ChildStdin>,
}

impl Process {
    fn spawn(mut command: Command, echo: bool) -> anyhow::Result<Self> {
        // A group of its own: Ctrl-C at a terminal is for the parent, which then stops the child in order.
        command.process_group(0).kill_on_drop(true);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let program = command.as_std().get_program().to_owned();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let id = child.id().context("the child has ended")?;
        let group = Pid::from_raw(id.try_into()?).context("a process id")?;
        let output = Output::default();
        output.follow(child.stdout.take().context("a pipe")?, echo);
        output.follow(child.stderr.take().context("a pipe")?, echo);
        Ok(Self {
            group,
            output,
            _stdin: child.stdin.take(),
            child,
        })
    }

    /// The address in the line `Serving http://…`, or `https://…`.
    async fn serving(&mut self) -> anyhow::Result<SocketAddr> {
        let address = self.output.find(0, |line| {
            let (_, url) = line.split_once("Serving http")?;
            let (_, address) = url.split_once("://")?;
            address.trim().parse().ok()
        });
        let code = tokio::select! {
            address = tokio::time::timeout(START, address) => match address {
                Ok(address) => return Ok(address),
                Err(_) => None,
            },
            status = self.child.wait() => status?.code(),
        };
        if code.is_some() {
            self.output.finished().await;
        }
        Err(StartFailure {
            code,
            output: self.output.lines(),
        }
        .into())
    }

    fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        let _ = kill_process_group(self.group, signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group's id is only ours while the child has not been waited for.
        if self.child.id().is_some() {
            self.signal(Signal::KILL);
        }
    }
}

/// Lines of output, and word of new ones.
#[derive(Clone)]
struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    /// How many lines there are, and how many streams have ended.
    changed: Arc<watch::Sender<(usize, usize)>>,
}

impl Default for Output {
    fn default() -> Self {
        Self {
            lines: Arc::default(),
            changed: Arc::new(watch::Sender::new((0, 0))),
        }
    }
}

impl Output {
    fn follow(&self, stream: impl AsyncRead + Unpin + Send + 'static, echo: bool) {
        let output = self.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stream).split(b'\n');
            while let Ok(Some(line)) = lines.next_segment().await {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if echo {
                    eprintln!("{line}");
                }
                output.lines.lock().unwrap().push(line);
                output.changed.send_modify(|(lines, _)| *lines += 1);
            }
            output.changed.send_modify(|(_, ended)| *ended += 1);
        });
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// What `pick` makes of the first line that it picks, behind `skipped` ones; waits for it.
    async fn find<T>(&self, skipped: usize, pick: impl Fn(&str) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(found) = self
                .lines
                .lock()
                .unwrap()
                .iter()
                .skip(skipped)
                .find_map(|line| pick(line))
            {
                return found;
            }
            // The sender is `self`, so this cannot fail.
            let _ = changed.changed().await;
        }
    }

    /// Waits until both streams have ended.
    async fn finished(&self) {
        let _ = self
            .changed
            .subscribe()
            .wait_for(|(_, ended)| *ended == 2)
            .await;
    }
}
