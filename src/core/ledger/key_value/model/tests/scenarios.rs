//! The small scenarios, whole; `scripts/model` looks at the large ones.
#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::collections::BTreeSet;

use behalf_model::{
    Ending, Event, LIMITS, MISTAKES, Mistake, Program, Promise, SMALL, Scenario, Step, View, World,
    crowd, exhaust, wander,
};

/// Looks at a scenario whole, and at whether it is as expected.
fn check(scenario: &Scenario<'_>) -> behalf_model::Outcome {
    let outcome = exhaust(scenario, 1_000_000);
    let (name, mistake) = (scenario.name, scenario.mistake);
    assert!(outcome.is_exhausted, "{name}");
    assert!(outcome.at_rest > 0, "{name}: nobody comes to an end");
    assert!(
        outcome.is_expected(scenario),
        "{name}, with {mistake:?}, should be {:?}:\n{}",
        scenario.expected,
        told(&outcome)
    );
    outcome
}

fn told(outcome: &behalf_model::Outcome) -> String {
    let way = |(promise, way): (&Promise, &Vec<Event>)| {
        let steps = way.iter().map(|event| format!("    {event}\n"));
        format!("{promise:?} is broken:\n{}", steps.collect::<String>())
    };
    outcome.broken.iter().map(way).collect()
}

#[test]
fn the_protocol_keeps_its_promises() {
    for scenario in SMALL {
        check(scenario);
    }
}

#[test]
fn each_mistake_breaks_a_promise() {
    let tried: BTreeSet<Mistake> = MISTAKES
        .iter()
        .map(|scenario| {
            check(scenario);
            scenario
                .mistake
                .unwrap_or_else(|| panic!("no mistake: {}", scenario.name))
        })
        .collect();
    for mistake in Mistake::ALL {
        // The checks only spare litter: the small scenarios have it.
        assert!(
            tried.contains(mistake) || *mistake == Mistake::NoChecks,
            "{mistake:?} is not tried"
        );
    }
}

/// Whoever reads what a step is there for can look for the mistake that leaves it out, and the other way round.
#[test]
fn the_protocol_tells_what_each_mistake_breaks() {
    let protocol = include_str!("../../PROTOCOL.md");
    for mistake in Mistake::ALL {
        assert!(
            protocol.contains(&format!("`{mistake:?}`")),
            "{mistake:?} is not in PROTOCOL.md"
        );
    }
}

#[test]
fn what_is_not_promised_is_not_kept() {
    for scenario in LIMITS {
        check(scenario);
    }
}

/// `off`, and when that has answered, the head. Every other order lets a token leave after an acknowledged removal.
#[test]
fn the_last_question_before_a_release_reads_off_and_then_the_head() {
    for actors in [
        [Program::Enrol(1), Program::RemoveToken, Program::Draw],
        [Program::RemoveToken, Program::Remove, Program::Draw],
    ] {
        let with = |mistake| {
            let mut scenario = SMALL[0];
            scenario.actors = &actors;
            scenario.trouble = behalf_model::Trouble::NONE;
            scenario.mistake = mistake;
            exhaust(&scenario, 1_000_000)
        };
        let right = with(None);
        assert!(
            right.is_exhausted && right.broken.is_empty(),
            "{}",
            told(&right)
        );
        for mistake in [
            Mistake::ReleasedUnchecked,
            Mistake::ReleasedByHeadAlone,
            Mistake::ReleasedByHeadThenOff,
            Mistake::ReleasedSideBySide,
        ] {
            let wrong = with(Some(mistake));
            let Some(way) = wrong.broken.get(&Promise::Serial) else {
                panic!("{mistake:?} is not found with {actors:?}");
            };
            assert!(releases_after_removal(way), "{mistake:?}: {way:#?}");
        }
    }
}

/// Whether an access token is released on this way that the vault had only after a removal was acknowledged.
fn releases_after_removal(way: &[Event]) -> bool {
    let removed = way.iter().position(|event| {
        matches!(
            event,
            Event::Step {
                program: Program::RemoveToken | Program::Remove,
                ending: Some(Ending::Acknowledged),
                ..
            }
        )
    });
    let drawn = way.iter().position(|event| {
        matches!(
            event,
            Event::Step {
                step: Step::Draw(0),
                ..
            }
        )
    });
    let is_released = way.iter().any(|event| {
        matches!(
            event,
            Event::Step {
                program: Program::Draw,
                ending: Some(Ending::Saw(View::Has(0))),
                ..
            }
        )
    });
    is_released && removed.is_some() && removed < drawn
}

/// The way to a broken promise is one that can be gone.
#[test]
fn a_way_can_be_gone_again() {
    for scenario in MISTAKES {
        for way in check(scenario).broken.values() {
            let mut world = World::new(scenario);
            for event in way {
                let successors = world.successors(scenario);
                let next = successors.into_iter().find(|(other, _)| other == event);
                let Some((_, next)) = next else {
                    panic!("{}: {event} cannot happen", scenario.name);
                };
                world = next;
            }
        }
    }
}

#[test]
fn random_ways_keep_the_promises_and_a_seed_is_a_way() {
    for seed in 0..20 {
        let actors = crowd(seed);
        let mut scenario = SMALL[0];
        scenario.actors = &actors;
        scenario.trouble = behalf_model::Trouble {
            deaths: 2,
            faults: 2,
            late: 0,
            transient: 1,
        };
        let outcome = wander(&scenario, 50, seed);
        assert!(
            outcome.is_expected(&scenario),
            "{actors:?}:\n{}",
            told(&outcome)
        );
        let again = wander(&scenario, 50, seed);
        assert_eq!(
            (outcome.moments, outcome.at_rest),
            (again.moments, again.at_rest)
        );
    }
}

#[test]
fn random_ways_find_a_mistake() {
    let mut scenario = SMALL[0];
    scenario.actors = &[
        Program::Enrol(1),
        Program::RemoveToken,
        Program::Refresh,
        Program::Draw,
    ];
    scenario.mistake = Some(Mistake::ReleasedByHeadAlone);
    let outcome = wander(&scenario, 2000, 1);
    assert!(outcome.broken.contains_key(&Promise::Serial));
}
