//! A Redis server of a test's own: the real one, on a free port of 127.0.0.1, with nothing on disk.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use redis::{Client, Connection, InfoDict};
use tempfile::TempDir;

use crate::debian;

/// Long enough for a busy machine; only a failure waits for it.
const START: Duration = Duration::from_mins(1);

/// A server. It ends when this is dropped, and when this process ends.
pub struct Redis {
    port: u16,
    server: Option<(Child, ChildStdin)>,
    folder: TempDir,
}

impl Redis {
    /// Starts one, and waits until it answers.
    pub fn start() -> anyhow::Result<Self> {
        // Another process can take the port before the server does.
        for _ in 0..10 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
                .local_addr()?
                .port();
            let mut redis = Self {
                port,
                server: None,
                folder: tempfile::tempdir()?,
            };
            if redis.run()? {
                return Ok(redis);
            }
        }
        bail!("Redis found no free port")
    }

    /// What a runtime configuration has as its `url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A connection of the test's own.
    pub fn connect(&self) -> anyhow::Result<Connection> {
        connect(&self.url())
    }

    /// The server's process id.
    pub fn process(&self) -> anyhow::Result<u32> {
        let info: InfoDict = redis::cmd("INFO")
            .arg("server")
            .query(&mut self.connect()?)?;
        info.get("process_id").context("Redis says no process_id")
    }

    /// Ends the server, as a crash would.
    pub fn stop(&mut self) {
        if let Some((mut server, stdin)) = self.server.take() {
            drop(stdin);
            // It is a child of that shell, which waits for it.
            let _ = server.wait();
        }
    }

    /// Starts it again after [`Redis::stop`], on the same port and with nothing in it.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !self.run()? {
            anyhow::ensure!(begun.elapsed() < START, "the port of Redis is taken");
        }
        Ok(())
    }

    /// Whether the server runs and answers. If not, it has ended.
    fn run(&mut self) -> anyhow::Result<bool> {
        // The shell ends it when this process is gone, however that ended.
        let mut server = Command::new("sh")
            .arg("-c")
            .arg(r#"exec 3<&0; "$@" </dev/null >/dev/null & it=$!; { cat <&3 >/dev/null; kill -9 "$it"; } 2>/dev/null & exec 3<&-; wait "$it" 2>/dev/null"#)
            .arg("sh")
            .arg(debian::program("redis-server", "redis-server")?)
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(self.folder.path())
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot run a shell")?;
        let stdin = server.stdin.take().context("a pipe")?;
        let begun = Instant::now();
        loop {
            if let Ok(mut connection) = self.connect()
                && redis::cmd("PING").exec(&mut connection).is_ok()
            {
                self.server = Some((server, stdin));
                return Ok(true);
            }
            if server.try_wait()?.is_some() {
                return Ok(false);
            }
            anyhow::ensure!(begun.elapsed() < START, "Redis does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A connection to the server at this address.
pub fn connect(url: &str) -> anyhow::Result<Connection> {
    Ok(Client::open(url)?.get_connection_with_timeout(Duration::from_secs(5))?)
}
