//! What is handed out again.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::Vault;
use crate::error::VaultError;
use crate::identity::{Nonce, TenantId, User};
use crate::keeper::{Keeper, Request as Asked};
use crate::ledger::key_value::KeyValueLedger;
use crate::secret::Bearer;
use crate::simulation::world::GRANTS;
use crate::vault::port::{
    Caller, Draw, Enrolment, Issued, NewestKey, Operator, Policy, Purpose, Role, SealedToken,
    StoredToken, Subject, SweepLimits, Terms, VaultPort,
};
use crate::vault::samples::{TENANT, USER, sign};

const DRAW: &str = "POST /v1/me/access-token";
const MAIL: &str = r#"{"scope":"https://graph.microsoft.com/Mail.Read"}"#;

fn enrolled() -> (Shared, App) {
    let world = World::new();
    let app = world.app();
    assert_eq!(ask(&app, &world, "PUT /v1/me", "").0, 201);
    world.take_calls();
    (world, app)
}

fn draw(app: &App, world: &Shared) -> Value {
    let (status, issued) = ask(app, world, DRAW, "");
    assert_eq!(status, 200, "{issued}");
    issued
}

/// Requests of users to Entra ID since the last look.
fn refreshes(world: &Shared) -> usize {
    let calls = world.take_calls();
    let is_refresh = |call: &&String| *call == "entra refresh_token";
    calls.iter().filter(is_refresh).count()
}

#[test]
fn six_thousand_draws_in_a_minute_are_one_request_an_instance_and_scope() {
    let (world, app) = enrolled();
    let other = world.app();
    let bearer = world.bearer();
    for draw in 0..6000 {
        let body = [
            None,
            Some("https://graph.microsoft.com/Mail.Read".to_owned()),
        ][draw % 2]
            .clone();
        let app = [&app, &other][draw / 2 % 2];
        block_on(app.draw(&Asked::of(&bearer), body, None)).unwrap();
        if draw % 100 == 0 {
            world.advance(1);
        }
    }
    assert_eq!(refreshes(&world), 4);
}

#[test]
fn a_hit_is_one_call_of_the_vault_and_two_reads_in_order() {
    let (world, _) = enrolled();
    let calls = Rc::default();
    let counted = Counted {
        vault: Vault::new(Rc::clone(&world)),
        calls: Rc::clone(&calls),
    };
    let ledger = KeyValueLedger::new(Rc::clone(&world), Rc::clone(&world));
    let app = Keeper::new(counted, ledger, Rc::clone(&world));
    let bearer = world.bearer();
    let draw = || block_on(app.draw(&Asked::of(&bearer), None, None)).unwrap();
    let first = draw();
    assert_eq!(calls.take(), ["identify", "access-token"]);
    world.operations.borrow_mut().clear();
    world.take_calls();
    let again = draw();
    assert_eq!(again.access_token.expose(), first.access_token.expose());
    assert_eq!(calls.take(), ["identify"]);
    let operations: Vec<_> = world
        .operations
        .take()
        .iter()
        .map(|it| it[..8].to_owned())
        .collect();
    assert_eq!(operations, ["get off.", "get usr."]);
    assert_eq!(world.take_calls(), Vec::<String>::new());
    let log = world.log.borrow();
    let line: Value = serde_json::from_str(log.last().unwrap()).unwrap();
    assert_eq!(
        (&line["event"], &line["cached"], &line["scope"]),
        (
            &json!("access_token_drawn"),
            &json!(true),
            &json!("https://graph.microsoft.com/.default")
        )
    );
}

#[test]
fn what_is_left_is_told_and_the_end_is_not_handed_out() {
    // How long the token lives, the setting, and for how long it is handed out again.
    for (lives, setting, kept) in [
        (3599, "900", 900),
        (1000, "900", 700),
        (700, "900", 400),
        (600, "900", 300),
        (599, "900", 299),
        (100, "900", 50),
        (1, "900", 0),
        (3599, "60", 60),
        (3599, "0", 0),
    ] {
        let (world, _) = enrolled();
        world
            .settings
            .borrow_mut()
            .insert("access_token_cache_seconds", setting.into());
        let app = world.app();
        world.entra_answers.borrow_mut().push_back((
            200,
            json!({"token_type": "Bearer", "expires_in": lives, "access_token": "at-canary-0", "refresh_token": "rt-canary-0"}),
        ));
        draw(&app, &world);
        assert_eq!(refreshes(&world), 1);
        if kept > 0 {
            world.advance(kept - 1);
            assert_eq!(
                draw(&app, &world)["expires_in"],
                lives - (kept - 1),
                "{lives} {setting}"
            );
            assert_eq!(refreshes(&world), 0, "{lives} {setting}");
            world.advance(1);
        }
        draw(&app, &world);
        assert_eq!(refreshes(&world), 1, "{lives} {setting}");
    }
}

#[test]
fn nothing_is_handed_out_longer_than_the_tenants_key_is_remembered() {
    let (world, _) = enrolled();
    let mut settings = world.settings.borrow_mut();
    settings.insert("key_cache_seconds", "60".into());
    settings.insert("key_latest_seconds", "60".into());
    drop(settings);
    let app = world.app();
    draw(&app, &world);
    world.take_calls();
    world.advance(59);
    draw(&app, &world);
    assert_eq!(refreshes(&world), 0);
    // The tenant has no key any more.
    world.down.borrow_mut().push("key vault");
    world.advance(1);
    assert_eq!(ask(&app, &world, DRAW, "").0, 503);
    // With its key again it is served what is still good.
    world.down.borrow_mut().clear();
    draw(&app, &world);
    assert_eq!(refreshes(&world), 0);
}

#[test]
fn a_machine_that_slept_hands_out_nothing_that_has_expired() {
    let (world, app) = enrolled();
    draw(&app, &world);
    world.take_calls();
    world.now.set(world.now.get() + 3599);
    draw(&app, &world);
    assert_eq!(refreshes(&world), 1);
}

#[test]
fn nothing_is_handed_out_after_a_removal_or_from_before_an_enrolment() {
    let admin = |world: &World| world.app_bearer(TENANT, "Behalf.Admin");
    for (who, request, expected) in [
        (
            "user",
            "DELETE /v1/me".to_owned(),
            code(StatusCode::NOT_FOUND, "not_enrolled"),
        ),
        (
            "user",
            "DELETE /v1/me/refresh-token".to_owned(),
            code(StatusCode::CONFLICT, "no_refresh_token"),
        ),
        (
            "admin",
            format!("DELETE /v1/users/{TENANT}/{USER}"),
            code(StatusCode::NOT_FOUND, "not_enrolled"),
        ),
        (
            "admin",
            format!("DELETE /v1/tenants/{TENANT}"),
            code(StatusCode::NOT_FOUND, "not_enrolled"),
        ),
    ] {
        // At this instance, and at another, where this one sees nothing of it.
        for here in [true, false] {
            let (world, app) = enrolled();
            let old = draw(&app, &world)["access_token"].clone();
            let bearer = if who == "user" {
                world.bearer()
            } else {
                admin(&world)
            };
            let other = world.app();
            let at = if here { &app } else { &other };
            assert!(ask_as(at, Some(bearer.expose()), &request, "").0 < 300);
            assert_eq!(
                problem(ask(&app, &world, DRAW, "")),
                expected,
                "{request} {here}"
            );
            ask(&other, &world, "PUT /v1/me", "");
            world.take_calls();
            assert_ne!(draw(&app, &world)["access_token"], old, "{request} {here}");
            assert_eq!(refreshes(&world), 1);
        }
    }
}

#[test]
fn a_removal_between_the_vaults_answer_and_the_last_look_holds() {
    let (world, app) = enrolled();
    draw(&app, &world);
    let bearer = world.bearer();
    let other = world.app();
    // The vault has answered when the first of the two reads comes.
    let remove =
        move |_: &World| block_on(other.remove_refresh_token(&Asked::of(&bearer))).unwrap();
    *world.before_store.borrow_mut() = Some((0, Box::new(remove)));
    let answer = ask(&app, &world, DRAW, "");
    assert_eq!(
        problem(answer),
        code(StatusCode::CONFLICT, "no_refresh_token")
    );
}

#[test]
fn every_hit_is_for_somebody_who_has_a_grant() {
    let (world, app) = enrolled();
    draw(&app, &world);
    world.take_calls();
    // Another app of the same user; a job.
    let mut claims = crate::vault::samples::claims();
    claims["azp"] = json!("aaaaaaaa-3333-3333-3333-333333333333");
    let other = sign(&crate::vault::samples::header(), &claims);
    assert_eq!(
        problem(ask_as(&app, Some(other.expose()), DRAW, "")),
        code(StatusCode::FORBIDDEN, "not_granted")
    );
    let job = world.app_bearer(TENANT, "Behalf.Act");
    let as_job = format!("POST /v1/users/{TENANT}/{USER}/access-token");
    assert_eq!(ask_as(&app, Some(job.expose()), &as_job, "").0, 200);
    // A token that was drawn for a rule which is gone, and is more than what is left.
    let listed = GRANTS.replace(r#""scopes": ["*"]"#, r#""scopes": ["User.Read"]"#);
    world.settings.borrow_mut().insert("grants", listed);
    world.advance(10);
    for (bearer, request) in [(world.bearer(), DRAW), (job, &*as_job)] {
        let answer = ask_as(&app, Some(bearer.expose()), request, "");
        assert_eq!(problem(answer), code(StatusCode::FORBIDDEN, "not_granted"));
    }
    assert_eq!(refreshes(&world), 0);
}

#[test]
fn a_claims_request_asks_and_what_it_brought_serves_the_same_for_a_moment() {
    let (world, app) = enrolled();
    let plain = draw(&app, &world)["access_token"].clone();
    let claims = r#"{"claims":"{\"access_token\":{\"nbf\":{\"essential\":true}}}"}"#;
    let in_base64 = r#"{"claims":"eyJhY2Nlc3NfdG9rZW4iOnsibmJmIjp7ImVzc2VudGlhbCI6dHJ1ZX19fQ"}"#;
    world.take_calls();
    let brought = ask(&app, &world, DRAW, claims).1["access_token"].clone();
    assert_ne!(brought, plain);
    world.advance(119);
    for same in [claims, in_base64] {
        assert_eq!(ask(&app, &world, DRAW, same).1["access_token"], brought);
    }
    assert_eq!(refreshes(&world), 1);
    assert_eq!(ask(&app, &world, DRAW, r#"{"claims":"{}"}"#).0, 200);
    assert_eq!(refreshes(&world), 1, "other claims");
    world.advance(1);
    ask(&app, &world, DRAW, claims);
    assert_eq!(refreshes(&world), 1);
    // The resource did not take the one from before the challenge.
    assert_ne!(draw(&app, &world)["access_token"], plain);
    assert_eq!(refreshes(&world), 1);
}

#[test]
fn a_refusal_is_given_again_for_two_minutes_for_its_user_enrolment_and_scope_alone() {
    for number in [65_001, 53_003, 50_105] {
        let (world, app) = enrolled();
        let refusal = (
            400,
            json!({"error": "invalid_grant", "error_codes": [number]}),
        );
        let rows = world.user_rows();
        world.entra_answers.borrow_mut().push_back(refusal);
        let first = ask(&app, &world, DRAW, MAIL);
        assert!(first.0 == 401 || first.0 == 403, "{first:?}");
        assert_eq!(refreshes(&world), 1);
        world.advance(119);
        let (mut again, mut before) = (ask(&app, &world, DRAW, MAIL), first);
        again.1["request_id"].take();
        before.1["request_id"].take();
        assert_eq!(again, before);
        assert_eq!(refreshes(&world), 0, "{number}");
        assert_eq!(retry_after(&app, &world, MAIL).as_deref(), Some("1"));
        // Nobody else is concerned: not another scope, not the record, not another user.
        draw(&app, &world);
        assert_eq!(refreshes(&world), 1);
        assert_eq!(world.user_rows(), rows);
        world.advance(1);
        assert_eq!(ask(&app, &world, DRAW, MAIL).0, 200);
        assert_eq!(refreshes(&world), 1);
    }
}

#[test]
fn a_new_enrolment_ends_a_refusal_and_a_removal_goes_before_it() {
    for own in [true, false] {
        let (world, app) = enrolled();
        let body = if own { "" } else { MAIL };
        let refusal = (
            400,
            json!({"error": "invalid_grant", "error_codes": [65_001]}),
        );
        world.entra_answers.borrow_mut().push_back(refusal.clone());
        assert_eq!(ask(&app, &world, DRAW, body).0, 401);
        // Where it was refused, and elsewhere.
        let other = world.app();
        ask(&other, &world, "PUT /v1/me", "");
        assert_eq!(ask(&app, &world, DRAW, body).0, 200);
        world.advance(900);
        world.entra_answers.borrow_mut().push_back(refusal);
        assert_eq!(ask(&app, &world, DRAW, body).0, 401);
        ask(&other, &world, "DELETE /v1/me", "");
        let gone = code(StatusCode::NOT_FOUND, "not_enrolled");
        assert_eq!(problem(ask(&app, &world, DRAW, body)), gone);
    }
}

#[test]
fn what_fails_for_another_reason_is_not_remembered() {
    let (world, app) = enrolled();
    for (status, body) in [
        (
            400,
            json!({"error": "invalid_scope", "error_codes": [70_011]}),
        ),
        (
            401,
            json!({"error": "invalid_client", "error_codes": [7_000_215]}),
        ),
    ] {
        world.entra_answers.borrow_mut().push_back((status, body));
        assert!(ask(&app, &world, DRAW, MAIL).0 >= 400);
        assert_eq!(ask(&app, &world, DRAW, MAIL).0, 200);
        world.advance(900);
    }
}

fn retry_after(app: &App, world: &Shared, body: &'static str) -> Option<String> {
    let (parts, ()) = Request::post("/v1/me/access-token")
        .header(
            "authorization",
            format!("Bearer {}", world.bearer().expose()),
        )
        .body(())
        .unwrap()
        .into_parts();
    let response = handled(app, &parts, body);
    let value = response.headers().get("retry-after")?;
    Some(value.to_str().unwrap().to_owned())
}

/// A vault whose calls are counted: those that a draw can need.
struct Counted {
    vault: Vault<Shared>,
    calls: Rc<RefCell<Vec<&'static str>>>,
}

impl Counted {
    fn count(&self, call: &'static str) -> &Vault<Shared> {
        self.calls.borrow_mut().push(call);
        &self.vault
    }
}

impl VaultPort for Counted {
    fn check_settings(&self) -> Result<Policy, VaultError> {
        self.count("check-settings").check_settings()
    }

    async fn identify(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        purpose: &Purpose,
        terms: Terms,
    ) -> Result<Caller, VaultError> {
        let vault = self.count("identify");
        vault.identify(bearer, subject, purpose, terms).await
    }

    async fn access_token(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        nonce: &Nonce,
        token: &str,
        draw: Draw,
        terms: Terms,
    ) -> Result<Issued, VaultError> {
        let vault = self.count("access-token");
        let issued = vault.access_token(bearer, subject, nonce, token, draw, terms);
        issued.await
    }

    fn forget(&self, user: &User) {
        self.count("forget").forget(user);
    }

    async fn enrol(
        &self,
        _: &Bearer,
        _: &Nonce,
        _: Option<&str>,
        _: Terms,
    ) -> Result<Enrolment, VaultError> {
        unreachable!()
    }

    async fn refresh(&self, _: &StoredToken, _: Terms) -> Result<SealedToken, VaultError> {
        unreachable!()
    }

    async fn reseal(&self, _: &StoredToken, _: Terms) -> Result<Option<SealedToken>, VaultError> {
        unreachable!()
    }

    async fn newest_key_version(&self, _: &TenantId, _: Terms) -> Result<NewestKey, VaultError> {
        unreachable!()
    }

    async fn confirm_clock(&self, _: Terms) -> Result<(), VaultError> {
        unreachable!()
    }

    async fn authorize_sweep(&self, _: &Bearer, _: Terms) -> Result<SweepLimits, VaultError> {
        unreachable!()
    }

    async fn authorize_operator(
        &self,
        _: &Bearer,
        _: Role,
        _: Option<&TenantId>,
        _: Terms,
    ) -> Result<Operator, VaultError> {
        unreachable!()
    }
}
