//! What users asked for and saw, and whether some serial order of it explains that.

use std::collections::BTreeSet;

use crate::simulation::users::TENANT_OF;

/// What users can see of their enrolment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum View {
    Absent,
    NoToken,
    /// The user is enrolled, with the tokens of this sign-in.
    Has(usize),
}

/// What is asked of the app: one of the functions of the `Keeper`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    Enrol,
    Draw,
    Call,
    RemoveToken,
    Remove,
    RemoveTenant,
    Sweep,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// It has not ended yet, or it died.
    Open,
    Acknowledged,
    Saw(View),
    Failed,
}

/// One request, as its history tells it. Times are steps of the scheduler.
#[derive(Clone, Debug)]
pub(super) struct Act {
    pub(super) user: usize,
    pub(super) operation: Operation,
    pub(super) began: u64,
    pub(super) ended: u64,
    pub(super) end: End,
    /// The sign-in that its exchange began.
    pub(super) lineage: Option<usize>,
    /// When the vault had the access token that it returned, or has in a call. It is 0 for as long as there is none.
    pub(super) answered: u64,
    /// The sign-ins whose access tokens reached the API, each with when the vault had the access token.
    pub(super) calls: Vec<(usize, u64)>,
    /// Whether the head was read since then. What is read next is then not the last look before a release, which begins
    /// with `off`.
    pub(super) has_read_head: bool,
}

/// What of the acts no serial order of the user's requests explains, if the user is left with this view. A request
/// comes after those that had ended when it began; one that failed or died happened or did not, and where something
/// `comes_late`, one that failed may happen after it has ended.
pub(super) fn violations(acts: &[Act], user: usize, last: View, comes_late: bool) -> Vec<String> {
    let mut violations = Vec::new();
    let mut acts: Vec<Act> = acts
        .iter()
        .filter(|act| match act.operation {
            Operation::Sweep => false,
            Operation::RemoveTenant => TENANT_OF[act.user] == TENANT_OF[user],
            Operation::Enrol
            | Operation::Draw
            | Operation::Call
            | Operation::RemoveToken
            | Operation::Remove => act.user == user,
        })
        .cloned()
        .collect();
    let drawn = acts.iter().filter_map(|act| match act.end {
        End::Saw(View::Has(lineage)) => Some((lineage, act.answered)),
        End::Open | End::Acknowledged | End::Saw(_) | End::Failed => None,
    });
    // What reached the API has, whatever became of the request.
    let called = acts.iter().flat_map(|act| act.calls.iter().copied());
    for (lineage, answered) in drawn.chain(called) {
        let enrolled = acts
            .iter()
            .find(|act| act.lineage == Some(lineage))
            .unwrap();
        let late = acts.iter().find(|act| {
            matches!(
                act.operation,
                Operation::Remove | Operation::RemoveTenant | Operation::RemoveToken
            ) && act.end == End::Acknowledged
                && enrolled.ended < act.began
                && act.ended < answered
        });
        if late.is_some() {
            violations.push(format!(
                "user {user}: an access token was released after a removal that was acknowledged before the vault had \
                 it"
            ));
        }
    }
    for act in &mut acts {
        if comes_late && act.end == End::Failed {
            act.ended = u64::MAX;
        }
    }
    assert!(acts.len() <= 64, "a run is longer than the check can take");
    let mut seen = BTreeSet::new();
    if !explain(&acts, 0, View::Absent, last, &mut seen) {
        violations.push(format!(
            "user {user}: no order explains {last:?} after {acts:#?}"
        ));
    }
    violations
}

/// Whether the acts that are not done yet have an order that leads from this view to the last.
fn explain(
    acts: &[Act],
    done: u64,
    view: View,
    last: View,
    seen: &mut BTreeSet<(u64, View)>,
) -> bool {
    let is_last = view == last || matches!((view, last), (View::Has(_), View::Has(usize::MAX)));
    if done.count_ones() as usize == acts.len() {
        return is_last;
    }
    if !seen.insert((done, view)) {
        return false;
    }
    let is_done = |at: usize| done >> at & 1 == 1;
    (0..acts.len()).filter(|at| !is_done(*at)).any(|at| {
        let act = &acts[at];
        if acts
            .iter()
            .enumerate()
            .any(|(other, before)| !is_done(other) && before.ended < act.began)
        {
            return false;
        }
        let next = match (act.operation, act.end, act.lineage) {
            (_, End::Saw(saw), _) => (saw == view).then_some(view),
            (Operation::Enrol, _, Some(lineage)) => Some(View::Has(lineage)),
            (Operation::Remove | Operation::RemoveTenant, ..) => Some(View::Absent),
            (Operation::RemoveToken, ..) if view == View::Absent => Some(View::Absent),
            (Operation::RemoveToken, ..) => Some(View::NoToken),
            (Operation::Enrol | Operation::Draw | Operation::Call | Operation::Sweep, ..) => {
                Some(view)
            }
        };
        let done = done | 1 << at;
        let may_not_have_happened = matches!(act.end, End::Open | End::Failed);
        next.is_some_and(|next| explain(acts, done, next, last, seen))
            || may_not_have_happened && explain(acts, done, view, last, seen)
    })
}
