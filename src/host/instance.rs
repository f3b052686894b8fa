//! Instances: what one is given, and what all have in common.

use crate::engine;
use crate::fate::Fate;
use crate::guest_output::GuestOutput;
use crate::key_value::{KeyValueGrant, KeyValueView, Stores};
use crate::outbound::{Outbound, OutboundHooks, Rehearsal};
use crate::postgres::{Pool, PostgresGrant, PostgresView};
use crate::variables::ComponentVariables;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, Trap};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// How instances are reused. Names are Spin's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReuseLimits {
    /// Requests that one instance serves in its life; none: as many as come.
    pub(crate) requests: Option<usize>,
    /// Requests that one instance serves at once.
    pub(crate) concurrent_requests: usize,
    /// How long a request may take to its response; none: for ever.
    pub(crate) request_timeout: Option<Duration>,
    /// How long an instance without requests lives.
    pub(crate) idle_timeout: Duration,
}

impl Default for ReuseLimits {
    /// For production: what an instance has learnt, keys and tokens, serves the next requests, too.
    fn default() -> Self {
        Self {
            // What wasmtime 48 keeps of a request in an instance that never has a pause, about five handles, of 100,000 that it
            // may have, and some kilobytes, goes with the instance.
            requests: Some(10_000),
            idle_timeout: Duration::from_mins(10),
            ..Self::of_spin()
        }
    }
}

impl ReuseLimits {
    /// The defaults of Spin.
    pub(crate) fn of_spin() -> Self {
        Self {
            requests: Some(128),
            concurrent_requests: 16,
            request_timeout: None,
            idle_timeout: Duration::from_secs(1),
        }
    }

    /// Ends when a request that begins now has to have its response.
    pub(crate) async fn until_response(&self) {
        match self.request_timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    }

    /// Whether a component must be interruptible for these limits to hold.
    pub(crate) fn interruptible(&self) -> bool {
        self.request_timeout.is_some()
    }
}

/// What every instance of one component gets.
#[derive(Clone)]
pub(crate) struct Grants {
    /// The component's id.
    pub(crate) component: Arc<str>,
    /// How long what it writes waits for room in the log; none: nobody is told.
    pub(crate) log_patience: Option<Duration>,
    /// Whether instances must be interruptible.
    pub(crate) interruptible: bool,
    /// Where the component may send requests.
    pub(crate) outbound: Arc<Outbound>,
    /// The connections of this process to databases.
    pub(crate) databases: Pool,
    /// The stores that the component may open.
    pub(crate) stores: Stores,
    /// What the component may read.
    pub(crate) variables: ComponentVariables,
}

impl Grants {
    /// The same without effect on others: what it would send is only noted, and what it writes is not told.
    pub(crate) fn for_rehearsal(&self) -> (Self, Rehearsal) {
        let (outbound, rehearsal) = self.outbound.for_rehearsal();
        let grants = Self {
            log_patience: None,
            outbound: Arc::new(outbound),
            ..self.clone()
        };
        (grants, rehearsal)
    }

    /// The state of a new instance. No arguments, environment, files, sockets or input: nothing grants them.
    pub(crate) fn store(&self, engine: &Engine) -> wasmtime::Store<Guest> {
        let fate = Fate::default();
        let output = GuestOutput::new(&self.component, self.log_patience);
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
            key_value: KeyValueGrant::new(Arc::clone(&self.stores)),
            postgres: PostgresGrant::new(Arc::clone(&self.outbound), self.databases.clone()),
            variables: self.variables.clone(),
        };
        let mut store = wasmtime::Store::new(engine, guest);
        engine::take_turns(&mut store, self.interruptible);
        store
    }
}

/// The state of an instance.
pub(crate) struct Guest {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outbound: OutboundHooks,
    key_value: KeyValueGrant,
    postgres: PostgresGrant,
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

    /// What functions of databases work on.
    pub(crate) fn postgres(&mut self) -> PostgresView<'_> {
        PostgresView {
            grant: &self.postgres,
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

/// Why an instance failed, in the engine's words: nothing that came from the component.
pub(crate) fn cause(error: &wasmtime::Error) -> String {
    match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    }
}
