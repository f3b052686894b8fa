//! The enrolment of one user: its head, its record, and what says that its token was removed; and the removal of all
//! users of a tenant. The comments name the steps of PROTOCOL.md.

use futures_util::future::join;
use futures_util::{StreamExt as _, stream};
use serde_json::json;

use crate::deadline::Deadline;
use crate::identity::{Nonce, TenantId, User};
use crate::journal::Journal as _;
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::found::Place;
use crate::ledger::key_value::head::Head;
use crate::ledger::key_value::layout::Marker;
use crate::ledger::key_value::listing::Listing;
use crate::ledger::key_value::store::Store;
use crate::ledger::record::{Record, Unreadable};
use crate::ledger::{LedgerError, Opened, Remaining, StoreError, Visit};
use crate::port::Environment;

/// Times that a read starts again because the user enrolled meanwhile.
const ATTEMPTS: u32 = 3;
/// Users removed at once.
const REMOVALS_AT_ONCE: usize = 8;

impl<S: Store + Clone, E: Environment + Clone> KeyValueLedger<S, E> {
    /// The head, and the record that it names or why there is none to use, which is an alarm where it should not be.
    pub(super) async fn current(
        &self,
        user: &User,
    ) -> Result<(Head, Result<Record, LedgerError>), LedgerError> {
        for _ in 0..ATTEMPTS {
            let head = self.head(user).await?.ok_or(LedgerError::NotEnrolled)?;
            let (off_key, record_key) = (
                self.layout.off(&user.id, &head.nonce),
                self.layout.record(&user.id, &head.nonce),
            );
            let (off, record) = join(self.store.get(&off_key), self.store.get(&record_key)).await;
            if off?.is_some() {
                return Ok((head, Err(LedgerError::NoRefreshToken)));
            }
            if let Some(json) = record? {
                let record = Record::from_json(&json).map_err(|unreadable| {
                    self.env.alarm_about("record_not_readable", user);
                    unreadable.into()
                });
                return Ok((head, record));
            }
            // Gone between the reads, because the token was removed, the user enrolled again or was removed; or lost. A
            // removal is looked for before the head, since nothing clears it away while the head names its enrolment.
            let off = self.store.get(&off_key).await?;
            match self.head(user).await? {
                None => return Err(LedgerError::NotEnrolled),
                Some(again) if again.nonce == head.nonce => {
                    if off.is_some() {
                        return Ok((head, Err(LedgerError::NoRefreshToken)));
                    }
                    self.env.alarm_about("record_lost", user);
                    return Ok((head, Err(LedgerError::RecordLost)));
                }
                Some(_) => {}
            }
        }
        Err(LedgerError::Busy)
    }

    /// A removal that was acknowledged before this began is seen, because the two reads are one after the other in this
    /// order: `off` is cleared only after the head has left the enrolment, so whoever finds no `off`, and then the head in
    /// its place, has found both. Side by side, or the head first, a removal and the enrolment after it can pass between.
    pub(super) async fn is_still_current(
        &self,
        user: &User,
        nonce: &Nonce,
    ) -> Result<bool, LedgerError> {
        let off = self.store.get(&self.layout.off(&user.id, nonce)).await?;
        match self.head(user).await? {
            None => Err(LedgerError::NotEnrolled),
            Some(head) if head.nonce == *nonce => match off {
                None => Ok(true),
                Some(_) => Err(LedgerError::NoRefreshToken),
            },
            Some(_) => Ok(false),
        }
    }

    /// "Enrol". True: there was no enrolment before.
    pub(super) async fn commit(
        &self,
        user: &User,
        nonce: &Nonce,
        record: &Record,
    ) -> Result<bool, LedgerError> {
        let (head_key, bar_key) = (self.layout.head(user), self.layout.bar(&user.tenant));
        if self.store.get(&bar_key).await?.is_some() {
            return Err(LedgerError::TenantRemoved);
        }
        let former = self.store.get(&head_key).await?;
        let former = match former.map(|json| Head::from_json(&json)) {
            None => None,
            Some(Ok(head)) => Some(Some(head.nonce)),
            // A head that cannot be read names nothing any more. Enrolling is what mends it.
            Some(Err(Unreadable::Damaged)) => Some(None),
            Some(Err(Unreadable::Newer)) => return Err(LedgerError::RecordTooNew),
        };
        let marker = self.layout.marker(&Marker::of(user, nonce, record));
        self.store.set(&marker, &[]).await?;
        let record_key = self.layout.record(&user.id, nonce);
        self.store.set(&record_key, &record.to_json()).await?;
        // The commit. Never retried and never undone: it may have happened.
        let head = Head {
            nonce: nonce.clone(),
            tenant: user.tenant.clone(),
            created_at: record.enrolled_at,
        };
        self.store.set(&head_key, &head.to_json()).await?;
        // Again, because a removal of the tenant lists the heads once. This is a removal of its own.
        if self.store.get(&bar_key).await?.is_some() {
            self.remove_user(user).await?;
            return Err(LedgerError::TenantRemoved);
        }
        let is_new = former.is_none();
        if let Some(former) = former.flatten() {
            self.forget(user, &former).await;
        }
        Ok(is_new)
    }

    /// "Remove a user".
    pub(super) async fn remove_user(&self, user: &User) -> Result<(), StoreError> {
        let key = self.layout.head(user);
        let head = self.store.get(&key).await?;
        // The commit; also when there seems to be none.
        self.store.delete(&key).await?;
        if let Some(head) = head.and_then(|json| Head::from_json(&json).ok()) {
            self.forget(user, &head.nonce).await;
        }
        Ok(())
    }

    /// Steps 2 to 4 of "Remove the token".
    pub(super) async fn remove_token_of(
        &self,
        user: &User,
        nonce: &Nonce,
    ) -> Result<(), StoreError> {
        // The commit. Its value is for whoever clears it away: whose head to look for.
        let tenant = user.tenant.as_str().as_bytes();
        self.store
            .set(&self.layout.off(&user.id, nonce), tenant)
            .await?;
        self.forget_record(user, nonce, &[]).await
    }

    /// Removes every user of a tenant, as many as there is time for.
    pub(super) async fn remove_users_of(
        &self,
        tenant: &TenantId,
        until: Deadline,
        removed: &mut dyn FnMut(&User),
    ) -> Result<Remaining, LedgerError> {
        // Before the listing: whoever enrols looks for it after the head is written, and so is either listed, or sees it.
        self.store.set(&self.layout.bar(tenant), &[]).await?;
        let users: Vec<_> = {
            if self.is_listing.replace(true) {
                return Err(LedgerError::Busy);
            }
            let _turn = Turn(self);
            let listing = Listing::read(&self.layout, &self.store).await?;
            let users = listing.users();
            users.filter(|user| user.tenant == *tenant).collect()
        };
        let mut removals = stream::iter(users)
            .map(|user| async move {
                if until.is_over(&self.env) {
                    return Ok(None);
                }
                self.remove_user(&user).await?;
                Ok::<_, StoreError>(Some(user))
            })
            .buffer_unordered(REMOVALS_AT_ONCE);
        let (mut left, mut failed) = (0_u64, None);
        while let Some(removal) = removals.next().await {
            match removal {
                Ok(Some(user)) => removed(&user),
                Ok(None) => left = left.saturating_add(1),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        if left == 0 {
            self.store.delete(&self.layout.bar(tenant)).await?;
        }
        Ok(Remaining(left))
    }

    /// "Open": what a place leads to, sorted out if it is no usable record.
    pub(super) async fn look_at(&self, visit: &Visit<Place>) -> Result<Opened, StoreError> {
        let (head, record) = match self.current(&visit.user).await {
            Ok(current) => current,
            Err(LedgerError::Store(error)) => return Err(error),
            Err(LedgerError::NotEnrolled | LedgerError::Busy) => return Ok(Opened::Gone),
            // A head that cannot be read may name this enrolment.
            Err(_) => {
                self.env.alarm_about("head_not_readable", &visit.user);
                return Ok(Opened::NotReadable);
            }
        };
        Ok(match record {
            // Another enrolment's: what is left of it is cleared when it is old.
            _ if head.nonce != visit.nonce => Opened::Gone,
            Err(LedgerError::NoRefreshToken) => Opened::Gone,
            Ok(record) => Opened::Record {
                is_own: (visit.claims.iter()).all(|place| place.write == record.write),
                record: Box::new(record),
            },
            Err(_) => Opened::NotReadable,
        })
    }

    pub(super) async fn head(&self, user: &User) -> Result<Option<Head>, LedgerError> {
        let json = self.store.get(&self.layout.head(user)).await?;
        json.map(|json| Head::from_json(&json))
            .transpose()
            .map_err(Into::into)
    }

    pub(super) async fn delete_each(
        &self,
        keys: impl IntoIterator<Item = &str>,
    ) -> Result<(), StoreError> {
        for key in keys {
            self.store.delete(key).await?;
        }
        Ok(())
    }

    /// Clears what belongs to an enrolment that no head names any more. What fails here is litter for a sweep.
    async fn forget(&self, user: &User, nonce: &Nonce) {
        let off = self.layout.off(&user.id, nonce);
        if let Err(error) = self.forget_record(user, nonce, &[&off]).await {
            self.env
                .about("litter_left", user, json!({"reason": error.to_string()}));
        }
    }

    /// Clears the record of an enrolment, and then other keys of it and the marker that the record names.
    async fn forget_record(
        &self,
        user: &User,
        nonce: &Nonce,
        others: &[&str],
    ) -> Result<(), StoreError> {
        let key = self.layout.record(&user.id, nonce);
        let record = self.store.get(&key).await?;
        self.store.delete(&key).await?;
        self.delete_each(others.iter().copied()).await?;
        if let Some(Ok(record)) = record.map(|json| Record::from_json(&json)) {
            let marker = Marker::of(user, nonce, &record);
            self.store.delete(&self.layout.marker(&marker)).await?;
        }
        Ok(())
    }
}

/// The turn to list, given back when it is dropped, however that comes about.
struct Turn<'a, S, E>(&'a KeyValueLedger<S, E>);

impl<S, E> Drop for Turn<'_, S, E> {
    fn drop(&mut self) {
        self.0.is_listing.set(false);
    }
}
