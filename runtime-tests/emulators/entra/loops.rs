//! What Entra ID takes for a loop: the same request of a user again and again. It breaks it with AADSTS50196.
//!
//! That it does is documented, and that a client which keeps its tokens never meets it; from which request on is not. The page on
//! looping clients has "15+ in 5 minutes", of clients that are told apart by a cookie
//! (<https://learn.microsoft.com/entra/identity-platform/reference-breaking-changes>), and says nothing of a server at the
//! token endpoint. So the threshold here is ours: after 15 in 5 minutes the next one is refused. What an app asks for itself is
//! none of it: that is throttled with 429
//! (<https://learn.microsoft.com/entra/msal/dotnet/advanced/client-and-server-throttling>).

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Identical requests that are answered: ours.
const MOST: usize = 15;
/// In this time: ours.
const WINDOW: Duration = Duration::from_mins(5);

/// What makes two requests identical. A user's refresh tokens are not told apart: a client that takes each new one loops all
/// the same.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Same {
    pub(super) client: String,
    pub(super) tenant: String,
    pub(super) user: String,
    pub(super) grant: String,
    pub(super) scope: String,
    pub(super) claims: String,
}

/// Counts identical requests.
pub(super) struct Loops(Mutex<Count>);

struct Count {
    is_on: bool,
    /// How far its clock is ahead.
    ahead: Duration,
    /// When each came, the newest that matter.
    seen: HashMap<Same, VecDeque<Instant>>,
    broken: usize,
}

impl Loops {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Count {
            is_on: true,
            ahead: Duration::ZERO,
            seen: HashMap::new(),
            broken: 0,
        }))
    }

    /// Counts a request; whether it is one of a loop. Those that are refused count, too.
    pub(super) fn is_loop(&self, request: Same) -> bool {
        let mut count = self.0.lock().unwrap();
        if !count.is_on {
            return false;
        }
        let now = Instant::now() + count.ahead;
        let times = count.seen.entry(request).or_default();
        while times.len() > MOST
            || times
                .front()
                .is_some_and(|first| now.duration_since(*first) >= WINDOW)
        {
            times.pop_front();
        }
        let is_loop = times.len() >= MOST;
        times.push_back(now);
        count.broken += usize::from(is_loop);
        is_loop
    }

    /// How many requests were refused.
    pub(super) fn broken(&self) -> usize {
        self.0.lock().unwrap().broken
    }

    /// Lets time pass on its clock.
    pub(super) fn pass(&self, time: Duration) {
        self.0.lock().unwrap().ahead += time;
    }

    /// Refuses loops from now on, or none.
    pub(super) fn switch(&self, on: bool) {
        let mut count = self.0.lock().unwrap();
        count.is_on = on;
        count.seen.clear();
    }
}
