//! Content digests: what two members compare to see that they hold the same at one revision, key by key.
//!
//! A digest is taken over a range of keys of all key spaces, at a pinned revision at or above the read floor, of what a
//! reader would be given: key, value, revisions, version and lease. Values come from the frames in the segments (or in the
//! tails), not from the cache of values; and what the index says of a newest version is compared with its frame, so that an
//! index that leads astray shows too. What members have compacted makes no difference above the floor.
//!
//! Ranges are bounded in keys and bytes. Whoever compares takes a range of one member and asks the others for the digest
//! of exactly that range; where they differ, [`Store::digest_keys`] gives a hash a key, and so the first key that differs.
//!
//! Proven by `store/tests/scrub.rs`: equal on members that compacted differently, different after any change.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::{Inner, ReadError, Store, StoreError};
use crate::history::{Blocks, FrameOp};
use crate::index::IndexEntry;
use crate::model::{KeyMeta, Revision};

/// How many keys are looked at in one step.
const SCAN_ENTRIES: usize = 512;
/// Blocks that are kept for the keys that follow, which were often written near each other. Writers that go through the keys
/// side by side drift apart: with much less than this a gigabyte that 64 of them had written was read several times over.
const KEPT_BLOCK_BYTES: usize = 8 << 20;
/// Who digests is told at least as often as this.
const TELL_BYTES: u64 = 256 << 10;
/// The first key space, and one behind the last.
const FIRST: &[u8] = &[1];
const BEHIND_LAST: &[u8] = &[3];

/// A range of keys, each with its key space in front: the bounds of a digest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DigestRange {
    /// Behind this key; from the very first when there is none.
    pub after: Option<Bytes>,
    /// Up to and with this key; to the very last when there is none.
    pub upto: Option<Bytes>,
}

/// The digest of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentDigest {
    /// BLAKE3 over all of it.
    pub digest: [u8; 32],
    /// How many keys exist in the range.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// The last key that was looked at, when the bounds on keys or bytes ended the range early.
    pub last: Option<Bytes>,
}

/// One key of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDigest {
    /// The key space in one byte, then the key.
    pub key: Bytes,
    /// A part of the BLAKE3 hash over it and all that belongs to it.
    pub hash: [u8; 16],
    /// The revision it was last written at, as the index says.
    pub mod_revision: Revision,
}

impl Store {
    /// The digest of what exists in a range at a revision; of no more than `max_keys` keys and about `max_bytes` bytes.
    /// Tells `pace` now and then what it has worked through since the last time: the bytes that were read from the disk, or
    /// those of the content when they are more. None when `pace` has ended it.
    pub fn digest(
        &self,
        at: Revision,
        range: &DigestRange,
        max_keys: u64,
        max_bytes: u64,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Option<ContentDigest>, ReadError> {
        let mut all = blake3::Hasher::new();
        let (mut keys, mut bytes) = (0, 0);
        let (mut told, mut ended_early) = (0, false);
        let last = self.inner.noticed(self.inner.each_key(at, range, &mut |key, hash, _, len, read| {
            all.update(hash.as_bytes());
            keys += 1;
            bytes += key.len() as u64 + len;
            let worked = bytes.max(read);
            if worked - told >= TELL_BYTES {
                ended_early = pace(worked - told).is_break();
                told = worked;
            }
            keys < max_keys && bytes < max_bytes && !ended_early
        }))?;
        let digest = ContentDigest { digest: *all.finalize().as_bytes(), keys, bytes, last };
        Ok((!ended_early).then_some(digest))
    }

    /// A hash for each key that exists in a range at a revision, of at most `max_keys`, in order.
    pub fn digest_keys(&self, at: Revision, range: &DigestRange, max_keys: usize) -> Result<Vec<KeyDigest>, ReadError> {
        let mut found = Vec::new();
        self.inner.noticed(self.inner.each_key(at, range, &mut |key, hash, mod_revision, _, _| {
            let hash = *hash.as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes");
            found.push(KeyDigest { key: Bytes::copy_from_slice(key), hash, mod_revision });
            found.len() < max_keys
        }))?;
        Ok(found)
    }
}

/// Takes a key, the hash over all of it, its newest revision, the length of its value, and how many bytes were read from the
/// disk so far; says whether to go on.
type Take<'t> = dyn FnMut(&[u8], blake3::Hash, Revision, u64, u64) -> bool + 't;

impl Inner {
    /// Hands every key of a range that exists at a revision to `take`; gives the key with which that ended the range.
    fn each_key(&self, at: Revision, range: &DigestRange, take: &mut Take<'_>) -> Result<Option<Bytes>, ReadError> {
        let body = self.body();
        let at = self.pin(&body, Some(at))?;
        let behind = |key: &[u8]| [key, [0].as_slice()].concat();
        let mut start = range.after.as_ref().map_or_else(|| FIRST.to_vec(), |after| behind(after));
        let end = range.upto.as_ref().map_or_else(|| BEHIND_LAST.to_vec(), |upto| behind(upto));
        let mut blocks = Blocks::keeping(KEPT_BLOCK_BYTES);
        while start < end {
            let chunk = body.scan(&start, &end, SCAN_ENTRIES)?;
            for (index_key, newest) in chunk.entries {
                let Some((meta, value)) = self.version_on_disk(&body, &index_key, newest, at, &mut blocks)? else {
                    continue;
                };
                let hash = hash(&index_key, &meta, &value);
                if !take(&index_key, hash, meta.mod_revision, value.len() as u64, blocks.read_bytes()) {
                    return Ok(Some(index_key.into()));
                }
            }
            match chunk.next {
                Some(next) => start = next,
                None => break,
            }
        }
        Ok(None)
    }

    /// A key's version at a revision with its value, read from its frame.
    fn version_on_disk(
        &self,
        body: &super::state::Body,
        index_key: &[u8],
        newest: IndexEntry,
        at: Revision,
        blocks: &mut Blocks,
    ) -> Result<Option<(KeyMeta, Bytes)>, ReadError> {
        let Some((meta, value)) = self.found(body, index_key, newest, at, blocks)? else { return Ok(None) };
        if let Some(value) = value {
            return Ok(Some((meta, value)));
        }
        let revision = meta.mod_revision;
        let damaged = |what: String| StoreError::Corrupt { file: "the history".into(), offset: 0, what };
        let Some((_, link)) = self.link_among(body, index_key, revision, blocks)? else {
            return Err(super::read::gone(body, revision, at));
        };
        match link.op {
            FrameOp::Put { value, create_revision, version, lease, .. } => {
                let framed = KeyMeta { create_revision, mod_revision: revision, version, lease };
                if framed != meta {
                    let what = format!("the index says {meta:?} of a key, and its frame {framed:?}");
                    return Err(damaged(what).into());
                }
                Ok(Some((meta, value)))
            }
            FrameOp::Delete { .. } => {
                Err(damaged(format!("the index has a value of revision {revision}, and its frame a deletion")).into())
            }
        }
    }
}

fn hash(index_key: &[u8], meta: &KeyMeta, value: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(index_key.len() as u64).to_le_bytes());
    hasher.update(index_key);
    for field in [meta.create_revision, meta.mod_revision, meta.version, meta.lease] {
        hasher.update(&field.to_le_bytes());
    }
    hasher.update(value);
    hasher.finalize()
}
