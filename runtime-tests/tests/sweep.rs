//! Sweeps: refresh what is due, seal anew under a new key, and lose nothing whatever fails.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use futures_util::future::try_join_all;
use reqwest::Method;
use runtime_tests::app::{App, Options, postgres_manifest};
use runtime_tests::emulators::{
    self, Answer, Emulators, Fault, OTHER_TENANT, OTHER_USER, TENANT, Target, USER, key_name,
};
use runtime_tests::scene::Scene;
use runtime_tests::store::tables::Tables;
use serde_json::json;

type Result = anyhow::Result<()>;

#[tokio::test(flavor = "multi_thread")]
async fn a_due_record_is_refreshed_and_its_token_replaced() -> Result {
    let scene = Scene::start().await?;
    let before = scene.enrol().await?;
    let report = scene.sweep().await?;
    assert_eq!(
        (&report["due"], &report["refreshed"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(report["next_due_at"], before["due_at"]);

    scene.store().make_due()?;
    let report = scene.sweep().await?;
    assert_eq!(
        (&report["due"], &report["refreshed"], &report["remaining"]),
        (&json!(1), &json!(1), &json!(0))
    );
    let after = scene.store().record()?.1;
    assert_eq!(
        after["generation"].as_u64().unwrap(),
        before["generation"].as_u64().unwrap() + 1
    );
    assert_ne!(after["sealed"], before["sealed"]);
    assert_eq!(after["enrolled_at"], before["enrolled_at"]);
    assert_eq!(scene.rows()?.len(), 3, "one marker");

    // The token from the enrolment was redeemed by the sweep; from now on it is the one that the sweep got.
    let journal = scene.emulators.journal();
    let issued: Vec<_> = journal
        .iter()
        .filter_map(|entry| entry.issued.clone())
        .collect();
    let redeemed: Vec<_> = journal
        .iter()
        .filter_map(|entry| entry.redeemed.clone())
        .collect();
    assert_eq!(redeemed, issued[..1]);
    scene.emulators.clear_journal();
    scene.draw().await?;
    let redeemed = scene
        .emulators
        .journal()
        .into_iter()
        .find_map(|entry| entry.redeemed);
    assert_eq!(redeemed.as_ref(), Some(&issued[1]));
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_reaches_every_record_without_entra() -> Result {
    let scene = Scene::start().await?;
    let before = scene.enrol().await?;
    let other = scene.emulators.caller().tenant(OTHER_TENANT).mint();
    assert_eq!(
        scene
            .send(Method::PUT, "/v1/me", Some(&other), None)
            .await?
            .status,
        201
    );
    let newest = scene.emulators.rotate_key(TENANT)?;

    scene.emulators.clear_journal();
    scene.emulators.fault(
        Fault::new(Target::EntraToken, Answer::Close)
            .grant("refresh_token")
            .times(9),
    );
    let report = scene.sweep().await?;
    assert_eq!(
        (&report["resealed"], &report["refreshed"]),
        (&json!(1), &json!(0))
    );
    assert!(
        !scene
            .emulators
            .journal()
            .iter()
            .any(|entry| entry.grant.as_deref() == Some("refresh_token"))
    );
    scene.emulators.clear_faults();

    let records = scene.store().records()?;
    let after = records
        .values()
        .find(|record| record["tenant"] == TENANT)
        .unwrap();
    assert_eq!(after["key_version"], json!(newest));
    for unchanged in [
        "generation",
        "due_at",
        "refreshed_at",
        "enrolled_at",
        "status",
    ] {
        assert_eq!(after[unchanged], before[unchanged], "{unchanged}");
    }
    // Markers tell the key version without a look at the record.
    assert_eq!(
        scene
            .store()
            .keys("due.")?
            .iter()
            .filter(|key| key.contains(&newest))
            .count(),
        1
    );
    assert_eq!(scene.rows()?.len(), 6);

    // Nothing is under the old version any more: it can be disabled.
    let old = before["key_version"].as_str().unwrap();
    scene
        .emulators
        .set_secret_enabled(&key_name(TENANT), Some(old), false)?;
    scene.draw().await?;
    assert_eq!(scene.sweep().await?["resealed"], 0);
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_fails_for_now_changes_no_record_and_is_tried_again() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    for fault in [
        // Tried once more. The others say `Retry-After: 0`, or they would hold up the next.
        Fault::new(Target::EntraToken, Answer::Close).times(2),
        Fault::new(Target::EntraToken, Answer::BadGateway).retry_after("0"),
        Fault::entra(90_033).retry_after("0"),
        Fault::entra(50_196).retry_after("0"),
    ] {
        scene.store().make_due()?;
        let before = scene.store().records()?;
        scene.emulators.fault(fault.grant("refresh_token"));
        let report = scene.sweep().await?;
        assert_eq!(
            (&report["due"], &report["retrying"], &report["refreshed"]),
            (&json!(1), &json!(1), &json!(0))
        );
        assert_eq!(scene.store().records()?, before);
        assert_eq!(
            scene.store().keys("due.")?.len(),
            1,
            "still due at some time"
        );
    }
    scene.store().make_due()?;
    assert_eq!(scene.sweep().await?["refreshed"], 1);
    scene.draw().await?;
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_fault_touches_no_record() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    scene.store().make_due()?;
    let before = scene.rows()?;
    scene
        .emulators
        .fault(Fault::entra(7_000_215).grant("refresh_token"));
    let report = scene.sweep().await?;
    assert_eq!(
        (&report["waiting"], &report["refreshed"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(scene.rows()?, before);
    assert_eq!(scene.sweep().await?["refreshed"], 1);

    // Key Vault down: neither refreshed nor sealed anew, and nothing is lost.
    scene.store().make_due()?;
    let before = scene.rows()?;
    scene
        .emulators
        .fault(Fault::new(Target::KeyVault, Answer::Close).times(9));
    let report = scene.sweep().await?;
    assert_eq!(
        (&report["refreshed"], &report["waiting"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(report["without_key"][TENANT], "key_vault_unavailable");
    assert_eq!(scene.rows()?, before);
    scene.emulators.clear_faults();
    assert_eq!(scene.sweep().await?["refreshed"], 1);
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_token_is_kept_and_told() -> Result {
    let scene = Scene::start().await?;
    let before = scene.enrol().await?;
    scene.emulators.revoke(TENANT, USER);
    scene.store().make_due()?;
    assert_eq!(scene.sweep().await?["quarantined"], 1);
    let after = scene.store().record()?.1;
    assert_eq!(after["sealed"], before["sealed"]);
    assert_eq!(
        scene.call(Method::GET, "/v1/me").await?.json["status"],
        "quarantined"
    );
    assert_eq!(scene.store().keys("due.")?.len(), 1, "tried again daily");
    assert_eq!(scene.call(Method::PUT, "/v1/me").await?.status, 200);
    scene.draw().await?;
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_has_to_act_is_told_what_for() -> Result {
    let scene = Scene::start().await?;
    let before = scene.enrol().await?;
    let claims = r#"{"access_token":{"acrs":{"essential":true,"value":"c1"}}}"#;
    let answer = Answer::Entra {
        code: 50_079,
        suberror: None,
        claims: Some(claims.to_owned()),
        error: None,
        status: None,
    };
    scene
        .emulators
        .fault(Fault::new(Target::EntraToken, answer).grant("refresh_token"));
    scene.store().make_due()?;
    assert_eq!(scene.sweep().await?["interaction_required"], 1);
    assert_eq!(scene.store().record()?.1["sealed"], before["sealed"]);
    let shown = scene.call(Method::GET, "/v1/me").await?.json;
    assert_eq!(
        (&shown["status"], &shown["claims"]),
        (&json!("interaction_required"), &json!(claims))
    );
    // It heals by itself when the policy does.
    scene.store().make_due()?;
    assert_eq!(scene.sweep().await?["refreshed"], 1);
    assert_eq!(
        scene.call(Method::GET, "/v1/me").await?.json["status"],
        "active"
    );
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_is_kept_and_does_not_stop_the_others() -> Result {
    let scene = Scene::start().await?;
    scene.enrol().await?;
    let (key, mut record) = scene.store().record()?;
    let other = scene.emulators.caller().user(OTHER_USER).mint();
    assert_eq!(
        scene
            .send(Method::PUT, "/v1/me", Some(&other), None)
            .await?
            .status,
        201
    );
    scene.store().make_due()?;
    record["sealed"] = json!("damaged");
    record["due_at"] = scene.store().records()?[&key]["due_at"].clone();
    scene.store().replace(&key, &serde_json::to_vec(&record)?)?;
    let report = scene.sweep().await?;
    assert_eq!(
        (&report["due"], &report["damaged"], &report["refreshed"]),
        (&json!(2), &json!(1), &json!(1))
    );
    assert_eq!(scene.store().records()?[&key], record);
    assert_eq!(scene.store().keys("due.")?.len(), 2);
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_records_of_two_tenants_are_swept_in_one_call() -> Result {
    let scene = Scene::start().await?;
    for number in 0..20 {
        let tenant = if number % 2 == 0 {
            TENANT
        } else {
            OTHER_TENANT
        };
        let user = format!("{number:08}-0000-4000-8000-000000000000");
        let token = scene.emulators.caller().tenant(tenant).user(&user).mint();
        assert_eq!(
            scene
                .send(Method::PUT, "/v1/me", Some(&token), None)
                .await?
                .status,
            201
        );
    }
    scene.store().make_due()?;
    scene.emulators.rotate_key(OTHER_TENANT)?;
    scene.emulators.clear_journal();
    let report = scene.sweep().await?;
    assert_eq!(
        (&report["due"], &report["refreshed"], &report["remaining"]),
        (&json!(20), &json!(20), &json!(0))
    );
    let redeemed = scene
        .emulators
        .journal()
        .iter()
        .filter(|entry| entry.redeemed.is_some())
        .count();
    assert_eq!(redeemed, 20, "each record once");
    // The newest version is asked for once a tenant, by a path without a version.
    let asked = scene
        .emulators
        .journal()
        .iter()
        .filter(|entry| entry.target == Target::KeyVault && entry.status == Some(200))
        .filter(|entry| entry.path.ends_with('/'))
        .count();
    assert_eq!(asked, 2, "a tenant's newest version is asked for once");
    assert_eq!(scene.rows()?.len(), 60);
    scene.end().await?;
    Ok(())
}

/// Whoever Entra ID refuses, for whatever reason of their own, the others of the tenant are refreshed by the same call.
#[tokio::test(flavor = "multi_thread")]
async fn refused_users_keep_nobody_of_their_tenant_waiting() -> Result {
    let scene = Scene::start().await?;
    // Not assigned, a token that is none, a device, a policy, a scope, a loop; and those who are not refused.
    let reasons = [50_105, 70_000, 50_097, 53_005, 70_011, 50_196, 0, 0];
    for (number, code) in (0..32).zip(reasons.into_iter().cycle()) {
        let user = format!("{number:08}-0000-4000-8000-000000000000");
        let token = scene.emulators.caller().user(&user).mint();
        let answer = scene
            .send(Method::PUT, "/v1/me", Some(&token), None)
            .await?;
        assert_eq!(answer.status, 201);
        if code > 0 {
            scene.emulators.refuse(TENANT, &user, Some(code));
        }
    }
    scene.store().make_due()?;
    let before = scene.store().records()?;
    let report = scene.sweep().await?;
    let counts = [
        "refreshed",
        "organisation_required",
        "quarantined",
        "interaction_required",
        "refused",
        "retrying",
        "waiting",
        "remaining",
    ];
    assert_eq!(
        counts.map(|name| report[name].as_u64().unwrap()),
        [8, 4, 4, 4, 8, 4, 0, 0]
    );
    // Nobody's token is lost, and everybody comes back.
    let after = scene.store().records()?;
    assert!(before.keys().eq(after.keys()));
    let kept = before
        .iter()
        .filter(|(key, record)| after[*key]["sealed"] == record["sealed"]);
    assert_eq!(kept.count(), 24);
    assert_eq!(scene.store().keys("due.")?.len(), 32);
    assert_eq!(scene.sweep().await?["due"], 0);
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fails_stops_no_record_but_its_own() -> Result {
    let scene = Scene::start().await?;
    for number in 0..3 {
        let user = format!("{number:08}-0000-4000-8000-000000000000");
        let token = scene.emulators.caller().user(&user).mint();
        let answer = scene
            .send(Method::PUT, "/v1/me", Some(&token), None)
            .await?;
        assert_eq!(answer.status, 201);
    }
    let before = scene.store().records()?;
    let (refused, _) = before.first_key_value().unwrap();
    scene.store().refuse(refused)?;
    let newest = scene.emulators.rotate_key(TENANT)?;
    let report = scene.sweep().await?;
    assert_eq!(
        (&report["resealed"], &report["failed"]),
        (&json!(2), &json!(1))
    );
    for (key, record) in scene.store().records()? {
        assert_eq!(record["key_version"] == json!(newest), key != *refused);
    }

    scene.store().refuse_nothing()?;
    scene.store().forget_sweeps()?;
    assert_eq!(scene.sweep().await?["resealed"], 1);
    let records = scene.store().records()?;
    assert!(
        records
            .values()
            .all(|it| it["key_version"] == json!(newest))
    );
    scene.end().await?;
    Ok(())
}

/// Each does a part, also where each of the tenants has little to do, and where one of them begins first.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_sweep_at_once_share_what_is_due() -> Result {
    let folder = tempfile::tempdir()?;
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let tables = Tables::create()?;
    let options = Options {
        tables: Some(tables),
        manifest: Some(postgres_manifest(folder.path())?),
        ..Options::for_emulators(&emulators)
    }
    .set("sweep_concurrency", "2");
    let mut apps = Vec::new();
    for _ in 0..3 {
        apps.push(App::start(options.clone()).await?);
    }
    for tenant in [TENANT, OTHER_TENANT] {
        for user in 0..12 {
            let user = format!("{user:08}-0000-4000-8000-000000000000");
            let token = emulators.caller().tenant(tenant).user(&user).mint();
            let enrolled = apps[0].send(Method::PUT, "/v1/me", Some(&token), None);
            assert_eq!(enrolled.await?.status, 201);
        }
    }
    apps[0].store().make_due()?;
    emulators.fault(Fault {
        delay_ms: 500,
        ..Fault::new(Target::EntraToken, Answer::Pass)
            .grant("refresh_token")
            .times(u32::MAX)
    });
    let key = &emulators.options().sweep_key;
    let sweeps = apps
        .iter()
        .map(|app| app.send(Method::POST, "/v1/sweep", Some(key), None));
    let reports = try_join_all(sweeps).await?;
    let done = reports
        .iter()
        .map(|it| it.json["refreshed"].as_u64().unwrap());
    let done: Vec<_> = done.collect();
    assert_eq!(done.iter().sum::<u64>(), 24, "{reports:?}");
    assert!(done.iter().all(|done| *done >= 4), "{done:?}");
    for app in apps {
        app.stop().await?;
    }
    emulators.stop().await;
    Ok(())
}
