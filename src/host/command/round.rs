//! A round of the same thing for many tenants: some at once, told as it goes, until all is done or it is interrupted.

use super::Failure;
use super::screen::say;
use crate::orders::Orders;
use behalf_core::identity::TenantId;
use behalf_core::vault::custodian::CustodyError;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::{self, IsTerminal as _, Write as _};
use std::pin::pin;
use std::time::Duration;

/// At once. Key Vault takes 300 new versions in ten seconds
/// (<https://learn.microsoft.com/azure/key-vault/general/service-limits>).
const AT_ONCE: usize = 4;

/// How long what is under way may take after an interruption.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How many tenants a message names.
const NAMED: usize = 10;

/// A round.
pub(super) struct Round {
    /// What becomes of a tenant, as one word.
    pub(super) done: &'static str,
    /// The command that goes on with those that are left.
    pub(super) again: &'static str,
    /// Whether standard output gets one JSON object.
    pub(super) json: bool,
}

impl Round {
    /// Does something for each tenant, which gives what to say of it: as text, and as JSON.
    pub(super) async fn go(
        &self,
        tenants: &[TenantId],
        act: impl AsyncFn(&TenantId) -> Result<(String, Value), CustodyError>,
    ) -> Result<(), Failure> {
        let mut orders = Orders::listen(false).map_err(Failure::Io)?;
        let (stops, mut interrupted) = (Cell::new(false), false);
        let acting = stream::iter(tenants)
            .map(async |tenant| {
                let acted = if stops.get() {
                    None
                } else {
                    Some(act(tenant).await)
                };
                (tenant, acted)
            })
            .buffer_unordered(AT_ONCE);
        let mut acting = pin!(acting);
        let mut last_words = pin!(tokio::time::sleep(Duration::MAX));
        let (mut done, mut failed): (Vec<(&TenantId, Value)>, Vec<Failed<'_>>) = Default::default();
        let progress = Progress::of(tenants.len(), self.json);
        loop {
            tokio::select! {
                next = acting.next() => match next {
                    None => break,
                    Some((_, None)) => {}
                    Some((tenant, Some(Ok((text, value))))) => {
                        done.push((tenant, value));
                        progress.clear();
                        if !self.json {
                            say(&text)?;
                        }
                    }
                    Some((tenant, Some(Err(error)))) => {
                        progress.clear();
                        tracing::error!("{tenant}: {error}");
                        if error.is_everybodys() {
                            stops.set(true);
                        }
                        failed.push(Failed { tenant, error });
                    }
                },
                () = orders.end(), if !interrupted => {
                    interrupted = true;
                    stops.set(true);
                    last_words.set(tokio::time::sleep(LAST_WORDS));
                    progress.clear();
                    tracing::warn!("interrupted: what is under way ends first, for {LAST_WORDS:?} at most");
                }
                () = &mut last_words, if interrupted => break,
            }
            progress.show(done.len().saturating_add(failed.len()));
        }
        progress.clear();
        let is_done = |tenant: &&TenantId| done.iter().any(|(it, _)| it == tenant);
        let left: Vec<_> = tenants.iter().filter(|it| !is_done(it)).collect();
        if self.json {
            let failed: Vec<_> = failed.iter().map(Failed::json).collect();
            let done: Vec<_> = done.iter().map(|(_, value)| value).collect();
            let left: Vec<_> = left.iter().map(|it| it.as_str()).collect();
            say(&json!({self.done: done, "failed": failed, "left": left}).to_string())?;
        }
        let word = self.done;
        tracing::info!("{} of {} {word}", done.len(), tenants.len());
        if left.is_empty() {
            return Ok(());
        }
        self.tell_left(&left);
        Err(if interrupted {
            Failure::Interrupted
        } else {
            Failure::Unfinished
        })
    }

    /// What would be done.
    pub(super) fn rehearsed(
        word: &str,
        shown: impl Iterator<Item = (String, Value)>,
        json: bool,
    ) -> Result<(), Failure> {
        let (texts, values): (Vec<_>, Vec<_>) = shown.unzip();
        if json {
            return say(&json!({word: values}).to_string());
        }
        texts.iter().try_for_each(|text| say(text))
    }

    fn tell_left(&self, left: &[&TenantId]) {
        let named: Vec<_> = left.iter().take(NAMED).map(|it| it.as_str()).collect();
        let more = match left.len().saturating_sub(named.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let again = self.again;
        tracing::info!("to go on: {again} {}{more}", named.join(" "));
    }
}

struct Failed<'a> {
    tenant: &'a TenantId,
    error: CustodyError,
}

impl Failed<'_> {
    fn json(&self) -> Value {
        let Self { tenant, error } = self;
        json!({"tenant": tenant.as_str(), "code": error.code(), "message": error.to_string()})
    }
}

/// Each once, in the order of their first.
pub(super) fn distinct(tenants: &[TenantId]) -> Vec<TenantId> {
    let mut distinct = Vec::new();
    for tenant in tenants {
        if !distinct.contains(tenant) {
            distinct.push(tenant.clone());
        }
    }
    distinct
}

/// How far it is, in the last line of a terminal that shows no other.
struct Progress {
    all: usize,
    shows: bool,
}

impl Progress {
    fn of(all: usize, json: bool) -> Self {
        let lines_show = !json && io::stdout().is_terminal();
        let shows = all > 1 && !lines_show && io::stderr().is_terminal();
        Self { all, shows }
    }

    fn show(&self, done: usize) {
        if self.shows {
            let _ = write!(io::stderr(), "\r{done} of {}", self.all);
        }
    }

    fn clear(&self) {
        if self.shows {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
