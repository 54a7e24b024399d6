//! [`SimDisk`]: a disk in memory that knows what is durable and what is not.
//!
//! It stands in for [`RealDisk`](super::RealDisk) in tests. Every write, change of length and change of a name is
//! recorded until the sync that covers it, so that a test can ask for any state in which a power cut may leave a real
//! disk, and open the store on it.
//!
//! ```text
//!   write_all_at, set_len ──► unsynced operations of the file ──sync──► durable content
//!   create, rename, remove ─► unsynced operations of the directory ──sync_dir──► durable names
//!                                        │
//!                  power_cut(seed) ──────┴──► a new disk: durable, plus an arbitrary part of the unsynced
//! ```
//!
//! Rules, on purpose those of the least helpful file system that keeps the promises of `fsync`:
//!
//! - Syncing a file does not make its name durable; syncing a directory does not make content durable.
//! - Each unsynced write is kept, lost, or torn into sectors of 512 bytes (at times into bytes). Writes need no
//!   shuffling: since any sector of any of them may be lost, every order of arrival gives a state that some choice of
//!   losses gives too. Bytes that no unsynced write touches stay as they are: sectors do not break their neighbours.
//! - An unsynced growth may show zeros or stale garbage where no write arrived, or may not have happened.
//! - Each unsynced change of a name is kept or lost on its own. A rename inside one directory is one step.
//! - After a failed sync, what it should have written is never made durable by a later sync that succeeds, although
//!   reads go on showing it: this is what kernels do, and why a failed sync is never retried.
//!
//! What it does not do: permissions, symbolic links, directories that vanish (a directory is durable when it is made).
//! Proven by `sim::tests`.

mod cut;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::{Disk, DiskFile};

/// A disk in memory. Clones share one disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// All files that ever were; a removed one stays readable through its open handles.
    nodes: Vec<Node>,
    dirs: BTreeMap<PathBuf, Dir>,
    faults: Faults,
    operations: u64,
    syncs: u64,
    held_syncs: usize,
}

/// What a test has asked to go wrong.
#[derive(Default)]
struct Faults {
    /// How many more mutating operations succeed before the power goes.
    operations_left: Option<u64>,
    power_is_off: bool,
    /// Counts down; the sync that finds 1 fails.
    sync_countdown: Option<u64>,
    write_budget_bytes: Option<u64>,
    hold_syncs: bool,
    refuse_links: bool,
}

type NodeId = usize;

/// A file's content: as its readers see it, and as the medium is known to have it.
#[derive(Clone, Default)]
struct Node {
    live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<FileOp>,
    /// How many operations at the front of `unsynced` a failed sync has covered: no later sync saves them.
    doomed: usize,
}

#[derive(Clone)]
enum FileOp {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
}

#[derive(Clone, Default)]
struct Dir {
    live: BTreeMap<String, NodeId>,
    durable: BTreeMap<String, NodeId>,
    unsynced: Vec<NameOp>,
}

#[derive(Clone)]
enum NameOp {
    Link { name: String, node: NodeId },
    Unlink { name: String, node: NodeId },
    Rename { from: String, to: String, node: NodeId },
}

impl NameOp {
    fn apply(&self, names: &mut BTreeMap<String, NodeId>) {
        let mut forget = |name: &String, node: &NodeId| {
            if names.get(name) == Some(node) {
                names.remove(name);
            }
        };
        match self {
            NameOp::Link { name, node } => {
                names.insert(name.clone(), *node);
            }
            NameOp::Unlink { name, node } => forget(name, node),
            NameOp::Rename { from, to, node } => {
                forget(from, node);
                names.insert(to.clone(), *node);
            }
        }
    }
}

impl FileOp {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            FileOp::Write { offset, data } => {
                let start = *offset as usize;
                let end = start + data.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(data);
            }
            FileOp::SetLen(len) => content.resize(*len as usize, 0),
        }
    }
}

impl Node {
    fn record(&mut self, op: FileOp) {
        op.apply(&mut self.live);
        self.unsynced.push(op);
    }

    fn sync(&mut self) {
        for op in self.unsynced.drain(..).skip(self.doomed) {
            op.apply(&mut self.durable);
        }
        self.doomed = 0;
    }
}

impl Dir {
    fn record(&mut self, op: NameOp) {
        op.apply(&mut self.live);
        self.unsynced.push(op);
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("the simulated power is off")
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

/// A path's directory and name. A path without either names no file.
fn split(path: &Path) -> io::Result<(PathBuf, String)> {
    let name = path.file_name().and_then(|n| n.to_str());
    match (path.parent(), name) {
        (Some(dir), Some(name)) => Ok((dir.to_path_buf(), name.to_string())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display()))),
    }
}

impl State {
    fn check_power(&self) -> io::Result<()> {
        if self.faults.power_is_off { Err(power_is_off()) } else { Ok(()) }
    }

    /// Counts a mutating operation. `Ok(false)` says that the power goes in the middle of this one: the caller records
    /// what it was about to do as unsynced, so that a power cut may show it, and then fails.
    fn begin(&mut self) -> io::Result<bool> {
        self.check_power()?;
        self.operations += 1;
        match &mut self.faults.operations_left {
            Some(0) => {
                self.faults.power_is_off = true;
                Ok(false)
            }
            Some(left) => {
                *left -= 1;
                Ok(true)
            }
            None => Ok(true),
        }
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut Dir> {
        self.dirs.get_mut(path).ok_or_else(|| not_found(path))
    }

    fn node_at(&self, path: &Path) -> io::Result<NodeId> {
        let (dir, name) = split(path)?;
        let found = self.dirs.get(&dir).and_then(|d| d.live.get(&name));
        found.copied().ok_or_else(|| not_found(path))
    }
}

/// Ends a mutating operation that has been recorded.
fn finish(powered: bool) -> io::Result<()> {
    if powered { Ok(()) } else { Err(power_is_off()) }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    fn from_state(state: State) -> SimDisk {
        SimDisk { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
    }

    /// How many operations that change something (writes, syncs, names) have been asked for.
    pub fn operations(&self) -> u64 {
        self.shared.state.lock().operations
    }

    /// How many file syncs have succeeded.
    pub fn syncs(&self) -> u64 {
        self.shared.state.lock().syncs
    }

    /// Lets `operations` more mutating operations succeed; the power goes in the middle of the one after them, and it
    /// and every later call fail. [`SimDisk::power_cut`] then gives the state.
    pub fn crash_after(&self, operations: u64) {
        self.shared.state.lock().faults.operations_left = Some(operations);
    }

    /// Whether the power has gone (see [`SimDisk::crash_after`]).
    pub fn has_crashed(&self) -> bool {
        self.shared.state.lock().faults.power_is_off
    }

    /// Makes the `nth` next file sync (1 is the next) fail with an I/O error.
    pub fn fail_sync(&self, nth: u64) {
        self.shared.state.lock().faults.sync_countdown = Some(nth);
    }

    /// Lets `bytes` more be written; the write that needs more writes what fits and fails with `StorageFull`, and so
    /// does every later one. `None` takes the limit away.
    pub fn limit_writes(&self, bytes: Option<u64>) {
        self.shared.state.lock().faults.write_budget_bytes = bytes;
    }

    /// Makes it a disk on which a file has one name only.
    pub fn refuse_links(&self) {
        self.shared.state.lock().faults.refuse_links = true;
    }

    /// Makes every file sync wait until [`SimDisk::release_syncs`].
    pub fn hold_syncs(&self) {
        self.shared.state.lock().faults.hold_syncs = true;
    }

    /// Lets held syncs go on.
    pub fn release_syncs(&self) {
        self.shared.state.lock().faults.hold_syncs = false;
        self.shared.changed.notify_all();
    }

    /// Waits until a sync waits because of [`SimDisk::hold_syncs`].
    pub fn wait_for_held_sync(&self) {
        let mut state = self.shared.state.lock();
        while state.held_syncs == 0 {
            self.shared.changed.wait(&mut state);
        }
    }

    /// Changes a byte of a file, durably and behind everyone's back: bit rot.
    pub fn flip_byte(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let node = state.node_at(path)?;
        let (node, at) = (&mut state.nodes[node], offset as usize);
        for content in [&mut node.live, &mut node.durable] {
            if let Some(byte) = content.get_mut(at) {
                *byte ^= mask;
            }
        }
        Ok(())
    }

    /// What a reader of the file would see.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.shared.state.lock();
        Ok(state.nodes[state.node_at(path)?].live.clone())
    }

    /// Gives a file (made when missing) exactly this content, all of it and the name durable at once.
    pub fn set_content(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let (dir, name) = split(path)?;
        let mut state = self.shared.state.lock();
        let node = state.nodes.len();
        state.nodes.push(Node { live: content.to_vec(), durable: content.to_vec(), ..Node::default() });
        let dir = state.dir(&dir)?;
        dir.live.insert(name.clone(), node);
        dir.durable.insert(name, node);
        Ok(())
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let (dir, name) = split(path)?;
        let mut state = self.shared.state.lock();
        state.check_power()?;
        if state.dir(&dir)?.live.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let powered = state.begin()?;
        let node = state.nodes.len();
        state.nodes.push(Node::default());
        state.dir(&dir)?.record(NameOp::Link { name, node });
        finish(powered)?;
        Ok(Arc::new(SimFile { shared: self.shared.clone(), node }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.shared.state.lock();
        state.check_power()?;
        let node = state.node_at(path)?;
        Ok(Arc::new(SimFile { shared: self.shared.clone(), node }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_dir, from_name), (to_dir, to_name)) = (split(from)?, split(to)?);
        let mut state = self.shared.state.lock();
        state.check_power()?;
        let node = state.node_at(from)?;
        state.dir(&to_dir)?;
        let powered = state.begin()?;
        if from_dir == to_dir {
            state.dir(&from_dir)?.record(NameOp::Rename { from: from_name, to: to_name, node });
        } else {
            state.dir(&to_dir)?.record(NameOp::Link { name: to_name, node });
            state.dir(&from_dir)?.record(NameOp::Unlink { name: from_name, node });
        }
        finish(powered)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (dir, name) = split(to)?;
        let mut state = self.shared.state.lock();
        state.check_power()?;
        if state.faults.refuse_links {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let node = state.node_at(from)?;
        if state.dir(&dir)?.live.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let powered = state.begin()?;
        state.dir(&dir)?.record(NameOp::Link { name, node });
        finish(powered)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = split(path)?;
        let mut state = self.shared.state.lock();
        state.check_power()?;
        let node = state.node_at(path)?;
        let powered = state.begin()?;
        state.dir(&dir)?.record(NameOp::Unlink { name, node });
        finish(powered)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.shared.state.lock();
        state.check_power()?;
        Ok(state.dir(dir)?.live.keys().cloned().collect())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.check_power()?;
        if state.dirs.contains_key(dir) {
            return Ok(());
        }
        finish(state.begin()?)?;
        for ancestor in dir.ancestors() {
            state.dirs.entry(ancestor.to_path_buf()).or_default();
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        finish(state.begin()?)?;
        let dir = state.dir(dir)?;
        dir.unsynced.clear();
        dir.durable.clone_from(&dir.live);
        Ok(())
    }
}

struct SimFile {
    shared: Arc<Shared>,
    node: NodeId,
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.shared.state.lock();
        state.check_power()?;
        let content = &state.nodes[self.node].live;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        let n = buf.len().min(content.len() - start);
        buf[..n].copy_from_slice(&content[start..start + n]);
        Ok(n)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let powered = state.begin()?;
        let fits = match &mut state.faults.write_budget_bytes {
            None => data.len(),
            Some(budget) => {
                let fits = data.len().min(usize::try_from(*budget).unwrap_or(usize::MAX));
                *budget -= fits as u64;
                fits
            }
        };
        if fits > 0 {
            state.nodes[self.node].record(FileOp::Write { offset, data: data[..fits].to_vec() });
        }
        finish(powered)?;
        if fits < data.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.shared.state.lock();
        state.check_power()?;
        Ok(state.nodes[self.node].live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let powered = state.begin()?;
        state.nodes[self.node].record(FileOp::SetLen(len));
        finish(powered)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        while state.faults.hold_syncs && !state.faults.power_is_off {
            state.held_syncs += 1;
            self.shared.changed.notify_all();
            self.shared.changed.wait(&mut state);
            state.held_syncs -= 1;
        }
        finish(state.begin()?)?;
        match &mut state.faults.sync_countdown {
            Some(1) => {
                state.faults.sync_countdown = None;
                let node = &mut state.nodes[self.node];
                node.doomed = node.unsynced.len();
                return Err(io::Error::other("simulated I/O error of a sync"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        state.nodes[self.node].sync();
        state.syncs += 1;
        Ok(())
    }
}
