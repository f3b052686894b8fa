//! Every procedure of OPERATIONS.md, done on emulators by the commands that the page has for it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

mod drill;
mod page;

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use runtime_tests::app::{App, root};
use runtime_tests::debian;
use runtime_tests::emulators::{OTHER_TENANT, OTHER_USER, TENANT, USER, key_name};
use runtime_tests::postgres::Postgres;
use serde_json::json;

use drill::{Drill, ELSEWHERE, link, program};
use page::{commands, page, procedures};

type Result = anyhow::Result<()>;

#[test]
fn every_procedure_has_a_drill() -> Result {
    let page = page()?;
    let drills = concat!(include_str!("main.rs"), include_str!("drill.rs"));
    for heading in procedures(&page) {
        assert!(
            drills.contains(&format!("{heading:?}")),
            "nothing runs {heading}"
        );
    }
    for (begin, _) in ELSEWHERE {
        assert!(
            page.contains(&format!("$ {begin}")),
            "the page has no {begin}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_the_first_user() -> Result {
    let mut drill = Drill::prepared().await?;
    assert_eq!(drill.perform("6. Check").await?.len(), 1);
    drill.perform("7. Run").await?;
    let said = drill.perform("8. The first user").await?;
    let shown: serde_json::Value = serde_json::from_str(said.last().context("an answer")?)?;
    assert_eq!(shown["status"], "active");
    assert_eq!(shown["key_version"], drill.newest(TENANT)?);
    let said = drill.perform("9. Sweep").await?;
    assert!(
        said.last().unwrap().starts_with("1 user of 1 tenant"),
        "{said:?}"
    );
    assert_eq!(drill.draw().await?, (200, String::new()));
    drill.end().await
}

/// Rotates, sweeps until all is under the newest version, and retires what was before: the commands of a section in this order.
async fn rotate_and_retire(drill: &mut Drill, commands: &[String]) -> Result {
    let old = drill.newest(TENANT)?;
    let [rotate, sweep, status, retire] = commands else {
        anyhow::bail!("rotate, sweep, status, retire: {commands:?}");
    };
    drill.run(rotate).await?;
    let new = drill.newest(TENANT)?;
    assert_ne!(old, new);
    let moved = |said: &str| {
        let mut lines = said.lines().filter(|line| line.starts_with(TENANT));
        lines.next().is_some_and(|line| line.contains("100 %"))
    };
    drill
        .repeat_until(&[sweep.clone(), status.clone()], moved)
        .await?;
    assert_eq!(drill.store().record()?.1["key_version"], new);
    // Not before a day.
    drill.run(retire).await?;
    let is_enabled = |drill: &Drill, version: &str| {
        drill
            .emulators
            .is_secret_enabled(&key_name(TENANT), version)
    };
    assert_eq!(is_enabled(drill, &old), Some(true));
    drill.pass_two_days().await?;
    drill.run(retire).await?;
    assert_eq!(is_enabled(drill, &old), Some(false));
    assert_eq!(is_enabled(drill, &new), Some(true));
    assert_eq!(drill.draw().await?, (200, String::new()));
    Ok(())
}

/// Puts the record in the place of the user's, and expects that it opens no more.
async fn opens_no_more(drill: &Drill, old: &serde_json::Value) -> Result {
    let (name, now) = drill.store().record()?;
    drill.store().replace(&name, &serde_json::to_vec(old)?)?;
    assert_eq!(drill.draw().await?, (500, "key_disabled".to_owned()));
    drill.store().replace(&name, &serde_json::to_vec(&now)?)?;
    assert_eq!(drill.draw().await?, (200, String::new()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_encryption_key_is_rotated() -> Result {
    let mut drill = Drill::serving().await?;
    rotate_and_retire(&mut drill, &commands("The encryption key")?).await?;
    drill.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaked_encryption_key_opens_nothing_any_more() -> Result {
    let mut drill = Drill::serving().await?;
    let old = drill.store().record()?.1;
    let commands = commands("A leaked encryption key")?;
    let [first @ .., revoke] = &commands[..] else {
        anyhow::bail!("no commands");
    };
    rotate_and_retire(&mut drill, first).await?;
    opens_no_more(&drill, &old).await?;
    let _graph = drill.with_graph().await?;
    drill.run(revoke).await?;
    assert_eq!(
        drill.draw().await?,
        (409, "reenrolment_required".to_owned())
    );
    drill.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaked_database_opens_nothing_any_more() -> Result {
    let mut drill = Drill::serving().await?;
    let old = drill.store().record()?.1;
    rotate_and_retire(&mut drill, &commands("A leaked database or backup")?).await?;
    opens_no_more(&drill, &old).await?;
    drill.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_secret_is_rotated_and_no_request_fails() -> Result {
    let drill = Drill::serving().await?;
    let old = drill.secret("client_secret")?;
    let commands = commands("The client secret")?;
    let [before @ .., delete] = &commands[..] else {
        anyhow::bail!("no commands");
    };
    drill
        .under_load(async || {
            for command in before {
                drill.type_in(command).await?;
            }
            let new = drill.secret("client_secret")?;
            assert!(drill.is_good(&old).await? && drill.is_good(&new).await?);
            drill.settings_are_read_again().await;
            drill.type_in(delete).await?;
            assert!(!drill.is_good(&old).await? && drill.is_good(&new).await?);
            drill.settings_are_read_again().await;
            Ok(())
        })
        .await?;
    drill.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaked_client_secret_is_good_for_nothing() -> Result {
    let mut drill = Drill::serving().await?;
    let old = drill.secret("client_secret")?;
    let commands = commands("A leaked client secret")?;
    let at = commands.iter().position(|it| it.contains("key rotate"));
    let (secret, keys) = commands.split_at(at.context("keys are rotated")?);
    for command in secret {
        drill.run(command).await?;
    }
    assert!(!drill.is_good(&old).await?);
    drill.settings_are_read_again().await;
    assert_eq!(drill.draw().await?, (200, String::new()));
    rotate_and_retire(&mut drill, keys).await?;
    drill.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_rotated_and_no_request_fails() -> Result {
    let drill = Drill::prepared().await?;
    let settings = drill.emulators.credential("certificate");
    let pem = |name: &str| {
        settings
            .iter()
            .find(|it| it.0 == name)
            .map(|it| it.1.clone())
    };
    let both = [
        pem("private_key_pem").unwrap(),
        pem("certificate_pem").unwrap(),
    ]
    .concat();
    let file = drill.path("home/behalf/secrets/certificate.pem");
    std::fs::write(&file, &both)?;
    let file = file.display();
    drill.set("SPIN_VARIABLE_CREDENTIAL", "certificate").await?;
    let files = format!(
        "export FILES=\"$FILES --variable-file certificate_pem={file} --variable-file private_key_pem={file}\""
    );
    drill.type_in(&files).await?;
    let drill = drill.served().await?;
    let commands = commands("The certificate")?;
    let [before @ .., delete] = &commands[..] else {
        anyhow::bail!("no commands");
    };
    let proofs = || -> BTreeSet<_> {
        let journal = drill.emulators.journal().into_iter();
        journal
            .filter(|it| it.client_id.as_ref() == Some(&drill.emulators.options().client_id))
            .filter_map(|it| it.proof)
            .collect()
    };
    drill
        .under_load(async || {
            for command in before {
                drill.type_in(command).await?;
            }
            assert_ne!(drill.secret("certificate.pem")?, both.trim());
            drill.settings_are_read_again().await;
            drill.type_in(delete).await?;
            drill.settings_are_read_again().await;
            Ok(())
        })
        .await?;
    assert_eq!(proofs(), BTreeSet::from(["PS256".to_owned()]));
    drill.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_key_is_rotated() -> Result {
    let drill = Drill::serving().await?;
    let sweep = async |key: &str| -> anyhow::Result<StatusCode> {
        let answer = drill
            .app()?
            .send(Method::POST, "/v1/sweep", Some(key), None);
        Ok(answer.await?.status)
    };
    let old = drill.secret("sweep_key")?;
    let commands = commands("The sweep key")?;
    let (first, then) = commands.split_at(2);
    for command in first {
        drill.type_in(command).await?;
    }
    let new = drill.secret("sweep_key")?;
    assert_ne!(old, new);
    drill.settings_are_read_again().await;
    assert_eq!([sweep(&old).await?, sweep(&new).await?], [200, 200]);
    for command in then {
        drill.type_in(command).await?;
    }
    drill.settings_are_read_again().await;
    assert_eq!([sweep(&old).await?, sweep(&new).await?], [401, 200]);
    drill.end().await
}

/// What is the environment's, and read once.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_secret_is_rotated_on_spin() -> Result {
    let mut drill = Drill::prepared().await?;
    for name in ["client_secret", "sweep_key", "pseudonym_key"] {
        let value = drill.secret(name)?;
        let name = format!("SPIN_VARIABLE_{}", name.to_uppercase());
        drill.set(&name, &value).await?;
    }
    let old = drill.secret("client_secret")?;
    let commands = commands("On Spin")?;
    let up = commands.iter().find(|it| it.starts_with("spin up"));
    drill.run(up.context("it is started")?).await?;
    drill.perform("8. The first user").await?;
    for command in &commands {
        if command.starts_with("spin up") {
            // Until then the one that runs goes on with the old one.
            assert_eq!(drill.draw().await?, (200, String::new()));
            drill.stop().await?;
        }
        drill.run(command).await?;
    }
    assert!(!drill.is_good(&old).await?);
    assert_eq!(drill.draw().await?, (200, String::new()));
    drill.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_brings_removed_users_back_until_they_are_removed_again() -> Result {
    let mut drill = Drill::serving().await?;
    let enrolled = drill.call(OTHER_USER, Method::PUT, "/v1/me").await?;
    assert_eq!(enrolled.status, 201, "{enrolled:?}");
    drill.perform("Make one").await?;
    let removed = drill.call(USER, Method::DELETE, "/v1/me").await?;
    assert_eq!(removed.status, 204, "{removed:?}");
    drill
        .app()?
        .wait_for_output_after(0, "user_removed")
        .await?;
    let log = drill.path("log");
    std::fs::write(&log, drill.output().join("\n"))?;
    drill.set("LOG", &log.display().to_string()).await?;
    let commands = commands("Restore one")?;
    let at = commands.iter().position(|it| it.contains("behalf restore"));
    let (restore, rest) = commands.split_at(at.context("a restore")? + 1);
    for command in restore {
        drill.run(command).await?;
    }
    let is_there = async |user: &str| -> anyhow::Result<bool> {
        let answer = drill.call(user, Method::GET, "/v1/me").await?;
        ensure!([200, 404].contains(&answer.status.as_u16()), "{answer:?}");
        Ok(answer.status == StatusCode::OK)
    };
    assert!(
        is_there(USER).await?,
        "a restore brings back who was removed"
    );
    // Running hosts write nothing for half a minute.
    while drill.call(OTHER_USER, Method::PUT, "/v1/me").await?.status != 200 {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for command in rest {
        drill.run(command).await?;
    }
    let is_there = async |user: &str| -> anyhow::Result<StatusCode> {
        Ok(drill.call(user, Method::GET, "/v1/me").await?.status)
    };
    assert_eq!(
        [is_there(USER).await?, is_there(OTHER_USER).await?],
        [404, 200]
    );
    drill.end().await
}

/// As the page has it for whoever wants that nobody comes back.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_backed_up_under_a_retired_version_does_not_come_back() -> Result {
    let mut drill = Drill::serving().await?;
    drill.perform("Make one").await?;
    rotate_and_retire(&mut drill, &commands("The encryption key")?).await?;
    drill
        .run("behalf restore --state-dir \"$STATE\" \"$BACKUPS/today.db\"")
        .await?;
    assert_eq!(drill.draw().await?, (500, "key_disabled".to_owned()));
    drill.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_removed() -> Result {
    let drill = Drill::prepared().await?;
    let both = format!("{TENANT},{OTHER_TENANT}");
    drill.set("SPIN_VARIABLE_TENANTS", &both).await?;
    let mut drill = drill.served().await?;
    let user = drill.emulators.caller().tenant(OTHER_TENANT).mint();
    let enrolled = drill
        .app()?
        .send(Method::PUT, "/v1/me", Some(&user), None)
        .await?;
    assert_eq!(enrolled.status, 201, "{enrolled:?}");
    drill.set("GONE", OTHER_TENANT).await?;
    drill.set("SPIN_VARIABLE_TENANTS", TENANT).await?;
    drill.run("systemctl restart behalf").await?;
    let commands = commands("Remove a tenant")?;
    let [rehearse, remove] = &commands[..] else {
        anyhow::bail!("two commands: {commands:?}");
    };
    drill.run(rehearse).await?;
    assert_eq!(drill.store().records()?.len(), 2);
    let said = drill.run(remove).await?;
    assert!(said.contains("purged"), "{said}");
    let left: Vec<_> = drill
        .store()
        .records()?
        .into_values()
        .map(|it| it["tenant"].clone())
        .collect();
    assert_eq!(left, [json!(TENANT)]);
    assert!(
        drill
            .emulators
            .newest_version(&key_name(OTHER_TENANT))
            .is_none()
    );
    assert_eq!(drill.draw().await?, (200, String::new()));
    drill.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_removed() -> Result {
    let mut drill = Drill::serving().await?;
    let _graph = drill.with_graph().await?;
    drill.perform("Remove a user").await?;
    assert_eq!(drill.draw().await?, (404, "not_enrolled".to_owned()));
    drill.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_and_a_rollback_keep_everybody() -> Result {
    let mut drill = Drill::prepared().await?;
    for release in ["old", "new"] {
        let folder = drill.path(release);
        std::fs::create_dir(&folder)?;
        for file in [
            "spin.toml",
            "spin-postgres.toml",
            "behalf_vault.wasm",
            "behalf_http.wasm",
            "behalf_http_postgres.wasm",
            "behalf_cron.wasm",
        ] {
            symlink(drill.path(file), folder.join(file))?;
        }
        // It says which it is, since both are the same.
        let text = format!("#!/bin/sh\necho \"release {release}\" >&2\nexec behalf \"$@\"\n");
        program(&drill, "release", &text)?;
        std::fs::rename(drill.path("bin/release"), folder.join("behalf"))?;
    }
    symlink(drill.path("old"), drill.path("current"))?;
    for (name, path) in [("RELEASE", "current"), ("NEW", "new")] {
        drill
            .set(name, &drill.path(path).display().to_string())
            .await?;
    }
    drill.run(r#""$RELEASE/behalf" up -f "$RELEASE/spin.toml" $FILES --state-dir "$STATE" --ready-path /readyz"#).await?;
    drill.perform("8. The first user").await?;
    let of = |drill: &Drill| {
        drill
            .output()
            .iter()
            .find(|it| it.starts_with("release "))
            .cloned()
    };
    assert_eq!(of(&drill).as_deref(), Some("release old"));
    let upgrade = commands("Upgrade")?;
    let (schema, upgrade): (Vec<_>, Vec<_>) =
        upgrade.into_iter().partition(|it| it.contains(" schema "));
    assert_eq!(schema.len(), 1);
    for command in upgrade {
        drill.run(&command).await?;
    }
    assert_eq!(of(&drill).as_deref(), Some("release new"));
    assert_eq!(drill.draw().await?, (200, String::new()));
    drill.perform("Roll back").await?;
    assert_eq!(of(&drill).as_deref(), Some("release old"));
    assert_eq!(drill.draw().await?, (200, String::new()));
    drill.end().await
}

/// On emulators alone: the page from its step 6 on, in a terminal where the last line that `scripts/up` prints was pasted.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_can_be_walked_beside_scripts_up() -> Result {
    let folder = tempfile::tempdir()?;
    let mut up = tokio::process::Command::new(env!("CARGO_BIN_EXE_up"));
    up.args(["--emulators", "--port", &drill::free_ports()?.to_string()]);
    let app = App::run(up, folder.path()).await?;
    app.wait_for_output_after(0, "/operations.env").await?;
    let printed = app.output();
    let last = printed.iter().find(|it| it.ends_with("/operations.env'"));
    let last = last.context("a line to paste")?.trim().to_owned();
    let file = last.trim_start_matches(". '").trim_end_matches('\'');
    let mode = std::fs::metadata(file)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "there are secrets in it");
    let mut script = vec!["set -euo pipefail".to_owned(), last];
    let walk = [
        "6. Check",
        "8. The first user",
        "9. Sweep",
        "The encryption key",
        "Make one",
        "The client secret",
        "Remove a tenant",
        "Remove a user",
    ];
    for heading in walk {
        script.extend(commands(heading)?);
    }
    let mut bash = tokio::process::Command::new("bash");
    bash.arg("-c").arg(script.join("\n")).current_dir(root());
    let output = bash.output().await?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        said.contains("\"status\":\"active\"")
            && said.contains("purged")
            && said.contains("record    removed"),
        "{said}"
    );
    app.stop().await?;
    Ok(())
}

/// A drill with a database of its own, whose tables are made as the page says.
async fn with_a_database() -> anyhow::Result<(Drill, Postgres)> {
    let mut drill = Drill::prepared().await?;
    let postgres = Postgres::start()?;
    postgres.create_database("behalf")?;
    link(&drill, "psql", &debian::program("psql", "postgresql")?)?;
    let (host, port) = (postgres.host(), postgres.port().to_string());
    let owner = postgres.superuser("behalf");
    let (address, password) = owner.split_once(" password='").context("a password")?;
    let (password, rest) = password.split_once('\'').context("its end")?;
    for (name, value) in [
        ("OWNER_DATABASE", format!("{address}{rest} sslmode=disable")),
        ("PGPASSWORD", password.to_owned()),
        ("SPIN_VARIABLE_POSTGRES_HOST", host.to_owned()),
        ("SPIN_VARIABLE_POSTGRES_PORT", port),
        ("NEW", drill.path("bin").display().to_string()),
    ] {
        drill.set(name, &value).await?;
    }
    drill.perform("Make the tables").await?;
    Ok((drill, postgres))
}

#[tokio::test(flavor = "multi_thread")]
async fn several_replicas_serve_from_one_database() -> Result {
    let (mut drill, _postgres) = with_a_database().await?;
    drill.perform("Run each").await?;
    drill.perform("8. The first user").await?;
    // The tables are brought up while it runs.
    let schema = commands("Upgrade")?
        .into_iter()
        .find(|it| it.contains(" schema "));
    drill.run(&schema.context("a schema")?).await?;
    drill.elsewhere()?;
    drill.perform("Run each").await?;
    // Who enrolled at one is everybody's, and who is removed at one is nobody's any more.
    assert_eq!(drill.draw().await?, (200, String::new()));
    let first = drill.apps.remove(0);
    let user = drill.emulators.caller().mint();
    let removed = first
        .send(Method::DELETE, "/v1/me", Some(&user), None)
        .await?;
    assert_eq!(removed.status, 204, "{removed:?}");
    assert_eq!(drill.draw().await?, (404, "not_enrolled".to_owned()));
    // One that is killed takes nobody along.
    let enrolled = first.send(Method::PUT, "/v1/me", Some(&user), None).await?;
    assert_eq!(enrolled.status, 201, "{enrolled:?}");
    first.kill();
    assert_eq!(drill.draw().await?, (200, String::new()));
    drill.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_databases_password_is_changed_and_no_request_fails() -> Result {
    let (mut drill, postgres) = with_a_database().await?;
    drill.perform("Run each").await?;
    drill.perform("8. The first user").await?;
    let commands = commands("The database's password")?;
    let at = commands.iter().position(|it| it.contains("NOLOGIN"));
    let (change, lock) = commands.split_at(at.context("the old role is locked out")?);
    drill
        .under_load(async || {
            for command in change {
                drill.type_in(command).await?;
            }
            drill.settings_are_read_again().await;
            Ok(())
        })
        .await?;
    for command in lock {
        drill.run(command).await?;
    }
    assert_eq!(drill.draw().await?, (200, String::new()));
    let users = "SELECT DISTINCT usename FROM pg_stat_activity WHERE usename LIKE 'behalf_app%'";
    assert_eq!(postgres.sql("behalf", users)?, "behalf_app_2");
    drill.end().await
}
