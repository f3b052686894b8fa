//! What is stored of enrolments, as a port: what a keeper needs, and what any store must promise.
//!
//! A user has one enrolment at most, which a [`Nonce`] names, and an enrolment one [`Record`] until its refresh token is
//! removed. [`key_value`] keeps this promise on storage that knows nothing but single keys, [`postgres`] on a database;
//! `memory`, for tests, keeps it in a map. The suite `conformance` says of any other whether it does.
//!
//! # What every ledger promises
//!
//! - **What was acknowledged holds.** When [`Ledger::remove`], [`Ledger::remove_token`] or [`Ledger::remove_tenant`] has
//!   returned, no [`Ledger::find`] and no [`Ledger::still_current`] that begins after that finds the enrolment usable,
//!   whatever another actor, however slow, writes later. When [`Ledger::enrol`] has returned, its record is the one found
//!   until somebody enrols or removes after that.
//! - **A stale actor harms nobody.** Whoever goes by what he read long ago names the enrolment by its nonce and the record
//!   by its generation and write, and changes nothing if either has moved on.
//! - **Everything active has a time.** An enrolment with a refresh token is claimed by a sweep at some finite time,
//!   whatever fails between two steps.
//! - **An error leaves it open** whether the call has happened; it happened as a whole or not at all, or what is left
//!   half-done is of no consequence and cleared by a later [`Ledger::tend`]. Every call may be repeated.
#![allow(
    async_fn_in_trait,
    reason = "callers are generic over one implementation; no future crosses a thread"
)]

#[cfg(test)]
pub(crate) mod conformance;
pub mod key_value;
#[cfg(test)]
pub(crate) mod memory;
pub mod postgres;
pub mod record;
pub mod schedule;
mod seen;
pub mod summary;
pub mod transfer;

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::deadline::Deadline;
use crate::identity::{Fingerprint, KeyVersion, Nonce, TenantId, User};
use crate::ledger::record::{Record, Unreadable};
use crate::ledger::schedule::{Horizon, State};
use crate::ledger::summary::Summary;

/// What is stored of enrolments.
pub trait Ledger: Sized {
    /// What leads a sweep to an enrolment: a place in the schedule, as this ledger names it.
    type Claim: Clone;
    /// What a survey holds for the claims that follow it.
    type Found;

    /// Whether a claim is a lease, so that sweeps side by side do not do the same work. Where it is not, sweeps take
    /// turns by what [`Ledger::sweep_state`] remembers.
    const LEASES: bool;

    /// How many users it is made for; none: as many as its storage takes.
    const MOST_USERS: Option<u64>;

    /// The ledger of the app with this value of the setting `store_prefix`: apps that share a store see nothing of each
    /// other.
    #[must_use]
    fn under(&self, prefix: &str) -> Self;

    /// Whether records can be kept, as far as can be told at once: for a probe. That the store does not answer is no reason to say
    /// no: it may the next moment, and no other replica has another.
    ///
    /// # Errors
    /// [`StoreError`]: they cannot until somebody has changed something.
    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }

    // ---- One user ----

    /// The user's enrolment, and its record or why there is none to use. What cannot be read is kept, and told in the log.
    ///
    /// # Errors
    /// [`LedgerError::NotEnrolled`]; [`LedgerError::RecordDamaged`] and [`LedgerError::RecordTooNew`] if not even the
    /// enrolment's name can be read; [`LedgerError::Busy`]; [`LedgerError::Store`].
    async fn find(&self, user: &User) -> Result<Enrolled, LedgerError>;

    /// The one question before anything of an enrolment is released: whether it still is the user's, with its refresh
    /// token. False: the user has enrolled again. It is asked when everything else is done, since it tells of every
    /// removal that was acknowledged before it began.
    ///
    /// # Errors
    /// [`LedgerError::NotEnrolled`], [`LedgerError::NoRefreshToken`], [`LedgerError::Store`], and those of `find` for
    /// what cannot be read.
    async fn still_current(&self, user: &User, nonce: &Nonce) -> Result<bool, LedgerError>;

    /// Makes this the user's enrolment, in the place of any other. True: there was none.
    ///
    /// # Errors
    /// [`LedgerError::TenantRemoved`] while the tenant is being removed, also if that begins meanwhile;
    /// [`LedgerError::RecordTooNew`] if a newer version of behalf wrote the one before; [`LedgerError::Store`], after
    /// which the user has either this enrolment or the one before: whoever repeats it takes a new nonce.
    async fn enrol(&self, user: &User, nonce: &Nonce, record: &Record)
    -> Result<bool, LedgerError>;

    /// Removes the refresh token of the user's enrolment, which stays without one. Nothing if there is none.
    ///
    /// # Errors
    /// [`LedgerError::Store`] and [`LedgerError::Busy`], after which it is to be repeated, and those of `find` for what cannot be
    /// read.
    async fn remove_token(&self, user: &User) -> Result<(), LedgerError>;

    /// Removes the user. Nothing if there is none; also if it cannot be read.
    ///
    /// # Errors
    /// [`LedgerError::Store`] and [`LedgerError::Busy`], after which it is to be repeated.
    async fn remove(&self, user: &User) -> Result<(), LedgerError>;

    // ---- One tenant ----

    /// Removes users of a tenant, as many as there is time for, and tells of each that is gone. Nobody of it can enrol
    /// from the first call until one returns that nothing is left.
    ///
    /// # Errors
    /// [`LedgerError::Store`] and [`LedgerError::Busy`], after which it is to be repeated.
    async fn remove_tenant(
        &self,
        tenant: &TenantId,
        until: Deadline,
        removed: &mut dyn FnMut(&User),
    ) -> Result<Remaining, LedgerError>;

    // ---- Sweeps ----

    /// What is due, and what is stored besides, as a sweep finds it when it begins. Where that takes many steps, those are made
    /// for which there is time.
    ///
    /// # Errors
    /// [`StoreError`], also if there was no time for any.
    async fn survey(
        &self,
        horizon: Horizon,
        until: Deadline,
    ) -> Result<Survey<Self::Found>, StoreError>;

    /// Takes note of the key versions that a survey found in use, and clears what removals and writers that died have left
    /// behind, as much as there is time for. By a clock that nobody has confirmed it is not called: what is cleared is
    /// chosen by its age.
    ///
    /// # Errors
    /// [`StoreError`] if the versions could not be noted. What could not be cleared is told in the log.
    async fn tend(
        &self,
        survey: &Survey<Self::Found>,
        until: Deadline,
    ) -> Result<Tended, StoreError>;

    /// Hands out work of a tenant, in the order in which it is to be done: those that have not failed before those that
    /// have, and by chance among them. What was handed out is not again in this sweep; with [`Ledger::LEASES`] in no other
    /// either before `lease_until`, in Unix seconds.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn claim(
        &self,
        survey: &Survey<Self::Found>,
        tenant: &TenantId,
        kind: Kind<'_>,
        most: usize,
        lease_until: u64,
    ) -> Result<Claimed<Self::Claim>, StoreError>;

    /// Takes back what was handed out of a tenant and is not done, because there was no time for it, so that another sweep may
    /// have it at once. Nothing of it may be under way.
    ///
    /// # Errors
    /// [`StoreError`]: then they are had when their leases end.
    async fn give_back(
        &self,
        survey: &Survey<Self::Found>,
        tenant: &TenantId,
    ) -> Result<(), StoreError>;

    /// What a claim leads to, as it is now.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn open(&self, visit: &Visit<Self::Claim>) -> Result<Opened, StoreError>;

    /// Makes changes, each by itself and in any order; what fails for one touches no other. One that is made gives the
    /// claim that leads there from now on; one that is overtaken, because the enrolment or its record is not what it
    /// was, gives none and changes nothing.
    ///
    /// Between the look and the write of a change another can come in only where the store has no compare-and-swap: a
    /// slower refresh or a re-seal may then restore a sibling of the token, of the same sign-in and as good.
    async fn settle(&self, changes: &[&Change<Self::Claim>]) -> Vec<Settled<Self::Claim>>;

    /// Removes the refresh token of an enrolment that a claim led to, because it has expired. False: the enrolment is another
    /// one now or, where the store has a compare-and-swap, has another record.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn expire(&self, visit: &Visit<Self::Claim>) -> Result<bool, StoreError>;

    // ---- What is kept beside the enrolments ----

    /// The summary that was kept last: of all tenants, or of one, with its users who have to act. None: there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn summary(&self, tenant: Option<&TenantId>) -> Result<Option<Summary>, StoreError>;

    /// Keeps the summary of a survey.
    ///
    /// # Errors
    /// [`StoreError`], after which there is this one, the one before, or none.
    async fn keep_summary(&self, survey: &Survey<Self::Found>) -> Result<(), StoreError>;

    /// What the last sweep left for the next. None: nothing, or it is lost, which costs work and no more.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn sweep_state(&self) -> Result<Option<Vec<u8>>, StoreError>;

    /// Leaves something for the next sweep.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn keep_sweep_state(&self, state: &[u8]) -> Result<(), StoreError>;

    /// The fingerprint of the settings that the records depend on. None: none was kept yet.
    ///
    /// # Errors
    /// [`LedgerError::Store`]; [`LedgerError::RecordDamaged`] and [`LedgerError::RecordTooNew`] if it cannot be read.
    async fn fingerprint(&self) -> Result<Option<Fingerprint>, LedgerError>;

    /// Keeps a fingerprint, in the place of any other.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn keep_fingerprint(&self, fingerprint: &Fingerprint) -> Result<(), StoreError>;
}

/// Why a ledger does not do what it was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LedgerError {
    /// Storage failed. What was asked for may have happened.
    #[error("storage does not answer as it should; try again later")]
    Store(#[from] StoreError),
    /// The user is not enrolled.
    #[error("this user is not enrolled: enrol with PUT /v1/me")]
    NotEnrolled,
    /// Application access was removed for this enrolment.
    #[error("application access was removed for this user: enrol again with PUT /v1/me")]
    NoRefreshToken,
    /// What is stored cannot be read. It was kept.
    #[error("the stored record cannot be read; it was kept")]
    RecordDamaged,
    /// A newer version of behalf wrote it.
    #[error("the stored record was written by a newer version of behalf: upgrade this one")]
    RecordTooNew,
    /// The enrolment is there, and its record is not.
    #[error("the stored record is missing: enrol again with PUT /v1/me")]
    RecordLost,
    /// All users of the tenant are being removed.
    #[error("all users of this tenant are being removed; enrol after that has ended")]
    TenantRemoved,
    /// Others were at it all the time.
    #[error("this is being changed right now; try again")]
    Busy,
}

impl LedgerError {
    /// A word for it that stays the same from version to version: the `code` of the API's problems.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Store(_) => "store_unavailable",
            Self::NotEnrolled => "not_enrolled",
            Self::NoRefreshToken => "no_refresh_token",
            Self::RecordDamaged => "record_damaged",
            Self::RecordTooNew => "record_too_new",
            Self::RecordLost => "record_lost",
            Self::TenantRemoved => "tenant_being_removed",
            Self::Busy => "busy",
        }
    }
}

/// An operation on storage failed. It may have happened all the same.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("storage: {0}")]
pub struct StoreError(
    /// What the store says of it: a message for the operator, which knows names of keys but no value.
    pub String,
);

/// The enrolment of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enrolled {
    /// Its name.
    pub nonce: Nonce,
    /// Unix time in seconds.
    pub enrolled_at: u64,
    /// Its record, or [`LedgerError::NoRefreshToken`], [`LedgerError::RecordLost`], [`LedgerError::RecordDamaged`] or
    /// [`LedgerError::RecordTooNew`].
    pub record: Result<Record, LedgerError>,
}

/// How many users of a tenant are left; call again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remaining(pub u64);

/// What a sweep finds when it begins.
pub struct Survey<F> {
    /// What there may be to do, by tenant.
    pub tenants: BTreeMap<TenantId, Outlook>,
    /// Parts of the store that there was no time to look at, or that could not be: what is due there is not known.
    pub not_seen: u64,
    /// Key versions in use of which that is not noted yet. Unless [`Ledger::tend`] has succeeded, what is under them must
    /// stay there: a version that no later survey finds would not be known.
    pub not_noted: BTreeSet<(TenantId, KeyVersion)>,
    /// What is stored.
    pub summary: Summary,
    /// What the ledger needs for claims.
    pub found: F,
}

/// What there may be to do for a tenant.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Outlook {
    /// Enrolments that are in the schedule.
    pub enrolments: u64,
    /// Those of them that are due.
    pub due: u64,
    /// When the first of the others is due, in Unix seconds.
    pub next_due: Option<u64>,
}

/// What housekeeping did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tended {
    /// Left-over enrolments that were cleared.
    pub cleared: u64,
    /// Those that there was no time for, or that could not be cleared.
    pub left: u64,
}

/// Which work of a tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind<'a> {
    /// What is under another key version than this, due or not, as far as it can be read.
    Outdated(&'a KeyVersion),
    /// What is due and not outdated by this key version.
    Due(&'a KeyVersion),
}

/// Work that was handed out.
pub struct Claimed<C> {
    /// In the order in which it is to be done.
    pub visits: Vec<Visit<C>>,
    /// How many of this kind are left to claim; what is not known counts as one.
    pub left: u64,
    /// When the first of the leases ends that other sweeps hold on records of the tenant, in Unix seconds: until then they may
    /// have to be claimed after all. None: nobody else holds any.
    pub leased_until: Option<u64>,
}

impl<C> Claimed<C> {
    /// Nothing, and nothing left.
    #[must_use]
    pub fn none() -> Self {
        Self {
            visits: Vec::new(),
            left: 0,
            leased_until: None,
        }
    }
}

/// An enrolment that a sweep is to visit, as the schedule tells of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Visit<C> {
    /// Whose it is.
    pub user: User,
    /// Its name.
    pub nonce: Nonce,
    /// The key version that it is said to be under.
    pub key_version: KeyVersion,
    /// The state that it is said to be in.
    pub state: State,
    /// When it was to be visited, in Unix seconds.
    pub time: u64,
    /// The places of the schedule that lead there: more than one, where a writer died or was overtaken.
    pub claims: Vec<C>,
    /// Of one to be sealed anew: the refresh that is due besides, once that is done.
    pub due: Option<Box<Visit<C>>>,
}

/// What a claim leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opened {
    /// A record.
    Record {
        /// The record.
        record: Box<Record>,
        /// Whether its last write is what led here. Else the schedule may tell of it wrongly, or twice.
        is_own: bool,
    },
    /// Nothing to be worked on: the enrolment was replaced, or it or its token was removed.
    Gone,
    /// Something that cannot be read. It was kept, and told in the log.
    NotReadable,
}

/// What came of a change: the claim that leads to the enrolment from now on, or none because the change was overtaken.
pub type Settled<C> = Result<Option<C>, StoreError>;

/// A change to what is stored of one enrolment.
#[derive(Clone, Debug)]
pub struct Change<C> {
    /// Whose it is.
    pub user: User,
    /// Its name.
    pub nonce: Nonce,
    /// The claims that led here; none when a caller did. They are spent once the change is made.
    pub claims: Vec<C>,
    /// What is changed.
    pub edit: Edit,
}

/// What is changed of an enrolment.
#[derive(Clone, Debug)]
pub enum Edit {
    /// When it is visited again, and what the schedule says of it. The record is not touched.
    Reschedule {
        /// In Unix seconds.
        time: u64,
        /// The state.
        state: State,
        /// The key version that its record is under.
        key_version: KeyVersion,
    },
    /// Its places in the schedule, of which one is left, as the record has it.
    Tidy(
        /// The record, as it was read.
        Box<Record>,
    ),
    /// The record, and with it the place in the schedule.
    Replace {
        /// The record that was read. If there is another now, nothing is changed.
        old: Box<Record>,
        /// The one that takes its place.
        new: Box<Record>,
    },
}

impl Edit {
    /// When the enrolment is visited next, once this is made, in Unix seconds.
    #[must_use]
    pub fn time(&self) -> u64 {
        match self {
            Self::Reschedule { time, .. } => *time,
            Self::Tidy(record) | Self::Replace { new: record, .. } => record.due_at,
        }
    }
}

impl From<Unreadable> for LedgerError {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Damaged => Self::RecordDamaged,
            Unreadable::Newer => Self::RecordTooNew,
        }
    }
}
