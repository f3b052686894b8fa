//! A deterministic simulation of the whole system: the very `Keeper` and `Vault` that the components translate, over a
//! store, a network, Entra ID, Key Vault and clocks that misbehave.
//!
//! A seed decides everything, and so reproduces a run exactly. Requests and sweeps of two replicas run at once: every call
//! of a port is a point at which another may go on, or at which a request dies. What users saw is then held against every
//! serial order of what they asked for (property 4 of the design), and what is left in the store is held against what was
//! acknowledged.
//!
//! `SIMULATION_SEEDS=1000000 cargo test -p behalf-core --release simulation` runs more than the default.

mod api;
pub(crate) mod called;
mod chance;
mod course;
mod database;
mod entra;
mod fairness;
mod history;
mod kept;
mod key_vault;
mod mutation;
mod network;
mod outside;
mod port;
mod promises;
mod request;
pub(crate) mod rounds;
mod run;
mod store;
pub(crate) mod time;
mod users;
mod watched;
pub(crate) mod world;

use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::postgres::PostgresLedger;
use crate::simulation::history::{End, Operation, View};
use crate::simulation::kept::Kept;
use crate::simulation::mutation::{MUTATIONS, Mutation, OF_DATABASE};
use crate::simulation::outside::HOUR;
use crate::simulation::port::Port;
use crate::simulation::run::Run;

/// How many seeds are run unless the environment says otherwise.
const SEEDS: u64 = 4_000;
/// Seeds within which each deliberate mistake is found: the rarest takes more than a run without one has time for.
const SEEDS_OF_A_MISTAKE: u64 = 20_000;
/// Where the search for the rarest of them begins: it was last found at seed 4,633, a minute after the first.
const NEAR_THE_RAREST: u64 = 4_600;

/// The violations of one seed.
fn simulate<L: Kept>(seed: u64, mutation: Option<Mutation>) -> Vec<String> {
    let mut run = Run::<L>::new(seed, mutation, false);
    run.trouble();
    run.calm();
    run.check();
    run.outside.violations.take()
}

/// The violations of one seed in the races in which the last look before a release decides: of an access token to a caller, or
/// of a call to its API.
fn race<L: Kept>(seed: u64, mutation: Option<Mutation>, release: Operation) -> Vec<String> {
    let mut run = Run::<L>::new(seed, mutation, false);
    run.race_for_a_release(release);
    run.check_release();
    run.outside.violations.take()
}

fn seeds() -> u64 {
    std::env::var("SIMULATION_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap())
}

type OnKeyValue = KeyValueLedger<Port, Port>;
type InDatabase = PostgresLedger<Port, Port>;

#[test]
fn every_seed_keeps_the_promises() {
    go_through::<OnKeyValue>(seeds());
}

#[test]
fn every_seed_keeps_the_promises_in_a_database() {
    go_through::<InDatabase>(seeds() / 2);
}

/// Runs all seeds, on two threads.
fn go_through<L: Kept>(seeds: u64) {
    let run = |first: u64| {
        (first..seeds).step_by(2).find_map(|seed| {
            let violations = [
                race::<L>(seed, None, Operation::Draw),
                race::<L>(seed, None, Operation::Call),
                simulate::<L>(seed, None),
            ];
            let violations = violations.concat();
            (!violations.is_empty()).then_some((seed, violations))
        })
    };
    let found = std::thread::scope(|scope| {
        let threads = [0, 1].map(|first| scope.spawn(move || run(first)));
        threads.map(|thread| thread.join().unwrap())
    });
    if let Some((seed, violations)) = found.into_iter().flatten().next() {
        panic!("seed {seed}:\n{}", violations.join("\n"));
    }
}

/// Each deliberate mistake is found.
#[test]
fn each_mistake_is_found() {
    find::<OnKeyValue>(&MUTATIONS);
}

#[test]
fn each_mistake_in_a_database_is_found() {
    find::<InDatabase>(&OF_DATABASE);
}

fn find<L: Kept>(mutations: &[Mutation]) {
    for mutation in mutations.iter().copied() {
        let releases: &[_] = match mutation {
            Mutation::ReleasedByHeadAlone
            | Mutation::ReleasedByHeadThenOff
            | Mutation::ReleasedSideBySide
            | Mutation::KeptReleasedUnseen
            | Mutation::KeptSeenBefore
            | Mutation::KeptWithoutNonce
            | Mutation::FoundBeforeKept => &[Some(Operation::Draw), Some(Operation::Call)],
            Mutation::CallSentUnseen | Mutation::ChallengeAnsweredUnseen => {
                &[Some(Operation::Call)]
            }
            _ => &[None],
        };
        for release in releases {
            let run = |seed| match release {
                Some(release) => race::<L>(seed, Some(mutation), *release),
                None => simulate::<L>(seed, Some(mutation)),
            };
            let first = match mutation {
                Mutation::WrittenUnderAnother => NEAR_THE_RAREST,
                _ => 0,
            };
            let found = (first..SEEDS_OF_A_MISTAKE)
                .chain(0..first)
                .find_map(|seed| Some((seed, run(seed).into_iter().next()?)));
            let what = format!("{mutation:?}, {release:?}");
            let (seed, violation) = found.unwrap_or_else(|| panic!("{what} was not found"));
            println!("{what}: seed {seed}: {violation:.100}");
        }
    }
}

/// Entra ID does not do this to confidential clients today (PLATFORMS.md, "Refresh tokens"). If it did, a draw within
/// a day of the last refresh would lose the enrolment at the next, since its successor is not stored; sweeps would not.
#[test]
fn with_single_use_tokens_draws_lose_an_enrolment_and_sweeps_do_not() {
    let mut run = Run::<OnKeyValue>::new(1, None, true);
    run.alone(Operation::Enrol, 0);
    run.days(&[8, 8, 8]);
    assert_eq!(run.alone(Operation::Draw, 0), End::Saw(View::Has(0)));
    run.outside.now.set(run.outside.now.get() + HOUR);
    assert_eq!(run.alone(Operation::Draw, 0), End::Failed);
    assert_eq!(run.alone(Operation::Enrol, 0), End::Acknowledged);
    assert_eq!(run.alone(Operation::Draw, 0), End::Saw(View::Has(1)));
}

#[test]
fn a_seed_is_a_run() {
    let trace = |seed| {
        let mut run = Run::<OnKeyValue>::new(seed, None, false);
        run.trouble();
        run.calm();
        run.check();
        let rows = run.outside.rows.borrow().clone();
        let log = run.outside.log.borrow().clone();
        (rows, log, format!("{:?}", run.outside.acts.borrow()))
    };
    assert!((0..5).all(|seed| trace(seed) == trace(seed)));
}
