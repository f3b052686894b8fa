//! What the app stored, read behind its back from Spin's key-value table (PLATFORMS.md, "Spin").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rusqlite::Connection;
use serde_json::Value;

/// The key under which sweeps remember.
const SWEEP_STATE: &str = "sweep.state";
/// What the keys begin with of what is kept of all users together: the settings that were seen, the summary, what sweeps
/// remember, and notes of the use of key versions.
const OF_ALL: [&str; 4] = ["settings.", "sum.", "sweep.", "ver."];

/// The key-value rows of one state directory.
#[derive(Clone, Debug)]
pub struct Store {
    file: PathBuf,
}

impl Store {
    /// The store of the app that runs on `state_dir`.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self {
            file: state_dir.join("sqlite_key_value.db"),
        }
    }

    /// Every key with its value, in all stores, of users alone. Empty before the first enrolment.
    pub fn rows(&self) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        let mut rows = self.all_rows()?;
        rows.retain(|key, _| !OF_ALL.iter().any(|kind| key.starts_with(kind)));
        Ok(rows)
    }

    /// Every key with its value, in all stores.
    pub fn all_rows(&self) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        if !self.file.exists() {
            return Ok(BTreeMap::new());
        }
        let connection = self.open()?;
        let table = "SELECT count(*) FROM sqlite_master WHERE name = 'spin_key_value'";
        if connection.query_row(table, (), |row| row.get::<_, u32>(0))? == 0 {
            return Ok(BTreeMap::new());
        }
        let mut query = connection.prepare("SELECT key, value FROM spin_key_value")?;
        let rows = query.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
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
        let changed = self.open()?.execute(
            "UPDATE spin_key_value SET value = ?2 WHERE key = ?1",
            (key, value),
        )?;
        anyhow::ensure!(changed == 1, "there is no row {key}");
        Ok(())
    }

    /// Writes a row that is not there.
    pub fn insert(&self, key: &str, value: &[u8]) -> anyhow::Result<()> {
        self.open()?.execute(
            "INSERT INTO spin_key_value (store, key, value) VALUES ('default', ?1, ?2)",
            (key, value),
        )?;
        Ok(())
    }

    /// Removes a row.
    pub fn delete(&self, key: &str) -> anyhow::Result<()> {
        let changed = self
            .open()?
            .execute("DELETE FROM spin_key_value WHERE key = ?1", [key])?;
        anyhow::ensure!(changed == 1, "there is no row {key}");
        Ok(())
    }

    /// Makes every record due now, as if its refresh age had passed, and the next sweep look.
    pub fn make_due(&self) -> anyhow::Result<()> {
        self.forget_sweeps()?;
        let now = jiff::Timestamp::now().as_second();
        for (key, mut record) in self.records()? {
            record["due_at"] = now.into();
            self.replace(&key, &serde_json::to_vec(&record)?)?;
        }
        for key in self.keys("due.")? {
            let (_, rest) = key["due.".len()..].split_once('.').context("a marker")?;
            self.open()?.execute(
                "UPDATE spin_key_value SET key = ?2 WHERE key = ?1",
                (&key, format!("due.{now:012}.{rest}")),
            )?;
        }
        Ok(())
    }

    /// Takes away what sweeps remember, as if none had run.
    pub fn forget_sweeps(&self) -> anyhow::Result<()> {
        self.open()?
            .execute("DELETE FROM spin_key_value WHERE key = ?1", [SWEEP_STATE])?;
        Ok(())
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

    /// Keeps everyone else out until the connection is dropped.
    pub fn lock(&self) -> anyhow::Result<Connection> {
        let connection = self.open()?;
        connection.execute_batch("BEGIN EXCLUSIVE")?;
        Ok(connection)
    }

    fn open(&self) -> anyhow::Result<Connection> {
        let connection = Connection::open(&self.file)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        Ok(connection)
    }
}
