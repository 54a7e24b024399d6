//! The states in which a [`SimDisk`] can be after a power cut or the death of the process.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Dir, FileOp, Node, NodeId, SimDisk, State};

/// What a disk writes as a whole.
const SECTOR_BYTES: usize = 512;

/// How one power cut treats what was not synced. Drawn once a cut, so that gentle and harsh cuts both occur.
struct Mood {
    keep_file_op: f64,
    keep_name_op: f64,
    tear: f64,
    stale_garbage: bool,
}

impl Mood {
    fn draw(rng: &mut StdRng) -> Mood {
        let mut level = || [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)];
        let (keep_file_op, keep_name_op, tear) = (level(), level(), level());
        Mood { keep_file_op, keep_name_op, tear, stale_garbage: rng.random_bool(0.25) }
    }
}

impl SimDisk {
    /// A new disk in one of the states that this one may be in after a power cut, chosen by `seed`. This disk stays as
    /// it is, so that many states can be drawn from one crash.
    pub fn power_cut(&self, seed: u64) -> SimDisk {
        let mut rng = StdRng::seed_from_u64(seed);
        let mood = Mood::draw(&mut rng);
        let state = self.shared.state.lock();
        let mut survivors = Survivors::default();
        for (path, dir) in &state.dirs {
            let mut names = dir.durable.clone();
            for op in &dir.unsynced {
                if rng.random_bool(mood.keep_name_op) {
                    op.apply(&mut names);
                }
            }
            let content = |node: NodeId| cut_node(&state.nodes[node], &mood, stale_bytes(&state, node), &mut rng);
            survivors.add_dir(path.clone(), &names, content);
        }
        survivors.into_disk()
    }

    /// The power cut that loses everything that was not synced.
    pub fn power_cut_keep_nothing(&self) -> SimDisk {
        self.extreme(|dir| &dir.durable, |node| &node.durable)
    }

    /// The power cut that happens to lose nothing.
    pub fn power_cut_keep_all(&self) -> SimDisk {
        self.extreme(|dir| &dir.live, |node| &node.live)
    }

    fn extreme(
        &self,
        names: impl Fn(&Dir) -> &BTreeMap<String, NodeId>,
        content: impl Fn(&Node) -> &Vec<u8>,
    ) -> SimDisk {
        let state = self.shared.state.lock();
        let mut survivors = Survivors::default();
        for (path, dir) in &state.dirs {
            survivors.add_dir(path.clone(), names(dir), |node| content(&state.nodes[node]).clone());
        }
        survivors.into_disk()
    }

    /// A new disk as the next process finds it when this one was killed: everything is there, and what was not synced
    /// is still not, so that a power cut after the restart may lose it. Faults that were asked for are gone.
    pub fn process_kill(&self) -> SimDisk {
        let state = self.shared.state.lock();
        SimDisk::from_state(State { nodes: state.nodes.clone(), dirs: state.dirs.clone(), ..State::default() })
    }
}

/// The files of the new disk; a node that has two names stays one file.
#[derive(Default)]
struct Survivors {
    state: State,
    moved: BTreeMap<NodeId, NodeId>,
}

impl Survivors {
    fn add_dir(
        &mut self,
        path: std::path::PathBuf,
        names: &BTreeMap<String, NodeId>,
        mut content: impl FnMut(NodeId) -> Vec<u8>,
    ) {
        let mut dir = Dir::default();
        for (name, old) in names {
            let nodes = &mut self.state.nodes;
            let new = *self.moved.entry(*old).or_insert_with(|| {
                let content = content(*old);
                nodes.push(Node { live: content.clone(), durable: content, ..Node::default() });
                nodes.len() - 1
            });
            dir.live.insert(name.clone(), new);
        }
        dir.durable = dir.live.clone();
        self.state.dirs.insert(path, dir);
    }

    fn into_disk(self) -> SimDisk {
        SimDisk::from_state(self.state)
    }
}

/// Bytes that may turn up where a file grew: what lay there before, which is the content of some other file.
fn stale_bytes(state: &State, node: NodeId) -> &[u8] {
    let others = state.nodes.iter().enumerate().filter(|(other, _)| *other != node).map(|(_, other)| &other.live);
    others.max_by_key(|live| live.len()).map_or(&[], Vec::as_slice)
}

fn cut_node(node: &Node, mood: &Mood, stale: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut content = node.durable.clone();
    let mut lens = vec![content.len()];
    let mut live_len = content.len();
    for op in &node.unsynced {
        match op {
            FileOp::SetLen(len) => {
                live_len = *len as usize;
                if rng.random_bool(mood.keep_file_op) {
                    grow(&mut content, live_len, mood, stale, rng);
                    content.truncate(live_len);
                }
            }
            FileOp::Write { offset, data } => {
                live_len = live_len.max(*offset as usize + data.len());
                if rng.random_bool(mood.keep_file_op) {
                    keep_write(&mut content, *offset as usize, data, mood, stale, rng);
                }
            }
        }
        lens.push(live_len);
    }
    // The length is written apart from the content: any length that the file has had since its last sync may be found.
    if !node.unsynced.is_empty() && rng.random_bool(0.5) {
        let len = lens[rng.random_range(0..lens.len())];
        // Only a growth can be found without its bytes; a cut that did not happen has its old bytes.
        if len > node.durable.len() {
            grow(&mut content, len, mood, stale, rng);
        }
        content.truncate(len);
    }
    content
}

fn keep_write(content: &mut Vec<u8>, start: usize, data: &[u8], mood: &Mood, stale: &[u8], rng: &mut StdRng) {
    if data.is_empty() {
        return;
    }
    grow(content, start + data.len(), mood, stale, rng);
    if !rng.random_bool(mood.tear) {
        content[start..start + data.len()].copy_from_slice(data);
        return;
    }
    let unit = if rng.random_bool(0.15) { 1 } else { SECTOR_BYTES };
    // A prefix is the likeliest tear of all and must not be left to luck among thousands of sectors.
    let prefix = rng.random_bool(0.3).then(|| start + rng.random_range(0..=data.len()) / unit * unit);
    let keep = rng.random_range(0.0..=1.0);
    let mut at = start;
    while at < start + data.len() {
        let end = ((at / unit + 1) * unit).min(start + data.len());
        let kept = prefix.map_or_else(|| rng.random_bool(keep), |limit| at < limit);
        if kept {
            content[at..end].copy_from_slice(&data[at - start..end - start]);
        }
        at = end;
    }
}

/// Extends `content` to `len`, with zeros or with what may have lain there before.
fn grow(content: &mut Vec<u8>, len: usize, mood: &Mood, stale: &[u8], rng: &mut StdRng) {
    let old = content.len();
    if len <= old {
        return;
    }
    content.resize(len, 0);
    if !mood.stale_garbage {
        return;
    }
    if stale.is_empty() || rng.random_bool(0.5) {
        rng.fill(&mut content[old..]);
    } else {
        let shift = rng.random_range(0..stale.len());
        for (i, byte) in content[old..].iter_mut().enumerate() {
            *byte = stale[(old + shift + i) % stale.len()];
        }
    }
}
