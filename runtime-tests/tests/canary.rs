//! Every failure of the API, with every secret in play: none of them is in an answer, in the output or in the store, in
//! any form ([`runtime_tests::leaks`]). Other systems' answers are stuffed with secrets here, and so is what callers
//! send.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use reqwest::Method;
use runtime_tests::app::{App, Options, StartFailure, root};
use runtime_tests::emulators::{
    self, Answer, Emulators, Fault, OTHER_TENANT, OTHER_USER, Signature, TENANT, Target, USER,
    key_name,
};
use runtime_tests::leaks::Secrets;
use runtime_tests::scene::Scene;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

type Result = anyhow::Result<()>;

const GRANTS: [&str; 3] = [
    "refresh_token",
    "urn:ietf:params:oauth:grant-type:jwt-bearer",
    "client_credentials",
];
const ME: &str = "/v1/me";
const ACCESS_TOKEN: &str = "/v1/me/access-token";
const SWEEP: &str = "/v1/sweep";
/// An app that nothing is granted to.
const ANOTHER_APP: &str = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb";
/// The demo user, and what an app draws for them.
const USER_PATH: &str =
    "/v1/users/11111111-1111-4111-8111-111111111111/44444444-4444-4444-8444-444444444444";
const USER_ACCESS_TOKEN: &str = "/v1/users/11111111-1111-4111-8111-111111111111/44444444-4444-4444-8444-444444444444/access-token";

/// Codes of [`no_failure_shows_a_secret`].
const STUFFED: [&str; 22] = [
    "api_unknown",
    "call_not_allowed",
    "token_malformed",
    "sweep_not_authorized",
    "invalid_json",
    "invalid_request",
    "not_found",
    "invalid_scope",
    "interaction_required",
    "organisation_required",
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
];
/// Codes of [`no_refusal_shows_a_secret`].
const REFUSED: [&str; 24] = [
    "not_granted",
    "body_broken_off",
    "token_missing",
    "token_wrong_algorithm",
    "token_proof_of_possession",
    "token_unknown_key",
    "token_bad_signature",
    "token_wrong_issuer",
    "token_wrong_audience",
    "token_expired",
    "token_not_yet_valid",
    "token_rejected",
    "tenant_not_allowed",
    "account_not_supported",
    "insufficient_scope",
    "not_enrolled",
    "method_not_allowed",
    "body_too_large",
    "no_refresh_token",
    "key_not_valid",
    "key_vault_forbidden",
    "key_vault_firewall",
    "record_not_bound",
    "record_lost",
];
/// Codes of [`no_failure_shows_a_credential`].
const OF_CREDENTIALS: [&str; 2] = ["credential_refused", "managed_identity_unavailable"];
/// Codes that another test meets, cases with the same search at their end: a file, and a text of it.
const ELSEWHERE: [(&str, &str); 13] = [
    (
        "api_unreachable",
        "runtime-tests/cases/call-api-fails.toml code = \"api_unreachable\"",
    ),
    (
        "api_garbled",
        "runtime-tests/cases/call-api-fails.toml code = \"api_garbled\"",
    ),
    (
        "api_timed_out",
        "runtime-tests/cases/call-api-fails.toml code = \"api_timed_out\"",
    ),
    (
        "user_routes_off",
        "runtime-tests/cases/user-routes-off.toml code = \"user_routes_off\"",
    ),
    (
        "settings_changed",
        "runtime-tests/cases/settings-changed.toml code = \"settings_changed\"",
    ),
    (
        "tenant_not_onboarded",
        "runtime-tests/cases/key-is-none.toml code = \"tenant_not_onboarded\"",
    ),
    (
        "setting",
        "runtime-tests/tests/canary.rs fn a_secret_in_the_wrong_setting_is_not_shown",
    ),
    (
        "store_unavailable",
        "runtime-tests/cases/store-is-locked.toml code = \"store_unavailable\"",
    ),
    (
        "tenant_being_removed",
        "runtime-tests/cases/tenant-is-removed.toml code = \"tenant_being_removed\"",
    ),
    (
        "key_vault_token_refused",
        "runtime-tests/cases/key-vault-token-is-refused.toml code = \"key_vault_token_refused\"",
    ),
    ("busy", "runtime-tests/cases/busy.toml code = \"busy\""),
    (
        "body_too_slow",
        "runtime-tests/cases/errors-of-the-request.toml code = \"body_too_slow\"",
    ),
    (
        "key_worn_out",
        "src/core/vault/tests/enrolments.rs fn a_key_that_is_worn_out_opens_but_does_not_seal",
    ),
];

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
    let mut codes = BTreeSet::new();
    // Once: every token that there is, is said by the stuffed answers, and longer ones would not be read.
    let job = scene.emulators.caller().app(&["Behalf.Act"]).mint();

    // Secrets as what they are not: bearers, bodies, paths.
    for secret in scene.emulators.secrets() {
        for (method, path) in [
            (Method::GET, ME),
            (Method::PUT, ME),
            (Method::POST, ACCESS_TOKEN),
            (Method::GET, USER_PATH),
            (Method::DELETE, USER_PATH),
            (Method::POST, USER_ACCESS_TOKEN),
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
            json!({ "scope": format!("{secret}/.default") }),
            json!({ "claims": secret }),
            json!({ "claims": { "x": secret } }),
            json!({ secret.clone(): secret }),
            json!([secret]),
            json!(secret),
        ] {
            for (method, path, caller) in [
                (Method::PUT, ME, &caller),
                (Method::POST, ACCESS_TOKEN, &caller),
                (Method::POST, USER_ACCESS_TOKEN, &job),
            ] {
                let answer = scene.send(method, path, Some(caller), Some(&body)).await?;
                codes.insert(answer.code().to_owned());
            }
        }
        for path in [
            format!("/v1/me/{secret}"),
            format!("/{secret}"),
            format!("/healthz/{secret}"),
            format!("/v1/users/{secret}/{secret}"),
            format!("/v1/users/{TENANT}/{secret}"),
            format!("{USER_PATH}/{secret}"),
            format!("/v1/me/call/{secret}/v1.0/me"),
            format!("/v1/me/call/graph/{secret}"),
            format!("/v1/me/call/graph/v1.0/me/{secret}?{secret}"),
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
        // No loop of one user: each is a story of its own.
        scene.emulators.pass(Duration::from_mins(5));
        if fault.target != Target::EntraToken {
            // Until keys are forgotten, and with its instance the signing keys.
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        scene.store().make_due()?;
        let scope = json!({"scope": "https://graph.microsoft.com/User.Read"});
        for (method, path, body) in [
            (Method::POST, ACCESS_TOKEN, None),
            (Method::POST, ACCESS_TOKEN, Some(&scope)),
            (Method::PUT, ME, None),
            (Method::POST, SWEEP, None),
            (Method::POST, USER_ACCESS_TOKEN, None),
        ] {
            scene.emulators.fault(fault.clone().times(4));
            if path == SWEEP {
                scene.sweep().await?;
            } else {
                let user = scene.emulators.caller().mint();
                let is_jobs = path == USER_ACCESS_TOKEN;
                let caller = if is_jobs { &job } else { &user };
                let answer = scene.send(method, path, Some(caller), body).await?;
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
        let answer = scene.send(Method::POST, USER_ACCESS_TOKEN, Some(&job), None);
        codes.insert(answer.await?.code().to_owned());
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

    met(&codes, &STUFFED);
    scene.end().await?;
    Ok(())
}

/// What is wrong with the request or the store alone: no other system has to say anything.
#[tokio::test(flavor = "multi_thread")]
async fn no_refusal_shows_a_secret() -> Result {
    let scene = Scene::with(emulators::Options::default(), |app| {
        app.set("key_cache_seconds", "1")
            .set("key_latest_seconds", "1")
            .set("key_vault_tenant", TENANT)
    })
    .await?;
    let mut codes = BTreeSet::new();
    let caller = || scene.emulators.caller();
    let now = jiff::Timestamp::now().as_second();
    let not_yet_enrolled = scene.call(Method::GET, ME).await?;
    codes.insert(not_yet_enrolled.code().to_owned());
    scene.enrol().await?;
    for token in [
        String::new(),
        caller().signature(Signature::None).mint(),
        caller().signature(Signature::UnknownKey).mint(),
        caller().signature(Signature::Broken).mint(),
        caller().claim("iss", "https://evil.example/").mint(),
        caller().claim("aud", "https://graph.microsoft.com").mint(),
        caller().claim("exp", now - 301).mint(),
        caller().claim("nbf", now + 3600).mint(),
        caller().claim("scp", "other").mint(),
        caller()
            .app(&["Behalf.Act"])
            .claim("azp", ANOTHER_APP)
            .mint(),
        caller().app(&["Behalf.Act"]).tenant(OTHER_TENANT).mint(),
        caller().app(&["Behalf.Read"]).mint(),
        caller().claim("cnf", json!({ "kid": "k" })).mint(),
        caller()
            .claim("iss", "https://contoso.b2clogin.com/x/v2.0/")
            .mint(),
        caller()
            .tenant("99999999-9999-4999-8999-999999999999")
            .mint(),
    ] {
        for (method, path) in [
            (Method::GET, ME),
            (Method::PUT, ME),
            (Method::POST, ACCESS_TOKEN),
            (Method::PATCH, ME),
            (Method::GET, USER_PATH),
            (Method::DELETE, USER_PATH),
            (Method::POST, USER_ACCESS_TOKEN),
        ] {
            let answer = scene.send(method, path, Some(&token), None).await?;
            codes.insert(answer.code().to_owned());
        }
    }
    let secrets = scene.emulators.secrets().join(" ");
    codes.insert(broken_off(&scene, &secrets).await?);
    let long = json!({ "scope": secrets.repeat(64 * 1024 / secrets.len() + 1) });
    let answer = scene
        .send(Method::PUT, ME, Some(&caller().mint()), Some(&long))
        .await?;
    codes.insert(answer.code().to_owned());

    // What Entra ID and Key Vault refuse, with the message that each has for it.
    let key_vault = |inner: &str| Answer::KeyVault {
        status: 403,
        code: "Forbidden".to_owned(),
        inner: Some(inner.to_owned()),
    };
    for fault in [
        Fault::entra(500_133).grant(GRANTS[1]),
        Fault::entra(7_000_215).grant(GRANTS[1]),
        Fault::new(Target::KeyVault, key_vault("ForbiddenByRbac")),
        Fault::new(Target::KeyVault, key_vault("ForbiddenByFirewall")),
    ] {
        // Until the key is forgotten.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        scene.emulators.fault(fault);
        codes.insert(scene.call(Method::PUT, ME).await?.code().to_owned());
        scene.emulators.clear_faults();
    }
    let name = key_name(TENANT);
    let (_, record) = scene.store().record()?;
    let version = record["key_version"].as_str().unwrap();
    let expired = json!({
        "value": scene.emulators.secret(&name, version), "attributes": { "exp": 1 },
        "id": format!("{}/secrets/{name}/{version}", scene.emulators.key_vault_url()),
    });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let answer = Answer::Status {
        status: 200,
        body: expired.to_string(),
        content_type: "application/json".to_owned(),
    };
    scene.emulators.fault(Fault::new(Target::KeyVault, answer));
    codes.insert(scene.call(Method::PUT, ME).await?.code().to_owned());
    scene.emulators.clear_faults();

    // A record that is another's, one that is gone, and one without its token.
    let other = caller().user(OTHER_USER).mint();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    scene.send(Method::PUT, ME, Some(&other), None).await?;
    let mut records = scene.store().records()?;
    let (place, _) = records.pop_first().unwrap();
    let (_, another) = records.pop_first().unwrap();
    let both = [caller().mint(), other];
    for gone in [false, true] {
        if gone {
            scene.store().delete(&place)?;
        } else {
            let another = serde_json::to_vec(&another)?;
            scene.store().replace(&place, &another)?;
        }
        for bearer in &both {
            let answer = scene
                .send(Method::POST, ACCESS_TOKEN, Some(bearer), None)
                .await?;
            codes.insert(answer.code().to_owned());
        }
    }
    scene.call(Method::PUT, ME).await?;
    scene.call(Method::DELETE, "/v1/me/refresh-token").await?;
    let answer = scene.call(Method::POST, ACCESS_TOKEN).await?;
    codes.insert(answer.code().to_owned());
    met(&codes, &REFUSED);
    scene.end().await?;
    Ok(())
}

/// The app's other credentials, which are assertions: its own, another issuer's, the platform's.
#[tokio::test(flavor = "multi_thread")]
async fn no_failure_shows_a_credential() -> Result {
    let kinds = ["certificate", "federated-token", "managed-identity"];
    let mut codes = BTreeSet::new();
    for kind in kinds {
        let emulators = Emulators::start(emulators::Options::default()).await?;
        let mut options = Options::for_emulators(&emulators);
        options.settings.extend(emulators.credential(kind));
        if kind == "managed-identity" {
            options = options.set("key_vault_credential", kind);
        }
        let scene = Scene::of(emulators, App::start(options).await?);
        let before = scene.emulators.secrets();
        scene.enrol().await?;
        scene.draw().await?;
        let secrets = scene.emulators.secrets();
        let assertions = secrets.iter().filter(|secret| !before.contains(secret));
        assert!(
            kind == "federated-token" || assertions.count() > 2,
            "{kind}: nothing was shown"
        );
        let of_entra = stuffed(&secrets)
            .into_iter()
            .filter(|fault| fault.target == Target::EntraToken);
        let all = json!(secrets.join(" "));
        let of_identity = [200, 400, 401, 500].map(|status| {
            let body =
                json!({"access_token": all, "expires_on": all, "error": all, "message": all});
            let answer = Answer::Status {
                status,
                body: body.to_string(),
                content_type: "application/json".to_owned(),
            };
            Fault::new(Target::ManagedIdentity, answer)
        });
        let of_identity = of_identity
            .into_iter()
            .filter(|_| kind == "managed-identity");
        for fault in of_identity.chain(of_entra) {
            // No loop of one user: each is a story of its own.
            scene.emulators.pass(Duration::from_mins(5));
            if fault.target == Target::ManagedIdentity {
                // What it gave before is forgotten when it is refused, and what it gives then, too.
                let refusal = Fault::entra(7_000_215).grant(GRANTS[1]).times(2);
                scene.emulators.fault(refusal);
                codes.insert(scene.call(Method::PUT, ME).await?.code().to_owned());
            }
            for (method, path) in [(Method::PUT, ME), (Method::POST, ACCESS_TOKEN)] {
                scene.emulators.fault(fault.clone().times(4));
                codes.insert(scene.call(method, path).await?.code().to_owned());
                scene.emulators.clear_faults();
            }
        }
        scene.end().await?;
    }
    met(&codes, &OF_CREDENTIALS);
    Ok(())
}

/// Every code that README lists is met above, or its test is named here.
#[test]
fn no_code_is_left_out() -> Result {
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    let rows = readme
        .lines()
        .filter(|line| line.starts_with("| 4") || line.starts_with("| 5"));
    // What a row says of a code can name a setting.
    let manifest = std::fs::read_to_string(root().join("spin.toml"))?;
    let is_setting = |text: &str| manifest.contains(&format!("\n{text} = {{"));
    let listed: BTreeSet<_> = rows
        .flat_map(|row| row.split('`').skip(1).step_by(2))
        .filter(|text| text.bytes().all(|it| it.is_ascii_lowercase() || it == b'_'))
        .filter(|text| !is_setting(text))
        .collect();
    let elsewhere = ELSEWHERE.iter().map(|(code, _)| *code);
    let met: BTreeSet<_> = STUFFED
        .into_iter()
        .chain(REFUSED)
        .chain(OF_CREDENTIALS)
        .chain(elsewhere)
        .collect();
    assert!(listed.len() > 40, "{listed:?}");
    assert_eq!(listed, met);
    for (code, place) in ELSEWHERE {
        let (file, test) = place.split_once(' ').unwrap();
        let source = std::fs::read_to_string(root().join(file))?;
        assert!(source.contains(test), "{code}: {place}");
    }
    Ok(())
}

/// The failures were met: the search looked where it should.
fn met(codes: &BTreeSet<String>, expected: &[&str]) {
    for code in expected {
        assert!(codes.contains(*code), "{code} was not met: {codes:?}");
    }
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
        "grants",
        "apis",
        "api_origin_1",
        "user_routes",
        "cors_origins",
        "operator_tenant",
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
        |_: &str| format!("user {USER}"),
        |_: &str| USER.replace('-', ""),
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
        ("invalid_scope", 70_011),
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

/// Sends the beginning of a body and then no more; returns the answer's code.
async fn broken_off(scene: &Scene, text: &str) -> anyhow::Result<String> {
    let mut connection = TcpStream::connect(scene.app.address()).await?;
    let request = format!(
        "PUT {ME} HTTP/1.1\r\nHost: app\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{{\"scope\":\"{text}",
        scene.emulators.caller().mint(),
        text.len() + 100,
    );
    connection.write_all(request.as_bytes()).await?;
    connection.shutdown().await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    let secrets = Secrets::new(&scene.emulators.secrets());
    assert_eq!(secrets.found_in(&answer), None, "{answer}");
    let code = answer.split("\"code\":\"").nth(1).unwrap_or_default();
    Ok(code.split('"').next().unwrap_or_default().to_owned())
}

/// Enrols until the key's failure shows: a cache of one second is in the way.
async fn key_fails(scene: &Scene, codes: &mut BTreeSet<String>) -> Result {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answer = scene.call(Method::PUT, ME).await?;
        codes.insert(answer.code().to_owned());
        if answer.status == 500 || answer.code() == "tenant_not_onboarded" {
            let answer = scene.call(Method::POST, ACCESS_TOKEN).await?;
            codes.insert(answer.code().to_owned());
            scene.sweep().await?;
            return Ok(());
        }
        anyhow::ensure!(std::time::Instant::now() < deadline, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
