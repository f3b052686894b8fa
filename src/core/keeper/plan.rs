//! What one listing shows that there may be to do, by tenant.

use std::collections::{BTreeMap, BTreeSet};

use crate::identity::{KeyVersion, Nonce, TenantId};
use crate::keeper::visit::{Horizon, Visit};
use crate::ledger::key_value::layout::{Marker, Tag};
use crate::ledger::key_value::listing::Listing;

/// What one listing shows that there may be to do, by tenant. Markers are read again when a tenant's turn comes, so that
/// what waits costs little.
pub(crate) struct Plan<'a> {
    listing: &'a Listing<'a>,
    horizon: Horizon,
    tenants: BTreeMap<TenantId, Markers>,
}

#[derive(Default)]
struct Markers {
    /// Where they are in the listing.
    places: Vec<usize>,
    /// Enrolments that are due.
    due: u64,
    /// When the first of those is due that are not.
    next_due: Option<u64>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(listing: &'a Listing<'a>, horizon: Horizon) -> Self {
        let mut tenants: BTreeMap<TenantId, Markers> = BTreeMap::new();
        let mut due = BTreeSet::new();
        for (place, marker) in listing.places() {
            let of = tenants.entry(marker.user.tenant).or_default();
            of.places.push(place);
            if !horizon.is_due(marker.time) {
                let next = of.next_due.unwrap_or(u64::MAX).min(marker.time);
                of.next_due = Some(next);
            } else if due.insert(marker.nonce) {
                of.due = of.due.saturating_add(1);
            }
        }
        Self {
            listing,
            horizon,
            tenants,
        }
    }

    /// The tenants of which something is stored, in order.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        self.tenants.keys()
    }

    /// Enrolments that are due.
    pub(crate) fn due(&self) -> u64 {
        self.tenants
            .values()
            .fold(0, |sum, of| sum.saturating_add(of.due))
    }

    pub(crate) fn due_of(&self, tenant: &TenantId) -> u64 {
        self.tenants.get(tenant).map_or(0, |of| of.due)
    }

    pub(crate) fn has_due(&self, tenant: &TenantId) -> bool {
        self.due_of(tenant) > 0
    }

    pub(crate) fn enrolments_of(&self, tenant: &TenantId) -> u64 {
        let nonces = self.markers(tenant).map(|(_, marker)| marker.nonce);
        count(nonces.collect::<BTreeSet<_>>().len())
    }

    pub(crate) fn next_due(&self, is_served: impl Fn(&TenantId) -> bool) -> Option<u64> {
        let served = self.tenants.iter().filter(|(tenant, _)| is_served(tenant));
        served.filter_map(|(_, of)| of.next_due).min()
    }

    /// The records of a tenant that are under another version than the newest, and of the others those that are due.
    pub(crate) fn visits(
        &self,
        tenant: &TenantId,
        newest: &KeyVersion,
    ) -> (Vec<Visit>, Vec<Visit>) {
        let (mut outdated, mut due) = (BTreeMap::new(), BTreeMap::new());
        let add = |visits: &mut BTreeMap<Nonce, Visit>, key: &String, marker: &Marker| {
            let visit = visits
                .entry(marker.nonce.clone())
                .or_insert_with(|| Visit::new(marker.clone()));
            visit.keys.push(key.clone());
        };
        for (key, marker) in self.markers(tenant) {
            // What cannot be read cannot be re-sealed; it has its daily look.
            let is_readable = !matches!(marker.tag, Tag::NotReadable { .. });
            if is_readable && marker.key_version != *newest {
                add(&mut outdated, key, &marker);
            }
            if self.horizon.is_due(marker.time) {
                add(&mut due, key, &marker);
            }
        }
        let outdated = outdated.into_iter().map(|(nonce, visit)| Visit {
            due: due.remove(&nonce).map(Box::new),
            ..visit
        });
        (outdated.collect(), due.into_values().collect())
    }

    fn markers(&self, tenant: &TenantId) -> impl Iterator<Item = (&String, Marker)> {
        let of = self.tenants.get(tenant);
        let places = of.map(|of| of.places.as_slice()).unwrap_or_default();
        places
            .iter()
            .filter_map(|place| self.listing.marker_at(*place))
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
