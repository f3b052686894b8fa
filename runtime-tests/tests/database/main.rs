//! The embedded host with a database that is not as it should be. Every trouble is one line of the log, which names the setting
//! and says what to do; callers are told to try again; and all is well once the database is, without a restart.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

mod app;
mod pgbouncer;

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use postgres::{Client, NoTls};
use procfs::process::{Process, all_processes};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::Method;
use runtime_tests::postgres::{Postgres, Stop};
use tokio::task::block_in_place;

use crate::app::{DATABASE, PASSWORD, ROLE, Result, Scene, apply, prepared};
use crate::pgbouncer::PgBouncer;

/// The whole way of a database that nobody has prepared.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_ready_is_told_step_by_step() -> Result {
    const ANOTHER: &str = "another canary of a password";
    let postgres = Postgres::start()?;
    postgres.create_role(ROLE, ANOTHER)?;
    let scene = Scene::start(&postgres, &[]).await?;

    scene
        .fails(&["(28P01)", "`postgres_password`", "`postgres_user`"])
        .await?;
    // Nor is it tried again for what another try cannot change: once for what is stored, and once for the settings.
    let tries = |postgres: &Postgres| {
        let log = postgres.log();
        log.matches("password authentication failed").count()
    };
    ensure!((1..=2).contains(&tries(&postgres)), "{}", postgres.log());
    postgres.sql(
        "postgres",
        &format!("ALTER ROLE {ROLE} PASSWORD '{PASSWORD}'"),
    )?;

    scene.fails(&["(3D000)", "`postgres_database`"]).await?;
    postgres.create_database(DATABASE)?;
    postgres.sql(
        "postgres",
        &format!("REVOKE CONNECT ON DATABASE {DATABASE} FROM PUBLIC"),
    )?;
    scene
        .fails(&["(42501)", "GRANT CONNECT", "`postgres_user`"])
        .await?;
    postgres.sql(
        "postgres",
        &format!("GRANT CONNECT ON DATABASE {DATABASE} TO {ROLE}"),
    )?;
    scene.fails(&["(42P01)", "`behalf schema apply`"]).await?;
    apply(&postgres, &[])?;
    scene
        .fails(&["(42501)", "`behalf schema apply --role`"])
        .await?;
    apply(&postgres, &["--role", ROLE])?;
    scene.is_well().await?;
    scene.end(&[ANOTHER]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_database_cannot_do_for_a_while_is_told_and_loses_nothing() -> Result {
    let postgres = prepared(&["max_connections=16"])?;
    let scene = Scene::start(&postgres, &[]).await?;
    scene.is_well().await?;

    // What takes longer than the role may, which is five seconds.
    postgres.sql(
        DATABASE,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON behalf.enrolment FOR EACH ROW EXECUTE FUNCTION slow()",
    )?;
    scene
        .fails(&[
            "(57014)",
            "statement_timeout",
            "pg_stat_activity",
            "`postgres_user`",
        ])
        .await?;
    scene.draw(0).await?;
    postgres.sql(DATABASE, "DROP TRIGGER slow ON behalf.enrolment")?;
    scene.is_well().await?;

    // All connections are others'.
    let end =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'");
    postgres.create_role("crowd", "crowd")?;
    postgres.sql(DATABASE, &end)?;
    let crowd = block_in_place(|| crowd(&postgres))?;
    scene
        .fails(&["(53300)", "max_connections", "--postgres-connections"])
        .await?;
    block_in_place(|| drop(crowd));
    scene.is_well().await?;

    // Who has connected meanwhile goes on like that, until he connects anew.
    postgres.sql(
        DATABASE,
        &format!("ALTER DATABASE {DATABASE} SET default_transaction_read_only = on; {end}"),
    )?;
    scene
        .fails(&[
            "(25006)",
            "`postgres_host`",
            "default_transaction_read_only",
        ])
        .await?;
    scene.draw(0).await?;
    postgres.sql(
        "postgres",
        &format!("ALTER DATABASE {DATABASE} RESET default_transaction_read_only"),
    )?;
    scene.is_well().await?;
    scene.end(&[]).await
}

/// What has to be counted for the status alone holds up nobody's refresh, be it never done.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_counted_is_told_and_refreshed_all_the_same() -> Result {
    let postgres = prepared(&[])?;
    let scene = Scene::start(&postgres, &[]).await?;
    scene.is_well().await?;
    for what in ["PERFORM pg_sleep(60)", "RAISE EXCEPTION 'no'"] {
        postgres.sql(
            DATABASE,
            &format!(
                "CREATE OR REPLACE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what}; RETURN NEW; END $$;
                 CREATE OR REPLACE TRIGGER never BEFORE UPDATE ON behalf.counts FOR EACH ROW EXECUTE FUNCTION never();
                 UPDATE behalf.app SET sweep_state = NULL;
                 UPDATE behalf.enrolment SET due_at = 1, record = convert_to(
                   jsonb_set(convert_from(record, 'UTF8')::jsonb, '{{due_at}}', '1')::text, 'UTF8')"
            ),
        )?;
        let before = scene.output().len();
        let report = scene.sweep().await?;
        ensure!(report["refreshed"] == 1, "{report}");
        scene.says(before, "bucket_not_counted").await?;
    }
    scene.end(&[]).await
}

/// Tables that this version cannot work with are told by the probe, before anybody comes; and by it alone it is seen when they are
/// right again. Of a database that is away it says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_probe_tells_of_tables_that_are_not_right() -> Result {
    let mut postgres = prepared(&[])?;
    postgres.sql(DATABASE, "UPDATE behalf.schema_version SET version = 2")?;
    let scene = Scene::start(&postgres, &[]).await?;
    let before = scene.output().len();
    let answer = scene.probe("/readyz").await?;
    ensure!(answer.status == 503, "{answer:?}");
    scene.told(before, &["version 2", "upgrade behalf"]).await?;
    ensure!(scene.probe("/healthz").await?.status == 200);
    postgres.sql(DATABASE, "UPDATE behalf.schema_version SET version = 1")?;
    ensure!(scene.probe("/readyz").await?.status == 200);
    scene.is_well().await?;
    let scene = scene.again(&[]).await?;
    postgres.stop(Stop::Fast)?;
    ensure!(scene.probe("/readyz").await?.status == 200);
    scene.end(&[]).await
}

/// A server whose files cannot grow says what one says whose disk is full.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_loses_nothing() -> Result {
    let postgres = prepared(&[])?;
    let scene = Scene::start(&postgres, &[]).await?;
    scene.is_well().await?;
    // Its log is written in files of 16 MiB: where enrolments are has to be a greater one, so that it alone cannot grow.
    postgres.sql(
        DATABASE,
        "INSERT INTO behalf.enrolment (bucket, app, tenant, usr, nonce, format, enrolled_at, record, generation, write,
           key_version, state, state_number, due_at, mark)
         SELECT bucket, app, tenant, 'filler' || n, nonce, format, enrolled_at, record, generation, write,
           key_version, state, state_number, due_at, mark
         FROM behalf.enrolment, generate_series(1, 20000) n;
         CHECKPOINT",
    )?;
    let greatest = postgres.sql(
        DATABASE,
        "SELECT greatest(pg_relation_size(oid), pg_relation_size(reltoastrelid)) FROM pg_class WHERE oid = 'behalf.enrolment'::regclass",
    )?;
    let greatest: u64 = greatest.parse()?;
    ensure!(greatest > 17 << 20, "{greatest} bytes");
    // The half of a page: that it is not all written is "no room" to the server.
    limit_files(&postgres, Some(greatest + 4096))?;
    let mut enrolled = 1;
    loop {
        let before = scene.output().len();
        let answer = scene.enrol(enrolled).await?;
        if !answer.status.is_success() {
            scene.is_told(&answer, before, &["(53100)", "disk"]).await?;
            break;
        }
        enrolled += 1;
        ensure!(enrolled < 100, "the file has grown");
    }
    for user in 0..enrolled {
        scene.draw(user).await?;
    }
    limit_files(&postgres, None)?;
    let answer = scene.enrol(enrolled).await?;
    ensure!(answer.status.is_success(), "{answer:?}");
    for user in 0..=enrolled {
        scene.draw(user).await?;
    }
    scene.end(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_read_and_takes_changes_once_it_is_promoted() -> Result {
    let primary = prepared(&[])?;
    let scene = Scene::start(&primary, &[]).await?;
    scene.is_well().await?;

    let standby = primary.standby()?;
    let port = standby.port().to_string();
    let scene = scene.again(&[("postgres_port", &port)]).await?;
    scene.draw(0).await?;
    scene.fails(&["(25006)", "`postgres_host`"]).await?;
    let removal = scene.send(0, Method::DELETE, "/v1/me").await?;
    ensure!(removal.status == 503, "{removal:?}");
    drop(primary);
    standby.promote()?;
    scene.is_well().await?;
    scene.end(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_is_told() -> Result {
    let postgres = prepared(&[])?;
    let authority = authority()?;
    let ca = authority.pem();
    let scene = Scene::start(
        &postgres,
        &[("postgres_host", "localhost"), ("postgres_ca_pem", &ca)],
    )
    .await?;
    scene
        .fails(&["does not support TLS", "`postgres_host`"])
        .await?;
    serve(&postgres, &self::authority()?)?;
    scene
        .fails(&["invalid peer certificate", "`postgres_ca_pem`"])
        .await?;
    serve(&postgres, &authority)?;
    scene.is_well().await?;
    scene.end(&[]).await
}

/// In transaction mode statements of one client go to one server's connection or another, which knows the statements that it was
/// told itself: `PgBouncer` tells them all from version 1.21 on, if it is set up so.
#[tokio::test(flavor = "multi_thread")]
async fn pgbouncer_in_transaction_mode_works_or_is_named() -> Result {
    let postgres = prepared(&[])?;
    let pgbouncer = PgBouncer::start(&postgres, "transaction")?;
    let port = pgbouncer.port().to_string();
    // Its own words for who is not let in.
    let none = [
        ("postgres_port", port.as_str()),
        ("postgres_database", "none"),
    ];
    let scene = Scene::start(&postgres, &none).await?;
    scene
        .fails(&["no such database", "`postgres_database`"])
        .await?;
    let wrong = [
        ("postgres_database", DATABASE),
        ("postgres_password", "a wrong canary"),
    ];
    let scene = scene.again(&wrong).await?;
    scene
        .fails(&["authentication failed", "`postgres_password`"])
        .await?;

    let scene = scene.again(&[("postgres_password", PASSWORD)]).await?;
    let before = scene.output().len();
    let mut answers = Vec::new();
    for _ in 0..20 {
        let all = (0..16).map(|user| scene.enrol(user));
        answers.extend(futures_util::future::try_join_all(all).await?);
        if answers.iter().any(|answer| !answer.status.is_success()) {
            break;
        }
    }
    let refused = answers.iter().find(|answer| !answer.status.is_success());
    match (PgBouncer::has_prepared_statements()?, refused) {
        (true, None) => {}
        (false, Some(refused)) => {
            scene
                .is_told(
                    refused,
                    before,
                    &["PgBouncer", "1.21", "max_prepared_statements"],
                )
                .await?;
        }
        (_, refused) => bail!("{refused:?}"),
    }

    // In session mode any version does.
    let pgbouncer = PgBouncer::start(&postgres, "session")?;
    let port = pgbouncer.port().to_string();
    let scene = scene.again(&[("postgres_port", &port)]).await?;
    for _ in 0..5 {
        let all = (0..16).map(|user| scene.enrol(user));
        for answer in futures_util::future::try_join_all(all).await? {
            ensure!(answer.status.is_success(), "{answer:?}");
        }
    }
    scene.end(&["a wrong canary"]).await
}

/// Takes every connection that there is for others than the superuser.
fn crowd(postgres: &Postgres) -> Result<Vec<Client>> {
    let address = postgres.address("crowd", "crowd", DATABASE);
    let mut crowd = Vec::new();
    loop {
        match Client::connect(&address, NoTls) {
            Ok(client) => crowd.push(client),
            Err(error) => {
                let code = error.code().context("no answer")?.code();
                ensure!(code == "53300" && !crowd.is_empty(), "{error}");
                return Ok(crowd);
            }
        }
    }
}

/// Lets no file of the server grow beyond this many bytes; none: any may.
fn limit_files(postgres: &Postgres, bytes: Option<u64>) -> Result {
    let first = i32::try_from(postgres.process().context("it runs")?)?;
    let bytes = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
    let set = |process: &Process| {
        let done = Command::new("prlimit")
            .args(["--pid", &process.pid.to_string()])
            .arg(format!("--fsize={bytes}:unlimited"))
            // Only whose it is may do that.
            .uid(process.uid()?)
            .gid(process.status()?.rgid)
            .output()?;
        ensure!(done.status.success() || !process.is_alive(), "{done:?}");
        Ok(())
    };
    // From the first process those have it that begin later.
    set(&Process::new(first)?)?;
    for process in all_processes()?.flatten() {
        if process.stat().is_ok_and(|stat| stat.ppid == first) {
            set(&process)?;
        }
    }
    Ok(())
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut parameters = CertificateParams::new([])?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(CertifiedIssuer::self_signed(
        parameters,
        KeyPair::generate()?,
    )?)
}

/// Has the server a certificate of this authority.
fn serve(postgres: &Postgres, authority: &CertifiedIssuer<'static, KeyPair>) -> Result {
    let key = KeyPair::generate()?;
    let parameters = CertificateParams::new(["localhost".to_owned()])?;
    let certificate = parameters.signed_by(&key, authority)?;
    postgres.serve_tls(&certificate.pem(), &key.serialize_pem())
}
