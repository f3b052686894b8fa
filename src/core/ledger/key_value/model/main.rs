//! Runs the model checker whole, or in part: `scripts/model --help`.
#![allow(
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed check, not an outage"
)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use behalf_model::{
    Expected, LARGE, LIMITS, MISTAKES, Outcome, SMALL, Scenario, Trouble, crowd, exhaust,
};
use clap::Parser;

/// Random ways that are gone through each crowd.
const WAYS: u64 = 3000;

/// Checks the protocol of the key-value ledger: every interleaving of its scenarios.
#[derive(Parser)]
struct Arguments {
    /// Only scenarios whose name has this text in it.
    name: Option<String>,
    /// Only those that the tests run, too.
    #[arg(long)]
    small: bool,
    /// Most moments of one scenario; beyond, it is cut.
    #[arg(long, default_value_t = 4_000_000)]
    most: u64,
    /// Shows the shortest way to each broken promise.
    #[arg(long)]
    ways: bool,
    /// Instead, goes random ways among seven actors for so many seconds.
    #[arg(long, value_name = "SECONDS")]
    wander: Option<u64>,
    /// Where the random ways begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Scenarios that are looked at at once.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let is_well = match arguments.wander {
        Some(seconds) => wander(seconds, arguments.seed, arguments.ways),
        None => check(&arguments),
    };
    if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Looks at the scenarios that are asked for. False: one is not as expected.
fn check(arguments: &Arguments) -> bool {
    let large = if arguments.small { &[] } else { LARGE };
    let name = arguments.name.as_deref().unwrap_or_default();
    let all = SMALL.iter().chain(MISTAKES).chain(LIMITS).chain(large);
    let scenarios: Vec<_> = all
        .filter(|scenario| scenario.name.contains(name))
        .collect();
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Total::default());
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let began = Instant::now();
                    let outcome = exhaust(scenario, arguments.most);
                    let mut total = total.lock().expect("no thread has panicked");
                    total.add(scenario, &outcome);
                    tell(scenario, &outcome, began.elapsed(), arguments.ways);
                }
            });
        }
    });
    let total = total.into_inner().expect("no thread has panicked");
    println!("{total:?}");
    total.not_as_expected == 0
}

#[derive(Default, Debug)]
struct Total {
    exhausted: u64,
    cut: u64,
    not_as_expected: u64,
    moments: u64,
}

impl Total {
    fn add(&mut self, scenario: &Scenario<'_>, outcome: &Outcome) {
        self.exhausted += u64::from(outcome.is_exhausted);
        self.cut += u64::from(!outcome.is_exhausted);
        self.not_as_expected += u64::from(!outcome.is_expected(scenario));
        self.moments += outcome.moments;
    }
}

fn tell(scenario: &Scenario<'_>, outcome: &Outcome, took: Duration, ways: bool) {
    let verdict = match (outcome.is_expected(scenario), outcome.is_exhausted) {
        (false, _) => "NOT AS EXPECTED",
        (true, true) => "as expected",
        (true, false) => "as expected so far",
    };
    let mistake = scenario.mistake.map(|mistake| format!(" with {mistake:?}"));
    println!(
        "{}{}: {verdict}; {} moments, {} at rest, {:.1} s",
        scenario.name,
        mistake.unwrap_or_default(),
        outcome.moments,
        outcome.at_rest,
        took.as_secs_f32(),
    );
    show(outcome, ways);
}

fn show(outcome: &Outcome, ways: bool) {
    for (promise, way) in &outcome.broken {
        println!("    {promise:?} is broken, by {} steps", way.len());
        for event in way.iter().filter(|_| ways) {
            println!("        {event}");
        }
    }
}

/// Goes random ways. False: a promise is broken on one of them.
fn wander(seconds: u64, seed: u64, ways: bool) -> bool {
    let began = Instant::now();
    let (mut crowds, mut moments, mut is_well) = (0, 0, true);
    while began.elapsed() < Duration::from_secs(seconds) {
        let actors = crowd(seed.wrapping_add(crowds));
        let scenario = Scenario {
            name: "a crowd",
            actors: &actors,
            trouble: Trouble {
                deaths: 2,
                faults: 2,
                late: 0,
                transient: 1,
            },
            mistake: None,
            is_replicated: false,
            expected: Expected::Kept,
        };
        let outcome = behalf_model::wander(&scenario, WAYS, seed.wrapping_add(crowds));
        (crowds, moments) = (crowds + 1, moments + outcome.moments);
        if !outcome.is_expected(&scenario) {
            is_well = false;
            println!("{actors:?}: NOT AS EXPECTED");
            show(&outcome, ways);
        }
    }
    println!("{crowds} crowds of seven, {WAYS} ways through each, {moments} moments");
    is_well
}
