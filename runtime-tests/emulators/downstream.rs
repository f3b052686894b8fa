//! A downstream API that looks like Microsoft Graph's `/me`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use serde_json::json;

use super::bearer::bearer;
use super::entra::{Entra, GRAPH};

pub(crate) fn router(entra: Arc<Entra>) -> Router {
    Router::new().route("/v1.0/me", get(me)).with_state(entra)
}

/// The caller, for a valid Graph token with `User.Read`.
async fn me(State(entra): State<Arc<Entra>>, headers: HeaderMap) -> Response {
    let Some(token) = bearer(&headers) else {
        return refuse(StatusCode::UNAUTHORIZED, None, "Access token is empty.");
    };
    let Some(claims) = entra.verify(token) else {
        return refuse(
            StatusCode::UNAUTHORIZED,
            Some("invalid_token"),
            "Signature verification failed.",
        );
    };
    if claims["aud"] != GRAPH {
        return refuse(
            StatusCode::UNAUTHORIZED,
            Some("invalid_token"),
            "Access token validation failure. Invalid audience.",
        );
    }
    let now = Timestamp::now().as_second();
    let time = |name: &str| claims[name].as_i64();
    if time("exp").is_none_or(|exp| exp <= now) || time("nbf").is_some_and(|nbf| nbf > now) {
        return refuse(
            StatusCode::UNAUTHORIZED,
            Some("invalid_token"),
            "Lifetime validation failed, the token is expired.",
        );
    }
    let scopes = claims["scp"].as_str().unwrap_or_default();
    if !scopes.split(' ').any(|scope| scope == "User.Read") {
        return refuse(
            StatusCode::FORBIDDEN,
            Some("insufficient_scope"),
            "Insufficient privileges to complete the operation.",
        );
    }
    axum::Json(json!({
        "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#users/$entity",
        "id": claims["oid"], "tenant": claims["tid"], "displayName": "Demo User",
    }))
    .into_response()
}

/// Graph's challenge, as its answers were recorded.
fn refuse(status: StatusCode, error: Option<&str>, message: &str) -> Response {
    let mut challenge = "Bearer realm=\"\", authorization_uri=\"https://login.microsoftonline.com/common/oauth2/authorize\", \
                         client_id=\"00000003-0000-0000-c000-000000000000\""
        .to_owned();
    if let Some(error) = error {
        challenge = format!("{challenge}, error=\"{error}\"");
    }
    let code = if status == StatusCode::FORBIDDEN {
        "Authorization_RequestDenied"
    } else {
        "InvalidAuthenticationToken"
    };
    let body = json!({ "error": { "code": code, "message": message } });
    (
        status,
        [(header::WWW_AUTHENTICATE, challenge)],
        axum::Json(body),
    )
        .into_response()
}
