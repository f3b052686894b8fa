//! Names of keys in storage. Every name matches `[A-Za-z0-9._-]+`, the one set that every
//! backend of Spin takes (PLATFORMS.md, "Key-value backends").
//!
//! | Key | Value |
//! |---|---|
//! | `usr.{tenant}.{id}` | the user's head: names the current enrolment |
//! | `rec.{id}.{n}` | the record of enrolment `n` |
//! | `off.{id}.{n}` | "application access was removed for `n`"; never undone. The tenant; empty up to 0.1.0 |
//! | `due.{time}.{state}.{key version}.{tenant}.{id}.{n}.{w}` | a marker; empty value |
//! | `ver.{tenant}.{key version}.{since}` | since when no marker has named that version; 0: one did |
//! | `bar.{tenant}` | the tenant is being removed: nobody of it enrols |
//! | `sweep.state` | what sweeps remember; no sweep needs it |
//! | `sweep.summary` | what a sweep has counted; names the pages `sum.{w}.{page}` of it that tell of tenants |
//! | `settings.seen` | the fingerprint of the settings that records depend on |
//!
//! `{state}` is a letter and a number: `a3` is active, with three failed refreshes since the last that worked; `q19874` is
//! quarantined, with a refresh token from day 19,874 of the Unix epoch. A number costs one to five bytes a user, and one
//! listing may have 128 MiB: with 288 bytes of names and 72 of overhead, 300,000 users take 104 MiB.
//!
//! `{tenant}` is the tenant id without dashes: whole, so that no two tenants share a tag, and in the clear, since the
//! `kid` of a record names the tenant anyway.

use crate::identity::User;
use crate::identity::{KeyVersion, Nonce, StorageId, TenantId};
use crate::ledger::record::Record;
use crate::ledger::schedule::{MOST_FAILURES, State};

/// What one listing may have, in bytes.
const LISTING: u64 = 128 * 1024 * 1024;
/// What the three keys of a user take in it, with some room.
const OF_USER: u64 = 380;

/// Makes key names under the setting `store_prefix`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    prefix: String,
}

impl Layout {
    /// A layout under a prefix, which may be empty.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
        }
    }

    /// How many users' keys fit into one listing, about.
    #[must_use]
    pub fn most_users(&self) -> u64 {
        let prefix = u64::try_from(self.prefix.len()).unwrap_or(u64::MAX);
        let of_user = prefix.saturating_mul(3).saturating_add(OF_USER);
        LISTING.checked_div(of_user).unwrap_or(0)
    }

    /// Key of a user's head.
    #[must_use]
    pub fn head(&self, user: &User) -> String {
        format!(
            "{}usr.{}.{}",
            self.prefix,
            user.tenant.digits(),
            user.id.as_str()
        )
    }

    /// Key of the record of an enrolment.
    #[must_use]
    pub fn record(&self, id: &StorageId, nonce: &Nonce) -> String {
        format!("{}rec.{}.{}", self.prefix, id.as_str(), nonce.as_str())
    }

    /// Key that says that application access was removed for an enrolment.
    #[must_use]
    pub fn off(&self, id: &StorageId, nonce: &Nonce) -> String {
        format!("{}off.{}.{}", self.prefix, id.as_str(), nonce.as_str())
    }

    /// Key of a marker.
    #[must_use]
    pub fn marker(&self, marker: &Marker) -> String {
        format!(
            "{}due.{:012}.{}.{}.{}.{}.{}.{}",
            self.prefix,
            marker.time,
            state_text(marker.state),
            marker.key_version.as_str(),
            marker.user.tenant.digits(),
            marker.user.id.as_str(),
            marker.nonce.as_str(),
            marker.write.as_str(),
        )
    }

    /// Key that says that a tenant is being removed.
    #[must_use]
    pub fn bar(&self, tenant: &TenantId) -> String {
        format!("{}bar.{}", self.prefix, tenant.digits())
    }

    /// Key that says since when no marker has named a key version; 0: one did at the last listing.
    #[must_use]
    pub fn version(&self, tenant: &TenantId, version: &KeyVersion, since: u64) -> String {
        format!(
            "{}ver.{}.{}.{since:012}",
            self.prefix,
            tenant.digits(),
            version.as_str()
        )
    }

    /// Key of what sweeps remember.
    #[must_use]
    pub fn sweep_state(&self) -> String {
        format!("{}sweep.state", self.prefix)
    }

    /// Key of the summary's first page, which names the others.
    #[must_use]
    pub fn summary(&self) -> String {
        format!("{}sweep.summary", self.prefix)
    }

    /// Key of a further page of the summary that a write made.
    #[must_use]
    pub fn summary_page(&self, write: &Nonce, page: usize) -> String {
        format!("{}sum.{}.{page:04}", self.prefix, write.as_str())
    }

    /// Key of the fingerprint of the settings that the records depend on.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        format!("{}settings.seen", self.prefix)
    }

    /// Reads the write in what [`Layout::summary_page`] makes; none if it is another key.
    #[must_use]
    pub fn read_summary_page(&self, key: &str) -> Option<Nonce> {
        let mut parts = self.parts("sum", key)?;
        let write = Nonce::parse(parts.next()?)?;
        parts.next()?;
        parts.next().is_none().then_some(write)
    }

    /// Reads the name of a head; none if it is another key.
    #[must_use]
    pub fn read_head(&self, key: &str) -> Option<User> {
        let mut parts = self.parts("usr", key)?;
        let user = User {
            tenant: TenantId::from_digits(parts.next()?)?,
            id: StorageId::parse(parts.next()?)?,
        };
        parts.next().is_none().then_some(user)
    }

    /// Reads what [`Layout::bar`] makes; none if it is another key.
    #[must_use]
    pub fn read_bar(&self, key: &str) -> Option<TenantId> {
        let mut parts = self.parts("bar", key)?;
        let tenant = TenantId::from_digits(parts.next()?)?;
        parts.next().is_none().then_some(tenant)
    }

    /// Reads the name of a record (`rec`) or of a removal (`off`); none if it is another key.
    #[must_use]
    pub fn read_private(&self, kind: &str, key: &str) -> Option<(StorageId, Nonce)> {
        let mut parts = self.parts(kind, key)?;
        let read = (
            StorageId::parse(parts.next()?)?,
            Nonce::parse(parts.next()?)?,
        );
        parts.next().is_none().then_some(read)
    }

    /// Reads what [`Layout::version`] makes; none if it is another key.
    #[must_use]
    pub fn read_version(&self, key: &str) -> Option<(TenantId, KeyVersion, u64)> {
        let mut parts = self.parts("ver", key)?;
        let read = (
            TenantId::from_digits(parts.next()?)?,
            KeyVersion::parse(parts.next()?)?,
            read_time(parts.next()?)?,
        );
        parts.next().is_none().then_some(read)
    }

    /// Reads the name of a marker; none if it is another key.
    #[must_use]
    pub fn read_marker(&self, key: &str) -> Option<Marker> {
        let mut parts = self.parts("due", key)?;
        let marker = Marker {
            time: read_time(parts.next()?)?,
            state: read_state(parts.next()?)?,
            key_version: KeyVersion::parse(parts.next()?)?,
            user: User {
                tenant: TenantId::from_digits(parts.next()?)?,
                id: StorageId::parse(parts.next()?)?,
            },
            nonce: Nonce::parse(parts.next()?)?,
            write: Nonce::parse(parts.next()?)?,
        };
        parts.next().is_none().then_some(marker)
    }

    /// The parts of a name behind its kind; none if it is of another kind, or another app's.
    fn parts<'k>(&self, kind: &str, key: &'k str) -> Option<std::str::Split<'k, char>> {
        let key = key.strip_prefix(self.prefix.as_str())?;
        Some(key.strip_prefix(kind)?.strip_prefix('.')?.split('.'))
    }
}

/// A marker: when an enrolment is to be looked at next. One listing of markers tells what is due, and how many records
/// each tenant and key version has, without reading a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marker {
    /// Unix time in seconds.
    pub time: u64,
    /// State of the record when this was set.
    pub state: State,
    /// Version of the key that the record was sealed under when this was set.
    pub key_version: KeyVersion,
    /// Whose it is.
    pub user: User,
    /// Which enrolment it is for.
    pub nonce: Nonce,
    /// The write that set it; never recurs.
    pub write: Nonce,
}

impl Marker {
    /// The marker that goes with a record.
    #[must_use]
    pub fn of(user: &User, nonce: &Nonce, record: &Record) -> Self {
        Self {
            time: record.due_at,
            state: State::of(record),
            key_version: record.key_version.clone(),
            user: user.clone(),
            nonce: nonce.clone(),
            write: record.write.clone(),
        }
    }
}

/// A letter and a number.
fn state_text(state: State) -> String {
    let (letter, number) = match state {
        State::Active { failures } => ('a', failures.into()),
        State::InteractionRequired { since } => ('i', since),
        State::Quarantined { since } => ('q', since),
        State::NotReadable { since } => ('n', since),
    };
    format!("{letter}{number}")
}

fn read_state(text: &str) -> Option<State> {
    let (letter, digits) = text.split_at_checked(1)?;
    let since = digits.parse().ok()?;
    let state = match letter {
        "a" => State::Active {
            failures: u8::try_from(since)
                .ok()
                .filter(|number| *number <= MOST_FAILURES)?,
        },
        "i" => State::InteractionRequired { since },
        "q" => State::Quarantined { since },
        "n" => State::NotReadable { since },
        _ => return None,
    };
    // One name a state: no sign, no leading zero.
    (state_text(state) == text).then_some(state)
}

fn read_time(digits: &str) -> Option<u64> {
    let is_time = digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_time.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn marker() -> Marker {
        Marker {
            time: 1_793_606_000,
            state: State::Active { failures: 0 },
            key_version: KeyVersion::parse(&"0f".repeat(16)).unwrap(),
            user: User {
                tenant: TenantId::parse("11111111-2222-3333-4444-555555555555").unwrap(),
                id: StorageId::parse(&"Aa0_-".repeat(7)[..32]).unwrap(),
            },
            nonce: Nonce::parse("1793606000abcdefghijklmnop").unwrap(),
            write: Nonce::parse("qrstuvwxyz0").unwrap(),
        }
    }

    #[test]
    fn markers_survive_their_names() {
        for prefix in ["", "prod.eu-"] {
            let layout = Layout::new(prefix);
            for state in [
                State::Active { failures: 0 },
                State::Active { failures: 9 },
                State::InteractionRequired { since: 19_874 },
                State::Quarantined { since: u32::MAX },
                State::NotReadable { since: 0 },
            ] {
                let marker = Marker { state, ..marker() };
                assert_eq!(layout.read_marker(&layout.marker(&marker)), Some(marker));
            }
        }
    }

    #[test]
    fn key_versions_survive_their_names() {
        let layout = Layout::new("p.");
        let Marker {
            user, key_version, ..
        } = marker();
        let name = |since| layout.version(&user.tenant, &key_version, since);
        for since in [0, 1_793_606_000] {
            let read = layout.read_version(&name(since));
            assert_eq!(
                read,
                Some((user.tenant.clone(), key_version.clone(), since))
            );
        }
        for key in [
            &name(0)[2..],
            &name(0).replace("ver.", "due."),
            &name(0)[..name(0).len() - 1],
            &format!("{}.x", name(0)),
        ] {
            assert_eq!(layout.read_version(key), None, "{key}");
        }
    }

    #[test]
    fn bars_survive_their_names() {
        let layout = Layout::new("p.");
        let tenant = marker().user.tenant;
        let name = layout.bar(&tenant);
        assert_eq!(layout.read_bar(&name), Some(tenant));
        for key in [
            &name[2..],
            &name.replace("bar", "usr"),
            &format!("{name}.x"),
            "p.bar.",
        ] {
            assert_eq!(layout.read_bar(key), None, "{key}");
        }
    }

    #[test]
    fn names_sort_by_time_and_fit_every_backend() {
        let layout = Layout::new("");
        let early = layout.marker(&Marker {
            time: 999,
            ..marker()
        });
        let late = layout.marker(&marker());
        assert!(early < late);
        let user = marker().user;
        for key in [
            late,
            layout.head(&user),
            layout.record(&user.id, &marker().nonce),
            layout.off(&user.id, &marker().nonce),
            layout.version(&user.tenant, &marker().key_version, 1_793_606_000),
        ] {
            assert!(
                key.bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
                "{key}"
            );
            assert!(key.len() <= 160, "{key}");
        }
    }

    #[test]
    fn other_keys_are_no_markers() {
        let layout = Layout::new("p.");
        let good = layout.marker(&marker());
        for key in [
            "",
            "p.usr.x",
            &good[2..],
            &format!("{good}.x"),
            &good.replace(".a0.", ".x0."),
            &good.replace(".a0.", ".a."),
            &good.replace(".a0.", ".a10."),
            &good.replace(".a0.", ".a00."),
            &good.replace(".a0.", ".q+1."),
            &good.replace("001793606000", "+01793606000"),
            &good.replace("0f0f", "0F0F"),
            good.rsplit_once('.').unwrap().0,
        ] {
            assert_eq!(layout.read_marker(key), None, "{key}");
        }
    }
}
