//! What accompanies every request from the edge to the log: who asks, how to trace it, how long it may take.

use std::time::{Duration, Instant};

/// Who asks. Everyone is anonymous until there is authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// Nobody was asked to prove anything.
    Anonymous,
}

/// The context of one request.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// Who asks.
    pub principal: Principal,
    /// Identifies the request in the logs of every member it touches.
    pub trace_id: u64,
    /// When the caller stops waiting. A write that is not answered by then has an unknown outcome.
    pub deadline: Instant,
}

impl RequestContext {
    /// An anonymous request that may take `timeout`.
    pub fn anonymous(trace_id: u64, timeout: Duration) -> RequestContext {
        RequestContext { principal: Principal::Anonymous, trace_id, deadline: Instant::now() + timeout }
    }

    /// How long is left.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}
