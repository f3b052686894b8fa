//! The summary in storage: a first page with the totals, which names further ones with the tenants, each of at most
//! 256 KiB.
//!
//! A write makes its own further pages, then the first page, and then deletes those of other writes. So whoever reads the
//! first page finds its further ones, unless a newer summary has taken its place meanwhile, or two sweeps have written at
//! once; a later sweep mends that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::identity::{Fingerprint, Nonce, TenantId};
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::found::Found;
use crate::ledger::key_value::store::Store;
use crate::ledger::record::{VERSION, from_json, to_json};
use crate::ledger::seen::{from_stored, to_stored};
use crate::ledger::summary::{Numbers, Summary, TenantSummary};
use crate::ledger::{LedgerError, StoreError, Survey};
use crate::port::Environment;

/// Longest page, in bytes: what every backend takes as a value with room to spare (PLATFORMS.md, "Key-value backends").
const LONGEST_PAGE: usize = 256 * 1024;
/// Times that a reading starts again because a newer summary has taken the place of the one that it reads.
const ATTEMPTS: u32 = 3;

#[derive(Serialize, Deserialize)]
struct FirstPage {
    v: u32,
    write: String,
    observed_at: u64,
    tenant_count: u64,
    totals: Numbers,
    /// The first tenant of each further page.
    pages: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct FurtherPage {
    v: u32,
    tenants: BTreeMap<String, TenantSummary>,
}

impl<S: Store + Clone, E: Environment + Clone> KeyValueLedger<S, E> {
    pub(super) async fn write_summary(&self, survey: &Survey<Found>) -> Result<(), StoreError> {
        let summary = &survey.summary;
        let write = Nonce::for_write(&self.env);
        let pages = paginate(summary);
        for (at, (_, page)) in pages.iter().enumerate() {
            let key = self.layout.summary_page(&write, at);
            self.store.set(&key, page).await?;
        }
        let first = FirstPage {
            v: VERSION,
            write: write.as_str().into(),
            observed_at: summary.observed_at,
            tenant_count: summary.tenant_count,
            totals: summary.totals,
            pages: pages.into_iter().map(|(first, _)| first).collect(),
        };
        let first = to_json(&first);
        self.store.set(&self.layout.summary(), &first).await?;
        // The listing was before this write, so all that it has are others'.
        for key in survey.found.listing.summary_pages() {
            self.store.delete(key).await?;
        }
        Ok(())
    }

    pub(super) async fn read_summary(
        &self,
        tenant: Option<&TenantId>,
    ) -> Result<Option<Summary>, StoreError> {
        for _ in 0..ATTEMPTS {
            let Some(json) = self.store.get(&self.layout.summary()).await? else {
                return Ok(None);
            };
            let Ok(first) = from_json::<FirstPage>(&json) else {
                return Ok(None);
            };
            let Some(write) = Nonce::parse(&first.write) else {
                return Ok(None);
            };
            if let Some(tenants) = self.read_pages(&first, &write, tenant).await? {
                return Ok(Some(Summary {
                    observed_at: first.observed_at,
                    tenant_count: first.tenant_count,
                    totals: first.totals,
                    tenants,
                }));
            }
        }
        Ok(None)
    }

    /// The tenants of further pages: all, or the one. None: a page is gone.
    async fn read_pages(
        &self,
        first: &FirstPage,
        write: &Nonce,
        tenant: Option<&TenantId>,
    ) -> Result<Option<BTreeMap<String, TenantSummary>>, StoreError> {
        let mut tenants = BTreeMap::new();
        let pages = match tenant {
            None => 0..first.pages.len(),
            Some(tenant) => {
                let after =
                    (first.pages).partition_point(|first| first.as_str() <= tenant.as_str());
                after.saturating_sub(1)..after
            }
        };
        for page in pages {
            let key = self.layout.summary_page(write, page);
            let Some(json) = self.store.get(&key).await? else {
                return Ok(None);
            };
            let Ok(mut page) = from_json::<FurtherPage>(&json) else {
                return Ok(None);
            };
            match tenant {
                Some(tenant) => {
                    let name = tenant.as_str();
                    tenants.extend(page.tenants.remove_entry(name));
                }
                None => tenants.extend(page.tenants.into_iter().map(|(name, mut of)| {
                    // Whoever wants the names asks for the tenant.
                    of.must_act.users = Vec::new();
                    (name, of)
                })),
            }
        }
        Ok(Some(tenants))
    }

    pub(super) async fn read_fingerprint(&self) -> Result<Option<Fingerprint>, LedgerError> {
        let Some(json) = self.store.get(&self.layout.fingerprint()).await? else {
            return Ok(None);
        };
        from_stored(&json).map(Some)
    }

    pub(super) async fn write_fingerprint(
        &self,
        fingerprint: &Fingerprint,
    ) -> Result<(), StoreError> {
        let key = self.layout.fingerprint();
        self.store.set(&key, &to_stored(fingerprint)).await
    }
}

/// Further pages, each with its first tenant.
fn paginate(summary: &Summary) -> Vec<(String, Vec<u8>)> {
    let mut pages = Vec::new();
    let (mut tenants, mut length) = (BTreeMap::new(), 0_usize);
    let mut turn_over = |tenants: &mut BTreeMap<String, TenantSummary>| {
        let tenants = std::mem::take(tenants);
        if let Some(first) = tenants.keys().next().cloned() {
            let page = FurtherPage {
                v: VERSION,
                tenants,
            };
            pages.push((first, to_json(&page)));
        }
    };
    for (name, of) in &summary.tenants {
        // With its name and what stands between two tenants.
        let longer = to_json(of)
            .len()
            .saturating_add(name.len())
            .saturating_add(8);
        if length.saturating_add(longer) > LONGEST_PAGE.saturating_sub(64) {
            turn_over(&mut tenants);
            length = 0;
        }
        length = length.saturating_add(longer);
        tenants.insert(name.clone(), of.clone());
    }
    turn_over(&mut tenants);
    pages
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use pollster::block_on;

    use super::*;
    use crate::deadline::Deadline;
    use crate::identity::Guid;
    use crate::ledger::Ledger as _;
    use crate::ledger::schedule::Horizon;
    use crate::ledger::summary::MustAct;
    use crate::simulation::world::{Shared, World};

    const TENANTS: u64 = 5000;
    const FEW: u64 = 50;

    fn tenant(number: u64) -> TenantId {
        Guid::parse(&format!("{number:08x}-0000-0000-0000-000000000000")).unwrap()
    }

    /// Users of a tenant who have to act.
    fn users_of(tenant: u64) -> u64 {
        (tenant * 37 % 500) * 4
    }

    /// A store with the summary of so many tenants, of which some have many users who have to act.
    fn summed_up(world: &Shared, count: u64) -> KeyValueLedger<Shared, Shared> {
        let ledger = KeyValueLedger::new(Rc::clone(world), Rc::clone(world));
        let tenants = (0..count).map(|number| {
            let mut must_act = MustAct::default();
            for user in 0..users_of(number) {
                must_act.add(&format!("{user:032}"));
            }
            let numbers = Numbers {
                users: 7,
                ..Numbers::default()
            };
            let of = TenantSummary {
                numbers,
                must_act,
                ..TenantSummary::default()
            };
            (tenant(number).as_str().to_owned(), of)
        });
        let mut survey = block_on(ledger.survey(Horizon::new(1, true), LATE)).unwrap();
        survey.summary = Summary::of(1, tenants.collect());
        block_on(ledger.keep_summary(&survey)).unwrap();
        ledger
    }

    const LATE: Deadline = Deadline::after(Duration::ZERO, Duration::MAX);

    #[test]
    fn a_summary_of_many_tenants_comes_back_in_values_that_every_store_takes() {
        let world = World::new();
        let ledger = summed_up(&world, TENANTS);
        let longest = world.rows.borrow().values().map(Vec::len).max().unwrap();
        assert!(
            (100_000..=LONGEST_PAGE).contains(&longest),
            "{longest} bytes"
        );

        let all = block_on(ledger.summary(None)).unwrap().unwrap();
        assert_eq!((all.tenants.len(), all.totals.users), (5000, 35_000));
        for number in [0, 1, 499, 2500, TENANTS - 1] {
            let tenant = tenant(number);
            let one = block_on(ledger.summary(Some(&tenant))).unwrap().unwrap();
            let total = users_of(number);
            let must_act = &one.tenants[tenant.as_str()].must_act;
            assert_eq!((one.tenants.len(), must_act.total), (1, total));
            let named = u64::try_from(must_act.users.len()).unwrap();
            assert_eq!(named, total.min(1000));
        }
        let none = block_on(ledger.summary(Some(&tenant(TENANTS)))).unwrap();
        assert!(none.unwrap().tenants.is_empty());
    }

    #[test]
    fn a_newer_summary_takes_the_pages_of_the_one_before_with_it() {
        let world = World::new();
        let ledger = summed_up(&world, FEW);
        let pages = world.keys_of("sum.").len();
        assert!(pages > 4, "{pages}");
        let survey = block_on(ledger.survey(Horizon::new(2, true), LATE)).unwrap();
        block_on(ledger.keep_summary(&survey)).unwrap();
        assert!(world.keys_of("sum.").is_empty());
        let summary = block_on(ledger.summary(None)).unwrap().unwrap();
        assert_eq!((summary.observed_at, summary.tenants.len()), (2, 0));
    }

    /// Whoever reads while a newer one is written sees the one or the other.
    #[test]
    fn a_summary_is_read_whole_whatever_is_written_meanwhile() {
        for step in 0..12 {
            let world = World::new();
            let ledger = summed_up(&world, FEW);
            let other = ledger.clone();
            let newer = move |_: &World| {
                let survey = block_on(other.survey(Horizon::new(2, true), LATE)).unwrap();
                block_on(other.keep_summary(&survey)).unwrap();
            };
            *world.before_store.borrow_mut() = Some((step, Box::new(newer)));
            let summary = block_on(ledger.summary(None)).unwrap().unwrap();
            let tenants = match summary.observed_at {
                1 => FEW.try_into().unwrap(),
                _ => 0,
            };
            assert_eq!(summary.tenants.len(), tenants, "step {step}");
        }
    }

    #[test]
    fn a_summary_that_is_damaged_is_none_until_the_next() {
        let world = World::new();
        let ledger = summed_up(&world, FEW);
        let page = world.keys_of("sum.").remove(2);
        for damage in [None, Some(b"{}".to_vec())] {
            match damage {
                None => world.rows.borrow_mut().remove(&page),
                Some(value) => world.rows.borrow_mut().insert(page.clone(), value),
            };
            assert_eq!(block_on(ledger.summary(None)), Ok(None));
        }
        let survey = block_on(ledger.survey(Horizon::new(2, true), LATE)).unwrap();
        block_on(ledger.keep_summary(&survey)).unwrap();
        assert!(block_on(ledger.summary(None)).unwrap().is_some());
    }
}
