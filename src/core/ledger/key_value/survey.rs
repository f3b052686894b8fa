//! What one listing of keys tells a sweep: what is due and outdated, by tenant, and what is stored besides. No record is
//! read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::identity::{Nonce, TenantId};
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::found::Found;
use crate::ledger::key_value::layout::Marker;
use crate::ledger::key_value::listing::Listing;
use crate::ledger::key_value::store::Store;
use crate::ledger::schedule::{Horizon, State};
use crate::ledger::summary::{Summary, TenantSummary, increase};
use crate::ledger::{Outlook, StoreError, Survey};
use crate::port::Environment;

impl<S: Store + Clone, E: Environment + Clone> KeyValueLedger<S, E> {
    /// Lists the store, once.
    pub(super) async fn list(&self, horizon: Horizon) -> Result<Survey<Found>, StoreError> {
        let listing = Listing::read(&self.layout, &self.store).await?;
        let versions = listing.versions();
        let mut positions: BTreeMap<TenantId, Vec<usize>> = BTreeMap::new();
        for (at, marker) in listing.positions() {
            positions.entry(marker.user.tenant).or_default().push(at);
        }
        let mut tenants = BTreeMap::new();
        let mut summaries: BTreeMap<String, TenantSummary> = BTreeMap::new();
        for (tenant, positions) in &positions {
            let summary = summaries.entry(tenant.as_str().into()).or_default();
            let markers = positions.iter().filter_map(|at| listing.marker_at(*at));
            let markers = markers.map(|(_, marker)| marker);
            tenants.insert(tenant.clone(), look_over(markers, horizon, summary));
        }
        let mut of = |tenant: &TenantId, add: &dyn Fn(&mut TenantSummary)| {
            add(summaries.entry(tenant.as_str().into()).or_default());
        };
        for user in listing.users() {
            of(&user.tenant, &|summary| {
                increase(&mut summary.numbers.users);
            });
        }
        for tenant in listing.bars() {
            of(&tenant, &|summary| summary.being_removed = true);
        }
        let mut not_noted = BTreeSet::new();
        for ((tenant, version), used) in &versions {
            let name = || version.as_str().to_owned();
            if let Some(since) = used.unused_since() {
                of(tenant, &|summary| {
                    summary.unused_key_versions.insert(name(), since);
                });
            } else if used.markers > 0 {
                of(tenant, &|summary| {
                    summary.key_versions.insert(name(), used.markers);
                });
            }
            if used.markers > 0 && !used.noted.contains(&0) {
                not_noted.insert((tenant.clone(), version.clone()));
            }
        }
        Ok(Survey {
            tenants,
            not_seen: 0,
            not_noted,
            summary: Summary::of(horizon.now, summaries),
            found: Found {
                listing,
                versions,
                horizon,
                positions,
                queues: RefCell::default(),
            },
        })
    }
}

/// What the markers of a tenant say.
fn look_over(
    markers: impl Iterator<Item = Marker>,
    horizon: Horizon,
    summary: &mut TenantSummary,
) -> Outlook {
    let mut outlook = Outlook::default();
    let mut first: BTreeMap<Nonce, (Marker, bool)> = BTreeMap::new();
    for marker in markers {
        let is_due = horizon.is_due(marker.time);
        if !is_due {
            let next = outlook.next_due.unwrap_or(u64::MAX).min(marker.time);
            outlook.next_due = Some(next);
        }
        // Of two markers of one enrolment, the one that leads there first.
        match first.get_mut(&marker.nonce) {
            Some((known, is_known_due)) => {
                *is_known_due |= is_due;
                if marker.time < known.time {
                    *known = marker;
                }
            }
            None => {
                first.insert(marker.nonce.clone(), (marker, is_due));
            }
        }
    }
    for (marker, is_due) in first.into_values() {
        increase(&mut outlook.enrolments);
        if is_due {
            increase(&mut outlook.due);
        }
        let wait = marker.time.saturating_sub(horizon.now);
        summary.numbers.add(marker.state, wait);
        match marker.state {
            State::InteractionRequired { .. } | State::Quarantined { .. } => {
                summary.must_act.add(marker.user.id.as_str());
            }
            State::Active { .. } | State::NotReadable { .. } => {}
        }
    }
    outlook
}
