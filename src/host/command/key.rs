//! `behalf key`.

mod known;
mod retire;
mod rotate;

use super::Failure;
use clap::Subcommand;
use retire::Retire;
use rotate::Rotate;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Make a new version of tenants' keys, or their first: 32 random bytes in Key Vault.
    ///
    /// The next sweeps move every record to it. Whoever runs this needs the permission to set secrets and no other: nothing is
    /// read, and no value is shown, logged or written to disk. To run it again after it broke off, or twice at once, does no
    /// harm: each run makes a version, and the newest counts.
    #[command(after_help = rotate::EXAMPLES)]
    Rotate(Box<Rotate>),

    /// Disable versions of tenants' keys that no record has used for a day, by the status of the app; nothing is ever deleted.
    ///
    /// If a record was left under one after all, its user gets `key_disabled`, the status names the version again, and --enable undoes
    /// it. Whoever runs this needs the permission to update secrets, which whoever rotates them need not have, and the app role
    /// Behalf.Read; it sees its own tenant, or all from the operator tenant.
    #[command(after_help = retire::EXAMPLES)]
    Retire(Box<Retire>),
}

impl Key {
    /// Does it.
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Rotate(rotate) => rotate.run().await,
            Self::Retire(retire) => retire.run().await,
        }
    }
}
