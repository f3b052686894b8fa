//! Every item of `wit/behalf.wit` is documented: interfaces, worlds, types, fields, cases and functions.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

use std::path::Path;

use wit_parser::{PackageId, Resolve, Type, TypeDefKind, TypeId, WorldKey};

#[test]
fn every_item_is_documented() {
    let (resolve, package) = package();
    let package = &resolve.packages[package];
    assert_eq!(package.name.to_string(), "behalf:vault@0.2.0");
    let docs = package.docs.contents.as_deref().unwrap_or_default();
    assert!(docs.contains("# Examples"), "the package shows its use");

    let mut items = 0;
    let mut missing = Vec::new();
    let mut look = |what: String, docs: &wit_parser::Docs| {
        items += 1;
        if docs
            .contents
            .as_ref()
            .is_none_or(|text| text.trim().is_empty())
        {
            missing.push(what);
        }
    };
    look("package".into(), &package.docs);
    for world in package.worlds.values() {
        look(
            format!("world {}", resolve.worlds[*world].name),
            &resolve.worlds[*world].docs,
        );
    }
    for (name, interface) in &package.interfaces {
        let interface = &resolve.interfaces[*interface];
        look(format!("interface {name}"), &interface.docs);
        for (name, function) in &interface.functions {
            look(format!("function {name}"), &function.docs);
        }
        for (name, id) in &interface.types {
            let definition = &resolve.types[*id];
            // Another interface's, which is documented there.
            let is_used = |of: &TypeId| resolve.types[*of].name == definition.name;
            if matches!(&definition.kind, TypeDefKind::Type(Type::Id(of)) if is_used(of)) {
                continue;
            }
            look(format!("type {name}"), &definition.docs);
            match &definition.kind {
                TypeDefKind::Record(record) => {
                    record
                        .fields
                        .iter()
                        .for_each(|field| look(format!("{name}.{}", field.name), &field.docs));
                }
                TypeDefKind::Variant(variant) => {
                    variant
                        .cases
                        .iter()
                        .for_each(|case| look(format!("{name}.{}", case.name), &case.docs));
                }
                TypeDefKind::Enum(variant) => {
                    variant
                        .cases
                        .iter()
                        .for_each(|case| look(format!("{name}.{}", case.name), &case.docs));
                }
                _ => {}
            }
        }
    }
    assert!(
        items > 60,
        "only {items} items were found: the check looks in the wrong place"
    );
    assert_eq!(missing, Vec::<String>::new(), "items without documentation");
}

/// Who does without calls does without HTTP, and whoever calls gets its types and no way out.
#[test]
fn only_those_who_call_import_http() {
    let (resolve, package) = package();
    let http_of = |world: &str| -> Vec<String> {
        let world = resolve.packages[package].worlds[world];
        let imports = resolve.worlds[world].imports.keys();
        let names = imports.filter_map(|key| match key {
            WorldKey::Interface(id) => resolve.id_of(*id),
            WorldKey::Name(name) => Some(name.clone()),
        });
        names
            .filter(|name| name.starts_with("wasi:http/"))
            .collect()
    };
    assert_eq!(http_of("vault-user"), [""; 0]);
    assert_eq!(http_of("call-user"), ["wasi:http/types@0.3.0"]);
}

fn package() -> (Resolve, PackageId) {
    let mut resolve = Resolve::default();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("wit");
    let (package, _) = resolve.push_dir(&wit).unwrap();
    (resolve, package)
}
