//! What the statements do that read and write all of a ledger at once.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value as Json;

use super::{Enrolment, Parameters, Tables, Token};
use crate::ledger::postgres::database::{Row, Value};
use crate::ledger::postgres::statement;

impl Tables {
    /// Runs a statement; none: it is none of these.
    pub(super) fn run_on_all(&mut self, sql: &str, given: &mut Parameters<'_>) -> Option<Vec<Row>> {
        match sql {
            statement::PAGE => {
                let (bucket, app) = (given.int2(), given.text());
                let after = (given.text(), given.text());
                let most = usize::try_from(given.int8()).unwrap();
                let rows = self.enrolments.iter().filter(|((of, tenant, user), row)| {
                    *of == app
                        && row.bucket == bucket
                        && (tenant, user) > (&after.0, &after.1)
                        && row.removed_at.is_none()
                });
                let row = |((_, tenant, user), row): (&(String, String, String), &Enrolment)| {
                    let text = |text: &String| Value::Text(text.clone());
                    let mut columns = vec![
                        text(tenant),
                        text(user),
                        text(&row.nonce),
                        Value::Int4(row.format),
                        Value::Int8(row.enrolled_at),
                    ];
                    match &row.token {
                        None => columns.extend(vec![Value::Null; 6]),
                        Some(token) => columns.extend([
                            Value::Bytes(token.record.clone()),
                            text(&token.write),
                            text(&token.key_version),
                            Value::Int2(token.state),
                            Value::Int4(token.number),
                            Value::Int8(token.due_at),
                        ]),
                    }
                    columns
                };
                return Some(rows.take(most).map(row).collect());
            }
            statement::VERSIONS => {
                let (bucket, app) = (given.int2(), given.text());
                let of = self.key_versions.iter();
                let of = of.filter(|((of, ..), (at, _))| *of == app && *at == bucket);
                let row = |((_, tenant, version), (_, since)): (
                    &(String, String, String),
                    &(i16, Option<i64>),
                )| {
                    let since = since.map_or(Value::Null, Value::Int8);
                    vec![
                        Value::Text(tenant.clone()),
                        Value::Text(version.clone()),
                        since,
                    ]
                };
                return Some(of.map(row).collect());
            }
            statement::PUT => {
                let app = given.text();
                let rows: Vec<Json> = serde_json::from_str(&given.text()).unwrap();
                for row in rows {
                    self.put(&app, &row);
                }
            }
            statement::PUT_BAR => {
                let (_, tenant) = given.tenant();
                let is_barred = given.value() == Value::Bool(true);
                if let Some(tenant) = self.tenants.get_mut(&tenant) {
                    tenant.is_barred = is_barred;
                }
            }
            statement::PUT_VERSION => {
                let (bucket, (app, tenant)) = given.tenant();
                let version = (app, tenant, given.text());
                self.key_versions.insert(version, (bucket, given.mark()));
            }
            statement::PUT_FINGERPRINT => {
                let (app, fingerprint) = (given.text(), given.value());
                let none = (Value::Null, Value::Null);
                self.apps.entry(app).or_insert(none).1 = fingerprint;
            }
            statement::DELETE_MANY => {
                let (_, (app, tenant)) = given.tenant();
                for user in given.texts() {
                    let place = (app.clone(), tenant.clone(), user);
                    self.enrolments.remove(&place);
                }
            }
            statement::DELETE_VERSION => {
                let (_, (app, tenant)) = given.tenant();
                self.key_versions.remove(&(app, tenant, given.text()));
            }
            _ => return None,
        }
        Some(Vec::new())
    }

    fn put(&mut self, app: &str, row: &Json) {
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        let number = |name: &str| row[name].as_i64().unwrap();
        let bucket = number("bucket").try_into().unwrap();
        let place = (app.to_owned(), text("tenant"), text("usr"));
        let tenant = (app.to_owned(), place.1.clone());
        self.tenants.entry(tenant).or_default();
        let never = || (0, "[]".to_owned());
        self.counts
            .entry((app.to_owned(), bucket))
            .or_insert_with(never);
        let token = row["record"].as_str().map(|record| Token {
            record: STANDARD.decode(record).unwrap(),
            generation: number("generation"),
            write: text("write"),
            key_version: text("key_version"),
            state: number("state").try_into().unwrap(),
            number: number("state_number").try_into().unwrap(),
            due_at: number("due_at"),
        });
        if let Some(token) = &token {
            let version = (app.to_owned(), place.1.clone(), token.key_version.clone());
            self.key_versions.insert(version, (bucket, None));
        }
        let row = Enrolment {
            bucket,
            nonce: text("nonce"),
            mark: number("mark"),
            removed_at: None,
            enrolled_at: number("enrolled_at"),
            format: number("format").try_into().unwrap(),
            token,
            leased_until: 0,
            lease: 0,
        };
        self.enrolments.insert(place, row);
    }
}
