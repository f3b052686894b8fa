//! What the servers share.

use std::sync::Arc;

use axum::Router;
use serde_json::Map;

use super::entra::{self, Entra, Mint};
use super::gate::Gate;
use super::journal::Target;
use super::key_vault::{KeyVault, SecretError};
use super::options::{Options, key_name};
use super::signing::Signature;
use super::{downstream, managed_identity, pipelines};

/// The systems, and what stands in front of them.
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) entra: Arc<Entra>,
    pub(crate) key_vault: Arc<KeyVault>,
    pub(crate) gate: Arc<Gate>,
}

impl World {
    /// Entra ID, under the origin at which clients reach it.
    pub(crate) fn login(&self, origin: String) -> Router {
        let router = entra::router(self.entra.clone(), origin);
        self.gate.guard(router, entra::target)
    }

    /// Key Vault.
    pub(crate) fn key_vault(&self) -> Router {
        let router = self.key_vault.clone().router();
        self.gate.guard(router, |_| Target::KeyVault)
    }

    /// The downstream API.
    pub(crate) fn downstream(&self) -> Router {
        let router = downstream::router(self.entra.clone());
        self.gate.guard(router, |_| Target::Downstream)
    }

    /// The managed identity endpoint, and those of pipelines.
    pub(crate) fn identity(&self) -> Router {
        let router = managed_identity::router(self.options.clone(), self.entra.clone());
        let pipelines = pipelines::router(self.options.clone(), self.entra.clone());
        let router = router.merge(pipelines);
        self.gate.guard(router, |_| Target::ManagedIdentity)
    }

    /// A good token of the demo user, to be varied; with roles, of the background job.
    pub(crate) fn mint(&self) -> Mint {
        Mint {
            tenant: self.options.tenants.first().cloned().unwrap_or_default(),
            user: None,
            version: 2,
            roles: None,
            claims: Map::new(),
            signature: Signature::Good,
        }
    }

    /// Sets a new version of a tenant's encryption key; returns the version.
    pub(crate) fn rotate_key(&self, tenant: &str) -> Result<String, SecretError> {
        self.key_vault.put_key(&key_name(tenant))
    }
}
