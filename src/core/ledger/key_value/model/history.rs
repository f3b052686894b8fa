//! Whether what everybody saw has a serial order that explains it.
//!
//! Each request that was acknowledged happened at one moment between its beginning and its end; one that failed or whose
//! actor died happened before that, or never. A draw that released an access token happened after the vault had it. A sweep
//! that removes what has expired happened likewise, and to an enrolment whose sign-in is revoked.

use std::collections::HashSet;

use crate::protocol::{Ending, Program, View};
use crate::store::Enrolment;
use crate::world::{Progress, World};

/// One request, or the removal that an enrolment makes when it finds its tenant being removed.
struct Act {
    program: Program,
    ending: Ending,
    /// A bit for each act that comes before it.
    after: u16,
}

/// Whether some order of the requests leads to this view.
pub(crate) fn explains(world: &World, last: View) -> bool {
    let acts = acts(world);
    let is_revoked = |enrolment| world.is_revoked(enrolment);
    search(
        &acts,
        &is_revoked,
        0,
        View::Absent,
        last,
        &mut HashSet::new(),
    )
}

fn acts(world: &World) -> Vec<Act> {
    let requests: Vec<(usize, Program, Ending)> = world
        .actors
        .iter()
        .enumerate()
        .filter(|(_, actor)| actor.program.is_request() || actor.program == Program::Expire)
        .filter_map(|(index, actor)| match actor.progress {
            Progress::NotBegun => None,
            Progress::UnderWay(_) => Some((index, actor.program, Ending::Died)),
            Progress::Over(ending) => Some((index, actor.program, ending)),
        })
        .collect();
    let mut acts: Vec<Act> = requests
        .iter()
        .map(|(later, program, ending)| Act {
            program: *program,
            ending: *ending,
            after: requests
                .iter()
                .enumerate()
                .filter(|(_, (earlier, ..))| world.was_over(*earlier, *later))
                .fold(0, |after, (at, _)| after | 1 << at),
        })
        .collect();
    if requests
        .iter()
        .any(|(_, program, _)| *program == Program::RemoveTenant)
    {
        for at in 0..requests.len() {
            let (index, program, ending) = requests[at];
            if matches!(program, Program::Enrol(_)) && ending != Ending::Acknowledged {
                // Whoever came after the enrolment came after its removal.
                let removal = acts.len();
                let later = requests.iter().enumerate();
                for (other, _) in later.filter(|(_, (later, ..))| world.was_over(index, *later)) {
                    acts[other].after |= 1 << removal;
                }
                acts.push(Act {
                    program: Program::Remove,
                    ending,
                    after: acts[at].after | 1 << at,
                });
            }
        }
    }
    acts
}

fn search(
    acts: &[Act],
    is_revoked: &impl Fn(Enrolment) -> bool,
    done: u16,
    view: View,
    last: View,
    tried: &mut HashSet<(u16, View)>,
) -> bool {
    if done.count_ones() as usize == acts.len() {
        return view == last;
    }
    if !tried.insert((done, view)) {
        return false;
    }
    acts.iter().enumerate().any(|(at, act)| {
        let is_next = done >> at & 1 == 0 && act.after & !done == 0;
        is_next
            && outcomes(act, view, is_revoked)
                .into_iter()
                .flatten()
                .any(|view| search(acts, is_revoked, done | 1 << at, view, last, tried))
    })
}

/// What an act can make of a view; none: it cannot have happened there.
fn outcomes(act: &Act, view: View, is_revoked: impl Fn(Enrolment) -> bool) -> [Option<View>; 2] {
    let happened = match (act.program, act.ending) {
        (_, Ending::Saw(saw)) => return [(saw == view).then_some(view), None],
        // It may have come by nothing to remove.
        (Program::Expire, _) => {
            let removes = matches!(view, View::Has(of) if is_revoked(of));
            return [Some(view), removes.then_some(View::NoToken)];
        }
        (Program::Enrol(enrolment), _) => View::Has(enrolment),
        (Program::Remove | Program::RemoveTenant, _) => View::Absent,
        (Program::RemoveToken, _) if view == View::Absent => View::Absent,
        (Program::RemoveToken, _) => View::NoToken,
        _ => view,
    };
    let may_not_have_happened = act.ending != Ending::Acknowledged;
    [Some(happened), may_not_have_happened.then_some(view)]
}
