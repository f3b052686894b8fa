//! What one listing holds for the claims that follow it. Markers are read again when a tenant's turn comes, so that what
//! waits costs little.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use crate::identity::{KeyVersion, Nonce, TenantId};
use crate::ledger::key_value::layout::Marker;
use crate::ledger::key_value::listing::{Listing, Use};
use crate::ledger::schedule::{Horizon, State};
use crate::ledger::{Claimed, Kind, Visit};
use crate::port::Random;

/// A marker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its key.
    pub(super) key: String,
    /// The write that set it.
    pub(super) write: Nonce,
}

/// One listing.
pub struct Found {
    pub(super) listing: Listing,
    pub(super) versions: BTreeMap<(TenantId, KeyVersion), Use>,
    pub(super) horizon: Horizon,
    /// Where the markers of a tenant are in the listing.
    pub(super) positions: BTreeMap<TenantId, Vec<usize>>,
    /// What is left to hand out of the tenants whose turn has come.
    pub(super) queues: RefCell<BTreeMap<TenantId, Queues>>,
}

/// Work of a tenant that is to be handed out.
pub(super) struct Queues {
    outdated: VecDeque<Visit<Place>>,
    due: VecDeque<Visit<Place>>,
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
            leased_until: None,
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
