//! When a record is looked at next. Pure functions of the time and of what has happened.

use crate::identity::StorageId;
use crate::ledger::record::{Record, Status};
use crate::port::Random;

/// Seconds until a user who has to act, a dead token or an unreadable record is looked at again.
pub const DAILY: u64 = 86_400;
/// Seconds between two tries of a refresh token that was not good for [`UNUSED`].
pub const WEEKLY: u64 = 7 * DAILY;
/// Seconds after which Entra ID forgets a refresh token that is not used
/// (<https://learn.microsoft.com/entra/identity-platform/refresh-tokens>).
pub const UNUSED: u64 = 90 * DAILY;
/// Seconds until the next look at an unreadable record that nobody has mended within [`RETENTION`].
pub const MONTHLY: u64 = 30 * DAILY;
/// Seconds for which a record that nobody can use is kept in the schedule: twice as long as [`UNUSED`].
pub const RETENTION: u64 = 2 * UNUSED;
/// Seconds ahead beyond which nothing is ever due: the longest that the setting `refresh_after_seconds` can be, and five
/// minutes by which two clocks may differ. What seems to be due later was written by a clock that was wrong.
pub const LATEST_AHEAD: u64 = 45 * DAILY + 300;
/// Failures are counted up to this.
pub const MOST_FAILURES: u8 = 9;

const SHORTEST_RETRY: u64 = 60;
const LONGEST_RETRY: u64 = 6 * 3600;

/// The state of an enrolment, as the schedule tells it without its record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum State {
    /// The record's status is active.
    Active {
        /// Refreshes that failed since the last that worked, at most [`MOST_FAILURES`]. It is here because a failed refresh
        /// writes no record.
        failures: u8,
    },
    /// The user has to act, or the user's organisation: versions up to 0.1.0 do not tell the two apart.
    InteractionRequired {
        /// Day, from the Unix epoch, of which the refresh token is.
        since: u32,
    },
    /// The refresh token was called dead.
    Quarantined {
        /// Day, from the Unix epoch, of which the refresh token is.
        since: u32,
    },
    /// The record or its sealed token cannot be read.
    NotReadable {
        /// Day, from the Unix epoch, on which that was noticed.
        since: u32,
    },
}

impl State {
    /// The state that goes with a record.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let since = day(record.refreshed_at);
        match record.status {
            Status::Active => Self::Active { failures: 0 },
            Status::InteractionRequired(_) | Status::OrganisationRequired(_) => {
                Self::InteractionRequired { since }
            }
            Status::Quarantined(_) => Self::Quarantined { since },
        }
    }

    /// The state of what cannot be read, noticed now or before.
    #[must_use]
    pub fn not_readable(self, now: u64) -> Self {
        match self {
            Self::NotReadable { .. } => self,
            Self::Active { .. } | Self::InteractionRequired { .. } | Self::Quarantined { .. } => {
                Self::NotReadable { since: day(now) }
            }
        }
    }
}

/// What is due at a time.
///
/// ```
/// use behalf_core::ledger::schedule::{Horizon, LATEST_AHEAD};
///
/// let now = 1_793_605_200;
/// let horizon = Horizon::new(now, true);
/// assert!(horizon.is_due(now) && !horizon.is_due(now + 60));
/// // Nothing is ever due that late: a clock that was wrong has written it.
/// assert!(horizon.is_due(now + LATEST_AHEAD + 1));
/// // By a clock that nobody has confirmed it may be this one that is wrong.
/// assert!(!Horizon::new(now, false).is_due(now + LATEST_AHEAD + 1));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Horizon {
    /// Now, in Unix seconds.
    pub now: u64,
    /// What seems to be due after this was written by a clock that was wrong, and so is due now.
    latest: u64,
}

impl Horizon {
    /// By a clock that nobody has confirmed, no other one was wrong.
    #[must_use]
    pub fn new(now: u64, is_clock_confirmed: bool) -> Self {
        let latest = if is_clock_confirmed {
            now.saturating_add(LATEST_AHEAD)
        } else {
            u64::MAX
        };
        Self { now, latest }
    }

    /// From this time on, whatever seems to be due then is due now.
    pub(crate) fn later_than_any(self) -> u64 {
        self.latest.saturating_add(1)
    }

    /// Whether something with this time is due.
    #[must_use]
    pub fn is_due(self, time: u64) -> bool {
        time <= self.now || time > self.latest
    }
}

fn day(time: u64) -> u32 {
    u32::try_from(time.checked_div(DAILY).unwrap_or(0)).unwrap_or(u32::MAX)
}

/// When a refresh token that came at `now` is due: between three quarters of the refresh age and the whole of it, spread
/// by the user's pseudonym, which is evenly distributed. So users who enrolled together are not due together.
#[must_use]
pub fn refresh_due_at(now: u64, refresh_after: u32, id: &StorageId) -> u64 {
    let spread = u64::from(refresh_after).checked_div(4).unwrap_or(0);
    let number = id.as_str().bytes().fold(0u64, |number, byte| {
        number.wrapping_mul(64).wrapping_add(byte.into())
    });
    let earlier = number.checked_rem(spread).unwrap_or(0);
    now.saturating_add(u64::from(refresh_after).saturating_sub(earlier))
}

/// The least age at which any refresh token is due: what [`refresh_due_at`] never goes below.
#[must_use]
pub fn least_refresh_age(refresh_after: u32) -> u64 {
    u64::from(refresh_after).saturating_sub(u64::from(refresh_after).checked_div(4).unwrap_or(0))
}

/// When a refresh that failed for the `failures`-th time in a row is tried again: a minute, doubled each time up to six
/// hours, and up to a quarter more by chance. Never before the time that the other system asked for.
#[must_use]
pub fn retry_at(now: u64, failures: u8, retry_after: Option<u32>, random: &impl Random) -> u64 {
    let doublings = u32::from(failures.saturating_sub(1).min(MOST_FAILURES));
    let wait = SHORTEST_RETRY
        .checked_shl(doublings)
        .unwrap_or(LONGEST_RETRY)
        .min(LONGEST_RETRY)
        .max(retry_after.map_or(0, u64::from));
    let jitter = random
        .number()
        .checked_rem(wait.checked_div(4).unwrap_or(0))
        .unwrap_or(0);
    now.saturating_add(wait).saturating_add(jitter)
}

/// When a refresh token that Entra ID refuses is tried again, because it is the turn of its user or their organisation:
/// daily, and weekly once it was last good [`UNUSED`] ago. An eighth earlier or later by chance, so that those who were
/// refused together do not come back together.
#[must_use]
pub fn turn_again_at(now: u64, last_good_at: u64, random: &impl Random) -> u64 {
    let period = if last_good_at.saturating_add(UNUSED) <= now {
        WEEKLY
    } else {
        DAILY
    };
    let earliest = now.saturating_add(period).saturating_sub(period / 8);
    earliest.saturating_add(random.number().checked_rem(period / 4).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::identity::UserId;
    use crate::simulation::world::World;

    const WEEK: u32 = 604_800;

    #[test]
    fn a_mass_enrolment_is_due_over_a_quarter_of_the_age() {
        let due: Vec<u64> = (0..10_000)
            .map(|user| {
                let id = UserId::from_sealed(&format!("t.{user}")).storage_id(None);
                refresh_due_at(0, WEEK, &id)
            })
            .collect();
        let hours: BTreeSet<u64> = due.iter().map(|due| due / 3600).collect();
        assert!(
            due.iter()
                .all(|due| (least_refresh_age(WEEK)..=u64::from(WEEK)).contains(due))
        );
        assert!(hours.len() >= 42, "{} hours", hours.len());
        let fullest = hours
            .iter()
            .map(|hour| due.iter().filter(|due| *due / 3600 == *hour).count())
            .max();
        assert!(fullest.unwrap() < 2 * 10_000 / 42, "{fullest:?}");
    }

    #[test]
    fn failures_back_off_from_a_minute_to_six_hours() {
        let world = World::new();
        let mut last = 0;
        for failures in 1..=u8::MAX {
            let wait = retry_at(0, failures, None, &world);
            assert!(
                (60..=6 * 3600 * 5 / 4).contains(&wait),
                "{failures}: {wait}"
            );
            if failures <= 9 {
                assert!(wait > last, "{failures}: {wait}");
                last = wait;
            }
        }
        assert!(retry_at(0, 200, None, &world) >= 6 * 3600);
        assert!(retry_at(0, 1, Some(90_000), &world) >= 90_000);
        assert!(retry_at(u64::MAX, 1, None, &world) == u64::MAX);
    }

    #[test]
    fn what_entra_refuses_is_tried_daily_then_weekly_and_not_all_at_once() {
        let world = World::new();
        for (age, period) in [
            (7 * DAILY, DAILY),
            (UNUSED - 1, DAILY),
            (UNUSED, WEEKLY),
            (RETENTION, WEEKLY),
        ] {
            let now = RETENTION;
            let waits: BTreeSet<u64> = (0..1000)
                .map(|_| turn_again_at(now, now - age, &world) - now)
                .collect();
            assert!(waits.first().unwrap() >= &(period * 7 / 8));
            assert!(waits.last().unwrap() < &(period * 9 / 8));
            assert!(waits.len() > 900, "{}", waits.len());
        }
        assert!(turn_again_at(u64::MAX, 0, &world) >= u64::MAX - WEEKLY);
    }
}
