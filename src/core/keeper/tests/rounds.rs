//! What an operation waits for, and what for at the same time.

use crate::keeper::Request as Asked;
use crate::simulation::rounds::Rounds;
use pollster::block_on;

/// A world in which the user is enrolled, and has been seen by an instance that is no more.
fn enrolled(settings: &[(&'static str, &str)]) -> Rounds {
    let rounds = Rounds::new();
    let world = rounds.world();
    for (name, value) in settings {
        world
            .settings
            .borrow_mut()
            .insert(name, (*value).to_owned());
    }
    block_on(world.app().enrol(&Asked::of(&world.bearer()), None)).unwrap();
    rounds
}

#[test]
fn a_cold_draw() {
    let rounds = enrolled(&[]);
    let bearer = rounds.world().bearer();
    let app = rounds.app();
    let (drawn, waits) = rounds.run(app.draw(&Asked::of(&bearer), None, None));
    drawn.unwrap();
    assert_eq!(
        waits,
        [
            &["signing keys"] as &[_],
            &["get settings"],
            &["get usr"],
            &["get off", "get rec"],
            &["challenge"],
            &["own token"],
            &["key"],
            &["grant"],
            &["get off"],
            &["get usr"],
        ]
    );
    // The same draw once more, and another, of a user whose key and all else is there.
    let (drawn, waits) = rounds.run(app.draw(&Asked::of(&bearer), None, None));
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
}

#[test]
fn a_cold_enrolment() {
    let rounds = Rounds::new();
    // Another user has enrolled before.
    let world = rounds.world();
    let other = world.bearer_of(crate::vault::samples::OTHER_USER);
    block_on(world.app().enrol(&Asked::of(&other), None)).unwrap();
    let bearer = world.bearer();
    let app = rounds.app();
    let (enrolled, waits) = rounds.run(app.enrol(&Asked::of(&bearer), None));
    enrolled.unwrap();
    assert_eq!(
        waits,
        [
            &["signing keys"],
            &["challenge"],
            &["own token"],
            &["newest key"],
            &["grant"],
            &["get settings"],
            &["get bar"],
            &["get usr"],
            &["set due"],
            &["set rec"],
            &["set usr"],
            &["get bar"],
        ]
    );
}

#[test]
fn a_cold_look() {
    let rounds = enrolled(&[]);
    let bearer = rounds.world().bearer();
    let app = rounds.app();
    let (shown, waits) = rounds.run(app.show(&Asked::of(&bearer)));
    shown.unwrap();
    assert_eq!(
        waits,
        [
            &["signing keys"] as &[_],
            &["get settings"],
            &["get usr"],
            &["get off", "get rec"],
        ]
    );
}

/// The setting says what Key Vault's challenge would.
#[test]
fn a_cold_draw_where_the_tenant_of_key_vault_is_a_setting() {
    let rounds = enrolled(&[("key_vault_tenant", crate::vault::samples::TENANT)]);
    let bearer = rounds.world().bearer();
    let (drawn, waits) = rounds.run(rounds.app().draw(&Asked::of(&bearer), None, None));
    drawn.unwrap();
    assert_eq!(waits.len(), 9, "{waits:?}");
}

/// The app proves who it is with a token of its managed identity.
#[test]
fn a_cold_draw_by_a_managed_identity() {
    let rounds = enrolled(&[("credential", "managed-identity"), ("client_secret", "")]);
    let bearer = rounds.world().bearer();
    let (drawn, waits) = rounds.run(rounds.app().draw(&Asked::of(&bearer), None, None));
    drawn.unwrap();
    assert_eq!(waits.len(), 11, "{waits:?}");
}
