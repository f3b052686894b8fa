//! The statements of this ledger. Each is a transaction of its own, and needs the schema of [`super::schema`].
//!
//! - Every parameter is cast, and every condition of a change stands in the `WHERE` of the very `UPDATE` or `DELETE`: there it
//!   is looked at again when the row was changed meanwhile, in a subquery it is not
//!   (<https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED>).
//! - Enrolments and removals name what they have seen, by a `mark` that each of them changes. So one whose connection ended, and
//!   that comes late, changes nothing if an acknowledged one has come between.
//! - A row of `tenant` is locked `FOR SHARE` by whoever enrols, so that a removal of the tenant waits for enrolments under way,
//!   and they refuse once it has begun.
//! - Leases go by the database's clock, so that the clocks of several machines need not agree.
//! - No value is part of a text: texts go into traces.

/// All of them, by name.
#[cfg(test)]
pub(crate) const ALL: [(&str, &str); 36] = [
    ("SCHEMA", SCHEMA),
    ("FIND", FIND),
    ("LOOK", LOOK),
    ("SEE", SEE),
    ("ENROL", ENROL),
    ("OPEN_TENANT", OPEN_TENANT),
    ("REPLACE", REPLACE),
    ("RESCHEDULE", RESCHEDULE),
    ("EXPIRE", EXPIRE),
    ("REMOVE_TOKEN", REMOVE_TOKEN),
    ("REMOVE", REMOVE),
    ("FORGET", FORGET),
    ("CLAIM_DUE", CLAIM_DUE),
    ("CLAIM_OUTDATED", CLAIM_OUTDATED),
    ("GIVE_BACK", GIVE_BACK),
    ("COUNTED", COUNTED),
    ("COUNT", COUNT),
    ("OUTLOOK", OUTLOOK),
    ("TEND", TEND),
    ("BARRED", BARRED),
    ("UNUSED", UNUSED),
    ("MUST_ACT", MUST_ACT),
    ("BAR", BAR),
    ("PICK", PICK),
    ("REMOVE_MANY", REMOVE_MANY),
    ("UNBAR", UNBAR),
    ("APP", APP),
    ("KEEP_APP", KEEP_APP),
    ("PAGE", PAGE),
    ("VERSIONS", VERSIONS),
    ("PUT", PUT),
    ("PUT_BAR", PUT_BAR),
    ("PUT_VERSION", PUT_VERSION),
    ("PUT_FINGERPRINT", PUT_FINGERPRINT),
    ("DELETE_MANY", DELETE_MANY),
    ("DELETE_VERSION", DELETE_VERSION),
];

/// The version of the schema, and whether the role has limits of time.
pub(crate) const SCHEMA: &str = "
SELECT version, current_setting('statement_timeout') <> '0' AND current_setting('lock_timeout') <> '0'
FROM behalf.schema_version";

/// What there is of a user: `bucket, app, tenant, usr`.
pub(crate) const FIND: &str = "
SELECT nonce, enrolled_at, record, write
FROM behalf.enrolment
WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND usr = $4::text AND removed_at IS NULL";

/// As [`FIND`], without the record, and also of one who was removed: then the nonce is null.
pub(crate) const LOOK: &str = "
SELECT CASE WHEN removed_at IS NULL THEN nonce END, write, mark
FROM behalf.enrolment
WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND usr = $4::text";

/// What has to be known of a tenant and a user before an enrolment: the user. Whether the tenant is being removed, how often
/// it was, and of the user the mark, the format, and whether it is enrolled; these three are null if there is no row of it.
/// No row at all: nobody of the tenant has enrolled yet.
pub(crate) const SEE: &str = "
SELECT t.barred, t.removals, e.mark, e.format, e.removed_at IS NULL AND e.nonce IS NOT NULL
FROM behalf.tenant t
LEFT JOIN behalf.enrolment e
  ON e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text AND e.usr = $4::text
WHERE t.bucket = $1::int2 AND t.app = $2::text AND t.tenant = $3::text";

/// Enrols, if there is nothing else than was seen: the user, `nonce, format, enrolled_at`, the record's `record, generation,
/// write, key_version, state, state_number, due_at`, then the new `mark`, and what was seen: `removals`, and `mark` or null.
/// A row if it was made.
pub(crate) const ENROL: &str = "
WITH open AS (
  SELECT 1 FROM behalf.tenant
  WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND NOT barred AND removals = $16::int8
  FOR SHARE
), noted AS (
  INSERT INTO behalf.key_version (bucket, app, tenant, key_version)
  SELECT $1::int2, $2::text, $3::text, $11::text FROM open
  ON CONFLICT DO NOTHING
)
INSERT INTO behalf.enrolment AS e (bucket, app, tenant, usr, nonce, format, enrolled_at,
  record, generation, write, key_version, state, state_number, due_at, mark)
SELECT $1::int2, $2::text, $3::text, $4::text, $5::text, $6::int4, $7::int8,
  $8::bytea, $9::int8, $10::text, $11::text, $12::int2, $13::int4, $14::int8, $15::int8
FROM open
WHERE $17::int8 IS NULL OR EXISTS (
  SELECT 1 FROM behalf.enrolment
  WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND usr = $4::text AND mark = $17::int8
)
ON CONFLICT (bucket, app, tenant, usr) DO UPDATE SET
  nonce = excluded.nonce, format = excluded.format, enrolled_at = excluded.enrolled_at,
  record = excluded.record, generation = excluded.generation, write = excluded.write,
  key_version = excluded.key_version, state = excluded.state, state_number = excluded.state_number,
  due_at = excluded.due_at, mark = excluded.mark, removed_at = NULL, leased_until = 0, lease = 0
WHERE e.mark = $17::int8
RETURNING true";

/// Makes a tenant known, of which somebody enrols for the first time: `bucket, app, tenant`.
pub(crate) const OPEN_TENANT: &str = "
WITH known AS (
  INSERT INTO behalf.tenant (bucket, app, tenant) VALUES ($1::int2, $2::text, $3::text)
  ON CONFLICT DO NOTHING
)
INSERT INTO behalf.counts (bucket, app) VALUES ($1::int2, $2::text)
ON CONFLICT DO NOTHING";

/// Puts a record in the place of another: the user, `nonce`, `generation` and `write` of the one that was read, then as in
/// [`ENROL`] from `record` on with `format` behind it, then `lease` and `now`. A row if it was made. Whoever holds the lease
/// gives it up, unless the record is due still.
pub(crate) const REPLACE: &str = "
WITH noted AS (
  INSERT INTO behalf.key_version (bucket, app, tenant, key_version)
  VALUES ($1::int2, $2::text, $3::text, $12::text)
  ON CONFLICT DO NOTHING
)
UPDATE behalf.enrolment SET
  record = $8::bytea, format = $9::int4, generation = $10::int8, write = $11::text, key_version = $12::text,
  state = $13::int2, state_number = $14::int4, due_at = $15::int8,
  leased_until = CASE WHEN lease = $16::int8 AND $15::int8 > $17::int8 THEN 0 ELSE leased_until END
WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND usr = $4::text
  AND nonce = $5::text AND generation = $6::int8 AND ($10::int8 <> $6::int8 OR write = $7::text)
RETURNING true";

/// Changes when a record is due, and what the schedule tells of it: the user, `nonce`, `write` (empty: any), `due_at, state,
/// state_number, key_version, lease, now`. A row if it was made.
pub(crate) const RESCHEDULE: &str = "
UPDATE behalf.enrolment SET
  due_at = $7::int8, state = $8::int2, state_number = $9::int4, key_version = $10::text,
  leased_until = CASE WHEN lease = $11::int8 AND $7::int8 > $12::int8 THEN 0 ELSE leased_until END
WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND usr = $4::text
  AND nonce = $5::text AND write IS NOT NULL AND ($6::text = '' OR write = $6::text)
RETURNING true";

/// Removes the record of an enrolment: the user, `nonce`, `write`. A row if it was there.
pub(crate) const EXPIRE: &str = "
UPDATE behalf.enrolment SET
  record = NULL, generation = NULL, write = NULL, key_version = NULL, state = NULL, state_number = NULL, due_at = NULL,
  leased_until = 0, lease = 0
WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND usr = $4::text
  AND nonce = $5::text AND write = $6::text
RETURNING true";

/// Removes the record of whichever enrolment was seen: the user, the new `mark`, and the one that was seen.
pub(crate) const REMOVE_TOKEN: &str = "
UPDATE behalf.enrolment SET
  record = NULL, generation = NULL, write = NULL, key_version = NULL, state = NULL, state_number = NULL, due_at = NULL,
  mark = $5::int8, leased_until = 0, lease = 0
WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND usr = $4::text AND mark = $6::int8
RETURNING true";

/// Removes a user, if there is nothing else than was seen: the user, the new `mark`, and the one that was seen or null. The row
/// stays for a while, and with it the mark: an enrolment that comes late does not find what it has seen.
pub(crate) const REMOVE: &str = "
INSERT INTO behalf.enrolment AS e (bucket, app, tenant, usr, nonce, format, enrolled_at, mark, removed_at)
SELECT $1::int2, $2::text, $3::text, $4::text, '', 0, 0, $5::int8, floor(extract(epoch from now()))::int8
WHERE $6::int8 IS NULL OR EXISTS (
  SELECT 1 FROM behalf.enrolment
  WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND usr = $4::text AND mark = $6::int8
)
ON CONFLICT (bucket, app, tenant, usr) DO UPDATE SET
  nonce = '', format = 0, enrolled_at = 0,
  record = NULL, generation = NULL, write = NULL, key_version = NULL, state = NULL, state_number = NULL, due_at = NULL,
  mark = excluded.mark, removed_at = excluded.removed_at, leased_until = 0, lease = 0
WHERE e.mark = $6::int8
RETURNING true";

/// Forgets who was removed an hour ago, those first who were removed first: `app`. By then nothing comes late any more. Some at a
/// time, so that it never takes long; in whatever bucket they are, also where nobody has ever enrolled.
pub(crate) const FORGET: &str = "
DELETE FROM behalf.enrolment
WHERE app = $1::text AND removed_at < floor(extract(epoch from now()))::int8 - 3600 AND removed_at <= (
  SELECT max(first.removed_at) FROM (
    SELECT removed_at FROM behalf.enrolment WHERE app = $1::text AND removed_at IS NOT NULL
    ORDER BY removed_at LIMIT 10000
  ) AS first
)";

/// Hands out what is due: `bucket, app, tenant, now, latest, newest, most, lease, seconds`. A row for each, or one with nulls.
/// Beside them how many there were to choose from, and in how many seconds the first lease of others ends.
///
/// The choice is made among the first of each state, in the order in which they are due.
pub(crate) const CLAIM_DUE: &str = "
WITH near AS MATERIALIZED (
  SELECT first.usr, first.state
  FROM (VALUES (0::int2), (1::int2), (2::int2), (3::int2), (4::int2)) AS s (state)
  CROSS JOIN (VALUES (0::int8, $4::int8), ($5::int8, 9223372036854775807::int8)) AS span (low, high)
  CROSS JOIN LATERAL (
    SELECT e.usr, e.state FROM behalf.enrolment e
    WHERE e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text AND e.state = s.state
      AND e.due_at >= span.low AND e.due_at <= span.high
      AND (e.key_version = $6::text OR e.state = 4)
      AND e.leased_until <= floor(extract(epoch from now()))::int8
    ORDER BY e.due_at LIMIT greatest(4 * $7::int8, 128)
  ) AS first
), picked AS (
  SELECT e.usr FROM near JOIN behalf.enrolment e
    ON e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text AND e.usr = near.usr
  WHERE (e.due_at <= $4::int8 OR e.due_at >= $5::int8)
    AND e.leased_until <= floor(extract(epoch from now()))::int8
  ORDER BY near.state <> 0, random() LIMIT $7::int8
  FOR UPDATE OF e SKIP LOCKED
), claimed AS (
  UPDATE behalf.enrolment e
  SET leased_until = floor(extract(epoch from now()))::int8 + $9::int8, lease = $8::int8
  FROM picked
  WHERE e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text AND e.usr = picked.usr AND e.write IS NOT NULL
  RETURNING e.usr, e.nonce, e.write, e.key_version, e.state, e.state_number, e.due_at
)
SELECT (SELECT count(*) FROM near), (
    SELECT min(e.leased_until) - floor(extract(epoch from now()))::int8 FROM behalf.enrolment e
    WHERE e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text
      AND e.leased_until > floor(extract(epoch from now()))::int8 AND e.leased_until > 0 AND e.lease <> $8::int8
  ), claimed.*
FROM (VALUES (1)) AS one (row) LEFT JOIN claimed ON true";

/// As [`CLAIM_DUE`], for what is under another key version than the newest.
pub(crate) const CLAIM_OUTDATED: &str = "
WITH near AS MATERIALIZED (
  (SELECT e.usr, e.state, e.due_at FROM behalf.enrolment e
   WHERE e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text
     AND e.key_version < $6::text AND e.state < 4
     AND e.leased_until <= floor(extract(epoch from now()))::int8
   ORDER BY e.key_version LIMIT greatest(4 * $7::int8, 128))
  UNION ALL
  (SELECT e.usr, e.state, e.due_at FROM behalf.enrolment e
   WHERE e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text
     AND e.key_version > $6::text AND e.state < 4
     AND e.leased_until <= floor(extract(epoch from now()))::int8
   ORDER BY e.key_version LIMIT greatest(4 * $7::int8, 128))
), picked AS (
  SELECT e.usr FROM near JOIN behalf.enrolment e
    ON e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text AND e.usr = near.usr
  WHERE e.key_version <> $6::text AND e.leased_until <= floor(extract(epoch from now()))::int8
  ORDER BY near.due_at > $4::int8 AND near.due_at < $5::int8, near.state <> 0, random() LIMIT $7::int8
  FOR UPDATE OF e SKIP LOCKED
), claimed AS (
  UPDATE behalf.enrolment e
  SET leased_until = floor(extract(epoch from now()))::int8 + $9::int8, lease = $8::int8
  FROM picked
  WHERE e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text AND e.usr = picked.usr AND e.write IS NOT NULL
  RETURNING e.usr, e.nonce, e.write, e.key_version, e.state, e.state_number, e.due_at
)
SELECT (SELECT count(*) FROM near), (
    SELECT min(e.leased_until) - floor(extract(epoch from now()))::int8 FROM behalf.enrolment e
    WHERE e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text
      AND e.leased_until > floor(extract(epoch from now()))::int8 AND e.leased_until > 0 AND e.lease <> $8::int8
  ), claimed.*
FROM (VALUES (1)) AS one (row) LEFT JOIN claimed ON true";

/// Ends leases of this name: `bucket, app, tenant, lease`. Nobody's who has taken one of them since.
pub(crate) const GIVE_BACK: &str = "
UPDATE behalf.enrolment SET leased_until = 0
WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND leased_until > 0 AND lease = $4::int8";

/// What was counted last, by bucket: `app`.
pub(crate) const COUNTED: &str = "
SELECT bucket, counted_at, counts, counted_at <= floor(extract(epoch from now()))::int8 - 60
FROM behalf.counts
WHERE app = $1::text";

/// Counts a bucket, unless that was done within a minute or somebody is at it: `bucket, app`. A row if it was done. The clock is
/// read in subqueries of its own, and so not for each row.
pub(crate) const COUNT: &str = "
WITH own AS (
  SELECT 1 FROM behalf.counts
  WHERE app = $2::text AND bucket = $1::int2 AND counted_at <= floor(extract(epoch from now()))::int8 - 60
  FOR UPDATE SKIP LOCKED
)
UPDATE behalf.counts SET counted_at = floor(extract(epoch from now()))::int8, counts = (
  SELECT coalesce(json_agg(json_build_array(tenant, state, key_version, users, at_once, hour, day, week)), '[]')::text
  FROM (
    SELECT tenant, state, key_version, count(*) AS users,
      count(*) FILTER (WHERE due_at <= (SELECT floor(extract(epoch from now()))::int8)) AS at_once,
      count(*) FILTER (WHERE due_at <= (SELECT floor(extract(epoch from now()))::int8 + 3600)) AS hour,
      count(*) FILTER (WHERE due_at <= (SELECT floor(extract(epoch from now()))::int8 + 86400)) AS day,
      count(*) FILTER (WHERE due_at <= (SELECT floor(extract(epoch from now()))::int8 + 604800)) AS week
    FROM behalf.enrolment
    WHERE bucket = $1::int2 AND app = $2::text AND removed_at IS NULL
    GROUP BY tenant, state, key_version
  ) AS each
)
FROM own
WHERE app = $2::text AND bucket = $1::int2
RETURNING counted_at, counts";

/// What there is to do in some buckets, by tenant: `buckets, app, now, latest`. What is counted by itself for each state is found in
/// the index; joined, all of the tenant would be gone through.
pub(crate) const OUTLOOK: &str = "
SELECT t.tenant, due.number, next.due_at
FROM behalf.tenant t
CROSS JOIN LATERAL (
  SELECT sum(of_state.number)::int8 AS number
  FROM (VALUES (0::int2), (1::int2), (2::int2), (3::int2), (4::int2)) AS s (state)
  CROSS JOIN (VALUES (0::int8, $3::int8), ($4::int8, 9223372036854775807::int8)) AS span (low, high)
  CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM behalf.enrolment e
    WHERE e.bucket = t.bucket AND e.app = $2::text AND e.tenant = t.tenant AND e.state = s.state
      AND e.due_at >= span.low AND e.due_at <= span.high
  ) AS of_state
) AS due
CROSS JOIN LATERAL (
  SELECT min(first.due_at) AS due_at
  FROM (VALUES (0::int2), (1::int2), (2::int2), (3::int2), (4::int2)) AS s (state)
  CROSS JOIN LATERAL (
    SELECT e.due_at FROM behalf.enrolment e
    WHERE e.bucket = t.bucket AND e.app = $2::text AND e.tenant = t.tenant AND e.state = s.state
      AND e.due_at > $3::int8 AND e.due_at < $4::int8
    ORDER BY e.due_at LIMIT 1
  ) AS first
) AS next
WHERE t.bucket = ANY ($1::text[]::int2[]) AND t.app = $2::text AND (due.number > 0 OR next.due_at IS NOT NULL)";

/// Notes which key versions of a bucket nothing is under any more, since when, and which something is under again, and forgets
/// those that were not used since long: `bucket, app, now, long_ago`.
pub(crate) const TEND: &str = "
WITH forgotten AS (
  DELETE FROM behalf.key_version k
  WHERE k.bucket = $1::int2 AND k.app = $2::text AND k.unused_since <= $4::int8 AND NOT EXISTS (
    SELECT 1 FROM behalf.enrolment e
    WHERE e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = k.tenant AND e.key_version = k.key_version
  )
)
UPDATE behalf.key_version v
SET unused_since = CASE WHEN seen.is_used THEN NULL ELSE $3::int8 END
FROM (
  SELECT k.tenant, k.key_version, EXISTS (
    SELECT 1 FROM behalf.enrolment e
    WHERE e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = k.tenant AND e.key_version = k.key_version
  ) AS is_used
  FROM behalf.key_version k
  WHERE k.bucket = $1::int2 AND k.app = $2::text
) AS seen
WHERE v.bucket = $1::int2 AND v.app = $2::text AND v.tenant = seen.tenant AND v.key_version = seen.key_version
  AND seen.is_used = (v.unused_since IS NOT NULL)";

/// Tenants whose users are being removed: `app`.
pub(crate) const BARRED: &str = "
SELECT tenant FROM behalf.tenant
WHERE app = $1::text AND barred";

/// Key versions that nothing is under any more: `app`, `tenant` (empty: all).
pub(crate) const UNUSED: &str = "
SELECT tenant, key_version, unused_since FROM behalf.key_version
WHERE app = $1::text AND unused_since IS NOT NULL AND ($2::text = '' OR tenant = $2::text)";

/// Some of those who have to act: `bucket, app, tenant, most`.
pub(crate) const MUST_ACT: &str = "
SELECT e.usr
FROM (VALUES (2::int2), (3::int2)) AS s (state)
CROSS JOIN LATERAL (
  SELECT e.usr FROM behalf.enrolment e
  WHERE e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text AND e.state = s.state
  ORDER BY e.due_at LIMIT $4::int8
) AS e
LIMIT $4::int8";

/// Lets nobody of a tenant enrol any more, once the enrolments under way are over: `bucket, app, tenant`. A row if the tenant
/// is known.
pub(crate) const BAR: &str = "
UPDATE behalf.tenant SET barred = true, removals = removals + 1
WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text
RETURNING true";

/// Whether a tenant is barred, and beside that some users of it, of a list if that is not empty: `bucket, app, tenant, most,
/// users`.
pub(crate) const PICK: &str = "
SELECT t.barred, chosen.usr
FROM behalf.tenant t
LEFT JOIN LATERAL (
  SELECT e.usr FROM behalf.enrolment e
  WHERE e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text AND e.removed_at IS NULL
    AND (cardinality($5::text[]) = 0 OR e.usr = ANY ($5::text[]))
  ORDER BY e.usr LIMIT $4::int8
) AS chosen ON true
WHERE t.bucket = $1::int2 AND t.app = $2::text AND t.tenant = $3::text";

/// Removes users of a tenant while it is barred: `bucket, app, tenant, users`. A row for each who is gone.
pub(crate) const REMOVE_MANY: &str = "
WITH chosen AS (
  SELECT usr FROM behalf.enrolment
  WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND usr = ANY ($4::text[])
    AND EXISTS (SELECT 1 FROM behalf.tenant WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND barred)
  ORDER BY usr FOR UPDATE
)
DELETE FROM behalf.enrolment e USING chosen
WHERE e.bucket = $1::int2 AND e.app = $2::text AND e.tenant = $3::text AND e.usr = chosen.usr
RETURNING e.usr";

/// Lets users of a tenant enrol again if nobody is left: `bucket, app, tenant`. One row: how many are left.
pub(crate) const UNBAR: &str = "
WITH users AS (
  SELECT count(*) AS number FROM behalf.enrolment
  WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND removed_at IS NULL
), opened AS (
  UPDATE behalf.tenant SET barred = false FROM users
  WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND users.number = 0
)
SELECT number FROM users";

/// What is kept of an app: `app`.
pub(crate) const APP: &str = "
SELECT sweep_state, fingerprint FROM behalf.app WHERE app = $1::text";

/// Keeps something of an app: `app, sweep_state, fingerprint`; what is null stays.
pub(crate) const KEEP_APP: &str = "
INSERT INTO behalf.app AS a (app, sweep_state, fingerprint) VALUES ($1::text, $2::bytea, $3::bytea)
ON CONFLICT (app) DO UPDATE SET
  sweep_state = coalesce(excluded.sweep_state, a.sweep_state), fingerprint = coalesce(excluded.fingerprint, a.fingerprint)";

/// All enrolments of a bucket, in the order of tenants and users: `bucket, app`, the last tenant and user that were had, `most`.
/// For moving the ledger, as are those that follow.
pub(crate) const PAGE: &str = "
SELECT tenant, usr, nonce, format, enrolled_at, record, write, key_version, state, state_number, due_at
FROM behalf.enrolment
WHERE bucket = $1::int2 AND app = $2::text AND (tenant, usr) > ($3::text, $4::text) AND removed_at IS NULL
ORDER BY tenant, usr LIMIT $5::int8";

/// Key versions of a bucket: `bucket, app`.
pub(crate) const VERSIONS: &str = "
SELECT tenant, key_version, unused_since FROM behalf.key_version
WHERE bucket = $1::int2 AND app = $2::text";

/// Puts enrolments in the place of whatever is there, and makes their tenants and key versions known: `app`, and a list in JSON
/// of objects with the columns as members; the record is in base64.
pub(crate) const PUT: &str = "
WITH given AS MATERIALIZED (
  SELECT * FROM json_to_recordset($2::text::json) AS given (
    bucket int2, tenant text, usr text, nonce text, format int4, enrolled_at int8, record text, generation int8, write text,
    key_version text, state int2, state_number int4, due_at int8, mark int8
  )
), known AS (
  INSERT INTO behalf.tenant (bucket, app, tenant) SELECT DISTINCT bucket, $1::text, tenant FROM given
  ON CONFLICT DO NOTHING
), counted AS (
  INSERT INTO behalf.counts (bucket, app) SELECT DISTINCT bucket, $1::text FROM given
  ON CONFLICT DO NOTHING
), noted AS (
  INSERT INTO behalf.key_version (bucket, app, tenant, key_version)
  SELECT DISTINCT bucket, $1::text, tenant, key_version FROM given WHERE key_version IS NOT NULL
  ON CONFLICT (bucket, app, tenant, key_version) DO UPDATE SET unused_since = NULL
)
INSERT INTO behalf.enrolment (bucket, app, tenant, usr, nonce, format, enrolled_at, record, generation, write, key_version,
  state, state_number, due_at, mark)
SELECT bucket, $1::text, tenant, usr, nonce, format, enrolled_at, decode(record, 'base64'), generation, write, key_version,
  state, state_number, due_at, mark
FROM given
ON CONFLICT (bucket, app, tenant, usr) DO UPDATE SET
  nonce = excluded.nonce, format = excluded.format, enrolled_at = excluded.enrolled_at,
  record = excluded.record, generation = excluded.generation, write = excluded.write,
  key_version = excluded.key_version, state = excluded.state, state_number = excluded.state_number,
  due_at = excluded.due_at, mark = excluded.mark, removed_at = NULL, leased_until = 0, lease = 0";

/// Says of a tenant that is known whether it is being removed: `bucket, app, tenant, barred`.
pub(crate) const PUT_BAR: &str = "
UPDATE behalf.tenant SET barred = $4::bool
WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text";

/// Notes a key version: `bucket, app, tenant, key_version, unused_since`.
pub(crate) const PUT_VERSION: &str = "
INSERT INTO behalf.key_version (bucket, app, tenant, key_version, unused_since)
VALUES ($1::int2, $2::text, $3::text, $4::text, $5::int8)
ON CONFLICT (bucket, app, tenant, key_version) DO UPDATE SET unused_since = excluded.unused_since";

/// Puts a fingerprint in the place of any other; null: there is none. `app, fingerprint`.
pub(crate) const PUT_FINGERPRINT: &str = "
INSERT INTO behalf.app (app, fingerprint) VALUES ($1::text, $2::bytea)
ON CONFLICT (app) DO UPDATE SET fingerprint = excluded.fingerprint";

/// Deletes users of a tenant: `bucket, app, tenant, users`.
pub(crate) const DELETE_MANY: &str = "
DELETE FROM behalf.enrolment
WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND usr = ANY ($4::text[])";

/// Forgets a key version: `bucket, app, tenant, key_version`.
pub(crate) const DELETE_VERSION: &str = "
DELETE FROM behalf.key_version
WHERE bucket = $1::int2 AND app = $2::text AND tenant = $3::text AND key_version = $4::text";
