//! A scenario: who does something at once, what may go wrong meanwhile, and what is expected of it.

use crate::promise::Promise;
use crate::protocol::Program;
use crate::store::Key;

/// Who does something at once, and what may go wrong.
#[derive(Clone, Copy, Debug)]
pub struct Scenario<'a> {
    /// What it shows.
    pub name: &'a str,
    /// What is done at once.
    pub actors: &'a [Program],
    /// What may go wrong, and how often.
    pub trouble: Trouble,
    /// What is done wrong.
    pub mistake: Option<Mistake>,
    /// Whether the store has two regions that agree later. Actors take turns at them.
    pub is_replicated: bool,
    /// What is expected.
    pub expected: Expected,
}

/// What may still go wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Trouble {
    /// Actors that may die, at any step.
    pub deaths: u8,
    /// Writes that may answer with an error: half of them have happened.
    pub faults: u8,
    /// Writes that may answer with an error and happen later, at any time.
    pub late: u8,
    /// Refreshes that Entra ID may answer with a transient error.
    pub transient: u8,
}

/// What is expected of a scenario.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// Every promise is kept.
    Kept,
    /// This promise is broken, at some moment.
    Broken(Promise),
}

/// A deliberate mistake: a step that is left out, or made at another place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mistake {
    /// The record of a user is under one key, whatever the enrolment.
    OneRecordForAllEnrolments,
    /// The head is written before what it names.
    HeadBeforeRecord,
    /// The head is written again after an error.
    HeadRetried,
    /// The head is deleted after an error.
    HeadUndone,
    /// A removal deletes the record before the head.
    RecordDeletedBeforeHead,
    /// A removal of application access only deletes the record.
    NoOff,
    /// Whoever finds neither `off` nor the record does not look for `off` again.
    OffNotReadAgain,
    /// A change sets no marker of its own.
    NoOwnMarker,
    /// A change deletes others' markers before it sets its own.
    OthersMarkersDeletedFirst,
    /// A second marker is deleted, and the record's own one trusted to be there.
    SecondMarkerDeletedAlone,
    /// A change is written without a check before and after. This breaks nothing, and leaves more litter.
    NoChecks,
    /// A sweep removes a token that has expired of whichever enrolment the head names by then.
    ExpiredByHead,
    /// Litter is cleared however young it is.
    LitterClearedWithoutAge,
    /// Litter is cleared as the listing showed it, without reading the head.
    LitterClearedWithoutHead,
    /// An enrolment looks for the removal of its tenant only before it writes.
    BarNotReadAgain,
    /// A removal of a tenant lists before it says that it is under way.
    BarSetAfterListing,
    /// An access token is released as it comes from the vault.
    ReleasedUnchecked,
    /// Before a release the head alone is read.
    ReleasedByHeadAlone,
    /// Before a release the head is read, and then `off`.
    ReleasedByHeadThenOff,
    /// Before a release both are read side by side.
    ReleasedSideBySide,
}

impl Mistake {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::OneRecordForAllEnrolments,
        Self::HeadBeforeRecord,
        Self::HeadRetried,
        Self::HeadUndone,
        Self::RecordDeletedBeforeHead,
        Self::NoOff,
        Self::OffNotReadAgain,
        Self::NoOwnMarker,
        Self::OthersMarkersDeletedFirst,
        Self::SecondMarkerDeletedAlone,
        Self::NoChecks,
        Self::ExpiredByHead,
        Self::LitterClearedWithoutAge,
        Self::LitterClearedWithoutHead,
        Self::BarNotReadAgain,
        Self::BarSetAfterListing,
        Self::ReleasedUnchecked,
        Self::ReleasedByHeadAlone,
        Self::ReleasedByHeadThenOff,
        Self::ReleasedSideBySide,
    ];
}

impl Scenario<'_> {
    /// Whether nobody in it ever writes this key.
    #[must_use]
    pub fn never_writes(&self, key: Key) -> bool {
        match key {
            Key::Off(_) => !(self.actors.iter())
                .any(|program| matches!(program, Program::RemoveToken | Program::Expire)),
            Key::Bar => !self.actors.contains(&Program::RemoveTenant),
            Key::Head | Key::Record(_) | Key::Marker(..) => false,
        }
    }
}

impl Scenario<'static> {
    pub(crate) const fn kept(name: &'static str, actors: &'static [Program]) -> Self {
        Self {
            name,
            actors,
            trouble: Trouble::NONE,
            mistake: None,
            is_replicated: false,
            expected: Expected::Kept,
        }
    }

    /// What breaks this promise, without a mistake.
    pub(crate) const fn breaks(
        promise: Promise,
        name: &'static str,
        actors: &'static [Program],
    ) -> Self {
        Self {
            expected: Expected::Broken(promise),
            ..Self::kept(name, actors)
        }
    }

    /// With a mistake.
    pub(crate) const fn with(mut self, mistake: Mistake) -> Self {
        self.mistake = Some(mistake);
        self
    }

    /// In two regions.
    pub(crate) const fn replicated(mut self) -> Self {
        self.is_replicated = true;
        self
    }

    /// So many actors may die.
    pub(crate) const fn deaths(mut self, deaths: u8) -> Self {
        self.trouble.deaths = deaths;
        self
    }

    /// So many writes may fail.
    pub(crate) const fn faults(mut self, faults: u8) -> Self {
        self.trouble.faults = faults;
        self
    }

    /// So many writes may fail and happen later.
    pub(crate) const fn late(mut self, late: u8) -> Self {
        self.trouble.late = late;
        self
    }

    /// So many refreshes may fail for a moment.
    pub(crate) const fn transient(mut self, transient: u8) -> Self {
        self.trouble.transient = transient;
        self
    }
}

impl Trouble {
    /// All goes well.
    pub const NONE: Self = Self {
        deaths: 0,
        faults: 0,
        late: 0,
        transient: 0,
    };
}
