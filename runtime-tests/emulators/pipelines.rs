//! Where jobs of pipelines get their OIDC tokens: GitHub Actions
//! (<https://docs.github.com/actions/reference/security/oidc>) and Azure Pipelines
//! (<https://learn.microsoft.com/rest/api/azure/devops/distributedtask/oidctoken/create>). Both give the same one here, of the
//! issuer that the app trusts.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::bearer::bearer;
use super::entra::{Entra, FEDERATION};
use super::options::Options;

/// Paths of the two.
pub(crate) const GITHUB: &str = "/github/token";
pub(crate) const AZURE: &str = "/azure-pipelines/oidctoken";

/// The service connection of the job.
pub(crate) const CONNECTION: &str = "eeeeeeee-eeee-4eee-8eee-eeeeeeeeeeee";

pub(crate) fn router(options: Options, entra: Arc<Entra>) -> Router {
    Router::new()
        .route(GITHUB, get(github))
        .route(AZURE, post(azure))
        .with_state(Arc::new((options, entra)))
}

type Shared = State<Arc<(Options, Arc<Entra>)>>;
type Parameters = Query<HashMap<String, String>>;

async fn github(State(state): Shared, query: Parameters, headers: HeaderMap) -> Response {
    let (options, entra) = &*state;
    let is_for_entra = query.get("audience").is_some_and(|it| it == FEDERATION);
    // What else the address that the job is given has in its query has to come back.
    if bearer(&headers) != Some(&*options.job_token) || !query.contains_key("api-version") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if !is_for_entra {
        return StatusCode::BAD_REQUEST.into_response();
    }
    Json(json!({ "count": 1, "value": entra.federated_token() })).into_response()
}

/// Without its header it sends whoever it does not know to a page to sign in.
async fn azure(State(state): Shared, query: Parameters, headers: HeaderMap) -> Response {
    let (options, entra) = &*state;
    if bearer(&headers) != Some(&*options.job_token) {
        return match headers.get("x-tfs-fedauthredirect") {
            Some(value) if value == "Suppress" => StatusCode::UNAUTHORIZED.into_response(),
            Some(_) | None => StatusCode::FOUND.into_response(),
        };
    }
    let asked = |name: &str, value: &str| query.get(name).is_some_and(|it| it == value);
    if !asked("api-version", "7.1") || !asked("serviceConnectionId", CONNECTION) {
        return StatusCode::BAD_REQUEST.into_response();
    }
    Json(json!({ "oidcToken": entra.federated_token() })).into_response()
}
