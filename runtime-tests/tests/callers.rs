//! Whose token is accepted, and whose is not.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use reqwest::Method;
use runtime_tests::emulators::{OTHER_TENANT, OTHER_USER, Options, Signature, TENANT, Target};
use runtime_tests::scene::Scene;
use serde_json::{Value, json};

type Result = anyhow::Result<()>;

const ROUTES: [(Method, &str); 5] = [
    (Method::GET, "/v1/me"),
    (Method::PUT, "/v1/me"),
    (Method::POST, "/v1/me/access-token"),
    (Method::DELETE, "/v1/me/refresh-token"),
    (Method::DELETE, "/v1/me"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_no_entra_token_is_refused_on_every_route() -> Result {
    let scene = Scene::start().await?;
    let caller = || scene.emulators.caller();
    let other_issuer = format!("https://login.microsoftonline.com/{OTHER_TENANT}/v2.0");
    let unsigned = caller().mint();
    let tokens = [
        (String::new(), "token_missing"),
        ("no-jwt".to_owned(), "token_malformed"),
        ("a.b.c".to_owned(), "token_malformed"),
        (
            unsigned.rsplit_once('.').unwrap().0.to_owned(),
            "token_malformed",
        ),
        (caller().claim("tid", Value::Null).mint(), "token_malformed"),
        (
            caller().claim("oid", "not-a-guid").mint(),
            "token_malformed",
        ),
        (
            caller().signature(Signature::None).mint(),
            "token_wrong_algorithm",
        ),
        (
            caller().signature(Signature::Hs256).mint(),
            "token_wrong_algorithm",
        ),
        (
            caller().signature(Signature::UnknownKey).mint(),
            "token_unknown_key",
        ),
        (
            caller().signature(Signature::Broken).mint(),
            "token_bad_signature",
        ),
        (
            caller().signature(Signature::PersonalAccountsKey).mint(),
            "token_wrong_issuer",
        ),
        (
            caller().claim("iss", "https://evil.example/").mint(),
            "token_wrong_issuer",
        ),
        (
            caller().claim("iss", other_issuer).mint(),
            "token_wrong_issuer",
        ),
    ];
    refused_everywhere(&scene, tokens.map(|(token, code)| (token, 401, code))).await?;
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entra_token_that_is_not_for_this_is_refused_on_every_route() -> Result {
    let scene = Scene::start().await?;
    let caller = || scene.emulators.caller();
    let now = jiff::Timestamp::now().as_second();
    let unknown = "99999999-9999-4999-8999-999999999999";
    let personal = "9188040d-6c67-4c5b-b112-36a304b66dad";
    let tokens = [
        (
            caller().claim("aud", "https://graph.microsoft.com"),
            401,
            "token_wrong_audience",
        ),
        (caller().claim("exp", now - 301), 401, "token_expired"),
        (caller().claim("nbf", now + 330), 401, "token_not_yet_valid"),
        (caller().claim("scp", "other"), 403, "insufficient_scope"),
        (
            caller().claim("scp", Value::Null),
            403,
            "insufficient_scope",
        ),
        (caller().app(&["access_as_user"]), 403, "insufficient_scope"),
        (caller().tenant(unknown), 403, "tenant_not_allowed"),
        (caller().tenant(personal), 403, "tenant_not_allowed"),
    ];
    let tokens = tokens.map(|(caller, status, code)| (caller.mint(), status, code));
    refused_everywhere(&scene, tokens).await?;
    scene.end().await?;
    Ok(())
}

async fn refused_everywhere<const N: usize>(
    scene: &Scene,
    tokens: [(String, u16, &str); N],
) -> Result {
    scene.enrol().await?;
    let before = scene.rows()?;
    for (token, status, code) in tokens {
        for (method, path) in ROUTES {
            let answer = scene.send(method, path, Some(&token), None).await?;
            scene.refused(&answer, status, code, &before)?;
            let challenge = answer.header("www-authenticate");
            match code {
                "token_missing" => assert_eq!(challenge, "Bearer"),
                "insufficient_scope" => {
                    assert_eq!(
                        challenge,
                        r#"Bearer error="insufficient_scope", scope="access_as_user""#
                    );
                }
                "tenant_not_allowed" => assert_eq!(challenge, ""),
                _ => assert!(
                    challenge.starts_with(r#"Bearer error="invalid_token""#),
                    "{challenge}"
                ),
            }
        }
    }
    Ok(())
}

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
async fn v1_and_v2_tokens_name_the_same_user() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let answer = scene
        .send(
            Method::GET,
            "/v1/me",
            Some(&scene.emulators.caller().v1().mint()),
            None,
        )
        .await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let shouted = scene
        .emulators
        .caller()
        .user(&runtime_tests::emulators::USER.to_uppercase())
        .mint();
    assert_eq!(
        scene
            .send(Method::GET, "/v1/me", Some(&shouted), None)
            .await?
            .status,
        200
    );
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn skew_of_five_minutes_is_forgiven() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let now = jiff::Timestamp::now().as_second();
    for token in [
        scene.emulators.caller().claim("exp", now - 200).mint(),
        scene.emulators.caller().claim("nbf", now + 200).mint(),
    ] {
        assert_eq!(
            scene
                .send(Method::GET, "/v1/me", Some(&token), None)
                .await?
                .status,
            200
        );
    }
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn users_see_and_remove_only_their_own() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let before = scene.rows()?;
    let other = scene.emulators.caller().user(OTHER_USER).mint();
    let elsewhere = scene.emulators.caller().tenant(OTHER_TENANT).mint();
    for token in [&other, &elsewhere] {
        for (method, path) in [
            (Method::GET, "/v1/me"),
            (Method::POST, "/v1/me/access-token"),
        ] {
            let answer = scene.send(method, path, Some(token), None).await?;
            scene.refused(&answer, 404, "not_enrolled", &before)?;
        }
        for path in ["/v1/me", "/v1/me/refresh-token"] {
            assert_eq!(
                scene
                    .send(Method::DELETE, path, Some(token), None)
                    .await?
                    .status,
                204
            );
            assert_eq!(scene.rows()?, before);
        }
    }
    assert_eq!(
        scene
            .send(Method::PUT, "/v1/me", Some(&other), None)
            .await?
            .status,
        201
    );
    assert_eq!(
        scene
            .send(Method::PUT, "/v1/me", Some(&elsewhere), None)
            .await?
            .status,
        201
    );
    assert_eq!(scene.store().keys("usr.")?.len(), 3);
    assert_eq!(
        scene
            .send(Method::DELETE, "/v1/me", Some(&other), None)
            .await?
            .status,
        204
    );
    scene.draw().await?;
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
        scene.refused(&answer, 403, "tenant_not_allowed", &before)?;
    }
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_entra_refuses_is_the_callers_fault() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let before = scene.rows()?;
    // Within the vault's skew, past Entra's.
    let now = jiff::Timestamp::now().as_second();
    let expired = scene.emulators.caller().claim("exp", now - 100).mint();
    let answer = scene
        .send(Method::PUT, "/v1/me", Some(&expired), None)
        .await?;
    scene.refused(&answer, 401, "token_rejected", &before)?;
    assert_eq!(
        scene.emulators.journal().last().unwrap().aadsts,
        Some(500_133)
    );
    assert_eq!(
        answer.json.get("claims"),
        None::<&Value>,
        "{}",
        json!(answer.text)
    );
    scene.end().await?;
    Ok(())
}
