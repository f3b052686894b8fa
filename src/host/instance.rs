//! Instances: their state, how long they live, and what they write.
//!
//! An instance serves several requests, also at once (facts/spin.md §2). If it fails, so do all requests that it is
//! serving; the next request gets a new instance.

use crate::console;
use crate::engine::{self, Patience};
use crate::fate::Fate;
use crate::key_value::{KeyValueGrant, KeyValueView};
use crate::outbound::{Outbound, OutboundHooks};
use crate::store::Store;
use crate::variables::ComponentVariables;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, StoreContextMut, Trap};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, Proxy, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus,
};
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// How instances are reused. Names and defaults are Spin's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReuseLimits {
    /// Requests that one instance serves in its life.
    pub(crate) requests: usize,
    /// Requests that one instance serves at once.
    pub(crate) concurrent_requests: usize,
    /// How long a request may take to its response; none: for ever.
    pub(crate) request_timeout: Option<Duration>,
    /// How long an instance without requests lives.
    pub(crate) idle_timeout: Duration,
}

impl Default for ReuseLimits {
    fn default() -> Self {
        Self {
            requests: 128,
            concurrent_requests: 16,
            request_timeout: None,
            idle_timeout: Duration::from_secs(1),
        }
    }
}

impl ReuseLimits {
    /// Whether a component must be interruptible for these limits to hold.
    pub(crate) fn interruptible(&self) -> bool {
        self.request_timeout.is_some()
    }
}

/// What all instances of this process share: how to stop, and who is still at work.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lifetime {
    /// Cancelled when the process should stop: nothing new is begun, and idle instances end.
    pub(crate) stopping: CancellationToken,
    /// Whatever has to finish before the process may end.
    pub(crate) at_work: TaskTracker,
}

/// What every instance of one component gets.
#[derive(Clone)]
pub(crate) struct Grants {
    /// The component's id.
    pub(crate) component: Arc<str>,
    /// Whether instances must be interruptible.
    pub(crate) interruptible: bool,
    /// Tells an idle instance, of any component, to leave its place in the pool.
    pub(crate) place_wanted: Arc<Notify>,
    /// Where the component may send requests.
    pub(crate) outbound: Arc<Outbound>,
    /// The store, if any component uses it.
    pub(crate) key_value: Option<Store>,
    /// The labels that the component may open.
    pub(crate) key_value_stores: Arc<BTreeSet<String>>,
    /// What the component may read.
    pub(crate) variables: ComponentVariables,
}

impl Grants {
    /// The state of a new instance. No arguments, environment, files, sockets or input: nothing grants them.
    pub(crate) fn store(&self, engine: &Engine) -> wasmtime::Store<Guest> {
        let fate = Fate::default();
        let output = GuestOutput::new(&self.component);
        let guest = Guest {
            table: ResourceTable::new(),
            wasi: WasiCtx::builder()
                .stdout(output.clone())
                .stderr(output)
                .build(),
            http: WasiHttpCtx::new(),
            outbound: OutboundHooks {
                outbound: Arc::clone(&self.outbound),
                fate: fate.clone(),
            },
            fate,
            key_value: KeyValueGrant::new(
                self.key_value.clone(),
                Arc::clone(&self.key_value_stores),
            ),
            variables: self.variables.clone(),
        };
        let mut store = wasmtime::Store::new(engine, guest);
        engine::take_turns(&mut store, self.interruptible);
        store
    }
}

/// What one component's instances for HTTP requests have in common.
pub(crate) struct Instances {
    /// What each of them gets.
    pub(crate) grants: Grants,
    /// The component, ready to be instantiated.
    pub(crate) pre: ServicePre<Guest>,
    /// How instances are reused.
    pub(crate) limits: ReuseLimits,
    /// How to stop.
    pub(crate) lifetime: Lifetime,
    /// How many instances have failed.
    pub(crate) failed: Arc<AtomicU64>,
}

impl HandlerState for Instances {
    type StoreData = Guest;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Instance<Guest, Expiration, Worker>> {
        let patience = Patience::new(&self.grants.place_wanted);
        let (store, service) = loop {
            let mut store = self.grants.store(self.pre.engine());
            match self.pre.instantiate_async(&mut store).await {
                Ok(service) => break (store, service),
                Err(error) => patience.after(error).await?,
            }
        };
        let proxy = Proxy::P3(service);
        Ok(Instance {
            store,
            proxy,
            view: Guest::http,
            expiration: Expiration {
                limits: self.limits,
                sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
                stopping: Box::pin(self.lifetime.stopping.clone().cancelled_owned()),
                place_wanted: Box::pin(Arc::clone(&self.grants.place_wanted).notified_owned()),
            },
            state: Worker {
                component: Arc::clone(&self.grants.component),
                limits: self.limits,
                failed: Arc::clone(&self.failed),
                stopping: self.lifetime.stopping.clone(),
                _at_work: self.lifetime.at_work.token(),
            },
        })
    }
}

/// The state of an instance.
pub(crate) struct Guest {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outbound: OutboundHooks,
    key_value: KeyValueGrant,
    variables: ComponentVariables,
    fate: Fate,
}

impl Guest {
    /// What becomes of the instance.
    pub(crate) fn fate(&self) -> &Fate {
        &self.fate
    }

    /// What key-value functions work on.
    pub(crate) fn key_value(&mut self) -> KeyValueView<'_> {
        KeyValueView {
            grant: &mut self.key_value,
            table: &mut self.table,
        }
    }

    /// What variable functions work on.
    pub(crate) fn variables(&mut self) -> &mut ComponentVariables {
        &mut self.variables
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outbound,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

/// When an instance ends.
pub(crate) struct Expiration {
    limits: ReuseLimits,
    sleep: Pin<Box<Sleep>>,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    place_wanted: Pin<Box<OwnedNotified>>,
}

impl WorkerExpiration for Expiration {
    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        status: WorkerStatus,
        since: Instant,
    ) -> Poll<()> {
        let limit = match status {
            WorkerStatus::Idle
                if self.stopping.as_mut().poll(context).is_ready()
                    || self.place_wanted.as_mut().poll(context).is_ready() =>
            {
                return Poll::Ready(());
            }
            WorkerStatus::Idle => Some(self.limits.idle_timeout),
            WorkerStatus::Requests | WorkerStatus::PostReturn => self.limits.request_timeout,
        };
        let Some(end) = limit.and_then(|limit| since.checked_add(limit)) else {
            return Poll::Pending;
        };
        let end = tokio::time::Instant::from_std(end);
        if self.sleep.deadline() != end {
            self.sleep.as_mut().reset(end);
        }
        self.sleep.as_mut().poll(context)
    }
}

/// What an instance accepts, and its end.
pub(crate) struct Worker {
    component: Arc<str>,
    limits: ReuseLimits,
    failed: Arc<AtomicU64>,
    stopping: CancellationToken,
    _at_work: TaskTrackerToken,
}

impl WorkerState for Worker {
    type StoreData = Guest;
    type RequestData = Arc<OnceLock<Fate>>;

    fn should_accept_request(&self, concurrent: usize, total: usize) -> ShouldAccept {
        if total >= self.limits.requests {
            ShouldAccept::Never
        } else if concurrent >= self.limits.concurrent_requests {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        store: StoreContextMut<'_, Guest>,
        fate: Arc<OnceLock<Fate>>,
        _: wasmtime::component::GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        // Nobody else has set it: it came with the request.
        let _ = fate.set(store.data().fate.clone());
        match self.limits.request_timeout {
            Some(limit) => Box::pin(tokio::time::sleep(limit)),
            None => Box::pin(std::future::pending()),
        }
    }

    fn drop(&self, store: wasmtime::Store<Guest>, result: wasmtime::Result<()>) {
        if result.is_err() {
            store.data().fate.cut_short();
        }
        // First, so that what the component wrote last comes before why it failed.
        drop(store);
        let Err(error) = result else { return };
        // At a stop that does not wait, instances are dropped at work; the handler calls that a panic.
        if error.is::<Trap>() || !self.stopping.is_cancelled() {
            let count = self
                .failed
                .fetch_add(1, Ordering::Relaxed)
                .saturating_add(1);
            console::warn(format_args!(
                "component {}: an instance failed, and all requests that it was serving: {} ({count} so far)",
                self.component,
                cause(&error)
            ));
        }
    }
}

/// Why an instance failed, in the engine's words: nothing that came from the component.
pub(crate) fn cause(error: &wasmtime::Error) -> String {
    match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    }
}

/// Where a component's standard output and error go: to this process's standard error, whole lines with the component's
/// id in front.
#[derive(Clone)]
struct GuestOutput {
    lines: Arc<Mutex<Lines>>,
}

impl GuestOutput {
    fn new(component: &Arc<str>) -> Self {
        let lines = Lines {
            component: Arc::clone(component),
            pending: Vec::new(),
            say: console::guest,
        };
        Self {
            lines: Arc::new(Mutex::new(lines)),
        }
    }

    fn write(&self, bytes: &[u8]) {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes);
    }
}

/// A line longer than this is broken.
const MAX_LINE: usize = 16 * 1024;

struct Lines {
    component: Arc<str>,
    pending: Vec<u8>,
    say: fn(&str, &str),
}

impl Lines {
    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.pending.len() > MAX_LINE {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let line = std::mem::take(&mut self.pending);
        let line = String::from_utf8_lossy(&line);
        if !line.trim_end().is_empty() {
            (self.say)(&self.component, line.trim_end());
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            self.flush();
        }
    }
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    // Without a task of its own, as the default has, so that nothing is lost when a trap follows a panic's message.
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for GuestOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        GuestOutput::write(self, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_LINE)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {}
}

impl AsyncWrite for GuestOutput {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        GuestOutput::write(&self, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_broken() {
        let output = GuestOutput::new(&"c".into());
        output.lines.lock().unwrap().say = |_, line| assert!(line.len() <= MAX_LINE + 3);
        for _ in 0..MAX_LINE {
            output.write(b"xyz");
        }
        assert!(output.lines.lock().unwrap().pending.len() <= MAX_LINE + 3);
        output.write(b"end\nnext");
        assert_eq!(output.lines.lock().unwrap().pending, b"next");
    }

    #[tokio::test]
    async fn an_idle_instance_ends_after_its_time_or_when_its_place_is_wanted_or_the_process_stops()
    {
        let limits = ReuseLimits {
            requests: 1,
            concurrent_requests: 1,
            request_timeout: None,
            idle_timeout: Duration::from_millis(50),
        };
        let stopping = CancellationToken::new();
        let place_wanted = Arc::new(Notify::new());
        let expiration = |limits| {
            Box::pin(Expiration {
                limits,
                sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
                stopping: Box::pin(stopping.clone().cancelled_owned()),
                place_wanted: Box::pin(Arc::clone(&place_wanted).notified_owned()),
            })
        };
        let start = Instant::now();
        let poll = async |expiration: &mut Pin<Box<Expiration>>, status| {
            let ended =
                std::future::poll_fn(|context| expiration.as_mut().poll(context, status, start));
            tokio::time::timeout(Duration::from_millis(200), ended)
                .await
                .is_ok()
        };
        assert!(!poll(&mut expiration(limits), WorkerStatus::Requests).await);
        assert!(!poll(&mut expiration(limits), WorkerStatus::PostReturn).await);
        assert!(poll(&mut expiration(limits), WorkerStatus::Idle).await);
        assert!(start.elapsed() >= limits.idle_timeout);

        let patient = ReuseLimits {
            idle_timeout: Duration::from_mins(10),
            ..limits
        };
        assert!(!poll(&mut expiration(patient), WorkerStatus::Idle).await);
        let (mut busy, mut idle) = (expiration(patient), expiration(patient));
        place_wanted.notify_one();
        assert!(!poll(&mut busy, WorkerStatus::Requests).await);
        assert!(poll(&mut idle, WorkerStatus::Idle).await);
        stopping.cancel();
        assert!(poll(&mut expiration(patient), WorkerStatus::Idle).await);
        assert!(
            !poll(&mut expiration(patient), WorkerStatus::Requests).await,
            "work in hand is finished first"
        );
    }
}
