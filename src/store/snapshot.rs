//! [`SnapshotReader`]: the history from some point on, as of one moment, as a stream of bytes; see
//! [`stream`](super::stream) for their form.
//!
//! From the beginning it is a full copy, and from a later point a delta. Either way the bytes are frames as they lie in
//! the segments, so of what was overwritten often only the last version travels once compaction has thinned it.
//!
//! A reader holds its segments and the frames of the tails as they were; the store goes on meanwhile. What a delta leaves
//! out is judged by the newest versions of *now*, and these may stand on floors that have passed the delta's start since:
//! a key that was created again does not name a deletion that the receiver has not seen. So nothing is left out any more
//! once that has happened.
//!
//! One chunk takes bounded work, however often keys were overwritten: a receiver that waits must see something move, and
//! a reader whose receiver has gone must find out.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::compact::{Keeper, Thinned};
use super::state::Body;
use super::stream::{Form, Header, Special, digest};
use super::{Inner, StoreError};
use crate::history::sealed::{Item, SealedItems};
use crate::history::{Frame, Head, Point, Sealed};
use crate::model::ChainHash;

/// A chunk has about so many bytes, or one frame.
const CHUNK_BYTES: usize = 1 << 20;
/// So many bytes of frames are looked at for a chunk.
const LOOKED_AT_BYTES: usize = 16 << 20;
/// So many versions of keys are read for a chunk, to find out what can be left out; what that does not suffice for is
/// sent as it is.
const WALKED_VERSIONS: usize = 256;

/// One moment of a store.
pub(super) struct Moment {
    pub head: Head,
    pub sealed: Arc<Sealed>,
    body: Arc<Body>,
    sealed_head: Arc<Head>,
    /// The frames that are not sealed, in order.
    tail: Vec<Bytes>,
}

impl Moment {
    pub fn of(inner: &Inner) -> Moment {
        let body = inner.body();
        let state = body.state.read();
        // Sharing the frames of two tails takes some milliseconds at worst.
        let frozen = state.frozen.iter().filter_map(|frozen| frozen.tail.as_deref());
        let tail = frozen.chain([&state.open]).flat_map(|tail| tail.frames().cloned()).collect();
        let (head, sealed, sealed_head) = (state.head.clone(), state.sealed.clone(), state.sealed_head.clone());
        drop(state);
        Moment { head, sealed, body, sealed_head, tail }
    }

    /// The position of the first frame that is not sealed.
    fn tail_start(&self) -> u64 {
        self.head.next_position() - self.tail.len() as u64
    }

    /// The chain hash before a position that is not beyond the end.
    pub fn chain_before(&self, next_position: u64, inner: &Inner) -> Result<Option<ChainHash>, StoreError> {
        let Some(position) = next_position.checked_sub(1) else { return Ok(Some(ChainHash::default())) };
        match position.checked_sub(self.tail_start()).and_then(|at| self.tail.get(at as usize)) {
            Some(bytes) => {
                let corrupt = |e: crate::model::codec::DecodeError| StoreError::Corrupt {
                    file: "the tail in memory".into(),
                    offset: 0,
                    what: format!("the frame of position {position}: {e}"),
                };
                Ok(Some(Frame::parse(bytes).map_err(corrupt)?.chain()))
            }
            None => Ok(self.sealed.chain_at(position, &inner.tables)?),
        }
    }
}

/// Reads a copy, chunk by chunk.
pub struct SnapshotReader {
    inner: Arc<Inner>,
    header: Header,
    form: Form,
    /// The sealed items that were not read yet.
    sealed: SealedItems,
    /// By what a delta is thinned while it is read: compaction leaves a share of garbage, which may be many times what a
    /// delta has to carry.
    keeper: Option<Keeper>,
    tail: std::vec::IntoIter<Bytes>,
    len_bytes: u64,
    stage: Stage,
    frames: u64,
    hasher: blake3::Hasher,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Header,
    Items,
    Footer,
    Done,
}

impl std::fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReader").field("header", &self.header).finish_non_exhaustive()
    }
}

impl super::Store {
    /// Roughly how many bytes the frames from a position on have, as they lie here.
    pub fn bytes_from(&self, position: u64) -> u64 {
        let body = self.inner.body();
        let state = body.state.read();
        let tails: usize = state.tails().map(|tail| tail.bytes()).sum();
        sealed_bytes(&state.sealed, position) + tails as u64
    }
}

impl SnapshotReader {
    pub(super) fn new(inner: &Arc<Inner>, moment: Moment, from: Point) -> SnapshotReader {
        let skipped = from.next_position.saturating_sub(moment.tail_start()) as usize;
        let Moment { head, sealed, body, sealed_head, mut tail } = moment;
        let keeper = (from.next_position > 0).then(|| Keeper::new(inner, &body, &sealed_head));
        tail.drain(..skipped.min(tail.len()));
        let tail_bytes: u64 = tail.iter().map(|bytes| bytes.len() as u64).sum();
        SnapshotReader {
            inner: inner.clone(),
            len_bytes: sealed_bytes(&sealed, from.next_position) + tail_bytes,
            sealed: sealed.items(from.next_position),
            keeper,
            header: Header { head, from },
            form: Form::Present,
            tail: tail.into_iter(),
            stage: Stage::Header,
            frames: 0,
            hasher: blake3::Hasher::new(),
        }
    }

    /// The full copy for a member of the first release; none when compaction may have taken something away, or what it does
    /// not know lies in the history.
    pub(super) fn for_first_release(self) -> Option<SnapshotReader> {
        let Head { read_floor, delta_floor, delta_revision, feature_level, .. } = self.header.head;
        let whole = (read_floor, delta_floor, delta_revision, feature_level) == (0, 0, 0, 0);
        (whole && self.header.from == Point::default()).then_some(SnapshotReader { form: Form::First, ..self })
    }

    /// The state at the end of the copy, besides the keys.
    pub fn meta(&self) -> &Head {
        &self.header.head
    }

    /// After which point the frames begin; the beginning for a full copy.
    pub fn from(&self) -> Point {
        self.header.from
    }

    /// Roughly how many bytes all chunks have.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The next chunk; none after the last.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        let inner = self.inner.clone();
        inner.noticed(self.read_chunk())
    }

    fn read_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        let chunk = match self.stage {
            Stage::Header => {
                self.stage = Stage::Items;
                self.header.encode_as(self.form)
            }
            Stage::Items => {
                let chunk = self.items()?;
                if chunk.is_empty() {
                    self.stage = Stage::Footer;
                    return self.read_chunk();
                }
                chunk
            }
            Stage::Footer => {
                self.stage = Stage::Done;
                let (frames, digest) = (self.frames, digest(&self.hasher));
                Special::Footer { frames, chain: self.header.head.chain, digest }.encode_as(self.form)
            }
            Stage::Done => return Ok(None),
        };
        self.hasher.update(&chunk);
        Ok(Some(chunk.into()))
    }

    /// Some items and a mark behind them; nothing at the end.
    fn items(&mut self) -> Result<Vec<u8>, StoreError> {
        // Not more than a segment of the receiver, which keeps what it has at a mark.
        let wanted = CHUNK_BYTES.min(self.inner.config.tail_bytes);
        let mut chunk = Vec::with_capacity(wanted);
        let (mut looked_at, mut walked) = (0, 0);
        while chunk.len() < wanted && looked_at < LOOKED_AT_BYTES {
            let bytes = match self.sealed.next_item(&self.inner.tables)? {
                Some(Item::Frame(frame)) => {
                    looked_at += frame.bytes().len();
                    self.thinned(&frame, &mut walked).unwrap_or_else(|| frame.bytes().clone())
                }
                Some(Item::Point(point)) => {
                    chunk.extend_from_slice(&Special::Point(point).encode());
                    continue;
                }
                None => match self.tail.next() {
                    Some(bytes) => bytes,
                    None => break,
                },
            };
            chunk.extend_from_slice(&bytes);
            self.frames += 1;
        }
        if !chunk.is_empty() && self.form == Form::Present {
            let digest = digest(self.hasher.clone().update(&chunk));
            chunk.extend_from_slice(&Special::Mark { frames: self.frames, digest }.encode());
        }
        Ok(chunk)
    }
}

impl SnapshotReader {
    /// What a delta carries of a frame, when that is less than all of it. `walked` counts the versions that were read to
    /// find out.
    fn thinned(&mut self, frame: &Frame, walked: &mut usize) -> Option<Bytes> {
        let keeper = self.keeper.as_mut()?;
        let mut walk = || {
            *walked += 1;
            if *walked > WALKED_VERSIONS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        // A frame that cannot be judged, because compaction has gone on since, is right as it is. Behind the delta floor
        // none vanishes.
        let Ok(Thinned::Fewer(fewer)) = keeper.thin(frame, 0, &mut walk) else { return None };
        // Asked after the judgement, which is right while no deletion behind the start counts as absent. Floors never go
        // down, so an answer that was found before and is kept is right as long as this holds.
        let passed = keeper.body().state.read().head.tombstone_floor() > self.header.from.revision;
        (!passed).then(|| fewer.bytes().clone())
    }
}

/// Roughly how many bytes of segments lie from a position on.
fn sealed_bytes(sealed: &Sealed, from: u64) -> u64 {
    let part = |segment: &Arc<crate::history::Segment>| {
        let info = segment.info();
        let all = u128::from(info.last_position - info.first_position + 1);
        let wanted = (info.last_position + 1).saturating_sub(from.max(info.first_position));
        (u128::from(info.bytes) * u128::from(wanted) / all) as u64
    };
    sealed.segments().iter().map(part).sum()
}
