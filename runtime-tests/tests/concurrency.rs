//! Many requests at once, in one instance of the components.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use reqwest::Method;
use runtime_tests::app::{self, App};
use runtime_tests::emulators::{Answer, Fault, Options, TENANT, Target, USER};
use runtime_tests::scene::Scene;
use serde_json::{Value, json};
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
        // One round after another is no loop.
        scene.emulators.pass(Duration::from_mins(5));
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
                serde_json::from_str::<Value>(&answer.text().await?)?["access_token"]
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

/// Instances live as by the host's own limits, not as on Spin, so many at once, and can be counted.
fn long_lived(app: app::Options, most: &str) -> app::Options {
    app::Options {
        embedded: Some(Vec::new()),
        ..app.arguments(&[
            "--max-instance-reuse-count",
            "1000000",
            "--idle-instance-timeout",
            "600s",
            "--max-instances",
            most,
            "--log-level",
            "debug",
        ])
    }
}

/// How many instances the host has started so far.
async fn instances(app: &App) -> anyhow::Result<usize> {
    let answer = app.send(Method::GET, "/healthz", None, None).await?;
    // Its line comes after those of the instances that served before.
    let last = format!("request_id={}", answer.header("x-request-id"));
    app.wait_for_output_after(0, &last).await?;
    let output = app.output();
    let started = output
        .iter()
        .filter(|it| it.contains("an instance started"));
    Ok(started.count())
}

/// Draws so many times for a user, so many at once; returns the different access tokens.
async fn draws(scene: &Scene, all: usize, at_once: usize) -> anyhow::Result<BTreeSet<String>> {
    let token = scene.emulators.caller().mint();
    let draw = async || {
        let request = scene.app.request(Method::POST, "/v1/me/access-token");
        let answer = app::Answer::read(request.bearer_auth(&token).send().await?).await?;
        scene.remember(&answer, "/v1/me/access-token");
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        let token = answer.json["access_token"].as_str().unwrap_or_default();
        anyhow::Ok(token.to_owned())
    };
    let draws = stream::iter((0..all).map(|_| draw()));
    draws.buffer_unordered(at_once).try_collect().await
}

fn refreshes(scene: &Scene) -> usize {
    let journal = scene.emulators.journal();
    let refreshes = journal
        .iter()
        .filter(|entry| entry.grant.as_deref() == Some("refresh_token"));
    refreshes.count()
}

/// A service that draws for each of its requests makes one request to Entra ID in each instance, not the loop that Entra ID
/// breaks (AADSTS50196): one draw after another, and many at once that all come to instances which know nothing yet. How many
/// of those a crowd gets is the host's affair; here eight at most at once, or one.
#[tokio::test(flavor = "multi_thread")]
async fn draws_again_and_again_ask_once_an_instance() -> Result {
    for (all, at_once, most) in [(300, 1, 8), (200, 32, 8), (200, 32, 1)] {
        let folder = tempfile::tempdir()?;
        let adjust =
            |app: app::Options| long_lived(app.state_dir(folder.path()), &most.to_string());
        let Scene { emulators, app, .. } = Scene::with(Options::default(), adjust).await?;
        let me = emulators.caller().mint();
        let answer = app.send(Method::PUT, "/v1/me", Some(&me), None).await?;
        assert_eq!(answer.status, 201, "{answer:?}");
        app.stop().await?;
        emulators.clear_journal();
        let app = App::start(adjust(app::Options::for_emulators(&emulators))).await?;
        let scene = Scene::of(emulators, app);
        let tokens = draws(&scene, all, at_once).await?;
        let (refreshes, instances) = (refreshes(&scene), instances(&scene.app).await?);
        let context =
            format!("{refreshes} requests, {all} draws, {at_once} at once, {instances} instances");
        assert!((1..=instances).contains(&refreshes), "{context}");
        // Another one starts where one has had nothing to do for ten seconds and is not among the oldest.
        assert!(
            instances < all / 10 && (most > 1 || instances == 1),
            "{context}"
        );
        let journal = scene.emulators.journal();
        let signing_keys = journal.iter().filter(|it| it.target == Target::Jwks);
        assert!(signing_keys.count() <= instances, "{context}");
        assert_eq!(tokens.len(), refreshes, "every answer is of a call");
        for token in tokens {
            assert_eq!(user_of(&token), USER);
        }
        scene.end().await?;
    }
    Ok(())
}

/// `oid` of an access token.
fn user_of(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap();
    serde_json::from_slice::<Value>(&payload).unwrap()["oid"].clone()
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
        // One round after another is no loop.
        scene.emulators.pass(Duration::from_mins(5));
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

/// Each waits for the other to be asked: one after the other, neither would come.
#[tokio::test(flavor = "multi_thread")]
async fn a_cold_instance_asks_for_the_signing_keys_and_at_key_vault_at_once() -> Result {
    // An instance a request: all are cold.
    let scene = Scene::with(Options::default(), |app| app::Options {
        embedded: Some(Vec::new()),
        ..app.arguments(&["--max-instance-reuse-count", "1"])
    })
    .await?;
    for (method, path) in [
        (Method::PUT, "/v1/me"),
        (Method::POST, "/v1/me/access-token"),
    ] {
        scene.emulators.clear_journal();
        for (held, until) in [
            (Target::Jwks, Target::KeyVault),
            (Target::KeyVault, Target::Jwks),
        ] {
            let held = Fault::new(held, Answer::Pass).until(until);
            scene.emulators.fault(held);
        }
        let answer = scene.call(method, path).await?;
        assert!(answer.status.is_success(), "{answer:?}");
        assert_eq!(scene.emulators.faults_left(), 0);
        let journal = scene.emulators.journal();
        let mut asked: Vec<_> = journal.iter().map(|it| (it.target, it.status)).collect();
        asked.sort();
        // Nothing is asked for twice, nor for nothing: the key that was begun is the record's.
        assert_eq!(
            asked,
            [
                (Target::EntraToken, Some(200)),
                (Target::EntraToken, Some(200)),
                (Target::Jwks, Some(200)),
                (Target::KeyVault, Some(200)),
                (Target::KeyVault, Some(401)),
            ],
            "{path}"
        );
    }
    scene.end().await?;
    Ok(())
}

/// What was begun beside a call goes on when that is answered, in the same instance, and holds up nobody who does not need it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_cold_instance_has_begun_outlives_the_request() -> Result {
    let scene = Scene::with(Options::default(), app::Options::one_instance).await?;
    // Key Vault answers when this test says so.
    let held = Fault::new(Target::KeyVault, Answer::Pass).until(Target::Downstream);
    scene.emulators.fault(held);
    for (method, path) in [
        (Method::POST, "/v1/me/access-token"),
        (Method::GET, "/v1/me"),
        (Method::POST, "/v1/me/access-token"),
    ] {
        let answer = scene.call(method, path).await?;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (404, "not_enrolled")
        );
    }
    let held = async {
        while scene.emulators.faults_left() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), held).await?;
    assert_eq!(asked(&scene), [(Target::Jwks, Some(200))]);
    reqwest::get(scene.emulators.downstream_url()).await?;
    // Nobody asks the app for anything, and it comes to its end.
    assert_eq!(
        asked_in_all(&scene, 4).await,
        [
            (Target::Jwks, Some(200)),
            (Target::KeyVault, Some(401)),
            (Target::EntraToken, Some(200)),
            (Target::KeyVault, Some(200)),
        ]
    );
    // Who enrols finds it.
    scene.emulators.clear_journal();
    scene.enrol().await?;
    assert_eq!(asked(&scene), [(Target::EntraToken, Some(200))]);
    scene.end().await?;
    Ok(())
}

/// What the emulators of Entra ID and Key Vault have answered.
fn asked(scene: &Scene) -> Vec<(Target, Option<u16>)> {
    let journal = scene.emulators.journal().into_iter();
    let of_the_app = journal.filter(|it| it.target != Target::Downstream);
    of_the_app.map(|it| (it.target, it.status)).collect()
}

/// The same, once it is so many.
async fn asked_in_all(scene: &Scene, answers: usize) -> Vec<(Target, Option<u16>)> {
    let come = async {
        while asked(scene).len() < answers {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_mins(1), come).await;
    asked(scene)
}

/// Waiting tasks go on, whatever else their instance does; none is lost and nothing traps.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_is_served() -> Result {
    let scene = Scene::with(Options::default(), keeping_none).await?;
    let url = scene.app.url();
    let client = reqwest::Client::new();
    // Ten draws each, which is no loop however many of them are Entra ID's.
    let users: Vec<_> = (0..40)
        .map(|n| format!("{n:08}-4444-4444-8444-444444444444"))
        .collect();
    for user in &users {
        let token = scene.emulators.caller().user(user).mint();
        let answer = scene
            .send(Method::PUT, "/v1/me", Some(&token), None)
            .await?;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let mut draws = JoinSet::new();
    for n in 0..400 {
        let user = &users[n % users.len()];
        // Two tokens of the user and two of a job, so that some draws are the same and some are not.
        let caller = scene.emulators.caller().claim("uti", n / users.len() % 4);
        let (caller, url) = match n / users.len() % 2 {
            0 => (caller.user(user), format!("{url}/v1/me/access-token")),
            _ => (
                caller.app(&["Behalf.Act"]),
                format!("{url}/v1/users/{TENANT}/{user}/access-token"),
            ),
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
