//! An app that was loaded: from a request, or a time, to the component that it is for.

use crate::access::{Access, Told};
use crate::allow_list::AllowListError;
use crate::answers::{self, overloaded, plain, status};
use crate::cron::{self, Job};
use crate::life::Lifetime;
use crate::routes::Routes;
use crate::service::Service;
use crate::store::{OpenError, Store};
use crate::target::complete_uri;
use http::header::CONNECTION;
use http::uri::Scheme;
use http::{Request, Response, StatusCode};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tracing::Instrument as _;
use wasmtime_wasi_http::WasiBody;

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
    pub(crate) const ITSELF: Self = Self {
        client: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
        local: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
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
                Err(error @ OpenError::Unreachable(..)) => tracing::warn!("{error}"),
                done => done?,
            }
        }
        Ok(())
    }

    /// Answers a client's request.
    pub(crate) async fn answer(
        &self,
        mut request: Request<WasiBody>,
        scheme: Scheme,
        peer: Peer,
    ) -> Response<WasiBody> {
        let (access, mut told) = (Access::begin(&mut request), Told::default());
        let path = request.uri().path();
        if path == "/.well-known/spin/health" {
            return access.answered(told, plain(StatusCode::OK, "OK"), None);
        }
        if self.lifetime.leaving.is_cancelled() && self.ready_path.as_deref() == Some(path) {
            told.reason = Some("the host is stopping");
            let response = plain(StatusCode::SERVICE_UNAVAILABLE, "The server is stopping.\n");
            return access.answered(told, response, None);
        }
        let Ok(admitted) = Arc::clone(&self.admission).try_acquire_owned() else {
            told.reason = Some("--max-requests are in hand");
            return access.answered(told, overloaded(), None);
        };
        let response = self
            .dispatch(request, scheme, peer, &mut told)
            .instrument(access.span())
            .await;
        access.answered(told, response, Some(admitted))
    }

    /// Answers a request of this process, for which there is always room: it has few.
    pub(crate) async fn answer_itself(&self, mut request: Request<WasiBody>) -> Response<WasiBody> {
        let (access, mut told) = (Access::begin(&mut request), Told::default());
        let response = self
            .dispatch(request, Scheme::HTTP, Peer::ITSELF, &mut told)
            .instrument(access.span())
            .await;
        access.answered(told, response, None)
    }

    /// Has the component answer that a request is for.
    pub(crate) async fn dispatch(
        &self,
        mut request: Request<WasiBody>,
        scheme: Scheme,
        peer: Peer,
        told: &mut Told,
    ) -> Response<WasiBody> {
        // Between the client and this host alone; a component that forwards requests must not forward it.
        request.headers_mut().remove(CONNECTION);
        if let Err(reason) = complete_uri(&mut request, scheme, peer.local) {
            told.reason = Some(reason.trim_end());
            return plain(StatusCode::BAD_REQUEST, reason);
        }
        let uri = request.uri().clone();
        let Some(found) = self.routes.find(uri.path()) else {
            return status(StatusCode::NOT_FOUND);
        };
        told.route = Some(found.route.pattern.clone());
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
