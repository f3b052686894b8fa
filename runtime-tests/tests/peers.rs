//! Other implementations read what behalf writes, and behalf reads what they write.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use runtime_tests::app::root;
use runtime_tests::emulators::{Options, TENANT, USER, key_name};
use runtime_tests::peers::{node, python};
use runtime_tests::scene::Scene;
use serde_json::{Value, json};

type Result = anyhow::Result<()>;

#[test]
fn the_second_reader_agrees_on_every_vector() -> Result {
    let folder = root().join("src/core/vault/tests/vectors");
    let folder = folder.to_str().unwrap();
    python("vectors.py", &["--check", folder], "")?;
    let read = python("sealed_token.py", &["vectors", folder], "")?;
    let files = std::fs::read_dir(folder)?.count();
    assert_eq!(read, format!("{files} vectors\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_reader_opens_what_the_app_stored() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let (place, record) = scene.store().record()?;
    let nonce = place.rsplit('.').next().unwrap();
    let mut given = json!({
        "sealed": record["sealed"], "key": key(&scene, &record),
        "client": scene.emulators.options().client_id, "tenant": TENANT,
        "user": format!("{TENANT}.{USER}"), "nonce": nonce,
    });
    let opened: Value =
        serde_json::from_str(&python("sealed_token.py", &["open"], &given.to_string())?)?;
    is_the_token_of(&scene, &opened, &record);
    // It is a reader that can refuse.
    given["nonce"] = json!("another");
    let error = python("sealed_token.py", &["open"], &given.to_string()).unwrap_err();
    assert!(error.to_string().contains("NotBound"), "{error}");
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn jose_opens_what_behalf_sealed_and_behalf_what_jose_sealed() -> Result {
    // What is stored is opened for each draw.
    let scene = Scene::with(Options::default(), |app| {
        app.set("access_token_cache_seconds", "0")
    })
    .await?;
    scene.enrol().await?;
    let (place, mut record) = scene.store().record()?;
    let key = key(&scene, &record);
    let opened = node(
        "jose.mjs",
        &["open"],
        &json!({"sealed": record["sealed"], "key": key}),
    )?;
    is_the_token_of(&scene, &opened["plaintext"], &record);

    let sealed = node(
        "jose.mjs",
        &["seal"],
        &json!({"header": opened["header"], "plaintext": opened["plaintext"], "key": key}),
    )?;
    assert_ne!(sealed["sealed"], record["sealed"], "another IV");
    record["sealed"] = sealed["sealed"].clone();
    scene
        .store()
        .replace(&place, &serde_json::to_vec(&record)?)?;
    scene.draw().await?;

    // The same, but for another user: it does not open.
    let mut header = opened["header"].clone();
    header["bnd"] = json!("A".repeat(43));
    let forged = json!({"header": header, "plaintext": opened["plaintext"], "key": key});
    record["sealed"] = node("jose.mjs", &["seal"], &forged)?["sealed"].clone();
    scene
        .store()
        .replace(&place, &serde_json::to_vec(&record)?)?;
    let before = scene.rows()?;
    let answer = scene
        .call(reqwest::Method::POST, "/v1/me/access-token")
        .await?;
    scene.refused(&answer, 500, "record_not_bound", &before)?;
    scene.end().await?;
    Ok(())
}

/// The key that the record names, as Key Vault has it.
fn key(scene: &Scene, record: &Value) -> String {
    let version = record["key_version"].as_str().unwrap();
    scene.emulators.secret(&key_name(TENANT), version).unwrap()
}

fn is_the_token_of(scene: &Scene, plaintext: &Value, record: &Value) {
    let token = plaintext["refresh_token"].as_str().unwrap().to_owned();
    assert!(
        scene.emulators.secrets().contains(&token),
        "Entra ID issued it"
    );
    assert_eq!(plaintext["user_id"], format!("{TENANT}.{USER}"));
    assert_eq!(plaintext["scope"], record["scope"]);
}
