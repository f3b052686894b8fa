//! The HTTP component on key-value storage: gives [`behalf_http_app`] its ledger.

mod bindings;
mod storage;

use std::rc::Rc;

use behalf_core::KeyValueLedger;
use behalf_http_app::{App, ImportedVault, Wasi, handle};
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::service;
use spin_sdk::wasip3::http::types::{ErrorCode, Request, Response};

use crate::storage::SpinStore;

thread_local! {
    static APP: Rc<App<KeyValueLedger<SpinStore, Wasi>>> = Rc::new(App::new(
        ImportedVault::new(),
        KeyValueLedger::new(SpinStore, Wasi),
        Wasi,
    ));
}

struct Component;

service::export!(Component);

impl Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        handle(APP.with(Rc::clone), request).await
    }
}
