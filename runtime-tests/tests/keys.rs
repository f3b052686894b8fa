//! `behalf key`, at the emulator of Key Vault.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use runtime_tests::app::{behalf, root};
use runtime_tests::emulators::{
    Answer, Emulators, Fault, OTHER_TENANT, Options, TENANT, Target, key_name,
};
use runtime_tests::operator::{Operator, Said, signal};
use runtime_tests::scene::Scene;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::Command;

type Result = anyhow::Result<()>;

/// A tenant that was never set up.
const NEW_TENANT: &str = "cccccccc-cccc-4ccc-8ccc-cccccccccccc";

async fn emulators() -> anyhow::Result<Emulators> {
    Emulators::start(Options::default()).await
}

/// An operator as a pipeline is: with the address of the vault and an identity that may set secrets, and nothing else of the app.
fn rotator(emulators: &Emulators) -> anyhow::Result<Operator> {
    let identity = &emulators.options().managed_identity_id;
    emulators.permit(identity, &["set"]);
    let settings = emulators.app_service().into_iter().chain([
        ("key_vault_url", emulators.key_vault_url()),
        ("key_vault_credential", "managed-identity".to_owned()),
        ("authority", emulators.authority()),
    ]);
    Operator::with(
        settings
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

/// The newest version of a tenant's key, by its id.
fn newest(emulators: &Emulators, tenant: &str) -> Option<String> {
    let newest = emulators.newest_version(&key_name(tenant))?;
    Some(newest["id"].as_str()?.rsplit('/').next()?.to_owned())
}

fn methods(emulators: &Emulators) -> BTreeSet<String> {
    let journal = emulators.journal().into_iter();
    let asked = journal.filter(|it| it.target == Target::KeyVault);
    asked.map(|it| it.method).collect()
}

fn rotated(said: &Said) -> anyhow::Result<Vec<String>> {
    let json = said.json()?;
    let rotated = json["rotated"].as_array().context("a list")?.iter();
    let mut tenants: Vec<_> = rotated
        .map(|it| it["tenant"].as_str().unwrap().to_owned())
        .collect();
    tenants.sort();
    Ok(tenants)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_needs_the_permission_to_set_and_reads_nothing() -> Result {
    let emulators = emulators().await?;
    let operator = rotator(&emulators)?;
    let before = newest(&emulators, TENANT);
    let words = [
        "key",
        "rotate",
        TENANT,
        NEW_TENANT,
        TENANT,
        "--tag",
        "team=identity",
        "--expires-in",
        "90d",
    ];
    let said = operator.run(&emulators, &words).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.out.lines().count(), 2, "a line each: {said:?}");
    for tenant in [TENANT, NEW_TENANT] {
        let version = newest(&emulators, tenant).unwrap();
        assert!(
            said.out
                .contains(&format!("{tenant}  obo-{tenant}  {version}  ends ")),
            "{said:?}"
        );
        let value = emulators.secret(&key_name(tenant), &version).unwrap();
        assert_eq!(
            (value.len(), BASE64_STANDARD.decode(value)?.len()),
            (44, 32)
        );
        let shown = emulators.newest_version(&key_name(tenant)).unwrap();
        assert_eq!(shown["contentType"], "application/vnd.behalf.key");
        assert_eq!(shown["tags"]["tenant"], tenant);
        assert_eq!(shown["tags"]["team"], "identity");
        let made_by = shown["tags"]["made-by"].as_str().unwrap();
        assert!(made_by.starts_with("behalf "), "{shown}");
        let (created, ends) = (&shown["attributes"]["created"], &shown["attributes"]["exp"]);
        let lives = ends.as_u64().unwrap() - created.as_u64().unwrap();
        assert!((90 * 86_400 - 60..=90 * 86_400).contains(&lives), "{shown}");
    }
    assert_ne!(newest(&emulators, TENANT), before);
    assert_eq!(methods(&emulators), BTreeSet::from(["PUT".to_owned()]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_makes_nothing_and_says_what_it_would() -> Result {
    let emulators = emulators().await?;
    let operator = Operator::new(&emulators)?;
    let before = newest(&emulators, TENANT);
    let said = operator
        .run(
            &emulators,
            &["key", "rotate", TENANT, "--dry-run", "--json"],
        )
        .await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.json()?["would_rotate"][0]["secret"], key_name(TENANT));
    assert_eq!(newest(&emulators, TENANT), before);
    // Whether it could is a part of that.
    let operator = operator.set("client_secret", "of another app");
    let said = operator
        .run(&emulators, &["key", "rotate", TENANT, "--dry-run"])
        .await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.log.contains("`client_secret`"), "{said:?}");
    Ok(())
}

/// As the app's, and those of pipelines.
#[tokio::test(flavor = "multi_thread")]
async fn every_credential_rotates() -> Result {
    let emulators = emulators().await?;
    let vault = emulators.key_vault_url();
    let named = |settings: Vec<(&str, String)>| -> Vec<(String, String)> {
        settings
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    };
    let with = |settings: Vec<(String, String)>| {
        let mut all = emulators.settings();
        all.extend(settings);
        all
    };
    let identity = |mut settings: Vec<(&'static str, String)>| {
        settings.push(("key_vault_credential", "managed-identity".to_owned()));
        with(named(settings))
    };
    // Of a job, no more than it has.
    let job = named(vec![("authority", emulators.authority())]);
    let client_id = emulators.options().client_id.clone();
    let folder = tempfile::tempdir()?;
    let az = |token: &str| -> anyhow::Result<()> {
        let program = folder.path().join("az");
        std::fs::write(
            &program,
            format!(
                "#!/bin/sh\n[ \"$*\" = 'account get-access-token --output json --scope https://vault.azure.net/.default' ] || exit 3\n\
             echo '{{\"accessToken\": \"{token}\", \"expires_on\": 1}}'\n"
            ),
        )?;
        Ok(std::fs::set_permissions(
            &program,
            Permissions::from_mode(0o700),
        )?)
    };
    az(&token(&emulators).await?)?;
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH")?);
    let operators = [
        (Operator::new(&emulators)?, "settings"),
        (
            Operator::with(with(emulators.credential("certificate")))?,
            "settings",
        ),
        (
            Operator::with(with(emulators.credential("federated-token")))?,
            "settings",
        ),
        (
            Operator::with(with(emulators.credential("managed-identity")))?,
            "settings",
        ),
        (
            Operator::with(identity(emulators.app_service()))?,
            "settings",
        ),
        (
            Operator::with(identity(emulators.metadata_service()))?,
            "settings",
        ),
        (
            Operator::with(job.clone())?
                .environments(&emulators.github_job())
                .environment("AZURE_CLIENT_ID", &client_id),
            "github",
        ),
        (
            Operator::with(job)?
                .environments(&emulators.azure_job())
                .environment("AZURESUBSCRIPTION_CLIENT_ID", &client_id),
            "azure-pipelines",
        ),
        (
            Operator::with(Vec::new())?.environment("PATH", &path),
            "azure-cli",
        ),
    ];
    for (operator, who) in operators {
        let before = newest(&emulators, TENANT);
        let words = [
            "key",
            "rotate",
            "--vault",
            &vault,
            "--credential",
            who,
            TENANT,
        ];
        let said = operator.run(&emulators, &words).await?;
        assert_eq!(said.code, Some(0), "{who}: {said:?}");
        assert_ne!(newest(&emulators, TENANT), before, "{who}");
    }
    // As the page for Azure has it, for a tenant's first key.
    let page = std::fs::read_to_string(root().join("scripts/azure/README.md"))?;
    let mut lines = page.lines();
    let line = lines.find_map(|it| it.strip_prefix("behalf key rotate "));
    let line = line.context("a first key")?;
    let line = line.replace("\"https://$VAULT.vault.azure.net\"", &vault);
    let line = line.replace("\"$TENANT_ID\"", TENANT);
    let words: Vec<_> = ["key", "rotate"]
        .into_iter()
        .chain(line.split(' '))
        .collect();
    let before = newest(&emulators, TENANT);
    let operator = Operator::with(Vec::new())?.environment("PATH", &path);
    let said = operator.run(&emulators, &words).await?;
    assert_eq!(said.code, Some(0), "{line}: {said:?}");
    assert_ne!(newest(&emulators, TENANT), before, "{line}");
    // What is missing is named.
    let nobody = Operator::with(Vec::new())?;
    for (who, missing) in [
        ("github", "ACTIONS_ID_TOKEN_REQUEST_URL"),
        ("azure-pipelines", "SYSTEM_OIDCREQUESTURI"),
        ("settings", "SPIN_VARIABLE_CLIENT_ID"),
    ] {
        let words = [
            "key",
            "rotate",
            "--vault",
            &vault,
            "--credential",
            who,
            TENANT,
        ];
        let said = nobody.run(&emulators, &words).await?;
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.log.contains(missing), "{said:?}");
    }
    let nobody = nobody.environment("PATH", "/nowhere");
    let said = nobody
        .run(
            &emulators,
            &[
                "key",
                "rotate",
                "--vault",
                &vault,
                "--credential",
                "azure-cli",
                TENANT,
            ],
        )
        .await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.log.contains("install `az`"), "{said:?}");
    Ok(())
}

/// A token of the app for Key Vault, as `az` has one of whoever is logged in.
async fn token(emulators: &Emulators) -> anyhow::Result<String> {
    let options = emulators.options();
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", &options.client_id),
        ("client_secret", &options.client_secret),
        ("scope", "https://vault.azure.net/.default"),
    ];
    let url = format!("{}/{TENANT}/oauth2/v2.0/token", emulators.authority());
    let body = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(form)
        .finish();
    let request = reqwest::Client::new().post(url).body(body);
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let answer: Value = serde_json::from_slice(&request.send().await?.bytes().await?)?;
    Ok(answer["access_token"]
        .as_str()
        .context("a token")?
        .to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_throttles_is_waited_for() -> Result {
    let emulators = emulators().await?;
    let operator = rotator(&emulators)?;
    let throttled = || {
        Fault::new(
            Target::KeyVault,
            Answer::KeyVault {
                status: 429,
                code: "Throttled".to_owned(),
                inner: None,
            },
        )
    };
    emulators.fault(throttled().retry_after("2"));
    emulators.fault(throttled());
    let said = operator.run(&emulators, &["key", "rotate", TENANT]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    let waits: Vec<_> = said
        .log
        .lines()
        .filter(|line| line.contains("waiting"))
        .collect();
    assert_eq!(waits.len(), 2, "{said:?}");
    assert!(waits[0].contains("seconds 2"), "{said:?}");
    assert_eq!(emulators.faults_left(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_says_what_to_do_and_what_is_left() -> Result {
    let emulators = emulators().await?;
    let operator = rotator(&emulators)?;
    let both = ["key", "rotate", "--json", TENANT, OTHER_TENANT];
    let failed = |said: &Said| -> anyhow::Result<Vec<String>> {
        let json = said.json()?;
        let failed = json["failed"].as_array().context("a list")?.iter();
        Ok(failed
            .map(|it| it["code"].as_str().unwrap().to_owned())
            .collect())
    };
    // One's own trouble is one's own.
    emulators.delete_secret(&key_name(TENANT))?;
    let said = operator.run(&emulators, &both).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(failed(&said)?, ["deleted"]);
    assert_eq!(rotated(&said)?, [OTHER_TENANT]);
    assert_eq!(said.json()?["left"], json!([TENANT]));
    assert!(said.log.contains("az keyvault secret recover"), "{said:?}");
    assert!(
        said.log.contains(&format!("behalf key rotate {TENANT}")),
        "{said:?}"
    );
    // What is being recovered is waited for.
    emulators.recover_secret(&key_name(TENANT))?;
    let said = operator.run(&emulators, &both).await?;
    assert_eq!(said.code, Some(0), "{said:?}");

    let refused = |inner: &str| {
        Fault::new(
            Target::KeyVault,
            Answer::KeyVault {
                status: 403,
                code: "Forbidden".to_owned(),
                inner: Some(inner.to_owned()),
            },
        )
    };
    emulators.fault(refused("ForbiddenByFirewall").times(2));
    let said = operator.run(&emulators, &both).await?;
    assert_eq!(
        (said.code, emulators.faults_left()),
        (Some(1), 0),
        "{said:?}"
    );
    assert!(
        failed(&said)?.iter().all(|code| code == "firewall"),
        "{said:?}"
    );
    assert!(said.log.contains("firewall"), "{said:?}");

    emulators.permit(&emulators.options().managed_identity_id, &["get", "list"]);
    let said = operator.run(&emulators, &both).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(failed(&said)?, ["forbidden"; 2]);
    assert!(said.log.contains("secrets/setSecret/action"), "{said:?}");
    assert_eq!(said.json()?["left"], json!([TENANT, OTHER_TENANT]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_told_before_anything_is_done() -> Result {
    let emulators = emulators().await?;
    let operator = Operator::new(&emulators)?;
    for (words, told) in [
        (
            &["key", "rotate", "contoso.com"][..],
            "a GUID of 36 characters",
        ),
        (
            &["key", "rotate", "9188040d-6c67-4c5b-b112-36a304b66dad"],
            "personal accounts",
        ),
        (
            &["key", "rotate", NEW_TENANT],
            "is not among the setting `tenants` (SPIN_VARIABLE_TENANTS)",
        ),
        (&["key", "rotate"], "TENANT"),
        (
            &["key", "rotate", TENANT, "--expires-in", "1m"],
            "an hour at least",
        ),
        (
            &["key", "rotate", TENANT, "--expires-in", "5000000000000d"],
            "a hundred years at most",
        ),
        (&["key", "rotate", "--older-than", "30"], "with its unit"),
        (
            &["key", "rotate", TENANT, "--tag", "tenant=x"],
            "are ours: choose another name",
        ),
        (
            &["key", "rotate", TENANT, "--tag", "a=1", "--tag", "a=2"],
            "a name is there twice",
        ),
        (
            &["key", "rotate", TENANT, "--variable", "grants=[]"],
            "goes by no such setting",
        ),
        (
            &["key", "rotate", TENANT, "--vault", "http://vault.example"],
            "SPIN_VARIABLE_KEY_VAULT_URL",
        ),
    ] {
        let said = operator.run(&emulators, words).await?;
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.log.contains(told), "{told}: {said:?}");
    }
    assert!(emulators.journal().is_empty());
    // Nobody listens there.
    let closed = [
        "key",
        "rotate",
        TENANT,
        "--vault",
        "http://127.0.0.1:9",
        "--json",
    ];
    let said = operator.run(&emulators, &closed).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(said.json()?["failed"][0]["code"], "no_answer");
    for word in [
        "http://127.0.0.1:9 ",
        "`key_vault_url` or --vault",
        "HTTPS_PROXY",
    ] {
        assert!(said.log.contains(word), "{word}: {said:?}");
    }
    let operator = operator.set("authority", "http://127.0.0.1:9");
    let said = operator.run(&emulators, &["key", "rotate", TENANT]).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    for word in [
        "http://127.0.0.1:9 ",
        "Entra ID (see `authority`)",
        "HTTPS_PROXY",
    ] {
        assert!(said.log.contains(word), "{word}: {said:?}");
    }
    Ok(())
}

/// Set cannot see what is there, and takes nothing of it away.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_no_key_keeps_its_versions() -> Result {
    let emulators = emulators().await?;
    let operator = rotator(&emulators)?;
    let other = emulators.put_secret(&key_name(TENANT), "a password, by mistake")?;
    let said = operator.run(&emulators, &["key", "rotate", TENANT]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_ne!(newest(&emulators, TENANT).unwrap(), other);
    let kept = emulators.secret(&key_name(TENANT), &other);
    assert_eq!(kept.as_deref(), Some("a password, by mistake"));
    Ok(())
}

/// What was under way is ended, and the rest is named; then the rest alone is left to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_is_interrupted_goes_on_where_it_was() -> Result {
    let tenants: Vec<_> = (0..9)
        .map(|it| format!("dddddddd-dddd-4ddd-8ddd-00000000000{it}"))
        .collect();
    let emulators = emulators().await?;
    let operator = rotator(&emulators)?;
    // Four are under way when it is told to stop.
    let mut slow = Fault::new(Target::KeyVault, Answer::Pass).times(4);
    slow.delay_ms = 2000;
    emulators.fault(slow);
    let mut words = vec!["key", "rotate", "--json"];
    words.extend(tenants.iter().map(String::as_str));
    let child = operator.begin(&words)?;
    while emulators.faults_left() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    signal(&child, Signal::INT)?;
    let said = operator.end(&emulators, child).await?;
    assert_eq!(said.code, Some(130), "{said:?}");
    assert_eq!(rotated(&said)?.len(), 4, "{said:?}");
    let left = said.json()?["left"].clone();
    let left: Vec<String> = serde_json::from_value(left)?;
    assert_eq!(left, tenants[4..], "{said:?}");
    let before = newest(&emulators, &tenants[0]);
    let mut words = vec!["key", "rotate", "--json"];
    words.extend(left.iter().map(String::as_str));
    let said = operator.run(&emulators, &words).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(rotated(&said)?, left);
    assert!(tenants.iter().all(|it| newest(&emulators, it).is_some()));
    assert_eq!(
        newest(&emulators, &tenants[0]),
        before,
        "it was done already"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_costs_a_version_and_no_more() -> Result {
    let emulators = emulators().await?;
    let operator = rotator(&emulators)?;
    emulators.fault(Fault::new(Target::KeyVault, Answer::Close));
    let said = operator.run(&emulators, &["key", "rotate", TENANT]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out.contains(&newest(&emulators, TENANT).unwrap()),
        "{said:?}"
    );
    Ok(())
}

/// What a pipeline runs: it finds out where it is.
#[tokio::test(flavor = "multi_thread")]
async fn the_script_asks_as_the_job_that_runs_it() -> Result {
    let emulators = emulators().await?;
    let client_id = emulators.options().client_id.clone();
    let behalf = behalf()?.display().to_string();
    let job = || -> anyhow::Result<Operator> {
        let settings = vec![
            ("authority".to_owned(), emulators.authority()),
            ("key_vault_url".to_owned(), emulators.key_vault_url()),
            ("client_id".to_owned(), client_id.clone()),
        ];
        Ok(Operator::with(settings)?.environment("BEHALF_BIN", &behalf))
    };
    let secret = emulators.options().client_secret.clone();
    let with_secret = || -> anyhow::Result<Operator> {
        let job = job()?.environments(&emulators.github_job());
        Ok(job.set("client_secret", &secret))
    };
    let by_file = with_secret()?;
    std::fs::write(by_file.folder().join("who"), "client-secret")?;
    let by_env = with_secret()?;
    std::fs::write(
        by_env.folder().join(".env"),
        "SPIN_VARIABLE_CREDENTIAL=client-secret\n",
    )?;
    for (operator, words, proof) in [
        (
            job()?.environments(&emulators.github_job()),
            &[][..],
            "RS256",
        ),
        (job()?.environments(&emulators.azure_job()), &[], "RS256"),
        (with_secret()?, &["--tag", "credential=none"], "RS256"),
        (job()?.set("client_secret", &secret), &[], "secret"),
        (
            with_secret()?,
            &["--variable", "credential=client-secret"],
            "secret",
        ),
        (by_file, &["--variable-file=credential=who"], "secret"),
        (by_env, &[], "secret"),
        (
            with_secret()?,
            &["--variable", "key_vault_credential=app"],
            "secret",
        ),
        (
            job()?
                .environments(&emulators.github_job())
                .set("credential", "client-secret")
                .set("client_secret", &secret),
            &[],
            "secret",
        ),
    ] {
        emulators.clear_journal();
        let before = newest(&emulators, TENANT);
        let mut script = Command::new(root().join("scripts/rotate-key"));
        let child = operator.spawn(script.arg(TENANT).args(words))?;
        let said = operator.end(&emulators, child).await?;
        assert_eq!(said.code, Some(0), "{said:?}");
        assert_ne!(newest(&emulators, TENANT), before);
        let proofs: Vec<_> = emulators
            .journal()
            .into_iter()
            .filter_map(|it| it.proof)
            .collect();
        assert_eq!(proofs, [proof]);
    }
    Ok(())
}

/// Each makes its own version, and one of them is the newest: that one the app seals under, and both open.
#[tokio::test(flavor = "multi_thread")]
async fn two_rotations_at_once_do_no_harm() -> Result {
    let emulators = emulators().await?;
    let operator = rotator(&emulators)?;
    let words = ["key", "rotate", "--json", TENANT, OTHER_TENANT];
    let (one, other) = (operator.begin(&words)?, operator.begin(&words)?);
    let (one, other) = (
        operator.end(&emulators, one),
        operator.end(&emulators, other),
    );
    let (one, other) = tokio::try_join!(one, other)?;
    for tenant in [TENANT, OTHER_TENANT] {
        let version = |said: &Said| -> anyhow::Result<String> {
            let json = said.json()?;
            let all = json["rotated"].as_array().context("a list")?;
            let of = all.iter().find(|it| it["tenant"] == tenant).context("it")?;
            Ok(of["version"].as_str().unwrap().to_owned())
        };
        let made = [version(&one)?, version(&other)?];
        assert_ne!(made[0], made[1]);
        assert!(made.contains(&newest(&emulators, tenant).unwrap()));
        let values = made.map(|it| emulators.secret(&key_name(tenant), &it).unwrap());
        assert_ne!(values[0], values[1]);
    }
    assert_eq!((one.code, other.code), (Some(0), Some(0)));
    Ok(())
}

/// Users who enrol and draw, and sweeps one after another, while keys change under them.
#[tokio::test(flavor = "multi_thread")]
async fn rotations_under_load_fail_no_request() -> Result {
    const USERS: usize = 12;
    const ROTATIONS: usize = 6;
    let scene = Scene::with(Options::default(), |app| {
        // Every draw goes the long way, to keys that are asked for all the time.
        app.set("access_token_cache_seconds", "0")
            .set("key_cache_seconds", "1")
            .set("key_latest_seconds", "1")
            .set("refresh_after_seconds", "1")
    })
    .await?;
    scene.emulators.refuse_loops(false);
    let operator = rotator(&scene.emulators)?;
    let bearer = |at: usize| {
        let tenant = [TENANT, OTHER_TENANT][at % 2];
        let user = format!("ffffffff-ffff-4fff-8fff-{at:012}");
        scene.emulators.caller().tenant(tenant).user(&user).mint()
    };
    for at in 0..USERS {
        let answer = scene
            .app
            .send(Method::PUT, "/v1/me", Some(&bearer(at)), None)
            .await?;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let over = AtomicBool::new(false);
    let requests = AtomicUsize::new(0);
    let users = async |begin: usize| -> Result {
        let mut at = begin;
        while !over.load(Ordering::Relaxed) {
            at = (at + 1) % USERS;
            let (method, path) = match at % 5 {
                0 => (Method::PUT, "/v1/me"),
                1 => (Method::GET, "/v1/me"),
                _ => (Method::POST, "/v1/me/access-token"),
            };
            let answer = scene
                .app
                .send(method, path, Some(&bearer(at)), None)
                .await?;
            assert_eq!(answer.status, 200, "{answer:?}");
            requests.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let sweeps = async || -> Result {
        while !over.load(Ordering::Relaxed) {
            let report = scene.sweep().await?;
            assert!(report.get("stopped").is_none_or(Value::is_null), "{report}");
            for trouble in [
                "failed",
                "refused",
                "damaged",
                "quarantined",
                "tenants_without_key",
            ] {
                assert_eq!(report[trouble], 0, "{report}");
            }
        }
        Ok(())
    };
    let rotations = async || -> Result {
        for _ in 0..ROTATIONS {
            let words = ["key", "rotate", TENANT, OTHER_TENANT];
            let said = operator.run(&scene.emulators, &words).await?;
            assert_eq!(said.code, Some(0), "{said:?}");
            let before = requests.load(Ordering::Relaxed);
            while requests.load(Ordering::Relaxed) < before + 3 * USERS {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        over.store(true, Ordering::Relaxed);
        Ok(())
    };
    tokio::try_join!(users(0), users(4), users(8), sweeps(), rotations())?;
    // In the end all is under the newest.
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.sweep().await?;
    for at in 0..USERS {
        let answer = scene
            .app
            .send(Method::GET, "/v1/me", Some(&bearer(at)), None)
            .await?;
        let newest = newest(&scene.emulators, [TENANT, OTHER_TENANT][at % 2]);
        assert_eq!(
            answer.json["key_version"].as_str(),
            newest.as_deref(),
            "{answer:?}"
        );
    }
    scene.end().await?;
    Ok(())
}

/// A scene with a user in each tenant, and an operator of both who rotates.
async fn operated() -> anyhow::Result<(Scene, Operator)> {
    let scene = Scene::with(Options::default(), |app| {
        app.set("operator_tenant", TENANT)
            .set("key_latest_seconds", "1")
    })
    .await?;
    for tenant in [TENANT, OTHER_TENANT] {
        let bearer = scene.emulators.caller().tenant(tenant).mint();
        let answer = scene
            .send(Method::PUT, "/v1/me", Some(&bearer), None)
            .await?;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    scene.sweep().await?;
    let operator = rotator(&scene.emulators)?
        .with_token(&scene.emulators, &["Behalf.Read"])?
        .environment("BEHALF_APP", &scene.app.url());
    Ok((scene, operator))
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_and_the_age_of_their_keys_come_from_the_app() -> Result {
    let (scene, operator) = operated().await?;
    let emulators = &scene.emulators;
    let rotate = async |words: &[&str]| -> anyhow::Result<Vec<String>> {
        let words = [&["key", "rotate", "--json", "--token-file", "token"], words].concat();
        let said = operator.run(emulators, &words).await?;
        assert_eq!(said.code, Some(0), "{said:?}");
        rotated(&said)
    };
    assert_eq!(rotate(&["--older-than", "30d"]).await?, [""; 0]);
    // A sweep sees how old one is.
    let now = jiff::Timestamp::now().as_second();
    emulators.set_secret_created(&key_name(OTHER_TENANT), now - 31 * 86_400)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.sweep().await?;
    let words = [
        "key",
        "rotate",
        "--json",
        "--dry-run",
        "--token-file",
        "token",
        "--older-than",
        "30d",
    ];
    let said = operator.run(emulators, &words).await?;
    let would = said.json()?["would_rotate"].clone();
    assert_eq!(
        (would[0]["tenant"].as_str(), would.as_array().map(Vec::len)),
        (Some(OTHER_TENANT), Some(1))
    );
    emulators.clear_journal();
    assert_eq!(rotate(&["--older-than", "30d"]).await?, [OTHER_TENANT]);
    assert_eq!(
        methods(emulators),
        BTreeSet::from(["PUT".to_owned()]),
        "no secret is listed"
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.sweep().await?;
    assert_eq!(
        rotate(&["--older-than", "30d"]).await?,
        [""; 0],
        "it is done"
    );
    assert_eq!(rotate(&["--all"]).await?, [TENANT, OTHER_TENANT]);
    // An app that may not see the status.
    let stranger = rotator(emulators)?
        .with_token(emulators, &["Behalf.Sweep"])?
        .environment("BEHALF_APP", &scene.app.url());
    let said = stranger
        .run(
            emulators,
            &["key", "rotate", "--all", "--token-file", "token"],
        )
        .await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.log.contains("insufficient_scope"), "{said:?}");
    let said = stranger
        .run(emulators, &["key", "rotate", "--all", TENANT])
        .await?;
    assert_eq!(said.code, Some(2), "{said:?}");
    scene.end().await?;
    Ok(())
}

/// Lets the status say that what is unused has been so for two days.
async fn pass_two_days(scene: &Scene) -> Result {
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.sweep().await?;
    scene.store().forget_sweeps()?;
    scene.sweep().await?;
    let ago = jiff::Timestamp::now().as_second() - 2 * 86_400;
    for key in scene.store().all_rows()?.into_keys() {
        if let Some((name, since)) = key.rsplit_once('.')
            && name.starts_with("ver.")
            && !since.trim_start_matches('0').is_empty()
        {
            scene.store().insert(&format!("{name}.{ago:012}"), b"")?;
            scene.store().delete(&key)?;
        }
    }
    scene.store().forget_sweeps()?;
    scene.sweep().await?;
    Ok(())
}

/// By a status that does not tell it all.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_known_is_not_taken_for_done() -> Result {
    let emulators = emulators().await?;
    let operator = rotator(&emulators)?.with_token(&emulators, &["Behalf.Read"])?;
    let app = emulators.downstream_url();
    let recent = |tenants: Value| {
        let now = jiff::Timestamp::now().as_second();
        json!({"observed_at": now, "age_seconds": 1, "tenant_count": 2, "tenants": tenants})
    };
    for (status, words, says) in [
        (json!({}), &[][..], "ring one (`behalf sweep`)"),
        (
            recent(json!({})),
            &[],
            "does not show 2 tenants: name each alone",
        ),
        (recent(json!({})), &["--dry-run"], "does not show 2 tenants"),
        (
            recent(json!({OTHER_TENANT: {}})),
            &[TENANT, OTHER_TENANT],
            "the status does not show it: name it alone",
        ),
        (
            recent(json!({TENANT: {}, OTHER_TENANT: {}})),
            &[TENANT],
            "does not know yet which version of its key is the newest",
        ),
    ] {
        emulators.fault(Fault::new(
            Target::Downstream,
            Answer::Status {
                status: 200,
                body: status.to_string(),
                content_type: "application/json".to_owned(),
            },
        ));
        let retire = ["key", "retire", "--token-file", "token", "--app", &app];
        let said = operator
            .run(&emulators, &[&retire[..], words].concat())
            .await?;
        assert_eq!(said.code, Some(1), "{words:?}: {said:?}");
        assert!(said.log.contains(says), "{says}: {said:?}");
        assert!(!said.log.contains("or name tenants"), "{said:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unused_for_a_day_is_disabled_and_can_be_enabled_again() -> Result {
    let (scene, operator) = operated().await?;
    let emulators = &scene.emulators;
    let old = newest(emulators, TENANT).unwrap();
    let is_enabled = |version: &str| emulators.is_secret_enabled(&key_name(TENANT), version);
    let retire = async |words: &[&str]| -> anyhow::Result<Said> {
        let words = [&["key", "retire", "--json", "--token-file", "token"], words].concat();
        operator.run(emulators, &words).await
    };
    let said = operator.run(emulators, &["key", "rotate", TENANT]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    let new = newest(emulators, TENANT).unwrap();
    // Not before the records have left it for a day.
    let said = retire(&[TENANT, OTHER_TENANT, NEW_TENANT]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    for told in [
        format!("{TENANT}: its key has no version that is unused"),
        format!("{OTHER_TENANT}: its key has no version that is unused"),
        format!("{NEW_TENANT}: the status has nobody of it"),
    ] {
        assert!(said.log.contains(&told), "{told}: {said:?}");
    }
    let said = retire(&["--enable", NEW_TENANT]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = retire(&[]).await?;
    assert_eq!(
        (said.code, said.json()?["disabled"].clone()),
        (Some(0), json!([]))
    );
    pass_two_days(&scene).await?;
    let said = retire(&["--dry-run"]).await?;
    assert_eq!(said.json()?["would_disable"][0]["version"], old, "{said:?}");
    assert_eq!(is_enabled(&old), Some(true));
    // The permission to set is not enough.
    let said = retire(&[]).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(said.json()?["failed"][0]["code"], "forbidden");
    assert!(said.log.contains("secrets/update/action"), "{said:?}");
    emulators.permit(&emulators.options().managed_identity_id, &["update"]);
    let said = retire(&[OTHER_TENANT]).await?;
    assert_eq!(
        said.json()?["disabled"],
        json!([]),
        "of this tenant there is none"
    );
    let said = retire(&[]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    let disabled = said.json()?["disabled"].clone();
    assert_eq!(disabled.as_array().map(Vec::len), Some(1), "{disabled}");
    assert_eq!(
        (&disabled[0]["tenant"], &disabled[0]["version"]),
        (&json!(TENANT), &json!(old))
    );
    assert_eq!(
        (is_enabled(&old), is_enabled(&new)),
        (Some(false), Some(true))
    );
    scene.draw().await?;

    let said = retire(&["--enable", TENANT]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(is_enabled(&old), Some(true));
    // Also when the status cannot be had, and the app serves the tenant no more.
    emulators.set_secret_enabled(&key_name(TENANT), Some(&old), false)?;
    let others = format!("tenants={OTHER_TENANT}");
    let gone = [
        "--variable",
        &others,
        "--enable",
        TENANT,
        "--version",
        &old,
        "--app",
        "http://127.0.0.1:9",
    ];
    let said = retire(&gone).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(is_enabled(&old), Some(true));
    let said = retire(&["--app", "http://127.0.0.1:9"]).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    let said = retire(&["--unused-for", "1h"]).await?;
    assert_eq!(said.code, Some(2), "{said:?}");
    scene.end().await?;
    Ok(())
}
