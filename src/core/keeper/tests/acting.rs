//! What apps do for users who are away, and who is told what to do.

use super::*;
use crate::vault::samples::{OTHER_USER, TENANT, USER};

const OTHER_TENANT: &str = "77777777-7777-7777-7777-777777777777";

fn of(user: &str, path: &str) -> String {
    format!("/v1/users/{TENANT}/{user}{path}")
}

/// As an app with this role.
fn ask_with(role: &str, app: &App, world: &Shared, request: &str) -> (u16, Value) {
    let bearer = world.app_bearer(TENANT, role);
    ask_as(app, Some(bearer.expose()), request, "")
}

fn refusal(number: u32) -> (u16, Value) {
    (
        400,
        json!({"error": "invalid_grant", "error_codes": [number], "claims": "{\"a\":1}"}),
    )
}

#[test]
fn a_background_jobs_life() {
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    let draw = format!("POST {}", of(USER, "/access-token"));
    let (status, issued) = ask_with("Behalf.Act", &app, &world, &draw);
    assert_eq!((status, &issued["token_type"]), (200, &json!("Bearer")));
    let shown = ask_with(
        "Behalf.Admin",
        &app,
        &world,
        &format!("GET {}", of(USER, "")),
    );
    assert_eq!(shown, ask(&app, &world, "GET /v1/me", ""));
    assert_eq!(
        (&shown.1["turn"], &shown.1["enrolled_by"]),
        (
            &json!("nobody"),
            &json!("33333333-3333-3333-3333-333333333333")
        )
    );
    let no_access = format!("DELETE {}", of(USER, "/refresh-token"));
    assert_eq!(ask_with("Behalf.Admin", &app, &world, &no_access).0, 204);
    assert_eq!(
        problem(ask_with("Behalf.Act", &app, &world, &draw)),
        code(StatusCode::CONFLICT, "no_refresh_token")
    );
    assert_eq!(ask(&app, &world, "GET /v1/me", "").1["turn"], "user");
    let remove = format!("DELETE {}", of(USER, ""));
    for _ in 0..2 {
        assert_eq!(ask_with("Behalf.Admin", &app, &world, &remove).0, 204);
        let gone = code(StatusCode::NOT_FOUND, "not_enrolled");
        assert_eq!(problem(ask_with("Behalf.Act", &app, &world, &draw)), gone);
        assert_eq!(problem(ask(&app, &world, "GET /v1/me", "")), gone);
    }
    assert!(world.user_rows().is_empty());
}

/// Else an app could find out who is enrolled.
#[test]
fn a_refusal_is_the_same_for_every_object_id_and_reads_nothing() {
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    world.settings.borrow_mut().insert("grants", "[]".into());
    let app = {
        drop(app);
        world.app()
    };
    // Whatever is read from now on fails.
    world.store_fails_after.set(Some(0));
    let told = |role: &str, request: &str| {
        let (status, mut body) = ask_with(role, &app, &world, request);
        body["request_id"].take();
        (status, body)
    };
    for (role, method, path, expected) in [
        ("Behalf.Act", "POST", "/access-token", "not_granted"),
        (
            "Behalf.Admin",
            "POST",
            "/access-token",
            "insufficient_scope",
        ),
        ("Behalf.Act", "GET", "", "insufficient_scope"),
        ("Behalf.Act", "DELETE", "", "insufficient_scope"),
        (
            "Behalf.Read",
            "DELETE",
            "/refresh-token",
            "insufficient_scope",
        ),
    ] {
        let request = |user| format!("{method} {}", of(user, path));
        let enrolled = told(role, &request(USER));
        assert_eq!(
            problem(enrolled.clone()),
            code(StatusCode::FORBIDDEN, expected)
        );
        assert_eq!(
            enrolled,
            told(role, &request(OTHER_USER)),
            "{role} {method} {path}"
        );
    }
    let elsewhere = format!("GET /v1/users/{OTHER_TENANT}/{USER}");
    assert_eq!(
        problem(told("Behalf.Admin", &elsewhere)),
        code(StatusCode::FORBIDDEN, "not_granted")
    );
}

#[test]
fn paths_of_users_name_two_guids() {
    let world = World::new();
    let app = world.app();
    for (request, expected) in [
        (
            format!("GET /v1/users/contoso.com/{USER}"),
            (400, "invalid_request"),
        ),
        (
            format!("GET /v1/users/{TENANT}/me"),
            (400, "invalid_request"),
        ),
        (
            format!("GET /v1/users/{TENANT}/{USER}%20"),
            (400, "invalid_request"),
        ),
        (
            format!("POST /v1/users/{TENANT}/*/access-token"),
            (400, "invalid_request"),
        ),
        (
            format!("DELETE /v1/users/{TENANT}/{}x", &USER[1..]),
            (400, "invalid_request"),
        ),
        (
            "DELETE /v1/tenants/contoso.com".to_owned(),
            (400, "invalid_request"),
        ),
        (format!("GET /v1/users/{TENANT}"), (404, "not_found")),
        (
            format!("GET /v1/users/{TENANT}/{USER}/"),
            (404, "not_found"),
        ),
        (
            format!("GET /v1/users/{TENANT}/{USER}/sweep"),
            (404, "not_found"),
        ),
        (
            format!("POST /v1/users/{TENANT}/{USER}/access-token/x"),
            (404, "not_found"),
        ),
        (
            format!("PUT /v1/users/{TENANT}/{USER}"),
            (405, "method_not_allowed"),
        ),
        (
            format!("GET /v1/users/{TENANT}/{USER}/access-token"),
            (405, "method_not_allowed"),
        ),
        // In either case.
        (
            format!(
                "GET /v1/users/{TENANT}/{}",
                "ABCDEFAB-4444-4444-4444-444444444444"
            ),
            (404, "not_enrolled"),
        ),
    ] {
        let (status, code) = problem(ask_with("Behalf.Admin", &app, &world, &request));
        assert_eq!((status, code.as_str()), expected, "{request}");
    }
}

#[test]
fn a_refusal_of_the_enrolments_own_scope_is_written_once_as_a_sweep_writes_it() {
    let own = "https://graph.microsoft.com/.default";
    for (number, turn, status) in [
        (50_076, "user", "interaction_required"),
        (50_173, "user", "quarantined"),
        (50_105, "organisation", "organisation_required"),
    ] {
        for body in ["", r#"{"scope":"https://graph.microsoft.com/.default"}"#] {
            let world = World::new();
            let app = world.app();
            ask(&app, &world, "PUT /v1/me", "");
            let before = world.user_rows();
            world.entra_answers.borrow_mut().push_back(refusal(number));
            assert!(ask(&app, &world, "POST /v1/me/access-token", body).0 >= 400);
            let view = ask(&app, &world, "GET /v1/me", "").1;
            assert_eq!(
                (
                    &view["turn"],
                    &view["status"],
                    &view["aadsts"],
                    &view["scope"]
                ),
                (&json!(turn), &json!(status), &json!(number), &json!(own)),
                "{number} {body}"
            );
            if status == "interaction_required" {
                assert_eq!(view["claims"], r#"{"a":1}"#);
            }
            let once = world.user_rows();
            assert_ne!(once, before);
            // It stays due, and three rows a user.
            assert_eq!(
                (once.len(), world.keys_of("due.").len()),
                (3, 1),
                "{once:?}"
            );
            world.advance(60);
            world.entra_answers.borrow_mut().push_back(refusal(number));
            assert!(ask(&app, &world, "POST /v1/me/access-token", body).0 >= 400);
            assert_eq!(
                world.user_rows(),
                once,
                "what is known is not written again"
            );
            // It works again: so it is not called refused any longer.
            assert_eq!(ask(&app, &world, "POST /v1/me/access-token", body).0, 200);
            let view = ask(&app, &world, "GET /v1/me", "").1;
            assert_eq!(
                (&view["turn"], &view["status"]),
                (&json!("nobody"), &json!("active"))
            );
        }
    }
}

#[test]
fn a_refusal_of_another_scope_or_for_claims_says_nothing_of_the_enrolment() {
    for body in [
        r#"{"scope":"https://graph.microsoft.com/Mail.Read"}"#,
        r#"{"claims":"{\"access_token\":{}}"}"#,
    ] {
        let world = World::new();
        let app = world.app();
        ask(&app, &world, "PUT /v1/me", "");
        let before = world.user_rows();
        world.entra_answers.borrow_mut().push_back(refusal(65_001));
        assert_eq!(ask(&app, &world, "POST /v1/me/access-token", body).0, 401);
        assert_eq!(world.user_rows(), before, "{body}");
    }
    // Nor does a success: what is stored anew on that occasion keeps whose turn it is.
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    world.entra_answers.borrow_mut().push_back(refusal(50_076));
    ask(&app, &world, "POST /v1/me/access-token", "");
    let before = ask(&app, &world, "GET /v1/me", "").1;
    world.advance(2 * 86_400);
    let other = r#"{"scope":"https://graph.microsoft.com/Mail.Read"}"#;
    assert_eq!(ask(&app, &world, "POST /v1/me/access-token", other).0, 200);
    let after = ask(&app, &world, "GET /v1/me", "").1;
    assert_ne!(after["refreshed_at"], before["refreshed_at"]);
    for member in ["turn", "status", "claims", "aadsts", "refresh_due_at"] {
        assert_eq!(after[member], before[member], "{member}");
    }
}

#[test]
fn an_outage_and_an_operators_fault_are_nobodys_turn() {
    for answer in [
        (503, json!({})),
        (
            401,
            json!({"error": "invalid_client", "error_codes": [7_000_215]}),
        ),
        (
            400,
            json!({"error": "invalid_grant", "error_codes": [50_196]}),
        ),
    ] {
        let world = World::new();
        let app = world.app();
        ask(&app, &world, "PUT /v1/me", "");
        let before = world.user_rows();
        let tries = std::iter::repeat_n(answer, 2);
        world.entra_answers.borrow_mut().extend(tries);
        assert!(ask(&app, &world, "POST /v1/me/access-token", "").0 >= 500);
        assert_eq!(world.user_rows(), before);
    }
}

/// Whoever enrolled anew meanwhile is not called refused for what the former sign-in was refused.
#[test]
fn a_refusal_that_comes_late_does_not_touch_a_new_enrolment() {
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    world.entra_answers.borrow_mut().push_back(refusal(50_173));
    // A draw reads head, off and rec; then Entra ID refuses; then the refusal is to be written.
    let replica = world.app();
    let bearer = world.bearer();
    let again = move |world: &World| {
        world.entra_answers.borrow_mut().clear();
        let _ = &bearer;
        let _ = block_on(replica.enrol(&crate::keeper::Request::of(&bearer), None)).unwrap();
    };
    *world.before_store.borrow_mut() = Some((4, Box::new(again)));
    assert_eq!(ask(&app, &world, "POST /v1/me/access-token", "").0, 409);
    let view = ask(&app, &world, "GET /v1/me", "").1;
    assert_eq!(
        (&view["turn"], &view["status"]),
        (&json!("nobody"), &json!("active"))
    );
    assert_eq!(world.user_rows().len(), 3, "{:?}", world.user_rows().keys());
}
