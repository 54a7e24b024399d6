//! Salvage: everything that only this member of an abandoned timeline has, written to a file that stays.
//!
//! ```text
//!   history beyond the common point ── fate applied ──┐
//!   wal beyond what is applied ─────── fate unknown ──┴─> salvage/<timeline>-<member>.ndjson
//! ```
//!
//! What lies in the history had been applied here, so the abandoned timeline had committed it, and its client may have been
//! told so. What lies only in the log may have been committed or not: nobody can tell any more. Both are read twice, once
//! to count and once to write, and never held in memory; a line is as long as one log entry makes it.
//!
//! A file has its name only when it is whole and durable (temporary file, sync, rename, sync of the directory), so an
//! attempt that died is simply made again. Whoever gives up the history afterwards must have seen this succeed.
//!
//! What is not known of the positions between the common point and where the histories differ for sure
//! ([`super::common::Found`]) is written as *unproven*: it may be in the new timeline too. What compaction had taken here
//! is counted as lost. Proven by `salvage/tests.rs` beside this file: torn logs, thinned frames, power cuts.

#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::common::Found;
use crate::api::{
    Fate, SALVAGE_FORMAT, SALVAGE_SUFFIX, SALVAGE_VERSION, SalvageCommon, SalvageCounts, SalvageFork, SalvageHeader,
    SalvageLost, SalvageMember, SalvageTimeline, SalvagedAction, SalvagedKind, SalvagedOp, SalvagedWrite,
};
use crate::files::{Disk, DiskFile};
use crate::model::{
    ClusterId, Command, Entry, EntryKind, KeySpace, Request, Revision, TxnOp, WriteOp, format_member_id,
};
use crate::node::StartError;
use crate::store::{Frame, FrameOp, SequenceRecord, Store, StoreError, SystemRecord};
use crate::wal::{Wal, WalError};

/// The directory of salvage files, in the data directory.
pub const SALVAGE_DIR: &str = "salvage";
/// Lines are gathered up to here before they are written.
const WRITE_BYTES: usize = 1 << 20;
/// So many bytes of log entries are read at a time.
const WAL_BYTES: usize = 1 << 20;
/// So many revisions of thinned writes are named.
const NAMED_REVISIONS: usize = 100;

/// What is salvaged: the histories and logs of a member, and where they part from the new timeline.
pub struct Salvage<'s> {
    /// The old history. All that is known to be committed is applied and sealed.
    pub store: &'s Store,
    /// The old log.
    pub wal: &'s Wal,
    /// Where the histories part.
    pub history: Found,
    /// The revision at the common point.
    pub common_revision: Revision,
    /// Where the logs part, behind what is applied.
    pub log: Found,
    /// The cluster.
    pub cluster: ClusterId,
    /// The abandoned timeline.
    pub timeline: SalvageTimeline,
    /// The new timeline.
    pub onto: SalvageTimeline,
    /// Where its branch forked from that of this member.
    pub fork: SalvageFork,
    /// The member as it was.
    pub member: SalvageMember,
    /// Now, in milliseconds since 1970.
    pub now_ms: u64,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// The old history cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The old log cannot be read.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The file cannot be written.
    #[error("writing the salvage file: {0}")]
    Io(#[from] io::Error),
}

impl From<SalvageError> for StartError {
    fn from(error: SalvageError) -> StartError {
        match error {
            SalvageError::Store(error) => error.into(),
            SalvageError::Wal(error) => error.into(),
            SalvageError::Io(_) => StartError::Other(error.to_string()),
        }
    }
}

/// What is done with each write.
type Sink<'k> = dyn FnMut(&SalvagedWrite) -> io::Result<()> + 'k;

impl Salvage<'_> {
    /// The name of the file.
    pub fn file_name(&self) -> String {
        format!("{}-{}{SALVAGE_SUFFIX}", self.timeline.id, self.member.id)
    }

    /// Writes the file below the data directory `dir`, and gives its header; none, and no file, when there is nothing to
    /// write. A file of an earlier attempt gives way.
    pub fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<Option<SalvageHeader>, SalvageError> {
        let mut counts = SalvageCounts::default();
        let lost = self.each(&mut |write| {
            *(if write.fate == Fate::Applied { &mut counts.applied } else { &mut counts.unknown }) += 1;
            counts.system += u64::from(!write.is_clients());
            counts.unproven += u64::from(!write.proven);
            Ok(())
        })?;
        if (counts, &lost) == (SalvageCounts::default(), &SalvageLost::default()) {
            return Ok(None);
        }
        let header = self.header(counts, lost);
        let dir = dir.join(SALVAGE_DIR);
        disk.create_dir_all(&dir)?;
        let (name, temporary) = (dir.join(self.file_name()), dir.join(format!("{}.new", self.file_name())));
        match disk.remove(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        let mut out = Lines { file: disk.create(&temporary)?, buffer: Vec::new(), written: 0 };
        out.line(&header)?;
        self.each(&mut |write| out.line(write))?;
        out.finish()?;
        disk.rename(&temporary, &name)?;
        disk.sync_dir(&dir)?;
        Ok(Some(header))
    }

    fn header(&self, counts: SalvageCounts, lost: SalvageLost) -> SalvageHeader {
        SalvageHeader {
            format: SALVAGE_FORMAT.into(),
            version: SALVAGE_VERSION,
            cluster: self.cluster,
            timeline: self.timeline.clone(),
            onto: self.onto.clone(),
            fork: self.fork,
            member: self.member.clone(),
            written_ms: self.now_ms,
            common: SalvageCommon {
                position: self.history.last,
                revision: self.common_revision,
                differs_from: self.history.differs_from,
                exact: self.history.is_exact(),
            },
            counts,
            lost,
        }
    }

    /// Goes over all stranded writes, in the order of their positions. Says what was lost.
    fn each(&self, sink: &mut Sink<'_>) -> Result<SalvageLost, SalvageError> {
        let mut lost = SalvageLost::default();
        let mut position = self.history.first_unproven();
        let mut frames = self.store.sealed_frames(position);
        while let Some(frame) = frames.next_frame()? {
            lost.missing += frame.position() - position;
            position = frame.position() + 1;
            if frame.is_thinned() {
                lost.thinned += 1;
                let revision = frame.head().revision;
                if lost.thinned_revisions.len() < NAMED_REVISIONS {
                    lost.thinned_revisions.push(revision);
                }
            }
            if let Some(mut write) = applied(&frame)? {
                write.proven = frame.position() >= self.history.differs_from;
                sink(&write)?;
            }
        }
        let applied = self.store.applied().map_or(0, |applied| applied.index + 1);
        lost.missing += applied.saturating_sub(position);
        let mut at = self.log.first_unproven().max(applied);
        loop {
            let entries = self.wal.entries(at, u64::MAX, WAL_BYTES)?;
            let Some(last) = entries.last() else { return Ok(lost) };
            at = last.log_id.index + 1;
            for entry in &entries {
                if let Some(mut write) = unknown(entry) {
                    write.proven = entry.log_id.index >= self.log.differs_from;
                    sink(&write)?;
                }
            }
        }
    }
}

/// Writes lines, in large pieces.
struct Lines {
    file: Arc<dyn DiskFile>,
    buffer: Vec<u8>,
    written: u64,
}

impl Lines {
    fn line(&mut self, line: &impl serde::Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.buffer, line)?;
        self.buffer.push(b'\n');
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        self.buffer.shrink_to(2 * WRITE_BYTES);
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync()
    }
}

/// A write that nothing is known of yet but where it stands.
fn write_at(log_id: crate::model::LogId, fate: Fate, time_ms: u64) -> SalvagedWrite {
    SalvagedWrite {
        position: log_id.index,
        term: log_id.term,
        leader: format_member_id(log_id.leader),
        fate,
        proven: true,
        revision: None,
        time_ms,
        kind: SalvagedKind::Write,
        idempotency_key: None,
        thinned: false,
        conditional: false,
        ops: Vec::new(),
        otherwise: Vec::new(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What an applied entry did; none when it changed nothing.
fn applied(frame: &Frame) -> Result<Option<SalvagedWrite>, StoreError> {
    let head = frame.head();
    let mut write = write_at(head.log_id, Fate::Applied, head.clock_ms);
    write.revision = head.makes_revision.then_some(head.revision);
    write.thinned = frame.is_thinned();
    for op in frame.ops() {
        let op = op.map_err(|e| {
            let what = format!("the frame of position {}: {e}", frame.position());
            StoreError::Corrupt { file: "the history".into(), offset: 0, what }
        })?;
        if let (KeySpace::System, key) = op.key() {
            match (SystemRecord::of(key), &op) {
                // It names the request itself, and is no change of its own.
                (SystemRecord::Outcome(key), FrameOp::Put { .. }) => write.idempotency_key = Some(text(&key)),
                (SystemRecord::Outcome(_) | SystemRecord::OutcomeOrder, _) => {}
                (record, _) => write.ops.push(record_op(record, &op)),
            }
            continue;
        }
        write.ops.push(match op {
            FrameOp::Put { key, value, version, lease, previous, .. } => SalvagedOp {
                version: Some(version),
                lease: Some(lease).filter(|lease| *lease != 0),
                previous: Some(previous),
                ..SalvagedOp::new(SalvagedAction::Put, &key).with_value(&value)
            },
            FrameOp::Delete { key, previous, .. } => {
                SalvagedOp { previous: Some(previous), ..SalvagedOp::new(SalvagedAction::Delete, &key) }
            }
        });
    }
    if !write.is_clients() {
        write.kind = match write.ops.first().and_then(|op| op.record.as_deref()) {
            Some("sequence") => SalvagedKind::Sequence,
            Some("lease") if write.ops.iter().any(|op| op.op == SalvagedAction::Delete) => SalvagedKind::Revoke,
            Some("lease") => SalvagedKind::Grant,
            _ => SalvagedKind::System,
        };
    }
    // A keyed request that was refused has left only its outcome.
    Ok((!write.ops.is_empty() || write.thinned || write.idempotency_key.is_some()).then_some(write))
}

/// A change of a record of the system.
fn record_op(record: SystemRecord, op: &FrameOp) -> SalvagedOp {
    let value = match op {
        FrameOp::Put { value, .. } => Some(value),
        FrameOp::Delete { .. } => None,
    };
    let action = if value.is_some() { SalvagedAction::Put } else { SalvagedAction::Delete };
    let (kind, name) = match record {
        SystemRecord::Sequence(name) => {
            let last = value.and_then(|value| SequenceRecord::decode(value).ok()).map(|record| record.last);
            let mut op = named(action, "sequence", &name);
            op.value = last.map(|last| last.to_string());
            return op;
        }
        SystemRecord::Lease(id) => ("lease", id.to_string().into()),
        SystemRecord::Leased(key) => ("leased", key),
        SystemRecord::Event(number) => ("event", number.to_string().into()),
        SystemRecord::Other(key) | SystemRecord::Outcome(key) => ("system", key),
        SystemRecord::OutcomeOrder => ("system", Bytes::new()),
    };
    let op = named(action, kind, &name);
    match value {
        Some(value) => op.with_value(value),
        None => op,
    }
}

fn named(action: SalvagedAction, record: &str, name: &[u8]) -> SalvagedOp {
    SalvagedOp { record: Some(record.into()), ..SalvagedOp::new(action, name) }
}

/// What a log entry would have done; none when it is no client's and changes nothing.
fn unknown(entry: &Entry) -> Option<SalvagedWrite> {
    if entry.kind != EntryKind::Command {
        return None;
    }
    let mut write = write_at(entry.log_id, Fate::Unknown, 0);
    match Command::decode(&entry.payload) {
        Err(_) => {
            write.kind = SalvagedKind::Unreadable;
            write.ops.push(named(SalvagedAction::Put, "unreadable", b"").with_value(&entry.payload));
        }
        Ok(Command::Write(asked)) => {
            (write.time_ms, write.conditional) = (asked.time_ms, !asked.guards.is_empty());
            write.ops = asked.ops.iter().map(write_op).collect();
        }
        Ok(Command::Request(asked)) => {
            write.time_ms = asked.time_ms;
            write.idempotency_key = asked.idempotency.map(|idempotency| text(&idempotency.key));
            requested(&mut write, asked.request)?;
        }
        Ok(_) => {
            write.kind = SalvagedKind::System;
            write.ops.push(named(SalvagedAction::Put, "system", b""));
        }
    }
    if write.kind == SalvagedKind::Write && !write.is_clients() {
        write.kind = SalvagedKind::System;
    }
    Some(write)
}

/// What a request asks for; none when that changes nothing.
fn requested(write: &mut SalvagedWrite, request: Request) -> Option<()> {
    match request {
        Request::Write { grant, guards, ops } => {
            write.conditional = !guards.is_empty();
            write.ops = ops.iter().map(write_op).collect();
            if let Some(grant) = grant {
                write.ops.push(named(SalvagedAction::Put, "lease", grant.id.to_string().as_bytes()));
            }
        }
        Request::Txn(txn) => {
            (write.kind, write.conditional) = (SalvagedKind::Txn, !txn.compare.is_empty());
            write.ops = txn_ops(&txn.then, &mut write.conditional);
            write.otherwise = txn_ops(&txn.otherwise, &mut write.conditional);
        }
        Request::Grant(grant) => {
            write.kind = SalvagedKind::Grant;
            write.ops.push(named(SalvagedAction::Put, "lease", grant.id.to_string().as_bytes()));
        }
        Request::Revoke { id, .. } => {
            write.kind = SalvagedKind::Revoke;
            write.ops.push(named(SalvagedAction::Delete, "lease", id.to_string().as_bytes()));
        }
        Request::Sequence { name, count, .. } => {
            write.kind = SalvagedKind::Sequence;
            // The numbers are not known; so many of them.
            write.ops.push(named(SalvagedAction::Put, "sequence", &name).with_value(format!("+{count}").as_bytes()));
        }
        Request::Record { key, value, .. } => {
            write.kind = SalvagedKind::System;
            let action = if value.is_some() { SalvagedAction::Put } else { SalvagedAction::Delete };
            let op = named(action, "system", &key);
            write.ops.push(match &value {
                Some(value) => op.with_value(value),
                None => op,
            });
        }
        Request::Canary | Request::Sweep { .. } => return None,
        #[allow(unreachable_patterns, reason = "kinds that come later are told as the system's")]
        _ => {
            write.kind = SalvagedKind::System;
            write.ops.push(named(SalvagedAction::Put, "system", b""));
        }
    }
    Some(())
}

fn write_op(op: &WriteOp) -> SalvagedOp {
    let (space, mut salvaged) = match op {
        WriteOp::Put { space, key, value, lease } => {
            let lease = Some(*lease).filter(|lease| *lease != 0);
            (space, SalvagedOp { lease, ..SalvagedOp::new(SalvagedAction::Put, key).with_value(value) })
        }
        WriteOp::Delete { space, key } => (space, SalvagedOp::new(SalvagedAction::Delete, key)),
        WriteOp::DeleteRange { space, start, end } => (space, range_op(start, end.as_ref())),
    };
    if *space == KeySpace::System {
        salvaged.record = Some("system".into());
    }
    salvaged
}

fn range_op(start: &[u8], end: Option<&Bytes>) -> SalvagedOp {
    let op = SalvagedOp::new(SalvagedAction::DeleteRange, start);
    match end {
        Some(end) => op.with_end(end),
        None => op,
    }
}

/// The changes in the branch of a transaction, those of transactions in it too.
fn txn_ops(ops: &[TxnOp], conditional: &mut bool) -> Vec<SalvagedOp> {
    let mut salvaged = Vec::new();
    for op in ops {
        match op {
            TxnOp::Put { key, value, lease, .. } => {
                let lease = Some(*lease).filter(|lease| *lease != 0);
                salvaged.push(SalvagedOp { lease, ..SalvagedOp::new(SalvagedAction::Put, key).with_value(value) });
            }
            TxnOp::Delete { key, .. } => salvaged.push(SalvagedOp::new(SalvagedAction::Delete, key)),
            TxnOp::DeleteRange { start, end } => salvaged.push(range_op(start, end.as_ref())),
            TxnOp::Read { .. } => {}
            TxnOp::Txn(txn) => {
                *conditional |= !txn.compare.is_empty();
                salvaged.extend(txn_ops(&txn.then, conditional));
                salvaged.extend(txn_ops(&txn.otherwise, conditional));
            }
        }
    }
    salvaged
}
