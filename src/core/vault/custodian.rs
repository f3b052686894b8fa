//! What whoever operates the app does with tenants' keys: make versions, disable and enable them, delete a key.
//!
//! The app itself only reads keys, and its identity should be able to do no more. So none of this is a function of the vault's
//! interface: a command of the operator calls it, as an identity of its own.

mod answer;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header;
use http::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde_json::json;
use zeroize::Zeroizing;

use crate::deadline::{Deadline, LONGEST};
use crate::error::{OperatorError, UpstreamError, VaultError};
use crate::identity::{KeyVersion, SecretName, TenantId};
use crate::port::{Clock, SecretBody};
use crate::secret::AccessToken;
use crate::vault::clock_check::ClockCheck;
use crate::vault::context::{Context, Environment};
pub use crate::vault::custodian::answer::{CustodyError, Deleted, Right, Version};
use crate::vault::custodian::answer::{read_deleted, read_done, read_version};
use crate::vault::key_ring::KeyRing;
use crate::vault::key_ring::secret::{request, with_token};
use crate::vault::settings::Settings;
use crate::vault::token_client::TokenClient;

/// What a key's versions say that they hold (Key Vault's `contentType`, which nobody but people reads).
pub const CONTENT_TYPE: &str = "application/vnd.behalf.key";

/// For how long one thing is tried again when Key Vault or Entra ID asks to come back later. A throttled vault lets others in
/// after ten seconds, if those who throttle it stop.
const PATIENCE: Duration = Duration::from_mins(10);
/// For how long a deletion or a recovery is waited for, which takes some seconds.
const PATIENCE_WITH_CHANGES: Duration = Duration::from_mins(1);

/// Looks after tenants' keys.
pub struct Custodian<E> {
    env: E,
    settings: Rc<Settings>,
    clock_check: ClockCheck,
    token_client: TokenClient,
    key_ring: KeyRing,
    /// A token that somebody else got, in the place of one by the settings.
    given: RefCell<Option<Rc<AccessToken>>>,
}

/// What a new version carries besides its value.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// When it ends, in Unix seconds; none: never.
    pub expires_at: Option<u64>,
    /// Names and values, for people and their tools. A version takes none over from the one before.
    pub tags: BTreeMap<String, String>,
}

impl<E: Environment> Custodian<E> {
    /// One that goes by these settings.
    pub fn new(env: E, settings: Settings) -> Self {
        Self {
            env,
            settings: Rc::new(settings),
            clock_check: ClockCheck::default(),
            token_client: TokenClient::new(),
            key_ring: KeyRing::new(),
            given: RefCell::default(),
        }
    }

    /// Uses this token for Key Vault, and asks for none by the settings.
    pub fn use_token(&self, token: AccessToken) {
        self.given.replace(Some(Rc::new(token)));
    }

    /// The secret of a tenant's key.
    pub fn secret_name(&self, tenant: &TenantId) -> SecretName {
        self.settings.secret_id.secret_name(tenant)
    }

    /// Its clock.
    pub fn clock(&self) -> &impl Clock {
        &self.env
    }

    /// The settings that it goes by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether it can get a token for Key Vault. What that lets it do only Key Vault tells, when it is asked for it.
    ///
    /// # Errors
    /// [`CustodyError::Vault`].
    pub async fn check_credential(&self) -> Result<(), CustodyError> {
        if self.given.borrow().is_some() {
            return Ok(());
        }
        self.patiently(async |context| {
            let token = self.key_ring.token(context, &self.token_client, None);
            token.await.map(drop).map_err(Into::into)
        })
        .await
    }

    /// Makes a new version of a tenant's key, or its first: 32 random bytes. Permission: set. Nothing is read.
    ///
    /// If it fails the version may be there all the same, because only the answer was lost; nobody has sealed under it, and the
    /// next one takes its place.
    ///
    /// # Errors
    /// [`CustodyError`]; likewise of the functions below.
    pub async fn make_version(
        &self,
        tenant: &TenantId,
        marks: &Marks,
    ) -> Result<Version, CustodyError> {
        let secret = self.secret_name(tenant);
        let mut key = Zeroizing::new([0; 32]);
        self.env.fill(key.as_mut_slice());
        let value = Zeroizing::new(STANDARD.encode(key.as_slice()));
        let body = NewVersion {
            value: &value,
            content_type: CONTENT_TYPE,
            attributes: Attributes {
                enabled: true,
                exp: marks.expires_at,
            },
            tags: &marks.tags,
        };
        let path = format!("secrets/{}", secret.as_str());
        let response = self.ask(&Method::PUT, &path, &body, |response| {
            read_version(response, &secret, Right::Set)
        });
        response.await
    }

    /// Enables or disables a version of a tenant's key. Permission: update.
    pub async fn set_enabled(
        &self,
        tenant: &TenantId,
        version: &KeyVersion,
        enabled: bool,
    ) -> Result<Version, CustodyError> {
        let secret = self.secret_name(tenant);
        let path = format!("secrets/{}/{}", secret.as_str(), version.as_str());
        let body = json!({ "attributes": { "enabled": enabled } });
        self.ask(&Method::PATCH, &path, &body, |response| {
            read_version(response, &secret, Right::Update)
        })
        .await
    }

    /// Deletes a tenant's key, all versions of it; none: there is none. Permission: delete. Key Vault keeps it for a time, if it
    /// is not purged.
    pub async fn delete(&self, tenant: &TenantId) -> Result<Option<Deleted>, CustodyError> {
        let secret = self.secret_name(tenant);
        let path = format!("secrets/{}", secret.as_str());
        self.ask(&Method::DELETE, &path, &(), |response| {
            read_deleted(response, &secret, Right::Delete)
        })
        .await
    }

    /// A tenant's key that is deleted, and not purged; none: there is none, or its deletion is not over. Permission: get, of
    /// deleted secrets.
    pub async fn deleted(&self, tenant: &TenantId) -> Result<Option<Deleted>, CustodyError> {
        let secret = self.secret_name(tenant);
        let path = format!("deletedsecrets/{}", secret.as_str());
        self.ask(&Method::GET, &path, &(), |response| {
            read_deleted(response, &secret, Right::GetDeleted)
        })
        .await
    }

    /// Destroys a tenant's key that is deleted, for good. Permission: purge.
    pub async fn purge(&self, tenant: &TenantId) -> Result<(), CustodyError> {
        let secret = self.secret_name(tenant);
        let path = format!("deletedsecrets/{}", secret.as_str());
        self.ask(&Method::DELETE, &path, &(), |response| {
            read_done(response, &secret, Right::Purge)
        })
        .await
    }

    async fn ask<T>(
        &self,
        method: &Method,
        path: &str,
        body: &impl Serialize,
        read: impl Fn(&Response<SecretBody>) -> Result<T, CustodyError>,
    ) -> Result<T, CustodyError> {
        let body = written(body);
        self.patiently(async |context| read(&self.send(context, method, path, &body).await?))
            .await
    }

    async fn send(
        &self,
        context: &Context<'_, E>,
        method: &Method,
        path: &str,
        body: &SecretBody,
    ) -> Result<Response<SecretBody>, CustodyError> {
        let made = |token: &AccessToken| -> Result<Request<SecretBody>, http::Error> {
            let mut request = request(context, path).method(method.clone());
            if !body.is_empty() {
                request = request.header(header::CONTENT_TYPE, "application/json");
            }
            with_token(request, token)?.body(body.clone())
        };
        let given = self.given.borrow().clone();
        let Some(token) = given else {
            let exchange = self.key_ring.exchange(context, &self.token_client, made);
            return Ok(exchange.await?);
        };
        let request =
            made(&token).map_err(|_| VaultError::setting("key_vault_url", "makes no URL"))?;
        let response = self.key_ring.send(context, request).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(VaultError::from(OperatorError::KeyVaultRefused).into());
        }
        Ok(response)
    }

    /// Tries until the outcome stands, for as long as another system says that it will pass.
    async fn patiently<T>(
        &self,
        attempt: impl AsyncFn(&Context<'_, E>) -> Result<T, CustodyError>,
    ) -> Result<T, CustodyError> {
        let start = self.env.elapsed();
        loop {
            let settings = Rc::clone(&self.settings);
            let context = Context::new(&self.env, &self.clock_check, settings, LONGEST.into());
            let outcome = attempt(&context).await;
            let Some((what, seconds, patience)) = outcome.as_ref().err().and_then(passes) else {
                return outcome;
            };
            let wait = Duration::from_secs(seconds.max(1).into());
            if wait > Deadline::after(start, patience).left(&self.env) {
                return outcome;
            }
            context.log(json!({"event": "waiting", "for": what, "seconds": wait.as_secs()}));
            self.env.sleep(wait).await;
        }
    }
}

/// What passes by itself, in how many seconds it is worth another try, and for how long.
fn passes(error: &CustodyError) -> Option<(String, u32, Duration)> {
    /// Seconds between two looks whether a deletion or a recovery is over, as Microsoft's own clients wait.
    const LOOK: u32 = 2;
    match error {
        CustodyError::Vault(VaultError::Upstream(UpstreamError {
            system,
            retry_after_seconds,
            ..
        })) => Some((system.to_string(), (*retry_after_seconds)?, PATIENCE)),
        CustodyError::BeingChanged(name) => Some((name.clone(), LOOK, PATIENCE_WITH_CHANGES)),
        _ => None,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewVersion<'a> {
    value: &'a str,
    content_type: &'a str,
    attributes: Attributes,
    tags: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Attributes {
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
}

/// As JSON; nothing for nothing. In room that need not grow, since what is left behind then is not zeroized.
fn written(body: &impl Serialize) -> SecretBody {
    /// More than a value, and fifteen tags of 512 characters each with their names, can take.
    const ROOM: usize = 64 * 1024;
    let mut written = Zeroizing::new(Vec::with_capacity(ROOM));
    // Texts and numbers alone: it does not fail.
    let _ = serde_json::to_writer(&mut *written, body);
    if written.as_slice() == b"null" {
        written.clear();
    }
    written
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use pollster::block_on;
    use serde_json::Value;

    use super::*;
    use crate::simulation::world::{Shared, World};
    use crate::vault::samples::TENANT;

    const VERSION: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

    fn custodian(world: &Shared) -> (Custodian<Shared>, TenantId) {
        let settings = Settings::read(world).unwrap();
        let custodian = Custodian::new(Rc::clone(world), settings);
        (custodian, TenantId::parse(TENANT).unwrap())
    }

    fn answers(world: &World, answers: impl IntoIterator<Item = (u16, Value)>) {
        world.key_vault_answers.borrow_mut().extend(answers);
    }

    fn made() -> (u16, Value) {
        let id = format!("https://demo.vault.azure.net/secrets/obo-{TENANT}/{VERSION}");
        (
            200,
            json!({"id": id, "attributes": {"created": 7, "exp": 9, "enabled": true}}),
        )
    }

    fn being_changed() -> (u16, Value) {
        (
            409,
            json!({"error": {"code": "Conflict", "innererror": {"code": "ObjectIsBeingDeleted"}}}),
        )
    }

    fn questions(world: &World) -> usize {
        let calls = world.take_calls().into_iter();
        calls.filter(|call| call.starts_with("key vault")).count()
    }

    #[test]
    fn a_change_under_way_is_waited_for_but_not_for_ever() {
        let world = World::new();
        let (custodian, tenant) = custodian(&world);
        answers(&world, [being_changed(), being_changed(), made()]);
        let version = block_on(custodian.make_version(&tenant, &Marks::default())).unwrap();
        assert_eq!(
            (version.version.as_str(), version.created_at),
            (VERSION, Some(7))
        );
        assert_eq!(questions(&world), 3);
        assert_eq!(world.lines("waiting"), 2);

        answers(&world, std::iter::repeat_with(being_changed).take(100));
        let began = world.elapsed.get();
        let error = block_on(custodian.make_version(&tenant, &Marks::default())).unwrap_err();
        assert_eq!(error, CustodyError::BeingChanged(format!("obo-{TENANT}")));
        assert_eq!(world.elapsed.get(), began + PATIENCE_WITH_CHANGES);
    }

    #[test]
    fn an_outage_is_asked_once_more_and_a_refusal_not_at_all() {
        let world = World::new();
        let (custodian, tenant) = custodian(&world);
        answers(&world, [(503, json!({})), made()]);
        block_on(custodian.make_version(&tenant, &Marks::default())).unwrap();
        assert_eq!(questions(&world), 2);
        let refused =
            json!({"error": {"code": "Forbidden", "innererror": {"code": "ForbiddenByRbac"}}});
        answers(&world, [(403, refused)]);
        let error = block_on(custodian.make_version(&tenant, &Marks::default())).unwrap_err();
        assert_eq!(error, CustodyError::Forbidden(Right::Set));
        assert_eq!(questions(&world), 1);
    }

    #[test]
    fn a_token_that_is_given_is_used_and_no_other_is_asked_for() {
        let world = World::new();
        let (custodian, tenant) = custodian(&world);
        custodian.use_token(AccessToken::new("given".into()));
        block_on(custodian.check_credential()).unwrap();
        answers(&world, [made(), (401, json!({}))]);
        let version = KeyVersion::parse(VERSION).unwrap();
        block_on(custodian.set_enabled(&tenant, &version, false)).unwrap();
        let error = block_on(custodian.set_enabled(&tenant, &version, false)).unwrap_err();
        assert_eq!(
            error,
            VaultError::from(OperatorError::KeyVaultRefused).into()
        );
        let calls = world.take_calls();
        assert!(
            calls.iter().all(|call| call.starts_with("key vault")),
            "{calls:?}"
        );
    }

    /// No line, no error and no limit of a request has any of a key.
    #[test]
    fn every_key_is_another_and_none_is_in_a_line() {
        let world = World::new();
        let (custodian, tenant) = custodian(&world);
        let marks = Marks::default();
        for _ in 0..3 {
            answers(&world, [being_changed(), made()]);
            block_on(custodian.make_version(&tenant, &marks)).unwrap();
        }
        let bodies = world.key_vault_bodies.borrow();
        let values: std::collections::BTreeSet<_> = bodies
            .iter()
            .map(|body| {
                let body: Value = serde_json::from_slice(body).unwrap();
                body["value"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(
            (bodies.len(), values.len()),
            (6, 3),
            "the same key again, if it has to be sent again"
        );
        let log = world.log.borrow().concat();
        for value in &values {
            assert_eq!(STANDARD.decode(value).unwrap().len(), 32);
            assert!(!log.contains(value.as_str()));
        }
    }
}
