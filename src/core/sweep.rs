//! The sweep: re-seals what is under an old key, refreshes what is due, clears litter (the seed's timer).
//!
//! One listing of keys, at most; then work only for what is under an old key, due, or litter. Re-sealing comes first, also
//! for what is due, and never calls Entra ID, so that a rotation completes while Entra ID is down (design §3).
//!
//! What a sweep remembers for the next (`SweepState`) makes it cheaper and keeps two from doing the same work. Nothing
//! is wrong if it is lost.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{UserError, VaultError};
use crate::identity::{KeyVersion, Nonce, TenantId};
use crate::keeper::{Environment, Keeper, KeeperError, marker_of};
use crate::layout::{Layout, Marker, Tag};
use crate::listing::{Listing, Litter};
use crate::port::{Policy, Store, StoredToken, User, VaultPort};
use crate::record::{Record, Status};
use crate::schedule::{
    DAILY, MONTHLY, MOST_FAILURES, RETENTION, least_refresh_age, random_number, retry_at,
};
use crate::secret::Bearer;
use crate::wave::{Change, WAVE, What};

/// Seconds for which a sweep may go without a listing because nothing is due.
const QUIET_AT_MOST: u64 = 3600;
/// Tenants that a sweep remembers; with more, every sweep lists.
const REMEMBERED_TENANTS: usize = 1000;
/// Seconds that the last record may take after the last was admitted: Entra ID's answer (`vault.rs`).
const LAST_RECORD: u64 = 10;
/// Failures of Entra ID in a row after which a tenant is left alone for the rest of a sweep.
const FAILURES_OF_A_TENANT: u32 = 3;
/// Left-over enrolments that one sweep looks at.
const LITTER_AT_ONCE: usize = 100;

/// What one call of a sweep did.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct SweepReport {
    /// Whether it worked. False: another sweep was under way, and this one left it to that.
    pub lease_held: bool,
    /// Records that were due when it began.
    pub due: u64,
    /// Records whose refresh token was replaced.
    pub refreshed: u64,
    /// Records re-sealed under the newest key, without Entra ID.
    pub resealed: u64,
    /// Records whose user has to act.
    pub interaction_required: u64,
    /// Records whose refresh token Entra ID called dead; kept, and tried again daily.
    pub quarantined: u64,
    /// Records whose refresh token was refused and is older than the retention limit: it was removed.
    pub expired: u64,
    /// Records to be tried again soon, because another system failed.
    pub retrying: u64,
    /// Records that cannot be read or opened; kept, and looked at again daily.
    pub damaged: u64,
    /// Records that need the operator: a setting, a permission, a key, storage. The log says which.
    pub failed: u64,
    /// Left-over enrolments, of removed or replaced ones, that were cleared.
    pub cleared: u64,
    /// Records that there was no time for, or whose tenant failed; call again.
    pub remaining: u64,
    /// Unix time in seconds at which the next of the records not due now is due.
    pub next_due_at: Option<u64>,
}

/// What a sweep leaves for the next.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SweepState {
    /// Until when a sweep is under way, in Unix seconds.
    pub(crate) lease_until: u64,
    /// Until when nothing is due.
    pub(crate) quiet_until: u64,
    /// The key version that all records of a tenant are under.
    pub(crate) versions: BTreeMap<String, String>,
    /// Tenants that Entra ID throttles, and until when it asked us to wait.
    pub(crate) paused: BTreeMap<String, u64>,
    /// When the last sweep ended.
    pub(crate) ended_at: u64,
    /// What it did.
    pub(crate) report: SweepReport,
}

/// Tenants that Key Vault was asked about in this sweep, and the newest key version if it answered: once each, however
/// many of a sweep's steps need to know.
type Asked = BTreeMap<TenantId, Option<KeyVersion>>;

/// What became of one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Refreshed,
    Resealed,
    InteractionRequired,
    Quarantined,
    Expired,
    Retrying,
    Damaged,
    Failed,
    Remaining,
    /// Another writer was faster, or the marker was stale.
    Nothing,
}

impl<V: VaultPort, S: Store, E: Environment> Keeper<V, S, E> {
    /// Sweeps: one bounded call.
    ///
    /// # Errors
    /// [`KeeperError`] if it cannot begin. What fails for one record is counted, not returned.
    pub async fn sweep(&self, bearer: &Bearer) -> Result<SweepReport, KeeperError> {
        let limits = self.vault.authorize_sweep(bearer).await?;
        let started = self.env.now();
        let layout = Layout::new(&limits.policy.store_prefix);
        let concurrency = usize::try_from(limits.concurrency).unwrap_or(1).max(1);
        let mut state = self.sweep_state(&layout).await?;
        if started < state.lease_until {
            return Ok(SweepReport::default());
        }
        let mut asked = Asked::new();
        if started < state.quiet_until {
            let known = state.versions.keys();
            let tenants = known.filter_map(|tenant| TenantId::parse(tenant)).collect();
            self.ask(&tenants, &mut asked, concurrency).await;
            if is_quiet(&state, &asked) {
                return Ok(SweepReport {
                    lease_held: true,
                    next_due_at: state.report.next_due_at,
                    ..SweepReport::default()
                });
            }
        }

        let seconds = u64::from(limits.seconds);
        state.lease_until = started.saturating_add(seconds).saturating_add(LAST_RECORD);
        state.quiet_until = 0;
        self.remember(&layout, &state).await;
        let admit = seconds
            .saturating_sub(LAST_RECORD)
            .max(seconds.checked_div(2).unwrap_or(0))
            .max(1);
        let outcome = self
            .pass(
                &layout,
                &limits.policy,
                concurrency,
                started.saturating_add(admit),
                &mut state,
                asked,
            )
            .await;
        state.lease_until = 0;
        state.ended_at = self.env.now();
        if let Ok(report) = &outcome {
            state.report = report.clone();
            self.env
                .line(&json!({"event": "swept", "report": report}).to_string());
        }
        self.remember(&layout, &state).await;
        outcome
    }

    /// What the last sweep left. What cannot be read is nothing.
    pub(crate) async fn sweep_state(&self, layout: &Layout) -> Result<SweepState, KeeperError> {
        let json = self.store.get(&layout.sweep_state()).await?;
        Ok(json
            .and_then(|json| serde_json::from_slice(&json).ok())
            .unwrap_or_default())
    }

    /// Best effort: no sweep needs it.
    async fn remember(&self, layout: &Layout, state: &SweepState) {
        if let Ok(json) = serde_json::to_vec(state)
            && let Err(error) = self.store.set(&layout.sweep_state(), &json).await
        {
            self.env.line(
                &json!({"event": "sweep_state_lost", "reason": error.to_string()}).to_string(),
            );
        }
    }

    async fn pass(
        &self,
        layout: &Layout,
        policy: &Policy,
        concurrency: usize,
        until: u64,
        state: &mut SweepState,
        mut asked: Asked,
    ) -> Result<SweepReport, KeeperError> {
        let now = self.env.now();
        let listing = Listing::new(layout, self.store.list_keys().await?);
        self.note_versions(layout, &listing, now, concurrency)
            .await?;
        let tenants: BTreeSet<TenantId> = listing
            .markers()
            .map(|(_, marker)| marker.user.tenant)
            .collect();
        self.ask(&tenants, &mut asked, concurrency).await;
        let newest: BTreeMap<TenantId, KeyVersion> = asked
            .into_iter()
            .filter(|(tenant, _)| tenants.contains(tenant))
            .filter_map(|(tenant, version)| Some((tenant, version?)))
            .collect();
        // What cannot be read cannot be re-sealed; it has its daily look.
        let is_outdated = |marker: &Marker| {
            !matches!(marker.tag, Tag::NotReadable { .. })
                && newest
                    .get(&marker.user.tenant)
                    .is_some_and(|newest| *newest != marker.key_version)
        };
        let (mut outdated, mut due) = (BTreeMap::new(), BTreeMap::new());
        let mut report = SweepReport {
            lease_held: true,
            ..SweepReport::default()
        };
        for (key, marker) in listing.markers() {
            let is_due = marker.time <= now;
            if is_outdated(&marker) {
                Visit::add(&mut outdated, key, &marker);
            }
            if is_due {
                Visit::add(&mut due, key, &marker);
            } else {
                let next = report.next_due_at.unwrap_or(u64::MAX).min(marker.time);
                report.next_due_at = Some(next);
            }
        }
        let mut litter = listing.litter(now);
        drop(listing);
        report.due = count(due.len());

        state.paused.retain(|_, until| *until > now);
        let paused = state.paused.iter();
        let pass = Pass {
            layout,
            policy,
            concurrency,
            until,
            // A tenant whose key cannot be had can be neither refreshed nor re-sealed now.
            no_key: RefCell::new(
                tenants
                    .difference(&newest.keys().cloned().collect())
                    .cloned()
                    .collect(),
            ),
            no_entra: RefCell::new(
                paused
                    .filter_map(|(tenant, until)| Some((TenantId::parse(tenant)?, *until)))
                    .collect(),
            ),
            failures: RefCell::default(),
        };
        for marker in self.work(&pass, Work::Reseal, outdated, &mut report).await {
            if let Some(visit) = due.get_mut(&marker.nonce) {
                visit.keys.push(layout.marker(&marker));
                visit.marker = marker;
            }
        }
        self.work(&pass, Work::Refresh, due, &mut report).await;
        self.shuffle(&mut litter);
        let left = litter.len().saturating_sub(LITTER_AT_ONCE);
        litter.truncate(LITTER_AT_ONCE);
        report.cleared = self.clear_all(&pass, litter).await;

        // Records that were put off in this very pass are due in a minute.
        let is_done = [
            report.remaining,
            report.failed,
            report.retrying,
            count(left),
        ] == [0; 4];
        if is_done && newest.len() <= REMEMBERED_TENANTS {
            // No record that is enrolled or refreshed from now on is due before that.
            let least = least_refresh_age(policy.refresh_after_seconds).min(QUIET_AT_MOST);
            let next = report.next_due_at.unwrap_or(u64::MAX);
            state.quiet_until = next.min(now.saturating_add(least));
            let names = newest.iter();
            state.versions = names
                .map(|(tenant, version)| (tenant.as_str().into(), version.as_str().into()))
                .collect();
        }
        let paused = pass.no_entra.into_inner().into_iter();
        state.paused = paused
            .filter(|(_, until)| *until > now)
            .map(|(tenant, until)| (tenant.as_str().into(), until))
            .collect();
        Ok(report)
    }

    /// Notes which key versions are in use, and since when others are not, before anything is moved: a version that the
    /// listing names may be named nowhere when this sweep has ended. Costs nothing while no version comes or goes.
    async fn note_versions(
        &self,
        layout: &Layout,
        listing: &Listing<'_>,
        now: u64,
        concurrency: usize,
    ) -> Result<(), KeeperError> {
        let (mut notes, mut void) = (Vec::new(), Vec::new());
        for ((tenant, version), of) in listing.versions() {
            let since = match of.markers {
                0 => of.unused_since().unwrap_or(now),
                _ => 0,
            };
            let key = |since| layout.version(&tenant, &version, since);
            let is_forgotten = since > 0 && since.saturating_add(RETENTION) <= now;
            if !is_forgotten && !of.noted.contains(&since) {
                notes.push(key(since));
            }
            let is_void = |noted: &u64| is_forgotten || *noted != since;
            void.extend(of.noted.into_iter().filter(is_void).map(key));
        }
        // The new ones first: a version of which nothing is noted is not known.
        stream::iter(notes)
            .map(|key| async move { self.store.set(&key, &[]).await })
            .buffer_unordered(concurrency)
            .try_collect::<()>()
            .await?;
        stream::iter(void)
            .map(|key| async move { self.store.delete(&key).await })
            .buffer_unordered(concurrency)
            .try_collect::<()>()
            .await?;
        Ok(())
    }

    /// Asks for the newest key version of each tenant that it was not asked for yet.
    async fn ask(&self, tenants: &BTreeSet<TenantId>, asked: &mut Asked, concurrency: usize) {
        let unasked = tenants.iter().filter(|tenant| !asked.contains_key(tenant));
        let answers: Vec<_> = stream::iter(unasked)
            .map(|tenant| async move {
                let answer = self.vault.newest_key_version(tenant).await;
                let version = answer.map_err(|error| self.tenant_failed(tenant, &error));
                (tenant.clone(), version.ok())
            })
            .buffer_unordered(concurrency)
            .collect()
            .await;
        asked.extend(answers);
    }

    /// Visits records. Each tenant has its own share of the concurrency, so that one that is slow or throttled does not
    /// hold up another, and within it an order by chance, so that two sweeps at once do not redeem the same tokens. What
    /// is ready meanwhile is written together.
    ///
    /// Returns the markers that took the place of others.
    async fn work(
        &self,
        pass: &Pass<'_>,
        work: Work,
        visits: BTreeMap<Nonce, Visit>,
        report: &mut SweepReport,
    ) -> Vec<Marker> {
        let mut by_tenant: BTreeMap<TenantId, Vec<Visit>> = BTreeMap::new();
        for visit in visits.into_values() {
            let tenant = visit.marker.user.tenant.clone();
            by_tenant.entry(tenant).or_default().push(visit);
        }
        let mut tenants: Vec<_> = by_tenant.into_values().collect();
        self.shuffle(&mut tenants);
        let share = pass
            .concurrency
            .checked_div(tenants.len())
            .unwrap_or(1)
            .max(1);
        let mut results = stream::iter(tenants)
            .map(|mut visits| {
                self.shuffle(&mut visits);
                let visits = stream::iter(visits);
                Box::pin(
                    visits
                        .map(|visit| self.visit(pass, visit, work))
                        .buffer_unordered(share),
                )
            })
            .flatten_unordered(pass.concurrency)
            .ready_chunks(WAVE);

        let mut moved = Vec::new();
        while let Some(wave) = results.next().await {
            let (mut changes, mut outcomes) = (Vec::new(), Vec::new());
            for result in wave {
                match result {
                    Found::Over(outcome) => report.add(outcome),
                    Found::Write(change, outcome) => {
                        changes.push(*change);
                        outcomes.push(outcome);
                    }
                }
            }
            let made = self.apply(pass.layout, &changes).await;
            for ((change, outcome), made) in changes.into_iter().zip(outcomes).zip(made) {
                let is_made = made == Ok(true);
                report.add(match made {
                    Ok(true) => outcome,
                    Ok(false) => Outcome::Nothing,
                    Err(error) => self.record_failed(&change.user, &error.into()),
                });
                if let (true, What::Replace { new, .. }) = (is_made, change.what) {
                    moved.push(marker_of(&change.user, &change.nonce, &new));
                }
            }
        }
        moved
    }

    async fn visit(&self, pass: &Pass<'_>, visit: Visit, work: Work) -> Found {
        let marker = &visit.marker;
        if pass.leaves_out(&marker.user.tenant, work) || self.env.now() >= pass.until {
            return Found::Over(match work {
                // If it is due, it is counted when that is looked at.
                Work::Reseal if marker.time <= self.env.now() => Outcome::Nothing,
                Work::Reseal | Work::Refresh => Outcome::Remaining,
            });
        }
        let user = marker.user.clone();
        let found = match work {
            Work::Refresh => self.visit_due(pass, visit).await,
            Work::Reseal => self.visit_outdated(pass, visit).await,
        };
        found.unwrap_or_else(|error| Found::Over(self.record_failed(&user, &error)))
    }

    async fn visit_due(&self, pass: &Pass<'_>, visit: Visit) -> Result<Found, KeeperError> {
        let Visit { keys, marker } = visit;
        let record = match self.look(pass, &keys, &marker).await? {
            Look::At(record) => record,
            Look::Over(found) => return Ok(found),
        };
        let now = self.env.now();
        if record.due_at > now {
            // A second marker of a record that was refreshed meanwhile.
            return Ok(self.tidy(keys, &marker, &record));
        }
        // A second marker of a record that was re-sealed may still tell of the old key.
        let marker = Marker {
            key_version: record.key_version.clone(),
            ..marker
        };
        let failed_with = |status: Status| Record {
            status,
            write: Nonce::for_write(&self.env),
            due_at: now.saturating_add(DAILY),
            // The token and its generation stay.
            ..(*record).clone()
        };
        let is_expired = record.refreshed_at.saturating_add(RETENTION) <= now;
        let (new, outcome) = match self.vault.refresh(&stored(&marker, &record)).await {
            Ok(sealed) => {
                pass.failures.borrow_mut().remove(&marker.user.tenant);
                (
                    self.refreshed(&marker.user, &record, sealed, pass.policy),
                    Outcome::Refreshed,
                )
            }
            Err(VaultError::User(_)) if is_expired => {
                // Entra ID refuses it now, and has forgotten it by its own rules for months.
                self.remove_token(pass.layout, &marker.user, &marker.nonce)
                    .await?;
                self.delete_each(&keys).await?;
                self.audit("refresh_token_expired", &marker.user);
                return Ok(Found::Over(Outcome::Expired));
            }
            Err(VaultError::User(UserError::InteractionRequired(interaction))) => (
                failed_with(Status::InteractionRequired {
                    claims: interaction.claims,
                }),
                Outcome::InteractionRequired,
            ),
            Err(VaultError::User(UserError::ReenrolmentRequired(_))) => {
                (failed_with(Status::Quarantined), Outcome::Quarantined)
            }
            Err(VaultError::Upstream(error)) => {
                pass.failed(&marker.user.tenant, error.retry_after_seconds, now);
                return Ok(self.put_off(
                    keys,
                    &marker,
                    error.retry_after_seconds,
                    Outcome::Retrying,
                ));
            }
            Err(VaultError::Stored(_)) => {
                self.alarm("sealed_token_does_not_open", &marker.user);
                return Ok(self.set_aside(keys, &marker));
            }
            Err(VaultError::Operator(error)) if error.is_about_one_key() => {
                self.tenant_failed(&marker.user.tenant, &error.into());
                return Ok(self.put_off(keys, &marker, None, Outcome::Failed));
            }
            Err(error @ (VaultError::Operator(_) | VaultError::Caller(_))) => {
                return Ok(self.stop_tenant(pass, &marker, &error));
            }
        };
        let change = Change {
            user: marker.user,
            nonce: marker.nonce,
            visited: keys,
            what: What::Replace {
                old: record,
                new: Box::new(new),
            },
        };
        Ok(Found::Write(Box::new(change), outcome))
    }

    async fn visit_outdated(&self, pass: &Pass<'_>, visit: Visit) -> Result<Found, KeeperError> {
        let Visit { keys, marker } = visit;
        let record = match self.look(pass, &keys, &marker).await? {
            Look::At(record) => record,
            Look::Over(found) => return Ok(found),
        };
        match self.vault.reseal(&stored(&marker, &record)).await {
            Ok(Some(sealed)) => {
                let new = Record {
                    sealed: sealed.token,
                    key_version: sealed.key_version,
                    write: Nonce::for_write(&self.env),
                    // A record whose refresh was put off stays put off.
                    due_at: record.due_at.max(marker.time),
                    ..(*record).clone()
                };
                let change = Change {
                    user: marker.user,
                    nonce: marker.nonce,
                    visited: keys,
                    what: What::Replace {
                        old: record,
                        new: Box::new(new),
                    },
                };
                Ok(Found::Write(Box::new(change), Outcome::Resealed))
            }
            Ok(None) if marker.write != record.write => Ok(self.tidy(keys, &marker, &record)),
            Ok(None) => Ok(Found::Over(Outcome::Nothing)),
            Err(VaultError::Stored(_)) => {
                self.alarm("sealed_token_does_not_open", &marker.user);
                Ok(self.set_aside(keys, &marker))
            }
            // The marker stays as it is, and so does the record: the next sweep finds both.
            Err(VaultError::Upstream(_) | VaultError::User(_)) => {
                Ok(Found::Over(Outcome::Remaining))
            }
            Err(VaultError::Operator(error)) if error.is_about_one_key() => {
                self.tenant_failed(&marker.user.tenant, &error.into());
                Ok(Found::Over(Outcome::Failed))
            }
            Err(error @ (VaultError::Operator(_) | VaultError::Caller(_))) => {
                Ok(self.stop_tenant(pass, &marker, &error))
            }
        }
    }

    /// Reads what a marker points at, and sorts out what is no usable record.
    async fn look(
        &self,
        pass: &Pass<'_>,
        keys: &[String],
        marker: &Marker,
    ) -> Result<Look, KeeperError> {
        let aside = || Ok(Look::Over(self.set_aside(keys.to_vec(), marker)));
        let (head, record) = match self.current(pass.layout, &marker.user).await {
            Ok(current) => current,
            Err(KeeperError::NotEnrolled | KeeperError::Busy) => {
                return Ok(Look::Over(Found::Over(Outcome::Nothing)));
            }
            // A head that cannot be read may name this enrolment.
            Err(KeeperError::RecordDamaged | KeeperError::RecordTooNew) => {
                self.alarm("head_not_readable", &marker.user);
                return aside();
            }
            Err(error) => return Err(error),
        };
        match record {
            // Another enrolment's: what is left of it is cleared when it is old.
            _ if head.nonce != marker.nonce => Ok(Look::Over(Found::Over(Outcome::Nothing))),
            Err(KeeperError::NoRefreshToken) => Ok(Look::Over(Found::Over(Outcome::Nothing))),
            Ok(record) => Ok(Look::At(Box::new(record))),
            Err(_) => aside(),
        }
    }

    /// Keeps what cannot be used, and has it looked at again in a day, or in a month when nobody has mended it for long:
    /// "damaged" is never "delete".
    fn set_aside(&self, keys: Vec<String>, marker: &Marker) -> Found {
        let now = self.env.now();
        let tag = marker.tag.not_readable(now);
        let is_old = matches!(tag, Tag::NotReadable { since } if u64::from(since).saturating_mul(DAILY).saturating_add(RETENTION) <= now);
        let wait = if is_old { MONTHLY } else { DAILY };
        self.mark(
            keys,
            marker,
            now.saturating_add(wait),
            tag,
            Outcome::Damaged,
        )
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
                (
                    Tag::Active {
                        failures: failures.min(MOST_FAILURES),
                    },
                    retry_at(now, failures, retry_after, &self.env),
                )
            }
            tag @ (Tag::InteractionRequired { .. }
            | Tag::Quarantined { .. }
            | Tag::NotReadable { .. }) => (tag, now.saturating_add(DAILY)),
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
        let change = Change {
            user: marker.user.clone(),
            nonce: marker.nonce.clone(),
            visited: keys,
            what: What::Mark(Marker {
                time,
                tag,
                write: Nonce::for_write(&self.env),
                ..marker.clone()
            }),
        };
        Found::Write(Box::new(change), outcome)
    }

    /// Leaves one marker of a record that has two.
    fn tidy(&self, keys: Vec<String>, marker: &Marker, record: &Record) -> Found {
        let own = marker_of(&marker.user, &marker.nonce, record);
        let change = Change {
            user: marker.user.clone(),
            nonce: marker.nonce.clone(),
            visited: keys,
            what: What::Tidy {
                fresh: Marker {
                    write: Nonce::for_write(&self.env),
                    ..own.clone()
                },
                own,
            },
        };
        Found::Write(Box::new(change), Outcome::Nothing)
    }

    /// Returns how many were cleared.
    async fn clear_all(&self, pass: &Pass<'_>, litter: Vec<Litter>) -> u64 {
        let cleared: Vec<bool> = stream::iter(litter)
            .map(|litter| async move {
                if self.env.now() >= pass.until {
                    return false;
                }
                self.clear(pass, &litter).await.unwrap_or_else(|error| {
                    self.env.line(&json!({"event": "litter_left", "user": litter.id.as_str(), "reason": error.to_string()}).to_string());
                    false
                })
            })
            .buffer_unordered(pass.concurrency)
            .collect()
            .await;
        count(cleared.into_iter().filter(|cleared| *cleared).count())
    }

    /// "GC". Its step 1, the age, is the listing's business.
    async fn clear(&self, pass: &Pass<'_>, litter: &Litter) -> Result<bool, KeeperError> {
        let record_key = pass.layout.record(&litter.id, &litter.nonce);
        let user = litter.tenant.clone().map(|tenant| User {
            tenant,
            id: litter.id.clone(),
        });
        // Whom neither a head nor a marker names had no head at the listing, and the head of an enrolment this old is not
        // written any more.
        let head = match &user {
            Some(user) => self.head(pass.layout, user).await?,
            None => None,
        };
        match (user, head) {
            (Some(user), Some(head)) if head.nonce == litter.nonce => {
                if litter.is_off {
                    self.store.delete(&record_key).await?;
                    self.delete_each(&litter.markers).await?;
                    return Ok(true);
                }
                if litter.has_record && litter.markers.is_empty() {
                    self.mark_again(pass, user, litter).await?;
                }
                Ok(false)
            }
            _ => {
                self.store.delete(&record_key).await?;
                self.store
                    .delete(&pass.layout.off(&litter.id, &litter.nonce))
                    .await?;
                self.delete_each(&litter.markers).await?;
                Ok(true)
            }
        }
    }

    async fn delete_each(&self, keys: &[String]) -> Result<(), KeeperError> {
        for key in keys {
            self.store.delete(key).await?;
        }
        Ok(())
    }

    /// Gives a record that has lost its marker one that is due now.
    async fn mark_again(
        &self,
        pass: &Pass<'_>,
        user: User,
        litter: &Litter,
    ) -> Result<(), KeeperError> {
        self.alarm("marker_lost", &user);
        let key = pass.layout.record(&litter.id, &litter.nonce);
        let Some(json) = self.store.get(&key).await? else {
            return Ok(());
        };
        let Ok(record) = Record::from_json(&json) else {
            self.alarm("record_not_readable", &user);
            return Ok(());
        };
        let marker = Marker {
            time: self.env.now(),
            write: Nonce::for_write(&self.env),
            ..marker_of(&user, &litter.nonce, &record)
        };
        Ok(self.store.set(&pass.layout.marker(&marker), &[]).await?)
    }

    /// The fault is not this record's: spare the tenant's other records the same call.
    fn stop_tenant(&self, pass: &Pass<'_>, marker: &Marker, error: &VaultError) -> Found {
        if pass.no_key.borrow_mut().insert(marker.user.tenant.clone()) {
            self.tenant_failed(&marker.user.tenant, error);
        }
        Found::Over(Outcome::Failed)
    }

    fn tenant_failed(&self, tenant: &TenantId, error: &VaultError) {
        self.env.line(&json!({"event": "tenant_failed", "tenant": tenant.as_str(), "reason": error.to_string()}).to_string());
    }

    fn record_failed(&self, user: &User, error: &KeeperError) -> Outcome {
        self.env.line(&json!({"event": "sweep_failed", "tenant": user.tenant.as_str(), "user": user.id.as_str(), "reason": error.to_string()}).to_string());
        Outcome::Failed
    }

    fn shuffle<T>(&self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            let bound = count(at).saturating_add(1);
            let other = random_number(&self.env).checked_rem(bound).unwrap_or(0);
            items.swap(at, usize::try_from(other).unwrap_or(at));
        }
    }
}

impl SweepReport {
    fn add(&mut self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Refreshed => &mut self.refreshed,
            Outcome::Resealed => &mut self.resealed,
            Outcome::InteractionRequired => &mut self.interaction_required,
            Outcome::Quarantined => &mut self.quarantined,
            Outcome::Expired => &mut self.expired,
            Outcome::Retrying => &mut self.retrying,
            Outcome::Damaged => &mut self.damaged,
            Outcome::Failed => &mut self.failed,
            Outcome::Remaining => &mut self.remaining,
            Outcome::Nothing => return,
        };
        *counter = counter.saturating_add(1);
    }
}

/// What holds for one sweep.
struct Pass<'a> {
    layout: &'a Layout,
    policy: &'a Policy,
    concurrency: usize,
    until: u64,
    /// Tenants for whom nothing can be done now.
    no_key: RefCell<BTreeSet<TenantId>>,
    /// Tenants that are not refreshed now, and until when Entra ID asked us to wait; 0: it did not say.
    no_entra: RefCell<BTreeMap<TenantId, u64>>,
    /// Failures of Entra ID in a row, and until when it asked to wait.
    failures: RefCell<BTreeMap<TenantId, (u32, u64)>>,
}

impl Pass<'_> {
    fn leaves_out(&self, tenant: &TenantId, work: Work) -> bool {
        self.no_key.borrow().contains(tenant)
            || matches!(work, Work::Refresh) && self.no_entra.borrow().contains_key(tenant)
    }

    /// Another system failed. The tenant's other records wait too, as long as it asked, when it fails for several in a
    /// row: once may be about this one user (AADSTS50196). The vault keeps Entra ID's pauses meanwhile.
    fn failed(&self, tenant: &TenantId, retry_after: Option<u32>, now: u64) {
        let mut failures = self.failures.borrow_mut();
        let (count, until) = failures.entry(tenant.clone()).or_default();
        *count = count.saturating_add(1);
        let asked = retry_after.map_or(0, |seconds| now.saturating_add(seconds.into()));
        *until = (*until).max(asked);
        if *count >= FAILURES_OF_A_TENANT {
            let mut paused = self.no_entra.borrow_mut();
            let known = paused.entry(tenant.clone()).or_default();
            *known = (*known).max(*until);
        }
    }
}

#[derive(Clone, Copy)]
enum Work {
    Reseal,
    Refresh,
}

/// An enrolment to be visited, and the markers that led there: more than one, where a writer died or was overtaken.
struct Visit {
    keys: Vec<String>,
    marker: Marker,
}

impl Visit {
    fn add(visits: &mut BTreeMap<Nonce, Self>, key: &str, marker: &Marker) {
        let visit = visits.entry(marker.nonce.clone()).or_insert_with(|| Self {
            keys: Vec::new(),
            marker: marker.clone(),
        });
        visit.keys.push(key.to_owned());
    }
}

/// What a visit comes to.
enum Found {
    Over(Outcome),
    /// That, once this is written.
    Write(Box<Change>, Outcome),
}

enum Look {
    At(Box<Record>),
    Over(Found),
}

fn stored(marker: &Marker, record: &Record) -> StoredToken {
    StoredToken {
        user: marker.user.clone(),
        nonce: marker.nonce.clone(),
        token: record.sealed.clone(),
    }
}

/// Whether no tenant's key has changed since the last sweep. One without an answer has nothing to re-seal to.
fn is_quiet(state: &SweepState, asked: &Asked) -> bool {
    asked.iter().all(|(tenant, version)| {
        let known = state.versions.get(tenant.as_str());
        version
            .as_ref()
            .is_none_or(|version| known.is_some_and(|known| known == version.as_str()))
    })
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::{Context, Waker};

    use pollster::block_on;
    use serde_json::json;

    use super::*;
    use crate::caller::tests::NOW;
    use crate::listing::LITTER_AFTER;
    use crate::world::{App, SWEEP_KEY, Shared, World};

    const WEEK: u64 = 604_800;

    fn enrolled(users: u32) -> (Shared, App) {
        let world = World::new();
        let app = world.app();
        for user in 0..users {
            block_on(app.enroll(
                &world.bearer_of(&format!("{user:08x}-0000-0000-0000-000000000000")),
                None,
            ))
            .unwrap();
        }
        world.take_calls();
        (world, app)
    }

    fn sweep(app: &App) -> SweepReport {
        block_on(app.sweep(&Bearer::new(SWEEP_KEY.into()))).unwrap()
    }

    fn draw(world: &Shared, app: &App, user: u32) -> Result<(), KeeperError> {
        block_on(app.draw(
            &world.bearer_of(&format!("{user:08x}-0000-0000-0000-000000000000")),
            None,
            None,
        ))
        .map(drop)
    }

    #[test]
    fn nothing_due_costs_one_listing_an_hour_and_one_question_a_tenant() {
        let (world, app) = enrolled(20);
        let report = sweep(&app);
        let next_due_at = report.next_due_at;
        assert!(
            (WEEK * 3 / 4..WEEK).contains(&(next_due_at.unwrap() - world.now.get())),
            "{report:?}"
        );
        let quiet = SweepReport {
            lease_held: true,
            next_due_at,
            ..SweepReport::default()
        };
        assert_eq!(report, quiet);
        assert_eq!(world.take_calls(), ["key vault "]);

        // The next ones do not even list.
        world.listings.set(0);
        world.advance(QUIET_AT_MOST - 1);
        assert_eq!(sweep(&app), quiet);
        assert_eq!(
            world.take_calls(),
            ["entra client_credentials", "key vault "]
        );
        assert_eq!(world.listings.get(), 0);
        world.advance(1);
        assert_eq!(sweep(&app), quiet);
        assert_eq!(world.listings.get(), 1);
    }

    #[test]
    fn what_is_due_is_refreshed_once() {
        let (world, app) = enrolled(20);
        world.advance(WEEK);
        let report = sweep(&app);
        assert_eq!(
            (report.due, report.refreshed, report.remaining),
            (20, 20, 0)
        );
        assert_eq!(world.user_rows().len(), 60);
        assert_eq!(sweep(&app).due, 0);
        assert!(
            world
                .rows
                .borrow()
                .keys()
                .all(|key| !key.starts_with("due.")
                    || key[4..16].parse::<u64>().unwrap() > world.now.get() + WEEK * 3 / 4)
        );
        let mut redeemed = world.redeemed.borrow().clone();
        redeemed.sort_unstable();
        redeemed.dedup();
        assert_eq!(redeemed.len(), 20);
        draw(&world, &app, 7).unwrap();
    }

    #[test]
    fn a_rotation_completes_while_entra_is_down() {
        let (world, app) = enrolled(20);
        world.rotate();
        world.down.borrow_mut().push("entra");
        let report = sweep(&app);
        assert_eq!(
            (report.resealed, report.remaining, report.failed),
            (20, 0, 0)
        );
        assert!(
            world
                .keys_of("due.")
                .iter()
                .all(|key| key.contains(&World::version(1)))
        );
        assert!(
            !world
                .take_calls()
                .contains(&"entra refresh_token".to_owned())
        );
        assert_eq!(sweep(&app).resealed, 0);
        world.down.borrow_mut().clear();
        draw(&world, &app, 3).unwrap();
        assert_eq!(world.user_rows().len(), 60);
    }

    #[test]
    fn key_vault_is_asked_once_a_tenant_and_once_a_key_to_open_with() {
        let questions = |world: &Shared| {
            let mut calls = world.take_calls();
            calls.retain(|call| call.starts_with("key vault"));
            calls
        };
        let (newest, old) = ("key vault ", format!("key vault {}", World::version(0)));
        let (world, app) = enrolled(20);
        world.advance(WEEK);
        assert_eq!(sweep(&app).refreshed, 20);
        assert_eq!(questions(&world), [newest], "the newest opens, too");
        world.rotate();
        assert_eq!(sweep(&app).resealed, 20);
        assert_eq!(questions(&world), [newest], "the old one is remembered");
        // An instance that remembers nothing.
        let (world, _) = enrolled(20);
        world.rotate();
        assert_eq!(sweep(&world.app()).resealed, 20);
        assert_eq!(questions(&world), [newest, &old]);
    }

    #[test]
    fn an_outage_puts_off_and_loses_nothing() {
        let (world, app) = enrolled(3);
        world.advance(WEEK);
        world
            .entra_answers
            .borrow_mut() // each is tried twice
            .extend(std::iter::repeat_n((503, json!("<html>")), 6));
        let records = world
            .keys_of("rec.")
            .iter()
            .map(|key| world.rows.borrow()[key].clone())
            .collect::<Vec<_>>();
        assert_eq!(sweep(&app).retrying, 3);
        assert_eq!(
            world
                .keys_of("rec.")
                .iter()
                .map(|key| world.rows.borrow()[key].clone())
                .collect::<Vec<_>>(),
            records
        );
        assert_eq!(sweep(&app).due, 0);
        world.advance(75);
        assert_eq!(sweep(&app).refreshed, 3);
        assert_eq!(world.user_rows().len(), 9);
    }

    #[test]
    fn a_dead_token_is_quarantined_kept_and_heals() {
        let (world, app) = enrolled(1);
        world.advance(WEEK);
        world.entra_answers.borrow_mut().push_back((
            400,
            json!({"error": "invalid_grant", "error_codes": [50_173], "suberror": "bad_token"}),
        ));
        assert_eq!(sweep(&app).quarantined, 1);
        assert!(world.keys_of("due.")[0].contains(&format!(".q{}.", NOW / DAILY)));
        assert_eq!(sweep(&app).due, 0);
        world.advance(DAILY);
        assert_eq!(sweep(&app).refreshed, 1);
        assert!(world.keys_of("due.")[0].contains(".a0."));
        let redeemed = world.redeemed.borrow();
        assert_eq!(redeemed[0], redeemed[1], "the same token, kept");
    }

    #[test]
    fn the_claims_to_ask_for_are_kept() {
        let (world, app) = enrolled(1);
        world.advance(WEEK);
        world
            .entra_answers
            .borrow_mut()
            .push_back((400, json!({"error": "interaction_required", "error_codes": [50_076], "claims": "{\"c\":1}"})));
        assert_eq!(sweep(&app).interaction_required, 1);
        let view =
            block_on(app.show(&world.bearer_of("00000000-0000-0000-0000-000000000000"))).unwrap();
        assert_eq!(
            view.record.unwrap().status,
            Status::InteractionRequired {
                claims: Some("{\"c\":1}".into())
            }
        );
    }

    #[test]
    fn a_damaged_record_is_kept_looked_at_daily_and_does_not_stop_the_others() {
        let (world, app) = enrolled(3);
        let key = world.keys_of("rec.").remove(1);
        world.rows.borrow_mut().insert(key.clone(), b"{}".to_vec());
        world.advance(WEEK);
        let report = sweep(&app);
        assert_eq!((report.damaged, report.refreshed), (1, 2));
        assert_eq!(world.rows.borrow()[&key], b"{}");
        assert_eq!(sweep(&app).due, 0);
        world.rotate();
        assert_eq!(
            sweep(&app).resealed,
            2,
            "and not visited for its old key either"
        );
        world.advance(DAILY);
        assert_eq!(sweep(&app).damaged, 1);
    }

    #[test]
    fn an_operators_fault_is_told_once_and_touches_no_record() {
        let (world, app) = enrolled(40);
        world.advance(WEEK);
        let rows = world.user_rows();
        world.entra_answers.borrow_mut().extend(std::iter::repeat_n(
            (
                401,
                json!({"error": "invalid_client", "error_codes": [7_000_215]}),
            ),
            40,
        ));
        let report = sweep(&app);
        assert_eq!(
            (report.failed + report.remaining, report.refreshed),
            (40, 0)
        );
        assert_eq!(world.user_rows(), rows);
        assert_eq!(
            world
                .log
                .borrow()
                .iter()
                .filter(|line| line.contains("tenant_failed"))
                .count(),
            1
        );
        assert!(
            world.redeemed.borrow().len() <= 32,
            "the others were spared the call"
        );
    }

    #[test]
    fn a_tenant_whose_key_vault_fails_is_left_alone() {
        let (world, app) = enrolled(3);
        world.advance(WEEK);
        world.down.borrow_mut().push("key vault");
        let report = sweep(&app);
        assert_eq!((report.due, report.remaining), (3, 3));
        world.down.borrow_mut().clear();
        assert_eq!(sweep(&app).refreshed, 3);
    }

    #[test]
    fn nothing_is_swept_by_a_wrong_clock() {
        let (world, app) = enrolled(2);
        world.advance(WEEK);
        world.others_ahead.set(301);
        let rows = world.user_rows();
        assert_eq!(sweep(&app).remaining, 2);
        assert_eq!(world.user_rows(), rows);
        assert!(world.log.borrow().iter().any(|line| line.contains("clock")));
        draw(&world, &app, 0).unwrap();
        world.others_ahead.set(300);
        assert_eq!(
            sweep(&app).refreshed,
            1,
            "the other one was drawn, and replaced"
        );
    }

    #[test]
    fn what_nobody_can_use_is_removed_or_seen_monthly_after_its_time() {
        let (world, app) = enrolled(2);
        let key = world.keys_of("rec.").remove(0);
        world.rows.borrow_mut().insert(key.clone(), b"{}".to_vec());
        let dead = (
            400,
            json!({"error": "invalid_grant", "error_codes": [50_173], "suberror": "bad_token"}),
        );
        world.advance(WEEK);
        for _ in 0..RETENTION / DAILY - 7 {
            world.entra_answers.borrow_mut().push_back(dead.clone());
            let report = sweep(&app);
            assert_eq!(
                (report.damaged, report.quarantined, report.expired),
                (1, 1, 0)
            );
            world.advance(DAILY);
        }
        world.entra_answers.borrow_mut().push_back(dead);
        assert_eq!(sweep(&app).expired, 1);
        assert_eq!(
            (world.keys_of("off.").len(), world.keys_of("rec.")),
            (1, vec![key])
        );
        world.advance(7 * DAILY);
        assert_eq!(sweep(&app).damaged, 1);
        world.advance(DAILY);
        assert_eq!(sweep(&app).damaged, 0);
        world.advance(MONTHLY);
        assert_eq!(sweep(&app).damaged, 1);
    }

    #[test]
    fn a_throttled_tenant_waits_as_it_was_told_and_holds_up_nobody() {
        let (world, app) = enrolled(40);
        world.advance(WEEK);
        let throttled = (429, json!({"error": "temporarily_unavailable"}));
        world.retry_after.set(Some(3600));
        world.entra_answers.borrow_mut().extend(vec![throttled; 40]);
        let report = sweep(&app);
        assert!(report.retrying <= 32 && report.remaining >= 8, "{report:?}");
        let calls = world.redeemed.borrow().len();
        world.advance(3599);
        assert_eq!(sweep(&app).refreshed, 0);
        assert_eq!(
            world.redeemed.borrow().len(),
            calls,
            "not one call before the time"
        );
        world.entra_answers.borrow_mut().clear();
        world.advance(902);
        assert_eq!(sweep(&app).refreshed, 40);
    }

    /// With as many tenants as fit at once, and with more.
    #[test]
    fn a_slow_tenant_holds_up_nobody() {
        for (others, concurrency) in [(3_u32, 32_u32), (9, 4)] {
            let tenant = |number| format!("{number:08}-7777-7777-7777-777777777777");
            let world = World::new();
            for (name, value) in [
                ("tenants", "*".to_owned()),
                ("sweep_concurrency", concurrency.to_string()),
            ] {
                world.settings.borrow_mut().insert(name, value);
            }
            let app = world.app();
            let users = (0..40)
                .map(|user| (0, user))
                .chain((1..=others).flat_map(|number| (0..5).map(move |user| (number, user))));
            for (number, user) in users {
                let object = format!("{user:08}-0000-0000-0000-000000000000");
                block_on(app.enroll(&world.bearer_in(&tenant(number), &object), None)).unwrap();
            }
            world.advance(WEEK);
            *world.held.borrow_mut() = Some(tenant(0));
            let key = Bearer::new(SWEEP_KEY.into());
            let mut sweep = pin!(app.sweep(&key));
            // As long as a few of its answers take, were they waited for one by one.
            for _ in 0..1000 {
                let mut context = Context::from_waker(Waker::noop());
                assert!(sweep.as_mut().poll(&mut context).is_pending());
            }
            let due = world.keys_of("due.");
            let is_due = |key: &&String| key[4..16].parse::<u64>().unwrap() <= world.now.get();
            let left: Vec<_> = due.iter().filter(is_due).collect();
            let slow = tenant(0).replace('-', "");
            assert!(left.iter().all(|key| key.contains(&slow)), "{left:?}");
            assert_eq!(left.len(), 40);
            *world.held.borrow_mut() = None;
            let report = block_on(sweep).unwrap();
            assert_eq!(report.refreshed, u64::from(40 + others * 5));
        }
    }

    #[test]
    fn one_users_request_loop_holds_up_nobody_else() {
        let (world, app) = enrolled(5);
        world.advance(WEEK);
        world
            .settings
            .borrow_mut()
            .insert("sweep_concurrency", "1".into());
        let loops = json!({"error": "invalid_grant", "error_codes": [50_196]});
        world.entra_answers.borrow_mut().push_back((400, loops));
        let app = {
            drop(app);
            world.app()
        };
        let report = sweep(&app);
        assert_eq!((report.retrying, report.refreshed), (1, 4), "{report:?}");
    }

    #[test]
    fn time_is_kept() {
        let (world, app) = enrolled(5);
        world.advance(WEEK);
        world
            .settings
            .borrow_mut()
            .insert("sweep_concurrency", "1".into());
        world
            .settings
            .borrow_mut()
            .insert("sweep_seconds", "1".into());
        // What is remembered is read and written, then comes the listing; a visit reads three rows.
        *world.before_store.borrow_mut() = Some((9, Box::new(|world: &World| world.advance(1))));
        let app = {
            drop(app);
            world.app()
        };
        let report = sweep(&app);
        assert!(report.remaining > 0 && report.refreshed > 0, "{report:?}");
        let rest = sweep(&app);
        assert_eq!(report.refreshed + rest.refreshed, 5);
    }

    #[test]
    fn a_removed_user_is_not_brought_back_by_a_sweep_at_any_step() {
        for step in 0..30 {
            let (world, app) = enrolled(1);
            world.advance(WEEK);
            let remove = |world: &World| {
                // What an acknowledged removal leaves.
                world
                    .rows
                    .borrow_mut()
                    .retain(|key, _| !key.starts_with("usr.") && !key.starts_with("rec."));
            };
            *world.before_store.borrow_mut() = Some((step, Box::new(remove)));
            sweep(&app);
            if world.before_store.borrow().is_some() {
                break;
            }
            assert_eq!(
                draw(&world, &app, 0),
                Err(KeeperError::NotEnrolled),
                "step {step}"
            );
            world.advance(2 * LITTER_AFTER + WEEK);
            sweep(&app);
            sweep(&app);
            assert!(
                world.keys_of("due.").is_empty(),
                "step {step}: {:?}",
                world.keys_of("")
            );
        }
    }

    #[test]
    fn a_failure_at_any_step_leaves_the_record_usable_and_due() {
        for step in 0..24 {
            let (world, app) = enrolled(1);
            world.advance(WEEK);
            world.store_fails_after.set(Some(step));
            let _ = block_on(app.sweep(&Bearer::new(SWEEP_KEY.into())));
            world.store_fails_after.set(None);
            assert!(!world.keys_of("due.").is_empty(), "step {step}");
            draw(&world, &app, 0).unwrap();
            // Whatever was left half-done is tidied up by later sweeps.
            for _ in 0..3 {
                world.advance(WEEK);
                sweep(&app);
            }
            assert_eq!(
                world.user_rows().len(),
                3,
                "step {step}: {:?}",
                world.keys_of("")
            );
        }
    }

    #[test]
    fn a_stranger_does_not_sweep() {
        let (world, app) = enrolled(1);
        world.advance(WEEK);
        let error = block_on(app.sweep(&Bearer::new("x".repeat(40)))).unwrap_err();
        assert!(matches!(error, KeeperError::Vault(VaultError::Caller(_))));
        assert_eq!(world.take_calls(), Vec::<String>::new());
        drop(Rc::clone(&world));
    }
}
