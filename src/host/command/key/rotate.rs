//! `behalf key rotate`.

use super::known::KnownKeys;
use crate::command::Failure;
use crate::command::custody::{Custody, check_tenants, tenant};
use crate::command::round::{Item, Manner, Round, whole};
use crate::command::screen::day;
use crate::command::values::time_with_unit;
use crate::console::Console;
use crate::log::{self, Format, Verbosity};
use behalf_core::Clock as _;
use behalf_core::identity::TenantId;
use behalf_core::vault::custodian::{Custodian, Marks};
use clap::Args;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  behalf key rotate 11111111-1111-4111-8111-111111111111            as the app of the settings
  behalf key rotate --credential azure-cli --vault https://my-vault.vault.azure.net 11111111-1111-4111-8111-111111111111
  behalf key rotate --older-than 30d --app https://behalf.example   what its status has, with the app role Behalf.Read
  AZURE_CLIENT_ID=… behalf key rotate --credential github --vault https://my-vault.vault.azure.net --expires-in 90d <TENANT>…

Exit codes: 0 every key has a new version, 1 some have not (which, and why, is told), 2 the command line or a setting is wrong,
130 it was interrupted.";

const UNSWEPT: &str = "no sweep has looked yet which tenants there are: wait for one, ring one (`behalf sweep`), or name tenants";

/// The options of `behalf key rotate`.
#[derive(Debug, Args)]
pub(in crate::command) struct Rotate {
    /// Tenants whose keys are rotated.
    #[arg(value_name = "TENANT", value_parser = tenant, required_unless_present_any = ["all", "older_than"], conflicts_with_all = ["all", "older_than"])]
    tenants: Vec<TenantId>,

    /// All tenants that the status of the app has.
    #[arg(long, conflicts_with = "older_than")]
    all: bool,

    /// Those of them whose newest version was made so long ago. A rotation that broke off goes on with a time since it began, once a
    /// sweep has seen what it has made. With its unit: 30d, or 2h for what has been made in the last two hours and is to stay.
    #[arg(long, value_name = "TIME", value_parser = time_with_unit)]
    older_than: Option<Duration>,

    /// When the new version ends; `never` is possible. From then on nothing opens that is sealed under it, so rotate well before.
    #[arg(long, value_name = "TIME", default_value = "730d", value_parser = lifetime)]
    expires_in: Lifetime,

    /// A tag of the new version, besides `made-by` and `tenant`; others can read it. May be given again.
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = tag)]
    tags: Vec<(String, String)>,

    #[command(flatten)]
    custody: Custody,

    #[command(flatten)]
    manner: Manner,
}

#[derive(Debug, Clone, Copy)]
struct Lifetime(Option<Duration>);

/// A time from an hour to a hundred years, or none.
fn lifetime(text: &str) -> Result<Lifetime, String> {
    const LEAST: Duration = Duration::from_hours(1);
    const MOST: Duration = Duration::from_hours(100 * 366 * 24);
    if text == "never" {
        return Ok(Lifetime(None));
    }
    let time = time_with_unit(text)?;
    if time < LEAST {
        return Err("write a time of an hour at least, such as 90d, or never".to_owned());
    }
    if time > MOST {
        return Err("write a time of a hundred years at most, such as 90d, or never".to_owned());
    }
    Ok(Lifetime(Some(time)))
}

/// Tags that every version carries.
const OURS: [&str; 2] = ["made-by", "tenant"];

/// As Key Vault takes them: 512 characters at most each.
fn tag(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    if name.is_empty() || name.len() > 512 || value.len() > 512 {
        return Err(
            "a tag's name and value may have 512 characters each, and its name one at least",
        );
    }
    if OURS.iter().any(|it| it.eq_ignore_ascii_case(name)) {
        return Err("`made-by` and `tenant` are ours: choose another name");
    }
    Ok((name.to_owned(), value.to_owned()))
}

impl Rotate {
    /// Does it.
    pub(super) async fn run(self) -> Result<(), Failure> {
        log::begin(Format::Text, Verbosity::Info);
        let names: BTreeSet<_> = self.tags.iter().map(|(name, _)| name).collect();
        if names.len() < self.tags.len() {
            return Err(Failure::Usage("--tag: a name is there twice".to_owned()));
        }
        // Of Key Vault's fifteen, two are ours.
        if self.tags.len() > 13 {
            return Err(Failure::Usage(
                "--tag: Key Vault takes thirteen besides ours".to_owned(),
            ));
        }
        let custodian = self.custody.custodian().await?;
        check_tenants(custodian.settings(), &self.tenants)?;
        let (items, is_whole) = if self.tenants.is_empty() {
            let operator = self.custody.operator(None).await?;
            let known = KnownKeys::of(operator.status(None).await?, UNSWEPT)?;
            self.choose(&known, custodian.clock().now())
        } else {
            (Item::keys(&self.tenants), true)
        };
        let rotated = if self.manner.dry_run {
            self.rehearse(&custodian, &items).await
        } else {
            self.rotate(&custodian, &items).await
        };
        rotated.and(whole(is_whole))
    }

    /// Which of the tenants that the app knows, and whether nothing hindered that.
    fn choose(&self, known: &KnownKeys, now: u64) -> (Vec<Item>, bool) {
        let (chosen, unknown) = match self.older_than {
            Some(age) => known.older_than(age, now),
            None => (known.all(), Vec::new()),
        };
        for tenant in &unknown {
            tracing::warn!(
                "{tenant}: the app does not know yet how old its key is; name it, or wait for a sweep"
            );
        }
        if known.hidden() > 0 {
            tracing::warn!(
                "the status does not show {} tenants: name them",
                known.hidden()
            );
        }
        let is_whole = unknown.is_empty() && known.hidden() == 0;
        (Item::keys(&chosen), is_whole)
    }

    async fn rotate(&self, custodian: &Custodian<Console>, items: &[Item]) -> Result<(), Failure> {
        let round = Round {
            done: "rotated",
            again: "behalf key rotate",
            json: self.manner.json,
        };
        round
            .go(items, async |item| {
                let tenant = &item.tenant;
                let marks = self.marks(custodian.clock().now(), tenant);
                let version = custodian.make_version(tenant, &marks).await?;
                let secret = custodian.secret_name(tenant);
                let (secret, id) = (secret.as_str(), version.version.as_str());
                let ends = version.expires_at;
                let text = format!("{tenant}  {secret}  {id}  ends {}", day(ends, "never"));
                let json = json!({"secret": secret, "version": id, "created_at": version.created_at, "expires_at": ends});
                Ok((text, item.json(json)))
            })
            .await
    }

    async fn rehearse(
        &self,
        custodian: &Custodian<Console>,
        items: &[Item],
    ) -> Result<(), Failure> {
        custodian.check_credential().await?;
        let vault = &custodian.settings().key_vault_url;
        let shown = items.iter().map(|item| {
            let tenant = &item.tenant;
            let marks = self.marks(custodian.clock().now(), tenant);
            let secret = custodian.secret_name(tenant);
            let (secret, ends) = (secret.as_str(), marks.expires_at);
            let text = format!("{tenant}  {secret}  would end {}", day(ends, "never"));
            (
                text,
                item.json(json!({"secret": secret, "expires_at": ends})),
            )
        });
        Round::rehearsed("would_rotate", shown, self.manner.json)?;
        tracing::info!("{vault} was asked for nothing; there is a token for it");
        Ok(())
    }

    fn marks(&self, now: u64, tenant: &TenantId) -> Marks {
        let Lifetime(lifetime) = self.expires_in;
        let mut tags: BTreeMap<_, _> = self.tags.iter().cloned().collect();
        let made_by = concat!("behalf ", env!("CARGO_PKG_VERSION"));
        let ours = OURS.into_iter().zip([made_by, tenant.as_str()]);
        tags.extend(ours.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Marks {
            expires_at: lifetime.map(|time| now.saturating_add(time.as_secs())),
            tags,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_none_of_ours() {
        assert!(tag("team=identity").is_ok() && tag("team=").is_ok());
        for text in ["tenant=x", "Tenant=x", "made-by=me", "=x", "team"] {
            assert!(tag(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_lifetime_is_an_hour_at_least_or_has_no_end() {
        assert_eq!(lifetime("never").unwrap().0, None);
        let ninety = Duration::from_hours(90 * 24);
        assert_eq!(lifetime("90d").unwrap().0, Some(ninety));
        assert!(lifetime("100y").is_ok());
        for text in ["59m", "0", "soon", "-1d", "90", "101y", "5000000000000d"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }
}
