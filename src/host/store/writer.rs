//! Writing: one thread, since `SQLite` writes one thing at a time whoever asks. Changes that wait at the same time share a
//! transaction, and each is acknowledged when that is on disk.

use rusqlite::{Connection, OptionalExtension as _};
use std::io;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long to wait for another process that writes.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How many changes share a transaction at most.
const MAX_GROUP: usize = 64;

/// How long nothing is written after a restore: until everything has ended that began before, and would mix the two. behalf
/// gives a request 25 seconds.
const PAUSE: Duration = Duration::from_secs(30);

/// What is to be done.
#[derive(Debug)]
pub(super) enum Change {
    /// Sets all of these, or none.
    Set(Vec<(String, Vec<u8>)>),
    /// Deletes all of these keys, or none.
    Delete(Vec<String>),
    /// Adds to a number, eight bytes with the lowest first.
    Increment { key: String, delta: i64 },
    /// Sets what still has the value that was seen.
    Swap {
        key: String,
        seen: Vec<u8>,
        value: Vec<u8>,
    },
    /// What a test wants of the connection.
    #[cfg(test)]
    Run(String),
}

/// The way to the thread. It ends after the last clone is gone.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    queue: mpsc::Sender<Order>,
}

/// A change, and who waits for it.
struct Order {
    label: Arc<str>,
    change: Change,
    done: oneshot::Sender<Result<i64, String>>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(connection: Connection) -> io::Result<Self> {
        let (queue, orders) = mpsc::channel();
        std::thread::Builder::new()
            .name("key-value".to_owned())
            .spawn(move || serve(&connection, &orders))?;
        Ok(Self { queue })
    }

    /// Makes a change under this label. Returns the sum of an increment, and otherwise how many rows are others now.
    pub(super) async fn change(&self, label: &Arc<str>, change: Change) -> Result<i64, String> {
        let gone = || "the key-value store has stopped".to_owned();
        let (done, result) = oneshot::channel();
        let order = Order {
            label: Arc::clone(label),
            change,
            done,
        };
        self.queue.send(order).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

fn serve(connection: &Connection, orders: &mpsc::Receiver<Order>) {
    let mut restores = Restores::default();
    while let Ok(first) = orders.recv() {
        let mut group = vec![first];
        while group.len() < MAX_GROUP
            && let Ok(order) = orders.try_recv()
        {
            group.push(order);
        }
        commit(connection, &mut restores, group);
    }
}

/// Makes changes in one transaction. One that fails leaves no trace, and the others as they are.
fn commit(connection: &Connection, restores: &mut Restores, group: Vec<Order>) {
    // With its lock at once: a transaction that begins by reading cannot wait for the lock later.
    let begun = execute(connection, "BEGIN IMMEDIATE").and_then(|()| restores.check(connection));
    let made: Vec<_> = group
        .iter()
        .map(|order| {
            begun.clone()?;
            alone(connection, order)
        })
        .collect();
    let committed = begun
        .and_then(|()| unless_ended(connection))
        .and_then(|()| execute(connection, "COMMIT"));
    if committed.is_err() && !connection.is_autocommit() {
        let _ = execute(connection, "ROLLBACK");
    }
    for (order, made) in group.into_iter().zip(made) {
        // Nobody waits any more if the instance has failed meanwhile.
        let _ = order
            .done
            .send(made.and_then(|made| committed.clone().map(|()| made)));
    }
}

fn alone(connection: &Connection, order: &Order) -> Result<i64, String> {
    unless_ended(connection)?;
    execute(connection, "SAVEPOINT one")?;
    let made = make(connection, &order.label, &order.change).map_err(|error| error.to_string());
    // If the transaction has ended, so has this.
    let _ = execute(
        connection,
        if made.is_ok() {
            "RELEASE one"
        } else {
            "ROLLBACK TO one; RELEASE one"
        },
    );
    made
}

fn make(connection: &Connection, label: &str, change: &Change) -> Result<i64, WriteError> {
    match change {
        Change::Set(pairs) => {
            for (key, value) in pairs {
                set(connection, label, key, value)?;
            }
            Ok(0)
        }
        Change::Delete(keys) => {
            let mut delete = connection
                .prepare_cached("DELETE FROM spin_key_value WHERE store = ?1 AND key = ?2")?;
            for key in keys {
                delete.execute((label, key))?;
            }
            Ok(0)
        }
        Change::Increment { key, delta } => {
            let found: Option<Vec<u8>> = connection
                .prepare_cached("SELECT value FROM spin_key_value WHERE store = ?1 AND key = ?2")?
                .query_row((label, key), |row| row.get(0))
                .optional()?;
            // Spin panics on other values, and its store with it until a restart.
            let number = match found {
                Some(bytes) => bytes
                    .try_into()
                    .map(i64::from_le_bytes)
                    .map_err(|_| WriteError::NoNumber)?,
                None => 0,
            };
            let sum = number.checked_add(*delta).ok_or(WriteError::NoNumber)?;
            set(connection, label, key, &sum.to_le_bytes())?;
            Ok(sum)
        }
        Change::Swap { key, seen, value } => {
            let changed = connection
                .prepare_cached(
                    "UPDATE spin_key_value SET value = ?4 WHERE store = ?1 AND key = ?2 AND value = ?3",
                )?
                .execute((label, key, seen, value))?;
            Ok(i64::try_from(changed).unwrap_or(i64::MAX))
        }
        #[cfg(test)]
        Change::Run(sql) => {
            connection.execute_batch(sql)?;
            Ok(0)
        }
    }
}

fn set(connection: &Connection, label: &str, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO spin_key_value (store, key, value) VALUES (?1, ?2, ?3)
             ON CONFLICT (store, key) DO UPDATE SET value = excluded.value",
        )?
        .execute((label, key, value))?;
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("the value is no number that increment can add to")]
    NoNumber,
}

fn execute(connection: &Connection, sql: &str) -> Result<(), String> {
    connection
        .execute_batch(sql)
        .map_err(|error| error.to_string())
}

/// A full disk ends the transaction, and a savepoint would begin another.
fn unless_ended(connection: &Connection) -> Result<(), String> {
    if connection.is_autocommit() {
        return Err("the transaction was rolled back".to_owned());
    }
    Ok(())
}

/// What is known of restores, which another process makes.
#[derive(Debug, Default)]
struct Restores {
    count: Option<i64>,
    pause_until: Option<Instant>,
}

impl Restores {
    /// In a transaction: whether to write.
    fn check(&mut self, connection: &Connection) -> Result<(), String> {
        let count = super::backup::restores(connection).map_err(|error| error.to_string())?;
        if self
            .count
            .replace(count)
            .is_some_and(|known| known != count)
        {
            self.pause_until = Instant::now().checked_add(PAUSE);
        }
        match self.pause_until {
            Some(until) if Instant::now() < until => Err(
                "the key-value store was restored; it is written again in 30 seconds".to_owned(),
            ),
            _ => Ok(()),
        }
    }
}
