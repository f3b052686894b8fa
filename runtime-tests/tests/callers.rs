//! Whose token is accepted, where it takes more than a case: headers, counted requests, another directory.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use reqwest::Method;
use runtime_tests::app::{self, App};
use runtime_tests::emulators::{Emulators, Options, Signature, TENANT, Target};
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
    let emulators = Emulators::start(Options::default()).await?;
    let directory = tempfile::tempdir()?;
    let options = app::Options::for_emulators(&emulators)
        .one_instance()
        .state_dir(directory.path());
    let scene = Scene::of(emulators, App::start(options.clone()).await?);
    scene.enrol().await?;
    let fetches = || {
        let journal = scene.emulators.journal();
        let of_keys = journal.iter().filter(|entry| entry.target == Target::Jwks);
        of_keys.count()
    };
    assert_eq!(fetches(), 1);

    // Withdrawn, and so no longer in the document that Entra ID publishes.
    let old = scene.emulators.caller().mint();
    scene.emulators.rotate_signing_keys();
    scene.emulators.rotate_signing_keys();
    let new = scene.emulators.caller().mint();
    let unknown = scene
        .emulators
        .caller()
        .signature(Signature::UnknownKey)
        .mint();
    let ask = async |app: &App, token: &str| -> anyhow::Result<String> {
        let answer = app.send(Method::GET, "/v1/me", Some(token), None).await?;
        scene.remember(&answer, "/v1/me");
        Ok(match answer.status.as_u16() {
            200 => "good".to_owned(),
            _ => answer.code().to_owned(),
        })
    };
    // An unknown `kid` may fetch again, but not within five minutes.
    for token in [&new, &unknown, &new] {
        assert_eq!(ask(&scene.app, token).await?, "token_unknown_key");
    }
    assert_eq!(ask(&scene.app, &old).await?, "good");
    assert_eq!(fetches(), 1);

    // What the next instance fetches is all that counts for it.
    let later = App::start(options).await?;
    assert_eq!(ask(&later, &new).await?, "good");
    for token in [&old, &unknown] {
        assert_eq!(ask(&later, token).await?, "token_unknown_key");
    }
    assert_eq!(fetches(), 2);
    later.stop().await?;
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
