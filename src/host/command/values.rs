//! How values of the command line are read.

use crate::variables::check_name;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

/// An address with a port; of several, the first of IPv4.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let found: Vec<_> = text
        .to_socket_addrs()
        .map_err(|_| "write ADDRESS:PORT, such as 127.0.0.1:3000".to_owned())?
        .collect();
    // localhost is both; clients that print it try IPv4 too.
    let first = found.iter().find(|it| it.is_ipv4()).or(found.first());
    first
        .copied()
        .ok_or_else(|| "this name has no address".to_owned())
}

/// A variable and its value.
pub(super) fn assignment(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    check_name(name)?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A path, as in a URL.
pub(super) fn path(text: &str) -> Result<String, &'static str> {
    let plain = text.starts_with('/') && !text.contains(['?', '#']);
    plain
        .then(|| text.to_owned())
        .ok_or("write a path, such as /readyz")
}

/// A number above 0.
pub(super) fn positive(text: &str) -> Result<usize, &'static str> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or("write a whole number above 0")
}

/// A time with a unit; without one, in seconds.
pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    let units = [
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
    ];
    let (number, nanoseconds) = units
        .into_iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))
        .unwrap_or((text, 1_000_000_000));
    let number: u64 = number
        .parse()
        .map_err(|_| "write a whole number with m, s, ms, us or ns")?;
    number
        .checked_mul(nanoseconds)
        .map(Duration::from_nanos)
        .ok_or("this is too long")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("1", Duration::from_secs(1)),
            ("2s", Duration::from_secs(2)),
            ("3ms", Duration::from_millis(3)),
            ("4us", Duration::from_micros(4)),
            ("5ns", Duration::from_nanos(5)),
            ("6m", Duration::from_mins(6)),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for text in ["", "s", "1h", "1.5s", "-1s", "1 s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(
            listen_address("[::1]:3000").unwrap().to_string(),
            "[::1]:3000"
        );
        assert_eq!(
            listen_address("localhost:0").unwrap().to_string(),
            "127.0.0.1:0"
        );
        assert!(listen_address("3000").is_err());
    }
}
