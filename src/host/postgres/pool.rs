//! The connections to PostgreSQL of this process: one limit for all components and all addresses, which is what a person sizes
//! a server by.
//!
//! Each is used by one component at a time. It is made fit for the next when it comes back, at once, so that no transaction
//! and no lock outlives its user; one that cannot be is closed.

use super::address::Address;
use super::authorities;
use crate::connector::causes;
use rustls::RootCertStore;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Ends whatever the last user has begun, and forgets what it has set: in one simple query, so in one round trip. Without the
/// `BEGIN` the server would have a warning in its log whenever there is no transaction, which is nearly always. What the user has
/// prepared in SQL it answers with the statements that end it; a block that ran these there would cost all others 0.1 ms.
const RESET: &str = "BEGIN; ROLLBACK; CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; \
    SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; \
    SELECT pg_catalog.format('DEALLOCATE %I', name) AS deallocate FROM pg_catalog.pg_prepared_statements WHERE from_sql";

/// How long that may take, and so what is left of a statement that nobody waits for; and how long a connection may take to show
/// that it is alive.
const RECYCLE: Duration = Duration::from_secs(5);
const PROOF: Duration = Duration::from_secs(2);

/// A connection that has not been used for so long has to show that it is alive.
const DOUBTFUL: Duration = Duration::from_secs(5);

/// How long a connection that nobody uses is kept, and how long any is.
const IDLE: Duration = Duration::from_mins(1);
const LIFE: Duration = Duration::from_mins(30);

/// How often both are looked at, and what there is to tell is told.
const ROUND: Duration = Duration::from_secs(10);
const TELL: Duration = Duration::from_mins(1);

/// How long asking a server to give up a statement may take.
const CANCEL: Duration = Duration::from_secs(5);

/// All connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

struct Shared {
    most: usize,
    roots: RootCertStore,
    /// A permit for each that may be in use.
    free: Arc<Semaphore>,
    connections: Mutex<Connections>,
    /// Connections of an earlier era are not used again.
    era: AtomicU64,
    /// Of the last while: how often one was used, waited for, and waited for in vain.
    used: AtomicU64,
    waited: AtomicU64,
    in_vain: AtomicU64,
}

#[derive(Default)]
struct Connections {
    /// How many there are, in use or not.
    open: usize,
    /// Who came back last is last.
    idle: Vec<(Instant, Opened)>,
    /// Whether somebody looks after them.
    is_kept: bool,
}

impl Pool {
    /// Room for this many. Servers' certificates are verified against `roots`.
    pub(crate) fn new(most: usize, roots: RootCertStore) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        Self(Arc::new(Shared {
            most,
            roots,
            free: Arc::new(Semaphore::new(most)),
            connections: Mutex::default(),
            era: AtomicU64::new(0),
            used: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            in_vain: AtomicU64::new(0),
        }))
    }

    /// A connection to this address, within its connect timeout.
    pub(super) async fn take(&self, address: &Address) -> Result<Arc<Lease>, OpenError> {
        let limit = address.connect_timeout();
        let begun = Instant::now();
        self.keep();
        self.0.used.fetch_add(1, Ordering::Relaxed);
        let permit = if let Ok(permit) = Arc::clone(&self.0.free).try_acquire_owned() {
            permit
        } else {
            self.0.waited.fetch_add(1, Ordering::Relaxed);
            let free = Arc::clone(&self.0.free).acquire_owned();
            // They are never closed.
            let Ok(Ok(permit)) = timeout(limit, free).await else {
                self.0.in_vain.fetch_add(1, Ordering::Relaxed);
                return Err(OpenError::Full(self.0.most, limit));
            };
            permit
        };
        let left = limit.saturating_sub(begun.elapsed());
        let opened = timeout(left, self.0.connection(address)).await;
        let opened = opened.unwrap_or(Err(OpenError::Late(limit)))?;
        Ok(Arc::new(Lease {
            opened: Some((opened, permit)),
            running: AtomicUsize::new(0),
            is_given_up: AtomicBool::new(false),
            runtime: Handle::current(),
            pool: Arc::downgrade(&self.0),
        }))
    }

    /// Looks after connections that nobody uses, from now on.
    fn keep(&self) {
        if std::mem::replace(&mut self.0.connections().is_kept, true) {
            return;
        }
        let shared = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let mut told = Instant::now();
            loop {
                tokio::time::sleep(ROUND).await;
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                shared.close_old(Instant::now());
                if told.elapsed() >= TELL {
                    told = Instant::now();
                    shared.tell();
                }
            }
        });
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        let connections = self.connections.lock();
        connections.unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is idle, or else a new one.
    async fn connection(self: &Arc<Self>, address: &Address) -> Result<Opened, OpenError> {
        while let Some((since, mut opened)) = self.idle(address) {
            if self.is_worn(&opened) {
                continue;
            }
            opened.is_at_rest = false;
            if since.elapsed() < DOUBTFUL || opened.is_alive().await {
                return Ok(opened);
            }
            // Those that have been idle for longer had the same way to the server.
            let of = |it: &(Instant, Opened)| it.1.address == *address;
            let dead: Vec<_> = self
                .connections()
                .idle
                .extract_if(.., |it| of(it))
                .collect();
            drop(dead);
        }
        let (room, eldest) = self.room();
        drop(eldest);
        let era = self.era.load(Ordering::Acquire);
        Opened::connect(address, &self.roots, room, era).await
    }

    /// Whether a connection has ended, or should.
    fn is_worn(&self, opened: &Opened) -> bool {
        opened.client.is_closed()
            || opened.begun.elapsed() >= LIFE
            || opened.era != self.era.load(Ordering::Acquire)
    }

    fn idle(&self, address: &Address) -> Option<(Instant, Opened)> {
        let idle = &mut self.connections().idle;
        let index = idle.iter().rposition(|(_, it)| it.address == *address)?;
        Some(idle.remove(index))
    }

    /// Room for one more, and the connection that has to go for it. Whoever asks has a permit, so that one that is in the way
    /// is idle.
    fn room(self: &Arc<Self>) -> (Room, Option<(Instant, Opened)>) {
        let mut connections = self.connections();
        connections.open = connections.open.saturating_add(1);
        let is_full = connections.open > self.most && !connections.idle.is_empty();
        let eldest = is_full.then(|| connections.idle.remove(0));
        (Room(Arc::downgrade(self)), eldest)
    }

    /// Makes a connection fit for the next user.
    async fn take_back(&self, mut opened: Opened) {
        let reset = async {
            let reset = match opened.client.simple_query(RESET).await {
                // A transaction that has failed does nothing any more but end.
                Err(error) if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => {
                    opened.client.batch_execute("ROLLBACK").await?;
                    opened.client.simple_query(RESET).await
                }
                reset => reset,
            };
            for message in reset? {
                if let SimpleQueryMessage::Row(row) = message
                    && let Ok(Some(deallocate)) = row.try_get("deallocate")
                {
                    opened.client.batch_execute(deallocate).await?;
                }
            }
            Ok::<_, tokio_postgres::Error>(())
        };
        opened.is_at_rest = matches!(timeout(RECYCLE, reset).await, Ok(Ok(())));
        if opened.is_at_rest && !self.is_worn(&opened) {
            self.connections().idle.push((Instant::now(), opened));
        }
    }

    fn close_old(&self, now: Instant) {
        let is_old = |(since, opened): &(Instant, Opened)| {
            self.is_worn(opened) || now.saturating_duration_since(*since) >= IDLE
        };
        let old: Vec<_> = self
            .connections()
            .idle
            .extract_if(.., |it| is_old(it))
            .collect();
        drop(old);
    }

    /// How it went since this was told last, if anything did.
    fn tell(&self) {
        let of = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        let (used, waited, in_vain) = (of(&self.used), of(&self.waited), of(&self.in_vain));
        if used == 0 {
            return;
        }
        let (open, most) = (self.connections().open, self.most);
        let in_use = most.saturating_sub(self.free.available_permits());
        if in_vain > 0 {
            tracing::warn!(
                most,
                open,
                in_use,
                used,
                waited,
                in_vain,
                "PostgreSQL connections: some waited for one in vain; --postgres-connections allows more, if the server does"
            );
        } else {
            tracing::info!(
                most,
                open,
                in_use,
                used,
                waited,
                in_vain,
                "PostgreSQL connections"
            );
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.tell();
    }
}

/// That a connection is counted.
struct Room(Weak<Shared>);

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            let mut connections = shared.connections();
            connections.open = connections.open.saturating_sub(1);
        }
    }
}

/// A connection to a server.
struct Opened {
    client: Client,
    address: Address,
    tls: MakeRustlsConnect,
    begun: Instant,
    /// When it was begun, by what the pool calls so.
    era: u64,
    /// What carries it.
    carrier: JoinHandle<()>,
    /// Whether it is nobody's, and fit for use.
    is_at_rest: bool,
    _room: Room,
}

impl Opened {
    async fn connect(
        address: &Address,
        roots: &RootCertStore,
        room: Room,
        era: u64,
    ) -> Result<Self, OpenError> {
        let tls = authorities::tls(roots, address.authorities());
        let tls = tls.map_err(|error| OpenError::Failed(address.to_string(), error.to_string()))?;
        let connected = address.config().connect(tls.clone()).await;
        let (client, connection) = connected.map_err(|error| OpenError::of(address, &error))?;
        let carrier = tokio::spawn(async move {
            // Whoever uses it hears of its end.
            let _ = connection.await;
        });
        Ok(Self {
            client,
            address: address.clone(),
            tls,
            begun: Instant::now(),
            era,
            carrier,
            is_at_rest: false,
            _room: room,
        })
    }

    async fn is_alive(&self) -> bool {
        let asked = timeout(PROOF, self.client.batch_execute("")).await;
        matches!(asked, Ok(Ok(())))
    }
}

impl Drop for Opened {
    /// One that is at rest takes its leave of the server, by itself. Another may never come to it.
    fn drop(&mut self) {
        if !self.is_at_rest {
            self.carrier.abort();
        }
    }
}

/// A connection in somebody's use. Goes back when nobody holds it any more, and nothing runs on it.
pub(crate) struct Lease {
    opened: Option<(Opened, OwnedSemaphorePermit)>,
    /// How many statements run on it.
    running: AtomicUsize,
    /// Whether it must not be used any more.
    is_given_up: AtomicBool,
    runtime: Handle,
    pool: Weak<Shared>,
}

impl Lease {
    /// The connection, for one statement.
    pub(super) fn run(self: &Arc<Self>) -> Option<Running> {
        let usable = self.opened.is_some() && !self.is_given_up.load(Ordering::Acquire);
        usable.then(|| {
            self.running.fetch_add(1, Ordering::AcqRel);
            Running {
                lease: Arc::clone(self),
                is_done: false,
            }
        })
    }

    /// Has the server give up what runs. The connection ends with it: whether a statement that came next would be given up in
    /// its stead nobody could tell.
    fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
        let Some((opened, _)) = &self.opened else {
            return;
        };
        let (token, tls) = (opened.client.cancel_token(), opened.tls.clone());
        self.runtime.spawn(async move {
            let _ = timeout(CANCEL, token.cancel_query(tls)).await;
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some((opened, permit)) = self.opened.take() else {
            return;
        };
        let pool = self
            .pool
            .upgrade()
            .filter(|_| !self.is_given_up.load(Ordering::Acquire));
        let Some(pool) = pool else {
            drop(opened);
            return;
        };
        self.runtime.spawn(async move {
            pool.take_back(opened).await;
            drop(permit);
        });
    }
}

/// A statement that runs. Dropped before it is done, the server is asked to give it up, if it is the only one on its
/// connection.
pub(super) struct Running {
    lease: Arc<Lease>,
    is_done: bool,
}

impl Running {
    /// The server has answered all of it, or nobody wants to stop it.
    pub(super) fn done(mut self) {
        self.is_done = true;
    }

    /// The same, and it has become plain that connections lead where none should: none that is open now is used again.
    pub(super) fn astray(self) {
        self.lease.is_given_up.store(true, Ordering::Release);
        if let Some(pool) = self.lease.pool.upgrade() {
            pool.era.fetch_add(1, Ordering::AcqRel);
        }
        self.done();
    }

    /// Its connection.
    pub(super) fn client(&self) -> Option<&Client> {
        self.lease.opened.as_ref().map(|(opened, _)| &opened.client)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let running = self.lease.running.fetch_sub(1, Ordering::AcqRel);
        if !self.is_done && running == 1 {
            self.lease.give_up();
        }
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum OpenError {
    /// All are in use.
    #[error("no connection came free within {1:?}: all {0} of --postgres-connections are in use")]
    Full(usize, Duration),
    /// The server takes too long.
    #[error("there was no connection within {0:?}, the connect_timeout of the address")]
    Late(Duration),
    /// The server does not answer, cannot be trusted, or refuses.
    #[error("cannot connect to {0}: {1}")]
    Failed(String, String),
}

impl OpenError {
    fn of(address: &Address, error: &tokio_postgres::Error) -> Self {
        let mut reason = reason(error);
        if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) {
            reason.push_str(
                "; give it more (max_connections), or this process fewer (--postgres-connections)",
            );
        }
        Self::Failed(address.to_string(), reason)
    }
}

/// What the server says, with its SQLSTATE, or what is in the way to it. Nothing of what was sent is in it.
pub(super) fn reason(error: &tokio_postgres::Error) -> String {
    if let Some(told) = error.as_db_error() {
        let (severity, message, code) = (told.severity(), told.message(), told.code().code());
        format!("{severity}: {message} ({code})")
    } else {
        let causes: Vec<_> = causes(error).map(ToString::to_string).collect();
        causes.join(": ")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use behalf_test_postgres::Postgres;

    async fn soon(what: impl Fn() -> bool) {
        let begun = Instant::now();
        while !what() {
            assert!(begun.elapsed() < Duration::from_mins(1));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn what_nobody_uses_is_closed_and_what_is_worn_is_not_used() {
        let postgres = Postgres::start().unwrap();
        let address = Address::parse(&postgres.superuser("postgres"), None).unwrap();
        let pool = Pool::new(3, RootCertStore::empty());
        let counts = || {
            let connections = pool.0.connections();
            (connections.open, connections.idle.len())
        };
        let (one, two) = (
            pool.take(&address).await.unwrap(),
            pool.take(&address).await.unwrap(),
        );
        assert_eq!(counts(), (2, 0));
        drop(one);
        soon(|| counts() == (2, 1)).await;
        // It is taken again, and not another one opened.
        let one = pool.take(&address).await.unwrap();
        assert_eq!(counts(), (2, 0));
        drop((one, two));
        soon(|| counts() == (2, 2)).await;
        let now = Instant::now();
        pool.0.close_old(now);
        assert_eq!(counts(), (2, 2));
        pool.0.close_old(now.checked_add(IDLE).unwrap());
        assert_eq!(counts(), (0, 0));

        drop(pool.take(&address).await.unwrap());
        soon(|| counts() == (1, 1)).await;
        let long_ago = Instant::now().checked_sub(LIFE).unwrap();
        pool.0.connections().idle.first_mut().unwrap().1.begun = long_ago;
        let fresh = pool.take(&address).await.unwrap();
        assert_eq!(counts(), (1, 0));
        // Nor does one come back that has grown old in use.
        let mut fresh = Arc::into_inner(fresh).unwrap();
        fresh.opened.as_mut().unwrap().0.begun = long_ago;
        drop(fresh);
        soon(|| counts() == (0, 0)).await;
        assert_eq!(pool.0.free.available_permits(), 3);
    }
}
