//! Tests only: the ledger in a real database, one statement after another on one connection, and everything asked of the model,
//! too. What several do at once is for tests with several connections.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::rc::Rc;

use behalf_test_postgres::Postgres;
use postgres::types::private::BytesMut;
use postgres::types::{FromSql, IsNull, ToSql, Type};
use postgres::{Client, NoTls};

use crate::ledger::conformance::Trouble;
use crate::ledger::postgres::database::{Database, Failure, Row, Value};
use crate::ledger::postgres::model::Tables;
use crate::ledger::postgres::{schema, statement};
use crate::port::Clock as _;
use crate::simulation::world::Shared;

/// What stands in front of PostgreSQL's own `now()`, so that the database has the time of a test.
const CLOCK: &str = "
CREATE SCHEMA faked;
GRANT USAGE ON SCHEMA faked TO behalf_app;
CREATE FUNCTION faked.now() RETURNS timestamptz LANGUAGE sql STABLE
  AS $$ SELECT to_timestamp(current_setting('faked.now')::float8) $$;";

/// A server with the tables, and the role of an app.
pub(super) struct Server {
    postgres: Postgres,
}

impl Server {
    pub(super) fn start() -> Self {
        let postgres = Postgres::start().unwrap();
        for statement in schema::script(Some("behalf_app")).unwrap() {
            postgres.sql("postgres", &statement).unwrap();
        }
        postgres.sql("postgres", CLOCK).unwrap();
        let password = "ALTER ROLE behalf_app PASSWORD 'app'";
        postgres.sql("postgres", password).unwrap();
        Self { postgres }
    }

    /// A connection as the app has them.
    pub(super) fn connect(&self) -> Rc<RefCell<Client>> {
        let address = self.postgres.address("behalf_app", "app", "postgres");
        let mut client = Client::connect(&address, NoTls).unwrap();
        client
            .batch_execute("SET search_path TO faked, pg_catalog; SET faked.now = '0'")
            .unwrap();
        Rc::new(RefCell::new(client))
    }
}

/// The database: each statement is a step of a trouble.
#[derive(Clone)]
pub(super) struct Real {
    pub(super) client: Rc<RefCell<Client>>,
    pub(super) trouble: Rc<Trouble>,
    pub(super) env: Shared,
    pub(super) shown: Rc<Cell<u64>>,
    /// The same tables, which have to come to the same.
    pub(super) model: Rc<RefCell<Tables>>,
}

impl Database for Real {
    async fn run(&self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>, Failure> {
        let step = || {
            let client = &mut self.client.borrow_mut();
            let now = self.env.now();
            if self.shown.replace(now) != now {
                let set = format!("SET faked.now = '{now}'");
                client.batch_execute(&set).unwrap();
            }
            let rows = run(client, sql, values);
            self.compare(sql, values, rows.as_ref().unwrap());
            rows
        };
        let made = self.trouble.step(step).await;
        made.map_err(|_| Failure::Unknown("injected".into()))?
    }
}

impl Real {
    /// Has the model do the same. What was chosen by chance it is told.
    fn compare(&self, sql: &str, values: &[Value], rows: &[Row]) {
        let is_claim = [statement::CLAIM_DUE, statement::CLAIM_OUTDATED].contains(&sql);
        let chosen = |user: &String| {
            let name = Value::Text(user.clone());
            !(is_claim && rows.iter().any(|row| row[2] == name))
        };
        let now = self.env.now().try_into().unwrap();
        let modelled = self
            .model
            .borrow_mut()
            .run(sql, values, now, &mut |near| near.sort_by_key(chosen));
        let order = |rows: &[Row]| {
            let mut rows: Vec<_> = rows.iter().map(|row| format!("{row:?}")).collect();
            rows.sort();
            rows
        };
        match sql {
            // The numbers are texts of JSON, in an order of their own.
            statement::COUNT | statement::COUNTED => assert_eq!(modelled.len(), rows.len()),
            _ => assert_eq!(order(&modelled), order(rows), "{sql} {values:?}"),
        }
    }
}

fn run(client: &mut Client, sql: &str, values: &[Value]) -> Result<Vec<Row>, Failure> {
    let values: Vec<_> = values
        .iter()
        .map(|value| value as &(dyn ToSql + Sync))
        .collect();
    let rows = client.query(sql, &values).map_err(|error| {
        let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
        Failure::of_code(error.code().code(), error.message())
    })?;
    let read = |row: postgres::Row| (0..row.len()).map(|at| row.get(at)).collect();
    Ok(rows.into_iter().map(read).collect())
}

/// As strict as a host is: the type of a parameter is that of its column, or it is refused.
impl ToSql for Value {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Bool(value) => value.to_sql_checked(ty, out),
            Self::Int2(value) => value.to_sql_checked(ty, out),
            Self::Int4(value) => value.to_sql_checked(ty, out),
            Self::Int8(value) => value.to_sql_checked(ty, out),
            Self::Text(value) => value.to_sql_checked(ty, out),
            Self::Bytes(value) => value.to_sql_checked(ty, out),
            Self::Texts(value) => value.to_sql_checked(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    postgres::types::to_sql_checked!();
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(match *ty {
            Type::BOOL => Self::Bool(bool::from_sql(ty, raw)?),
            Type::INT2 => Self::Int2(i16::from_sql(ty, raw)?),
            Type::INT4 => Self::Int4(i32::from_sql(ty, raw)?),
            Type::INT8 => Self::Int8(i64::from_sql(ty, raw)?),
            Type::TEXT => Self::Text(String::from_sql(ty, raw)?),
            Type::BYTEA => Self::Bytes(Vec::from_sql(ty, raw)?),
            _ => return Err(format!("a column of type {ty}").into()),
        })
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self::Null)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

mod tests {
    use std::time::Duration;

    use pollster::block_on;

    use super::*;
    use crate::deadline::Deadline;
    use crate::identity::{TenantId, User, UserId};
    use crate::ledger::Ledger as _;
    use crate::ledger::conformance;
    use crate::ledger::postgres::PostgresLedger;
    use crate::ledger::postgres::answer::text;
    use crate::ledger::schedule::Horizon;
    use crate::ledger::transfer::tests::go_to_and_fro;
    use crate::simulation::world::World;
    use crate::vault::samples::TENANT;

    /// Two statements that overlap: the second waits for the first, and then looks at what that left.
    #[test]
    fn a_removal_of_a_tenant_waits_for_enrolments_under_way_and_they_for_it() {
        let server = Server::start();
        let (first, second) = (server.connect(), server.connect());
        let (first, second) = (&mut *first.borrow_mut(), &mut *second.borrow_mut());
        let of_tenant = tenant();
        let enrolment = |user: &str| enrolment(user, Value::Int8(0), Value::Null);
        run(first, statement::OPEN_TENANT, &of_tenant).unwrap();
        first.batch_execute("BEGIN").unwrap();
        assert_eq!(
            run(first, statement::ENROL, &enrolment("a")).unwrap().len(),
            1
        );
        let waited = run(second, statement::BAR, &of_tenant);
        assert!(matches!(waited, Err(Failure::TakenBack(_))), "{waited:?}");
        first.batch_execute("COMMIT; BEGIN").unwrap();
        assert_eq!(run(first, statement::BAR, &of_tenant).unwrap().len(), 1);
        let waited = run(second, statement::ENROL, &enrolment("b"));
        assert!(matches!(waited, Err(Failure::TakenBack(_))), "{waited:?}");
        first.batch_execute("COMMIT").unwrap();
        assert_eq!(
            run(second, statement::ENROL, &enrolment("b"))
                .unwrap()
                .len(),
            0
        );
    }

    /// An enrolment whose connection has ended, and that comes when a removal was acknowledged.
    #[test]
    fn an_enrolment_that_comes_after_a_removal_is_none() {
        let server = Server::start();
        let client = server.connect();
        let client = &mut *client.borrow_mut();
        run(client, statement::OPEN_TENANT, &tenant()).unwrap();
        let user = |name: &str, more: &[Value]| [&tenant()[..], &[text(name)], more].concat();
        for (name, removal) in [
            ("a", statement::REMOVE),
            ("b", statement::REMOVE_TOKEN),
            ("stranger", statement::REMOVE),
        ] {
            let mut seen = Value::Null;
            if name != "stranger" {
                let enrolled = run(
                    client,
                    statement::ENROL,
                    &enrolment(name, Value::Int8(0), seen),
                );
                assert_eq!(enrolled.unwrap().len(), 1);
                seen = Value::Int8(1);
            }
            let late = enrolment(name, Value::Int8(0), seen.clone());
            let removed = run(client, removal, &user(name, &[Value::Int8(2), seen]));
            assert_eq!(removed.unwrap().len(), 1);
            assert_eq!(
                run(client, statement::ENROL, &late).unwrap().len(),
                0,
                "{name}"
            );
            // One that has seen the removal is made.
            let next = enrolment(name, Value::Int8(0), Value::Int8(2));
            assert_eq!(
                run(client, statement::ENROL, &next).unwrap().len(),
                1,
                "{name}"
            );
        }
        run(client, statement::BAR, &tenant()).unwrap();
        let late = enrolment("c", Value::Int8(0), Value::Null);
        let all = [
            &tenant()[..],
            &[Value::Texts(["a", "b", "stranger"].map(Into::into).into())],
        ]
        .concat();
        assert_eq!(run(client, statement::REMOVE_MANY, &all).unwrap().len(), 3);
        assert_eq!(
            run(client, statement::UNBAR, &tenant()).unwrap(),
            [[Value::Int8(0)]]
        );
        assert_eq!(run(client, statement::ENROL, &late).unwrap().len(), 0);
        let next = enrolment("c", Value::Int8(1), Value::Null);
        assert_eq!(run(client, statement::ENROL, &next).unwrap().len(), 1);
    }

    /// Also where nobody has ever enrolled, and so nothing is counted.
    #[test]
    fn who_was_removed_is_forgotten_after_an_hour_in_whatever_bucket() {
        let server = Server::start();
        let (client, env) = (server.connect(), World::new());
        let real = Real {
            client: client.clone(),
            trouble: Rc::default(),
            env: env.clone(),
            shown: Rc::default(),
            model: Rc::default(),
        };
        let ledger = PostgresLedger::new(real, env.clone());
        let stranger = User {
            tenant: TenantId::parse(TENANT).unwrap(),
            id: UserId::from_sealed("stranger").storage_id(None),
        };
        block_on(ledger.remove(&stranger)).unwrap();
        for (later, left) in [(3600, 1_i64), (1, 0)] {
            env.advance(later);
            let until = Deadline::within(&env, Duration::from_secs(9));
            block_on(async {
                let survey = ledger.survey(Horizon::new(env.now(), true), until).await;
                let tended = ledger.tend(&survey.unwrap(), until).await;
                assert_eq!(tended.unwrap().left, 0);
            });
            let count = "SELECT count(*) FROM behalf.enrolment";
            let rows = client.borrow_mut().query_one(count, &[]).unwrap();
            assert_eq!(rows.get::<_, i64>(0), left);
        }
    }

    fn tenant() -> Vec<Value> {
        vec![Value::Int2(1), text("app"), text("tenant")]
    }

    /// The parameters of an enrolment with mark 1 that has seen this.
    fn enrolment(user: &str, removals: Value, seen: Value) -> Vec<Value> {
        let head = [
            text("nonce"),
            Value::Int4(1),
            Value::Int8(0),
            Value::Bytes(vec![7]),
        ];
        let record = [
            Value::Int8(1),
            text("write"),
            text("version"),
            Value::Int2(0),
            Value::Int4(0),
            Value::Int8(0),
        ];
        let seen = [Value::Int8(1), removals, seen];
        [&tenant()[..], &[text(user)], &head, &record, &seen].concat()
    }

    #[test]
    fn a_database_keeps_the_promises_and_does_as_its_model() {
        let server = Server::start();
        let client = server.connect();
        let (shown, scenes) = (Rc::new(Cell::new(0)), Cell::new(0));
        let make = move |trouble, env: Shared| {
            scenes.set(scenes.get() + 1);
            let real = Real {
                client: client.clone(),
                trouble,
                env: env.clone(),
                shown: shown.clone(),
                model: Rc::default(),
            };
            PostgresLedger::new(real, env).under(&format!("scene-{}", scenes.get()))
        };
        assert_eq!(conformance::faults_of(&make, 100), Vec::<String>::new());
    }

    #[test]
    fn a_ledger_is_carried_over_and_back_as_in_the_model() {
        let server = Server::start();
        let env = World::new();
        let real = Real {
            client: server.connect(),
            trouble: Rc::default(),
            env: env.clone(),
            shown: Rc::default(),
            model: Rc::default(),
        };
        go_to_and_fro(&env, &real);
    }
}
