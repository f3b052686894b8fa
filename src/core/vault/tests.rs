//! What only the whole vault shows.

use std::collections::BTreeSet;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use pollster::block_on;
use serde_json::json;

use super::*;
use crate::error::*;
use crate::identity::{Guid, UserId};
use crate::secret::ClientSecret;
use crate::simulation::world::{SWEEP_KEY, Shared, World};
use crate::vault::samples::{self, CERTIFICATE, PRIVATE_KEY, TENANT};
const SETTINGS_SECONDS: u64 = 10;
const SETTINGS_USABLE: u64 = 300;
const SIGNING_KEYS_FRESH: u64 = 3600;
const SIGNING_KEYS_USABLE: u64 = 86_400;
const SIGNING_KEYS_PAUSE: u64 = 300;
const NOT_ONBOARDED_SECONDS: u64 = 60;
const PAUSE: u32 = 5;
const SWEEP_ROLE: &str = "Behalf.Sweep";

const OTHER_USER: &str = "99999999-4444-4444-4444-444444444444";

fn nonce() -> Nonce {
    Nonce::parse("1793606000nonce").unwrap()
}

fn enrolled(vault: &Vault<Shared>, world: &Shared) -> (User, SealedToken) {
    let enrolment = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap();
    (enrolment.user, enrolment.sealed)
}

fn draw(
    vault: &Vault<Shared>,
    bearer: &Bearer,
    token: &str,
    draw: Draw,
) -> Result<Issued, VaultError> {
    block_on(vault.access_token(bearer, &nonce(), token, draw, LONGEST))
}

/// A caller's token like the user's, with other claims.
fn token(edit: impl FnOnce(&mut serde_json::Value)) -> Bearer {
    let mut claims = samples::claims();
    edit(&mut claims);
    let header = json!({"typ": "JWT", "alg": "RS256", "kid": "k1"});
    samples::sign(&header, &claims)
}

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
fn the_tenant_for_key_vault_is_its_challenges_or_the_settings() {
    let world = World::new();
    world
        .settings
        .borrow_mut()
        .insert("key_vault_tenant", TENANT.to_owned());
    world.down.borrow_mut().push("key vault");
    let vault = Vault::new(Rc::clone(&world));
    let error = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err();
    assert_eq!(error, VaultError::upstream(System::KeyVault));
    // Asked for a token without having been challenged.
    assert_eq!(world.take_calls(), ["keys", "entra client_credentials"]);
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
        &other,
        &sealed.token,
        Draw::default(),
        LONGEST,
    ))
    .unwrap_err();
    assert_eq!(error, StoredError::NotBound.into());
    let stored = StoredToken {
        user,
        nonce: other,
        token: sealed.token,
    };
    assert_eq!(
        block_on(vault.refresh(&stored, LONGEST)).unwrap_err(),
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
    let (other, _) = block_on(vault.identify(&world.bearer_of(OTHER_USER), LONGEST)).unwrap();
    world.take_calls();
    let moved = StoredToken {
        user: other,
        nonce: nonce(),
        token: sealed.token.clone(),
    };
    assert_eq!(
        block_on(vault.refresh(&moved, LONGEST)).unwrap_err(),
        StoredError::NotBound.into()
    );
    assert_eq!(
        block_on(vault.reseal(&moved, LONGEST)).unwrap_err(),
        StoredError::NotBound.into()
    );
    let tenant = Guid::parse(OTHER_USER).unwrap();
    let foreign = StoredToken {
        user: User { tenant, ..user },
        nonce: nonce(),
        token: sealed.token,
    };
    assert_eq!(
        block_on(vault.refresh(&foreign, LONGEST)).unwrap_err(),
        CallerError::TenantNotAllowed.into()
    );
    assert!(
        !world
            .take_calls()
            .contains(&"entra refresh_token".to_owned())
    );
}

#[test]
fn only_the_configured_resource_may_be_drawn() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.take_calls();
    for scope in [
        "https://vault.azure.net/.default",
        "User.Read",
        "https://graph.microsoft.com/User.Read https://vault.azure.net/x",
        "",
    ] {
        let asked = Draw {
            scope: Some(scope.into()),
            ..Draw::default()
        };
        assert_eq!(
            draw(&vault, &world.bearer(), &sealed.token, asked).unwrap_err(),
            CallerError::ScopeNotGranted.into(),
            "{scope}"
        );
        let error =
            block_on(vault.enrol(&world.bearer(), &nonce(), Some(scope), LONGEST)).unwrap_err();
        assert_eq!(error, CallerError::ScopeNotGranted.into(), "{scope}");
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
    let enrolment = block_on(vault.enrol(&world.bearer(), &nonce(), Some(mail), LONGEST)).unwrap();
    let token = enrolment.sealed.token;
    let issued = draw(&vault, &world.bearer(), &token, Draw::default()).unwrap();
    assert_eq!(issued.scope, format!("{mail} offline_access"));
    // What may be drawn is what the settings say now.
    let other = ("scope", "https://vault.azure.net/.default".to_owned());
    world.settings.borrow_mut().extend([other]);
    world.advance(SETTINGS_SECONDS);
    world.take_calls();
    assert_eq!(
        draw(&vault, &world.bearer(), &token, Draw::default()).unwrap_err(),
        CallerError::ScopeNotGranted.into()
    );
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
    let error = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err();
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
    assert_eq!(block_on(vault.reseal(&stored, LONGEST)), Ok(None));
    world.rotate();
    assert_eq!(
        block_on(vault.newest_key_version(&user.tenant, LONGEST))
            .unwrap()
            .as_str(),
        World::version(1)
    );
    let resealed = block_on(vault.reseal(&stored, LONGEST)).unwrap().unwrap();
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
    let next = block_on(vault.refresh(&stored, LONGEST)).unwrap();
    assert_eq!(next.key_version.as_str(), World::version(1));
    block_on(vault.refresh(
        &StoredToken {
            token: next.token,
            ..stored
        },
        LONGEST,
    ))
    .unwrap();
    let redeemed = world.redeemed.borrow();
    assert_ne!(redeemed[0], redeemed[1]);
}

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
    let enrol = || block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST));
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
        let outcome = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST));
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
    let enrol = || block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).map(drop);
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
    world.advance(NOT_ONBOARDED_SECONDS);
    assert_eq!(enrol(), Err(none.clone().into()));
    assert_eq!(asked(&world), 1);
    // A sweep asks anyhow, and what it finds ends it.
    world.keys.replace(keys);
    let tenant = TenantId::parse(TENANT).unwrap();
    assert_eq!(enrol(), Err(none.into()));
    block_on(vault.newest_key_version(&tenant, LONGEST)).unwrap();
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
    let expired = json!({"value": STANDARD_KEY, "id": format!("https://demo.vault.azure.net/secrets/obo-{TENANT}/{}", World::version(0)), "attributes": {"exp": world.now.get() - 1}});
    world
        .key_vault_answers
        .borrow_mut()
        .extend([(200, expired.clone()), (200, expired)]);
    let refused = VaultError::from(OperatorError::KeyNotValid(format!("obo-{TENANT}")));
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    let error = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err();
    assert_eq!(error, refused);
    world.advance(58);
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    world.advance(1);
    let error = draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err();
    assert_eq!(error, refused, "from the cache, and past its grace");
}

/// base64 of 32 bytes 7, the world's first key.
const STANDARD_KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

#[test]
fn signing_keys_outlive_an_outage_and_an_unknown_kid_does_not_hammer() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    block_on(vault.identify(&world.bearer(), LONGEST)).unwrap();
    world.take_calls();
    let unknown = samples::sign(&json!({"alg": "RS256", "kid": "new"}), &samples::claims());
    for _ in 0..3 {
        assert_eq!(
            block_on(vault.identify(&unknown, LONGEST)).unwrap_err(),
            TokenDefect::UnknownKey.into()
        );
    }
    assert_eq!(
        world.take_calls(),
        Vec::<String>::new(),
        "asked less than five minutes ago"
    );
    world.advance(300);
    for _ in 0..3 {
        assert_eq!(
            block_on(vault.identify(&unknown, LONGEST)).unwrap_err(),
            TokenDefect::UnknownKey.into()
        );
    }
    assert_eq!(world.take_calls(), ["keys"]);
    world.down.borrow_mut().push("keys");
    world.advance(7200);
    block_on(vault.identify(&world.bearer(), LONGEST)).unwrap();
    world.advance(86_400);
    assert_eq!(
        block_on(vault.identify(&world.bearer(), LONGEST)).unwrap_err(),
        VaultError::upstream(System::SigningKeys)
    );
}

#[test]
fn known_signing_keys_serve_up_to_their_age_and_not_beyond() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let identify = |bearer: &Bearer| block_on(vault.identify(bearer, LONGEST)).map(drop);
    identify(&world.bearer()).unwrap();
    world.down.borrow_mut().push("keys");
    world.advance(SIGNING_KEYS_USABLE - 1);
    // By a clock that was set, they are as old.
    world.now.set(world.now.get() - 86_400);
    let verified = world.bearer();
    identify(&verified).unwrap();
    // Between two fetches, and for a token that was verified by them, too.
    world.advance(1);
    for bearer in [&verified, &world.bearer_of(OTHER_USER)] {
        let error = VaultError::upstream(System::SigningKeys);
        assert_eq!(identify(bearer), Err(error));
    }
    world.down.borrow_mut().clear();
    identify(&verified).unwrap();
}

#[test]
fn a_signing_key_that_is_withdrawn_verifies_nothing_any_more() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let identify = |bearer: &Bearer| block_on(vault.identify(bearer, LONGEST)).map(drop);
    let verified = world.bearer();
    let other = world.bearer_of(OTHER_USER);
    identify(&verified).unwrap();
    world.signing_key.set("k2");
    world.advance(SIGNING_KEYS_PAUSE - 1);
    identify(&other).unwrap();
    assert_eq!(
        identify(&world.bearer()),
        Err(TokenDefect::UnknownKey.into()),
        "asked for less than five minutes ago"
    );
    world.advance(1);
    identify(&world.bearer()).unwrap();
    for bearer in [verified, other] {
        assert_eq!(identify(&bearer), Err(TokenDefect::UnknownKey.into()));
    }
}

#[test]
fn tokens_of_a_new_signing_key_wait_for_one_fetch() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    block_on(vault.identify(&world.bearer(), LONGEST)).unwrap();
    world.signing_key.set("k2");
    world.advance(SIGNING_KEYS_PAUSE);
    world.take_calls();
    world.slow.set(true);
    let bearers: Vec<_> = (0..4)
        .map(|n| world.bearer_of(&format!("{n}4444444-4444-4444-8444-444444444444")))
        .collect();
    let users = bearers.iter().map(|bearer| vault.identify(bearer, LONGEST));
    for user in block_on(join_all(users)) {
        user.unwrap();
    }
    assert_eq!(world.take_calls(), ["keys"]);
}

#[test]
fn a_fetch_that_fails_for_a_new_signing_key_is_nobodys_fault_and_is_tried_again() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let identify = |bearer: &Bearer| block_on(vault.identify(bearer, LONGEST)).map(drop);
    let known = world.bearer();
    identify(&known).unwrap();
    world.signing_key.set("k2");
    world.advance(SIGNING_KEYS_PAUSE);
    world.down.borrow_mut().push("keys");
    for _ in 0..2 {
        assert_eq!(
            identify(&world.bearer()),
            Err(VaultError::upstream(System::SigningKeys))
        );
        identify(&known).unwrap();
    }
    world.down.borrow_mut().clear();
    identify(&world.bearer()).unwrap();
}

/// Whom old keys serve does not wait for new ones while they cannot be had.
#[test]
fn old_signing_keys_are_asked_for_anew_by_one_and_not_again_at_once() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    block_on(vault.identify(&world.bearer(), LONGEST)).unwrap();
    world.advance(SIGNING_KEYS_FRESH);
    world.take_calls();
    world.slow.set(true);
    let bearers = [world.bearer(), world.bearer_of(OTHER_USER)];
    let (first, others) = bearers.split_first().unwrap();
    let mut first = Box::pin(vault.identify(first, LONGEST));
    assert!(first.as_mut().now_or_never().is_none());
    for bearer in others {
        assert!(
            vault
                .identify(bearer, LONGEST)
                .now_or_never()
                .unwrap()
                .is_ok()
        );
    }
    block_on(first).unwrap();
    assert_eq!(world.take_calls(), ["keys"]);
    let fails = (500, json!({}));
    world.advance(SIGNING_KEYS_FRESH);
    world
        .signing_keys_answers
        .borrow_mut()
        .extend(vec![fails; 2]);
    for _ in 0..3 {
        block_on(vault.identify(&world.bearer(), LONGEST)).unwrap();
    }
    assert_eq!(
        world.take_calls(),
        ["keys", "keys"],
        "a fetch and its repeat"
    );
    world.advance(SIGNING_KEYS_PAUSE);
    block_on(vault.identify(&world.bearer(), LONGEST)).unwrap();
    assert_eq!(world.take_calls(), ["keys"]);
}

#[test]
fn an_expired_token_is_refused_although_it_was_verified_before() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let bearer = world.bearer();
    block_on(vault.identify(&bearer, LONGEST)).unwrap();
    world.advance(3900 + 299);
    block_on(vault.identify(&bearer, LONGEST)).unwrap();
    world.advance(1);
    assert_eq!(
        block_on(vault.identify(&bearer, LONGEST)).unwrap_err(),
        TokenDefect::Expired.into()
    );
}

/// A file that somebody replaces, a provider that does not answer: each is over in a moment, and an alarm.
#[test]
fn settings_that_cannot_be_read_leave_the_last_good_ones_for_a_time() {
    type Break = fn(&Shared);
    let breaks: [(Break, &str); 2] = [
        (|world| world.settings_are_down.set(true), "cannot resolve"),
        (
            |world| {
                let nothing = ("client_secret", String::new());
                world.settings.borrow_mut().extend([nothing]);
            },
            "`client_secret`",
        ),
    ];
    for (break_settings, told) in breaks {
        let world = World::new();
        let good = world.settings.borrow().clone();
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        let draws = || draw(&vault, &world.bearer(), &sealed.token, Draw::default()).map(drop);
        break_settings(&world);
        let alarms = || {
            let log = world.log.take();
            let alarms = log
                .iter()
                .filter(|line| line.contains(r#""level":"alarm""#));
            assert!(alarms.clone().all(|line| line.contains(told)), "{log:?}");
            alarms.count()
        };
        world.advance(SETTINGS_SECONDS - 1);
        draws().unwrap();
        assert_eq!(alarms(), 0, "nobody has looked yet");
        for _ in 1..SETTINGS_USABLE / SETTINGS_SECONDS {
            world.advance(SETTINGS_SECONDS);
            draws().unwrap();
            draws().unwrap();
            assert_eq!(alarms(), 1, "one a look");
        }
        world.advance(SETTINGS_SECONDS);
        let error = draws().unwrap_err();
        assert!(matches!(
            error,
            VaultError::Operator(OperatorError::Setting(_))
        ));
        assert_eq!(vault.check_settings(), Err(error));
        // They are read again, and have their time anew.
        world.settings_are_down.set(false);
        *world.settings.borrow_mut() = good;
        draws().unwrap();
        break_settings(&world);
        world.advance(SETTINGS_SECONDS);
        draws().unwrap();
        // Who never had any has none.
        let cold = Vault::new(Rc::clone(&world));
        assert!(block_on(cold.identify(&world.bearer(), LONGEST)).is_err());
    }
}

#[test]
fn a_tenant_that_is_not_allowed_makes_no_call() {
    let world = World::new();
    world
        .settings
        .borrow_mut()
        .insert("tenants", OTHER_USER.to_owned());
    let vault = Vault::new(Rc::clone(&world));
    assert_eq!(
        block_on(vault.identify(&world.bearer(), LONGEST)).unwrap_err(),
        CallerError::TenantNotAllowed.into()
    );
    assert_eq!(world.take_calls(), Vec::<String>::new());
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
        block_on(vault.identify(&user, LONGEST)).unwrap_err(),
        block_on(vault.enrol(&user, &nonce(), None, LONGEST)).unwrap_err(),
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
    block_on(vault.authorize_operator(&app, Role::Read, Some(&other), LONGEST)).unwrap();
}

/// A token of Microsoft Graph's has a signature that nobody else can verify.
#[test]
fn a_token_that_is_refused_whatever_its_signature_makes_no_call() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let graph = samples::sign(
        &json!({"typ": "JWT", "alg": "RS256", "kid": "k2", "nonce": "n"}),
        &{
            let mut claims = samples::claims();
            claims["aud"] = json!("00000003-0000-0000-c000-000000000000");
            claims
        },
    );
    let now = world.now.get();
    for (bearer, error) in [
        (graph, CallerError::from(TokenDefect::WrongAudience)),
        (
            token(|claims| claims["exp"] = json!(now - 300)),
            TokenDefect::Expired.into(),
        ),
        (
            token(|claims| claims["scp"] = json!("another")),
            CallerError::InsufficientScope("access_as_user".into()),
        ),
    ] {
        assert_eq!(
            block_on(vault.identify(&bearer, LONGEST)).unwrap_err(),
            error.into()
        );
    }
    assert_eq!(world.take_calls(), Vec::<String>::new());
}

#[test]
fn the_sweep_key_and_its_predecessor_authorise_and_nothing_else() {
    let world = World::new();
    let previous = "previous-key-canary-0123456789-0123456789";
    world
        .settings
        .borrow_mut()
        .insert("sweep_key_previous", previous.to_owned());
    let vault = Vault::new(Rc::clone(&world));
    for key in [SWEEP_KEY, previous] {
        assert_eq!(
            block_on(vault.authorize_sweep(&Bearer::new(key.into()), LONGEST))
                .unwrap()
                .concurrency,
            32
        );
    }
    for key in ["", "x", &SWEEP_KEY[1..]] {
        let error = block_on(vault.authorize_sweep(&Bearer::new(key.into()), LONGEST)).unwrap_err();
        assert_eq!(error, CallerError::SweepNotAuthorized.into(), "{key}");
    }
    let user = block_on(vault.authorize_sweep(&world.bearer(), LONGEST)).unwrap_err();
    assert_eq!(
        user,
        CallerError::InsufficientScope(SWEEP_ROLE.into()).into()
    );
}

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
            block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err(),
            on_enrol
        );
        world.advance(PAUSE.into());
        world
            .entra_answers
            .borrow_mut()
            .push_back(refusal("invalid_grant", code));
        assert_eq!(
            draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap_err(),
            on_draw
        );
        world.advance(PAUSE.into());
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
        let enrolment = block_on(vault.enrol(&world.bearer(), &nonce(), Some(scope), LONGEST));
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
            block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err(),
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
        block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err(),
        OperatorError::NoRefreshToken.into()
    );
}

// ---- Pauses, side by side, time ----

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
    let error = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err();
    assert_eq!(left(error), Some(200));
    assert_eq!(world.take_calls(), Vec::<String>::new());
    let other = world.bearer_of(OTHER_USER);
    block_on(vault.enrol(&other, &nonce(), None, LONGEST)).unwrap();
    world.advance(200);
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
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
        vault.access_token(&bearer, &nonce, &sealed.token, draw, LONGEST)
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
        .map(|user| vault.enrol(user, &nonce, None, LONGEST));
    for enrolment in block_on(join_all(enrolments)) {
        enrolment.unwrap();
    }
    let mut calls = world.take_calls();
    calls.retain(|call| call != "entra jwt-bearer");
    assert_eq!(calls, ["keys", "entra client_credentials", "key vault "]);
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
    let draws = (0..5)
        .map(|_| vault.access_token(&bearer, &nonce, &sealed.token, Draw::default(), LONGEST));
    for issued in block_on(join_all(draws)) {
        issued.unwrap();
    }
    let mut calls = world.take_calls();
    calls.retain(|call| call.starts_with("key vault"));
    assert_eq!(calls, [format!("key vault {}", World::version(0))]);
}

#[test]
fn a_failure_is_shared_and_not_remembered() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.slow.set(true);
    world.entra_answers.borrow_mut().push_back((
        400,
        json!({"error": "invalid_grant", "error_codes": [65_001]}),
    ));
    let bearer = world.bearer();
    let nonce = nonce();
    let draws = (0..3)
        .map(|_| vault.access_token(&bearer, &nonce, &sealed.token, Draw::default(), LONGEST));
    for outcome in block_on(join_all(draws)) {
        assert!(matches!(
            outcome,
            Err(VaultError::User(UserError::InteractionRequired(_)))
        ));
    }
    draw(&vault, &bearer, &sealed.token, Draw::default()).unwrap();
}

// ---- Credentials ----

fn credential_refused(setting: &str, code: Option<u32>) -> VaultError {
    OperatorError::CredentialRefused {
        setting: setting.into(),
        reason: code.map(reason).unwrap_or_default(),
    }
    .into()
}

fn reason(code: u32) -> Reason {
    Reason {
        aadsts: Some(code),
        suberror: None,
    }
}

/// A world with this credential: `credential`, and what belongs to it.
fn with_credential(credential: &str) -> Shared {
    let world = World::new();
    {
        let mut settings = world.settings.borrow_mut();
        settings.remove("client_secret");
        settings.insert("credential", credential.to_owned());
        settings.insert("certificate_pem", CERTIFICATE.to_owned());
        settings.insert("private_key_pem", PRIVATE_KEY.to_owned());
        settings.insert("federated_token", "federated-canary.b.c".to_owned());
    }
    world
}

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
        block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err(),
        credential_refused("managed_identity_client_id", None)
    );
    world.down.borrow_mut().push("identity");
    assert_eq!(
        block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST)).unwrap_err(),
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
            vault.access_token(&bearer, nonce, &sealed.token, draw.clone(), LONGEST)
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
            block_on(vault.enrol(&bearer, &nonce(), None, LONGEST)).unwrap();
        };
        (0..300).for_each(draw_of);
        world.proofs.take();
        draw_of(0);
        let first = world.proofs.take();
        draw_of(0);
        assert_eq!(world.proofs.take(), first, "{credential}");
    }
}

#[test]
fn a_guest_is_served_in_the_tenant_of_the_token() {
    // Multi-tenant: any organisation, Key Vault in its own tenant (§A.1, design §3).
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
    let (user, _) = block_on(vault.identify(&bearer, LONGEST)).unwrap();
    assert_eq!(user.tenant.as_str(), guest_tenant);
    let enrolment = block_on(vault.enrol(&bearer, &nonce(), None, LONGEST)).unwrap();
    assert_eq!(enrolment.user.tenant.as_str(), guest_tenant);
    assert!(world.take_calls().contains(&"key vault ".to_owned()));
}
