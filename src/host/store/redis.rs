//! A store in Redis, as Spin uses it, so that either host reads the other's data: a component's key is a key of Redis,
//! whatever the store's label.
//!
//! It is no better than Spin's (PLATFORMS.md, "Key-value backends"): values of many keys cannot be read at once, and compare-and-swap does
//! not work.

use super::readers::Total;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands as _, Client, ConnectionAddr, IntoConnectionInfo as _, RedisError};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// How long an answer may take. Listing keys takes longest, and less than a second with a million of them.
const ANSWER: Duration = Duration::from_secs(10);

/// A store, connected when it is first used. One connection serves all requests, and is made anew when it breaks: what it
/// was used for then has failed.
#[derive(Clone)]
pub(crate) struct Redis {
    client: Arc<Client>,
    connection: Arc<OnceCell<ConnectionManager>>,
}

impl Redis {
    pub(super) fn new(url: &str) -> Result<Self, RedisUrlError> {
        let info = redis::parse_redis_url(url)
            .and_then(|url| url.into_connection_info().ok())
            .ok_or(RedisUrlError)?;
        Ok(Self {
            client: Arc::new(Client::open(info).map_err(|_| RedisUrlError)?),
            connection: Arc::default(),
        })
    }

    /// Connects, unless that was done.
    pub(super) async fn open(&self) -> Result<(), String> {
        self.connection().await.map(|_| ())
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        let value: Option<Vec<u8>> = self.connection().await?.get(key).await.map_err(told)?;
        if let Some(bytes) = &value {
            let mut total = Total::default();
            total.add(bytes.len()).map_err(|error| error.to_string())?;
        }
        Ok(value)
    }

    pub(super) async fn exists(&self, key: &str) -> Result<bool, String> {
        self.connection().await?.exists(key).await.map_err(told)
    }

    pub(super) async fn keys(&self) -> Result<Vec<String>, String> {
        let keys: Vec<String> = self.connection().await?.keys("*").await.map_err(told)?;
        let mut total = Total::of_list();
        for key in &keys {
            total.add(key.len()).map_err(|error| error.to_string())?;
        }
        Ok(keys)
    }

    pub(super) async fn set(&self, pairs: &[(String, Vec<u8>)]) -> Result<(), String> {
        self.connection().await?.mset(pairs).await.map_err(told)
    }

    pub(super) async fn delete(&self, keys: &[String]) -> Result<(), String> {
        self.connection().await?.del(keys).await.map_err(told)
    }

    /// Adds to a number in digits.
    pub(super) async fn increment(&self, key: &str, delta: i64) -> Result<i64, String> {
        self.connection()
            .await?
            .incr(key, delta)
            .await
            .map_err(told)
    }

    async fn connection(&self) -> Result<ConnectionManager, String> {
        let connect = || {
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(CONNECT))
                .set_response_timeout(Some(ANSWER))
                .set_number_of_retries(1);
            self.client.get_connection_manager_with_config(config)
        };
        self.connection
            .get_or_try_init(connect)
            .await
            .cloned()
            .map_err(told)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is what `map_err` has")]
fn told(error: RedisError) -> String {
    error.to_string()
}

/// Where it is: no user, no password.
impl fmt::Display for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.client.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                write!(f, "Redis at {host}:{port}")
            }
            _ => write!(f, "Redis at a socket"),
        }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The address of a Redis server that is none. It is not shown, since it may hold a password.
#[derive(Debug, thiserror::Error)]
#[error("must be redis://HOST:PORT, or rediss:// with TLS")]
pub(crate) struct RedisUrlError;
