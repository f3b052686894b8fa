//! The body of a call on its way to the API: how it goes on is seen, and a small one is kept, since the API may want it again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use crate::port::{BodyError, Upload};

/// Longest body that is kept, in bytes.
pub(crate) const KEPT: usize = 64 * 1024;

/// A body that is sent. What it tells outlives it, in [`Progress`].
pub(crate) struct Body<U> {
    /// What goes first: it was read before, or is all there is.
    first: VecDeque<Vec<u8>>,
    rest: Option<U>,
    progress: Rc<Progress>,
}

/// How a body goes on.
#[derive(Default)]
pub(crate) struct Progress {
    /// Parts that were taken.
    parts: Cell<u64>,
    /// What was taken, all of it; none: it was too much, or need not be kept.
    kept: RefCell<Option<Vec<u8>>>,
    has_ended: Cell<bool>,
    broke_off: Cell<bool>,
}

impl Progress {
    /// Parts that were taken up to now.
    pub(crate) fn parts(&self) -> u64 {
        self.parts.get()
    }

    /// Whether the caller broke it off.
    pub(crate) fn broke_off(&self) -> bool {
        self.broke_off.get()
    }

    /// Whether nothing more of it is going to be kept: it has ended, or is too long.
    pub(crate) fn is_settled(&self) -> bool {
        self.has_ended.get() || self.broke_off.get() || self.kept.borrow().is_none()
    }

    /// The body, if all of it was sent and is still there.
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        let kept = self.kept.take();
        kept.filter(|_| self.has_ended.get())
    }

    fn note(&self, part: &[u8]) {
        self.parts.set(self.parts.get().wrapping_add(1));
        let mut kept = self.kept.borrow_mut();
        if let Some(all) = kept.as_mut() {
            if all.len().saturating_add(part.len()) > KEPT {
                *kept = None;
            } else {
                all.extend_from_slice(part);
            }
        }
    }
}

impl<U: Upload> Body<U> {
    /// What a caller sends. `may_be_none`: it does not say whether there is a body, and its first part is waited for.
    ///
    /// # Errors
    /// It broke off.
    pub(crate) async fn of_caller(
        mut upload: U,
        may_be_none: bool,
        keep: bool,
    ) -> Result<Option<Self>, BodyError> {
        let first = if may_be_none {
            match upload.next().await? {
                None => return Ok(None),
                first => first,
            }
        } else {
            None
        };
        let kept = RefCell::new(keep.then(Vec::new));
        Ok(Some(Self {
            first: first.into_iter().collect(),
            rest: Some(upload),
            progress: Rc::new(Progress {
                kept,
                ..Progress::default()
            }),
        }))
    }

    /// One that was kept.
    pub(crate) fn again(body: Vec<u8>) -> Option<Self> {
        (!body.is_empty()).then(|| Self {
            first: [body].into(),
            rest: None,
            progress: Rc::default(),
        })
    }

    /// How it goes on, while it is sent and after.
    pub(crate) fn progress(&self) -> Rc<Progress> {
        Rc::clone(&self.progress)
    }
}

impl<U: Upload> Upload for Body<U> {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, BodyError> {
        let part = match (self.first.pop_front(), &mut self.rest) {
            (Some(first), _) => Some(first),
            (None, Some(rest)) => match rest.next().await {
                Ok(part) => part,
                Err(error) => {
                    self.progress.broke_off.set(true);
                    return Err(error);
                }
            },
            (None, None) => None,
        };
        match &part {
            Some(part) => self.progress.note(part),
            None => self.progress.has_ended.set(true),
        }
        Ok(part)
    }

    /// What is kept is read to its end all the same: an API may challenge as soon as it has seen the head.
    async fn unwanted(&mut self) {
        while !self.progress.is_settled() && self.next().await.is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use pollster::block_on;

    use super::*;

    /// Parts that come; then it ends, or breaks off.
    struct Parts(VecDeque<Vec<u8>>, Result<(), BodyError>);

    impl Upload for Parts {
        async fn next(&mut self) -> Result<Option<Vec<u8>>, BodyError> {
            match self.0.pop_front() {
                Some(part) => Ok(Some(part)),
                None => self.1.map(|()| None),
            }
        }
    }

    fn parts(sizes: &[usize]) -> Parts {
        Parts(sizes.iter().map(|size| vec![b'x'; *size]).collect(), Ok(()))
    }

    fn sent(body: &mut Body<Parts>) -> usize {
        let mut bytes = 0;
        while let Some(part) = block_on(body.next()).unwrap() {
            bytes += part.len();
        }
        bytes
    }

    #[test]
    fn a_small_body_is_kept_once_all_of_it_was_sent() {
        for (sizes, is_kept) in [
            (&[][..], true),
            (&[KEPT], true),
            (&[KEPT - 1, 1], true),
            (&[KEPT, 1], false),
            (&[KEPT + 1], false),
        ] {
            let body = block_on(Body::of_caller(parts(sizes), false, true));
            let mut body = body.unwrap().unwrap();
            let progress = body.progress();
            let bytes = sizes.iter().sum();
            assert_eq!(sent(&mut body), bytes);
            assert_eq!(
                progress.take().map(|kept| kept.len()),
                is_kept.then_some(bytes)
            );
            assert_eq!(progress.parts(), u64::try_from(sizes.len()).unwrap());
        }
        // Not what is still being sent, nor what need not be.
        for (keep, left) in [(true, &[2, 2][..]), (false, &[2])] {
            let mut body = block_on(Body::of_caller(parts(left), true, keep))
                .unwrap()
                .unwrap();
            block_on(body.next()).unwrap();
            assert_eq!(body.progress().take(), None);
        }
    }

    #[test]
    fn what_is_kept_is_sent_again_and_an_empty_body_is_none() {
        let mut again = Body::<Parts>::again(b"body".to_vec()).unwrap();
        assert_eq!(block_on(again.next()), Ok(Some(b"body".to_vec())));
        assert_eq!(block_on(again.next()), Ok(None));
        assert!(Body::<Parts>::again(Vec::new()).is_none());
        assert!(
            block_on(Body::of_caller(parts(&[]), true, true))
                .unwrap()
                .is_none()
        );
        let mut body = block_on(Body::of_caller(parts(&[3, 4]), true, true))
            .unwrap()
            .unwrap();
        assert_eq!(sent(&mut body), 7, "what was waited for is sent, too");
    }

    #[test]
    fn what_nobody_wants_any_more_is_read_on_for_as_long_as_it_is_kept() {
        for (sizes, keep, left, kept) in [
            (&[7, 7, 7][..], true, 0, Some(21)),
            (&[7, KEPT, 7, 7], true, 2, None),
            (&[7, 7, 7], false, 2, None),
        ] {
            let mut body = block_on(Body::of_caller(parts(sizes), false, keep))
                .unwrap()
                .unwrap();
            let progress = body.progress();
            block_on(body.next()).unwrap();
            assert_eq!(progress.is_settled(), !keep);
            block_on(body.unwanted());
            assert!(progress.is_settled());
            assert_eq!(progress.take().map(|kept| kept.len()), kept);
            assert_eq!(body.rest.unwrap().0.len(), left, "{sizes:?}");
        }
        let broken = Parts([vec![1]].into(), Err(BodyError::BrokenOff));
        let mut body = block_on(Body::of_caller(broken, false, true))
            .unwrap()
            .unwrap();
        block_on(body.unwanted());
        assert!(body.progress().is_settled() && body.progress().take().is_none());
    }

    #[test]
    fn what_broke_off_is_not_kept() {
        let broken = Parts([vec![1]].into(), Err(BodyError::BrokenOff));
        let mut body = block_on(Body::of_caller(broken, false, true))
            .unwrap()
            .unwrap();
        let progress = body.progress();
        assert_eq!(block_on(body.next()), Ok(Some(vec![1])));
        assert_eq!(block_on(body.next()), Err(BodyError::BrokenOff));
        assert!(progress.broke_off() && progress.take().is_none());
        let broken = Parts([].into(), Err(BodyError::TooSlow));
        assert!(block_on(Body::of_caller(broken, true, true)).is_err());
    }
}
