//! Whether one's trouble stays one's own: the very `Keeper`, `Vault` and `Doorbell` of the components, over many tenants
//! each with a trouble of its own, in time that passes only when everybody waits.
//!
//! Healthy users' tokens have to be refreshed and re-sealed by the tick that finds them due, whatever the others do; a
//! call has to end in its time; and nobody's token may be lost. Each rule of `rules.rs` that a tenant could break is then
//! broken here on purpose, and must be missed.

mod network;
mod tenant;
mod tick;
mod town;
mod world;

use std::time::Duration;

use crate::error::VaultError;
use crate::keeper::rules::Rules;
use crate::keeper::verdict::{Verdict, Work, verdict};
use crate::simulation::fairness::tenant::Trouble;
use crate::simulation::fairness::town::{forgetful_town, live, slow_town, town};
use crate::simulation::fairness::world::{Shared, World};
use crate::vault::samples::NOW;

#[test]
fn one_tenants_trouble_is_no_others() {
    for (town, hours) in [(town(), 2), (slow_town(), 1), (forgetful_town(), 1)] {
        let violations = live(&town, Rules::SHIPPED, hours);
        assert!(violations.is_empty(), "{}", violations.join("\n"));
    }
}

/// However many users of a tenant Entra ID refuses, those whom it does not are refreshed by the one tick that finds all
/// of them due.
#[test]
fn refused_users_keep_nobody_of_their_tenant_waiting() {
    for refused in [100, 10_000] {
        let world = World::new(&[(Trouble::Refused, 300, refused)], false);
        let violations = world.tick(&world.app(Rules::SHIPPED));
        assert!(violations.is_empty(), "{}", violations.join("\n"));
        let good = world.good_records(0);
        assert!(good.len() == 300 && good.iter().all(|record| record.due_at > NOW));
        // Every record that was refused is kept, and comes back later.
        let rows = world.rows.borrow();
        let records = rows.range("rec.".to_owned().."rec/".to_owned()).count();
        assert_eq!(records, 300 + refused);
        let due = rows.range("due.".to_owned()..format!("due.{:012}.", world.seconds()));
        assert_eq!(due.count(), 0);
    }
}

/// Each rule is missed when it is broken.
#[test]
fn each_broken_rule_is_missed() {
    fn refusal_holds_the_tenant(error: &VaultError, work: Work) -> Verdict {
        match verdict(error, work) {
            Verdict::Turn(_) | Verdict::PutOff { .. } => Verdict::HoldTenant { seconds: None },
            verdict => verdict,
        }
    }
    fn version_is_forgotten(error: &VaultError, work: Work) -> Verdict {
        match verdict(error, work) {
            Verdict::KeyVersionUnusable => Verdict::PutOff {
                retry_after_seconds: None,
                is_operators: true,
            },
            verdict => verdict,
        }
    }
    fn refused_credential_stops(error: &VaultError, work: Work) -> Verdict {
        match verdict(error, work) {
            Verdict::HoldCredential => Verdict::Stop,
            verdict => verdict,
        }
    }
    fn missing_key_stops(error: &VaultError, work: Work) -> Verdict {
        match verdict(error, work) {
            Verdict::NewestKeyUnusable => Verdict::Stop,
            verdict => verdict,
        }
    }
    let broken: [(&str, fn() -> Shared, fn(&mut Rules)); 9] = [
        ("a refusal holds the tenant", town, |rules| {
            rules.verdict = refusal_holds_the_tenant;
        }),
        (
            "a key version that cannot be had is forgotten",
            town,
            |rules| {
                rules.verdict = version_is_forgotten;
            },
        ),
        ("a refused credential stops the sweep", town, |rules| {
            rules.verdict = refused_credential_stops;
        }),
        ("a missing key stops the sweep", town, |rules| {
            rules.verdict = missing_key_stops;
        }),
        (
            "a question takes as long as it likes",
            forgetful_town,
            |rules| {
                rules.longest_question = Duration::from_hours(1);
            },
        ),
        ("who was slow is forgotten", town, |rules| {
            rules.remembers_slow = false;
        }),
        ("lanes one after the other", slow_town, |rules| {
            rules.order.lanes_by_time = false;
        }),
        ("shares one after the other", town, |rules| {
            rules.order.shares_by_time = false;
        }),
        ("whatever the state says is believed", town, |rules| {
            rules.doubts_state = false;
        }),
    ];
    for (what, town, break_it) in broken {
        let mut rules = Rules::SHIPPED;
        break_it(&mut rules);
        let violations = live(&town(), rules, 1);
        let first = violations.get(1);
        let first = first.unwrap_or_else(|| panic!("not missed: {what}"));
        println!("{what}: {first:.100}");
    }
}
