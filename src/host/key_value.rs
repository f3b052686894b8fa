//! Key-value storage: one `SQLite` file, in the place and the table that Spin uses, so that either host reads the other's
//! data (facts/spin.md §4).
//!
//! One thread owns the connection. Whoever waits for it waits without blocking a thread that serves requests.

use crate::bindings::spin::key_value::key_value as spin;
use crate::bindings::wasi::keyvalue::store as wasi;
use rusqlite::{Connection, OptionalExtension as _};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;
use wasmtime::component::{Accessor, FutureReader, HasData, Resource, ResourceTable, StreamReader};

/// The label of the one store that this host has.
pub(crate) const LABEL: &str = "default";

/// The name of the file that holds it.
pub(crate) const FILE_NAME: &str = "sqlite_key_value.db";

/// How long to wait for another process that holds the file's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The most that one call may return, in bytes as counted by [`size`]: Spin's limit.
const MAX_RESULT_BYTES: usize = 128 * 1024 * 1024;

/// How many open handles one instance may have: Spin's limit.
const MAX_OPEN: usize = 256;

/// The store's file, opened. Cheap to clone; the file is closed after the last clone is gone.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    work: mpsc::Sender<Work>,
}

type Work = Box<dyn FnOnce(&Connection) + Send>;

impl Store {
    /// Opens the store's file, and makes it if there is none. Without a path, data live in memory until the process
    /// ends.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, OpenError> {
        let name = path.unwrap_or(Path::new(":memory:"));
        let fail = |reason: String| OpenError {
            path: name.to_owned(),
            reason,
        };
        if let Some(folder) = path.and_then(Path::parent) {
            std::fs::create_dir_all(folder)
                .map_err(|error| fail(format!("cannot make its folder: {error}")))?;
        }
        let connection = match path {
            Some(path) => Connection::open(path),
            None => Connection::open_in_memory(),
        }
        .and_then(prepare)
        .map_err(|error| fail(error.to_string()))?;

        let (work, queue) = mpsc::channel::<Work>();
        let serve = move || queue.iter().for_each(|job| job(&connection));
        std::thread::Builder::new()
            .name("key-value".to_owned())
            .spawn(serve)
            .map_err(|error| fail(format!("cannot start a thread: {error}")))?;
        Ok(Self { work })
    }

    /// Runs `job` with the connection. An error is a text for the component.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, String> {
        let (reply, result) = oneshot::channel();
        let job = move |connection: &Connection| {
            // Nobody waits any more if the instance has failed meanwhile.
            let _ = reply.send(job(connection).map_err(|error| error.to_string()));
        };
        let gone = || "the key-value store has stopped".to_owned();
        self.work.send(Box::new(job)).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the key-value store {}: {reason}; choose another folder with --state-dir", .path.display())]
pub(crate) struct OpenError {
    path: PathBuf,
    reason: String,
}

#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("query result exceeds limit of {MAX_RESULT_BYTES} bytes")]
    TooLarge,
}

fn prepare(connection: Connection) -> rusqlite::Result<Connection> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute(
        "CREATE TABLE IF NOT EXISTS spin_key_value (
            store TEXT NOT NULL,
            key TEXT NOT NULL,
            value BLOB NOT NULL,
            PRIMARY KEY (store, key)
        )",
        [],
    )?;
    Ok(connection)
}

/// An open handle to a store, as a component holds it.
#[derive(Debug, Clone)]
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Bucket {
    store: Store,
    label: Arc<str>,
}

impl Bucket {
    async fn get(&self, key: String) -> Result<Option<Vec<u8>>, String> {
        let label = Arc::clone(&self.label);
        let job = move |connection: &Connection| {
            let value: Option<Vec<u8>> = connection
                .prepare_cached("SELECT value FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .query_row((&label, &key), |row| row.get(0))
                .optional()?;
            match &value {
                Some(bytes) if size(bytes.len()) > MAX_RESULT_BYTES => Err(JobError::TooLarge),
                _ => Ok(value),
            }
        };
        self.store.run(job).await
    }

    async fn set(&self, key: String, value: Vec<u8>) -> Result<(), String> {
        let label = Arc::clone(&self.label);
        let job = move |connection: &Connection| {
            connection
                .prepare_cached(
                    "INSERT INTO spin_key_value (store, key, value) VALUES (?1, ?2, ?3)
                     ON CONFLICT (store, key) DO UPDATE SET value = excluded.value",
                )?
                .execute((&label, &key, &value))?;
            Ok(())
        };
        self.store.run(job).await
    }

    async fn delete(&self, key: String) -> Result<(), String> {
        let label = Arc::clone(&self.label);
        let job = move |connection: &Connection| {
            connection
                .prepare_cached("DELETE FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .execute((&label, &key))?;
            Ok(())
        };
        self.store.run(job).await
    }

    async fn exists(&self, key: String) -> Result<bool, String> {
        let label = Arc::clone(&self.label);
        let job = move |connection: &Connection| {
            Ok(connection
                .prepare_cached("SELECT 1 FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .exists((&label, &key))?)
        };
        self.store.run(job).await
    }

    async fn keys(&self) -> Result<Vec<String>, String> {
        let label = Arc::clone(&self.label);
        let job = move |connection: &Connection| {
            let mut statement =
                connection.prepare_cached("SELECT key FROM spin_key_value WHERE store = ?1")?;
            let mut rows = statement.query((&label,))?;
            let mut keys = Vec::new();
            let mut total = size(0);
            while let Some(row) = rows.next()? {
                let key: String = row.get(0)?;
                total = total.saturating_add(size(key.len()));
                if total > MAX_RESULT_BYTES {
                    return Err(JobError::TooLarge);
                }
                keys.push(key);
            }
            Ok(keys)
        };
        self.store.run(job).await
    }
}

/// What a value or a list of this length counts for: its bytes, and a `Vec`'s own.
fn size(length: usize) -> usize {
    length.saturating_add(size_of::<Vec<u8>>())
}

/// What one instance may do with the store.
#[derive(Debug)]
pub(crate) struct KeyValueGrant {
    store: Option<Store>,
    labels: Arc<BTreeSet<String>>,
    open: usize,
}

impl KeyValueGrant {
    /// A grant to open the stores with these labels. Without a store no label can be opened.
    pub(crate) fn new(store: Option<Store>, labels: Arc<BTreeSet<String>>) -> Self {
        Self {
            store,
            labels,
            open: 0,
        }
    }
}

/// Gives the host functions below their data.
pub(crate) struct HasKeyValue;

impl HasData for HasKeyValue {
    type Data<'a> = KeyValueView<'a>;
}

/// The parts of an instance's state that the host functions below work on.
pub(crate) struct KeyValueView<'a> {
    /// What the instance may do.
    pub(crate) grant: &'a mut KeyValueGrant,
    /// Its handles.
    pub(crate) table: &'a mut ResourceTable,
}

enum Refusal {
    AccessDenied,
    TooManyOpen,
}

impl KeyValueView<'_> {
    fn open(&mut self, label: &str) -> wasmtime::Result<Result<Resource<Bucket>, Refusal>> {
        let Some(store) = self
            .grant
            .store
            .as_ref()
            .filter(|_| self.grant.labels.contains(label))
        else {
            return Ok(Err(Refusal::AccessDenied));
        };
        if self.grant.open >= MAX_OPEN {
            return Ok(Err(Refusal::TooManyOpen));
        }
        let bucket = self.table.push(Bucket {
            store: store.clone(),
            label: label.into(),
        })?;
        self.grant.open = self.grant.open.saturating_add(1);
        Ok(Ok(bucket))
    }

    /// A copy of the handle, to work with while the instance's state is not borrowed.
    fn bucket(&self, handle: &Resource<Bucket>) -> wasmtime::Result<Bucket> {
        Ok(self.table.get(handle)?.clone())
    }

    fn close(&mut self, handle: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        self.grant.open = self.grant.open.saturating_sub(1);
        Ok(())
    }
}

impl spin::Host for KeyValueView<'_> {}

impl spin::HostStore for KeyValueView<'_> {
    async fn drop(&mut self, handle: Resource<Bucket>) -> wasmtime::Result<()> {
        self.close(handle)
    }
}

fn bucket<T: Send>(
    accessor: &Accessor<T, HasKeyValue>,
    handle: &Resource<Bucket>,
) -> wasmtime::Result<Bucket> {
    accessor.with(|mut access| access.get().bucket(handle))
}

impl<T: Send> spin::HostStoreWithStore<T> for HasKeyValue {
    async fn open(
        accessor: &Accessor<T, Self>,
        label: String,
    ) -> wasmtime::Result<Result<Resource<Bucket>, spin::Error>> {
        let opened = accessor.with(|mut access| access.get().open(&label))?;
        Ok(opened.map_err(|refusal| match refusal {
            Refusal::AccessDenied => spin::Error::AccessDenied,
            Refusal::TooManyOpen => spin::Error::StoreTableFull,
        }))
    }

    async fn get(
        accessor: &Accessor<T, Self>,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, spin::Error>> {
        Ok(bucket(accessor, &handle)?
            .get(key)
            .await
            .map_err(spin::Error::Other))
    }

    async fn set(
        accessor: &Accessor<T, Self>,
        handle: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), spin::Error>> {
        Ok(bucket(accessor, &handle)?
            .set(key, value)
            .await
            .map_err(spin::Error::Other))
    }

    async fn delete(
        accessor: &Accessor<T, Self>,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<(), spin::Error>> {
        Ok(bucket(accessor, &handle)?
            .delete(key)
            .await
            .map_err(spin::Error::Other))
    }

    async fn exists(
        accessor: &Accessor<T, Self>,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<bool, spin::Error>> {
        Ok(bucket(accessor, &handle)?
            .exists(key)
            .await
            .map_err(spin::Error::Other))
    }

    async fn get_keys(
        accessor: &Accessor<T, Self>,
        handle: Resource<Bucket>,
    ) -> wasmtime::Result<(StreamReader<String>, FutureReader<Result<(), spin::Error>>)> {
        // All keys first, then the stream: Spin streams them under the store's lock and can lock itself up.
        let (keys, end) = match bucket(accessor, &handle)?.keys().await {
            Ok(keys) => (keys, Ok(())),
            Err(reason) => (Vec::new(), Err(spin::Error::Other(reason))),
        };
        accessor.with(|mut access| {
            let keys = StreamReader::new(&mut access, keys)?;
            let end = FutureReader::new(&mut access, async move { wasmtime::error::Ok(end) })?;
            Ok((keys, end))
        })
    }
}

impl wasi::Host for KeyValueView<'_> {
    async fn open(
        &mut self,
        label: String,
    ) -> wasmtime::Result<Result<Resource<Bucket>, wasi::Error>> {
        Ok(
            KeyValueView::open(self, &label)?.map_err(|refusal| match refusal {
                Refusal::AccessDenied => wasi::Error::AccessDenied,
                Refusal::TooManyOpen => wasi::Error::Other("store table full".to_owned()),
            }),
        )
    }
}

// These are synchronous to the component: while one waits, nothing else in its instance runs. So it is in Spin.
impl wasi::HostBucket for KeyValueView<'_> {
    async fn get(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, wasi::Error>> {
        Ok(self
            .bucket(&handle)?
            .get(key)
            .await
            .map_err(wasi::Error::Other))
    }

    async fn set(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), wasi::Error>> {
        Ok(self
            .bucket(&handle)?
            .set(key, value)
            .await
            .map_err(wasi::Error::Other))
    }

    async fn delete(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<(), wasi::Error>> {
        Ok(self
            .bucket(&handle)?
            .delete(key)
            .await
            .map_err(wasi::Error::Other))
    }

    async fn exists(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<bool, wasi::Error>> {
        Ok(self
            .bucket(&handle)?
            .exists(key)
            .await
            .map_err(wasi::Error::Other))
    }

    async fn list_keys(
        &mut self,
        handle: Resource<Bucket>,
        cursor: Option<String>,
    ) -> wasmtime::Result<Result<wasi::KeyResponse, wasi::Error>> {
        if cursor.is_some() {
            return Ok(Err(wasi::Error::Other(
                "list_keys: cursor not supported".to_owned(),
            )));
        }
        let keys = self.bucket(&handle)?.keys().await;
        Ok(keys
            .map(|keys| wasi::KeyResponse { keys, cursor: None })
            .map_err(wasi::Error::Other))
    }

    async fn drop(&mut self, handle: Resource<Bucket>) -> wasmtime::Result<()> {
        self.close(handle)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bucket(store: &Store, label: &str) -> Bucket {
        Bucket {
            store: store.clone(),
            label: label.into(),
        }
    }

    #[tokio::test]
    async fn what_is_set_can_be_read() {
        let store = Store::open(None).unwrap();
        let one = bucket(&store, LABEL);
        assert_eq!(one.get("k".into()).await, Ok(None));
        assert_eq!(one.exists("k".into()).await, Ok(false));
        one.set("k".into(), b"v".to_vec()).await.unwrap();
        one.set("k".into(), b"w".to_vec()).await.unwrap();
        one.set("l".into(), Vec::new()).await.unwrap();
        assert_eq!(one.get("k".into()).await, Ok(Some(b"w".to_vec())));
        assert_eq!(one.get("l".into()).await, Ok(Some(Vec::new())));
        assert_eq!(one.exists("l".into()).await, Ok(true));
        assert_eq!(one.keys().await, Ok(vec!["k".to_owned(), "l".to_owned()]));

        let other = bucket(&store, "other");
        assert_eq!(other.keys().await, Ok(Vec::new()));
        assert_eq!(other.get("k".into()).await, Ok(None));

        one.delete("k".into()).await.unwrap();
        one.delete("k".into()).await.unwrap();
        assert_eq!(one.get("k".into()).await, Ok(None));
    }

    #[tokio::test]
    async fn the_file_is_spins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".spin").join(FILE_NAME);
        let store = Store::open(Some(&path)).unwrap();
        bucket(&store, LABEL)
            .set("k".into(), b"v".to_vec())
            .await
            .unwrap();

        let spin = Connection::open(&path).unwrap();
        let read = |sql: &str| {
            spin.query_row(sql, [], |row| row.get::<_, String>(0))
                .unwrap()
        };
        assert_eq!(
            read("SELECT store || '/' || key || '/' || CAST(value AS TEXT) FROM spin_key_value"),
            "default/k/v"
        );
        assert_eq!(read("PRAGMA journal_mode"), "delete");
        spin.execute("UPDATE spin_key_value SET value = x'77'", [])
            .unwrap();
        assert_eq!(
            bucket(&store, LABEL).get("k".into()).await,
            Ok(Some(b"w".to_vec()))
        );
    }

    #[tokio::test]
    async fn another_process_may_hold_the_file_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let store = Store::open(Some(&path)).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let one = bucket(&store, LABEL);
        let waiting = tokio::spawn(async move { one.set("k".into(), b"v".to_vec()).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!waiting.is_finished());
        other.execute_batch("COMMIT").unwrap();
        assert_eq!(waiting.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_result_has_a_limit() {
        let store = Store::open(None).unwrap();
        let one = bucket(&store, LABEL);
        let too_large = Err(format!(
            "query result exceeds limit of {MAX_RESULT_BYTES} bytes"
        ));
        one.set("k".into(), vec![0; MAX_RESULT_BYTES])
            .await
            .unwrap();
        assert_eq!(one.get("k".into()).await, too_large);
        assert_eq!(one.exists("k".into()).await, Ok(true));
        one.set("k".into(), vec![0; MAX_RESULT_BYTES - size(0)])
            .await
            .unwrap();
        assert!(one.get("k".into()).await.unwrap().is_some());
    }

    #[test]
    fn only_granted_labels_open() {
        let store = Store::open(None).unwrap();
        let labels = Arc::new(BTreeSet::from([LABEL.to_owned()]));
        for (store, label, opens) in [
            (Some(&store), LABEL, true),
            (Some(&store), "other", false),
            (None, LABEL, false),
        ] {
            let mut grant = KeyValueGrant::new(store.cloned(), Arc::clone(&labels));
            let mut view = KeyValueView {
                grant: &mut grant,
                table: &mut ResourceTable::new(),
            };
            assert_eq!(view.open(label).unwrap().is_ok(), opens, "{label}");
        }
    }

    #[test]
    fn handles_are_bounded_and_come_back() {
        let labels = Arc::new(BTreeSet::from([LABEL.to_owned()]));
        let mut grant = KeyValueGrant::new(Some(Store::open(None).unwrap()), labels);
        let mut view = KeyValueView {
            grant: &mut grant,
            table: &mut ResourceTable::new(),
        };
        let mut handles: Vec<_> = (0..MAX_OPEN)
            .map(|_| view.open(LABEL).unwrap().ok().unwrap())
            .collect();
        assert!(matches!(
            view.open(LABEL).unwrap(),
            Err(Refusal::TooManyOpen)
        ));
        view.close(handles.pop().unwrap()).unwrap();
        assert!(view.open(LABEL).unwrap().is_ok());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Store::open(Some(&file.path().join("x").join(FILE_NAME)))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(FILE_NAME) && error.contains("--state-dir"),
            "{error}"
        );
    }
}
