//! A lock on a directory, so that two processes never use the same data.
//!
//! It is the operating system's lock on the file `lock` in the directory: it ends with the process, however that ends,
//! and the file may stay.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::Path;

/// Name of the file that is locked.
const LOCK_FILE: &str = "lock";

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Makes the directory when it is missing and takes its lock. Fails with `WouldBlock` when another process has it.
    pub fn take(dir: &Path) -> io::Result<DirLock> {
        std::fs::create_dir_all(dir)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(LOCK_FILE))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "another process uses this directory"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // For people who look into the file; nobody reads it back.
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(DirLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/down");
        let first = DirLock::take(&path).unwrap();
        assert_eq!(DirLock::take(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        DirLock::take(&path).unwrap();
    }
}
