//! Where indexes lie: a place holds numbered generations, so that an install builds a new index beside the one in use.
//!
//! Normally there is one generation. After a crash there may be two; whichever agrees with the history is used, and the
//! others are removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::memory::{MemoryIndex, MemoryTree};
use super::sled_index::SledIndex;
use super::{Index, IndexError};

/// Which kind of index a store uses, and where it lies.
#[derive(Debug, Clone)]
pub enum IndexKind {
    /// sled, each generation in a sub-directory of this directory. Nothing else may lie there.
    Sled(PathBuf),
    /// In memory, for tests.
    Memory(Arc<MemoryIndex>),
}

impl IndexKind {
    /// The numbers of the generations that are there, the newest first.
    pub fn generations(&self) -> Result<Vec<u64>, IndexError> {
        let mut numbers: Vec<u64> = match self {
            IndexKind::Memory(place) => place.generations.lock().keys().copied().collect(),
            IndexKind::Sled(dir) => sled_generations(dir).map_err(|e| failed("listing", dir, e))?,
        };
        numbers.reverse();
        Ok(numbers)
    }

    /// Opens a generation that is there, or makes it.
    pub fn open(&self, generation: u64) -> Result<Arc<dyn Index>, IndexError> {
        match self {
            IndexKind::Memory(place) => {
                let mut generations = place.generations.lock();
                Ok(generations.entry(generation).or_insert_with(|| Arc::new(MemoryTree::default())).clone())
            }
            IndexKind::Sled(dir) => {
                fs::create_dir_all(dir).map_err(|e| failed("making", dir, e))?;
                Ok(Arc::new(SledIndex::open(&generation_dir(dir, generation))?))
            }
        }
    }

    /// Removes a generation that nobody has open.
    pub fn remove(&self, generation: u64) -> Result<(), IndexError> {
        match self {
            IndexKind::Memory(place) => {
                place.generations.lock().remove(&generation);
                Ok(())
            }
            IndexKind::Sled(dir) => {
                let dir = generation_dir(dir, generation);
                match fs::remove_dir_all(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("removing", &dir, e)),
                    _ => Ok(()),
                }
            }
        }
    }
}

fn failed(doing: &str, dir: &Path, e: io::Error) -> IndexError {
    IndexError::Backend(format!("{doing} {}: {e}", dir.display()))
}

fn generation_dir(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("{generation:016x}"))
}

fn sled_generations(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(numbers),
        entries => entries?,
    };
    for entry in entries {
        // A name that is no number is not ours; it stays.
        if let Some(number) = entry?.file_name().to_str().and_then(|name| u64::from_str_radix(name, 16).ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}
