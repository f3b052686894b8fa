//! This app's own tokens, for what whoever operates it asks of others in its name: this app's API, Microsoft Graph.
//!
//! No function of the vault's interface gives one: it is for programs on the operator's side, which have the credential anyway.

use std::rc::Rc;

use crate::deadline::LONGEST;
use crate::error::VaultError;
use crate::identity::TenantId;
use crate::secret::AccessToken;
use crate::vault::clock_check::ClockCheck;
use crate::vault::context::{Context, Environment};
use crate::vault::key_ring::KeyRing;
use crate::vault::settings::Settings;
use crate::vault::token_client::TokenClient;
use crate::vault::token_client::identity::identity_token;

/// Gets tokens in the name of the app that the settings tell of.
pub struct OwnTokens<E> {
    env: E,
    settings: Rc<Settings>,
    clock_check: ClockCheck,
    token_client: TokenClient,
}

impl<E: Environment> OwnTokens<E> {
    /// By these settings.
    pub fn new(env: E, settings: Settings) -> Self {
        Self {
            env,
            settings: Rc::new(settings),
            clock_check: ClockCheck::default(),
            token_client: TokenClient::new(),
        }
    }

    /// A token of the app itself in a tenant, for all that it may do at one resource: `scope` ends with `/.default`.
    ///
    /// # Errors
    /// [`VaultError`]: the credential is refused, or there is no answer.
    pub async fn of_app(&self, tenant: &TenantId, scope: &str) -> Result<AccessToken, VaultError> {
        let context = self.context();
        let token = self.token_client.own_token(&context, tenant, scope);
        token.await
    }

    /// A token of the platform's managed identity, for a resource.
    ///
    /// # Errors
    /// As [`Self::of_app`].
    pub async fn of_identity(&self, resource: &str) -> Result<AccessToken, VaultError> {
        let token = identity_token(&self.context(), resource).await?;
        Ok(token.0)
    }

    /// The token that the app asks Key Vault with.
    ///
    /// # Errors
    /// As [`Self::of_app`].
    pub async fn for_key_vault(&self) -> Result<(), VaultError> {
        let key_ring = KeyRing::new();
        let context = self.context();
        let token = key_ring.token(&context, &self.token_client, None);
        token.await.map(drop)
    }

    fn context(&self) -> Context<'_, E> {
        let settings = Rc::clone(&self.settings);
        Context::new(&self.env, &self.clock_check, settings, LONGEST.into())
    }
}

#[cfg(test)]
mod tests {
    use pollster::block_on;

    use super::*;
    use crate::simulation::world::World;
    use crate::vault::samples::TENANT;

    #[test]
    fn a_token_of_the_app_and_one_of_the_platform() {
        let world = World::new();
        let settings = Settings::read(&world).unwrap();
        let tokens = OwnTokens::new(Rc::clone(&world), settings);
        let tenant = TenantId::parse(TENANT).unwrap();
        let scope = "api://33333333-3333-3333-3333-333333333333/.default";
        block_on(tokens.of_app(&tenant, scope)).unwrap();
        block_on(tokens.of_identity("https://graph.microsoft.com")).unwrap();
        let own = world.take_calls();
        block_on(tokens.for_key_vault()).unwrap();
        assert_eq!(world.take_calls(), ["entra client_credentials"]);
        assert_eq!(
            own,
            [
                "entra client_credentials",
                "identity https://graph.microsoft.com"
            ]
        );
    }
}
