//! Enrolments in key-value storage, by steps that need no compare-and-swap.

pub mod layout;
pub(crate) mod listing;
mod litter;
pub(crate) mod retirement;
pub mod store;
pub(crate) mod wave;
