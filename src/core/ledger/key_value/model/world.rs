//! The world at one moment: the store, Entra ID, how far each actor has come, and what may still go wrong; and the moments
//! that can come next.

use crate::protocol::{Ending, Program, View};
use crate::scenario::{Mistake, Scenario, Trouble};
use crate::step::{Answer, Litter, Replay, Step, record_key};
use crate::store::{Enrolment, Key, Store, Value};

/// Most actors of a scenario, with the enrolment before everything.
pub(crate) const MOST_ACTORS: usize = 8;

/// One moment.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    /// What is stored, by region; a store that is not replicated has one.
    stores: Vec<Store>,
    /// The actors, in the order of the scenario.
    pub(crate) actors: Vec<Actor>,
    /// For each actor, a bit for each of those that had ended when it began.
    pub(crate) before: [u8; MOST_ACTORS],
    /// How many tokens each sign-in has had.
    tokens: [u8; MOST_ACTORS],
    /// A bit for each sign-in that is revoked.
    revoked: u8,
    /// What may still go wrong.
    pub(crate) trouble: Trouble,
    /// Writes whose sender has given up, and that happen all the same.
    late: Vec<LateWrite>,
    replication: Replication,
    /// Whether all is over, and one comes after.
    is_alone: bool,
}

/// How far an actor has come.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Actor {
    pub(crate) program: Program,
    pub(crate) progress: Progress,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Progress {
    NotBegun,
    /// What it was answered so far.
    UnderWay(Vec<Answer>),
    Over(Ending),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct LateWrite {
    actor: usize,
    key: Key,
    value: Option<Value>,
}

/// What is on its way from one region to the other. The later write of a key wins, by a clock without fault.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
struct Replication {
    under_way: Vec<Message>,
    /// When each key of each region was written the last time.
    written: Vec<(usize, Key, u8)>,
    clock: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Message {
    to: usize,
    key: Key,
    value: Option<Value>,
    time: u8,
}

/// What happens between one moment and the next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// An actor takes a step.
    Step {
        /// Which actor.
        actor: usize,
        /// What it does.
        program: Program,
        /// The step.
        step: Step,
        /// What it is answered.
        answer: Answer,
        /// Whether the step happened, though the answer does not say so.
        note: &'static str,
        /// How the actor ends, if it does.
        ending: Option<Ending>,
    },
    /// An actor dies.
    Death {
        /// Which actor.
        actor: usize,
        /// What it was doing.
        program: Program,
    },
    /// A write whose sender has given up happens.
    Late(Key),
    /// A write of one region comes to the other.
    Replicated(Key),
}

impl World {
    /// The world when the enrolment before everything is acknowledged, and trouble may begin.
    #[must_use]
    pub fn new(scenario: &Scenario<'_>) -> Self {
        let actor = |program| Actor {
            program,
            progress: Progress::NotBegun,
        };
        let first = std::iter::once(Program::Enrol(0));
        let regions = if scenario.is_replicated { 2 } else { 1 };
        let mut world = Self {
            stores: vec![Store::default(); regions],
            actors: first
                .chain(scenario.actors.iter().copied())
                .map(actor)
                .collect(),
            before: [0; MOST_ACTORS],
            tokens: [0; MOST_ACTORS],
            revoked: 0,
            trouble: Trouble::NONE,
            late: Vec::new(),
            replication: Replication::default(),
            is_alone: false,
        };
        assert!(world.actors.len() <= MOST_ACTORS, "{}", scenario.name);
        world.begin(0);
        while let Some(step) = world.next_step(0, scenario) {
            let (mut next, answer, _) = world.outcomes(0, &step, scenario).swap_remove(0);
            next.answered(0, answer);
            world = next;
        }
        world.settle(0, scenario);
        while let Some((_, next)) = world.deliveries().into_iter().next() {
            world = next;
        }
        world.replication = Replication::default();
        world.trouble = scenario.trouble;
        world
    }

    /// What can happen next, and the world then.
    #[must_use]
    pub fn successors(&self, scenario: &Scenario<'_>) -> Vec<(Event, Self)> {
        let mut successors = self.deliveries();
        for (index, actor) in self.actors.iter().enumerate() {
            let program = actor.program;
            if matches!(actor.progress, Progress::Over(_)) {
                continue;
            }
            let mut here = self.clone();
            here.begin(index);
            if matches!(actor.progress, Progress::UnderWay(_)) && here.trouble.deaths > 0 {
                let mut next = here.clone();
                next.trouble.deaths -= 1;
                next.actors[index].progress = Progress::Over(Ending::Died);
                let event = Event::Death {
                    actor: index,
                    program,
                };
                successors.push((event, next));
            }
            let Some(step) = here.next_step(index, scenario) else {
                continue;
            };
            if matches!(step, Step::Draw(_)) {
                here.notes_who_is_over(index);
            }
            for (mut next, answer, note) in here.outcomes(index, &step, scenario) {
                next.answered(index, answer.clone());
                let ending = next.settle(index, scenario);
                let event = Event::Step {
                    actor: index,
                    program,
                    step,
                    answer,
                    note,
                    ending,
                };
                successors.push((event, next));
            }
        }
        successors
    }

    /// The store that a region has.
    #[must_use]
    pub fn store(&self, region: usize) -> &Store {
        &self.stores[region]
    }

    /// What the user is now, to whoever reads everything at once.
    #[must_use]
    pub fn view(&self, mistake: Option<Mistake>) -> View {
        let store = self.store(0);
        let Some(head) = store.head() else {
            return View::Absent;
        };
        if store.get(Key::Off(head)).is_some() {
            return View::NoToken;
        }
        match store.record(record_key(head, mistake)) {
            Some(record) => View::Has(record.enrolment),
            None => View::Lost,
        }
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let is_over = |actor: &Actor| !matches!(actor.progress, Progress::UnderWay(_));
        self.actors.iter().all(is_over) && self.is_settled()
    }

    /// Whether no write is on its way.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.late.is_empty() && self.replication.under_way.is_empty()
    }

    /// A bit for each sign-in that is revoked.
    pub(crate) fn revoked(&self) -> u8 {
        self.revoked
    }

    /// Whether a sign-in is revoked.
    pub(crate) fn is_revoked(&self, enrolment: Enrolment) -> bool {
        self.revoked >> enrolment & 1 == 1
    }

    /// Whether this actor had ended when that one began.
    pub(crate) fn was_over(&self, earlier: usize, later: usize) -> bool {
        self.before[later] >> earlier & 1 == 1
    }

    /// Runs a program alone to its end, with nothing going wrong, taking up what `choose` says of a listing's choices.
    pub(crate) fn alone(&self, program: Program, choose: usize, scenario: &Scenario<'_>) -> Self {
        let mut world = Self {
            actors: vec![Actor {
                program,
                progress: Progress::UnderWay(Vec::new()),
            }],
            trouble: Trouble::NONE,
            is_alone: true,
            ..self.clone()
        };
        while let Some(step) = world.next_step(0, scenario) {
            let mut outcomes = world.outcomes(0, &step, scenario);
            let chosen = choose.min(outcomes.len().saturating_sub(1));
            let (mut next, answer, _) = outcomes.swap_remove(chosen);
            next.answered(0, answer);
            world = next;
        }
        world.actors.clear();
        world
    }

    fn begin(&mut self, index: usize) {
        if self.actors[index].progress == Progress::NotBegun {
            self.actors[index].progress = Progress::UnderWay(Vec::new());
            self.notes_who_is_over(index);
        }
    }

    fn notes_who_is_over(&mut self, index: usize) {
        for (other, actor) in self.actors.iter().enumerate() {
            if matches!(actor.progress, Progress::Over(_)) {
                self.before[index] |= 1 << other;
            }
        }
    }

    fn answered(&mut self, index: usize, answer: Answer) {
        if let Progress::UnderWay(answers) = &mut self.actors[index].progress {
            answers.push(answer);
        }
    }

    fn run(&self, index: usize, scenario: &Scenario<'_>) -> Result<Ending, Step> {
        let actor = &self.actors[index];
        let answers: &[Answer] = match &actor.progress {
            Progress::UnderWay(answers) => answers,
            Progress::NotBegun | Progress::Over(_) => &[],
        };
        let number = index + if self.is_alone { MOST_ACTORS } else { 0 };
        let number = u8::try_from(number).expect("few actors");
        actor
            .program
            .run(&mut Replay::new(answers, number, scenario.mistake))
    }

    /// The next step of an actor that is under way; none: it is over.
    ///
    /// Reads of what nobody in the scenario ever writes are answered here: nobody else's step can change what they find, so
    /// they are none of their own.
    fn next_step(&mut self, index: usize, scenario: &Scenario<'_>) -> Option<Step> {
        loop {
            let step = self.run(index, scenario).err()?;
            let answer = match step {
                Step::Get(key) if scenario.never_writes(key) => Answer::Read(None),
                Step::Either(key, _) if scenario.never_writes(key) => Answer::ReadFirst {
                    is_second: false,
                    value: None,
                },
                Step::Either(_, key) if scenario.never_writes(key) => Answer::ReadFirst {
                    is_second: true,
                    value: None,
                },
                _ => return Some(step),
            };
            self.answered(index, answer);
        }
    }

    /// Notes how an actor ends, if its next step is none.
    fn settle(&mut self, index: usize, scenario: &Scenario<'_>) -> Option<Ending> {
        if self.next_step(index, scenario).is_some() {
            return None;
        }
        let ending = self.run(index, scenario).ok()?;
        self.actors[index].progress = Progress::Over(ending);
        Some(ending)
    }

    /// What a step can be answered, and the world then: first if all goes well.
    fn outcomes(
        &self,
        index: usize,
        step: &Step,
        scenario: &Scenario<'_>,
    ) -> Vec<(Self, Answer, &'static str)> {
        let region = index % self.stores.len();
        let store = &self.stores[region];
        match *step {
            Step::Get(key) => vec![(self.clone(), Answer::Read(store.get(key)), "")],
            Step::Either(first, second) => [(false, first), (true, second)]
                .map(|(is_second, key)| {
                    let value = store.get(key);
                    (self.clone(), Answer::ReadFirst { is_second, value }, "")
                })
                .into(),
            Step::Set(key, value) => self.writes(index, key, Some(value)),
            Step::Delete(key) => self.writes(index, key, None),
            Step::List => vec![(self.clone(), Answer::HasHead(store.head().is_some()), "")],
            Step::ListMarkers => choices_of_markers(store)
                .into_iter()
                .map(|markers| (self.clone(), Answer::Markers(markers), ""))
                .collect(),
            Step::ListLitter => self
                .choices_of_litter(store, scenario)
                .into_iter()
                .map(|litter| (self.clone(), Answer::Litter(litter), ""))
                .collect(),
            Step::SignIn(enrolment) => {
                let mut next = self.clone();
                next.revoked &= !(1 << enrolment);
                vec![next.issues(enrolment)]
            }
            Step::Redeem(enrolment) | Step::Draw(enrolment) => {
                let mut outcomes = if self.is_revoked(enrolment) {
                    vec![(self.clone(), Answer::Refused, "")]
                } else {
                    vec![self.clone().issues(enrolment)]
                };
                if self.trouble.transient > 0 && matches!(step, Step::Redeem(_)) {
                    let mut next = self.clone();
                    next.trouble.transient -= 1;
                    outcomes.push((next, Answer::Transient, ""));
                }
                outcomes
            }
            Step::Revoke => {
                let mut next = self.clone();
                for (sign_in, tokens) in self.tokens.iter().enumerate() {
                    next.revoked |= u8::from(*tokens > 0) << sign_in;
                }
                vec![(next, Answer::Done, "")]
            }
        }
    }

    fn issues(mut self, enrolment: Enrolment) -> (Self, Answer, &'static str) {
        let tokens = &mut self.tokens[usize::from(enrolment)];
        *tokens += 1;
        let token = *tokens;
        (self, Answer::Token(token), "")
    }

    fn writes(
        &self,
        index: usize,
        key: Key,
        value: Option<Value>,
    ) -> Vec<(Self, Answer, &'static str)> {
        let mut written = self.clone();
        written.put(index % self.stores.len(), key, value);
        let mut outcomes = vec![(written.clone(), Answer::Done, "")];
        if self.trouble.faults > 0 {
            written.trouble.faults -= 1;
            outcomes.push((written, Answer::Failed, "but it happened"));
            let mut lost = self.clone();
            lost.trouble.faults -= 1;
            outcomes.push((lost, Answer::Failed, ""));
        }
        if self.trouble.late > 0 {
            let mut late = self.clone();
            late.trouble.late -= 1;
            late.late.push(LateWrite {
                actor: index,
                key,
                value,
            });
            outcomes.push((late, Answer::Failed, "but it will happen"));
        }
        outcomes
    }

    fn put(&mut self, region: usize, key: Key, value: Option<Value>) {
        let is_nothing = value.is_none() && self.stores[region].get(key).is_none();
        self.stores[region].put(key, value);
        if self.stores.len() > 1 && !(is_nothing && key != Key::Head) {
            self.replication.send(region, key, value);
        }
    }

    /// Writes that are on their way, and the world once one has arrived.
    fn deliveries(&self) -> Vec<(Event, Self)> {
        let late = self.late.iter().enumerate().map(|(at, write)| {
            let mut next = self.clone();
            next.late.remove(at);
            next.stores[0].put(write.key, write.value);
            (Event::Late(write.key), next)
        });
        let messages = self.replication.under_way.iter().enumerate();
        let replicated = messages.map(|(at, message)| {
            let mut next = self.clone();
            next.replication.under_way.remove(at);
            if next.replication.is_newer(message) {
                next.replication.note(message.to, message.key, message.time);
                next.stores[message.to].put(message.key, message.value);
            }
            (Event::Replicated(message.key), next)
        });
        late.chain(replicated).collect()
    }

    /// Each enrolment of a listing that is not as it should be, and is old: whoever made it has ended.
    fn choices_of_litter(&self, store: &Store, scenario: &Scenario<'_>) -> Vec<Option<Litter>> {
        let ignores_age = scenario.mistake == Some(Mistake::LitterClearedWithoutAge);
        let is_old = |enrolment: Enrolment| {
            let writer = self
                .actors
                .iter()
                .position(|actor| actor.program == Program::Enrol(enrolment));
            writer.is_none_or(|writer| {
                matches!(self.actors[writer].progress, Progress::Over(_))
                    && !self.late.iter().any(|write| write.actor == writer)
            })
        };
        let mut litter: Vec<Option<Litter>> = litter_of(store)
            .into_iter()
            .filter(|litter| ignores_age || is_old(litter.enrolment))
            .map(Some)
            .collect();
        if litter.is_empty() {
            litter.push(None);
        }
        litter
    }
}

impl Replication {
    fn send(&mut self, from: usize, key: Key, value: Option<Value>) {
        self.clock += 1;
        let (to, time) = (1 - from, self.clock);
        self.note(from, key, time);
        // Of two writes of one key, the later one overtakes.
        self.under_way
            .retain(|message| !(message.to == to && message.key == key));
        self.under_way.push(Message {
            to,
            key,
            value,
            time,
        });
    }

    fn is_newer(&self, message: &Message) -> bool {
        let written = self
            .written
            .iter()
            .find(|(region, key, _)| *region == message.to && *key == message.key);
        written.is_none_or(|(_, _, time)| message.time > *time)
    }

    fn note(&mut self, region: usize, key: Key, time: u8) {
        self.written
            .retain(|written| (written.0, written.1) != (region, key));
        self.written.push((region, key, time));
        self.written.sort_unstable();
    }
}

/// Enrolments with too much or too little to them: as `Listing::litter` has it.
fn litter_of(store: &Store) -> Vec<Litter> {
    let has_head = store.head().is_some();
    let enrolments = store.enrolments();
    let is_one = has_head && enrolments.len() == 1;
    enrolments
        .into_iter()
        .filter_map(|enrolment| {
            let markers: Vec<Key> = store.markers(enrolment).collect();
            let has_record = store.get(Key::Record(enrolment)).is_some();
            let is_off = store.get(Key::Off(enrolment)).is_some();
            let is_well = is_one
                && match (has_record, is_off) {
                    (_, false) => !markers.is_empty(),
                    (false, true) => markers.is_empty(),
                    (true, true) => false,
                };
            (!is_well).then_some(Litter {
                enrolment,
                is_known: has_head || !markers.is_empty(),
                has_record,
                is_off,
                markers,
            })
        })
        .collect()
}

/// Every set of listed markers of one enrolment that a sweep may take up: which of them are due is the clock's affair.
fn choices_of_markers(store: &Store) -> Vec<Vec<Key>> {
    let mut choices = Vec::new();
    for enrolment in store.enrolments() {
        let markers: Vec<Key> = store.markers(enrolment).collect();
        for set in 1_u32..1 << markers.len() {
            let chosen = markers.iter().enumerate();
            let chosen = chosen.filter(|(at, _)| set >> at & 1 == 1);
            choices.push(chosen.map(|(_, marker)| *marker).collect());
        }
    }
    if choices.is_empty() {
        choices.push(Vec::new());
    }
    choices
}
