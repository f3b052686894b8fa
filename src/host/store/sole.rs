//! A store in a file that nobody else uses meanwhile: no host can open it while this is open, and this does not open while a
//! host has it.

use super::place::{OpenError, Place};
use super::{sqlite, writer};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, TransactionBehavior};
use std::cell::{RefCell, RefMut};
use std::fmt;
use std::path::{Path, PathBuf};

/// The store.
pub(crate) struct Sole {
    path: PathBuf,
    label: String,
    connection: RefCell<Connection>,
}

impl Sole {
    /// Opens the part of a store under this label, and makes its file if that is wanted.
    ///
    /// # Errors
    ///
    /// See [`SoleError`].
    pub(crate) fn open(path: &Path, label: &str, make: bool) -> Result<Self, SoleError> {
        let place = Place::new(Some(path.to_owned()));
        if make {
            // It has the mode and the table that it always has.
            sqlite::connect(&place)?;
        } else if !path.exists() {
            return Err(SoleError::None(path.to_owned()));
        }
        let failed = |error| SoleError::of(path, &error);
        let mut connection = place.connect().map_err(failed)?;
        // Before anything is read: with a log, whoever has the file open holds a lock that this does not go beside, and that
        // stays until it is closed.
        connection
            .pragma_update(None, "locking_mode", "EXCLUSIVE")
            .and_then(|()| connection.busy_timeout(writer::PATIENCE))
            .and_then(|()| connection.pragma_update(None, "synchronous", "FULL"))
            .map_err(failed)?;
        let begin = |connection: &mut Connection| {
            let whole = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
            whole.prepare("SELECT store, key, value FROM spin_key_value")?;
            whole.commit()
        };
        begin(&mut connection).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            label: label.to_owned(),
            connection: connection.into(),
        })
    }

    /// The value of a key.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, SoleError> {
        self.on(|connection| {
            connection
                .prepare_cached("SELECT value FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .query_row((&self.label, key), |row| row.get(0))
                .optional()
        })
    }

    /// All keys.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub(crate) fn keys(&self) -> Result<Vec<String>, SoleError> {
        self.on(|connection| {
            let mut keys =
                connection.prepare_cached("SELECT key FROM spin_key_value WHERE store = ?1")?;
            let keys = keys.query_map((&self.label,), |row| row.get(0))?;
            keys.collect()
        })
    }

    /// Sets all of these, or none.
    ///
    /// # Errors
    ///
    /// None was set.
    pub(crate) fn set(&self, pairs: &[(&str, &[u8])]) -> Result<(), SoleError> {
        self.on(|mut connection| {
            let whole = connection.transaction()?;
            for (key, value) in pairs {
                whole
                    .prepare_cached(
                        "INSERT INTO spin_key_value (store, key, value) VALUES (?1, ?2, ?3)
                         ON CONFLICT (store, key) DO UPDATE SET value = excluded.value",
                    )?
                    .execute((&self.label, key, value))?;
            }
            whole.commit()
        })
    }

    /// Deletes all of these, or none.
    ///
    /// # Errors
    ///
    /// None was deleted.
    pub(crate) fn delete(&self, keys: &[&str]) -> Result<(), SoleError> {
        self.on(|mut connection| {
            let whole = connection.transaction()?;
            for key in keys {
                whole
                    .prepare_cached("DELETE FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                    .execute((&self.label, key))?;
            }
            whole.commit()
        })
    }

    fn on<T>(
        &self,
        act: impl FnOnce(RefMut<'_, Connection>) -> rusqlite::Result<T>,
    ) -> Result<T, SoleError> {
        act(self.connection.borrow_mut()).map_err(|error| SoleError::of(&self.path, &error))
    }
}

impl fmt::Debug for Sole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

/// Why a store cannot be had alone, or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SoleError {
    #[error("there is no key-value store in {}", .0.display())]
    None(PathBuf),
    #[error("the key-value store in {} is in use: stop the app, and whatever else has it open", .0.display())]
    InUse(PathBuf),
    #[error("{}: {reason}", .path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl SoleError {
    fn of(path: &Path, error: &rusqlite::Error) -> Self {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::InUse(path),
            _ => Self::Unusable {
                path,
                reason: error.to_string(),
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::{FILE_NAME, LABEL, Store};

    #[tokio::test]
    async fn it_is_had_alone_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let none = Sole::open(&path, LABEL, false);
        assert!(matches!(none, Err(SoleError::None(_))), "{none:?}");
        assert!(!path.exists());
        let host = Store::file(Some(path.clone()));
        host.open().await.unwrap();
        host.bucket("other")
            .set("k".into(), b"v".to_vec())
            .await
            .unwrap();
        // The host does nothing, and may at any time.
        let used = Sole::open(&path, LABEL, true);
        assert!(matches!(used, Err(SoleError::InUse(_))), "{used:?}");
        host.bucket(LABEL)
            .set("k".into(), b"w".to_vec())
            .await
            .unwrap();
        drop(host);
        let sole = loop {
            // Its thread ends by itself.
            match Sole::open(&path, LABEL, false) {
                Err(SoleError::InUse(_)) => {}
                sole => break sole.unwrap(),
            }
        };
        assert_eq!(sole.get("k").unwrap().unwrap(), b"w");
        sole.set(&[("a", b"1"), ("b", b"2"), ("a", b"3")]).unwrap();
        sole.delete(&["b", "k", "none"]).unwrap();
        assert_eq!(sole.keys().unwrap(), ["a"]);
        let host = Store::file(Some(path.clone()));
        let refused = host.open().await.unwrap_err().to_string();
        assert!(refused.contains("locked"), "{refused}");
        drop(sole);
        assert_eq!(
            host.bucket(LABEL).get("a".into()).await,
            Ok(Some(b"3".to_vec()))
        );
        assert_eq!(
            host.bucket("other").get("k".into()).await,
            Ok(Some(b"v".to_vec()))
        );
    }
}
