//! `behalf status`: what the app says of itself, for people.

use super::Failure;
use super::operator::{Asking, guid};
use super::screen::{ago, day, say, table};
use behalf_core::identity::TenantId;
use behalf_core::keeper::status::{A_DAY, Report, Tenant};
use behalf_core::ledger::summary::{Due, States};
use clap::Args;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) const EXAMPLES: &str = "\
Examples:
  behalf status                                    the app on this machine, by the settings of its environment
  behalf status --app https://behalf.example --tenant 11111111-1111-4111-8111-111111111111
  behalf status --json | jq '.needs'
  behalf status --credential azure-cli --audience api://CLIENT-ID --app https://behalf.example

Who asks needs the app role Behalf.Read, and sees its own tenant; all of them from the operator tenant.

Exit codes: 0 this is how it is, 1 the app does not say, 2 the command line or a setting is wrong, 3 (with --check) the
operator has to act.";

/// A sweep comes every five minutes or so, and looks at what is stored once an hour at least: after two something is wrong.
const STALE: u64 = 2 * 3600;
/// How long before its end a key is to be rotated.
const BEFORE_EXPIRY: u64 = 30 * 86_400;
/// Tenants that are shown, if all are; JSON has them all.
const SHOWN: usize = 50;

/// The options of `behalf status`.
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    asking: Asking,

    /// One tenant, with users of it who have to act, by the pseudonyms that the log has.
    #[arg(long, value_name = "TENANT", value_parser = guid)]
    tenant: Option<TenantId>,

    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,

    /// End with code 3 if there is something that the operator has to do.
    #[arg(long)]
    check: bool,
}

impl Status {
    /// Shows it.
    pub(super) async fn run(self) -> Result<(), Failure> {
        super::begin_log();
        let operator = self.asking.open(self.tenant.as_ref()).await?;
        let report = operator.status(self.tenant.as_ref()).await?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since.unwrap_or_default().as_secs();
        let needs = needs(&report, now);
        if self.json {
            say(&to_json(&report, &needs).to_string())?;
        } else {
            say(&to_text(&report, &needs, now, self.tenant.is_some()))?;
        }
        let is_operators = needs.iter().any(|need| need.who == Who::Operator);
        if self.check && is_operators {
            return Err(Failure::Needed);
        }
        Ok(())
    }
}

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Operator,
    Users,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Users => "users",
        }
    }
}

/// What has to be done.
#[derive(Debug, PartialEq, Eq)]
struct Need {
    who: Who,
    tenant: Option<String>,
    what: String,
}

fn needs(report: &Report, now: u64) -> Vec<Need> {
    let mut needs = Vec::new();
    let mut need = |who, tenant: Option<&String>, what: String| {
        let tenant = tenant.cloned();
        needs.push(Need { who, tenant, what });
    };
    if let Some(warning) = &report.warning {
        need(Who::Operator, None, warning.to_string());
    }
    if report.age_seconds.is_some_and(|age| age > STALE) {
        let what = "sweeps do not run: see to it that POST /v1/sweep is called every five minutes (`behalf sweep`), and what the log says of it";
        need(Who::Operator, None, what.to_owned());
    }
    if let Some(last) = &report.last_sweep {
        let sweep = &last.report;
        if let Some(code) = &sweep.stopped {
            let what = format!("the last sweep stopped ({code}): the log says why");
            need(Who::Operator, None, what);
        }
        for (number, what) in [
            (sweep.failed, "could not be stored: the log says why"),
            (
                sweep.refused,
                "were refused for a reason of this app's: the log says which",
            ),
            (
                sweep.not_served,
                "are of tenants that are not among `tenants`: remove these, or allow them again",
            ),
        ] {
            if number > 0 {
                need(Who::Operator, None, format!("{number} records {what}"));
            }
        }
    }
    for (tenant, of) in &report.tenants {
        let mut need = |who, what: String| need(who, Some(tenant), what);
        if let Some(code) = &of.without_key {
            need(
                Who::Operator,
                format!("no key to seal under ({code}): {}", key_advice(code)),
            );
        } else if let Some(expires_at) = of.newest_key_version.as_ref().and_then(|it| it.expires_at)
            && expires_at <= now.saturating_add(BEFORE_EXPIRY)
        {
            let end = day(Some(expires_at), "-");
            let what = format!("its key seals no more from {end} on: behalf key rotate {tenant}");
            need(Who::Operator, what);
        }
        if of.summary.being_removed {
            need(
                Who::Operator,
                "its removal has begun and not ended, and nobody of it can enrol: repeat it"
                    .to_owned(),
            );
        }
        if of.summary.numbers.states.not_readable > 0 {
            let number = of.summary.numbers.states.not_readable;
            let what = format!("{number} records cannot be read or opened: the log says which");
            need(Who::Operator, what);
        }
        let total = of.summary.must_act.total;
        if total > 0 {
            let what = format!(
                "{total} of its users, or its administrators for them, have to act: enrol again (GET /v1/me says who)"
            );
            need(Who::Users, what);
        }
    }
    needs.sort_by_key(|need| need.who);
    needs
}

fn key_advice(code: &str) -> &'static str {
    match code {
        "key_not_found" => {
            "make one with behalf key rotate, or recover it in Key Vault if it was deleted"
        }
        "key_disabled" => "enable its newest version in Key Vault, or make another",
        "key_expired" | "key_not_valid_now" | "key_worn_out" | "key_malformed" => {
            "make another with behalf key rotate"
        }
        "key_vault_forbidden" => {
            "let the app's identity read secrets there (Key Vault Secrets User)"
        }
        "key_vault_firewall" => "let the app through the vault's firewall",
        _ => "behalf doctor tells more",
    }
}

fn retirable(of: &Tenant, observed_at: u64) -> Vec<&str> {
    let versions = of.retirable(observed_at, A_DAY).into_iter();
    versions.map(|(version, _)| version).collect()
}

fn to_json(report: &Report, needs: &[Need]) -> Value {
    let observed_at = report.observed_at.unwrap_or(0);
    let rotation = |of: &Tenant| {
        let retirable = retirable(of, observed_at);
        json!({"rotated_percent": of.rotated(), "safe_to_disable": retirable})
    };
    let rotation: serde_json::Map<_, _> = (report.tenants.iter())
        .map(|(tenant, of)| (tenant.clone(), rotation(of)))
        .collect();
    let needs: Vec<_> = needs
        .iter()
        .map(
            |Need { who, tenant, what }| json!({"who": who.name(), "tenant": tenant, "what": what}),
        )
        .collect();
    json!({"status": report, "rotation": rotation, "needs": needs})
}

fn to_text(report: &Report, needs: &[Need], now: u64, names_users: bool) -> String {
    let mut lines = match report.observed_at {
        Some(at) => counted(report, at, now),
        // Nobody has counted: there is nothing that the numbers say.
        None => vec!["no sweep has looked yet: `behalf sweep` rings one".to_owned()],
    };
    if let Some(last) = &report.last_sweep {
        let sweep = &last.report;
        lines.push(format!(
            "last sweep  {}: {} refreshed, {} re-sealed, {} failed, {} waiting, {} left",
            ago(last.ended_at, now),
            sweep.refreshed,
            sweep.resealed,
            sweep.failed,
            sweep.waiting,
            sweep.remaining
        ));
    }
    if !report.tenants.is_empty() {
        lines.push(String::new());
        lines.push(tenants(report));
    }
    if let Some(of) = report.tenants.values().next().filter(|_| names_users)
        && !of.summary.must_act.users.is_empty()
    {
        lines.push(
            "\nusers who have to act, or their administrators, as the log knows them".to_owned(),
        );
        lines.extend(
            of.summary
                .must_act
                .users
                .iter()
                .map(|user| format!("  {user}")),
        );
    }
    lines.push(String::new());
    if needs.is_empty() {
        lines.push("nobody has to act".to_owned());
    } else {
        let rows = needs.iter().map(|Need { who, tenant, what }| {
            let tenant = tenant.clone().unwrap_or_else(|| "all".to_owned());
            vec![who.name().to_owned(), tenant, what.clone()]
        });
        lines.push(table(&["WHO", "TENANT", "WHAT TO DO"], rows.collect()));
    }
    lines.join("\n")
}

fn counted(report: &Report, at: u64, now: u64) -> Vec<String> {
    let States {
        active,
        retrying,
        interaction_required,
        quarantined,
        not_readable,
    } = report.states;
    let Due {
        now: at_once,
        hour,
        day: in_day,
        week,
        later,
    } = report.due;
    let number = |number: u64, what| {
        let end = if number == 1 { "" } else { "s" };
        format!("{number} {what}{end}")
    };
    vec![
        format!(
            "{} of {}, as seen {}",
            number(report.users, "user"),
            number(report.tenant_count, "tenant"),
            ago(at, now)
        ),
        format!(
            "states      {active} active, {retrying} retrying, {interaction_required} wait for their user or organisation, \
             {quarantined} quarantined, {not_readable} not readable"
        ),
        format!(
            "due         {at_once} now, {hour} within an hour, {in_day} a day, {week} a week, {later} later"
        ),
    ]
}

fn tenants(report: &Report) -> String {
    let observed_at = report.observed_at.unwrap_or(0);
    let mut all: Vec<_> = report.tenants.iter().collect();
    all.sort_by_key(|(_, of)| std::cmp::Reverse(of.summary.numbers.users));
    let more = all.len().saturating_sub(SHOWN);
    let rows = all.into_iter().take(SHOWN).map(|(tenant, of)| {
        let dash = || "-".to_owned();
        let newest = of.newest_key_version.as_ref();
        let retirable = retirable(of, observed_at);
        vec![
            tenant.clone(),
            of.summary.numbers.users.to_string(),
            of.rotated()
                .map_or_else(dash, |percent| format!("{percent} %")),
            day(newest.and_then(|it| it.created_at), "-"),
            day(newest.and_then(|it| it.expires_at), "-"),
            of.summary.unused_key_versions.len().to_string(),
            if retirable.is_empty() {
                dash()
            } else {
                retirable.join(" ")
            },
        ]
    });
    let head = [
        "TENANT",
        "USERS",
        "ROTATED",
        "KEY MADE",
        "KEY ENDS",
        "UNUSED",
        "SAFE TO DISABLE",
    ];
    let text = table(&head, rows.collect());
    if more == 0 {
        return text;
    }
    format!("{text}\nand {more} more, which --json has")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn report(edit: impl FnOnce(&mut Value)) -> Report {
        let (old, new) = ("0".repeat(32), "1".repeat(32));
        let tenant = "11111111-1111-4111-8111-111111111111";
        let mut body = json!({
            "observed_at": NOW - 60, "age_seconds": 60, "users": 3, "tenant_count": 1,
            "states": {"active": 3}, "due": {"week": 3},
            "tenants": {tenant: {
                "users": 3, "states": {"active": 3}, "due": {"week": 3}, "must_act": {"total": 0},
                "key_versions": {&new: 3}, "unused_key_versions": {&old: NOW - 60 - 86_400},
                "newest_key_version": {"version": &new, "created_at": NOW - 86_400},
            }},
            "last_sweep": {"ended_at": NOW - 10, "report": {"refreshed": 2}},
        });
        edit(&mut body);
        serde_json::from_value(body).unwrap()
    }

    const TENANT: &str = "/tenants/11111111-1111-4111-8111-111111111111";

    fn in_tenant(body: &mut Value, name: &str, value: Value) {
        let of = body.pointer_mut(TENANT).unwrap().as_object_mut().unwrap();
        of.insert(name.to_owned(), value);
    }

    #[test]
    fn people_read_it_at_a_glance() {
        let report = report(|_| {});
        let text = to_text(&report, &needs(&report, NOW), NOW, false);
        assert_eq!(
            text,
            format!(
                "3 users of 1 tenant, as seen 1m ago\n\
                 states      3 active, 0 retrying, 0 wait for their user or organisation, 0 quarantined, 0 not readable\n\
                 due         0 now, 0 within an hour, 0 a day, 3 a week, 0 later\n\
                 last sweep  10s ago: 2 refreshed, 0 re-sealed, 0 failed, 0 waiting, 0 left\n\
                 \n\
                 TENANT                                USERS  ROTATED  KEY MADE    KEY ENDS  UNUSED  SAFE TO DISABLE\n\
                 11111111-1111-4111-8111-111111111111  3      100 %    2027-01-14  -         1       {}\n\
                 \n\
                 nobody has to act",
                "0".repeat(32)
            )
        );
    }

    #[test]
    fn whatever_has_to_be_done_is_said_with_who_does_it() {
        type Edit = fn(&mut Value);
        let cases: &[(Edit, Who, &str)] = &[
            (
                |it| it["warning"] = json!("divide"),
                Who::Operator,
                "divide",
            ),
            (
                |it| it["age_seconds"] = json!(STALE + 1),
                Who::Operator,
                "sweeps do not run",
            ),
            (
                |it| it["last_sweep"]["report"]["stopped"] = json!("clock_wrong"),
                Who::Operator,
                "stopped (clock_wrong)",
            ),
            (
                |it| it["last_sweep"]["report"]["failed"] = json!(2),
                Who::Operator,
                "2 records could not be stored",
            ),
            (
                |it| it["last_sweep"]["report"]["refused"] = json!(1),
                Who::Operator,
                "1 records were refused",
            ),
            (
                |it| it["last_sweep"]["report"]["not_served"] = json!(1),
                Who::Operator,
                "`tenants`",
            ),
            (
                |it| in_tenant(it, "without_key", json!("key_disabled")),
                Who::Operator,
                "enable its newest version",
            ),
            (
                |it| in_tenant(it, "being_removed", json!(true)),
                Who::Operator,
                "repeat it",
            ),
            (
                |it| in_tenant(it, "states", json!({"not_readable": 1})),
                Who::Operator,
                "cannot be read",
            ),
            (
                |it| {
                    let ending = json!({"version": "1".repeat(32), "expires_at": NOW + 86_400});
                    in_tenant(it, "newest_key_version", ending);
                },
                Who::Operator,
                "behalf key rotate 1111",
            ),
            (
                |it| in_tenant(it, "must_act", json!({"total": 2})),
                Who::Users,
                "2 of its users",
            ),
        ];
        for (edit, who, what) in cases {
            let report = report(edit);
            let needs = needs(&report, NOW);
            let [need] = needs.as_slice() else {
                panic!("{what}: {needs:?}");
            };
            assert!(need.who == *who && need.what.contains(what), "{need:?}");
            let text = to_text(&report, &needs, NOW, false);
            assert!(text.contains(what) && text.contains(who.name()), "{text}");
            let json = to_json(&report, &needs);
            assert_eq!(json["needs"][0]["who"], who.name());
        }
    }

    #[test]
    fn nothing_is_known_before_the_first_sweep() {
        let report: Report = serde_json::from_value(json!({"warning": "no sweep"})).unwrap();
        let text = to_text(&report, &needs(&report, NOW), NOW, false);
        assert_eq!(
            text,
            "no sweep has looked yet: `behalf sweep` rings one\n\n\
             WHO       TENANT  WHAT TO DO\n\
             operator  all     no sweep"
        );
    }
}
