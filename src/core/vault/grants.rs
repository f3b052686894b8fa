//! Who may draw what: the setting `grants`. A refresh token is good for every resource that its user consented to, so this
//! is what stands between a caller and all of them. What no rule allows is denied.
//!
//! A rule covers a request as a whole, with one resource; rules are not added up. [`Grants::decide`] is the one function
//! that is asked: about what a caller asks for, and about what Entra ID gave, which can be more.

use serde_json::{Map, Value, json};

use crate::error::SettingFault;
use crate::identity::{Guid, TenantId};
use crate::vault::scope::{Scope, is_printable};

/// Rules that the setting may have: it is read again every ten seconds.
const MOST_RULES: usize = 1000;
/// Faults that are told at once.
const MOST_FAULTS: usize = 10;
/// A value that means all there are.
const ALL: &str = "*";
/// The members of a rule.
const MEMBERS: [&str; 5] = ["client", "callers", "tenants", "resource", "scopes"];
/// What Entra ID returns among the scopes of any resource, and no resource has
/// (<https://learn.microsoft.com/entra/identity-platform/scopes-oidc>).
const OF_OIDC: [&str; 4] = ["openid", "profile", "email", "offline_access"];

/// The setting `grants`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Grants(Vec<Rule>);

/// What is missing for a caller to have what it wants, and how to grant it: for the operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing(pub String);

/// The app that sent a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct App {
    /// Its client id; none: the token does not say.
    pub client: Option<Guid>,
    /// Whether it proved to Entra ID that it is this app, with a secret or a certificate.
    pub is_confidential: bool,
    /// Whom it acts as.
    pub callers: Callers,
    /// The tenant of its token.
    pub tenant: TenantId,
}

/// Whom an app acts as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Callers {
    /// As a user who is there: the token is the user's.
    Delegated,
    /// As itself: the token is the app's own.
    App,
}

/// What an app wants.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// Something: what, is not known yet.
    Anything,
    /// These scopes.
    Scope(&'a Scope),
    /// To have what Entra ID gave when it was asked for these scopes.
    Given {
        /// What it was asked for.
        asked: &'a Scope,
        /// The scopes of its answer.
        given: &'a str,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    client: Guid,
    callers: Callers,
    tenants: Tenants,
    resource: String,
    permissions: Permissions,
}

/// Whose users a rule is about.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Tenants {
    /// Those of the tenant that the caller's token is from.
    Own,
    All,
    Listed(Vec<TenantId>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Permissions {
    All,
    Listed(Vec<String>),
}

impl Grants {
    /// Reads the setting; an empty text has no rule.
    ///
    /// # Errors
    /// All that is wrong with it, or the first ten of that.
    pub fn parse(text: &str) -> Result<Self, Vec<SettingFault>> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let fault = |expected: &str| vec![SettingFault::new("grants", expected)];
        let rules = match serde_json::from_str(text) {
            Ok(Value::Array(rules)) => rules,
            Ok(_) => return Err(fault("must be a JSON list of rules, like []")),
            // The text of serde's error can quote the setting.
            Err(error) => {
                return Err(fault(&format!(
                    "is no valid JSON (line {}, column {})",
                    error.line(),
                    error.column()
                )));
            }
        };
        if rules.len() > MOST_RULES {
            return Err(fault(&format!(
                "has {} rules: {MOST_RULES} are the most",
                rules.len()
            )));
        }
        let mut faults = Vec::new();
        let mut read = Vec::with_capacity(rules.len());
        for (at, rule) in rules.iter().enumerate() {
            match Rule::parse(rule) {
                Ok(rule) => read.push(rule),
                Err(of_rule) => faults.extend(of_rule.into_iter().map(|(member, expected)| {
                    let place = format!("{}{member}", name(at));
                    SettingFault::new("grants", &format!("is wrong at {place}: {expected}"))
                })),
            }
        }
        faults.truncate(MOST_FAULTS);
        if faults.is_empty() {
            Ok(Self(read))
        } else {
            Err(faults)
        }
    }

    /// The rule that lets an app have what it wants for a user of this tenant, by its place: `grants[0]`.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn decide(
        &self,
        app: &App,
        tenant: &TenantId,
        wanted: Wanted<'_>,
    ) -> Result<String, Missing> {
        let Some(client) = &app.client else {
            return Err(Missing(
                "the caller's token names no app (azp, appid), and rules of `grants` are for apps"
                    .into(),
            ));
        };
        if !app.is_confidential {
            return Err(Missing(format!(
                "app {client} is a public client (azpacr, appidacr: neither 1 nor 2): it may enrol, see and remove its own user, and no rule of `grants` lets it choose a scope or draw"
            )));
        }
        let mut concerned = self.0.iter().enumerate().filter(|(_, rule)| {
            rule.client == *client && rule.callers == app.callers && rule.reaches(app, tenant)
        });
        concerned
            .clone()
            .find(|(_, rule)| rule.covers(wanted))
            .map(|(at, _)| name(at))
            .ok_or_else(|| {
                let asked = concerned.find(|(_, rule)| match wanted {
                    Wanted::Anything | Wanted::Scope(_) => false,
                    Wanted::Given { asked, .. } => rule.covers(Wanted::Scope(asked)),
                });
                Missing(match (asked, wanted) {
                    (Some((at, rule)), Wanted::Given { asked, given }) => {
                        too_much(client, at, &rule.excess(asked, given))
                    }
                    (_, wanted) => missing_rule(app, client, tenant, wanted),
                })
            })
    }

    /// What the setting says, a text for each rule.
    #[must_use]
    pub fn in_words(&self, operator_tenant: Option<&TenantId>) -> Vec<String> {
        if self.0.is_empty() {
            return vec![
                "the setting `grants` has no rule: every app may enrol, see and remove its users, and none may draw".into(),
            ];
        }
        let rules = self.0.iter().enumerate();
        rules
            .map(|(at, rule)| format!("{}: {}", name(at), rule.in_words(operator_tenant)))
            .collect()
    }
}

/// What is wrong with a rule, by the member that it is about, such as `.scopes`.
type Faults = Vec<(&'static str, String)>;

impl Rule {
    fn parse(rule: &Value) -> Result<Self, Faults> {
        let Value::Object(rule) = rule else {
            return Err(vec![("", format!("must be an object with {}", members()))]);
        };
        let mut faults: Faults = rule
            .keys()
            .filter(|member| !MEMBERS.contains(&member.as_str()))
            .map(|member| ("", not_a_member(member)))
            .collect();
        let mut note = |member, expected: &str| faults.push((member, expected.to_owned()));
        let client = guid(rule.get("client"));
        if client.is_none() {
            note(".client", "must be an app's client id, a GUID");
        }
        let callers = match rule.get("callers").and_then(Value::as_str) {
            Some("delegated") => Some(Callers::Delegated),
            Some("app") => Some(Callers::App),
            _ => None,
        };
        if callers.is_none() {
            note(
                ".callers",
                "must be \"delegated\", for tokens of users, or \"app\", for the app's own",
            );
        }
        let tenants = Tenants::parse(rule);
        if tenants.is_none() {
            note(
                ".tenants",
                "must be a list of tenant ids (GUIDs), or [\"*\"] for every tenant; without it, it is the caller's own",
            );
        }
        let resource = rule
            .get("resource")
            .and_then(Value::as_str)
            .filter(|text| is_resource(text));
        if resource.is_none() {
            note(
                ".resource",
                "must be a resource as scopes begin with it, like https://graph.microsoft.com, without `*`",
            );
        }
        let permissions = Permissions::parse(rule.get("scopes"));
        if let Err(expected) = permissions {
            note(".scopes", expected);
        }
        match (client, callers, tenants, resource, permissions) {
            (Some(client), Some(callers), Some(tenants), Some(resource), Ok(permissions))
                if faults.is_empty() =>
            {
                Ok(Self {
                    client,
                    callers,
                    tenants,
                    resource: resource.into(),
                    permissions,
                })
            }
            _ => Err(faults),
        }
    }

    fn reaches(&self, app: &App, tenant: &TenantId) -> bool {
        match &self.tenants {
            Tenants::Own => app.tenant == *tenant,
            Tenants::All => true,
            Tenants::Listed(tenants) => tenants.contains(tenant),
        }
    }

    fn covers(&self, wanted: Wanted<'_>) -> bool {
        match wanted {
            Wanted::Anything => true,
            Wanted::Scope(scope) => {
                scope.resource().eq_ignore_ascii_case(&self.resource)
                    && scope.permissions().all(|name| self.permissions.allow(name))
            }
            Wanted::Given { asked, given } => {
                self.covers(Wanted::Scope(asked)) && self.excess(asked, given).is_empty()
            }
        }
    }

    /// The scopes of an answer that this rule does not cover. Entra ID leaves a resource out where it is the one that was
    /// asked for; any other spelling of it is another resource's.
    fn excess<'a>(&self, asked: &Scope, given: &'a str) -> Vec<&'a str> {
        let is_covered = |scope: &str| {
            let (resource, name) = scope.rsplit_once('/').unwrap_or((asked.resource(), scope));
            resource.eq_ignore_ascii_case(asked.resource()) && self.permissions.allow(name)
        };
        // A token is for one resource, whatever else its answer speaks of.
        if self.permissions == Permissions::All {
            return Vec::new();
        }
        let scopes = given.split_ascii_whitespace();
        scopes
            .filter(|scope| !OF_OIDC.iter().any(|of| of.eq_ignore_ascii_case(scope)))
            .filter(|scope| !is_covered(scope))
            .collect()
    }

    fn in_words(&self, operator_tenant: Option<&TenantId>) -> String {
        let Self {
            client, resource, ..
        } = self;
        let whose = match self.callers {
            Callers::Delegated => "with a user's token",
            Callers::App => "for users who are away",
        };
        let tenants = match &self.tenants {
            Tenants::Own => "of its own tenant".to_owned(),
            Tenants::All => "of every tenant".to_owned(),
            Tenants::Listed(tenants) => {
                let tenants: Vec<_> = tenants.iter().map(Guid::as_str).collect();
                format!("of {}", tenants.join(", "))
            }
        };
        let permissions = match &self.permissions {
            Permissions::All => "everything".to_owned(),
            Permissions::Listed(names) => names.join(", "),
        };
        let limit = match (self.callers, &self.tenants, operator_tenant) {
            (Callers::App, Tenants::All | Tenants::Listed(_), None) => {
                "; in another tenant than its own once `operator_tenant` is set"
            }
            (Callers::App | Callers::Delegated, _, _) => "",
        };
        format!("app {client}, {whose} {tenants}: {permissions} at {resource}{limit}")
    }
}

impl Tenants {
    fn parse(rule: &Map<String, Value>) -> Option<Self> {
        let Some(tenants) = rule.get("tenants") else {
            return Some(Self::Own);
        };
        let tenants = tenants.as_array().filter(|tenants| !tenants.is_empty())?;
        if let [only] = tenants.as_slice()
            && only == ALL
        {
            return Some(Self::All);
        }
        let tenants = tenants.iter().map(|tenant| guid(Some(tenant)));
        tenants.collect::<Option<_>>().map(Self::Listed)
    }
}

impl Permissions {
    fn parse(scopes: Option<&Value>) -> Result<Self, &'static str> {
        const EXPECTED: &str = "must be a list of permissions without their resource, like [\"User.Read\"], or [\"*\"] for the whole resource";
        let scopes = scopes.and_then(Value::as_array);
        let scopes = scopes.filter(|it| !it.is_empty()).ok_or(EXPECTED)?;
        if let [only] = scopes.as_slice()
            && only == ALL
        {
            return Ok(Self::All);
        }
        let names: Option<Vec<_>> = scopes.iter().map(Value::as_str).collect();
        let names = names.ok_or(EXPECTED)?;
        if names.iter().any(|name| name.contains(ALL)) {
            return Err("`*` stands alone, as [\"*\"], and in no name");
        }
        if names
            .iter()
            .any(|name| name.eq_ignore_ascii_case(".default"))
        {
            return Err(".default is all that was consented to: write [\"*\"]");
        }
        if names
            .iter()
            .all(|name| is_printable(name) && !name.contains('/'))
        {
            Ok(Self::Listed(names.into_iter().map(Into::into).collect()))
        } else {
            Err(EXPECTED)
        }
    }

    fn allow(&self, asked: &str) -> bool {
        match self {
            Self::All => true,
            Self::Listed(names) => names.iter().any(|name| name.eq_ignore_ascii_case(asked)),
        }
    }
}

/// A rule's name: its place in the setting.
fn name(at: usize) -> String {
    format!("grants[{at}]")
}

fn guid(value: Option<&Value>) -> Option<Guid> {
    value.and_then(Value::as_str).and_then(Guid::parse)
}

fn is_resource(text: &str) -> bool {
    is_printable(text) && !text.contains(ALL)
}

fn members() -> String {
    MEMBERS.map(|member| format!("`{member}`")).join(", ")
}

/// A name is told if it looks like a member's: else it may be anything.
fn not_a_member(name: &str) -> String {
    let is_word = name.len() <= 20
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let what = if is_word {
        format!("has no member `{name}`")
    } else {
        "has a member that is not known".to_owned()
    };
    format!("a rule {what}: its members are {}", members())
}

/// What the operator can add, in the words of the setting.
fn missing_rule(app: &App, client: &Guid, tenant: &TenantId, wanted: Wanted<'_>) -> String {
    let scope = match wanted {
        Wanted::Anything => None,
        Wanted::Scope(asked) | Wanted::Given { asked, .. } => Some(asked),
    };
    let is_default = |name: &&str| name.eq_ignore_ascii_case(".default");
    let (resource, scopes): (_, Vec<_>) = match scope {
        None => ("…", vec!["…"]),
        Some(scope) if scope.permissions().any(|name| is_default(&name)) => {
            (scope.resource(), vec![ALL])
        }
        Some(scope) => (scope.resource(), scope.permissions().collect()),
    };
    let (callers, what) = match app.callers {
        Callers::Delegated => ("delegated", "with a user's token"),
        Callers::App => ("app", "for users who are away"),
    };
    let mut rule = json!({"client": client.as_str(), "callers": callers, "resource": resource, "scopes": scopes});
    if app.tenant != *tenant
        && let Some(rule) = rule.as_object_mut()
    {
        rule.insert("tenants".into(), json!([tenant.as_str()]));
    }
    format!("no rule of `grants` lets app {client}, {what}, draw this; to allow it, add {rule}")
}

fn too_much(client: &Guid, at: usize, excess: &[&str]) -> String {
    // Another system's text, so only what looks like names of permissions.
    let is_name = |scope: &&&str| {
        let mut bytes = scope.bytes();
        scope.len() <= 64
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-:/".contains(&byte))
    };
    let names: Vec<_> = excess.iter().filter(is_name).take(8).copied().collect();
    let more = excess.len().saturating_sub(names.len());
    let mut what = names.join(", ");
    if more > 0 {
        what = format!("{what} and {more} more");
    }
    format!(
        "Entra ID gave app {client} more than {} has, because the user or an administrator consented to it: {what}; write it into the rule, or [\"*\"] for the whole resource",
        name(at)
    )
}
