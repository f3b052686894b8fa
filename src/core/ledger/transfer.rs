//! All that a ledger holds, carried over to one that keeps it in another way, while no app uses either.
//!
//! What is carried is what promises rest on: enrolments with their records, byte for byte, and what the schedule says of them;
//! tenants that are being removed; key versions that were in use, and since when others are not; the fingerprint of the
//! settings. What is advice stays behind (what sweeps remember, summaries), and so does litter.
//!
//! There is no list of what was done so far. Both sides are read, and what one has and the other has not is copied: so whoever
//! was interrupted begins again, and it goes on. At the end both are read again, and have to be the same.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::identity::{KeyVersion, Nonce, StorageId, TenantId, User};
use crate::json::object;
use crate::ledger::StoreError;
use crate::ledger::record::{LATEST, Record, Unreadable, VERSION, newer_version};
use crate::ledger::schedule::{MOST_FAILURES, State};

/// Names that a report gives of each kind.
const MOST_NAMED: usize = 10;

/// A ledger of which all can be read and written.
pub trait Holder {
    /// How far it was read, and where everything was when that began.
    type Reading;

    /// How many enrolments it can hold; none: any number.
    fn most(&self) -> Option<u64>;

    /// Begins to read all of it.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn begin(&self) -> Result<Self::Reading, StoreError>;

    /// The next items, in any order; none: that was all.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn next(&self, reading: &mut Self::Reading) -> Result<Option<Vec<Item>>, StoreError>;

    /// Puts items in the place of whatever the reading found under their names. Done twice it is as done once. After an error
    /// an enrolment is there as a whole, or as it was, or in a way that the next reading tells from both.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn put(&self, found: &Self::Reading, items: &[Item]) -> Result<(), StoreError>;

    /// Removes what has these names, of what the reading found.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn discard(&self, found: &Self::Reading, names: &[Name]) -> Result<(), StoreError>;
}

/// What a ledger holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// The enrolment of a user.
    Enrolment(Box<Kept>),
    /// The enrolment of a user, which cannot be carried, because not even its name can be read.
    NotReadable(User),
    /// A tenant that is being removed.
    Bar(TenantId),
    /// A key version, and since when nothing is under it, in Unix seconds; none: something is, or may be.
    Version(TenantId, KeyVersion, Option<u64>),
    /// The fingerprint of the settings that records depend on, as it is stored.
    Settings(Vec<u8>),
}

/// What an item is called.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Name {
    /// A user.
    User(TenantId, StorageId),
    /// A tenant that is being removed.
    Bar(TenantId),
    /// A key version.
    Version(TenantId, KeyVersion),
    /// The fingerprint.
    Settings,
}

/// An enrolment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Whose it is.
    pub user: User,
    /// Its name.
    pub nonce: Nonce,
    /// Unix time in seconds.
    pub enrolled_at: u64,
    /// Its record; none: the refresh token was removed, or its record is lost.
    pub token: Option<Token>,
    /// Whether the record is lost.
    pub is_lost: bool,
}

/// A record, and what a ledger has to know of it without reading it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// The record, byte for byte.
    pub record: Vec<u8>,
    /// The version of its form.
    pub format: u32,
    /// Why it cannot be read.
    pub unreadable: Option<Unreadable>,
    /// 0 if it cannot be read.
    pub generation: u64,
    /// The write that made it.
    pub write: Nonce,
    /// The key version that it is under.
    pub key_version: KeyVersion,
    /// The state that the schedule has it in.
    pub state: State,
    /// When it is looked at next, in Unix seconds.
    pub due_at: u64,
}

/// What a schedule says of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Scheduled {
    pub(crate) write: Nonce,
    pub(crate) key_version: KeyVersion,
    pub(crate) state: State,
    pub(crate) due_at: u64,
}

impl Token {
    /// A record, as it is stored, with what the schedule says of it. The record knows better, where it can be read.
    pub(crate) fn of(record: Vec<u8>, mut scheduled: Option<Scheduled>) -> Self {
        if let Some(Scheduled {
            state: State::Active { failures },
            ..
        }) = &mut scheduled
        {
            *failures = (*failures).min(MOST_FAILURES);
        }
        match Record::from_json(&record) {
            Ok(read) => {
                let (state, due_at) = match scheduled {
                    Some(scheduled) => (scheduled.state, scheduled.due_at),
                    None => (State::of(&read), read.due_at),
                };
                Self {
                    record,
                    format: VERSION,
                    unreadable: None,
                    generation: read.generation,
                    write: read.write,
                    key_version: read.key_version,
                    state,
                    due_at: due_at.min(LATEST),
                }
            }
            Err(unreadable) => {
                let scheduled = scheduled.unwrap_or_else(|| Scheduled::of_unreadable(&record));
                let due_at = scheduled.due_at.min(LATEST);
                Self {
                    format: newer_version(&record).unwrap_or(VERSION),
                    unreadable: Some(unreadable),
                    generation: 0,
                    write: scheduled.write,
                    key_version: scheduled.key_version,
                    // The same whenever it is read.
                    state: scheduled.state.not_readable(due_at),
                    due_at,
                    record,
                }
            }
        }
    }
}

impl Scheduled {
    /// Of a record that no schedule tells of, and that cannot be read: it is looked at as soon as can be. Made of the record
    /// alone, so that it is the same whenever it is read.
    fn of_unreadable(record: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Told {
            key_version: String,
        }
        let told: Option<Told> = object(record);
        let told = told.and_then(|told| KeyVersion::parse(&told.key_version));
        Self {
            write: Nonce::of_content(record),
            key_version: told.unwrap_or_else(KeyVersion::unknown),
            state: State::NotReadable { since: 0 },
            due_at: 0,
        }
    }
}

impl Item {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> Name {
        match self {
            Self::Enrolment(kept) => name_of(&kept.user),
            Self::NotReadable(user) => name_of(user),
            Self::Bar(tenant) => Name::Bar(tenant.clone()),
            Self::Version(tenant, version, _) => Name::Version(tenant.clone(), version.clone()),
            Self::Settings(_) => Name::Settings,
        }
    }

    /// What tells it from another of the same name; none: it cannot be carried.
    fn hash(&self) -> Option<Hash> {
        let mut hash = Sha256::new();
        match self {
            Self::Enrolment(kept) => {
                hash.update(format!("{}/{}/", kept.nonce.as_str(), kept.enrolled_at));
                if let Some(token) = &kept.token {
                    let (write, version) = (token.write.as_str(), token.key_version.as_str());
                    hash.update(format!("{write}/{version}/{:?}/", token.state));
                    hash.update(format!("{}/", token.due_at));
                    hash.update(&token.record);
                }
                if kept.is_lost {
                    hash.update("lost");
                }
            }
            Self::NotReadable(_) => return None,
            Self::Bar(_) => {}
            Self::Version(_, _, since) => hash.update(format!("{since:?}")),
            Self::Settings(json) => hash.update(json),
        }
        Some(hash.finalize().into())
    }
}

fn name_of(user: &User) -> Name {
    Name::User(user.tenant.clone(), user.id.clone())
}

type Hash = [u8; 32];

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Items that were read of the one side or the other.
    Read(u64),
    /// Items that were copied or removed, and of how many.
    Copied(u64, u64),
    /// Items that were read of both sides, to see whether they are the same.
    Verified(u64),
}

/// What was carried over, and what was not.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// What there is to carry.
    pub from: Numbers,
    /// Items that were copied.
    pub copied: u64,
    /// Items that were removed, because there is nothing of that name to carry.
    pub removed: u64,
    /// Items that were there already.
    pub same: u64,
    /// Users whose record is carried though it cannot be read, a newer version's among them.
    pub unreadable: Names,
    /// Users whose record is lost. They are carried without one.
    pub lost: Names,
    /// Users who could not be carried, because what names their enrolment cannot be read.
    pub left: Names,
    /// What is different all the same, once all is done.
    pub different: Names,
}

impl Report {
    /// Whether all is on both sides.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.left.total == 0 && self.different.total == 0
    }
}

/// How many items of each kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Numbers {
    /// Enrolments, those without a refresh token among them.
    pub enrolments: u64,
    /// Enrolments without a refresh token.
    pub without_token: u64,
    /// Tenants that are being removed.
    pub bars: u64,
    /// Key versions.
    pub versions: u64,
}

/// How many, and some of their names.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Names {
    /// How many.
    pub total: u64,
    /// The first of them, in words.
    pub some: Vec<String>,
}

impl Names {
    fn add(&mut self, name: &Name) {
        self.total = self.total.saturating_add(1);
        if self.some.len() < MOST_NAMED {
            self.some.push(match name {
                Name::User(tenant, id) => format!("user {} of {tenant}", id.as_str()),
                Name::Bar(tenant) => format!("the removal of {tenant}"),
                Name::Version(tenant, version) => {
                    format!("key version {} of {tenant}", version.as_str())
                }
                Name::Settings => "the fingerprint of the settings".into(),
            });
        }
    }
}

/// Why nothing, or not all, was carried over.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TransferError {
    /// Where it is to come from cannot be read. Nothing was lost.
    #[error("what is to be copied cannot be read: {0}")]
    From(StoreError),
    /// Where it is to go cannot be read or written. Nothing was lost.
    #[error("where it is to go cannot be read or written: {0}")]
    To(StoreError),
    /// Something else is there already. Nothing was changed.
    #[error("something else is there already, and nothing was changed")]
    Occupied {
        /// What is there and is to be another.
        other: Names,
        /// What is there and is not to be.
        extra: Names,
    },
    /// There are more enrolments than the other side can hold. Nothing was changed.
    #[error("there are {0} enrolments, and at most {1} can be kept there; nothing was changed")]
    TooMany(u64, u64),
    /// There is nothing to carry, and so many enrolments are there: it is another place that was meant. Nothing was changed.
    #[error("there is nothing to copy, and {0} enrolments are there already; nothing was changed")]
    Nothing(u64),
}

/// Carries all that `from` holds over to `to`, which holds the same afterwards. What `to` holds already has to be a part of
/// it, unless it may `replace` what is there.
///
/// # Errors
/// [`TransferError`], after which it is to be called again: it goes on.
pub async fn carry_over<F: Holder, T: Holder>(
    from: &F,
    to: &T,
    replace: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, TransferError> {
    let mut read = 0_u64;
    let mut tell = |number: u64| {
        read = read.saturating_add(number);
        progress(Progress::Read(read));
    };
    let (mut report, mut source) = (Report::default(), Contents::default());
    let mut reading = from.begin().await.map_err(TransferError::From)?;
    while let Some(items) = from.next(&mut reading).await.map_err(TransferError::From)? {
        tell(number(items.len()));
        for item in items {
            report.note(&item);
            source.add_to_carry(&item);
        }
    }
    drop(reading);
    if let Some(most) = to.most()
        && report.from.enrolments > most
    {
        return Err(TransferError::TooMany(report.from.enrolments, most));
    }
    let (found, target) = Contents::read(to, Contents::add, &mut tell)
        .await
        .map_err(TransferError::To)?;
    report.from.versions = number(source.versions().count());
    let plan = source.compare(&target);
    report.same = plan.same;
    if !replace && (plan.other.total > 0 || plan.extra.total > 0) {
        return Err(TransferError::Occupied {
            other: plan.other,
            extra: plan.extra,
        });
    }
    if report.from.enrolments == 0 {
        let is_user = |name: &&Name| matches!(name, Name::User(..));
        let there = number(target.items.keys().filter(is_user).count());
        if there > 0 {
            return Err(TransferError::Nothing(there));
        }
    }
    let whole = number(plan.put.len().saturating_add(plan.remove.len()));
    let mut done = 0_u64;
    let mut reading = from.begin().await.map_err(TransferError::From)?;
    while let Some(items) = from.next(&mut reading).await.map_err(TransferError::From)? {
        let items: Vec<_> = items
            .into_iter()
            .filter(|item| plan.put.contains(&item.name()))
            .map(|item| source.as_counted(item))
            .collect();
        if !items.is_empty() {
            to.put(&found, &items).await.map_err(TransferError::To)?;
            done = done.saturating_add(number(items.len()));
        }
        progress(Progress::Copied(done, whole));
    }
    drop(reading);
    // A key version of which nothing was noted has come with what is under it.
    report.copied = number(plan.put.len());
    for names in plan.remove.chunks(REMOVED_AT_ONCE) {
        to.discard(&found, names).await.map_err(TransferError::To)?;
        report.removed = report.removed.saturating_add(number(names.len()));
        progress(Progress::Copied(
            report.copied.saturating_add(report.removed),
            whole,
        ));
    }
    drop((found, source, target));
    // Both, because whoever used one of them meanwhile would not be seen otherwise.
    let mut verified = 0_u64;
    let mut tell = |number: u64| {
        verified = verified.saturating_add(number);
        progress(Progress::Verified(verified));
    };
    let (_, source) = Contents::read(from, Contents::add_to_carry, &mut tell)
        .await
        .map_err(TransferError::From)?;
    let (_, target) = Contents::read(to, Contents::add, &mut tell)
        .await
        .map_err(TransferError::To)?;
    report.different = source.compare(&target).differences();
    Ok(report)
}

/// Items that are removed at once.
const REMOVED_AT_ONCE: usize = 500;

impl Report {
    fn note(&mut self, item: &Item) {
        let increase = |number: &mut u64| *number = number.saturating_add(1);
        let name = item.name();
        match item {
            Item::Enrolment(kept) => {
                increase(&mut self.from.enrolments);
                match &kept.token {
                    None => increase(&mut self.from.without_token),
                    Some(token) if token.unreadable.is_some() => self.unreadable.add(&name),
                    Some(_) => {}
                }
                if kept.is_lost {
                    self.lost.add(&name);
                }
            }
            Item::NotReadable(_) => self.left.add(&name),
            Item::Bar(_) => increase(&mut self.from.bars),
            Item::Version(..) | Item::Settings(_) => {}
        }
    }
}

/// What a ledger holds, by name, and what tells it from something else.
#[derive(Default)]
struct Contents {
    items: BTreeMap<Name, Option<Hash>>,
    /// Key versions that a record is under, whatever was noted of them.
    used: BTreeSet<Name>,
}

/// What has to be done so that one side is as the other.
#[derive(Default)]
struct Plan {
    same: u64,
    missing: Names,
    other: Names,
    extra: Names,
    put: BTreeSet<Name>,
    remove: Vec<Name>,
}

impl Contents {
    async fn read<H: Holder>(
        holder: &H,
        add: fn(&mut Self, &Item),
        tell: &mut dyn FnMut(u64),
    ) -> Result<(H::Reading, Self), StoreError> {
        let (mut contents, mut reading) = (Self::default(), holder.begin().await?);
        while let Some(items) = holder.next(&mut reading).await? {
            tell(number(items.len()));
            for item in items {
                add(&mut contents, &item);
            }
        }
        Ok((reading, contents))
    }

    fn add(&mut self, item: &Item) {
        if let Item::Enrolment(kept) = item
            && let Some(token) = &kept.token
        {
            let version = Item::Version(kept.user.tenant.clone(), token.key_version.clone(), None);
            self.items.insert(version.name(), version.hash());
            self.used.insert(version.name());
        }
        let name = item.name();
        if !self.used.contains(&name) {
            self.items.insert(name, item.hash());
        }
    }

    /// As [`Self::add`], of what is to be carried: one whose record is lost arrives as one whose token was removed.
    fn add_to_carry(&mut self, item: &Item) {
        match item {
            Item::Enrolment(kept) if kept.is_lost => {
                let mut kept = kept.clone();
                kept.is_lost = false;
                self.add(&Item::Enrolment(kept));
            }
            item => self.add(item),
        }
    }

    fn versions(&self) -> impl Iterator<Item = &Name> {
        let names = self.items.keys();
        names.filter(|name| matches!(name, Name::Version(..)))
    }

    /// An item as it was counted: a key version that something is under is in use, whatever was noted.
    fn as_counted(&self, item: Item) -> Item {
        match item {
            Item::Version(tenant, version, Some(_))
                if self.used.contains(&item_name(&tenant, &version)) =>
            {
                Item::Version(tenant, version, None)
            }
            item => item,
        }
    }

    /// What has to be done so that `target` is as this. What cannot be carried is left alone.
    fn compare(&self, target: &Self) -> Plan {
        let mut plan = Plan::default();
        for (name, hash) in &self.items {
            match (hash, target.items.get(name)) {
                (None, _) => {}
                (Some(hash), Some(Some(there))) if hash == there => {
                    plan.same = plan.same.saturating_add(1);
                }
                (Some(_), there) => {
                    let names = match there {
                        Some(_) => &mut plan.other,
                        None => &mut plan.missing,
                    };
                    names.add(name);
                    plan.put.insert(name.clone());
                }
            }
        }
        for name in target.items.keys() {
            if !self.items.contains_key(name) {
                plan.extra.add(name);
                plan.remove.push(name.clone());
            }
        }
        plan
    }
}

impl Plan {
    fn differences(self) -> Names {
        let mut all = Names::default();
        for names in [self.missing, self.other, self.extra] {
            all.total = all.total.saturating_add(names.total);
            all.some.extend(names.some);
        }
        all.some.truncate(MOST_NAMED);
        all
    }
}

fn item_name(tenant: &TenantId, version: &KeyVersion) -> Name {
    Name::Version(tenant.clone(), version.clone())
}

fn number(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
