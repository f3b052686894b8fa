//! What a connection and the requests on it tell each other: how long a client has kept whom waiting.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use wasmtime_wasi_http::{Error, WasiBody};

/// How long the first request of a client that has just come may be on its way. When many come at once they do not drive
/// each other out.
const ARRIVAL: Duration = Duration::from_secs(1);

/// How long a client may keep this host waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For the first request's head, with all that comes before it, and for the rest of any other.
    pub(crate) head: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
    /// For taking some more of an answer.
    pub(crate) write: Duration,
}

/// A connection, as its requests see it.
#[derive(Debug)]
pub(crate) struct Talk {
    state: Mutex<State>,
    leave: CancellationToken,
}

#[derive(Debug)]
struct State {
    /// Whether a request said that it is HTTP/2.
    is_http2: bool,
    /// How many requests there were.
    requests: u64,
    in_hand: BTreeMap<u64, Arc<Exchange>>,
    /// When the connection began, or the last answer ended.
    idle_since: Instant,
    /// When the next head began, in HTTP/1.
    head_since: Option<Instant>,
    /// When the client last took something.
    written: Instant,
}

/// What is to be done with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing before then.
    Stay(Instant),
    /// End it in order: it has been idle for long.
    Leave,
    /// End it: its client keeps it waiting for too long.
    Cut,
}

impl Talk {
    /// A connection that begins.
    pub(crate) fn new() -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            state: Mutex::new(State {
                is_http2: false,
                requests: 0,
                in_hand: BTreeMap::new(),
                idle_since: now,
                head_since: None,
                written: now,
            }),
            leave: CancellationToken::new(),
        })
    }

    /// Begins a request, whose head is complete.
    pub(crate) fn begin(self: &Arc<Self>, is_http2: bool) -> InHand {
        let mut state = self.state();
        let number = state.requests;
        let exchange = Arc::<Exchange>::default();
        state.is_http2 = is_http2;
        state.requests = number.saturating_add(1);
        state.head_since = None;
        state.in_hand.insert(number, Arc::clone(&exchange));
        InHand {
            talk: Arc::clone(self),
            exchange,
            number,
        }
    }

    /// Notes that something came from the client.
    pub(crate) fn heard(&self) {
        let mut state = self.state();
        if !state.is_http2 && state.in_hand.is_empty() {
            state.head_since.get_or_insert_with(Instant::now);
        }
    }

    /// Notes that the client took something.
    pub(crate) fn wrote(&self) {
        self.state().written = Instant::now();
    }

    /// Whether requests came in HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        self.state().is_http2
    }

    /// Whether a request has come.
    pub(crate) fn has_begun(&self) -> bool {
        self.state().requests > 0
    }

    /// Whether the client asked for something, or has hardly had the time to, and since when it has had nothing in hand;
    /// none: it has. The less, the rather the connection can go.
    pub(crate) fn waits_since(&self) -> Option<(bool, Instant)> {
        let state = self.state();
        let waits = state.in_hand.is_empty();
        let is_earnest = state.requests > 0 || state.idle_since.elapsed() < ARRIVAL;
        waits.then_some((is_earnest, state.idle_since))
    }

    /// Asks the connection to end.
    pub(crate) fn ask_to_leave(&self) {
        self.leave.cancel();
    }

    /// Ends when the connection is asked to.
    pub(crate) fn asked_to_leave(&self) -> WaitForCancellationFuture<'_> {
        self.leave.cancelled()
    }

    /// What is to be done with the connection now. In HTTP/2 an answer that its client does not take is dropped alone.
    pub(crate) fn judge(&self, patience: &Patience, now: Instant) -> Verdict {
        let is_over = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        // What begins meanwhile is noticed late, by a third at most.
        let soon = |limit: Duration| now.checked_add(limit.div_f32(3.0)).unwrap_or(now);
        let state = self.state();
        if state.in_hand.is_empty() {
            let (since, limit, verdict) = match (state.requests, state.head_since) {
                (0, _) => (state.idle_since, patience.head, Verdict::Cut),
                (_, Some(since)) => (since, patience.head, Verdict::Cut),
                (_, None) => {
                    let since = state.idle_since.max(state.written);
                    (since, patience.idle, Verdict::Leave)
                }
            };
            if is_over(since, limit) {
                return verdict;
            }
            let end = since.checked_add(limit).unwrap_or(now);
            return Verdict::Stay(end.min(soon(patience.head)));
        }
        for exchange in state.in_hand.values() {
            let mut exchange = exchange.state();
            let Some(mut since) = exchange.handed_over else {
                continue;
            };
            if !state.is_http2 {
                since = since.max(state.written);
            }
            if is_over(since, patience.write) {
                if !state.is_http2 {
                    return Verdict::Cut;
                }
                exchange.body = None;
                exchange.handed_over = None;
            }
        }
        Verdict::Stay(soon(patience.write))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is in hand until this, or the answer's body that it became, is dropped.
#[derive(Debug)]
pub(crate) struct InHand {
    talk: Arc<Talk>,
    exchange: Arc<Exchange>,
    number: u64,
}

impl InHand {
    /// The answer's body, watched.
    pub(crate) fn answer(self, body: WasiBody) -> Answer {
        self.exchange.state().body = Some(body);
        Answer(self)
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let mut state = self.talk.state();
        state.in_hand.remove(&self.number);
        state.idle_since = Instant::now();
    }
}

/// A request's answer.
#[derive(Debug, Default)]
struct Exchange(Mutex<Answering>);

#[derive(Debug, Default)]
struct Answering {
    /// None before the answer, and when its client takes it no more.
    body: Option<WasiBody>,
    /// When a part of it was handed over, and no other has been asked for since.
    handed_over: Option<Instant>,
}

impl Exchange {
    fn state(&self) -> MutexGuard<'_, Answering> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer's body.
pub(crate) struct Answer(InHand);

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut answering = self.0.exchange.state();
        answering.handed_over = None;
        let Some(body) = &mut answering.body else {
            return Poll::Ready(Some(Err(Error::ConnectionWriteTimeout)));
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        answering.handed_over = frame.is_some().then(Instant::now);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let answering = self.0.exchange.state();
        answering.body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let answering = self.0.exchange.state();
        let body = answering.body.as_ref();
        body.map(Body::size_hint).unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, Full};

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(30),
        idle: Duration::from_secs(75),
        write: Duration::from_mins(1),
    };

    fn after(seconds: u64) -> Instant {
        let later = Instant::now().checked_add(Duration::from_secs(seconds));
        later.unwrap()
    }

    fn body(text: &'static str) -> WasiBody {
        Full::new(Bytes::from_static(text.as_bytes()))
            .map_err(|it| match it {})
            .boxed_unsync()
    }

    fn part(answer: &mut Answer) -> Option<Result<Bytes, ()>> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(frame) = Pin::new(answer).poll_frame(&mut context) else {
            return None;
        };
        frame.map(|it| it.map(|it| it.into_data().unwrap()).map_err(|_| ()))
    }

    fn stays(talk: &Talk, seconds: u64) -> bool {
        matches!(talk.judge(&PATIENCE, after(seconds)), Verdict::Stay(_))
    }

    #[test]
    fn heads_and_idle_time_have_limits_of_their_own() {
        let talk = Talk::new();
        assert!(stays(&talk, 29));
        assert_eq!(talk.judge(&PATIENCE, after(30)), Verdict::Cut, "no head");
        assert!(talk.waits_since().is_some());
        let in_hand = talk.begin(false);
        assert!(stays(&talk, 1000), "it is this host that lets wait");
        assert_eq!(talk.waits_since(), None);
        drop(in_hand);
        assert!(stays(&talk, 74));
        assert_eq!(talk.judge(&PATIENCE, after(75)), Verdict::Leave, "idle");
        talk.heard();
        assert!(stays(&talk, 29));
        assert_eq!(
            talk.judge(&PATIENCE, after(30)),
            Verdict::Cut,
            "half a head"
        );
        drop(talk.begin(true));
        // What comes in HTTP/2 need not be a head.
        talk.heard();
        assert!(stays(&talk, 74));
        assert_eq!(talk.judge(&PATIENCE, after(75)), Verdict::Leave);
    }

    #[test]
    fn who_takes_nothing_of_an_answer_is_cut_off() {
        let talk = Talk::new();
        let mut answer = talk.begin(false).answer(body("all"));
        assert!(stays(&talk, 1000), "nobody asked for it yet");
        assert_eq!(part(&mut answer), Some(Ok("all".into())));
        assert!(stays(&talk, 59));
        assert_eq!(talk.judge(&PATIENCE, after(61)), Verdict::Cut);
        assert_eq!(part(&mut answer), None);
        assert!(stays(&talk, 1000));

        // In HTTP/2 others go on.
        let mut answer = talk.begin(true).answer(body("all"));
        assert_eq!(part(&mut answer), Some(Ok("all".into())));
        assert!(stays(&talk, 61));
        assert_eq!(part(&mut answer), Some(Err(())));
    }
}
