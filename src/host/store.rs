//! Key-value stores: what components read and write, whatever is behind it.

mod backup;
mod glance;
mod place;
mod readers;
mod redis;
mod sqlite;
mod writer;

pub(crate) use backup::{BackupError, back_up, restore};
pub(crate) use glance::Glance;
pub(crate) use place::OpenError;
pub(crate) use redis::RedisUrlError;

use place::Place;
use redis::Redis;
use sqlite::Sqlite;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use writer::Change;

/// The label of the store that is there without a runtime configuration.
pub(crate) const LABEL: &str = "default";

/// The name of the file that holds it.
pub(crate) const FILE_NAME: &str = "sqlite_key_value.db";

/// A store. Cheap to clone; a file is closed after the last clone is gone.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    /// In a file, or in the memory of this process.
    Sqlite(Sqlite),
    /// In a Redis server.
    Redis(Redis),
}

impl Store {
    /// The store in this file; without a path it lives in memory until the process ends.
    pub(crate) fn file(path: Option<PathBuf>) -> Self {
        Self::Sqlite(Sqlite::new(Place::new(path)))
    }

    /// The store that the Redis server at this address is.
    ///
    /// # Errors
    ///
    /// It is none.
    pub(crate) fn redis(url: &str) -> Result<Self, RedisUrlError> {
        Redis::new(url).map(Self::Redis)
    }

    /// Its file, if it is in one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(sqlite) => sqlite.path(),
            Self::Redis(_) => None,
        }
    }

    /// Opens it, and makes its file if there is none, unless that was done. Whoever uses it first does so otherwise.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub(crate) async fn open(&self) -> Result<(), OpenError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.open().await,
            Self::Redis(redis) => {
                let fail = |reason| OpenError::Unreachable(redis.to_string(), reason);
                redis.open().await.map_err(fail)
            }
        }
    }

    /// A handle to the part of the store under this label.
    pub(crate) fn bucket(&self, label: &str) -> Bucket {
        Bucket {
            store: self.clone(),
            label: label.into(),
        }
    }
}

/// Where it is.
impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(sqlite) => sqlite.fmt(f),
            Self::Redis(redis) => redis.fmt(f),
        }
    }
}

/// An open handle to a store, as a component holds it. Errors are texts for the component.
#[derive(Debug, Clone)]
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Bucket {
    store: Store,
    label: Arc<str>,
}

impl Bucket {
    pub(crate) async fn get(&self, key: String) -> Result<Option<Vec<u8>>, String> {
        match &self.store {
            Store::Redis(redis) => redis.get(&key).await,
            Store::Sqlite(sqlite) => sqlite.get(&self.label, key).await,
        }
    }

    pub(crate) async fn set(&self, key: String, value: Vec<u8>) -> Result<(), String> {
        self.set_many(vec![(key, value)]).await
    }

    pub(crate) async fn delete(&self, key: String) -> Result<(), String> {
        self.delete_many(vec![key]).await
    }

    pub(crate) async fn exists(&self, key: String) -> Result<bool, String> {
        match &self.store {
            Store::Redis(redis) => redis.exists(&key).await,
            Store::Sqlite(sqlite) => sqlite.exists(&self.label, key).await,
        }
    }

    pub(crate) async fn keys(&self) -> Result<Vec<String>, String> {
        match &self.store {
            Store::Redis(redis) => redis.keys().await,
            Store::Sqlite(sqlite) => sqlite.keys(&self.label).await,
        }
    }

    /// The values of those of `keys` that exist. Others are left out, as by Spin's `SQLite` store, although the
    /// interface speaks of `none`.
    pub(crate) async fn get_many(
        &self,
        keys: Vec<String>,
    ) -> Result<Vec<(String, Option<Vec<u8>>)>, String> {
        match &self.store {
            // Spin sends KEYS with all of them, which Redis refuses.
            Store::Redis(_) => {
                Err("a store in Redis cannot read many keys at once, as in Spin".to_owned())
            }
            Store::Sqlite(sqlite) => sqlite.get_many(&self.label, keys).await,
        }
    }

    /// Sets all pairs, or none.
    pub(crate) async fn set_many(&self, pairs: Vec<(String, Vec<u8>)>) -> Result<(), String> {
        match &self.store {
            Store::Redis(redis) => redis.set(&pairs).await,
            Store::Sqlite(sqlite) => {
                let change = Change::Set(pairs);
                sqlite.change(&self.label, change).await.map(drop)
            }
        }
    }

    /// Deletes all of these keys, or none.
    pub(crate) async fn delete_many(&self, keys: Vec<String>) -> Result<(), String> {
        match &self.store {
            Store::Redis(redis) => redis.delete(&keys).await,
            Store::Sqlite(sqlite) => {
                let change = Change::Delete(keys);
                sqlite.change(&self.label, change).await.map(drop)
            }
        }
    }

    /// Adds to a number: eight bytes with the lowest first, or in Redis digits. A key that is not there counts as 0.
    pub(crate) async fn increment(&self, key: String, delta: i64) -> Result<i64, String> {
        match &self.store {
            Store::Redis(redis) => redis.increment(&key, delta).await,
            Store::Sqlite(sqlite) => {
                let change = Change::Increment { key, delta };
                sqlite.change(&self.label, change).await
            }
        }
    }

    /// Writes `value` in the place of `seen`; false if that is there no more.
    async fn swap(
        &self,
        key: String,
        seen: Option<Vec<u8>>,
        value: Vec<u8>,
    ) -> Result<bool, String> {
        match (&self.store, seen) {
            // Spin says that it failed, whether it has written or not.
            (Store::Redis(_), _) => {
                Err("a store in Redis has no compare-and-swap that works, as in Spin".to_owned())
            }
            (Store::Sqlite(_), None) => self.set(key, value).await.map(|()| true),
            (Store::Sqlite(sqlite), Some(seen)) => {
                let change = Change::Swap { key, seen, value };
                let changed = sqlite.change(&self.label, change).await?;
                Ok(changed == 1)
            }
        }
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
        let seen = self.seen().clone();
        self.bucket.swap(self.key.clone(), seen, value).await
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Option<Vec<u8>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::readers::{MAX_RESULT_BYTES, size};
    use super::*;
    use rusqlite::Connection;
    use std::path::Path;
    use std::time::Duration;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Runtime::new().unwrap().block_on(future)
    }

    #[tokio::test]
    async fn what_is_set_can_be_read() {
        let store = Store::file(None);
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
        let store = Store::file(Some(path.clone()));
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
        assert_eq!(read("PRAGMA journal_mode"), "wal");
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
        let store = Store::file(Some(path.clone()));
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
        let store = Store::file(None);
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
        let store = Store::file(None);
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
        let one = Store::file(None).bucket(LABEL);
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
        let one = Store::file(None).bucket(LABEL);
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
        let store = Store::file(Some(path.clone()));
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
        let one = Store::file(None).bucket(LABEL);
        run(&one, "PRAGMA query_only = on").await.unwrap();
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
        let one = Store::file(Some(folder.path().join(FILE_NAME))).bucket(LABEL);
        one.set("k".into(), b"v".to_vec()).await.unwrap();
        let room = async |pages: u32| {
            let pragma = format!("PRAGMA max_page_count = {pages}");
            run(&one, &pragma).await.unwrap();
        };
        // SQLite takes no limit below what there is.
        room(1).await;
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
        room(1000).await;
        assert_eq!(large().await, Ok(()));
        assert_eq!(one.get("k".into()).await, Ok(Some(b"v".to_vec())));
    }

    async fn run(bucket: &Bucket, sql: &str) -> Result<i64, String> {
        let Store::Sqlite(sqlite) = &bucket.store else {
            return Err("no SQLite".to_owned());
        };
        let change = Change::Run(sql.to_owned());
        sqlite.change(&bucket.label, change).await
    }

    #[tokio::test]
    async fn a_read_waits_for_no_write_and_sees_what_was_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let one = Store::file(Some(path.clone())).bucket(LABEL);
        one.set("k".into(), b"1".to_vec()).await.unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let waiting = tokio::spawn({
            let one = one.clone();
            async move { one.set("k".into(), b"2".to_vec()).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(one.get("k".into()).await, Ok(Some(b"1".to_vec())));
        assert_eq!(one.exists("k".into()).await, Ok(true));
        assert_eq!(one.keys().await, Ok(vec!["k".to_owned()]));
        let many = one.get_many(vec!["k".into()]).await;
        assert_eq!(many, Ok(vec![("k".to_owned(), Some(b"1".to_vec()))]));
        assert!(!waiting.is_finished());
        other.execute_batch("COMMIT").unwrap();
        assert_eq!(waiting.await.unwrap(), Ok(()));
        assert_eq!(one.get("k".into()).await, Ok(Some(b"2".to_vec())));
    }

    /// A backup, or somebody in a shell.
    #[tokio::test]
    async fn whoever_reads_elsewhere_fails_no_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let one = Store::file(Some(path.clone())).bucket(LABEL);
        one.set("k".into(), b"1".to_vec()).await.unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN").unwrap();
        let seen = || {
            let value = "SELECT CAST(value AS TEXT) FROM spin_key_value WHERE key = 'k'";
            other.query_row(value, [], |row| row.get::<_, String>(0))
        };
        assert_eq!(seen(), Ok("1".to_owned()));
        assert_eq!(one.set("k".into(), b"2".to_vec()).await, Ok(()));
        assert_eq!(one.get("k".into()).await, Ok(Some(b"2".to_vec())));
        assert_eq!(seen(), Ok("1".to_owned()), "its own moment");
    }

    /// As it would if those who read never left a moment without a reader.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn the_log_does_not_grow_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let one = Store::file(Some(path.clone())).bucket(LABEL);
        let value = || vec![b'x'; 100_000];
        one.set("k".into(), value()).await.unwrap();
        let readers: Vec<_> = (0..16)
            .map(|_| {
                let one = one.clone();
                tokio::spawn(async move {
                    loop {
                        assert!(one.get("k".into()).await.unwrap().is_some());
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for _ in 0..2000 {
            one.set("k".into(), value()).await.unwrap();
        }
        readers.iter().for_each(tokio::task::JoinHandle::abort);
        let log = std::fs::metadata(folder.path().join(format!("{FILE_NAME}-wal")));
        // Of the 200 MB that were written.
        assert!(log.unwrap().len() < 20_000_000);
    }

    #[test]
    fn what_is_made_is_this_users_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b").join(FILE_NAME);
        let store = Store::file(Some(path.clone()));
        block_on(store.bucket(LABEL).set("k".into(), Vec::new())).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.path().join("a")), 0o700);
        assert_eq!(mode(&folder.path().join("a/b")), 0o700);
        for ending in ["", "-wal", "-shm"] {
            let file = folder.path().join(format!("a/b/{FILE_NAME}{ending}"));
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_open_a_new_one_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let opened = (0..8).map(|number| {
            let one = Store::file(Some(path.clone())).bucket(LABEL);
            tokio::spawn(async move { one.set(number.to_string(), Vec::new()).await })
        });
        for opened in futures_util::future::join_all(opened).await {
            assert_eq!(opened.unwrap(), Ok(()));
        }
        let all = Store::file(Some(path)).bucket(LABEL).keys().await;
        assert_eq!(all.unwrap().len(), 8);
    }

    #[tokio::test]
    async fn a_copy_is_of_one_moment_and_can_be_put_back_under_load() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let (copy, store) = (folder.path().join("copy"), Store::file(Some(path.clone())));
        let one = store.bucket(LABEL);
        one.set("k".into(), b"1".to_vec()).await.unwrap();
        back_up(&path, &copy).unwrap();
        assert_eq!(
            back_up(&path, &copy).unwrap_err().to_string(),
            format!("{}: entity already exists", copy.display())
        );
        one.set("k".into(), b"2".to_vec()).await.unwrap();
        one.set("l".into(), b"2".to_vec()).await.unwrap();
        assert_eq!(one.get("k".into()).await, Ok(Some(b"2".to_vec())));

        restore(&copy, &path).unwrap();
        assert_eq!(one.get("k".into()).await, Ok(Some(b"1".to_vec())));
        assert_eq!(one.get("l".into()).await, Ok(None));
        // What had begun before is not mixed with what is there now.
        let late = one.set("l".into(), b"2".to_vec()).await.unwrap_err();
        assert!(late.contains("was restored"), "{late}");
        // Who begins afterwards may write.
        let new = Store::file(Some(path.clone())).bucket(LABEL);
        assert_eq!(new.set("m".into(), b"3".to_vec()).await, Ok(()));

        let elsewhere = folder.path().join("new").join(FILE_NAME);
        restore(&copy, &elsewhere).unwrap();
        let new = Store::file(Some(elsewhere)).bucket(LABEL);
        assert_eq!(new.keys().await, Ok(vec!["k".to_owned()]));
        assert_eq!(new.set("m".into(), b"3".to_vec()).await, Ok(()));
    }

    #[tokio::test]
    async fn what_is_no_whole_copy_is_not_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let one = Store::file(Some(path.clone())).bucket(LABEL);
        for key in 0..100 {
            one.set(key.to_string(), vec![b'x'; 1000]).await.unwrap();
        }
        let copy = folder.path().join("copy");
        back_up(&path, &copy).unwrap();
        let whole = std::fs::read(&copy).unwrap();
        let mut damaged = whole.clone();
        damaged[5000..50_000].fill(7);
        let text = b"This is a text, and no database at all.".to_vec();
        for (what, bytes) in [
            ("damaged", damaged),
            ("cut", whole[..8192].to_vec()),
            ("text", text),
        ] {
            std::fs::write(&copy, bytes).unwrap();
            let error = restore(&copy, &path).unwrap_err().to_string();
            assert!(error.contains("copy"), "{what}: {error}");
            assert_eq!(one.keys().await.unwrap().len(), 100, "{what}");
        }
        let other = Connection::open(folder.path().join("other")).unwrap();
        other.execute_batch("CREATE TABLE a (b)").unwrap();
        let error = restore(&folder.path().join("other"), &path).unwrap_err();
        assert!(
            error.to_string().ends_with("is no key-value store"),
            "{error}"
        );
        let error = back_up(&folder.path().join("none"), &folder.path().join("to")).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
        assert!(!folder.path().join("to").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let store = Store::file(Some(file.path().join("x").join(FILE_NAME)));
        let error = block_on(store.open()).unwrap_err().to_string();
        assert!(
            error.contains(FILE_NAME) && error.contains("--state-dir"),
            "{error}"
        );
    }
}
