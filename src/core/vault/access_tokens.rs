//! Access tokens that were drawn, to be handed out again for a while, and refusals, to be given again: so that a service that draws
//! for each of its requests makes one request to Entra ID in a quarter of an hour, and not the loop that Entra ID breaks with
//! AADSTS50196.
//!
//! An entry says under which enrolment it was drawn. Whether that still is the user's only whoever keeps the records can tell,
//! and has to before anything of it is released; and whether a caller may have it is asked for every caller anew. It also says
//! which key opened the refresh token, and is given no longer than that key is remembered: so without its key a tenant is served
//! nothing, once keys are forgotten.

use std::cell::RefCell;
use std::rc::Rc;

use lru::LruCache;

use crate::error::{UserError, VaultError};
use crate::identity::{Nonce, User};
use crate::secret::AccessToken;
use crate::vault::context::{Context, Environment};
use crate::vault::key_ring::KeyId;
use crate::vault::port::Draw;
use crate::vault::scope::Scope;
use crate::vault::token_client::answer::Granted;

/// Most bytes that are kept in an instance.
const ROOM: usize = 16 * 1024 * 1024;
/// What an entry takes besides its texts, in bytes: more than it does.
const OVERHEAD: usize = 512;
/// Seconds before its expiry in which an access token is not handed out again.
const MARGIN: u64 = 300;
/// Seconds for which what a claims request brought, and a refusal, is given again.
const SHORT: u64 = 120;

/// What was drawn.
pub(crate) struct AccessTokens(RefCell<Shelf>);

struct Shelf {
    /// The one that was used longest ago is the first to go.
    entries: LruCache<Name, Entry>,
    bytes: usize,
}

/// What an entry is found by.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Name {
    user: User,
    /// As it was asked for; none: that of the enrolment.
    scope: Option<String>,
    claims: Option<String>,
}

struct Entry {
    nonce: Nonce,
    /// What its refresh token was sealed under.
    key: KeyId,
    /// What Entra ID was asked for.
    asked: Scope,
    outcome: Outcome,
    /// When it came, by the clock that nobody sets, and for how many seconds it is good at most.
    since: u64,
    most: u64,
    /// When it expires, by the wall clock: a machine may have slept meanwhile.
    expires_at: u64,
    bytes: usize,
}

/// What a draw came to.
pub(crate) enum Outcome {
    /// An access token.
    Given {
        /// It.
        access_token: AccessToken,
        /// `Bearer`.
        token_type: String,
        /// The scopes granted.
        scope: String,
    },
    /// It is the user's or the organisation's turn.
    Refused(VaultError),
}

/// An entry, as it is found.
pub(crate) struct Found<'a> {
    /// The enrolment that it was drawn under.
    pub(crate) nonce: &'a Nonce,
    /// What Entra ID was asked for.
    pub(crate) asked: &'a Scope,
    /// What came of it.
    pub(crate) outcome: &'a Outcome,
    /// Seconds for which it is still good: until its expiry, or until a refusal is forgotten.
    pub(crate) left: u32,
}

impl AccessTokens {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self(RefCell::new(Shelf {
            entries: LruCache::unbounded(),
            bytes: 0,
        }))
    }

    /// Looks for what the same draw of this user came to, if it may be given again: its key has to be there still. What is asked
    /// for is as it was checked.
    pub(crate) fn find<E: Environment, T>(
        &self,
        context: &Context<'_, E>,
        user: &User,
        draw: &Draw,
        claims: Option<&str>,
        has_key: impl FnOnce(&KeyId) -> bool,
        take: impl FnOnce(Found<'_>) -> T,
    ) -> Option<T> {
        let mut kept = self.0.borrow_mut();
        let entry = kept.entries.get(&Name::of(user, draw, claims))?;
        let (now, age) = (context.now(), context.uptime().saturating_sub(entry.since));
        let (most, left) = match entry.outcome {
            Outcome::Given { .. } => {
                let setting = u64::from(context.access_token_cache_seconds);
                (
                    entry.most.min(setting),
                    entry.expires_at.saturating_sub(now),
                )
            }
            Outcome::Refused(_) => (entry.most, entry.most.saturating_sub(age)),
        };
        if age >= most || now >= entry.expires_at || !has_key(&entry.key) {
            return None;
        }
        Some(take(Found {
            nonce: &entry.nonce,
            asked: &entry.asked,
            outcome: &entry.outcome,
            left: u32::try_from(left).unwrap_or(u32::MAX),
        }))
    }

    /// Keeps what came of a draw under this enrolment, and this key, in the place of what was there.
    pub(crate) fn keep<E: Environment>(
        &self,
        context: &Context<'_, E>,
        user: &User,
        (nonce, key): (&Nonce, &KeyId),
        asked: &Scope,
        (draw, claims): (&Draw, Option<&str>),
        outcome: &Result<Rc<Granted>, VaultError>,
    ) {
        let name = Name::of(user, draw, claims);
        if claims.is_some() && outcome.is_ok() {
            // The resource has not taken the one without claims.
            self.0.borrow_mut().forget(&Name {
                claims: None,
                ..name.clone()
            });
        }
        let (outcome, lifetime, most) = match outcome {
            Ok(_) if context.access_token_cache_seconds == 0 => return,
            Ok(granted) => {
                let lifetime = u64::from(granted.expires_in);
                let most = if lifetime < 2 * MARGIN {
                    lifetime / 2
                } else {
                    lifetime.saturating_sub(MARGIN)
                };
                let given = Outcome::Given {
                    access_token: AccessToken::new(granted.access_token.expose().into()),
                    token_type: granted.token_type.clone(),
                    scope: granted.scope_or(asked).into(),
                };
                let most = if claims.is_some() {
                    most.min(SHORT)
                } else {
                    most
                };
                (given, lifetime, most)
            }
            Err(error @ (VaultError::User(_) | VaultError::Organisation(_))) => {
                (Outcome::Refused(error.clone()), SHORT, SHORT)
            }
            Err(_) => return,
        };
        let bytes = name.bytes().saturating_add(outcome.bytes());
        let entry = Entry {
            nonce: nonce.clone(),
            key: key.clone(),
            asked: asked.clone(),
            outcome,
            since: context.uptime(),
            most,
            expires_at: context.now().saturating_add(lifetime),
            bytes: bytes.saturating_add(OVERHEAD),
        };
        self.0.borrow_mut().put(name, entry);
    }

    /// Forgets everything.
    #[cfg(test)]
    pub(crate) fn clear(&self) {
        self.0.replace(Self::new().0.into_inner());
    }

    /// Forgets all that was drawn for a user.
    pub(crate) fn forget(&self, user: &User) {
        let mut kept = self.0.borrow_mut();
        let of_user = kept.entries.iter().filter(|(name, _)| name.user == *user);
        let names: Vec<_> = of_user.map(|(name, _)| name.clone()).collect();
        for name in names {
            kept.forget(&name);
        }
    }
}

impl Shelf {
    fn put(&mut self, name: Name, entry: Entry) {
        self.forget(&name);
        if entry.bytes > ROOM {
            return;
        }
        self.bytes = self.bytes.saturating_add(entry.bytes);
        self.entries.put(name, entry);
        while self.bytes > ROOM
            && let Some((_, oldest)) = self.entries.pop_lru()
        {
            self.bytes = self.bytes.saturating_sub(oldest.bytes);
        }
    }

    fn forget(&mut self, name: &Name) {
        if let Some(entry) = self.entries.pop(name) {
            self.bytes = self.bytes.saturating_sub(entry.bytes);
        }
    }
}

impl Name {
    fn of(user: &User, draw: &Draw, claims: Option<&str>) -> Self {
        Self {
            user: user.clone(),
            scope: draw.scope.clone(),
            claims: claims.map(Into::into),
        }
    }

    fn bytes(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        length(&self.scope).saturating_add(length(&self.claims))
    }
}

impl Outcome {
    fn bytes(&self) -> usize {
        match self {
            Self::Given {
                access_token,
                scope,
                ..
            } => access_token.expose().len().saturating_add(scope.len()),
            Self::Refused(VaultError::User(UserError::InteractionRequired(interaction))) => {
                interaction.claims.as_ref().map_or(0, String::len)
            }
            Self::Refused(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::{Interaction, OrganisationError, Reason, System};
    use crate::identity::{Guid, KeyVersion, SecretName, StorageId};
    use crate::simulation::world::World;
    use crate::vault::context::tests::Bench;
    use crate::vault::samples::TENANT;

    fn user(number: usize) -> User {
        User {
            tenant: Guid::parse(TENANT).unwrap(),
            id: StorageId::parse(&format!("{number:032}")).unwrap(),
        }
    }

    fn granted(bytes: usize) -> Rc<Granted> {
        Rc::new(Granted {
            access_token: AccessToken::new("t".repeat(bytes)),
            token_type: "Bearer".into(),
            expires_in: 3599,
            scope: String::new(),
            refresh_token: None,
        })
    }

    struct Desk {
        bench: Bench,
        tokens: AccessTokens,
    }

    impl Desk {
        fn new() -> Self {
            Self {
                bench: Bench::new(&World::new()),
                tokens: AccessTokens::new(),
            }
        }

        fn keep(&self, number: usize, outcome: &Result<Rc<Granted>, VaultError>) {
            let scope = Scope::parse("https://graph.microsoft.com/.default").unwrap();
            let nonce = Nonce::parse("n").unwrap();
            let draw = (&Draw::default(), None);
            let context = self.bench.context();
            let key = (
                SecretName::parse("obo-a").unwrap(),
                KeyVersion::parse(&"1".repeat(32)).unwrap(),
            );
            let under = (&nonce, &key);
            self.tokens
                .keep(&context, &user(number), under, &scope, draw, outcome);
        }

        fn has(&self, number: usize) -> bool {
            let context = self.bench.context();
            let draw = Draw::default();
            let found = self
                .tokens
                .find(&context, &user(number), &draw, None, |_| true, |_| ());
            found.is_some()
        }

        fn bytes(&self) -> usize {
            self.tokens.0.borrow().bytes
        }
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_and_the_last_used_stays() {
        let desk = Desk::new();
        desk.keep(0, &Ok(granted(2048)));
        let most = ROOM / desk.bytes();
        for number in 1..most {
            desk.keep(number, &Ok(granted(2048)));
        }
        assert!(desk.has(0) && desk.bytes() <= ROOM);
        for number in most..most + 10 {
            desk.keep(number, &Ok(granted(2048)));
        }
        assert!(desk.bytes() <= ROOM, "{}", desk.bytes());
        assert!(desk.has(0), "it was used since");
        assert!(!desk.has(1) && desk.has(most + 9));
        // One that is larger than all the room is not kept, and takes nobody's.
        let before = desk.bytes();
        desk.keep(0, &Ok(granted(ROOM)));
        assert!(!desk.has(0) && desk.has(most + 9));
        assert!(desk.bytes() < before);
    }

    #[test]
    fn bytes_are_given_back() {
        let desk = Desk::new();
        for _ in 0..3 {
            desk.keep(0, &Ok(granted(100)));
        }
        let one = desk.bytes();
        desk.keep(1, &Ok(granted(100)));
        assert_eq!(desk.bytes(), 2 * one);
        desk.tokens.forget(&user(0));
        assert_eq!((desk.bytes(), desk.has(0), desk.has(1)), (one, false, true));
        desk.tokens.forget(&user(1));
        assert_eq!(desk.bytes(), 0);
    }

    #[test]
    fn only_a_turn_of_somebody_is_remembered_and_it_counts_its_claims() {
        let desk = Desk::new();
        let claims = |bytes| {
            UserError::InteractionRequired(Interaction {
                claims: Some("c".repeat(bytes)),
                reason: Reason::default(),
            })
        };
        desk.keep(0, &Err(claims(0).into()));
        let least = desk.bytes();
        desk.keep(1, &Err(claims(5000).into()));
        assert_eq!(desk.bytes(), 2 * least + 5000);
        desk.keep(2, &Err(OrganisationError(Reason::default()).into()));
        desk.keep(3, &Err(VaultError::upstream(System::Entra)));
        assert!(desk.has(2) && !desk.has(3));
        // By a clock that was set back a refusal is not older, and by one that is set on it is over.
        desk.bench.world.elapsed.set(Duration::from_secs(SHORT));
        assert!(!desk.has(0));
    }
}
