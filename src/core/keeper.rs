//! The keeper: what is done for whom, over a vault and a ledger. It holds no secret, and knows nothing of how a ledger keeps
//! what it keeps.

pub(crate) mod audit;
pub mod calls;
pub(crate) mod course;
pub mod fingerprint;
pub(crate) mod holds;
pub mod report;
pub(crate) mod rules;
pub mod status;
pub mod sweep;
#[cfg(test)]
mod tests;
pub(crate) mod turns;
pub(crate) mod verdict;
pub(crate) mod visit;

use std::cell::RefCell;

use futures_util::future::join;
use serde_json::json;
use thiserror::Error;

use crate::deadline::{Deadline, LONGEST};
use crate::error::VaultError;
use crate::identity::{Nonce, User};
use crate::journal::Journal as _;
use crate::keeper::audit::{Action, Entry};
use crate::keeper::fingerprint::{ChangedSettings, Seen};
use crate::keeper::rules::Rules;
use crate::keeper::verdict::{Verdict, Work, verdict};
use crate::ledger::record::{Record, Status};
use crate::ledger::schedule::{refresh_due_at, turn_again_at};
use crate::ledger::{Change, Edit, Enrolled, Ledger, LedgerError, StoreError};
use crate::port::Environment;
use crate::secret::Bearer;
use crate::vault::port::{
    Caller, Draw, Issued, Kept, KeptOutcome, Policy, Purpose, Remembered, SealedToken, Subject,
    VaultPort,
};

/// Age of a stored refresh token from which a successor is stored when one comes along with an access token, in seconds.
const REPLACE_AFTER: u64 = 86_400;
/// Times that a draw starts again because the user enrolled meanwhile.
const ATTEMPTS: u32 = 3;

/// Keeps the records of users: the HTTP component, without HTTP.
pub struct Keeper<V, L, E> {
    pub(crate) vault: V,
    pub(crate) ledger: L,
    pub(crate) env: E,
    /// How it sweeps.
    pub(crate) rules: Rules,
    seen: RefCell<Option<Seen>>,
}

/// What is asked for a user: by whom, and about whom.
pub struct Request<'a> {
    /// What its answer and the log know it by.
    pub id: &'a str,
    /// The caller's token.
    pub bearer: &'a Bearer,
    /// The user whom it is about.
    pub subject: Subject,
}

#[cfg(test)]
impl<'a> Request<'a> {
    /// One of a test, about the caller's own user.
    pub(crate) fn of(bearer: &'a Bearer) -> Self {
        Self {
            id: "test",
            bearer,
            subject: Subject::Me,
        }
    }
}

/// Why an operation failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum KeeperError {
    /// The vault refused or failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The ledger refused or failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Entra ID refused the same a moment ago, and is not asked again yet.
    #[error("{}", .0.error)]
    Remembered(Remembered),
    /// Settings are not those that what is stored was made with.
    #[error(transparent)]
    ChangedSettings(#[from] ChangedSettings),
}

impl KeeperError {
    /// A word for it that stays the same from version to version: the `code` of the API's problems.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Vault(error) => error.code(),
            Self::Ledger(error) => error.code(),
            Self::Remembered(remembered) => remembered.error.code(),
            Self::ChangedSettings(_) => "settings_changed",
        }
    }
}

impl From<StoreError> for KeeperError {
    fn from(error: StoreError) -> Self {
        Self::Ledger(error.into())
    }
}

/// What a user may know of an enrolment. Never a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// The state; none: application access was removed.
    pub record: Option<Record>,
    /// Unix time in seconds of the enrolment.
    pub enrolled_at: u64,
}

impl<V: VaultPort, L: Ledger, E: Environment> Keeper<V, L, E> {
    /// A keeper over a vault and a ledger.
    pub const fn new(vault: V, ledger: L, env: E) -> Self {
        Self {
            vault,
            ledger,
            env,
            rules: Rules::SHIPPED,
            seen: RefCell::new(None),
        }
    }

    /// Enrols the caller's user. True if there was no enrolment before.
    ///
    /// A failed exchange leaves the former enrolment as it was: nothing is written before the vault has answered.
    ///
    /// # Errors
    /// [`KeeperError`]. After [`LedgerError::Store`] the user may be enrolled or not; the caller tries again.
    pub async fn enrol(
        &self,
        request: &Request<'_>,
        scope: Option<&str>,
    ) -> Result<(View, bool), KeeperError> {
        let mut entry = Entry::new(&self.env, Action::Enrol, request);
        let enrolled = self.enrol_user(request, scope, &mut entry).await;
        entry.close(enrolled)
    }

    async fn enrol_user(
        &self,
        request: &Request<'_>,
        scope: Option<&str>,
        entry: &mut Entry<'_, E>,
    ) -> Result<(View, bool), KeeperError> {
        let deadline = Deadline::within(&self.env, LONGEST);
        if let Some(scope) = scope {
            entry.scope(scope);
        }
        let caller = self.identify(request, entry, Purpose::Enrol).await?;
        let now = self.env.now();
        let nonce = Nonce::for_enrolment(now, &self.env);
        let terms = entry.terms(deadline.left(&self.env));
        let enrolment = self.vault.enrol(request.bearer, &nonce, scope, terms);
        // Mostly the look below costs nothing then. It is made all the same, with the settings that were enrolled under, and
        // not before: of an enrolment that fails nothing is kept.
        let ledger = self.ledger.under(&caller.policy.store_prefix);
        let (enrolment, _) = join(enrolment, self.has_seen(&ledger, &caller.policy)).await;
        let enrolment = enrolment?;
        entry.scope(&enrolment.scope);
        let (user, policy) = (&enrolment.user, &enrolment.policy);
        let record = Record {
            tenant: user.tenant.clone(),
            sealed: enrolment.sealed.token,
            key_version: enrolment.sealed.key_version,
            scope: enrolment.scope,
            enrolled_by: enrolment.app,
            status: Status::Active,
            generation: 1,
            write: Nonce::for_write(&self.env),
            enrolled_at: now,
            refreshed_at: now,
            due_at: refresh_due_at(now, policy.refresh_after_seconds, &user.id),
        };
        let ledger = self.open(policy).await?;
        let is_new = ledger.enrol(user, &nonce, &record).await?;
        let view = View {
            enrolled_at: now,
            record: Some(record),
        };
        Ok((view, is_new))
    }

    /// What is stored of a user.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn show(&self, request: &Request<'_>) -> Result<View, KeeperError> {
        let mut entry = Entry::new(&self.env, Action::Show, request);
        let shown = self.show_user(request, &mut entry).await;
        entry.close(shown)
    }

    async fn show_user(
        &self,
        request: &Request<'_>,
        entry: &mut Entry<'_, E>,
    ) -> Result<View, KeeperError> {
        let Caller { user, policy, .. } = self.identify(request, entry, Purpose::Manage).await?;
        let ledger = self.ledger.under(&policy.store_prefix);
        let enrolled = self.read(&ledger, &policy, ledger.find(&user)).await??;
        let record = match enrolled.record {
            Ok(record) => Some(record),
            Err(LedgerError::NoRefreshToken) => None,
            Err(error) => return Err(error.into()),
        };
        let enrolled_at =
            (record.as_ref()).map_or(enrolled.enrolled_at, |record| record.enrolled_at);
        Ok(View {
            record,
            enrolled_at,
        })
    }

    /// Draws an access token for a user.
    ///
    /// # Errors
    /// [`KeeperError`]. What Entra ID refuses of the enrolment's own scope is also written down, as a sweep would.
    pub async fn draw(
        &self,
        request: &Request<'_>,
        scope: Option<String>,
        claims: Option<String>,
    ) -> Result<Issued, KeeperError> {
        let mut entry = Entry::new(&self.env, Action::Draw, request);
        let drawn = self.draw_for_user(request, scope, claims, &mut entry).await;
        entry.close(drawn)
    }

    async fn draw_for_user(
        &self,
        request: &Request<'_>,
        scope: Option<String>,
        claims: Option<String>,
        entry: &mut Entry<'_, E>,
    ) -> Result<Issued, KeeperError> {
        let deadline = Deadline::within(&self.env, LONGEST);
        if let Some(scope) = &scope {
            entry.scope(scope);
        }
        let mut draw = Draw {
            scope,
            claims,
            replace: false,
        };
        let purpose = Purpose::Draw(draw.clone());
        let caller = self.identify(request, entry, purpose).await?;
        let Caller { user, policy, .. } = caller;
        let ledger = self.ledger.under(&policy.store_prefix);
        if let Some(kept) = caller.kept
            && self
                .is_current(&ledger, &policy, &user, &kept.nonce)
                .await?
        {
            return kept_again(kept, entry);
        }
        for _ in 0..ATTEMPTS {
            let found = self.read(&ledger, &policy, ledger.find(&user)).await?;
            let Enrolled { nonce, record, .. } = found?;
            let record = record?;
            entry.scope(draw.scope.as_ref().unwrap_or(&record.scope));
            let is_own = (draw.scope.as_ref()).is_none_or(|scope| *scope == record.scope);
            draw.replace = self.is_replaced(&record, is_own);
            let terms = entry.terms(deadline.left(&self.env));
            let drawn = self.vault.access_token(
                request.bearer,
                &request.subject,
                &nonce,
                &record.sealed,
                draw.clone(),
                terms,
            );
            let mut issued = match drawn.await {
                Ok(issued) => issued,
                Err(error) => {
                    // Other scopes and other claims say nothing of the enrolment.
                    let is_own = is_own && draw.claims.is_none();
                    let of = (&user, &nonce);
                    self.note_refusal(&ledger, of, record, is_own, &error).await;
                    return Err(error.into());
                }
            };
            entry.drawn(&issued, false);
            if let Some(sealed) = issued.replacement.take() {
                let new = self.replaced(&user, &record, sealed, &policy, is_own);
                self.replace(&ledger, &user, &nonce, record, new).await;
            }
            if ledger.still_current(&user, &nonce).await? {
                return Ok(issued);
            }
        }
        Err(LedgerError::Busy.into())
    }

    /// Removes application access: the refresh token goes, the user stays enrolled without one. Idempotent.
    ///
    /// # Errors
    /// [`KeeperError`]. After [`LedgerError::Store`] it may have happened; repeat until it succeeds.
    pub async fn remove_refresh_token(&self, request: &Request<'_>) -> Result<(), KeeperError> {
        let mut entry = Entry::new(&self.env, Action::RemoveRefreshToken, request);
        let removed = match self.find_ledger(request, &mut entry, Purpose::Manage).await {
            Ok((caller, ledger)) => {
                let removed = ledger.remove_token(&caller.user).await;
                self.vault.forget(&caller.user);
                removed.map_err(Into::into)
            }
            Err(error) => Err(error),
        };
        entry.close(removed)
    }

    /// Removes a user. Idempotent.
    ///
    /// # Errors
    /// [`KeeperError`]. After [`LedgerError::Store`] it may have happened; repeat until it succeeds.
    pub async fn remove(&self, request: &Request<'_>) -> Result<(), KeeperError> {
        let mut entry = Entry::new(&self.env, Action::RemoveUser, request);
        let removed = match self.find_ledger(request, &mut entry, Purpose::Manage).await {
            Ok((caller, ledger)) => {
                let removed = ledger.remove(&caller.user).await;
                self.vault.forget(&caller.user);
                removed.map_err(Into::into)
            }
            Err(error) => Err(error),
        };
        entry.close(removed)
    }

    // ---- Steps that several operations share ----

    /// Who calls about whom, if the vault lets him; only then the ledger that has it.
    async fn find_ledger(
        &self,
        request: &Request<'_>,
        entry: &mut Entry<'_, E>,
        purpose: Purpose,
    ) -> Result<(Caller, L), KeeperError> {
        let caller = self.identify(request, entry, purpose).await?;
        let ledger = self.open(&caller.policy).await?;
        Ok((caller, ledger))
    }

    /// Who calls about whom, if the vault lets him.
    async fn identify(
        &self,
        request: &Request<'_>,
        entry: &mut Entry<'_, E>,
        purpose: Purpose,
    ) -> Result<Caller, KeeperError> {
        let terms = entry.terms(LONGEST);
        let caller = self
            .vault
            .identify(request.bearer, &request.subject, &purpose, terms);
        let caller = caller.await?;
        entry.caller(&caller);
        Ok(caller)
    }

    /// The ledger of the app with these settings, once it is seen that they are those that what it holds was made with.
    pub(crate) async fn open(&self, policy: &Policy) -> Result<L, KeeperError> {
        let ledger = self.ledger.under(&policy.store_prefix);
        self.check_fingerprint(&ledger, policy).await?;
        Ok(ledger)
    }

    /// Reads what the ledger has, and beside it what [`Self::open`] does. If settings are others than those that it was made
    /// with, nothing of what was read is told.
    async fn read<T>(
        &self,
        ledger: &L,
        policy: &Policy,
        reading: impl Future<Output = Result<T, LedgerError>>,
    ) -> Result<Result<T, LedgerError>, KeeperError> {
        let (seen, read) = join(self.check_fingerprint(ledger, policy), reading).await;
        seen?;
        Ok(read)
    }

    /// Compares the settings with those that the ledger has seen. Costs nothing for a time after they were found right.
    async fn check_fingerprint(&self, ledger: &L, policy: &Policy) -> Result<(), KeeperError> {
        if self.has_seen(ledger, policy).await? {
            return Ok(());
        }
        let current = &policy.fingerprint;
        match ledger.fingerprint().await? {
            Some(known) if known == *current => {}
            None => ledger.keep_fingerprint(current).await?,
            Some(known) => {
                fingerprint::check(&known, policy)?;
                ledger.keep_fingerprint(current).await?;
                let changed = ChangedSettings::between(&known, current);
                let settings = json!({"settings": changed.settings});
                self.env.event("changed_settings_confirmed", settings);
            }
        }
        *self.seen.borrow_mut() = Some(Seen::new(policy, self.env.elapsed()));
        Ok(())
    }

    /// Whether the ledger has seen these settings and no others since. Writes nothing.
    async fn has_seen(&self, ledger: &L, policy: &Policy) -> Result<bool, LedgerError> {
        let now = self.env.elapsed();
        let covers = |seen: &Seen| seen.covers(policy, now);
        if self.seen.borrow().as_ref().is_some_and(covers) {
            return Ok(true);
        }
        let is_same = ledger.fingerprint().await?.as_ref() == Some(&policy.fingerprint);
        if is_same {
            *self.seen.borrow_mut() = Some(Seen::new(policy, now));
        }
        Ok(is_same)
    }

    /// Whether what was drawn before is of the user's current enrolment. If not, the vault forgets it.
    async fn is_current(
        &self,
        ledger: &L,
        policy: &Policy,
        user: &User,
        nonce: &Nonce,
    ) -> Result<bool, KeeperError> {
        let current = ledger.still_current(user, nonce);
        let current = self.read(ledger, policy, current).await?;
        if let Ok(false) | Err(LedgerError::NotEnrolled | LedgerError::NoRefreshToken) = current {
            self.vault.forget(user);
        }
        Ok(current?)
    }

    /// Whether the refresh token's successor is wanted. What was refused, and works again, is not to be called refused any longer.
    fn is_replaced(&self, record: &Record, is_own: bool) -> bool {
        let age = self.env.now().saturating_sub(record.refreshed_at);
        age >= REPLACE_AFTER || (is_own && record.status != Status::Active)
    }

    /// The record with that. Another scope than its own says nothing of whose turn it is.
    fn replaced(
        &self,
        user: &User,
        old: &Record,
        sealed: SealedToken,
        policy: &Policy,
        is_own: bool,
    ) -> Record {
        let mut new = self.refreshed(user, old, sealed, policy);
        if !is_own && old.status != Status::Active {
            new.status = old.status.clone();
            new.due_at = old.due_at;
        }
        new
    }

    /// What a refusal of a draw says of the record.
    async fn note_refusal(
        &self,
        ledger: &L,
        (user, nonce): (&User, &Nonce),
        record: Record,
        is_own: bool,
        error: &VaultError,
    ) {
        if let VaultError::Stored(_) = error {
            self.env.alarm_about("sealed_token_does_not_open", user);
        }
        if is_own {
            self.note_turn(ledger, user, nonce, record, error).await;
        }
    }

    /// A record with the successor of its refresh token.
    pub(crate) fn refreshed(
        &self,
        user: &User,
        old: &Record,
        sealed: SealedToken,
        policy: &Policy,
    ) -> Record {
        let now = self.env.now();
        Record {
            sealed: sealed.token,
            key_version: sealed.key_version,
            status: Status::Active,
            generation: old.generation.saturating_add(1),
            write: Nonce::for_write(&self.env),
            refreshed_at: now,
            due_at: refresh_due_at(now, policy.refresh_after_seconds, &user.id),
            ..old.clone()
        }
    }

    /// Writes down whose turn it is, once, as a sweep does: whoever asks for the user is told it then.
    async fn note_turn(
        &self,
        ledger: &L,
        user: &User,
        nonce: &Nonce,
        old: Record,
        error: &VaultError,
    ) {
        if let Verdict::Turn(status) = verdict(error, Work::Refresh)
            && status != old.status
        {
            let new = self.turned(&old, status);
            self.replace(ledger, user, nonce, old, new).await;
        }
    }

    /// A record of which it is somebody else's turn. The token and its generation stay.
    pub(crate) fn turned(&self, old: &Record, status: Status) -> Record {
        let now = self.env.now();
        Record {
            status,
            write: Nonce::for_write(&self.env),
            due_at: turn_again_at(now, old.refreshed_at, &self.env),
            ..old.clone()
        }
    }

    /// Best effort: the answer that came along is as good if this is overtaken or fails, and so is what is stored. The next
    /// draw brings another.
    async fn replace(&self, ledger: &L, user: &User, nonce: &Nonce, old: Record, new: Record) {
        let change = Change {
            user: user.clone(),
            nonce: nonce.clone(),
            claims: Vec::new(),
            edit: Edit::Replace {
                old: Box::new(old),
                new: Box::new(new),
            },
        };
        for made in ledger.settle(&[&change]).await {
            if let Err(error) = made {
                let reason = json!({"reason": error.to_string()});
                self.env.about("replacement_not_stored", user, reason);
            }
        }
    }
}

/// What a draw came to before, once it is known that its enrolment still is the user's.
fn kept_again<E: Environment>(kept: Kept, entry: &mut Entry<'_, E>) -> Result<Issued, KeeperError> {
    entry.scope(&kept.scope);
    match kept.outcome {
        KeptOutcome::Issued(issued) => {
            entry.drawn(&issued, true);
            Ok(issued)
        }
        KeptOutcome::Refused(remembered) => Err(KeeperError::Remembered(remembered)),
    }
}

/// Likewise for a call, of which the vault tells refusals alone.
fn kept_refusal(kept: Kept) -> KeeperError {
    match kept.outcome {
        KeptOutcome::Refused(remembered) => KeeperError::Remembered(remembered),
        KeptOutcome::Issued(_) => LedgerError::Busy.into(),
    }
}
