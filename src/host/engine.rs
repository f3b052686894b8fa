//! The engine that compiles components, and the linker that says what they may import.

use crate::bindings::{fermyon, spin, wasi};
use crate::instance::Guest;
use crate::key_value::HasKeyValue;
use crate::postgres::HasPostgres;
use crate::variables::HasVariables;
use std::time::Duration;
use wasmtime::component::Linker;
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, ProfilingStrategy, Store,
};

/// Each part of a component, itself and each dependency, has one memory.
const MEMORIES_PER_PART: u32 = 1;

/// And one table, and another for what joins the parts.
const TABLES_PER_PART: u32 = 2;

/// Each call that waits in a host's function has a stack of its own, in any part, and so has one that is being
/// instantiated. With one, the first call between two parts would trap.
const STACKS_PER_PART: u32 = 2;

/// Modules in a part: its own, and those that join it to its imports.
const MODULES_PER_PART: u32 = 8;

/// How much of a memory, and of a stack, that nobody uses any more stays in the machine's memory, cleared, for the next
/// instance, in bytes. What is kept for all places is kept for good.
const KEEP_RESIDENT: usize = 16 * 1024;

/// With this in the environment, `/tmp/perf-PID.map` tells `perf` the names of components' functions (CONTRIBUTING.md).
const PERF_MAP: &str = "BEHALF_PERF_MAP";

/// How often a component that computes lets others run, if it can be interrupted.
const TICK: Duration = Duration::from_millis(10);

/// An engine with a pool for so many instances of at most so many parts; without one, which is slower, where there is not
/// enough address space for it.
///
/// If components can be interrupted, which slows them down by some percent, one that computes for ever can be given up.
pub(crate) fn engine(instances: u32, parts: u32, interruptible: bool) -> wasmtime::Result<Engine> {
    let in_all = |per_part: u32| instances.saturating_mul(parts).saturating_mul(per_part);
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(instances)
        .total_core_instances(in_all(MODULES_PER_PART))
        .total_memories(in_all(MEMORIES_PER_PART))
        .total_tables(in_all(TABLES_PER_PART))
        .total_stacks(in_all(STACKS_PER_PART))
        .table_elements(100_000)
        .max_component_instance_size(10 * 1024 * 1024)
        .max_core_instance_size(10 * 1024 * 1024)
        .max_core_instances_per_component(200)
        .max_memories_per_component(32)
        .max_tables_per_component(64)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .async_stack_keep_resident(KEEP_RESIDENT);
    let mut config = Config::new();
    // Without it a stack stays in the machine's memory for good, as far as it was ever used.
    config.async_stack_zeroing(true);
    config.epoch_interruption(interruptible);
    if std::env::var_os(PERF_MAP).is_some() {
        config.profiler(ProfilingStrategy::PerfMap);
    }
    let mut pooled = config.clone();
    pooled.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    let engine = Engine::new(&pooled).or_else(|error| {
        tracing::warn!(
            "there is no room for a pool of {instances} instances, so each is made anew, which is slower; choose fewer with \
             --max-instances: {}",
            error.root_cause());
        Engine::new(&config)
    })?;
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
    spin::postgres::postgres::add_to_linker::<_, HasPostgres>(&mut linker, Guest::postgres)?;
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
        linker(&engine(1, 1, false).unwrap()).unwrap();
    }
}
