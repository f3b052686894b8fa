//! The keeper: storage, step by step as facts/storage-protocol.md has it.
//!
//! Only enrolment writes a head and only removal deletes one. Everything else lives under keys private to one enrolment,
//! so that a writer who was overtaken can only litter a place that nobody reads. The order of the steps is what makes it
//! hold without compare-and-swap: do not reorder, retry or undo one without the checker of that page.

use futures_util::future::join;
use serde_json::json;
use thiserror::Error;

use crate::error::VaultError;
use crate::identity::{Nonce, StorageId};
use crate::layout::{Layout, Marker, Tag};
use crate::port::{Clock, Draw, Issued, Log, Policy, Random, SealedToken, Store, StoreError, User, VaultPort};
use crate::record::{Head, Record, Status, Unreadable};
use crate::secret::Bearer;

/// Age of a stored refresh token from which a successor is stored when one comes along with an access token, in seconds.
const REPLACE_AFTER: u64 = 86_400;
/// Times that a read starts again because the user enrolled meanwhile.
const ATTEMPTS: u32 = 3;

/// What a keeper needs besides a vault and a store.
pub trait Environment: Clock + Random + Log {}
impl<E: Clock + Random + Log> Environment for E {}

/// Keeps the records of users: the HTTP component, without HTTP.
pub struct Keeper<V, S, E> {
    pub(crate) vault: V,
    pub(crate) store: S,
    pub(crate) env: E,
}

/// Why an operation failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum KeeperError {
    /// The vault refused or failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Storage failed. What was asked for may have happened.
    #[error("storage does not answer as it should; try again later")]
    Store(#[from] StoreError),
    /// The user is not enrolled, or is none of the caller's: the two are not told apart.
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
    /// The head names a record that is not there.
    #[error("the stored record is missing: enrol again with PUT /v1/me")]
    RecordLost,
    /// The user kept enrolling while this was tried.
    #[error("this user is being enrolled right now; try again")]
    Busy,
}

/// What a user may know of an enrolment. Never a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// The state; none: application access was removed.
    pub record: Option<Record>,
    /// Unix time in seconds of the enrolment.
    pub enrolled_at: u64,
}

impl<V: VaultPort, S: Store, E: Environment> Keeper<V, S, E> {
    /// A keeper over a vault and a store.
    pub const fn new(vault: V, store: S, env: E) -> Self {
        Self { vault, store, env }
    }

    /// Enrols the caller's user. True if there was no enrolment before.
    ///
    /// A failed exchange leaves the former enrolment as it was: nothing is written before the vault has answered.
    ///
    /// # Errors
    /// [`KeeperError`]. After [`KeeperError::Store`] the user may be enrolled or not; the caller tries again.
    pub async fn enroll(&self, bearer: &Bearer, scope: Option<&str>) -> Result<(View, bool), KeeperError> {
        let now = self.env.now();
        let nonce = Nonce::for_enrolment(now, &self.env);
        let enrolment = self.vault.enroll(bearer, &nonce, scope).await?;
        let (user, layout) = (&enrolment.user, Layout::new(&enrolment.policy.store_prefix));
        let record = Record {
            tenant: user.tenant.clone(),
            sealed: enrolment.sealed.token,
            key_version: enrolment.sealed.key_version,
            scope: enrolment.scope,
            status: Status::Active,
            generation: 1,
            write: Nonce::for_write(&self.env),
            enrolled_at: now,
            refreshed_at: now,
            due_at: now.saturating_add(enrolment.policy.refresh_after_seconds.into()),
        };

        let head_key = layout.head(user);
        let former = match self.store.get(&head_key).await?.map(|json| Head::from_json(&json)) {
            None => None,
            Some(Ok(head)) => Some(Some(head.nonce)),
            // A head that cannot be read names nothing any more. Enrolling is what mends it.
            Some(Err(Unreadable::Damaged)) => Some(None),
            Some(Err(Unreadable::Newer)) => return Err(KeeperError::RecordTooNew),
        };
        self.store.set(&layout.marker(&marker_of(user, &nonce, &record)), &[]).await?;
        self.store.set(&layout.record(&user.id, &nonce), &record.to_json()).await?;
        // The commit. Never retried and never undone: it may have happened.
        let head = Head { nonce, tenant: user.tenant.clone(), created_at: now };
        self.store.set(&head_key, &head.to_json()).await?;
        let created = former.is_none();
        if let Some(former) = former.flatten() {
            self.forget(&layout, user, &former).await;
        }
        self.audit("enrolled", user);
        Ok((View { enrolled_at: now, record: Some(record) }, created))
    }

    /// What is stored of the caller's user.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn show(&self, bearer: &Bearer) -> Result<View, KeeperError> {
        let (user, policy) = self.vault.identify(bearer).await?;
        let layout = Layout::new(&policy.store_prefix);
        let (head, current) = self.current(&layout, &user).await?;
        let record = match current {
            Ok(record) => Some(record),
            Err(KeeperError::NoRefreshToken) => None,
            Err(error) => return Err(error),
        };
        Ok(View { enrolled_at: record.as_ref().map_or(head.created_at, |record| record.enrolled_at), record })
    }

    /// Draws an access token for the caller's user.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn draw(&self, bearer: &Bearer, scope: Option<String>, claims: Option<String>) -> Result<Issued, KeeperError> {
        let (user, policy) = self.vault.identify(bearer).await?;
        let layout = Layout::new(&policy.store_prefix);
        for _ in 0..ATTEMPTS {
            let (head, current) = self.current(&layout, &user).await?;
            let record = current?;
            let age = self.env.now().saturating_sub(record.refreshed_at);
            let draw = Draw { scope: scope.clone(), claims: claims.clone(), replace: age >= REPLACE_AFTER };
            let mut issued = match self.vault.access_token(bearer, &head.nonce, &record.sealed, draw).await {
                Ok(issued) => issued,
                Err(error) => {
                    if matches!(error, VaultError::Stored(_)) {
                        self.alarm("sealed_token_does_not_open", &user);
                    }
                    return Err(error.into());
                }
            };
            if let Some(sealed) = issued.replacement.take() {
                let next = self.refreshed(&record, sealed, &policy);
                self.replace(&Replace { layout: &layout, user: &user, nonce: &head.nonce, old: &record, visited: None }, next).await?;
            }
            // The head again, before anything is released: not in parallel with Entra ID, though that would be faster
            // by one read, so that no access token leaves after a removal that was acknowledged before Entra ID answered.
            match self.head(&layout, &user).await? {
                None => return Err(KeeperError::NotEnrolled),
                Some(now) if now.nonce == head.nonce => {
                    self.audit("access_token_drawn", &user);
                    return Ok(issued);
                }
                Some(_) => {}
            }
        }
        Err(KeeperError::Busy)
    }

    /// Removes application access: the refresh token goes, the user stays enrolled without one. Idempotent.
    ///
    /// # Errors
    /// [`KeeperError`]. After [`KeeperError::Store`] it may have happened; repeat until it succeeds.
    pub async fn remove_refresh_token(&self, bearer: &Bearer) -> Result<(), KeeperError> {
        let (user, policy) = self.vault.identify(bearer).await?;
        let layout = Layout::new(&policy.store_prefix);
        if let Some(head) = self.head(&layout, &user).await? {
            // The commit.
            self.store.set(&layout.off(&user.id, &head.nonce), &[]).await?;
            let key = layout.record(&user.id, &head.nonce);
            let record = self.store.get(&key).await?;
            self.store.delete(&key).await?;
            self.forget_marker(&layout, &user, &head.nonce, record.as_deref()).await?;
        }
        self.audit("refresh_token_removed", &user);
        Ok(())
    }

    /// Removes the caller's user. Idempotent.
    ///
    /// # Errors
    /// [`KeeperError`]. After [`KeeperError::Store`] it may have happened; repeat until it succeeds.
    pub async fn remove(&self, bearer: &Bearer) -> Result<(), KeeperError> {
        let (user, policy) = self.vault.identify(bearer).await?;
        let layout = Layout::new(&policy.store_prefix);
        let key = layout.head(&user);
        let head = self.store.get(&key).await?.and_then(|json| Head::from_json(&json).ok());
        // The commit; also when there seems to be none.
        self.store.delete(&key).await?;
        if let Some(head) = head {
            self.forget(&layout, &user, &head.nonce).await;
        }
        self.audit("user_removed", &user);
        Ok(())
    }

    // ---- Steps that several operations share ----

    pub(crate) async fn head(&self, layout: &Layout, user: &User) -> Result<Option<Head>, KeeperError> {
        let json = self.store.get(&layout.head(user)).await?;
        json.map(|json| Head::from_json(&json)).transpose().map_err(Into::into)
    }

    /// The head, and the record that it names or why there is none to use.
    async fn current(&self, layout: &Layout, user: &User) -> Result<(Head, Result<Record, KeeperError>), KeeperError> {
        for _ in 0..ATTEMPTS {
            let head = self.head(layout, user).await?.ok_or(KeeperError::NotEnrolled)?;
            let (off_key, record_key) = (layout.off(&user.id, &head.nonce), layout.record(&user.id, &head.nonce));
            let (off, record) = join(self.store.get(&off_key), self.store.get(&record_key)).await;
            if off?.is_some() {
                return Ok((head, Err(KeeperError::NoRefreshToken)));
            }
            if let Some(json) = record? {
                let record = Record::from_json(&json).map_err(|unreadable| {
                    self.alarm("record_not_readable", user);
                    unreadable.into()
                });
                return Ok((head, record));
            }
            // Gone between the reads, because the user enrolled again or was removed; or lost.
            match self.head(layout, user).await? {
                None => return Err(KeeperError::NotEnrolled),
                Some(again) if again.nonce == head.nonce => {
                    self.alarm("record_lost", user);
                    return Ok((head, Err(KeeperError::RecordLost)));
                }
                Some(_) => {}
            }
        }
        Err(KeeperError::Busy)
    }

    /// A record with the successor of its refresh token.
    pub(crate) fn refreshed(&self, old: &Record, sealed: SealedToken, policy: &Policy) -> Record {
        let now = self.env.now();
        Record {
            sealed: sealed.token,
            key_version: sealed.key_version,
            status: Status::Active,
            generation: old.generation.saturating_add(1),
            write: Nonce::for_write(&self.env),
            refreshed_at: now,
            due_at: now.saturating_add(policy.refresh_after_seconds.into()),
            ..old.clone()
        }
    }

    /// Puts a record in another's place: steps 4 to 8 of "Refresh". False: overtaken, and nothing changed.
    pub(crate) async fn replace(&self, at: &Replace<'_>, new: Record) -> Result<bool, KeeperError> {
        let Replace { layout, user, nonce, old, visited } = *at;
        let record_key = layout.record(&user.id, nonce);
        let (head_key, off_key) = (layout.head(user), layout.off(&user.id, nonce));
        let own_marker = layout.marker(&marker_of(user, nonce, &new));
        let names_it = |head: Option<Vec<u8>>| head.and_then(|json| Head::from_json(&json).ok()).is_some_and(|head| head.nonce == *nonce);

        self.store.set(&own_marker, &[]).await?;
        let (head, stored) = join(self.store.get(&head_key), self.store.get(&record_key)).await;
        let stored = stored?.and_then(|json| Record::from_json(&json).ok());
        // A re-seal keeps the generation, and must not be laid over a write that it has not seen.
        let as_before = |stored: &Record| {
            stored.generation == old.generation && (new.generation != old.generation || stored.write == old.write)
        };
        if !names_it(head?) || !stored.as_ref().is_some_and(as_before) {
            self.store.delete(&own_marker).await?;
            return Ok(false);
        }
        self.store.set(&record_key, &new.to_json()).await?;
        let (head, off) = join(self.store.get(&head_key), self.store.get(&off_key)).await;
        if off?.is_some() || !names_it(head?) {
            self.store.delete(&record_key).await?;
            self.store.delete(&own_marker).await?;
            return Ok(false);
        }
        // Others' markers only now that an own one is set.
        if let Some(visited) = visited {
            self.store.delete(visited).await?;
        }
        let old_marker = layout.marker(&marker_of(user, nonce, old));
        if visited != Some(old_marker.as_str()) {
            self.store.delete(&old_marker).await?;
        }
        Ok(true)
    }

    /// Clears what belongs to an enrolment that no head names any more. What fails here is litter for a sweep.
    async fn forget(&self, layout: &Layout, user: &User, nonce: &Nonce) {
        let outcome = async {
            let key = layout.record(&user.id, nonce);
            let record = self.store.get(&key).await?;
            self.store.delete(&key).await?;
            self.store.delete(&layout.off(&user.id, nonce)).await?;
            self.forget_marker(layout, user, nonce, record.as_deref()).await
        };
        if let Err(error) = outcome.await {
            self.env.line(&json!({"event": "litter_left", "user": user.id.as_str(), "reason": error.to_string()}).to_string());
        }
    }

    async fn forget_marker(&self, layout: &Layout, user: &User, nonce: &Nonce, record: Option<&[u8]>) -> Result<(), StoreError> {
        match record.map(Record::from_json) {
            Some(Ok(record)) => self.store.delete(&layout.marker(&marker_of(user, nonce, &record))).await,
            Some(Err(_)) | None => Ok(()),
        }
    }

    fn audit(&self, event: &str, user: &User) {
        self.env.line(&json!({"event": event, "tenant": user.tenant.as_str(), "user": user.id.as_str()}).to_string());
    }

    pub(crate) fn alarm(&self, event: &str, user: &User) {
        self.env.line(&json!({"level": "alarm", "event": event, "tenant": user.tenant.as_str(), "user": user.id.as_str()}).to_string());
    }
}

/// Where a record is replaced, and what was seen there.
#[derive(Clone, Copy)]
pub(crate) struct Replace<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) user: &'a User,
    pub(crate) nonce: &'a Nonce,
    pub(crate) old: &'a Record,
    /// Key of the marker that led here; none when a caller did.
    pub(crate) visited: Option<&'a str>,
}

/// The marker that goes with a record.
pub(crate) fn marker_of(user: &User, nonce: &Nonce, record: &Record) -> Marker {
    let id: StorageId = user.id.clone();
    Marker {
        time: record.due_at,
        tag: Tag::of(&record.status),
        key_version: record.key_version.clone(),
        user: User { tenant: user.tenant.clone(), id },
        nonce: nonce.clone(),
        write: record.write.clone(),
    }
}

impl From<Unreadable> for KeeperError {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Damaged => Self::RecordDamaged,
            Unreadable::Newer => Self::RecordTooNew,
        }
    }
}
