//! Transactions: comparisons, and what is done when they hold and when they do not.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Method;

use super::Client;
use super::call::{Call, Keyed};
use super::error::Error;
use super::kv::{awaitable, keyed};
use super::transport::Outgoing;
use crate::api::{
    Compare, CompareOp, CompareTarget, DeleteOp, GetOp, Keys, PutOp, Revision, TxnOp, TxnReply, TxnRequest,
};

/// A transaction that is put together and sent when it is awaited.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before it is awaited"]
pub struct TxnBuilder {
    client: Client,
    request: TxnRequest,
    keyed: Keyed,
    deadline: Option<Duration>,
}

impl Client {
    /// Begins a transaction.
    pub fn txn(&self) -> TxnBuilder {
        self.txn_of(TxnRequest::default())
    }

    /// A transaction that is put together already.
    pub fn txn_of(&self, request: TxnRequest) -> TxnBuilder {
        TxnBuilder { client: self.clone(), request, keyed: self.keyed(), deadline: None }
    }
}

impl TxnBuilder {
    keyed!();

    /// Demands this.
    pub fn compare(mut self, compare: Compare) -> TxnBuilder {
        self.request.compare.push(compare);
        self
    }

    fn equal(self, key: impl Into<Bytes>, target: CompareTarget) -> TxnBuilder {
        self.compare(Compare { keys: Keys::One(key.into()), op: CompareOp::Equal, target })
    }

    /// Demands that the key was last written at this revision.
    pub fn if_revision(self, key: impl Into<Bytes>, revision: Revision) -> TxnBuilder {
        self.equal(key, CompareTarget::ModRevision(revision))
    }

    /// Demands that the key does not exist.
    pub fn if_absent(self, key: impl Into<Bytes>) -> TxnBuilder {
        self.equal(key, CompareTarget::CreateRevision(0))
    }

    /// Demands that the key exists.
    pub fn if_present(self, key: impl Into<Bytes>) -> TxnBuilder {
        let target = CompareTarget::CreateRevision(0);
        self.compare(Compare { keys: Keys::One(key.into()), op: CompareOp::NotEqual, target })
    }

    /// Demands this value.
    pub fn if_value(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> TxnBuilder {
        self.equal(key, CompareTarget::Value(value.into()))
    }

    /// Does this when the comparisons hold.
    pub fn then(mut self, op: TxnOp) -> TxnBuilder {
        self.request.then.push(op);
        self
    }

    /// Writes when the comparisons hold.
    pub fn then_put(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> TxnBuilder {
        self.then(put_op(key, value))
    }

    /// Deletes when the comparisons hold.
    pub fn then_delete(self, key: impl Into<Bytes>) -> TxnBuilder {
        self.then(TxnOp::Delete(DeleteOp { keys: Keys::One(key.into()), previous: false }))
    }

    /// Reads when the comparisons hold.
    pub fn then_get(self, key: impl Into<Bytes>) -> TxnBuilder {
        self.then(TxnOp::Get(GetOp { key: key.into() }))
    }

    /// Does this when the comparisons do not hold.
    pub fn otherwise(mut self, op: TxnOp) -> TxnBuilder {
        self.request.otherwise.push(op);
        self
    }

    /// Writes when the comparisons do not hold.
    pub fn else_put(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> TxnBuilder {
        self.otherwise(put_op(key, value))
    }

    /// Reads when the comparisons do not hold.
    pub fn else_get(self, key: impl Into<Bytes>) -> TxnBuilder {
        self.otherwise(TxnOp::Get(GetOp { key: key.into() }))
    }

    async fn send(self) -> Result<TxnReply, Error> {
        let body = serde_json::to_vec(&self.request)
            .map_err(|error| Error::Usage(format!("the transaction cannot be written as JSON: {error}")))?;
        let outgoing = Outgoing::new(Method::POST, "/v1/txn").json(body.into());
        // What only reads needs no memory of the members.
        let call = match self.keyed {
            Keyed::Given(_) => Call::write(outgoing, &self.keyed)?,
            _ if only_reads(&self.request) => Call::read(outgoing),
            _ => Call::write(outgoing, &self.keyed)?,
        };
        self.client.call(call.deadline(self.deadline)).await?.json()
    }
}

awaitable!(TxnBuilder, TxnReply);

fn put_op(key: impl Into<Bytes>, value: impl Into<Bytes>) -> TxnOp {
    TxnOp::Put(PutOp { key: key.into(), value: value.into(), lease: 0, previous: false })
}

/// Whether neither branch changes anything.
fn only_reads(request: &TxnRequest) -> bool {
    request.then.iter().chain(&request.otherwise).all(|op| match op {
        TxnOp::Put(_) | TxnOp::Delete(_) => false,
        TxnOp::Get(_) | TxnOp::Range(_) => true,
        TxnOp::Txn(nested) => only_reads(nested),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_write_is_a_write() {
        let get = || TxnOp::Get(GetOp { key: Bytes::from_static(b"a") });
        let nested = |op| TxnRequest { otherwise: vec![op], ..TxnRequest::default() };
        assert!(only_reads(&TxnRequest::default()));
        assert!(only_reads(&nested(TxnOp::Txn(nested(get())))));
        assert!(!only_reads(&nested(TxnOp::Txn(nested(put_op("a", "1"))))));
    }
}
