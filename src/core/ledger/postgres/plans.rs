//! Tests only: how PostgreSQL goes about each statement with a million enrolments. Each finds what it is about by an index,
//! and reads no more than that.

use std::collections::BTreeMap;

use behalf_test_postgres::Postgres;
use postgres::{Client, NoTls};
use serde_json::Value as Json;

use crate::identity::{StorageId, TenantId, User, UserId};
use crate::ledger::postgres::answer::{int8, text};
use crate::ledger::postgres::database::Value;
use crate::ledger::postgres::{bucket, schema, statement};

/// Enrolments of the largest tenant, and of all.
const LARGEST: u32 = 100_000;
const ALL: u32 = 1_000_000;
const TENANTS: u32 = 1000;
const NOW: u64 = 1_000_000_000;

/// The server with its rows: a hundredth is due, a hundredth of each tenant is in each of the other states, and a thousandth
/// under an old key version.
fn filled() -> (Postgres, Client) {
    let postgres = Postgres::start().unwrap();
    for statement in schema::script(None).unwrap() {
        postgres.sql("postgres", &statement).unwrap();
    }
    let mut client = Client::connect(&postgres.superuser("postgres"), NoTls).unwrap();
    let numbers: Vec<i32> = (0..TENANTS.try_into().unwrap()).collect();
    let tenants: Vec<_> = (0..TENANTS)
        .map(|at| tenant(at).as_str().to_owned())
        .collect();
    let buckets: Vec<_> = (0..TENANTS).map(|at| bucket("", &tenant(at))).collect();
    client
        .execute(
            "CREATE TEMP TABLE known AS
             SELECT number, tenant, bucket FROM unnest($1::int4[], $2::text[], $3::int2[]) AS known (number, tenant, bucket)",
            &[&numbers, &tenants, &buckets],
        )
        .unwrap();
    client
        .batch_execute(&format!(
            r"
INSERT INTO behalf.app VALUES ('', '', NULL);
INSERT INTO behalf.tenant (bucket, app, tenant) SELECT bucket, '', tenant FROM known;
INSERT INTO behalf.counts (bucket, app) SELECT DISTINCT bucket, '' FROM known;
INSERT INTO behalf.key_version (bucket, app, tenant, key_version) SELECT bucket, '', tenant, version FROM known, (VALUES ('{OLD}'), ('{NEW}')) AS v (version);
INSERT INTO behalf.enrolment (bucket, app, tenant, usr, nonce, format, enrolled_at, record, generation, write, key_version,
  state, state_number, due_at, mark)
SELECT bucket, '', tenant, lpad(n::text, 32, '0'), 'nonce', 1, {NOW}, '\x7b7d', 1, n::text,
  CASE WHEN n % 1000 = 7 THEN '{OLD}' ELSE '{NEW}' END,
  CASE WHEN n % 100 < 5 THEN n % 100 ELSE 0 END, 1,
  {NOW} + CASE WHEN n % 100 = 50 THEN -n % 5000 ELSE n % 604800 + 1 END, n
FROM generate_series(0, {ALL} - 1) AS n JOIN known ON number = CASE WHEN n < {LARGEST} THEN 0 ELSE n % {TENANTS} END;
"
        ))
        .unwrap();
    client.batch_execute("VACUUM ANALYZE").unwrap();
    (postgres, client)
}

const OLD: &str = "11111111111111111111111111111111";
const NEW: &str = "22222222222222222222222222222222";

fn tenant(at: u32) -> TenantId {
    TenantId::parse(&format!("{at:08}-1111-1111-1111-111111111111")).unwrap()
}

fn user(at: u32) -> User {
    let id = StorageId::parse(&format!("{at:032}")).unwrap();
    let tenant = tenant(0);
    User { tenant, id }
}

/// The parameters of each statement, and the blocks of 8 KiB that it may touch.
fn calls() -> BTreeMap<&'static str, (Vec<Value>, u64)> {
    let of_tenant = || {
        vec![
            Value::Int2(bucket("", &tenant(0))),
            text(""),
            text(tenant(0).as_str()),
        ]
    };
    let with = |mut values: Vec<Value>, more: Vec<Value>| {
        values.extend(more);
        values
    };
    let of_user = |at: u32| with(of_tenant(), vec![text(user(at).id.as_str())]);
    let new_user = || {
        with(
            of_tenant(),
            vec![text(UserId::from_sealed("new").storage_id(None).as_str())],
        )
    };
    let record = |write: &str| {
        vec![
            Value::Bytes(vec![7; 2500]),
            Value::Int8(2),
            text(write),
            text(NEW),
            Value::Int2(0),
            Value::Int4(0),
            int8(NOW + 604_800),
        ]
    };
    let claim = || {
        let span = vec![int8(NOW), int8(NOW + 3_000_000), text(NEW), int8(64)];
        with(with(of_tenant(), span), vec![Value::Int8(7), int8(22)])
    };
    let of_bucket = || vec![Value::Int2(bucket("", &tenant(0))), text("")];
    let (nonce, app) = (|| text("nonce"), || vec![text("")]);
    let replaced = || {
        let mut record = record("new");
        record.insert(1, Value::Int4(1));
        let seen = vec![nonce(), Value::Int8(1), text("5")];
        with(
            with(with(of_user(5), seen), record),
            vec![Value::Int8(7), int8(NOW)],
        )
    };
    let rescheduled = vec![
        nonce(),
        text("5"),
        int8(NOW + 60),
        Value::Int2(1),
        Value::Int4(1),
        text(NEW),
        Value::Int8(7),
        int8(NOW),
    ];
    let enrolled = |user: Vec<Value>| {
        let head = vec![nonce(), Value::Int4(1), int8(NOW)];
        let seen = vec![Value::Int8(7), Value::Int8(0), Value::Null];
        with(with(with(user, head), record("new")), seen)
    };
    let marks = || vec![Value::Int8(7), Value::Int8(5)];
    let some = (0..500).map(|at| user(at).id.as_str().to_owned());
    let some = || Value::Texts(some.clone().collect());
    BTreeMap::from([
        ("SCHEMA", (vec![], 10)),
        ("FIND", (of_user(5), 10)),
        ("LOOK", (of_user(5), 10)),
        ("ENROL", (enrolled(new_user()), 100)),
        ("OPEN_TENANT", (of_tenant(), 20)),
        ("REPLACE", (replaced(), 100)),
        ("RESCHEDULE", (with(of_user(5), rescheduled), 60)),
        ("SEE", (of_user(5), 20)),
        ("EXPIRE", (with(of_user(5), vec![nonce(), text("5")]), 60)),
        ("REMOVE_TOKEN", (with(of_user(5), marks()), 60)),
        ("REMOVE", (with(of_user(5), marks()), 60)),
        ("FORGET", (app(), 20)),
        // A few for each of those that are handed out, and of those that the choice is among.
        ("CLAIM_DUE", (claim(), 5000)),
        ("CLAIM_OUTDATED", (claim(), 4000)),
        (
            "GIVE_BACK",
            (with(of_tenant(), vec![Value::Int8(7)]), 4_000),
        ),
        ("COUNTED", (app(), 20)),
        // A count goes through the index of a bucket.
        ("COUNT", (of_bucket(), 10_000)),
        (
            "OUTLOOK",
            (
                vec![
                    Value::Texts(
                        (0..8)
                            .map(|at| bucket("", &tenant(at)).to_string())
                            .collect(),
                    ),
                    text(""),
                    int8(NOW),
                    int8(NOW + 3_000_000),
                ],
                12_000,
            ),
        ),
        ("TEND", (with(of_bucket(), vec![int8(NOW), int8(0)]), 500)),
        ("BARRED", (app(), 10)),
        ("UNUSED", (vec![text(""), text("")], 10)),
        ("MUST_ACT", (with(of_tenant(), vec![int8(1000)]), 3000)),
        ("BAR", (of_tenant(), 20)),
        (
            "PICK",
            (
                with(of_tenant(), vec![int8(500), Value::Texts(vec![])]),
                600,
            ),
        ),
        ("REMOVE_MANY", (with(of_tenant(), vec![some()]), 10_000)),
        // It counts the users of the tenant.
        ("UNBAR", (of_tenant(), 6000)),
        ("APP", (app(), 10)),
        (
            "KEEP_APP",
            (vec![text(""), Value::Bytes(vec![7]), Value::Null], 20),
        ),
        (
            "PAGE",
            (
                with(
                    of_bucket(),
                    vec![
                        text(tenant(0).as_str()),
                        text(user(50_000).id.as_str()),
                        Value::Int8(200),
                    ],
                ),
                1000,
            ),
        ),
        ("VERSIONS", (of_bucket(), 100)),
        ("PUT", (vec![text(""), text(&put())], 10_000)),
        ("PUT_BAR", (with(of_tenant(), vec![Value::Bool(true)]), 20)),
        (
            "PUT_VERSION",
            (with(of_tenant(), vec![text(NEW), Value::Null]), 20),
        ),
        (
            "PUT_FINGERPRINT",
            (vec![text(""), Value::Bytes(vec![7])], 20),
        ),
        ("DELETE_MANY", (with(of_tenant(), vec![some()]), 10_000)),
        ("DELETE_VERSION", (with(of_tenant(), vec![text(OLD)]), 20)),
    ])
}

/// Enrolments of two hundred users, of whom one half is there already.
fn put() -> String {
    let row = |at: u32| {
        serde_json::json!({
            "bucket": bucket("", &tenant(0)), "tenant": tenant(0).as_str(), "nonce": "nonce", "format": 1,
            "usr": user(LARGEST - 100 + at).id.as_str().replacen('0', if at < 100 { "0" } else { "9" }, 1),
            "enrolled_at": NOW, "record": "e30=", "generation": 1, "write": "write", "key_version": NEW, "state": 0,
            "state_number": 0, "due_at": NOW, "mark": at,
        })
    };
    serde_json::json!((0..200).map(row).collect::<Vec<_>>()).to_string()
}

/// Scans of the tables that grow with users, and of those that grow with tenants.
fn scans(plan: &Json, found: &mut Vec<String>) {
    if plan["Node Type"] == "Seq Scan"
        && ["enrolment", "tenant", "key_version"].contains(&plan["Relation Name"].as_str().unwrap())
    {
        found.push(plan.to_string());
    }
    for part in plan["Plans"].as_array().into_iter().flatten() {
        scans(part, found);
    }
}

#[test]
fn every_statement_goes_by_an_index_at_a_million_enrolments() {
    let (_postgres, mut client) = filled();
    let mut calls = calls();
    let mut faults = Vec::new();
    for (name, sql) in statement::ALL {
        let (values, most) = calls.remove(name).unwrap();
        let values: Vec<_> = values
            .iter()
            .map(|value| value as &(dyn postgres::types::ToSql + Sync))
            .collect();
        let mut transaction = client.transaction().unwrap();
        let explain = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}");
        let row = transaction.query_one(&explain, &values).unwrap();
        transaction.rollback().unwrap();
        let explained: Json = row.get::<_, postgres::types::Json<Json>>(0).0;
        let plan = &explained[0]["Plan"];
        let mut scanned = Vec::new();
        scans(plan, &mut scanned);
        let blocks =
            ["Shared Hit Blocks", "Shared Read Blocks"].map(|kind| plan[kind].as_u64().unwrap());
        let (blocks, time) = (blocks.iter().sum::<u64>(), &explained[0]["Execution Time"]);
        println!(
            "{name}: {blocks} blocks, {time} ms, of {} rows",
            plan["Actual Rows"]
        );
        if !scanned.is_empty() || blocks > most {
            faults.push(format!("{name}: {blocks} blocks, scans {scanned:?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
