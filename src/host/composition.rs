//! Composition: a component and the components that fill its imports in become one component, as in Spin
//! (PLATFORMS.md, "Manifest and composition").
//!
//! Each dependency entry is one instance with a memory of its own. What the dependencies import from the host merges
//! with what the component itself imports; only the component's own exports remain.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use wac_graph::types::{ItemKind, Package};
use wac_graph::{CompositionGraph, EncodeOptions, NodeId};

/// A component that fills imports in.
#[derive(Debug)]
pub(crate) struct Dependency {
    /// What it fills in: all interfaces of a package (`ns:pkg`, `ns:pkg@1.0.0`), or one (`ns:pkg/interface@1.0.0`).
    pub(crate) name: String,
    /// The `.wasm` file.
    pub(crate) path: PathBuf,
    /// What the component shares with it.
    pub(crate) inherits: Inheritance,
}

/// What a component shares with a dependency: `inherit_configuration`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Inheritance {
    capabilities: BTreeSet<Capability>,
}

impl Inheritance {
    /// What can be inherited, for messages.
    pub(crate) const KEYS: &str = "it can inherit ai_models, allowed_outbound_hosts, environment, files, \
                                   key_value_stores, sqlite_databases, variables";

    /// Everything.
    pub(crate) fn all() -> Self {
        CAPABILITIES
            .iter()
            .map(|(_, capability)| *capability)
            .collect()
    }
}

impl FromIterator<Capability> for Inheritance {
    fn from_iter<I: IntoIterator<Item = Capability>>(capabilities: I) -> Self {
        Self {
            capabilities: capabilities.into_iter().collect(),
        }
    }
}

/// One thing that a dependency can inherit. Those that this host never grants to anyone are listed only so that a
/// manifest for Spin is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Capability {
    /// Outbound HTTP to the component's allowed origins.
    AllowedOutboundHosts,
    /// The component's key-value stores.
    KeyValueStores,
    /// The component's variables.
    Variables,
    /// Never granted here.
    AiModels,
    /// Never granted here.
    Environment,
    /// Never granted here.
    Files,
    /// Never granted here.
    SqliteDatabases,
}

const CAPABILITIES: [(&str, Capability); 7] = [
    ("allowed_outbound_hosts", Capability::AllowedOutboundHosts),
    ("key_value_stores", Capability::KeyValueStores),
    ("variables", Capability::Variables),
    ("ai_models", Capability::AiModels),
    ("environment", Capability::Environment),
    ("files", Capability::Files),
    ("sqlite_databases", Capability::SqliteDatabases),
];

/// The interfaces that need a capability to be inherited. All others of this host give access to nothing.
const GUARDED: [(&str, &str); 10] = [
    ("wasi:http/client", "allowed_outbound_hosts"),
    ("wasi:http/outgoing-handler", "allowed_outbound_hosts"),
    ("fermyon:spin/key-value", "key_value_stores"),
    ("fermyon:spin/variables", "variables"),
    ("spin:key-value/key-value", "key_value_stores"),
    ("wasi:keyvalue/atomics", "key_value_stores"),
    ("wasi:keyvalue/batch", "key_value_stores"),
    ("wasi:keyvalue/store", "key_value_stores"),
    ("spin:variables/variables", "variables"),
    ("wasi:config/store", "variables"),
];

impl FromStr for Capability {
    /// The text itself, if no capability has that name.
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = CAPABILITIES.iter().find(|(known, _)| *known == name);
        known
            .map(|(_, capability)| *capability)
            .ok_or_else(|| name.to_owned())
    }
}

/// Reads the component at `source` and fills its imports in. Returns it as it is if there are no dependencies.
///
/// # Errors
///
/// See [`ComposeError`].
pub(crate) fn compose(source: &Path, dependencies: &[Dependency]) -> Result<Vec<u8>, ComposeError> {
    let bytes = read(source)?;
    if dependencies.is_empty() {
        return Ok(bytes);
    }
    let mut graph = CompositionGraph::new();
    let root = instantiate(&mut graph, "root", source, bytes)?;
    let mut filled: BTreeMap<String, &str> = BTreeMap::new();
    for dependency in dependencies {
        let name = DependencyName::parse(&dependency.name);
        let imports: Vec<_> = root
            .imports
            .iter()
            .filter(|import| name.matches(import))
            .collect();
        if imports.is_empty() {
            return Err(ComposeError::NothingToFill {
                dependency: dependency.name.clone(),
                file: source.to_owned(),
            });
        }
        let instance = instantiate(
            &mut graph,
            &dependency.name,
            &dependency.path,
            read(&dependency.path)?,
        )?;
        instance.check_inheritance(dependency)?;
        for import in imports {
            if let Some(other) = filled.insert(import.clone(), &dependency.name) {
                return Err(ComposeError::FilledTwice {
                    import: import.clone(),
                    first: other.to_owned(),
                    second: dependency.name.clone(),
                });
            }
            if !instance.exports.contains(import) {
                return Err(ComposeError::NoSuchExport {
                    import: import.clone(),
                    file: dependency.path.clone(),
                });
            }
            let export = graph
                .alias_instance_export(instance.node, import)
                .map_err(|error| mismatch(dependency, &error))?;
            graph
                .set_instantiation_argument(root.node, import, export)
                .map_err(|error| mismatch(dependency, &chain(&error)))?;
        }
    }
    for name in &root.exports {
        let unexpected = |error: &dyn std::error::Error| ComposeError::Encode {
            file: source.to_owned(),
            reason: chain(error),
        };
        let export = graph
            .alias_instance_export(root.node, name)
            .map_err(|error| unexpected(&error))?;
        graph
            .export(export, name)
            .map_err(|error| unexpected(&error))?;
    }
    let options = EncodeOptions {
        // Compiling does.
        validate: false,
        ..EncodeOptions::default()
    };
    graph.encode(options).map_err(|error| ComposeError::Encode {
        file: source.to_owned(),
        reason: chain(&error),
    })
}

/// Why a composition failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ComposeError {
    /// A file is not there.
    #[error("there is no {}; run scripts/build to make it", .0.display())]
    NotBuilt(PathBuf),
    /// A file cannot be read.
    #[error("cannot read {}: {reason}", .file.display())]
    Unreadable { file: PathBuf, reason: String },
    /// A file is no component.
    #[error("{} is no WebAssembly component: {reason}; run scripts/build to make it anew", .file.display())]
    NoComponent { file: PathBuf, reason: String },
    /// A dependency's name matches no import.
    #[error("the dependency \"{dependency}\" matches no import of {}; check its name", .file.display())]
    NothingToFill { dependency: String, file: PathBuf },
    /// Two dependencies match the same import.
    #[error(
        "the dependencies \"{first}\" and \"{second}\" both fill the import {import} in; remove one"
    )]
    FilledTwice {
        import: String,
        first: String,
        second: String,
    },
    /// A dependency lacks what it should fill in.
    #[error("{} does not export {import}; build it from the same WIT files", .file.display())]
    NoSuchExport { import: String, file: PathBuf },
    /// A dependency has an interface of that name, but of another shape.
    #[error(
        "the dependency \"{dependency}\" does not fit: {reason}; build both sides from the same WIT files"
    )]
    Mismatch { dependency: String, reason: String },
    /// A dependency wants what the component does not share with it.
    #[error(
        "the dependency \"{dependency}\" imports {import} but does not inherit {key}; add \"{key}\" to its \
             inherit_configuration"
    )]
    NotInherited {
        dependency: String,
        import: String,
        key: &'static str,
    },
    /// The whole cannot be put together.
    #[error("cannot compose {}: {reason}", .file.display())]
    Encode { file: PathBuf, reason: String },
}

/// A node of the graph, with the names of its imports and exports.
struct Instance {
    node: NodeId,
    imports: Vec<String>,
    exports: Vec<String>,
}

impl Instance {
    fn check_inheritance(&self, dependency: &Dependency) -> Result<(), ComposeError> {
        for import in &self.imports {
            let interface = import
                .split_once('@')
                .map_or(import.as_str(), |(name, _)| name);
            for (guarded, key) in GUARDED {
                let inherited = key
                    .parse()
                    .is_ok_and(|it| dependency.inherits.capabilities.contains(&it));
                if guarded == interface && !inherited {
                    let dependency = dependency.name.clone();
                    return Err(ComposeError::NotInherited {
                        dependency,
                        import: import.clone(),
                        key,
                    });
                }
            }
        }
        Ok(())
    }
}

fn instantiate(
    graph: &mut CompositionGraph,
    name: &str,
    file: &Path,
    bytes: Vec<u8>,
) -> Result<Instance, ComposeError> {
    let no_component = |reason: String| ComposeError::NoComponent {
        file: file.to_owned(),
        reason,
    };
    let package = Package::from_bytes(name, None, bytes, graph.types_mut())
        .map_err(|error| no_component(one_line(format!("{error:#}"))))?;
    let world = package.ty();
    let id = graph
        .register_package(package)
        .map_err(|error| no_component(chain(&error)))?;
    let node = graph.instantiate(id);
    let world = &graph.types()[world];
    Ok(Instance {
        node,
        imports: names(&world.imports),
        exports: names(&world.exports),
    })
}

fn names<'a>(items: impl IntoIterator<Item = (&'a String, &'a ItemKind)>) -> Vec<String> {
    items.into_iter().map(|(name, _)| name.clone()).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, ComposeError> {
    std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ComposeError::NotBuilt(path.to_owned()),
        _ => ComposeError::Unreadable {
            file: path.to_owned(),
            reason: error.to_string(),
        },
    })
}

fn mismatch(dependency: &Dependency, reason: &dyn Display) -> ComposeError {
    ComposeError::Mismatch {
        dependency: dependency.name.clone(),
        reason: reason.to_string(),
    }
}

/// An error and all its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    one_line(
        causes
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": "),
    )
}

fn one_line(text: String) -> String {
    if text.contains('\n') {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    } else {
        text
    }
}

/// A dependency's name in its parts.
#[derive(Debug)]
struct DependencyName<'a> {
    package: &'a str,
    interface: Option<&'a str>,
    version: Option<&'a str>,
}

impl<'a> DependencyName<'a> {
    fn parse(name: &'a str) -> Self {
        let (name, version) = name
            .split_once('@')
            .map_or((name, None), |(name, version)| (name, Some(version)));
        let (package, interface) = name
            .split_once('/')
            .map_or((name, None), |(it, interface)| (it, Some(interface)));
        Self {
            package,
            interface,
            version,
        }
    }

    fn matches(&self, import: &str) -> bool {
        let import = DependencyName::parse(import);
        // A plain name (`logger`) is neither a package nor an interface, and matches itself alone.
        self.package == import.package
            && (self.interface.is_none() || self.interface == import.interface)
            && (self.version.is_none() || self.version == import.version)
            && (self.package.contains(':') || import.interface.is_none())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_match_imports() {
        for (name, import, matches) in [
            ("n:p", "n:p/i@0.1.0", true),
            ("n:p", "n:p/i", true),
            ("n:p@0.1.0", "n:p/i@0.1.0", true),
            ("n:p/i", "n:p/i@0.1.0", true),
            ("n:p/i@0.1.0", "n:p/i@0.1.0", true),
            ("plain-name", "plain-name", true),
            ("n:p", "n:q/i", false),
            ("n:p", "n:pp/i", false),
            ("n:p@0.1.0", "n:p/i", false),
            ("n:p@0.1.0", "n:p/i@0.1.1", false),
            ("n:p/i", "n:p/ii", false),
            ("n:p/i", "plain-name", false),
            ("plain-name", "n:plain-name/i", false),
        ] {
            assert_eq!(
                DependencyName::parse(name).matches(import),
                matches,
                "{name} {import}"
            );
        }
    }

    /// Components in text: `root` imports `n:p/i` and exports `n:p/o`; `part` exports `n:p/i`.
    const ROOT: &str = r#"(component
        (import "n:p/i@1.0.0" (instance $i (export "f" (func))))
        (instance $o (export "g" (func $i "f")))
        (export "n:p/o@1.0.0" (instance $o)))"#;
    const PART: &str = r#"(component
        (core module $m (func (export "f")))
        (core instance $m (instantiate $m))
        (func $f (canon lift (core func $m "f")))
        (instance $i (export "f" (func $f)))
        (export "n:p/i@1.0.0" (instance $i)))"#;

    fn part_that_imports(interface: &str) -> String {
        PART.replacen(
            "(component",
            &format!("(component (import \"{interface}\" (instance))"),
            1,
        )
    }

    struct Files(tempfile::TempDir);

    impl Files {
        fn new(root: &str, part: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in [("root.wasm", root), ("part.wasm", part)] {
                std::fs::write(folder.path().join(name), wat::parse_str(text).unwrap()).unwrap();
            }
            Self(folder)
        }

        fn compose(&self, dependencies: &[(&str, &str, Inheritance)]) -> Result<Vec<u8>, String> {
            let dependencies: Vec<_> = dependencies
                .iter()
                .map(|(name, file, inherits)| Dependency {
                    name: (*name).to_owned(),
                    path: self.0.path().join(file),
                    inherits: inherits.clone(),
                })
                .collect();
            let composed = compose(&self.0.path().join("root.wasm"), &dependencies);
            composed.map_err(|error| {
                error
                    .to_string()
                    .replace(&format!("{}/", self.0.path().display()), "")
            })
        }
    }

    fn world(bytes: Vec<u8>) -> (Vec<String>, Vec<String>) {
        let mut graph = CompositionGraph::new();
        let instance = instantiate(&mut graph, "whole", Path::new("whole"), bytes).unwrap();
        (instance.imports, instance.exports)
    }

    #[test]
    fn imports_are_filled_in_and_exports_remain() {
        let files = Files::new(ROOT, PART);
        let whole = files
            .compose(&[("n:p", "part.wasm", Inheritance::default())])
            .unwrap();
        assert_eq!(world(whole), (Vec::new(), vec!["n:p/o@1.0.0".to_owned()]));
        let as_it_is = files.compose(&[]).unwrap();
        assert_eq!(world(as_it_is).0, ["n:p/i@1.0.0"]);
    }

    #[test]
    fn a_capability_must_be_inherited() {
        for (interface, key) in [
            ("wasi:http/client@0.3.0", "allowed_outbound_hosts"),
            ("wasi:http/outgoing-handler@0.2.6", "allowed_outbound_hosts"),
            ("wasi:config/store@0.2.0-draft-2024-09-27", "variables"),
            ("spin:variables/variables@3.0.0", "variables"),
            ("fermyon:spin/variables@2.0.0", "variables"),
            ("fermyon:spin/key-value@2.0.0", "key_value_stores"),
            ("wasi:keyvalue/batch@0.2.0-draft2", "key_value_stores"),
            ("wasi:keyvalue/atomics@0.2.0-draft2", "key_value_stores"),
            ("spin:key-value/key-value@3.0.0", "key_value_stores"),
            ("wasi:keyvalue/store@0.2.0-draft2", "key_value_stores"),
        ] {
            let files = Files::new(ROOT, &part_that_imports(interface));
            let others: Inheritance = Inheritance::all()
                .capabilities
                .into_iter()
                .filter(|it| Ok(*it) != key.parse())
                .collect();
            let error = files.compose(&[("n:p", "part.wasm", others)]).unwrap_err();
            let message = format!(
                "the dependency \"n:p\" imports {interface} but does not inherit {key}; add \"{key}\" to its \
                 inherit_configuration"
            );
            assert_eq!(error, message);
            let only = std::iter::once(key.parse().unwrap()).collect();
            let whole = files.compose(&[("n:p", "part.wasm", only)]).unwrap();
            assert_eq!(world(whole).0, [interface]);
        }
    }

    #[test]
    fn clocks_and_the_like_need_no_capability() {
        let files = Files::new(
            ROOT,
            &part_that_imports("wasi:clocks/monotonic-clock@0.3.0"),
        );
        assert!(
            files
                .compose(&[("n:p", "part.wasm", Inheritance::default())])
                .is_ok()
        );
    }

    #[test]
    fn what_goes_wrong_is_named() {
        let files = Files::new(ROOT, PART);
        std::fs::write(files.0.path().join("junk.wasm"), "junk").unwrap();
        let none = Inheritance::default;
        for (dependencies, message) in [
            (
                vec![("n:p", "missing.wasm", none())],
                "there is no missing.wasm; run scripts/build to make it",
            ),
            (
                vec![("n:p", "junk.wasm", none())],
                "junk.wasm is no WebAssembly component: ",
            ),
            (
                vec![("n:q", "part.wasm", none())],
                "the dependency \"n:q\" matches no import of root.wasm",
            ),
            (
                vec![("n:p", "root.wasm", none())],
                "root.wasm does not export n:p/i@1.0.0; build it from the same WIT",
            ),
            (
                vec![("n:p", "part.wasm", none()), ("n:p/i", "part.wasm", none())],
                "the dependencies \"n:p\" and \"n:p/i\" both fill the import n:p/i@1.0.0 in; remove one",
            ),
        ] {
            let error = files.compose(&dependencies).unwrap_err();
            assert!(error.starts_with(message), "{error}");
        }
        let files = Files::new(ROOT, &PART.replace("\"f\"", "\"g\""));
        let error = files.compose(&[("n:p", "part.wasm", none())]).unwrap_err();
        assert!(
            error.starts_with(
                "the dependency \"n:p\" does not fit: mismatched instantiation argument"
            ),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);
    }
}
