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

use crate::error::VaultError;
use crate::identity::{KeyVersion, Nonce, StorageId, TenantId};
use crate::secret::{AccessToken, Bearer};

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

/// Key-value storage with nothing but single-key operations: no compare-and-swap, no transaction, no order between keys
/// (facts/storage-protocol.md).
pub trait Store {
    /// The value, or none if there is no such key.
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// Sets the value, whatever was there.
    async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError>;
    /// Deletes the key; not an error if there is none.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
    /// Sets many values, in no order. After an error some may be set and others not.
    async fn set_many(&self, pairs: &[(&str, &[u8])]) -> Result<(), StoreError>;
    /// Deletes many keys, in no order. After an error some may be deleted and others not.
    async fn delete_many(&self, keys: &[&str]) -> Result<(), StoreError>;
    /// Keys of the store, in no order: from the start, or from where the page with this cursor ended.
    async fn list_keys(&self, cursor: Option<&str>) -> Result<Page, StoreError>;
}

/// A page of the store's keys.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Page {
    /// The keys.
    pub keys: Vec<String>,
    /// Where the next page begins; none: this was the last.
    pub cursor: Option<String>,
}

/// An operation on storage failed. It may have happened all the same.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("key-value storage: {0}")]
pub struct StoreError(
    /// What the host says of it: a backend's message, which knows keys but no value.
    pub String,
);

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

/// A user, as storage may know one: `vault.user` of the WIT.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct User {
    /// The tenant.
    pub tenant: TenantId,
    /// The storage id.
    pub id: StorageId,
}

/// The settings that storage needs: `vault.policy` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Goes in front of every key.
    pub store_prefix: String,
    /// Age at which a refresh token is due for a refresh, in seconds.
    pub refresh_after_seconds: u32,
}

/// A refresh token under encryption: `vault.sealed-token` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedToken {
    /// Compact JWE.
    pub token: String,
    /// Version of the key it is sealed under.
    pub key_version: KeyVersion,
}

/// A new enrolment: `vault.enrolment` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enrolment {
    /// The user who enrolled.
    pub user: User,
    /// What storage needs to know.
    pub policy: Policy,
    /// The refresh token.
    pub sealed: SealedToken,
    /// The scope drawn at enrolment.
    pub scope: String,
}

/// A sealed token, with what it must have been sealed for: `vault.stored-token` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredToken {
    /// The user.
    pub user: User,
    /// The enrolment's nonce.
    pub nonce: Nonce,
    /// Compact JWE.
    pub token: String,
}

/// What a caller asks for: `vault.draw` of the WIT.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Draw {
    /// Scopes; none: those of the enrolment.
    pub scope: Option<String>,
    /// A claims request, as JSON text or in base64.
    pub claims: Option<String>,
    /// Whether a replacement is wanted.
    pub replace: bool,
}

/// An access token, for the caller alone: `vault.issued` of the WIT.
#[derive(Debug)]
pub struct Issued {
    /// The access token.
    pub access_token: AccessToken,
    /// `Bearer`.
    pub token_type: String,
    /// Seconds it is valid for.
    pub expires_in: u32,
    /// The scopes granted.
    pub scope: String,
    /// The refresh token's successor.
    pub replacement: Option<SealedToken>,
}

/// How one call of a sweep is bounded: `vault.sweep-limits` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SweepLimits {
    /// What storage needs to know.
    pub policy: Policy,
    /// Seconds after which the call has to be over.
    pub seconds: u32,
    /// Records worked on at once.
    pub concurrency: u32,
}

/// A role of an app, assigned at Entra ID: `vault.role` of the WIT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// `Behalf.Read`.
    Read,
    /// `Behalf.Admin`.
    Admin,
}

impl Role {
    /// As tokens carry it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "Behalf.Read",
            Self::Admin => "Behalf.Admin",
        }
    }
}

/// What an app with a role may act on: `vault.operator` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operator {
    /// What storage needs to know.
    pub policy: Policy,
    /// The one tenant that it may act on; none: all.
    pub tenant: Option<TenantId>,
}

/// The vault as its user sees it: interface `vault` of the WIT, which says what each function does.
///
/// `within` is how long the answer may take; after that it is [`VaultError::Upstream`]. It is never more than
/// [`crate::deadline::LONGEST`].
///
/// [`crate::Vault`] is one; in `src/http` it is the composed component.
pub trait VaultPort {
    /// `check-settings`.
    fn check_settings(&self) -> Result<(), VaultError>;
    /// `identify`.
    async fn identify(
        &self,
        bearer: &Bearer,
        within: Duration,
    ) -> Result<(User, Policy), VaultError>;
    /// `enrol`.
    async fn enrol(
        &self,
        bearer: &Bearer,
        nonce: &Nonce,
        scope: Option<&str>,
        within: Duration,
    ) -> Result<Enrolment, VaultError>;
    /// `access-token`.
    async fn access_token(
        &self,
        bearer: &Bearer,
        nonce: &Nonce,
        token: &str,
        draw: Draw,
        within: Duration,
    ) -> Result<Issued, VaultError>;
    /// `refresh`.
    async fn refresh(
        &self,
        stored: &StoredToken,
        within: Duration,
    ) -> Result<SealedToken, VaultError>;
    /// `reseal`.
    async fn reseal(
        &self,
        stored: &StoredToken,
        within: Duration,
    ) -> Result<Option<SealedToken>, VaultError>;
    /// `newest-key-version`.
    async fn newest_key_version(
        &self,
        tenant: &TenantId,
        within: Duration,
    ) -> Result<KeyVersion, VaultError>;
    /// `confirm-clock`.
    async fn confirm_clock(&self, within: Duration) -> Result<(), VaultError>;
    /// `authorize-sweep`.
    async fn authorize_sweep(
        &self,
        bearer: &Bearer,
        within: Duration,
    ) -> Result<SweepLimits, VaultError>;
    /// `authorize-operator`.
    async fn authorize_operator(
        &self,
        bearer: &Bearer,
        role: Role,
        tenant: Option<&TenantId>,
        within: Duration,
    ) -> Result<Operator, VaultError>;
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
