//! What users, apps and operators get, over the whole API.

mod acting;
mod audited;
mod cached;
mod called;
mod cross_origin;
mod rounds;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use pollster::block_on;
use serde_json::{Value, json};

use crate::api::{Answer, AnswerBody};
use crate::port::{BodyError, RequestBody};
use crate::simulation::called::Parts;
use crate::simulation::world::{App, Shared, World};

struct Body(&'static str);

impl RequestBody for Body {
    async fn read(self, limit: usize, _: Duration) -> Result<Bytes, BodyError> {
        if self.0.len() > limit {
            Err(BodyError::TooLong)
        } else {
            Ok(Bytes::from_static(self.0.as_bytes()))
        }
    }
}

/// A request over the whole API: status, and the body as JSON.
fn ask(app: &App, world: &Shared, request: &str, body: &'static str) -> (u16, Value) {
    ask_as(app, Some(world.bearer().expose()), request, body)
}

impl From<Body> for Parts {
    fn from(Body(text): Body) -> Self {
        Self::of(text.as_bytes())
    }
}

/// The answer, where it is our own.
fn handled(app: &App, request: &http::request::Parts, body: &'static str) -> Response<Bytes> {
    let Answer { response, .. } = block_on(app.handle(request, Body(body)));
    response.map(|body| match body {
        AnswerBody::Whole(body) => body,
        AnswerBody::Passed(_) => panic!("an API has answered"),
    })
}

fn ask_as(app: &App, bearer: Option<&str>, request: &str, body: &'static str) -> (u16, Value) {
    let (method, path) = request.split_once(' ').unwrap();
    let mut parts = Request::builder().method(method).uri(path);
    if let Some(bearer) = bearer {
        parts = parts.header("authorization", format!("bearer {bearer}"));
    }
    let (parts, ()) = parts.body(()).unwrap().into_parts();
    let response = handled(app, &parts, body);
    assert_eq!(response.headers()["cache-control"], "no-store");
    let json = if response.body().is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(response.body()).unwrap()
    };
    (response.status().as_u16(), json)
}

fn problem(answer: (u16, Value)) -> (u16, String) {
    (
        answer.0,
        answer.1["code"].as_str().unwrap_or_default().to_owned(),
    )
}

fn code(status: StatusCode, code: &str) -> (u16, String) {
    (status.as_u16(), code.to_owned())
}

#[test]
fn a_whole_life() {
    let world = World::new();
    let app = world.app();
    assert_eq!(
        problem(ask(&app, &world, "GET /v1/me", "")),
        code(StatusCode::NOT_FOUND, "not_enrolled")
    );
    let (status, view) = ask(&app, &world, "PUT /v1/me", "");
    assert_eq!(status, 201);
    assert_eq!(view["status"], "active");
    assert_eq!(view["key_version"], World::version(0));
    assert_eq!(ask(&app, &world, "GET /v1/me", ""), (200, view));
    let (status, issued) = ask(&app, &world, "POST /v1/me/access-token", "");
    assert_eq!(
        (status, &issued["token_type"], &issued["expires_in"]),
        (200, &json!("Bearer"), &json!(3599))
    );
    assert_eq!(ask(&app, &world, "DELETE /v1/me/refresh-token", "").0, 204);
    assert_eq!(
        problem(ask(&app, &world, "POST /v1/me/access-token", "")),
        code(StatusCode::CONFLICT, "no_refresh_token")
    );
    assert_eq!(
        ask(&app, &world, "GET /v1/me", "").1["status"],
        "no_refresh_token"
    );
    assert_eq!(
        ask(
            &app,
            &world,
            "PUT /v1/me",
            r#"{"scope":"https://graph.microsoft.com/User.Read"}"#
        )
        .0,
        200
    );
    assert_eq!(ask(&app, &world, "POST /v1/me/access-token", "").0, 200);
    for _ in 0..2 {
        assert_eq!(ask(&app, &world, "DELETE /v1/me", "").0, 204);
        assert_eq!(
            problem(ask(&app, &world, "POST /v1/me/access-token", "")),
            code(StatusCode::NOT_FOUND, "not_enrolled")
        );
    }
    assert!(
        world.user_rows().is_empty(),
        "{:?}",
        world.user_rows().keys()
    );
}

#[test]
fn stored_rows_hold_no_token_and_are_three_a_user() {
    let world = World::new();
    let app = world.app();
    for _ in 0..3 {
        ask(&app, &world, "PUT /v1/me", "");
        world.advance(1);
    }
    let rows = world.rows.borrow();
    let of_user = world.user_rows();
    assert_eq!(
        of_user.len(),
        3,
        "a former enrolment leaves nothing: {:?}",
        of_user.keys()
    );
    for value in rows.values() {
        let text = String::from_utf8_lossy(value);
        assert!(
            !text.contains("canary") && !text.contains("44444444-4444"),
            "{text}"
        );
    }
}

#[test]
fn a_failed_exchange_leaves_every_row_as_it_was() {
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    let before = world.rows.borrow().clone();
    for (status, body) in [
        (
            400,
            json!({"error": "invalid_grant", "error_codes": [50_173], "suberror": "bad_token"}),
        ),
        (
            400,
            json!({"error": "interaction_required", "error_codes": [50_076], "claims": "{}"}),
        ),
        (
            401,
            json!({"error": "invalid_client", "error_codes": [7_000_215]}),
        ),
        (503, json!("<html>")),
        (
            200,
            json!({"token_type": "Bearer", "expires_in": 1, "access_token": "at"}),
        ),
    ] {
        // An outage is tried once more, and then pauses the tenant.
        let tries = if status == 503 { 2 } else { 1 };
        world
            .entra_answers
            .borrow_mut()
            .extend(std::iter::repeat_n((status, body), tries));
        assert!(ask(&app, &world, "PUT /v1/me", "").0 >= 400);
        assert_eq!(*world.rows.borrow(), before);
        world.advance(5);
    }
    world.down.borrow_mut().push("key vault");
    world.advance(3600);
    assert_eq!(
        problem(ask(&app, &world, "PUT /v1/me", "")),
        code(StatusCode::SERVICE_UNAVAILABLE, "key_vault_unavailable")
    );
    assert_eq!(*world.rows.borrow(), before);
}

#[test]
fn requests_that_are_wrong_are_told_so() {
    let world = World::new();
    let app = world.app();
    let long: &'static str = Box::leak(" ".repeat(65_537).into_boxed_str());
    for (request, body, expected) in [
        ("GET /", "", code(StatusCode::NOT_FOUND, "not_found")),
        ("GET /v1/me/", "", code(StatusCode::NOT_FOUND, "not_found")),
        (
            "PATCH /v1/me",
            "",
            code(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        ),
        (
            "GET /v1/sweep",
            "",
            code(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        ),
        (
            "PUT /v1/me",
            "{",
            code(StatusCode::BAD_REQUEST, "invalid_json"),
        ),
        (
            "PUT /v1/me",
            "[]",
            code(StatusCode::BAD_REQUEST, "invalid_request"),
        ),
        (
            "PUT /v1/me",
            r#"{"scope":7}"#,
            code(StatusCode::BAD_REQUEST, "invalid_request"),
        ),
        (
            "PUT /v1/me",
            r#"{"scopes":"x"}"#,
            code(StatusCode::BAD_REQUEST, "invalid_request"),
        ),
        (
            "PUT /v1/me",
            r#"{"scope":"https://vault.azure.net/.default"}"#,
            code(StatusCode::FORBIDDEN, "not_granted"),
        ),
        (
            "POST /v1/me/access-token",
            "\u{0}",
            code(StatusCode::BAD_REQUEST, "invalid_json"),
        ),
        (
            "PUT /v1/me",
            long,
            code(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
        ),
    ] {
        assert_eq!(
            problem(ask(&app, &world, request, body)),
            expected,
            "{request} {body:.20}"
        );
    }
    assert!(world.rows.borrow().is_empty());
}

#[test]
fn requests_without_a_usable_token_are_401() {
    let world = World::new();
    let app = world.app();
    for request in [
        "GET /v1/me",
        "PUT /v1/me",
        "DELETE /v1/me",
        "POST /v1/me/access-token",
        "DELETE /v1/me/refresh-token",
    ] {
        assert_eq!(
            problem(ask_as(&app, None, request, "")),
            code(StatusCode::UNAUTHORIZED, "token_missing"),
            "{request}"
        );
        assert_eq!(
            problem(ask_as(&app, Some("x.y.z"), request, "")),
            code(StatusCode::UNAUTHORIZED, "token_malformed"),
            "{request}"
        );
    }
    assert_eq!(
        problem(ask_as(&app, None, "POST /v1/sweep", "")),
        code(StatusCode::UNAUTHORIZED, "sweep_not_authorized")
    );
}

#[test]
fn health_names_every_setting_that_is_wrong() {
    let world = World::new();
    assert_eq!(
        ask_as(&world.app(), None, "GET /healthz", ""),
        (200, json!({"status": "ok"}))
    );
    world.settings.borrow_mut().remove("tenants");
    world.settings.borrow_mut().remove("client_id");
    let (status, body) = ask_as(&world.app(), None, "GET /healthz", "");
    assert_eq!((status, body["code"].as_str()), (500, Some("setting")));
    let detail: Vec<_> = body["detail"].as_str().unwrap().lines().collect();
    assert_eq!(detail.len(), 2, "{detail:?}");
    for (line, begin) in detail.iter().zip([
        "setting `client_id` (SPIN_VARIABLE_CLIENT_ID) is empty",
        "setting `tenants` (SPIN_VARIABLE_TENANTS) is empty",
    ]) {
        assert!(line.starts_with(begin), "{line}");
    }
}

#[test]
fn damaged_rows_are_an_alarm_and_are_kept() {
    for (kind, damage, expected) in [
        ("rec.", "truncate", "record_damaged"),
        ("rec.", "flip", "record_damaged"),
        ("rec.", "newer", "record_too_new"),
        ("rec.", "lose", "record_lost"),
        ("usr.", "truncate", "record_damaged"),
        ("usr.", "newer", "record_too_new"),
    ] {
        let world = World::new();
        let app = world.app();
        ask(&app, &world, "PUT /v1/me", "");
        let key = world.keys_of(kind).remove(0);
        {
            let mut rows = world.rows.borrow_mut();
            let mut text = String::from_utf8(rows.remove(&key).unwrap()).unwrap();
            match damage {
                "truncate" => text.truncate(text.len() / 2),
                "newer" => text = text.replace(r#""v":1"#, r#""v":2"#),
                "flip" => {
                    // The last character of the tag is inside the sealed token.
                    let end = text.find(r#"","key_version""#).unwrap();
                    let other = if &text[end - 2..end - 1] == "A" {
                        "B"
                    } else {
                        "A"
                    };
                    text.replace_range(end - 2..end - 1, other);
                }
                _ => text.clear(),
            }
            if damage != "lose" {
                rows.insert(key, text.into_bytes());
            }
        }
        let before = world.rows.borrow().clone();
        let (status, body) = ask(&app, &world, "POST /v1/me/access-token", "");
        assert_eq!(
            (status, body["code"].as_str()),
            (500, Some(expected)),
            "{kind} {damage}"
        );
        assert_eq!(*world.rows.borrow(), before, "{kind} {damage}");
        if damage != "newer" || kind == "rec." {
            assert!(
                ask(&app, &world, "PUT /v1/me", "").0 < 300,
                "enrolling mends it: {kind} {damage}"
            );
            assert_eq!(ask(&app, &world, "POST /v1/me/access-token", "").0, 200);
        }
    }
}

#[test]
fn a_request_has_one_deadline_over_all_its_calls() {
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    // Storage takes ten seconds before the record is there, and then the vault has what is left.
    *world.before_store.borrow_mut() = Some((1, Box::new(|world: &World| world.advance(20))));
    world.limits.borrow_mut().clear();
    assert_eq!(ask(&app, &world, "POST /v1/me/access-token", "").0, 200);
    let limits = world.limits.borrow().last().copied().unwrap();
    assert_eq!(limits.first_byte, Duration::from_secs(5));
}

#[test]
fn a_request_has_an_id_its_own_if_that_can_be_written() {
    let world = World::new();
    let app = world.app();
    let id_of = |ids: &[&str]| {
        let mut request = Request::get("/v1/me");
        for id in ids {
            request = request.header("x-request-id", *id);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let response = handled(&app, &parts, "");
        let id = response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["request_id"], id);
        id
    };
    let longest = "i".repeat(64);
    for id in ["7", "a.B-c_9", &longest] {
        assert_eq!(id_of(&[id]), id);
    }
    let too_long = "i".repeat(65);
    for ids in [
        &[][..],
        &[""],
        &["a b"],
        &["\"x"],
        &[&*too_long],
        &["a", "b"],
    ] {
        let own = id_of(ids);
        assert_eq!(own.len(), 36, "{ids:?}: {own}");
        assert_ne!(own, id_of(ids));
    }
}

#[test]
fn what_a_caller_is_not_told_is_in_the_log_under_his_requests_id() {
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    world.disabled.set(Some(0));
    let app = world.app();
    let (status, body) = ask(&app, &world, "POST /v1/me/access-token", "");
    assert_eq!((status, &body["code"]), (500, &json!("key_disabled")));
    let detail = body["detail"].as_str().unwrap();
    assert!(!detail.contains("obo-"), "{detail}");
    let log = world.log.borrow();
    let line: Value = serde_json::from_str(log.last().unwrap()).unwrap();
    assert_eq!(line["event"], "request_failed");
    assert_eq!(line["request_id"], body["request_id"]);
    assert!(line["reason"].as_str().unwrap().contains("`obo-"), "{line}");
}

#[test]
fn a_removal_that_was_acknowledged_while_entra_was_asked_holds() {
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    // A draw reads head, off, rec, then the head again: that is when the user is gone.
    *world.before_store.borrow_mut() =
        Some((3, Box::new(|world: &World| world.rows.borrow_mut().clear())));
    let answer = ask(&app, &world, "POST /v1/me/access-token", "");
    assert_eq!(problem(answer), code(StatusCode::NOT_FOUND, "not_enrolled"));
}

#[test]
fn a_replacement_is_stored_when_the_stored_token_is_a_day_old() {
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    let rows = world.rows.borrow().clone();
    world.advance(86_399);
    ask(&app, &world, "POST /v1/me/access-token", "");
    assert_eq!(*world.rows.borrow(), rows);
    world.advance(1);
    let view = ask(&app, &world, "GET /v1/me", "").1;
    // One that has not drawn a moment ago.
    let app = world.app();
    ask(&app, &world, "POST /v1/me/access-token", "");
    assert_ne!(
        ask(&app, &world, "GET /v1/me", "").1["refreshed_at"],
        view["refreshed_at"]
    );
    assert_eq!(world.user_rows().len(), 3);
    world.redeemed.borrow_mut().clear();
    world.advance(900);
    ask(&app, &world, "POST /v1/me/access-token", "");
    assert_ne!(*world.redeemed.borrow(), ["rt-canary-1"]);
}

/// Whatever write fails, an enrolment that was acknowledged stays usable, and so does the one before.
#[test]
fn a_storage_failure_at_any_step_loses_nothing() {
    for step in 0..12 {
        let world = World::new();
        let app = world.app();
        ask(&app, &world, "PUT /v1/me", "");
        world.advance(1);
        world.store_fails_after.set(Some(step));
        let (status, _) = ask(&app, &world, "PUT /v1/me", "");
        world.store_fails_after.set(None);
        assert!(matches!(status, 200 | 503), "step {step}: {status}");
        assert_eq!(
            ask(&app, &world, "POST /v1/me/access-token", "").0,
            200,
            "step {step}"
        );
        assert!(!world.keys_of("due.").is_empty(), "step {step}");
    }
}

#[test]
fn a_removal_that_failed_is_told_and_can_be_repeated() {
    for step in 0..2 {
        let world = World::new();
        let app = world.app();
        ask(&app, &world, "PUT /v1/me", "");
        world.store_fails_after.set(Some(step));
        assert_eq!(
            problem(ask(&app, &world, "DELETE /v1/me", "")),
            code(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
        );
        let line = world.log.borrow().last().cloned();
        assert!(
            line.unwrap().contains("injected"),
            "the operator is told why"
        );
        world.store_fails_after.set(None);
        assert_eq!(ask(&app, &world, "DELETE /v1/me", "").0, 204);
        assert_eq!(
            problem(ask(&app, &world, "POST /v1/me/access-token", "")),
            code(StatusCode::NOT_FOUND, "not_enrolled")
        );
    }
}

#[test]
fn users_do_not_see_each_other() {
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    let other = world.bearer_of("99999999-4444-4444-4444-444444444444");
    assert_eq!(
        problem(ask_as(&app, Some(other.expose()), "GET /v1/me", "")),
        code(StatusCode::NOT_FOUND, "not_enrolled")
    );
    assert_eq!(
        ask_as(&app, Some(other.expose()), "DELETE /v1/me", "").0,
        204
    );
    assert_eq!(ask(&app, &world, "GET /v1/me", "").0, 200);
}
