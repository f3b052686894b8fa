//! The database of a ledger, on the connection of a command.

use super::owner::Owner;
use super::pool::reason;
use super::types;
use crate::bindings::spin::postgres::postgres::{DbValue, ParameterValue};
use behalf_core::ledger::postgres::database::{Database, Failure, Row, Value};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;

/// How long an answer is waited for. The server gives up before ([`super::Limits`]): what takes longer has lost its network.
const ANSWER: Duration = Duration::from_secs(70);

/// The database. A clone is the same one.
#[derive(Clone)]
pub(crate) struct Tables(Rc<Owner>);

impl Tables {
    /// What this connection leads to.
    pub(crate) fn new(connection: Owner) -> Self {
        Self(Rc::new(connection))
    }
}

impl Database for Tables {
    async fn run(&self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>, Failure> {
        let refused = |reason: &str| Failure::Refused(reason.to_owned());
        let values = values.iter().cloned().map(parameter).collect();
        let values = types::parameters(values).map_err(refused)?;
        let values: Vec<_> = values
            .iter()
            .map(|value| &**value as &(dyn ToSql + Sync))
            .collect();
        let answer = timeout(ANSWER, self.0.client().query(sql, &values)).await;
        let answer = answer.map_err(|_| Failure::Unknown("there was no answer in time".into()))?;
        let rows = answer.map_err(|error| match error.as_db_error() {
            Some(told) => Failure::of_code(told.code().code(), told.message()),
            None => Failure::Unknown(reason(&error)),
        })?;
        let read = |row: &tokio_postgres::Row| {
            let columns = types::values(row).ok()?.into_iter();
            columns.map(value).collect::<Option<Row>>()
        };
        let rows: Option<Vec<Row>> = rows.iter().map(read).collect();
        rows.ok_or_else(|| refused("a column has a type that is not read here"))
    }
}

fn parameter(value: Value) -> ParameterValue {
    match value {
        Value::Null => ParameterValue::DbNull,
        Value::Bool(value) => ParameterValue::Boolean(value),
        Value::Int2(value) => ParameterValue::Int16(value),
        Value::Int4(value) => ParameterValue::Int32(value),
        Value::Int8(value) => ParameterValue::Int64(value),
        Value::Text(value) => ParameterValue::Str(value),
        Value::Bytes(value) => ParameterValue::Binary(value),
        Value::Texts(values) => ParameterValue::ArrayStr(values.into_iter().map(Some).collect()),
    }
}

/// None: of a type that no statement asks for.
fn value(column: DbValue) -> Option<Value> {
    Some(match column {
        DbValue::DbNull => Value::Null,
        DbValue::Boolean(value) => Value::Bool(value),
        DbValue::Int16(value) => Value::Int2(value),
        DbValue::Int32(value) => Value::Int4(value),
        DbValue::Int64(value) => Value::Int8(value),
        DbValue::Str(value) => Value::Text(value),
        DbValue::Binary(value) => Value::Bytes(value),
        _ => return None,
    })
}
