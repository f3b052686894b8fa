//! How often a statement is tried, and what is known when it fails.

use std::time::Duration;

use serde_json::json;

use crate::deadline::Deadline;
use crate::journal::Journal as _;
use crate::ledger::StoreError;
use crate::ledger::postgres::answer::Columns;
use crate::ledger::postgres::database::{Database, Failure, Row, Value};
use crate::ledger::postgres::{PostgresLedger, schema, statement};
use crate::port::Environment;

/// For so long a statement is tried again.
const PATIENCE: Duration = Duration::from_secs(4);
/// Before the second try; doubled before each one after that, and up to as much again by chance.
const PAUSE: Duration = Duration::from_millis(25);

/// How long a probe may wait for the database: those who ask wait for a second.
const PROBE: Duration = Duration::from_millis(500);

/// What may be tried again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Repeat {
    /// Whatever failed: made twice it is as made once.
    Any,
    /// What is known not to have been made.
    Never,
}

impl<D: Database + Clone, E: Environment + Clone> PostgresLedger<D, E> {
    /// Runs a statement, until it is made or there is no point in another try.
    pub(super) async fn repeat(
        &self,
        sql: &'static str,
        values: impl AsRef<[Value]>,
        repeat: Repeat,
    ) -> Result<Vec<Row>, StoreError> {
        Ok(self.attempt(sql, values.as_ref(), repeat).await?.0)
    }

    /// As [`Self::repeat`]; and whether a try before the last was made or not.
    pub(super) async fn attempt(
        &self,
        sql: &'static str,
        values: &[Value],
        repeat: Repeat,
    ) -> Result<(Vec<Row>, bool), StoreError> {
        let until = Deadline::within(&self.env, PATIENCE);
        if !self.is_checked.get() {
            self.check_schema(until).await?;
        }
        self.attempt_until(sql, values, repeat, until).await
    }

    async fn attempt_until(
        &self,
        sql: &'static str,
        values: &[Value],
        repeat: Repeat,
        until: Deadline,
    ) -> Result<(Vec<Row>, bool), StoreError> {
        let mut is_in_doubt = false;
        let mut pause = PAUSE;
        loop {
            let failure = match self.database.run(sql, values).await {
                Ok(rows) => return Ok((rows, is_in_doubt)),
                Err(failure) => failure,
            };
            let again = match &failure {
                Failure::NotSent(_) | Failure::TakenBack(_) => true,
                Failure::Unknown(_) => {
                    is_in_doubt = true;
                    repeat == Repeat::Any
                }
                Failure::NoEntry(_) | Failure::Refused(_) => false,
            };
            let chance = Duration::from_millis(self.env.number().checked_rem(25).unwrap_or(0));
            let wait = pause.saturating_add(chance);
            if failure.is_of_connection() {
                // Another database may stand there next, or this one with other tables.
                self.is_checked.set(false);
            }
            if !again || until.left(&self.env) <= wait {
                return Err(StoreError(failure.to_string()));
            }
            self.env.sleep(wait).await;
            pause = pause.saturating_mul(2);
        }
    }

    /// Whether this version of behalf can work with the tables, unless that is known, or the database does not answer now.
    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        if self.is_checked.get() {
            return Ok(());
        }
        let until = Deadline::within(&self.env, PROBE);
        let asked = until.bound(&self.env, self.database.run(statement::SCHEMA, &[]));
        match asked.await {
            Some(Ok(rows)) => self.check_version(rows),
            Some(Err(failure @ (Failure::NoEntry(_) | Failure::Refused(_)))) => {
                Err(StoreError(failure.to_string()))
            }
            Some(Err(Failure::NotSent(_) | Failure::Unknown(_) | Failure::TakenBack(_))) | None => {
                Ok(())
            }
        }
    }

    /// Whether this version of behalf can work with the tables. Asked once an instance, and again after a connection was lost.
    async fn check_schema(&self, until: Deadline) -> Result<(), StoreError> {
        let checked = self.attempt_until(statement::SCHEMA, &[], Repeat::Any, until);
        self.check_version(checked.await?.0)
    }

    fn check_version(&self, rows: Vec<Row>) -> Result<(), StoreError> {
        let mut row = Columns::first(rows).map_err(|_| schema::missing())?;
        schema::check(row.number()?)?;
        if !row.bool()? {
            let reason = "the database role has no statement_timeout or no lock_timeout: run `behalf schema apply --role` with it";
            self.env
                .alarm("database_without_limits", json!({"reason": reason}));
        }
        self.is_checked.set(true);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::future::pending;
    use std::rc::Rc;

    use pollster::block_on;

    use super::*;
    use crate::ledger::Ledger as _;
    use crate::simulation::world::{Shared, World};

    /// Fails as it is told, one time after another, and then no more; and remembers what it was asked.
    #[derive(Clone, Default)]
    struct Failing {
        failures: Rc<RefCell<Vec<Failure>>>,
        asked: Rc<RefCell<Vec<&'static str>>>,
        /// By how much the tables' version is ahead.
        version: Rc<Cell<i64>>,
        is_silent: Rc<Cell<bool>>,
    }

    impl Database for Failing {
        async fn run(&self, sql: &'static str, _: &[Value]) -> Result<Vec<Row>, Failure> {
            self.asked.borrow_mut().push(sql);
            if let Some(failure) = self.failures.borrow_mut().pop() {
                return Err(failure);
            }
            if self.is_silent.get() {
                pending::<()>().await;
            }
            let version = i64::try_from(schema::VERSION).unwrap() + self.version.get();
            Ok(if sql == statement::SCHEMA {
                vec![vec![Value::Int8(version), Value::Bool(true)]]
            } else {
                Vec::new()
            })
        }
    }

    fn ledger(world: &Shared) -> (PostgresLedger<Failing, Shared>, Failing) {
        let database = Failing::default();
        (
            PostgresLedger::new(database.clone(), world.clone()),
            database,
        )
    }

    #[test]
    fn only_what_another_try_can_change_is_tried_again() {
        let text = || "told".to_owned();
        for (failure, tries) in [
            (Failure::NotSent(text()), 2),
            (Failure::TakenBack(text()), 2),
            (Failure::Unknown(text()), 2),
            (Failure::NoEntry(text()), 1),
            (Failure::Refused(text()), 1),
        ] {
            let (ledger, database) = ledger(&World::new());
            assert_eq!(block_on(ledger.sweep_state()), Ok(None));
            database.asked.borrow_mut().clear();
            database.failures.borrow_mut().push(failure.clone());
            let asked = block_on(ledger.sweep_state());
            assert_eq!(asked.is_ok(), tries == 2, "{failure:?}");
            assert_eq!(database.asked.borrow().len(), tries, "{failure:?}");
        }
    }

    #[test]
    fn a_probe_says_what_somebody_has_to_change_and_nothing_of_an_outage() {
        let text = || "told".to_owned();
        for (failure, is_ready) in [
            (Failure::NotSent(text()), true),
            (Failure::TakenBack(text()), true),
            (Failure::Unknown(text()), true),
            (Failure::NoEntry(text()), false),
            (Failure::Refused(text()), false),
        ] {
            let (ledger, database) = ledger(&World::new());
            database.failures.borrow_mut().push(failure.clone());
            assert_eq!(block_on(ledger.check()).is_ok(), is_ready, "{failure:?}");
            // Once it is right, it is asked for no more.
            for asked in [2, 2] {
                assert_eq!(block_on(ledger.check()), Ok(()));
                assert_eq!(database.asked.borrow().len(), asked);
            }
        }
        let (ledger, database) = ledger(&World::new());
        database.version.set(2);
        let StoreError(told) = block_on(ledger.check()).unwrap_err();
        assert!(told.contains("upgrade behalf"), "{told}");
        database.is_silent.set(true);
        assert_eq!(block_on(ledger.check()), Ok(()));
    }

    #[test]
    fn the_version_is_asked_for_once_and_again_when_a_connection_was_lost() {
        let text = || "told".to_owned();
        let (ledger, database) = ledger(&World::new());
        let versions = || {
            let asked = database.asked.borrow();
            asked
                .iter()
                .filter(|&&sql| sql == statement::SCHEMA)
                .count()
        };
        let mut expected = 1;
        let _ = block_on(ledger.sweep_state());
        let _ = block_on(ledger.sweep_state());
        assert_eq!(versions(), expected);
        for (failure, again) in [
            (Failure::Refused(text()), 0),
            (Failure::TakenBack(text()), 0),
            (Failure::NotSent(text()), 1),
            (Failure::NoEntry(text()), 1),
            (Failure::Unknown(text()), 1),
        ] {
            database.failures.borrow_mut().push(failure.clone());
            let _ = block_on(ledger.sweep_state());
            let _ = block_on(ledger.sweep_state());
            expected += again;
            assert_eq!(versions(), expected, "{failure:?}");
        }
    }
}
