//! Everything outside a keeper that has many tenants: its store, its settings, and its time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::identity::{Nonce, SecretName, User};
use crate::keeper::rules::Rules;
use crate::ledger::StoreError;
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::head::Head;
use crate::ledger::key_value::layout::{Layout, Marker};
use crate::ledger::key_value::store::{Page, Store};
use crate::ledger::record::{Record, Status};
use crate::ledger::schedule::DAILY;
use crate::port::{Background, Clock, Config, ConfigError, Log, Random, Timer};
use crate::secret::{EncryptionKey, RefreshToken};
use crate::simulation::fairness::tenant::{Tenant, Trouble, key, tenant_id, user_id, version};
use crate::simulation::time::Time;
use crate::simulation::world::SWEEP_KEY;
use crate::vault::samples::{CLIENT, NOW, Values, least};
use crate::vault::sealing::{Binding, Payload, seal};
use crate::{Keeper, Vault};

/// The seconds that a call of a sweep may take.
pub(super) const SWEEP_SECONDS: u64 = 20;

/// Everything outside.
pub(super) struct World {
    pub(super) tenants: Vec<Tenant>,
    pub(super) time: Time,
    /// The last number that was given out.
    counter: Cell<u64>,
    pub(super) rows: RefCell<BTreeMap<String, Vec<u8>>>,
    pub(super) settings: Values,
    log: RefCell<Vec<String>>,
    /// Whether what a sweep remembers is lost before each call.
    pub(super) forgets: bool,
    /// How often each key version was asked for in this call.
    pub(super) asked: RefCell<BTreeMap<String, usize>>,
}

/// A world, as the ports take it.
pub(super) type Shared = Rc<World>;

/// The app, with its caches.
pub(super) type App = Keeper<Vault<Shared>, KeyValueLedger<Shared, Shared>, Shared>;

impl World {
    /// A world with these tenants, each of so many good users and so many bad ones. All records are due at the start, but
    /// for those of tenants that are idle.
    pub(super) fn new(tenants: &[(Trouble, usize, usize)], forgets: bool) -> Shared {
        let mut settings = least();
        let served = tenants.iter().enumerate();
        let served = served.filter(|(_, tenant)| tenant.0 != Trouble::NotServed);
        let served: Vec<_> = served
            .map(|(index, _)| tenant_id(index).as_str().to_owned())
            .collect();
        settings.insert("tenants", served.join(","));
        settings.insert("sweep_key", SWEEP_KEY.to_owned());
        settings.insert("sweep_url", "http://127.0.0.1:3000/v1/sweep".to_owned());
        settings.insert("sweep_seconds", SWEEP_SECONDS.to_string());
        settings.insert("sweep_concurrency", "32".to_owned());
        settings.insert("key_vault_tenant", tenant_id(0).as_str().to_owned());
        // An hour or two then show what otherwise takes weeks.
        settings.insert("refresh_after_seconds", 3600.to_string());
        let tenants = tenants.iter().map(|(trouble, good, bad)| Tenant {
            trouble: *trouble,
            good: *good,
            bad: *bad,
            keys: match trouble {
                Trouble::DeadKey => vec![0, 0],
                _ => vec![0],
            }
            .into(),
        });
        let world = Rc::new(Self {
            tenants: tenants.collect(),
            time: Time::default(),
            counter: Cell::default(),
            rows: RefCell::default(),
            settings,
            log: RefCell::default(),
            forgets,
            asked: RefCell::default(),
        });
        for (index, tenant) in world.tenants.iter().enumerate() {
            for user in 0..tenant.good + tenant.bad {
                let due_at = match tenant.trouble {
                    Trouble::Idle(_) => NOW + DAILY,
                    _ => NOW,
                };
                world.enrol(index, user, due_at);
            }
        }
        world
    }

    /// Stores what an enrolment a while ago has left.
    fn enrol(self: &Rc<Self>, tenant: usize, user: usize, due_at: u64) {
        let (layout, user_id) = (Layout::new(""), user_id(tenant, user));
        let id = user_id.storage_id(None);
        let of = User {
            tenant: tenant_id(tenant),
            id,
        };
        let enrolled_at = NOW - 2 * DAILY;
        let nonce = Nonce::for_enrolment(enrolled_at, self);
        let binding = Binding::new(CLIENT, &of.tenant, &user_id, &nonce);
        let payload = Payload {
            refresh_token: RefreshToken::new(format!("rt-{user}")),
            user_id,
            scope: "https://graph.microsoft.com/.default".into(),
        };
        let secret = SecretName::parse(&format!("obo-{}", of.tenant)).unwrap();
        let encryption = EncryptionKey::new(Zeroizing::new(key(tenant, 0)));
        let sealed = seal(
            &payload,
            &binding,
            (&secret, &version(0)),
            &encryption,
            self,
        )
        .unwrap();
        let record = Record {
            tenant: of.tenant.clone(),
            sealed: sealed.token,
            key_version: sealed.key_version,
            scope: payload.scope,
            enrolled_by: None,
            status: Status::Active,
            generation: 1,
            write: Nonce::for_write(self),
            enrolled_at,
            refreshed_at: enrolled_at,
            due_at,
        };
        let head = Head {
            nonce: nonce.clone(),
            tenant: of.tenant.clone(),
            created_at: enrolled_at,
        };
        let mut rows = self.rows.borrow_mut();
        rows.insert(layout.head(&of), head.to_json());
        rows.insert(layout.marker(&Marker::of(&of, &nonce, &record)), Vec::new());
        rows.insert(layout.record(&of.id, &nonce), record.to_json());
    }

    /// A new instance of the app, which remembers nothing.
    pub(super) fn app(self: &Rc<Self>, rules: Rules) -> App {
        let ledger = KeyValueLedger::new(Rc::clone(self), Rc::clone(self));
        let mut app = Keeper::new(Vault::new(Rc::clone(self)), ledger, Rc::clone(self));
        app.rules = rules;
        app
    }

    /// A number that nobody else gets.
    pub(super) fn next(&self) -> u64 {
        self.counter.set(self.counter.get() + 1);
        self.counter.get()
    }

    /// The time, in seconds since 1970.
    pub(super) fn seconds(&self) -> u64 {
        NOW + self.time.elapsed().as_secs()
    }
}

impl Store for Shared {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.rows.borrow().get(key).cloned())
    }

    async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.rows.borrow_mut().insert(key.into(), value.into());
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.rows.borrow_mut().remove(key);
        Ok(())
    }

    async fn list_keys(&self, _: Option<&str>) -> Result<Page, StoreError> {
        Ok(Page {
            keys: self.rows.borrow().keys().cloned().collect(),
            cursor: None,
        })
    }
}

impl Clock for Shared {
    fn now(&self) -> u64 {
        self.seconds()
    }
}

impl Timer for Shared {
    fn elapsed(&self) -> Duration {
        self.time.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        self.time.sleep(duration).await;
    }
}

impl Random for Shared {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let mut number = self.next().wrapping_mul(0x9e37_79b9_7f4a_7c15);
            number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let number = number ^ (number >> 31);
            chunk.copy_from_slice(&number.to_le_bytes()[..chunk.len()]);
        }
    }
}

impl Config for Shared {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        Ok(self.settings.get(name).cloned())
    }
}

impl Background for Shared {
    fn begin(&self, _: impl Future<Output = ()> + 'static) {
        unreachable!("a sweep begins nothing beside it")
    }
}

impl Log for Shared {
    fn line(&self, line: &str) {
        self.log.borrow_mut().push(line.to_owned());
    }
}
