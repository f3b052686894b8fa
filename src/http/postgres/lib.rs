//! The HTTP component on a PostgreSQL database: gives [`behalf_http_app`] its ledger, and the vault's word where the database is.

mod bindings;
mod database;

use std::rc::Rc;

use behalf_core::ledger::postgres::PostgresLedger;
use behalf_http_app::{App, ImportedVault, Wasi, handle};
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::service;
use spin_sdk::wasip3::http::types::{ErrorCode, Request, Response};

use crate::database::{SpinDatabase, check_settings};

thread_local! {
    static APP: Rc<App<PostgresLedger<SpinDatabase, Wasi>>> = Rc::new(App::new(
        ImportedVault::with_settings(check_settings),
        PostgresLedger::new(SpinDatabase, Wasi),
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
