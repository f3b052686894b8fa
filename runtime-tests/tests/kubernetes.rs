//! What scripts/kubernetes has is what Kubernetes takes, and runs as it is written there.
//!
//! The judge, in Python, builds what `kubectl apply --kustomize` would send, and has the schemas of Kubernetes. What it compares that
//! with is taken from where it is so: the manifests, the help of the host, the image.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};
use runtime_tests::app::{App, behalf, manifest, root, said};
use runtime_tests::emulators::{Emulators, Options};
use runtime_tests::peers::python;
use runtime_tests::scene::Scene;
use serde_json::{Value, json};
use tempfile::TempDir;
use toml::Table;

type Result = anyhow::Result<()>;

/// What is there to be applied; the rest is a part of it.
const INSTALLATIONS: [&str; 4] = ["example", "postgres", "spin", "sqlite"];

/// What probes may ask for: [`what_is_written_runs`] asks for each.
const ROUTES: [&str; 3] = ["/.well-known/spin/health", "/healthz", "/readyz"];

#[test]
fn kubernetes_takes_what_is_written() -> Result {
    let built = judge(&folder())?;
    for name in INSTALLATIONS {
        let pods = objects(&built, name)
            .filter(|it| !it["spec"]["template"].is_null() || it["kind"] == "SpinApp");
        assert_eq!(pods.count(), 1, "{name}");
    }
    // Every key of the secret is in the command that makes it.
    let readme = fs::read_to_string(folder().join("README.md"))?;
    for name in INSTALLATIONS {
        for key in keys(&built, name) {
            assert!(
                readme.contains(&format!("--from-file={key}")),
                "{name}: {key}"
            );
        }
    }
    Ok(())
}

/// It would judge another store, and be content with it.
#[test]
fn the_doctor_is_told_what_the_app_is_told() -> Result {
    let built = judge(&folder())?;
    let readme = fs::read_to_string(folder().join("README.md"))?;
    let asked: Vec<_> = readme
        .split("-- /app/behalf doctor ")
        .skip(1)
        .filter_map(|it| it.split("```").next())
        .map(|it| options(&it.replace('\\', " ")))
        .collect();
    let image = options(&image_words()?.join(" "));
    for (name, asked) in ["sqlite", "postgres"].iter().zip(&asked) {
        let server = objects(&built, name)
            .find(|it| it["kind"] == "Deployment")
            .context("a deployment")?;
        let args = texts(&server["spec"]["template"]["spec"]["containers"][0]["args"]);
        let mut told = options(&args.join(" "));
        told.extend(image.clone());
        // How it serves is nothing that is asked.
        told.retain(|it| !it.starts_with("--log-format ") && !it.starts_with("--ready-path "));
        assert_eq!(asked, &told, "{name}");
    }
    assert_eq!(asked.len(), 2);
    Ok(())
}

/// Each option with its value, however the two are joined.
fn options(line: &str) -> BTreeSet<String> {
    let mut options: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        match (word.starts_with("--"), options.last_mut()) {
            (true, _) => options.push(word.replacen('=', " ", 1)),
            (false, Some(last)) => *last = format!("{last} {word}"),
            (false, None) => {}
        }
    }
    options.into_iter().collect()
}

#[test]
fn what_is_run_is_what_was_pushed() -> Result {
    let built = judge(&folder())?;
    let readme = fs::read_to_string(folder().join("README.md"))?;
    let pushed = |command: &str| {
        let (_, rest) = readme.split_once(command)?;
        rest.split_whitespace().next()
    };
    let server = objects(&built, "example")
        .find(|it| it["kind"] == "Deployment")
        .context("a deployment")?;
    assert_eq!(
        server["spec"]["template"]["spec"]["containers"][0]["image"].as_str(),
        pushed(" docker://")
    );
    let spin = objects(&built, "spin")
        .find(|it| it["kind"] == "SpinApp")
        .context("an app")?;
    assert_eq!(
        spin["spec"]["image"].as_str(),
        pushed("spin registry push --from spin-app.toml ")
    );
    Ok(())
}

#[test]
fn what_kubernetes_would_not_take_is_noticed() -> Result {
    let breaks: &[(&str, &str, &str, &str)] = &[
        // A field that is not there: in a pod, a policy, a patch, a SpinApp; and one that is not there yet.
        (
            "base/deployment.yaml",
            "readOnly: true",
            "readonly: true",
            "'readonly' was unexpected",
        ),
        (
            "base/network-policy.yaml",
            "policyTypes",
            "policyType",
            "'policyType' was unexpected",
        ),
        (
            "sqlite/deployment.yaml",
            "claimName",
            "claim",
            "'claimName' is a required property",
        ),
        (
            "spin/spin-app.yaml",
            "podLabels",
            "labels",
            "'labels' was unexpected",
        ),
        (
            "spin/spin-app.yaml",
            "secretKeyRef",
            "secretRef",
            "'secretRef' was unexpected",
        ),
        (
            "base/deployment.yaml",
            "enableServiceLinks: false",
            "hostnameOverride: a",
            "Kubernetes 1.29",
        ),
        ("sqlite/volume-claim.yaml", "8Gi", "[8]", "8"),
        (
            "spin/spin-app.yaml",
            "replicas: 2",
            "replicas: 0",
            "minimum",
        ),
        // Kustomizations.
        (
            "base/kustomization.yaml",
            "service.yaml",
            "services.yaml",
            "services.yaml: there is no such file",
        ),
        (
            "example/kustomization.yaml",
            "settings.env",
            "setting.env",
            "setting.env: there is no such file",
        ),
        (
            "sqlite/kustomization.yaml",
            "  - volume-claim.yaml\n",
            "",
            "there is no volume claim behalf-data",
        ),
        (
            "postgres/kustomization.yaml",
            "  - network-policy.yaml\n",
            "",
            "network-policy.yaml: nobody uses it",
        ),
        (
            "postgres/deployment.yaml",
            "name: behalf\nspec",
            "name: other\nspec",
            "of which there are 0",
        ),
        (
            "example/kustomization.yaml",
            "behavior: merge",
            "behavior: create",
            "another one of this name",
        ),
        (
            "example/kustomization.yaml",
            "- name: behalf\n    newName",
            "- name: other\n    newName",
            "the image other",
        ),
        (
            "sqlite/kustomization.yaml",
            "patches:",
            "patchesJson6902:",
            "does not know that",
        ),
        // Rules of our own.
        (
            "base/deployment.yaml",
            "containerPort: 3000",
            "containerPort: 3001",
            "listens on the port 3000",
        ),
        (
            "base/network-policy.yaml",
            "port: 3000",
            "port: 8080",
            "no container listens on the port 8080",
        ),
        (
            "base/service.yaml",
            "targetPort: http",
            "targetPort: https",
            "no container listens on the port https",
        ),
        (
            "base/service.yaml",
            "component: server",
            "component: sever",
            "selects no pod",
        ),
        (
            "base/disruption-budget.yaml",
            "component: server",
            "component: sever",
            "selects no pod",
        ),
        (
            "postgres/deployment.yaml",
            "component: server",
            "component: sever",
            "does not select its own pods",
        ),
        (
            "base/deployment.yaml",
            "path: /readyz",
            "path: /ready",
            "/ready, which is no route",
        ),
        (
            "base/deployment.yaml",
            "port: http",
            "port: web",
            "asks at the port web",
        ),
        (
            "base/deployment.yaml",
            "Seconds: 30",
            "Seconds: 25",
            "above the 25 s",
        ),
        (
            "base/deployment.yaml",
            "readOnlyRootFilesystem: true",
            "readOnlyRootFilesystem: false",
            "securityContext of behalf",
        ),
        (
            "base/deployment.yaml",
            "runAsUser: 65532",
            "runAsUser: 65533",
            "user and group 65532",
        ),
        (
            "base/deployment.yaml",
            "serviceAccountName: behalf",
            "serviceAccountName: other",
            "no service account other",
        ),
        (
            "base/deployment.yaml",
            "- name: data\n",
            "- name: date\n",
            "no volume date",
        ),
        (
            "base/deployment.yaml",
            "path: token",
            "path: tokens",
            "federated/token: no volume has that file",
        ),
        (
            "base/deployment.yaml",
            "/run/secrets/behalf/sweep_key",
            "/run/secrets/behalf/sweep-key",
            "no volume has that file",
        ),
        (
            "base/deployment.yaml",
            "=pseudonym_key=",
            "=pseudonym=",
            "there is no such setting",
        ),
        (
            "base/deployment.yaml",
            "secretName: behalf",
            "secretName: other",
            "the secret is called behalf",
        ),
        (
            "base/deployment.yaml",
            "name: behalf-settings",
            "name: settings",
            "no config map settings",
        ),
        (
            "base/kustomization.yaml",
            "SPIN_VARIABLE_CREDENTIAL",
            "SPIN_VARIABLE_CREDENTIALS",
            "sets nothing",
        ),
        (
            "postgres/deployment.yaml",
            "spin-postgres.toml",
            "postgres.toml",
            "the image has no postgres.toml",
        ),
        (
            "sqlite/deployment.yaml",
            "replicas: 1",
            "replicas: 2",
            "one replica",
        ),
        (
            "sqlite/deployment.yaml",
            "type: Recreate",
            "type: RollingUpdate",
            "the strategy Recreate",
        ),
        ("sweep/cron-job.yaml", "Forbid", "Allow", "has to be Forbid"),
        (
            "sweep/cron-job.yaml",
            "BEHALF_APP",
            "BEHALF_URL",
            "BEHALF_URL sets nothing",
        ),
        (
            "spin/spin-app.yaml",
            "name: key_vault_url",
            "name: sweep_url",
            "SPIN_VARIABLE_SWEEP_URL sets nothing",
        ),
        (
            "spin/spin-app.yaml",
            "key: sweep_key",
            "key: client_secret",
            "SPIN_VARIABLE_SWEEP_KEY is of the key",
        ),
    ];
    for (file, from, to, says) in breaks {
        let copy = tempfile::tempdir()?;
        said(Command::new("cp").arg("-r").arg(folder()).arg(copy.path()))?;
        let copied = copy.path().join("kubernetes");
        let path = copied.join(file);
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(from), "{file} has no {from:?}");
        fs::write(&path, text.replacen(from, to, 1))?;
        let error = judge(&copied)
            .err()
            .with_context(|| format!("{file}: {to:?} is not noticed"))?;
        let error = error.to_string();
        assert!(error.contains(says), "{file}: {to:?}: {error}");
    }
    Ok(())
}

/// The container of the example, with its settings, its files and its words; what Kubernetes asks of it; and the job that sweeps.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_runs() -> Result {
    let built = judge(&folder())?;
    let emulators = Emulators::start(Options::default()).await?;
    let container = Container::of(&built, "example", "Deployment", &emulators)?;
    let mut words = container.image_words()?;
    words.extend(container.words());
    let mut command = container.command();
    command.args(words.iter().skip(1));
    command.args(["--exit-on-stdin-close", "--lame-duck", "0s"]);
    command.env("SPIN_HTTP_LISTEN_ADDR", "127.0.0.1:0");
    let app = App::run(command.into(), &container.inside("/data")).await?;
    let scene = Scene::of(emulators, app);

    let mut asked: Vec<_> = ROUTES.map(str::to_owned).to_vec();
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let path = container.told[probe]["httpGet"]["path"].as_str();
        asked.push(path.with_context(|| format!("no {probe}"))?.to_owned());
    }
    for path in asked {
        let answer = scene.send(Method::GET, &path, None, None).await?;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {answer:?}");
    }
    // With the token of the service account alone.
    scene.enrol().await?;
    scene.draw().await?;
    let proofs: Vec<_> = scene
        .emulators
        .journal()
        .into_iter()
        .filter_map(|it| it.proof)
        .collect();
    assert_eq!(proofs, vec!["RS256"; proofs.len()]);

    scene.store().make_due()?;
    let job = Container::of(&built, "spin", "CronJob", &scene.emulators)?;
    let words = texts(&job.told["command"]);
    assert_eq!(words[0], container.image_words()?[0], "the image's program");
    let mut command = job.command();
    command.args(words.iter().skip(1)).args(job.words());
    command.env("BEHALF_APP", scene.app.url());
    let report: Value = serde_json::from_str(&said(&mut command)?)?;
    assert_eq!(report["refreshed"], 1, "{report}");
    scene.end().await.map(drop)
}

/// Its own manifest takes its words, and nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_for_postgres_is_complete() -> Result {
    let built = judge(&folder())?;
    let emulators = Emulators::start(Options::default()).await?;
    let container = Container::of(&built, "postgres", "Deployment", &emulators)?;
    let check = |set: &[(&str, &str)]| {
        let mut command = container.command();
        command.arg("check").args(container.words());
        command.envs(set.iter().copied());
        command.output()
    };
    let output = check(&[("SPIN_VARIABLE_POSTGRES_USER", "behalf_app")])?;
    assert!(output.status.success(), "{output:?}");
    let output = check(&[])?;
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("SPIN_VARIABLE_POSTGRES_USER"), "{log}");
    emulators.stop().await;
    Ok(())
}

/// A container as Kubernetes would make it, but that its volumes are folders of this machine.
struct Container {
    told: Value,
    folder: TempDir,
    environment: BTreeMap<String, String>,
}

impl Container {
    fn of(built: &Value, name: &str, kind: &str, emulators: &Emulators) -> anyhow::Result<Self> {
        let object = objects(built, name)
            .find(|it| it["kind"] == kind)
            .context("an object")?;
        let spec = match kind {
            "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
            _ => &object["spec"]["template"]["spec"],
        };
        let told = spec["containers"][0].clone();
        let mut environment = BTreeMap::new();
        for source in told["envFrom"].as_array().into_iter().flatten() {
            let map = objects(built, name).find(|it| {
                it["kind"] == "ConfigMap"
                    && it["metadata"]["name"] == source["configMapRef"]["name"]
            });
            for (name, value) in map.context("a config map")?["data"]
                .as_object()
                .context("data")?
            {
                environment.insert(name.clone(), value.as_str().context("a text")?.to_owned());
            }
        }
        // Where all that is, and nothing that files have.
        for (name, value) in emulators.settings() {
            if !["client_secret", "sweep_key"].contains(&&*name) {
                environment.insert(format!("SPIN_VARIABLE_{}", name.to_uppercase()), value);
            }
        }
        let container = Self {
            told,
            folder: tempfile::tempdir()?,
            environment,
        };
        for mount in container.told["volumeMounts"]
            .as_array()
            .context("mounts")?
        {
            fs::create_dir_all(container.inside(mount["mountPath"].as_str().context("a path")?))?;
        }
        let token = emulators.credential("federated-token");
        let token = token
            .into_iter()
            .find(|(name, _)| name == "federated_token");
        for (setting, path) in container.files() {
            let value = match &*setting {
                "federated_token" => token.clone().context("a token")?.1,
                "sweep_key" => emulators.options().sweep_key.clone(),
                _ => "0123456789abcdef0123456789abcdef".to_owned(),
            };
            fs::write(path, value)?;
        }
        // What the image has in its working directory.
        symlink(
            root().join("target"),
            container.folder.path().join("target"),
        )?;
        for (name, ledger) in [
            ("spin.toml", "key-value"),
            ("spin-postgres.toml", "postgres"),
        ] {
            fs::write(
                container.folder.path().join(name),
                manifest(&["--relative", "--ledger", ledger])?,
            )?;
        }
        Ok(container)
    }

    /// A path of the container, as it is here.
    fn inside(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    /// A word with the paths of volumes as they are here.
    fn here(&self, word: &str) -> String {
        let mut word = word.to_owned();
        for mount in self.told["volumeMounts"].as_array().into_iter().flatten() {
            let path = mount["mountPath"].as_str().unwrap();
            word = word.replace(path, self.inside(path).to_str().unwrap());
        }
        word
    }

    fn words(&self) -> Vec<String> {
        let words = texts(&self.told["args"]);
        words.iter().map(|it| self.here(it)).collect()
    }

    /// Which file each setting is in.
    fn files(&self) -> Vec<(String, PathBuf)> {
        let words = self.words();
        let files = words
            .iter()
            .filter_map(|it| it.strip_prefix("--variable-file=")?.split_once('='));
        files
            .map(|(name, path)| (name.to_owned(), path.into()))
            .collect()
    }

    /// The same, with paths as they are here.
    fn image_words(&self) -> anyhow::Result<Vec<String>> {
        Ok(image_words()?.iter().map(|it| self.here(it)).collect())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(behalf().unwrap());
        command.env_clear().envs(&self.environment);
        command.env("BEHALF_CACHE_DIR", self.inside("/data/compiled"));
        command.current_dir(self.folder.path());
        command
    }
}

/// What the image runs.
fn image_words() -> anyhow::Result<Vec<String>> {
    let script = fs::read_to_string(root().join("scripts/image"))?;
    let line = script
        .lines()
        .find_map(|it| it.trim().strip_prefix("\"Entrypoint\": "));
    let words = line.context("an entrypoint")?.trim_end_matches(',');
    Ok(serde_json::from_str(words)?)
}

fn folder() -> PathBuf {
    root().join("scripts/kubernetes")
}

fn objects<'b>(built: &'b Value, name: &str) -> impl Iterator<Item = &'b Value> {
    built[name].as_array().into_iter().flatten()
}

/// Keys of the secret, wherever they are named.
fn keys(built: &Value, name: &str) -> Vec<String> {
    fn collect(value: &Value, keys: &mut Vec<String>) {
        match value {
            Value::String(word) => {
                if let Some(path) = word
                    .strip_prefix("--variable-file=")
                    .filter(|it| it.contains("/behalf/"))
                {
                    keys.extend(path.split('=').next().map(str::to_owned));
                }
            }
            Value::Array(values) => values.iter().for_each(|it| collect(it, keys)),
            Value::Object(members) => {
                let key = members
                    .get("secretKeyRef")
                    .and_then(|it| it["key"].as_str());
                keys.extend(key.map(str::to_owned));
                members.values().for_each(|it| collect(it, keys));
            }
            _ => {}
        }
    }
    let mut keys = Vec::new();
    objects(built, name).for_each(|it| collect(it, &mut keys));
    keys
}

/// What the judge has built; an error has every defect.
fn judge(folder: &Path) -> anyhow::Result<Value> {
    let mut arguments = vec![folder.to_str().context("a path")?];
    arguments.extend(INSTALLATIONS);
    let built = python("kubernetes.py", &arguments, &wanted()?.to_string())?;
    Ok(serde_json::from_str(&built)?)
}

/// What is so elsewhere.
fn wanted() -> anyhow::Result<Value> {
    let settings = |arguments: &[&str]| {
        let manifest: Table = manifest(arguments)?.parse()?;
        let names = manifest["variables"].as_table().context("variables")?;
        anyhow::Ok(names.keys().cloned().collect::<Vec<_>>())
    };
    let help = said(Command::new(behalf()?).args(["up", "--help"]))?;
    let of_sweep = said(Command::new(behalf()?).args(["sweep", "--help"]))?;
    let seconds = |option: &str| {
        let (_, text) = help.split_once(&format!("--{option} <TIME>"))?;
        let (_, text) = text.split_once("[default: ")?;
        text.split_once("s]")?.0.parse::<u64>().ok()
    };
    let leaving = seconds("lame-duck")
        .zip(seconds("grace"))
        .context("how long it takes to leave")?;
    let names = |help: &str| -> Vec<String> {
        let found = help.split("[env: ").skip(1);
        found
            .filter_map(|it| Some(it.split_once('=')?.0.to_owned()))
            .collect()
    };
    let environment = [names(&help), names(&of_sweep)].concat();
    let image = fs::read_to_string(root().join("scripts/image"))?;
    let number = |behind: &str| {
        let (_, text) = image.split_once(behind)?;
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    };
    let readme = fs::read_to_string(folder().join("README.md"))?;
    let (_, secret) = readme
        .split_once("create secret generic ")
        .context("a secret")?;
    Ok(json!({
        "settings": {
            "spin.toml": settings(&[])?,
            "spin-postgres.toml": settings(&["--ledger", "postgres"])?,
            "SpinApp": settings(&["--no-cron", "--ledger", "postgres"])?,
        },
        "environment": environment,
        "routes": ROUTES,
        "port": number("SPIN_HTTP_LISTEN_ADDR=0.0.0.0:"),
        "user": number("uid="),
        "leaving_seconds": leaving.0.saturating_add(leaving.1),
        "secret": secret.split_whitespace().next(),
    }))
}

fn texts(list: &Value) -> Vec<String> {
    let texts = list.as_array().into_iter().flatten();
    texts
        .filter_map(|it| Some(it.as_str()?.to_owned()))
        .collect()
}
