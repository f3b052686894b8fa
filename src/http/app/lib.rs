//! What the HTTP components have in common: translates between WASI HTTP and [`behalf_core::Keeper`], and between its ports and the
//! imported vault. It decides nothing, and no secret of the app's passes through it. Where records are kept is each component's own.

pub mod bindings;
mod call;
mod vault;

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use behalf_core::api::{Answer, AnswerBody};
use behalf_core::port::{BodyError, RequestBody, Timer as _};
use behalf_core::{Keeper, Ledger};
use bytes::Bytes;
use futures_util::future::{Either, select};
use http::header::CONTENT_LENGTH;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use spin_sdk::wasip3::http::types::{self, ErrorCode};
use spin_sdk::wasip3::http_compat::{
    IncomingRequestBody, http_from_wasi_request, http_into_wasi_response,
};
use spin_sdk::wit_bindgen;

use crate::call::Download;
pub use crate::vault::{ImportedVault, read};

/// The app, on a ledger.
pub type App<L> = Keeper<ImportedVault, L, Wasi>;

/// Answers a request.
///
/// # Errors
/// The request or the answer cannot be passed on.
pub async fn handle<L: Ledger + 'static>(
    app: Rc<App<L>>,
    request: types::Request,
) -> Result<types::Response, ErrorCode> {
    let (request, body) = http_from_wasi_request(request)?.into_parts();
    let Answer {
        response,
        replacement,
    } = app.handle(&request, Body(body)).await;
    let (head, body) = response.into_parts();
    let response = match body {
        AnswerBody::Whole(body) => {
            let mut response = Response::from_parts(head, body);
            if response.status() != StatusCode::NO_CONTENT {
                // So that an answer that breaks off is known to be one, whatever the host makes of it.
                let length = response.body().len().into();
                response.headers_mut().insert(CONTENT_LENGTH, length);
            }
            http_into_wasi_response(response.map(Full::new))?
        }
        AnswerBody::Passed(body) => Download::respond(Response::from_parts(head, body))?,
    };
    if let Some(replacement) = replacement {
        // It may be lost with the instance: the old token stays valid.
        wit_bindgen::spawn(async move { app.store(replacement).await });
    }
    Ok(response)
}

/// What a caller sends.
pub struct Body(IncomingRequestBody);

impl Body {
    /// The request that it is of, untouched; none: it was touched.
    fn into_request(mut self) -> Option<types::Request> {
        self.0.take_unstarted()
    }
}

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

/// The core's clocks, randomness and log.
#[derive(Clone, Copy)]
pub struct Wasi;

behalf_wasi::ports!(Wasi);
