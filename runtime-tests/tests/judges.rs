//! Others' code judges the emulators of Entra ID and Key Vault: Microsoft's own clients, unmodified and pinned, complete their flows.
//!
//! They want HTTPS and the real names, and get both from a proxy. None of their checks is switched off: they are told
//! which proxy to use and which authority to trust, as by an administrator of a company network.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use runtime_tests::app::root;
use runtime_tests::emulators::{Emulators, Options, TENANT, Target, key_name};
use runtime_tests::operator::Operator;

type Result = anyhow::Result<()>;

const OBO: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

#[tokio::test(flavor = "multi_thread")]
async fn msal_for_python() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    judge(
        &emulators,
        &python(),
        &root().join("runtime-tests/peers/msal_entra.py"),
    )
    .await?;
    granted(
        &emulators,
        &[
            (OBO, "secret", 1),
            ("refresh_token", "secret", 2),
            ("client_credentials", "secret", 1),
        ],
    );
    granted(
        &emulators,
        &[
            (OBO, "PS256", 1),
            ("refresh_token", "PS256", 2),
            ("client_credentials", "PS256", 1),
        ],
    );
    refused(&emulators, &[50_013, 50_013, 7_000_215]);
    Ok(())
}

/// Its synchronous half signs with RS256 and names the certificate by SHA-1, its asynchronous half as behalf does.
#[tokio::test(flavor = "multi_thread")]
async fn azure_identity() -> Result {
    let emulators = Emulators::start(Options {
        access_token_seconds: 2,
        // This client does not ask for one.
        always_refreshable: true,
        ..Options::default()
    })
    .await?;
    judge(
        &emulators,
        &python(),
        &root().join("runtime-tests/peers/azure_identity_entra.py"),
    )
    .await?;
    granted(
        &emulators,
        &[
            (OBO, "secret", 2),
            ("refresh_token", "secret", 1),
            ("client_credentials", "secret", 1),
        ],
    );
    granted(
        &emulators,
        &[
            (OBO, "PS256", 1),
            ("refresh_token", "PS256", 1),
            (OBO, "RS256", 1),
            ("client_credentials", "RS256", 1),
        ],
    );
    refused(&emulators, &[7_000_215]);
    Ok(())
}

/// With its check that the challenge's resource fits the vault's name.
#[tokio::test(flavor = "multi_thread")]
async fn azure_key_vault_secrets() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    judge(
        &emulators,
        &python(),
        &root().join("runtime-tests/peers/azure_key_vault.py"),
    )
    .await?;
    granted(&emulators, &[("client_credentials", "secret", 1)]);
    let journal = emulators.journal();
    let to_key_vault = journal
        .iter()
        .filter(|entry| entry.target == Target::KeyVault);
    let challenges = to_key_vault
        .clone()
        .filter(|entry| entry.status == Some(401));
    assert_eq!(challenges.count(), 1, "{journal:#?}");
    for (method, path) in [
        ("PUT", "/secrets/judged"),
        ("PATCH", "/secrets/judged/"),
        ("DELETE", "/secrets/judged"),
        ("POST", "/deletedsecrets/judged/recover"),
        ("DELETE", "/deletedsecrets/judged"),
    ] {
        assert!(
            to_key_vault
                .clone()
                .any(|entry| (&*entry.method, &*entry.path) == (method, path)
                    && entry.status.is_some_and(|status| status < 300)),
            "{method} {path}: {journal:#?}"
        );
    }
    Ok(())
}

/// Under the real names, over TLS and through the proxy of a company, as a pipeline there would.
#[tokio::test(flavor = "multi_thread")]
async fn azure_key_vault_secrets_takes_what_behalf_key_makes() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    let proxy = emulators.proxy().await?;
    let options = emulators.options();
    let settings = [
        ("client_id", &*options.client_id),
        ("client_secret", &options.client_secret),
        ("key_vault_url", "https://demo.vault.azure.net"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let operator = Operator::with(settings.to_vec())?.environment("HTTPS_PROXY", &proxy.url());
    proxy.write_authority(&operator.folder().join("authority.pem"))?;
    let rotate = [
        "key",
        "rotate",
        "--ca",
        "authority.pem",
        "--expires-in",
        "90d",
        "--tag",
        "team=identity",
        TENANT,
    ];
    for _ in 0..2 {
        let said = operator.run(&emulators, &rotate).await?;
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    let script = root().join("runtime-tests/peers/azure_key_vault_keys.py");
    let disabled = judge(&emulators, &python(), &script).await?;
    let disabled = disabled.trim();
    let is_enabled = || emulators.is_secret_enabled(&key_name(TENANT), disabled);
    assert_eq!(is_enabled(), Some(false));
    let enable = [
        "key",
        "retire",
        "--ca",
        "authority.pem",
        "--enable",
        TENANT,
        "--version",
        disabled,
    ];
    let said = operator.run(&emulators, &enable).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(is_enabled(), Some(true));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn msal_for_node() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    judge(
        &emulators,
        Path::new("node"),
        &root().join("target/peers/node/msal_node_entra.mjs"),
    )
    .await?;
    granted(
        &emulators,
        &[
            (OBO, "secret", 1),
            ("refresh_token", "secret", 1),
            ("client_credentials", "secret", 1),
        ],
    );
    granted(
        &emulators,
        &[
            (OBO, "PS256", 1),
            ("refresh_token", "PS256", 1),
            ("client_credentials", "PS256", 1),
        ],
    );
    refused(&emulators, &[7_000_215]);
    Ok(())
}

/// Runs a script, which has to end well, behind a proxy of its own; what it wrote.
async fn judge(emulators: &Emulators, program: &Path, script: &Path) -> anyhow::Result<String> {
    runtime_tests::peers::installed()?;
    let proxy = emulators.proxy().await?;
    let directory = tempfile::tempdir()?;
    let authority = directory.path().join("authority.pem");
    proxy.write_authority(&authority)?;
    let refresh_token = emulators.refresh_token();
    let certificate = emulators.credential("certificate");
    let setting = |name: &str| {
        let found = certificate.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let options = emulators.options();
    let in_an_hour = jiff::Timestamp::now().as_second().saturating_add(3600);

    let mut command = tokio::process::Command::new(program);
    command
        .arg(script)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", directory.path())
        .env("HTTPS_PROXY", proxy.url())
        .env("REQUESTS_CA_BUNDLE", &authority)
        .env("NODE_EXTRA_CA_CERTS", &authority)
        .env("TENANT", TENANT)
        .env("CLIENT_ID", &options.client_id)
        .env("CLIENT_SECRET", &options.client_secret)
        .env("CERTIFICATE", setting("certificate_pem"))
        .env("PRIVATE_KEY", setting("private_key_pem"))
        .env(
            "ASSERTION",
            emulators.caller().claim("exp", in_an_hour).mint(),
        )
        .env("REFRESH_TOKEN", refresh_token)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let run = command.output();
    let output = tokio::time::timeout(Duration::from_mins(2), run)
        .await
        .context("the judge takes too long")?
        .with_context(|| format!("cannot run {}", program.display()))?;
    anyhow::ensure!(
        output.status.success(),
        "{} ended with {}:\n{}\n{}",
        script.display(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Grants of the token endpoint, by grant and proof.
fn granted(emulators: &Emulators, expected: &[(&str, &str, usize)]) {
    let journal = emulators.journal();
    for (grant, proof, count) in expected {
        let seen = journal
            .iter()
            .filter(|entry| {
                entry.target == Target::EntraToken
                    && entry.status == Some(200)
                    && entry.grant.as_deref() == Some(*grant)
                    && entry.proof.as_deref() == Some(*proof)
            })
            .count();
        assert_eq!(seen, *count, "{grant} with {proof}: {journal:#?}");
    }
}

/// Refusals of the token endpoint, by number, and no others.
fn refused(emulators: &Emulators, expected: &[u32]) {
    let journal = emulators.journal();
    let mut seen: Vec<_> = journal.iter().filter_map(|entry| entry.aadsts).collect();
    seen.sort_unstable();
    assert_eq!(seen, expected);
}

/// `scripts/peers` installs it.
fn python() -> PathBuf {
    root().join("target/peers/python/bin/python")
}
