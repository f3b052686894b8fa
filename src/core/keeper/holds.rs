//! Who waits in a sweep, and for what: what its verdicts have come to so far.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::error::VaultError;
use crate::identity::{KeyVersion, TenantId};
use crate::keeper::verdict::{Verdict, Work};
use crate::port::Log;
use crate::vault::port::NewestKey;

/// Seconds for which a tenant stays away from an Entra ID that fails for it and does not say for how long.
const HOLD: u64 = 60;
/// Records in a row, with none in between for which storage works, after which it is storage that fails.
const STORE_FAILURES: u32 = 3;

/// Why a record is not worked on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hold {
    /// The sweep is over before its time.
    Stopped,
    /// The tenant is not among the setting `tenants`.
    NotServed,
    /// For a key, for Entra ID, for the credential.
    Waits,
}

/// What holds so far in a sweep.
#[derive(Default)]
pub(crate) struct Holds(RefCell<Inner>);

#[derive(Default)]
struct Inner {
    /// Why the sweep has stopped.
    stopped: Option<&'static str>,
    newest: BTreeMap<TenantId, NewestKey>,
    /// Tenants without a newest key that can be used, and why.
    without_key: BTreeMap<TenantId, &'static str>,
    not_served: BTreeSet<TenantId>,
    unusable: BTreeSet<(TenantId, KeyVersion)>,
    /// Versions of which it is not noted that they are in use, and cannot be.
    not_noted: BTreeSet<(TenantId, KeyVersion)>,
    /// Until when tenants stay away from Entra ID, in Unix seconds.
    no_entra: BTreeMap<TenantId, u64>,
    /// Tenants for which the credential was refused.
    refused: BTreeSet<TenantId>,
    /// Those of them since it last was accepted for any.
    refused_in_a_row: BTreeSet<TenantId>,
    is_refused_for_all: bool,
    /// Records in a row for which storage failed.
    store_failures: u32,
}

impl Holds {
    /// With the tenants that stay away from Entra ID, and until when.
    pub(crate) fn new(
        no_entra: BTreeMap<TenantId, u64>,
        not_noted: BTreeSet<(TenantId, KeyVersion)>,
    ) -> Self {
        Self(RefCell::new(Inner {
            not_noted,
            no_entra,
            ..Inner::default()
        }))
    }

    /// Whether work on a tenant's records under a key version has to wait.
    pub(crate) fn on(&self, tenant: &TenantId, version: &KeyVersion, work: Work) -> Option<Hold> {
        let inner = self.0.borrow();
        if inner.stopped.is_some() {
            return Some(Hold::Stopped);
        }
        if inner.not_served.contains(tenant) {
            return Some(Hold::NotServed);
        }
        let id = (tenant.clone(), version.clone());
        let moves = inner
            .newest
            .get(tenant)
            .is_some_and(|newest| newest.version != *version);
        let has_no_key = inner.without_key.contains_key(tenant)
            || inner.unusable.contains(&id)
            // What leaves a version must be known to have been under it.
            || moves && inner.not_noted.contains(&id);
        let has_no_entra = inner.no_entra.contains_key(tenant)
            || inner.refused.contains(tenant)
            || inner.is_refused_for_all;
        let waits = match work {
            Work::NewestKey => false,
            Work::Reseal => has_no_key,
            Work::Refresh => has_no_key || has_no_entra,
        };
        waits.then_some(Hold::Waits)
    }

    /// The newest key of a tenant was had.
    pub(crate) fn has_newest(&self, tenant: &TenantId, newest: NewestKey) {
        let mut inner = self.0.borrow_mut();
        inner.newest.insert(tenant.clone(), newest);
    }

    /// Entra ID has accepted the credential, whatever it answered besides.
    pub(crate) fn is_accepted(&self) {
        self.0.borrow_mut().refused_in_a_row.clear();
    }

    /// Storage has worked for a record, or it has not.
    pub(crate) fn store(&self, worked: bool, log: &impl Log) {
        let mut inner = self.0.borrow_mut();
        inner.store_failures = if worked {
            0
        } else {
            inner.store_failures.saturating_add(1)
        };
        if inner.store_failures >= STORE_FAILURES && inner.stopped.is_none() {
            inner.stopped = Some("store_unavailable");
            log.line(&json!({"event": "sweep_stopped", "code": "store_unavailable"}).to_string());
        }
    }

    /// Takes note of a verdict, and tells the operator of what is new in it.
    pub(crate) fn heed(
        &self,
        (tenant, version): (&TenantId, Option<&KeyVersion>),
        verdict: &Verdict,
        error: &VaultError,
        now: u64,
        log: &impl Log,
    ) {
        let mut inner = self.0.borrow_mut();
        let (code, reason) = (error.code(), error.to_string());
        let version_text = version.map(KeyVersion::as_str);
        let tell = |event: &str| {
            log.line(&json!({"event": event, "tenant": tenant.as_str(), "key_version": version_text, "code": code, "reason": reason}).to_string());
        };
        match verdict {
            Verdict::PutOff { .. } | Verdict::SetAside | Verdict::Turn(_) => {}
            Verdict::HoldTenant { seconds } => {
                let seconds = seconds.map_or(HOLD, u64::from);
                let until = now.saturating_add(seconds);
                let known = inner.no_entra.insert(tenant.clone(), until);
                if let Some(known) = known {
                    inner.no_entra.insert(tenant.clone(), known.max(until));
                } else {
                    tell("tenant_held");
                }
            }
            Verdict::HoldCredential => {
                if inner.refused.insert(tenant.clone()) {
                    tell("credential_refused");
                }
                inner.refused_in_a_row.insert(tenant.clone());
                inner.is_refused_for_all |= inner.refused_in_a_row.len() >= 2;
            }
            Verdict::KeyVersionUnusable => {
                let Some(version) = version else { return };
                if inner.unusable.insert((tenant.clone(), version.clone())) {
                    tell("key_version_unusable");
                }
            }
            Verdict::NewestKeyUnusable => {
                if inner.without_key.insert(tenant.clone(), code).is_none() {
                    tell("tenant_without_key");
                }
            }
            Verdict::NotServed => {
                inner.not_served.insert(tenant.clone());
            }
            Verdict::Stop => {
                if inner.stopped.is_none() {
                    inner.stopped = Some(code);
                    tell("sweep_stopped");
                }
            }
        }
    }

    /// Why the sweep has stopped before its time; none: it has not.
    pub(crate) fn stopped(&self) -> Option<&'static str> {
        self.0.borrow().stopped
    }

    /// Tenants whose newest key was had, and it.
    pub(crate) fn newest(&self) -> BTreeMap<TenantId, NewestKey> {
        self.0.borrow().newest.clone()
    }

    /// The version of a tenant's newest key, if it was had.
    pub(crate) fn newest_of(&self, tenant: &TenantId) -> Option<KeyVersion> {
        let inner = self.0.borrow();
        inner.newest.get(tenant).map(|key| key.version.clone())
    }

    /// Tenants without a newest key that can be used, and why.
    pub(crate) fn without_key(&self) -> BTreeMap<TenantId, &'static str> {
        self.0.borrow().without_key.clone()
    }

    /// Whether the tenant is not among the setting `tenants`.
    pub(crate) fn is_not_served(&self, tenant: &TenantId) -> bool {
        self.0.borrow().not_served.contains(tenant)
    }

    /// Whether something waits of which nobody can say when it will be over, nor is asked whether it is.
    pub(crate) fn is_open(&self) -> bool {
        let inner = self.0.borrow();
        !inner.unusable.is_empty() || !inner.refused.is_empty() || !inner.not_noted.is_empty()
    }

    /// Until when tenants stay away from Entra ID.
    pub(crate) fn no_entra(&self) -> BTreeMap<TenantId, u64> {
        self.0.borrow().no_entra.clone()
    }
}
