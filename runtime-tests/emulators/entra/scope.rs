//! The parameter `scope`: one resource, and what is asked for of it.

use super::error::TokenError;
use crate::emulators::options::Options;

/// The resource of the downstream API, which a permission without a resource is of.
pub(crate) const GRAPH: &str = "https://graph.microsoft.com";
/// Another resource that users can have tokens for, and the permission there that they have consented to.
const SHAREPOINT: (&str, &str) = ("https://contoso.sharepoint.com", "AllSites.Read");

/// What is asked for.
pub(super) struct Asked {
    pub(super) resource: String,
    pub(super) permissions: Vec<String>,
    pub(super) default: bool,
    pub(super) openid: Vec<String>,
    pub(super) offline: bool,
}

impl Asked {
    /// Reads a scope parameter, and refuses what nobody has consented to.
    pub(super) fn read(scope: &str, options: &Options) -> Result<Self, TokenError> {
        let mut asked = Self::parse(scope)?;
        let of_sharepoint = [SHAREPOINT.1.to_owned()];
        let consented = match asked.resource.as_str() {
            GRAPH => options.consented.as_slice(),
            resource if resource == SHAREPOINT.0 => &of_sharepoint,
            _ => return Err(TokenError::new(500_011)),
        };
        if asked.default {
            asked.permissions = consented.to_vec();
        }
        for permission in &mut asked.permissions {
            let known = consented
                .iter()
                .find(|known| known.eq_ignore_ascii_case(permission));
            known
                .ok_or_else(|| TokenError::new(65_001))?
                .clone_into(permission);
        }
        if options.over_grant {
            asked.permissions = consented.to_vec();
        }
        Ok(asked)
    }

    fn parse(scope: &str) -> Result<Self, TokenError> {
        let mut asked = Self {
            resource: String::new(),
            permissions: Vec::new(),
            default: false,
            openid: Vec::new(),
            offline: false,
        };
        for part in scope.split_ascii_whitespace() {
            match part {
                "offline_access" => asked.offline = true,
                "openid" | "profile" | "email" => asked.openid.push(part.to_owned()),
                _ => {
                    let (resource, permission) = part.rsplit_once('/').unwrap_or((GRAPH, part));
                    if asked.resource.is_empty() {
                        resource.clone_into(&mut asked.resource);
                    }
                    // Scopes of two resources: the token is for the first.
                    if resource != asked.resource {
                        continue;
                    }
                    match permission {
                        "" => return Err(TokenError::new(70_011)),
                        ".default" => asked.default = true,
                        _ => asked.permissions.push(permission.to_owned()),
                    }
                }
            }
        }
        if asked.resource.is_empty() {
            GRAPH.clone_into(&mut asked.resource);
            asked.permissions.push("User.Read".to_owned());
        }
        if asked.default && !asked.permissions.is_empty() {
            return Err(TokenError::new(70_011));
        }
        Ok(asked)
    }

    /// `scope` of the answer.
    pub(super) fn granted(&self) -> String {
        let mut scopes = self.openid.clone();
        let of_resource = |permission: &str| format!("{}/{permission}", self.resource);
        scopes.extend(
            self.permissions
                .iter()
                .map(|permission| of_resource(permission)),
        );
        if self.default {
            scopes.push(of_resource(".default"));
        }
        scopes.join(" ")
    }
}
