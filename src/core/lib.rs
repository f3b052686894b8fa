//! Everything behalf decides, as a library without WASI and without a runtime.
//!
//! Two halves, as the two components that are made of them:
//!
//! - [`Vault`] holds every secret. It verifies callers, calls Entra ID and Key Vault, seals and opens refresh tokens,
//!   and stores nothing.
//! - [`Keeper`] holds none. It turns HTTP requests into calls of a [`VaultPort`] and of a [`Ledger`], and sweeps.
//!
//! What is stored is a [`Ledger`]'s business: [`KeyValueLedger`] is one on a [`Store`].
//!
//! Both are generic over the small ports of [`port`], so the same code runs in a component and in a native test. The
//! component crates only translate between WASI and these ports.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic,
        clippy::needless_pass_by_value,
        clippy::type_complexity,
        reason = "a test fails by panicking, and reads as a table"
    )
)]

pub mod api;
pub mod deadline;
pub mod doorbell;
pub mod endpoint;
pub mod error;
pub mod identity;
mod journal;
mod json;
pub mod keeper;
pub mod ledger;
pub mod port;
pub mod secret;
pub mod vault;

#[cfg(test)]
mod simulation;

pub use keeper::Keeper;
pub use ledger::Ledger;
pub use ledger::key_value::KeyValueLedger;
pub use ledger::key_value::store::Store;
pub use port::{Clock, Config, Http, Log, Random, Timer};
pub use vault::Vault;
pub use vault::port::VaultPort;
