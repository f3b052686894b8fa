//! Searches: every interleaving, and random ones.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use crate::catalogue::CROWD;
use crate::promise::{Judge, Promise, Seen, hash};
use crate::protocol::Program;
use crate::scenario::{Expected, Scenario};
use crate::world::{Event, MOST_ACTORS, World};

/// What came of a search.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Distinct moments that were looked at. They are told apart by 64 bits of their hash: that two of ten million fall
    /// together has odds of three in a million.
    pub moments: u64,
    /// Of these, how many had everybody done.
    pub at_rest: u64,
    /// Whether there are no others.
    pub is_exhausted: bool,
    /// Broken promises, each with the shortest way there.
    pub broken: BTreeMap<Promise, Vec<Event>>,
}

impl Outcome {
    /// Whether a scenario came out as expected, as far as it was looked at.
    #[must_use]
    pub fn is_expected(&self, scenario: &Scenario<'_>) -> bool {
        match scenario.expected {
            Expected::Broken(promise) => self.broken.contains_key(&promise),
            Expected::Kept => self.broken.keys().all(|promise| promise.is_out_of_reach()),
        }
    }
}

/// Looks at every moment of a scenario, nearest first; at so many at most.
#[must_use]
pub fn exhaust(scenario: &Scenario<'_>, most: u64) -> Outcome {
    let mut search = Search {
        scenario,
        judge: Judge::default(),
        ways: Vec::new(),
        outcome: Outcome::default(),
    };
    search.run(most);
    search.outcome.at_rest = search.judge.at_rest;
    search.outcome
}

struct Search<'a> {
    scenario: &'a Scenario<'a>,
    judge: Judge,
    /// How each moment was first come to: from which one, and by which of what could happen there.
    ways: Vec<(u32, u16)>,
    outcome: Outcome,
}

impl Search<'_> {
    fn run(&mut self, most: u64) {
        let first = World::new(self.scenario);
        let mut seen = Seen::new();
        seen.insert(hash(&first));
        self.ways.push((u32::MAX, 0));
        let mut waiting = VecDeque::from([(first, 0_u32)]);
        while let Some((world, at)) = waiting.pop_front() {
            if self.outcome.moments >= most {
                return;
            }
            self.outcome.moments += 1;
            for promise in self.judge.moment(&world, self.scenario) {
                self.note(promise, at, None);
            }
            let successors = world.successors(self.scenario).into_iter().enumerate();
            for (choice, (event, next)) in successors {
                for promise in Judge::event(&world, &event, &next, self.scenario) {
                    self.note(promise, at, Some(&event));
                }
                if seen.insert(hash(&next)) {
                    let choice = u16::try_from(choice).expect("few things can happen");
                    self.ways.push((at, choice));
                    let number = u32::try_from(self.ways.len() - 1).expect("4 billion moments");
                    waiting.push_back((next, number));
                }
            }
        }
        self.outcome.is_exhausted = true;
    }

    fn note(&mut self, promise: Promise, at: u32, last: Option<&Event>) {
        if !self.outcome.broken.contains_key(&promise) {
            let mut way = self.way_to(at);
            way.extend(last.cloned());
            self.outcome.broken.insert(promise, way);
        }
    }

    /// What has happened on the way to a moment, found by going it again.
    fn way_to(&self, mut at: u32) -> Vec<Event> {
        let mut choices = Vec::new();
        while let (from @ 0..=0xffff_fffe, choice) = self.ways[at as usize] {
            choices.push(choice);
            at = from;
        }
        let mut world = World::new(self.scenario);
        let mut events = Vec::new();
        for choice in choices.into_iter().rev() {
            let (event, next) = world.successors(self.scenario).swap_remove(choice.into());
            events.push(event);
            world = next;
        }
        events
    }
}

/// Goes a number of random ways through a scenario, from its beginning to where everybody is done. The same seed goes the
/// same ways. Actors tend to go some steps at a time, and trouble is rare.
#[must_use]
pub fn wander(scenario: &Scenario<'_>, ways: u64, seed: u64) -> Outcome {
    let mut random = Random(seed);
    let mut judge = Judge::default();
    let mut outcome = Outcome::default();
    let first = World::new(scenario);
    for _ in 0..ways {
        let mut world = first.clone();
        let mut events: Vec<Event> = Vec::new();
        let patience = random.below(4);
        loop {
            outcome.moments += 1;
            let mut broken = judge.moment(&world, scenario);
            let mut successors = world.successors(scenario);
            let is_over = successors.is_empty();
            if !is_over {
                let chosen = random.choose(&world, &successors, events.last(), patience);
                let (event, next) = successors.swap_remove(chosen);
                broken.extend(Judge::event(&world, &event, &next, scenario));
                events.push(event);
                world = next;
            }
            for promise in broken {
                let way = outcome.broken.entry(promise);
                way.or_insert_with(|| events.clone());
            }
            if is_over {
                break;
            }
        }
    }
    outcome.at_rest = judge.at_rest;
    outcome
}

/// Seven of those who may meet, at random; the same seed has the same seven.
#[must_use]
pub fn crowd(seed: u64) -> Vec<Program> {
    let mut random = Random(seed);
    let mut all = CROWD.to_vec();
    let mut crowd = Vec::new();
    while crowd.len() + 1 < MOST_ACTORS {
        crowd.push(all.swap_remove(random.below(all.len())));
    }
    crowd
}

/// `SplitMix64` (<https://doi.org/10.1145/2714064.2660195>).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        usize::try_from(self.number() % bound).expect("below a usize")
    }

    /// One of the things that can happen. With patience, the actor of the last step goes on; trouble is drawn again.
    fn choose(
        &mut self,
        world: &World,
        successors: &[(Event, World)],
        last: Option<&Event>,
        patience: usize,
    ) -> usize {
        let is_trouble = |at: usize| successors[at].1.trouble != world.trouble;
        let mut chosen = self.below(successors.len());
        if self.below(4) < patience {
            let goes_on: Vec<usize> = (0..successors.len())
                .filter(|at| successors[*at].0.actor() == last.and_then(Event::actor))
                .filter(|at| !is_trouble(*at))
                .collect();
            if !goes_on.is_empty() {
                chosen = goes_on[self.below(goes_on.len())];
            }
        }
        for _ in 0..2 {
            if is_trouble(chosen) {
                chosen = self.below(successors.len());
            }
        }
        chosen
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step {
                actor,
                program,
                step,
                answer,
                note,
                ending,
            } => {
                write!(f, "{program:?} ({actor}): {step:?} -> {answer:?} {note}")?;
                match ending {
                    Some(ending) => write!(f, " => {ending:?}"),
                    None => Ok(()),
                }
            }
            Self::Death { actor, program } => write!(f, "{program:?} ({actor}) dies"),
            Self::Late(key) => write!(f, "a late write of {key:?} happens"),
            Self::Replicated(key) => write!(f, "{key:?} comes to the other region"),
        }
    }
}

impl Event {
    /// Whose step it is.
    #[must_use]
    pub fn actor(&self) -> Option<usize> {
        match self {
            Self::Step { actor, .. } | Self::Death { actor, .. } => Some(*actor),
            Self::Late(_) | Self::Replicated(_) => None,
        }
    }
}
