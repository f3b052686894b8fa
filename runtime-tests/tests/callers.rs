//! Whose token is accepted, where it takes more than a case: headers, counted requests, another directory.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use reqwest::Method;
use runtime_tests::emulators::{Options, Signature, TENANT, Target};
use runtime_tests::scene::Scene;

type Result = anyhow::Result<()>;

#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_in_one_authorization_header() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let token = scene.emulators.caller().mint();
    for (values, status) in [
        (vec![format!("Bearer {token}")], 200),
        (vec![format!("bearer {token}")], 200),
        (vec![], 401),
        (vec![token.clone()], 401),
        (vec![format!("Basic {token}")], 401),
        (
            vec![format!("Bearer {token}"), format!("Bearer {token}")],
            401,
        ),
    ] {
        let mut request = scene.app.request(Method::GET, "/v1/me");
        for value in &values {
            request = request.header("authorization", value);
        }
        assert_eq!(
            request.send().await?.status(),
            status,
            "{} values",
            values.len()
        );
    }
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn new_signing_keys_are_fetched_and_old_ones_expire() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let fetches = || {
        scene
            .emulators
            .journal()
            .iter()
            .filter(|entry| entry.target == Target::Jwks)
            .count()
    };
    assert_eq!(fetches(), 1);
    // An unknown `kid` may fetch again, but no more than once in five minutes.
    scene.emulators.rotate_signing_keys();
    let token = scene.emulators.caller().mint();
    let answer = scene
        .send(Method::GET, "/v1/me", Some(&token), None)
        .await?;
    assert!(
        answer.status == 200 || answer.code() == "token_unknown_key",
        "{answer:?}"
    );
    for _ in 0..3 {
        let unknown = scene
            .emulators
            .caller()
            .signature(Signature::UnknownKey)
            .mint();
        assert_eq!(
            scene
                .send(Method::GET, "/v1/me", Some(&unknown), None)
                .await?
                .code(),
            "token_unknown_key"
        );
    }
    assert!(fetches() <= 2, "{} fetches", fetches());
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_organisation_is_allowed_by_a_star_but_no_personal_account() -> Result {
    let personal = "9188040d-6c67-4c5b-b112-36a304b66dad";
    let tenants = vec![TENANT.to_owned(), personal.to_owned()];
    let scene = Scene::with(
        Options {
            tenants,
            ..Options::default()
        },
        |app| app.set("tenants", "*"),
    )
    .await?;
    scene.enrol().await?;
    let before = scene.rows()?;
    for signature in [Signature::Good, Signature::PersonalAccountsKey] {
        let token = scene
            .emulators
            .caller()
            .tenant(personal)
            .signature(signature)
            .mint();
        let answer = scene
            .send(Method::PUT, "/v1/me", Some(&token), None)
            .await?;
        scene.refused(&answer, 403, "account_not_supported", &before)?;
    }
    scene.end().await?;
    Ok(())
}
