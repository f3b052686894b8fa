//! Tenants' keys, from Key Vault.

pub mod secret;

use std::cell::RefCell;
use std::rc::Rc;

use http::{Request, Response, StatusCode};
use serde_json::json;

use crate::error::{CallerError, HoldsUp, OperatorError, System, UpstreamError, VaultError};
use crate::identity::{KeyVersion, SecretName, TenantId};
use crate::port::SecretBody;
use crate::secret::AccessToken;
use crate::vault::cache::Cache;
use crate::vault::context::{Context, Environment};
use crate::vault::key_ring::secret::{
    Key, LONGEST_ANSWER, SecretError, Unauthorized, challenge_request, challenged_tenant,
    read_secret, secret_request,
};
use crate::vault::pause::{Pauses, retry_after};
use crate::vault::single_flight::SingleFlight;
use crate::vault::token_client::TokenClient;

/// Keys that are remembered; and of so many tenants, which is the newest, or that there is none.
const KEYS: usize = 1024;
/// Seconds for which it is remembered that a tenant has no key.
pub(crate) const NOT_ONBOARDED_SECONDS: u64 = 60;

/// What a key is remembered by.
pub(crate) type KeyId = (SecretName, KeyVersion);

/// Fetches keys, and remembers them for as long as the settings say.
pub(crate) struct KeyRing {
    keys: Cache<KeyId, Rc<Key>>,
    newest: Cache<SecretName, KeyVersion>,
    /// Tenants without any key.
    not_onboarded: Cache<SecretName, ()>,
    /// Secrets of which a version was asked for, whatever came of it, for as long as keys are kept.
    asked: Cache<SecretName, ()>,
    /// By secret and version; none: the newest.
    fetches: SingleFlight<(SecretName, Option<KeyVersion>), Rc<Key>, VaultError>,
    /// The tenant that Key Vault is in, as it said last.
    tenant: RefCell<Option<TenantId>>,
    /// Key Vault throttles by vault, whosever secret is asked for: so there is one pause at most.
    pause: Pauses<()>,
}

/// The newest key of a tenant, to seal under.
#[derive(Debug)]
pub(crate) struct NewestKey {
    pub(crate) secret: SecretName,
    pub(crate) key: Rc<Key>,
}

impl KeyRing {
    /// One that remembers nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            keys: Cache::new(KEYS),
            newest: Cache::new(KEYS),
            not_onboarded: Cache::new(KEYS),
            asked: Cache::new(KEYS),
            fetches: SingleFlight::new(VaultError::upstream(System::KeyVault)),
            tenant: RefCell::default(),
            pause: Pauses::new(1),
        }
    }

    /// A key by its exact version.
    ///
    /// # Errors
    /// [`OperatorError`], [`UpstreamError`]; likewise of the functions below.
    pub(crate) async fn exact<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tokens: &TokenClient,
        secret: &SecretName,
        version: &KeyVersion,
    ) -> Result<Rc<Key>, VaultError> {
        let id = (secret.clone(), version.clone());
        if let Some(key) = self.keys.get(&id, context.now()) {
            return Ok(key);
        }
        // Mostly it is the newest, and that may be on its way.
        self.fetches
            .landed(context.env, &(secret.clone(), None), context.deadline)
            .await;
        match self.keys.get(&id, context.now()) {
            Some(key) => Ok(key),
            None => self.fetch(context, tokens, secret, Some(version)).await,
        }
    }

    /// The newest key of a tenant.
    pub(crate) async fn newest<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tokens: &TokenClient,
        tenant: &TenantId,
    ) -> Result<NewestKey, VaultError> {
        let secret = context.secret_id.secret_name(tenant);
        let key = match self.newest.get(&secret, context.now()) {
            Some(version) => self.exact(context, tokens, &secret, &version).await?,
            None => self.fetch(context, tokens, &secret, None).await?,
        };
        Ok(NewestKey { secret, key })
    }

    /// The newest key of a tenant, for somebody who enrols. That there is none is remembered for a moment: anybody can
    /// come from a tenant that was never set up, as often as he likes, and Key Vault's requests are everybody's.
    ///
    /// # Errors
    /// [`CallerError::TenantNotOnboarded`], besides.
    pub(crate) async fn newest_for_enrolment<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tokens: &TokenClient,
        tenant: &TenantId,
    ) -> Result<NewestKey, VaultError> {
        let secret = context.secret_id.secret_name(tenant);
        let now = context.now();
        let not_onboarded =
            |secret| CallerError::TenantNotOnboarded(OperatorError::name(secret)).into();
        if self.not_onboarded.get(&secret, now).is_some() {
            return Err(not_onboarded(&secret));
        }
        match self.newest(context, tokens, tenant).await {
            Err(VaultError::Operator(OperatorError::KeyNotFound(_))) => {
                let error = not_onboarded(&secret);
                let until = now.saturating_add(NOT_ONBOARDED_SECONDS);
                self.not_onboarded.put(secret, (), now..until);
                Err(error)
            }
            outcome => outcome,
        }
    }

    /// The newest key of a tenant, past the caches and into them.
    pub(crate) async fn newest_now<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tokens: &TokenClient,
        tenant: &TenantId,
    ) -> Result<NewestKey, VaultError> {
        let secret = context.secret_id.secret_name(tenant);
        let key = self.fetch(context, tokens, &secret, None).await?;
        Ok(NewestKey { secret, key })
    }

    /// Whether a key is remembered now.
    pub(crate) fn has<E: Environment>(&self, context: &Context<'_, E>, key: &KeyId) -> bool {
        self.keys.get(key, context.now()).is_some()
    }

    /// Whether a key of a tenant was asked for, as long ago as keys are kept.
    pub(crate) fn has_asked<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tenant: &TenantId,
    ) -> bool {
        let secret = context.secret_id.secret_name(tenant);
        self.asked.get(&secret, context.now()).is_some()
    }

    /// This app's token for Key Vault, with the claims that a challenge asked for.
    pub(crate) async fn token<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tokens: &TokenClient,
        claims: Option<String>,
    ) -> Result<Rc<AccessToken>, VaultError> {
        let find_tenant = async || self.tenant(context).await;
        tokens.key_vault_token(context, claims, find_tenant).await
    }

    /// Past the caches, and into them. Once at a time.
    async fn fetch<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tokens: &TokenClient,
        secret: &SecretName,
        version: Option<&KeyVersion>,
    ) -> Result<Rc<Key>, VaultError> {
        let id = (secret.clone(), version.cloned());
        self.fetches
            .run(context.env, &id, context.deadline, async || {
                let now = context.now();
                let until = now.saturating_add(context.key_cache_seconds.into());
                self.asked.put(secret.clone(), (), now..until);
                let key = Rc::new(self.ask_twice(context, tokens, secret, version).await?);
                self.keep(context, secret, &key, version.is_none());
                Ok(key)
            })
            .await
    }

    fn keep<E: Environment>(
        &self,
        context: &Context<'_, E>,
        secret: &SecretName,
        key: &Rc<Key>,
        is_newest: bool,
    ) {
        let now = context.now();
        let id = (secret.clone(), key.version.clone());
        let until = now.saturating_add(context.key_cache_seconds.into());
        self.keys.put(id, Rc::clone(key), now..until);
        if is_newest {
            self.not_onboarded.forget(secret);
            let until = now.saturating_add(context.key_latest_seconds.into());
            self.newest
                .put(secret.clone(), key.version.clone(), now..until);
        }
    }

    async fn ask_twice<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tokens: &TokenClient,
        secret: &SecretName,
        version: Option<&KeyVersion>,
    ) -> Result<Key, VaultError> {
        twice(async |claims| self.ask(context, tokens, secret, version, claims).await).await
    }

    /// Sends what needs a token, and once more with a new one if that one is not accepted.
    pub(crate) async fn exchange<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tokens: &TokenClient,
        request: impl Fn(&AccessToken) -> Result<Request<SecretBody>, http::Error>,
    ) -> Result<Response<SecretBody>, VaultError> {
        let other = SecretError::Other;
        twice(async |claims| {
            let token = self.token(context, tokens, claims).await.map_err(other)?;
            let request = request(&token).map_err(|_| other(no_url()))?;
            let response = self.send(context, request).await.map_err(other)?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            let said = Unauthorized::read(&response);
            self.not_accepted(context, tokens, &token, &said);
            Err(SecretError::Unauthorized(said))
        })
        .await
    }

    async fn ask<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tokens: &TokenClient,
        secret: &SecretName,
        version: Option<&KeyVersion>,
        claims: Option<String>,
    ) -> Result<Key, SecretError> {
        let other = SecretError::Other;
        let token = self.token(context, tokens, claims).await.map_err(other)?;
        let request =
            secret_request(context, secret, version, &token).map_err(|_| other(no_url()))?;
        let response = self.send(context, request).await.map_err(other)?;
        let outcome = read_secret(&response, secret, version);
        if let Err(SecretError::Unauthorized(said)) = &outcome {
            self.not_accepted(context, tokens, &token, said);
        }
        outcome
    }

    fn not_accepted<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tokens: &TokenClient,
        token: &Rc<AccessToken>,
        said: &Unauthorized,
    ) {
        tokens.forget_key_vault_token(token);
        if let Some(tenant) = &said.tenant {
            self.remember_tenant(context, tenant);
        }
    }

    /// The tenant that Key Vault is in: what it said last, the setting, or what it says now.
    async fn tenant<E: Environment>(
        &self,
        context: &Context<'_, E>,
    ) -> Result<TenantId, VaultError> {
        let said = self.tenant.borrow().clone();
        if let Some(tenant) = said.or_else(|| context.key_vault_tenant.clone()) {
            return Ok(tenant);
        }
        let request = challenge_request(context).map_err(|_| no_url())?;
        let response = self.send(context, request).await?;
        let tenant =
            challenged_tenant(&response).ok_or_else(|| VaultError::upstream(System::KeyVault))?;
        self.remember_tenant(context, &tenant);
        Ok(tenant)
    }

    /// What Key Vault says of its tenant goes before the setting.
    fn remember_tenant<E: Environment>(&self, context: &Context<'_, E>, tenant: &TenantId) {
        let known = self.tenant.replace(Some(tenant.clone()));
        let known = known.as_ref().or(context.key_vault_tenant.as_ref());
        if known.is_some_and(|known| known != tenant) {
            context.log(
                json!({"event": "key_vault_moved", "tenant": tenant.as_str(), "reason": "Key Vault is in another tenant than it was, or than the setting `key_vault_tenant` says"}),
            );
        }
    }

    /// Sends, unless Key Vault asked to be left alone, and heeds it if it does now. It throttles without saying for how
    /// long.
    pub(crate) async fn send<E: Environment>(
        &self,
        context: &Context<'_, E>,
        request: Request<SecretBody>,
    ) -> Result<Response<SecretBody>, VaultError> {
        if let Some(left) = self.pause.left(&(), context.now()) {
            return Err(throttled(Some(left)));
        }
        let response = context
            .send(request, LONGEST_ANSWER, System::KeyVault)
            .await?;
        let now = context.now();
        let asked = retry_after(response.headers(), now);
        match (response.status(), asked) {
            (StatusCode::TOO_MANY_REQUESTS, None) => self.pause.back_off((), now),
            (status, Some(seconds))
                if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() =>
            {
                self.pause.pause((), now, seconds);
            }
            (status, _) => {
                if !status.is_server_error() {
                    self.pause.worked(&(), now);
                }
                return Ok(response);
            }
        }
        Err(throttled(self.pause.left(&(), now)))
    }
}

/// Asks, and once more if the token was revoked, is too old after all, or of another tenant.
async fn twice<T>(
    ask: impl AsyncFn(Option<String>) -> Result<T, SecretError>,
) -> Result<T, VaultError> {
    let mut outcome = ask(None).await;
    if let Err(SecretError::Unauthorized(said)) = outcome {
        outcome = ask(said.claims).await;
    }
    outcome.map_err(|error| match error {
        SecretError::Unauthorized(said) if said.is_ours => OperatorError::KeyVaultRefused.into(),
        // A new token that is as it should be: it will be accepted in a moment.
        SecretError::Unauthorized(_) => throttled(Some(1)),
        SecretError::Other(error) => error,
    })
}

fn throttled(retry_after_seconds: Option<u32>) -> VaultError {
    UpstreamError {
        system: System::KeyVault,
        retry_after_seconds,
        holds_up: HoldsUp::Everyone,
    }
    .into()
}

fn no_url() -> VaultError {
    VaultError::setting("key_vault_url", "makes no URL")
}
