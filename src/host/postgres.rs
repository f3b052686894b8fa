//! `spin:postgres@4.2.0`: PostgreSQL for components, as Spin 4.1 has it (PLATFORMS.md, "PostgreSQL"), to the places that a
//! component's allow-list permits.

mod address;
mod authorities;
mod owner;
mod pool;
mod tables;
mod types;

pub(crate) use owner::{Limits, Owner, OwnerError};
pub(crate) use pool::Pool;
pub(crate) use tables::Tables;

use crate::bindings::spin::postgres::postgres::{
    Column, DbError, DbValue, Error, Host, HostConnection, HostConnectionBuilder,
    HostConnectionBuilderWithStore, HostConnectionWithStore, ParameterValue, QueryError, RowSet,
};
use crate::outbound::{Outbound, Refusal};
use address::Address;
use authorities::Authorities;
use futures_util::StreamExt as _;
use pool::{Lease, OpenError, Running};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::sleep;
use tokio_postgres::RowStream;
use tokio_postgres::error::SqlState;
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Accessor, Destination, FutureReader, HasData, Resource, ResourceTable, StreamProducer,
    StreamReader, StreamResult, VecBuffer,
};

/// How many bytes a row may take: Spin's limit.
const MAX_ROW: usize = 128 * 1024 * 1024;

/// How many rows are read ahead of a component, and how many bytes of them; one row may have more.
const ROWS_AHEAD: usize = 32;
const BYTES_AHEAD: u32 = 1024 * 1024;

/// How long a statement may go on whose result nobody wants any more. On Spin it goes on to its end.
const UNWANTED: Duration = Duration::from_secs(1);

/// A row of a result.
type Values = Vec<DbValue>;

/// One that was read ahead, and the room that it takes.
type Ahead = (Values, Option<OwnedSemaphorePermit>);

/// What a component may do with databases.
#[derive(Clone)]
pub(crate) struct PostgresGrant {
    outbound: Arc<Outbound>,
    pool: Pool,
}

impl PostgresGrant {
    /// A grant to connect where `outbound` permits, out of this pool.
    pub(crate) fn new(outbound: Arc<Outbound>, pool: Pool) -> Self {
        Self { outbound, pool }
    }

    async fn open(
        &self,
        text: &str,
        authorities: Option<Authorities>,
    ) -> Result<Connection, Error> {
        let failed = |reason: String| Error::ConnectionFailed(reason);
        let address = Address::parse(text, authorities);
        let address = address.map_err(|reason| failed(reason.to_owned()))?;
        for place in address.places() {
            let admitted = self.outbound.admit("postgres", &place.host, place.port);
            admitted.map_err(|refusal| {
                failed(match refusal {
                    Refusal::Denied => format!("address {place} is not permitted"),
                    Refusal::Rehearsal => "nothing is connected to in a rehearsal".to_owned(),
                })
            })?;
        }
        let lease = self.pool.take(&address).await;
        lease
            .map(Connection)
            .map_err(|error: OpenError| failed(error.to_string()))
    }
}

/// A component's handle of a connection. Cheap to clone; the connection goes back when all clones are gone.
#[derive(Clone)]
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Connection(Arc<Lease>);

/// An address that is being added to.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Builder {
    address: String,
    authorities: Option<Authorities>,
}

impl Connection {
    async fn execute(
        &self,
        statement: &str,
        parameters: Vec<ParameterValue>,
    ) -> Result<u64, Error> {
        let parameters = types::parameters(parameters)
            .map_err(|reason| Error::ValueConversionFailed(reason.to_owned()))?;
        let running = self.0.run().ok_or_else(closed)?;
        let client = running.client().ok_or_else(closed)?;
        let done = client.execute_raw(statement, parameters).await;
        let done = done.map_err(|error| failed(&error));
        leave(running, done.as_ref().err());
        done
    }

    async fn query(
        &self,
        statement: &str,
        parameters: Vec<ParameterValue>,
    ) -> Result<Answer, Error> {
        let parameters = types::parameters(parameters)
            .map_err(|reason| Error::BadParameter(reason.to_owned()))?;
        let running = self.0.run().ok_or_else(closed)?;
        let client = running.client().ok_or_else(closed)?;
        let begun = async {
            let prepared = client.prepare(statement).await?;
            let columns = prepared.columns().iter().map(types::column).collect();
            Ok((columns, client.query_raw(&prepared, parameters).await?))
        };
        match begun.await {
            Ok((columns, rows)) => Ok(Answer::new(columns, rows, running)),
            Err(error) => {
                let error = failed(&error);
                leave(running, Some(&error));
                Err(error)
            }
        }
    }
}

/// What a query is answered with. Errors of the statement itself are at its end.
struct Answer {
    columns: Vec<Column>,
    rows: mpsc::Receiver<Ahead>,
    end: oneshot::Receiver<Result<(), Error>>,
}

impl Answer {
    /// Reads on its own, as far ahead as there is room: whoever waits for the end need not read.
    fn new(columns: Vec<Column>, rows: RowStream, running: Running) -> Self {
        let (row, reading) = mpsc::channel(ROWS_AHEAD);
        let (mut told, end) = oneshot::channel();
        tokio::spawn(async move {
            let mut rows = pin!(rows);
            if let Some(result) = pass_on(rows.as_mut(), &row).await {
                leave(running, result.as_ref().err());
                drop(row);
                let _ = told.send(result);
                return;
            }
            // Nobody reads any more; whoever waits for the end gets it, and a short statement has it.
            let rest = read_to_end(rows.as_mut());
            let result = tokio::select! {
                result = rest => result,
                () = async {
                    told.closed().await;
                    sleep(UNWANTED).await;
                } => return,
            };
            leave(running, result.as_ref().err());
            let _ = told.send(result);
        });
        Self {
            columns,
            rows: reading,
            end,
        }
    }

    /// All of it.
    async fn collect(mut self) -> Result<RowSet, Error> {
        let mut rows = Vec::new();
        let mut bytes = 0_usize;
        while let Some((row, _)) = self.rows.recv().await {
            bytes = bytes.saturating_add(types::size(&row));
            if bytes > MAX_ROW {
                return Err(too_large());
            }
            rows.push(row);
        }
        end(self.end).await?;
        Ok(RowSet {
            columns: self.columns,
            rows,
        })
    }
}

/// Passes rows on until they end, and returns how; none, if nobody takes them.
async fn pass_on(
    mut rows: Pin<&mut RowStream>,
    to: &mpsc::Sender<Ahead>,
) -> Option<Result<(), Error>> {
    let room = Arc::new(Semaphore::new(usize::try_from(BYTES_AHEAD).ok()?));
    loop {
        let row = tokio::select! {
            biased;
            () = to.closed() => return None,
            row = rows.next() => row,
        };
        let values = match row {
            None => return Some(Ok(())),
            Some(Err(error)) => return Some(Err(failed(&error))),
            Some(Ok(row)) => types::values(&row),
        };
        let values = match values {
            // What the statement has done is done.
            Err(error) => return Some(Err(failed(&error))),
            Ok(values) => values,
        };
        let size = types::size(&values);
        if size > MAX_ROW {
            return Some(Err(too_large()));
        }
        let size = u32::try_from(size).unwrap_or(u32::MAX).min(BYTES_AHEAD);
        let permit = tokio::select! {
            biased;
            () = to.closed() => return None,
            permit = Arc::clone(&room).acquire_many_owned(size) => permit.ok(),
        };
        to.send((values, permit)).await.ok()?;
    }
}

async fn read_to_end(mut rows: Pin<&mut RowStream>) -> Result<(), Error> {
    while let Some(row) = rows.next().await {
        row.map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// How a statement ended. Only a process that ends leaves it open.
async fn end(end: oneshot::Receiver<Result<(), Error>>) -> Result<(), Error> {
    match end.await {
        Ok(result) => result,
        Err(_) => Err(closed()),
    }
}

/// Rows on their way to a component.
struct Rows(mpsc::Receiver<Ahead>);

impl<D: 'static> StreamProducer<D> for Rows {
    type Item = Values;
    type Buffer = VecBuffer<Values>;

    fn poll_produce<'a>(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Values, VecBuffer<Values>>,
        is_ending: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let room = destination.remaining(&mut store).unwrap_or(ROWS_AHEAD);
        if room == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let mut rows = Vec::new();
        let count = self
            .get_mut()
            .0
            .poll_recv_many(context, &mut rows, room.min(ROWS_AHEAD));
        if count.is_pending() && is_ending {
            return Poll::Ready(Ok(StreamResult::Cancelled));
        }
        if ready!(count) == 0 {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        let rows: Vec<_> = rows.into_iter().map(|(row, _)| row).collect();
        destination.set_buffer(rows.into());
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

// ---- Errors ----------------------------------------------------------------------------------------------------------

/// What a component is told of a statement that failed, in Spin's words: it may tell errors of the connection by them.
fn failed(error: &tokio_postgres::Error) -> Error {
    let as_text = format!("{error:?}");
    Error::QueryFailed(match error.as_db_error() {
        None => QueryError::Text(match error.to_string() {
            told if told.starts_with("error deserializing") => format!("{told}: {as_text}"),
            _ => as_text,
        }),
        Some(told) => {
            let line = told.line().map(|it| it.to_string());
            let extras = [
                ("column", told.column()),
                ("constraint", told.constraint()),
                ("routine", told.routine()),
                ("hint", told.hint()),
                ("table", told.table()),
                ("datatype", told.datatype()),
                ("schema", told.schema()),
                ("file", told.file()),
                ("line", line.as_deref()),
                ("where_", told.where_()),
            ];
            let extras = extras.into_iter();
            let extras = extras.filter_map(|(name, it)| Some((name.to_owned(), it?.to_owned())));
            QueryError::DbError(DbError {
                severity: told.severity().to_owned(),
                code: told.code().code().to_owned(),
                message: told.message().to_owned(),
                detail: told.detail().map(str::to_owned),
                extras: extras.collect(),
                as_text,
            })
        }
    })
}

/// Ends a statement. A server that takes no changes may have been the one that does when its connections were opened, and by
/// now another one has its name; or it will take them from who connects anew.
fn leave(running: Running, error: Option<&Error>) {
    match error {
        Some(Error::QueryFailed(QueryError::DbError(told)))
            if told.code == SqlState::READ_ONLY_SQL_TRANSACTION.code() =>
        {
            running.astray();
        }
        _ => running.done(),
    }
}

/// As the client has it of a connection that is lost.
fn closed() -> Error {
    let text = "Error { kind: Closed, cause: None }";
    Error::QueryFailed(QueryError::Text(text.to_owned()))
}

fn too_large() -> Error {
    let text = format!("query result exceeds limit of {MAX_ROW} bytes");
    Error::QueryFailed(QueryError::Text(text))
}

// ---- spin:postgres@4.2.0 ---------------------------------------------------------------------------------------------

/// Gives the host functions below their data.
pub(crate) struct HasPostgres;

impl HasData for HasPostgres {
    type Data<'a> = PostgresView<'a>;
}

/// The parts of an instance's state that the host functions below work on.
pub(crate) struct PostgresView<'a> {
    /// What the instance may do.
    pub(crate) grant: &'a PostgresGrant,
    /// Its handles.
    pub(crate) table: &'a mut ResourceTable,
}

impl PostgresView<'_> {
    fn keep(
        &mut self,
        opened: Result<Connection, Error>,
    ) -> wasmtime::Result<Result<Resource<Connection>, Error>> {
        Ok(match opened {
            Ok(connection) => Ok(self.table.push(connection)?),
            Err(error) => Err(error),
        })
    }

    fn connection(&self, handle: &Resource<Connection>) -> wasmtime::Result<Connection> {
        Ok(self.table.get(handle)?.clone())
    }

    fn built(&self, handle: &Resource<Builder>) -> wasmtime::Result<(String, Option<Authorities>)> {
        let builder = self.table.get(handle)?;
        Ok((builder.address.clone(), builder.authorities.clone()))
    }
}

impl Host for PostgresView<'_> {}

// The synchronous ones stop all else in their instance, as in Spin.
impl HostConnection for PostgresView<'_> {
    async fn open(
        &mut self,
        address: String,
    ) -> wasmtime::Result<Result<Resource<Connection>, Error>> {
        let opened = self.grant.open(&address, None).await;
        self.keep(opened)
    }

    async fn query(
        &mut self,
        handle: Resource<Connection>,
        statement: String,
        parameters: Vec<ParameterValue>,
    ) -> wasmtime::Result<Result<RowSet, Error>> {
        Ok(
            match self
                .connection(&handle)?
                .query(&statement, parameters)
                .await
            {
                Ok(answer) => answer.collect().await,
                Err(error) => Err(error),
            },
        )
    }

    async fn execute(
        &mut self,
        handle: Resource<Connection>,
        statement: String,
        parameters: Vec<ParameterValue>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        let connection = self.connection(&handle)?;
        Ok(connection.execute(&statement, parameters).await)
    }

    async fn drop(&mut self, handle: Resource<Connection>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        Ok(())
    }
}

impl<T: Send> HostConnectionWithStore<T> for HasPostgres {
    async fn open_async(
        accessor: &Accessor<T, Self>,
        address: String,
    ) -> wasmtime::Result<Result<Resource<Connection>, Error>> {
        let grant = accessor.with(|mut access| access.get().grant.clone());
        let opened = grant.open(&address, None).await;
        accessor.with(|mut access| access.get().keep(opened))
    }

    async fn query_async(
        accessor: &Accessor<T, Self>,
        handle: Resource<Connection>,
        statement: String,
        parameters: Vec<ParameterValue>,
    ) -> wasmtime::Result<
        Result<
            (
                Vec<Column>,
                StreamReader<Values>,
                FutureReader<Result<(), Error>>,
            ),
            Error,
        >,
    > {
        let connection = accessor.with(|mut access| access.get().connection(&handle))?;
        let answer = match connection.query(&statement, parameters).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Err(error)),
        };
        let Answer {
            columns,
            rows,
            end: told,
        } = answer;
        accessor.with(|mut access| {
            let rows = StreamReader::new(&mut access, Rows(rows))?;
            let end = async move { wasmtime::error::Ok(end(told).await) };
            let end = FutureReader::new(&mut access, end)?;
            Ok(Ok((columns, rows, end)))
        })
    }

    async fn execute_async(
        accessor: &Accessor<T, Self>,
        handle: Resource<Connection>,
        statement: String,
        parameters: Vec<ParameterValue>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        let connection = accessor.with(|mut access| access.get().connection(&handle))?;
        Ok(connection.execute(&statement, parameters).await)
    }
}

impl HostConnectionBuilder for PostgresView<'_> {
    async fn new(&mut self, address: String) -> wasmtime::Result<Resource<Builder>> {
        let authorities = None;
        let builder = Builder {
            address,
            authorities,
        };
        Ok(self.table.push(builder)?)
    }

    async fn set_ca_root(
        &mut self,
        handle: Resource<Builder>,
        certificate: String,
    ) -> wasmtime::Result<Result<(), Error>> {
        Ok(match Authorities::parse(&certificate) {
            Ok(authorities) => {
                self.table.get_mut(&handle)?.authorities = Some(authorities);
                Ok(())
            }
            Err(reason) => Err(Error::Other(format!("invalid root certificate: {reason}"))),
        })
    }

    async fn build(
        &mut self,
        handle: Resource<Builder>,
    ) -> wasmtime::Result<Result<Resource<Connection>, Error>> {
        let (address, authorities) = self.built(&handle)?;
        let opened = self.grant.open(&address, authorities).await;
        self.keep(opened)
    }

    async fn drop(&mut self, handle: Resource<Builder>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        Ok(())
    }
}

impl<T: Send> HostConnectionBuilderWithStore<T> for HasPostgres {
    async fn build_async(
        accessor: &Accessor<T, Self>,
        handle: Resource<Builder>,
    ) -> wasmtime::Result<Result<Resource<Connection>, Error>> {
        let (grant, built) = accessor.with(|mut access| {
            let view = access.get();
            (view.grant.clone(), view.built(&handle))
        });
        let (address, authorities) = built?;
        let opened = grant.open(&address, authorities).await;
        accessor.with(|mut access| access.get().keep(opened))
    }
}
