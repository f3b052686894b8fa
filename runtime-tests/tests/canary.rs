//! Every failure of the API, with every secret in play: none of them is in an answer, in the output or in the store, in
//! any form ([`runtime_tests::leaks`]). Other systems' answers are stuffed with secrets here, and so is what callers
//! send.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use reqwest::Method;
use runtime_tests::app::{App, Options, StartFailure};
use runtime_tests::emulators::{self, Answer, Emulators, Fault, TENANT, Target, key_name};
use runtime_tests::leaks::Secrets;
use runtime_tests::scene::Scene;
use serde_json::{Value, json};

type Result = anyhow::Result<()>;

const GRANTS: [&str; 3] = [
    "refresh_token",
    "urn:ietf:params:oauth:grant-type:jwt-bearer",
    "client_credentials",
];
const ME: &str = "/v1/me";
const ACCESS_TOKEN: &str = "/v1/me/access-token";
const SWEEP: &str = "/v1/sweep";

#[tokio::test(flavor = "multi_thread")]
async fn no_failure_shows_a_secret() -> Result {
    // Keys are not remembered for long, so that Key Vault's failures are met.
    let scene = Scene::with(emulators::Options::default(), |app| {
        app.set("key_cache_seconds", "1")
            .set("key_latest_seconds", "1")
            .set("key_vault_tenant", TENANT)
    })
    .await?;
    scene.enrol().await?;
    scene.draw().await?;
    let (place, record) = scene.store().record()?;
    let mut codes = std::collections::BTreeSet::new();

    // Secrets as what they are not: bearers, bodies, paths.
    for secret in scene.emulators.secrets() {
        for (method, path) in [
            (Method::GET, ME),
            (Method::PUT, ME),
            (Method::POST, ACCESS_TOKEN),
            (Method::POST, SWEEP),
        ] {
            let mut changed = secret.clone();
            changed.push('x');
            let answer = scene.send(method, path, Some(&changed), None).await?;
            codes.insert(answer.code().to_owned());
        }
        let caller = scene.emulators.caller().mint();
        for body in [
            json!({ "scope": secret }),
            json!({ "claims": secret }),
            json!({ "claims": { "x": secret } }),
            json!({ secret.clone(): secret }),
            json!([secret]),
            json!(secret),
        ] {
            for (method, path) in [(Method::PUT, ME), (Method::POST, ACCESS_TOKEN)] {
                let answer = scene.send(method, path, Some(&caller), Some(&body)).await?;
                codes.insert(answer.code().to_owned());
            }
        }
        for path in [
            format!("/v1/me/{secret}"),
            format!("/{secret}"),
            format!("/healthz/{secret}"),
        ] {
            let answer = scene.send(Method::GET, &path, Some(&caller), None).await?;
            codes.insert(answer.code().to_owned());
        }
        for broken in [format!("{{\"scope\":\"{secret}"), secret.clone()] {
            let request = scene.app.request(Method::PUT, ME).bearer_auth(&caller);
            let response = request.body(broken).send().await?;
            let answer = runtime_tests::app::Answer::read(response).await?;
            codes.insert(answer.code().to_owned());
            scene.remember(&answer, ME);
        }
    }

    // Other systems that say what they were told.
    for fault in stuffed(&scene.emulators.secrets()) {
        if fault.target != Target::EntraToken {
            // Until keys are forgotten, and with its instance the signing keys.
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        scene.store().make_due()?;
        for (method, path) in [
            (Method::POST, ACCESS_TOKEN),
            (Method::PUT, ME),
            (Method::POST, SWEEP),
        ] {
            scene.emulators.fault(fault.clone().times(4));
            if path == SWEEP {
                scene.sweep().await?;
            } else {
                let answer = scene.call(method, path).await?;
                codes.insert(answer.code().to_owned());
            }
            scene.emulators.clear_faults();
        }
        scene.call(Method::PUT, ME).await?;
    }

    // What is stored is no record, or another's.
    let damaged = |member: &str, value: Value| {
        let mut record = record.clone();
        record[member] = value;
        record
    };
    let sealed = record["sealed"].as_str().unwrap();
    let key = scene
        .emulators
        .secret(&key_name(TENANT), record["key_version"].as_str().unwrap());
    for stored in [
        json!(null),
        damaged("v", json!(2)),
        damaged("sealed", json!("")),
        damaged("sealed", json!(&sealed[1..])),
        damaged("sealed", json!(format!("{}A", &sealed[..sealed.len() - 1]))),
        damaged("tenant", json!("x")),
    ] {
        let place = scene.store().record().map_or(place.clone(), |it| it.0);
        scene
            .store()
            .replace(&place, &serde_json::to_vec(&stored)?)?;
        for (method, path) in [(Method::GET, ME), (Method::POST, ACCESS_TOKEN)] {
            codes.insert(scene.call(method, path).await?.code().to_owned());
        }
        scene.sweep().await?;
        scene.call(Method::PUT, ME).await?;
    }

    // Keys that are gone, disabled or none.
    let name = key_name(TENANT);
    scene.emulators.set_secret_enabled(&name, None, false)?;
    key_fails(&scene, &mut codes).await?;
    scene
        .emulators
        .put_secret(&name, &format!("{}!", key.unwrap()))?;
    key_fails(&scene, &mut codes).await?;
    scene.emulators.delete_secret(&name)?;
    key_fails(&scene, &mut codes).await?;

    // The failures were met: the search looked where it should.
    for code in [
        "token_malformed",
        "sweep_not_authorized",
        "invalid_json",
        "invalid_request",
        "scope_not_granted",
        "not_found",
        "interaction_required",
        "reenrolment_required",
        "entra_refused",
        "entra_unavailable",
        "entra_gave_no_refresh_token",
        "key_vault_refused",
        "key_vault_unavailable",
        "key_disabled",
        "key_malformed",
        "key_not_found",
        "record_damaged",
        "record_too_new",
        "signing_keys_unavailable",
    ] {
        assert!(codes.contains(code), "{code} was not met: {codes:?}");
    }
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_the_wrong_setting_is_not_shown() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let canary = "canary-4f0c7e1b9d2a-short";
    let mut secrets = emulators.secrets();
    secrets.push(canary.to_owned());
    let secrets = Secrets::new(&secrets);
    let mut refused = 0;
    for name in [
        "client_id",
        "client_secret",
        "tenants",
        "key_vault_url",
        "authority",
        "scope",
        "secret_id_template",
        "key_cache_seconds",
        "sweep_key",
        "sweep_key_previous",
    ] {
        let options = Options::for_emulators(&emulators).set(name, &format!("{canary}/{{x}}"));
        let output = match App::start(options).await {
            Ok(app) => {
                // Spin starts it all the same, and each answer says why it does not work.
                let answer = app.send(Method::GET, "/healthz", None, None).await?;
                refused += u32::from(answer.code() == "setting");
                let mut output = app.stop().await?;
                output.push(answer.text);
                output
            }
            Err(error) => {
                refused += 1;
                error.downcast::<StartFailure>()?.output
            }
        };
        for line in output {
            assert_eq!(secrets.found_in(&line), None, "{name}: {line}");
        }
    }
    assert!(refused > 6, "only {refused} settings were refused");
    Ok(())
}

/// The search finds what is put there for it to find: a refresh token in the store, in base64 within something else.
#[tokio::test(flavor = "multi_thread")]
async fn a_leak_that_is_planted_is_found() -> Result {
    for plant in [
        |secret: &str| secret.to_owned(),
        |secret: &str| BASE64_STANDARD.encode(format!("\"{secret}\"")),
        |secret: &str| BASE64_URL_SAFE_NO_PAD.encode(format!("ab{secret}c")),
        |secret: &str| format!("{:?}", secret.as_bytes()),
    ] {
        let scene = Scene::start().await?;
        scene.enrol().await?;
        let (place, mut record) = scene.store().record()?;
        let secrets = scene.emulators.secrets();
        record["scope"] = json!(plant(secrets.last().unwrap()));
        scene
            .store()
            .replace(&place, &serde_json::to_vec(&record)?)?;
        let error = scene.end().await.unwrap_err().to_string();
        assert!(error.starts_with("secret "), "{error}");
    }
    Ok(())
}

/// Answers of other systems with all these secrets in all their texts.
fn stuffed(secrets: &[String]) -> Vec<Fault> {
    let all = secrets.join(" ");
    // An answer of over 256 KiB would not be read at all.
    let some = secrets[secrets.len().saturating_sub(8)..].join(" ");
    assert!(all.len() + 5 * some.len() < 200 * 1024);
    let status = |target: Target, status: u16, body: &Value| {
        Fault::new(
            target,
            Answer::Status {
                status,
                body: body.to_string(),
                content_type: "application/json".to_owned(),
            },
        )
    };
    let mut faults = Vec::new();
    // A token that Key Vault will refuse, and answers to users that lack a refresh token.
    let granted =
        json!({"access_token": all, "token_type": "Bearer", "expires_in": 3599, "scope": "s"});
    for grant in GRANTS {
        faults.push(status(Target::EntraToken, 200, &granted).grant(grant));
    }
    // What is transient comes last: it makes the app leave Entra ID alone for a while.
    for (error, code) in [
        ("invalid_grant", 50_173),
        ("invalid_grant", 500_133),
        ("interaction_required", 50_076),
        ("invalid_client", 7_000_215),
        ("unauthorized_client", 700_016),
        ("temporarily_unavailable", 90_033),
        (&*all, 1),
    ] {
        let body = json!({
            "error": error, "error_codes": [code], "error_description": format!("AADSTS{code}: {all}"),
            "suberror": some, "trace_id": some, "correlation_id": some, "timestamp": some, "error_uri": some,
        });
        for grant in GRANTS {
            faults.push(status(Target::EntraToken, 400, &body).grant(grant));
        }
    }
    for http in [200, 500] {
        faults.push(status(Target::EntraToken, http, &json!({ "error": all })));
        faults.push(status(Target::EntraToken, http, &json!(all)));
    }
    for http in [200, 401, 403, 500] {
        let error = json!({"code": all, "message": all, "innererror": {"code": all}});
        faults.push(status(
            Target::KeyVault,
            http,
            &json!({"error": error, "value": all, "id": all, "attributes": {"exp": all}}),
        ));
        faults.push(status(Target::KeyVault, http, &json!(all)));
    }
    faults.push(status(Target::Jwks, 500, &json!(all)));
    faults.push(status(
        Target::Jwks,
        200,
        &json!({ "keys": [{ "kid": all }] }),
    ));
    faults
}

/// Enrols until the key's failure shows: a cache of one second is in the way.
async fn key_fails(scene: &Scene, codes: &mut std::collections::BTreeSet<String>) -> Result {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answer = scene.call(Method::PUT, ME).await?;
        codes.insert(answer.code().to_owned());
        if answer.status == 500 {
            scene.call(Method::POST, ACCESS_TOKEN).await?;
            scene.sweep().await?;
            return Ok(());
        }
        anyhow::ensure!(std::time::Instant::now() < deadline, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
