//! Makes what a registry takes: the WIT package in binary, and the vault component with metadata, as `wkg` would publish
//! them. `scripts/package` builds and runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use clap::Parser;
use wasm_metadata::{
    AddMetadata, AddMetadataField, Description, Licenses, Producers, Revision, Source, Version,
};
use wit_parser::Resolve;

/// Where Cargo.toml is, and `wit`.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Writes `behalf:vault@<version>.wasm`, the WIT package, and `behalf:vault-component@<version>.wasm`, the component.
#[derive(Parser)]
#[command(bin_name = "scripts/package")]
struct Arguments {
    /// Where the sources are published: a URL. It goes into the component.
    #[arg(long, value_name = "URL")]
    source: String,

    /// The commit that this is built from [default: the one that is checked out].
    #[arg(long)]
    revision: Option<String>,

    /// Folder to write to.
    #[arg(long, default_value = "target/package")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("package: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot make {}", arguments.out.display()))?;
    let version = env!("CARGO_PKG_VERSION");
    let (package, wit) = wit_package()?;
    ensure!(
        package == format!("behalf:vault@{version}"),
        "wit/behalf.wit is {package}, and Cargo.toml says {version}"
    );
    write(&arguments.out, &package, &wit)?;
    let name = "behalf:vault-component";
    let component = component(name, version, arguments)?;
    write(&arguments.out, &format!("{name}@{version}"), &component)
}

fn wit_package() -> anyhow::Result<(String, Vec<u8>)> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(Path::new(ROOT).join("wit"))?;
    let wasm = wit_component::encode(&resolve, package)?;
    let mut producers = Producers::empty();
    producers.add("processed-by", "behalf", env!("CARGO_PKG_VERSION"));
    let name = resolve
        .packages
        .get(package)
        .context("the package was just read")?
        .name
        .to_string();
    Ok((name, producers.add_to_wasm(&wasm)?))
}

fn component(name: &str, version: &str, arguments: &Arguments) -> anyhow::Result<Vec<u8>> {
    let file = Path::new(ROOT).join("target/wasm32-wasip2/release/behalf_vault.wasm");
    let wasm =
        std::fs::read(&file).with_context(|| format!("{}: run scripts/build", file.display()))?;
    let revision = match &arguments.revision {
        Some(revision) => revision.clone(),
        None => checked_out()?,
    };
    let mut metadata = AddMetadata::default();
    metadata.name = AddMetadataField::Set(name.to_owned());
    metadata.version = AddMetadataField::Set(Version::new(version.to_owned()));
    metadata.description = AddMetadataField::Set(Description::new(
        "Keeps OAuth 2.0 On-Behalf-Of refresh tokens sealed: verifies callers, calls Entra ID and Key Vault, seals and \
         opens refresh tokens"
            .to_owned(),
    ));
    metadata.licenses = AddMetadataField::Set(Licenses::new(env!("CARGO_PKG_LICENSE"))?);
    metadata.source = AddMetadataField::Set(Source::new(&arguments.source)?);
    metadata.revision = AddMetadataField::Set(Revision::new(revision));
    metadata.to_wasm(&wasm)
}

fn checked_out() -> anyhow::Result<String> {
    let output = Command::new("git")
        .current_dir(ROOT)
        .args(["rev-parse", "HEAD"])
        .output()
        .context("cannot run git: give --revision")?;
    ensure!(
        output.status.success(),
        "this is no git checkout: give --revision"
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn write(folder: &Path, name: &str, wasm: &[u8]) -> anyhow::Result<()> {
    let file = folder.join(format!("{name}.wasm"));
    std::fs::write(&file, wasm).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{} ({} bytes)", file.display(), wasm.len());
    Ok(())
}
