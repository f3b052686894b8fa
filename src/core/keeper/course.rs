//! The course of a sweep: turns are given and taken, and what they come to is written and counted.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::json;

use crate::error::VaultError;
use crate::identity::{KeyVersion, TenantId};
use crate::journal::Journal as _;
use crate::keeper::Keeper;
use crate::keeper::report::SweepReport;
use crate::keeper::turns::{Job, Receipt, Share, Turns};
use crate::keeper::verdict::{Verdict, Work};
use crate::keeper::visit::{Next, Outcome, Pass, Visited};
use crate::ledger::record::Status;
use crate::ledger::schedule::State;
use crate::ledger::{
    Change, Claimed, Edit, Kind, Ledger, Outlook, Settled, StoreError, Survey, Visit,
};
use crate::port::Environment;
use crate::vault::port::{NewestKey, VaultPort};

/// Changes that are settled together: as many as keep the answers of other systems from waiting long for each other.
const WAVE: usize = 25;
/// Visits of a tenant that are claimed at once.
const CLAIMS: usize = 500;
/// Refreshes of a tenant from which on it is an alarm that most have the same outcome.
const MANY: u64 = 4;

/// What tenants' newest keys were said to be.
pub(crate) type Asked = BTreeMap<TenantId, Result<NewestKey, VaultError>>;

/// What a sweep has in hand.
pub(crate) struct Course<'a, L: Ledger> {
    pub(crate) survey: &'a Survey<L::Found>,
    pub(crate) turns: Turns<L::Claim>,
    /// Answers of Key Vault that are there already.
    pub(crate) asked: Asked,
    pub(crate) report: SweepReport,
    pub(crate) tally: BTreeMap<TenantId, Tally>,
    /// When the first of the records is due that were put off or refreshed.
    pub(crate) next_due: Option<u64>,
}

impl<V: VaultPort, L: Ledger, E: Environment> Keeper<V, L, E> {
    /// Gives every tenant its first turn: to have its newest key asked for.
    pub(crate) fn line_up(&self, course: &mut Course<'_, L>, first: Option<String>) {
        let tenants: Vec<_> = course.survey.tenants.iter().collect();
        // The questions go round: where the last sweep had no time left, this one begins.
        let start = match first {
            Some(first) => tenants.partition_point(|(tenant, _)| tenant.as_str() < first.as_str()),
            None => self.env.below(tenants.len()),
        };
        let (before, from) = tenants.split_at(start.min(tenants.len()));
        for (rank, (tenant, outlook)) in from.iter().chain(before).enumerate() {
            if outlook.due > 0 {
                let tie = self.env.number();
                course.turns.ask(tenant, Share::Refresh, tie);
            } else {
                course.turns.ask(tenant, Share::Check, count(rank));
            }
        }
    }

    /// Gives turns until there is nothing left to do, or no time. As many records are in hand as the settings allow, from
    /// their turn until they are written. What is ready meanwhile is written together.
    pub(crate) async fn work(&self, pass: &Pass<'_, L>, course: &mut Course<'_, L>, most: usize) {
        let survey = course.survey;
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
                if let Job::Visit(visit) = &job
                    && let Some(hold) = pass.holds.on(&tenant, &visit.key_version, share.work())
                {
                    course.report.add(hold.into());
                    course.turns.over(receipt, Duration::ZERO, false);
                    continue;
                }
                let known = match job {
                    Job::Ask => course.asked.remove(&tenant),
                    Job::Claim | Job::Visit(_) => None,
                };
                in_hand = in_hand.saturating_add(1);
                let flight = Flight {
                    tenant,
                    share,
                    receipt,
                };
                flights.push(self.fly(pass, survey, flight, job, known).boxed_local());
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
        pass: &Pass<'_, L>,
        survey: &Survey<L::Found>,
        flight: Flight,
        job: Job<L::Claim>,
        known: Option<Result<NewestKey, VaultError>>,
    ) -> Landing<L::Claim> {
        let start = self.env.elapsed();
        let (tenant, share) = (&flight.tenant, flight.share);
        let done = match job {
            Job::Ask => {
                let is_known = known.is_some();
                let answer = if let Some(answer) = known {
                    answer
                } else {
                    let within = pass.until.left(&self.env).min(self.rules.longest_question);
                    self.vault.newest_key_version(tenant, within.into()).await
                };
                let claimed = match &answer {
                    Ok(NewestKey {
                        version: newest, ..
                    }) => {
                        let outdated = Kind::Outdated(newest);
                        let outdated = self.claim(pass, survey, tenant, outdated).await;
                        let due = self.claim(pass, survey, tenant, Kind::Due(newest)).await;
                        [outdated, due]
                    }
                    Err(_) => [Ok(Claimed::none()), Ok(Claimed::none())],
                };
                let claimed = Box::new(claimed);
                Done::Asked {
                    answer,
                    is_known,
                    claimed,
                }
            }
            Job::Claim => {
                let newest = pass.holds.newest_of(tenant);
                let kind = newest.as_ref().map(|newest| match share {
                    Share::Reseal => Kind::Outdated(newest),
                    Share::Check | Share::Refresh => Kind::Due(newest),
                });
                Done::Claimed(match kind {
                    Some(kind) => self.claim(pass, survey, tenant, kind).await,
                    None => Ok(Claimed::none()),
                })
            }
            Job::Visit(mut visit) => {
                let version = visit.key_version.clone();
                let due = visit.due.take();
                let visited = self.visit(pass, *visit, share.work()).await;
                Done::Visited(version, Box::new(visited), due)
            }
        };
        Landing::Flown {
            flight,
            took: self.env.elapsed().saturating_sub(start),
            done,
        }
    }

    async fn claim(
        &self,
        pass: &Pass<'_, L>,
        survey: &Survey<L::Found>,
        tenant: &TenantId,
        kind: Kind<'_>,
    ) -> Result<Claimed<L::Claim>, StoreError> {
        let ledger = pass.ledger;
        ledger
            .claim(survey, tenant, kind, CLAIMS, pass.lease_until)
            .await
    }

    /// Makes changes, if there still is time.
    async fn write(&self, pass: &Pass<'_, L>, wave: Vec<Written<L::Claim>>) -> Landing<L::Claim> {
        if pass.end.is_over(&self.env) {
            let late = wave.into_iter().map(|mut written| {
                written.outcome = Outcome::Remaining;
                (written, Ok(None))
            });
            return Landing::Written(late.collect());
        }
        let changes: Vec<_> = wave.iter().map(|written| &written.change).collect();
        let made = pass.ledger.settle(&changes).await;
        let written = wave.into_iter().zip(made).map(|(written, made)| {
            let made = made.inspect_err(|error| {
                self.storage_failed(&written.change.user, error);
            });
            (written, made)
        });
        Landing::Written(written.collect())
    }

    /// Takes note of what is done, and returns how many are no longer in hand.
    fn land(
        &self,
        pass: &Pass<'_, L>,
        course: &mut Course<'_, L>,
        landing: Landing<L::Claim>,
        wave: &mut Vec<Written<L::Claim>>,
    ) -> usize {
        let (flight, took, done) = match landing {
            Landing::Flown { flight, took, done } => (flight, took, done),
            Landing::Written(written) => {
                let number = written.len();
                for (written, made) in written {
                    self.land_written(pass, course, written, made);
                }
                return number;
            }
        };
        let Flight {
            tenant,
            share,
            receipt,
        } = flight;
        match done {
            Done::Asked {
                answer,
                is_known,
                claimed,
            } => {
                if !is_known {
                    course.report.checked = course.report.checked.saturating_add(1);
                }
                self.heed_answer(pass, course, &tenant, answer);
                let tie = self.env.number();
                for (share, claimed) in [Share::Reseal, Share::Refresh].into_iter().zip(*claimed) {
                    self.heed_claim(pass, course, (&tenant, share, tie), claimed);
                }
                course.turns.over(receipt, took, false);
                1
            }
            Done::Claimed(claimed) => {
                self.heed_claim(pass, course, (&tenant, share, 0), claimed);
                course.turns.over(receipt, took, false);
                1
            }
            Done::Visited(version, visited, due) => {
                let Visited {
                    next,
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
                match next {
                    Next::Nothing(outcome) => {
                        if outcome == Outcome::Failed {
                            pass.holds.store(false, &self.env);
                        }
                        course.report.add(outcome);
                        // One that waits or is set aside is counted once.
                        if let (Some(due), Outcome::Nothing) = (due, outcome) {
                            course.turns.visit_next(&tenant, Share::Refresh, *due);
                        }
                        1
                    }
                    Next::Settle(change, outcome) => {
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
        pass: &Pass<'_, L>,
        course: &mut Course<'_, L>,
        written: Written<L::Claim>,
        made: Settled<L::Claim>,
    ) {
        let Written {
            change,
            outcome,
            due,
        } = written;
        let tenant = &change.user.tenant;
        let (claim, outcome) = match made {
            Ok(Some(claim)) => (Some(claim), outcome),
            Ok(None) if outcome == Outcome::Remaining => (None, outcome),
            Ok(None) => (None, Outcome::Nothing),
            Err(_) => (None, Outcome::Failed),
        };
        pass.holds.store(outcome != Outcome::Failed, &self.env);
        course.report.add(outcome);
        if outcome == Outcome::Refreshed {
            pass.holds.is_accepted();
            course.tally(tenant).refreshed();
        }
        // One that waits, fails or is set aside is counted once.
        let is_next = matches!(outcome, Outcome::Resealed | Outcome::Nothing);
        if let Some(mut due) = due.filter(|_| is_next) {
            if let Some(claim) = claim {
                due.moved_on(claim, &change.edit);
            }
            course.turns.visit_next(tenant, Share::Refresh, *due);
        } else if claim.is_some() && outcome != Outcome::Waiting {
            course.is_due_at(change.edit.time());
        }
    }

    /// A tenant's newest key, or why there is none; and what follows for its records.
    fn heed_answer(
        &self,
        pass: &Pass<'_, L>,
        course: &mut Course<'_, L>,
        tenant: &TenantId,
        answer: Result<NewestKey, VaultError>,
    ) {
        match answer {
            Ok(newest) => {
                course.turns.is_usable(tenant, &newest.version);
                pass.holds.has_newest(tenant, newest);
            }
            Err(error) => {
                let verdict = (self.rules.verdict)(&error, Work::NewestKey);
                let now = self.env.now();
                pass.holds
                    .heed((tenant, None), &verdict, &error, now, &self.env);
                let outlook = course.survey.tenants.get(tenant);
                let due = outlook.map_or(0, |outlook| outlook.due);
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

    /// Work that was claimed, or not.
    fn heed_claim(
        &self,
        pass: &Pass<'_, L>,
        course: &mut Course<'_, L>,
        (tenant, share, tie): (&TenantId, Share, u64),
        claimed: Result<Claimed<L::Claim>, StoreError>,
    ) {
        match claimed {
            Ok(claimed) => {
                if let Some(time) = claimed.leased_until {
                    // Should that sweep die, this is when its work is there again.
                    course.is_due_at(time);
                }
                course.turns.visit(tenant, share, tie, claimed);
            }
            Err(error) => {
                let reason = json!({"tenant": tenant.as_str(), "reason": error.to_string()});
                self.env.event("claim_failed", reason);
                pass.holds.store(false, &self.env);
                course.report.failed = course.report.failed.saturating_add(1);
            }
        }
    }

    pub(crate) fn tell_not_served(
        &self,
        pass: &Pass<'_, L>,
        outlooks: &BTreeMap<TenantId, Outlook>,
        report: &mut SweepReport,
    ) {
        for (tenant, outlook) in outlooks {
            if pass.holds.is_not_served(tenant) {
                let enrolments = outlook.enrolments;
                report.not_served = report.not_served.saturating_add(enrolments);
                let remove = format!("DELETE /v1/tenants/{tenant}");
                let line = json!({"tenant": tenant.as_str(), "enrolments": enrolments, "reason": "the tenant is not among the setting `tenants`", "to_remove_them": remove});
                self.env.event("tenant_not_served", line);
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
                let line = json!({"tenant": tenant.as_str(), "aadsts": number, "refused": refused, "of": tally.attempts});
                self.env.alarm("tenant_refused", line);
            }
        }
        for (number, tenants) in organisations {
            if tenants > 1 && tenants == tallies.len() {
                let line = json!({"aadsts": number, "tenants": tenants});
                self.env.alarm("every_tenant_refused", line);
            }
        }
    }
}

impl<'a, L: Ledger> Course<'a, L> {
    pub(crate) fn new(
        survey: &'a Survey<L::Found>,
        turns: Turns<L::Claim>,
        asked: Asked,
        report: SweepReport,
    ) -> Self {
        Self {
            survey,
            turns,
            asked,
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

/// A turn that was taken.
struct Flight {
    tenant: TenantId,
    share: Share,
    receipt: Receipt,
}

/// Something that is done.
enum Landing<C> {
    Flown {
        flight: Flight,
        took: Duration,
        done: Done<C>,
    },
    /// Changes, and what came of each.
    Written(Vec<(Written<C>, Settled<C>)>),
}

enum Done<C> {
    Asked {
        answer: Result<NewestKey, VaultError>,
        /// Whether the answer was there already.
        is_known: bool,
        /// What is outdated, and what is due.
        claimed: Box<[Result<Claimed<C>, StoreError>; 2]>,
    },
    Claimed(Result<Claimed<C>, StoreError>),
    /// By the key version that the schedule told, and with the refresh that is due besides.
    Visited(KeyVersion, Box<Visited<C>>, Option<Box<Visit<C>>>),
}

/// A change, and what it comes to once it is written.
struct Written<C> {
    change: Change<C>,
    outcome: Outcome,
    due: Option<Box<Visit<C>>>,
}

impl<C> Visit<C> {
    /// The enrolment was changed before its visit: what the schedule tells of it now.
    fn moved_on(&mut self, claim: C, edit: &Edit) {
        self.claims.push(claim);
        self.time = self.time.min(edit.time());
        match edit {
            Edit::Reschedule {
                state, key_version, ..
            } => (self.state, self.key_version) = (*state, key_version.clone()),
            Edit::Tidy(record) | Edit::Replace { new: record, .. } => {
                (self.state, self.key_version) = (State::of(record), record.key_version.clone());
            }
        }
    }
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
