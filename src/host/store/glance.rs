//! Looking into a store that others use, and leaving no trace: no file is made, and nothing is written.

use super::Store;
use behalf_core::ledger::StoreError;
use behalf_core::ledger::key_value::store::{Page, Store as StorePort};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use std::path::Path;
use std::time::Duration;
use url::Url;

/// How long is waited for whoever is just writing.
const PATIENCE: Duration = Duration::from_secs(5);

/// A store to be looked into.
#[derive(Debug, Clone)]
pub(crate) struct Glance {
    store: Store,
    label: String,
}

impl Glance {
    /// At the part under this label.
    pub(crate) fn new(store: Store, label: &str) -> Self {
        Self {
            store,
            label: label.to_owned(),
        }
    }
}

impl StorePort for Glance {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(path) = self.store.path() else {
            let bucket = self.store.bucket(&self.label);
            return bucket.get(key.to_owned()).await.map_err(StoreError);
        };
        if !path.exists() {
            return Ok(None);
        }
        row(path, &self.label, key).map_err(|error| StoreError(error.to_string()))
    }

    async fn set(&self, _: &str, _: &[u8]) -> Result<(), StoreError> {
        Err(only_looking())
    }

    async fn delete(&self, _: &str) -> Result<(), StoreError> {
        Err(only_looking())
    }

    async fn list_keys(&self, _: Option<&str>) -> Result<Page, StoreError> {
        Err(only_looking())
    }
}

fn only_looking() -> StoreError {
    StoreError("this only looks".to_owned())
}

fn row(path: &Path, label: &str, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
    let absolute = std::path::absolute(path).ok();
    let url = absolute.and_then(|path| Url::from_file_path(path).ok());
    let mut url = url.ok_or_else(|| rusqlite::Error::InvalidPath(path.to_owned()))?;
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    // Nobody has it open, and to open it otherwise would make files beside it.
    url.set_query(Some(if Path::new(&log).exists() {
        "mode=ro"
    } else {
        "mode=ro&immutable=1"
    }));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(url.as_str(), flags)?;
    connection.busy_timeout(PATIENCE)?;
    let query =
        "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'spin_key_value'";
    let tables: i64 = connection.query_row(query, [], |row| row.get(0))?;
    if tables == 0 {
        return Ok(None);
    }
    let query = "SELECT value FROM spin_key_value WHERE store = ?1 AND key = ?2";
    connection
        .query_row(query, [label, key], |row| row.get(0))
        .optional()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut files: Vec<_> = entries
            .map(|it| it.unwrap())
            .map(|it| (it.file_name(), std::fs::read(it.path()).unwrap()))
            .collect();
        files.sort();
        files
    }

    #[tokio::test]
    async fn a_look_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        // What a URL would take for something else.
        let path = folder.path().join("a store? 100%.db");
        let glance = Glance::new(Store::file(Some(path.clone())), "default");
        assert_eq!(glance.get("key").await, Ok(None));
        assert!(files(folder.path()).is_empty());

        let store = Store::file(Some(path.clone()));
        let bucket = store.bucket("default");
        bucket
            .set("key".to_owned(), b"value".to_vec())
            .await
            .unwrap();
        // While another has it open, and after that.
        assert_eq!(glance.get("key").await, Ok(Some(b"value".to_vec())));
        drop((store, bucket));
        let log = path.with_file_name("a store? 100%.db-wal");
        while log.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let before = files(folder.path());
        assert_eq!(glance.get("key").await, Ok(Some(b"value".to_vec())));
        assert_eq!(glance.get("other").await, Ok(None));
        assert!(glance.set("key", b"").await.is_err() && glance.delete("key").await.is_err());
        assert!(files(folder.path()) == before);
    }

    #[tokio::test]
    async fn what_is_no_store_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        std::fs::write(
            &path,
            "no database, but long enough to be looked at ".repeat(40),
        )
        .unwrap();
        let glance = Glance::new(Store::file(Some(path)), "default");
        assert!(glance.get("key").await.is_err());
    }
}
