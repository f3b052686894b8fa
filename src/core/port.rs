//! The ports: all that the core asks of the world. Small, so that a component, a native test and a simulation can each
//! provide them in a few lines.
#![allow(
    async_fn_in_trait,
    reason = "callers are generic over one implementation; no future crosses a thread"
)]

use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use zeroize::Zeroizing;

/// A body that may hold a secret, and so is zeroized.
pub type SecretBody = Zeroizing<Vec<u8>>;

/// Outbound HTTP.
pub trait Http {
    /// Sends a request and reads the whole response. Follows no redirect and retries nothing.
    async fn send(
        &self,
        request: http::Request<SecretBody>,
        limits: Limits,
    ) -> Result<http::Response<SecretBody>, HttpError>;
}

/// Limits of one outbound request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// To establish the connection.
    pub connect: Duration,
    /// From the start to the response head: what bounds a call, since Spin's covers pool, connect, TLS and head
    /// (facts/spin.md §3).
    pub first_byte: Duration,
    /// Between two parts of the body.
    pub between_bytes: Duration,
    /// Longest body accepted, in bytes.
    pub body: usize,
}

/// Why there is no response. None of the cases says more, because the text of a transport error could hold a URL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum HttpError {
    /// The host forbids this destination.
    #[error("the host does not allow this destination (allowed_outbound_hosts)")]
    Denied,
    /// No connection, a broken one, or a response that is no HTTP.
    #[error("no response")]
    Unreachable,
    /// A limit of time was reached.
    #[error("timed out")]
    TimedOut,
    /// The body is longer than allowed.
    #[error("the response is too long")]
    TooLong,
}

/// The wall clock.
pub trait Clock {
    /// Seconds since the Unix epoch.
    fn now(&self) -> u64;
}

/// Time that passes, for limits and waits. No wall clock, so that setting one has no effect.
pub trait Timer {
    /// Time since some fixed moment.
    fn elapsed(&self) -> Duration;
    /// Waits.
    async fn sleep(&self, duration: Duration);
}

/// Cryptographically strong randomness.
pub trait Random {
    /// Fills the buffer.
    fn fill(&self, buffer: &mut [u8]);
}

/// The settings (README, "Settings").
pub trait Config {
    /// The value of a setting, none if it is not defined.
    ///
    /// # Errors
    /// The host cannot tell. What it says is dropped: it could hold a value.
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError>;
}

/// The host cannot tell a setting's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the host cannot resolve this setting")]
pub struct ConfigError;

/// Where lines for the operator go.
pub trait Log {
    /// Writes one line: a JSON object. The core never puts a token, a key or another system's text into it.
    fn line(&self, line: &str);
}

/// What an HTTP request's body is read through.
pub trait RequestBody {
    /// Reads the whole body, of so many bytes and in so much time at most.
    async fn read(self, limit: usize, time: Duration) -> Result<Bytes, BodyError>;
}

/// Why a request's body cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BodyError {
    /// It is longer than the limit.
    #[error("the body is too long")]
    TooLong,
    /// It did not arrive in time.
    #[error("the body is too slow")]
    TooSlow,
    /// The client broke it off.
    #[error("the body broke off")]
    BrokenOff,
}
