//! What crosses the boundary of this component: [`behalf_core::vault_twins`] is the table.

use std::time::Duration;

use behalf_core::deadline::LONGEST;
use behalf_core::error::{CallerError, VaultError};
use behalf_core::vault::wit::{Malformed, WitValue};
use behalf_core::vault_twins;

use crate::bindings::exports::behalf::vault::vault as wit;

vault_twins!(wit);

/// Reads a value that an embedder gave.
pub(crate) fn given<T: WitValue<W>, W>(name: &'static str, value: W) -> Result<T, wit::Error> {
    T::from_wit(value).map_err(|error| invalid(error.named(name)))
}

/// Reads how long a call may take.
pub(crate) fn within(milliseconds: Option<wit::Milliseconds>) -> Duration {
    milliseconds.map_or(LONGEST, |milliseconds| {
        Duration::from_millis(milliseconds.into())
    })
}

/// What an embedder gets.
pub(crate) fn answer<T: WitValue<W>, W>(outcome: Result<T, VaultError>) -> Result<W, wit::Error> {
    outcome.map(T::into_wit).map_err(VaultError::into_wit)
}

fn invalid(error: Malformed) -> wit::Error {
    VaultError::from(CallerError::InvalidRequest(error.to_string())).into_wit()
}
