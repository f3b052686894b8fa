//! What a service costs: its processor time and its memory, as Linux counts them (proc(5)). And who runs where.

use std::time::Duration;

use anyhow::Context as _;
use runtime_tests::app::{App, Options};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processor time that it has used so far.
pub(crate) fn processor_time(service: &App) -> anyhow::Result<Duration> {
    let mut ticks = 0;
    for process in service.processes()? {
        let stat = process.stat()?;
        ticks += stat.utime + stat.stime;
    }
    Ok(Duration::from_millis(
        ticks * 1000 / procfs::ticks_per_second(),
    ))
}

/// Its memory, in MiB; what processes share is counted once.
pub(crate) fn memory(service: &App) -> anyhow::Result<f64> {
    let mut bytes = 0;
    for process in service.processes()? {
        let rollup = process.smaps_rollup()?.memory_map_rollup;
        let map = rollup.iter().next();
        bytes += map
            .and_then(|map| map.extension.map.get("Pss"))
            .context("/proc/PID/smaps_rollup has no Pss")?;
    }
    #[allow(clippy::cast_precision_loss, reason = "bytes of a process")]
    Ok(bytes as f64 / (1024.0 * 1024.0))
}

/// One processor for services, and the others for what asks them and for what they ask.
pub(crate) struct Processors {
    all: CpuSet,
    service: Option<usize>,
}

impl Processors {
    /// Has this thread, and what it starts, run on all processors but one. If there is one only, it is shared.
    pub(crate) fn divide() -> anyhow::Result<Self> {
        let all = sched_getaffinity(None)?;
        let service = (0..CpuSet::MAX_CPU)
            .find(|&cpu| all.is_set(cpu))
            .filter(|_| all.count() > 1);
        let processors = Self { all, service };
        processors.others()?;
        Ok(processors)
    }

    /// Has what is started meanwhile run on the one for services.
    pub(crate) async fn for_service<T>(
        &self,
        start: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        if let Some(cpu) = self.service {
            let mut set = CpuSet::new();
            set.set(cpu);
            sched_setaffinity(None, &set)?;
        }
        let started = start.await;
        self.others()?;
        started
    }

    /// Starts the app on the one for services. What the embedded host logs, it logs as always, but to nobody: to read it would
    /// cost the others' processor.
    pub(crate) async fn start(&self, mut options: Options) -> anyhow::Result<App> {
        let quiet = ["sh", "-c", r#"exec "$@" 2>/dev/null"#, "sh"];
        options.embedded = Some(quiet.map(str::to_owned).to_vec());
        self.for_service(App::start(options)).await
    }

    fn others(&self) -> anyhow::Result<()> {
        let mut set = self.all;
        if let Some(cpu) = self.service {
            set.unset(cpu);
        }
        Ok(sched_setaffinity(None, &set)?)
    }

    /// How the method says it.
    pub(crate) fn describe(&self) -> &'static str {
        match self.service {
            Some(_) => {
                "each service on one processor of its own, wrk and the emulators on the others"
            }
            None => "services, wrk and the emulators share the machine's one processor",
        }
    }
}
