//! What is stored, damaged in every way, and kept over a restart.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

use reqwest::Method;
use runtime_tests::app::{self, App};
use runtime_tests::emulators::{Emulators, OTHER_USER, Options};
use runtime_tests::scene::Scene;
use runtime_tests::store::Store;
use serde_json::{Value, json};

type Result = anyhow::Result<()>;

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_token_with_any_part_changed_does_not_open() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let (key, record) = scene.store().record()?;
    let sealed = record["sealed"].as_str().unwrap().to_owned();
    let parts: Vec<&str> = sealed.split('.').collect();
    for part in [0, 2, 3, 4] {
        let at: usize = parts[..part].iter().map(|part| part.len() + 1).sum();
        // The first, the middle and the last character but one of each part; the last holds unused bits.
        for at in [at, at + parts[part].len() / 2, at + parts[part].len() - 2] {
            alarms(&scene, &key, &with_sealed(&record, &flipped(&sealed, at))).await?;
        }
    }
    for sealed in [
        String::new(),
        sealed[..sealed.len() - 1].to_owned(),
        format!("{sealed}A"),
        format!("{sealed}."),
        parts[..4].join("."),
        format!("{}.AA.{}", parts[0], parts[2..].join(".")),
    ] {
        alarms(&scene, &key, &with_sealed(&record, &sealed)).await?;
    }
    scene.store().replace(&key, &serde_json::to_vec(&record)?)?;
    scene.draw().await?;
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_token_opens_only_where_it_belongs() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let (key, record) = scene.store().record()?;
    let other = scene.emulators.caller().user(OTHER_USER).mint();
    assert_eq!(
        scene
            .send(Method::PUT, "/v1/me", Some(&other), None)
            .await?
            .status,
        201
    );
    let records = scene.store().records()?;
    let others = records
        .iter()
        .find(|(other, _)| **other != key)
        .unwrap()
        .1
        .clone();
    scene.store().replace(&key, &serde_json::to_vec(&others)?)?;
    let before = scene.rows()?;
    let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
    scene.refused(&answer, 500, "record_not_bound", &before)?;
    // Not even a former one of the same user.
    scene.store().replace(&key, &serde_json::to_vec(&record)?)?;
    assert_eq!(scene.call(Method::PUT, "/v1/me").await?.status, 200);
    let records = scene.store().records()?;
    let (key, _) = records
        .iter()
        .find(|(_, stored)| **stored != others)
        .unwrap();
    scene.store().replace(key, &serde_json::to_vec(&record)?)?;
    let before = scene.rows()?;
    let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
    scene.refused(&answer, 500, "record_not_bound", &before)?;
    let output = scene.end().await?;
    assert!(
        output.iter().any(|line| line.contains("alarm")),
        "{output:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_read_is_kept_and_re_enrolment_mends_it() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let head = scene.store().keys("usr.")?.remove(0);
    for prefix in ["rec.", "usr."] {
        let (key, good) = scene
            .rows()?
            .into_iter()
            .find(|(key, _)| key.starts_with(prefix))
            .unwrap();
        let mut newer: Value = serde_json::from_slice(&good)?;
        newer["v"] = json!(2);
        let mut strange: Value = serde_json::from_slice(&good)?;
        strange["tenant"] = json!("no tenant");
        for (value, code) in [
            (b"".to_vec(), "record_damaged"),
            (b"\xff\x00".to_vec(), "record_damaged"),
            (b"{}".to_vec(), "record_damaged"),
            (good[..good.len() - 1].to_vec(), "record_damaged"),
            (serde_json::to_vec(&strange)?, "record_damaged"),
            (serde_json::to_vec(&newer)?, "record_too_new"),
        ] {
            scene.store().replace(&key, &value)?;
            let before = scene.rows()?;
            for (method, path) in [
                (Method::GET, "/v1/me"),
                (Method::POST, "/v1/me/access-token"),
            ] {
                let answer = scene.call(method, path).await?;
                scene.refused(&answer, 500, code, &before)?;
            }
        }
        scene.store().replace(&key, &good)?;
    }
    scene.store().replace(&head, b"damaged")?;
    assert_eq!(scene.call(Method::PUT, "/v1/me").await?.status, 200);
    scene.draw().await?;
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything() -> Result {
    let directory = tempfile::tempdir()?;
    let emulators = Emulators::start(Options::default()).await?;
    let options = app::Options::for_emulators(&emulators).state_dir(directory.path());
    let store = Store::of(directory.path());

    let app = App::start(options.clone()).await?;
    let token = emulators.caller().mint();
    assert_eq!(
        app.send(Method::PUT, "/v1/me", Some(&token), None)
            .await?
            .status,
        201
    );
    let shown = app
        .send(Method::GET, "/v1/me", Some(&token), None)
        .await?
        .json;
    app.stop().await?;
    let stored = store.rows()?;

    let app = App::start(options).await?;
    assert_eq!(
        app.send(Method::GET, "/v1/me", Some(&token), None)
            .await?
            .json,
        shown
    );
    assert_eq!(
        app.send(Method::POST, "/v1/me/access-token", Some(&token), None)
            .await?
            .status,
        200
    );
    app.stop().await?;
    assert_eq!(store.rows()?, stored);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_carry_the_prefix_that_is_set() -> Result {
    let scene = Scene::with(Options::default(), |app| app.set("store_prefix", "app-1.")).await?;
    assert_eq!(scene.call(Method::PUT, "/v1/me").await?.status, 201);
    scene.draw().await?;
    let rows = scene.rows()?;
    assert!(
        rows.len() == 4 && rows.keys().all(|key| key.starts_with("app-1.")),
        "{:?}",
        rows.keys()
    );
    scene.end().await?;
    Ok(())
}

/// Draws with a damaged record: an alarm, and nothing is deleted.
async fn alarms(scene: &Scene, key: &str, record: &Value) -> Result {
    scene.store().replace(key, &serde_json::to_vec(record)?)?;
    let before = scene.rows()?;
    let lines = scene.app.output().len();
    let answer = scene.call(Method::POST, "/v1/me/access-token").await?;
    anyhow::ensure!(
        ["record_damaged", "record_not_bound"].contains(&answer.code()),
        "{answer:?}\n{record}"
    );
    let code = answer.code().to_owned();
    scene.refused(&answer, 500, &code, &before)?;
    scene.app.wait_for_output_after(lines, "alarm").await?;
    Ok(())
}

fn with_sealed(record: &Value, sealed: &str) -> Value {
    let mut record = record.clone();
    record["sealed"] = json!(sealed);
    record
}

/// The text with the lowest bit of one base64url character's value changed.
fn flipped(text: &str, at: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let value = ALPHABET
        .iter()
        .position(|byte| *byte == text.as_bytes()[at])
        .unwrap();
    let changed = char::from(ALPHABET[value ^ 1]);
    format!("{}{changed}{}", &text[..at], &text[at + 1..])
}
