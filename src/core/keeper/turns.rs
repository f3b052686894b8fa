//! Whose turn it is in a sweep: whoever has taken the least time so far.
//!
//! There are three shares of the time, for tenants' newest keys, for re-sealing and for refreshing, and within each share
//! a lane a tenant. The share that has taken the least time has the next turn, and in it the lane that has. So neither
//! kind of work takes time from the other, and a tenant that is slow, or has very much to do, waits for those that are
//! quick or have little; it gets all the time that they leave. What is under way counts as long as the last one took, and
//! whoever was slow in the sweep before begins with that on its account: else the first turns of many slow tenants would
//! take a whole sweep.
//!
//! A key version that was not tried yet is tried with one record before others follow: a version that cannot be had is
//! asked for once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::identity::{KeyVersion, TenantId};
use crate::keeper::rules::Order;
use crate::ledger::{Claimed, Visit};

/// What a lane's first turn counts as while it is under way.
const EXPECTED: Duration = Duration::from_secs(1);

/// Records of a tenant that are claimed at first. Whoever is through with them claims twice as many, so that what a sweep has
/// claimed is never much more than what it has done: the rest is there for other replicas, and it goes back if there is no
/// time for it.
pub(crate) const FIRST_CLAIMS: usize = 2;
/// The most that are claimed at once: what a replica still does when the others find nothing left.
const MOST_CLAIMS: usize = 64;

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

/// A tenant whose turns take longer than this is slow.
const SLOW: Duration = Duration::from_secs(1);

const SHARES: [Share; 3] = [Share::Check, Share::Reseal, Share::Refresh];

/// The turns of one sweep.
pub(crate) struct Turns<C> {
    order: Order,
    lanes: Vec<Lane<C>>,
    places: BTreeMap<(TenantId, Share), usize>,
    accounts: BTreeMap<Share, Account>,
    /// Tenants that were slow, and how long a turn took.
    slow: BTreeMap<TenantId, Duration>,
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

struct Lane<C> {
    tenant: TenantId,
    share: Share,
    account: Account,
    /// Decides between lanes of the same weight.
    tie: u64,
    /// Whether the tenant's newest key is to be asked for.
    asks: bool,
    /// Work that is not claimed yet. It is when none of that is left which was.
    unclaimed: u64,
    /// How much was claimed the last time.
    claims: usize,
    /// By the key version that they are under.
    visits: BTreeMap<KeyVersion, VecDeque<Visit<C>>>,
    /// As it is among those that are ready.
    ready: Option<Ready>,
}

/// A turn.
pub(crate) struct Turn<C> {
    lane: usize,
    /// The version that it tries out.
    tries: Option<KeyVersion>,
    pub(crate) tenant: TenantId,
    pub(crate) share: Share,
    pub(crate) job: Job<C>,
}

/// What there is to do.
pub(crate) enum Job<C> {
    /// Ask for the tenant's newest key.
    Ask,
    /// Claim so much more of the tenant's work.
    Claim(usize),
    /// Visit a record.
    Visit(Box<Visit<C>>),
}

/// What had no turn.
pub(crate) struct Left {
    pub(crate) tenant: TenantId,
    pub(crate) share: Share,
    /// Whether the tenant's newest key was not asked for.
    pub(crate) asks: bool,
    /// Work that was not claimed.
    pub(crate) unclaimed: u64,
    /// Records that were claimed and not visited.
    pub(crate) claimed: u64,
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

impl<C> Turns<C> {
    /// With the tenants that were slow before, and how long a turn of theirs took.
    pub(crate) fn new(order: Order, slow: BTreeMap<TenantId, Duration>) -> Self {
        Self {
            order,
            slow,
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

    /// Has records visited, in this order, and after them those that are left to claim.
    pub(crate) fn visit(&mut self, tenant: &TenantId, share: Share, tie: u64, claimed: Claimed<C>) {
        let at = self.lane(tenant, share, tie);
        if let Some(lane) = self.lanes.get_mut(at) {
            lane.unclaimed = claimed.left;
            for visit in claimed.visits {
                let version = visit.key_version.clone();
                lane.visits.entry(version).or_default().push_back(visit);
            }
        }
        self.line_up(at);
    }

    /// Has one more record visited, before the others.
    pub(crate) fn visit_next(&mut self, tenant: &TenantId, share: Share, visit: Visit<C>) {
        let at = self.lane(tenant, share, 0);
        if let Some(lane) = self.lanes.get_mut(at) {
            let version = visit.key_version.clone();
            lane.visits.entry(version).or_default().push_front(visit);
        }
        self.line_up(at);
    }

    /// A key version that is known to be usable.
    pub(crate) fn is_usable(&mut self, tenant: &TenantId, version: &KeyVersion) {
        self.tried.insert((tenant.clone(), version.clone()));
    }

    /// Whoever's turn it is; none: nobody's, until one that is under way is over.
    pub(crate) fn next(&mut self) -> Option<Turn<C>> {
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
        if took > SLOW {
            self.slow.insert(tenant.clone(), took);
        } else if took > Duration::ZERO {
            self.slow.remove(&tenant);
        }
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

    /// The tenants that are slow, and how long a turn takes.
    pub(crate) fn slow(&self) -> &BTreeMap<TenantId, Duration> {
        &self.slow
    }

    /// What had no turn, by lane.
    pub(crate) fn left(self) -> impl Iterator<Item = Left> {
        self.lanes.into_iter().map(|lane| {
            let claimed = lane.visits.values().map(VecDeque::len).sum::<usize>();
            Left {
                tenant: lane.tenant,
                share: lane.share,
                asks: lane.asks,
                unclaimed: lane.unclaimed,
                claimed: u64::try_from(claimed).unwrap_or(u64::MAX),
            }
        })
    }

    fn lane(&mut self, tenant: &TenantId, share: Share, tie: u64) -> usize {
        let next = self.lanes.len();
        let at = *self.places.entry((tenant.clone(), share)).or_insert(next);
        if at == next {
            let mut account = Account::new();
            if share != Share::Check {
                // Of those that are only asked for their key each has one turn, in the order that goes round.
                account.taken = self.slow.get(tenant).copied().unwrap_or_default();
            }
            self.lanes.push(Lane {
                tenant: tenant.clone(),
                share,
                account,
                tie,
                asks: false,
                unclaimed: 0,
                claims: FIRST_CLAIMS,
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

    fn take(&mut self, at: usize) -> Option<Turn<C>> {
        let version = self.open_version(at).cloned();
        let lane = self.lanes.get_mut(at)?;
        let (job, tries) = if std::mem::take(&mut lane.asks) {
            (Job::Ask, None)
        } else if lane.is_to_claim() {
            // What is left is told with what comes of it.
            lane.unclaimed = 0;
            lane.claims = lane.claims.saturating_mul(2).min(MOST_CLAIMS);
            (Job::Claim(lane.claims), None)
        } else {
            let version = version?;
            let visits = lane.visits.get_mut(&version)?;
            let visit = visits.pop_front()?;
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
        if lane.asks || has_visit || lane.is_to_claim() {
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

impl<C> Lane<C> {
    fn is_to_claim(&self) -> bool {
        self.unclaimed > 0 && self.visits.is_empty()
    }
}

impl<C> Turn<C> {
    /// What there is to do, and what to give back when it is done.
    pub(crate) fn split(self) -> (Job<C>, Receipt) {
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
        let both = self.expected.saturating_add(took);
        self.expected = both.checked_div(2).unwrap_or(both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::User;
    use crate::identity::{Nonce, StorageId};
    use crate::keeper::rules::Rules;
    use crate::ledger::schedule::State;

    const QUICK: Duration = Duration::from_millis(100);
    const SLOW: Duration = Duration::from_secs(10);

    fn tenant(number: u32) -> TenantId {
        TenantId::parse(&format!("{number:08}-0000-0000-0000-000000000000")).unwrap()
    }

    fn version(number: u8) -> KeyVersion {
        KeyVersion::parse(&format!("{number:032x}")).unwrap()
    }

    fn visits(of: u32, version_of_key: u8, number: u32) -> Claimed<()> {
        let visit = |at: u32| Visit {
            user: User {
                tenant: tenant(of),
                id: StorageId::parse(&format!("{at:032}")).unwrap(),
            },
            nonce: Nonce::parse(&format!("{at}")).unwrap(),
            key_version: version(version_of_key),
            state: State::Active { failures: 0 },
            time: 0,
            claims: vec![()],
            due: None,
        };
        Claimed {
            visits: (0..number).map(visit).collect(),
            ..Claimed::none()
        }
    }

    fn turns() -> Turns<()> {
        Turns::new(Rules::SHIPPED.order, BTreeMap::new())
    }

    /// Who had how many turns, one at a time, when each takes as long as `took` says.
    fn run(
        turns: &mut Turns<()>,
        number: usize,
        took: impl Fn(u32) -> Duration,
    ) -> BTreeMap<(u32, Share), u32> {
        let mut had = BTreeMap::new();
        for _ in 0..number {
            let Some(turn) = turns.next() else { break };
            let of = turn.tenant.as_str()[..8].parse().unwrap();
            *had.entry((of, turn.share)).or_default() += 1;
            let (_, receipt) = turn.split();
            turns.over(receipt, took(of), true);
        }
        had
    }

    #[test]
    fn who_is_slow_waits_for_those_who_are_quick() {
        let mut turns = turns();
        for of in 0..4 {
            turns.visit(&tenant(of), Share::Refresh, 0, visits(of, 0, 1000));
        }
        let took = |of| if of == 0 { SLOW } else { QUICK };
        let had = run(&mut turns, 300, took);
        // A hundred quick ones for a slow one.
        assert!(had[&(0, Share::Refresh)] <= 3, "{had:?}");
        assert!((1..4).all(|of| had[&(of, Share::Refresh)] >= 95), "{had:?}");
        // And what is slow is done, too, once the others are.
        let rest = run(&mut turns, 10_000, took);
        assert_eq!(had[&(0, Share::Refresh)] + rest[&(0, Share::Refresh)], 1000);
    }

    #[test]
    fn who_was_slow_before_does_not_come_first() {
        let slow = (0..100).map(|of| (tenant(of), SLOW)).collect();
        let mut turns = Turns::new(Rules::SHIPPED.order, slow);
        for of in 0..101 {
            turns.ask(&tenant(of), Share::Refresh, 0);
        }
        turns.visit(&tenant(100), Share::Refresh, 0, visits(100, 0, 50));
        let had = run(&mut turns, 51, |_| QUICK);
        assert_eq!(had, BTreeMap::from([((100, Share::Refresh), 51)]));
        // Who was quick for once is slow no more.
        run(&mut turns, 1, |_| QUICK);
        assert_eq!(turns.slow().len(), 99);
        run(&mut turns, 1, |_| SLOW);
        assert_eq!(turns.slow().len(), 99);
    }

    #[test]
    fn neither_kind_of_work_takes_time_from_the_other() {
        let mut turns = turns();
        turns.visit(&tenant(0), Share::Reseal, 0, visits(0, 0, 1000));
        turns.visit(&tenant(0), Share::Refresh, 0, visits(0, 1, 1000));
        for of in 1..1000 {
            turns.ask(&tenant(of), Share::Check, of.into());
        }
        let had = run(&mut turns, 300, |_| QUICK);
        let of = |share| -> u32 {
            let had = had.iter().filter(|((_, of), _)| *of == share);
            had.map(|(_, number)| number).sum()
        };
        assert_eq!(
            [Share::Check, Share::Reseal, Share::Refresh].map(of),
            [100; 3]
        );
        // Whoever is alone has all of it.
        let rest = run(&mut turns, 10_000, |_| QUICK);
        assert_eq!(rest[&(0, Share::Reseal)], 900);
    }

    #[test]
    fn what_is_under_way_counts() {
        let mut turns = turns();
        for of in 0..4 {
            turns.visit(&tenant(of), Share::Refresh, 0, visits(of, 0, 1000));
            turns.is_usable(&tenant(of), &version(0));
        }
        let mut had = BTreeMap::new();
        for _ in 0..32 {
            *had.entry(turns.next().unwrap().tenant).or_insert(0) += 1;
        }
        assert!(had.values().all(|number| *number == 8), "{had:?}");
    }

    #[test]
    fn a_version_is_tried_with_one_record_first() {
        let mut turns = turns();
        turns.visit(&tenant(0), Share::Reseal, 0, visits(0, 0, 3));
        turns.visit(&tenant(0), Share::Reseal, 0, visits(0, 1, 1));
        turns.is_usable(&tenant(0), &version(1));
        let (_, first) = turns.next().unwrap().split();
        // The other version's, and then nobody.
        let (_, other) = turns.next().unwrap().split();
        assert!(turns.next().is_none());
        turns.over(other, QUICK, true);
        assert!(turns.next().is_none());
        // One that did not come as far as the key has tried nothing.
        turns.over(first, QUICK, false);
        let (_, second) = turns.next().unwrap().split();
        assert!(turns.next().is_none());
        turns.over(second, QUICK, true);
        assert!(turns.next().is_some());
        assert!(turns.next().is_none(), "none is left");
    }

    #[test]
    fn what_had_no_turn_is_left() {
        let mut turns = turns();
        turns.ask(&tenant(0), Share::Refresh, 0);
        turns.ask(&tenant(1), Share::Check, 0);
        turns.visit(&tenant(2), Share::Refresh, 0, visits(2, 0, 3));
        let mut had = 0;
        for _ in 0..2 {
            let turn = turns.next().unwrap();
            had += u64::from(matches!(turn.job, Job::Visit(_)));
            let (_, receipt) = turn.split();
            turns.over(receipt, QUICK, true);
        }
        let left: Vec<_> = turns.left().collect();
        let asks = left.iter().filter(|left| left.asks).count();
        let visits: u64 = left.iter().map(|left| left.claimed + left.unclaimed).sum();
        assert_eq!(visits, 3 - had);
        assert_eq!(u64::try_from(asks).unwrap() + visits, 3);
    }

    #[test]
    fn more_is_claimed_when_what_was_claimed_is_done() {
        let mut turns = turns();
        let claimed = Claimed {
            left: 7,
            ..visits(0, 0, 2)
        };
        turns.visit(&tenant(0), Share::Refresh, 0, claimed);
        for _ in 0..2 {
            let (job, receipt) = turns.next().unwrap().split();
            assert!(matches!(job, Job::Visit(_)));
            turns.over(receipt, QUICK, true);
        }
        let (job, receipt) = turns.next().unwrap().split();
        assert!(matches!(job, Job::Claim(most) if most > FIRST_CLAIMS));
        assert!(turns.next().is_none(), "once at a time");
        let claimed = Claimed {
            left: 4,
            ..visits(0, 0, 3)
        };
        turns.visit(&tenant(0), Share::Refresh, 0, claimed);
        turns.over(receipt, QUICK, false);
        let left: Vec<_> = turns.left().collect();
        assert_eq!((left[0].claimed, left[0].unclaimed), (3, 4));
    }
}
