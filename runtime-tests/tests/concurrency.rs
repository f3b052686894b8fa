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
use runtime_tests::app;
use runtime_tests::emulators::{Answer, Fault, Options, TENANT, Target, USER};
use runtime_tests::scene::Scene;
use serde_json::json;
use tokio::task::JoinSet;

type Result = anyhow::Result<()>;

/// An app to which one scope is granted.
const NARROW: &str = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb";
/// An app to which nothing is.
const NOBODY: &str = "cccccccc-cccc-4ccc-8ccc-cccccccccccc";

/// What waits for the same call is seen where no draw is answered from memory.
fn keeping_none(app: app::Options) -> app::Options {
    app.set("access_token_cache_seconds", "0")
}

/// One in-flight call per user and scope: a task of the component waits for what another one fetches.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_token_is_drawn_once_at_a_time() -> Result {
    let scene = Scene::with(Options::default(), keeping_none).await?;
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

/// A service that draws for each of its requests makes one request to Entra ID in each instance, not the loop that Entra ID
/// breaks (AADSTS50196): instances live as by the host's own limits, not as on Spin.
#[tokio::test(flavor = "multi_thread")]
async fn draws_again_and_again_ask_once_an_instance() -> Result {
    const DRAWS: usize = 300;
    let scene = Scene::with(Options::default(), |app| app::Options {
        embedded: Some(Vec::new()),
        ..app.arguments(&[
            "--max-instance-reuse-count",
            "1000000",
            "--idle-instance-timeout",
            "600s",
        ])
    })
    .await?;
    scene.enrol().await?;
    let token = scene.emulators.caller().mint();
    let draw = async || {
        let request = scene.app.request(Method::POST, "/v1/me/access-token");
        let answer = app::Answer::read(request.bearer_auth(&token).send().await?).await?;
        scene.remember(&answer, "/v1/me/access-token");
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        let token = answer.json["access_token"].as_str().unwrap_or_default();
        anyhow::Ok(token.to_owned())
    };
    let mut tokens = BTreeSet::new();
    for _ in 0..DRAWS {
        tokens.insert(draw().await?);
    }
    let journal = scene.emulators.journal();
    let refreshes = journal
        .iter()
        .filter(|entry| entry.grant.as_deref() == Some("refresh_token"));
    let refreshes = refreshes.count();
    // Each instance asks for the signing keys once.
    let instances = journal.iter().filter(|it| it.target == Target::Jwks);
    let instances = instances.count();
    assert!(
        (1..=instances).contains(&refreshes) && instances < 10,
        "{refreshes} requests for {DRAWS} draws, {instances} instances"
    );
    assert_eq!(tokens.len(), refreshes, "every answer is of a call");
    scene.end().await?;
    Ok(())
}

/// Whoever waits for what another fetches gets it by a rule of its own, or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_shared_call_gives_each_caller_what_is_granted_to_it() -> Result {
    let emulated = Options {
        over_grant: true,
        ..Options::default()
    };
    let rule = |client: &str, callers: &str, scopes: &[&str]| json!({"client": client, "callers": callers, "resource": "https://graph.microsoft.com", "scopes": scopes});
    let (wide, narrow) = (emulated.front_end_id.clone(), NARROW);
    let grants = json!([
        rule(&wide, "delegated", &["*"]),
        rule(narrow, "delegated", &["User.Read"]),
        rule(narrow, "app", &["User.Read"]),
        rule(&emulated.job_id, "app", &["*"]),
    ]);
    let scene = Scene::with(emulated, |app| {
        keeping_none(app.one_instance()).set("grants", &grants.to_string())
    })
    .await?;
    scene.enrol().await?;
    let caller = || scene.emulators.caller();
    let act = || caller().app(&["Behalf.Act"]);
    let me = "/v1/me/access-token".to_owned();
    let user = format!("/v1/users/{TENANT}/{USER}/access-token");
    let callers = [
        (caller().mint(), &me, 200),
        (caller().claim("azp", narrow).mint(), &me, 403),
        (act().mint(), &user, 200),
        (act().claim("azp", narrow).mint(), &user, 403),
        (caller().claim("azpacr", "0").mint(), &me, 403),
        (act().claim("azp", NOBODY).mint(), &user, 403),
    ];
    let body = json!({"scope": "https://graph.microsoft.com/User.Read"});
    // Long enough for all to arrive while the first waits, whoever that is.
    for first in 0..callers.len() {
        scene.emulators.clear_journal();
        let slow = Fault {
            delay_ms: 500,
            ..Fault::new(Target::EntraToken, Answer::Pass)
        };
        scene.emulators.fault(slow.times(16));
        let mut draws = Vec::new();
        for at in 0..4 * callers.len() {
            let (token, path, status) = &callers[(first + at) % callers.len()];
            let request = scene.app.request(Method::POST, path).bearer_auth(token);
            let request = request.json(&body).send();
            draws.push(async move {
                let answer = app::Answer::read(request.await?).await?;
                anyhow::Ok((path, *status, answer))
            });
        }
        for (path, status, answer) in futures_util::future::try_join_all(draws).await? {
            scene.remember(&answer, path);
            assert_eq!(answer.status, status, "{answer:?}");
            let code = if status == 200 { "" } else { "not_granted" };
            assert_eq!(answer.code(), code, "{answer:?}");
        }
        scene.emulators.clear_faults();
        let journal = scene.emulators.journal();
        let refreshes = journal
            .iter()
            .filter(|entry| entry.grant.as_deref() == Some("refresh_token"));
        let refreshes = refreshes.count();
        assert!(refreshes < 16, "{refreshes} refreshes: nothing was shared");
    }
    scene.end().await?;
    Ok(())
}

/// Many who miss the same key make one call of Key Vault, and of whatever that call needs.
#[tokio::test(flavor = "multi_thread")]
async fn a_cold_crowd_asks_key_vault_once_an_instance() -> Result {
    let scene = Scene::start().await?;
    scene.emulators.fault(
        Fault {
            delay_ms: 500,
            ..Fault::new(Target::KeyVault, Answer::Pass)
        }
        .times(64),
    );
    let url = format!("{}/v1/me", scene.app.url());
    let client = reqwest::Client::new();
    let mut enrolments = JoinSet::new();
    for n in 0..12 {
        let user = format!("{n:08}-4444-4444-8444-444444444444");
        let token = scene.emulators.caller().user(&user).mint();
        enrolments.spawn(client.request(Method::PUT, &url).bearer_auth(token).send());
    }
    for answer in enrolments.join_all().await {
        assert_eq!(answer?.status(), 201);
    }
    let journal = scene.emulators.journal();
    let seen = |target, status| {
        let entries = journal.iter();
        let entries = entries.filter(|it| it.target == target && it.status == Some(status));
        entries.count()
    };
    // Each instance asks for the signing keys once.
    let instances = seen(Target::Jwks, 200);
    assert!((1..12).contains(&instances), "{instances} instances");
    assert_eq!(seen(Target::KeyVault, 200), instances, "keys");
    assert_eq!(seen(Target::KeyVault, 401), instances, "challenges");
    let own_tokens = journal
        .iter()
        .filter(|entry| entry.grant.as_deref() == Some("client_credentials"));
    assert_eq!(own_tokens.count(), instances);
    scene.end().await?;
    Ok(())
}

/// Waiting tasks go on, whatever else their instance does; none is lost and nothing traps.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_is_served() -> Result {
    let scene = Scene::with(Options::default(), keeping_none).await?;
    scene.enrol().await?;
    let url = scene.app.url();
    let of_user = [
        format!("{url}/v1/me/access-token"),
        format!("{url}/v1/users/{TENANT}/{USER}/access-token"),
    ];
    let client = reqwest::Client::new();
    let mut draws = JoinSet::new();
    for n in 0..400 {
        // Two tokens of the user and two of a job, so that some draws are the same and some are not.
        let caller = scene.emulators.caller().claim("uti", n % 4);
        let (caller, url) = match n % 2 {
            0 => (caller, &of_user[0]),
            _ => (caller.app(&["Behalf.Act"]), &of_user[1]),
        };
        let request = client.request(Method::POST, url);
        let request = request.bearer_auth(caller.mint()).send();
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
    let scene = Scene::with(Options::default(), |app| app::Options {
        embedded: Some(Vec::new()),
        ..app.arguments(&["--max-instances", "1"])
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
