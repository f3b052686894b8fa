//! `allowed_outbound_hosts`: which origins a component may reach. Pure; nothing here touches the network.
//!
//! The grammar is Spin's (PLATFORMS.md, "Outbound HTTP"): `scheme://host[:port]`, with
//!
//! - scheme: a name, or `*`;
//! - host: a literal, `*.suffix`, an address range (`10.0.0.0/8`), or `*`;
//! - port: a number, a range `a..b` without `b`, or `*`; absent, the scheme's own.
//!
//! One slash at the end is tolerated. An entry that is empty after its variables were filled in is skipped. Spin's
//! `self` and `*.spin.internal` are refused: this host has neither self requests nor service chaining.

use crate::variables::{LookupError, Template, Variables};
use ipnet::IpNet;
use std::net::IpAddr;
use std::ops::Range;
use std::str::FromStr;
use url::Host;

/// The origins that one component may reach.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct AllowList {
    origins: Vec<OriginPattern>,
}

impl AllowList {
    /// Fills the variables of `entries` in and reads the result.
    ///
    /// # Errors
    ///
    /// The first entry that cannot be resolved or read, with the variables it draws on.
    pub(crate) fn resolve<'a>(
        entries: impl IntoIterator<Item = &'a Template>,
        variables: &Variables,
    ) -> Result<Self, AllowListError> {
        let mut origins = Vec::new();
        for entry in entries {
            let text = variables.resolve(entry)?;
            if !entry.is_literal()
                && matches!(text.as_str(), "" | "http://" | "https://" | "postgres://")
            {
                continue; // an optional endpoint that is not in use
            }
            origins.push(text.parse().map_err(|reason| AllowListError::Entry {
                entry: entry.to_string(),
                value: (!entry.is_literal() && !variables.has_secret(entry)).then_some(text),
                reason,
            })?);
        }
        Ok(Self { origins })
    }

    /// Whether a request may go to this origin. `host` is as in a URI, an IPv6 address in brackets.
    pub(crate) fn permits(&self, scheme: &str, host: &str, port: Option<u16>) -> bool {
        let (Ok(host), Some(port)) = (Host::parse(host), port.or_else(|| well_known_port(scheme)))
        else {
            return false;
        };
        self.origins
            .iter()
            .any(|origin| origin.permits(scheme, &host, port))
    }
}

/// Why an allow-list could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AllowListError {
    /// A variable has no value.
    #[error(transparent)]
    Variable(#[from] LookupError),
    /// An entry is not in the grammar.
    #[error("{entry:?}{} {reason}", .value.as_ref().map(|it| format!(" is {it:?}, which")).unwrap_or_default())]
    Entry {
        /// The entry as in the manifest.
        entry: String,
        /// What its variables made of it; none if that is secret or the same.
        value: Option<String>,
        /// What is wrong, as the end of a sentence about the entry.
        reason: String,
    },
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OriginPattern {
    /// None: any.
    scheme: Option<String>,
    host: HostPattern,
    port: PortPattern,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPattern {
    Any,
    Literal(Host),
    /// With the dot in front.
    Suffix(String),
    Network(IpNet),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PortPattern {
    Any,
    One(u16),
    Range(Range<u16>),
}

impl OriginPattern {
    fn permits(&self, scheme: &str, host: &Host, port: u16) -> bool {
        self.scheme.as_deref().is_none_or(|it| it == scheme)
            && self.host.permits(host)
            && self.port.permits(port)
    }
}

impl FromStr for OriginPattern {
    /// What is wrong, as the end of a sentence about the entry.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text
            .trim()
            .split_once("://")
            .ok_or("has no scheme; write scheme://host[:port]")?;
        let any = scheme == "*";
        if !any && (scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_alphabetic())) {
            return Err(format!(
                "has the scheme {scheme:?}; write letters, or * for any"
            ));
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        // Colons separate ports, and the groups of IPv6 networks too; whatever is a host as it stands has no port.
        let (host, port) = match (HostPattern::from_str(rest), rest.rsplit_once(':')) {
            (Ok(host), _) => (host, ""),
            (Err(_), Some((host, port))) => (HostPattern::from_str(host)?, port),
            (Err(reason), None) => return Err(reason),
        };
        let port = match port {
            "" => {
                let port = well_known_port(scheme)
                    .ok_or("needs a port, because its scheme has no usual one")?;
                PortPattern::One(port)
            }
            port => port.parse()?,
        };
        Ok(Self {
            scheme: (!any).then(|| scheme.to_owned()),
            host,
            port,
        })
    }
}

impl HostPattern {
    fn permits(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Any, _) => true,
            (Self::Literal(literal), host) => literal == host,
            (Self::Suffix(suffix), Host::Domain(domain)) => domain.ends_with(suffix.as_str()),
            (Self::Network(network), Host::Ipv4(address)) => {
                network.contains(&IpAddr::V4(*address))
            }
            (Self::Network(network), Host::Ipv6(address)) => {
                network.contains(&IpAddr::V6(*address))
            }
            (Self::Suffix(_), Host::Ipv4(_) | Host::Ipv6(_))
            | (Self::Network(_), Host::Domain(_)) => false,
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        if text.contains('/') {
            return Err("has a path; write scheme://host[:port] alone".to_owned());
        }
        let invalid = |host: &str| format!("has the host {host:?}, which is none");
        if let Some(suffix) = text.strip_prefix("*.") {
            return match Host::parse(suffix) {
                Ok(Host::Domain(domain)) if domain.contains('*') => Err(invalid(text)),
                Ok(Host::Domain(domain)) if domain == "spin.internal" => {
                    Err(NO_CHAINING.to_owned())
                }
                Ok(Host::Domain(domain)) => Ok(Self::Suffix(format!(".{domain}"))),
                Ok(_) | Err(_) => Err(invalid(text)),
            };
        }
        match Host::parse(text) {
            Ok(Host::Domain(domain)) if domain.contains('*') => {
                Err("has a wildcard inside its host; `*.` may only stand in front".to_owned())
            }
            Ok(Host::Domain(domain)) if domain == "self" || domain == "self.alt" => {
                Err(NO_CHAINING.to_owned())
            }
            Ok(Host::Domain(domain)) if domain.ends_with(".spin.internal") => {
                Err(NO_CHAINING.to_owned())
            }
            Ok(host) => Ok(Self::Literal(host)),
            Err(_) => Err(invalid(text)),
        }
    }
}

impl PortPattern {
    fn permits(&self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::One(one) => *one == port,
            Self::Range(range) => range.contains(&port),
        }
    }
}

impl FromStr for PortPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |number: &str| {
            number
                .parse::<u16>()
                .map_err(|_| format!("has the port {text:?}; write a number, a range a..b, or *"))
        };
        Ok(match text.split_once("..") {
            _ if text == "*" => Self::Any,
            Some((start, end)) => Self::Range(number(start)?..number(end)?),
            None => Self::One(number(text)?),
        })
    }
}

const NO_CHAINING: &str =
    "asks for self requests or service chaining, which this host does not have";

fn well_known_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        "mqtt" => Some(1883),
        "mysql" => Some(3306),
        "postgres" => Some(5432),
        "redis" => Some(6379),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::variables::{Declaration, Environment};
    use http::Uri;
    use std::collections::BTreeMap;

    fn list(entries: &[&str]) -> AllowList {
        AllowList {
            origins: entries
                .iter()
                .map(|it| it.parse().unwrap_or_else(|e| panic!("{it}: {e}")))
                .collect(),
        }
    }

    fn permits(list: &AllowList, url: &str) -> bool {
        let uri: Uri = url.parse().unwrap();
        list.permits(
            uri.scheme_str().unwrap(),
            uri.host().unwrap(),
            uri.port_u16(),
        )
    }

    /// Entry; what it permits; what it does not.
    type Case = (
        &'static str,
        &'static [&'static str],
        &'static [&'static str],
    );

    const CASES: &[Case] = &[
        (
            "https://example.com",
            &[
                "https://example.com/",
                "https://example.com:443/a?b",
                "https://EXAMPLE.com/",
            ],
            &[
                "http://example.com/",
                "https://example.com:8443/",
                "https://a.example.com/",
                "https://example.com.evil.test/",
                "https://example.com./",
                "https://evil-example.com/",
            ],
        ),
        (
            "https://Example.COM/",
            &["https://example.com/"],
            &["https://example.com:80/"],
        ),
        (
            "http://example.com",
            &["http://example.com/", "http://example.com:80/"],
            &["http://example.com:443/"],
        ),
        (
            "http://example.com:8080/",
            &["http://example.com:8080/"],
            &["http://example.com/"],
        ),
        (
            "http://example.com:*",
            &["http://example.com/", "http://example.com:1/"],
            &["https://example.com/"],
        ),
        (
            "http://example.com:8000..8002",
            &["http://example.com:8000/", "http://example.com:8001/"],
            &[
                "http://example.com:7999/",
                "http://example.com:8002/",
                "http://example.com/",
            ],
        ),
        (
            "*://example.com:443",
            &["https://example.com/", "http://example.com:443/"],
            &["http://example.com/"],
        ),
        (
            "*://*:*",
            &[
                "https://example.com/",
                "http://10.1.2.3:4/",
                "http://[::1]/",
            ],
            &[],
        ),
        (
            "https://*",
            &["https://example.com/", "https://10.0.0.1/"],
            &["https://example.com:8443/"],
        ),
        (
            "https://*.example.com",
            &["https://a.example.com/", "https://a.b.EXAMPLE.com/"],
            &[
                "https://example.com/",
                "https://myexample.com/",
                "https://a.example.com:444/",
                "https://10.0.0.1/",
            ],
        ),
        (
            "https://*.Example.COM:8443",
            &["https://a.example.com:8443/"],
            &["https://a.example.com/"],
        ),
        (
            "http://127.0.0.1:3999",
            &["http://127.0.0.1:3999/"],
            &["http://localhost:3999/", "http://127.0.0.2:3999/"],
        ),
        (
            "http://10.1.2.3/8",
            &["http://10.0.0.1/", "http://10.255.0.1/"],
            &["http://11.0.0.1/", "http://a.test/"],
        ),
        (
            "*://127.0.0.1/24:63551",
            &["http://127.0.0.9:63551/"],
            &["http://127.0.1.9:63551/"],
        ),
        (
            "http://[::1]",
            &["http://[::1]/", "http://[0:0::1]:80/"],
            &["http://[::1]:81/", "http://[::2]/"],
        ),
        (
            "http://[2001:db8::1]:443",
            &["http://[2001:db8::1]:443/"],
            &["http://[2001:db8::1]/"],
        ),
        (
            "http://[::1]:8000..9000",
            &["http://[::1]:8999/"],
            &["http://[::1]:9000/"],
        ),
        (
            "http://2001:db8::/32",
            &["http://[2001:db8:1::1]/"],
            &["http://[2001:db9::1]/", "http://1.2.3.4/"],
        ),
        (
            "http://2001:db8::/32:443",
            &["http://[2001:db8::1]:443/"],
            &["http://[2001:db8::1]/"],
        ),
        ("http://::1/128", &["http://[::1]/"], &["http://[::2]/"]),
        (
            "http://bücher.example",
            &["http://xn--bcher-kva.example/"],
            &["http://bucher.example/"],
        ),
        (" https://example.com ", &["https://example.com/"], &[]),
        (
            "postgres://db.test",
            &["postgres://db.test/", "postgres://db.test:5432/"],
            &[
                "postgres://db.test:6432/",
                "https://db.test:5432/",
                "postgres://other.test/",
            ],
        ),
    ];

    #[test]
    fn entries_permit_what_they_say() {
        for (entry, permitted, denied) in CASES {
            let list = list(&[entry]);
            for url in *permitted {
                assert!(permits(&list, url), "{entry} must permit {url}");
            }
            for url in *denied {
                assert!(!permits(&list, url), "{entry} must not permit {url}");
            }
        }
    }

    #[test]
    fn several_entries_add_up() {
        let list = list(&["https://a.test", "http://b.test:*"]);
        assert!(permits(&list, "https://a.test/") && permits(&list, "http://b.test:9/"));
        assert!(!permits(&list, "http://a.test/") && !permits(&list, "https://b.test/"));
        assert!(!permits(&AllowList::default(), "https://a.test/"));
    }

    #[test]
    fn an_unknown_scheme_needs_a_port() {
        assert!(list(&["*://*:*"]).permits("gopher", "a.test", Some(70)));
        assert!(!list(&["*://*:*"]).permits("gopher", "a.test", None));
        assert!(!list(&["*://*:*"]).permits("http", "not a host", None));
    }

    #[test]
    fn what_is_not_an_entry() {
        for entry in [
            "",
            "*",
            ":",
            "?",
            "example.com",
            "example.com:8080",
            "[::1]",
            "://example.com:80",
            "insecure:allow-all",
            "ht-tp://example.com:80",
            "{http,https}://example.com:80",
            "*://example.com",
            "gopher://example.com",
            "http://example.com/path",
            "http://example.com//",
            "http://*.example.com//",
            "http://*.example.com/p",
            "http://example.com:8080/p",
            "http://127.0.0.0/24/p",
            "http://[::1]/foo",
            "http://[::1]//",
            "http://ff00::/8/extra",
            "http://[::1",
            "http://[::1]junk",
            "http://[::1]::80",
            "http://example.com:notaport",
            "http://example.com:99999",
            "http://example.com:80:90",
            "http://example.com:8080..",
            "http://example.com:8080..70000",
            "http://*:notaport",
            "http://a.*.com",
            "http://*a.com",
            "http://*.*.com",
            "http://*.",
            "http://*.127.0.0.1",
            "http://*.[::1]",
            "http://exa[mple.com",
            r"http://exa\mple.com",
            "http://example%.com",
            "http://user@example.com",
            "http://self",
            "http://self.alt",
            "http://a.spin.internal",
            "http://*.spin.internal",
        ] {
            assert!(
                entry.parse::<OriginPattern>().is_err(),
                "{entry} must be refused"
            );
        }
    }

    #[test]
    fn variables_fill_entries_in() {
        let names = ["authority", "empty", "the_secret", "bad"];
        let values = [
            "https://login.test",
            "",
            "https://hidden.test/path",
            "https://login.test/common",
        ];
        let declared: BTreeMap<_, _> = std::iter::zip(names, values)
            .map(|(name, value)| {
                let secret = name.contains("secret");
                (
                    name.to_owned(),
                    Declaration {
                        default: Some(value.to_owned()),
                        secret,
                    },
                )
            })
            .collect();
        let variables = Variables::new(declared, Environment::default());
        let resolve = |entries: &[&str]| {
            let entries: Vec<_> = entries
                .iter()
                .map(|it| Template::parse(it).unwrap())
                .collect();
            AllowList::resolve(&entries, &variables)
        };

        let list = resolve(&[
            "{{ authority }}",
            "{{ empty }}",
            "https://{{ empty }}",
            "http://{{ empty }}",
        ])
        .unwrap();
        assert_eq!(list.origins.len(), 1);
        assert!(permits(&list, "https://login.test/"));

        for (entry, message) in [
            (
                "{{ bad }}",
                "\"{{ bad }}\" is \"https://login.test/common\", which has a path",
            ),
            ("{{ the_secret }}", "\"{{ the_secret }}\" has a path"),
            ("http://a/b", "\"http://a/b\" has a path"),
            ("", "\"\" has no scheme"),
            ("{{ nobody }}", "undefined variable: nobody"),
        ] {
            let error = resolve(&[entry]).unwrap_err().to_string();
            assert!(error.starts_with(message), "{entry}: {error}");
        }
    }
}
