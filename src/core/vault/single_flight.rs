//! One call at a time for the same thing: who asks for what is being asked for already waits, and shares the answer.
//!
//! Waiting is looking again after a moment, because one task of a component cannot wake another (DESIGN.md, "How can
//! one request wait for another's answer?").

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::{Rc, Weak};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::port::Timer;

/// From one look to the next it takes a quarter of the time that was waited so far, but no less and no more than this.
const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(32);

/// The calls under way, and what is the answer for whoever waits past his deadline.
pub(crate) struct SingleFlight<K, T, E> {
    under_way: RefCell<Flights<K, Result<T, E>>>,
    too_late: E,
}

/// They end with the last who waits for them.
type Flights<K, A> = HashMap<K, Weak<Flight<A>>>;

struct Flight<A> {
    /// Whether somebody is making the call.
    flying: Cell<bool>,
    answer: OnceCell<A>,
}

impl<K: Eq + Hash + Clone, T: Clone, E: Clone> SingleFlight<K, T, E> {
    pub(crate) fn new(too_late: E) -> Self {
        Self {
            under_way: RefCell::default(),
            too_late,
        }
    }

    /// Makes the call, or waits for the same one that is under way, until the deadline.
    ///
    /// A call that is dropped half-way is made again by whoever looks next: nobody waits for a future that nobody
    /// polls. So is one that failed because its maker had no time left: the others may have more.
    pub(crate) async fn run(
        &self,
        timer: &impl Timer,
        key: &K,
        deadline: Deadline,
        call: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let flight = self.join(key);
        if !flight.has_landed(timer, deadline).await {
            return Err(self.too_late.clone());
        }
        if let Some(answer) = flight.answer.get() {
            return answer.clone();
        }
        let flying = Flying::take_off(&flight.flying);
        let answer = call().await;
        if answer.is_err() && deadline.is_over(timer) {
            return answer;
        }
        let answer = flight.answer.get_or_init(|| answer).clone();
        drop(flying);
        // Who comes from here on asks anew; who waits still has the flight.
        self.leave(key, &flight);
        answer
    }

    /// Waits for a call that is under way, whatever it comes to, until the deadline. If there is none, it does not wait.
    pub(crate) async fn landed(&self, timer: &impl Timer, key: &K, deadline: Deadline) {
        let flight = self.under_way.borrow().get(key).and_then(Weak::upgrade);
        if let Some(flight) = flight {
            flight.has_landed(timer, deadline).await;
        }
    }

    fn join(&self, key: &K) -> Rc<Flight<Result<T, E>>> {
        let mut flights = self.under_way.borrow_mut();
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

    fn leave(&self, key: &K, flight: &Rc<Flight<Result<T, E>>>) {
        let mut flights = self.under_way.borrow_mut();
        if flights
            .get(key)
            .is_some_and(|known| std::ptr::eq(known.as_ptr(), Rc::as_ptr(flight)))
        {
            flights.remove(key);
        }
    }
}

impl<A> Flight<A> {
    /// Waits until nobody makes the call; false: the deadline came first.
    async fn has_landed(&self, timer: &impl Timer, deadline: Deadline) -> bool {
        let begun = timer.elapsed();
        while self.flying.get() {
            let left = deadline.left(timer);
            if left.is_zero() {
                return false;
            }
            let waited = timer.elapsed().saturating_sub(begun);
            let moment = waited.mul_f64(0.25).clamp(SHORTEST, LONGEST);
            timer.sleep(moment.min(left)).await;
        }
        true
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
    use crate::simulation::time::Time;
    use crate::simulation::world::{World, turn};

    const LONG: Duration = Duration::from_secs(25);

    #[test]
    fn the_same_call_is_made_once_and_another_beside_it() {
        let world = World::new();
        let flights: SingleFlight<_, u8, &str> = SingleFlight::new("too late");
        let deadline = Deadline::within(&world, LONG);
        let calls = Cell::new(0);
        let call = async || {
            calls.set(calls.get() + 1);
            turn().await;
            Ok(calls.get())
        };
        let (first, (second, other)) = block_on(join(
            flights.run(&world, &"a", deadline, call),
            join(
                flights.run(&world, &"a", deadline, call),
                flights.run(&world, &"b", deadline, call),
            ),
        ));
        assert_eq!(calls.get(), 2);
        let two = Ok(2);
        assert_eq!((first, second, other), (two, two, two));
        let third = block_on(flights.run(&world, &"a", deadline, call));
        assert_eq!(third, Ok(3), "no cache");
        assert!(flights.under_way.borrow().is_empty());
    }

    #[test]
    fn a_call_that_is_dropped_is_made_by_the_next() {
        let world = World::new();
        let flights: SingleFlight<_, u8, &str> = SingleFlight::new("too late");
        let deadline = Deadline::within(&world, LONG);
        let never = async || pending().await;
        let mut dropped = Box::pin(flights.run(&world, &"a", deadline, never));
        assert_eq!(dropped.as_mut().now_or_never(), None);
        let mut waiting = Box::pin(flights.run(&world, &"a", deadline, async || Ok(7)));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        drop(dropped);
        assert_eq!(block_on(waiting), Ok(7));
        drop(Box::pin(flights.run(&world, &"b", deadline, never)));
        block_on(flights.run(&world, &"c", deadline, async || Ok(7))).unwrap();
        assert!(flights.under_way.borrow().is_empty());
    }

    #[test]
    fn nobody_waits_past_his_own_deadline() {
        let world = World::new();
        let flights: SingleFlight<_, u8, &str> = SingleFlight::new("too late");
        let long = Deadline::within(&world, LONG);
        let mut first = Box::pin(flights.run(&world, &"a", long, async || pending().await));
        assert_eq!(first.as_mut().now_or_never(), None);
        let short = Deadline::within(&world, Duration::from_secs(1));
        let second = block_on(flights.run(&world, &"a", short, async || Ok(7)));
        assert_eq!(second, Err("too late"));
        assert!(world.elapsed.get() < LONG);
    }

    /// What is there is found soon: after a quarter of the time that it took at most, and a moment if it took none.
    #[test]
    fn whoever_waits_finds_the_answer_soon() {
        for took in [1, 5, 20, 60, 100, 400] {
            let took = Duration::from_millis(took);
            let time = Time::default();
            let flights: SingleFlight<_, u8, &str> = SingleFlight::new("too late");
            let deadline = Deadline::within(&time, LONG);
            let call = async || {
                time.sleep(took).await;
                Ok(7)
            };
            let waits = async {
                flights.landed(&time, &"a", deadline).await;
                time.elapsed()
            };
            let (_, found) = time.run(join(flights.run(&time, &"a", deadline, call), waits));
            let late = found.saturating_sub(took);
            assert!(
                found >= took && late <= (took / 4).clamp(SHORTEST, LONGEST),
                "{found:?}"
            );
        }
        // It waits for nothing that nobody has asked for.
        let time = Time::default();
        let flights: SingleFlight<_, u8, &str> = SingleFlight::new("too late");
        let deadline = Deadline::within(&time, LONG);
        time.run(flights.landed(&time, &"a", deadline));
        assert_eq!(time.elapsed(), Duration::ZERO);
    }

    /// A sweep with a moment left must not fail a user's request that waits for the same thing.
    #[test]
    fn whoever_has_more_time_left_makes_the_call_again() {
        let world = World::new();
        let flights: SingleFlight<_, u8, &str> = SingleFlight::new("too late");
        let short = Deadline::within(&world, Duration::from_millis(50));
        let long = Deadline::within(&world, LONG);
        let gives_up = async || {
            world.sleep(Duration::from_millis(50)).await;
            Err("no time left")
        };
        let (first, second) = block_on(join(
            flights.run(&world, &"a", short, gives_up),
            flights.run(&world, &"a", long, async || Ok(7)),
        ));
        assert_eq!((first, second), (Err("no time left"), Ok(7)));
        // What failed in time is everybody's answer.
        let fails = async || {
            turn().await;
            Err("refused")
        };
        let (first, second) = block_on(join(
            flights.run(&world, &"a", long, fails),
            flights.run(&world, &"a", long, async || Ok(7)),
        ));
        assert_eq!((first, second), (Err("refused"), Err("refused")));
    }
}
