//! Everything behalf decides, as a library without WASI and without a runtime.
//!
//! Two halves, as the two components that are made of them:
//!
//! - [`Vault`] holds every secret. It verifies callers, calls Entra ID and Key Vault, seals and opens refresh tokens,
//!   and stores nothing.
//! - [`Keeper`] holds none. It turns HTTP requests into calls of a [`VaultPort`] and steps on a [`Store`], and sweeps.
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

mod accept;
pub mod api;
pub mod caller;
mod course;
pub mod credential;
pub mod deadline;
pub mod doorbell;
pub mod entra;
pub mod error;
mod holds;
pub mod identity;
pub mod keeper;
pub mod key_vault;
pub mod layout;
mod listing;
mod litter;
pub mod managed_identity;
pub mod outbound;
pub mod pause;
mod plan;
pub mod port;
pub mod problem;
pub mod record;
pub mod report;
mod retirement;
mod rules;
pub mod schedule;
pub mod sealing;
pub mod secret;
pub mod settings;
mod single_flight;
pub mod status;
pub mod sweep;
mod turns;
pub mod vault;
mod verdict;
mod visit;
mod wave;

#[cfg(test)]
mod fairness;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod world;

pub use keeper::Keeper;
pub use port::{Clock, Config, Http, Log, Random, Store, Timer, VaultPort};
pub use vault::Vault;
