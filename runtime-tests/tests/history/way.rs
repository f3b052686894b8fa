//! A way over TCP that can be cut, and that can fall silent: what is under way then comes late, if it comes at all.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// It ends when this is dropped, with all connections.
pub(crate) struct Way {
    address: SocketAddr,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Default)]
struct State {
    is_silent: bool,
    /// How often it was cut.
    cuts: u64,
}

impl Way {
    /// Opens one to this address.
    pub(crate) async fn to(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (state, watched) = watch::channel(State::default());
        Ok(Self {
            address: listener.local_addr()?,
            state,
            task: tokio::spawn(carry(listener, address, watched)),
        })
    }

    /// Where it begins.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections. What has not arrived by then never does.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Lets nothing through, or lets it through again with what has come meanwhile.
    pub(crate) fn silence(&self, is_silent: bool) {
        self.state.send_modify(|state| state.is_silent = is_silent);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(listener: TcpListener, to: SocketAddr, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((from, _)) = listener.accept() => {
                connections.spawn(connection(from, to, state.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(from: TcpStream, to: SocketAddr, state: watch::Receiver<State>) {
    let cuts = state.borrow().cuts;
    let carried = async {
        is_open(&mut state.clone()).await?;
        let to = TcpStream::connect(to).await.ok()?;
        for stream in [&from, &to] {
            stream.set_nodelay(true).ok()?;
        }
        let ((read_from, write_from), (read_to, write_to)) = (from.into_split(), to.into_split());
        tokio::join!(
            pass(read_from, write_to, state.clone()),
            pass(read_to, write_from, state.clone()),
        );
        Some(())
    };
    let mut watched = state.clone();
    tokio::select! {
        _ = carried => {}
        _ = watched.wait_for(|state| state.cuts > cuts) => {}
    }
}

/// Passes on what comes, until it ends; also what one has sent who has gone since.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
) -> Option<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let length = from.read(&mut buffer).await.ok()?;
        is_open(&mut state).await?;
        if length == 0 {
            return to.shutdown().await.ok();
        }
        to.write_all(buffer.get(..length)?).await.ok()?;
    }
}

/// Waits while it is silent.
async fn is_open(state: &mut watch::Receiver<State>) -> Option<()> {
    state.wait_for(|state| !state.is_silent).await.ok()?;
    Some(())
}
