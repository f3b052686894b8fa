//! What the log says of who did what.

use std::collections::BTreeSet;

use super::*;
use crate::keeper::audit::{Action, Event};
use crate::vault::samples::{TENANT, USER};

const APP: &str = "33333333-3333-3333-3333-333333333333";

/// The lines of the audit since the last look.
fn told(world: &Shared) -> Vec<Value> {
    let events = Event::ALL.map(Event::name);
    let lines = world.log.take().into_iter();
    let lines = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let is_audit = |line: &Value| events.iter().any(|event| line["event"] == *event);
    lines.filter(is_audit).collect()
}

#[test]
fn every_enrolment_draw_removal_and_refusal_is_one_line() {
    let world = World::new();
    let app = world.app();
    let job = world.app_bearer(TENANT, "Behalf.Act");
    let admin = world.app_bearer(TENANT, "Behalf.Admin");
    let user = world.bearer();
    let graph = "https://graph.microsoft.com";
    let mail = r#"{"scope":"https://graph.microsoft.com/Mail.Read"}"#;
    let vault = r#"{"scope":"https://vault.azure.net/.default"}"#;
    let draw = format!("POST /v1/users/{TENANT}/{USER}/access-token");
    let of_user = format!("DELETE /v1/users/{TENANT}/{USER}");
    let mut pseudonyms = BTreeSet::new();
    for (bearer, request, body, event, action, outcome, rule, scope) in [
        (
            &job,
            &*draw,
            "",
            "refused",
            "draw",
            "not_enrolled",
            Some("grants[1]"),
            None,
        ),
        (
            &user,
            "PUT /v1/me",
            "",
            "enrolled",
            "enrol",
            "done",
            None,
            Some(".default"),
        ),
        (
            &user,
            "POST /v1/me/access-token",
            "",
            "access_token_drawn",
            "draw",
            "done",
            Some("grants[0]"),
            Some(".default"),
        ),
        (
            &job,
            &*draw,
            mail,
            "access_token_drawn",
            "draw",
            "done",
            Some("grants[1]"),
            Some("Mail.Read"),
        ),
        (
            &job,
            &*draw,
            vault,
            "refused",
            "draw",
            "not_granted",
            None,
            Some("https://vault.azure.net/.default"),
        ),
        (
            &user,
            "DELETE /v1/me/refresh-token",
            "",
            "refresh_token_removed",
            "remove_refresh_token",
            "done",
            None,
            None,
        ),
        (
            &user,
            "POST /v1/me/access-token",
            "",
            "refused",
            "draw",
            "no_refresh_token",
            Some("grants[0]"),
            None,
        ),
        (
            &admin,
            &*of_user,
            "",
            "user_removed",
            "remove_user",
            "done",
            None,
            None,
        ),
        (
            &user,
            "GET /v1/me",
            "",
            "refused",
            "show",
            "not_enrolled",
            None,
            None,
        ),
    ] {
        world.log.take();
        ask_as(&app, Some(bearer.expose()), request, body);
        let lines = told(&world);
        let [line] = &lines[..] else {
            panic!("{request}: {lines:?}");
        };
        let expected = json!({"event": event, "action": action, "outcome": outcome, "app": APP, "tenant": TENANT});
        for (member, value) in expected.as_object().unwrap() {
            assert_eq!(line[member], *value, "{request}: {line}");
        }
        let callers = if request.contains("/users/") {
            "app"
        } else {
            "delegated"
        };
        assert_eq!(line["callers"], callers, "{line}");
        assert_eq!(line["rule"].as_str(), rule, "{request}: {line}");
        let full = scope.map(|scope| {
            if scope.starts_with("https") {
                scope.to_owned()
            } else {
                format!("{graph}/{scope}")
            }
        });
        assert_eq!(line["scope"].as_str(), full.as_deref(), "{request}: {line}");
        assert_eq!(line["resource"].is_string(), scope.is_some(), "{line}");
        assert_eq!(
            line["cached"].is_boolean(),
            event == "access_token_drawn",
            "{line}"
        );
        assert!(
            line["milliseconds"].is_u64() && line["request_id"].is_string(),
            "{line}"
        );
        pseudonyms.insert(line["user"].as_str().unwrap().to_owned());
        assert!(!line.to_string().contains(USER), "{line}");
    }
    assert_eq!(pseudonyms.len(), 1, "{pseudonyms:?}");
}

#[test]
fn what_fails_is_told_as_a_failure_and_strangers_are_not_told_of() {
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    world.down.borrow_mut().push("entra");
    world.log.take();
    ask(&app, &world, "POST /v1/me/access-token", "");
    let lines = told(&world);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        (&lines[0]["event"], &lines[0]["outcome"]),
        (&json!("failed"), &json!("entra_unavailable"))
    );
    world.down.borrow_mut().clear();
    world.advance(60);
    // By nobody who is known: whoever sends what he likes writes no line.
    for bearer in [None, Some("x.y.z")] {
        ask_as(&app, bearer, "POST /v1/me/access-token", "");
    }
    let wrong_role = world.app_bearer(TENANT, "Behalf.Read");
    ask_as(
        &app,
        Some(wrong_role.expose()),
        &format!("DELETE /v1/users/{TENANT}/{USER}"),
        "",
    );
    assert_eq!(told(&world), Vec::<Value>::new());
}

#[test]
fn what_is_about_a_tenant_is_told_too() {
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    world.log.take();
    let admin = world.app_bearer(TENANT, "Behalf.Admin");
    let reader = world.app_bearer(TENANT, "Behalf.Read");
    ask_as(
        &app,
        Some(admin.expose()),
        &format!("DELETE /v1/tenants/{TENANT}"),
        "",
    );
    let lines = told(&world);
    let events: Vec<_> = lines
        .iter()
        .map(|line| line["event"].as_str().unwrap())
        .collect();
    assert_eq!(events, ["user_removed", "tenant_removed"]);
    assert_eq!(
        (&lines[1]["app"], &lines[1]["removed"]),
        (&json!(APP), &json!(1))
    );
    assert_eq!(lines[0]["request_id"], lines[1]["request_id"]);
    let elsewhere = "GET /v1/status?tenant=77777777-7777-7777-7777-777777777777";
    ask_as(&app, Some(reader.expose()), elsewhere, "");
    let lines = told(&world);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        (
            &lines[0]["action"],
            &lines[0]["outcome"],
            &lines[0]["callers"]
        ),
        (&json!("status"), &json!("not_granted"), &json!("app"))
    );
}

#[test]
fn what_is_missing_is_for_the_operator_under_the_requests_id() {
    let world = World::new();
    world.settings.borrow_mut().insert("grants", "[]".into());
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    world.log.take();
    let (status, body) = ask(&app, &world, "POST /v1/me/access-token", "");
    assert_eq!((status, &body["code"]), (403, &json!("not_granted")));
    assert!(!body.to_string().contains("grants"), "{body}");
    let log = world.log.borrow();
    let reasons: Vec<_> = log
        .iter()
        .filter(|line| line.contains("to allow it, add"))
        .collect();
    assert_eq!(reasons.len(), 1, "{log:?}");
    assert!(
        reasons[0].contains(body["request_id"].as_str().unwrap()),
        "{reasons:?}"
    );
}

/// Support at Microsoft asks for it, and it must not be one that a caller has chosen.
#[test]
fn others_know_a_request_by_an_id_of_ours_that_the_log_has() {
    let world = World::new();
    let app = world.app();
    ask(&app, &world, "PUT /v1/me", "");
    let lines = told(&world);
    let ours = lines[0]["correlation_id"].as_str().unwrap().to_owned();
    assert_ne!(lines[0]["request_id"], json!(ours));
    let known = world.request_ids.take();
    let names: BTreeSet<_> = known.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), 2, "{known:?}");
    assert!(known.iter().all(|(_, id)| *id == ours), "{known:?} {ours}");
    // Another request has another, and what the vault says of it has it, too.
    let dead = json!({"error": "invalid_grant", "error_codes": [50_173], "suberror": "bad_token"});
    world.entra_answers.borrow_mut().push_back((400, dead));
    ask(&app, &world, "POST /v1/me/access-token", "");
    let log = world.log.borrow();
    let of = |event: &str| {
        let line = log
            .iter()
            .find(|line| line.contains(&format!(r#""event":"{event}""#)));
        let line: Value = serde_json::from_str(line.unwrap()).unwrap();
        line["correlation_id"].as_str().unwrap().to_owned()
    };
    assert_eq!(of("entra_refused"), of("refused"));
    assert_ne!(of("refused"), ours);
}

/// README, "Audit", is what others write their alerts by.
#[test]
fn the_table_of_the_readme_is_what_is_told() {
    let readme = include_str!("../../../../README.md");
    let (_, section) = readme.split_once("### Audit\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let section = section.split("\n### ").next().unwrap();
    let cells: BTreeSet<_> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    let events = Event::ALL.map(Event::name);
    let members = [
        "event",
        "action",
        "outcome",
        "callers",
        "app",
        "rule",
        "tenant",
        "user",
        "resource",
        "scope",
        "api",
        "pattern",
        "path",
        "defect",
        "status",
        "cached",
        "milliseconds",
        "request_id",
        "correlation_id",
        "removed",
        "remaining",
    ];
    let expected: BTreeSet<_> = events.iter().copied().chain(members).collect();
    assert_eq!(cells, expected);
    for action in Action::ALL.map(Action::name) {
        assert!(section.contains(&format!("`{action}`")), "{action}");
    }
}
