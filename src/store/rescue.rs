//! Rescue: taking the good beginning of a damaged history over into a new store, so that another member has to send only
//! what comes after it.
//!
//! What is rescued becomes the staged part of a full copy, as if another member had sent it and been cut
//! ([`staging`](super::staging)): it is no content before a copy that goes on from its end is installed, and the sender of
//! that copy compares the chain hash at its end with its own. So nothing is taken on trust but what this proves:
//!
//! - of a segment that passes every check ([`Segment::verify`](crate::history::Segment::verify)), all of it;
//! - of the first one that does not, the whole frames in front of the damage that follow each other without a gap: each is
//!   proven by the chain. A thinned frame proves nothing without the digest over its segment, and ends it.
//!
//! A damaged history in which no damage can be found gives nothing: where it is wrong is not known, so no part of it is
//! proven to be right. Files of the damaged history are only read. Proven by `store/tests/scrub.rs`.

use std::path::Path;
use std::sync::Arc;

use super::install::Installer;
use super::stream::{Header, Special};
use super::{Store, StoreError};
use crate::history::sealed::Item;
use crate::history::segment::follow;
use crate::history::{HistoryError, Manifest, Point, Sealed, Segment, TableCache};

/// What a rescue came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rescued {
    /// Where the good part ends; none when nothing could be proven.
    pub until: Option<Point>,
    /// The damage that ended it; none when none was found.
    pub damage: Option<String>,
}

impl Store {
    /// Takes over the good beginning of the history in `damaged`, from the point where what is staged here ends.
    pub fn rescue(&self, damaged: &Path) -> Result<Rescued, StoreError> {
        let manifest = match Manifest::load(self.inner.disk.as_ref(), damaged) {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Ok(Rescued { until: None, damage: Some("its MANIFEST is missing".into()) }),
            Err(error @ HistoryError::Corrupt { .. }) => {
                return Ok(Rescued { until: None, damage: Some(error.to_string()) });
            }
            Err(error) => return Err(error.into()),
        };
        let tables = TableCache::new(self.inner.config.table_cache_bytes, true);
        let mut installer = self.begin_install()?;
        let header = Header { head: manifest.head.clone(), from: Point::default() };
        installer.push(&header.encode())?;
        let mut damage = None;
        for info in &manifest.segments {
            let opened = Segment::open(&self.inner.disk, damaged, info).map(Arc::new);
            let checked = opened.and_then(|segment| segment.verify(&tables).map(|()| segment));
            match checked {
                Ok(segment) => whole(&mut installer, segment, &tables)?,
                Err(error @ HistoryError::Corrupt { .. }) => {
                    damage = Some(error.to_string());
                    if let Ok(segment) = Segment::open(&self.inner.disk, damaged, info) {
                        proven(&mut installer, &Arc::new(segment), &tables)?;
                    }
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if damage.is_none() {
            drop(installer);
            self.discard_staging()?;
            return Ok(Rescued::default());
        }
        let until = installer.keep_now()?;
        Ok(Rescued { until: until.filter(|until| *until != Point::default()), damage })
    }
}

/// Takes all of a segment that was checked.
fn whole(installer: &mut Installer, segment: Arc<Segment>, tables: &TableCache) -> Result<(), StoreError> {
    let mut items = Sealed::of(vec![segment]).items(0);
    while let Some(item) = items.next_item(tables)? {
        match item {
            Item::Frame(frame) => installer.push(frame.bytes())?,
            Item::Point(point) => {
                // What is kept must end with a frame, and here is one behind it.
                installer.keep_some()?;
                installer.push(&Special::Point(point).encode())?;
            }
        }
        installer.mark()?;
    }
    Ok(())
}

/// Takes the frames of a damaged segment that the chain proves.
fn proven(installer: &mut Installer, segment: &Arc<Segment>, tables: &TableCache) -> Result<(), StoreError> {
    let mut at = segment.info().start();
    let Ok(mut scan) = segment.scan(0, tables) else { return Ok(()) };
    while let Ok(Some(frame)) = scan.next_frame() {
        let proven =
            frame.position() == at.next_position && !frame.is_thinned() && follow(&mut at, &frame, true).is_ok();
        if !proven {
            break;
        }
        installer.push(frame.bytes())?;
        installer.mark()?;
    }
    Ok(())
}
