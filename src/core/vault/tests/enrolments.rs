//! What is sealed for whom, and who may draw what.

use super::*;

#[test]
fn a_cold_call_asks_what_it_must_and_a_warm_one_only_entra() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    assert_eq!(
        world.take_calls(),
        [
            "keys",
            "entra client_credentials",
            "key vault ",
            "entra jwt-bearer"
        ]
    );
    assert_eq!(sealed.key_version.as_str(), World::version(0));
    let bearer = world.bearer();
    for _ in 0..3 {
        let issued = draw(&vault, &bearer, &sealed.token, Draw::default()).unwrap();
        assert!(issued.access_token.expose().starts_with("at-canary-"));
        assert_eq!(issued.replacement, None);
        assert_eq!(world.take_calls(), ["entra refresh_token"]);
    }
}

#[test]
fn anothers_token_does_not_open_and_nothing_is_asked_for_it() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.take_calls();
    let other = world.bearer_of(OTHER_USER);
    let error = draw(&vault, &other, &sealed.token, Draw::default()).unwrap_err();
    assert_eq!(error, StoredError::NotBound.into());
    assert_eq!(world.take_calls(), Vec::<String>::new());
}

#[test]
fn a_token_of_another_enrolment_does_not_open() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (user, sealed) = enrolled(&vault, &world);
    let other = Nonce::parse("1793606000other").unwrap();
    let error = block_on(vault.access_token(
        &world.bearer(),
        &Subject::Me,
        &other,
        &sealed.token,
        Draw::default(),
        LONGEST.into(),
    ))
    .unwrap_err();
    assert_eq!(error, StoredError::NotBound.into());
    let stored = StoredToken {
        user,
        nonce: other,
        token: sealed.token,
    };
    assert_eq!(
        block_on(vault.refresh(&stored, LONGEST.into())).unwrap_err(),
        StoredError::NotBound.into()
    );
}

#[test]
fn a_token_moved_to_another_users_record_is_not_refreshed() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (user, sealed) = enrolled(&vault, &world);
    world.rotate();
    world.advance(301);
    let bearer = world.bearer_of(OTHER_USER);
    let caller = vault.identify(&bearer, &Subject::Me, &Purpose::Manage, LONGEST.into());
    let other = block_on(caller).unwrap().user;
    world.take_calls();
    let moved = StoredToken {
        user: other,
        nonce: nonce(),
        token: sealed.token.clone(),
    };
    assert_eq!(
        block_on(vault.refresh(&moved, LONGEST.into())).unwrap_err(),
        StoredError::NotBound.into()
    );
    assert_eq!(
        block_on(vault.reseal(&moved, LONGEST.into())).unwrap_err(),
        StoredError::NotBound.into()
    );
    let tenant = Guid::parse(OTHER_USER).unwrap();
    let foreign = StoredToken {
        user: User { tenant, ..user },
        nonce: nonce(),
        token: sealed.token,
    };
    assert_eq!(
        block_on(vault.refresh(&foreign, LONGEST.into())).unwrap_err(),
        CallerError::TenantNotAllowed.into()
    );
    assert!(
        !world
            .take_calls()
            .contains(&"entra refresh_token".to_owned())
    );
}

#[test]
fn a_scope_is_of_one_resource_in_full_and_granted() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.take_calls();
    for (scope, is_scope) in [
        ("https://vault.azure.net/.default", true),
        ("User.Read", false),
        (
            "https://graph.microsoft.com/User.Read https://vault.azure.net/x",
            false,
        ),
        ("", false),
    ] {
        let is_expected = |error: &VaultError| match error {
            VaultError::Caller(CallerError::NotGranted(_)) => is_scope,
            VaultError::Caller(CallerError::InvalidScope(_)) => !is_scope,
            _ => false,
        };
        let asked = Draw {
            scope: Some(scope.into()),
            ..Draw::default()
        };
        let error = draw(&vault, &world.bearer(), &sealed.token, asked).unwrap_err();
        assert!(is_expected(&error), "{scope}: {error:?}");
        let error = block_on(vault.enrol(&world.bearer(), &nonce(), Some(scope), LONGEST.into()))
            .unwrap_err();
        assert!(is_expected(&error), "{scope}: {error:?}");
    }
    assert_eq!(world.take_calls(), Vec::<String>::new());
    let asked = Draw {
        scope: Some("https://graph.microsoft.com/User.Read".into()),
        ..Draw::default()
    };
    let issued = draw(&vault, &world.bearer(), &sealed.token, asked).unwrap();
    assert_eq!(
        issued.scope,
        "https://graph.microsoft.com/User.Read offline_access"
    );
}

#[test]
fn claims_that_are_no_object_are_refused() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    for claims in [
        "",
        "[]",
        "{",
        &format!("{{\"a\":\"{}\"}}", "x".repeat(4096)),
    ] {
        let asked = Draw {
            claims: Some(claims.into()),
            ..Draw::default()
        };
        let error = draw(&vault, &world.bearer(), &sealed.token, asked).unwrap_err();
        assert!(
            matches!(error, VaultError::Caller(CallerError::InvalidRequest(_))),
            "{error:?}"
        );
    }
}

#[test]
fn claims_are_taken_as_a_challenge_carries_them() {
    let claims = r#"{"access_token":{"nbf":{"essential":true,"value":"1793608800??>"}}}"#;
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    for text in [
        claims.to_owned(),
        STANDARD.encode(claims),
        STANDARD.encode(claims).trim_end_matches('=').to_owned(),
        URL_SAFE_NO_PAD.encode(claims),
    ] {
        let asked = Draw {
            claims: Some(text.clone()),
            ..Draw::default()
        };
        draw(&vault, &world.bearer(), &sealed.token, asked).unwrap();
        assert_eq!(
            world.claims.take(),
            [claims],
            "{text} reaches Entra ID as JSON"
        );
    }
}

#[test]
fn a_draw_without_scope_has_the_scope_of_the_enrolment() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let mail = "https://graph.microsoft.com/Mail.Read";
    let enrolment =
        block_on(vault.enrol(&world.bearer(), &nonce(), Some(mail), LONGEST.into())).unwrap();
    let token = enrolment.sealed.token;
    let issued = draw(&vault, &world.bearer(), &token, Draw::default()).unwrap();
    assert_eq!(issued.scope, format!("{mail} offline_access"));
    // What may be drawn is what the settings say now.
    let another = GRANTS.replace(r#""scopes": ["*"]"#, r#""scopes": ["User.Read"]"#);
    world.settings.borrow_mut().extend([("grants", another)]);
    world.advance(settings::source::FRESH);
    world.take_calls();
    let error = draw(&vault, &world.bearer(), &token, Draw::default()).unwrap_err();
    assert!(error.to_string().contains("Mail.Read"), "{error}");
    assert_eq!(world.take_calls(), Vec::<String>::new());
}

/// RFC 6749 §5.1: it may be left out if it is what was asked for.
#[test]
fn an_answer_without_scope_has_the_one_that_was_asked_for() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    let mail = "https://graph.microsoft.com/Mail.Read";
    for (asked, expected) in [
        (None, "https://graph.microsoft.com/.default"),
        (Some(mail), mail),
    ] {
        let answer = json!({"token_type": "Bearer", "expires_in": 3599, "access_token": "at"});
        world.entra_answers.borrow_mut().push_back((200, answer));
        let asked = Draw {
            scope: asked.map(Into::into),
            ..Draw::default()
        };
        let issued = draw(&vault, &world.bearer(), &sealed.token, asked).unwrap();
        assert_eq!(issued.scope, expected);
    }
}

#[test]
fn without_a_key_entra_is_not_asked() {
    let world = World::new();
    world.keys.borrow_mut().clear();
    let vault = Vault::new(Rc::clone(&world));
    let error = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into())).unwrap_err();
    assert_eq!(
        error,
        CallerError::TenantNotOnboarded(format!("obo-{TENANT}")).into()
    );
    assert!(!world.take_calls().contains(&"entra jwt-bearer".to_owned()));
}

#[test]
fn a_reseal_moves_to_the_newest_key_without_entra() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (user, sealed) = enrolled(&vault, &world);
    let stored = StoredToken {
        user: user.clone(),
        nonce: nonce(),
        token: sealed.token,
    };
    world.down.borrow_mut().push("entra");
    assert_eq!(block_on(vault.reseal(&stored, LONGEST.into())), Ok(None));
    world.rotate();
    assert_eq!(
        block_on(vault.newest_key_version(&user.tenant, LONGEST.into()))
            .unwrap()
            .version
            .as_str(),
        World::version(1)
    );
    let resealed = block_on(vault.reseal(&stored, LONGEST.into()))
        .unwrap()
        .unwrap();
    assert_eq!(resealed.key_version.as_str(), World::version(1));
    world.down.borrow_mut().clear();
    draw(&vault, &world.bearer(), &resealed.token, Draw::default()).unwrap();
    assert_eq!(
        *world.redeemed.borrow(),
        ["rt-canary-1"],
        "the same refresh token as before"
    );
}

#[test]
fn a_refresh_yields_the_successor_under_the_newest_key() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (user, sealed) = enrolled(&vault, &world);
    world.rotate();
    world.advance(301);
    let stored = StoredToken {
        user: user.clone(),
        nonce: nonce(),
        token: sealed.token,
    };
    let next = block_on(vault.refresh(&stored, LONGEST.into())).unwrap();
    assert_eq!(next.key_version.as_str(), World::version(1));
    block_on(vault.refresh(
        &StoredToken {
            token: next.token,
            ..stored
        },
        LONGEST.into(),
    ))
    .unwrap();
    let redeemed = world.redeemed.borrow();
    assert_ne!(redeemed[0], redeemed[1]);
}

/// They would enrol, and never be refreshed.
#[test]
fn users_of_the_operator_tenant_need_it_among_the_tenants() {
    let operator = "55555555-5555-5555-5555-555555555555";
    let world = World::new();
    let setting = ("operator_tenant", operator.to_owned());
    world.settings.borrow_mut().extend([setting]);
    let vault = Vault::new(Rc::clone(&world));
    let user = world.bearer_in(operator, OTHER_USER);
    for error in [
        block_on(vault.identify(&user, &Subject::Me, &Purpose::Manage, LONGEST.into()))
            .unwrap_err(),
        block_on(vault.enrol(&user, &nonce(), None, LONGEST.into())).unwrap_err(),
    ] {
        assert_eq!(error, CallerError::TenantNotAllowed.into());
    }
    assert_eq!(world.take_calls(), Vec::<String>::new());
    let app = token(|claims| {
        claims["tid"] = json!(operator);
        claims["iss"] = json!(format!("https://login.microsoftonline.com/{operator}/v2.0"));
        claims["scp"].take();
        claims["sub"] = claims["oid"].clone();
        claims["roles"] = json!([Role::Read.name()]);
    });
    let other = TenantId::parse(TENANT).unwrap();
    block_on(vault.authorize_operator(&app, Role::Read, Some(&other), LONGEST.into())).unwrap();
}

#[test]
fn a_guest_is_served_in_the_tenant_of_the_token() {
    // Multi-tenant: any organisation, and Key Vault in a tenant of its own.
    let guest_tenant = "55555555-5555-5555-5555-555555555555";
    let world = World::new();
    {
        let mut settings = world.settings.borrow_mut();
        settings.insert("tenants", "*".to_owned());
        settings.insert("key_vault_tenant", TENANT.to_owned());
    }
    let mut claims = samples::claims();
    claims["tid"] = json!(guest_tenant);
    claims["iss"] = json!(format!(
        "https://login.microsoftonline.com/{guest_tenant}/v2.0"
    ));
    claims["acct"] = json!(1);
    claims["idp"] = json!(format!("https://sts.windows.net/{TENANT}/"));
    let bearer = samples::sign(&json!({"typ": "JWT", "alg": "RS256", "kid": "k1"}), &claims);
    let vault = Vault::new(Rc::clone(&world));
    let caller = vault.identify(&bearer, &Subject::Me, &Purpose::Manage, LONGEST.into());
    assert_eq!(block_on(caller).unwrap().user.tenant.as_str(), guest_tenant);
    let enrolment = block_on(vault.enrol(&bearer, &nonce(), None, LONGEST.into())).unwrap();
    assert_eq!(enrolment.user.tenant.as_str(), guest_tenant);
    assert!(world.take_calls().contains(&"key vault ".to_owned()));
}

#[test]
fn a_key_that_is_worn_out_opens_but_does_not_seal() {
    let world = World::new();
    let mut vault = Vault::new(Rc::clone(&world));
    let (user, sealed) = enrolled(&vault, &world);
    vault.sealer = Sealer::worn_out();
    let error = OperatorError::KeyWornOut(format!("obo-{TENANT}"));
    assert_eq!(
        block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into())).unwrap_err(),
        error.clone().into()
    );
    let asked = Draw {
        replace: true,
        ..Draw::default()
    };
    let issued = draw(&vault, &world.bearer(), &sealed.token, asked).unwrap();
    assert_eq!(issued.replacement, None);
    let stored = StoredToken {
        user,
        nonce: nonce(),
        token: sealed.token,
    };
    assert_eq!(
        block_on(vault.refresh(&stored, LONGEST.into())).unwrap_err(),
        error.into()
    );
}
