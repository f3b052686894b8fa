//! Everything outside the replicas, and what a run has seen so far.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;

use http::Request;

use crate::ledger::postgres::model::Tables;
use crate::port::SecretBody;
use crate::simulation::api::{API, APIS};
use crate::simulation::chance::Chance;
use crate::simulation::database::Late;
use crate::simulation::entra::Entra;
use crate::simulation::history::{Act, Operation};
use crate::simulation::key_vault::KeyVault;
use crate::simulation::mutation::{Mutation, Notes};
use crate::simulation::users::OTHER_TENANT;
use crate::simulation::world::{GRANTS, SWEEP_KEY, turn};
use crate::vault::samples::{NOW, TENANT, Values, least};

pub(super) const HOUR: u64 = 3600;
pub(super) const DAY: u64 = 24 * HOUR;

/// How often something fails, in a thousand times.
#[derive(Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) store: u64,
    pub(super) network: u64,
    pub(super) entra: u64,
    /// How often a request dies when it is about to go on.
    pub(super) crash: u64,
}

/// A key that says that a tenant is being removed, and while it was in the store, in steps of the scheduler.
#[derive(Clone)]
pub(super) struct Bar {
    pub(super) key: String,
    pub(super) from: u64,
    /// It is `u64::MAX` for as long as the key is there.
    pub(super) until: u64,
}

/// All that the two replicas share.
pub(super) struct Outside {
    pub(super) chance: Chance,
    /// The steps that the scheduler has made.
    pub(super) step: Cell<u64>,
    /// The right time, in seconds since 1970.
    pub(super) now: Cell<u64>,
    /// The act that goes on at this step.
    pub(super) current: Cell<usize>,
    pub(super) faults: Cell<Faults>,
    pub(super) mutation: Option<Mutation>,
    pub(super) notes: Notes,
    pub(super) entra: Entra,
    pub(super) key_vault: KeyVault,
    /// What the store holds.
    pub(super) rows: RefCell<BTreeMap<String, Vec<u8>>>,
    /// What the database holds, and what it is still going to do.
    pub(super) tables: RefCell<Tables>,
    pub(super) late_statements: RefCell<Vec<Late>>,
    pub(super) bars: RefCell<Vec<Bar>>,
    /// Requests that arrive after their sender has given up, and the step at which they do.
    pub(super) late_requests: RefCell<Vec<(u64, Request<SecretBody>)>>,
    /// What the act that goes on has begun beside itself.
    pub(super) begun: RefCell<Vec<Pin<Box<dyn Future<Output = ()>>>>>,
    pub(super) settings: Values,
    pub(super) log: RefCell<Vec<String>>,
    pub(super) acts: RefCell<Vec<Act>>,
    /// Each promise that was not kept, in words.
    pub(super) violations: RefCell<Vec<String>>,
}

impl Outside {
    pub(super) fn new(seed: u64, mutation: Option<Mutation>, single_use: bool) -> Rc<Self> {
        let mut settings = least();
        settings.insert("tenants", format!("{TENANT},{OTHER_TENANT}"));
        settings.insert("sweep_key", SWEEP_KEY.to_owned());
        settings.insert("key_vault_tenant", TENANT.to_owned());
        settings.insert("operator_tenant", TENANT.to_owned());
        let calls = GRANTS.replace("[\"*\"]}", "[\"*\"], \"apis\": [\"graph\"]}");
        settings.insert("grants", calls);
        settings.insert("apis", APIS.to_owned());
        settings.insert("api_origin_1", API.to_owned());
        let chance = Chance::new(seed);
        // Half of the runs draw from Entra ID alone.
        let seconds = chance.one_of(&["0", "900"]);
        settings.insert("access_token_cache_seconds", seconds.to_owned());
        Rc::new(Self {
            chance,
            step: Cell::default(),
            now: Cell::new(NOW),
            current: Cell::default(),
            faults: Cell::default(),
            mutation,
            notes: Notes::default(),
            entra: Entra::new(single_use),
            key_vault: KeyVault::new(),
            rows: RefCell::default(),
            tables: RefCell::default(),
            late_statements: RefCell::default(),
            bars: RefCell::default(),
            late_requests: RefCell::default(),
            begun: RefCell::default(),
            settings,
            log: RefCell::default(),
            acts: RefCell::default(),
            violations: RefCell::default(),
        })
    }

    pub(super) fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// What the act that goes on was asked for.
    pub(super) fn doing(&self) -> Operation {
        self.acts.borrow()[self.current.get()].operation
    }

    pub(super) fn violation(&self, text: String) {
        self.violations.borrow_mut().push(text);
    }

    /// A point at which others may go on, and come far where this one stalls.
    pub(super) async fn pause(&self) {
        let turns = if self.chance.below(40) == 0 {
            24
        } else {
            self.chance.below(2)
        };
        for _ in 0..=turns {
            turn().await;
        }
    }
}
