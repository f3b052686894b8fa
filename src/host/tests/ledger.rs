//! `behalf ledger copy`, between a store as an app leaves it and a real server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    missing_docs,
    unreachable_pub
)]
#![allow(unused_crate_dependencies, clippy::indexing_slicing)]

mod harness;

use behalf_core::error::Reason;
use behalf_core::identity::{Fingerprint, KeyVersion, Nonce, TenantId, User, UserId};
use behalf_core::ledger::key_value::KeyValueLedger;
use behalf_core::ledger::key_value::layout::Layout;
use behalf_core::ledger::key_value::store::{Page, Store};
use behalf_core::ledger::record::{Record, Status};
use behalf_core::ledger::{Ledger as _, LedgerError, StoreError};
use behalf_core::port::{Clock, Log, Random, Timer};
use behalf_test_postgres::{PASSWORD, Postgres, Stop};
use harness::{Setup, manifest};
use rusqlite::{Connection, OptionalExtension as _};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const REMOVED_TENANT: &str = "77777777-7777-7777-7777-777777777777";
const ROLE: &str = "ledger_app";

/// Long enough for a busy machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_mins(1);

/// The server of all tests that do not stop theirs.
fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Postgres::start().unwrap();
        server.create_role(ROLE, PASSWORD).unwrap();
        server
    })
}

/// A database of a test's own with the tables, as the app's role connects to it.
fn database(server: &Postgres, name: &str) -> String {
    server.create_database(name).unwrap();
    let owner = server.superuser(name);
    let mut schema = Command::new(env!("CARGO_BIN_EXE_behalf"));
    schema.args(["schema", "apply", "--role", ROLE, "--database", &owner]);
    assert!(schema.output().unwrap().status.success());
    server.address(ROLE, PASSWORD, name)
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_behalf"));
    command
        .args(["ledger", "copy"])
        .args(words)
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The exit code, and what it says.
fn said(output: Output) -> (Option<i32>, String) {
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(
        !log.contains(PASSWORD) && !log.contains("a wrong one") && !log.contains("sealed"),
        "{log}"
    );
    assert_eq!(output.stdout, b"");
    (output.status.code(), log)
}

fn run(words: &[&str]) -> (Option<i32>, String) {
    said(command(words).output().unwrap())
}

/// What it says when both sides are the same.
fn copy(words: &[&str]) -> String {
    let (code, log) = run(words);
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("both sides were read again, and hold the same"),
        "{log}"
    );
    log
}

/// A store in a file, as a host has it.
struct Folder {
    folder: TempDir,
}

impl Folder {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("sqlite_key_value.db")
    }

    fn rows(&self) -> BTreeMap<String, Vec<u8>> {
        let connection = Connection::open(self.file()).unwrap();
        let mut rows = connection
            .prepare("SELECT key, value FROM spin_key_value WHERE store = 'default'")
            .unwrap();
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn store(&self) -> File {
        File::open(&self.file())
    }
}

#[derive(Clone)]
struct File(Rc<Connection>);

impl File {
    fn open(path: &Path) -> Self {
        let connection = Connection::open(path).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
                 CREATE TABLE IF NOT EXISTS spin_key_value (
                   store TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (store, key))",
            )
            .unwrap();
        Self(connection.into())
    }
}

impl Store for File {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT value FROM spin_key_value WHERE store = 'default' AND key = ?1";
        let value = self.0.query_row(sql, [key], |row| row.get(0));
        Ok(value.optional().unwrap())
    }

    async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let sql = "INSERT OR REPLACE INTO spin_key_value VALUES ('default', ?1, ?2)";
        self.0.execute(sql, (key, value)).unwrap();
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let sql = "DELETE FROM spin_key_value WHERE store = 'default' AND key = ?1";
        self.0.execute(sql, [key]).unwrap();
        Ok(())
    }

    async fn list_keys(&self, _: Option<&str>) -> Result<Page, StoreError> {
        let mut keys = self.0.prepare("SELECT key FROM spin_key_value").unwrap();
        let keys = keys.query_map([], |row| row.get(0)).unwrap();
        let (keys, cursor) = (keys.collect::<Result<_, _>>().unwrap(), None);
        Ok(Page { keys, cursor })
    }
}

#[derive(Clone, Default)]
struct Env(Rc<Cell<u64>>);

impl Clock for Env {
    fn now(&self) -> u64 {
        1_793_606_000
    }
}

impl Timer for Env {
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    async fn sleep(&self, _: Duration) {}
}

impl Random for Env {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0.set(self.0.get() + 1);
            let number = self
                .0
                .get()
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
}

impl Log for Env {
    fn line(&self, line: &str) {
        panic!("{line}");
    }
}

fn user(tenant: &str, name: &str) -> User {
    User {
        tenant: TenantId::parse(tenant).unwrap(),
        id: UserId::from_sealed(name).storage_id(None),
    }
}

fn record(user: &User, env: &Env, status: Status) -> Record {
    Record {
        tenant: user.tenant.clone(),
        sealed: "sealed".repeat(400),
        key_version: KeyVersion::parse(&"1".repeat(32)).unwrap(),
        scope: "scope".into(),
        enrolled_by: None,
        status,
        generation: 1,
        write: Nonce::for_write(env),
        enrolled_at: env.now(),
        refreshed_at: env.now(),
        due_at: env.now() + 86_400,
    }
}

/// Enrols so many users, through the code that the app's component has; and four besides, of whom one has no token any more, one
/// is set aside, one has a record that cannot be read, and one is of a tenant that is being removed.
async fn fill(folder: &Folder, users: u32) {
    let (store, env) = (folder.store(), Env::default());
    let ledger = KeyValueLedger::new(store.clone(), env.clone());
    store.0.execute_batch("BEGIN").unwrap();
    for at in 0..users {
        let user = user(TENANT, &at.to_string());
        let (nonce, record) = (
            Nonce::for_enrolment(1, &env),
            record(&user, &env, Status::Active),
        );
        ledger.enrol(&user, &nonce, &record).await.unwrap();
    }
    for (tenant, name) in [
        (TENANT, "removed token"),
        (TENANT, "set aside"),
        (TENANT, "damaged"),
        (REMOVED_TENANT, "of a tenant"),
    ] {
        let user = user(tenant, name);
        let status = match name {
            "set aside" => Status::Quarantined(Reason::default()),
            _ => Status::Active,
        };
        let (nonce, record) = (Nonce::for_enrolment(1, &env), record(&user, &env, status));
        ledger.enrol(&user, &nonce, &record).await.unwrap();
        let layout = Layout::new("");
        match name {
            "removed token" => ledger.remove_token(&user).await.unwrap(),
            "damaged" => {
                let key = layout.record(&user.id, &nonce);
                store.set(&key, b"{\"v\":1}").await.unwrap();
            }
            "of a tenant" => store.set(&layout.bar(&user.tenant), &[]).await.unwrap(),
            _ => {}
        }
    }
    let fingerprint =
        Fingerprint::parse(Fingerprint::SETTINGS.map(|_| "0123456789abcdef")).unwrap();
    ledger.keep_fingerprint(&fingerprint).await.unwrap();
    store.0.execute_batch("COMMIT").unwrap();
}

fn count(server: &Postgres, name: &str) -> u32 {
    let number = server
        .sql(name, "SELECT count(*) FROM behalf.enrolment")
        .unwrap();
    number.parse().unwrap()
}

/// What is to be the same after all: heads, records, removals, bars and settings as they are; markers but for who wrote them.
fn essence(folder: &Folder) -> BTreeMap<String, Vec<u8>> {
    let layout = Layout::new("");
    let rows = folder.rows().into_iter();
    let name = |key: String| match layout.read_marker(&key) {
        Some(marker) if marker.user == user(TENANT, "damaged") => "a marker".to_owned(),
        _ => key,
    };
    rows.map(|(key, value)| (name(key), value)).collect()
}

#[tokio::test]
async fn there_and_back_all_is_the_same() {
    let (first, second) = (Folder::new(), Folder::new());
    fill(&first, 300).await;
    let address = database(server(), "ledger_there");
    let to_postgres = [
        "--to",
        "postgres",
        "--state-dir",
        first.path(),
        "--database",
        &address,
    ];
    let log = copy(&to_postgres);
    let id = user(TENANT, "damaged").id;
    for line in [
        "enrolments: 304, of which without a refresh token: 1; key versions: 2; tenants being removed: 1",
        "copied 308, there already 0, removed 0",
        &format!(
            "1 have a record that this version cannot read: it was copied as it is: user {}",
            id.as_str()
        ),
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    let states = "SELECT coalesce(state, -1), count(*) FROM behalf.enrolment GROUP BY 1 ORDER BY 1";
    assert_eq!(
        server().sql("ledger_there", states).unwrap(),
        "-1|1\n0|301\n3|1\n4|1"
    );
    let barred = "SELECT tenant FROM behalf.tenant WHERE barred";
    assert_eq!(
        server().sql("ledger_there", barred).unwrap(),
        REMOVED_TENANT
    );
    // Once more does nothing.
    let log = copy(&to_postgres);
    assert!(
        log.contains("copied 0, there already 308, removed 0"),
        "{log}"
    );
    copy(&[
        "--to",
        "key-value",
        "--state-dir",
        second.path(),
        "--database",
        &address,
    ]);
    let (mut before, mut after) = (essence(&first), essence(&second));
    let is_noted = |key: &String| key.starts_with("ver.");
    assert_eq!(after.keys().filter(|key| is_noted(key)).count(), 2);
    before.retain(|key, _| !is_noted(key));
    after.retain(|key, _| !is_noted(key));
    assert_eq!(before, after);
    let env = Env::default();
    let ledger = KeyValueLedger::new(second.store(), env);
    let removed = ledger.find(&user(TENANT, "removed token")).await.unwrap();
    assert_eq!(removed.record, Err(LedgerError::NoRefreshToken));
    // Of another app with another prefix there is nothing.
    let nothing = Folder::new();
    let prefixed = [
        "--to",
        "key-value",
        "--prefix",
        "p.",
        "--state-dir",
        nothing.path(),
        "--database",
        &address,
    ];
    assert!(copy(&prefixed).contains("enrolments: 0,"));
}

#[tokio::test]
async fn what_differs_is_told_and_replaced_by_request_alone() {
    let folder = Folder::new();
    fill(&folder, 3).await;
    let address = database(server(), "ledger_differs");
    copy(&[
        "--to",
        "postgres",
        "--state-dir",
        folder.path(),
        "--database",
        &address,
    ]);
    let gone = user(TENANT, "0").id;
    let sql = format!(
        "DELETE FROM behalf.enrolment WHERE usr = '{}'",
        gone.as_str()
    );
    server().sql("ledger_differs", &sql).unwrap();
    let back = [
        "--to",
        "key-value",
        "--state-dir",
        folder.path(),
        "--database",
        &address,
    ];
    let before = folder.rows();
    let (code, log) = run(&back);
    assert_eq!(code, Some(1), "{log}");
    let told = format!(
        "0 that differ and 1 that are not to be copied, which --replace overwrites and removes: user {}",
        gone.as_str()
    );
    assert!(log.contains(&told), "{log}");
    assert_eq!(folder.rows(), before);
    assert!(copy(&[&back[..], &["--replace"]].concat()).contains("removed 1"));
    assert!(!folder.rows().keys().any(|key| key.contains(gone.as_str())));
}

#[tokio::test]
async fn a_store_that_a_host_has_open_is_left_alone() {
    let mut host = Setup::new(&manifest()).start();
    let address = database(server(), "ledger_in_use");
    let state = host.setup.folder.path().join(".spin");
    let path = state.to_str().unwrap().to_owned();
    for side in ["postgres", "key-value"] {
        let words = ["--to", side, "--state-dir", &path, "--database", &address];
        let (code, log) = run(&words);
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("is in use: stop the app"), "{log}");
    }
    host.signal("TERM");
    assert_eq!(host.ended(), Some(0));
    copy(&[
        "--to",
        "postgres",
        "--state-dir",
        &path,
        "--database",
        &address,
    ]);
}

/// Waits until some enrolments are there, and not all.
fn begun(server: &Postgres, name: &str, child: &mut Child, all: u32) {
    let begun = Instant::now();
    while count(server, name) == 0 {
        assert!(begun.elapsed() < PATIENCE);
        assert!(child.try_wait().unwrap().is_none());
    }
    assert!(count(server, name) < all, "it was too fast for this test");
}

#[tokio::test]
async fn whoever_was_killed_or_interrupted_goes_on() {
    const USERS: u32 = 10_000;
    let folder = Folder::new();
    fill(&folder, USERS).await;
    for (name, signal, code) in [
        ("ledger_killed", "KILL", None),
        ("ledger_interrupted", "INT", Some(1)),
    ] {
        let address = database(server(), name);
        let words = [
            "--to",
            "postgres",
            "--state-dir",
            folder.path(),
            "--database",
            &address,
        ];
        let mut child = command(&words).spawn().unwrap();
        begun(server(), name, &mut child, USERS);
        let id = child.id().to_string();
        let kill = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(kill.unwrap().success());
        let (ended, log) = said(child.wait_with_output().unwrap());
        assert_eq!(ended, code, "{log}");
        assert!(
            code.is_none() || log.contains("interrupted; nothing is lost"),
            "{log}"
        );
        assert!(count(server(), name) < USERS);
        let log = copy(&words);
        assert!(!log.contains("there already 0"), "{log}");
        assert_eq!(count(server(), name), USERS + 4);
    }
}

#[tokio::test]
async fn a_database_that_is_lost_meanwhile_is_told_and_it_goes_on() {
    const USERS: u32 = 10_000;
    let mut server = Postgres::start().unwrap();
    server.create_role(ROLE, PASSWORD).unwrap();
    let folder = Folder::new();
    fill(&folder, USERS).await;
    let address = database(&server, "ledger_lost");
    let words = [
        "--to",
        "postgres",
        "--state-dir",
        folder.path(),
        "--database",
        &address,
    ];
    let mut child = command(&words).spawn().unwrap();
    begun(&server, "ledger_lost", &mut child, USERS);
    server.stop(Stop::Immediate).unwrap();
    let (code, log) = said(child.wait_with_output().unwrap());
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains("nothing is lost, and to run this again goes on"),
        "{log}"
    );
    server.start_again().unwrap();
    copy(&words);
    assert_eq!(count(&server, "ledger_lost"), USERS + 4);
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let folder = Folder::new();
    fill(&folder, 1).await;
    let empty = Folder::new();
    let address = database(server(), "ledger_wrong");
    server().create_database("ledger_bare").unwrap();
    let (bare, stranger) = (
        server().superuser("ledger_bare"),
        server().address(ROLE, "a wrong one", "ledger_wrong"),
    );
    let memory = [
        "--to",
        "postgres",
        "--state-dir",
        "",
        "--database",
        &address,
    ];
    for (words, code, reason) in [
        (
            vec!["--state-dir", folder.path(), "--database", &address],
            2,
            "--to",
        ),
        (vec!["--to", "redis", "--database", &address], 2, "postgres"),
        (
            vec!["--to", "postgres", "--state-dir", folder.path()],
            2,
            "--database",
        ),
        (memory.to_vec(), 2, "is in memory"),
        (
            vec![
                "--to",
                "postgres",
                "--state-dir",
                folder.path(),
                "--database",
                "host=a password=not quoted",
            ],
            2,
            "--database is no connection string",
        ),
        (
            vec![
                "--to",
                "postgres",
                "--state-dir",
                folder.path(),
                "--database",
                &address,
                "--prefix",
                "a/b",
            ],
            2,
            "up to 32 characters",
        ),
        (
            vec![
                "--to",
                "postgres",
                "--state-dir",
                folder.path(),
                "--database",
                &address,
                "--label",
                "other",
            ],
            2,
            "there is no such store",
        ),
        (
            vec![
                "--to",
                "postgres",
                "--state-dir",
                empty.path(),
                "--database",
                &address,
            ],
            1,
            "there is no key-value store in",
        ),
        (
            vec![
                "--to",
                "postgres",
                "--state-dir",
                folder.path(),
                "--database",
                &stranger,
            ],
            1,
            "password authentication failed",
        ),
        (
            vec![
                "--to",
                "postgres",
                "--state-dir",
                folder.path(),
                "--database",
                &bare,
            ],
            1,
            "run `behalf schema apply` on it",
        ),
    ] {
        let (ended, log) = run(&words);
        assert_eq!(ended, Some(code), "{words:?}: {log}");
        assert!(log.contains(reason), "{words:?}: {log}");
    }
    assert!(!empty.file().exists());
}

#[tokio::test]
async fn redis_is_a_key_value_store_too() {
    let redis = runtime_tests::redis::Redis::start().unwrap();
    let (folder, address) = (Folder::new(), database(server(), "ledger_redis"));
    fill(&folder, 300).await;
    let config = folder.folder.path().join("redis.toml");
    let url = redis.url();
    std::fs::write(
        &config,
        format!("[key_value_store.default]\ntype = \"redis\"\nurl = \"{url}\""),
    )
    .unwrap();
    let config = config.to_str().unwrap();
    copy(&[
        "--to",
        "postgres",
        "--state-dir",
        folder.path(),
        "--database",
        &address,
    ]);
    let to_redis = [
        "--to",
        "key-value",
        "--runtime-config-file",
        config,
        "--database",
        &address,
    ];
    copy(&to_redis);
    copy(&[
        "--to",
        "postgres",
        "--runtime-config-file",
        config,
        "--database",
        &address,
    ]);
    let mut rows: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let store = runtime_tests::store::Store::Redis(url);
    rows.extend(store.all_rows().unwrap());
    rows.retain(|key, _| key.starts_with("rec.") || key.starts_with("usr."));
    let mut expected = folder.rows();
    expected.retain(|key, _| key.starts_with("rec.") || key.starts_with("usr."));
    assert_eq!(rows, expected);
}
