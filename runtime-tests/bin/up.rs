//! Runs the app with everything it needs, for developers; `scripts/up` builds and starts it.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use reqwest::{Method, StatusCode};
use runtime_tests::app::{self, App, StartFailure, behalf, is_on_spin, root};
use runtime_tests::demo;
use runtime_tests::emulators::{self, Emulators, OTHER_TENANT, Proxy, TENANT};
use runtime_tests::interrupt::interrupted;
use tempfile::TempDir;

/// Runs behalf on 127.0.0.1 with emulators of Entra ID, Azure Key Vault and a downstream API.
///
/// With a file `.env` in the project's root it runs against the real Entra ID and Key Vault that the file names, without
/// emulators.
#[derive(Parser)]
#[command(bin_name = "scripts/up", after_help = EXAMPLES)]
struct Arguments {
    /// Walk through one token's whole life, one line a step, and exit.
    #[arg(long, conflicts_with_all = ["port", "state_dir", "emulators"])]
    demo: bool,

    /// Port of the app; the emulators take the next four.
    #[arg(long, default_value_t = 3000, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65531))]
    port: u16,

    /// Where the app keeps its data. Default: a temporary folder, removed at the end; with `.env`, `.spin`.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Use the emulators although there is a `.env`.
    #[arg(long)]
    emulators: bool,
}

const EXAMPLES: &str = "\
Examples:
  scripts/up                   serve on port 3000 and print commands to paste; Ctrl-C ends it
  scripts/up --demo            walk through one token's life; exit code 0 if every step holds
  scripts/up --port 4000       serve on ports 4000 to 4004
  SPIN_BIN=spin scripts/up     run the app on Spin instead of the embedded host";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = if arguments.demo {
        tell().await
    } else {
        serve(&arguments).await
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn tell() -> anyhow::Result<()> {
    let mut out = io::stdout();
    // Dropping the story kills the app.
    tokio::select! {
        told = demo::run(&mut out) => told,
        _ = interrupted() => bail!("interrupted"),
    }
}

async fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let (mut app, world) = tokio::select! {
        started = start(arguments) => started?,
        interrupted = interrupted() => return interrupted,
    };
    explain(&app, world.as_ref())?;
    let ended = tokio::select! {
        status = app.ended() => Some(status?),
        interrupted = interrupted() => { interrupted?; None }
    };
    if let Some(status) = ended {
        let output = app.output();
        let last = output
            .get(output.len().saturating_sub(10)..)
            .unwrap_or_default();
        bail!(
            "the app ended with {status}; its last lines:\n{}",
            last.join("\n")
        );
    }
    app.stop().await?;
    if let Some(world) = world {
        world.emulators.stop().await;
    }
    Ok(())
}

/// What the app runs in, without Azure.
struct World {
    emulators: Emulators,
    /// The emulators by their real names: Microsoft Graph has no setting.
    proxy: Proxy,
    /// With what OPERATIONS.md has in its folders `SECRETS`, `STATE` and `BACKUPS`.
    folder: TempDir,
    state_dir: PathBuf,
    settings: Vec<(String, String)>,
}

impl World {
    /// The options by which the app reads its secrets from files.
    fn files(&self) -> Vec<String> {
        let names = [
            "client_secret",
            "pseudonym_key",
            "sweep_key",
            "sweep_key_previous",
        ];
        let secrets = self.folder.path().join("secrets");
        let option = |name| {
            [
                "--variable-file".to_owned(),
                format!("{name}={}", secrets.join(name).display()),
            ]
        };
        names.into_iter().flat_map(option).collect()
    }

    async fn of(emulators: Emulators, state_dir: Option<&Path>) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("behalf-").tempdir()?;
        let inside = |name: &str| folder.path().join(name);
        for name in ["secrets", "state", "backups"] {
            std::fs::create_dir(inside(name))?;
        }
        let options = emulators.options();
        let pseudonym_key = emulators::Options::default().sweep_key;
        let header = format!("Authorization: Bearer {}\n", options.sweep_key);
        for (name, value) in [
            ("client_secret", &options.client_secret),
            ("operator_secret", &options.operator_secret),
            ("pseudonym_key", &pseudonym_key),
            ("sweep_key", &options.sweep_key),
            ("sweep_key_previous", &String::new()),
            ("sweep.header", &header),
        ] {
            std::fs::write(inside("secrets").join(name), value)?;
        }
        let proxy = emulators.proxy().await?;
        proxy.write_authority(&inside("authority.pem"))?;
        let mut settings = emulators.settings();
        settings.push(("operator_tenant".to_owned(), TENANT.to_owned()));
        if !is_on_spin() {
            settings.retain(|(name, _)| !["client_secret", "sweep_key"].contains(&&**name));
        }
        let state_dir = state_dir.map_or_else(|| inside("state"), Path::to_owned);
        Ok(Self {
            state_dir: std::path::absolute(state_dir)?,
            emulators,
            proxy,
            folder,
            settings,
        })
    }
}

async fn start(arguments: &Arguments) -> anyhow::Result<(App, Option<World>)> {
    let real = !arguments.emulators && root().join(".env").is_file();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port));
    free(listen)?;
    let mut options = app::Options {
        listen,
        state_dir: arguments.state_dir.clone(),
        environment: real,
        // The cron plugin may not be there.
        cron: std::env::var_os("SPIN_BIN").is_none(),
        echo: true,
        ..app::Options::default()
    };
    let mut world = None;
    if real {
        // Spin's own folder, so that enrolments outlive a restart.
        options
            .state_dir
            .get_or_insert_with(|| root().join(".spin"));
    } else {
        let [control_port, entra_port, key_vault_port, downstream_port] =
            [1, 2, 3, 4].map(|next| arguments.port.saturating_add(next));
        let ports = emulators::Options {
            control_port,
            entra_port,
            key_vault_port,
            downstream_port,
            provokes_loop: true,
            ..emulators::Options::default()
        };
        let started = Emulators::start(ports)
            .await
            .context("choose other ports with --port")?;
        let made = World::of(started, arguments.state_dir.as_deref()).await?;
        options.settings.clone_from(&made.settings);
        options.state_dir = Some(made.state_dir.clone());
        // Spin has no such option.
        if !is_on_spin() {
            options.arguments = made.files();
        }
        world = Some(made);
    }
    let app = App::start(options).await.map_err(without_output)?;
    let healthy = app.send(Method::GET, "/healthz", None, None).await?;
    ensure!(
        healthy.status == StatusCode::OK,
        "GET /healthz: expected 200, seen {}",
        healthy.status
    );
    Ok((app, world))
}

fn free(address: SocketAddr) -> anyhow::Result<()> {
    TcpListener::bind(address)
        .with_context(|| format!("{address} is in use: choose another port with --port"))?;
    Ok(())
}

/// The app's output was shown while it ran.
fn without_output(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<StartFailure>() {
        Some(StartFailure {
            code: Some(code), ..
        }) => anyhow::anyhow!("the app did not start (exit code {code})"),
        _ => error,
    }
}

fn explain(app: &App, world: Option<&World>) -> anyhow::Result<()> {
    let url = app.url();
    let mut out = io::stdout().lock();
    let Some(world) = world else {
        writeln!(
            out,
            "\nbehalf serves {url} with the settings in .env. Ctrl-C ends it.\n"
        )?;
        return Ok(());
    };
    let emulators = &world.emulators;
    let control = emulators.control_url();
    let user = format!(r#"-H "$(curl -s {control}/demo/authorization)""#);
    let [job, admin] = ["job", "admin"]
        .map(|who| format!(r#"-H "$(curl -s {control}/demo/{who}-authorization)""#));
    let demo_user = format!("{url}/v1/users/{TENANT}/{}", emulators.options().demo_user);
    let token = r#"sed 's/.*"access_token":"\([^"]*\)".*/\1/'"#;
    writeln!(
        out,
        r#"
behalf serves {url}, with emulators of Entra ID ({}), Key Vault ({})
and a downstream API ({}). Paste these into another terminal; Ctrl-C here ends it all.

Enrol the demo user, show the record:
  curl -X PUT {url}/v1/me {user}
  curl -X GET {url}/v1/me {user}

Draw an access token, and call the downstream API with one:
  curl -X POST {url}/v1/me/access-token {user}
  curl {}/v1.0/me -H "Authorization: Bearer $(curl -s -X POST {url}/v1/me/access-token {user} | {token})"

Call the downstream API through the vault: nobody but the API has the access token.
  curl {url}/v1/me/call/graph/v1.0/me/calendar/events {user}

Draw and call for the user who is away, as a background job with the role Behalf.Act and a grant:
  curl -X POST {demo_user}/access-token {job}
  curl {demo_user}/call/graph/v1.0/me/calendar/events {job}

Rotate the tenant's key, sweep, see what reached the emulators:
  curl -X POST {control}/tenants/{TENANT}/rotate-key
  curl -X POST {url}/v1/sweep -H "$(curl -s {control}/demo/sweep-authorization)"
  curl {control}/journal

See the user and remove them, as an operator with the role Behalf.Admin:
  curl -X GET {demo_user} {admin}
  curl -X DELETE {demo_user} {admin}

Remove the user, as the user:
  curl -X DELETE {url}/v1/me {user}
"#,
        emulators.authority(),
        emulators.key_vault_url(),
        emulators.downstream_url(),
        emulators.downstream_url(),
    )?;
    let exports = write_exports(app, world)?;
    writeln!(
        out,
        "Walk through OPERATIONS.md from its step 6 on (step 7 is done), in a terminal of its own:\n  . '{}'",
        exports.display()
    )?;
    Ok(())
}

/// A file for a shell to read, for nobody but this user: it may hold secrets.
fn write_exports(app: &App, world: &World) -> anyhow::Result<PathBuf> {
    let path = world.folder.path().join("operations.env");
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    for export in exports(app, world)? {
        writeln!(file, "export {export}")?;
    }
    Ok(path)
}

/// The variables of OPERATIONS.md, as its steps 1 to 5 would have set them.
fn exports(app: &App, world: &World) -> anyhow::Result<Vec<String>> {
    let World {
        emulators, folder, ..
    } = world;
    let options = emulators.options();
    let inside = |name: &str| folder.path().join(name).display().to_string();
    let program = behalf()?;
    let programs = program.parent().context("a folder")?.display();
    let (client, operator) = (&options.client_id, &options.operator_id);
    let operator = format!(
        "--variable client_id={operator} --variable-file client_secret={} --audience api://{client} --ca {}",
        inside("secrets/operator_secret"),
        inside("authority.pem"),
    );
    let mut exports = vec![format!(
        "PATH='{}':'{programs}':\"$PATH\"",
        root().join("runtime-tests/emulators").display()
    )];
    let variables = [
        ("BEHALF_EMULATORS", emulators.control_url()),
        ("BEHALF_APP", app.url()),
        ("TENANT_ID", TENANT.to_owned()),
        ("CLIENT_ID", client.clone()),
        ("OPERATOR_ID", options.operator_id.clone()),
        ("VAULT_URL", emulators.key_vault_url()),
        ("GONE", OTHER_TENANT.to_owned()),
        ("SECRETS", inside("secrets")),
        ("BACKUPS", inside("backups")),
        ("STATE", world.state_dir.display().to_string()),
        ("FILES", world.files().join(" ")),
        ("OPERATOR", operator),
        ("HTTPS_PROXY", world.proxy.url()),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value));
    let settings = world.settings.iter().map(|(name, value)| {
        (
            format!("SPIN_VARIABLE_{}", name.to_uppercase()),
            value.clone(),
        )
    });
    let line =
        |(name, value): (String, String)| format!("{name}='{}'", value.replace('\'', r"'\''"));
    exports.extend(variables.into_iter().chain(settings).map(line));
    Ok(exports)
}
