//! `spin.toml`, version 2: the part of it that this host runs.
//!
//! Whatever this host does not support is an error that names the key and the line, so that an app never runs here with
//! less than its manifest asks for, or more. Paths are relative to the manifest.

use crate::allow_list::OriginPattern;
use crate::composition::{Dependency, Inheritance};
use crate::console;
use crate::key_value;
use crate::routes::{Route, Routes};
use crate::variables::{Declaration, Template, check_name};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use toml::Spanned;

/// An app, as its manifest describes it.
#[derive(Debug)]
pub(crate) struct Manifest {
    /// Its name.
    pub(crate) name: String,
    /// Its version; may be empty.
    pub(crate) version: String,
    /// The application's variables.
    pub(crate) variables: BTreeMap<String, Declaration>,
    /// Which paths lead to which component.
    pub(crate) routes: Routes,
    /// The components, by id.
    pub(crate) components: BTreeMap<String, Component>,
}

/// A component, as the manifest describes it.
#[derive(Debug)]
pub(crate) struct Component {
    /// The `.wasm` file.
    pub(crate) source: PathBuf,
    /// For people; may be empty.
    pub(crate) description: String,
    /// The labels of key-value stores that it may open.
    pub(crate) key_value_stores: BTreeSet<String>,
    /// The origins that it may reach.
    pub(crate) allowed_outbound_hosts: Vec<Template>,
    /// The variables that it sees.
    pub(crate) variables: BTreeMap<String, Template>,
    /// The components that fill its imports in.
    pub(crate) dependencies: Vec<Dependency>,
}

impl Manifest {
    /// Reads the manifest at `path`.
    ///
    /// # Errors
    ///
    /// There is none, it is not in the format, or it asks for what this host does not have.
    pub(crate) fn load(path: &Path) -> Result<Self, ManifestError> {
        let text = std::fs::read_to_string(path).map_err(|error| ManifestError {
            file: path.to_owned(),
            line: None,
            reason: format!("cannot read: {error}"),
        })?;
        Self::parse(path, &text)
    }

    /// Drops every route that leads to none of these components, and every component without a route. None means all.
    ///
    /// # Errors
    ///
    /// There is no such component, or it has no route.
    pub(crate) fn keep(&mut self, ids: &[String]) -> Result<(), String> {
        if let Some(id) = ids
            .iter()
            .find(|id| !self.routes.iter().any(|route| &route.component == *id))
        {
            let known: BTreeSet<_> = self
                .routes
                .iter()
                .map(|route| route.component.as_str())
                .collect();
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "--component {id}: no route leads to it; there is {known}"
            ));
        }
        if !ids.is_empty() {
            self.routes.retain(|route| ids.contains(&route.component));
        }
        self.components
            .retain(|id, _| self.routes.iter().any(|route| &route.component == id));
        Ok(())
    }

    /// Tells which route leads where.
    pub(crate) fn tell(&self) {
        for Route {
            pattern, component, ..
        } in self.routes.iter()
        {
            let description = self
                .components
                .get(component)
                .map_or("", |it| it.description.as_str());
            let gap = if description.is_empty() { "" } else { ": " };
            console::fact(
                "route",
                format_args!("{pattern} -> {component}{gap}{description}"),
            );
        }
    }

    /// Reads `text` as the manifest at `path`.
    fn parse(path: &Path, text: &str) -> Result<Self, ManifestError> {
        let fault = |at: Option<usize>, reason: String| {
            let line = at.map(|at| {
                text.bytes()
                    .take(at)
                    .filter(|b| *b == b'\n')
                    .count()
                    .saturating_add(1)
            });
            ManifestError {
                file: path.to_owned(),
                line,
                reason,
            }
        };
        let document: Document = toml::from_str(text)
            .map_err(|error| fault(error.span().map(|it| it.start), explain(error.message())))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        document
            .into_manifest(folder)
            .map_err(|Fault { at, reason }| fault(at, reason))
    }
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {reason}", .file.display(), .line.map(|it| format!(":{it}")).unwrap_or_default())]
pub(crate) struct ManifestError {
    file: PathBuf,
    /// From 1.
    line: Option<usize>,
    reason: String,
}

/// The words of the `toml` crate, turned into this host's.
fn explain(message: &str) -> String {
    let known = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split_once('`'));
    match known {
        Some((key, rest)) => format!("this host does not support the key `{key}` here{rest}"),
        None => message.lines().collect::<Vec<_>>().join("; "),
    }
}

// ---- The file, as it is written --------------------------------------------------------------------------------------

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    spin_manifest_version: Spanned<i64>,
    application: Application,
    #[serde(default)]
    variables: BTreeMap<Spanned<String>, Variable>,
    trigger: Triggers,
    #[serde(default)]
    component: BTreeMap<Spanned<String>, RawComponent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Application {
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default, rename = "description")]
    _description: String,
    #[serde(default, rename = "authors")]
    _authors: Vec<String>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table with `default`, or with `required = true`"
)]
struct Variable {
    default: Option<String>,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    secret: bool,
    #[serde(default, rename = "description")]
    _description: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Triggers {
    http: Vec<HttpTrigger>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpTrigger {
    route: Spanned<String>,
    component: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawComponent {
    source: PathBuf,
    #[serde(default)]
    description: String,
    #[serde(default)]
    key_value_stores: Vec<Spanned<String>>,
    #[serde(default)]
    allowed_outbound_hosts: Vec<Spanned<String>>,
    #[serde(default)]
    variables: BTreeMap<Spanned<String>, Spanned<String>>,
    #[serde(default)]
    dependencies: BTreeMap<Spanned<String>, RawDependency>,
    #[serde(default, rename = "build")]
    _build: Option<Build>,
}

/// How to build a component: not this host's business.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    #[serde(rename = "command")]
    _command: IgnoredAny,
    #[serde(default, rename = "workdir")]
    _workdir: Option<IgnoredAny>,
    #[serde(default, rename = "watch")]
    _watch: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table with `path`, the only kind of dependency that this host supports"
)]
struct RawDependency {
    path: PathBuf,
    #[serde(default)]
    inherit_configuration: Option<Spanned<RawInheritance>>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "`inherit_configuration` takes true, false or a list of keys"
)]
enum RawInheritance {
    All(bool),
    Some(Vec<String>),
}

// ---- From there to what it means -------------------------------------------------------------------------------------

/// What is wrong, and at which byte.
struct Fault {
    at: Option<usize>,
    reason: String,
}

fn fault<T>(at: &Spanned<T>, reason: impl Into<String>) -> Fault {
    Fault {
        at: Some(at.span().start),
        reason: reason.into(),
    }
}

impl Document {
    fn into_manifest(self, folder: &Path) -> Result<Manifest, Fault> {
        if *self.spin_manifest_version.get_ref() != 2 {
            return Err(fault(
                &self.spin_manifest_version,
                "this host reads spin_manifest_version = 2 only",
            ));
        }
        let mut variables = BTreeMap::new();
        for (name, variable) in self.variables {
            check_name(name.get_ref())
                .map_err(|reason| fault(&name, format!("the variable's name {reason}")))?;
            if variable.required == variable.default.is_some() {
                return Err(fault(
                    &name,
                    "a variable has either a `default` or `required = true`",
                ));
            }
            let declaration = Declaration {
                default: variable.default,
                secret: variable.secret,
            };
            variables.insert(name.into_inner(), declaration);
        }
        let mut components = BTreeMap::new();
        for (id, component) in self.component {
            if !is_component_id(id.get_ref()) {
                return Err(fault(
                    &id,
                    "a component's id is lower-case letters and digits, with single hyphens between",
                ));
            }
            let component = component.into_component(folder, &variables)?;
            components.insert(id.into_inner(), component);
        }
        let mut routes = Routes::default();
        for trigger in self.trigger.http {
            if !components.contains_key(trigger.component.get_ref()) {
                let reason = format!("there is no [component.{}]", trigger.component.get_ref());
                return Err(fault(&trigger.component, reason));
            }
            routes
                .add(trigger.route.get_ref(), trigger.component.get_ref())
                .map_err(|reason| fault(&trigger.route, reason))?;
        }
        Ok(Manifest {
            name: self.application.name,
            version: self.application.version,
            variables,
            routes,
            components,
        })
    }
}

impl RawComponent {
    fn into_component(
        self,
        folder: &Path,
        declared: &BTreeMap<String, Declaration>,
    ) -> Result<Component, Fault> {
        let template = |text: &Spanned<String>| {
            let template = Template::parse(text.get_ref())
                .map_err(|reason| fault(text, format!("{:?} {reason}", text.get_ref())))?;
            if let Some(name) = template
                .variables()
                .find(|name| !declared.contains_key(*name))
            {
                return Err(fault(
                    text,
                    format!("there is no variable `{name}` in [variables]"),
                ));
            }
            Ok(template)
        };
        let mut key_value_stores = BTreeSet::new();
        for label in self.key_value_stores {
            if label.get_ref() != key_value::LABEL {
                return Err(fault(
                    &label,
                    format!(
                        "this host has no key-value store but \"{}\"",
                        key_value::LABEL
                    ),
                ));
            }
            key_value_stores.insert(label.into_inner());
        }
        let mut allowed_outbound_hosts = Vec::new();
        for entry in self.allowed_outbound_hosts {
            let template = template(&entry)?;
            if template.is_literal() {
                let pattern = entry.get_ref().parse::<OriginPattern>();
                pattern
                    .map_err(|reason| fault(&entry, format!("{:?} {reason}", entry.get_ref())))?;
            }
            allowed_outbound_hosts.push(template);
        }
        let mut variables = BTreeMap::new();
        for (name, value) in self.variables {
            check_name(name.get_ref())
                .map_err(|reason| fault(&name, format!("the variable's name {reason}")))?;
            let value = template(&value)?;
            variables.insert(name.into_inner(), value);
        }
        let mut dependencies = Vec::new();
        for (name, dependency) in self.dependencies {
            let inherits = dependency.inherits()?;
            let path = folder.join(dependency.path);
            dependencies.push(Dependency {
                name: name.into_inner(),
                path,
                inherits,
            });
        }
        Ok(Component {
            source: folder.join(self.source),
            description: self.description,
            key_value_stores,
            allowed_outbound_hosts,
            variables,
            dependencies,
        })
    }
}

impl RawDependency {
    fn inherits(&self) -> Result<Inheritance, Fault> {
        let Some(raw) = &self.inherit_configuration else {
            return Ok(Inheritance::default());
        };
        match raw.get_ref() {
            RawInheritance::All(true) => Ok(Inheritance::all()),
            RawInheritance::All(false) => Ok(Inheritance::default()),
            RawInheritance::Some(keys) => {
                keys.iter()
                    .map(|key| key.parse())
                    .collect::<Result<_, String>>()
                    .map_err(|key| {
                        // Spin ignores a name it does not know; a misspelt one had better be noticed.
                        fault(
                            raw,
                            format!(
                                "a dependency cannot inherit \"{key}\"; {}",
                                Inheritance::KEYS
                            ),
                        )
                    })
            }
        }
    }
}

fn is_component_id(id: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    id.starts_with(|c: char| c.is_ascii_lowercase()) && id.split('-').all(word)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::composition::Capability;

    const SMALL: &str = r#"spin_manifest_version = 2
[application]
name = "a"
[variables]
origin = { default = "https://a.test" }
[[trigger.http]]
route = "/..."
component = "web"
[component.web]
source = "target/web.wasm"
key_value_stores = ["default"]
allowed_outbound_hosts = ["{{ origin }}", "https://b.test"]
[component.web.variables]
mine = "<{{ origin }}>"
[component.web.dependencies]
"n:p" = { path = "dep.wasm", inherit_configuration = ["variables"] }
"#;

    fn parse(text: &str) -> Result<Manifest, String> {
        Manifest::parse(Path::new("/app/spin.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn our_own_manifest() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../spin.toml");
        let manifest = Manifest::load(&path).unwrap();
        assert_eq!(manifest.name, "behalf");
        let http = manifest.components.get("http").unwrap();
        let vault = http.dependencies.first().unwrap();
        assert_eq!(vault.name, "behalf:vault");
        assert_eq!(
            vault.inherits,
            [Capability::AllowedOutboundHosts, Capability::Variables]
                .into_iter()
                .collect()
        );
        assert!(http.key_value_stores.contains("default"));
    }

    #[test]
    fn paths_are_relative_to_the_manifest() {
        let manifest = parse(SMALL).unwrap();
        let web = manifest.components.get("web").unwrap();
        assert_eq!(web.source, Path::new("/app/target/web.wasm"));
        assert_eq!(
            web.dependencies.first().unwrap().path,
            Path::new("/app/dep.wasm")
        );
        assert_eq!(
            web.variables.get("mine").unwrap().to_string(),
            "<{{ origin }}>"
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (from, to, message) in [
            (
                "version = 2",
                "version = 1",
                ":1: this host reads spin_manifest_version = 2 only",
            ),
            (
                "name = \"a\"",
                "title = \"a\"",
                ":3: this host does not support the key `title` here, expected one of `name`",
            ),
            (
                "[variables]",
                "[tool.x]\ny = 1\n[variables]",
                ":4: this host does not support the key `tool` here",
            ),
            (
                "{ default = \"https://a.test\" }",
                "{}",
                ":5: a variable has either a `default` or `required = true`",
            ),
            (
                "{ default = \"https://a.test\" }",
                "\"x\"",
                ":5: invalid type: string \"x\", expected a table with `default`",
            ),
            (
                "origin = {",
                "Origin = {",
                ":5: the variable's name must start with a lower-case letter",
            ),
            (
                "trigger.http",
                "trigger.cron",
                ":6: this host does not support the key `cron` here, expected `http`",
            ),
            (
                "route = \"/...\"",
                "route = { private = true }",
                ":7: invalid type: map, expected a string",
            ),
            (
                "route = \"/...\"",
                "route = \"/...\"\nexecutor = {}",
                ":8: this host does not support the key `executor`",
            ),
            (
                "component = \"web\"",
                "component = \"wob\"",
                ":8: there is no [component.wob]",
            ),
            (
                "[component.web]",
                "[component.Web]\nsource = \"\"\n[component.web]",
                ":9: a component's id is lower-case letters",
            ),
            (
                "source = \"",
                "files = []\nsource = \"",
                ":10: this host does not support the key `files` here",
            ),
            (
                "source = \"target/web.wasm\"",
                "source = { url = \"\" }",
                ":10: invalid type: map, expected path string",
            ),
            (
                "[\"default\"]",
                "[\"default\", \"other\"]",
                ":11: this host has no key-value store but \"default\"",
            ),
            (
                "\"https://b.test\"",
                "\"b.test\"",
                ":12: \"b.test\" has no scheme",
            ),
            (
                "\"https://b.test\"",
                "\"{{ b }}\"",
                ":12: there is no variable `b` in [variables]",
            ),
            (
                "\"<{{ origin }}>\"",
                "\"{{ origin\"",
                ":14: \"{{ origin\" has `{{` without `}}`",
            ),
            (
                "{ path = \"dep.wasm\", ",
                "{ component = \"x\", ",
                ":16: this host does not support the key `component` here",
            ),
            (
                "[\"variables\"]",
                "[\"variable\"]",
                ":16: a dependency cannot inherit \"variable\"",
            ),
            (
                "[\"variables\"]",
                "\"variables\"",
                ":16: `inherit_configuration` takes true, false or a list of keys",
            ),
            ("name = \"a\"", "name = a", ":3: "),
        ] {
            assert!(SMALL.contains(from), "{from}");
            let error = parse(&SMALL.replacen(from, to, 1)).unwrap_err();
            assert!(
                error.starts_with(&format!("/app/spin.toml{message}")),
                "{from} -> {to}\n  {error}\n  {message}"
            );
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let error =
            parse(&SMALL.replace("[\"variables\"] }", "[] }\n\"n:q\" = \"1.0\"")).unwrap_err();
        assert!(
            error.contains("expected a table with `path`, the only kind of dependency"),
            "{error}"
        );
    }

    #[test]
    fn a_route_has_one_component() {
        let error = parse(&format!(
            "{SMALL}[[trigger.http]]\nroute = \"/...\"\ncomponent = \"web\"\n"
        ))
        .unwrap_err();
        assert_eq!(error, "/app/spin.toml:18: the route /... is there twice");
    }

    #[test]
    fn component_ids() {
        for id in ["web", "a1", "a-b-c"] {
            assert!(is_component_id(id), "{id}");
        }
        for id in ["", "A", "1a", "-a", "a-", "a--b", "a_b", "a b"] {
            assert!(!is_component_id(id), "{id}");
        }
    }
}
