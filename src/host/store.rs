//! The key-value store: one `SQLite` file, in the place and the table that Spin uses, so that either host reads the
//! other's data (PLATFORMS.md, "Key-value"), or the same in memory.
//!
//! One thread owns the connection. Whoever waits for it waits without blocking a thread that serves requests. Writes
//! that wait at the same time share a transaction: each is acknowledged when that is on disk, as Spin acknowledges one.
//! The file keeps Spin's rollback journal: write-ahead logging would be a property of the file, and so of Spin's too.

use rusqlite::{Connection, MAIN_DB, OptionalExtension as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;

/// The label of the one store that this host has.
pub(crate) const LABEL: &str = "default";

/// The name of the file that holds it.
pub(crate) const FILE_NAME: &str = "sqlite_key_value.db";

/// How long to wait for another process that holds the file's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The most that one call may return, in bytes as counted by [`size`]: Spin's limit.
pub(crate) const MAX_RESULT_BYTES: usize = 128 * 1024 * 1024;

/// How many writes share a transaction at most.
const MAX_GROUP: usize = 64;

/// The store's file, opened. Cheap to clone; the file is closed after the last clone is gone.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    work: mpsc::Sender<Work>,
}

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
        // SQLite opens such a file for reading alone, and would go on so when it can be written again.
        if connection.is_readonly(MAIN_DB).unwrap_or(true) {
            return Err(fail("it is read-only".to_owned()));
        }

        let (work, queue) = mpsc::channel::<Work>();
        std::thread::Builder::new()
            .name("key-value".to_owned())
            .spawn(move || serve(&connection, &queue))
            .map_err(|error| fail(format!("cannot start a thread: {error}")))?;
        Ok(Self { work })
    }

    /// A handle to the part of the store under this label.
    pub(crate) fn bucket(&self, label: &str) -> Bucket {
        Bucket {
            store: self.clone(),
            label: label.into(),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, String> {
        self.run(Work::Read, job).await
    }

    async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, String> {
        self.run(Work::Write, job).await
    }

    /// Runs `job` with the connection. An error is a text for the component.
    async fn run<T: Send + 'static>(
        &self,
        kind: fn(Job) -> Work,
        job: impl FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, String> {
        let (reply, result) = oneshot::channel();
        let job = move |connection: Result<&Connection, String>| {
            let done = connection.and_then(|it| job(it).map_err(|error| error.to_string()));
            let kept = done.is_ok();
            let acknowledge: Acknowledge = Box::new(move |committed| {
                // Nobody waits any more if the instance has failed meanwhile.
                let _ = reply.send(done.and_then(|done| committed.map(|()| done)));
            });
            (acknowledge, kept)
        };
        let gone = || "the key-value store has stopped".to_owned();
        self.work.send(kind(Box::new(job))).map_err(|_| gone())?;
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
    #[error("the value is no number that increment can add to")]
    NoNumber,
}

/// What the thread does, in order of arrival.
enum Work {
    Read(Job),
    Write(Job),
}

/// Does its part, unless it gets the reason why it cannot. Returns how to tell, and whether it did it.
type Job = Box<dyn FnOnce(Result<&Connection, String>) -> (Acknowledge, bool) + Send>;

/// Tells whoever waits, once it is known whether what was done stays.
type Acknowledge = Box<dyn FnOnce(Result<(), String>)>;

fn serve(connection: &Connection, queue: &mpsc::Receiver<Work>) {
    let mut next = None;
    while let Some(work) = next.take().or_else(|| queue.recv().ok()) {
        match work {
            Work::Read(job) => job(Ok(connection)).0(Ok(())),
            Work::Write(first) => {
                let mut group = vec![first];
                while group.len() < MAX_GROUP {
                    match queue.try_recv() {
                        Ok(Work::Write(job)) => group.push(job),
                        Ok(read @ Work::Read(_)) => {
                            next = Some(read);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                commit(connection, group);
            }
        }
    }
}

/// Runs writes in one transaction. One that fails leaves no trace, and the others as they are.
fn commit(connection: &Connection, group: Vec<Job>) {
    let execute = |sql| {
        connection
            .execute_batch(sql)
            .map_err(|error| error.to_string())
    };
    // A full disk ends the transaction, and a savepoint would begin another.
    let unless_ended = || {
        if connection.is_autocommit() {
            return Err("the transaction was rolled back".to_owned());
        }
        Ok(())
    };
    // With its lock at once: a transaction that begins by reading cannot wait for the lock later.
    let begun = execute("BEGIN IMMEDIATE");
    let mut acknowledgements = Vec::with_capacity(group.len());
    for job in group {
        let entered = begun
            .clone()
            .and_then(|()| unless_ended())
            .and_then(|()| execute("SAVEPOINT one"));
        let inside = entered.is_ok();
        let (acknowledge, kept) = job(entered.map(|()| connection));
        if inside {
            let _ = execute(if kept {
                "RELEASE one"
            } else {
                "ROLLBACK TO one; RELEASE one"
            });
        }
        acknowledgements.push(acknowledge);
    }
    let committed = begun
        .and_then(|()| unless_ended())
        .and_then(|()| execute("COMMIT"));
    if committed.is_err() && !connection.is_autocommit() {
        let _ = execute("ROLLBACK");
    }
    for acknowledge in acknowledgements {
        acknowledge(committed.clone());
    }
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
    pub(crate) async fn get(&self, key: String) -> Result<Option<Vec<u8>>, String> {
        let label = Arc::clone(&self.label);
        self.store
            .read(move |connection| value(connection, &label, &key))
            .await
    }

    pub(crate) async fn set(&self, key: String, value: Vec<u8>) -> Result<(), String> {
        let label = Arc::clone(&self.label);
        self.store
            .write(move |connection| set(connection, &label, &key, &value))
            .await
    }

    pub(crate) async fn delete(&self, key: String) -> Result<(), String> {
        let label = Arc::clone(&self.label);
        let job = move |connection: &Connection| {
            connection
                .prepare_cached("DELETE FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .execute((&label, &key))?;
            Ok(())
        };
        self.store.write(job).await
    }

    pub(crate) async fn exists(&self, key: String) -> Result<bool, String> {
        let label = Arc::clone(&self.label);
        let job = move |connection: &Connection| {
            Ok(connection
                .prepare_cached("SELECT 1 FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .exists((&label, &key))?)
        };
        self.store.read(job).await
    }

    pub(crate) async fn keys(&self) -> Result<Vec<String>, String> {
        let label = Arc::clone(&self.label);
        let job = move |connection: &Connection| {
            let mut statement =
                connection.prepare_cached("SELECT key FROM spin_key_value WHERE store = ?1")?;
            let mut rows = statement.query((&label,))?;
            let mut keys = Vec::new();
            let mut total = size(0);
            while let Some(row) = rows.next()? {
                let key: String = row.get(0)?;
                total = within_limit(total, size(key.len()))?;
                keys.push(key);
            }
            Ok(keys)
        };
        self.store.read(job).await
    }

    /// The values of those of `keys` that exist. Others are left out, as by Spin's `SQLite` store, although the
    /// interface speaks of `none`.
    pub(crate) async fn get_many(
        &self,
        keys: Vec<String>,
    ) -> Result<Vec<(String, Option<Vec<u8>>)>, String> {
        let label = Arc::clone(&self.label);
        let job = move |connection: &Connection| {
            let mut statement = connection.prepare_cached(
                "SELECT key, value FROM spin_key_value
                 WHERE store = ?1 AND key IN (SELECT value FROM json_each(?2))",
            )?;
            let mut rows = statement.query((&label, json(&keys)))?;
            let mut pairs = Vec::new();
            let mut total = size(0);
            while let Some(row) = rows.next()? {
                let (key, value): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
                total = within_limit(total, size(key.len()).saturating_add(size(value.len())))?;
                pairs.push((key, Some(value)));
            }
            Ok(pairs)
        };
        self.store.read(job).await
    }

    /// Sets all pairs, or none.
    pub(crate) async fn set_many(&self, pairs: Vec<(String, Vec<u8>)>) -> Result<(), String> {
        let label = Arc::clone(&self.label);
        let job = move |connection: &Connection| {
            pairs
                .iter()
                .try_for_each(|(key, value)| set(connection, &label, key, value))
        };
        self.store.write(job).await
    }

    /// Deletes all of these keys, or none.
    pub(crate) async fn delete_many(&self, keys: Vec<String>) -> Result<(), String> {
        let label = Arc::clone(&self.label);
        let job = move |connection: &Connection| {
            connection
                .prepare_cached(
                    "DELETE FROM spin_key_value
                     WHERE store = ?1 AND key IN (SELECT value FROM json_each(?2))",
                )?
                .execute((&label, json(&keys)))?;
            Ok(())
        };
        self.store.write(job).await
    }

    /// Adds to a number, eight bytes with the lowest first. A key that is not there counts as 0.
    pub(crate) async fn increment(&self, key: String, delta: i64) -> Result<i64, String> {
        let label = Arc::clone(&self.label);
        let job = move |connection: &Connection| {
            // Spin panics on other values, and its store with it until a restart.
            let number = match value(connection, &label, &key)? {
                Some(bytes) => bytes
                    .try_into()
                    .map(i64::from_le_bytes)
                    .map_err(|_| JobError::NoNumber)?,
                None => 0,
            };
            let sum = number.checked_add(delta).ok_or(JobError::NoNumber)?;
            set(connection, &label, &key, &sum.to_le_bytes())?;
            Ok(sum)
        };
        self.store.write(job).await
    }
}

/// A handle for `compare-and-swap`, as a component holds it.
///
/// It is Spin's, with its gaps (PLATFORMS.md, "Key-value backends"): a key that was absent, or was not looked
/// at, is written whatever is there by then; and a value that was changed and changed back counts as unchanged.
#[derive(Debug, Clone)]
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct CompareAndSwap {
    bucket: Bucket,
    key: String,
    seen: Arc<Mutex<Option<Vec<u8>>>>,
}

impl CompareAndSwap {
    pub(crate) fn new(bucket: Bucket, key: String) -> Self {
        Self {
            bucket,
            key,
            seen: Arc::default(),
        }
    }

    /// Another one for the same key, which has seen nothing yet.
    pub(crate) fn again(&self) -> Self {
        Self::new(self.bucket.clone(), self.key.clone())
    }

    /// The value now, which the next swap expects.
    pub(crate) async fn current(&self) -> Result<Option<Vec<u8>>, String> {
        let value = self.bucket.get(self.key.clone()).await?;
        self.seen().clone_from(&value);
        Ok(value)
    }

    /// Writes `value` in the place of the one that was seen; false if that is there no more.
    pub(crate) async fn swap(&self, value: Vec<u8>) -> Result<bool, String> {
        let Some(seen) = self.seen().clone() else {
            return self
                .bucket
                .set(self.key.clone(), value)
                .await
                .map(|()| true);
        };
        let (label, key) = (Arc::clone(&self.bucket.label), self.key.clone());
        let job = move |connection: &Connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE spin_key_value SET value = ?4 WHERE store = ?1 AND key = ?2 AND value = ?3",
                )?
                .execute((&label, &key, &seen, &value))?;
            Ok(changed == 1)
        };
        self.bucket.store.write(job).await
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Option<Vec<u8>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn value(connection: &Connection, label: &str, key: &str) -> Result<Option<Vec<u8>>, JobError> {
    let value: Option<Vec<u8>> = connection
        .prepare_cached("SELECT value FROM spin_key_value WHERE store = ?1 AND key = ?2")?
        .query_row((label, key), |row| row.get(0))
        .optional()?;
    if let Some(bytes) = &value {
        within_limit(0, size(bytes.len()))?;
    }
    Ok(value)
}

fn set(connection: &Connection, label: &str, key: &str, value: &[u8]) -> Result<(), JobError> {
    connection
        .prepare_cached(
            "INSERT INTO spin_key_value (store, key, value) VALUES (?1, ?2, ?3)
             ON CONFLICT (store, key) DO UPDATE SET value = excluded.value",
        )?
        .execute((label, key, value))?;
    Ok(())
}

/// Keys as one argument of a statement.
fn json(keys: &[String]) -> String {
    serde_json::Value::from(keys).to_string()
}

/// What a value or a list of this length counts for: its bytes, and a `Vec`'s own.
fn size(length: usize) -> usize {
    length.saturating_add(size_of::<Vec<u8>>())
}

fn within_limit(total: usize, more: usize) -> Result<usize, JobError> {
    let total = total.saturating_add(more);
    if total > MAX_RESULT_BYTES {
        return Err(JobError::TooLarge);
    }
    Ok(total)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_set_can_be_read() {
        let store = Store::open(None).unwrap();
        let one = store.bucket(LABEL);
        assert_eq!(one.get("k".into()).await, Ok(None));
        assert_eq!(one.exists("k".into()).await, Ok(false));
        one.set("k".into(), b"v".to_vec()).await.unwrap();
        one.set("k".into(), b"w".to_vec()).await.unwrap();
        one.set("l".into(), Vec::new()).await.unwrap();
        assert_eq!(one.get("k".into()).await, Ok(Some(b"w".to_vec())));
        assert_eq!(one.get("l".into()).await, Ok(Some(Vec::new())));
        assert_eq!(one.exists("l".into()).await, Ok(true));
        assert_eq!(one.keys().await, Ok(vec!["k".to_owned(), "l".to_owned()]));

        let other = store.bucket("other");
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
        store
            .bucket(LABEL)
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
            store.bucket(LABEL).get("k".into()).await,
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
        let one = store.bucket(LABEL);
        let waiting = tokio::spawn(async move { one.set("k".into(), b"v".to_vec()).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!waiting.is_finished());
        other.execute_batch("COMMIT").unwrap();
        assert_eq!(waiting.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_result_has_a_limit() {
        let store = Store::open(None).unwrap();
        let one = store.bucket(LABEL);
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

    #[tokio::test]
    async fn many_at_once() {
        let store = Store::open(None).unwrap();
        let (one, other) = (store.bucket(LABEL), store.bucket("other"));
        let pair = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        one.set_many(vec![
            pair("b", "2"),
            pair("a", "1"),
            pair("\"'\u{e9}", "3"),
            pair("a", "4"),
        ])
        .await
        .unwrap();
        other.set("c".to_owned(), Vec::new()).await.unwrap();
        let asked = keys(&["b", "none", "c", "\"'\u{e9}", "a", "a"]);
        let mut found = one.get_many(asked).await.unwrap();
        found.sort();
        let some = |(key, value)| (key, Some(value));
        let expected = [pair("\"'\u{e9}", "3"), pair("a", "4"), pair("b", "2")].map(some);
        assert_eq!(found, expected, "absent keys are left out, as in Spin");
        one.delete_many(keys(&["a", "none", "c", "\"'\u{e9}"]))
            .await
            .unwrap();
        assert_eq!(one.keys().await, Ok(keys(&["b"])));
        assert_eq!(other.keys().await, Ok(keys(&["c"])));
    }

    #[tokio::test]
    async fn numbers_add_up() {
        let one = Store::open(None).unwrap().bucket(LABEL);
        assert_eq!(one.increment("n".to_owned(), 3).await, Ok(3));
        assert_eq!(one.increment("n".to_owned(), -5).await, Ok(-2));
        assert_eq!(
            one.get("n".to_owned()).await.unwrap().unwrap(),
            (-2_i64).to_le_bytes()
        );
        one.set("n".to_owned(), b"text".to_vec()).await.unwrap();
        let error = one.increment("n".to_owned(), 1).await.unwrap_err();
        assert_eq!(error, "the value is no number that increment can add to");
        one.set("n".to_owned(), i64::MAX.to_le_bytes().to_vec())
            .await
            .unwrap();
        assert!(one.increment("n".to_owned(), 1).await.is_err());
    }

    #[tokio::test]
    async fn a_swap_has_the_gaps_of_spins() {
        let one = Store::open(None).unwrap().bucket(LABEL);
        let cas = || CompareAndSwap::new(one.clone(), "k".to_owned());
        let set = |value: &'static [u8]| one.set("k".to_owned(), value.to_vec());
        // Two that both saw no value both win.
        let (first, second) = (cas(), cas());
        assert_eq!(first.current().await, Ok(None));
        assert_eq!(second.current().await, Ok(None));
        assert_eq!(first.swap(b"1".to_vec()).await, Ok(true));
        assert_eq!(second.swap(b"2".to_vec()).await, Ok(true));
        assert_eq!(cas().swap(b"3".to_vec()).await, Ok(true), "without a look");
        // Of two that saw a value one wins.
        let (first, second) = (cas(), cas());
        assert_eq!(first.current().await, Ok(Some(b"3".to_vec())));
        assert_eq!(second.current().await, Ok(Some(b"3".to_vec())));
        assert_eq!(first.swap(b"4".to_vec()).await, Ok(true));
        assert_eq!(second.swap(b"5".to_vec()).await, Ok(false));
        assert_eq!(one.get("k".to_owned()).await, Ok(Some(b"4".to_vec())));
        // There and back again is not noticed.
        let third = cas();
        third.current().await.unwrap();
        set(b"x").await.unwrap();
        set(b"4").await.unwrap();
        assert_eq!(third.swap(b"6".to_vec()).await, Ok(true));
    }

    #[tokio::test]
    async fn writes_that_wait_together_are_acknowledged_after_one_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let store = Store::open(Some(&path)).unwrap();
        let one = store.bucket(LABEL);
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let number = |key: usize| one.set(key.to_string(), b"text".to_vec());
        // The first waits for the other process's lock, and the rest queues up behind it.
        let first = tokio::spawn({
            let one = one.clone();
            async move { one.set("0".to_owned(), Vec::new()).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let rest = futures_util::future::join_all((1..10).map(number));
        let fails = one.increment("1".to_owned(), 1);
        let (rest, failed, ()) = tokio::join!(rest, fails, async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            other.execute_batch("COMMIT").unwrap();
        });
        assert_eq!(first.await.unwrap(), Ok(()));
        assert!(
            rest.iter().all(Result::is_ok),
            "one that fails takes no other with it"
        );
        assert!(failed.is_err());
        let count = "SELECT count(*) FROM spin_key_value WHERE length(value) IN (0, 4)";
        let count: u32 = other.query_row(count, [], |row| row.get(0)).unwrap();
        assert_eq!(count, 10);
    }

    #[tokio::test]
    async fn writes_that_cannot_be_made_all_say_so() {
        let store = Store::open(None).unwrap();
        let refused = store
            .write(|connection| Ok(connection.execute_batch("PRAGMA query_only = on")?))
            .await;
        assert_eq!(refused, Ok(()));
        let one = store.bucket(LABEL);
        let writes = (0..5).map(|key| one.set(key.to_string(), Vec::new()));
        for written in futures_util::future::join_all(writes).await {
            assert_eq!(
                written,
                Err("attempt to write a readonly database".to_owned())
            );
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_told_loses_nothing_and_is_over_when_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let store = Store::open(Some(&path)).unwrap();
        let one = store.bucket(LABEL);
        one.set("k".into(), b"v".to_vec()).await.unwrap();
        let room = |pages: u32| {
            let pragma = format!("PRAGMA max_page_count = {pages}");
            store.read(move |connection| {
                Ok(connection.query_row(&pragma, [], |row| row.get::<_, u32>(0))?)
            })
        };
        // SQLite takes no limit below what there is.
        room(1).await.unwrap();
        let large = || one.set("large".into(), vec![0; 100_000]);
        // The three share a transaction, or not.
        let small = one.set("l".into(), b"v".to_vec());
        let (first, small, second) = tokio::join!(large(), small, large());
        assert!(first.is_err() && second.is_err());
        assert_eq!(large().await, Err("database or disk is full".to_owned()));
        for (key, written) in [("k", true), ("l", small.is_ok()), ("large", false)] {
            let found = one.get(key.to_owned()).await.unwrap();
            assert_eq!(found.is_some(), written, "{key}");
        }
        room(1000).await.unwrap();
        assert_eq!(large().await, Ok(()));
        assert_eq!(one.get("k".into()).await, Ok(Some(b"v".to_vec())));
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
