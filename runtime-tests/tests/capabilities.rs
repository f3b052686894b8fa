//! What the shipped components can do at all: their imports and exports equal checked-in lists, and what must never be
//! among them is not. A reader can take `capabilities/*.txt` for the permission lists (design, property 2).
//!
//! After a wanted change: `UPDATE_CAPABILITIES=1 cargo test --test capabilities`, and say why in the
//! commit.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

use std::path::{Path, PathBuf};

use wasmparser::{Parser, Payload};

const HTTP_NEVER: &[&str] = &[
    "behalf:vault/database@",
    "spin:postgres/",
    "wasi:http/client@",
    "wasi:http/outgoing-handler@",
    "wasi:config/",
    "spin:variables/",
    "fermyon:spin/",
    "wasi:sockets/",
    "wasi:filesystem/",
];

const HTTP_POSTGRES_NEVER: &[&str] = &[
    "spin:key-value/",
    "wasi:keyvalue/",
    "wasi:http/client@",
    "wasi:http/outgoing-handler@",
    "wasi:config/",
    "spin:variables/",
    "fermyon:spin/",
    "wasi:sockets/",
    "wasi:filesystem/",
];

const VAULT_NEVER: &[&str] = &[
    "spin:",
    "fermyon:",
    "wasi:keyvalue/",
    "wasi:sockets/",
    "wasi:filesystem/",
    "wasi:http/handler@",
];

const CRON_NEVER: &[&str] = &[
    "spin:",
    "wasi:keyvalue/",
    "wasi:sockets/",
    "wasi:filesystem/",
    "wasi:random/random@",
    "behalf:",
];

#[test]
fn http_imports_storage_and_the_vault_and_no_network_settings_or_files() {
    check(
        "http",
        HTTP_NEVER,
        &["behalf:vault/vault@0.2.0", "spin:key-value/key-value@3.0.0"],
    );
}

#[test]
fn http_on_postgres_imports_one_database_and_the_vault_and_no_other_storage_network_settings_or_files()
 {
    check(
        "http_postgres",
        HTTP_POSTGRES_NEVER,
        &[
            "behalf:vault/vault@0.2.0",
            "behalf:vault/database@0.2.0",
            "spin:postgres/postgres@4.2.0",
        ],
    );
}

/// The others of that interface stop the whole instance for as long as they take, or, with no rows, for ever (PLATFORMS.md, "Spin",
/// "PostgreSQL").
#[test]
fn http_on_postgres_uses_the_asynchronous_functions_of_the_database_alone() {
    let functions = core_imports("http_postgres", "spin:postgres/postgres@4.2.0");
    let functions: Vec<_> = functions
        .iter()
        // Streams and futures that a function has are imported with its name.
        .filter(|name| !name.contains("stream-") && !name.contains("future-"))
        .collect();
    assert_eq!(
        functions,
        [
            "[async-lower][method]connection-builder.build-async",
            "[async-lower][method]connection.query-async",
            "[async-lower][static]connection.open-async",
            "[constructor]connection-builder",
            "[method]connection-builder.set-ca-root",
            "[resource-drop]connection",
            "[resource-drop]connection-builder",
        ]
    );
}

#[test]
fn vault_imports_network_and_settings_and_no_storage_or_files() {
    check(
        "vault",
        VAULT_NEVER,
        &[
            "wasi:http/client@0.3.0",
            "wasi:config/store@0.2.0-draft-2024-09-27",
        ],
    );
}

#[test]
fn cron_imports_network_and_settings_of_wasi_0_2_and_no_storage_or_files() {
    check(
        "cron",
        CRON_NEVER,
        &[
            "wasi:http/outgoing-handler@0.2.12",
            "wasi:config/store@0.2.0-draft-2024-09-27",
        ],
    );
    // The cron plugin has no WASI 0.3 up to 0.4.
    let newer: Vec<_> = capabilities("cron")
        .into_iter()
        .filter(|name| name.contains("@0.3"))
        .collect();
    assert_eq!(newer, Vec::<String>::new());
}

fn check(component: &str, never: &[&str], always: &[&str]) {
    let names = capabilities(component);
    // The absence checks could not fail if the names were not read right: these are known to be there.
    for name in always {
        assert!(
            names.contains(&format!("import {name}")),
            "{component}.wasm does not import {name}: {names:#?}"
        );
    }
    for prefix in never {
        let found: Vec<_> = names
            .iter()
            .filter(|name| name.starts_with(&format!("import {prefix}")))
            .collect();
        assert!(
            found.is_empty(),
            "{component}.wasm must not import {prefix}…: {found:?}"
        );
    }
    let list = root().join(format!("runtime-tests/capabilities/{component}.txt"));
    let actual = format!("{}\n", names.join("\n"));
    if std::env::var_os("UPDATE_CAPABILITIES").is_some() {
        std::fs::write(&list, &actual).unwrap();
    }
    let golden = std::fs::read_to_string(&list).unwrap_or_default();
    assert_eq!(
        actual,
        golden,
        "{component}.wasm differs from {}",
        list.display()
    );
}

fn built(component: &str) -> Vec<u8> {
    let wasm = root().join(format!(
        "target/wasm32-wasip2/release/behalf_{component}.wasm"
    ));
    std::fs::read(&wasm)
        .unwrap_or_else(|error| panic!("{}: {error}: run scripts/build", wasm.display()))
}

/// What the modules within a component import of an interface, sorted.
fn core_imports(component: &str, interface: &str) -> Vec<String> {
    let bytes = built(component);
    let mut names = Vec::new();
    for payload in Parser::new(0).parse_all(&bytes) {
        if let Payload::ImportSection(section) = payload.unwrap() {
            for import in section.into_imports() {
                let import = import.unwrap();
                if import.module == interface {
                    names.push(import.name.to_owned());
                }
            }
        }
    }
    names.sort();
    names
}

/// `import …` and `export …` of the outermost component, sorted.
fn capabilities(component: &str) -> Vec<String> {
    let bytes = built(component);
    let mut names = Vec::new();
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(&bytes) {
        match payload.unwrap() {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 0 => {
                names.extend(
                    section
                        .into_iter()
                        .map(|import| format!("import {}", import.unwrap().name.name)),
                );
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                names.extend(
                    section
                        .into_iter()
                        .map(|export| format!("export {}", export.unwrap().name.name)),
                );
            }
            _ => {}
        }
    }
    names.sort();
    names
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}
