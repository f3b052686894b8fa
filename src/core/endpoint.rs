//! Which addresses a setting may name: whatever carries a secret goes over https, or does not leave this machine.

use std::net::IpAddr;

use url::{Host, Url};

/// Whether what is sent there cannot be read on the way: over https, or to this machine alone.
pub(crate) fn is_confidential(url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url))
}

/// Reads an origin that may carry a secret: without a path, a query, a fragment or a user.
pub(crate) fn origin(text: &str) -> Option<Url> {
    let is_origin_alone = |url: &Url| {
        url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && !has_userinfo(url)
            && !text.contains('*')
    };
    let url = Url::parse(text).ok();
    url.filter(|url| is_origin_alone(url) && is_confidential(url))
}

/// 169.254.0.0/16 (RFC 3927): addresses that the platform serves itself, such as the one that gives virtual machines their
/// identity over plain HTTP.
pub(crate) fn is_link_local(url: &Url) -> bool {
    matches!(url.host(), Some(Host::Ipv4(ip)) if ip.is_link_local())
}

/// Whether it has a user or a password in it: secrets have settings of their own.
pub(crate) fn has_userinfo(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
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
