//! What the app does on a ledger in PostgreSQL, with few users and with many; and how several replicas of it sweep.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use reqwest::Method;
use runtime_tests::app::{self, App, Options, said};
use runtime_tests::emulators::{self, Answer, Emulators, Fault, Target};
use runtime_tests::postgres::Postgres;
use serde_json::Value;
use tempfile::TempDir;

use crate::cost::Processors;
use crate::load::{self, Request};
use crate::population;

const ROLE: &str = "behalf_app";
const PASSWORD: &str = "a password of the app";
/// Over so many connections.
const CONNECTIONS: u32 = 16;
/// Users who draw in turn.
const DRAWING: u32 = 64;
/// How long Entra ID takes where replicas are compared, and who has time for it.
pub(crate) const ENTRA_TAKES: Duration = Duration::from_millis(400);
/// Replicas of the app that sweep at once.
pub(crate) const REPLICAS: usize = 3;

/// How much is measured.
pub(crate) struct Sizes {
    /// Users of the ledgers that are compared.
    pub(crate) users: [u32; 2],
    /// Users whose refresh tokens are due at once.
    pub(crate) due: u32,
    /// Users who enrol, a round.
    pub(crate) enrolling: u32,
    pub(crate) rounds: usize,
    /// How long draws are asked for, a round.
    pub(crate) time: Duration,
}

/// What was measured.
pub(crate) struct Scale {
    pub(crate) rows: Vec<Operation>,
    /// Bytes on disk of an enrolment, with its share of the indexes.
    pub(crate) bytes: [f64; 2],
    /// Users who are due refreshed in a second: by one replica, and by [`REPLICAS`].
    pub(crate) replicas: [f64; 2],
}

/// An operation, measured in turn on each of the ledgers.
pub(crate) struct Operation {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// Whether the number may be worse with many users than with few.
    pub(crate) grows: bool,
    /// Each round's, of both.
    pub(crate) rounds: Vec<[f64; 2]>,
}

/// Measures all of it.
pub(crate) async fn measure(
    sizes: &Sizes,
    wrk: &Path,
    processors: &Processors,
) -> anyhow::Result<Scale> {
    let folder = tempfile::Builder::new().prefix("behalf-scale-").tempdir()?;
    let settings = [
        "shared_buffers=1GB",
        "max_wal_size=4GB",
        "max_connections=200",
    ];
    let postgres = Postgres::start_with(&settings)?;
    postgres.create_role(ROLE, PASSWORD)?;
    let mut ledgers = Vec::new();
    for (at, users) in sizes.users.into_iter().enumerate() {
        eprintln!("making {users} users");
        let database = format!("bench_{at}");
        ledgers.push(
            Ledger::make(
                &folder, &postgres, database, users, sizes.due, wrk, processors,
            )
            .await?,
        );
    }
    let [few, many] = <[Ledger<'_>; 2]>::try_from(ledgers)
        .ok()
        .context("not two ledgers")?;
    let both = [&few, &many];

    let rounds = sizes.rounds;
    let rows = vec![
        Operation {
            name: format!("a sweep with {} due", sizes.due),
            unit: "records a second",
            grows: false,
            rounds: in_turn(both, rounds, async |ledger, round| {
                if round > 0 {
                    ledger.make_due(sizes.due)?;
                }
                Ok(ledger.sweep_all(&[&ledger.app]).await?.per_second())
            })
            .await?,
        },
        Operation {
            name: "a sweep with nothing due, which counts all users".to_owned(),
            unit: "ms",
            grows: true,
            rounds: in_turn(both, rounds, async |ledger, _| {
                ledger.forget_sweeps()?;
                Ok(milliseconds(ledger.sweep_all(&[&ledger.app]).await?.time))
            })
            .await?,
        },
        Operation {
            name: "rotation of a tenant of a tenth of all users".to_owned(),
            unit: "records a second",
            grows: false,
            rounds: in_turn(both, rounds, async |ledger, _| {
                Ok(ledger.rotate().await?.per_second())
            })
            .await?,
        },
        Operation {
            name: "enrolments of new users".to_owned(),
            unit: "per second",
            grows: false,
            rounds: in_turn(both, rounds, async |ledger, round| {
                Ok(per_second(
                    sizes.enrolling,
                    ledger.enrol(round, sizes.enrolling).await?,
                ))
            })
            .await?,
        },
        Operation {
            name: "cached draws".to_owned(),
            unit: "per second",
            grows: false,
            rounds: drawn(both, sizes, true).await?,
        },
        Operation {
            name: "uncached draws".to_owned(),
            unit: "per second",
            grows: false,
            rounds: drawn(both, sizes, false).await?,
        },
        Operation {
            name: "the status, of all tenants".to_owned(),
            unit: "ms",
            grows: false,
            rounds: in_turn(both, rounds, async |ledger, _| ledger.status().await).await?,
        },
    ];
    let bytes = [few.bytes()?, many.bytes()?];
    let replicas = many.replicas(sizes.due / 4).await?;
    for ledger in [few, many] {
        ledger.stop().await?;
    }
    Ok(Scale {
        rows,
        bytes,
        replicas,
    })
}

/// What sweeps did together.
struct Swept {
    /// Refreshed, or sealed under another key.
    records: u32,
    time: Duration,
}

impl Swept {
    fn per_second(&self) -> f64 {
        per_second(self.records, self.time)
    }
}

/// Measures it on each of the ledgers in turn, so often.
async fn in_turn(
    both: [&Ledger<'_>; 2],
    rounds: usize,
    measure: impl AsyncFn(&Ledger<'_>, usize) -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<[f64; 2]>> {
    let mut found = Vec::new();
    for round in 0..rounds {
        let [few, many] = both;
        found.push([measure(few, round).await?, measure(many, round).await?]);
    }
    Ok(found)
}

async fn drawn(
    both: [&Ledger<'_>; 2],
    sizes: &Sizes,
    is_cached: bool,
) -> anyhow::Result<Vec<[f64; 2]>> {
    let draw = async |ledger: &Ledger<'_>, _| ledger.draw(is_cached, sizes.time).await;
    // The first warms up.
    in_turn(both, 1, draw).await?;
    in_turn(both, sizes.rounds, draw).await
}

/// A database with its users, the world that they live in, and the app.
struct Ledger<'a> {
    database: String,
    users: u32,
    postgres: &'a Postgres,
    emulators: Emulators,
    wrk: &'a Path,
    processors: &'a Processors,
    app: App,
    uncached: App,
    manifest: PathBuf,
    folder: PathBuf,
}

impl<'a> Ledger<'a> {
    async fn make(
        folder: &TempDir,
        postgres: &'a Postgres,
        database: String,
        users: u32,
        due: u32,
        wrk: &'a Path,
        processors: &'a Processors,
    ) -> anyhow::Result<Self> {
        let folder = folder.path().join(&database);
        fs::create_dir(&folder)?;
        let manifest = app::postgres_manifest(&folder)?;
        let schema = said(Command::new(app::behalf()?).args(["schema", "print", "--role", ROLE]))?;
        postgres.create_database(&database)?;
        postgres.sql(&database, &schema)?;
        let emulators = Emulators::start(emulators::Options {
            tenants: population::tenants(),
            key_vault_tenant: population::tenant(0),
            ..emulators::Options::default()
        })
        .await?;
        // The same is asked again and again here.
        emulators.refuse_loops(false);
        elsewhere(|| population::fill(postgres, &database, &emulators, users, due))?;
        let options = || options(&emulators, &manifest, postgres, &database);
        let app = processors.start(options()).await?;
        let uncached = options().set("access_token_cache_seconds", "0");
        let uncached = processors.start(uncached).await?;
        let tokens: Vec<_> = (0..DRAWING)
            .map(|n| token(&emulators, n * (users / DRAWING)))
            .collect();
        fs::write(folder.join("tokens"), tokens.join("\n"))?;
        Ok(Self {
            database,
            users,
            postgres,
            emulators,
            wrk,
            processors,
            app,
            uncached,
            manifest,
            folder,
        })
    }

    /// Sweeps with all of them at once until nothing is left to do. In a second, so many records were refreshed or re-sealed.
    async fn sweep_all(&self, apps: &[&App]) -> anyhow::Result<Swept> {
        let begun = Instant::now();
        let done = try_join_all(apps.iter().map(|app| async {
            let mut done = 0;
            loop {
                let report = self.ask(app, Method::POST, "/v1/sweep", None).await?;
                let troubles = ["failed", "waiting", "refused"];
                ensure!(troubles.iter().all(|it| report[it] == 0), "{report}");
                let number = |name: &str| report[name].as_u64().context("a number is missing");
                done += number("refreshed")? + number("resealed")?;
                // What is tried again at once, or in a minute.
                let left = number("remaining")? + number("unchecked")? + number("retrying")?;
                if left == 0 {
                    return anyhow::Ok(done);
                }
            }
        }))
        .await?;
        let time = begun.elapsed();
        self.emulators.clear_journal();
        let left =
            "SELECT count(*) FROM behalf.enrolment WHERE due_at < extract(epoch FROM now()) - 60";
        let left = self.sql(left)?;
        ensure!(left.trim() == "0", "{left} are due still");
        let records = u32::try_from(done.into_iter().sum::<u64>())?;
        Ok(Swept { records, time })
    }

    /// Has the next sweep look at everything, and count.
    fn forget_sweeps(&self) -> anyhow::Result<()> {
        self.sql(
            "UPDATE behalf.app SET sweep_state = NULL;
             UPDATE behalf.counts SET counted_at = greatest(counted_at - 61, 0)",
        )
        .map(drop)
    }

    /// Gives the largest tenant a new key, and has all its records moved to it.
    async fn rotate(&self) -> anyhow::Result<Swept> {
        let tenant = population::tenant(0);
        let version = self.emulators.rotate_key(&tenant).ok();
        let version = version.context("cannot set a key")?;
        self.sql("UPDATE behalf.app SET sweep_state = NULL")?;
        let took = self.sweep_all(&[&self.app]).await?;
        let left = self.sql(&format!(
            "SELECT count(*) FROM behalf.enrolment WHERE tenant = '{tenant}' AND key_version <> '{version}'"
        ))?;
        ensure!(left.trim() == "0", "{left} are under another version still");
        Ok(took)
    }

    /// Users who are not there yet enrol, each once.
    async fn enrol(&self, round: usize, users: u32) -> anyhow::Result<Duration> {
        let first = self.users + users * u32::try_from(round)?;
        let tokens: Vec<_> = (first..first + users)
            .map(|number| token(&self.emulators, number))
            .collect();
        let begun = Instant::now();
        let mut each = tokens.iter();
        // As many at once as there are connections.
        let lanes: Vec<Vec<_>> = (0..CONNECTIONS)
            .map(|_| {
                each.by_ref()
                    .take(tokens.len().div_ceil(CONNECTIONS as usize))
                    .collect()
            })
            .collect();
        try_join_all(lanes.into_iter().map(|lane| async {
            for token in lane {
                let answer = self
                    .app
                    .send(Method::PUT, "/v1/me", Some(token), None)
                    .await?;
                ensure!(answer.status == 201, "{answer:?}");
            }
            anyhow::Ok(())
        }))
        .await?;
        Ok(begun.elapsed())
    }

    async fn draw(&self, is_cached: bool, time: Duration) -> anyhow::Result<f64> {
        let app = if is_cached { &self.app } else { &self.uncached };
        let request = Request {
            wrk: self.wrk.to_owned(),
            url: format!("{}/v1/me/access-token", app.url()),
            method: "POST",
            tokens: Some(self.folder.join("tokens")),
        };
        let sample = load::run(&request, app, CONNECTIONS, time).await?;
        Ok(sample.per_second)
    }

    /// How long the status takes, in milliseconds: the median of some.
    async fn status(&self) -> anyhow::Result<f64> {
        let operator = self
            .emulators
            .caller()
            .tenant(&population::tenant(0))
            .app(&["Behalf.Read"])
            .mint();
        let mut took = Vec::new();
        for _ in 0..20 {
            let begun = Instant::now();
            let status = self
                .ask(&self.app, Method::GET, "/v1/status", Some(&operator))
                .await?;
            took.push(milliseconds(begun.elapsed()));
            let users = status["users"].as_u64().context("no number of users")?;
            ensure!(users >= self.users.into(), "{status}");
        }
        Ok(crate::report::median(&took))
    }

    /// Users refreshed in a second by one replica, and by several, if Entra ID takes its time.
    async fn replicas(&self, due: u32) -> anyhow::Result<[f64; 2]> {
        let mut apps = Vec::new();
        for _ in 0..REPLICAS {
            let options = options(
                &self.emulators,
                &self.manifest,
                self.postgres,
                &self.database,
            );
            apps.push(self.processors.start(options).await?);
        }
        let apps_now: Vec<_> = apps.iter().collect();
        self.emulators.fault(Fault {
            count: u32::MAX,
            delay_ms: u64::try_from(ENTRA_TAKES.as_millis())?,
            ..Fault::new(Target::EntraToken, Answer::Pass)
        });
        let mut found = [0.0; 2];
        for (found, apps) in found.iter_mut().zip([&apps_now[..1], &apps_now[..]]) {
            self.make_due(due)?;
            *found = self.sweep_all(apps).await?.per_second();
        }
        self.emulators.clear_faults();
        for app in apps {
            app.stop().await?;
        }
        Ok(found)
    }

    /// Bytes on disk of an enrolment.
    fn bytes(&self) -> anyhow::Result<f64> {
        let bytes = "SELECT pg_total_relation_size('behalf.enrolment')::float8 / count(*) FROM behalf.enrolment";
        Ok(self.sql(bytes)?.trim().parse()?)
    }

    /// Makes the first users' refresh tokens due.
    fn make_due(&self, users: u32) -> anyhow::Result<()> {
        self.sql(&format!(
            "UPDATE behalf.app SET sweep_state = NULL;
             UPDATE behalf.enrolment SET due_at = now.now, leased_until = 0, record = convert_to(jsonb_set(
               convert_from(record, 'UTF8')::jsonb, '{{due_at}}', to_jsonb(now.now))::text, 'UTF8')
             FROM (SELECT floor(extract(epoch FROM now()))::int8 - 1 AS now) AS now
             WHERE (bucket, app, tenant, usr) IN (SELECT bucket, app, tenant, usr FROM behalf.enrolment ORDER BY due_at DESC, usr LIMIT {users})"
        ))
        .map(drop)
    }

    fn sql(&self, statements: &str) -> anyhow::Result<String> {
        self.postgres.sql(&self.database, statements)
    }

    async fn ask(
        &self,
        app: &App,
        method: Method,
        path: &str,
        bearer: Option<&str>,
    ) -> anyhow::Result<Value> {
        let bearer = bearer.unwrap_or(&self.emulators.options().sweep_key);
        let answer = app.send(method, path, Some(bearer), None).await?;
        ensure!(answer.status.is_success(), "{path}: {answer:?}");
        Ok(answer.json)
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.app.stop().await?;
        self.uncached.stop().await?;
        self.emulators.stop().await;
        Ok(())
    }
}

fn token(emulators: &Emulators, number: u32) -> String {
    let (tenant, object) = population::user(number);
    let tenant = population::tenant(tenant);
    emulators.caller().tenant(&tenant).user(&object).mint()
}

fn options(emulators: &Emulators, manifest: &Path, postgres: &Postgres, database: &str) -> Options {
    let options = Options {
        manifest: Some(manifest.to_owned()),
        ..Options::for_emulators(emulators)
    };
    options
        .long_lived()
        .set("operator_tenant", &population::tenant(0))
        .set("postgres_host", postgres.host())
        .set("postgres_port", &postgres.port().to_string())
        .set("postgres_database", database)
        .set("postgres_user", ROLE)
        .set("postgres_password", PASSWORD)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn per_second(number: u32, time: Duration) -> f64 {
    f64::from(number) / time.as_secs_f64()
}

/// Runs on a thread where one may wait.
fn elsewhere<T: Send>(work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
