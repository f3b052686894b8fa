//! Scopes: what an access token is asked for (RFC 6749 §3.3).

use crate::error::{CallerError, Reason};

/// Scopes of one resource, each written in full: `{resource}/{permission}`.
///
/// ```
/// use behalf_core::error::CallerError;
/// use behalf_core::vault::scope::Scope;
///
/// let setting = Scope::parse("https://graph.microsoft.com/.default").unwrap();
/// let asked = setting.granted("https://graph.microsoft.com/User.Read").unwrap();
/// assert_eq!(asked.as_str(), "https://graph.microsoft.com/User.Read");
/// let elsewhere = setting.granted("https://vault.azure.net/.default");
/// assert_eq!(elsewhere, Err(CallerError::ScopeNotGranted));
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
            let printable = scope
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
            (printable && !resource.is_empty() && !permission.is_empty()).then_some(resource)
        });
        let resource = resources.next()??;
        resources
            .all(|other| other.is_some_and(|other| other.eq_ignore_ascii_case(resource)))
            .then(|| Self {
                text: text.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
                resource: resource.into(),
            })
    }

    /// The scopes, separated by single spaces.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether `.default`, which stands for all permissions of the resource, is among others: Entra ID refuses that.
    #[must_use]
    pub fn mixes_default(&self) -> bool {
        let mut scopes = self.text.split(' ');
        let is_default = |scope: &str| scope.to_ascii_lowercase().ends_with("/.default");
        scopes.clone().nth(1).is_some() && scopes.any(is_default)
    }

    /// Whether both are of the same resource.
    #[must_use]
    pub fn same_resource(&self, other: &Self) -> bool {
        self.resource.eq_ignore_ascii_case(&other.resource)
    }

    /// What was asked for, if it may be drawn. Until there are grants that is the resource of this scope, which is the
    /// setting `scope`, whichever of its permissions: a refresh token is bound to user and client and good for every
    /// resource that the user consented to, so this is what stands between a caller and all the others.
    ///
    /// # Errors
    /// [`CallerError::ScopeNotGranted`]; [`CallerError::InvalidScope`] if Entra ID would refuse it anyhow.
    pub fn granted(&self, asked: &str) -> Result<Self, CallerError> {
        let asked = Self::parse(asked).ok_or(CallerError::ScopeNotGranted)?;
        if asked.mixes_default() {
            return Err(CallerError::InvalidScope(Reason::default()));
        }
        if asked.same_resource(self) {
            Ok(asked)
        } else {
            Err(CallerError::ScopeNotGranted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_has_one_resource_and_is_written_in_full() {
        let scope = |text| Scope::parse(text);
        let graph = scope("https://graph.microsoft.com/.default").unwrap();
        assert!(
            graph.same_resource(
                &scope(
                    " https://Graph.microsoft.com/User.Read  https://graph.microsoft.com/Mail.Read "
                )
                .unwrap()
            )
        );
        assert!(
            !graph.same_resource(
                &scope("https://graph.microsoft.com.evil.example/.default").unwrap()
            )
        );
        assert!(!graph.same_resource(&scope("api://x/.default").unwrap()));
        for text in [
            "",
            "User.Read",
            "offline_access",
            "https://a/x https://b/y",
            "https://a/",
            "/x",
            "https://a/x\u{e9}",
        ] {
            assert_eq!(scope(text), None, "{text}");
        }
    }
}
