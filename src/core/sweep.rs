//! The sweep: refreshes what is due and re-seals what is under an old key (the seed's timer).
//!
//! One listing of keys, once; then work only for what is due, under an old key, or litter. Re-sealing comes first and
//! never calls Entra ID, so that a rotation completes while Entra ID is down (design §3).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join3;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::json;

use crate::error::{UserError, VaultError};
use crate::identity::{KeyVersion, Nonce, TenantId};
use crate::keeper::{Environment, Keeper, KeeperError, Replace, marker_of};
use crate::layout::{Layout, Marker, Tag};
use crate::port::{Policy, Store, StoredToken, VaultPort};
use crate::record::{Head, Record, Status};
use crate::secret::Bearer;

/// Seconds until a user who has to act, a dead token or an unreadable record is looked at again.
const DAILY: u64 = 86_400;
/// Seconds until another try when the other system did not say.
const RETRY: u64 = 300;
/// Age in seconds from which an enrolment that no head names is litter: younger, it may be one whose head is still to be
/// written (facts/storage-protocol.md §2, "GC").
const LITTER_AFTER: u64 = 86_400;

/// What one call of a sweep did.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct SweepReport {
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
    /// Records to be tried again soon, because another system failed.
    pub retrying: u64,
    /// Records that cannot be read or opened; kept, and looked at again daily.
    pub damaged: u64,
    /// Records that need the operator: a setting, a permission, a key, storage. The log says which.
    pub failed: u64,
    /// Left-over keys of removed or replaced enrolments that were cleared.
    pub cleared: u64,
    /// Records that there was no time for, or whose tenant failed; call again.
    pub remaining: u64,
    /// Unix time in seconds at which the next of the records not due now is due.
    pub next_due_at: Option<u64>,
}

/// What became of one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Refreshed,
    Resealed,
    InteractionRequired,
    Quarantined,
    Retrying,
    Damaged,
    Failed,
    Cleared,
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
        let mut markers: Vec<(String, Marker)> = self
            .store
            .list_keys()
            .await?
            .into_iter()
            .filter_map(|key| layout.read_marker(&key).map(|marker| (key, marker)))
            .collect();
        markers.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));

        let concurrency = usize::try_from(limits.concurrency).unwrap_or(1).max(1);
        let newest = self.newest_versions(&markers, concurrency).await;
        let (due, later): (Vec<_>, Vec<_>) = markers
            .iter()
            .partition(|(_, marker)| marker.time <= started);
        // What cannot be read cannot be re-sealed; it has its daily look.
        let is_outdated = |marker: &Marker| {
            newest
                .get(&marker.user.tenant)
                .is_some_and(|newest| *newest != marker.key_version)
        };
        let outdated = later
            .iter()
            .filter(|(_, marker)| marker.tag != Tag::NotReadable && is_outdated(marker));
        let mut report = SweepReport {
            due: count(due.len()),
            next_due_at: later.iter().map(|(_, marker)| marker.time).min(),
            ..SweepReport::default()
        };

        let pass = Pass {
            layout: &layout,
            policy: &limits.policy,
            // A tenant whose key cannot be had can be neither refreshed nor re-sealed now.
            stopped: RefCell::new(
                markers
                    .iter()
                    .map(|(_, marker)| &marker.user.tenant)
                    .filter(|tenant| !newest.contains_key(tenant))
                    .cloned()
                    .collect(),
            ),
            until: started.saturating_add(limits.seconds.into()),
        };
        let work: Vec<_> = outdated
            .map(|at| (*at, Work::Reseal))
            .chain(due.iter().map(|at| (*at, Work::Refresh)))
            .collect();
        let mut outcomes = stream::iter(work)
            .map(|(at, work)| self.visit(&pass, at, work))
            .buffer_unordered(concurrency);
        while let Some(outcome) = outcomes.next().await {
            report.add(outcome);
        }
        self.env
            .line(&json!({"event": "swept", "report": report}).to_string());
        Ok(report)
    }

    /// The newest key version of every tenant that has records: one question a tenant. Tenants without an answer are
    /// left out.
    async fn newest_versions(
        &self,
        markers: &[(String, Marker)],
        concurrency: usize,
    ) -> BTreeMap<TenantId, KeyVersion> {
        let tenants: BTreeSet<&TenantId> = markers
            .iter()
            .map(|(_, marker)| &marker.user.tenant)
            .collect();
        stream::iter(tenants)
            .map(|tenant| async move {
                match self.vault.newest_key_version(tenant).await {
                    Ok(version) => Some((tenant.clone(), version)),
                    Err(error) => {
                        self.tenant_failed(tenant, &error);
                        None
                    }
                }
            })
            .buffer_unordered(concurrency)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    async fn visit(
        &self,
        pass: &Pass<'_>,
        (key, marker): &(String, Marker),
        work: Work,
    ) -> Outcome {
        let stopped = pass.stopped.borrow().contains(&marker.user.tenant);
        if stopped || self.env.now() >= pass.until {
            return Outcome::Remaining;
        }
        let outcome = match work {
            Work::Refresh => self.visit_due(pass, key, marker).await,
            Work::Reseal => self.visit_outdated(pass, key, marker).await,
        };
        outcome.unwrap_or_else(|error| {
            self.env.line(&json!({"event": "sweep_failed", "tenant": marker.user.tenant.as_str(), "user": marker.user.id.as_str(), "reason": error.to_string()}).to_string());
            Outcome::Failed
        })
    }

    async fn visit_due(
        &self,
        pass: &Pass<'_>,
        key: &str,
        marker: &Marker,
    ) -> Result<Outcome, KeeperError> {
        let record = match self.look(pass, key, marker).await? {
            Look::At(record) => *record,
            Look::Over(outcome) => return Ok(outcome),
        };
        let now = self.env.now();
        if record.due_at > now {
            // A second marker of a record that was refreshed meanwhile.
            self.tidy(pass, key, marker, &record).await?;
            return Ok(Outcome::Nothing);
        }
        let at = Replace {
            layout: pass.layout,
            user: &marker.user,
            nonce: &marker.nonce,
            old: &record,
            visited: Some(key),
        };
        let failed_with = |status: Status| Record {
            status,
            write: Nonce::for_write(&self.env),
            due_at: now.saturating_add(DAILY),
            // The token and its generation stay.
            ..record.clone()
        };
        let (new, outcome) = match self.vault.refresh(&stored(marker, &record)).await {
            Ok(sealed) => (
                self.refreshed(&record, sealed, pass.policy),
                Outcome::Refreshed,
            ),
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
                let wait = error.retry_after_seconds.map_or(RETRY, u64::from);
                self.postpone(pass, key, marker, Tag::of(&record.status), wait)
                    .await?;
                return Ok(Outcome::Retrying);
            }
            Err(VaultError::Stored(_)) => {
                return self
                    .set_aside(pass, key, marker, "sealed_token_does_not_open")
                    .await;
            }
            Err(VaultError::Operator(error)) if error.is_about_one_key() => {
                self.tenant_failed(&marker.user.tenant, &error.into());
                self.postpone(pass, key, marker, Tag::of(&record.status), RETRY)
                    .await?;
                return Ok(Outcome::Failed);
            }
            Err(error @ (VaultError::Operator(_) | VaultError::Caller(_))) => {
                return Ok(self.stop_tenant(pass, marker, &error));
            }
        };
        Ok(if self.replace(&at, new).await? {
            outcome
        } else {
            Outcome::Nothing
        })
    }

    async fn visit_outdated(
        &self,
        pass: &Pass<'_>,
        key: &str,
        marker: &Marker,
    ) -> Result<Outcome, KeeperError> {
        let record = match self.look(pass, key, marker).await? {
            Look::At(record) => *record,
            Look::Over(outcome) => return Ok(outcome),
        };
        match self.vault.reseal(&stored(marker, &record)).await {
            Ok(Some(sealed)) => {
                let new = Record {
                    sealed: sealed.token,
                    key_version: sealed.key_version,
                    write: Nonce::for_write(&self.env),
                    // A record whose refresh was put off stays put off.
                    due_at: record.due_at.max(marker.time),
                    ..record.clone()
                };
                let at = Replace {
                    layout: pass.layout,
                    user: &marker.user,
                    nonce: &marker.nonce,
                    old: &record,
                    visited: Some(key),
                };
                Ok(if self.replace(&at, new).await? {
                    Outcome::Resealed
                } else {
                    Outcome::Nothing
                })
            }
            Ok(None) => {
                if marker.write != record.write {
                    self.tidy(pass, key, marker, &record).await?;
                }
                Ok(Outcome::Nothing)
            }
            Err(VaultError::Stored(_)) => {
                self.set_aside(pass, key, marker, "sealed_token_does_not_open")
                    .await
            }
            // The marker stays as it is, and so does the record: the next sweep finds both.
            Err(VaultError::Upstream(_) | VaultError::User(_)) => Ok(Outcome::Remaining),
            Err(VaultError::Operator(error)) if error.is_about_one_key() => {
                self.tenant_failed(&marker.user.tenant, &error.into());
                Ok(Outcome::Failed)
            }
            Err(error @ (VaultError::Operator(_) | VaultError::Caller(_))) => {
                Ok(self.stop_tenant(pass, marker, &error))
            }
        }
    }

    /// Reads what a marker points at, and deals with what is no usable record.
    async fn look(&self, pass: &Pass<'_>, key: &str, marker: &Marker) -> Result<Look, KeeperError> {
        let (user, nonce) = (&marker.user, &marker.nonce);
        let (head_key, record_key, off_key) = (
            pass.layout.head(user),
            pass.layout.record(&user.id, nonce),
            pass.layout.off(&user.id, nonce),
        );
        let (head, record, off) = join3(
            self.store.get(&head_key),
            self.store.get(&record_key),
            self.store.get(&off_key),
        )
        .await;
        let (head, record, off) = (head?, record?, off?);
        // A head that cannot be read may name this enrolment: nothing is cleared on its account.
        let Ok(head) = head.map(|json| Head::from_json(&json)).transpose() else {
            return self
                .set_aside(pass, key, marker, "head_not_readable")
                .await
                .map(Look::Over);
        };
        let current = head.is_some_and(|head| head.nonce == *nonce);
        if !current || off.is_some() {
            let old = nonce
                .enrolled_at()
                .is_some_and(|at| at.saturating_add(LITTER_AFTER) <= self.env.now());
            if !old {
                return Ok(Look::Over(Outcome::Nothing));
            }
            self.store.delete(&record_key).await?;
            if !current {
                self.store.delete(&off_key).await?;
            }
            self.store.delete(key).await?;
            return Ok(Look::Over(Outcome::Cleared));
        }
        match record.map(|json| Record::from_json(&json)) {
            Some(Ok(record)) => Ok(Look::At(Box::new(record))),
            Some(Err(_)) => self
                .set_aside(pass, key, marker, "record_not_readable")
                .await
                .map(Look::Over),
            None => self
                .set_aside(pass, key, marker, "record_lost")
                .await
                .map(Look::Over),
        }
    }

    /// Keeps what cannot be used, and has it looked at again in a day: "damaged" is never "delete".
    async fn set_aside(
        &self,
        pass: &Pass<'_>,
        key: &str,
        marker: &Marker,
        alarm: &str,
    ) -> Result<Outcome, KeeperError> {
        self.alarm(alarm, &marker.user);
        self.postpone(pass, key, marker, Tag::NotReadable, DAILY)
            .await?;
        Ok(Outcome::Damaged)
    }

    /// Sets a fresh marker at a later time, then deletes the one visited. The record is not touched.
    async fn postpone(
        &self,
        pass: &Pass<'_>,
        key: &str,
        marker: &Marker,
        tag: Tag,
        seconds: u64,
    ) -> Result<(), KeeperError> {
        let time = self.env.now().saturating_add(seconds);
        let fresh = Marker {
            time,
            tag,
            write: Nonce::for_write(&self.env),
            ..marker.clone()
        };
        self.store.set(&pass.layout.marker(&fresh), &[]).await?;
        self.store.delete(key).await?;
        Ok(())
    }

    /// Leaves one marker of a record that has two: a fresh one, set before either of the others is deleted.
    async fn tidy(
        &self,
        pass: &Pass<'_>,
        key: &str,
        marker: &Marker,
        record: &Record,
    ) -> Result<(), KeeperError> {
        let own = marker_of(&marker.user, &marker.nonce, record);
        let fresh = Marker {
            write: Nonce::for_write(&self.env),
            ..own.clone()
        };
        self.store.set(&pass.layout.marker(&fresh), &[]).await?;
        self.store.delete(key).await?;
        self.store.delete(&pass.layout.marker(&own)).await?;
        Ok(())
    }

    /// The fault is not this record's: spare the tenant's other records the same call.
    fn stop_tenant(&self, pass: &Pass<'_>, marker: &Marker, error: &VaultError) -> Outcome {
        if pass.stopped.borrow_mut().insert(marker.user.tenant.clone()) {
            self.tenant_failed(&marker.user.tenant, error);
        }
        Outcome::Failed
    }

    fn tenant_failed(&self, tenant: &TenantId, error: &VaultError) {
        self.env.line(&json!({"event": "tenant_failed", "tenant": tenant.as_str(), "reason": error.to_string()}).to_string());
    }
}

impl SweepReport {
    fn add(&mut self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Refreshed => &mut self.refreshed,
            Outcome::Resealed => &mut self.resealed,
            Outcome::InteractionRequired => &mut self.interaction_required,
            Outcome::Quarantined => &mut self.quarantined,
            Outcome::Retrying => &mut self.retrying,
            Outcome::Damaged => &mut self.damaged,
            Outcome::Failed => &mut self.failed,
            Outcome::Cleared => &mut self.cleared,
            Outcome::Remaining => &mut self.remaining,
            Outcome::Nothing => return,
        };
        *counter = counter.saturating_add(1);
    }
}

struct Pass<'a> {
    layout: &'a Layout,
    policy: &'a Policy,
    stopped: RefCell<BTreeSet<TenantId>>,
    until: u64,
}

#[derive(Clone, Copy)]
enum Work {
    Reseal,
    Refresh,
}

enum Look {
    At(Box<Record>),
    Over(Outcome),
}

fn stored(marker: &Marker, record: &Record) -> StoredToken {
    StoredToken {
        user: marker.user.clone(),
        nonce: marker.nonce.clone(),
        token: record.sealed.clone(),
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use pollster::block_on;
    use serde_json::json;

    use super::*;
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
    fn nothing_due_costs_one_listing_and_one_question_a_tenant() {
        let (world, app) = enrolled(20);
        let report = sweep(&app);
        assert_eq!(
            report,
            SweepReport {
                next_due_at: Some(world.now.get() + WEEK),
                ..SweepReport::default()
            }
        );
        assert_eq!(world.take_calls(), ["key vault "]);
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
        assert_eq!(world.rows.borrow().len(), 60);
        assert_eq!(sweep(&app).due, 0);
        assert!(
            world
                .rows
                .borrow()
                .keys()
                .all(|key| !key.starts_with("due.")
                    || key.contains(&format!("{:012}", world.now.get() + WEEK)))
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
        assert_eq!(world.rows.borrow().len(), 60);
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
        world.advance(RETRY);
        assert_eq!(sweep(&app).refreshed, 3);
        assert_eq!(world.rows.borrow().len(), 9);
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
        assert!(world.keys_of("due.")[0].contains(".q."));
        assert_eq!(sweep(&app).due, 0);
        world.advance(DAILY);
        assert_eq!(sweep(&app).refreshed, 1);
        assert!(world.keys_of("due.")[0].contains(".a."));
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
        let rows = world.rows.borrow().clone();
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
        assert_eq!(*world.rows.borrow(), rows);
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
        // The listing is the first operation; each record takes eleven.
        *world.before_store.borrow_mut() = Some((20, Box::new(|world: &World| world.advance(1))));
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
        for step in 0..12 {
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
        for step in 0..14 {
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
                world.rows.borrow().len(),
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
