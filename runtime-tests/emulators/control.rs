//! The control port: everything that a handle of the emulators does, as JSON over HTTP.
//!
//! | | |
//! |---|---|
//! | `GET /` | addresses, tenants, ids |
//! | `GET /demo/authorization` | `Authorization: Bearer …`, a fresh token of the demo user: for `curl -H "$(curl -s …)"` |
//! | `GET /demo/job-authorization` | the same of the background job: its own token, with the role `Behalf.Act` |
//! | `GET /demo/admin-authorization` | the same with the role `Behalf.Admin` |
//! | `GET /demo/sweep-authorization` | the same with the sweep key |
//! | `GET /demo/operator-secret` | the client secret of the application that operators' commands are |
//! | `POST /tokens` | mints a caller's token: `{"tenant", "user", "version", "roles", "claims", "signature"}`, all optional → `{"token"}` |
//! | `GET /credentials` | the app's client secrets and certificates, without the secrets → `[{"id", "kind"}]`, oldest first |
//! | `POST /credentials` | `{}`: a new client secret → `{"id", "secret"}`; `{"certificate"}`: that one, in PEM → `{"id"}` |
//! | `DELETE /credentials/{id}` | |
//! | `POST /tenants/{tenant}/rotate-key` | a new version of the tenant's encryption key → `{"version"}` |
//! | `PUT /secrets/{name}` | `{"value"}` → `{"version"}` |
//! | `PATCH /secrets/{name}` | `{"enabled", "version"?}` |
//! | `DELETE /secrets/{name}`, `POST /secrets/{name}/recover` | |
//! | `POST /users/{tenant}/{user}/revoke` | revokes the user's sessions |
//! | `PATCH /users/{tenant}/{user}` | `{"enabled"}` |
//! | `POST /signing-keys/rotate` | Entra ID signs with a new key |
//! | `PUT /loops` | `{"refused"}`: whether AADSTS50196 answers identical requests of a user from the 16th in 5 minutes on |
//! | `POST /loops/pass` | `{"seconds"}`: lets time pass on the clock that these minutes are taken from |
//! | `POST /faults`, `DELETE /faults` | adds a [`Fault`], forgets all |
//! | `GET /journal`, `DELETE /journal` | |

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::entra::Mint;
use super::fault::Fault;
use super::journal::Entry;
use super::key_vault::SecretError;
use super::options::key_name;
use super::signing::Signature;
use super::world::World;

pub(super) fn router(world: Arc<World>, urls: [(&'static str, String); 3]) -> Router {
    let index = index(&world, urls);
    Router::new()
        .route("/", get(async move || Json(index.clone())))
        .route("/demo/authorization", get(demo_authorization))
        .route("/demo/job-authorization", get(job_authorization))
        .route("/demo/admin-authorization", get(admin_authorization))
        .route("/demo/sweep-authorization", get(sweep_authorization))
        .route("/demo/operator-secret", get(operator_secret))
        .route("/tokens", post(mint))
        .route("/credentials", get(credentials).post(add_credential))
        .route("/credentials/{id}", delete(remove_credential))
        .route("/tenants/{tenant}/rotate-key", post(rotate_key))
        .route(
            "/secrets/{name}",
            put(put_secret).patch(enable_secret).delete(delete_secret),
        )
        .route("/secrets/{name}/recover", post(recover_secret))
        .route("/users/{tenant}/{user}", axum::routing::patch(enable_user))
        .route("/users/{tenant}/{user}/revoke", post(revoke))
        .route("/signing-keys/rotate", post(rotate_signing_keys))
        .route("/loops", put(refuse_loops))
        .route("/loops/pass", post(pass))
        .route("/faults", post(add_fault).delete(clear_faults))
        .route("/journal", get(journal).delete(clear_journal))
        .with_state(world)
}

type Shared = State<Arc<World>>;

fn index(world: &World, urls: [(&str, String); 3]) -> Value {
    let urls: Map<String, Value> = urls
        .into_iter()
        .map(|(name, url)| (name.to_owned(), json!(url)))
        .collect();
    let options = &world.options;
    json!({ "urls": urls, "tenants": options.tenants, "client_id": options.client_id, "operator_id": options.operator_id, "demo_user": options.demo_user })
}

async fn demo_authorization(State(world): Shared) -> String {
    authorization(&world, None)
}

async fn job_authorization(State(world): Shared) -> String {
    authorization(&world, Some("Behalf.Act"))
}

async fn admin_authorization(State(world): Shared) -> String {
    authorization(&world, Some("Behalf.Admin"))
}

fn authorization(world: &World, role: Option<&str>) -> String {
    let mint = Mint {
        roles: role.map(|role| vec![role.to_owned()]),
        ..world.mint()
    };
    format!("Authorization: Bearer {}\n", world.entra.mint(&mint))
}

async fn sweep_authorization(State(world): Shared) -> String {
    format!("Authorization: Bearer {}\n", world.options.sweep_key)
}

async fn operator_secret(State(world): Shared) -> String {
    format!("{}\n", world.options.operator_secret)
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MintRequest {
    tenant: Option<String>,
    user: Option<String>,
    version: u8,
    roles: Option<Vec<String>>,
    claims: Map<String, Value>,
    signature: Signature,
}

impl Default for MintRequest {
    fn default() -> Self {
        Self {
            tenant: None,
            user: None,
            version: 2,
            roles: None,
            claims: Map::new(),
            signature: Signature::Good,
        }
    }
}

async fn mint(State(world): Shared, Json(request): Json<MintRequest>) -> Response {
    let demo = world.mint();
    let mint = Mint {
        tenant: request.tenant.unwrap_or(demo.tenant),
        user: request.user,
        version: request.version,
        roles: request.roles,
        claims: request.claims,
        signature: request.signature,
    };
    (
        [(header::CACHE_CONTROL, "no-store")],
        Json(json!({ "token": world.entra.mint(&mint) })),
    )
        .into_response()
}

async fn credentials(State(world): Shared) -> Json<Value> {
    Json(world.entra.credentials())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewCredential {
    certificate: Option<String>,
}

async fn add_credential(State(world): Shared, Json(new): Json<NewCredential>) -> Response {
    let Some(certificate) = new.certificate else {
        let (id, secret) = world.entra.add_secret();
        return Json(json!({ "id": id, "secret": secret })).into_response();
    };
    match world.entra.add_certificate(&certificate) {
        Some(id) => Json(json!({ "id": id })).into_response(),
        None => StatusCode::BAD_REQUEST.into_response(),
    }
}

async fn remove_credential(State(world): Shared, Path(id): Path<String>) -> StatusCode {
    if world.entra.remove_credential(&id) {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    }
}

async fn rotate_key(
    State(world): Shared,
    Path(tenant): Path<String>,
) -> Result<Json<Value>, SecretError> {
    Ok(Json(
        json!({ "name": key_name(&tenant), "version": world.rotate_key(&tenant)? }),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretValue {
    value: String,
}

async fn put_secret(
    State(world): Shared,
    Path(name): Path<String>,
    Json(secret): Json<SecretValue>,
) -> Result<Json<Value>, SecretError> {
    Ok(Json(
        json!({ "version": world.key_vault.put(&name, &secret.value)? }),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Enabled {
    enabled: bool,
    version: Option<String>,
}

async fn enable_secret(
    State(world): Shared,
    Path(name): Path<String>,
    Json(request): Json<Enabled>,
) -> Result<StatusCode, SecretError> {
    world
        .key_vault
        .set_enabled(&name, request.version.as_deref(), request.enabled)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_secret(
    State(world): Shared,
    Path(name): Path<String>,
) -> Result<StatusCode, SecretError> {
    world.key_vault.delete(&name)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn recover_secret(
    State(world): Shared,
    Path(name): Path<String>,
) -> Result<StatusCode, SecretError> {
    world.key_vault.recover(&name)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn revoke(State(world): Shared, Path((tenant, user)): Path<(String, String)>) -> StatusCode {
    world.entra.revoke(&tenant, &user);
    StatusCode::NO_CONTENT
}

async fn enable_user(
    State(world): Shared,
    Path((tenant, user)): Path<(String, String)>,
    Json(request): Json<Enabled>,
) -> StatusCode {
    world.entra.set_enabled(&tenant, &user, request.enabled);
    StatusCode::NO_CONTENT
}

async fn rotate_signing_keys(State(world): Shared) -> StatusCode {
    world.entra.rotate_signing_keys();
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Loops {
    refused: bool,
}

async fn refuse_loops(State(world): Shared, Json(loops): Json<Loops>) -> StatusCode {
    world.entra.refuse_loops(loops.refused);
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Passes {
    seconds: u32,
}

async fn pass(State(world): Shared, Json(passes): Json<Passes>) -> StatusCode {
    world.entra.pass(Duration::from_secs(passes.seconds.into()));
    StatusCode::NO_CONTENT
}

async fn add_fault(State(world): Shared, Json(fault): Json<Fault>) -> StatusCode {
    world.gate.faults.add(fault);
    StatusCode::NO_CONTENT
}

async fn clear_faults(State(world): Shared) -> StatusCode {
    world.gate.faults.clear();
    StatusCode::NO_CONTENT
}

async fn journal(State(world): Shared) -> Json<Vec<Entry>> {
    Json(world.gate.journal.read())
}

async fn clear_journal(State(world): Shared) -> StatusCode {
    world.gate.journal.clear();
    StatusCode::NO_CONTENT
}
