//! The fork of a running mirror: what its data directory would hold if it were promoted at this moment.
//!
//! **The cut.** What is sealed, as the store has it at one moment, and of the log everything behind that, to its last entry
//! at a moment after it: also what is not known to be committed, because a promotion keeps it. Nothing is sealed for it: a
//! member that is promoted in earnest has its tails in memory too and seals them while it is closed, so the fork has as much
//! to do. The log is never purged up to what is not sealed (rule 3); when a seal and a purge come between the two looks, or a
//! new leader truncates the log meanwhile, the fork begins anew.
//!
//! The fork's log is written as a log of its own, because the files of a log name their cluster and their member.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use crate::api::DrillFork;
use crate::files::{Disk, aside};
use crate::model::{LogId, Revision, TimelineId, new_random_id};
use crate::node::identity::{Belonging, MemberFile};
use crate::store::Store;
use crate::wal::record::encoded_entry_bytes;
use crate::wal::{Done, Wal, WalConfig, WalError};

/// How often a fork is begun anew.
const ATTEMPTS: usize = 5;
/// So much of the log is in memory at a time.
const PART_BYTES: usize = 8 << 20;
/// A file of the fork's log. It needs no more: what is longer gets a longer one.
pub const WAL_SEGMENT_BYTES: u64 = 8 << 20;

/// What is forked, and where.
pub(super) struct Forking<'f> {
    pub store: &'f Store,
    pub wal: &'f Wal,
    pub disk: &'f Arc<dyn Disk>,
    /// The data directory of the mirror.
    pub dir: &'f Path,
    /// The name of the fork's, in it.
    pub into: &'f str,
    /// The mirror's name.
    pub name: &'f str,
    /// Bytes of segments.
    pub copy_at_most: u64,
}

/// What a fork came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made {
    pub fork: DrillFork,
    /// The revision that the mirror had applied when it was made; the fork has it too.
    pub revision: Revision,
}

impl Forking<'_> {
    /// Makes the fork.
    pub fn make(&self, committed: Option<u64>) -> Result<Made, String> {
        let began = Instant::now();
        for _ in 0..ATTEMPTS {
            if let Some(mut made) = self.attempt(committed)? {
                made.fork.seconds = began.elapsed().as_secs_f64();
                return Ok(made);
            }
            aside::remove(self.dir, self.into).map_err(|error| error.to_string())?;
        }
        Err("the log changed again and again while it was copied".into())
    }

    /// None when the log did not stay what it was.
    fn attempt(&self, committed: Option<u64>) -> Result<Option<Made>, String> {
        let to = self.dir.join(self.into);
        let forked = self.store.fork(&to.join("history"), self.copy_at_most).map_err(|error| error.to_string())?;
        let head = self.store.head();
        let state = self.wal.state();
        let last = state.last.max(forked.sealed);
        let Some(timeline) = head.timelines.last() else { return Err("it has no history yet".into()) };
        if head.applied > last {
            return Ok(None);
        }
        let file = self.member_file(timeline.id);
        let id = file.member_id();
        file.save(&**self.disk, &to).map_err(|error| error.to_string())?;
        let Some(belonging) = file.cluster else { return Err("the fork belongs to no cluster".into()) };
        let config = WalConfig {
            segment_bytes: WAL_SEGMENT_BYTES,
            memory_bytes: PART_BYTES,
            spare_segments: 0,
            ..WalConfig::new(belonging.id, id)
        };
        let copy = Wal::open(self.disk.clone(), &to.join("wal"), config).map_err(|error| error.to_string())?;
        if let Some(sealed) = forked.sealed {
            copy.purge(sealed);
        }
        let Some(bytes) = self.copy_log(&copy, forked.sealed, state.last)? else { return Ok(None) };
        if let Some(committed) = state.committed {
            copy.set_committed(committed);
        }
        // Behind the entries, so that this batch says what of them is committed.
        if let Some(vote) = state.vote {
            durable(|done| copy.save_vote(vote, done))?;
        }
        copy.close().map_err(|error| error.to_string())?;
        let last_index = last.map_or(0, |last| last.index);
        let fork = DrillFork {
            revision: head.revision,
            last_index,
            kept_entries: last_index.saturating_sub(committed.unwrap_or(last_index)),
            linked_segments: forked.linked,
            linked_bytes: forked.linked_bytes,
            copied_bytes: forked.copied_bytes + bytes,
            seconds: 0.0,
            index_seconds: None,
        };
        Ok(Some(Made { fork, revision: head.revision }))
    }

    /// A member that never was, of a cluster that never was. The history in it names the old cluster; no message does.
    fn member_file(&self, timeline: TimelineId) -> MemberFile {
        let belonging = Belonging { id: new_random_id(), timeline, founder: false, has_log: true };
        MemberFile::drawn(self.name, Some(belonging))
    }

    /// Copies the entries behind `sealed` up to `last`; gives their bytes, or none when they did not stay what they were.
    fn copy_log(&self, copy: &Wal, sealed: Option<LogId>, last: Option<LogId>) -> Result<Option<u64>, String> {
        let mut next = sealed.map_or(0, |sealed| sealed.index + 1);
        let end = last.map_or(0, |last| last.index + 1);
        let (mut bytes, mut copied) = (0, Vec::new());
        while next < end {
            let entries = match self.wal.entries(next, end, PART_BYTES) {
                Ok(entries) => entries,
                Err(WalError::Purged { .. }) => return Ok(None),
                Err(error) => return Err(error.to_string()),
            };
            let Some(newest) = entries.last() else { return Ok(None) };
            next = newest.log_id.index + 1;
            bytes += entries.iter().map(|entry| encoded_entry_bytes(entry) as u64).sum::<u64>();
            copied.extend(entries.iter().map(|entry| entry.log_id));
            // The log refuses what does not follow, and then has stopped: looked at before.
            let before = copy.state().last.into_iter().chain(entries.iter().map(|entry| entry.log_id));
            if !before.is_sorted() {
                return Ok(None);
            }
            durable(|done| copy.append(entries, done))?;
        }
        // A log that was truncated meanwhile holds others in their place.
        for log_id in copied {
            if self.wal.log_id_at(log_id.index).map_err(|error| error.to_string())? != Some(log_id) {
                return Ok(None);
            }
        }
        Ok(Some(bytes))
    }
}

/// Waits for the wal, on a thread that may block.
fn durable(begin: impl FnOnce(Done)) -> Result<(), String> {
    let (tx, rx) = mpsc::channel();
    begin(Box::new(move |result| drop(tx.send(result))));
    rx.recv().map_err(|_| "the log of the fork stopped".to_owned())?.map_err(|error| error.to_string())
}
