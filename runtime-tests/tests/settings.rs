//! A setting that is missing or wrong stops the start, with one line that names it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use runtime_tests::app::{App, Options, StartFailure};
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
