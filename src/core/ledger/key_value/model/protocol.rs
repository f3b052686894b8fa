//! The protocol: what each operation does, step by step, as `PROTOCOL.md` has it and the key-value ledger does it.
//!
//! Deliberate mistakes ([`Mistake`]) stand where they are made, so that it can be read what each step is there for.

use crate::scenario::Mistake;
use crate::step::{Litter, Next, Redeemed, Replay, Step, Stop};
use crate::store::{Enrolment, Key, Record, Value, Write};

/// What an actor does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Program {
    /// A user enrols; the enrolment has this number.
    Enrol(Enrolment),
    /// A user looks at what is stored.
    Show,
    /// A user draws an access token.
    Draw,
    /// The same, and the refresh token that comes with it is stored.
    DrawAndStore,
    /// A user removes application access.
    RemoveToken,
    /// A user is removed.
    Remove,
    /// All users of the tenant are removed.
    RemoveTenant,
    /// A sweep refreshes a record that is due.
    Refresh,
    /// A sweep seals a record anew that is under an old key.
    Reseal,
    /// A sweep finds that a marker it came by is not the record's, and the record not due.
    Tidy,
    /// A sweep finds that Entra ID has refused the token for so long that it is removed.
    Expire,
    /// A sweep clears litter.
    ClearLitter,
    /// The user's sign-ins are revoked at Entra ID.
    Revoke,
}

/// What a user is, to the users.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum View {
    /// Not enrolled.
    Absent,
    /// Enrolled, and application access was removed.
    NoToken,
    /// Enrolled, with a refresh token of the sign-in of this enrolment.
    Has(Enrolment),
    /// Enrolled, and the record is missing: never what anybody should see.
    Lost,
}

/// How an actor ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ending {
    /// It was acknowledged.
    Acknowledged,
    /// It was told an error: it may have happened, before that.
    Failed,
    /// It died: it may have happened, before that.
    Died,
    /// The caller saw this; of [`Program::Draw`], [`View::Has`] is an access token of that enrolment, released.
    Saw(View),
}

/// Times that a read starts again because the user enrolled meanwhile.
const ATTEMPTS: u8 = 3;

impl Program {
    /// Runs it as far as its actor's answers reach: how it ends, or the next step.
    pub(crate) fn run(self, actor: &mut Replay<'_>) -> Result<Ending, Step> {
        let outcome = match self {
            Self::Enrol(enrolment) => enrol(actor, enrolment),
            Self::Show => show(actor),
            Self::Draw => draw(actor, false),
            Self::DrawAndStore => draw(actor, true),
            Self::RemoveToken => remove_token(actor),
            Self::Remove => remove(actor),
            Self::RemoveTenant => remove_tenant(actor),
            Self::Refresh => refresh(actor),
            Self::Reseal => reseal(actor),
            Self::Tidy => tidy(actor),
            Self::Expire => expire(actor),
            Self::ClearLitter => clear_litter(actor),
            Self::Revoke => actor.revoke().map(|()| Ending::Acknowledged),
        };
        match outcome {
            Ok(ending) => Ok(ending),
            Err(Stop::Failed) => Ok(Ending::Failed),
            Err(Stop::At(step)) => Err(step),
        }
    }

    /// Whether it is asked for by a user or an operator, who sees how it ends.
    pub(crate) fn is_request(self) -> bool {
        match self {
            Self::Enrol(_)
            | Self::Show
            | Self::Draw
            | Self::DrawAndStore
            | Self::RemoveToken
            | Self::Remove
            | Self::RemoveTenant => true,
            Self::Refresh
            | Self::Reseal
            | Self::Tidy
            | Self::Expire
            | Self::ClearLitter
            | Self::Revoke => false,
        }
    }
}

// ---- Requests ----

fn enrol(actor: &mut Replay<'_>, enrolment: Enrolment) -> Next<Ending> {
    let token = actor.sign_in(enrolment)?;
    if actor.is_barred()? {
        return Ok(Ending::Failed);
    }
    let former = actor.head()?;
    let write = actor.fresh();
    let record = Record {
        enrolment,
        token,
        generation: 1,
        write,
        is_refused: false,
        // The key is changed after the enrolment with which all begins.
        is_outdated: enrolment == 0,
    };
    let head = Value::Head(enrolment);
    if actor.makes(Mistake::HeadBeforeRecord) {
        actor.set(Key::Head, head)?;
    }
    actor.set(Key::Marker(enrolment, write), Value::Flag)?;
    actor.set(actor.record_key(enrolment), Value::Record(record))?;
    // The commit. Never retried and never undone: it may have happened.
    if actor.makes(Mistake::HeadRetried) {
        actor.twice(Step::Set(Key::Head, head))?;
    } else if actor.makes(Mistake::HeadUndone) {
        match actor.set(Key::Head, head) {
            Err(Stop::Failed) => {
                actor.delete(Key::Head)?;
                return Ok(Ending::Failed);
            }
            outcome => outcome?,
        }
    } else if !actor.makes(Mistake::HeadBeforeRecord) {
        actor.set(Key::Head, head)?;
    }
    // Again, because a removal of the tenant lists the heads once.
    if !actor.makes(Mistake::BarNotReadAgain) && actor.is_barred()? {
        remove(actor)?;
        return Ok(Ending::Failed);
    }
    if let Some(former) = former {
        forget(actor, former)?;
    }
    Ok(Ending::Acknowledged)
}

fn show(actor: &mut Replay<'_>) -> Next<Ending> {
    Ok(match current(actor)? {
        Current::NotEnrolled => Ending::Saw(View::Absent),
        Current::NoToken => Ending::Saw(View::NoToken),
        Current::Record(_, record) => Ending::Saw(View::Has(record.enrolment)),
        Current::Lost(_) => Ending::Saw(View::Lost),
        Current::Busy => Ending::Failed,
    })
}

fn draw(actor: &mut Replay<'_>, stores: bool) -> Next<Ending> {
    for _ in 0..ATTEMPTS {
        let (enrolment, old) = match current(actor)? {
            Current::NotEnrolled => return Ok(Ending::Saw(View::Absent)),
            Current::NoToken => return Ok(Ending::Saw(View::NoToken)),
            Current::Lost(_) => return Ok(Ending::Saw(View::Lost)),
            Current::Busy => break,
            Current::Record(enrolment, record) => (enrolment, record),
        };
        let Redeemed::Token(token) = actor.redeem(Step::Draw(enrolment))? else {
            return Ok(Ending::Failed);
        };
        if stores {
            let new = old.refreshed(token, actor.fresh());
            match settle(actor, enrolment, &[], &Edit::Replace { old, new }) {
                // The access token is as good, and so is the stored token.
                Ok(()) | Err(Stop::Failed) => {}
                Err(stop) => return Err(stop),
            }
        }
        if let Some(view) = still_current(actor, enrolment)? {
            return Ok(Ending::Saw(view));
        }
    }
    Ok(Ending::Failed)
}

/// The last question before an access token is released; none: another enrolment is current, begin again.
///
/// `off` is cleared only after the head has left the enrolment. So whoever finds no `off`, and *then* the head in its place,
/// knows that nothing was removed before the first of the two reads.
fn still_current(actor: &mut Replay<'_>, enrolment: Enrolment) -> Next<Option<View>> {
    let (is_off, head) = match () {
        () if actor.makes(Mistake::ReleasedUnchecked) => (false, Some(enrolment)),
        () if actor.makes(Mistake::ReleasedByHeadAlone) => (false, actor.head()?),
        () if actor.makes(Mistake::ReleasedByHeadThenOff) => {
            let head = actor.head()?;
            (actor.is_off(enrolment)?, head)
        }
        () if actor.makes(Mistake::ReleasedSideBySide) => {
            let (off, head) = actor.both(Key::Off(enrolment), Key::Head)?;
            let names = head == Some(Value::Head(enrolment));
            let head = head.map(|_| if names { enrolment } else { u8::MAX });
            (off.is_some(), head)
        }
        () => {
            let is_off = actor.is_off(enrolment)?;
            (is_off, actor.head()?)
        }
    };
    Ok(match head {
        None => Some(View::Absent),
        Some(head) if head == enrolment => Some(if is_off {
            View::NoToken
        } else {
            View::Has(enrolment)
        }),
        Some(_) => None,
    })
}

fn remove_token(actor: &mut Replay<'_>) -> Next<Ending> {
    if let Some(enrolment) = actor.head()? {
        remove_token_of(actor, enrolment)?;
    }
    Ok(Ending::Acknowledged)
}

fn remove(actor: &mut Replay<'_>) -> Next<Ending> {
    let head = actor.head()?;
    if let Some(enrolment) = head
        && actor.makes(Mistake::RecordDeletedBeforeHead)
    {
        actor.delete(actor.record_key(enrolment))?;
    }
    // The commit; also when there seems to be no head.
    actor.delete(Key::Head)?;
    if let Some(enrolment) = head {
        forget(actor, enrolment)?;
    }
    Ok(Ending::Acknowledged)
}

fn remove_tenant(actor: &mut Replay<'_>) -> Next<Ending> {
    // Before the listing: whoever enrols looks for it after the head is written, and so is either listed, or sees it.
    let has_head = if actor.makes(Mistake::BarSetAfterListing) {
        let has_head = actor.list()?;
        actor.set(Key::Bar, Value::Flag)?;
        has_head
    } else {
        actor.set(Key::Bar, Value::Flag)?;
        actor.list()?
    };
    if has_head {
        remove(actor)?;
    }
    actor.delete(Key::Bar)?;
    Ok(Ending::Acknowledged)
}

// ---- Sweeps ----

fn refresh(actor: &mut Replay<'_>) -> Next<Ending> {
    let Some((enrolment, visited, old)) = open(actor)? else {
        return Ok(Ending::Acknowledged);
    };
    let edit = match actor.redeem(Step::Redeem(enrolment))? {
        Redeemed::Token(token) => Edit::Replace {
            old,
            new: old.refreshed(token, actor.fresh()),
        },
        Redeemed::Transient => Edit::Reschedule(actor.fresh()),
        // What is known already is not written again.
        Redeemed::Refused if old.is_refused => Edit::Reschedule(actor.fresh()),
        // The token and its generation stay.
        Redeemed::Refused => Edit::Replace {
            old,
            new: Record {
                is_refused: true,
                write: actor.fresh(),
                ..old
            },
        },
    };
    settle(actor, enrolment, &visited, &edit)?;
    Ok(Ending::Acknowledged)
}

fn reseal(actor: &mut Replay<'_>) -> Next<Ending> {
    let Some((enrolment, visited, old)) = open(actor)? else {
        return Ok(Ending::Acknowledged);
    };
    let own = Key::Marker(enrolment, old.write);
    let edit = if old.is_outdated {
        Edit::Replace {
            old,
            new: Record {
                is_outdated: false,
                write: actor.fresh(),
                ..old
            },
        }
    } else if visited.iter().all(|marker| *marker == own) {
        return Ok(Ending::Acknowledged);
    } else {
        Edit::Tidy {
            fresh: actor.fresh(),
            own: old.write,
        }
    };
    settle(actor, enrolment, &visited, &edit)?;
    Ok(Ending::Acknowledged)
}

fn tidy(actor: &mut Replay<'_>) -> Next<Ending> {
    let Some((enrolment, visited, record)) = open(actor)? else {
        return Ok(Ending::Acknowledged);
    };
    let own = Key::Marker(enrolment, record.write);
    if visited.iter().all(|marker| *marker == own) {
        // The record's own marker tells when it is due.
        return Ok(Ending::Acknowledged);
    }
    if actor.makes(Mistake::SecondMarkerDeletedAlone) {
        for marker in visited.into_iter().filter(|marker| *marker != own) {
            actor.delete(marker)?;
        }
        return Ok(Ending::Acknowledged);
    }
    let edit = Edit::Tidy {
        fresh: actor.fresh(),
        own: record.write,
    };
    settle(actor, enrolment, &visited, &edit)?;
    Ok(Ending::Acknowledged)
}

fn clear_litter(actor: &mut Replay<'_>) -> Next<Ending> {
    let Some(litter) = actor.list_litter()? else {
        return Ok(Ending::Acknowledged);
    };
    let Litter {
        enrolment,
        is_known,
        has_record,
        is_off,
        markers,
    } = litter;
    // Whose head to look for: a record tells, and a removal does. If nothing stored tells, the listing, which is whole, had
    // no head of that user, and an enrolment this old writes none any more.
    let is_known = is_known || actor.record(enrolment)?.is_some() || actor.is_off(enrolment)?;
    let head = if is_known && !actor.makes(Mistake::LitterClearedWithoutHead) {
        actor.head()?
    } else {
        None
    };
    if head != Some(enrolment) {
        actor.delete(actor.record_key(enrolment))?;
        actor.delete(Key::Off(enrolment))?;
    } else if is_off {
        actor.delete(actor.record_key(enrolment))?;
    } else {
        if has_record && markers.is_empty() && actor.record(enrolment)?.is_some() {
            let write = actor.fresh();
            actor.set(Key::Marker(enrolment, write), Value::Flag)?;
        }
        return Ok(Ending::Acknowledged);
    }
    for marker in markers {
        actor.delete(marker)?;
    }
    Ok(Ending::Acknowledged)
}

fn expire(actor: &mut Replay<'_>) -> Next<Ending> {
    let Some((visited_enrolment, visited, _)) = open(actor)? else {
        return Ok(Ending::Acknowledged);
    };
    if let Redeemed::Refused = actor.redeem(Step::Redeem(visited_enrolment))? {
        let enrolment = if actor.makes(Mistake::ExpiredByHead) {
            actor.head()?.unwrap_or(visited_enrolment)
        } else {
            visited_enrolment
        };
        remove_token_of(actor, enrolment)?;
        for marker in visited {
            actor.delete(marker)?;
        }
    }
    Ok(Ending::Acknowledged)
}

// ---- What several share ----

enum Current {
    NotEnrolled,
    NoToken,
    Record(Enrolment, Record),
    Lost(Enrolment),
    Busy,
}

/// The head, and the record that it names or why there is none to use.
fn current(actor: &mut Replay<'_>) -> Next<Current> {
    for _ in 0..ATTEMPTS {
        let Some(enrolment) = actor.head()? else {
            return Ok(Current::NotEnrolled);
        };
        let record_key = actor.record_key(enrolment);
        let (off, record) = actor.both(Key::Off(enrolment), record_key)?;
        if off.is_some() {
            return Ok(Current::NoToken);
        }
        if let Some(record) = record.and_then(Value::record) {
            return Ok(Current::Record(enrolment, record));
        }
        // Gone between the reads, or lost. A removal is looked for before the head, since nothing clears it away while the
        // head names its enrolment.
        let is_off = !actor.makes(Mistake::OffNotReadAgain) && actor.is_off(enrolment)?;
        match actor.head()? {
            None => return Ok(Current::NotEnrolled),
            Some(again) if again == enrolment && is_off => return Ok(Current::NoToken),
            Some(again) if again == enrolment => return Ok(Current::Lost(enrolment)),
            Some(_) => {}
        }
    }
    Ok(Current::Busy)
}

/// The enrolment that some listed markers lead to, and its record; none if that is not what is to be seen to here.
fn open(actor: &mut Replay<'_>) -> Next<Option<(Enrolment, Vec<Key>, Record)>> {
    let Some((marked, visited)) = actor.list_markers()? else {
        return Ok(None);
    };
    match current(actor)? {
        // Another enrolment's markers are litter, once it is old.
        Current::Record(enrolment, record) if enrolment == marked => {
            Ok(Some((enrolment, visited, record)))
        }
        // What cannot be used is looked at again another day.
        Current::Lost(enrolment) if enrolment == marked => {
            let fresh = actor.fresh();
            settle(actor, enrolment, &visited, &Edit::Reschedule(fresh))?;
            Ok(None)
        }
        Current::Record(..)
        | Current::Lost(_)
        | Current::NotEnrolled
        | Current::NoToken
        | Current::Busy => Ok(None),
    }
}

/// A change to what is stored of one enrolment.
enum Edit {
    /// The marker alone: a fresh one takes the place of the visited ones.
    Reschedule(Write),
    /// The markers alone: a fresh one takes the place of the visited ones and of the record's own.
    Tidy { fresh: Write, own: Write },
    /// The record, and its marker.
    Replace { old: Record, new: Record },
}

/// Makes a change: own marker, check, record, check, then the others' markers.
fn settle(actor: &mut Replay<'_>, enrolment: Enrolment, visited: &[Key], edit: &Edit) -> Next<()> {
    let (own, former) = match edit {
        Edit::Reschedule(fresh) => (*fresh, None),
        Edit::Tidy { fresh, own } => (*fresh, Some(*own)),
        Edit::Replace { old, new } => (new.write, Some(old.write)),
    };
    let own = Key::Marker(enrolment, own);
    if actor.makes(Mistake::OthersMarkersDeletedFirst) {
        delete_others(actor, enrolment, visited, former)?;
    }
    if !actor.makes(Mistake::NoOwnMarker) {
        actor.twice(Step::Set(own, Value::Flag))?;
    }
    if let Edit::Replace { old, new } = edit {
        let record_key = actor.record_key(enrolment);
        let checks = !actor.makes(Mistake::NoChecks);
        if checks {
            let (head, stored) = actor.both(Key::Head, record_key)?;
            let is_as_before = stored.and_then(Value::record).is_some_and(|stored| {
                stored.generation == old.generation
                    && (new.generation != old.generation || stored.write == old.write)
            });
            if head != Some(Value::Head(enrolment)) || !is_as_before {
                return actor.twice(Step::Delete(own));
            }
        }
        actor.twice(Step::Set(record_key, Value::Record(*new)))?;
        if checks {
            let (head, off) = actor.both(Key::Head, Key::Off(enrolment))?;
            if head != Some(Value::Head(enrolment)) || off.is_some() {
                actor.twice(Step::Delete(record_key))?;
                return actor.twice(Step::Delete(own));
            }
        }
    }
    // Others' markers only now that an own one is set.
    delete_others(actor, enrolment, visited, former)
}

fn delete_others(
    actor: &mut Replay<'_>,
    enrolment: Enrolment,
    visited: &[Key],
    former: Option<Write>,
) -> Next<()> {
    let former = former.map(|write| Key::Marker(enrolment, write));
    for marker in visited {
        actor.twice(Step::Delete(*marker))?;
    }
    if let Some(former) = former.filter(|former| !visited.contains(former)) {
        actor.twice(Step::Delete(former))?;
    }
    Ok(())
}

/// Says that access was removed for an enrolment, and clears its record.
fn remove_token_of(actor: &mut Replay<'_>, enrolment: Enrolment) -> Next<()> {
    // The commit.
    if !actor.makes(Mistake::NoOff) {
        actor.set(Key::Off(enrolment), Value::Flag)?;
    }
    let record = actor.record(enrolment)?;
    actor.delete(actor.record_key(enrolment))?;
    if let Some(record) = record {
        actor.delete(Key::Marker(enrolment, record.write))?;
    }
    Ok(())
}

/// Clears what belongs to an enrolment that no head names any more. What fails here is litter for a sweep.
fn forget(actor: &mut Replay<'_>, enrolment: Enrolment) -> Next<()> {
    let mut clear = || {
        let record = actor.record(enrolment)?;
        actor.delete(actor.record_key(enrolment))?;
        actor.delete(Key::Off(enrolment))?;
        if let Some(record) = record {
            actor.delete(Key::Marker(enrolment, record.write))?;
        }
        Ok(())
    };
    match clear() {
        Ok(()) | Err(Stop::Failed) => Ok(()),
        Err(stop) => Err(stop),
    }
}

impl Record {
    /// With the successor of its token.
    fn refreshed(self, token: u8, write: Write) -> Self {
        Self {
            token,
            generation: self.generation.saturating_add(1),
            write,
            is_refused: false,
            is_outdated: false,
            ..self
        }
    }
}
