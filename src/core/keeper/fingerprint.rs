//! Whether the settings are those that what is stored was made with.
//!
//! Records are sealed for a client id and the template of a user's id, found by the pseudonym that `pseudonym_key` makes,
//! and opened with the key whose name `secret_id_template` makes. With another value of any of them every record would
//! look like a damaged or missing one. So a ledger keeps the [`Fingerprint`] that it saw first, and nothing is done under
//! another one until the operator confirms it.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::identity::Fingerprint;
use crate::vault::port::Policy;

/// How long it is remembered that the settings are the right ones: another replica may have confirmed others.
const REMEMBERED: Duration = Duration::from_mins(1);

/// Settings that were found right.
pub(super) struct Seen {
    policy: Policy,
    until: Duration,
}

impl Seen {
    /// They were found right now, by the clock that nobody sets.
    pub(super) fn new(policy: &Policy, now: Duration) -> Self {
        Self {
            policy: policy.clone(),
            until: now.saturating_add(REMEMBERED),
        }
    }

    /// Whether these are the ones, and were found right not long ago.
    pub(super) fn covers(&self, policy: &Policy, now: Duration) -> bool {
        now < self.until && self.policy == *policy
    }
}

/// Settings are not those that what is stored was made with. Nothing was touched.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "what is stored was made with another value of {}: with this one no user can be found or no token opened. Set it back; or, if users \
     are to enrol anew, set `confirmed_settings` to {confirmation}",
    .settings.iter().map(|setting| format!("`{setting}`")).collect::<Vec<_>>().join(", ")
)]
pub struct ChangedSettings {
    /// Which.
    pub settings: Vec<&'static str>,
    /// The value of the setting `confirmed_settings` that lets this change pass, and no other.
    pub confirmation: String,
}

impl ChangedSettings {
    /// What is another one now; nothing, if all are as they were.
    pub(super) fn between(known: &Fingerprint, current: &Fingerprint) -> Self {
        let mut hash = Sha256::new();
        let mut settings = Vec::new();
        for ((setting, known), (_, current)) in known.parts().into_iter().zip(current.parts()) {
            if known != current {
                settings.push(setting);
            }
            // Each is of one length.
            hash.update(known);
            hash.update(current);
        }
        let hash: [u8; 32] = hash.finalize().into();
        let confirmation = hash.iter().take(8).map(|byte| format!("{byte:02x}"));
        Self {
            settings,
            confirmation: confirmation.collect(),
        }
    }
}

/// Whether what is stored was made with these settings, or somebody has confirmed that it was not.
///
/// # Errors
/// [`ChangedSettings`].
pub fn check(known: &Fingerprint, policy: &Policy) -> Result<(), ChangedSettings> {
    if *known == policy.fingerprint {
        return Ok(());
    }
    let changed = ChangedSettings::between(known, &policy.fingerprint);
    if policy.confirmed_settings.as_ref() == Some(&changed.confirmation) {
        Ok(())
    } else {
        Err(changed)
    }
}

#[cfg(test)]
mod tests {
    use crate::keeper::Request;
    use pollster::block_on;

    use super::*;
    use crate::keeper::KeeperError;
    use crate::ledger::LedgerError;
    use crate::secret::Bearer;
    use crate::simulation::world::{App, SWEEP_KEY, World};

    fn changed<T: std::fmt::Debug>(outcome: Result<T, KeeperError>) -> ChangedSettings {
        match outcome {
            Err(KeeperError::ChangedSettings(changed)) => changed,
            outcome => panic!("{outcome:?}"),
        }
    }

    fn sweep(app: &App) -> Result<(), KeeperError> {
        block_on(app.sweep(&Request::of(&Bearer::new(SWEEP_KEY.to_owned())))).map(|_| ())
    }

    #[test]
    fn a_changed_setting_stops_everything_by_its_name_and_touches_nothing() {
        for (setting, value) in [
            ("client_id", "99999999-9999-9999-9999-999999999999"),
            ("user_id_template", "{tid}_{oid}"),
            ("secret_id_template", "other-{tid}"),
            ("pseudonym_key", "a-key-that-nobody-will-guess-0123456789"),
        ] {
            let world = World::new();
            block_on(world.app().enrol(&Request::of(&world.bearer()), None)).unwrap();
            world.advance(604_800);
            let before = world.rows.borrow().clone();
            let settings = world.settings.borrow().clone();
            world
                .settings
                .borrow_mut()
                .insert(setting, value.to_owned());
            // So that a token for this app is one.
            let audience = settings["client_id"].clone();
            world.settings.borrow_mut().insert("audience", audience);
            world.take_calls();
            let app = world.app();
            let stopped = changed(sweep(&app));
            assert_eq!(stopped.settings, [setting]);
            assert_eq!(
                changed(block_on(app.show(&Request::of(&world.bearer())))),
                stopped
            );
            assert_eq!(
                changed(block_on(app.draw(
                    &Request::of(&world.bearer()),
                    None,
                    None
                ))),
                stopped
            );
            assert_eq!(
                changed(block_on(app.remove(&Request::of(&world.bearer())))),
                stopped
            );
            assert_eq!(*world.rows.borrow(), before, "{setting}");
            let calls = world.take_calls();
            assert!(
                !calls.iter().any(|call| call.starts_with("entra refresh")),
                "{calls:?}"
            );
            let message = stopped.to_string();
            assert!(message.contains(setting) && message.contains(&stopped.confirmation));

            // Set back, and nothing was lost.
            *world.settings.borrow_mut() = settings;
            block_on(world.app().draw(&Request::of(&world.bearer()), None, None)).unwrap();
        }
    }

    #[test]
    fn a_confirmation_lets_one_change_pass() {
        let world = World::new();
        block_on(world.app().enrol(&Request::of(&world.bearer()), None)).unwrap();
        let set = |name, value: &str| world.settings.borrow_mut().insert(name, value.to_owned());
        set("user_id_template", "{tid}_{oid}");
        let confirmation = changed(sweep(&world.app())).confirmation;
        set("confirmed_settings", &confirmation);
        // Another change than the one that is confirmed.
        set("user_id_template", "{oid}.{tid}");
        changed(sweep(&world.app()));
        set("user_id_template", "{tid}_{oid}");
        let app = world.app();
        sweep(&app).unwrap();
        let shown = block_on(app.show(&Request::of(&world.bearer())));
        assert_eq!(shown, Err(LedgerError::NotEnrolled.into()));
        block_on(app.enrol(&Request::of(&world.bearer()), None)).unwrap();
        // It may stay in the settings, and does not let the way back pass.
        sweep(&world.app()).unwrap();
        set("user_id_template", "{tid}.{oid}");
        changed(sweep(&world.app()));
        assert_eq!(world.lines("changed_settings_confirmed"), 1);
    }

    /// Another replica may have confirmed a change.
    #[test]
    fn what_was_found_right_is_looked_at_again_after_a_minute() {
        let world = World::new();
        let app = world.app();
        block_on(app.enrol(&Request::of(&world.bearer()), None)).unwrap();
        let settings = world.settings.borrow().clone();
        world
            .settings
            .borrow_mut()
            .insert("user_id_template", "{tid}_{oid}".to_owned());
        let confirmation = changed(sweep(&world.app())).confirmation;
        world
            .settings
            .borrow_mut()
            .insert("confirmed_settings", confirmation);
        sweep(&world.app()).unwrap();
        *world.settings.borrow_mut() = settings;
        world.advance(61);
        changed(block_on(app.show(&Request::of(&world.bearer()))));
    }

    #[test]
    fn a_damaged_fingerprint_is_told_and_kept() {
        let world = World::new();
        block_on(world.app().enrol(&Request::of(&world.bearer()), None)).unwrap();
        let key = world.keys_of("settings.").remove(0);
        for (value, error) in [
            (r#"{"v":1,"seen":{}}"#, LedgerError::RecordDamaged),
            (r#"{"v":2}"#, LedgerError::RecordTooNew),
        ] {
            world.rows.borrow_mut().insert(key.clone(), value.into());
            assert_eq!(sweep(&world.app()), Err(error.into()));
            assert_eq!(world.rows.borrow()[&key], value.as_bytes());
        }
    }
}
