//! The chance of a seed, of which everything comes that a run does not fix.

use std::cell::Cell;

/// A row of numbers that its seed decides, by `SplitMix64`.
pub(super) struct Chance(Cell<u64>);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// The next number, of all that 64 bits can be.
    pub(super) fn number(&self) -> u64 {
        self.0.set(self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mut number = self.0.get();
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    /// A number from 0 on that is less than the bound.
    pub(super) fn below(&self, bound: u64) -> u64 {
        self.number() % bound
    }

    pub(super) fn one_of<T: Copy>(&self, items: &[T]) -> T {
        items[usize::try_from(self.below(items.len() as u64)).unwrap()]
    }

    /// Whether something happens that happens so often in a thousand times.
    pub(super) fn happens(&self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1000) < per_mille
    }
}
