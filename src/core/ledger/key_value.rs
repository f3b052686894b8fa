//! A ledger on key-value storage that knows nothing but single keys: no compare-and-swap, no transaction, no order.
//!
//! Only enrolment writes a head and only removal deletes one. Everything else lives under keys private to one enrolment,
//! so that a writer who was overtaken can only litter a place that nobody reads. The order of the steps is what makes it
//! hold: PROTOCOL.md, beside this, has them and what each is for, and a checker that goes through every interleaving.
//! Do not reorder, retry or undo a step without it.

mod enrolment;
mod found;
pub mod head;
pub mod layout;
pub(crate) mod listing;
mod litter;
mod pages;
mod retirement;
pub mod store;
mod survey;
mod wave;
mod whole;

use std::cell::Cell;
use std::rc::Rc;

use crate::deadline::Deadline;
use crate::identity::{Fingerprint, Nonce, TenantId, User};
use crate::ledger::key_value::found::{Found, Place};
use crate::ledger::key_value::layout::Layout;
use crate::ledger::key_value::store::Store;
use crate::ledger::record::Record;
use crate::ledger::schedule::Horizon;
use crate::ledger::summary::Summary;
use crate::ledger::{
    Change, Claimed, Enrolled, Kind, Ledger, LedgerError, Opened, Remaining, Settled, StoreError,
    Survey, Tended, Visit,
};
use crate::port::Environment;

/// The ledger. A clone is the same one.
#[derive(Clone)]
pub struct KeyValueLedger<S, E> {
    store: S,
    env: E,
    layout: Layout,
    /// Whether one that is not a sweep's is listing the store: a listing of a full store takes 128 MiB.
    is_listing: Rc<Cell<bool>>,
}

impl<S: Store + Clone, E: Environment + Clone> KeyValueLedger<S, E> {
    /// A ledger on a store, under no prefix.
    #[must_use]
    pub fn new(store: S, env: E) -> Self {
        Self {
            store,
            env,
            layout: Layout::new(""),
            is_listing: Rc::default(),
        }
    }
}

impl<S: Store + Clone, E: Environment + Clone> Ledger for KeyValueLedger<S, E> {
    type Claim = Place;
    type Found = Found;

    const LEASES: bool = false;

    /// Beyond, a listing comes near the 128 MiB that hosts allow (PLATFORMS.md, "Key-value backends").
    const MOST_USERS: Option<u64> = Some(300_000);

    fn under(&self, prefix: &str) -> Self {
        Self {
            layout: Layout::new(prefix),
            ..self.clone()
        }
    }

    async fn find(&self, user: &User) -> Result<Enrolled, LedgerError> {
        let (head, record) = self.current(user).await?;
        Ok(Enrolled {
            nonce: head.nonce,
            enrolled_at: head.created_at,
            record,
        })
    }

    async fn still_current(&self, user: &User, nonce: &Nonce) -> Result<bool, LedgerError> {
        self.is_still_current(user, nonce).await
    }

    async fn enrol(
        &self,
        user: &User,
        nonce: &Nonce,
        record: &Record,
    ) -> Result<bool, LedgerError> {
        self.commit(user, nonce, record).await
    }

    async fn remove_token(&self, user: &User) -> Result<(), LedgerError> {
        if let Some(head) = self.head(user).await? {
            self.remove_token_of(user, &head.nonce).await?;
        }
        Ok(())
    }

    async fn remove(&self, user: &User) -> Result<(), LedgerError> {
        self.remove_user(user).await?;
        Ok(())
    }

    async fn remove_tenant(
        &self,
        tenant: &TenantId,
        until: Deadline,
        removed: &mut dyn FnMut(&User),
    ) -> Result<Remaining, LedgerError> {
        self.remove_users_of(tenant, until, removed).await
    }

    async fn survey(
        &self,
        horizon: Horizon,
        _until: Deadline,
    ) -> Result<Survey<Found>, StoreError> {
        self.list(horizon).await
    }

    async fn tend(&self, survey: &Survey<Found>, until: Deadline) -> Result<Tended, StoreError> {
        self.note_versions(survey).await?;
        Ok(self.clear_litter(survey, until).await)
    }

    async fn claim(
        &self,
        survey: &Survey<Found>,
        tenant: &TenantId,
        kind: Kind<'_>,
        most: usize,
        _lease_until: u64,
    ) -> Result<Claimed<Place>, StoreError> {
        Ok(survey.found.claim(tenant, kind, most, &self.env))
    }

    async fn give_back(
        &self,
        _survey: &Survey<Found>,
        _tenant: &TenantId,
    ) -> Result<(), StoreError> {
        // Nothing keeps others from it.
        Ok(())
    }

    async fn open(&self, visit: &Visit<Place>) -> Result<Opened, StoreError> {
        self.look_at(visit).await
    }

    async fn settle(&self, changes: &[&Change<Place>]) -> Vec<Settled<Place>> {
        self.apply(changes).await
    }

    async fn expire(&self, visit: &Visit<Place>) -> Result<bool, StoreError> {
        self.remove_token_of(&visit.user, &visit.nonce).await?;
        self.delete_each(visit.claims.iter().map(|place| place.key.as_str()))
            .await?;
        Ok(true)
    }

    async fn summary(&self, tenant: Option<&TenantId>) -> Result<Option<Summary>, StoreError> {
        self.read_summary(tenant).await
    }

    async fn keep_summary(&self, survey: &Survey<Found>) -> Result<(), StoreError> {
        self.write_summary(survey).await
    }

    async fn sweep_state(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.get(&self.layout.sweep_state()).await
    }

    async fn keep_sweep_state(&self, state: &[u8]) -> Result<(), StoreError> {
        self.store.set(&self.layout.sweep_state(), state).await
    }

    async fn fingerprint(&self) -> Result<Option<Fingerprint>, LedgerError> {
        self.read_fingerprint().await
    }

    async fn keep_fingerprint(&self, fingerprint: &Fingerprint) -> Result<(), StoreError> {
        self.write_fingerprint(fingerprint).await
    }
}
