//! An API that is called: what it was sent, and what it answers.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::pending;

use http::{HeaderMap, Method, Request, Response, Uri};

use crate::port::{BodyError, Relay, RelayError, RelayLimits, Upload};
use crate::simulation::world::{Shared, turn};

/// It.
#[derive(Default)]
pub(crate) struct CalledApi {
    /// What it was sent, in order.
    pub(crate) calls: RefCell<Vec<Called>>,
    /// Answers that it gives before it says 200 again.
    pub(crate) answers: RefCell<VecDeque<Answer>>,
}

/// What it was sent.
pub(crate) struct Called {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    /// None: there was none.
    pub(crate) body: Option<Vec<u8>>,
}

impl Called {
    /// A header's only value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        Some(self.headers.get(name)?.to_str().unwrap())
    }
}

/// What it answers.
pub(crate) enum Answer {
    Status(u16, Vec<(&'static str, String)>),
    Fails(RelayError),
    Hangs,
}

/// What a caller sends.
pub(crate) struct Parts(pub(crate) VecDeque<Part>);

pub(crate) enum Part {
    Bytes(Vec<u8>),
    /// Nothing, for so many milliseconds.
    Pause(u64),
    BreaksOff,
}

impl Parts {
    /// All at once.
    pub(crate) fn of(body: &[u8]) -> Self {
        Self([Part::Bytes(body.to_vec())].into())
    }

    /// None.
    pub(crate) fn none() -> Self {
        Self(VecDeque::new())
    }
}

impl Upload for Parts {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, BodyError> {
        loop {
            match self.0.pop_front() {
                Some(Part::Bytes(bytes)) => return Ok(Some(bytes)),
                Some(Part::Pause(milliseconds)) => {
                    for _ in 0..milliseconds {
                        turn().await;
                    }
                }
                Some(Part::BreaksOff) => return Err(BodyError::BrokenOff),
                None => return Ok(None),
            }
        }
    }
}

impl Relay for Shared {
    type Upload = Parts;
    type Download = Vec<u8>;

    async fn relay<U: Upload + 'static>(
        &self,
        request: Request<Option<U>>,
        _: RelayLimits,
    ) -> Result<Response<Vec<u8>>, RelayError> {
        let (parts, upload) = request.into_parts();
        let body = match upload {
            None => None,
            Some(mut upload) => {
                let mut body = Vec::new();
                while let Some(part) = upload.next().await.map_err(|_| RelayError::Unreachable)? {
                    body.extend(part);
                }
                Some(body)
            }
        };
        self.api.calls.borrow_mut().push(Called {
            method: parts.method,
            uri: parts.uri,
            headers: parts.headers,
            body,
        });
        let answer = self.api.answers.borrow_mut().pop_front();
        let mut response = Response::builder();
        match answer {
            None => {}
            Some(Answer::Fails(error)) => return Err(error),
            Some(Answer::Hangs) => pending().await,
            Some(Answer::Status(status, headers)) => {
                response = response.status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
            }
        }
        Ok(response.body(b"answer".to_vec()).unwrap())
    }
}
