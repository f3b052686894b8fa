//! `behalf schema`.

use super::Failure;
use super::database::DatabasePlace;
use crate::log::{self, Format, Verbosity};
use crate::postgres::{Limits, OwnerError};
use behalf_core::ledger::postgres::schema::{FOUND, VERSION, script};
use clap::{Args, Subcommand};
use std::io::{self, Write as _};

const PRINT_EXAMPLES: &str = "\
Examples:
  behalf schema print --role behalf_app | psql --set ON_ERROR_STOP=1 \"host=db.example user=owner dbname=behalf\"
  behalf schema print > schema.sql

Exit codes: 0 it is printed, 1 it is not, 2 the command line is wrong.";

const APPLY_EXAMPLES: &str = "\
Examples:
  PGPASSWORD=… behalf schema apply --role behalf_app --database \"host=db.example user=owner dbname=behalf sslmode=require\"
  behalf schema apply --database postgres://owner@db.example/behalf?sslmode=require --password-file /run/secrets/owner

Exit codes: 0 the tables are as this version has them, 1 they are not, 2 the command line is wrong.";

/// What to do with the tables.
#[derive(Debug, Subcommand)]
pub(super) enum Schema {
    /// Print the statements, for `psql` and for whoever wants to read them first.
    #[command(after_help = PRINT_EXAMPLES)]
    Print(Print),
    /// Make the tables, or bring them up to this version. Several at once wait for each other, and what is there stays.
    #[command(after_help = APPLY_EXAMPLES)]
    Apply(Apply),
}

/// The options of `behalf schema print`.
#[derive(Debug, Args)]
pub(super) struct Print {
    #[command(flatten)]
    role: Role,
}

/// The options of `behalf schema apply`.
#[derive(Debug, Args)]
pub(super) struct Apply {
    #[command(flatten)]
    role: Role,

    #[command(flatten)]
    database: DatabasePlace,
}

/// Whose the tables are for.
#[derive(Debug, Args)]
struct Role {
    /// The role that the app connects as: it may read and change rows, nothing else, and no statement of it may take long. It is
    /// made if it is not there, without a password.
    #[arg(long, value_name = "NAME")]
    role: Option<String>,
}

impl Role {
    fn script(&self) -> Result<String, Failure> {
        let statements = script(self.role.as_deref());
        let statements = statements.map_err(|error| Failure::Usage(format!("--role: {error}")))?;
        Ok(statements.join("\n"))
    }
}

impl Schema {
    /// Does it.
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Print(print) => print.run(),
            Self::Apply(apply) => apply.run().await,
        }
    }
}

impl Print {
    fn run(&self) -> Result<(), Failure> {
        let script = self.role.script()?;
        let behalf = env!("CARGO_PKG_VERSION");
        let head = format!(
            "-- The tables of behalf {behalf}, version {VERSION}. To be run by the owner of the database."
        );
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{head}\n{script}")
            .and_then(|()| stdout.flush())
            .map_err(Failure::Io)
    }
}

impl Apply {
    async fn run(self) -> Result<(), Failure> {
        log::begin(Format::Text, Verbosity::Info);
        let script = self.role.script()?;
        let owner = self.database.connect(Limits::None).await?;
        let before = owner.number(FOUND).await?;
        owner.run(&script).await?;
        match before.and_then(|it| u64::try_from(it).ok()) {
            None => tracing::info!("the tables are there, of version {VERSION}"),
            Some(VERSION) => tracing::info!("the tables were of version {VERSION} already"),
            Some(before) => {
                tracing::info!("the tables were of version {before}, and are of version {VERSION}");
            }
        }
        if let Some(role) = &self.role.role {
            tracing::info!("the role {role} may read and change their rows, and nothing else");
        }
        Ok(())
    }
}

/// Whether it is the command line that is wrong.
pub(super) fn is_usage(error: &OwnerError) -> bool {
    matches!(error, OwnerError::Database | OwnerError::NoHost)
}
