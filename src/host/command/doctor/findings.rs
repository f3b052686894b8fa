//! What a doctor has found.

use crate::command::Failure;
use crate::command::screen::{say, table};
use behalf_core::error::{UpstreamError, VaultError};
use serde_json::json;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Well,
    Warning,
    Wrong,
    /// It was not looked at, because something else is wrong first.
    Skipped,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Well => "ok",
            Self::Warning => "warning",
            Self::Wrong => "WRONG",
            Self::Skipped => "skipped",
        }
    }
}

/// What was found in one step: what was seen, and if it is not well, what to do.
struct Finding {
    verdict: Verdict,
    step: String,
    says: String,
}

/// What was found.
#[derive(Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    /// Adds what was found in a step, and what to do.
    pub(super) fn add(&mut self, verdict: Verdict, step: &str, says: impl Into<String>) {
        self.0.push(Finding {
            verdict,
            step: step.to_owned(),
            says: says.into(),
        });
    }

    /// Adds what came of asking. Whether that was well.
    pub(super) fn of<T>(
        &mut self,
        step: &str,
        outcome: Result<T, VaultError>,
        says: impl FnOnce(T) -> String,
    ) -> bool {
        match outcome {
            Ok(value) => self.add(Verdict::Well, step, says(value)),
            Err(error) => {
                let mut says = error.to_string();
                if let VaultError::Upstream(UpstreamError { system, .. }) = &error {
                    let setting = system.setting();
                    says = format!(
                        "{says}\nis `{setting}` right, and let through by proxy and firewall?"
                    );
                }
                self.add(Verdict::Wrong, step, says);
                return false;
            }
        }
        true
    }

    /// Shows it.
    pub(super) fn tell(&self, as_json: bool) -> Result<(), Failure> {
        if as_json {
            let findings: Vec<_> = (self.0.iter())
                .map(
                    |Finding {
                         verdict,
                         step,
                         says,
                     }| {
                        let verdict = verdict.word().to_lowercase();
                        json!({"step": step, "verdict": verdict, "says": says})
                    },
                )
                .collect();
            return say(&json!({"is_well": self.is_well(), "findings": findings}).to_string());
        }
        let rows = self.0.iter().flat_map(
            |Finding {
                 verdict,
                 step,
                 says,
             }| {
                let mut lines = says.lines().map(ToOwned::to_owned);
                let first = lines.next().unwrap_or_default();
                let first = vec![verdict.word().to_owned(), step.clone(), first];
                let others = lines.map(|line| vec![String::new(), String::new(), line]);
                std::iter::once(first).chain(others).collect::<Vec<_>>()
            },
        );
        say(&table(&["", "STEP", "WHAT IT SAW"], rows.collect()))
    }

    /// Whether nothing is wrong.
    pub(super) fn is_well(&self) -> bool {
        self.0.iter().all(|it| it.verdict != Verdict::Wrong)
    }
}
