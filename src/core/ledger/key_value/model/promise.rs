//! What the protocol promises, and where a moment breaks it.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::history::explains;
use crate::protocol::{Ending, Program, View};
use crate::scenario::Scenario;
use crate::step::{Step, record_key};
use crate::store::{Key, Store, Value};
use crate::world::{Event, Progress, World};

/// A promise.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Promise {
    /// What users saw, what was released to them and what is left at the end has a serial order that explains it.
    Serial,
    /// After an acknowledged removal, and until somebody enrols, there is not for a moment anything of the user to be used.
    RemovedStaysAway,
    /// An enrolment in force has a marker, at any moment: it is due at some time.
    Due,
    /// A head names what is there: a record, or its removal.
    Whole,
    /// Nobody writes over the record of another enrolment.
    OthersUntouched,
    /// A record is not laid over one of the same sign-in whose token is newer. **Cannot be kept without compare-and-swap**,
    /// and is looked for only to say so: tokens of one sign-in live and die together.
    NewestOfSignIn,
    /// When a removal of the tenant is acknowledged, nobody is there whose enrolment was acknowledged before that.
    TenantIsGone,
    /// What clears litter takes what is nobody's, leaves nothing behind, and changes nothing that anybody sees.
    Cleared,
}

impl Promise {
    /// Whether the protocol does not make it, for want of compare-and-swap.
    #[must_use]
    pub fn is_out_of_reach(self) -> bool {
        self == Self::NewestOfSignIn
    }
}

/// Finds broken promises. What was found out about a moment once is not found out again.
#[derive(Default)]
pub(crate) struct Judge {
    explained: HashMap<u64, bool>,
    cleared: HashMap<u64, bool>,
    /// Moments at which everybody was done.
    pub(crate) at_rest: u64,
}

impl Judge {
    /// The promises that a moment breaks.
    pub(crate) fn moment(&mut self, world: &World, scenario: &Scenario<'_>) -> Vec<Promise> {
        let is_under_way =
            |actor: &crate::world::Actor| matches!(actor.progress, Progress::UnderWay(_));
        let is_at_rest = world.is_at_rest();
        if scenario.is_replicated && !is_at_rest {
            // Until the regions agree, nothing is promised.
            return Vec::new();
        }
        let store = world.store(0);
        let view = world.view(scenario.mistake);
        let mut broken = Vec::new();
        if let (View::Has(_), Some(head)) = (view, store.head())
            && store.markers(head).next().is_none()
        {
            broken.push(Promise::Due);
        }
        if view == View::Lost {
            broken.push(Promise::Whole);
        }
        if brings_back(world, view) {
            broken.push(Promise::RemovedStaysAway);
        }
        if !is_at_rest {
            return broken;
        }
        debug_assert!(!world.actors.iter().any(is_under_way));
        self.at_rest += 1;
        let history = (endings(world), world.before, world.revoked(), view);
        if !*self
            .explained
            .entry(hash(&history))
            .or_insert_with(|| explains(world, view))
        {
            broken.push(Promise::Serial);
        }
        if !*self
            .cleared
            .entry(hash(store))
            .or_insert_with(|| is_cleared(world, scenario))
        {
            broken.push(Promise::Cleared);
        }
        broken
    }

    /// The promises that an event between two moments breaks.
    pub(crate) fn event(
        world: &World,
        event: &Event,
        next: &World,
        scenario: &Scenario<'_>,
    ) -> Vec<Promise> {
        if let Event::Step {
            program: Program::RemoveTenant,
            ending: Some(Ending::Acknowledged),
            ..
        } = event
        {
            return if outlives_its_tenant(next) {
                vec![Promise::TenantIsGone]
            } else {
                Vec::new()
            };
        }
        let Event::Step {
            actor,
            program: Program::Refresh | Program::Reseal | Program::DrawAndStore,
            step: Step::Set(key @ Key::Record(_), Value::Record(new)),
            ..
        } = event
        else {
            return Vec::new();
        };
        let region = if scenario.is_replicated { actor % 2 } else { 0 };
        let Some(old) = world.store(region).record(*key) else {
            return Vec::new();
        };
        if old.enrolment != new.enrolment {
            vec![Promise::OthersUntouched]
        } else if old.token > new.token {
            vec![Promise::NewestOfSignIn]
        } else {
            Vec::new()
        }
    }
}

/// Whether there is something to be used, though a removal was acknowledged and everybody who enrolled had been answered
/// before it began.
fn brings_back(world: &World, view: View) -> bool {
    let is_last = |removal: usize| {
        world.actors.iter().enumerate().all(|(index, actor)| {
            !matches!(actor.program, Program::Enrol(_))
                || actor.progress == Progress::NotBegun
                || world.was_over(index, removal)
        })
    };
    world.actors.iter().enumerate().any(|(index, actor)| {
        let is_acknowledged = actor.progress == Progress::Over(Ending::Acknowledged);
        let is_back = match actor.program {
            Program::Remove | Program::RemoveTenant => view != View::Absent,
            Program::RemoveToken => matches!(view, View::Has(_)),
            _ => false,
        };
        is_acknowledged && is_back && is_last(index)
    })
}

/// Whether somebody is there whose enrolment is acknowledged.
fn outlives_its_tenant(world: &World) -> bool {
    world.store(0).head().is_some_and(|head| {
        world.actors.iter().any(|actor| {
            actor.program == Program::Enrol(head)
                && actor.progress == Progress::Over(Ending::Acknowledged)
        })
    })
}

/// Whether a sweep without trouble clears all that is nobody's, and nothing else.
fn is_cleared(world: &World, scenario: &Scenario<'_>) -> bool {
    let view = world.view(scenario.mistake);
    let mut world = world.clone();
    loop {
        let before = world.store(0).clone();
        for choose in 0..before.enrolments().len() {
            world = world.alone(Program::ClearLitter, choose, scenario);
        }
        if *world.store(0) == before {
            break;
        }
    }
    let store = world.store(0);
    let is_nothing_left = match view {
        View::Absent => store.keys().all(|key| key == Key::Bar),
        View::NoToken => has_nothing_but(store, |key, head| key == Key::Off(head)),
        View::Has(_) => has_nothing_but(store, |key, head| {
            key == record_key(head, scenario.mistake)
                || matches!(key, Key::Marker(of, _) if of == head)
        }),
        // That is another promise's.
        View::Lost => true,
    };
    let is_marked = !matches!(view, View::Has(_))
        || store
            .head()
            .is_some_and(|head| store.markers(head).next().is_some());
    is_nothing_left && is_marked && world.view(scenario.mistake) == view
}

fn has_nothing_but(store: &Store, belongs: impl Fn(Key, u8) -> bool) -> bool {
    store.head().is_some_and(|head| {
        store
            .keys()
            .all(|key| matches!(key, Key::Head | Key::Bar) || belongs(key, head))
    })
}

fn endings(world: &World) -> Vec<Option<Ending>> {
    let ending = |actor: &crate::world::Actor| match actor.progress {
        Progress::Over(ending) => Some(ending),
        Progress::NotBegun | Progress::UnderWay(_) => None,
    };
    world.actors.iter().map(ending).collect()
}

pub(crate) fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// What was looked at before, by its hash.
pub(crate) type Seen = HashSet<u64>;
