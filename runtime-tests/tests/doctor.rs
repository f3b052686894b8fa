//! `behalf doctor`: what it sees of an app's surroundings, and that it leaves them as they were.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::process::Command;

use anyhow::ensure;
use runtime_tests::app::{self, App, root};
use runtime_tests::emulators::{
    Answer, Emulators, Fault, OTHER_TENANT, Options, TENANT, Target, key_name,
};
use runtime_tests::operator::{Operator, Said};
use runtime_tests::scene::Scene;
use runtime_tests::store::tables::Tables;
use serde_json::Value;

type Result = anyhow::Result<()>;

/// Long enough for a sweep key and a pseudonym key.
const LONG: &str = "a-key-that-nobody-will-guess-0123456789";

/// The app's settings, and one more that it warns about otherwise.
fn settings(emulators: &Emulators) -> Vec<(String, String)> {
    let own = [("pseudonym_key", LONG)].map(|(name, value)| (name.to_owned(), value.to_owned()));
    emulators.settings().into_iter().chain(own).collect()
}

async fn examine(
    emulators: &Emulators,
    settings: Vec<(String, String)>,
    words: &[&str],
) -> anyhow::Result<Said> {
    let manifest = root().join("spin.toml");
    let mut all = vec!["doctor"];
    if !words.contains(&"-f") {
        all.extend(["-f", manifest.to_str().unwrap()]);
    }
    all.extend(words);
    Operator::with(settings)?.run(emulators, &all).await
}

/// What it says of a step, with the verdict.
fn found(said: &Said, step: &str) -> Vec<(String, String)> {
    let told = said.json().unwrap();
    let findings = told["findings"].as_array().unwrap().iter();
    let text = |it: &Value, name: &str| it[name].as_str().unwrap().to_owned();
    findings
        .filter(|it| it["step"].as_str().unwrap().starts_with(step))
        .map(|it| (text(it, "verdict"), text(it, "says")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_app_is_told_so_and_left_as_it_was() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    let folder = tempfile::tempdir()?;
    let state = folder.path().to_str().unwrap().to_owned();
    // Before the app has ever run.
    let said = examine(
        &emulators,
        settings(&emulators),
        &["--state-dir", &state, "--json"],
    )
    .await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        found(&said, "store")[0].1.contains("is not there yet"),
        "{said:?}"
    );
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);

    let options = app::Options {
        settings: settings(&emulators),
        ..app::Options::default()
    };
    let app = App::start(options.state_dir(folder.path())).await?;
    let scene = Scene::of(emulators, app);
    scene.enrol().await?;
    scene.sweep().await?;
    let (emulators, rows) = (&scene.emulators, scene.store().all_rows()?);
    emulators.clear_journal();
    let words = ["--state-dir", &state, "--json"];
    let said = examine(emulators, settings(emulators), &words).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    for (step, says) in [
        ("configuration", "2 tenants, credential client-secret"),
        ("signing keys", "2 keys from "),
        ("key vault token", &emulators.options().client_id),
        ("clock", "0 s "),
        ("store", "made with these settings"),
        ("cron", "next at "),
        ("grants", "User"),
    ] {
        let found = found(&said, step);
        let (verdict, told) = &found[0];
        assert_eq!(verdict, "ok", "{step}: {said:?}");
        if step != "grants" && step != "clock" {
            assert!(told.contains(says), "{step}: {told}");
        }
    }
    assert!(
        found(&said, "cron")[1].1.contains("the last sweep ended "),
        "{said:?}"
    );
    for tenant in [TENANT, OTHER_TENANT] {
        let found = found(&said, &format!("key of {tenant}"));
        let (verdict, says) = &found[0];
        let newest = emulators.newest_version(&key_name(tenant)).unwrap();
        let version = newest["id"].as_str().unwrap().rsplit('/').next().unwrap();
        assert_eq!(verdict, "ok");
        assert!(
            says.contains(&key_name(tenant)) && says.contains(version),
            "{says}"
        );
    }
    // Nothing was asked for but what the app asks for, and nothing was written.
    for entry in emulators.journal() {
        let reads = entry.method == "GET" || entry.target == Target::EntraToken;
        ensure!(reads, "{entry:?}");
        ensure!(entry.target != Target::Downstream, "{entry:?}");
    }
    assert!(scene.store().all_rows()? == rows);

    // For people.
    let said = examine(emulators, settings(emulators), &words[..2]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("\nok  signing keys "), "{said:?}");
    scene.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_looked_into_too() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    let tables = Tables::create()?;
    let mut print = Command::new(root().join("scripts/manifest"));
    let printed = print.args(["--ledger", "postgres"]).output()?;
    let folder = tempfile::tempdir()?;
    let manifest = folder.path().join("spin.toml");
    std::fs::write(&manifest, printed.stdout)?;
    let mut settings = settings(&emulators);
    settings.extend(tables.settings());
    let words = ["-f", manifest.to_str().unwrap(), "--json"];
    let said = examine(&emulators, settings.clone(), &words).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(found(&said, "store")[0].1, "PostgreSQL, empty");

    let options = app::Options {
        settings: settings.clone(),
        tables: Some(tables),
        manifest: Some(manifest.clone()),
        ..app::Options::default()
    };
    let scene = Scene::of(emulators, App::start(options).await?);
    scene.enrol().await?;
    scene.sweep().await?;
    let said = examine(&scene.emulators, settings.clone(), &words).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(
        found(&said, "store")[0].1,
        "PostgreSQL, made with these settings"
    );
    assert!(
        found(&said, "cron")[1].1.contains("the last sweep ended "),
        "{said:?}"
    );

    for (name, value, says) in [
        (
            "postgres_password",
            "a wrong one",
            "check the settings `postgres_…`",
        ),
        ("postgres_port", "1", "check the settings `postgres_…`"),
        ("postgres_user", "", "postgres_user"),
        ("postgres_database", "postgres", "behalf schema apply"),
        ("secret_id_template", "other-{tid}", "`secret_id_template`"),
    ] {
        let mut settings = settings.clone();
        settings.push((name.to_owned(), value.to_owned()));
        let said = examine(&scene.emulators, settings, &words).await?;
        assert_eq!(said.code, Some(1), "{name}: {said:?}");
        let (verdict, told) = &found(&said, "store")[0];
        assert!(verdict == "wrong" && told.contains(says), "{name}: {told}");
    }
    scene.end().await.map(drop)
}

/// A database that can be read, and not be written to, is no good to the app.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_has_to_take_what_the_app_writes() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    let tables = Tables::create()?;
    let folder = tempfile::tempdir()?;
    let manifest = folder.path().join("spin.toml");
    let mut print = Command::new(root().join("scripts/manifest"));
    std::fs::write(
        &manifest,
        print.args(["--ledger", "postgres"]).output()?.stdout,
    )?;
    let mut settings = settings(&emulators);
    settings.extend(tables.settings());
    let words = ["-f", manifest.to_str().unwrap(), "--json"];
    let read_only = |word: &str| {
        format!(
            "SET default_transaction_read_only = off; DO $$ BEGIN EXECUTE format(
               'ALTER DATABASE %I SET default_transaction_read_only = {word}', current_database()); END $$"
        )
    };
    for (change, back, says) in [
        (
            read_only("on"),
            read_only("off"),
            "default_transaction_read_only has to be off",
        ),
        (
            "REVOKE INSERT, UPDATE ON behalf.enrolment FROM behalf_app".to_owned(),
            "GRANT INSERT, UPDATE ON behalf.enrolment TO behalf_app".to_owned(),
            "INSERT on behalf.enrolment, UPDATE on behalf.enrolment (42501); run `behalf schema apply --role`",
        ),
        (
            "REVOKE USAGE ON SCHEMA behalf FROM behalf_app".to_owned(),
            "GRANT USAGE ON SCHEMA behalf TO behalf_app".to_owned(),
            "`behalf schema apply --role`",
        ),
        (
            "UPDATE behalf.schema_version SET version = version + 1".to_owned(),
            "UPDATE behalf.schema_version SET version = version - 1".to_owned(),
            "upgrade behalf",
        ),
    ] {
        tables.run(&change)?;
        let said = examine(&emulators, settings.clone(), &words).await?;
        assert_eq!(said.code, Some(1), "{says}: {said:?}");
        let (verdict, told) = &found(&said, "store")[0];
        assert!(verdict == "wrong" && told.contains(says), "{says}: {told}");
        assert!(
            !told.contains("as the owner") && !told.contains("--database"),
            "{told}"
        );
        tables.run(&back)?;
    }
    let said = examine(&emulators, settings, &words).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    Ok(())
}

/// The credential of On-Behalf-Of is asked for nothing else where the platform's identity reads the keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_reads_no_keys_is_tried_all_the_same() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    let identity = |more: &[(&str, &str)]| {
        let mut settings = settings(&emulators);
        let named = |(name, value): (&str, String)| (name.to_owned(), value);
        settings.extend(emulators.app_service().into_iter().map(named));
        let more = [&[("key_vault_credential", "managed-identity")], more].concat();
        settings.extend(
            more.iter()
                .map(|(name, value)| named((name, (*value).to_owned()))),
        );
        settings
    };
    let words = ["--state-dir", "", "--json"];
    let other_client = "eeeeeeee-eeee-4eee-8eee-eeeeeeeeeeee";
    for (more, verdict, says) in [
        (&[][..], "ok", "client 3333"),
        (&[("client_secret", "wrong")], "wrong", "`client_secret`"),
        (
            &[
                ("credential", "federated-token"),
                ("federated_token", "e30.e30.e30"),
            ],
            "wrong",
            "`federated_token`",
        ),
        (
            &[("client_id", other_client)],
            "wrong",
            "has not this app (`client_id`)",
        ),
        (&[("tenants", "*")], "skipped", "--tenant"),
    ] {
        let said = examine(&emulators, identity(more), &words).await?;
        let found = found(&said, "credential");
        let (found, told) = &found[0];
        assert!(
            found == verdict && told.contains(says),
            "{more:?}: {said:?}"
        );
        assert_eq!(
            said.code == Some(1),
            verdict == "wrong",
            "{more:?}: {said:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_not_asked_for_are_told() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    let mut settings = settings(&emulators);
    let tenants: Vec<_> = (0..27)
        .map(|at| format!("dddddddd-dddd-4ddd-8ddd-0000000000{at:02}"))
        .collect();
    settings.push(("tenants".to_owned(), tenants.join(",")));
    let said = examine(&emulators, settings, &["--state-dir", "", "--json"]).await?;
    assert_eq!(found(&said, "key of").len(), 20, "{said:?}");
    let (verdict, told) = &found(&said, "keys")[0];
    assert!(verdict == "skipped" && told.starts_with("7 more"), "{told}");
    Ok(())
}

/// What is done to the surroundings, a setting, and what is said of which step.
type Trouble = (
    fn(&Emulators),
    (&'static str, &'static str),
    &'static str,
    &'static str,
);

#[tokio::test(flavor = "multi_thread")]
async fn each_trouble_is_told_at_its_step_with_what_to_do() -> Result {
    let nothing: fn(&Emulators) = |_| {};
    let none = ("", "");
    let troubles: &[Trouble] = &[
        (nothing, ("client_id", "x"), "configuration", "`client_id`"),
        (
            nothing,
            ("client_secret", ""),
            "configuration",
            "`client_secret`",
        ),
        (
            nothing,
            ("client_secret", "wrong"),
            "key vault token",
            "client_secret",
        ),
        (
            nothing,
            ("authority", "http://127.0.0.1:1"),
            "signing keys",
            "`authority`",
        ),
        (
            nothing,
            ("key_vault_url", "http://127.0.0.1:1"),
            "key vault token",
            "`key_vault_url`",
        ),
        (
            nothing,
            ("key_vault_scope", "https://other.example/.default"),
            "key vault token",
            "key_vault_scope",
        ),
        (nothing, ("sweep_key", ""), "cron", "set `sweep_key`"),
        (
            |it| it.delete_secret(&key_name(OTHER_TENANT)).unwrap(),
            none,
            "key of 2222",
            "create it with 32 random bytes",
        ),
        (
            |it| {
                it.set_secret_enabled(&key_name(TENANT), None, false)
                    .unwrap();
            },
            none,
            "key of 1111",
            "enable it",
        ),
        (
            |it| drop(it.put_secret(&key_name(TENANT), "short").unwrap()),
            none,
            "key of 1111",
            "32 random bytes",
        ),
        (
            |it| it.permit(&it.options().client_id.clone(), &["set"]),
            none,
            "key of 1111",
            "Key Vault Secrets User",
        ),
        (
            |it| {
                it.fault(Fault {
                    date: Some("Sun, 06 Nov 1994 08:49:37 GMT".to_owned()),
                    count: 1,
                    ..Fault::new(Target::Jwks, Answer::Pass)
                });
            },
            none,
            "clock",
            "set it",
        ),
    ];
    for (act, (name, value), step, says) in troubles {
        let emulators = Emulators::start(Options::default()).await?;
        act(&emulators);
        let mut settings = settings(&emulators);
        settings.push(((*name).to_owned(), (*value).to_owned()));
        settings.retain(|(name, _)| !name.is_empty());
        let said = examine(&emulators, settings, &["--state-dir", "", "--json"]).await?;
        assert_eq!(said.code, Some(1), "{step}, {says}: {said:?}");
        let found = found(&said, step);
        let told = found
            .iter()
            .any(|(verdict, told)| verdict == "wrong" && told.contains(says));
        assert!(told, "{step}, {says}: {said:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_wrong_yet_is_a_warning() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    let soon = jiff::Timestamp::now().as_second() + 86_400;
    emulators.set_secret_validity(&key_name(TENANT), None, Some(soon))?;
    let mut settings = settings(&emulators);
    for (name, value) in [
        ("grants", "[]"),
        ("apis", "{}"),
        ("pseudonym_key", ""),
        ("sweep_kye", LONG),
    ] {
        settings.push((name.to_owned(), value.to_owned()));
    }
    let words = ["--state-dir", "", "--json", "--tenant", TENANT];
    let said = examine(&emulators, settings.clone(), &words).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    for (step, says) in [
        ("configuration", "SPIN_VARIABLE_SWEEP_KEY"),
        ("configuration", "`pseudonym_key` is empty"),
        ("key of", "behalf key rotate"),
        ("store", "in memory"),
        ("cron", "no sweep has ended yet"),
        ("grants", "no rule"),
    ] {
        let found = found(&said, step);
        let told = found
            .iter()
            .any(|(verdict, told)| verdict == "warning" && told.contains(says));
        assert!(told, "{step}, {says}: {said:?}");
    }
    // Any organisation has no list of tenants.
    settings.push(("tenants".to_owned(), "*".to_owned()));
    let said = examine(&emulators, settings, &words[..3]).await?;
    assert!(found(&said, "keys")[0].1.contains("--tenant"), "{said:?}");

    for (words, says) in [
        (&["-f", "/nothing/spin.toml"][..], "spin.toml"),
        (&["--variable", "nothing=1"], "[variables]"),
        (&["--tenant", "contoso"], "GUID"),
    ] {
        let said = examine(&emulators, emulators.settings(), words).await?;
        assert!(said.code == Some(2) && said.log.contains(says), "{said:?}");
    }
    Ok(())
}
