//! Pauses that Entra ID asks for are kept, by whom they are for.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

use reqwest::Method;
use runtime_tests::app;
use runtime_tests::emulators::{Answer, Fault, OTHER_TENANT, OTHER_USER, Options, Target};
use runtime_tests::scene::Scene;

type Result = anyhow::Result<()>;

const REFRESH: &str = "refresh_token";

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_up_whom_it_is_for() -> Result {
    // What is left alone is remembered by an instance.
    let scene = Scene::with(Options::default(), app::Options::one_instance).await?;
    scene.enrol().await?;
    let asked = || scene.emulators.journal().len();
    let caller = || scene.emulators.caller();
    let enrol = async |token: String| scene.send(Method::PUT, "/v1/me", Some(&token), None).await;

    // A loop that Entra ID broke holds up its user for five minutes (PLATFORMS.md, "Throttling"), and no other.
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
    let throttled = Answer::Status {
        status: 429,
        body: "{}".to_owned(),
        content_type: "application/json".to_owned(),
    };
    scene
        .emulators
        .fault(Fault::new(Target::EntraToken, throttled).retry_after(&until));
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
