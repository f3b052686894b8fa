//! `behalf tenant`.

mod remove;

use super::Failure;
use clap::Subcommand;
use remove::Remove;

/// What to do with tenants.
#[derive(Debug, Subcommand)]
pub(super) enum Tenant {
    /// Remove a tenant: all its users, then its key, and tell what is left of that.
    ///
    /// First its users' records go, by the app, until none is left. Then its key in Key Vault is deleted, and purged if the vault allows
    /// that, so that no copy or backup of a record opens any more. What the app has in memory it forgets within `key_cache_seconds`.
    /// Take the tenant out of the setting `tenants`, too, or its users can enrol again once it has a key. To run this again goes on
    /// where it was.
    #[command(after_help = remove::EXAMPLES)]
    Remove(Box<Remove>),
}

impl Tenant {
    /// Does it.
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Remove(remove) => remove.run().await,
        }
    }
}
