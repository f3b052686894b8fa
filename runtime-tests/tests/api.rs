//! Every route, as it should go and with every mistake that a request can make but for its token.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use reqwest::Method;
use runtime_tests::app::Answer;
use runtime_tests::emulators::{TENANT, USER, key_name};
use runtime_tests::scene::Scene;
use serde_json::{Value, json};

type Result = anyhow::Result<()>;

#[tokio::test(flavor = "multi_thread")]
async fn a_user_enrols_and_enrols_again() -> Result {
    let scene = Scene::start().await?;
    let first = scene.call(Method::PUT, "/v1/me").await?;
    assert_eq!(first.status, 201);
    assert_eq!(first.header("content-type"), "application/json");
    assert_eq!(first.header("cache-control"), "no-store");
    let (key, before) = scene.store().record()?;
    let shown = scene.call(Method::GET, "/v1/me").await?;
    assert_eq!((shown.status.as_u16(), &shown.json), (200, &first.json));
    for (name, value) in [
        ("status", json!("active")),
        ("scope", json!("https://graph.microsoft.com/.default")),
        ("key_version", before["key_version"].clone()),
        ("enrolled_at", before["enrolled_at"].clone()),
        ("refreshed_at", before["refreshed_at"].clone()),
        ("refresh_due_at", before["due_at"].clone()),
    ] {
        assert_eq!(shown.json[name], value, "{name}");
    }

    let second = scene.call(Method::PUT, "/v1/me").await?;
    assert_eq!(second.status, 200);
    let (new_key, after) = scene.store().record()?;
    assert!(new_key != key && after["sealed"] != before["sealed"]);
    // The head, the record and its marker: nothing of the former enrolment is left.
    assert_eq!(scene.rows()?.len(), 3);
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_enrols_for_one_scope() -> Result {
    let scene = Scene::start().await?;
    let token = scene.emulators.caller().mint();
    let scope = "https://graph.microsoft.com/User.Read";
    let answer = scene
        .send(
            Method::PUT,
            "/v1/me",
            Some(&token),
            Some(&json!({ "scope": scope })),
        )
        .await?;
    assert_eq!(
        (answer.status.as_u16(), &answer.json["scope"]),
        (201, &json!(scope))
    );
    let journal = scene.emulators.journal();
    let asked = journal
        .iter()
        .find(|entry| entry.issued.is_some())
        .unwrap()
        .scope
        .clone()
        .unwrap();
    assert!(
        asked.contains(scope) && asked.contains("offline_access"),
        "{asked}"
    );
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_token_is_accepted_downstream() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let before = scene.rows()?;
    let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.json["token_type"], "Bearer");
    assert_eq!(answer.json["expires_in"], 3599);
    assert!(
        answer.json["scope"]
            .as_str()
            .unwrap()
            .contains("https://graph.microsoft.com/User.Read")
    );
    assert_eq!(answer.json.as_object().unwrap().len(), 4);
    let me = me(&scene, answer.json["access_token"].as_str().unwrap()).await?;
    assert_eq!(
        (me.status.as_u16(), &me.json["id"], &me.json["tenant"]),
        (200, &json!(USER), &json!(TENANT))
    );
    assert_eq!(
        scene.rows()?,
        before,
        "a young refresh token is not replaced"
    );
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_token_can_be_asked_for_by_scope_and_claims() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let token = scene.emulators.caller().mint();
    let body = json!({ "scope": "https://graph.microsoft.com/Mail.Read", "claims": r#"{"access_token":{}}"# });
    let answer = scene
        .send(
            Method::POST,
            "/v1/me/access-token",
            Some(&token),
            Some(&body),
        )
        .await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        answer.json["scope"],
        "https://graph.microsoft.com/Mail.Read"
    );
    let before = scene.rows()?;
    for (body, status, code) in [
        (
            json!({ "scope": "https://vault.azure.net/.default" }),
            403,
            "scope_not_granted",
        ),
        (json!({ "scope": "User.Read" }), 403, "scope_not_granted"),
        (json!({ "claims": "no JSON" }), 400, "invalid_request"),
        (
            json!({ "claims": format!("{{\"x\":\"{}\"}}", "x".repeat(5000)) }),
            400,
            "invalid_request",
        ),
    ] {
        let answer = scene
            .send(
                Method::POST,
                "/v1/me/access-token",
                Some(&token),
                Some(&body),
            )
            .await?;
        scene.refused(&answer, status, code, &before)?;
    }
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn application_access_can_be_removed_and_given_again() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    for _ in 0..2 {
        let answer = scene.call(Method::DELETE, "/v1/me/refresh-token").await?;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (204, ""));
        assert!(scene.store().keys("rec.")?.is_empty() && scene.store().keys("due.")?.is_empty());
    }
    let before = scene.rows()?;
    assert_eq!(
        scene.call(Method::GET, "/v1/me").await?.json["status"],
        "no_refresh_token"
    );
    let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
    scene.refused(&answer, 409, "no_refresh_token", &before)?;
    assert_eq!(scene.call(Method::PUT, "/v1/me").await?.status, 200);
    scene.draw().await?;
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_user_is_gone() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    for _ in 0..2 {
        let answer = scene.call(Method::DELETE, "/v1/me").await?;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (204, ""));
        assert_eq!(scene.rows()?.len(), 0);
    }
    let nothing = scene.rows()?;
    for (method, path) in [
        (Method::GET, "/v1/me"),
        (Method::POST, "/v1/me/access-token"),
    ] {
        let answer = scene.call(method, path).await?;
        scene.refused(&answer, 404, "not_enrolled", &nothing)?;
    }
    assert_eq!(
        scene
            .call(Method::DELETE, "/v1/me/refresh-token")
            .await?
            .status,
        204
    );
    assert_eq!(scene.rows()?, nothing);
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_methods_that_are_not_there() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let before = scene.rows()?;
    for (method, path) in [
        (Method::GET, "/"),
        (Method::GET, "/v1/me/"),
        (Method::GET, "/v1"),
        (Method::POST, "/v1/me/access-token/x"),
        (Method::GET, "/v1//me"),
    ] {
        let answer = scene.call(method, path).await?;
        scene.refused(&answer, 404, "not_found", &before)?;
    }
    for (method, path, allow) in [
        (Method::POST, "/v1/me", "GET, PUT, DELETE"),
        (Method::GET, "/v1/me/access-token", "POST"),
        (Method::GET, "/v1/me/refresh-token", "DELETE"),
        (Method::GET, "/v1/sweep", "POST"),
        (Method::DELETE, "/healthz", "GET, HEAD"),
    ] {
        let answer = scene.call(method, path).await?;
        scene.refused(&answer, 405, "method_not_allowed", &before)?;
        assert_eq!(answer.header("allow"), allow);
    }
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_none() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let before = scene.rows()?;
    let token = scene.emulators.caller().mint();
    for (method, path) in [
        (Method::PUT, "/v1/me"),
        (Method::POST, "/v1/me/access-token"),
    ] {
        let send = async |body: String| -> anyhow::Result<Answer> {
            let request = scene
                .app
                .request(method.clone(), path)
                .bearer_auth(&token)
                .body(body);
            let answer = Answer::read(request.send().await?).await?;
            scene.remember(&answer, path);
            Ok(answer)
        };
        for (body, code) in [
            (format!("{{\"scope\": {token}"), "invalid_json"),
            ("{".to_owned(), "invalid_json"),
            ("{} {}".to_owned(), "invalid_json"),
            ("[]".to_owned(), "invalid_request"),
            ("\"text\"".to_owned(), "invalid_request"),
            (json!({ "scope": 1 }).to_string(), "invalid_request"),
            (json!({ "scop": "x" }).to_string(), "invalid_request"),
            // What is quoted back would be in the answer.
            (json!({ &token: "x" }).to_string(), "invalid_request"),
        ] {
            scene.refused(&send(body).await?, 400, code, &before)?;
        }
        let filled = |length: usize| format!("{{\"scope\":\"{}\"}}", "x".repeat(length - 12));
        scene.refused(
            &send(filled(64 * 1024 + 1)).await?,
            413,
            "body_too_large",
            &before,
        )?;
        assert_ne!(send(filled(64 * 1024)).await?.code(), "body_too_large");
        assert_eq!(scene.rows()?, before);
    }
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_needs_no_token_and_calls_nobody() -> Result {
    let scene = Scene::start().await?;
    scene.emulators.clear_journal();
    let answer = scene.send(Method::GET, "/healthz", None, None).await?;
    assert_eq!(
        (answer.status.as_u16(), &answer.json),
        (200, &json!({ "status": "ok" }))
    );
    assert_eq!(
        scene
            .send(Method::HEAD, "/healthz", None, None)
            .await?
            .status,
        200
    );
    assert!(scene.emulators.journal().is_empty());
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_a_jwe_that_names_its_key() -> Result {
    let scene = Scene::start().await?;
    let record = scene.enrol().await?;
    let parts: Vec<_> = record["sealed"].as_str().unwrap().split('.').collect();
    assert_eq!((parts.len(), parts[1]), (5, ""));
    let header = base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, parts[0])?;
    let header: Value = serde_json::from_slice(&header)?;
    assert_eq!(
        (&header["alg"], &header["enc"]),
        (&json!("dir"), &json!("A256GCM"))
    );
    let version = record["key_version"].as_str().unwrap();
    assert_eq!(header["kid"], format!("{}/{version}", key_name(TENANT)));
    // Neither the user's id nor a name that a directory knows (design §2).
    for (key, value) in scene.rows()? {
        assert!(
            !key.contains(USER) && !String::from_utf8_lossy(&value).contains(USER),
            "{key}"
        );
        assert!(
            key.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
            "{key}"
        );
    }
    scene.end().await?;
    Ok(())
}

async fn me(scene: &Scene, token: &str) -> anyhow::Result<Answer> {
    let url = format!("{}/v1.0/me", scene.emulators.downstream_url());
    Answer::read(
        reqwest::Client::new()
            .get(url)
            .bearer_auth(token)
            .send()
            .await?,
    )
    .await
}
