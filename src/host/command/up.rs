//! `behalf up`.

use super::Failure;
use super::source::Source;
use super::values::{duration, listen_address, path, positive};
use crate::app::App;
use crate::capacity;
use crate::connection::Server;
use crate::crowd::Crowd;
use crate::instance::ReuseLimits;
use crate::life::Lifetime;
use crate::loading::{Options, load};
use crate::manifest::Manifest;
use crate::orders::{Order, Orders};
use crate::serve::{allow_many_connections, bind, serve};
use crate::supervisor;
use crate::talk::Patience;
use crate::tls::ServerIdentity;
use clap::Args;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// How long a client may take to agree on TLS and to send its first request's head, and the rest of any other head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How many requests may be in hand at once at least, unless the command line says otherwise. They need little.
const FEWEST_REQUESTS: usize = 1024;

pub(super) const EXAMPLES: &str = "\
Examples:
  behalf up                                      the spin.toml of this folder, on 127.0.0.1:3000
  behalf up -f app/spin.toml --listen 0.0.0.0:80
  SPIN_VARIABLE_CLIENT_ID=… behalf up            sets the variable client_id; a file .env works too
  behalf up --variable-file federated_token=/var/run/token
                                                 a file that somebody else renews
  behalf up --platform-identity                  the managed identity of Container Apps or App Service
  behalf up -c http                              without what is on a schedule
  behalf up --tls-cert cert.pem --tls-key key.pem --listen 0.0.0.0:443
  behalf up --listen 127.0.0.1:0 --state-dir ''  a free port and storage in memory, for tests

Exit codes: 0 stopped, 1 cannot run, 2 the command line, the manifest or a setting is wrong.";

/// The options of `behalf up`.
#[derive(Debug, Args)]
pub(super) struct Up {
    #[command(flatten)]
    source: Source,

    /// The address to listen on; port 0 chooses a free one, and a port alone is 127.0.0.1's.
    #[arg(long, value_name = "ADDR", env = "SPIN_HTTP_LISTEN_ADDR", default_value = "127.0.0.1:3000", value_parser = listen_address)]
    listen: SocketAddr,

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

    /// Requests that one instance of a component serves in its life [default: 10000].
    #[arg(long, value_name = "N", value_parser = positive)]
    max_instance_reuse_count: Option<usize>,

    /// Requests that one instance of a component serves at once [default: 16].
    #[arg(long, value_name = "N", value_parser = positive)]
    max_instance_concurrent_reuse_count: Option<usize>,

    /// How long an instance without requests lives, written as 500ms, 30s, 10m, 2h or 1day [default: 10m].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    idle_instance_timeout: Option<Duration>,

    /// Have instances live as on Spin, for tests, where these three are not given: 128 requests, 16 at once, and 1 s.
    #[arg(long)]
    instances_as_on_spin: bool,

    /// How many connections clients may have; past it, those without a request give way [default: what the limit of open
    /// files leaves, 10000 at most].
    #[arg(long, value_name = "N", value_parser = positive)]
    max_connections: Option<usize>,

    /// How many connections to PostgreSQL this process may have, of all components; who wants one waits for it, as
    /// long as connecting may take (10 s, or what the address says). A server has to allow as many for each process.
    #[arg(long, value_name = "N", default_value = "16", value_parser = positive)]
    postgres_connections: usize,

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

    /// The path by which others ask whether this host is ready: while it leaves, the host itself answers 503 there.
    #[arg(long, value_name = "PATH", value_parser = path)]
    ready_path: Option<String>,

    /// How long, on SIGTERM, all goes on but clients are sent elsewhere: so long load balancers may need to notice.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    lame_duck: Duration,

    /// How long requests in hand may take then. With the time before it, shorter than the 30 seconds after which Kubernetes
    /// kills.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration)]
    grace: Duration,

    /// Stop, as on SIGINT, when standard input ends: so a program that starts this one leaves nothing behind, however
    /// it dies.
    #[arg(long)]
    exit_on_stdin_close: bool,
}

impl Up {
    /// Runs the app until it is told to stop.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let lifetime = Lifetime::default();
        let mut orders = Orders::listen(self.exit_on_stdin_close).map_err(Failure::Io)?;
        let (lame_duck, grace) = (self.lame_duck, self.grace);
        let reload = Notify::new();
        let is_up = AtomicBool::new(false);
        let result = {
            let mut serving = pin!(self.start_and_serve(&lifetime, &is_up, &reload));
            tokio::select! {
                result = serving.as_mut() => result,
                () = leave(&mut orders, &is_up, &reload, &lifetime, lame_duck) => {
                    lifetime.stop();
                    if is_up.load(Ordering::Relaxed) { serving.await } else { Ok(()) }
                }
            }
        };
        lifetime.stop();
        supervisor::stopping();
        tokio::select! {
            finished = lifetime.finish(grace) => if let Err(left) = finished {
                tracing::warn!(
                    "stopped before {left} connections and instances had finished, after the {grace:?} of --grace");
            },
            () = orders.end() => {}
        }
        result
    }

    async fn start_and_serve(
        self,
        lifetime: &Lifetime,
        is_up: &AtomicBool,
        reload: &Notify,
    ) -> Result<(), Failure> {
        let manifest = self.source.manifest()?;
        let identity = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(ServerIdentity::new(certificate, key)?),
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
        app.rehearse(address).await?;
        // The store only then: a start without settings leaves no file.
        app.open_stores().await?;

        let following = async {
            match &identity {
                Some(identity) => identity.follow(reload).await,
                None => std::future::pending().await,
            }
        };
        let serving = async {
            if let Some(listener) = listener {
                let scheme = if identity.is_some() { "https" } else { "http" };
                let mut stdout = io::stdout();
                writeln!(stdout, "Serving {scheme}://{address}")
                    .and_then(|()| stdout.flush())
                    .map_err(Failure::Io)?;
                let server = Server::new(Arc::clone(&app), patience, lifetime.clone());
                serve(
                    listener,
                    Arc::new(server),
                    identity.as_ref(),
                    crowd,
                    lifetime,
                )
                .await;
            }
            Ok(())
        };
        is_up.store(true, Ordering::Relaxed);
        supervisor::ready();
        tokio::select! {
            result = async { tokio::join!(serving, app.keep_schedules(lifetime)).0 } => result,
            () = following => Ok(()),
        }
    }

    /// How instances are reused.
    fn limits(&self) -> ReuseLimits {
        let usual = if self.instances_as_on_spin {
            ReuseLimits::of_spin()
        } else {
            ReuseLimits::default()
        };
        ReuseLimits {
            requests: self.max_instance_reuse_count.or(usual.requests),
            concurrent_requests: self
                .max_instance_concurrent_reuse_count
                .unwrap_or(usual.concurrent_requests),
            request_timeout: self.request_timeout,
            idle_timeout: self.idle_instance_timeout.unwrap_or(usual.idle_timeout),
        }
    }

    /// Loads the app, telling on the way what it is.
    fn load(self, manifest: Manifest, lifetime: &Lifetime) -> Result<Arc<App>, Failure> {
        tracing::info!("{} {}", manifest.name, manifest.version);
        manifest.tell();
        let max_instances = self.max_instances.unwrap_or_else(capacity::instances);
        let limits = self.limits();
        let max_requests = self.max_requests.unwrap_or_else(|| {
            usize::try_from(max_instances)
                .unwrap_or(usize::MAX)
                .saturating_mul(limits.concurrent_requests)
                .max(FEWEST_REQUESTS)
        });
        let options = Options {
            stores: self.source.stores()?,
            limits,
            max_instances,
            max_requests,
            ready_path: self.ready_path,
            cache: self.source.cache(),
            outbound_ca: self.source.outbound_ca.clone(),
            database_connections: self.postgres_connections,
            environment: self.source.environment()?,
        };
        Ok(load(manifest, options, lifetime)?)
    }
}

/// Ends when the process should stop: at once, or, if it serves and is told so, after its clients were sent elsewhere for
/// this long.
async fn leave(
    orders: &mut Orders,
    is_up: &AtomicBool,
    reload: &Notify,
    lifetime: &Lifetime,
    lame_duck: Duration,
) {
    let first = loop {
        match orders.next().await {
            Order::Reload => reload.notify_one(),
            order => break order,
        }
    };
    if first == Order::Stop || !is_up.load(Ordering::Relaxed) {
        return;
    }
    lifetime.leaving.cancel();
    supervisor::stopping();
    // A second order ends it at once.
    let _ = tokio::time::timeout(lame_duck, orders.end()).await;
}
