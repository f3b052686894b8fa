//! What Entra ID's refusals are to whoever asked.

use super::*;

#[test]
fn refusals_reach_the_caller_by_whose_fault_they_are() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    let refusal = |error: &str, code: u32| {
        (
            400,
            json!({"error": error, "error_codes": [code], "claims": "{}", "error_description": "canary user@contoso"}),
        )
    };
    let down = |holds_up| {
        VaultError::from(UpstreamError {
            system: System::Entra,
            retry_after_seconds: None,
            holds_up,
        })
    };
    for (code, on_enrol, on_draw) in [
        (
            50_173,
            VaultError::from(UserError::InteractionRequired(Interaction {
                claims: None,
                reason: reason(50_173),
            })),
            VaultError::from(UserError::ReenrolmentRequired(reason(50_173))),
        ),
        (
            500_133,
            TokenDefect::Rejected.into(),
            OperatorError::EntraRefused(reason(500_133)).into(),
        ),
        (90_033, down(HoldsUp::Tenant), down(HoldsUp::Tenant)),
        (
            700_016,
            OrganisationError(reason(700_016)).into(),
            OrganisationError(reason(700_016)).into(),
        ),
        (
            7_000_114,
            OperatorError::EntraRefused(reason(7_000_114)).into(),
            OperatorError::EntraRefused(reason(7_000_114)).into(),
        ),
        // The scope is the settings'.
        (
            70_011,
            OperatorError::EntraRefused(reason(70_011)).into(),
            OperatorError::EntraRefused(reason(70_011)).into(),
        ),
        (
            7_000_215,
            credential_refused("client_secret", Some(7_000_215)),
            credential_refused("client_secret", Some(7_000_215)),
        ),
    ] {
        world
            .entra_answers
            .borrow_mut()
            .push_back(refusal("invalid_grant", code));
        assert_eq!(
            block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into())).unwrap_err(),
            on_enrol
        );
        world.advance(token_client::PAUSE.into());
        world
            .entra_answers
            .borrow_mut()
            .push_back(refusal("invalid_grant", code));
        assert_eq!(
            draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err(),
            on_draw
        );
        world.advance(token_client::PAUSE.into());
    }
    let log = world.log.borrow().join("\n");
    assert!(
        log.contains("50173") && !log.contains("contoso") && !log.contains("canary"),
        "{log}"
    );
}

#[test]
fn a_scope_that_is_none_is_the_fault_of_whoever_chose_it() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    let asked = |scope: &str| Draw {
        scope: Some(scope.into()),
        ..Draw::default()
    };
    for code in [70_011, 650_053, 650_057, 28_002, 28_003] {
        world.entra_answers.borrow_mut().push_back((
            401,
            json!({"error": "invalid_client", "error_codes": [code]}),
        ));
        let draw = draw(
            &vault,
            &world.bearer(),
            &sealed.token,
            asked("https://graph.microsoft.com/None"),
        );
        assert_eq!(
            draw.unwrap_err(),
            CallerError::InvalidScope(reason(code)).into()
        );
    }
    world.take_calls();
    for scope in [
        "https://graph.microsoft.com/.default https://graph.microsoft.com/User.Read",
        "https://graph.microsoft.com/User.Read https://graph.microsoft.com/.Default",
    ] {
        let mixed = VaultError::from(CallerError::InvalidScope(Reason::default()));
        let refused = draw(&vault, &world.bearer(), &sealed.token, asked(scope));
        assert_eq!(refused.unwrap_err(), mixed);
        let enrolment =
            block_on(vault.enrol(&world.bearer(), &nonce(), Some(scope), LONGEST.into()));
        assert_eq!(enrolment.unwrap_err(), mixed);
    }
    assert_eq!(world.take_calls(), Vec::<String>::new(), "refused here");
}

#[test]
fn a_refused_token_for_key_vault_is_no_users_fault() {
    let world = World::new();
    for code in [50_173, 50_076, 50_105, 70_011, 500_011] {
        let answer =
            json!({"error": "invalid_grant", "error_codes": [code], "suberror": "bad_token"});
        world.app_answers.borrow_mut().push_back((400, answer));
        let vault = Vault::new(Rc::clone(&world));
        let reason = Reason {
            aadsts: Some(code),
            suberror: Some(Suberror::BadToken),
        };
        assert_eq!(
            block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into())).unwrap_err(),
            OperatorError::KeyVaultTokenRefused(reason).into()
        );
    }
}

#[test]
fn no_refresh_token_is_no_enrolment() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    world.entra_answers.borrow_mut().push_back((
        200,
        json!({"token_type": "Bearer", "expires_in": 1, "access_token": "at"}),
    ));
    assert_eq!(
        block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into())).unwrap_err(),
        OperatorError::NoRefreshToken.into()
    );
}
