//! What Key Vault answers to whoever changes secrets.
//!
//! Set, Update, Delete and Purge of version 7.6 (<https://learn.microsoft.com/rest/api/keyvault/secrets/operation-groups>).
//! A refusal is told by its status and its inner code (<https://learn.microsoft.com/azure/key-vault/general/rest-error-codes>).

use std::fmt;

use http::{Response, StatusCode};
use serde::Deserialize;
use thiserror::Error;

use crate::error::{System, VaultError};
use crate::identity::{KeyVersion, SecretName};
use crate::json::{self, Object};
use crate::port::SecretBody;
use crate::vault::key_ring::secret::{inner_code, version_of};

/// A version of a key, without its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    /// Its id.
    pub version: KeyVersion,
    /// When it was made, in Unix seconds.
    pub created_at: Option<u64>,
    /// When it ends, in Unix seconds; none: never.
    pub expires_at: Option<u64>,
    /// Whether it can be read.
    pub enabled: bool,
}

/// A key that is deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deleted {
    /// When Key Vault purges it by itself, in Unix seconds.
    pub purged_at: Option<u64>,
    /// Whether somebody may purge it before; none: Key Vault does not say.
    pub can_be_purged: Option<bool>,
}

/// What an identity may do with secrets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Right {
    /// Make versions.
    Set,
    /// Disable and enable versions.
    Update,
    /// Delete.
    Delete,
    /// See what is deleted.
    GetDeleted,
    /// Destroy what is deleted.
    Purge,
}

impl Right {
    /// The permission of an access policy, and the action of a role
    /// (<https://learn.microsoft.com/azure/key-vault/general/rbac-guide>).
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Set => ("set", "secrets/setSecret/action"),
            Self::Update => ("set", "secrets/update/action"),
            Self::Delete => ("delete", "secrets/delete"),
            Self::GetDeleted => ("get", "secrets/readMetadata/action"),
            Self::Purge => ("purge", "secrets/purge/action"),
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Set => "set secrets",
            Self::Update => "update secrets",
            Self::Delete => "delete secrets",
            Self::GetDeleted => "see deleted secrets",
            Self::Purge => "purge secrets",
        })
    }
}

/// Why something was not done with a key.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CustodyError {
    /// No token for Key Vault, or no answer.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The identity lacks a permission.
    #[error(
        "Key Vault does not let this identity {0}: give it a role with the action Microsoft.KeyVault/vaults/{action}, or an access policy with the permission {policy}; a role takes some minutes to work",
        policy = .0.names().0, action = .0.names().1
    )]
    Forbidden(Right),
    /// Key Vault is closed to where this runs.
    #[error(
        "Key Vault's firewall does not let this network in: allow this machine's address there, or run it where the vault is open, as on an agent in its network"
    )]
    Firewall,
    /// The name belongs to a secret that was deleted and can be recovered.
    #[error(
        "Key Vault secret `{0}` was deleted and not purged, so its name is taken: recover it (az keyvault secret recover), which brings its tenant's users back, or purge it"
    )]
    Deleted(String),
    /// Its deletion, its recovery or its purge is under way.
    #[error(
        "Key Vault secret `{0}` is being deleted, recovered or purged: try again in some minutes; if it stays so, its name belongs to something else, such as a certificate"
    )]
    BeingChanged(String),
    /// The vault forbids that anything be purged before its time.
    #[error("Key Vault has purge protection: `{0}` cannot be purged before its time")]
    PurgeProtected(String),
    /// There is no such secret or version.
    #[error(
        "Key Vault has no secret `{0}`, or not this version: are the tenant id and `key_vault_url` right?"
    )]
    NotFound(String),
    /// Something else.
    #[error("Key Vault refused it for `{secret}` with status {status}: its own log says why")]
    Refused {
        /// The secret's name.
        secret: String,
        /// HTTP status.
        status: u16,
    },
}

impl CustodyError {
    /// A word for programs, which stays.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Vault(VaultError::Upstream(error)) if error.retry_after_seconds.is_some() => {
                "throttled"
            }
            Self::Vault(VaultError::Upstream(_)) => "no_answer",
            Self::Vault(_) => "no_token",
            Self::Forbidden(_) => "forbidden",
            Self::Firewall => "firewall",
            Self::Deleted(_) => "deleted",
            Self::BeingChanged(_) => "being_changed",
            Self::PurgeProtected(_) => "purge_protected",
            Self::NotFound(_) => "not_found",
            Self::Refused { .. } => "refused",
        }
    }

    /// Whether the next tenant would meet the same.
    #[must_use]
    pub fn is_everybodys(&self) -> bool {
        matches!(self, Self::Vault(_) | Self::Firewall)
    }
}

/// Reads the answer to Set and Update.
pub(super) fn read_version(
    response: &Response<SecretBody>,
    secret: &SecretName,
    right: Right,
) -> Result<Version, CustodyError> {
    read_done(response, secret, right)?;
    let read: Option<Description> = json::object(response.body());
    let read = read.ok_or_else(no_answer)?;
    let Object(attributes) = read.attributes;
    Ok(Version {
        version: version_of(&read.id, secret).ok_or_else(no_answer)?,
        created_at: attributes.created,
        expires_at: attributes.exp,
        enabled: attributes.enabled.unwrap_or(true),
    })
}

/// Reads the answer to Delete and Get Deleted.
pub(super) fn read_deleted(
    response: &Response<SecretBody>,
    secret: &SecretName,
    right: Right,
) -> Result<Option<Deleted>, CustodyError> {
    match read_done(response, secret, right) {
        Ok(()) => {}
        Err(CustodyError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error),
    }
    let read: Option<DeletedDescription> = json::object(response.body());
    let read = read.ok_or_else(no_answer)?;
    let Object(attributes) = read.attributes;
    Ok(Some(Deleted {
        purged_at: read.scheduled_purge_date,
        can_be_purged: attributes
            .recovery_level
            .map(|level| level.contains("Purgeable")),
    }))
}

/// Reads the answer to Purge.
pub(super) fn read_done(
    response: &Response<SecretBody>,
    secret: &SecretName,
    right: Right,
) -> Result<(), CustodyError> {
    let status = response.status();
    let name = || secret.as_str().to_owned();
    let refused = || CustodyError::Refused {
        secret: name(),
        status: status.as_u16(),
    };
    let inner = inner_code(response);
    Err(match (status, inner.as_deref()) {
        (status, _) if status.is_success() => return Ok(()),
        (StatusCode::FORBIDDEN, Some("AccessDenied" | "ForbiddenByPolicy" | "ForbiddenByRbac")) => {
            CustodyError::Forbidden(right)
        }
        (StatusCode::FORBIDDEN, Some("ForbiddenByFirewall" | "ForbiddenByConnection")) => {
            CustodyError::Firewall
        }
        // What else is refused of a purge is so because of the vault's protection: its body is not documented.
        (StatusCode::FORBIDDEN, _) if right == Right::Purge => CustodyError::PurgeProtected(name()),
        (StatusCode::NOT_FOUND, _) => CustodyError::NotFound(name()),
        (StatusCode::CONFLICT, Some("ObjectIsDeletedButRecoverable")) => {
            CustodyError::Deleted(name())
        }
        // For some seconds after a purge a conflict has no code that is documented.
        (StatusCode::CONFLICT, _) => CustodyError::BeingChanged(name()),
        (status, _) if status.is_server_error() => no_answer(),
        _ => refused(),
    })
}

fn no_answer() -> CustodyError {
    VaultError::upstream(System::KeyVault).into()
}

#[derive(Deserialize)]
struct Description {
    id: String,
    #[serde(default)]
    attributes: Object<Attributes>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeletedDescription {
    scheduled_purge_date: Option<u64>,
    #[serde(default)]
    attributes: Object<Attributes>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Attributes {
    created: Option<u64>,
    exp: Option<u64>,
    enabled: Option<bool>,
    recovery_level: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use zeroize::Zeroizing;

    use super::*;

    fn answer(status: u16, body: &Value) -> Response<SecretBody> {
        let body = Zeroizing::new(body.to_string().into_bytes());
        Response::builder().status(status).body(body).unwrap()
    }

    #[test]
    fn each_refusal_is_told_from_the_others() {
        let secret = SecretName::parse("obo-t").unwrap();
        let name = || "obo-t".to_owned();
        let refused = |status| CustodyError::Refused {
            secret: name(),
            status,
        };
        for (status, inner, right, expected) in [
            (
                403,
                "ForbiddenByRbac",
                Right::Set,
                CustodyError::Forbidden(Right::Set),
            ),
            (
                403,
                "ForbiddenByPolicy",
                Right::Update,
                CustodyError::Forbidden(Right::Update),
            ),
            (
                403,
                "AccessDenied",
                Right::Purge,
                CustodyError::Forbidden(Right::Purge),
            ),
            (
                403,
                "ForbiddenByFirewall",
                Right::Set,
                CustodyError::Firewall,
            ),
            (
                403,
                "ForbiddenByConnection",
                Right::Purge,
                CustodyError::Firewall,
            ),
            (403, "", Right::Purge, CustodyError::PurgeProtected(name())),
            (403, "", Right::Set, refused(403)),
            (404, "", Right::Update, CustodyError::NotFound(name())),
            (
                409,
                "ObjectIsDeletedButRecoverable",
                Right::Set,
                CustodyError::Deleted(name()),
            ),
            (
                409,
                "ObjectIsBeingDeleted",
                Right::Set,
                CustodyError::BeingChanged(name()),
            ),
            (
                409,
                "ObjectIsBeingRecovered",
                Right::Delete,
                CustodyError::BeingChanged(name()),
            ),
            (409, "", Right::Set, CustodyError::BeingChanged(name())),
            (400, "", Right::Set, refused(400)),
            (503, "", Right::Set, no_answer()),
        ] {
            let body =
                json!({"error": {"code": "c", "message": "canary", "innererror": {"code": inner}}});
            let error = read_version(&answer(status, &body), &secret, right).unwrap_err();
            assert_eq!(error, expected, "{status} {inner}");
            assert!(!error.to_string().contains("canary"), "{error}");
        }
        let none = answer(200, &json!([]));
        assert_eq!(read_version(&none, &secret, Right::Set), Err(no_answer()));
    }

    #[test]
    fn a_permission_is_named_as_azure_names_it() {
        let told = CustodyError::Forbidden(Right::Set).to_string();
        let action = "Microsoft.KeyVault/vaults/secrets/setSecret/action";
        assert!(
            told.contains(action) && told.contains("permission set"),
            "{told}"
        );
    }

    #[test]
    fn whether_a_deleted_key_can_be_purged_is_its_recovery_level() {
        let secret = SecretName::parse("obo-t").unwrap();
        for (level, expected) in [
            (json!("Recoverable+Purgeable"), Some(true)),
            (json!("CustomizedRecoverable+Purgeable"), Some(true)),
            (json!("Recoverable"), Some(false)),
            (
                json!("CustomizedRecoverable+ProtectedSubscription"),
                Some(false),
            ),
            (Value::Null, None),
        ] {
            let body = json!({"scheduledPurgeDate": 7, "attributes": {"recoveryLevel": level}});
            let read = read_deleted(&answer(200, &body), &secret, Right::Delete);
            let deleted = read.unwrap().unwrap();
            assert_eq!(
                (deleted.can_be_purged, deleted.purged_at),
                (expected, Some(7))
            );
        }
        let read = read_deleted(&answer(404, &json!({})), &secret, Right::Delete);
        assert_eq!(read, Ok(None));
    }
}
