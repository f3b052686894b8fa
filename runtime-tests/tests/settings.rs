//! A setting that is missing or wrong stops the start, with one line that names it, and so does each of several. Spin asks no
//! app before it serves; there each answer says it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use reqwest::Method;
use runtime_tests::app::{App, Options, StartFailure, is_on_spin};
use runtime_tests::emulators::{self, Emulators};
use runtime_tests::scene::Scene;

type Result = anyhow::Result<()>;

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_setting_stops_the_start() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    for (name, value) in [
        ("client_id", ""),
        ("client_id", "api://33333333-3333-4333-8333-333333333333"),
        ("client_id", "{33333333-3333-4333-8333-333333333333}"),
        ("operator_tenant", "contoso.example"),
        ("key_vault_scope", "https://vault.azure.net"),
        ("authority", "https://contoso.ciamlogin.com"),
        ("tenants", "9188040d-6c67-4c5b-b112-36a304b66dad"),
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
        let output = failed_start(options).await?;
        let naming: Vec<_> = output.iter().filter(|line| line.contains(name)).collect();
        assert_eq!(
            naming.len(),
            1,
            "{name}={value}: one line that names it\n{}",
            output.join("\n")
        );
        let variable = format!("SPIN_VARIABLE_{}", name.to_ascii_uppercase());
        assert!(naming[0].contains(&variable), "{}", naming[0]);
        for secret in emulators.secrets() {
            assert!(!output.iter().any(|line| line.contains(&secret)));
        }
    }
    assert!(emulators.journal().is_empty(), "nobody was asked");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_is_told_at_once() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let wrong = [
        ("client_id", "api://x"),
        ("key_vault_scope", "https://vault.azure.net"),
        ("sweep_key", "too-short"),
        ("sweep_seconds", "soon"),
    ];
    let mut options = Options::for_emulators(&emulators);
    for (name, value) in wrong {
        options = options.set(name, value);
    }
    if is_on_spin() {
        for (name, _) in wrong {
            says_so(options.clone(), &emulators, name).await?;
        }
        return Ok(());
    }
    let output = failed_start(options).await?;
    for (name, _) in wrong {
        let variable = format!("SPIN_VARIABLE_{})", name.to_ascii_uppercase());
        let naming = output.iter().filter(|line| line.contains(&variable));
        assert_eq!(naming.count(), 1, "{name}\n{}", output.join("\n"));
    }
    assert!(emulators.journal().is_empty(), "nobody was asked");
    Ok(())
}

/// Of the settings alone: tokens, and what is stored, have them in lower case.
#[tokio::test(flavor = "multi_thread")]
async fn the_case_of_an_id_is_nothing() -> Result {
    let upper = |id: &str| id.to_ascii_uppercase();
    let emulators = Emulators::start(emulators::Options {
        client_id: "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee".to_owned(),
        ..emulators::Options::default()
    })
    .await?;
    let directory = tempfile::tempdir()?;
    let as_written = Options::for_emulators(&emulators).state_dir(directory.path());
    let in_upper_case = as_written
        .clone()
        .set("client_id", &upper(&emulators.options().client_id));
    let scene = Scene::of(emulators, App::start(in_upper_case).await?);
    scene.enrol().await?;
    scene.draw().await?;
    let app = App::start(as_written).await?;
    let token = scene.emulators.caller().mint();
    let drawn = app
        .send(Method::POST, "/v1/me/access-token", Some(&token), None)
        .await?;
    scene.remember(&drawn, "/v1/me/access-token");
    assert_eq!(drawn.status, 200, "{drawn:?}");
    let mut output = app.stop().await?;
    output.extend(scene.end().await?);
    assert!(!output.join("\n").contains("alarm"), "{output:?}");
    Ok(())
}

/// What the app says instead of serving.
async fn failed_start(options: Options) -> anyhow::Result<Vec<String>> {
    let failure = App::start(options)
        .await
        .err()
        .map(anyhow::Error::downcast::<StartFailure>);
    let Some(Ok(StartFailure { code, output })) = failure else {
        anyhow::bail!("expected a failed start, seen {failure:?}");
    };
    assert!(code.is_some_and(|code| code != 0), "exit code {code:?}");
    Ok(output)
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
