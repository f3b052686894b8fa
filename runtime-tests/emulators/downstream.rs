//! A downstream API that looks like Microsoft Graph: `/me`, its calendar, its mail, and files, which it hands out by redirects; and for
//! apps, the revocation of a user's sessions.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::bearer::bearer;
use super::entra::{Entra, GRAPH};

/// What the calendar has on it, whoever's it is.
pub const EVENT: &str = "Review of the quarter";

pub(crate) fn router(entra: Arc<Entra>) -> Router {
    Router::new()
        .route("/v1.0/me", get(me))
        .route("/v1.0/me/calendar/events", get(events).post(new_event))
        .route("/v1.0/me/messages", get(messages))
        .route("/v1.0/me/drive/items/{id}/content", get(content))
        .route(
            "/v1.0/users/{id}/revokeSignInSessions",
            post(revoke_sign_in_sessions),
        )
        .with_state(entra)
}

type Shared = State<Arc<Entra>>;

async fn me(State(entra): Shared, headers: HeaderMap) -> Response {
    answer(admit(&entra, &headers, &["User.Read"]), |claims| {
        axum::Json(json!({
            "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#users/$entity",
            "id": claims["oid"], "tenant": claims["tid"], "displayName": "Demo User",
        }))
        .into_response()
    })
}

async fn events(State(entra): Shared, headers: HeaderMap) -> Response {
    let permissions = ["Calendars.Read", "Calendars.ReadWrite"];
    answer(admit(&entra, &headers, &permissions), |_| {
        let at =
            |time: &str| json!({"dateTime": format!("2027-01-11T{time}:00"), "timeZone": "UTC"});
        let event =
            json!({"id": "AAMk1", "subject": EVENT, "start": at("09:00"), "end": at("10:30")});
        axum::Json(json!({"value": [event]})).into_response()
    })
}

/// Creates an event, and answers with it: all that was sent, so that it is seen what arrived.
async fn new_event(State(entra): Shared, headers: HeaderMap, body: String) -> Response {
    answer(admit(&entra, &headers, &["Calendars.ReadWrite"]), |_| {
        let Ok(Value::Object(mut event)) = serde_json::from_str(&body) else {
            let error = json!({"error": {"code": "BadRequest", "message": "Unable to read JSON request payload."}});
            return (StatusCode::BAD_REQUEST, axum::Json(error)).into_response();
        };
        event.insert("id".to_owned(), json!("AAMk2"));
        let location = [(
            header::LOCATION,
            format!("{GRAPH}/v1.0/me/calendar/events/AAMk2"),
        )];
        (StatusCode::CREATED, location, axum::Json(event)).into_response()
    })
}

async fn messages(State(entra): Shared, headers: HeaderMap) -> Response {
    answer(admit(&entra, &headers, &["Mail.Read"]), |_| {
        axum::Json(json!({"value": []})).into_response()
    })
}

/// The file is elsewhere, for whoever has the address
/// (<https://learn.microsoft.com/graph/api/driveitem-get-content>).
async fn content(State(entra): Shared, headers: HeaderMap, Path(id): Path<String>) -> Response {
    answer(admit(&entra, &headers, &["Files.Read"]), |_| {
        let location = format!("https://files.example/{id}?tempauth=v1.address");
        (StatusCode::FOUND, [(header::LOCATION, location)]).into_response()
    })
}

/// Revokes the sessions of a user of the token's tenant, for an app. The page says 204, and lists as a known issue that it is 200 with
/// a body (<https://learn.microsoft.com/graph/api/user-revokesigninsessions>,
/// <https://learn.microsoft.com/graph/known-issues>).
async fn revoke_sign_in_sessions(
    State(entra): Shared,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    let permissions = [
        "User.RevokeSessions.All",
        "User.ReadWrite.All",
        "Directory.ReadWrite.All",
    ];
    answer(admit_app(&entra, &headers, &permissions), |claims| {
        let tenant = claims["tid"].as_str().unwrap_or_default();
        if !entra.knows(tenant, &id) {
            let message = format!(
                "Resource '{id}' does not exist or one of its queried reference-property objects are not present."
            );
            let error = json!({"error": {"code": "Request_ResourceNotFound", "message": message}});
            return (StatusCode::NOT_FOUND, axum::Json(error)).into_response();
        }
        entra.revoke(tenant, &id);
        let context = format!("{GRAPH}/v1.0/$metadata#Edm.Boolean");
        axum::Json(json!({"@odata.context": context, "value": true})).into_response()
    })
}

/// The claims of a valid Graph token with one of these delegated permissions.
fn admit(entra: &Entra, headers: &HeaderMap, permissions: &[&str]) -> Result<Value, Refusal> {
    let claims = valid(entra, headers)?;
    let scopes = claims["scp"].as_str().unwrap_or_default();
    if scopes.split(' ').any(|scope| permissions.contains(&scope)) {
        return Ok(claims);
    }
    Err(DENIED)
}

/// The same with one of these application permissions.
fn admit_app(entra: &Entra, headers: &HeaderMap, permissions: &[&str]) -> Result<Value, Refusal> {
    let claims = valid(entra, headers)?;
    let roles = claims["roles"].as_array().into_iter().flatten();
    if roles
        .filter_map(Value::as_str)
        .any(|role| permissions.contains(&role))
    {
        return Ok(claims);
    }
    Err(DENIED)
}

const DENIED: Refusal = Refusal(
    StatusCode::FORBIDDEN,
    Some("insufficient_scope"),
    "Insufficient privileges to complete the operation.",
);

/// The claims of a valid Graph token.
fn valid(entra: &Entra, headers: &HeaderMap) -> Result<Value, Refusal> {
    let unauthorized = |error, message| Refusal(StatusCode::UNAUTHORIZED, error, message);
    let invalid = |message| unauthorized(Some("invalid_token"), message);
    let token = bearer(headers).ok_or(unauthorized(None, "Access token is empty."))?;
    let claims = entra
        .verify(token)
        .ok_or(invalid("Signature verification failed."))?;
    if claims["aud"] != GRAPH {
        return Err(invalid(
            "Access token validation failure. Invalid audience.",
        ));
    }
    let now = Timestamp::now().as_second();
    let time = |name: &str| claims[name].as_i64();
    if time("exp").is_none_or(|exp| exp <= now) || time("nbf").is_some_and(|nbf| nbf > now) {
        return Err(invalid("Lifetime validation failed, the token is expired."));
    }
    Ok(claims)
}

/// Status, error and message of a refusal.
struct Refusal(StatusCode, Option<&'static str>, &'static str);

fn answer(admitted: Result<Value, Refusal>, give: impl FnOnce(Value) -> Response) -> Response {
    match admitted {
        Ok(claims) => give(claims),
        Err(Refusal(status, error, message)) => refuse(status, error, message),
    }
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
