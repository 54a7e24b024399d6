//! The assembly of one member: two listeners, the node, and the threads they run on.
//!
//! ```text
//!   client listener ──> http edge   runtime "clients", a few threads ──┐
//!                                                                      ├──> Node (its own runtime, one thread)
//!   peer listener   ──> http/peer   on the node's runtime ─────────────┘
//! ```
//!
//! Starting: both ports are bound first, so that a taken one is found before anything is touched, and so that the
//! addresses told to others are the true ones. Stopping goes the other way round: the lead is handed over while
//! clients are still served, then clients get their last replies, then the peers' listener closes, then storage.
//!
//! Proven by `tests/tools/cli.rs`.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::rehearse;
use crate::config::Config;
use crate::http::server::{ServerOptions, StopSignal, serve_router};
use crate::http::{EdgeOptions, peer, serve_clients, serve_waiting};
use crate::metrics::{ConnectionCounts, Metrics};
use crate::node::{Addresses, CloseError, LeftOpen, Lobby, Node, StartError};

/// The edge is given every core but one, which is Raft's; more threads than this do not help it.
const EDGE_THREADS_MAX: usize = 4;

/// How long clients and members have to go elsewhere before the listeners of a member that stops close.
const ANNOUNCE: Duration = Duration::from_millis(500);

/// How long a member that is opened anew waits for requests that are under way.
const LAST_REPLIES: Duration = Duration::from_millis(200);

/// Why a member does not run.
#[derive(Debug)]
pub enum MemberError {
    /// It was removed from its cluster: there is no use in starting it again.
    Removed(String),
    /// Anything else.
    Failed(String),
}

impl From<String> for MemberError {
    fn from(why: String) -> MemberError {
        MemberError::Failed(why)
    }
}

impl fmt::Display for MemberError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (MemberError::Removed(why) | MemberError::Failed(why)) = self;
        f.write_str(why)
    }
}

/// A running member. One that is in quarantine is closed and opened anew, which repairs it, on the same listeners.
pub struct Member {
    config: Config,
    /// Kept so that nobody else gets the ports while the member is opened anew.
    listeners: Option<Listeners>,
    addresses: Addresses,
    edge: EdgeRuntime,
    /// None while it is opened anew.
    running: Option<Running>,
    /// The last time that it was opened anew; none while it is done again.
    reopened: watch::Sender<Option<Reopened>>,
}

/// A member that was opened anew.
#[derive(Clone)]
pub struct Reopened {
    /// When it had been closed.
    pub closed: Instant,
    /// When it was open again.
    pub opened: Instant,
    /// What it is now.
    pub node: Node,
}

struct Listeners {
    client: TcpListener,
    peer: TcpListener,
}

/// A member that serves.
struct Running {
    node: Node,
    clients: JoinHandle<()>,
    peers: JoinHandle<()>,
    stop_clients: StopSignal,
    stop_peers: StopSignal,
}

impl Member {
    /// Starts it; returns when it serves. For a newcomer that takes until a member of the cluster answers.
    pub async fn start(config: &Config) -> Result<Member, MemberError> {
        let (client, client_address) = bind("client_listen", config.client_listen)?;
        let (peer, peer_address) = bind("peer_listen", config.peer_listen)?;
        let addresses =
            Addresses { client_url: config.client_url_or(client_address), peer_url: config.peer_url_or(peer_address) };
        let (edge, listeners) = (EdgeRuntime::new()?, Some(Listeners { client, peer }));
        let mut member =
            Member { config: config.clone(), listeners, addresses, edge, running: None, reopened: Default::default() };
        member.open(None).await?;
        Ok(member)
    }

    /// Opens the node, with what it has left when it was closed, and serves it.
    async fn open(&mut self, mut left: Option<LeftOpen>) -> Result<(), MemberError> {
        loop {
            let metrics = Arc::new(Metrics::new());
            let (waiting, lobby) = (StopSignal::default(), Lobby::default());
            let (answering, meeting) = self.listening()?;
            let waits =
                self.edge.handle.spawn(serve_while_waiting(answering, lobby.clone(), metrics.clone(), waiting.clone()));
            let meets = self.edge.handle.spawn(serve_lobby(meeting, lobby.clone(), waiting.clone()));
            let node = Node::start_in(&self.config, self.addresses.clone(), metrics, lobby.clone(), left.take()).await;
            waiting.stop();
            lobby.close();
            let node = match node {
                Ok(node) => node,
                Err(StartError::Damaged) => continue,
                Err(error @ StartError::Removed { .. }) => return Err(MemberError::Removed(error.to_string())),
                Err(error) => return Err(MemberError::Failed(error.to_string())),
            };
            node.rehearse_with(rehearse::launcher(&self.config));
            // Its connections are closed by now or hold a request that is being answered: nobody has to wait for them.
            drop((waits, meets));
            let (client_listener, peer_listener) = self.listening()?;
            let (stop_clients, stop_peers) = (StopSignal::default(), StopSignal::default());
            let peers = node.runtime().spawn(serve_peers(peer_listener, node.clone(), stop_peers.clone()));
            let clients = self.edge.handle.spawn(serve_edge(client_listener, node.clone(), stop_clients.clone()));
            self.running = Some(Running { node, clients, peers, stop_clients, stop_peers });
            return Ok(());
        }
    }

    /// Further handles of the listeners.
    fn listening(&self) -> Result<(TcpListener, TcpListener), String> {
        let Listeners { client, peer } = self.listeners.as_ref().ok_or("the member is stopping")?;
        let client = client.try_clone().map_err(|e| format!("client_listen: {e}"))?;
        Ok((client, peer.try_clone().map_err(|e| format!("peer_listen: {e}"))?))
    }

    /// Where clients reach it.
    pub fn client_url(&self) -> &str {
        &self.addresses.client_url
    }

    /// Where the other members reach it.
    pub fn peer_url(&self) -> &str {
        &self.addresses.peer_url
    }

    /// What runs; none while it is opened anew.
    pub fn node(&self) -> Option<Node> {
        self.running.as_ref().map(|running| running.node.clone())
    }

    /// Tells when it was opened anew.
    pub fn reopened(&self) -> watch::Receiver<Option<Reopened>> {
        self.reopened.subscribe()
    }

    /// Waits until it has failed, and says why. As long as that is waited for, a member in quarantine is opened anew.
    pub async fn failed(&mut self) -> MemberError {
        loop {
            let Some(Running { node, clients, peers, .. }) = &mut self.running else {
                return MemberError::Failed("the member does not run".to_owned());
            };
            let why = tokio::select! {
                why = node.failed() => why,
                _ = clients => "the clients' listener ended".to_owned(),
                _ = peers => "the peers' listener ended".to_owned(),
                () = node.wants_reopen() => {
                    if let Err(error) = self.reopen().await {
                        return error;
                    }
                    continue;
                }
            };
            return if node.was_removed() { MemberError::Removed(why) } else { MemberError::Failed(why) };
        }
    }

    /// Closes the node and opens it again.
    async fn reopen(&mut self) -> Result<(), MemberError> {
        tracing::warn!("the member is closed and opened anew");
        // It holds the node of the last time, and with it an index that could not be opened again before that is gone.
        self.reopened.send_replace(None);
        let mut left = None;
        if let Some(running) = self.running.take() {
            match running.close_now().await {
                Ok(open) => left = open,
                Err(CloseError::Log(why)) => return Err(MemberError::Failed(format!("the log: {why}"))),
                // What it could not close is set aside; only its lock on the directory matters, and that is free.
                Err(error) => tracing::warn!(%error, "the member did not close cleanly"),
            }
        }
        let closed = Instant::now();
        self.open(left).await?;
        let reopened = self.node().map(|node| Reopened { closed, opened: Instant::now(), node });
        self.reopened.send_replace(reopened);
        Ok(())
    }

    /// Drains and stops it; a leader hands over first if told to.
    ///
    /// Unless all members stop together, it then announces the stop for [`ANNOUNCE`]: writes, forwarded ones too, are
    /// told "not applied" and every reply ends its connection, so that clients and members have gone elsewhere before the
    /// listeners close. A request that met a closing listener would leave its fate unknown.
    pub async fn stop(mut self, hand_over: bool) -> Result<(), String> {
        // One that is just being opened anew has nothing to drain; what it has begun it goes on with at the next start.
        let Some(running) = self.running.take() else { return Ok(()) };
        if hand_over {
            running.node.step_down().await;
            running.node.refuse_writes();
            running.stop_clients.announce();
            running.stop_peers.announce();
            tokio::time::sleep(ANNOUNCE).await;
        }
        drop(self.listeners.take());
        running.close().await
    }
}

impl Running {
    /// Closes the node, and waits for no request longer than [`LAST_REPLIES`]: the member is fenced, promoted or in
    /// quarantine, and what it could still answer is worth less than the time.
    async fn close_now(mut self) -> Result<Option<LeftOpen>, CloseError> {
        self.stop_clients.stop();
        self.stop_peers.stop();
        let both = async { tokio::join!(ended("clients", &mut self.clients), ended("peers", &mut self.peers)) };
        if tokio::time::timeout(LAST_REPLIES, both).await.is_err() {
            self.clients.abort();
            self.peers.abort();
        }
        self.node.close_to_reopen().await
    }

    /// Answers what is under way and closes the node.
    async fn close(mut self) -> Result<(), String> {
        self.stop_clients.stop();
        ended("clients", &mut self.clients).await;
        self.stop_peers.stop();
        ended("peers", &mut self.peers).await;
        self.node.close().await
    }
}

/// Waits until a listener has answered what was under way.
async fn ended(whose: &str, listener: &mut JoinHandle<()>) {
    if !listener.is_finished()
        && let Err(error) = listener.await
    {
        tracing::warn!(%error, "the listener for {whose} ended badly");
    }
}

/// The clients' runtime, ended when this is dropped. (A bare one must not be dropped where tasks run.)
struct EdgeRuntime {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl EdgeRuntime {
    fn new() -> Result<EdgeRuntime, String> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.saturating_sub(1).clamp(1, EDGE_THREADS_MAX))
            .thread_name("clients")
            .enable_all()
            .build()
            .map_err(|error| format!("cannot make the clients' runtime: {error}"))?;
        Ok(EdgeRuntime { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }
}

impl Drop for EdgeRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn bind(setting: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), String> {
    let bound = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound().map_err(|error: std::io::Error| format!("{setting} {address}: {error}"))
}

async fn serve_while_waiting(listener: TcpListener, lobby: Lobby, metrics: Arc<Metrics>, stop: StopSignal) {
    match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => serve_waiting(listener, lobby, metrics, stop).await,
        Err(error) => tracing::error!(%error, "the clients' listener cannot be used"),
    }
}

async fn serve_lobby(listener: TcpListener, lobby: Lobby, stop: StopSignal) {
    match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => {
            let counts = Arc::new(ConnectionCounts::default());
            serve_router(listener, peer::lobby_router(lobby), ServerOptions::default(), counts, stop).await;
        }
        Err(error) => tracing::error!(%error, "the peers' listener cannot be used"),
    }
}

async fn serve_edge(listener: TcpListener, node: Node, stop: StopSignal) {
    match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => serve_clients(listener, node, EdgeOptions::default(), stop).await,
        Err(error) => tracing::error!(%error, "the clients' listener cannot be used"),
    }
}

async fn serve_peers(listener: TcpListener, node: Node, stop: StopSignal) {
    match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => {
            let counts = Arc::new(ConnectionCounts::default());
            serve_router(listener, peer::router(node), ServerOptions::default(), counts, stop).await;
        }
        Err(error) => tracing::error!(%error, "the peers' listener cannot be used"),
    }
}
