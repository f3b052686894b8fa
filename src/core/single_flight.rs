//! One call at a time for the same thing: who asks for what is being asked for already waits, and shares the answer.
//!
//! Waiting is looking again after a moment, because one task of a component cannot wake another (DESIGN.md, "How can one
//! request wait for another's answer?").

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::{Rc, Weak};
use std::time::Duration;

use crate::port::Timer;

/// The first look is after this long, and each one after twice as long, up to [`LONGEST`].
const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(32);

/// The calls under way.
pub(crate) struct SingleFlight<K, T>(RefCell<HashMap<K, Weak<Flight<T>>>>);

struct Flight<T> {
    /// Whether somebody is making the call.
    flying: Cell<bool>,
    answer: OnceCell<T>,
}

impl<K: Eq + Hash + Clone, T: Clone> SingleFlight<K, T> {
    pub(crate) fn new() -> Self {
        Self(RefCell::default())
    }

    /// Makes the call, or waits for the same one that is under way.
    ///
    /// A call that is dropped half-way is made again by whoever looks next: nobody waits for a future that nobody polls.
    pub(crate) async fn run(
        &self,
        timer: &impl Timer,
        key: &K,
        call: impl AsyncFnOnce() -> T,
    ) -> T {
        let flight = self.join(key);
        let mut moment = SHORTEST;
        while flight.flying.get() {
            timer.sleep(moment).await;
            moment = moment.saturating_mul(2).min(LONGEST);
        }
        if let Some(answer) = flight.answer.get() {
            return answer.clone();
        }
        let flying = Flying::take_off(&flight.flying);
        let answer = call().await;
        let answer = flight.answer.get_or_init(|| answer).clone();
        drop(flying);
        // Who comes from here on asks anew; who waits still has the flight.
        self.leave(key, &flight);
        answer
    }

    fn join(&self, key: &K) -> Rc<Flight<T>> {
        let mut flights = self.0.borrow_mut();
        if let Some(flight) = flights.get(key).and_then(Weak::upgrade) {
            return flight;
        }
        // Flights that were dropped half-way.
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Rc::new(Flight {
            flying: Cell::new(false),
            answer: OnceCell::new(),
        });
        flights.insert(key.clone(), Rc::downgrade(&flight));
        flight
    }

    fn leave(&self, key: &K, flight: &Rc<Flight<T>>) {
        let mut flights = self.0.borrow_mut();
        if flights
            .get(key)
            .is_some_and(|known| std::ptr::eq(known.as_ptr(), Rc::as_ptr(flight)))
        {
            flights.remove(key);
        }
    }
}

/// Lands when it is dropped, however that comes about.
struct Flying<'a>(&'a Cell<bool>);

impl<'a> Flying<'a> {
    fn take_off(flying: &'a Cell<bool>) -> Self {
        flying.set(true);
        Self(flying)
    }
}

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt as _;
    use futures_util::future::join;
    use pollster::block_on;

    use super::*;
    use crate::world::{World, turn};

    #[test]
    fn the_same_call_is_made_once_and_another_beside_it() {
        let (world, flights) = (World::new(), SingleFlight::new());
        let calls = Cell::new(0);
        let call = async || {
            calls.set(calls.get() + 1);
            turn().await;
            calls.get()
        };
        let (first, (second, other)) = block_on(join(
            flights.run(&world, &"a", call),
            join(
                flights.run(&world, &"a", call),
                flights.run(&world, &"b", call),
            ),
        ));
        assert_eq!(calls.get(), 2);
        assert_eq!((first, second, other), (2, 2, 2));
        assert_eq!(block_on(flights.run(&world, &"a", call)), 3, "no cache");
        assert!(flights.0.borrow().is_empty());
    }

    #[test]
    fn a_call_that_is_dropped_is_made_by_the_next() {
        let world = World::new();
        let flights: SingleFlight<_, u8> = SingleFlight::new();
        let mut dropped = Box::pin(flights.run(&world, &"a", async || pending().await));
        assert_eq!(dropped.as_mut().now_or_never(), None);
        let mut waiting = Box::pin(flights.run(&world, &"a", async || 7));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        drop(dropped);
        assert_eq!(block_on(waiting), 7);
        drop(Box::pin(
            flights.run(&world, &"b", async || pending().await),
        ));
        block_on(flights.run(&world, &"c", async || 7));
        assert!(flights.0.borrow().is_empty());
    }
}
