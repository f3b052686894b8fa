//! Tests only: what the statements do, in maps, for suites and simulations that go through many more histories than a server
//! could. That it does the same as PostgreSQL is a test of `real`: both are asked everything.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::ledger::postgres::database::{Row, Value};
use crate::ledger::postgres::{schema, statement};

/// The tables.
#[derive(Clone, Default)]
pub(crate) struct Tables {
    /// By app and tenant: whether it is barred.
    tenants: BTreeMap<(String, String), bool>,
    pub(crate) enrolments: BTreeMap<(String, String, String), Enrolment>,
    /// By app, tenant and version: since when it is not used.
    key_versions: BTreeMap<(String, String, String), Option<i64>>,
    /// By app and bucket: when it was counted, and the numbers.
    counts: BTreeMap<(String, i16), (i64, String)>,
    apps: BTreeMap<String, (Value, Value)>,
}

#[derive(Clone)]
pub(crate) struct Enrolment {
    bucket: i16,
    pub(crate) nonce: String,
    first_nonce: String,
    enrolled_at: i64,
    format: i32,
    pub(crate) token: Option<Token>,
    leased_until: i64,
    lease: i64,
}

#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) record: Vec<u8>,
    generation: i64,
    write: String,
    key_version: String,
    state: i16,
    number: i32,
    due_at: i64,
}

/// The parameters of a statement, read one after another.
struct Parameters<'a>(std::slice::Iter<'a, Value>);

impl Parameters<'_> {
    fn value(&mut self) -> Value {
        self.0.next().unwrap().clone()
    }

    fn text(&mut self) -> String {
        match self.value() {
            Value::Text(text) => text,
            other => panic!("{other:?}"),
        }
    }

    fn int2(&mut self) -> i16 {
        match self.value() {
            Value::Int2(number) => number,
            other => panic!("{other:?}"),
        }
    }

    fn int4(&mut self) -> i32 {
        match self.value() {
            Value::Int4(number) => number,
            other => panic!("{other:?}"),
        }
    }

    fn int8(&mut self) -> i64 {
        match self.value() {
            Value::Int8(number) => number,
            other => panic!("{other:?}"),
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        match self.value() {
            Value::Bytes(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    fn texts(&mut self) -> Vec<String> {
        match self.value() {
            Value::Texts(texts) => texts,
            other => panic!("{other:?}"),
        }
    }

    fn tenant(&mut self) -> (i16, (String, String)) {
        (self.int2(), (self.text(), self.text()))
    }

    fn user(&mut self) -> (i16, (String, String, String)) {
        (self.int2(), (self.text(), self.text(), self.text()))
    }

    fn rest_of_token(&mut self, record: Vec<u8>) -> Token {
        Token {
            record,
            generation: self.int8(),
            write: self.text(),
            key_version: self.text(),
            state: self.int2(),
            number: self.int4(),
            due_at: self.int8(),
        }
    }
}

impl Tables {
    /// Runs a statement at this time of the database's clock; what is chosen by chance is put in order by `shuffle`.
    pub(crate) fn run(
        &mut self,
        sql: &str,
        values: &[Value],
        now: i64,
        shuffle: &mut dyn FnMut(&mut Vec<String>),
    ) -> Vec<Row> {
        let mut given = Parameters(values.iter());
        match sql {
            statement::SCHEMA => {
                let version = i32::try_from(schema::VERSION).unwrap();
                vec![vec![Value::Int4(version), Value::Bool(true)]]
            }
            statement::FIND | statement::LOOK => {
                let (_, place) = given.user();
                let Some(row) = self.enrolments.get(&place) else {
                    return Vec::new();
                };
                let text = |text: &String| Value::Text(text.clone());
                let token = row.token.as_ref();
                let write = token.map_or(Value::Null, |token| text(&token.write));
                let record = token.map_or(Value::Null, |token| Value::Bytes(token.record.clone()));
                vec![if sql == statement::FIND {
                    vec![
                        text(&row.nonce),
                        Value::Int8(row.enrolled_at),
                        record,
                        write,
                    ]
                } else {
                    vec![text(&row.nonce), text(&row.first_nonce), write]
                }]
            }
            statement::ENROL => self.enrol(&mut given),
            statement::OPEN_TENANT => {
                let (bucket, tenant) = given.tenant();
                let app = tenant.0.clone();
                self.tenants.entry(tenant).or_default();
                let never = || (0, "[]".to_owned());
                self.counts.entry((app, bucket)).or_insert_with(never);
                Vec::new()
            }
            statement::REPLACE => {
                let (_, place) = given.user();
                let (nonce, old_generation, old_write) = (given.text(), given.int8(), given.text());
                let (record, format) = (given.bytes(), given.int4());
                let token = given.rest_of_token(record);
                let (lease, now) = (given.int8(), given.int8());
                self.note(&place, &token.key_version);
                let Some(row) = self.enrolments.get_mut(&place) else {
                    return Vec::new();
                };
                let is_as_read = row.nonce == nonce
                    && row.token.as_ref().is_some_and(|old| {
                        old.generation == old_generation
                            && (token.generation != old_generation || old.write == old_write)
                    });
                if !is_as_read {
                    return Vec::new();
                }
                row.give_up(lease, token.due_at > now);
                (row.token, row.format) = (Some(token), format);
                vec![vec![Value::Bool(true)]]
            }
            statement::RESCHEDULE => {
                let (_, place) = given.user();
                let (nonce, write) = (given.text(), given.text());
                let (due_at, state, number) = (given.int8(), given.int2(), given.int4());
                let (key_version, lease, now) = (given.text(), given.int8(), given.int8());
                let row = self.enrolments.get_mut(&place);
                let Some(row) = row.filter(|row| row.is(&nonce, &write)) else {
                    return Vec::new();
                };
                row.give_up(lease, due_at > now);
                let Some(token) = &mut row.token else {
                    return Vec::new();
                };
                (token.due_at, token.state, token.number) = (due_at, state, number);
                token.key_version = key_version;
                vec![vec![Value::Bool(true)]]
            }
            statement::REMOVE_TOKEN => {
                let (_, place) = given.user();
                let (nonce, write) = (given.text(), given.text());
                let row = self.enrolments.get_mut(&place);
                let Some(row) = row.filter(|row| row.is(&nonce, &write)) else {
                    return Vec::new();
                };
                (row.token, row.leased_until, row.lease) = (None, 0, 0);
                vec![vec![Value::Bool(true)]]
            }
            statement::REMOVE => {
                let (_, place) = given.user();
                let nonce = given.text();
                if self
                    .enrolments
                    .get(&place)
                    .is_some_and(|row| row.nonce == nonce)
                {
                    self.enrolments.remove(&place);
                }
                Vec::new()
            }
            statement::CLAIM_DUE | statement::CLAIM_OUTDATED => {
                self.claim(sql == statement::CLAIM_DUE, &mut given, now, shuffle)
            }
            statement::COUNTED => {
                let app = given.text();
                let of_app = self.counts.iter().filter(|((of, _), _)| *of == app);
                let row = |((_, bucket), (at, counts)): (&(String, i16), &(i64, String))| {
                    let is_old = *at <= now - 60;
                    let counts = Value::Text(counts.clone());
                    vec![
                        Value::Int2(*bucket),
                        Value::Int8(*at),
                        counts,
                        Value::Bool(is_old),
                    ]
                };
                of_app.map(row).collect()
            }
            statement::COUNT => {
                let place = (given.int2(), given.text());
                self.count(place.0, &place.1, now)
            }
            statement::OUTLOOK => {
                let (bucket, app) = (given.int2(), given.text());
                self.outlook(bucket, &app, given.int8(), given.int8())
            }
            statement::TEND => {
                let (_, app, now, long_ago) =
                    (given.int2(), given.text(), given.int8(), given.int8());
                let used: BTreeSet<_> = self.used().collect();
                self.key_versions.retain(|version, since| {
                    let is_forgotten = since.is_some_and(|since| since <= long_ago);
                    version.0 != app || used.contains(version) || !is_forgotten
                });
                for (version, since) in &mut self.key_versions {
                    if version.0 == app {
                        *since = (!used.contains(version)).then(|| since.unwrap_or(now));
                    }
                }
                Vec::new()
            }
            statement::BARRED => {
                let app = given.text();
                let barred = self.tenants.iter().filter(|(_, barred)| **barred);
                let barred = barred.filter(|((of, _), _)| *of == app);
                barred
                    .map(|((_, tenant), _)| vec![Value::Text(tenant.clone())])
                    .collect()
            }
            statement::UNUSED => {
                let (app, wanted) = (given.text(), given.text());
                let unused =
                    self.key_versions
                        .iter()
                        .filter_map(|((of, tenant, version), since)| {
                            let is_asked_for =
                                *of == app && (wanted.is_empty() || *tenant == wanted);
                            let since = Value::Int8((*since).filter(|_| is_asked_for)?);
                            Some(vec![
                                Value::Text(tenant.clone()),
                                Value::Text(version.clone()),
                                since,
                            ])
                        });
                unused.collect()
            }
            statement::MUST_ACT => {
                let (_, tenant) = given.tenant();
                let most = usize::try_from(given.int8()).unwrap();
                let must_act = |row: &Enrolment| {
                    row.token
                        .as_ref()
                        .is_some_and(|token| [2, 3].contains(&token.state))
                };
                let of = self.of_tenant(&tenant).filter(|(_, row)| must_act(row));
                of.take(most)
                    .map(|(user, _)| vec![Value::Text(user.clone())])
                    .collect()
            }
            statement::BAR => match self.tenants.get_mut(&given.tenant().1) {
                Some(barred) => {
                    *barred = true;
                    vec![vec![Value::Bool(true)]]
                }
                None => Vec::new(),
            },
            statement::PICK => {
                let (_, tenant) = given.tenant();
                let (most, among) = (usize::try_from(given.int8()).unwrap(), given.texts());
                let Some(barred) = self.tenants.get(&tenant) else {
                    return Vec::new();
                };
                let of = self.of_tenant(&tenant).map(|(user, _)| user);
                let of = of.filter(|user| among.is_empty() || among.contains(*user));
                let row = |user| vec![Value::Bool(*barred), user];
                let rows = of.take(most).map(|user| row(Value::Text(user.clone())));
                let rows: Vec<_> = rows.collect();
                if rows.is_empty() {
                    vec![row(Value::Null)]
                } else {
                    rows
                }
            }
            statement::REMOVE_MANY => {
                let (_, tenant) = given.tenant();
                let mut users = given.texts();
                users.retain(|user| {
                    let place = (tenant.0.clone(), tenant.1.clone(), user.clone());
                    self.tenants.get(&tenant) == Some(&true)
                        && self.enrolments.remove(&place).is_some()
                });
                users
                    .into_iter()
                    .map(|user| vec![Value::Text(user)])
                    .collect()
            }
            statement::UNBAR => {
                let (_, tenant) = given.tenant();
                let left = i64::try_from(self.of_tenant(&tenant).count()).unwrap();
                if left == 0
                    && let Some(barred) = self.tenants.get_mut(&tenant)
                {
                    *barred = false;
                }
                vec![vec![Value::Int8(left)]]
            }
            statement::APP => {
                let kept = self.apps.get(&given.text()).cloned();
                kept.into_iter()
                    .map(|(state, fingerprint)| vec![state, fingerprint])
                    .collect()
            }
            statement::KEEP_APP => {
                let kept = self
                    .apps
                    .entry(given.text())
                    .or_insert((Value::Null, Value::Null));
                for (kept, given) in [(&mut kept.0, given.value()), (&mut kept.1, given.value())] {
                    if given != Value::Null {
                        *kept = given;
                    }
                }
                Vec::new()
            }
            other => panic!("no statement of this ledger: {other}"),
        }
    }

    fn of_tenant(&self, tenant: &(String, String)) -> impl Iterator<Item = (&String, &Enrolment)> {
        let rows = self.enrolments.iter();
        rows.filter(|((app, of, _), _)| (app, of) == (&tenant.0, &tenant.1))
            .map(|((_, _, user), row)| (user, row))
    }

    fn used(&self) -> impl Iterator<Item = (String, String, String)> {
        self.enrolments
            .iter()
            .filter_map(|((app, tenant, _), row)| {
                let version = &row.token.as_ref()?.key_version;
                Some((app.clone(), tenant.clone(), version.clone()))
            })
    }

    fn note(&mut self, place: &(String, String, String), key_version: &str) {
        let version = (place.0.clone(), place.1.clone(), key_version.to_owned());
        self.key_versions.entry(version).or_default();
    }

    fn enrol(&mut self, given: &mut Parameters<'_>) -> Vec<Row> {
        let (bucket, place) = given.user();
        let (nonce, format, enrolled_at) = (given.text(), given.int4(), given.int8());
        let record = given.bytes();
        let token = given.rest_of_token(record);
        let tenant = (place.0.clone(), place.1.clone());
        if self.tenants.get(&tenant) != Some(&false) {
            return vec![vec![Value::Bool(false), Value::Null]];
        }
        self.note(&place, &token.key_version);
        let former = self.enrolments.get(&place);
        if former.is_some_and(|former| former.format > format) {
            return vec![vec![Value::Bool(true), Value::Null]];
        }
        let first_nonce = former.map_or(&nonce, |former| &former.first_nonce).clone();
        let is_first = Value::Bool(first_nonce == nonce);
        let row = Enrolment {
            bucket,
            nonce,
            first_nonce,
            enrolled_at,
            format,
            token: Some(token),
            leased_until: 0,
            lease: 0,
        };
        self.enrolments.insert(place, row);
        vec![vec![Value::Bool(true), is_first]]
    }

    fn claim(
        &mut self,
        is_due_wanted: bool,
        given: &mut Parameters<'_>,
        clock: i64,
        shuffle: &mut dyn FnMut(&mut Vec<String>),
    ) -> Vec<Row> {
        let (_, (app, tenant)) = given.tenant();
        let both = (app.clone(), tenant.clone());
        let (now, latest, newest) = (given.int8(), given.int8(), given.text());
        let (most, lease, seconds) = (given.int8(), given.int8(), given.int8());
        let is_due = |token: &Token| token.due_at <= now || token.due_at >= latest;
        let is_wanted = |token: &Token| {
            if is_due_wanted {
                is_due(token) && (token.key_version == newest || token.state == 4)
            } else {
                token.key_version != newest && token.state < 4
            }
        };
        let of = self.of_tenant(&both);
        let mut near: Vec<_> = of
            .filter(|(_, row)| {
                row.leased_until <= clock && row.token.as_ref().is_some_and(is_wanted)
            })
            .map(|(user, _)| user.clone())
            .collect();
        let place = |user: &String| (app.clone(), tenant.clone(), user.clone());
        let count = i64::try_from(near.len()).unwrap();
        shuffle(&mut near);
        near.sort_by_key(|user| {
            let token = self.enrolments[&place(user)].token.as_ref().unwrap();
            (!is_due_wanted && !is_due(token), token.state != 0)
        });
        near.truncate(usize::try_from(most).unwrap());
        let of = self.of_tenant(&both);
        let others = of.filter(|(_, row)| row.leased_until > clock && row.lease != lease);
        let first = others.map(|(_, row)| row.leased_until - clock).min();
        let begin = vec![Value::Int8(count), first.map_or(Value::Null, Value::Int8)];
        let claimed = near.iter().map(|user| {
            let row = self.enrolments.get_mut(&place(user)).unwrap();
            (row.leased_until, row.lease) = (clock + seconds, lease);
            let (text, token) = (
                |text: &String| Value::Text(text.clone()),
                row.token.as_ref().unwrap(),
            );
            let texts = [user, &row.nonce, &token.write, &token.key_version].map(text);
            let numbers = [
                Value::Int2(token.state),
                Value::Int4(token.number),
                Value::Int8(token.due_at),
            ];
            [begin.clone(), texts.to_vec(), numbers.to_vec()].concat()
        });
        let mut rows: Vec<_> = claimed.collect();
        if rows.is_empty() {
            rows.push([begin, vec![Value::Null; 7]].concat());
        }
        rows
    }

    fn count(&mut self, bucket: i16, app: &str, now: i64) -> Vec<Row> {
        let place = (app.to_owned(), bucket);
        if self.counts.get(&place).is_none_or(|(at, _)| *at > now - 60) {
            return Vec::new();
        }
        type Group = (String, Option<i16>, Option<String>);
        let mut groups: BTreeMap<Group, [u64; 5]> = BTreeMap::new();
        for ((of, tenant, _), row) in &self.enrolments {
            if of != app || row.bucket != bucket {
                continue;
            }
            let token = row.token.as_ref();
            let state = token.map(|token| token.state);
            let version = token.map(|token| token.key_version.clone());
            let numbers = groups.entry((tenant.clone(), state, version)).or_default();
            numbers[0] += 1;
            for (number, wait) in numbers[1..].iter_mut().zip([0, 3600, 86_400, 604_800]) {
                *number += u64::from(token.is_some_and(|token| token.due_at <= now + wait));
            }
        }
        let groups = groups
            .into_iter()
            .map(|((tenant, state, version), [a, b, c, d, e])| {
                json!([tenant, state, version, a, b, c, d, e])
            });
        let counts = json!(groups.collect::<Vec<_>>()).to_string();
        self.counts.insert(place, (now, counts.clone()));
        vec![vec![Value::Int8(now), Value::Text(counts)]]
    }

    fn outlook(&self, bucket: i16, app: &str, now: i64, latest: i64) -> Vec<Row> {
        let mut tenants: BTreeMap<&String, (i64, Option<i64>)> = BTreeMap::new();
        for ((of, tenant, _), row) in &self.enrolments {
            if of == app
                && row.bucket == bucket
                && let Some(token) = &row.token
            {
                let (due, next) = tenants.entry(tenant).or_default();
                if token.due_at <= now || token.due_at >= latest {
                    *due += 1;
                } else {
                    *next = Some(next.unwrap_or(i64::MAX).min(token.due_at));
                }
            }
        }
        let row = |(tenant, (due, next)): (&String, (i64, Option<i64>))| {
            let next = next.map_or(Value::Null, Value::Int8);
            vec![Value::Text(tenant.clone()), Value::Int8(due), next]
        };
        tenants.into_iter().map(row).collect()
    }
}

impl Enrolment {
    fn is(&self, nonce: &str, write: &str) -> bool {
        let token = self.token.as_ref();
        self.nonce == nonce && token.is_some_and(|token| write.is_empty() || token.write == write)
    }

    fn give_up(&mut self, lease: i64, is_later: bool) {
        if self.lease == lease && is_later {
            self.leased_until = 0;
        }
    }
}
