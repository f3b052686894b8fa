//! What an operation waits for, and what for at the same time; and what is begun for it ahead, that it need not wait.

use pollster::block_on;
use serde_json::json;

use crate::error::{CallerError, NotGranted, System, TokenDefect, VaultError};
use crate::identity::{Guid, UserName};
use crate::keeper::{KeeperError, Request as Asked};
use crate::ledger::LedgerError;
use crate::port::Timer as _;
use crate::secret::Bearer;
use crate::simulation::rounds::{App, Rounds};
use crate::vault::port::{Issued, Subject};
use crate::vault::samples::{OTHER_USER, TENANT, jwks_of_another_key};

const KEY_VAULT: [&str; 3] = ["challenge", "newest key", "key"];

/// A world in which the user is enrolled, and has been seen by an instance that is no more.
fn enrolled(settings: &[(&'static str, &str)]) -> Rounds {
    let rounds = Rounds::new();
    let world = rounds.world();
    for (name, value) in settings {
        let mut settings = world.settings.borrow_mut();
        settings.insert(name, (*value).to_owned());
    }
    block_on(world.app().enrol(&Asked::of(&world.bearer()), None)).unwrap();
    rounds
}

type Drawn = (Result<Issued, KeeperError>, Vec<Vec<String>>);

fn draw(rounds: &Rounds, app: &App, bearer: &Bearer) -> Drawn {
    rounds.run(app.draw(&Asked::of(bearer), None, None))
}

/// How often something was asked for.
fn times(what: &str, asked: impl IntoIterator<Item = String>) -> usize {
    asked.into_iter().filter(|it| it == what).count()
}

// ---- How long --------------------------------------------------------------------------------------------------------

/// Ten answers one after another before anything was begun ahead.
#[test]
fn a_cold_draw_waits_for_six_answers() {
    let rounds = enrolled(&[]);
    let bearer = rounds.world().bearer();
    let app = rounds.app();
    let (drawn, waits) = draw(&rounds, &app, &bearer);
    drawn.unwrap();
    assert_eq!(
        waits,
        [
            &["signing keys", "challenge"] as &[_],
            &["get settings", "get usr", "own token"],
            &["get off", "get rec", "newest key"],
            &["grant"],
            &["get off"],
            &["get usr"],
        ]
    );
    // The same draw once more, and another, with all at hand that it needs.
    let (drawn, waits) = draw(&rounds, &app, &bearer);
    drawn.unwrap();
    assert_eq!(waits, [&["get off"], &["get usr"]]);
    let mail = Some("https://graph.microsoft.com/Mail.Read".to_owned());
    let (drawn, waits) = rounds.run(app.draw(&Asked::of(&bearer), mail, None));
    drawn.unwrap();
    assert_eq!(
        waits,
        [
            &["get usr"] as &[_],
            &["get off", "get rec"],
            &["grant"],
            &["get off"],
            &["get usr"],
        ]
    );
    assert!(rounds.finish().is_empty());
}

/// Nine answers before, where the setting says what the challenge would.
#[test]
fn a_cold_draw_without_a_challenge_waits_for_six_answers() {
    let rounds = enrolled(&[("key_vault_tenant", TENANT)]);
    let (drawn, waits) = draw(&rounds, &rounds.app(), &rounds.world().bearer());
    drawn.unwrap();
    assert_eq!(waits.len(), 6, "{waits:?}");
    assert_eq!(waits[0], ["signing keys", "own token"]);
}

/// Eleven answers before, where the app proves who it is with a token of the platform.
#[test]
fn a_cold_draw_by_a_managed_identity_waits_for_six_answers() {
    let rounds = enrolled(&[("credential", "managed-identity"), ("client_secret", "")]);
    let (drawn, waits) = draw(&rounds, &rounds.app(), &rounds.world().bearer());
    drawn.unwrap();
    assert_eq!(waits.len(), 6, "{waits:?}");
    assert_eq!(waits[0], ["signing keys", "challenge", "identity"]);
}

/// Twelve answers before.
#[test]
fn a_cold_enrolment_waits_for_ten_answers() {
    let rounds = enrolled(&[]);
    let bearer = rounds.world().bearer_of(OTHER_USER);
    let app = rounds.app();
    let (enrolled, waits) = rounds.run(app.enrol(&Asked::of(&bearer), None));
    enrolled.unwrap();
    assert_eq!(
        waits,
        [
            &["signing keys", "challenge"] as &[_],
            &["get settings", "own token"],
            &["newest key"],
            &["grant"],
            &["get bar"],
            &["get usr"],
            &["set due"],
            &["set rec"],
            &["set usr"],
            &["get bar"],
        ]
    );
}

/// Four answers before. It needs no key, so none is begun.
#[test]
fn a_cold_look_waits_for_three_answers() {
    let rounds = enrolled(&[]);
    let bearer = rounds.world().bearer();
    let (shown, waits) = rounds.run(rounds.app().show(&Asked::of(&bearer)));
    shown.unwrap();
    assert_eq!(
        waits,
        [
            &["signing keys"] as &[_],
            &["get settings", "get usr"],
            &["get off", "get rec"],
        ]
    );
    assert!(rounds.finish().is_empty());
}

/// What was begun was the newest: the record's own is asked for when that is there.
#[test]
fn a_cold_draw_under_an_older_key_waits_for_one_more() {
    let rounds = enrolled(&[]);
    rounds.world().rotate();
    let (bearer, app) = (rounds.world().bearer(), rounds.app());
    let (drawn, waits) = draw(&rounds, &app, &bearer);
    drawn.unwrap();
    assert_eq!(
        waits[2..4],
        [&["get off", "get rec", "newest key"] as &[_], &["key"]]
    );
    assert_eq!(waits.len(), 7);
}

// ---- Who is held up --------------------------------------------------------------------------------------------------

#[test]
fn a_key_vault_that_does_not_answer_holds_up_nobody_who_needs_no_key() {
    let rounds = enrolled(&[]);
    rounds.silence(&KEY_VAULT);
    let (app, nobody) = (rounds.app(), rounds.world().bearer_of(OTHER_USER));
    let (drawn, waits) = draw(&rounds, &app, &nobody);
    assert_eq!(drawn.unwrap_err(), LedgerError::NotEnrolled.into());
    assert_eq!(waits.len(), 2, "{waits:?}");
    // What was begun is still under way.
    let (shown, waits) = rounds.run(app.show(&Asked::of(&rounds.world().bearer())));
    shown.unwrap();
    assert_eq!(waits.len(), 2, "{waits:?}");
    // Whoever needs it waits in his own time, and no longer than if nothing had been begun.
    let (drawn, waits) = draw(&rounds, &app, &rounds.world().bearer());
    assert_eq!(
        drawn.unwrap_err(),
        VaultError::upstream(System::KeyVault).into()
    );
    assert!(waits.len() <= 25, "{waits:?}");
    rounds.finish();
}

#[test]
fn what_is_begun_and_fails_fails_nobody() {
    let refusal = json!({"error": "invalid_client", "error_codes": [7_000_215]});
    for settings in [&[] as &[_], &[("key_vault_tenant", TENANT)]] {
        let rounds = enrolled(settings);
        let mut answers = rounds.world().app_answers.borrow_mut();
        answers.push_back((401, refusal.clone()));
        drop(answers);
        let (drawn, _) = draw(&rounds, &rounds.app(), &rounds.world().bearer());
        drawn.unwrap();
        assert!(rounds.world().app_answers.borrow().is_empty());
    }
    // The newest key cannot be had, and the record is under another.
    let rounds = enrolled(&[]);
    rounds.world().rotate();
    rounds.world().disabled.set(Some(1));
    let (drawn, _) = draw(&rounds, &rounds.app(), &rounds.world().bearer());
    drawn.unwrap();
}

// ---- What strangers can cause ----------------------------------------------------------------------------------------

#[test]
fn whoever_has_no_token_that_could_be_one_begins_nothing() {
    let rounds = enrolled(&[]);
    let app = rounds.app();
    let mut settings = rounds.world().settings.borrow_mut();
    settings.insert("tenants", OTHER_USER.to_owned());
    drop(settings);
    for bearer in [Bearer::new("a.b.c".into()), rounds.world().bearer()] {
        let (drawn, waits) = draw(&rounds, &app, &bearer);
        drawn.unwrap_err();
        assert_eq!(waits, Vec::<Vec<String>>::new());
    }
    assert!(rounds.finish().is_empty());
}

/// With a signature of one's own making this app's token is asked for once, and no tenant's key.
#[test]
fn forged_tokens_begin_the_apps_own_token_and_no_key() {
    let rounds = enrolled(&[]);
    let another = serde_json::from_slice(&jwks_of_another_key("k1")).unwrap();
    let mut answers = rounds.world().signing_keys_answers.borrow_mut();
    answers.push_back((200, another));
    drop(answers);
    let app = rounds.app();
    let mut asked = Vec::new();
    for _ in 0..10 {
        let (drawn, waits) = draw(&rounds, &app, &rounds.world().bearer());
        assert_eq!(
            drawn.unwrap_err(),
            VaultError::from(TokenDefect::BadSignature).into()
        );
        asked.extend(waits.into_iter().flatten());
        asked.extend(rounds.finish());
    }
    asked.sort();
    assert_eq!(asked, ["challenge", "own token", "signing keys"]);
}

/// As long as nothing can be had, whoever comes has it tried once in five minutes, and not each time.
#[test]
fn what_cannot_be_had_is_begun_once_in_five_minutes() {
    let rounds = enrolled(&[]);
    rounds
        .world()
        .down
        .borrow_mut()
        .extend(["keys", "key vault"]);
    let app = rounds.app();
    let mut asked = Vec::new();
    for _ in 0..12 {
        let (drawn, waits) = draw(&rounds, &app, &rounds.world().bearer());
        let error = VaultError::upstream(System::SigningKeys);
        assert_eq!(drawn.unwrap_err(), error.into());
        asked.extend(waits.into_iter().flatten());
        asked.extend(rounds.finish());
        rounds.run(rounds.sleep(std::time::Duration::from_secs(45)));
    }
    // An outage is tried once more each time.
    assert_eq!(times("challenge", asked.clone()), 2 * 2);
    assert_eq!(times("signing keys", asked), 2 * 12);
}

/// Users of an allowed tenant who have a grant and are not enrolled, or whose tenant has no key.
#[test]
fn a_tenants_key_is_begun_once_and_only_for_whom_it_is_granted_to() {
    let rounds = enrolled(&[]);
    let app = rounds.app();
    // Another app, without a rule.
    let mut claims = crate::vault::samples::claims();
    claims["azp"] = json!("aaaaaaaa-3333-3333-3333-333333333333");
    let other = crate::vault::samples::sign(&crate::vault::samples::header(), &claims);
    let (drawn, _) = draw(&rounds, &app, &other);
    assert!(matches!(
        drawn.unwrap_err(),
        KeeperError::Vault(VaultError::Caller(CallerError::NotGranted(
            NotGranted { .. }
        )))
    ));
    assert_eq!(rounds.finish(), ["own token"]);
    rounds.world().keys.take();
    let mut asked = Vec::new();
    for _ in 0..10 {
        let (drawn, waits) = draw(&rounds, &app, &rounds.world().bearer_of(OTHER_USER));
        assert_eq!(drawn.unwrap_err(), LedgerError::NotEnrolled.into());
        asked.extend(waits.into_iter().flatten());
        asked.extend(rounds.finish());
    }
    assert_eq!(times("newest key", asked), 1);
}

/// A job of another tenant's, whom nothing lets act there: what it names decides nothing about what is asked for.
#[test]
fn a_job_that_may_not_act_in_a_tenant_begins_no_key_of_it() {
    let rounds = enrolled(&[]);
    let app = rounds.app();
    let job = rounds.world().app_bearer(TENANT, "Behalf.Act");
    let subject = Subject::User(UserName {
        tenant: Guid::parse(OTHER_USER).unwrap(),
        object: Guid::parse(OTHER_USER).unwrap(),
    });
    let request = Asked {
        id: "test",
        bearer: &job,
        subject,
    };
    let (drawn, waits) = rounds.run(app.draw(&request, None, None));
    drawn.unwrap_err();
    assert_eq!(waits, [["signing keys", "challenge"]]);
    assert_eq!(rounds.finish(), ["own token"]);
}
