//! The vault as its user sees it: interface `vault` of the WIT, whose documentation is theirs.
#![allow(
    async_fn_in_trait,
    reason = "callers are generic over one implementation; no future crosses a thread"
)]

use std::time::Duration;

use crate::deadline::LONGEST;
use crate::error::VaultError;
use crate::identity::{Fingerprint, Guid, KeyVersion, Nonce, TenantId, User, UserName};
use crate::secret::{AccessToken, Bearer};

/// The settings that storage needs: `vault.policy` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Goes in front of every key.
    pub store_prefix: String,
    /// Age at which a refresh token is due for a refresh, in seconds.
    pub refresh_after_seconds: u32,
    /// Hashes of the settings that what is stored depends on.
    pub fingerprint: Fingerprint,
    /// The setting `confirmed_settings`; none: it is empty.
    pub confirmed_settings: Option<String>,
    /// Origins whose pages may read answers to their users.
    pub cors_origins: Vec<String>,
}

/// The user whom a call is about: `vault.subject` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// The one whom the caller's token was issued for.
    Me,
    /// One who is away, named by an app with a role.
    User(UserName),
}

/// What a caller wants of a user: `vault.purpose` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// To see what is stored, or to remove it.
    Manage,
    /// To enrol.
    Enrol,
    /// To draw an access token.
    Draw(Draw),
}

/// Who calls, and about whom: `vault.caller` of the WIT.
#[derive(Debug)]
pub struct Caller {
    /// Client id of the app that sent the token; none: the token does not say.
    pub app: Option<Guid>,
    /// The rule that lets it draw; none: it does not want to.
    pub rule: Option<String>,
    /// The user.
    pub user: User,
    /// What storage needs to know.
    pub policy: Policy,
    /// What the same draw came to before.
    pub kept: Option<Kept>,
}

/// What a draw came to before: `vault.kept` of the WIT.
#[derive(Debug)]
pub struct Kept {
    /// The enrolment that it was drawn under.
    pub nonce: Nonce,
    /// The scopes that Entra ID was asked for.
    pub scope: String,
    /// What it came to.
    pub outcome: KeptOutcome,
}

/// What a draw came to: `vault.kept-outcome` of the WIT.
#[derive(Debug)]
pub enum KeptOutcome {
    /// An access token.
    Issued(Issued),
    /// A refusal.
    Refused(Remembered),
}

/// A refusal that is remembered: `vault.remembered` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remembered {
    /// Whose turn it is.
    pub error: VaultError,
    /// Seconds after which Entra ID is asked again.
    pub retry_after_seconds: u32,
}

/// How a call is made: `vault.terms` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// How long the answer may take.
    pub within: Duration,
    /// What Entra ID and Key Vault know its requests by; none: a new one.
    pub correlation_id: Option<Guid>,
}

impl Default for Terms {
    fn default() -> Self {
        LONGEST.into()
    }
}

impl From<Duration> for Terms {
    fn from(within: Duration) -> Self {
        Self {
            within,
            correlation_id: None,
        }
    }
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
    /// Client id of the app that sent the token; none: the token does not say.
    pub app: Option<Guid>,
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
    /// Whether a replacement of the refresh token is wanted.
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
    /// The rule of the setting `grants` that lets the caller have it.
    pub rule: String,
    /// The refresh token's successor.
    pub replacement: Option<SealedToken>,
}

/// The newest key of a tenant, as Key Vault has it: `vault.newest-key` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewestKey {
    /// Its version.
    pub version: KeyVersion,
    /// Unix time in seconds at which this version was made; none: Key Vault does not say.
    pub created_at: Option<u64>,
    /// Unix time in seconds from which it seals no more; none: it does not expire.
    pub expires_at: Option<u64>,
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
    /// `Behalf.Act`.
    Act,
}

impl Role {
    /// As tokens carry it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "Behalf.Read",
            Self::Admin => "Behalf.Admin",
            Self::Act => "Behalf.Act",
        }
    }
}

/// What an app with a role may act on: `vault.operator` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operator {
    /// Client id of the app; none: its token does not say.
    pub app: Option<Guid>,
    /// What storage needs to know.
    pub policy: Policy,
    /// The one tenant that it may act on; none: all.
    pub tenant: Option<TenantId>,
}

/// The vault as its user sees it: interface `vault` of the WIT, which says what each function does.
///
/// The time that [`Terms`] give is never more than [`crate::deadline::LONGEST`]; what is not there by then is
/// [`VaultError::Upstream`].
///
/// [`crate::Vault`] is one; in `src/http` it is the composed component.
pub trait VaultPort {
    /// `check-settings`.
    fn check_settings(&self) -> Result<Policy, VaultError>;
    /// `identify`.
    async fn identify(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        purpose: &Purpose,
        terms: Terms,
    ) -> Result<Caller, VaultError>;
    /// `enrol`.
    async fn enrol(
        &self,
        bearer: &Bearer,
        nonce: &Nonce,
        scope: Option<&str>,
        terms: Terms,
    ) -> Result<Enrolment, VaultError>;
    /// `access-token`.
    async fn access_token(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        nonce: &Nonce,
        token: &str,
        draw: Draw,
        terms: Terms,
    ) -> Result<Issued, VaultError>;
    /// `forget`.
    fn forget(&self, user: &User);
    /// `refresh`.
    async fn refresh(&self, stored: &StoredToken, terms: Terms) -> Result<SealedToken, VaultError>;
    /// `reseal`.
    async fn reseal(
        &self,
        stored: &StoredToken,
        terms: Terms,
    ) -> Result<Option<SealedToken>, VaultError>;
    /// `newest-key-version`.
    async fn newest_key_version(
        &self,
        tenant: &TenantId,
        terms: Terms,
    ) -> Result<NewestKey, VaultError>;
    /// `confirm-clock`.
    async fn confirm_clock(&self, terms: Terms) -> Result<(), VaultError>;
    /// `authorize-sweep`.
    async fn authorize_sweep(
        &self,
        bearer: &Bearer,
        terms: Terms,
    ) -> Result<SweepLimits, VaultError>;
    /// `authorize-operator`.
    async fn authorize_operator(
        &self,
        bearer: &Bearer,
        role: Role,
        tenant: Option<&TenantId>,
        terms: Terms,
    ) -> Result<Operator, VaultError>;
}
