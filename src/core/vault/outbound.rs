//! Requests that the vault sends: limits of time, and which are repeated.
//!
//! A call of the vault has one deadline, and every request has limits inside it: to connect, to the response head, and
//! in all. All requests that are made here may be repeated: they read, or redeem a grant that stays valid
//! (facts/entra-and-key-vault.md §A.9). They are repeated seldom, and at a random moment, because whoever does not
//! answer has enough to do.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};

use crate::deadline::Deadline;
use crate::port::{Http, HttpError, Limits, Random, SecretBody, Timer};

const CONNECT: Duration = Duration::from_secs(3);
const FIRST_BYTE: Duration = Duration::from_secs(10);
const BETWEEN_BYTES: Duration = Duration::from_secs(5);
const TOTAL: Duration = Duration::from_secs(15);

/// What is worth another try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// Once: no connection, or a 5xx that does not say when to come back. Not what timed out, nor throttling.
    Outage,
    /// The rules of the managed identity endpoint (§E): 404, 410, 429 and 5xx pass, within four tries. 410 takes long: the
    /// endpoint is being upgraded.
    ManagedIdentity,
}

impl Repeat {
    /// How long to wait after try number `tries`, before jitter; none: the outcome stands.
    fn pause(
        self,
        tries: u32,
        outcome: Result<&Response<SecretBody>, HttpError>,
    ) -> Option<Duration> {
        let doubling =
            Duration::from_millis(800).saturating_mul(1 << tries.saturating_sub(1).min(8));
        match (self, outcome) {
            (_, Err(HttpError::Denied | HttpError::TimedOut | HttpError::TooLong)) => None,
            (Self::Outage, Err(HttpError::Unreachable)) => {
                (tries == 1).then_some(Duration::from_millis(400))
            }
            (Self::Outage, Ok(response)) => (tries == 1
                && response.status().is_server_error()
                && !response.headers().contains_key(RETRY_AFTER))
            .then_some(Duration::from_millis(400)),
            (Self::ManagedIdentity, Err(HttpError::Unreachable)) => (tries < 4).then_some(doubling),
            (Self::ManagedIdentity, Ok(response)) => match response.status() {
                StatusCode::GONE => Some(Duration::from_secs(10)),
                StatusCode::NOT_FOUND | StatusCode::TOO_MANY_REQUESTS => {
                    (tries < 4).then_some(doubling)
                }
                status => (status.is_server_error() && tries < 4).then_some(doubling),
            },
        }
    }
}

/// Sends a request until its outcome stands, or the deadline would pass.
///
/// # Errors
/// [`HttpError`], of the last try.
pub async fn send<E: Http + Timer + Random>(
    env: &E,
    request: Request<SecretBody>,
    longest: usize,
    deadline: Deadline,
    repeat: Repeat,
) -> Result<Response<SecretBody>, HttpError> {
    let mut tries = 0_u32;
    loop {
        let outcome = once(env, request.clone(), longest, deadline).await;
        tries = tries.saturating_add(1);
        let pause = repeat.pause(tries, outcome.as_ref().map_err(|error| *error));
        match pause.map(|pause| jittered(pause, env)) {
            Some(pause) if pause < deadline.left(env) => env.sleep(pause).await,
            Some(_) | None => return outcome,
        }
    }
}

async fn once<E: Http + Timer>(
    env: &E,
    request: Request<SecretBody>,
    longest: usize,
    deadline: Deadline,
) -> Result<Response<SecretBody>, HttpError> {
    let left = deadline.left(env);
    if left.is_zero() {
        return Err(HttpError::TimedOut);
    }
    let limits = Limits {
        connect: CONNECT.min(left),
        first_byte: FIRST_BYTE.min(left),
        between_bytes: BETWEEN_BYTES.min(left),
        body: longest,
    };
    let response = pin!(env.send(request, limits));
    // The limits of the port start anew with every part of the body; this one does not.
    match select(response, pin!(env.sleep(TOTAL.min(left)))).await {
        Either::Left((response, _)) => response,
        Either::Right(((), _)) => Err(HttpError::TimedOut),
    }
}

/// Between half and one and a half, so that those who failed together do not come back together.
fn jittered(pause: Duration, random: &impl Random) -> Duration {
    let mut byte = [0];
    random.fill(&mut byte);
    let [byte] = byte;
    pause.mul_f64(0.5 + f64::from(byte) / 256.0)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;
    use std::future::pending;

    use pollster::block_on;

    use super::*;
    use crate::deadline::LONGEST as CALL;

    /// Answers what it is told to; time passes when somebody sleeps.
    #[derive(Default)]
    struct Wire {
        answers: RefCell<VecDeque<Outcome>>,
        limits: RefCell<Vec<Limits>>,
        slept: RefCell<Vec<Duration>>,
        elapsed: Cell<Duration>,
    }

    #[derive(Clone, Copy)]
    enum Outcome {
        Status(u16),
        WithRetryAfter(u16),
        Fails(HttpError),
        Hangs,
        TakesSeconds(u64),
    }

    impl Http for Wire {
        async fn send(
            &self,
            _: Request<SecretBody>,
            limits: Limits,
        ) -> Result<Response<SecretBody>, HttpError> {
            self.limits.borrow_mut().push(limits);
            let answer = self.answers.borrow_mut().pop_front().expect("an answer");
            let mut response = Response::builder();
            match answer {
                Outcome::Status(status) => response = response.status(status),
                Outcome::WithRetryAfter(status) => {
                    response = response.status(status).header(RETRY_AFTER, "1");
                }
                Outcome::Fails(error) => return Err(error),
                Outcome::Hangs => pending().await,
                Outcome::TakesSeconds(seconds) => {
                    self.elapsed
                        .set(self.elapsed.get() + Duration::from_secs(seconds));
                    return Err(HttpError::Unreachable);
                }
            }
            Ok(response.body(SecretBody::default()).unwrap())
        }
    }

    impl Timer for Wire {
        fn elapsed(&self) -> Duration {
            self.elapsed.get()
        }

        async fn sleep(&self, duration: Duration) {
            self.slept.borrow_mut().push(duration);
            self.elapsed.set(self.elapsed.get() + duration);
        }
    }

    impl Random for Wire {
        fn fill(&self, buffer: &mut [u8]) {
            buffer.fill(128);
        }
    }

    struct Byte(u8);
    impl Random for Byte {
        fn fill(&self, buffer: &mut [u8]) {
            buffer.fill(self.0);
        }
    }

    fn run(repeat: Repeat, answers: &[Outcome]) -> (Result<u16, HttpError>, Wire) {
        let wire = Wire::default();
        wire.answers.borrow_mut().extend(answers);
        let deadline = Deadline::within(&wire, CALL);
        let request = Request::new(SecretBody::default());
        let outcome = block_on(send(&wire, request, 100, deadline, repeat));
        (outcome.map(|response| response.status().as_u16()), wire)
    }

    #[test]
    fn an_outage_is_tried_once_more_and_nothing_else_is() {
        use HttpError::{Denied, TimedOut, TooLong, Unreachable};
        use Outcome::{Fails, Status, WithRetryAfter};
        for (answers, expected) in [
            (&[Fails(Unreachable), Status(200)][..], Ok(200)),
            (&[Fails(Unreachable), Fails(Unreachable)], Err(Unreachable)),
            (&[Status(500), Status(200)], Ok(200)),
            (&[Status(503), Status(502)], Ok(502)),
            (&[WithRetryAfter(503)], Ok(503)),
            (&[Status(429)], Ok(429)),
            (&[Status(400)], Ok(400)),
            (&[Status(200)], Ok(200)),
            (&[Fails(Denied)], Err(Denied)),
            (&[Fails(TimedOut)], Err(TimedOut)),
            (&[Fails(TooLong)], Err(TooLong)),
        ] {
            let (outcome, wire) = run(Repeat::Outage, answers);
            assert_eq!(outcome, expected);
            assert!(wire.answers.borrow().is_empty());
        }
    }

    #[test]
    fn the_managed_identity_endpoint_is_asked_by_its_rules() {
        use Outcome::{Fails, Status};
        for (answers, expected) in [
            (&[Status(410), Status(200)][..], Ok(200)),
            (
                &[Status(404), Status(429), Status(500), Status(200)],
                Ok(200),
            ),
            (
                &[Status(500), Status(500), Status(500), Status(500)],
                Ok(500),
            ),
            (&[Status(400)], Ok(400)),
            (&[Status(401)], Ok(401)),
            (&[Fails(HttpError::Unreachable), Status(200)], Ok(200)),
        ] {
            let (outcome, wire) = run(Repeat::ManagedIdentity, answers);
            assert_eq!(outcome, expected);
            assert!(wire.answers.borrow().is_empty());
        }
    }

    #[test]
    fn what_hangs_or_takes_long_ends_in_time() {
        let (outcome, wire) = run(Repeat::Outage, &[Outcome::Hangs]);
        assert_eq!(outcome, Err(HttpError::TimedOut));
        assert_eq!(wire.elapsed.get(), TOTAL);
        // A second try would start after the deadline.
        let (outcome, _) = run(Repeat::Outage, &[Outcome::TakesSeconds(25)]);
        assert_eq!(outcome, Err(HttpError::Unreachable));
        // What is left bounds the second.
        let (outcome, wire) = run(Repeat::Outage, &[Outcome::TakesSeconds(22), Outcome::Hangs]);
        assert_eq!(outcome, Err(HttpError::TimedOut));
        assert_eq!(wire.elapsed.get(), CALL);
        let last = wire.limits.borrow()[1];
        assert!(last.first_byte < Duration::from_secs(3) && last.connect <= last.first_byte);
        // An upgrade that outlasts the deadline.
        let (outcome, wire) = run(Repeat::ManagedIdentity, &[Outcome::Status(410); 3]);
        assert_eq!(outcome, Ok(410));
        assert!(wire.elapsed.get() <= CALL);
    }

    #[test]
    fn pauses_are_jittered_around_their_length() {
        let (_, wire) = run(
            Repeat::Outage,
            &[Outcome::Status(500), Outcome::Status(200)],
        );
        assert_eq!(*wire.slept.borrow(), [Duration::from_millis(400)]);
        let pause = Duration::from_secs(1);
        assert_eq!(jittered(pause, &Byte(0)), pause / 2);
        let most = jittered(pause, &Byte(255));
        assert!(most > pause && most < pause * 3 / 2);
    }
}
