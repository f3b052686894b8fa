//! A store in `SQLite`, in the place and the table that Spin uses, so that either host reads the other's data
//! (PLATFORMS.md, "Key-value").

use super::place::{OpenError, Place};
use super::readers::{Readers, Total};
use super::writer::{self, Change, Writer};
use rusqlite::{Connection, ErrorCode, MAIN_DB, OptionalExtension as _};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// How large the log beside the file stays after it grew larger, in bytes.
const LOG_LIMIT: i64 = 16 * 1024 * 1024;

/// How long to wait between two attempts to change the mode of the file, which `SQLite` does not do itself.
const RETRY: Duration = Duration::from_millis(10);

/// A store, opened when it is first used.
#[derive(Debug, Clone)]
pub(crate) struct Sqlite {
    place: Place,
    opened: Arc<OnceCell<Opened>>,
}

#[derive(Debug)]
struct Opened {
    readers: Arc<Readers>,
    writer: Writer,
}

impl Sqlite {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            opened: Arc::default(),
        }
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.place.path()
    }

    /// Opens it, and makes it if there is none, unless that was done.
    pub(super) async fn open(&self) -> Result<(), OpenError> {
        self.opened().await.map(|_| ())
    }

    async fn opened(&self) -> Result<&Opened, OpenError> {
        let open = || async {
            let place = self.place.clone();
            tokio::task::spawn_blocking(move || Opened::at(place))
                .await
                .map_err(|_| self.place.fail("this process ends"))?
        };
        self.opened.get_or_try_init(open).await
    }

    async fn readers(&self) -> Result<&Arc<Readers>, String> {
        let opened = self.opened().await;
        opened
            .map(|opened| &opened.readers)
            .map_err(|error| error.to_string())
    }

    /// Makes a change under this label. Returns the sum of an increment, and of a swap whether there was one.
    pub(super) async fn change(&self, label: &Arc<str>, change: Change) -> Result<i64, String> {
        let opened = self.opened().await.map_err(|error| error.to_string())?;
        opened.writer.change(label, change).await
    }

    pub(super) async fn get(
        &self,
        label: &Arc<str>,
        key: String,
    ) -> Result<Option<Vec<u8>>, String> {
        let label = Arc::clone(label);
        let query = move |connection: &Connection| {
            let value: Option<Vec<u8>> = connection
                .prepare_cached("SELECT value FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .query_row((&label, &key), |row| row.get(0))
                .optional()?;
            if let Some(bytes) = &value {
                Total::default().add(bytes.len())?;
            }
            Ok(value)
        };
        self.readers().await?.row(query).await
    }

    pub(super) async fn exists(&self, label: &Arc<str>, key: String) -> Result<bool, String> {
        let label = Arc::clone(label);
        let query = move |connection: &Connection| {
            Ok(connection
                .prepare_cached("SELECT 1 FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .exists((&label, &key))?)
        };
        self.readers().await?.row(query).await
    }

    pub(super) async fn keys(&self, label: &Arc<str>) -> Result<Vec<String>, String> {
        let label = Arc::clone(label);
        let query = move |connection: &Connection| {
            let mut statement =
                connection.prepare_cached("SELECT key FROM spin_key_value WHERE store = ?1")?;
            let mut rows = statement.query((&label,))?;
            let mut keys = Vec::new();
            let mut total = Total::of_list();
            while let Some(row) = rows.next()? {
                let key: String = row.get(0)?;
                total.add(key.len())?;
                keys.push(key);
            }
            Ok(keys)
        };
        self.readers().await?.rows(query).await
    }

    pub(super) async fn get_many(
        &self,
        label: &Arc<str>,
        keys: Vec<String>,
    ) -> Result<Vec<(String, Option<Vec<u8>>)>, String> {
        let label = Arc::clone(label);
        let keys = serde_json::Value::from(keys).to_string();
        let query = move |connection: &Connection| {
            let mut statement = connection.prepare_cached(
                "SELECT key, value FROM spin_key_value
                 WHERE store = ?1 AND key IN (SELECT value FROM json_each(?2))",
            )?;
            let mut rows = statement.query((&label, &keys))?;
            let mut pairs = Vec::new();
            let mut total = Total::of_list();
            while let Some(row) = rows.next()? {
                let (key, value): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
                total.add(key.len())?;
                total.add(value.len())?;
                pairs.push((key, Some(value)));
            }
            Ok(pairs)
        };
        self.readers().await?.rows(query).await
    }
}

impl Opened {
    fn at(place: Place) -> Result<Self, OpenError> {
        let connection = connect(&place)?;
        let writer = Writer::start(connection)
            .map_err(|error| place.fail(format_args!("cannot start a thread: {error}")))?;
        let readers = Arc::new(Readers::new(place));
        Ok(Self { readers, writer })
    }
}

/// Where it is.
impl fmt::Display for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

/// A connection that writes, to a store that is made if there is none.
pub(super) fn connect(place: &Place) -> Result<Connection, OpenError> {
    place
        .make()
        .map_err(|error| place.fail(format_args!("cannot make it: {error}")))?;
    let connect = || {
        let connection = place.connect()?;
        // SQLite opens such a file for reading alone, and would go on so when it can be written again.
        if connection.is_readonly(MAIN_DB)? {
            return Err(ConnectError::ReadOnly);
        }
        connection.busy_timeout(writer::PATIENCE)?;
        if place.path().is_some() {
            keep_a_log(&connection)?;
            // What was committed is on disk, and not only on its way.
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "journal_size_limit", LOG_LIMIT)?;
        }
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS spin_key_value (
                store TEXT NOT NULL,
                key TEXT NOT NULL,
                value BLOB NOT NULL,
                PRIMARY KEY (store, key)
            )",
        )?;
        Ok(connection)
    };
    connect().map_err(|error| place.fail(error))
}

/// Puts the file in the mode with a log, in which it stays. Others may have it open, but must not be using it.
fn keep_a_log(connection: &Connection) -> Result<(), ConnectError> {
    let begun = Instant::now();
    loop {
        let mode = connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
        match mode {
            Ok(mode) if mode == "wal" => return Ok(()),
            Err(error) if is_busy(&error) && begun.elapsed() < writer::PATIENCE => {
                std::thread::sleep(RETRY);
            }
            Ok(_) => return Err(ConnectError::NoLog),
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("it is read-only")]
    ReadOnly,
    #[error("its file system has no write-ahead log, as those of networks: it must be a local one")]
    NoLog,
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}
