//! The command line.

mod backup;
mod check;
mod custody;
mod database;
mod doctor;
mod healthcheck;
mod key;
mod ledger;
mod operator;
mod round;
mod schema;
mod screen;
mod source;
mod status;
mod stores;
mod sweep;
mod tenant;
mod up;
mod user;
mod values;

use crate::graph::GraphError;
use crate::loading::LoadError;
use crate::log;
use crate::manifest::ManifestError;
use crate::operator::OperationError;
use crate::postgres::OwnerError;
use crate::rehearsal::AppError;
use crate::runtime_config::RuntimeConfigError;
use crate::serve::BindError;
use crate::store::{BackupError, OpenError, SoleError};
use crate::tls::PemError;
use backup::{Backup, Restore};
use behalf_core::doorbell::DoorbellError;
use behalf_core::error::{OperatorError, VaultError};
use behalf_core::vault::custodian::CustodyError;
use check::Check;
use clap::{Parser, Subcommand};
use doctor::Doctor;
use healthcheck::{Healthcheck, Unhealthy};
use key::Key;
use ledger::LedgerCommand;
use schema::Schema;
use status::Status;
use std::io;
use std::process::ExitCode;
use sweep::Sweep;
use tenant::Tenant;
use up::Up;
use user::User;

/// Runs the program with this process's command line, and returns its exit code: 0 after a clean stop (or `--help`), 1
/// if it cannot run, 2 if the command line, the manifest or a setting is wrong.
#[must_use]
pub fn main() -> ExitCode {
    let command = CommandLine::parse().command;
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            log::fail(format_args!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let result = match command {
        Command::Up(up) => runtime.block_on(up.run()),
        Command::Check(check) => runtime.block_on(check.run()),
        Command::Healthcheck(healthcheck) => runtime.block_on(healthcheck.run()),
        Command::Backup(backup) => backup.run(),
        Command::Restore(restore) => restore.run(),
        Command::Schema(schema) => runtime.block_on(schema.run()),
        Command::Ledger(ledger) => runtime.block_on(ledger.run()),
        Command::Key(key) => runtime.block_on(key.run()),
        Command::Tenant(tenant) => runtime.block_on(tenant.run()),
        Command::Status(status) => runtime.block_on(interruptible(status.run())),
        Command::Sweep(sweep) => runtime.block_on(interruptible(sweep.run())),
        Command::Doctor(doctor) => runtime.block_on(interruptible(doctor.run())),
        Command::User(user) => runtime.block_on(user.run()),
    };
    // A compilation that nobody waits for any more need not end.
    runtime.shutdown_background();
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            failure.exit_code()
        }
    };
    log::end();
    code
}

/// Runs the app of a spin.toml on an embedded wasmtime.
#[derive(Debug, Parser)]
#[command(
    name = "behalf",
    version,
    arg_required_else_help = true,
    args_override_self = true
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the app until it is told to stop.
    ///
    /// Prints `Serving http://ADDRESS` on standard output once the app answers requests; everything else, including what
    /// components write, goes to standard error.
    ///
    /// On SIGTERM it first sends its clients elsewhere (`--lame-duck`), then finishes what was begun (`--grace`) and ends;
    /// on SIGINT it ends without the first. A second signal ends it at once. SIGHUP reads the certificates again.
    #[command(after_help = up::EXAMPLES)]
    Up(Box<Up>),

    /// Check the manifest, the components and the settings without serving.
    ///
    /// Compiles everything, makes an instance of every component and asks the app whether its settings are right, as `up`
    /// does before it serves; and runs what is on a schedule up to its first request to others. Listens on no address, opens
    /// no store and sends nothing.
    #[command(after_help = check::EXAMPLES)]
    Check(Check),

    /// Ask a running `behalf up` whether it answers, for containers without a shell.
    #[command(after_help = healthcheck::EXAMPLES)]
    Healthcheck(Healthcheck),

    /// Copy the key-value store into a file, as it is at one moment, while hosts use it.
    ///
    /// The copy is a store itself: one file, which `restore` takes, and which holds what SECURITY.md says of storage.
    #[command(after_help = backup::BACKUP_EXAMPLES)]
    Backup(Backup),

    /// Put a copy in the place of all that is in the key-value store, while hosts use it.
    ///
    /// Whoever was removed after the copy was made is there again, and whoever enrolled after it is not. For half a minute
    /// running hosts write nothing (they answer 503), so that nothing of before is mixed with it.
    #[command(after_help = backup::RESTORE_EXAMPLES)]
    Restore(Restore),

    /// Make the tables of a PostgreSQL database that the app keeps enrolments in, or bring them up to this version.
    #[command(subcommand)]
    Schema(Schema),

    /// Move what is stored of enrolments from one ledger to another.
    #[command(subcommand)]
    Ledger(LedgerCommand),

    /// Rotate tenants' keys in Key Vault, and retire old versions.
    #[command(subcommand)]
    Key(Key),

    /// Remove tenants.
    #[command(subcommand)]
    Tenant(Tenant),

    /// Show how a running app is: users and their states, rotations, what is due, and what needs whom.
    ///
    /// It asks for `GET /v1/status`, as an app with the role Behalf.Read: what a sweep has summed up last.
    #[command(after_help = status::EXAMPLES)]
    Status(Box<Status>),

    /// Have a running app sweep until nothing remains: refresh what is due, and seal under tenants' newest keys.
    ///
    /// It calls `POST /v1/sweep` again and again, with the sweep key or as an app with the role Behalf.Sweep: what the cron
    /// component does, for a scheduler of one's own, such as a `CronJob` of Kubernetes.
    #[command(after_help = sweep::EXAMPLES)]
    Sweep(Box<Sweep>),

    /// Ask what the app would ask, with the app's own identity, and tell what is wrong and what to do.
    ///
    /// Step by step: configuration, signing keys, the app's credential, token for Key Vault, tenants' keys by name, clock, store,
    /// cron, grants. It shows no secret, and writes nothing: neither in the store nor anywhere else.
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(Box<Doctor>),

    /// Revoke a user's sessions.
    #[command(subcommand)]
    User(User),
}

/// Does what only asks, and can be broken off at any point.
async fn interruptible(doing: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::select! {
        done = doing => done,
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
    }
}

/// For commands whose standard output is what they are for.
fn begin_log() {
    log::begin(log::Format::Text, log::Verbosity::Warn);
}

/// Why this process ends other than cleanly.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    RuntimeConfig(#[from] RuntimeConfigError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Tls(#[from] PemError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Unhealthy(#[from] Unhealthy),
    #[error(transparent)]
    Database(#[from] OwnerError),
    #[error("something is wrong, see above")]
    Unwell,
    #[error(transparent)]
    Custody(CustodyError),
    /// No token of a pipeline's or a person's.
    #[error("{0}")]
    Credential(String),
    /// The app does not know what would be needed.
    #[error("{0}")]
    Unknown(&'static str),
    /// Not all was done, as was told.
    #[error("not all is done, see above")]
    Unfinished,
    #[error(transparent)]
    Operation(#[from] OperationError),
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error(transparent)]
    Sweep(#[from] DoorbellError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("the key can still be recovered, see above")]
    Recoverable,
    /// It was said what.
    #[error("the operator has to act, see above")]
    Needed,
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Sole(#[from] SoleError),
    #[error("{0}")]
    Copy(String),
    #[error(transparent)]
    Io(io::Error),
}

impl From<CustodyError> for Failure {
    fn from(error: CustodyError) -> Self {
        match error {
            CustodyError::Vault(error) => Self::Vault(error),
            error => Self::Custody(error),
        }
    }
}

impl Failure {
    fn tell(&self) {
        match self {
            Self::App(AppError::Problem(problem)) => {
                problem.lines().for_each(log::fail);
            }
            Self::Vault(VaultError::Operator(OperatorError::Setting(faults))) => {
                faults.iter().for_each(log::fail);
            }
            other => log::fail(other),
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_)
            | Self::Manifest(_)
            | Self::RuntimeConfig(_)
            | Self::App(_)
            | Self::Tls(_)
            | Self::Operation(OperationError::NoToken)
            | Self::Vault(VaultError::Operator(OperatorError::Setting(_)))
            | Self::Load(
                LoadError::Variable(_)
                | LoadError::UnknownVariable(_)
                | LoadError::OutboundCa(_)
                | LoadError::NoStore { .. }
                | LoadError::Proxy(_)
                | LoadError::Compose { .. }
                | LoadError::Component { .. },
            ) => ExitCode::from(2),
            Self::Needed | Self::Recoverable => ExitCode::from(3),
            // As a shell has it of what SIGINT has ended.
            Self::Interrupted => ExitCode::from(130),
            Self::Database(error) if schema::is_usage(error) => ExitCode::from(2),
            Self::Load(LoadError::Engine(_))
            | Self::Store(_)
            | Self::Backup(_)
            | Self::Bind(_)
            | Self::Unhealthy(_)
            | Self::Database(_)
            | Self::Sole(_)
            | Self::Copy(_)
            | Self::Unwell
            | Self::Custody(_)
            | Self::Credential(_)
            | Self::Unknown(_)
            | Self::Unfinished
            | Self::Operation(_)
            | Self::Graph(_)
            | Self::Sweep(_)
            | Self::Vault(_)
            | Self::Io(_) => ExitCode::FAILURE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn a_clash_of_options_would_be_seen() {
        let clashing = || clap::Arg::new("twice").long("twice");
        let checked = std::panic::catch_unwind(|| {
            let command = clap::Command::new("it").args([clashing(), clashing()]);
            command.debug_assert();
        });
        assert!(checked.is_err(), "clap checks nothing in this profile");
    }

    /// What these files say goes to people who have run a command with this option.
    #[test]
    fn an_option_that_is_advised_is_one_of_the_command() {
        for (source, option) in [
            (include_str!("operator.rs"), "app"),
            (include_str!("graph.rs"), "graph"),
            (include_str!("command/operator.rs"), "audience"),
        ] {
            let (said, _) = source.split_once("#[cfg(test)]").unwrap_or((source, ""));
            let advised: std::collections::BTreeSet<_> = said
                .split(|it: char| !it.is_ascii_lowercase() && it != '-')
                .filter_map(|word| word.strip_prefix("--"))
                .collect();
            let mut line = CommandLine::command();
            line.build();
            let commands = having(&line, option);
            assert!(!advised.is_empty() && !commands.is_empty(), "{option}");
            for (command, advised) in commands
                .iter()
                .flat_map(|command| advised.iter().map(move |it| (command, it)))
            {
                let has = command
                    .get_arguments()
                    .any(|it| it.get_long() == Some(*advised));
                assert!(has, "{} has no --{advised}", command.get_name());
            }
        }
    }

    /// Commands with this option.
    fn having<'a>(command: &'a clap::Command, option: &str) -> Vec<&'a clap::Command> {
        let is_one = command
            .get_arguments()
            .any(|it| it.get_long() == Some(option));
        let below = command.get_subcommands().flat_map(|it| having(it, option));
        is_one.then_some(command).into_iter().chain(below).collect()
    }

    #[test]
    fn every_command_has_examples_and_says_what_its_exit_codes_mean() {
        fn look(command: &mut clap::Command) {
            if command.has_subcommands() {
                command.get_subcommands_mut().for_each(look);
                return;
            }
            let help = command.render_long_help().to_string();
            for part in ["Examples:\n  ", "\nExit codes: 0 "] {
                assert!(help.contains(part), "{}: {part}", command.get_name());
            }
            assert!(!help.contains("\\\""), "{help}");
        }
        look(&mut CommandLine::command());
    }

    /// By assertions of clap's own, which the development profile has switched on.
    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
