//! What the vault does with tenants' keys and Key Vault's answers.

use super::*;

#[test]
fn a_deleted_key_dies_within_its_cache_time() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.keys.borrow_mut().clear();
    world.advance(3599);
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    world.advance(1);
    let error = draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err();
    assert_eq!(
        error,
        OperatorError::KeyNotFound(format!("obo-{TENANT}")).into()
    );
}

#[test]
fn key_vault_down_is_told_from_damage() {
    let world = World::new();
    let (_, sealed) = enrolled(&Vault::new(Rc::clone(&world)), &world);
    world.down.borrow_mut().push("key vault");
    let cold = Vault::new(Rc::clone(&world));
    assert_eq!(
        draw(&cold, &world.bearer(), &sealed.token, Draw::default()).unwrap_err(),
        VaultError::upstream(System::KeyVault)
    );
    let damaged = format!("{}A", sealed.token);
    assert_eq!(
        draw(&cold, &world.bearer(), &damaged, Draw::default()).unwrap_err(),
        StoredError::Damaged.into()
    );
}

#[test]
fn an_unreachable_key_vault_is_noticed_when_the_key_is_past_its_time() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.down.borrow_mut().push("key vault");
    world.advance(3599);
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    world.advance(1);
    for _ in 0..2 {
        assert_eq!(
            draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err(),
            VaultError::upstream(System::KeyVault)
        );
    }
    world.down.borrow_mut().clear();
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
}

#[test]
fn key_vault_throttles_and_is_left_alone_ever_longer() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    let enrol = || block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into()));
    let throttled = |seconds| {
        VaultError::from(UpstreamError {
            system: System::KeyVault,
            retry_after_seconds: Some(seconds),
            holds_up: HoldsUp::Everyone,
        })
    };
    let answer = |status| (status, json!({"error": {"code": "Throttled"}}));
    let questions = || {
        let calls = world.take_calls().into_iter();
        calls.filter(|call| call.starts_with("key vault")).count()
    };
    world.advance(301);
    questions();
    for seconds in [1, 2, 4, 8, 16, 16] {
        world.key_vault_answers.borrow_mut().push_back(answer(429));
        assert_eq!(enrol().unwrap_err(), throttled(seconds));
        world.advance(u64::from(seconds) - 1);
        assert_eq!(enrol().unwrap_err(), throttled(1));
        assert_eq!(questions(), 1, "it was asked again before its time");
        // What needs no question is not held up.
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
        world.advance(1);
    }
    enrol().unwrap();
    // It works again, and says how long the next time.
    world.advance(301);
    world.key_vault_answers.borrow_mut().push_back(answer(429));
    assert_eq!(enrol().unwrap_err(), throttled(1));
    world.advance(1);
    for status in [429, 503] {
        world.retry_after.set(Some(30));
        world
            .key_vault_answers
            .borrow_mut()
            .push_back(answer(status));
        assert_eq!(enrol().unwrap_err(), throttled(30));
        world.retry_after.set(None);
        world.advance(29);
        questions();
        assert_eq!(enrol().unwrap_err(), throttled(1));
        assert_eq!(questions(), 0);
        world.advance(1);
    }
    // An outage asks for nothing: the next request may find it over.
    world
        .key_vault_answers
        .borrow_mut()
        .extend([answer(503), answer(503)]);
    assert_eq!(enrol().unwrap_err(), VaultError::upstream(System::KeyVault));
    enrol().unwrap();
}

#[test]
fn a_token_that_key_vault_no_longer_takes_is_replaced_once() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    enrolled(&vault, &world);
    world.advance(301);
    world.take_calls();
    world
        .key_vault_answers
        .borrow_mut()
        .push_back((401, json!({})));
    enrolled(&vault, &world);
    assert_eq!(
        world.take_calls(),
        [
            "key vault ",
            "entra client_credentials",
            "key vault ",
            "entra jwt-bearer"
        ]
    );
    // A new one that is not accepted either: it is not as it should be, or will be accepted in a moment.
    let in_a_moment = UpstreamError {
        system: System::KeyVault,
        retry_after_seconds: Some(1),
        holds_up: HoldsUp::Everyone,
    };
    for (message, expected) in [
        (
            "AKV10022: Invalid audience.",
            OperatorError::KeyVaultRefused.into(),
        ),
        (
            "AKV10032: Invalid issuer.",
            OperatorError::KeyVaultRefused.into(),
        ),
        ("AKV10046: Unable to resolve the key.", in_a_moment.into()),
    ] {
        world.advance(301);
        let answer = json!({"error": {"code": "Unauthorized", "message": message}});
        let answers = std::iter::repeat_n((401, answer), 2);
        world.key_vault_answers.borrow_mut().extend(answers);
        let outcome = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into()));
        assert_eq!(outcome.unwrap_err(), expected, "{message}");
    }
}

#[test]
fn a_vault_that_moves_to_another_tenant_is_followed() {
    let other = "88888888-8888-8888-8888-888888888888";
    for setting in ["", TENANT] {
        let world = World::new();
        world
            .settings
            .borrow_mut()
            .insert("key_vault_tenant", setting.to_owned());
        let vault = Vault::new(Rc::clone(&world));
        enrolled(&vault, &world);
        *world.key_vault_in.borrow_mut() = other.to_owned();
        world.advance(301);
        enrolled(&vault, &world);
        assert_eq!(world.lines("key_vault_moved"), 1);
        // And from then on at once.
        world.advance(3600);
        world.take_calls();
        enrolled(&vault, &world);
        let calls = world.take_calls();
        let asked = calls.iter().filter(|call| call.starts_with("key vault"));
        assert_eq!(asked.count(), 1);
    }
}

/// With `tenants=*` anybody can come from a tenant that was never set up, as often as he likes.
#[test]
fn a_tenant_without_a_key_is_asked_for_once_a_minute() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let enrol = || block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into())).map(drop);
    let none = CallerError::TenantNotOnboarded(format!("obo-{TENANT}"));
    let keys = world.keys.take();
    for _ in 0..100 {
        assert_eq!(enrol(), Err(none.clone().into()));
    }
    let asked = |world: &World| {
        let calls = world.take_calls();
        calls
            .iter()
            .filter(|call| call.starts_with("key vault"))
            .count()
    };
    assert_eq!(asked(&world), 1);
    world.advance(key_ring::NOT_ONBOARDED_SECONDS);
    assert_eq!(enrol(), Err(none.clone().into()));
    assert_eq!(asked(&world), 1);
    // A sweep asks anyhow, and what it finds ends it.
    world.keys.replace(keys);
    let tenant = TenantId::parse(TENANT).unwrap();
    assert_eq!(enrol(), Err(none.into()));
    block_on(vault.newest_key_version(&tenant, LONGEST.into())).unwrap();
    enrol().unwrap();
}

#[test]
fn a_record_whose_key_is_gone_is_no_matter_of_onboarding() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.keys.take();
    let error = draw(
        &Vault::new(Rc::clone(&world)),
        &world.bearer(),
        &sealed.token,
        Draw::default(),
    );
    let gone = OperatorError::KeyNotFound(format!("obo-{TENANT}"));
    assert_eq!(error.unwrap_err(), gone.into());
}

/// Continuous access evaluation: Key Vault says what the new token has to have.
#[test]
fn what_a_challenge_asks_for_is_asked_of_entra() {
    let claims = r#"{"access_token":{"nbf":{"essential":true,"value":"1793608800"}}}"#;
    let asked = format!("entra client_credentials {claims}");
    for (encoded, grant) in [
        (STANDARD.encode(claims), &*asked),
        (URL_SAFE_NO_PAD.encode(claims), &*asked),
        // What is none is not passed on.
        (STANDARD.encode("[]"), "entra client_credentials"),
        ("?".to_owned(), "entra client_credentials"),
    ] {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        enrolled(&vault, &world);
        world.advance(301);
        world.take_calls();
        *world.challenge.borrow_mut() =
            format!(r#", error="insufficient_claims", claims="{encoded}""#);
        world
            .key_vault_answers
            .borrow_mut()
            .push_back((401, json!({})));
        enrolled(&vault, &world);
        let calls = world.take_calls();
        assert_eq!(calls[..3], ["key vault ", grant, "key vault "], "{encoded}");
    }
}

#[test]
fn expired_keys_do_not_seal_and_open_only_in_their_grace() {
    let world = World::new();
    world
        .settings
        .borrow_mut()
        .insert("key_grace_seconds", "60".to_owned());
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    // Out of the caches, and expired since.
    world.advance(3600);
    let expired = json!({"value": FIRST_KEY, "id": format!("https://demo.vault.azure.net/secrets/obo-{TENANT}/{}", World::version(0)), "attributes": {"exp": world.now.get() - 1}});
    world
        .key_vault_answers
        .borrow_mut()
        .extend([(200, expired.clone()), (200, expired)]);
    let refused = VaultError::from(OperatorError::KeyNotValid(format!("obo-{TENANT}")));
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    let error = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into())).unwrap_err();
    assert_eq!(error, refused);
    world.advance(58);
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    world.advance(1);
    let error = draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err();
    assert_eq!(error, refused, "from the cache, and past its grace");
}

#[test]
fn the_tenant_for_key_vault_is_its_challenges_or_the_settings() {
    let world = World::new();
    world
        .settings
        .borrow_mut()
        .insert("key_vault_tenant", TENANT.to_owned());
    world.down.borrow_mut().push("key vault");
    let vault = Vault::new(Rc::clone(&world));
    let error = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into())).unwrap_err();
    assert_eq!(error, VaultError::upstream(System::KeyVault));
    // Asked for a token without having been challenged.
    assert_eq!(world.take_calls(), ["keys", "entra client_credentials"]);
}

#[test]
fn a_key_that_many_miss_is_fetched_once() {
    let world = World::new();
    let (_, sealed) = enrolled(&Vault::new(Rc::clone(&world)), &world);
    world.rotate();
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
    for issued in block_on(join_all(draws)) {
        issued.unwrap();
    }
    let mut calls = world.take_calls();
    calls.retain(|call| call.starts_with("key vault"));
    assert_eq!(calls, [format!("key vault {}", World::version(0))]);
}
