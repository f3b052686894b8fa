//! How values of the command line are read.

use crate::variables::check_name;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

/// An address with a port; of several, the first of IPv4. A port alone is one of this machine's own address: nobody else is
/// let in by leaving something out.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse() {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let found: Vec<_> = text
        .to_socket_addrs()
        .map_err(|_| "write ADDRESS:PORT, such as 127.0.0.1:3000, or a port".to_owned())?
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

/// A time, such as 10m or 1h30m; a number alone is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .map_err(|_| "write a time such as 500ms, 30s, 10m, 2h or 1day".to_owned())
}

/// A time with its unit: where days are usual, a number alone would be taken for them.
pub(super) fn time_with_unit(text: &str) -> Result<Duration, &'static str> {
    humantime::parse_duration(text).map_err(|_| "write a time with its unit, such as 90d or 12h")
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
            ("10m", Duration::from_mins(10)),
            ("1h30m", Duration::from_mins(90)),
            ("2h", Duration::from_hours(2)),
            ("1day", Duration::from_hours(24)),
            ("1 s", Duration::from_secs(1)),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for text in ["", "s", "-1s", "1x", "9999999999999 years"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_alone_is_no_number_of_days() {
        let ninety = Duration::from_hours(90 * 24);
        assert_eq!(time_with_unit("90d"), Ok(ninety));
        for text in ["30", "5000", "-1d", "soon", ""] {
            assert!(time_with_unit(text).is_err(), "{text}");
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
        for port_alone in ["3000", ":3000"] {
            assert_eq!(
                listen_address(port_alone).unwrap().to_string(),
                "127.0.0.1:3000"
            );
        }
        for text in ["", ":", "70000", ":70000", "127.0.0.1"] {
            assert!(listen_address(text).is_err(), "{text}");
        }
    }
}
