//! Whether an implementation keeps what [`Ledger`] promises: [`cases`] one call after another, with an error at every step
//! of each; [`histories`] of many actors at once. An implementation says only how a new, empty one is made.

mod cases;
mod histories;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::identity::{KeyVersion, Nonce, TenantId, User, UserId};
use crate::ledger::record::{Record, Status};
use crate::ledger::schedule::{Horizon, LATEST_AHEAD};
use crate::ledger::{
    Change, Edit, Enrolled, Kind, Ledger, LedgerError, Remaining, StoreError, Survey, Visit,
};
use crate::simulation::world::{Shared, World, turn};
use crate::vault::samples::TENANT;

/// Histories that an implementation goes through.
const HISTORIES: u64 = 2000;
const OTHER_TENANT: &str = "77777777-7777-7777-7777-777777777777";
/// Seconds in which a sweep has to end.
const LEASE: u64 = 30;

/// How a new and empty ledger is made, whose steps go through this trouble.
type Make<L> = dyn Fn(Rc<Trouble>, Shared) -> L;

/// All that an implementation does wrong.
pub(crate) fn faults<L: Ledger>(make: &Make<L>) -> Vec<String> {
    faults_of(make, HISTORIES)
}

/// All that an implementation does wrong in so many histories.
pub(crate) fn faults_of<L: Ledger>(make: &Make<L>, histories: u64) -> Vec<String> {
    let mut faults = cases::faults(make);
    faults.extend((0..histories).find_map(|seed| histories::fault(seed, make)));
    faults
}

/// What may happen at each step of an implementation: another actor goes on, or it fails, before it was made or after.
#[derive(Default)]
pub(crate) struct Trouble {
    /// Steps until one fails; none: none does.
    fails_after: Cell<Option<u32>>,
    /// Whether what fails has happened.
    has_happened: Cell<bool>,
    /// How many of a thousand steps fail by chance.
    per_mille: Cell<u64>,
    random: Cell<u64>,
}

impl Trouble {
    /// Makes a step, which nothing interrupts.
    pub(crate) async fn step<T>(&self, act: impl FnOnce() -> T) -> Result<T, StoreError> {
        turn().await;
        let fails = match self.fails_after.get() {
            Some(left) => {
                self.fails_after.set(left.checked_sub(1));
                left == 0
            }
            None => self.below(1000) < self.per_mille.get(),
        };
        if !fails {
            let made = act();
            turn().await;
            return Ok(made);
        }
        if self.has_happened.get() || self.per_mille.get() > 0 && self.below(2) == 0 {
            act();
        }
        Err(StoreError("injected".into()))
    }

    fn with_seed(seed: u64) -> Rc<Self> {
        let trouble = Self::default();
        trouble.random.set(seed.wrapping_mul(2).wrapping_add(1));
        Rc::new(trouble)
    }

    fn below(&self, bound: u64) -> u64 {
        // SplitMix64 (https://prng.di.unimi.it/splitmix64.c).
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// A ledger, and what it stands in.
struct Scene<L> {
    ledger: L,
    world: Shared,
    trouble: Rc<Trouble>,
}

impl<L: Ledger> Scene<L> {
    fn new(make: &Make<L>) -> Self {
        Self::with(Trouble::with_seed(0), make)
    }

    fn with(trouble: Rc<Trouble>, make: &Make<L>) -> Self {
        let world = World::new();
        Self {
            ledger: make(trouble.clone(), world.clone()),
            world,
            trouble,
        }
    }

    fn now(&self) -> u64 {
        self.world.now.get()
    }

    fn nonce(&self) -> Nonce {
        Nonce::for_enrolment(self.now(), &self.world)
    }

    /// A record of a user, under the key version with this number, that is due after so many seconds.
    fn record(&self, user: &User, version: u8, wait: u64) -> Record {
        Record {
            tenant: user.tenant.clone(),
            sealed: "sealed".into(),
            key_version: key_version(version),
            scope: "scope".into(),
            enrolled_by: None,
            status: Status::Active,
            generation: 1,
            write: Nonce::for_write(&self.world),
            enrolled_at: self.now(),
            refreshed_at: self.now(),
            due_at: self.now() + wait,
        }
    }

    /// The next refresh token of a record, due after so many seconds.
    fn successor(&self, old: &Record, wait: u64) -> Record {
        Record {
            generation: old.generation + 1,
            write: Nonce::for_write(&self.world),
            due_at: self.now() + wait,
            ..old.clone()
        }
    }

    /// The record under another key version.
    fn resealed(&self, old: &Record, version: u8) -> Record {
        Record {
            key_version: key_version(version),
            write: Nonce::for_write(&self.world),
            ..old.clone()
        }
    }

    /// Enrols a user with a record that is due after so many seconds.
    async fn enrolled(&self, user: &User, wait: u64) -> (Nonce, Record) {
        let (nonce, record) = (self.nonce(), self.record(user, 1, wait));
        self.ledger.enrol(user, &nonce, &record).await.unwrap();
        (nonce, record)
    }

    /// What is due after so many seconds, as a sweep sees it then.
    async fn survey(&self, wait: u64) -> Survey<L::Found> {
        let horizon = Horizon::new(self.now() + wait, true);
        let until = Deadline::within(&self.world, Duration::from_secs(9));
        self.ledger.survey(horizon, until).await.unwrap()
    }

    async fn claim(
        &self,
        survey: &Survey<L::Found>,
        tenant: &TenantId,
        kind: Kind<'_>,
        most: usize,
    ) -> (Vec<Visit<L::Claim>>, u64) {
        let until = self.now() + LEASE;
        let claimed = self.ledger.claim(survey, tenant, kind, most, until);
        let claimed = claimed.await.unwrap();
        (claimed.visits, claimed.left)
    }

    /// What a sweep is handed out of all that is due after so many seconds, under key version 1.
    async fn due(&self, wait: u64) -> Vec<Visit<L::Claim>> {
        let newest = key_version(1);
        let survey = self.survey(wait).await;
        let mut due = Vec::new();
        for tenant in survey.tenants.keys() {
            let (visits, left) = (self.claim(&survey, tenant, Kind::Due(&newest), 100)).await;
            assert_eq!(left, 0);
            due.extend(visits);
        }
        due
    }

    /// A sweep that begins when the leases of those before are over.
    fn next_sweep(&self) {
        self.world.advance(LEASE + 1);
    }

    /// Removes users of a tenant for so many seconds, and tells who is gone.
    async fn remove_tenant(
        &self,
        tenant: &TenantId,
        seconds: u64,
    ) -> (Result<Remaining, LedgerError>, Vec<User>) {
        let until = Deadline::within(&self.world, Duration::from_secs(seconds));
        let mut removed = Vec::new();
        let mut tell = |user: &User| removed.push(user.clone());
        let removal = self.ledger.remove_tenant(tenant, until, &mut tell);
        (removal.await, removed)
    }

    /// Settles one change.
    async fn settle(&self, change: Change<L::Claim>) -> Result<bool, StoreError> {
        let mut settled = self.ledger.settle(&[&change]).await;
        assert_eq!(settled.len(), 1);
        settled.remove(0).map(|claim| claim.is_some())
    }

    /// Everybody who can be refreshed has a time: they are claimed, sooner or later.
    async fn unclaimed(&self, users: &[User]) -> Vec<User> {
        let late = LATEST_AHEAD - 1;
        // What writers that died left behind is cleared, or mended, when it is old.
        self.world.advance(7 * 86_400);
        let survey = self.survey(0).await;
        let until = Deadline::within(&self.world, Duration::from_secs(9));
        self.ledger.tend(&survey, until).await.unwrap();
        let mut claimed = BTreeSet::new();
        for visit in self.due(late).await {
            claimed.insert((visit.user.id, visit.nonce));
        }
        let mut unclaimed = Vec::new();
        for user in users {
            let found = self.ledger.find(user).await;
            let active = found.is_ok_and(|found| {
                found.record.is_ok() && !claimed.contains(&(user.id.clone(), found.nonce))
            });
            if active {
                unclaimed.push(user.clone());
            }
        }
        unclaimed
    }
}

/// A change that a caller makes.
fn of_caller<C>(user: &User, nonce: &Nonce, old: &Record, new: &Record) -> Change<C> {
    Change {
        user: user.clone(),
        nonce: nonce.clone(),
        claims: Vec::new(),
        edit: Edit::Replace {
            old: Box::new(old.clone()),
            new: Box::new(new.clone()),
        },
    }
}

/// A change that a visit comes to.
fn of_visit<C: Clone>(visit: &Visit<C>, edit: Edit) -> Change<C> {
    Change {
        user: visit.user.clone(),
        nonce: visit.nonce.clone(),
        claims: visit.claims.clone(),
        edit,
    }
}

fn tenant(index: usize) -> TenantId {
    TenantId::parse([TENANT, OTHER_TENANT][index]).unwrap()
}

fn user(tenant_index: usize, name: &str) -> User {
    User {
        tenant: tenant(tenant_index),
        id: UserId::from_sealed(name).storage_id(None),
    }
}

fn key_version(number: u8) -> KeyVersion {
    KeyVersion::parse(&format!("{number:032x}")).unwrap()
}

/// What there is of a user.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum View {
    Absent,
    NoToken(Nonce),
    Has(Nonce),
}

impl View {
    /// As a ledger tells it.
    fn of(found: &Result<Enrolled, LedgerError>) -> Result<Self, LedgerError> {
        match found {
            Err(LedgerError::NotEnrolled) => Ok(Self::Absent),
            Err(error) => Err(error.clone()),
            Ok(found) => match &found.record {
                Ok(_) => Ok(Self::Has(found.nonce.clone())),
                Err(LedgerError::NoRefreshToken) => Ok(Self::NoToken(found.nonce.clone())),
                Err(error) => Err(error.clone()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;
    use crate::ledger::key_value::KeyValueLedger;
    use crate::ledger::key_value::store::{Page, Store};
    use crate::ledger::memory::{MemoryLedger, Mistake};
    use crate::ledger::postgres::PostgresLedger;
    use crate::ledger::postgres::database::{Database, Failure, Row, Value};
    use crate::ledger::postgres::model::Tables;
    use crate::port::Random as _;

    /// Key-value storage each step of which goes through trouble.
    #[derive(Clone)]
    struct Rows {
        rows: Rc<RefCell<BTreeMap<String, Vec<u8>>>>,
        trouble: Rc<Trouble>,
    }

    impl Store for Rows {
        async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
            let get = || self.rows.borrow().get(key).cloned();
            self.trouble.step(get).await
        }

        async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
            let set = || self.rows.borrow_mut().insert(key.into(), value.into());
            self.trouble.step(set).await.map(|_| ())
        }

        async fn delete(&self, key: &str) -> Result<(), StoreError> {
            let delete = || self.rows.borrow_mut().remove(key);
            self.trouble.step(delete).await.map(|_| ())
        }

        async fn list_keys(&self, _cursor: Option<&str>) -> Result<Page, StoreError> {
            let list = || self.rows.borrow().keys().cloned().collect();
            self.trouble
                .step(list)
                .await
                .map(|keys| Page { keys, cursor: None })
        }
    }

    #[test]
    fn key_value_storage_keeps_the_promises() {
        let make = |trouble, world| {
            let rows = Rows {
                rows: Rc::default(),
                trouble,
            };
            KeyValueLedger::new(rows, world)
        };
        assert_eq!(faults(&make), Vec::<String>::new());
    }

    /// Tables each statement on which goes through trouble.
    #[derive(Clone)]
    struct Modelled {
        tables: Rc<RefCell<Tables>>,
        trouble: Rc<Trouble>,
        world: Shared,
    }

    impl Database for Modelled {
        async fn run(&self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>, Failure> {
            let (now, world) = (self.world.now.get().try_into().unwrap(), &self.world);
            let run = || {
                let mut tables = self.tables.borrow_mut();
                tables.run(sql, values, now, &mut |near| world.shuffle(near))
            };
            let made = self.trouble.step(run).await;
            made.map_err(|_| Failure::Unknown("injected".into()))
        }
    }

    #[test]
    fn tables_of_a_database_keep_the_promises() {
        let make = |trouble, world: Shared| {
            let tables = Modelled {
                tables: Rc::default(),
                trouble,
                world: world.clone(),
            };
            PostgresLedger::new(tables, world)
        };
        assert_eq!(faults(&make), Vec::<String>::new());
    }

    #[test]
    fn a_map_keeps_the_promises() {
        let make = |trouble, world| MemoryLedger::new(trouble, world, None);
        assert_eq!(faults(&make), Vec::<String>::new());
    }

    #[test]
    fn each_mistake_is_noticed() {
        for mistake in Mistake::ALL {
            let make = move |trouble, world| MemoryLedger::new(trouble, world, Some(mistake));
            assert_ne!(faults(&make), Vec::<String>::new(), "{mistake:?}");
        }
    }
}
