//! Issuers of callers' tokens: how Entra ID names itself in the claim `iss`.
//!
//! It names itself by tenant. A v2 token has `https://login.microsoftonline.com/{tid}/v2.0`, a v1 token
//! `https://sts.windows.net/{tid}/` with a slash at its end (Microsoft Learn, "Access tokens in the Microsoft identity
//! platform", <https://learn.microsoft.com/entra/identity-platform/access-tokens#validate-the-issuer>).

use url::Url;

use crate::identity::TenantId;

/// An accepted `iss`, in which `{tid}` or `{tenantid}` stands for the token's tenant.
///
/// ```
/// use behalf_core::identity::TenantId;
/// use behalf_core::vault::issuer::IssuerTemplate;
///
/// let tenant = TenantId::parse("11111111-1111-1111-1111-111111111111").unwrap();
/// let template = IssuerTemplate::new("https://login.microsoftonline.com/{tenantid}/v2.0");
/// assert!(template.matches(&format!("https://login.microsoftonline.com/{tenant}/v2.0"), &tenant));
/// assert!(!template.matches("https://login.microsoftonline.com/common/v2.0", &tenant));
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IssuerTemplate(String);

impl IssuerTemplate {
    /// Takes one from the settings, where the tenant is `{tid}`, or from a signing key, where it is `{tenantid}`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.replace("{tenantid}", "{tid}"))
    }

    /// Whether it stands for the issuers of many tenants.
    #[must_use]
    pub fn is_template(&self) -> bool {
        self.0.contains("{tid}")
    }

    /// Whether `issuer` is the issuer of `tenant`.
    #[must_use]
    pub fn matches(&self, issuer: &str, tenant: &TenantId) -> bool {
        self.0.replace("{tid}", tenant.as_str()) == issuer
    }
}

/// Whether a URL is one of External ID's or Azure AD B2C's, whose keys are each tenant's own: `{name}.ciamlogin.com`,
/// `{name}.b2clogin.com`, and the same under the endings of other clouds
/// (<https://learn.microsoft.com/entra/external-id/customers/concept-custom-url-domain>,
/// <https://learn.microsoft.com/azure/active-directory-b2c/b2clogin>).
pub(crate) fn is_external(url: &Url) -> bool {
    let domain = url.domain().unwrap_or_default();
    let second = domain.rsplit('.').nth(1);
    matches!(second, Some("ciamlogin" | "b2clogin"))
}
