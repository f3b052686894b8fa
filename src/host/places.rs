//! Places: how many instances may live at once, and who gets one that comes free.
//!
//! There is one pool for all components, for requests and for ticks of a schedule. Who waits longest gets what comes
//! free first. Ticks can take half of it at most: they call the app, and would wait for one another otherwise.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long whoever needs a place waits for one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What an instance is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Answering requests, for as long as it is of use.
    Requests,
    /// One tick of a schedule.
    Tick,
}

/// All places. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    count: u32,
    all: Arc<Semaphore>,
    for_requests: Arc<Semaphore>,
    for_ticks: Arc<Semaphore>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// By age.
    by: BTreeMap<u64, Holder>,
}

#[derive(Debug)]
struct Holder {
    component: Arc<str>,
    purpose: Purpose,
    /// Since when it has had nothing to do.
    idle: Option<Instant>,
    /// Cancelled when it should leave.
    asked: CancellationToken,
}

impl Places {
    /// Room for this many instances. With a schedule there are two at least, so that a tick can call the app.
    pub(crate) fn new(instances: u32, with_schedule: bool) -> Self {
        let count = instances.max(if with_schedule { 2 } else { 1 });
        let permits = |count: u32| {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
        };
        Self(Arc::new(Shared {
            count,
            all: permits(count),
            for_requests: permits(instances.max(1)),
            for_ticks: permits(instances.div_euclid(2).max(1)),
            taken: Mutex::default(),
        }))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.0.count
    }

    /// A place for an instance of `component`, as soon as there is one. If there is none, another instance is asked to
    /// leave: one that is idle, or else one of another component once it has done what it has begun. For a request none of the same
    /// component is: if it has time it takes the request itself, and it knows more than a new one.
    pub(crate) async fn take(&self, component: &Arc<str>, purpose: Purpose) -> Place {
        let mine = match purpose {
            Purpose::Requests => &self.0.for_requests,
            Purpose::Tick => &self.0.for_ticks,
        };
        let ask = || self.0.ask_for_room(component, purpose);
        let mine = permit(mine, ask).await;
        let any = permit(&self.0.all, ask).await;
        let asked = CancellationToken::new();
        let mut taken = self.0.taken();
        let number = taken.next;
        taken.next = number.wrapping_add(1);
        taken.by.insert(
            number,
            Holder {
                component: Arc::clone(component),
                purpose,
                idle: None,
                asked: asked.clone(),
            },
        );
        drop(taken);
        Place {
            number,
            places: self.clone(),
            asked: Box::pin(asked.cancelled_owned()),
            _permits: (mine, any),
        }
    }
}

/// A permit; if there is none at once, `wanting` is told before it is waited for.
async fn permit(of: &Arc<Semaphore>, wanting: impl FnOnce()) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(of).try_acquire_owned() {
        return Some(permit);
    }
    wanting();
    // They are never closed.
    Arc::clone(of).acquire_owned().await.ok()
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask_for_room(&self, component: &Arc<str>, purpose: Purpose) {
        let taken = self.taken();
        let could = || {
            taken
                .by
                .values()
                .filter(|it| it.purpose == Purpose::Requests && !it.asked.is_cancelled())
        };
        let idle = could()
            .filter(|it| purpose == Purpose::Tick || it.component != *component)
            .filter(|it| it.idle.is_some())
            .min_by_key(|it| it.idle);
        let others = || could().find(|it| it.component != *component);
        if let Some(holder) = idle.or_else(others) {
            holder.asked.cancel();
        }
    }
}

/// A place that is taken. Dropped, it is the next one's: when the instance is gone.
#[derive(Debug)]
pub(crate) struct Place {
    number: u64,
    places: Places,
    asked: Pin<Box<WaitForCancellationFutureOwned>>,
    _permits: (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>),
}

impl Place {
    /// Whose number is lower has had its place for longer.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Ready when the instance is asked to leave, as soon as it has done what it has begun.
    pub(crate) fn poll_asked(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.asked.as_mut().poll(context)
    }

    /// Says since when the instance has had nothing to do; none: it has.
    pub(crate) fn set_idle(&self, since: Option<Instant>) {
        if let Some(holder) = self.places.0.taken().by.get_mut(&self.number) {
            holder.idle = since;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.taken().by.remove(&self.number);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn asked(place: &mut Place) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        place.poll_asked(&mut context).is_ready()
    }

    #[tokio::test]
    async fn who_waits_longest_gets_what_comes_free_first() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let places = Places::new(1, false);
        let first = places.take(&a, Purpose::Requests).await;
        let mut second = Box::pin(places.take(&a, Purpose::Requests));
        let mut third = Box::pin(places.take(&b, Purpose::Requests));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        let second = second.await;
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        assert_eq!(third.await.number(), 2);
    }

    #[tokio::test]
    async fn who_is_idle_for_longest_is_asked_to_leave_or_else_another_component() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let places = Places::new(3, false);
        let mut one = places.take(&a, Purpose::Requests).await;
        let mut two = places.take(&a, Purpose::Requests).await;
        let mut three = places.take(&a, Purpose::Requests).await;
        // Another instance of the same component would be of no more use.
        assert!(places.take(&a, Purpose::Requests).now_or_never().is_none());
        assert!(!asked(&mut one) && !asked(&mut two) && !asked(&mut three));

        let now = Instant::now();
        two.set_idle(Some(now));
        three.set_idle(Some(now.checked_sub(Duration::from_millis(1)).unwrap()));
        // Nor would one in the place of one that is idle, and knows more.
        assert!(places.take(&a, Purpose::Requests).now_or_never().is_none());
        assert!(!asked(&mut one) && !asked(&mut two) && !asked(&mut three));
        assert!(places.take(&b, Purpose::Requests).now_or_never().is_none());
        assert!(asked(&mut three) && !asked(&mut two) && !asked(&mut one));
        two.set_idle(None);
        assert!(places.take(&b, Purpose::Requests).now_or_never().is_none());
        assert!(asked(&mut one) && !asked(&mut two));
    }

    #[tokio::test]
    async fn a_tick_gets_the_place_of_its_own_component_that_is_idle() {
        let a: Arc<str> = "a".into();
        let places = Places::new(2, true);
        let one = places.take(&a, Purpose::Requests).await;
        let mut two = places.take(&a, Purpose::Requests).await;
        two.set_idle(Some(Instant::now()));
        assert!(places.take(&a, Purpose::Tick).now_or_never().is_none());
        assert!(asked(&mut two));
        drop(one);
    }

    #[tokio::test]
    async fn ticks_and_requests_leave_room_for_each_other() {
        let a: Arc<str> = "a".into();
        for (instances, requests, ticks) in [(1, 1, 1), (2, 2, 1), (5, 5, 2)] {
            let places = Places::new(instances, true);
            let mut taken = Vec::new();
            while let Some(place) = places.take(&a, Purpose::Tick).now_or_never() {
                taken.push(place);
            }
            assert_eq!(taken.len(), ticks, "{instances}");
            while let Some(place) = places.take(&a, Purpose::Requests).now_or_never() {
                taken.push(place);
            }
            let all = requests.max(2);
            assert_eq!(taken.len(), all, "{instances}");
            taken.clear();
            while let Some(place) = places.take(&a, Purpose::Requests).now_or_never() {
                taken.push(place);
            }
            assert_eq!(taken.len(), requests, "{instances}");
        }
    }
}
