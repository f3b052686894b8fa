//! A setting that is missing or wrong stops the start, with one line that names it, and so does each of several. Spin asks no
//! app before it serves; there each answer says it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use reqwest::Method;
use runtime_tests::app::{App, Options, StartFailure, behalf, is_on_spin, root};
use runtime_tests::emulators::{self, Emulators, OTHER_TENANT, TENANT};
use runtime_tests::scene::Scene;
use serde_json::{Value, json};
use tokio::process::Command;

type Result = anyhow::Result<()>;

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_setting_stops_the_start() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    for (name, value) in [
        ("client_id", ""),
        ("client_id", "api://33333333-3333-4333-8333-333333333333"),
        ("client_id", "{33333333-3333-4333-8333-333333333333}"),
        ("operator_tenant", "contoso.example"),
        ("user_routes", "yes"),
        ("cors_origins", "*"),
        ("cors_origins", "https://*.example.com"),
        ("cors_origins", "https://app.example.com/page"),
        ("cors_origins", "http://app.example.com"),
        ("cors_origins", "null"),
        (
            "cors_origins",
            "https://app.example.com https://other.example.com",
        ),
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
        ("access_token_cache_seconds", "901"),
        ("access_token_cache_seconds", "-1"),
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

/// A rule that is wrong stops the start, as a whole: none of the others counts, and the place is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_grant_stops_the_start_and_is_named() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let good = rule(&json!({}));
    let of = |change: Value| json!([good, rule(&change)]).to_string();
    for (grants, place, expected) in [
        (
            "[{]".to_owned(),
            "grants",
            "no valid JSON (line 1, column 3)",
        ),
        ("{}".to_owned(), "grants", "JSON list"),
        ("[5]".to_owned(), "grants[0]", "must be an object"),
        (
            of(json!({"apis": ["nothing"]})),
            "grants[1].apis",
            "`apis` has no nothing",
        ),
        (
            of(json!({"client": "web"})),
            "grants[1].client",
            "client id",
        ),
        (of(json!({"client": "*"})), "grants[1].client", "client id"),
        (
            of(json!({"callers": "*"})),
            "grants[1].callers",
            "delegated",
        ),
        (
            of(json!({"tenants": []})),
            "grants[1].tenants",
            "tenant ids",
        ),
        (
            of(json!({"tenants": ["*", TENANT]})),
            "grants[1].tenants",
            "tenant ids",
        ),
        (
            of(json!({"resource": "*"})),
            "grants[1].resource",
            "without `*`",
        ),
        (
            of(json!({"resource": "https://*.example"})),
            "grants[1].resource",
            "without `*`",
        ),
        (
            of(json!({"scopes": []})),
            "grants[1].scopes",
            "list of permissions",
        ),
        (
            of(json!({"scopes": "*"})),
            "grants[1].scopes",
            "list of permissions",
        ),
        (
            of(json!({"scopes": ["https://graph.microsoft.com/User.Read"]})),
            "grants[1].scopes",
            "without their resource",
        ),
        (
            of(json!({"scopes": ["User.*"]})),
            "grants[1].scopes",
            "in no name",
        ),
        (
            of(json!({"scopes": ["User.Read", "*"]})),
            "grants[1].scopes",
            "in no name",
        ),
        (
            of(json!({"scopes": [".default"]})),
            "grants[1].scopes",
            ".default",
        ),
        (
            of(json!({"scopes": [".DEFAULT"]})),
            "grants[1].scopes",
            ".default",
        ),
    ] {
        let options = Options::for_emulators(&emulators).set("grants", &grants);
        if is_on_spin() {
            says_so(options, &emulators, "grants").await?;
            continue;
        }
        let (code, checked) = check(&options, &[]).await?;
        assert_eq!(code, Some(2), "{grants}: {checked}");
        let started = failed_start(options).await?.join("\n");
        for said in [checked, started] {
            let mut lines = said.lines();
            let named = lines.any(|line| {
                line.contains("`grants` (SPIN_VARIABLE_GRANTS)")
                    && line.contains(place)
                    && line.contains(expected)
            });
            assert!(named, "{grants}: {place}, {expected}:\n{said}");
        }
    }
    assert!(emulators.journal().is_empty(), "nobody was asked");
    Ok(())
}

/// A setting of 1.6 MB, from a file: an environment has no room for it.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_grants_are_too_many_and_a_thousand_are_not() -> Result {
    if is_on_spin() {
        return Ok(());
    }
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("grants.json");
    let variable = format!("grants={}", file.display());
    let arguments = ["--variable-file", &variable];
    let options = Options::for_emulators(&emulators).arguments(&arguments);
    std::fs::write(&file, json!(vec![rule(&json!({})); 10_000]).to_string())?;
    let (code, checked) = check(&options, &arguments).await?;
    assert_eq!(code, Some(2), "{checked}");
    let started = failed_start(options.clone()).await?.join("\n");
    for said in [checked, started] {
        let expected = "setting `grants` (SPIN_VARIABLE_GRANTS) has 10000 rules: 1000 are the most";
        assert!(said.contains(expected), "{said}");
    }
    std::fs::write(&file, json!(vec![rule(&json!({})); 1000]).to_string())?;
    let (code, checked) = check(&options, &arguments).await?;
    assert_eq!(code, Some(0), "{checked}");
    let scene = Scene::of(emulators, App::start(options).await?);
    scene.enrol().await?;
    scene.draw().await?;
    scene.end().await?;
    Ok(())
}

/// In words, so that a mistake in a list of ids is seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_says_who_may_draw_what() -> Result {
    if is_on_spin() {
        return Ok(());
    }
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let front_end = &emulators.options().front_end_id;
    let job = &emulators.options().job_id;
    let grants = json!([
        rule(&json!({"scopes": ["User.Read", "Mail.Read"]})),
        rule(&json!({"client": job, "callers": "app", "tenants": ["*"]})),
        rule(&json!({"client": job, "callers": "app", "tenants": [OTHER_TENANT]})),
        json!({"client": job, "callers": "app", "apis": ["calendar"]}),
    ])
    .to_string();
    let apis = json!({"calendar": {"url": "https://graph.microsoft.com", "scope": "https://graph.microsoft.com/Calendars.Read",
        "allow": ["GET /v1.0/me/calendar/**"]}})
    .to_string();
    let calls =
        format!("grants[3]: app {job} may call for absent users of its own tenant: calendar");
    let api = "apis.calendar: GET /v1.0/me/calendar/** at https://graph.microsoft.com, with access tokens for https://graph.microsoft.com/Calendars.Read";
    let graph = "at https://graph.microsoft.com";
    let elsewhere = "; in another tenant than its own once `operator_tenant` is set";
    let own = format!(
        "grants[0]: app {front_end} may draw with users' tokens: User.Read, Mail.Read {graph}"
    );
    let all = format!(
        "grants[1]: app {job} may draw for absent users of every tenant: everything {graph}"
    );
    let one = format!(
        "grants[2]: app {job} may draw for absent users of {OTHER_TENANT}: everything {graph}"
    );
    let none = "the setting `grants` has no rule: every app may enrol, see and remove its users, and none may draw or call";
    for (grants, operator_tenant, says) in [
        (
            &*grants,
            "",
            vec![
                own.clone(),
                format!("{all}{elsewhere}"),
                format!("{one}{elsewhere}"),
                calls.clone(),
                api.to_owned(),
            ],
        ),
        (&*grants, TENANT, vec![own, all, one, calls, api.to_owned()]),
        ("[]", "", vec![none.to_owned(), api.to_owned()]),
        ("", "", vec![none.to_owned(), api.to_owned()]),
    ] {
        let options = Options::for_emulators(&emulators)
            .set("grants", grants)
            .set("apis", &apis)
            .set("api_origin_2", "https://graph.microsoft.com")
            .set("operator_tenant", operator_tenant);
        let (code, said) = check(&options, &[]).await?;
        assert_eq!(code, Some(0), "{said}");
        let lines = said.lines().filter_map(|line| {
            let line: Value = serde_json::from_str(line.get(line.find('{')?..)?).ok()?;
            (line["event"] == "grant" || line["event"] == "api")
                .then(|| line["says"].as_str().unwrap_or_default().to_owned())
        });
        assert_eq!(lines.collect::<Vec<_>>(), says, "{said}");
        // Who starts the app reads the same.
        let app = App::start(options).await?;
        for text in says {
            app.wait_for_output_after(0, &text).await?;
        }
        app.stop().await?;
    }
    // The host would let nobody call it.
    let options = Options::for_emulators(&emulators).set("apis", &apis);
    let (code, said) = check(&options, &[]).await?;
    assert_eq!(code, Some(2), "{said}");
    let fault =
        "setting `apis` (SPIN_VARIABLE_APIS) is wrong at apis.calendar.url: none of `api_origin_1`";
    assert!(said.contains(fault), "{said}");
    Ok(())
}

/// An app that names a user knows its object id, and no `sub`.
#[tokio::test(flavor = "multi_thread")]
async fn ids_with_a_sub_need_the_paths_of_users_off() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    for template in ["{tid}.{sub}", "{tid}.{oid}.{sub}"] {
        let options = Options::for_emulators(&emulators).set("user_id_template", template);
        let off = options.clone().set("user_routes", "off");
        if is_on_spin() {
            says_so(options, &emulators, "user_routes").await?;
        } else {
            let expected = "setting `user_routes` (SPIN_VARIABLE_USER_ROUTES) must be off, because `user_id_template` has {sub}";
            let (code, checked) = check(&options, &[]).await?;
            assert_eq!(code, Some(2), "{checked}");
            let started = failed_start(options).await?.join("\n");
            for said in [checked, started] {
                assert!(said.contains(expected), "{said}");
            }
        }
        App::start(off).await?.stop().await?;
    }
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

/// A rule for users' tokens, with these members instead.
fn rule(change: &Value) -> Value {
    let mut rule = json!({
        "client": emulators::Options::default().front_end_id, "callers": "delegated",
        "resource": "https://graph.microsoft.com", "scopes": ["*"],
    });
    for (member, value) in change.as_object().unwrap() {
        rule[member] = value.clone();
    }
    rule
}

/// What `behalf check` says of these settings, and its exit code.
async fn check(options: &Options, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(behalf()?);
    command.arg("check").arg("-f").arg(root().join("spin.toml"));
    command
        .arg("--state-dir")
        .arg(folder.path())
        .args(arguments);
    // Away from any `.env`.
    command
        .current_dir(folder.path())
        .env_remove("RUNTIME_CONFIG_FILE");
    for (name, value) in &options.settings {
        command.env(format!("SPIN_VARIABLE_{}", name.to_uppercase()), value);
    }
    let output = command.kill_on_drop(true).output().await?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8(said)?))
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
