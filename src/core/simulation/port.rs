//! The ports of one replica, but for its store and its network, which have files of their own.

use std::rc::Rc;
use std::time::Duration;

use crate::Keeper;
use crate::port::{Background, Clock, Config, ConfigError, Log, Random, Timer};
use crate::simulation::history::Operation;
use crate::simulation::mutation::Mutation;
use crate::simulation::outside::{DAY, HOUR, Outside};
use crate::simulation::watched::Watched;
use crate::simulation::world::turn;

/// A replica.
pub(super) type App<L> = Keeper<Watched, L, Port>;

/// The ports of one replica.
#[derive(Clone)]
pub(super) struct Port {
    pub(super) outside: Rc<Outside>,
    /// By how many seconds its clock is ahead, and by how many behind.
    pub(super) skew: (u64, u64),
}

impl Port {
    /// Whether its clock is days off. Then every caller's token has expired for it or is not valid yet.
    pub(super) fn is_days_off(&self) -> bool {
        self.skew.0.abs_diff(self.skew.1) >= DAY
    }
}

impl Clock for Port {
    fn now(&self) -> u64 {
        let (ahead, behind) = self.skew;
        let now = self.outside.now.get() + ahead - behind;
        if self.outside.is(Mutation::LitterWithoutAge) && self.outside.doing() == Operation::Enrol {
            // The keys that an enrolment writes tell by this clock when it began.
            return now - DAY - HOUR;
        }
        now
    }
}

impl Timer for Port {
    /// A millisecond passes at each step, whatever the wall clocks do.
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.outside.step.get())
    }

    /// Takes a turn for every tenth of a second, so that an answer, which takes a few turns, comes before its limit.
    async fn sleep(&self, duration: Duration) {
        for _ in 0..=duration.as_millis() / 100 {
            turn().await;
        }
    }
}

impl Random for Port {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.outside.chance.number().to_le_bytes()[..chunk.len()]);
        }
    }
}

impl Config for Port {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        Ok(self.outside.settings.get(name).cloned())
    }
}

impl Background for Port {
    fn begin(&self, task: impl Future<Output = ()> + 'static) {
        self.outside.begun.borrow_mut().push(Box::pin(task));
    }
}

impl Log for Port {
    fn line(&self, line: &str) {
        self.outside.log.borrow_mut().push(line.to_owned());
    }
}
