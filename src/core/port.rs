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

/// Outbound HTTP with bodies under way, of any length.
pub trait Relay {
    /// A body on its way from whoever calls.
    type Upload: Upload + 'static;
    /// A body on its way from whoever is called. Dropped, it is asked for no more.
    type Download;

    /// Sends a request, and gives the response once there is its head; what is left of the request's body goes on being sent.
    /// Follows no redirect and retries nothing. Dropped, it breaks off.
    async fn relay<U: Upload + 'static>(
        &self,
        request: http::Request<Option<U>>,
        limits: RelayLimits,
    ) -> Result<http::Response<Self::Download>, RelayError>;
}

/// A body that is read in parts, while it is under way.
pub trait Upload {
    /// The next part; none: it has ended.
    ///
    /// # Errors
    /// It broke off, or stopped.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, BodyError>;

    /// Whoever it was for wants no more of it. It is dropped after this.
    async fn unwanted(&mut self) {}
}

/// Limits of a request with bodies under way. None is of the time in all.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// To establish the connection.
    pub connect: Duration,
    /// Between two parts of a body, either way.
    pub between_parts: Duration,
}

/// Why there is no response.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RelayError {
    /// The host forbids this destination.
    #[error("the host does not allow this destination (allowed_outbound_hosts)")]
    Denied,
    /// No connection.
    #[error("no connection")]
    Unreachable,
    /// A limit of time was reached.
    #[error("timed out")]
    TimedOut,
    /// The connection ended without a response, or what came is none.
    #[error("no response")]
    Garbled,
}

/// Limits of one outbound request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// To establish the connection.
    pub connect: Duration,
    /// From the start to the response head: what bounds a call, since Spin's covers pool, connect, TLS and head
    /// (PLATFORMS.md, "Outbound HTTP").
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

    /// A number.
    fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A number below a bound; 0 if that is 0.
    fn below(&self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        let number = self.number().checked_rem(bound).unwrap_or(0);
        usize::try_from(number).unwrap_or(0)
    }

    /// Puts things in an order by chance.
    fn shuffle<T>(&self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at.saturating_add(1)));
        }
    }
}

/// Work that nobody waits for.
pub trait Background {
    /// Begins a task, and returns. It goes on beside the call that began it, and after that; or it is dropped at any point, so
    /// nothing may depend on it.
    fn begin(&self, task: impl Future<Output = ()> + 'static);
}

/// The settings (README, "Settings").
pub trait Config {
    /// The value of a setting, none if it is not defined.
    ///
    /// # Errors
    /// The host cannot tell. What it says is dropped: it could hold a value.
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError>;
}

/// A setting's value without the space around it, and without the byte order mark that a file can begin with.
pub(crate) fn trimmed(value: &str) -> &str {
    value.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
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

/// What keeping records needs besides where to keep them.
pub trait Environment: Clock + Timer + Random + Log {}
impl<E: Clock + Timer + Random + Log> Environment for E {}

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
