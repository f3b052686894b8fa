//! Test support for behalf: emulators of the three systems that it talks to, and a harness that runs the app.
//!
//! - [`emulators`]: Entra ID, Azure Key Vault and a downstream API, each on its own port of 127.0.0.1, with faults to
//!   inject and a journal of what reached them. They answer as the real systems do, as far as behalf relies on it
//!   (PLATFORMS.md), and share no code with `behalf-core`.
//! - [`app`]: the app itself, as a child process on a free port and a temporary state directory.
//! - [`store`]: what the app stored, read from its `SQLite` file; rows can be damaged on purpose.
//! - [`redis`]: a Redis server that is the app's store; [`postgres`]: a `PostgreSQL` server; [`debian`]: where they come from.
//! - [`scene`]: what most cases need of the three.
//! - [`leaks`]: the search for secrets where none may be.
//! - [`operator`]: whoever operates the app, with the commands of `behalf`.
//! - [`peers`]: other implementations, in Python and Node, that judge what behalf writes.
//! - [`peer`]: the service that people write today in Node for the same job, which the bench compares behalf with.
//! - [`words`]: the codes and events that the app can say, as its source has them.
//! - [`demo`]: one token's whole life, told step by step.
//!
//! The `up` program (`scripts/up`) puts these together for developers; `tests/` holds the cases.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::missing_panics_doc,
    reason = "test support: a panic here is a failed test, not an outage"
)]

pub mod app;
pub mod demo;
pub mod emulators;
pub mod interrupt;
pub mod leaks;
pub mod operator;
pub mod peer;
pub mod peers;
pub mod redis;
pub mod scene;
pub mod store;
pub mod words;

pub use behalf_test_postgres::{self as postgres, debian};
