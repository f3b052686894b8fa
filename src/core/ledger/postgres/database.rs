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

/// Why there are no rows. Texts are the database's, for the operator's log, with what to do; none has a parameter's value or the
/// address.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Failure {
    /// There was no connection: the statement was not sent.
    #[error("no connection to the database: {0}")]
    NotSent(String),
    /// The same, and there will be none until somebody has changed something.
    #[error("no connection to the database: {0}")]
    NoEntry(String),
    /// The connection ended: the statement was made or not.
    #[error("the connection to the database ended: {0}")]
    Unknown(String),
    /// The database took it back, because of others: a deadlock, a lock that took too long, a statement that did, a server that
    /// takes no changes any more or not yet.
    #[error("the database gave up: {0}")]
    TakenBack(String),
    /// The database refuses it, and will again.
    #[error("the database refuses: {0}")]
    Refused(String),
}

impl Failure {
    /// What an error of a statement means, by its SQLSTATE
    /// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
    #[must_use]
    pub fn of_code(code: &str, message: &str) -> Self {
        // The class of data exceptions quotes the value that is one.
        let message = if code.starts_with("22") {
            "a value is not what it should be".into()
        } else {
            line(message)
        };
        let text = with_advice(format!("{message} ({code})"), of_statement(code));
        match code {
            // serialization_failure, deadlock_detected, lock_not_available, query_canceled, and read_only_sql_transaction: rolled
            // back. The last also comes of a server that was the primary when its connection was opened.
            "40001" | "40P01" | "55P03" | "57014" | "25006" => Self::TakenBack(text),
            // operator_intervention: the session was ended, and what it was at may have been over by then.
            code if code.starts_with("57P") => Self::Unknown(text),
            // connection_exception.
            code if code.starts_with("08") => Self::Unknown(text),
            _ => Self::Refused(text),
        }
    }

    /// What the driver of a host means that has no error of the database's to tell of a statement.
    #[must_use]
    pub fn of_statement(text: &str) -> Self {
        let is_end = |kind: &&str| text.contains(*kind);
        // Its own words: the connection ended while it waited.
        if ["kind: Closed", "kind: Io"].iter().any(is_end) {
            return Self::Unknown(line(text));
        }
        Self::Refused(line(text))
    }

    /// What a host means that gives no connection. Ours has the SQLSTATE at the end; Spin has the driver's words alone.
    #[must_use]
    pub fn of_opening(text: &str) -> Self {
        let line = line(text);
        let found = OPENING
            .iter()
            .find(|(signs, _)| signs.iter().any(|sign| line.contains(sign)));
        match found {
            Some((_, advice)) => Self::NoEntry(with_advice(line, Some(advice))),
            None => Self::NotSent(line),
        }
    }

    /// Whether another connection, and so perhaps another database, may be what answers next.
    pub(super) fn is_of_connection(&self) -> bool {
        match self {
            Self::NotSent(_) | Self::NoEntry(_) | Self::Unknown(_) => true,
            Self::TakenBack(_) | Self::Refused(_) => false,
        }
    }
}

/// Longest text of others that is told, in bytes.
const LONGEST: usize = 300;

/// Why there is no connection, and what to do, where another try alone changes nothing. The first that fits holds.
const OPENING: [(&[&str], &str); 8] = [
    (
        &["(28P01)", "authentication failed"],
        "check `postgres_user` and `postgres_password`, or give that role this password (ALTER ROLE … PASSWORD)",
    ),
    (
        &[
            "(28000)",
            "no pg_hba.conf entry",
            "is not permitted to log in",
        ],
        "check `postgres_user` and `postgres_database`, and whom the server lets in (its pg_hba.conf)",
    ),
    (
        &["(3D000)", "FATAL: database \"", "no such database"],
        "check `postgres_database`, or create that database and run `behalf schema apply` on it",
    ),
    (
        &["(42501)", "permission denied for database"],
        "let the role of `postgres_user` connect (GRANT CONNECT ON DATABASE)",
    ),
    (
        &["server does not support TLS"],
        "turn on TLS there (ssl), or check `postgres_host`: without it only a database on this machine is used",
    ),
    (
        &["certificate"],
        "check `postgres_ca_pem`, the authority that the server's certificate has to be from, and `postgres_host`, the name in it",
    ),
    (
        &["is not permitted"],
        "`allowed_outbound_hosts` in the manifest has to have `postgres_host` and `postgres_port`",
    ),
    (
        &["invalid connection string"],
        "check the settings `postgres_…`",
    ),
];

/// What to do about an error of a statement.
fn of_statement(code: &str) -> Option<&'static str> {
    Some(match code {
        // invalid_schema_name, undefined_table, undefined_column.
        "3F000" | "42P01" | "42703" => "run `behalf schema apply` on it",
        // insufficient_privilege.
        "42501" => "run `behalf schema apply --role` with the role of `postgres_user`",
        // read_only_sql_transaction.
        "25006" => {
            "`postgres_host` has to be the server that takes writes, and default_transaction_read_only has to be off there"
        }
        // disk_full.
        "53100" => "give the database's disk room",
        // query_canceled, lock_not_available.
        "57014" | "55P03" => {
            "see what holds it up (pg_stat_activity, pg_locks); statement_timeout and lock_timeout are set on the role of `postgres_user`"
        }
        // invalid_sql_statement_name, duplicate_prepared_statement.
        "26000" | "42P05" => {
            "if `postgres_host` is PgBouncer, it has to be of version 1.21 or later with max_prepared_statements over 0, or in session mode"
        }
        _ => return None,
    })
}

fn with_advice(text: String, advice: Option<&str>) -> String {
    match advice {
        Some(advice) => format!("{text}; {advice}"),
        None => text,
    }
}

/// The beginning of a text of others, on one line. What follows in a host's is where in its own code that came from.
fn line(text: &str) -> String {
    let reason = text.split("\n\nStack").next().unwrap_or_default();
    let mut line = String::new();
    for word in reason.split_whitespace() {
        if line.len().saturating_add(word.len()) > LONGEST {
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As hosts say them: ours, and Spin 4.1, which has a backtrace behind; of PostgreSQL's and of PgBouncer's.
    #[test]
    fn who_is_not_let_in_is_told_which_setting_to_change() {
        let on_spin = "Error occurred while creating a new object: ";
        let ours = "cannot connect to postgres://db.test:5432: ";
        for (texts, settings) in [
            (
                [
                    format!("{ours}FATAL: password authentication failed for user \"app\" (28P01)"),
                    format!(
                        "{on_spin}db error: FATAL: password authentication failed for user \"app\"\n\nStack backtrace:\n   0: x"
                    ),
                ],
                &["`postgres_password`", "`postgres_user`"][..],
            ),
            (
                [
                    format!(
                        "{ours}FATAL: no pg_hba.conf entry for host \"10.0.0.1\", user \"app\", database \"a\", no encryption (28000)"
                    ),
                    format!(
                        "{on_spin}db error: FATAL: role \"app\" is not permitted to log in\n\nStack backtrace:"
                    ),
                ],
                &["`postgres_user`", "pg_hba.conf"],
            ),
            (
                [
                    format!("{ours}FATAL: database \"none\" does not exist (3D000)"),
                    format!(
                        "{on_spin}db error: FATAL: database \"none\" does not exist\n\nStack backtrace:"
                    ),
                ],
                &["`postgres_database`", "`behalf schema apply`"],
            ),
            (
                [
                    format!("{ours}FATAL: no such database: none (08P01)"),
                    format!("{on_spin}db error: FATAL: no such database: none"),
                ],
                &["`postgres_database`"],
            ),
            (
                [
                    format!("{ours}FATAL: SASL authentication failed (08P01)"),
                    format!("{on_spin}db error: FATAL: SASL authentication failed"),
                ],
                &["`postgres_password`"],
            ),
            (
                [
                    format!("{ours}FATAL: permission denied for database \"a\" (42501)"),
                    format!("{on_spin}db error: FATAL: permission denied for database \"a\""),
                ],
                &["GRANT CONNECT"],
            ),
            (
                [
                    format!(
                        "{ours}error performing TLS handshake: invalid peer certificate: UnknownIssuer"
                    ),
                    format!(
                        "{on_spin}error performing TLS handshake: error:0A000086:SSL routines:tls_post_process_server_certificate:certificate verify failed:../ssl/statem/statem_clnt.c:1889: (self-signed certificate in certificate chain)"
                    ),
                ],
                &["`postgres_ca_pem`", "`postgres_host`"],
            ),
            (
                [
                    format!("{ours}error performing TLS handshake: server does not support TLS"),
                    "address postgres://db.test:5432 is not permitted".to_owned(),
                ],
                &["`postgres_host`"],
            ),
        ] {
            for text in texts {
                let Failure::NoEntry(told) = Failure::of_opening(&text) else {
                    panic!("it would be tried again: {text}");
                };
                for word in settings {
                    assert!(told.contains(word), "{word}: {told}");
                }
                assert!(!told.contains("Stack") && !told.contains('\n'), "{told}");
            }
        }
    }

    #[test]
    fn what_may_pass_by_itself_is_tried_again() {
        for text in [
            "cannot connect to postgres://db.test:5432: error connecting to server: Connection refused (os error 111)",
            "cannot connect to postgres://db.test:5432: FATAL: sorry, too many clients already (53300); give it more (max_connections), or this process fewer (--postgres-connections)",
            "cannot connect to postgres://db.test:5432: FATAL: the database system is starting up (57P03)",
            "cannot connect to postgres://db.test:5432: error performing TLS handshake: unexpected end of file",
            "no connection came free within 3s: all 16 of --postgres-connections are in use",
            "there was no connection within 3s, the connect_timeout of the address",
            "Error occurred while creating a new object: error connecting to server: Connection refused (os error 111)\n\nStack backtrace:",
        ] {
            let failure = Failure::of_opening(text);
            assert!(matches!(failure, Failure::NotSent(_)), "{failure:?}");
        }
    }

    #[test]
    fn what_fails_of_a_statement_is_classed_and_says_what_to_do() {
        let is_unknown = |it: &Failure| matches!(it, Failure::Unknown(_));
        let is_taken_back = |it: &Failure| matches!(it, Failure::TakenBack(_));
        let is_refused = |it: &Failure| matches!(it, Failure::Refused(_));
        let codes: [(&str, &dyn Fn(&Failure) -> bool, &str); 12] = [
            ("42P01", &is_refused, "`behalf schema apply`"),
            ("42501", &is_refused, "`behalf schema apply --role`"),
            ("25006", &is_taken_back, "`postgres_host`"),
            ("53100", &is_refused, "disk"),
            ("26000", &is_refused, "PgBouncer"),
            ("42P05", &is_refused, "max_prepared_statements"),
            ("57014", &is_taken_back, "statement_timeout"),
            ("55P03", &is_taken_back, "lock_timeout"),
            ("40P01", &is_taken_back, "(40P01)"),
            ("57P01", &is_unknown, "(57P01)"),
            ("08006", &is_unknown, "(08006)"),
            ("22001", &is_refused, "(22001)"),
        ];
        for (code, is_so, word) in codes {
            let failure = Failure::of_code(code, "the value 'canary'");
            let told = failure.to_string();
            assert!(is_so(&failure) && told.contains(word), "{failure:?}");
            assert_eq!(told.contains("canary"), code != "22001", "{told}");
        }
        for text in [
            "Error { kind: Closed, cause: None }",
            "Error { kind: Io, cause: Some(Os { code: 104, kind: ConnectionReset }) }",
        ] {
            assert!(is_unknown(&Failure::of_statement(text)), "{text}");
        }
        for text in [
            "Error { kind: ToSql(0), cause: Some(WrongType { postgres: Int8, rust: \"i32\" }) }",
            "error deserializing column 0: Error { kind: FromSql(0) }",
        ] {
            assert!(is_refused(&Failure::of_statement(text)), "{text}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_words() {
        let Failure::NotSent(told) = Failure::of_opening(&"word\n".repeat(100)) else {
            panic!("it names nothing to change");
        };
        assert!(
            told.len() <= LONGEST + 4 && told.ends_with("word"),
            "{told}"
        );
        assert!(!told.contains('\n'), "{told}");
    }
}
