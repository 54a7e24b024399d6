//! The HTTP contract of `docs/http-api.md`, case by case, on real sockets, with hostile input.
//!
//! Most cases run against a cluster of one member, which is quick to start; those of [`cluster`] against three voters
//! and a mirror. Requests are bytes (see `support::http`), so nothing is tidied up on the way. Every test has a member
//! of its own, and ends by looking whether it still serves.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod conditions;
mod hostile;
mod idempotency;
mod keys;
mod leases;
mod members;
mod parameters;
mod ranges;
mod reads;
mod txn;

use std::net::SocketAddr;

use support::cluster::{Cluster, Plan};
use support::http;

/// One member that leads alone.
struct Single {
    cluster: Cluster,
    at: SocketAddr,
}

impl Single {
    fn start() -> Single {
        Single::with(Plan::new(1, 0))
    }

    fn with(plan: Plan) -> Single {
        let cluster = plan.start();
        let at = cluster.client(0);
        Single { cluster, at }
    }

    /// Puts a value and gives its revision.
    #[track_caller]
    fn put(&self, path: &str, value: impl AsRef<[u8]>) -> u64 {
        let answer = http::put(self.at, path, value);
        assert!(answer.status == 200 || answer.status == 201, "{path}: {answer}");
        answer.json()["revision"].as_u64().unwrap()
    }

    /// All keys there are, each as its item.
    #[track_caller]
    fn items(&self) -> Vec<serde_json::Value> {
        http::get(self.at, "/v1/keys").expect(200).json()["items"].as_array().unwrap().clone()
    }

    /// Whatever was sent before, the member works and counts itself healthy.
    #[track_caller]
    fn assert_serves(&self) {
        let value = "still here";
        self.cluster.put_until_done(0, "proof-of-life", value);
        assert_eq!(http::get(self.at, "/v1/kv/proof-of-life").expect(200).text(), value);
        http::get(self.at, "/health/ready").expect(200);
        assert!(self.cluster.member(0).process_id().is_some());
    }
}
