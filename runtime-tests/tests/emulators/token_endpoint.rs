//! Entra ID: three grants, their errors, signing keys and metadata.

use runtime_tests::emulators::{OTHER_TENANT, Signature, TENANT, USER, fingerprint};
use serde_json::{Value, json};

use crate::client::{World, encoded, header_of, payload, set, text};

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
