//! `spin.toml`, version 2: the part of it that this host runs.
//!
//! Whatever this host does not support is an error that names the key and the line, so that an app never runs here with
//! less than its manifest asks for, or more. Paths are relative to the manifest.

use crate::allow_list::OriginPattern;
use crate::composition::{Dependency, Inheritance};
use crate::cron::Schedule;
use crate::routes::Routes;
use crate::variables::{Declaration, Template, check_name};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
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
    /// Which component is run when.
    pub(crate) crons: Vec<CronTrigger>,
    /// The components, by id.
    pub(crate) components: BTreeMap<String, Component>,
}

/// A component on a schedule.
#[derive(Debug)]
pub(crate) struct CronTrigger {
    /// When it is run.
    pub(crate) schedule: Schedule,
    /// Its id.
    pub(crate) component: String,
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
            reason: format!("cannot read: {error}; name the manifest, or its folder, with -f"),
        })?;
        Self::parse(path, &text)
    }

    /// Drops every trigger that is for none of these components, and every component without a trigger. None means all.
    ///
    /// # Errors
    ///
    /// There is no such component, or it has no trigger.
    pub(crate) fn keep(&mut self, ids: &[String]) -> Result<(), String> {
        let triggered: BTreeSet<_> = self
            .routes
            .iter()
            .map(|it| &it.component)
            .chain(self.crons.iter().map(|it| &it.component))
            .cloned()
            .collect();
        if let Some(id) = ids.iter().find(|id| !triggered.contains(*id)) {
            let known = triggered.into_iter().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "--component {id}: no trigger is for it; there is {known}"
            ));
        }
        let kept = |id: &String| ids.is_empty() || ids.contains(id);
        self.routes.retain(|route| kept(&route.component));
        self.crons.retain(|trigger| kept(&trigger.component));
        self.components
            .retain(|id, _| triggered.contains(id) && kept(id));
        Ok(())
    }

    /// Tells what leads where.
    pub(crate) fn tell(&self) {
        let tell = |heading, what: &dyn fmt::Display, component: &String| {
            let description = self
                .components
                .get(component)
                .map_or("", |it| it.description.as_str());
            let gap = if description.is_empty() { "" } else { ": " };
            tracing::info!("{heading} {what} -> {component}{gap}{description}");
        };
        for route in self.routes.iter() {
            tell("route", &route.pattern, &route.component);
        }
        for trigger in &self.crons {
            tell("cron", &trigger.schedule, &trigger.component);
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
    #[serde(default)]
    http: Vec<HttpTrigger>,
    #[serde(default)]
    cron: Vec<RawCronTrigger>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpTrigger {
    route: Spanned<RawRoute>,
    component: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a route is a path, or { private = true } for none"
)]
enum RawRoute {
    Path(String),
    Private(Private),
}

/// No path leads to the component: in Spin others reach it through service chaining, which this host does not have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Private {
    private: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCronTrigger {
    component: Spanned<String>,
    cron_expression: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawComponent {
    source: PathBuf,
    #[serde(default)]
    description: String,
    #[serde(default)]
    key_value_stores: BTreeSet<String>,
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
    expecting = "a table with `path` or `component`, the kinds of dependency that this host supports"
)]
struct RawDependency {
    path: Option<PathBuf>,
    component: Option<Spanned<String>>,
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
        let suppliers: BTreeMap<_, _> = self
            .component
            .iter()
            .map(|(id, component)| (id.get_ref().clone(), Supplier::of(folder, component)))
            .collect();
        let mut components = BTreeMap::new();
        for (id, component) in self.component {
            if !is_component_id(id.get_ref()) {
                return Err(fault(
                    &id,
                    "a component's id is lower-case letters and digits, with single hyphens between",
                ));
            }
            let component = component.into_component(folder, &variables, &suppliers)?;
            components.insert(id.into_inner(), component);
        }
        let known = |id: &Spanned<String>| {
            if components.contains_key(id.get_ref()) {
                return Ok(());
            }
            let reason = format!("there is no [component.{}]", id.get_ref());
            Err(fault(id, reason))
        };
        let mut routes = Routes::default();
        for trigger in self.trigger.http {
            known(&trigger.component)?;
            match trigger.route.get_ref() {
                RawRoute::Path(path) => routes
                    .add(path, trigger.component.get_ref())
                    .map_err(|reason| fault(&trigger.route, reason))?,
                RawRoute::Private(Private { private: true }) => {}
                RawRoute::Private(Private { private: false }) => {
                    return Err(fault(
                        &trigger.route,
                        "a route is a path, or { private = true }",
                    ));
                }
            }
        }
        let mut crons = Vec::new();
        for trigger in self.trigger.cron {
            known(&trigger.component)?;
            let schedule = Schedule::parse(trigger.cron_expression.get_ref())
                .map_err(|reason| fault(&trigger.cron_expression, reason))?;
            crons.push(CronTrigger {
                schedule,
                component: trigger.component.into_inner(),
            });
        }
        Ok(Manifest {
            name: self.application.name,
            version: self.application.version,
            variables,
            routes,
            crons,
            components,
        })
    }
}

impl RawComponent {
    fn into_component(
        self,
        folder: &Path,
        declared: &BTreeMap<String, Declaration>,
        suppliers: &BTreeMap<String, Supplier>,
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
            let path = match (&dependency.path, &dependency.component) {
                (Some(path), None) => folder.join(path),
                (None, Some(id)) => match suppliers.get(id.get_ref()) {
                    Some(part) if part.owns_nothing => part.source.clone(),
                    Some(_) => {
                        let reason = format!(
                            "[component.{}] is a dependency, so it may have nothing of its own but `source`; the \
                             component that depends on it shares what it has by `inherit_configuration`",
                            id.get_ref()
                        );
                        return Err(fault(id, reason));
                    }
                    None => {
                        return Err(fault(
                            id,
                            format!("there is no [component.{}]", id.get_ref()),
                        ));
                    }
                },
                (Some(_), Some(_)) | (None, None) => {
                    return Err(fault(
                        &name,
                        "a dependency has either `path` or `component`",
                    ));
                }
            };
            dependencies.push(Dependency {
                name: name.into_inner(),
                path,
                inherits,
            });
        }
        Ok(Component {
            source: folder.join(self.source),
            description: self.description,
            key_value_stores: self.key_value_stores,
            allowed_outbound_hosts,
            variables,
            dependencies,
        })
    }
}

/// A component, as one that fills the imports of another in.
struct Supplier {
    source: PathBuf,
    /// Whether it has no grants: as a dependency it would not get them (Spin refuses such a manifest too).
    owns_nothing: bool,
}

impl Supplier {
    fn of(folder: &Path, component: &RawComponent) -> Self {
        Self {
            source: folder.join(&component.source),
            owns_nothing: component.key_value_stores.is_empty()
                && component.allowed_outbound_hosts.is_empty()
                && component.variables.is_empty()
                && component.dependencies.is_empty(),
        }
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
                "trigger.redis",
                ":6: this host does not support the key `redis` here, expected `http` or `cron`",
            ),
            (
                "[component.web]",
                "[[trigger.cron]]\ncomponent = \"web\"\ncron_expression = \"* * * * *\"\n[component.web]",
                ":11: \"* * * * *\" is no cron expression of six fields, seconds first: ",
            ),
            (
                "[component.web]",
                "[[trigger.cron]]\ncomponent = \"wob\"\ncron_expression = \"* * * * * *\"\n[component.web]",
                ":10: there is no [component.wob]",
            ),
            (
                "route = \"/...\"",
                "route = { private = false }",
                ":7: a route is a path, or { private = true }",
            ),
            (
                "route = \"/...\"",
                "route = { secret = true }",
                ":7: a route is a path, or { private = true } for none",
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
                ":16: there is no [component.x]",
            ),
            (
                "{ path = \"dep.wasm\", ",
                "{ component = \"web\", ",
                ":16: [component.web] is a dependency, so it may have nothing of its own but `source`",
            ),
            (
                "{ path = \"dep.wasm\", ",
                "{ ",
                ":16: a dependency has either `path` or `component`",
            ),
            (
                "{ path = \"dep.wasm\", ",
                "{ url = \"x\", ",
                ":16: this host does not support the key `url` here",
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
            error.contains("expected a table with `path` or `component`, the kinds of dependency"),
            "{error}"
        );
    }

    #[test]
    fn a_component_can_be_a_dependency_or_private() {
        let text = SMALL
            .replace("{ path = \"dep.wasm\",", "{ component = \"part\",")
            .replace(
                "[component.web]",
                "[[trigger.http]]\nroute = { private = true }\ncomponent = \"part\"\n\
                 [component.part]\nsource = \"part.wasm\"\n[component.web]",
            );
        let mut manifest = parse(&text).unwrap();
        let web = manifest.components.get("web").unwrap();
        let part = web.dependencies.first().unwrap();
        assert_eq!(part.path, Path::new("/app/part.wasm"));
        assert_eq!(manifest.routes.iter().count(), 1);
        manifest.keep(&[]).unwrap();
        assert!(
            !manifest.components.contains_key("part"),
            "nothing leads to it"
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
