//! All of this ledger at once, for moving it (`ledger/transfer.rs`), while no app uses it.
//!
//! The order of the steps is that of an enrolment: what a head leads to is there before it, so that whoever is interrupted
//! leaves litter, or an enrolment that is another than it should be, and the next reading tells which.

use std::collections::{BTreeMap, BTreeSet};

use crate::identity::{KeyVersion, Nonce, StorageId, TenantId, User};
use crate::ledger::StoreError;
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::head::Head;
use crate::ledger::key_value::layout::Marker;
use crate::ledger::key_value::listing::{Listing, Use};
use crate::ledger::key_value::store::Store;
use crate::ledger::record::Record;
use crate::ledger::transfer::{Holder, Item, Kept, Name, Scheduled, Token};
use crate::port::Environment;

/// Enrolments that are read at once.
const AT_ONCE: usize = 200;

/// One listing, and how far it was gone through.
pub struct Reading {
    listing: Listing,
    users: std::vec::IntoIter<User>,
    versions: BTreeMap<(TenantId, KeyVersion), Use>,
    /// Where the keys are that are private to enrolments of a user; in the order of users.
    private: Vec<(StorageId, usize)>,
    is_begun: bool,
}

impl Reading {
    /// The keys that are private to enrolments of a user.
    fn private_of(&self, id: &StorageId) -> impl Iterator<Item = &String> {
        let first = self.private.partition_point(|(of, _)| of < id);
        let private = self.private.get(first..).unwrap_or_default();
        let of_user = private.iter().take_while(move |(of, _)| of == id);
        of_user.filter_map(|(_, at)| self.listing.key_at(*at))
    }

    /// Every note of a key version.
    fn notes(&self, tenant: &TenantId, version: &KeyVersion) -> impl Iterator<Item = u64> {
        let of = self.versions.get(&(tenant.clone(), version.clone()));
        of.into_iter().flat_map(|of| of.noted.iter().copied())
    }
}

impl<S: Store + Clone, E: Environment + Clone> Holder for KeyValueLedger<S, E> {
    type Reading = Reading;

    fn most(&self) -> Option<u64> {
        Some(self.layout.most_users())
    }

    async fn begin(&self) -> Result<Reading, StoreError> {
        let listing = Listing::read(&self.layout, &self.store).await?;
        let users: Vec<_> = listing.users().collect();
        let mut private: Vec<_> = listing.private_positions().collect();
        private.sort_unstable();
        Ok(Reading {
            users: users.into_iter(),
            versions: listing.versions(),
            private,
            listing,
            is_begun: false,
        })
    }

    async fn next(&self, reading: &mut Reading) -> Result<Option<Vec<Item>>, StoreError> {
        if !std::mem::replace(&mut reading.is_begun, true) {
            let settings = self.store.get(&self.layout.fingerprint()).await?;
            let mut items: Vec<_> = settings.map(Item::Settings).into_iter().collect();
            items.extend(reading.listing.bars().map(Item::Bar));
            items.extend(reading.versions.iter().map(|((tenant, version), of)| {
                Item::Version(tenant.clone(), version.clone(), of.unused_since())
            }));
            return Ok(Some(items));
        }
        let users: Vec<_> = reading.users.by_ref().take(AT_ONCE).collect();
        if users.is_empty() {
            return Ok(None);
        }
        let mut items = Vec::with_capacity(users.len());
        for user in users {
            items.extend(self.read_all_of(reading, user).await?);
        }
        Ok(Some(items))
    }

    async fn put(&self, found: &Reading, items: &[Item]) -> Result<(), StoreError> {
        let (mut first, mut then, mut last) = (Vec::new(), Vec::new(), Vec::new());
        let mut old = Vec::new();
        for item in items {
            match item {
                Item::Enrolment(kept) => {
                    let (private, head) = self.keys_of(kept);
                    let is_kept = |key: &String| private.iter().any(|(kept, _)| kept == key);
                    let private_of = found.private_of(&kept.user.id);
                    old.extend(private_of.filter(|key| !is_kept(key)).cloned());
                    first.extend(private);
                    last.push(head);
                }
                Item::NotReadable(_) => {}
                Item::Bar(tenant) => then.push((self.layout.bar(tenant), Vec::new())),
                Item::Version(tenant, version, since) => {
                    let since = since.unwrap_or(0);
                    let key = |since| self.layout.version(tenant, version, since);
                    let notes = found.notes(tenant, version);
                    old.extend(notes.filter(|noted| *noted != since).map(key));
                    then.push((key(since), Vec::new()));
                }
                Item::Settings(json) => then.push((self.layout.fingerprint(), json.clone())),
            }
        }
        self.set_all(&first).await?;
        self.set_all(&then).await?;
        self.set_all(&last).await?;
        // What no head leads to any more, and what was removed.
        self.delete_all(&old).await
    }

    async fn discard(&self, found: &Reading, names: &[Name]) -> Result<(), StoreError> {
        let (mut first, mut then) = (Vec::new(), Vec::new());
        for name in names {
            match name {
                Name::User(tenant, id) => {
                    let (tenant, id) = (tenant.clone(), id.clone());
                    then.extend(found.private_of(&id).cloned());
                    first.push(self.layout.head(&User { tenant, id }));
                }
                Name::Bar(tenant) => first.push(self.layout.bar(tenant)),
                Name::Version(tenant, version) => first.extend(
                    found
                        .notes(tenant, version)
                        .map(|since| self.layout.version(tenant, version, since)),
                ),
                Name::Settings => first.push(self.layout.fingerprint()),
            }
        }
        self.delete_all(&first).await?;
        self.delete_all(&then).await
    }
}

type Pair = (String, Vec<u8>);

impl<S: Store + Clone, E: Environment + Clone> KeyValueLedger<S, E> {
    /// The enrolment of a user; none if there is none any more.
    async fn read_all_of(&self, reading: &Reading, user: User) -> Result<Option<Item>, StoreError> {
        let Some(json) = self.store.get(&self.layout.head(&user)).await? else {
            return Ok(None);
        };
        let Ok(head) = Head::from_json(&json) else {
            return Ok(Some(Item::NotReadable(user)));
        };
        let (off, record_key) = (
            self.layout.off(&user.id, &head.nonce),
            self.layout.record(&user.id, &head.nonce),
        );
        let mut markers = Vec::new();
        let mut is_off = false;
        for key in reading.private_of(&user.id) {
            is_off |= *key == off;
            let marker = self.layout.read_marker(key);
            markers.extend(marker.filter(|marker| marker.nonce == head.nonce));
        }
        let record = if is_off {
            None
        } else {
            self.store.get(&record_key).await?
        };
        Ok(Some(Item::Enrolment(Box::new(Kept {
            nonce: head.nonce,
            // What a database's numbers can hold.
            enrolled_at: head.created_at.min(i64::MAX.unsigned_abs()),
            is_lost: record.is_none() && !is_off,
            token: record.map(|record| {
                let scheduled = leading(&record, markers);
                Token::of(record, scheduled)
            }),
            user,
        }))))
    }

    /// The keys of an enrolment: those that are private to it, and its head.
    fn keys_of(&self, kept: &Kept) -> (Vec<Pair>, Pair) {
        let (user, nonce) = (&kept.user, &kept.nonce);
        let private = match &kept.token {
            None => {
                let tenant = user.tenant.as_str().as_bytes();
                vec![(self.layout.off(&user.id, nonce), tenant.into())]
            }
            Some(token) => {
                let marker = Marker {
                    time: token.due_at,
                    state: token.state,
                    key_version: token.key_version.clone(),
                    user: user.clone(),
                    nonce: nonce.clone(),
                    write: token.write.clone(),
                };
                let record = self.layout.record(&user.id, nonce);
                vec![
                    (self.layout.marker(&marker), Vec::new()),
                    (record, token.record.clone()),
                ]
            }
        };
        let head = Head {
            nonce: nonce.clone(),
            tenant: user.tenant.clone(),
            created_at: kept.enrolled_at,
        };
        (private, (self.layout.head(user), head.to_json()))
    }

    async fn set_all(&self, pairs: &[Pair]) -> Result<(), StoreError> {
        let pairs: Vec<_> = (pairs.iter())
            .map(|(key, value)| (key.as_str(), value.as_slice()))
            .collect();
        if pairs.is_empty() {
            return Ok(());
        }
        self.store.set_many(&pairs).await
    }

    async fn delete_all(&self, keys: &[String]) -> Result<(), StoreError> {
        // One that is named twice is deleted once.
        let keys: BTreeSet<_> = keys.iter().map(String::as_str).collect();
        let keys: Vec<_> = keys.into_iter().collect();
        if keys.is_empty() {
            return Ok(());
        }
        self.store.delete_many(&keys).await
    }
}

/// What the schedule says of a record. Of several markers, which a writer that died has left, it is the record's own, or else
/// the one that leads there first.
fn leading(record: &[u8], mut markers: Vec<Marker>) -> Option<Scheduled> {
    let own: Option<Nonce> = Record::from_json(record).ok().map(|record| record.write);
    markers.sort_by_key(|marker| (own.as_ref() != Some(&marker.write), marker.time));
    let marker = markers.into_iter().next()?;
    Some(Scheduled {
        write: marker.write,
        key_version: marker.key_version,
        state: marker.state,
        due_at: marker.time,
    })
}
