//! The file layer: every byte that the wal and the history put on a disk goes through [`Disk`].
//!
//! Two implementations: [`RealDisk`], plain files, and [`sim::SimDisk`], which records writes and syncs in memory and
//! can produce any state that a disk may be in after a power cut. The rules of the trait are those of a POSIX file
//! system at its least helpful: a write is durable only after the file's sync, a name (created, renamed, removed) only
//! after a sync of its directory, and until then each may be lost, kept or torn on its own, in any order.
//!
//! A failed sync is never retried: what the kernel did with the dirty pages is unknown, so the caller must stop.

pub mod aside;
mod real;
pub mod room;
pub mod sim;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use real::RealDisk;

/// Directories and names. All paths are given whole; no call creates missing parents except `create_dir_all`.
pub trait Disk: Send + Sync + 'static {
    /// Makes a new, empty file for reading and writing; fails with `AlreadyExists` when the name is taken.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing; fails with `NotFound`.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name, replacing whatever had it, in one step.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file one more name; fails with `AlreadyExists` when the name is taken, and with something else where the
    /// file system knows no such names ([`link_or_copy`] copies then).
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The names of the files in a directory, sorted; sub-directories are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes a directory and its parents, and makes their names durable.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes all changes of names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// One open file. All calls take an offset, so that readers and the writer share a handle.
pub trait DiskFile: Send + Sync {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `data`; extends the file when it reaches past its end.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the file's content and length durable (fdatasync).
    fn sync(&self) -> io::Result<()>;
    /// Lets the operating system forget what it keeps of the file in memory, so that the next read is of the disk. Only
    /// advice: what is not durable yet stays, and a disk in memory has nothing to forget.
    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }

    /// Reads exactly `buf.len()` bytes or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.read_at(buf, offset)? < buf.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// Replaces the file `dir/name` by one with `content`, so that after a crash at any point there is either the old one
/// or the new one, whole: temporary file, sync, rename, sync of the directory.
pub fn replace_file(disk: &dyn Disk, dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    match disk.remove(&temporary) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let file = disk.create(&temporary)?;
    file.write_all_at(content, 0)?;
    file.sync()?;
    disk.rename(&temporary, &dir.join(name))?;
    disk.sync_dir(dir)
}

/// How much is copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// Gives the durable file `from` the name `to` as well, or, where the file system refuses that, makes a durable copy of it.
/// Says whether it is a copy. The name is durable after a sync of its directory.
pub fn link_or_copy(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<bool> {
    match disk.link(from, to) {
        Ok(()) => return Ok(false),
        Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => return Err(e),
        // Another file system, too many names, none at all: the copy tells whether the disk is to blame.
        Err(_) => {}
    }
    let (source, target) = (disk.open(from)?, disk.create(to)?);
    let (len, mut at) = (source.len()?, 0);
    let mut buffer = vec![0; COPY_BYTES];
    while at < len {
        let part = &mut buffer[..COPY_BYTES.min((len - at) as usize)];
        source.read_exact_at(part, at)?;
        target.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    target.sync()?;
    Ok(true)
}

/// Reads a whole file into memory; `None` when there is no such file.
pub fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut content = vec![0; len];
    file.read_exact_at(&mut content, 0)?;
    Ok(Some(content))
}
