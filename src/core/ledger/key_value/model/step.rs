//! Steps: what an actor does to the world around it, one at a time, and what it is answered.
//!
//! A program of the protocol is a plain function that asks for one step after another ([`Replay`]). It is run from its
//! beginning each time, with the answers that its actor has had so far, and stops where it has none: that is the actor's next
//! step. So an actor is nothing but its answers, and can be copied, compared and killed at any point.

use crate::scenario::Mistake;
use crate::store::{Enrolment, Key, Record, Value, Write};

/// A step. Between two steps of one actor, others may take any number of theirs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// Reads a key.
    Get(Key),
    /// Reads two keys side by side; this is the one that is answered first.
    Either(Key, Key),
    /// Sets a value.
    Set(Key, Value),
    /// Deletes a key.
    Delete(Key),
    /// Lists the keys, for the head.
    List,
    /// Lists the keys, and takes up some of the markers of one enrolment.
    ListMarkers,
    /// Lists the keys, and takes up an enrolment that is not as it should be.
    ListLitter,
    /// The vault has the user sign in anew (On-Behalf-Of) for an enrolment.
    SignIn(Enrolment),
    /// The vault redeems a refresh token of an enrolment.
    Redeem(Enrolment),
    /// The same for a caller: the answer holds an access token, and whatever was acknowledged before it must be heeded
    /// before that is released.
    Draw(Enrolment),
    /// Entra ID revokes every sign-in so far.
    Revoke,
}

/// What a step is answered.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    /// What was read.
    Read(Option<Value>),
    /// What was read first of two: of the second key, if so said.
    ReadFirst {
        /// Whether it is the second key's.
        is_second: bool,
        /// What was read.
        value: Option<Value>,
    },
    /// It is done.
    Done,
    /// It failed; it may have happened all the same.
    Failed,
    /// Whether a head was listed.
    HasHead(bool),
    /// The markers that were taken up, all of one enrolment; none: there are none.
    Markers(Vec<Key>),
    /// What was taken up; none: there is no litter that is old enough.
    Litter(Option<Litter>),
    /// The refresh token that came: the so-manieth of its sign-in.
    Token(u8),
    /// Entra ID refuses the refresh token.
    Refused,
    /// Entra ID fails for a moment.
    Transient,
}

/// What a listing shows of an enrolment that is not as it should be.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Litter {
    /// The enrolment.
    pub enrolment: Enrolment,
    /// Whether the listing tells whose it is: by a head, or by a marker.
    pub is_known: bool,
    /// Whether there is a record.
    pub has_record: bool,
    /// Whether application access was removed.
    pub is_off: bool,
    /// Its markers.
    pub markers: Vec<Key>,
}

/// How a token was redeemed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Redeemed {
    Token(u8),
    Refused,
    Transient,
}

/// A program under way: what its actor was answered so far.
pub(crate) struct Replay<'a> {
    answers: std::slice::Iter<'a, Answer>,
    actor: u8,
    writes: u8,
    mistake: Option<Mistake>,
}

/// A store operation failed, or the program has come to a step that has no answer yet.
pub(crate) enum Stop {
    Failed,
    At(Step),
}

pub(crate) type Next<T> = Result<T, Stop>;

impl<'a> Replay<'a> {
    pub(crate) fn new(answers: &'a [Answer], actor: u8, mistake: Option<Mistake>) -> Self {
        Self {
            answers: answers.iter(),
            actor,
            writes: 0,
            mistake,
        }
    }

    /// Whether this mistake is made.
    pub(crate) fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// A write id that nobody had before.
    pub(crate) fn fresh(&mut self) -> Write {
        self.writes += 1;
        self.actor * 16 + self.writes
    }

    pub(crate) fn get(&mut self, key: Key) -> Next<Option<Value>> {
        match self.answer(Step::Get(key))? {
            Answer::Read(value) => Ok(*value),
            other => unreachable!("a read was answered {other:?}"),
        }
    }

    /// The enrolment that the head names.
    pub(crate) fn head(&mut self) -> Next<Option<Enrolment>> {
        Ok(self.get(Key::Head)?.and_then(|value| match value {
            Value::Head(enrolment) => Some(enrolment),
            Value::Record(_) | Value::Flag => None,
        }))
    }

    pub(crate) fn record(&mut self, of: Enrolment) -> Next<Option<Record>> {
        let key = self.record_key(of);
        Ok(self.get(key)?.and_then(Value::record))
    }

    /// Whether application access was removed for an enrolment.
    pub(crate) fn is_off(&mut self, of: Enrolment) -> Next<bool> {
        Ok(self.get(Key::Off(of))?.is_some())
    }

    pub(crate) fn is_barred(&mut self) -> Next<bool> {
        Ok(self.get(Key::Bar)?.is_some())
    }

    /// Reads two keys side by side.
    pub(crate) fn both(&mut self, first: Key, second: Key) -> Next<(Option<Value>, Option<Value>)> {
        match self.answer(Step::Either(first, second))? {
            Answer::ReadFirst {
                is_second: false,
                value,
            } => {
                let value = *value;
                Ok((value, self.get(second)?))
            }
            Answer::ReadFirst {
                is_second: true,
                value,
            } => {
                let value = *value;
                Ok((self.get(first)?, value))
            }
            other => unreachable!("two reads were answered {other:?}"),
        }
    }

    /// Sets a value. An error ends the program: it has failed.
    pub(crate) fn set(&mut self, key: Key, value: Value) -> Next<()> {
        self.write(Step::Set(key, value))
    }

    /// Deletes a key. An error ends the program: it has failed.
    pub(crate) fn delete(&mut self, key: Key) -> Next<()> {
        self.write(Step::Delete(key))
    }

    /// A write that is tried a second time if it fails, as those of a wave are.
    pub(crate) fn twice(&mut self, write: Step) -> Next<()> {
        match self.write(write) {
            Err(Stop::Failed) => self.write(write),
            outcome => outcome,
        }
    }

    fn write(&mut self, step: Step) -> Next<()> {
        match self.answer(step)? {
            Answer::Done => Ok(()),
            Answer::Failed => Err(Stop::Failed),
            other => unreachable!("a write was answered {other:?}"),
        }
    }

    /// Whether a listing has a head.
    pub(crate) fn list(&mut self) -> Next<bool> {
        match self.answer(Step::List)? {
            Answer::HasHead(has_head) => Ok(*has_head),
            other => unreachable!("a listing was answered {other:?}"),
        }
    }

    /// Some of the listed markers of one enrolment; none if there are none.
    pub(crate) fn list_markers(&mut self) -> Next<Option<(Enrolment, Vec<Key>)>> {
        match self.answer(Step::ListMarkers)? {
            Answer::Markers(markers) => Ok(markers
                .first()
                .and_then(|marker| marker.enrolment())
                .map(|enrolment| (enrolment, markers.clone()))),
            other => unreachable!("a listing was answered {other:?}"),
        }
    }

    pub(crate) fn list_litter(&mut self) -> Next<Option<Litter>> {
        match self.answer(Step::ListLitter)? {
            Answer::Litter(litter) => Ok(litter.clone()),
            other => unreachable!("a listing was answered {other:?}"),
        }
    }

    /// Has the user sign in for an enrolment: its first token.
    pub(crate) fn sign_in(&mut self, of: Enrolment) -> Next<u8> {
        match self.answer(Step::SignIn(of))? {
            Answer::Token(token) => Ok(*token),
            other => unreachable!("a sign-in was answered {other:?}"),
        }
    }

    /// Redeems a token of an enrolment: of a sweep, or for a caller.
    pub(crate) fn redeem(&mut self, step: Step) -> Next<Redeemed> {
        match self.answer(step)? {
            Answer::Token(token) => Ok(Redeemed::Token(*token)),
            Answer::Refused => Ok(Redeemed::Refused),
            Answer::Transient => Ok(Redeemed::Transient),
            other => unreachable!("a refresh was answered {other:?}"),
        }
    }

    pub(crate) fn revoke(&mut self) -> Next<()> {
        self.write(Step::Revoke)
    }

    /// Where the record of an enrolment is.
    pub(crate) fn record_key(&self, of: Enrolment) -> Key {
        record_key(of, self.mistake)
    }

    fn answer(&mut self, step: Step) -> Next<&'a Answer> {
        self.answers.next().ok_or(Stop::At(step))
    }
}

/// Where the record of an enrolment is: under a key of its own, unless that is the mistake.
pub(crate) fn record_key(of: Enrolment, mistake: Option<Mistake>) -> Key {
    match mistake {
        Some(Mistake::OneRecordForAllEnrolments) => Key::Record(0),
        _ => Key::Record(of),
    }
}
