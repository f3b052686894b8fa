//! What is stored: the head of a user and the record of an enrolment, as JSON.
//!
//! Both carry a version, `"v":1`. A version that is not known is refused, never guessed at or overwritten.

use serde::{Deserialize, Serialize};

use crate::error::{Interaction, OrganisationError, Reason, Suberror};
use crate::identity::{KeyVersion, Nonce, TenantId};
use crate::ledger::key_value::layout::LATEST;
use crate::vault::sealing::object;

const VERSION: u32 = 1;

/// The `turn` of a record whose user's organisation has to act.
const ORGANISATION: &str = "organisation";

/// Names the current enrolment of a user. Only enrolment writes it, only removal deletes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// The enrolment.
    pub nonce: Nonce,
    /// The user's tenant.
    pub tenant: TenantId,
    /// Unix time in seconds.
    pub created_at: u64,
}

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

impl Head {
    /// As it is stored.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let raw = RawHead {
            v: VERSION,
            n: self.nonce.as_str().into(),
            tenant: self.tenant.to_string(),
            created_at: self.created_at,
        };
        to_json(&raw)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn from_json(json: &[u8]) -> Result<Self, Unreadable> {
        let raw: RawHead = from_json(json)?;
        let read = || {
            Some(Self {
                nonce: Nonce::parse(&raw.n)?,
                tenant: TenantId::parse(&raw.tenant)?,
                created_at: raw.created_at,
            })
        };
        read().ok_or(Unreadable::Damaged)
    }
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
            status,
            generation: raw.generation,
            write,
            enrolled_at: raw.enrolled_at,
            refreshed_at: raw.refreshed_at,
            due_at: raw.due_at,
        })
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Plain structs of texts and numbers: serialising them to memory does not fail.
    serde_json::to_vec(value).unwrap_or_default()
}

fn from_json<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Unreadable> {
    let version: RawVersion = object(json).ok_or(Unreadable::Damaged)?;
    match version.v {
        VERSION => object(json).ok_or(Unreadable::Damaged),
        0 => Err(Unreadable::Damaged),
        _ => Err(Unreadable::Newer),
    }
}

#[derive(Deserialize)]
struct RawVersion {
    v: u32,
}

#[derive(Serialize, Deserialize)]
struct RawHead {
    v: u32,
    n: String,
    tenant: String,
    created_at: u64,
}

#[derive(Serialize, Deserialize)]
struct RawRecord {
    v: u32,
    tenant: String,
    sealed: String,
    key_version: String,
    scope: String,
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
        assert_eq!(Head::from_json(br#"{"v":2,"n":7}"#), Err(Unreadable::Newer));
        assert_eq!(
            Head::from_json(br#"{"v":1,"n":"a.b","tenant":"11111111-2222-3333-4444-555555555555","created_at":1}"#),
            Err(Unreadable::Damaged)
        );
        assert_eq!(
            Head::from_json(br#"[1,"n","11111111-2222-3333-4444-555555555555",1]"#),
            Err(Unreadable::Damaged)
        );
    }
}
