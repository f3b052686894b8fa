//! The command line.

use crate::app::{App, SettingsError};
use crate::capacity;
use crate::connection::Server;
use crate::console::{self, Format};
use crate::crowd::Crowd;
use crate::instance::{Lifetime, ReuseLimits};
use crate::loading::{LoadError, Options, load};
use crate::manifest::{Manifest, ManifestError};
use crate::serve::{BindError, allow_many_connections, bind, serve};
use crate::talk::Patience;
use crate::tls::{self, PemError};
use crate::variables::{Environment, Given, check_name};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a client may take to agree on TLS and to send its first request's head, and the rest of any other head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests in hand may take to finish when the process should stop.
const GRACE: Duration = Duration::from_secs(30);

/// How many requests may be in hand at once at least, unless the command line says otherwise. They need little.
const FEWEST_REQUESTS: usize = 1024;

/// Runs the program with this process's command line, and returns its exit code: 0 after a clean stop (or `--help`), 1
/// if it cannot run, 2 if the command line, the manifest or a setting is wrong.
#[must_use]
pub fn main() -> ExitCode {
    let command = CommandLine::parse().command;
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            console::fail(format_args!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let result = match command {
        Command::Up(up) => runtime.block_on(up.run()),
        Command::Check(check) => runtime.block_on(check.run()),
    };
    // A compilation that nobody waits for any more need not end.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            console::fail(&failure);
            failure.exit_code()
        }
    }
}

/// Runs the app of a spin.toml on an embedded wasmtime.
#[derive(Debug, Parser)]
#[command(name = "behalf", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the app until it is told to stop.
    ///
    /// Prints `Serving http://ADDRESS` on standard output once the app answers requests; everything else, including what
    /// components write, goes to standard error. Stops on SIGINT and SIGTERM after requests in hand are answered (30
    /// seconds at most; a second signal stops at once).
    #[command(after_help = EXAMPLES)]
    Up(Box<Up>),

    /// Check the manifest, the components and the settings without serving.
    ///
    /// Compiles everything and asks the app whether its settings are right, as `up` does before it serves. Listens on no
    /// address, opens no store and runs no schedule.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Check),
}

const CHECK_EXAMPLES: &str = "\
Examples:
  behalf check                                   the spin.toml of this folder, with the settings of `behalf up`
  behalf check -f app/spin.toml --variable-file client_secret=/run/secrets/client

Exit codes: 0 all is well, 1 cannot run, 2 the command line, the manifest or a setting is wrong.";

const EXAMPLES: &str = "\
Examples:
  behalf up                                      the spin.toml of this folder, on 127.0.0.1:3000
  behalf up -f app/spin.toml --listen 0.0.0.0:80
  SPIN_VARIABLE_CLIENT_ID=… behalf up            sets the variable client_id; a file .env works too
  behalf up --variable-file federated_token=/var/run/token
                                                 a file that somebody else renews
  behalf up -c http                              without what is on a schedule
  behalf up --tls-cert cert.pem --tls-key key.pem --listen 0.0.0.0:443
  behalf up --listen 127.0.0.1:0 --state-dir ''  a free port and storage in memory, for tests

Exit codes: 0 stopped, 1 cannot run, 2 the command line, the manifest or a setting is wrong.";

/// What makes an app: `up` and `check` have it in common.
#[derive(Debug, Args)]
struct Source {
    /// The manifest, or the folder that it is in.
    #[arg(
        short = 'f',
        long = "from",
        visible_alias = "file",
        value_name = "FILE",
        default_value = "spin.toml"
    )]
    manifest: PathBuf,

    /// Run only the triggers of this component; may be given again.
    #[arg(
        short = 'c',
        long = "component",
        visible_alias = "component-id",
        value_name = "ID"
    )]
    components: Vec<String>,

    /// The value of a variable, before the environment; others on this machine can see it. May be given again.
    #[arg(long = "variable", value_name = "NAME=VALUE", value_parser = assignment)]
    variables: Vec<(String, String)>,

    /// A file that holds the value of a variable, read each time the app asks for it. May be given again.
    #[arg(long = "variable-file", value_name = "NAME=PATH", value_parser = assignment)]
    variable_files: Vec<(String, String)>,

    /// Certificate authorities in PEM that requests of components trust besides the platform's.
    #[arg(long, value_name = "FILE")]
    outbound_ca: Option<PathBuf>,

    /// The folder for compiled components; empty: none [default: behalf in the user's cache folder].
    #[arg(long, value_name = "DIR", env = "BEHALF_CACHE_DIR")]
    cache_dir: Option<OsString>,

    /// How what is said on standard error looks.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
}

impl Source {
    /// Reads the manifest.
    fn manifest(&self) -> Result<Manifest, Failure> {
        console::set_format(self.log_format);
        let mut manifest = Manifest::load(&self.file())?;
        manifest.keep(&self.components).map_err(Failure::Usage)?;
        Ok(manifest)
    }

    fn file(&self) -> PathBuf {
        if self.manifest.is_dir() {
            self.manifest.join("spin.toml")
        } else {
            self.manifest.clone()
        }
    }

    fn environment(&self) -> Result<Environment, Failure> {
        let values = self.variables.iter().cloned();
        let files = self.variable_files.iter().cloned();
        let given = values
            .map(|(name, value)| (name, Given::Value(value)))
            .chain(files.map(|(name, path)| (name, Given::File(path.into()))));
        let environment = Environment::of_process(Path::new(".env")).map_err(Failure::Usage)?;
        Ok(environment.with(given))
    }

    fn cache(&self) -> Option<PathBuf> {
        match &self.cache_dir {
            Some(folder) if folder.is_empty() => None,
            Some(folder) => Some(PathBuf::from(folder)),
            None => {
                let user = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
                let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
                let folder = user.filter(|path| path.is_absolute()).or_else(home)?;
                Some(folder.join("behalf"))
            }
        }
    }
}

#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    source: Source,
}

impl Check {
    async fn run(self) -> Result<(), Failure> {
        let manifest = self.source.manifest()?;
        let lifetime = Lifetime::default();
        let of_instances = lifetime.clone();
        let load = move || {
            let options = Options {
                state_dir: None,
                limits: ReuseLimits::default(),
                max_instances: 1,
                max_requests: 1,
                cache: self.source.cache(),
                outbound_ca: self.source.outbound_ca.clone(),
                environment: self.source.environment()?,
            };
            Ok::<_, Failure>(load(manifest, options, &of_instances)?)
        };
        let app = tokio::task::spawn_blocking(load)
            .await
            .map_err(|error| Failure::Io(error.into()))??;
        let checked = app
            .check_settings(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await;
        lifetime.stopping.cancel();
        lifetime.at_work.close();
        // An instance that does not end is no fault of the settings.
        let _ = tokio::time::timeout(GRACE, lifetime.at_work.wait()).await;
        checked?;
        console::note("all is well");
        Ok(())
    }
}

#[derive(Debug, Args)]
struct Up {
    #[command(flatten)]
    source: Source,

    /// The address to listen on; port 0 chooses a free one.
    #[arg(long, value_name = "ADDR", env = "SPIN_HTTP_LISTEN_ADDR", default_value = "127.0.0.1:3000", value_parser = listen_address)]
    listen: SocketAddr,

    /// The folder for the key-value store; empty for storage in memory [default: .spin beside the manifest].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<OsString>,

    /// The certificate to serve HTTPS with, and those above it, in PEM.
    #[arg(long, value_name = "FILE", env = "SPIN_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The private key that belongs to it, in PEM.
    #[arg(long, value_name = "FILE", env = "SPIN_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// How many instances may live at once, of all components; requests wait for one that has time. With a schedule there
    /// are two at least [default: what processors and memory have room for].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_instances: Option<u32>,

    /// How many requests may be in hand at once; more are answered with 503 and Retry-After [default: as many as the
    /// instances can serve at once, and 1024 at least].
    #[arg(long, value_name = "N", value_parser = positive)]
    max_requests: Option<usize>,

    /// Requests that one instance of a component serves in its life.
    #[arg(long, value_name = "N", default_value = "128", value_parser = positive)]
    max_instance_reuse_count: usize,

    /// Requests that one instance of a component serves at once.
    #[arg(long, value_name = "N", default_value = "16", value_parser = positive)]
    max_instance_concurrent_reuse_count: usize,

    /// How long an instance without requests lives: a number with ns, us, ms or s.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    idle_instance_timeout: Duration,

    /// How many connections clients may have; past it, those without a request give way [default: what the limit of open
    /// files leaves, 10000 at most].
    #[arg(long, value_name = "N", value_parser = positive)]
    max_connections: Option<usize>,

    /// How long a client may keep a connection without a request. Longer than load balancers do, which would meet one that
    /// just closes.
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = duration)]
    keep_alive_timeout: Duration,

    /// How long a client may go without taking anything of its answer.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    write_timeout: Duration,

    /// How long a component may take from a request to the head of its response, and after that until the body is written
    /// and all else is done; a body that takes longer breaks off [default: no limit].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    request_timeout: Option<Duration>,

    /// Stop, as on SIGTERM, when standard input ends: so a program that starts this one leaves nothing behind, however
    /// it dies.
    #[arg(long)]
    exit_on_stdin_close: bool,
}

impl Up {
    async fn run(self) -> Result<(), Failure> {
        let lifetime = Lifetime::default();
        let mut stop = stop_requests(self.exit_on_stdin_close)?;
        let result = tokio::select! {
            result = self.start_and_serve(&lifetime) => result,
            _ = stop.recv() => Ok(()),
        };
        lifetime.stopping.cancel();
        lifetime.at_work.close();
        tokio::select! {
            () = lifetime.at_work.wait() => {}
            () = tokio::time::sleep(GRACE) => {
                let left = lifetime.at_work.len();
                console::warn(format_args!("stopped before {left} connections and instances had finished"));
            }
            _ = stop.recv() => {}
        }
        result
    }

    async fn start_and_serve(self, lifetime: &Lifetime) -> Result<(), Failure> {
        let manifest = self.source.manifest()?;
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(tls::server(certificate, key)?),
            _ => None,
        };
        let connections = allow_many_connections();
        let crowd = Crowd::new(self.max_connections.unwrap_or(connections));
        let patience = Patience {
            head: HEAD_TIMEOUT,
            idle: self.keep_alive_timeout,
            write: self.write_timeout,
        };
        // Early, so that an address in use is told at once; clients wait until the app is ready.
        let listener = match manifest.routes.iter().next() {
            Some(_) => Some(bind(self.listen).await?),
            None => None,
        };
        let address = match &listener {
            Some(listener) => listener.local_addr().map_err(Failure::Io)?,
            None => self.listen,
        };
        let load = {
            let lifetime = lifetime.clone();
            move || self.load(manifest, &lifetime)
        };
        let app = tokio::task::spawn_blocking(load)
            .await
            .map_err(|error| Failure::Io(error.into()))??;
        app.check_settings(address).await?;

        let app = Arc::new(app);
        let serving = async {
            if let Some(listener) = listener {
                let scheme = if tls.is_some() { "https" } else { "http" };
                let mut stdout = io::stdout();
                writeln!(stdout, "Serving {scheme}://{address}")
                    .and_then(|()| stdout.flush())
                    .map_err(Failure::Io)?;
                let server = Server::new(Arc::clone(&app), patience, lifetime.clone());
                serve(listener, Arc::new(server), tls, crowd, lifetime).await;
            }
            Ok::<_, Failure>(())
        };
        let scheduled = async {
            app.keep_schedules(lifetime).await;
            Ok::<_, Failure>(())
        };
        tokio::try_join!(serving, scheduled)?;
        Ok(())
    }

    /// Loads the app, telling on the way what it is.
    fn load(self, manifest: Manifest, lifetime: &Lifetime) -> Result<App, Failure> {
        console::note(format_args!("{} {}", manifest.name, manifest.version));
        manifest.tell();
        let file = self.source.file();
        let state_dir = match &self.state_dir {
            Some(folder) if folder.is_empty() => None,
            Some(folder) => Some(PathBuf::from(folder)),
            None => Some(file.parent().unwrap_or(Path::new("")).join(".spin")),
        };
        let max_instances = self.max_instances.unwrap_or_else(capacity::instances);
        let max_requests = self.max_requests.unwrap_or_else(|| {
            usize::try_from(max_instances)
                .unwrap_or(usize::MAX)
                .saturating_mul(self.max_instance_concurrent_reuse_count)
                .max(FEWEST_REQUESTS)
        });
        let options = Options {
            state_dir: state_dir
                .map(std::path::absolute)
                .transpose()
                .map_err(Failure::Io)?,
            limits: ReuseLimits {
                requests: self.max_instance_reuse_count,
                concurrent_requests: self.max_instance_concurrent_reuse_count,
                request_timeout: self.request_timeout,
                idle_timeout: self.idle_instance_timeout,
            },
            max_instances,
            max_requests,
            cache: self.source.cache(),
            outbound_ca: self.source.outbound_ca.clone(),
            environment: self.source.environment()?,
        };
        Ok(load(manifest, options, lifetime)?)
    }
}

/// Why this process ends other than cleanly.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Tls(#[from] PemError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Io(io::Error),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_)
            | Self::Manifest(_)
            | Self::Settings(_)
            | Self::Tls(_)
            | Self::Load(
                LoadError::Variable(_)
                | LoadError::UnknownVariable(_)
                | LoadError::OutboundCa(_)
                | LoadError::Compose { .. }
                | LoadError::Component { .. },
            ) => ExitCode::from(2),
            Self::Load(LoadError::Store(_) | LoadError::Engine(_))
            | Self::Bind(_)
            | Self::Io(_) => ExitCode::FAILURE,
        }
    }
}

/// A message for every signal to stop, and one when standard input ends if that counts.
fn stop_requests(on_stdin_close: bool) -> Result<mpsc::Receiver<()>, Failure> {
    let (request, requests) = mpsc::channel(2);
    if on_stdin_close {
        let request = request.clone();
        // A thread of its own: one that waits for input cannot be interrupted, and must not keep the process alive.
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || {
                let mut buffer = [0; 1024];
                while matches!(io::stdin().lock().read(&mut buffer), Ok(1..)) {}
                let _ = request.blocking_send(());
            })
            .map_err(Failure::Io)?;
    }
    let mut signals = Signals::new().map_err(Failure::Io)?;
    tokio::spawn(async move {
        loop {
            signals.next().await;
            if request.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(requests)
}

/// The signals that ask a process to stop.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        // A file that may not grow any more (`ulimit -f`) is an error of that write, as a full disk is, and not the end.
        let _ = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let found: Vec<_> = text
        .to_socket_addrs()
        .map_err(|_| "write ADDRESS:PORT, such as 127.0.0.1:3000".to_owned())?
        .collect();
    // localhost is both; clients that print it try IPv4 too.
    let first = found.iter().find(|it| it.is_ipv4()).or(found.first());
    first
        .copied()
        .ok_or_else(|| "this name has no address".to_owned())
}

fn assignment(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    check_name(name)?;
    Ok((name.to_owned(), value.to_owned()))
}

fn positive(text: &str) -> Result<usize, &'static str> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or("write a whole number above 0")
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    let units = [
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
        ("s", 1_000_000_000),
    ];
    let (number, nanoseconds) = units
        .into_iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))
        .unwrap_or((text, 1_000_000_000));
    let number: u64 = number
        .parse()
        .map_err(|_| "write a whole number with s, ms, us or ns")?;
    number
        .checked_mul(nanoseconds)
        .map(Duration::from_nanos)
        .ok_or("this is too long")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("1", Duration::from_secs(1)),
            ("2s", Duration::from_secs(2)),
            ("3ms", Duration::from_millis(3)),
            ("4us", Duration::from_micros(4)),
            ("5ns", Duration::from_nanos(5)),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for text in ["", "s", "1m", "1.5s", "-1s", "1 s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(
            listen_address("[::1]:3000").unwrap().to_string(),
            "[::1]:3000"
        );
        assert_eq!(
            listen_address("localhost:0").unwrap().to_string(),
            "127.0.0.1:0"
        );
        assert!(listen_address("3000").is_err());
    }
}
