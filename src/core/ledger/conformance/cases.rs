//! What a ledger does, one call after another; and then with an error at every step.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use pollster::block_on;

use super::{LEASE, Make, Scene, View, key_version, of_caller, of_visit, tenant, user};
use crate::deadline::Deadline;
use crate::error::{Interaction, Reason};
use crate::identity::{Fingerprint, User};
use crate::ledger::record::{Record, Status};
use crate::ledger::schedule::State;
use crate::ledger::{Change, Edit, Kind, Ledger, LedgerError, Opened, Remaining, Visit};

/// What an implementation does wrong.
pub(super) fn faults<L: Ledger>(make: &Make<L>) -> Vec<String> {
    type Case<L> = (&'static str, fn(&Make<L>));
    let cases: [Case<L>; 17] = [
        ("nobody is enrolled", nobody_is_enrolled),
        (
            "the last enrolment is the one",
            the_last_enrolment_is_the_one,
        ),
        ("a removed token is gone", a_removed_token_is_gone),
        ("a removed user is gone", a_removed_user_is_gone),
        ("apps are apart", apps_are_apart),
        (
            "a change is made or overtaken",
            a_change_is_made_or_overtaken,
        ),
        (
            "a reseal keeps the generation",
            a_reseal_keeps_the_generation,
        ),
        ("only what is due is claimed", only_what_is_due_is_claimed),
        (
            "what is outdated comes with its refresh",
            what_is_outdated_comes_with_its_refresh,
        ),
        (
            "the failed come last, and each once",
            the_failed_come_last_and_each_once,
        ),
        ("leases end", leases_end),
        (
            "what is given back is handed out again",
            what_is_given_back_is_handed_out_again,
        ),
        ("an expired token is gone", an_expired_token_is_gone),
        ("a tenant is removed", a_tenant_is_removed),
        ("changes fail by themselves", changes_fail_by_themselves),
        (
            "the summary tells what is stored",
            the_summary_tells_what_is_stored,
        ),
        (
            "an error leaves all or nothing",
            an_error_leaves_all_or_nothing,
        ),
    ];
    let mut faults = Vec::new();
    for (name, case) in cases {
        if catch_unwind(AssertUnwindSafe(|| case(make))).is_err() {
            faults.push(name.into());
        }
    }
    faults
}

fn nobody_is_enrolled<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    let (ledger, somebody) = (&scene.ledger, user(0, "somebody"));
    block_on(async {
        let gone = Err(LedgerError::NotEnrolled);
        assert_eq!(ledger.find(&somebody).await, Err(LedgerError::NotEnrolled));
        let nonce = scene.nonce();
        assert_eq!(ledger.still_current(&somebody, &nonce).await, gone);
        assert_eq!(ledger.remove_token(&somebody).await, Ok(()));
        assert_eq!(ledger.remove(&somebody).await, Ok(()));
        assert_eq!(ledger.summary(None).await, Ok(None));
        assert_eq!(ledger.sweep_state().await, Ok(None));
        assert_eq!(ledger.fingerprint().await, Ok(None));
        assert!(scene.survey(0).await.tenants.is_empty());

        assert_eq!(ledger.keep_sweep_state(b"state").await, Ok(()));
        assert_eq!(ledger.sweep_state().await, Ok(Some(b"state".to_vec())));
        for letter in ["a", "b"] {
            let hash = letter.repeat(16);
            let hash = hash.as_str();
            let fingerprint = Fingerprint::parse([hash, hash, hash, hash]).unwrap();
            assert_eq!(ledger.keep_fingerprint(&fingerprint).await, Ok(()));
            assert_eq!(ledger.fingerprint().await, Ok(Some(fingerprint)));
        }
    });
}

fn the_last_enrolment_is_the_one<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    let (ledger, enrolled) = (&scene.ledger, user(0, "enrolled"));
    block_on(async {
        let (first, record) = (scene.nonce(), scene.record(&enrolled, 1, 60));
        assert_eq!(ledger.enrol(&enrolled, &first, &record).await, Ok(true));
        let found = ledger.find(&enrolled).await.unwrap();
        assert_eq!((&found.nonce, found.enrolled_at), (&first, scene.now()));
        assert_eq!(found.record, Ok(record));
        assert_eq!(ledger.still_current(&enrolled, &first).await, Ok(true));

        let (second, record) = (scene.nonce(), scene.record(&enrolled, 1, 7200));
        assert_eq!(ledger.enrol(&enrolled, &second, &record).await, Ok(false));
        assert_eq!(ledger.find(&enrolled).await.unwrap().record, Ok(record));
        assert_eq!(ledger.still_current(&enrolled, &first).await, Ok(false));
        assert_eq!(ledger.still_current(&enrolled, &second).await, Ok(true));
        assert_eq!(scene.survey(3600).await.tenants[&tenant(0)].due, 0);
        // Its name is that of one enrolment of one user.
        let other = user(0, "other");
        scene.enrolled(&other, 60).await;
        assert_eq!(ledger.still_current(&other, &second).await, Ok(false));
    });
}

fn a_removed_token_is_gone<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    let (ledger, removed) = (&scene.ledger, user(0, "removed"));
    block_on(async {
        let (nonce, record) = scene.enrolled(&removed, 60).await;
        for _ in 0..2 {
            assert_eq!(ledger.remove_token(&removed).await, Ok(()));
            let found = ledger.find(&removed).await.unwrap();
            assert_eq!(found.nonce, nonce);
            assert_eq!(found.record, Err(LedgerError::NoRefreshToken));
            let current = ledger.still_current(&removed, &nonce).await;
            assert_eq!(current, Err(LedgerError::NoRefreshToken));
        }
        // A writer that read it before does not bring it back.
        let change = of_caller(&removed, &nonce, &record, &scene.successor(&record, 60));
        assert_eq!(scene.settle(change).await, Ok(false));
        let found = ledger.find(&removed).await.unwrap();
        assert_eq!(found.record, Err(LedgerError::NoRefreshToken));
        assert!(scene.due(3600).await.is_empty());
        assert_eq!(scene.survey(0).await.summary.totals.users, 1);
        let (nonce, _) = scene.enrolled(&removed, 60).await;
        assert_eq!(ledger.still_current(&removed, &nonce).await, Ok(true));
        assert_eq!(scene.due(3600).await.len(), 1);
    });
}

fn a_removed_user_is_gone<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    let (ledger, removed, other) = (&scene.ledger, user(0, "removed"), user(0, "other"));
    block_on(async {
        let (nonce, record) = scene.enrolled(&removed, 60).await;
        let (others, _) = scene.enrolled(&other, 60).await;
        for _ in 0..2 {
            assert_eq!(ledger.remove(&removed).await, Ok(()));
            assert_eq!(ledger.find(&removed).await, Err(LedgerError::NotEnrolled));
        }
        let change = of_caller(&removed, &nonce, &record, &scene.successor(&record, 60));
        assert_eq!(scene.settle(change).await, Ok(false));
        assert_eq!(ledger.find(&removed).await, Err(LedgerError::NotEnrolled));
        assert_eq!(ledger.still_current(&other, &others).await, Ok(true));
        assert_eq!(scene.due(3600).await.len(), 1);
        // Nor does such a writer change the enrolment after it.
        let (again, record) = scene.enrolled(&removed, 60).await;
        let change = of_caller(&removed, &nonce, &record, &scene.successor(&record, 60));
        assert_eq!(scene.settle(change).await, Ok(false));
        let found = ledger.find(&removed).await.unwrap();
        assert_eq!((found.nonce, found.record), (again, Ok(record)));
    });
}

fn apps_are_apart<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    let enrolled = user(0, "enrolled");
    block_on(async {
        let (nonce, record) = scene.enrolled(&enrolled, 60).await;
        let other = scene.ledger.under("other");
        assert_eq!(other.find(&enrolled).await, Err(LedgerError::NotEnrolled));
        let others = scene.nonce();
        assert_eq!(other.enrol(&enrolled, &others, &record).await, Ok(true));
        assert_eq!(other.remove(&enrolled).await, Ok(()));
        let current = scene.ledger.still_current(&enrolled, &nonce).await;
        assert_eq!(current, Ok(true));
        assert_eq!(other.keep_sweep_state(b"state").await, Ok(()));
        assert_eq!(scene.ledger.sweep_state().await, Ok(None));
    });
}

fn a_change_is_made_or_overtaken<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    let changed = user(0, "changed");
    block_on(async {
        let (nonce, old) = scene.enrolled(&changed, 60).await;
        let new = scene.successor(&old, 7200);
        let change = of_caller(&changed, &nonce, &old, &new);
        assert_eq!(scene.settle(change).await, Ok(true));
        let found = async || scene.ledger.find(&changed).await.unwrap();
        assert_eq!(found().await.record, Ok(new.clone()));
        assert_eq!(scene.survey(3600).await.tenants[&tenant(0)].due, 0);
        // One that read the record before this changes nothing.
        let late = of_caller(&changed, &nonce, &old, &scene.successor(&old, 60));
        assert_eq!(scene.settle(late).await, Ok(false));
        assert_eq!(found().await.record, Ok(new));
        assert_eq!(scene.survey(3600).await.tenants[&tenant(0)].due, 0);
        assert_eq!(scene.due(8000).await.len(), 1);
    });
}

fn a_reseal_keeps_the_generation<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    let sealed = user(0, "sealed");
    block_on(async {
        let (nonce, old) = scene.enrolled(&sealed, 60).await;
        let (new, other) = (scene.resealed(&old, 2), scene.resealed(&old, 3));
        let change = of_caller(&sealed, &nonce, &old, &new);
        assert_eq!(scene.settle(change).await, Ok(true));
        // One that has not seen the re-seal is not laid over it.
        let change = of_caller(&sealed, &nonce, &old, &other);
        assert_eq!(scene.settle(change).await, Ok(false));
        assert_eq!(scene.ledger.find(&sealed).await.unwrap().record, Ok(new));
        let survey = scene.survey(0).await;
        let used = survey.summary.tenants[tenant(0).as_str()]
            .key_versions
            .clone();
        assert_eq!(used.keys().collect::<Vec<_>>(), [key_version(2).as_str()]);
        // It is noted before anything moves away from it, and known when nothing is under it any more.
        let tend = async || {
            let survey = scene.survey(0).await;
            let until = Deadline::within(&scene.world, Duration::from_secs(9));
            scene.ledger.tend(&survey, until).await.unwrap();
            scene.ledger.keep_summary(&survey).await.unwrap();
        };
        tend().await;
        assert!(scene.survey(0).await.not_noted.is_empty());
        let (old, new) = (scene.ledger.find(&sealed).await.unwrap().record, &other);
        let change = of_caller(&sealed, &nonce, &old.unwrap(), new);
        assert_eq!(scene.settle(change).await, Ok(true));
        for _ in 0..2 {
            scene.world.advance(60);
            tend().await;
        }
        let summary = scene.ledger.summary(None).await.unwrap().unwrap();
        let of = &summary.tenants[tenant(0).as_str()];
        assert!(of.unused_key_versions.contains_key(key_version(2).as_str()));
        assert!(of.key_versions.contains_key(key_version(3).as_str()));
        assert_eq!(of.key_versions.len(), 1);
    });
}

fn only_what_is_due_is_claimed<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    let (soon, late, other) = (user(0, "soon"), user(0, "late"), user(1, "other"));
    block_on(async {
        let (nonce, record) = scene.enrolled(&soon, 60).await;
        scene.enrolled(&late, 7200).await;
        scene.enrolled(&other, 60).await;
        let survey = scene.survey(3600).await;
        let outlook = survey.tenants[&tenant(0)];
        assert_eq!((outlook.enrolments, outlook.due), (2, 1));
        assert_eq!(outlook.next_due, Some(scene.now() + 7200));
        assert!(scene.due(30).await.is_empty());
        let newest = key_version(1);
        let (visits, _) = (scene.claim(&survey, &tenant(0), Kind::Due(&newest), 9)).await;
        let [visit] = visits.as_slice() else {
            panic!("{} visits", visits.len());
        };
        assert_eq!((&visit.user, &visit.nonce), (&soon, &nonce));
        let opened = scene.ledger.open(visit).await.unwrap();
        let record = Box::new(record);
        let (is_own, old) = (true, record.clone());
        assert_eq!(opened, Opened::Record { record, is_own });

        // What was put off is due then, and tells why.
        let (time, state) = (scene.now() + 5000, State::Active { failures: 3 });
        let key_version = newest.clone();
        let edit = Edit::Reschedule {
            time,
            state,
            key_version,
        };
        assert_eq!(scene.settle(of_visit(visit, edit)).await, Ok(true));
        scene.next_sweep();
        let due = scene.due(4000).await;
        assert_eq!(due.len(), 1, "the other tenant's");
        scene.next_sweep();
        let due = scene.due(5000).await;
        let visit = due.iter().find(|visit| visit.user == soon).unwrap();
        assert_eq!((visit.time, visit.state, due.len()), (time, state, 2));
        // The record is as it was, and with its place back in order it is due by what it says.
        let found = scene.ledger.find(&soon).await.unwrap();
        assert_eq!(found.record, Ok(*old.clone()));
        assert_eq!(
            scene.settle(of_visit(visit, Edit::Tidy(old))).await,
            Ok(true)
        );
        scene.next_sweep();
        let due = scene.due(100).await;
        let visits = due.iter().filter(|visit| visit.user == soon);
        assert_eq!(visits.count(), 1);
    });
}

fn what_is_outdated_comes_with_its_refresh<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    let (due, later, unreadable) = (user(0, "due"), user(0, "later"), user(0, "unreadable"));
    block_on(async {
        scene.enrolled(&due, 60).await;
        scene.enrolled(&later, 7200).await;
        scene.enrolled(&unreadable, 60).await;
        let visits = scene.due(100).await;
        let visit = visits
            .iter()
            .find(|visit| visit.user == unreadable)
            .unwrap();
        let edit = Edit::Reschedule {
            time: scene.now() + 60,
            state: State::Active { failures: 0 }.not_readable(scene.now()),
            key_version: key_version(1),
        };
        assert_eq!(scene.settle(of_visit(visit, edit)).await, Ok(true));

        scene.next_sweep();
        let (survey, newest) = (scene.survey(100).await, key_version(2));
        let outdated = Kind::Outdated(&newest);
        let (visits, _) = scene.claim(&survey, &tenant(0), outdated, 9).await;
        assert_eq!(visits.len(), 2);
        for visit in &visits {
            assert_eq!(visit.due.is_some(), visit.user == due);
        }
        // Nobody is handed out twice; what cannot be read has its look.
        let (visits, _) = (scene.claim(&survey, &tenant(0), Kind::Due(&newest), 9)).await;
        assert_eq!(visits.len(), 1);
        assert_eq!(visits[0].user, unreadable);
    });
}

fn the_failed_come_last_and_each_once<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    block_on(async {
        for number in 0..20 {
            scene
                .enrolled(&user(0, &format!("user {number}")), 60)
                .await;
        }
        let visits = scene.due(100).await;
        for visit in visits.iter().take(10) {
            let edit = Edit::Reschedule {
                time: scene.now() + 60,
                state: State::Active { failures: 1 },
                key_version: key_version(1),
            };
            assert_eq!(scene.settle(of_visit(visit, edit)).await, Ok(true));
        }
        scene.next_sweep();
        let (survey, newest) = (scene.survey(100).await, key_version(1));
        let mut seen: Vec<(User, bool)> = Vec::new();
        for left in [13, 6, 0, 0] {
            let claimed = scene
                .claim(&survey, &tenant(0), Kind::Due(&newest), 7)
                .await;
            assert_eq!(claimed.1, left);
            let visits = claimed.0.into_iter();
            seen.extend(
                visits.map(|visit| (visit.user, visit.state != State::Active { failures: 0 })),
            );
        }
        assert_eq!(seen.len(), 20);
        assert!(seen.is_sorted_by_key(|(_, has_failed)| *has_failed));
        seen.dedup_by(|left, right| left.0 == right.0);
        let mut names: Vec<_> = seen.iter().map(|(user, _)| user.id.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 20);
    });
}

fn leases_end<L: Ledger>(make: &Make<L>) {
    if !L::LEASES {
        return;
    }
    let scene = &Scene::new(make);
    block_on(async {
        scene.enrolled(&user(0, "leased"), 60).await;
        assert_eq!(scene.due(100).await.len(), 1);
        assert_eq!(scene.due(100).await.len(), 0);
        scene.world.advance(LEASE - 1);
        assert_eq!(scene.due(100).await.len(), 0);
        scene.world.advance(2);
        assert_eq!(scene.due(100).await.len(), 1);
    });
}

fn what_is_given_back_is_handed_out_again<L: Ledger>(make: &Make<L>) {
    if !L::LEASES {
        return;
    }
    let scene = &Scene::new(make);
    block_on(async {
        for name in ["one", "two", "three"] {
            scene.enrolled(&user(0, name), 60).await;
        }
        let newest = key_version(1);
        let (first, second) = (scene.survey(100).await, scene.survey(100).await);
        let due = Kind::Due(&newest);
        let had = scene.claim(&first, &tenant(0), due, 2).await.0;
        let other = scene.claim(&second, &tenant(0), due, 2).await.0;
        assert_eq!((had.len(), other.len()), (2, 1));
        scene.ledger.give_back(&first, &tenant(0)).await.unwrap();
        let again = scene.due(100).await;
        let names = |visits: &[Visit<L::Claim>]| -> BTreeSet<_> {
            let names = visits.iter().map(|visit| visit.user.id.as_str().to_owned());
            names.collect()
        };
        assert_eq!(names(&again), names(&had));
        // Who comes late takes nothing from whoever has it since.
        scene.ledger.give_back(&first, &tenant(0)).await.unwrap();
        assert_eq!(scene.due(100).await.len(), 0);
    });
}

fn an_expired_token_is_gone<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    let (ledger, expired) = (&scene.ledger, user(0, "expired"));
    block_on(async {
        let (nonce, _) = scene.enrolled(&expired, 60).await;
        let visits = scene.due(100).await;
        assert_eq!(ledger.expire(&visits[0]).await, Ok(true));
        let found = ledger.find(&expired).await.unwrap();
        assert_eq!(found.nonce, nonce);
        assert_eq!(found.record, Err(LedgerError::NoRefreshToken));
        assert_eq!(ledger.open(&visits[0]).await, Ok(Opened::Gone));
        // One that is long over does not touch the enrolment after it.
        let (nonce, _) = scene.enrolled(&expired, 60).await;
        ledger.expire(&visits[0]).await.unwrap();
        assert_eq!(ledger.still_current(&expired, &nonce).await, Ok(true));
        assert!(scene.unclaimed(&[expired]).await.is_empty());
    });
}

fn a_tenant_is_removed<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    let (ledger, other) = (&scene.ledger, user(1, "other"));
    let users: Vec<_> = (0..20)
        .map(|number| user(0, &format!("user {number}")))
        .collect();
    block_on(async {
        for user in users.iter().chain([&other]) {
            scene.enrolled(user, 60).await;
        }
        let (removal, removed) = scene.remove_tenant(&tenant(0), 0).await;
        assert_eq!((removal, removed), (Ok(Remaining(20)), Vec::new()));
        // Until all are gone, nobody comes.
        let (nonce, record) = (scene.nonce(), scene.record(&users[0], 1, 60));
        let enrolled = ledger.enrol(&users[0], &nonce, &record).await;
        assert_eq!(enrolled, Err(LedgerError::TenantRemoved));
        let summary = scene.survey(0).await.summary;
        assert!(summary.tenants[tenant(0).as_str()].being_removed);
        scene.enrolled(&other, 60).await;

        let (removal, removed) = scene.remove_tenant(&tenant(0), 9).await;
        assert_eq!(removal, Ok(Remaining(0)));
        assert_eq!(removed.len(), 20);
        for user in &users {
            assert!(removed.contains(user));
            assert_eq!(ledger.find(user).await, Err(LedgerError::NotEnrolled));
        }
        assert!(ledger.find(&other).await.is_ok());
        assert_eq!(ledger.enrol(&users[0], &nonce, &record).await, Ok(true));
    });
}

fn changes_fail_by_themselves<L: Ledger>(make: &Make<L>) {
    let users: Vec<_> = (0..3)
        .map(|number| user(0, &format!("user {number}")))
        .collect();
    for at in 0.. {
        let scene = &Scene::new(make);
        let (settled, is_over) = block_on(async {
            let mut changes = Vec::new();
            for user in &users {
                let (nonce, old) = scene.enrolled(user, 60).await;
                changes.push(of_caller(user, &nonce, &old, &scene.successor(&old, 60)));
            }
            scene.trouble.fails_after.set(Some(at));
            let settled = scene
                .ledger
                .settle(&changes.iter().collect::<Vec<_>>())
                .await;
            (settled, scene.trouble.fails_after.replace(None).is_some())
        });
        if is_over {
            assert!(at >= 3, "no step failed");
            return;
        }
        let failed = settled.iter().filter(|settled| settled.is_err()).count();
        assert!(failed <= 1, "{failed} failed at step {at}");
        for user in &users {
            let found = block_on(scene.ledger.find(user)).unwrap();
            assert!(found.record.is_ok(), "{found:?}");
        }
        assert_eq!(block_on(scene.unclaimed(&users)), []);
    }
}

fn the_summary_tells_what_is_stored<L: Ledger>(make: &Make<L>) {
    let scene = &Scene::new(make);
    let (ledger, who_acts, other) = (&scene.ledger, user(0, "who acts"), user(1, "other"));
    block_on(async {
        scene.enrolled(&user(0, "somebody"), 7200).await;
        scene.enrolled(&other, 60).await;
        let (nonce, old) = scene.enrolled(&who_acts, 60).await;
        let interaction = Interaction {
            reason: Reason::default(),
            claims: None,
        };
        let new = Record {
            status: Status::InteractionRequired(interaction),
            ..scene.successor(&old, 86_400)
        };
        let change = of_caller(&who_acts, &nonce, &old, &new);
        assert_eq!(scene.settle(change).await, Ok(true));
        let survey = scene.survey(0).await;
        let observed_at = scene.now();
        ledger.keep_summary(&survey).await.unwrap();

        // What comes later is not in it.
        scene.enrolled(&user(1, "late"), 60).await;
        scene.world.advance(60);
        let all = ledger.summary(None).await.unwrap().unwrap();
        assert_eq!((all.observed_at, all.tenant_count), (observed_at, 2));
        assert_eq!((all.totals.users, all.totals.states.active), (3, 2));
        assert_eq!((all.totals.due.hour, all.totals.due.day), (1, 2));
        let of = &all.tenants[tenant(0).as_str()];
        assert_eq!((of.numbers.users, of.must_act.total), (2, 1));
        assert!(of.must_act.users.is_empty(), "it is asked of one tenant");
        assert_eq!(of.key_versions[key_version(1).as_str()], 2);

        let one = ledger.summary(Some(&tenant(0))).await.unwrap().unwrap();
        assert_eq!(one.tenants.len(), 1);
        let named = &one.tenants[tenant(0).as_str()].must_act.users;
        assert_eq!(named.as_slice(), [who_acts.id.as_str()]);
        ledger.keep_summary(&scene.survey(0).await).await.unwrap();
        let all = ledger.summary(None).await.unwrap().unwrap();
        assert_eq!(all.totals.users, 4);
    });
}

/// A call that fails at some step has happened or not; repeated, it happens.
fn an_error_leaves_all_or_nothing<L: Ledger>(make: &Make<L>) {
    let (first, other) = (user(0, "first"), user(0, "other"));
    for call in [
        Call::Enrol,
        Call::RemoveToken,
        Call::Remove,
        Call::RemoveTenant,
        Call::Change,
        Call::PutOff,
        Call::Expire,
    ] {
        for has_happened in [false, true] {
            for at in 0.. {
                assert!(at < 1000, "{call:?} has no end");
                let scene = &Scene::new(make);
                scene.trouble.has_happened.set(has_happened);
                let is_over = block_on(async {
                    let (nonce, old) = scene.enrolled(&first, 60).await;
                    scene.enrolled(&other, 60).await;
                    let before = View::Has(nonce.clone());
                    let visits = scene.due(100).await;
                    let visit = visits.iter().find(|visit| visit.user == first).unwrap();
                    let next = scene.nonce();
                    let after = match call {
                        Call::Enrol => View::Has(next.clone()),
                        Call::RemoveToken | Call::Expire => View::NoToken(nonce.clone()),
                        Call::Remove | Call::RemoveTenant => View::Absent,
                        Call::Change | Call::PutOff => before.clone(),
                    };
                    let new = scene.successor(&old, 60);
                    let record = scene.record(&first, 1, 60);
                    let ledger = &scene.ledger;
                    let once = async || -> Result<(), LedgerError> {
                        match call {
                            Call::Enrol => ledger.enrol(&first, &next, &record).await.map(|_| ()),
                            Call::RemoveToken => ledger.remove_token(&first).await,
                            Call::Remove => ledger.remove(&first).await,
                            Call::RemoveTenant => {
                                scene.remove_tenant(&first.tenant, 9).await.0.map(|_| ())
                            }
                            Call::Change => {
                                let change = of_caller(&first, &nonce, &old, &new);
                                Ok(scene.settle(change).await.map(|_| ())?)
                            }
                            Call::PutOff => {
                                let edit = Edit::Reschedule {
                                    time: scene.now() + 70,
                                    state: State::Active { failures: 1 },
                                    key_version: key_version(1),
                                };
                                let change: Change<L::Claim> = of_visit(visit, edit);
                                Ok(scene.settle(change).await.map(|_| ())?)
                            }
                            Call::Expire => Ok(ledger.expire(visit).await.map(|_| ())?),
                        }
                    };
                    scene.trouble.fails_after.set(Some(at));
                    let outcome = once().await;
                    let is_over = scene.trouble.fails_after.replace(None).is_some();
                    let view = View::of(&ledger.find(&first).await).unwrap();
                    let is_whole = view == after || outcome.is_err() && view == before;
                    assert!(is_whole, "{call:?} at {at}: {outcome:?}, {view:?}");
                    // An enrolment that failed is repeated by a new one.
                    if call != Call::Enrol {
                        let again = once().await;
                        assert_eq!(again, Ok(()), "{call:?} again, at {at}");
                        let view = View::of(&ledger.find(&first).await).unwrap();
                        assert_eq!(view, after, "{call:?} again, at {at}");
                    }
                    let unclaimed = scene.unclaimed(&[first.clone(), other.clone()]).await;
                    assert!(
                        unclaimed.is_empty(),
                        "{call:?} at {at}: {unclaimed:?} have no time"
                    );
                    is_over
                });
                if is_over {
                    break;
                }
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    Enrol,
    RemoveToken,
    Remove,
    RemoveTenant,
    Change,
    PutOff,
    Expire,
}
