//! Who may draw what, and call what: the setting `grants`. A refresh token is good for every resource that its user consented to,
//! so this is what stands between a caller and all of them. What no rule allows is denied.
//!
//! A rule covers a request as a whole, with one resource or one API; rules are not added up. [`Grants::decide`] is the one function
//! that is asked: about what a caller asks for, and about what Entra ID gave, which can be more. Of a call that is not asked: its
//! access token reaches nobody but the API, and what may be called of that is the setting `apis`.

use serde_json::{Map, Value, json};

use crate::error::SettingFault;
use crate::identity::{Guid, TenantId};
use crate::vault::call::apis::{Apis, is_name};
use crate::vault::scope::{Scope, is_printable};

/// Rules that the setting may have: it is read again every ten seconds.
const MOST_RULES: usize = 1000;
/// Faults that are told at once.
const MOST_FAULTS: usize = 10;
/// A value that means all there are.
const ALL: &str = "*";
/// The members of a rule.
const MEMBERS: [&str; 6] = ["client", "callers", "tenants", "resource", "scopes", "apis"];
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
    /// To call the API of this name.
    Call(&'a str),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    client: Guid,
    callers: Callers,
    tenants: Tenants,
    /// What it lets draw; none: nothing.
    draws: Option<Draws>,
    /// Which APIs it lets call; none: none.
    apis: Option<Names>,
}

/// What may be drawn.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Draws {
    resource: String,
    permissions: Names,
}

/// Whose users a rule is about.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Tenants {
    /// Those of the tenant that the caller's token is from.
    Own,
    All,
    Listed(Vec<TenantId>),
}

/// Permissions of a resource, or APIs.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Names {
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
                "app {client} is a public client (azpacr, appidacr: neither 1 nor 2): it may enrol, see and remove its own user, and no rule of `grants` lets it choose a scope, draw or call"
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
                    Wanted::Anything | Wanted::Scope(_) | Wanted::Call(_) => false,
                    Wanted::Given { asked, .. } => rule.covers(Wanted::Scope(asked)),
                });
                let asked = asked.and_then(|(at, rule)| Some((at, rule.draws.as_ref()?)));
                Missing(match (asked, wanted) {
                    (Some((at, draws)), Wanted::Given { asked, given }) => {
                        too_much(client, at, &draws.excess(asked, given))
                    }
                    (_, wanted) => missing_rule(app, client, tenant, wanted),
                })
            })
    }

    /// Faults for APIs that rules name and the setting `apis` has not: the rule would let nobody do what it says.
    #[must_use]
    pub fn without_api(&self, apis: &Apis) -> Vec<SettingFault> {
        let rules = self.0.iter().enumerate();
        let named = rules.filter_map(|(at, rule)| match &rule.apis {
            Some(Names::Listed(names)) => Some((at, names)),
            Some(Names::All) | None => None,
        });
        let unknown = named.filter_map(|(at, names)| {
            let name = names.iter().find(|name| apis.find(name).is_none())?;
            let place = format!("{}.apis", self::name(at));
            let expected = format!("is wrong at {place}: the setting `apis` has no {name}");
            Some(SettingFault::new("grants", &expected))
        });
        unknown.take(MOST_FAULTS).collect()
    }

    /// What the setting says, a text for each rule.
    #[must_use]
    pub fn in_words(&self, operator_tenant: Option<&TenantId>) -> Vec<String> {
        if self.0.is_empty() {
            return vec![
                "the setting `grants` has no rule: every app may enrol, see and remove its users, and none may draw or call".into(),
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
        let apis = rule.get("apis").map(Names::of_apis).transpose();
        if let Err(expected) = apis {
            note(".apis", expected);
        }
        // A rule for calls alone lets nobody draw.
        let is_of_calls = rule.contains_key("apis");
        let draws = if is_of_calls && !rule.contains_key("resource") && !rule.contains_key("scopes")
        {
            Ok(None)
        } else {
            Draws::parse(rule, &mut note).map(Some)
        };
        match (client, callers, tenants, draws, apis) {
            (Some(client), Some(callers), Some(tenants), Ok(draws), Ok(apis))
                if faults.is_empty() =>
            {
                Ok(Self {
                    client,
                    callers,
                    tenants,
                    draws,
                    apis,
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
        let draws = self.draws.as_ref();
        match wanted {
            Wanted::Anything => draws.is_some(),
            Wanted::Scope(scope) => draws.is_some_and(|draws| draws.cover(scope)),
            Wanted::Given { asked, given } => draws
                .is_some_and(|draws| draws.cover(asked) && draws.excess(asked, given).is_empty()),
            Wanted::Call(api) => self.apis.as_ref().is_some_and(|apis| apis.allow(api)),
        }
    }

    fn in_words(&self, operator_tenant: Option<&TenantId>) -> String {
        let client = &self.client;
        let whose = match (self.callers, &self.tenants) {
            (Callers::Delegated, Tenants::Own | Tenants::All) => "with users' tokens".to_owned(),
            (Callers::Delegated, Tenants::Listed(tenants)) => {
                format!("with tokens of users of {}", listed(tenants))
            }
            (Callers::App, Tenants::Own) => "for absent users of its own tenant".to_owned(),
            (Callers::App, Tenants::All) => "for absent users of every tenant".to_owned(),
            (Callers::App, Tenants::Listed(tenants)) => {
                format!("for absent users of {}", listed(tenants))
            }
        };
        let draws = self.draws.as_ref().map(|draws| {
            let permissions = draws.permissions.in_words("everything");
            format!("draw {whose}: {permissions} at {}", draws.resource)
        });
        let calls = (self.apis.as_ref())
            .map(|apis| format!("call {whose}: {}", apis.in_words("every API")));
        let what: Vec<_> = draws.into_iter().chain(calls).collect();
        let what = what.join("; and ");
        let limit = match (self.callers, &self.tenants, operator_tenant) {
            (Callers::App, Tenants::All | Tenants::Listed(_), None) => {
                "; in another tenant than its own once `operator_tenant` is set"
            }
            (Callers::App | Callers::Delegated, _, _) => "",
        };
        format!("app {client} may {what}{limit}")
    }
}

impl Draws {
    fn parse(
        rule: &Map<String, Value>,
        note: &mut impl FnMut(&'static str, &str),
    ) -> Result<Self, ()> {
        let resource = rule.get("resource").and_then(Value::as_str);
        let resource = resource.filter(|text| is_resource(text));
        if resource.is_none() {
            note(
                ".resource",
                "must be a resource as scopes begin with it, like https://graph.microsoft.com, without `*`",
            );
        }
        let permissions = Names::of_permissions(rule.get("scopes"));
        if let Err(expected) = permissions {
            note(".scopes", expected);
        }
        Ok(Self {
            resource: resource.ok_or(())?.into(),
            permissions: permissions.map_err(drop)?,
        })
    }

    fn cover(&self, scope: &Scope) -> bool {
        scope.resource().eq_ignore_ascii_case(&self.resource)
            && scope.permissions().all(|name| self.permissions.allow(name))
    }

    /// The scopes of an answer that this rule does not cover. Entra ID leaves a resource out where it is the one that was
    /// asked for; any other spelling of it is another resource's.
    fn excess<'a>(&self, asked: &Scope, given: &'a str) -> Vec<&'a str> {
        let is_covered = |scope: &str| {
            let (resource, name) = scope.rsplit_once('/').unwrap_or((asked.resource(), scope));
            resource.eq_ignore_ascii_case(asked.resource()) && self.permissions.allow(name)
        };
        // A token is for one resource, whatever else its answer speaks of.
        if self.permissions == Names::All {
            return Vec::new();
        }
        let scopes = given.split_ascii_whitespace();
        scopes
            .filter(|scope| !OF_OIDC.iter().any(|of| of.eq_ignore_ascii_case(scope)))
            .filter(|scope| !is_covered(scope))
            .collect()
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

impl Names {
    fn of_permissions(scopes: Option<&Value>) -> Result<Self, &'static str> {
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

    fn of_apis(apis: &Value) -> Result<Self, &'static str> {
        const EXPECTED: &str =
            "must be a list of names of the setting `apis`, or [\"*\"] for all of them";
        let apis = apis.as_array().filter(|it| !it.is_empty());
        let apis = apis.ok_or(EXPECTED)?;
        if let [only] = apis.as_slice()
            && only == ALL
        {
            return Ok(Self::All);
        }
        let names = apis.iter().map(Value::as_str);
        let names: Option<Vec<_>> = names
            .map(|name| name.filter(|name| is_name(name)))
            .collect();
        let names = names.ok_or(EXPECTED)?;
        Ok(Self::Listed(names.into_iter().map(Into::into).collect()))
    }

    fn in_words(&self, all: &str) -> String {
        match self {
            Self::All => all.to_owned(),
            Self::Listed(names) => names.join(", "),
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

fn listed(tenants: &[TenantId]) -> String {
    let tenants: Vec<_> = tenants.iter().map(Guid::as_str).collect();
    tenants.join(", ")
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
    let is_default = |name: &&str| name.eq_ignore_ascii_case(".default");
    let of_scope = |scope: &Scope| {
        let scopes = if scope.permissions().any(|name| is_default(&name)) {
            vec![ALL]
        } else {
            scope.permissions().collect()
        };
        json!({"resource": scope.resource(), "scopes": scopes})
    };
    let (verb, mut rule) = match wanted {
        Wanted::Anything => ("draw", json!({"resource": "…", "scopes": ["…"]})),
        Wanted::Scope(asked) | Wanted::Given { asked, .. } => ("draw", of_scope(asked)),
        Wanted::Call(api) => ("call", json!({"apis": [api]})),
    };
    let (callers, what) = match app.callers {
        Callers::Delegated => ("delegated", "with a user's token"),
        Callers::App => ("app", "for users who are away"),
    };
    if let Some(rule) = rule.as_object_mut() {
        rule.insert("client".into(), client.as_str().into());
        rule.insert("callers".into(), callers.into());
        if app.tenant != *tenant {
            rule.insert("tenants".into(), json!([tenant.as_str()]));
        }
    }
    format!("no rule of `grants` lets app {client}, {what}, {verb} this; to allow it, add {rule}")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::samples::{CLIENT, TENANT};

    const APP: &str = "33333333-3333-3333-3333-333333333333";
    const OTHER_APP: &str = "aaaaaaaa-3333-3333-3333-333333333333";
    const OTHER: &str = "77777777-7777-7777-7777-777777777777";
    const THIRD: &str = "88888888-8888-8888-8888-888888888888";
    const GRAPH: &str = "https://graph.microsoft.com";

    fn id(text: &str) -> Guid {
        Guid::parse(text).unwrap()
    }

    fn app(callers: Callers) -> App {
        App {
            client: Some(id(APP)),
            is_confidential: true,
            callers,
            tenant: id(TENANT),
        }
    }

    fn rule(edit: impl FnOnce(&mut Value)) -> Value {
        let mut rule = json!({"client": APP, "callers": "delegated", "resource": GRAPH, "scopes": ["User.Read", "mail.read"]});
        edit(&mut rule);
        rule
    }

    fn grants(rules: &[Value]) -> Grants {
        Grants::parse(&json!(rules).to_string()).unwrap()
    }

    fn scope(text: &str) -> Scope {
        Scope::parse(text).unwrap()
    }

    #[test]
    fn one_function_decides_and_this_is_its_table() {
        const R: &str = "https://graph.microsoft.com";
        let user = || app(Callers::Delegated);
        let listed = || grants(&[rule(|_| ())]);
        let all = || grants(&[rule(|rule| rule["scopes"] = json!(["*"]))]);
        // What is granted, to whom, for whose user, and what is asked for.
        let asks: &[(&str, Grants, App, &str, bool)] = &[
            ("what is listed", listed(), user(), "{R}/User.Read", true),
            (
                "both",
                listed(),
                user(),
                "{R}/User.Read {R}/Mail.Read",
                true,
            ),
            ("another case", listed(), user(), "{R}/user.read", true),
            (
                "another case of the resource",
                listed(),
                user(),
                "HTTPS://Graph.microsoft.com/User.Read",
                true,
            ),
            (
                "one too many",
                listed(),
                user(),
                "{R}/User.Read {R}/Files.Read",
                false,
            ),
            (
                "what begins so",
                listed(),
                user(),
                "{R}/User.Read.All",
                false,
            ),
            ("a part of a name", listed(), user(), "{R}/User", false),
            (
                ".default without *",
                listed(),
                user(),
                "{R}/.default",
                false,
            ),
            (".default with *", all(), user(), "{R}/.default", true),
            ("anything with *", all(), user(), "{R}/Files.Read", true),
            (
                "another resource with *",
                all(),
                user(),
                "https://vault.azure.net/.default",
                false,
            ),
            (
                "another spelling: a slash",
                all(),
                user(),
                "{R}//.default",
                false,
            ),
            (
                "another spelling: a port",
                all(),
                user(),
                "{R}:443/.default",
                false,
            ),
            (
                "another spelling: the app id",
                all(),
                user(),
                "00000003-0000-0000-c000-000000000000/.default",
                false,
            ),
            (
                "another spelling: a path",
                all(),
                user(),
                "{R}/v1.0/.default",
                false,
            ),
            (
                "another host that begins so",
                all(),
                user(),
                "{R}.evil.example/.default",
                false,
            ),
            (
                "nothing is granted",
                Grants::default(),
                user(),
                "{R}/User.Read",
                false,
            ),
            (
                "another app",
                all(),
                App {
                    client: Some(id(OTHER_APP)),
                    ..user()
                },
                "{R}/User.Read",
                false,
            ),
            (
                "no app",
                all(),
                App {
                    client: None,
                    ..user()
                },
                "{R}/User.Read",
                false,
            ),
            (
                "a public client",
                all(),
                App {
                    is_confidential: false,
                    ..user()
                },
                "{R}/User.Read",
                false,
            ),
            (
                "the app itself",
                all(),
                app(Callers::App),
                "{R}/User.Read",
                false,
            ),
        ];
        for (what, grants, app, asked, is_granted) in asks {
            let asked = scope(&asked.replace("{R}", R));
            let decided = grants.decide(app, &id(TENANT), Wanted::Scope(&asked));
            assert_eq!(decided.is_ok(), *is_granted, "{what}: {decided:?}");
            // Whoever may not have it may not have it either when Entra ID gave it.
            let given = asked.as_str();
            let given = grants.decide(
                app,
                &id(TENANT),
                Wanted::Given {
                    asked: &asked,
                    given,
                },
            );
            assert_eq!(given.is_ok(), *is_granted, "{what}: {given:?}");
        }
    }

    #[test]
    fn what_entra_id_gives_is_compared_too() {
        let listed = grants(&[rule(|_| ())]);
        let all = grants(&[rule(|rule| rule["scopes"] = json!(["*"]))]);
        let asked = scope("https://graph.microsoft.com/User.Read");
        for (given, is_covered) in [
            ("", true),
            ("https://graph.microsoft.com/User.Read", true),
            ("user.read", true),
            (
                "User.Read Mail.Read openid profile email offline_access",
                true,
            ),
            ("User.Read OPENID Offline_Access", true),
            ("https://GRAPH.microsoft.com/Mail.Read", true),
            ("User.Read Files.Read", false),
            ("https://graph.microsoft.com/Files.Read", false),
            ("https://graph.microsoft.com/.default", false),
            ("https://graph.microsoft.com//User.Read", false),
            ("00000003-0000-0000-c000-000000000000/User.Read", false),
            ("https://outlook.office.com/Mail.Read", false),
            ("User.Read,Files.Read", false),
        ] {
            let wanted = Wanted::Given {
                asked: &asked,
                given,
            };
            let user = app(Callers::Delegated);
            let decided = listed.decide(&user, &id(TENANT), wanted);
            assert_eq!(decided.is_ok(), is_covered, "{given}: {decided:?}");
            assert_eq!(
                all.decide(&user, &id(TENANT), wanted),
                Ok("grants[0]".into())
            );
            if let Err(Missing(missing)) = decided {
                assert!(
                    missing.starts_with("Entra ID gave") && missing.contains("grants[0]"),
                    "{missing}"
                );
            }
        }
    }

    /// What a permission is named is another system's text, and may be anything.
    #[test]
    fn of_what_was_too_much_only_names_are_told() {
        let secret = format!("eyJ{}", "x".repeat(200));
        let given = format!("Files.Read {secret} \"quoted\" a b c d e f g h i");
        let Missing(missing) = grants(&[rule(|_| ())])
            .decide(
                &app(Callers::Delegated),
                &id(TENANT),
                Wanted::Given {
                    asked: &scope("https://graph.microsoft.com/User.Read"),
                    given: &given,
                },
            )
            .unwrap_err();
        assert!(
            missing.contains("Files.Read, a, b, c, d, e, f, g and 4 more"),
            "{missing}"
        );
        assert!(
            !missing.contains("eyJ") && !missing.contains("quoted"),
            "{missing}"
        );
    }

    #[test]
    fn calls_are_granted_by_the_same_function() {
        let of_calls = |apis: Value| json!({"client": APP, "callers": "delegated", "apis": apis});
        let user = || app(Callers::Delegated);
        for (what, rules, app, is_granted) in [
            (
                "what is listed",
                [of_calls(json!(["graph", "own"]))],
                user(),
                true,
            ),
            ("all", [of_calls(json!(["*"]))], user(), true),
            ("another API", [of_calls(json!(["own"]))], user(), false),
            (
                "what begins so",
                [of_calls(json!(["graph-beta"]))],
                user(),
                false,
            ),
            (
                "a part of a name",
                [of_calls(json!(["gra"]))],
                user(),
                false,
            ),
            (
                "to draw alone",
                [rule(|rule| rule["scopes"] = json!(["*"]))],
                user(),
                false,
            ),
            (
                "both",
                [rule(|rule| rule["apis"] = json!(["graph"]))],
                user(),
                true,
            ),
            (
                "the app itself",
                [of_calls(json!(["*"]))],
                app(Callers::App),
                false,
            ),
            (
                "another app",
                [of_calls(json!(["*"]))],
                App {
                    client: Some(id(OTHER_APP)),
                    ..user()
                },
                false,
            ),
            (
                "a public client",
                [of_calls(json!(["*"]))],
                App {
                    is_confidential: false,
                    ..user()
                },
                false,
            ),
        ] {
            let decided = grants(&rules).decide(&app, &id(TENANT), Wanted::Call("graph"));
            assert_eq!(decided.is_ok(), is_granted, "{what}: {decided:?}");
        }
        // To call is not to draw, whatever is asked for.
        let grants = grants(&[of_calls(json!(["*"]))]);
        let asked = scope("https://graph.microsoft.com/User.Read");
        let given = "User.Read";
        for wanted in [
            Wanted::Anything,
            Wanted::Scope(&asked),
            Wanted::Given {
                asked: &asked,
                given,
            },
        ] {
            let decided = grants.decide(&user(), &id(TENANT), wanted);
            assert!(decided.is_err(), "{wanted:?}: {decided:?}");
        }
        assert!(
            grants
                .decide(&user(), &id(OTHER), Wanted::Call("graph"))
                .is_err()
        );
    }

    #[test]
    fn a_rule_for_an_api_that_is_not_there_is_found() {
        let api = json!({"url": "https://api.example", "scope": "api://own/.default", "allow": ["GET /**"]});
        let apis = Apis::parse(&json!({"own": api}).to_string()).unwrap();
        let of = |apis: Value| json!({"client": APP, "callers": "app", "apis": apis});
        let rules = [
            of(json!(["*"])),
            of(json!(["own"])),
            rule(|_| ()),
            of(json!(["own", "graph", "x"])),
        ];
        let faults = grants(&rules).without_api(&apis);
        let told: Vec<_> = faults.iter().map(|fault| fault.expected.as_str()).collect();
        assert_eq!(
            told,
            ["is wrong at grants[3].apis: the setting `apis` has no graph"]
        );
        let many = vec![of(json!(["graph"])); 50];
        assert_eq!(grants(&many).without_api(&apis).len(), MOST_FAULTS);
    }

    #[test]
    fn a_rule_reaches_the_tenants_that_it_names() {
        let with = |tenants: Value| {
            let mut rule = rule(|rule| rule["callers"] = json!("app"));
            if !tenants.is_null() {
                rule["tenants"] = tenants;
            }
            grants(&[rule])
        };
        for (tenants, reached) in [
            (Value::Null, [true, false, false]),
            (json!(["*"]), [true, true, true]),
            (json!([OTHER]), [false, true, false]),
            (json!([OTHER, TENANT.to_uppercase()]), [true, true, false]),
        ] {
            let reaches = [TENANT, OTHER, THIRD].map(|tenant| {
                let app = app(Callers::App);
                let grants = with(tenants.clone());
                grants.decide(&app, &id(tenant), Wanted::Anything).is_ok()
            });
            assert_eq!(reaches, reached, "{tenants}");
        }
    }

    #[test]
    fn one_rule_covers_it_all_and_the_first_that_does_is_named() {
        let of = |scopes: Value| rule(|rule| rule["scopes"] = scopes);
        let grants = grants(&[
            of(json!(["User.Read"])),
            of(json!(["Mail.Read"])),
            of(json!(["*"])),
        ]);
        let decide = |asked: &str| {
            let asked = scope(asked);
            grants.decide(&app(Callers::Delegated), &id(TENANT), Wanted::Scope(&asked))
        };
        assert_eq!(
            decide("https://graph.microsoft.com/Mail.Read"),
            Ok("grants[1]".into())
        );
        let both = "https://graph.microsoft.com/Mail.Read https://graph.microsoft.com/User.Read";
        assert_eq!(decide(both), Ok("grants[2]".into()));
        // The rule that is named is one that covers what was given, too.
        let asked = scope("https://graph.microsoft.com/User.Read");
        let wanted = Wanted::Given {
            asked: &asked,
            given: "User.Read Files.Read",
        };
        let given = grants.decide(&app(Callers::Delegated), &id(TENANT), wanted);
        assert_eq!(given, Ok("grants[2]".into()));
    }

    #[test]
    fn a_refusal_names_the_rule_that_would_grant_it() {
        let asked = scope("https://graph.microsoft.com/User.Read");
        for (asked, tenant, callers, expected) in [
            (
                asked.clone(),
                TENANT,
                Callers::Delegated,
                json!({"client": APP, "callers": "delegated", "resource": GRAPH, "scopes": ["User.Read"]}),
            ),
            (
                scope("api://x/.default"),
                OTHER,
                Callers::App,
                json!({"client": APP, "callers": "app", "resource": "api://x", "scopes": ["*"], "tenants": [OTHER]}),
            ),
        ] {
            let (app, wanted) = (app(callers), Wanted::Scope(&asked));
            let Missing(missing) = Grants::default()
                .decide(&app, &id(tenant), wanted)
                .unwrap_err();
            let (_, added) = missing.split_once("add ").unwrap();
            let added: Value = serde_json::from_str(added).unwrap();
            assert_eq!(added, expected);
            grants(&[added]).decide(&app, &id(tenant), wanted).unwrap();
        }
        let (app, wanted) = (app(Callers::App), Wanted::Call("own"));
        let refused = Grants::default().decide(&app, &id(OTHER), wanted);
        let Missing(missing) = refused.unwrap_err();
        let (told, added) = missing.split_once("; to allow it, add ").unwrap();
        assert!(told.ends_with("call this"), "{told}");
        let added: Value = serde_json::from_str(added).unwrap();
        assert_eq!(
            added,
            json!({"client": APP, "callers": "app", "apis": ["own"], "tenants": [OTHER]})
        );
        grants(&[added]).decide(&app, &id(OTHER), wanted).unwrap();
    }

    #[test]
    fn what_is_wrong_in_a_rule_is_told_by_its_place() {
        let faults = |text: &str| -> Vec<String> {
            let faults = Grants::parse(text).unwrap_err();
            assert!(faults.iter().all(|fault| fault.name == "grants"));
            faults.into_iter().map(|fault| fault.expected).collect()
        };
        for (rules, places) in [
            (json!({}), vec!["must be a JSON list"]),
            (json!([7]), vec!["is wrong at grants[0]: must be an object"]),
            (
                json!([{}]),
                vec![
                    "grants[0].client",
                    "grants[0].callers",
                    "grants[0].resource",
                    "grants[0].scopes",
                ],
            ),
            (
                json!([
                    rule(|_| ()),
                    rule(|rule| rule["scope"] = json!(["User.Read"]))
                ]),
                vec!["grants[1]: a rule has no member `scope`"],
            ),
            (
                json!([rule(|rule| rule["apis"] = json!([]))]),
                vec!["grants[0].apis: must be a list"],
            ),
            (
                json!([rule(|rule| rule["apis"] = json!("*"))]),
                vec!["grants[0].apis: must be a list"],
            ),
            (
                json!([rule(|rule| rule["apis"] = json!(["*", "graph"]))]),
                vec!["grants[0].apis: must be a list"],
            ),
            (
                json!([rule(|rule| rule["apis"] = json!(["eyJ.secret"]))]),
                vec!["grants[0].apis: must be a list"],
            ),
            (
                json!([{"client": APP, "callers": "app", "apis": [7]}]),
                vec!["grants[0].apis: must be a list"],
            ),
            // Half of what lets draw is a mistake, also beside what lets call.
            (
                json!([{"client": APP, "callers": "app", "apis": ["graph"], "resource": GRAPH}]),
                vec!["grants[0].scopes"],
            ),
            (
                json!([{"client": APP, "callers": "app", "apis": ["graph"], "scopes": ["*"]}]),
                vec!["grants[0].resource"],
            ),
            (
                json!([rule(|rule| rule["Bearer eyJ.secret"] = json!(1))]),
                vec!["grants[0]: a rule has a member that is not known"],
            ),
            (
                json!([rule(|rule| rule["client"] = json!("*"))]),
                vec!["grants[0].client"],
            ),
            (
                json!([rule(|rule| rule["client"] = json!("my-app"))]),
                vec!["grants[0].client"],
            ),
            (
                json!([rule(|rule| rule["callers"] = json!("*"))]),
                vec!["grants[0].callers"],
            ),
            (
                json!([rule(|rule| rule["callers"] = json!(["app"]))]),
                vec!["grants[0].callers"],
            ),
            (
                json!([rule(|rule| rule["tenants"] = json!([]))]),
                vec!["grants[0].tenants"],
            ),
            (
                json!([rule(|rule| rule["tenants"] = json!("*"))]),
                vec!["grants[0].tenants"],
            ),
            (
                json!([rule(|rule| rule["tenants"] = json!(["*", TENANT]))]),
                vec!["grants[0].tenants"],
            ),
            (
                json!([rule(|rule| rule["tenants"] = json!(["contoso.com"]))]),
                vec!["grants[0].tenants"],
            ),
            (
                json!([rule(|rule| rule["resource"] = json!("*"))]),
                vec!["grants[0].resource"],
            ),
            (
                json!([rule(
                    |rule| rule["resource"] = json!("https://*.example.com")
                )]),
                vec!["grants[0].resource"],
            ),
            (
                json!([rule(|rule| rule["resource"] = json!("a b"))]),
                vec!["grants[0].resource"],
            ),
            (
                json!([rule(|rule| rule["resource"] = json!(""))]),
                vec!["grants[0].resource"],
            ),
            (
                json!([rule(|rule| rule["scopes"] = json!([]))]),
                vec!["grants[0].scopes"],
            ),
            (
                json!([rule(|rule| rule["scopes"] = json!("*"))]),
                vec!["grants[0].scopes"],
            ),
            (
                json!([rule(|rule| rule["scopes"] = json!(["User.*"]))]),
                vec!["grants[0].scopes: `*` stands alone"],
            ),
            (
                json!([rule(|rule| rule["scopes"] = json!(["*", "User.Read"]))]),
                vec!["grants[0].scopes: `*` stands alone"],
            ),
            (
                json!([rule(|rule| rule["scopes"] = json!([".Default"]))]),
                vec!["grants[0].scopes: .default is all"],
            ),
            (
                json!([rule(
                    |rule| rule["scopes"] = json!([format!("{GRAPH}/User.Read")])
                )]),
                vec!["grants[0].scopes"],
            ),
            (
                json!([rule(|rule| rule["scopes"] = json!([7]))]),
                vec!["grants[0].scopes"],
            ),
        ] {
            let told = faults(&rules.to_string());
            assert_eq!(told.len(), places.len(), "{rules}: {told:?}");
            for (told, place) in told.iter().zip(places) {
                assert!(told.contains(place), "{rules}: {told}");
                assert!(!told.contains("eyJ"), "{told}");
            }
        }
        assert_eq!(
            faults("[{\"client\""),
            ["is no valid JSON (line 1, column 10)"]
        );
        assert_eq!(
            faults("client-secret-canary"),
            ["is no valid JSON (line 1, column 1)"]
        );
        let many = vec![rule(|_| ()); 10_000];
        assert_eq!(
            faults(&json!(many).to_string()),
            ["has 10000 rules: 1000 are the most"]
        );
        let wrong = vec![json!({}); 1000];
        assert_eq!(faults(&json!(wrong).to_string()).len(), MOST_FAULTS);
        assert_eq!(Grants::parse(""), Ok(Grants::default()));
        assert_eq!(Grants::parse("[]"), Ok(Grants::default()));
        assert_eq!(grants(&many[..MOST_RULES]).0.len(), MOST_RULES);
    }

    #[test]
    fn rules_can_be_said_in_words() {
        let rules = grants(&[
            rule(|_| ()),
            json!({"client": CLIENT, "callers": "app", "tenants": ["*"], "resource": "api://x", "scopes": ["*"]}),
            json!({"client": CLIENT, "callers": "app", "tenants": [OTHER], "resource": "api://x", "scopes": ["*"]}),
            json!({"client": CLIENT, "callers": "app", "apis": ["own", "graph"]}),
            json!({"client": CLIENT, "callers": "delegated", "resource": "api://x", "scopes": ["*"], "apis": ["*"]}),
        ]);
        assert_eq!(
            rules.in_words(None),
            [
                format!(
                    "grants[0]: app {APP} may draw with users' tokens: User.Read, mail.read at {GRAPH}"
                ),
                format!(
                    "grants[1]: app {CLIENT} may draw for absent users of every tenant: everything at api://x; in another tenant than its own once `operator_tenant` is set"
                ),
                format!(
                    "grants[2]: app {CLIENT} may draw for absent users of {OTHER}: everything at api://x; in another tenant than its own once `operator_tenant` is set"
                ),
                format!(
                    "grants[3]: app {CLIENT} may call for absent users of its own tenant: own, graph"
                ),
                format!(
                    "grants[4]: app {CLIENT} may draw with users' tokens: everything at api://x; and call with users' tokens: every API"
                ),
            ]
        );
        assert!(!rules.in_words(Some(&id(TENANT)))[1].contains("once"));
        let nothing = Grants::default().in_words(None);
        assert!(
            nothing.len() == 1 && nothing[0].contains("none may draw or call"),
            "{nothing:?}"
        );
    }
}
