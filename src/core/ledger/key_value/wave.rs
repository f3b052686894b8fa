//! Writes of several enrolments at once, phase by phase: steps 3 to 8 of "Refresh" and "Re-seal" of
//! facts/storage-protocol.md, and its "Duplicate marker".
//!
//! Each phase is one batch and waits for the one before, so that every enrolment sees its steps in their order. Between
//! two enrolments there is no order to keep.

use futures_util::future::{join, join_all};

use crate::identity::Nonce;
use crate::identity::User;
use crate::keeper::{Environment, Keeper, marker_of};
use crate::ledger::key_value::layout::{Layout, Marker};
use crate::ledger::key_value::store::{Store, StoreError};
use crate::ledger::record::{Head, Record};
use crate::vault::port::VaultPort;

/// Most keys of one batch: what `DynamoDB` takes (facts/spin.md §4).
pub(crate) const WAVE: usize = 25;

/// A change to what is stored of one enrolment.
pub(crate) struct Change {
    pub(crate) user: User,
    pub(crate) nonce: Nonce,
    /// Keys of the markers that led here; none when a caller did.
    pub(crate) visited: Vec<String>,
    pub(crate) what: What,
}

/// What is changed.
pub(crate) enum What {
    /// The marker alone: a fresh one takes the place of the visited ones.
    Mark(Marker),
    /// The markers alone: a fresh one takes the place of the visited ones and of the record's own.
    Tidy { fresh: Marker, own: Marker },
    /// The record, and its marker.
    Replace { old: Box<Record>, new: Box<Record> },
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

impl<V: VaultPort, S: Store, E: Environment> Keeper<V, S, E> {
    /// Makes the changes. True: made; false: overtaken, and nothing changed. A change that fails stops where it is.
    pub(crate) async fn apply(
        &self,
        layout: &Layout,
        changes: &[&Change],
    ) -> Vec<Result<bool, StoreError>> {
        let mut progress = vec![Progress::UnderWay; changes.len()];

        let own = |change: &Change| layout.marker(&change.own_marker());
        self.phase(changes, &mut progress, Progress::UnderWay, |change| {
            vec![(own(change), Some(Vec::new()))]
        })
        .await;

        self.look_again(layout, changes, &mut progress, Look::Before)
            .await;
        self.phase(changes, &mut progress, Progress::UnderWay, |change| {
            change
                .replacement()
                .map(|(_, new)| (change.record_key(layout), Some(new.to_json())))
                .into_iter()
                .collect()
        })
        .await;
        self.look_again(layout, changes, &mut progress, Look::After)
            .await;

        self.phase(changes, &mut progress, Progress::TooLate, |change| {
            vec![(change.record_key(layout), None)]
        })
        .await;
        for overtaken in [Progress::TooLate, Progress::Overtaken] {
            self.phase(changes, &mut progress, overtaken, |change| {
                vec![(own(change), None)]
            })
            .await;
        }
        // Others' markers only now that an own one is set.
        self.phase(changes, &mut progress, Progress::UnderWay, |change| {
            let mut keys = change.visited.clone();
            let former = match &change.what {
                What::Mark(_) => None,
                What::Tidy { own, .. } => Some(layout.marker(own)),
                What::Replace { old, .. } => {
                    Some(layout.marker(&marker_of(&change.user, &change.nonce, old)))
                }
            };
            keys.extend(former.filter(|former| !change.visited.contains(former)));
            keys.into_iter().map(|key| (key, None)).collect()
        })
        .await;

        let outcome = |progress| match progress {
            Progress::UnderWay => Ok(true),
            Progress::Overtaken | Progress::TooLate => Ok(false),
            Progress::Failed(error) => Err(error),
        };
        progress.into_iter().map(outcome).collect()
    }

    /// Looks whether the enrolments are as they were, and notes which are not.
    async fn look_again(
        &self,
        layout: &Layout,
        changes: &[&Change],
        progress: &mut [Progress],
        look: Look,
    ) {
        let looks = changes
            .iter()
            .zip(progress)
            .filter_map(|(change, progress)| {
                let replacement = change.replacement()?;
                (*progress == Progress::UnderWay).then_some((change, replacement, progress))
            });
        join_all(looks.map(async |(change, (old, new), progress)| {
            let (head_key, other_key) = (
                layout.head(&change.user),
                match look {
                    Look::Before => change.record_key(layout),
                    Look::After => layout.off(&change.user.id, &change.nonce),
                },
            );
            let (head, other) = join(self.store.get(&head_key), self.store.get(&other_key)).await;
            *progress = match (head, other) {
                (Err(error), _) | (_, Err(error)) => Progress::Failed(error),
                (Ok(head), Ok(other)) => {
                    let current = head
                        .and_then(|json| Head::from_json(&json).ok())
                        .is_some_and(|head| head.nonce == change.nonce);
                    let (holds, otherwise) = match look {
                        Look::Before => (
                            other.is_some_and(|stored| is_as_before(&stored, old, new)),
                            Progress::Overtaken,
                        ),
                        Look::After => (other.is_none(), Progress::TooLate),
                    };
                    if current && holds {
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
    async fn phase(
        &self,
        changes: &[&Change],
        progress: &mut [Progress],
        of: Progress,
        writes: impl Fn(&Change) -> Vec<(String, Option<Vec<u8>>)>,
    ) {
        let pairs: Vec<(usize, String, Option<Vec<u8>>)> = changes
            .iter()
            .zip(&*progress)
            .enumerate()
            .filter(|(_, (_, progress))| **progress == of)
            .flat_map(|(at, (change, _))| {
                writes(change)
                    .into_iter()
                    .map(move |(key, value)| (at, key, value))
            })
            .collect();
        for pairs in pairs.chunks(WAVE) {
            for (at, error) in self.write_each(pairs).await {
                if let Some(progress) = progress.get_mut(at) {
                    *progress = Progress::Failed(error);
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

impl Change {
    fn own_marker(&self) -> Marker {
        match &self.what {
            What::Mark(fresh) | What::Tidy { fresh, .. } => fresh.clone(),
            What::Replace { new, .. } => marker_of(&self.user, &self.nonce, new),
        }
    }

    fn replacement(&self) -> Option<(&Record, &Record)> {
        match &self.what {
            What::Replace { old, new } => Some((old, new)),
            What::Mark(_) | What::Tidy { .. } => None,
        }
    }

    fn record_key(&self, layout: &Layout) -> String {
        layout.record(&self.user.id, &self.nonce)
    }
}

#[derive(Clone, Copy)]
enum Look {
    Before,
    After,
}

/// A re-seal keeps the generation, and must not be laid over a write that it has not seen.
fn is_as_before(stored: &[u8], old: &Record, new: &Record) -> bool {
    Record::from_json(stored).is_ok_and(|stored| {
        stored.generation == old.generation
            && (new.generation != old.generation || stored.write == old.write)
    })
}
