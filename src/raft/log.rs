//! openraft's log over [`crate::wal`].
//!
//! `append` returns when the entries are readable and reports them flushed from the wal's thread, after the fdatasync.
//! openraft's core task waits for `append`, `save_vote`, `truncate_after` and `purge`, so none of them does more than it
//! must: purging is O(1), `save_committed` only leaves a note that rides on the next batch. Entries that are no longer in
//! memory, which only a member that lags needs, are read from the files and decoded on another thread: catching up costs
//! commits nothing but the processor.
//!
//! Invariants kept here: nothing is purged whose frame is not sealed and named (rule 3); a truncation below what is
//! applied, committed or purged stops the member instead of losing data in silence.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};

use super::types::{
    RaftEntry, RaftLogId, RaftVote, TypeConfig, from_raft_entry, from_raft_log_id, from_raft_vote, to_raft_entry,
    to_raft_log_id, to_raft_vote,
};
use crate::model::Entry;
use crate::store::Store;
use crate::wal::{Wal, WalError};

/// One read for a peer or for apply takes at most so many bytes of entries.
const READ_BYTES: usize = 512 << 10;

/// The log. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Log {
    wal: Wal,
    store: Store,
}

impl Log {
    /// The log in `wal`, whose applied part is in `store`.
    pub fn new(wal: Wal, store: Store) -> Log {
        Log { wal, store }
    }

    /// Entries as [`Wal::entries`] gives them; what is not in memory is read and decoded on a thread of its own.
    async fn read(&self, from: u64, to: u64) -> Result<Vec<RaftEntry>, io::Error> {
        if let Some(entries) = self.wal.entries_in_memory(from, to, READ_BYTES).map_err(read_error)? {
            return entries.into_iter().map(decode).collect();
        }
        let wal = self.wal.clone();
        let read = tokio::task::spawn_blocking(move || {
            let entries = wal.entries(from, to, READ_BYTES).map_err(read_error)?;
            entries.into_iter().map(decode).collect()
        });
        read.await.map_err(io::Error::other)?
    }

    /// Hands `begin` a callback and waits until the wal's thread has called it.
    async fn durable(&self, begin: impl FnOnce(crate::wal::Done)) -> Result<(), io::Error> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        // A receiver that is gone means that openraft is stopping.
        begin(Box::new(move |result| drop(tx.send(result))));
        match rx.await {
            Ok(result) => result.map_err(io::Error::other),
            Err(_) => Err(io::Error::other("the wal stopped")),
        }
    }
}

fn read_error(e: WalError) -> io::Error {
    io::Error::other(e)
}

fn decode(entry: Entry) -> Result<RaftEntry, io::Error> {
    to_raft_entry(entry).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        let state = self.wal.state();
        let first = state.purged.map_or(0, |id| id.index + 1);
        let end = state.last.map_or(0, |id| id.index + 1);
        let from = match range.start_bound() {
            Bound::Included(i) => *i,
            Bound::Excluded(i) => i + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(i) => i + 1,
            Bound::Excluded(i) => *i,
            Bound::Unbounded => u64::MAX,
        };
        let (mut from, to) = (from.max(first), to.min(end));
        let mut entries = Vec::new();
        // What the log holds must all be returned, in whatever pieces the wal reads it.
        while from < to {
            let piece = self.read(from, to).await?;
            if piece.is_empty() {
                return Err(io::Error::other(format!("the wal has no entry {from} below {to}")));
            }
            from += piece.len() as u64;
            entries.extend(piece);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.wal.state().vote.map(to_raft_vote))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        self.read(start, end).await
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.wal.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(to_raft_log_id),
            last_log_id: state.last.map(to_raft_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let vote = from_raft_vote(vote);
        self.durable(|done| self.wal.save_vote(vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.wal.set_committed(from_raft_log_id(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        // The note may run ahead of what this member's log kept over a crash; openraft applies up to it, so it is cut
        // to what is there. A log whose end is below the applied state is openraft's to judge.
        let state = self.wal.state();
        let committed = match (state.committed, state.last) {
            (Some(committed), Some(last)) if committed.index > last.index => Some(last),
            (committed, _) => committed,
        };
        Ok(committed.map(to_raft_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| from_raft_entry(&entry)).collect();
        self.wal.append(entries, Box::new(move |result| callback.io_completed(result.map_err(io::Error::other))));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<RaftLogId>) -> Result<(), io::Error> {
        let last = last_log_id.as_ref().map(from_raft_log_id);
        if let Some(applied) = self.store.applied()
            && last.is_none_or(|last| last.index < applied.index)
        {
            let last = last.map_or("nothing".to_string(), |last| last.to_string());
            return Err(io::Error::other(format!("refused to cut the log to {last}: {applied} is applied")));
        }
        self.durable(|done| self.wal.truncate_after(last, done)).await
    }

    async fn purge(&mut self, log_id: RaftLogId) -> Result<(), io::Error> {
        let upto = from_raft_log_id(&log_id);
        if self.store.sealed().is_none_or(|sealed| sealed.index < upto.index) {
            let sealed = self.store.sealed();
            return Err(io::Error::other(format!("refused to purge the log up to {upto}: sealed up to {sealed:?}")));
        }
        self.wal.purge(upto);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;
    use crate::files::sim::SimDisk;
    use crate::index::IndexKind;
    use crate::model::{EntryKind, LogId};
    use crate::store::StoreConfig;
    use crate::wal::WalConfig;

    #[test]
    fn only_what_is_not_in_memory_is_read_on_another_thread() {
        // One thread that blocks, so that it can be kept from being quicker than this one.
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(reads_old_entries_elsewhere());
    }

    async fn reads_old_entries_elsewhere() {
        let disk = Arc::new(SimDisk::new());
        let config = WalConfig { memory_bytes: 4000, ..WalConfig::new(Default::default(), 1) };
        let wal = Wal::open(disk.clone(), Path::new("/wal"), config).unwrap();
        let index = IndexKind::Memory(Arc::default());
        let store = Store::open(disk, Path::new("/history"), index, StoreConfig::default()).unwrap();
        let mut log = Log::new(wal.clone(), store);
        for index in 0..100 {
            let log_id = LogId { term: 1, leader: 1, index };
            let entry = Entry { log_id, kind: EntryKind::Command, payload: vec![index as u8; 100].into() };
            log.durable(|done| wal.append(vec![entry], done)).await.unwrap();
        }
        let recent = log.limited_get_log_entries(98, 100).now_or_never().expect("it is in memory").unwrap();
        assert_eq!(recent.len(), 2);
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let holds = tokio::task::spawn_blocking(move || held.recv());
        assert!(log.limited_get_log_entries(3, 100).now_or_never().is_none(), "a file was read on this thread");
        assert!(log.try_get_log_entries(3..5).now_or_never().is_none(), "a file was read on this thread");
        drop(let_go);
        holds.await.unwrap().unwrap_err();
        let old = log.limited_get_log_entries(3, 100).await.unwrap();
        assert_eq!(old.first().map(|entry| entry.log_id.index), Some(3));
        assert_eq!(log.try_get_log_entries(3..100).await.unwrap().len(), 97);
    }
}
