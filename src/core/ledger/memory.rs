//! A ledger in a map, for tests: every call is one transaction, and claims are leases. It shows that nothing above the port
//! depends on key-value storage, and what an implementation on a database has to do.
//!
//! A test can have it make a [`Mistake`], to see that the suite of [`super::conformance`] notices.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::deadline::Deadline;
use crate::identity::{Fingerprint, KeyVersion, Nonce, StorageId, TenantId, User};
use crate::ledger::conformance::Trouble;
use crate::ledger::record::Record;
use crate::ledger::schedule::{Horizon, State};
use crate::ledger::summary::{Summary, TenantSummary, increase};
use crate::ledger::{
    Change, Claimed, Edit, Enrolled, Kind, Ledger, LedgerError, Opened, Outlook, Remaining,
    Settled, StoreError, Survey, Tended, Visit,
};
use crate::port::Random as _;
use crate::simulation::world::Shared;

/// The ledger. A clone is the same one.
#[derive(Clone)]
pub(crate) struct MemoryLedger {
    prefix: String,
    apps: Rc<RefCell<BTreeMap<String, Tables>>>,
    trouble: Rc<Trouble>,
    env: Shared,
    mistake: Option<Mistake>,
}

/// What an implementation can get wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mistake {
    /// Apps see each other's users.
    ForgetsThePrefix,
    /// A failed removal is acknowledged.
    SwallowsErrors,
    /// A removal of a tenant does not keep anybody from enrolling.
    LeavesTheDoorOpen,
    /// A change goes to whatever enrolment there is now.
    OverlooksTheNonce,
    /// A change is laid over another that came first.
    OverlooksTheGeneration,
    /// A change is laid over a re-seal that it has not seen.
    OverlooksTheWrite,
    /// An enrolment in the place of another keeps the time of that.
    KeepsTheFormerTime,
    /// What is put off is not claimed again.
    PutsOffForGood,
    /// Two sweeps get the same work.
    HandsOutTwice,
    /// A lease never ends.
    LeasesForGood,
    /// What a sweep had no time for stays leased.
    GivesNothingBack,
    /// What cannot be read is claimed to be sealed anew.
    ResealsWhatCannotBeRead,
    /// An expired token takes its user along.
    ExpiresTheUser,
    /// Users of all tenants are named to whoever asks for all.
    NamesEverybody,
    /// One change that fails takes the others along.
    FailsTogether,
}

impl Mistake {
    pub(crate) const ALL: [Self; 15] = [
        Self::ForgetsThePrefix,
        Self::SwallowsErrors,
        Self::LeavesTheDoorOpen,
        Self::OverlooksTheNonce,
        Self::OverlooksTheGeneration,
        Self::OverlooksTheWrite,
        Self::KeepsTheFormerTime,
        Self::PutsOffForGood,
        Self::HandsOutTwice,
        Self::LeasesForGood,
        Self::GivesNothingBack,
        Self::ResealsWhatCannotBeRead,
        Self::ExpiresTheUser,
        Self::NamesEverybody,
        Self::FailsTogether,
    ];
}

#[derive(Default)]
struct Tables {
    enrolments: BTreeMap<(TenantId, StorageId), Row>,
    /// Tenants that are being removed.
    barred: BTreeSet<TenantId>,
    /// Key versions that are noted, and since when nothing is under them.
    versions: BTreeMap<(TenantId, KeyVersion), Option<u64>>,
    summary: Option<Summary>,
    sweep_state: Option<Vec<u8>>,
    fingerprint: Option<Fingerprint>,
}

#[derive(Clone)]
struct Row {
    nonce: Nonce,
    enrolled_at: u64,
    /// None: the refresh token was removed.
    token: Option<Token>,
}

/// What there is of an enrolment with a refresh token.
#[derive(Clone)]
struct Token {
    record: Record,
    time: u64,
    state: State,
    leased_until: u64,
    /// The survey that it was handed out after.
    lease: u64,
}

/// What a survey has found.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    horizon: Horizon,
    lease: u64,
}

impl Tables {
    fn used_versions(&self) -> impl Iterator<Item = (TenantId, KeyVersion)> {
        self.enrolments.iter().filter_map(|((tenant, _), row)| {
            let version = &row.token.as_ref()?.record.key_version;
            Some((tenant.clone(), version.clone()))
        })
    }
}

impl Row {
    fn new(nonce: &Nonce, record: &Record) -> Self {
        Self {
            nonce: nonce.clone(),
            enrolled_at: record.enrolled_at,
            token: Some(Token {
                record: record.clone(),
                time: record.due_at,
                state: State::of(record),
                leased_until: 0,
                lease: 0,
            }),
        }
    }
}

impl MemoryLedger {
    pub(crate) fn new(trouble: Rc<Trouble>, env: Shared, mistake: Option<Mistake>) -> Self {
        Self {
            prefix: String::new(),
            apps: Rc::default(),
            trouble,
            env,
            mistake,
        }
    }

    /// One transaction, if it comes about.
    async fn transact<T>(&self, act: impl FnOnce(&mut Tables) -> T) -> Result<T, StoreError> {
        let act = || {
            act(self
                .apps
                .borrow_mut()
                .entry(self.prefix.clone())
                .or_default())
        };
        self.trouble.step(act).await
    }

    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn change(&self, tables: &mut Tables, change: &Change<Nonce>) -> Option<Nonce> {
        let row = tables.enrolments.get_mut(&place(&change.user))?;
        if row.nonce != change.nonce && !self.makes(Mistake::OverlooksTheNonce) {
            return None;
        }
        let token = row.token.as_mut()?;
        match &change.edit {
            Edit::Reschedule { time, state, .. } => {
                (token.time, token.state) = (*time, *state);
                if self.makes(Mistake::PutsOffForGood) {
                    token.time = u64::MAX;
                }
            }
            Edit::Tidy(_) => token.time = token.record.due_at,
            Edit::Replace { old, new } => {
                let is_behind = token.record.generation != old.generation
                    && !self.makes(Mistake::OverlooksTheGeneration);
                let is_resealed = new.generation == old.generation
                    && token.record.write != old.write
                    && !self.makes(Mistake::OverlooksTheWrite);
                if is_behind || is_resealed {
                    return None;
                }
                (token.record, token.time) = (new.as_ref().clone(), new.due_at);
                token.state = State::of(new);
            }
        }
        Some(change.nonce.clone())
    }
}

impl Ledger for MemoryLedger {
    /// An enrolment has one place in the schedule, so its name is enough.
    type Claim = Nonce;
    type Found = Found;

    const LEASES: bool = true;

    const MOST_USERS: Option<u64> = None;

    fn under(&self, prefix: &str) -> Self {
        let prefix = if self.makes(Mistake::ForgetsThePrefix) {
            ""
        } else {
            prefix
        };
        Self {
            prefix: prefix.into(),
            ..self.clone()
        }
    }

    async fn find(&self, user: &User) -> Result<Enrolled, LedgerError> {
        let row = self.transact(|tables| tables.enrolments.get(&place(user)).cloned());
        let row = row.await?.ok_or(LedgerError::NotEnrolled)?;
        let record = row.token.map(|token| token.record);
        Ok(Enrolled {
            nonce: row.nonce,
            enrolled_at: row.enrolled_at,
            record: record.ok_or(LedgerError::NoRefreshToken),
        })
    }

    async fn still_current(&self, user: &User, nonce: &Nonce) -> Result<bool, LedgerError> {
        let found = self.find(user).await?;
        if found.nonce != *nonce {
            return Ok(false);
        }
        found.record.map(|_| true)
    }

    async fn enrol(
        &self,
        user: &User,
        nonce: &Nonce,
        record: &Record,
    ) -> Result<bool, LedgerError> {
        let enrolled = self.transact(|tables| {
            if tables.barred.contains(&user.tenant) && !self.makes(Mistake::LeavesTheDoorOpen) {
                return Err(LedgerError::TenantRemoved);
            }
            let mut row = Row::new(nonce, record);
            let former = tables.enrolments.get(&place(user));
            let former_time = former.and_then(|former| Some(former.token.as_ref()?.time));
            if let (Some(token), Some(time), true) = (
                &mut row.token,
                former_time,
                self.makes(Mistake::KeepsTheFormerTime),
            ) {
                token.time = time;
            }
            Ok(tables.enrolments.insert(place(user), row).is_none())
        });
        enrolled.await?
    }

    async fn remove_token(&self, user: &User) -> Result<(), LedgerError> {
        let removed = self.transact(|tables| {
            if let Some(row) = tables.enrolments.get_mut(&place(user)) {
                row.token = None;
            }
        });
        match removed.await {
            Err(_) if self.makes(Mistake::SwallowsErrors) => Ok(()),
            removed => Ok(removed?),
        }
    }

    async fn remove(&self, user: &User) -> Result<(), LedgerError> {
        self.transact(|tables| tables.enrolments.remove(&place(user)))
            .await?;
        Ok(())
    }

    async fn remove_tenant(
        &self,
        tenant: &TenantId,
        until: Deadline,
        removed: &mut dyn FnMut(&User),
    ) -> Result<Remaining, LedgerError> {
        loop {
            let is_over = until.is_over(&self.env);
            // The last one that is gone lets others in again, in the same transaction.
            let step = self.transact(|tables| {
                tables.barred.insert(tenant.clone());
                let of_tenant = |place: &&(TenantId, StorageId)| place.0 == *tenant;
                let mut places = tables.enrolments.keys().filter(of_tenant);
                let (first, others) = (places.next().cloned(), places.count());
                match first {
                    None => {
                        tables.barred.remove(tenant);
                        (None, 0)
                    }
                    Some(_) if is_over => (None, others + 1),
                    Some(first) => {
                        tables.enrolments.remove(&first);
                        (Some(first.1), others)
                    }
                }
            });
            match step.await? {
                (None, left) => return Ok(Remaining(left.try_into().unwrap())),
                (Some(id), _) => {
                    let tenant = tenant.clone();
                    removed(&User { tenant, id });
                }
            }
        }
    }

    async fn survey(
        &self,
        horizon: Horizon,
        _until: Deadline,
    ) -> Result<Survey<Found>, StoreError> {
        let lease = self.env.number();
        let found = Found { horizon, lease };
        self.transact(|tables| survey(tables, found)).await
    }

    async fn tend(&self, survey: &Survey<Found>, _until: Deadline) -> Result<Tended, StoreError> {
        let now = survey.found.horizon.now;
        self.transact(|tables| {
            let used: BTreeSet<_> = tables.used_versions().collect();
            tables
                .versions
                .extend(used.iter().map(|used| (used.clone(), None)));
            for (version, since) in &mut tables.versions {
                *since = (!used.contains(version)).then(|| since.unwrap_or(now));
            }
        })
        .await?;
        Ok(Tended::default())
    }

    async fn claim(
        &self,
        survey: &Survey<Found>,
        tenant: &TenantId,
        kind: Kind<'_>,
        most: usize,
        lease_until: u64,
    ) -> Result<Claimed<Nonce>, StoreError> {
        let Found { horizon, lease } = survey.found;
        let now = self.env.now.get();
        self.transact(|tables| {
            let mut free: Vec<_> = tables
                .enrolments
                .iter_mut()
                .filter_map(|((of, id), row)| Some((of, id, &row.nonce, row.token.as_mut()?)))
                .filter(|(of, .., token)| *of == tenant && is_of_kind(token, kind, horizon, self))
                .filter(|(.., token)| {
                    token.leased_until <= now || self.makes(Mistake::HandsOutTwice)
                })
                .collect();
            self.env.shuffle(&mut free);
            free.sort_by_key(|(.., token)| {
                let is_due = horizon.is_due(token.time);
                (!is_due, token.state != State::Active { failures: 0 })
            });
            let left = free.len().saturating_sub(most).try_into().unwrap();
            let claimed = free.into_iter().take(most).map(|(of, id, nonce, token)| {
                token.lease = lease;
                token.leased_until = match self.mistake {
                    Some(Mistake::LeasesForGood) => u64::MAX,
                    _ => lease_until,
                };
                let visit = Visit {
                    user: User {
                        tenant: of.clone(),
                        id: id.clone(),
                    },
                    nonce: nonce.clone(),
                    key_version: token.record.key_version.clone(),
                    state: token.state,
                    time: token.time,
                    claims: vec![nonce.clone()],
                    due: None,
                };
                let is_due = horizon.is_due(token.time) && matches!(kind, Kind::Outdated(_));
                Visit {
                    due: is_due.then(|| Box::new(visit.clone())),
                    ..visit
                }
            });
            Claimed {
                visits: claimed.collect(),
                left,
                leased_until: None,
            }
        })
        .await
    }

    async fn give_back(&self, survey: &Survey<Found>, tenant: &TenantId) -> Result<(), StoreError> {
        self.transact(|tables| {
            let rows = tables.enrolments.iter_mut();
            for ((of, _), row) in rows.filter(|_| !self.makes(Mistake::GivesNothingBack)) {
                if let Some(token) = row.token.as_mut().filter(|_| of == tenant)
                    && token.lease == survey.found.lease
                {
                    token.leased_until = 0;
                }
            }
        })
        .await
    }

    async fn open(&self, visit: &Visit<Nonce>) -> Result<Opened, StoreError> {
        self.transact(|tables| {
            let row = tables.enrolments.get(&place(&visit.user));
            let token = row.filter(|row| row.nonce == visit.nonce);
            match token.and_then(|row| row.token.as_ref()) {
                Some(token) => Opened::Record {
                    record: Box::new(token.record.clone()),
                    is_own: true,
                },
                None => Opened::Gone,
            }
        })
        .await
    }

    async fn settle(&self, changes: &[&Change<Nonce>]) -> Vec<Settled<Nonce>> {
        let mut settled = Vec::new();
        for change in changes {
            settled.push(self.transact(|tables| self.change(tables, change)).await);
        }
        let failed = settled.iter().find(|settled| settled.is_err()).cloned();
        match failed {
            Some(failed) if self.makes(Mistake::FailsTogether) => vec![failed; changes.len()],
            _ => settled,
        }
    }

    async fn expire(&self, visit: &Visit<Nonce>) -> Result<bool, StoreError> {
        self.transact(|tables| {
            let place = place(&visit.user);
            if self.makes(Mistake::ExpiresTheUser) {
                tables.enrolments.remove(&place);
            }
            let row = tables.enrolments.get_mut(&place);
            let row = row.filter(|row| row.nonce == visit.nonce);
            row.map(|row| row.token = None).is_some()
        })
        .await
    }

    async fn summary(&self, tenant: Option<&TenantId>) -> Result<Option<Summary>, StoreError> {
        let summary = self.transact(|tables| tables.summary.clone()).await?;
        Ok(summary.map(|mut summary| {
            if let Some(tenant) = tenant {
                summary.tenants.retain(|name, _| name == tenant.as_str());
            } else if !self.makes(Mistake::NamesEverybody) {
                for of in summary.tenants.values_mut() {
                    of.must_act.users.clear();
                }
            }
            summary
        }))
    }

    async fn keep_summary(&self, survey: &Survey<Found>) -> Result<(), StoreError> {
        self.transact(|tables| tables.summary = Some(survey.summary.clone()))
            .await
    }

    async fn sweep_state(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.transact(|tables| tables.sweep_state.clone()).await
    }

    async fn keep_sweep_state(&self, state: &[u8]) -> Result<(), StoreError> {
        self.transact(|tables| tables.sweep_state = Some(state.into()))
            .await
    }

    async fn fingerprint(&self) -> Result<Option<Fingerprint>, LedgerError> {
        Ok(self.transact(|tables| tables.fingerprint.clone()).await?)
    }

    async fn keep_fingerprint(&self, fingerprint: &Fingerprint) -> Result<(), StoreError> {
        self.transact(|tables| tables.fingerprint = Some(fingerprint.clone()))
            .await
    }
}

fn place(user: &User) -> (TenantId, StorageId) {
    (user.tenant.clone(), user.id.clone())
}

fn is_of_kind(token: &Token, kind: Kind<'_>, horizon: Horizon, ledger: &MemoryLedger) -> bool {
    let (Kind::Outdated(newest) | Kind::Due(newest)) = kind;
    let is_readable = !matches!(token.state, State::NotReadable { .. })
        || ledger.makes(Mistake::ResealsWhatCannotBeRead);
    let is_outdated = is_readable && token.record.key_version != *newest;
    match kind {
        Kind::Outdated(_) => is_outdated,
        Kind::Due(_) => !is_outdated && horizon.is_due(token.time),
    }
}

fn survey(tables: &Tables, found: Found) -> Survey<Found> {
    let horizon = found.horizon;
    let mut tenants: BTreeMap<TenantId, Outlook> = BTreeMap::new();
    let mut summaries: BTreeMap<String, TenantSummary> = BTreeMap::new();
    for ((tenant, id), row) in &tables.enrolments {
        let summary = summaries.entry(tenant.as_str().into()).or_default();
        increase(&mut summary.numbers.users);
        let Some(token) = &row.token else {
            continue;
        };
        let outlook = tenants.entry(tenant.clone()).or_default();
        increase(&mut outlook.enrolments);
        if horizon.is_due(token.time) {
            increase(&mut outlook.due);
        } else {
            let next = outlook.next_due.unwrap_or(u64::MAX).min(token.time);
            outlook.next_due = Some(next);
        }
        let wait = token.time.saturating_sub(horizon.now);
        summary.numbers.add(token.state, wait);
        let version = &token.record.key_version;
        increase(
            summary
                .key_versions
                .entry(version.as_str().into())
                .or_default(),
        );
        match token.state {
            State::InteractionRequired { .. } | State::Quarantined { .. } => {
                summary.must_act.add(id.as_str());
            }
            State::Active { .. } | State::NotReadable { .. } => {}
        }
    }
    let mut not_noted: BTreeSet<_> = tables.used_versions().collect();
    for ((tenant, version), since) in &tables.versions {
        if !not_noted.remove(&(tenant.clone(), version.clone())) {
            let summary = summaries.entry(tenant.as_str().into()).or_default();
            let since = since.unwrap_or(horizon.now);
            summary
                .unused_key_versions
                .insert(version.as_str().into(), since);
        }
    }
    for tenant in &tables.barred {
        let summary = summaries.entry(tenant.as_str().into()).or_default();
        summary.being_removed = true;
    }
    Survey {
        not_seen: 0,
        tenants,
        not_noted,
        summary: Summary::of(horizon.now, summaries),
        found,
    }
}
