//! What is stored, asked of Entra ID and issued when requests go as they should.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use reqwest::Method;
use runtime_tests::app::Answer;
use runtime_tests::emulators::{OTHER_TENANT, Options, TENANT, USER, key_name};
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
    // Neither the user's id nor a name that a directory knows.
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

/// In a form that the client asks for, and with a tenant that is being removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_json_or_for_prometheus() -> Result {
    let scene = Scene::with(Options::default(), |app| app.set("operator_tenant", TENANT)).await?;
    for tenant in [TENANT, OTHER_TENANT] {
        let token = scene.emulators.caller().tenant(tenant).mint();
        let answer = scene
            .send(Method::PUT, "/v1/me", Some(&token), None)
            .await?;
        assert_eq!(answer.status, 201);
    }
    let bar = format!("bar.{}", OTHER_TENANT.replace('-', ""));
    scene.store().insert(&bar, b"")?;
    // The status is what a sweep has seen.
    scene.sweep().await?;
    let operator = scene.emulators.caller().app(&["Behalf.Read"]).mint();
    let status = async |accept: &str| -> anyhow::Result<Answer> {
        let request = scene.app.request(Method::GET, "/v1/status");
        let request = request.header("accept", accept).bearer_auth(&operator);
        let answer = Answer::read(request.send().await?).await?;
        scene.remember(&answer, "/v1/status");
        assert_eq!(answer.status, 200);
        Ok(answer)
    };
    // A browser library's default, a command line's, and nothing that there is.
    for accept in [
        "application/json, text/plain, */*",
        "*/*",
        "text/html",
        "text/plain;q=0.5, application/json",
    ] {
        let answer = status(accept).await?;
        assert_eq!(
            answer.header("content-type"),
            "application/json",
            "{accept}"
        );
        let tenants = &answer.json["tenants"];
        assert_eq!(tenants[OTHER_TENANT]["being_removed"], true);
        assert_eq!(tenants[TENANT].get("being_removed"), None);
    }
    let answer = status(
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    )
    .await?;
    assert!(
        answer
            .header("content-type")
            .starts_with("text/plain; version=0.0.4")
    );
    let mut families: Vec<_> = answer
        .text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(['{', ' ']).next().unwrap())
        .collect();
    families.dedup();
    let all = families.len();
    families.sort_unstable();
    families.dedup();
    assert_eq!(
        families.len(),
        all,
        "each family is in one piece:\n{}",
        answer.text
    );
    let removed = format!("behalf_tenant_being_removed{{tenant=\"{OTHER_TENANT}\"}} 1");
    assert!(
        answer.text.lines().any(|line| line == removed),
        "{}",
        answer.text
    );
    scene.end().await?;
    Ok(())
}
