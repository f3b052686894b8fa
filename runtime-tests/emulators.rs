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

pub mod control;
mod downstream;
mod entra;
mod fault;
mod journal;
mod jwt;
mod key_vault;
mod managed_identity;
mod proxy;
mod server;
mod signing;
mod token_error;

use std::sync::Arc;

use serde_json::{Map, Value};

pub use fault::{Answer, Fault};
pub use journal::{Entry, Target, fingerprint};
pub use key_vault::SecretError;
pub use signing::Signature;

use entra::{Entra, Mint};
use key_vault::KeyVault;
use server::{Server, Shared};

/// The tenant of the demo user, and of the Key Vault.
pub const TENANT: &str = "11111111-1111-4111-8111-111111111111";
/// A second tenant.
pub const OTHER_TENANT: &str = "22222222-2222-4222-8222-222222222222";
/// The demo user.
pub const USER: &str = "44444444-4444-4444-8444-444444444444";
/// A second user.
pub const OTHER_USER: &str = "55555555-5555-4555-8555-555555555555";

/// What is emulated.
#[derive(Clone, Debug)]
pub struct Options {
    /// Port of the control server; 0: any.
    pub control_port: u16,
    /// Port of Entra ID; 0: any.
    pub entra_port: u16,
    /// Port of Key Vault; 0: any.
    pub key_vault_port: u16,
    /// Port of the downstream API; 0: any.
    pub downstream_port: u16,
    /// Port of the managed identity endpoint; 0: any.
    pub identity_port: u16,
    /// Tenants that exist. Each has an encryption key.
    pub tenants: Vec<String>,
    /// Tenant whose Key Vault it is.
    pub key_vault_tenant: String,
    /// The app's client id.
    pub client_id: String,
    /// The app's client secret.
    pub client_secret: String,
    /// Object id of the app's service principal.
    pub service_principal_id: String,
    /// Client id and object id of the platform's managed identity, which the app trusts as a federated credential.
    pub managed_identity_id: String,
    /// What the managed identity endpoint of App Service wants to see.
    pub identity_header: String,
    /// Client id of the application that calls the app.
    pub front_end_id: String,
    /// The demo user's object id; the first tenant is theirs.
    pub demo_user: String,
    /// The app's sweep key.
    pub sweep_key: String,
    /// Graph permissions that users have consented to.
    pub consented: Vec<String>,
    /// Whether tokens carry every consented permission, not only those asked for. Entra ID often does.
    pub over_grant: bool,
    /// Whether On-Behalf-Of yields a refresh token unasked, as Entra ID is said to do (facts §A.2, 1), too.
    pub always_refreshable: bool,
    /// Lifetime of access tokens.
    pub access_token_seconds: u32,
    /// `refresh_in` of token responses.
    pub refresh_in: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            control_port: 0,
            entra_port: 0,
            key_vault_port: 0,
            downstream_port: 0,
            identity_port: 0,
            tenants: vec![TENANT.to_owned(), OTHER_TENANT.to_owned()],
            key_vault_tenant: TENANT.to_owned(),
            client_id: "33333333-3333-4333-8333-333333333333".to_owned(),
            // Random, so that a search for it finds nothing by chance.
            client_secret: entra::random_text(30),
            service_principal_id: "66666666-6666-4666-8666-666666666666".to_owned(),
            managed_identity_id: "88888888-8888-4888-8888-888888888888".to_owned(),
            identity_header: entra::random_text(24),
            front_end_id: "77777777-7777-4777-8777-777777777777".to_owned(),
            demo_user: USER.to_owned(),
            sweep_key: entra::random_text(32),
            consented: ["User.Read", "Mail.Read", "Files.Read"]
                .map(str::to_owned)
                .to_vec(),
            over_grant: false,
            always_refreshable: false,
            access_token_seconds: 3599,
            refresh_in: None,
        }
    }
}

/// The running emulators. They stop when this is dropped.
pub struct Emulators {
    world: Arc<World>,
    control: Server,
    entra: Server,
    key_vault: Server,
    downstream: Server,
    identity: Server,
}

impl Emulators {
    /// Starts all five servers and gives each tenant an encryption key.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let directory = Arc::new(Entra::new(options.clone()));
        let vault = Arc::new(KeyVault::new(options.clone(), directory.clone()));
        let shared = Arc::new(Shared::default());

        let entra = Server::start("Entra ID", options.entra_port, |address| {
            let router = directory.clone().router(format!("http://{address}"));
            server::guarded(router, shared.clone(), Entra::classify)
        });
        let key_vault = Server::start("Key Vault", options.key_vault_port, |_| {
            server::guarded(vault.clone().router(), shared.clone(), |_| Target::KeyVault)
        });
        let downstream = Server::start("the downstream API", options.downstream_port, |_| {
            server::guarded(
                downstream::router(directory.clone()),
                shared.clone(),
                |_| Target::Downstream,
            )
        });
        let identity = Server::start(
            "the managed identity endpoint",
            options.identity_port,
            |_| {
                server::guarded(
                    managed_identity::router(options.clone(), directory.clone()),
                    shared.clone(),
                    |_| Target::ManagedIdentity,
                )
            },
        );
        let (entra, key_vault, downstream, identity) = (
            entra.await?,
            key_vault.await?,
            downstream.await?,
            identity.await?,
        );

        let world = Arc::new(World {
            options,
            entra: directory,
            key_vault: vault,
            shared,
        });
        for tenant in &world.options.tenants {
            world.rotate_key(tenant)?;
        }
        let urls = [
            ("entra", &entra),
            ("key_vault", &key_vault),
            ("downstream", &downstream),
        ]
        .map(|(name, server)| (name, server.origin()));
        let control = Server::start("the control port", world.options.control_port, |_| {
            control::router(world.clone(), urls)
        });
        Ok(Self {
            control: control.await?,
            world,
            entra,
            key_vault,
            downstream,
            identity,
        })
    }

    /// Starts a proxy that has the emulators under the real names, over TLS.
    pub async fn proxy(&self) -> anyhow::Result<Proxy> {
        let World {
            entra,
            key_vault,
            shared,
            ..
        } = &*self.world;
        let upstreams = proxy::Upstreams {
            login: server::guarded(
                entra.clone().router(entra::LOGIN.to_owned()),
                shared.clone(),
                Entra::classify,
            ),
            key_vault: server::guarded(key_vault.clone().router(), shared.clone(), |_| {
                Target::KeyVault
            }),
            graph: server::guarded(downstream::router(entra.clone()), shared.clone(), |_| {
                Target::Downstream
            }),
        };
        Ok(Proxy(proxy::Proxy::start(upstreams).await?))
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

    /// The app's settings, for a run against these emulators.
    #[must_use]
    pub fn settings(&self) -> Vec<(String, String)> {
        let options = self.options();
        [
            ("client_id", options.client_id.clone()),
            ("client_secret", options.client_secret.clone()),
            ("tenants", options.tenants.join(",")),
            ("authority", self.authority()),
            ("key_vault_url", self.key_vault_url()),
            ("sweep_key", options.sweep_key.clone()),
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
        self.world
            .entra
            .refresh_token(&tenant, &self.options().demo_user)
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

    /// Signs with a new key from now on. The last one stays published, the one before it does not.
    pub fn rotate_signing_keys(&self) {
        self.world.entra.rotate_signing_keys();
    }

    /// Lets requests fail.
    pub fn fault(&self, fault: Fault) {
        self.world.shared.faults.add(fault);
    }

    /// Forgets faults that have not met a request.
    pub fn clear_faults(&self) {
        self.world.shared.faults.clear();
    }

    /// How many requests faults can still meet.
    #[must_use]
    pub fn faults_left(&self) -> u32 {
        self.world.shared.faults.left()
    }

    /// What reached Entra ID, Key Vault and the downstream API, oldest first.
    #[must_use]
    pub fn journal(&self) -> Vec<Entry> {
        self.world.shared.journal.read()
    }

    /// Empties the journal.
    pub fn clear_journal(&self) {
        self.world.shared.journal.clear();
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

/// A caller's token in the making.
pub struct Caller<'a> {
    entra: &'a Entra,
    mint: Mint,
}

impl Caller<'_> {
    /// Of another tenant.
    #[must_use]
    pub fn tenant(mut self, tenant: &str) -> Self {
        tenant.clone_into(&mut self.mint.tenant);
        self
    }

    /// Of another user.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.mint.user);
        self
    }

    /// A v1 token (facts §B).
    #[must_use]
    pub fn v1(mut self) -> Self {
        self.mint.version = 1;
        self
    }

    /// An app-only token with these roles, without `scp`.
    #[must_use]
    pub fn app(mut self, roles: &[&str]) -> Self {
        self.mint.roles = Some(roles.iter().map(|role| (*role).to_owned()).collect());
        self
    }

    /// With a claim of another value; `null` leaves the claim out.
    #[must_use]
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.mint.claims.insert(name.to_owned(), value.into());
        self
    }

    /// Signed otherwise.
    #[must_use]
    pub fn signature(mut self, signature: Signature) -> Self {
        self.mint.signature = signature;
        self
    }

    /// The token.
    #[must_use]
    pub fn mint(self) -> String {
        self.entra.mint(&self.mint)
    }
}

/// A proxy for clients that insist on the real names; stops when dropped.
pub struct Proxy(proxy::Proxy);

impl Proxy {
    /// What `HTTPS_PROXY` is to be.
    #[must_use]
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Writes the certificate that the client under test, and nobody else, is to trust.
    pub fn write_authority(&self, path: &std::path::Path) -> anyhow::Result<()> {
        self.0.write_authority(path)
    }
}

/// What the servers share.
struct World {
    options: Options,
    entra: Arc<Entra>,
    key_vault: Arc<KeyVault>,
    shared: Arc<Shared>,
}

impl World {
    fn mint(&self) -> Mint {
        Mint {
            tenant: self.options.tenants.first().cloned().unwrap_or_default(),
            user: self.options.demo_user.clone(),
            version: 2,
            roles: None,
            claims: Map::new(),
            signature: Signature::Good,
        }
    }

    fn rotate_key(&self, tenant: &str) -> Result<String, SecretError> {
        self.key_vault.put_key(&key_name(tenant))
    }
}

/// Name of a tenant's encryption key, as the setting `secret_id_template` has it by default.
#[must_use]
pub fn key_name(tenant: &str) -> String {
    format!("obo-{tenant}")
}
