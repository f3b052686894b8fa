//! `behalf tenant`, and what becomes of a tenant without its key.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

use std::time::Duration;

use reqwest::Method;
use runtime_tests::emulators::{
    Answer, Emulators, Fault, OTHER_TENANT, Options, TENANT, Target, key_name,
};
use runtime_tests::operator::{Operator, Said, asked_in, signal};
use runtime_tests::scene::Scene;
use rustix::process::Signal;
use serde_json::{Value, json};

type Result = anyhow::Result<()>;

/// How many users a tenant has.
const USERS: usize = 5;

/// An app with users in two tenants, and an operator of both.
async fn operated() -> anyhow::Result<(Scene, Operator)> {
    let scene = Scene::with(Options::default(), |app| {
        app.set("operator_tenant", TENANT)
            .set("key_cache_seconds", "1")
            .set("key_latest_seconds", "1")
    })
    .await?;
    for tenant in [TENANT, OTHER_TENANT] {
        for at in 0..USERS {
            let answer = call(&scene, tenant, at, Method::PUT, "/v1/me").await?;
            assert_eq!(answer, (201, Value::Null));
        }
    }
    scene.sweep().await?;
    let operator = Operator::new(&scene.emulators)?
        .with_token(&scene.emulators, &["Behalf.Admin", "Behalf.Read"])?
        .environment("BEHALF_APP", &scene.app.url());
    Ok((scene, operator))
}

/// Status and code of an answer to a user.
async fn call(
    scene: &Scene,
    tenant: &str,
    at: usize,
    method: Method,
    path: &str,
) -> anyhow::Result<(u16, Value)> {
    let user = format!("ffffffff-ffff-4fff-8fff-{at:012}");
    let bearer = scene.emulators.caller().tenant(tenant).user(&user).mint();
    let answer = scene.send(method, path, Some(&bearer), None).await?;
    Ok((answer.status.as_u16(), answer.json["code"].clone()))
}

async fn draw(scene: &Scene, tenant: &str) -> anyhow::Result<(u16, Value)> {
    call(scene, tenant, 0, Method::POST, "/v1/me/access-token").await
}

async fn remove(
    operator: &Operator,
    emulators: &Emulators,
    words: &[&str],
) -> anyhow::Result<Said> {
    let words = [
        &["tenant", "remove", OTHER_TENANT, "--token-file", "token"],
        words,
    ]
    .concat();
    operator.run(emulators, &words).await
}

fn users(scene: &Scene, tenant: &str) -> anyhow::Result<usize> {
    let records = scene.store().records()?;
    Ok(records.values().filter(|it| it["tenant"] == tenant).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_goes_with_its_users_and_its_key() -> Result {
    let (scene, operator) = operated().await?;
    let emulators = &scene.emulators;
    // Nothing happens by mistake.
    let said = remove(&operator, emulators, &[]).await?;
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.log.contains("--yes"), "{said:?}");
    let said = remove(&operator, emulators, &["--dry-run", "--json"]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.json()?["would_remove"]["users"], USERS, "{said:?}");
    assert_eq!(users(&scene, OTHER_TENANT)?, USERS);

    let said = remove(&operator, emulators, &["--yes", "--json"]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    let expected = json!({"tenant": OTHER_TENANT, "users_removed": USERS, "users_left": 0, "secret": key_name(OTHER_TENANT),
        "key": "purged", "recoverable_until": null});
    assert_eq!(said.json()?, expected);
    assert_eq!(
        (users(&scene, OTHER_TENANT)?, users(&scene, TENANT)?),
        (0, USERS)
    );
    assert!(emulators.newest_version(&key_name(OTHER_TENANT)).is_none());
    assert!(!emulators.is_secret_deleted(&key_name(OTHER_TENANT)));
    // Others are served as before, and it is as if there had never been any other.
    assert_eq!(draw(&scene, TENANT).await?, (200, Value::Null));
    assert_eq!(
        draw(&scene, OTHER_TENANT).await?,
        (404, json!("not_enrolled"))
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    let enrolled = call(&scene, OTHER_TENANT, 0, Method::PUT, "/v1/me").await?;
    assert_eq!(enrolled, (403, json!("tenant_not_onboarded")));
    // Again, it finds nothing.
    let said = remove(&operator, emulators, &["--yes"]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out.contains("0 removed") && said.out.contains("there is none"),
        "{said:?}"
    );
    scene.end().await?;
    Ok(())
}

/// The tenant that goes, and the one in which the operator's token is asked for, wherever the option stands.
#[tokio::test(flavor = "multi_thread")]
async fn the_tenant_of_the_token_is_not_the_one_that_goes() -> Result {
    let (scene, _) = operated().await?;
    let emulators = &scene.emulators;
    let operator = Operator::new(emulators)?.environment("BEHALF_APP", &scene.app.url());
    let asked_in = || asked_in(emulators, "api://");
    let before = asked_in().len();
    let begin = ["tenant", "remove"];
    let token = ["--in-tenant", TENANT];
    let alone = [&begin[..], &token, &["--yes"]].concat();
    let said = operator.run(emulators, &alone).await?;
    assert_eq!(said.code, Some(2), "{said:?}");
    let first = [&begin[..], &token, &[OTHER_TENANT, "--dry-run", "--json"]].concat();
    let said = operator.run(emulators, &first).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.json()?["would_remove"]["tenant"], OTHER_TENANT);
    let last = [&begin[..], &[OTHER_TENANT, "--yes", "--json"], &token].concat();
    let said = operator.run(emulators, &last).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.json()?["tenant"], OTHER_TENANT);
    assert_eq!(asked_in()[before..], [TENANT; 2]);
    let left = [users(&scene, OTHER_TENANT)?, users(&scene, TENANT)?];
    assert_eq!(left, [0, USERS]);
    assert!(emulators.newest_version(&key_name(OTHER_TENANT)).is_none());
    assert!(emulators.newest_version(&key_name(TENANT)).is_some());
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_can_come_back_is_told_as_that() -> Result {
    let (scene, operator) = operated().await?;
    let emulators = &scene.emulators;
    let name = key_name(OTHER_TENANT);
    let client_id = emulators.options().client_id.clone();
    let said = remove(&operator, emulators, &["--yes", "--json", "--no-purge"]).await?;
    assert_eq!(
        (said.code, &said.json()?["key"]),
        (Some(3), &json!("recoverable")),
        "{said:?}"
    );
    let until = said.json()?["recoverable_until"].as_i64().unwrap();
    let days = (until - jiff::Timestamp::now().as_second()).div_euclid(86_400);
    assert!((89..=90).contains(&days), "{said:?}");
    // Without the permission to purge it stays so, and says why.
    emulators.permit(&client_id, &["get", "list", "delete"]);
    let said = remove(&operator, emulators, &["--yes"]).await?;
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(
        said.out.contains("this identity may not purge secrets"),
        "{said:?}"
    );
    assert!(emulators.is_secret_deleted(&name));
    // Nor is anything said that nobody could see.
    emulators.permit(&client_id, &["get", "delete", "purge"]);
    let said = remove(&operator, emulators, &["--yes"]).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.log.contains("see deleted secrets"), "{said:?}");

    emulators.recover_secret(&name)?;
    emulators.permit(&client_id, &["get", "list", "delete", "purge"]);
    emulators.protect_from_purge();
    let said = remove(&operator, emulators, &["--yes", "--json"]).await?;
    assert_eq!(
        (said.code, &said.json()?["key"]),
        (Some(3), &json!("protected")),
        "{said:?}"
    );
    assert!(emulators.is_secret_deleted(&name));
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_leaves_the_key() -> Result {
    let (scene, _) = operated().await?;
    let emulators = &scene.emulators;
    let operator = Operator::new(emulators)?
        .with_token(emulators, &["Behalf.Read"])?
        .environment("BEHALF_APP", &scene.app.url());
    let said = remove(&operator, emulators, &["--yes"]).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.log.contains("insufficient_scope"), "{said:?}");
    assert!(emulators.newest_version(&key_name(OTHER_TENANT)).is_some());
    assert_eq!(users(&scene, OTHER_TENANT)?, USERS);
    // The other way round, the users are gone, and that is said.
    let operator = operator.with_token(emulators, &["Behalf.Admin"])?;
    emulators.permit(&emulators.options().client_id, &["get"]);
    let said = remove(&operator, emulators, &["--yes"]).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.out
            .starts_with("users  5 removed, none is left\nkey    ")
            && said.out.contains("has not said that it is deleted")
            && said.log.contains("secrets/delete"),
        "{said:?}"
    );
    scene.end().await?;
    Ok(())
}

/// What an app would answer to one removal after another.
fn removals(emulators: &Emulators, answers: &[(u16, Value, u64)]) {
    for (status, body, delay_ms) in answers {
        let answer = Answer::Status {
            status: *status,
            body: body.to_string(),
            content_type: "application/json".to_owned(),
        };
        emulators.fault(Fault {
            delay_ms: *delay_ms,
            ..Fault::new(Target::Downstream, answer)
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_is_told_though_the_last_step_fails() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    let operator = Operator::new(&emulators)?
        .set("tenants", TENANT)
        .with_token(&emulators, &["Behalf.Admin"])?
        .environment("BEHALF_APP", &emulators.downstream_url());
    let fails = || (500, json!({"code": "internal", "detail": "it fails"}), 0);
    removals(
        &emulators,
        &[(200, json!({"removed": 3, "remaining": 0}), 0), fails()],
    );
    let said = remove(&operator, &emulators, &["--yes", "--json"]).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.log.contains("it fails"), "{said:?}");
    let expected = json!({"tenant": OTHER_TENANT, "users_removed": 3, "users_left": null, "secret": key_name(OTHER_TENANT),
        "key": "purged", "recoverable_until": null});
    assert_eq!(said.json()?, expected);
    assert!(!emulators.is_secret_deleted(&key_name(OTHER_TENANT)));
    assert_eq!(emulators.faults_left(), 0);
    Ok(())
}

/// What is under way ends first, and what was done is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_interrupted_says_how_far_it_was() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    let operator = Operator::new(&emulators)?
        .with_token(&emulators, &["Behalf.Admin"])?
        .environment("BEHALF_APP", &emulators.downstream_url());
    let words = [
        "tenant",
        "remove",
        OTHER_TENANT,
        "--token-file",
        "token",
        "--yes",
    ];
    let interrupted = async |words: &[&str], by: Signal| -> anyhow::Result<Said> {
        let child = operator.begin(words)?;
        while emulators.faults_left() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        signal(&child, by)?;
        operator.end(&emulators, child).await
    };
    let secret = key_name(OTHER_TENANT);
    for by in [Signal::INT, Signal::TERM] {
        let (some, rest) = (
            json!({"removed": 2, "remaining": 9}),
            json!({"removed": 4, "remaining": 5}),
        );
        removals(&emulators, &[(200, some, 0), (200, rest, 2000)]);
        let said = interrupted(&words, by).await?;
        assert_eq!(said.code, Some(130), "{said:?}");
        let told = format!(
            "users  6 removed, 5 are left\nkey    {secret}: Key Vault has not said that it is deleted\n"
        );
        assert_eq!(said.out, told, "{said:?}");
    }
    assert!(emulators.newest_version(&secret).is_some());
    // In the middle of the key's deletion, which was accepted, and is looked for. The first request is without a token.
    removals(
        &emulators,
        &[(200, json!({"removed": 5, "remaining": 0}), 0)],
    );
    let mut slow = Fault::new(Target::KeyVault, Answer::Pass).times(3);
    slow.delay_ms = 1000;
    emulators.fault(slow);
    let said = interrupted(&[&words[..], &["--json"]].concat(), Signal::INT).await?;
    assert_eq!(said.code, Some(130), "{said:?}");
    let told = said.json()?;
    assert_eq!([&told["users_removed"], &told["users_left"]], [5, 0]);
    assert_eq!(told["key"], "recoverable", "{told}");
    assert!(told["recoverable_until"].is_u64(), "{told}");
    assert!(emulators.is_secret_deleted(&secret));
    Ok(())
}

/// Without its key a tenant is served nothing, whatever is stored; with it again, all is as before.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_key_a_tenant_is_served_nothing_and_with_it_again_everything() -> Result {
    let (scene, operator) = operated().await?;
    let name = key_name(OTHER_TENANT);
    let status = async || -> anyhow::Result<Value> {
        let words = ["status", "--json", "--token-file", "token"];
        let said = operator.run(&scene.emulators, &words).await?;
        assert_eq!(said.code, Some(0), "{said:?}");
        said.json()
    };
    assert_eq!(draw(&scene, OTHER_TENANT).await?, (200, Value::Null));
    scene.emulators.delete_secret(&name)?;
    // Past the cap of the cache, which is `key_cache_seconds`.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let skipped = scene.app.output().len();
    assert_eq!(
        draw(&scene, OTHER_TENANT).await?,
        (500, json!("key_not_found"))
    );
    scene.app.wait_for_output_after(skipped, &name).await?;
    assert_eq!(
        draw(&scene, TENANT).await?,
        (200, Value::Null),
        "nobody else's trouble"
    );
    let enrolled = call(&scene, OTHER_TENANT, 9, Method::PUT, "/v1/me").await?;
    assert_eq!(enrolled, (403, json!("tenant_not_onboarded")));
    let report = scene.sweep().await?;
    assert_eq!(
        report["without_key"][OTHER_TENANT], "key_not_found",
        "{report}"
    );
    let shown = status().await?;
    let of = |shown: &Value| shown["status"]["tenants"][OTHER_TENANT].clone();
    assert_eq!(of(&shown)["without_key"], "key_not_found", "{shown}");
    assert_eq!(shown["needs"][0]["tenant"], OTHER_TENANT, "{shown}");

    scene.emulators.recover_secret(&name)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(draw(&scene, OTHER_TENANT).await?, (200, Value::Null));
    let report = scene.sweep().await?;
    assert_eq!(report["tenants_without_key"], 0, "{report}");
    assert!(of(&status().await?)["without_key"].is_null());
    assert_eq!(users(&scene, OTHER_TENANT)?, USERS);
    scene.end().await?;
    Ok(())
}
