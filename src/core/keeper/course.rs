//! The course of a sweep: turns are given and taken, and what they come to is written and counted.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::json;

use crate::error::VaultError;
use crate::identity::{KeyVersion, TenantId};
use crate::keeper::plan::Plan;
use crate::keeper::report::SweepReport;
use crate::keeper::turns::{Job, Receipt, Share, Turns};
use crate::keeper::verdict::{Verdict, Work};
use crate::keeper::visit::{Found, Outcome, Pass, Visit, Visited};
use crate::keeper::{Environment, Keeper, marker_of};
use crate::ledger::key_value::layout::{Marker, Tag};
use crate::ledger::key_value::store::Store;
use crate::ledger::key_value::wave::{Change, WAVE, What};
use crate::ledger::record::Status;
use crate::ledger::schedule::random_number;
use crate::vault::port::VaultPort;

/// Refreshes of a tenant from which on it is an alarm that most have the same outcome.
const MANY: u64 = 4;

/// What tenants' newest keys were said to be.
pub(crate) type Asked = BTreeMap<TenantId, Result<KeyVersion, VaultError>>;

/// What a sweep has in hand.
pub(crate) struct Course<'a> {
    pub(crate) plan: Plan<'a>,
    pub(crate) turns: Turns,
    pub(crate) report: SweepReport,
    pub(crate) tally: BTreeMap<TenantId, Tally>,
    /// When the first of the records is due that were put off or refreshed.
    pub(crate) next_due: Option<u64>,
}

impl<V: VaultPort, S: Store, E: Environment> Keeper<V, S, E> {
    /// Gives every tenant its first turn: to have its newest key asked for, unless that was done already.
    pub(crate) fn line_up(
        &self,
        pass: &Pass<'_>,
        course: &mut Course<'_>,
        first: Option<String>,
        mut asked: Asked,
    ) {
        let tenants: Vec<_> = course.plan.tenants().cloned().collect();
        // The questions go round: where the last sweep had no time left, this one begins.
        let start = match first {
            Some(first) => tenants.partition_point(|tenant| tenant.as_str() < first.as_str()),
            None => usize::try_from(self.below(tenants.len())).unwrap_or_default(),
        };
        let (before, from) = tenants.split_at(start.min(tenants.len()));
        for (rank, tenant) in from.iter().chain(before).enumerate() {
            if let Some(answer) = asked.remove(tenant) {
                self.heed_answer(pass, course, tenant, answer);
                continue;
            }
            if course.plan.has_due(tenant) {
                let tie = random_number(&self.env);
                course.turns.ask(tenant, Share::Refresh, tie);
            } else {
                course.turns.ask(tenant, Share::Check, count(rank));
            }
        }
    }

    /// Gives turns until there is nothing left to do, or no time. As many records are in hand as the settings allow, from
    /// their turn until they are written. What is ready meanwhile is written together.
    pub(crate) async fn work(&self, pass: &Pass<'_>, course: &mut Course<'_>, most: usize) {
        let mut flights = FuturesUnordered::new();
        let mut in_hand = 0_usize;
        loop {
            while in_hand < most && pass.holds.stopped().is_none() && !pass.until.is_over(&self.env)
            {
                let Some(turn) = course.turns.next() else {
                    break;
                };
                let (tenant, share) = (turn.tenant.clone(), turn.share);
                let (job, receipt) = turn.split();
                let job = match job {
                    Job::Visit(visit) => {
                        let version = &visit.marker.key_version;
                        if let Some(hold) = pass.holds.on(&tenant, version, share.work()) {
                            course.report.add(hold.into());
                            course.turns.over(receipt, Duration::ZERO, false);
                            continue;
                        }
                        Job::Visit(visit)
                    }
                    Job::Ask => Job::Ask,
                };
                in_hand = in_hand.saturating_add(1);
                flights.push(self.fly(pass, tenant, share, job, receipt).boxed_local());
            }
            let Some(first) = flights.next().await else {
                break;
            };
            let mut landed = vec![first];
            while landed.len() < WAVE
                && let Some(Some(other)) = flights.next().now_or_never()
            {
                landed.push(other);
            }
            let mut wave = Vec::new();
            for landing in landed {
                let is_over = self.land(pass, course, landing, &mut wave);
                in_hand = in_hand.saturating_sub(is_over);
            }
            if !wave.is_empty() {
                flights.push(self.write(pass, wave).boxed_local());
            }
        }
    }

    async fn fly(
        &self,
        pass: &Pass<'_>,
        tenant: TenantId,
        share: Share,
        job: Job,
        receipt: Receipt,
    ) -> Landing {
        let start = self.env.elapsed();
        let done = match job {
            Job::Ask => {
                let within = pass.until.left(&self.env).min(self.rules.longest_question);
                Done::Asked(self.vault.newest_key_version(&tenant, within).await)
            }
            Job::Visit(mut visit) => {
                let version = visit.marker.key_version.clone();
                let due = visit.due.take();
                let visited = self.visit(pass, *visit, share.work()).await;
                Done::Visited(version, Box::new(visited), due)
            }
        };
        Landing::Flown {
            tenant,
            took: self.env.elapsed().saturating_sub(start),
            receipt,
            done,
        }
    }

    /// Makes changes, if there still is time.
    async fn write(&self, pass: &Pass<'_>, wave: Vec<Written>) -> Landing {
        if pass.end.is_over(&self.env) {
            let late = wave.into_iter().map(|mut written| {
                written.outcome = Outcome::Remaining;
                (written, Ok(false))
            });
            return Landing::Written(late.collect());
        }
        let changes: Vec<_> = wave.iter().map(|written| &written.change).collect();
        let made = self.apply(pass.layout, &changes).await;
        let written = wave.into_iter().zip(made).map(|(written, made)| {
            let made = made.map_err(|error| self.storage_failed(&written.change.user, &error));
            (written, made)
        });
        Landing::Written(written.collect())
    }

    /// Takes note of what is done, and returns how many are no longer in hand.
    fn land(
        &self,
        pass: &Pass<'_>,
        course: &mut Course<'_>,
        landing: Landing,
        wave: &mut Vec<Written>,
    ) -> usize {
        let (tenant, took, receipt, done) = match landing {
            Landing::Flown {
                tenant,
                took,
                receipt,
                done,
            } => (tenant, took, receipt, done),
            Landing::Written(written) => {
                let number = written.len();
                for (written, made) in written {
                    self.land_written(pass, course, written, made);
                }
                return number;
            }
        };
        match done {
            Done::Asked(answer) => {
                course.report.checked = course.report.checked.saturating_add(1);
                self.heed_answer(pass, course, &tenant, answer);
                course.turns.over(receipt, took, false);
                1
            }
            Done::Visited(version, visited, due) => {
                let Visited {
                    found,
                    failure,
                    tried,
                } = *visited;
                if let Some(failure) = &failure {
                    let about = (&tenant, Some(&failure.key_version));
                    let (verdict, error, now) = (&failure.verdict, &failure.error, self.env.now());
                    pass.holds.heed(about, verdict, error, now, &self.env);
                    if let Verdict::Turn(status) = verdict {
                        pass.holds.is_accepted();
                        course.tally(&tenant).refused(status);
                    }
                }
                course.turns.over(receipt, took, tried == Some(version));
                match found {
                    Found::Over(outcome) => {
                        if outcome == Outcome::Failed {
                            pass.holds.store(false, &self.env);
                        }
                        course.report.add(outcome);
                        // One that waits or is set aside is counted once.
                        if let (Some(due), Outcome::Nothing) = (due, outcome) {
                            course.turns.visit(&tenant, Share::Refresh, 0, vec![*due]);
                        }
                        1
                    }
                    Found::Write(change, outcome) => {
                        wave.push(Written {
                            change: *change,
                            outcome,
                            due,
                        });
                        0
                    }
                }
            }
        }
    }

    fn land_written(
        &self,
        pass: &Pass<'_>,
        course: &mut Course<'_>,
        written: Written,
        made: Result<bool, ()>,
    ) {
        let Written {
            change,
            outcome,
            due,
        } = written;
        let tenant = &change.user.tenant;
        let (is_made, outcome) = match made {
            Ok(true) => (true, outcome),
            Ok(false) if outcome == Outcome::Remaining => (false, outcome),
            Ok(false) => (false, Outcome::Nothing),
            Err(()) => (false, Outcome::Failed),
        };
        pass.holds.store(outcome != Outcome::Failed, &self.env);
        course.report.add(outcome);
        if outcome == Outcome::Refreshed {
            pass.holds.is_accepted();
            course.tally(tenant).refreshed();
        }
        let mut fresh = match &change.what {
            What::Mark(marker) | What::Tidy { fresh: marker, .. } => marker.clone(),
            What::Replace { new, .. } => marker_of(&change.user, &change.nonce, new),
        };
        // One that waits, fails or is set aside is counted once.
        let is_next = matches!(outcome, Outcome::Resealed | Outcome::Nothing);
        if let Some(mut due) = due.filter(|_| is_next) {
            if is_made {
                due.keys.push(pass.layout.marker(&fresh));
                fresh.time = fresh.time.min(due.marker.time);
                due.marker = fresh;
            }
            course.turns.visit(tenant, Share::Refresh, 0, vec![*due]);
        } else if is_made && outcome != Outcome::Waiting {
            course.is_due_at(fresh.time);
        }
    }

    /// A tenant's newest key, or why there is none; and what follows for its records.
    fn heed_answer(
        &self,
        pass: &Pass<'_>,
        course: &mut Course<'_>,
        tenant: &TenantId,
        answer: Result<KeyVersion, VaultError>,
    ) {
        match answer {
            Ok(newest) => {
                pass.holds.has_newest(tenant, &newest);
                course.turns.is_usable(tenant, &newest);
                let (mut outdated, mut due) = course.plan.visits(tenant, &newest);
                self.shuffle(&mut outdated);
                self.shuffle(&mut due);
                // The last one has the next turn: those that are due, and before that those that have not failed yet.
                let has_failed = |marker: &Marker| marker.tag != Tag::Active { failures: 0 };
                outdated.sort_by_key(|visit| (visit.due.is_some(), !has_failed(&visit.marker)));
                due.sort_by_key(|visit| !has_failed(&visit.marker));
                let tie = random_number(&self.env);
                course.turns.visit(tenant, Share::Reseal, tie, outdated);
                course.turns.visit(tenant, Share::Refresh, tie, due);
            }
            Err(error) => {
                let verdict = (self.rules.verdict)(&error, Work::NewestKey);
                let now = self.env.now();
                pass.holds
                    .heed((tenant, None), &verdict, &error, now, &self.env);
                let due = course.plan.due_of(tenant);
                match verdict {
                    // Counted whole, at the end.
                    Verdict::NotServed => {}
                    Verdict::Stop => {
                        course.report.remaining = course.report.remaining.saturating_add(due);
                    }
                    Verdict::PutOff { .. }
                    | Verdict::SetAside
                    | Verdict::Turn(_)
                    | Verdict::HoldTenant { .. }
                    | Verdict::HoldCredential
                    | Verdict::KeyVersionUnusable
                    | Verdict::NewestKeyUnusable => {
                        course.report.waiting = course.report.waiting.saturating_add(due);
                    }
                }
            }
        }
    }

    pub(crate) fn tell_not_served(
        &self,
        pass: &Pass<'_>,
        plan: &Plan<'_>,
        report: &mut SweepReport,
    ) {
        for tenant in plan.tenants() {
            if pass.holds.is_not_served(tenant) {
                let enrolments = plan.enrolments_of(tenant);
                report.not_served = report.not_served.saturating_add(enrolments);
                let remove = format!("DELETE /v1/tenants/{tenant}");
                self.env.line(&json!({"event": "tenant_not_served", "tenant": tenant.as_str(), "enrolments": enrolments, "reason": "the tenant is not among the setting `tenants`", "to_remove_them": remove}).to_string());
            }
        }
    }

    /// One line for a tenant most of whose refreshes have the same outcome. What an organisation has to do is an alarm only
    /// if every organisation seems to have to: then it is this app's.
    pub(crate) fn tell_refused(&self, tallies: &BTreeMap<TenantId, Tally>) {
        let mut organisations = BTreeMap::new();
        for (tenant, tally) in tallies {
            let Some((number, is_organisations, refused)) = tally.most() else {
                continue;
            };
            if is_organisations {
                let tenants: &mut usize = organisations.entry(number).or_default();
                *tenants = tenants.saturating_add(1);
            } else if tally.attempts >= MANY {
                self.env.line(&json!({"level": "alarm", "event": "tenant_refused", "tenant": tenant.as_str(), "aadsts": number, "refused": refused, "of": tally.attempts}).to_string());
            }
        }
        for (number, tenants) in organisations {
            if tenants > 1 && tenants == tallies.len() {
                self.env.line(&json!({"level": "alarm", "event": "every_tenant_refused", "aadsts": number, "tenants": tenants}).to_string());
            }
        }
    }
}

impl<'a> Course<'a> {
    pub(crate) fn new(plan: Plan<'a>, turns: Turns, report: SweepReport) -> Self {
        Self {
            plan,
            turns,
            report,
            tally: BTreeMap::new(),
            next_due: None,
        }
    }

    fn tally(&mut self, tenant: &TenantId) -> &mut Tally {
        self.tally.entry(tenant.clone()).or_default()
    }

    fn is_due_at(&mut self, time: u64) {
        let known = self.next_due.unwrap_or(u64::MAX);
        self.next_due = Some(known.min(time));
    }
}

/// Something that is done.
enum Landing {
    Flown {
        tenant: TenantId,
        took: Duration,
        receipt: Receipt,
        done: Done,
    },
    /// Changes, and whether each was made.
    Written(Vec<(Written, Result<bool, ()>)>),
}

enum Done {
    Asked(Result<KeyVersion, VaultError>),
    /// By the key version that its marker named, and with the refresh that is due besides.
    Visited(KeyVersion, Box<Visited>, Option<Box<Visit>>),
}

/// A change, and what it comes to once it is written.
struct Written {
    change: Change,
    outcome: Outcome,
    due: Option<Box<Visit>>,
}

/// Refreshes of one tenant, and how Entra ID refused them.
#[derive(Default)]
pub(crate) struct Tally {
    attempts: u64,
    /// By number, and whether it is the organisation's turn.
    refused: BTreeMap<(u32, bool), u64>,
}

impl Tally {
    fn refreshed(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
    }

    fn refused(&mut self, status: &Status) {
        self.attempts = self.attempts.saturating_add(1);
        if let Some(number) = status.reason().and_then(|reason| reason.aadsts) {
            let is_organisations = matches!(status, Status::OrganisationRequired(_));
            let refused = self.refused.entry((number, is_organisations)).or_default();
            *refused = refused.saturating_add(1);
        }
    }

    /// The number that over half of the refreshes came to.
    fn most(&self) -> Option<(u32, bool, u64)> {
        let ((number, is_organisations), refused) =
            self.refused.iter().max_by_key(|(_, refused)| **refused)?;
        let is_most = refused.saturating_mul(2) > self.attempts;
        is_most.then_some((*number, *is_organisations, *refused))
    }
}

impl Share {
    fn work(self) -> Work {
        match self {
            Self::Check => Work::NewestKey,
            Self::Reseal => Work::Reseal,
            Self::Refresh => Work::Refresh,
        }
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
