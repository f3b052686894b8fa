//! Every way in which the app proves who it is, to Entra ID and to Key Vault.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::time::Duration;

use reqwest::{Method, StatusCode};
use runtime_tests::app::{self, App};
use runtime_tests::emulators::{Answer, Emulators, Fault, Options, Target};
use runtime_tests::scene::Scene;

type Result = anyhow::Result<()>;
type Settings = Vec<(String, String)>;
/// Settings that depend on the emulators.
type Make = Box<dyn FnOnce(&Emulators) -> Settings>;

/// A scene whose app has these settings besides, which depend on the emulators. In one instance, because what it asks for is
/// counted, and another would ask again.
async fn scene(settings: impl FnOnce(&Emulators) -> Settings) -> anyhow::Result<Scene> {
    let emulators = Emulators::start(Options::default()).await?;
    let mut options = app::Options::for_emulators(&emulators);
    options.settings.extend(settings(&emulators));
    let app = App::start(options.one_instance()).await?;
    Ok(Scene::of(emulators, app))
}

fn named(settings: Vec<(&'static str, String)>) -> Settings {
    settings
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// How the app proved itself, at each request to the token endpoint.
fn proofs(scene: &Scene) -> Vec<String> {
    let entries = scene.emulators.journal().into_iter();
    entries.filter_map(|entry| entry.proof).collect()
}

fn identity_requests(scene: &Scene) -> usize {
    let entries = scene.emulators.journal().into_iter();
    entries
        .filter(|entry| entry.target == Target::ManagedIdentity)
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_enough() -> Result {
    let scene = scene(|emulators| emulators.credential("certificate")).await?;
    scene.enrol().await?;
    scene.draw().await?;
    assert_eq!(proofs(&scene), ["PS256"; 3]);
    scene.end().await?;
    Ok(())
}

/// As Key Vault exports one: key and certificate in one text, given to both settings.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_can_come_in_a_bundle() -> Result {
    let scene = scene(|emulators| {
        let mut settings = emulators.credential("certificate");
        let pem = |name: &str| {
            let mut all = settings.iter();
            let (_, value) = all.find(|(known, _)| known == name).unwrap();
            value.clone()
        };
        let (key, certificate) = (pem("private_key_pem"), pem("certificate_pem"));
        let bundle = format!("{key}{certificate}").replace('\n', "\r\n");
        let both = ["certificate_pem", "private_key_pem"];
        settings.extend(both.map(|name| (name.to_owned(), bundle.clone())));
        settings
    })
    .await?;
    scene.enrol().await?;
    scene.draw().await?;
    assert_eq!(proofs(&scene), ["PS256"; 3]);
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_issuer_is_enough() -> Result {
    let scene = scene(|emulators| emulators.credential("federated-token")).await?;
    scene.enrol().await?;
    scene.draw().await?;
    assert_eq!(proofs(&scene), ["RS256"; 3]);
    scene.end().await?;
    Ok(())
}

/// As Kubernetes renews the token of a service account: it makes a folder, and lets a link point there.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_a_file_that_is_renewed_is_read_anew() -> Result {
    let volume = tempfile::tempdir()?;
    let inside = |name: &str| volume.path().join(name);
    let renew = |folder: &str, token: &str| -> Result {
        std::fs::create_dir(inside(folder))?;
        std::fs::write(inside(folder).join("token"), token)?;
        std::os::unix::fs::symlink(folder, inside("..data_tmp"))?;
        Ok(std::fs::rename(inside("..data_tmp"), inside("..data"))?)
    };
    let emulators = Emulators::start(Options::default()).await?;
    let mut settings = emulators.credential("federated-token");
    let at = settings
        .iter()
        .position(|(name, _)| name == "federated_token");
    let (_, good) = settings.remove(at.unwrap());
    renew("..1", &good)?;
    std::os::unix::fs::symlink("..data/token", inside("token"))?;

    let mut options = app::Options::for_emulators(&emulators);
    options.settings.extend(settings);
    // Spin's environment is what it is from the start.
    options.embedded = Some(Vec::new());
    let file = format!("federated_token={}", inside("token").display());
    let options = options
        .one_instance()
        .arguments(&["--variable-file", &file]);
    let scene = Scene::of(emulators, App::start(options).await?);
    scene.enrol().await?;

    // One that Entra ID does not take: it is that which is shown now, within the ten seconds of settings. Then another one.
    for (folder, token, expected) in [
        (
            "..2",
            scene.emulators.caller().mint(),
            StatusCode::INTERNAL_SERVER_ERROR,
        ),
        ("..3", good, StatusCode::OK),
    ] {
        renew(folder, &token)?;
        let mut seen = None;
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            let answer = scene.call(Method::PUT, "/v1/me").await?;
            seen = Some((answer.status, answer.code().to_owned()));
            if answer.status == expected {
                break;
            }
        }
        let (status, code) = seen.unwrap();
        assert_eq!(status, expected, "{code}");
        if status != StatusCode::OK {
            assert_eq!(code, "credential_refused");
        }
    }
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managed_identity_is_enough_for_both() -> Result {
    let scene = scene(|emulators| {
        let mut settings = emulators.credential("managed-identity");
        settings.push((
            "key_vault_credential".to_owned(),
            "managed-identity".to_owned(),
        ));
        settings
    })
    .await?;
    scene.enrol().await?;
    scene.draw().await?;
    // Key Vault's token did not come from Entra ID.
    assert_eq!(proofs(&scene), ["RS256"; 2]);
    assert_eq!(identity_requests(&scene), 2, "one token a resource");
    scene.end().await?;
    Ok(())
}

/// On Container Apps the platform says where its endpoint is, and the host hands that on.
#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_identity_is_found_by_what_the_platform_sets() -> Result {
    let emulators = Emulators::start(Options::default()).await?;
    let platform = |named: &str| {
        let mut of_platform = emulators.app_service().into_iter();
        of_platform.find(|(name, _)| *name == named).unwrap().1
    };
    let both = vec![
        (
            "IDENTITY_ENDPOINT".to_owned(),
            platform("identity_endpoint"),
        ),
        ("IDENTITY_HEADER".to_owned(), platform("identity_header")),
    ];
    let options = |variables: &[(String, String)]| app::Options {
        variables: variables.to_vec(),
        // Spin has no such option.
        embedded: Some(Vec::new()),
        ..app::Options::for_emulators(&emulators)
            .set("credential", "managed-identity")
            .set("key_vault_credential", "managed-identity")
            .arguments(&["--platform-identity"])
            .one_instance()
    };
    for (missing, (name, _)) in both.iter().enumerate() {
        let mut one = both.clone();
        one.remove(missing);
        let failure = App::start(options(&one)).await.err().unwrap();
        let failure = failure.downcast::<app::StartFailure>()?;
        assert_eq!(failure.code, Some(2), "{failure}");
        assert!(failure.to_string().contains(name), "{failure}");
    }
    let app = App::start(options(&both)).await?;
    let scene = Scene::of(emulators, app);
    scene.enrol().await?;
    scene.draw().await?;
    assert_eq!(proofs(&scene), ["RS256"; 2]);
    assert_eq!(identity_requests(&scene), 2, "one token a resource");
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_service_that_is_being_upgraded_is_waited_for() -> Result {
    let scene = scene(|emulators| {
        let mut settings = named(emulators.metadata_service());
        settings.push((
            "key_vault_credential".to_owned(),
            "managed-identity".to_owned(),
        ));
        settings
    })
    .await?;
    let answer = Answer::Status {
        status: 410,
        body: String::new(),
        content_type: "text/plain".to_owned(),
    };
    scene
        .emulators
        .fault(Fault::new(Target::ManagedIdentity, answer));
    scene.enrol().await?;
    assert_eq!(proofs(&scene), ["secret"]);
    assert_eq!(identity_requests(&scene), 2);
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_one_names_the_setting_and_changes_nothing() -> Result {
    let set = |mut settings: Settings, name: &str, value: &str| {
        settings.push((name.to_owned(), value.to_owned()));
        settings
    };
    let cases: [(Make, &str, Option<&str>); 4] = [
        (
            Box::new(move |emulators| {
                set(
                    emulators.credential("certificate"),
                    "client_id",
                    "99999999-3333-4333-8333-333333333333",
                )
            }),
            "client_id",
            Some("AADSTS700016"),
        ),
        (
            Box::new(move |emulators| {
                let token = emulators.caller().mint();
                set(
                    emulators.credential("federated-token"),
                    "federated_token",
                    &token,
                )
            }),
            "federated_token",
            Some("AADSTS700212"),
        ),
        (
            Box::new(move |emulators| {
                set(
                    emulators.credential("managed-identity"),
                    "identity_header",
                    "another",
                )
            }),
            "identity_header",
            None,
        ),
        (
            Box::new(move |emulators| {
                let mut settings = named(emulators.metadata_service());
                settings.push(("credential".to_owned(), "managed-identity".to_owned()));
                set(
                    settings,
                    "managed_identity_client_id",
                    "99999999-3333-4333-8333-333333333333",
                )
            }),
            "managed_identity_client_id",
            None,
        ),
    ];
    for (settings, name, number) in cases {
        let scene = scene(settings).await?;
        let mut caller = scene.emulators.caller();
        if name == "client_id" {
            caller = caller.claim("aud", "99999999-3333-4333-8333-333333333333");
        }
        let token = caller.mint();
        let before = scene.rows()?;
        let answer = scene
            .send(Method::PUT, "/v1/me", Some(&token), None)
            .await?;
        let code = if name == "client_id" {
            "key_vault_token_refused"
        } else {
            "credential_refused"
        };
        scene.refused(&answer, 500, code, &before)?;
        // For whoever operates the app, and not for its callers.
        assert!(!answer.json["detail"].as_str().unwrap().contains(name));
        let id = answer.json["request_id"].as_str().unwrap().to_owned();
        let output = scene.end().await?;
        let told = why(&output, &id);
        assert!(
            told.contains(name) && number.is_none_or(|number| told.contains(number)),
            "{told}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_client_secret_is_the_operators_fault() -> Result {
    let scene = Scene::with(Options::default(), |app| {
        app.set("client_secret", "not-the-client-secret-of-this-app")
    })
    .await?;
    let before = scene.rows()?;
    let answer = scene.call(Method::PUT, "/v1/me").await?;
    scene.refused(&answer, 500, "credential_refused", &before)?;
    let id = answer.json["request_id"].as_str().unwrap().to_owned();
    assert!(
        scene
            .emulators
            .journal()
            .iter()
            .any(|entry| entry.aadsts == Some(7_000_215))
    );
    assert!(!answer.text.contains("not-the-client-secret"));
    let output = scene.end().await?;
    let told = why(&output, &id);
    assert!(
        told.contains("client_secret") && told.contains("AADSTS7000215"),
        "{told}"
    );
    assert!(!output.join("\n").contains("not-the-client-secret"));
    Ok(())
}

/// The line that says why a request failed, beside the one that says whose it was.
fn why<'a>(output: &'a [String], id: &str) -> &'a str {
    let mut of_request = output.iter().filter(|line| line.contains(id));
    let told = of_request.find(|line| line.contains("\"event\":\"request_failed\""));
    told.unwrap()
}
