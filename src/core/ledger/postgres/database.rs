//! The port under this ledger: a PostgreSQL database.
#![allow(
    async_fn_in_trait,
    reason = "callers are generic over one implementation; no future crosses a thread"
)]

use thiserror::Error;

/// A database that runs one statement at a time, each as a transaction of its own.
pub trait Database {
    /// Runs a statement on a connection that nobody else uses meanwhile, and gives all its rows. A connection is taken for this
    /// and handed back when it is over, whatever came of it; the wait for one is bounded.
    ///
    /// # Errors
    /// [`Failure`].
    async fn run(&self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>, Failure>;
}

/// A parameter, or a column of a row. Types are exact: a `bigint` is an [`Value::Int8`] and nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// `NULL`.
    Null,
    /// `boolean`.
    Bool(bool),
    /// `smallint`.
    Int2(i16),
    /// `integer`.
    Int4(i32),
    /// `bigint`.
    Int8(i64),
    /// `text`.
    Text(String),
    /// `bytea`.
    Bytes(Vec<u8>),
    /// `text[]`.
    Texts(Vec<String>),
}

/// A row: its columns, in the order of the statement.
pub type Row = Vec<Value>;

/// Why there are no rows. Texts are the database's, for the operator's log; none has a parameter's value or the address.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Failure {
    /// There was no connection: the statement was not sent.
    #[error("no connection to the database: {0}")]
    NotSent(String),
    /// The connection ended: the statement was made or not.
    #[error("the connection to the database ended: {0}")]
    Unknown(String),
    /// The database took it back, because of others: a deadlock, a lock that took too long, a statement that did.
    #[error("the database gave up: {0}")]
    TakenBack(String),
    /// The database refuses it, and will again.
    #[error("the database refuses: {0}")]
    Refused(String),
}

impl Failure {
    /// What an error of the database means, by its SQLSTATE
    /// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
    #[must_use]
    pub fn of_code(code: &str, message: &str) -> Self {
        let text = format!("{message} ({code})");
        match code {
            // invalid_schema_name, undefined_table, undefined_column.
            "3F000" | "42P01" | "42703" => {
                Self::Refused(format!("{text}; run `behalf schema apply` on it"))
            }
            // insufficient_privilege.
            "42501" => Self::Refused(format!(
                "{text}; run `behalf schema apply --role` with the role of `postgres_user`"
            )),
            // serialization_failure, deadlock_detected, lock_not_available, query_canceled: rolled back.
            "40001" | "40P01" | "55P03" | "57014" => Self::TakenBack(text),
            // operator_intervention: the session was ended, and what it was at may have been over by then.
            code if code.starts_with("57P") => Self::Unknown(text),
            // connection_exception.
            code if code.starts_with("08") => Self::Unknown(text),
            _ => Self::Refused(text),
        }
    }
}
