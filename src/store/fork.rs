//! Fork: the sealed history once more, in another directory, as the beginning of another store.
//!
//! For a rehearsal of a failover, beside a store that goes on. Segments are linked and never read: neither side ever writes
//! into one, and each removes only its own names. They are held for as long as it takes, so that a compaction meanwhile
//! keeps their files; nothing waits for a fork, neither apply nor a seal. Where the file system refuses links they are
//! copied, as far as the caller allows.
//!
//! What is not sealed is not in it: it must be applied again from a wal, from [`Forked::sealed`] on, as after a crash. The
//! index is not in it either: sled's files cannot be copied while it runs, and the fork's first open builds one.
//!
//! A crash leaves a directory that no MANIFEST makes a store. Proven by `store/tests/fork.rs`.

use std::path::Path;

use super::{Store, StoreError};
use crate::files;
use crate::history::{HistoryError, Manifest};
use crate::model::{LogId, Revision};

/// What a fork holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forked {
    /// The last entry of it.
    pub sealed: Option<LogId>,
    /// The revision there.
    pub revision: Revision,
    /// So many segments were linked.
    pub linked: u64,
    /// Their bytes.
    pub linked_bytes: u64,
    /// Bytes that were copied, because the file system refused to link.
    pub copied_bytes: u64,
}

impl Store {
    /// Forks what is sealed into the new directory `to`. Copies at most so many bytes.
    pub fn fork(&self, to: &Path, copy_at_most: u64) -> Result<Forked, StoreError> {
        let inner = &self.inner;
        let (sealed, head) = {
            let body = inner.body();
            let state = body.state.read();
            (state.sealed.clone(), state.sealed_head.clone())
        };
        let name = || to.display().to_string();
        inner.disk.create_dir_all(to).map_err(HistoryError::io("making", name()))?;
        let mut forked = Forked { sealed: head.applied, revision: head.revision, ..Forked::default() };
        for segment in sealed.segments() {
            let info = segment.info();
            let (source, target) = (inner.dir.join(&info.file), to.join(&info.file));
            let doing = HistoryError::io("linking", target.display().to_string());
            let linked = match inner.disk.link(&source, &target) {
                Ok(()) => Ok(true),
                Err(_) if forked.copied_bytes + info.bytes > copy_at_most => {
                    let why =
                        format!("the file system links no files, and more than {copy_at_most} bytes would be copied");
                    Err(std::io::Error::new(std::io::ErrorKind::StorageFull, why))
                }
                Err(_) => files::link_or_copy(inner.disk.as_ref(), &source, &target).map(|copied| !copied),
            };
            if linked.map_err(doing)? {
                forked.linked += 1;
                forked.linked_bytes += info.bytes;
            } else {
                forked.copied_bytes += info.bytes;
            }
        }
        inner.disk.sync_dir(to).map_err(HistoryError::io("syncing", name()))?;
        let next_segment_id = inner.next_segment_id.load(std::sync::atomic::Ordering::Relaxed);
        let manifest = Manifest { segments: sealed.infos(), head: (*head).clone(), next_segment_id, staging: None };
        manifest.commit(inner.disk.as_ref(), to)?;
        Ok(forked)
    }
}
