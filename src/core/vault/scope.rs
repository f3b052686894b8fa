//! Scopes: what an access token is asked for (RFC 6749 §3.3).

use crate::error::{CallerError, Reason};
use crate::identity::Guid;

/// Longest list of scopes that is taken from a caller, in bytes: it is sent on, logged, and kept.
const LONGEST: usize = 2048;

/// Scopes of one resource, each written in full: `{resource}/{permission}`.
///
/// ```
/// use behalf_core::vault::scope::Scope;
///
/// let scope = Scope::parse("https://graph.microsoft.com/User.Read https://graph.microsoft.com/Mail.Read").unwrap();
/// assert_eq!(scope.resource(), "https://graph.microsoft.com");
/// assert_eq!(scope.permissions().collect::<Vec<_>>(), ["User.Read", "Mail.Read"]);
/// assert_eq!(Scope::parse("https://graph.microsoft.com/User.Read https://vault.azure.net/user_impersonation"), None);
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scope {
    text: String,
    resource: String,
}

impl Scope {
    /// Reads a space-separated list. Names without a resource (`User.Read`) are refused: which resource Entra ID takes
    /// them for depends on the cloud, and nothing is derived here.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut resources = text.split_ascii_whitespace().map(|scope| {
            let (resource, permission) = scope.rsplit_once('/')?;
            (is_printable(scope) && !resource.is_empty() && !permission.is_empty())
                .then_some(resource)
        });
        let resource = resources.next()??;
        resources
            .all(|other| other.is_some_and(|other| other.eq_ignore_ascii_case(resource)))
            .then(|| Self {
                text: text.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
                resource: resource.into(),
            })
    }

    /// Reads what a caller asks for.
    ///
    /// # Errors
    /// [`CallerError::InvalidScope`], also for what Entra ID would refuse anyhow. So what a caller puts there by mistake,
    /// such as a key in base64, is never written down as a scope.
    pub fn asked(text: &str) -> Result<Self, CallerError> {
        Some(text)
            .filter(|text| text.len() <= LONGEST)
            .and_then(Self::parse)
            .filter(|scope| !scope.mixes_default() && is_resource(&scope.resource))
            .ok_or(CallerError::InvalidScope(Reason::default()))
    }

    /// The scopes, separated by single spaces.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The resource that all of them are of, as the first has it.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// The permissions, without the resource.
    pub fn permissions(&self) -> impl Iterator<Item = &str> {
        let scopes = self.text.split(' ');
        scopes.filter_map(|scope| Some(scope.rsplit_once('/')?.1))
    }

    /// Whether `.default`, which stands for all permissions of the resource, is among others: Entra ID refuses that.
    #[must_use]
    pub fn mixes_default(&self) -> bool {
        let mut permissions = self.permissions();
        permissions.any(|name| name.eq_ignore_ascii_case(".default"))
            && self.permissions().nth(1).is_some()
    }
}

/// Whether Entra ID can know a resource by this: a URI, or the client id of its app
/// (<https://learn.microsoft.com/entra/identity-platform/scopes-oidc>).
fn is_resource(text: &str) -> bool {
    text.contains(':') || Guid::parse(text).is_some()
}

/// Whether a text can stand in a scope (RFC 6749 §3.3), and so in a header and a line of the log.
pub(crate) fn is_printable(text: &str) -> bool {
    let mut bytes = text.bytes();
    !text.is_empty() && bytes.all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_has_one_resource_and_is_written_in_full() {
        let scope = Scope::parse(
            " https://Graph.microsoft.com/User.Read  https://graph.microsoft.com/Mail.Read ",
        )
        .unwrap();
        assert_eq!(scope.resource(), "https://Graph.microsoft.com");
        assert_eq!(
            scope.as_str(),
            "https://Graph.microsoft.com/User.Read https://graph.microsoft.com/Mail.Read"
        );
        for text in [
            "",
            "User.Read",
            "offline_access",
            "https://a/x https://b/y",
            "https://a/x https://a.evil.example/x",
            "https://a/",
            "/x",
            "https://a/x\u{e9}",
            "https://a/\"x\"",
        ] {
            assert_eq!(Scope::parse(text), None, "{text}");
            assert!(Scope::asked(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_entra_id_would_refuse_is_not_asked_for() {
        let refused = Err(CallerError::InvalidScope(Reason::default()));
        let mixed = "https://a/.default https://a/x";
        assert!(Scope::parse(mixed).is_some());
        assert_eq!(Scope::asked(mixed), refused);
        let long = format!("https://a/{}", "x".repeat(LONGEST));
        assert_eq!(Scope::asked(&long), refused);
        assert_eq!(Scope::asked("Zm9v/YmFy="), refused);
        for text in [
            "https://a/.default",
            "api://33333333-3333-4333-8333-333333333333/x",
            "33333333-3333-4333-8333-333333333333/x",
        ] {
            assert!(Scope::asked(text).is_ok(), "{text}");
        }
    }
}
