//! What removals, re-enrolments and writers that died have left behind, and how a sweep clears it. Which of it is old
//! enough is the listing's business.

use futures_util::{StreamExt as _, stream};
use serde_json::json;

use crate::deadline::Deadline;
use crate::identity::{Nonce, TenantId, User};
use crate::journal::Journal as _;
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::found::Found;
use crate::ledger::key_value::layout::Marker;
use crate::ledger::key_value::listing::Litter;
use crate::ledger::key_value::store::Store;
use crate::ledger::record::{Record, Unreadable};
use crate::ledger::summary::increase;
use crate::ledger::{LedgerError, Survey, Tended};
use crate::port::Environment;

/// Left-over enrolments that one sweep looks at.
const MOST: usize = 100;
/// Left-over enrolments that are cleared at once.
const AT_ONCE: usize = 8;

impl<S: Store + Clone, E: Environment + Clone> KeyValueLedger<S, E> {
    /// Clears of the litter that a survey shows what there is time for.
    pub(super) async fn clear_litter(&self, survey: &Survey<Found>, until: Deadline) -> Tended {
        let mut litter = survey.found.listing.litter(survey.summary.observed_at);
        self.env.shuffle(&mut litter);
        let beyond = litter.len().saturating_sub(MOST);
        litter.truncate(MOST);
        let mut tended = self.clear_all(litter, until).await;
        let beyond = u64::try_from(beyond).unwrap_or(u64::MAX);
        tended.left = tended.left.saturating_add(beyond);
        tended
    }

    async fn clear_all(&self, litter: Vec<Litter>, until: Deadline) -> Tended {
        let mut clearing = stream::iter(litter)
            .map(|litter| async move {
                if until.is_over(&self.env) {
                    return None;
                }
                let is_cleared = self.clear(&litter).await;
                Some(is_cleared.unwrap_or_else(|error| {
                    let line = json!({"user": litter.id.as_str(), "reason": error.to_string()});
                    self.env.event("litter_left", line);
                    false
                }))
            })
            .buffer_unordered(AT_ONCE);
        let mut tended = Tended::default();
        while let Some(cleared) = clearing.next().await {
            match cleared {
                Some(true) => increase(&mut tended.cleared),
                Some(false) => {}
                None => increase(&mut tended.left),
            }
        }
        tended
    }

    /// "Clear litter" of PROTOCOL.md, from step 2: the age is the listing's business. Nothing goes whose head was not
    /// read.
    async fn clear(&self, litter: &Litter) -> Result<bool, LedgerError> {
        let record_key = self.layout.record(&litter.id, &litter.nonce);
        let off_key = self.layout.off(&litter.id, &litter.nonce);
        let tenant = match &litter.tenant {
            Some(tenant) => Some(tenant.clone()),
            None => self.tenant_of(&record_key, &off_key).await?,
        };
        // Nothing stored says whose it is: an empty `off`, as versions up to 0.1.0 wrote it, or what cannot be read. The
        // listing, which is whole, had no head of that id in any tenant, and the head of an enrolment this old is not written
        // any more.
        let user = tenant.map(|tenant| User {
            tenant,
            id: litter.id.clone(),
        });
        let head = match &user {
            Some(user) => self.head(user).await?,
            None => None,
        };
        match (user, head) {
            (Some(user), Some(head)) if head.nonce == litter.nonce => {
                if litter.is_off {
                    self.store.delete(&record_key).await?;
                    self.delete_each(litter.markers.iter().map(String::as_str))
                        .await?;
                    return Ok(true);
                }
                if litter.has_record && litter.markers.is_empty() {
                    self.mark_again(user, litter).await?;
                }
                Ok(false)
            }
            _ => {
                self.store.delete(&record_key).await?;
                self.store.delete(&off_key).await?;
                self.delete_each(litter.markers.iter().map(String::as_str))
                    .await?;
                Ok(true)
            }
        }
    }

    /// The tenant of an enrolment that neither a head nor a marker of the listing names, as its record or its removal tell.
    async fn tenant_of(
        &self,
        record_key: &str,
        off_key: &str,
    ) -> Result<Option<TenantId>, LedgerError> {
        if let Some(json) = self.store.get(record_key).await? {
            match Record::from_json(&json) {
                Ok(record) => return Ok(Some(record.tenant)),
                Err(Unreadable::Damaged) => {}
                // What a newer version wrote may have its head elsewhere.
                Err(Unreadable::Newer) => return Err(LedgerError::RecordTooNew),
            }
        }
        let off = self.store.get(off_key).await?.unwrap_or_default();
        Ok(std::str::from_utf8(&off).ok().and_then(TenantId::parse))
    }

    /// Gives a record that has lost its marker one that is due now.
    async fn mark_again(&self, user: User, litter: &Litter) -> Result<(), LedgerError> {
        self.env.alarm_about("marker_lost", &user);
        let key = self.layout.record(&litter.id, &litter.nonce);
        let Some(json) = self.store.get(&key).await? else {
            return Ok(());
        };
        let Ok(record) = Record::from_json(&json) else {
            self.env.alarm_about("record_not_readable", &user);
            return Ok(());
        };
        let marker = Marker {
            time: self.env.now(),
            write: Nonce::for_write(&self.env),
            ..Marker::of(&user, &litter.nonce, &record)
        };
        Ok(self.store.set(&self.layout.marker(&marker), &[]).await?)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use pollster::block_on;

    use super::*;
    use crate::keeper::KeeperError;
    use crate::keeper::Request;
    use crate::ledger::key_value::layout::Layout;
    use crate::ledger::schedule::DAILY;
    use crate::secret::Bearer;
    use crate::simulation::world::{App, SWEEP_KEY, Shared, World};

    /// A user enrolled days ago, and what a listing without heads and markers says of that.
    fn enrolled() -> (Shared, App, Litter) {
        let world = World::new();
        let app = world.app();
        block_on(app.enrol(&Request::of(&world.bearer()), None)).unwrap();
        world.advance(3 * DAILY);
        let key = world.keys_of("rec.").remove(0);
        let (id, nonce) = Layout::new("").read_private("rec", &key).unwrap();
        let litter = Litter {
            id,
            tenant: None,
            nonce,
            markers: Vec::new(),
            has_record: true,
            is_off: false,
        };
        (world, app, litter)
    }

    fn clear(world: &Shared, litter: &Litter) -> u64 {
        let until = Deadline::within(world, Duration::from_secs(9));
        let ledger = KeyValueLedger::new(Rc::clone(world), Rc::clone(world));
        block_on(ledger.clear_all(vec![litter.clone()], until)).cleared
    }

    #[test]
    fn nothing_is_collected_whose_head_was_not_read() {
        let (world, app, litter) = enrolled();
        let rows = world.user_rows();
        assert_eq!(clear(&world, &litter), 0);
        assert!(rows.keys().all(|key| world.rows.borrow().contains_key(key)));
        // Its token is removed: the removal says whose it is.
        block_on(app.remove_refresh_token(&Request::of(&world.bearer()))).unwrap();
        let off = world.keys_of("off.").remove(0);
        clear(&world, &litter);
        assert!(world.rows.borrow().contains_key(&off), "the head names it");
        let drawn = block_on(app.draw(&Request::of(&world.bearer()), None, None)).map(drop);
        assert_eq!(drawn, Err(KeeperError::Ledger(LedgerError::NoRefreshToken)));
        // The user is gone.
        let head = world.keys_of("usr.").remove(0);
        world.rows.borrow_mut().remove(&head);
        assert_eq!(clear(&world, &litter), 1);
        assert!(!world.rows.borrow().contains_key(&off));
    }

    #[test]
    fn what_a_newer_version_wrote_is_left() {
        let (world, _app, litter) = enrolled();
        world
            .rows
            .borrow_mut()
            .retain(|key, _| key.starts_with("rec."));
        let key = world.keys_of("rec.").remove(0);
        let newer = br#"{"v":2}"#.to_vec();
        world.rows.borrow_mut().insert(key.clone(), newer);
        assert_eq!(clear(&world, &litter), 0);
        assert_eq!(world.lines("litter_left"), 1);
        world.rows.borrow_mut().insert(key.clone(), b"{".to_vec());
        assert_eq!(clear(&world, &litter), 1);
        assert!(!world.rows.borrow().contains_key(&key));
    }

    /// As 0.1.0 wrote it.
    #[test]
    fn an_empty_removal_goes_after_a_whole_listing_without_its_head() {
        let (world, app, litter) = enrolled();
        let off = Layout::new("").off(&litter.id, &litter.nonce);
        let sweep = || {
            let report = block_on(app.sweep(&Request::of(&Bearer::new(SWEEP_KEY.into()))));
            report.map(|report| report.cleared)
        };
        world
            .rows
            .borrow_mut()
            .retain(|key, _| key.starts_with("usr."));
        world.rows.borrow_mut().insert(off.clone(), Vec::new());
        assert_eq!(sweep(), Ok(0));
        assert!(world.rows.borrow().contains_key(&off));
        world
            .rows
            .borrow_mut()
            .retain(|key, _| !key.starts_with("usr."));
        // A listing that never comes to its end is none.
        world.page.set(Some(0));
        world.advance(2 * 3600);
        assert!(matches!(
            sweep(),
            Err(KeeperError::Ledger(LedgerError::Store(_)))
        ));
        assert!(world.rows.borrow().contains_key(&off));
        world.page.set(Some(1));
        assert_eq!(sweep(), Ok(1));
        assert!(!world.rows.borrow().contains_key(&off));
    }
}
