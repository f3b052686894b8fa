//! HTTP/1.1 servers that can close a connection without an answer, which `axum::serve` cannot.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tower::ServiceExt as _;
use url::form_urlencoded;

use super::fault::Faults;
use super::journal::{Entry, Journal, Target, fingerprint};
use super::jwt;

/// In a response's extensions: close the connection instead of sending it.
#[derive(Clone, Copy)]
pub(crate) struct Close;

impl IntoResponse for Close {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// In a response's extensions: what the journal should say about it.
#[derive(Clone, Default)]
pub(crate) struct Remarks {
    pub(crate) aadsts: Option<u32>,
    pub(crate) issued: Option<String>,
}

/// A server on a port of 127.0.0.1; stops when dropped.
pub(crate) struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Binds `port` (0: any that is free) and serves.
    pub(crate) async fn start(
        name: &str,
        port: u16,
        router: impl FnOnce(SocketAddr) -> Router,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .with_context(|| format!("the emulator of {name} cannot listen on 127.0.0.1:{port}"))?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(serve(listener, router(address)));
        Ok(Self { address, task })
    }

    /// Its origin, without a slash at the end.
    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes the port and every connection.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Puts the journal and the faults in front of a router.
pub(crate) fn guarded(router: Router, shared: Arc<Shared>, classify: fn(&str) -> Target) -> Router {
    router.layer(middleware::from_fn_with_state(
        Gated { shared, classify },
        pass,
    ))
}

/// The journal and the faults, shared by all emulators.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) journal: Journal,
    pub(crate) faults: Faults,
}

#[derive(Clone)]
struct Gated {
    shared: Arc<Shared>,
    classify: fn(&str) -> Target,
}

async fn pass(State(gate): State<Gated>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    // Requests here are small; a test that sends more means to be refused.
    let Ok(body) = http_body_util::Limited::new(body, 1 << 20)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
    else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let path = parts.uri.path().to_owned();
    let target = (gate.classify)(&path);
    let form: std::collections::HashMap<String, String> = match target {
        Target::EntraToken => form_urlencoded::parse(&body).into_owned().collect(),
        _ => std::collections::HashMap::new(),
    };
    let field = |name: &str| form.get(name).cloned();
    let mut entry = Entry {
        target,
        method: parts.method.to_string(),
        tenant: matches!(
            target,
            Target::EntraToken | Target::Jwks | Target::EntraMetadata
        )
        .then(|| path.split('/').nth(1).unwrap_or_default().to_owned()),
        path,
        grant: field("grant_type"),
        client_id: field("client_id"),
        proof: match (form.get("client_secret"), form.get("client_assertion")) {
            (Some(_), _) => Some("secret".to_owned()),
            (None, Some(assertion)) => {
                jwt::header(assertion).map(|header| format!("{:?}", header.alg))
            }
            (None, None) => None,
        },
        scope: field("scope"),
        status: None,
        aadsts: None,
        redeemed: form.get("refresh_token").map(|token| fingerprint(token)),
        issued: None,
        fault: false,
    };
    let correlation_id = parts
        .headers
        .get("client-request-id")
        .and_then(|id| id.to_str().ok())
        .map(str::to_owned);

    let fault = gate.shared.faults.take(&entry);
    let mut injected = None;
    if let Some(fault) = &fault {
        tokio::time::sleep(fault.delay()).await;
        injected = fault.response(correlation_id.as_deref());
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
    gate.shared.journal.write(entry);
    response
}

async fn serve(listener: TcpListener, router: Router) {
    // Dropped with this future, so that no connection outlives the server.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let _ = stream.set_nodelay(true);
                connections.spawn(serve_connection(stream, router.clone()));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Serves HTTP/1.1 on one connection until its end.
pub(crate) async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let router = router.clone();
        async move {
            let response = router
                .oneshot(request.map(Body::new))
                .await
                .unwrap_or_else(|never: Infallible| match never {});
            match response.extensions().get::<Close>() {
                Some(Close) => Err("closed by an injected fault"),
                None => Ok(response),
            }
        }
    });
    // An error here is a client that went away, or an injected fault.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
