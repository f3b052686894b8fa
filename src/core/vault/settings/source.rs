//! Where the settings of a call come from: they are read again while the app runs.

use std::cell::Cell;
use std::rc::Rc;

use serde_json::json;

use crate::error::VaultError;
use crate::port::{Config, Log, Timer};
use crate::vault::cache::Cache;

/// Seconds for which parsed settings are used before they are read again.
pub(crate) const FRESH: u64 = 10;
/// Age up to which the last good settings are used while those that are read are none, in seconds.
const USABLE: u64 = 300;

/// Some settings as they are now. Times are of the clock that nobody sets.
pub(crate) struct SettingsSource<S> {
    last_good: Cache<(), Rc<S>>,
    /// When somebody last looked whether they changed, with something to use come of it.
    fresh_until: Cell<u64>,
}

impl<S> SettingsSource<S> {
    /// Nothing read yet.
    pub(crate) fn new() -> Self {
        Self {
            last_good: Cache::new(1),
            fresh_until: Cell::new(0),
        }
    }

    /// The settings, read again when they may have changed. The last good ones stay for a time, with an alarm, if those
    /// that are read are none: a file that is being replaced is no reason to refuse everybody.
    ///
    /// # Errors
    /// [`crate::error::OperatorError::Setting`].
    pub(crate) fn current<E: Config + Timer + Log>(
        &self,
        env: &E,
        read: impl FnOnce(&E) -> Result<S, VaultError>,
    ) -> Result<Rc<S>, VaultError> {
        let now = env.elapsed().as_secs();
        let last_good = self.last_good.get_with_age(&(), now);
        if let Some((settings, _)) = &last_good
            && now < self.fresh_until.get()
        {
            return Ok(Rc::clone(settings));
        }
        let settings = match (read(env), last_good) {
            (Ok(settings), _) => {
                let settings = Rc::new(settings);
                // A look that failed at the end of this time may still be fresh.
                let end = now.saturating_add(USABLE).saturating_add(FRESH);
                self.last_good.put((), Rc::clone(&settings), now..end);
                settings
            }
            (Err(error), Some((settings, age))) if age < USABLE => {
                env.line(
                    &json!({"level": "alarm", "event": "settings_not_readable", "reason": error.to_string()})
                        .to_string(),
                );
                settings
            }
            (Err(error), _) => return Err(error),
        };
        self.fresh_until.set(now.saturating_add(FRESH));
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::OperatorError;
    use crate::simulation::world::{Shared, World};
    use crate::vault::settings::Settings;

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
            let source = SettingsSource::new();
            let read = || source.current(&world, Settings::read).map(drop);
            read().unwrap();
            break_settings(&world);
            let alarms = || {
                let log = world.log.take();
                let alarms = log
                    .iter()
                    .filter(|line| line.contains(r#""level":"alarm""#));
                assert!(alarms.clone().all(|line| line.contains(told)), "{log:?}");
                alarms.count()
            };
            world.advance(FRESH - 1);
            read().unwrap();
            assert_eq!(alarms(), 0, "nobody has looked yet");
            for _ in 1..USABLE / FRESH {
                world.advance(FRESH);
                read().unwrap();
                read().unwrap();
                assert_eq!(alarms(), 1, "one a look");
            }
            world.advance(FRESH);
            let error = read().unwrap_err();
            assert!(matches!(
                error,
                VaultError::Operator(OperatorError::Setting(_))
            ));
            assert_eq!(read(), Err(error));
            // They are read again, and have their time anew.
            world.settings_are_down.set(false);
            *world.settings.borrow_mut() = good;
            read().unwrap();
            break_settings(&world);
            world.advance(FRESH);
            read().unwrap();
            // Who never had any has none.
            let another = SettingsSource::new();
            assert!(another.current(&world, Settings::read).is_err());
        }
    }

    #[test]
    fn settings_that_are_fresh_are_not_read_again() {
        let world = World::new();
        let source = SettingsSource::new();
        let first = source.current(&world, Settings::read).unwrap();
        world.advance(FRESH - 1);
        assert!(Rc::ptr_eq(
            &source.current(&world, Settings::read).unwrap(),
            &first
        ));
        world.advance(1);
        assert!(!Rc::ptr_eq(
            &source.current(&world, Settings::read).unwrap(),
            &first
        ));
    }
}
