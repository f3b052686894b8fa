//! A component that answers requests: who waits for an instance, and which instance takes whom.
//!
//! Requests wait in one line and belong to no instance before one takes them: whichever has time first takes the one
//! that waits longest. Instances are woken by age, so that work gathers in few, whose caches are warm, and the others
//! come to their end. A processor each is enough for most; when a request waits nevertheless, another instance is
//! started, if there is a place for it ([`crate::places`]).

use crate::instance::{Grants, Guest, ReuseLimits, cause};
use crate::life::Lifetime;
use crate::places::{PATIENCE, Places, Purpose};
use crate::worker;
use http::{Request, Response};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode;

/// How long a request waits for the instances that there are before more are started than there are processors. If the host
/// has not been idle meanwhile, how long nobody has been taken: another would only share the time that these have.
const HASTE: Duration = Duration::from_millis(10);

/// A component with a route.
pub(crate) struct Service {
    /// What each instance gets.
    pub(crate) grants: Grants,
    /// How instances are reused.
    pub(crate) limits: ReuseLimits,
    /// How to stop.
    pub(crate) lifetime: Lifetime,
    pre: ServicePre<Guest>,
    places: Places,
    processors: usize,
    line: Mutex<Line>,
    started: AtomicU64,
    failed: AtomicU64,
}

/// The requests that no instance has taken yet, and the instances.
#[derive(Default)]
struct Line {
    /// In the order of their numbers.
    waiting: VecDeque<(u64, Visit)>,
    next: u64,
    /// Those that have time, by the number of their place: the oldest first.
    ready: BTreeMap<u64, Waker>,
    /// Those that have answered all and do what is left, likewise: they have time in a moment.
    finishing: BTreeSet<u64>,
    /// All of them, likewise.
    alive: BTreeSet<u64>,
    starting: usize,
    /// When a request was taken last.
    taken_at: Option<Instant>,
}

/// A request, and who waits for the answer.
pub(crate) struct Visit {
    /// What to answer.
    pub(crate) request: Request<WasiBody>,
    /// Where the answer goes.
    pub(crate) answer: oneshot::Sender<Result<Response<WasiBody>, Failure>>,
    came: Instant,
    /// [`idled`], when it came.
    idled: u64,
}

impl Service {
    /// The component `pre`, with instances in these places.
    pub(crate) fn new(
        pre: ServicePre<Guest>,
        grants: Grants,
        limits: ReuseLimits,
        lifetime: Lifetime,
        places: Places,
    ) -> Self {
        Self {
            grants,
            limits,
            lifetime,
            pre,
            places,
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            line: Mutex::default(),
            started: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Makes an instance, of no use but to see that it can be made.
    ///
    /// # Errors
    ///
    /// Why not.
    pub(crate) async fn instantiate(&self) -> Result<(), String> {
        let mut store = self.grants.store(self.pre.engine());
        let instance = self.pre.instantiate_async(&mut store).await;
        instance.map(|_| ()).map_err(|error| cause(&error))
    }

    /// The component's answer.
    ///
    /// # Errors
    ///
    /// It has none.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        request: Request<WasiBody>,
    ) -> Result<Response<WasiBody>, Failure> {
        let (answer, mut answered) = oneshot::channel();
        let waiting = self.enter(Visit {
            request,
            answer,
            came: Instant::now(),
            idled: idled(),
        });
        let begun = Instant::now();
        let mut moment = HASTE;
        loop {
            match timeout(moment, &mut answered).await {
                // If nobody answered, the instance is gone.
                Ok(answer) => return answer.unwrap_or(Err(Failure::Instance)),
                Err(_) if begun.elapsed() < PATIENCE && waiting.waits() => self.insist(),
                Err(_) if waiting.give_up() => return Err(Failure::NoPlace),
                // An instance has taken it.
                Err(_) => return answered.await.unwrap_or(Err(Failure::Instance)),
            }
            // Many may wait, and each time is some work.
            let left = PATIENCE.saturating_sub(begun.elapsed());
            moment = moment.saturating_mul(2).min(left);
        }
    }

    /// The request that waits longest, for the instance at the place with this number, which has time. If there is none,
    /// the instance is woken when one comes.
    pub(crate) fn next(self: &Arc<Self>, place: u64, context: &mut Context<'_>) -> Option<Visit> {
        let mut line = self.line();
        line.finishing.remove(&place);
        let Some((_, visit)) = line.waiting.pop_front() else {
            line.ready.insert(place, context.waker().clone());
            return None;
        };
        // It may have time again soon, or compute for long.
        line.ready.remove(&place);
        line.taken_at = Some(Instant::now());
        self.call_somebody(&mut line);
        Some(visit)
    }

    /// The instance at this place has no time, or will have some in a moment: it does what its requests have left to be done.
    pub(crate) fn busy(self: &Arc<Self>, place: u64, finishing: bool) {
        let mut line = self.line();
        let counted_on = line.ready.remove(&place).is_some() || line.finishing.remove(&place);
        if finishing {
            line.finishing.insert(place);
        } else if counted_on {
            self.call_somebody(&mut line);
        }
    }

    /// Whether there is an older instance than the one at this place for each processor.
    pub(crate) fn is_spare(&self, place: u64) -> bool {
        let line = self.line();
        let mut oldest = line.alive.iter().take(self.processors);
        oldest.all(|it| *it != place)
    }

    /// Counts an instance that failed; returns how many there were.
    pub(crate) fn count_failed(&self) -> u64 {
        self.failed
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1)
    }

    /// Counts an instance that was started, and says so to whoever wants to know how long they are of use.
    fn tell_started(&self) {
        let before = self.started.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(
            "component {}: an instance started ({} so far)",
            self.grants.component,
            before.saturating_add(1)
        );
    }

    fn enter(self: &Arc<Self>, visit: Visit) -> Waiting<'_> {
        let mut line = self.line();
        let number = line.next;
        line.next = number.wrapping_add(1);
        line.waiting.push_back((number, visit));
        self.call_somebody(&mut line);
        Waiting {
            service: self,
            number,
        }
    }

    /// The instances that have time may be computing meanwhile: all of them are called, and another.
    fn insist(self: &Arc<Self>) {
        let mut line = self.line();
        for waker in line.ready.values() {
            waker.wake_by_ref();
        }
        self.start_if_wanted(&mut line);
    }

    /// If somebody waits, wakes an instance that has time, or starts another.
    fn call_somebody(self: &Arc<Self>, line: &mut Line) {
        if line.waiting.is_empty() {
            return;
        }
        match line.ready.values().next() {
            Some(waker) => waker.wake_by_ref(),
            None => self.start_if_wanted(line),
        }
    }

    fn start_if_wanted(self: &Arc<Self>, line: &mut Line) {
        let Some((_, first)) = line.waiting.front() else {
            return;
        };
        let few = line.finishing.is_empty()
            && line.alive.len().saturating_add(line.starting) < self.processors;
        let is_stuck = || line.taken_at.is_none_or(|it| it.elapsed() >= HASTE);
        let late = first.came.elapsed() >= HASTE
            && line.starting < self.processors
            && (idled() != first.idled || is_stuck());
        if line.starting < line.waiting.len() && (few || late) {
            line.starting = line.starting.saturating_add(1);
            tokio::spawn(start(Starting(Arc::clone(self))));
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often a thread of the host had nothing to do so far. While all have, instances have all the time that there is.
fn idled() -> u64 {
    let host = Handle::current().metrics();
    (0..host.num_workers())
        .map(|thread| host.worker_park_count(thread))
        .fold(0, u64::wrapping_add)
}

/// Why a component did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It returned an error of `wasi:http` instead.
    #[error("returned {} instead of a response", name(.0))]
    Code(ErrorCode),
    /// It took longer than `--request-timeout`.
    #[error("did not respond within --request-timeout")]
    TooLong,
    /// No instance had time for it.
    #[error("had no place for a request in {} seconds", PATIENCE.as_secs())]
    NoPlace,
    /// There is no instance, and none can be made.
    #[error("cannot be instantiated: {0}")]
    Instantiation(String),
    /// Its instance failed meanwhile. The end of that says why.
    #[error("failed")]
    Instance,
}

/// The name alone: a payload may hold what the component was working on.
fn name(code: &ErrorCode) -> String {
    let mut text = format!("{code:?}");
    text.truncate(text.find(['(', ' ']).unwrap_or(text.len()));
    text
}

/// A request's place in the line. It leaves the line when this is dropped, as it is when its client is gone.
struct Waiting<'a> {
    service: &'a Service,
    number: u64,
}

impl Waiting<'_> {
    /// Whether no instance has taken the request yet.
    fn waits(&self) -> bool {
        self.find(&self.service.line()).is_some()
    }

    /// Leaves the line. False if an instance has taken the request before.
    fn give_up(&self) -> bool {
        let mut line = self.service.line();
        let found = self.find(&line);
        found.is_some_and(|index| line.waiting.remove(index).is_some())
    }

    fn find(&self, line: &Line) -> Option<usize> {
        line.waiting
            .binary_search_by_key(&self.number, |(number, _)| *number)
            .ok()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// That an instance is being started.
struct Starting(Arc<Service>);

impl Drop for Starting {
    fn drop(&mut self) {
        let mut line = self.0.line();
        line.starting = line.starting.saturating_sub(1);
    }
}

/// That there is an instance at the place with this number.
struct Alive(Arc<Service>, u64);

impl Alive {
    fn new(service: &Arc<Service>, place: u64) -> Self {
        let mut line = service.line();
        line.alive.insert(place);
        Self(Arc::clone(service), place)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let Self(service, place) = self;
        let mut line = service.line();
        line.alive.remove(place);
        line.ready.remove(place);
        line.finishing.remove(place);
        service.call_somebody(&mut line);
    }
}

/// An instance's whole life, if there is still somebody who waits when there is a place for it.
async fn start(starting: Starting) {
    let service = Arc::clone(&starting.0);
    let place = service
        .places
        .take(&service.grants.component, Purpose::Requests)
        .await;
    if service.line().waiting.is_empty() {
        return;
    }
    let mut store = service.grants.store(service.pre.engine());
    match service.pre.instantiate_async(&mut store).await {
        Ok(instance) => {
            service.tell_started();
            let alive = Alive::new(&service, place.number());
            drop(starting);
            worker::run(&service, place, store, &instance).await;
            drop(alive);
        }
        Err(error) => {
            drop((store, place, starting));
            let mut line = service.line();
            if let Some((_, visit)) = line.waiting.pop_front() {
                // If nobody is there any more, nobody needs to know.
                let _ = visit
                    .answer
                    .send(Err(Failure::Instantiation(cause(&error))));
            }
            service.call_somebody(&mut line);
        }
    }
}
