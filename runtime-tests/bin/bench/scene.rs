//! What is measured: services on the same emulators, asked in turn.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use reqwest::Method;
use runtime_tests::app::{App, Options, is_on_spin, root};
use runtime_tests::debian;
use runtime_tests::emulators::{self, Emulators};
use runtime_tests::peer::Peer;
use runtime_tests::redis::Redis;
use tempfile::TempDir;

use crate::Plan;
use crate::cost::{Processors, memory};
use crate::load::{self, Request, Sample};
use crate::scale::{self, Scale};

/// Users who draw in turn: more than one, so that nothing is measured that is right for one alone.
pub(crate) const USERS: u32 = 64;

/// A row: a name, and what was measured over each number of connections, once a round.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) samples: Vec<(u32, Vec<Sample>)>,
}

/// How long instances live, and what it costs.
pub(crate) struct Lives {
    pub(crate) name: &'static str,
    pub(crate) sample: Sample,
    /// Requests to Entra ID and Key Vault per 1,000 draws.
    pub(crate) upstream: f64,
}

/// Everything that was measured.
pub(crate) struct Results {
    pub(crate) processors: &'static str,
    pub(crate) rows: Vec<Row>,
    /// The same on Spin; empty without `$SPIN_BIN`.
    pub(crate) on_spin: Vec<Row>,
    /// Memory after the load, in MiB.
    pub(crate) memory: Vec<(&'static str, f64)>,
    pub(crate) lives: Vec<Lives>,
    /// A name and milliseconds: from a request that finds no instance to its answer.
    pub(crate) new_instance: Vec<(&'static str, f64)>,
    /// A name and milliseconds: from the start of the process to the first answer.
    pub(crate) start: Vec<(&'static str, f64)>,
    /// A ledger in PostgreSQL, with few users and with many.
    pub(crate) scale: Scale,
}

/// The names of the rows that others are compared with.
pub(crate) const CEILING: &str = "hello through a dependency, two reads: the ceiling";
pub(crate) const CACHED: &str = "behalf: a cached draw";
pub(crate) const PEER: &str = "Node: a cached draw";
pub(crate) const BEHALF: &str = "behalf";
pub(crate) const NODE: &str = "Node";

/// Measures all of it.
pub(crate) async fn measure(plan: &Plan) -> anyhow::Result<Results> {
    let bench = Bench::start().await?;
    let (rows, memory) = bench.rows(plan, false).await?;
    let on_spin = if is_on_spin() {
        bench.rows(plan, true).await?.0
    } else {
        eprintln!("SKIPPED: the same on Spin (set SPIN_BIN to a Spin of at least 4.1)");
        Vec::new()
    };
    Ok(Results {
        processors: bench.processors.describe(),
        rows,
        on_spin,
        memory,
        lives: bench.lives(plan).await?,
        new_instance: bench.new_instances(plan).await?,
        start: bench.starts(plan).await?,
        scale: scale::measure(&plan.scale, &bench.wrk, &bench.processors).await?,
    })
}

/// Measures only what [`crate::scale`] does.
pub(crate) async fn ledgers(plan: &Plan) -> anyhow::Result<Scale> {
    let wrk = debian::program("wrk", "wrk")?;
    scale::measure(&plan.scale, &wrk, &Processors::divide()?).await
}

struct Bench {
    wrk: PathBuf,
    processors: Processors,
    emulators: Emulators,
    tokens: Vec<String>,
    folder: TempDir,
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        let wrk = debian::program("wrk", "wrk")?;
        let processors = Processors::divide()?;
        let emulators = Emulators::start(emulators::Options::default()).await?;
        // Draws that are not cached are to be answered all the same.
        emulators.refuse_loops(false);
        let tokens: Vec<_> = (0..USERS)
            .map(|n| {
                let user = format!("00000000-0000-4000-8000-{n:012x}");
                emulators.caller().user(&user).mint()
            })
            .collect();
        let folder = tempfile::Builder::new().prefix("behalf-bench-").tempdir()?;
        fs::write(folder.path().join("tokens"), tokens.join("\n"))?;
        Ok(Self {
            wrk,
            processors,
            emulators,
            tokens,
            folder,
        })
    }

    /// Every row in turn, and the memory of what served them.
    async fn rows(
        &self,
        plan: &Plan,
        spin: bool,
    ) -> anyhow::Result<(Vec<Row>, Vec<(&'static str, f64)>)> {
        let ceiling = root().join("runtime-tests/ceiling");
        let hello = self
            .app(&ceiling.join("hello.toml"), spin, Options::long_lived)
            .await?;
        let through = self
            .app(&ceiling.join("through.toml"), spin, Options::long_lived)
            .await?;
        ask(&through, Method::GET, "/fill", None).await?;
        let behalf = self.behalf(spin, Options::long_lived).await?;
        let uncached = self
            .behalf(spin, |options| {
                options.long_lived().set("access_token_cache_seconds", "0")
            })
            .await?;
        // On the processor for services, and its store is not, as if that were another machine.
        let redis = Redis::start()?;
        let peer = Peer::start(&self.emulators, &redis, 1);
        let peer = self.processors.for_service(peer).await?;
        self.enrol(&peer.app).await?;
        let rows = [
            ("hello", &hello, "GET", "/", false),
            (
                "hello through a dependency",
                &through,
                "GET",
                "/call",
                false,
            ),
            (CEILING, &through, "GET", "/reads", false),
            ("behalf: GET /healthz", &behalf, "GET", "/healthz", false),
            ("behalf: GET /v1/me", &behalf, "GET", "/v1/me", true),
            (CACHED, &behalf, "POST", "/v1/me/access-token", true),
            (
                "behalf: an uncached draw",
                &uncached,
                "POST",
                "/v1/me/access-token",
                true,
            ),
            (PEER, &peer.app, "POST", "/v1/me/access-token", true),
        ];
        let mut rows: Vec<_> = rows
            .into_iter()
            .map(|(name, app, method, path, token)| {
                (name, app, self.request(&app.url(), method, path, token))
            })
            .collect();
        let call = self.request(&behalf.url(), "GET", "/v1/me/call/graph/v1.0/me", true);
        rows.push(("behalf: a small call of an API", &behalf, call));
        // Which costs behalf nothing.
        let directly = self.directly(&behalf).await?;
        rows.push(("the same call, made directly", &behalf, directly));
        let samples = in_turn(plan, &rows).await?;
        let memory = vec![(BEHALF, memory(&behalf)?), (NODE, memory(&peer.app)?)];
        for app in [hello, through, behalf, uncached, peer.app] {
            app.stop().await?;
        }
        Ok((samples, memory))
    }

    /// The same draws with instances that live for a short and for a long time.
    async fn lives(&self, plan: &Plan) -> anyhow::Result<Vec<Lives>> {
        let mut lives = Vec::new();
        let as_on_spin = self.behalf(false, |options| options).await?;
        let long = self.behalf(false, Options::long_lived).await?;
        for (name, app) in [
            ("128 requests, 1 s idle (Spin's defaults)", as_on_spin),
            ("10,000 requests, 10 min idle (behalf's host)", long),
        ] {
            let request = self.request(&app.url(), "POST", "/v1/me/access-token", true);
            load::run(&request, &app, 16, plan.warm_up).await?;
            self.emulators.clear_journal();
            let sample = load::run(&request, &app, 16, plan.time).await?;
            #[allow(clippy::cast_precision_loss, reason = "counts of requests")]
            let upstream = self.emulators.journal().len() as f64 * 1000.0 / sample.requests as f64;
            lives.push(Lives {
                name,
                sample,
                upstream,
            });
            app.stop().await?;
        }
        Ok(lives)
    }

    /// How long it takes if each request finds no instance.
    async fn new_instances(&self, plan: &Plan) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let once = |options: Options| options.arguments(&["--max-instance-reuse-count", "1"]);
        let manifest = root().join("runtime-tests/ceiling/hello.toml");
        let hello = self.app(&manifest, false, once).await?;
        let behalf = self.behalf(false, once).await?;
        let mut found = Vec::new();
        for (name, app, method, path, token) in [
            ("hello", &hello, "GET", "/", false),
            ("behalf: GET /healthz", &behalf, "GET", "/healthz", false),
            ("behalf: GET /v1/me", &behalf, "GET", "/v1/me", true),
            (
                "behalf: a draw",
                &behalf,
                "POST",
                "/v1/me/access-token",
                true,
            ),
        ] {
            let request = self.request(&app.url(), method, path, token);
            let sample = load::run(&request, app, 1, plan.time).await?;
            found.push((name, sample.p50 / 1000.0));
        }
        hello.stop().await?;
        behalf.stop().await?;
        Ok(found)
    }

    /// How long it takes from the start of the process to its first answer.
    async fn starts(&self, plan: &Plan) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let mut found = Vec::new();
        for (name, arguments) in [
            ("components compiled before", &[][..]),
            ("components to be compiled", &["--cache-dir", ""][..]),
        ] {
            let mut times = Vec::new();
            for _ in 0..plan.rounds {
                let begun = Instant::now();
                let options = Options::for_emulators(&self.emulators).arguments(arguments);
                let app = self.started(options, false).await?;
                ask(&app, Method::GET, "/healthz", None).await?;
                times.push(begun.elapsed().as_secs_f64() * 1000.0);
                app.stop().await?;
            }
            found.push((name, crate::report::median(&times)));
        }
        Ok(found)
    }

    /// The app as it is run for the bench, with every user enrolled.
    async fn behalf(
        &self,
        spin: bool,
        adjust: impl FnOnce(Options) -> Options,
    ) -> anyhow::Result<App> {
        let options = adjust(Options::for_emulators(&self.emulators));
        let app = self.started(options, spin).await?;
        self.enrol(&app).await?;
        Ok(app)
    }

    async fn enrol(&self, app: &App) -> anyhow::Result<()> {
        for token in &self.tokens {
            ask(app, Method::PUT, "/v1/me", Some(token)).await?;
        }
        Ok(())
    }

    async fn app(
        &self,
        manifest: &Path,
        spin: bool,
        adjust: impl FnOnce(Options) -> Options,
    ) -> anyhow::Result<App> {
        let options = Options {
            manifest: Some(manifest.to_owned()),
            ..Options::default()
        };
        self.started(adjust(options), spin).await
    }

    /// Starts a service on the processor for services.
    async fn started(&self, options: Options, spin: bool) -> anyhow::Result<App> {
        if spin {
            return self.processors.for_service(App::start(options)).await;
        }
        self.processors.start(options).await
    }

    /// The call that behalf makes, by whoever has drawn the access tokens.
    async fn directly(&self, behalf: &App) -> anyhow::Result<Request> {
        let mut drawn = Vec::new();
        for token in &self.tokens {
            let answer = behalf
                .send(Method::POST, "/v1/me/access-token", Some(token), None)
                .await?;
            let access_token = answer.json["access_token"].as_str();
            drawn.push(access_token.context("no access token")?.to_owned());
        }
        let tokens = self.folder.path().join("access-tokens");
        fs::write(&tokens, drawn.join("\n"))?;
        Ok(Request {
            wrk: self.wrk.clone(),
            url: format!("{}/v1.0/me", self.emulators.downstream_url()),
            method: "GET",
            tokens: Some(tokens),
        })
    }

    fn request(&self, origin: &str, method: &'static str, path: &str, token: bool) -> Request {
        let tokens: PathBuf = self.folder.path().join("tokens");
        Request {
            wrk: self.wrk.clone(),
            url: format!("{origin}{path}"),
            method,
            tokens: token.then_some(tokens),
        }
    }
}

/// Measures each row once a round and number of connections, one after the other.
async fn in_turn(plan: &Plan, rows: &[(&'static str, &App, Request)]) -> anyhow::Result<Vec<Row>> {
    let mut found: Vec<_> = rows
        .iter()
        .map(|(name, ..)| Row {
            name,
            samples: plan
                .connections
                .iter()
                .map(|&it| (it, Vec::new()))
                .collect(),
        })
        .collect();
    let most = plan.connections.iter().copied().max().unwrap_or(1);
    for (name, service, request) in rows {
        eprintln!("warming up: {name}");
        load::run(request, service, most, plan.warm_up).await?;
    }
    for round in 1..=plan.rounds {
        for (at, &connections) in plan.connections.iter().enumerate() {
            eprintln!(
                "round {round} of {}, connections: {connections}",
                plan.rounds
            );
            for ((name, service, request), row) in rows.iter().zip(&mut found) {
                let sample = load::run(request, service, connections, plan.time)
                    .await
                    .with_context(|| format!("{name}, {connections} connections"))?;
                row.samples[at].1.push(sample);
            }
        }
    }
    Ok(found)
}

async fn ask(app: &App, method: Method, path: &str, bearer: Option<&str>) -> anyhow::Result<()> {
    let answer = app.send(method, path, bearer, None).await?;
    ensure!(answer.status.is_success(), "{path}: {answer:?}");
    Ok(())
}
