//! A model checker for the protocol of the key-value ledger (`PROTOCOL.md`, in the folder above).
//!
//! The protocol is modelled for one user: a handful of actors, each a program of the protocol ([`Program`]), take steps in
//! turns. A step is one operation on the store, or one answer of Entra ID; between two steps of one actor, others may take any
//! number of theirs. An actor may die before any step, a write may answer with an error and have happened or not, and Entra
//! ID may fail for a moment, each as often as the scenario allows ([`Trouble`]). [`exhaust`] looks at every moment that can
//! come of this, [`wander`] at random ones of more than it could finish, and both hold each against what the protocol
//! promises ([`Promise`]).
//!
//! ```
//! use behalf_model::{Expected, SMALL, exhaust};
//!
//! let scenario = &SMALL[0];
//! let outcome = exhaust(scenario, 1_000_000);
//! assert!(outcome.is_exhausted && outcome.broken.is_empty());
//! assert_eq!(scenario.expected, Expected::Kept);
//! ```
//!
//! What is not modelled: time (a sweep may take up any of the markers that it lists, and litter is old once whoever made it
//! has ended), what is told by the tags of markers, the notes of key versions (`ver.`), the state of sweeps, several users or
//! tenants in one wave, and reads that fail, which are as a death. The simulation in `src/core/simulation.rs` has all of
//! these, over the code itself, but cannot look at everything.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::missing_panics_doc,
    reason = "a panic is a failed check, not an outage"
)]

mod catalogue;
mod history;
mod promise;
mod protocol;
mod scenario;
mod search;
mod step;
mod store;
mod world;

pub use catalogue::{LARGE, LIMITS, MISTAKES, SMALL};
pub use promise::Promise;
pub use protocol::{Ending, Program, View};
pub use scenario::{Expected, Mistake, Scenario, Trouble};
pub use search::{Outcome, crowd, exhaust, wander};
pub use step::{Answer, Litter, Step};
pub use store::{Enrolment, Key, Record, Store, Value, Write};
pub use world::{Event, World};
