//! A ledger in PostgreSQL with many users, each with a record that opens: made in bulk, by the code that seals for the app.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use behalf_core::Random;
use behalf_core::identity::{KeyVersion, Nonce, SecretName, TenantId, UserId};
use behalf_core::ledger::postgres::bucket;
use behalf_core::ledger::record::{Record, Status};
use behalf_core::secret::{EncryptionKey, RefreshToken};
use behalf_core::vault::sealing::{Binding, Payload, seal};
use postgres::binary_copy::BinaryCopyInWriter;
use postgres::types::Type;
use postgres::{Client, NoTls};
use ring::rand::{SecureRandom as _, SystemRandom};
use runtime_tests::emulators::Emulators;
use runtime_tests::postgres::Postgres;

/// Tenants. The first has a tenth of all users, the others share the rest.
pub(crate) const TENANTS: u32 = 100;
/// Records are due between an hour and five days from when they were made, except for those that are due at once.
const SOONEST: u64 = 3600;
const SPREAD: u64 = 5 * 24 * 3600;
/// What the app asks Entra ID for unless told otherwise.
const SCOPE: &str = "https://graph.microsoft.com/.default";

const COLUMNS: [(&str, Type); 15] = [
    ("bucket", Type::INT2),
    ("app", Type::TEXT),
    ("tenant", Type::TEXT),
    ("usr", Type::TEXT),
    ("nonce", Type::TEXT),
    ("format", Type::INT4),
    ("enrolled_at", Type::INT8),
    ("record", Type::BYTEA),
    ("generation", Type::INT8),
    ("write", Type::TEXT),
    ("key_version", Type::TEXT),
    ("state", Type::INT2),
    ("state_number", Type::INT4),
    ("due_at", Type::INT8),
    ("mark", Type::INT8),
];

/// The ids of the tenants, as the emulators are to have them.
pub(crate) fn tenants() -> Vec<String> {
    (0..TENANTS).map(tenant).collect()
}

/// Tenant, by its number, and object id of a user.
pub(crate) fn user(number: u32) -> (u32, String) {
    let of_ten = number % 10;
    let tenant = match of_ten {
        0 => 0,
        _ => 1 + (number / 10 * 9 + of_ten - 1) % (TENANTS - 1),
    };
    (tenant, format!("00000000-0000-4000-8000-{number:012x}"))
}

/// The id of a tenant.
pub(crate) fn tenant(number: u32) -> String {
    format!("{number:08x}-1111-4111-8111-111111111111")
}

/// Fills a database whose tables are there: users 0 up to `users`, the first `due` of them due at once.
pub(crate) fn fill(
    postgres: &Postgres,
    database: &str,
    emulators: &Emulators,
    users: u32,
    due: u32,
) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let keys: Vec<_> = tenants()
        .iter()
        .map(|tenant| Key::of(emulators, tenant))
        .collect::<Result<_, _>>()?;
    let mut client = Client::connect(&postgres.superuser(database), NoTls)?;
    for key in &keys {
        let (tenant, version) = (key.tenant.as_str(), key.version.as_str());
        let bucket = bucket("", &key.tenant);
        client.execute(
            "INSERT INTO behalf.tenant (bucket, app, tenant) VALUES ($1, '', $2)",
            &[&bucket, &tenant],
        )?;
        client.execute(
            "INSERT INTO behalf.counts (bucket, app) VALUES ($1, '') ON CONFLICT DO NOTHING",
            &[&bucket],
        )?;
        client.execute(
            "INSERT INTO behalf.key_version (bucket, app, tenant, key_version) VALUES ($1, '', $2, $3)",
            &[&bucket, &tenant, &version],
        )?;
    }
    let (names, types): (Vec<_>, Vec<_>) = COLUMNS.into_iter().unzip();
    let copy = format!(
        "COPY behalf.enrolment ({}) FROM STDIN BINARY",
        names.join(", ")
    );
    let mut rows = BinaryCopyInWriter::new(client.copy_in(&copy)?, &types);
    for number in 0..users {
        let (tenant, object) = user(number);
        let key = &keys[usize::try_from(tenant)?];
        let due_at = if number < due {
            now - 1
        } else {
            now + SOONEST + u64::from(number) * 7919 % SPREAD
        };
        let (nonce, id, record) = key.enrolment(emulators, &object, now, due_at)?;
        let (bucket, due_at) = (bucket("", &key.tenant), i64::try_from(due_at)?);
        rows.write(&[
            &bucket,
            &"",
            &key.tenant.as_str(),
            &id,
            &nonce.as_str(),
            &1_i32,
            &i64::try_from(now)?,
            &record.to_json(),
            &1_i64,
            &record.write.as_str(),
            &record.key_version.as_str(),
            &0_i16,
            &0_i32,
            &due_at,
            &i64::from(number),
        ])?;
        if (number + 1) % 100_000 == 0 {
            eprintln!("{} of {users} users", number + 1);
        }
    }
    ensure!(rows.finish()? == u64::from(users), "not all were written");
    client.batch_execute("VACUUM ANALYZE")?;
    client.batch_execute("CHECKPOINT")?;
    Ok(())
}

/// A tenant's newest key.
struct Key {
    tenant: TenantId,
    client_id: String,
    secret: SecretName,
    version: KeyVersion,
    bytes: EncryptionKey,
}

impl Key {
    /// Sets it in Key Vault, and takes it from there.
    fn of(emulators: &Emulators, tenant: &str) -> anyhow::Result<Self> {
        let name = format!("obo-{tenant}");
        let version = emulators
            .rotate_key(tenant)
            .ok()
            .context("cannot set a key")?;
        let value = emulators
            .secret(&name, &version)
            .context("a key is not there")?;
        let bytes: [u8; 32] = BASE64_STANDARD
            .decode(value)?
            .try_into()
            .ok()
            .context("a key is not of 32 bytes")?;
        Ok(Self {
            tenant: TenantId::parse(tenant).context("no tenant id")?,
            client_id: emulators.options().client_id.clone(),
            secret: SecretName::parse(&name).context("no name of a secret")?,
            version: KeyVersion::parse(&version).context("no key version")?,
            bytes: EncryptionKey::new(bytes.into()),
        })
    }

    /// An enrolment as the app makes it: its nonce, the user as storage knows it, and the record.
    fn enrolment(
        &self,
        emulators: &Emulators,
        object: &str,
        now: u64,
        due_at: u64,
    ) -> anyhow::Result<(Nonce, String, Record)> {
        let tenant = self.tenant.as_str();
        let user = UserId::from_sealed(&format!("{tenant}.{object}"));
        let id = user.storage_id(None).as_str().to_owned();
        let nonce = Nonce::for_enrolment(now, &System);
        let binding = Binding::new(&self.client_id, &self.tenant, &user, &nonce);
        let payload = Payload {
            refresh_token: RefreshToken::new(emulators.refresh_token_of(tenant, object)),
            user_id: user,
            scope: SCOPE.to_owned(),
        };
        let sealed = seal(
            &payload,
            &binding,
            (&self.secret, &self.version),
            &self.bytes,
            &System,
        );
        let sealed = sealed.ok().context("cannot seal")?;
        let record = Record {
            tenant: self.tenant.clone(),
            sealed: sealed.token,
            key_version: sealed.key_version,
            scope: SCOPE.to_owned(),
            enrolled_by: None,
            status: Status::Active,
            generation: 1,
            write: Nonce::for_write(&System),
            enrolled_at: now,
            refreshed_at: now,
            due_at,
        };
        Ok((nonce, id, record))
    }
}

struct System;

impl Random for System {
    fn fill(&self, buffer: &mut [u8]) {
        let filled = SystemRandom::new().fill(buffer);
        assert!(filled.is_ok(), "no random bytes");
    }
}
