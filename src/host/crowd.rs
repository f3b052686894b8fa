//! All connections of clients: how many there may be, and which one has to leave for another.

use crate::talk::Talk;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// How many connections are looked at to find one that can leave.
const LOOKED_AT: usize = 128;

/// The connections that there are. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Crowd {
    most: usize,
    members: Arc<Mutex<VecDeque<Weak<Talk>>>>,
}

impl Crowd {
    /// Nobody yet, and at most so many at once.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            members: Arc::default(),
        }
    }

    /// Lets a connection in, if need be at the cost of one that waits for its client. False if all are at work.
    pub(crate) fn enter(&self, talk: &Arc<Talk>) -> bool {
        let mut members = self.members();
        if members.len() >= self.most {
            members.retain(|it| it.strong_count() > 0);
        }
        if members.len() >= self.most && !ask_one(&mut members) {
            return false;
        }
        members.push_back(Arc::downgrade(talk));
        true
    }

    /// Asks a connection that waits for its client to leave. False if all are at work.
    pub(crate) fn make_room(&self) -> bool {
        ask_one(&mut self.members())
    }

    fn members(&self) -> MutexGuard<'_, VecDeque<Weak<Talk>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks one of those that have been there for longest: rather one that is there for no request, then one that has been idle
/// for longer.
fn ask_one(members: &mut VecDeque<Weak<Talk>>) -> bool {
    let mut leaving: Option<Arc<Talk>> = None;
    for _ in 0..LOOKED_AT.min(members.len()) {
        let Some(talk) = members.pop_front().and_then(|it| it.upgrade()) else {
            continue;
        };
        members.push_back(Arc::downgrade(&talk));
        let could = talk.waits_since().is_some();
        let sooner = leaving
            .as_ref()
            .is_none_or(|it| talk.waits_since() < it.waits_since());
        if could && sooner {
            leaving = Some(talk);
        }
    }
    if let Some(talk) = &leaving {
        talk.ask_to_leave();
        members.retain(|it| !std::ptr::eq(it.as_ptr(), Arc::as_ptr(talk)));
    }
    leaving.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn who_has_just_come_is_not_driven_out_before_its_request_is_read() {
        let crowd = Crowd::new(2);
        let idle = Talk::new();
        assert!(crowd.enter(&idle));
        drop(idle.begin(false));
        let (fresh, next) = (Talk::new(), Talk::new());
        assert!(crowd.enter(&fresh));
        assert!(crowd.enter(&next));
        let has_to_leave = |talk: &Talk| talk.asked_to_leave().now_or_never().is_some();
        assert!(has_to_leave(&idle) && !has_to_leave(&fresh) && !has_to_leave(&next));
    }
}
