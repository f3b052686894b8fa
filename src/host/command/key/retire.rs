//! `behalf key retire`.

use super::known::KnownKeys;
use crate::command::Failure;
use crate::command::custody::{Custody, tenant};
use crate::command::round::{Item, Manner, Round, whole};
use crate::command::screen::day;
use crate::command::values::time_with_unit;
use crate::log::{self, Format, Verbosity};
use behalf_core::identity::{KeyVersion, TenantId};
use clap::Args;
use serde_json::json;
use std::time::Duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  behalf key retire --app https://behalf.example --dry-run
  behalf key retire 11111111-1111-4111-8111-111111111111
  behalf key retire --enable 11111111-1111-4111-8111-111111111111 --version 0f1e2d3c4b5a69788796a5b4c3d2e1f0

Exit codes: 0 done, also if there was nothing to do (why is told of tenants that are named), 1 some versions were not changed, or it is
not known whether they can be (which, and why, is told), or the app's status cannot be had, 2 the command line or a setting is wrong, 130 it was interrupted.";

/// The shortest time after which a version counts as unused: two listings a day apart have to agree.
const LEAST: Duration = Duration::from_hours(24);

const UNSWEPT: &str =
    "no sweep has looked yet which versions are in use: wait for one, or ring one (`behalf sweep`)";

/// The options of `behalf key retire`.
#[derive(Debug, Args)]
pub(in crate::command) struct Retire {
    /// Tenants whose keys are looked at; none: all that the status of the app has.
    #[arg(value_name = "TENANT", value_parser = tenant)]
    tenants: Vec<TenantId>,

    /// For how long no record may have used a version, by what sweeps have seen.
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = unused_for)]
    unused_for: Duration,

    /// Undo it: enable every version of these tenants that the status names, or those of --version.
    #[arg(long, requires = "tenants")]
    enable: bool,

    /// With --enable and one tenant: this version, and the app is not asked. May be given again.
    #[arg(long = "version", value_name = "VERSION", value_parser = version, requires = "enable")]
    versions: Vec<KeyVersion>,

    #[command(flatten)]
    custody: Custody,

    #[command(flatten)]
    manner: Manner,
}

fn unused_for(text: &str) -> Result<Duration, String> {
    let time = time_with_unit(text)?;
    if time < LEAST {
        return Err(
            "write a time of a day at least: two listings a day apart have to agree".to_owned(),
        );
    }
    Ok(time)
}

fn version(text: &str) -> Result<KeyVersion, &'static str> {
    KeyVersion::parse(text)
        .ok_or("write a version as Key Vault shows it: 32 hexadecimal digits in lower case")
}

impl Retire {
    /// Does it.
    pub(super) async fn run(self) -> Result<(), Failure> {
        log::begin(Format::Text, Verbosity::Info);
        if !self.versions.is_empty() && self.tenants.len() != 1 {
            return Err(Failure::Usage(
                "--version: name the one tenant that it is of".to_owned(),
            ));
        }
        let custodian = self.custody.custodian().await?;
        let mut is_whole = true;
        let chosen: Vec<(Item, Option<u64>)> = if self.versions.is_empty() {
            let about = self.tenants.first();
            let operator = self.custody.operator(about).await?;
            let one = about.filter(|_| self.tenants.len() == 1);
            let known = KnownKeys::of(operator.status(one).await?, UNSWEPT)?;
            let chosen = self.choose(&known);
            is_whole = self.tell_rest(&known, &chosen);
            chosen
        } else {
            let given = self.tenants.iter().flat_map(|tenant| {
                let versions = self.versions.iter().cloned();
                versions.map(|version| (item(tenant.clone(), version), None))
            });
            given.collect()
        };
        let (word, would) = if self.enable {
            ("enabled", "would_enable")
        } else {
            ("disabled", "would_disable")
        };
        let told = |item: &Item, since: Option<u64>| {
            let secret = custodian.secret_name(&item.tenant);
            let secret = secret.as_str();
            let version = item.version.as_ref().map_or("", KeyVersion::as_str);
            let since_day = since.map_or_else(String::new, |since| {
                format!("  unused since {}", day(Some(since), ""))
            });
            let text = format!("{}  {secret}  {version}{since_day}", item.tenant);
            (
                text,
                item.json(json!({"secret": secret, "unused_since": since})),
            )
        };
        if self.manner.dry_run {
            custodian.check_credential().await?;
            let shown = chosen.iter().map(|(item, since)| told(item, *since));
            Round::rehearsed(would, shown, self.manner.json)?;
            tracing::info!("nothing was changed");
            return whole(is_whole);
        }
        let round = Round {
            done: word,
            again: "the same command",
            json: self.manner.json,
        };
        let items: Vec<_> = chosen.iter().map(|(item, _)| item.clone()).collect();
        let act = async |item: &Item| {
            if let Some(version) = &item.version {
                custodian
                    .set_enabled(&item.tenant, version, self.enable)
                    .await?;
            }
            let since = chosen.iter().find(|(it, _)| it == item);
            Ok(told(item, since.and_then(|(_, since)| *since)))
        };
        round.go(&items, act).await?;
        whole(is_whole)
    }

    /// Says why nothing is done for tenants, of those that are named, and which are not known. Whether that is certain of all.
    fn tell_rest(&self, known: &KnownKeys, chosen: &[(Item, Option<u64>)]) -> bool {
        if self.tenants.is_empty() && known.hidden() > 0 {
            let hidden = known.hidden();
            tracing::warn!("the status does not show {hidden} tenants: name each alone");
            return false;
        }
        let is_chosen = |tenant: &TenantId| chosen.iter().any(|(item, _)| item.tenant == *tenant);
        let mut is_all_certain = true;
        for tenant in self.tenants.iter().filter(|tenant| !is_chosen(tenant)) {
            let (why, is_certain) = known.why_nothing(tenant, self.enable);
            tracing::warn!("{tenant}: {why}");
            is_all_certain &= is_certain;
        }
        is_all_certain
    }

    fn choose(&self, known: &KnownKeys) -> Vec<(Item, Option<u64>)> {
        if self.enable {
            let named = known.named(&self.tenants).into_iter();
            return named
                .map(|(tenant, version)| (item(tenant, version), None))
                .collect();
        }
        let unused = known.unused(&self.tenants, self.unused_for).into_iter();
        unused
            .map(|(tenant, version, since)| (item(tenant, version), Some(since)))
            .collect()
    }
}

fn item(tenant: TenantId, version: KeyVersion) -> Item {
    let version = Some(version);
    Item { tenant, version }
}
