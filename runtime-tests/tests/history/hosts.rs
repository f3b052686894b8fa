//! Three processes of the host, and what they need: a database, each its own way to it, and Entra ID.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, ensure};
use runtime_tests::app::{self, App, Options};
use runtime_tests::emulators::{self, Emulators};
use runtime_tests::postgres::{Postgres, Stop};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::way::Way;

/// How many.
pub(crate) const HOSTS: usize = 3;
/// The setting `sweep_seconds`.
pub(crate) const SWEEP_SECONDS: u64 = 3;

const DATABASE: &str = "behalf";
const ROLE: &str = "behalf_app";
const PASSWORD: &str = "a password of the app";

/// All of it.
pub(crate) struct Hosts {
    pub(crate) emulators: Emulators,
    postgres: Arc<Mutex<Postgres>>,
    /// To the database, of each host.
    pub(crate) ways: Vec<Way>,
    /// Each as it is now; none while it starts.
    running: Vec<watch::Sender<Option<Arc<Process>>>>,
    /// Those that were taken out of service.
    former: Mutex<Vec<Arc<Process>>>,
    numbers: AtomicUsize,
    folder: TempDir,
}

/// A process, from its start to its end.
pub(crate) struct Process {
    /// No other has it.
    pub(crate) number: usize,
    pub(crate) app: App,
    /// To Entra ID: of this process alone, so that the journal tells whose requests are its.
    entra: Way,
}

impl Process {
    /// The name by which it calls Entra ID.
    pub(crate) fn entra(&self) -> SocketAddr {
        self.entra.address()
    }
}

impl Hosts {
    /// Starts everything. `plant` is run by the superuser of the database, once the tables are there.
    pub(crate) async fn start(plant: &str) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        app::postgres_manifest(folder.path())?;
        let plant = plant.to_owned();
        let postgres = spawn_blocking(move || database(&plant)).await??;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, postgres.port()));
        let mut ways = Vec::new();
        for _ in 0..HOSTS {
            ways.push(Way::to(address).await?);
        }
        let emulators = Emulators::start(emulators::Options::default()).await?;
        // The same is asked again and again here.
        emulators.refuse_loops(false);
        let hosts = Self {
            emulators,
            postgres: Arc::new(Mutex::new(postgres)),
            ways,
            running: (0..HOSTS).map(|_| watch::Sender::new(None)).collect(),
            former: Mutex::default(),
            numbers: AtomicUsize::new(0),
            folder,
        };
        for host in 0..HOSTS {
            hosts.start_host(host).await?;
        }
        Ok(hosts)
    }

    /// The process of a host, once there is one.
    pub(crate) async fn process(&self, host: usize) -> Arc<Process> {
        let mut running = self.running[host].subscribe();
        let process = running.wait_for(Option::is_some).await;
        // The sender is `self`, so this cannot fail.
        Option::clone(&process.unwrap()).unwrap()
    }

    /// Whether a host has a process.
    pub(crate) fn is_up(&self, host: usize) -> bool {
        self.running[host].borrow().is_some()
    }

    /// Starts a process for a host.
    pub(crate) async fn start_host(&self, host: usize) -> anyhow::Result<()> {
        let entra = self.emulators.authority();
        let entra = entra.strip_prefix("http://").context("an origin")?;
        let entra = Way::to(entra.parse()?).await?;
        let database = self.ways[host].address();
        let options = Options {
            manifest: Some(self.folder.path().join("spin.toml")),
            embedded: Some(Vec::new()),
            ..Options::for_emulators(&self.emulators)
        };
        let options = options
            .state_dir(&self.folder.path().join(host.to_string()))
            .set("authority", &format!("http://{}", entra.address()))
            .set("postgres_host", &database.ip().to_string())
            .set("postgres_port", &database.port().to_string())
            .set("postgres_database", DATABASE)
            .set("postgres_user", ROLE)
            .set("postgres_password", PASSWORD)
            .set("sweep_seconds", &SWEEP_SECONDS.to_string())
            // Everything is due again a moment after it was refreshed.
            .set("refresh_after_seconds", "1");
        let process = Process {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            app: App::start(options).await?,
            entra,
        };
        self.running[host].send_replace(Some(Arc::new(process)));
        Ok(())
    }

    /// Takes a host's process out of service, to be ended. Who has it goes on with it.
    pub(crate) fn take(&self, host: usize) -> Option<Arc<Process>> {
        let taken = self.running[host].send_replace(None);
        if let Some(process) = &taken {
            self.former.lock().unwrap().push(Arc::clone(process));
        }
        taken
    }

    /// Runs statements as the database's superuser.
    pub(crate) async fn sql(&self, statements: &str) -> anyhow::Result<String> {
        let statements = statements.to_owned();
        self.database(move |postgres| postgres.sql(DATABASE, &statements))
            .await
    }

    /// Stops the database.
    pub(crate) async fn stop_database(&self, how: Stop) -> anyhow::Result<()> {
        self.database(move |postgres| postgres.stop(how)).await
    }

    /// Starts it again.
    pub(crate) async fn start_database(&self) -> anyhow::Result<()> {
        self.database(Postgres::start_again).await
    }

    async fn database<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Postgres) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let postgres = Arc::clone(&self.postgres);
        spawn_blocking(move || work(&mut postgres.lock().unwrap())).await?
    }

    /// Stops everything in order, and returns what all processes have said.
    pub(crate) async fn stop(self) -> anyhow::Result<Vec<String>> {
        let mut said = Vec::new();
        for process in self.former.into_inner()? {
            said.extend(process.app.output());
        }
        for running in &self.running {
            let process = running.send_replace(None).context("it runs")?;
            let process = Arc::into_inner(process).context("it is in use")?;
            said.extend(process.app.stop().await?);
        }
        self.emulators.stop().await;
        Ok(said)
    }
}

/// A database that loses nothing when it is stopped at once, with the tables and the role of the app.
fn database(plant: &str) -> anyhow::Result<Postgres> {
    let postgres = Postgres::start_with(&["fsync=on"])?;
    postgres.create_database(DATABASE)?;
    let applied = Command::new(app::behalf()?)
        .args(["schema", "apply", "--role", ROLE, "--database"])
        .arg(postgres.superuser(DATABASE))
        .output()?;
    ensure!(applied.status.success(), "{applied:?}");
    postgres.sql(
        DATABASE,
        &format!("ALTER ROLE {ROLE} PASSWORD '{PASSWORD}'; {plant}"),
    )?;
    Ok(postgres)
}
