//! The vault as a component for others: `scripts/examples/embed`, in Rust and in Python, composed with it and run on
//! plain wasmtime, with WASI and nothing of this host.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    missing_docs,
    unreachable_pub,
    unused_crate_dependencies,
    reason = "a panic is a failed test"
)]

use std::path::Path;
use std::process::Command;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use runtime_tests::emulators::{
    Answer, EVENT, Emulators, Fault, OTHER_USER, Options, TENANT, Target, USER,
};
use runtime_tests::peers;
use wac_graph::types::Package;
use wac_graph::{CompositionGraph, EncodeOptions};
use wasmtime::component::{Component, HasSelf, Instance, Linker, ResourceTable};
use wasmtime::{Config, Engine, OptLevel, RegallocAlgorithm, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

mod bindings {
    wasmtime::component::bindgen!({
        path: ["../../wit", "../../scripts/examples/wit"],
        world: "example:embed/embed@0.1.0",
        imports: { default: async | trappable },
        exports: { default: async | store },
    });
}

mod calls {
    wasmtime::component::bindgen!({
        inline: "
            package test:calls;
            world exports {
                export example:embed/calls@0.1.0;
            }
        ",
        path: ["../../wit", "../../scripts/examples/wit"],
        exports: { default: async | store },
    });
}

mod config {
    wasmtime::component::bindgen!({
        inline: "
            package test:host;
            world imports {
                import wasi:config/store@0.2.0-draft-2024-09-27;
            }
        ",
        path: "../../wit/deps/config@0.2.0-draft-2024-09-27",
    });
}

/// With the settings from a component, so that the host has nothing to provide but WASI.
#[tokio::test(flavor = "multi_thread")]
async fn a_rust_component_keeps_its_own_records() {
    let vault = compose(&guest("behalf_vault"), &guest("behalf_example_config"));
    let whole = compose(&guest("behalf_example_embed"), &vault);
    let imports = one_life(&whole, false).await;
    assert!(
        imports
            .iter()
            .all(|name| name.starts_with("wasi:") && !name.starts_with("wasi:config/")),
        "{imports:?}"
    );
}

/// It has no access token, and so none can get out of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rust_component_calls_an_api_and_never_has_its_access_token() {
    let vault = compose(&guest("behalf_vault"), &guest("behalf_example_config"));
    let whole = compose(&guest("behalf_example_embed"), &vault);
    let Stage {
        emulators,
        mut store,
        instance,
        ..
    } = Stage::set(&whole, false).await;
    let embed = bindings::Embed::new(&mut store, &instance).unwrap();
    let tokens = embed.example_embed_tokens();
    let calls = calls::Exports::new(&mut store, &instance).unwrap();
    let calls = calls.example_embed_calls();
    macro_rules! call {
        ($interface:ident, $function:ident $(, $argument:expr)*) => {
            store
                .run_concurrent(async |store| $interface.$function(store $(, $argument.to_owned())*).await)
                .await
                .unwrap()
                .unwrap()
        };
    }
    let bearer = emulators.caller().mint();
    let events = "/v1.0/me/calendar/events";
    let error = call!(calls, call_read, bearer, "graph", events).unwrap_err();
    assert_eq!(error, "not enrolled");
    call!(tokens, call_enrol, bearer).unwrap();
    emulators.clear_journal();
    for asked in [
        &[Target::EntraToken, Target::Downstream][..],
        &[Target::Downstream],
    ] {
        let answer = call!(calls, call_read, bearer, "graph", events).unwrap();
        let body = String::from_utf8(answer.body).unwrap();
        assert!(answer.status == 200 && body.contains(EVENT), "{body}");
        assert!(!emulators.secrets().iter().any(|it| body.contains(it)));
        let journal: Vec<_> = emulators.journal().iter().map(|it| it.target).collect();
        assert_eq!(journal, asked);
        emulators.clear_journal();
    }
    // Enrolled anew: what was prepared before calls nobody.
    call!(tokens, call_enrol, bearer).unwrap();
    let answer = call!(calls, call_read, bearer, "graph", "/v1.0/me").unwrap();
    assert_eq!(answer.status, 200);
    let asked = emulators.journal();
    let calls_made = asked.iter().filter(|it| it.target == Target::Downstream);
    assert_eq!(calls_made.count(), 1);
    // What no pattern allows, and what there is not.
    for (api, path) in [("graph", "/v1.0/me/messages"), ("other", "/v1.0/me")] {
        let error = call!(calls, call_read, bearer, api, path).unwrap_err();
        assert!(error.contains("CallNotAllowed"), "{error}");
    }
    // It wants claims, and gets them.
    let mut fault = Fault::new(
        Target::Downstream,
        Answer::Status {
            status: 401,
            body: "{}".into(),
            content_type: "application/json".into(),
        },
    );
    fault.challenge =
        Some(r#"Bearer error="insufficient_claims", claims="eyJhY2Nlc3NfdG9rZW4iOnt9fQ==""#.into());
    emulators.fault(fault);
    emulators.clear_journal();
    let answer = call!(calls, call_read, bearer, "graph", "/v1.0/me").unwrap();
    assert_eq!(answer.status, 200);
    let journal: Vec<_> = emulators.journal().iter().map(|it| it.target).collect();
    assert_eq!(
        journal,
        [Target::Downstream, Target::EntraToken, Target::Downstream]
    );
    emulators.stop().await;
}

/// With the settings from the host.
#[tokio::test(flavor = "multi_thread")]
async fn a_python_component_keeps_its_own_records() {
    let whole = compose(&python_component(), &guest("behalf_vault"));
    let imports = one_life(&whole, true).await;
    assert!(
        imports.contains(&"wasi:config/store@0.2.0-draft-2024-09-27".to_owned())
            && imports.iter().all(|name| name.starts_with("wasi:")),
        "{imports:?}"
    );
}

/// A composition that runs on emulators.
struct Stage {
    emulators: Emulators,
    engine: Engine,
    component: Component,
    store: Store<Host>,
    instance: Instance,
}

impl Stage {
    async fn set(composed: &[u8], settings_from_host: bool) -> Self {
        let emulators = Emulators::start(Options::default()).await.unwrap();
        // A Python interpreter is compiled here: fast, for what little it does.
        let mut config = Config::new();
        config.cranelift_opt_level(OptLevel::None);
        config.cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass);
        let engine = Engine::new(&config).unwrap();
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
        wasmtime_wasi::p3::add_to_linker(&mut linker).unwrap();
        wasmtime_wasi_http::p3::add_to_linker(&mut linker).unwrap();
        let mut wasi = WasiCtx::builder();
        if settings_from_host {
            config::wasi::config::store::add_to_linker::<_, HasSelf<_>>(
                &mut linker,
                |it: &mut Host| it,
            )
            .unwrap();
        } else {
            for (name, value) in emulators.settings() {
                wasi.env(format!("BEHALF_{}", name.to_uppercase()), value);
            }
        }
        let host = Host {
            table: ResourceTable::new(),
            wasi: wasi.inherit_stderr().build(),
            http: WasiHttpCtx::new(),
            settings: emulators.settings(),
            outbound: Outbound(Client::builder(TokioExecutor::new()).build_http()),
        };
        let mut store = Store::new(&engine, host);
        let component = Component::new(&engine, composed).unwrap();
        let instance = linker
            .instantiate_async(&mut store, &component)
            .await
            .unwrap();
        Self {
            emulators,
            engine,
            component,
            store,
            instance,
        }
    }
}

/// Enrols, draws, rotates, re-seals, draws again; and what must not work does not. Returns what the host had to provide.
async fn one_life(composed: &[u8], settings_from_host: bool) -> Vec<String> {
    let Stage {
        emulators,
        engine,
        component,
        mut store,
        instance,
    } = Stage::set(composed, settings_from_host).await;
    let embed = bindings::Embed::new(&mut store, &instance).unwrap();
    let tokens = embed.example_embed_tokens();
    macro_rules! call {
        ($function:ident $(, $argument:expr)*) => {
            store
                .run_concurrent(async |store| tokens.$function(store $(, $argument)*).await)
                .await
                .unwrap()
                .unwrap()
        };
    }

    let bearer = emulators.caller().mint();
    let error = call!(call_draw, bearer.clone()).unwrap_err();
    assert_eq!(error, "not enrolled");
    let id = call!(call_enrol, bearer.clone()).unwrap();
    assert_eq!(id.len(), 32);
    let first = call!(call_draw, bearer.clone()).unwrap();
    assert!(emulators.secrets().contains(&first), "Entra ID issued it");
    assert_eq!(call!(call_reseal), Ok(0), "no newer key");

    emulators.rotate_key(TENANT).unwrap();
    emulators.clear_journal();
    assert_eq!(call!(call_reseal), Ok(1));
    let asked: Vec<_> = emulators
        .journal()
        .into_iter()
        .filter_map(|entry| entry.grant)
        .collect();
    assert_eq!(asked, Vec::<String>::new(), "Entra ID is not asked");
    let second = call!(call_draw, bearer.clone()).unwrap();
    assert_eq!(first, second, "handed out again");

    // While the user is away a job draws with a token of its own; without its role it does not.
    let draw_for = |roles: &[&str], object: &str| {
        let job = emulators.caller().app(roles).mint();
        (job, TENANT.to_owned(), object.to_owned())
    };
    let (job, tenant, user) = draw_for(&["Behalf.Act"], USER);
    let third = call!(call_draw_for, job, tenant, user).unwrap();
    assert!(emulators.secrets().contains(&third), "Entra ID issued it");
    let (job, tenant, user) = draw_for(&["Behalf.Act"], OTHER_USER);
    let error = call!(call_draw_for, job, tenant, user).unwrap_err();
    assert_eq!(error, "not enrolled");
    let (job, tenant, user) = draw_for(&["Behalf.Read"], USER);
    let error = call!(call_draw_for, job, tenant, user).unwrap_err();
    assert!(error.contains("Behalf.Act"), "{error}");

    // Another user has no record, and a token that is none gets none.
    let other = emulators.caller().user(OTHER_USER).mint();
    assert_eq!(call!(call_draw, other).unwrap_err(), "not enrolled");
    let error = call!(call_draw, "no-jwt".to_owned()).unwrap_err();
    assert!(error.to_lowercase().contains("malformed"), "{error}");
    emulators.stop().await;
    let types = component.component_type();
    let imports = types.imports(&engine);
    imports.map(|(name, _)| name.to_owned()).collect()
}

/// Fills what `root` imports of behalf and of the configuration in with what `plug` exports.
fn compose(root: &[u8], plug: &[u8]) -> Vec<u8> {
    let mut graph = CompositionGraph::new();
    let mut add = |name: &str, bytes: &[u8]| {
        let package = Package::from_bytes(name, None, bytes, graph.types_mut()).unwrap();
        let types = graph.types_mut();
        let world = &types[package.ty()];
        let names = |items: &mut dyn Iterator<Item = &String>| items.cloned().collect::<Vec<_>>();
        let (imports, exports) = (
            names(&mut world.imports.keys()),
            names(&mut world.exports.keys()),
        );
        let id = graph.register_package(package).unwrap();
        (graph.instantiate(id), imports, exports)
    };
    let (root, imports, exports) = add("root", root);
    let (plug, _, offered) = add("plug", plug);
    for name in imports.iter().filter(|name| offered.contains(name)) {
        let export = graph.alias_instance_export(plug, name).unwrap();
        graph
            .set_instantiation_argument(root, name, export)
            .unwrap();
    }
    let is_left = |name: &&String| name.starts_with("behalf:") && !offered.contains(name);
    assert_eq!(imports.iter().find(is_left), None, "{imports:?}");
    for name in &exports {
        let export = graph.alias_instance_export(root, name).unwrap();
        graph.export(export, name).unwrap();
    }
    graph.encode(EncodeOptions::default()).unwrap()
}

/// `scripts/examples/embed-python`, made into a component.
fn python_component() -> Vec<u8> {
    peers::installed().unwrap();
    // A copy: Python writes compiled files beside its sources.
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(
        root().join("scripts/examples/embed-python/app.py"),
        folder.path().join("app.py"),
    )
    .unwrap();
    let wasm = folder.path().join("embed.wasm");
    let made = Command::new(root().join("target/peers/python/bin/componentize-py"))
        .current_dir(root())
        .args(["--quiet", "-d", "wit", "-d", "scripts/examples/wit"])
        .args(["-w", "example:embed/embed@0.1.0", "componentize", "app"])
        .arg("-p")
        .arg(folder.path())
        .arg("-o")
        .arg(&wasm)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    read(&wasm)
}

fn guest(name: &str) -> Vec<u8> {
    read(&root().join(format!("target/wasm32-wasip2/release/{name}.wasm")))
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path)
        .unwrap_or_else(|error| panic!("{}: {error}: run scripts/build", path.display()))
}

fn root() -> &'static Path {
    runtime_tests::app::root()
}

/// All that an embedder's host has to bring.
struct Host {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outbound: Outbound,
    settings: Vec<(String, String)>,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outbound,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

impl config::wasi::config::store::Host for Host {
    fn get(&mut self, name: String) -> Result<Option<String>, config::wasi::config::store::Error> {
        let found = self.settings.iter().find(|(known, _)| *known == name);
        Ok(found.map(|(_, value)| value.clone()))
    }

    fn get_all(&mut self) -> Result<Vec<(String, String)>, config::wasi::config::store::Error> {
        Ok(self.settings.clone())
    }
}

/// An HTTP client. wasmtime's own (its feature `default-send-request`) would do as well.
struct Outbound(Client<HttpConnector, WasiBody>);

type Afterwards = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Afterwards,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Afterwards), Error>> + Send> {
        let client = self.0.clone();
        Box::new(async move {
            let response = client
                .request(request)
                .await
                .map_err(|_| Error::ConnectionRefused)?;
            let response =
                response.map(|body| body.map_err(|_| Error::HttpProtocolError).boxed_unsync());
            Ok((response, Box::new(std::future::ready(Ok(()))) as Afterwards))
        })
    }
}
