//! An instance at work: takes requests as long as it has time for them, answers, and ends when its time has come.
//!
//! It does what `ProxyHandler` of wasmtime-wasi-http does, but for the line that requests wait in (DESIGN.md, "Why do
//! requests wait in a line of our own?").

use crate::fate::Fate;
use crate::instance::{Guest, ReuseLimits, cause};
use crate::places::Place;
use crate::service::{Failure, Service, Visit};
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, Stream as _};
use futures_util::task::AtomicWaker;
use http::Response;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use wasmtime::component::Accessor;
use wasmtime::{AsContextMut as _, Store};
use wasmtime_wasi_http::p3::Request;
use wasmtime_wasi_http::p3::bindings::Service as Exports;
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView as _};

/// How long an instance stays idle that is not among the oldest, one for each processor.
const SPARE_IDLE: Duration = Duration::from_secs(10);

/// Runs an instance from its first request to its end.
pub(crate) async fn run(
    service: &Arc<Service>,
    mut place: Place,
    mut store: Store<Guest>,
    exports: &Exports,
) {
    let _at_work = service.lifetime.at_work.token();
    // Before the store goes, whatever ends this.
    let work = store.data().fate().at_work();
    let desk = Desk {
        service: Arc::clone(service),
        place: place.number(),
        fate: store.data().fate().clone(),
        status: Mutex::new(Status::Idle(Instant::now())),
        waits: AtomicBool::new(true),
        leaves: AtomicBool::new(false),
    };
    let result = {
        let mut end = End::new(service, &mut place);
        let mut serving =
            pin!(store.run_concurrent(async |accessor| serve(&desk, exports, accessor).await));
        let watch = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&watch));
        poll_fn(|context| {
            watch.task.register(context.waker());
            loop {
                watch.woken.store(false, Ordering::Relaxed);
                let polled = serving.as_mut().poll(&mut Context::from_waker(&waker));
                if polled.is_ready() {
                    return polled.map(Result::flatten);
                }
                // Here and not within: the instance may be computing, or in a call of the host that has all of it, and what
                // is within is not polled meanwhile (wasmtime issues 11869 and 11870).
                if let Poll::Ready(result) = end.poll(&desk, context) {
                    return Poll::Ready(result);
                }
                let has_more_to_do = watch.woken.load(Ordering::Relaxed);
                if has_more_to_do || desk.waits.swap(true, Ordering::Relaxed) {
                    return Poll::Pending;
                }
                // All that it does waits for something, so it has time for more.
            }
        })
        .await
    };
    if result.is_ok() {
        work.done();
    } else {
        drop(work);
    }
    // First, so that what the component wrote last comes before why it failed.
    drop(store);
    drop(place);
    if let Err(error) = result {
        tracing::warn!(
            "component {}: an instance failed, and all requests that it was serving: {} ({} so far)",
            service.grants.component,
            cause(&error),
            service.count_failed()
        );
    }
}

/// What the inside and the outside of an instance tell each other.
struct Desk {
    service: Arc<Service>,
    /// The number of its place.
    place: u64,
    fate: Fate,
    status: Mutex<Status>,
    /// Whether all that it does waits for something. From a new request's start on it is taken to compute, until shown
    /// otherwise: whoever comes meanwhile is better off elsewhere. And whatever a request leaves to be done after its answer is
    /// done before the next is taken: if the next always waits already, it would never be.
    waits: AtomicBool,
    /// Whether it takes no more requests, and ends when those that it has are done.
    leaves: AtomicBool,
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy)]
enum Status {
    /// It has requests without a response, the last of them since then.
    Busy(Instant),
    /// It does what is left to do after its responses, since then.
    Finishing(Instant),
    /// It has nothing to do, since then.
    Idle(Instant),
}

impl Desk {
    fn status(&self) -> Status {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_status(&self, status: Status) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// Whether something was woken while it was polled: what is pending then has more to do and only lets others have their turn,
/// as wasmtime does between two things of low priority (a component's `yield`), and a component that computes for long.
#[derive(Default)]
struct Wakes {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Relaxed);
        self.task.wake();
    }
}

// ---- Requests --------------------------------------------------------------------------------------------------------

/// Serves requests until the instance takes no more, and has done all that it has begun.
async fn serve(desk: &Desk, exports: &Exports, accessor: &Accessor<Guest>) -> wasmtime::Result<()> {
    let mut in_hand = pin!(FuturesUnordered::new());
    let mut begun = BTreeSet::new();
    let mut taken = 0_usize;
    let limits = desk.service.limits;
    let function = *exports.wasi_http_handler().func_handle().func();
    poll_fn(|context| {
        loop {
            // First, so that one whose time is up ends the taking of others.
            if let Poll::Ready(Some(ended)) = in_hand.as_mut().poll_next(context) {
                let Ended { request, in_time } = ended?;
                begun.remove(&request);
                desk.set_status(match begun.last() {
                    Some((start, _)) => Status::Busy(*start),
                    None => Status::Finishing(Instant::now()),
                });
                if !in_time {
                    desk.leaves.store(true, Ordering::Relaxed);
                }
            }

            let has_room = accessor
                .poll_ready_for_concurrent_call(function, context)
                .is_ready();
            let leaves = desk.leaves.load(Ordering::Relaxed)
                || limits.requests.is_some_and(|most| taken >= most);
            let may_take = has_room && !leaves && in_hand.len() < limits.concurrent_requests;
            let has_time = may_take && desk.waits.load(Ordering::Relaxed);
            if !has_time {
                let finishing = may_take && in_hand.is_empty();
                desk.service.busy(desk.place, finishing);
            } else if let Some(visit) = desk.service.next(desk.place, context) {
                desk.waits.store(false, Ordering::Relaxed);
                let request = (Instant::now(), taken);
                taken = taken.saturating_add(1);
                begun.insert(request);
                desk.set_status(Status::Busy(request.0));
                let answering = answer(desk, exports, accessor, visit);
                in_hand.push(async move {
                    let in_time = answering.await?;
                    Ok::<_, wasmtime::Error>(Ended { request, in_time })
                });
                continue;
            }

            let done = in_hand.is_empty() && accessor.poll_no_interesting_tasks(context).is_ready();
            if done && (leaves || !has_room) {
                return Poll::Ready(Ok(()));
            }
            if done && !matches!(desk.status(), Status::Idle(_)) {
                desk.set_status(Status::Idle(Instant::now()));
            }
            return Poll::Pending;
        }
    })
    .await
}

/// A request that was answered, or whose time is up.
struct Ended {
    request: (Instant, usize),
    in_time: bool,
}

/// Ends when a request's body is done with.
type Processed = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Has a request answered; false if that took too long. Whoever asked may be gone by then.
async fn answer(
    desk: &Desk,
    exports: &Exports,
    accessor: &Accessor<Guest>,
    visit: Visit,
) -> wasmtime::Result<bool> {
    let Visit {
        request, answer, ..
    } = visit;
    let handler = exports.wasi_http_handler().func_handle();
    let (call, processed) = accessor.with(|mut store| {
        let view = store.get().http();
        let (request, processed) = Request::from_http(view.hooks, request);
        let processed: Processed = Box::pin(processed);
        let request = view.table.push(request)?;
        let call = handler.start_call_concurrent(store.as_context_mut(), (request,))?;
        wasmtime::error::Ok((call, processed))
    })?;
    let responding = pin!(async {
        let response = match handler.finish_call_concurrent(accessor, call).await?.0 {
            Ok(response) => response,
            Err(code) => return Ok(Err(Failure::Code(code))),
        };
        accessor.with(|mut store| {
            let response = store.get().http().table.delete(response)?;
            let response = response.into_http(&mut store, processed)?;
            wasmtime::error::Ok(Ok(response))
        })
    });
    let limit = pin!(desk.service.limits.until_response());
    let (response, in_time) = match select(responding, limit).await {
        Either::Left((response, _)) => (response?, true),
        // What the component goes on with ends with the instance at last.
        Either::Right(_) => (Err(Failure::TooLong), false),
    };
    let response = response.map(|it: Response<WasiBody>| it.map(|body| desk.fate.of_body(body)));
    let _ = answer.send(response);
    Ok(in_time)
}

// ---- The end ---------------------------------------------------------------------------------------------------------

/// When an instance ends.
struct End<'a> {
    limits: ReuseLimits,
    place: &'a mut Place,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    sleep: Pin<Box<Sleep>>,
    was_idle: bool,
}

impl<'a> End<'a> {
    fn new(service: &Service, place: &'a mut Place) -> Self {
        Self {
            limits: service.limits,
            place,
            stopping: Box::pin(service.lifetime.stopping.clone().cancelled_owned()),
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            was_idle: false,
        }
    }

    /// Ready when the instance has to end now.
    fn poll(&mut self, desk: &Desk, context: &mut Context<'_>) -> Poll<wasmtime::Result<()>> {
        let idle_since = match desk.status() {
            Status::Idle(since) => Some(since),
            Status::Busy(_) | Status::Finishing(_) => None,
        };
        if self.was_idle != idle_since.is_some() {
            self.was_idle = idle_since.is_some();
            self.place.set_idle(idle_since);
        }
        let asked = self.place.poll_asked(context).is_ready();
        let stopping = self.stopping.as_mut().poll(context).is_ready();
        match desk.status() {
            Status::Idle(_) if asked || stopping => Poll::Ready(Ok(())),
            Status::Idle(since) => {
                let mut limit = self.limits.idle_timeout;
                if desk.service.is_spare(desk.place) {
                    limit = limit.min(SPARE_IDLE);
                }
                self.after(since, limit, context).map(Ok)
            }
            Status::Busy(since) | Status::Finishing(since) => {
                if asked && !desk.leaves.swap(true, Ordering::Relaxed) {
                    desk.service.busy(desk.place, false);
                }
                let Some(limit) = self.limits.request_timeout else {
                    return Poll::Pending;
                };
                self.after(since, limit, context)
                    .map(|()| Err(wasmtime::format_err!("its time was up")))
            }
        }
    }

    fn after(&mut self, since: Instant, limit: Duration, context: &mut Context<'_>) -> Poll<()> {
        let Some(end) = since.checked_add(limit) else {
            return Poll::Pending;
        };
        let end = tokio::time::Instant::from_std(end);
        if self.sleep.deadline() != end {
            self.sleep.as_mut().reset(end);
        }
        self.sleep.as_mut().poll(context)
    }
}
