//! Sealing refresh tokens, and opening them.

pub mod envelope;
mod uses;

use std::cell::RefCell;

use crate::error::{OperatorError, System, VaultError};
use crate::identity::{Nonce, TenantId};
use crate::vault::context::{Context, Environment};
use crate::vault::key_ring::NewestKey;
use crate::vault::key_ring::secret::Key;
use crate::vault::port::SealedToken;
pub use crate::vault::sealing::envelope::{Binding, Envelope, Payload, SealError, seal};
use crate::vault::sealing::uses::{Uses, WornOut};

/// Versions of keys whose uses are counted one by one.
const COUNTED: usize = 1024;

/// Seals and opens. It counts how often each version of a key has sealed.
pub(crate) struct Sealer {
    uses: RefCell<Uses>,
}

impl Sealer {
    /// One that has sealed nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            uses: RefCell::new(Uses::new(COUNTED)),
        }
    }

    /// One under which no key may seal any more.
    #[cfg(test)]
    pub(crate) fn worn_out() -> Self {
        Self {
            uses: RefCell::new(Uses::worn_out()),
        }
    }

    /// Whether a key may seal now.
    ///
    /// # Errors
    /// [`OperatorError::KeyNotValid`], [`OperatorError::KeyWornOut`].
    pub(crate) fn check(&self, now: u64, newest: &NewestKey) -> Result<(), OperatorError> {
        let NewestKey { secret, key } = newest;
        if !key.is_valid_at(now) {
            return Err(OperatorError::KeyNotValid(OperatorError::name(secret)));
        }
        if self.uses.borrow().is_worn_out(secret, &key.version) {
            return Err(OperatorError::KeyWornOut(OperatorError::name(secret)));
        }
        Ok(())
    }

    /// Seals for a user and an enrolment.
    ///
    /// # Errors
    /// [`OperatorError::KeyWornOut`].
    pub(crate) fn seal<E: Environment>(
        &self,
        context: &Context<'_, E>,
        payload: &Payload,
        tenant: &TenantId,
        nonce: &Nonce,
        newest: &NewestKey,
    ) -> Result<SealedToken, VaultError> {
        let NewestKey { secret, key } = newest;
        let counted = self.uses.borrow_mut().count(secret, &key.version);
        counted.map_err(|WornOut| OperatorError::KeyWornOut(OperatorError::name(secret)))?;
        let client_id = context.client_id.as_str();
        let binding = Binding::new(client_id, tenant, &payload.user_id, nonce);
        let id = (secret, &key.version);
        // A refresh token of over 64 KiB is none: whatever answered is not Entra ID.
        seal(payload, &binding, id, &key.key, context.env)
            .map_err(|SealError| VaultError::upstream(System::Entra))
    }

    /// Opens, with the key that the envelope names, if that may still open.
    ///
    /// # Errors
    /// [`OperatorError::KeyNotValid`], [`crate::error::StoredError::Damaged`].
    pub(crate) fn open<E: Environment>(
        context: &Context<'_, E>,
        envelope: Envelope<'_>,
        key: &Key,
    ) -> Result<Payload, VaultError> {
        if !key.opens_at(context.now(), context.key_grace_seconds) {
            let name = OperatorError::name(&envelope.secret);
            return Err(OperatorError::KeyNotValid(name).into());
        }
        Ok(envelope.open(&key.key)?)
    }
}
