//! Core types as WIT values, and the table of errors: one arm a case, no catch-all.

use std::time::Duration;

use behalf_core::deadline::LONGEST;
use behalf_core::error::{
    AccountKind, CallerError, HoldsUp, OperatorError, OrganisationError, Reason, SettingFault,
    StoredError, Suberror, System, TokenDefect, UserError, VaultError,
};
use behalf_core::identity::User;
use behalf_core::identity::{Nonce, StorageId, TenantId};
use behalf_core::vault::port::{
    Enrolment, Issued, Operator, Policy, Role, SealedToken, SweepLimits,
};

use crate::bindings::exports::behalf::vault::vault as wit;

/// Reads a nonce that an embedder gave.
pub(crate) fn nonce(text: &str) -> Result<Nonce, wit::Error> {
    Nonce::parse(text).ok_or_else(|| invalid("`nonce` must be 1 to 64 characters of [A-Za-z0-9_-]"))
}

/// Reads a tenant that an embedder gave.
pub(crate) fn tenant(text: &str) -> Result<TenantId, wit::Error> {
    TenantId::parse(text).ok_or_else(|| invalid("`tenant` must be a GUID"))
}

/// Reads a user that an embedder gave.
pub(crate) fn user(tenant_id: &str, id: &str) -> Result<User, wit::Error> {
    let id = StorageId::parse(id)
        .ok_or_else(|| invalid("`user-id` must be 32 characters of [A-Za-z0-9_-]"))?;
    Ok(User {
        tenant: tenant(tenant_id)?,
        id,
    })
}

/// Reads how long a call may take.
pub(crate) fn within(milliseconds: Option<wit::Milliseconds>) -> Duration {
    milliseconds.map_or(LONGEST, |milliseconds| {
        Duration::from_millis(milliseconds.into())
    })
}

impl From<User> for wit::User {
    fn from(user: User) -> Self {
        Self {
            tenant: user.tenant.as_str().into(),
            id: user.id.as_str().into(),
        }
    }
}

impl From<Policy> for wit::Policy {
    fn from(policy: Policy) -> Self {
        Self {
            store_prefix: policy.store_prefix,
            refresh_after_seconds: policy.refresh_after_seconds,
        }
    }
}

impl From<SealedToken> for wit::SealedToken {
    fn from(sealed: SealedToken) -> Self {
        Self {
            token: sealed.token,
            key_version: sealed.key_version.as_str().into(),
        }
    }
}

impl From<Enrolment> for wit::Enrolment {
    fn from(enrolment: Enrolment) -> Self {
        Self {
            user: enrolment.user.into(),
            policy: enrolment.policy.into(),
            sealed: enrolment.sealed.into(),
            scope: enrolment.scope,
        }
    }
}

impl From<Issued> for wit::Issued {
    fn from(issued: Issued) -> Self {
        Self {
            access_token: issued.access_token.expose().into(),
            token_type: issued.token_type,
            expires_in: issued.expires_in,
            scope: issued.scope,
            replacement: issued.replacement.map(Into::into),
        }
    }
}

impl From<SweepLimits> for wit::SweepLimits {
    fn from(limits: SweepLimits) -> Self {
        Self {
            policy: limits.policy.into(),
            seconds: limits.seconds,
            concurrency: limits.concurrency,
        }
    }
}

impl From<wit::Role> for Role {
    fn from(role: wit::Role) -> Self {
        match role {
            wit::Role::Read => Self::Read,
            wit::Role::Admin => Self::Admin,
        }
    }
}

impl From<Operator> for wit::Operator {
    fn from(operator: Operator) -> Self {
        Self {
            policy: operator.policy.into(),
            tenant: operator.tenant.map(|tenant| tenant.as_str().into()),
        }
    }
}

impl From<Reason> for wit::Reason {
    fn from(reason: Reason) -> Self {
        Self {
            aadsts: reason.aadsts,
            suberror: reason.suberror.map(Suberror::as_str).map(Into::into),
        }
    }
}

impl From<VaultError> for wit::Error {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Caller(error) => Self::Caller(match error {
                CallerError::InvalidRequest(what) => wit::CallerError::InvalidRequest(what),
                CallerError::InvalidToken(defect) => wit::CallerError::InvalidToken(match defect {
                    TokenDefect::Missing => wit::TokenDefect::Missing,
                    TokenDefect::Malformed => wit::TokenDefect::Malformed,
                    TokenDefect::WrongAlgorithm => wit::TokenDefect::WrongAlgorithm,
                    TokenDefect::ProofOfPossession => wit::TokenDefect::ProofOfPossession,
                    TokenDefect::UnknownKey => wit::TokenDefect::UnknownKey,
                    TokenDefect::BadSignature => wit::TokenDefect::BadSignature,
                    TokenDefect::WrongIssuer => wit::TokenDefect::WrongIssuer,
                    TokenDefect::WrongAudience => wit::TokenDefect::WrongAudience,
                    TokenDefect::Expired => wit::TokenDefect::Expired,
                    TokenDefect::NotYetValid => wit::TokenDefect::NotYetValid,
                    TokenDefect::Rejected => wit::TokenDefect::Rejected,
                }),
                CallerError::TenantNotAllowed => wit::CallerError::TenantNotAllowed,
                CallerError::TenantNotOnboarded(secret) => {
                    wit::CallerError::TenantNotOnboarded(secret)
                }
                CallerError::AccountNotSupported(kind) => {
                    wit::CallerError::AccountNotSupported(match kind {
                        AccountKind::Personal => wit::AccountKind::Personal,
                        AccountKind::External => wit::AccountKind::External,
                    })
                }
                CallerError::InsufficientScope(lacking) => {
                    wit::CallerError::InsufficientScope(lacking)
                }
                CallerError::ScopeNotGranted => wit::CallerError::ScopeNotGranted,
                CallerError::InvalidScope(reason) => wit::CallerError::InvalidScope(reason.into()),
                CallerError::SweepNotAuthorized => wit::CallerError::SweepNotAuthorized,
            }),
            VaultError::User(error) => Self::User(match error {
                UserError::InteractionRequired(interaction) => {
                    wit::UserError::InteractionRequired(wit::Interaction {
                        claims: interaction.claims,
                        reason: interaction.reason.into(),
                    })
                }
                UserError::ReenrolmentRequired(reason) => {
                    wit::UserError::ReenrolmentRequired(reason.into())
                }
            }),
            VaultError::Organisation(OrganisationError(reason)) => {
                Self::Organisation(reason.into())
            }
            VaultError::Stored(error) => Self::Stored(match error {
                StoredError::Damaged => wit::StoredError::Damaged,
                StoredError::NotBound => wit::StoredError::NotBound,
            }),
            VaultError::Operator(error) => Self::Operator(match error {
                OperatorError::Setting(faults) => {
                    let faults = faults.into_iter();
                    let faults = faults.map(|SettingFault { name, expected }| wit::SettingFault {
                        name,
                        expected,
                    });
                    wit::OperatorError::Setting(faults.collect())
                }
                OperatorError::KeyNotFound(secret) => wit::OperatorError::KeyNotFound(secret),
                OperatorError::KeyDisabled(secret) => wit::OperatorError::KeyDisabled(secret),
                OperatorError::KeyNotValid(secret) => wit::OperatorError::KeyNotValid(secret),
                OperatorError::KeyMalformed(secret) => wit::OperatorError::KeyMalformed(secret),
                OperatorError::KeyWornOut(secret) => wit::OperatorError::KeyWornOut(secret),
                OperatorError::KeyVaultForbidden => wit::OperatorError::KeyVaultForbidden,
                OperatorError::KeyVaultFirewall => wit::OperatorError::KeyVaultFirewall,
                OperatorError::KeyVaultRefused => wit::OperatorError::KeyVaultRefused,
                OperatorError::EntraRefused(reason) => {
                    wit::OperatorError::EntraRefused(reason.into())
                }
                OperatorError::KeyVaultTokenRefused(reason) => {
                    wit::OperatorError::KeyVaultTokenRefused(reason.into())
                }
                OperatorError::CredentialRefused { setting, reason } => {
                    wit::OperatorError::CredentialRefused(wit::CredentialFault {
                        setting,
                        reason: reason.into(),
                    })
                }
                OperatorError::ClockWrong => wit::OperatorError::ClockWrong,
                OperatorError::NoRefreshToken => wit::OperatorError::NoRefreshToken,
            }),
            VaultError::Upstream(error) => Self::Upstream(wit::UpstreamError {
                system: match error.system {
                    System::Entra => wit::System::Entra,
                    System::SigningKeys => wit::System::SigningKeys,
                    System::KeyVault => wit::System::KeyVault,
                    System::ManagedIdentity => wit::System::ManagedIdentity,
                },
                retry_after_seconds: error.retry_after_seconds,
                holds_up: match error.holds_up {
                    HoldsUp::Request => wit::HoldsUp::Request,
                    HoldsUp::User => wit::HoldsUp::User,
                    HoldsUp::Tenant => wit::HoldsUp::Tenant,
                    HoldsUp::Everyone => wit::HoldsUp::Everyone,
                },
            }),
        }
    }
}

fn invalid(what: &str) -> wit::Error {
    wit::Error::Caller(wit::CallerError::InvalidRequest(what.into()))
}
