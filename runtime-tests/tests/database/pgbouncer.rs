//! A `PgBouncer` of a test's own: the real one, of Debian's packages, on a free port of 127.0.0.1.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use postgres::{Client, NoTls};
use runtime_tests::debian;
use runtime_tests::postgres::Postgres;
use tempfile::TempDir;

use crate::app::{DATABASE, PASSWORD, ROLE, Result};

/// Long enough for a busy machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_mins(1);

/// As whom it runs if this process is root's, as which it refuses to: `nobody` and its group.
const NOBODY: u32 = 65534;

/// Runs it, and ends it when this process is gone, however that ended.
const KEEPER: &str = r#"exec 3<&0; "$@" </dev/null >/dev/null 2>&1 & it=$!; { cat <&3; kill -9 "$it"; } >/dev/null 2>&1 & exec 3<&-; wait "$it" 2>/dev/null"#;

/// It ends when this is dropped, and when this process ends.
pub(crate) struct PgBouncer {
    port: u16,
    running: Option<(Child, ChildStdin)>,
    folder: TempDir,
}

impl PgBouncer {
    /// Starts one in front of a server, and waits until it lets the app's role through.
    pub(crate) fn start(postgres: &Postgres, mode: &str) -> Result<Self> {
        // Another process can take the port first.
        for _ in 0..10 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
                .local_addr()?
                .port();
            let mut pgbouncer = Self {
                port,
                running: None,
                folder: tempfile::tempdir()?,
            };
            if pgbouncer.run(postgres, mode)? {
                return Ok(pgbouncer);
            }
        }
        bail!("PgBouncer does not start")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether this version knows prepared statements in transaction mode.
    pub(crate) fn has_prepared_statements() -> Result<bool> {
        let said = Command::new(debian::program("pgbouncer", "pgbouncer")?)
            .arg("--version")
            .output()?;
        let said = String::from_utf8(said.stdout)?;
        let version = said.split_whitespace().nth(1).context("a version")?;
        let mut numbers = version.split('.').map(str::parse::<u32>);
        let (major, minor) = (numbers.next().context(said.clone())??, numbers.next());
        Ok((major, minor.context(said.clone())??) >= (1, 21))
    }

    /// Whether it runs and lets the role through. If not, it has ended.
    fn run(&mut self, postgres: &Postgres, mode: &str) -> Result<bool> {
        let folder = self.folder.path();
        // A client keeps a connection in session mode, and the app has up to sixteen.
        let pool = if mode == "session" { 20 } else { 4 };
        let (port, host, server) = (self.port, postgres.host(), postgres.port());
        let (settings, users) = (folder.join("pgbouncer.ini"), folder.join("users"));
        fs::write(&users, format!("\"{ROLE}\" \"{PASSWORD}\"\n"))?;
        let mut text = format!(
            "[databases]\n{DATABASE} = host={host} port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\npool_mode = {mode}\ndefault_pool_size = {pool}\nauth_type = scram-sha-256\nauth_file = {}\n",
            users.display()
        );
        if Self::has_prepared_statements()? {
            text.push_str("max_prepared_statements = 200\n");
        }
        fs::write(&settings, text)?;
        let mut command = Command::new("sh");
        command
            .args(["-c", KEEPER, "sh"])
            .arg(debian::program("pgbouncer", "pgbouncer")?)
            .arg(&settings)
            .current_dir(folder)
            .stdin(Stdio::piped());
        if fs::metadata(folder)?.uid() == 0 {
            for path in [folder, &settings, &users] {
                chown(path, Some(NOBODY), Some(NOBODY))?;
            }
            command.uid(NOBODY).gid(NOBODY);
        }
        let mut child = command.spawn().context("cannot run a shell")?;
        let stdin = child.stdin.take().context("a pipe")?;
        let address = format!(
            "host=127.0.0.1 port={port} user='{ROLE}' password='{PASSWORD}' dbname='{DATABASE}'"
        );
        let begun = Instant::now();
        loop {
            let connected =
                tokio::task::block_in_place(|| Client::connect(&address, NoTls).map(drop));
            if connected.is_ok() {
                self.running = Some((child, stdin));
                return Ok(true);
            }
            if child.try_wait()?.is_some() {
                return Ok(false);
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "PgBouncer lets nobody through: {connected:?}"
            );
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        if let Some((mut child, stdin)) = self.running.take() {
            drop(stdin);
            // It is a child of that shell, which waits for it.
            let _ = child.wait();
        }
    }
}
