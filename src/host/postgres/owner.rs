//! A connection of a command: of whoever owns a database, for making and upgrading its tables, or moving what is in them.

use super::authorities::Authorities;
use super::pool::reason;
use rustls::RootCertStore;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};

/// How long connecting may take, unless the connection string has a `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Whoever comes second waits for the first, and building an index takes as long as it takes.
const NO_LIMITS: &str =
    "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0";

/// What a command does by many statements has limits, so that it does not wait for ever.
const LIMITS: &str = "SET statement_timeout = '60s'; SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '60s'";

/// How long a statement may take.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limits {
    /// As long as it takes.
    None,
    /// A minute.
    Minute,
}

/// The connection. It ends when this is dropped.
pub(crate) struct Owner {
    client: Client,
    carrier: JoinHandle<()>,
}

impl Owner {
    /// Connects to what a connection string or URL names, by this password if it has none itself, for statements that may take
    /// so long. A certificate is verified whenever there is TLS, by the authorities in `ca`, in PEM, besides.
    ///
    /// # Errors
    ///
    /// See [`OwnerError`].
    pub(crate) async fn connect(
        database: &str,
        password: Option<&str>,
        roots: &RootCertStore,
        limits: Limits,
        ca: Option<&str>,
    ) -> Result<Self, OwnerError> {
        // What the client says may hold a part of a password that was not quoted.
        let mut config: Config = database.parse().map_err(|_| OwnerError::Database)?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(OwnerError::NoHost);
        }
        if let (None, Some(password)) = (config.get_password(), password) {
            config.password(password);
        }
        let limit = config.get_connect_timeout().copied();
        let limit = limit.unwrap_or(CONNECT_TIMEOUT);
        let besides = ca.map(Authorities::parse).transpose();
        let besides = besides.map_err(OwnerError::Connect)?;
        let tls = super::authorities::tls(roots, besides.as_ref());
        let tls = tls.map_err(|error| OwnerError::Connect(error.to_string()))?;
        let connected = timeout(limit, config.connect(tls)).await;
        let connected = connected.map_err(|_| OwnerError::Late(limit))?;
        let (client, connection) =
            connected.map_err(|error| OwnerError::Connect(reason(&error)))?;
        let carrier = tokio::spawn(async move {
            // Whoever uses it hears of its end.
            let _ = connection.await;
        });
        let owner = Self { client, carrier };
        let limits = match limits {
            Limits::None => NO_LIMITS,
            Limits::Minute => LIMITS,
        };
        owner.run(limits).await?;
        Ok(owner)
    }

    /// What statements are run by.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The only number that a query has for an answer; none if it has no row, or the table it asks is not there.
    ///
    /// # Errors
    ///
    /// The server refuses.
    pub(crate) async fn number(&self, query: &str) -> Result<Option<i32>, OwnerError> {
        match self.client.query_opt(query, &[]).await {
            Ok(row) => Ok(row.and_then(|row| row.try_get(0).ok())),
            Err(error) => match error.code() {
                Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME) => Ok(None),
                _ => Err(OwnerError::of(&error)),
            },
        }
    }

    /// Runs statements, all or none.
    ///
    /// # Errors
    ///
    /// The server refuses.
    pub(crate) async fn run(&self, statements: &str) -> Result<(), OwnerError> {
        let done = self.client.batch_execute(statements).await;
        done.map_err(|error| OwnerError::of(&error))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

/// Why something cannot be done to a database. None holds a password.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerError {
    /// The connection string is none.
    #[error(
        "--database is no connection string: write \"host=… port=… user=… dbname=… sslmode=require\" or postgres://USER@HOST:PORT/NAME"
    )]
    Database,
    /// It names no host.
    #[error("--database names no host")]
    NoHost,
    /// The server does not answer.
    #[error("the database does not answer within {0:?}")]
    Late(Duration),
    /// The server does not answer, cannot be trusted, or lets nobody in.
    #[error("cannot connect to the database: {0}")]
    Connect(String),
    /// Whoever connected is not allowed to.
    #[error(
        "{0}; connect as the owner of the database, and as who may create roles if --role is to be made"
    )]
    NotAllowed(String),
    /// The server refuses.
    #[error("{0}")]
    Refused(String),
}

impl OwnerError {
    fn of(error: &tokio_postgres::Error) -> Self {
        let reason = reason(error);
        match error.code() {
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Self::NotAllowed(reason),
            // The words of our own statements.
            Some(&SqlState::RAISE_EXCEPTION) => {
                let told = error.as_db_error().map(|it| it.message().to_owned());
                Self::Refused(told.unwrap_or(reason))
            }
            _ => Self::Refused(reason),
        }
    }
}
