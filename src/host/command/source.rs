//! What makes an app: the options that `up` and `check` have in common.

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

/// The options.
#[derive(Debug, Args)]
pub(super) struct Source {
    #[command(flatten)]
    manifest: ManifestFile,

    #[command(flatten)]
    stores: Stores,

    /// Run only the triggers of this component; may be given again.
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
        Ok(environment.with(given))
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
