//! What is stored, asked of Entra ID and issued when requests go as they should.
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

/// One that breaks off must not look whole on any host.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_says_how_long_it_is() -> Result {
    let scene = Scene::start().await?;
    for (method, path, status) in [
        (Method::PUT, "/v1/me", 201),
        (Method::GET, "/v1/me", 200),
        (Method::GET, "/v1/nothing", 404),
    ] {
        let answer = scene.call(method, path).await?;
        assert_eq!(answer.status, status, "{path}");
        let length = answer.header("content-length").to_owned();
        assert_eq!(length, answer.text.len().to_string(), "{path}");
    }
    let none = scene.call(Method::DELETE, "/v1/me").await?;
    assert_eq!(
        (none.status.as_u16(), none.header("content-length")),
        (204, "")
    );
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
