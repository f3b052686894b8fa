//! A client that follows README, "When Entra ID refuses": it gets its user back to work, and never asks twice for the same.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::collections::BTreeSet;

use anyhow::{bail, ensure};
use reqwest::Method;
use runtime_tests::emulators::{Options, TENANT, USER};
use runtime_tests::scene::Scene;

/// How it ended, and how often the user was asked to sign in.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Drawn,
    AskedAlready,
    Organisation,
}

/// Draws, and does what the answers say. `sign_in` is what the user does when asked.
async fn client(scene: &Scene, sign_in: impl Fn(&Scene)) -> anyhow::Result<(End, usize)> {
    let mut asked = BTreeSet::new();
    let mut enrolled_at = scene.call(Method::GET, "/v1/me").await?.json["enrolled_at"].as_u64();
    loop {
        let mut answer = scene.call(Method::POST, "/v1/me/access-token").await?;
        // A new enrolment can be refused for the same reasons.
        loop {
            match answer.code() {
                "interaction_required" | "reenrolment_required" => {}
                "organisation_required" => return Ok((End::Organisation, asked.len())),
                "" if answer.status == 200 => return Ok((End::Drawn, asked.len())),
                _ => bail!("{answer:?}"),
            }
            if !asked.insert((answer.json["aadsts"].as_u64(), enrolled_at)) {
                return Ok((End::AskedAlready, asked.len()));
            }
            sign_in(scene);
            answer = scene.call(Method::PUT, "/v1/me").await?;
            if answer.status == 200 {
                enrolled_at = answer.json["enrolled_at"].as_u64();
                break;
            }
        }
    }
}

/// Nothing is refused any longer, nor remembered as refused.
async fn enrol_anew(scene: &Scene) -> anyhow::Result<()> {
    scene.emulators.refuse(TENANT, USER, None);
    let answer = scene.call(Method::PUT, "/v1/me").await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_asks_its_user_at_most_once_for_the_same() -> anyhow::Result<()> {
    // Entra ID decides anew on each draw; and each client begins with an enrolment that nothing was refused under.
    let scene = Scene::with(Options::default(), |app| {
        app.set("access_token_cache_seconds", "0")
    })
    .await?;
    scene.enrol().await?;
    let refuse = |code: u32| {
        scene.emulators.refuse(TENANT, USER, Some(code));
    };
    let nothing = |_: &Scene| {};
    let satisfied = |scene: &Scene| scene.emulators.refuse(TENANT, USER, None);
    assert_eq!(client(&scene, nothing).await?, (End::Drawn, 0));
    // The sign-in is all that was missing.
    refuse(50_076);
    assert_eq!(client(&scene, satisfied).await?, (End::Drawn, 1));
    // It does not help.
    enrol_anew(&scene).await?;
    refuse(50_076);
    assert_eq!(client(&scene, nothing).await?, (End::AskedAlready, 1));
    // Nor would asking for that.
    enrol_anew(&scene).await?;
    refuse(50_105);
    assert_eq!(client(&scene, nothing).await?, (End::Organisation, 0));
    // Something else is asked for the second time.
    enrol_anew(&scene).await?;
    refuse(50_076);
    let harder = |scene: &Scene| scene.emulators.refuse(TENANT, USER, Some(53_000));
    assert_eq!(client(&scene, harder).await?, (End::AskedAlready, 2));
    enrol_anew(&scene).await?;
    scene.emulators.revoke(TENANT, USER);
    assert_eq!(client(&scene, nothing).await?, (End::Drawn, 1));
    scene.end().await?;
    Ok(())
}
