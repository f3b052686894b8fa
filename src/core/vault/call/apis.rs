//! The setting `apis`: which APIs are called on users' behalf, with which scope, and what of each may be called.

use std::collections::BTreeMap;
use std::rc::Rc;

use http::{HeaderName, Method, Uri};
use serde_json::Value;
use url::Url;

use crate::endpoint;
use crate::error::SettingFault;
use crate::error::call::CallDefect;
use crate::json::Members;
use crate::vault::call::headers::Way;
use crate::vault::call::path::Path;
use crate::vault::call::pattern::Pattern;
use crate::vault::scope::Scope;

/// APIs that the setting may have: it is read again every ten seconds.
const MOST: usize = 64;
/// Patterns that an API may have.
const MOST_PATTERNS: usize = 100;
/// Headers that an API may add, either way.
const MOST_HEADERS: usize = 32;
/// Faults that are told at once.
const MOST_FAULTS: usize = 10;
/// The members of an API.
const MEMBERS: [&str; 6] = [
    "url",
    "scope",
    "allow",
    "request_headers",
    "response_headers",
    "audit_paths",
];

/// The setting `apis`, by name.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Apis(BTreeMap<String, Rc<Api>>);

/// An API that is called on users' behalf.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Api {
    /// What callers, grants and the audit know it by.
    pub name: String,
    /// Its origin, which nothing of a request changes.
    pub origin: Url,
    /// What its access tokens are drawn for.
    pub scope: Scope,
    /// Headers of requests that are passed on besides the usual ones.
    pub request_headers: Vec<HeaderName>,
    /// Headers of answers, likewise.
    pub response_headers: Vec<HeaderName>,
    /// Whether the audit has the paths themselves, with whatever they name.
    pub audit_paths: bool,
    allow: Vec<Pattern>,
}

impl Apis {
    /// Reads the setting; an empty text has no API.
    ///
    /// # Errors
    /// All that is wrong with it, or the first ten of that.
    pub fn parse(text: &str) -> Result<Self, Vec<SettingFault>> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let fault = |expected: &str| vec![SettingFault::new("apis", expected)];
        let read: Result<Members<Members<Value>>, _> = serde_json::from_str(text);
        // The text of serde's error can quote the setting.
        let Members(apis) = read.map_err(|error| {
            let place = format!("(line {}, column {})", error.line(), error.column());
            fault(&if error.is_data() {
                format!("must be an object of objects, like {{}}, with each name once {place}")
            } else {
                format!("is no valid JSON {place}")
            })
        })?;
        if apis.len() > MOST {
            return Err(fault(&format!(
                "has {} APIs: {MOST} are the most",
                apis.len()
            )));
        }
        let mut faults = Vec::new();
        let mut read = BTreeMap::new();
        for (at, (name, members)) in apis.into_iter().enumerate() {
            let is_named = is_name(&name);
            // Another text may be anything.
            let place = if is_named {
                format!("apis.{name}")
            } else {
                format!("apis, number {} of them", at.saturating_add(1))
            };
            let mut note = |member: &str, expected: &str| {
                let expected = format!("is wrong at {place}{member}: {expected}");
                faults.push(SettingFault::new("apis", &expected));
            };
            if !is_named {
                note(
                    "",
                    "a name has up to 32 characters of [a-z0-9-], and begins with none of them but [a-z0-9]",
                );
            }
            if let Some(api) = Api::parse(&name, members, &mut note) {
                read.insert(name, Rc::new(api));
            }
        }
        faults.truncate(MOST_FAULTS);
        if faults.is_empty() {
            Ok(Self(read))
        } else {
            Err(faults)
        }
    }

    /// The API of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Rc<Api>> {
        self.0.get(name)
    }

    /// Faults for those that the host would let nobody call, since `allowed_outbound_hosts` is made of these origins.
    #[must_use]
    pub fn out_of_reach(&self, origins: &[Url]) -> Vec<SettingFault> {
        let apis = self.0.values();
        let apis = apis.filter(|api| origins.iter().all(|it| it.origin() != api.origin.origin()));
        apis.map(|api| {
            let name = &api.name;
            SettingFault::new("apis", &format!(
                "is wrong at apis.{name}.url: none of `api_origin_1` to `api_origin_8` is that, so the host would let nobody call it: set one of them to the same"
            ))
        })
        .collect()
    }

    /// What the setting says, a text for each API.
    #[must_use]
    pub fn in_words(&self) -> Vec<String> {
        let apis = self.0.values();
        apis.map(|api| {
            let patterns: Vec<_> = api.allow.iter().map(Pattern::as_str).collect();
            let added = |way: &str, names: &[HeaderName]| match names {
                [] => String::new(),
                names => {
                    let names: Vec<_> = names.iter().map(HeaderName::as_str).collect();
                    format!("; with the {way} {}, too", names.join(", "))
                }
            };
            format!(
                "apis.{}: {} at {}, with access tokens for {}{}{}{}",
                api.name,
                patterns.join(", "),
                api.origin.origin().ascii_serialization(),
                api.scope.as_str(),
                added("request headers", &api.request_headers),
                added("response headers", &api.response_headers),
                if api.audit_paths {
                    "; the audit has its paths"
                } else {
                    ""
                },
            )
        })
        .collect()
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Api {
    fn parse(
        name: &str,
        Members(members): Members<Value>,
        note: &mut impl FnMut(&str, &str),
    ) -> Option<Self> {
        for (member, _) in &members {
            if !MEMBERS.contains(&member.as_str()) {
                note(
                    "",
                    &format!(
                        "has a member that is not known: its members are {}",
                        MEMBERS.join(", ")
                    ),
                );
            }
        }
        let of = |name: &str| {
            members
                .iter()
                .find(|(member, _)| member == name)
                .map(|(_, value)| value)
        };
        let text = |name: &str| of(name).and_then(Value::as_str);
        let origin = text("url").and_then(endpoint::origin);
        if origin.is_none() {
            note(
                ".url",
                "must be an https:// origin without a path, like https://graph.microsoft.com (http:// on loopback); paths belong into `allow`",
            );
        }
        let scope = text("scope").and_then(|scope| Scope::asked(scope).ok());
        if scope.is_none() {
            note(
                ".scope",
                "must hold scopes of one resource, in full, like https://graph.microsoft.com/.default, which stands alone",
            );
        }
        let allow = Self::patterns(of("allow"), note);
        let request_headers =
            Self::headers("request_headers", of("request_headers"), Way::Request, note);
        let response_headers = Self::headers(
            "response_headers",
            of("response_headers"),
            Way::Response,
            note,
        );
        let audit_paths = of("audit_paths").map_or(Some(false), Value::as_bool);
        if audit_paths.is_none() {
            note(".audit_paths", "must be true or false");
        }
        Some(Self {
            name: name.into(),
            origin: origin?,
            scope: scope?,
            request_headers: request_headers?,
            response_headers: response_headers?,
            audit_paths: audit_paths?,
            allow: allow?,
        })
    }

    fn patterns(given: Option<&Value>, note: &mut impl FnMut(&str, &str)) -> Option<Vec<Pattern>> {
        let patterns = given.and_then(Value::as_array);
        let Some(patterns) = patterns.filter(|it| (1..=MOST_PATTERNS).contains(&it.len())) else {
            note(
                ".allow",
                &format!(
                    "must be a list of 1 to {MOST_PATTERNS} methods with paths, like [\"GET /v1.0/me/**\"]"
                ),
            );
            return None;
        };
        let mut read = |(at, pattern): (usize, &Value)| {
            let pattern = Pattern::parse(pattern.as_str().unwrap_or_default());
            pattern
                .map_err(|expected| note(&format!(".allow[{at}]"), expected))
                .ok()
        };
        // All of them are read, so that all that is wrong is told.
        let patterns: Vec<_> = patterns.iter().enumerate().map(&mut read).collect();
        patterns.into_iter().collect()
    }

    fn headers(
        member: &str,
        given: Option<&Value>,
        way: Way,
        note: &mut impl FnMut(&str, &str),
    ) -> Option<Vec<HeaderName>> {
        let Some(given) = given else {
            return Some(Vec::new());
        };
        let Some(names) = given.as_array().filter(|names| names.len() <= MOST_HEADERS) else {
            note(
                &format!(".{member}"),
                &format!("must be a list of at most {MOST_HEADERS} names of headers"),
            );
            return None;
        };
        let mut read = |(at, name): (usize, &Value)| {
            let name = way.added(name.as_str().unwrap_or_default());
            name.map_err(|expected| note(&format!(".{member}[{at}]"), expected))
                .ok()
        };
        let names: Vec<_> = names.iter().enumerate().map(&mut read).collect();
        names.into_iter().collect()
    }

    /// The pattern that allows this.
    ///
    /// # Errors
    /// [`CallDefect::NotAllowed`].
    pub fn pattern(&self, method: &Method, path: &Path) -> Result<&Pattern, CallDefect> {
        let mut patterns = self.allow.iter();
        let pattern = patterns.find(|pattern| pattern.matches(method, path));
        pattern.ok_or(CallDefect::NotAllowed)
    }

    /// Where a call goes.
    ///
    /// # Errors
    /// [`CallDefect::Query`]: it is no part of a URL.
    pub fn uri(&self, path: &Path, query: Option<&str>) -> Result<Uri, CallDefect> {
        let origin = self.origin.origin().ascii_serialization();
        let uri = match query {
            Some(query) => format!("{origin}{path}?{query}"),
            None => format!("{origin}{path}"),
        };
        uri.parse().map_err(|_| CallDefect::Query)
    }
}

/// Whether a text can be an API's name: it stands in paths, headers and lines of the log.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && !text.starts_with('-')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn api(edit: impl FnOnce(&mut Value)) -> Value {
        let mut api = json!({"url": "https://graph.microsoft.com", "scope": "https://graph.microsoft.com/.default", "allow": ["GET /v1.0/me/**"]});
        edit(&mut api);
        api
    }

    fn apis(text: &Value) -> Apis {
        Apis::parse(&text.to_string()).unwrap()
    }

    #[test]
    fn an_api_is_called_as_its_patterns_say() {
        let apis = apis(&json!({"graph": api(|api| {
            api["allow"] = json!(["GET /v1.0/me/**", "POST /v1.0/me/sendMail"]);
        })}));
        let graph = apis.find("graph").unwrap();
        let path = |text: &str| Path::parse(text).unwrap();
        let pattern = graph.pattern(&Method::POST, &path("/v1.0/me/sendMail"));
        assert_eq!(pattern.unwrap().as_str(), "POST /v1.0/me/sendMail");
        let refused = graph.pattern(&Method::DELETE, &path("/v1.0/me"));
        assert_eq!(refused, Err(CallDefect::NotAllowed));
        let uri = graph.uri(&path("/v1.0/me/a%20b"), Some("$top=5")).unwrap();
        assert_eq!(uri, "https://graph.microsoft.com/v1.0/me/a%20b?$top=5");
        assert_eq!(
            graph.uri(&path("/v1.0"), None).unwrap(),
            "https://graph.microsoft.com/v1.0"
        );
        assert!(apis.find("Graph").is_none() && apis.find("").is_none());
    }

    #[test]
    fn what_is_wrong_in_an_api_is_told_by_its_place() {
        let faults = |text: &str| -> Vec<String> {
            let faults = Apis::parse(text).unwrap_err();
            assert!(faults.iter().all(|fault| fault.name == "apis"));
            faults.into_iter().map(|fault| fault.expected).collect()
        };
        for (text, places) in [
            (json!([]), vec!["must be an object of objects"]),
            (json!({"a": 7}), vec!["must be an object of objects"]),
            (
                json!({"a": {}}),
                vec!["apis.a.url", "apis.a.scope", "apis.a.allow"],
            ),
            (
                json!({"": api(|_| ())}),
                vec!["apis, number 1 of them: a name"],
            ),
            (json!({"Graph": api(|_| ())}), vec!["a name"]),
            (json!({"a/b": api(|_| ())}), vec!["a name"]),
            (json!({"-a": api(|_| ())}), vec!["a name"]),
            (json!({"Bearer eyJ.secret": api(|_| ())}), vec!["a name"]),
            (json!({"a".repeat(33): api(|_| ())}), vec!["a name"]),
            (
                json!({"a": api(|api| api["eyJ.secret"] = json!(1))}),
                vec!["apis.a: has a member that is not known"],
            ),
            (
                json!({"a": api(|api| api["url"] = json!("http://graph.microsoft.com"))}),
                vec!["apis.a.url"],
            ),
            (
                json!({"a": api(|api| api["url"] = json!("https://graph.microsoft.com/v1.0"))}),
                vec!["apis.a.url"],
            ),
            (
                json!({"a": api(|api| api["url"] = json!("https://u:eyJ@graph.microsoft.com"))}),
                vec!["apis.a.url"],
            ),
            (
                json!({"a": api(|api| api["url"] = json!("https://*.microsoft.com"))}),
                vec!["apis.a.url"],
            ),
            (
                json!({"a": api(|api| api["url"] = json!("https://graph.microsoft.com?a"))}),
                vec!["apis.a.url"],
            ),
            (
                json!({"a": api(|api| api["url"] = json!(7))}),
                vec!["apis.a.url"],
            ),
            (
                json!({"a": api(|api| api["scope"] = json!("User.Read"))}),
                vec!["apis.a.scope"],
            ),
            (
                json!({"a": api(|api| api["scope"] = json!("https://a.example/x https://b.example/y"))}),
                vec!["apis.a.scope"],
            ),
            (
                json!({"a": api(|api| api["scope"] = json!(["https://a.example/x"]))}),
                vec!["apis.a.scope"],
            ),
            (
                json!({"a": api(|api| api["allow"] = json!([]))}),
                vec!["apis.a.allow"],
            ),
            (
                json!({"a": api(|api| api["allow"] = json!("GET /x"))}),
                vec!["apis.a.allow"],
            ),
            (
                json!({"a": api(|api| api["allow"] = json!(["GET /x", "GET", 7, "GET /x/../eyJ"]))}),
                vec!["apis.a.allow[1]", "apis.a.allow[2]", "apis.a.allow[3]"],
            ),
            (
                json!({"a": api(|api| api["request_headers"] = json!(["x-a", "Authorization", "eyJ "]))}),
                vec!["apis.a.request_headers[1]", "apis.a.request_headers[2]"],
            ),
            (
                json!({"a": api(|api| api["request_headers"] = json!("x-a"))}),
                vec!["apis.a.request_headers: must be a list"],
            ),
            (
                json!({"a": api(|api| api["response_headers"] = json!(["Set-Cookie"]))}),
                vec!["apis.a.response_headers[0]"],
            ),
            (
                json!({"a": api(|api| api["audit_paths"] = json!("yes"))}),
                vec!["apis.a.audit_paths"],
            ),
        ] {
            let told = faults(&text.to_string());
            assert_eq!(told.len(), places.len(), "{text}: {told:?}");
            for (told, place) in told.iter().zip(places) {
                assert!(told.contains(place), "{text}: {told}");
                assert!(!told.contains("eyJ"), "{told}");
            }
        }
        let one = api(|_| ()).to_string();
        // One of them would win, and nobody could see which.
        let twice = format!("{{\"a\":{one},\n\"a\":{one}}}");
        assert!(
            faults(&twice)[0].contains("each name once (line 2"),
            "{twice}"
        );
        let member = one.replacen("\"scope\"", "\"url\":\"https://a.example\",\"scope\"", 1);
        assert!(
            faults(&format!("{{\"a\":{member}}}"))[0].contains("each name once"),
            "{member}"
        );
        assert_eq!(faults("{\"a\""), ["is no valid JSON (line 1, column 4)"]);
        assert_eq!(
            faults("client-secret-canary"),
            ["is no valid JSON (line 1, column 1)"]
        );
    }

    #[test]
    fn there_is_a_most_of_everything() {
        let many = |most: usize, api: Value| {
            let apis = (0..most).map(|number| (format!("a{number}"), api.clone()));
            Value::Object(apis.collect()).to_string()
        };
        assert!(Apis::parse(&many(MOST, api(|_| ()))).is_ok());
        let faults = Apis::parse(&many(10_000, api(|_| ()))).unwrap_err();
        assert_eq!(faults[0].expected, "has 10000 APIs: 64 are the most");
        assert_eq!(
            Apis::parse(&many(MOST, json!({}))).unwrap_err().len(),
            MOST_FAULTS
        );
        let with = |member: &str, of: &str, most: usize| {
            let api = api(|api| api[member] = json!(vec![of; most]));
            Apis::parse(&many(1, api)).is_ok()
        };
        for (member, of, most) in [
            ("allow", "GET /x", MOST_PATTERNS),
            ("request_headers", "x-a", MOST_HEADERS),
            ("response_headers", "x-a", MOST_HEADERS),
        ] {
            assert!(
                with(member, of, most) && !with(member, of, most + 1),
                "{member}"
            );
        }
        assert_eq!(Apis::parse(""), Ok(Apis::default()));
        assert_eq!(Apis::parse("{}"), Ok(Apis::default()));
    }

    #[test]
    fn an_api_that_the_host_does_not_let_out_to_is_found() {
        let apis = apis(&json!({
            "graph": api(|_| ()),
            "own": api(|api| api["url"] = json!("http://127.0.0.1:8080")),
        }));
        let origin = |text: &str| endpoint::origin(text).unwrap();
        let reached = [
            origin("https://graph.microsoft.com:443/"),
            origin("http://127.0.0.1:8080"),
        ];
        assert_eq!(apis.out_of_reach(&reached), []);
        for (origins, places) in [
            (&[][..], &["apis.graph.url", "apis.own.url"][..]),
            (&reached[..1], &["apis.own.url"]),
            (
                &[
                    origin("http://127.0.0.1:8081"),
                    origin("https://microsoft.com"),
                ],
                &["apis.graph.url", "apis.own.url"],
            ),
        ] {
            let faults = apis.out_of_reach(origins);
            assert_eq!(faults.len(), places.len());
            for (fault, place) in faults.iter().zip(places) {
                assert!(fault.expected.contains(place), "{fault}");
            }
        }
    }

    #[test]
    fn apis_can_be_said_in_words() {
        let apis = apis(&json!({
            "graph": api(|_| ()),
            "own": {"url": "http://127.0.0.1:8080", "scope": "api://own/Read api://own/Write", "allow": ["GET /a", "PUT /a/*"],
                "request_headers": ["X-A", "x-b"], "response_headers": ["x-c"], "audit_paths": true},
        }));
        assert_eq!(
            apis.in_words(),
            [
                "apis.graph: GET /v1.0/me/** at https://graph.microsoft.com, with access tokens for https://graph.microsoft.com/.default",
                "apis.own: GET /a, PUT /a/* at http://127.0.0.1:8080, with access tokens for api://own/Read api://own/Write; with the request headers x-a, x-b, too; with the response headers x-c, too; the audit has its paths",
            ]
        );
        assert_eq!(apis.names().collect::<Vec<_>>(), ["graph", "own"]);
    }
}
