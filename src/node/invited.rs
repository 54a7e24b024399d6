//! Invitations: what the cluster was told about a member before it came.
//!
//! An invitation is a record of the cluster's own key space, so it is replicated, survives a change of leaders, and is in
//! every copy of the store. It is made by `POST /v1/members`, wins over what the newcomer says of itself, and goes when
//! the member has joined or is deleted. One that is left over because a leader died between a join and the removal of the
//! record does no harm: whoever is in the membership is described by it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::proposals::Waiting;
use super::{Inner, NodeError};
use crate::model::{Command, KeySpace, MemberRole, WriteCommand, WriteOp};
use crate::store::{RangeQuery, ReadError, StoreError};

/// What stands before the name in the key.
const PREFIX: &[u8] = b"invited/";
/// More members than this cannot be invited at the same time.
pub const MAX_INVITED: usize = 100;

/// What the cluster was told about a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The name.
    pub name: String,
    /// What it shall be; none for what it says itself.
    pub role: Option<MemberRole>,
    /// Where it shall stand; none for what it says itself.
    pub site: Option<String>,
    /// Where its peers will reach it, when that is known.
    pub peer_url: Option<String>,
}

fn key(name: &str) -> Bytes {
    [PREFIX, name.as_bytes()].concat().into()
}

/// All invitations, without what they say.
fn all_invited() -> RangeQuery {
    let mut end = PREFIX.to_vec();
    // The next byte after the slash: no name can be between.
    end[PREFIX.len() - 1] += 1;
    RangeQuery {
        start: Bytes::from_static(PREFIX),
        end: Some(end.into()),
        keys_only: true,
        ..RangeQuery::all(KeySpace::System)
    }
}

impl Inner {
    /// The invitation of this name, as this member has applied it.
    pub(super) fn invitation(&self, name: &str) -> Result<Option<Invitation>, NodeError> {
        let failed = |e: &dyn std::fmt::Display| NodeError::StorageFailed { detail: format!("the invitation: {e}") };
        let found = self.store.get(KeySpace::System, &key(name), None).map_err(|e| failed(&e))?;
        found.map(|found| serde_json::from_slice(&found.value).map_err(|e| failed(&e))).transpose()
    }

    /// Whether members are invited that have not come.
    pub(super) fn is_anybody_invited(&self) -> Result<bool, StoreError> {
        let one = RangeQuery { limit: 1, ..all_invited() };
        match self.store.range(&one) {
            Ok(page) => Ok(!page.items.is_empty()),
            Err(ReadError::Store(e)) => Err(e),
            // The newest revision can always be read.
            Err(ReadError::Compacted { .. } | ReadError::Future { .. } | ReadError::Diverged { .. }) => Ok(true),
        }
    }

    /// How many members are invited.
    fn invited(&self) -> Result<usize, NodeError> {
        let page = self.store.range(&all_invited()).map_err(|e| NodeError::StorageFailed { detail: e.to_string() })?;
        Ok(page.items.len())
    }

    /// Writes an invitation, in place of one of the same name.
    pub(super) async fn invite(&self, invitation: &Invitation) -> Result<(), NodeError> {
        if self.invitation(&invitation.name)?.is_none() && self.invited()? >= MAX_INVITED {
            let detail = format!("{MAX_INVITED} members are invited and have not come; delete those that will not");
            return Err(NodeError::Refused { detail });
        }
        let value = serde_json::to_vec(invitation).expect("strings always serialise").into();
        let key = key(&invitation.name);
        self.write_record(WriteOp::Put { space: KeySpace::System, key, value, lease: 0 }).await
    }

    /// Removes an invitation, if there is one.
    pub(super) async fn uninvite(&self, name: &str) -> Result<(), NodeError> {
        if self.invitation(name)?.is_none() {
            return Ok(());
        }
        self.write_record(WriteOp::Delete { space: KeySpace::System, key: key(name) }).await
    }

    /// Writes a record of the cluster, by the way of every write. Only the leader does.
    pub(super) async fn write_record(&self, op: WriteOp) -> Result<(), NodeError> {
        let command = Command::Write(WriteCommand { ops: vec![op], ..WriteCommand::default() }).encode();
        let (answer, rx) = oneshot::channel();
        if self.proposals.try_send(Waiting::new(command, true, answer)).is_err() {
            return Err(NodeError::QueueFull);
        }
        match tokio::time::timeout(self.limits.request_timeout, rx).await {
            Ok(Ok(outcome)) => outcome.map(|_| ()),
            Ok(Err(_)) => Err(NodeError::Stopping),
            Err(_) => Err(NodeError::Unknown { detail: "the record was not written in time".into() }),
        }
    }
}
