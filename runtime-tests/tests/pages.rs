//! Every command in a `console` block of the pages works as it is written, on emulators, and shows what the page says. Those in `sh`
//! blocks work on a database.
//!
//! What a page cannot know is replaced, see [`Place::text`]; what cannot run inside a test, or would run this one again, is
//! in [`ELSEWHERE`] with its reason.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use runtime_tests::app::{App, behalf, is_on_spin, root};
use runtime_tests::emulators::{self, Emulators, TENANT, USER, key_name};
use runtime_tests::postgres::{self, Postgres};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

type Result = anyhow::Result<()>;

const PAGES: [&str; 3] = ["README.md", "CONTRIBUTING.md", "EMBEDDING.md"];

/// Commands that are not run here, by what they begin with, and why.
const ELSEWHERE: [(&str, &str); 7] = [
    ("scripts/build", "the first part of scripts/test"),
    ("scripts/test", "this test is a part of it"),
    ("SPIN_BIN=spin scripts/test", "this test is a part of it"),
    ("scripts/check", "the second part of scripts/test"),
    (
        "scripts/dist",
        "it takes a quarter of an hour, and runs the cases and the image itself",
    ),
    (
        "scripts/model",
        "it takes half an hour; the tests of behalf-model run its small scenarios, its ways and its wandering",
    ),
    (
        "podman ",
        "there is no engine for containers; image.rs runs the image without one",
    ),
];

/// A command of a page.
struct Written {
    page: &'static str,
    text: String,
    /// What the page shows below it.
    shown: Vec<String>,
}

impl Written {
    fn all() -> anyhow::Result<Vec<Self>> {
        let mut all: Vec<Self> = Vec::new();
        for page in PAGES {
            let text = fs::read_to_string(root().join(page))?;
            for block in text.split("```console\n").skip(1) {
                let (block, _) = block.split_once("```").context("an end")?;
                let mut lines = block.lines();
                while let Some(line) = lines.next() {
                    let Some(command) = line.strip_prefix("$ ") else {
                        let before = all.last_mut().context("a command")?;
                        before.shown.push(line.to_owned());
                        continue;
                    };
                    let mut text = command.to_owned();
                    while text.ends_with('\\') {
                        text.push('\n');
                        text.push_str(lines.next().context("a continuation")?);
                    }
                    let shown = Vec::new();
                    all.push(Self { page, text, shown });
                }
            }
        }
        Ok(all)
    }

    /// Those of `sh` blocks, a line each.
    fn plain() -> anyhow::Result<Vec<Self>> {
        let mut all = Vec::new();
        for page in PAGES {
            let text = fs::read_to_string(root().join(page))?;
            for block in text.split("```sh\n").skip(1) {
                let (block, _) = block.split_once("```").context("an end")?;
                all.extend(block.lines().map(|line| Self {
                    page,
                    text: line.to_owned(),
                    shown: Vec::new(),
                }));
            }
        }
        Ok(all)
    }

    /// Whether it goes on until it is told to stop.
    fn serves(&self) -> bool {
        let up = ["behalf up", "spin up", "scripts/up"];
        up.iter().any(|it| self.text.contains(it)) && !self.text.contains("--demo")
    }

    fn is_elsewhere(&self) -> bool {
        ELSEWHERE.iter().any(|(it, _)| self.text.starts_with(it))
    }
}

#[test]
fn what_is_run_elsewhere_is_in_a_page() -> Result {
    let all = Written::all()?;
    for (begin, _) in ELSEWHERE {
        let found = all.iter().any(|it| it.text.starts_with(begin));
        assert!(found, "no page has {begin}");
        let script = begin.split(' ').next_back().unwrap();
        if script.starts_with("scripts/") {
            let mode = fs::metadata(root().join(script))?.permissions().mode();
            assert!(mode & 0o111 != 0, "{script} cannot be run");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_pages_serve_and_ask_works() -> Result {
    let place = Place::new().await?;
    let all = Written::all()?;
    let production = all.iter().find(|it| it.text.contains("behalf up"));
    let production = production.context("README runs behalf")?;
    let app = place.serve(production, &place.url).await?;
    for written in &all {
        let is_cargos = written.text.starts_with("cargo ");
        if written.is_elsewhere() || is_cargos || std::ptr::eq(written, production) {
            continue;
        }
        let context = || format!("{}: {}", written.page, written.text);
        if written.serves() {
            let another = free_url()?;
            let served = place.serve(written, &another).await;
            served.with_context(context)?;
        } else {
            // What a sweep has not seen, nobody knows.
            let key = &place.emulators.options().sweep_key;
            let swept = app.send(Method::POST, "/v1/sweep", Some(key), None).await?;
            ensure!(swept.status == StatusCode::OK, "{swept:?}");
            let said = place.run(written).await.with_context(context)?;
            place.is_as_shown(written, &said).with_context(context)?;
        }
    }
    assert_eq!(
        app.send(Method::GET, "/readyz", None, None).await?.status,
        StatusCode::OK
    );
    Ok(())
}

/// Tables are made, and whoever is enrolled moves there and back.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_pages_do_with_a_database_works() -> Result {
    if is_on_spin() {
        // What Spin keeps in its file is not our host's to copy while it may run.
        return Ok(());
    }
    let place = Place::new().await?;
    let inside = |name: &str| place.folder.path().join(name);
    let all = Written::all()?;
    let production = all.iter().find(|it| it.text.contains("behalf up"));
    let production = production.context("README runs behalf")?;
    let user = place.emulators.caller().mint();
    let app = place.serve(production, &place.url).await?;
    let enrolled = app.send(Method::PUT, "/v1/me", Some(&user), None).await?;
    ensure!(enrolled.status == StatusCode::CREATED, "{enrolled:?}");
    app.stop().await?;

    let postgres = Postgres::start()?;
    postgres.create_database("behalf")?;
    fs::write(inside("owner.txt"), postgres::PASSWORD)?;
    fs::write(inside("app.txt"), "a password of the app")?;
    let address = format!("host={} port={} ", postgres.host(), postgres.port());
    let owner = format!("user={} ", postgres::SUPERUSER);
    let host = format!("{} ", behalf()?.display());
    let mut done = Vec::new();
    for mut written in Written::plain()? {
        for (page, here) in [
            ("behalf ", &*host),
            ("host=db.example ", &address),
            ("user=owner ", &owner),
            ("sslmode=require", "sslmode=disable"),
        ] {
            // Of the command's name the first alone.
            let times = if page == "behalf " { 1 } else { 9 };
            written.text = written.text.replacen(page, here, times);
        }
        let context = || written.text.clone();
        let said = place.run(&written).await.with_context(context)?;
        if written.text.contains("schema print") {
            ensure!(said.contains("CREATE TABLE"), "{said}");
        } else if written.text.contains("schema apply") {
            let change = "ALTER ROLE behalf_app LOGIN PASSWORD 'a password of the app'";
            postgres.sql("behalf", change)?;
        } else if written.text.contains("--to postgres") {
            // From here on the database alone has the user.
            fs::rename(inside(".spin"), inside("before"))?;
            fs::create_dir(inside(".spin"))?;
        }
        let words = written.text.trim_start_matches(&*host);
        let words = words.split(' ').filter(|it| !it.is_empty());
        done.push(words.take(4).collect::<Vec<_>>().join(" "));
    }
    let expected = [
        "schema apply --role behalf_app",
        "schema print --role behalf_app",
        "ledger copy --to postgres",
        "ledger copy --to key-value",
    ];
    ensure!(done == expected, "{done:?}");
    let app = place.serve(production, &place.url).await?;
    let shown = app.send(Method::GET, "/v1/me", Some(&user), None).await?;
    ensure!(shown.status == StatusCode::OK, "{shown:?}");
    app.stop().await?;
    Ok(())
}

/// Each line that `scripts/up` prints for pasting, one after another.
#[tokio::test(flavor = "multi_thread")]
async fn what_scripts_up_prints_works_when_pasted() -> Result {
    let folder = tempfile::tempdir()?;
    let mut up = Command::new(env!("CARGO_BIN_EXE_up"));
    up.args(["--emulators", "--port", &free_ports()?.to_string()]);
    let app = App::run(up, folder.path()).await?;
    // The last thing that it prints.
    let last = format!("curl -X DELETE {}/v1/me ", app.url());
    app.wait_for_output_after(0, &last).await?;
    let output = app.output();
    let printed = output
        .iter()
        .filter_map(|line| line.strip_prefix("  curl "));
    let mut pasted = 0;
    for command in printed {
        let mut shell = Command::new("bash");
        shell.arg("-c");
        shell.arg(format!("curl -sS --fail-with-body {command}"));
        let output = shell.output().await?;
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command}:\n{said}\n{errors}");
        pasted += 1;
    }
    for role in ["job", "admin"] {
        let is_there = output.iter().any(|line| line.contains(role));
        ensure!(is_there, "nothing to paste for the {role}");
    }
    ensure!(pasted >= 10, "only {pasted} commands were printed");
    app.stop().await?;
    Ok(())
}

/// The file `.env` that README has names all that the app cannot do without.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_settings_in_the_page_is_enough() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let page = fs::read_to_string(root().join("README.md"))?;
    let (_, block) = page.split_once("```dotenv\n").context("a file .env")?;
    let (block, _) = block.split_once("```").context("its end")?;
    let check = async |file: &str| {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join(".env"), file)?;
        let mut check = Command::new(behalf()?);
        check.args(["check", "--cache-dir", "", "-f"]);
        check.arg(root().join("spin.toml"));
        check.env_clear().current_dir(folder.path());
        let output = check.output().await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::Ok((output.status.code(), said))
    };
    let mut file = block.to_owned();
    for (name, value) in emulators.settings() {
        let name = format!("SPIN_VARIABLE_{}=", name.to_uppercase());
        file = file.replace(&format!("{name}…"), &format!("{name}{value}"));
    }
    ensure!(!file.contains('…'), "{file}");
    let (code, said) = check(&file).await?;
    ensure!(code == Some(0), "{said}");
    let (_, without_first) = file.split_once('\n').context("several lines")?;
    let (code, said) = check(without_first).await?;
    ensure!(
        code == Some(2) && said.contains("SPIN_VARIABLE_CLIENT_ID"),
        "{said}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn single_tests_run_as_the_pages_say() -> Result {
    let place = Place::new().await?;
    let all = Written::all()?;
    let tests = all.iter().filter(|it| it.text.starts_with("cargo test"));
    let mut ran = 0;
    for written in tests {
        let said = place.run(written).await?;
        let passed = said.matches("... ok").count();
        // A name that no test has succeeds, too.
        ensure!(passed > 0, "{} runs no test:\n{said}", written.text);
        ran += 1;
    }
    ensure!(ran > 0, "the pages run no test");
    Ok(())
}

/// Where commands are run.
struct Place {
    emulators: Emulators,
    /// Has what an unpacked source has of the things that commands name.
    folder: TempDir,
    url: String,
}

impl Place {
    async fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let inside = |name: &str| folder.path().join(name);
        fs::copy(root().join("spin.toml"), inside("spin.toml"))?;
        symlink(root().join("target"), inside("target"))?;
        Ok(Self {
            emulators: Emulators::start(emulators::Options::default()).await?,
            folder,
            url: free_url()?,
        })
    }

    /// The command with what stands in the place of what the page cannot know.
    fn text(&self, written: &Written) -> anyhow::Result<String> {
        let host = behalf()?.display().to_string();
        let spin = std::env::var("SPIN_BIN").unwrap_or_else(|_| host.clone());
        let up = env!("CARGO_BIN_EXE_up");
        let mut text = written.text.clone();
        for (name, value) in self.emulators.settings() {
            let name = format!("SPIN_VARIABLE_{}=", name.to_uppercase());
            text = text.replace(&format!("{name}…"), &format!("{name}'{value}'"));
        }
        ensure!(!text.contains('…'), "{text}: what is it?");
        for (page, here) in [
            // The host that all tests run, which this test can end.
            (
                "target/release/behalf up",
                format!("{host} up --exit-on-stdin-close --lame-duck 0s"),
            ),
            ("target/release/behalf", host.clone()),
            // Both read the same manifest and these arguments.
            ("spin up", format!("{spin} up")),
            // It builds first, which was done.
            ("scripts/up --demo", format!("{up} --demo")),
            (
                "scripts/up ",
                format!("{up} --emulators --port {} ", free_ports()?),
            ),
            (
                "scripts/manifest",
                root().join("scripts/manifest").display().to_string(),
            ),
            ("http://127.0.0.1:3000", self.url.clone()),
            ("<tid>", TENANT.to_owned()),
        ] {
            text = text.replace(page, &here);
        }
        Ok(text)
    }

    fn command(&self, written: &Written, url: &str) -> anyhow::Result<Command> {
        let mut command = Command::new("bash");
        command.arg("-c").arg(self.text(written)?);
        let of_cargo = written.text.starts_with("cargo ");
        command.current_dir(if of_cargo { root() } else { self.folder.path() });
        let job = self.emulators.caller().app(&["Behalf.Act"]).mint();
        command
            .env("TOKEN", self.emulators.caller().mint())
            .env("JOB_TOKEN", job)
            .env("TENANT_ID", TENANT)
            .env("USER_ID", USER)
            .env("BEHALF_APP", &self.url)
            .env_remove("RUNTIME_CONFIG_FILE")
            .env("SPIN_HTTP_LISTEN_ADDR", url.trim_start_matches("http://"))
            .env("SPIN_VARIABLE_SWEEP_ORIGIN", url)
            .env("SPIN_VARIABLE_SWEEP_URL", format!("{url}/v1/sweep"))
            .kill_on_drop(true);
        // What the cargo of this test has set is none of a shell's, and would build dependencies anew.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CARGO_") && !["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&&*name) {
                command.env_remove(name);
            }
        }
        if !of_cargo {
            for (name, value) in self.emulators.settings() {
                command.env(format!("SPIN_VARIABLE_{}", name.to_uppercase()), value);
            }
            command.env("SPIN_VARIABLE_OPERATOR_TENANT", TENANT);
        }
        Ok(command)
    }

    /// Runs a command until it serves, and asks it.
    async fn serve(&self, written: &Written, url: &str) -> anyhow::Result<App> {
        let command = self.command(written, url)?;
        let app = App::run(command, &self.folder.path().join(".spin")).await?;
        let answer = app.send(Method::GET, "/readyz", None, None).await?;
        ensure!(answer.status == StatusCode::OK, "{answer:?}");
        Ok(app)
    }

    /// Runs a command that ends, and has to succeed.
    async fn run(&self, written: &Written) -> anyhow::Result<String> {
        let output = self.command(written, &self.url)?.output().await?;
        let said = String::from_utf8(output.stdout)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}\n{errors}");
        Ok(said)
    }

    /// Whether what a command said has the members that the page shows, or did what it is for.
    fn is_as_shown(&self, written: &Written, said: &str) -> Result {
        for shown in &written.shown {
            let (shown, said) = (members(shown)?, members(said)?);
            ensure!(
                shown == said,
                "the page shows {shown:?}, and there are {said:?}"
            );
        }
        if written.text.contains("key rotate <tid>") {
            let newest = self.emulators.newest_version(&key_name(TENANT));
            let id = newest.context("a key")?["id"].clone();
            let version = id.as_str().and_then(|id| id.rsplit('/').next());
            let version = version.context("a version")?;
            ensure!(said.contains(version), "{version} is not in {said}");
        }
        let words: Vec<_> = written.text.split(' ').collect();
        let is = |command: &[&str]| words.get(1..).is_some_and(|it| it.starts_with(command));
        let name = key_name(TENANT);
        if is(&["tenant", "remove"]) {
            let is_meant = words.contains(&"--yes");
            ensure!(said.contains(&name), "{said}");
            ensure!(self.emulators.newest_version(&name).is_none() == is_meant);
        }
        Ok(())
    }
}

fn members(json: &str) -> anyhow::Result<BTreeSet<String>> {
    let json: Value = serde_json::from_str(json).with_context(|| json.to_owned())?;
    let object = json.as_object().context("an object")?;
    Ok(object.keys().cloned().collect())
}

/// An address that nobody listens on.
fn free_url() -> anyhow::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(format!("http://{}", listener.local_addr()?))
}

/// The first of five ports in a row that nobody listens on.
fn free_ports() -> anyhow::Result<u16> {
    for _ in 0..10_000 {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = first.local_addr()?.port();
        let others = (1..5).map(|it| {
            let next = port.checked_add(it)?;
            TcpListener::bind((Ipv4Addr::LOCALHOST, next)).ok()
        });
        if others.collect::<Vec<_>>().iter().all(Option::is_some) {
            return Ok(port);
        }
    }
    anyhow::bail!("there are no five free ports in a row")
}
