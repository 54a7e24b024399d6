//! The clients' edge over sockets and a real node of one member.

mod kv;
mod limits;
mod resources;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::server::StopSignal;
use super::wire::{PATIENCE, Wire};
use super::{EdgeOptions, serve_clients};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::model::FEATURE_LEVEL;
use crate::node::{Addresses, HealthCheck, Node};

/// A cluster of one member whose clients are served.
struct Member {
    node: Node,
    address: SocketAddr,
    stop: StopSignal,
    served: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

async fn start() -> Member {
    start_with(EdgeOptions::default()).await
}

async fn start_with(options: EdgeOptions) -> Member {
    start_as(options, |_| {}).await
}

async fn start_as(options: EdgeOptions, change: impl FnOnce(&mut Config)) -> Member {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut config = Config {
        bootstrap: true,
        wal_segment_bytes: 1 << 20,
        max_value_bytes: 64 << 10,
        ..Config::new("n1", dir.path())
    };
    change(&mut config);
    // Nobody asks for this peer.
    let addresses = Addresses { client_url: format!("http://{address}"), peer_url: "http://127.0.0.1:9".into() };
    let node = Node::start(&config, addresses, Arc::new(Metrics::new())).await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // The level rises once, by a revision: after it each write of a test makes the next one.
    while node.health(HealthCheck::Ready).is_err() || node.status().feature_level < FEATURE_LEVEL {
        let status = node.status();
        assert!(tokio::time::Instant::now() < deadline, "the member never became ready: {status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stop = StopSignal::default();
    let served = tokio::spawn(serve_clients(listener, node.clone(), options, stop.clone()));
    Member { node, address, stop, served, _dir: dir }
}

impl Member {
    async fn wire(&self) -> Wire {
        Wire::connect(self.address).await
    }

    async fn stop(self) {
        self.stop.stop();
        tokio::time::timeout(PATIENCE, self.served).await.expect("the edge ends").unwrap();
        self.node.stop().await.unwrap();
    }
}
