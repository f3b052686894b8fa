//! What the app stored, read behind its back: from Spin's key-value table (PLATFORMS.md, "Spin"), from Redis, or from PostgreSQL.

pub mod tables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::redis::Commands as _;
use anyhow::Context as _;
use rusqlite::Connection;
use serde_json::Value;

use crate::redis;
use crate::store::tables::{TableLock, Tables};

/// The key under which sweeps remember.
const SWEEP_STATE: &str = "sweep.state";
/// What the keys begin with of what is kept of all users together: the settings that were seen, the summary, what sweeps
/// remember, and notes of the use of key versions.
const OF_ALL: [&str; 4] = ["settings.", "sum.", "sweep.", "ver."];

/// The key-value rows of one store.
#[derive(Clone, Debug)]
pub enum Store {
    /// In this file.
    File(PathBuf),
    /// In the Redis server at this address.
    Redis(String),
    /// In these tables.
    Postgres(Tables),
}

/// What keeps others out of a store.
pub enum Lock {
    /// A transaction of `SQLite`.
    File(Connection),
    /// One of `PostgreSQL`.
    Tables(TableLock),
}

impl Store {
    /// The store of the app that runs on `state_dir`.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self::File(state_dir.join("sqlite_key_value.db"))
    }

    /// Every key with its value, in all stores, of users alone. Empty before the first enrolment.
    pub fn rows(&self) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        let mut rows = self.all_rows()?;
        rows.retain(|key, _| !OF_ALL.iter().any(|kind| key.starts_with(kind)));
        Ok(rows)
    }

    /// Every key with its value, in all stores.
    pub fn all_rows(&self) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        match self {
            Self::File(file) if !file.exists() => Ok(BTreeMap::new()),
            Self::File(_) => {
                let connection = self.open()?;
                let table = "SELECT count(*) FROM sqlite_master WHERE name = 'spin_key_value'";
                if connection.query_row(table, (), |row| row.get::<_, u32>(0))? == 0 {
                    return Ok(BTreeMap::new());
                }
                let mut query = connection.prepare("SELECT key, value FROM spin_key_value")?;
                let rows = query.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<Result<_, _>>()?)
            }
            Self::Redis(url) => {
                let mut connection = redis::connect(url)?;
                let keys: Vec<String> = connection.keys("*")?;
                let mut rows = BTreeMap::new();
                for key in keys {
                    // What has gone meanwhile is not there.
                    if let Some(value) = connection.get::<_, Option<Vec<u8>>>(&key)? {
                        rows.insert(key, value);
                    }
                }
                Ok(rows)
            }
            Self::Postgres(tables) => tables.all_rows(),
        }
    }

    /// The keys that start with `prefix`, in order.
    pub fn keys(&self, prefix: &str) -> anyhow::Result<Vec<String>> {
        Ok(self
            .rows()?
            .into_keys()
            .filter(|key| key.starts_with(prefix))
            .collect())
    }

    /// The records, by key.
    pub fn records(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let rows = self.rows()?;
        let records = rows.into_iter().filter(|(key, _)| key.starts_with("rec."));
        records
            .map(|(key, value)| Ok((key, serde_json::from_slice(&value)?)))
            .collect()
    }

    /// The one record there is.
    pub fn record(&self) -> anyhow::Result<(String, Value)> {
        let mut records = self.records()?;
        anyhow::ensure!(records.len() == 1, "one record, not {}", records.len());
        records
            .pop_first()
            .ok_or_else(|| anyhow::anyhow!("no record"))
    }

    /// Writes a value in the place of an existing one.
    pub fn replace(&self, key: &str, value: &[u8]) -> anyhow::Result<()> {
        let changed = match self {
            Self::File(_) => {
                let update = "UPDATE spin_key_value SET value = ?2 WHERE key = ?1";
                self.open()?.execute(update, (key, value))? == 1
            }
            // If it exists.
            Self::Redis(url) => ::redis::cmd("SET")
                .arg((key, value, "XX"))
                .query::<Option<String>>(&mut redis::connect(url)?)?
                .is_some(),
            Self::Postgres(tables) => tables.replace(key, value)?,
        };
        anyhow::ensure!(changed, "there is no row {key}");
        Ok(())
    }

    /// Writes a row that is not there.
    pub fn insert(&self, key: &str, value: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::File(_) => {
                let insert =
                    "INSERT INTO spin_key_value (store, key, value) VALUES ('default', ?1, ?2)";
                self.open()?.execute(insert, (key, value))?;
            }
            Self::Redis(url) => {
                let inserted: bool = redis::connect(url)?.set_nx(key, value)?;
                anyhow::ensure!(inserted, "there is a row {key}");
            }
            Self::Postgres(tables) => tables.insert(key)?,
        }
        Ok(())
    }

    /// Removes a row.
    pub fn delete(&self, key: &str) -> anyhow::Result<()> {
        anyhow::ensure!(self.remove(key)?, "there is no row {key}");
        Ok(())
    }

    /// Removes a row; whether there was one.
    fn remove(&self, key: &str) -> anyhow::Result<bool> {
        Ok(match self {
            Self::File(_) => {
                let delete = "DELETE FROM spin_key_value WHERE key = ?1";
                self.open()?.execute(delete, [key])? == 1
            }
            Self::Redis(url) => redis::connect(url)?.del(key)?,
            Self::Postgres(_) => anyhow::bail!("a row of PostgreSQL is not for tests to remove"),
        })
    }

    /// Makes every record due now, as if its refresh age had passed, and the next sweep look.
    pub fn make_due(&self) -> anyhow::Result<()> {
        if let Self::Postgres(tables) = self {
            return tables.make_due();
        }
        self.forget_sweeps()?;
        let now = jiff::Timestamp::now().as_second();
        for (key, mut record) in self.records()? {
            record["due_at"] = now.into();
            self.replace(&key, &serde_json::to_vec(&record)?)?;
        }
        for key in self.keys("due.")? {
            let (_, rest) = key["due.".len()..].split_once('.').context("a marker")?;
            let marker = format!("due.{now:012}.{rest}");
            if marker != key {
                self.insert(&marker, &self.value(&key)?)?;
                self.delete(&key)?;
            }
        }
        Ok(())
    }

    /// Takes away what sweeps remember, as if none had run.
    pub fn forget_sweeps(&self) -> anyhow::Result<()> {
        if let Self::Postgres(tables) = self {
            return tables.forget_sweeps();
        }
        self.remove(SWEEP_STATE).map(drop)
    }

    /// Lets the next sweep count what is stored, though less than a minute may have passed since the last did.
    pub fn pass_a_minute(&self) -> anyhow::Result<()> {
        match self {
            Self::Postgres(tables) => tables.pass_a_minute(),
            Self::File(_) | Self::Redis(_) => Ok(()),
        }
    }

    /// Fails every write of `key`, and so every batch that holds it, until [`Store::refuse_nothing`].
    pub fn refuse(&self, key: &str) -> anyhow::Result<()> {
        anyhow::ensure!(!key.contains('\''), "a key of the app: {key}");
        self.open()?.execute_batch(&format!(
            "CREATE TRIGGER refuse BEFORE INSERT ON spin_key_value WHEN NEW.key = '{key}'
             BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
        ))?;
        Ok(())
    }

    /// Ends [`Store::refuse`].
    pub fn refuse_nothing(&self) -> anyhow::Result<()> {
        Ok(self.open()?.execute_batch("DROP TRIGGER refuse")?)
    }

    /// Keeps everyone else out until the lock is dropped.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        if let Self::Postgres(tables) = self {
            return Ok(Lock::Tables(tables.lock()?));
        }
        let connection = self.open()?;
        connection.execute_batch("BEGIN EXCLUSIVE")?;
        Ok(Lock::File(connection))
    }

    fn value(&self, key: &str) -> anyhow::Result<Vec<u8>> {
        let mut rows = self.all_rows()?;
        rows.remove(key)
            .with_context(|| format!("there is no row {key}"))
    }

    fn open(&self) -> anyhow::Result<Connection> {
        let Self::File(file) = self else {
            anyhow::bail!("only a file has anything of the kind");
        };
        let connection = Connection::open(file)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        Ok(connection)
    }
}
