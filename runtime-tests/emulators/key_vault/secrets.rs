//! Secrets and their versions, deleted ones among them.
//!
//! What is said here of Key Vault was seen in its answers as Microsoft's own clients recorded them for their tests
//! (PLATFORMS.md, "Azure Key Vault").

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::error::SecretError;

/// All of a vault's.
#[derive(Default)]
pub(super) struct Secrets {
    /// By lower-cased name.
    live: BTreeMap<String, Secret>,
    deleted: BTreeMap<String, Deleted>,
    /// Whether nothing can be purged.
    purge_protection: bool,
}

/// A secret with its versions.
pub(super) struct Secret {
    /// As it was spelt first.
    pub(super) name: String,
    pub(super) newest: String,
    /// Ordered by id, as Key Vault lists them.
    pub(super) versions: BTreeMap<String, Version>,
}

/// One version of a secret.
#[derive(Clone)]
pub(super) struct Version {
    pub(super) value: String,
    pub(super) content_type: Option<String>,
    pub(super) tags: Option<Map<String, Value>>,
    pub(super) enabled: bool,
    pub(super) not_before: Option<i64>,
    pub(super) expires: Option<i64>,
    pub(super) created: i64,
    pub(super) updated: i64,
    pub(super) recovery_level: &'static str,
}

/// A deleted secret.
pub(super) struct Deleted {
    pub(super) secret: Secret,
    pub(super) at: i64,
    state: State,
}

/// How far a deletion or a recovery is. Real ones take about ten seconds; here both are over when somebody has looked for
/// the outcome once, in vain.
#[derive(Clone, Copy)]
enum State {
    BeingDeleted,
    Deleted,
    BeingRecovered,
}

/// A value to be set.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewSecret {
    pub(super) value: String,
    #[serde(flatten)]
    pub(super) properties: Properties,
}

/// What can be set with a value, and be changed without one.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Properties {
    content_type: Option<String>,
    tags: Option<Map<String, Value>>,
    #[serde(default)]
    attributes: Attributes,
}

#[derive(Default, Deserialize)]
struct Attributes {
    enabled: Option<bool>,
    nbf: Option<i64>,
    exp: Option<i64>,
}

impl Secrets {
    /// Nothing can be purged from now on.
    pub(super) fn protect(&mut self) {
        self.purge_protection = true;
        let level = self.recovery_level();
        let secrets = self.live.values_mut();
        for version in secrets.flat_map(|secret| secret.versions.values_mut()) {
            version.recovery_level = level;
        }
    }

    /// How what is deleted can come back, or not.
    pub(super) fn recovery_level(&self) -> &'static str {
        if self.purge_protection {
            "Recoverable"
        } else {
            "Recoverable+Purgeable"
        }
    }

    /// Adds a version, which is the newest from now on; returns its id. It takes nothing over from the one before.
    pub(super) fn set(
        &mut self,
        name: &str,
        new: NewSecret,
    ) -> Result<(String, Version), SecretError> {
        let is_name = (1..=127).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !is_name {
            return Err(SecretError::bad(format!(
                "The request URI contains an invalid name: {name}"
            )));
        }
        if new.value.len() > 25 * 1024 {
            return Err(SecretError::bad("Property  has invalid value\r\n"));
        }
        if let Some(deleted) = self.deleted.get(&key(name)) {
            return Err(deleted.conflict());
        }
        // Random, so that the order of versions says nothing about time.
        let id = Uuid::new_v4().simple().to_string();
        let version = Version::new(new, self.recovery_level());
        let secret = self.live.entry(key(name)).or_insert_with(|| Secret {
            name: name.to_owned(),
            newest: String::new(),
            versions: BTreeMap::new(),
        });
        secret.newest.clone_from(&id);
        secret.versions.insert(id.clone(), version.clone());
        Ok((id, version))
    }

    pub(super) fn secret(&self, name: &str) -> Result<&Secret, SecretError> {
        self.live
            .get(&key(name))
            .ok_or_else(|| SecretError::not_found(name))
    }

    /// A version (none: the newest), with its id.
    pub(super) fn version(
        &mut self,
        name: &str,
        version: Option<&str>,
    ) -> Result<(String, &mut Version), SecretError> {
        let secret = self
            .live
            .get_mut(&key(name))
            .ok_or_else(|| SecretError::not_found(name))?;
        let id = version.unwrap_or(&secret.newest).to_owned();
        match secret.versions.get_mut(&id) {
            Some(version) => Ok((id, version)),
            None => Err(SecretError::not_found(&format!("{name}/{id}"))),
        }
    }

    /// Changes what is there: fields that are absent stay, tags are replaced as a whole.
    pub(super) fn update(
        &mut self,
        name: &str,
        version: Option<&str>,
        to: Properties,
    ) -> Result<(String, &Version), SecretError> {
        let (id, version) = self.version(name, version)?;
        version.updated = Timestamp::now().as_second();
        version.enabled = to.attributes.enabled.unwrap_or(version.enabled);
        version.not_before = to.attributes.nbf.or(version.not_before);
        version.expires = to.attributes.exp.or(version.expires);
        version.content_type = to.content_type.or_else(|| version.content_type.take());
        version.tags = to.tags.or_else(|| version.tags.take());
        Ok((id, version))
    }

    /// Begins to delete a secret, all versions.
    pub(super) fn delete(&mut self, name: &str) -> Result<&Deleted, SecretError> {
        let secret = self
            .live
            .remove(&key(name))
            .ok_or_else(|| SecretError::not_found(name))?;
        Ok(self.deleted.entry(key(name)).or_insert(Deleted {
            secret,
            at: Timestamp::now().as_second(),
            state: State::BeingDeleted,
        }))
    }

    /// A secret whose deletion is over.
    pub(super) fn deleted(&mut self, name: &str) -> Result<&mut Deleted, SecretError> {
        let deleted = self.deleted.get_mut(&key(name));
        let deleted = deleted.ok_or_else(|| SecretError::deleted_not_found(name))?;
        match deleted.state {
            State::Deleted => Ok(deleted),
            State::BeingDeleted | State::BeingRecovered => Err(deleted.conflict()),
        }
    }

    /// Begins to recover a deleted secret.
    pub(super) fn recover(&mut self, name: &str) -> Result<&Secret, SecretError> {
        let deleted = self.deleted(name)?;
        deleted.state = State::BeingRecovered;
        Ok(&deleted.secret)
    }

    /// Destroys a deleted secret.
    pub(super) fn purge(&mut self, name: &str) -> Result<(), SecretError> {
        self.deleted(name)?;
        if self.purge_protection {
            return Err(SecretError::protected());
        }
        self.deleted.remove(&key(name));
        Ok(())
    }

    /// Ends a recovery that is under way.
    pub(super) fn end_recovery(&mut self, name: &str) {
        let recovered = self
            .deleted
            .extract_if(.., |id, deleted| {
                *id == key(name) && matches!(deleted.state, State::BeingRecovered)
            })
            .next();
        if let Some((id, recovered)) = recovered {
            self.live.insert(id, recovered.secret);
        }
    }

    /// Ends a deletion that is under way.
    pub(super) fn end_deletion(&mut self, name: &str) {
        if let Some(deleted) = self.deleted.get_mut(&key(name))
            && matches!(deleted.state, State::BeingDeleted)
        {
            deleted.state = State::Deleted;
        }
    }

    /// The secrets, by key.
    pub(super) fn live(&self) -> impl Iterator<Item = (&String, &Secret)> {
        self.live.iter()
    }

    /// Those whose deletion is over, by key.
    pub(super) fn all_deleted(&self) -> impl Iterator<Item = (&String, &Deleted)> {
        self.deleted
            .iter()
            .filter(|(_, deleted)| matches!(deleted.state, State::Deleted))
    }

    /// Every value there is, deleted ones included.
    pub(super) fn values(&self) -> impl Iterator<Item = &String> {
        let deleted = self.deleted.values().map(|deleted| &deleted.secret);
        self.live
            .values()
            .chain(deleted)
            .flat_map(|secret| secret.versions.values().map(|version| &version.value))
    }
}

impl Version {
    fn new(new: NewSecret, recovery_level: &'static str) -> Self {
        let NewSecret { value, properties } = new;
        let now = Timestamp::now().as_second();
        Self {
            value,
            content_type: properties.content_type,
            tags: properties.tags,
            enabled: properties.attributes.enabled.unwrap_or(true),
            not_before: properties.attributes.nbf,
            expires: properties.attributes.exp,
            created: now,
            updated: now,
            recovery_level,
        }
    }
}

impl Deleted {
    /// Why nothing can be done under its name.
    fn conflict(&self) -> SecretError {
        let (now, inner) = match self.state {
            State::BeingDeleted => ("being deleted", "ObjectIsBeingDeleted"),
            State::Deleted => (
                "in a deleted but recoverable state, and its name cannot be reused; in this state, the secret can only be \
                 recovered or purged",
                "ObjectIsDeletedButRecoverable",
            ),
            State::BeingRecovered => ("being recovered", "ObjectIsBeingRecovered"),
        };
        SecretError::conflict(&self.secret.name, now, inner)
    }
}

impl Properties {
    /// Enables or disables.
    pub(super) fn enabled(enabled: bool) -> Self {
        let mut properties = Self::default();
        properties.attributes.enabled = Some(enabled);
        properties
    }

    /// Sets from when and until when, in Unix seconds.
    pub(super) fn validity(not_before: Option<i64>, expires: Option<i64>) -> Self {
        let mut properties = Self::default();
        properties.attributes.nbf = not_before;
        properties.attributes.exp = expires;
        properties
    }
}

fn key(name: &str) -> String {
    name.to_ascii_lowercase()
}
