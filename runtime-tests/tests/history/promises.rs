//! What was asked and answered, and which promises it breaks.
//!
//! The order is looked for as by Wing and Gong, just in time, as Lowe has it ("Testing for linearizability", 2017): at each
//! answer, all that may have happened until then is kept. What is asked of one user is all that there is to order, so that few
//! requests are open at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::time::Duration;

/// A sign-in: the claim `sid` of what an enrolment sent, and of every access token that comes of it.
pub(crate) type Session = u64;

/// What users can see of their enrolment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum View {
    Absent,
    NoToken,
    /// Enrolled, with the tokens of this sign-in.
    Has(Session),
}

/// What is asked for a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    Enrol(Session),
    Draw,
    RemoveToken,
    Remove,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// An enrolment was acknowledged, of one who was not there or of one who was.
    Enrolled { is_new: bool },
    /// A removal was acknowledged.
    Removed,
    /// A draw had this answer.
    Saw(View),
    /// There was no answer, or none that says: it has happened, or happens later, or never.
    Unknown,
}

/// One request of a user. Times are since the beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) user: usize,
    #[allow(dead_code, reason = "violations tell it")]
    pub(crate) host: usize,
    pub(crate) asked: Asked,
    pub(crate) began: Duration,
    /// When there was an answer, or nobody waited for one any more.
    pub(crate) ended: Duration,
    pub(crate) outcome: Outcome,
}

/// One call of a sweep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sweep {
    /// The process that it runs in, which has one at a time.
    pub(crate) process: usize,
    pub(crate) began: Duration,
    /// When it was answered, or its process killed: until then it lived.
    pub(crate) ended: Duration,
}

/// One refresh token that a sweep has redeemed.
#[derive(Clone, Debug)]
pub(crate) struct Redemption {
    pub(crate) process: usize,
    pub(crate) at: Duration,
    /// Which one.
    pub(crate) token: String,
}

/// All of a run.
#[derive(Default, Debug)]
pub(crate) struct History {
    pub(crate) requests: Vec<Request>,
    pub(crate) sweeps: Vec<Sweep>,
    pub(crate) redemptions: Vec<Redemption>,
    /// For how long a sweep surely holds what it has claimed, from the beginning of its call on.
    pub(crate) lease: Duration,
}

impl History {
    /// What breaks a promise; nothing, if all are kept.
    pub(crate) fn violations(&self) -> Vec<String> {
        let mut by_user: BTreeMap<usize, Vec<Request>> = BTreeMap::new();
        for request in &self.requests {
            by_user.entry(request.user).or_default().push(*request);
        }
        let mut violations = Vec::new();
        for requests in by_user.values() {
            violations.extend(released_late(requests));
            violations.extend(without_order(requests));
        }
        violations.extend(self.in_two_hands());
        violations
    }

    /// Refresh tokens that two sweeps had in hand, both alive and within their leases.
    fn in_two_hands(&self) -> Vec<String> {
        // The sweep that a process was at.
        let sweep = |redemption: &Redemption| {
            let before = self.sweeps.iter().filter(|sweep| {
                sweep.process == redemption.process && sweep.began <= redemption.at
            });
            before.max_by_key(|sweep| sweep.began)
        };
        let mut violations = Vec::new();
        let mut by_token: HashMap<&str, Vec<(Duration, &Sweep)>> = HashMap::new();
        for redemption in &self.redemptions {
            let Some(by) = sweep(redemption) else {
                violations.push(format!("nobody swept, and redeemed: {redemption:?}"));
                continue;
            };
            let by_token = by_token.entry(&redemption.token).or_default();
            by_token.push((redemption.at, by));
        }
        for (token, mut hands) in by_token {
            hands.sort_by_key(|(at, _)| *at);
            let is_held = |at: Duration, by: &Sweep| at < by.ended.min(by.began + self.lease);
            for (index, (_, first)) in hands.iter().enumerate() {
                violations.extend(hands.iter().skip(index + 1).find_map(|(at, second)| {
                    let is_other =
                        (first.process, first.began) != (second.process, second.began);
                    (is_other && is_held(*at, first) && is_held(*at, second)).then(|| {
                        format!(
                            "token {token} was redeemed by two live sweeps, the second time at {at:?}: {first:?}, {second:?}"
                        )
                    })
                }));
            }
        }
        violations
    }
}

/// Access tokens that were drawn after a removal that was acknowledged, of an enrolment that had ended before it, as it may.
fn released_late(requests: &[Request]) -> Vec<String> {
    let enrolled: HashMap<Session, &Request> = requests
        .iter()
        .filter_map(|request| match request.asked {
            Asked::Enrol(session) => Some((session, request)),
            Asked::Draw | Asked::RemoveToken | Asked::Remove => None,
        })
        .collect();
    let mut removals: Vec<_> = requests
        .iter()
        .filter(|request| request.outcome == Outcome::Removed)
        .collect();
    removals.sort_by_key(|removal| removal.began);
    let mut violations = Vec::new();
    for draw in requests {
        let Outcome::Saw(View::Has(session)) = draw.outcome else {
            continue;
        };
        let Some(enrolment) = enrolled.get(&session) else {
            violations.push(format!("a token of nobody's enrolment: {draw:?}"));
            continue;
        };
        let after = removals.partition_point(|removal| removal.began <= enrolment.ended);
        let removal = removals[after..]
            .iter()
            .find(|removal| removal.ended < draw.began);
        if let Some(removal) = removal {
            violations.push(format!(
                "an access token was released after its removal was acknowledged: {enrolment:?}, {removal:?}, {draw:?}"
            ));
        }
    }
    violations
}

/// What may be by now: what a user has, and which of the open requests have happened or never will.
type Possible = (View, BTreeSet<usize>);

/// The first answer that no order of a user's requests explains, if there is one.
///
/// What is unknown may happen long after its end, but not after another enrolment or removal that began since and was
/// acknowledged: it finds something else than it has seen.
fn without_order(requests: &[Request]) -> Option<String> {
    let is_change =
        |request: &Request| matches!(request.outcome, Outcome::Enrolled { .. } | Outcome::Removed);
    let last_moment = |request: &Request| {
        if request.outcome != Outcome::Unknown {
            return request.ended;
        }
        let later = |other: &&Request| is_change(other) && request.ended < other.began;
        let ends = requests.iter().filter(later).map(|other| other.ended);
        ends.min().unwrap_or(Duration::MAX)
    };
    let mut moments: Vec<_> = (requests.iter().enumerate())
        .flat_map(|(index, it)| [(it.began, false, index), (last_moment(it), true, index)])
        .collect();
    // Of one moment, what begins comes before what ends: they may have overlapped.
    moments.sort_unstable();
    let mut open = BTreeSet::new();
    let mut possible = BTreeSet::from([(View::Absent, BTreeSet::new())]);
    for (_, is_end, index) in moments {
        if !is_end {
            open.insert(index);
            continue;
        }
        let before = possible.clone();
        happen(requests, &open, &mut possible);
        open.remove(&index);
        possible = possible
            .into_iter()
            .filter_map(|(view, mut over): Possible| {
                let is_over = over.remove(&index);
                let may_never_happen = requests[index].outcome == Outcome::Unknown;
                (is_over || may_never_happen).then_some((view, over))
            })
            .collect();
        if possible.is_empty() {
            return Some(unexplained(requests, index, &before));
        }
    }
    None
}

/// Adds what may be once some of the open requests have happened.
fn happen(requests: &[Request], open: &BTreeSet<usize>, possible: &mut BTreeSet<Possible>) {
    let mut new: Vec<Possible> = possible.iter().cloned().collect();
    while let Some((view, over)) = new.pop() {
        for index in open.difference(&over) {
            let request = &requests[*index];
            let Some(next) = next(request, view) else {
                continue;
            };
            let mut over = over.clone();
            over.insert(*index);
            if matches!(request.outcome, Outcome::Enrolled { .. } | Outcome::Removed) {
                over.extend(open.iter().filter(|other| {
                    let other = &requests[**other];
                    other.outcome == Outcome::Unknown && other.ended < request.began
                }));
            }
            if possible.insert((next, over.clone())) {
                new.push((next, over));
            }
        }
    }
}

/// What a user has once a request has happened; none: with this view it cannot have had its answer.
fn next(request: &Request, view: View) -> Option<View> {
    match (request.asked, request.outcome) {
        (_, Outcome::Saw(saw)) => (saw == view).then_some(view),
        (Asked::Enrol(session), Outcome::Enrolled { is_new }) => {
            (is_new == (view == View::Absent)).then_some(View::Has(session))
        }
        (Asked::Enrol(session), _) => Some(View::Has(session)),
        (Asked::RemoveToken, _) if view != View::Absent => Some(View::NoToken),
        (Asked::RemoveToken | Asked::Remove, _) => Some(View::Absent),
        (Asked::Draw, _) => Some(view),
    }
}

fn unexplained(requests: &[Request], index: usize, before: &BTreeSet<Possible>) -> String {
    let request = &requests[index];
    let views: BTreeSet<_> = before.iter().map(|(view, _)| *view).collect();
    let mut text = format!(
        "no order explains {request:?}; before it, by its answers, there may have been {views:?}. What came shortly before:"
    );
    let mut around: Vec<_> = requests
        .iter()
        .filter(|other| other.began <= request.ended)
        .collect();
    around.sort_by_key(|other| other.began);
    for other in &around[around.len().saturating_sub(16)..] {
        let _ = write!(text, "\n    {other:?}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Outcome = Outcome::Enrolled { is_new: true };
    const AGAIN: Outcome = Outcome::Enrolled { is_new: false };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn request(asked: Asked, span: (u64, u64), outcome: Outcome) -> Request {
        Request {
            user: 0,
            host: 0,
            asked,
            began: seconds(span.0),
            ended: seconds(span.1),
            outcome,
        }
    }

    fn saw(view: View, span: (u64, u64)) -> Request {
        request(Asked::Draw, span, Outcome::Saw(view))
    }

    fn violations(requests: &[Request]) -> Vec<String> {
        let history = History {
            requests: requests.to_vec(),
            ..History::default()
        };
        history.violations()
    }

    #[track_caller]
    fn is_kept(requests: &[Request]) {
        assert_eq!(violations(requests), Vec::<String>::new());
    }

    #[track_caller]
    fn is_broken(requests: &[Request], by: &str) {
        let violations = violations(requests);
        let is_told = violations.iter().any(|violation| violation.contains(by));
        assert!(is_told, "{by}: {violations:#?}");
    }

    #[test]
    fn what_an_order_explains_is_no_violation() {
        is_kept(&[
            saw(View::Absent, (0, 1)),
            request(Asked::Enrol(1), (2, 5), NEW),
            // While it was enrolled, both can be seen, each before or after the other.
            saw(View::Has(1), (3, 4)),
            saw(View::Absent, (2, 4)),
            request(Asked::Enrol(2), (6, 9), AGAIN),
            request(Asked::RemoveToken, (6, 9), Outcome::Removed),
            saw(View::NoToken, (7, 8)),
            saw(View::Has(2), (10, 11)),
            request(Asked::Remove, (12, 13), Outcome::Removed),
            request(Asked::RemoveToken, (14, 15), Outcome::Removed),
            saw(View::Absent, (16, 17)),
            request(Asked::Enrol(3), (18, 19), NEW),
        ]);
    }

    #[test]
    fn what_is_unknown_may_have_happened_or_happen_later_or_never() {
        let enrolment = request(Asked::Enrol(1), (0, 1), Outcome::Unknown);
        is_kept(&[enrolment, saw(View::Absent, (2, 3))]);
        is_kept(&[enrolment, saw(View::Has(1), (2, 3))]);
        let late = [
            enrolment,
            saw(View::Absent, (2, 3)),
            saw(View::Has(1), (4, 5)),
        ];
        is_kept(&late);
        is_broken(
            &[&late[..], &[saw(View::Absent, (6, 7))]].concat(),
            "no order",
        );
        let removal = request(Asked::Remove, (6, 7), Outcome::Unknown);
        is_kept(&[&late[..], &[removal, saw(View::Absent, (8, 9))]].concat());
    }

    #[test]
    fn what_is_unknown_does_not_come_after_what_was_acknowledged_later() {
        let removal = request(Asked::Remove, (0, 1), Outcome::Unknown);
        let enrolment = request(Asked::Enrol(1), (2, 3), NEW);
        is_kept(&[removal, enrolment, saw(View::Has(1), (4, 5))]);
        is_broken(
            &[removal, enrolment, saw(View::Absent, (4, 5))],
            "no order explains",
        );
        // It may, if both were under way.
        let removal = request(Asked::Remove, (0, 3), Outcome::Unknown);
        is_kept(&[removal, enrolment, saw(View::Absent, (4, 5))]);
    }

    #[test]
    fn an_enrolment_that_is_lost_is_noticed() {
        let enrolment = request(Asked::Enrol(1), (0, 1), NEW);
        is_broken(&[enrolment, saw(View::Absent, (2, 3))], "no order");
        is_broken(&[enrolment, saw(View::NoToken, (2, 3))], "no order");
        let second = request(Asked::Enrol(2), (2, 3), AGAIN);
        is_broken(&[enrolment, second, saw(View::Has(1), (4, 5))], "no order");
        // So it is if the next one is told that nobody was there.
        is_broken(
            &[enrolment, request(Asked::Enrol(2), (2, 3), NEW)],
            "no order",
        );
    }

    #[test]
    fn one_who_was_removed_and_comes_back_is_noticed() {
        let enrolment = request(Asked::Enrol(1), (0, 1), NEW);
        for (removal, left) in [
            (Asked::Remove, View::Absent),
            (Asked::RemoveToken, View::NoToken),
        ] {
            let removal = request(removal, (2, 3), Outcome::Removed);
            is_kept(&[enrolment, removal, saw(left, (4, 5))]);
            let back = [
                enrolment,
                removal,
                saw(left, (4, 5)),
                saw(View::Has(1), (6, 7)),
            ];
            is_broken(&back, "no order");
        }
        let removal = request(Asked::Remove, (2, 3), Outcome::Removed);
        is_broken(
            &[enrolment, removal, request(Asked::Enrol(2), (4, 5), AGAIN)],
            "no order",
        );
    }

    #[test]
    fn a_token_after_its_removal_is_noticed() {
        let removal = request(Asked::Remove, (2, 5), Outcome::Removed);
        let late = saw(View::Has(1), (6, 7));
        let by = "released after its removal";
        is_broken(&[request(Asked::Enrol(1), (0, 1), NEW), removal, late], by);
        // Of an enrolment that came late, too: by then it had failed, and the removal was to remove whatever there was.
        let failed = request(Asked::Enrol(1), (0, 1), Outcome::Unknown);
        is_broken(&[failed, removal, late], by);
        is_kept(&[failed, removal, saw(View::Has(1), (4, 7))]);
        is_kept(&[
            request(Asked::Enrol(1), (0, 3), Outcome::Unknown),
            removal,
            late,
        ]);
        is_broken(&[saw(View::Has(7), (0, 1))], "nobody's enrolment");
    }

    #[test]
    fn a_token_in_the_hands_of_two_live_sweeps_is_noticed() {
        let redemption = |process, at| Redemption {
            process,
            at: seconds(at),
            token: "a".to_owned(),
        };
        let sweep = |process, began, ended| Sweep {
            process,
            began: seconds(began),
            ended: seconds(ended),
        };
        let number = |sweeps: &[Sweep], redemptions: &[Redemption]| {
            let history = History {
                sweeps: sweeps.to_vec(),
                redemptions: redemptions.to_vec(),
                lease: seconds(10),
                ..History::default()
            };
            history.violations().len()
        };
        let both = [redemption(1, 3), redemption(2, 6)];
        assert_eq!(number(&[sweep(1, 0, 8), sweep(2, 1, 9)], &both), 1);
        // The first was killed, or is over.
        assert_eq!(number(&[sweep(1, 0, 5), sweep(2, 1, 9)], &both), 0);
        // The lease of the first is over; it is too late to write.
        let late = [redemption(1, 3), redemption(2, 16)];
        assert_eq!(number(&[sweep(1, 0, 20), sweep(2, 12, 20)], &late), 0);
        // The same sweep again; and another of the same process.
        assert_eq!(
            number(&[sweep(1, 0, 8)], &[redemption(1, 3), redemption(1, 4)]),
            0
        );
        let next = [sweep(1, 0, 4), sweep(1, 5, 8)];
        assert_eq!(number(&next, &[redemption(1, 3), redemption(1, 6)]), 0);
        // Not by anybody's call.
        assert_eq!(number(&[], &[redemption(1, 3)]), 1);
    }
}
