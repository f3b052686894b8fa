//! What one listing of keys tells: markers, users, and litter. No record is read.

use std::collections::{BTreeMap, BTreeSet};

use crate::identity::User;
use crate::identity::{KeyVersion, Nonce, StorageId, TenantId};
use crate::ledger::StoreError;
use crate::ledger::key_value::layout::{Layout, Marker};
use crate::ledger::key_value::store::Store;

/// Age in seconds from which an enrolment that no head names is litter: younger, it may be one whose head is still to be
/// written (PROTOCOL.md, "Clear litter").
pub(crate) const LITTER_AFTER: u64 = 86_400;

/// Every key of the store. Names are kept as they came and read when they are needed: at 300,000 users they are 100 MiB.
pub(crate) struct Listing {
    layout: Layout,
    keys: Vec<String>,
}

/// What is stored of an enrolment that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Litter {
    pub(crate) id: StorageId,
    /// If a head or a marker tells it.
    pub(crate) tenant: Option<TenantId>,
    pub(crate) nonce: Nonce,
    pub(crate) markers: Vec<String>,
    pub(crate) has_record: bool,
    pub(crate) is_off: bool,
}

/// What is known of the use of a key version.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Use {
    /// Markers that name it.
    pub(crate) markers: u64,
    /// What sweeps have noted, as [`Layout::version`] has it.
    pub(crate) noted: BTreeSet<u64>,
}

impl Use {
    /// Since when no listing has named the version, as far as is noted. Of two notes the one that claims less holds: two
    /// sweeps may have made them, or one that died between.
    pub(crate) fn unused_since(&self) -> Option<u64> {
        let is_used = self.markers > 0 || self.noted.contains(&0);
        self.noted.last().copied().filter(|_| !is_used)
    }
}

impl Listing {
    /// Lists the store, to the end: what is made of a part would take the rest for gone.
    pub(crate) async fn read(layout: &Layout, store: &impl Store) -> Result<Self, StoreError> {
        let (mut keys, mut cursors) = (Vec::new(), BTreeSet::new());
        let mut cursor = None;
        loop {
            let mut page = store.list_keys(cursor.as_deref()).await?;
            if keys.is_empty() {
                keys = page.keys;
            } else {
                keys.append(&mut page.keys);
            }
            let Some(next) = page.cursor else { break };
            if !cursors.insert(next.clone()) {
                return Err(StoreError(
                    "the listing of keys goes round, so its end cannot be had".into(),
                ));
            }
            cursor = Some(next);
        }
        if !cursors.is_empty() {
            // A key that was written while the pages were read can be on two.
            keys.sort_unstable();
            keys.dedup();
        }
        Ok(Self {
            layout: layout.clone(),
            keys,
        })
    }

    #[cfg(test)]
    fn new(layout: &Layout, keys: Vec<String>) -> Self {
        Self {
            layout: layout.clone(),
            keys,
        }
    }

    /// The markers, each with its key.
    pub(crate) fn markers(&self) -> impl Iterator<Item = (&String, Marker)> {
        self.keys
            .iter()
            .filter_map(|key| Some((key, self.layout.read_marker(key)?)))
    }

    /// The markers, each with its position in the listing.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (usize, Marker)> {
        let keys = self.keys.iter().enumerate();
        keys.filter_map(|(at, key)| Some((at, self.layout.read_marker(key)?)))
    }

    /// The marker at a position, with its key.
    pub(crate) fn marker_at(&self, position: usize) -> Option<(&String, Marker)> {
        let key = self.keys.get(position)?;
        Some((key, self.layout.read_marker(key)?))
    }

    /// What is private to enrolments (records, removals and markers), by user, each with its position in the listing.
    pub(crate) fn private_positions(&self) -> impl Iterator<Item = (StorageId, usize)> {
        let keys = self.keys.iter().enumerate();
        keys.filter_map(|(at, key)| {
            let marker = || Some(self.layout.read_marker(key)?.user.id);
            let private = |kind| Some(self.layout.read_private(kind, key)?.0);
            let id = private("rec").or_else(|| private("off")).or_else(marker)?;
            Some((id, at))
        })
    }

    /// The key at a position.
    pub(crate) fn key_at(&self, position: usize) -> Option<&String> {
        self.keys.get(position)
    }

    /// The further pages of summaries.
    pub(crate) fn summary_pages(&self) -> impl Iterator<Item = &String> {
        let keys = self.keys.iter();
        keys.filter(|key| self.layout.read_summary_page(key).is_some())
    }

    /// The tenants that are being removed.
    pub(crate) fn bars(&self) -> impl Iterator<Item = TenantId> {
        self.keys.iter().filter_map(|key| self.layout.read_bar(key))
    }

    /// The users.
    pub(crate) fn users(&self) -> impl Iterator<Item = User> {
        self.keys
            .iter()
            .filter_map(|key| self.layout.read_head(key))
    }

    /// Every key version that a marker names, or that one named before.
    pub(crate) fn versions(&self) -> BTreeMap<(TenantId, KeyVersion), Use> {
        let mut versions: BTreeMap<_, Use> = BTreeMap::new();
        for (_, marker) in self.markers() {
            let version = versions.entry((marker.user.tenant, marker.key_version));
            let markers = &mut version.or_default().markers;
            *markers = markers.saturating_add(1);
        }
        for (tenant, version, since) in self
            .keys
            .iter()
            .filter_map(|key| self.layout.read_version(key))
        {
            versions
                .entry((tenant, version))
                .or_default()
                .noted
                .insert(since);
        }
        versions
    }

    /// Enrolments with too much or too little to them: none or another than the head's user names, two of one user, a
    /// record without a marker. Those younger than [`LITTER_AFTER`] are left out.
    pub(crate) fn litter(&self, now: u64) -> Vec<Litter> {
        let mut of_users: Vec<UserKey> = self
            .keys
            .iter()
            .filter_map(|key| self.user_key(key))
            .collect();
        of_users.sort_unstable();
        of_users
            .chunk_by(|left, right| left.id == right.id)
            .flat_map(|user| litter_of(user, now))
            .collect()
    }

    fn user_key<'k>(&'k self, key: &'k String) -> Option<UserKey<'k>> {
        if let Some(User { tenant, id }) = self.layout.read_head(key) {
            let (nonce, kind) = (None, Kind::Head(tenant));
            return Some(UserKey { id, nonce, kind });
        }
        if let Some(marker) = self.layout.read_marker(key) {
            let kind = Kind::Marker(marker.user.tenant, key);
            return Some(UserKey {
                id: marker.user.id,
                nonce: Some(marker.nonce),
                kind,
            });
        }
        let (kind, (id, nonce)) = [("rec", Kind::Record), ("off", Kind::Off)]
            .into_iter()
            .find_map(|(name, kind)| Some((kind, self.layout.read_private(name, key)?)))?;
        Some(UserKey {
            id,
            nonce: Some(nonce),
            kind,
        })
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct UserKey<'k> {
    id: StorageId,
    nonce: Option<Nonce>,
    kind: Kind<'k>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kind<'k> {
    Head(TenantId),
    Marker(TenantId, &'k String),
    Record,
    Off,
}

/// The keys of one user, in order.
fn litter_of(user: &[UserKey<'_>], now: u64) -> Vec<Litter> {
    let head = user.iter().find_map(|key| match &key.kind {
        Kind::Head(tenant) => Some(tenant),
        Kind::Marker(..) | Kind::Record | Kind::Off => None,
    });
    let enrolments: BTreeSet<&Nonce> = user.iter().filter_map(|key| key.nonce.as_ref()).collect();
    let is_one = head.is_some() && enrolments.len() == 1;
    user.chunk_by(|left, right| left.nonce == right.nonce)
        .filter_map(|of_enrolment| {
            let nonce = of_enrolment.first()?.nonce.clone()?;
            let mut litter = Litter {
                id: of_enrolment.first()?.id.clone(),
                tenant: head.cloned(),
                nonce,
                markers: Vec::new(),
                has_record: false,
                is_off: false,
            };
            for key in of_enrolment {
                match &key.kind {
                    Kind::Head(_) => {}
                    Kind::Marker(tenant, name) => {
                        litter.tenant.get_or_insert_with(|| tenant.clone());
                        litter.markers.push((*name).clone());
                    }
                    Kind::Record => litter.has_record = true,
                    Kind::Off => litter.is_off = true,
                }
            }
            let is_marked = !litter.markers.is_empty();
            // A marker without a record is not litter but an alarm, which whoever visits it raises.
            let is_well = is_one
                && match (litter.has_record, litter.is_off) {
                    (_, false) => is_marked,
                    (false, true) => !is_marked,
                    (true, true) => false,
                };
            let is_old = litter
                .nonce
                .enrolled_at()
                .is_some_and(|at| at.saturating_add(LITTER_AFTER) <= now);
            (!is_well && is_old).then_some(litter)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Guid, KeyVersion};
    use crate::ledger::schedule::State;

    #[test]
    fn what_is_not_as_it_should_be_is_litter_once_it_is_old() {
        const NOW: u64 = 1_793_606_000;
        let layout = Layout::new("");
        let user = User {
            tenant: Guid::parse("11111111-2222-3333-4444-555555555555").unwrap(),
            id: StorageId::parse(&"u".repeat(32)).unwrap(),
        };
        let nonce = |at: u64, letter: &str| Nonce::parse(&format!("{at:010}{letter}")).unwrap();
        let (old, older) = (
            nonce(NOW - LITTER_AFTER, "x"),
            nonce(NOW - 2 * LITTER_AFTER, "y"),
        );
        let young = nonce(NOW - LITTER_AFTER + 1, "z");
        let marker = |nonce: &Nonce| {
            layout.marker(&Marker {
                time: NOW,
                state: State::Active { failures: 0 },
                key_version: KeyVersion::parse(&"0".repeat(32)).unwrap(),
                user: user.clone(),
                nonce: nonce.clone(),
                write: Nonce::parse("w").unwrap(),
            })
        };
        let (head, rec, off) = (
            layout.head(&user),
            |nonce: &Nonce| layout.record(&user.id, nonce),
            |nonce: &Nonce| layout.off(&user.id, nonce),
        );
        for (keys, found) in [
            (vec![], vec![]),
            (vec![head.clone(), rec(&old), marker(&old)], vec![]),
            (vec![head.clone(), off(&old)], vec![]),
            (vec![head.clone(), marker(&old)], vec![]),
            (vec![rec(&young), marker(&young)], vec![]),
            (vec![head.clone(), rec(&young)], vec![]),
            (vec![rec(&old), marker(&old)], vec![&old]),
            (vec![off(&old)], vec![&old]),
            (vec![rec(&old)], vec![&old]),
            (vec![head.clone(), rec(&old)], vec![&old]),
            (vec![head.clone(), off(&old), rec(&old)], vec![&old]),
            (vec![head.clone(), off(&old), marker(&old)], vec![&old]),
            (
                vec![head.clone(), rec(&old), marker(&old), rec(&older)],
                vec![&older, &old],
            ),
            (
                vec![head.clone(), rec(&young), marker(&young), off(&older)],
                vec![&older],
            ),
        ] {
            let listing = Listing::new(&layout, keys);
            let litter = listing.litter(NOW);
            assert_eq!(
                litter
                    .iter()
                    .map(|litter| &litter.nonce)
                    .collect::<Vec<_>>(),
                found,
                "{:?}",
                listing.keys
            );
        }
    }
}
