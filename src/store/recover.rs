//! Opening: the history first, then an index that agrees with it, or a new one.
//!
//! An index is used when its record stands at a position that is sealed and after which no deletion is gone, carries the
//! history's chain hash there, and a scan over all entries gives the count and the digest of the record. One that a store
//! of this process left open ([`KeptIndex`]) is not scanned. Frames after its position are then replayed into it. Otherwise
//! it is removed and built again from all segments. Both need bounded memory: changes go to the index whenever they reach a
//! bound.

use std::sync::Arc;

use super::filter::KeyFilter;
use super::overlay::{Base, Overlay};
use super::records::Counted;
use super::state::{Body, KeptIndex, State};
use super::{StoreConfig, StoreError};
use crate::history::{FrameOp, Head, HistoryError, Point, Sealed, TableCache};
use crate::index::{Contents, Index, IndexEntry, IndexError, IndexKind, IndexMeta};
use crate::model::{ChainHash, KeyMeta};

/// How many entries the check of an index reads in one step.
const SCAN_ENTRIES: usize = 4096;

/// Makes the content of a store from its sealed history and an index that is there, or a new one.
pub(super) fn body(
    kind: &IndexKind,
    kept: Option<KeptIndex>,
    sealed: Sealed,
    head: Head,
    tables: &TableCache,
    config: &StoreConfig,
) -> Result<Body, StoreError> {
    let mut chosen = None;
    let generations = kind.generations()?;
    let mut kept = kept.filter(|kept| generations.first() == Some(&kept.generation));
    for generation in &generations {
        if chosen.is_none() {
            match usable((kind, *generation), kept.take(), &sealed, &head, tables, config)? {
                Ok(good) => {
                    chosen = Some((*generation, good));
                    continue;
                }
                Err(reason) => tracing::warn!(generation, reason, "the index is built again from the history"),
            }
        }
        kind.remove(*generation)?;
    }
    match chosen {
        Some((generation, good)) => filled((kind.clone(), generation), good, sealed, head, tables, config),
        None => {
            let generation = generations.first().map_or(1, |newest| newest + 1);
            new_body(kind, generation, None, sealed, head, tables, config)
        }
    }
}

/// Makes the content of a store from its sealed history, with a new index: one that begins as a copy of another body's,
/// whose history `sealed` continues, or an empty one.
pub(super) fn new_body(
    kind: &IndexKind,
    generation: u64,
    copied: Option<&Body>,
    sealed: Sealed,
    head: Head,
    tables: &TableCache,
    config: &StoreConfig,
) -> Result<Body, StoreError> {
    let mut index = kind.open(generation)?;
    let mut filter = Arc::new(KeyFilter::new(config.filter_bytes));
    let mut meta = IndexMeta::default();
    if let Some(body) = copied {
        let expected = *body.index_meta.lock();
        if copy(body.index(), index.as_ref(), &filter, &expected)? {
            meta = expected;
        } else {
            tracing::warn!("the index does not hold what it says; a new one is built from the history");
            drop(index);
            kind.remove(generation)?;
            (index, filter) = (kind.open(generation)?, Arc::new(KeyFilter::new(config.filter_bytes)));
        }
    }
    filled((kind.clone(), generation), (index, meta, filter), sealed, head, tables, config)
}

/// Copies an index, in batches; says whether it held what its record says. Until all is there the copy has no record that
/// anyone would believe.
fn copy(from: &dyn Index, to: &dyn Index, filter: &KeyFilter, meta: &IndexMeta) -> Result<bool, IndexError> {
    let mut contents = Contents::default();
    let mut start = vec![1];
    loop {
        let entries = from.scan(&start, None, SCAN_ENTRIES)?;
        for (key, entry) in &entries {
            contents.add(key, entry);
            filter.add(key);
        }
        let batch: Vec<(&[u8], IndexEntry)> = entries.iter().map(|(key, entry)| (&**key, *entry)).collect();
        match entries.last() {
            Some((key, _)) if entries.len() == SCAN_ENTRIES => {
                to.write(&batch, &IndexMeta::default())?;
                start = [key, [0].as_slice()].concat();
            }
            _ if contents != meta.contents => return Ok(false),
            _ => {
                to.write(&batch, meta)?;
                return Ok(true);
            }
        }
    }
}

/// An index with its record, and the filter of its keys.
type Indexed = (Arc<dyn Index>, IndexMeta, Arc<KeyFilter>);

/// Brings an index up to the sealed history and puts a body together.
fn filled(
    place: (IndexKind, u64),
    (index, mut meta, filter): Indexed,
    sealed: Sealed,
    head: Head,
    tables: &TableCache,
    config: &StoreConfig,
) -> Result<Body, StoreError> {
    replay(index.as_ref(), &mut meta, &filter, &sealed, tables, config.overlay_bytes / 2)?;
    let counted = Counted::of(index.as_ref())?;
    let state = State::new(head, sealed, meta.contents.live, counted);
    Ok(Body::new(state, index, meta, filter, place, config.value_cache_bytes))
}

/// An index that agrees with the history, or why it does not.
type Usable = Result<Indexed, String>;

/// Opens an index and checks it against the history. The inner error says why it cannot be used.
fn usable(
    (kind, generation): (&IndexKind, u64),
    kept: Option<KeptIndex>,
    sealed: &Sealed,
    head: &Head,
    tables: &TableCache,
    config: &StoreConfig,
) -> Result<Usable, HistoryError> {
    let opened = match &kept {
        Some(kept) => Ok(kept.index.clone()),
        None => kind.open(generation),
    };
    let (index, meta) = match opened.and_then(|index| Ok((index.meta()?, index))) {
        Ok((Some(meta), index)) => (index, meta),
        Ok((None, _)) => return Ok(Err("it has no record of what it holds".into())),
        Err(e) => return Ok(Err(format!("it does not open: {e}"))),
    };
    if meta.next_position > head.next_position() {
        return Ok(Err(format!("it is ahead of the history, at position {}", meta.next_position)));
    }
    if sealed.lacks_tombstones_from(meta.next_position) {
        // The replay would leave deleted keys in it.
        return Ok(Err(format!("it stands at position {}, and deletions after it are gone", meta.next_position)));
    }
    let chain = match meta.next_position.checked_sub(1) {
        None => Some(ChainHash::default()),
        Some(position) => sealed.chain_at(position, tables)?,
    };
    if chain != Some(meta.chain) {
        return Ok(Err(format!("it belongs to another history: the chain differs at {}", meta.next_position)));
    }
    if let Some(kept) = kept.filter(|kept| kept.meta == meta) {
        return Ok(Ok((index, meta, kept.filter)));
    }
    let filter = Arc::new(KeyFilter::new(config.filter_bytes));
    match contents(index.as_ref(), &filter) {
        Ok(contents) if contents == meta.contents => Ok(Ok((index, meta, filter))),
        Ok(found) => Ok(Err(format!("it holds {found:?} and should hold {:?}", meta.contents))),
        Err(e) => Ok(Err(format!("it cannot be read: {e}"))),
    }
}

/// What an index really holds; its keys go to the filter.
fn contents(index: &dyn Index, filter: &KeyFilter) -> Result<Contents, IndexError> {
    let mut contents = Contents::default();
    // Key spaces are numbered from 1; the record lies before them.
    let mut start = vec![1];
    loop {
        let entries = index.scan(&start, None, SCAN_ENTRIES)?;
        for (key, entry) in &entries {
            contents.add(key, entry);
            filter.add(key);
        }
        match entries.last() {
            Some((key, _)) if entries.len() == SCAN_ENTRIES => start = [key, [0].as_slice()].concat(),
            _ => return Ok(contents),
        }
    }
}

/// Brings an index up to the end of the sealed history.
fn replay(
    index: &dyn Index,
    meta: &mut IndexMeta,
    filter: &KeyFilter,
    sealed: &Sealed,
    tables: &TableCache,
    spill_bytes: usize,
) -> Result<(), StoreError> {
    let mut overlay = Overlay::default();
    let mut end = None;
    let mut scan = sealed.scan(meta.next_position);
    while let Some(frame) = scan.next_frame(tables)? {
        let revision = frame.head().revision;
        for op in frame.ops() {
            let op = op.map_err(|e| {
                let segment = sealed.segment_of_position(frame.position()).map_or_else(String::new, |s| s.name());
                HistoryError::corrupt(segment, 0, format!("the frame of position {}: {e}", frame.position()))
            })?;
            let (space, key) = op.key();
            let key = super::state::index_key(space, key).into_boxed_slice();
            let before = match overlay.get(&key) {
                Some(entry) => Some(entry),
                None if filter.may_hold(&key) => index.get(&key)?,
                None => None,
            };
            filter.add(&key);
            overlay.set(key, entry_of(&op, revision), Base::Known(before));
        }
        let at = Point { next_position: frame.position() + 1, revision, chain: frame.chain() };
        if overlay.bytes() >= spill_bytes {
            overlay.write_to(index, meta, at)?;
            (overlay, end) = (Overlay::default(), None);
        } else {
            end = Some(at);
        }
    }
    if let Some(end) = end {
        overlay.write_to(index, meta, end)?;
    }
    Ok(())
}

/// What an operation makes of its key.
fn entry_of(op: &FrameOp, mod_revision: u64) -> IndexEntry {
    match *op {
        FrameOp::Delete { .. } => IndexEntry::tombstone(mod_revision),
        FrameOp::Put { create_revision, version, lease, .. } => {
            IndexEntry::value(KeyMeta { create_revision, mod_revision, version, lease })
        }
    }
}
