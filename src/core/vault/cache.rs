//! A cache whose values are each good until a time.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::ops::Range;

use lru::LruCache;

/// What was put in, by key, for as long as it is good. It has room for so many; a new one takes the place of the one
/// that was used longest ago.
///
/// It knows no clock: times are seconds of whichever its user goes by, and all of one cache are of the same.
pub(crate) struct Cache<K, V>(RefCell<LruCache<K, Entry<V>>>);

struct Entry<V> {
    value: V,
    good: Range<u64>,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    /// An empty one with room for so many, and for one at least.
    pub(crate) fn new(room: usize) -> Self {
        let room = NonZeroUsize::new(room).unwrap_or(NonZeroUsize::MIN);
        Self(RefCell::new(LruCache::new(room)))
    }

    /// The value, if it is good now.
    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q, now: u64) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.get_with_age(key, now).map(|(value, _)| value)
    }

    /// The value, if it is good now, and for how many seconds it has been.
    pub(crate) fn get_with_age<Q: Hash + Eq + ?Sized>(&self, key: &Q, now: u64) -> Option<(V, u64)>
    where
        K: Borrow<Q>,
    {
        let mut entries = self.0.borrow_mut();
        let Entry { value, good } = entries.get(key)?;
        // A clock that was set back since makes it no worse.
        let age = now.saturating_sub(good.start);
        (now < good.end).then(|| (value.clone(), age))
    }

    /// Keeps a value that is good from now until a time, in the place of what was there.
    pub(crate) fn put(&self, key: K, value: V, good: Range<u64>) {
        self.0.borrow_mut().put(key, Entry { value, good });
    }

    /// Forgets what is there.
    pub(crate) fn forget<Q: Hash + Eq + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.forget_if(key, |_| true);
    }

    /// Forgets what is there if it is the one that is meant: another may have come meanwhile.
    pub(crate) fn forget_if<Q: Hash + Eq + ?Sized>(
        &self,
        key: &Q,
        is_meant: impl FnOnce(&V) -> bool,
    ) where
        K: Borrow<Q>,
    {
        let mut entries = self.0.borrow_mut();
        if entries
            .peek(key)
            .is_some_and(|entry| is_meant(&entry.value))
        {
            entries.pop(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_good_until_its_time() {
        let cache = Cache::new(2);
        assert_eq!(cache.get("a", 100), None::<u8>);
        cache.put("a", 1, 100..200);
        assert_eq!(cache.get("a", 199), Some(1));
        assert_eq!(cache.get_with_age("a", 199), Some((1, 99)));
        assert_eq!(cache.get("a", 200), None);
        assert_eq!(cache.get_with_age("a", 50), Some((1, 0)), "set back");
        cache.put("a", 2, 200..300);
        assert_eq!(cache.get("a", 200), Some(2));
    }

    #[test]
    fn the_one_that_was_used_longest_ago_makes_room() {
        let cache = Cache::new(2);
        cache.put("a", 1, 0..9);
        cache.put("b", 2, 0..9);
        assert_eq!(cache.get("a", 0), Some(1));
        cache.put("c", 3, 0..9);
        assert_eq!(
            ["a", "b", "c"].map(|key| cache.get(key, 0)),
            [Some(1), None, Some(3)]
        );
        let least = Cache::new(0);
        least.put((), 1, 0..9);
        assert_eq!(least.get(&(), 0), Some(1));
    }

    #[test]
    fn another_that_came_meanwhile_is_not_forgotten() {
        let cache = Cache::new(2);
        cache.put("a", 1, 0..9);
        cache.forget_if("a", |value| *value == 2);
        assert_eq!(cache.get("a", 0), Some(1));
        cache.forget_if("a", |value| *value == 1);
        assert_eq!(cache.get("a", 0), None);
        cache.put("a", 3, 0..9);
        cache.forget("a");
        assert_eq!(cache.get("a", 0), None);
    }
}
