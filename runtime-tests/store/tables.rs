//! What the app stored in PostgreSQL, told in the words of key-value storage, so that a case is the same on both.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context as _, ensure};
use behalf_test_postgres::Postgres;
use postgres::{Client, NoTls, Transaction};

use crate::app;

/// The role of the app.
const ROLE: &str = "behalf_app";
const PASSWORD: &str = "a canary of a password";

/// One server for all tests of a process: each has a database of its own there.
static SERVER: LazyLock<Postgres> = LazyLock::new(|| {
    let server = Postgres::start_with(&["max_connections=300"]).expect("a PostgreSQL server");
    server.create_role(ROLE, PASSWORD).expect("a role");
    server
});

/// The tables of one database.
#[derive(Clone, Debug)]
pub struct Tables {
    database: String,
}

/// A transaction that others wait for, until this is dropped.
pub struct TableLock {
    holder: Option<thread::JoinHandle<()>>,
    release: Option<std::sync::mpsc::Sender<()>>,
}

impl Drop for TableLock {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(holder) = self.holder.take() {
            // Its connection is gone then, whatever became of it.
            let _ = holder.join();
        }
    }
}

impl Tables {
    /// A new database, with the tables that `behalf schema print` makes.
    pub fn create() -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let database = format!("case_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let print = Command::new(app::behalf()?)
            .args(["schema", "print", "--role", ROLE])
            .output()?;
        ensure!(print.status.success(), "behalf schema print fails");
        SERVER.create_database(&database)?;
        SERVER.sql(&database, &String::from_utf8(print.stdout)?)?;
        Ok(Self { database })
    }

    /// The settings by which the app finds it.
    #[must_use]
    pub fn settings(&self) -> Vec<(String, String)> {
        let port = SERVER.port().to_string();
        [
            ("postgres_host", SERVER.host()),
            ("postgres_port", &port),
            ("postgres_database", &self.database),
            ("postgres_user", ROLE),
            ("postgres_password", PASSWORD),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// Runs statements as whoever owns the server.
    pub fn run(&self, statements: &str) -> anyhow::Result<()> {
        SERVER.sql(&self.database, statements).map(drop)
    }

    /// Every row, as key-value storage would have it.
    pub(super) fn all_rows(&self) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        self.with(|client| {
            let mut rows = BTreeMap::new();
            let enrolments = "SELECT tenant, usr, nonce, enrolled_at, record, key_version, state, state_number, due_at
                FROM behalf.enrolment WHERE removed_at IS NULL";
            for row in client.query(enrolments, &[])? {
                let (tenant, user, nonce): (String, String, String) = (row.get(0), row.get(1), row.get(2));
                let head = format!("usr.{}.{user}", tenant.replace('-', ""));
                let enrolled_at: i64 = row.get(3);
                rows.insert(head, format!("{nonce} {enrolled_at}").into_bytes());
                let Some(record) = row.get::<_, Option<Vec<u8>>>(4) else {
                    rows.insert(format!("off.{user}.{nonce}"), Vec::new());
                    continue;
                };
                rows.insert(format!("rec.{user}.{nonce}"), record);
                let (version, state): (String, i16) = (row.get(5), row.get(6));
                let (number, due_at): (i32, i64) = (row.get(7), row.get(8));
                let marker = format!("due.{due_at:012}.{user}.{nonce}.{version}.{state}.{number}");
                rows.insert(marker, Vec::new());
            }
            for row in client.query("SELECT tenant FROM behalf.tenant WHERE barred", &[])? {
                let tenant: String = row.get(0);
                rows.insert(format!("bar.{}", tenant.replace('-', "")), Vec::new());
            }
            for row in client.query("SELECT sweep_state, fingerprint FROM behalf.app", &[])? {
                for (at, key) in ["sweep.state", "settings.seen"].into_iter().enumerate() {
                    if let Some(value) = row.get(at) {
                        rows.insert(key.to_owned(), value);
                    }
                }
            }
            for row in client.query("SELECT bucket, counts FROM behalf.counts", &[])? {
                let (bucket, counts): (i16, String) = (row.get(0), row.get(1));
                rows.insert(format!("sum.{bucket}"), counts.into_bytes());
            }
            Ok(rows)
        })
    }

    /// Writes a record in the place of that with this key.
    pub(super) fn replace(&self, key: &str, value: &[u8]) -> anyhow::Result<bool> {
        let (user, nonce) = of_record(key)?;
        self.with(|client| {
            let update = "UPDATE behalf.enrolment SET record = $3 WHERE usr = $1 AND nonce = $2 AND record IS NOT NULL";
            Ok(client.execute(update, &[&user, &nonce, &value])? == 1)
        })
    }

    /// Bars a tenant, if that is what the key says.
    pub(super) fn insert(&self, key: &str) -> anyhow::Result<()> {
        let tenant = key.strip_prefix("bar.").context("no row of PostgreSQL's")?;
        self.with(|client| {
            let update = "UPDATE behalf.tenant SET barred = true, removals = removals + 1 WHERE replace(tenant, '-', '') = $1";
            ensure!(client.execute(update, &[&tenant])? == 1, "no tenant {tenant}");
            Ok(())
        })
    }

    /// Makes every record due now.
    pub(super) fn make_due(&self) -> anyhow::Result<()> {
        self.with(|client| {
            Ok(client.batch_execute(
                "UPDATE behalf.app SET sweep_state = NULL;
                 UPDATE behalf.enrolment SET due_at = floor(extract(epoch from now()))::int8, leased_until = 0, record = convert_to(jsonb_set(
                   convert_from(record, 'UTF8')::jsonb, '{due_at}', to_jsonb(floor(extract(epoch from now()))::int8))::text, 'UTF8')
                 WHERE record IS NOT NULL",
            )?)
        })
    }

    pub(super) fn forget_sweeps(&self) -> anyhow::Result<()> {
        self.with(|client| Ok(client.batch_execute("UPDATE behalf.app SET sweep_state = NULL")?))
    }

    /// Lets a minute pass for what is counted at most once a minute.
    pub(super) fn pass_a_minute(&self) -> anyhow::Result<()> {
        self.with(|client| {
            let update = "UPDATE behalf.counts SET counted_at = greatest(counted_at - 61, 0)";
            Ok(client.batch_execute(update)?)
        })
    }

    /// Keeps everybody else from the enrolments.
    pub(super) fn lock(&self) -> anyhow::Result<TableLock> {
        let address = SERVER.superuser(&self.database);
        let (release, released) = std::sync::mpsc::channel();
        let (ready, is_locked) = std::sync::mpsc::channel();
        let holder = thread::spawn(move || {
            let locked = || -> anyhow::Result<Client> {
                let mut client = Client::connect(&address, NoTls)?;
                client
                    .batch_execute("BEGIN; LOCK TABLE behalf.enrolment IN ACCESS EXCLUSIVE MODE")?;
                Ok(client)
            };
            let client = locked();
            let is_there = client.as_ref().map(|_| ()).map_err(ToString::to_string);
            let _ = ready.send(is_there);
            // Until the other end is dropped.
            let _: Result<(), _> = released.recv();
        });
        let locked = is_locked.recv()?;
        locked.map_err(|error| anyhow::anyhow!(error))?;
        Ok(TableLock {
            holder: Some(holder),
            release: Some(release),
        })
    }

    /// Asks the database, from a thread where one may wait.
    fn with<T: Send>(
        &self,
        ask: impl FnOnce(&mut Transaction<'_>) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let address = SERVER.superuser(&self.database);
        thread::scope(|scope| {
            let asked = scope.spawn(move || {
                let mut client = Client::connect(&address, NoTls)?;
                let mut transaction = client.transaction()?;
                let answer = ask(&mut transaction)?;
                transaction.commit()?;
                Ok(answer)
            });
            asked.join().map_err(|_| anyhow::anyhow!("a panic"))?
        })
    }
}

/// The user and the enrolment of a record's key.
fn of_record(key: &str) -> anyhow::Result<(&str, &str)> {
    let record = key.strip_prefix("rec.").context("no record")?;
    record.split_once('.').context("no enrolment")
}
