//! The HTTP component: translates between WASI HTTP and [`behalf_core::Keeper`], and between its ports and what it
//! imports: the vault and key-value storage. It decides nothing, and no secret of the app's passes through it.

mod bindings;
mod storage;
mod vault;

use std::io::Write as _;
use std::pin::pin;
use std::time::Duration;

use behalf_core::Keeper;
use behalf_core::port::{BodyError, Clock, Log, Random, RequestBody, Timer};
use bytes::Bytes;
use futures_util::future::{Either, select};
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use spin_sdk::http::{Request, Response};
use spin_sdk::http_service;
use spin_sdk::wasip3::clocks::{monotonic_clock, system_clock};
use spin_sdk::wasip3::http_compat::IncomingRequestBody;

use crate::storage::SpinStore;
use crate::vault::ImportedVault;

static KEEPER: Keeper<ImportedVault, SpinStore, Wasi> = Keeper::new(ImportedVault, SpinStore, Wasi);

#[http_service]
async fn handle(request: Request) -> Response<Full<Bytes>> {
    let (request, body) = request.into_parts();
    let mut response = KEEPER.handle(&request, Body(body)).await;
    if response.status() != StatusCode::NO_CONTENT {
        // So that an answer that breaks off is known to be one, whatever the host makes of it.
        let length = response.body().len().into();
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    response.map(Full::new)
}

struct Body(IncomingRequestBody);

impl RequestBody for Body {
    async fn read(self, limit: usize, time: Duration) -> Result<Bytes, BodyError> {
        let body = pin!(Limited::new(self.0, limit).collect());
        let end = pin!(Wasi.sleep(time));
        let Either::Left((body, _)) = select(body, end).await else {
            return Err(BodyError::TooSlow);
        };
        match body {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(BodyError::TooLong),
            Err(_) => Err(BodyError::BrokenOff),
        }
    }
}

struct Wasi;

impl Clock for Wasi {
    fn now(&self) -> u64 {
        u64::try_from(system_clock::now().seconds).unwrap_or(0)
    }
}

impl Timer for Wasi {
    fn elapsed(&self) -> Duration {
        Duration::from_nanos(monotonic_clock::now())
    }

    async fn sleep(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        monotonic_clock::wait_for(nanoseconds).await;
    }
}

impl Random for Wasi {
    fn fill(&self, buffer: &mut [u8]) {
        if getrandom::fill(buffer).is_err() {
            // A host without randomness: names made after this could recur.
            std::process::abort();
        }
    }
}

impl Log for Wasi {
    fn line(&self, line: &str) {
        // `eprintln!` would trap if the host closed standard error.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
