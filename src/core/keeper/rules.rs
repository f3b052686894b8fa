//! The rules of a sweep that keep one's trouble one's own, as data: a test can break each of them, and see that it is
//! needed.

use std::time::Duration;

use crate::error::VaultError;
use crate::keeper::verdict::{Verdict, Work, verdict};

/// The rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// What an error means.
    pub(crate) verdict: fn(&VaultError, Work) -> Verdict,
    /// Who has the next turn.
    pub(crate) order: Order,
    /// How long a tenant's newest key may take. Key Vault answers within a second.
    pub(crate) longest_question: Duration,
    /// Whether tenants that were slow in one sweep do not come first in the next.
    pub(crate) remembers_slow: bool,
    /// Whether nothing is deleted or noted by a clock that no other system has confirmed.
    pub(crate) needs_clock: bool,
    /// Whether times that no sweep can have left are passed over.
    pub(crate) doubts_state: bool,
}

/// How turns are given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// Whether shares have turns by the time that they took, or one after the other.
    pub(crate) shares_by_time: bool,
    /// Whether lanes have, or one after the other.
    pub(crate) lanes_by_time: bool,
    /// Whether a key version is tried with one record before others follow.
    pub(crate) tries_versions: bool,
}

impl Rules {
    /// The rules that hold.
    pub(crate) const SHIPPED: Self = Self {
        verdict,
        order: Order {
            shares_by_time: true,
            lanes_by_time: true,
            tries_versions: true,
        },
        longest_question: Duration::from_secs(5),
        remembers_slow: true,
        needs_clock: true,
        doubts_state: true,
    };
}
