//! Where a component wants to connect to: a connection string or URL, as the client `tokio-postgres` reads it.

use super::authorities::Authorities;
use std::net::Ipv6Addr;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// How long it may take to open a connection, with all that comes before it, unless the address has a `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the client has for an address that does not say how long a connection may be idle before it is probed.
const UNSAID_KEEP_ALIVE: Duration = Duration::from_hours(2);

/// Then it is what requests have (`connector.rs`): a dead connection is found in a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_PROBES: u32 = 3;
const UNACKNOWLEDGED: Duration = Duration::from_mins(1);

/// An address, with the password and whom to trust. Two that are equal lead to connections that are as good as each other.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    config: Config,
    authorities: Option<Authorities>,
}

/// A host and port of an address.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// As in a URI: an IPv6 address has brackets.
    pub(super) host: String,
    /// None: PostgreSQL's own.
    pub(super) port: Option<u16>,
}

impl Address {
    /// Reads what a component names, to trust these authorities besides the host's.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in words that hold nothing of it.
    pub(super) fn parse(
        text: &str,
        authorities: Option<Authorities>,
    ) -> Result<Self, &'static str> {
        // What else the client says may hold a part of a password that was not quoted.
        let mut config: Config = text.parse().map_err(|_| "invalid connection string")?;
        if !config.get_hostaddrs().is_empty() {
            return Err(
                "the address has hostaddr, which no allowed_outbound_hosts is for: write host alone",
            );
        }
        if config.get_hosts().is_empty() {
            return Err("the address has no host");
        }
        if config
            .get_hosts()
            .iter()
            .any(|it| matches!(it, Host::Unix(_)))
        {
            return Err("Unix sockets are not supported on WebAssembly");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_keepalives_idle() == UNSAID_KEEP_ALIVE {
            config.keepalives_idle(KEEP_ALIVE);
        }
        if config.get_keepalives_interval().is_none() {
            config.keepalives_interval(KEEP_ALIVE_INTERVAL);
        }
        if config.get_keepalives_retries().is_none() {
            config.keepalives_retries(KEEP_ALIVE_PROBES);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(UNACKNOWLEDGED);
        }
        if config.get_application_name().is_none() {
            config.application_name("behalf");
        }
        Ok(Self {
            config,
            authorities,
        })
    }

    /// Where it leads, in the order in which they are tried.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        let ports = self.config.get_ports();
        let hosts = self.config.get_hosts().iter().enumerate();
        hosts.map(move |(index, host)| Place {
            host: match host {
                Host::Tcp(host) if host.parse::<Ipv6Addr>().is_ok() => format!("[{host}]"),
                Host::Tcp(host) => host.clone(),
                Host::Unix(_) => String::new(),
            },
            port: ports.get(index).or(ports.first()).copied(),
        })
    }

    /// How long it may take to open a connection.
    pub(super) fn connect_timeout(&self) -> Duration {
        let timeout = self.config.get_connect_timeout();
        timeout.copied().unwrap_or(CONNECT_TIMEOUT)
    }

    /// The client's own words for it.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Whom to trust besides.
    pub(super) fn authorities(&self) -> Option<&Authorities> {
        self.authorities.as_ref()
    }
}

impl std::fmt::Display for Address {
    /// The places alone: no user, no database and no password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, place) in self.places().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{place}")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "postgres://{}", self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn places(text: &str) -> Result<String, &'static str> {
        Address::parse(text, None).map(|it| it.to_string())
    }

    #[test]
    fn every_place_of_an_address_is_known() {
        for (text, expected) in [
            ("host=db.test user=a password=secret", "postgres://db.test"),
            ("postgres://a:secret@db.test/d", "postgres://db.test:5432"),
            (
                "postgresql://a@[::1]:6432/d?connect_timeout=3",
                "postgres://[::1]:6432",
            ),
            ("host=a,b port=1,2", "postgres://a:1, postgres://b:2"),
            ("host=a,b port=1", "postgres://a:1, postgres://b:1"),
        ] {
            assert_eq!(places(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_leads_elsewhere_or_nowhere_is_refused_without_its_words() {
        for (text, reason) in [
            ("host=a hostaddr=127.0.0.2", "hostaddr"),
            ("hostaddr=127.0.0.2", "hostaddr"),
            ("user=a", "no host"),
            ("host=/var/run/postgresql", "Unix sockets"),
            ("host=a password=half secret", "invalid connection string"),
            ("host=a secret=1", "invalid connection string"),
            ("host=a sslmode=verify-full", "invalid connection string"),
            ("host=a port=secret", "invalid connection string"),
        ] {
            let error = places(text).unwrap_err();
            assert!(
                error.contains(reason) && !error.contains("secret"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn opening_has_a_limit() {
        let timeout = |text| Address::parse(text, None).ok().unwrap().connect_timeout();
        assert_eq!(timeout("host=a"), CONNECT_TIMEOUT);
        assert_eq!(timeout("host=a connect_timeout=3"), Duration::from_secs(3));
    }
}
