//! What goes wrong meanwhile, at random.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use runtime_tests::emulators::{OTHER_TENANT, TENANT};
use runtime_tests::postgres::Stop;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::hosts::{HOSTS, Hosts};

/// How often each has happened.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Troubles {
    killed: u32,
    terminated: u32,
    fast_stops: u32,
    immediate_stops: u32,
    cuts: u32,
    silences: u32,
    all_due: u32,
    rotations: u32,
}

impl fmt::Display for Troubles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "hosts: {} killed, {} told to end; database: {} stops fast, {} at once; its ways: {} cut, {} silent; \
             everything made due {} times, {} keys rotated",
            self.killed,
            self.terminated,
            self.fast_stops,
            self.immediate_stops,
            self.cuts,
            self.silences,
            self.all_due,
            self.rotations
        )
    }
}

/// Makes trouble until then; at the end everything runs and is open.
pub(crate) async fn make(
    hosts: &Arc<Hosts>,
    mut random: Rng,
    until: Instant,
) -> anyhow::Result<Troubles> {
    let mut troubles = Troubles::default();
    // What ends by itself, while there is other trouble.
    let mut ends = JoinSet::new();
    while Instant::now() < until {
        sleep(Duration::from_millis(random.u64(200..1500))).await;
        let host = random.usize(0..HOSTS);
        match random.u32(0..100) {
            number @ 0..30 => {
                // One that starts is left alone.
                let Some(process) = hosts.take(host) else {
                    continue;
                };
                if number < 20 {
                    troubles.killed += 1;
                    process.app.kill();
                } else {
                    troubles.terminated += 1;
                    process.app.terminate();
                }
                let hosts = Arc::clone(hosts);
                ends.spawn(async move { hosts.start_host(host).await });
            }
            30..42 => {
                let how = if random.bool() {
                    troubles.fast_stops += 1;
                    Stop::Fast
                } else {
                    troubles.immediate_stops += 1;
                    Stop::Immediate
                };
                hosts.stop_database(how).await?;
                sleep(Duration::from_millis(random.u64(0..1500))).await;
                hosts.start_database().await?;
            }
            42..62 => {
                troubles.cuts += 1;
                hosts.ways[host].cut();
            }
            62..84 => {
                troubles.silences += 1;
                hosts.ways[host].silence(true);
                // Longer than a statement is waited for, or shorter.
                let time = Duration::from_millis(random.u64(100..12_000));
                let (hosts, is_cut) = (Arc::clone(hosts), random.bool());
                ends.spawn(async move {
                    sleep(time).await;
                    if is_cut {
                        hosts.ways[host].cut();
                    }
                    hosts.ways[host].silence(false);
                    Ok(())
                });
            }
            84..94 => {
                troubles.all_due += 1;
                hosts
                    .sql("UPDATE behalf.enrolment SET due_at = 0 WHERE record IS NOT NULL")
                    .await?;
            }
            _ => {
                troubles.rotations += 1;
                let tenant = [TENANT, OTHER_TENANT][random.usize(0..2)];
                hosts.emulators.rotate_key(tenant)?;
            }
        }
    }
    while let Some(ended) = ends.join_next().await {
        ended??;
    }
    Ok(troubles)
}
