//! The app as a process: beside another, and gone when it should be.
#![allow(clippy::arithmetic_side_effects, reason = "a panic is a failed test")]

use std::time::{Duration, Instant};

use reqwest::Method;
use runtime_tests::app::{App, Options, is_on_spin, root};
use runtime_tests::emulators::{self, Emulators};
use tokio::net::TcpStream;

type Result = anyhow::Result<()>;

#[tokio::test(flavor = "multi_thread")]
async fn two_apps_run_beside_each_other() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let (one, two) = tokio::join!(
        App::start(Options::for_emulators(&emulators)),
        App::start(Options::for_emulators(&emulators)),
    );
    let (one, two) = (one?, two?);
    assert_ne!(one.address(), two.address());
    let token = emulators.caller().mint();
    assert_eq!(
        one.send(Method::PUT, "/v1/me", Some(&token), None)
            .await?
            .status,
        201
    );
    assert_eq!(
        two.send(Method::GET, "/v1/me", Some(&token), None)
            .await?
            .status,
        404
    );
    one.stop().await?;
    two.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_dropped_is_gone() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let app = App::start(Options::for_emulators(&emulators)).await?;
    let address = app.address();
    TcpStream::connect(address).await?;
    drop(app);
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).await.is_ok() {
        anyhow::ensure!(Instant::now() < deadline, "the app outlives its handle");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_connections_without_a_request() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let app = App::start(Options::for_emulators(&emulators)).await?;
    // One that never sent anything, and one that is kept alive after an answer.
    let _silent = TcpStream::connect(app.address()).await?;
    app.send(Method::GET, "/healthz", None, None).await?;
    app.stop().await?;
    Ok(())
}

/// Whatever the app listens on, and with HTTPS, too: its own schedule reaches it without a network.
#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_finds_its_app_without_an_address() -> Result {
    if is_on_spin() {
        return Ok(());
    }
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let folder = tempfile::tempdir()?;
    let options = || Options::for_emulators(&emulators).state_dir(folder.path());
    let app = App::start(options()).await?;
    let token = emulators.caller().mint();
    let enrolled = app.send(Method::PUT, "/v1/me", Some(&token), None).await?;
    assert_eq!(enrolled.status, 201);
    app.store().make_due()?;
    app.stop().await?;

    let certified = rcgen::generate_simple_self_signed(["elsewhere.test".to_owned()])?;
    let (certificate, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    std::fs::write(&certificate, certified.cert.pem())?;
    std::fs::write(&key, certified.signing_key.serialize_pem())?;
    let manifest = folder.path().join("spin.toml");
    let target = format!("source = \"{}/target/", root().display());
    let text = std::fs::read_to_string(root().join("spin.toml"))?
        .replace("0 */5 * * * *", "* * * * * *")
        .replace("source = \"target/", &target)
        .replace("path = \"target/", &target.replace("source", "path"));
    std::fs::write(&manifest, text)?;
    let paths = [&certificate, &key].map(|path| path.display().to_string());
    let tls = ["--tls-cert", &paths[0], "--tls-key", &paths[1]];
    let app = App::start(Options {
        cron: true,
        manifest: Some(manifest),
        ..options().arguments(&tls)
    })
    .await?;
    app.wait_for_output_after(0, "\"refreshed\":1").await?;
    app.stop().await?;
    Ok(())
}
