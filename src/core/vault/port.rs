//! The vault as its user sees it: interface `vault` of the WIT, whose documentation is theirs.
#![allow(
    async_fn_in_trait,
    reason = "callers are generic over one implementation; no future crosses a thread"
)]

use std::time::Duration;

use crate::error::VaultError;
use crate::identity::{KeyVersion, Nonce, TenantId, User};
use crate::secret::{AccessToken, Bearer};

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
