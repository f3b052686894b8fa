//! The core's clocks, randomness and log on WASI 0.3, for the components that run on it.
//!
//! What only one component may have, such as the network, is not here but in that component: so a component can import no
//! more than it writes down.

use std::io::Write as _;
use std::time::Duration;

pub use behalf_core;
use wasip3::clocks::{monotonic_clock, system_clock};

/// Implements `Clock`, `Timer`, `Random` and `Log` for a component's own type. It is a macro because a component gives the same
/// type ports of its own, and Rust lets it do so for a type of its own alone.
#[macro_export]
macro_rules! ports {
    ($wasi:ty) => {
        impl $crate::behalf_core::Clock for $wasi {
            fn now(&self) -> u64 {
                $crate::now()
            }
        }

        impl $crate::behalf_core::Timer for $wasi {
            fn elapsed(&self) -> ::std::time::Duration {
                $crate::elapsed()
            }

            async fn sleep(&self, duration: ::std::time::Duration) {
                $crate::sleep(duration).await;
            }
        }

        impl $crate::behalf_core::Random for $wasi {
            fn fill(&self, buffer: &mut [u8]) {
                $crate::fill(buffer);
            }
        }

        impl $crate::behalf_core::Log for $wasi {
            fn line(&self, line: &str) {
                $crate::line(line);
            }
        }
    };
}

/// Unix seconds; 0 before 1970.
#[must_use]
pub fn now() -> u64 {
    u64::try_from(system_clock::now().seconds).unwrap_or(0)
}

/// Time on a clock that nobody sets.
#[must_use]
pub fn elapsed() -> Duration {
    Duration::from_nanos(monotonic_clock::now())
}

/// Waits.
pub async fn sleep(duration: Duration) {
    monotonic_clock::wait_for(nanoseconds(duration)).await;
}

/// A time as WASI has it; what does not fit is the longest there is.
#[must_use]
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Fills with random bytes, or ends the component: on a host without randomness names could recur, and keys be guessed.
pub fn fill(buffer: &mut [u8]) {
    if getrandom::fill(buffer).is_err() {
        std::process::abort();
    }
}

/// Writes a line for the operator.
pub fn line(line: &str) {
    // Standard error has no buffer, and each part of a format would be a call of the host. `eprintln!` would trap if the
    // host closed it.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
