//! Towns: many tenants that one app serves at once, and some hours of their life.

use std::time::Duration;

use crate::keeper::rules::Rules;
use crate::keeper::sweep::SweepState;
use crate::ledger::key_value::layout::Layout;
use crate::ledger::schedule::DAILY;
use crate::simulation::fairness::tenant::{Trouble, tenant_id};
use crate::simulation::fairness::tick::TICK;
use crate::simulation::fairness::world::{Shared, World};
use crate::vault::samples::NOW;

/// A town with every trouble at once, and of most troubles with more tenants than a sweep serves at once.
pub(super) fn town() -> Shared {
    let mut tenants = Vec::new();
    let mut add = |number, tenant| tenants.extend(std::iter::repeat_n(tenant, number));
    add(10, (Trouble::None, 10, 0));
    add(150, (Trouble::Idle(4000), 1, 0));
    add(5, (Trouble::Throttled, 5, 0));
    add(40, (Trouble::Slow, 10, 0));
    add(40, (Trouble::Hanging, 2, 0));
    add(40, (Trouble::HangingKey, 2, 0));
    add(2, (Trouble::DeadKey, 300, 0));
    add(1, (Trouble::Refused, 20, 600));
    add(1, (Trouble::CredentialRefused, 5, 0));
    add(2, (Trouble::NotServed, 5, 0));
    World::new(&tenants, false)
}

/// A town of tenants for which Entra ID takes its time, with more to do than there is time.
pub(super) fn slow_town() -> Shared {
    let slow = std::iter::repeat_n((Trouble::Slow, 100, 0), 40);
    let healthy = std::iter::repeat_n((Trouble::None, 40, 0), 5);
    World::new(&slow.chain(healthy).collect::<Vec<_>>(), false)
}

/// A town of tenants whose keys never come, where nobody remembers which they were.
pub(super) fn forgetful_town() -> Shared {
    let hanging = std::iter::repeat_n((Trouble::HangingKey, 2, 0), 80);
    let healthy = std::iter::repeat_n((Trouble::None, 40, 0), 5);
    World::new(&hanging.chain(healthy).collect::<Vec<_>>(), true)
}

/// Lets a town live for some hours. Returns what must not be, of the first tick after which there is such a thing.
pub(super) fn live(world: &Shared, rules: Rules, hours: u64) -> Vec<String> {
    let records = |world: &World| {
        let rows = world.rows.borrow();
        rows.keys().filter(|key| key.starts_with("rec.")).count()
    };
    let before = records(world);
    // A clock that was ten years ahead for a while has left this.
    let paused = (0..10).map(|index| (tenant_id(index).as_str().to_owned(), NOW + 3650 * DAILY));
    let state = SweepState {
        lease_until: NOW + 3650 * DAILY,
        quiet_until: NOW + 3650 * DAILY,
        paused: paused.collect(),
        ..SweepState::default()
    };
    let state_key = Layout::new("").sweep_state();
    let state = serde_json::to_vec(&state).unwrap();
    world.rows.borrow_mut().insert(state_key, state);
    let mut app = world.app(rules);
    for tick in 0..hours * 3600 / TICK {
        if tick % 2 == 1 {
            // The next instance remembers nothing.
            app = world.app(rules);
        }
        if tick % 7 == 6 {
            for tenant in world.healthy() {
                let mut keys = world.tenants[tenant].keys.borrow_mut();
                keys.push(world.seconds());
            }
        }
        let mut violations = world.tick(&app);
        if !violations.is_empty() {
            violations.sort_unstable();
            violations.dedup();
            violations.insert(0, format!("tick {tick}"));
            return violations;
        }
        let next = NOW + (tick + 1) * TICK;
        let wait = next.saturating_sub(world.seconds());
        world.time.pass(Duration::from_secs(wait));
    }
    if records(world) == before {
        Vec::new()
    } else {
        vec!["a record is gone".into()]
    }
}
