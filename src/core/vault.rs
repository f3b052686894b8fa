//! The vault: every function of the WIT interface, over the ports. All secrets are here and nowhere else.

pub mod caller;
pub mod credential;
pub mod entra;
pub mod key_vault;
pub mod managed_identity;
pub mod outbound;
pub mod pause;
pub mod port;
pub mod sealing;
pub mod settings;
mod single_flight;

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use lru::LruCache;
use serde_json::json;

use crate::deadline::{Deadline, LONGEST};
use crate::error::{
    CallerError, HoldsUp, Interaction, OperatorError, OrganisationError, Reason, StoredError,
    Suberror, System, TokenDefect, UpstreamError, UserError, VaultError,
};
use crate::identity::User;
use crate::identity::{Guid, KeyVersion, Nonce, SecretName, TenantId, UserId};
use crate::port::{Clock, Config, Http, HttpError, Log, Random, SecretBody, Timer};
use crate::secret::{AccessToken, Bearer, ClientAssertion, RefreshToken};
use crate::vault::caller::{Claims, SigningKeys, Unverified};
use crate::vault::credential::{ASSERTION_SECONDS, Credential, Proof};
use crate::vault::entra::{
    Class, Grant, Granted, Refusal, Suspect, claims_request, read_token_response, token_endpoint,
    token_request,
};
use crate::vault::key_vault::{Key, SecretError, challenged_tenant, read_secret, secret_request};
use crate::vault::outbound::{Repeat, send};
use crate::vault::pause::{Paused, Pauses, retry_after};
use crate::vault::port::{
    Draw, Enrolment, Issued, Operator, Policy, Role, SealedToken, StoredToken, SweepLimits,
    VaultPort,
};
use crate::vault::sealing::{Binding, Envelope, Payload, Uses, WornOut, seal};
use crate::vault::settings::{KeyVaultCredential, Scope, Settings};
use crate::vault::single_flight::SingleFlight;

/// Role of an app that may sweep.
const SWEEP_ROLE: &str = "Behalf.Sweep";
/// Seconds for which parsed settings are used before they are read again.
const SETTINGS_SECONDS: u64 = 10;
/// Age up to which the last good settings are used while those that are read are none, in seconds.
const SETTINGS_USABLE: u64 = 300;
/// Age at which signing keys are fetched again, in seconds (facts/entra-and-key-vault.md §B: hourly).
const SIGNING_KEYS_FRESH: u64 = 3600;
/// Age up to which they are used, also when they cannot be fetched, in seconds.
const SIGNING_KEYS_USABLE: u64 = 86_400;
/// Seconds between two fetches for the sake of an unknown `kid`.
const SIGNING_KEYS_PAUSE: u64 = 300;
/// Seconds before its expiry at which this app's own access token is replaced (§A.8).
const EXPIRY_MARGIN: u64 = 300;
/// Seconds by which the clock may be off for a sweep (facts/threats.md 19).
const CLOCK_TOLERANCE: u64 = 300;
/// Longest claims request, in bytes: each one costs a call of Entra ID (facts/threats.md 20).
const LONGEST_CLAIMS: usize = 4096;
/// Signing-key documents hold about ten keys of 2 to 3 KiB.
const LONGEST_SIGNING_KEYS: usize = 512 * 1024;

/// Seconds before its expiry at which a signed assertion is replaced.
const ASSERTION_MARGIN: u64 = 120;
/// Seconds for which it is remembered that a tenant has no key.
const NOT_ONBOARDED_SECONDS: u64 = 60;
/// Seconds of pause when Entra ID is throttling or failing and does not say how long (the default of Microsoft's `msal`).
const PAUSE: u32 = 5;

const VERIFIED_TOKENS: NonZeroUsize = capacity(1024);
/// One a tenant, if it is signed; about a kilobyte each.
const ASSERTIONS: NonZeroUsize = capacity(8192);
const PAUSES: NonZeroUsize = capacity(4096);
const KEYS: NonZeroUsize = capacity(1024);

/// What a vault needs of the world.
pub trait Environment: Http + Clock + Timer + Random + Config + Log {}
impl<E: Http + Clock + Timer + Random + Config + Log> Environment for E {}

/// The vault. What it remembers is a cache, bounded, and gone with it.
pub struct Vault<E> {
    env: E,
    settings: RefCell<Option<KnownSettings>>,
    signing_keys: RefCell<Option<KnownKeys>>,
    /// When somebody last asked for newer ones, by [`Vault::uptime`], whatever came of it.
    signing_keys_asked_at: Cell<u64>,
    verified: RefCell<LruCache<[u8; 32], Cached<Verified>>>,
    keys: RefCell<LruCache<KeyId, Cached<Rc<Key>>>>,
    newest: RefCell<LruCache<SecretName, Cached<KeyVersion>>>,
    /// Tenants without any key.
    not_onboarded: RefCell<LruCache<SecretName, Cached<()>>>,
    uses: RefCell<Uses>,
    key_vault_token: RefCell<Option<Cached<Rc<AccessToken>>>>,
    key_vault_tenant: RefCell<Option<TenantId>>,
    assertions: RefCell<LruCache<String, Cached<Rc<ClientAssertion>>>>,
    pauses: RefCell<Pauses>,
    grants: SingleFlight<Same, Rc<Granted>, VaultError>,
    key_fetches: SingleFlight<(SecretName, Option<KeyVersion>), Rc<Key>, VaultError>,
    assertion_makings: SingleFlight<String, Rc<ClientAssertion>, VaultError>,
    signing_key_fetches: SingleFlight<(), Rc<SigningKeys>, VaultError>,
    key_vault_token_fetches: SingleFlight<Option<String>, Rc<AccessToken>, VaultError>,
    /// What the last answer with a date said of the clock.
    clock_is_wrong: Cell<bool>,
}

impl<E: Environment> VaultPort for Vault<E> {
    fn check_settings(&self) -> Result<(), VaultError> {
        self.call(LONGEST).map(drop)
    }

    async fn identify(
        &self,
        bearer: &Bearer,
        within: Duration,
    ) -> Result<(User, Policy), VaultError> {
        let call = self.call(within)?;
        let (_, user) = self.user(&call, bearer).await?;
        Ok((user, policy(&call)))
    }

    async fn enrol(
        &self,
        bearer: &Bearer,
        nonce: &Nonce,
        scope: Option<&str>,
        within: Duration,
    ) -> Result<Enrolment, VaultError> {
        let call = self.call(within)?;
        let (user_id, user) = self.user(&call, bearer).await?;
        let chosen = Chosen::by_caller(scope.is_some());
        let scope = match scope {
            Some(asked) => granted_scope(&call, asked)?,
            None => call.scope.clone(),
        };
        // Before Entra ID is asked: without a key its answer could not be kept.
        let (secret, key) = self.first_key(&call, &user.tenant).await?;
        let grant = Grant::OnBehalfOf {
            assertion: bearer,
            scope: &scope,
        };
        let granted = self.grant(&call, &user, &grant, chosen).await?;
        let payload = Payload {
            refresh_token: successor(&granted)?,
            user_id,
            scope: scope.as_str().into(),
        };
        let sealed = self.seal(&call, &payload, &user.tenant, nonce, (&secret, &key))?;
        Ok(Enrolment {
            user,
            policy: policy(&call),
            sealed,
            scope: payload.scope,
        })
    }

    async fn access_token(
        &self,
        bearer: &Bearer,
        nonce: &Nonce,
        token: &str,
        draw: Draw,
        within: Duration,
    ) -> Result<Issued, VaultError> {
        let call = self.call(within)?;
        let (user_id, user) = self.user(&call, bearer).await?;
        // What is asked for is looked at before a key is fetched for it.
        let chosen = Chosen::by_caller(draw.scope.is_some());
        let asked = draw.scope.as_deref();
        let asked = asked.map(|asked| granted_scope(&call, asked)).transpose()?;
        let claims = draw.claims.as_deref().map(checked_claims).transpose()?;

        let envelope = Envelope::parse(token)?;
        // Before a key is fetched: the store may not choose which one.
        if !envelope.is_bound_to(&Binding::new(
            call.client_id.as_str(),
            &user.tenant,
            &user_id,
            nonce,
        )) {
            return Err(StoredError::NotBound.into());
        }
        let payload = self.open(&call, envelope, &user.tenant).await?;
        if payload.user_id != user_id {
            return Err(StoredError::NotBound.into());
        }
        let scope = match asked {
            Some(scope) => scope,
            None => granted_scope(&call, &payload.scope)?,
        };

        let grant = Grant::Refresh {
            token: &payload.refresh_token,
            scope: &scope,
            claims: claims.as_deref(),
        };
        let granted = self.grant(&call, &user, &grant, chosen).await?;
        let replacement = match successor(&granted) {
            Ok(refresh_token) if draw.replace => {
                self.replacement(
                    &call,
                    Payload {
                        refresh_token,
                        ..payload
                    },
                    &user.tenant,
                    nonce,
                )
                .await
            }
            Ok(_) | Err(_) => None,
        };
        Ok(Issued {
            access_token: AccessToken::new(granted.access_token.expose().into()),
            token_type: granted.token_type.clone(),
            expires_in: granted.expires_in,
            scope: match granted.scope.as_str() {
                "" => scope.as_str(),
                scope => scope,
            }
            .into(),
            replacement,
        })
    }

    async fn refresh(
        &self,
        stored: &StoredToken,
        within: Duration,
    ) -> Result<SealedToken, VaultError> {
        let call = self.call(within)?;
        let payload = self.open_stored(&call, stored).await?;
        let scope = Scope::parse(&payload.scope).ok_or(StoredError::Damaged)?;
        let (secret, key) = self.sealing_key(&call, &stored.user.tenant).await?;
        let grant = Grant::Refresh {
            token: &payload.refresh_token,
            scope: &scope,
            claims: None,
        };
        let chosen = Chosen::BySettings;
        let granted = self.grant(&call, &stored.user, &grant, chosen).await?;
        let payload = Payload {
            refresh_token: successor(&granted)?,
            ..payload
        };
        self.seal(
            &call,
            &payload,
            &stored.user.tenant,
            &stored.nonce,
            (&secret, &key),
        )
    }

    async fn reseal(
        &self,
        stored: &StoredToken,
        within: Duration,
    ) -> Result<Option<SealedToken>, VaultError> {
        let call = self.call(within)?;
        let envelope = Envelope::parse(&stored.token)?;
        let (secret, key) = self.sealing_key(&call, &stored.user.tenant).await?;
        if envelope.secret == secret && envelope.version == key.version {
            return Ok(None);
        }
        let payload = self.open_stored(&call, stored).await?;
        self.seal(
            &call,
            &payload,
            &stored.user.tenant,
            &stored.nonce,
            (&secret, &key),
        )
        .map(Some)
    }

    async fn newest_key_version(
        &self,
        tenant: &TenantId,
        within: Duration,
    ) -> Result<KeyVersion, VaultError> {
        let call = self.call(within)?;
        allowed(&call, tenant)?;
        let secret = call.secret_id.secret_name(tenant);
        let key = self.fetch_key(&call, &secret, None).await?;
        // By a wrong clock a sweep would refresh what is not due, or leave what is.
        if self.clock_is_wrong.get() {
            return Err(OperatorError::ClockWrong.into());
        }
        self.check_sealing_key(&secret, &key)?;
        Ok(key.version.clone())
    }

    async fn confirm_clock(&self, within: Duration) -> Result<(), VaultError> {
        let call = self.call(within)?;
        // The one request that needs no tenant, and what comes back is wanted anyway.
        let (keys, is_dated) = self.fetch_signing_keys(&call).await?;
        self.keep_signing_keys(keys);
        if !is_dated {
            return Err(VaultError::upstream(System::SigningKeys));
        }
        if self.clock_is_wrong.get() {
            return Err(OperatorError::ClockWrong.into());
        }
        Ok(())
    }

    async fn authorize_sweep(
        &self,
        bearer: &Bearer,
        within: Duration,
    ) -> Result<SweepLimits, VaultError> {
        let call = self.call(within)?;
        // Every key is tried, so that the time does not tell which one was right.
        let by_key = call
            .sweep_keys
            .iter()
            .fold(false, |matched, key| key.matches(bearer) | matched);
        if !by_key {
            // A sweep key has no dot, or nobody could tell it from a JWT: `a.b.c` as a key still matches above.
            if !bearer.expose().contains('.') {
                return Err(CallerError::SweepNotAuthorized.into());
            }
            let now = self.env.now();
            let accept = |claims: &Claims| claims.accept_app(SWEEP_ROLE, None, &call, now);
            self.authenticate(&call, bearer, accept).await?;
        }
        Ok(SweepLimits {
            policy: policy(&call),
            seconds: call.sweep_seconds,
            concurrency: call.sweep_concurrency,
        })
    }

    async fn authorize_operator(
        &self,
        bearer: &Bearer,
        role: Role,
        tenant: Option<&TenantId>,
        within: Duration,
    ) -> Result<Operator, VaultError> {
        let call = self.call(within)?;
        let now = self.env.now();
        let accept = |claims: &Claims| {
            // Who names no tenant means all that he may act on.
            let tenant = tenant.unwrap_or(&claims.subject.tenant);
            claims.accept_app(role.name(), Some(tenant), &call, now)
        };
        let claims = self.authenticate(&call, bearer, accept).await?;
        let own = claims.subject.tenant;
        Ok(Operator {
            policy: policy(&call),
            tenant: (call.operator_tenant.as_ref() != Some(&own)).then_some(own),
        })
    }
}

impl<E: Environment> Vault<E> {
    /// A vault that remembers nothing yet.
    #[must_use]
    pub fn new(env: E) -> Self {
        Self {
            env,
            settings: RefCell::default(),
            signing_keys: RefCell::default(),
            signing_keys_asked_at: Cell::default(),
            verified: RefCell::new(LruCache::new(VERIFIED_TOKENS)),
            keys: RefCell::new(LruCache::new(KEYS)),
            newest: RefCell::new(LruCache::new(KEYS)),
            not_onboarded: RefCell::new(LruCache::new(KEYS)),
            uses: RefCell::new(Uses::new(KEYS)),
            key_vault_token: RefCell::default(),
            key_vault_tenant: RefCell::default(),
            assertions: RefCell::new(LruCache::new(ASSERTIONS)),
            pauses: RefCell::new(Pauses::new(PAUSES)),
            grants: SingleFlight::new(),
            key_fetches: SingleFlight::new(),
            assertion_makings: SingleFlight::new(),
            signing_key_fetches: SingleFlight::new(),
            key_vault_token_fetches: SingleFlight::new(),
            clock_is_wrong: Cell::default(),
        }
    }

    /// What a call of the vault needs from its start: the settings, and its deadline.
    fn call(&self, within: Duration) -> Result<Call, VaultError> {
        let deadline = Deadline::within(&self.env, within.min(LONGEST));
        let settings = self.current_settings()?;
        Ok(Call { settings, deadline })
    }

    /// The settings, read again when they may have changed. The last good ones stay for a time, with an alarm, if those that
    /// are read are none: a file that is being replaced is no reason to refuse everybody.
    fn current_settings(&self) -> Result<Rc<Settings>, VaultError> {
        let now = self.uptime();
        let mut known = self.settings.borrow_mut();
        if let Some(KnownSettings { settings, .. }) =
            known.as_ref().filter(|known| now < known.fresh_until)
        {
            return Ok(Rc::clone(settings));
        }
        let fresh_until = now.saturating_add(SETTINGS_SECONDS);
        match (Settings::read(&self.env), known.as_mut()) {
            (Ok(settings), _) => {
                let settings = Rc::new(settings);
                *known = Some(KnownSettings {
                    settings: Rc::clone(&settings),
                    read_at: now,
                    fresh_until,
                });
                Ok(settings)
            }
            (Err(error), Some(known)) if now < known.read_at.saturating_add(SETTINGS_USABLE) => {
                self.env.line(
                    &json!({"level": "alarm", "event": "settings_not_readable", "reason": error.to_string()})
                        .to_string(),
                );
                known.fresh_until = fresh_until;
                Ok(Rc::clone(&known.settings))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Seconds of a clock that nobody sets, for what has an age. The wall clock may be set while it is kept.
    fn uptime(&self) -> u64 {
        self.env.elapsed().as_secs()
    }

    // ---- Callers ----

    async fn user(&self, call: &Call, bearer: &Bearer) -> Result<(UserId, User), VaultError> {
        let now = self.env.now();
        let accept = |claims: &Claims| claims.accept_user(call, now);
        let claims = self.authenticate(call, bearer, accept).await?;
        let user_id = call.user_id.user_id(&claims.subject);
        let id = user_id.storage_id(call.pseudonym_key.as_ref());
        Ok((
            user_id,
            User {
                tenant: claims.subject.tenant,
                id,
            },
        ))
    }

    /// Verifies signature and issuer, or knows that it has, of a token with acceptable claims. Those are looked at first, so
    /// that nothing is fetched for a token that is refused whatever its signature.
    async fn authenticate(
        &self,
        call: &Call,
        bearer: &Bearer,
        accept: impl Fn(&Claims) -> Result<(), CallerError>,
    ) -> Result<Claims, VaultError> {
        let digest = bearer.digest();
        let now = self.env.now();
        let verified = self
            .verified
            .borrow_mut()
            .get(&digest)
            .and_then(|cached| cached.at(now))
            .cloned();
        if let Some(Verified { claims, key_id }) = verified {
            accept(&claims)?;
            // The key may have been withdrawn since.
            let keys = self.signing_keys(call, &key_id).await?;
            keys.find(&key_id).ok_or(TokenDefect::UnknownKey)?;
            return Ok(claims);
        }
        let token = Unverified::parse(bearer)?;
        accept(token.claims())?;
        let key_id = token.key_id().to_owned();
        let keys = self.signing_keys(call, &key_id).await?;
        let key = keys.find(&key_id).ok_or(TokenDefect::UnknownKey)?;
        let claims = token.verify(key, &call.issuers)?;
        let until = claims
            .good_until()
            .min(now.saturating_add(SIGNING_KEYS_FRESH));
        let verified = Verified {
            claims: claims.clone(),
            key_id,
        };
        self.verified
            .borrow_mut()
            .put(digest, Cached::new(verified, until));
        Ok(claims)
    }

    /// The signing keys, to find this one in. They are fetched anew when they are old; and for the sake of one that they
    /// lack, but not if that was less than five minutes ago. Those that cannot be fetched anew serve up to their age.
    async fn signing_keys(&self, call: &Call, id: &str) -> Result<Rc<SigningKeys>, VaultError> {
        let now = self.uptime();
        let known = self.signing_keys.borrow().clone().and_then(|known| {
            let age = now.saturating_sub(known.fetched_at);
            (age < SIGNING_KEYS_USABLE).then_some((known.keys, age))
        });
        let serves = |keys: &SigningKeys| keys.find(id).is_some();
        if let Some((keys, age)) = &known {
            // Whom they serve does not wait for newer ones that another has asked for.
            let since_asked = now.saturating_sub(self.signing_keys_asked_at.get());
            let is_enough = if serves(keys) {
                *age < SIGNING_KEYS_FRESH || since_asked < SIGNING_KEYS_PAUSE
            } else {
                *age < SIGNING_KEYS_PAUSE
            };
            if is_enough {
                return Ok(Rc::clone(keys));
            }
        }
        let fetched = self
            .signing_key_fetches
            .run(&self.env, &(), call.deadline, async || {
                self.signing_keys_asked_at.set(now);
                let (keys, _) = self.fetch_signing_keys(call).await?;
                Ok(self.keep_signing_keys(keys))
            })
            .await
            .unwrap_or_else(|| Err(VaultError::upstream(System::SigningKeys)));
        match known {
            Some((keys, _)) if fetched.is_err() && serves(&keys) => Ok(keys),
            _ => fetched,
        }
    }

    fn keep_signing_keys(&self, keys: SigningKeys) -> Rc<SigningKeys> {
        let keys = Rc::new(keys);
        *self.signing_keys.borrow_mut() = Some(KnownKeys {
            keys: Rc::clone(&keys),
            fetched_at: self.uptime(),
        });
        keys
    }

    /// From one URL for all tenants, so that a token cannot make the vault fetch for a tenant of its choice. And whether the
    /// answer had a date.
    async fn fetch_signing_keys(&self, call: &Call) -> Result<(SigningKeys, bool), VaultError> {
        let unavailable = || VaultError::upstream(System::SigningKeys);
        let request = Request::get(format!("{}common/discovery/v2.0/keys", call.authority))
            .body(SecretBody::default())
            .map_err(|_| unavailable())?;
        let response = self
            .send(call, request, LONGEST_SIGNING_KEYS, System::SigningKeys)
            .await?;
        if !response.status().is_success() {
            return Err(unavailable());
        }
        let keys = SigningKeys::parse(response.body()).ok_or_else(unavailable)?;
        Ok((keys, clock_off(&response, self.env.now()).is_some()))
    }

    // ---- Entra ID ----

    /// A grant of a user. The same one is asked for once at a time: identical requests side by side are what Entra ID takes
    /// for a loop (§A.8).
    async fn grant(
        &self,
        call: &Call,
        user: &User,
        grant: &Grant<'_>,
        chosen: Chosen,
    ) -> Result<Rc<Granted>, VaultError> {
        let same = Same::new(user, grant, chosen);
        self.grants
            .run(&self.env, &same, call.deadline, async || {
                let token = self.token(call, &user.tenant, Some(user), grant, chosen);
                Ok(Rc::new(token.await?))
            })
            .await
            .unwrap_or_else(|| Err(VaultError::upstream(System::Entra)))
    }

    async fn token(
        &self,
        call: &Call,
        tenant: &TenantId,
        user: Option<&User>,
        grant: &Grant<'_>,
        chosen: Chosen,
    ) -> Result<Granted, VaultError> {
        self.check_pauses(tenant, user)?;
        let mut assertion = self.assertion(call, tenant).await?;
        let mut answer = self.ask_entra(call, tenant, &assertion, grant).await?;
        if let Err(refusal) = &answer
            && let Class::Operator(Suspect::Credential) = refusal.class
            && let OwnProof::Assertion { is_kept: true, .. } = assertion
        {
            // What was kept may be of a credential that was replaced since.
            self.forget_assertion(&assertion);
            assertion = self.assertion(call, tenant).await?;
            answer = self.ask_entra(call, tenant, &assertion, grant).await?;
        }
        answer.map_err(|refusal| {
            if let Class::Operator(Suspect::Credential) = refusal.class {
                self.forget_assertion(&assertion);
            }
            self.heed(&refusal.class, tenant, user);
            refused(call, refusal, grant, chosen)
        })
    }

    /// The answer of the token endpoint, and a line if it is a refusal.
    async fn ask_entra(
        &self,
        call: &Call,
        tenant: &TenantId,
        own: &OwnProof,
        grant: &Grant<'_>,
    ) -> Result<Result<Granted, Refusal>, VaultError> {
        let proof = match (&call.credential, own) {
            (_, OwnProof::Assertion { assertion, .. }) => Proof::Assertion(assertion),
            (Credential::ClientSecret(secret), OwnProof::Setting) => Proof::Secret(secret),
            (Credential::FederatedToken(token), OwnProof::Setting) => Proof::Assertion(token),
            (Credential::Certificate(_) | Credential::ManagedIdentity, OwnProof::Setting) => {
                return Err(credential_refused(call, Reason::default()));
            }
        };
        let request = token_request(call, tenant, proof, grant)
            .map_err(|_| VaultError::setting("authority", "makes no URL"))?;
        let response = self
            .send(call, request, entra::LONGEST_ANSWER, System::Entra)
            .await?;
        let answer = read_token_response(&response, grant, self.env.now());
        if let Err(refusal) = &answer {
            self.env.line(
                &json!({
                    "event": "entra_refused", "grant": grant.name(), "tenant": tenant.as_str(),
                    "status": response.status().as_u16(), "aadsts": refusal.reason.aadsts,
                    "suberror": refusal.reason.suberror.map(Suberror::as_str), "trace_id": refusal.trace_id,
                })
                .to_string(),
            );
        }
        Ok(answer)
    }

    fn check_pauses(&self, tenant: &TenantId, user: Option<&User>) -> Result<(), VaultError> {
        let now = self.env.now();
        let mut pauses = self.pauses.borrow_mut();
        let of_user = user.and_then(|user| pauses.left(&Paused::User(user.clone()), now));
        let of_tenant = pauses.left(&Paused::Tenant(tenant.clone()), now);
        let (left, holds_up) = match (of_tenant, of_user) {
            (None, None) => return Ok(()),
            (None, left) => (left, HoldsUp::User),
            (left, of_user) => (left.max(of_user), HoldsUp::Tenant),
        };
        Err(UpstreamError {
            system: System::Entra,
            retry_after_seconds: left,
            holds_up: user.map_or(HoldsUp::Everyone, |_| holds_up),
        }
        .into())
    }

    /// Keeps away whom Entra ID wants to keep away.
    fn heed(&self, class: &Class, tenant: &TenantId, user: Option<&User>) {
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
        let seconds = retry_after_seconds.unwrap_or(PAUSE);
        self.pauses
            .borrow_mut()
            .pause(whom, self.env.now(), seconds);
    }

    /// What proves who this app is: an assertion, if its credential is one for which one has to be made or fetched. That is
    /// done once at a time, and kept.
    async fn assertion(&self, call: &Call, tenant: &TenantId) -> Result<OwnProof, VaultError> {
        let audience = match &call.credential {
            Credential::ClientSecret(_) | Credential::FederatedToken(_) => {
                return Ok(OwnProof::Setting);
            }
            Credential::Certificate(_) => token_endpoint(call, tenant),
            Credential::ManagedIdentity => call.federation_audience.clone(),
        };
        let kept = self
            .assertions
            .borrow_mut()
            .get(&audience)
            .and_then(|kept| kept.at(self.env.now()))
            .map(Rc::clone);
        let is_kept = kept.is_some();
        let assertion = match kept {
            Some(assertion) => assertion,
            None => self
                .assertion_makings
                .run(&self.env, &audience, call.deadline, async || {
                    self.make_assertion(call, &audience).await
                })
                .await
                .unwrap_or_else(|| Err(VaultError::upstream(System::ManagedIdentity)))?,
        };
        Ok(OwnProof::Assertion {
            assertion,
            audience,
            is_kept,
        })
    }

    async fn make_assertion(
        &self,
        call: &Call,
        audience: &str,
    ) -> Result<Rc<ClientAssertion>, VaultError> {
        let now = self.env.now();
        let (assertion, until) = match &call.credential {
            Credential::Certificate(certificate) => {
                let client_id = call.client_id.as_str();
                let assertion = certificate.assertion(client_id, audience, now, &self.env);
                let assertion =
                    assertion.ok_or_else(|| credential_refused(call, Reason::default()))?;
                let until = now.saturating_add(ASSERTION_SECONDS.saturating_sub(ASSERTION_MARGIN));
                (assertion, until)
            }
            Credential::ManagedIdentity => {
                let (token, expires_at) = self.identity_token(call, audience).await?;
                let assertion = ClientAssertion::new(token.expose().into());
                (assertion, expires_at.saturating_sub(EXPIRY_MARGIN))
            }
            Credential::ClientSecret(_) | Credential::FederatedToken(_) => {
                return Err(credential_refused(call, Reason::default()));
            }
        };
        let assertion = Rc::new(assertion);
        let kept = Cached::new(Rc::clone(&assertion), until);
        self.assertions.borrow_mut().put(audience.into(), kept);
        Ok(assertion)
    }

    /// Unless another request has made a new one meanwhile.
    fn forget_assertion(&self, own: &OwnProof) {
        if let OwnProof::Assertion {
            assertion,
            audience,
            ..
        } = own
        {
            let mut kept = self.assertions.borrow_mut();
            let is_same = |kept: &Cached<_>| Rc::ptr_eq(&kept.value, assertion);
            if kept.peek(audience).is_some_and(is_same) {
                kept.pop(audience);
            }
        }
    }

    /// A token of the platform's managed identity, and until when it is good.
    async fn identity_token(
        &self,
        call: &Call,
        resource: &str,
    ) -> Result<(AccessToken, u64), VaultError> {
        let client_id = call.managed_identity_client_id.as_ref().map(Guid::as_str);
        let request = call
            .identity
            .request(resource, client_id)
            .map_err(|_| VaultError::setting("identity_header", "makes no header"))?;
        let longest = managed_identity::LONGEST_ANSWER;
        let response = self
            .send(call, request, longest, System::ManagedIdentity)
            .await?;
        call.identity.read(&response, self.env.now())
    }

    // ---- Key Vault ----

    /// The newest key of a tenant, to seal under.
    async fn sealing_key(
        &self,
        call: &Call,
        tenant: &TenantId,
    ) -> Result<(SecretName, Rc<Key>), VaultError> {
        let now = self.env.now();
        let secret = call.secret_id.secret_name(tenant);
        let version = self
            .newest
            .borrow_mut()
            .get(&secret)
            .and_then(|cached| cached.at(now))
            .cloned();
        let key = match version {
            Some(version) => self.key(call, &secret, &version).await?,
            None => self.fetch_key(call, &secret, None).await?,
        };
        self.check_sealing_key(&secret, &key)?;
        Ok((secret, key))
    }

    /// The newest key of a tenant, for somebody who enrols. That there is none is remembered for a moment: anybody can come
    /// from a tenant that was never set up, as often as he likes, and Key Vault's requests are everybody's.
    async fn first_key(
        &self,
        call: &Call,
        tenant: &TenantId,
    ) -> Result<(SecretName, Rc<Key>), VaultError> {
        let secret = call.secret_id.secret_name(tenant);
        let now = self.env.now();
        let not_onboarded = |secret: &SecretName| {
            CallerError::TenantNotOnboarded(OperatorError::name(secret)).into()
        };
        let is_known = self
            .not_onboarded
            .borrow_mut()
            .get(&secret)
            .is_some_and(|known| known.at(now).is_some());
        if is_known {
            return Err(not_onboarded(&secret));
        }
        match self.sealing_key(call, tenant).await {
            Err(VaultError::Operator(OperatorError::KeyNotFound(_))) => {
                let until = now.saturating_add(NOT_ONBOARDED_SECONDS);
                self.not_onboarded
                    .borrow_mut()
                    .put(secret.clone(), Cached::new((), until));
                Err(not_onboarded(&secret))
            }
            outcome => outcome,
        }
    }

    /// Whether a key, the newest of its tenant, may seal now.
    fn check_sealing_key(&self, secret: &SecretName, key: &Key) -> Result<(), OperatorError> {
        if !key.is_valid_at(self.env.now()) {
            return Err(OperatorError::KeyNotValid(OperatorError::name(secret)));
        }
        if self.uses.borrow().is_worn_out(secret, &key.version) {
            return Err(OperatorError::KeyWornOut(OperatorError::name(secret)));
        }
        Ok(())
    }

    /// A key by its exact version.
    async fn key(
        &self,
        call: &Call,
        secret: &SecretName,
        version: &KeyVersion,
    ) -> Result<Rc<Key>, VaultError> {
        let id = (secret.clone(), version.clone());
        if let Some(key) = self
            .keys
            .borrow_mut()
            .get(&id)
            .and_then(|cached| cached.at(self.env.now()))
        {
            return Ok(Rc::clone(key));
        }
        self.fetch_key(call, secret, Some(version)).await
    }

    /// Past the caches, and into them.
    async fn fetch_key(
        &self,
        call: &Call,
        secret: &SecretName,
        version: Option<&KeyVersion>,
    ) -> Result<Rc<Key>, VaultError> {
        let id = (secret.clone(), version.cloned());
        self.key_fetches
            .run(&self.env, &id, call.deadline, async || {
                self.fetch_key_now(call, secret, version).await
            })
            .await
            .unwrap_or_else(|| Err(VaultError::upstream(System::KeyVault)))
    }

    async fn fetch_key_now(
        &self,
        call: &Call,
        secret: &SecretName,
        version: Option<&KeyVersion>,
    ) -> Result<Rc<Key>, VaultError> {
        let mut outcome = self.ask_key_vault(call, secret, version, None).await;
        if let Err(SecretError::Unauthorized(said)) = outcome {
            // The token was revoked, is too old after all, or of another tenant: once more with a new one.
            outcome = self.ask_key_vault(call, secret, version, said.claims).await;
        }
        let key = Rc::new(outcome.map_err(|error| {
            match error {
                SecretError::Unauthorized(said) if said.is_ours => {
                    OperatorError::KeyVaultRefused.into()
                }
                // A new token that is as it should be: it will be accepted in a moment.
                SecretError::Unauthorized(_) => UpstreamError {
                    system: System::KeyVault,
                    retry_after_seconds: Some(1),
                    holds_up: HoldsUp::Everyone,
                }
                .into(),
                SecretError::Other(error) => error,
            }
        })?);
        let now = self.env.now();
        let id = (secret.clone(), key.version.clone());
        let until = now.saturating_add(call.key_cache_seconds.into());
        self.keys
            .borrow_mut()
            .put(id, Cached::new(Rc::clone(&key), until));
        if version.is_none() {
            self.not_onboarded.borrow_mut().pop(secret);
            let until = now.saturating_add(call.key_latest_seconds.into());
            self.newest
                .borrow_mut()
                .put(secret.clone(), Cached::new(key.version.clone(), until));
        }
        Ok(key)
    }

    async fn ask_key_vault(
        &self,
        call: &Call,
        secret: &SecretName,
        version: Option<&KeyVersion>,
        claims: Option<String>,
    ) -> Result<Key, SecretError> {
        let other = SecretError::Other;
        let token = self
            .key_vault_token(call, secret, claims)
            .await
            .map_err(other)?;
        let request =
            secret_request(call, secret, version, Some(&token)).map_err(|_| other(no_url()))?;
        let response = self.send_to_key_vault(call, request).await.map_err(other)?;
        let outcome = read_secret(&response, secret, version);
        if let Err(SecretError::Unauthorized(said)) = &outcome {
            self.forget_key_vault_token(&token);
            if let Some(tenant) = &said.tenant {
                self.remember_key_vault_tenant(call, tenant);
            }
        }
        outcome
    }

    /// Unless another request has got a new one meanwhile.
    fn forget_key_vault_token(&self, token: &Rc<AccessToken>) {
        let mut known = self.key_vault_token.borrow_mut();
        if known
            .as_ref()
            .is_some_and(|known| Rc::ptr_eq(&known.value, token))
        {
            *known = None;
        }
    }

    /// What Key Vault says of its tenant goes before the setting.
    fn remember_key_vault_tenant(&self, call: &Call, tenant: &TenantId) {
        let known = self.key_vault_tenant.replace(Some(tenant.clone()));
        let known = known.as_ref().or(call.key_vault_tenant.as_ref());
        if known.is_some_and(|known| known != tenant) {
            self.env.line(
                &json!({"event": "key_vault_moved", "tenant": tenant.as_str(), "reason": "Key Vault is in another tenant than it was, or than the setting `key_vault_tenant` says"})
                    .to_string(),
            );
        }
    }

    /// Sends, unless Key Vault asked to be left alone, and heeds it if it does now. It throttles without saying for how
    /// long (§D.5, §D.7).
    async fn send_to_key_vault(
        &self,
        call: &Call,
        request: Request<SecretBody>,
    ) -> Result<Response<SecretBody>, VaultError> {
        let throttled = |retry_after_seconds| UpstreamError {
            system: System::KeyVault,
            retry_after_seconds,
            holds_up: HoldsUp::Everyone,
        };
        let whom = Paused::KeyVault;
        let left = self.pauses.borrow_mut().left(&whom, self.env.now());
        if left.is_some() {
            return Err(throttled(left).into());
        }
        let response = self
            .send(call, request, key_vault::LONGEST_ANSWER, System::KeyVault)
            .await?;
        let now = self.env.now();
        let asked = retry_after(response.headers(), now);
        let mut pauses = self.pauses.borrow_mut();
        match (response.status(), asked) {
            (StatusCode::TOO_MANY_REQUESTS, None) => pauses.back_off(whom.clone(), now),
            (status, Some(seconds))
                if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() =>
            {
                pauses.pause(whom.clone(), now, seconds);
            }
            (status, _) => {
                if !status.is_server_error() {
                    pauses.worked(&whom, now);
                }
                return Ok(response);
            }
        }
        Err(throttled(pauses.left(&whom, now)).into())
    }

    /// This app's own access token for Key Vault.
    async fn key_vault_token(
        &self,
        call: &Call,
        secret: &SecretName,
        claims: Option<String>,
    ) -> Result<Rc<AccessToken>, VaultError> {
        if let Some(token) = self
            .key_vault_token
            .borrow()
            .as_ref()
            .and_then(|cached| cached.at(self.env.now()))
        {
            return Ok(Rc::clone(token));
        }
        self.key_vault_token_fetches
            .run(&self.env, &claims, call.deadline, async || {
                let (token, expires_at) = self
                    .fetch_key_vault_token(call, secret, claims.as_deref())
                    .await?;
                let token = Rc::new(token);
                let until = expires_at.saturating_sub(EXPIRY_MARGIN);
                *self.key_vault_token.borrow_mut() = Some(Cached::new(Rc::clone(&token), until));
                Ok(token)
            })
            .await
            .unwrap_or_else(|| Err(VaultError::upstream(System::KeyVault)))
    }

    async fn fetch_key_vault_token(
        &self,
        call: &Call,
        secret: &SecretName,
        claims: Option<&str>,
    ) -> Result<(AccessToken, u64), VaultError> {
        match call.key_vault_credential {
            KeyVaultCredential::ManagedIdentity => {
                // A resource is a scope without its end; and there is no way to ask for claims (§E).
                let resource = call.key_vault_scope.trim_end_matches("/.default");
                self.identity_token(call, resource).await
            }
            KeyVaultCredential::App => {
                let tenant = self.key_vault_tenant(call, secret).await?;
                let grant = Grant::ClientCredentials {
                    scope: &call.key_vault_scope,
                    claims,
                };
                let token = self.token(call, &tenant, None, &grant, Chosen::BySettings);
                let granted = token.await?;
                let expires_at = self.env.now().saturating_add(granted.expires_in.into());
                Ok((granted.access_token, expires_at))
            }
        }
    }

    async fn key_vault_tenant(
        &self,
        call: &Call,
        secret: &SecretName,
    ) -> Result<TenantId, VaultError> {
        if let Some(tenant) = self
            .key_vault_tenant
            .borrow()
            .as_ref()
            .or(call.key_vault_tenant.as_ref())
        {
            return Ok(tenant.clone());
        }
        let request = secret_request(call, secret, None, None).map_err(|_| no_url())?;
        let response = self.send_to_key_vault(call, request).await?;
        let tenant =
            challenged_tenant(&response).ok_or_else(|| VaultError::upstream(System::KeyVault))?;
        self.remember_key_vault_tenant(call, &tenant);
        Ok(tenant)
    }

    async fn send(
        &self,
        call: &Call,
        request: Request<SecretBody>,
        longest: usize,
        system: System,
    ) -> Result<Response<SecretBody>, VaultError> {
        let (repeat, setting) = match system {
            System::Entra | System::SigningKeys => (Repeat::Outage, "authority"),
            System::KeyVault => (Repeat::Outage, "key_vault_url"),
            System::ManagedIdentity => (Repeat::ManagedIdentity, "identity_origin"),
        };
        let response = send(&self.env, request, longest, call.deadline, repeat).await.map_err(|error| {
            self.env.line(&json!({"event": "no_answer", "system": system.to_string(), "reason": error.to_string()}).to_string());
            match error {
                HttpError::Denied => {
                    VaultError::setting(setting, "names a host that spin.toml does not allow (allowed_outbound_hosts)")
                }
                HttpError::Unreachable | HttpError::TimedOut | HttpError::TooLong => VaultError::upstream(system),
            }
        })?;
        if let Some(off) = clock_off(&response, self.env.now()) {
            self.clock_is_wrong.set(off > CLOCK_TOLERANCE);
        }
        Ok(response)
    }

    // ---- Sealing ----

    fn seal(
        &self,
        call: &Call,
        payload: &Payload,
        tenant: &TenantId,
        nonce: &Nonce,
        (secret, key): (&SecretName, &Key),
    ) -> Result<SealedToken, VaultError> {
        self.uses
            .borrow_mut()
            .count(secret, &key.version)
            .map_err(|WornOut| OperatorError::KeyWornOut(OperatorError::name(secret)))?;
        let binding = Binding::new(call.client_id.as_str(), tenant, &payload.user_id, nonce);
        // A refresh token of over 64 KiB is none: whatever answered is not Entra ID.
        seal(
            payload,
            &binding,
            (secret, &key.version),
            &key.key,
            &self.env,
        )
        .map_err(|_| VaultError::upstream(System::Entra))
    }

    /// Seals the successor of a token that was just used. The old one stays valid (§A.9), so that a key that cannot be
    /// had now is no reason to keep the access token from the caller.
    async fn replacement(
        &self,
        call: &Call,
        payload: Payload,
        tenant: &TenantId,
        nonce: &Nonce,
    ) -> Option<SealedToken> {
        let (secret, key) = self.sealing_key(call, tenant).await.ok()?;
        self.seal(call, &payload, tenant, nonce, (&secret, &key))
            .ok()
    }

    /// Opens with the key that the envelope names, if it is one of this tenant's.
    async fn open(
        &self,
        call: &Call,
        envelope: Envelope<'_>,
        tenant: &TenantId,
    ) -> Result<Payload, VaultError> {
        if envelope.secret != call.secret_id.secret_name(tenant) {
            return Err(StoredError::NotBound.into());
        }
        let key = self.key(call, &envelope.secret, &envelope.version).await?;
        if !key.opens_at(self.env.now(), call.key_grace_seconds) {
            return Err(OperatorError::KeyNotValid(OperatorError::name(&envelope.secret)).into());
        }
        Ok(envelope.open(&key.key)?)
    }

    /// Opens without a caller: the user is the one sealed inside, and must be the one it is stored under.
    async fn open_stored(&self, call: &Call, stored: &StoredToken) -> Result<Payload, VaultError> {
        allowed(call, &stored.user.tenant)?;
        let envelope = Envelope::parse(&stored.token)?;
        let sealed_for = envelope.binding.clone();
        let payload = self.open(call, envelope, &stored.user.tenant).await?;
        let binding = Binding::new(
            call.client_id.as_str(),
            &stored.user.tenant,
            &payload.user_id,
            &stored.nonce,
        );
        let bound = sealed_for == binding
            && payload.user_id.storage_id(call.pseudonym_key.as_ref()) == stored.user.id;
        if bound {
            Ok(payload)
        } else {
            Err(StoredError::NotBound.into())
        }
    }
}

/// One call of the vault.
struct Call {
    settings: Rc<Settings>,
    deadline: Deadline,
}

impl Deref for Call {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.settings
    }
}

/// How this app proves who it is, for one request.
#[derive(Debug)]
enum OwnProof {
    /// By what its setting says.
    Setting,
    /// By an assertion that was made for this audience, in this request or before.
    Assertion {
        assertion: Rc<ClientAssertion>,
        audience: String,
        is_kept: bool,
    },
}

fn credential_refused(call: &Call, reason: Reason) -> VaultError {
    OperatorError::CredentialRefused {
        setting: call.credential.setting().into(),
        reason,
    }
    .into()
}

/// What a refusal is to whoever asked.
fn refused(call: &Call, refusal: Refusal, grant: &Grant<'_>, chosen: Chosen) -> VaultError {
    let reason = refusal.reason;
    let ask_user = |claims| UserError::InteractionRequired(Interaction { claims, reason }).into();
    match (refusal.class, grant) {
        (
            Class::Transient {
                retry_after_seconds,
                holds_up,
            },
            grant,
        ) => UpstreamError {
            system: System::Entra,
            retry_after_seconds,
            holds_up: match grant {
                // Without it nobody's key can be read.
                Grant::ClientCredentials { .. } => HoldsUp::Everyone,
                Grant::OnBehalfOf { .. } | Grant::Refresh { .. } => holds_up,
            },
        }
        .into(),
        (Class::Operator(Suspect::Credential), _) => credential_refused(call, reason),
        // This app itself has no user who could act, and nobody chose the scope but the settings.
        (
            Class::Operator(Suspect::App)
            | Class::Interaction { .. }
            | Class::Dead
            | Class::Organisation
            | Class::Scope
            | Class::Assertion,
            Grant::ClientCredentials { .. },
        ) => OperatorError::KeyVaultTokenRefused(reason).into(),
        (Class::Scope, Grant::OnBehalfOf { .. } | Grant::Refresh { .. }) => match chosen {
            Chosen::ByCaller => CallerError::InvalidScope(reason).into(),
            Chosen::BySettings => OperatorError::EntraRefused(reason).into(),
        },
        (
            Class::Operator(Suspect::App),
            Grant::OnBehalfOf { .. } | Grant::Refresh { .. },
        )
        // There was no assertion.
        | (Class::Assertion, Grant::Refresh { .. }) => {
            OperatorError::EntraRefused(reason).into()
        }
        (Class::Organisation, Grant::OnBehalfOf { .. } | Grant::Refresh { .. }) => {
            OrganisationError(reason).into()
        }
        (Class::Interaction { claims }, Grant::OnBehalfOf { .. } | Grant::Refresh { .. }) => {
            ask_user(claims)
        }
        // The sign-in behind the caller's own token was revoked. What is stored is another one's, and stays.
        (Class::Dead, Grant::OnBehalfOf { .. }) => ask_user(None),
        (Class::Dead, Grant::Refresh { .. }) => UserError::ReenrolmentRequired(reason).into(),
        (Class::Assertion, Grant::OnBehalfOf { .. }) => TokenDefect::Rejected.into(),
    }
}

/// Who chose the scope of a grant, and so whose fault it is if there is no such scope.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Chosen {
    /// Whoever sent the request.
    ByCaller,
    /// The settings, now or when the user enrolled.
    BySettings,
}

impl Chosen {
    fn by_caller(it_is_so: bool) -> Self {
        if it_is_so {
            Self::ByCaller
        } else {
            Self::BySettings
        }
    }
}

/// What makes two grants the same: who, with which token, for what.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Same {
    user: User,
    token: [u8; 32],
    scope: String,
    claims: Option<String>,
    chosen: Chosen,
}

impl Same {
    fn new(user: &User, grant: &Grant<'_>, chosen: Chosen) -> Self {
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
            chosen,
        }
    }
}

/// Settings, when they were read, and until when they are not read again, by [`Vault::uptime`].
struct KnownSettings {
    settings: Rc<Settings>,
    read_at: u64,
    fresh_until: u64,
}

/// Signing keys, and when they were fetched, by [`Vault::uptime`].
#[derive(Clone)]
struct KnownKeys {
    keys: Rc<SigningKeys>,
    fetched_at: u64,
}

/// A token that was verified, and by which signing key.
#[derive(Clone)]
struct Verified {
    claims: Claims,
    key_id: String,
}

/// One exact version of a key.
type KeyId = (SecretName, KeyVersion);

/// A value that is good until a time.
struct Cached<T> {
    value: T,
    until: u64,
}

impl<T> Cached<T> {
    fn new(value: T, until: u64) -> Self {
        Self { value, until }
    }

    fn at(&self, now: u64) -> Option<&T> {
        (now < self.until).then_some(&self.value)
    }
}

/// By how many seconds a response's date is off the clock; none without a date.
fn clock_off(response: &Response<SecretBody>, now: u64) -> Option<u64> {
    let date = response.headers().get(http::header::DATE)?.to_str().ok()?;
    let date = httpdate::parse_http_date(date).ok()?;
    let since = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(since.as_secs().abs_diff(now))
}

fn policy(settings: &Settings) -> Policy {
    Policy {
        store_prefix: settings.store_prefix.clone(),
        refresh_after_seconds: settings.refresh_after_seconds,
    }
}

fn allowed(settings: &Settings, tenant: &TenantId) -> Result<(), CallerError> {
    if settings.tenants.allow(tenant) {
        Ok(())
    } else {
        Err(CallerError::TenantNotAllowed)
    }
}

/// Until there are grants: the resource of the setting `scope`, whichever of its permissions. A refresh token is bound to
/// user and client, not to a resource, so this is what stands between a caller and every other resource (§A.2).
fn granted_scope(settings: &Settings, asked: &str) -> Result<Scope, CallerError> {
    let scope = Scope::parse(asked).ok_or(CallerError::ScopeNotGranted)?;
    if scope.mixes_default() {
        return Err(CallerError::InvalidScope(Reason::default()));
    }
    if scope.same_resource(&settings.scope) {
        Ok(scope)
    } else {
        Err(CallerError::ScopeNotGranted)
    }
}

fn checked_claims(asked: &str) -> Result<String, CallerError> {
    claims_request(asked)
        .filter(|claims| claims.len() <= LONGEST_CLAIMS)
        .ok_or_else(|| {
            CallerError::InvalidRequest(
                "`claims` must be a JSON object of at most 4096 bytes, as text or in base64 as challenges carry it".into(),
            )
        })
}

/// The refresh token that came with an answer, to be sealed. The answer itself may be shared.
fn successor(granted: &Granted) -> Result<RefreshToken, OperatorError> {
    granted
        .refresh_token
        .as_ref()
        .map(|token| RefreshToken::new(token.expose().into()))
        .ok_or(OperatorError::NoRefreshToken)
}

fn no_url() -> VaultError {
    VaultError::setting("key_vault_url", "makes no URL")
}

const fn capacity(entries: usize) -> NonZeroUsize {
    match NonZeroUsize::new(entries) {
        Some(entries) => entries,
        None => NonZeroUsize::MIN,
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use std::collections::BTreeSet;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use pollster::block_on;
    use serde_json::json;

    use super::*;
    use crate::secret::ClientSecret;
    use crate::simulation::world::{SWEEP_KEY, Shared, World};
    use crate::vault::credential::tests::{CERTIFICATE, PRIVATE_KEY};
    use crate::vault::settings::tests::TENANT;

    const OTHER_USER: &str = "99999999-4444-4444-4444-444444444444";

    fn nonce() -> Nonce {
        Nonce::parse("1793606000nonce").unwrap()
    }

    fn enrolled(vault: &Vault<Shared>, world: &Shared) -> (User, SealedToken) {
        let enrolment = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap();
        (enrolment.user, enrolment.sealed)
    }

    fn draw(
        vault: &Vault<Shared>,
        bearer: &Bearer,
        token: &str,
        draw: Draw,
    ) -> Result<Issued, VaultError> {
        block_on(vault.access_token(bearer, &nonce(), token, draw, LONGEST))
    }

    /// A caller's token like the user's, with other claims.
    fn token(edit: impl FnOnce(&mut serde_json::Value)) -> Bearer {
        let mut claims = caller::tests::claims();
        edit(&mut claims);
        let header = json!({"typ": "JWT", "alg": "RS256", "kid": "k1"});
        caller::tests::sign(&header, &claims)
    }

    #[test]
    fn a_cold_call_asks_what_it_must_and_a_warm_one_only_entra() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        assert_eq!(
            world.take_calls(),
            [
                "keys",
                "entra client_credentials",
                "key vault ",
                "entra jwt-bearer"
            ]
        );
        assert_eq!(sealed.key_version.as_str(), World::version(0));
        let bearer = world.bearer();
        for _ in 0..3 {
            let issued = draw(&vault, &bearer, &sealed.token, Draw::default()).unwrap();
            assert!(issued.access_token.expose().starts_with("at-canary-"));
            assert_eq!(issued.replacement, None);
            assert_eq!(world.take_calls(), ["entra refresh_token"]);
        }
    }

    #[test]
    fn the_tenant_for_key_vault_is_its_challenges_or_the_settings() {
        let world = World::new();
        world
            .settings
            .borrow_mut()
            .insert("key_vault_tenant", TENANT.to_owned());
        world.down.borrow_mut().push("key vault");
        let vault = Vault::new(Rc::clone(&world));
        let error = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err();
        assert_eq!(error, VaultError::upstream(System::KeyVault));
        // Asked for a token without having been challenged.
        assert_eq!(world.take_calls(), ["keys", "entra client_credentials"]);
    }

    #[test]
    fn anothers_token_does_not_open_and_nothing_is_asked_for_it() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        world.take_calls();
        let other = world.bearer_of(OTHER_USER);
        let error = draw(&vault, &other, &sealed.token, Draw::default()).unwrap_err();
        assert_eq!(error, StoredError::NotBound.into());
        assert_eq!(world.take_calls(), Vec::<String>::new());
    }

    #[test]
    fn a_token_of_another_enrolment_does_not_open() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (user, sealed) = enrolled(&vault, &world);
        let other = Nonce::parse("1793606000other").unwrap();
        let error = block_on(vault.access_token(
            &world.bearer(),
            &other,
            &sealed.token,
            Draw::default(),
            LONGEST,
        ))
        .unwrap_err();
        assert_eq!(error, StoredError::NotBound.into());
        let stored = StoredToken {
            user,
            nonce: other,
            token: sealed.token,
        };
        assert_eq!(
            block_on(vault.refresh(&stored, LONGEST)).unwrap_err(),
            StoredError::NotBound.into()
        );
    }

    #[test]
    fn a_token_moved_to_another_users_record_is_not_refreshed() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (user, sealed) = enrolled(&vault, &world);
        world.rotate();
        world.advance(301);
        let (other, _) = block_on(vault.identify(&world.bearer_of(OTHER_USER), LONGEST)).unwrap();
        world.take_calls();
        let moved = StoredToken {
            user: other,
            nonce: nonce(),
            token: sealed.token.clone(),
        };
        assert_eq!(
            block_on(vault.refresh(&moved, LONGEST)).unwrap_err(),
            StoredError::NotBound.into()
        );
        assert_eq!(
            block_on(vault.reseal(&moved, LONGEST)).unwrap_err(),
            StoredError::NotBound.into()
        );
        let tenant = Guid::parse(OTHER_USER).unwrap();
        let foreign = StoredToken {
            user: User { tenant, ..user },
            nonce: nonce(),
            token: sealed.token,
        };
        assert_eq!(
            block_on(vault.refresh(&foreign, LONGEST)).unwrap_err(),
            CallerError::TenantNotAllowed.into()
        );
        assert!(
            !world
                .take_calls()
                .contains(&"entra refresh_token".to_owned())
        );
    }

    #[test]
    fn only_the_configured_resource_may_be_drawn() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        world.take_calls();
        for scope in [
            "https://vault.azure.net/.default",
            "User.Read",
            "https://graph.microsoft.com/User.Read https://vault.azure.net/x",
            "",
        ] {
            let asked = Draw {
                scope: Some(scope.into()),
                ..Draw::default()
            };
            assert_eq!(
                draw(&vault, &world.bearer(), &sealed.token, asked).unwrap_err(),
                CallerError::ScopeNotGranted.into(),
                "{scope}"
            );
            let error =
                block_on(vault.enrol(&world.bearer(), &nonce(), Some(scope), LONGEST)).unwrap_err();
            assert_eq!(error, CallerError::ScopeNotGranted.into(), "{scope}");
        }
        assert_eq!(world.take_calls(), Vec::<String>::new());
        let asked = Draw {
            scope: Some("https://graph.microsoft.com/User.Read".into()),
            ..Draw::default()
        };
        let issued = draw(&vault, &world.bearer(), &sealed.token, asked).unwrap();
        assert_eq!(
            issued.scope,
            "https://graph.microsoft.com/User.Read offline_access"
        );
    }

    #[test]
    fn claims_that_are_no_object_are_refused() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        for claims in [
            "",
            "[]",
            "{",
            &format!("{{\"a\":\"{}\"}}", "x".repeat(4096)),
        ] {
            let asked = Draw {
                claims: Some(claims.into()),
                ..Draw::default()
            };
            let error = draw(&vault, &world.bearer(), &sealed.token, asked).unwrap_err();
            assert!(
                matches!(error, VaultError::Caller(CallerError::InvalidRequest(_))),
                "{error:?}"
            );
        }
    }

    #[test]
    fn claims_are_taken_as_a_challenge_carries_them() {
        let claims = r#"{"access_token":{"nbf":{"essential":true,"value":"1793608800??>"}}}"#;
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        for text in [
            claims.to_owned(),
            STANDARD.encode(claims),
            STANDARD.encode(claims).trim_end_matches('=').to_owned(),
            URL_SAFE_NO_PAD.encode(claims),
        ] {
            let asked = Draw {
                claims: Some(text.clone()),
                ..Draw::default()
            };
            draw(&vault, &world.bearer(), &sealed.token, asked).unwrap();
            assert_eq!(
                world.claims.take(),
                [claims],
                "{text} reaches Entra ID as JSON"
            );
        }
    }

    #[test]
    fn a_draw_without_scope_has_the_scope_of_the_enrolment() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let mail = "https://graph.microsoft.com/Mail.Read";
        let enrolment =
            block_on(vault.enrol(&world.bearer(), &nonce(), Some(mail), LONGEST)).unwrap();
        let token = enrolment.sealed.token;
        let issued = draw(&vault, &world.bearer(), &token, Draw::default()).unwrap();
        assert_eq!(issued.scope, format!("{mail} offline_access"));
        // What may be drawn is what the settings say now.
        let other = ("scope", "https://vault.azure.net/.default".to_owned());
        world.settings.borrow_mut().extend([other]);
        world.advance(SETTINGS_SECONDS);
        world.take_calls();
        assert_eq!(
            draw(&vault, &world.bearer(), &token, Draw::default()).unwrap_err(),
            CallerError::ScopeNotGranted.into()
        );
        assert_eq!(world.take_calls(), Vec::<String>::new());
    }

    /// RFC 6749 §5.1: it may be left out if it is what was asked for.
    #[test]
    fn an_answer_without_scope_has_the_one_that_was_asked_for() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        let mail = "https://graph.microsoft.com/Mail.Read";
        for (asked, expected) in [
            (None, "https://graph.microsoft.com/.default"),
            (Some(mail), mail),
        ] {
            let answer = json!({"token_type": "Bearer", "expires_in": 3599, "access_token": "at"});
            world.entra_answers.borrow_mut().push_back((200, answer));
            let asked = Draw {
                scope: asked.map(Into::into),
                ..Draw::default()
            };
            let issued = draw(&vault, &world.bearer(), &sealed.token, asked).unwrap();
            assert_eq!(issued.scope, expected);
        }
    }

    #[test]
    fn without_a_key_entra_is_not_asked() {
        let world = World::new();
        world.keys.borrow_mut().clear();
        let vault = Vault::new(Rc::clone(&world));
        let error = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err();
        assert_eq!(
            error,
            CallerError::TenantNotOnboarded(format!("obo-{TENANT}")).into()
        );
        assert!(!world.take_calls().contains(&"entra jwt-bearer".to_owned()));
    }

    #[test]
    fn a_reseal_moves_to_the_newest_key_without_entra() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (user, sealed) = enrolled(&vault, &world);
        let stored = StoredToken {
            user: user.clone(),
            nonce: nonce(),
            token: sealed.token,
        };
        world.down.borrow_mut().push("entra");
        assert_eq!(block_on(vault.reseal(&stored, LONGEST)), Ok(None));
        world.rotate();
        assert_eq!(
            block_on(vault.newest_key_version(&user.tenant, LONGEST))
                .unwrap()
                .as_str(),
            World::version(1)
        );
        let resealed = block_on(vault.reseal(&stored, LONGEST)).unwrap().unwrap();
        assert_eq!(resealed.key_version.as_str(), World::version(1));
        world.down.borrow_mut().clear();
        draw(&vault, &world.bearer(), &resealed.token, Draw::default()).unwrap();
        assert_eq!(
            *world.redeemed.borrow(),
            ["rt-canary-1"],
            "the same refresh token as before"
        );
    }

    #[test]
    fn a_refresh_yields_the_successor_under_the_newest_key() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (user, sealed) = enrolled(&vault, &world);
        world.rotate();
        world.advance(301);
        let stored = StoredToken {
            user: user.clone(),
            nonce: nonce(),
            token: sealed.token,
        };
        let next = block_on(vault.refresh(&stored, LONGEST)).unwrap();
        assert_eq!(next.key_version.as_str(), World::version(1));
        block_on(vault.refresh(
            &StoredToken {
                token: next.token,
                ..stored
            },
            LONGEST,
        ))
        .unwrap();
        let redeemed = world.redeemed.borrow();
        assert_ne!(redeemed[0], redeemed[1]);
    }

    #[test]
    fn a_deleted_key_dies_within_its_cache_time() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        world.keys.borrow_mut().clear();
        world.advance(3599);
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
        world.advance(1);
        let error = draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err();
        assert_eq!(
            error,
            OperatorError::KeyNotFound(format!("obo-{TENANT}")).into()
        );
    }

    #[test]
    fn key_vault_down_is_told_from_damage() {
        let world = World::new();
        let (_, sealed) = enrolled(&Vault::new(Rc::clone(&world)), &world);
        world.down.borrow_mut().push("key vault");
        let cold = Vault::new(Rc::clone(&world));
        assert_eq!(
            draw(&cold, &world.bearer(), &sealed.token, Draw::default()).unwrap_err(),
            VaultError::upstream(System::KeyVault)
        );
        let damaged = format!("{}A", sealed.token);
        assert_eq!(
            draw(&cold, &world.bearer(), &damaged, Draw::default()).unwrap_err(),
            StoredError::Damaged.into()
        );
    }

    #[test]
    fn an_unreachable_key_vault_is_noticed_when_the_key_is_past_its_time() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        world.down.borrow_mut().push("key vault");
        world.advance(3599);
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
        world.advance(1);
        for _ in 0..2 {
            assert_eq!(
                draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err(),
                VaultError::upstream(System::KeyVault)
            );
        }
        world.down.borrow_mut().clear();
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    }

    #[test]
    fn key_vault_throttles_and_is_left_alone_ever_longer() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        let enrol = || block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST));
        let throttled = |seconds| {
            VaultError::from(UpstreamError {
                system: System::KeyVault,
                retry_after_seconds: Some(seconds),
                holds_up: HoldsUp::Everyone,
            })
        };
        let answer = |status| (status, json!({"error": {"code": "Throttled"}}));
        let questions = || {
            let calls = world.take_calls().into_iter();
            calls.filter(|call| call.starts_with("key vault")).count()
        };
        world.advance(301);
        questions();
        for seconds in [1, 2, 4, 8, 16, 16] {
            world.key_vault_answers.borrow_mut().push_back(answer(429));
            assert_eq!(enrol().unwrap_err(), throttled(seconds));
            world.advance(u64::from(seconds) - 1);
            assert_eq!(enrol().unwrap_err(), throttled(1));
            assert_eq!(questions(), 1, "it was asked again before its time");
            // What needs no question is not held up.
            draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
            world.advance(1);
        }
        enrol().unwrap();
        // It works again, and says how long the next time.
        world.advance(301);
        world.key_vault_answers.borrow_mut().push_back(answer(429));
        assert_eq!(enrol().unwrap_err(), throttled(1));
        world.advance(1);
        for status in [429, 503] {
            world.retry_after.set(Some(30));
            world
                .key_vault_answers
                .borrow_mut()
                .push_back(answer(status));
            assert_eq!(enrol().unwrap_err(), throttled(30));
            world.retry_after.set(None);
            world.advance(29);
            questions();
            assert_eq!(enrol().unwrap_err(), throttled(1));
            assert_eq!(questions(), 0);
            world.advance(1);
        }
        // An outage asks for nothing: the next request may find it over.
        world
            .key_vault_answers
            .borrow_mut()
            .extend([answer(503), answer(503)]);
        assert_eq!(enrol().unwrap_err(), VaultError::upstream(System::KeyVault));
        enrol().unwrap();
    }

    #[test]
    fn a_token_that_key_vault_no_longer_takes_is_replaced_once() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        enrolled(&vault, &world);
        world.advance(301);
        world.take_calls();
        world
            .key_vault_answers
            .borrow_mut()
            .push_back((401, json!({})));
        enrolled(&vault, &world);
        assert_eq!(
            world.take_calls(),
            [
                "key vault ",
                "entra client_credentials",
                "key vault ",
                "entra jwt-bearer"
            ]
        );
        // A new one that is not accepted either: it is not as it should be, or will be accepted in a moment.
        let in_a_moment = UpstreamError {
            system: System::KeyVault,
            retry_after_seconds: Some(1),
            holds_up: HoldsUp::Everyone,
        };
        for (message, expected) in [
            (
                "AKV10022: Invalid audience.",
                OperatorError::KeyVaultRefused.into(),
            ),
            (
                "AKV10032: Invalid issuer.",
                OperatorError::KeyVaultRefused.into(),
            ),
            ("AKV10046: Unable to resolve the key.", in_a_moment.into()),
        ] {
            world.advance(301);
            let answer = json!({"error": {"code": "Unauthorized", "message": message}});
            let answers = std::iter::repeat_n((401, answer), 2);
            world.key_vault_answers.borrow_mut().extend(answers);
            let outcome = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST));
            assert_eq!(outcome.unwrap_err(), expected, "{message}");
        }
    }

    #[test]
    fn a_vault_that_moves_to_another_tenant_is_followed() {
        let other = "88888888-8888-8888-8888-888888888888";
        for setting in ["", TENANT] {
            let world = World::new();
            world
                .settings
                .borrow_mut()
                .insert("key_vault_tenant", setting.to_owned());
            let vault = Vault::new(Rc::clone(&world));
            enrolled(&vault, &world);
            *world.key_vault_in.borrow_mut() = other.to_owned();
            world.advance(301);
            enrolled(&vault, &world);
            assert_eq!(world.lines("key_vault_moved"), 1);
            // And from then on at once.
            world.advance(3600);
            world.take_calls();
            enrolled(&vault, &world);
            let calls = world.take_calls();
            let asked = calls.iter().filter(|call| call.starts_with("key vault"));
            assert_eq!(asked.count(), 1);
        }
    }

    /// With `tenants=*` anybody can come from a tenant that was never set up, as often as he likes.
    #[test]
    fn a_tenant_without_a_key_is_asked_for_once_a_minute() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let enrol = || block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).map(drop);
        let none = CallerError::TenantNotOnboarded(format!("obo-{TENANT}"));
        let keys = world.keys.take();
        for _ in 0..100 {
            assert_eq!(enrol(), Err(none.clone().into()));
        }
        let asked = |world: &World| {
            let calls = world.take_calls();
            calls
                .iter()
                .filter(|call| call.starts_with("key vault"))
                .count()
        };
        assert_eq!(asked(&world), 1);
        world.advance(NOT_ONBOARDED_SECONDS);
        assert_eq!(enrol(), Err(none.clone().into()));
        assert_eq!(asked(&world), 1);
        // A sweep asks anyhow, and what it finds ends it.
        world.keys.replace(keys);
        let tenant = TenantId::parse(TENANT).unwrap();
        assert_eq!(enrol(), Err(none.into()));
        block_on(vault.newest_key_version(&tenant, LONGEST)).unwrap();
        enrol().unwrap();
    }

    #[test]
    fn a_record_whose_key_is_gone_is_no_matter_of_onboarding() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        world.keys.take();
        let error = draw(
            &Vault::new(Rc::clone(&world)),
            &world.bearer(),
            &sealed.token,
            Draw::default(),
        );
        let gone = OperatorError::KeyNotFound(format!("obo-{TENANT}"));
        assert_eq!(error.unwrap_err(), gone.into());
    }

    /// Continuous access evaluation: Key Vault says what the new token has to have.
    #[test]
    fn what_a_challenge_asks_for_is_asked_of_entra() {
        let claims = r#"{"access_token":{"nbf":{"essential":true,"value":"1793608800"}}}"#;
        let asked = format!("entra client_credentials {claims}");
        for (encoded, grant) in [
            (STANDARD.encode(claims), &*asked),
            (URL_SAFE_NO_PAD.encode(claims), &*asked),
            // What is none is not passed on.
            (STANDARD.encode("[]"), "entra client_credentials"),
            ("?".to_owned(), "entra client_credentials"),
        ] {
            let world = World::new();
            let vault = Vault::new(Rc::clone(&world));
            enrolled(&vault, &world);
            world.advance(301);
            world.take_calls();
            *world.challenge.borrow_mut() =
                format!(r#", error="insufficient_claims", claims="{encoded}""#);
            world
                .key_vault_answers
                .borrow_mut()
                .push_back((401, json!({})));
            enrolled(&vault, &world);
            let calls = world.take_calls();
            assert_eq!(calls[..3], ["key vault ", grant, "key vault "], "{encoded}");
        }
    }

    #[test]
    fn expired_keys_do_not_seal_and_open_only_in_their_grace() {
        let world = World::new();
        world
            .settings
            .borrow_mut()
            .insert("key_grace_seconds", "60".to_owned());
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        // Out of the caches, and expired since.
        world.advance(3600);
        let expired = json!({"value": STANDARD_KEY, "id": format!("https://demo.vault.azure.net/secrets/obo-{TENANT}/{}", World::version(0)), "attributes": {"exp": world.now.get() - 1}});
        world
            .key_vault_answers
            .borrow_mut()
            .extend([(200, expired.clone()), (200, expired)]);
        let refused = VaultError::from(OperatorError::KeyNotValid(format!("obo-{TENANT}")));
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
        let error = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err();
        assert_eq!(error, refused);
        world.advance(58);
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
        world.advance(1);
        let error = draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err();
        assert_eq!(error, refused, "from the cache, and past its grace");
    }

    #[test]
    fn a_key_that_is_worn_out_opens_but_does_not_seal() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (user, sealed) = enrolled(&vault, &world);
        *vault.uses.borrow_mut() = Uses::worn_out();
        let error = OperatorError::KeyWornOut(format!("obo-{TENANT}"));
        assert_eq!(
            block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err(),
            error.clone().into()
        );
        let asked = Draw {
            replace: true,
            ..Draw::default()
        };
        let issued = draw(&vault, &world.bearer(), &sealed.token, asked).unwrap();
        assert_eq!(issued.replacement, None);
        let stored = StoredToken {
            user,
            nonce: nonce(),
            token: sealed.token,
        };
        assert_eq!(
            block_on(vault.refresh(&stored, LONGEST)).unwrap_err(),
            error.into()
        );
    }

    /// base64 of 32 bytes 7, the world's first key.
    const STANDARD_KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

    #[test]
    fn signing_keys_outlive_an_outage_and_an_unknown_kid_does_not_hammer() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        block_on(vault.identify(&world.bearer(), LONGEST)).unwrap();
        world.take_calls();
        let unknown = caller::tests::sign(
            &json!({"alg": "RS256", "kid": "new"}),
            &caller::tests::claims(),
        );
        for _ in 0..3 {
            assert_eq!(
                block_on(vault.identify(&unknown, LONGEST)).unwrap_err(),
                TokenDefect::UnknownKey.into()
            );
        }
        assert_eq!(
            world.take_calls(),
            Vec::<String>::new(),
            "asked less than five minutes ago"
        );
        world.advance(300);
        for _ in 0..3 {
            assert_eq!(
                block_on(vault.identify(&unknown, LONGEST)).unwrap_err(),
                TokenDefect::UnknownKey.into()
            );
        }
        assert_eq!(world.take_calls(), ["keys"]);
        world.down.borrow_mut().push("keys");
        world.advance(7200);
        block_on(vault.identify(&world.bearer(), LONGEST)).unwrap();
        world.advance(86_400);
        assert_eq!(
            block_on(vault.identify(&world.bearer(), LONGEST)).unwrap_err(),
            VaultError::upstream(System::SigningKeys)
        );
    }

    #[test]
    fn known_signing_keys_serve_up_to_their_age_and_not_beyond() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let identify = |bearer: &Bearer| block_on(vault.identify(bearer, LONGEST)).map(drop);
        identify(&world.bearer()).unwrap();
        world.down.borrow_mut().push("keys");
        world.advance(SIGNING_KEYS_USABLE - 1);
        // By a clock that was set, they are as old.
        world.now.set(world.now.get() - 86_400);
        let verified = world.bearer();
        identify(&verified).unwrap();
        // Between two fetches, and for a token that was verified by them, too.
        world.advance(1);
        for bearer in [&verified, &world.bearer_of(OTHER_USER)] {
            let error = VaultError::upstream(System::SigningKeys);
            assert_eq!(identify(bearer), Err(error));
        }
        world.down.borrow_mut().clear();
        identify(&verified).unwrap();
    }

    #[test]
    fn a_signing_key_that_is_withdrawn_verifies_nothing_any_more() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let identify = |bearer: &Bearer| block_on(vault.identify(bearer, LONGEST)).map(drop);
        let verified = world.bearer();
        let other = world.bearer_of(OTHER_USER);
        identify(&verified).unwrap();
        world.signing_key.set("k2");
        world.advance(SIGNING_KEYS_PAUSE - 1);
        identify(&other).unwrap();
        assert_eq!(
            identify(&world.bearer()),
            Err(TokenDefect::UnknownKey.into()),
            "asked for less than five minutes ago"
        );
        world.advance(1);
        identify(&world.bearer()).unwrap();
        for bearer in [verified, other] {
            assert_eq!(identify(&bearer), Err(TokenDefect::UnknownKey.into()));
        }
    }

    #[test]
    fn tokens_of_a_new_signing_key_wait_for_one_fetch() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        block_on(vault.identify(&world.bearer(), LONGEST)).unwrap();
        world.signing_key.set("k2");
        world.advance(SIGNING_KEYS_PAUSE);
        world.take_calls();
        world.slow.set(true);
        let bearers: Vec<_> = (0..4)
            .map(|n| world.bearer_of(&format!("{n}4444444-4444-4444-8444-444444444444")))
            .collect();
        let users = bearers.iter().map(|bearer| vault.identify(bearer, LONGEST));
        for user in block_on(join_all(users)) {
            user.unwrap();
        }
        assert_eq!(world.take_calls(), ["keys"]);
    }

    #[test]
    fn a_fetch_that_fails_for_a_new_signing_key_is_nobodys_fault_and_is_tried_again() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let identify = |bearer: &Bearer| block_on(vault.identify(bearer, LONGEST)).map(drop);
        let known = world.bearer();
        identify(&known).unwrap();
        world.signing_key.set("k2");
        world.advance(SIGNING_KEYS_PAUSE);
        world.down.borrow_mut().push("keys");
        for _ in 0..2 {
            assert_eq!(
                identify(&world.bearer()),
                Err(VaultError::upstream(System::SigningKeys))
            );
            identify(&known).unwrap();
        }
        world.down.borrow_mut().clear();
        identify(&world.bearer()).unwrap();
    }

    /// Whom old keys serve does not wait for new ones while they cannot be had.
    #[test]
    fn old_signing_keys_are_asked_for_anew_by_one_and_not_again_at_once() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        block_on(vault.identify(&world.bearer(), LONGEST)).unwrap();
        world.advance(SIGNING_KEYS_FRESH);
        world.take_calls();
        world.slow.set(true);
        let bearers = [world.bearer(), world.bearer_of(OTHER_USER)];
        let (first, others) = bearers.split_first().unwrap();
        let mut first = Box::pin(vault.identify(first, LONGEST));
        assert!(first.as_mut().now_or_never().is_none());
        for bearer in others {
            assert!(
                vault
                    .identify(bearer, LONGEST)
                    .now_or_never()
                    .unwrap()
                    .is_ok()
            );
        }
        block_on(first).unwrap();
        assert_eq!(world.take_calls(), ["keys"]);
        let fails = (500, json!({}));
        world.advance(SIGNING_KEYS_FRESH);
        world
            .signing_keys_answers
            .borrow_mut()
            .extend(vec![fails; 2]);
        for _ in 0..3 {
            block_on(vault.identify(&world.bearer(), LONGEST)).unwrap();
        }
        assert_eq!(
            world.take_calls(),
            ["keys", "keys"],
            "a fetch and its repeat"
        );
        world.advance(SIGNING_KEYS_PAUSE);
        block_on(vault.identify(&world.bearer(), LONGEST)).unwrap();
        assert_eq!(world.take_calls(), ["keys"]);
    }

    #[test]
    fn a_token_is_verified_once() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let bearer = world.bearer();
        block_on(vault.identify(&bearer, LONGEST)).unwrap();
        // By a key of the same name that is another, nothing can be verified.
        let another = RefCell::borrow(&vault.signing_keys).clone().map(|known| {
            let document = caller::tests::jwks_of_another_key("k1");
            let keys = Rc::new(SigningKeys::parse(&document).unwrap());
            KnownKeys { keys, ..known }
        });
        vault.signing_keys.replace(another);
        block_on(vault.identify(&bearer, LONGEST)).unwrap();
        let error = block_on(vault.identify(&world.bearer_of(OTHER_USER), LONGEST)).unwrap_err();
        assert_eq!(error, TokenDefect::BadSignature.into());
    }

    #[test]
    fn an_expired_token_is_refused_although_it_was_verified_before() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let bearer = world.bearer();
        block_on(vault.identify(&bearer, LONGEST)).unwrap();
        world.advance(3900 + 299);
        block_on(vault.identify(&bearer, LONGEST)).unwrap();
        world.advance(1);
        assert_eq!(
            block_on(vault.identify(&bearer, LONGEST)).unwrap_err(),
            TokenDefect::Expired.into()
        );
    }

    /// A file that somebody replaces, a provider that does not answer: each is over in a moment, and an alarm.
    #[test]
    fn settings_that_cannot_be_read_leave_the_last_good_ones_for_a_time() {
        type Break = fn(&Shared);
        let breaks: [(Break, &str); 2] = [
            (|world| world.settings_are_down.set(true), "cannot resolve"),
            (
                |world| {
                    let nothing = ("client_secret", String::new());
                    world.settings.borrow_mut().extend([nothing]);
                },
                "`client_secret`",
            ),
        ];
        for (break_settings, told) in breaks {
            let world = World::new();
            let good = world.settings.borrow().clone();
            let vault = Vault::new(Rc::clone(&world));
            let (_, sealed) = enrolled(&vault, &world);
            let draws = || draw(&vault, &world.bearer(), &sealed.token, Draw::default()).map(drop);
            break_settings(&world);
            let alarms = || {
                let log = world.log.take();
                let alarms = log
                    .iter()
                    .filter(|line| line.contains(r#""level":"alarm""#));
                assert!(alarms.clone().all(|line| line.contains(told)), "{log:?}");
                alarms.count()
            };
            world.advance(SETTINGS_SECONDS - 1);
            draws().unwrap();
            assert_eq!(alarms(), 0, "nobody has looked yet");
            for _ in 1..SETTINGS_USABLE / SETTINGS_SECONDS {
                world.advance(SETTINGS_SECONDS);
                draws().unwrap();
                draws().unwrap();
                assert_eq!(alarms(), 1, "one a look");
            }
            world.advance(SETTINGS_SECONDS);
            let error = draws().unwrap_err();
            assert!(matches!(
                error,
                VaultError::Operator(OperatorError::Setting(_))
            ));
            assert_eq!(vault.check_settings(), Err(error));
            // They are read again, and have their time anew.
            world.settings_are_down.set(false);
            *world.settings.borrow_mut() = good;
            draws().unwrap();
            break_settings(&world);
            world.advance(SETTINGS_SECONDS);
            draws().unwrap();
            // Who never had any has none.
            let cold = Vault::new(Rc::clone(&world));
            assert!(block_on(cold.identify(&world.bearer(), LONGEST)).is_err());
        }
    }

    #[test]
    fn a_tenant_that_is_not_allowed_makes_no_call() {
        let world = World::new();
        world
            .settings
            .borrow_mut()
            .insert("tenants", OTHER_USER.to_owned());
        let vault = Vault::new(Rc::clone(&world));
        assert_eq!(
            block_on(vault.identify(&world.bearer(), LONGEST)).unwrap_err(),
            CallerError::TenantNotAllowed.into()
        );
        assert_eq!(world.take_calls(), Vec::<String>::new());
    }

    /// They would enrol, and never be refreshed.
    #[test]
    fn users_of_the_operator_tenant_need_it_among_the_tenants() {
        let operator = "55555555-5555-5555-5555-555555555555";
        let world = World::new();
        let setting = ("operator_tenant", operator.to_owned());
        world.settings.borrow_mut().extend([setting]);
        let vault = Vault::new(Rc::clone(&world));
        let user = world.bearer_in(operator, OTHER_USER);
        for error in [
            block_on(vault.identify(&user, LONGEST)).unwrap_err(),
            block_on(vault.enrol(&user, &nonce(), None, LONGEST)).unwrap_err(),
        ] {
            assert_eq!(error, CallerError::TenantNotAllowed.into());
        }
        assert_eq!(world.take_calls(), Vec::<String>::new());
        let app = token(|claims| {
            claims["tid"] = json!(operator);
            claims["iss"] = json!(format!("https://login.microsoftonline.com/{operator}/v2.0"));
            claims["scp"].take();
            claims["sub"] = claims["oid"].clone();
            claims["roles"] = json!([Role::Read.name()]);
        });
        let other = TenantId::parse(TENANT).unwrap();
        block_on(vault.authorize_operator(&app, Role::Read, Some(&other), LONGEST)).unwrap();
    }

    /// A token of Microsoft Graph's has a signature that nobody else can verify.
    #[test]
    fn a_token_that_is_refused_whatever_its_signature_makes_no_call() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let graph = caller::tests::sign(
            &json!({"typ": "JWT", "alg": "RS256", "kid": "k2", "nonce": "n"}),
            &{
                let mut claims = caller::tests::claims();
                claims["aud"] = json!("00000003-0000-0000-c000-000000000000");
                claims
            },
        );
        let now = world.now.get();
        for (bearer, error) in [
            (graph, CallerError::from(TokenDefect::WrongAudience)),
            (
                token(|claims| claims["exp"] = json!(now - 300)),
                TokenDefect::Expired.into(),
            ),
            (
                token(|claims| claims["scp"] = json!("another")),
                CallerError::InsufficientScope("access_as_user".into()),
            ),
        ] {
            assert_eq!(
                block_on(vault.identify(&bearer, LONGEST)).unwrap_err(),
                error.into()
            );
        }
        assert_eq!(world.take_calls(), Vec::<String>::new());
    }

    #[test]
    fn the_sweep_key_and_its_predecessor_authorise_and_nothing_else() {
        let world = World::new();
        let previous = "previous-key-canary-0123456789-0123456789";
        world
            .settings
            .borrow_mut()
            .insert("sweep_key_previous", previous.to_owned());
        let vault = Vault::new(Rc::clone(&world));
        for key in [SWEEP_KEY, previous] {
            assert_eq!(
                block_on(vault.authorize_sweep(&Bearer::new(key.into()), LONGEST))
                    .unwrap()
                    .concurrency,
                32
            );
        }
        for key in ["", "x", &SWEEP_KEY[1..]] {
            let error =
                block_on(vault.authorize_sweep(&Bearer::new(key.into()), LONGEST)).unwrap_err();
            assert_eq!(error, CallerError::SweepNotAuthorized.into(), "{key}");
        }
        let user = block_on(vault.authorize_sweep(&world.bearer(), LONGEST)).unwrap_err();
        assert_eq!(
            user,
            CallerError::InsufficientScope(SWEEP_ROLE.into()).into()
        );
    }

    #[test]
    fn refusals_reach_the_caller_by_whose_fault_they_are() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        let refusal = |error: &str, code: u32| {
            (
                400,
                json!({"error": error, "error_codes": [code], "claims": "{}", "error_description": "canary user@contoso"}),
            )
        };
        let down = |holds_up| {
            VaultError::from(UpstreamError {
                system: System::Entra,
                retry_after_seconds: None,
                holds_up,
            })
        };
        for (code, on_enrol, on_draw) in [
            (
                50_173,
                VaultError::from(UserError::InteractionRequired(Interaction {
                    claims: None,
                    reason: reason(50_173),
                })),
                VaultError::from(UserError::ReenrolmentRequired(reason(50_173))),
            ),
            (
                500_133,
                TokenDefect::Rejected.into(),
                OperatorError::EntraRefused(reason(500_133)).into(),
            ),
            (90_033, down(HoldsUp::Tenant), down(HoldsUp::Tenant)),
            (
                700_016,
                OrganisationError(reason(700_016)).into(),
                OrganisationError(reason(700_016)).into(),
            ),
            (
                7_000_114,
                OperatorError::EntraRefused(reason(7_000_114)).into(),
                OperatorError::EntraRefused(reason(7_000_114)).into(),
            ),
            // The scope is the settings'.
            (
                70_011,
                OperatorError::EntraRefused(reason(70_011)).into(),
                OperatorError::EntraRefused(reason(70_011)).into(),
            ),
            (
                7_000_215,
                credential_refused("client_secret", Some(7_000_215)),
                credential_refused("client_secret", Some(7_000_215)),
            ),
        ] {
            world
                .entra_answers
                .borrow_mut()
                .push_back(refusal("invalid_grant", code));
            assert_eq!(
                block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err(),
                on_enrol
            );
            world.advance(PAUSE.into());
            world
                .entra_answers
                .borrow_mut()
                .push_back(refusal("invalid_grant", code));
            assert_eq!(
                draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err(),
                on_draw
            );
            world.advance(PAUSE.into());
        }
        let log = world.log.borrow().join("\n");
        assert!(
            log.contains("50173") && !log.contains("contoso") && !log.contains("canary"),
            "{log}"
        );
    }

    #[test]
    fn a_scope_that_is_none_is_the_fault_of_whoever_chose_it() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        let asked = |scope: &str| Draw {
            scope: Some(scope.into()),
            ..Draw::default()
        };
        for code in [70_011, 650_053, 650_057, 28_002, 28_003] {
            world.entra_answers.borrow_mut().push_back((
                401,
                json!({"error": "invalid_client", "error_codes": [code]}),
            ));
            let draw = draw(
                &vault,
                &world.bearer(),
                &sealed.token,
                asked("https://graph.microsoft.com/None"),
            );
            assert_eq!(
                draw.unwrap_err(),
                CallerError::InvalidScope(reason(code)).into()
            );
        }
        world.take_calls();
        for scope in [
            "https://graph.microsoft.com/.default https://graph.microsoft.com/User.Read",
            "https://graph.microsoft.com/User.Read https://graph.microsoft.com/.Default",
        ] {
            let mixed = VaultError::from(CallerError::InvalidScope(Reason::default()));
            let refused = draw(&vault, &world.bearer(), &sealed.token, asked(scope));
            assert_eq!(refused.unwrap_err(), mixed);
            let enrolment = block_on(vault.enrol(&world.bearer(), &nonce(), Some(scope), LONGEST));
            assert_eq!(enrolment.unwrap_err(), mixed);
        }
        assert_eq!(world.take_calls(), Vec::<String>::new(), "refused here");
    }

    #[test]
    fn a_refused_token_for_key_vault_is_no_users_fault() {
        let world = World::new();
        for code in [50_173, 50_076, 50_105, 70_011, 500_011] {
            let answer =
                json!({"error": "invalid_grant", "error_codes": [code], "suberror": "bad_token"});
            world.app_answers.borrow_mut().push_back((400, answer));
            let vault = Vault::new(Rc::clone(&world));
            let reason = Reason {
                aadsts: Some(code),
                suberror: Some(Suberror::BadToken),
            };
            assert_eq!(
                block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err(),
                OperatorError::KeyVaultTokenRefused(reason).into()
            );
        }
    }

    #[test]
    fn no_refresh_token_is_no_enrolment() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        world.entra_answers.borrow_mut().push_back((
            200,
            json!({"token_type": "Bearer", "expires_in": 1, "access_token": "at"}),
        ));
        assert_eq!(
            block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err(),
            OperatorError::NoRefreshToken.into()
        );
    }

    // ---- Pauses, side by side, time ----

    fn left(error: VaultError) -> Option<u32> {
        match error {
            VaultError::Upstream(UpstreamError {
                system: System::Entra,
                retry_after_seconds,
                ..
            }) => retry_after_seconds,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_loop_pauses_its_user_and_no_other() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        world.entra_answers.borrow_mut().push_back((
            400,
            json!({"error": "invalid_grant", "error_codes": [50_196], "suberror": "bad_token"}),
        ));
        let error = draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err();
        assert_eq!(left(error), Some(300));
        world.take_calls();
        world.advance(100);
        // For whatever the user asks, and nothing reaches Entra ID.
        let asked = Draw {
            scope: Some("https://graph.microsoft.com/Mail.Read".into()),
            ..Draw::default()
        };
        let error = draw(&vault, &world.bearer(), &sealed.token, asked).unwrap_err();
        assert_eq!(left(error), Some(200));
        let error = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err();
        assert_eq!(left(error), Some(200));
        assert_eq!(world.take_calls(), Vec::<String>::new());
        let other = world.bearer_of(OTHER_USER);
        block_on(vault.enrol(&other, &nonce(), None, LONGEST)).unwrap();
        world.advance(200);
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    }

    #[test]
    fn throttling_and_outages_pause_the_tenant_and_no_other() {
        let other_tenant = "55555555-5555-5555-5555-555555555555";
        for (answer, tries, seconds) in [
            ((429, json!({})), 1, 5),
            ((503, json!("<html>")), 2, 5),
            (
                (
                    429,
                    json!({"error": "temporarily_unavailable", "error_codes": [90_055]}),
                ),
                1,
                5,
            ),
        ] {
            let world = World::new();
            world
                .settings
                .borrow_mut()
                .insert("tenants", format!("{TENANT},{other_tenant}"));
            let vault = Vault::new(Rc::clone(&world));
            let (_, sealed) = enrolled(&vault, &world);
            world
                .entra_answers
                .borrow_mut()
                .extend(std::iter::repeat_n(answer, tries));
            draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err();
            world.take_calls();
            // Another user of the tenant, who needs nothing but Entra ID.
            let other = world.bearer_of(OTHER_USER);
            let error = block_on(vault.enrol(&other, &nonce(), None, LONGEST)).unwrap_err();
            assert_eq!(left(error), Some(seconds));
            assert_eq!(world.take_calls(), Vec::<String>::new());
            let stored = StoredToken {
                user: User {
                    tenant: Guid::parse(other_tenant).unwrap(),
                    id: UserId::from_sealed("x").storage_id(None),
                },
                nonce: nonce(),
                token: sealed.token.clone(),
            };
            // Not held up: it fails at its own seal.
            assert_eq!(
                block_on(vault.refresh(&stored, LONGEST)).unwrap_err(),
                StoredError::NotBound.into()
            );
            vault
                .check_pauses(&stored.user.tenant, Some(&stored.user))
                .unwrap();
            world.advance(seconds.into());
            draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
        }
    }

    #[test]
    fn an_outage_of_a_moment_is_not_noticed() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        world.take_calls();
        world
            .entra_answers
            .borrow_mut()
            .push_back((502, json!("<html>")));
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
        assert_eq!(
            world.take_calls(),
            ["entra refresh_token", "entra refresh_token"]
        );
    }

    #[test]
    fn the_same_grant_is_asked_for_once_at_a_time() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        world.take_calls();
        world.slow.set(true);
        let bearer = world.bearer();
        let (scopes, nonce) = (
            [
                None,
                None,
                Some("https://graph.microsoft.com/Mail.Read"),
                None,
            ],
            nonce(),
        );
        let draws = scopes.map(|scope| {
            let draw = Draw {
                scope: scope.map(Into::into),
                replace: true,
                ..Draw::default()
            };
            vault.access_token(&bearer, &nonce, &sealed.token, draw, LONGEST)
        });
        let issued: Vec<_> = block_on(join_all(draws))
            .into_iter()
            .map(|issued| issued.unwrap())
            .collect();
        assert_eq!(
            world.take_calls(),
            ["entra refresh_token", "entra refresh_token"]
        );
        let token = |at: usize| issued[at].access_token.expose();
        assert!(token(0) == token(1) && token(0) == token(3) && token(0) != token(2));
        assert!(issued.iter().all(|issued| issued.replacement.is_some()));
        // One after another, each is asked for.
        draw(&vault, &bearer, &sealed.token, Draw::default()).unwrap();
        draw(&vault, &bearer, &sealed.token, Draw::default()).unwrap();
        assert_eq!(world.take_calls().len(), 2);
    }

    #[test]
    fn a_cold_crowd_asks_for_each_thing_once() {
        let world = World::new();
        world.slow.set(true);
        let vault = Vault::new(Rc::clone(&world));
        let users: Vec<_> = (0..5)
            .map(|n| world.bearer_of(&format!("{n}4444444-4444-4444-8444-444444444444")))
            .collect();
        let nonce = nonce();
        let enrolments = users
            .iter()
            .map(|user| vault.enrol(user, &nonce, None, LONGEST));
        for enrolment in block_on(join_all(enrolments)) {
            enrolment.unwrap();
        }
        let mut calls = world.take_calls();
        calls.retain(|call| call != "entra jwt-bearer");
        assert_eq!(calls, ["keys", "entra client_credentials", "key vault "]);
    }

    #[test]
    fn a_key_that_many_miss_is_fetched_once() {
        let world = World::new();
        let (_, sealed) = enrolled(&Vault::new(Rc::clone(&world)), &world);
        world.rotate();
        world.take_calls();
        world.slow.set(true);
        let vault = Vault::new(Rc::clone(&world));
        let (bearer, nonce) = (world.bearer(), nonce());
        let draws = (0..5)
            .map(|_| vault.access_token(&bearer, &nonce, &sealed.token, Draw::default(), LONGEST));
        for issued in block_on(join_all(draws)) {
            issued.unwrap();
        }
        let mut calls = world.take_calls();
        calls.retain(|call| call.starts_with("key vault"));
        assert_eq!(calls, [format!("key vault {}", World::version(0))]);
    }

    #[test]
    fn a_failure_is_shared_and_not_remembered() {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        world.slow.set(true);
        world.entra_answers.borrow_mut().push_back((
            400,
            json!({"error": "invalid_grant", "error_codes": [65_001]}),
        ));
        let bearer = world.bearer();
        let nonce = nonce();
        let draws = (0..3)
            .map(|_| vault.access_token(&bearer, &nonce, &sealed.token, Draw::default(), LONGEST));
        for outcome in block_on(join_all(draws)) {
            assert!(matches!(
                outcome,
                Err(VaultError::User(UserError::InteractionRequired(_)))
            ));
        }
        draw(&vault, &bearer, &sealed.token, Draw::default()).unwrap();
    }

    // ---- Credentials ----

    fn credential_refused(setting: &str, code: Option<u32>) -> VaultError {
        OperatorError::CredentialRefused {
            setting: setting.into(),
            reason: code.map(reason).unwrap_or_default(),
        }
        .into()
    }

    fn reason(code: u32) -> Reason {
        Reason {
            aadsts: Some(code),
            suberror: None,
        }
    }

    /// A world with this credential: `credential`, and what belongs to it.
    fn with_credential(credential: &str) -> Shared {
        let world = World::new();
        {
            let mut settings = world.settings.borrow_mut();
            settings.remove("client_secret");
            settings.insert("credential", credential.to_owned());
            settings.insert("certificate_pem", CERTIFICATE.to_owned());
            settings.insert("private_key_pem", PRIVATE_KEY.to_owned());
            settings.insert("federated_token", "federated-canary.b.c".to_owned());
        }
        world
    }

    #[test]
    fn a_certificate_signs_one_assertion_for_ten_minutes() {
        let world = with_credential("certificate");
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        world.advance(479);
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
        let proofs = world.proofs.take();
        assert_eq!(proofs.len(), 3);
        assert!(proofs[0].starts_with("eyJ") && proofs.iter().all(|proof| *proof == proofs[0]));
        world.advance(1);
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
        assert_ne!(world.proofs.take(), [proofs[0].clone()]);
    }

    #[test]
    fn a_federated_token_is_sent_as_it_is() {
        let world = with_credential("federated-token");
        enrolled(&Vault::new(Rc::clone(&world)), &world);
        assert_eq!(world.proofs.take(), ["federated-canary.b.c"; 2]);
        assert_eq!(
            world.take_calls(),
            [
                "keys",
                "entra client_credentials",
                "key vault ",
                "entra jwt-bearer"
            ]
        );
    }

    #[test]
    fn a_managed_identity_is_the_app_and_its_token_is_kept() {
        let world = with_credential("managed-identity");
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        assert_eq!(
            world.take_calls(),
            [
                "keys",
                "identity api://AzureADTokenExchange",
                "entra client_credentials",
                "key vault ",
                "entra jwt-bearer"
            ]
        );
        let proofs = world.proofs.take();
        assert!(proofs[0].starts_with("identity-canary") && proofs[0] == proofs[1]);
        world.advance(3000);
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
        assert_eq!(world.take_calls(), ["entra refresh_token"]);
    }

    #[test]
    fn key_vault_is_asked_as_the_managed_identity_whatever_the_app_is() {
        let world = World::new();
        world
            .settings
            .borrow_mut()
            .insert("key_vault_credential", "managed-identity".to_owned());
        // An upgrade of the endpoint.
        world
            .identity_answers
            .borrow_mut()
            .push_back((410, json!({})));
        enrolled(&Vault::new(Rc::clone(&world)), &world);
        assert_eq!(
            world.take_calls(),
            [
                "keys",
                "identity https://vault.azure.net",
                "identity https://vault.azure.net",
                "key vault ",
                "entra jwt-bearer"
            ]
        );
        assert_eq!(world.proofs.take(), ["client-secret-canary"]);
    }

    #[test]
    fn a_wrong_credential_is_named_with_its_number_and_made_anew() {
        for (credential, setting, code) in [
            ("certificate", "certificate_pem", 700_027),
            ("federated-token", "federated_token", 700_213),
            ("managed-identity", "managed_identity_client_id", 70_021),
        ] {
            let world = with_credential(credential);
            let vault = Vault::new(Rc::clone(&world));
            let (_, sealed) = enrolled(&vault, &world);
            let refusal = (
                401,
                json!({"error": "invalid_client", "error_codes": [code]}),
            );
            // What is made for the purpose is made anew once in the request; a setting is what it is.
            let tries = if credential == "federated-token" {
                1
            } else {
                2
            };
            world.proofs.take();
            let refusals = std::iter::repeat_n(refusal.clone(), tries);
            world.entra_answers.borrow_mut().extend(refusals);
            let error = draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err();
            assert!(world.entra_answers.borrow().is_empty());
            let refused: BTreeSet<_> = world.proofs.take().into_iter().collect();
            assert_eq!(refused.len(), tries, "each another one");
            assert_eq!(error, credential_refused(setting, Some(code)));
            let told = error.to_string();
            assert!(
                told.contains(setting) && told.contains(&format!("AADSTS{code}")),
                "{told}"
            );
            draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
            let proofs = world.proofs.take();
            if credential != "federated-token" {
                assert!(!refused.contains(&proofs[0]), "made anew");
                // A refusal of what was kept is not even noticed.
                world.entra_answers.borrow_mut().push_back(refusal);
                draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
                let anew = world.proofs.take();
                assert_eq!(anew.len(), 2);
                assert_eq!(anew[0], proofs[0], "kept");
                assert_ne!(anew[1], proofs[0], "made anew");
            }
            let log = world.log.borrow().join("\n");
            assert!(!log.contains("canary") && !log.contains("eyJ"), "{log}");
        }
        let world = with_credential("managed-identity");
        let vault = Vault::new(Rc::clone(&world));
        world.identity_answers.borrow_mut().push_back((
            400,
            json!({"error": "invalid_request", "error_description": "Identity not found"}),
        ));
        assert_eq!(
            block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err(),
            credential_refused("managed_identity_client_id", None)
        );
        world.down.borrow_mut().push("identity");
        assert_eq!(
            block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err(),
            VaultError::upstream(System::ManagedIdentity)
        );
    }

    #[test]
    fn an_assertion_is_made_once_at_a_time_and_kept_for_every_tenant() {
        for credential in ["certificate", "managed-identity"] {
            let world = with_credential(credential);
            world.settings.borrow_mut().insert("tenants", "*".into());
            let vault = Vault::new(Rc::clone(&world));
            let sealed = enrolled(&vault, &world).1;
            world.advance(3600);
            world.proofs.take();
            world.take_calls();
            world.slow.set(true);
            let bearer = world.bearer();
            let draws = ["A", "B", "C", "D"].map(|scope| {
                let draw = Draw {
                    scope: Some(format!("https://graph.microsoft.com/{scope}")),
                    ..Draw::default()
                };
                (draw, nonce())
            });
            let draws = draws.iter().map(|(draw, nonce)| {
                vault.access_token(&bearer, nonce, &sealed.token, draw.clone(), LONGEST)
            });
            for drawn in block_on(join_all(draws)) {
                drawn.unwrap();
            }
            let proofs: BTreeSet<_> = world.proofs.take().into_iter().collect();
            assert_eq!(proofs.len(), 1, "{credential}");
            let calls = world.take_calls();
            let asked = calls.iter().filter(|call| call.starts_with("identity"));
            assert!(asked.count() <= 1, "{calls:?}");
            // More tenants than there were places once.
            world.slow.set(false);
            let tenant = |number: u32| format!("{number:08x}-7777-7777-7777-777777777777");
            let draw_of = |number| {
                let bearer = world.bearer_in(&tenant(number), OTHER_USER);
                block_on(vault.enrol(&bearer, &nonce(), None, LONGEST)).unwrap();
            };
            (0..300).for_each(draw_of);
            world.proofs.take();
            draw_of(0);
            let first = world.proofs.take();
            draw_of(0);
            assert_eq!(world.proofs.take(), first, "{credential}");
        }
    }

    /// Whatever holds a secret and a developer might print.
    #[test]
    fn debug_shows_no_secret() {
        let tenant = TenantId::parse(TENANT).unwrap();
        let mut shown = Vec::new();
        for credential in [
            "client-secret",
            "certificate",
            "managed-identity",
            "federated-token",
        ] {
            let world = with_credential(credential);
            world.settings.borrow_mut().extend([
                ("client_secret", "client-secret-canary".to_owned()),
                ("pseudonym_key", "pseudonym-canary".repeat(3)),
                ("sweep_key_previous", "previous-canary".repeat(3)),
                ("identity_header", "header-canary".to_owned()),
            ]);
            let vault = Vault::new(Rc::clone(&world));
            let call = vault.call(LONGEST).unwrap();
            let assertion = block_on(vault.assertion(&call, &tenant)).unwrap();
            shown.push(format!("{:?} {assertion:?}", call.settings));
        }
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let (user, sealed) = enrolled(&vault, &world);
        let call = vault.call(LONGEST).unwrap();
        let (secret, key) = block_on(vault.sealing_key(&call, &tenant)).unwrap();
        let token = AccessToken::new("at-canary".into());
        let question = secret_request(&call, &secret, None, Some(&token)).unwrap();
        shown.push(format!("{key:?} {question:?}"));
        let answer = vault.send(&call, question, key_vault::LONGEST_ANSWER, System::KeyVault);
        shown.push(format!("{:?}", block_on(answer).unwrap()));
        let bearer = Bearer::new("bearer-canary".into());
        let refresh_token = RefreshToken::new("rt-canary".into());
        let (secret, scope) = (ClientSecret::new("secret-canary".into()), &call.scope);
        for grant in [
            Grant::OnBehalfOf {
                assertion: &bearer,
                scope,
            },
            Grant::Refresh {
                token: &refresh_token,
                scope,
                claims: None,
            },
        ] {
            let proof = Proof::Secret(&secret);
            let request = token_request(&call, &tenant, proof, &grant).unwrap();
            shown.push(format!("{grant:?} {proof:?} {request:?}"));
            let answer = vault.send(&call, request, entra::LONGEST_ANSWER, System::Entra);
            let answer = block_on(answer).unwrap();
            let granted = read_token_response(&answer, &grant, world.now.get()).unwrap();
            shown.push(format!("{answer:?} {granted:?}"));
        }
        let issued = draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
        let stored = StoredToken {
            user,
            nonce: nonce(),
            token: sealed.token,
        };
        let payload = block_on(vault.open_stored(&call, &stored)).unwrap();
        shown.push(format!("{issued:?} {stored:?} {payload:?}"));

        let key_of_app = PRIVATE_KEY.lines().filter(|line| line.len() == 64);
        let key_of_tenant = format!("{:?}", [7; 32]);
        let numbers = format!("{:?}", b"canary");
        let needles: Vec<_> = key_of_app
            .chain([
                &*key_of_tenant,
                STANDARD_KEY,
                "canary",
                "eyJhbGciOiJQUzI1NiIs",
            ])
            .chain([numbers.trim_matches(['[', ']'])])
            .collect();
        let leaks = |text: &str| needles.iter().any(|needle| text.contains(needle));
        assert!(leaks(refresh_token.expose()) && leaks(&format!("{:?}", b"a canary")));
        for text in shown {
            assert!(!leaks(&text), "{text}");
        }
    }

    #[test]
    fn a_guest_is_served_in_the_tenant_of_the_token() {
        // Multi-tenant: any organisation, Key Vault in its own tenant (§A.1, design §3).
        let guest_tenant = "55555555-5555-5555-5555-555555555555";
        let world = World::new();
        {
            let mut settings = world.settings.borrow_mut();
            settings.insert("tenants", "*".to_owned());
            settings.insert("key_vault_tenant", TENANT.to_owned());
        }
        let mut claims = caller::tests::claims();
        claims["tid"] = json!(guest_tenant);
        claims["iss"] = json!(format!(
            "https://login.microsoftonline.com/{guest_tenant}/v2.0"
        ));
        claims["acct"] = json!(1);
        claims["idp"] = json!(format!("https://sts.windows.net/{TENANT}/"));
        let bearer =
            caller::tests::sign(&json!({"typ": "JWT", "alg": "RS256", "kid": "k1"}), &claims);
        let vault = Vault::new(Rc::clone(&world));
        let (user, _) = block_on(vault.identify(&bearer, LONGEST)).unwrap();
        assert_eq!(user.tenant.as_str(), guest_tenant);
        let enrolment = block_on(vault.enrol(&bearer, &nonce(), None, LONGEST)).unwrap();
        assert_eq!(enrolment.user.tenant.as_str(), guest_tenant);
        assert!(world.take_calls().contains(&"key vault ".to_owned()));
    }
}
