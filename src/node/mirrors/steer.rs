//! Suspending and resuming a mirror: a record of the cluster says which members are sent nothing.
//!
//! The record is replicated, so it holds over restarts and changes of leaders. The leader reads it at every look and tells
//! the network, which ends the stream to the member and begins no other, nor a copy; heartbeats and questions go on, so
//! that the queues of a suspended mirror can be seen. What it misses is kept as for any member that is away.
//!
//! Only mirrors are suspended: the record of a member that votes, because it was promoted meanwhile, counts for nothing, as
//! a voter that is sent nothing would acknowledge nothing.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::events::NewEvent;
use super::super::{Inner, NodeError};
use crate::api::SuspendReply;
use crate::model::{KeySpace, MemberId, MemberRole, WriteOp, format_member_id, parse_member_id};
use crate::store::{RangeQuery, ReadError};

/// What stands before the member's id in the key.
const PREFIX: &[u8] = b"suspended/";

/// The record: that it exists is what counts.
#[derive(Serialize, Deserialize)]
struct Record {
    /// Since when, in milliseconds since 1970.
    since_ms: u64,
}

fn key(id: MemberId) -> Bytes {
    [PREFIX, format_member_id(id).as_bytes()].concat().into()
}

impl Inner {
    /// Sends a mirror nothing from now on, or everything again.
    pub(in crate::node) async fn suspend(&self, name: &str, suspended: bool) -> Result<SuspendReply, NodeError> {
        let _one_at_a_time = self.membership_change.lock().await;
        let Some((id, info)) = self.member_named(name) else {
            return Err(NodeError::UnknownMember { name: name.to_owned() });
        };
        if suspended && info.role != MemberRole::Mirror {
            let detail = format!("{name} is a voter: only mirrors can be suspended, as voters acknowledge writes");
            return Err(NodeError::Refused { detail });
        }
        let failed = |e: ReadError| NodeError::StorageFailed { detail: e.to_string() };
        let is = self.store.get(KeySpace::System, &key(id), None).map_err(failed)?.is_some();
        if is != suspended {
            let (space, key) = (KeySpace::System, key(id));
            let record = Record { since_ms: self.clock.now_ms() };
            let value = serde_json::to_vec(&record).expect("a number always serialises").into();
            self.write_record(match suspended {
                true => WriteOp::Put { space, key, value, lease: 0 },
                false => WriteOp::Delete { space, key },
            })
            .await?;
            tracing::info!(name, suspended, "a mirror is suspended or resumed");
            let (kind, word) =
                if suspended { ("mirror-suspended", "suspended") } else { ("mirror-resumed", "resumed") };
            self.record_cluster_event(NewEvent::new(kind, format!("{name} was {word} by request")).about(name));
        }
        self.read_suspensions().map_err(failed)?;
        Ok(SuspendReply { name: name.to_owned(), suspended })
    }

    /// Tells the network who is suspended.
    pub(super) fn read_suspensions(&self) -> Result<(), ReadError> {
        let mut end = PREFIX.to_vec();
        // The byte after the slash: no id can be between.
        end[PREFIX.len() - 1] += 1;
        let query = RangeQuery {
            start: Bytes::from_static(PREFIX),
            end: Some(end.into()),
            keys_only: true,
            ..RangeQuery::all(KeySpace::System)
        };
        let found = self.store.range(&query)?;
        let id = |key: &Bytes| parse_member_id(std::str::from_utf8(&key[PREFIX.len()..]).ok()?);
        let voters = self.voter_sets();
        let votes = |id: &MemberId| voters.iter().any(|set| set.contains(id));
        let suspended = found.items.iter().filter_map(|item| id(&item.key)).filter(|id| !votes(id));
        self.mirrors.suspensions.set(suspended.collect());
        Ok(())
    }

    /// This member was suspended as a mirror and leads a timeline of its own now: that is over.
    pub(in crate::node) async fn end_own_suspension(&self) -> Result<(), NodeError> {
        let is = self.store.get(KeySpace::System, &key(self.id), None);
        match is.map_err(|e| NodeError::StorageFailed { detail: e.to_string() })? {
            Some(_) => self.write_record(WriteOp::Delete { space: KeySpace::System, key: key(self.id) }).await,
            None => Ok(()),
        }
    }
}
