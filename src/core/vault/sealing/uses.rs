//! How often each version of a key has sealed.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::identity::{KeyVersion, SecretName};

/// How often each version of a key has sealed, and an end to it.
///
/// NIST SP 800-38D §8.3 allows 2^32 encryptions with random IVs under one key, over all who use it. Half of that for
/// one instance of the vault is far more than it can do in its life, so reaching it means that something is out of
/// hand.
pub(super) struct Uses {
    counts: LruCache<(SecretName, KeyVersion), u32>,
    /// What a version that is not among `counts` may have been used at most.
    forgotten: u32,
}

impl Uses {
    /// Seals allowed under one version of a key, by one instance of the vault.
    const MOST: u32 = 1 << 31;

    /// None yet. It remembers so many versions one by one; of those before it takes the worst for all.
    pub(super) fn new(room: usize) -> Self {
        let room = NonZeroUsize::new(room).unwrap_or(NonZeroUsize::MIN);
        Self {
            counts: LruCache::new(room),
            forgotten: 0,
        }
    }

    /// Every version has reached the end.
    #[cfg(test)]
    pub(super) fn worn_out() -> Self {
        Self {
            forgotten: Self::MOST,
            ..Self::new(1)
        }
    }

    /// Counts one more.
    ///
    /// # Errors
    /// [`WornOut`] if it would be one too many.
    pub(super) fn count(
        &mut self,
        secret: &SecretName,
        version: &KeyVersion,
    ) -> Result<(), WornOut> {
        let id = (secret.clone(), version.clone());
        let before = self.counts.get(&id).copied().unwrap_or(self.forgotten);
        let now = before.checked_add(1).filter(|now| *now <= Self::MOST);
        let now = now.ok_or(WornOut)?;
        if let Some((evicted, count)) = self.counts.push(id.clone(), now)
            && evicted != id
        {
            self.forgotten = self.forgotten.max(count);
        }
        Ok(())
    }

    /// Whether the next [`Uses::count`] would fail.
    pub(super) fn is_worn_out(&self, secret: &SecretName, version: &KeyVersion) -> bool {
        let id = (secret.clone(), version.clone());
        let count = self.counts.peek(&id).copied().unwrap_or(self.forgotten);
        count >= Self::MOST
    }
}

/// This version of the key has sealed [`Uses::MOST`] times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WornOut;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_version_wears_out_and_what_is_forgotten_counts_as_worn() {
        let name = SecretName::parse("obo-t").unwrap();
        let version = |digit: &str| KeyVersion::parse(&digit.repeat(32)).unwrap();
        let mut uses = Uses::new(2);
        uses.counts
            .put((name.clone(), version("a")), Uses::MOST - 2);
        assert_eq!(uses.count(&name, &version("a")), Ok(()));
        assert_eq!(uses.count(&name, &version("a")), Ok(()), "the last one");
        assert_eq!(uses.count(&name, &version("a")), Err(WornOut));
        assert_eq!(uses.count(&name, &version("b")), Ok(()), "another version");
        assert_eq!(
            uses.count(&SecretName::parse("obo-u").unwrap(), &version("a")),
            Ok(()),
            "another secret, which pushes the first out"
        );
        assert_eq!(
            uses.count(&name, &version("a")),
            Err(WornOut),
            "it is not taken for a new one"
        );
    }
}
