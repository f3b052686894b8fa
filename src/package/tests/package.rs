//! What `scripts/package` makes, read back as a registry's client would.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::path::Path;
use std::process::Command;

use wasm_metadata::Payload;
use wit_parser::Resolve;
use wit_parser::decoding::{DecodedWasm, decode};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

#[test]
fn the_wit_package_is_the_interface_with_its_words() {
    let folder = package(&[]);
    let bytes = read(folder.path(), "vault");
    let DecodedWasm::WitPackage(published, id) = decode(&bytes).unwrap() else {
        panic!("it is no WIT package");
    };
    let mut source = Resolve::default();
    let (own, _) = source.push_dir(Path::new(ROOT).join("wit")).unwrap();
    let (published_package, own_package) = (&published.packages[id], &source.packages[own]);
    assert_eq!(published_package.name, own_package.name);
    assert_eq!(
        published_package.docs.contents.as_deref().map(str::trim),
        own_package.docs.contents.as_deref().map(str::trim)
    );
    assert_eq!(
        published_package.worlds.keys().collect::<Vec<_>>(),
        own_package.worlds.keys().collect::<Vec<_>>()
    );
    let functions = |resolve: &Resolve, package: &wit_parser::Package| {
        let interface = &resolve.interfaces[package.interfaces["vault"]];
        let functions = interface.functions.values();
        let functions: Vec<_> = functions
            .map(|it| (it.name.clone(), it.docs.contents.is_some()))
            .collect();
        functions
    };
    let expected = functions(&source, own_package);
    assert!(expected.len() >= 8 && expected.iter().all(|(_, documented)| *documented));
    assert_eq!(functions(&published, published_package), expected);
}

#[test]
fn the_component_says_what_it_is_and_is_what_was_built() {
    let source = "https://sources.example/behalf";
    let folder = package(&["--source", source, "--revision", "0123abcd"]);
    let bytes = read(folder.path(), "vault-component");
    let payload = Payload::from_binary(&bytes).unwrap();
    let metadata = payload.metadata();
    assert_eq!(metadata.name.as_deref(), Some("behalf:vault-component"));
    let shown = |value: Option<String>| value.unwrap_or_default();
    assert_eq!(
        shown(metadata.version.as_ref().map(ToString::to_string)),
        VERSION
    );
    assert_eq!(
        shown(metadata.licenses.as_ref().map(ToString::to_string)),
        "Apache-2.0"
    );
    assert_eq!(
        shown(metadata.source.as_ref().map(ToString::to_string)),
        source
    );
    assert_eq!(
        shown(metadata.revision.as_ref().map(ToString::to_string)),
        "0123abcd"
    );
    assert!(shown(metadata.description.as_ref().map(ToString::to_string)).contains("sealed"));

    let world = |bytes: &[u8]| {
        let DecodedWasm::Component(resolve, world) = decode(bytes).unwrap() else {
            panic!("it is no component");
        };
        let world = &resolve.worlds[world];
        let names = |items: &wit_parser::IndexMap<wit_parser::WorldKey, wit_parser::WorldItem>| {
            let names = items.keys().map(|key| resolve.name_world_key(key));
            names.collect::<Vec<_>>()
        };
        (names(&world.imports), names(&world.exports))
    };
    let built =
        std::fs::read(Path::new(ROOT).join("target/wasm32-wasip2/release/behalf_vault.wasm"));
    let (imports, exports) = world(&bytes);
    let interfaces =
        ["vault", "call", "database"].map(|name| format!("behalf:vault/{name}@{VERSION}"));
    assert_eq!(exports, interfaces);
    assert_eq!((imports, exports), world(&built.unwrap()));
}

#[test]
fn without_a_source_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_behalf-package"))
        .arg("--out")
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--source"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

fn package(arguments: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_behalf-package"));
    command.arg("--out").arg(folder.path());
    if arguments.is_empty() {
        command.args(["--source", "https://sources.example/"]);
    }
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    folder
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(format!("behalf:{name}@{VERSION}.wasm"))).unwrap()
}
