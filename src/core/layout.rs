//! Names of keys in storage (facts/storage-protocol.md §2). Every name matches `[A-Za-z0-9._-]+`, the one set that every
//! backend of Spin takes (facts/spin.md §4).
//!
//! | Key | Value |
//! |---|---|
//! | `usr.{tenant}.{id}` | the user's head: names the current enrolment |
//! | `rec.{id}.{n}` | the record of enrolment `n` |
//! | `off.{id}.{n}` | "application access was removed for `n`"; never undone |
//! | `due.{time}.{status}.{key version}.{tenant}.{id}.{n}.{w}` | a marker; empty value |
//!
//! `{tenant}` is the tenant id without dashes: whole, so that no two tenants share a tag, and in the clear, since the
//! `kid` of a record names the tenant anyway.

use crate::identity::{Guid, KeyVersion, Nonce, StorageId, TenantId};
use crate::port::User;
use crate::record::Status;

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
            marker.tag.letter(),
            marker.key_version.as_str(),
            marker.user.tenant.digits(),
            marker.user.id.as_str(),
            marker.nonce.as_str(),
            marker.write.as_str(),
        )
    }

    /// Reads the name of a marker; none if it is another key.
    #[must_use]
    pub fn read_marker(&self, key: &str) -> Option<Marker> {
        let mut parts = key.strip_prefix(self.prefix.as_str())?.split('.');
        if parts.next()? != "due" {
            return None;
        }
        let time = parts
            .next()
            .filter(|time| time.len() == 12 && time.bytes().all(|byte| byte.is_ascii_digit()))?;
        let marker = Marker {
            time: time.parse().ok()?,
            tag: Tag::from_letter(parts.next()?)?,
            key_version: KeyVersion::parse(parts.next()?)?,
            user: User {
                tenant: Guid::from_digits(parts.next()?).map(|tenant: TenantId| tenant)?,
                id: StorageId::parse(parts.next()?)?,
            },
            nonce: Nonce::parse(parts.next()?)?,
            write: Nonce::parse(parts.next()?)?,
        };
        parts.next().is_none().then_some(marker)
    }
}

/// A marker: when an enrolment is to be looked at next. One listing of markers tells what is due, and how many records
/// each tenant and key version has, without reading a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marker {
    /// Unix time in seconds.
    pub time: u64,
    /// State of the record when this was set.
    pub tag: Tag,
    /// Version of the key that the record was sealed under when this was set.
    pub key_version: KeyVersion,
    /// Whose it is.
    pub user: User,
    /// Which enrolment it is for.
    pub nonce: Nonce,
    /// The write that set it; never recurs.
    pub write: Nonce,
}

/// State of a record, as a marker tells it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Tag {
    /// The record's status is active.
    Active,
    /// The user has to act.
    InteractionRequired,
    /// The refresh token was called dead.
    Quarantined,
    /// The record or its sealed token cannot be read.
    NotReadable,
}

impl Tag {
    /// The tag of a status.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        match status {
            Status::Active => Self::Active,
            Status::InteractionRequired { .. } => Self::InteractionRequired,
            Status::Quarantined => Self::Quarantined,
        }
    }

    fn letter(self) -> char {
        match self {
            Self::Active => 'a',
            Self::InteractionRequired => 'i',
            Self::Quarantined => 'q',
            Self::NotReadable => 'n',
        }
    }

    fn from_letter(letter: &str) -> Option<Self> {
        match letter {
            "a" => Some(Self::Active),
            "i" => Some(Self::InteractionRequired),
            "q" => Some(Self::Quarantined),
            "n" => Some(Self::NotReadable),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn marker() -> Marker {
        Marker {
            time: 1_793_606_000,
            tag: Tag::Active,
            key_version: KeyVersion::parse(&"0f".repeat(16)).unwrap(),
            user: User {
                tenant: Guid::parse("11111111-2222-3333-4444-555555555555").unwrap(),
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
            for tag in [
                Tag::Active,
                Tag::InteractionRequired,
                Tag::Quarantined,
                Tag::NotReadable,
            ] {
                let marker = Marker { tag, ..marker() };
                assert_eq!(layout.read_marker(&layout.marker(&marker)), Some(marker));
            }
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
            &good.replace(".a.", ".x."),
            &good.replace("001793606000", "+01793606000"),
            &good.replace("0f0f", "0F0F"),
            good.rsplit_once('.').unwrap().0,
        ] {
            assert_eq!(layout.read_marker(key), None, "{key}");
        }
    }
}
