//! Pauses: whom Entra ID asked to stay away, or that Key Vault did, and until when (facts/entra-and-key-vault.md §A.8,
//! §D.7).

use std::num::NonZeroUsize;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;
use lru::LruCache;

use crate::identity::TenantId;
use crate::identity::User;

/// Longest pause that is kept, in seconds, whatever is asked for (the cap of Microsoft's own libraries).
const LONGEST: u32 = 3600;
/// Longest pause of a back-off, in seconds: it goes 1, 2, 4, 8, 16 (§D.7).
const LONGEST_BACK_OFF: u32 = 16;

/// Whom a pause holds up.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Paused {
    /// One user: Entra ID broke a loop of identical requests.
    User(User),
    /// A whole tenant: it is throttled, or Entra ID fails for it.
    Tenant(TenantId),
    /// Everybody who needs Key Vault: it throttles by vault, whosever secret is asked for.
    KeyVault,
}

/// The pauses in force. Bounded: the ones looked at longest ago are forgotten first.
#[derive(Debug)]
pub struct Pauses(LruCache<Paused, Pause>);

#[derive(Default, Debug)]
struct Pause {
    until: u64,
    /// Seconds of the last back-off; 0: none since it last worked.
    backed_off: u32,
}

impl Pauses {
    /// None yet; room for this many.
    #[must_use]
    pub fn new(room: NonZeroUsize) -> Self {
        Self(LruCache::new(room))
    }

    /// Starts a pause, or makes one longer.
    pub fn pause(&mut self, whom: Paused, now: u64, seconds: u32) {
        let until = now.saturating_add(seconds.min(LONGEST).into());
        let pause = self.0.get_or_insert_mut(whom, Pause::default);
        pause.until = until.max(pause.until);
    }

    /// Starts a pause of a length that nobody said: twice the last one's. Requests that were refused side by side count as
    /// one.
    pub fn back_off(&mut self, whom: Paused, now: u64) {
        if self.left(&whom, now).is_some() {
            return;
        }
        let pause = self.0.get_or_insert_mut(whom, Pause::default);
        let seconds = pause.backed_off.saturating_mul(2);
        pause.backed_off = seconds.clamp(1, LONGEST_BACK_OFF);
        pause.until = now.saturating_add(pause.backed_off.into());
    }

    /// A request was not refused: the next back-off is short again. A pause in force stays, since it began after the
    /// request was sent.
    pub fn worked(&mut self, whom: &Paused, now: u64) {
        if self.left(whom, now).is_none() {
            self.0.pop(whom);
        }
    }

    /// Seconds that are left of a pause, if it is in force.
    pub fn left(&mut self, whom: &Paused, now: u64) -> Option<u32> {
        let until = self.0.get(whom)?.until;
        // A clock that was set back must not make it longer.
        let left = until.saturating_sub(now).min(LONGEST.into());
        u32::try_from(left).ok().filter(|left| *left > 0)
    }
}

/// Seconds of a `Retry-After` header in either of its forms (RFC 9110 §10.2.3), at most an hour.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: u64) -> Option<u32> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = if value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that do not fit are a very long time.
        (!value.is_empty()).then(|| value.parse().unwrap_or(u64::MAX))?
    } else {
        let until = httpdate::parse_http_date(value).ok()?;
        let now = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(now))?;
        // In the past: at once.
        until.duration_since(now).unwrap_or_default().as_secs()
    };
    u32::try_from(seconds.min(LONGEST.into())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Guid, StorageId};

    /// Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110 §5.6.7.
    const RFC: u64 = 784_111_777;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        for (value, now, expected) in [
            ("17", RFC, Some(17)),
            (" 17 ", RFC, Some(17)),
            ("0", RFC, Some(0)),
            ("3601", RFC, Some(3600)),
            ("99999999999999999999999", RFC, Some(3600)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", RFC - 60, Some(60)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", RFC - 60, Some(60)),
            ("Sun Nov  6 08:49:37 1994", RFC - 60, Some(60)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", RFC - 4000, Some(3600)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", RFC, Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", RFC + 60, Some(0)),
            ("", RFC, None),
            ("-1", RFC, None),
            ("1.5", RFC, None),
            ("soon", RFC, None),
            ("Sun, 36 Nov 1994 08:49:37 GMT", RFC, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            assert_eq!(retry_after(&headers, now), expected, "{value:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), RFC), None);
    }

    #[test]
    fn a_pause_holds_up_its_own_and_ends() {
        let tenant = Guid::parse("11111111-1111-1111-1111-111111111111").unwrap();
        let user = |id: &str| {
            Paused::User(User {
                tenant: tenant.clone(),
                id: StorageId::parse(&id.repeat(32)).unwrap(),
            })
        };
        let mut pauses = Pauses::new(NonZeroUsize::new(2).unwrap());
        pauses.pause(user("a"), 1000, 300);
        pauses.pause(user("a"), 1000, 5);
        assert_eq!(pauses.left(&user("a"), 1001), Some(299));
        assert_eq!(pauses.left(&user("b"), 1001), None);
        assert_eq!(pauses.left(&Paused::Tenant(tenant.clone()), 1001), None);
        assert_eq!(pauses.left(&user("a"), 1300), None);
        pauses.pause(Paused::Tenant(tenant.clone()), 1000, u32::MAX);
        assert_eq!(pauses.left(&Paused::Tenant(tenant.clone()), 0), Some(3600));
        pauses.pause(user("b"), 1000, 300);
        assert_eq!(pauses.left(&user("a"), 1001), None, "there is room for two");
    }

    #[test]
    fn a_back_off_doubles_until_something_works() {
        let (mut pauses, mut now) = (Pauses::new(NonZeroUsize::MIN), 1000);
        for seconds in [1, 2, 4, 8, 16, 16] {
            pauses.back_off(Paused::KeyVault, now);
            // Refused side by side with the first, and an answer to what was sent before it.
            pauses.back_off(Paused::KeyVault, now);
            pauses.worked(&Paused::KeyVault, now);
            assert_eq!(pauses.left(&Paused::KeyVault, now), Some(seconds));
            now += u64::from(seconds);
            assert_eq!(pauses.left(&Paused::KeyVault, now), None);
        }
        pauses.worked(&Paused::KeyVault, now);
        pauses.back_off(Paused::KeyVault, now);
        assert_eq!(pauses.left(&Paused::KeyVault, now), Some(1));
        // What is asked for holds, whatever the last back-off was.
        pauses.pause(Paused::KeyVault, now, 30);
        pauses.back_off(Paused::KeyVault, now);
        assert_eq!(pauses.left(&Paused::KeyVault, now), Some(30));
    }
}
