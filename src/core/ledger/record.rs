//! What is stored of an enrolment, and its form as JSON.
//!
//! It carries a version, `"v":1`. A version that is not known is refused, never guessed at or overwritten.
//!
//! ```
//! use behalf_core::ledger::record::{Record, Status, Unreadable};
//!
//! let json = br#"{"v":1,"tenant":"11111111-1111-1111-1111-111111111111","sealed":"eyJ...","key_version":
//!     "7c9e6679f4b54b2e8f3a1d2c3b4a5968","scope":"https://graph.microsoft.com/.default","status":"active","generation":1,
//!     "write":"PJcQzlnAbS4","enrolled_at":1793605200,"refreshed_at":1793605200,"due_at":1794112345}"#;
//! let record = Record::from_json(json).unwrap();
//! assert_eq!(record.status, Status::Active);
//! assert_eq!(Record::from_json(&record.to_json()), Ok(record));
//! assert_eq!(Record::from_json(br#"{"v":2}"#), Err(Unreadable::Newer));
//! ```

use serde::{Deserialize, Serialize};

use crate::error::{Interaction, OrganisationError, Reason, Suberror};
use crate::identity::{Guid, KeyVersion, Nonce, TenantId};
use crate::json::object;

/// The version of everything that is stored as JSON.
pub(crate) const VERSION: u32 = 1;

/// The latest time that a record can be due at, in Unix seconds: twelve digits.
pub const LATEST: u64 = 999_999_999_999;

/// The `turn` of a record whose user's organisation has to act.
const ORGANISATION: &str = "organisation";

/// The record of one enrolment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The user's tenant.
    pub tenant: TenantId,
    /// Compact JWE of the refresh token.
    pub sealed: String,
    /// Version of the key that it is sealed under.
    pub key_version: KeyVersion,
    /// The scope drawn at enrolment.
    pub scope: String,
    /// Client id of the app that enrolled the user; none: its token did not say, or 0.2.0 or before wrote this.
    pub enrolled_by: Option<Guid>,
    /// The state.
    pub status: Status,
    /// Counts the refresh tokens that this enrolment has had.
    pub generation: u64,
    /// The write that made this, and its marker.
    pub write: Nonce,
    /// Unix time in seconds of the enrolment.
    pub enrolled_at: u64,
    /// Unix time in seconds at which this refresh token came from Entra ID.
    pub refreshed_at: u64,
    /// Unix time in seconds at which a sweep is to refresh it.
    pub due_at: u64,
}

/// State of a record. What Entra ID refuses is kept and tried again, so that a wrong verdict heals.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Status {
    /// Refreshed when due.
    Active,
    /// Entra ID wants the user at the keyboard.
    InteractionRequired(Interaction),
    /// Entra ID wants something of the user's organisation.
    OrganisationRequired(OrganisationError),
    /// Entra ID called the refresh token dead.
    Quarantined(Reason),
}

impl Status {
    /// Why Entra ID refused the refresh token the last time; none: it did not.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Active => None,
            Self::InteractionRequired(Interaction { reason, .. })
            | Self::OrganisationRequired(OrganisationError(reason))
            | Self::Quarantined(reason) => Some(*reason),
        }
    }

    /// The claims to ask the user for, as JSON text.
    #[must_use]
    pub fn claims(&self) -> Option<&str> {
        match self {
            Self::InteractionRequired(interaction) => interaction.claims.as_deref(),
            Self::Active | Self::OrganisationRequired(_) | Self::Quarantined(_) => None,
        }
    }
}

/// Why a stored value cannot be read. It is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreadable {
    /// It is not what was written.
    Damaged,
    /// A newer version of behalf wrote it.
    Newer,
}

impl Record {
    /// As it is stored.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        to_json(&RawRecord {
            v: VERSION,
            tenant: self.tenant.to_string(),
            sealed: self.sealed.clone(),
            key_version: self.key_version.as_str().into(),
            scope: self.scope.clone(),
            enrolled_by: self.enrolled_by.as_ref().map(|app| app.as_str().into()),
            status: match self.status {
                Status::Active => RawStatus::Active,
                // 0.1.0 knows no third party whose turn it could be.
                Status::InteractionRequired(_) | Status::OrganisationRequired(_) => {
                    RawStatus::InteractionRequired
                }
                Status::Quarantined(_) => RawStatus::Quarantined,
            },
            claims: self.status.claims().map(Into::into),
            turn: match self.status {
                Status::OrganisationRequired(_) => Some(ORGANISATION.into()),
                Status::Active | Status::InteractionRequired(_) | Status::Quarantined(_) => None,
            },
            aadsts: self.status.reason().and_then(|reason| reason.aadsts),
            suberror: self
                .status
                .reason()
                .and_then(|reason| reason.suberror)
                .map(|suberror| suberror.as_str().into()),
            generation: self.generation,
            write: self.write.as_str().into(),
            enrolled_at: self.enrolled_at,
            refreshed_at: self.refreshed_at,
            due_at: self.due_at,
        })
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn from_json(json: &[u8]) -> Result<Self, Unreadable> {
        let raw: RawRecord = from_json(json)?;
        let (tenant, key_version, write) = (
            TenantId::parse(&raw.tenant),
            KeyVersion::parse(&raw.key_version),
            Nonce::parse(&raw.write),
        );
        let (Some(tenant), Some(key_version), Some(write)) = (tenant, key_version, write) else {
            return Err(Unreadable::Damaged);
        };
        if raw.due_at > LATEST {
            return Err(Unreadable::Damaged);
        }
        let enrolled_by = match raw.enrolled_by.as_deref().map(Guid::parse) {
            Some(None) => return Err(Unreadable::Damaged),
            app => app.flatten(),
        };
        let reason = Reason {
            aadsts: raw.aadsts,
            suberror: raw.suberror.as_deref().and_then(Suberror::parse),
        };
        let status = match raw.status {
            RawStatus::Active => Status::Active,
            RawStatus::InteractionRequired if raw.turn.as_deref() == Some(ORGANISATION) => {
                Status::OrganisationRequired(OrganisationError(reason))
            }
            RawStatus::InteractionRequired => Status::InteractionRequired(Interaction {
                claims: raw.claims,
                reason,
            }),
            RawStatus::Quarantined => Status::Quarantined(reason),
        };
        Ok(Self {
            tenant,
            sealed: raw.sealed,
            key_version,
            scope: raw.scope,
            enrolled_by,
            status,
            generation: raw.generation,
            write,
            enrolled_at: raw.enrolled_at,
            refreshed_at: raw.refreshed_at,
            due_at: raw.due_at,
        })
    }
}

/// A value as it is stored.
pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Plain structs of texts and numbers: serialising them to memory does not fail.
    serde_json::to_vec(value).unwrap_or_default()
}

/// A value as it was stored, if it is of the version that this one writes.
pub(crate) fn from_json<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Unreadable> {
    let version: RawVersion = object(json).ok_or(Unreadable::Damaged)?;
    match version.v {
        VERSION => object(json).ok_or(Unreadable::Damaged),
        0 => Err(Unreadable::Damaged),
        _ => Err(Unreadable::Newer),
    }
}

/// The version that wrote a value, if that is a newer one.
pub(crate) fn newer_version(json: &[u8]) -> Option<u32> {
    let version: RawVersion = object(json)?;
    (version.v > VERSION).then_some(version.v)
}

#[derive(Deserialize)]
struct RawVersion {
    v: u32,
}

#[derive(Serialize, Deserialize)]
struct RawRecord {
    v: u32,
    tenant: String,
    sealed: String,
    key_version: String,
    scope: String,
    /// Left out where it is not known, and not known to 0.1.0, which passes over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enrolled_by: Option<String>,
    status: RawStatus,
    /// Members from here to `suberror` are those of the status, and left out where they say nothing. The last three are
    /// not known to 0.1.0, which passes over them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claims: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    turn: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aadsts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    suberror: Option<String>,
    generation: u64,
    write: String,
    enrolled_at: u64,
    refreshed_at: u64,
    due_at: u64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawStatus {
    Active,
    InteractionRequired,
    Quarantined,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(status: Status) -> Record {
        Record {
            tenant: TenantId::parse("11111111-2222-3333-4444-555555555555").unwrap(),
            sealed: "a..b.c.d".into(),
            key_version: KeyVersion::parse(&"0f".repeat(16)).unwrap(),
            scope: "https://graph.microsoft.com/.default".into(),
            enrolled_by: None,
            status,
            generation: 3,
            write: Nonce::parse("w").unwrap(),
            enrolled_at: 1,
            refreshed_at: 2,
            due_at: 3,
        }
    }

    #[test]
    fn records_survive_storage_in_every_status() {
        let reason = Reason {
            aadsts: Some(53_003),
            suberror: Some(Suberror::MessageOnly),
        };
        for status in [
            Status::Active,
            Status::Quarantined(Reason::default()),
            Status::Quarantined(reason),
            Status::InteractionRequired(Interaction::default()),
            Status::InteractionRequired(Interaction {
                claims: Some(r#"{"access_token":{}}"#.into()),
                reason,
            }),
            Status::OrganisationRequired(OrganisationError(Reason::default())),
            Status::OrganisationRequired(OrganisationError(reason)),
        ] {
            let record = record(status);
            assert_eq!(Record::from_json(&record.to_json()), Ok(record));
        }
    }

    #[test]
    fn the_stored_form_is_fixed() {
        let json = String::from_utf8(record(Status::Active).to_json()).unwrap();
        assert_eq!(
            json,
            r#"{"v":1,"tenant":"11111111-2222-3333-4444-555555555555","sealed":"a..b.c.d","key_version":"0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f","scope":"https://graph.microsoft.com/.default","status":"active","generation":3,"write":"w","enrolled_at":1,"refreshed_at":2,"due_at":3}"#
        );
    }

    /// In both directions: what it stored is read, and what is stored is what it could read.
    #[test]
    fn statuses_are_those_of_0_1_0_with_members_besides() {
        let active = String::from_utf8(record(Status::Active).to_json()).unwrap();
        let stored = |status: &str| active.replace(r#""status":"active""#, status);
        for status in [
            r#""status":"interaction_required","claims":null"#,
            r#""status":"interaction_required","claims":"{}""#,
            r#""status":"quarantined""#,
        ] {
            let read = Record::from_json(stored(status).as_bytes()).unwrap();
            assert_eq!(read.status.reason(), Some(Reason::default()), "{status}");
        }
        let reason = Reason {
            aadsts: Some(50_105),
            suberror: Some(Suberror::MessageOnly),
        };
        for (status, expected) in [
            (
                Status::OrganisationRequired(OrganisationError(reason)),
                r#""status":"interaction_required","turn":"organisation","aadsts":50105,"suberror":"message_only""#,
            ),
            (
                Status::Quarantined(reason),
                r#""status":"quarantined","aadsts":50105,"suberror":"message_only""#,
            ),
        ] {
            let json = String::from_utf8(record(status).to_json()).unwrap();
            assert_eq!(json, stored(expected));
        }
        // A word that is not known is another system's text.
        let unknown = stored(r#""status":"quarantined","aadsts":7,"suberror":"something_new""#);
        let read = Record::from_json(unknown.as_bytes()).unwrap();
        let suberror = None;
        let reason = Reason {
            aadsts: Some(7),
            suberror,
        };
        assert_eq!(read.status, Status::Quarantined(reason));
    }

    #[test]
    fn what_cannot_be_read_is_told_from_what_is_newer() {
        let json = String::from_utf8(record(Status::Active).to_json()).unwrap();
        assert_eq!(
            Record::from_json(json.replace(r#""v":1"#, r#""v":2"#).as_bytes()),
            Err(Unreadable::Newer)
        );
        for damaged in [
            String::new(),
            json[..json.len() - 1].to_owned(),
            json.replace(r#""v":1"#, r#""v":0"#),
            json.replace("0f0f", "0F0F"),
            json.replace("active", "dormant"),
            json.replace("11111111-", ""),
            // No object, though its values are in the right places.
            "[2]".to_owned(),
            // It would be due at a time that no marker can name, so that no sweep would find it.
            json.replace(r#""due_at":3"#, r#""due_at":1000000000000"#),
        ] {
            assert_eq!(
                Record::from_json(damaged.as_bytes()),
                Err(Unreadable::Damaged),
                "{damaged}"
            );
        }
    }
}
