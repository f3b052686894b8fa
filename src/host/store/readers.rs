//! Reading: at once, on connections of its own, whatever is being written meanwhile. A read sees all that was acknowledged
//! before it began, and of what is being written all or nothing.

use super::place::Place;
use rusqlite::{Connection, ErrorCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// The most that one call may return, in bytes, as [`Total`] counts them: Spin's limit.
pub(super) const MAX_RESULT_BYTES: usize = 128 * 1024 * 1024;

/// How long a read waits if it has to: while a log that another process left behind is taken in, or what is in memory is
/// being written.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many connections are kept for the next read.
const MAX_IDLE: usize = 16;

/// How many reads of many rows are made at once: each may need [`MAX_RESULT_BYTES`].
const MAX_LONG: usize = 4;

/// The connections.
#[derive(Debug)]
pub(super) struct Readers {
    place: Place,
    idle: Mutex<Vec<Connection>>,
    long: Semaphore,
}

impl Readers {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            idle: Mutex::default(),
            long: Semaphore::new(MAX_LONG),
        }
    }

    /// Reads a row. It is done here and now, since another thread would cost ten times what it takes.
    pub(super) async fn row<T, Q>(self: &Arc<Self>, query: Q) -> Result<T, String>
    where
        T: Send + 'static,
        Q: Fn(&Connection) -> Result<T, ReadError> + Send + 'static,
    {
        match self.with(Duration::ZERO, &query) {
            Err(error) if error.is_busy() => self.elsewhere(query).await,
            done => done.map_err(|error| error.to_string()),
        }
    }

    /// Reads many rows, where nobody else is held up.
    pub(super) async fn rows<T, Q>(self: &Arc<Self>, query: Q) -> Result<T, String>
    where
        T: Send + 'static,
        Q: Fn(&Connection) -> Result<T, ReadError> + Send + 'static,
    {
        let _turn = self.long.acquire().await;
        self.elsewhere(query).await
    }

    async fn elsewhere<T, Q>(self: &Arc<Self>, query: Q) -> Result<T, String>
    where
        T: Send + 'static,
        Q: Fn(&Connection) -> Result<T, ReadError> + Send + 'static,
    {
        let readers = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || readers.with(PATIENCE, &query));
        match read.await {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(_) => Err("the key-value store has stopped".to_owned()),
        }
    }

    fn with<T>(
        &self,
        patience: Duration,
        query: &impl Fn(&Connection) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let idle = self.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect()?,
        };
        connection.busy_timeout(patience)?;
        // One on which something failed is not used again.
        let found = query(&connection)?;
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
        Ok(found)
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let connection = self.place.connect()?;
        // It can write, which it has to in order to read what a process that died has left.
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("query result exceeds limit of {MAX_RESULT_BYTES} bytes")]
    TooLarge,
}

impl ReadError {
    fn is_busy(&self) -> bool {
        let Self::Sqlite(error) = self else {
            return false;
        };
        let code = error.sqlite_error_code();
        matches!(
            code,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
        )
    }
}

/// How much a result has grown, as long as it may.
#[derive(Debug, Default)]
pub(super) struct Total(usize);

impl Total {
    /// That of a list with nothing in it.
    pub(super) fn of_list() -> Self {
        Self(size(0))
    }

    /// With something of this length more.
    pub(super) fn add(&mut self, length: usize) -> Result<(), ReadError> {
        self.0 = self.0.saturating_add(size(length));
        if self.0 > MAX_RESULT_BYTES {
            return Err(ReadError::TooLarge);
        }
        Ok(())
    }
}

/// What a value or a list of this length counts for: its bytes, and a `Vec`'s own.
pub(super) fn size(length: usize) -> usize {
    length.saturating_add(size_of::<Vec<u8>>())
}
