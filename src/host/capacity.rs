//! What this machine, or the container that this process is in, has room for.

use std::fs;

/// Instances for each processor. Most of what they do is waiting for others.
const INSTANCES_PER_PROCESSOR: u64 = 32;

/// What an instance may need, in bytes: far more than it does need.
const MEMORY_PER_INSTANCE: u64 = 16 * 1024 * 1024;

/// There are so many at least, however small the machine.
const FEWEST_INSTANCES: u64 = 4;

/// And so many at most: the address space of a process has room for that.
const MOST_INSTANCES: u64 = 1000;

/// How many instances may live at once, unless the command line says otherwise: what the processors can make use of, in
/// half of the memory.
pub(crate) fn instances() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    instances_of(u64::try_from(processors).unwrap_or(1), memory())
}

fn instances_of(processors: u64, memory: Option<u64>) -> u32 {
    let useful = processors.saturating_mul(INSTANCES_PER_PROCESSOR);
    let fit = memory.map_or(u64::MAX, |bytes| bytes.div_euclid(2) / MEMORY_PER_INSTANCE);
    let instances = useful.min(fit).clamp(FEWEST_INSTANCES, MOST_INSTANCES);
    u32::try_from(instances).unwrap_or(u32::MAX)
}

/// The memory that there is for this process, in bytes: the machine's, or the limit of its control group (Linux,
/// `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/memory.rst`). None if nobody says.
fn memory() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total(&text));
    // As a container sees its own group; without a limit, the first is no number and the second is enormous.
    let group = number("/sys/fs/cgroup/memory.max");
    let old_group = number("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    [machine, group, old_group].into_iter().flatten().min()
}

/// The line `MemTotal: … kB` of `proc_meminfo(5)`.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|it| it.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_follow_processors_and_memory() {
        let gigabytes = |count: u64| Some(count << 30);
        for (processors, memory, instances) in [
            (2, gigabytes(24), 64),
            (2, gigabytes(1), 32),
            (1, Some(128 << 20), 4),
            (1, Some(0), 4),
            (1, None, 32),
            (128, gigabytes(512), 1000),
        ] {
            assert_eq!(
                instances_of(processors, memory),
                instances,
                "{processors}, {memory:?}"
            );
        }
    }

    #[test]
    fn the_machine_s_memory_is_read() {
        let text = "MemTotal:       24597404 kB\nMemFree:        18164300 kB\n";
        assert_eq!(total(text), Some(24_597_404 * 1024));
        assert_eq!(total(""), None);
    }
}
