//! The HTTP component: translates between WASI HTTP and [`behalf_core::Keeper`], and between its ports and what it
//! imports: the vault and key-value storage. It decides nothing, and no secret of the app's passes through it.

mod bindings;
mod call;
mod storage;
mod vault;

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use behalf_core::api::{Answer, AnswerBody};
use behalf_core::port::{BodyError, RequestBody, Timer as _};
use behalf_core::{Keeper, KeyValueLedger};
use bytes::Bytes;
use futures_util::future::{Either, select};
use http::header::CONTENT_LENGTH;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::service;
use spin_sdk::wasip3::http::types::{self, ErrorCode};
use spin_sdk::wasip3::http_compat::{
    IncomingRequestBody, http_from_wasi_request, http_into_wasi_response,
};
use spin_sdk::wit_bindgen;

use crate::call::Download;
use crate::storage::SpinStore;
use crate::vault::ImportedVault;

type App = Keeper<ImportedVault, KeyValueLedger<SpinStore, Wasi>, Wasi>;

thread_local! {
    static APP: Rc<App> = Rc::new(Keeper::new(
        ImportedVault,
        KeyValueLedger::new(SpinStore, Wasi),
        Wasi,
    ));
}

struct Component;

service::export!(Component);

impl Guest for Component {
    async fn handle(request: types::Request) -> Result<types::Response, ErrorCode> {
        let (request, body) = http_from_wasi_request(request)?.into_parts();
        let app = APP.with(Rc::clone);
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
}

/// What a caller sends.
pub(crate) struct Body(IncomingRequestBody);

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

#[derive(Clone, Copy)]
struct Wasi;

behalf_wasi::ports!(Wasi);
