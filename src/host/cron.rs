//! The cron trigger, as the plugin of Spin has it (PLATFORMS.md, "Cron plugin"): six fields, UTC, a fresh
//! instance for each tick. Ticks overlap, and one that was missed is not made up for.
//!
//! It differs in one thing: a component that traps is reported like one that returns an error, where the plugin says
//! nothing.

use crate::bindings::cron::{Error, Metadata, SpinCronPre};
use crate::instance::{Grants, Guest, cause};
use crate::life::Lifetime;
use crate::places::{PATIENCE, Places, Purpose};
use chrono::{DateTime, Utc};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::timeout;

/// The longest sleep at a time, so that a clock that is set meanwhile is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// When a component is run.
#[derive(Debug, Clone)]
pub(crate) struct Schedule(croner::Cron);

impl Schedule {
    /// Reads a cron expression: second, minute, hour, day of the month, month, day of the week. If both days are
    /// restricted, both have to match.
    ///
    /// # Errors
    ///
    /// It is none; the text says what is expected.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let parsed = croner::Cron::new(text)
            .with_seconds_required()
            .with_dom_and_dow()
            .parse();
        parsed.map(Self).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.trim_end_matches('.');
            format!("{text:?} is no cron expression of six fields, seconds first: {reason}")
        })
    }

    /// The next time after `now`; none if there is none any more.
    pub(crate) fn next(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.0.find_next_occurrence(&now, false).ok()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// A component on a schedule.
pub(crate) struct Job {
    /// When it is run.
    pub(crate) schedule: Schedule,
    /// The component, ready to be instantiated.
    pub(crate) pre: SpinCronPre<Guest>,
    /// What its instances get.
    pub(crate) grants: Grants,
    /// Where they live.
    pub(crate) places: Places,
}

/// Runs `jobs` until `lifetime` says to stop. A tick in hand is given up then, as by the plugin; what it asked of others
/// is theirs to finish.
pub(crate) async fn run(jobs: &[Arc<Job>], lifetime: &Lifetime) {
    let running = jobs.iter().map(|job| keep_time(job, lifetime));
    tokio::select! {
        _ = futures_util::future::join_all(running) => {}
        () = lifetime.stopping.cancelled() => {}
    }
}

async fn keep_time(job: &Arc<Job>, lifetime: &Lifetime) {
    let mut timetable = Timetable::new(job.schedule.clone(), Utc::now());
    loop {
        match timetable.timing(Utc::now()) {
            Timing::Wait(left) => tokio::time::sleep(left.min(MAX_SLEEP)).await,
            Timing::Due => {
                let (job, stopping) = (Arc::clone(job), lifetime.stopping.clone());
                lifetime.at_work.spawn(async move {
                    tokio::select! {
                        () = tick(&job) => {}
                        () = stopping.cancelled() => {}
                    }
                });
            }
            Timing::Never => return,
        }
    }
}

/// What a schedule comes to by a clock that somebody may set.
struct Timetable {
    schedule: Schedule,
    next: Option<DateTime<Utc>>,
    /// What the clock said last.
    seen: DateTime<Utc>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Timing {
    /// Nothing, for so long.
    Wait(Duration),
    /// The component is to be run.
    Due,
    /// There is no time left at which it would be.
    Never,
}

impl Timetable {
    fn new(schedule: Schedule, now: DateTime<Utc>) -> Self {
        let next = schedule.next(now);
        Self {
            schedule,
            next,
            seen: now,
        }
    }

    /// Looks at the clock, at least every [`MAX_SLEEP`].
    fn timing(&mut self, now: DateTime<Utc>) -> Timing {
        let was_set_back = self.seen.signed_duration_since(now).to_std();
        // Else it is only kept right, and what was done would be done again.
        if was_set_back.is_ok_and(|by| by > MAX_SLEEP) {
            self.next = self.schedule.next(now);
        }
        self.seen = now;
        let Some(next) = self.next else {
            return Timing::Never;
        };
        match next.signed_duration_since(now).to_std() {
            Ok(left) if !left.is_zero() => Timing::Wait(left),
            Ok(_) | Err(_) => {
                self.next = self.schedule.next(now);
                Timing::Due
            }
        }
    }
}

async fn tick(job: &Job) {
    if let Err(reason) = handle_event(job).await {
        let component = &job.grants.component;
        tracing::warn!("component {component} failed at a time of its schedule: {reason}");
    }
}

async fn handle_event(job: &Job) -> Result<(), String> {
    let place = job.places.take(&job.grants.component, Purpose::Tick);
    let place = timeout(PATIENCE, place)
        .await
        .map_err(|_| format!("it had no place in {} seconds", PATIENCE.as_secs()))?;
    let store = job.grants.store(job.pre.engine());
    let ended = job.call(store).await;
    drop(place);
    ended
}

impl Job {
    /// Makes an instance, of no use but to see that it can be made.
    ///
    /// # Errors
    ///
    /// Why not.
    pub(crate) async fn instantiate(&self) -> Result<(), String> {
        let mut store = self.grants.store(self.pre.engine());
        let instance = self.pre.instantiate_async(&mut store).await;
        instance.map(|_| ()).map_err(|error| cause(&error))
    }

    /// Runs it as if its time had come, but sends nothing and says nothing.
    ///
    /// # Errors
    ///
    /// Why it failed before it would have sent something.
    pub(crate) async fn rehearse(&self) -> Result<(), String> {
        let (grants, rehearsal) = self.grants.for_rehearsal();
        let ended = self.call(grants.store(self.pre.engine())).await;
        if rehearsal.has_sent() { Ok(()) } else { ended }
    }

    async fn call(&self, mut store: wasmtime::Store<Guest>) -> Result<(), String> {
        let timestamp = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let instance = self
            .pre
            .instantiate_async(&mut store)
            .await
            .map_err(|error| format!("it cannot be instantiated: {}", cause(&error)))?;
        let work = store.data().fate().at_work();
        let answer = instance
            .call_handle_cron_event(&mut store, Metadata { timestamp })
            .await;
        if answer.is_ok() {
            work.done();
        } else {
            drop(work);
        }
        // First, so that what the component wrote last comes before why it failed.
        drop(store);
        answer
            .map_err(|error| cause(&error))?
            .map_err(|Error::Other(reason)| reason)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    #[test]
    fn times_are_those_of_the_plugin() {
        for (expression, now, next) in [
            (
                "0 */5 * * * *",
                "2026-11-24T12:00:00Z",
                "2026-11-24T12:05:00Z",
            ),
            (
                "0 */5 * * * *",
                "2026-11-24T12:59:59.5Z",
                "2026-11-24T13:00:00Z",
            ),
            (
                "*/2 * * * * *",
                "2026-11-24T12:00:01Z",
                "2026-11-24T12:00:02Z",
            ),
            (
                "0 0 0 1 JAN *",
                "2026-11-24T12:00:00Z",
                "2027-01-01T00:00:00Z",
            ),
            (
                "0 0 0 29 2 *",
                "2026-11-24T12:00:00Z",
                "2028-02-29T00:00:00Z",
            ),
            // Both days have to match: a Friday that is a 13th.
            (
                "0 0 0 13 * FRI",
                "2026-11-24T12:00:00Z",
                "2027-08-13T00:00:00Z",
            ),
        ] {
            let schedule = Schedule::parse(expression).unwrap();
            let now: DateTime<Utc> = now.parse().unwrap();
            assert_eq!(
                schedule.next(now),
                Some(next.parse().unwrap()),
                "{expression}"
            );
        }
    }

    /// When, in seconds of the clock, a component is run of a timetable that is followed for `seconds`, by a clock that is set
    /// after `set.0` of them by `set.1`.
    fn run_for(expression: &str, seconds: i64, set: (i64, TimeDelta)) -> Vec<String> {
        let begin: DateTime<Utc> = "2026-11-24T12:00:00.2Z".parse().unwrap();
        let mut timetable = Timetable::new(Schedule::parse(expression).unwrap(), begin);
        let mut passed = TimeDelta::zero();
        let mut times = Vec::new();
        while passed < TimeDelta::seconds(seconds) {
            let was_set = passed >= TimeDelta::seconds(set.0);
            let now = begin + passed + if was_set { set.1 } else { TimeDelta::zero() };
            match timetable.timing(now) {
                Timing::Wait(left) => passed += TimeDelta::from_std(left.min(MAX_SLEEP)).unwrap(),
                Timing::Due => times.push(now.format("%T").to_string()),
                Timing::Never => break,
            }
        }
        times
    }

    #[test]
    fn a_clock_that_is_set_neither_stops_nor_repeats_a_schedule() {
        let minutes = "0 * * * * *";
        for (expression, set, expected) in [
            (
                minutes,
                TimeDelta::zero(),
                ["12:01:00", "12:02:00", "12:03:00"],
            ),
            // Back by an hour, after a minute and a half.
            (
                minutes,
                TimeDelta::hours(-1),
                ["12:01:00", "11:02:00", "11:03:00"],
            ),
            // Forward: what was missed is not made up for, and once is enough.
            (
                minutes,
                TimeDelta::hours(1),
                ["12:01:00", "13:01:31", "13:02:00"],
            ),
            // A step as a clock takes that is kept right does not bring the same minute again.
            (
                minutes,
                TimeDelta::milliseconds(-400),
                ["12:01:00", "12:02:00", "12:03:00"],
            ),
        ] {
            let times = run_for(expression, 181, (90, set));
            assert_eq!(times.get(..3).unwrap_or(&times), expected, "{set}");
        }
        // Neither just after a tick.
        let times = run_for(minutes, 130, (60, TimeDelta::milliseconds(-400)));
        assert_eq!(times, ["12:01:00", "12:02:00"]);
    }

    #[test]
    fn what_is_no_schedule() {
        for expression in [
            "",
            "* * * * *",
            "0 0 0 1 1 * 2027",
            "60 * * * * *",
            "0 0 0 * * *x",
            "every minute",
            "é * * * * *",
        ] {
            let error = Schedule::parse(expression).unwrap_err();
            assert!(error.contains("six fields"), "{error}");
        }
    }

    #[test]
    fn a_time_that_never_comes_ends_the_search() {
        let never = Schedule::parse("0 0 0 30 2 *").unwrap();
        assert_eq!(never.next(Utc::now()), None);
    }
}
