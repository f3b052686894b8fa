//! When something has to be over, on a clock that nobody sets.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};

use crate::port::Timer;

/// How long a request to the app may take, and so a call of the vault: hosts give up after 30 s.
pub const LONGEST: Duration = Duration::from_secs(25);

/// When something has to be over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deadline(Duration);

impl Deadline {
    /// Of something that starts now and may take so long.
    #[must_use]
    pub fn within(timer: &impl Timer, time: Duration) -> Self {
        Self::after(timer.elapsed(), time)
    }

    /// Of something that started when so much had elapsed, and may take so long.
    #[must_use]
    pub const fn after(start: Duration, time: Duration) -> Self {
        Self(start.saturating_add(time))
    }

    /// How much time is left; none when it is over.
    #[must_use]
    pub fn left(self, timer: &impl Timer) -> Duration {
        self.0.saturating_sub(timer.elapsed())
    }

    /// What work comes to, if it is over by then. Else it is dropped; if no time is left, it is not begun.
    pub async fn bound<T>(self, timer: &impl Timer, work: impl Future<Output = T>) -> Option<T> {
        if self.is_over(timer) {
            return None;
        }
        match select(pin!(work), pin!(timer.sleep(self.left(timer)))).await {
            Either::Left((outcome, _)) => Some(outcome),
            Either::Right(((), _)) => None,
        }
    }

    /// Whether no time is left.
    #[must_use]
    pub fn is_over(self, timer: &impl Timer) -> bool {
        self.left(timer).is_zero()
    }
}
