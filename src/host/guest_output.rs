//! What components write.

use crate::console;
use bytes::Bytes;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Where a component's standard output and error go: to this process's standard error, whole lines with the component's
/// id in front.
#[derive(Clone)]
pub(crate) struct GuestOutput {
    lines: Arc<Mutex<Lines>>,
}

impl GuestOutput {
    /// The output of an instance of this component.
    pub(crate) fn new(component: &Arc<str>, is_heard: bool) -> Self {
        let lines = Lines {
            component: Arc::clone(component),
            pending: Vec::new(),
            say: if is_heard { console::guest } else { |_, _| () },
        };
        Self {
            lines: Arc::new(Mutex::new(lines)),
        }
    }

    fn write(&self, bytes: &[u8]) {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes);
    }
}

/// A line longer than this is broken.
const MAX_LINE: usize = 16 * 1024;

struct Lines {
    component: Arc<str>,
    pending: Vec<u8>,
    say: fn(&str, &str),
}

impl Lines {
    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.pending.len() > MAX_LINE {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let line = std::mem::take(&mut self.pending);
        let line = String::from_utf8_lossy(&line);
        if !line.trim_end().is_empty() {
            (self.say)(&self.component, line.trim_end());
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            self.flush();
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
        GuestOutput::write(self, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_LINE)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {}
}

impl AsyncWrite for GuestOutput {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        GuestOutput::write(&self, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_broken() {
        let output = GuestOutput::new(&"c".into(), true);
        output.lines.lock().unwrap().say = |_, line| assert!(line.len() <= MAX_LINE + 3);
        for _ in 0..MAX_LINE {
            output.write(b"xyz");
        }
        assert!(output.lines.lock().unwrap().pending.len() <= MAX_LINE + 3);
        output.write(b"end\nnext");
        assert_eq!(output.lines.lock().unwrap().pending, b"next");
    }
}
