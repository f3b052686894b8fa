use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use pollster::block_on;

use super::*;
use crate::deadline::Deadline;
use crate::error::Reason;
use crate::identity::{Fingerprint, UserId};
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::layout::{Layout, Marker};
use crate::ledger::key_value::store::{Page, Store};
use crate::ledger::postgres::PostgresLedger;
use crate::ledger::postgres::database::{Database, Failure, Row, Value};
use crate::ledger::postgres::model::Tables;
use crate::ledger::record::Status;
use crate::ledger::schedule::{DAILY, Horizon};
use crate::ledger::{Change, Edit, Enrolled, Ledger, LedgerError};
use crate::port::Clock as _;
use crate::simulation::world::{Shared, World};
use crate::vault::samples::TENANT;

const PREFIX: &str = "app1.";
const OTHER_TENANT: &str = "77777777-7777-7777-7777-777777777777";

/// When whoever carries something over dies: after that nothing of it is done any more.
#[derive(Clone, Default)]
struct Death {
    steps_left: Rc<Cell<Option<u32>>>,
    /// Whether the last step was made, of which no answer came.
    is_last_made: Rc<Cell<bool>>,
}

impl Death {
    fn after(steps: u32, is_last_made: bool) -> Self {
        Self {
            steps_left: Rc::new(Some(steps).into()),
            is_last_made: Rc::new(is_last_made.into()),
        }
    }

    fn step<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        match self.steps_left.get() {
            None => Some(act()),
            Some(0) => {
                if self.is_last_made.replace(false) {
                    act();
                }
                None
            }
            Some(left) => {
                self.steps_left.set(Some(left - 1));
                Some(act())
            }
        }
    }
}

type Rows = Rc<RefCell<BTreeMap<String, Vec<u8>>>>;

#[derive(Clone, Default)]
struct Keys {
    rows: Rows,
    death: Death,
}

impl Keys {
    fn step<T>(
        &self,
        act: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> T,
    ) -> Result<T, StoreError> {
        let made = self.death.step(|| act(&mut self.rows.borrow_mut()));
        made.ok_or_else(|| StoreError("dead".into()))
    }
}

impl Store for Keys {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.step(|rows| rows.get(key).cloned())
    }

    async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.step(|rows| drop(rows.insert(key.into(), value.into())))
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.step(|rows| drop(rows.remove(key)))
    }

    async fn list_keys(&self, _: Option<&str>) -> Result<Page, StoreError> {
        let keys = self.step(|rows| rows.keys().cloned().collect())?;
        Ok(Page { keys, cursor: None })
    }
}

#[derive(Clone, Default)]
struct Modelled {
    tables: Rc<RefCell<Tables>>,
    death: Death,
}

impl Database for Modelled {
    async fn run(&self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>, Failure> {
        let act = || self.tables.borrow_mut().run(sql, values, 0, &mut |_| {});
        let made = self.death.step(act);
        made.ok_or_else(|| Failure::Refused("dead".into()))
    }
}

type OnKeys = KeyValueLedger<Keys, Shared>;
type OnTables<D> = PostgresLedger<D, Shared>;

fn on_keys(world: &Shared, keys: &Keys) -> OnKeys {
    KeyValueLedger::new(keys.clone(), world.clone()).under(PREFIX)
}

fn on_tables<D: Database + Clone>(world: &Shared, tables: &D) -> OnTables<D> {
    PostgresLedger::new(tables.clone(), world.clone()).under(PREFIX)
}

fn user(tenant: &str, name: &str) -> User {
    User {
        tenant: TenantId::parse(tenant).unwrap(),
        id: UserId::from_sealed(name).storage_id(None),
    }
}

fn version(number: u8) -> KeyVersion {
    KeyVersion::parse(&format!("{number:032x}")).unwrap()
}

/// The users that [`fill`] enrols, and whose it is to be read in a way of its own.
const USERS: [&str; 9] = [
    "active",
    "without a token",
    "failed",
    "quarantined",
    "damaged",
    "newer",
    "unmarked",
    "lost",
    "twice marked",
];

fn users() -> Vec<User> {
    let names = USERS.iter().copied().chain(["of another tenant"]);
    let tenant = |name: &str| {
        if name == "of another tenant" {
            OTHER_TENANT
        } else {
            TENANT
        }
    };
    names.map(|name| user(tenant(name), name)).collect()
}

async fn enrol(
    ledger: &impl Ledger,
    world: &Shared,
    user: &User,
    version_of: u8,
    status: Status,
) -> (Nonce, Record) {
    let nonce = Nonce::for_enrolment(world.now(), world);
    let record = Record {
        tenant: user.tenant.clone(),
        sealed: format!("sealed for {}", user.id.as_str()),
        key_version: version(version_of),
        scope: "scope".into(),
        enrolled_by: None,
        status,
        generation: 3,
        write: Nonce::for_write(world),
        enrolled_at: world.now(),
        refreshed_at: world.now(),
        due_at: world.now() + DAILY,
    };
    ledger.enrol(user, &nonce, &record).await.unwrap();
    (nonce, record)
}

/// Enrolments in every state that there is, some as writers that died have left them, and what is beside them.
fn fill(world: &Shared, rows: &Rows) {
    let keys = Keys {
        rows: rows.clone(),
        ..Keys::default()
    };
    let ledger = on_keys(world, &keys);
    let layout = Layout::new(PREFIX);
    block_on(async {
        for user in users() {
            world.advance(1);
            let name = USERS
                .iter()
                .find(|name| user.id == self::user(TENANT, name).id);
            let status = match name {
                Some(&"quarantined") => Status::Quarantined(Reason::default()),
                _ => Status::Active,
            };
            let (nonce, record) = enrol(&ledger, world, &user, 1, status).await;
            let record_key = layout.record(&user.id, &nonce);
            let rows = || rows.borrow_mut();
            let is_marker = |key: &String| {
                let marker = layout.read_marker(key);
                marker.is_some_and(|marker| marker.nonce == nonce)
            };
            match name.copied() {
                Some("without a token") => ledger.remove_token(&user).await.unwrap(),
                Some("failed") => {
                    let edit = Edit::Reschedule {
                        time: world.now() + 60,
                        state: State::Active { failures: 3 },
                        key_version: version(1),
                    };
                    let until = Deadline::within(world, Duration::from_secs(9));
                    let survey = ledger.survey(Horizon::new(world.now() + 2 * DAILY, true), until);
                    let survey = survey.await.unwrap();
                    let kind = crate::ledger::Kind::Due(&record.key_version);
                    let claimed = ledger
                        .claim(&survey, &user.tenant, kind, 100, 0)
                        .await
                        .unwrap();
                    let visit = claimed
                        .visits
                        .into_iter()
                        .find(|visit| visit.user == user)
                        .unwrap();
                    let change = Change {
                        user: user.clone(),
                        nonce,
                        claims: visit.claims,
                        edit,
                    };
                    ledger.settle(&[&change]).await.remove(0).unwrap().unwrap();
                }
                Some("damaged") => drop(rows().insert(record_key, b"{\"v\":1,".to_vec())),
                Some("newer") => {
                    let newer = format!(
                        r#"{{"v":7,"key_version":"{}","new":[]}}"#,
                        version(4).as_str()
                    );
                    rows().insert(record_key, newer.into_bytes());
                    rows().retain(|key, _| !is_marker(key));
                }
                Some("unmarked") => rows().retain(|key, _| !is_marker(key)),
                Some("lost") => drop(rows().remove(&record_key)),
                Some("twice marked") => {
                    let marker = Marker {
                        time: 5,
                        write: Nonce::for_write(world),
                        state: State::Active { failures: 9 },
                        ..Marker::of(&user, &nonce, &record)
                    };
                    rows().insert(layout.marker(&marker), Vec::new());
                }
                _ => {}
            }
        }
        let fingerprint =
            Fingerprint::parse(Fingerprint::SETTINGS.map(|_| "0123456789abcdef")).unwrap();
        ledger.keep_fingerprint(&fingerprint).await.unwrap();
        ledger.keep_sweep_state(b"advice").await.unwrap();
    });
    let mut rows = rows.borrow_mut();
    let tenant = TenantId::parse(OTHER_TENANT).unwrap();
    rows.insert(layout.bar(&tenant), Vec::new());
    rows.insert(layout.version(&tenant, &version(1), 0), Vec::new());
    rows.insert(layout.version(&tenant, &version(9), 77), Vec::new());
    // Of an enrolment that was overtaken, and of another app.
    let nonce = Nonce::for_enrolment(1, world);
    rows.insert(
        layout.record(&user(TENANT, "active").id, &nonce),
        b"litter".to_vec(),
    );
    rows.insert(
        format!("app2.usr.{}", "x".repeat(32)),
        b"another app's".to_vec(),
    );
}

fn carry<F: Holder, T: Holder>(from: &F, to: &T, replace: bool) -> Result<Report, TransferError> {
    block_on(carry_over(from, to, replace, &mut |_| {}))
}

/// All that a ledger holds, by name.
fn contents(holder: &impl Holder) -> BTreeMap<Name, Option<Hash>> {
    block_on(Contents::read(holder, Contents::add_to_carry, &mut |_| {}))
        .unwrap()
        .1
        .items
}

/// What users have of it.
fn found(ledger: &impl Ledger) -> Vec<Result<Enrolled, LedgerError>> {
    let find = |user: &User| block_on(ledger.find(user));
    users().iter().map(find).collect()
}

/// The keys of an app with what is in them, without what is advice and what is litter. Of markers the write is left out.
fn essence(rows: &Rows) -> BTreeMap<String, Vec<u8>> {
    let layout = Layout::new(PREFIX);
    let mut essence = BTreeMap::new();
    for (key, value) in rows.borrow().iter() {
        if !key.starts_with(PREFIX) || key.contains("sweep.") || value == b"litter" {
            continue;
        }
        let name = match layout.read_marker(key) {
            None => key.clone(),
            Some(_) => key.rsplit_once('.').unwrap().0.to_owned(),
        };
        essence.insert(name, value.clone());
    }
    essence
}

/// A world, a ledger on keys that is filled, and an empty one on tables.
fn scene() -> (Shared, Keys, Modelled) {
    let (world, keys) = (World::new(), Keys::default());
    fill(&world, &keys.rows);
    (world, keys, Modelled::default())
}

/// What [`carry_over`] reports of what [`fill`] has filled.
fn check(report: &Report) {
    assert!(report.is_complete(), "{report:?}");
    let expected = Numbers {
        enrolments: 10,
        without_token: 2,
        bars: 1,
        // Of the first tenant the one that is used and that of the newer record; of the other one the one that is and one
        // that is not.
        versions: 4,
    };
    assert_eq!(report.from, expected);
    assert_eq!(report.copied + report.same, 10 + 1 + 4 + 1);
    assert_eq!((report.unreadable.total, report.left.total), (2, 0));
}

#[test]
fn there_and_back_all_is_the_same() {
    let (world, keys, tables) = scene();
    let (first, middle) = (on_keys(&world, &keys), on_tables(&world, &tables));
    let report = carry(&first, &middle, false).unwrap();
    check(&report);
    assert_eq!((report.copied, report.lost.total), (16, 1));
    assert_eq!(contents(&first), contents(&middle));
    // Each user is as before; only that a record is lost cannot be told any more from that its token was removed.
    let (mut before, after) = (found(&first), found(&middle));
    assert_eq!(
        before[7].as_ref().unwrap().record,
        Err(LedgerError::RecordLost)
    );
    before[7].as_mut().unwrap().record = Err(LedgerError::NoRefreshToken);
    assert_eq!(before, after);
    assert_eq!(
        after[4].as_ref().unwrap().record,
        Err(LedgerError::RecordDamaged)
    );
    assert_eq!(
        after[5].as_ref().unwrap().record,
        Err(LedgerError::RecordTooNew)
    );
    let barred = enrol_result(&middle, &world, &user(OTHER_TENANT, "new"));
    assert_eq!(barred, Err(LedgerError::TenantRemoved));
    let newer = enrol_result(&middle, &world, &user(TENANT, "newer"));
    assert_eq!(newer, Err(LedgerError::RecordTooNew));
    let json = |ledger: &OnKeys| block_on(ledger.fingerprint());
    assert_eq!(block_on(middle.fingerprint()), json(&first));

    let back = Keys::default();
    let last = on_keys(&world, &back);
    let report = carry(&middle, &last, false).unwrap();
    check(&report);
    let (mut expected, there) = (essence(&keys.rows), essence(&back.rows));
    let layout = Layout::new(PREFIX);
    // What was missing or too much at first is put right: the schedule has everybody once, and who has lost a record has none.
    let is_put_right = |key: &String| {
        let key = format!("{key}.x");
        let marker = layout.read_marker(&key);
        marker.is_some_and(|marker| {
            ["unmarked", "newer", "damaged", "twice marked", "lost"]
                .iter()
                .any(|name| marker.user.id == user(TENANT, name).id)
        })
    };
    let right = |essence: &BTreeMap<String, Vec<u8>>| {
        let mut essence = essence.clone();
        essence.retain(|key, _| !is_put_right(key) && !key.contains(".ver."));
        essence.retain(|key, _| !key.starts_with("app1.ver.") && !key.starts_with("app1.off."));
        essence
    };
    assert_eq!(right(&expected), right(&there));
    expected.retain(|key, _| key.starts_with("app1.off."));
    assert!(expected.keys().all(|key| there.contains_key(key)));
    let markers = there.keys().filter(|key| key.starts_with("app1.due."));
    assert_eq!(markers.count(), 8);
    // Of two markers the record's own is the one.
    let twice = block_on(last.find(&users()[8])).unwrap();
    let own = Marker::of(&users()[8], &twice.nonce, &twice.record.unwrap());
    assert!(back.rows.borrow().contains_key(&layout.marker(&own)));
    assert!(there.contains_key(&layout.version(
        &TenantId::parse(OTHER_TENANT).unwrap(),
        &version(9),
        77
    )));
    assert_eq!(contents(&last), contents(&middle));
    assert!(!back.rows.borrow().keys().any(|key| key.contains("sweep")));
}

fn enrol_result(ledger: &impl Ledger, world: &Shared, user: &User) -> Result<bool, LedgerError> {
    let nonce = Nonce::for_enrolment(world.now(), world);
    let record = Record {
        tenant: user.tenant.clone(),
        sealed: "sealed".into(),
        key_version: version(1),
        scope: "scope".into(),
        enrolled_by: None,
        status: Status::Active,
        generation: 1,
        write: Nonce::for_write(world),
        enrolled_at: 0,
        refreshed_at: 0,
        due_at: 0,
    };
    block_on(ledger.enrol(user, &nonce, &record))
}

#[test]
fn whoever_is_interrupted_begins_again_and_it_goes_on() {
    let (world, keys, tables) = scene();
    let (on_key_values, on_database) = (on_keys(&world, &keys), on_tables(&world, &tables));
    carry(&on_key_values, &on_database, false).unwrap();
    let expected = contents(&on_database);
    let (mut to_tables, mut to_keys) = (0, 0);
    for is_last_made in [false, true] {
        for steps in 0.. {
            let mut half = Modelled {
                death: Death::after(steps, is_last_made),
                ..Modelled::default()
            };
            let died = carry(&on_key_values, &on_tables(&world, &half), false).is_err();
            half.death = Death::default();
            let half = on_tables(&world, &half);
            let report = carry(&on_key_values, &half, false).unwrap();
            check(&report);
            assert_eq!(contents(&half), expected, "{steps}");
            to_tables += 1;
            if !died {
                break;
            }
        }
        for steps in 0.. {
            let mut half = Keys {
                death: Death::after(steps, is_last_made),
                ..Keys::default()
            };
            let died = carry(&on_database, &on_keys(&world, &half), false).is_err();
            half.death = Death::default();
            let ledger = on_keys(&world, &half);
            // Nobody has half of an enrolment at any time.
            for found in found(&ledger) {
                let record = found.map_or(Ok(()), |found| found.record.map(drop));
                assert_ne!(record, Err(LedgerError::RecordLost), "{steps}");
            }
            let report = carry(&on_database, &ledger, false).unwrap();
            check(&report);
            assert_eq!(contents(&ledger), expected, "{steps}");
            to_keys += 1;
            if !died {
                break;
            }
        }
    }
    assert!(to_tables > 200 && to_keys > 100, "{to_tables} {to_keys}");
}

/// Of a ledger that was carried to the other side some time ago, and used there: who has been removed since, was refreshed, has
/// enrolled, or has no token any more.
fn use_it(ledger: &impl Ledger, world: &Shared) {
    block_on(async {
        let users = users();
        ledger.remove(&users[0]).await.unwrap();
        ledger.remove_token(&users[3]).await.unwrap();
        let found = ledger.find(&users[9]).await.unwrap();
        let old = found.record.unwrap();
        let new = Record {
            generation: old.generation + 1,
            write: Nonce::for_write(world),
            key_version: version(2),
            due_at: old.due_at + DAILY,
            ..old.clone()
        };
        let change = Change {
            user: users[9].clone(),
            nonce: found.nonce,
            claims: Vec::new(),
            edit: Edit::Replace {
                old: old.into(),
                new: new.into(),
            },
        };
        ledger.settle(&[&change]).await.remove(0).unwrap().unwrap();
        world.advance(100);
        enrol(ledger, world, &users[1], 2, Status::Active).await;
        enrol(ledger, world, &user(TENANT, "new"), 2, Status::Active).await;
        let other = Fingerprint::parse(Fingerprint::SETTINGS.map(|_| "fedcba9876543210")).unwrap();
        ledger.keep_fingerprint(&other).await.unwrap();
    });
}

/// Carries a ledger over to a database, and back and over again after it was used there and here.
pub(crate) fn go_to_and_fro<D: Database + Clone>(world: &Shared, tables: &D) {
    let keys = Keys::default();
    fill(world, &keys.rows);
    let (first, middle) = (on_keys(world, &keys), on_tables(world, tables));
    check(&carry(&first, &middle, false).unwrap());
    use_it(&middle, world);
    assert!(carry(&middle, &first, false).is_err());
    assert!(carry(&middle, &first, true).unwrap().is_complete());
    assert_eq!(contents(&first), contents(&middle));
    assert_eq!(found(&first), found(&middle));
    block_on(async {
        let users = users();
        enrol(&first, world, &users[0], 3, Status::Active).await;
        let removal = first.remove_token(&users[8]);
        removal.await.unwrap();
        Ledger::remove(&first, &users[4]).await.unwrap();
    });
    let layout = Layout::new(PREFIX);
    let mut rows = keys.rows.borrow_mut();
    let other = TenantId::parse(OTHER_TENANT).unwrap();
    rows.retain(|key, _| !key.contains(".ver.") && *key != layout.bar(&other));
    rows.retain(|key, _| *key != layout.fingerprint());
    drop(rows);
    let report = carry(&first, &middle, true).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert!(report.removed >= 3, "{report:?}");
    assert_eq!(contents(&first), contents(&middle));
    assert_eq!(found(&first), found(&middle));
    // It is used as any.
    assert_eq!(
        enrol_result(&middle, world, &user(OTHER_TENANT, "new")),
        Ok(true)
    );
    let until = Deadline::within(world, Duration::from_secs(9));
    let horizon = Horizon::new(world.now() + 3 * DAILY, true);
    let survey = block_on(middle.survey(horizon, until)).unwrap();
    assert_eq!(survey.tenants.len(), 2);
}

#[test]
fn what_is_used_on_both_sides_goes_to_and_fro() {
    go_to_and_fro(&World::new(), &Modelled::default());
}

#[test]
fn what_is_there_already_is_replaced_by_request_alone() {
    let (world, keys, tables) = scene();
    let (first, middle) = (on_keys(&world, &keys), on_tables(&world, &tables));
    carry(&first, &middle, false).unwrap();
    use_it(&middle, &world);
    let before = keys.rows.borrow().clone();
    let refused = carry(&middle, &first, false);
    let Err(TransferError::Occupied { other, extra }) = refused else {
        panic!("{refused:?}");
    };
    // Without a token, refreshed, enrolled again, a record that is lost here; and the fingerprint.
    assert_eq!((other.total, extra.total), (5, 1), "{other:?} {extra:?}");
    let gone = format!("user {} of {TENANT}", user(TENANT, "active").id.as_str());
    assert_eq!(extra.some, [gone]);
    assert_eq!(*keys.rows.borrow(), before);
    // At every step whoever did it may die.
    for steps in 0.. {
        let mut half = Keys {
            rows: Rc::new(before.clone().into()),
            death: Death::after(steps, steps % 2 == 0),
        };
        let died = carry(&middle, &on_keys(&world, &half), true).is_err();
        half.death = Death::default();
        let ledger = on_keys(&world, &half);
        for (at, found) in found(&ledger).into_iter().enumerate() {
            let record = found.map_or(Ok(()), |found| found.record.map(drop));
            assert!(
                at == 7 || record != Err(LedgerError::RecordLost),
                "{steps} {at}"
            );
        }
        let report = carry(&middle, &ledger, true).unwrap();
        assert!(report.is_complete(), "{steps}: {report:?}");
        assert_eq!(contents(&ledger), contents(&middle), "{steps}");
        assert_eq!(found(&ledger), found(&middle), "{steps}");
        if !died {
            assert!(steps > 50, "{steps}");
            // Of another app nothing goes, and of these users nothing is left over.
            assert!(
                half.rows
                    .borrow()
                    .keys()
                    .any(|key| key.starts_with("app2."))
            );
            let gone = user(TENANT, "active").id;
            let left = half.rows.borrow();
            assert!(!left.keys().any(|key| key.contains(gone.as_str())));
            let token = user(TENANT, "quarantined").id;
            let of_user: Vec<_> = left
                .keys()
                .filter(|key| key.contains(token.as_str()))
                .collect();
            assert_eq!(of_user.len(), 2, "{of_user:?}");
            break;
        }
    }

    // The other way round.
    let (world, keys, tables) = scene();
    let (first, middle) = (on_keys(&world, &keys), on_tables(&world, &tables));
    carry(&first, &middle, false).unwrap();
    use_it(&first, &world);
    let refused = carry(&first, &middle, false);
    let Err(TransferError::Occupied { other, extra }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((other.total, extra.total), (4, 1), "{other:?} {extra:?}");
    assert_ne!(contents(&first), contents(&middle));
    let report = carry(&first, &middle, true).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.removed, 1);
    assert_eq!(contents(&first), contents(&middle));
    assert_eq!(
        block_on(middle.find(&users()[0])),
        Err(LedgerError::NotEnrolled)
    );
}

#[test]
fn whose_enrolment_cannot_be_named_is_told_and_left_alone() {
    let (world, keys, tables) = scene();
    let head = Layout::new(PREFIX).head(&users()[0]);
    let newer = Layout::new(PREFIX).head(&users()[3]);
    keys.rows.borrow_mut().insert(head, b"{".to_vec());
    keys.rows.borrow_mut().insert(newer, br#"{"v":3}"#.to_vec());
    let before = keys.rows.borrow().clone();
    let (first, middle) = (on_keys(&world, &keys), on_tables(&world, &tables));
    let report = carry(&first, &middle, false).unwrap();
    assert_eq!((report.left.total, report.different.total), (2, 0));
    assert!(!report.is_complete());
    assert_eq!(
        block_on(middle.find(&users()[0])),
        Err(LedgerError::NotEnrolled)
    );
    assert_eq!(*keys.rows.borrow(), before);
    // Removed where they are, the rest is all.
    block_on(first.remove(&users()[0])).unwrap();
    block_on(first.remove(&users()[3])).unwrap();
    assert!(carry(&first, &middle, false).unwrap().is_complete());
}

#[test]
fn whoever_uses_one_of_them_meanwhile_is_noticed() {
    let (world, keys, tables) = scene();
    let (first, middle) = (on_keys(&world, &keys), on_tables(&world, &tables));
    let mut is_used = false;
    let mut progress = |progress: Progress| {
        if matches!(progress, Progress::Copied(10.., _)) && !std::mem::replace(&mut is_used, true) {
            block_on(first.remove(&users()[0])).unwrap();
            enrol_result(&middle, &world, &user(TENANT, "new")).unwrap();
        }
    };
    let report = block_on(carry_over(&first, &middle, false, &mut progress)).unwrap();
    assert!(!report.is_complete());
    assert_eq!(report.different.total, 2, "{report:?}");
}

#[test]
fn more_than_the_other_side_can_hold_is_refused_at_once() {
    struct Crowd;

    impl Holder for Crowd {
        type Reading = u32;

        fn most(&self) -> Option<u64> {
            None
        }

        async fn begin(&self) -> Result<u32, StoreError> {
            Ok(0)
        }

        async fn next(&self, reading: &mut u32) -> Result<Option<Vec<Item>>, StoreError> {
            *reading += 1;
            let kept = |at: u32| {
                Item::Enrolment(Box::new(Kept {
                    user: user(TENANT, &format!("{reading}/{at}")),
                    nonce: Nonce::parse("n").unwrap(),
                    enrolled_at: 0,
                    token: None,
                    is_lost: false,
                }))
            };
            Ok((*reading <= 351).then(|| (0..1000).map(kept).collect()))
        }

        async fn put(&self, _: &u32, _: &[Item]) -> Result<(), StoreError> {
            Ok(())
        }

        async fn discard(&self, _: &u32, _: &[Name]) -> Result<(), StoreError> {
            Ok(())
        }
    }

    let (world, keys) = (World::new(), Keys::default());
    let refused = carry(&Crowd, &on_keys(&world, &keys), true);
    let Err(TransferError::TooMany(351_000, most)) = refused else {
        panic!("{refused:?}");
    };
    assert!((300_000..351_000).contains(&most), "{most}");
    assert!(keys.rows.borrow().is_empty());
}

#[test]
fn nothing_takes_the_place_of_something_never() {
    let (world, keys, tables) = scene();
    let before = keys.rows.borrow().clone();
    let (first, middle) = (on_keys(&world, &keys), on_tables(&world, &tables));
    assert_eq!(
        carry(&middle, &first, true),
        Err(TransferError::Nothing(10))
    );
    assert_eq!(*keys.rows.borrow(), before);
}
