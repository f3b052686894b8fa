//! Users move with the app from key-value storage to PostgreSQL, and back.
#![allow(
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and reads as a table"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use reqwest::{Method, StatusCode};
use runtime_tests::app::{App, Options, behalf, is_on_spin, postgres_manifest, root};
use runtime_tests::emulators::{self, Emulators};
use runtime_tests::store::tables::Tables;

#[tokio::test(flavor = "multi_thread")]
async fn users_move_to_a_database_and_back() -> anyhow::Result<()> {
    if is_on_spin() {
        // What Spin keeps in its file is not our host's to copy while it may run.
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let emulators = Emulators::start(emulators::Options::default()).await?;
    emulators.refuse_loops(false);
    let user = emulators.caller().mint();
    let key_value = || Options::for_emulators(&emulators).state_dir(folder.path());

    let app = App::start(key_value()).await?;
    let enrolled = app.send(Method::PUT, "/v1/me", Some(&user), None).await?;
    ensure!(enrolled.status == StatusCode::CREATED, "{enrolled:?}");
    app.stop().await?;

    let tables = Tables::create()?;
    let said = copy("postgres", &tables, folder.path(), &[])?;
    ensure!(said.contains("enrolments: 1,"), "{said}");

    let app = App::start(Options {
        tables: Some(tables.clone()),
        manifest: Some(postgres_manifest(folder.path())?),
        ..Options::for_emulators(&emulators)
    })
    .await?;
    draws(&app, &user).await?;
    // There its refresh token is replaced, which the key-value store has not seen.
    app.store().make_due()?;
    let key = &emulators.options().sweep_key;
    let swept = app.send(Method::POST, "/v1/sweep", Some(key), None).await?;
    ensure!(swept.json["refreshed"] == 1, "{swept:?}");
    app.stop().await?;

    let refused = copy("key-value", &tables, folder.path(), &[]);
    ensure!(refused.is_err(), "what differs is not overwritten unasked");
    copy("key-value", &tables, folder.path(), &["--replace"])?;
    let app = App::start(key_value()).await?;
    let record = app.store().record()?.1;
    ensure!(record["generation"] == 2, "{record}");
    draws(&app, &user).await?;
    app.stop().await?;
    Ok(())
}

async fn draws(app: &App, user: &str) -> anyhow::Result<()> {
    let path = "/v1/me/access-token";
    let drawn = app.send(Method::POST, path, Some(user), None).await?;
    ensure!(drawn.status == StatusCode::OK, "{drawn:?}");
    Ok(())
}

/// What `behalf ledger copy` says, if it succeeds.
fn copy(to: &str, tables: &Tables, state: &Path, more: &[&str]) -> anyhow::Result<String> {
    let settings: BTreeMap<_, _> = tables.settings().into_iter().collect();
    let database = format!(
        "host={} port={} dbname={} user={} sslmode=disable",
        settings["postgres_host"],
        settings["postgres_port"],
        settings["postgres_database"],
        settings["postgres_user"],
    );
    let output = Command::new(behalf()?)
        .args(["ledger", "copy", "--to", to, "--database", &database])
        .arg("--state-dir")
        .arg(state)
        .arg("-f")
        .arg(root().join("spin.toml"))
        .args(more)
        .env("PGPASSWORD", &settings["postgres_password"])
        .output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{said}");
    Ok(said)
}
