//! Calls of APIs, over the whole API.

use super::*;
use crate::simulation::called::Answer as Given;
use crate::vault::samples::{TENANT, USER};

const APIS: &str = r#"{"graph": {"url": "https://graph.microsoft.com", "scope": "https://graph.microsoft.com/.default",
  "allow": ["GET /v1.0/me/**", "POST /v1.0/me/**"]}}"#;
const CALLS: &str = r#"[{"client": "33333333-3333-3333-3333-333333333333", "callers": "delegated", "apis": ["graph"]},
  {"client": "33333333-3333-3333-3333-333333333333", "callers": "app", "apis": ["*"]}]"#;
const ME: &str = "GET /v1/me/call/graph/v1.0/me";

fn enrolled() -> (Shared, App) {
    let world = World::new();
    world.settings.borrow_mut().extend([
        ("apis", APIS.to_owned()),
        ("api_origin_1", "https://graph.microsoft.com".to_owned()),
        ("grants", CALLS.to_owned()),
    ]);
    let app = world.app();
    assert_eq!(ask(&app, &world, "PUT /v1/me", "").0, 201);
    world.log.take();
    world.take_calls();
    (world, app)
}

/// A call: the API's answer, or ours and its code. What came along is stored after.
fn call_as(
    app: &App,
    bearer: &str,
    request: &str,
    body: &'static str,
) -> Result<Response<Vec<u8>>, (u16, String)> {
    let (method, path) = request.split_once(' ').unwrap();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {bearer}"));
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let Answer {
        response,
        replacement,
    } = block_on(app.handle(&parts, Body(body)));
    assert!(response.headers().contains_key("x-request-id"));
    if let Some(replacement) = replacement {
        block_on(app.store(replacement));
    }
    let (head, body) = response.into_parts();
    match body {
        AnswerBody::Passed(body) => Ok(Response::from_parts(head, body)),
        AnswerBody::Whole(body) => {
            assert!(!head.headers.contains_key("behalf-upstream"));
            let problem: Value = serde_json::from_slice(&body).unwrap();
            let code = problem["code"].as_str().unwrap().to_owned();
            Err((head.status.as_u16(), code))
        }
    }
}

fn call(app: &App, world: &Shared, request: &str) -> Result<Response<Vec<u8>>, (u16, String)> {
    call_as(app, world.bearer().expose(), request, "")
}

/// The one line of the audit since the last look.
fn told(world: &Shared) -> Value {
    let lines = world.log.take().into_iter();
    let lines = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let lines: Vec<_> = lines.filter(|line| line["action"].is_string()).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.into_iter().next().unwrap()
}

fn challenge() -> Given {
    let value = r#"Bearer error="insufficient_claims", claims="eyJhY2Nlc3NfdG9rZW4iOnt9fQ==""#;
    Given::Status(401, vec![("www-authenticate", value.to_owned())])
}

#[test]
fn a_call_for_the_user_and_one_by_a_job_are_answered_by_the_api_and_told() {
    let (world, app) = enrolled();
    let given = vec![
        ("cache-control", "public, max-age=60".to_owned()),
        ("vary", "accept".to_owned()),
        ("x-request-id", "the-apis".to_owned()),
    ];
    world
        .api
        .answers
        .borrow_mut()
        .push_back(Given::Status(203, given));
    let response = call(&app, &world, "GET /v1/me/call/graph/v1.0/me/m%65?$top=1").unwrap();
    assert_eq!(
        (response.status().as_u16(), response.body()),
        (203, &b"answer".to_vec())
    );
    let headers = response.headers();
    assert_eq!(headers["behalf-upstream"], "graph");
    assert_eq!(headers["cache-control"], "private, max-age=60");
    assert_ne!(headers["x-request-id"], "the-apis");
    let vary: Vec<_> = headers.get_all("vary").iter().collect();
    assert_eq!(vary, ["accept", "Authorization"]);
    let called = world.api.calls.take();
    assert_eq!(
        called[0].uri,
        "https://graph.microsoft.com/v1.0/me/me?$top=1"
    );
    let line = told(&world);
    for (member, value) in [
        ("event", json!("api_called")),
        ("action", json!("call")),
        ("outcome", json!("done")),
        ("callers", json!("delegated")),
        ("rule", json!("grants[0]")),
        ("tenant", json!(TENANT)),
        ("api", json!("graph")),
        ("pattern", json!("GET /v1.0/me/**")),
        ("scope", json!("https://graph.microsoft.com/.default")),
        ("cached", json!(false)),
        ("status", json!(203)),
        ("path", Value::Null),
    ] {
        assert_eq!(line[member], value, "{member}: {line}");
    }
    // A job, with what was drawn before: nobody is asked.
    let operations = world.operations.borrow().len();
    world.take_calls();
    let job = world.app_bearer(TENANT, "Behalf.Act");
    let of_user = format!("POST /v1/users/{TENANT}/{USER}/call/graph/v1.0/me/sendMail");
    let response = call_as(&app, job.expose(), &of_user, "mail").unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(world.take_calls(), [""; 0]);
    assert_eq!(
        world.operations.borrow().len() - operations,
        2,
        "the last look"
    );
    let called = world.api.calls.take();
    assert_eq!(called[0].body.as_deref(), Some(&b"mail"[..]));
    let line = told(&world);
    assert_eq!(
        (&line["callers"], &line["cached"]),
        (&json!("app"), &json!(true))
    );
}

#[test]
fn what_may_not_be_called_is_refused_and_told_and_calls_nobody() {
    let (world, app) = enrolled();
    for (request, status, code, defect) in [
        (
            "GET /v1/me/call/graph/v1.0/users",
            403,
            "call_not_allowed",
            "not_allowed",
        ),
        (
            "DELETE /v1/me/call/graph/v1.0/me",
            403,
            "call_not_allowed",
            "not_allowed",
        ),
        (
            "TRACE /v1/me/call/graph/v1.0/me",
            403,
            "call_not_allowed",
            "method",
        ),
        (
            "GET /v1/me/call/graph/v1.0/me/%2e%2e/users",
            403,
            "call_not_allowed",
            "dot_segment",
        ),
        (
            "GET /v1/me/call/graph",
            403,
            "call_not_allowed",
            "empty_segment",
        ),
        (
            "GET /v1/me/call/graph/",
            403,
            "call_not_allowed",
            "empty_segment",
        ),
        ("GET /v1/me/call/calendar/x", 404, "api_unknown", "api"),
        ("GET /v1/me/call//x", 404, "api_unknown", "api"),
        ("GET /v1/me/call/gr%61ph/v1.0/me", 404, "api_unknown", "api"),
    ] {
        let refused = call(&app, &world, request).unwrap_err();
        assert_eq!(refused, (status, code.to_owned()), "{request}");
        let line = told(&world);
        assert_eq!(
            (&line["event"], &line["defect"]),
            (&json!("refused"), &json!(defect)),
            "{line}"
        );
        assert!(
            line["app"].is_string() && line["user"].is_string(),
            "{line}"
        );
        assert!(!line.to_string().contains("users"), "{line}");
    }
    let elsewhere = call(
        &app,
        &world,
        &format!("GET /v1/users/{TENANT}/x/call/graph/v1.0/me"),
    );
    assert_eq!(elsewhere.unwrap_err(), (400, "invalid_request".to_owned()));
    let stranger = call_as(&app, "x.y.z", "GET /v1/me/call/nothing/x", "").unwrap_err();
    assert_eq!(stranger, (401, "token_malformed".to_owned()));
    world.settings.borrow_mut().insert("grants", "[]".into());
    world.advance(60);
    assert_eq!(
        call(&app, &world, ME).unwrap_err(),
        (403, "not_granted".to_owned())
    );
    assert!(world.api.calls.borrow().is_empty());
}

/// At every step of storage that a call takes, with an access token that is drawn and with one that was.
#[test]
fn nobody_is_called_for_a_user_whose_removal_was_acknowledged() {
    for is_cached in [false, true] {
        for step in 0..12 {
            let (world, app) = enrolled();
            if is_cached {
                call(&app, &world, ME).unwrap();
                world.api.calls.take();
            }
            let removed = |world: &World| {
                let key = world.keys_of("usr.").pop().unwrap();
                world.rows.borrow_mut().remove(&key);
            };
            *world.before_store.borrow_mut() = Some((step, Box::new(removed)));
            let outcome = call(&app, &world, ME);
            let is_removed = world.before_store.borrow().is_none();
            let called = world.api.calls.borrow().len();
            match outcome {
                Ok(_) => assert!(!is_removed && called == 1, "step {step}"),
                Err(refused) => {
                    assert_eq!(
                        (refused, called),
                        ((404, "not_enrolled".to_owned()), 0),
                        "step {step}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_challenge_is_answered_with_another_look_between() {
    let (world, app) = enrolled();
    world.api.answers.borrow_mut().push_back(challenge());
    let post = "POST /v1/me/call/graph/v1.0/me";
    let bearer = world.bearer();
    assert_eq!(
        call_as(&app, bearer.expose(), post, "body")
            .unwrap()
            .status(),
        200
    );
    let called = world.api.calls.take();
    assert_eq!(called.len(), 2);
    assert_eq!(called[0].body, called[1].body);
    assert_ne!(
        called[0].header("authorization"),
        called[1].header("authorization")
    );
    assert_eq!(world.claims.take(), [r#"{"access_token":{}}"#]);
    // It goes on: relayed, after one more try.
    world.advance(600);
    world
        .api
        .answers
        .borrow_mut()
        .extend([challenge(), challenge()]);
    let response = call_as(&app, bearer.expose(), post, "body").unwrap();
    assert_eq!(response.status(), 401);
    assert!(response.headers().contains_key("www-authenticate"));
    assert_eq!(world.api.calls.take().len(), 2);
    // Entra ID wants the user: ours to say.
    world.advance(600);
    world.api.answers.borrow_mut().push_back(challenge());
    let refusal =
        json!({"error": "invalid_grant", "error_codes": [50_076], "suberror": "basic_action"});
    world.entra_answers.borrow_mut().push_back((400, refusal));
    // The first is answered with what is kept.
    let refused = call_as(&app, bearer.expose(), post, "body");
    assert_eq!(
        refused.unwrap_err(),
        (401, "interaction_required".to_owned())
    );
}

#[test]
fn an_old_refresh_token_is_replaced_once_the_api_answers() {
    let (world, app) = enrolled();
    let before = world.user_rows();
    call(&app, &world, ME).unwrap();
    assert_eq!(world.user_rows(), before, "it is young");
    world.advance(86_400);
    call(&app, &world, ME).unwrap();
    assert_ne!(world.user_rows(), before);
    // What is lost is no loss.
    world.advance(86_400);
    let before = world.user_rows();
    let (parts, ()) = Request::get("/v1/me/call/graph/v1.0/me")
        .header(
            "authorization",
            format!("Bearer {}", world.bearer().expose()),
        )
        .body(())
        .unwrap()
        .into_parts();
    let answer = block_on(app.handle(&parts, Body("")));
    assert!(answer.replacement.is_some());
    drop(answer);
    assert_eq!(world.user_rows(), before);
    assert_eq!(call(&app, &world, ME).unwrap().status(), 200);
}

#[test]
fn an_api_that_fails_is_told_by_what_it_did() {
    use crate::port::RelayError;
    let (world, app) = enrolled();
    for (given, status, code) in [
        (
            Given::Fails(RelayError::Unreachable),
            502,
            "api_unreachable",
        ),
        (Given::Fails(RelayError::Garbled), 502, "api_garbled"),
        (Given::Fails(RelayError::TimedOut), 504, "api_timed_out"),
        (Given::Hangs, 504, "api_timed_out"),
        (Given::Fails(RelayError::Denied), 500, "setting"),
    ] {
        world.api.answers.borrow_mut().push_back(given);
        world.log.take();
        let refused = call(&app, &world, ME).unwrap_err();
        assert_eq!(refused, (status, code.to_owned()));
        let line = told(&world);
        assert_eq!(
            (&line["event"], &line["outcome"]),
            (&json!("failed"), &json!(code)),
            "{line}"
        );
    }
    // Its own errors are its own.
    world
        .api
        .answers
        .borrow_mut()
        .push_back(Given::Status(503, Vec::new()));
    assert_eq!(call(&app, &world, ME).unwrap().status(), 503);
}
