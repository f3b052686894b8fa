//! From a manifest to an app that can answer.

use crate::allow_list::{AllowList, AllowListError};
use crate::answers::overloaded;
use crate::app::App;
use crate::bindings::cron::SpinCronPre;
use crate::cache::Cache;
use crate::composition::{ComposeError, compose};
use crate::connector::{Proxy, ProxyError};
use crate::cron::Job;
use crate::engine;
use crate::instance::{Grants, Guest, ReuseLimits};
use crate::life::Lifetime;
use crate::manifest::{Component, Manifest};
use crate::outbound::{APP_ORIGIN, AppDoor, Outbound, OutboundClient};
use crate::places::Places;
use crate::postgres::Pool;
use crate::service::Service;
use crate::store::{LABEL, Store};
use crate::tls::{self, PemError};
use crate::variables::{ComponentVariables, Environment, LookupError, Template, Variables};
use rustls::RootCertStore;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use wasmtime::component::{InstancePre, Linker};
use wasmtime_wasi_http::p3::bindings::ServicePre;

/// How to load an app.
#[derive(Debug)]
pub(crate) struct Options {
    /// The stores that there are, by label.
    pub(crate) stores: BTreeMap<String, Store>,
    /// How instances are reused.
    pub(crate) limits: ReuseLimits,
    /// How many instances may live at once.
    pub(crate) max_instances: u32,
    /// How many requests may be in hand at once.
    pub(crate) max_requests: usize,
    /// The path by which others ask whether this host is ready.
    pub(crate) ready_path: Option<String>,
    /// The folder for compiled components; none: they are compiled at every start.
    pub(crate) cache: Option<PathBuf>,
    /// A file with certificate authorities that requests to others trust besides.
    pub(crate) outbound_ca: Option<PathBuf>,
    /// How many connections to databases there may be at once.
    pub(crate) database_connections: usize,
    /// The environment that variables are read from.
    pub(crate) environment: Environment,
}

/// How long a line of a component waits for room in the log, unless a request has its own time.
const LOG_PATIENCE: Duration = Duration::from_secs(30);

/// The variable by which a component on a schedule finds the app that it belongs to.
const APP_ORIGIN_NAME: &str = "app_origin";

/// Composes and compiles the components of `manifest`, which takes a second or so.
///
/// # Errors
///
/// See [`LoadError`].
pub(crate) fn load(
    manifest: Manifest,
    options: Options,
    lifetime: &Lifetime,
) -> Result<Arc<App>, LoadError> {
    let variables = Arc::new(Variables::new(manifest.variables, options.environment));
    if let Some(name) = variables.unknown() {
        return Err(LoadError::UnknownVariable(name.to_owned()));
    }
    for vain in variables.set_in_vain() {
        tracing::warn!("{vain}");
    }
    variables.check()?;
    let roots = roots(options.outbound_ca.as_deref())?;
    let shared = Shared {
        stores: used(options.stores, &manifest.components)?,
        client: client(roots.clone())?,
        databases: Pool::new(options.database_connections, roots),
        variables,
        limits: options.limits,
        door: AppDoor::default(),
    };
    let places = Places::new(options.max_instances, !manifest.crons.is_empty());
    let parts = manifest.components.values().map(parts).max().unwrap_or(1);
    let linker = linker(&places, parts, options.limits)?;
    let cache = Cache::open(options.cache);

    let mut services = BTreeMap::new();
    let mut jobs = Vec::new();
    let mut allow_list_fault = None;
    for (id, mut component) in manifest.components {
        let prepared = Prepared::new(&linker, &cache, &id, &component)?;
        let scheduled = manifest.crons.iter().any(|it| it.component == id);
        if scheduled && let Ok(origin) = Template::parse(APP_ORIGIN) {
            component
                .variables
                .insert(APP_ORIGIN_NAME.to_owned(), origin);
        }
        let (grants, fault) = shared.grants(&id, component, scheduled);
        if let Some(fault) = fault {
            allow_list_fault.get_or_insert((id.clone(), fault));
        }
        for trigger in manifest.crons.iter().filter(|it| it.component == id) {
            jobs.push(Arc::new(Job {
                schedule: trigger.schedule.clone(),
                pre: prepared.cron()?,
                grants: grants.clone(),
                places: places.clone(),
            }));
        }
        if manifest.routes.iter().any(|route| route.component == id) {
            let pre = prepared.service()?;
            let (lifetime, places) = (lifetime.clone(), places.clone());
            let service = Service::new(pre, grants, options.limits, lifetime, places);
            services.insert(id, Arc::new(service));
        }
    }
    let app = Arc::new(App {
        routes: manifest.routes,
        services,
        jobs,
        admission: Arc::new(Semaphore::new(
            options.max_requests.min(Semaphore::MAX_PERMITS),
        )),
        ready_path: options.ready_path,
        lifetime: lifetime.clone(),
        stores: shared.stores.into_values().collect(),
        allow_list_fault,
    });
    // Weak, because the app has what holds the door.
    let weak = Arc::downgrade(&app);
    shared.door.open(Box::new(move |request| {
        let app = weak.upgrade();
        Box::pin(async move {
            match app {
                Some(app) => app.answer_itself(request).await,
                None => overloaded(),
            }
        })
    }));
    Ok(app)
}

/// Of these stores those that components use, told on the way.
fn used(
    mut stores: BTreeMap<String, Store>,
    components: &BTreeMap<String, Component>,
) -> Result<BTreeMap<String, Store>, LoadError> {
    for (id, component) in components {
        for label in &component.key_value_stores {
            if !stores.contains_key(label) {
                return Err(LoadError::NoStore {
                    component: id.clone(),
                    label: label.clone(),
                });
            }
        }
    }
    stores.retain(|label, _| {
        let mut all = components.values();
        all.any(|component| component.key_value_stores.contains(label))
    });
    for (label, store) in &stores {
        match label.as_str() {
            LABEL => tracing::info!("storage: {store}"),
            label => tracing::info!("storage {label}: {store}"),
        }
    }
    Ok(stores)
}

/// The platform's authorities, and those of a file.
pub(crate) fn roots(authorities: Option<&Path>) -> Result<RootCertStore, LoadError> {
    let authorities = match authorities {
        Some(file) => tls::certificates(file)?,
        None => Vec::new(),
    };
    tls::roots(authorities).map_err(|error| LoadError::Engine(error.to_string()))
}

/// The client of a process, through the proxy that the environment names.
pub(crate) fn client(roots: RootCertStore) -> Result<OutboundClient, LoadError> {
    let proxy = Proxy::of(|name| Some(std::env::var_os(name)?.to_string_lossy().into_owned()))?;
    OutboundClient::new(roots, proxy).map_err(|error| LoadError::Engine(error.to_string()))
}

/// How many components this one is composed of.
fn parts(component: &Component) -> u32 {
    u32::try_from(component.dependencies.len())
        .unwrap_or(u32::MAX)
        .saturating_add(1)
}

fn linker(places: &Places, parts: u32, limits: ReuseLimits) -> Result<Linker<Guest>, LoadError> {
    engine::engine(places.count(), parts, limits.interruptible())
        .and_then(|engine| engine::linker(&engine))
        .map_err(|error| LoadError::Engine(format!("{error:#}")))
}

/// What all components get their grants from.
struct Shared {
    variables: Arc<Variables>,
    stores: BTreeMap<String, Store>,
    client: OutboundClient,
    databases: Pool,
    limits: ReuseLimits,
    door: AppDoor,
}

impl Shared {
    /// What a component is granted, and what is wrong with its allow-list. A wrong one denies everything, as in Spin, until
    /// the app has had its say about its settings.
    fn grants(
        &self,
        id: &str,
        component: Component,
        scheduled: bool,
    ) -> (Grants, Option<AllowListError>) {
        let allowed = AllowList::resolve(&component.allowed_outbound_hosts, &self.variables);
        let (allowed, fault) = match allowed {
            Ok(allowed) => (allowed, None),
            Err(fault) => (AllowList::default(), Some(fault)),
        };
        let name: Arc<str> = id.into();
        let door = scheduled.then(|| self.door.clone());
        let outbound = Outbound::new(self.client.clone(), Arc::clone(&name), allowed, door);
        let stores = self.stores.iter();
        let stores = stores
            .filter(|(label, _)| component.key_value_stores.contains(*label))
            .map(|(label, store)| (label.clone(), store.clone()));
        let grants = Grants {
            component: name,
            log_patience: Some(self.limits.request_timeout.unwrap_or(LOG_PATIENCE)),
            interruptible: self.limits.interruptible(),
            outbound: Arc::new(outbound),
            databases: self.databases.clone(),
            stores: Arc::new(stores.collect()),
            variables: ComponentVariables::new(Arc::clone(&self.variables), component.variables),
        };
        (grants, fault)
    }
}

/// A component with everything that it imports, not yet known to be of any kind.
struct Prepared<'a> {
    id: &'a str,
    source: PathBuf,
    pre: InstancePre<Guest>,
}

impl<'a> Prepared<'a> {
    fn new(
        linker: &Linker<Guest>,
        cache: &Cache,
        id: &'a str,
        component: &Component,
    ) -> Result<Self, LoadError> {
        let (source, dependencies) = (&component.source, &component.dependencies);
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
        Ok(Self {
            id,
            source: source.clone(),
            pre,
        })
    }

    fn service(&self) -> Result<ServicePre<Guest>, LoadError> {
        let what = "is no WASI 0.3 HTTP component, the only kind for an HTTP trigger of this host";
        ServicePre::new(self.pre.clone())
            .map_err(|error| unfit(self.id, &self.source, what, &error))
    }

    fn cron(&self) -> Result<SpinCronPre<Guest>, LoadError> {
        let what = "does not export handle-cron-event, as a component of a cron trigger must";
        SpinCronPre::new(self.pre.clone())
            .map_err(|error| unfit(self.id, &self.source, what, &error))
    }
}

fn unfit(id: &str, source: &Path, what: &str, error: &wasmtime::Error) -> LoadError {
    LoadError::Component {
        component: id.to_owned(),
        reason: format!("{} {what}: {error:#}", source.display()),
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
    /// The environment names a proxy that is of no use.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// A component wants a store that there is not.
    #[error(
        "component {component}: there is no key-value store {label:?}; add [key_value_store.{label}] to the runtime \
         configuration (--runtime-config-file)"
    )]
    NoStore { component: String, label: String },
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
