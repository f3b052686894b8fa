//! Writes of several enrolments at once, phase by phase: "Settle" of PROTOCOL.md.
//!
//! Each phase is one batch and waits for the one before, so that every enrolment sees its steps in their order. Between
//! two enrolments there is no order to keep.

use futures_util::future::{join, join_all};

use crate::identity::Nonce;
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::found::Place;
use crate::ledger::key_value::head::Head;
use crate::ledger::key_value::layout::{Layout, Marker};
use crate::ledger::key_value::store::Store;
use crate::ledger::record::Record;
use crate::ledger::{Change, Edit, Settled, StoreError};
use crate::port::Environment;

/// Most keys of one batch: what Amazon `DynamoDB` takes (`BatchWriteItem`).
const BATCH: usize = 25;

/// A change under way.
struct Step<'a> {
    change: &'a Change<Place>,
    /// The marker that it sets.
    fresh: Marker,
    /// The key of that.
    fresh_key: String,
    progress: Progress,
}

/// How far a change came.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Progress {
    UnderWay,
    /// Another writer was faster: nothing of this change is left, once its marker is gone.
    Overtaken,
    /// Overtaken after the record was written, which must go too.
    TooLate,
    Failed(StoreError),
}

impl<S: Store + Clone, E: Environment + Clone> KeyValueLedger<S, E> {
    /// Makes the changes. A change that fails stops where it is.
    pub(super) async fn apply(&self, changes: &[&Change<Place>]) -> Vec<Settled<Place>> {
        let mut steps: Vec<_> = changes.iter().map(|change| self.step(change)).collect();
        let layout = &self.layout;

        self.write(&mut steps, Progress::UnderWay, |step| {
            vec![(step.fresh_key.clone(), Some(Vec::new()))]
        })
        .await;

        self.check(&mut steps, Check::BeforeTheRecord).await;
        self.write(&mut steps, Progress::UnderWay, |step| {
            let new = step.replacement().map(|(_, new)| new.to_json());
            let pair = new.map(|new| (step.record_key(layout), Some(new)));
            pair.into_iter().collect()
        })
        .await;
        self.check(&mut steps, Check::AfterTheRecord).await;

        self.write(&mut steps, Progress::TooLate, |step| {
            vec![(step.record_key(layout), None)]
        })
        .await;
        for overtaken in [Progress::TooLate, Progress::Overtaken] {
            self.write(&mut steps, overtaken, |step| {
                vec![(step.fresh_key.clone(), None)]
            })
            .await;
        }
        // Others' markers only now that an own one is set.
        self.write(&mut steps, Progress::UnderWay, |step| {
            let mut keys: Vec<_> = (step.change.claims.iter())
                .map(|place| place.key.clone())
                .collect();
            let former = step.former().map(|former| layout.marker(&former));
            keys.extend(former.filter(|former| !keys.contains(former)));
            keys.into_iter().map(|key| (key, None)).collect()
        })
        .await;

        let outcomes = steps.into_iter().map(|step| match step.progress {
            Progress::UnderWay => Ok(Some(Place {
                key: step.fresh_key,
                write: step.fresh.write,
            })),
            Progress::Overtaken | Progress::TooLate => Ok(None),
            Progress::Failed(error) => Err(error),
        });
        outcomes.collect()
    }

    fn step<'a>(&self, change: &'a Change<Place>) -> Step<'a> {
        let of = |record: &Record| Marker::of(&change.user, &change.nonce, record);
        let fresh = match &change.edit {
            Edit::Reschedule {
                time,
                state,
                key_version,
            } => Marker {
                time: *time,
                state: *state,
                key_version: key_version.clone(),
                user: change.user.clone(),
                nonce: change.nonce.clone(),
                write: Nonce::for_write(&self.env),
            },
            Edit::Tidy(record) => Marker {
                write: Nonce::for_write(&self.env),
                ..of(record)
            },
            Edit::Replace { new, .. } => of(new),
        };
        Step {
            change,
            fresh_key: self.layout.marker(&fresh),
            fresh,
            progress: Progress::UnderWay,
        }
    }

    /// Looks whether the enrolments of replacements are as they were, and notes which are not.
    async fn check(&self, steps: &mut [Step<'_>], check: Check) {
        let checks = steps.iter_mut().filter_map(|step| {
            let replacement = step.replacement()?;
            (step.progress == Progress::UnderWay).then_some((replacement, step))
        });
        join_all(checks.map(async |((old, new), step)| {
            let user = &step.change.user;
            let head_key = self.layout.head(user);
            let other_key = match check {
                Check::BeforeTheRecord => step.record_key(&self.layout),
                Check::AfterTheRecord => self.layout.off(&user.id, &step.change.nonce),
            };
            let (head, other) = join(self.store.get(&head_key), self.store.get(&other_key)).await;
            step.progress = match (head, other) {
                (Err(error), _) | (_, Err(error)) => Progress::Failed(error),
                (Ok(head), Ok(other)) => {
                    let is_current = head
                        .and_then(|json| Head::from_json(&json).ok())
                        .is_some_and(|head| head.nonce == step.change.nonce);
                    let (holds, otherwise) = match check {
                        Check::BeforeTheRecord => (
                            other.is_some_and(|stored| is_as_before(&stored, old, new)),
                            Progress::Overtaken,
                        ),
                        Check::AfterTheRecord => (other.is_none(), Progress::TooLate),
                    };
                    if is_current && holds {
                        Progress::UnderWay
                    } else {
                        otherwise
                    }
                }
            };
        }))
        .await;
    }

    /// Writes what the changes that came so far have to write: a value to set, or none to delete.
    async fn write(
        &self,
        steps: &mut [Step<'_>],
        so_far: Progress,
        writes: impl Fn(&Step<'_>) -> Vec<(String, Option<Vec<u8>>)>,
    ) {
        let pairs: Vec<(usize, String, Option<Vec<u8>>)> = steps
            .iter()
            .enumerate()
            .filter(|(_, step)| step.progress == so_far)
            .flat_map(|(at, step)| {
                let writes = writes(step).into_iter();
                writes.map(move |(key, value)| (at, key, value))
            })
            .collect();
        for pairs in pairs.chunks(BATCH) {
            for (at, error) in self.write_each(pairs).await {
                if let Some(step) = steps.get_mut(at) {
                    step.progress = Progress::Failed(error);
                }
            }
        }
    }

    /// One batch; where that fails, as it does with a backend whose batch is broken or a value that is too large for it,
    /// single writes, which may each happen a second time. Returns what failed.
    async fn write_each(
        &self,
        pairs: &[(usize, String, Option<Vec<u8>>)],
    ) -> Vec<(usize, StoreError)> {
        if pairs.len() > 1 {
            let sets: Vec<_> = pairs
                .iter()
                .filter_map(|(_, key, value)| Some((key.as_str(), value.as_deref()?)))
                .collect();
            let deletes: Vec<_> = pairs
                .iter()
                .filter(|(_, _, value)| value.is_none())
                .map(|(_, key, _)| key.as_str())
                .collect();
            // A phase either sets or deletes.
            let done = if deletes.is_empty() {
                self.store.set_many(&sets).await
            } else {
                self.store.delete_many(&deletes).await
            };
            if done.is_ok() {
                return Vec::new();
            }
        }
        let mut failed = Vec::new();
        for (at, key, value) in pairs {
            let done = match value {
                Some(value) => self.store.set(key, value).await,
                None => self.store.delete(key).await,
            };
            failed.extend(done.err().map(|error| (*at, error)));
        }
        failed
    }
}

impl<'a> Step<'a> {
    fn replacement(&self) -> Option<(&'a Record, &'a Record)> {
        match &self.change.edit {
            Edit::Replace { old, new } => Some((old, new)),
            Edit::Reschedule { .. } | Edit::Tidy(_) => None,
        }
    }

    /// The marker that goes with the record as it was read; none if it was not.
    fn former(&self) -> Option<Marker> {
        match &self.change.edit {
            Edit::Reschedule { .. } => None,
            Edit::Tidy(record) | Edit::Replace { old: record, .. } => {
                Some(Marker::of(&self.change.user, &self.change.nonce, record))
            }
        }
    }

    fn record_key(&self, layout: &Layout) -> String {
        layout.record(&self.change.user.id, &self.change.nonce)
    }
}

/// When it is looked whether an enrolment is as it was.
#[derive(Clone, Copy)]
enum Check {
    BeforeTheRecord,
    AfterTheRecord,
}

/// A re-seal keeps the generation, and must not be laid over a write that it has not seen.
fn is_as_before(stored: &[u8], old: &Record, new: &Record) -> bool {
    Record::from_json(stored).is_ok_and(|stored| {
        stored.generation == old.generation
            && (new.generation != old.generation || stored.write == old.write)
    })
}
