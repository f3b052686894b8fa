//! Deliberate mistakes: each is something that the protocol forbids, and the simulation has to find it.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::ledger::postgres::database::Row;
use crate::simulation::watched::Answered;

/// A deliberate mistake, made where the system meets its store, network or clock, so that nothing of it is in what is
/// shipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mutation {
    /// An enrolment writes its head first, and its record and its marker after it.
    HeadBeforeRecord,
    /// A head that could not be written is written again a while later.
    HeadRetried,
    /// A head that could not be written is deleted a while later.
    HeadUndone,
    /// A removal of the refresh token does not write `off`.
    NoOff,
    /// A draw takes the head that it read first for the head before its release.
    NoFinalHeadRead,
    /// What an enrolment is still writing is taken for litter, as if it were old.
    LitterWithoutAge,
    /// A sweep deletes a marker and has not written its own.
    MarkerDeletedWithoutOwn,
    /// A record is deleted when Entra ID refuses its refresh token.
    DeletedOnInvalidGrant,
    /// A sweep writes what it refreshed under the enrolment that is in force by then.
    WrittenUnderAnother,
    /// A removal deletes the record before the head.
    RecordDeletedBeforeHead,
    /// An enrolment overlooks that its record could not be written.
    RefreshTokenNotStored,
    /// A removal of a tenant finds only the users who have a marker.
    TenantListedByMarkers,
    /// Nobody sees that a tenant is being removed.
    BarNotSeen,
    /// Before a release `off` is not read.
    ReleasedByHeadAlone,
    /// Before a release the head is read first.
    ReleasedByHeadThenOff,
    /// Before a release the head and `off` are read side by side.
    ReleasedSideBySide,
    /// The first page of a listing is taken for the whole.
    ListingCutShort,
    /// Whatever the date of an answer, it confirms the clock.
    EveryClockConfirmed,
    /// A draw takes what it read of `off` first for what it is before its release. This was wrong once.
    OffNotReadAgain,
    /// The marker of a refresh that is put off has the old key version. This was wrong once.
    OldVersionKept,
    /// Of several markers of an enrolment, only the first is deleted. This was wrong once.
    SecondMarkersKept,
    /// An access token that was drawn before is released without a look.
    KeptReleasedUnseen,
    /// The look before its release was made before the vault had answered.
    KeptSeenBefore,
    /// It does not tell the enrolment that it was drawn under: the current one is taken for that.
    KeptWithoutNonce,
    /// A call whose access token was drawn for it is sent without a look.
    CallSentUnseen,
    /// So is one that answers the API's challenge.
    ChallengeAnsweredUnseen,

    // Those of the ledger in a database.
    /// A record is put in the place of whichever there is, of whichever enrolment.
    RecordOverlooked,
    /// A removal is acknowledged whose connection ended.
    RemovalNotMadeAcknowledged,
    /// Before a release, what was found first is taken for what there is now.
    FoundBeforeKept,
}

/// Those of the ledger in a database.
pub(super) const OF_DATABASE: [Mutation; 3] = [
    Mutation::RecordOverlooked,
    Mutation::RemovalNotMadeAcknowledged,
    Mutation::FoundBeforeKept,
];

/// Those of the ledger on key-value storage, and of what is above both.
pub(super) const MUTATIONS: [Mutation; 26] = [
    Mutation::HeadBeforeRecord,
    Mutation::HeadRetried,
    Mutation::HeadUndone,
    Mutation::NoOff,
    Mutation::NoFinalHeadRead,
    Mutation::LitterWithoutAge,
    Mutation::MarkerDeletedWithoutOwn,
    Mutation::DeletedOnInvalidGrant,
    Mutation::WrittenUnderAnother,
    Mutation::RecordDeletedBeforeHead,
    Mutation::RefreshTokenNotStored,
    Mutation::TenantListedByMarkers,
    Mutation::BarNotSeen,
    Mutation::ReleasedByHeadAlone,
    Mutation::ReleasedByHeadThenOff,
    Mutation::ReleasedSideBySide,
    Mutation::ListingCutShort,
    Mutation::EveryClockConfirmed,
    Mutation::OffNotReadAgain,
    Mutation::OldVersionKept,
    Mutation::SecondMarkersKept,
    Mutation::KeptReleasedUnseen,
    Mutation::KeptSeenBefore,
    Mutation::KeptWithoutNonce,
    Mutation::CallSentUnseen,
    Mutation::ChallengeAnsweredUnseen,
];

/// What the mistake that is switched on has to remember.
#[derive(Default)]
pub(super) struct Notes {
    /// What an enrolment writes after the head, by its act.
    pub(super) held_back: RefCell<HashMap<usize, Vec<(String, Vec<u8>)>>>,
    /// The keys that a sweep listed, by its act.
    pub(super) listed: RefCell<HashMap<usize, Vec<String>>>,
    /// What a draw or a call read first, by its act and the key.
    pub(super) read: RefCell<HashMap<(usize, String), Option<Vec<u8>>>>,
    /// What a draw or a call found before it asked the vault, by its act.
    pub(super) found: RefCell<HashMap<usize, Vec<Row>>>,
    /// What the vault answered a draw or a call with, by its act.
    pub(super) kept: RefCell<HashMap<usize, Answered>>,
}
