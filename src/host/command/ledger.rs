//! `behalf ledger`.

use super::Failure;
use super::database::DatabasePlace;
use super::stores::{ManifestFile, Stores};
use crate::log::{self, Format, Verbosity};
use crate::postgres::{Limits, Tables};
use crate::store::{Bucket, LABEL, Sole, Store};
use behalf_core::ledger::Ledger as _;
use behalf_core::ledger::StoreError;
use behalf_core::ledger::key_value::KeyValueLedger;
use behalf_core::ledger::key_value::store::{Page, Store as KeyValuePort};
use behalf_core::ledger::postgres::PostgresLedger;
use behalf_core::ledger::transfer::{Names, Progress, Report, TransferError, carry_over};
use behalf_core::port::{Clock, Log, Random, Timer};
use clap::{Args, Subcommand, ValueEnum};
use std::io::{self, IsTerminal as _};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const EXAMPLES: &str = "\
Examples:
  behalf ledger copy --to postgres --state-dir /data --database \"host=db.example user=behalf_app dbname=behalf sslmode=require\" \\
    --password-file /run/secrets/app
  behalf ledger copy --to key-value --runtime-config-file redis.toml --database postgres://behalf_app@db.example/behalf?sslmode=require
  behalf ledger copy --to key-value --replace …         back again, in the place of what is still there from before

Exit codes: 0 both sides hold the same, 1 they do not: the log says why, and to run it again goes on, 2 the command line is wrong.";

/// How often it is told how far it is: on a terminal, and elsewhere.
const TELL: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(30)];

/// What to do with what is stored of enrolments.
#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    /// Copy all enrolments from a key-value store to a PostgreSQL database, or back, while the app is stopped.
    ///
    /// Records are copied byte for byte: nothing is opened, and no key is needed. What was copied stays where it was. To run it
    /// again goes on where it was interrupted; at the end both sides are read again and compared. It does not begin while a host
    /// has the store open, if that is a file; that nobody uses the database or a Redis server is yours to see to.
    #[command(after_help = EXAMPLES)]
    Copy(Box<LedgerCopy>),
}

/// The options of `behalf ledger copy`.
#[derive(Debug, Args)]
pub(super) struct LedgerCopy {
    /// Which way.
    #[arg(long, value_name = "SIDE")]
    to: Side,

    /// Overwrite and remove what is there and differs. Without it nothing is changed where anything does.
    #[arg(long)]
    replace: bool,

    /// The app's setting `store_prefix`.
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = prefix)]
    prefix: String,

    #[command(flatten)]
    database: DatabasePlace,

    #[command(flatten)]
    manifest: ManifestFile,

    #[command(flatten)]
    stores: Stores,

    /// The key-value store's label.
    #[arg(long, value_name = "LABEL", default_value = LABEL)]
    label: String,
}

/// Where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    /// From the key-value store to the database.
    Postgres,
    /// From the database to the key-value store.
    KeyValue,
}

fn prefix(text: &str) -> Result<String, &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if text.len() <= 32 && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("it may hold up to 32 characters of [A-Za-z0-9._-]")
    }
}

impl LedgerCommand {
    /// Does it.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let Self::Copy(copy) = self;
        copy.run().await
    }
}

impl LedgerCopy {
    async fn run(self) -> Result<(), Failure> {
        log::begin(Format::Text, Verbosity::Info);
        let stopped = || {
            Failure::Copy(
                "interrupted; nothing is lost, and to run it again goes on where it was".into(),
            )
        };
        // The signal is noticed between two steps.
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => Err(stopped()),
            done = self.copy() => done,
        }
    }

    async fn copy(&self) -> Result<(), Failure> {
        let store = self.store()?;
        let tables = Tables::new(self.database.connect(Limits::Minute).await?);
        let surroundings = Surroundings::default();
        let key_value = KeyValueLedger::new(store, surroundings.clone()).under(&self.prefix);
        let postgres = PostgresLedger::new(tables, surroundings).under(&self.prefix);
        let mut teller = Teller::default();
        let mut tell = |progress| teller.tell(progress);
        let done = match self.to {
            Side::Postgres => carry_over(&key_value, &postgres, self.replace, &mut tell).await,
            Side::KeyValue => carry_over(&postgres, &key_value, self.replace, &mut tell).await,
        };
        told(&done.map_err(why)?)
    }

    fn store(&self) -> Result<KeyValue, Failure> {
        let stores = self.stores.read(&self.manifest)?;
        let store = stores.get(&self.label).ok_or_else(|| {
            Failure::Usage(format!("--label {}: there is no such store", self.label))
        })?;
        match (store, store.path()) {
            (Store::Sqlite(_), None) => Err(Failure::Usage(
                "the key-value store is in memory, and ends with its process".into(),
            )),
            (Store::Sqlite(_), Some(path)) => {
                let make = self.to == Side::KeyValue;
                Ok(KeyValue::File(Rc::new(Sole::open(
                    path,
                    &self.label,
                    make,
                )?)))
            }
            (Store::Redis(_), _) => Ok(KeyValue::Redis(store.bucket(&self.label))),
        }
    }
}

/// What came of it, in words.
fn told(report: &Report) -> Result<(), Failure> {
    let from = report.from;
    tracing::info!(
        "enrolments: {}, of which without a refresh token: {}; key versions: {}; tenants being removed: {}",
        from.enrolments,
        from.without_token,
        from.versions,
        from.bars
    );
    tracing::info!(
        "copied {}, there already {}, removed {}",
        report.copied,
        report.same,
        report.removed
    );
    for (names, what) in [
        (
            &report.unreadable,
            "have a record that this version cannot read: it was copied as it is",
        ),
        (
            &report.lost,
            "have lost their record: they have to enrol again, as before",
        ),
    ] {
        if names.total > 0 {
            tracing::warn!("{} {what}: {}", names.total, list(names));
        }
    }
    if report.left.total > 0 {
        return Err(Failure::Copy(format!(
            "all was copied but {} whose enrolment cannot be read, not even its name; remove them, or have them enrol again, where they \
             are: {}",
            report.left.total,
            list(&report.left)
        )));
    }
    if report.different.total > 0 {
        return Err(Failure::Copy(format!(
            "the two sides were read again, and differ in {}, so somebody has used one of them meanwhile; stop the app and run this \
             again: {}",
            report.different.total,
            list(&report.different)
        )));
    }
    tracing::info!("both sides were read again, and hold the same");
    Ok(())
}

fn list(names: &Names) -> String {
    let mut list = names.some.join(", ");
    if u64::try_from(names.some.len()).is_ok_and(|some| some < names.total) {
        list.push_str(", …");
    }
    list
}

fn why(error: TransferError) -> Failure {
    Failure::Copy(match error {
        TransferError::Occupied { other, extra } => format!(
            "nothing was changed: where it is to go there are {} that differ and {} that are not to be copied, which --replace overwrites \
             and removes: {}",
            other.total,
            extra.total,
            [&other, &extra]
                .into_iter()
                .filter(|names| names.total > 0)
                .map(list)
                .collect::<Vec<_>>()
                .join(", ")
        ),
        TransferError::TooMany(..) => error.to_string(),
        TransferError::Nothing(_) => {
            format!("{error}: look at --to, --prefix and the names of the two places")
        }
        TransferError::From(_) | TransferError::To(_) => {
            format!("{error}; nothing is lost, and to run this again goes on where it was")
        }
    })
}

/// Says now and then how far it is.
struct Teller {
    pause: Duration,
    last: Instant,
}

impl Default for Teller {
    fn default() -> Self {
        let [on_terminal, elsewhere] = TELL;
        let is_terminal = io::stderr().is_terminal();
        Self {
            pause: if is_terminal { on_terminal } else { elsewhere },
            last: Instant::now(),
        }
    }
}

impl Teller {
    fn tell(&mut self, progress: Progress) {
        if self.last.elapsed() < self.pause {
            return;
        }
        self.last = Instant::now();
        match progress {
            Progress::Read(number) => tracing::info!("read {number}"),
            Progress::Copied(number, of) => tracing::info!("copied {number} of {of}"),
            Progress::Verified(number) => tracing::info!("verified {number}"),
        }
    }
}

/// A key-value store, as the core has it. A clone is the same one.
#[derive(Clone)]
enum KeyValue {
    File(Rc<Sole>),
    Redis(Bucket),
}

impl KeyValue {
    /// Lets a signal be noticed.
    async fn step<T, E: ToString>(&self, done: Result<T, E>) -> Result<T, StoreError> {
        tokio::task::yield_now().await;
        done.map_err(|error| StoreError(error.to_string()))
    }
}

impl KeyValuePort for KeyValue {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self {
            Self::File(file) => self.step(file.get(key)).await,
            Self::Redis(redis) => self.step(redis.get(key.to_owned()).await).await,
        }
    }

    async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.set_many(&[(key, value)]).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.delete_many(&[key]).await
    }

    async fn list_keys(&self, _: Option<&str>) -> Result<Page, StoreError> {
        let keys = match self {
            Self::File(file) => self.step(file.keys()).await,
            Self::Redis(redis) => self.step(redis.keys().await).await,
        };
        let cursor = None;
        keys.map(|keys| Page { keys, cursor })
    }

    async fn set_many(&self, pairs: &[(&str, &[u8])]) -> Result<(), StoreError> {
        match self {
            Self::File(file) => self.step(file.set(pairs)).await,
            Self::Redis(redis) => {
                let pairs = pairs.iter();
                let pairs = pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
                self.step(redis.set_many(pairs.collect()).await).await
            }
        }
    }

    async fn delete_many(&self, keys: &[&str]) -> Result<(), StoreError> {
        match self {
            Self::File(file) => self.step(file.delete(keys)).await,
            Self::Redis(redis) => {
                let keys = keys.iter().map(|key| (*key).to_owned());
                self.step(redis.delete_many(keys.collect()).await).await
            }
        }
    }
}

/// Clocks, chance and the log, as the core has them.
#[derive(Clone)]
struct Surroundings {
    begun: Instant,
}

impl Default for Surroundings {
    fn default() -> Self {
        let begun = Instant::now();
        Self { begun }
    }
}

impl Clock for Surroundings {
    fn now(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    }
}

impl Timer for Surroundings {
    fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

impl Random for Surroundings {
    /// Of marks alone, which are to differ and no more: where the system has none, they do without.
    fn fill(&self, buffer: &mut [u8]) {
        let _ = rustls::crypto::ring::default_provider()
            .secure_random
            .fill(buffer);
    }
}

impl Log for Surroundings {
    fn line(&self, line: &str) {
        tracing::warn!("{line}");
    }
}
