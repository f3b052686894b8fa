//! When something has to be over, on a clock that nobody sets.

use std::time::Duration;

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
    pub fn after(start: Duration, time: Duration) -> Self {
        Self(start.saturating_add(time))
    }

    /// How much time is left; none when it is over.
    #[must_use]
    pub fn left(self, timer: &impl Timer) -> Duration {
        self.0.saturating_sub(timer.elapsed())
    }

    /// Whether no time is left.
    #[must_use]
    pub fn is_over(self, timer: &impl Timer) -> bool {
        self.left(timer).is_zero()
    }
}
