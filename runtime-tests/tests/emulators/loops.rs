//! Entra ID: a user's identical requests again and again.

use std::time::Duration;

use reqwest::StatusCode;
use runtime_tests::emulators::{Emulators, OTHER_TENANT, OTHER_USER, Options, TENANT};
use serde_json::{Value, json};

use crate::client::{Form, World, set};

const REFUSED: (u16, u64) = (400, 50_196);

async fn start() -> World {
    World::with(Options {
        provokes_loop: true,
        ..Options::default()
    })
    .await
}

/// As a service does that keeps no token: refreshes for one scope.
fn refresh(world: &World, token: &str, scope: &str) -> Form {
    let mut form = world.refresh(token);
    set(&mut form, "scope", scope);
    form
}

async fn refused(world: &World, tenant: &str, form: &Form) -> (u16, u64) {
    let (status, error, code, suberror) = world.error(tenant, form).await;
    assert_eq!((&*error, &*suberror), ("invalid_grant", ""));
    (status, code)
}

#[tokio::test]
async fn fifteen_are_answered_and_the_sixteenth_is_refused_until_five_minutes_are_over() {
    let world = start().await;
    let token = world.refresh_token().await;
    let mail = refresh(&world, &token, "https://graph.microsoft.com/Mail.Read");
    for _ in 0..14 {
        world.token(&mail).await;
    }
    world.emulators.pass(Duration::from_mins(4));
    world.token(&mail).await;
    let response = world.post_token(TENANT, &mail).await;
    assert_eq!(response.status(), 400);
    assert!(!response.headers().contains_key("retry-after"));
    let body: Value = response.json().await.unwrap();
    assert_eq!(
        (&body["error"], &body["error_codes"]),
        (&json!("invalid_grant"), &json!([50_196]))
    );
    let text = body["error_description"].as_str().unwrap();
    assert!(text.starts_with("AADSTS50196: The server terminated an operation"));
    assert!(body.get("suberror").is_none() && body.get("error_uri").is_none());
    assert_eq!(world.emulators.loops_broken(), 1);

    // The first fourteen are not of the last five minutes any more: the refused one is, and counts.
    world.emulators.pass(Duration::from_mins(1));
    for _ in 0..13 {
        world.token(&mail).await;
    }
    assert_eq!(refused(&world, TENANT, &mail).await, REFUSED);
    // It does not help to go on.
    world.emulators.pass(Duration::from_mins(3));
    for _ in 0..15 {
        assert_eq!(refused(&world, TENANT, &mail).await, REFUSED);
    }
    world.emulators.pass(Duration::from_mins(5));
    world.token(&mail).await;
}

#[tokio::test]
async fn only_what_is_identical_is_a_loop() {
    let world = start().await;
    let token = world.refresh_token().await;
    let mail = refresh(&world, &token, "https://graph.microsoft.com/Mail.Read");
    // Taking each new refresh token is no way out.
    let mut newest = mail.clone();
    for _ in 0..15 {
        let answer = world.token(&newest).await;
        set(
            &mut newest,
            "refresh_token",
            answer["refresh_token"].as_str().unwrap(),
        );
    }
    for form in [&mail, &newest] {
        assert_eq!(refused(&world, TENANT, form).await, REFUSED);
    }
    // Another scope, other claims, another grant, another user, the same one of another tenant.
    world
        .token(&refresh(
            &world,
            &token,
            "https://graph.microsoft.com/User.Read",
        ))
        .await;
    let mut other_claims = mail.clone();
    set(
        &mut other_claims,
        "claims",
        r#"{"access_token":{"xms_cc":{"values":["cp1"]}}}"#,
    );
    world.token(&other_claims).await;
    let mut obo = world.obo(&world.emulators.caller().mint());
    set(&mut obo, "scope", "https://graph.microsoft.com/Mail.Read");
    world.token(&obo).await;
    let other = world
        .token(&world.obo(&world.emulators.caller().user(OTHER_USER).mint()))
        .await;
    let other = other["refresh_token"].as_str().unwrap();
    world
        .token(&refresh(
            &world,
            other,
            "https://graph.microsoft.com/Mail.Read",
        ))
        .await;
    let elsewhere = world.obo(&world.emulators.caller().tenant(OTHER_TENANT).mint());
    let elsewhere: Value = world
        .post_token(OTHER_TENANT, &elsewhere)
        .await
        .json()
        .await
        .unwrap();
    let elsewhere = refresh(
        &world,
        elsewhere["refresh_token"].as_str().unwrap(),
        "https://graph.microsoft.com/Mail.Read",
    );
    assert_eq!(
        world.post_token(OTHER_TENANT, &elsewhere).await.status(),
        200
    );

    // What is refused for another reason is as much a loop; and so are sign-ins.
    for _ in 0..14 {
        world.token(&obo).await;
    }
    set(
        &mut obo,
        "assertion",
        &world.emulators.caller().claim("uti", 2).mint(),
    );
    assert_eq!(refused(&world, TENANT, &obo).await, REFUSED);
    let user = world.emulators.options().demo_user.clone();
    world.emulators.refuse(TENANT, &user, Some(65_001));
    let files = refresh(&world, &token, "https://graph.microsoft.com/Files.Read");
    for _ in 0..15 {
        assert_eq!(world.error(TENANT, &files).await.2, 65_001);
    }
    assert_eq!(refused(&world, TENANT, &files).await, REFUSED);
    // The app's own requests are not.
    for _ in 0..20 {
        world.vault().await;
    }
}

#[tokio::test]
async fn it_can_be_switched_off_and_time_can_pass_over_the_control_port() {
    let world = start().await;
    let control = world.emulators.control_url();
    let put = async |path: &str, body: Value| {
        let request = world.client.put(format!("{control}{path}"));
        let answer = request.json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    };
    let token = world.refresh_token().await;
    let form = world.refresh(&token);
    put("/loops", json!({ "refused": false })).await;
    for _ in 0..40 {
        world.token(&form).await;
    }
    put("/loops", json!({ "refused": true })).await;
    for _ in 0..15 {
        world.token(&form).await;
    }
    assert_eq!(refused(&world, TENANT, &form).await, REFUSED);
    let request = world.client.post(format!("{control}/loops/pass"));
    let answer = request
        .json(&json!({ "seconds": 300 }))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    world.token(&form).await;
}

/// Whoever runs into a loop without meaning to is told, whatever else they look at.
#[tokio::test]
async fn a_loop_that_nobody_meant_fails_the_test() {
    for (meant, requests, fails) in [(false, 16, true), (false, 15, false), (true, 16, false)] {
        let world = World::with(Options {
            provokes_loop: meant,
            ..Options::default()
        })
        .await;
        let token = world.refresh_token().await;
        for _ in 0..requests {
            world.post_token(TENANT, &world.refresh(&token)).await;
        }
        let ended = tokio::spawn(Emulators::stop(world.emulators)).await;
        assert_eq!(ended.is_err(), fails, "{meant} {requests}");
    }
}
