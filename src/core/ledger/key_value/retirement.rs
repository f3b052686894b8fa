//! Which key versions are in use, and since when others are not, as sweeps note it (DESIGN.md, "How is known that no
//! record uses a key version?").

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::store::Store;
use crate::ledger::key_value::survey::Found;
use crate::ledger::schedule::RETENTION;
use crate::ledger::{StoreError, Survey};
use crate::port::Environment;

/// Notes that are written at once.
const AT_ONCE: usize = 8;

impl<S: Store + Clone, E: Environment + Clone> KeyValueLedger<S, E> {
    /// Notes what a listing shows, before anything is moved: a version that it names may be named nowhere when the sweep
    /// has ended. Costs nothing while no version comes or goes.
    pub(super) async fn note_versions(&self, survey: &Survey<Found>) -> Result<(), StoreError> {
        let now = survey.summary.observed_at;
        let (mut notes, mut void) = (Vec::new(), Vec::new());
        for ((tenant, version), of) in &survey.found.versions {
            let since = match of.markers {
                0 => of.unused_since().unwrap_or(now),
                _ => 0,
            };
            let key = |since: &u64| self.layout.version(tenant, version, *since);
            let is_forgotten = since > 0 && since.saturating_add(RETENTION) <= now;
            if !is_forgotten && !of.noted.contains(&since) {
                notes.push(key(&since));
            }
            let is_void = |noted: &&u64| is_forgotten || **noted != since;
            void.extend(of.noted.iter().filter(is_void).map(key));
        }
        // The new ones first: a version of which nothing is noted is not known.
        stream::iter(notes)
            .map(|key| async move { self.store.set(&key, &[]).await })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        stream::iter(void)
            .map(|key| async move { self.store.delete(&key).await })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await
    }
}
