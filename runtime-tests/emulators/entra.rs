//! Entra ID: token endpoint, signing keys, metadata
//! (<https://learn.microsoft.com/entra/identity-platform/v2-oauth2-on-behalf-of-flow>).

mod authority;
mod client;
mod directory;
pub(crate) mod error;
mod loops;
mod registered;
mod scope;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::json;
use url::form_urlencoded;
use uuid::Uuid;

use super::journal::{Remarks, Target, fingerprint};

pub(crate) use authority::{Entra, KEY_VAULT, LOGIN, Mint};
pub(crate) use client::FEDERATION;
use error::respond;
pub(crate) use scope::GRAPH;
use tokens::issuers;

/// Its pages. `origin` is where clients reach it.
pub(crate) fn router(entra: Arc<Entra>, origin: String) -> Router {
    entra.listens_at(&origin);
    Router::new()
        .route("/common/discovery/instance", get(instances))
        .route("/{tenant}/oauth2/v2.0/token", post(token))
        .route("/{tenant}/discovery/v2.0/keys", get(signing_keys))
        .route("/{tenant}/discovery/keys", get(signing_keys))
        .route(
            "/{tenant}/v2.0/.well-known/openid-configuration",
            get(metadata_v2),
        )
        .route(
            "/{tenant}/.well-known/openid-configuration",
            get(metadata_v1),
        )
        .with_state(Service {
            entra,
            origin: origin.into(),
        })
}

/// What a request for this path is for.
pub(crate) fn target(path: &str) -> Target {
    if path.ends_with("/token") {
        Target::EntraToken
    } else if path.ends_with("/keys") {
        Target::Jwks
    } else {
        Target::EntraMetadata
    }
}

#[derive(Clone)]
struct Service {
    entra: Arc<Entra>,
    origin: Arc<str>,
}

async fn token(
    State(service): State<Service>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let form = form_urlencoded::parse(&body).into_owned().collect();
    match service.entra.token(&tenant, &form, &headers) {
        Ok(grant) => {
            let id = Uuid::new_v4().to_string();
            let mut response = respond(StatusCode::OK, &grant.body, &id, "1,0,0,,");
            response.extensions_mut().insert(Remarks {
                aadsts: None,
                issued: grant.refresh_token.as_deref().map(fingerprint),
            });
            response
        }
        Err(error) => error.response(
            headers
                .get("client-request-id")
                .and_then(|id| id.to_str().ok()),
        ),
    }
}

async fn signing_keys(State(service): State<Service>, Path(tenant): Path<String>) -> Response {
    let tenant = match tenant.as_str() {
        "common" | "organizations" | "consumers" => None,
        named => match service.entra.tenant(named) {
            Ok(tenant) => Some(tenant),
            Err(error) => return error.response(None),
        },
    };
    axum::Json(service.entra.jwks(tenant.as_deref())).into_response()
}

/// Names of the same cloud.
async fn instances() -> Response {
    axum::Json(json!({
        "tenant_discovery_endpoint": format!("{LOGIN}/common/.well-known/openid-configuration"),
        "api-version": "1.1",
        "metadata": [{
            "preferred_network": "login.microsoftonline.com", "preferred_cache": "login.windows.net",
            "aliases": ["login.microsoftonline.com", "login.windows.net", "login.microsoft.com", "sts.windows.net"],
        }],
    }))
    .into_response()
}

async fn metadata_v1(service: State<Service>, tenant: Path<String>) -> Response {
    metadata(&service, &tenant, 1)
}

async fn metadata_v2(service: State<Service>, tenant: Path<String>) -> Response {
    metadata(&service, &tenant, 2)
}

fn metadata(service: &Service, tenant: &str, version: u8) -> Response {
    let named = match tenant {
        "common" | "organizations" => "{tenantid}".to_owned(),
        named => match service.entra.tenant(named) {
            Ok(tenant) => tenant,
            // 400 `invalid_tenant` here, `invalid_request` at the token endpoint.
            Err(mut error) => {
                "invalid_tenant".clone_into(&mut error.error);
                return error.response(None);
            }
        },
    };
    let base = format!("{}/{tenant}", service.origin);
    let [v1, v2] = issuers(&named);
    let (issuer, infix) = if version == 1 {
        (v1, "")
    } else {
        (v2, "/v2.0")
    };
    // No `revocation_endpoint`: Entra ID has none.
    let body = json!({
        "token_endpoint": format!("{base}/oauth2{infix}/token"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
        "jwks_uri": format!("{base}/discovery{infix}/keys"),
        "response_modes_supported": ["query", "fragment", "form_post"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
        "scopes_supported": ["openid", "profile", "email", "offline_access"],
        "issuer": issuer,
        "request_uri_parameter_supported": false,
        "userinfo_endpoint": "https://graph.microsoft.com/oidc/userinfo",
        "authorization_endpoint": format!("{base}/oauth2{infix}/authorize"),
        "device_authorization_endpoint": format!("{base}/oauth2{infix}/devicecode"),
        "http_logout_supported": true,
        "frontchannel_logout_supported": true,
        "end_session_endpoint": format!("{base}/oauth2{infix}/logout"),
        "tenant_region_scope": "EU",
        "cloud_instance_name": "microsoftonline.com",
        "cloud_graph_host_name": "graph.windows.net",
        "msgraph_host": "graph.microsoft.com",
        "rbac_url": "https://pas.windows.net",
    });
    (
        [(header::CACHE_CONTROL, "max-age=86400, private")],
        axum::Json(body),
    )
        .into_response()
}
