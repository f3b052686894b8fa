//! The imported vault as the core's port, and the table of its errors: one arm a case, no catch-all.

use std::time::Duration;

use behalf_core::error::{
    AccountKind, CallerError, HoldsUp, Interaction, OperatorError, OrganisationError, Reason,
    SettingFault, StoredError, Suberror, System, TokenDefect, UpstreamError, UserError, VaultError,
};
use behalf_core::identity::User;
use behalf_core::identity::{KeyVersion, Nonce, StorageId, TenantId};
use behalf_core::secret::{AccessToken, Bearer};
use behalf_core::vault::port::{
    Draw, Enrolment, Issued, Operator, Policy, Role, SealedToken, StoredToken, SweepLimits,
    VaultPort,
};

use crate::bindings::behalf::vault::vault as wit;

/// The component that `spin.toml` composes this one with.
pub(crate) struct ImportedVault;

impl VaultPort for ImportedVault {
    fn check_settings(&self) -> Result<(), VaultError> {
        Ok(wit::check_settings()?)
    }

    async fn identify(
        &self,
        bearer: &Bearer,
        within: Duration,
    ) -> Result<(User, Policy), VaultError> {
        let caller = wit::identify(bearer.expose().into(), milliseconds(within)).await?;
        Ok((user(&caller.user)?, caller.policy.into()))
    }

    async fn enrol(
        &self,
        bearer: &Bearer,
        nonce: &Nonce,
        scope: Option<&str>,
        within: Duration,
    ) -> Result<Enrolment, VaultError> {
        let enrolment = wit::enrol(
            bearer.expose().into(),
            nonce.as_str().into(),
            scope.map(Into::into),
            milliseconds(within),
        )
        .await?;
        Ok(Enrolment {
            user: user(&enrolment.user)?,
            policy: enrolment.policy.into(),
            sealed: enrolment.sealed.try_into()?,
            scope: enrolment.scope,
        })
    }

    async fn access_token(
        &self,
        bearer: &Bearer,
        nonce: &Nonce,
        token: &str,
        draw: Draw,
        within: Duration,
    ) -> Result<Issued, VaultError> {
        let draw = wit::Draw {
            scope: draw.scope,
            claims: draw.claims,
            replace: draw.replace,
        };
        let issued = wit::access_token(
            bearer.expose().into(),
            nonce.as_str().into(),
            token.into(),
            draw,
            milliseconds(within),
        )
        .await?;
        Ok(Issued {
            access_token: AccessToken::new(issued.access_token),
            token_type: issued.token_type,
            expires_in: issued.expires_in,
            scope: issued.scope,
            replacement: issued.replacement.map(TryInto::try_into).transpose()?,
        })
    }

    async fn refresh(
        &self,
        stored: &StoredToken,
        within: Duration,
    ) -> Result<SealedToken, VaultError> {
        let sealed = wit::refresh(stored.into(), milliseconds(within)).await?;
        sealed.try_into()
    }

    async fn reseal(
        &self,
        stored: &StoredToken,
        within: Duration,
    ) -> Result<Option<SealedToken>, VaultError> {
        let sealed = wit::reseal(stored.into(), milliseconds(within)).await?;
        sealed.map(TryInto::try_into).transpose()
    }

    async fn newest_key_version(
        &self,
        tenant: &TenantId,
        within: Duration,
    ) -> Result<KeyVersion, VaultError> {
        let version = wit::newest_key_version(tenant.as_str().into(), milliseconds(within)).await?;
        key_version(&version)
    }

    async fn confirm_clock(&self, within: Duration) -> Result<(), VaultError> {
        Ok(wit::confirm_clock(milliseconds(within)).await?)
    }

    async fn authorize_sweep(
        &self,
        bearer: &Bearer,
        within: Duration,
    ) -> Result<SweepLimits, VaultError> {
        let limits = wit::authorize_sweep(bearer.expose().into(), milliseconds(within)).await?;
        Ok(SweepLimits {
            policy: limits.policy.into(),
            seconds: limits.seconds,
            concurrency: limits.concurrency,
        })
    }

    async fn authorize_operator(
        &self,
        bearer: &Bearer,
        role: Role,
        tenant: Option<&TenantId>,
        within: Duration,
    ) -> Result<Operator, VaultError> {
        let role = match role {
            Role::Read => wit::Role::Read,
            Role::Admin => wit::Role::Admin,
        };
        let tenant = tenant.map(|tenant| tenant.as_str().into());
        let within = milliseconds(within);
        let operator =
            wit::authorize_operator(bearer.expose().into(), role, tenant, within).await?;
        Ok(Operator {
            policy: operator.policy.into(),
            tenant: operator.tenant.as_deref().map(tenant_id).transpose()?,
        })
    }
}

fn milliseconds(time: Duration) -> Option<wit::Milliseconds> {
    u32::try_from(time.as_millis()).ok()
}

fn user(user: &wit::User) -> Result<User, VaultError> {
    let read = || {
        Some(User {
            tenant: TenantId::parse(&user.tenant)?,
            id: StorageId::parse(&user.id)?,
        })
    };
    read().ok_or_else(another_vault)
}

fn tenant_id(text: &str) -> Result<TenantId, VaultError> {
    TenantId::parse(text).ok_or_else(another_vault)
}

fn key_version(text: &str) -> Result<KeyVersion, VaultError> {
    KeyVersion::parse(text).ok_or_else(another_vault)
}

/// The component behind the import answers what the interface forbids: it is not behalf's vault.
fn another_vault() -> VaultError {
    VaultError::setting(
        "component.http.dependencies",
        "does not name behalf's own vault component",
    )
}

impl From<wit::Policy> for Policy {
    fn from(policy: wit::Policy) -> Self {
        Self {
            store_prefix: policy.store_prefix,
            refresh_after_seconds: policy.refresh_after_seconds,
        }
    }
}

impl TryFrom<wit::SealedToken> for SealedToken {
    type Error = VaultError;

    fn try_from(sealed: wit::SealedToken) -> Result<Self, VaultError> {
        Ok(Self {
            token: sealed.token,
            key_version: key_version(&sealed.key_version)?,
        })
    }
}

impl From<&StoredToken> for wit::StoredToken {
    fn from(stored: &StoredToken) -> Self {
        Self {
            tenant: stored.user.tenant.as_str().into(),
            user_id: stored.user.id.as_str().into(),
            nonce: stored.nonce.as_str().into(),
            token: stored.token.clone(),
        }
    }
}

impl From<wit::Reason> for Reason {
    fn from(reason: wit::Reason) -> Self {
        Self {
            aadsts: reason.aadsts,
            suberror: reason.suberror.as_deref().and_then(Suberror::parse),
        }
    }
}

impl From<wit::Error> for VaultError {
    fn from(error: wit::Error) -> Self {
        match error {
            wit::Error::Caller(error) => Self::Caller(match error {
                wit::CallerError::InvalidRequest(what) => CallerError::InvalidRequest(what),
                wit::CallerError::InvalidToken(defect) => CallerError::InvalidToken(match defect {
                    wit::TokenDefect::Missing => TokenDefect::Missing,
                    wit::TokenDefect::Malformed => TokenDefect::Malformed,
                    wit::TokenDefect::WrongAlgorithm => TokenDefect::WrongAlgorithm,
                    wit::TokenDefect::ProofOfPossession => TokenDefect::ProofOfPossession,
                    wit::TokenDefect::UnknownKey => TokenDefect::UnknownKey,
                    wit::TokenDefect::BadSignature => TokenDefect::BadSignature,
                    wit::TokenDefect::WrongIssuer => TokenDefect::WrongIssuer,
                    wit::TokenDefect::WrongAudience => TokenDefect::WrongAudience,
                    wit::TokenDefect::Expired => TokenDefect::Expired,
                    wit::TokenDefect::NotYetValid => TokenDefect::NotYetValid,
                    wit::TokenDefect::Rejected => TokenDefect::Rejected,
                }),
                wit::CallerError::TenantNotAllowed => CallerError::TenantNotAllowed,
                wit::CallerError::TenantNotOnboarded(secret) => {
                    CallerError::TenantNotOnboarded(secret)
                }
                wit::CallerError::AccountNotSupported(kind) => {
                    CallerError::AccountNotSupported(match kind {
                        wit::AccountKind::Personal => AccountKind::Personal,
                        wit::AccountKind::External => AccountKind::External,
                    })
                }
                wit::CallerError::InsufficientScope(lacking) => {
                    CallerError::InsufficientScope(lacking)
                }
                wit::CallerError::ScopeNotGranted => CallerError::ScopeNotGranted,
                wit::CallerError::InvalidScope(reason) => CallerError::InvalidScope(reason.into()),
                wit::CallerError::SweepNotAuthorized => CallerError::SweepNotAuthorized,
            }),
            wit::Error::User(error) => Self::User(match error {
                wit::UserError::InteractionRequired(interaction) => {
                    UserError::InteractionRequired(Interaction {
                        claims: interaction.claims,
                        reason: interaction.reason.into(),
                    })
                }
                wit::UserError::ReenrolmentRequired(reason) => {
                    UserError::ReenrolmentRequired(reason.into())
                }
            }),
            wit::Error::Organisation(reason) => {
                Self::Organisation(OrganisationError(reason.into()))
            }
            wit::Error::Stored(error) => Self::Stored(match error {
                wit::StoredError::Damaged => StoredError::Damaged,
                wit::StoredError::NotBound => StoredError::NotBound,
            }),
            wit::Error::Operator(error) => Self::Operator(match error {
                wit::OperatorError::Setting(faults) => {
                    let faults = faults.into_iter().map(|fault| SettingFault {
                        name: fault.name,
                        expected: fault.expected,
                    });
                    OperatorError::Setting(faults.collect())
                }
                wit::OperatorError::KeyNotFound(secret) => OperatorError::KeyNotFound(secret),
                wit::OperatorError::KeyDisabled(secret) => OperatorError::KeyDisabled(secret),
                wit::OperatorError::KeyNotValid(secret) => OperatorError::KeyNotValid(secret),
                wit::OperatorError::KeyMalformed(secret) => OperatorError::KeyMalformed(secret),
                wit::OperatorError::KeyWornOut(secret) => OperatorError::KeyWornOut(secret),
                wit::OperatorError::KeyVaultForbidden => OperatorError::KeyVaultForbidden,
                wit::OperatorError::KeyVaultFirewall => OperatorError::KeyVaultFirewall,
                wit::OperatorError::KeyVaultRefused => OperatorError::KeyVaultRefused,
                wit::OperatorError::EntraRefused(reason) => {
                    OperatorError::EntraRefused(reason.into())
                }
                wit::OperatorError::KeyVaultTokenRefused(reason) => {
                    OperatorError::KeyVaultTokenRefused(reason.into())
                }
                wit::OperatorError::CredentialRefused(fault) => OperatorError::CredentialRefused {
                    setting: fault.setting,
                    reason: fault.reason.into(),
                },
                wit::OperatorError::ClockWrong => OperatorError::ClockWrong,
                wit::OperatorError::NoRefreshToken => OperatorError::NoRefreshToken,
            }),
            wit::Error::Upstream(error) => Self::Upstream(UpstreamError {
                system: match error.system {
                    wit::System::Entra => System::Entra,
                    wit::System::SigningKeys => System::SigningKeys,
                    wit::System::KeyVault => System::KeyVault,
                    wit::System::ManagedIdentity => System::ManagedIdentity,
                },
                retry_after_seconds: error.retry_after_seconds,
                holds_up: match error.holds_up {
                    wit::HoldsUp::Request => HoldsUp::Request,
                    wit::HoldsUp::User => HoldsUp::User,
                    wit::HoldsUp::Tenant => HoldsUp::Tenant,
                    wit::HoldsUp::Everyone => HoldsUp::Everyone,
                },
            }),
        }
    }
}
