//! The store under a host that is killed, and beside another process. What was acknowledged holds.
#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::Method;
use runtime_tests::app::{App, Options};
use runtime_tests::emulators::{self, Emulators};
use tokio::task::JoinSet;

type Result<T = ()> = anyhow::Result<T>;

/// Users at once, each with a client of his own.
const USERS: u32 = 6;

/// What a user is. The codes are those of a draw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Absent = 404,
    NoToken = 409,
    Enrolled = 200,
}

/// What a client knows: the state that was acknowledged last, and the one that it asked for without an answer.
#[derive(Clone, Copy, Debug)]
struct Known {
    acknowledged: State,
    asked: Option<State>,
}

/// `KILL_ROUNDS` sets another number of rounds than 50.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9_at_any_moment() -> Result {
    let rounds = std::env::var("KILL_ROUNDS").map_or(Ok(50), |rounds| rounds.parse::<u64>())?;
    let emulators = Arc::new(Emulators::start(emulators::Options::default()).await?);
    let directory = tempfile::tempdir()?;
    let mut known = vec![
        Known {
            acknowledged: State::Absent,
            asked: None,
        };
        usize::try_from(USERS)?
    ];
    let mut app = Arc::new(start(&emulators, directory.path()).await?);
    for round in 0..rounds {
        let mut clients = JoinSet::new();
        for user in 0..USERS {
            let (app, emulators) = (Arc::clone(&app), Arc::clone(&emulators));
            let known = known[usize::try_from(user)?].acknowledged;
            clients
                .spawn(async move { (user, client(&app, &emulators, user, round, known).await) });
        }
        let sweeper = {
            let (app, emulators) = (Arc::clone(&app), Arc::clone(&emulators));
            tokio::spawn(async move {
                let key = emulators.options().sweep_key.clone();
                while app
                    .send(Method::POST, "/v1/sweep", Some(&key), None)
                    .await
                    .is_ok()
                {}
            })
        };
        // Another moment each round, spread over a second.
        tokio::time::sleep(Duration::from_millis(40 + round * 379 % 1000)).await;
        app.kill();
        while let Some(ended) = clients.join_next().await {
            let (user, after) = ended?;
            known[usize::try_from(user)?] = after;
        }
        sweeper.await?;

        app = Arc::new(start(&emulators, directory.path()).await?);
        for (user, known) in (0..USERS).zip(&mut known) {
            let found = draw(&app, &emulators, user).await?;
            ensure!(
                found == known.acknowledged || Some(found) == known.asked,
                "round {round}: user {user} is {found:?} after {known:?}"
            );
            known.acknowledged = found;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_one_store() -> Result {
    let emulators = Arc::new(Emulators::start(emulators::Options::default()).await?);
    let directory = tempfile::tempdir()?;
    let one = Arc::new(start(&emulators, directory.path()).await?);
    let two = Arc::new(start(&emulators, directory.path()).await?);
    let mut clients = JoinSet::new();
    for user in 0..USERS {
        let app = Arc::clone(if user % 2 == 0 { &one } else { &two });
        let emulators = Arc::clone(&emulators);
        clients.spawn(async move {
            for _ in 0..10 {
                let token = token(&emulators, user);
                let answer = app.send(Method::PUT, "/v1/me", Some(&token), None).await?;
                ensure!(answer.status.is_success(), "{answer:?}");
            }
            Ok(())
        });
    }
    let key = &emulators.options().sweep_key;
    for _ in 0..5 {
        for app in [&one, &two] {
            let answer = app.send(Method::POST, "/v1/sweep", Some(key), None).await?;
            ensure!(answer.status.is_success(), "{answer:?}");
        }
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    // Each sees what the other wrote.
    for user in 0..USERS {
        for app in [&one, &two] {
            ensure!(draw(app, &emulators, user).await? == State::Enrolled);
        }
    }
    Ok(())
}

async fn start(emulators: &Emulators, directory: &Path) -> Result<App> {
    let options = Options::for_emulators(emulators).state_dir(directory);
    // Everything is due all the time.
    App::start(options.set("refresh_after_seconds", "1")).await
}

/// Enrols and removes until the app is gone.
async fn client(
    app: &App,
    emulators: &Emulators,
    user: u32,
    round: u64,
    acknowledged: State,
) -> Known {
    let mut known = Known {
        acknowledged,
        asked: None,
    };
    for turn in u64::from(user) + round.. {
        let (method, path, then) = match turn % 4 {
            0 | 2 => (Method::PUT, "/v1/me", State::Enrolled),
            1 => (Method::DELETE, "/v1/me", State::Absent),
            _ if known.acknowledged == State::Absent => continue,
            _ => (Method::DELETE, "/v1/me/refresh-token", State::NoToken),
        };
        known.asked = Some(then);
        // What is tried here in seconds is no loop: on Entra ID's clock a minute passes.
        emulators.pass(Duration::from_mins(1));
        let token = token(emulators, user);
        match app.send(method, path, Some(&token), None).await {
            Ok(answer) if answer.status.is_success() => known.acknowledged = then,
            Ok(_) | Err(_) => return known,
        }
        known.asked = None;
    }
    known
}

fn token(emulators: &Emulators, user: u32) -> String {
    let user = format!("{user:08}-0000-4000-8000-000000000000");
    emulators.caller().user(&user).mint()
}

async fn draw(app: &App, emulators: &Emulators, user: u32) -> Result<State> {
    let token = token(emulators, user);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = app
            .send(Method::POST, "/v1/me/access-token", Some(&token), None)
            .await?;
        let states = [State::Absent, State::NoToken, State::Enrolled];
        let state = states
            .into_iter()
            .find(|state| *state as u16 == answer.status.as_u16());
        // Two processes wait for each other.
        if answer.status == 503 && Instant::now() < deadline {
            continue;
        }
        return state.with_context(|| format!("{answer:?}"));
    }
}
