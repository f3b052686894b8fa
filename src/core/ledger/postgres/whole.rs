//! All of this ledger at once, for moving it (`ledger/transfer.rs`), while no app uses it.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value as Json, json};

use crate::identity::{KeyVersion, Nonce, StorageId, TenantId, User};
use crate::ledger::StoreError;
use crate::ledger::postgres::answer::{self, Columns, text, unexpected};
use crate::ledger::postgres::attempt::Repeat;
use crate::ledger::postgres::database::{Database, Row, Value};
use crate::ledger::postgres::{BUCKETS, PostgresLedger, bucket, statement};
use crate::ledger::record::VERSION;
use crate::ledger::schedule::State;
use crate::ledger::transfer::{Holder, Item, Kept, Name, Scheduled, Token};
use crate::port::Environment;

/// Enrolments that one statement reads or writes.
const AT_ONCE: i64 = 200;

/// How far the buckets were gone through.
pub struct Reading {
    bucket: i16,
    /// The last tenant and user of it that were had; none: it was not begun.
    after: Option<(String, String)>,
    is_begun: bool,
}

impl<D: Database + Clone, E: Environment + Clone> Holder for PostgresLedger<D, E> {
    type Reading = Reading;

    fn most(&self) -> Option<u64> {
        None
    }

    async fn begin(&self) -> Result<Reading, StoreError> {
        Ok(Reading {
            bucket: 0,
            after: None,
            is_begun: false,
        })
    }

    async fn next(&self, reading: &mut Reading) -> Result<Option<Vec<Item>>, StoreError> {
        if !std::mem::replace(&mut reading.is_begun, true) {
            let (_, settings) = self.kept().await?;
            let mut items: Vec<_> = settings.map(Item::Settings).into_iter().collect();
            let barred = self.repeat(statement::BARRED, [text(&self.app)], Repeat::Any);
            for row in barred.await? {
                items.push(Item::Bar(tenant(&Columns::of(row).text()?)?));
            }
            return Ok(Some(items));
        }
        if i32::from(reading.bucket) >= i32::from(BUCKETS) {
            return Ok(None);
        }
        let of_bucket = [Value::Int2(reading.bucket), text(&self.app)];
        let Some((last_tenant, last_user)) = &reading.after else {
            let rows = self.repeat(statement::VERSIONS, of_bucket, Repeat::Any);
            let items: Result<_, _> = rows.await?.into_iter().map(version).collect();
            reading.after = Some(Default::default());
            return items.map(Some);
        };
        let [bucket, app] = of_bucket;
        let (tenant, user) = (text(last_tenant), text(last_user));
        let values = [bucket, app, tenant, user, Value::Int8(AT_ONCE)];
        let rows = self.repeat(statement::PAGE, values, Repeat::Any).await?;
        let items: Vec<_> = (rows.into_iter().map(enrolment)).collect::<Result<_, _>>()?;
        if let Some(Name::User(tenant, id)) = items.last().map(Item::name) {
            reading.after = Some((tenant.to_string(), id.as_str().to_owned()));
        } else {
            reading.bucket = reading.bucket.saturating_add(1);
            reading.after = None;
        }
        Ok(Some(items))
    }

    async fn put(&self, _found: &Reading, items: &[Item]) -> Result<(), StoreError> {
        let mut rows = Vec::new();
        for item in items {
            match item {
                Item::Enrolment(kept) => rows.push(self.row(kept)),
                Item::NotReadable(_) => {}
                Item::Bar(tenant) => {
                    let known = self.tenant(tenant);
                    self.repeat(statement::OPEN_TENANT, known, Repeat::Any)
                        .await?;
                    self.put_bar(tenant, true).await?;
                }
                Item::Version(tenant, version, since) => {
                    let mut values = self.tenant(tenant);
                    let since = since.map_or(Value::Null, answer::int8);
                    values.extend([text(version.as_str()), since]);
                    self.repeat(statement::PUT_VERSION, values, Repeat::Any)
                        .await?;
                }
                Item::Settings(json) => self.put_fingerprint(Value::Bytes(json.clone())).await?,
            }
        }
        for rows in rows.chunks(usize::try_from(AT_ONCE).unwrap_or(1)) {
            let values = [text(&self.app), text(&json!(rows).to_string())];
            self.repeat(statement::PUT, values, Repeat::Any).await?;
        }
        Ok(())
    }

    async fn discard(&self, _found: &Reading, names: &[Name]) -> Result<(), StoreError> {
        let mut users: BTreeMap<&TenantId, Vec<String>> = BTreeMap::new();
        for name in names {
            match name {
                Name::User(tenant, id) => {
                    users
                        .entry(tenant)
                        .or_default()
                        .push(id.as_str().to_owned());
                }
                Name::Bar(tenant) => self.put_bar(tenant, false).await?,
                Name::Version(tenant, version) => {
                    let mut values = self.tenant(tenant);
                    values.push(text(version.as_str()));
                    self.repeat(statement::DELETE_VERSION, values, Repeat::Any)
                        .await?;
                }
                Name::Settings => self.put_fingerprint(Value::Null).await?,
            }
        }
        for (tenant, users) in users {
            let mut values = self.tenant(tenant);
            values.push(Value::Texts(users));
            self.repeat(statement::DELETE_MANY, values, Repeat::Any)
                .await?;
        }
        Ok(())
    }
}

impl<D: Database + Clone, E: Environment + Clone> PostgresLedger<D, E> {
    async fn put_bar(&self, tenant: &TenantId, is_barred: bool) -> Result<(), StoreError> {
        let mut values = self.tenant(tenant);
        values.push(Value::Bool(is_barred));
        self.repeat(statement::PUT_BAR, values, Repeat::Any).await?;
        Ok(())
    }

    async fn put_fingerprint(&self, json: Value) -> Result<(), StoreError> {
        let values = [text(&self.app), json];
        self.repeat(statement::PUT_FINGERPRINT, values, Repeat::Any)
            .await?;
        Ok(())
    }

    /// A row, as [`statement::PUT`] takes it.
    fn row(&self, kept: &Kept) -> Json {
        let user = &kept.user;
        let mut row = json!({
            "bucket": bucket(&self.app, &user.tenant),
            "tenant": user.tenant.as_str(),
            "usr": user.id.as_str(),
            "nonce": kept.nonce.as_str(),
            "format": kept.token.as_ref().map_or(VERSION, |token| token.format),
            "enrolled_at": kept.enrolled_at,
            "mark": self.mark(),
        });
        if let (Some(token), Some(row)) = (&kept.token, row.as_object_mut()) {
            let (state, number) = numbers(token.state);
            row.extend([
                ("record".into(), STANDARD.encode(&token.record).into()),
                ("generation".into(), capped(token.generation).into()),
                ("write".into(), token.write.as_str().into()),
                ("key_version".into(), token.key_version.as_str().into()),
                ("state".into(), state.into()),
                ("state_number".into(), number.into()),
                ("due_at".into(), capped(token.due_at).into()),
            ]);
        }
        row
    }
}

/// What a `bigint` can hold.
fn capped(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A state's columns.
fn numbers(state: State) -> (i16, i32) {
    match answer::of_state(state) {
        (Value::Int2(state), Value::Int4(number)) => (state, number),
        _ => (4, 0),
    }
}

fn tenant(text: &str) -> Result<TenantId, StoreError> {
    TenantId::parse(text).ok_or_else(unexpected)
}

fn version(row: Row) -> Result<Item, StoreError> {
    let mut row = Columns::of(row);
    let tenant = tenant(&row.text()?)?;
    let version = KeyVersion::parse(&row.text()?).ok_or_else(unexpected)?;
    Ok(Item::Version(tenant, version, row.number_or_null()?))
}

/// A row of [`statement::PAGE`].
fn enrolment(row: Row) -> Result<Item, StoreError> {
    let mut row = Columns::of(row);
    let (tenant, id) = (tenant(&row.text()?)?, row.text()?);
    let id = StorageId::parse(&id).ok_or_else(unexpected)?;
    let user = User { tenant, id };
    let (nonce, format, enrolled_at) = (row.text()?, row.number()?, row.number()?);
    let (record, write, key_version) = (
        row.bytes_or_null()?,
        row.text_or_null()?,
        row.text_or_null()?,
    );
    let token = match record {
        None => None,
        Some(record) => {
            let (state, due_at) = (row.state()?, row.number()?);
            // What a newer version wrote may have other names.
            let write = write.as_deref().and_then(Nonce::parse);
            let key_version = key_version.as_deref().and_then(KeyVersion::parse);
            let (Some(write), Some(key_version)) = (write, key_version) else {
                return Ok(Item::NotReadable(user));
            };
            Some(Token::of(
                record,
                Some(Scheduled {
                    write,
                    key_version,
                    state,
                    due_at,
                }),
            ))
        }
    };
    let format_known = token.as_ref().map_or(VERSION, |token| token.format);
    let Some(nonce) = Nonce::parse(&nonce).filter(|_| format <= format_known.into()) else {
        return Ok(Item::NotReadable(user));
    };
    Ok(Item::Enrolment(Box::new(Kept {
        user,
        nonce,
        enrolled_at,
        token,
        is_lost: false,
    })))
}
