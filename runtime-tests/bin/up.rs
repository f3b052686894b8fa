//! Runs the app with everything it needs, for developers; `scripts/up` builds and starts it.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use reqwest::{Method, StatusCode};
use runtime_tests::app::{self, App, StartFailure, root};
use runtime_tests::demo;
use runtime_tests::emulators::{self, Emulators, TENANT};
use runtime_tests::interrupt::interrupted;

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
    let (mut app, emulators) = tokio::select! {
        started = start(arguments) => started?,
        interrupted = interrupted() => return interrupted,
    };
    explain(&app, emulators.as_ref())?;
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
    if let Some(emulators) = emulators {
        emulators.stop().await;
    }
    Ok(())
}

async fn start(arguments: &Arguments) -> anyhow::Result<(App, Option<Emulators>)> {
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
    let mut emulators = None;
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
        options.settings = started.settings();
        emulators = Some(started);
    }
    let app = App::start(options).await.map_err(without_output)?;
    let healthy = app.send(Method::GET, "/healthz", None, None).await?;
    ensure!(
        healthy.status == StatusCode::OK,
        "GET /healthz: expected 200, seen {}",
        healthy.status
    );
    Ok((app, emulators))
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

fn explain(app: &App, emulators: Option<&Emulators>) -> anyhow::Result<()> {
    let url = app.url();
    let mut out = io::stdout().lock();
    let Some(emulators) = emulators else {
        writeln!(
            out,
            "\nbehalf serves {url} with the settings in .env. Ctrl-C ends it.\n"
        )?;
        return Ok(());
    };
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
    Ok(())
}
