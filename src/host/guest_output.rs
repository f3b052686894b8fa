//! What components write.

use crate::log::GuestLine;
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// A line longer than this is broken.
const MAX_LINE: usize = 16 * 1024;

/// Where a component's standard output and error go: to the log, whole lines with the component's id. It can write on when
/// the log has room for them.
#[derive(Clone)]
pub(crate) struct GuestOutput {
    lines: Arc<Mutex<Lines>>,
}

impl GuestOutput {
    /// The output of an instance of this component. A line waits for room in the log for as long as `patience`; none:
    /// nobody is told.
    pub(crate) fn new(component: &Arc<str>, patience: Option<Duration>) -> Self {
        let lines = Lines {
            component: Arc::clone(component),
            patience,
            pending: Vec::new(),
            whole: VecDeque::new(),
            saying: None,
        };
        Self {
            lines: Arc::new(Mutex::new(lines)),
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lines {
    component: Arc<str>,
    patience: Option<Duration>,
    /// What has been written of the next line.
    pending: Vec<u8>,
    /// Lines for which there was no room yet.
    whole: VecDeque<GuestLine>,
    /// The line before them, which waits.
    saying: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Lines {
    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.pending.len() > MAX_LINE {
                self.end_line();
            }
        }
        self.say_what_has_room();
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.pending);
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        if self.patience.is_some() && !line.is_empty() {
            self.whole.extend(GuestLine::new(&self.component, line));
        }
    }

    /// True if all is said.
    fn say_what_has_room(&mut self) -> bool {
        while self.saying.is_none() {
            let Some(line) = self.whole.pop_front() else {
                return true;
            };
            if let Err(line) = line.say() {
                self.whole.push_front(line);
                return false;
            }
        }
        false
    }

    /// Ready when all is said.
    fn poll_said(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(saying) = &mut self.saying {
                ready!(saying.as_mut().poll(context));
                self.saying = None;
            }
            if self.say_what_has_room() {
                return Poll::Ready(());
            }
            if let Some(line) = self.whole.pop_front() {
                let patience = self.patience.unwrap_or_default();
                self.saying = Some(Box::pin(line.say_in_time(patience)));
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            self.end_line();
        }
        if self.say_what_has_room() {
            return;
        }
        // The instance is gone, but what it wrote still waits.
        let (saying, whole) = (self.saying.take(), std::mem::take(&mut self.whole));
        let patience = self.patience.unwrap_or_default();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Some(saying) = saying {
                    saying.await;
                }
                for line in whole {
                    line.say_in_time(patience).await;
                }
            });
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
        self.lines().write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(if self.lines().say_what_has_room() {
            MAX_LINE
        } else {
            0
        })
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {
        poll_fn(|context| self.lines().poll_said(context)).await;
    }
}

impl AsyncWrite for GuestOutput {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut lines = self.lines();
        ready!(lines.poll_said(context));
        lines.write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lines().poll_said(context).map(Ok)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_broken() {
        let output = GuestOutput::new(&"c".into(), Some(Duration::ZERO));
        for _ in 0..MAX_LINE {
            output.lines().write(b"xyz");
            assert!(output.lines().pending.len() <= MAX_LINE + 3);
        }
        output.lines().write(b"end\nnext");
        assert_eq!(output.lines().pending, b"next");
    }
}
