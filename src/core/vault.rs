//! The vault: every function of the WIT interface, over the ports. All secrets are here and nowhere else.
//!
//! [`Vault`] composes four parts, each with its own state and none knowing the others' insides: an authenticator, a
//! client of Entra ID's token endpoint, a ring of Key Vault's keys, and a sealer.

mod access_tokens;
pub mod authenticator;
mod cache;
pub mod call;
pub mod claims_request;
mod clock_check;
mod context;
pub mod credential;
pub mod custodian;
pub mod database;
pub mod grants;
pub mod issuer;
pub mod key_ring;
pub mod managed_identity;
mod outbound;
pub mod own_tokens;
mod pause;
pub mod port;
#[cfg(test)]
pub(crate) mod samples;
pub mod scope;
pub mod sealing;
pub mod settings;
mod single_flight;
mod sources;
#[cfg(test)]
mod tests;
pub mod token_client;
pub mod wit;

use std::cell::RefCell;
use std::rc::Rc;

use serde_json::json;

use crate::deadline::LONGEST;
use crate::error::{CallerError, OperatorError, StoredError, System, VaultError};
use crate::identity::{Nonce, TenantId, User};
use crate::secret::{AccessToken, Bearer, RefreshToken};
use crate::vault::access_tokens::{AccessTokens, Found, Outcome};
use crate::vault::authenticator::{Authenticator, Known};
use crate::vault::call::apis::Apis;
use crate::vault::context::Context;
pub use crate::vault::context::Environment;
use crate::vault::grants::{Grants, Missing, Wanted};
use crate::vault::key_ring::{KeyId, NewestKey};
use crate::vault::port::{
    Caller, Draw, Enrolment, Issued, Kept, KeptOutcome, Operator, Policy, Purpose, Remembered,
    Role, SealedToken, StoredToken, Subject, SweepLimits, Terms, VaultPort,
};
use crate::vault::scope::Scope;
use crate::vault::sealing::{Binding, Envelope, Payload, Sealer};
use crate::vault::settings::Settings;
use crate::vault::settings::database::DatabaseSettings;
use crate::vault::settings::source::SettingsSource;
use crate::vault::sources::Sources;
use crate::vault::token_client::ScopeChoice;
use crate::vault::token_client::answer::Granted;
use crate::vault::token_client::grant::Grant;

/// The vault. What it remembers is a cache, bounded, and gone with it.
pub struct Vault<E> {
    sources: Rc<Sources<E>>,
    settings: SettingsSource<Settings>,
    database_settings: SettingsSource<DatabaseSettings>,
    authenticator: Authenticator,
    sealer: Sealer,
    access_tokens: AccessTokens,
    /// The grants and APIs that the operator was told of last.
    told: RefCell<Option<(Grants, Apis)>>,
}

impl<E: Environment> VaultPort for Vault<E> {
    fn check_settings(&self) -> Result<Policy, VaultError> {
        let context = self.context(LONGEST.into())?;
        self.tell_grants(&context);
        Ok(context.policy())
    }

    async fn identify(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        purpose: &Purpose,
        terms: Terms,
    ) -> Result<Caller, VaultError> {
        let context = self.context(terms)?;
        let (draw, needed) = match (purpose, subject) {
            (Purpose::Manage, _) | (Purpose::Enrol, Subject::Me) => (None, Role::Admin),
            (Purpose::Enrol, Subject::User(_)) => {
                let what = "`subject`: nobody enrols somebody else";
                return Err(CallerError::InvalidRequest(what.into()).into());
            }
            (Purpose::Draw(draw), _) => (Some((draw, Asked::read(draw)?)), Role::Act),
        };
        let caller = self.authenticator.caller(&context, bearer, subject, needed);
        let known = match purpose {
            Purpose::Manage => caller.await?,
            // For these Key Vault will be asked.
            Purpose::Enrol | Purpose::Draw(_) => {
                self.sources.while_verifying(&context, caller).await?
            }
        };
        let (rule, kept) = match &draw {
            None => (None, None),
            Some((draw, asked)) => {
                let rule = may(&context, &known, asked.wanted())?;
                (Some(rule), self.kept(&context, &known, draw, asked))
            }
        };
        if draw.is_some() && kept.is_none() {
            self.sources.begin_key(&context, &known.user.tenant);
        }
        Ok(Caller {
            app: known.app.client,
            rule,
            user: known.user,
            policy: context.policy(),
            kept,
        })
    }

    async fn enrol(
        &self,
        bearer: &Bearer,
        nonce: &Nonce,
        scope: Option<&str>,
        terms: Terms,
    ) -> Result<Enrolment, VaultError> {
        let context = self.context(terms)?;
        let scope_choice = ScopeChoice::of(scope);
        let asked = scope.map(Scope::asked).transpose()?;
        let caller = self.authenticator.user(&context, bearer);
        let known = self.sources.while_verifying(&context, caller).await?;
        if let Some(asked) = &asked {
            // A scope of one's own is for what is drawn later.
            may(&context, &known, Wanted::Scope(asked))?;
        }
        let scope = asked.unwrap_or_else(|| context.scope.clone());
        let Known { app, user_id, user } = known;
        // Before Entra ID is asked: without a key its answer could not be kept.
        let newest = self.first_key(&context, &user.tenant).await?;
        let grant = Grant::OnBehalfOf {
            assertion: bearer,
            scope: &scope,
        };
        let granted = self
            .sources
            .token_client
            .grant(&context, &user, &grant, scope_choice);
        let payload = Payload {
            refresh_token: successor(&*granted.await?)?,
            user_id,
            scope: scope.as_str().into(),
        };
        let sealed = self
            .sealer
            .seal(&context, &payload, &user.tenant, nonce, &newest)?;
        Ok(Enrolment {
            app: app.client,
            user,
            policy: context.policy(),
            sealed,
            scope: payload.scope,
        })
    }

    async fn access_token(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        nonce: &Nonce,
        token: &str,
        draw: Draw,
        terms: Terms,
    ) -> Result<Issued, VaultError> {
        let context = self.context(terms)?;
        // What is asked for is looked at before a key is fetched for it.
        let scope_choice = ScopeChoice::of(draw.scope.as_deref());
        let asked = Asked::read(&draw)?;
        let caller = self
            .authenticator
            .caller(&context, bearer, subject, Role::Act);
        let known = self.sources.while_verifying(&context, caller).await?;
        may(&context, &known, asked.wanted())?;
        let envelope = bound(&context, &known, nonce, token)?;
        let key = envelope.key();
        let payload = self.open_for(&context, envelope, &known).await?;
        // Another draw may have been answered since `identify` found nothing. Nothing is waited for from here to the request: who
        // waited for the same key comes here when the one who fetched it has been answered.
        if !draw.replace
            && let Some(kept) = self.kept(&context, &known, &draw, &asked)
            && kept.nonce == *nonce
        {
            return match kept.outcome {
                KeptOutcome::Issued(issued) => Ok(issued),
                KeptOutcome::Refused(remembered) => Err(remembered.error),
            };
        }
        let claims = asked.claims.as_deref();
        let scope = if let Some(scope) = asked.scope {
            scope
        } else {
            let scope = Scope::parse(&payload.scope).ok_or(StoredError::Damaged)?;
            may(&context, &known, Wanted::Scope(&scope))?;
            scope
        };

        let redeemed = (&payload, &scope, scope_choice);
        let granted = self
            .redeem(
                &context,
                &known.user,
                (nonce, &key),
                redeemed,
                (&draw, claims),
            )
            .await?;
        // The answer may have been another caller's, too, and be more than was asked for.
        let given = Wanted::Given {
            asked: &scope,
            given: granted.scope_or(&scope),
        };
        let rule = may(&context, &known, given)?;
        let replacement = if draw.replace {
            self.replacement(&context, &granted, payload, &known.user.tenant, nonce)
                .await
        } else {
            None
        };
        Ok(Issued {
            access_token: AccessToken::new(granted.access_token.expose().into()),
            token_type: granted.token_type.clone(),
            expires_in: granted.expires_in,
            scope: granted.scope_or(&scope).into(),
            rule,
            replacement,
        })
    }

    fn forget(&self, user: &User) {
        self.access_tokens.forget(user);
    }

    async fn refresh(&self, stored: &StoredToken, terms: Terms) -> Result<SealedToken, VaultError> {
        let context = self.context(terms)?;
        let StoredToken { user, nonce, .. } = stored;
        let payload = self.open_stored(&context, stored).await?;
        let scope = Scope::parse(&payload.scope).ok_or(StoredError::Damaged)?;
        let newest = self.newest_key(&context, &user.tenant).await?;
        let grant = Grant::Refresh {
            token: &payload.refresh_token,
            scope: &scope,
            claims: None,
        };
        let granted =
            self.sources
                .token_client
                .grant(&context, user, &grant, ScopeChoice::Settings);
        let payload = Payload {
            refresh_token: successor(&*granted.await?)?,
            ..payload
        };
        self.sealer
            .seal(&context, &payload, &user.tenant, nonce, &newest)
    }

    async fn reseal(
        &self,
        stored: &StoredToken,
        terms: Terms,
    ) -> Result<Option<SealedToken>, VaultError> {
        let context = self.context(terms)?;
        let StoredToken { user, nonce, token } = stored;
        let envelope = Envelope::parse(token)?;
        let newest = self.newest_key(&context, &user.tenant).await?;
        if envelope.secret == newest.secret && envelope.version == newest.key.version {
            return Ok(None);
        }
        let payload = self.open_stored(&context, stored).await?;
        let sealed = self
            .sealer
            .seal(&context, &payload, &user.tenant, nonce, &newest)?;
        Ok(Some(sealed))
    }

    async fn newest_key_version(
        &self,
        tenant: &TenantId,
        terms: Terms,
    ) -> Result<port::NewestKey, VaultError> {
        let context = self.context(terms)?;
        context.tenants.check(tenant)?;
        let newest = self
            .sources
            .key_ring
            .newest_now(&context, &self.sources.token_client, tenant)
            .await?;
        // By a wrong clock a sweep would refresh what is not due, or leave what is.
        self.sources.clock_check.check()?;
        self.sealer.check(context.now(), &newest)?;
        let key = newest.key;
        Ok(port::NewestKey {
            version: key.version.clone(),
            created_at: key.created_at,
            expires_at: key.expires_at(),
        })
    }

    async fn confirm_clock(&self, terms: Terms) -> Result<(), VaultError> {
        let context = self.context(terms)?;
        // The one request that needs no tenant, and what comes back is wanted anyway.
        let is_dated = self.authenticator.renew_signing_keys(&context).await?;
        if !is_dated {
            return Err(VaultError::upstream(System::SigningKeys));
        }
        Ok(self.sources.clock_check.check()?)
    }

    async fn authorize_sweep(
        &self,
        bearer: &Bearer,
        terms: Terms,
    ) -> Result<SweepLimits, VaultError> {
        let context = self.context(terms)?;
        self.authenticator.sweeper(&context, bearer).await?;
        Ok(SweepLimits {
            policy: context.policy(),
            seconds: context.sweep_seconds,
            concurrency: context.sweep_concurrency,
        })
    }

    async fn authorize_operator(
        &self,
        bearer: &Bearer,
        role: Role,
        tenant: Option<&TenantId>,
        terms: Terms,
    ) -> Result<Operator, VaultError> {
        let context = self.context(terms)?;
        let operator = self.authenticator.operator(&context, bearer, role, tenant);
        let (app, tenant) = operator.await?;
        Ok(Operator {
            app,
            tenant,
            policy: context.policy(),
        })
    }
}

impl<E: Environment> Vault<E> {
    /// A vault that remembers nothing yet.
    #[must_use]
    pub fn new(env: E) -> Self {
        Self {
            sources: Sources::new(env),
            settings: SettingsSource::new(),
            database_settings: SettingsSource::new(),
            authenticator: Authenticator::new(),
            sealer: Sealer::new(),
            access_tokens: AccessTokens::new(),
            told: RefCell::default(),
        }
    }

    /// What a call of the vault needs from its start.
    fn context(&self, terms: Terms) -> Result<Context<'_, E>, VaultError> {
        let settings = self.settings.current(&self.sources.env, Settings::read)?;
        let Sources {
            env, clock_check, ..
        } = &*self.sources;
        Ok(Context::new(env, clock_check, settings, terms))
    }

    /// Says grants and APIs in words, once an instance and whenever they have changed: in a list of ids nobody sees who may what.
    fn tell_grants(&self, context: &Context<'_, E>) {
        let mut told = self.told.borrow_mut();
        let is_this =
            |(grants, apis): &(Grants, Apis)| *grants == context.grants && *apis == context.apis;
        if told.as_ref().is_some_and(is_this) {
            return;
        }
        for says in context.grants.in_words(context.operator_tenant.as_ref()) {
            context.log(json!({"event": "grant", "says": says}));
        }
        for says in context.apis.in_words() {
            context.log(json!({"event": "api", "says": says}));
        }
        *told = Some((context.grants.clone(), context.apis.clone()));
    }

    /// What the same draw came to before, if this caller may have that; none, too, if it may not: what was kept can be of an
    /// enrolment that is over, and refuses nobody. Whether its enrolment still is the user's, storage has to tell.
    fn kept(
        &self,
        context: &Context<'_, E>,
        known: &Known,
        draw: &Draw,
        asked: &Asked,
    ) -> Option<Kept> {
        let claims = asked.claims.as_deref();
        let take = |found: Found<'_>| {
            let outcome = match found.outcome {
                Outcome::Refused(error) => {
                    may(context, known, Wanted::Scope(found.asked)).ok()?;
                    KeptOutcome::Refused(Remembered {
                        error: error.clone(),
                        retry_after_seconds: found.left,
                    })
                }
                Outcome::Given {
                    access_token,
                    token_type,
                    scope,
                } => {
                    let given = Wanted::Given {
                        asked: found.asked,
                        given: scope,
                    };
                    KeptOutcome::Issued(Issued {
                        rule: may(context, known, given).ok()?,
                        access_token: AccessToken::new(access_token.expose().into()),
                        token_type: token_type.clone(),
                        expires_in: found.left,
                        scope: scope.clone(),
                        replacement: None,
                    })
                }
            };
            Some(Kept {
                nonce: found.nonce.clone(),
                scope: found.asked.as_str().into(),
                outcome,
            })
        };
        let has_key = |key: &KeyId| self.sources.key_ring.has(context, key);
        self.access_tokens
            .find(context, &known.user, draw, claims, has_key, take)
            .flatten()
    }

    /// The newest key of a tenant, if it may seal now.
    async fn newest_key(
        &self,
        context: &Context<'_, E>,
        tenant: &TenantId,
    ) -> Result<NewestKey, VaultError> {
        let newest = self
            .sources
            .key_ring
            .newest(context, &self.sources.token_client, tenant)
            .await?;
        self.sealer.check(context.now(), &newest)?;
        Ok(newest)
    }

    /// Likewise, for somebody who enrols.
    async fn first_key(
        &self,
        context: &Context<'_, E>,
        tenant: &TenantId,
    ) -> Result<NewestKey, VaultError> {
        let newest =
            self.sources
                .key_ring
                .newest_for_enrolment(context, &self.sources.token_client, tenant);
        let newest = newest.await?;
        self.sealer.check(context.now(), &newest)?;
        Ok(newest)
    }

    /// Seals the successor of a token that was just used. The old one stays valid, so that a key that cannot be
    /// had now is no reason to keep the access token from the caller.
    async fn replacement(
        &self,
        context: &Context<'_, E>,
        granted: &Granted,
        old: Payload,
        tenant: &TenantId,
        nonce: &Nonce,
    ) -> Option<SealedToken> {
        let payload = Payload {
            refresh_token: successor(granted).ok()?,
            ..old
        };
        let newest = self.newest_key(context, tenant).await.ok()?;
        self.sealer
            .seal(context, &payload, tenant, nonce, &newest)
            .ok()
    }

    /// Redeems a refresh token for an access token, and keeps what came of it.
    async fn redeem(
        &self,
        context: &Context<'_, E>,
        user: &User,
        under: (&Nonce, &KeyId),
        (payload, scope, scope_choice): (&Payload, &Scope, ScopeChoice),
        (draw, claims): (&Draw, Option<&str>),
    ) -> Result<Rc<Granted>, VaultError> {
        let grant = Grant::Refresh {
            token: &payload.refresh_token,
            scope,
            claims,
        };
        let granted = self
            .sources
            .token_client
            .grant(context, user, &grant, scope_choice);
        let granted = granted.await;
        self.access_tokens
            .keep(context, user, under, scope, (draw, claims), &granted);
        granted
    }

    /// Opens what is bound to a caller's user.
    async fn open_for(
        &self,
        context: &Context<'_, E>,
        envelope: Envelope<'_>,
        known: &Known,
    ) -> Result<Payload, VaultError> {
        let payload = self.open(context, envelope, &known.user.tenant).await?;
        if payload.user_id == known.user_id {
            Ok(payload)
        } else {
            Err(StoredError::NotBound.into())
        }
    }

    /// Opens with the key that the envelope names, if it is one of this tenant's.
    async fn open(
        &self,
        context: &Context<'_, E>,
        envelope: Envelope<'_>,
        tenant: &TenantId,
    ) -> Result<Payload, VaultError> {
        let Envelope {
            secret, version, ..
        } = &envelope;
        if *secret != context.secret_id.secret_name(tenant) {
            return Err(StoredError::NotBound.into());
        }
        let key = self
            .sources
            .key_ring
            .exact(context, &self.sources.token_client, secret, version);
        let key = key.await?;
        Sealer::open(context, envelope, &key)
    }

    /// Opens without a caller: the user is the one sealed inside, and must be the one it is stored under.
    async fn open_stored(
        &self,
        context: &Context<'_, E>,
        stored: &StoredToken,
    ) -> Result<Payload, VaultError> {
        let StoredToken { user, nonce, token } = stored;
        context.tenants.check(&user.tenant)?;
        let envelope = Envelope::parse(token)?;
        let sealed_for = envelope.binding.clone();
        let payload = self.open(context, envelope, &user.tenant).await?;
        let client_id = context.client_id.as_str();
        let binding = Binding::new(client_id, &user.tenant, &payload.user_id, nonce);
        let id = payload.user_id.storage_id(context.pseudonym_key.as_ref());
        if sealed_for == binding && id == user.id {
            Ok(payload)
        } else {
            Err(StoredError::NotBound.into())
        }
    }
}

/// What a caller asks for, once it was looked at.
struct Asked {
    scope: Option<Scope>,
    /// As JSON text.
    claims: Option<String>,
}

impl Asked {
    fn read(draw: &Draw) -> Result<Self, CallerError> {
        let (scope, claims) = (draw.scope.as_deref(), draw.claims.as_deref());
        Ok(Self {
            scope: scope.map(Scope::asked).transpose()?,
            claims: claims.map(claims_request::of_caller).transpose()?,
        })
    }

    fn wanted(&self) -> Wanted<'_> {
        self.scope.as_ref().map_or(Wanted::Anything, Wanted::Scope)
    }
}

/// What is stored, if it was sealed for a caller's user and this enrolment. That is seen before a key is fetched: the store may not
/// choose which one.
fn bound<'t, E>(
    context: &Context<'_, E>,
    known: &Known,
    nonce: &Nonce,
    token: &'t str,
) -> Result<Envelope<'t>, VaultError> {
    let envelope = Envelope::parse(token)?;
    let Known { user_id, user, .. } = known;
    let client_id = context.client_id.as_str();
    if envelope.is_bound_to(&Binding::new(client_id, &user.tenant, user_id, nonce)) {
        Ok(envelope)
    } else {
        Err(StoredError::NotBound.into())
    }
}

/// The rule that lets a caller have what it wants.
fn may<E>(
    context: &Context<'_, E>,
    known: &Known,
    wanted: Wanted<'_>,
) -> Result<String, VaultError> {
    let tenant = &known.user.tenant;
    let rule = if context.tenants.allow(tenant) {
        context.grants.decide(&known.app, tenant, wanted)
    } else {
        Err(Missing(format!(
            "tenant {tenant} is not among the setting `tenants`"
        )))
    };
    Ok(rule.map_err(|missing| known.refused(missing))?)
}

/// The refresh token that came with an answer, to be sealed. The answer itself may be shared.
fn successor(granted: &Granted) -> Result<RefreshToken, OperatorError> {
    granted
        .refresh_token
        .as_ref()
        .map(|token| RefreshToken::new(token.expose().into()))
        .ok_or(OperatorError::NoRefreshToken)
}
