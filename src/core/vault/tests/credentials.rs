//! How the vault proves which app it is.

use super::*;

#[test]
fn a_certificate_signs_one_assertion_for_ten_minutes() {
    let world = with_credential("certificate");
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.advance(479);
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    let proofs = world.proofs.take();
    assert_eq!(proofs.len(), 3);
    assert!(proofs[0].starts_with("eyJ") && proofs.iter().all(|proof| *proof == proofs[0]));
    world.advance(1);
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    assert_ne!(world.proofs.take(), [proofs[0].clone()]);
}

#[test]
fn a_federated_token_is_sent_as_it_is() {
    let world = with_credential("federated-token");
    enrolled(&Vault::new(Rc::clone(&world)), &world);
    assert_eq!(world.proofs.take(), ["federated-canary.b.c"; 2]);
    assert_eq!(
        world.take_calls(),
        [
            "keys",
            "entra client_credentials",
            "key vault ",
            "entra jwt-bearer"
        ]
    );
}

#[test]
fn a_managed_identity_is_the_app_and_its_token_is_kept() {
    let world = with_credential("managed-identity");
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    assert_eq!(
        world.take_calls(),
        [
            "keys",
            "identity api://AzureADTokenExchange",
            "entra client_credentials",
            "key vault ",
            "entra jwt-bearer"
        ]
    );
    let proofs = world.proofs.take();
    assert!(proofs[0].starts_with("identity-canary") && proofs[0] == proofs[1]);
    world.advance(3000);
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    assert_eq!(world.take_calls(), ["entra refresh_token"]);
}

#[test]
fn key_vault_is_asked_as_the_managed_identity_whatever_the_app_is() {
    let world = World::new();
    world
        .settings
        .borrow_mut()
        .insert("key_vault_credential", "managed-identity".to_owned());
    // An upgrade of the endpoint.
    world
        .identity_answers
        .borrow_mut()
        .push_back((410, json!({})));
    enrolled(&Vault::new(Rc::clone(&world)), &world);
    assert_eq!(
        world.take_calls(),
        [
            "keys",
            "identity https://vault.azure.net",
            "identity https://vault.azure.net",
            "key vault ",
            "entra jwt-bearer"
        ]
    );
    assert_eq!(world.proofs.take(), ["client-secret-canary"]);
}

#[test]
fn a_wrong_credential_is_named_with_its_number_and_made_anew() {
    for (credential, setting, code) in [
        ("certificate", "certificate_pem", 700_027),
        ("federated-token", "federated_token", 700_213),
        ("managed-identity", "managed_identity_client_id", 70_021),
    ] {
        let world = with_credential(credential);
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        let refusal = (
            401,
            json!({"error": "invalid_client", "error_codes": [code]}),
        );
        // What is made for the purpose is made anew once in the request; a setting is what it is.
        let tries = if credential == "federated-token" {
            1
        } else {
            2
        };
        world.proofs.take();
        let refusals = std::iter::repeat_n(refusal.clone(), tries);
        world.entra_answers.borrow_mut().extend(refusals);
        let error = draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err();
        assert!(world.entra_answers.borrow().is_empty());
        let refused: BTreeSet<_> = world.proofs.take().into_iter().collect();
        assert_eq!(refused.len(), tries, "each another one");
        assert_eq!(error, credential_refused(setting, Some(code)));
        let told = error.to_string();
        assert!(
            told.contains(setting) && told.contains(&format!("AADSTS{code}")),
            "{told}"
        );
        draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
        let proofs = world.proofs.take();
        if credential != "federated-token" {
            assert!(!refused.contains(&proofs[0]), "made anew");
            // A refusal of what was kept is not even noticed.
            world.entra_answers.borrow_mut().push_back(refusal);
            draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
            let anew = world.proofs.take();
            assert_eq!(anew.len(), 2);
            assert_eq!(anew[0], proofs[0], "kept");
            assert_ne!(anew[1], proofs[0], "made anew");
        }
        let log = world.log.borrow().join("\n");
        assert!(!log.contains("canary") && !log.contains("eyJ"), "{log}");
    }
    let world = with_credential("managed-identity");
    let vault = Vault::new(Rc::clone(&world));
    world.identity_answers.borrow_mut().push_back((
        400,
        json!({"error": "invalid_request", "error_description": "Identity not found"}),
    ));
    assert_eq!(
        block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into())).unwrap_err(),
        credential_refused("managed_identity_client_id", None)
    );
    world.down.borrow_mut().push("identity");
    assert_eq!(
        block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into())).unwrap_err(),
        VaultError::upstream(System::ManagedIdentity)
    );
}

#[test]
fn an_assertion_is_made_once_at_a_time_and_kept_for_every_tenant() {
    for credential in ["certificate", "managed-identity"] {
        let world = with_credential(credential);
        world.settings.borrow_mut().insert("tenants", "*".into());
        let vault = Vault::new(Rc::clone(&world));
        let sealed = enrolled(&vault, &world).1;
        world.advance(3600);
        world.proofs.take();
        world.take_calls();
        world.slow.set(true);
        let bearer = world.bearer();
        let draws = ["A", "B", "C", "D"].map(|scope| {
            let draw = Draw {
                scope: Some(format!("https://graph.microsoft.com/{scope}")),
                ..Draw::default()
            };
            (draw, nonce())
        });
        let draws = draws.iter().map(|(draw, nonce)| {
            vault.access_token(
                &bearer,
                &Subject::Me,
                nonce,
                &sealed.token,
                draw.clone(),
                LONGEST.into(),
            )
        });
        for drawn in block_on(join_all(draws)) {
            drawn.unwrap();
        }
        let proofs: BTreeSet<_> = world.proofs.take().into_iter().collect();
        assert_eq!(proofs.len(), 1, "{credential}");
        let calls = world.take_calls();
        let asked = calls.iter().filter(|call| call.starts_with("identity"));
        assert!(asked.count() <= 1, "{calls:?}");
        // More tenants than there were places once.
        world.slow.set(false);
        let tenant = |number: u32| format!("{number:08x}-7777-7777-7777-777777777777");
        let draw_of = |number| {
            let bearer = world.bearer_in(&tenant(number), OTHER_USER);
            block_on(vault.enrol(&bearer, &nonce(), None, LONGEST.into())).unwrap();
        };
        (0..300).for_each(draw_of);
        world.proofs.take();
        draw_of(0);
        let first = world.proofs.take();
        draw_of(0);
        assert_eq!(world.proofs.take(), first, "{credential}");
    }
}
