//! What removals, re-enrolments and writers that died have left behind, and how a sweep clears it. Which of it is old
//! enough is the listing's business.

use futures_util::{StreamExt as _, stream};
use serde_json::json;

use crate::deadline::Deadline;
use crate::identity::Nonce;
use crate::keeper::{Environment, Keeper, KeeperError, marker_of};
use crate::layout::{Layout, Marker};
use crate::listing::Litter;
use crate::port::{Store, StoreError, User, VaultPort};
use crate::record::Record;

/// Left-over enrolments that are cleared at once.
const AT_ONCE: usize = 8;

impl<V: VaultPort, S: Store, E: Environment> Keeper<V, S, E> {
    /// Clears what there is time for. Returns how many were cleared.
    pub(crate) async fn clear_all(
        &self,
        layout: &Layout,
        litter: Vec<Litter>,
        until: Deadline,
    ) -> u64 {
        let cleared: Vec<bool> = stream::iter(litter)
            .map(|litter| async move {
                if until.is_over(&self.env) {
                    return false;
                }
                self.clear(layout, &litter).await.unwrap_or_else(|error| {
                    self.env.line(&json!({"event": "litter_left", "user": litter.id.as_str(), "reason": error.to_string()}).to_string());
                    false
                })
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let cleared = cleared.into_iter().filter(|cleared| *cleared);
        u64::try_from(cleared.count()).unwrap_or(u64::MAX)
    }

    /// "GC" of the storage protocol. Its step 1, the age, is the listing's business.
    async fn clear(&self, layout: &Layout, litter: &Litter) -> Result<bool, KeeperError> {
        let record_key = layout.record(&litter.id, &litter.nonce);
        let user = litter.tenant.clone().map(|tenant| User {
            tenant,
            id: litter.id.clone(),
        });
        // Whom neither a head nor a marker names had no head at the listing, and the head of an enrolment this old is not
        // written any more.
        let head = match &user {
            Some(user) => self.head(layout, user).await?,
            None => None,
        };
        match (user, head) {
            (Some(user), Some(head)) if head.nonce == litter.nonce => {
                if litter.is_off {
                    self.store.delete(&record_key).await?;
                    self.delete_each(&litter.markers).await?;
                    return Ok(true);
                }
                if litter.has_record && litter.markers.is_empty() {
                    self.mark_again(layout, user, litter).await?;
                }
                Ok(false)
            }
            _ => {
                self.store.delete(&record_key).await?;
                self.store
                    .delete(&layout.off(&litter.id, &litter.nonce))
                    .await?;
                self.delete_each(&litter.markers).await?;
                Ok(true)
            }
        }
    }

    pub(crate) async fn delete_each(&self, keys: &[String]) -> Result<(), StoreError> {
        for key in keys {
            self.store.delete(key).await?;
        }
        Ok(())
    }

    /// Gives a record that has lost its marker one that is due now.
    async fn mark_again(
        &self,
        layout: &Layout,
        user: User,
        litter: &Litter,
    ) -> Result<(), KeeperError> {
        self.alarm("marker_lost", &user);
        let key = layout.record(&litter.id, &litter.nonce);
        let Some(json) = self.store.get(&key).await? else {
            return Ok(());
        };
        let Ok(record) = Record::from_json(&json) else {
            self.alarm("record_not_readable", &user);
            return Ok(());
        };
        let marker = Marker {
            time: self.env.now(),
            write: Nonce::for_write(&self.env),
            ..marker_of(&user, &litter.nonce, &record)
        };
        Ok(self.store.set(&layout.marker(&marker), &[]).await?)
    }
}
