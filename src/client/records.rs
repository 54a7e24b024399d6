//! Sequences and the planned pause.

use std::future::IntoFuture;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Method;

use super::Client;
use super::call::{Call, Keyed};
use super::cluster::json;
use super::error::Error;
use super::kv::{Target, awaitable, keyed};
use super::transport::Outgoing;
use crate::api::{EndedReply, MaintenanceReply, MaintenanceRequest, SequenceReply, SequenceState};

/// Takes the next numbers of a sequence when it is awaited.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before it is awaited"]
pub struct TakeNumbers {
    client: Client,
    name: String,
    count: Option<u64>,
    step: Option<u64>,
    keyed: Keyed,
    deadline: Option<Duration>,
}

fn sequence_path(name: &str) -> Target {
    // A name is one segment.
    let encoded = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
    Target::new(&format!("/v1/seq/{encoded}"))
}

impl Client {
    /// Takes the next number of a sequence, or the next numbers. The first call creates it.
    pub fn sequence(&self, name: impl Into<String>) -> TakeNumbers {
        let (count, step, keyed) = (None, None, self.keyed());
        TakeNumbers { client: self.clone(), name: name.into(), count, step, keyed, deadline: None }
    }

    /// How far a sequence is, and where it jumped.
    pub async fn sequence_state(&self, name: &str) -> Result<SequenceState, Error> {
        self.call(Call::read(Outgoing::new(Method::GET, sequence_path(name).into_string()))).await?.json()
    }

    /// Begins a planned pause, or replaces the one that there is.
    pub async fn begin_maintenance(&self, pause: &MaintenanceRequest) -> Result<MaintenanceReply, Error> {
        // Told twice, it ends a moment later, and that is all.
        let outgoing = json(Method::PUT, "/v1/maintenance".to_owned(), pause)?;
        self.call(Call::harmless(outgoing)).await?.json()
    }

    /// The planned pause, as a member has applied it.
    pub async fn maintenance(&self) -> Result<MaintenanceReply, Error> {
        self.call(Call::read(Outgoing::new(Method::GET, "/v1/maintenance"))).await?.json()
    }

    /// Ends the planned pause.
    pub async fn end_maintenance(&self) -> Result<EndedReply, Error> {
        self.call(Call::harmless(Outgoing::new(Method::DELETE, "/v1/maintenance"))).await?.json()
    }
}

impl TakeNumbers {
    keyed!();

    /// So many numbers, one after the other; 1 unless told otherwise.
    pub fn count(mut self, count: u64) -> TakeNumbers {
        self.count = Some(count);
        self
    }

    /// By how much the sequence jumps when the timeline changes. The first call declares it; another one is refused.
    pub fn step(mut self, step: u64) -> TakeNumbers {
        self.step = Some(step);
        self
    }

    async fn send(self) -> Result<SequenceReply, Error> {
        let mut target = sequence_path(&self.name);
        for (field, number) in [("count", self.count), ("step", self.step)] {
            if let Some(number) = number {
                target.add(field, number.to_string());
            }
        }
        let call = Call::write(Outgoing::new(Method::POST, target.into_string()), &self.keyed)?;
        self.client.call(call.deadline(self.deadline)).await?.json()
    }
}

awaitable!(TakeNumbers, SequenceReply);
