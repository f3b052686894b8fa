//! An app that was loaded: from a request, or a time, to the component that it is for.

use crate::allow_list::AllowListError;
use crate::answers::{self, overloaded, plain, status};
use crate::cron::{self, Job};
use crate::life::Lifetime;
use crate::routes::Routes;
use crate::service::Service;
use crate::target::complete_uri;
use bytes::Bytes;
use http::header::CONNECTION;
use http::uri::Scheme;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::{Error, WasiBody};

/// Between whom a request is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// The client's address.
    pub(crate) client: SocketAddr,
    /// This host's, as the client sees it.
    pub(crate) local: SocketAddr,
}

impl Peer {
    /// This process, as its own client.
    const ITSELF: Self = Self {
        client: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
        local: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
    };
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

    /// Answers a client's request.
    pub(crate) async fn answer(
        &self,
        request: Request<WasiBody>,
        scheme: Scheme,
        peer: Peer,
    ) -> Response<WasiBody> {
        if request.uri().path() == "/.well-known/spin/health" {
            return plain(StatusCode::OK, "OK");
        }
        if self.lifetime.leaving.is_cancelled()
            && self.ready_path.as_deref() == Some(request.uri().path())
        {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "The server is stopping.\n");
        }
        let Ok(admitted) = Arc::clone(&self.admission).try_acquire_owned() else {
            return overloaded();
        };
        self.dispatch(request, scheme, peer).await.map(|body| {
            Admitted {
                body,
                _admitted: admitted,
            }
            .boxed_unsync()
        })
    }

    /// Answers a request of this process, for which there is always room: it has few.
    pub(crate) async fn answer_itself(&self, request: Request<WasiBody>) -> Response<WasiBody> {
        self.dispatch(request, Scheme::HTTP, Peer::ITSELF).await
    }

    async fn dispatch(
        &self,
        mut request: Request<WasiBody>,
        scheme: Scheme,
        peer: Peer,
    ) -> Response<WasiBody> {
        // Between the client and this host alone; a component that forwards requests must not forward it.
        request.headers_mut().remove(CONNECTION);
        if let Err(reason) = complete_uri(&mut request, scheme, peer.local) {
            return plain(StatusCode::BAD_REQUEST, reason);
        }
        let uri = request.uri().clone();
        let Some(found) = self.routes.find(uri.path()) else {
            return status(StatusCode::NOT_FOUND);
        };
        let component = &found.route.component;
        let Some(service) = self.services.get(component) else {
            return status(StatusCode::NOT_FOUND);
        };
        found.add_headers(request.headers_mut(), &uri.to_string(), peer.client);
        match service.answer(request).await {
            Ok(response) => response,
            Err(failure) => answers::failure(component, &failure),
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
