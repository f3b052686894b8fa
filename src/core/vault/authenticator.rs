//! Who a caller is: tokens verified against Entra ID's signing keys, and the sweep key.
//!
//! A token is looked at in two steps, because one costs about 1.5 ms in wasm and its result may be kept, while the
//! other depends on the settings and the time, and is done for every request. It is also done first, so that nothing is
//! fetched for a token that is not for this app:
//!
//! 1. [`claims::Claims::accept_user`], [`claims::Claims::accept_app`]: tenant, audience, times, scope or role.
//! 2. [`token::Unverified::verify`]: signature and issuer, with a signing key.
//!
//! What a caller who is known may not do is decided after that, so that the log can say who it was:
//! [`claims::Claims::reaches`], and the grants.

pub mod claims;
pub mod signing_keys;
pub mod token;

use crate::error::{CallerError, NotGranted, TokenDefect, VaultError};
use crate::identity::{Guid, TenantId, User, UserId, UserName};
use crate::secret::Bearer;
use crate::vault::authenticator::claims::Claims;
use crate::vault::authenticator::signing_keys::{FRESH, SigningKeySource};
use crate::vault::authenticator::token::Unverified;
use crate::vault::cache::Cache;
use crate::vault::context::{Context, Environment};
use crate::vault::grants::{App, Missing};
use crate::vault::port::{Role, Subject};

/// Role of an app that may sweep.
const SWEEP_ROLE: &str = "Behalf.Sweep";
/// Verified tokens that are remembered.
const VERIFIED: usize = 1024;
/// Seconds for which one is remembered at most: as long as signing keys are fresh.
const REMEMBERED: u64 = FRESH;

/// Verifies callers. It remembers whom it has verified, and the signing keys.
pub(crate) struct Authenticator {
    signing_keys: SigningKeySource,
    /// By SHA-256 of the token.
    verified: Cache<[u8; 32], Verified>,
}

/// Who calls, and about whom.
pub(crate) struct Known {
    /// The app that sent the token.
    pub(crate) app: App,
    /// The user that the call is about.
    pub(crate) user_id: UserId,
    /// The same, as storage knows it.
    pub(crate) user: User,
}

/// A token that was verified, and by which signing key.
#[derive(Clone)]
struct Verified {
    claims: Claims,
    key_id: String,
}

impl Authenticator {
    /// One that remembers nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            signing_keys: SigningKeySource::new(),
            verified: Cache::new(VERIFIED),
        }
    }

    /// Who calls, about a user: the one that the token speaks for, or one that an app with this role names.
    ///
    /// # Errors
    /// [`CallerError`]; [`VaultError::Upstream`] if signing keys are needed and cannot be had.
    pub(crate) async fn caller<E: Environment>(
        &self,
        context: &Context<'_, E>,
        bearer: &Bearer,
        subject: &Subject,
        role: Role,
    ) -> Result<Known, VaultError> {
        match subject {
            Subject::Me => self.user(context, bearer).await,
            Subject::User(name) => self.app(context, bearer, name, role).await,
        }
    }

    /// A user, by a token of its own.
    ///
    /// # Errors
    /// As [`Self::caller`].
    pub(crate) async fn user<E: Environment>(
        &self,
        context: &Context<'_, E>,
        bearer: &Bearer,
    ) -> Result<Known, VaultError> {
        let now = context.now();
        let accept = |claims: &Claims| claims.accept_user(context, now);
        let claims = self.authenticate(context, bearer, accept).await?;
        let user_id = context.user_id.user_id(&claims.subject);
        Ok(Known::new(
            context,
            &claims,
            user_id,
            claims.subject.tenant.clone(),
        ))
    }

    async fn app<E: Environment>(
        &self,
        context: &Context<'_, E>,
        bearer: &Bearer,
        name: &UserName,
        role: Role,
    ) -> Result<Known, VaultError> {
        // Where it is on, the template has nothing that only a token tells.
        let user_id = context.user_id.user_id_of(name);
        let user_id = user_id.filter(|_| context.user_routes);
        let user_id = user_id.ok_or(CallerError::UserRoutesOff)?;
        let now = context.now();
        let accept = |claims: &Claims| claims.accept_app(role.name(), context, now);
        let claims = self.authenticate(context, bearer, accept).await?;
        let known = Known::new(context, &claims, user_id, name.tenant.clone());
        let reaches = claims.reaches(role.name(), Some(&name.tenant), context);
        reaches.map_err(|missing| known.refused(missing))?;
        Ok(known)
    }

    /// Whoever may sweep: by the sweep key, or as an app of the operator tenant.
    ///
    /// # Errors
    /// As [`Self::caller`].
    pub(crate) async fn sweeper<E: Environment>(
        &self,
        context: &Context<'_, E>,
        bearer: &Bearer,
    ) -> Result<(), VaultError> {
        // Every key is tried, so that the time does not tell which one was right.
        let by_key = context
            .sweep_keys
            .iter()
            .fold(false, |matched, key| key.matches(bearer) | matched);
        if by_key {
            return Ok(());
        }
        // A sweep key has no dot, or nobody could tell it from a JWT: `a.b.c` as a key still matches above.
        if !bearer.expose().contains('.') {
            return Err(CallerError::SweepNotAuthorized.into());
        }
        let now = context.now();
        let accept = |claims: &Claims| claims.accept_app(SWEEP_ROLE, context, now);
        let claims = self.authenticate(context, bearer, accept).await?;
        let reaches = claims.reaches(SWEEP_ROLE, None, context);
        Ok(reaches.map_err(|missing| refused(claims.app().client, missing))?)
    }

    /// An app with a role, to act on a tenant; without one it means all that it may act on. Its client id, and the one
    /// tenant that it may act on; none: all.
    ///
    /// # Errors
    /// As [`Self::caller`].
    pub(crate) async fn operator<E: Environment>(
        &self,
        context: &Context<'_, E>,
        bearer: &Bearer,
        role: Role,
        tenant: Option<&TenantId>,
    ) -> Result<(Option<Guid>, Option<TenantId>), VaultError> {
        let now = context.now();
        let accept = |claims: &Claims| claims.accept_app(role.name(), context, now);
        let claims = self.authenticate(context, bearer, accept).await?;
        let asked = tenant.unwrap_or(&claims.subject.tenant);
        let reaches = claims.reaches(role.name(), Some(asked), context);
        let App { client, tenant, .. } = claims.app();
        reaches.map_err(|missing| refused(client.clone(), missing))?;
        let reach = (context.operator_tenant.as_ref() != Some(&tenant)).then_some(tenant);
        Ok((client, reach))
    }

    /// Asks for the signing keys now, however old the known ones are. Whether the answer had a date.
    ///
    /// # Errors
    /// [`VaultError::Upstream`].
    pub(crate) async fn renew_signing_keys<E: Environment>(
        &self,
        context: &Context<'_, E>,
    ) -> Result<bool, VaultError> {
        let fetched = self.signing_keys.fetch(context).await?;
        Ok(fetched.is_dated)
    }

    /// Verifies signature and issuer, or knows that it has, of a token with acceptable claims.
    async fn authenticate<E: Environment>(
        &self,
        context: &Context<'_, E>,
        bearer: &Bearer,
        accept: impl Fn(&Claims) -> Result<(), CallerError>,
    ) -> Result<Claims, VaultError> {
        let digest = bearer.digest();
        let now = context.now();
        if let Some(Verified { claims, key_id }) = self.verified.get(&digest, now) {
            accept(&claims)?;
            // The key may have been withdrawn since.
            let keys = self.signing_keys.to_find(context, &key_id).await?;
            keys.find(&key_id).ok_or(TokenDefect::UnknownKey)?;
            return Ok(claims);
        }
        let token = Unverified::parse(bearer)?;
        accept(token.claims())?;
        let key_id = token.key_id().to_owned();
        let keys = self.signing_keys.to_find(context, &key_id).await?;
        let key = keys.find(&key_id).ok_or(TokenDefect::UnknownKey)?;
        let claims = token.verify(key, &context.issuers)?;
        let until = claims.good_until().min(now.saturating_add(REMEMBERED));
        let verified = Verified {
            claims: claims.clone(),
            key_id,
        };
        self.verified.put(digest, verified, now..until);
        Ok(claims)
    }
}

impl Known {
    fn new<E>(
        context: &Context<'_, E>,
        claims: &Claims,
        user_id: UserId,
        tenant: TenantId,
    ) -> Self {
        let id = user_id.storage_id(context.pseudonym_key.as_ref());
        Self {
            app: claims.app(),
            user_id,
            user: User { tenant, id },
        }
    }

    /// The caller may not have what it wants of the user.
    pub(crate) fn refused(&self, missing: Missing) -> NotGranted {
        NotGranted {
            user: Some(self.user.clone()),
            ..refused(self.app.client.clone(), missing)
        }
    }
}

fn refused(client: Option<Guid>, Missing(missing): Missing) -> NotGranted {
    NotGranted {
        client,
        user: None,
        missing,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use futures_util::future::{join, join_all};
    use pollster::block_on;
    use serde_json::json;

    use super::*;
    use crate::error::System;
    use crate::simulation::world::{SWEEP_KEY, Shared, World, turn};
    use crate::vault::authenticator::signing_keys::{PAUSE, SigningKeys, USABLE};
    use crate::vault::context::tests::Bench;
    use crate::vault::samples::{
        OTHER_USER, claims, claims_with, header, jwks_of_another_key, sign,
    };

    struct Desk {
        bench: Bench,
        authenticator: Authenticator,
    }

    impl Desk {
        fn new(world: &Shared) -> Self {
            Self {
                bench: Bench::new(world),
                authenticator: Authenticator::new(),
            }
        }

        fn identify(&self, bearer: &Bearer) -> Result<User, VaultError> {
            let known = block_on(self.authenticator.user(&self.bench.context(), bearer));
            known.map(|known| known.user)
        }

        fn sweep(&self, bearer: &Bearer) -> Result<(), VaultError> {
            block_on(self.authenticator.sweeper(&self.bench.context(), bearer))
        }
    }

    #[test]
    fn signing_keys_outlive_an_outage_and_an_unknown_kid_does_not_hammer() {
        let world = World::new();
        let desk = Desk::new(&world);
        desk.identify(&world.bearer()).unwrap();
        world.take_calls();
        let unknown = sign(&json!({"alg": "RS256", "kid": "new"}), &claims());
        for _ in 0..3 {
            assert_eq!(
                desk.identify(&unknown).unwrap_err(),
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
                desk.identify(&unknown).unwrap_err(),
                TokenDefect::UnknownKey.into()
            );
        }
        assert_eq!(world.take_calls(), ["keys"]);
        world.down.borrow_mut().push("keys");
        world.advance(7200);
        desk.identify(&world.bearer()).unwrap();
        world.advance(86_400);
        assert_eq!(
            desk.identify(&world.bearer()).unwrap_err(),
            VaultError::upstream(System::SigningKeys)
        );
    }

    #[test]
    fn known_signing_keys_serve_up_to_their_age_and_not_beyond() {
        let world = World::new();
        let desk = Desk::new(&world);
        let identify = |bearer: &Bearer| desk.identify(bearer).map(drop);
        identify(&world.bearer()).unwrap();
        world.down.borrow_mut().push("keys");
        world.advance(USABLE - 1);
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
        let desk = Desk::new(&world);
        let identify = |bearer: &Bearer| desk.identify(bearer).map(drop);
        let verified = world.bearer();
        let other = world.bearer_of(OTHER_USER);
        identify(&verified).unwrap();
        world.signing_key.set("k2");
        world.advance(PAUSE - 1);
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
        let desk = Desk::new(&world);
        desk.identify(&world.bearer()).unwrap();
        world.signing_key.set("k2");
        world.advance(PAUSE);
        world.take_calls();
        world.slow.set(true);
        let bearers: Vec<_> = (0..4)
            .map(|n| world.bearer_of(&format!("{n}4444444-4444-4444-8444-444444444444")))
            .collect();
        let context = desk.bench.context();
        let users = bearers
            .iter()
            .map(|bearer| desk.authenticator.user(&context, bearer));
        for user in block_on(join_all(users)) {
            user.unwrap();
        }
        assert_eq!(world.take_calls(), ["keys"]);
    }

    /// A sweep asks for them whether or not they are known, and users come beside it.
    #[test]
    fn a_sweep_and_the_first_users_wait_for_one_fetch() {
        for sweeps_first in [true, false] {
            let world = World::new();
            let desk = Desk::new(&world);
            world.slow.set(true);
            let bearers = [world.bearer(), world.bearer_of(OTHER_USER)];
            let context = desk.bench.context();
            let sweep = async {
                if !sweeps_first {
                    turn().await;
                }
                desk.authenticator.renew_signing_keys(&context).await
            };
            let users = join_all(bearers.iter().map(async |bearer| {
                if sweeps_first {
                    turn().await;
                }
                desk.authenticator.user(&context, bearer).await.map(drop)
            }));
            let (swept, users) = block_on(join(sweep, users));
            assert_eq!((swept, users), (Ok(true), vec![Ok(()), Ok(())]));
            assert_eq!(world.take_calls(), ["keys"], "{sweeps_first}");
        }
    }

    #[test]
    fn a_fetch_that_fails_for_a_new_signing_key_is_nobodys_fault_and_is_tried_again() {
        let world = World::new();
        let desk = Desk::new(&world);
        let identify = |bearer: &Bearer| desk.identify(bearer).map(drop);
        let known = world.bearer();
        identify(&known).unwrap();
        world.signing_key.set("k2");
        world.advance(PAUSE);
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
        let desk = Desk::new(&world);
        desk.identify(&world.bearer()).unwrap();
        world.advance(FRESH);
        world.take_calls();
        world.slow.set(true);
        let bearers = [world.bearer(), world.bearer_of(OTHER_USER)];
        let (first, others) = bearers.split_first().unwrap();
        let context = desk.bench.context();
        let user = |bearer| desk.authenticator.user(&context, bearer);
        let mut first = Box::pin(user(first));
        assert!(first.as_mut().now_or_never().is_none());
        for bearer in others {
            assert!(user(bearer).now_or_never().unwrap().is_ok());
        }
        block_on(first).unwrap();
        assert_eq!(world.take_calls(), ["keys"]);
        let fails = (500, json!({}));
        world.advance(FRESH);
        world
            .signing_keys_answers
            .borrow_mut()
            .extend(vec![fails; 2]);
        for _ in 0..3 {
            desk.identify(&world.bearer()).unwrap();
        }
        assert_eq!(
            world.take_calls(),
            ["keys", "keys"],
            "a fetch and its repeat"
        );
        world.advance(PAUSE);
        desk.identify(&world.bearer()).unwrap();
        assert_eq!(world.take_calls(), ["keys"]);
    }

    #[test]
    fn a_token_is_verified_once() {
        let world = World::new();
        let desk = Desk::new(&world);
        let bearer = world.bearer();
        desk.identify(&bearer).unwrap();
        // By a key of the same name that is another, nothing can be verified.
        let another = SigningKeys::parse(&jwks_of_another_key("k1")).unwrap();
        let signing_keys = &desk.authenticator.signing_keys;
        signing_keys.keep(another, desk.bench.context().uptime());
        desk.identify(&bearer).unwrap();
        let error = desk.identify(&world.bearer_of(OTHER_USER)).unwrap_err();
        assert_eq!(error, TokenDefect::BadSignature.into());
    }

    #[test]
    fn an_expired_token_is_refused_although_it_was_verified_before() {
        let world = World::new();
        let desk = Desk::new(&world);
        let bearer = world.bearer();
        desk.identify(&bearer).unwrap();
        world.advance(3900 + 299);
        desk.identify(&bearer).unwrap();
        world.advance(1);
        assert_eq!(
            desk.identify(&bearer).unwrap_err(),
            TokenDefect::Expired.into()
        );
    }

    #[test]
    fn a_tenant_that_is_not_allowed_makes_no_call() {
        let world = World::new();
        world
            .settings
            .borrow_mut()
            .insert("tenants", OTHER_USER.to_owned());
        let desk = Desk::new(&world);
        assert_eq!(
            desk.identify(&world.bearer()).unwrap_err(),
            CallerError::TenantNotAllowed.into()
        );
        assert_eq!(world.take_calls(), Vec::<String>::new());
    }

    /// A token of Microsoft Graph's has a signature that nobody else can verify.
    #[test]
    fn a_token_that_is_refused_whatever_its_signature_makes_no_call() {
        let world = World::new();
        let desk = Desk::new(&world);
        let graph = sign(
            &json!({"typ": "JWT", "alg": "RS256", "kid": "k2", "nonce": "n"}),
            &claims_with("aud", json!("00000003-0000-0000-c000-000000000000")),
        );
        let now = world.now.get();
        let token = |name: &str, value| sign(&header(), &claims_with(name, value));
        for (bearer, error) in [
            (graph, CallerError::from(TokenDefect::WrongAudience)),
            (token("exp", json!(now - 300)), TokenDefect::Expired.into()),
            (
                token("scp", json!("another")),
                CallerError::InsufficientScope("access_as_user".into()),
            ),
        ] {
            assert_eq!(desk.identify(&bearer).unwrap_err(), error.into());
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
        let desk = Desk::new(&world);
        for key in [SWEEP_KEY, previous] {
            assert_eq!(desk.sweep(&Bearer::new(key.into())), Ok(()));
        }
        for key in ["", "x", &SWEEP_KEY[1..]] {
            let error = desk.sweep(&Bearer::new(key.into())).unwrap_err();
            assert_eq!(error, CallerError::SweepNotAuthorized.into(), "{key}");
        }
        let user = desk.sweep(&world.bearer()).unwrap_err();
        assert_eq!(
            user,
            CallerError::InsufficientScope(SWEEP_ROLE.into()).into()
        );
    }
}
