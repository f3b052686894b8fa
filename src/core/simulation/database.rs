//! The database: statements are made as a whole or not at all; connections end before, during and after one, and what was sent
//! over one that has ended may be made later.

use crate::ledger::postgres::database::{Database, Failure, Row, Value};
use crate::ledger::postgres::statement;
use crate::simulation::history::Operation;
use crate::simulation::mutation::Mutation;
use crate::simulation::outside::{Bar, Outside};
use crate::simulation::port::Port;

/// A statement whose connection has ended.
pub(super) struct Late {
    /// The step at which it is made.
    pub(super) step: u64,
    sql: &'static str,
    values: Vec<Value>,
}

impl Database for Port {
    async fn run(&self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>, Failure> {
        let outside = &self.outside;
        outside.pause().await;
        let is_commit = [statement::ENROL, statement::REMOVE, statement::REMOVE_TOKEN];
        let weight = if is_commit.contains(&sql) { 5 } else { 1 };
        if !outside.chance.happens(outside.faults.get().store * weight) {
            let rows = outside.execute(sql, values);
            outside.pause().await;
            return Ok(outside.mistaken_row(sql, values).unwrap_or(rows));
        }
        let text = || "injected".to_owned();
        match outside.chance.below(5) {
            0 => return Err(Failure::NotSent(text())),
            1 => return Err(Failure::TakenBack(text())),
            2 => {}
            3 => {
                outside.execute(sql, values);
            }
            // A limit of time ends it within five seconds.
            _ => outside.late_statements.borrow_mut().push(Late {
                step: outside.step.get() + outside.chance.below(400),
                sql,
                values: values.to_vec(),
            }),
        }
        outside.pause().await;
        if outside.is(Mutation::RemovalNotMadeAcknowledged) && is_commit[1..].contains(&sql) {
            return Ok(vec![vec![Value::Bool(true)]]);
        }
        Err(Failure::Unknown(text()))
    }
}

impl Outside {
    /// Makes a statement, and looks at once which tenants are barred after it.
    fn execute(&self, sql: &'static str, values: &[Value]) -> Vec<Row> {
        let now = self.now.get().try_into().unwrap();
        let mut shuffle = |names: &mut Vec<String>| {
            for at in (1..names.len()).rev() {
                let other = self.chance.below(u64::try_from(at).unwrap() + 1);
                names.swap(at, usize::try_from(other).unwrap());
            }
        };
        let mut tables = self.tables.borrow_mut();
        let values = match self.mutation {
            Some(Mutation::RecordOverlooked) if sql == statement::REPLACE => {
                tables.as_read_now(values)
            }
            _ => values.to_vec(),
        };
        let rows = tables.run(sql, &values, now, &mut shuffle);
        let barred: Vec<_> = tables
            .barred()
            .map(|tenant| tenant.replace('-', ""))
            .collect();
        let mut bars = self.bars.borrow_mut();
        for bar in bars.iter_mut().filter(|bar| bar.until == u64::MAX) {
            if !barred.iter().any(|tenant| bar.key.ends_with(tenant)) {
                bar.until = self.step.get();
            }
        }
        for tenant in barred {
            let key = format!("bar.{tenant}");
            let is_open = |bar: &Bar| bar.key == key && bar.until == u64::MAX;
            if !bars.iter().any(is_open) {
                bars.push(Bar {
                    key,
                    from: self.step.get(),
                    until: u64::MAX,
                });
            }
        }
        rows
    }

    /// Lets time pass. What is late is made by then, because of the limits of time of a statement.
    pub(super) fn pass(&self, seconds: u64) {
        if seconds > 0 {
            self.make_late_statements(u64::MAX);
        }
        self.now.set(self.now.get() + seconds);
    }

    /// Makes what is late, up to a step.
    pub(super) fn make_late_statements(&self, until: u64) {
        let late = self.late_statements.take();
        let (due, later) = late.into_iter().partition(|late| late.step <= until);
        self.late_statements.replace(later);
        let due: Vec<_> = due;
        for late in due {
            self.execute(late.sql, &late.values);
        }
    }

    /// What the last look before a release finds by mistake: what was found before the vault was asked.
    fn mistaken_row(&self, sql: &'static str, values: &[Value]) -> Option<Vec<Row>> {
        if !self.is(Mutation::FoundBeforeKept)
            || !matches!(self.doing(), Operation::Draw | Operation::Call)
        {
            return None;
        }
        let act = self.current.get();
        let mut found = self.notes.found.borrow_mut();
        if sql == statement::FIND {
            found.insert(act, self.execute(statement::LOOK, values));
            return None;
        }
        found.get(&act).filter(|_| sql == statement::LOOK).cloned()
    }
}
