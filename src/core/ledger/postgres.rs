//! The ledger on a `PostgreSQL` database: what the port promises, by one statement for each thing that is done.
//!
//! There is no transaction of more than one statement, so that no connection can be handed back with one open, and none is
//! held while another system is asked. Whatever is written is named beforehand: an enrolment by its nonce, a record by its
//! write. So a statement whose connection ended is decided by looking again. Those that may come late, when somebody else has
//! been there meanwhile, change nothing: they say in their `WHERE` what they are to find.
//!
//! Rows have a bucket, a number that is made of their tenant: one bucket can be partitioned off, put on another machine, or
//! counted by itself.

mod answer;
mod attempt;
mod claims;
pub mod database;
#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod plans;
#[cfg(test)]
mod real;
mod removal;
pub mod schema;
pub(crate) mod statement;
mod survey;
mod whole;

use std::cell::Cell;
use std::rc::Rc;

use futures_util::{StreamExt as _, stream};
use sha2::{Digest as _, Sha256};

use crate::deadline::Deadline;
use crate::identity::{Fingerprint, Nonce, TenantId, User};
use crate::journal::Journal as _;
use crate::ledger::postgres::answer::{Columns, int8, text};
use crate::ledger::postgres::attempt::Repeat;
use crate::ledger::postgres::claims::Lease;
use crate::ledger::postgres::database::{Database, Value};
use crate::ledger::postgres::survey::Found;
use crate::ledger::record::{Record, VERSION};
use crate::ledger::schedule::{Horizon, State};
use crate::ledger::seen::{from_stored, to_stored};
use crate::ledger::summary::Summary;
use crate::ledger::{
    Change, Claimed, Edit, Enrolled, Kind, Ledger, LedgerError, Opened, Remaining, Settled,
    StoreError, Survey, Tended, Visit,
};
use crate::port::Environment;

/// Buckets that tenants are spread over.
const BUCKETS: u16 = 64;
/// Times that an enrolment or a removal begins again because somebody else enrols or removes the user.
const ATTEMPTS: u32 = 8;
/// Changes that are made at once, each on a connection of its own.
const AT_ONCE: usize = 8;

/// The ledger. A clone is the same one.
#[derive(Clone)]
pub struct PostgresLedger<D, E> {
    database: D,
    env: E,
    app: Rc<str>,
    /// Whether the schema is one that this version can work with, as far as that is known.
    is_checked: Rc<Cell<bool>>,
}

impl<D: Database + Clone, E: Environment + Clone> PostgresLedger<D, E> {
    /// A ledger in a database, under no prefix.
    #[must_use]
    pub fn new(database: D, env: E) -> Self {
        Self {
            database,
            env,
            app: "".into(),
            is_checked: Rc::default(),
        }
    }

    /// The first parameters of every statement about a tenant.
    fn tenant(&self, tenant: &TenantId) -> Vec<Value> {
        let bucket = bucket(&self.app, tenant);
        vec![Value::Int2(bucket), text(&self.app), text(tenant.as_str())]
    }

    /// The first parameters of every statement about a user.
    fn user(&self, user: &User) -> Vec<Value> {
        let mut values = self.tenant(&user.tenant);
        values.push(text(user.id.as_str()));
        values
    }

    /// What there is of a user.
    async fn look(&self, user: &User) -> Result<Seen, StoreError> {
        let rows = self.repeat(statement::LOOK, self.user(user), Repeat::Any);
        let Some(row) = rows.await?.pop() else {
            return Ok(Seen::default());
        };
        let mut row = Columns::of(row);
        Ok(Seen {
            nonce: row.text_or_null()?,
            write: row.text_or_null()?,
            mark: row.int_or_null()?,
        })
    }

    /// A name for an enrolment's or a removal's change.
    fn mark(&self) -> i64 {
        i64::from_le_bytes(self.env.number().to_le_bytes())
    }

    /// Removes the user, or the refresh token alone, whichever enrolment there is by then.
    async fn remove_what_is_seen(&self, user: &User, whole: bool) -> Result<(), LedgerError> {
        let mut seen = self.look(user).await?;
        for _ in 0..ATTEMPTS {
            let sql = match seen.nonce {
                Some(_) if !whole => statement::REMOVE_TOKEN,
                // Also of one who is not there: an enrolment under way has not seen this.
                _ => statement::REMOVE,
            };
            let mark = self.mark();
            let mut values = self.user(user);
            let seen_mark = seen.mark.map_or(Value::Null, Value::Int8);
            values.extend([Value::Int8(mark), seen_mark]);
            let (rows, is_in_doubt) = self.attempt(sql, &values, Repeat::Any).await?;
            if !rows.is_empty() {
                return Ok(());
            }
            seen = self.look(user).await?;
            let nothing_is_left = if whole {
                seen.nonce.is_none()
            } else {
                seen.write.is_none()
            };
            if seen.mark == Some(mark) || is_in_doubt && nothing_is_left {
                return Ok(());
            }
            if is_in_doubt {
                // A try whose answer was lost was made, and somebody has enrolled since; or it was not. Neither would a second
                // removal be right after the first, nor none at all.
                return Err(LedgerError::Busy);
            }
        }
        Err(LedgerError::Busy)
    }

    /// The enrolment of a user, and the write of its record. What cannot be read is an alarm.
    async fn current(&self, user: &User) -> Result<Option<(Enrolled, String)>, LedgerError> {
        let rows = self.repeat(statement::FIND, self.user(user), Repeat::Any);
        let Some(row) = rows.await?.pop() else {
            return Ok(None);
        };
        let mut row = Columns::of(row);
        let (nonce, enrolled_at, record) = (row.text()?, row.number()?, row.bytes_or_null()?);
        let write = row.text_or_null()?.unwrap_or_default();
        let enrolled = Enrolled {
            nonce: Nonce::parse(&nonce).ok_or(LedgerError::RecordDamaged)?,
            enrolled_at,
            record: match record {
                None => Err(LedgerError::NoRefreshToken),
                Some(json) => Record::from_json(&json).map_err(|unreadable| {
                    self.env.alarm_about("record_not_readable", user);
                    unreadable.into()
                }),
            },
        };
        Ok(Some((enrolled, write)))
    }

    /// Makes a change, if nobody was there before; also if the answer to a try that made it was lost.
    async fn change(&self, change: &Change<Lease>) -> Result<Option<Lease>, StoreError> {
        let now = self.env.now();
        let held = change.claims.last();
        let lease = held.map_or(0, |held| held.lease);
        let mut values = self.user(&change.user);
        values.push(text(change.nonce.as_str()));
        let expected = held.map_or("", |held| held.write.as_str());
        let reschedule = |values: &mut Vec<Value>, time: u64, state: State, version: &str| {
            let (state, number) = answer::of_state(state);
            values.extend([
                text(expected),
                int8(time),
                state,
                number,
                text(version),
                Value::Int8(lease),
                int8(now),
            ]);
        };
        let (sql, write) = match &change.edit {
            Edit::Reschedule {
                time,
                state,
                key_version,
            } => {
                reschedule(&mut values, *time, *state, key_version.as_str());
                (statement::RESCHEDULE, None)
            }
            Edit::Tidy(record) => {
                let (time, state) = (record.due_at, State::of(record));
                reschedule(&mut values, time, state, record.key_version.as_str());
                (statement::RESCHEDULE, None)
            }
            Edit::Replace { old, new } => {
                values.extend([int8(old.generation), text(old.write.as_str())]);
                let [
                    record,
                    generation,
                    write,
                    key_version,
                    state,
                    number,
                    due_at,
                ] = columns(new);
                values.extend([record, format(), generation, write, key_version]);
                values.extend([state, number, due_at, Value::Int8(lease), int8(now)]);
                (statement::REPLACE, Some(&new.write))
            }
        };
        let (rows, is_in_doubt) = self.attempt(sql, &values, Repeat::Any).await?;
        let is_made = !rows.is_empty()
            || match write {
                // Every record is named by its write, so that this tells whether a try whose answer was lost was made.
                Some(write) if is_in_doubt => {
                    let seen = self.look(&change.user).await?;
                    seen.write.as_deref() == Some(write.as_str())
                }
                _ => false,
            };
        let write = write.map(|write| write.as_str().to_owned());
        Ok(is_made.then(|| Lease {
            write: write.unwrap_or_else(|| expected.to_owned()),
            lease,
        }))
    }
}

impl<D: Database + Clone, E: Environment + Clone> Ledger for PostgresLedger<D, E> {
    type Claim = Lease;
    type Found = Found;

    const LEASES: bool = true;

    const MOST_USERS: Option<u64> = None;

    fn under(&self, prefix: &str) -> Self {
        Self {
            app: prefix.into(),
            ..self.clone()
        }
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.probe().await
    }

    async fn find(&self, user: &User) -> Result<Enrolled, LedgerError> {
        let current = self.current(user).await?;
        Ok(current.ok_or(LedgerError::NotEnrolled)?.0)
    }

    async fn still_current(&self, user: &User, nonce: &Nonce) -> Result<bool, LedgerError> {
        let seen = self.look(user).await?;
        if seen.nonce.ok_or(LedgerError::NotEnrolled)? != nonce.as_str() {
            return Ok(false);
        }
        seen.write.map(|_| true).ok_or(LedgerError::NoRefreshToken)
    }

    async fn enrol(
        &self,
        user: &User,
        nonce: &Nonce,
        record: &Record,
    ) -> Result<bool, LedgerError> {
        for _ in 0..ATTEMPTS {
            let rows = self.repeat(statement::SEE, self.user(user), Repeat::Any);
            let Some(row) = rows.await?.pop() else {
                let tenant = self.tenant(&user.tenant);
                self.repeat(statement::OPEN_TENANT, tenant, Repeat::Any)
                    .await?;
                continue;
            };
            let mut row = Columns::of(row);
            let (is_barred, removals) = (row.bool()?, row.number()?);
            let (mark, format_of, is_enrolled) = (
                row.int_or_null()?,
                row.number_or_null()?,
                row.bool_or_null()?,
            );
            if is_barred {
                return Err(LedgerError::TenantRemoved);
            }
            if format_of.is_some_and(|of| of > VERSION.into()) {
                return Err(LedgerError::RecordTooNew);
            }
            let mut values = self.user(user);
            values.extend([text(nonce.as_str()), format(), int8(record.enrolled_at)]);
            values.extend(columns(record));
            let seen = mark.map_or(Value::Null, Value::Int8);
            values.extend([Value::Int8(self.mark()), int8(removals), seen]);
            match self.repeat(statement::ENROL, &values, Repeat::Never).await {
                Ok(rows) if rows.is_empty() => {}
                Ok(_) => return Ok(is_enrolled != Some(true)),
                // It was made or not, or comes late, unless somebody else comes before.
                Err(error) => match self.look(user).await?.nonce {
                    Some(current) if current == nonce.as_str() => {
                        return Ok(is_enrolled != Some(true));
                    }
                    _ => return Err(error.into()),
                },
            }
        }
        Err(LedgerError::Busy)
    }

    async fn remove_token(&self, user: &User) -> Result<(), LedgerError> {
        self.remove_what_is_seen(user, false).await
    }

    async fn remove(&self, user: &User) -> Result<(), LedgerError> {
        self.remove_what_is_seen(user, true).await
    }

    async fn remove_tenant(
        &self,
        tenant: &TenantId,
        until: Deadline,
        removed: &mut dyn FnMut(&User),
    ) -> Result<Remaining, LedgerError> {
        Ok(self.remove_users_of(tenant, until, removed).await?)
    }

    async fn survey(&self, horizon: Horizon, until: Deadline) -> Result<Survey<Found>, StoreError> {
        self.look_around(horizon, until).await
    }

    async fn tend(&self, survey: &Survey<Found>, until: Deadline) -> Result<Tended, StoreError> {
        Ok(self.clean(survey, until).await)
    }

    async fn claim(
        &self,
        survey: &Survey<Found>,
        tenant: &TenantId,
        kind: Kind<'_>,
        most: usize,
        lease_until: u64,
    ) -> Result<Claimed<Lease>, StoreError> {
        self.hand_out(&survey.found, tenant, kind, most, lease_until)
            .await
    }

    async fn give_back(&self, survey: &Survey<Found>, tenant: &TenantId) -> Result<(), StoreError> {
        self.take_back(&survey.found, tenant).await
    }

    async fn open(&self, visit: &Visit<Lease>) -> Result<Opened, StoreError> {
        let (enrolled, write) = match self.current(&visit.user).await {
            Ok(Some(current)) => current,
            Ok(None) => return Ok(Opened::Gone),
            Err(LedgerError::Store(error)) => return Err(error),
            Err(_) => return Ok(Opened::NotReadable),
        };
        Ok(match enrolled.record {
            _ if enrolled.nonce != visit.nonce => Opened::Gone,
            Err(LedgerError::NoRefreshToken) => Opened::Gone,
            Ok(record) => Opened::Record {
                record: Box::new(record),
                is_own: (visit.claims.iter()).all(|lease| lease.write == write),
            },
            Err(_) => Opened::NotReadable,
        })
    }

    async fn settle(&self, changes: &[&Change<Lease>]) -> Vec<Settled<Lease>> {
        stream::iter(changes)
            .map(|change| self.change(change))
            .buffered(AT_ONCE)
            .collect()
            .await
    }

    async fn expire(&self, visit: &Visit<Lease>) -> Result<bool, StoreError> {
        let Some(lease) = visit.claims.last() else {
            return Ok(false);
        };
        let mut values = self.user(&visit.user);
        values.extend([text(visit.nonce.as_str()), text(&lease.write)]);
        let attempt = self.attempt(statement::EXPIRE, &values, Repeat::Any);
        let (rows, is_in_doubt) = attempt.await?;
        if rows.is_empty() && is_in_doubt {
            let seen = self.look(&visit.user).await?;
            return Ok(seen.nonce.as_deref() == Some(visit.nonce.as_str()) && seen.write.is_none());
        }
        Ok(!rows.is_empty())
    }

    async fn summary(&self, tenant: Option<&TenantId>) -> Result<Option<Summary>, StoreError> {
        self.read_summary(tenant).await
    }

    /// Nothing: what was counted was kept.
    async fn keep_summary(&self, _survey: &Survey<Found>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn sweep_state(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.kept().await?.0)
    }

    async fn keep_sweep_state(&self, state: &[u8]) -> Result<(), StoreError> {
        self.keep(Value::Bytes(state.into()), Value::Null).await
    }

    async fn fingerprint(&self) -> Result<Option<Fingerprint>, LedgerError> {
        let json = self.kept().await?.1;
        json.map(|json| from_stored(&json)).transpose()
    }

    async fn keep_fingerprint(&self, fingerprint: &Fingerprint) -> Result<(), StoreError> {
        let json = Value::Bytes(to_stored(fingerprint));
        self.keep(Value::Null, json).await
    }
}

impl<D: Database + Clone, E: Environment + Clone> PostgresLedger<D, E> {
    /// The state of sweeps, and the fingerprint.
    async fn kept(&self) -> Result<(Option<Vec<u8>>, Option<Vec<u8>>), StoreError> {
        let rows = self.repeat(statement::APP, [text(&self.app)], Repeat::Any);
        let Some(row) = rows.await?.pop() else {
            return Ok((None, None));
        };
        let mut row = Columns::of(row);
        Ok((row.bytes_or_null()?, row.bytes_or_null()?))
    }

    async fn keep(&self, sweep_state: Value, fingerprint: Value) -> Result<(), StoreError> {
        let values = [text(&self.app), sweep_state, fingerprint];
        self.repeat(statement::KEEP_APP, values, Repeat::Never)
            .await?;
        Ok(())
    }
}

/// What a look shows of a user; nothing of one who is unknown.
#[derive(Default)]
struct Seen {
    nonce: Option<String>,
    write: Option<String>,
    mark: Option<i64>,
}

/// The bucket of a tenant: a number that is evenly distributed, and stays the same in every release. `app` is the label that
/// keeps apps apart which share a database.
#[must_use]
pub fn bucket(app: &str, tenant: &TenantId) -> i16 {
    let digest = Sha256::digest(format!("{app}/{}", tenant.as_str()));
    let [high, low, ..]: [u8; 32] = digest.into();
    let number = u16::from_be_bytes([high, low]).checked_rem(BUCKETS);
    number.map_or(0, |number| i16::try_from(number).unwrap_or(0))
}

/// The version of what is stored as JSON.
fn format() -> Value {
    Value::Int4(VERSION.try_into().unwrap_or(i32::MAX))
}

/// A record's columns: `record, generation, write, key_version, state, state_number, due_at`.
fn columns(record: &Record) -> [Value; 7] {
    let (state, number) = answer::of_state(State::of(record));
    [
        Value::Bytes(record.to_json()),
        int8(record.generation),
        text(record.write.as_str()),
        text(record.key_version.as_str()),
        state,
        number,
        int8(record.due_at),
    ]
}
