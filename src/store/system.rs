//! The records of the cluster that lie in the history itself, in [`KeySpace::System`], and how the head follows them.
//!
//! Because the head can be computed from the frames alone, a snapshot, a delta or a replay cannot disagree with it.

use bytes::Bytes;

use super::floors::{self, FLOORS_KEY};
use crate::history::manifest::MembershipRecord;
use crate::history::{Frame, FrameOp, Head};
use crate::model::codec::DecodeError;
use crate::model::{ClusterId, KeySpace, Timeline, WriteOp};

/// The key of the cluster's identity: 16 bytes.
pub const CLUSTER_KEY: &[u8] = b"cluster";
/// The key of the timelines: a JSON list, from the first to the current one.
pub const TIMELINES_KEY: &[u8] = b"timelines";

/// The key of the feature level: eight bytes, little-endian.
pub const FEATURE_KEY: &[u8] = b"feature";

/// The key of the planned pause: JSON, which only `node` reads.
pub const MAINTENANCE_KEY: &[u8] = b"maintenance";

/// The key of the newest switchover: JSON, which only `node` reads.
pub const SWITCHOVER_KEY: &[u8] = b"switchover";

/// The operation that raises the feature level.
pub fn set_feature_level(level: u64) -> WriteOp {
    let (key, value) = (Bytes::from_static(FEATURE_KEY), Bytes::copy_from_slice(&level.to_le_bytes()));
    WriteOp::Put { space: KeySpace::System, key, value, lease: 0 }
}

/// The value of the cluster's record.
pub(super) fn cluster_value(cluster: ClusterId) -> Bytes {
    Bytes::copy_from_slice(&cluster.0)
}

/// The value of the timelines' record.
pub(super) fn timelines_value(timelines: &[Timeline]) -> Bytes {
    serde_json::to_vec(timelines).expect("plain structures always become JSON").into()
}

/// The key under which is kept how a timeline began: JSON, which only `node` reads.
pub(super) fn timeline_key(number: u64) -> Bytes {
    format!("timeline/{number:08}").into()
}

/// Takes the frame that follows into the head. `system` says whether its operations may touch system records.
pub(super) fn advance(head: &mut Head, frame: &Frame, system: bool) -> Result<(), DecodeError> {
    if system {
        for op in frame.ops() {
            take_record(head, op?)?;
        }
    }
    let fixed = frame.head();
    head.applied = Some(fixed.log_id);
    head.clock_ms = fixed.clock_ms;
    head.revision = fixed.revision;
    head.chain = frame.chain();
    if let Some(payload) = frame.membership() {
        // A copy, so that the head does not keep a whole buffer of frames in memory.
        let payload = Bytes::copy_from_slice(&payload);
        head.membership = Some(MembershipRecord { log_id: fixed.log_id, payload });
    }
    Ok(())
}

fn take_record(head: &mut Head, op: FrameOp) -> Result<(), DecodeError> {
    let FrameOp::Put { space: KeySpace::System, key, value, .. } = op else { return Ok(()) };
    if key == CLUSTER_KEY {
        let mut cluster = ClusterId::default();
        if value.len() != cluster.0.len() {
            return Err(DecodeError { what: "record of the cluster" });
        }
        cluster.0.copy_from_slice(&value);
        head.cluster = Some(cluster);
    } else if key == TIMELINES_KEY {
        let decoded = serde_json::from_slice(&value);
        head.timelines = decoded.map_err(|_| DecodeError { what: "record of the timelines" })?;
    } else if key == FEATURE_KEY {
        let level = value.as_ref().try_into().map(u64::from_le_bytes);
        let level = level.map_err(|_| DecodeError { what: "record of the feature level" })?;
        head.feature_level = head.feature_level.max(level);
    } else if key == FLOORS_KEY {
        floors::take_record(head, &value)?;
    }
    Ok(())
}
