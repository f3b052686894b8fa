//! What stands in front of every emulator: the journal, and the faults.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http_body_util::{BodyExt as _, Collected, Limited};

use super::fault::Faults;
use super::journal::{Entry, Journal, Remarks, Target};
use super::server::Close;

/// The journal and the faults, of all emulators.
#[derive(Default)]
pub(crate) struct Gate {
    pub(crate) journal: Journal,
    pub(crate) faults: Faults,
}

impl Gate {
    /// Puts the journal and the faults in front of a router, whose requests are for what `target` makes of their path.
    pub(crate) fn guard(self: &Arc<Self>, router: Router, target: fn(&str) -> Target) -> Router {
        router.layer(middleware::from_fn_with_state((self.clone(), target), pass))
    }
}

type Guard = State<(Arc<Gate>, fn(&str) -> Target)>;

async fn pass(State((gate, target)): Guard, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    // Requests here are small; a test that sends more means to be refused.
    let Ok(body) = Limited::new(body, 1 << 20)
        .collect()
        .await
        .map(Collected::to_bytes)
    else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let mut entry = Entry::of(target(parts.uri.path()), &parts, &body);
    gate.faults.arrive(entry.target);
    let fault = gate.faults.take(&entry);
    let mut injected = None;
    if let Some(fault) = &fault {
        let correlation_id = parts.headers.get("client-request-id");
        gate.faults.wait(fault).await;
        injected = fault.response(correlation_id.and_then(|id| id.to_str().ok()));
        entry.fault = true;
    }
    let mut response = match injected {
        Some(response) => response,
        None => next.run(Request::from_parts(parts, Body::from(body))).await,
    };
    if let Some(fault) = &fault {
        fault.adorn(&mut response);
    }
    if response.extensions().get::<Close>().is_none() {
        entry.status = Some(response.status().as_u16());
    }
    if let Some(remarks) = response.extensions().get::<Remarks>() {
        entry.aadsts = remarks.aadsts;
        entry.issued.clone_from(&remarks.issued);
    }
    gate.journal.write(entry);
    response
}
