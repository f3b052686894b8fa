//! A setting that is missing or wrong stops the start, with one line that names it. Spin asks no app before it serves; there
//! each answer says it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use reqwest::Method;
use runtime_tests::app::{App, Options, StartFailure, is_on_spin};
use runtime_tests::emulators::{self, Emulators};

type Result = anyhow::Result<()>;

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_setting_stops_the_start() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    for (name, value) in [
        ("client_id", ""),
        ("tenants", ""),
        ("tenants", "contoso.example"),
        ("client_secret", ""),
        ("key_vault_url", ""),
        ("key_vault_url", "http://vault.example"),
        ("authority", "login.microsoftonline.com"),
        ("authority", "http://login.microsoftonline.com"),
        ("credential", "password"),
        ("required_scope", ""),
        ("scope", "User.Read"),
        ("sweep_key", "too-short"),
        ("user_id_template", "{oid}"),
        ("secret_id_template", "one-key-for-all"),
        ("refresh_after_seconds", "soon"),
        ("store_prefix", "a/b"),
    ] {
        let options = Options::for_emulators(&emulators).set(name, value);
        if is_on_spin() {
            says_so(options, &emulators, name).await?;
            continue;
        }
        let failure = App::start(options)
            .await
            .err()
            .map(anyhow::Error::downcast::<StartFailure>);
        let Some(Ok(StartFailure { code, output })) = failure else {
            anyhow::bail!("{name}={value}: expected a failed start, seen {failure:?}");
        };
        assert!(
            code.is_some_and(|code| code != 0),
            "{name}: exit code {code:?}"
        );
        let naming: Vec<_> = output.iter().filter(|line| line.contains(name)).collect();
        assert_eq!(
            naming.len(),
            1,
            "{name}={value}: one line that names it\n{}",
            output.join("\n")
        );
        for secret in emulators.secrets() {
            assert!(!output.iter().any(|line| line.contains(&secret)));
        }
    }
    assert!(emulators.journal().is_empty(), "nobody was asked");
    Ok(())
}

/// The app starts, and each of its answers names the setting.
async fn says_so(options: Options, emulators: &Emulators, name: &str) -> Result {
    let app = App::start(options).await?;
    let token = emulators.caller().mint();
    for (method, path) in [
        (Method::GET, "/healthz"),
        (Method::GET, "/readyz"),
        (Method::PUT, "/v1/me"),
    ] {
        let answer = app.send(method, path, Some(&token), None).await?;
        anyhow::ensure!(
            answer.status == 500 && answer.code() == "setting" && answer.text.contains(name),
            "{name}: {path}: {answer:?}"
        );
        for secret in emulators.secrets() {
            assert!(!answer.text.contains(&secret));
        }
    }
    app.stop().await?;
    Ok(())
}
