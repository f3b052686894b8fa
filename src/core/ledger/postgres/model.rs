//! Tests only: what the statements do, in maps, for suites and simulations that go through many more histories than a server
//! could. That it does the same as PostgreSQL is a test of `real`: both are asked everything.

mod whole;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::ledger::postgres::database::{Row, Value};
use crate::ledger::postgres::{schema, statement};
use crate::ledger::record::Record;

/// The tables.
#[derive(Clone, Default)]
pub(crate) struct Tables {
    /// By app and tenant.
    tenants: BTreeMap<(String, String), Tenant>,
    enrolments: BTreeMap<(String, String, String), Enrolment>,
    /// By app, tenant and version: the bucket, and since when it is not used.
    key_versions: BTreeMap<(String, String, String), (i16, Option<i64>)>,
    /// By app and bucket: when it was counted, and the numbers.
    counts: BTreeMap<(String, i16), (i64, String)>,
    apps: BTreeMap<String, (Value, Value)>,
}

#[derive(Clone, Copy, Default)]
struct Tenant {
    is_barred: bool,
    removals: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Enrolment {
    bucket: i16,
    nonce: String,
    mark: i64,
    removed_at: Option<i64>,
    enrolled_at: i64,
    format: i32,
    pub(crate) token: Option<Token>,
    leased_until: i64,
    lease: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) record: Vec<u8>,
    generation: i64,
    write: String,
    key_version: String,
    state: i16,
    number: i32,
    due_at: i64,
}

/// What a count tells apart: tenant, state and key version.
type Group = (String, Option<i16>, Option<String>);

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

    fn mark(&mut self) -> Option<i64> {
        match self.value() {
            Value::Int8(number) => Some(number),
            Value::Null => None,
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
            statement::FIND => {
                let (_, place) = given.user();
                let Some(row) = self.present(&place) else {
                    return Vec::new();
                };
                let token = row.token.as_ref();
                let record = token.map_or(Value::Null, |token| Value::Bytes(token.record.clone()));
                vec![vec![
                    Value::Text(row.nonce.clone()),
                    Value::Int8(row.enrolled_at),
                    record,
                    row.write(),
                ]]
            }
            statement::LOOK => {
                let (_, place) = given.user();
                let Some(row) = self.enrolments.get(&place) else {
                    return Vec::new();
                };
                let nonce = row
                    .removed_at
                    .map_or_else(|| Value::Text(row.nonce.clone()), |_| Value::Null);
                vec![vec![nonce, row.write(), Value::Int8(row.mark)]]
            }
            statement::SEE => {
                let (_, place) = given.user();
                let tenant = (place.0.clone(), place.1.clone());
                let Some(tenant) = self.tenants.get(&tenant) else {
                    return Vec::new();
                };
                let row = self.enrolments.get(&place);
                let is_enrolled = row.is_some_and(|row| row.removed_at.is_none());
                vec![vec![
                    Value::Bool(tenant.is_barred),
                    Value::Int8(tenant.removals),
                    row.map_or(Value::Null, |row| Value::Int8(row.mark)),
                    row.map_or(Value::Null, |row| Value::Int4(row.format)),
                    Value::Bool(is_enrolled),
                ]]
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
                let (bucket, place) = given.user();
                let (nonce, old_generation, old_write) = (given.text(), given.int8(), given.text());
                let (record, format) = (given.bytes(), given.int4());
                let token = given.rest_of_token(record);
                let (lease, now) = (given.int8(), given.int8());
                self.note(bucket, &place, &token.key_version);
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
            statement::EXPIRE => {
                let (_, place) = given.user();
                let (nonce, write) = (given.text(), given.text());
                let row = self.enrolments.get_mut(&place);
                let Some(row) = row.filter(|row| row.is(&nonce, &write)) else {
                    return Vec::new();
                };
                (row.token, row.leased_until, row.lease) = (None, 0, 0);
                vec![vec![Value::Bool(true)]]
            }
            statement::REMOVE_TOKEN => {
                let (_, place) = given.user();
                let (mark, seen) = (given.int8(), given.mark());
                let row = self.enrolments.get_mut(&place);
                let Some(row) = row.filter(|row| Some(row.mark) == seen) else {
                    return Vec::new();
                };
                (row.token, row.leased_until, row.lease) = (None, 0, 0);
                row.mark = mark;
                vec![vec![Value::Bool(true)]]
            }
            statement::REMOVE => {
                let (bucket, place) = given.user();
                let (mark, seen) = (given.int8(), given.mark());
                if self.enrolments.get(&place).map(|row| row.mark) != seen {
                    return Vec::new();
                }
                let row = Enrolment {
                    bucket,
                    nonce: String::new(),
                    mark,
                    removed_at: Some(now),
                    enrolled_at: 0,
                    format: 0,
                    token: None,
                    leased_until: 0,
                    lease: 0,
                };
                self.enrolments.insert(place, row);
                vec![vec![Value::Bool(true)]]
            }
            statement::FORGET => {
                let app = given.text();
                self.enrolments.retain(|(of, ..), row| {
                    *of != app || row.removed_at.is_none_or(|at| at >= now - 3600)
                });
                Vec::new()
            }
            statement::CLAIM_DUE | statement::CLAIM_OUTDATED => {
                self.claim(sql == statement::CLAIM_DUE, &mut given, now, shuffle)
            }
            statement::GIVE_BACK => {
                let (_, (app, tenant)) = given.tenant();
                let lease = given.int8();
                let all = self.enrolments.iter_mut();
                let of = all.filter(|((a, t, _), _)| (a, t) == (&app, &tenant));
                of.for_each(|(_, row)| row.give_up(lease, true));
                Vec::new()
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
                let (buckets, app) = (given.texts(), given.text());
                self.outlook(&buckets, &app, given.int8(), given.int8())
            }
            statement::TEND => {
                let (bucket, app) = (given.int2(), given.text());
                let (now, long_ago) = (given.int8(), given.int8());
                let used: BTreeSet<_> = self.used().collect();
                let is_here = |of: &(String, String, String), at: i16| of.0 == app && at == bucket;
                self.key_versions.retain(|version, (at, since)| {
                    let is_forgotten = since.is_some_and(|since| since <= long_ago);
                    !is_here(version, *at) || used.contains(version) || !is_forgotten
                });
                for (version, (at, since)) in &mut self.key_versions {
                    if is_here(version, *at) {
                        *since = (!used.contains(version)).then(|| since.unwrap_or(now));
                    }
                }
                Vec::new()
            }
            statement::BARRED => {
                let app = given.text();
                let barred = self.tenants.iter().filter(|(_, tenant)| tenant.is_barred);
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
                        .filter_map(|((of, tenant, version), (_, since))| {
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
                Some(tenant) => {
                    tenant.is_barred = true;
                    tenant.removals += 1;
                    vec![vec![Value::Bool(true)]]
                }
                None => Vec::new(),
            },
            statement::PICK => {
                let (_, tenant) = given.tenant();
                let (most, among) = (usize::try_from(given.int8()).unwrap(), given.texts());
                let Some(Tenant { is_barred, .. }) = self.tenants.get(&tenant) else {
                    return Vec::new();
                };
                let of = self.of_tenant(&tenant).map(|(user, _)| user);
                let of = of.filter(|user| among.is_empty() || among.contains(*user));
                let row = |user| vec![Value::Bool(*is_barred), user];
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
                    self.tenants[&tenant].is_barred && self.enrolments.remove(&place).is_some()
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
                    && let Some(tenant) = self.tenants.get_mut(&tenant)
                {
                    tenant.is_barred = false;
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
            other => match self.run_on_all(other, &mut given) {
                Some(rows) => rows,
                None => panic!("no statement of this ledger: {other}"),
            },
        }
    }

    /// What there is of a user of an app without a prefix.
    pub(crate) fn enrolment(&self, tenant: &str, user: &str) -> Option<&Enrolment> {
        let place = (String::new(), tenant.to_owned(), user.to_owned());
        self.present(&place)
    }

    pub(crate) fn barred(&self) -> impl Iterator<Item = &str> {
        let barred = self.tenants.iter().filter(|(_, tenant)| tenant.is_barred);
        barred.map(|((_, tenant), _)| tenant.as_str())
    }

    /// Loses what sweeps and settings have left.
    pub(crate) fn forget_apps(&mut self) {
        self.apps.clear();
    }

    /// All that is stored.
    pub(crate) fn texts(&self) -> Vec<String> {
        let text = |(place, row): (&(String, String, String), &Enrolment)| {
            let record = row
                .token
                .as_ref()
                .map(|token| String::from_utf8_lossy(&token.record));
            format!("{place:?} {row:?} {record:?}")
        };
        let kept = self
            .apps
            .values()
            .map(|(state, fingerprint)| match (state, fingerprint) {
                (Value::Bytes(state), _) => String::from_utf8_lossy(state).into_owned(),
                _ => String::new(),
            });
        let counts = self.counts.values().map(|(_, counts)| counts.clone());
        self.enrolments
            .iter()
            .map(text)
            .chain(kept)
            .chain(counts)
            .collect()
    }

    /// The parameters of a replacement that has read what there is now.
    pub(crate) fn as_read_now(&self, values: &[Value]) -> Vec<Value> {
        let mut values = values.to_vec();
        let (_, place) = Parameters(values.iter()).user();
        if let Some(row) = self.enrolments.get(&place)
            && let Some(token) = &row.token
        {
            values[4] = Value::Text(row.nonce.clone());
            values[5] = Value::Int8(token.generation);
            values[6] = Value::Text(token.write.clone());
        }
        values
    }

    fn present(&self, place: &(String, String, String)) -> Option<&Enrolment> {
        let row = self.enrolments.get(place);
        row.filter(|row| row.removed_at.is_none())
    }

    fn of_tenant(&self, tenant: &(String, String)) -> impl Iterator<Item = (&String, &Enrolment)> {
        let rows = self.enrolments.iter();
        rows.filter(|((app, of, _), row)| {
            (app, of) == (&tenant.0, &tenant.1) && row.removed_at.is_none()
        })
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

    fn note(&mut self, bucket: i16, place: &(String, String, String), key_version: &str) {
        let version = (place.0.clone(), place.1.clone(), key_version.to_owned());
        self.key_versions.entry(version).or_insert((bucket, None));
    }

    fn enrol(&mut self, given: &mut Parameters<'_>) -> Vec<Row> {
        let (bucket, place) = given.user();
        let (nonce, format, enrolled_at) = (given.text(), given.int4(), given.int8());
        let record = given.bytes();
        let token = given.rest_of_token(record);
        let (mark, removals, seen) = (given.int8(), given.int8(), given.mark());
        let tenant = (place.0.clone(), place.1.clone());
        let is_open = |tenant: &Tenant| !tenant.is_barred && tenant.removals == removals;
        if !self.tenants.get(&tenant).is_some_and(is_open) {
            return Vec::new();
        }
        self.note(bucket, &place, &token.key_version);
        if self.enrolments.get(&place).map(|row| row.mark) != seen {
            return Vec::new();
        }
        let row = Enrolment {
            bucket,
            nonce,
            mark,
            removed_at: None,
            enrolled_at,
            format,
            token: Some(token),
            leased_until: 0,
            lease: 0,
        };
        self.enrolments.insert(place, row);
        vec![vec![Value::Bool(true)]]
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
        let mut groups: BTreeMap<Group, [u64; 5]> = BTreeMap::new();
        for ((of, tenant, _), row) in &self.enrolments {
            if of != app || row.bucket != bucket || row.removed_at.is_some() {
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

    fn outlook(&self, buckets: &[String], app: &str, now: i64, latest: i64) -> Vec<Row> {
        let mut tenants: BTreeMap<&String, (i64, Option<i64>)> = BTreeMap::new();
        for ((of, tenant, _), row) in &self.enrolments {
            if of == app
                && buckets.contains(&row.bucket.to_string())
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
    /// Whether the columns are those of the record.
    pub(crate) fn agrees_with(&self, record: Option<&Record>) -> bool {
        match (&self.token, record) {
            (Some(token), Some(record)) => {
                token.write == record.write.as_str()
                    && u64::try_from(token.generation) == Ok(record.generation)
                    && token.key_version == record.key_version.as_str()
            }
            (token, record) => token.is_none() && record.is_none(),
        }
    }

    fn is(&self, nonce: &str, write: &str) -> bool {
        let token = self.token.as_ref();
        self.nonce == nonce && token.is_some_and(|token| write.is_empty() || token.write == write)
    }

    fn write(&self) -> Value {
        let token = self.token.as_ref();
        token.map_or(Value::Null, |token| Value::Text(token.write.clone()))
    }

    fn give_up(&mut self, lease: i64, is_later: bool) {
        if self.lease == lease && is_later {
            self.leased_until = 0;
        }
    }
}
