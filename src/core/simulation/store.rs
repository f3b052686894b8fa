//! The store: slow, failing now and then, and with the mistake that is switched on.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::ledger::StoreError;
use crate::ledger::key_value::head::Head;
use crate::ledger::key_value::layout::{Layout, Marker};
use crate::ledger::key_value::store::{Page, Store};
use crate::ledger::schedule::State;
use crate::simulation::history::Operation;
use crate::simulation::mutation::Mutation;
use crate::simulation::outside::{Bar, Outside};
use crate::simulation::port::Port;

impl Store for Port {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let outside = &self.outside;
        outside.pause().await;
        if outside.chance.happens(outside.faults.get().store) {
            return Err(StoreError("injected".into()));
        }
        if key == "sweep.state" && outside.chance.happens(600) {
            // Advice may be lost.
            return Ok(None);
        }
        if outside.is(Mutation::BarNotSeen) && key.starts_with("bar.") {
            return Ok(None);
        }
        let value = outside.rows.borrow().get(key).cloned();
        let act = outside.current.get();
        let is_kept = match outside.mutation {
            Some(Mutation::NoFinalHeadRead) => key.starts_with("usr."),
            Some(Mutation::OffNotReadAgain) => key.starts_with("off."),
            _ => false,
        };
        let releases = matches!(outside.doing(), Operation::Draw | Operation::Call);
        if releases && let Some(value) = outside.mistaken_look(key) {
            return Ok(value);
        }
        let is_release = releases && outside.acts.borrow()[act].answered > 0;
        if is_release && let Some(value) = self.mutated_release(key).await {
            return Ok(value);
        }
        if is_kept && releases {
            let mut read = outside.notes.read.borrow_mut();
            return Ok(read.entry((act, key.to_owned())).or_insert(value).clone());
        }
        outside.pause().await;
        Ok(value)
    }

    async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.outside.mutated(key, Some(value)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.outside.mutated(key, None).await
    }

    async fn set_many(&self, pairs: &[(&str, &[u8])]) -> Result<(), StoreError> {
        for (key, value) in pairs {
            self.outside.mutated(key, Some(value)).await?;
        }
        Ok(())
    }

    async fn delete_many(&self, keys: &[&str]) -> Result<(), StoreError> {
        let mut enrolments = BTreeSet::new();
        for key in keys {
            if self.outside.is(Mutation::SecondMarkersKept)
                && let Some(marker) = Layout::new("").read_marker(key)
                && !enrolments.insert(marker.nonce.as_str().to_owned())
            {
                continue;
            }
            self.outside.mutated(key, None).await?;
        }
        Ok(())
    }

    /// Lists in two pages, as a backend lists that does not do it in one transaction.
    async fn list_keys(&self, cursor: Option<&str>) -> Result<Page, StoreError> {
        let outside = &self.outside;
        outside.pause().await;
        if outside.chance.happens(outside.faults.get().store) {
            return Err(StoreError("injected".into()));
        }
        let middle = match cursor {
            Some(middle) => middle.to_owned(),
            None => outside
                .chance
                .one_of(&["due.", "off.", "rec.", "usr."])
                .to_owned(),
        };
        let (from, to) = match cursor {
            Some(_) => (Bound::Included(middle.clone()), Bound::Unbounded),
            None => (Bound::Unbounded, Bound::Excluded(middle.clone())),
        };
        let keys = {
            let rows = outside.rows.borrow();
            let keys = rows.range((from, to)).map(|(key, _)| key.clone());
            keys.collect::<Vec<_>>()
        };
        if outside.is(Mutation::OldVersionKept) {
            let mut listed = outside.notes.listed.borrow_mut();
            let listed = listed.entry(outside.current.get()).or_default();
            if cursor.is_none() {
                listed.clear();
            }
            listed.extend(keys.iter().cloned());
        }
        let mut page = Page {
            keys,
            cursor: cursor.is_none().then_some(middle),
        };
        if outside.is(Mutation::ListingCutShort) {
            page.cursor = None;
        }
        if outside.is(Mutation::TenantListedByMarkers) && outside.doing() == Operation::RemoveTenant
        {
            let rows = outside.rows.borrow();
            let markers = rows
                .keys()
                .filter_map(|key| Layout::new("").read_marker(key));
            let marked: Vec<_> = markers.map(|marker| marker.user.id).collect();
            page.keys.retain(|key| {
                !key.starts_with("usr.") || marked.iter().any(|id| key.ends_with(id.as_str()))
            });
        }
        Ok(page)
    }
}

impl Port {
    /// What the mistake that is switched on reads before a release, in the place of `off` and then the head. It is none if
    /// there is no such mistake.
    async fn mutated_release(&self, key: &str) -> Option<Option<Vec<u8>>> {
        let outside = &self.outside;
        let is_off = key.starts_with("off.");
        if !is_off && !key.starts_with("usr.")
            || is_off && outside.acts.borrow()[outside.current.get()].has_read_head
        {
            return None;
        }
        let head_first = match outside.mutation? {
            Mutation::ReleasedByHeadAlone if is_off => return Some(None),
            Mutation::ReleasedByHeadAlone => false,
            Mutation::ReleasedByHeadThenOff => true,
            Mutation::ReleasedSideBySide => outside.chance.below(2) == 0,
            _ => return None,
        };
        let place = (outside.current.get(), "usr.".to_owned());
        if !is_off {
            outside.acts.borrow_mut()[place.0].has_read_head = true;
            return outside.notes.read.borrow_mut().remove(&place);
        }
        if head_first {
            let id = key.split('.').nth(1)?;
            let head = {
                let rows = outside.rows.borrow();
                let mut rows = rows.iter();
                let head = rows.find(|(key, _)| key.starts_with("usr.") && key.ends_with(id));
                head.map(|(_, head)| head.clone())
            };
            outside.notes.read.borrow_mut().insert(place, head);
        }
        // The one read may take long.
        for _ in 0..outside.chance.below(40) {
            outside.pause().await;
        }
        Some(outside.rows.borrow().get(key).cloned())
    }
}

impl Outside {
    /// `write`, with the mistake that is switched on.
    async fn mutated(&self, key: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
        let act = self.current.get();
        let (is_head, doing) = (key.starts_with("usr."), self.doing());
        let Some(mutation) = self.mutation else {
            return self.write(key, value).await;
        };
        match (mutation, value) {
            (Mutation::HeadBeforeRecord, Some(value)) if doing == Operation::Enrol => {
                if !is_head {
                    let mut late = self.notes.held_back.borrow_mut();
                    late.entry(act)
                        .or_default()
                        .push((key.to_owned(), value.to_owned()));
                    return Ok(());
                }
                self.write(key, Some(value)).await?;
                let late = self
                    .notes
                    .held_back
                    .borrow_mut()
                    .remove(&act)
                    .unwrap_or_default();
                for (key, value) in late {
                    self.write(&key, Some(&value)).await?;
                }
                Ok(())
            }
            (Mutation::HeadRetried | Mutation::HeadUndone, Some(value)) if is_head => {
                let Err(error) = self.write(key, Some(value)).await else {
                    return Ok(());
                };
                // As long as a client waits before it tries again.
                for _ in 0..24 {
                    self.pause().await;
                }
                if mutation == Mutation::HeadRetried {
                    return self.write(key, Some(value)).await;
                }
                self.write(key, None).await?;
                Err(error)
            }
            (Mutation::NoOff, Some(_)) if key.starts_with("off.") => Ok(()),
            (Mutation::MarkerDeletedWithoutOwn, Some(_))
                if doing == Operation::Sweep && key.starts_with("due.") =>
            {
                Ok(())
            }
            // This is the marker of a refresh that is put off.
            (Mutation::OldVersionKept, Some(value))
                if doing == Operation::Sweep && is_put_off(key) =>
            {
                let key = self.with_old_version(act, key);
                self.write(&key, Some(value)).await
            }
            (Mutation::WrittenUnderAnother, Some(_))
                if doing == Operation::Sweep && key.starts_with("rec.") =>
            {
                self.pause().await;
                let id = key.split('.').nth(1).unwrap();
                let rows = self.rows.borrow().clone();
                let head = rows
                    .iter()
                    .find(|(head, _)| head.starts_with("usr.") && head.ends_with(id));
                match head.map(|(_, head)| Head::from_json(head).unwrap().nonce) {
                    Some(nonce) => {
                        self.write(&format!("rec.{id}.{}", nonce.as_str()), value)
                            .await
                    }
                    None => self.write(key, value).await,
                }
            }
            (Mutation::RefreshTokenNotStored, Some(_))
                if doing == Operation::Enrol && key.starts_with("rec.") =>
            {
                // As if its failure had been overlooked.
                let _ = self.write(key, value).await;
                Ok(())
            }
            (Mutation::RecordDeletedBeforeHead, None) if is_head => {
                let id = key.rsplit('.').next().unwrap();
                let records: Vec<_> = self
                    .rows
                    .borrow()
                    .keys()
                    .filter(|key| key.starts_with(&format!("rec.{id}")))
                    .cloned()
                    .collect();
                for record in records {
                    self.write(&record, None).await?;
                }
                self.write(key, None).await
            }
            _ => self.write(key, value).await,
        }
    }

    /// The name of a marker with the key version of another that this sweep listed for the enrolment.
    fn with_old_version(&self, act: usize, key: &str) -> String {
        let layout = Layout::new("");
        let fresh = layout.read_marker(key).unwrap();
        let listed = self.notes.listed.borrow();
        let mut markers = listed[&act]
            .iter()
            .filter_map(|key| layout.read_marker(key));
        let other = markers
            .find(|other| other.nonce == fresh.nonce && other.key_version != fresh.key_version);
        let key_version = other.map_or(fresh.key_version.clone(), |other| other.key_version);
        layout.marker(&Marker {
            key_version,
            ..fresh
        })
    }

    /// Writes a value, or deletes the key. If that fails, it may have been done all the same.
    async fn write(&self, key: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
        self.pause().await;
        // The commits are few, and what a failure does there matters most.
        let weight = if key.starts_with("usr.") { 5 } else { 1 };
        let fails = self.chance.happens(self.faults.get().store * weight);
        let is_done = !fails || self.chance.below(2) == 0;
        if is_done {
            self.put(key, value);
        }
        self.pause().await;
        if fails {
            return Err(StoreError("injected".into()));
        }
        Ok(())
    }

    /// Changes what is stored, and looks at once whether it may be so.
    fn put(&self, key: &str, value: Option<&[u8]>) {
        let mut rows = self.rows.borrow_mut();
        match value {
            Some(value) => rows.insert(key.to_owned(), value.to_owned()),
            None => rows.remove(key),
        };
        drop(rows);
        if key.starts_with("bar.") {
            let mut bars = self.bars.borrow_mut();
            let open = bars
                .iter_mut()
                .find(|bar| bar.key == key && bar.until == u64::MAX);
            match (open, value) {
                (None, Some(_)) => bars.push(Bar {
                    key: key.to_owned(),
                    from: self.step.get(),
                    until: u64::MAX,
                }),
                (Some(bar), None) => bar.until = self.step.get(),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        if let Some(lost) = self.unmarked() {
            self.violation(format!("after {key}: no marker for {lost}"));
        }
    }

    /// An enrolment in force that no marker names.
    fn unmarked(&self) -> Option<String> {
        let rows = self.rows.borrow();
        let heads = rows.range("usr.".to_owned().."usr/".to_owned());
        heads.into_iter().find_map(|(key, head)| {
            let nonce = Head::from_json(head).ok()?.nonce;
            let id = key.rsplit('.').next()?;
            let of = |kind: &str| format!("{kind}.{id}.{}", nonce.as_str());
            let is_active = rows.contains_key(&of("rec")) && !rows.contains_key(&of("off"));
            let part = format!(".{id}.{}.", nonce.as_str());
            let mut markers = rows.range("due.".to_owned().."due/".to_owned());
            (is_active && !markers.any(|(key, _)| key.contains(&part))).then(|| of("rec"))
        })
    }
}

/// Whether it is the key of a marker of a refresh that failed before.
fn is_put_off(key: &str) -> bool {
    let marker = Layout::new("").read_marker(key);
    marker.is_some_and(|marker| matches!(marker.state, State::Active { failures: 1.. }))
}
