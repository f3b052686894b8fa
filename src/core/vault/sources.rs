//! Where keys and tokens come from, and what is fetched ahead: begun before anybody needs it, beside what has to come first.
//!
//! Nobody waits for it. Whoever needs it later finds it, or waits for it as for any fetch that is under way; and if it comes
//! to nothing, it is fetched as if nothing had been begun. DESIGN.md, "What does a cold instance wait for?", says what may be
//! begun when, and how often.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;

use crate::error::VaultError;
use crate::identity::TenantId;
use crate::vault::clock_check::ClockCheck;
use crate::vault::context::{Context, Environment};
use crate::vault::database::{DatabaseToken, DatabaseTokens};
use crate::vault::key_ring::KeyRing;
use crate::vault::token_client::TokenClient;

/// Seconds between two tries to get this app's token for Key Vault ahead. Who comes with a token of his own making has it begun.
const PAUSE: u64 = 300;

/// What asks other systems, and the world that it asks them in: what goes on beside a call needs them, too.
pub(super) struct Sources<E> {
    pub(super) env: E,
    pub(super) clock_check: ClockCheck,
    pub(super) token_client: TokenClient,
    pub(super) key_ring: KeyRing,
    database_tokens: DatabaseTokens,
    /// Until when this app's token for Key Vault is not asked for ahead again, by the clock that nobody sets.
    pause_until: Cell<u64>,
}

impl<E: Environment> Sources<E> {
    /// None asked yet.
    pub(super) fn new(env: E) -> Rc<Self> {
        Rc::new(Self {
            env,
            clock_check: ClockCheck::default(),
            token_client: TokenClient::new(),
            key_ring: KeyRing::new(),
            database_tokens: DatabaseTokens::new(),
            pause_until: Cell::default(),
        })
    }

    /// Finds out who calls. If that takes time, the signing keys are what it waits for, because a token that is not for this app
    /// waits for nothing; and meanwhile this app's own token for Key Vault is asked for, which has nothing to do with the caller.
    pub(super) async fn while_verifying<T>(
        self: &Rc<Self>,
        context: &Context<'_, E>,
        caller: impl Future<Output = T>,
    ) -> T {
        let mut caller = pin!(caller);
        let mut waits = false;
        poll_fn(|task| {
            let polled = caller.as_mut().poll(task);
            if polled.is_pending() && !std::mem::replace(&mut waits, true) {
                self.begin_token(context);
            }
            polled
        })
        .await
    }

    fn begin_token(self: &Rc<Self>, context: &Context<'_, E>) {
        let now = context.uptime();
        if now < self.pause_until.get() || self.token_client.has_key_vault_token(context) {
            return;
        }
        self.pause_until.set(now.saturating_add(PAUSE));
        self.begin(context, async |sources, context| {
            let token = sources.key_ring.token(context, &sources.token_client, None);
            drop(token.await);
        });
    }

    /// Asks for the newest key of a tenant, for somebody who may draw there and whose record is being read meanwhile: mostly it
    /// is the key of that record. Not if a key of the tenant was asked for before, as long ago as keys are kept.
    pub(super) fn begin_key(self: &Rc<Self>, context: &Context<'_, E>, tenant: &TenantId) {
        if self.key_ring.has_asked(context, tenant) {
            return;
        }
        let tenant = tenant.clone();
        self.begin(context, async move |sources, context| {
            let newest = sources
                .key_ring
                .newest(context, &sources.token_client, &tenant);
            drop(newest.await);
        });
    }

    /// The managed identity's token for the database. Near its end a new one is asked for beside the call, and the old one serves as
    /// long as it is good: so nobody waits, and an endpoint that fails for a while is nobody's trouble.
    pub(super) async fn database_token(
        self: &Rc<Self>,
        context: &Context<'_, E>,
    ) -> Result<Rc<DatabaseToken>, VaultError> {
        let Some(token) = self.database_tokens.kept(context) else {
            return self.database_tokens.fetch(context).await;
        };
        if self.database_tokens.begins_renewal(context, &token) {
            self.begin(context, async |sources, context| {
                drop(sources.database_tokens.fetch(context).await);
            });
        }
        Ok(token)
    }

    fn begin<F>(self: &Rc<Self>, context: &Context<'_, E>, task: F)
    where
        F: AsyncFnOnce(&Self, &Context<'_, E>) + 'static,
    {
        let (sources, call) = (Rc::clone(self), context.call());
        self.env.begin(async move {
            let context = Context::beside(&sources.env, &sources.clock_check, call);
            task(&sources, &context).await;
        });
    }
}
