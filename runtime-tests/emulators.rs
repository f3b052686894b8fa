//! Emulators of the systems that behalf talks to, each on a port of 127.0.0.1, and on request behind a proxy under their
//! real names.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use runtime_tests::emulators::{Emulators, Options};
//!
//! let emulators = Emulators::start(Options::default()).await?;
//! let token = emulators.caller().mint();
//! println!("{} {}", emulators.authority(), token);
//! emulators.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! What a handle does, the control port does over HTTP: [`control`].

mod bearer;
mod caller;
pub mod control;
mod downstream;
mod entra;
mod fault;
mod gate;
mod journal;
mod jwt;
mod key_vault;
mod managed_identity;
mod options;
mod pipelines;
mod proxy;
mod random;
mod server;
mod signing;
mod world;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

pub use caller::Caller;
pub use downstream::EVENT;
pub use fault::{Answer, Fault};
pub use journal::{Entry, Target, fingerprint};
pub use key_vault::SecretError;
pub use options::{OTHER_TENANT, OTHER_USER, Options, TENANT, USER, key_name};
pub use proxy::Proxy;
pub use signing::Signature;

use entra::Entra;
use gate::Gate;
use key_vault::KeyVault;
use proxy::Upstreams;
use server::Server;
use world::World;

/// The running emulators. They stop when this is dropped, and panic then if they broke a loop that nobody meant:
/// [`Options::provokes_loop`].
pub struct Emulators {
    world: Arc<World>,
    _unlooped: Option<Unlooped>,
    control: Server,
    entra: Server,
    key_vault: Server,
    downstream: Server,
    identity: Server,
}

impl Emulators {
    /// Starts all five servers and gives each tenant an encryption key.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let entra = Arc::new(Entra::new(options.clone()));
        let world = Arc::new(World {
            key_vault: Arc::new(KeyVault::new(&options, entra.clone())),
            entra,
            gate: Arc::new(Gate::default()),
            options,
        });
        for tenant in &world.options.tenants {
            world.rotate_key(tenant)?;
        }
        let (options, here) = (&world.options, &world);
        let (entra, key_vault, downstream, identity) = (
            Server::start("Entra ID", options.entra_port, |address| {
                here.login(format!("http://{address}"))
            })
            .await?,
            Server::start("Key Vault", options.key_vault_port, |_| here.key_vault()).await?,
            Server::start("the downstream API", options.downstream_port, |_| {
                here.downstream()
            })
            .await?,
            Server::start(
                "the managed identity endpoint",
                options.identity_port,
                |_| here.identity(),
            )
            .await?,
        );
        let urls = [
            ("entra", &entra),
            ("key_vault", &key_vault),
            ("downstream", &downstream),
        ]
        .map(|(name, server)| (name, server.origin()));
        let control = Server::start("the control port", options.control_port, |_| {
            control::router(world.clone(), urls)
        });
        Ok(Self {
            control: control.await?,
            _unlooped: (!world.options.provokes_loop).then(|| Unlooped(world.clone())),
            world,
            entra,
            key_vault,
            downstream,
            identity,
        })
    }

    /// Starts a proxy that has the emulators under the real names, over TLS.
    pub async fn proxy(&self) -> anyhow::Result<Proxy> {
        Proxy::start(Upstreams {
            login: self.world.login(entra::LOGIN.to_owned()),
            key_vault: self.world.key_vault(),
            graph: self.world.downstream(),
        })
        .await
    }

    /// Stops the servers, and waits until their ports are free.
    pub async fn stop(self) {
        for server in [
            self.control,
            self.entra,
            self.key_vault,
            self.downstream,
            self.identity,
        ] {
            server.stop().await;
        }
    }

    /// What was asked for at the start, with random values filled in.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.world.options
    }

    /// Origin of Entra ID: the setting `authority`.
    #[must_use]
    pub fn authority(&self) -> String {
        self.entra.origin()
    }

    /// Origin of Key Vault: the setting `key_vault_url`.
    #[must_use]
    pub fn key_vault_url(&self) -> String {
        self.key_vault.origin()
    }

    /// Origin of the downstream API.
    #[must_use]
    pub fn downstream_url(&self) -> String {
        self.downstream.origin()
    }

    /// Origin of the control port.
    #[must_use]
    pub fn control_url(&self) -> String {
        self.control.origin()
    }

    /// The app's settings, for a run against these emulators. The front end and the background job may draw whatever Graph
    /// has, and call what the API `graph` lets be called of the downstream API, each in its own way.
    #[must_use]
    pub fn settings(&self) -> Vec<(String, String)> {
        let options = self.options();
        let grant = |client: &str, callers: &str| json!({"client": client, "callers": callers, "resource": "https://graph.microsoft.com", "scopes": ["*"], "apis": ["graph"]});
        let downstream = self.downstream_url();
        // Mail is left out, though the access tokens would do for it.
        let allow = [
            "GET /v1.0/me",
            "GET /v1.0/me/calendar/**",
            "POST /v1.0/me/calendar/events",
            "GET /v1.0/me/drive/items/*/content",
        ];
        let scope = "https://graph.microsoft.com/.default";
        let apis = json!({"graph": {"url": downstream, "scope": scope, "allow": allow}});
        let grants = json!([
            grant(&options.front_end_id, "delegated"),
            grant(&options.job_id, "app"),
        ]);
        [
            ("client_id", options.client_id.clone()),
            ("client_secret", options.client_secret.clone()),
            ("tenants", options.tenants.join(",")),
            ("authority", self.authority()),
            ("key_vault_url", self.key_vault_url()),
            ("sweep_key", options.sweep_key.clone()),
            ("grants", grants.to_string()),
            ("apis", apis.to_string()),
            ("api_origin_1", downstream),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// The settings of a credential of this kind: `certificate`, `managed-identity` (App Service), `federated-token`.
    #[must_use]
    pub fn credential(&self, kind: &str) -> Vec<(String, String)> {
        let app = signing::app_certificate();
        let mut settings = vec![
            ("credential", kind.to_owned()),
            ("client_secret", String::new()),
        ];
        match kind {
            "certificate" => settings.extend([
                ("certificate_pem", app.certificate_pem()),
                ("private_key_pem", app.private_key_pem()),
            ]),
            "federated-token" => {
                settings.push(("federated_token", self.world.entra.federated_token()));
            }
            _ => settings.extend(self.app_service()),
        }
        settings
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// The settings of the managed identity endpoint of App Service.
    #[must_use]
    pub fn app_service(&self) -> Vec<(&'static str, String)> {
        let origin = self.identity.origin();
        vec![
            (
                "identity_endpoint",
                format!("{origin}{}", managed_identity::APP_SERVICE),
            ),
            ("identity_header", self.options().identity_header.clone()),
            ("identity_origin", origin),
        ]
    }

    /// The settings of a metadata service of virtual machines.
    #[must_use]
    pub fn metadata_service(&self) -> Vec<(&'static str, String)> {
        let origin = self.identity.origin();
        vec![
            (
                "identity_endpoint",
                format!("{origin}{}", managed_identity::IMDS),
            ),
            ("identity_origin", origin),
        ]
    }

    /// What GitHub Actions puts into the environment of a job that may have an OIDC token.
    #[must_use]
    pub fn github_job(&self) -> Vec<(&'static str, String)> {
        let url = format!(
            "{}{}?api-version=2.0",
            self.identity.origin(),
            pipelines::GITHUB
        );
        let token = self.options().job_token.clone();
        vec![
            ("ACTIONS_ID_TOKEN_REQUEST_URL", url),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", token),
        ]
    }

    /// What Azure Pipelines puts there, of a job with a service connection.
    #[must_use]
    pub fn azure_job(&self) -> Vec<(&'static str, String)> {
        let url = format!("{}{}", self.identity.origin(), pipelines::AZURE);
        let connection = pipelines::CONNECTION.to_owned();
        vec![
            ("SYSTEM_OIDCREQUESTURI", url),
            ("SYSTEM_ACCESSTOKEN", self.options().job_token.clone()),
            ("AZURESUBSCRIPTION_SERVICE_CONNECTION_ID", connection),
        ]
    }

    /// A caller's token for the app, to be varied and minted: by default, a good one of the demo user.
    #[must_use]
    pub fn caller(&self) -> Caller<'_> {
        Caller {
            entra: &self.world.entra,
            mint: self.world.mint(),
        }
    }

    /// A refresh token of the demo user, as from an earlier sign-in.
    #[must_use]
    pub fn refresh_token(&self) -> String {
        let tenant = self.options().tenants.first().cloned().unwrap_or_default();
        self.refresh_token_of(&tenant, &self.options().demo_user)
    }

    /// The same of any user.
    #[must_use]
    pub fn refresh_token_of(&self, tenant: &str, user: &str) -> String {
        self.world.entra.refresh_token(tenant, user)
    }

    /// Sets a new version of a tenant's encryption key; returns the version.
    pub fn rotate_key(&self, tenant: &str) -> Result<String, SecretError> {
        self.world.rotate_key(tenant)
    }

    /// Sets a secret; returns the version.
    pub fn put_secret(&self, name: &str, value: &str) -> Result<String, SecretError> {
        self.world.key_vault.put(name, value)
    }

    /// The value of a version of a Key Vault secret, none if there is no such version.
    #[must_use]
    pub fn secret(&self, name: &str, version: &str) -> Option<String> {
        self.world.key_vault.value(name, version)
    }

    /// Lets an app do no more with secrets than this from now on: `get`, `set`, `update`, `list`, `delete`, `recover`, `purge`.
    /// Who is not named may do everything.
    pub fn permit(&self, client_id: &str, rights: &[&'static str]) {
        self.world.key_vault.permit(client_id, rights);
    }

    /// Has it that the newest version of a secret was made at this Unix time.
    pub fn set_secret_created(&self, name: &str, created: i64) -> Result<(), SecretError> {
        self.world.key_vault.made_at(name, created)
    }

    /// Whether a version of a secret is enabled; none: there is no such version.
    #[must_use]
    pub fn is_secret_enabled(&self, name: &str, version: &str) -> Option<bool> {
        self.world.key_vault.is_enabled(name, version)
    }

    /// Whether a secret is deleted and can be recovered.
    #[must_use]
    pub fn is_secret_deleted(&self, name: &str) -> bool {
        self.world.key_vault.is_deleted(name)
    }

    /// Turns Key Vault's purge protection on.
    pub fn protect_from_purge(&self) {
        self.world.key_vault.protect();
    }

    /// The newest version of a secret as Key Vault tells of it, without its value.
    #[must_use]
    pub fn newest_version(&self, name: &str) -> Option<Value> {
        self.world.key_vault.newest(name)
    }

    /// Enables or disables a version of a secret (none: the newest).
    pub fn set_secret_enabled(
        &self,
        name: &str,
        version: Option<&str>,
        enabled: bool,
    ) -> Result<(), SecretError> {
        self.world.key_vault.set_enabled(name, version, enabled)
    }

    /// From when and until when the newest version of a secret is valid, in Unix seconds. What is none stays.
    pub fn set_secret_validity(
        &self,
        name: &str,
        nbf: Option<i64>,
        exp: Option<i64>,
    ) -> Result<(), SecretError> {
        self.world.key_vault.set_validity(name, nbf, exp)
    }

    /// Deletes a secret, all versions.
    pub fn delete_secret(&self, name: &str) -> Result<(), SecretError> {
        self.world.key_vault.delete(name)
    }

    /// Brings a deleted secret back.
    pub fn recover_secret(&self, name: &str) -> Result<(), SecretError> {
        self.world.key_vault.recover(name)
    }

    /// Revokes a user's sessions: refresh tokens of earlier sign-ins are dead from now on.
    pub fn revoke(&self, tenant: &str, user: &str) {
        self.world.entra.revoke(tenant, user);
    }

    /// Disables or enables a user's account.
    pub fn set_user_enabled(&self, tenant: &str, user: &str, enabled: bool) {
        self.world.entra.set_enabled(tenant, user, enabled);
    }

    /// Has a user's grants refused with an AADSTS code; none: no more.
    pub fn refuse(&self, tenant: &str, user: &str, code: Option<u32>) {
        self.world.entra.refuse(tenant, user, code);
    }

    /// Whether Entra ID answers a user's identical requests with AADSTS50196 from the 16th in 5 minutes on, as it does from the
    /// start. The bench has it off, whose draws are to be Entra ID's each.
    pub fn refuse_loops(&self, refuse: bool) {
        self.world.entra.refuse_loops(refuse);
    }

    /// How many requests Entra ID has taken for a loop.
    #[must_use]
    pub fn loops_broken(&self) -> usize {
        self.world.entra.loops_broken()
    }

    /// Lets time pass on the clock by which Entra ID tells a loop, and on no other.
    pub fn pass(&self, time: Duration) {
        self.world.entra.pass(time);
    }

    /// Signs with a new key from now on. The last one stays published, the one before it does not.
    pub fn rotate_signing_keys(&self) {
        self.world.entra.rotate_signing_keys();
    }

    /// Lets requests fail.
    pub fn fault(&self, fault: Fault) {
        self.world.gate.faults.add(fault);
    }

    /// Forgets faults that have not met a request.
    pub fn clear_faults(&self) {
        self.world.gate.faults.clear();
    }

    /// How many requests faults can still meet.
    #[must_use]
    pub fn faults_left(&self) -> u32 {
        self.world.gate.faults.left()
    }

    /// What reached Entra ID, Key Vault and the downstream API, oldest first.
    #[must_use]
    pub fn journal(&self) -> Vec<Entry> {
        self.world.gate.journal.read()
    }

    /// The same, and empties it. A long run that looks at it again and again misses nothing so.
    #[must_use]
    pub fn take_journal(&self) -> Vec<Entry> {
        self.world.gate.journal.take()
    }

    /// Empties the journal.
    pub fn clear_journal(&self) {
        self.world.gate.journal.clear();
    }

    /// Every secret there is, whole: tokens issued and minted, values of secrets, the app's credential, assertions and sweep
    /// key.
    /// For a search that must find none of them.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        let options = self.options();
        let mut secrets = vec![
            options.client_secret.clone(),
            options.sweep_key.clone(),
            options.identity_header.clone(),
            options.job_token.clone(),
            options.operator_secret.clone(),
        ];
        secrets.extend(
            signing::app_certificate()
                .private_key_pem()
                .lines()
                .filter(|line| line.len() == 64)
                .map(str::to_owned),
        );
        secrets.extend(self.world.entra.issued());
        secrets.extend(self.world.key_vault.values());
        // A case may set a secret to a text that is in anything.
        secrets.retain(|secret| secret.len() >= 16);
        secrets
    }
}

/// No loop is broken while this lives.
struct Unlooped(Arc<World>);

impl Drop for Unlooped {
    fn drop(&mut self) {
        let broken = self.0.entra.loops_broken();
        assert!(
            broken == 0 || thread::panicking(),
            "Entra ID has taken {broken} requests for a loop (AADSTS50196): the same of a user more than 15 times in 5 minutes"
        );
    }
}
