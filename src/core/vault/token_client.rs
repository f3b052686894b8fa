//! Entra ID's tokens: grants for users, and this app's own access token for Key Vault.

pub mod answer;
mod assertions;
pub mod grant;
pub(crate) mod identity;
mod ruling;

use std::rc::Rc;

use futures_util::future::try_join;
use serde_json::json;

use crate::error::{HoldsUp, Reason, Suberror, System, UpstreamError, VaultError};
use crate::identity::{TenantId, User};
use crate::secret::AccessToken;
use crate::vault::cache::Cache;
use crate::vault::context::{Context, Environment};
use crate::vault::pause::Pauses;
use crate::vault::settings::KeyVaultCredential;
use crate::vault::single_flight::SingleFlight;
use crate::vault::token_client::answer::{
    Class, Granted, LONGEST_ANSWER, Refusal, Suspect, read_token_response,
};
use crate::vault::token_client::assertions::{Assertions, OwnProof};
use crate::vault::token_client::grant::{Grant, token_request};
use crate::vault::token_client::identity::identity_token;
pub(crate) use crate::vault::token_client::ruling::ScopeChoice;
use crate::vault::token_client::ruling::ruling;

/// Seconds before its expiry at which a token of this app's own is replaced, as Microsoft's own libraries do.
const EXPIRY_MARGIN: u64 = 300;
/// Seconds of pause when Entra ID is throttling or failing and does not say how long (the default of Microsoft's
/// `msal`).
pub(crate) const PAUSE: u32 = 5;
/// Pauses that are remembered.
const PAUSES: usize = 4096;

/// Asks Entra ID for tokens. It remembers what proves who this app is, its access token for Key Vault, and whom Entra
/// ID asked to stay away.
pub(crate) struct TokenClient {
    assertions: Assertions,
    pauses: Pauses<Paused>,
    grants: SingleFlight<GrantIdentity, Rc<Granted>, VaultError>,
    key_vault_token: Cache<(), Rc<AccessToken>>,
    /// By the claims that are asked for.
    key_vault_token_fetches: SingleFlight<Option<String>, Rc<AccessToken>, VaultError>,
}

/// Whom a pause holds up.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Paused {
    /// One user: Entra ID broke a loop of identical requests.
    User(User),
    /// A whole tenant: it is throttled, or Entra ID fails for it.
    Tenant(TenantId),
}

impl TokenClient {
    /// One that remembers nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            assertions: Assertions::new(),
            pauses: Pauses::new(PAUSES),
            grants: SingleFlight::new(VaultError::upstream(System::Entra)),
            key_vault_token: Cache::new(1),
            key_vault_token_fetches: SingleFlight::new(VaultError::upstream(System::KeyVault)),
        }
    }

    /// A grant of a user. The same one is asked for once at a time: identical requests side by side are what Entra ID
    /// takes for a loop, and answers with AADSTS50196
    /// (<https://learn.microsoft.com/entra/identity-platform/reference-breaking-changes>).
    ///
    /// # Errors
    /// Whose turn it is: see [`VaultError`].
    pub(crate) async fn grant<E: Environment>(
        &self,
        context: &Context<'_, E>,
        user: &User,
        grant: &Grant<'_>,
        scope_choice: ScopeChoice,
    ) -> Result<Rc<Granted>, VaultError> {
        let identity = GrantIdentity::new(user, grant, scope_choice);
        self.grants
            .run(context.env, &identity, context.deadline, async || {
                let tenant = &user.tenant;
                let token = self.token(context, tenant, Some(user), grant, scope_choice, None);
                Ok(Rc::new(token.await?))
            })
            .await
    }

    /// This app's own access token for Key Vault, with the claims that a challenge asked for. The tenant to ask for it
    /// in is looked for only if there is need.
    ///
    /// # Errors
    /// [`VaultError`].
    pub(crate) async fn key_vault_token<E: Environment>(
        &self,
        context: &Context<'_, E>,
        claims: Option<String>,
        find_tenant: impl AsyncFnOnce() -> Result<TenantId, VaultError>,
    ) -> Result<Rc<AccessToken>, VaultError> {
        if let Some(token) = self.key_vault_token.get(&(), context.now()) {
            return Ok(token);
        }
        self.key_vault_token_fetches
            .run(context.env, &claims, context.deadline, async || {
                let claims = claims.as_deref();
                let (token, expires_at) = match context.key_vault_credential {
                    KeyVaultCredential::ManagedIdentity => {
                        // A resource is a scope without its end; and there is no way to ask for claims.
                        let resource = context.key_vault_scope.trim_end_matches("/.default");
                        identity_token(context, resource).await?
                    }
                    KeyVaultCredential::App => {
                        let proof = self.assertions.common_proof(context);
                        let (tenant, proof) = try_join(find_tenant(), proof).await?;
                        self.app_token(context, &tenant, claims, proof).await?
                    }
                };
                let token = Rc::new(token);
                let until = expires_at.saturating_sub(EXPIRY_MARGIN);
                let good = context.now()..until;
                self.key_vault_token.put((), Rc::clone(&token), good);
                Ok(token)
            })
            .await
    }

    /// Whether one is at hand.
    pub(crate) fn has_key_vault_token<E: Environment>(&self, context: &Context<'_, E>) -> bool {
        self.key_vault_token.get(&(), context.now()).is_some()
    }

    /// Key Vault no longer takes this one.
    pub(crate) fn forget_key_vault_token(&self, token: &Rc<AccessToken>) {
        self.key_vault_token
            .forget_if(&(), |kept| Rc::ptr_eq(kept, token));
    }

    /// A token of the app itself for any resource, which is not kept.
    ///
    /// # Errors
    /// [`VaultError`].
    pub(crate) async fn own_token<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tenant: &TenantId,
        scope: &str,
    ) -> Result<AccessToken, VaultError> {
        let grant = Grant::ClientCredentials {
            scope,
            claims: None,
        };
        let choice = ScopeChoice::Settings;
        let token = self.token(context, tenant, None, &grant, choice, None);
        Ok(token.await?.access_token)
    }

    /// A token of the app itself, and until when it is good.
    async fn app_token<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tenant: &TenantId,
        claims: Option<&str>,
        proof: Option<OwnProof>,
    ) -> Result<(AccessToken, u64), VaultError> {
        let grant = Grant::ClientCredentials {
            scope: &context.key_vault_scope,
            claims,
        };
        let choice = ScopeChoice::Settings;
        let token = self.token(context, tenant, None, &grant, choice, proof);
        let granted = token.await?;
        let expires_at = context.now().saturating_add(granted.expires_in.into());
        Ok((granted.access_token, expires_at))
    }

    async fn token<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tenant: &TenantId,
        user: Option<&User>,
        grant: &Grant<'_>,
        scope_choice: ScopeChoice,
        proof: Option<OwnProof>,
    ) -> Result<Granted, VaultError> {
        self.check_pauses(context.now(), tenant, user)?;
        let mut proof = match proof {
            Some(proof) => proof,
            None => self.assertions.proof(context, tenant).await?,
        };
        let mut answer = ask(context, tenant, &proof, grant).await?;
        if let Err(refusal) = &answer
            && let Class::Operator(Suspect::Credential) = refusal.class
            && let OwnProof::Assertion { is_kept: true, .. } = proof
        {
            // What was kept may be of a credential that was replaced since.
            self.assertions.forget(&proof);
            proof = self.assertions.proof(context, tenant).await?;
            answer = ask(context, tenant, &proof, grant).await?;
        }
        answer.map_err(|refusal| {
            if let Class::Operator(Suspect::Credential) = refusal.class {
                self.assertions.forget(&proof);
            }
            self.heed(context.now(), &refusal.class, tenant, user);
            ruling(&context.credential, refusal, grant, scope_choice)
        })
    }

    fn check_pauses(
        &self,
        now: u64,
        tenant: &TenantId,
        user: Option<&User>,
    ) -> Result<(), VaultError> {
        let left = |whom| self.pauses.left(&whom, now);
        let of_user = user.and_then(|user| left(Paused::User(user.clone())));
        let of_tenant = left(Paused::Tenant(tenant.clone()));
        let (left, holds_up) = match (of_tenant, of_user) {
            (None, None) => return Ok(()),
            (None, left) => (left, HoldsUp::User),
            (left, of_user) => (left.max(of_user), HoldsUp::Tenant),
        };
        Err(UpstreamError {
            system: System::Entra,
            retry_after_seconds: left,
            // Without this app's own token nobody's key can be read.
            holds_up: user.map_or(HoldsUp::Everyone, |_| holds_up),
        }
        .into())
    }

    /// Keeps away whom Entra ID wants to keep away.
    fn heed(&self, now: u64, class: &Class, tenant: &TenantId, user: Option<&User>) {
        let Class::Transient {
            retry_after_seconds,
            holds_up,
        } = class
        else {
            return;
        };
        let whom = match (holds_up, user) {
            (HoldsUp::Request, _) => return,
            (HoldsUp::User, Some(user)) => Paused::User(user.clone()),
            // This app's own requests have no user.
            (HoldsUp::User, None) | (HoldsUp::Tenant | HoldsUp::Everyone, _) => {
                Paused::Tenant(tenant.clone())
            }
        };
        self.pauses
            .pause(whom, now, retry_after_seconds.unwrap_or(PAUSE));
    }
}

/// The answer of the token endpoint, and a line if it is a refusal.
async fn ask<E: Environment>(
    context: &Context<'_, E>,
    tenant: &TenantId,
    proof: &OwnProof,
    grant: &Grant<'_>,
) -> Result<Result<Granted, Refusal>, VaultError> {
    let credential = &context.credential;
    let proof = proof
        .shown(credential)
        .ok_or_else(|| credential.refused(Reason::default()))?;
    let request = token_request(context, tenant, proof, grant)
        .map_err(|_| VaultError::setting("authority", "makes no URL"))?;
    let response = context.send(request, LONGEST_ANSWER, System::Entra).await?;
    let answer = read_token_response(&response, grant, context.now());
    if let Err(refusal) = &answer {
        context.log(json!({
            "event": "entra_refused", "grant": grant.name(), "tenant": tenant.as_str(),
            "status": response.status().as_u16(), "aadsts": refusal.reason.aadsts,
            "suberror": refusal.reason.suberror.map(Suberror::as_str), "trace_id": refusal.trace_id,
        }));
    }
    Ok(answer)
}

/// What makes two grants the same: who, with which token, for what.
#[derive(Clone, PartialEq, Eq, Hash)]
struct GrantIdentity {
    user: User,
    token: [u8; 32],
    scope: String,
    claims: Option<String>,
    scope_choice: ScopeChoice,
}

impl GrantIdentity {
    fn new(user: &User, grant: &Grant<'_>, scope_choice: ScopeChoice) -> Self {
        let (token, scope, claims) = match grant {
            Grant::OnBehalfOf { assertion, scope } => (assertion.digest(), scope.as_str(), None),
            Grant::Refresh {
                token,
                scope,
                claims,
            } => (token.digest(), scope.as_str(), *claims),
            Grant::ClientCredentials { scope, claims } => ([0; 32], *scope, *claims),
        };
        Self {
            user: user.clone(),
            token,
            scope: scope.into(),
            claims: claims.map(Into::into),
            scope_choice,
        }
    }
}
