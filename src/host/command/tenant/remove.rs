//! `behalf tenant remove`.

use crate::command::Failure;
use crate::command::custody::{Custody, tenant};
use crate::command::round::{Manner, go_on, in_steps};
use crate::command::screen::{day, say};
use crate::console::Console;
use crate::log::{self, Format, Verbosity};
use crate::operator::Operator;
use crate::outbound::OutboundClient;
use behalf_core::identity::TenantId;
use behalf_core::vault::custodian::{Custodian, CustodyError, Deleted, Right};
use clap::Args;
use serde_json::json;
use std::cell::Cell;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  behalf tenant remove 11111111-1111-4111-8111-111111111111 --dry-run
  behalf tenant remove 11111111-1111-4111-8111-111111111111 --app https://behalf.example --yes --json

Who runs it needs the app role Behalf.Admin (in the operator tenant, for other tenants), and at Key Vault the permissions to delete, to
see what is deleted, and to purge secrets; without the last the key stays recoverable, as it does if the vault has purge protection.

Exit codes: 0 nothing is left, 1 not all was done (run it again), 2 the command line or a setting is wrong, 3 the users are removed and
the key is deleted, but can be recovered until a date that is told, 130 it was interrupted. What was done is told whatever ends it.";

/// How often in a row the app may remove nobody though users are left.
const IN_VAIN: u32 = 5;
/// How long between two looks, and how many, whether Key Vault has done something: Microsoft's own clients look every two seconds, and
/// it takes some ten.
const LOOK: Duration = Duration::from_secs(2);
const LOOKS: u32 = 60;
const LOOKS_FOR_A_DELETION: u32 = 8;

/// The options of `behalf tenant remove`.
#[derive(Debug, Args)]
pub(in crate::command) struct Remove {
    /// The tenant.
    #[arg(value_name = "TENANT", value_parser = tenant)]
    tenant: TenantId,

    /// Leave the deleted key recoverable, for as long as the vault keeps it.
    #[arg(long)]
    no_purge: bool,

    /// Do not ask whether it is meant.
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    custody: Custody,

    #[command(flatten)]
    manner: Manner,
}

/// What was done.
#[derive(Default)]
struct Done {
    removed: u64,
    /// How many users are left; none: the app has not said.
    left: Option<u64>,
    /// None: Key Vault has not said that it is deleted, or that there is none.
    key: Option<Key>,
}

/// What has become of a key.
enum Key {
    /// There is none, and none that is deleted, as far as can be seen.
    None,
    /// It is gone for good.
    Purged,
    /// It is deleted, and can be recovered; why, and until when.
    Recoverable(&'static str, Option<u64>),
    /// It is deleted, can be recovered until then, and nobody can change that.
    Protected(Option<u64>),
}

impl Key {
    fn word(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Purged => "purged",
            Self::Recoverable(..) => "recoverable",
            Self::Protected(_) => "protected",
        }
    }

    /// Until when it can come back.
    fn until(&self) -> Option<u64> {
        match self {
            Self::None | Self::Purged => None,
            Self::Recoverable(_, until) | Self::Protected(until) => *until,
        }
    }

    fn can_come_back(&self) -> bool {
        matches!(self, Self::Recoverable(..) | Self::Protected(_))
    }

    fn told(&self, secret: &str) -> String {
        let until = day(self.until(), "a date that Key Vault does not tell");
        match self {
            Self::None => format!(
                "key    {secret}: there is none (if it was deleted some minutes ago, run it again: a deletion under way cannot be seen)"
            ),
            Self::Purged => format!("key    {secret}: purged, and gone for good"),
            Self::Recoverable(why, _) => {
                format!("key    {secret}: deleted, and can be recovered until {until}: {why}")
            }
            Self::Protected(_) => format!(
                "key    {secret}: deleted, and can be recovered until {until}: the vault has purge protection"
            ),
        }
    }
}

impl Remove {
    /// Does it.
    pub(super) async fn run(self) -> Result<(), Failure> {
        log::begin(Format::Text, Verbosity::Info);
        let custodian = self.custody.custodian().await?;
        let operator = self.custody.operator(Some(&self.tenant)).await?;
        let secret = custodian.secret_name(&self.tenant);
        let secret = secret.as_str();
        if self.manner.dry_run {
            return self.rehearse(&operator, &custodian, secret).await;
        }
        self.ask(secret)?;
        let (stops, mut done) = (Cell::new(false), Done::default());
        let doing = self.act(&operator, &custodian, &stops, &mut done);
        let ended = in_steps(Box::pin(doing), &stops).await;
        let told = self.tell(&done, secret);
        ended.and(told)?;
        tracing::info!(
            "copies of the key in the app's memory, and tokens that were drawn under it, end within key_cache_seconds"
        );
        if done.key.is_some_and(|key| key.can_come_back()) {
            return Err(Failure::Recoverable);
        }
        Ok(())
    }

    async fn act(
        &self,
        operator: &Operator<OutboundClient>,
        custodian: &Custodian<Console>,
        stops: &Cell<bool>,
        done: &mut Done,
    ) -> Result<(), Failure> {
        self.users(operator, stops, done).await?;
        self.key(custodian, stops, done).await?;
        // Whoever has enrolled while the key was still there.
        self.users(operator, stops, done).await
    }

    fn tell(&self, done: &Done, secret: &str) -> Result<(), Failure> {
        let Done { removed, left, key } = done;
        if self.manner.json {
            let done = json!({"tenant": self.tenant.as_str(), "users_removed": removed, "users_left": left, "secret": secret,
                "key": key.as_ref().map(Key::word), "recoverable_until": key.as_ref().and_then(Key::until)});
            return say(&done.to_string());
        }
        let left = match left {
            Some(0) => "none is left".to_owned(),
            Some(left) => format!("{left} are left"),
            None => "the app has not said how many are left".to_owned(),
        };
        say(&format!("users  {removed} removed, {left}"))?;
        say(&key.as_ref().map_or_else(
            || format!("key    {secret}: Key Vault has not said that it is deleted"),
            |key| key.told(secret),
        ))
    }

    async fn rehearse(
        &self,
        operator: &Operator<OutboundClient>,
        custodian: &Custodian<Console>,
        secret: &str,
    ) -> Result<(), Failure> {
        custodian.check_credential().await?;
        let report = operator.status(Some(&self.tenant)).await?;
        let users = report.tenants.get(self.tenant.as_str());
        let users = users.map_or(0, |tenant| tenant.summary.numbers.users);
        let seen = report.observed_at;
        if self.manner.json {
            let would = json!({"tenant": self.tenant.as_str(), "users": users, "observed_at": seen, "secret": secret});
            return say(&json!({"would_remove": would}).to_string());
        }
        let seen = seen.map_or_else(
            || "no sweep has looked yet".to_owned(),
            |at| format!("as of {}", day(Some(at), "")),
        );
        say(&format!("users  {users} would be removed ({seen})"))?;
        say(&format!(
            "key    {secret} would be deleted{}",
            if self.no_purge { "" } else { " and purged" }
        ))
    }

    /// Whether it is meant.
    fn ask(&self, secret: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::Usage(
                "this cannot be undone: add --yes if it is meant, or --dry-run to see what there is".to_owned(),
            ));
        }
        let tenant = &self.tenant;
        let mut stderr = io::stderr();
        let asked = write!(
            stderr,
            "All users of {tenant} and its key {secret} are removed. Write the tenant id if that is meant: "
        );
        asked.and_then(|()| stderr.flush()).map_err(Failure::Io)?;
        let mut written = String::new();
        io::stdin().read_line(&mut written).map_err(Failure::Io)?;
        if written.trim().eq_ignore_ascii_case(tenant.as_str()) {
            Ok(())
        } else {
            Err(Failure::Usage(
                "that was not the tenant id: nothing was removed".to_owned(),
            ))
        }
    }

    /// Removes users until none is left.
    async fn users(
        &self,
        operator: &Operator<OutboundClient>,
        stops: &Cell<bool>,
        done: &mut Done,
    ) -> Result<(), Failure> {
        let shows = io::stderr().is_terminal();
        let mut in_vain = 0_u32;
        done.left = None;
        loop {
            go_on(stops)?;
            let removal = operator.remove_tenant(&self.tenant).await?;
            done.removed = done.removed.saturating_add(removal.removed);
            done.left = Some(removal.remaining);
            if removal.remaining == 0 {
                return Ok(());
            }
            in_vain = if removal.removed == 0 {
                in_vain.saturating_add(1)
            } else {
                0
            };
            if in_vain == IN_VAIN {
                tracing::error!(
                    "{} users are left, whom the app does not remove: its log says why",
                    removal.remaining
                );
                return Err(Failure::Unfinished);
            }
            if shows {
                let _ = write!(
                    io::stderr(),
                    "\r{} removed, {} are left\x1b[K",
                    done.removed,
                    removal.remaining
                );
            }
        }
    }

    /// Deletes the key, purges it if that is allowed, and looks whether it is gone.
    async fn key(
        &self,
        custodian: &Custodian<Console>,
        stops: &Cell<bool>,
        done: &mut Done,
    ) -> Result<(), Failure> {
        go_on(stops)?;
        let tenant = &self.tenant;
        let deleted = match custodian.delete(tenant).await? {
            Some(deleted) => Some(deleted),
            // Deleted before, perhaps a moment ago by a run that broke off: while a deletion is under way there is no trace of it.
            None => self.find_deleted(custodian, stops).await?,
        };
        let Some(said) = deleted else {
            done.key = Some(Key::None);
            return Ok(());
        };
        let until = said.purged_at;
        let is_protected = said.can_be_purged == Some(false);
        // What is so if this ends at any point from here on.
        done.key = Some(if is_protected {
            Key::Protected(until)
        } else if self.no_purge {
            Key::Recoverable("--no-purge", until)
        } else {
            Key::Recoverable("it was not purged before this run ended", until)
        });
        // Until then nothing can be done with it.
        let seen = self.look(custodian, stops, Option::is_some).await?;
        if is_protected || self.no_purge {
            return Ok(());
        }
        let answer = custodian.purge(tenant).await;
        let is_deleted = matches!(seen, Seen::Yes);
        if let Some(key) = not_purged(answer, is_deleted, until)? {
            done.key = Some(key);
            return Ok(());
        }
        done.key = Some(Key::Recoverable("Key Vault has not purged it yet", until));
        match self.look(custodian, stops, Option::is_none).await? {
            Seen::Yes => done.key = Some(Key::Purged),
            Seen::No => {}
            Seen::Hidden => {
                let why = "it was to be purged, and this identity may not see whether it was";
                done.key = Some(Key::Recoverable(why, until));
            }
        }
        Ok(())
    }

    /// What is deleted, or turns out to be within the time that a deletion takes.
    async fn find_deleted(
        &self,
        custodian: &Custodian<Console>,
        stops: &Cell<bool>,
    ) -> Result<Option<Deleted>, Failure> {
        for _ in 0..LOOKS_FOR_A_DELETION {
            go_on(stops)?;
            if let Some(deleted) = custodian.deleted(&self.tenant).await? {
                return Ok(Some(deleted));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(None)
    }

    /// Looks at what is deleted until it is so, for a while.
    async fn look(
        &self,
        custodian: &Custodian<Console>,
        stops: &Cell<bool>,
        is_so: impl Fn(&Option<Deleted>) -> bool,
    ) -> Result<Seen, Failure> {
        for _ in 0..LOOKS {
            go_on(stops)?;
            match custodian.deleted(&self.tenant).await {
                Ok(deleted) if is_so(&deleted) => return Ok(Seen::Yes),
                Ok(_) => tokio::time::sleep(LOOK).await,
                Err(CustodyError::Forbidden(_)) => return Ok(Seen::Hidden),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Seen::No)
    }
}

/// What a key is after its purge was refused, which was seen deleted before or not; none: it was not refused.
fn not_purged(
    answer: Result<(), CustodyError>,
    is_deleted: bool,
    until: Option<u64>,
) -> Result<Option<Key>, CustodyError> {
    let why = match answer {
        Ok(()) => return Ok(None),
        // Somebody else has purged it.
        Err(CustodyError::NotFound(_)) if is_deleted => return Ok(None),
        // A deletion that is under way has no trace yet that could be purged.
        Err(CustodyError::NotFound(_) | CustodyError::BeingChanged(_)) => {
            "its deletion is not over: run it again in some minutes"
        }
        Err(CustodyError::Forbidden(Right::Purge)) => "this identity may not purge secrets",
        Err(CustodyError::PurgeProtected(_)) => return Ok(Some(Key::Protected(until))),
        Err(error) => return Err(error),
    };
    Ok(Some(Key::Recoverable(why, until)))
}

/// Whether something was seen in time.
enum Seen {
    Yes,
    No,
    /// Whoever looks may not see.
    Hidden,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_can_come_back_is_told_with_its_date() {
        let until = Some(1_800_000_000);
        for (key, comes_back, word) in [
            (Key::None, false, "none"),
            (Key::Purged, false, "gone for good"),
            (
                Key::Recoverable("because", until),
                true,
                "until 2027-01-15: because",
            ),
            (
                Key::Protected(until),
                true,
                "until 2027-01-15: the vault has purge protection",
            ),
            (Key::Protected(None), true, "does not tell"),
        ] {
            let told = key.told("obo-t");
            assert!(told.contains(word), "{told}");
            assert_eq!(key.can_come_back(), comes_back, "{told}");
        }
    }

    /// A purge that finds nothing is no purge if nothing was seen deleted: then the deletion is what is not over.
    #[test]
    fn a_key_is_gone_that_was_seen_deleted_or_whose_purge_was_accepted() {
        type Answer = Result<(), CustodyError>;
        let name = || "obo-t".to_owned();
        let nothing = || -> Answer { Err(CustodyError::NotFound(name())) };
        let under_way = || -> Answer { Err(CustodyError::BeingChanged(name())) };
        let forbidden = || -> Answer { Err(CustodyError::Forbidden(Right::Purge)) };
        let protected = || -> Answer { Err(CustodyError::PurgeProtected(name())) };
        for (answer, is_deleted, word) in [
            (Ok(()), true, None),
            (Ok(()), false, None),
            (nothing(), true, None),
            (
                nothing(),
                false,
                Some("its deletion is not over: run it again"),
            ),
            (
                under_way(),
                true,
                Some("its deletion is not over: run it again"),
            ),
            (forbidden(), true, Some("may not purge")),
            (protected(), true, Some("purge protection")),
        ] {
            let key = not_purged(answer, is_deleted, Some(1)).unwrap();
            let told = key
                .as_ref()
                .map(|key| (key.told("obo-t"), key.can_come_back()));
            assert_eq!(told.is_some(), word.is_some(), "{told:?}");
            for ((told, comes_back), word) in told.iter().zip(word) {
                assert!(told.contains(word) && *comes_back, "{told}");
            }
        }
        assert!(not_purged(Err(CustodyError::Firewall), true, None).is_err());
    }
}
