//! What a run needs of a ledger besides its port: how it is made, and what is in it.

use std::collections::BTreeMap;

use crate::ledger::Ledger;
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::head::Head;
use crate::ledger::key_value::layout::Layout;
use crate::ledger::postgres::PostgresLedger;
use crate::ledger::record::Record;
use crate::simulation::history::View;
use crate::simulation::outside::Outside;
use crate::simulation::port::Port;
use crate::simulation::users::{OBJECTS, TENANT_OF, TENANTS, storage_id};

/// A ledger of a run.
pub(super) trait Kept: Ledger + 'static {
    /// Whether something that failed may be made afterwards.
    const COMES_LATE: bool;

    fn new(port: Port) -> Self;

    /// What a replica does that has lost what the last sweep left.
    fn forget_sweeps(outside: &Outside);

    fn is_barred(outside: &Outside, tenant: &str) -> bool;

    /// Whether a user is enrolled, and the record, as a draw reads them.
    fn stored(outside: &Outside, user: usize) -> (bool, Option<Record>);

    /// What is wrong after a pass without Entra ID, when these are the newest key versions: something is under another.
    fn outdated(outside: &Outside, newest: &[String; 2]) -> Option<String>;

    /// What should not be there of a user at the end.
    fn left_over(outside: &Outside, user: usize, view: View) -> Option<String>;

    /// What should not be there besides.
    fn strangers(outside: &Outside) -> Option<String>;

    /// All that is stored, as texts.
    fn texts(outside: &Outside) -> Vec<String>;
}

impl Kept for KeyValueLedger<Port, Port> {
    const COMES_LATE: bool = false;

    fn new(port: Port) -> Self {
        Self::new(port.clone(), port)
    }

    fn forget_sweeps(outside: &Outside) {
        outside.rows.borrow_mut().remove("sweep.state");
    }

    fn is_barred(outside: &Outside, tenant: &str) -> bool {
        let key = format!("bar.{}", tenant.replace('-', ""));
        outside.rows.borrow().contains_key(&key)
    }

    fn stored(outside: &Outside, user: usize) -> (bool, Option<Record>) {
        let rows = outside.rows.borrow();
        let id = storage_id(user);
        let head = rows
            .iter()
            .find(|(key, _)| key.starts_with("usr.") && key.ends_with(&id));
        let head = head.map(|(_, head)| Head::from_json(head).unwrap());
        let record = head
            .as_ref()
            .and_then(|head| rows.get(&format!("rec.{id}.{}", head.nonce.as_str())));
        let record = record.map(|record| Record::from_json(record).unwrap());
        (head.is_some(), record)
    }

    fn outdated(outside: &Outside, newest: &[String; 2]) -> Option<String> {
        let rows = outside.rows.borrow();
        let mut keys = rows.keys().filter(|key| key.starts_with("due."));
        keys.find(|key| {
            let marker = Layout::new("").read_marker(key).unwrap();
            let of = usize::from(marker.user.tenant.as_str() == TENANTS[1]);
            let is_current = rows
                .values()
                .any(|value| Head::from_json(value).is_ok_and(|head| head.nonce == marker.nonce));
            let is_off = rows.contains_key(&Layout::new("").off(&marker.user.id, &marker.nonce));
            // While nobody confirms the clock, nothing leaves a version of which it is not noted yet that it is in use.
            let is_noted = rows.keys().any(|key| {
                let noted = Layout::new("").read_version(key);
                noted.is_some_and(|(tenant, version, _)| {
                    (tenant, version) == (marker.user.tenant.clone(), marker.key_version.clone())
                })
            });
            is_current && !is_off && is_noted && marker.key_version.as_str() != newest[of]
        })
        .cloned()
    }

    fn left_over(outside: &Outside, user: usize, view: View) -> Option<String> {
        let id = storage_id(user);
        let rows = outside.rows.borrow();
        let rows: Vec<_> = rows.keys().filter(|key| key.contains(&id)).collect();
        let kinds: BTreeMap<&str, usize> = rows.iter().fold(BTreeMap::new(), |mut kinds, key| {
            *kinds.entry(&key[..3]).or_default() += 1;
            kinds
        });
        let expected: &[(&str, usize)] = match view {
            View::Absent => &[],
            View::NoToken => &[("off", 1), ("usr", 1)],
            View::Has(_) => &[("due", 1), ("rec", 1), ("usr", 1)],
        };
        (kinds.into_iter().collect::<Vec<_>>() != expected).then(|| format!("{rows:?}"))
    }

    fn strangers(outside: &Outside) -> Option<String> {
        let rows = outside.rows.borrow();
        let strangers = rows
            .keys()
            .filter(|key| !(0..OBJECTS.len()).any(|user| key.contains(&storage_id(user))))
            .filter(|key| !key.starts_with("ver."));
        let is_summary = |key: &&String| Layout::new("").read_summary_page(key).is_some();
        let (pages, strangers): (Vec<_>, Vec<_>) = strangers.partition(is_summary);
        let expected = ["settings.seen", "sweep.state", "sweep.summary"];
        (pages.len() > 1 || strangers != expected).then(|| format!("{pages:?} {strangers:?}"))
    }

    fn texts(outside: &Outside) -> Vec<String> {
        let rows = outside.rows.borrow();
        let text =
            |(key, value): (&String, &Vec<u8>)| format!("{key} {}", String::from_utf8_lossy(value));
        rows.iter().map(text).collect()
    }
}

impl Kept for PostgresLedger<Port, Port> {
    const COMES_LATE: bool = true;

    fn new(port: Port) -> Self {
        Self::new(port.clone(), port)
    }

    fn forget_sweeps(outside: &Outside) {
        outside.tables.borrow_mut().forget_apps();
    }

    fn is_barred(outside: &Outside, tenant: &str) -> bool {
        outside.tables.borrow().barred().any(|of| of == tenant)
    }

    fn stored(outside: &Outside, user: usize) -> (bool, Option<Record>) {
        let tables = outside.tables.borrow();
        let Some(row) = tables.enrolment(TENANTS[TENANT_OF[user]], &storage_id(user)) else {
            return (false, None);
        };
        let json = row.token.as_ref().map(|token| &token.record);
        (true, json.map(|json| Record::from_json(json).unwrap()))
    }

    fn outdated(outside: &Outside, newest: &[String; 2]) -> Option<String> {
        let mut users = 0..OBJECTS.len();
        let user = users.find(|user| {
            let (_, record) = Self::stored(outside, *user);
            record.is_some_and(|record| record.key_version.as_str() != newest[TENANT_OF[*user]])
        })?;
        Some(format!("user {user}"))
    }

    /// Columns and record tell the same.
    fn left_over(outside: &Outside, user: usize, _: View) -> Option<String> {
        let (_, record) = Self::stored(outside, user);
        let tables = outside.tables.borrow();
        let row = tables.enrolment(TENANTS[TENANT_OF[user]], &storage_id(user))?;
        (!row.agrees_with(record.as_ref())).then(|| format!("{row:?} and {record:?}"))
    }

    fn strangers(_: &Outside) -> Option<String> {
        None
    }

    fn texts(outside: &Outside) -> Vec<String> {
        outside.tables.borrow().texts()
    }
}
