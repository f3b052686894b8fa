//! The HTTP component: translates between WASI HTTP and [`behalf_core::Keeper`], and between its ports and what it
//! imports: the vault and key-value storage. It decides nothing, and no secret of the app's passes through it.

mod bindings;
mod storage;
mod vault;

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use behalf_core::port::{BodyError, RequestBody, Timer as _};
use behalf_core::{Keeper, KeyValueLedger};
use bytes::Bytes;
use futures_util::future::{Either, select};
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use spin_sdk::http::{Request, Response};
use spin_sdk::http_service;
use spin_sdk::wasip3::http_compat::IncomingRequestBody;

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

#[http_service]
async fn handle(request: Request) -> Response<Full<Bytes>> {
    let (request, body) = request.into_parts();
    let app = APP.with(Rc::clone);
    let mut response = app.handle(&request, Body(body)).await;
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

#[derive(Clone, Copy)]
struct Wasi;

behalf_wasi::ports!(Wasi);
