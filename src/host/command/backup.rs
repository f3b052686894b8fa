//! `behalf backup` and `behalf restore`.

use super::Failure;
use super::stores::{ManifestFile, Stores};
use crate::log::{self, Format, Verbosity};
use crate::store::{LABEL, Store, back_up, restore};
use clap::Args;
use std::path::PathBuf;

pub(super) const BACKUP_EXAMPLES: &str = "\
Examples:
  behalf backup /backup/monday.db                  the store of the spin.toml of this folder
  behalf backup --state-dir /data /backup/today.db

Exit codes: 0 it is there, 1 it is not, 2 the command line is wrong.";

pub(super) const RESTORE_EXAMPLES: &str = "\
Examples:
  behalf restore /backup/monday.db
  behalf restore --state-dir /data /backup/today.db

Exit codes: 0 done, 1 nothing was changed, 2 the command line is wrong.";

/// The options of `behalf backup`.
#[derive(Debug, Args)]
pub(super) struct Backup {
    #[command(flatten)]
    of: Which,

    /// The file to make. There must be none.
    #[arg(value_name = "COPY")]
    copy: PathBuf,
}

/// The options of `behalf restore`.
#[derive(Debug, Args)]
pub(super) struct Restore {
    #[command(flatten)]
    of: Which,

    /// A file that `behalf backup` made.
    #[arg(value_name = "COPY")]
    copy: PathBuf,
}

impl Backup {
    /// Makes the copy.
    pub(super) fn run(&self) -> Result<(), Failure> {
        log::begin(Format::Text, Verbosity::Info);
        back_up(&self.of.file()?, &self.copy)?;
        tracing::info!("{} is there", self.copy.display());
        Ok(())
    }
}

impl Restore {
    /// Puts the copy in the store's place.
    pub(super) fn run(&self) -> Result<(), Failure> {
        log::begin(Format::Text, Verbosity::Info);
        let file = self.of.file()?;
        restore(&self.copy, &file)?;
        tracing::info!("{} is as it was", file.display());
        Ok(())
    }
}

/// Which store.
#[derive(Debug, Args)]
struct Which {
    #[command(flatten)]
    manifest: ManifestFile,

    #[command(flatten)]
    stores: Stores,

    /// The store's label.
    #[arg(long, value_name = "LABEL", default_value = LABEL)]
    label: String,
}

impl Which {
    fn file(&self) -> Result<PathBuf, Failure> {
        let stores = self.stores.read(&self.manifest)?;
        let store = stores.get(&self.label).ok_or_else(|| {
            Failure::Usage(format!("--label {}: there is no such store", self.label))
        })?;
        let refuse = || Failure::Usage(format!("{store} is in no file: {}", way(store)));
        store.path().map(ToOwned::to_owned).ok_or_else(refuse)
    }
}

fn way(store: &Store) -> &'static str {
    match store {
        Store::Redis(_) => "Redis has backups of its own",
        Store::Sqlite(_) => "it ends with its process",
    }
}
