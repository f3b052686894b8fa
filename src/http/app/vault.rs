//! The imported vault as the core's port; [`behalf_core::vault_twins`] is the table of what crosses the boundary.

use behalf_core::error::{OperatorError, VaultError};
use behalf_core::identity::{Nonce, TenantId, User};
use behalf_core::secret::Bearer;
use behalf_core::vault::port::{
    Caller, Draw, Enrolment, Issued, NewestKey, Operator, Policy, Purpose, Role, SealedToken,
    StoredToken, Subject, SweepLimits, Terms, VaultPort,
};
use behalf_core::vault::wit::WitValue;
use behalf_core::vault_twins;

use crate::bindings::behalf::vault::vault as wit;

vault_twins!(wit);

/// The component that `spin.toml` composes this one with.
pub struct ImportedVault {
    /// Looks at the settings that this component alone has the vault read.
    check_own: fn() -> Result<(), VaultError>,
}

impl ImportedVault {
    /// For a component without settings of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::with_settings(|| Ok(()))
    }

    /// For one that has the vault check others, too.
    #[must_use]
    pub fn with_settings(check_own: fn() -> Result<(), VaultError>) -> Self {
        Self { check_own }
    }
}

impl Default for ImportedVault {
    fn default() -> Self {
        Self::new()
    }
}

impl VaultPort for ImportedVault {
    fn check_settings(&self) -> Result<Policy, VaultError> {
        use OperatorError::Setting;
        match (read(wit::check_settings()), (self.check_own)()) {
            // All that is wrong is told at once.
            (
                Err(VaultError::Operator(Setting(mut faults))),
                Err(VaultError::Operator(Setting(own))),
            ) => {
                faults.extend(own);
                Err(Setting(faults).into())
            }
            (policy, own) => own.and(policy),
        }
    }

    async fn identify(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        purpose: &Purpose,
        terms: Terms,
    ) -> Result<Caller, VaultError> {
        let caller = wit::identify(
            bearer.expose().into(),
            subject.clone().into_wit(),
            purpose.clone().into_wit(),
            Some(terms.into_wit()),
        );
        read(caller.await)
    }

    async fn enrol(
        &self,
        bearer: &Bearer,
        nonce: &Nonce,
        scope: Option<&str>,
        terms: Terms,
    ) -> Result<Enrolment, VaultError> {
        let enrolment = wit::enrol(
            bearer.expose().into(),
            nonce.as_str().into(),
            scope.map(Into::into),
            Some(terms.into_wit()),
        );
        read(enrolment.await)
    }

    async fn access_token(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        nonce: &Nonce,
        token: &str,
        draw: Draw,
        terms: Terms,
    ) -> Result<Issued, VaultError> {
        let issued = wit::access_token(
            bearer.expose().into(),
            subject.clone().into_wit(),
            nonce.as_str().into(),
            token.into(),
            draw.into_wit(),
            Some(terms.into_wit()),
        );
        read(issued.await)
    }

    fn forget(&self, user: &User) {
        wit::forget(&user.clone().into_wit());
    }

    async fn refresh(&self, stored: &StoredToken, terms: Terms) -> Result<SealedToken, VaultError> {
        read(wit::refresh(stored.clone().into_wit(), Some(terms.into_wit())).await)
    }

    async fn reseal(
        &self,
        stored: &StoredToken,
        terms: Terms,
    ) -> Result<Option<SealedToken>, VaultError> {
        read(wit::reseal(stored.clone().into_wit(), Some(terms.into_wit())).await)
    }

    async fn newest_key_version(
        &self,
        tenant: &TenantId,
        terms: Terms,
    ) -> Result<NewestKey, VaultError> {
        read(wit::newest_key_version(tenant.as_str().into(), Some(terms.into_wit())).await)
    }

    async fn confirm_clock(&self, terms: Terms) -> Result<(), VaultError> {
        read(wit::confirm_clock(Some(terms.into_wit())).await)
    }

    async fn authorize_sweep(
        &self,
        bearer: &Bearer,
        terms: Terms,
    ) -> Result<SweepLimits, VaultError> {
        read(wit::authorize_sweep(bearer.expose().into(), Some(terms.into_wit())).await)
    }

    async fn authorize_operator(
        &self,
        bearer: &Bearer,
        role: Role,
        tenant: Option<&TenantId>,
        terms: Terms,
    ) -> Result<Operator, VaultError> {
        let operator = wit::authorize_operator(
            bearer.expose().into(),
            role.into_wit(),
            tenant.map(|tenant| tenant.as_str().into()),
            Some(terms.into_wit()),
        );
        read(operator.await)
    }
}

/// Reads what the vault answered.
///
/// # Errors
/// Why it did not; [`VaultError`], too, if it answered what the interface forbids.
pub fn read<T: WitValue<W>, W>(answer: Result<W, wit::Error>) -> Result<T, VaultError> {
    T::from_wit(answer.map_err(refused)?).map_err(|_| another_vault())
}

/// Reads why it did not.
pub(crate) fn refused(error: wit::Error) -> VaultError {
    VaultError::from_wit(error).unwrap_or_else(|_| another_vault())
}

/// It answered what the interface forbids.
pub(crate) fn another_vault() -> VaultError {
    VaultError::setting(
        "component.http.dependencies",
        "does not name behalf's own vault component",
    )
}
