//! The stream of bytes to a client.

use crate::talk::Talk;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long a client may go on sending after its last answer.
const LINGER: Duration = Duration::from_secs(5);

/// A stream that tells how the client keeps up, and ends so that its last answer arrives: the system takes that back from a
/// client that still sends, unless what it sends is read, too (RFC 9112 §9.6).
pub(crate) struct Wire<S> {
    stream: S,
    talk: Arc<Talk>,
    stopping: CancellationToken,
    lingering: Option<Lingering>,
}

struct Lingering {
    limit: Pin<Box<Sleep>>,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Wire<S> {
    /// The stream of this connection. `stopping` is cancelled when nobody has time for more.
    pub(crate) fn new(stream: S, talk: Arc<Talk>, stopping: CancellationToken) -> Self {
        Self {
            stream,
            talk,
            stopping,
            lingering: None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.talk.heard();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.talk.wrote();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices));
        self.talk.wrote();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        let lingering = this.lingering.get_or_insert_with(|| Lingering {
            limit: Box::pin(tokio::time::sleep(LINGER)),
            stopping: Box::pin(this.stopping.clone().cancelled_owned()),
        });
        let mut nowhere = [0; 4096];
        loop {
            let is_over = lingering.limit.as_mut().poll(context).is_ready()
                || lingering.stopping.as_mut().poll(context).is_ready();
            if is_over {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut nowhere);
            match ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // It has ended, too, or is gone.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
