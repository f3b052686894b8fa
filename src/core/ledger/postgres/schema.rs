//! The tables, and their versions.
//!
//! Whoever owns the database makes and upgrades them (`behalf schema apply`); the app has a role of its own, that reads and
//! changes rows and nothing else. A version is upgraded by adding to it, so that the one before goes on working.

use crate::ledger::StoreError;
use crate::ledger::postgres::database::{Database, Failure, Value};

/// The version that [`script`] makes, and this version of behalf works with.
pub const VERSION: u64 = 1;
/// The oldest one that it works with, too.
const OLDEST: u64 = 1;

/// Which version of the tables there is.
pub const FOUND: &str = "SELECT version FROM behalf.schema_version";
/// Whether nothing can be written here, and what the role may not do with which table.
const RIGHTS: &str = "
SELECT current_setting('transaction_read_only')::bool,
  (SELECT string_agg(wanted || ' on behalf.' || found.relname, ', ' ORDER BY found.relname, wanted)
   FROM pg_class found, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) wanted
   WHERE found.relnamespace = 'behalf'::regnamespace AND found.relkind IN ('r', 'p')
     AND found.relname <> 'schema_version' AND NOT has_table_privilege(found.oid, wanted))";

/// Makes version 1. `sealed` records do not compress, and stand apart, so that what sweeps go through stays small.
const VERSION_1: &str = r#"
  CREATE TABLE behalf.app (
    app text COLLATE "C" PRIMARY KEY,
    sweep_state bytea,
    fingerprint bytea
  );
  CREATE TABLE behalf.tenant (
    bucket int2 NOT NULL,
    app text COLLATE "C" NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    barred bool NOT NULL DEFAULT false,
    removals int8 NOT NULL DEFAULT 0,
    PRIMARY KEY (bucket, app, tenant)
  );
  CREATE INDEX tenant_barred ON behalf.tenant (app) WHERE barred;
  CREATE TABLE behalf.enrolment (
    bucket int2 NOT NULL,
    app text COLLATE "C" NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    usr text COLLATE "C" NOT NULL,
    nonce text COLLATE "C" NOT NULL,
    format int4 NOT NULL,
    enrolled_at int8 NOT NULL,
    record bytea,
    generation int8,
    write text COLLATE "C",
    key_version text COLLATE "C",
    state int2,
    state_number int4,
    due_at int8,
    leased_until int8 NOT NULL DEFAULT 0,
    lease int8 NOT NULL DEFAULT 0,
    mark int8 NOT NULL,
    removed_at int8,
    PRIMARY KEY (bucket, app, tenant, usr),
    CHECK (num_nulls(record, generation, write, key_version, state, state_number, due_at) IN (0, 7))
  );
  ALTER TABLE behalf.enrolment ALTER record SET STORAGE EXTERNAL;
  CREATE INDEX enrolment_due ON behalf.enrolment (bucket, app, tenant, state, due_at) INCLUDE (key_version, removed_at);
  CREATE INDEX enrolment_key_version ON behalf.enrolment (bucket, app, tenant, key_version, state);
  CREATE INDEX enrolment_leased ON behalf.enrolment (bucket, app, tenant, leased_until) WHERE leased_until > 0;
  CREATE INDEX enrolment_removed ON behalf.enrolment (app, removed_at) WHERE removed_at IS NOT NULL;
  CREATE TABLE behalf.key_version (
    bucket int2 NOT NULL,
    app text COLLATE "C" NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    key_version text COLLATE "C" NOT NULL,
    unused_since int8,
    PRIMARY KEY (bucket, app, tenant, key_version)
  );
  CREATE INDEX key_version_unused ON behalf.key_version (app, tenant) WHERE unused_since IS NOT NULL;
  CREATE TABLE behalf.counts (
    bucket int2 NOT NULL,
    app text COLLATE "C" NOT NULL,
    counted_at int8 NOT NULL DEFAULT 0,
    counts text NOT NULL DEFAULT '[]',
    PRIMARY KEY (app, bucket)
  );
"#;

/// What the owner of the database runs: it makes the tables, or brings them up to [`VERSION`], and does nothing if they are. What it
/// cannot bring up it leaves as it is, and says so. Several at once wait for each other. With a role, that one may read and change
/// rows, and has limits of time there; it is made if it is not there.
///
/// Two statements; the second only with a role. Neither has parameters.
///
/// # Errors
/// The role's name is none that PostgreSQL can have.
pub fn script(role: Option<&str>) -> Result<Vec<String>, BadRole> {
    let mut script = vec![format!(
        r"DO $behalf$
DECLARE
  found int4;
BEGIN
  -- Whoever comes second waits here, and then finds all done.
  PERFORM pg_advisory_xact_lock(hashtext('behalf.schema'));
  CREATE SCHEMA IF NOT EXISTS behalf;
  CREATE TABLE IF NOT EXISTS behalf.schema_version (
    only_row bool PRIMARY KEY DEFAULT true CHECK (only_row),
    version int4 NOT NULL
  );
  SELECT version INTO found FROM behalf.schema_version;
  IF found > {VERSION} THEN
    RAISE EXCEPTION 'the tables are of version %, which is newer than this version of behalf: upgrade behalf', found;
  END IF;
  IF found IS NULL THEN
{VERSION_1}
    INSERT INTO behalf.schema_version (version) VALUES (1);
    found := 1;
  END IF;
  -- Each further version begins with one that was found, and leaves the next.
  IF found <> {VERSION} THEN
    RAISE EXCEPTION 'the tables are of version %, which nothing brings up to {VERSION}: see who has written behalf.schema_version', found;
  END IF;
END
$behalf$;"
    )];
    if let Some(role) = role {
        if role.is_empty() || role.len() > LONGEST_ROLE || role.contains('\0') {
            return Err(BadRole);
        }
        // A text in single quotes; where it is a name, the database quotes it itself.
        let text = role.replace('\'', "''");
        let mut tag = "$behalf$".to_owned();
        while text.contains(&tag) {
            tag.insert(1, '_');
        }
        script.push(format!(
            r"DO {tag}
DECLARE
  app CONSTANT text := '{text}';
  of_what text;
  most text;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('behalf.schema'));
  IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = app) THEN
    BEGIN
      EXECUTE format('CREATE ROLE %I LOGIN', app);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
      -- Roles are of the whole server, and in another database somebody else was at it.
      NULL;
    END;
  END IF;
  EXECUTE format('GRANT USAGE ON SCHEMA behalf TO %I', app);
  EXECUTE format('GRANT SELECT ON behalf.schema_version TO %I', app);
  EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE
    ON behalf.app, behalf.tenant, behalf.enrolment, behalf.key_version, behalf.counts TO %I', app);
  -- In this database alone: who does the same in another one is held up by no lock of this one.
  BEGIN
    FOR of_what, most IN VALUES
      ('statement_timeout', '5s'), ('lock_timeout', '2s'), ('idle_in_transaction_session_timeout', '5s')
    LOOP
      EXECUTE format('ALTER ROLE %I IN DATABASE %I SET %I = %L', app, current_database(), of_what, most);
    END LOOP;
  EXCEPTION WHEN insufficient_privilege THEN
    -- Somebody else has made it. Without limits the app says so (database_without_limits).
    RAISE WARNING 'the role % has no limits of time yet: %', app, SQLERRM;
  END;
END
{tag};"
        ));
    }
    Ok(script)
}

/// The longest name that PostgreSQL does not cut, in bytes.
const LONGEST_ROLE: usize = 63;

/// The name of a role is empty, longer than 63 bytes, or has a zero byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a role's name has 1 to 63 bytes, and none of them is zero")]
pub struct BadRole;

/// Whether this version of behalf can work with tables of a version.
///
/// # Errors
/// It cannot, and says what to do.
pub fn check(version: u64) -> Result<(), StoreError> {
    if version > VERSION {
        return Err(StoreError(format!(
            "the database has tables of version {version}, and this version of behalf knows {VERSION}: upgrade behalf"
        )));
    }
    if version < OLDEST {
        return Err(StoreError(format!(
            "the database has tables of version {version}, and this version of behalf needs {OLDEST}: run `behalf schema apply`"
        )));
    }
    Ok(())
}

/// Whether rows can be written, of a database whose tables can be read. It writes nothing.
///
/// # Errors
/// They cannot, for this reason.
pub async fn check_rights(database: &impl Database) -> Result<(), Failure> {
    let rows = database.run(RIGHTS, &[]).await?;
    match rows.first().map(Vec::as_slice) {
        Some([Value::Bool(true), _]) => Err(Failure::of_code("25006", "it is read-only")),
        Some([_, Value::Text(missing)]) => {
            let missing = format!("the role has no right to {missing}");
            Err(Failure::of_code("42501", &missing))
        }
        _ => Ok(()),
    }
}

/// There is a table of versions, and nothing in it.
pub(super) fn missing() -> StoreError {
    StoreError("the database has no tables of behalf's: run `behalf schema apply`".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_tables_are_refused_and_say_what_to_do() {
        assert_eq!(check(VERSION), Ok(()));
        let StoreError(newer) = check(VERSION + 1).unwrap_err();
        assert!(newer.contains("upgrade behalf"), "{newer}");
        let StoreError(older) = check(OLDEST - 1).unwrap_err();
        assert!(older.contains("behalf schema apply"), "{older}");
    }

    #[test]
    fn a_role_has_whatever_name_a_role_can_have() {
        assert_eq!(script(None).map(|script| script.len()), Ok(1));
        for role in [
            "behalf_app",
            "behalf-app",
            "Behalf \"app\"",
            &"a".repeat(63),
        ] {
            assert_eq!(script(Some(role)).map(|script| script.len()), Ok(2));
        }
        for role in ["", "a\0", &"a".repeat(64), &"\u{e4}".repeat(32)] {
            assert_eq!(script(Some(role)), Err(BadRole), "{role}");
        }
        // Nor does one end the text that it is in.
        let hostile = &script(Some("a'; $behalf$; $_behalf$")).unwrap()[1];
        assert!(hostile.starts_with("DO $__behalf$\n") && hostile.ends_with("$__behalf$;"));
        assert!(hostile.contains("'a''; $behalf$"));
    }
}
