//! Where the commands of OPERATIONS.md are run: a folder, the emulators, a stand-in for `az`, and the app as the page starts it.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use reqwest::{Method, StatusCode};
use runtime_tests::app::{Answer, App, lay_out_release, root};
use runtime_tests::emulators::{self, Emulators, Proxy, TENANT, USER, key_name};
use runtime_tests::leaks::{self, Secrets};
use runtime_tests::store::Store;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::page::commands;

/// Longer than settings are kept, which are read again every ten seconds.
const SETTINGS_ARE_READ_AGAIN: Duration = Duration::from_secs(11);
/// Long enough for whatever waits for a busy machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_mins(1);

/// Commands that are not run here, by what they begin with, and why.
pub(crate) const ELSEWHERE: [(&str, &str); 1] = [(
    "scripts/azure/register-app",
    "the emulators have the registration; a test of its own has az itself run its calls",
)];

/// An operator at work.
pub(crate) struct Drill {
    pub(crate) emulators: Emulators,
    pub(crate) apps: Vec<App>,
    folder: TempDir,
    url: String,
    /// How the app was run last.
    up: Option<String>,
    /// What commands and apps that are gone have said.
    said: RefCell<Vec<String>>,
}

impl Drill {
    /// With nothing but a release and emulators.
    pub(crate) async fn begin() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("behalf-").tempdir()?;
        let inside = |name: &str| folder.path().join(name);
        fs::create_dir(inside("bin"))?;
        lay_out_release(folder.path())?;
        symlink(inside("behalf"), inside("bin/behalf"))?;
        symlink(root().join("runtime-tests/emulators/az"), inside("bin/az"))?;
        let emulators = Emulators::start(emulators::Options::default()).await?;
        // A drill does the same again and again.
        emulators.refuse_loops(false);
        // A registration has no secret until one is made.
        let credentials = format!("{}/credentials", emulators.control_url());
        let client = reqwest::Client::new();
        let all: Value = client.get(&credentials).send().await?.json().await?;
        let first = all[0]["id"].as_str().context("a credential")?;
        let removed = client
            .delete(format!("{credentials}/{first}"))
            .send()
            .await?;
        ensure!(removed.status() == StatusCode::NO_CONTENT, "{removed:?}");
        let drill = Self {
            url: free_url()?,
            emulators,
            apps: Vec::new(),
            folder,
            up: None,
            said: RefCell::default(),
        };
        fs::write(drill.environment(), "")?;
        let path = std::env::var("PATH")?;
        let bin = drill.folder.path().join("bin");
        let home = drill.folder.path().join("home").display().to_string();
        // Where others have compiled the components already.
        let cache = std::env::var("HOME")? + "/.cache/behalf";
        for (name, value) in [
            ("PATH", format!("{}:{path}", bin.display())),
            ("HOME", home),
            ("BEHALF_CACHE_DIR", cache),
            ("BEHALF_EMULATORS", drill.emulators.control_url()),
            ("SPIN_VARIABLE_AUTHORITY", drill.emulators.authority()),
            // So that a drill need not wait for what a day's work can wait for.
            ("SPIN_VARIABLE_KEY_CACHE_SECONDS", "1".to_owned()),
            ("SPIN_VARIABLE_KEY_LATEST_SECONDS", "1".to_owned()),
            ("SPIN_VARIABLE_ACCESS_TOKEN_CACHE_SECONDS", "0".to_owned()),
        ] {
            drill.set(name, &value).await?;
        }
        for (name, value) in drill.emulators.settings() {
            if ["grants", "apis", "api_origin_1"].contains(&&*name) {
                let name = format!("SPIN_VARIABLE_{}", name.to_uppercase());
                drill.set(&name, &value).await?;
            }
        }
        Ok(drill)
    }

    /// With all that steps 1 to 5 of the page make.
    pub(crate) async fn prepared() -> anyhow::Result<Self> {
        let mut drill = Self::begin().await?;
        for heading in [
            "1. Log in",
            "2. Make the vault",
            "3. Register the app",
            "4. An identity for operators",
            "5. Settings",
        ] {
            drill.perform(heading).await?;
        }
        Ok(drill)
    }

    /// And the app, run as step 7 says, with the demo user enrolled.
    pub(crate) async fn serving() -> anyhow::Result<Self> {
        Self::prepared().await?.served().await
    }

    /// The same, of one that was prepared.
    pub(crate) async fn served(mut self) -> anyhow::Result<Self> {
        for heading in ["7. Run", "8. The first user", "9. Sweep"] {
            self.perform(heading).await?;
        }
        Ok(self)
    }

    /// Runs every command under a heading; what each has said.
    pub(crate) async fn perform(&mut self, heading: &str) -> anyhow::Result<Vec<String>> {
        let mut said = Vec::new();
        for command in commands(heading)? {
            said.push(self.run(&command).await?);
        }
        Ok(said)
    }

    /// Runs a command, which has to succeed, and says what it says.
    pub(crate) async fn run(&mut self, command: &str) -> anyhow::Result<String> {
        if command.contains(" up ") {
            self.up = Some(command.to_owned());
            let app = self.serve(command).await?;
            self.apps.push(app);
            return Ok(String::new());
        }
        if command == "systemctl restart behalf" {
            self.stop().await?;
            let up = self.up.clone().context("it runs")?;
            let app = self.serve(&up).await?;
            self.apps.push(app);
            return Ok(String::new());
        }
        if ELSEWHERE.iter().any(|(it, _)| command.starts_with(it)) {
            return Ok(String::new());
        }
        self.type_in(command).await
    }

    /// The same, of one that starts and stops nothing.
    pub(crate) async fn type_in(&self, command: &str) -> anyhow::Result<String> {
        let script = format!(
            "set -o pipefail\n. ./environment\n{}\ncode=$?\nexport -p >environment\nexit $code",
            self.replaced(command)
        );
        let mut bash = self.bash(&script);
        let output = tokio::time::timeout(PATIENCE, bash.output());
        let output = output.await.with_context(|| command.to_owned())??;
        let said = String::from_utf8(output.stdout)?;
        let errors = String::from_utf8(output.stderr)?;
        ensure!(
            output.status.success(),
            "{command}\n{said}\n{errors}\nthe app:\n{}",
            self.output().join("\n")
        );
        self.said.borrow_mut().extend([said.clone(), errors]);
        Ok(said)
    }

    /// Runs the app as a command says.
    pub(crate) async fn serve(&self, command: &str) -> anyhow::Result<App> {
        let up = " up --exit-on-stdin-close --lame-duck 0s ";
        let mut text = self.replaced(command);
        match std::env::var("SPIN_BIN") {
            Ok(spin) if text.starts_with("spin ") => text = text.replacen("spin", &spin, 1),
            _ => text = text.replacen("spin ", "behalf ", 1).replacen(" up ", up, 1),
        }
        let script = format!(". ./environment\nexec {text}");
        let mut bash = self.bash(&script);
        bash.env(
            "SPIN_HTTP_LISTEN_ADDR",
            self.url.trim_start_matches("http://"),
        );
        App::run(bash, &self.folder.path().join("home/behalf/state")).await
    }

    /// Another address for the app that is run next.
    pub(crate) fn elsewhere(&mut self) -> anyhow::Result<()> {
        self.url = free_url()?;
        Ok(())
    }

    /// Stops the apps that run.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        for app in self.apps.drain(..) {
            let output = app.stop().await?;
            self.said.borrow_mut().extend(output);
        }
        Ok(())
    }

    /// Sets a variable of the environment.
    pub(crate) async fn set(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let value = value.replace('\'', r"'\''");
        self.type_in(&format!("export {name}='{value}'")).await?;
        Ok(())
    }

    /// Lets the operators' commands reach Microsoft Graph by its real name.
    pub(crate) async fn with_graph(&mut self) -> anyhow::Result<Proxy> {
        let proxy = self.emulators.proxy().await?;
        proxy.write_authority(&self.path("authority.pem"))?;
        self.set("HTTPS_PROXY", &proxy.url()).await?;
        self.run("export OPERATOR=\"$OPERATOR --ca authority.pem\"")
            .await?;
        Ok(proxy)
    }

    /// A path below the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the folder `SECRETS`.
    pub(crate) fn secret(&self, name: &str) -> anyhow::Result<String> {
        let file = self.path("home/behalf/secrets").join(name);
        Ok(fs::read_to_string(file)?.trim().to_owned())
    }

    /// The app that was started last.
    pub(crate) fn app(&self) -> anyhow::Result<&App> {
        self.apps.last().context("no app runs")
    }

    pub(crate) fn store(&self) -> Store {
        Store::of(&self.path("home/behalf/state"))
    }

    /// What the apps have written so far.
    pub(crate) fn output(&self) -> Vec<String> {
        self.apps.iter().flat_map(App::output).collect()
    }

    /// A request of a user of the first tenant.
    pub(crate) async fn call(
        &self,
        user: &str,
        method: Method,
        path: &str,
    ) -> anyhow::Result<Answer> {
        let bearer = self.emulators.caller().user(user).mint();
        self.app()?.send(method, path, Some(&bearer), None).await
    }

    /// Status and code of the demo user's draw.
    pub(crate) async fn draw(&self) -> anyhow::Result<(u16, String)> {
        let answer = self.call(USER, Method::POST, "/v1/me/access-token").await?;
        Ok((answer.status.as_u16(), answer.code().to_owned()))
    }

    /// Lets users draw and enrol until the work is done, all of whom have to be served.
    pub(crate) async fn under_load<T>(
        &self,
        work: impl AsyncFnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let users: Vec<_> = (0..4)
            .map(|at| format!("ffffffff-ffff-4fff-8fff-{at:012}"))
            .collect();
        let served = async |user: &str, method: Method, path: &str| -> anyhow::Result<()> {
            let answer = self.call(user, method, path).await?;
            ensure!(
                answer.status.is_success(),
                "{answer:?}\n{}",
                self.output().join("\n")
            );
            Ok(())
        };
        for user in &users {
            served(user, Method::PUT, "/v1/me").await?;
        }
        let load = async || -> anyhow::Result<T> {
            loop {
                for user in &users {
                    served(user, Method::POST, "/v1/me/access-token").await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                served(&users[0], Method::PUT, "/v1/me").await?;
            }
        };
        tokio::select! { it = load() => it, it = work() => it }
    }

    /// Waits until settings were read again.
    pub(crate) async fn settings_are_read_again(&self) {
        tokio::time::sleep(SETTINGS_ARE_READ_AGAIN).await;
    }

    /// Runs commands again and again until the last one says this.
    pub(crate) async fn repeat_until(
        &mut self,
        commands: &[String],
        says: impl Fn(&str) -> bool,
    ) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        loop {
            let mut said = String::new();
            for command in commands {
                said = self.run(command).await?;
            }
            if says(&said) {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "it stays so: {said}");
            tokio::time::sleep(Duration::from_millis(1100)).await;
            self.store().pass_a_minute()?;
        }
    }

    /// Lets the status say that what is unused has been so for two days.
    pub(crate) async fn pass_two_days(&mut self) -> anyhow::Result<()> {
        let sweep = commands("9. Sweep")?;
        let sweep = sweep
            .iter()
            .find(|it| it.contains("/v1/sweep"))
            .context("a sweep")?;
        let store = self.store();
        for _ in 0..2 {
            store.forget_sweeps()?;
            self.run(sweep).await?;
        }
        let ago = jiff::Timestamp::now().as_second() - 2 * 86_400;
        for key in store.all_rows()?.into_keys() {
            if let Some((name, since)) = key.rsplit_once('.')
                && name.starts_with("ver.")
                && !since.trim_start_matches('0').is_empty()
            {
                store.insert(&format!("{name}.{ago:012}"), b"")?;
                store.delete(&key)?;
            }
        }
        store.forget_sweeps()?;
        self.run(sweep).await?;
        Ok(())
    }

    /// The newest version of a tenant's key.
    pub(crate) fn newest(&self, tenant: &str) -> anyhow::Result<String> {
        let newest = self.emulators.newest_version(&key_name(tenant));
        let newest = newest.context("a key")?["id"].clone();
        let version = newest.as_str().and_then(|id| id.rsplit('/').next());
        Ok(version.context("a version")?.to_owned())
    }

    /// Whether Entra ID takes a client secret of the app.
    pub(crate) async fn is_good(&self, secret: &str) -> anyhow::Result<bool> {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &self.emulators.options().client_id),
            ("client_secret", secret),
            ("scope", "https://vault.azure.net/.default"),
        ];
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let url = format!("{}/{TENANT}/oauth2/v2.0/token", self.emulators.authority());
        let request = reqwest::Client::new()
            .post(url)
            .header("content-type", "application/x-www-form-urlencoded");
        let answer = request.body(body).send().await?;
        let status = answer.status();
        let body: Value = serde_json::from_slice(&answer.bytes().await?)?;
        match status {
            StatusCode::OK => Ok(true),
            _ if body["error_codes"] == json!([7_000_215]) => Ok(false),
            _ => bail!("{body}"),
        }
    }

    /// The end: all is well, and no secret was in what anybody said or wrote.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        for app in &self.apps {
            let answer = app.send(Method::GET, "/readyz", None, None).await?;
            ensure!(answer.status == StatusCode::OK, "{answer:?}");
        }
        self.stop().await?;
        let said = self.said.take();
        let mut own = Vec::new();
        for entry in fs::read_dir(self.path("home/behalf/secrets"))? {
            let text = fs::read_to_string(entry?.path())?;
            let text = text.trim().trim_start_matches("Authorization: Bearer ");
            if text.len() >= 24 && text.lines().count() == 1 {
                own.push(text.to_owned());
            }
        }
        let own = Secrets::new(&own);
        for place in &said {
            if let Some(found) = own.found_in(place) {
                bail!("{found}, is in: {place}");
            }
        }
        leaks::none_in(&self.emulators, said)?;
        self.emulators.stop().await;
        Ok(())
    }

    fn environment(&self) -> PathBuf {
        self.folder.path().join("environment")
    }

    /// With what stands in the place of what the page cannot know.
    fn replaced(&self, command: &str) -> String {
        command.replace("http://127.0.0.1:3000", &self.url)
    }

    fn bash(&self, script: &str) -> Command {
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(script);
        // All that they need is in the file of the environment.
        bash.env_clear();
        for name in ["PATH", "SPIN_BIN", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(name) {
                bash.env(name, value);
            }
        }
        bash.current_dir(self.folder.path()).kill_on_drop(true);
        bash
    }
}

/// A program that the commands find.
pub(crate) fn program(drill: &Drill, name: &str, text: &str) -> anyhow::Result<()> {
    let file = drill.path("bin").join(name);
    fs::write(&file, text)?;
    Ok(fs::set_permissions(
        file,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// The same, of a program that is somewhere else.
pub(crate) fn link(drill: &Drill, name: &str, program: &Path) -> anyhow::Result<()> {
    Ok(symlink(program, drill.path("bin").join(name))?)
}

/// An address that nobody listens on.
fn free_url() -> anyhow::Result<String> {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    Ok(format!("http://{}", listener.local_addr()?))
}

/// The first of five ports in a row that nobody listens on.
pub(crate) fn free_ports() -> anyhow::Result<u16> {
    let listen = |port| std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).ok();
    for _ in 0..10_000 {
        let first = listen(0).context("a port")?;
        let port = first.local_addr()?.port();
        let others = (1..5).map(|it| listen(port.checked_add(it)?));
        if others.collect::<Vec<_>>().iter().all(Option::is_some) {
            return Ok(port);
        }
    }
    bail!("there are no five free ports in a row")
}
