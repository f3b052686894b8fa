//! The core's database on Spin's `spin:postgres@4.2.0`, by its asynchronous functions alone, and of these by those that a statement
//! takes: open a connection and query it (PLATFORMS.md, "Spin", "PostgreSQL"). Where the database is, the vault says.
//!
//! It is what `spin_sdk::pg` wraps, because that can read a certificate from a file: whoever uses it imports files.

use std::pin::pin;
use std::time::Duration;

use behalf_core::database_twins;
use behalf_core::error::VaultError;
use behalf_core::ledger::postgres::database::{Database, Failure, Row, Value};
use behalf_core::port::Timer as _;
use behalf_core::vault::database::Connection;
use behalf_core::vault::port::Terms;
use behalf_core::vault::wit::WitValue;
use behalf_http_app::{Wasi, read};
use futures_util::future::{Either, select};
use spin_sdk::pg::wit::postgres as pg;

use crate::bindings::behalf::vault::database as wit;

database_twins!(wit);

/// For so long the vault may look for the database: at most one answer of a managed identity endpoint.
const LOCATE: Duration = Duration::from_secs(5);
/// For so long a connection is waited for: a new one, or one that others hand back. Spin waits for one of these without an end. A
/// moment more than the address gives a host (`connect_timeout`), which may know what is in the way.
const OPEN: Duration = Duration::from_millis(3500);
/// For so long an answer is waited for. The database itself gives up before (`statement_timeout` of the role): what takes longer has
/// lost its network.
const ANSWER: Duration = Duration::from_secs(8);

/// The database that the vault names.
#[derive(Clone, Copy)]
pub(crate) struct SpinDatabase;

impl Database for SpinDatabase {
    async fn run(&self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>, Failure> {
        // Asked each time: the vault remembers, and knows when a credential is over.
        let place = locate().await.map_err(|error| match error {
            VaultError::Operator(error) => Failure::NoEntry(error.to_string()),
            error => Failure::NotSent(error.to_string()),
        })?;
        let none = || Failure::NotSent("there was none to be had in time".into());
        let connection = within(OPEN, open(&place)).await.ok_or_else(none)??;
        let none = || Failure::Unknown("there was no answer in time".into());
        within(ANSWER, query(&connection, sql, values))
            .await
            .ok_or_else(none)?
    }
}

/// Checks the settings of the database.
pub(crate) fn check_settings() -> Result<(), VaultError> {
    read(wit::check_settings())
}

async fn locate() -> Result<Connection, VaultError> {
    read(wit::locate(Some(Terms::from(LOCATE).into_wit())).await)
}

async fn open(place: &Connection) -> Result<pg::Connection, Failure> {
    let address = place.address.expose();
    let opened = match &place.ca_root {
        None => pg::Connection::open_async(address.into()).await,
        Some(ca_root) => {
            let builder = pg::ConnectionBuilder::new(address);
            match builder.set_ca_root(ca_root) {
                Ok(()) => builder.build_async().await,
                Err(error) => Err(error),
            }
        }
    };
    opened.map_err(|error| match error {
        pg::Error::ConnectionFailed(text) | pg::Error::Other(text) => Failure::of_opening(&text),
        pg::Error::BadParameter(_)
        | pg::Error::QueryFailed(_)
        | pg::Error::ValueConversionFailed(_) => {
            Failure::NotSent("the host says nothing of use".into())
        }
    })
}

async fn query(
    connection: &pg::Connection,
    sql: &str,
    values: &[Value],
) -> Result<Vec<Row>, Failure> {
    let values = values.iter().cloned().map(parameter).collect();
    let answer = connection.query_async(sql.into(), values).await;
    let (_, mut stream, end) = answer.map_err(failed)?;
    let mut rows = Vec::new();
    while let Some(columns) = stream.next().await {
        rows.push(columns.into_iter().map(value).collect());
    }
    // What failed is told here, after no rows.
    end.await.map_err(failed)?;
    let rows: Option<Vec<Row>> = rows.into_iter().collect();
    rows.ok_or_else(unread)
}

fn parameter(value: Value) -> pg::ParameterValue {
    use pg::ParameterValue as Wit;
    match value {
        Value::Null => Wit::DbNull,
        Value::Bool(value) => Wit::Boolean(value),
        Value::Int2(value) => Wit::Int16(value),
        Value::Int4(value) => Wit::Int32(value),
        Value::Int8(value) => Wit::Int64(value),
        Value::Text(value) => Wit::Str(value),
        Value::Bytes(value) => Wit::Binary(value),
        Value::Texts(values) => Wit::ArrayStr(values.into_iter().map(Some).collect()),
    }
}

/// None: of a type that no statement asks for.
fn value(column: pg::DbValue) -> Option<Value> {
    use pg::DbValue as Wit;
    Some(match column {
        Wit::DbNull => Value::Null,
        Wit::Boolean(value) => Value::Bool(value),
        Wit::Int16(value) => Value::Int2(value),
        Wit::Int32(value) => Value::Int4(value),
        Wit::Int64(value) => Value::Int8(value),
        Wit::Str(value) => Value::Text(value),
        Wit::Binary(value) => Value::Bytes(value),
        Wit::ArrayStr(values) => Value::Texts(values.into_iter().collect::<Option<_>>()?),
        _ => return None,
    })
}

/// What an error of a statement means. `detail` and `extras` are dropped, which quote what was stored.
fn failed(error: pg::Error) -> Failure {
    match error {
        pg::Error::QueryFailed(pg::QueryError::DbError(error)) => {
            Failure::of_code(&error.code, &error.message)
        }
        pg::Error::QueryFailed(pg::QueryError::Text(text))
        | pg::Error::ConnectionFailed(text)
        | pg::Error::Other(text) => Failure::of_statement(&text),
        pg::Error::BadParameter(_) => Failure::Refused("a parameter has a wrong type".into()),
        pg::Error::ValueConversionFailed(_) => unread(),
    }
}

/// The statement was made, and its answer cannot be read.
fn unread() -> Failure {
    Failure::Refused("a column has a type that is not read here".into())
}

/// What came of it in a time; none: it is not over, and is dropped.
async fn within<T>(time: Duration, operation: impl Future<Output = T>) -> Option<T> {
    match select(pin!(operation), pin!(Wasi.sleep(time))).await {
        Either::Left((outcome, _)) => Some(outcome),
        Either::Right(_) => None,
    }
}
