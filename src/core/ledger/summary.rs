//! What is stored, in numbers: what a sweep sees when it begins, and what an operator reads.
//!
//! It is bounded, however many tenants and users there are: numbers of [`MOST_TENANTS`], of each of them at most
//! [`MOST_VERSIONS`] key versions in use and as many out of use, and at most [`MOST_NAMED`] users who have to act.

use std::collections::BTreeMap;
use std::ops::Not;

use serde::{Deserialize, Serialize};

use crate::ledger::schedule::{DAILY, State};

/// Tenants that a summary tells of: those with the most users.
pub const MOST_TENANTS: usize = 5000;
/// Users of a tenant who have to act and are named.
pub const MOST_NAMED: usize = 1000;
/// Key versions of a tenant that are told, of those in use and of the others.
pub const MOST_VERSIONS: usize = 50;

/// What is stored.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Summary {
    /// Unix time in seconds at which it was so.
    pub observed_at: u64,
    /// Tenants of which something is stored, those that are not told included.
    pub tenant_count: u64,
    /// Numbers over all tenants.
    pub totals: Numbers,
    /// By tenant id.
    pub tenants: BTreeMap<String, TenantSummary>,
}

/// Numbers of users and enrolments.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Numbers {
    /// Users that are enrolled, with a refresh token or without.
    pub users: u64,
    /// Enrolments by state.
    pub states: States,
    /// Enrolments by when they are looked at next.
    pub due: Due,
}

/// Enrolments by state.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct States {
    /// Refreshed when due.
    pub active: u64,
    /// Active, but the last refresh failed.
    pub retrying: u64,
    /// The user has to act, or their organisation.
    pub interaction_required: u64,
    /// The refresh token was called dead.
    pub quarantined: u64,
    /// The record cannot be read.
    pub not_readable: u64,
}

/// Enrolments by when they are looked at next.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Due {
    /// Now, or before.
    pub now: u64,
    /// Within an hour.
    pub hour: u64,
    /// Within a day.
    pub day: u64,
    /// Within a week.
    pub week: u64,
    /// Later.
    pub later: u64,
}

/// What is stored of one tenant.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantSummary {
    /// Its numbers.
    #[serde(flatten)]
    pub numbers: Numbers,
    /// Whether a removal of its users has begun and not ended: nobody of it can enrol. Until it is repeated, that stays so.
    #[serde(skip_serializing_if = "Not::not")]
    pub being_removed: bool,
    /// Enrolments by the key version that the schedule names, and which their records are under unless a writer died.
    pub key_versions: BTreeMap<String, u64>,
    /// Key versions that the schedule does not name any more, and the Unix time in seconds since when.
    pub unused_key_versions: BTreeMap<String, u64>,
    /// Who has to act before their refresh token can be used.
    pub must_act: MustAct,
}

/// Users who have to act.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct MustAct {
    /// How many there are.
    pub total: u64,
    /// Pseudonyms of some of them: the `user` of log lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
}

impl MustAct {
    /// Counts a user, and names them if there is room.
    pub(crate) fn add(&mut self, user: &str) {
        increase(&mut self.total);
        if self.users.len() < MOST_NAMED {
            self.users.push(user.into());
        }
    }
}

impl Numbers {
    /// Counts an enrolment in this state that is looked at again after so many seconds.
    pub(crate) fn add(&mut self, state: State, wait: u64) {
        self.add_many(state, wait, 1);
    }

    /// Counts so many of them.
    pub(crate) fn add_many(&mut self, state: State, wait: u64, number: u64) {
        let of_state = match state {
            State::Active { failures: 0 } => &mut self.states.active,
            State::Active { .. } => &mut self.states.retrying,
            State::InteractionRequired { .. } => &mut self.states.interaction_required,
            State::Quarantined { .. } => &mut self.states.quarantined,
            State::NotReadable { .. } => &mut self.states.not_readable,
        };
        *of_state = of_state.saturating_add(number);
        let of_wait = match wait {
            0 => &mut self.due.now,
            1..=3600 => &mut self.due.hour,
            3601..=DAILY => &mut self.due.day,
            wait if wait <= DAILY.saturating_mul(7) => &mut self.due.week,
            _ => &mut self.due.later,
        };
        *of_wait = of_wait.saturating_add(number);
    }

    /// Adds another's numbers.
    pub(crate) fn add_all(&mut self, other: &Self) {
        let Self { users, states, due } = other;
        for (own, other) in [
            (&mut self.users, users),
            (&mut self.states.active, &states.active),
            (&mut self.states.retrying, &states.retrying),
            (
                &mut self.states.interaction_required,
                &states.interaction_required,
            ),
            (&mut self.states.quarantined, &states.quarantined),
            (&mut self.states.not_readable, &states.not_readable),
            (&mut self.due.now, &due.now),
            (&mut self.due.hour, &due.hour),
            (&mut self.due.day, &due.day),
            (&mut self.due.week, &due.week),
            (&mut self.due.later, &due.later),
        ] {
            *own = own.saturating_add(*other);
        }
    }
}

impl Summary {
    /// Sums up, and leaves out what there is no room for.
    pub(crate) fn of(observed_at: u64, tenants: BTreeMap<String, TenantSummary>) -> Self {
        let mut totals = Numbers::default();
        for of in tenants.values() {
            totals.add_all(&of.numbers);
        }
        let tenant_count = u64::try_from(tenants.len()).unwrap_or(u64::MAX);
        let mut tenants: Vec<_> = tenants.into_iter().collect();
        tenants.sort_by_key(|(_, of)| std::cmp::Reverse(of.numbers.users));
        tenants.truncate(MOST_TENANTS);
        for (_, of) in &mut tenants {
            keep_greatest(&mut of.key_versions);
            keep_greatest(&mut of.unused_key_versions);
        }
        Self {
            observed_at,
            tenant_count,
            totals,
            tenants: tenants.into_iter().collect(),
        }
    }
}

/// Leaves those with the most users, or unused for the shortest time.
fn keep_greatest(versions: &mut BTreeMap<String, u64>) {
    if versions.len() <= MOST_VERSIONS {
        return;
    }
    let mut all: Vec<_> = std::mem::take(versions).into_iter().collect();
    all.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
    versions.extend(all.into_iter().take(MOST_VERSIONS));
}

pub(crate) fn increase(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_bounded_and_its_totals_are_not() {
        let most = u64::try_from(MOST_TENANTS).unwrap();
        let tenants = (0..most + 7).map(|users| {
            let numbers = Numbers {
                users,
                ..Numbers::default()
            };
            let versions = (0..users.min(80)).map(|at| (format!("{at:032x}"), at));
            let of = TenantSummary {
                numbers,
                unused_key_versions: versions.collect(),
                ..TenantSummary::default()
            };
            (format!("{users:08}"), of)
        });
        let summary = Summary::of(1, tenants.collect());
        assert_eq!(summary.tenant_count, most + 7);
        assert_eq!(summary.totals.users, (most + 7) * (most + 6) / 2);
        assert_eq!(summary.tenants.len(), MOST_TENANTS);
        assert!(!summary.tenants.contains_key("00000006"));
        let of = &summary.tenants["00000100"];
        assert_eq!(of.unused_key_versions.len(), MOST_VERSIONS);
        assert!(of.unused_key_versions.values().all(|since| *since >= 30));
    }
}
