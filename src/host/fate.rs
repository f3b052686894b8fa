//! Bodies that an instance writes, and what its end means for them.
//!
//! A body that a dead instance leaves behind ends like one that was written to its end (wasmtime-wasi-http 48,
//! `p3/body.rs`). Whoever reads it must not take it for the whole: HTTP/1.1 breaks the connection off (RFC 9112 §8),
//! HTTP/2 resets the stream (RFC 9113 §8.1).

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use wasmtime_wasi_http::{Error, WasiBody};

/// What becomes of an instance. All clones are about the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fate(Arc<AtomicBool>);

impl Fate {
    /// The instance is at work from now on, until it says that it is done. Whatever ends it before cuts it short.
    ///
    /// To be dropped before the instance's store is, which ends all its bodies.
    pub(crate) fn at_work(&self) -> AtWork {
        AtWork(Some(self.clone()))
    }

    /// Notes that the instance ends before its work is done. The same holds for its store.
    pub(crate) fn cut_short(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// The body that the instance writes, so that it fails if the instance ends before it is written.
    pub(crate) fn of_body(&self, body: WasiBody) -> WasiBody {
        let fate = self.clone();
        FatedBody { body, fate }.boxed_unsync()
    }

    fn is_cut_short(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// That an instance has work.
#[derive(Debug)]
pub(crate) struct AtWork(Option<Fate>);

impl AtWork {
    /// The work is done.
    pub(crate) fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        if let Some(fate) = &self.0 {
            fate.cut_short();
        }
    }
}

struct FatedBody {
    body: WasiBody,
    fate: Fate,
}

impl Body for FatedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        // It may have been whole, and not read to its end yet: nobody can tell any more.
        if frame.is_none() && self.fate.is_cut_short() {
            return Poll::Ready(Some(Err(Error::ConnectionTerminated)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && !self.fate.is_cut_short()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use http_body_util::Full;

    async fn end_of(fate: &Fate) -> Option<Bytes> {
        let body = Full::new(Bytes::from_static(b"all"));
        let body = fate.of_body(body.map_err(|it| match it {}).boxed_unsync());
        Some(body.collect().await.ok()?.to_bytes())
    }

    #[tokio::test]
    async fn a_body_is_whole_unless_its_instance_is_cut_short() {
        let fate = Fate::default();
        assert_eq!(end_of(&fate).await.unwrap(), "all");
        fate.at_work().done();
        assert_eq!(end_of(&fate).await.unwrap(), "all");
        drop(fate.at_work());
        assert_eq!(end_of(&fate).await, None);
    }
}
