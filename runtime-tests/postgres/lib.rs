//! A `PostgreSQL` server of a test's own: the real one, of Debian's packages, on a free port of 127.0.0.1, with a data folder of
//! its own. Several can run at once.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "test support: a panic here is a failed test, not an outage"
)]

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

pub mod debian;

/// Who may do everything, by [`PASSWORD`] over TCP.
pub const SUPERUSER: &str = "postgres";

/// The password of [`SUPERUSER`].
pub const PASSWORD: &str = "a password of a superuser";

/// The newest that the distribution has.
const PACKAGE: &str = "postgresql";

/// Whose a server is if this process is root's, as which it refuses to run: `nobody` and its group.
const NOBODY: u32 = 65534;

/// Long enough for a busy machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_mins(1);

/// Ours come first, so that a test can set others. On disk nothing need outlive the machine, and nothing may stay behind in
/// `/dev/shm`.
const SETTINGS: [&str; 6] = [
    "listen_addresses=127.0.0.1",
    "fsync=off",
    "shared_buffers=32MB",
    "dynamic_shared_memory_type=mmap",
    "timezone=GMT",
    "log_timezone=GMT",
];

/// Runs the server, says its process id, and ends it when this process is gone, however that ended; then nobody else clears
/// its folder away. A line on standard input instead says that it is being stopped.
const KEEPER: &str = r#"
exec 3<&0
folder=$1
shift
"$@" </dev/null >/dev/null 2>>"$folder/log" 3<&- &
it=$!
echo "$it"
exec >/dev/null 2>&1
{
  read -r _ <&3 && exit
  kill -QUIT "$it"
  while kill -0 "$it"; do sleep 0.1; done
  rm -rf "$folder"
} &
exec 3<&-
wait "$it"
"#;

/// A server. It ends when this is dropped, and when this process ends; its folder goes with it.
pub struct Postgres {
    port: u16,
    settings: Vec<String>,
    server: Option<Server>,
    /// As whom it runs, if not as whoever this process runs as.
    owner: Option<u32>,
    folder: TempDir,
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Connections are ended, transactions rolled back, everything written.
    Fast,
    /// Everything ends where it is, and is recovered from the log at the next start.
    Immediate,
    /// SIGKILL.
    Kill,
}

struct Server {
    keeper: Child,
    stdin: ChildStdin,
    process: u32,
}

impl Postgres {
    /// Starts one, and waits until it takes connections. What it has acknowledged may be lost when the machine stops, not when
    /// the server does (`fsync` is off).
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&[])
    }

    /// The same with settings of a test's own, each `name=value`, such as `fsync=on`.
    pub fn start_with(settings: &[&str]) -> anyhow::Result<Self> {
        let settings = SETTINGS.iter().chain(settings);
        Self::begin(
            settings.map(ToString::to_string).collect(),
            Self::initialise,
        )
    }

    /// A standby of this server: it has what this one has, follows it, and takes no changes until [`Postgres::promote`].
    pub fn standby(&self) -> anyhow::Result<Self> {
        Self::begin(self.settings.clone(), |standby| {
            let copied = standby
                .command(debian::program("pg_basebackup", PACKAGE)?)
                .args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf"])
                .args(["--username", SUPERUSER, "--port", &self.port.to_string()])
                .arg("--host")
                .arg(self.folder.path())
                .arg("--pgdata")
                .arg(standby.data())
                .output()
                .context("cannot run pg_basebackup")?;
            ensure!(
                copied.status.success(),
                "{}",
                String::from_utf8_lossy(&copied.stderr)
            );
            Ok(())
        })
    }

    /// Has a standby take changes, and follow nobody any more.
    pub fn promote(&self) -> anyhow::Result<()> {
        let promoted = self.sql("postgres", "SELECT pg_promote()")?;
        ensure!(promoted == "t", "it is not promoted: {promoted}");
        Ok(())
    }

    /// Makes a data folder, and runs a server on it.
    fn begin(
        settings: Vec<String>,
        initialise: impl FnOnce(&Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("postgres").tempdir()?;
        let is_root = fs::metadata(folder.path())?.uid() == 0;
        let mut postgres = Self {
            port: 0,
            settings,
            server: None,
            owner: is_root.then_some(NOBODY),
            folder,
        };
        postgres.give_away(postgres.folder.path())?;
        initialise(&postgres)?;
        // Another process can take the port before the server does.
        for _ in 0..10 {
            postgres.port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
                .local_addr()?
                .port();
            if postgres.run()? {
                return Ok(postgres);
            }
        }
        bail!("PostgreSQL does not start: {}", postgres.log())
    }

    /// Where it listens, as a text: an address, no name.
    #[must_use]
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    /// The port there.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection string of this user, who has this password. Neither may have quotes or backslashes.
    #[must_use]
    pub fn address(&self, user: &str, password: &str, database: &str) -> String {
        let (host, port) = (self.host(), self.port);
        format!("host={host} port={port} user='{user}' password='{password}' dbname='{database}'")
    }

    /// The same, of the superuser.
    #[must_use]
    pub fn superuser(&self, database: &str) -> String {
        self.address(SUPERUSER, PASSWORD, database)
    }

    /// Runs statements as the superuser, with `psql`, and returns their rows as it prints them: a line each, `|` between columns.
    pub fn sql(&self, database: &str, statements: &str) -> anyhow::Result<String> {
        let mut psql = Command::new(debian::program("psql", PACKAGE)?);
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .args(["--set", "ON_ERROR_STOP=1", "--file", "-"])
            .args(["--username", SUPERUSER, "--dbname", database])
            .args(["--port", &self.port.to_string(), "--host"])
            .arg(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = psql.spawn().context("cannot run psql")?;
        let mut stdin = child.stdin.take().context("a pipe")?;
        // It reads them all before it writes much.
        let written = stdin.write_all(statements.as_bytes());
        drop(stdin);
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        written?;
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// Makes a database, the superuser's.
    pub fn create_database(&self, name: &str) -> anyhow::Result<()> {
        self.sql("postgres", &format!("CREATE DATABASE \"{name}\""))
            .map(drop)
    }

    /// Makes a role that can log in, and has no rights but everybody's.
    pub fn create_role(&self, name: &str, password: &str) -> anyhow::Result<()> {
        let statement = format!("CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'");
        self.sql("postgres", &statement).map(drop)
    }

    /// Changes settings of the running server, each `name=value`. Some take effect at the next start only.
    pub fn set(&self, settings: &[&str]) -> anyhow::Result<()> {
        let mut statements = "SELECT pg_reload_conf()".to_owned();
        for setting in settings {
            let (name, value) = setting.split_once('=').context("name=value")?;
            statements.insert_str(0, &format!("ALTER SYSTEM SET {name} = '{value}'; "));
        }
        self.sql("postgres", &statements).map(drop)
    }

    /// Has the server offer TLS with this certificate and key, in PEM.
    pub fn serve_tls(&self, certificate: &str, key: &str) -> anyhow::Result<()> {
        for (name, pem) in [("tls.crt", certificate), ("tls.key", key)] {
            let file = self.data().join(name);
            fs::write(&file, pem)?;
            fs::set_permissions(&file, Permissions::from_mode(0o600))?;
            self.give_away(&file)?;
        }
        self.set(&["ssl_cert_file=tls.crt", "ssl_key_file=tls.key", "ssl=on"])
    }

    /// The id of its first process, the parent of all others; none while it is stopped.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        self.server.as_ref().map(|server| server.process)
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The folder with all that is the server's. Its data is in `data`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends it. Its data stays.
    pub fn stop(&mut self, how: Stop) -> anyhow::Result<()> {
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        // From now on its end is no accident.
        server.stdin.write_all(b"stop\n")?;
        let signal = match how {
            Stop::Fast => "-INT",
            Stop::Immediate => "-QUIT",
            Stop::Kill => "-KILL",
        };
        Command::new("sh")
            .args(["-c", r#"kill "$@""#, "sh"])
            .args([signal, &server.process.to_string()])
            .status()
            .context("cannot run a shell")?;
        // It is a child of that shell, which waits for it.
        server.keeper.wait()?;
        Ok(())
    }

    /// Starts it after [`Postgres::stop`], on the same port and with the same data.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        // Killed, it leaves processes behind that end soon, and have its memory until then.
        while !self.run()? {
            ensure!(
                begun.elapsed() < PATIENCE,
                "PostgreSQL does not start again: {}",
                self.log()
            );
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Makes its data folder.
    fn initialise(&self) -> anyhow::Result<()> {
        let password = self.folder.path().join("password");
        fs::write(&password, PASSWORD)?;
        self.give_away(&password)?;
        let output = self
            .command(debian::program("initdb", PACKAGE)?)
            .args([
                "--no-sync",
                "--no-instructions",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .args(["--username", SUPERUSER, "--pwfile"])
            .arg(&password)
            .arg(self.data())
            .output()
            .context("cannot run initdb")?;
        fs::remove_file(password)?;
        ensure!(
            output.status.success(),
            "PostgreSQL has no data folder. As root it runs as nobody, who has to reach its programs. {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Whether the server runs and takes connections. If not, it has ended.
    fn run(&mut self) -> anyhow::Result<bool> {
        let mut command = self.command("sh");
        command.args(["-c", KEEPER, "sh"]).arg(self.folder.path());
        command
            .arg(debian::program("postgres", PACKAGE)?)
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.folder.path())
            .args(["-p", &self.port.to_string()]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let mut keeper = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run a shell")?;
        let stdin = keeper.stdin.take().context("a pipe")?;
        let mut process = String::new();
        keeper
            .stdout
            .take()
            .context("a pipe")?
            .read_to_string(&mut process)?;
        let process = process.trim().parse().context("no process id")?;
        let mut server = Server {
            keeper,
            stdin,
            process,
        };
        let begun = Instant::now();
        loop {
            if self
                .state()
                .is_some_and(|(of, state)| of == process && state == "ready")
            {
                self.server = Some(server);
                return Ok(true);
            }
            if server.keeper.try_wait()?.is_some() {
                // Its folder stays.
                let _ = server.stdin.write_all(b"stop\n");
                return Ok(false);
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "PostgreSQL takes no connections"
            );
            sleep(Duration::from_millis(10));
        }
    }

    /// Its process id, and its state, in the words of its `miscadmin.h`.
    fn state(&self) -> Option<(u32, String)> {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        let mut lines = file.lines();
        let process = lines.next()?.trim().parse().ok()?;
        Some((process, lines.nth(6)?.trim().to_owned()))
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A program, as whom the server runs.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path());
        if let Some(owner) = self.owner {
            command.uid(owner).gid(owner);
        }
        command
    }

    /// Gives a file to the server.
    fn give_away(&self, file: &Path) -> anyhow::Result<()> {
        if self.owner.is_some() {
            chown(file, self.owner, self.owner)?;
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.stop(Stop::Immediate);
        // One that was killed has left a little shared memory behind, which the file names.
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        if let Some(memory) = file
            .lines()
            .nth(6)
            .and_then(|it| it.split_whitespace().nth(1))
        {
            let _ = Command::new("ipcrm").args(["--shmem-id", memory]).status();
        }
    }
}
