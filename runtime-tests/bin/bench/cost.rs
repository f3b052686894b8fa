//! What a service costs: its processor time and its memory, as Linux counts them (proc(5)). And who runs where.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A process and all that it started: its process group.
#[derive(Clone, Copy)]
pub(crate) struct Service {
    pub(crate) group: u32,
}

impl Service {
    /// The processor time that it has used so far.
    pub(crate) fn processor_time(self) -> anyhow::Result<Duration> {
        let mut ticks = 0;
        for (_, fields) in self.processes()? {
            // utime and stime; the first field here is the third of the page.
            for field in [11, 12] {
                ticks += fields
                    .get(field)
                    .and_then(|it| it.parse::<u64>().ok())
                    .context("/proc/PID/stat is not as proc(5) has it")?;
            }
        }
        Ok(Duration::from_millis(
            ticks * 1000 / rustix::param::clock_ticks_per_second(),
        ))
    }

    /// Its memory, in bytes; what processes share is counted once.
    pub(crate) fn memory(self) -> anyhow::Result<u64> {
        let mut kilobytes = 0;
        for (process, _) in self.processes()? {
            let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
            kilobytes += rollup
                .lines()
                .find_map(|line| line.strip_prefix("Pss:"))
                .and_then(|rest| rest.trim().strip_suffix(" kB"))
                .and_then(|number| number.trim().parse::<u64>().ok())
                .context("/proc/PID/smaps_rollup has no Pss")?;
        }
        Ok(kilobytes * 1024)
    }

    /// The ids of its processes, with the fields of `stat` behind the name.
    fn processes(self) -> anyhow::Result<Vec<(String, Vec<String>)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Ok(name) = entry?.file_name().into_string() else {
                continue;
            };
            if !name.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            // It may have ended.
            let Ok(stat) = fs::read_to_string(format!("/proc/{name}/stat")) else {
                continue;
            };
            // The name may hold anything, also a parenthesis.
            let Some((_, rest)) = stat.rsplit_once(") ") else {
                continue;
            };
            let fields: Vec<_> = rest.split(' ').map(str::to_owned).collect();
            if fields.get(2) == Some(&self.group.to_string()) {
                found.push((name, fields));
            }
        }
        ensure!(!found.is_empty(), "the service has ended");
        Ok(found)
    }
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

    /// Has what this thread starts from now on run on the one for services.
    pub(crate) fn one(&self) -> anyhow::Result<()> {
        let mut set = CpuSet::new();
        match self.service {
            Some(cpu) => set.set(cpu),
            None => set = self.all,
        }
        Ok(sched_setaffinity(None, &set)?)
    }

    /// Has it run on the others again.
    pub(crate) fn others(&self) -> anyhow::Result<()> {
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
