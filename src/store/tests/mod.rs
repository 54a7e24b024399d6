//! Tests of the store as a whole.
//!
//! - [`model`]: thousands of generated steps against plain maps, with seals, flushes, restarts and damaged indexes.
//! - [`damage`]: every flipped byte of the history's files.
//! - [`power`]: a power cut at every operation of seals and installs.
//! - [`compaction`]: floors and compaction, on members that compact beside members that do not.
//! - [`copies`]: snapshots and installs.
//! - [`changes`]: the cursor by revision.
//! - [`old_formats`]: files that older programs wrote.
//! - [`requests`]: transactions with branches, leases, remembered outcomes.
//! - [`fork`]: the sealed history once more, beside a store that goes on.
//! - [`rewind`]: the history of an abandoned timeline, taken over up to where the new one forked.
//! - [`sequences`]: sequences, canaries, records under a condition.
//! - [`delta`]: catching up from where a member stands, with breaks, damage and power cuts.
//! - [`overtaken`]: copies while sender and receiver go on: floors, keys created again, seals, compaction.
//! - [`steps`]: single steps of compaction: pace, full disks.
//! - [`scripted`]: single facts, by hand.
//! - [`scrub`]: what a scrub, a digest of contents and a rescue find; [`forge`] makes the damage.

mod changes;
mod compaction;
mod copies;
mod damage;
mod delta;
mod forge;
mod fork;
mod generate;
mod model;
mod old_formats;
mod oracle;
mod overtaken;
mod power;
mod requests;
mod rewind;
mod scripted;
mod scrub;
mod sequences;
mod steps;
mod timelines;

use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Store, StoreConfig, StoreError};
use crate::files::Disk;
use crate::index::{IndexKind, MemoryIndex};

/// Where the history lies in a test.
const DIR: &str = "/member/history";

/// Everything is small, so that a short test seals often and every cache overflows.
fn small() -> StoreConfig {
    StoreConfig {
        tail_bytes: 6 << 10,
        overlay_bytes: 24 << 10,
        value_cache_bytes: 16 << 10,
        table_cache_bytes: 600,
        filter_bytes: 64,
    }
}

/// A random source that says its seed when the test fails. The environment may set the seed.
struct Seeded {
    seed: u64,
    rng: StdRng,
}

impl Seeded {
    fn new() -> Seeded {
        let set = std::env::var("LIFEBOAT_TEST_SEED").ok();
        let seed = set.map_or_else(rand::random, |text| text.parse().expect("LIFEBOAT_TEST_SEED is a number"));
        Seeded { seed, rng: StdRng::seed_from_u64(seed) }
    }
}

impl Drop for Seeded {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with LIFEBOAT_TEST_SEED={}", self.seed);
        }
    }
}

fn open(disk: &(impl Disk + Clone), index: &Arc<MemoryIndex>) -> Result<Store, StoreError> {
    open_with(disk, IndexKind::Memory(index.clone()))
}

fn open_with(disk: &(impl Disk + Clone), index: IndexKind) -> Result<Store, StoreError> {
    Store::open(Arc::new(disk.clone()), Path::new(DIR), index, small())
}

fn chance(rng: &mut StdRng, percent: u32) -> bool {
    rng.random_range(0..100) < percent
}
