//! The emulators themselves, over real HTTP: they answer as the real systems do (PLATFORMS.md), as far as behalf relies on
//! it. Microsoft's own clients judge them too: `judges.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod client;
mod downstream;
mod handle;
mod key_vault;
mod loops;
mod token_endpoint;
