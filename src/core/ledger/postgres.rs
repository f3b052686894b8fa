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

    /// What there is of a user: the nonce, whether that is the one that the row began with, and the write of the record, if
    /// there is one.
    async fn look(&self, user: &User) -> Result<Option<Seen>, StoreError> {
        let rows = self.repeat(statement::LOOK, self.user(user), Repeat::Any);
        let Some(row) = rows.await?.pop() else {
            return Ok(None);
        };
        let mut row = Columns::of(row);
        let (nonce, first, write) = (row.text()?, row.text()?, row.text_or_null()?);
        Ok(Some(Seen {
            is_first: nonce == first,
            nonce,
            write,
        }))
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
                    seen.is_some_and(|seen| seen.write.as_deref() == Some(write.as_str()))
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

    fn under(&self, prefix: &str) -> Self {
        Self {
            app: prefix.into(),
            ..self.clone()
        }
    }

    async fn find(&self, user: &User) -> Result<Enrolled, LedgerError> {
        let current = self.current(user).await?;
        Ok(current.ok_or(LedgerError::NotEnrolled)?.0)
    }

    async fn still_current(&self, user: &User, nonce: &Nonce) -> Result<bool, LedgerError> {
        let seen = self.look(user).await?.ok_or(LedgerError::NotEnrolled)?;
        if seen.nonce != nonce.as_str() {
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
        let mut values = self.user(user);
        values.extend([text(nonce.as_str()), format(), int8(record.enrolled_at)]);
        values.extend(columns(record));
        let mut is_known = false;
        loop {
            let made = self.attempt(statement::ENROL, &values, Repeat::Never).await;
            let rows = match made {
                Ok((rows, _)) => rows,
                // It was made or not, or will be in a moment.
                Err(error) => match self.look(user).await? {
                    Some(seen) if seen.nonce == nonce.as_str() => return Ok(seen.is_first),
                    _ => return Err(error.into()),
                },
            };
            let mut row = Columns::first(rows)?;
            let (is_open, is_first) = (row.bool()?, row.bool_or_null()?);
            match (is_open, is_first) {
                (true, Some(is_first)) => return Ok(is_first),
                (true, None) => return Err(LedgerError::RecordTooNew),
                (false, _) if is_known => return Err(LedgerError::TenantRemoved),
                (false, _) => {
                    // Nobody of it has enrolled yet, or it is being removed.
                    let tenant = self.tenant(&user.tenant);
                    self.repeat(statement::OPEN_TENANT, tenant, Repeat::Any)
                        .await?;
                    is_known = true;
                }
            }
        }
    }

    async fn remove_token(&self, user: &User) -> Result<(), LedgerError> {
        // It names what it removes: one that comes late removes nothing of an enrolment after it.
        if let Some(seen) = self.look(user).await? {
            self.remove_record(user, &seen.nonce, "").await?;
        }
        Ok(())
    }

    async fn remove(&self, user: &User) -> Result<(), LedgerError> {
        if let Some(seen) = self.look(user).await? {
            let mut values = self.user(user);
            values.push(text(&seen.nonce));
            self.repeat(statement::REMOVE, values, Repeat::Any).await?;
        }
        Ok(())
    }

    async fn remove_tenant(
        &self,
        tenant: &TenantId,
        until: Deadline,
        removed: &mut dyn FnMut(&User),
    ) -> Result<Remaining, LedgerError> {
        Ok(self.remove_users_of(tenant, until, removed).await?)
    }

    async fn survey(&self, horizon: Horizon) -> Result<Survey<Found>, StoreError> {
        self.look_around(horizon).await
    }

    async fn tend(&self, survey: &Survey<Found>, _until: Deadline) -> Result<Tended, StoreError> {
        self.note_versions(survey).await?;
        // Nothing is ever left half-done.
        Ok(Tended::default())
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
        let write = visit.claims.last().map_or("", |lease| lease.write.as_str());
        self.remove_record(&visit.user, visit.nonce.as_str(), write)
            .await
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
    /// Removes the record of an enrolment, if it has this write or that is empty. True: there is none now.
    async fn remove_record(
        &self,
        user: &User,
        nonce: &str,
        write: &str,
    ) -> Result<bool, StoreError> {
        let mut values = self.user(user);
        values.extend([text(nonce), text(write)]);
        let attempt = self.attempt(statement::REMOVE_TOKEN, &values, Repeat::Any);
        let (rows, is_in_doubt) = attempt.await?;
        if rows.is_empty() && is_in_doubt {
            let seen = self.look(user).await?;
            return Ok(seen.is_some_and(|seen| seen.nonce == nonce && seen.write.is_none()));
        }
        Ok(!rows.is_empty())
    }

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

/// What a look shows of a user.
struct Seen {
    nonce: String,
    is_first: bool,
    write: Option<String>,
}

/// The bucket of a tenant: a number that is evenly distributed, and stays the same in every release.
fn bucket(app: &str, tenant: &TenantId) -> i16 {
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
