//! What one listing of keys tells a sweep: what is due and outdated, by tenant, and what is stored besides. No record is
//! read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::identity::{KeyVersion, Nonce, TenantId};
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::layout::Marker;
use crate::ledger::key_value::listing::{Listing, Use};
use crate::ledger::key_value::store::Store;
use crate::ledger::schedule::{Horizon, State};
use crate::ledger::summary::{Summary, TenantSummary, increase};
use crate::ledger::{Claimed, Kind, Outlook, StoreError, Survey, Visit};
use crate::port::{Environment, Random};

/// A marker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its key.
    pub(super) key: String,
    /// The write that set it.
    pub(super) write: Nonce,
}

/// One listing. Markers are read again when a tenant's turn comes, so that what waits costs little.
pub struct Found {
    pub(super) listing: Listing,
    pub(super) versions: BTreeMap<(TenantId, KeyVersion), Use>,
    horizon: Horizon,
    /// Where the markers of a tenant are in the listing.
    positions: BTreeMap<TenantId, Vec<usize>>,
    /// What is left to hand out of the tenants whose turn has come.
    queues: RefCell<BTreeMap<TenantId, Queues>>,
}

/// Work of a tenant that is to be handed out.
struct Queues {
    outdated: VecDeque<Visit<Place>>,
    due: VecDeque<Visit<Place>>,
}

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

impl Found {
    /// Hands out what the listing shows.
    pub(super) fn claim(
        &self,
        tenant: &TenantId,
        kind: Kind<'_>,
        most: usize,
        random: &impl Random,
    ) -> Claimed<Place> {
        let mut queues = self.queues.borrow_mut();
        let queues = queues.entry(tenant.clone()).or_insert_with(|| {
            let (Kind::Outdated(newest) | Kind::Due(newest)) = kind;
            self.queue_up(tenant, newest, random)
        });
        let queue = match kind {
            Kind::Outdated(_) => &mut queues.outdated,
            Kind::Due(_) => &mut queues.due,
        };
        let visits = queue.drain(..queue.len().min(most)).collect();
        if queue.is_empty() {
            queue.shrink_to_fit();
        }
        Claimed {
            visits,
            left: u64::try_from(queue.len()).unwrap_or(u64::MAX),
        }
    }

    fn queue_up(&self, tenant: &TenantId, newest: &KeyVersion, random: &impl Random) -> Queues {
        let (mut outdated, mut due) = (BTreeMap::new(), BTreeMap::new());
        let positions = self.positions.get(tenant).into_iter().flatten();
        for (key, marker) in positions.filter_map(|at| self.listing.marker_at(*at)) {
            // What cannot be read cannot be re-sealed; it has its daily look.
            let is_readable = !matches!(marker.state, State::NotReadable { .. });
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
        let (mut outdated, mut due): (Vec<_>, Vec<_>) =
            (outdated.collect(), due.into_values().collect());
        random.shuffle(&mut outdated);
        random.shuffle(&mut due);
        let has_failed = |visit: &Visit<Place>| visit.state != State::Active { failures: 0 };
        outdated.sort_by_key(|visit| (visit.due.is_none(), has_failed(visit)));
        due.sort_by_key(has_failed);
        Queues {
            outdated: outdated.into(),
            due: due.into(),
        }
    }
}

fn add(visits: &mut BTreeMap<Nonce, Visit<Place>>, key: &str, marker: &Marker) {
    let visit = visits.entry(marker.nonce.clone()).or_insert_with(|| Visit {
        user: marker.user.clone(),
        nonce: marker.nonce.clone(),
        key_version: marker.key_version.clone(),
        state: marker.state,
        time: marker.time,
        claims: Vec::new(),
        due: None,
    });
    visit.claims.push(Place {
        key: key.into(),
        write: marker.write.clone(),
    });
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
