//! Members of a parent timeline that never come home: whoever knows that removes them, and nobody waits for them any more.
//!
//! After a forced failover the plan shows who is away, and the leader tells those members of the new timeline again and
//! again. One whose machine is gone for good would be away for ever. Forgetting it is a record of the cluster. It takes
//! nothing from the fence: the member is told of the timeline as before, should it come back after all, and waits to be
//! told to rejoin.
//!
//! Proven by `tests/dr/plan.rs`.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::kin::{Away, AwayStanding};
use crate::model::{KeySpace, MemberId, WriteOp, format_member_id, parse_member_id};
use crate::node::events::NewEvent;
use crate::node::{Inner, NodeError};
use crate::store::RangeQuery;

/// What stands before the member's id in the key.
const PREFIX: &str = "forgotten/";
/// Behind the last key: the next byte after the slash.
const END: &str = "forgotten0";

impl Inner {
    /// The old members that nobody waits for any more, as this member has applied it.
    pub(super) fn forgotten(&self) -> BTreeSet<MemberId> {
        let query = RangeQuery {
            start: Bytes::from_static(PREFIX.as_bytes()),
            end: Some(Bytes::from_static(END.as_bytes())),
            keys_only: true,
            ..RangeQuery::all(KeySpace::System)
        };
        match self.store.range(&query) {
            Ok(page) => {
                let id = |key: &Bytes| parse_member_id(std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?);
                page.items.iter().filter_map(|item| id(&item.key)).collect()
            }
            Err(error) => {
                // Then they are waited for, which harms nobody.
                tracing::error!(%error, "who is forgotten cannot be read");
                BTreeSet::new()
            }
        }
    }

    /// Waits for the old members of this name no more. Gives their ids; none when none of that name is away. One that
    /// answers can come home, and is forgotten only by force.
    pub(in crate::node) async fn forget(&self, name: &str, force: bool) -> Result<Vec<MemberId>, NodeError> {
        let away: Vec<Away> = self.parted().into_iter().filter(|away| away.place.name == name).collect();
        if let Some(Away { place, .. }) = away.iter().find(|away| away.standing != AwayStanding::Silent && !force) {
            let detail = format!(
                "{name} answers, and can come home: lifeboat dr rejoin --endpoints {}; to wait for it no more: lifeboat \
                 members remove {name} --force",
                place.client_url
            );
            return Err(NodeError::Refused { detail });
        }
        let mut ids = Vec::new();
        for Away { id, .. } in away {
            let key = format!("{PREFIX}{}", format_member_id(id)).into();
            let op = WriteOp::Put { space: KeySpace::System, key, value: Bytes::new(), lease: 0 };
            self.write_record(op).await?;
            let detail =
                format!("{name}, member {}, did not come home and is not waited for any more", format_member_id(id));
            self.record_cluster_event(NewEvent::new("member-removed", detail).about(name));
            ids.push(id);
        }
        Ok(ids)
    }
}
