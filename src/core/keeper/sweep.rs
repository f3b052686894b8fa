//! The sweep: re-seals what is under an old key, refreshes what is due, clears litter.
//!
//! One listing of keys, at most; then work only for what is under an old key, due, or litter. Re-sealing never calls Entra
//! ID, so that a rotation completes while Entra ID is down. A call ends by `sweep_seconds`, whatever the last record does:
//! what is left of that goes down as the time that the vault may take.
//!
//! What a sweep remembers for the next (`SweepState`) makes it cheaper and keeps two from doing the same work. Nothing
//! is wrong if it is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::deadline::{Deadline, LONGEST};
use crate::error::VaultError;
use crate::identity::TenantId;
use crate::journal::Journal as _;
use crate::keeper::audit::{Action, Entry};
use crate::keeper::course::{Asked, Course};
use crate::keeper::holds::Holds;
use crate::keeper::report::SweepReport;
use crate::keeper::turns::Turns;
use crate::keeper::verdict::{Verdict, Work};
use crate::keeper::visit::Pass;
use crate::keeper::{Keeper, KeeperError, Request};
use crate::ledger::schedule::{Horizon, least_refresh_age};
use crate::ledger::{Ledger, Outlook, StoreError};
use crate::port::Environment;
use crate::vault::port::{NewestKey, SweepLimits, VaultPort};

/// Seconds for which a sweep may go without a survey because nothing is due.
const QUIET_AT_MOST: u64 = 3600;
/// Tenants that a sweep remembers; with more, every sweep lists.
const REMEMBERED_TENANTS: usize = 1000;
/// Tenants whose newest keys are kept for the status: with all else of a sweep's state that is under 400 KB, which every store takes as a
/// value.
const MOST_NEWEST: usize = 2500;
/// Tenants without a key that a report names; with more, every sweep lists.
const MOST_NAMED: usize = 200;
/// Seconds by which a lease outlasts the call that holds it, because clocks count whole seconds.
const LEASE_MARGIN: u64 = 2;
/// The longest that a sweep call can be set to take, in seconds (setting `sweep_seconds`).
const LONGEST_SWEEP: u64 = 25;
/// Seconds by which the clocks of two replicas may differ: what the vault lets pass.
const CLOCK_TOLERANCE: u64 = 300;
/// The longest pause that Entra ID can ask for, in seconds: what the vault heeds at most.
const LONGEST_PAUSE: u64 = 3600;
/// How long it may take to tell whether the caller may sweep: an app's token can need signing keys.
const LONGEST_AUTHORIZATION: Duration = Duration::from_secs(5);
/// How long another system may take to confirm the clock.
const LONGEST_CONFIRMATION: Duration = Duration::from_secs(3);
/// What a sweep leaves for the next.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SweepState {
    /// Until when a sweep is under way, in Unix seconds.
    pub(crate) lease_until: u64,
    /// Until when nothing is due.
    pub(crate) quiet_until: u64,
    /// The newest key of each tenant, as Key Vault said last.
    pub(crate) newest: BTreeMap<String, Newest>,
    /// Tenants that Entra ID throttles, and until when it asked us to wait.
    pub(crate) paused: BTreeMap<String, u64>,
    /// Tenants whose turns took long, and how many milliseconds.
    pub(crate) slow: BTreeMap<String, u32>,
    /// The tenant at which the next round of questions for newest keys begins; none: anywhere.
    pub(crate) next_tenant: Option<String>,
    /// When the last sweep ended.
    pub(crate) ended_at: u64,
    /// What it did.
    pub(crate) report: SweepReport,
}

/// A tenant's newest key. An array in JSON, since there are many of them in one value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Newest(
    /// Its version.
    pub(crate) String,
    /// When that was made, in Unix seconds.
    pub(crate) Option<u64>,
    /// When it expires, likewise.
    pub(crate) Option<u64>,
);

impl Newest {
    fn of(key: &NewestKey) -> Self {
        Self(key.version.as_str().into(), key.created_at, key.expires_at)
    }
}

impl<V: VaultPort, L: Ledger, E: Environment> Keeper<V, L, E> {
    /// Sweeps: one bounded call.
    ///
    /// # Errors
    /// [`KeeperError`] if it cannot begin. What fails for one record is counted, not returned.
    pub async fn sweep(&self, request: &Request<'_>) -> Result<SweepReport, KeeperError> {
        let (start, started) = (self.env.elapsed(), self.env.now());
        let entry = Entry::new(&self.env, Action::Sweep, request);
        let terms = entry.terms(LONGEST_AUTHORIZATION);
        let limits = self.vault.authorize_sweep(request.bearer, terms).await;
        let call = Call {
            start,
            started,
            limits: entry.close(limits.map_err(Into::into))?,
        };
        let ledger = &self.open(&call.limits.policy).await?;
        let mut state = self.sweep_state(ledger).await?;
        if self.rules.doubts_state {
            state.forget_what_cannot_be(call.started);
        }
        if !L::LEASES && call.started < state.lease_until {
            return Ok(SweepReport::default());
        }
        let mut asked = Asked::new();
        if call.started < state.quiet_until {
            asked = self.ask_known(&state, &call).await;
            if let Some(error) = asked.values().find_map(|answer| self.stops(answer)) {
                return Ok(self.stopped(error));
            }
            if state.is_quiet(&asked) {
                return Ok(state.quiet_report());
            }
        }

        // Nothing is deleted and nothing noted by a clock that nobody has confirmed in this sweep.
        let within = LONGEST_CONFIRMATION.min(call.part(4));
        let confirmed = self.vault.confirm_clock(within.into()).await;
        if let Some(error) = self.stops(&confirmed) {
            return Ok(self.stopped(error));
        }
        if let Err(error) = &confirmed {
            let reason = json!({"reason": error.to_string()});
            self.env.event("clock_not_confirmed", reason);
        }
        let is_clock_confirmed = confirmed.is_ok() || !self.rules.needs_clock;
        if is_clock_confirmed {
            state.lease_until = call.lease_until();
            state.quiet_until = 0;
            self.remember(ledger, &state).await;
        }
        let outcome = self
            .pass(ledger, &call, is_clock_confirmed, &mut state, asked)
            .await;
        if let Ok(report) = &outcome {
            self.env.event("swept", json!({"report": report}));
            state.report = report.clone();
        }
        if is_clock_confirmed {
            state.lease_until = 0;
            state.ended_at = self.env.now();
            self.remember(ledger, &state).await;
        }
        outcome
    }

    /// What the last sweep left. What cannot be read is nothing.
    pub(crate) async fn sweep_state(&self, ledger: &L) -> Result<SweepState, StoreError> {
        let json = ledger.sweep_state().await?;
        Ok(json
            .and_then(|json| serde_json::from_slice(&json).ok())
            .unwrap_or_default())
    }

    /// Best effort: no sweep needs it.
    async fn remember(&self, ledger: &L, state: &SweepState) {
        if let Ok(json) = serde_json::to_vec(state)
            && let Err(error) = ledger.keep_sweep_state(&json).await
        {
            let reason = json!({"reason": error.to_string()});
            self.env.event("sweep_state_lost", reason);
        }
    }

    /// The error, if it is one that stops a sweep.
    fn stops<'a, T>(&self, answer: &'a Result<T, VaultError>) -> Option<&'a VaultError> {
        let error = answer.as_ref().err()?;
        matches!((self.rules.verdict)(error, Work::NewestKey), Verdict::Stop).then_some(error)
    }

    fn stopped(&self, error: &VaultError) -> SweepReport {
        let (code, reason) = (error.code(), error.to_string());
        self.env
            .event("sweep_stopped", json!({"code": code, "reason": reason}));
        SweepReport {
            lease_held: true,
            stopped: Some(code.into()),
            ..SweepReport::default()
        }
    }

    /// Asks for the newest keys of the tenants that the last sweep knew. Who has no time for an answer has none.
    async fn ask_known(&self, state: &SweepState, call: &Call) -> Asked {
        let known = state
            .newest
            .keys()
            .chain(state.report.without_key.keys())
            .filter_map(|tenant| TenantId::parse(tenant));
        let until = call.until();
        stream::iter(known.collect::<BTreeSet<_>>())
            .map(|tenant| async move {
                let within = until.left(&self.env).min(self.rules.longest_question);
                if within.is_zero() {
                    return None;
                }
                let answer = self.vault.newest_key_version(&tenant, within.into()).await;
                Some((tenant, answer))
            })
            .buffer_unordered(call.concurrency())
            .filter_map(|answer| async { answer })
            .collect()
            .await
    }

    async fn pass(
        &self,
        ledger: &L,
        call: &Call,
        is_clock_confirmed: bool,
        state: &mut SweepState,
        asked: Asked,
    ) -> Result<SweepReport, KeeperError> {
        let now = self.env.now();
        let policy = &call.limits.policy;
        let horizon = Horizon::new(now, is_clock_confirmed);
        let left = call.until().left(&self.env);
        let third = Deadline::within(&self.env, left.checked_div(3).unwrap_or_default());
        let survey = ledger.survey(horizon, third).await?;
        let mut report = SweepReport {
            lease_held: true,
            due: (survey.tenants.values()).fold(0, |due, outlook| due.saturating_add(outlook.due)),
            unchecked: survey.not_seen,
            ..SweepReport::default()
        };
        let mut litter_left = 0;
        let mut not_noted = survey.not_noted.clone();
        if is_clock_confirmed {
            let until = Deadline::within(&self.env, call.part(10));
            let tended = ledger.tend(&survey, until).await?;
            (report.cleared, litter_left) = (tended.cleared, tended.left);
            not_noted.clear();
            if let Err(error) = ledger.keep_summary(&survey).await {
                let reason = json!({"reason": error.to_string()});
                self.env.event("summary_not_kept", reason);
            }
        }
        let paused = state.paused.iter().filter(|(_, until)| **until > now);
        let paused = paused.filter_map(|(tenant, until)| Some((TenantId::parse(tenant)?, *until)));
        let pass = Pass {
            ledger,
            policy,
            rules: &self.rules,
            until: call.until(),
            end: call.end(),
            lease_until: call.lease_until(),
            is_clock_confirmed,
            horizon,
            holds: Holds::new(paused.collect(), not_noted),
        };
        let slow = std::mem::take(&mut state.slow).into_iter();
        let slow = slow.filter_map(|(tenant, milliseconds)| {
            let time = Duration::from_millis(milliseconds.into());
            Some((TenantId::parse(&tenant)?, time.min(LONGEST)))
        });
        let turns = Turns::new(self.rules.order, slow.collect());
        let mut course = Course::new(&survey, turns, asked, report);
        self.line_up(&mut course, state.next_tenant.take());
        self.work(&pass, &mut course, call.concurrency()).await;

        let Course {
            turns,
            mut report,
            tally,
            mut left_alone,
            next_due,
            ..
        } = course;
        let remembered = if self.rules.remembers_slow {
            REMEMBERED_TENANTS
        } else {
            0
        };
        let slow = turns.slow().iter().take(remembered);
        state.slow = slow
            .map(|(tenant, time)| {
                let milliseconds = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
                (tenant.as_str().into(), milliseconds)
            })
            .collect();
        let first_left = report.add_left(turns, &survey.tenants, &mut left_alone);
        self.give_back(&pass, &survey, left_alone, call.concurrency())
            .await;
        self.tell_not_served(&pass, &survey.tenants, &mut report);
        self.tell_refused(&tally);
        let without_key = pass.holds.without_key();
        report.tenants_without_key = count(without_key.len());
        report.without_key = without_key
            .into_iter()
            .take(MOST_NAMED)
            .map(|(tenant, code)| (tenant.as_str().into(), code.into()))
            .collect();
        report.stopped = pass.holds.stopped().map(Into::into);
        let outlooks = survey.tenants.iter();
        let served = outlooks.filter(|(tenant, _)| !pass.holds.is_not_served(tenant));
        let later = served.filter_map(|(_, outlook)| outlook.next_due);
        report.next_due_at = later.chain(next_due).min();

        let is_done = [
            report.remaining,
            report.failed,
            report.unchecked,
            litter_left,
        ] == [0; 4]
            && report.stopped.is_none()
            && !pass.holds.is_open();
        // What has changed is for the next survey to show.
        let is_shown = is_clock_confirmed && !report.has_changed_anything();
        state.keep_holds(&pass.holds, now);
        state.next_tenant = first_left.map(|tenant| tenant.as_str().into());
        let is_whole = survey.not_seen == 0;
        state.keep_newest(&pass.holds, &survey.tenants, is_whole);
        if is_done && is_shown {
            // No record that is enrolled or refreshed from now on is due before it is of this age.
            let age = least_refresh_age(policy.refresh_after_seconds);
            let users = survey.summary.totals.users;
            let worth = users.checked_div(self.rules.users_a_second);
            let longest = age.min(QUIET_AT_MOST).min(worth.unwrap_or(u64::MAX));
            state.keep_quiet(&pass.holds, &report, now, longest);
        }
        Ok(report)
    }
}

/// How one call is bounded.
struct Call {
    /// On the clock that nobody sets.
    start: Duration,
    /// In Unix seconds.
    started: u64,
    limits: SweepLimits,
}

impl Call {
    fn window(&self) -> Duration {
        Duration::from_secs(self.limits.seconds.into())
    }

    /// The so-manieth part of the window.
    fn part(&self, parts: u32) -> Duration {
        self.window().checked_div(parts).unwrap_or_default()
    }

    /// When the last answer has to be there: what is left until the end is for writing.
    fn until(&self) -> Deadline {
        let rest = self.part(10).max(Duration::from_millis(250));
        Deadline::after(self.start, self.window().saturating_sub(rest))
    }

    fn end(&self) -> Deadline {
        Deadline::after(self.start, self.window())
    }

    /// In Unix seconds.
    fn lease_until(&self) -> u64 {
        let seconds = u64::from(self.limits.seconds).saturating_add(LEASE_MARGIN);
        self.started.saturating_add(seconds)
    }

    fn concurrency(&self) -> usize {
        usize::try_from(self.limits.concurrency).unwrap_or(1).max(1)
    }
}

impl SweepState {
    /// Until when tenants stay away from Entra ID.
    fn keep_holds(&mut self, holds: &Holds, now: u64) {
        let paused = holds.no_entra().into_iter();
        self.paused = paused
            .filter(|(_, until)| *until > now)
            .map(|(tenant, until)| (tenant.as_str().into(), until))
            .take(REMEMBERED_TENANTS)
            .collect();
    }

    /// Until when there is nothing to do, if every tenant's newest key stays the one that it is; for so long at most.
    fn keep_quiet(&mut self, holds: &Holds, report: &SweepReport, now: u64, longest: u64) {
        let newest = holds.newest();
        if newest.len() > REMEMBERED_TENANTS || report.tenants_without_key > count(MOST_NAMED) {
            return;
        }
        let quiet = now.saturating_add(longest);
        let next = report.next_due_at.into_iter();
        let next = next.chain(holds.no_entra().into_values());
        self.quiet_until = next.fold(quiet, u64::min);
    }

    /// What Key Vault said of the newest keys of tenants of which something is stored; of those that could not be asked for now,
    /// what it said before. Unless `tenants` are the whole of those, the others are kept, too.
    fn keep_newest(
        &mut self,
        holds: &Holds,
        tenants: &BTreeMap<TenantId, Outlook>,
        is_whole: bool,
    ) {
        let mut before = std::mem::take(&mut self.newest);
        let newest = holds.newest();
        let served = tenants.keys().filter(|it| !holds.is_not_served(it));
        let known = served.filter_map(|tenant| {
            let known = before.remove(tenant.as_str());
            let newest = newest.get(tenant).map(Newest::of).or(known)?;
            Some((tenant.as_str().to_owned(), newest))
        });
        self.newest = known.take(MOST_NEWEST).collect();
        if !is_whole {
            let room = MOST_NEWEST.saturating_sub(self.newest.len());
            self.newest.extend(before.into_iter().take(room));
        }
    }

    /// Times further ahead than any sweep can have left them, be it by a clock that was wrong or by hand.
    fn forget_what_cannot_be(&mut self, now: u64) {
        let latest = |most: u64| now.saturating_add(most).saturating_add(CLOCK_TOLERANCE);
        if self.lease_until > latest(LONGEST_SWEEP.saturating_add(LEASE_MARGIN)) {
            self.lease_until = 0;
        }
        if self.quiet_until > latest(QUIET_AT_MOST) {
            self.quiet_until = 0;
        }
        let latest = latest(LONGEST_PAUSE);
        self.paused.retain(|_, until| *until <= latest);
    }

    /// Whether every tenant's key is as the last sweep left it.
    fn is_quiet(&self, asked: &Asked) -> bool {
        asked.iter().all(|(tenant, answer)| {
            let tenant = tenant.as_str();
            match answer {
                Ok(newest) => {
                    let had_none = self.report.without_key.contains_key(tenant);
                    self.newest.get(tenant) == Some(&Newest::of(newest)) && !had_none
                }
                // To be told, once.
                Err(_) => self.report.without_key.contains_key(tenant),
            }
        })
    }

    /// What a sweep says that found nothing to do.
    fn quiet_report(&self) -> SweepReport {
        SweepReport {
            lease_held: true,
            waiting: self.report.waiting,
            not_served: self.report.not_served,
            tenants_without_key: self.report.tenants_without_key,
            without_key: self.report.without_key.clone(),
            next_due_at: self.report.next_due_at,
            ..SweepReport::default()
        }
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use crate::secret::Bearer;
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::{Context, Waker};

    use pollster::block_on;
    use serde_json::json;

    use super::*;
    use crate::error::{Interaction, Reason};
    use crate::ledger::LedgerError;
    use crate::ledger::key_value::listing::LITTER_AFTER;
    use crate::ledger::record::{Record, Status};
    use crate::ledger::schedule::{DAILY, MONTHLY, RETENTION};
    use crate::simulation::world::{App, SWEEP_KEY, Shared, World};
    use crate::vault::samples::{NOW, TENANT};

    const WEEK: u64 = 604_800;

    fn enrolled(users: u32) -> (Shared, App) {
        let world = World::new();
        let app = world.app();
        for user in 0..users {
            block_on(app.enrol(
                &Request::of(&world.bearer_of(&format!("{user:08x}-0000-0000-0000-000000000000"))),
                None,
            ))
            .unwrap();
        }
        world.take_calls();
        (world, app)
    }

    fn sweep(app: &App) -> SweepReport {
        block_on(app.sweep(&Request::of(&Bearer::new(SWEEP_KEY.into())))).unwrap()
    }

    fn draw(world: &Shared, app: &App, user: u32) -> Result<(), KeeperError> {
        block_on(app.draw(
            &Request::of(&world.bearer_of(&format!("{user:08x}-0000-0000-0000-000000000000"))),
            None,
            None,
        ))
        .map(drop)
    }

    #[test]
    fn nothing_due_costs_one_listing_an_hour_and_one_question_a_tenant() {
        let (world, mut app) = enrolled(20);
        app.rules.users_a_second = 0;
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
        let listed = SweepReport {
            checked: 1,
            ..quiet.clone()
        };
        assert_eq!(report, listed);
        // The clock first.
        assert_eq!(world.take_calls(), ["keys", "key vault "]);

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
        assert_eq!(sweep(&app), listed);
        assert_eq!(world.listings.get(), 1);
    }

    #[test]
    fn the_fewer_users_the_sooner_the_next_survey() {
        let (world, mut app) = enrolled(20);
        app.rules.users_a_second = 2;
        sweep(&app);
        for (later, listings) in [(9, 0), (1, 1), (1, 0), (9, 1)] {
            world.listings.set(0);
            world.advance(later);
            sweep(&app);
            assert_eq!(world.listings.get(), listings);
        }
        // What a sweep has changed is seen at the next tick.
        world.rotate();
        assert_eq!(sweep(&app).resealed, 20);
        world.listings.set(0);
        sweep(&app);
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
        world.advance(DAILY * 9 / 8);
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
        let view = block_on(app.show(&Request::of(
            &world.bearer_of("00000000-0000-0000-0000-000000000000"),
        )))
        .unwrap();
        assert_eq!(
            view.record.unwrap().status,
            Status::InteractionRequired(Interaction {
                claims: Some("{\"c\":1}".into()),
                reason: Reason {
                    aadsts: Some(50_076),
                    suberror: None,
                },
            })
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
        assert_eq!((report.waiting, report.refreshed), (40, 0), "{report:?}");
        assert_eq!(world.user_rows(), rows);
        assert_eq!(world.lines("credential_refused"), 1);
        assert!(
            world.redeemed.borrow().len() <= 32,
            "the others were spared the call"
        );
        // Whoever has mended it need not wait.
        world.entra_answers.borrow_mut().clear();
        assert_eq!(sweep(&app).refreshed, 40);
    }

    #[test]
    fn a_tenant_whose_key_vault_fails_is_left_alone() {
        let (world, mut app) = enrolled(3);
        app.rules.users_a_second = 0;
        world.advance(WEEK);
        world.down.borrow_mut().push("key vault");
        let report = sweep(&app);
        assert_eq!((report.due, report.waiting, report.remaining), (3, 3, 0));
        assert_eq!(report.without_key[TENANT], "key_vault_unavailable");
        assert_eq!(world.lines("tenant_without_key"), 1);
        // No listing, as long as it stays so.
        world.listings.set(0);
        let again = sweep(&app);
        assert_eq!(
            (
                again.waiting,
                again.tenants_without_key,
                world.listings.get()
            ),
            (3, 1, 0)
        );
        world.down.borrow_mut().clear();
        assert_eq!(sweep(&app).refreshed, 3);
    }

    #[test]
    fn a_tenant_that_is_no_longer_served_is_counted_and_remains_nobodys_work() {
        let world = World::new();
        let other = "77777777-7777-7777-7777-777777777777";
        world.settings.borrow_mut().insert("tenants", "*".into());
        let app = world.app();
        for tenant in [TENANT, other] {
            for user in 0..3 {
                let object = format!("{user:08x}-0000-0000-0000-000000000000");
                block_on(app.enrol(&Request::of(&world.bearer_in(tenant, &object)), None)).unwrap();
            }
        }
        world
            .settings
            .borrow_mut()
            .insert("tenants", TENANT.to_owned());
        world.advance(WEEK);
        let mut app = world.app();
        app.rules.users_a_second = 0;
        let report = sweep(&app);
        assert_eq!(
            (report.not_served, report.refreshed, report.remaining),
            (3, 3, 0)
        );
        assert!(report.next_due_at > Some(world.now.get()), "{report:?}");
        let line = format!("DELETE /v1/tenants/{other}");
        let log = world.log.borrow().join("\n");
        assert_eq!(log.matches(&line).count(), 1, "{log}");
        // It does not keep listings going, once what was refreshed has been seen.
        sweep(&app);
        world.listings.set(0);
        let again = sweep(&app);
        assert_eq!((again.not_served, world.listings.get()), (3, 0));
    }

    #[test]
    fn without_an_answer_that_has_a_date_nothing_is_deleted_or_noted() {
        let (world, app) = enrolled(2);
        // Something to delete, and something to note the time of.
        let litter = "off.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA.1000000000x".to_owned();
        world.rows.borrow_mut().insert(litter.clone(), Vec::new());
        sweep(&app);
        assert!(!world.rows.borrow().contains_key(&litter), "it would be");
        let notes = world.keys_of("ver.");
        world.rows.borrow_mut().insert(litter.clone(), Vec::new());
        world.advance(WEEK);
        world.rotate();
        world.dated.set(false);
        let state = world.rows.borrow()["sweep.state"].clone();
        let app = world.app();
        let report = sweep(&app);
        assert_eq!((report.resealed, report.refreshed), (2, 2), "work goes on");
        assert!(world.rows.borrow().contains_key(&litter));
        assert_eq!(world.keys_of("ver."), notes);
        assert_eq!(world.rows.borrow()["sweep.state"], state);
        assert_eq!(world.lines("clock_not_confirmed"), 1);
        // Nor is a token too old by such a clock.
        let dead =
            json!({"error": "invalid_grant", "error_codes": [50_173], "suberror": "bad_token"});
        world.advance(2 * RETENTION);
        let answers = std::iter::repeat_n((400, dead), 4);
        world.entra_answers.borrow_mut().extend(answers);
        let report = sweep(&app);
        assert_eq!((report.expired, report.quarantined), (0, 2));
        world.dated.set(true);
        world.advance(WEEK * 9 / 8);
        assert_eq!(sweep(&world.app()).expired, 2);
    }

    /// What has not been noted as in use must not be left: it would be taken for a version that was never used.
    #[test]
    fn what_is_under_a_version_that_cannot_be_noted_stays_there() {
        let (world, _) = enrolled(2);
        world.rotate();
        world.dated.set(false);
        let report = sweep(&world.app());
        assert_eq!((report.resealed, report.waiting), (0, 2));
        world.advance(WEEK);
        let report = sweep(&world.app());
        assert_eq!((report.refreshed, report.waiting), (0, 2));
        world.dated.set(true);
        let report = sweep(&world.app());
        assert_eq!((report.resealed, report.refreshed), (2, 2));
    }

    #[test]
    fn what_a_wrong_clock_has_put_far_off_is_due_now() {
        let (world, app) = enrolled(1);
        let decade = 3650 * DAILY;
        let (key, due) = (
            world.keys_of("rec.").remove(0),
            world.keys_of("due.").remove(0),
        );
        let mut record = Record::from_json(&world.rows.borrow()[&key]).unwrap();
        let time = record.due_at;
        record.due_at += decade;
        let late = due.replace(&format!("{time:012}"), &format!("{:012}", record.due_at));
        world.rows.borrow_mut().insert(key, record.to_json());
        world.rows.borrow_mut().remove(&due);
        world.rows.borrow_mut().insert(late, Vec::new());
        world.advance(60);
        assert_eq!(sweep(&app).refreshed, 1);
        assert_eq!(world.user_rows().len(), 3);
        assert!(sweep(&app).next_due_at.unwrap() <= world.now.get() + WEEK);
    }

    /// A refusal that is known is not written again, unless the record tells a time that cannot be.
    #[test]
    fn a_refusal_that_a_wrong_clock_has_dated_is_dated_anew() {
        let (world, app) = enrolled(1);
        let key = world.keys_of("rec.").remove(0);
        let due = || {
            Record::from_json(&world.rows.borrow()[&key])
                .unwrap()
                .due_at
        };
        let refused =
            json!({"error": "invalid_grant", "error_codes": [50_173], "suberror": "bad_token"});
        let refuse = || {
            world
                .entra_answers
                .borrow_mut()
                .push_back((400, refused.clone()));
        };
        world.advance(WEEK);
        let right = world.now.get();
        world.now.set(right + 200 * DAILY);
        world.dated.set(false);
        refuse();
        assert_eq!(sweep(&app).quarantined, 1);
        assert!(due() > right + 200 * DAILY);
        world.now.set(right);
        world.dated.set(true);
        world.advance(60);
        refuse();
        assert_eq!(sweep(&app).quarantined, 1);
        assert!(due() <= right + WEEK, "{} {right}", due());
    }

    #[test]
    fn most_refreshes_of_a_tenant_with_the_same_number_are_one_alarm() {
        let dead =
            json!({"error": "invalid_grant", "error_codes": [50_173], "suberror": "bad_token"});
        for (refused, alarms) in [(2, 0), (3, 1), (4, 1)] {
            let (world, app) = enrolled(4);
            world.advance(WEEK);
            let answers = std::iter::repeat_n((400, dead.clone()), refused);
            world.entra_answers.borrow_mut().extend(answers);
            let report = sweep(&app);
            assert_eq!(
                (report.quarantined, report.refreshed),
                (refused as u64, 4 - refused as u64)
            );
            assert_eq!(world.lines("tenant_refused"), alarms, "{refused}");
        }
    }

    /// One organisation's administrators have something to do: no alarm. All organisations' seem to: it is this app.
    #[test]
    fn what_every_organisation_is_said_to_have_to_do_is_an_alarm() {
        let gone = json!({"error": "unauthorized_client", "error_codes": [700_016]});
        for (tenants, alarms) in [(1, 0), (3, 1)] {
            let world = World::new();
            world.settings.borrow_mut().insert("tenants", "*".into());
            let app = world.app();
            for tenant in 0..tenants {
                let tenant = format!("{tenant:08x}-7777-7777-7777-777777777777");
                for user in 0..5 {
                    let object = format!("{user:08x}-0000-0000-0000-000000000000");
                    block_on(app.enrol(&Request::of(&world.bearer_in(&tenant, &object)), None))
                        .unwrap();
                }
            }
            world.advance(WEEK);
            let answers = std::iter::repeat_n((400, gone.clone()), 15);
            world.entra_answers.borrow_mut().extend(answers);
            let report = sweep(&app);
            assert_eq!(report.organisation_required, 5 * tenants);
            assert_eq!(world.lines("tenant_refused"), 0);
            assert_eq!(world.lines("every_tenant_refused"), alarms, "{tenants}");
        }
    }

    #[test]
    fn a_verdict_that_is_known_moves_the_marker_alone() {
        let refused = json!({"error": "invalid_grant", "error_codes": [50_105]});
        let (world, app) = enrolled(1);
        world.advance(WEEK);
        world
            .entra_answers
            .borrow_mut()
            .push_back((400, refused.clone()));
        assert_eq!(sweep(&app).organisation_required, 1);
        let view = block_on(app.show(&Request::of(
            &world.bearer_of("00000000-0000-0000-0000-000000000000"),
        )))
        .unwrap();
        let reason = Reason {
            aadsts: Some(50_105),
            suberror: None,
        };
        let status = Status::OrganisationRequired(crate::error::OrganisationError(reason));
        assert_eq!(view.record.unwrap().status, status);
        let (record, marker) = (
            world.keys_of("rec.").remove(0),
            world.keys_of("due.").remove(0),
        );
        let before = world.rows.borrow()[&record].clone();
        world.advance(DAILY * 9 / 8);
        world.entra_answers.borrow_mut().push_back((400, refused));
        assert_eq!(sweep(&app).organisation_required, 1);
        assert_eq!(world.rows.borrow()[&record], before);
        assert_ne!(world.keys_of("due.")[0], marker);
        world.advance(DAILY * 9 / 8);
        assert_eq!(sweep(&app).refreshed, 1, "it heals");
    }

    /// Two tenants that were refused with none accepted in between hold up all; one alone holds up nobody else.
    #[test]
    fn a_refused_credential_holds_up_its_tenant_and_two_hold_up_all() {
        for (refused, refreshed, waiting) in [(1, 6, 3), (9, 0, 9)] {
            let world = World::new();
            world.settings.borrow_mut().insert("tenants", "*".into());
            world
                .settings
                .borrow_mut()
                .insert("sweep_concurrency", "1".into());
            let app = world.app();
            for tenant in 0..3 {
                let tenant = format!("{tenant:08x}-7777-7777-7777-777777777777");
                for user in 0..3 {
                    let object = format!("{user:08x}-0000-0000-0000-000000000000");
                    block_on(app.enrol(&Request::of(&world.bearer_in(&tenant, &object)), None))
                        .unwrap();
                }
            }
            world.advance(WEEK);
            let answer = json!({"error": "invalid_client", "error_codes": [7_000_215]});
            let answers = std::iter::repeat_n((401, answer), refused);
            world.entra_answers.borrow_mut().extend(answers);
            world.redeemed.borrow_mut().clear();
            let report = sweep(&app);
            assert_eq!(
                (report.refreshed, report.waiting, report.remaining),
                (refreshed, waiting, 0)
            );
            if refused > 1 {
                assert_eq!(
                    world.redeemed.borrow().len(),
                    2,
                    "nobody tried a third time"
                );
            }
        }
    }

    #[test]
    fn a_store_that_fails_for_one_record_after_the_other_stops_the_sweep() {
        let (world, app) = enrolled(20);
        world.advance(WEEK);
        world
            .settings
            .borrow_mut()
            .insert("sweep_concurrency", "1".into());
        let app = {
            drop(app);
            world.app()
        };
        // Everything is read, and nothing can be written.
        *world.refused.borrow_mut() = Some("due.");
        let report = sweep(&app);
        assert_eq!(report.stopped.as_deref(), Some("store_unavailable"));
        assert_eq!((report.failed, report.refreshed), (3, 0));
        assert_eq!(report.failed + report.remaining, 20);
        assert_eq!(world.lines("sweep_stopped"), 1);
        *world.refused.borrow_mut() = None;
        assert_eq!(sweep(&world.app()).refreshed, 20);
    }

    #[test]
    fn nothing_is_swept_by_a_wrong_clock() {
        let (world, app) = enrolled(2);
        world.advance(WEEK);
        world.others_ahead.set(301);
        let rows = world.user_rows();
        let all = world.rows.borrow().clone();
        assert_eq!(sweep(&app).stopped.as_deref(), Some("clock_wrong"));
        assert_eq!(world.user_rows(), rows);
        assert_eq!(*world.rows.borrow(), all, "nothing is noted either");
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
        let (mut tries, mut damaged) = ([0, 0], 0);
        for hour in (7 * 24..RETENTION / 3600).step_by(3) {
            world.entra_answers.borrow_mut().push_back(dead.clone());
            let report = sweep(&app);
            world.entra_answers.borrow_mut().clear();
            assert_eq!((report.refreshed, report.expired), (0, 0), "hour {hour}");
            tries[usize::from(hour >= 90 * 24)] += report.quarantined;
            damaged += report.damaged;
            world.advance(3 * 3600);
        }
        assert!((70..=83).contains(&tries[0]), "daily, then {tries:?}");
        assert!((8..=15).contains(&tries[1]), "weekly, {tries:?}");
        assert_eq!(damaged, 173, "daily");
        let mut weeks = 0..3;
        while weeks.next().is_some() && world.keys_of("off.").is_empty() {
            world.entra_answers.borrow_mut().push_back(dead.clone());
            sweep(&app);
            world.advance(WEEK);
        }
        assert_eq!(
            (world.keys_of("off.").len(), world.keys_of("rec.")),
            (1, vec![key])
        );
        world.advance(MONTHLY);
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
        assert!(report.retrying <= 32 && report.waiting >= 8, "{report:?}");
        assert_eq!(report.remaining, 0, "calling again is of no use");
        assert_eq!(world.lines("tenant_held"), 1);
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

    /// With as many tenants as fit at once, and with more; a slow Entra ID, and a slow Key Vault.
    #[test]
    fn a_slow_tenant_holds_up_nobody() {
        let sizes = [(3_u32, 32_u32), (9, 4)];
        let systems = ["entra", "key vault"];
        let cases = sizes.map(|size| systems.map(|system| (size, system)));
        for ((others, concurrency), system) in cases.into_iter().flatten() {
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
                block_on(app.enrol(
                    &Request::of(&world.bearer_in(&tenant(number), &object)),
                    None,
                ))
                .unwrap();
            }
            world.advance(WEEK);
            // One that remembers no key.
            let app = {
                drop(app);
                world.app()
            };
            *world.held.borrow_mut() = Some((system, tenant(0)));
            let key = Bearer::new(SWEEP_KEY.into());
            let request = Request::of(&key);
            let mut sweep = pin!(app.sweep(&request));
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
        // The settings that were seen and what is remembered are read, the latter is written; then come the listing, the key
        // version's note and the summary; a visit reads three rows.
        *world.before_store.borrow_mut() = Some((14, Box::new(|world: &World| world.advance(1))));
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
                Err(KeeperError::Ledger(LedgerError::NotEnrolled)),
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
            let _ = block_on(app.sweep(&Request::of(&Bearer::new(SWEEP_KEY.into()))));
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
    fn a_listing_in_pages_is_read_to_its_end() {
        for page in [1, 2, 7, 1000] {
            let (world, app) = enrolled(5);
            world.page.set(Some(page));
            world.advance(WEEK);
            let report = sweep(&app);
            assert_eq!((report.due, report.refreshed), (5, 5), "{page}");
            world.rotate();
            assert_eq!(sweep(&app).resealed, 5);
        }
    }

    #[test]
    fn a_stranger_does_not_sweep() {
        let (world, app) = enrolled(1);
        world.advance(WEEK);
        let error = block_on(app.sweep(&Request::of(&Bearer::new("x".repeat(40))))).unwrap_err();
        assert!(matches!(error, KeeperError::Vault(VaultError::Caller(_))));
        assert_eq!(world.take_calls(), Vec::<String>::new());
        drop(Rc::clone(&world));
    }
}
