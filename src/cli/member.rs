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
//! Proven by `tests/cli.rs`.

use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::http::server::{ServerOptions, StopSignal, serve_router};
use crate::http::{EdgeOptions, peer, serve_clients, serve_waiting};
use crate::metrics::{ConnectionCounts, Metrics};
use crate::node::{Addresses, Node};

/// The edge is given every core but one, which is Raft's; more threads than this do not help it.
const EDGE_THREADS_MAX: usize = 4;

/// How long clients and members have to go elsewhere before the listeners of a member that stops close.
const ANNOUNCE: Duration = Duration::from_millis(500);

/// A running member.
pub struct Member {
    node: Node,
    addresses: Addresses,
    /// Only kept.
    _edge: EdgeRuntime,
    clients: JoinHandle<()>,
    peers: JoinHandle<()>,
    stop_clients: StopSignal,
    stop_peers: StopSignal,
}

impl Member {
    /// Starts it; returns when it serves. For a newcomer that takes until a member of the cluster answers.
    pub async fn start(config: &Config) -> Result<Member, String> {
        let (client_listener, client_address) = bind("client_listen", config.client_listen)?;
        let (peer_listener, peer_address) = bind("peer_listen", config.peer_listen)?;
        let addresses =
            Addresses { client_url: config.client_url_or(client_address), peer_url: config.peer_url_or(peer_address) };
        let edge = EdgeRuntime::new()?;
        let metrics = Arc::new(Metrics::new());
        let waiting = StopSignal::default();
        let answering = client_listener.try_clone().map_err(|e| format!("client_listen: {e}"))?;
        let counts = metrics.http.connections.clone();
        let waits = edge.handle.spawn(serve_while_waiting(answering, counts, waiting.clone()));
        let node = Node::start(config, addresses.clone(), metrics).await;
        waiting.stop();
        let node = node.map_err(|error| error.to_string())?;
        // Its connections are closed by now or hold a request that is being answered: nobody has to wait for them.
        drop(waits);
        let (stop_clients, stop_peers) = (StopSignal::default(), StopSignal::default());
        let peers = node.runtime().spawn(serve_peers(peer_listener, node.clone(), stop_peers.clone()));
        let clients = edge.handle.spawn(serve_edge(client_listener, node.clone(), stop_clients.clone()));
        Ok(Member { node, addresses, _edge: edge, clients, peers, stop_clients, stop_peers })
    }

    /// Where clients reach it.
    pub fn client_url(&self) -> &str {
        &self.addresses.client_url
    }

    /// Where the other members reach it.
    pub fn peer_url(&self) -> &str {
        &self.addresses.peer_url
    }

    /// Waits until it has failed, and says why.
    pub async fn failed(&mut self) -> String {
        tokio::select! {
            why = self.node.failed() => why,
            _ = &mut self.clients => "the clients' listener ended".to_owned(),
            _ = &mut self.peers => "the peers' listener ended".to_owned(),
        }
    }

    /// Drains and stops it; a leader hands over first if told to.
    ///
    /// Unless all members stop together, it then announces the stop for [`ANNOUNCE`]: writes, forwarded ones too, are
    /// told "not applied" and every reply ends its connection, so that clients and members have gone elsewhere before the
    /// listeners close. A request that met a closing listener would leave its fate unknown.
    pub async fn stop(mut self, hand_over: bool) -> Result<(), String> {
        if hand_over {
            self.node.step_down().await;
            self.node.refuse_writes();
            self.stop_clients.announce();
            self.stop_peers.announce();
            tokio::time::sleep(ANNOUNCE).await;
        }
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

async fn serve_while_waiting(listener: TcpListener, counts: Arc<ConnectionCounts>, stop: StopSignal) {
    match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => serve_waiting(listener, counts, stop).await,
        Err(error) => tracing::error!(%error, "the clients' listener cannot be used"),
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
