//! What is emulated, and by what names.

use super::random;

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
    /// Client id of the application that operators' commands are.
    pub operator_id: String,
    /// Its client secret.
    pub operator_secret: String,
    /// App roles at the app itself that its own service principal has, the operators', and the platform's managed identity.
    pub app_roles: Vec<String>,
    /// Application permissions at Microsoft Graph that they have.
    pub graph_roles: Vec<String>,
    /// Object id of the app's service principal.
    pub service_principal_id: String,
    /// Client id and object id of the platform's managed identity, which the app trusts as a federated credential.
    pub managed_identity_id: String,
    /// What the managed identity endpoint of App Service wants to see.
    pub identity_header: String,
    /// What a job of a pipeline shows to get its OIDC token.
    pub job_token: String,
    /// Client id of the application that calls the app.
    pub front_end_id: String,
    /// Client id of the background job that calls the app.
    pub job_id: String,
    /// Object id of the background job's service principal: who the job's own tokens are about.
    pub job_principal_id: String,
    /// The demo user's object id; the first tenant is theirs.
    pub demo_user: String,
    /// The app's sweep key.
    pub sweep_key: String,
    /// Graph permissions that users have consented to.
    pub consented: Vec<String>,
    /// Whether tokens carry every consented permission, not only those asked for. Entra ID often does.
    pub over_grant: bool,
    /// Whether On-Behalf-Of yields a refresh token unasked, too, as Microsoft's own libraries say that Entra ID does.
    pub always_refreshable: bool,
    /// Lifetime of access tokens.
    pub access_token_seconds: u32,
    /// `refresh_in` of token responses.
    pub refresh_in: Option<u32>,
    /// Whether a loop of requests is meant. If not, one that Entra ID breaks (AADSTS50196) is a mistake of whoever runs the
    /// emulators: they panic when they are dropped.
    pub provokes_loop: bool,
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
            client_secret: random::text(30),
            operator_id: "dddddddd-dddd-4ddd-8ddd-dddddddddddd".to_owned(),
            operator_secret: random::text(30),
            app_roles: ["Behalf.Read", "Behalf.Admin"].map(str::to_owned).to_vec(),
            graph_roles: vec!["User.RevokeSessions.All".to_owned()],
            service_principal_id: "66666666-6666-4666-8666-666666666666".to_owned(),
            managed_identity_id: "88888888-8888-4888-8888-888888888888".to_owned(),
            identity_header: random::text(24),
            job_token: random::text(24),
            front_end_id: "77777777-7777-4777-8777-777777777777".to_owned(),
            job_id: "99999999-9999-4999-8999-999999999999".to_owned(),
            job_principal_id: "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa".to_owned(),
            demo_user: USER.to_owned(),
            sweep_key: random::text(32),
            consented: [
                "User.Read",
                "Mail.Read",
                "Files.Read",
                "Calendars.ReadWrite",
            ]
            .map(str::to_owned)
            .to_vec(),
            over_grant: false,
            always_refreshable: false,
            access_token_seconds: 3599,
            refresh_in: None,
            provokes_loop: false,
        }
    }
}

/// Name of a tenant's encryption key, as the setting `secret_id_template` has it by default.
#[must_use]
pub fn key_name(tenant: &str) -> String {
    format!("obo-{tenant}")
}
