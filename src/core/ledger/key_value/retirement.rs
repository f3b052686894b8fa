//! Which key versions are in use, and since when others are not, as sweeps note it (DESIGN.md, "How is known that no
//! record uses a key version?").

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::identity::{KeyVersion, TenantId};
use crate::keeper::{Environment, Keeper, KeeperError};
use crate::ledger::key_value::layout::Layout;
use crate::ledger::key_value::listing::Listing;
use crate::ledger::key_value::store::Store;
use crate::ledger::schedule::RETENTION;
use crate::vault::port::VaultPort;

impl<V: VaultPort, S: Store, E: Environment> Keeper<V, S, E> {
    /// Notes what a listing shows, before anything is moved: a version that it names may be named nowhere when the sweep
    /// has ended. Costs nothing while no version comes or goes.
    pub(crate) async fn note_versions(
        &self,
        layout: &Layout,
        listing: &Listing<'_>,
        now: u64,
        concurrency: usize,
    ) -> Result<(), KeeperError> {
        let (mut notes, mut void) = (Vec::new(), Vec::new());
        for ((tenant, version), of) in listing.versions() {
            let since = match of.markers {
                0 => of.unused_since().unwrap_or(now),
                _ => 0,
            };
            let key = |since| layout.version(&tenant, &version, since);
            let is_forgotten = since > 0 && since.saturating_add(RETENTION) <= now;
            if !is_forgotten && !of.noted.contains(&since) {
                notes.push(key(since));
            }
            let is_void = |noted: &u64| is_forgotten || *noted != since;
            void.extend(of.noted.into_iter().filter(is_void).map(key));
        }
        // The new ones first: a version of which nothing is noted is not known.
        stream::iter(notes)
            .map(|key| async move { self.store.set(&key, &[]).await })
            .buffer_unordered(concurrency)
            .try_collect::<()>()
            .await?;
        stream::iter(void)
            .map(|key| async move { self.store.delete(&key).await })
            .buffer_unordered(concurrency)
            .try_collect::<()>()
            .await?;
        Ok(())
    }
}

/// The versions that a listing names and that are not noted as in use: what is under them must not leave them until they
/// are.
pub(crate) fn not_noted(listing: &Listing<'_>) -> BTreeSet<(TenantId, KeyVersion)> {
    let versions = listing.versions().into_iter();
    versions
        .filter(|(_, of)| of.markers > 0 && !of.noted.contains(&0))
        .map(|(id, _)| id)
        .collect()
}
