//! Many requests at once, in one instance of the components.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Method;
use runtime_tests::app::is_on_spin;
use runtime_tests::emulators::{Answer, Fault, Options, Target};
use runtime_tests::scene::Scene;
use tokio::task::JoinSet;

type Result = anyhow::Result<()>;

/// One in-flight call per user and scope: a task of the component waits for what another one fetches.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_token_is_drawn_once_at_a_time() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let mut all = 0;
    for round in 0..5 {
        scene.emulators.clear_journal();
        // Long enough for all to arrive while the first waits.
        scene.emulators.fault(
            Fault {
                delay_ms: 500,
                ..Fault::new(Target::EntraToken, Answer::Pass)
            }
            .times(16),
        );
        let token = scene.emulators.caller().mint();
        let url = format!("{}/v1/me/access-token", scene.app.url());
        let client = reqwest::Client::new();
        let mut draws = JoinSet::new();
        for _ in 0..12 {
            draws.spawn(
                client
                    .request(Method::POST, &url)
                    .bearer_auth(&token)
                    .send(),
            );
        }
        let mut tokens = BTreeSet::new();
        for answer in draws.join_all().await {
            let answer = answer?;
            assert_eq!(answer.status(), 200, "round {round}");
            tokens.insert(
                serde_json::from_str::<serde_json::Value>(&answer.text().await?)?["access_token"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            );
        }
        scene.emulators.clear_faults();
        let journal = scene.emulators.journal();
        let refreshes = journal
            .iter()
            .filter(|entry| entry.grant.as_deref() == Some("refresh_token"))
            .count();
        assert_eq!(tokens.len(), refreshes, "every answer is of a call");
        all += refreshes;
    }
    // Once in each instance: the host starts some, and which request gets to which is its affair. Without it, 60.
    assert!(all < 60, "{all} refreshes for 60 draws");
    scene.end().await?;
    Ok(())
}

/// Waiting tasks go on, whatever else their instance does; none is lost and nothing traps.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_is_served() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let url = format!("{}/v1/me/access-token", scene.app.url());
    let client = reqwest::Client::new();
    let mut draws = JoinSet::new();
    for n in 0..400 {
        // Two tokens of the user, so that some draws are the same and some are not.
        let token = scene.emulators.caller().claim("uti", n % 2).mint();
        let request = client.request(Method::POST, &url).bearer_auth(token).send();
        draws.spawn(async move { anyhow::Ok(request.await?.status()) });
    }
    let all = tokio::time::timeout(Duration::from_mins(1), draws.join_all()).await?;
    for status in all {
        assert_eq!(status?, 200);
    }
    scene.end().await?;
    Ok(())
}

/// One place in the pool is one for a whole composition, and for all requests that its instance takes at once.
#[tokio::test(flavor = "multi_thread")]
async fn one_instance_is_enough() -> Result {
    if is_on_spin() {
        // Its pool counts memories, and has no limit on the command line.
        eprintln!("SKIPPED: only the embedded host has --max-instances");
        return Ok(());
    }
    let scene = Scene::with(Options::default(), |app| {
        app.arguments(&["--max-instances", "1"])
    })
    .await?;
    scene.enrol().await?;
    let token = scene.emulators.caller().mint();
    let draws = (0..16).map(|_| {
        let request = scene.app.request(Method::POST, "/v1/me/access-token");
        request.bearer_auth(&token).send()
    });
    for answer in futures_util::future::try_join_all(draws).await? {
        assert_eq!(answer.status(), 200);
    }
    scene.end().await?;
    Ok(())
}
