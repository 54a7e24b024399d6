//! Seeds: the content of a new member from a file that another member made, so that only what came after crosses the link.
//!
//! A seed is a full copy of a history in a file ([`crate::store::CopyCheck`] says what is checked). It holds only what was
//! applied, and so only what was committed; and it goes only into a member that has nothing, under an id that has never
//! voted. So it can be as old as it likes: the member then is where one is that was away since. What came after reaches it
//! as entries of the log or, when those are purged, as a delta, which begins by proving that both have the same history.
//!
//! ```text
//! the file is checked ──> the member joins ──> cluster and timeline compared ──> installed ──> Raft starts
//! ```
//!
//! Raft starts with an empty log behind an applied state, as after a copy that was cut before the log was: it purges up
//! to what is applied. A crash before the install has ended leaves an empty member, which begins again; one after it
//! leaves a member with data. Proven by `tests/mirrors/seed.rs`, with real processes and kill -9.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::identity::Belonging;
use super::start_error::StartError;
use crate::model::{ClusterId, Revision, Timeline};
use crate::store::{CopyCheck, Head, PreparedInstall, Store, StoreError};
use crate::wal::Wal;

/// One read of the file.
const READ_BYTES: usize = 1 << 20;

/// Why a file is no seed.
#[derive(Debug, Error)]
pub enum SeedError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is damaged, cut, or something else.
    #[error("{} cannot be used: {source}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and where.
        source: StoreError,
    },
    /// It belongs to no cluster.
    #[error("{} cannot be used: it names no cluster", path.display())]
    NoCluster {
        /// Which file.
        path: PathBuf,
    },
}

/// What a seed holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedInfo {
    /// Whose history.
    pub cluster: ClusterId,
    /// The timeline at its end.
    pub timeline: Timeline,
    /// The newest revision.
    pub revision: Revision,
    /// The index of the last entry.
    pub position: u64,
    /// The leader's time of that entry, in milliseconds since 1970.
    pub clock_ms: u64,
    /// The size of the file.
    pub bytes: u64,
}

/// Takes the bytes of a seed while they are written or read, and tells in the end what they are.
#[derive(Debug, Default)]
pub struct SeedCheck(CopyCheck);

impl SeedCheck {
    /// Takes the bytes that follow.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.0.push(bytes)
    }

    /// What the bytes are, if all of them came and all are right; `path` is for the words of an error.
    pub fn finish(self, path: &Path) -> Result<SeedInfo, SeedError> {
        let bytes = self.0.bytes();
        let head = self.0.finish().map_err(|source| SeedError::Damaged { path: path.into(), source })?;
        info(&head, bytes).ok_or_else(|| SeedError::NoCluster { path: path.into() })
    }
}

fn info(head: &Head, bytes: u64) -> Option<SeedInfo> {
    Some(SeedInfo {
        cluster: head.cluster?,
        timeline: head.timelines.last()?.clone(),
        revision: head.revision,
        position: head.applied?.index,
        clock_ms: head.clock_ms,
        bytes,
    })
}

/// Reads a seed to its end, or to the first error of `each`.
fn read(path: &Path, mut each: impl FnMut(&[u8]) -> Result<(), StoreError>) -> Result<(), SeedError> {
    let io = |source| SeedError::Io { path: path.into(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => return Ok(()),
            bytes => each(&buffer[..bytes]).map_err(|source| SeedError::Damaged { path: path.into(), source })?,
        }
    }
}

/// Checks a whole seed; `progress` is told how many bytes were read so far.
pub fn check(path: &Path, mut progress: impl FnMut(u64)) -> Result<SeedInfo, SeedError> {
    let mut check = SeedCheck::default();
    read(path, |bytes| {
        check.push(bytes)?;
        progress(check.0.bytes());
        Ok(())
    })?;
    check.finish(path)
}

/// Whether a member has anything that a seed would replace.
fn has_data(store: &Store, wal: &Wal) -> bool {
    let state = wal.state();
    store.applied().is_some() || state.last.is_some() || state.vote.is_some()
}

/// Installs the seed into a member that has joined, if it has nothing yet.
pub(super) async fn install(path: &Path, store: &Store, wal: &Wal, belonging: &Belonging) -> Result<(), StartError> {
    if has_data(store, wal) {
        tracing::info!(seed = %path.display(), "this member has data and uses it; --seed is ignored");
        return Ok(());
    }
    if belonging.founder {
        tracing::warn!(seed = %path.display(), "this member founds a cluster; --seed is ignored");
        return Ok(());
    }
    let (path, store, belonging) = (path.to_path_buf(), store.clone(), *belonging);
    let installed = tokio::task::spawn_blocking(move || install_now(&path, &store, &belonging)).await;
    installed.map_err(|e| StartError::Other(format!("seeding failed: {e}")))?
}

fn install_now(path: &Path, store: &Store, belonging: &Belonging) -> Result<(), StartError> {
    let other = |detail| StartError::OtherSeed { path: path.into(), detail };
    if let Some(detail) = other_history(&promised(path)?, belonging) {
        return Err(other(detail));
    }
    let (bytes, prepared) = match receive(path, store) {
        Ok(received) => received,
        Err(e) => {
            // Nothing of a file that is no good is kept for a copy to go on from.
            store.discard_staging()?;
            return Err(e.into());
        }
    };
    let (revision, position) = (prepared.meta().revision, prepared.meta().applied.map(|id| id.index));
    store.install(prepared)?;
    tracing::info!(seed = %path.display(), bytes, revision, position, "this member begins with the content of its seed");
    Ok(())
}

/// The state that the header of a seed promises.
fn promised(path: &Path) -> Result<Head, SeedError> {
    let mut check = CopyCheck::new();
    // The error ends the reading; it is not told.
    let read = read(path, |bytes| {
        check.push(bytes)?;
        let known = || StoreError::Stopped("the header is known".to_owned());
        check.meta().map_or(Ok(()), |_| Err(known()))
    });
    match (check.meta(), read) {
        (Some(head), _) => Ok(head.clone()),
        (None, Err(e)) => Err(e),
        (None, Ok(())) => match check.finish() {
            Ok(_) => Err(SeedError::NoCluster { path: path.into() }),
            Err(source) => Err(SeedError::Damaged { path: path.into(), source }),
        },
    }
}

/// Writes the seed to new segments, which are not in use yet.
fn receive(path: &Path, store: &Store) -> Result<(u64, PreparedInstall), SeedError> {
    let damaged = |source| SeedError::Damaged { path: path.into(), source };
    let mut installer = store.begin_install().map_err(damaged)?;
    read(path, |bytes| installer.push(bytes))?;
    let bytes = installer.received_bytes();
    Ok((bytes, installer.finish().map_err(damaged)?))
}

/// Why a seed is of another history than the member joined.
fn other_history(head: &Head, belonging: &Belonging) -> Option<String> {
    let Belonging { id: cluster, timeline, .. } = belonging;
    match (head.cluster, head.timelines.last()) {
        (Some(theirs), _) if theirs != *cluster => {
            Some(format!("it is of cluster {theirs}, and this member has joined cluster {cluster}"))
        }
        (Some(_), Some(theirs)) if theirs.id != *timeline => {
            Some(format!("it is of timeline {}, and this member has joined timeline {timeline}", theirs.id))
        }
        (Some(_), Some(_)) => None,
        (None, _) | (_, None) => Some("it names no cluster".to_owned()),
    }
}
