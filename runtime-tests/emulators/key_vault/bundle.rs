//! Secrets as Key Vault describes them in JSON, and pages of such descriptions.

use http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::SecretError;
use super::secrets::{Deleted, Secret, Version};

/// How real vaults' names end. They are behind the proxy, which speaks TLS.
const REAL: &str = ".vault.azure.net";

/// The vault's origin, as the client knows it: where the ids of its secrets begin.
pub(super) struct Origin(String);

impl Origin {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or("localhost");
        let scheme = if host.ends_with(REAL) {
            "https"
        } else {
            "http"
        };
        Self(format!("{scheme}://{host}"))
    }

    /// A version, without its value.
    pub(super) fn describe(&self, name: &str, id: &str, version: &Version) -> Value {
        bundle(&format!("{}/secrets/{name}/{id}", self.0), version)
    }

    /// A version, with its value.
    pub(super) fn show(&self, name: &str, id: &str, version: &Version) -> Value {
        let mut bundle = self.describe(name, id, version);
        bundle["value"] = json!(version.value);
        bundle
    }

    /// A secret as a list has it: its newest version under an id without one.
    pub(super) fn list(&self, secret: &Secret) -> Option<Value> {
        let newest = secret.versions.get(&secret.newest)?;
        Some(bundle(
            &format!("{}/secrets/{}", self.0, secret.name),
            newest,
        ))
    }

    /// A secret's newest version, without its value.
    pub(super) fn newest(&self, secret: &Secret) -> Value {
        let Secret {
            name,
            newest,
            versions,
        } = secret;
        let version = versions.get(newest);
        version.map_or_else(|| json!({}), |version| self.describe(name, newest, version))
    }

    /// A deleted secret.
    pub(super) fn deleted(&self, deleted: &Deleted) -> Value {
        let mut bundle = self.newest(&deleted.secret);
        let name = &deleted.secret.name;
        bundle["recoveryId"] = json!(format!("{}/deletedsecrets/{name}", self.0));
        bundle["deletedDate"] = json!(deleted.at);
        bundle["scheduledPurgeDate"] = json!(deleted.at + 90 * 24 * 3600);
        bundle
    }
}

fn bundle(id: &str, version: &Version) -> Value {
    let mut bundle = json!({
        "id": id,
        "attributes": {
            "enabled": version.enabled, "created": version.created, "updated": version.updated,
            "recoveryLevel": version.recovery_level, "recoverableDays": 90,
        },
    });
    if let Some(time) = version.not_before {
        bundle["attributes"]["nbf"] = json!(time);
    }
    if let Some(time) = version.expires {
        bundle["attributes"]["exp"] = json!(time);
    }
    if let Some(content_type) = &version.content_type {
        bundle["contentType"] = json!(content_type);
    }
    if let Some(tags) = &version.tags {
        bundle["tags"] = json!(tags);
    }
    bundle
}

/// Which page of a list is asked for.
#[derive(Deserialize)]
pub(super) struct Page {
    maxresults: Option<usize>,
    #[serde(rename = "$skiptoken")]
    skip: Option<String>,
    #[serde(rename = "api-version")]
    api_version: String,
}

impl Page {
    /// One page of `items`, which are ordered by key; `nextLink` starts behind the last one. Under the real name it has the
    /// port in it, which ids have not.
    pub(super) fn cut(
        &self,
        origin: &Origin,
        path: &str,
        items: impl Iterator<Item = (String, Value)>,
    ) -> Result<Value, SecretError> {
        let size = self.maxresults.unwrap_or(25);
        if !(1..=25).contains(&size) {
            return Err(SecretError::bad("maxresults must be between 1 and 25"));
        }
        let mut rest = items
            .filter(|(key, _)| self.skip.as_ref().is_none_or(|skip| key > skip))
            .peekable();
        let (keys, page): (Vec<_>, Vec<_>) = rest.by_ref().take(size).unzip();
        let Origin(origin) = origin;
        let port = if origin.ends_with(REAL) { ":443" } else { "" };
        let next = rest.peek().and(keys.last()).map(|last| {
            format!(
                "{origin}{port}{path}?api-version={}&$skiptoken={last}&maxresults={size}",
                self.api_version
            )
        });
        Ok(json!({ "value": page, "nextLink": next }))
    }
}
