//! What the outside orders this process to do, by signals and by the end of its standard input.

use std::io::{self, Read as _};
use tokio::sync::mpsc;

/// An order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Leave, so that no client notices: SIGTERM.
    Leave,
    /// Stop, now: SIGINT, or the end of standard input.
    Stop,
    /// Read the certificates again: SIGHUP.
    Reload,
}

/// The orders that come.
#[derive(Debug)]
pub(crate) struct Orders(mpsc::Receiver<Order>);

impl Orders {
    /// Listens from now on; also to standard input, if asked to.
    ///
    /// # Errors
    ///
    /// The system does not let it listen.
    pub(crate) fn listen(to_stdin: bool) -> io::Result<Self> {
        let (order, orders) = mpsc::channel(4);
        if to_stdin {
            let order = order.clone();
            // A thread of its own: one that waits for input cannot be interrupted, and must not keep the process alive.
            std::thread::Builder::new()
                .name("stdin".to_owned())
                .spawn(move || {
                    let mut buffer = [0; 1024];
                    while matches!(io::stdin().lock().read(&mut buffer), Ok(1..)) {}
                    let _ = order.blocking_send(Order::Stop);
                })?;
        }
        let mut signals = Signals::new()?;
        tokio::spawn(async move {
            loop {
                let next = signals.next().await;
                if order.send(next).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self(orders))
    }

    /// The next order.
    pub(crate) async fn next(&mut self) -> Order {
        match self.0.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }

    /// Waits until the process is to end at once.
    pub(crate) async fn end(&mut self) {
        while self.next().await == Order::Reload {}
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        // A file that may not grow any more (`ulimit -f`) is an error of that write, as a full disk is, and not the end.
        let _ = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.terminate.recv() => Order::Leave,
            _ = self.hang_up.recv() => Order::Reload,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> Order {
        match tokio::signal::ctrl_c().await {
            Ok(()) => Order::Stop,
            Err(_) => std::future::pending().await,
        }
    }
}
