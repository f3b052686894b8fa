//! Where a PostgreSQL database is: options that several commands have in common.

use super::Failure;
use crate::postgres::{Limits, Owner};
use crate::tls;
use clap::Args;
use std::path::PathBuf;

/// The variable of the environment with the password, as programs of PostgreSQL have it.
const PASSWORD: &str = "PGPASSWORD";

/// The options.
#[derive(Debug, Args)]
pub(super) struct DatabasePlace {
    /// The database, and who connects: "host=… user=… dbname=…" or postgres://USER@HOST:PORT/NAME. With `sslmode=require`
    /// nothing is sent in clear; the server's certificate is verified. Others on this machine can see a password in it.
    #[arg(long, value_name = "CONNECTION", allow_hyphen_values = true)]
    database: String,

    /// A file that holds the password; else the variable PGPASSWORD of the environment may.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Certificate authorities in PEM to trust besides the platform's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl DatabasePlace {
    /// Connects, for statements that may take so long.
    pub(super) async fn connect(&self, limits: Limits) -> Result<Owner, Failure> {
        let authorities = match &self.ca {
            Some(file) => tls::certificates(file)?,
            None => Vec::new(),
        };
        let roots =
            tls::roots(authorities).map_err(|error| Failure::Usage(format!("--ca: {error}")))?;
        let password = match &self.password_file {
            Some(file) => {
                let read = std::fs::read_to_string(file);
                let unreadable =
                    |error| Failure::Usage(format!("--password-file {}: {error}", file.display()));
                Some(
                    read.map_err(unreadable)?
                        .trim_end_matches(['\r', '\n'])
                        .to_owned(),
                )
            }
            None => std::env::var(PASSWORD).ok(),
        };
        let password = password.as_deref();
        Ok(Owner::connect(&self.database, password, &roots, limits, None).await?)
    }
}
