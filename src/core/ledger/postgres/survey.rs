//! What is due, and what is stored, in numbers. Nothing lists users: what is due comes from an index, and the numbers are
//! counted by one sweep at a time, a bucket at most once a minute.
//!
//! Both are for as many buckets as there is time for, in an order by chance: so a bucket that always takes too long stands in
//! front of no other for ever. That a count fails costs the status new numbers, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::{join, try_join};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::json;

use crate::deadline::Deadline;
use crate::identity::TenantId;
use crate::journal::Journal as _;
use crate::ledger::postgres::answer::{Columns, int8, text, to_state, unexpected};
use crate::ledger::postgres::attempt::Repeat;
use crate::ledger::postgres::database::{Database, Value};
use crate::ledger::postgres::{PostgresLedger, statement};
use crate::ledger::schedule::{DAILY, Horizon, RETENTION, State};
use crate::ledger::summary::{MOST_NAMED, Numbers, Summary, TenantSummary};
use crate::ledger::{Outlook, StoreError, Survey, Tended};
use crate::port::Environment;

/// Buckets that one statement looks at, and how many of these are under way at once.
const TOGETHER: usize = 8;
const LOOKS_AT_ONCE: usize = 8;
/// Buckets that are counted, or tended, at once.
const AT_ONCE: usize = 4;
/// The part of a survey's time in which counts may begin: one that has begun may take what is left.
const PART_FOR_COUNTS: u32 = 3;

/// What a survey holds for claims.
pub struct Found {
    pub(super) horizon: Horizon,
    /// The name of this sweep's leases.
    pub(super) lease: i64,
    /// Buckets that this survey has counted.
    counted: Vec<i16>,
}

/// The numbers of a bucket.
struct Counted {
    bucket: i16,
    /// In Unix seconds, by the database's clock; 0: never.
    at: u64,
    groups: Vec<Group>,
    is_old: bool,
}

/// What is known of tenants besides their numbers.
struct Notes {
    /// Tenants whose users are being removed.
    barred: Vec<String>,
    /// Tenants' key versions that nothing is under any more, and since when.
    unused: Vec<(String, String, u64)>,
}

/// `tenant, state, key_version, users`, and how many are due at once, within an hour, a day and a week, each with those before.
#[derive(Deserialize)]
struct Group(String, Option<i16>, Option<String>, u64, u64, u64, u64, u64);

impl<D: Database + Clone, E: Environment + Clone> PostgresLedger<D, E> {
    pub(super) async fn look_around(
        &self,
        horizon: Horizon,
        until: Deadline,
    ) -> Result<Survey<Found>, StoreError> {
        let known = try_join(self.counted(), self.notes(None));
        let known = until.bound(&self.env, known).await;
        let (mut counted, notes) = known.ok_or_else(too_slow)??;
        self.env.shuffle(&mut counted);
        let buckets: Vec<_> = counted.iter().map(|counted| counted.bucket).collect();
        let (seen, counted) = join(
            self.look_at(&buckets, horizon, until),
            self.count_old(counted, until),
        )
        .await;
        let (mut tenants, not_seen) = seen?;
        let (mut all, mut new) = (Vec::new(), Vec::new());
        for (counted, is_new) in counted {
            if is_new {
                new.push(counted.bucket);
            }
            all.push(counted);
        }
        for group in all.iter().flat_map(|counted| &counted.groups) {
            if group.1.is_some()
                && let Some(tenant) = TenantId::parse(&group.0)
                && let Some(outlook) = tenants.get_mut(&tenant)
            {
                outlook.enrolments = outlook.enrolments.saturating_add(group.3);
            }
        }
        for outlook in tenants.values_mut() {
            // One that was counted a moment ago may have got more since.
            let least = outlook
                .due
                .saturating_add(outlook.next_due.is_some().into());
            outlook.enrolments = outlook.enrolments.max(least);
        }
        let mut lease = 0;
        while lease == 0 {
            lease = i64::from_le_bytes(self.env.number().to_le_bytes());
        }
        Ok(Survey {
            tenants,
            not_seen,
            // Whoever writes a record notes its key version in the same statement.
            not_noted: BTreeSet::new(),
            summary: sum_up(all, notes),
            found: Found {
                horizon,
                lease,
                counted: new,
            },
        })
    }

    /// What there is to do in these buckets, and of how many that is not known.
    async fn look_at(
        &self,
        buckets: &[i16],
        horizon: Horizon,
        until: Deadline,
    ) -> Result<(BTreeMap<TenantId, Outlook>, u64), StoreError> {
        let looks: Vec<_> = stream::iter(buckets.chunks(TOGETHER))
            .map(|some| async move {
                let outlooks = until.bound(&self.env, self.outlooks(some, horizon)).await;
                (some.len(), outlooks.unwrap_or_else(|| Err(too_slow())))
            })
            .buffer_unordered(LOOKS_AT_ONCE)
            .collect()
            .await;
        let (mut tenants, mut not_seen, mut failed) = (BTreeMap::new(), 0_u64, None);
        let has_seen = looks.is_empty() || looks.iter().any(|(_, outlooks)| outlooks.is_ok());
        for (number, outlooks) in looks {
            match outlooks {
                Ok(outlooks) => tenants.extend(outlooks),
                Err(error) => {
                    not_seen = not_seen.saturating_add(u64::try_from(number).unwrap_or(u64::MAX));
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if !has_seen => return Err(error),
            Some(error) => {
                let reason = json!({"buckets": not_seen, "reason": error.to_string()});
                self.env.event("buckets_not_seen", reason);
            }
            None => {}
        }
        Ok((tenants, not_seen))
    }

    /// Counts what was counted too long ago, as far as there is time; and tells of each bucket whether it was counted.
    async fn count_old(&self, counted: Vec<Counted>, until: Deadline) -> Vec<(Counted, bool)> {
        let left = until.left(&self.env);
        let begin = left.checked_div(PART_FOR_COUNTS).unwrap_or_default();
        let begin = Deadline::within(&self.env, begin);
        stream::iter(counted)
            .map(|before| async move {
                if !before.is_old || begin.is_over(&self.env) {
                    return (before, false);
                }
                let counted = until.bound(&self.env, self.count(before.bucket)).await;
                match counted.unwrap_or_else(|| Err(too_slow())) {
                    Ok(Some((at, groups))) => (
                        Counted {
                            at,
                            groups,
                            ..before
                        },
                        true,
                    ),
                    Ok(None) => (before, false),
                    Err(error) => {
                        let reason = json!({"bucket": before.bucket, "reason": error.to_string()});
                        self.env.event("bucket_not_counted", reason);
                        (before, false)
                    }
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    /// Forgets who was removed, and notes which key versions are not used any more. What could not be done is told.
    pub(super) async fn clean(&self, survey: &Survey<Found>, until: Deadline) -> Tended {
        let now = survey.found.horizon.now;
        let forget = (statement::FORGET, vec![text(&self.app)]);
        let tend = survey.found.counted.iter().map(|bucket| {
            let long_ago = int8(now.saturating_sub(RETENTION));
            let values = vec![Value::Int2(*bucket), text(&self.app), int8(now), long_ago];
            (statement::TEND, values)
        });
        let failed: Vec<_> = stream::iter(std::iter::once(forget).chain(tend))
            .map(|(sql, values)| async move {
                let tended = self.repeat(sql, values, Repeat::Any);
                let tended = until.bound(&self.env, tended).await;
                tended.unwrap_or_else(|| Err(too_slow())).err()
            })
            .buffer_unordered(AT_ONCE)
            .filter_map(|failed| async { failed })
            .collect()
            .await;
        if let Some(error) = failed.first() {
            let reason = json!({"reason": error.to_string()});
            self.env.event("not_tended", reason);
        }
        Tended {
            cleared: 0,
            left: u64::try_from(failed.len()).unwrap_or(u64::MAX),
        }
    }

    /// What was counted last.
    pub(super) async fn read_summary(
        &self,
        tenant: Option<&TenantId>,
    ) -> Result<Option<Summary>, StoreError> {
        let mut counted = self.counted().await?;
        counted.retain(|counted| counted.at > 0);
        if counted.is_empty() {
            return Ok(None);
        }
        let mut summary = sum_up(counted, self.notes(tenant).await?);
        if let Some(tenant) = tenant {
            summary.tenants.retain(|name, _| name == tenant.as_str());
            if let Some(of) = summary.tenants.get_mut(tenant.as_str())
                && of.must_act.total > 0
            {
                of.must_act.users = self.must_act(tenant).await?;
            }
        }
        Ok(Some(summary))
    }

    /// Of all tenants, or of one the key versions.
    async fn notes(&self, tenant: Option<&TenantId>) -> Result<Notes, StoreError> {
        let barred = self.repeat(statement::BARRED, [text(&self.app)], Repeat::Any);
        let (barred, unused) = try_join(barred, self.unused(tenant)).await?;
        let barred = barred.into_iter().map(|row| Columns::of(row).text());
        let barred = barred.collect::<Result<_, _>>()?;
        Ok(Notes { barred, unused })
    }

    /// Key versions of the app, or of one tenant, that nothing is under any more, and since when.
    async fn unused(
        &self,
        tenant: Option<&TenantId>,
    ) -> Result<Vec<(String, String, u64)>, StoreError> {
        let values = [
            text(&self.app),
            text(tenant.map_or("", |tenant| tenant.as_str())),
        ];
        let rows = self.repeat(statement::UNUSED, values, Repeat::Any).await?;
        let read = |row| {
            let mut row = Columns::of(row);
            Ok((row.text()?, row.text()?, row.number()?))
        };
        rows.into_iter().map(read).collect()
    }

    async fn must_act(&self, tenant: &TenantId) -> Result<Vec<String>, StoreError> {
        let mut values = self.tenant(tenant);
        values.push(int8(u64::try_from(MOST_NAMED).unwrap_or(u64::MAX)));
        let rows = self
            .repeat(statement::MUST_ACT, values, Repeat::Any)
            .await?;
        rows.into_iter()
            .map(|row| Columns::of(row).text())
            .collect()
    }

    async fn counted(&self) -> Result<Vec<Counted>, StoreError> {
        let rows = self.repeat(statement::COUNTED, [text(&self.app)], Repeat::Any);
        rows.await?
            .into_iter()
            .map(|row| {
                let mut row = Columns::of(row);
                Ok(Counted {
                    bucket: row.number()?.try_into().map_err(|_| unexpected())?,
                    at: row.number()?,
                    groups: groups(&row.text()?)?,
                    is_old: row.bool()?,
                })
            })
            .collect()
    }

    /// Counts a bucket anew. None: another sweep was at it.
    async fn count(&self, bucket: i16) -> Result<Option<(u64, Vec<Group>)>, StoreError> {
        let values = [Value::Int2(bucket), text(&self.app)];
        let rows = self.repeat(statement::COUNT, values, Repeat::Any).await?;
        let Some(row) = rows.into_iter().next() else {
            return Ok(None);
        };
        let mut row = Columns::of(row);
        Ok(Some((row.number()?, groups(&row.text()?)?)))
    }

    async fn outlooks(
        &self,
        buckets: &[i16],
        horizon: Horizon,
    ) -> Result<Vec<(TenantId, Outlook)>, StoreError> {
        let values = [
            Value::Texts(buckets.iter().map(ToString::to_string).collect()),
            text(&self.app),
            int8(horizon.now),
            int8(horizon.later_than_any()),
        ];
        let rows = self.repeat(statement::OUTLOOK, values, Repeat::Any).await?;
        rows.into_iter()
            .map(|row| {
                let mut row = Columns::of(row);
                let tenant = TenantId::parse(&row.text()?).ok_or_else(unexpected)?;
                let outlook = Outlook {
                    enrolments: 0,
                    due: row.number()?,
                    next_due: row.number_or_null()?,
                };
                Ok((tenant, outlook))
            })
            .collect()
    }
}

impl Group {
    fn add_to(self, summary: &mut TenantSummary) {
        let Self(_, state, key_version, users, at_once, hour, day, week) = self;
        let mut numbers = Numbers {
            users,
            ..Numbers::default()
        };
        if let Some(state) = state {
            let state = to_state(state, 1);
            for (wait, so_far, before) in [
                (0, at_once, 0),
                (1, hour, at_once),
                (3601, day, hour),
                (DAILY.saturating_add(1), week, day),
                (u64::MAX, users, week),
            ] {
                numbers.add_many(state, wait, so_far.saturating_sub(before));
            }
            if matches!(
                state,
                State::InteractionRequired { .. } | State::Quarantined { .. }
            ) {
                summary.must_act.total = summary.must_act.total.saturating_add(users);
            }
        }
        summary.numbers.add_all(&numbers);
        if let Some(version) = key_version {
            let number = summary.key_versions.entry(version).or_default();
            *number = number.saturating_add(users);
        }
    }
}

/// Of all that was counted.
fn sum_up(counted: Vec<Counted>, notes: Notes) -> Summary {
    let observed_at = counted.iter().map(|counted| counted.at).min();
    let mut tenants: BTreeMap<String, TenantSummary> = BTreeMap::new();
    for group in counted.into_iter().flat_map(|counted| counted.groups) {
        let summary = tenants.entry(group.0.clone()).or_default();
        group.add_to(summary);
    }
    for tenant in notes.barred {
        tenants.entry(tenant).or_default().being_removed = true;
    }
    for (tenant, version, since) in notes.unused {
        let summary = tenants.entry(tenant).or_default();
        if !summary.key_versions.contains_key(&version) {
            summary.unused_key_versions.insert(version, since);
        }
    }
    Summary::of(observed_at.unwrap_or_default(), tenants)
}

/// There was no time left for an answer.
fn too_slow() -> StoreError {
    StoreError("the database takes too long for a sweep: see what it is busy with (pg_stat_activity), or raise `sweep_seconds`".into())
}

fn groups(json: &str) -> Result<Vec<Group>, StoreError> {
    serde_json::from_str(json).map_err(|_| unexpected())
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::keeper::report::SweepReport;
    use crate::keeper::{Keeper, Request};
    use crate::ledger::postgres::database::{Failure, Row};
    use crate::ledger::postgres::model::Tables;
    use crate::port::{Clock as _, Timer as _};
    use crate::secret::Bearer;
    use crate::simulation::rounds::Rounds;
    use crate::simulation::world::SWEEP_KEY;
    use crate::vault::Vault;
    use crate::vault::samples::{OTHER_USER, TENANT};

    /// The tables, each of whose answers takes a while; some statements have none, or fail.
    #[derive(Clone)]
    struct Slow {
        rounds: Rounds,
        tables: Rc<RefCell<Tables>>,
        wait: Rc<Cell<Duration>>,
        fails: Rc<Cell<&'static [&'static str]>>,
        is_silent: Rc<Cell<bool>>,
        /// Of these buckets nothing can be said.
        not_seen: Rc<RefCell<Vec<String>>>,
    }

    impl Database for Slow {
        async fn run(&self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>, Failure> {
            self.rounds.sleep(self.wait.get()).await;
            let is_not_seen = |bucket| self.not_seen.borrow().contains(bucket);
            if let Some(Value::Texts(buckets)) = values.first()
                && buckets.iter().any(is_not_seen)
            {
                return Err(Failure::of_code("57014", "canceling statement"));
            }
            if self.fails.get().contains(&sql) {
                if self.is_silent.get() {
                    self.rounds.sleep(Duration::from_hours(1)).await;
                }
                return Err(Failure::of_code("57014", "canceling statement"));
            }
            let now = self.rounds.now().try_into().unwrap();
            Ok(self.tables.borrow_mut().run(sql, values, now, &mut |_| {}))
        }
    }

    type App = Keeper<Vault<Rounds>, PostgresLedger<Slow, Rounds>, Rounds>;

    /// Two users, who are due in a week at the latest, and tenants in every bucket.
    fn enrolled() -> (Rounds, Slow, App) {
        let rounds = Rounds::new();
        let database = Slow {
            rounds: rounds.clone(),
            tables: Rc::default(),
            wait: Rc::default(),
            fails: Rc::default(),
            is_silent: Rc::default(),
            not_seen: Rc::default(),
        };
        let ledger = PostgresLedger::new(database.clone(), rounds.clone());
        let app = Keeper::new(Vault::new(rounds.clone()), ledger.clone(), rounds.clone());
        let world = rounds.world();
        for bearer in [world.bearer(), world.bearer_of(OTHER_USER)] {
            rounds
                .run(app.enrol(&Request::of(&bearer), None))
                .0
                .unwrap();
        }
        rounds.run(async {
            for number in 0..1000 {
                let tenant = format!("{number:08}-1111-1111-1111-111111111111");
                let tenant = ledger.tenant(&TenantId::parse(&tenant).unwrap());
                let opened = ledger.repeat(statement::OPEN_TENANT, tenant, Repeat::Any);
                opened.await.unwrap();
            }
            assert_eq!(ledger.counted().await.unwrap().len(), 64);
        });
        world.advance(604_800);
        (rounds, database, app)
    }

    /// A sweep, and for how long it was at it.
    fn sweep(rounds: &Rounds, app: &App) -> (SweepReport, Duration) {
        let key = Bearer::new(SWEEP_KEY.into());
        rounds
            .run(async {
                let begun = rounds.elapsed();
                let report = app.sweep(&Request::of(&key)).await.unwrap();
                (report, rounds.elapsed().saturating_sub(begun))
            })
            .0
    }

    #[test]
    fn with_a_slow_database_a_sweep_ends_in_time_and_refreshes_what_is_due() {
        for milliseconds in [0, 100, 500, 750] {
            let (rounds, database, app) = enrolled();
            database.wait.set(Duration::from_millis(milliseconds));
            let (report, took) = sweep(&rounds, &app);
            assert!(took <= Duration::from_secs(20), "{milliseconds}: {took:?}");
            assert_eq!(
                (report.due, report.refreshed),
                (2, 2),
                "{milliseconds}: {report:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_counted_or_cleared_is_told_and_holds_up_no_refresh() {
        for is_silent in [false, true] {
            let (rounds, database, app) = enrolled();
            database.is_silent.set(is_silent);
            database
                .fails
                .set(&[statement::COUNT, statement::FORGET, statement::TEND]);
            let (report, took) = sweep(&rounds, &app);
            assert!(took <= Duration::from_secs(20), "{took:?}");
            assert_eq!((report.due, report.refreshed), (2, 2), "{report:?}");
            let world = rounds.world();
            assert!(world.lines("bucket_not_counted") >= 4);
            assert_eq!(world.lines("not_tended"), 1);
            // The next counts what this one could not.
            database.fails.set(&[]);
            rounds.run(async {
                rounds.sleep(Duration::from_mins(2)).await;
            });
            sweep(&rounds, &app);
            let ledger = PostgresLedger::new(database, rounds.clone());
            let summary = rounds.run(ledger.read_summary(None)).0.unwrap().unwrap();
            assert_eq!(summary.totals.users, 2);
        }
    }

    #[test]
    fn what_could_not_be_looked_at_is_for_the_next_call() {
        let (rounds, database, app) = enrolled();
        database.fails.set(&[statement::OUTLOOK]);
        let ledger = PostgresLedger::new(database.clone(), rounds.clone());
        let look = |seconds| {
            let horizon = Horizon::new(rounds.now(), true);
            let until = Deadline::within(&rounds, Duration::from_secs(seconds));
            ledger.look_around(horizon, until)
        };
        // Nothing at all could be: that is no survey.
        assert!(rounds.run(look(9)).0.is_err());
        database.fails.set(&[]);
        database.wait.set(Duration::from_secs(10));
        assert!(rounds.run(look(9)).0.is_err());
        // All but one bucket could, and those that are asked for with it.
        database.wait.set(Duration::ZERO);
        let bucket = super::super::bucket("", &TenantId::parse(TENANT).unwrap());
        database.not_seen.replace(vec![bucket.to_string()]);
        let (report, _) = sweep(&rounds, &app);
        assert_eq!((report.unchecked, report.refreshed), (8, 0), "{report:?}");
        assert_eq!(rounds.world().lines("buckets_not_seen"), 1);
        database.not_seen.take();
        let (report, _) = sweep(&rounds, &app);
        assert_eq!((report.unchecked, report.refreshed), (0, 2), "{report:?}");
    }
}
