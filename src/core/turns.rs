//! Whose turn it is in a sweep: whoever has taken the least time so far.
//!
//! There are three shares of the time, for tenants' newest keys, for re-sealing and for refreshing, and within each share
//! a lane a tenant. The share that has taken the least time has the next turn, and in it the lane that has. So neither
//! kind of work takes time from the other, and a tenant that is slow, or has very much to do, waits for those that are
//! quick or have little; it gets all the time that they leave. What is under way counts as long as the last one took.
//!
//! A key version that was not tried yet is tried with one record before others follow: a version that cannot be had is
//! asked for once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::identity::{KeyVersion, TenantId};
use crate::rules::Order;
use crate::visit::Visit;

/// What a lane's first turn counts as while it is under way.
const EXPECTED: Duration = Duration::from_secs(1);

/// What time is shared among.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Share {
    /// Asking for the newest keys of tenants that have nothing due, to notice a rotation.
    Check,
    /// Sealing anew.
    Reseal,
    /// Refreshing; and asking for the newest key before that.
    Refresh,
}

const SHARES: [Share; 3] = [Share::Check, Share::Reseal, Share::Refresh];

/// The turns of one sweep.
pub(crate) struct Turns {
    order: Order,
    lanes: Vec<Lane>,
    places: BTreeMap<(TenantId, Share), usize>,
    accounts: BTreeMap<Share, Account>,
    /// The lanes with something to do, by weight, then by chance.
    ready: BTreeSet<Ready>,
    /// Key versions that one record is trying out.
    trying: BTreeSet<(TenantId, KeyVersion)>,
    /// Key versions that one has tried.
    tried: BTreeSet<(TenantId, KeyVersion)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ready {
    share: Share,
    weight: Duration,
    tie: u64,
    lane: usize,
}

struct Lane {
    tenant: TenantId,
    share: Share,
    account: Account,
    /// Decides between lanes of the same weight.
    tie: u64,
    /// Whether the tenant's newest key is to be asked for.
    asks: bool,
    /// By the key version that they are under; the last one has the next turn.
    visits: BTreeMap<KeyVersion, Vec<Visit>>,
    /// As it is among those that are ready.
    ready: Option<Ready>,
}

/// A turn.
pub(crate) struct Turn {
    lane: usize,
    /// The version that it tries out.
    tries: Option<KeyVersion>,
    pub(crate) tenant: TenantId,
    pub(crate) share: Share,
    pub(crate) job: Job,
}

/// What there is to do.
pub(crate) enum Job {
    /// Ask for the tenant's newest key.
    Ask,
    /// Visit a record.
    Visit(Box<Visit>),
}

/// What is to be told when a turn is over.
pub(crate) struct Receipt {
    lane: usize,
    tries: Option<KeyVersion>,
}

/// How much time somebody has taken.
#[derive(Clone, Copy)]
struct Account {
    taken: Duration,
    under_way: u32,
    expected: Duration,
}

impl Turns {
    pub(crate) fn new(order: Order) -> Self {
        Self {
            order,
            lanes: Vec::new(),
            places: BTreeMap::new(),
            accounts: SHARES.map(|share| (share, Account::new())).into(),
            ready: BTreeSet::new(),
            trying: BTreeSet::new(),
            tried: BTreeSet::new(),
        }
    }

    /// Has a tenant's newest key asked for. Lanes without any time taken go by `tie`.
    pub(crate) fn ask(&mut self, tenant: &TenantId, share: Share, tie: u64) {
        let at = self.lane(tenant, share, tie);
        if let Some(lane) = self.lanes.get_mut(at) {
            lane.asks = true;
        }
        self.line_up(at);
    }

    /// Has records visited, the last one first.
    pub(crate) fn visit(&mut self, tenant: &TenantId, share: Share, tie: u64, visits: Vec<Visit>) {
        let at = self.lane(tenant, share, tie);
        if let Some(lane) = self.lanes.get_mut(at) {
            for visit in visits {
                let version = visit.marker.key_version.clone();
                lane.visits.entry(version).or_default().push(visit);
            }
        }
        self.line_up(at);
    }

    /// A key version that is known to be usable.
    pub(crate) fn is_usable(&mut self, tenant: &TenantId, version: &KeyVersion) {
        self.tried.insert((tenant.clone(), version.clone()));
    }

    /// Whoever's turn it is; none: nobody's, until one that is under way is over.
    pub(crate) fn next(&mut self) -> Option<Turn> {
        let ready = SHARES
            .into_iter()
            .filter_map(|share| {
                let account = self.accounts.get(&share)?;
                let weight = if self.order.shares_by_time {
                    account.weight()
                } else {
                    Duration::ZERO
                };
                Some((weight, self.first(share)?))
            })
            .min()?
            .1;
        let turn = self.take(ready.lane)?;
        if let Some(account) = self.accounts.get_mut(&ready.share) {
            account.begin();
        }
        self.line_up(ready.lane);
        Some(turn)
    }

    /// A turn is over. It `has_tried` a key version if it came as far as the key.
    pub(crate) fn over(&mut self, receipt: Receipt, took: Duration, has_tried: bool) {
        let Some(lane) = self.lanes.get_mut(receipt.lane) else {
            return;
        };
        lane.account.end(took);
        let tenant = lane.tenant.clone();
        if let Some(account) = self.accounts.get_mut(&lane.share) {
            account.end(took);
        }
        if let Some(version) = receipt.tries {
            let id = (tenant.clone(), version);
            self.trying.remove(&id);
            if has_tried {
                self.tried.insert(id);
            }
        }
        for share in SHARES {
            if let Some(at) = self.places.get(&(tenant.clone(), share)) {
                self.line_up(*at);
            }
        }
    }

    /// Whatever had no turn: the tenants that were not asked for, and the visits.
    pub(crate) fn left(self) -> impl Iterator<Item = (TenantId, Share, Job)> {
        self.lanes.into_iter().flat_map(|lane| {
            let asks = lane.asks.then_some(Job::Ask);
            let visits = lane.visits.into_values().flatten();
            let visits = visits.map(|visit| Job::Visit(Box::new(visit)));
            let jobs: Vec<_> = asks.into_iter().chain(visits).collect();
            jobs.into_iter()
                .map(move |job| (lane.tenant.clone(), lane.share, job))
        })
    }

    fn lane(&mut self, tenant: &TenantId, share: Share, tie: u64) -> usize {
        let next = self.lanes.len();
        let at = *self.places.entry((tenant.clone(), share)).or_insert(next);
        if at == next {
            self.lanes.push(Lane {
                tenant: tenant.clone(),
                share,
                account: Account::new(),
                tie,
                asks: false,
                visits: BTreeMap::new(),
                ready: None,
            });
        }
        at
    }

    fn first(&self, share: Share) -> Option<Ready> {
        let from = Ready {
            share,
            weight: Duration::ZERO,
            tie: 0,
            lane: 0,
        };
        let first = self.ready.range(from..).next().copied()?;
        (first.share == share).then_some(first)
    }

    fn take(&mut self, at: usize) -> Option<Turn> {
        let version = self.open_version(at).cloned();
        let lane = self.lanes.get_mut(at)?;
        let (job, tries) = if std::mem::take(&mut lane.asks) {
            (Job::Ask, None)
        } else {
            let version = version?;
            let visits = lane.visits.get_mut(&version)?;
            let visit = visits.pop()?;
            if visits.is_empty() {
                lane.visits.remove(&version);
            }
            let id = (lane.tenant.clone(), version.clone());
            let is_new = self.order.tries_versions && !self.tried.contains(&id);
            if is_new {
                self.trying.insert(id);
            }
            (Job::Visit(Box::new(visit)), is_new.then_some(version))
        };
        lane.account.begin();
        Some(Turn {
            lane: at,
            tries,
            tenant: lane.tenant.clone(),
            share: lane.share,
            job,
        })
    }

    /// A version of which a record can be visited now.
    fn open_version(&self, at: usize) -> Option<&KeyVersion> {
        let lane = self.lanes.get(at)?;
        lane.visits.keys().find(|version| {
            !self
                .trying
                .contains(&(lane.tenant.clone(), (*version).clone()))
        })
    }

    /// Puts a lane in its place among those that are ready, or takes it out.
    fn line_up(&mut self, at: usize) {
        let has_visit = self.open_version(at).is_some();
        let Some(lane) = self.lanes.get_mut(at) else {
            return;
        };
        if let Some(ready) = lane.ready.take() {
            self.ready.remove(&ready);
        }
        if lane.asks || has_visit {
            let ready = Ready {
                share: lane.share,
                weight: if self.order.lanes_by_time {
                    lane.account.weight()
                } else {
                    Duration::ZERO
                },
                tie: lane.tie,
                lane: at,
            };
            lane.ready = Some(ready);
            self.ready.insert(ready);
        }
    }
}

impl Turn {
    /// What there is to do, and what to give back when it is done.
    pub(crate) fn split(self) -> (Job, Receipt) {
        let receipt = Receipt {
            lane: self.lane,
            tries: self.tries,
        };
        (self.job, receipt)
    }
}

impl Account {
    fn new() -> Self {
        Self {
            taken: Duration::ZERO,
            under_way: 0,
            expected: EXPECTED,
        }
    }

    fn weight(&self) -> Duration {
        let under_way = self.expected.saturating_mul(self.under_way);
        self.taken.saturating_add(under_way)
    }

    fn begin(&mut self) {
        self.under_way = self.under_way.saturating_add(1);
    }

    fn end(&mut self, took: Duration) {
        self.under_way = self.under_way.saturating_sub(1);
        self.taken = self.taken.saturating_add(took);
        // Halfway to the last one, so that one that was over at once does not let a crowd in.
        self.expected = self.expected.saturating_add(took) / 2;
    }
}
