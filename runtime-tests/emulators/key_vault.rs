//! Azure Key Vault's data plane for secrets (facts §D).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::extract::{self, Path, Query, Request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Options;
use super::entra::{Entra, KEY_VAULT, now, random};
use super::journal::hex;

/// How real vaults' names end. They are behind the proxy, which speaks TLS.
const REAL: &str = ".vault.azure.net";

/// The vault and its secrets.
pub(crate) struct KeyVault {
    options: Options,
    entra: Arc<Entra>,
    secrets: Mutex<Secrets>,
}

impl KeyVault {
    pub(crate) fn new(options: Options, entra: Arc<Entra>) -> Self {
        Self {
            options,
            entra,
            secrets: Mutex::default(),
        }
    }

    pub(crate) fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/secrets", get(list))
            .route("/secrets/", get(list).put(without_name))
            .route(
                "/secrets/{name}",
                get(get_latest).put(set).patch(update_latest).delete(remove),
            )
            .route(
                "/secrets/{name}/",
                get(get_latest).put(set).patch(update_latest).delete(remove),
            )
            .route("/secrets/{name}/versions", get(versions))
            .route(
                "/secrets/{name}/{version}",
                get(get_version).patch(update_version),
            )
            .route("/deletedsecrets", get(list_deleted))
            .route("/deletedsecrets/{name}", get(get_deleted).delete(purge))
            .route("/deletedsecrets/{name}/recover", post(recover))
            .layer(middleware::from_fn_with_state(self.clone(), admit))
            .with_state(self)
    }

    /// Sets a secret as `PUT` does; returns the new version.
    pub(crate) fn put(&self, name: &str, value: &str) -> Result<String, SecretError> {
        let new = NewSecret {
            value: value.to_owned(),
            ..NewSecret::default()
        };
        Ok(self.secrets().set(name, new)?.0)
    }

    /// From when and until when the newest version is valid, in Unix seconds. What is none stays.
    pub(crate) fn set_validity(
        &self,
        name: &str,
        nbf: Option<i64>,
        exp: Option<i64>,
    ) -> Result<(), SecretError> {
        let mut secrets = self.secrets();
        let version = secrets.version_mut(name, None)?.1;
        version.not_before = nbf.or(version.not_before);
        version.expires = exp.or(version.expires);
        Ok(())
    }

    /// Sets a secret to 32 random bytes in base64, as the rotation pipeline does (facts §G.3).
    pub(crate) fn put_key(&self, name: &str) -> Result<String, SecretError> {
        self.put(name, &BASE64_STANDARD.encode(random(32)))
    }

    /// Enables or disables a version (none: the newest).
    pub(crate) fn set_enabled(
        &self,
        name: &str,
        version: Option<&str>,
        enabled: bool,
    ) -> Result<(), SecretError> {
        self.secrets().version_mut(name, version)?.1.enabled = enabled;
        Ok(())
    }

    /// Deletes a secret, and does not come back before that is over.
    pub(crate) fn delete(&self, name: &str) -> Result<(), SecretError> {
        self.secrets().delete(name)?.state = State::Deleted;
        Ok(())
    }

    /// Recovers a secret, and does not come back before that is over.
    pub(crate) fn recover(&self, name: &str) -> Result<(), SecretError> {
        let mut secrets = self.secrets();
        secrets.recover(name)?;
        secrets.end_recovery(name);
        Ok(())
    }

    /// The value of a version, whatever its state.
    pub(crate) fn value(&self, name: &str, version: &str) -> Option<String> {
        let mut secrets = self.secrets();
        let found = secrets.version_mut(name, Some(version)).ok()?;
        Some(found.1.value.clone())
    }

    /// Every value that was ever set: for a search that must find none of them.
    pub(crate) fn values(&self) -> Vec<String> {
        let secrets = self.secrets();
        let all = secrets
            .live
            .values()
            .chain(secrets.deleted.values().map(|deleted| &deleted.secret));
        all.flat_map(|secret| {
            secret
                .versions
                .values()
                .map(|version| version.value.clone())
        })
        .collect()
    }

    fn secrets(&self) -> MutexGuard<'_, Secrets> {
        self.secrets.lock().unwrap()
    }

    /// Checks a bearer token (facts §D.5): the order of the checks is the emulator's own.
    fn authorize(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| {
                let (scheme, token) = value.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then_some(token)
            });
        let token = token.ok_or("AKV10000: Request is missing a Bearer or PoP token.")?;
        // The numbers of these two are not in the facts.
        let claims = self
            .entra
            .verify(token)
            .ok_or("AKV10046: Unable to resolve the key used for signature validation.")?;
        if claims["exp"].as_i64().is_none_or(|exp| exp <= now()) {
            return Err("AKV10001: The token has expired.");
        }
        if ![KEY_VAULT, "cfa8b339-82a2-471a-a3c9-0fc0be7a4093"]
            .iter()
            .any(|audience| claims["aud"] == *audience)
        {
            return Err(
                "AKV10022: Invalid audience. Expected https://vault.azure.net, found: another.",
            );
        }
        if claims["iss"] != format!("https://sts.windows.net/{}/", self.options.key_vault_tenant) {
            return Err(
                "AKV10032: Invalid issuer. Expected the issuer of the vault's tenant, found: another.",
            );
        }
        Ok(())
    }
}

/// An error of the data plane (facts §D.4, §D.5).
#[derive(Debug)]
pub struct SecretError {
    status: StatusCode,
    code: &'static str,
    message: String,
    inner: Option<&'static str>,
}

impl std::fmt::Display for SecretError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.status, self.code, self.message)
    }
}

impl std::error::Error for SecretError {}

impl SecretError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            inner: None,
        }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadParameter", message)
    }

    fn not_found(id: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "SecretNotFound",
            format!(
                "A secret with (name/id) {id} was not found in this key vault. If you recently deleted this secret you \
                 may be able to recover it using the correct recovery command. For help resolving this issue, please \
                 see https://go.microsoft.com/fwlink/?linkid=2125182"
            ),
        )
    }

    fn deleted_not_found(name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "SecretNotFound",
            format!("Deleted Secret not found: {name}"),
        )
    }

    fn disabled() -> Self {
        Self {
            inner: Some("SecretDisabled"),
            ..Self::new(
                StatusCode::FORBIDDEN,
                "Forbidden",
                "Operation get is not allowed on a disabled secret.",
            )
        }
    }

    fn conflict(name: &str, state: State) -> Self {
        let (inner, now) = match state {
            State::BeingDeleted => ("ObjectIsBeingDeleted", "being deleted"),
            State::Deleted => (
                "ObjectIsDeletedButRecoverable",
                "in a deleted but recoverable state, and its name cannot be reused; in this state, the secret can only be \
                 recovered or purged",
            ),
            State::BeingRecovered => ("ObjectIsBeingRecovered", "being recovered"),
        };
        let message = format!("Secret {name} is currently {now}.");
        Self {
            inner: Some(inner),
            ..Self::new(StatusCode::CONFLICT, "Conflict", message)
        }
    }
}

impl IntoResponse for SecretError {
    fn into_response(self) -> Response {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let Some(inner) = self.inner {
            error["innererror"] = json!({ "code": inner });
        }
        (self.status, axum::Json(json!({ "error": error }))).into_response()
    }
}

#[derive(Default)]
struct Secrets {
    /// By lower-cased name.
    live: BTreeMap<String, Secret>,
    deleted: BTreeMap<String, Deleted>,
}

impl Secrets {
    fn set(&mut self, name: &str, new: NewSecret) -> Result<(String, Version), SecretError> {
        if !(1..=127).contains(&name.len())
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            return Err(SecretError::bad(format!(
                "The request URI contains an invalid name: {name}"
            )));
        }
        if new.value.len() > 25 * 1024 {
            return Err(SecretError::bad("Property  has invalid value\r\n"));
        }
        let id = name.to_ascii_lowercase();
        if let Some(deleted) = self.deleted.get(&id) {
            return Err(SecretError::conflict(name, deleted.state));
        }
        // Random, so that the order of versions says nothing about time (facts §D.3).
        let version_id = hex(&random(16));
        let now = now();
        let version = Version {
            value: new.value,
            content_type: new.content_type,
            tags: new.tags,
            enabled: new.attributes.enabled.unwrap_or(true),
            not_before: new.attributes.nbf,
            expires: new.attributes.exp,
            created: now,
            updated: now,
        };
        let secret = self.live.entry(id).or_insert_with(|| Secret {
            name: name.to_owned(),
            newest: String::new(),
            versions: BTreeMap::new(),
        });
        secret.newest.clone_from(&version_id);
        secret.versions.insert(version_id.clone(), version.clone());
        Ok((version_id, version))
    }

    fn secret(&self, name: &str) -> Result<&Secret, SecretError> {
        self.live
            .get(&name.to_ascii_lowercase())
            .ok_or_else(|| SecretError::not_found(name))
    }

    fn version(
        &self,
        name: &str,
        version: Option<&str>,
    ) -> Result<(String, String, &Version), SecretError> {
        let secret = self.secret(name)?;
        let id = version.unwrap_or(&secret.newest);
        let found = secret
            .versions
            .get(id)
            .ok_or_else(|| SecretError::not_found(&format!("{name}/{id}")))?;
        Ok((secret.name.clone(), id.to_owned(), found))
    }

    fn version_mut(
        &mut self,
        name: &str,
        version: Option<&str>,
    ) -> Result<(String, &mut Version), SecretError> {
        let (_, id, _) = self.version(name, version)?;
        let secret = self
            .live
            .get_mut(&name.to_ascii_lowercase())
            .ok_or_else(|| SecretError::not_found(name))?;
        let version = secret
            .versions
            .get_mut(&id)
            .ok_or_else(|| SecretError::not_found(name))?;
        version.updated = now();
        Ok((id, version))
    }

    fn delete(&mut self, name: &str) -> Result<&mut Deleted, SecretError> {
        let id = name.to_ascii_lowercase();
        let secret = self
            .live
            .remove(&id)
            .ok_or_else(|| SecretError::not_found(name))?;
        Ok(self.deleted.entry(id).or_insert(Deleted {
            secret,
            at: now(),
            state: State::BeingDeleted,
        }))
    }

    /// A secret whose deletion is over.
    fn deleted(&mut self, name: &str) -> Result<&mut Deleted, SecretError> {
        let deleted = self.deleted.get_mut(&name.to_ascii_lowercase());
        let deleted = deleted.ok_or_else(|| SecretError::deleted_not_found(name))?;
        match deleted.state {
            State::Deleted => Ok(deleted),
            State::BeingDeleted | State::BeingRecovered => {
                Err(SecretError::conflict(name, deleted.state))
            }
        }
    }

    fn recover(&mut self, name: &str) -> Result<&Secret, SecretError> {
        let deleted = self.deleted(name)?;
        deleted.state = State::BeingRecovered;
        Ok(&deleted.secret)
    }

    /// Ends a recovery that is under way. Real ones take about ten seconds, and so do deletions (facts §D.4); here both are
    /// over when somebody has looked for the outcome once, in vain.
    fn end_recovery(&mut self, name: &str) {
        let id = name.to_ascii_lowercase();
        let recovered = self
            .deleted
            .extract_if(.., |key, deleted| {
                *key == id && matches!(deleted.state, State::BeingRecovered)
            })
            .next();
        if let Some((id, recovered)) = recovered {
            self.live.insert(id, recovered.secret);
        }
    }

    /// Ends a deletion that is under way.
    fn end_deletion(&mut self, name: &str) {
        if let Some(deleted) = self.deleted.get_mut(&name.to_ascii_lowercase())
            && matches!(deleted.state, State::BeingDeleted)
        {
            deleted.state = State::Deleted;
        }
    }
}

struct Secret {
    name: String,
    newest: String,
    /// Ordered by id, as Key Vault lists them.
    versions: BTreeMap<String, Version>,
}

struct Deleted {
    secret: Secret,
    at: i64,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    BeingDeleted,
    Deleted,
    BeingRecovered,
}

#[derive(Clone)]
struct Version {
    value: String,
    content_type: Option<String>,
    tags: Option<Map<String, Value>>,
    enabled: bool,
    not_before: Option<i64>,
    expires: Option<i64>,
    created: i64,
    updated: i64,
}

impl Version {
    /// A bundle without its value.
    fn describe(&self, id: &str) -> Value {
        let mut bundle = json!({
            "id": id,
            "attributes": {
                "enabled": self.enabled, "created": self.created, "updated": self.updated,
                "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90,
            },
        });
        if let Some(time) = self.not_before {
            bundle["attributes"]["nbf"] = json!(time);
        }
        if let Some(time) = self.expires {
            bundle["attributes"]["exp"] = json!(time);
        }
        if let Some(content_type) = &self.content_type {
            bundle["contentType"] = json!(content_type);
        }
        if let Some(tags) = &self.tags {
            bundle["tags"] = json!(tags);
        }
        bundle
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewSecret {
    value: String,
    content_type: Option<String>,
    tags: Option<Map<String, Value>>,
    #[serde(default)]
    attributes: Attributes,
}

#[derive(Default, Deserialize)]
struct Attributes {
    enabled: Option<bool>,
    nbf: Option<i64>,
    exp: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Update {
    content_type: Option<String>,
    tags: Option<Map<String, Value>>,
    #[serde(default)]
    attributes: Attributes,
}

#[derive(Deserialize)]
struct Page {
    maxresults: Option<usize>,
    #[serde(rename = "$skiptoken")]
    skip: Option<String>,
    #[serde(rename = "api-version")]
    api_version: String,
}

impl Page {
    /// One page of `items`, which are ordered by key; `nextLink` starts behind the last one. Under the real name it has the
    /// port in it, which ids have not (facts §D.3).
    fn cut(
        &self,
        base: &str,
        path: &str,
        items: Vec<(String, Value)>,
    ) -> Result<Value, SecretError> {
        let size = self.maxresults.unwrap_or(25);
        if !(1..=25).contains(&size) {
            return Err(SecretError::bad("maxresults must be between 1 and 25"));
        }
        let mut rest = items
            .into_iter()
            .filter(|(key, _)| self.skip.as_ref().is_none_or(|skip| key > skip))
            .peekable();
        let mut last = String::new();
        let mut page = Vec::new();
        while page.len() < size
            && let Some((key, item)) = rest.next()
        {
            last = key;
            page.push(item);
        }
        let port = if base.ends_with(REAL) { ":443" } else { "" };
        let next = rest.peek().map(|_| {
            format!(
                "{base}{port}{path}?api-version={}&$skiptoken={last}&maxresults={size}",
                self.api_version
            )
        });
        Ok(json!({ "value": page, "nextLink": next }))
    }
}

type Answer = Result<axum::Json<Value>, SecretError>;
type Vault = extract::State<Arc<KeyVault>>;

/// Authentication, `api-version` and common headers.
async fn admit(extract::State(vault): Vault, request: Request, next: Next) -> Response {
    let client_request_id = request.headers().get("x-ms-client-request-id").cloned();
    let mut response = if let Err(message) = vault.authorize(request.headers()) {
        unauthorized(&vault.options.key_vault_tenant, message)
    } else if let Err(error) = api_version(request.uri().query()) {
        error.into_response()
    } else {
        next.run(request).await
    };
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        response = without_name(Method::PUT).await;
    }
    let headers = response.headers_mut();
    for (name, value) in [
        ("cache-control", "no-cache"),
        ("pragma", "no-cache"),
        ("x-ms-keyvault-region", "westeurope"),
        ("x-ms-keyvault-service-version", "1.9.2090.1"),
        (
            "x-ms-keyvault-network-info",
            "conn_type=Ipv4;addr=127.0.0.1;act_addr_fam=InterNetwork;",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let id = HeaderValue::from_str(&Uuid::new_v4().to_string()).expect("a header value");
    headers.insert("x-ms-request-id", id);
    if let Some(id) = client_request_id {
        headers.insert("x-ms-client-request-id", id);
    }
    response
}

fn unauthorized(tenant: &str, message: &str) -> Response {
    // Still the old name of the authority (facts §C, §D.6).
    let mut challenge = format!(
        "Bearer authorization=\"https://login.windows.net/{tenant}\", resource=\"https://vault.azure.net\""
    );
    if !message.starts_with("AKV10000") {
        challenge.insert_str("Bearer ".len(), "error=\"invalid_token\", ");
    }
    let error = SecretError::new(StatusCode::UNAUTHORIZED, "Unauthorized", message);
    ([(header::WWW_AUTHENTICATE, challenge)], error).into_response()
}

fn api_version(query: Option<&str>) -> Result<(), SecretError> {
    const KNOWN: [&str; 10] = [
        "2016-10-01",
        "7.0",
        "7.1",
        "7.2",
        "7.3",
        "7.4",
        "7.5",
        "7.6",
        "2025-07-01",
        "2026-04-01",
    ];
    let query = query.unwrap_or_default();
    let version =
        url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "api-version");
    match version {
        None => Err(SecretError::bad("api-version must be specified")),
        Some((_, version)) if KNOWN.contains(&version.as_ref()) => Ok(()),
        Some((_, version)) => Err(SecretError::bad(format!(
            "unsupported api-version: {version}"
        ))),
    }
}

async fn without_name(method: Method) -> Response {
    let message = format!("HTTP {method} not allowed");
    SecretError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message).into_response()
}

async fn set(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer {
    let new = serde_json::from_slice(&body)
        .map_err(|_| SecretError::bad("The request body is not a valid secret."))?;
    let (id, version) = vault.secrets().set(&name, new)?;
    let mut bundle = version.describe(&format!("{}/secrets/{name}/{id}", base(&headers)));
    bundle["value"] = json!(version.value);
    Ok(axum::Json(bundle))
}

async fn get_latest(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Answer {
    read(&vault, &headers, &name, None)
}

async fn get_version(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Path((name, version)): Path<(String, String)>,
) -> Answer {
    read(&vault, &headers, &name, Some(&version))
}

/// 403 when disabled, the newest included; 200 when expired or not yet valid (facts §D.4).
fn read(vault: &KeyVault, headers: &HeaderMap, name: &str, version: Option<&str>) -> Answer {
    let mut secrets = vault.secrets();
    if let Err(error) = secrets.secret(name) {
        secrets.end_recovery(name);
        return Err(error);
    }
    let (name, id, version) = secrets.version(name, version)?;
    if !version.enabled {
        return Err(SecretError::disabled());
    }
    let mut bundle = version.describe(&format!("{}/secrets/{name}/{id}", base(headers)));
    bundle["value"] = json!(version.value);
    Ok(axum::Json(bundle))
}

async fn update_latest(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer {
    update(&vault, &headers, &name, None, &body)
}

async fn update_version(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Path((name, version)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    update(&vault, &headers, &name, Some(&version), &body)
}

/// Fields that are absent stay; tags are replaced as a whole (facts §D.1, uncertain).
fn update(
    vault: &KeyVault,
    headers: &HeaderMap,
    name: &str,
    version: Option<&str>,
    body: &[u8],
) -> Answer {
    let update: Update = serde_json::from_slice(body)
        .map_err(|_| SecretError::bad("The request body is not valid."))?;
    let mut secrets = vault.secrets();
    let (id, version) = secrets.version_mut(name, version)?;
    if let Some(enabled) = update.attributes.enabled {
        version.enabled = enabled;
    }
    version.not_before = update.attributes.nbf.or(version.not_before);
    version.expires = update.attributes.exp.or(version.expires);
    version.content_type = update.content_type.or_else(|| version.content_type.take());
    version.tags = update.tags.or_else(|| version.tags.take());
    Ok(axum::Json(version.describe(&format!(
        "{}/secrets/{name}/{id}",
        base(headers)
    ))))
}

async fn list(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Query(page): Query<Page>,
) -> Answer {
    let base = base(&headers);
    let secrets = vault.secrets();
    let items = secrets.live.iter().filter_map(|(key, secret)| {
        let newest = secret.versions.get(&secret.newest)?;
        Some((
            key.clone(),
            newest.describe(&format!("{base}/secrets/{}", secret.name)),
        ))
    });
    Ok(axum::Json(page.cut(&base, "/secrets", items.collect())?))
}

/// An unknown name has no versions, and that is no error (facts §D.3).
async fn versions(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Path(name): Path<String>,
    Query(page): Query<Page>,
) -> Answer {
    let base = base(&headers);
    let secrets = vault.secrets();
    let items = secrets.secret(&name).map_or_else(
        |_| Vec::new(),
        |secret| {
            let describe = |id: &String, version: &Version| {
                version.describe(&format!("{base}/secrets/{}/{id}", secret.name))
            };
            secret
                .versions
                .iter()
                .map(|(id, version)| (id.clone(), describe(id, version)))
                .collect()
        },
    );
    Ok(axum::Json(page.cut(
        &base,
        &format!("/secrets/{name}/versions"),
        items,
    )?))
}

async fn remove(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Answer {
    let mut secrets = vault.secrets();
    let deleted = secrets.delete(&name)?;
    Ok(axum::Json(describe_deleted(&base(&headers), deleted)))
}

async fn list_deleted(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Query(page): Query<Page>,
) -> Answer {
    let base = base(&headers);
    let secrets = vault.secrets();
    let items = secrets
        .deleted
        .iter()
        .filter(|(_, deleted)| matches!(deleted.state, State::Deleted))
        .map(|(key, deleted)| (key.clone(), describe_deleted(&base, deleted)));
    Ok(axum::Json(page.cut(
        &base,
        "/deletedsecrets",
        items.collect(),
    )?))
}

async fn get_deleted(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Answer {
    let mut secrets = vault.secrets();
    if let Ok(deleted) = secrets.deleted(&name) {
        return Ok(axum::Json(describe_deleted(&base(&headers), deleted)));
    }
    secrets.end_deletion(&name);
    Err(SecretError::deleted_not_found(&name))
}

async fn recover(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Answer {
    let mut secrets = vault.secrets();
    let secret = secrets.recover(&name)?;
    let id = format!(
        "{}/secrets/{}/{}",
        base(&headers),
        secret.name,
        secret.newest
    );
    let version = secret.versions.get(&secret.newest);
    Ok(axum::Json(version.map_or_else(
        || json!({}),
        |version| version.describe(&id),
    )))
}

async fn purge(
    extract::State(vault): Vault,
    Path(name): Path<String>,
) -> Result<StatusCode, SecretError> {
    let mut secrets = vault.secrets();
    secrets.deleted(&name)?;
    secrets.deleted.remove(&name.to_ascii_lowercase());
    Ok(StatusCode::NO_CONTENT)
}

fn describe_deleted(base: &str, deleted: &Deleted) -> Value {
    let Deleted { secret, at, .. } = deleted;
    let id = format!("{base}/secrets/{}/{}", secret.name, secret.newest);
    let mut bundle = secret
        .versions
        .get(&secret.newest)
        .map_or_else(|| json!({}), |version| version.describe(&id));
    bundle["recoveryId"] = json!(format!("{base}/deletedsecrets/{}", secret.name));
    bundle["deletedDate"] = json!(at);
    bundle["scheduledPurgeDate"] = json!(at + 90 * 24 * 3600);
    bundle
}

/// The vault's origin, as the client knows it.
fn base(headers: &HeaderMap) -> String {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or("localhost");
    let scheme = if host.ends_with(REAL) {
        "https"
    } else {
        "http"
    };
    format!("{scheme}://{host}")
}
