//! `behalf tenant remove`.

use crate::command::Failure;
use crate::command::custody::{Custody, check_tenants, tenant};
use crate::command::round::Manner;
use crate::command::screen::{day, say};
use crate::console::Console;
use crate::log::{self, Format, Verbosity};
use crate::operator::Operator;
use crate::outbound::OutboundClient;
use behalf_core::identity::TenantId;
use behalf_core::vault::custodian::{Custodian, CustodyError, Deleted, Right};
use clap::Args;
use serde_json::json;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  behalf tenant remove 11111111-1111-4111-8111-111111111111 --dry-run
  behalf tenant remove 11111111-1111-4111-8111-111111111111 --app https://behalf.example --yes --json

Who runs it needs the app role Behalf.Admin (in the operator tenant, for other tenants), and at Key Vault the permissions to delete, to
see what is deleted, and to purge secrets; without the last the key stays recoverable, as it does if the vault has purge protection.

Exit codes: 0 nothing is left, 1 not all was done (run it again), 2 the command line or a setting is wrong, 3 the users are removed and
the key is deleted, but can be recovered until a date that is told, 130 it was interrupted.";

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

/// What has become of a key.
enum Key {
    /// There was none, and none is deleted.
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
            Self::None => format!("key    {secret}: there is none"),
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
        check_tenants(custodian.settings(), [&self.tenant])?;
        let operator = self.custody.operator(Some(&self.tenant)).await?;
        let secret = custodian.secret_name(&self.tenant);
        let secret = secret.as_str();
        if self.manner.dry_run {
            return self.rehearse(&operator, &custodian, secret).await;
        }
        self.ask(secret).await?;
        let mut removed = self.users(&operator).await?;
        let key = self.key(&custodian).await.inspect_err(|_| {
            tracing::warn!("{removed} users were removed, and the key was not: run it again");
        })?;
        // Whoever has enrolled while the key was still there.
        removed = removed.saturating_add(self.users(&operator).await?);
        let until = key.until();
        if self.manner.json {
            let done = json!({"tenant": self.tenant.as_str(), "users_removed": removed, "secret": secret,
                "key": key.word(), "recoverable_until": until});
            say(&done.to_string())?;
        } else {
            say(&format!("users  {removed} removed, none is left"))?;
            say(&key.told(secret))?;
        }
        tracing::info!(
            "copies of the key in the app's memory, and tokens that were drawn under it, end within key_cache_seconds"
        );
        if key.can_come_back() {
            return Err(Failure::Recoverable);
        }
        Ok(())
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
    async fn ask(&self, secret: &str) -> Result<(), Failure> {
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
        // In a thread of its own, so that an interruption need not wait for a line.
        let read = tokio::task::spawn_blocking(|| {
            let mut written = String::new();
            io::stdin().read_line(&mut written).map(|_| written)
        });
        let written = read.await.map_err(|error| Failure::Io(error.into()))?;
        let written = written.map_err(Failure::Io)?;
        if written.trim().eq_ignore_ascii_case(tenant.as_str()) {
            Ok(())
        } else {
            Err(Failure::Usage(
                "that was not the tenant id: nothing was removed".to_owned(),
            ))
        }
    }

    /// Removes users until none is left; how many.
    async fn users(&self, operator: &Operator<OutboundClient>) -> Result<u64, Failure> {
        let (mut removed, mut in_vain) = (0_u64, 0_u32);
        let shows = io::stderr().is_terminal();
        loop {
            let removal = operator.remove_tenant(&self.tenant).await?;
            removed = removed.saturating_add(removal.removed);
            if removal.remaining == 0 {
                return Ok(removed);
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
                    "\r{removed} removed, {} are left\x1b[K",
                    removal.remaining
                );
            }
        }
    }

    /// Deletes the key, purges it if that is allowed, and looks whether it is gone.
    async fn key(&self, custodian: &Custodian<Console>) -> Result<Key, Failure> {
        let tenant = &self.tenant;
        let said = match custodian.delete(tenant).await {
            Ok(Some(deleted)) => deleted,
            // Deleted before, perhaps a moment ago by a run that broke off: while a deletion is under way there is no trace of it.
            Ok(None) => match self.find_deleted(custodian).await? {
                Some(deleted) => deleted,
                None => return Ok(Key::None),
            },
            Err(error) => return Err(error.into()),
        };
        let until = said.purged_at;
        // Until then nothing can be done with it.
        self.look(custodian, Option::is_some).await?;
        if said.can_be_purged == Some(false) {
            return Ok(Key::Protected(until));
        }
        if self.no_purge {
            return Ok(Key::Recoverable("--no-purge", until));
        }
        match custodian.purge(tenant).await {
            Ok(()) | Err(CustodyError::NotFound(_)) => {}
            Err(CustodyError::Forbidden(Right::Purge)) => {
                return Ok(Key::Recoverable(
                    "this identity may not purge secrets",
                    until,
                ));
            }
            Err(CustodyError::PurgeProtected(_)) => return Ok(Key::Protected(until)),
            Err(error) => return Err(error.into()),
        }
        Ok(match self.look(custodian, Option::is_none).await? {
            Seen::Yes => Key::Purged,
            Seen::No => Key::Recoverable("Key Vault has not purged it yet", until),
            Seen::Hidden => Key::Recoverable(
                "it was to be purged, and this identity may not see whether it was",
                until,
            ),
        })
    }

    /// What is deleted, or turns out to be within the time that a deletion takes.
    async fn find_deleted(
        &self,
        custodian: &Custodian<Console>,
    ) -> Result<Option<Deleted>, Failure> {
        for _ in 0..LOOKS_FOR_A_DELETION {
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
        is_so: impl Fn(&Option<Deleted>) -> bool,
    ) -> Result<Seen, Failure> {
        for _ in 0..LOOKS {
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

/// Whether something was seen in time.
enum Seen {
    Yes,
    No,
    /// Whoever looks may not see.
    Hidden,
}

#[cfg(test)]
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
}
