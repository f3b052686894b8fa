//! Which addresses a setting or another system's answer may name: whatever carries a secret goes over https, or does not leave
//! this machine.

use std::cell::Cell;
use std::net::IpAddr;

use url::{Host, Url};

/// Reads a URL that is written as one, without a user or a password in it: secrets have settings of their own.
///
/// By itself the parser repairs what is none, as browsers do (<https://url.spec.whatwg.org/#writing>): it drops tabs and the
/// blanks around, and takes a backslash for a slash. What it then means is not what is written there. It notes a user and a
/// password, too.
#[must_use]
pub fn url(text: &str) -> Option<Url> {
    let is_as_written = Cell::new(true);
    let note = |_| is_as_written.set(false);
    let url = Url::options()
        .syntax_violation_callback(Some(&note))
        .parse(text)
        .ok()?;
    is_as_written.get().then_some(url)
}

/// Whether what is sent there cannot be read on the way: over https, or to this machine alone.
#[must_use]
pub fn is_confidential(url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url))
}

/// Reads an origin that may carry a secret: without a path, a query, a fragment or a user.
#[must_use]
pub fn origin(text: &str) -> Option<Url> {
    let is_origin_alone = |url: &Url| {
        url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && !text.contains('*')
    };
    url(text).filter(|url| is_origin_alone(url) && is_confidential(url))
}

/// 169.254.0.0/16 (RFC 3927): addresses that the platform serves itself, such as the one that gives virtual machines their
/// identity over plain HTTP.
pub(crate) fn is_link_local(url: &Url) -> bool {
    matches!(url.host(), Some(Host::Ipv4(ip)) if ip.is_link_local())
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => IpAddr::from(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::from(ip).is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_as_it_is_written() {
        for text in [
            "https://behalf.example",
            "https://BEHALF.example:8443/v1/sweep?a=b%20c#d",
            "http://[::1]:3003/",
            "mailto:someone",
        ] {
            assert!(url(text).is_some(), "{text}");
        }
        for text in [
            "",
            "behalf.example",
            "https:behalf.example",
            "https://behalf.example\\v1",
            " https://behalf.example",
            "https://behalf.example\n",
            "https://be\thalf.example",
            "https://behalf.example/a b",
            "https://behalf.example/%zz",
            "https://user@behalf.example",
            "https://:password@behalf.example",
            "https://a@b@behalf.example",
        ] {
            assert_eq!(url(text), None, "{text}");
        }
    }

    #[test]
    fn plain_http_stays_on_this_machine() {
        for (url, expected) in [
            ("https://login.microsoftonline.com", true),
            ("http://127.0.0.1:3003", true),
            ("http://[::1]:3003/", true),
            ("http://localhost:3003", true),
            ("http://localhost.example", false),
            ("http://169.254.169.254", false),
            ("http://10.0.0.1", false),
            ("ftp://127.0.0.1", false),
        ] {
            assert_eq!(
                is_confidential(&Url::parse(url).unwrap()),
                expected,
                "{url}"
            );
        }
    }
}
