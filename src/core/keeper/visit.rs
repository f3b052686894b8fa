//! One record in a sweep: what is found there, and what is to be written of it.

use serde_json::json;

use crate::deadline::Deadline;
use crate::error::VaultError;
use crate::identity::User;
use crate::identity::{KeyVersion, Nonce};
use crate::keeper::holds::{Hold, Holds};
use crate::keeper::rules::Rules;
use crate::keeper::verdict::{Verdict, Work};
use crate::keeper::{Environment, Keeper, KeeperError, marker_of};
use crate::ledger::key_value::layout::{Layout, Marker, Tag};
use crate::ledger::key_value::store::{Store, StoreError};
use crate::ledger::key_value::wave::{Change, What};
use crate::ledger::record::{Record, Status};
use crate::ledger::schedule::{
    DAILY, LATEST_AHEAD, MONTHLY, MOST_FAILURES, RETENTION, retry_at, turn_again_at,
};
use crate::vault::port::{Policy, StoredToken, VaultPort};

/// An enrolment to be visited, and the markers that led there: more than one, where a writer died or was overtaken.
pub(crate) struct Visit {
    pub(crate) keys: Vec<String>,
    pub(crate) marker: Marker,
    /// Of one to be sealed anew: the refresh that is due besides, once that is done.
    pub(crate) due: Option<Box<Visit>>,
}

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
pub(crate) struct Visited {
    pub(crate) found: Found,
    /// What the vault's error means, if there was one.
    pub(crate) failure: Option<Failure>,
    /// The key version that it tried to open with, if it came as far as that.
    pub(crate) tried: Option<KeyVersion>,
}

/// An error of the vault.
pub(crate) struct Failure {
    pub(crate) error: VaultError,
    pub(crate) verdict: Verdict,
    /// The key version that the record is under, whatever its marker says.
    pub(crate) key_version: KeyVersion,
}

/// What is to be written.
pub(crate) enum Found {
    Over(Outcome),
    /// That, once this is written.
    Write(Box<Change>, Outcome),
}

/// What holds for one sweep.
pub(crate) struct Pass<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) policy: &'a Policy,
    pub(crate) rules: &'a Rules,
    /// When the last answer of another system has to be there.
    pub(crate) until: Deadline,
    /// When the last write has to have begun: not later than the lease ends.
    pub(crate) end: Deadline,
    /// Whether another system has confirmed the clock in this sweep.
    pub(crate) is_clock_confirmed: bool,
    pub(crate) horizon: Horizon,
    pub(crate) holds: Holds,
}

/// What is due at a time.
#[derive(Clone, Copy)]
pub(crate) struct Horizon {
    now: u64,
    /// What seems to be due later was written by a clock that was wrong.
    latest: u64,
}

impl Horizon {
    /// By a clock that nobody has confirmed, no other one was wrong.
    pub(crate) fn new(now: u64, is_clock_confirmed: bool) -> Self {
        let latest = if is_clock_confirmed {
            now.saturating_add(LATEST_AHEAD)
        } else {
            u64::MAX
        };
        Self { now, latest }
    }

    pub(crate) fn is_due(self, time: u64) -> bool {
        time <= self.now || time > self.latest
    }
}

/// What a marker points at.
enum Look {
    At(Box<Record>),
    Over(Found),
}

impl Visit {
    /// A visit without markers yet.
    pub(crate) fn new(marker: Marker) -> Self {
        Self {
            keys: Vec::new(),
            marker,
            due: None,
        }
    }
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

impl<V: VaultPort, S: Store, E: Environment> Keeper<V, S, E> {
    /// Visits a record. What fails for it is in what comes back.
    pub(crate) async fn visit(&self, pass: &Pass<'_>, visit: Visit, work: Work) -> Visited {
        let user = visit.marker.user.clone();
        let visited = match work {
            Work::Reseal => self.visit_outdated(pass, visit).await,
            Work::Refresh | Work::NewestKey => self.visit_due(pass, visit).await,
        };
        visited.unwrap_or_else(|error| {
            self.storage_failed(&user, &error);
            Visited::of(Found::Over(Outcome::Failed))
        })
    }

    async fn visit_due(&self, pass: &Pass<'_>, visit: Visit) -> Result<Visited, StoreError> {
        let Visit { keys, marker, .. } = visit;
        let record = match self.look(pass, &keys, &marker).await? {
            Look::At(record) => record,
            Look::Over(found) => return Ok(Visited::of(found)),
        };
        if !pass.horizon.is_due(record.due_at) {
            // A second marker of a record that was refreshed meanwhile.
            return Ok(Visited::of(self.tidy(keys, &marker, &record)));
        }
        let work = Work::Refresh;
        if let Some(hold) = pass
            .holds
            .on(&marker.user.tenant, &record.key_version, work)
        {
            return Ok(Visited::of(self.held(hold, keys, marker, &record)));
        }
        // A second marker of a record that was re-sealed may still tell of the old key.
        let told = marker.clone();
        let marker = Marker {
            key_version: record.key_version.clone(),
            ..marker
        };
        let within = pass.until.left(&self.env);
        let error = match self.vault.refresh(&stored(&marker, &record), within).await {
            Ok(sealed) => {
                let new = self.refreshed(&marker.user, &record, sealed, pass.policy);
                let tried = record.key_version.clone();
                let found = replace(keys, &marker, record, new, Outcome::Refreshed);
                return Ok(Visited::after(found, tried));
            }
            Err(error) => error,
        };
        let verdict = (pass.rules.verdict)(&error, work);
        let key_version = record.key_version.clone();
        let found = match &verdict {
            Verdict::PutOff {
                retry_after_seconds,
                is_operators,
            } => {
                let outcome = if *is_operators {
                    self.line(
                        "refresh_refused",
                        &marker.user,
                        json!({"code": error.code(), "reason": error.to_string()}),
                    );
                    Outcome::Refused
                } else {
                    Outcome::Retrying
                };
                self.put_off(keys, &marker, *retry_after_seconds, outcome)
            }
            Verdict::HoldTenant { seconds } => {
                self.put_off(keys, &marker, *seconds, Outcome::Retrying)
            }
            Verdict::SetAside => {
                self.alarm("sealed_token_does_not_open", &marker.user);
                self.set_aside(keys, &marker)
            }
            Verdict::Turn(status) => {
                self.not_our_turn(pass, keys, &marker, record, status)
                    .await?
            }
            Verdict::HoldCredential | Verdict::KeyVersionUnusable | Verdict::NewestKeyUnusable => {
                self.held(Hold::Waits, keys, told, &record)
            }
            Verdict::NotServed => Found::Over(Outcome::NotServed),
            Verdict::Stop => Found::Over(Outcome::Remaining),
        };
        Ok(Visited {
            found,
            tried: Some(key_version.clone()),
            failure: Some(Failure {
                error,
                verdict,
                key_version,
            }),
        })
    }

    async fn visit_outdated(&self, pass: &Pass<'_>, visit: Visit) -> Result<Visited, StoreError> {
        let Visit { keys, marker, .. } = visit;
        let record = match self.look(pass, &keys, &marker).await? {
            Look::At(record) => record,
            Look::Over(found) => return Ok(Visited::of(found)),
        };
        let work = Work::Reseal;
        if let Some(hold) = pass
            .holds
            .on(&marker.user.tenant, &record.key_version, work)
        {
            return Ok(Visited::of(self.held(hold, keys, marker, &record)));
        }
        let within = pass.until.left(&self.env);
        let error = match self.vault.reseal(&stored(&marker, &record), within).await {
            Ok(Some(sealed)) => {
                let new = Record {
                    sealed: sealed.token,
                    key_version: sealed.key_version,
                    write: Nonce::for_write(&self.env),
                    // A record whose refresh was put off stays put off.
                    due_at: record.due_at.max(marker.time),
                    ..(*record).clone()
                };
                let tried = record.key_version.clone();
                let found = replace(keys, &marker, record, new, Outcome::Resealed);
                return Ok(Visited::after(found, tried));
            }
            Ok(None) if marker.write != record.write => {
                return Ok(Visited::of(self.tidy(keys, &marker, &record)));
            }
            Ok(None) => return Ok(Visited::of(Found::Over(Outcome::Nothing))),
            Err(error) => error,
        };
        let verdict = (pass.rules.verdict)(&error, work);
        let key_version = record.key_version.clone();
        let found = match &verdict {
            Verdict::SetAside => {
                self.alarm("sealed_token_does_not_open", &marker.user);
                self.set_aside(keys, &marker)
            }
            // The marker stays as it is, and so does the record: the next sweep finds both.
            Verdict::PutOff { .. }
            | Verdict::Turn(_)
            | Verdict::HoldTenant { .. }
            | Verdict::HoldCredential
            | Verdict::KeyVersionUnusable
            | Verdict::NewestKeyUnusable => self.held(Hold::Waits, keys, marker, &record),
            Verdict::NotServed => Found::Over(Outcome::NotServed),
            Verdict::Stop => Found::Over(Outcome::Remaining),
        };
        Ok(Visited {
            found,
            tried: Some(key_version.clone()),
            failure: Some(Failure {
                error,
                verdict,
                key_version,
            }),
        })
    }

    /// Reads what a marker points at, and sorts out what is no usable record.
    async fn look(
        &self,
        pass: &Pass<'_>,
        keys: &[String],
        marker: &Marker,
    ) -> Result<Look, StoreError> {
        let aside = || Ok(Look::Over(self.set_aside(keys.to_vec(), marker)));
        let over = || Ok(Look::Over(Found::Over(Outcome::Nothing)));
        let (head, record) = match self.current(pass.layout, &marker.user).await {
            Ok(current) => current,
            Err(KeeperError::NotEnrolled | KeeperError::Busy) => return over(),
            Err(KeeperError::Store(error)) => return Err(error),
            // A head that cannot be read may name this enrolment.
            Err(_) => {
                self.alarm("head_not_readable", &marker.user);
                return aside();
            }
        };
        match record {
            // Another enrolment's: what is left of it is cleared when it is old.
            _ if head.nonce != marker.nonce => over(),
            Err(KeeperError::NoRefreshToken) => over(),
            Ok(record) => Ok(Look::At(Box::new(record))),
            Err(_) => aside(),
        }
    }

    /// Keeps a token that Entra ID refuses, with whose turn it is; or removes it, when it has been refused for so long that
    /// Entra ID has forgotten it by its own rules for months. By a clock that nobody has confirmed nothing is that old.
    async fn not_our_turn(
        &self,
        pass: &Pass<'_>,
        keys: Vec<String>,
        marker: &Marker,
        record: Box<Record>,
        status: &Status,
    ) -> Result<Found, StoreError> {
        let now = self.env.now();
        let is_expired = record.refreshed_at.saturating_add(RETENTION) <= now;
        if is_expired && (pass.is_clock_confirmed || !pass.rules.needs_clock) {
            self.remove_token(pass.layout, &marker.user, &marker.nonce)
                .await?;
            self.delete_each(&keys).await?;
            self.audit("refresh_token_expired", &marker.user);
            return Ok(Found::Over(Outcome::Expired));
        }
        let outcome = match status {
            Status::InteractionRequired(_) => Outcome::InteractionRequired,
            Status::OrganisationRequired(_) => Outcome::OrganisationRequired,
            Status::Quarantined(_) | Status::Active => Outcome::Quarantined,
        };
        let time = turn_again_at(now, record.refreshed_at, &self.env);
        if record.status == *status {
            // What is known already is not written again.
            return Ok(self.mark(keys, marker, time, Tag::of(&record), outcome));
        }
        let new = Record {
            status: status.clone(),
            write: Nonce::for_write(&self.env),
            due_at: time,
            // The token and its generation stay.
            ..(*record).clone()
        };
        Ok(replace(keys, marker, record, new, outcome))
    }

    /// Leaves a record and its marker as they are, for the next sweep. A marker that tells another key version than the
    /// record is under is set right: the status goes by markers.
    fn held(&self, hold: Hold, keys: Vec<String>, marker: Marker, record: &Record) -> Found {
        if hold != Hold::Waits || marker.key_version == record.key_version {
            return Found::Over(hold.into());
        }
        let marker = Marker {
            key_version: record.key_version.clone(),
            ..marker
        };
        self.mark(keys, &marker, marker.time, marker.tag, Outcome::Waiting)
    }

    /// Keeps what cannot be used, and has it looked at again in a day, or in a month when nobody has mended it for long:
    /// "damaged" is never "delete".
    fn set_aside(&self, keys: Vec<String>, marker: &Marker) -> Found {
        let now = self.env.now();
        let tag = marker.tag.not_readable(now);
        let is_old = matches!(tag, Tag::NotReadable { since } if u64::from(since).saturating_mul(DAILY).saturating_add(RETENTION) <= now);
        let wait = if is_old { MONTHLY } else { DAILY };
        let time = now.saturating_add(wait);
        self.mark(keys, marker, time, tag, Outcome::Damaged)
    }

    /// Tries again later. The record is not touched.
    fn put_off(
        &self,
        keys: Vec<String>,
        marker: &Marker,
        retry_after: Option<u32>,
        outcome: Outcome,
    ) -> Found {
        let now = self.env.now();
        let (tag, time) = match marker.tag {
            Tag::Active { failures } => {
                let failures = failures.saturating_add(1);
                let tag = Tag::Active {
                    failures: failures.min(MOST_FAILURES),
                };
                (tag, retry_at(now, failures, retry_after, &self.env))
            }
            tag @ (Tag::InteractionRequired { .. }
            | Tag::Quarantined { .. }
            | Tag::NotReadable { .. }) => (tag, turn_again_at(now, now, &self.env)),
        };
        self.mark(keys, marker, time, tag, outcome)
    }

    fn mark(
        &self,
        keys: Vec<String>,
        marker: &Marker,
        time: u64,
        tag: Tag,
        outcome: Outcome,
    ) -> Found {
        let what = What::Mark(Marker {
            time,
            tag,
            write: Nonce::for_write(&self.env),
            ..marker.clone()
        });
        write(keys, marker, what, outcome)
    }

    /// Leaves one marker of a record that has two.
    fn tidy(&self, keys: Vec<String>, marker: &Marker, record: &Record) -> Found {
        let own = marker_of(&marker.user, &marker.nonce, record);
        let fresh = Marker {
            write: Nonce::for_write(&self.env),
            ..own.clone()
        };
        write(keys, marker, What::Tidy { fresh, own }, Outcome::Nothing)
    }

    pub(crate) fn storage_failed(&self, user: &User, error: &StoreError) {
        self.line("sweep_failed", user, json!({"reason": error.to_string()}));
    }

    /// A line about one user.
    fn line(&self, event: &str, user: &User, more: serde_json::Value) {
        let mut line =
            json!({"event": event, "tenant": user.tenant.as_str(), "user": user.id.as_str()});
        if let (Some(line), serde_json::Value::Object(more)) = (line.as_object_mut(), more) {
            line.extend(more);
        }
        self.env.line(&line.to_string());
    }
}

impl Visited {
    fn of(found: Found) -> Self {
        Self {
            found,
            failure: None,
            tried: None,
        }
    }

    fn after(found: Found, tried: KeyVersion) -> Self {
        Self {
            tried: Some(tried),
            ..Self::of(found)
        }
    }
}

fn replace(
    keys: Vec<String>,
    marker: &Marker,
    old: Box<Record>,
    new: Record,
    outcome: Outcome,
) -> Found {
    let new = Box::new(new);
    write(keys, marker, What::Replace { old, new }, outcome)
}

fn write(visited: Vec<String>, marker: &Marker, what: What, outcome: Outcome) -> Found {
    let change = Change {
        user: marker.user.clone(),
        nonce: marker.nonce.clone(),
        visited,
        what,
    };
    Found::Write(Box::new(change), outcome)
}

fn stored(marker: &Marker, record: &Record) -> StoredToken {
    StoredToken {
        user: marker.user.clone(),
        nonce: marker.nonce.clone(),
        token: record.sealed.clone(),
    }
}
