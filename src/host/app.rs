//! An app, loaded: from a request, or a time, to the component that it is for.

use crate::allow_list::{AllowList, AllowListError};
use crate::bindings::cron::SpinCronPre;
use crate::cache::Cache;
use crate::composition::{ComposeError, Dependency, compose};
use crate::console;
use crate::cron::{self, Job};
use crate::engine;
use crate::fate::Fate;
use crate::instance::{Grants, Guest, Instances, Lifetime, ReuseLimits, cause};
use crate::manifest::Manifest;
use crate::outbound::{Outbound, OutboundClient};
use crate::routes::Routes;
use crate::store::{FILE_NAME, OpenError, Store};
use crate::tls::{self, PemError};
use crate::variables::{ComponentVariables, Environment, LookupError, Variables};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use http::uri::{Authority, Scheme, Uri};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use wasmtime::Trap;
use wasmtime::component::{InstancePre, Linker};
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::handler::{
    ExpirationError, InstantiationError, ProxyHandler, TrapOrPanicError,
};
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode;

/// How long the app may take to say how it is before start-up goes on without.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(30);

/// The most of a problem's description that is read, in bytes.
const MAX_PROBLEM: usize = 64 * 1024;

/// How to load an app.
#[derive(Debug)]
pub(crate) struct Options {
    /// The folder for the key-value store; none: in memory.
    pub(crate) state_dir: Option<PathBuf>,
    /// How instances are reused.
    pub(crate) limits: ReuseLimits,
    /// How many instances may live at once.
    pub(crate) max_instances: u32,
    /// The folder for compiled components; none: they are compiled at every start.
    pub(crate) cache: Option<PathBuf>,
    /// A file with certificate authorities that requests to others trust besides.
    pub(crate) outbound_ca: Option<PathBuf>,
    /// The environment that variables are read from.
    pub(crate) environment: Environment,
}

/// An app that can answer requests.
pub(crate) struct App {
    routes: Routes,
    handlers: BTreeMap<String, ProxyHandler<Instances>>,
    jobs: Vec<Arc<Job>>,
    admission: Semaphore,
    allow_list_fault: Option<(String, AllowListError)>,
}

impl App {
    /// Composes and compiles the components of `manifest`, which takes a second or so, and opens the store if one of
    /// them uses it.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub(crate) fn load(
        manifest: Manifest,
        options: Options,
        lifetime: &Lifetime,
    ) -> Result<Self, LoadError> {
        let variables = Arc::new(Variables::new(manifest.variables, options.environment));
        if let Some(name) = variables.unknown() {
            return Err(LoadError::UnknownVariable(name.to_owned()));
        }
        variables.check()?;
        let key_value = if manifest
            .components
            .values()
            .any(|it| !it.key_value_stores.is_empty())
        {
            let path = options.state_dir.map(|folder| folder.join(FILE_NAME));
            console::fact(
                "storage",
                path.as_deref()
                    .map_or("in memory".into(), |path| path.to_string_lossy()),
            );
            Some(Store::open(path.as_deref())?)
        } else {
            None
        };
        let authorities = match &options.outbound_ca {
            Some(file) => tls::certificates(file)?,
            None => Vec::new(),
        };
        let client = OutboundClient::new(authorities)
            .map_err(|error| LoadError::Engine(error.to_string()))?;
        let engine = engine::engine(options.max_instances, options.limits.interruptible())
            .map_err(|error| LoadError::Engine(format!("{error:#}")))?;
        let linker =
            engine::linker(&engine).map_err(|error| LoadError::Engine(format!("{error:#}")))?;

        // Requests that instances have no room for wait outside of them.
        let places = usize::try_from(options.max_instances)
            .unwrap_or(usize::MAX)
            .saturating_mul(options.limits.concurrent_requests)
            .min(Semaphore::MAX_PERMITS);
        let cache = Cache::open(options.cache);
        let mut handlers = BTreeMap::new();
        let mut jobs = Vec::new();
        let mut allow_list_fault = None;
        let place_wanted = Arc::new(Notify::new());
        for (id, component) in manifest.components {
            let prepared = Prepared::new(
                &linker,
                &cache,
                &id,
                &component.source,
                &component.dependencies,
            )?;
            // A wrong allow-list denies everything, as in Spin, until the app has had its say about its settings.
            let allowed = AllowList::resolve(&component.allowed_outbound_hosts, &variables)
                .unwrap_or_else(|fault| {
                    allow_list_fault.get_or_insert((id.clone(), fault));
                    AllowList::default()
                });
            let name: Arc<str> = id.as_str().into();
            let grants = Grants {
                component: Arc::clone(&name),
                interruptible: options.limits.interruptible(),
                place_wanted: Arc::clone(&place_wanted),
                outbound: Arc::new(Outbound::new(client.clone(), name, allowed)),
                key_value: key_value.clone(),
                key_value_stores: Arc::new(component.key_value_stores),
                variables: ComponentVariables::new(Arc::clone(&variables), component.variables),
            };
            for trigger in manifest.crons.iter().filter(|it| it.component == id) {
                jobs.push(Arc::new(Job {
                    schedule: trigger.schedule.clone(),
                    pre: prepared.cron()?,
                    grants: grants.clone(),
                }));
            }
            if manifest.routes.iter().any(|route| route.component == id) {
                let instances = Instances {
                    grants,
                    pre: prepared.service()?,
                    limits: options.limits,
                    lifetime: lifetime.clone(),
                    failed: Arc::default(),
                };
                handlers.insert(id, ProxyHandler::new(instances));
            }
        }
        Ok(Self {
            routes: manifest.routes,
            handlers,
            jobs,
            admission: Semaphore::new(places),
            allow_list_fault,
        })
    }

    /// Runs what is on a schedule, until `lifetime` says to stop.
    pub(crate) async fn keep_schedules(&self, lifetime: &Lifetime) {
        cron::run(&self.jobs, lifetime).await;
        // Without a schedule there is nothing to do, which is no reason to stop.
        lifetime.stopping.cancelled().await;
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
        let response = self
            .handle(request, Scheme::HTTP, SocketAddr::from(([127, 0, 0, 1], 0)))
            .await;
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

    /// Answers a request from `client`.
    pub(crate) async fn handle(
        &self,
        mut request: Request<WasiBody>,
        scheme: Scheme,
        client: SocketAddr,
    ) -> Response<WasiBody> {
        // Between the client and this host alone; a component that forwards requests must not forward it.
        request.headers_mut().remove(CONNECTION);
        if request.uri().path() == "/.well-known/spin/health" {
            return plain(StatusCode::OK, "OK");
        }
        if let Err(reason) = complete_uri(&mut request, scheme) {
            return plain(StatusCode::BAD_REQUEST, reason);
        }
        let uri = request.uri().clone();
        let Some(found) = self.routes.find(uri.path()) else {
            return status(StatusCode::NOT_FOUND);
        };
        let Some(handler) = self.handlers.get(&found.route.component) else {
            return status(StatusCode::NOT_FOUND);
        };
        found.add_headers(request.headers_mut(), &uri.to_string(), client);

        let _admitted = self.admission.acquire().await;
        let fate = Arc::<OnceLock<Fate>>::default();
        match handler.handle(Arc::clone(&fate), request).await {
            Ok(response) => match fate.get() {
                Some(fate) => response.map(|body| fate.of_body(body)),
                None => response,
            },
            Err(error) => failure(&found.route.component, &error),
        }
    }
}

/// Why an app cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// A variable has no value.
    #[error(transparent)]
    Variable(#[from] LookupError),
    /// The command line has a value for a variable that is not declared.
    #[error("the variable {0} of the command line is not in [variables] of the manifest")]
    UnknownVariable(String),
    /// The file of --outbound-ca is of no use.
    #[error(transparent)]
    OutboundCa(#[from] PemError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// A component cannot be put together.
    #[error("component {component}: {source}")]
    Compose {
        component: String,
        source: ComposeError,
    },
    /// A component cannot be compiled, or imports what this host does not have.
    #[error("component {component}: {reason}")]
    Component { component: String, reason: String },
    /// The engine does not start.
    #[error("cannot start the engine: {0}")]
    Engine(String),
}

/// What is wrong with the settings of an app that was loaded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingsError {
    /// In the words of the app.
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

/// A component with everything that it imports, not yet known to be of any kind.
struct Prepared<'a> {
    id: &'a str,
    source: &'a Path,
    pre: InstancePre<Guest>,
}

impl<'a> Prepared<'a> {
    fn new(
        linker: &Linker<Guest>,
        cache: &Cache,
        id: &'a str,
        source: &'a Path,
        dependencies: &[Dependency],
    ) -> Result<Self, LoadError> {
        let bytes = compose(source, dependencies).map_err(|error| LoadError::Compose {
            component: id.to_owned(),
            source: error,
        })?;
        let compiled = cache
            .compile(linker.engine(), &bytes)
            .map_err(|error| unfit(id, source, "does not compile", &error))?;
        let pre = linker
            .instantiate_pre(&compiled)
            .map_err(|error| unfit(id, source, "imports what this host does not have", &error))?;
        Ok(Self { id, source, pre })
    }

    fn service(&self) -> Result<ServicePre<Guest>, LoadError> {
        let what = "is no WASI 0.3 HTTP component, the only kind for an HTTP trigger of this host";
        ServicePre::new(self.pre.clone()).map_err(|error| unfit(self.id, self.source, what, &error))
    }

    fn cron(&self) -> Result<SpinCronPre<Guest>, LoadError> {
        let what = "does not export handle-cron-event, as a component of a cron trigger must";
        SpinCronPre::new(self.pre.clone())
            .map_err(|error| unfit(self.id, self.source, what, &error))
    }
}

fn unfit(id: &str, source: &Path, what: &str, error: &wasmtime::Error) -> LoadError {
    LoadError::Component {
        component: id.to_owned(),
        reason: format!("{} {what}: {error:#}", source.display()),
    }
}

/// Gives a request's URI its scheme and authority, from the `Host` header where the request line has none.
///
/// # Errors
///
/// There is no authority, or there are two; as text for the client.
fn complete_uri(request: &mut Request<WasiBody>, scheme: Scheme) -> Result<(), &'static str> {
    let header = match request.headers().get(HOST) {
        Some(host) => {
            let host = host
                .to_str()
                .ok()
                .and_then(|host| host.parse::<Authority>().ok());
            Some(host.ok_or("The Host header is malformed.\n")?)
        }
        None => None,
    };
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.authority = Some(match (header, parts.authority) {
        (Some(header), Some(authority)) if header != authority => {
            return Err("The Host header contradicts the URI.\n");
        }
        (Some(authority), _) | (None, Some(authority)) => authority,
        (None, None) => return Err("There is no Host header.\n"),
    });
    parts.scheme = Some(scheme);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| "The URI is malformed.\n")?;
    Ok(())
}

/// The response when a component has none.
fn failure(component: &str, error: &wasmtime::Error) -> Response<WasiBody> {
    if let Some(code) = error.downcast_ref::<ErrorCode>() {
        // Its name alone: a payload may hold what the component was working on.
        let code = format!("{code:?}");
        let name = code.split(['(', ' ']).next().unwrap_or_default();
        console::warn(format_args!(
            "component {component} returned {name} instead of a response"
        ));
        status(StatusCode::INTERNAL_SERVER_ERROR)
    } else if let Some(error) = error.downcast_ref::<InstantiationError<Arc<OnceLock<Fate>>>>() {
        // The pool was full for long, or the component's own start failed.
        console::warn(format_args!(
            "component {component} cannot be instantiated: {}",
            cause(&error.error)
        ));
        let mut response = plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "The server is overloaded.\n",
        );
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        response
    } else if error.is::<ExpirationError>() {
        console::warn(format_args!(
            "component {component} did not respond within --request-timeout"
        ));
        plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The component took too long.\n",
        )
    } else {
        // If its instance failed, the end of that says why.
        if !error.is::<Trap>() && !error.is::<TrapOrPanicError>() {
            console::warn(format_args!(
                "component {component} returned no response: {}",
                cause(error)
            ));
        }
        plain(StatusCode::INTERNAL_SERVER_ERROR, "The component failed.\n")
    }
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
            complete_uri(&mut request, Scheme::HTTP).map(|()| request.uri().to_string())
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
