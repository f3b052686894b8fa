//! The service that the bench compares behalf with does what it is there for, or the comparison is worth nothing.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::time::Duration;

use ::redis::Commands as _;
use reqwest::{Method, StatusCode};
use runtime_tests::app::Answer;
use runtime_tests::emulators::{Emulators, OTHER_USER, Options, Signature, TENANT, Target, USER};
use runtime_tests::leaks::Secrets;
use runtime_tests::peer::Peer;
use runtime_tests::redis::Redis;
use serde_json::Value;

type Result = anyhow::Result<()>;

const DRAW: &str = "/v1/me/access-token";

#[tokio::test(flavor = "multi_thread")]
async fn a_user_enrols_and_draws_what_the_downstream_api_accepts() -> Result {
    let (emulators, redis) = around().await?;
    let peer = Peer::start(&emulators, &redis, 1).await?;
    let bearer = emulators.caller().mint();
    enrol(&peer, &bearer).await?;
    let answer = draw(&peer, &bearer).await?;
    assert_eq!(answer.json["token_type"], "Bearer");
    let left = answer.json["expires_in"].as_u64().unwrap();
    let whole = u64::from(emulators.options().access_token_seconds);
    assert!((1..=whole).contains(&left), "{left}");
    assert!(answer.json["scope"].as_str().unwrap().contains("User.Read"));
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(who(&emulators, &answer).await?["id"], USER);
    // Each their own.
    let other = emulators.caller().user(OTHER_USER).mint();
    let others = draw(&peer, &other).await?;
    assert_eq!(who(&emulators, &others).await?["id"], OTHER_USER);
    assert_eq!(
        draw(&peer, &bearer).await?.json["access_token"],
        answer.json["access_token"]
    );
    let health = peer.app.send(Method::GET, "/healthz", None, None).await?;
    assert_eq!(health.status, StatusCode::OK);
    peer.app.stop().await?;
    Ok(())
}

/// What the bench measures is a draw from the cache in Redis, which outlives the process.
#[tokio::test(flavor = "multi_thread")]
async fn draws_come_from_redis_and_after_a_restart_too() -> Result {
    let (emulators, redis) = around().await?;
    let bearer = emulators.caller().mint();
    let peer = Peer::start(&emulators, &redis, 1).await?;
    enrol(&peer, &bearer).await?;
    let token = draw(&peer, &bearer).await?.json["access_token"].clone();
    for _ in 1..20 {
        assert_eq!(draw(&peer, &bearer).await?.json["access_token"], token);
    }
    assert_eq!(exchanges(&emulators), 1);
    peer.app.stop().await?;

    let peer = Peer::start(&emulators, &redis, 1).await?;
    assert_eq!(draw(&peer, &bearer).await?.json["access_token"], token);
    assert_eq!(exchanges(&emulators), 1);
    // It does look there: what is no longer what was sealed is drawn anew, and so is what is gone.
    let rows = peer.app.store().all_rows()?;
    let (name, sealed) = rows.first_key_value().unwrap();
    let mut flipped = sealed.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut connection = redis.connect()?;
    connection.set::<_, _, ()>(name, flipped)?;
    assert_ne!(draw(&peer, &bearer).await?.json["access_token"], token);
    assert_eq!(exchanges(&emulators), 2);
    connection.del::<_, ()>(name)?;
    draw(&peer, &bearer).await?;
    assert_eq!(exchanges(&emulators), 3);
    peer.app.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_holds_no_secret() -> Result {
    let (emulators, redis) = around().await?;
    let peer = Peer::start(&emulators, &redis, 1).await?;
    let bearer = emulators.caller().mint();
    enrol(&peer, &bearer).await?;
    draw(&peer, &bearer).await?;
    let secrets = Secrets::new(&emulators.secrets());
    let rows = peer.app.store().all_rows()?;
    assert_eq!(rows.len(), 1);
    let (name, sealed) = rows.first_key_value().unwrap();
    // A token is in it: nothing shorter could hold one.
    assert!(sealed.len() > bearer.len(), "{}", sealed.len());
    assert_eq!(*name, format!("{USER}.{TENANT}"));
    assert_eq!(secrets.found_in(&String::from_utf8_lossy(sealed)), None);
    let output = peer.app.stop().await?;
    assert_eq!(secrets.found_in(&output.join("\n")), None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_bearer_token_gets_401() -> Result {
    let (emulators, redis) = around().await?;
    let peer = Peer::start(&emulators, &redis, 1).await?;
    let now = jiff::Timestamp::now().as_second();
    let caller = || emulators.caller();
    let signed_by = |signature| Some(caller().signature(signature).mint());
    let good = caller().mint();
    for (wrong, bearer) in [
        ("none", None),
        ("no token", Some("x".to_owned())),
        ("broken", signed_by(Signature::Broken)),
        ("unsigned", signed_by(Signature::None)),
        ("another algorithm", signed_by(Signature::Hs256)),
        ("another key", signed_by(Signature::UnknownKey)),
        (
            "another audience",
            Some(caller().claim("aud", "api://another").mint()),
        ),
        (
            "another tenant",
            Some(caller().claim("tid", "another").mint()),
        ),
        (
            "a tenant that is not served",
            Some(
                caller()
                    .tenant("77777777-7777-4777-8777-777777777777")
                    .mint(),
            ),
        ),
        (
            "another issuer",
            Some(caller().claim("iss", "https://example.com/v2.0").mint()),
        ),
        ("expired", Some(caller().claim("exp", now - 600).mint())),
        (
            "not yet valid",
            Some(caller().claim("nbf", now + 600).mint()),
        ),
        ("no scope", Some(caller().claim("scp", Value::Null).mint())),
    ] {
        for (method, path) in [(Method::PUT, "/v1/me"), (Method::POST, DRAW)] {
            let answer = peer.app.send(method, path, bearer.as_deref(), None).await?;
            assert_eq!(
                answer.status,
                StatusCode::UNAUTHORIZED,
                "{wrong}: {answer:?}"
            );
            assert!(
                answer.header("www-authenticate").starts_with("Bearer"),
                "{wrong}"
            );
        }
    }
    assert_eq!(exchanges(&emulators), 0);
    // The others were refused for what is wrong with them.
    draw(&peer, &good).await?;
    peer.app.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_the_port_and_end_together() -> Result {
    let (emulators, redis) = around().await?;
    let peer = Peer::start(&emulators, &redis, 2).await?;
    let processes = peer.app.processes()?;
    assert_eq!(processes.len(), 3, "one distributes");
    let bearer = emulators.caller().mint();
    enrol(&peer, &bearer).await?;
    let token = draw(&peer, &bearer).await?.json["access_token"].clone();
    for _ in 0..8 {
        // Connections go to the workers in turn.
        let url = format!("{}{DRAW}", peer.app.url());
        let request = reqwest::Client::new().post(url).bearer_auth(&bearer);
        let answer = Answer::read(request.send().await?).await?;
        assert_eq!(answer.json["access_token"], token, "{answer:?}");
    }
    assert_eq!(exchanges(&emulators), 1);
    peer.app.stop().await?;
    let gone = async {
        for process in processes {
            // One that nobody has waited for has no command line.
            while process.cmdline().is_ok_and(|it| !it.is_empty()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(1), gone).await?;
    Ok(())
}

async fn around() -> anyhow::Result<(Emulators, Redis)> {
    let emulators = Emulators::start(Options::default()).await?;
    Ok((emulators, Redis::start()?))
}

async fn enrol(peer: &Peer, bearer: &str) -> Result {
    let answer = peer
        .app
        .send(Method::PUT, "/v1/me", Some(bearer), None)
        .await?;
    anyhow::ensure!(answer.status == StatusCode::CREATED, "{answer:?}");
    Ok(())
}

async fn draw(peer: &Peer, bearer: &str) -> anyhow::Result<Answer> {
    let answer = peer
        .app
        .send(Method::POST, DRAW, Some(bearer), None)
        .await?;
    anyhow::ensure!(answer.status == StatusCode::OK, "{answer:?}");
    Ok(answer)
}

/// Whom the downstream API sees with the token that was drawn.
async fn who(emulators: &Emulators, drawn: &Answer) -> anyhow::Result<Value> {
    let answer = reqwest::Client::new()
        .get(format!("{}/v1.0/me", emulators.downstream_url()))
        .bearer_auth(drawn.json["access_token"].as_str().unwrap())
        .send()
        .await?;
    let answer = Answer::read(answer).await?;
    anyhow::ensure!(answer.status == StatusCode::OK, "{answer:?}");
    Ok(answer.json)
}

/// How often Entra ID was asked for a user's token.
fn exchanges(emulators: &Emulators) -> usize {
    let journal = emulators.journal();
    let of_users = journal.iter().filter(|entry| {
        entry.target == Target::EntraToken && entry.grant.as_deref() != Some("client_credentials")
    });
    of_users.count()
}
