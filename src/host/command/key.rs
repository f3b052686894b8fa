//! `behalf key`.

mod rotate;

use super::Failure;
use clap::Subcommand;
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
}

impl Key {
    /// Does it.
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Rotate(rotate) => rotate.run().await,
        }
    }
}
