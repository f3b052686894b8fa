//! `behalf status`, `behalf user` and `behalf sweep`, of an app that runs.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use reqwest::Method;
use runtime_tests::emulators::{
    Answer, Fault, OTHER_TENANT, Options, TENANT, Target, USER, key_name,
};
use runtime_tests::operator::{Operator, Said, asked_in, signal};
use runtime_tests::scene::Scene;
use rustix::process::Signal;
use serde_json::json;

type Result = anyhow::Result<()>;

async fn scene(options: Options) -> anyhow::Result<Scene> {
    Scene::with(options, |app| app.set("operator_tenant", TENANT)).await
}

/// The app's operator, who asks as the app itself.
fn operator(scene: &Scene) -> anyhow::Result<Operator> {
    Ok(Operator::new(&scene.emulators)?
        .set("operator_tenant", TENANT)
        .environment("BEHALF_APP", &format!("http://{}", scene.app.address())))
}

async fn status(scene: &Scene, words: &[&str]) -> anyhow::Result<Said> {
    let words = [&["status"], words].concat();
    operator(scene)?.run(&scene.emulators, &words).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_follows_a_rotation() -> Result {
    let scene = scene(Options::default()).await?;
    scene.enrol().await?;
    let said = status(&scene, &[]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out
            .contains("no sweep has looked at what is stored yet"),
        "{said:?}"
    );
    let said = status(&scene, &["--check"]).await?;
    assert_eq!(said.code, Some(3), "{said:?}");

    scene.sweep().await?;
    let said = status(&scene, &["--check"]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out.starts_with("1 user of 1 tenant, as seen "),
        "{said:?}"
    );
    assert!(said.out.ends_with("\n\nnobody has to act\n"), "{said:?}");
    let row = said
        .out
        .lines()
        .find(|line| line.starts_with(TENANT))
        .unwrap();
    assert!(row.contains("100 %"), "{row}");

    let old = scene.emulators.newest_version(&key_name(TENANT)).unwrap();
    let new = scene.emulators.rotate_key(TENANT)?;
    for percent in [0, 100, 100] {
        // What a sweep sees when it begins; the next one sees what this one did, and notes it.
        scene.sweep().await?;
        let said = status(&scene, &["--json"]).await?;
        let told = said.json()?;
        assert_eq!(
            told["rotation"][TENANT]["rotated_percent"], percent,
            "{told}"
        );
        let newest = &told["status"]["tenants"][TENANT]["newest_key_version"];
        assert_eq!(newest["version"], *new);
        let made_at = scene.emulators.newest_version(&key_name(TENANT)).unwrap();
        assert_eq!(newest["created_at"], made_at["attributes"]["created"]);
        // Not before a day.
        assert_eq!(told["rotation"][TENANT]["safe_to_disable"], json!([]));
        assert_eq!(told["needs"], json!([]));
    }
    let said = status(&scene, &["--json", "--tenant", TENANT]).await?;
    let told = said.json()?;
    let old = old["id"].as_str().unwrap().rsplit('/').next().unwrap();
    let unused = &told["status"]["tenants"][TENANT]["unused_key_versions"];
    assert!(unused[old].is_u64(), "{told}");

    // It cannot be read any more: the operator's turn.
    scene
        .emulators
        .set_secret_enabled(&key_name(TENANT), None, false)?;
    scene.sweep().await?;
    let said = status(&scene, &["--check"]).await?;
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(
        said.out
            .contains("no key to seal under (key_disabled): enable its newest version"),
        "{said:?}"
    );
    scene.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_ask_for_a_status() -> Result {
    let scene = scene(Options::default()).await?;
    let emulators = &scene.emulators;
    let app = format!("http://{}", scene.app.address());

    // The platform's managed identity, which knows what the app is called and has no setting of it.
    let identity = emulators.app_service().into_iter().chain([
        ("authority", emulators.authority()),
        ("key_vault_credential", "managed-identity".to_owned()),
    ]);
    let identity = identity.map(|(name, value)| (name.to_owned(), value));
    let identity = Operator::with(identity.collect())?;
    let audience = format!("api://{}", emulators.options().client_id);
    let words = ["status", "--app", &app, "--audience", &audience];
    let said = identity.run(emulators, &words).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = identity.run(emulators, &words[..3]).await?;
    assert!(
        said.code == Some(2) && said.log.contains("--audience"),
        "{said:?}"
    );

    // A pipeline's job, whose token the app registration trusts.
    let job = Operator::with(vec![
        (
            "client_id".to_owned(),
            emulators.options().client_id.clone(),
        ),
        ("authority".to_owned(), emulators.authority()),
    ])?
    .environments(&emulators.github_job());
    let words = ["status", "--app", &app, "--credential", "github"];
    let said = job.run(emulators, &words).await?;
    assert!(
        said.code == Some(2) && said.log.contains("--in-tenant"),
        "{said:?}"
    );
    let words = [&words[..], &["--in-tenant", TENANT]].concat();
    let said = job.run(emulators, &words).await?;
    assert_eq!(said.code, Some(0), "{said:?}");

    // A token that somebody else got.
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    for (roles, code) in [(["Behalf.Read"], Some(0)), (["Behalf.Act"], Some(1))] {
        let token = emulators.caller().app(&roles).mint();
        std::fs::write(&file, format!("{token}\n"))?;
        let words = [
            "status",
            "--app",
            &app,
            "--token-file",
            file.to_str().unwrap(),
        ];
        let said = Operator::with(Vec::new())?.run(emulators, &words).await?;
        assert_eq!(said.code, code, "{said:?}");
        if code == Some(1) {
            assert!(said.log.contains("assign the app role"), "{said:?}");
        }
    }
    scene.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_of_a_status_is_named() -> Result {
    let scene = scene(Options {
        app_roles: Vec::new(),
        ..Options::default()
    })
    .await?;
    let said = status(&scene, &[]).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.log.contains("Behalf.Read") && said.log.contains("assign the app role"),
        "{said:?}"
    );

    for (words, code, says) in [
        (
            &["--app", "http://behalf.example"][..],
            2,
            "https://behalf.example",
        ),
        (
            &["--app", "http://127.0.0.1:1"],
            1,
            "is the app running there (--app)",
        ),
        (&["--tenant", "contoso"], 2, "GUID"),
        (&["--variable", "scope=x"], 2, "no such setting"),
        (&["--variable", "client_id=x"], 2, "client_id"),
        (&["--variable", "client_secret=wrong"], 1, "client_secret"),
        (&["--token-file", "/nothing/there"], 2, "--token-file"),
        (&["--token-file", "/dev/null"], 2, "is no access token"),
    ] {
        let said = status(&scene, words).await?;
        assert_eq!(said.code, Some(code), "{words:?}: {said:?}");
        assert!(said.log.contains(says), "{words:?}: {said:?}");
    }
    // A token that Entra ID does not give is not about Key Vault.
    let nowhere = "eeeeeeee-eeee-4eee-8eee-eeeeeeeeeeee";
    let revoke = ["user", "revoke", TENANT, USER, "--graph"];
    for (words, says) in [
        (
            &["status", "--in-tenant", nowhere][..],
            [nowhere, "`--audience`"],
        ),
        (
            &["status", "--audience", "api://other"],
            ["api://other (`--audience`)", TENANT],
        ),
        (
            &[&revoke[..], &["https://graph.microsoft.us"]].concat(),
            ["https://graph.microsoft.us (`--graph`)", TENANT],
        ),
    ] {
        let said = operator(&scene)?.run(&scene.emulators, words).await?;
        assert_eq!(said.code, Some(1), "{words:?}: {said:?}");
        assert!(
            says.iter().all(|it| said.log.contains(it)),
            "{words:?}: {said:?}"
        );
        assert!(!said.log.contains("Key Vault"), "{words:?}: {said:?}");
    }
    // Another program.
    let elsewhere = scene.emulators.downstream_url();
    let said = status(&scene, &["--app", &elsewhere]).await?;
    assert!(
        said.code == Some(1) && said.log.contains("no behalf"),
        "{said:?}"
    );
    scene.end().await.map(drop)
}

/// Microsoft Graph by its real name, behind the emulators' proxy.
async fn revoke(scene: &Scene, words: &[&str]) -> anyhow::Result<Said> {
    revoke_of(scene, &[&[TENANT, USER], words].concat()).await
}

async fn revoke_of(scene: &Scene, words: &[&str]) -> anyhow::Result<Said> {
    let proxy = scene.emulators.proxy().await?;
    let folder = tempfile::tempdir()?;
    let authority = folder.path().join("authority.pem");
    proxy.write_authority(&authority)?;
    let operator = operator(scene)?.environment("HTTPS_PROXY", &proxy.url());
    let begin = ["user", "revoke", "--ca"];
    let words = [&begin[..], &[authority.to_str().unwrap()], words].concat();
    operator.run(&scene.emulators, &words).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_user_is_shown_as_one_who_has_to_act() -> Result {
    let scene = scene(Options::default()).await?;
    scene.enrol().await?;

    let said = revoke(&scene, &["--dry-run"]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out
            .starts_with("sessions  would be revoked\nthe app   active, turn: nobody"),
        "{said:?}"
    );
    scene.draw().await?;

    let said = revoke(&scene, &[]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out
            .starts_with("sessions  revoked\nthe app   active, turn: nobody"),
        "{said:?}"
    );
    assert!(
        said.out.contains("finds out when it next asks Entra ID"),
        "{said:?}"
    );

    scene.store().make_due()?;
    let swept = scene.sweep().await?;
    assert_eq!(swept["refreshed"], 0, "{swept}");
    let said = revoke(&scene, &["--dry-run", "--json"]).await?;
    let told = said.json()?;
    assert_eq!(told["enrolment"]["turn"], "user", "{told}");
    assert_eq!(told["enrolment"]["aadsts"], 50_173, "{told}");

    // Whoever signs in after that is as good as before.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(scene.call(Method::PUT, "/v1/me").await?.status, 200);
    let said = revoke(&scene, &["--dry-run", "--json"]).await?;
    assert_eq!(said.json()?["enrolment"]["turn"], "nobody", "{said:?}");

    let said = revoke(&scene, &["--remove", "--json"]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    let told = said.json()?;
    assert_eq!([&told["revoked"], &told["removed"]], [true, true]);
    assert!(told["enrolment"].is_null(), "{told}");
    assert_eq!(scene.call(Method::GET, "/v1/me").await?.status, 404);
    // Once more: nothing is left to be done, which is no error.
    let said = revoke(&scene, &["--remove"]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.ends_with("has nothing of the user\n"), "{said:?}");
    scene.end().await.map(drop)
}

/// The tenant in question, and the one in which the token for the app is asked for, wherever the option stands.
#[tokio::test(flavor = "multi_thread")]
async fn the_tenant_of_the_token_is_not_the_one_in_question() -> Result {
    let scene = scene(Options::default()).await?;
    let of = |tenant| scene.emulators.caller().tenant(tenant).mint();
    let (here, there) = (of(TENANT), of(OTHER_TENANT));
    for bearer in [&here, &there] {
        let answer = scene
            .send(Method::PUT, "/v1/me", Some(bearer), None)
            .await?;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    scene.sweep().await?;
    let asked_in = |resource| asked_in(&scene.emulators, resource);
    let before = asked_in("api://").len();
    let (token, about) = (["--in-tenant", TENANT], ["--tenant", OTHER_TENANT]);
    for words in [[token, about], [about, token]] {
        let said = status(&scene, &[words.as_flattened(), &["--json"]].concat()).await?;
        let told = said.json()?;
        let tenants = told["status"]["tenants"].as_object().unwrap();
        assert_eq!(tenants.keys().collect::<Vec<_>>(), [OTHER_TENANT], "{told}");
    }
    let user = [OTHER_TENANT, USER];
    for (words, more) in [([token, user], "--dry-run"), ([user, token], "--remove")] {
        let said = revoke_of(&scene, &[words.as_flattened(), &[more]].concat()).await?;
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    assert_eq!(asked_in("api://")[before..], [TENANT; 4]);
    assert_eq!(asked_in("https://graph.microsoft.com"), [OTHER_TENANT; 2]);
    for (bearer, status) in [(&here, 200), (&there, 404)] {
        let answer = scene
            .send(Method::GET, "/v1/me", Some(bearer), None)
            .await?;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    scene.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_that_is_refused_says_why_and_does_the_rest() -> Result {
    let scene = scene(Options {
        graph_roles: Vec::new(),
        ..Options::default()
    })
    .await?;
    scene.enrol().await?;
    let said = revoke(&scene, &[]).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.log.contains("User.RevokeSessions.All"), "{said:?}");
    assert!(
        said.out
            .starts_with("sessions  NOT revoked\nthe app   active"),
        "{said:?}"
    );

    let said = revoke(&scene, &["--remove"]).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.out
            .contains("sessions  NOT revoked\nrecord    removed\n"),
        "{said:?}"
    );
    assert_eq!(scene.call(Method::GET, "/v1/me").await?.status, 404);

    // Nobody of that id; and no Microsoft Graph there.
    let operator = operator(&scene)?;
    let nobody = "eeeeeeee-eeee-4eee-8eee-eeeeeeeeeeee";
    let said = operator
        .run(&scene.emulators, &["user", "revoke", TENANT, "me"])
        .await?;
    assert_eq!(said.code, Some(2), "{said:?}");
    let dead = [
        "user",
        "revoke",
        TENANT,
        nobody,
        "--graph",
        "http://127.0.0.1:1",
    ];
    let said = operator.run(&scene.emulators, &dead).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    scene.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_removed_though_graph_gives_no_token() -> Result {
    let scene = scene(Options::default()).await?;
    scene.enrol().await?;
    // The app registration is unknown to the tenant, which has not consented.
    let no_token = || {
        scene
            .emulators
            .fault(Fault::entra(700_016).grant("client_credentials"));
    };
    no_token();
    let said = revoke(&scene, &["--dry-run", "--remove"]).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.out
            .starts_with("sessions  NOT revoked\nrecord    would be removed\nthe app   active"),
        "{said:?}"
    );
    no_token();
    let said = revoke(&scene, &["--remove"]).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.out
            .starts_with("sessions  NOT revoked\nrecord    removed\n"),
        "{said:?}"
    );
    assert_eq!(scene.call(Method::GET, "/v1/me").await?.status, 404);
    // Somebody whom Microsoft Graph does not know.
    let nobody = [TENANT, "eeeeeeee-eeee-4eee-8eee-eeeeeeeeeeee"];
    let said = revoke_of(&scene, &nobody).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.log.contains("no user with this object id") && said.log.contains("managed identity"),
        "{said:?}"
    );
    // What the app refuses twice is told once.
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    std::fs::write(&file, scene.emulators.caller().app(&["Behalf.Read"]).mint())?;
    let token = ["--remove", "--token-file", file.to_str().unwrap()];
    let said = revoke(&scene, &token).await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    let times = said.log.matches("insufficient_scope").count();
    assert_eq!(times, 1, "{said:?}");
    scene.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_that_is_interrupted_says_how_far_it_was() -> Result {
    let scene = scene(Options::default()).await?;
    scene.enrol().await?;
    let proxy = scene.emulators.proxy().await?;
    let folder = tempfile::tempdir()?;
    let authority = folder.path().join("authority.pem");
    proxy.write_authority(&authority)?;
    let operator = operator(&scene)?.environment("HTTPS_PROXY", &proxy.url());
    let mut slow = Fault::new(Target::Downstream, Answer::Pass);
    slow.delay_ms = 1000;
    scene.emulators.fault(slow);
    let begin = ["user", "revoke", TENANT, USER, "--remove", "--ca"];
    let child = operator.begin(&[&begin[..], &[authority.to_str().unwrap()]].concat())?;
    while scene.emulators.faults_left() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    signal(&child, Signal::TERM)?;
    let said = operator.end(&scene.emulators, child).await?;
    assert_eq!(said.code, Some(130), "{said:?}");
    let told = "sessions  revoked\nrecord    NOT removed\nthe app   was not asked what it has of the user\n";
    assert_eq!(said.out, told, "{said:?}");
    assert_eq!(scene.call(Method::GET, "/v1/me").await?.status, 200);
    scene.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_waits_as_long_as_graph_asks_for() -> Result {
    let scene = scene(Options::default()).await?;
    scene.enrol().await?;
    let busy = Answer::Status {
        status: 429,
        body: "{}".to_owned(),
        content_type: "application/json".to_owned(),
    };
    scene.emulators.fault(Fault {
        retry_after: Some("1".to_owned()),
        ..Fault::new(Target::Downstream, busy)
    });
    let said = revoke(&scene, &[]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(scene.emulators.faults_left(), 0);
    scene.end().await.map(drop)
}

async fn sweep(scene: &Scene, words: &[&str]) -> anyhow::Result<Said> {
    let words = [&["sweep"], words].concat();
    operator(scene)?.run(&scene.emulators, &words).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_is_rung_by_whoever_may() -> Result {
    let scene = scene(Options {
        app_roles: vec!["Behalf.Sweep".to_owned()],
        ..Options::default()
    })
    .await?;
    scene.enrol().await?;
    // With the key from the environment, from a file, and, without one, as the app.
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("sweep_key");
    let key = &scene.emulators.options().sweep_key;
    std::fs::write(&file, format!("{key}\n"))?;
    let from_file = format!("sweep_key={}", file.display());
    for words in [
        &[][..],
        &["--variable-file", &from_file],
        &["--variable", "sweep_key="],
    ] {
        scene.store().make_due()?;
        let said = sweep(&scene, words).await?;
        assert_eq!(said.code, Some(0), "{words:?}: {said:?}");
        assert_eq!(
            said.out, "calls      1\nrefreshed  1\nchecked    1\n",
            "{words:?}"
        );
        assert_eq!(said.log, "", "{words:?}");
    }
    let said = sweep(&scene, &["--json"]).await?;
    let told = said.json()?;
    assert_eq!(told["event"], "swept");
    assert_eq!([&told["calls"], &told["refreshed"]], [1, 0]);

    let token = scene.emulators.caller().app(&["Behalf.Read"]).mint();
    std::fs::write(&file, token)?;
    let unreadable = format!("sweep_key={}", folder.path().join("none").display());
    for (words, code, says) in [
        (
            &["--variable", "sweep_key=a-key-of-another-app-0123456789ab"][..],
            1,
            "(sweep_not_authorized, status 401",
        ),
        // Whoever is named asks, though there is a key.
        (
            &["--token-file", file.to_str().unwrap()],
            1,
            "assign the app role",
        ),
        (
            &["--variable-file", &unreadable],
            2,
            "`sweep_key` (SPIN_VARIABLE_SWEEP_KEY) cannot be read",
        ),
        (&["--variable", "sweep_key=two\nlines"], 2, "visible ASCII"),
        (
            &["--app", "http://behalf.example"],
            2,
            "https://behalf.example",
        ),
        (
            &["--app", "http://127.0.0.1:1"],
            1,
            "is the app running there",
        ),
        (&["--time-limit", "soon"], 2, "--time-limit"),
    ] {
        let said = sweep(&scene, words).await?;
        assert_eq!(said.code, Some(code), "{words:?}: {said:?}");
        assert!(said.log.contains(says), "{words:?}: {said:?}");
        assert_eq!(said.out, "", "{words:?}");
    }
    scene.end().await.map(drop)
}

/// What the app would answer one after another, and what becomes of that.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_is_rung_until_nothing_remains_or_nothing_helps() -> Result {
    let scene = Scene::start().await?;
    let ring = async |answers: &[(u16, serde_json::Value)], words: &[&str]| {
        for (status, body) in answers {
            let answer = Answer::Status {
                status: *status,
                body: body.to_string(),
                content_type: "application/json".to_owned(),
            };
            scene.emulators.fault(Fault {
                retry_after: (*status == 503).then(|| "1".to_owned()),
                ..Fault::new(Target::Downstream, answer)
            });
        }
        let elsewhere = scene.emulators.downstream_url();
        let said = sweep(&scene, &[&["--app", &elsewhere], words].concat()).await?;
        assert_eq!(scene.emulators.faults_left(), 0, "{said:?}");
        anyhow::Ok(said)
    };
    let busy = || (503, json!({"code": "busy", "detail": "later"}));
    let working = || (200, json!({"refreshed": 2, "waiting": 4, "remaining": 3}));
    let unchecked = || (200, json!({"remaining": 0, "unchecked": 1, "checked": 1}));
    let over = || {
        (
            200,
            json!({"refreshed": 3, "resealed": 1, "waiting": 4, "remaining": 0}),
        )
    };
    let other = || (200, json!({"remaining": 0, "lease_held": false}));

    let answers = [busy(), working(), unchecked(), busy(), over()];
    let said = ring(&answers, &[]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(
        said.out,
        "calls      3\nrefreshed  5\nresealed   1\nwaiting    4\nchecked    1\n"
    );
    let said = ring(&[other()], &["--json"]).await?;
    assert_eq!(said.json()?["event"], "sweep_left_to_another");
    assert_eq!(said.code, Some(0), "{said:?}");

    let stuck = || (200, json!({"waiting": 3, "remaining": 3}));
    let stopped = || (200, json!({"remaining": 0, "stopped": "clock_wrong"}));
    let strange = || (200, json!({"ok": true}));
    for (answers, words, says) in [
        (
            vec![working()],
            &["--time-limit", "0"][..],
            "3 records remain after 1 calls",
        ),
        (vec![working(), stuck()], &[], "no call gets further"),
        (vec![stopped()], &[], "stopped (clock_wrong)"),
        (vec![strange()], &[], "no behalf"),
        (
            vec![busy(), busy(), busy()],
            &[],
            "later (busy, status 503)",
        ),
    ] {
        let said = ring(&answers, words).await?;
        assert_eq!(said.code, Some(1), "{answers:?}: {said:?}");
        assert!(said.log.contains(says), "{answers:?}: {said:?}");
    }
    scene.end().await.map(drop)
}
