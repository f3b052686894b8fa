//! A round of the same thing for many keys: some at once, told as it goes, until all is done or it is interrupted. And how else a
//! command that changes things ends when it is.

use super::Failure;
use super::screen::say;
use crate::orders::Orders;
use behalf_core::identity::{KeyVersion, TenantId};
use behalf_core::vault::custodian::CustodyError;
use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::pin::pin;
use std::time::Duration;

/// At once. Key Vault takes 300 new versions in ten seconds
/// (<https://learn.microsoft.com/azure/key-vault/general/service-limits>).
const AT_ONCE: usize = 4;

/// How long what is under way may take after an interruption.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How many items a message names.
const NAMED: usize = 10;

/// How a command that changes something is run.
#[derive(Debug, Args)]
pub(super) struct Manner {
    /// Show what would be done, and whether there is a token for Key Vault; do nothing.
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Write one JSON object to standard output.
    #[arg(long)]
    pub(super) json: bool,
}

/// A key: a tenant's, or one version of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Item {
    pub(super) tenant: TenantId,
    pub(super) version: Option<KeyVersion>,
}

impl Item {
    /// Of whole keys, each once, in the order of their first.
    pub(super) fn keys<'a>(tenants: impl IntoIterator<Item = &'a TenantId>) -> Vec<Self> {
        let mut items: Vec<Self> = Vec::new();
        for tenant in tenants {
            if items.iter().all(|it| it.tenant != *tenant) {
                let (tenant, version) = (tenant.clone(), None);
                items.push(Self { tenant, version });
            }
        }
        items
    }

    /// What programs are told of it, and this besides.
    pub(super) fn json(&self, more: Value) -> Value {
        let mut told = Map::new();
        told.insert("tenant".to_owned(), self.tenant.as_str().into());
        if let Some(version) = &self.version {
            told.insert("version".to_owned(), version.as_str().into());
        }
        if let Value::Object(more) = more {
            told.extend(more);
        }
        Value::Object(told)
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.tenant)?;
        match &self.version {
            Some(version) => write!(f, " {}", version.as_str()),
            None => Ok(()),
        }
    }
}

/// A round.
pub(super) struct Round {
    /// What becomes of a key, as one word.
    pub(super) done: &'static str,
    /// The command that goes on with what is left.
    pub(super) again: &'static str,
    /// Whether standard output gets one JSON object.
    pub(super) json: bool,
}

impl Round {
    /// Does something for each, which gives what to say of it: as text, and as JSON.
    pub(super) async fn go(
        &self,
        items: &[Item],
        act: impl AsyncFn(&Item) -> Result<(String, Value), CustodyError>,
    ) -> Result<(), Failure> {
        let mut orders = Orders::listen(false).map_err(Failure::Io)?;
        let (stops, mut interrupted) = (Cell::new(false), false);
        let acting = stream::iter(items)
            .map(async |item| {
                let acted = if stops.get() {
                    None
                } else {
                    Some(act(item).await)
                };
                (item, acted)
            })
            .buffer_unordered(AT_ONCE);
        let mut acting = pin!(acting);
        let mut last_words = pin!(tokio::time::sleep(Duration::MAX));
        let (mut done, mut failed): (Vec<(&Item, Value)>, Vec<Failed<'_>>) = Default::default();
        let progress = Progress::of(items.len(), self.json);
        loop {
            tokio::select! {
                next = acting.next() => match next {
                    None => break,
                    Some((_, None)) => {}
                    Some((item, Some(Ok((text, value))))) => {
                        done.push((item, value));
                        progress.clear();
                        if !self.json {
                            say(&text)?;
                        }
                    }
                    Some((item, Some(Err(error)))) => {
                        progress.clear();
                        tracing::error!("{item}: {error}");
                        if error.is_everybodys() {
                            stops.set(true);
                        }
                        failed.push(Failed { item, error });
                    }
                },
                () = orders.end(), if !interrupted => {
                    interrupted = true;
                    stops.set(true);
                    last_words.set(tokio::time::sleep(LAST_WORDS));
                    progress.clear();
                    tell_interrupted();
                }
                () = &mut last_words, if interrupted => break,
            }
            progress.show(done.len().saturating_add(failed.len()));
        }
        progress.clear();
        let is_done = |item: &&Item| done.iter().any(|(it, _)| it == item);
        let left: Vec<_> = items.iter().filter(|it| !is_done(it)).collect();
        if self.json {
            let failed: Vec<_> = failed.iter().map(Failed::json).collect();
            let done: Vec<_> = done.iter().map(|(_, value)| value).collect();
            let left: Vec<_> = left.iter().map(ToString::to_string).collect();
            say(&json!({self.done: done, "failed": failed, "left": left}).to_string())?;
        }
        let word = self.done;
        tracing::info!("{} of {} {word}", done.len(), items.len());
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

    fn tell_left(&self, left: &[&Item]) {
        let again = self.again;
        let whole = left.iter().all(|item| item.version.is_none());
        if left.len() > NAMED || !whole {
            tracing::info!(
                "{} are left (--json names them); to go on: {again}",
                left.len()
            );
            return;
        }
        let named: Vec<_> = left.iter().map(ToString::to_string).collect();
        tracing::info!("to go on: {again} {}", named.join(" "));
    }
}

/// Does what changes things, and looks at `stops` between two steps: once it is told to end, what is under way ends first.
pub(super) async fn in_steps(
    doing: impl Future<Output = Result<(), Failure>>,
    stops: &Cell<bool>,
) -> Result<(), Failure> {
    let mut orders = Orders::listen(false).map_err(Failure::Io)?;
    let mut doing = pin!(doing);
    tokio::select! {
        done = &mut doing => return done,
        () = orders.end() => stops.set(true),
    }
    tell_interrupted();
    let done = tokio::time::timeout(LAST_WORDS, doing).await;
    done.unwrap_or(Err(Failure::Interrupted))
}

/// Whether there is a next step.
pub(super) fn go_on(stops: &Cell<bool>) -> Result<(), Failure> {
    if stops.get() {
        return Err(Failure::Interrupted);
    }
    Ok(())
}

/// How a command ends that has done all, or not.
pub(super) fn whole(is_whole: bool) -> Result<(), Failure> {
    if is_whole {
        Ok(())
    } else {
        Err(Failure::Unfinished)
    }
}

fn tell_interrupted() {
    tracing::warn!("interrupted: what is under way ends first, for {LAST_WORDS:?} at most");
}

struct Failed<'a> {
    item: &'a Item,
    error: CustodyError,
}

impl Failed<'_> {
    fn json(&self) -> Value {
        let Self { item, error } = self;
        item.json(json!({"code": error.code(), "message": error.to_string()}))
    }
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
