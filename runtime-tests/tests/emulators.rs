//! The emulators themselves, over real HTTP: they serve what facts/entra-and-key-vault.md says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use reqwest::{Client, Method, Response, StatusCode, header};
use runtime_tests::emulators::{
    Answer, Emulators, Fault, OTHER_TENANT, Options, Signature, TENANT, Target, USER, fingerprint,
    key_name,
};
use serde_json::{Value, json};

const OBO: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const GRAPH: &str = "https://graph.microsoft.com/.default offline_access";

#[tokio::test]
async fn obo_answers_as_entra_does() {
    let world = World::start().await;
    let mut form = world.obo(&world.emulators.caller().mint());
    form.push(("client_info", "1".to_owned()));
    let response = world.post_token(TENANT, &form).await;
    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("cache-control"), "no-store, no-cache");
    assert_eq!(header("pragma"), "no-cache");
    assert_eq!(header("x-ms-clitelem"), "1,0,0,,");
    assert!(!header("x-ms-request-id").is_empty() && !header("x-ms-ests-server").is_empty());

    let body: Value = response.json().await.unwrap();
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!(
        (body["expires_in"].as_u64(), body["ext_expires_in"].as_u64()),
        (Some(3599), Some(3599))
    );
    assert!(
        body["scope"]
            .as_str()
            .unwrap()
            .contains("https://graph.microsoft.com/User.Read")
    );
    assert!(body["refresh_token"].as_str().unwrap().len() > 1000);
    assert!(body.get("refresh_in").is_none() && body.get("id_token").is_none());
    assert!(body["client_info"].is_string());

    let claims = payload(body["access_token"].as_str().unwrap());
    assert_eq!(claims["aud"], "https://graph.microsoft.com");
    assert_eq!(
        claims["iss"],
        format!("https://login.microsoftonline.com/{TENANT}/v2.0")
    );
    assert_eq!(
        (&claims["oid"], &claims["tid"]),
        (&json!(USER), &json!(TENANT))
    );
    assert_eq!(claims["azp"], world.emulators.options().client_id.as_str());
}

#[tokio::test]
async fn a_refresh_token_comes_only_with_offline_access() {
    let world = World::start().await;
    let mut form = world.obo(&world.emulators.caller().mint());
    set(
        &mut form,
        "scope",
        "https://graph.microsoft.com/User.Read openid",
    );
    let body = world.token(&form).await;
    assert!(body.get("refresh_token").is_none());
    assert!(body["id_token"].is_string());
    assert_eq!(
        body["scope"],
        "openid https://graph.microsoft.com/User.Read"
    );
}

#[tokio::test]
async fn a_refresh_returns_a_new_token_and_the_old_one_stays_valid() {
    let world = World::start().await;
    let first = world.refresh_token().await;
    let second = text(&world.token(&world.refresh(&first)).await["refresh_token"]);
    let third = text(&world.token(&world.refresh(&first)).await["refresh_token"]);
    assert!(first != second && second != third && first != third);

    let journal = world.emulators.journal();
    let refreshes: Vec<_> = journal
        .iter()
        .filter(|entry| entry.grant.as_deref() == Some("refresh_token"))
        .collect();
    assert_eq!(refreshes.len(), 2);
    assert!(
        refreshes
            .iter()
            .all(|entry| entry.redeemed == Some(fingerprint(&first)))
    );
    assert_eq!(refreshes[0].issued, Some(fingerprint(&second)));
    let written = serde_json::to_string(&journal).unwrap();
    for secret in world.emulators.secrets() {
        assert!(!written.contains(&secret));
    }
}

#[tokio::test]
async fn revocation_kills_every_token_of_earlier_sign_ins_and_none_of_later_ones() {
    let world = World::start().await;
    let first = world.refresh_token().await;
    let second = text(&world.token(&world.refresh(&first)).await["refresh_token"]);
    world.emulators.revoke(TENANT, USER);
    for token in [&first, &second] {
        let error = world.error(TENANT, &world.refresh(token)).await;
        assert_eq!(
            error,
            (
                400,
                "invalid_grant".to_owned(),
                50_173,
                "bad_token".to_owned()
            )
        );
    }
    let third = world.refresh_token().await;
    world.token(&world.refresh(&third)).await;
    world.emulators.set_user_enabled(TENANT, USER, false);
    assert_eq!(world.error(TENANT, &world.refresh(&third)).await.2, 50_057);
}

#[tokio::test]
async fn a_wrong_request_has_its_code() {
    let world = World::start().await;
    let good = world.obo(&world.emulators.caller().mint());
    let unknown = "88888888-8888-4888-8888-888888888888";
    for (name, value, status, error, code) in [
        (
            "grant_type",
            "password",
            400,
            "unsupported_grant_type",
            70_003,
        ),
        ("grant_type", "", 400, "invalid_request", 900_144),
        ("client_id", unknown, 400, "unauthorized_client", 700_016),
        ("client_secret", "wrong", 401, "invalid_client", 7_000_215),
        ("assertion", "", 400, "invalid_request", 900_144),
        ("scope", "", 400, "invalid_request", 900_144),
        (
            "scope",
            "https://graph.microsoft.com/.default User.Read",
            400,
            "invalid_scope",
            70_011,
        ),
        (
            "scope",
            "https://example.com/.default",
            400,
            "invalid_resource",
            500_011,
        ),
        (
            "scope",
            "https://graph.microsoft.com/Mail.Send",
            400,
            "invalid_grant",
            65_001,
        ),
    ] {
        let mut form = good.clone();
        set(&mut form, name, value);
        let answer = world.error(TENANT, &form).await;
        assert_eq!(
            (answer.0, answer.1.as_str(), answer.2),
            (status, error, code),
            "{name}={value}"
        );
    }
    for (tenant, code) in [(unknown, 90_002), ("common", 9_001_023)] {
        let answer = world.error(tenant, &good).await;
        assert_eq!(
            (answer.0, answer.1.as_str(), answer.2),
            (400, "invalid_request", code)
        );
    }
    for (scope, error, code) in [
        (
            "https://vault.azure.net/user_impersonation",
            "invalid_scope",
            70_011,
        ),
        (
            "https://vault.azure.net/.default https://graph.microsoft.com/.default",
            "invalid_request",
            700_022,
        ),
        ("https://example.com/.default", "invalid_resource", 500_011),
    ] {
        let form = world.form(&[("grant_type", "client_credentials"), ("scope", scope)]);
        let answer = world.error(TENANT, &form).await;
        assert_eq!(
            (answer.0, answer.1.as_str(), answer.2),
            (400, error, code),
            "{scope}"
        );
    }
}

#[tokio::test]
async fn a_wrong_grant_has_its_code() {
    let world = World::start().await;
    let caller = || world.emulators.caller();
    let now = jiff::Timestamp::now().as_second();
    for (what, assertion, code) in [
        ("audience", caller().claim("aud", "api://other"), 500_131),
        ("expired", caller().claim("exp", now - 1), 500_133),
        ("not valid yet", caller().claim("nbf", now + 900), 500_133),
        ("signature", caller().signature(Signature::Broken), 50_013),
        ("algorithm", caller().signature(Signature::None), 50_013),
        ("issuer", caller().tenant(OTHER_TENANT), 50_013),
        ("app-only", caller().app(&["Behalf.Act"]), 7_000_114),
    ] {
        let answer = world.error(TENANT, &world.obo(&assertion.mint())).await;
        assert_eq!(
            (answer.0, answer.1.as_str(), answer.2),
            (400, "invalid_grant", code),
            "{what}"
        );
    }
    let answer = world.error(TENANT, &world.refresh("1.unknown")).await;
    assert_eq!(
        answer,
        (
            400,
            "invalid_grant".to_owned(),
            9_002_313,
            "bad_token".to_owned()
        )
    );
}

#[tokio::test]
async fn an_error_has_the_form_of_entra_ids() {
    let world = World::start().await;
    let mut form = world.obo(&world.emulators.caller().mint());
    set(&mut form, "client_secret", "wrong");
    let url = format!("{}/{TENANT}/oauth2/v2.0/token", world.emulators.authority());
    let response = world
        .client
        .post(url)
        .header("client-request-id", "my-id")
        .body(encoded(&form))
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["x-ms-clitelem"], "1,7000215,0,,");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error_codes"], json!([7_000_215]));
    assert_eq!(body["correlation_id"], "my-id");
    assert_eq!(
        body["error_uri"],
        "https://login.microsoftonline.com/error?code=7000215"
    );
    let (description, trace) = (
        body["error_description"].as_str().unwrap(),
        body["trace_id"].as_str().unwrap(),
    );
    assert!(description.starts_with("AADSTS7000215: "));
    assert!(description.contains(&format!(
        "\r\nTrace ID: {trace}\r\nCorrelation ID: my-id\r\nTimestamp: "
    )));
    let time = body["timestamp"].as_str().unwrap();
    assert!(
        time.len() == 20 && time.ends_with('Z') && time.as_bytes()[10] == b' ',
        "{time}"
    );
}

#[tokio::test]
async fn signing_keys_roll_and_metadata_points_to_them() {
    let world = World::start().await;
    let authority = world.emulators.authority();
    let kids = async |path: &str| -> Vec<(String, String)> {
        let keys = world.get(&format!("{authority}{path}")).await;
        keys["keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| (text(&key["kid"]), text(&key["issuer"])))
            .collect()
    };
    let before = kids("/common/discovery/v2.0/keys").await;
    assert!(
        before
            .iter()
            .any(|(_, issuer)| issuer == "https://login.microsoftonline.com/{tenantid}/v2.0")
    );
    assert!(
        before
            .iter()
            .any(|(_, issuer)| issuer.contains("9188040d-6c67-4c5b-b112-36a304b66dad"))
    );
    let kid = |token: &str| header_of(token)["kid"].as_str().unwrap().to_owned();
    let published =
        |keys: &[(String, String)], token: &str| keys.iter().any(|(id, _)| *id == kid(token));
    let old = world.emulators.caller().mint();
    assert!(published(&before, &old));
    world.emulators.rotate_signing_keys();
    let new = world.emulators.caller().mint();
    assert!(!published(&before, &new));
    let after = kids(&format!("/{TENANT}/discovery/keys")).await;
    assert!(published(&after, &old) && published(&after, &new));
    assert!(!published(
        &after,
        &world
            .emulators
            .caller()
            .signature(Signature::UnknownKey)
            .mint()
    ));

    let v2 = world
        .get(&format!(
            "{authority}/common/v2.0/.well-known/openid-configuration"
        ))
        .await;
    assert_eq!(
        v2["issuer"],
        "https://login.microsoftonline.com/{tenantid}/v2.0"
    );
    assert_eq!(
        v2["jwks_uri"],
        format!("{authority}/common/discovery/v2.0/keys")
    );
    assert!(v2.get("revocation_endpoint").is_none());
    let v1 = world
        .get(&format!(
            "{authority}/{TENANT}/.well-known/openid-configuration"
        ))
        .await;
    assert_eq!(v1["issuer"], format!("https://sts.windows.net/{TENANT}/"));
}

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

#[tokio::test]
async fn the_downstream_api_wants_its_own_tokens() {
    let world = World::start().await;
    let url = format!("{}/v1.0/me", world.emulators.downstream_url());
    let get = async |token: Option<&str>| {
        let request = world.client.get(&url);
        token
            .map_or(request.try_clone().unwrap(), |token| {
                request.bearer_auth(token)
            })
            .send()
            .await
            .unwrap()
    };
    let token = text(
        &world
            .token(&world.obo(&world.emulators.caller().mint()))
            .await["access_token"],
    );
    let me: Value = get(Some(&token)).await.json().await.unwrap();
    assert_eq!((&me["id"], &me["tenant"]), (&json!(USER), &json!(TENANT)));

    let caller = || {
        world
            .emulators
            .caller()
            .claim("aud", "https://graph.microsoft.com")
            .claim("scp", "User.Read")
    };
    assert_eq!(get(Some(&caller().mint())).await.status(), 200);
    for (token, status) in [
        (None, 401),
        (Some(world.emulators.caller().mint()), 401),
        (Some(caller().claim("exp", 1).mint()), 401),
        (Some(caller().signature(Signature::Broken).mint()), 401),
        (Some(caller().claim("scp", "Mail.Read").mint()), 403),
    ] {
        let response = get(token.as_deref()).await;
        assert_eq!(response.status(), status);
        assert!(
            response.headers()["www-authenticate"]
                .to_str()
                .unwrap()
                .starts_with("Bearer realm=\"\", ")
        );
    }
}

#[tokio::test]
async fn faults_meet_the_requests_they_are_for() {
    let world = World::start().await;
    let refresh_token = world.refresh_token().await;
    let refresh = world.refresh(&refresh_token);
    let claims = r#"{"access_token":{"capolids":{"essential":true,"values":["x"]}}}"#;
    let mut blocked = Fault::entra(53_003).grant("refresh_token");
    if let Answer::Entra { claims: text, .. } = &mut blocked.answer {
        *text = Some(claims.to_owned());
    }
    world.emulators.fault(blocked);
    world.emulators.fault(
        Fault::entra(90_033)
            .grant("refresh_token")
            .times(2)
            .retry_after("7"),
    );
    world
        .emulators
        .fault(Fault::new(Target::EntraToken, Answer::BadGateway).grant("refresh_token"));
    world
        .emulators
        .fault(Fault::new(Target::EntraToken, Answer::Close).grant("refresh_token"));

    // Another grant is not met.
    world
        .token(&world.obo(&world.emulators.caller().mint()))
        .await;
    let body: Value = world
        .post_token(TENANT, &refresh)
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(
        (&body["suberror"], body["claims"].as_str()),
        (&json!("message_only"), Some(claims))
    );
    for _ in 0..2 {
        let response = world.post_token(TENANT, &refresh).await;
        assert_eq!(
            (
                response.status().as_u16(),
                &response.headers()["retry-after"]
            ),
            (503, &header::HeaderValue::from_static("7"))
        );
    }
    let response = world.post_token(TENANT, &refresh).await;
    assert_eq!(response.status(), 502);
    assert!(response.text().await.unwrap().starts_with("<html>"));
    assert!(
        world.try_post_token(TENANT, &refresh).await.is_err(),
        "the connection is closed"
    );
    world.token(&refresh).await;

    let journal = world.emulators.journal();
    let statuses: Vec<_> = journal
        .iter()
        .filter(|entry| entry.fault)
        .map(|entry| (entry.status, entry.aadsts))
        .collect();
    let expected = [
        (Some(400), Some(53_003)),
        (Some(503), Some(90_033)),
        (Some(503), Some(90_033)),
        (Some(502), None),
        (None, None),
    ];
    assert_eq!(statuses, expected);
}

#[tokio::test]
async fn the_control_port_does_the_same_over_http() {
    let world = World::start().await;
    let control = world.emulators.control_url();
    let post = async |path: &str, body: Value| {
        world
            .client
            .post(format!("{control}{path}"))
            .json(&body)
            .send()
            .await
            .unwrap()
    };
    let line = world
        .client
        .get(format!("{control}/demo/authorization"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let token = line
        .trim_end()
        .strip_prefix("Authorization: Bearer ")
        .unwrap();
    assert_eq!(payload(token)["oid"], USER);

    let minted: Value = post("/tokens", json!({ "user": "someone", "roles": ["Behalf.Sweep"], "claims": { "exp": 5, "uti": null }, "signature": "hs256" })).await.json().await.unwrap();
    let token = minted["token"].as_str().unwrap();
    assert_eq!(header_of(token)["alg"], "HS256");
    let claims = payload(token);
    assert_eq!(
        (&claims["sub"], &claims["roles"], &claims["exp"]),
        (&json!("someone"), &json!(["Behalf.Sweep"]), &json!(5))
    );
    assert!(claims.get("scp").is_none() && claims.get("uti").is_none());

    let rotated: Value = post(&format!("/tenants/{TENANT}/rotate-key"), json!({}))
        .await
        .json()
        .await
        .unwrap();
    let newest = world
        .vault()
        .await
        .ok(Method::GET, &key_name(TENANT), None)
        .await;
    assert!(
        newest["id"]
            .as_str()
            .unwrap()
            .ends_with(rotated["version"].as_str().unwrap())
    );

    let fault =
        json!({ "target": "entra-token", "grant": OBO, "answer": { "entra": { "code": 50_196 } } });
    assert_eq!(post("/faults", fault).await.status(), 204);
    assert_eq!(
        world
            .error(TENANT, &world.obo(&world.emulators.caller().mint()))
            .await
            .2,
        50_196
    );
    assert_eq!(
        post(&format!("/users/{TENANT}/{USER}/revoke"), json!({}))
            .await
            .status(),
        204
    );

    let journal = world.get(&format!("{control}/journal")).await;
    assert_eq!(
        journal.as_array().unwrap().last().unwrap()["aadsts"],
        50_196
    );
    world
        .client
        .delete(format!("{control}/journal"))
        .send()
        .await
        .unwrap();
    assert_eq!(world.get(&format!("{control}/journal")).await, json!([]));
}

#[tokio::test]
async fn a_stop_frees_the_ports() {
    let world = World::start().await;
    let address = world
        .emulators
        .authority()
        .strip_prefix("http://")
        .unwrap()
        .to_owned();
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    let taken = Emulators::start(Options {
        entra_port: port,
        ..Options::default()
    })
    .await;
    assert!(
        format!("{:#}", taken.err().unwrap())
            .contains(&format!("Entra ID cannot listen on 127.0.0.1:{port}"))
    );
    world.emulators.stop().await;
    tokio::net::TcpListener::bind(address).await.unwrap();
}

struct World {
    emulators: Emulators,
    client: Client,
}

type Form = Vec<(&'static str, String)>;

impl World {
    async fn start() -> Self {
        Self {
            emulators: Emulators::start(Options::default()).await.unwrap(),
            client: Client::new(),
        }
    }

    fn form(&self, fields: &[(&'static str, &str)]) -> Form {
        let options = self.emulators.options();
        let mut form = vec![
            ("client_id", options.client_id.clone()),
            ("client_secret", options.client_secret.clone()),
        ];
        form.extend(
            fields
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        form
    }

    fn obo(&self, assertion: &str) -> Form {
        self.form(&[
            ("grant_type", OBO),
            ("requested_token_use", "on_behalf_of"),
            ("assertion", assertion),
            ("scope", GRAPH),
        ])
    }

    fn refresh(&self, token: &str) -> Form {
        self.form(&[("grant_type", "refresh_token"), ("refresh_token", token)])
    }

    async fn try_post_token(&self, tenant: &str, form: &Form) -> reqwest::Result<Response> {
        let url = format!("{}/{tenant}/oauth2/v2.0/token", self.emulators.authority());
        let request = self
            .client
            .post(url)
            .header("content-type", "application/x-www-form-urlencoded");
        request.body(encoded(form)).send().await
    }

    async fn post_token(&self, tenant: &str, form: &Form) -> Response {
        self.try_post_token(tenant, form).await.unwrap()
    }

    async fn token(&self, form: &Form) -> Value {
        let response = self.post_token(TENANT, form).await;
        let (status, body): (_, Value) = (response.status(), response.json().await.unwrap());
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Status, `error`, code, `suberror`.
    async fn error(&self, tenant: &str, form: &Form) -> (u16, String, u64, String) {
        let response = self.post_token(tenant, form).await;
        let (status, body): (_, Value) =
            (response.status().as_u16(), response.json().await.unwrap());
        let code = body["error_codes"][0]
            .as_u64()
            .unwrap_or_else(|| panic!("no error: {status}"));
        (
            status,
            text(&body["error"]),
            code,
            body["suberror"].as_str().unwrap_or_default().to_owned(),
        )
    }

    async fn refresh_token(&self) -> String {
        text(&self.token(&self.obo(&self.emulators.caller().mint())).await["refresh_token"])
    }

    async fn app_token(&self, tenant: &str, scope: &str) -> String {
        let form = self.form(&[("grant_type", "client_credentials"), ("scope", scope)]);
        let body: Value = self.post_token(tenant, &form).await.json().await.unwrap();
        assert!(body.get("refresh_token").is_none());
        text(&body["access_token"])
    }

    async fn vault(&self) -> Vault<'_> {
        Vault {
            world: self,
            token: self
                .app_token(TENANT, "https://vault.azure.net/.default")
                .await,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}/secrets/{path}", self.emulators.key_vault_url())
    }

    fn secret(&self, path: &str) -> String {
        format!("{}?api-version=7.6", self.url(path))
    }

    async fn get(&self, url: &str) -> Value {
        let response = self.client.get(url).send().await.unwrap();
        assert_eq!(response.status(), 200, "{url}");
        response.json().await.unwrap()
    }
}

struct Vault<'a> {
    world: &'a World,
    token: String,
}

impl Vault<'_> {
    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        let request = self
            .world
            .client
            .request(method, self.world.secret(path))
            .bearer_auth(&self.token);
        body.map_or(request.try_clone().unwrap(), |body| request.json(&body))
            .send()
            .await
            .unwrap()
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let response = self.send(method, path, body).await;
        (response.status(), response.json().await.unwrap())
    }

    async fn ok(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, body) = self.call(method, path, body).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }
}

fn set(form: &mut Form, name: &'static str, value: &str) {
    form.retain(|field| field.0 != name);
    form.push((name, value.to_owned()));
}

fn encoded(form: &Form) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(form)
        .finish()
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no text: {value}"))
        .to_owned()
}

fn header_of(token: &str) -> Value {
    part(token, 0)
}

fn payload(token: &str) -> Value {
    part(token, 1)
}

fn part(token: &str, index: usize) -> Value {
    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}
