//! The engine that compiles components, and the linker that says what they may import.

use crate::bindings::{fermyon, spin, wasi};
use crate::instance::Guest;
use crate::key_value::HasKeyValue;
use crate::variables::HasVariables;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use wasmtime::component::Linker;
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, PoolConcurrencyLimitError, PoolingAllocationConfig,
    Store,
};

/// How many instances may live at once, unless the command line says otherwise: Spin's.
pub(crate) const MAX_INSTANCES: u32 = 1000;

/// A component and one dependency: two memories per instance. A composition of more parts has fewer instances.
const MEMORIES_PER_INSTANCE: u32 = 2;

/// Each call that waits in a host's function has a stack of its own, in either of the two, and so has one that is being
/// instantiated. With one, the first call between the two would trap.
const STACKS_PER_INSTANCE: u32 = 4;

/// How much of a memory stays mapped for the next instance, cleared. Both of our components fit.
const KEEP_RESIDENT: usize = 1024 * 1024;

/// How often a component that computes lets others run, if it can be interrupted.
const TICK: Duration = Duration::from_millis(10);

/// How long to wait for a place in the pool.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// How often to look for one.
const RETRY: Duration = Duration::from_millis(10);

/// An engine with a pool of instances, or without one where there is not enough address space for it.
///
/// If components can be interrupted, which slows them down by some percent, one that computes for ever can be given up.
pub(crate) fn engine(max_instances: u32, interruptible: bool) -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(max_instances)
        .total_core_instances(max_instances.saturating_mul(16))
        .total_memories(max_instances.saturating_mul(MEMORIES_PER_INSTANCE))
        .total_tables(max_instances.saturating_mul(4))
        .total_stacks(max_instances.saturating_mul(STACKS_PER_INSTANCE))
        .table_elements(100_000)
        .max_component_instance_size(10 * 1024 * 1024)
        .max_core_instance_size(10 * 1024 * 1024)
        .max_core_instances_per_component(200)
        .max_memories_per_component(32)
        .max_tables_per_component(64)
        .linear_memory_keep_resident(KEEP_RESIDENT);
    let mut config = Config::new();
    config.epoch_interruption(interruptible);
    let engine = Engine::new(
        config
            .clone()
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool)),
    )
    .or_else(|_| Engine::new(&config))?;
    if interruptible {
        let engine = engine.weak();
        let tick = move || {
            while let Some(engine) = engine.upgrade() {
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(TICK);
            }
        };
        std::thread::Builder::new()
            .name("tick".to_owned())
            .spawn(tick)?;
    }
    Ok(engine)
}

/// For an instantiation that failed because the pool has no place: waits for another instance to end, but not for ever.
pub(crate) struct Patience<'a> {
    until: Option<Instant>,
    place_wanted: &'a Notify,
}

impl<'a> Patience<'a> {
    /// From now on. `place_wanted` tells an idle instance to end.
    pub(crate) fn new(place_wanted: &'a Notify) -> Self {
        Self {
            until: Instant::now().checked_add(MAX_WAIT),
            place_wanted,
        }
    }

    /// Waits a little, if trying again is of use.
    ///
    /// # Errors
    ///
    /// `error` itself, if it is not.
    pub(crate) async fn after(&self, error: wasmtime::Error) -> wasmtime::Result<()> {
        let in_time = self.until.is_some_and(|until| Instant::now() < until);
        if !in_time || !error.is::<PoolConcurrencyLimitError>() {
            return Err(error);
        }
        self.place_wanted.notify_one();
        tokio::time::sleep(RETRY).await;
        Ok(())
    }
}

/// Lets an instance run in turns with others, if its engine can interrupt it.
pub(crate) fn take_turns<T>(store: &mut Store<T>, interruptible: bool) {
    if interruptible {
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
    }
}

/// What components may import. Granted is less: an instance's state decides what each import gives access to.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    // Rust's standard library imports 0.2 whatever else a component is built on.
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    spin::key_value::key_value::add_to_linker::<_, HasKeyValue>(&mut linker, Guest::key_value)?;
    fermyon::spin::key_value::add_to_linker::<_, HasKeyValue>(&mut linker, Guest::key_value)?;
    wasi::keyvalue::store::add_to_linker::<_, HasKeyValue>(&mut linker, Guest::key_value)?;
    wasi::keyvalue::batch::add_to_linker::<_, HasKeyValue>(&mut linker, Guest::key_value)?;
    wasi::keyvalue::atomics::add_to_linker::<_, HasKeyValue>(&mut linker, Guest::key_value)?;
    spin::variables::variables::add_to_linker::<_, HasVariables>(&mut linker, Guest::variables)?;
    fermyon::spin::variables::add_to_linker::<_, HasVariables>(&mut linker, Guest::variables)?;
    wasi::config::store::add_to_linker::<_, HasVariables>(&mut linker, Guest::variables)?;
    Ok(linker)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_interfaces_fit_into_one_linker() {
        linker(&engine(1, false).unwrap()).unwrap();
    }
}
