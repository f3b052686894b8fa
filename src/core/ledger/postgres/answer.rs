//! Values as they are sent, and what comes back.

use crate::ledger::StoreError;
use crate::ledger::postgres::database::{Row, Value};
use crate::ledger::schedule::State;

pub(super) fn text(text: &str) -> Value {
    Value::Text(text.into())
}

/// A time, or another number: what is too great is as great as it can be.
pub(super) fn int8(number: u64) -> Value {
    Value::Int8(i64::try_from(number).unwrap_or(i64::MAX))
}

/// A state, and its number.
pub(super) fn of_state(state: State) -> (Value, Value) {
    let (state, number) = match state {
        State::Active { failures: 0 } => (0, 0),
        State::Active { failures } => (1, failures.into()),
        State::InteractionRequired { since } => (2, since),
        State::Quarantined { since } => (3, since),
        State::NotReadable { since } => (4, since),
    };
    let number = i32::try_from(number).unwrap_or(i32::MAX);
    (Value::Int2(state), Value::Int4(number))
}

/// The state with this number; what is not known cannot be read.
pub(super) fn to_state(state: i16, number: i32) -> State {
    let since = u32::try_from(number).unwrap_or_default();
    match state {
        0 => State::Active { failures: 0 },
        1 => State::Active {
            failures: u8::try_from(since).unwrap_or(u8::MAX),
        },
        2 => State::InteractionRequired { since },
        3 => State::Quarantined { since },
        _ => State::NotReadable { since },
    }
}

/// The columns of a row, read one after another.
pub(super) struct Columns(std::vec::IntoIter<Value>);

impl Columns {
    pub(super) fn of(row: Row) -> Self {
        Self(row.into_iter())
    }

    /// Of the first row, where there always is one.
    pub(super) fn first(rows: Vec<Row>) -> Result<Self, StoreError> {
        rows.into_iter().next().map(Self::of).ok_or_else(unexpected)
    }

    pub(super) fn bool(&mut self) -> Result<bool, StoreError> {
        self.bool_or_null()?.ok_or_else(unexpected)
    }

    pub(super) fn bool_or_null(&mut self) -> Result<Option<bool>, StoreError> {
        match self.0.next() {
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(Value::Null) => Ok(None),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn text(&mut self) -> Result<String, StoreError> {
        self.text_or_null()?.ok_or_else(unexpected)
    }

    pub(super) fn text_or_null(&mut self) -> Result<Option<String>, StoreError> {
        match self.0.next() {
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(Value::Null) => Ok(None),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn bytes_or_null(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        match self.0.next() {
            Some(Value::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Value::Null) => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// Any whole number that is not negative.
    pub(super) fn number(&mut self) -> Result<u64, StoreError> {
        self.number_or_null()?.ok_or_else(unexpected)
    }

    pub(super) fn number_or_null(&mut self) -> Result<Option<u64>, StoreError> {
        let number = match self.0.next() {
            Some(Value::Int2(number)) => number.into(),
            Some(Value::Int4(number)) => number.into(),
            Some(Value::Int8(number)) => number,
            Some(Value::Null) => return Ok(None),
            _ => return Err(unexpected()),
        };
        u64::try_from(number).map(Some).map_err(|_| unexpected())
    }

    pub(super) fn state(&mut self) -> Result<State, StoreError> {
        match (self.0.next(), self.0.next()) {
            (Some(Value::Int2(state)), Some(Value::Int4(number))) => Ok(to_state(state, number)),
            _ => Err(unexpected()),
        }
    }
}

pub(super) fn unexpected() -> StoreError {
    StoreError("the database has something else in its tables than behalf puts there".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back() {
        for state in [
            State::Active { failures: 0 },
            State::Active { failures: 9 },
            State::InteractionRequired { since: 19_874 },
            State::Quarantined { since: 0 },
            State::NotReadable { since: 20_000 },
        ] {
            let (number, detail) = of_state(state);
            let mut columns = Columns::of(vec![number, detail]);
            assert_eq!(columns.state(), Ok(state));
        }
        assert!(Columns::of(vec![]).state().is_err());
        assert!(Columns::of(vec![Value::Int8(-1)]).number().is_err());
    }
}
