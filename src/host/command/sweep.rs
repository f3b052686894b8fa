//! `behalf sweep`: what the cron component does, for a scheduler outside.

use super::Failure;
use super::operator::Asking;
use super::screen::{say, table};
use super::values::duration;
use crate::operator::{OperationError, Operator};
use crate::outbound::OutboundClient;
use behalf_core::doorbell::{DoorbellError, Next, Outcome, Tally};
use clap::Args;
use http::StatusCode;
use std::time::{Duration, Instant};

pub(super) const EXAMPLES: &str = "\
Examples:
  behalf sweep --app https://behalf.example --variable-file sweep_key=/run/secrets/sweep_key
  SPIN_VARIABLE_SWEEP_KEY=… behalf sweep --json    the app on this machine
  behalf sweep --app https://behalf.example        without `sweep_key`: as the app of the settings, with the app role Behalf.Sweep
  behalf sweep --app https://behalf.example --credential azure-cli --audience api://CLIENT-ID

Exit codes: 0 nothing remains, or another sweep is under way, which does the work, 1 something remains, or the app refuses or
does not answer (what to do is told), 2 the command line or a setting is wrong, 130 it was interrupted.";

/// The options of `behalf sweep`.
#[derive(Debug, Args)]
pub(super) struct Sweep {
    #[command(flatten)]
    asking: Asking,

    /// After how long no other call is begun, whatever remains. One takes as long as the app's `sweep_seconds` says.
    #[arg(long, value_name = "TIME", default_value = "4m", value_parser = duration)]
    time_limit: Duration,

    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

impl Sweep {
    /// Does it.
    pub(super) async fn run(self) -> Result<(), Failure> {
        super::begin_log();
        let operator = self.asking.open_to_sweep().await?;
        let outcome = ring(&operator, self.time_limit).await?;
        say(&if self.json {
            outcome.line()
        } else {
            to_text(&outcome)
        })
    }
}

/// Calls until it is over.
async fn ring(
    operator: &Operator<OutboundClient>,
    time_limit: Duration,
) -> Result<Outcome, Failure> {
    let mut tally = Tally::new(time_limit);
    let began = Instant::now();
    loop {
        let report = operator.sweep().await?;
        match tally.hear(&report, began.elapsed()) {
            Ok(Next::Ring) => {}
            Ok(Next::Done(outcome)) => return Ok(outcome),
            Err(DoorbellError::Strange { .. }) => {
                return Err(OperationError::NotBehalf(StatusCode::OK).into());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What was done, and without what was not.
fn to_text(outcome: &Outcome) -> String {
    let Outcome::Swept { calls, counts } = outcome else {
        return "another sweep is under way, and does the work".to_owned();
    };
    let counted = counts.iter().filter(|(_, count)| *count > 0);
    let rows = counted.map(|(name, count)| vec![name.replace('_', " "), count.to_string()]);
    table(&["calls", &calls.to_string()], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_aligned() {
        let counts = vec![
            ("refreshed", 5),
            ("resealed", 0),
            ("interaction_required", 12),
        ];
        let outcome = Outcome::Swept { calls: 2, counts };
        assert_eq!(
            to_text(&outcome),
            "calls                 2\nrefreshed             5\ninteraction required  12"
        );
        assert!(to_text(&Outcome::LeftToAnother).contains("another sweep"));
    }
}
