//! `behalf doctor`.

mod findings;

use super::Failure;
use super::operator::{guid, refusal};
use super::screen::{ago, day};
use super::source::Source;
use crate::allow_list::AllowList;
use crate::loading;
use crate::manifest::{Component, Manifest};
use crate::patient::{Patient, Seen};
use crate::postgres::{Limits, Owner, OwnerError, Tables};
use crate::store::{Glance, Store};
use crate::variables::{ComponentVariables, Variables};
use behalf_core::deadline::LONGEST;
use behalf_core::error::{OperatorError, VaultError};
use behalf_core::identity::{Fingerprint, TenantId};
use behalf_core::keeper::fingerprint;
use behalf_core::keeper::status::LastSweep;
use behalf_core::ledger::postgres::database::Failure as DatabaseFailure;
use behalf_core::ledger::postgres::{PostgresLedger, schema};
use behalf_core::ledger::{Ledger as _, LedgerError};
use behalf_core::port::Config as _;
use behalf_core::vault::grants::Grants;
use behalf_core::vault::own_tokens::OwnTokens;
use behalf_core::vault::settings::{KeyVaultCredential, Settings, Tenants};
use behalf_core::{Clock as _, KeyValueLedger, Vault, VaultPort as _};
use chrono::{DateTime, Utc};
use clap::Args;
use findings::{Findings, Verdict};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) const EXAMPLES: &str = "\
Examples:
  behalf doctor                                  the spin.toml of this folder, with the settings of `behalf up`
  behalf doctor -f app/spin.toml --tenant 11111111-1111-4111-8111-111111111111
  behalf doctor --variable-file client_secret=/run/secrets/client --json

Run it where the app runs, with the app's environment: then it is the app's identity that asks, from the app's network.

Exit codes: 0 all is well, or nothing worse than a warning; 1 something is wrong, and what to do is told; 2 the command line or
the manifest is wrong; 130 it was interrupted.";

/// Tenants whose keys are asked for, if none is named.
const TENANTS: usize = 20;
/// How long before its end a key is to be rotated.
const BEFORE_EXPIRY: u64 = 30 * 86_400;
/// Seconds by which the clock may be off before the app stops sweeping.
const TOLERANCE: u64 = 300;
/// What is far off for a clock that is kept by others.
const SUSPICIOUS: u64 = 30;
/// Sweeps come every five minutes or so.
const STALE: u64 = 2 * 3600;

/// The options of `behalf doctor`.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    source: Source,

    /// A tenant whose key is asked for; may be given again [default: those of the setting `tenants`, 20 at most].
    #[arg(long = "tenant", value_name = "TENANT", value_parser = guid)]
    tenants: Vec<TenantId>,

    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

/// The app's HTTP component, and what it is given.
struct App {
    component: Component,
    variables: Arc<Variables>,
    crons: Vec<crate::manifest::CronTrigger>,
}

impl Doctor {
    /// Examines.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mut findings = Findings::default();
        self.examine(&mut findings).await?;
        findings.tell(self.json)?;
        if findings.is_well() {
            Ok(())
        } else {
            Err(Failure::Unwell)
        }
    }

    async fn examine(&self, findings: &mut Findings) -> Result<(), Failure> {
        let app = App::of(self.source.manifest()?, self.source.environment()?)?;
        let roots = loading::roots(self.source.outbound_ca.as_deref())?;
        let client = loading::client(roots.clone())?;
        let allowed = AllowList::resolve(&app.component.allowed_outbound_hosts, &app.variables);
        let allowed = match allowed {
            Ok(allowed) => allowed,
            Err(fault) => {
                let says = format!("allowed_outbound_hosts: {fault}");
                findings.add(Verdict::Wrong, "manifest", says);
                AllowList::default()
            }
        };
        let templates = app.component.variables.clone();
        let variables = ComponentVariables::new(Arc::clone(&app.variables), templates);
        let patient = Patient::new(client, variables, allowed);
        let Some(settings) = configuration(&patient, &app.variables, findings) else {
            let steps = [
                "signing keys",
                "credential",
                "clock",
                "key vault token",
                "keys",
                "store",
                "cron",
                "grants",
            ];
            for step in steps {
                findings.add(Verdict::Skipped, step, "set the configuration right first");
            }
            return Ok(());
        };
        let vault = Vault::new(patient.clone());
        let mut dates = signing_keys(&patient, &vault, &settings, findings).await;
        if settings.key_vault_credential != KeyVaultCredential::App {
            dates.extend(self.credential(&patient, &settings, findings).await);
        }
        dates.extend(self.keys(&patient, &vault, &settings, findings).await);
        clock(&dates, findings);
        let last = if app.component.variables.contains_key("postgres_host") {
            database(&vault, &patient, &settings, &roots, findings).await
        } else {
            let stores = self.source.stores()?;
            store(&app.component, &stores, &patient, &settings, findings).await
        };
        cron(&app, &settings, last.as_ref(), patient.now(), findings);
        grants(&settings, findings);
        Ok(())
    }

    /// The tenants that others are asked about.
    fn tenants<'a>(&'a self, settings: &'a Settings) -> &'a [TenantId] {
        match &settings.tenants {
            _ if !self.tenants.is_empty() => &self.tenants,
            Tenants::Listed(tenants) => tenants,
            Tenants::AnyOrganisation => &[],
        }
    }

    /// The credential that users' tokens are asked for with, where Key Vault is asked with another.
    async fn credential(
        &self,
        patient: &Patient,
        settings: &Settings,
        findings: &mut Findings,
    ) -> Vec<Seen> {
        let step = "credential";
        let Some(tenant) = self.tenants(settings).first() else {
            let says = "`tenants` is *: name one with --tenant, and it is tried there";
            findings.add(Verdict::Skipped, step, says);
            return Vec::new();
        };
        let id = settings.client_id.as_str();
        let token = match Settings::read(patient) {
            Ok(own) => {
                let tokens = OwnTokens::new(patient.clone(), own);
                tokens.of_app(tenant, &format!("{id}/.default")).await
            }
            Err(error) => Err(error),
        };
        let seen = patient.take_seen();
        let refused = token.as_ref().err();
        let refused = refused.and_then(|error| refusal(error, tenant, id, "client_id"));
        let last = seen.last();
        let place = last.map(|it| format!(", from {} {}", it.place, took(it)));
        let well = format!("client {id}{}", place.unwrap_or_default());
        match refused {
            // Only those to whom a role is assigned get tokens for it, itself not being one: the credential was right.
            Some((reason, _)) if reason.aadsts == Some(501_051) => {
                findings.add(Verdict::Well, step, well);
            }
            Some((_, says)) => findings.add(Verdict::Wrong, step, says),
            None => {
                findings.of(step, token, |_| well);
            }
        }
        seen
    }

    /// The token for Key Vault, and tenants' keys.
    async fn keys(
        &self,
        patient: &Patient,
        vault: &Vault<Patient>,
        settings: &Settings,
        findings: &mut Findings,
    ) -> Vec<Seen> {
        let step = "key vault token";
        // Read again, since whoever has them owns them.
        let token = match Settings::read(patient) {
            Ok(own) => OwnTokens::new(patient.clone(), own).for_key_vault().await,
            Err(error) => Err(error),
        };
        let mut seen = patient.take_seen();
        let is_there = findings.of(step, token, |()| {
            let who = match settings.key_vault_credential {
                KeyVaultCredential::ManagedIdentity => "the platform's managed identity".to_owned(),
                KeyVaultCredential::App => format!("client {}", settings.client_id),
            };
            let last = seen
                .last()
                .map(|it| format!(", from {} {}", it.place, took(it)));
            format!("as {who}{}", last.unwrap_or_default())
        });
        if !is_there {
            findings.add(
                Verdict::Skipped,
                "keys",
                "there is no token to ask for them with",
            );
            return seen;
        }
        let tenants = self.tenants(settings);
        let most = if self.tenants.is_empty() {
            TENANTS
        } else {
            tenants.len()
        };
        if tenants.is_empty() {
            let says = "`tenants` is *: name one with --tenant, and its key is asked for";
            findings.add(Verdict::Skipped, "keys", says);
        }
        for tenant in tenants.iter().take(most) {
            let newest = vault.newest_key_version(tenant, LONGEST.into()).await;
            seen.extend(patient.take_seen());
            let name = settings.secret_id.secret_name(tenant);
            let step = format!("key of {}", tenant.as_str());
            let end = newest.as_ref().ok().and_then(|it| it.expires_at);
            let is_ending =
                end.is_some_and(|end| end <= patient.now().saturating_add(BEFORE_EXPIRY));
            findings.of(&step, newest, |newest| {
                let made = day(newest.created_at, "an unknown day");
                let (name, version) = (name.as_str(), newest.version.as_str());
                format!(
                    "secret {name}, version {version}, made {made}, ends {}",
                    day(end, "never")
                )
            });
            if is_ending {
                let says = format!(
                    "it seals no more from {} on: behalf key rotate",
                    day(end, "-")
                );
                findings.add(Verdict::Warning, &step, says);
            }
        }
        let more = tenants.len().saturating_sub(most);
        if more > 0 {
            let says =
                format!("{more} more of `tenants` were not asked for: name them with --tenant");
            findings.add(Verdict::Skipped, "keys", says);
        }
        seen
    }
}

impl App {
    fn of(manifest: Manifest, environment: crate::variables::Environment) -> Result<Self, Failure> {
        let Manifest {
            variables,
            routes,
            crons,
            mut components,
            ..
        } = manifest;
        let route = routes.iter().next();
        let component = route.and_then(|route| components.remove(&route.component));
        let component = component.ok_or_else(|| {
            Failure::Usage("the manifest has no component with an HTTP trigger".to_owned())
        })?;
        let variables = Arc::new(Variables::new(variables, environment));
        if let Some(name) = variables.unknown() {
            return Err(Failure::Usage(format!(
                "the variable {name} of the command line is not in [variables] of the manifest"
            )));
        }
        Ok(Self {
            component,
            variables,
            crons,
        })
    }
}

fn configuration(
    patient: &Patient,
    variables: &Variables,
    findings: &mut Findings,
) -> Option<Settings> {
    let step = "configuration";
    for vain in variables.set_in_vain() {
        findings.add(Verdict::Warning, step, vain.to_string());
    }
    match Settings::read(patient) {
        Ok(settings) => {
            let tenants = match &settings.tenants {
                Tenants::AnyOrganisation => "any organisation".to_owned(),
                Tenants::Listed(tenants) => format!("{} tenants", tenants.len()),
            };
            let credential = patient.get("credential").ok().flatten().unwrap_or_default();
            let says = format!(
                "client {}, {tenants}, credential {credential}, {}",
                settings.client_id, settings.key_vault_url
            );
            findings.add(Verdict::Well, step, says);
            if settings.pseudonym_key.is_none() {
                let says = "`pseudonym_key` is empty: whoever has a directory can tell from storage who is enrolled; set it before anybody enrols";
                findings.add(Verdict::Warning, step, says);
            }
            Some(settings)
        }
        Err(VaultError::Operator(OperatorError::Setting(faults))) => {
            for fault in faults {
                findings.add(Verdict::Wrong, step, fault.to_string());
            }
            None
        }
        Err(error) => {
            findings.add(Verdict::Wrong, step, error.to_string());
            None
        }
    }
}

/// The signing keys, whose answer has a date, too.
async fn signing_keys(
    patient: &Patient,
    vault: &Vault<Patient>,
    settings: &Settings,
    findings: &mut Findings,
) -> Vec<Seen> {
    let confirmed = match vault.confirm_clock(LONGEST.into()).await {
        // Of that the clock's own step tells.
        Err(VaultError::Operator(OperatorError::ClockWrong)) => Ok(()),
        confirmed => confirmed,
    };
    let seen = patient.take_seen();
    let found = seen.iter().rev().find_map(|it| Some((it, it.keys?)));
    match (confirmed, found) {
        (Ok(()), Some((it, keys))) => {
            let says = format!("{keys} keys from {} {}", it.place, took(it));
            findings.add(Verdict::Well, "signing keys", says);
        }
        (confirmed, _) => {
            let reason = confirmed.err().map(|error| error.to_string());
            let reason = reason.unwrap_or_else(|| "what answers has none".to_owned());
            let authority = settings.authority.as_str();
            let says = format!(
                "{reason}\nis {authority} (`authority`) Entra ID of your cloud, and let through by proxy and firewall?"
            );
            findings.add(Verdict::Wrong, "signing keys", says);
        }
    }
    seen
}

fn clock(seen: &[Seen], findings: &mut Findings) {
    let step = "clock";
    let furthest = seen.iter().filter_map(|it| Some((it.ahead?, it)));
    let Some((ahead, it)) = furthest.max_by_key(|(ahead, _)| ahead.unsigned_abs()) else {
        let says = "no answer had a date to compare it with";
        findings.add(Verdict::Warning, step, says);
        return;
    };
    let way = if ahead < 0 { "behind" } else { "ahead of" };
    let says = format!("{} s {way} {}", ahead.unsigned_abs(), it.place);
    match ahead.unsigned_abs() {
        0..SUSPICIOUS => findings.add(Verdict::Well, step, says),
        SUSPICIOUS..=TOLERANCE => {
            let says = format!("{says}\nhave this machine's clock set by NTP");
            findings.add(Verdict::Warning, step, says);
        }
        _ => {
            let says = format!("{says}\n{}", OperatorError::ClockWrong);
            findings.add(Verdict::Wrong, step, says);
        }
    }
}

/// What is kept in key-value storage beside the records.
async fn store(
    component: &Component,
    stores: &BTreeMap<String, Store>,
    patient: &Patient,
    settings: &Settings,
    findings: &mut Findings,
) -> Option<LastSweep> {
    let step = "store";
    let Some(label) = component.key_value_stores.first() else {
        let says = "the manifest gives the component no store: key_value_stores, or scripts/manifest --ledger postgres";
        findings.add(Verdict::Wrong, step, says);
        return None;
    };
    let Some(store) = stores.get(label) else {
        let says = format!("there is no store {label}: add it to --runtime-config-file");
        findings.add(Verdict::Wrong, step, says);
        return None;
    };
    let where_it_is = match store {
        Store::Sqlite(_) => match store.path() {
            None => {
                let says = "in memory: all records are gone when the process ends";
                findings.add(Verdict::Warning, step, says);
                return None;
            }
            Some(path) if !path.exists() => {
                let says = format!(
                    "{} is not there yet: the app makes it when it starts",
                    path.display()
                );
                findings.add(Verdict::Well, step, says);
                return None;
            }
            Some(path) => path.display().to_string(),
        },
        Store::Redis(_) => store.to_string(),
    };
    let glance = Glance::new(store.clone(), label);
    let ledger = KeyValueLedger::new(glance, patient.clone()).under(&settings.store_prefix);
    let known = ledger.fingerprint().await;
    let last = ledger.sweep_state().await;
    let last = last.ok().flatten().and_then(|it| LastSweep::of_state(&it));
    kept(known, &where_it_is, settings, findings);
    last
}

/// The same in PostgreSQL, and whether the app may write there.
async fn database(
    vault: &Vault<Patient>,
    patient: &Patient,
    settings: &Settings,
    roots: &rustls::RootCertStore,
    findings: &mut Findings,
) -> Option<LastSweep> {
    let step = "store";
    let connection = match vault.locate_database(LONGEST.into()).await {
        Ok(connection) => connection,
        Err(error) => {
            findings.add(Verdict::Wrong, step, error.to_string());
            return None;
        }
    };
    let (address, ca) = (&connection.address, connection.ca_root.as_deref());
    let opened = Owner::connect(address.expose(), None, roots, Limits::Minute, ca).await;
    let tables = match opened {
        Ok(owner) => Tables::new(owner),
        Err(error) => {
            let reason = match error {
                OwnerError::Connect(reason) => DatabaseFailure::of_opening(&reason).to_string(),
                // The option that these name is other commands'.
                OwnerError::Database | OwnerError::NoHost => "they make no address".to_owned(),
                other => other.to_string(),
            };
            let says =
                format!("{reason}\ncheck the settings `postgres_…`, and what the server lets in");
            findings.add(Verdict::Wrong, step, says);
            return None;
        }
    };
    let ledger = PostgresLedger::new(tables.clone(), patient.clone()).under(&settings.store_prefix);
    let known = ledger.fingerprint().await;
    let last = ledger.sweep_state().await;
    let last = last.ok().flatten().and_then(|it| LastSweep::of_state(&it));
    if known.is_ok()
        && let Err(failure) = schema::check_rights(&tables).await
    {
        findings.add(Verdict::Wrong, step, format!("PostgreSQL: {failure}"));
        return last;
    }
    kept(known, "PostgreSQL", settings, findings);
    last
}

/// Whether what is stored was made with these settings.
fn kept(
    known: Result<Option<Fingerprint>, LedgerError>,
    where_it_is: &str,
    settings: &Settings,
    findings: &mut Findings,
) {
    let step = "store";
    match known {
        Err(error) => {
            let reason = match error {
                LedgerError::Store(error) => error.to_string(),
                other => other.to_string(),
            };
            findings.add(Verdict::Wrong, step, format!("{where_it_is}: {reason}"));
        }
        Ok(None) => findings.add(Verdict::Well, step, format!("{where_it_is}, empty")),
        Ok(Some(known)) => match fingerprint::check(&known, &settings.policy()) {
            Ok(()) => {
                let says = format!("{where_it_is}, made with these settings");
                findings.add(Verdict::Well, step, says);
            }
            Err(changed) => findings.add(Verdict::Wrong, step, changed.to_string()),
        },
    }
}

fn cron(
    app: &App,
    settings: &Settings,
    last: Option<&LastSweep>,
    now: u64,
    findings: &mut Findings,
) {
    let step = "cron";
    if settings.sweep_keys.is_empty() && settings.operator_tenant.is_none() {
        let says = "nobody can sweep: set `sweep_key` to at least 32 random characters, or `operator_tenant` for an app with the role Behalf.Sweep";
        findings.add(Verdict::Wrong, step, says);
    } else if settings.sweep_keys.is_empty() && !app.crons.is_empty() {
        let says = "the schedule cannot sweep: set `sweep_key` to at least 32 random characters";
        findings.add(Verdict::Wrong, step, says);
    }
    for trigger in &app.crons {
        let time = DateTime::<Utc>::from_timestamp(i64::try_from(now).unwrap_or(0), 0);
        let next = time.and_then(|now| trigger.schedule.next(now));
        if let Some(next) = next {
            let next = next.format("%H:%M:%S UTC");
            let says = format!("{}, next at {next}", trigger.schedule);
            findings.add(Verdict::Well, step, says);
        } else {
            let says = format!("{} has no next time: see cron_expression", trigger.schedule);
            findings.add(Verdict::Wrong, step, says);
        }
    }
    if app.crons.is_empty() {
        let says = "the manifest has no schedule: see to it that POST /v1/sweep is called, every five minutes (`behalf sweep`)";
        findings.add(Verdict::Warning, step, says);
    }
    match last {
        None => findings.add(Verdict::Warning, step, "no sweep has ended yet"),
        Some(LastSweep { ended_at, report }) => {
            let when = format!("the last sweep ended {}", ago(*ended_at, now));
            match &report.stopped {
                Some(code) => {
                    let says = format!("{when}, before its time: {code}; the log says more");
                    findings.add(Verdict::Wrong, step, says);
                }
                None if now.saturating_sub(*ended_at) > STALE => {
                    let says = format!("{when}: does the app run, and its schedule with it?");
                    findings.add(Verdict::Wrong, step, says);
                }
                None => findings.add(Verdict::Well, step, when),
            }
        }
    }
}

fn grants(settings: &Settings, findings: &mut Findings) {
    let step = "grants";
    let mut words = settings.grants.in_words(settings.operator_tenant.as_ref());
    words.extend(settings.apis.in_words());
    let has_rules = Grants::parse("[]").is_ok_and(|none| none != settings.grants);
    let verdict = if has_rules {
        Verdict::Well
    } else {
        Verdict::Warning
    };
    findings.add(verdict, step, words.join("\n"));
}

fn took(seen: &Seen) -> String {
    format!("in {} ms", seen.took.as_millis())
}
