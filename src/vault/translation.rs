//! What crosses the boundary of this component: [`behalf_core::vault_twins`] is the table.

use behalf_core::error::{CallerError, VaultError};
use behalf_core::vault::port::Terms;
use behalf_core::vault::wit::{Malformed, WitValue};
use behalf_core::{call_twins, database_twins, vault_twins};

use crate::bindings::exports::behalf::vault::{call, database, vault as wit};

vault_twins!(wit);
call_twins!(call);
database_twins!(database);

/// Reads a value that an embedder gave.
pub(crate) fn given<T: WitValue<W>, W>(name: &'static str, value: W) -> Result<T, wit::Error> {
    T::from_wit(value).map_err(|error| invalid(error.named(name)))
}

/// Reads how a call is to be made.
pub(crate) fn asked(terms: Option<wit::Terms>) -> Result<Terms, wit::Error> {
    let terms: Option<Terms> = given("terms", terms)?;
    Ok(terms.unwrap_or_default())
}

/// What an embedder gets.
pub(crate) fn answer<T: WitValue<W>, W>(outcome: Result<T, VaultError>) -> Result<W, wit::Error> {
    outcome.map(T::into_wit).map_err(VaultError::into_wit)
}

fn invalid(error: Malformed) -> wit::Error {
    VaultError::from(CallerError::InvalidRequest(error.to_string())).into_wit()
}
