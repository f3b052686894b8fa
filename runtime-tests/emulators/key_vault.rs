//! Azure Key Vault's data plane for secrets (<https://learn.microsoft.com/rest/api/keyvault/secrets/operation-groups>).

mod bundle;
mod error;
mod rights;
mod secrets;

use std::sync::{Arc, Mutex, MutexGuard};

use axum::extract::{self, Path, Query, Request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use super::bearer::bearer;
use super::entra::{Entra, KEY_VAULT};
use super::options::Options;
use super::random;
use bundle::{Origin, Page};
pub use error::SecretError;
use rights::Rights;
use secrets::{NewSecret, Properties, Secrets};

/// The vault and its secrets.
pub(crate) struct KeyVault {
    /// The vault's tenant.
    tenant: String,
    entra: Arc<Entra>,
    secrets: Mutex<Secrets>,
    rights: Mutex<Rights>,
}

impl KeyVault {
    pub(crate) fn new(options: &Options, entra: Arc<Entra>) -> Self {
        Self {
            tenant: options.key_vault_tenant.clone(),
            entra,
            secrets: Mutex::default(),
            rights: Mutex::default(),
        }
    }

    pub(crate) fn router(self: Arc<Self>) -> Router {
        let secret = || get(get_latest).put(set).patch(update_latest).delete(remove);
        Router::new()
            .route("/secrets", get(list))
            .route("/secrets/", get(list).put(without_name))
            .route("/secrets/{name}", secret())
            .route("/secrets/{name}/", secret())
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

    /// Sets a secret to 32 random bytes in base64, as a pipeline that rotates keys does.
    pub(crate) fn put_key(&self, name: &str) -> Result<String, SecretError> {
        self.put(name, &BASE64_STANDARD.encode(random::bytes(32)))
    }

    /// Lets an app do no more than this from now on: `get`, `set`, `update`, `list`, `delete`, `recover`, `purge`.
    pub(crate) fn permit(&self, client_id: &str, rights: &[&'static str]) {
        self.rights.lock().unwrap().permit(client_id, rights);
    }

    /// Turns purge protection on, which no vault turns off.
    pub(crate) fn protect(&self) {
        self.secrets().protect();
    }

    /// From when and until when the newest version is valid, in Unix seconds. What is none stays.
    pub(crate) fn set_validity(
        &self,
        name: &str,
        nbf: Option<i64>,
        exp: Option<i64>,
    ) -> Result<(), SecretError> {
        let validity = Properties::validity(nbf, exp);
        self.secrets().update(name, None, validity).map(|_| ())
    }

    /// Enables or disables a version (none: the newest).
    pub(crate) fn set_enabled(
        &self,
        name: &str,
        version: Option<&str>,
        enabled: bool,
    ) -> Result<(), SecretError> {
        let enabled = Properties::enabled(enabled);
        self.secrets().update(name, version, enabled).map(|_| ())
    }

    /// Deletes a secret, and does not come back before that is over.
    pub(crate) fn delete(&self, name: &str) -> Result<(), SecretError> {
        let mut secrets = self.secrets();
        secrets.delete(name)?;
        secrets.end_deletion(name);
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
        let (_, found) = secrets.version(name, Some(version)).ok()?;
        Some(found.value.clone())
    }

    /// The newest version, without its value.
    pub(crate) fn newest(&self, name: &str) -> Option<Value> {
        let secrets = self.secrets();
        let secret = secrets.secret(name).ok()?;
        Some(Origin::of(&HeaderMap::new()).newest(secret))
    }

    /// Every value that was ever set: for a search that must find none of them.
    pub(crate) fn values(&self) -> Vec<String> {
        self.secrets().values().cloned().collect()
    }

    fn secrets(&self) -> MutexGuard<'_, Secrets> {
        self.secrets.lock().unwrap()
    }

    /// Checks a bearer token. The order of the checks is the emulator's own, and so are the numbers of the first two errors
    /// about a token.
    fn authorize(&self, headers: &HeaderMap) -> Result<Value, &'static str> {
        let token = bearer(headers).ok_or("AKV10000: Request is missing a Bearer or PoP token.")?;
        let claims = self
            .entra
            .verify(token)
            .ok_or("AKV10046: Unable to resolve the key used for signature validation.")?;
        let now = Timestamp::now().as_second();
        if claims["exp"].as_i64().is_none_or(|exp| exp <= now) {
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
        if claims["iss"] != format!("https://sts.windows.net/{}/", self.tenant) {
            return Err(
                "AKV10032: Invalid issuer. Expected the issuer of the vault's tenant, found: another.",
            );
        }
        Ok(claims)
    }
}

impl KeyVault {
    /// Whether a request is let through.
    fn admits(&self, request: &Request) -> Result<(), Box<Response>> {
        let refused = |error: SecretError| Box::new(error.into_response());
        let claims = self
            .authorize(request.headers())
            .map_err(|message| Box::new(unauthorized(&self.tenant, message)))?;
        api_version(request.uri().query()).map_err(refused)?;
        let client = claims["appid"].as_str().unwrap_or_default();
        let rights = self.rights.lock().unwrap();
        rights
            .check(client, request.method(), request.uri().path())
            .map_err(refused)
    }
}

type Answer = Result<Json<Value>, SecretError>;
type Vault = extract::State<Arc<KeyVault>>;

/// Authentication, `api-version` and common headers.
async fn admit(extract::State(vault): Vault, request: Request, next: Next) -> Response {
    let client_request_id = request.headers().get("x-ms-client-request-id").cloned();
    let mut response = match vault.admits(&request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => *refusal,
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
    // Still the old name of the authority.
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
    Ok(Json(Origin::of(&headers).show(&name, &id, &version)))
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

/// 403 when disabled, the newest included; 200 when expired or not yet valid: Key Vault leaves both dates to the client.
fn read(vault: &KeyVault, headers: &HeaderMap, name: &str, version: Option<&str>) -> Answer {
    let mut secrets = vault.secrets();
    let name = match secrets.secret(name) {
        Ok(secret) => secret.name.clone(),
        Err(error) => {
            secrets.end_recovery(name);
            return Err(error);
        }
    };
    let (id, version) = secrets.version(&name, version)?;
    if !version.enabled {
        return Err(SecretError::disabled());
    }
    Ok(Json(Origin::of(headers).show(&name, &id, version)))
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

fn update(
    vault: &KeyVault,
    headers: &HeaderMap,
    name: &str,
    version: Option<&str>,
    body: &[u8],
) -> Answer {
    let to = serde_json::from_slice(body)
        .map_err(|_| SecretError::bad("The request body is not valid."))?;
    let mut secrets = vault.secrets();
    let (id, version) = secrets.update(name, version, to)?;
    Ok(Json(Origin::of(headers).describe(name, &id, version)))
}

async fn list(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Query(page): Query<Page>,
) -> Answer {
    let origin = Origin::of(&headers);
    let secrets = vault.secrets();
    let items = secrets
        .live()
        .filter_map(|(key, secret)| Some((key.clone(), origin.list(secret)?)));
    Ok(Json(page.cut(&origin, "/secrets", items)?))
}

/// An unknown name has no versions, and that is no error.
async fn versions(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Path(name): Path<String>,
    Query(page): Query<Page>,
) -> Answer {
    let origin = Origin::of(&headers);
    let secrets = vault.secrets();
    let items = secrets.secret(&name).into_iter().flat_map(|secret| {
        let describe = |(id, version)| {
            (
                String::clone(id),
                origin.describe(&secret.name, id, version),
            )
        };
        secret.versions.iter().map(describe)
    });
    Ok(Json(page.cut(
        &origin,
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
    Ok(Json(Origin::of(&headers).deleted(secrets.delete(&name)?)))
}

async fn list_deleted(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Query(page): Query<Page>,
) -> Answer {
    let origin = Origin::of(&headers);
    let secrets = vault.secrets();
    let items = secrets
        .all_deleted()
        .map(|(key, deleted)| (key.clone(), origin.deleted(deleted)));
    Ok(Json(page.cut(&origin, "/deletedsecrets", items)?))
}

async fn get_deleted(
    extract::State(vault): Vault,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Answer {
    let mut secrets = vault.secrets();
    if let Ok(deleted) = secrets.deleted(&name) {
        return Ok(Json(Origin::of(&headers).deleted(deleted)));
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
    Ok(Json(Origin::of(&headers).newest(secrets.recover(&name)?)))
}

async fn purge(
    extract::State(vault): Vault,
    Path(name): Path<String>,
) -> Result<StatusCode, SecretError> {
    vault.secrets().purge(&name)?;
    Ok(StatusCode::NO_CONTENT)
}
