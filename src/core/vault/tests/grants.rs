//! Who may draw what, by the vault alone: whoever imports it decides nothing.

use super::*;
use crate::identity::UserName;
use crate::vault::samples::USER;

const OTHER_TENANT: &str = "77777777-7777-7777-7777-777777777777";
const OTHER_APP: &str = "aaaaaaaa-3333-3333-3333-333333333333";
const READ: &str = "https://graph.microsoft.com/User.Read";

/// An app's own token with these roles.
fn app(edit: impl FnOnce(&mut serde_json::Value), roles: &[&str]) -> Bearer {
    token(|claims| {
        claims.as_object_mut().unwrap().remove("scp");
        claims["sub"] = claims["oid"].clone();
        claims["roles"] = json!(roles);
        edit(claims);
    })
}

fn job() -> Bearer {
    app(|_| (), &["Behalf.Act"])
}

fn of(tenant: &str, object: &str) -> Subject {
    let id = |text| Guid::parse(text).unwrap();
    Subject::User(UserName {
        tenant: id(tenant),
        object: id(object),
    })
}

fn absent() -> Subject {
    of(TENANT, USER)
}

fn identify(
    vault: &Vault<Shared>,
    bearer: &Bearer,
    subject: &Subject,
    purpose: &Purpose,
) -> Result<Caller, VaultError> {
    block_on(vault.identify(bearer, subject, purpose, LONGEST.into()))
}

fn draw_for(
    vault: &Vault<Shared>,
    bearer: &Bearer,
    subject: &Subject,
    token: &str,
) -> Result<Issued, VaultError> {
    block_on(vault.access_token(
        bearer,
        subject,
        &nonce(),
        token,
        Draw::default(),
        LONGEST.into(),
    ))
}

fn set(world: &Shared, name: &'static str, value: &str) {
    world.settings.borrow_mut().insert(name, value.to_owned());
}

fn missing<T: std::fmt::Debug>(outcome: Result<T, VaultError>) -> NotGranted {
    match outcome {
        Err(VaultError::Caller(CallerError::NotGranted(refused))) => refused,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_draws_for_a_user_who_is_away_and_for_no_other() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (user, sealed) = enrolled(&vault, &world);
    let caller = identify(&vault, &job(), &absent(), &Purpose::Draw(Draw::default())).unwrap();
    assert_eq!(caller.user, user, "known as the user itself is");
    assert_eq!(caller.rule.as_deref(), Some("grants[1]"));
    let issued = draw_for(&vault, &job(), &absent(), &sealed.token).unwrap();
    assert_eq!(issued.rule, "grants[1]");
    // What is stored of one opens for no other, whoever asks.
    world.take_calls();
    for subject in [of(TENANT, OTHER_USER), of(OTHER_TENANT, USER)] {
        set(&world, "tenants", "*");
        set(&world, "operator_tenant", TENANT);
        world.advance(settings::source::FRESH);
        let error = draw_for(&vault, &job(), &subject, &sealed.token).unwrap_err();
        assert_eq!(error, StoredError::NotBound.into());
    }
    assert_eq!(world.take_calls(), Vec::<String>::new());
    // The user's own token names nobody, and a job's speaks for nobody.
    let error = identify(
        &vault,
        &world.bearer(),
        &absent(),
        &Purpose::Draw(Draw::default()),
    )
    .unwrap_err();
    assert_eq!(
        error,
        CallerError::InsufficientScope("Behalf.Act".into()).into()
    );
    let error = identify(&vault, &job(), &Subject::Me, &Purpose::Manage).unwrap_err();
    assert_eq!(
        error,
        CallerError::InsufficientScope("access_as_user".into()).into()
    );
}

/// Token, role, reach and grant, one by one: each is needed.
#[test]
fn a_role_acts_where_role_operator_tenant_and_grant_say_so() {
    let foreign = |roles: &[&str]| {
        app(
            |claims| {
                claims["tid"] = json!(OTHER_TENANT);
                claims["iss"] = json!(format!(
                    "https://login.microsoftonline.com/{OTHER_TENANT}/v2.0"
                ));
            },
            roles,
        )
    };
    let rule = |tenants: &str| {
        let own = r#""callers": "app", "resource""#;
        let with = format!(r#""callers": "app"{tenants}, "resource""#);
        GRANTS
            .replace(r#", "tenants": ["*"]"#, "")
            .replace(own, &with)
    };
    let (own, named, all) = (
        rule(""),
        rule(&format!(r#", "tenants": ["{TENANT}"]"#)),
        rule(r#", "tenants": ["*"]"#),
    );
    let act: &[&str] = &["Behalf.Act"];
    for (what, roles, operator, grants, is_granted) in [
        (
            "all three, the tenant named",
            act,
            OTHER_TENANT,
            &*named,
            true,
        ),
        ("all three, every tenant", act, OTHER_TENANT, &*all, true),
        (
            "no role",
            &["Behalf.Read", "Behalf.Admin", "Behalf.Sweep"],
            OTHER_TENANT,
            &*all,
            false,
        ),
        ("no operator tenant", act, "", &*all, false),
        ("another operator tenant", act, TENANT, &*all, false),
        (
            "a grant for its own tenant",
            act,
            OTHER_TENANT,
            &*own,
            false,
        ),
        ("no grant", act, OTHER_TENANT, "[]", false),
    ] {
        let world = World::new();
        set(&world, "tenants", &format!("{TENANT},{OTHER_TENANT}"));
        set(&world, "operator_tenant", operator);
        set(&world, "grants", grants);
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        let job = foreign(roles);
        for object in [USER, OTHER_USER] {
            // The same for every object id: nobody learns who is enrolled.
            let known = identify(
                &vault,
                &job,
                &of(TENANT, object),
                &Purpose::Draw(Draw::default()),
            );
            assert_eq!(known.is_ok(), is_granted, "{what}: {known:?}");
        }
        let drawn = draw_for(&vault, &job, &absent(), &sealed.token);
        assert_eq!(drawn.is_ok(), is_granted, "{what}");
    }
}

#[test]
fn an_admin_manages_and_never_draws_and_a_job_draws_and_never_manages() {
    let world = World::new();
    // Also users of a tenant that is not served any longer.
    set(&world, "operator_tenant", TENANT);
    let vault = Vault::new(Rc::clone(&world));
    let admin = app(|_| (), &["Behalf.Admin"]);
    for subject in [absent(), of(OTHER_TENANT, USER)] {
        let caller = identify(&vault, &admin, &subject, &Purpose::Manage).unwrap();
        assert_eq!((caller.rule, caller.app.is_some()), (None, true));
    }
    let error = identify(&vault, &admin, &absent(), &Purpose::Draw(Draw::default())).unwrap_err();
    assert_eq!(
        error,
        CallerError::InsufficientScope("Behalf.Act".into()).into()
    );
    let error = identify(&vault, &job(), &absent(), &Purpose::Manage).unwrap_err();
    assert_eq!(
        error,
        CallerError::InsufficientScope("Behalf.Admin".into()).into()
    );
    // And nobody enrols somebody else.
    for bearer in [&admin, &job()] {
        let error = identify(&vault, bearer, &absent(), &Purpose::Enrol).unwrap_err();
        assert!(
            matches!(error, VaultError::Caller(CallerError::InvalidRequest(_))),
            "{error:?}"
        );
    }
    // Whoever is not served is not drawn for.
    let refused = missing(identify(
        &vault,
        &job(),
        &of(OTHER_TENANT, USER),
        &Purpose::Draw(Draw::default()),
    ));
    assert!(refused.missing.contains("`tenants`"), "{refused:?}");
}

#[test]
fn a_public_client_enrols_and_manages_and_neither_chooses_nor_draws() {
    for method in [json!("0"), json!("3"), json!(null)] {
        let world = World::new();
        let vault = Vault::new(Rc::clone(&world));
        let page = token(|claims| claims["azpacr"] = method.clone());
        let enrolment = block_on(vault.enrol(&page, &nonce(), None, LONGEST.into())).unwrap();
        for purpose in [Purpose::Manage, Purpose::Enrol] {
            identify(&vault, &page, &Subject::Me, &purpose).unwrap();
        }
        world.take_calls();
        let chosen = block_on(vault.enrol(&page, &nonce(), Some(READ), LONGEST.into()));
        for refused in [
            missing(chosen),
            missing(draw(
                &vault,
                &page,
                &enrolment.sealed.token,
                Draw::default(),
            )),
            missing(identify(
                &vault,
                &page,
                &Subject::Me,
                &Purpose::Draw(Draw::default()),
            )),
        ] {
            assert!(refused.missing.contains("public client"), "{refused:?}");
            assert_eq!(refused.user.as_ref(), Some(&enrolment.user));
        }
        assert_eq!(world.take_calls(), Vec::<String>::new());
    }
}

/// It would be wrong to ask only whoever asked first.
#[test]
fn whoever_waits_for_anothers_request_needs_a_grant_of_his_own() {
    let world = World::new();
    set(
        &world,
        "grants",
        &format!(
            r#"[{{"client": "33333333-3333-3333-3333-333333333333", "callers": "delegated", "resource": "https://graph.microsoft.com", "scopes": ["*"]}},
                {{"client": "{OTHER_APP}", "callers": "delegated", "resource": "https://graph.microsoft.com", "scopes": ["User.Read"]}}]"#
        ),
    );
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    world.take_calls();
    world.slow.set(true);
    // Entra ID gives more than was asked for.
    world.entra_answers.borrow_mut().push_back((
        200,
        json!({"token_type": "Bearer", "expires_in": 3599, "access_token": "at-canary-0", "refresh_token": "rt-canary-0",
            "scope": "User.Read Mail.Read"}),
    ));
    let (whole, listed) = (
        world.bearer(),
        token(|claims| claims["azp"] = json!(OTHER_APP)),
    );
    let nonce = nonce();
    let draws = [&whole, &listed, &whole].map(|bearer| {
        let asked = Draw {
            scope: Some(READ.into()),
            ..Draw::default()
        };
        vault.access_token(
            bearer,
            &Subject::Me,
            &nonce,
            &sealed.token,
            asked,
            LONGEST.into(),
        )
    });
    let [first, second, third] = block_on(join_all(draws)).try_into().unwrap();
    assert_eq!(world.take_calls(), ["entra refresh_token"], "one request");
    assert_eq!(
        (first.unwrap().rule, third.unwrap().rule),
        ("grants[0]".into(), "grants[0]".into())
    );
    let refused = missing(second);
    assert!(
        refused.missing.contains("grants[1]") && refused.missing.contains("Mail.Read"),
        "{refused:?}"
    );
}

#[test]
fn nobody_is_named_where_user_routes_are_off() {
    let world = World::new();
    set(&world, "user_routes", "off");
    set(&world, "user_id_template", "{tid}.{sub}");
    let vault = Vault::new(Rc::clone(&world));
    let (_, sealed) = enrolled(&vault, &world);
    let off = Err(VaultError::from(CallerError::UserRoutesOff));
    for purpose in [Purpose::Draw(Draw::default()), Purpose::Manage] {
        let known = identify(&vault, &job(), &absent(), &purpose).map(drop);
        assert_eq!(known, off);
    }
    assert_eq!(
        draw_for(&vault, &job(), &absent(), &sealed.token).map(drop),
        off
    );
    draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
}

#[test]
fn grants_are_said_in_words_once_and_when_they_change() {
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let told = || world.lines("grant");
    vault.check_settings().unwrap();
    vault.check_settings().unwrap();
    assert_eq!(told(), 2, "one a rule");
    set(&world, "grants", "[]");
    world.advance(settings::source::FRESH);
    vault.check_settings().unwrap();
    vault.check_settings().unwrap();
    assert_eq!(told(), 3);
    let log = world.log.borrow();
    assert!(log.last().unwrap().contains("none may draw"), "{log:?}");
}
