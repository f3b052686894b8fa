//! What makes an app: the options that `up`, `check` and `doctor` have in common.

use super::Failure;
use super::stores::{ManifestFile, Stores};
use super::values::assignment;
use crate::log::{self, Format, Verbosity};
use crate::manifest::Manifest;
use crate::store::Store;
use crate::variables::{Environment, Given};
use clap::Args;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use url::Url;

/// The options.
#[derive(Debug, Args)]
pub(super) struct Source {
    #[command(flatten)]
    manifest: ManifestFile,

    #[command(flatten)]
    stores: Stores,

    /// Go by the triggers of this component alone; may be given again.
    #[arg(
        short = 'c',
        long = "component",
        visible_alias = "component-id",
        value_name = "ID"
    )]
    components: Vec<String>,

    /// The value of a variable, before the environment; others on this machine can see it. May be given again.
    #[arg(long = "variable", value_name = "NAME=VALUE", value_parser = assignment)]
    variables: Vec<(String, String)>,

    /// A file that holds the value of a variable, read each time the app asks for it. May be given again.
    #[arg(long = "variable-file", value_name = "NAME=PATH", value_parser = assignment)]
    variable_files: Vec<(String, String)>,

    /// Take the settings of the managed identity from the platform: `identity_endpoint`, `identity_header` and `identity_origin` from
    /// `IDENTITY_ENDPOINT` and `IDENTITY_HEADER`, as Container Apps and App Service set them. `--variable` goes first.
    #[arg(long)]
    platform_identity: bool,

    /// Certificate authorities in PEM that requests of components trust besides the platform's.
    #[arg(long, value_name = "FILE")]
    pub(super) outbound_ca: Option<PathBuf>,

    /// The folder for compiled components; empty: none [default: behalf in the user's cache folder].
    #[arg(long, value_name = "DIR", env = "BEHALF_CACHE_DIR")]
    cache_dir: Option<OsString>,

    /// How what is said on standard error looks.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: Format,

    /// What is said there.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: Verbosity,
}

impl Source {
    /// Reads the manifest.
    pub(super) fn manifest(&self) -> Result<Manifest, Failure> {
        log::begin(self.log_format, self.log_level);
        let mut manifest = Manifest::load(&self.manifest.path())?;
        manifest.keep(&self.components).map_err(Failure::Usage)?;
        Ok(manifest)
    }

    /// The stores that there are.
    pub(super) fn stores(&self) -> Result<BTreeMap<String, Store>, Failure> {
        self.stores.read(&self.manifest)
    }

    pub(super) fn environment(&self) -> Result<Environment, Failure> {
        let values = self.variables.iter().cloned();
        let files = self.variable_files.iter().cloned();
        let given = values
            .map(|(name, value)| (name, Given::Value(value)))
            .chain(files.map(|(name, path)| (name, Given::File(path.into()))));
        let environment = Environment::of_process(Path::new(".env")).map_err(Failure::Usage)?;
        let platform = if self.platform_identity {
            platform_identity(|name| std::env::var(name).ok()).map_err(Failure::Usage)?
        } else {
            Vec::new()
        };
        let platform = platform
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Given::Value(value)));
        Ok(environment.with(platform).with(given))
    }

    pub(super) fn cache(&self) -> Option<PathBuf> {
        match &self.cache_dir {
            Some(folder) if folder.is_empty() => None,
            Some(folder) => Some(PathBuf::from(folder)),
            None => {
                let user = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
                let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
                let folder = user.filter(|path| path.is_absolute()).or_else(home)?;
                Some(folder.join("behalf"))
            }
        }
    }
}

/// The settings of the managed identity, out of what the platform puts into the environment
/// (<https://learn.microsoft.com/azure/container-apps/managed-identity>).
fn platform_identity(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(&'static str, String)>, String> {
    let needed = |name| {
        variable(name).filter(|value| !value.is_empty()).ok_or_else(|| {
            format!(
                "--platform-identity: the environment has no {name}, which Container Apps and App Service set for an app that has a \
                 managed identity: assign one to the app; elsewhere leave this option out"
            )
        })
    };
    let (endpoint, header) = (needed("IDENTITY_ENDPOINT")?, needed("IDENTITY_HEADER")?);
    let origin = Url::parse(&endpoint)
        .ok()
        .map(|url| url.origin())
        .filter(url::Origin::is_tuple)
        .ok_or(
            "--platform-identity: IDENTITY_ENDPOINT is no URL: leave it as the platform sets it",
        )?;
    Ok(vec![
        ("identity_endpoint", endpoint),
        ("identity_header", header),
        // Of this the manifest makes allowed_outbound_hosts.
        ("identity_origin", origin.ascii_serialization()),
    ])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_platform_says_where_its_identity_is() {
        let read = |endpoint: &str, header: &str| {
            platform_identity(|name| match name {
                "IDENTITY_ENDPOINT" => Some(endpoint.to_owned()),
                "IDENTITY_HEADER" => Some(header.to_owned()),
                _ => None,
            })
        };
        for (endpoint, origin) in [
            ("http://localhost:42356/msi/token", "http://localhost:42356"),
            (
                "http://169.254.131.2:8081/msi/token",
                "http://169.254.131.2:8081",
            ),
        ] {
            let settings = read(endpoint, "canary").unwrap();
            assert_eq!(
                settings,
                [
                    ("identity_endpoint", endpoint.to_owned()),
                    ("identity_header", "canary".to_owned()),
                    ("identity_origin", origin.to_owned())
                ]
            );
        }
        for (endpoint, header, named) in [
            ("", "canary", "IDENTITY_ENDPOINT"),
            ("http://localhost:42356/msi/token", "", "IDENTITY_HEADER"),
            ("localhost", "canary", "IDENTITY_ENDPOINT"),
            ("data:canary", "canary", "IDENTITY_ENDPOINT"),
        ] {
            let error = read(endpoint, header).unwrap_err();
            assert!(
                error.contains(named) && !error.contains("canary"),
                "{error}"
            );
        }
    }
}
