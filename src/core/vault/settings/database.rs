//! The settings of the PostgreSQL database that records are kept in (README, "Settings"). They are read when somebody asks where
//! it is, and not before: an app that keeps its records elsewhere has none of them.

use std::net::Ipv4Addr;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::error::VaultError;
use crate::port::Config;
use crate::secret::DatabasePassword;
use crate::vault::credential::blocks;
use crate::vault::settings::{Noted, Reader};

/// Where the database is, and who asks it.
#[derive(Debug)]
pub struct DatabaseSettings {
    /// `postgres_host`: one name or IPv4 address.
    pub host: String,
    /// `postgres_port`.
    pub port: u16,
    /// `postgres_database`.
    pub database: String,
    /// `postgres_user`.
    pub user: String,
    /// `postgres_credential`, with the setting that belongs to it.
    pub credential: DatabaseCredential,
    /// `postgres_ca_pem`, as one block of PEM (RFC 7468) with lines as they should be; none: the authorities that the host trusts.
    pub ca_pem: Option<String>,
}

/// How the user of the database proves who it is.
#[derive(Debug)]
pub enum DatabaseCredential {
    /// By `postgres_password`.
    Password(DatabasePassword),
    /// By an access token of the platform's managed identity.
    ManagedIdentity,
}

impl DatabaseSettings {
    /// Reads and checks them.
    ///
    /// # Errors
    /// [`crate::error::OperatorError::Setting`] with all that are missing or wrong.
    pub fn read(config: &impl Config) -> Result<Self, VaultError> {
        Reader::read(config, |read| {
            let host = read.database_host();
            let port = read.number("postgres_port", 1, u16::MAX.into());
            let database = read.database_name("postgres_database");
            let user = read.database_name("postgres_user");
            let credential = read.database_credential();
            let ca_pem = read.database_ca();
            Ok(Self {
                host: host?,
                port: u16::try_from(port?).map_err(|_| Noted)?,
                database: database?,
                user: user?,
                credential: credential?,
                ca_pem: ca_pem?,
            })
        })
    }

    /// Whether what is sent there stays on this machine.
    #[must_use]
    pub fn is_on_this_machine(&self) -> bool {
        let ip: Result<Ipv4Addr, _> = self.host.parse();
        ip.map_or_else(
            |_| self.host.eq_ignore_ascii_case("localhost"),
            |ip| ip.is_loopback(),
        )
    }
}

impl<C: Config> Reader<'_, C> {
    /// One host, in characters that mean nothing else, neither in an address nor in `allowed_outbound_hosts`, and as it is written:
    /// Spin compares the two so. An IPv6 address it can allow in no spelling.
    fn database_host(&self) -> Result<String, Noted> {
        let name = "postgres_host";
        let host = self.text(name)?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let is_one = (1..=253).contains(&host.len()) && host.bytes().all(allowed);
        self.expect(
            name,
            is_one.then_some(host),
            "must be the name of one host or its IPv4 address, without a port, like behalf.postgres.database.azure.com",
        )
    }

    fn database_name(&self, name: &str) -> Result<String, Noted> {
        let text = self.required(
            name,
            "is empty: it must be the name that the database server knows",
        )?;
        self.without_nul(name, text)
    }

    fn database_credential(&self) -> Result<DatabaseCredential, Noted> {
        let (name, password) = ("postgres_credential", "postgres_password");
        match self.text(name)?.as_str() {
            "password" => {
                let expected = "is empty: set it to the password of `postgres_user`, or `postgres_credential` to managed-identity";
                let text = self.required(password, expected)?;
                let text = self.without_nul(password, text)?;
                Ok(DatabaseCredential::Password(DatabasePassword::new(text)))
            }
            "managed-identity" => Ok(DatabaseCredential::ManagedIdentity),
            _ => self.fault(name, "must be password or managed-identity"),
        }
    }

    /// The protocol ends texts with it.
    fn without_nul(&self, name: &str, text: String) -> Result<String, Noted> {
        let text = Some(text).filter(|text| !text.contains('\0'));
        self.expect(name, text, "must not hold a NUL")
    }

    /// One, because Spin looks at the first alone.
    fn database_ca(&self) -> Result<Option<String>, Noted> {
        let name = "postgres_ca_pem";
        let text = self.text(name)?;
        if text.is_empty() {
            return Ok(None);
        }
        let mut certificates = blocks(&text, "CERTIFICATE");
        let one = certificates
            .next()
            .filter(|_| certificates.next().is_none());
        let expected = "must hold the certificate of one authority in PEM, -----BEGIN CERTIFICATE----- and so on, or be empty";
        let der = self.expect(name, one, expected)?;
        Ok(Some(pem(&der)))
    }
}

/// A certificate in PEM, in lines of 64 characters as RFC 7468 has them: a variable may have lost its own.
fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    // 48 bytes are 64 characters.
    for line in der.chunks(48) {
        text.push_str(&STANDARD.encode(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::OperatorError;
    use crate::vault::samples::{CERTIFICATE, Values, shows_a_secret};
    use crate::vault::settings::default;
    use crate::vault::settings::tests::Asked;

    fn with(changes: &[(&'static str, &str)]) -> Values {
        let least = [
            ("postgres_user", "behalf-app"),
            ("postgres_password", "password-canary"),
        ];
        least
            .iter()
            .chain(changes)
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect()
    }

    fn at_fault(values: &Values) -> Vec<String> {
        match DatabaseSettings::read(values) {
            Ok(_) => Vec::new(),
            Err(VaultError::Operator(OperatorError::Setting(faults))) => {
                assert!(!shows_a_secret(&format!("{faults:?}")));
                faults.into_iter().map(|fault| fault.name).collect()
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_user_and_a_password_are_enough() {
        let settings = DatabaseSettings::read(&with(&[])).unwrap();
        let DatabaseSettings {
            host,
            port,
            database,
            user,
            ..
        } = &settings;
        assert_eq!(
            (host.as_str(), *port, database.as_str(), user.as_str()),
            ("127.0.0.1", 5432, "behalf", "behalf-app")
        );
        assert!(settings.ca_pem.is_none() && settings.is_on_this_machine());
        assert!(
            matches!(&settings.credential, DatabaseCredential::Password(password) if password.expose() == "password-canary")
        );
        assert!(!shows_a_secret(&format!("{settings:?}")));
    }

    #[test]
    fn each_wrong_setting_is_named() {
        for (name, value) in [
            ("postgres_host", ""),
            ("postgres_host", "a.example,b.example"),
            ("postgres_host", "a.example b.example"),
            ("postgres_host", "a.example:5432"),
            ("postgres_host", "a.example' hostaddr='10.0.0.1"),
            ("postgres_host", "a.example\\"),
            ("postgres_host", "/var/run/postgresql"),
            ("postgres_host", "@abstract"),
            ("postgres_host", "postgres://a.example"),
            ("postgres_host", "user@a.example"),
            ("postgres_host", "::1"),
            ("postgres_host", "[::1]"),
            ("postgres_host", "*"),
            ("postgres_host", "*.example"),
            ("postgres_host", "10.0.0.0/8"),
            ("postgres_host", "b\u{fc}cher.example"),
            ("postgres_host", "a\0"),
            ("postgres_host", &"a".repeat(254)),
            ("postgres_port", "0"),
            ("postgres_port", "65536"),
            ("postgres_port", "5432,5433"),
            ("postgres_port", "-1"),
            ("postgres_database", "\0"),
            ("postgres_user", ""),
            ("postgres_user", "a\0b"),
            ("postgres_password", " "),
            ("postgres_password", "password-canary\0"),
            ("postgres_credential", "managed"),
            ("postgres_ca_pem", "-----BEGIN CERTIFICATE-----"),
            ("postgres_ca_pem", "/etc/ssl/ca.pem"),
            ("postgres_ca_pem", &CERTIFICATE.repeat(2)),
        ] {
            assert_eq!(at_fault(&with(&[(name, value)])), [name], "{value:?}");
        }
        let all = [("postgres_user", ""), ("postgres_password", "")];
        assert_eq!(
            at_fault(&with(&all)),
            ["postgres_user", "postgres_password"]
        );
    }

    #[test]
    fn a_managed_identity_needs_no_password() {
        let values = with(&[
            ("postgres_password", ""),
            ("postgres_credential", "managed-identity"),
        ]);
        assert_eq!(at_fault(&values), [""; 0]);
    }

    #[test]
    fn only_this_machine_is_this_machine() {
        for (host, expected) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("localhost", true),
            ("LocalHost", true),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
            ("10.0.0.1", false),
            ("db", false),
        ] {
            let settings = DatabaseSettings::read(&with(&[("postgres_host", host)])).unwrap();
            assert_eq!(settings.is_on_this_machine(), expected, "{host}");
        }
    }

    #[test]
    fn a_certificate_that_lost_its_lines_has_them_again() {
        let flat = CERTIFICATE.trim().replace('\n', " ");
        for given in [CERTIFICATE, &flat, &format!("subject=x\n{CERTIFICATE}")] {
            let settings = DatabaseSettings::read(&with(&[("postgres_ca_pem", given)])).unwrap();
            assert_eq!(settings.ca_pem.as_deref(), Some(CERTIFICATE));
        }
    }

    /// As of `spin.toml`: what the manifest misses would keep its default, and nobody could set it.
    #[test]
    fn the_manifest_has_the_same_settings_and_defaults() {
        let manifest = include_str!("../../../http/postgres/variables.toml");
        let lines = manifest.lines().filter(|line| line.contains(" = "));
        let variables: Vec<_> = lines
            .map(|line| {
                let (name, rest) = line.split_once(" = { default = \"").unwrap();
                (name, rest.split_once('"').unwrap().0)
            })
            .collect();
        let mut names: Vec<_> = variables.iter().map(|(name, _)| *name).collect();
        for (name, value) in variables {
            assert_eq!(value, default(name), "{name}");
        }
        let values = with(&[]);
        let config = Asked::of(&values);
        DatabaseSettings::read(&config).unwrap();
        let mut asked = config.names();
        asked.sort_unstable();
        names.sort_unstable();
        assert_eq!(asked, names);
    }
}
