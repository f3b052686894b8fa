//! Where the database is that records are kept in: interface `database` of the WIT, whose documentation is theirs.
//!
//! An address has a credential in it, which is the database's alone, and the only one that leaves the vault.

use std::cell::Cell;
use std::fmt::Write as _;
use std::rc::Rc;

use crate::error::{System, VaultError};
use crate::identity::Guid;
use crate::secret::{AccessToken, DatabaseAddress};
use crate::vault::Vault;
use crate::vault::cache::Cache;
use crate::vault::context::{Context, Environment};
use crate::vault::port::Terms;
use crate::vault::settings::database::{DatabaseCredential, DatabaseSettings};
use crate::vault::single_flight::SingleFlight;
use crate::vault::token_client::identity::identity_token;

/// What Azure's databases for PostgreSQL are called when a token for them is asked for (Microsoft Learn, "Connect with managed
/// identity to Azure Database for PostgreSQL",
/// <https://learn.microsoft.com/azure/postgresql/security/security-connect-with-managed-identity>).
const RESOURCE: &str = "https://ossrdbms-aad.database.windows.net";
/// Seconds before its end at which a token is renewed; half its life, if that is less.
const MARGIN: u64 = 300;
/// Seconds between two tries to renew one that is still good.
const PAUSE: u64 = 30;

/// How a database is reached: `database.connection` of the WIT.
#[derive(Debug)]
pub struct Connection {
    /// Where it is and as whom, with the credential.
    pub address: DatabaseAddress,
    /// The certificate in PEM of the authority that its own has to be from; none: one that the host trusts.
    pub ca_root: Option<String>,
}

impl<E: Environment> Vault<E> {
    /// `database.check-settings` of the WIT.
    ///
    /// # Errors
    /// [`crate::error::OperatorError::Setting`].
    pub fn check_database_settings(&self) -> Result<(), VaultError> {
        self.current_database_settings().map(drop)
    }

    /// `database.locate` of the WIT.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn locate_database(&self, terms: Terms) -> Result<Connection, VaultError> {
        let context = self.context(terms)?;
        let settings = self.current_database_settings()?;
        let address = match &settings.credential {
            DatabaseCredential::Password(password) => address(&settings, password.expose()),
            DatabaseCredential::ManagedIdentity => {
                let token = self.sources.database_token(&context).await?;
                address(&settings, token.text.expose())
            }
        };
        Ok(Connection {
            address,
            ca_root: settings.ca_pem.clone(),
        })
    }

    fn current_database_settings(&self) -> Result<Rc<DatabaseSettings>, VaultError> {
        self.database_settings
            .current(&self.sources.env, DatabaseSettings::read)
    }
}

/// In libpq's words (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING>), as far as Spin's driver has them:
/// `sslmode=require` verifies chain and name there. The same settings make the same address, since hosts keep connections by it.
///
/// There is no `options` among them, with which limits of time could be set: PgBouncer refuses it. They are set on the role.
fn address(settings: &DatabaseSettings, password: &str) -> DatabaseAddress {
    let DatabaseSettings {
        host,
        port,
        database,
        user,
        ca_pem,
        ..
    } = settings;
    // A database beside the app mostly has no certificate, and nobody can listen in.
    let tls = if settings.is_on_this_machine() && ca_pem.is_none() {
        "prefer"
    } else {
        "require"
    };
    let texts = [host, database, user, password];
    let longest: usize = texts.iter().map(|text| text.len().saturating_mul(2)).sum();
    // Room for all of it at once, so that no copy stays behind.
    let mut text = String::with_capacity(longest.saturating_add(256));
    for (name, value) in ["host", "dbname", "user", "password"]
        .into_iter()
        .zip(texts)
    {
        text.push_str(name);
        text.push('=');
        push_quoted(&mut text, value);
        text.push(' ');
    }
    // Azure's load balancers forget a connection on which nothing was said for four minutes (Microsoft Learn, "Load Balancer TCP
    // Reset and Idle Timeout").
    let _ = write!(
        text,
        "port={port} sslmode={tls} connect_timeout=3 keepalives_idle=60 application_name=behalf"
    );
    DatabaseAddress::new(text)
}

/// In single quotes, within which a backslash goes before a quote and before itself.
fn push_quoted(text: &mut String, value: &str) {
    text.push('\'');
    for character in value.chars() {
        if matches!(character, '\'' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push('\'');
}

/// The managed identity's token for databases. Every one makes another address, and so another pool of connections: all calls have
/// the same one, until a new one is there.
pub(super) struct DatabaseTokens {
    /// By the client id of the identity that it is of.
    kept: Cache<Option<Guid>, Rc<DatabaseToken>>,
    fetches: SingleFlight<Option<Guid>, Rc<DatabaseToken>, VaultError>,
    /// Until when nobody tries to renew it, by the clock that nobody sets.
    pause_until: Cell<u64>,
}

pub(super) struct DatabaseToken {
    text: AccessToken,
    /// Unix seconds.
    renew_at: u64,
}

impl DatabaseTokens {
    /// None yet.
    pub(super) fn new() -> Self {
        Self {
            kept: Cache::new(1),
            fetches: SingleFlight::new(VaultError::upstream(System::ManagedIdentity)),
            pause_until: Cell::default(),
        }
    }

    /// The token that is at hand, if it is still good.
    pub(super) fn kept<E: Environment>(
        &self,
        context: &Context<'_, E>,
    ) -> Option<Rc<DatabaseToken>> {
        let identity = &context.managed_identity_client_id;
        self.kept.get(identity, context.now())
    }

    /// Whether it is time for a new one, and nobody has just tried.
    pub(super) fn begins_renewal<E: Environment>(
        &self,
        context: &Context<'_, E>,
        token: &DatabaseToken,
    ) -> bool {
        let begins = context.now() >= token.renew_at && context.uptime() >= self.pause_until.get();
        if begins {
            let pause_until = context.uptime().saturating_add(PAUSE);
            self.pause_until.set(pause_until);
        }
        begins
    }

    /// A new one, past what is kept. Once at a time.
    ///
    /// # Errors
    /// [`VaultError`].
    pub(super) async fn fetch<E: Environment>(
        &self,
        context: &Context<'_, E>,
    ) -> Result<Rc<DatabaseToken>, VaultError> {
        let identity = &context.managed_identity_client_id;
        self.fetches
            .run(context.env, identity, context.deadline, async || {
                let (text, expires_at) = identity_token(context, RESOURCE).await?;
                let now = context.now();
                let life = expires_at.saturating_sub(now);
                let margin = MARGIN.min(life / 2);
                let token = Rc::new(DatabaseToken {
                    text,
                    renew_at: expires_at.saturating_sub(margin),
                });
                self.kept
                    .put(identity.clone(), Rc::clone(&token), now..expires_at);
                Ok(token)
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use pollster::block_on;
    use postgres::Config;
    use postgres::config::{Host, SslMode};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::VaultPort as _;
    use crate::deadline::LONGEST;
    use crate::error::{OperatorError, VaultError};
    use crate::port::Timer as _;
    use crate::simulation::rounds::Rounds;
    use crate::simulation::world::{Shared, World};
    use crate::vault::samples::{CERTIFICATE, Values, shows_a_secret};

    fn settings(changes: &[(&'static str, &str)]) -> DatabaseSettings {
        let least = [
            ("postgres_user", "behalf-app"),
            ("postgres_password", "password-canary"),
        ];
        let all = least.iter().chain(changes);
        let values: Values = all.map(|(name, value)| (*name, (*value).into())).collect();
        DatabaseSettings::read(&values).unwrap()
    }

    /// As the driver reads it that Spin has, and `behalf up`.
    fn parsed(settings: &DatabaseSettings, password: &str) -> Config {
        address(settings, password).expose().parse().unwrap()
    }

    #[test]
    fn an_address_is_whole_and_the_same_every_time() {
        let settings = settings(&[("postgres_host", "db.example"), ("postgres_port", "6432")]);
        let expected = "host='db.example' dbname='behalf' user='behalf-app' password='password-canary' port=6432 \
                        sslmode=require connect_timeout=3 keepalives_idle=60 application_name=behalf";
        for _ in 0..2 {
            let address = address(&settings, "password-canary");
            assert_eq!(address.expose(), expected);
            assert!(!shows_a_secret(&format!("{address:?}")));
        }
        let config = parsed(&settings, "password-canary");
        assert_eq!(config.get_hosts(), [Host::Tcp("db.example".into())]);
        assert!(config.get_hostaddrs().is_empty());
        assert_eq!(config.get_ports(), [6432]);
        assert_eq!(config.get_dbname(), Some("behalf"));
        assert_eq!(config.get_user(), Some("behalf-app"));
        assert_eq!(config.get_password(), Some(b"password-canary".as_slice()));
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(3)));
        assert_eq!(config.get_application_name(), Some("behalf"));
        // PgBouncer refuses them.
        assert_eq!(config.get_options(), None);
    }

    /// What is sent to another machine is encrypted, whatever stands there; beside the app, where there is a certificate to trust.
    #[test]
    fn only_this_machine_is_asked_in_the_clear() {
        let host = |host| ("postgres_host", host);
        let ca = ("postgres_ca_pem", CERTIFICATE);
        for (changes, expected) in [
            (&[][..], SslMode::Prefer),
            (&[host("localhost")], SslMode::Prefer),
            (&[ca], SslMode::Require),
            (&[host("10.0.0.1")], SslMode::Require),
            (&[host("localhost.example"), ca], SslMode::Require),
        ] {
            let config = parsed(&settings(changes), "p");
            assert_eq!(config.get_ssl_mode(), expected, "{changes:?}");
        }
    }

    proptest! {
        /// Whatever a name or a password holds is that name and that password, and no word of the address.
        #[test]
        fn every_text_is_read_as_it_was_set(
            user in r"[^\x00]{1,40}",
            database in r"[ a-z'\\=]{1,20}",
            password in r"[^\x00]{1,80}|[ '\\=a-z]{1,40}",
        ) {
            let settings = DatabaseSettings { database, user, ..settings(&[]) };
            let config = parsed(&settings, &password);
            prop_assert_eq!(config.get_user(), Some(settings.user.as_str()));
            prop_assert_eq!(config.get_dbname(), Some(settings.database.as_str()));
            prop_assert_eq!(config.get_password(), Some(password.as_bytes()));
            prop_assert_eq!(config.get_hosts(), [Host::Tcp("127.0.0.1".into())]);
            prop_assert!(config.get_hostaddrs().is_empty() && config.get_options().is_none());
        }
    }

    #[test]
    fn hostile_texts_add_nothing_to_an_address() {
        for hostile in [
            "' hostaddr='10.0.0.1",
            "\\' hostaddr=10.0.0.1 x=\\'",
            "\\",
            "\\\\'",
            "'' options='-c statement_timeout=0'",
            "postgres://10.0.0.1/",
            "\n\t host=10.0.0.1",
            "\u{2028}'\u{a0}",
        ] {
            for name in ["postgres_user", "postgres_database"] {
                let settings = settings(&[(name, hostile)]);
                let config = parsed(&settings, hostile);
                assert_eq!(config.get_hosts(), [Host::Tcp("127.0.0.1".into())]);
                assert!(config.get_hostaddrs().is_empty() && config.get_options().is_none());
                assert_eq!(config.get_password(), Some(hostile.as_bytes()));
                let trimmed = Some(hostile.trim());
                assert!([config.get_user(), config.get_dbname()].contains(&trimmed));
            }
        }
    }

    fn by_password() -> Shared {
        let world = World::new();
        {
            let mut settings = world.settings.borrow_mut();
            settings.insert("postgres_user", "behalf-app".into());
            settings.insert("postgres_password", "password-canary".into());
        }
        world
    }

    #[test]
    fn a_database_by_password_is_located_without_asking_anybody() {
        let world = by_password();
        let vault = Vault::new(Rc::clone(&world));
        let locate = || block_on(vault.locate_database(LONGEST.into())).unwrap();
        let config: Config = locate().address.expose().parse().unwrap();
        assert_eq!(config.get_password(), Some(b"password-canary".as_slice()));
        assert!(locate().ca_root.is_none());
        assert_eq!(world.take_calls(), [""; 0]);
        // A new password is used soon, and what is wrong is told by name.
        let set = |name, value: &str| {
            world.settings.borrow_mut().insert(name, value.into());
            world.advance(10);
        };
        set("postgres_password", "new-canary");
        let config: Config = locate().address.expose().parse().unwrap();
        assert_eq!(config.get_password(), Some(b"new-canary".as_slice()));
        set("postgres_ca_pem", CERTIFICATE);
        assert_eq!(locate().ca_root.as_deref(), Some(CERTIFICATE));
        set("postgres_host", "a.example,b.example");
        world.advance(300);
        let error = block_on(vault.locate_database(LONGEST.into())).unwrap_err();
        let VaultError::Operator(OperatorError::Setting(faults)) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].name, "postgres_host");
        assert!(!shows_a_secret(&format!("{error:?} {error}")));
        assert!(!world.log.take().iter().any(|line| shows_a_secret(line)));
    }

    /// Nobody else needs these settings.
    #[test]
    fn without_the_settings_all_else_works() {
        let vault = Vault::new(World::new());
        vault.check_settings().unwrap();
        let error = block_on(vault.locate_database(LONGEST.into())).unwrap_err();
        assert_eq!(vault.check_database_settings(), Err(error.clone()));
        let VaultError::Operator(OperatorError::Setting(faults)) = error else {
            panic!("{error:?}");
        };
        let names: Vec<_> = faults.iter().map(|fault| fault.name.as_str()).collect();
        assert_eq!(names, ["postgres_user", "postgres_password"]);
    }

    fn by_managed_identity() -> (Rounds, Vault<Rounds>) {
        let rounds = Rounds::new();
        {
            let mut settings = rounds.world().settings.borrow_mut();
            settings.insert("postgres_host", "behalf.postgres.database.azure.com".into());
            settings.insert("postgres_user", "behalf-identity".into());
            settings.insert("postgres_credential", "managed-identity".into());
        }
        let vault = Vault::new(rounds.clone());
        (rounds, vault)
    }

    fn located(rounds: &Rounds, vault: &Vault<Rounds>) -> (String, usize) {
        let (located, seconds) = rounds.run(vault.locate_database(LONGEST.into()));
        (located.unwrap().address.expose().to_owned(), seconds.len())
    }

    fn pass(rounds: &Rounds, seconds: u64) {
        rounds.run(rounds.sleep(Duration::from_secs(seconds)));
    }

    /// Who keeps connections by their address keeps one pool for a day, and not one for each call.
    #[test]
    fn everybody_has_the_same_token_until_shortly_before_its_end() {
        let (rounds, vault) = by_managed_identity();
        let world = rounds.world();
        let many = (0..20).map(|_| vault.locate_database(LONGEST.into()));
        let (many, _) = rounds.run(join_all(many));
        assert_eq!(
            world.take_calls(),
            ["identity https://ossrdbms-aad.database.windows.net"]
        );
        let addresses: Vec<_> = many
            .into_iter()
            .map(|located| located.unwrap().address.expose().to_owned())
            .collect();
        let first = addresses[0].clone();
        assert!(addresses.iter().all(|address| *address == first));
        let config: Config = first.parse().unwrap();
        assert_eq!(config.get_password(), Some(b"identity-canary-1".as_slice()));
        // Good for 86,399 seconds.
        pass(&rounds, 86_399 - MARGIN - 10);
        assert_eq!(located(&rounds, &vault), (first.clone(), 0));
        assert_eq!(world.take_calls(), [""; 0]);
        // The old one is good while a new one is on its way, which nobody waits for.
        pass(&rounds, 10);
        assert_eq!(located(&rounds, &vault), (first.clone(), 0));
        rounds.finish();
        assert_eq!(world.take_calls().len(), 1);
        let (second, waited) = located(&rounds, &vault);
        assert!(second != first && waited == 0);
        assert!(second.contains("identity-canary-2"));
        assert_eq!(world.take_calls(), [""; 0]);
    }

    #[test]
    fn an_endpoint_that_fails_for_a_while_is_nobodys_trouble() {
        let (rounds, vault) = by_managed_identity();
        let world = rounds.world();
        let (first, _) = located(&rounds, &vault);
        pass(&rounds, 86_399 - MARGIN);
        world.take_calls();
        let fails = (500, json!({}));
        world
            .identity_answers
            .borrow_mut()
            .extend(vec![fails; 1000]);
        for _ in 0..5 {
            assert_eq!(located(&rounds, &vault), (first.clone(), 0));
        }
        rounds.finish();
        let tries = world.take_calls().len();
        assert!((1..=5).contains(&tries), "one request, repeated: {tries}");
        // Nobody tries again at once.
        assert_eq!(located(&rounds, &vault), (first.clone(), 0));
        assert_eq!(rounds.finish(), [""; 0]);
        pass(&rounds, PAUSE);
        world.identity_answers.borrow_mut().clear();
        assert_eq!(located(&rounds, &vault), (first.clone(), 0));
        rounds.finish();
        assert_ne!(located(&rounds, &vault).0, first);
        // What has ended is not handed out.
        pass(&rounds, 86_399);
        world.down.borrow_mut().push("identity");
        let (outcome, _) = rounds.run(vault.locate_database(LONGEST.into()));
        assert_eq!(
            outcome.unwrap_err(),
            VaultError::upstream(System::ManagedIdentity)
        );
        assert!(!world.log.take().iter().any(|line| shows_a_secret(line)));
    }

    #[test]
    fn a_token_of_a_short_life_serves_for_half_of_it() {
        let (rounds, vault) = by_managed_identity();
        let short = json!({"access_token": "short-canary", "expires_in": "200"});
        let answers = &rounds.world().identity_answers;
        answers.borrow_mut().push_back((200, short));
        let (first, _) = located(&rounds, &vault);
        pass(&rounds, 90);
        assert_eq!(located(&rounds, &vault).0, first);
        assert_eq!(rounds.finish(), [""; 0]);
        pass(&rounds, 10);
        assert_eq!(located(&rounds, &vault).0, first);
        assert_eq!(rounds.finish(), ["identity"]);
        assert_ne!(located(&rounds, &vault).0, first);
    }

    #[test]
    fn another_identity_has_another_token() {
        let (rounds, vault) = by_managed_identity();
        let (first, _) = located(&rounds, &vault);
        let id = "55555555-5555-5555-5555-555555555555";
        let settings = &rounds.world().settings;
        settings
            .borrow_mut()
            .insert("managed_identity_client_id", id.into());
        pass(&rounds, 10);
        assert_ne!(located(&rounds, &vault).0, first);
    }
}
