//! How this process lives and ends: in two steps, so that no client meets a door that has just been shut.
//!
//! First it is *leaving*: whoever asks whether it is ready is told that it is not, and clients are asked to come back
//! elsewhere, but all requests are answered. Load balancers take that time to notice. Then it is *stopping*: nothing new
//! is begun, and what was begun is finished.

use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What all parts of this process share: how it ends, and who is still at work.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lifetime {
    /// Cancelled when the process will stop soon: clients are sent away, in order.
    pub(crate) leaving: CancellationToken,
    /// Cancelled when the process should stop: nothing new is begun, and idle instances end.
    pub(crate) stopping: CancellationToken,
    /// Whatever has to finish before the process may end.
    pub(crate) at_work: TaskTracker,
}

impl Lifetime {
    /// Begins nothing new any more.
    pub(crate) fn stop(&self) {
        self.leaving.cancel();
        self.stopping.cancel();
        self.at_work.close();
    }

    /// Waits until what was begun is finished.
    ///
    /// # Errors
    ///
    /// It takes longer than `grace`; how many are still at work.
    pub(crate) async fn finish(&self, grace: Duration) -> Result<(), usize> {
        tokio::time::timeout(grace, self.at_work.wait())
            .await
            .map_err(|_| self.at_work.len())
    }
}
