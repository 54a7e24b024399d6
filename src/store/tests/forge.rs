//! Damage that checksums do not show: records changed together with their checksums, as a disk never does by itself.

use std::path::{Path, PathBuf};

use crate::files::Disk;
use crate::files::sim::SimDisk;
use crate::history::Frame;
use crate::history::frame::PREFIX_BYTES;

/// Where the frames of a segment begin.
const FRAMES_AT: usize = 64;
const FOOTER_BYTES: usize = 96;

/// The segment files of a directory, in order.
pub fn segments(disk: &SimDisk, dir: &str) -> Vec<PathBuf> {
    let names = disk.list(Path::new(dir)).unwrap();
    names.iter().filter(|name| name.ends_with(".seg")).map(|name| Path::new(dir).join(name)).collect()
}

/// Where each frame of a segment lies: its offset and its length.
pub fn frames(content: &[u8]) -> Vec<(usize, usize)> {
    let (mut at, mut found) = (FRAMES_AT, Vec::new());
    while let Ok((_, len)) = Frame::check(&content[at..]) {
        found.push((at, len));
        at += len;
    }
    found
}

/// Changes a frame and makes its checksum right again.
pub fn forge(content: &mut [u8], (at, len): (usize, usize), change: impl FnOnce(&mut [u8])) {
    let frame = &mut content[at..at + len];
    change(frame);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&frame[..4]), &frame[PREFIX_BYTES..]);
    frame[4..PREFIX_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// Makes the digest in the footer of a segment right again, and the checksum of the footer.
pub fn forge_digest(content: &mut [u8]) {
    let frames = frames(content);
    let (last, len) = *frames.last().unwrap();
    let digest = blake3::hash(&content[FRAMES_AT..last + len]);
    let footer = content.len() - FOOTER_BYTES;
    let footer = &mut content[footer..];
    footer[FOOTER_BYTES - 20..FOOTER_BYTES - 4].copy_from_slice(&digest.as_bytes()[..16]);
    let checksum = crc32c::crc32c(&footer[..FOOTER_BYTES - 4]);
    footer[FOOTER_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
}
