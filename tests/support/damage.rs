//! Real damage to the segment files of a member, by the layout that `src/history/layout.rs` and `frame.rs` describe: bytes
//! flipped under the file system's feet, files exchanged, records changed together with their checksums.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const FRAMES_AT: usize = 64;
const FOOTER_BYTES: usize = 96;
const PREFIX_BYTES: usize = 8;
const CHAIN_BYTES: usize = 16;
const FLAGS_AT: usize = PREFIX_BYTES + 2;
const THINNED: u8 = 4;

/// One frame of a segment file.
#[derive(Debug, Clone)]
pub struct Record {
    /// The file.
    pub file: PathBuf,
    /// Where the frame begins.
    pub offset: usize,
    /// Its position in the history.
    pub position: u64,
    /// The revision that it made.
    pub revision: u64,
    /// Whether compaction took something out of it.
    pub thinned: bool,
    bytes: Vec<u8>,
}

/// The segment files of a member's data directory, from the oldest to the newest.
pub fn segments(data: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(data.join("history")) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    paths.sort_by_key(|path| fs::read(path).ok().map(|bytes| number(&bytes, 16)));
    paths
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |field| u64::from_le_bytes(field.try_into().expect("eight bytes")))
}

/// All frames of a segment file.
pub fn records(file: &Path) -> Vec<Record> {
    let Ok(content) = fs::read(file) else { return Vec::new() };
    if content.len() < FRAMES_AT + FOOTER_BYTES {
        return Vec::new();
    }
    let end = number(&content, content.len() - FOOTER_BYTES + 48) as usize;
    let (mut at, mut found) = (FRAMES_AT, Vec::new());
    while at + PREFIX_BYTES < end.min(content.len()) {
        let body = u32::from_le_bytes(content[at..at + 4].try_into().expect("four bytes")) as usize;
        let Some(bytes) = content.get(at..at + PREFIX_BYTES + body) else { break };
        found.push(Record {
            file: file.to_owned(),
            offset: at,
            position: number(bytes, PREFIX_BYTES + 4 + 16),
            revision: number(bytes, PREFIX_BYTES + 4 + 32),
            thinned: bytes[FLAGS_AT] & THINNED != 0,
            bytes: bytes.to_vec(),
        });
        at += bytes.len();
    }
    found
}

/// The sealed record with which a member holds this text, say a value; the newest one.
pub fn record_of(data: &Path, text: &str) -> Option<Record> {
    let mut all = segments(data).into_iter().flat_map(|file| records(&file));
    all.rfind(|record| record.bytes.windows(text.len()).any(|window| window == text.as_bytes()))
}

impl Record {
    /// What stands behind `key/` in the first key of the frame.
    pub fn key(&self) -> Option<&str> {
        let at = self.bytes.windows(4).take(100).position(|window| window == b"key/")? + 4;
        std::str::from_utf8(self.bytes.get(at..at + 6)?).ok()
    }

    /// Flips a bit in the middle of the frame, in place.
    pub fn flip(&self) {
        let at = self.bytes.len() / 2;
        self.write(at, &[self.bytes[at] ^ 8]);
    }

    /// Puts another text of the same length in the place of one, with a checksum that is right; in place.
    pub fn forge(&self, from: &str, to: &str) {
        assert_eq!(from.len(), to.len());
        let mut bytes = self.bytes.clone();
        let places: Vec<usize> =
            (0..bytes.len() - from.len()).filter(|at| &bytes[*at..*at + from.len()] == from.as_bytes()).collect();
        assert!(!places.is_empty(), "{from:?} is not in the record");
        for at in places {
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        }
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), &bytes[PREFIX_BYTES..]);
        bytes[4..PREFIX_BYTES].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(bytes[bytes.len() - CHAIN_BYTES..], self.bytes[bytes.len() - CHAIN_BYTES..]);
        self.write(0, &bytes);
    }

    /// Makes the digest over all frames in the footer of the file right again.
    pub fn forge_digest(&self) {
        let content = fs::read(&self.file).expect("the segment");
        let footer_at = content.len() - FOOTER_BYTES;
        let mut footer = content[footer_at..].to_vec();
        let digest = blake3::hash(&content[FRAMES_AT..number(&footer, 48) as usize]);
        footer[FOOTER_BYTES - 20..FOOTER_BYTES - 4].copy_from_slice(&digest.as_bytes()[..16]);
        let checksum = crc32c::crc32c(&footer[..FOOTER_BYTES - 4]);
        footer[FOOTER_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        let file = fs::OpenOptions::new().write(true).open(&self.file).expect("the segment");
        file.write_all_at(&footer, footer_at as u64).expect("the segment is written");
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(&self.file).expect("the segment");
        file.write_all_at(bytes, (self.offset + at) as u64).expect("the segment is written");
    }
}
