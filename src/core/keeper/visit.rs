//! One record in a sweep: what is found there, and what is to be written of it.

use serde_json::json;

use crate::deadline::Deadline;
use crate::error::VaultError;
use crate::identity::{KeyVersion, Nonce, User};
use crate::journal::Journal as _;
use crate::keeper::Keeper;
use crate::keeper::audit::Event;
use crate::keeper::holds::{Hold, Holds};
use crate::keeper::rules::Rules;
use crate::keeper::verdict::{Verdict, Work};
use crate::ledger::record::{Record, Status};
use crate::ledger::schedule::{
    DAILY, Horizon, MONTHLY, MOST_FAILURES, RETENTION, State, retry_at, turn_again_at,
};
use crate::ledger::{Change, Edit, Ledger, Opened, StoreError, Visit};
use crate::port::Environment;
use crate::vault::port::{Policy, StoredToken, VaultPort};

/// What became of one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Refreshed,
    Resealed,
    InteractionRequired,
    OrganisationRequired,
    Quarantined,
    Expired,
    Retrying,
    Refused,
    Damaged,
    /// Storage failed for it.
    Failed,
    Waiting,
    NotServed,
    Remaining,
    /// Another writer was faster, or the marker was stale.
    Nothing,
}

/// What a visit comes to.
pub(crate) struct Visited<C> {
    pub(crate) next: Next<C>,
    /// What the vault's error means, if there was one.
    pub(crate) failure: Option<Failure>,
    /// The key version that it tried to open with, if it came as far as that.
    pub(crate) tried: Option<KeyVersion>,
}

/// An error of the vault.
pub(crate) struct Failure {
    pub(crate) error: VaultError,
    pub(crate) verdict: Verdict,
    /// The key version that the record is under, whatever the schedule says.
    pub(crate) key_version: KeyVersion,
}

/// What follows of a visit.
pub(crate) enum Next<C> {
    /// Nothing is to be written.
    Nothing(Outcome),
    /// The outcome is this, once the change is made.
    Settle(Box<Change<C>>, Outcome),
}

/// What holds for one sweep.
pub(crate) struct Pass<'a, L> {
    pub(crate) ledger: &'a L,
    pub(crate) policy: &'a Policy,
    pub(crate) rules: &'a Rules,
    /// When the last answer of another system has to be there.
    pub(crate) until: Deadline,
    /// When the last write has to have begun: not later than the lease ends.
    pub(crate) end: Deadline,
    /// When that is, in Unix seconds.
    pub(crate) lease_until: u64,
    /// Whether another system has confirmed the clock in this sweep.
    pub(crate) is_clock_confirmed: bool,
    pub(crate) horizon: Horizon,
    pub(crate) holds: Holds,
}

impl From<Hold> for Outcome {
    fn from(hold: Hold) -> Self {
        match hold {
            Hold::Stopped => Self::Remaining,
            Hold::NotServed => Self::NotServed,
            Hold::Waits => Self::Waiting,
        }
    }
}

impl<V: VaultPort, L: Ledger, E: Environment> Keeper<V, L, E> {
    /// Visits a record. What fails for it is in what comes back.
    pub(crate) async fn visit(
        &self,
        pass: &Pass<'_, L>,
        visit: Visit<L::Claim>,
        work: Work,
    ) -> Visited<L::Claim> {
        let user = visit.user.clone();
        let visited = match work {
            Work::Reseal => self.visit_outdated(pass, visit).await,
            Work::Refresh | Work::NewestKey => self.visit_due(pass, visit).await,
        };
        visited.unwrap_or_else(|error| {
            self.storage_failed(&user, &error);
            Visited::of(Next::Nothing(Outcome::Failed))
        })
    }

    async fn visit_due(
        &self,
        pass: &Pass<'_, L>,
        visit: Visit<L::Claim>,
    ) -> Result<Visited<L::Claim>, StoreError> {
        let record = match pass.ledger.open(&visit).await? {
            Opened::Record { record, .. } => record,
            Opened::Gone => return Ok(Visited::of(Next::Nothing(Outcome::Nothing))),
            Opened::NotReadable => return Ok(Visited::of(self.set_aside(visit))),
        };
        if !pass.horizon.is_due(record.due_at) {
            // A second place in the schedule of a record that was refreshed meanwhile.
            return Ok(Visited::of(tidy(visit, record)));
        }
        let work = Work::Refresh;
        if let Some(hold) = pass.holds.on(&visit.user.tenant, &record.key_version, work) {
            return Ok(Visited::of(held(hold, visit, &record)));
        }
        let within = pass.until.left(&self.env);
        let error = match self
            .vault
            .refresh(&stored(&visit, &record), within.into())
            .await
        {
            Ok(sealed) => {
                let new = self.refreshed(&visit.user, &record, sealed, pass.policy);
                let tried = record.key_version.clone();
                let next = replace(visit, record, new, Outcome::Refreshed);
                return Ok(Visited::after(next, tried));
            }
            Err(error) => error,
        };
        let verdict = (pass.rules.verdict)(&error, work);
        let key_version = record.key_version.clone();
        // The schedule may still tell of the key version before.
        let told = visit.clone();
        let visit = Visit {
            key_version: key_version.clone(),
            ..visit
        };
        let next = match &verdict {
            Verdict::PutOff {
                retry_after_seconds,
                is_operators,
            } => {
                let outcome = if *is_operators {
                    let reason = json!({"code": error.code(), "reason": error.to_string()});
                    self.env.about("refresh_refused", &visit.user, reason);
                    Outcome::Refused
                } else {
                    Outcome::Retrying
                };
                self.put_off(visit, *retry_after_seconds, outcome)
            }
            Verdict::HoldTenant { seconds } => self.put_off(visit, *seconds, Outcome::Retrying),
            Verdict::SetAside => {
                self.env
                    .alarm_about("sealed_token_does_not_open", &visit.user);
                self.set_aside(visit)
            }
            Verdict::Turn(status) => self.not_our_turn(pass, visit, record, status).await?,
            Verdict::HoldCredential | Verdict::KeyVersionUnusable | Verdict::NewestKeyUnusable => {
                held(Hold::Waits, told, &record)
            }
            Verdict::NotServed => Next::Nothing(Outcome::NotServed),
            Verdict::Stop => Next::Nothing(Outcome::Remaining),
        };
        Ok(Visited::failed(next, error, verdict, key_version))
    }

    async fn visit_outdated(
        &self,
        pass: &Pass<'_, L>,
        visit: Visit<L::Claim>,
    ) -> Result<Visited<L::Claim>, StoreError> {
        let (record, is_own) = match pass.ledger.open(&visit).await? {
            Opened::Record { record, is_own } => (record, is_own),
            Opened::Gone => return Ok(Visited::of(Next::Nothing(Outcome::Nothing))),
            Opened::NotReadable => return Ok(Visited::of(self.set_aside(visit))),
        };
        let work = Work::Reseal;
        if let Some(hold) = pass.holds.on(&visit.user.tenant, &record.key_version, work) {
            return Ok(Visited::of(held(hold, visit, &record)));
        }
        let within = pass.until.left(&self.env);
        let error = match self
            .vault
            .reseal(&stored(&visit, &record), within.into())
            .await
        {
            Ok(Some(sealed)) => {
                let new = Record {
                    sealed: sealed.token,
                    key_version: sealed.key_version,
                    write: Nonce::for_write(&self.env),
                    // A record whose refresh was put off stays put off.
                    due_at: record.due_at.max(visit.time),
                    ..(*record).clone()
                };
                let tried = record.key_version.clone();
                let next = replace(visit, record, new, Outcome::Resealed);
                return Ok(Visited::after(next, tried));
            }
            Ok(None) if !is_own => return Ok(Visited::of(tidy(visit, record))),
            Ok(None) => return Ok(Visited::of(Next::Nothing(Outcome::Nothing))),
            Err(error) => error,
        };
        let verdict = (pass.rules.verdict)(&error, work);
        let key_version = record.key_version.clone();
        let next = match &verdict {
            Verdict::SetAside => {
                self.env
                    .alarm_about("sealed_token_does_not_open", &visit.user);
                self.set_aside(visit)
            }
            // The record stays as it is, and so does its place in the schedule: the next sweep finds both.
            Verdict::PutOff { .. }
            | Verdict::Turn(_)
            | Verdict::HoldTenant { .. }
            | Verdict::HoldCredential
            | Verdict::KeyVersionUnusable
            | Verdict::NewestKeyUnusable => held(Hold::Waits, visit, &record),
            Verdict::NotServed => Next::Nothing(Outcome::NotServed),
            Verdict::Stop => Next::Nothing(Outcome::Remaining),
        };
        Ok(Visited::failed(next, error, verdict, key_version))
    }

    /// Keeps a token that Entra ID refuses, with whose turn it is; or removes it, when it has been refused for so long that
    /// Entra ID has forgotten it by its own rules for months. By a clock that nobody has confirmed nothing is that old.
    async fn not_our_turn(
        &self,
        pass: &Pass<'_, L>,
        visit: Visit<L::Claim>,
        record: Box<Record>,
        status: &Status,
    ) -> Result<Next<L::Claim>, StoreError> {
        let now = self.env.now();
        let is_expired = record.refreshed_at.saturating_add(RETENTION) <= now;
        if is_expired && (pass.is_clock_confirmed || !pass.rules.needs_clock) {
            if !pass.ledger.expire(&visit).await? {
                return Ok(Next::Nothing(Outcome::Nothing));
            }
            let event = Event::RefreshTokenExpired.name();
            self.env.about(event, &visit.user, json!({}));
            return Ok(Next::Nothing(Outcome::Expired));
        }
        let outcome = match status {
            Status::InteractionRequired(_) => Outcome::InteractionRequired,
            Status::OrganisationRequired(_) => Outcome::OrganisationRequired,
            Status::Quarantined(_) | Status::Active => Outcome::Quarantined,
        };
        if record.status == *status && record.due_at <= now {
            // What is known already is not written again. It is here before its time only if a wrong clock has set that.
            let time = turn_again_at(now, record.refreshed_at, &self.env);
            return Ok(reschedule(visit, time, State::of(&record), outcome));
        }
        let new = self.turned(&record, status.clone());
        Ok(replace(visit, record, new, outcome))
    }

    /// Keeps what cannot be used, and has it looked at again in a day, or in a month when nobody has mended it for long:
    /// "damaged" is never "delete".
    fn set_aside(&self, visit: Visit<L::Claim>) -> Next<L::Claim> {
        let now = self.env.now();
        let state = visit.state.not_readable(now);
        let is_old = matches!(state, State::NotReadable { since } if u64::from(since).saturating_mul(DAILY).saturating_add(RETENTION) <= now);
        let wait = if is_old { MONTHLY } else { DAILY };
        reschedule(visit, now.saturating_add(wait), state, Outcome::Damaged)
    }

    /// Tries again later. The record is not touched.
    fn put_off(
        &self,
        visit: Visit<L::Claim>,
        retry_after: Option<u32>,
        outcome: Outcome,
    ) -> Next<L::Claim> {
        let now = self.env.now();
        let (state, time) = match visit.state {
            State::Active { failures } => {
                let failures = failures.saturating_add(1);
                let state = State::Active {
                    failures: failures.min(MOST_FAILURES),
                };
                (state, retry_at(now, failures, retry_after, &self.env))
            }
            state @ (State::InteractionRequired { .. }
            | State::Quarantined { .. }
            | State::NotReadable { .. }) => (state, turn_again_at(now, now, &self.env)),
        };
        reschedule(visit, time, state, outcome)
    }

    pub(crate) fn storage_failed(&self, user: &User, error: &StoreError) {
        let reason = json!({"reason": error.to_string()});
        self.env.about("sweep_failed", user, reason);
    }
}

impl<C> Visited<C> {
    fn of(next: Next<C>) -> Self {
        Self {
            next,
            failure: None,
            tried: None,
        }
    }

    fn after(next: Next<C>, tried: KeyVersion) -> Self {
        Self {
            tried: Some(tried),
            ..Self::of(next)
        }
    }

    fn failed(next: Next<C>, error: VaultError, verdict: Verdict, key_version: KeyVersion) -> Self {
        Self {
            next,
            tried: Some(key_version.clone()),
            failure: Some(Failure {
                error,
                verdict,
                key_version,
            }),
        }
    }
}

/// Leaves a record and its place in the schedule as they are, for the next sweep. A place that tells another key version
/// than the record is under is set right: the status goes by what the schedule tells.
fn held<C>(hold: Hold, visit: Visit<C>, record: &Record) -> Next<C> {
    if hold != Hold::Waits || visit.key_version == record.key_version {
        return Next::Nothing(hold.into());
    }
    let (time, state) = (visit.time, visit.state);
    let visit = Visit {
        key_version: record.key_version.clone(),
        ..visit
    };
    reschedule(visit, time, state, Outcome::Waiting)
}

fn reschedule<C>(visit: Visit<C>, time: u64, state: State, outcome: Outcome) -> Next<C> {
    let key_version = visit.key_version.clone();
    let edit = Edit::Reschedule {
        time,
        state,
        key_version,
    };
    settle(visit, edit, outcome)
}

/// Leaves one place in the schedule of a record that has two.
fn tidy<C>(visit: Visit<C>, record: Box<Record>) -> Next<C> {
    settle(visit, Edit::Tidy(record), Outcome::Nothing)
}

fn replace<C>(visit: Visit<C>, old: Box<Record>, new: Record, outcome: Outcome) -> Next<C> {
    let new = Box::new(new);
    settle(visit, Edit::Replace { old, new }, outcome)
}

fn settle<C>(visit: Visit<C>, edit: Edit, outcome: Outcome) -> Next<C> {
    let change = Change {
        user: visit.user,
        nonce: visit.nonce,
        claims: visit.claims,
        edit,
    };
    Next::Settle(Box::new(change), outcome)
}

fn stored<C>(visit: &Visit<C>, record: &Record) -> StoredToken {
    StoredToken {
        user: visit.user.clone(),
        nonce: visit.nonce.clone(),
        token: record.sealed.clone(),
    }
}
