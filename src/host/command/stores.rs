//! Where key-value stores are: options that several commands have in common.

use super::Failure;
use crate::runtime_config::{RuntimeConfig, StateDir};
use crate::store::Store;
use clap::Args;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The option `-f`.
#[derive(Debug, Args)]
pub(super) struct ManifestFile {
    /// The manifest, or the folder that it is in.
    #[arg(
        short = 'f',
        long = "from",
        visible_alias = "file",
        value_name = "FILE",
        default_value = "spin.toml"
    )]
    manifest: PathBuf,
}

impl ManifestFile {
    /// The file.
    pub(super) fn path(&self) -> PathBuf {
        if self.manifest.is_dir() {
            self.manifest.join("spin.toml")
        } else {
            self.manifest.clone()
        }
    }
}

/// The options.
#[derive(Debug, Args)]
pub(super) struct Stores {
    /// The folder for the key-value store; for `behalf up`, empty is storage in memory [default: .spin beside the manifest].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<OsString>,

    /// A file in TOML that says which key-value stores there are, as Spin reads it: `[key_value_store.LABEL]` with the type
    /// spin or redis.
    #[arg(long, value_name = "FILE", env = "RUNTIME_CONFIG_FILE")]
    runtime_config_file: Option<PathBuf>,
}

impl Stores {
    /// The stores that there are, by label.
    pub(super) fn read(&self, manifest: &ManifestFile) -> Result<BTreeMap<String, Store>, Failure> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(Failure::Io);
        let state_dir = match &self.state_dir {
            Some(folder) if folder.is_empty() => StateDir::Memory,
            Some(folder) => StateDir::Given(absolute(Path::new(folder))?),
            None => {
                let beside = manifest.path();
                let beside = beside.parent().unwrap_or(Path::new(""));
                StateDir::Default(absolute(&beside.join(".spin"))?)
            }
        };
        let config = RuntimeConfig::read(self.runtime_config_file.as_deref(), state_dir)?;
        Ok(config.stores)
    }
}
