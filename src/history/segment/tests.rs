//! Segments with holes.

use super::*;
use crate::files::sim::SimDisk;
use crate::history::{FrameBuilder, FrameOutcome, SegmentWriter};
use crate::model::{EntryKind, LogId};

/// Blank frames of the positions from 0 on.
fn frames(count: u64) -> Vec<Frame> {
    let (mut builder, mut chain) = (FrameBuilder::default(), ChainHash::default());
    let mut frame = |index| {
        builder.start();
        let head = FrameHead {
            kind: EntryKind::Blank,
            outcome: FrameOutcome::None,
            makes_revision: false,
            log_id: LogId { term: 1, leader: 1, index },
            clock_ms: index,
            revision: 0,
        };
        let frame = builder.finish(head, chain).unwrap();
        chain = frame.chain();
        frame
    };
    (0..count).map(&mut frame).collect()
}

fn write(disk: &Arc<dyn Disk>, dir: &Path, frames: &[Frame], wanted: impl Fn(&Frame) -> bool) -> Arc<Segment> {
    disk.create_dir_all(dir).unwrap();
    let mut writer = SegmentWriter::create(disk, dir, 1, Point::default(), 0).unwrap();
    frames.iter().filter(|frame| wanted(frame)).for_each(|frame| writer.push(frame).unwrap());
    Arc::new(Segment::open(disk, dir, &writer.finish().unwrap()).unwrap())
}

/// Positions may be missing in a segment, and yet one that was there and is not any more is missed.
#[test]
fn a_frame_that_was_taken_out_is_missed() {
    let (sim, tables) = (SimDisk::new(), TableCache::new(1 << 20, true));
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let frames = frames(9);
    let whole = write(&disk, Path::new("/whole"), &frames, |_| true);
    let fewer = write(&disk, Path::new("/fewer"), &frames, |frame| frame.position() % 4 == 0);
    for segment in [&whole, &fewer] {
        segment.verify(&TableCache::new(1 << 20, true)).unwrap();
    }
    assert!(fewer.frame_at_position(4, &tables).unwrap().is_some());
    assert!(fewer.frame_at_position(5, &tables).unwrap().is_none());
    assert_eq!(fewer.chain_at(0, &tables).unwrap(), Some(frames[0].chain()));
    // The one with fewer frames pretends to be what was written with all of them.
    let path = Path::new("/fewer").join(&fewer.info.file);
    let mut bytes = sim.content(&path).unwrap();
    bytes.truncate(bytes.len() - Format::Two.footer_bytes());
    let Footer { frames, digest, .. } = whole.footer;
    for forged in [Footer { frames, ..fewer.footer }, Footer { digest, ..fewer.footer }] {
        let content = [bytes.as_slice(), &forged.encode(Format::Two)].concat();
        sim.set_content(&path, &content).unwrap();
        let segment = Arc::new(Segment::open(&disk, Path::new("/fewer"), &fewer.info).unwrap());
        let error = segment.verify(&TableCache::new(1 << 20, true)).unwrap_err();
        assert!(error.to_string().contains("not those that were written"), "{error}");
    }
}
