//! What one call of the vault has at hand.

use std::cell::OnceCell;
use std::ops::Deref;
use std::rc::Rc;

use http::{HeaderName, HeaderValue, Request, Response, Uri};
use serde_json::{Value, json};

use crate::deadline::{Deadline, LONGEST};
use crate::error::{System, VaultError};
use crate::identity::Guid;
use crate::port::{Background, Clock, Config, Http, HttpError, Log, Random, SecretBody, Timer};
use crate::vault::clock_check::ClockCheck;
use crate::vault::outbound::{Repeat, send};
use crate::vault::port::Terms;
use crate::vault::settings::Settings;

/// What Entra ID's logs know a request by, so that its support can find it.
const ENTRA_REQUEST_ID: HeaderName = HeaderName::from_static("client-request-id");
/// The same of Key Vault (<https://learn.microsoft.com/rest/api/keyvault>).
const KEY_VAULT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");

/// What a vault needs of the world.
pub trait Environment: Http + Clock + Timer + Random + Config + Log + Background + 'static {}
impl<E: Http + Clock + Timer + Random + Config + Log + Background + 'static> Environment for E {}

/// One call of the vault: the world, the settings that hold for all of it, which it derefs to, and when it has to be
/// over. Every part of the vault is handed this, and so none needs to know the vault.
pub(crate) struct Context<'a, E> {
    /// The world.
    pub(crate) env: &'a E,
    /// When the call has to be over.
    pub(crate) deadline: Deadline,
    settings: Rc<Settings>,
    clock_check: &'a ClockCheck,
    correlation_id: OnceCell<Guid>,
}

/// What a call goes by, for what goes on beside it.
pub(crate) struct Call {
    deadline: Deadline,
    settings: Rc<Settings>,
    correlation_id: OnceCell<Guid>,
}

impl<E> Deref for Context<'_, E> {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.settings
    }
}

impl<'a, E: Environment> Context<'a, E> {
    /// Of one call.
    pub(crate) fn new(
        env: &'a E,
        clock_check: &'a ClockCheck,
        settings: Rc<Settings>,
        terms: Terms,
    ) -> Self {
        let correlation_id = terms
            .correlation_id
            .map_or_else(OnceCell::new, OnceCell::from);
        Self {
            env,
            deadline: Deadline::within(env, terms.within.min(LONGEST)),
            settings,
            clock_check,
            correlation_id,
        }
    }

    /// What this call goes by.
    pub(crate) fn call(&self) -> Call {
        Call {
            deadline: self.deadline,
            settings: Rc::clone(&self.settings),
            correlation_id: self.correlation_id.clone(),
        }
    }

    /// Of what goes on beside a call.
    pub(crate) fn beside(env: &'a E, clock_check: &'a ClockCheck, call: Call) -> Self {
        let Call {
            deadline,
            settings,
            correlation_id,
        } = call;
        Self {
            env,
            deadline,
            settings,
            clock_check,
            correlation_id,
        }
    }

    /// Unix seconds.
    pub(crate) fn now(&self) -> u64 {
        self.env.now()
    }

    /// Seconds of a clock that nobody sets, for what has an age. The wall clock may be set while it is kept.
    pub(crate) fn uptime(&self) -> u64 {
        self.env.elapsed().as_secs()
    }

    /// Writes a line for the operator, with what others know the requests of this call by.
    pub(crate) fn log(&self, mut line: Value) {
        if let Some(id) = self.correlation_id.get()
            && let Some(line) = line.as_object_mut()
        {
            line.insert("correlation_id".into(), id.as_str().into());
        }
        self.env.line(&line.to_string());
    }

    /// Sends a request to a system, and compares the clock with its answer.
    ///
    /// # Errors
    /// [`VaultError::Upstream`]; the setting that names an address which the host does not allow.
    pub(crate) async fn send(
        &self,
        mut request: Request<SecretBody>,
        longest: usize,
        system: System,
    ) -> Result<Response<SecretBody>, VaultError> {
        let name = match system {
            System::Entra => Some(ENTRA_REQUEST_ID),
            System::KeyVault => Some(KEY_VAULT_REQUEST_ID),
            System::SigningKeys | System::ManagedIdentity => None,
        };
        if let Some(name) = name {
            let id = self.correlation_id.get_or_init(|| Guid::random(self.env));
            if let Ok(id) = HeaderValue::try_from(id.as_str()) {
                request.headers_mut().insert(name, id);
            }
        }
        let (repeat, setting) = match system {
            System::Entra | System::SigningKeys | System::KeyVault => {
                (Repeat::Outage, system.setting())
            }
            System::ManagedIdentity => (Repeat::ManagedIdentity, "identity_origin"),
        };
        let uri = request.uri().clone();
        let sent = send(self.env, request, longest, self.deadline, repeat).await;
        let response = sent.map_err(|error| {
            self.log(
                json!({"event": "no_answer", "system": system.to_string(), "origin": origin(&uri), "reason": error.to_string()}),
            );
            match error {
                HttpError::Denied => VaultError::setting(
                    setting,
                    "names a host that spin.toml does not allow (allowed_outbound_hosts)",
                ),
                HttpError::Unreachable | HttpError::TimedOut | HttpError::TooLong => {
                    VaultError::upstream(system)
                }
            }
        })?;
        self.clock_check.compare(&response, self.now());
        Ok(response)
    }
}

/// Where a request goes, without its path.
fn origin(uri: &Uri) -> String {
    let (scheme, host) = (uri.scheme_str(), uri.host());
    let port = uri.port().map(|port| format!(":{port}"));
    let port = port.unwrap_or_default();
    format!(
        "{}://{}{port}",
        scheme.unwrap_or_default(),
        host.unwrap_or_default()
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::simulation::world::Shared;

    /// What a part of the vault is tried with: a world, and calls in it.
    pub(crate) struct Bench {
        pub(crate) world: Shared,
        clock_check: ClockCheck,
    }

    impl Bench {
        pub(crate) fn new(world: &Shared) -> Self {
            Self {
                world: Rc::clone(world),
                clock_check: ClockCheck::default(),
            }
        }

        /// A call that begins now, by the settings that the world has now.
        pub(crate) fn context(&self) -> Context<'_, Shared> {
            let settings = Rc::new(Settings::read(&self.world).unwrap());
            Context::new(&self.world, &self.clock_check, settings, LONGEST.into())
        }
    }
}
