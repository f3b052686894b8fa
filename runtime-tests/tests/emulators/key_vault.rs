//! Key Vault: challenges, versions, errors, deletion.

use reqwest::Method;
use runtime_tests::emulators::{Answer, Fault, OTHER_TENANT, TENANT, Target, key_name};
use serde_json::{Value, json};

use crate::client::World;

#[tokio::test]
async fn key_vault_challenges_and_verifies() {
    let world = World::start().await;
    let url = world.secret(&key_name(TENANT));
    let response = world.client.get(&url).send().await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(
        response.headers()["www-authenticate"],
        format!(
            "Bearer authorization=\"https://login.windows.net/{TENANT}\", resource=\"https://vault.azure.net\""
        )
    );
    let body: Value = response.json().await.unwrap();
    assert_eq!(
        body["error"]["message"],
        "AKV10000: Request is missing a Bearer or PoP token."
    );

    for (tenant, scope, code) in [
        (TENANT, "https://vault.azure.net//.default", "AKV10022"),
        (TENANT, "https://graph.microsoft.com/.default", "AKV10022"),
        (OTHER_TENANT, "https://vault.azure.net/.default", "AKV10032"),
    ] {
        let token = world.app_token(tenant, scope).await;
        let response = world
            .client
            .get(&url)
            .bearer_auth(token)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 401);
        let body: Value = response.json().await.unwrap();
        assert!(
            body["error"]["message"].as_str().unwrap().starts_with(code),
            "{body}"
        );
    }
}

#[tokio::test]
async fn secrets_have_versions_that_can_be_disabled_but_do_not_expire() {
    let world = World::start().await;
    let vault = world.vault().await;
    let one = vault
        .ok(
            Method::PUT,
            "secret",
            Some(json!({ "value": "one", "contentType": "text/plain" })),
        )
        .await;
    let two = vault
        .ok(
            Method::PUT,
            "secret",
            Some(json!({ "value": "two", "attributes": { "exp": 1, "nbf": 4_000_000_000_u64 } })),
        )
        .await;
    let version = |bundle: &Value| {
        bundle["id"]
            .as_str()
            .unwrap()
            .rsplit('/')
            .next()
            .unwrap()
            .to_owned()
    };
    let (first, second) = (version(&one), version(&two));
    assert!(
        first.len() == 32
            && first
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    );
    assert!(two.get("contentType").is_none());

    // Expired and not yet valid, and yet: 200. With a slash at the end and without.
    for latest in ["secret", "secret/", "SECRET"] {
        assert_eq!(vault.ok(Method::GET, latest, None).await["value"], "two");
    }
    assert_eq!(
        vault
            .ok(Method::GET, &format!("secret/{first}"), None)
            .await["value"],
        "one"
    );

    let patched = vault
        .ok(
            Method::PATCH,
            &format!("secret/{second}"),
            Some(json!({ "attributes": { "enabled": false } })),
        )
        .await;
    assert!(patched.get("value").is_none());
    assert_eq!(patched["attributes"]["exp"], 1);
    for disabled in ["secret".to_owned(), format!("secret/{second}")] {
        let (status, body) = vault.call(Method::GET, &disabled, None).await;
        assert_eq!(
            (status.as_u16(), &body["error"]["innererror"]["code"]),
            (403, &json!("SecretDisabled"))
        );
    }

    let mut expected = [first, second];
    expected.sort();
    let mut listed = Vec::new();
    let mut next = Some(format!(
        "{}?api-version=7.6&maxresults=1",
        world.url("secret/versions")
    ));
    while let Some(url) = next {
        let page: Value = world
            .client
            .get(url)
            .bearer_auth(&vault.token)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        listed.extend(page["value"].as_array().unwrap().iter().map(version));
        next = page["nextLink"].as_str().map(str::to_owned);
    }
    assert_eq!(listed, expected);
    assert_eq!(
        vault.ok(Method::GET, "unknown/versions", None).await["value"],
        json!([])
    );
}

#[tokio::test]
async fn key_vault_errors() {
    let world = World::start().await;
    let vault = world.vault().await;
    for (method, path, body, status, code) in [
        (Method::GET, "unknown", None, 404, "SecretNotFound"),
        (
            Method::GET,
            "unknown/00000000000000000000000000000000",
            None,
            404,
            "SecretNotFound",
        ),
        (
            Method::PUT,
            "",
            Some(json!({ "value": "x" })),
            405,
            "MethodNotAllowed",
        ),
        (
            Method::PUT,
            "under_score",
            Some(json!({ "value": "x" })),
            400,
            "BadParameter",
        ),
        (
            Method::PUT,
            "large",
            Some(json!({ "value": "x".repeat(25_601) })),
            400,
            "BadParameter",
        ),
    ] {
        let (answered, body) = vault.call(method, path, body).await;
        assert_eq!(
            (answered.as_u16(), &body["error"]["code"]),
            (status, &json!(code)),
            "{path}"
        );
    }
    let url = world.url(&key_name(TENANT));
    let response = world
        .client
        .get(url)
        .bearer_auth(&vault.token)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 400, "api-version is mandatory");

    world.emulators.fault(Fault::new(
        Target::KeyVault,
        Answer::KeyVault {
            status: 429,
            code: "Throttled".to_owned(),
            inner: None,
        },
    ));
    let response = vault.send(Method::GET, &key_name(TENANT), None).await;
    assert_eq!(response.status(), 429);
    assert!(response.headers().get("retry-after").is_none());
}

#[tokio::test]
async fn a_deleted_secret_can_be_recovered_or_purged() {
    let world = World::start().await;
    let vault = world.vault().await;
    vault
        .ok(Method::PUT, "gone", Some(json!({ "value": "x" })))
        .await;
    let conflict = async |inner: &str| {
        let value = Some(json!({ "value": "x" }));
        let (status, body) = vault.call(Method::PUT, "gone", value).await;
        let found = &body["error"]["innererror"]["code"];
        assert_eq!((status.as_u16(), found), (409, &json!(inner)));
    };
    let missing = async |path: &str| {
        let (status, body) = vault.call(Method::GET, path, None).await;
        assert_eq!(
            (status.as_u16(), &body["error"]["code"]),
            (404, &json!("SecretNotFound"))
        );
    };
    let deleted = vault.ok(Method::DELETE, "gone", None).await;
    assert!(deleted["recoveryId"].is_string() && deleted.get("value").is_none());
    // Neither here nor there, until it was looked for.
    conflict("ObjectIsBeingDeleted").await;
    missing("gone").await;
    missing("../deletedsecrets/gone").await;
    conflict("ObjectIsDeletedButRecoverable").await;
    let found = vault.ok(Method::GET, "../deletedsecrets/gone", None).await;
    assert_eq!(found, deleted);
    vault
        .ok(Method::POST, "../deletedsecrets/gone/recover", None)
        .await;
    conflict("ObjectIsBeingRecovered").await;
    missing("gone").await;
    assert_eq!(vault.ok(Method::GET, "gone", None).await["value"], "x");
    vault.ok(Method::DELETE, "gone", None).await;
    let purge = async || {
        let purge = vault.send(Method::DELETE, "../deletedsecrets/gone", None);
        purge.await.status().as_u16()
    };
    assert_eq!(purge().await, 409);
    missing("../deletedsecrets/gone").await;
    assert_eq!(purge().await, 204);
    missing("../deletedsecrets/gone").await;
    assert_eq!(purge().await, 404);
    vault
        .ok(Method::PUT, "gone", Some(json!({ "value": "y" })))
        .await;
}
