//! A world for native tests: storage, a clock, randomness, and as much of Entra ID and Key Vault as the tests look at.
//! The real protocols are the business of `runtime-tests`, whose emulators share no code with this.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Request, Response};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::ledger::StoreError;
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::store::{Page, Store};
use crate::port::{
    Background, Clock, Config, ConfigError, Http, HttpError, Limits, Log, Random, SecretBody, Timer,
};
use crate::secret::Bearer;
use crate::simulation::called::CalledApi;
use crate::vault::samples::{NOW, TENANT, USER, Values, claims, jwks_of, least, sign};
use crate::{Keeper, Vault};

/// Grants of the app that callers' tokens are from, for everything at one resource.
pub(crate) const GRANTS: &str = r#"[
    {"client": "33333333-3333-3333-3333-333333333333", "callers": "delegated", "resource": "https://graph.microsoft.com", "scopes": ["*"]},
    {"client": "33333333-3333-3333-3333-333333333333", "callers": "app", "tenants": ["*"], "resource": "https://graph.microsoft.com", "scopes": ["*"]}
]"#;
pub(crate) const SWEEP_KEY: &str = "sweep-key-canary-0123456789-0123456789";

/// Everything outside.
pub(crate) struct World {
    pub(crate) now: Cell<u64>,
    pub(crate) settings: RefCell<Values>,
    /// Whether the host cannot tell any setting.
    pub(crate) settings_are_down: Cell<bool>,
    pub(crate) rows: RefCell<BTreeMap<String, Vec<u8>>>,
    pub(crate) log: RefCell<Vec<String>>,
    /// `entra <grant>`, `keys`, `key vault <version or empty>`, `identity <resource>`, in order.
    pub(crate) calls: RefCell<Vec<String>>,
    /// What Entra ID and Key Vault were told to know the calls by, in order: header and value.
    pub(crate) request_ids: RefCell<Vec<(&'static str, String)>>,
    /// The limits of these calls.
    pub(crate) limits: RefCell<Vec<Limits>>,
    /// Refresh tokens that were redeemed, in order.
    pub(crate) redeemed: RefCell<Vec<String>>,
    /// Answers that the token endpoint gives to grants of users before it behaves again.
    pub(crate) entra_answers: RefCell<VecDeque<(u16, Value)>>,
    /// Answers that it gives to this app's own requests before it behaves again.
    pub(crate) app_answers: RefCell<VecDeque<(u16, Value)>>,
    /// How this app proved who it is at the token endpoint, in order: its secret, or its assertion.
    pub(crate) proofs: RefCell<Vec<String>>,
    /// Claims that grants of users asked for, in order.
    pub(crate) claims: RefCell<Vec<String>>,
    /// Answers that the managed identity endpoint gives before it behaves again.
    pub(crate) identity_answers: RefCell<VecDeque<(u16, Value)>>,
    /// Answers that come for the signing keys before they come again.
    pub(crate) signing_keys_answers: RefCell<VecDeque<(u16, Value)>>,
    /// What Key Vault was sent, in order, if it was anything.
    pub(crate) key_vault_bodies: RefCell<Vec<Vec<u8>>>,
    /// Answers that Key Vault gives before it behaves again.
    pub(crate) key_vault_answers: RefCell<VecDeque<(u16, Value)>>,
    /// Systems that do not answer.
    pub(crate) down: RefCell<Vec<&'static str>>,
    /// Versions of the tenant's key; the last is the newest.
    pub(crate) keys: RefCell<Vec<[u8; 32]>>,
    /// When the tenant's key expires; none: never.
    pub(crate) key_expires: Cell<Option<u64>>,
    /// The version of the tenant's key that is disabled.
    pub(crate) disabled: Cell<Option<usize>>,
    /// Keys that storage was asked for, in order, with what was done.
    pub(crate) operations: RefCell<Vec<String>>,
    /// Storage operations until one fails; none: none does.
    pub(crate) store_fails_after: Cell<Option<u32>>,
    /// Runs before the storage operation with this number, counted down.
    pub(crate) before_store: RefCell<Option<(u32, Box<dyn FnOnce(&World)>)>>,
    pub(crate) elapsed: Cell<Duration>,
    /// Whether requests take a turn, in which others are sent.
    pub(crate) slow: Cell<bool>,
    /// `entra` or `key vault`, and the tenant of which its answers wait for as long as this is set.
    pub(crate) held: RefCell<Option<(&'static str, String)>>,
    /// The key that Entra ID signs with, and the only one that it publishes.
    pub(crate) signing_key: Cell<&'static str>,
    /// The header `Retry-After` of every answer.
    pub(crate) retry_after: Cell<Option<u32>>,
    /// The tenant that Key Vault is in.
    pub(crate) key_vault_in: RefCell<String>,
    /// What Key Vault's challenges say besides.
    pub(crate) challenge: RefCell<String>,
    /// How far the clocks of others are ahead, in seconds.
    pub(crate) others_ahead: Cell<u64>,
    /// Keys on a page of a listing; none: all are on one. 0: there is no end of pages.
    pub(crate) page: Cell<Option<usize>>,
    /// Whether answers have a date.
    pub(crate) dated: Cell<bool>,
    /// Keys that begin so cannot be written.
    pub(crate) refused: RefCell<Option<&'static str>>,
    /// Listings of keys.
    pub(crate) listings: Cell<u32>,
    /// The API that is called on users' behalf.
    pub(crate) api: CalledApi,
    counter: Cell<u64>,
    tokens: Cell<u64>,
}

/// A world, as the ports take it.
pub(crate) type Shared = Rc<World>;

/// The app, with its caches.
pub(crate) type App = Keeper<Vault<Shared>, KeyValueLedger<Shared, Shared>, Shared>;

impl World {
    pub(crate) fn new() -> Shared {
        let mut settings = least();
        settings.insert("sweep_key", SWEEP_KEY.to_owned());
        settings.insert("grants", GRANTS.to_owned());
        Rc::new(Self {
            now: NOW.into(),
            settings: settings.into(),
            settings_are_down: Cell::default(),
            rows: RefCell::default(),
            log: RefCell::default(),
            calls: RefCell::default(),
            request_ids: RefCell::default(),
            limits: RefCell::default(),
            redeemed: RefCell::default(),
            entra_answers: RefCell::default(),
            app_answers: RefCell::default(),
            proofs: RefCell::default(),
            claims: RefCell::default(),
            identity_answers: RefCell::default(),
            signing_keys_answers: RefCell::default(),
            key_vault_bodies: RefCell::default(),
            key_vault_answers: RefCell::default(),
            down: RefCell::default(),
            keys: vec![[7; 32]].into(),
            key_expires: Cell::default(),
            disabled: Cell::default(),
            operations: RefCell::default(),
            store_fails_after: Cell::default(),
            before_store: RefCell::default(),
            elapsed: Cell::default(),
            slow: Cell::default(),
            held: RefCell::default(),
            signing_key: Cell::new("k1"),
            retry_after: Cell::default(),
            key_vault_in: TENANT.to_owned().into(),
            challenge: RefCell::default(),
            others_ahead: Cell::default(),
            page: Cell::default(),
            dated: Cell::new(true),
            refused: RefCell::default(),
            listings: Cell::default(),
            api: CalledApi::default(),
            counter: Cell::default(),
            tokens: Cell::default(),
        })
    }

    /// A new instance of the app: nothing cached.
    pub(crate) fn app(self: &Rc<Self>) -> App {
        Keeper::new(
            Vault::new(Rc::clone(self)),
            KeyValueLedger::new(Rc::clone(self), Rc::clone(self)),
            Rc::clone(self),
        )
    }

    /// Time passes, on every clock.
    pub(crate) fn advance(&self, seconds: u64) {
        self.now.set(self.now.get() + seconds);
        self.elapsed
            .set(self.elapsed.get() + Duration::from_secs(seconds));
    }

    pub(crate) fn rotate(&self) {
        let first = u8::try_from(self.keys.borrow().len()).unwrap();
        self.keys.borrow_mut().push([first + 100; 32]);
    }

    /// Version of the n-th key, from 0.
    pub(crate) fn version(index: usize) -> String {
        format!("{index:032x}")
    }

    /// A caller's token of a user, valid now.
    pub(crate) fn bearer_of(&self, object: &str) -> Bearer {
        self.bearer_in(TENANT, object)
    }

    pub(crate) fn bearer_in(&self, tenant: &str, object: &str) -> Bearer {
        let mut claims = claims();
        claims["tid"] = json!(tenant);
        claims["iss"] = json!(format!("https://login.microsoftonline.com/{tenant}/v2.0"));
        claims["oid"] = json!(object);
        claims["nbf"] = json!(self.now.get());
        claims["exp"] = json!(self.now.get() + 3900);
        let kid = self.signing_key.get();
        sign(&json!({"typ": "JWT", "alg": "RS256", "kid": kid}), &claims)
    }

    /// An app's own token with a role, valid now.
    pub(crate) fn app_bearer(&self, tenant: &str, role: &str) -> Bearer {
        let mut claims = claims();
        claims["tid"] = json!(tenant);
        claims["iss"] = json!(format!("https://login.microsoftonline.com/{tenant}/v2.0"));
        claims["nbf"] = json!(self.now.get());
        claims["exp"] = json!(self.now.get() + 3900);
        claims["scp"].take();
        claims["oid"] = json!("66666666-6666-6666-6666-666666666666");
        claims["sub"] = claims["oid"].clone();
        claims["roles"] = json!([role]);
        let kid = self.signing_key.get();
        sign(&json!({"typ": "JWT", "alg": "RS256", "kid": kid}), &claims)
    }

    pub(crate) fn bearer(&self) -> Bearer {
        self.bearer_of(USER)
    }

    /// Takes the calls made since the last time.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.borrow_mut())
    }

    /// Lines of the log that have this event.
    pub(crate) fn lines(&self, event: &str) -> usize {
        let event = format!(r#""event":"{event}""#);
        let log = self.log.borrow();
        log.iter().filter(|line| line.contains(&event)).count()
    }

    /// Keys of storage that begin so.
    pub(crate) fn keys_of(&self, kind: &str) -> Vec<String> {
        self.rows
            .borrow()
            .keys()
            .filter(|key| key.starts_with(kind))
            .cloned()
            .collect()
    }

    /// What is stored, without what sweeps remember.
    pub(crate) fn user_rows(&self) -> BTreeMap<String, Vec<u8>> {
        let mut rows = self.rows.borrow().clone();
        let of_all = ["sweep.", "ver.", "sum.", "settings."];
        rows.retain(|key, _| !of_all.iter().any(|kind| key.starts_with(kind)));
        rows
    }

    fn next(&self) -> u64 {
        self.counter.set(self.counter.get() + 1);
        self.counter.get()
    }

    fn next_token(&self) -> u64 {
        self.tokens.set(self.tokens.get() + 1);
        self.tokens.get()
    }

    fn store_operation(&self) -> Result<(), StoreError> {
        let due = {
            let mut before = self.before_store.borrow_mut();
            match before.as_mut() {
                Some((0, _)) => before.take(),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        if let Some((_, run)) = due {
            run(self);
        }
        match self.store_fails_after.get() {
            Some(0) => Err(StoreError("injected".into())),
            Some(left) => {
                self.store_fails_after.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn token_endpoint(&self, request: &Request<SecretBody>) -> (u16, Value) {
        let form: BTreeMap<_, _> = url::form_urlencoded::parse(request.body())
            .into_owned()
            .collect();
        let grant = form["grant_type"].rsplit(':').next().unwrap();
        // What was asked for with the app's own token.
        let claims = form
            .get("claims")
            .filter(|_| grant == "client_credentials")
            .map(|claims| format!(" {claims}"))
            .unwrap_or_default();
        self.calls
            .borrow_mut()
            .push(format!("entra {grant}{claims}"));
        let proof = form.get("client_secret").or(form.get("client_assertion"));
        self.proofs.borrow_mut().push(proof.unwrap().clone());
        if grant == "client_credentials" {
            let tenant = request.uri().path().split('/').nth(1).unwrap();
            if let Some(answer) = self.app_answers.borrow_mut().pop_front() {
                return answer;
            }
            return (
                200,
                json!({"token_type": "Bearer", "expires_in": 3599, "access_token": format!("key-vault-at-canary-{tenant}")}),
            );
        }
        self.claims.borrow_mut().extend(form.get("claims").cloned());
        if let Some(token) = form.get("refresh_token") {
            self.redeemed.borrow_mut().push(token.clone());
        }
        if let Some(answer) = self.entra_answers.borrow_mut().pop_front() {
            return answer;
        }
        let number = self.next_token();
        (
            200,
            json!({
                "token_type": "Bearer", "expires_in": 3599, "scope": form["scope"],
                "access_token": format!("at-canary-{number}"), "refresh_token": format!("rt-canary-{number}"),
            }),
        )
    }

    fn identity(&self, request: &Request<SecretBody>) -> (u16, Value) {
        assert_eq!(request.headers()["metadata"], "true");
        let query = request.uri().query().unwrap().as_bytes();
        let query: BTreeMap<_, _> = url::form_urlencoded::parse(query).into_owned().collect();
        self.calls
            .borrow_mut()
            .push(format!("identity {}", query["resource"]));
        if let Some(answer) = self.identity_answers.borrow_mut().pop_front() {
            return answer;
        }
        let number = self.next();
        (
            200,
            json!({"access_token": format!("identity-canary-{number}"), "expires_in": "86399", "token_type": "Bearer"}),
        )
    }

    fn key_vault(&self, request: &Request<SecretBody>) -> (u16, Value) {
        let (name, version) = request.uri().path().rsplit_once('/').unwrap();
        let Some(authorization) = request.headers().get("authorization") else {
            return (401, json!({}));
        };
        self.calls.borrow_mut().push(format!("key vault {version}"));
        if !request.body().is_empty() {
            let body = request.body().to_vec();
            self.key_vault_bodies.borrow_mut().push(body);
        }
        let authorization = authorization.to_str().unwrap();
        let is_ours = authorization.starts_with("Bearer key-vault-at");
        if is_ours && !authorization.ends_with(self.key_vault_in.borrow().as_str()) {
            let message = "AKV10032: Invalid issuer.";
            return (
                401,
                json!({"error": {"code": "Unauthorized", "message": message}}),
            );
        }
        if let Some(answer) = self.key_vault_answers.borrow_mut().pop_front() {
            return answer;
        }
        let keys = self.keys.borrow();
        let index = match version {
            "" => keys.len().checked_sub(1),
            version => usize::from_str_radix(version, 16)
                .ok()
                .filter(|index| *index < keys.len()),
        };
        match index {
            Some(index) if self.disabled.get() == Some(index) => (
                403,
                json!({"error": {"code": "Forbidden", "message": "m", "innererror": {"code": "SecretDisabled"}}}),
            ),
            Some(index) => (
                200,
                json!({
                    "value": STANDARD.encode(keys[index]),
                    "id": format!("https://demo.vault.azure.net{name}/{}", Self::version(index)),
                    "attributes": {"enabled": true, "created": NOW + u64::try_from(index).unwrap(), "exp": self.key_expires.get()},
                }),
            ),
            None => (
                404,
                json!({"error": {"code": "SecretNotFound", "message": "m"}}),
            ),
        }
    }
}

impl Http for Shared {
    async fn send(
        &self,
        request: Request<SecretBody>,
        limits: Limits,
    ) -> Result<Response<SecretBody>, HttpError> {
        self.limits.borrow_mut().push(limits);
        for name in ["client-request-id", "x-ms-client-request-id"] {
            if let Some(id) = request.headers().get(name) {
                let id = id.to_str().unwrap().to_owned();
                self.request_ids.borrow_mut().push((name, id));
            }
        }
        let host = request.uri().host().unwrap().to_owned();
        let (system, path) = match host.as_str() {
            "login.microsoftonline.com" if request.uri().path().ends_with("/token") => {
                ("entra", "token")
            }
            "login.microsoftonline.com" => ("keys", "keys"),
            "169.254.169.254" => ("identity", "identity"),
            _ => ("key vault", "secret"),
        };
        if self.down.borrow().contains(&system) {
            return Err(HttpError::Unreachable);
        }
        if self.slow.get() {
            turn().await;
        }
        let is_held = |(of, tenant): &(&str, String)| {
            system == *of && request.uri().path().contains(tenant.as_str())
        };
        while self.held.borrow().as_ref().is_some_and(is_held) {
            turn().await;
        }
        let (status, body) = match path {
            "identity" => self.identity(&request),
            "token" => self.token_endpoint(&request),
            "keys" => {
                self.calls.borrow_mut().push("keys".into());
                let template = json!("https://login.microsoftonline.com/{tenantid}/v2.0");
                let document = jwks_of(self.signing_key.get(), template);
                let answer = self.signing_keys_answers.borrow_mut().pop_front();
                answer.unwrap_or_else(|| (200, serde_json::from_slice(&document).unwrap()))
            }
            _ => self.key_vault(&request),
        };
        let now = UNIX_EPOCH + Duration::from_secs(self.now.get() + self.others_ahead.get());
        let mut response = Response::builder().status(status);
        if let Some(seconds) = self.retry_after.get() {
            response = response.header("retry-after", seconds);
        }
        if self.dated.get() {
            response = response.header("date", httpdate::fmt_http_date(now));
        }
        Ok(response
            .header(
                "www-authenticate",
                format!(
                    r#"Bearer authorization="https://login.windows.net/{}", resource="https://vault.azure.net"{}"#,
                    self.key_vault_in.borrow(),
                    self.challenge.borrow()
                ),
            )
            .body(Zeroizing::new(body.to_string().into_bytes()))
            .unwrap())
    }
}

/// Comes back to the other futures once.
pub(crate) async fn turn() {
    let mut waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Store for Shared {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.operations.borrow_mut().push(format!("get {key}"));
        self.store_operation()?;
        Ok(self.rows.borrow().get(key).cloned())
    }

    async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.operations.borrow_mut().push(format!("set {key}"));
        self.store_operation()?;
        let refused = *self.refused.borrow();
        if refused.is_some_and(|refused| key.starts_with(refused)) {
            return Err(StoreError("injected".into()));
        }
        self.rows.borrow_mut().insert(key.into(), value.into());
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.operations.borrow_mut().push(format!("delete {key}"));
        self.store_operation()?;
        self.rows.borrow_mut().remove(key);
        Ok(())
    }

    async fn list_keys(&self, cursor: Option<&str>) -> Result<Page, StoreError> {
        self.store_operation()?;
        if cursor.is_none() {
            self.listings.set(self.listings.get() + 1);
        }
        let rows = self.rows.borrow();
        let mut keys = rows
            .keys()
            .filter(|key| Some(key.as_str()) > cursor)
            .cloned();
        let Some(length) = self.page.get() else {
            let cursor = None;
            return Ok(Page {
                keys: keys.collect(),
                cursor,
            });
        };
        let keys: Vec<_> = keys.by_ref().take(length).collect();
        // The last page is empty, unless there is none.
        let cursor = match length {
            0 => Some("again".to_owned()),
            _ => keys.last().cloned(),
        };
        Ok(Page { keys, cursor })
    }
}

impl Clock for Shared {
    fn now(&self) -> u64 {
        self.now.get()
    }
}

impl Timer for Shared {
    fn elapsed(&self) -> Duration {
        self.elapsed.get()
    }

    /// Over when everything else has had a turn for every millisecond.
    async fn sleep(&self, duration: Duration) {
        let until = self.elapsed.get() + duration;
        for _ in 0..duration.as_millis() {
            turn().await;
        }
        self.elapsed.set(self.elapsed.get().max(until));
    }
}

impl Random for Shared {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let number = self
                .next()
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
}

impl Config for Shared {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        if self.settings_are_down.get() {
            return Err(ConfigError);
        }
        Ok(self.settings.borrow().get(name).cloned())
    }
}

impl Background for Shared {
    /// Nothing goes on beside a call here; it does in [`crate::simulation::rounds`].
    fn begin(&self, _: impl Future<Output = ()> + 'static) {}
}

impl Log for Shared {
    fn line(&self, line: &str) {
        self.log.borrow_mut().push(line.into());
    }
}
