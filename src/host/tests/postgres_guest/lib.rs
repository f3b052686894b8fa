//! The component by which the host's tests use PostgreSQL, through Spin's SDK. The path says what to do; the header `x-address`
//! where; `x-authorities` whom to trust, in PEM with `|` for line ends; the body holds the statement, and `x-parameters` its
//! parameters, each `kind=value`, with `;` between them. It answers with text, in the words of `Debug`.
#![cfg(target_family = "wasm")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's component may trap"
)]

use bytes::Bytes;
use futures_util::future::{Either, join, select};
use http_body_util::{BodyExt as _, Full};
use spin_sdk::http::{Request, Response};
use spin_sdk::http_service;
use spin_sdk::pg::{
    Certificate, Connection, Error, Interval, OpenOptions, ParameterValue, QueryResult,
    RangeBoundKind, wit,
};
use spin_sdk::time::sleep;
use std::cell::RefCell;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

thread_local! {
    static KEPT: RefCell<Vec<Connection>> = const { RefCell::new(Vec::new()) };
}

#[http_service]
async fn handle(request: Request) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let (head, body) = request.into_parts();
    let header = |name: &str| {
        let value = head.headers.get(name);
        value.map(|it| it.to_str().unwrap().to_owned())
    };
    let statement = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let parameters = header("x-parameters").unwrap_or_default();
    let asked = Asked {
        address: header("x-address").unwrap_or_default(),
        authorities: header("x-authorities"),
        parameters: parameters.split(';').filter_map(parameter).collect(),
        statement,
    };
    let words: Vec<&str> = path.split('/').skip(1).collect();
    let text = match *words.as_slice() {
        ["query"] => shown(asked.query().await),
        ["first"] => shown(asked.first().await),
        ["abandon"] => shown(
            asked
                .begin()
                .await
                .map(|(_, answer)| answer.columns().len()),
        ),
        ["result"] => shown(asked.result().await),
        ["execute"] => shown(asked.execute().await),
        ["both"] => shown(join(asked.execute(), asked.execute()).await),
        ["in-transaction"] => shown(asked.in_transaction().await),
        ["give-up", milliseconds] => shown(asked.give_up(time(milliseconds)).await),
        ["give-up-and-go-on", milliseconds] => shown(asked.go_on(time(milliseconds)).await),
        ["hold", milliseconds] => shown(asked.hold(time(milliseconds)).await),
        ["keep"] => shown(
            asked
                .open()
                .await
                .map(|it| KEPT.with_borrow_mut(|kept| kept.push(it))),
        ),
        ["let-go"] => shown(KEPT.take().len()),
        ["synchronous"] => shown(asked.synchronous()),
        _ => "no such path".to_owned(),
    };
    Response::new(Full::from(text))
}

struct Asked {
    address: String,
    authorities: Option<String>,
    parameters: Vec<ParameterValue>,
    statement: String,
}

impl Asked {
    async fn open(&self) -> Result<Connection, Error> {
        match &self.authorities {
            None => Connection::open(self.address.as_str()).await,
            Some(pem) => {
                let authorities = Certificate::Text(pem.replace('|', "\n"));
                let options = OpenOptions {
                    ca_root: Some(authorities),
                };
                Connection::open_with_options(&self.address, options).await
            }
        }
    }

    async fn begin(&self) -> Result<(Connection, QueryResult), Error> {
        let connection = self.open().await?;
        let parameters = self.parameters.clone();
        let answer = connection
            .query(self.statement.as_str(), parameters)
            .await?;
        Ok((connection, answer))
    }

    async fn query(&self) -> Result<impl Debug, Error> {
        let (_connection, answer) = self.begin().await?;
        let columns = answer.columns().iter();
        let columns: Vec<_> = columns
            .map(|it| format!("{} {:?}", it.name, it.data_type))
            .collect();
        let end = collect(answer).await;
        // What comes late is told from what comes at once.
        Ok((columns, end.map_err(|error| ("late", error))))
    }

    /// Reads one row.
    async fn first(&self) -> Result<impl Debug, Error> {
        let (_connection, mut answer) = self.begin().await?;
        Ok(answer.rows().next().await)
    }

    /// Reads no row.
    async fn result(&self) -> Result<impl Debug, Error> {
        let (_connection, answer) = self.begin().await?;
        Ok(answer.result().await)
    }

    async fn execute(&self) -> Result<u64, Error> {
        let connection = self.open().await?;
        connection
            .execute(self.statement.as_str(), self.parameters.clone())
            .await
    }

    /// Leaves the transaction as it is.
    async fn in_transaction(&self) -> Result<impl Debug, Error> {
        let connection = self.open().await?;
        connection.execute("BEGIN", []).await?;
        Ok(connection
            .execute(self.statement.as_str(), self.parameters.clone())
            .await)
    }

    async fn give_up(&self, after: Duration) -> Result<impl Debug, Error> {
        let connection = self.open().await?;
        let executing = pin!(connection.execute(self.statement.as_str(), self.parameters.clone()));
        Ok(match select(executing, pin!(sleep(after))).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        })
    }

    async fn go_on(&self, after: Duration) -> Result<impl Debug, Error> {
        let connection = self.open().await?;
        {
            let executing =
                pin!(connection.execute(self.statement.as_str(), self.parameters.clone()));
            select(executing, pin!(sleep(after))).await;
        }
        Ok(connection.execute("SELECT 1", []).await)
    }

    async fn hold(&self, how_long: Duration) -> Result<impl Debug, Error> {
        let connection = self.open().await?;
        sleep(how_long).await;
        Ok(connection.execute("SELECT 1", []).await)
    }

    /// By the functions that are no more used.
    fn synchronous(&self) -> Result<impl Debug, impl Debug> {
        let connection = wit::postgres::Connection::open(&self.address)?;
        let rows = connection.query(&self.statement, &self.parameters)?;
        let count = connection.execute(&self.statement, &self.parameters)?;
        let built = wit::postgres::ConnectionBuilder::new(&self.address).build()?;
        Ok::<_, wit::postgres::Error>((rows, count, built.execute("SELECT 1", &[])))
    }
}

async fn collect(mut answer: QueryResult) -> Result<impl Debug, Error> {
    let mut rows = Vec::new();
    while let Some(row) = answer.rows().next().await {
        rows.push(row);
    }
    answer.result().await.map(|()| rows)
}

fn time(milliseconds: &str) -> Duration {
    Duration::from_millis(milliseconds.parse().unwrap())
}

fn shown(it: impl Debug) -> String {
    format!("{it:?}")
}

fn parameter(text: &str) -> Option<ParameterValue> {
    use ParameterValue as Of;
    let (kind, value) = text.split_once('=')?;
    let optional = |it: &str| (it != "null").then(|| it.to_owned());
    let list = || value.split(',').map(optional);
    let bounds = || {
        let (lower, upper) = value.split_once(',').unwrap();
        (optional(lower), optional(upper))
    };
    let kinds = (RangeBoundKind::Inclusive, RangeBoundKind::Exclusive);
    let numbers = || {
        list()
            .map(|it| it.unwrap().parse::<i64>().unwrap())
            .collect::<Vec<_>>()
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some(match kind {
        "bool" => Of::Boolean(value == "true"),
        "i8" => Of::Int8(value.parse().unwrap()),
        "i16" => Of::Int16(value.parse().unwrap()),
        "i32" => Of::Int32(value.parse().unwrap()),
        "i64" => Of::Int64(value.parse().unwrap()),
        "f32" => Of::Floating32(value.parse().unwrap()),
        "f64" => Of::Floating64(value.parse().unwrap()),
        "str" => Of::Str(value.to_owned()),
        "bytes" => Of::Binary(value.as_bytes().to_vec()),
        "date" => {
            let it = numbers();
            Of::Date((it[0] as i32, it[1] as u8, it[2] as u8))
        }
        "time" => {
            let it = numbers();
            Of::Time((it[0] as u8, it[1] as u8, it[2] as u8, it[3] as u32))
        }
        "datetime" => {
            let it = numbers();
            let (hour, minute, second) = (it[3] as u8, it[4] as u8, it[5] as u8);
            Of::Datetime((
                it[0] as i32,
                it[1] as u8,
                it[2] as u8,
                hour,
                minute,
                second,
                it[6] as u32,
            ))
        }
        "timestamp" => Of::Timestamp(value.parse().unwrap()),
        "uuid" => Of::Uuid(value.to_owned()),
        "jsonb" => Of::Jsonb(value.as_bytes().to_vec()),
        "decimal" => Of::Decimal(value.to_owned()),
        "range_i32" => {
            let (lower, upper) = bounds();
            let of = |it: Option<String>, kind| it.map(|it| (it.parse().unwrap(), kind));
            Of::RangeInt32((of(lower, kinds.0), of(upper, kinds.1)))
        }
        "range_i64" => {
            let (lower, upper) = bounds();
            let of = |it: Option<String>, kind| it.map(|it| (it.parse().unwrap(), kind));
            Of::RangeInt64((of(lower, kinds.0), of(upper, kinds.0)))
        }
        "range_decimal" => {
            let (lower, upper) = bounds();
            Of::RangeDecimal((lower.map(|it| (it, kinds.1)), upper.map(|it| (it, kinds.0))))
        }
        "array_i32" => Of::ArrayInt32(list().map(|it| it.map(|it| it.parse().unwrap())).collect()),
        "array_i64" => Of::ArrayInt64(list().map(|it| it.map(|it| it.parse().unwrap())).collect()),
        "array_decimal" => Of::ArrayDecimal(list().collect()),
        "array_str" => Of::ArrayStr(list().collect()),
        "interval" => {
            let it = numbers();
            Of::Interval(Interval {
                micros: it[0],
                days: it[1] as i32,
                months: it[2] as i32,
            })
        }
        "null" => Of::DbNull,
        _ => panic!("no such kind: {kind}"),
    })
}
