//! The index: key → newest version. A view of the history, thrown away when in doubt.
//!
//! Place in the path of a write: `store` keeps every change whose frame is not sealed in memory, and hands sealed
//! changes to the index in sorted batches, in the background. Reads look in the store's memory first, then here.
//!
//! An index key is the byte of the key space followed by the key; tombstones stay until both floors have passed them. Beside the entries lies one record,
//! [`IndexMeta`], that is written in one step with each batch: up to which position the history is in here, the chain
//! hash there, how many entries there are, and a digest of all of them.
//!
//! Invariants:
//! - Nothing here is needed: it can be rebuilt from the history at any time, and it is, whenever it does not agree.
//! - The digest is the wrapping sum of a 64-bit hash of every entry, so that it is kept up to date entry by entry and
//!   does not depend on their order. A scan at open that gives another digest finds every hole, every old entry and
//!   every empty or foreign index, whatever the backend's own recovery believed.
//! - The batches between two positions may have been written in part: the record keeps the older position then, and
//!   replaying the frames after it gives the rest.
//!
//! What survives a crash: nothing that anyone relies on. What it does not do: it has no snapshots and no fsync.
//!
//! Two backends: [`sled_index`], the only file that names sled, and [`memory`], its twin for tests. [`place`] is where
//! an index lies, so that an install can build a new one beside the one in use.
//!
//! Proven by the tests of `store` that restart with an index lost, emptied, replaced by an older copy, or cut.

pub mod memory;
pub mod place;
pub mod sled_index;

use thiserror::Error;

use crate::model::ChainHash;
use crate::model::codec::{DecodeError, Reader, put_varint};
use crate::model::{KeyMeta, Revision};

pub use memory::MemoryIndex;
pub use place::IndexKind;

/// An index key: the byte of the key space, then the key.
pub type IndexKey = Box<[u8]>;

/// The newest version of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// The revision of the newest version, be it a value or a deletion.
    pub mod_revision: Revision,
    /// What is known of the value; none when the key is deleted.
    pub live: Option<LiveEntry>,
}

/// What is known of a value besides its revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveEntry {
    /// When the key was created (again).
    pub create_revision: Revision,
    /// How many times it was written since, from 1.
    pub version: u64,
    /// The lease it hangs on; 0 for none.
    pub lease: u64,
}

impl IndexEntry {
    /// The entry of a value.
    pub fn value(meta: KeyMeta) -> IndexEntry {
        let KeyMeta { create_revision, mod_revision, version, lease } = meta;
        IndexEntry { mod_revision, live: Some(LiveEntry { create_revision, version, lease }) }
    }

    /// The entry of a deleted key.
    pub fn tombstone(mod_revision: Revision) -> IndexEntry {
        IndexEntry { mod_revision, live: None }
    }

    /// What a client may know of the key; none when it is deleted.
    pub fn meta(&self) -> Option<KeyMeta> {
        let LiveEntry { create_revision, version, lease } = self.live?;
        Some(KeyMeta { create_revision, mod_revision: self.mod_revision, version, lease })
    }

    /// The bytes in a backend: a flag, then varints.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        out.push(u8::from(self.live.is_some()));
        put_varint(&mut out, self.mod_revision);
        if let Some(live) = self.live {
            for field in [live.create_revision, live.version, live.lease] {
                put_varint(&mut out, field);
            }
        }
        out
    }

    /// Reads what [`IndexEntry::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<IndexEntry, DecodeError> {
        let mut reader = Reader::new(bytes::Bytes::copy_from_slice(bytes));
        let flag = reader.u8("index entry")?;
        let mod_revision = reader.varint("revision")?;
        let live = match flag {
            0 => None,
            1 => Some(LiveEntry {
                create_revision: reader.varint("create revision")?,
                version: reader.varint("version")?,
                lease: reader.varint("lease")?,
            }),
            _ => return Err(DecodeError { what: "index entry" }),
        };
        reader.finish("index entry")?;
        Ok(IndexEntry { mod_revision, live })
    }

    /// Whether it says that the key was deleted, at this revision or before.
    pub fn is_tombstone_at_or_below(&self, revision: Revision) -> bool {
        self.live.is_none() && self.mod_revision <= revision
    }

    /// The entry's part of the digest.
    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(key.len() as u64).to_le_bytes());
        hasher.update(key);
        hasher.update(&self.encode());
        u64::from_le_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes"))
    }
}

/// What the index says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IndexMeta {
    /// The position that comes after the last frame whose changes are all here; 0 when it is empty.
    pub next_position: u64,
    /// The chain hash before that position.
    pub chain: ChainHash,
    /// The revision there.
    pub revision: Revision,
    /// How many entries there are, and of what.
    pub contents: Contents,
}

/// What an index holds, in three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contents {
    /// How many entries.
    pub entries: u64,
    /// How many of them are values and not tombstones.
    pub live: u64,
    /// The wrapping sum of the hashes of all entries.
    pub digest: u64,
}

impl Contents {
    /// An entry came.
    pub fn add(&mut self, key: &[u8], entry: &IndexEntry) {
        self.entries = self.entries.wrapping_add(1);
        self.live = self.live.wrapping_add(u64::from(entry.live.is_some()));
        self.digest = self.digest.wrapping_add(entry.hash(key));
    }

    /// An entry went.
    pub fn remove(&mut self, key: &[u8], entry: &IndexEntry) {
        self.entries = self.entries.wrapping_sub(1);
        self.live = self.live.wrapping_sub(u64::from(entry.live.is_some()));
        self.digest = self.digest.wrapping_sub(entry.hash(key));
    }
}

const META_VERSION: u8 = 1;

impl IndexMeta {
    /// The bytes in a backend.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![META_VERSION];
        let Contents { entries, live, digest } = self.contents;
        for field in [self.next_position, self.revision, entries, live, digest] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.chain.0);
        out
    }

    /// Reads what [`IndexMeta::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<IndexMeta, DecodeError> {
        let mut reader = Reader::new(bytes::Bytes::copy_from_slice(bytes));
        if reader.u8("index record")? != META_VERSION {
            return Err(DecodeError { what: "index record" });
        }
        let next_position = reader.u64("index record")?;
        let revision = reader.u64("index record")?;
        let contents = Contents {
            entries: reader.u64("index record")?,
            live: reader.u64("index record")?,
            digest: reader.u64("index record")?,
        };
        let mut chain = ChainHash::default();
        chain.0.copy_from_slice(&reader.take(16, "index record")?);
        reader.finish("index record")?;
        Ok(IndexMeta { next_position, chain, revision, contents })
    }
}

/// What can go wrong with an index. At open it only means a rebuild.
#[derive(Debug, Error)]
pub enum IndexError {
    /// The backend failed.
    #[error("the index failed: {0}")]
    Backend(String),
    /// The backend gave bytes that nobody wrote.
    #[error("the index is damaged")]
    Damaged(#[from] DecodeError),
}

/// An ordered map from index keys to entries, with one record beside them. All calls are safe from any thread.
pub trait Index: Send + Sync + 'static {
    /// The entry of a key.
    fn get(&self, key: &[u8]) -> Result<Option<IndexEntry>, IndexError>;
    /// The first entries with keys from `start` on, up to and without `end`, in order, at most `limit`. Entries that are
    /// written meanwhile may be seen or not.
    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Vec<(IndexKey, IndexEntry)>, IndexError>;
    /// Writes sorted entries and the record in one step.
    fn write(&self, batch: &[(&[u8], IndexEntry)], meta: &IndexMeta) -> Result<(), IndexError>;
    /// Removes entries and writes the record, in one step.
    fn remove(&self, keys: &[&[u8]], meta: &IndexMeta) -> Result<(), IndexError>;
    /// Hands what was written to the operating system, so that a process that ends now loses nothing of it.
    fn settle(&self) -> Result<(), IndexError>;
    /// The record; none in a new index.
    fn meta(&self) -> Result<Option<IndexMeta>, IndexError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_the_record_come_back() {
        let meta = KeyMeta { create_revision: 1 << 40, mod_revision: (1 << 40) + 5, version: 300, lease: 9 };
        for entry in [IndexEntry::value(meta), IndexEntry::tombstone(7)] {
            assert_eq!(IndexEntry::decode(&entry.encode()).unwrap(), entry);
            let bytes = entry.encode();
            for end in 0..bytes.len() {
                assert!(IndexEntry::decode(&bytes[..end]).is_err(), "cut at {end}");
            }
        }
        assert_eq!(IndexEntry::value(meta).meta(), Some(meta));
        assert_eq!(IndexEntry::tombstone(7).meta(), None);
        let contents = Contents { entries: 3, live: 2, digest: u64::MAX };
        let record = IndexMeta { next_position: 10, chain: ChainHash([3; 16]), revision: 4, contents };
        assert_eq!(IndexMeta::decode(&record.encode()).unwrap(), record);
        assert!(IndexMeta::decode(&record.encode()[1..]).is_err());
    }

    #[test]
    fn the_digest_depends_on_every_part_and_not_on_the_order() {
        let entry = |revision| IndexEntry::tombstone(revision);
        let mut one = Contents::default();
        one.add(b"a", &entry(1));
        one.add(b"b", &entry(2));
        let mut other = Contents::default();
        other.add(b"b", &entry(2));
        other.add(b"c", &entry(3));
        other.add(b"a", &entry(1));
        other.remove(b"c", &entry(3));
        assert_eq!(one, other);
        let mut swapped = Contents::default();
        swapped.add(b"a", &entry(2));
        swapped.add(b"b", &entry(1));
        assert_ne!(one.digest, swapped.digest);
    }
}
