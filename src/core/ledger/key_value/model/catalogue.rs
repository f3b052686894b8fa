//! The scenarios that are checked.
//!
//! All begin after an acknowledged enrolment, number 0, whose record is under an old key and due.

use crate::promise::Promise;
use crate::protocol::Program::{
    self, ClearLitter, Draw, DrawAndStore, Enrol, Expire, Refresh, Remove, RemoveTenant,
    RemoveToken, Reseal, Revoke, Show, Tidy,
};
use crate::scenario::{Mistake, Scenario};

/// Scenarios that keep every promise, looked at whole within seconds: the tests run them.
pub const SMALL: &[Scenario<'static>] = &[
    // One actor alone, dying and failing at every step.
    Scenario::kept("an enrolment happens or does not", &[Enrol(1)])
        .deaths(1)
        .faults(2),
    Scenario::kept("a refresh leaves a marker wherever it ends", &[Refresh])
        .deaths(1)
        .faults(2)
        .transient(1),
    Scenario::kept("a re-seal leaves a marker wherever it ends", &[Reseal])
        .deaths(1)
        .faults(2),
    Scenario::kept(
        "a removal of the tenant happens or does not",
        &[RemoveTenant],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "what a removal of access leaves is cleared",
        &[RemoveToken, ClearLitter],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept("what a removal leaves is cleared", &[Remove, ClearLitter])
        .deaths(1)
        .faults(1),
    // Two at once.
    Scenario::kept(
        "of two enrolments one is current, and the other leaves nothing",
        &[Enrol(1), Enrol(2)],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "an enrolment and a removal have an order",
        &[Enrol(1), Remove],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "an enrolment is either listed by the removal of its tenant, or finds it",
        &[Enrol(1), RemoveTenant],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "an enrolment is not overwritten by a refresh of the one before",
        &[Enrol(1), Refresh],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "an enrolment is not overwritten by a re-seal of the one before",
        &[Enrol(1), Reseal],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "an enrolment under way is no litter",
        &[Enrol(1), ClearLitter],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "a removed user is not brought back by a refresh",
        &[Remove, Refresh],
    )
    .deaths(1)
    .faults(1)
    .transient(1),
    Scenario::kept(
        "removed access is not brought back by a refresh",
        &[RemoveToken, Refresh],
    )
    .deaths(1)
    .faults(1)
    .transient(1),
    Scenario::kept(
        "removed access is not brought back by a draw that stores a token",
        &[RemoveToken, DrawAndStore],
    )
    .deaths(1),
    Scenario::kept("a refresh and a re-seal leave a marker", &[Refresh, Reseal])
        .deaths(1)
        .faults(1),
    Scenario::kept(
        "a token that is refused for good is removed, and no other",
        &[Enrol(1), Revoke, Expire],
    )
    .deaths(1)
    .faults(1),
    // The last question before a release: `off`, and then the head.
    Scenario::kept("nothing is released after a removal", &[Remove, Draw])
        .deaths(1)
        .faults(1),
    Scenario::kept(
        "nothing is released after removed access",
        &[RemoveToken, Draw],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "nothing is released after removed access that an enrolment clears away",
        &[Enrol(1), RemoveToken, Draw],
    ),
    Scenario::kept(
        "nothing is released after removed access that a removal clears away",
        &[RemoveToken, Remove, Draw],
    ),
    // The checks before and after a write only spare litter.
    Scenario::kept(
        "without checks a removed user stays away all the same",
        &[Remove, Refresh, ClearLitter],
    )
    .with(Mistake::NoChecks)
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "without checks removed access stays away all the same",
        &[RemoveToken, Refresh, ClearLitter],
    )
    .with(Mistake::NoChecks)
    .deaths(1)
    .faults(1),
];

/// Scenarios in which a mistake breaks a promise.
pub const MISTAKES: &[Scenario<'static>] = &[
    Scenario::breaks(
        Promise::OthersUntouched,
        "a slow refresh lays an old sign-in's token over a new one's",
        &[Enrol(1), Refresh],
    )
    .with(Mistake::OneRecordForAllEnrolments),
    Scenario::breaks(
        Promise::Serial,
        "a slow re-seal undoes an enrolment",
        &[Enrol(1), Reseal],
    )
    .with(Mistake::OneRecordForAllEnrolments),
    Scenario::breaks(
        Promise::Whole,
        "an enrolment that dies leaves a head that names nothing",
        &[Enrol(1)],
    )
    .with(Mistake::HeadBeforeRecord)
    .deaths(1),
    Scenario::breaks(
        Promise::Serial,
        "a head that is written again undoes a removal",
        &[Enrol(1), Remove, Show],
    )
    .with(Mistake::HeadRetried)
    .faults(1),
    Scenario::breaks(
        Promise::Serial,
        "a head that is written again undoes another enrolment",
        &[Enrol(1), Enrol(2), Show],
    )
    .with(Mistake::HeadRetried)
    .faults(1),
    Scenario::breaks(
        Promise::Serial,
        "a head that is taken back takes the enrolment before with it",
        &[Enrol(1)],
    )
    .with(Mistake::HeadUndone)
    .faults(1),
    Scenario::breaks(
        Promise::Whole,
        "a removal that dies leaves a head without a record",
        &[Remove],
    )
    .with(Mistake::RecordDeletedBeforeHead)
    .deaths(1),
    Scenario::breaks(
        Promise::RemovedStaysAway,
        "a refresh brings removed access back",
        &[RemoveToken, Refresh],
    )
    .with(Mistake::NoOff),
    Scenario::breaks(
        Promise::Serial,
        "a record seems lost to whoever reads beside a removal of access",
        &[RemoveToken, Show],
    )
    .with(Mistake::OffNotReadAgain),
    Scenario::breaks(
        Promise::Due,
        "a change leaves its record without a marker",
        &[Refresh],
    )
    .with(Mistake::NoOwnMarker),
    Scenario::breaks(
        Promise::Due,
        "a change that dies leaves its record without a marker",
        &[Refresh],
    )
    .with(Mistake::OthersMarkersDeletedFirst)
    .deaths(1),
    Scenario::breaks(
        Promise::Due,
        "the record's own marker has gone when the second one goes",
        &[Refresh, Refresh, Tidy],
    )
    .with(Mistake::SecondMarkerDeletedAlone),
    Scenario::breaks(
        Promise::Serial,
        "a token expires, and a new enrolment's is removed",
        &[Enrol(1), Revoke, Expire],
    )
    .with(Mistake::ExpiredByHead),
    Scenario::breaks(
        Promise::Whole,
        "an enrolment under way is taken for litter",
        &[Enrol(1), ClearLitter],
    )
    .with(Mistake::LitterClearedWithoutAge),
    Scenario::breaks(
        Promise::Whole,
        "a current enrolment is taken for litter beside another's",
        &[Enrol(1), ClearLitter],
    )
    .with(Mistake::LitterClearedWithoutHead),
    Scenario::breaks(
        Promise::TenantIsGone,
        "an enrolment outlives the removal of its tenant",
        &[Enrol(1), RemoveTenant],
    )
    .with(Mistake::BarNotReadAgain),
    Scenario::breaks(
        Promise::TenantIsGone,
        "an enrolment slips through between the listing and the bar",
        &[Enrol(1), Remove, RemoveTenant],
    )
    .with(Mistake::BarSetAfterListing),
    Scenario::breaks(
        Promise::Serial,
        "a token is released after a removal",
        &[Remove, Draw],
    )
    .with(Mistake::ReleasedUnchecked),
    Scenario::breaks(
        Promise::Serial,
        "the head does not tell of removed access",
        &[RemoveToken, Draw],
    )
    .with(Mistake::ReleasedByHeadAlone),
    Scenario::breaks(
        Promise::Serial,
        "removed access and an enrolment pass between head and `off`",
        &[Enrol(1), RemoveToken, Draw],
    )
    .with(Mistake::ReleasedByHeadThenOff),
    Scenario::breaks(
        Promise::Serial,
        "removed access and a removal pass between head and `off`",
        &[RemoveToken, Remove, Draw],
    )
    .with(Mistake::ReleasedByHeadThenOff),
    Scenario::breaks(
        Promise::Serial,
        "removed access and an enrolment pass between two reads side by side",
        &[Enrol(1), RemoveToken, Draw],
    )
    .with(Mistake::ReleasedSideBySide),
];

/// Scenarios that show what the protocol does not promise.
pub const LIMITS: &[Scenario<'static>] = &[
    Scenario::breaks(
        Promise::NewestOfSignIn,
        "a slow re-seal lays an older token of the same sign-in over a newer one",
        &[Refresh, Reseal],
    ),
    Scenario::breaks(
        Promise::Serial,
        "a head that a backend writes after it has answered with an error undoes a removal",
        &[Enrol(1), Remove],
    )
    .late(1),
    Scenario::breaks(
        Promise::TenantIsGone,
        "of two removals of a tenant at once, the first to end lifts the bar of the other",
        &[Enrol(1), RemoveTenant, RemoveTenant],
    ),
    Scenario::breaks(
        Promise::RemovedStaysAway,
        "in another region, removed access is that of the enrolment before",
        &[Enrol(1), RemoveToken],
    )
    .replicated(),
];

/// Larger scenarios, of up to ten million moments each: `scripts/model` runs them. All but the last keep every promise.
pub const LARGE: &[Scenario<'static>] = &[
    // Enrolments and removals, beside sweeps.
    Scenario::kept(
        "an enrolment, a removal and a draw that stores a token",
        &[Enrol(1), Remove, DrawAndStore],
    )
    .deaths(2)
    .faults(1),
    Scenario::kept(
        "an enrolment, a removal and a refresh",
        &[Enrol(1), Remove, Refresh],
    )
    .deaths(2)
    .faults(1)
    .transient(1),
    Scenario::kept(
        "two enrolments and a removal",
        &[Enrol(1), Enrol(2), Remove],
    )
    .deaths(2)
    .faults(1),
    Scenario::kept(
        "a removal, a refresh and a re-seal",
        &[Remove, Refresh, Reseal],
    )
    .deaths(2)
    .faults(1)
    .transient(1),
    Scenario::kept(
        "removed access, a refresh and a re-seal",
        &[RemoveToken, Refresh, Reseal],
    )
    .deaths(2)
    .faults(1)
    .transient(1),
    Scenario::kept(
        "removed access, a removal and a refresh",
        &[RemoveToken, Remove, Refresh],
    )
    .deaths(2)
    .faults(1),
    Scenario::kept(
        "removed access, an enrolment and a refresh",
        &[Enrol(1), RemoveToken, Refresh],
    )
    .deaths(2)
    .faults(1),
    Scenario::kept(
        "an enrolment, a re-seal and a refresh",
        &[Enrol(1), Reseal, Refresh],
    )
    .deaths(1)
    .faults(1)
    .transient(1),
    Scenario::kept(
        "an enrolment, a removal, a re-seal and a refresh",
        &[Enrol(1), Remove, Reseal, Refresh],
    )
    .deaths(1),
    Scenario::kept(
        "an enrolment, both removals and a refresh",
        &[Enrol(1), Remove, RemoveToken, Refresh],
    )
    .deaths(1),
    Scenario::kept(
        "a draw that stores a token, a re-seal, a refresh and a removal",
        &[DrawAndStore, Reseal, Refresh, Remove],
    ),
    // Sweeps among themselves.
    Scenario::kept("two refreshes and a re-seal", &[Refresh, Refresh, Reseal])
        .deaths(1)
        .faults(1)
        .transient(1),
    Scenario::kept(
        "two refreshes and a draw that stores a token",
        &[Refresh, Refresh, DrawAndStore],
    )
    .deaths(1)
    .faults(1)
    .transient(1),
    Scenario::kept("three refreshes", &[Refresh, Refresh, Refresh])
        .deaths(1)
        .transient(1),
    Scenario::kept("two that tidy and a refresh", &[Tidy, Tidy, Refresh])
        .deaths(1)
        .faults(1)
        .transient(1),
    Scenario::kept(
        "one that tidies, a refresh and a draw that stores a token",
        &[Refresh, Tidy, DrawAndStore],
    )
    .deaths(1)
    .faults(1)
    .transient(1),
    Scenario::kept(
        "two that tidy and two refreshes",
        &[Refresh, Refresh, Tidy, Tidy],
    )
    .deaths(1),
    Scenario::kept(
        "two refreshes, one that tidies and a re-seal",
        &[Refresh, Refresh, Tidy, Reseal],
    )
    .deaths(1),
    // What clears litter.
    Scenario::kept(
        "litter, an enrolment, a removal and a reader",
        &[Enrol(1), Remove, ClearLitter, Show],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "litter, an enrolment, a revocation and a refresh that is refused",
        &[Enrol(1), Refresh, Revoke, ClearLitter],
    )
    .deaths(1)
    .transient(1),
    Scenario::kept(
        "litter, a refresh and a removal",
        &[Refresh, Remove, ClearLitter],
    )
    .deaths(2)
    .faults(1)
    .transient(1),
    Scenario::kept(
        "litter, removed access, a refresh and a reader",
        &[RemoveToken, ClearLitter, Refresh, Show],
    )
    .deaths(1),
    Scenario::kept(
        "litter, two refreshes and a re-seal",
        &[Refresh, Refresh, ClearLitter, Reseal],
    )
    .deaths(1),
    Scenario::kept(
        "litter, removed access, an enrolment and a refresh",
        &[RemoveToken, Enrol(1), ClearLitter, Refresh],
    )
    .deaths(1),
    Scenario::kept(
        "litter cleared twice, a removal and a draw that stores a token",
        &[Remove, DrawAndStore, ClearLitter, ClearLitter],
    )
    .deaths(1),
    Scenario::kept(
        "litter, an enrolment, a refresh and one that tidies",
        &[Enrol(1), Refresh, Tidy, ClearLitter],
    ),
    // A token that is refused for good.
    Scenario::kept(
        "an expired token, a refresh and an enrolment",
        &[Enrol(1), Revoke, Expire, Refresh],
    ),
    Scenario::kept(
        "an expired token, a draw and a removal",
        &[Remove, Revoke, Expire, Draw],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "litter, an expired token and an enrolment",
        &[Enrol(1), Revoke, Expire, ClearLitter],
    )
    .deaths(1)
    .faults(1),
    // Readers.
    Scenario::kept(
        "a reader, an enrolment and both removals",
        &[Enrol(1), RemoveToken, Remove, Show],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "a reader, an enrolment and two removals",
        &[Remove, Remove, Enrol(1), Show],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "two readers and two enrolments",
        &[Enrol(1), Enrol(2), Show, Show],
    )
    .deaths(1)
    .faults(1),
    // The last question before a release.
    Scenario::kept(
        "a draw, an enrolment and both removals",
        &[Enrol(1), RemoveToken, Remove, Draw],
    )
    .deaths(1),
    Scenario::kept(
        "a draw, two enrolments and removed access",
        &[Enrol(1), Enrol(2), RemoveToken, Draw],
    ),
    Scenario::kept(
        "two draws, an enrolment and removed access",
        &[Enrol(1), RemoveToken, Draw, Draw],
    ),
    Scenario::kept(
        "a draw that stores a token, an enrolment and removed access",
        &[Enrol(1), RemoveToken, DrawAndStore],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "a draw, a refresh, an enrolment and removed access",
        &[Enrol(1), RemoveToken, Refresh, Draw],
    ),
    // The removal of a tenant.
    Scenario::kept(
        "a removal of the tenant, an enrolment and a draw",
        &[Enrol(1), RemoveTenant, Draw],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "a removal of the tenant, an enrolment and a refresh",
        &[Enrol(1), RemoveTenant, Refresh],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "a removal of the tenant and two enrolments",
        &[Enrol(1), Enrol(2), RemoveTenant],
    )
    .deaths(1)
    .faults(1),
    Scenario::kept(
        "a removal of the tenant, an enrolment, removed access and litter",
        &[Enrol(1), RemoveTenant, RemoveToken, ClearLitter],
    ),
    // Two regions, once they agree.
    Scenario::kept("regions: a refresh and a removal", &[Refresh, Remove]).replicated(),
    Scenario::kept("regions: an enrolment and a removal", &[Enrol(1), Remove]).replicated(),
    Scenario::kept(
        "regions: an enrolment, a refresh and a revocation",
        &[Enrol(1), Refresh, Revoke],
    )
    .replicated(),
    Scenario::kept("regions: two refreshes", &[Refresh, Refresh]).replicated(),
    Scenario::kept(
        "regions: removed access and a refresh",
        &[RemoveToken, Refresh],
    )
    .replicated(),
    // What is not promised, once more.
    Scenario::breaks(
        Promise::Serial,
        "what a user is shown can be the enrolment before, whose access was removed",
        &[Enrol(1), RemoveToken, Refresh, Show],
    ),
];

/// Who may meet on random ways. [`Show`] is left out, for what the last of [`LARGE`] says of it.
pub(crate) const CROWD: &[Program] = &[
    Enrol(1),
    Enrol(2),
    Draw,
    Draw,
    DrawAndStore,
    DrawAndStore,
    RemoveToken,
    Remove,
    Remove,
    RemoveTenant,
    Refresh,
    Refresh,
    Refresh,
    Reseal,
    Reseal,
    Tidy,
    Tidy,
    ClearLitter,
    ClearLitter,
    Expire,
    Revoke,
];
