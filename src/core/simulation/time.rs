//! A time that passes only when everybody waits for it: what takes a second takes it exactly, and what takes none, none.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::port::Timer;

/// The time since the start, and who waits.
#[derive(Default)]
pub(crate) struct Time {
    elapsed: Cell<Duration>,
    /// When somebody wants to be woken, and the numbers of those who do.
    timers: RefCell<BinaryHeap<Reverse<(Duration, u64)>>>,
    /// Those who wait, by their numbers.
    wakers: RefCell<BTreeMap<u64, Waker>>,
    /// The last number that was given out.
    counter: Cell<u64>,
}

impl Time {
    /// Runs a future until it is over. Whoever waits is woken at its time, and no time passes otherwise.
    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        struct Flag(AtomicBool);
        impl Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&flag));
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            if flag.0.swap(false, Ordering::Relaxed) {
                if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                    return value;
                }
                continue;
            }
            let timer = self.timers.borrow_mut().pop();
            let Reverse((time, id)) = timer.expect("somebody waits for a time");
            self.elapsed.set(self.elapsed.get().max(time));
            if let Some(waker) = self.wakers.borrow_mut().remove(&id) {
                waker.wake();
            }
        }
    }

    /// Lets time pass in which nobody does anything.
    pub(super) fn pass(&self, duration: Duration) {
        self.elapsed.set(self.elapsed.get() + duration);
        self.timers.borrow_mut().clear();
        self.wakers.borrow_mut().clear();
    }
}

impl Timer for Time {
    fn elapsed(&self) -> Duration {
        self.elapsed.get()
    }

    async fn sleep(&self, duration: Duration) {
        let until = self.elapsed.get() + duration;
        let id = self.counter.get() + 1;
        self.counter.set(id);
        self.timers.borrow_mut().push(Reverse((until, id)));
        poll_fn(|context| {
            if self.elapsed.get() >= until {
                return Poll::Ready(());
            }
            let mut wakers = self.wakers.borrow_mut();
            wakers.insert(id, context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
