//! Room on the disk: how much is left, how much a directory takes, and a file that holds some of it back.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Bytes that this process may still write to the file system of `path`.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes that the files below `dir` take, each counted once, whatever number of names it has there. What vanishes meanwhile
/// takes none.
pub fn used_bytes(dir: &Path) -> io::Result<u64> {
    used_by(dir, &mut BTreeSet::new())
}

fn used_by(dir: &Path, counted: &mut BTreeSet<(u64, u64)>) -> io::Result<u64> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match std::fs::read_dir(dir) {
        Err(error) if gone(&error) => return Ok(0),
        entries => entries?,
    };
    let mut total = 0;
    for entry in entries {
        let used = entry.and_then(|entry| {
            let meta = entry.metadata()?;
            if meta.is_dir() {
                return used_by(&entry.path(), counted);
            }
            let again = meta.nlink() > 1 && !counted.insert((meta.dev(), meta.ino()));
            Ok(if again { 0 } else { meta.len() })
        });
        match used {
            Ok(used) => total += used,
            Err(error) if gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

/// What a file holds of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldRoom {
    /// Its length, which [`used_bytes`] counts.
    pub len: u64,
    /// What it takes of the disk in truth.
    pub allocated: u64,
}

/// What the file at `path` holds; nothing when there is none.
pub fn held(path: &Path) -> io::Result<HeldRoom> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(HeldRoom { len: meta.len(), allocated: meta.blocks().saturating_mul(512) }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HeldRoom::default()),
        Err(error) => Err(error),
    }
}

/// Holds `bytes` of the disk in the file at `path`, without writing them.
pub fn hold(path: &Path, bytes: u64) -> io::Result<()> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    if file.metadata()?.len() > bytes {
        file.set_len(bytes)?;
    }
    fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    file.sync_all()
}

/// Gives back what [`hold`] holds.
pub fn release(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_counts_as_used_until_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/file"), [0; 1000]).unwrap();
        // Another name of the same bytes.
        std::fs::hard_link(dir.path().join("sub/file"), dir.path().join("again")).unwrap();
        let reserve = dir.path().join("reserve");
        hold(&reserve, 1 << 20).unwrap();
        hold(&reserve, 1 << 20).unwrap();
        assert_eq!(used_bytes(dir.path()).unwrap(), 1000 + (1 << 20));
        release(&reserve).unwrap();
        release(&reserve).unwrap();
        assert_eq!(used_bytes(dir.path()).unwrap(), 1000);
        assert!(free_bytes(dir.path()).unwrap() > 0);
        assert!(free_bytes(&dir.path().join("nothing")).is_err());
    }
}
