//! Values of components and of PostgreSQL, as Spin 4.1 translates them (its `crates/factor-outbound-pg/src/types.rs`): what is
//! refused there is refused here, so that a component that was tested on this host runs on Spin.

use crate::bindings::spin::postgres::postgres::{
    Column, DbDataType, DbValue, Interval, ParameterValue, RangeBoundKind,
};
use bytes::{Buf as _, BufMut as _, BytesMut};
use chrono::{DateTime, Datelike as _, NaiveDate, NaiveDateTime, NaiveTime, Timelike as _, Utc};
use postgres_protocol::types::{self as wire, RangeBound};
use rust_decimal::Decimal;
use std::error::Error;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use uuid::Uuid;

/// A parameter as the client sends it.
pub(super) type Parameter = Box<dyn ToSql + Send + Sync>;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Parameters, in their order.
///
/// # Errors
///
/// What is wrong with one, without its value.
pub(super) fn parameters(
    values: Vec<ParameterValue>,
) -> std::result::Result<Vec<Parameter>, &'static str> {
    values.into_iter().map(parameter).collect()
}

fn parameter(value: ParameterValue) -> std::result::Result<Parameter, &'static str> {
    Ok(match value {
        ParameterValue::Boolean(it) => Box::new(it),
        ParameterValue::Int8(it) => Box::new(it),
        ParameterValue::Int16(it) => Box::new(it),
        ParameterValue::Int32(it) => Box::new(it),
        ParameterValue::Int64(it) => Box::new(it),
        ParameterValue::Floating32(it) => Box::new(it),
        ParameterValue::Floating64(it) => Box::new(it),
        ParameterValue::Str(it) => Box::new(it),
        ParameterValue::Binary(it) => Box::new(it),
        ParameterValue::Date(it) => Box::new(date(it)?),
        ParameterValue::Time(it) => Box::new(time(it)?),
        ParameterValue::Datetime((year, month, day, hour, minute, second, nanosecond)) => {
            let date = date((year, month, day))?;
            Box::new(date.and_time(time((hour, minute, second, nanosecond))?))
        }
        ParameterValue::Timestamp(seconds) => {
            let time = DateTime::<Utc>::from_timestamp(seconds, 0);
            Box::new(time.ok_or("invalid timestamp")?)
        }
        ParameterValue::Uuid(it) => Box::new(Uuid::parse_str(&it).map_err(|_| "invalid UUID")?),
        ParameterValue::Jsonb(it) => {
            let json: serde_json::Value =
                serde_json::from_slice(&it).map_err(|_| "invalid JSON")?;
            Box::new(json)
        }
        ParameterValue::Decimal(it) => Box::new(decimal(&it)?),
        ParameterValue::RangeInt32((lower, upper)) => Box::new(Range { lower, upper }),
        ParameterValue::RangeInt64((lower, upper)) => Box::new(Range { lower, upper }),
        ParameterValue::RangeDecimal((lower, upper)) => {
            let bound = |bound: Option<(String, RangeBoundKind)>| {
                let bound = bound.map(|(value, kind)| Ok::<_, &str>((decimal(&value)?, kind)));
                bound.transpose()
            };
            let (lower, upper) = (bound(lower)?, bound(upper)?);
            Box::new(Range { lower, upper })
        }
        ParameterValue::ArrayInt32(it) => Box::new(it),
        ParameterValue::ArrayInt64(it) => Box::new(it),
        ParameterValue::ArrayDecimal(it) => {
            let decimals = it.iter().map(|it| it.as_deref().map(decimal).transpose());
            Box::new(decimals.collect::<std::result::Result<Vec<_>, _>>()?)
        }
        ParameterValue::ArrayStr(it) => Box::new(it),
        ParameterValue::Interval(it) => Box::new(it),
        ParameterValue::DbNull => Box::new(AnyNull),
    })
}

fn date((year, month, day): (i32, u8, u8)) -> std::result::Result<NaiveDate, &'static str> {
    NaiveDate::from_ymd_opt(year, month.into(), day.into()).ok_or("invalid date")
}

fn time(
    (hour, minute, second, nanosecond): (u8, u8, u8, u32),
) -> std::result::Result<NaiveTime, &'static str> {
    NaiveTime::from_hms_nano_opt(hour.into(), minute.into(), second.into(), nanosecond)
        .ok_or("invalid time")
}

fn decimal(text: &str) -> std::result::Result<Decimal, &'static str> {
    Decimal::from_str_exact(text).map_err(|_| "invalid decimal")
}

/// A column of a result.
pub(super) fn column(column: &tokio_postgres::Column) -> Column {
    let data_type = match *column.type_() {
        Type::BOOL => DbDataType::Boolean,
        Type::BYTEA => DbDataType::Binary,
        Type::FLOAT4 => DbDataType::Floating32,
        Type::FLOAT8 => DbDataType::Floating64,
        Type::INT2 => DbDataType::Int16,
        Type::INT4 => DbDataType::Int32,
        Type::INT8 => DbDataType::Int64,
        Type::TEXT | Type::VARCHAR | Type::BPCHAR => DbDataType::Str,
        Type::TIMESTAMP | Type::TIMESTAMPTZ => DbDataType::Datetime,
        Type::DATE => DbDataType::Date,
        Type::TIME => DbDataType::Time,
        Type::UUID => DbDataType::Uuid,
        Type::JSONB => DbDataType::Jsonb,
        Type::NUMERIC => DbDataType::Decimal,
        Type::INT4_RANGE => DbDataType::RangeInt32,
        Type::INT8_RANGE => DbDataType::RangeInt64,
        Type::NUM_RANGE => DbDataType::RangeDecimal,
        Type::INT4_ARRAY => DbDataType::ArrayInt32,
        Type::INT8_ARRAY => DbDataType::ArrayInt64,
        Type::NUMERIC_ARRAY => DbDataType::ArrayDecimal,
        Type::TEXT_ARRAY | Type::VARCHAR_ARRAY | Type::BPCHAR_ARRAY => DbDataType::ArrayStr,
        Type::INTERVAL => DbDataType::Interval,
        ref other => DbDataType::Other(other.name().to_owned()),
    };
    let name = column.name().to_owned();
    Column { name, data_type }
}

/// The values of a row.
///
/// # Errors
///
/// One cannot be translated: a `timestamptz`, or what is beyond the type that it would have.
pub(super) fn values(row: &Row) -> std::result::Result<Vec<DbValue>, tokio_postgres::Error> {
    (0..row.len()).map(|index| value(row, index)).collect()
}

fn value(row: &Row, index: usize) -> std::result::Result<DbValue, tokio_postgres::Error> {
    let Some(column) = row.columns().get(index) else {
        return Ok(DbValue::DbNull);
    };
    match *column.type_() {
        Type::BOOL => of(row, index, DbValue::Boolean),
        Type::BYTEA => of(row, index, DbValue::Binary),
        Type::FLOAT4 => of(row, index, DbValue::Floating32),
        Type::FLOAT8 => of(row, index, DbValue::Floating64),
        Type::INT2 => of(row, index, DbValue::Int16),
        Type::INT4 => of(row, index, DbValue::Int32),
        Type::INT8 => of(row, index, DbValue::Int64),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR => of(row, index, DbValue::Str),
        // The client has no such type for TIMESTAMPTZ, not even for one that is NULL.
        Type::TIMESTAMP | Type::TIMESTAMPTZ => of(row, index, |it: NaiveDateTime| {
            let (date, time) = (date_parts(it.date()), time_parts(it.time()));
            DbValue::Datetime((date.0, date.1, date.2, time.0, time.1, time.2, time.3))
        }),
        Type::DATE => of(row, index, |it| DbValue::Date(date_parts(it))),
        Type::TIME => of(row, index, |it| DbValue::Time(time_parts(it))),
        Type::UUID => of(row, index, |it: Uuid| DbValue::Uuid(it.to_string())),
        Type::JSONB => of(row, index, |it: serde_json::Value| {
            DbValue::Jsonb(it.to_string().into_bytes())
        }),
        Type::NUMERIC => of(row, index, |it: Decimal| DbValue::Decimal(it.to_string())),
        Type::INT4_RANGE => of(row, index, |it: Range<i32>| {
            DbValue::RangeInt32((it.lower, it.upper))
        }),
        Type::INT8_RANGE => of(row, index, |it: Range<i64>| {
            DbValue::RangeInt64((it.lower, it.upper))
        }),
        Type::NUM_RANGE => of(row, index, |it: Range<Decimal>| {
            let text = |(value, kind): (Decimal, _)| (value.to_string(), kind);
            DbValue::RangeDecimal((it.lower.map(text), it.upper.map(text)))
        }),
        Type::INT4_ARRAY => of(row, index, DbValue::ArrayInt32),
        Type::INT8_ARRAY => of(row, index, DbValue::ArrayInt64),
        Type::NUMERIC_ARRAY => of(row, index, |it: Vec<Option<Decimal>>| {
            let texts = it.iter().map(|it| it.map(|it| it.to_string()));
            DbValue::ArrayDecimal(texts.collect())
        }),
        Type::TEXT_ARRAY | Type::VARCHAR_ARRAY | Type::BPCHAR_ARRAY => {
            of(row, index, DbValue::ArrayStr)
        }
        Type::INTERVAL => of(row, index, DbValue::Interval),
        _ => of(row, index, |Raw(bytes)| DbValue::Unsupported(bytes)),
    }
}

fn of<'a, T: FromSql<'a>>(
    row: &'a Row,
    index: usize,
    value: impl Fn(T) -> DbValue,
) -> std::result::Result<DbValue, tokio_postgres::Error> {
    let found: Option<T> = row.try_get(index)?;
    Ok(found.map_or(DbValue::DbNull, value))
}

// Months, days, hours, minutes and seconds are below 256.
#[allow(clippy::cast_possible_truncation)]
fn date_parts(date: NaiveDate) -> (i32, u8, u8) {
    (date.year(), date.month() as u8, date.day() as u8)
}

#[allow(clippy::cast_possible_truncation)]
fn time_parts(time: NaiveTime) -> (u8, u8, u8, u32) {
    let (hour, minute, second) = (time.hour(), time.minute(), time.second());
    (hour as u8, minute as u8, second as u8, time.nanosecond())
}

/// How many bytes of the machine's memory a row takes, about.
pub(super) fn size(row: &[DbValue]) -> usize {
    let own = size_of_val(row);
    let texts = |texts: &[Option<String>]| {
        let lengths = texts.iter().map(|it| it.as_ref().map_or(0, String::len));
        lengths.sum::<usize>().saturating_add(size_of_val(texts))
    };
    let more = row.iter().map(|value| match value {
        DbValue::Str(it) | DbValue::Uuid(it) | DbValue::Decimal(it) => it.len(),
        DbValue::Binary(it) | DbValue::Jsonb(it) | DbValue::Unsupported(it) => it.len(),
        DbValue::ArrayInt32(it) => size_of_val(it.as_slice()),
        DbValue::ArrayInt64(it) => size_of_val(it.as_slice()),
        DbValue::ArrayDecimal(it) | DbValue::ArrayStr(it) => texts(it),
        _ => 0,
    });
    own.saturating_add(more.sum())
}

/// NULL, whatever the type.
#[derive(Debug)]
struct AnyNull;

impl ToSql for AnyNull {
    fn to_sql(&self, _: &Type, _: &mut BytesMut) -> Result<IsNull> {
        Ok(IsNull::Yes)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A value of a type that components have no value for.
struct Raw(Vec<u8>);

impl FromSql<'_> for Raw {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self> {
        Ok(Self(raw.to_owned()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl ToSql for Interval {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull> {
        out.put_i64(self.micros);
        out.put_i32(self.days);
        out.put_i32(self.months);
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::INTERVAL
    }

    to_sql_checked!();
}

impl FromSql<'_> for Interval {
    fn from_sql(_: &Type, mut raw: &[u8]) -> Result<Self> {
        if raw.len() != 16 {
            return Err("an interval has 16 bytes".into());
        }
        Ok(Self {
            micros: raw.get_i64(),
            days: raw.get_i32(),
            months: raw.get_i32(),
        })
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::INTERVAL
    }
}

/// A range without one of its bounds is unbounded there. That nothing is in it cannot be told from there being no bound, as in
/// Spin.
#[derive(Debug)]
struct Range<T> {
    lower: Option<(T, RangeBoundKind)>,
    upper: Option<(T, RangeBoundKind)>,
}

impl<T: ToSql + PartialOrd> ToSql for Range<T> {
    fn to_sql(&self, of: &Type, out: &mut BytesMut) -> Result<IsNull> {
        if let (Some((lower, _)), Some((upper, _))) = (&self.lower, &self.upper)
            && lower > upper
        {
            wire::empty_range_to_sql(out);
            return Ok(IsNull::No);
        }
        let element = Self::element(of);
        let bound = |bound: &Option<(T, RangeBoundKind)>, out: &mut BytesMut| {
            let Some((value, kind)) = bound else {
                return Ok(RangeBound::Unbounded);
            };
            let null = match value.to_sql(&element, out)? {
                IsNull::No => postgres_protocol::IsNull::No,
                IsNull::Yes => postgres_protocol::IsNull::Yes,
            };
            Ok(match kind {
                RangeBoundKind::Inclusive => RangeBound::Inclusive(null),
                RangeBoundKind::Exclusive => RangeBound::Exclusive(null),
            })
        };
        wire::range_to_sql(
            |out| bound(&self.lower, out),
            |out| bound(&self.upper, out),
            out,
        )?;
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        matches!(of.kind(), tokio_postgres::types::Kind::Range(element) if T::accepts(element))
    }

    to_sql_checked!();
}

impl<'a, T: FromSql<'a>> FromSql<'a> for Range<T> {
    fn from_sql(of: &Type, raw: &'a [u8]) -> Result<Self> {
        let element = Self::element(of);
        let bound = |bound: RangeBound<Option<&'a [u8]>>| {
            let (raw, kind) = match bound {
                RangeBound::Inclusive(Some(raw)) => (raw, RangeBoundKind::Inclusive),
                RangeBound::Exclusive(Some(raw)) => (raw, RangeBoundKind::Exclusive),
                RangeBound::Inclusive(None)
                | RangeBound::Exclusive(None)
                | RangeBound::Unbounded => {
                    return Ok(None);
                }
            };
            T::from_sql(&element, raw).map(|value| Some((value, kind)))
        };
        let (lower, upper) = match wire::range_from_sql(raw)? {
            wire::Range::Empty => (None, None),
            wire::Range::Nonempty(lower, upper) => (bound(lower)?, bound(upper)?),
        };
        Ok(Self { lower, upper })
    }

    fn accepts(of: &Type) -> bool {
        matches!(of.kind(), tokio_postgres::types::Kind::Range(element) if T::accepts(element))
    }
}

impl<T> Range<T> {
    /// The type of what is in a range of this one.
    fn element(of: &Type) -> Type {
        match of.kind() {
            tokio_postgres::types::Kind::Range(element) => element.clone(),
            _ => of.clone(),
        }
    }
}
