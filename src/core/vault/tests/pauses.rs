//! Whom a refusal holds up, and what is asked for once for all who wait.

use futures_util::future::join;

use super::*;
use crate::simulation::world::turn;

fn left(error: VaultError) -> Option<u32> {
    match error {
        VaultError::Upstream(UpstreamError {
            system: System::Entra,
            retry_after_seconds,
            ..
        }) => retry_after_seconds,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_loop_pauses_its_user_and_no_other() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.entra_answers.borrow_mut().push_back((
        400,
        json!({"error": "invalid_grant", "error_codes": [50_196], "suberror": "bad_token"}),
    ));
    let error = draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err();
    assert_eq!(left(error), Some(300));
    world.take_calls();
    world.advance(100);
    // For whatever the user asks, and nothing reaches Entra ID.
    let asked = Draw {
        scope: Some("https://graph.microsoft.com/Mail.Read".into()),
        ..Draw::default()
    };
    let error = draw(&vault, &world.bearer(), &sealed.token, asked).unwrap_err();
    assert_eq!(left(error), Some(200));
    let error = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into())).unwrap_err();
    assert_eq!(left(error), Some(200));
    assert_eq!(world.take_calls(), Vec::<String>::new());
    let other = world.bearer_of(OTHER_USER);
    block_on(vault.enrol(&other, &nonce(), None, LONGEST.into())).unwrap();
    world.advance(200);
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
}

#[test]
fn throttling_and_outages_pause_the_tenant_and_no_other() {
    let other_tenant = "55555555-5555-5555-5555-555555555555";
    for (answer, tries, seconds) in [
        ((429, json!({})), 1, 5),
        ((503, json!("<html>")), 2, 5),
        (
            (
                429,
                json!({"error": "temporarily_unavailable", "error_codes": [90_055]}),
            ),
            1,
            5,
        ),
    ] {
        let world = World::new();
        {
            let mut settings = world.settings.borrow_mut();
            settings.insert("tenants", format!("{TENANT},{other_tenant}"));
            // Which is known, so that nothing but the user's own grant could be held up.
            settings.insert("key_vault_tenant", TENANT.to_owned());
        }
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        world
            .entra_answers
            .borrow_mut()
            .extend(std::iter::repeat_n(answer, tries));
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err();
        world.take_calls();
        // Another user of the tenant, who needs nothing but Entra ID.
        let other = world.bearer_of(OTHER_USER);
        let error = block_on(vault.enrol(&other, &nonce(), None, LONGEST.into())).unwrap_err();
        assert_eq!(left(error), Some(seconds));
        assert_eq!(world.take_calls(), Vec::<String>::new());
        let foreign = world.bearer_in(other_tenant, OTHER_USER);
        block_on(vault.enrol(&foreign, &nonce(), None, LONGEST.into())).unwrap();
        world.advance(seconds.into());
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    }
}

#[test]
fn an_outage_of_a_moment_is_not_noticed() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.take_calls();
    world
        .entra_answers
        .borrow_mut()
        .push_back((502, json!("<html>")));
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    assert_eq!(
        world.take_calls(),
        ["entra refresh_token", "entra refresh_token"]
    );
}

#[test]
fn the_same_grant_is_asked_for_once_at_a_time() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.take_calls();
    world.slow.set(true);
    let bearer = world.bearer();
    let (scopes, nonce) = (
        [
            None,
            None,
            Some("https://graph.microsoft.com/Mail.Read"),
            None,
        ],
        nonce(),
    );
    let draws = scopes.map(|scope| {
        let draw = Draw {
            scope: scope.map(Into::into),
            replace: true,
            ..Draw::default()
        };
        vault.access_token(
            &bearer,
            &Subject::Me,
            &nonce,
            &sealed.token,
            draw,
            LONGEST.into(),
        )
    });
    let issued: Vec<_> = block_on(join_all(draws))
        .into_iter()
        .map(|issued| issued.unwrap())
        .collect();
    assert_eq!(
        world.take_calls(),
        ["entra refresh_token", "entra refresh_token"]
    );
    let token = |at: usize| issued[at].access_token.expose();
    assert!(token(0) == token(1) && token(0) == token(3) && token(0) != token(2));
    assert!(issued.iter().all(|issued| issued.replacement.is_some()));
    // One after another, each is asked for.
    draw(&vault, &bearer, &sealed.token, Draw::default()).unwrap();
    draw(&vault, &bearer, &sealed.token, Draw::default()).unwrap();
    assert_eq!(world.take_calls().len(), 2);
}

#[test]
fn a_cold_crowd_asks_for_each_thing_once() {
    let world = World::new();
    world.slow.set(true);
    let vault = Vault::new(Rc::clone(&world));
    let users: Vec<_> = (0..5)
        .map(|n| world.bearer_of(&format!("{n}4444444-4444-4444-8444-444444444444")))
        .collect();
    let nonce = nonce();
    let enrolments = users
        .iter()
        .map(|user| vault.enrol(user, &nonce, None, LONGEST.into()));
    for enrolment in block_on(join_all(enrolments)) {
        enrolment.unwrap();
    }
    let mut calls = world.take_calls();
    calls.retain(|call| call != "entra jwt-bearer");
    assert_eq!(calls, ["keys", "entra client_credentials", "key vault "]);
}

/// Whoever waited for the key finds what was drawn by whoever fetched it.
#[test]
fn a_cold_crowd_of_one_user_draws_once() {
    let world = World::new();
    let (_, sealed) = enrolled(&Vault::new(Rc::clone(&world)), &world);
    world.take_calls();
    world.slow.set(true);
    let vault = Vault::new(Rc::clone(&world));
    let (bearer, nonce) = (world.bearer(), nonce());
    let draws = (0..5).map(|_| {
        vault.access_token(
            &bearer,
            &Subject::Me,
            &nonce,
            &sealed.token,
            Draw::default(),
            LONGEST.into(),
        )
    });
    // The key comes while all but one look seldom whether it is there.
    *world.held.borrow_mut() = Some(("key vault", TENANT.into()));
    let release = async {
        for _ in 0..40 {
            turn().await;
        }
        world.held.take();
    };
    let (issued, ()) = block_on(join(join_all(draws), release));
    let issued: Vec<_> = issued.into_iter().map(|issued| issued.unwrap()).collect();
    let mut calls = world.take_calls();
    calls.retain(|call| call == "entra refresh_token");
    assert_eq!(calls.len(), 1);
    let first = issued[0].access_token.expose();
    assert!(issued.iter().all(|it| it.access_token.expose() == first));
}

#[test]
fn a_failure_is_shared_and_not_remembered() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.slow.set(true);
    world.entra_answers.borrow_mut().push_back((
        400,
        json!({"error": "invalid_resource", "error_codes": [50_001]}),
    ));
    let bearer = world.bearer();
    let nonce = nonce();
    let draws = (0..3).map(|_| {
        vault.access_token(
            &bearer,
            &Subject::Me,
            &nonce,
            &sealed.token,
            Draw::default(),
            LONGEST.into(),
        )
    });
    for outcome in block_on(join_all(draws)) {
        assert!(matches!(
            outcome,
            Err(VaultError::Operator(OperatorError::EntraRefused(_)))
        ));
    }
    draw(&vault, &bearer, &sealed.token, Draw::default()).unwrap();
}
