//! A copy of a store, and the store as it was when a copy was made. Both work while hosts use it.

use super::place::{self, OpenError, Place};
use super::sqlite;
use rusqlite::Connection;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a restore waits for those who write.
const PATIENCE: Duration = Duration::from_secs(30);

/// Copies the store in the file `from` into the file `to`, as it is at one moment. Holds up nobody, and leaves nothing
/// half done: `to` is there when all of it is on disk.
///
/// # Errors
///
/// See [`BackupError`].
pub(crate) fn back_up(from: &Path, to: &Path) -> Result<(), BackupError> {
    let to = std::path::absolute(to).map_err(|error| BackupError::file(to, &error))?;
    let unwritten = |error: io::Error| BackupError::file(&to, &error);
    if to.exists() {
        return Err(unwritten(io::ErrorKind::AlreadyExists.into()));
    }
    let connection = open(from)?;
    let folder = to.parent().unwrap_or(Path::new("/"));
    // For this user alone, as the store is.
    let copy = tempfile::NamedTempFile::new_in(folder).map_err(unwritten)?;
    connection
        .execute("VACUUM INTO ?1", [copy.path().to_string_lossy()])
        .map_err(|error| BackupError::sqlite(&to, &error))?;
    File::open(copy.path())
        .and_then(|file| file.sync_all())
        .map_err(unwritten)?;
    copy.persist_noclobber(&to)
        .map_err(|error| unwritten(error.error))?;
    place::sync(folder).map_err(unwritten)
}

/// Puts what is in the copy `from` in the place of all that is in the store in the file `to`, in one transaction, and makes
/// that file if it is not there. Hosts that use it read the one or the other, and write nothing for half a minute.
///
/// # Errors
///
/// See [`BackupError`].
pub(crate) fn restore(from: &Path, to: &Path) -> Result<(), BackupError> {
    // Whether it is a copy, and whole, before anything is touched.
    let sound = open(from)?
        .query_row("PRAGMA quick_check", [], |row| row.get::<_, String>(0))
        .map_err(|error| BackupError::sqlite(from, &error))?;
    if sound != "ok" {
        return Err(BackupError::Damaged(from.to_owned()));
    }
    let place = Place::new(Some(to.to_owned()));
    let mut connection = sqlite::connect(&place)?;
    let mut replace = || {
        connection.busy_timeout(PATIENCE)?;
        connection.execute("ATTACH ?1 AS copy", [from.to_string_lossy()])?;
        let whole =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        whole.execute_batch(
            "DELETE FROM main.spin_key_value;
             INSERT INTO main.spin_key_value (store, key, value) SELECT store, key, value FROM copy.spin_key_value;",
        )?;
        let count = restores(&whole)?.wrapping_add(1);
        whole.pragma_update(
            Some("main"),
            "user_version",
            i32::try_from(count).unwrap_or(0),
        )?;
        whole.commit()
    };
    replace().map_err(|error| BackupError::sqlite(to, &error))
}

/// How often this store was restored. It is noted in the file itself, where `SQLite` has a number for those who use it.
pub(super) fn restores(connection: &Connection) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("PRAGMA main.user_version")?
        .query_row([], |row| row.get(0))
}

/// A connection to a store that must be there.
fn open(path: &Path) -> Result<Connection, BackupError> {
    let connection = Place::new(Some(path.to_owned()))
        .connect()
        .map_err(|error| BackupError::sqlite(path, &error))?;
    let table =
        "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'spin_key_value'";
    match connection.query_row(table, [], |row| row.get::<_, i64>(0)) {
        Ok(1) => Ok(connection),
        Ok(_) => Err(BackupError::NoStore(path.to_owned())),
        Err(error) => Err(BackupError::sqlite(path, &error)),
    }
}

/// Why there is no copy, or the store is as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    #[error("{}: {reason}", .path.display())]
    File { path: PathBuf, reason: String },
    #[error("{} is no key-value store", .0.display())]
    NoStore(PathBuf),
    #[error("{} is damaged; nothing was restored", .0.display())]
    Damaged(PathBuf),
    #[error(transparent)]
    Store(#[from] OpenError),
}

impl BackupError {
    fn file(path: &Path, error: &io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }

    fn sqlite(path: &Path, error: &rusqlite::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }
}
