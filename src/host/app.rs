//! An app, loaded: from a request, or a time, to the component that it is for.

use crate::allow_list::AllowListError;
use crate::console;
use crate::cron::{self, Job};
use crate::life::Lifetime;
use crate::routes::Routes;
use crate::service::{Failure, Service};
use crate::store::{OpenError, Store};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use http::uri::{Authority, Scheme, Uri};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::{Error, WasiBody};

/// How long the app may take to say how it is before start-up goes on without.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(30);

/// The most of a problem's description that is read, in bytes.
const MAX_PROBLEM: usize = 64 * 1024;

/// Between whom a request is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// The client's address.
    pub(crate) client: SocketAddr,
    /// This host's, as the client sees it.
    pub(crate) local: SocketAddr,
}

/// An app that can answer requests.
pub(crate) struct App {
    /// Which path is for which component.
    pub(crate) routes: Routes,
    /// The components with a route, by id.
    pub(crate) services: BTreeMap<String, Arc<Service>>,
    /// What is on a schedule.
    pub(crate) jobs: Vec<Arc<Job>>,
    /// A permit for each request that may be in hand.
    pub(crate) admission: Arc<Semaphore>,
    /// The path by which others ask whether this host is ready.
    pub(crate) ready_path: Option<String>,
    /// How this process ends.
    pub(crate) lifetime: Lifetime,
    /// What components keep.
    pub(crate) stores: Vec<Store>,
    /// A component, and what is wrong with its allow-list.
    pub(crate) allow_list_fault: Option<(String, AllowListError)>,
}

impl App {
    /// Runs what is on a schedule, until `lifetime` says to stop.
    pub(crate) async fn keep_schedules(&self, lifetime: &Lifetime) {
        cron::run(&self.jobs, lifetime).await;
        // Without a schedule there is nothing to do, which is no reason to stop.
        lifetime.stopping.cancelled().await;
    }

    /// Opens the stores, and makes the files that are not there. A server that does not answer yet is only told of: it may
    /// start later.
    ///
    /// # Errors
    ///
    /// A file is of no use.
    pub(crate) async fn open_stores(&self) -> Result<(), OpenError> {
        for store in &self.stores {
            match store.open().await {
                Err(error @ OpenError::Unreachable(..)) => console::warn(error),
                done => done?,
            }
        }
        Ok(())
    }

    /// Asks the app itself whether its settings are right, at `/healthz`.
    ///
    /// # Errors
    ///
    /// What the app says is wrong, if it answers with a problem (RFC 9457) and a 5xx status; else what is wrong with an
    /// allow-list. That the app has no such route, or fails, is no error.
    pub(crate) async fn check_settings(&self, address: SocketAddr) -> Result<(), SettingsError> {
        let request = Request::get("/healthz")
            .header(HOST, address.to_string())
            .body(empty());
        let problem = match request {
            Ok(request) => tokio::time::timeout(HEALTH_TIMEOUT, self.problem(request))
                .await
                .unwrap_or_default(),
            Err(_) => None,
        };
        match (problem, &self.allow_list_fault) {
            (Some(detail), _) => Err(SettingsError::Problem(detail)),
            (None, Some((component, fault))) => Err(SettingsError::AllowList {
                component: component.clone(),
                fault: fault.clone(),
            }),
            (None, None) => Ok(()),
        }
    }

    async fn problem(&self, request: Request<WasiBody>) -> Option<String> {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let peer = Peer {
            client: local,
            local,
        };
        let response = self.handle(request, Scheme::HTTP, peer).await;
        let media_type = response.headers().get(CONTENT_TYPE)?.to_str().ok()?;
        if !response.status().is_server_error()
            || !media_type.starts_with("application/problem+json")
        {
            return None;
        }
        let body = Limited::new(response.into_body(), MAX_PROBLEM)
            .collect()
            .await
            .ok()?
            .to_bytes();
        let problem: Problem = serde_json::from_slice(&body).ok()?;
        problem.detail.or(problem.title)
    }

    /// Answers a request.
    pub(crate) async fn handle(
        &self,
        mut request: Request<WasiBody>,
        scheme: Scheme,
        peer: Peer,
    ) -> Response<WasiBody> {
        // Between the client and this host alone; a component that forwards requests must not forward it.
        request.headers_mut().remove(CONNECTION);
        if request.uri().path() == "/.well-known/spin/health" {
            return plain(StatusCode::OK, "OK");
        }
        if self.lifetime.leaving.is_cancelled()
            && self.ready_path.as_deref() == Some(request.uri().path())
        {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "The server is stopping.\n");
        }
        if let Err(reason) = complete_uri(&mut request, scheme, peer.local) {
            return plain(StatusCode::BAD_REQUEST, reason);
        }
        let uri = request.uri().clone();
        let Some(found) = self.routes.find(uri.path()) else {
            return status(StatusCode::NOT_FOUND);
        };
        let Some(service) = self.services.get(&found.route.component) else {
            return status(StatusCode::NOT_FOUND);
        };
        let Ok(admitted) = Arc::clone(&self.admission).try_acquire_owned() else {
            return overloaded();
        };
        found.add_headers(request.headers_mut(), &uri.to_string(), peer.client);
        match service.answer(request).await {
            Ok(response) => response.map(|body| {
                Admitted {
                    body,
                    _admitted: admitted,
                }
                .boxed_unsync()
            }),
            Err(error) => failure(&found.route.component, &error),
        }
    }
}

/// A body that is in hand until it is read, or nobody wants it any more.
struct Admitted {
    body: WasiBody,
    _admitted: OwnedSemaphorePermit,
}

impl Body for Admitted {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What is wrong with the settings of an app that was loaded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingsError {
    /// In the words of the app, a line for each thing that is wrong.
    #[error("{0}")]
    Problem(String),
    /// A variable made an allow-list wrong.
    #[error("allowed_outbound_hosts of component {component}: {fault}")]
    AllowList {
        component: String,
        fault: AllowListError,
    },
}

/// The part of a problem (RFC 9457) that is for people.
#[derive(Deserialize)]
struct Problem {
    detail: Option<String>,
    title: Option<String>,
}

/// Gives a request's URI its scheme and authority, from the `Host` header where the request line has none. In HTTP/1.0,
/// which has no such header, it is the address that the request came to.
///
/// # Errors
///
/// There is no authority, or there are two (RFC 9112 §3.2); as text for the client.
fn complete_uri(
    request: &mut Request<WasiBody>,
    scheme: Scheme,
    local: SocketAddr,
) -> Result<(), &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let header = match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let host = host
                .to_str()
                .ok()
                .and_then(|host| host.parse::<Authority>().ok());
            Some(host.ok_or("The Host header is malformed.\n")?)
        }
        (None, _) => None,
        (Some(_), Some(_)) => return Err("There is more than one Host header.\n"),
    };
    let is_old = request.version() < Version::HTTP_11;
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.authority = match (header, parts.authority) {
        (Some(header), Some(authority)) if header != authority => {
            return Err("The Host header contradicts the URI.\n");
        }
        (Some(authority), _) | (None, Some(authority)) => Some(authority),
        (None, None) if is_old => local.to_string().parse().ok(),
        (None, None) => return Err("There is no Host header.\n"),
    };
    parts.scheme = Some(scheme);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| "The URI is malformed.\n")?;
    Ok(())
}

/// The response when a component has none.
fn failure(component: &str, failure: &Failure) -> Response<WasiBody> {
    // If its instance failed, the end of that says why.
    if !matches!(failure, Failure::Instance) {
        console::warn(format_args!("component {component} {failure}"));
    }
    match failure {
        Failure::NoPlace | Failure::Instantiation(_) => overloaded(),
        Failure::Code(_) => status(StatusCode::INTERNAL_SERVER_ERROR),
        Failure::TooLong => plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The component took too long.\n",
        ),
        Failure::Instance => plain(StatusCode::INTERNAL_SERVER_ERROR, "The component failed.\n"),
    }
}

fn overloaded() -> Response<WasiBody> {
    let mut response = plain(
        StatusCode::SERVICE_UNAVAILABLE,
        "The server is overloaded.\n",
    );
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<WasiBody> {
    let mut response = Response::new(
        Full::new(Bytes::from_static(text.as_bytes()))
            .map_err(|it| match it {})
            .boxed_unsync(),
    );
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn status(status: StatusCode) -> Response<WasiBody> {
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    response
}

fn empty() -> WasiBody {
    Empty::new().map_err(|it| match it {}).boxed_unsync()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_one_authority() {
        let complete = |uri: &str, host: Option<&str>| {
            let mut request = Request::get(uri);
            if let Some(host) = host {
                request = request.header(HOST, host);
            }
            let mut request = request.body(empty()).unwrap();
            let local = SocketAddr::from(([127, 0, 0, 1], 3000));
            complete_uri(&mut request, Scheme::HTTP, local).map(|()| request.uri().to_string())
        };
        assert_eq!(
            complete("/a?b", Some("h.test:3000")).unwrap(),
            "http://h.test:3000/a?b"
        );
        assert_eq!(
            complete("http://h.test/a", None).unwrap(),
            "http://h.test/a"
        );
        assert_eq!(
            complete("http://h.test/a", Some("h.test")).unwrap(),
            "http://h.test/a"
        );
        assert!(complete("http://h.test/a", Some("other.test")).is_err());
        assert!(complete("/a", Some("not an authority")).is_err());
        assert!(complete("/a", None).is_err());
    }
}
