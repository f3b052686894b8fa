//! Entra ID and Key Vault fail in every way; no user's record suffers.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use reqwest::Method;
use runtime_tests::emulators::{
    Answer, Fault, OTHER_TENANT, OTHER_USER, Options, TENANT, Target, USER, key_name,
};
use runtime_tests::scene::Scene;
use serde_json::json;

type Result = anyhow::Result<()>;

const OBO: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const REFRESH: &str = "refresh_token";
const CLAIMS: &str = r#"{"access_token":{"capolids":{"essential":true,"values":["c"]}}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_fails_leaves_the_enrolment_as_it_was() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let before = scene.rows()?;
    for (fault, status, code) in failures() {
        scene.emulators.fault(fault.grant(OBO));
        let answer = scene.call(Method::PUT, "/v1/me").await?;
        scene.refused(&answer, status, code, &before)?;
    }
    scene.draw().await?;
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_exchange_that_fails_stores_nothing() -> Result {
    let scene = Scene::start().await?;
    let before = scene.rows()?;
    for (fault, status, code) in failures() {
        scene.emulators.fault(fault.grant(OBO));
        let answer = scene.call(Method::PUT, "/v1/me").await?;
        scene.refused(&answer, status, code, &before)?;
    }
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draw_that_fails_leaves_the_enrolment_as_it_was() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let before = scene.rows()?;
    for (fault, status, code) in failures() {
        scene.emulators.fault(fault.grant(REFRESH));
        let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
        scene.refused(&answer, status, code, &before)?;
    }
    // A dead token is for the user to replace, and is kept all the same.
    scene.emulators.revoke(TENANT, USER);
    let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
    scene.refused(&answer, 409, "reenrolment_required", &before)?;
    assert_eq!(scene.call(Method::PUT, "/v1/me").await?.status, 200);
    scene.draw().await?;
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_reaches_the_caller_unchanged() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let before = scene.rows()?;
    scene
        .emulators
        .fault(entra(53_003, Some(CLAIMS)).grant(REFRESH));
    let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
    scene.refused(&answer, 401, "interaction_required", &before)?;
    assert_eq!(answer.json["claims"], CLAIMS);
    let expected = format!(
        r#"Bearer error="insufficient_claims", claims="{}""#,
        BASE64_STANDARD.encode(CLAIMS)
    );
    assert_eq!(answer.header("www-authenticate"), expected);
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_up_whom_it_is_for() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let asked = || scene.emulators.journal().len();
    let caller = || scene.emulators.caller();
    let enrol = async |token: String| scene.send(Method::PUT, "/v1/me", Some(&token), None).await;

    // A loop that Entra ID broke holds up its user for five minutes (facts §A.7), and no other.
    scene.emulators.fault(Fault::entra(50_196).grant(REFRESH));
    let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
    assert_eq!(
        (answer.code(), answer.header("retry-after")),
        ("entra_unavailable", "300")
    );
    let before = asked();
    let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
    assert_eq!(answer.code(), "entra_unavailable");
    assert!((290..=300).contains(&answer.header("retry-after").parse::<u32>()?));
    assert_eq!(asked(), before, "Entra ID was left alone");
    assert_eq!(enrol(caller().user(OTHER_USER).mint()).await?.status, 201);

    // Throttling holds up the tenant, and no other; a date says how long as well as a number.
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(60);
    let until = until.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    scene
        .emulators
        .fault(Fault::new(Target::EntraToken, status(429)).retry_after(&until));
    let third = "99999999-4444-4444-8444-444444444444";
    let answer = enrol(caller().user(third).mint()).await?;
    assert_eq!(answer.code(), "entra_unavailable");
    assert!((50..=60).contains(&answer.header("retry-after").parse::<u32>()?));
    let before = asked();
    let answer = enrol(caller().user(OTHER_USER).mint()).await?;
    assert_eq!(answer.code(), "entra_unavailable");
    assert_eq!(asked(), before, "Entra ID was left alone");
    assert_eq!(
        enrol(caller().tenant(OTHER_TENANT).mint()).await?.status,
        201
    );
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_a_moment_is_not_noticed() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    for answer in [Answer::Close, Answer::BadGateway] {
        scene
            .emulators
            .fault(Fault::new(Target::EntraToken, answer).grant(REFRESH));
        scene.draw().await?;
    }
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_long_is_given_up() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let before = scene.rows()?;
    scene.emulators.fault(Fault {
        delay_ms: 60_000,
        ..Fault::new(Target::EntraToken, Answer::Pass)
    });
    let started = std::time::Instant::now();
    let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
    scene.refused(&answer, 503, "entra_unavailable", &before)?;
    let took = started.elapsed().as_secs();
    assert!((8..25).contains(&took), "{took} s");
    scene.draw().await?;
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn key_vault_fails_without_an_effect() -> Result {
    // Two are asked for at every call, so that no cache answers in Key Vault's place.
    let scene = Scene::with(Options::default(), |app| {
        app.set("key_cache_seconds", "1")
            .set("key_latest_seconds", "1")
            // No probe for the challenge, which has no token to refuse.
            .set("key_vault_tenant", TENANT)
    })
    .await?;
    let before = scene.rows()?;
    let refused = |http, code: &str, inner: &str| Answer::KeyVault {
        status: http,
        code: code.to_owned(),
        inner: Some(inner.to_owned()),
    };
    for (answer, http, code) in [
        (Answer::Close, 503, "key_vault_unavailable"),
        (Answer::BadGateway, 503, "key_vault_unavailable"),
        (status(500), 503, "key_vault_unavailable"),
        (status(200), 503, "key_vault_unavailable"),
        (
            refused(403, "Forbidden", "ForbiddenByRbac"),
            500,
            "key_vault_forbidden",
        ),
        (
            refused(403, "Forbidden", "ForbiddenByFirewall"),
            500,
            "key_vault_firewall",
        ),
        // Last: it is left alone after it.
        (
            Answer::KeyVault {
                status: 429,
                code: "Throttled".to_owned(),
                inner: None,
            },
            503,
            "key_vault_unavailable",
        ),
    ] {
        scene
            .emulators
            .fault(Fault::new(Target::KeyVault, answer).times(8));
        let refusal = scene.call(Method::PUT, "/v1/me").await?;
        scene.emulators.clear_faults();
        scene.refused(&refusal, http, code, &before)?;
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    scene.enrol().await?;
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_none_is_the_operators_fault() -> Result {
    let scene = Scene::with(Options::default(), |app| app.set("key_latest_seconds", "1")).await?;
    let before = scene.rows()?;
    let name = key_name(TENANT);
    let put = async |code: &str| -> Result {
        let answer = scene.call(Method::PUT, "/v1/me").await?;
        scene.refused(&answer, 500, code, &before)?;
        assert!(
            answer.json["detail"].as_str().unwrap().contains(&name),
            "{answer:?}"
        );
        Ok(())
    };
    scene.emulators.set_secret_enabled(&name, None, false)?;
    put("key_disabled").await?;
    let wrong_lengths = [0, 1, 16, 31, 33, 34, 35, 36, 48, 64, 4096];
    let encoded = wrong_lengths.map(|length| BASE64_STANDARD.encode(vec![7; length]));
    for value in encoded
        .iter()
        .map(String::as_str)
        .chain(["no base64!", &"ab".repeat(32)])
    {
        scene.emulators.put_secret(&name, value)?;
        put("key_malformed").await?;
    }
    scene.emulators.delete_secret(&name)?;
    put("key_not_found").await?;
    // The other tenant's key is another matter.
    let other = scene.emulators.caller().tenant(OTHER_TENANT).mint();
    assert_eq!(
        scene
            .send(Method::PUT, "/v1/me", Some(&other), None)
            .await?
            .status,
        201
    );
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_outlives_the_loss_of_its_key() -> Result {
    let scene = Scene::with(Options::default(), |app| app.set("key_cache_seconds", "1")).await?;
    scene.enrol().await?;
    let before = scene.rows()?;
    let name = key_name(TENANT);
    // The key dies within `key_cache_seconds` and comes back; the record opens again.
    scene.emulators.set_secret_enabled(&name, None, false)?;
    until(&scene, "key_disabled").await?;
    scene.emulators.set_secret_enabled(&name, None, true)?;
    scene.draw().await?;
    scene.emulators.delete_secret(&name)?;
    until(&scene, "key_not_found").await?;
    scene.emulators.recover_secret(&name)?;
    scene.draw().await?;
    assert_eq!(scene.rows()?, before);
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_keys_that_cannot_be_had_are_not_the_callers_fault() -> Result {
    let scene = Scene::start().await?;
    let before = scene.rows()?;
    for (answer, tries) in [
        (Answer::Close, 2),
        (Answer::BadGateway, 2),
        (status(200), 1),
    ] {
        scene
            .emulators
            .fault(Fault::new(Target::Jwks, answer).times(tries));
        let refusal = scene.call(Method::GET, "/v1/me").await?;
        scene.refused(&refusal, 503, "signing_keys_unavailable", &before)?;
    }
    scene.enrol().await?;
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_client_secret_is_the_operators_fault() -> Result {
    let scene = Scene::with(Options::default(), |app| {
        app.set("client_secret", "not-the-client-secret-of-this-app")
    })
    .await?;
    let before = scene.rows()?;
    let answer = scene.call(Method::PUT, "/v1/me").await?;
    scene.refused(&answer, 500, "credential_refused", &before)?;
    let detail = answer.json["detail"].as_str().unwrap();
    assert!(
        detail.contains("client_secret") && detail.contains("AADSTS7000215"),
        "{detail}"
    );
    assert!(
        scene
            .emulators
            .journal()
            .iter()
            .any(|entry| entry.aadsts == Some(7_000_215))
    );
    assert!(!answer.text.contains("not-the-client-secret"));
    let output = scene.end().await?;
    assert!(!output.join("\n").contains("not-the-client-secret"));
    Ok(())
}

/// Failures of the token endpoint that say nothing about the user's token, with what the caller is told. `Retry-After: 0`
/// keeps the next one from being held up.
fn failures() -> Vec<(Fault, u16, &'static str)> {
    let unavailable = |fault: Fault| (fault, 503, "entra_unavailable");
    let down = |answer| unavailable(Fault::new(Target::EntraToken, answer).retry_after("0"));
    vec![
        // Tried once more.
        unavailable(Fault::new(Target::EntraToken, Answer::Close).times(2)),
        down(Answer::BadGateway),
        down(status(500)),
        down(status(429)),
        unavailable(Fault::new(Target::EntraToken, status(200))),
        unavailable(Fault::entra(90_033).retry_after("0")),
        unavailable(Fault::entra(50_196).retry_after("0")),
        (Fault::entra(7_000_215), 500, "credential_refused"),
        (Fault::entra(700_016), 500, "entra_refused"),
        (Fault::entra(50_105), 500, "entra_refused"),
        (Fault::entra(50_020), 401, "interaction_required"),
        (Fault::entra(65_001), 401, "interaction_required"),
        (entra(50_076, Some(CLAIMS)), 401, "interaction_required"),
        (entra(53_003, None), 401, "interaction_required"),
    ]
}

fn entra(code: u32, claims: Option<&str>) -> Fault {
    let claims = claims.map(str::to_owned);
    Fault::new(
        Target::EntraToken,
        Answer::Entra {
            code,
            suberror: None,
            claims,
            error: None,
            status: None,
        },
    )
}

fn status(status: u16) -> Answer {
    Answer::Status {
        status,
        body: json!({}).to_string(),
        content_type: "application/json".to_owned(),
    }
}

/// Draws until it is refused with `code`: a cache of one second is in the way.
async fn until(scene: &Scene, code: &str) -> Result {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
        if answer.status == 500 && answer.code() == code {
            return Ok(());
        }
        anyhow::ensure!(
            answer.status == 200 && std::time::Instant::now() < deadline,
            "{answer:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
