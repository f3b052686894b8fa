//! The platform's managed identity endpoint, of both kinds
//! (<https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>,
//! <https://learn.microsoft.com/azure/app-service/overview-managed-identity>).

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde_json::json;

use super::entra::{Entra, FEDERATION, GRAPH, KEY_VAULT};
use super::options::Options;

/// Path of the metadata service of virtual machines.
pub(crate) const IMDS: &str = "/metadata/identity/oauth2/token";
/// Path of App Service's endpoint.
pub(crate) const APP_SERVICE: &str = "/msi/token";

/// Azure's databases for PostgreSQL
/// (<https://learn.microsoft.com/azure/postgresql/security/security-connect-with-managed-identity>).
const POSTGRES: &str = "https://ossrdbms-aad.database.windows.net";

pub(crate) fn router(options: Options, entra: Arc<Entra>) -> Router {
    Router::new()
        .route(IMDS, get(imds))
        .route(APP_SERVICE, get(app_service))
        .with_state(Arc::new((options, entra)))
}

type Shared = State<Arc<(Options, Arc<Entra>)>>;
type Parameters = Query<HashMap<String, String>>;

/// All numbers are texts.
async fn imds(State(state): Shared, query: Parameters, headers: HeaderMap) -> Response {
    let (options, entra) = &*state;
    let refuse = |error: &str, description: &str| {
        let body = json!({ "error": error, "error_description": description });
        (StatusCode::BAD_REQUEST, axum::Json(body)).into_response()
    };
    if headers.get("metadata").is_none_or(|value| value != "true") {
        return refuse("bad_request_102", "Required metadata header not specified");
    }
    if query
        .get("api-version")
        .is_none_or(|version| version != "2018-02-01")
    {
        return refuse("bad_request", "Invalid api-version");
    }
    let Some(resource) = resource(options, &query) else {
        return refuse(
            "invalid_resource",
            "The resource principal was not found in the tenant.",
        );
    };
    if is_stranger(options, &query) {
        return refuse("invalid_request", "Identity not found");
    }
    let now = Timestamp::now().as_second();
    axum::Json(json!({
        "access_token": entra.identity_token(&resource), "refresh_token": "", "expires_in": "86399",
        "expires_on": (now + 86_399).to_string(), "not_before": (now - 300).to_string(), "resource": resource,
        "token_type": "Bearer",
    }))
    .into_response()
}

/// A time as a text, and no span; whatever goes wrong is a 500, but for the header.
async fn app_service(State(state): Shared, query: Parameters, headers: HeaderMap) -> Response {
    let (options, entra) = &*state;
    let refuse = |status: StatusCode, message: &str| {
        let body = json!({ "statusCode": status.as_u16(), "message": message });
        (status, axum::Json(body)).into_response()
    };
    if headers
        .get("x-identity-header")
        .is_none_or(|value| value != &*options.identity_header)
    {
        return refuse(StatusCode::UNAUTHORIZED, "Unauthorized");
    }
    let version = query.get("api-version").map(String::as_str);
    let (Some("2019-08-01"), Some(resource), false) = (
        version,
        resource(options, &query),
        is_stranger(options, &query),
    ) else {
        return refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "An unexpected error occured.",
        );
    };
    let now = Timestamp::now().as_second();
    axum::Json(json!({
        "access_token": entra.identity_token(&resource), "expires_on": (now + 86_399).to_string(),
        "resource": resource, "token_type": "Bearer", "client_id": options.managed_identity_id,
    }))
    .into_response()
}

fn resource(options: &Options, query: &HashMap<String, String>) -> Option<String> {
    let resource = query.get("resource")?;
    let is_the_app = resource.strip_prefix("api://") == Some(&options.client_id);
    let is_known = [KEY_VAULT, FEDERATION, POSTGRES, GRAPH].contains(&resource.as_str());
    (is_known || is_the_app).then(|| resource.clone())
}

/// Asks for an identity that is not assigned.
fn is_stranger(options: &Options, query: &HashMap<String, String>) -> bool {
    query
        .get("client_id")
        .is_some_and(|id| *id != options.managed_identity_id)
}
