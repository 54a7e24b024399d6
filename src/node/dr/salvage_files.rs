//! The salvage files that lie in a member's data directory, and which requests the cluster has executed: what people need
//! to bring stranded writes back.
//!
//! The files are never changed here. Proven by `tests/dr/salvage.rs`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::salvage::SALVAGE_DIR;
use crate::api::{SALVAGE_FORMAT, SALVAGE_SUFFIX, SALVAGE_VERSION, SalvageFile, SalvageHeader};
use crate::model::{RandomId, parse_member_id};
use crate::node::{Node, NodeError, RequestContext};

/// A longer first line is no header.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Whether this is the name of a salvage file: a timeline, a member.
fn is_name(name: &str) -> bool {
    let parts = name.strip_suffix(SALVAGE_SUFFIX).and_then(|name| name.split_once('-'));
    parts.is_some_and(|(timeline, member)| timeline.parse::<RandomId>().is_ok() && parse_member_id(member).is_some())
}

/// Reads the header of a salvage file.
pub fn read_header(first_line: &str) -> Result<SalvageHeader, String> {
    let header: SalvageHeader = serde_json::from_str(first_line).map_err(|e| format!("its first line: {e}"))?;
    match (header.format.as_str(), header.version) {
        (SALVAGE_FORMAT, SALVAGE_VERSION) => Ok(header),
        (SALVAGE_FORMAT, version) => {
            Err(format!("version {version} is not {SALVAGE_VERSION}, which this program reads"))
        }
        (format, _) => Err(format!("it is {format:?}, and not {SALVAGE_FORMAT:?}")),
    }
}

fn header_of(path: &Path) -> Result<SalvageHeader, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mut first = String::new();
    BufReader::new(file.take(MAX_HEADER_BYTES)).read_line(&mut first).map_err(|e| e.to_string())?;
    read_header(&first)
}

/// The salvage files in a data directory, by name.
pub fn salvage_files(data_dir: &Path) -> io::Result<Vec<SalvageFile>> {
    let dir = data_dir.join(SALVAGE_DIR);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Some(file) = entry.file_name().into_string().ok().filter(|name| is_name(name)) else { continue };
        let (header, problem) = match header_of(&entry.path()) {
            Ok(header) => (Some(header), None),
            Err(problem) => (None, Some(problem)),
        };
        files.push(SalvageFile { file, bytes: entry.metadata()?.len(), header, problem });
    }
    files.sort_by(|one, other| one.file.cmp(&other.file));
    Ok(files)
}

impl Node {
    /// The salvage files of this member.
    pub async fn salvage_files(&self) -> Result<Vec<SalvageFile>, NodeError> {
        let dir = self.0.data_dir.clone();
        let listed = tokio::task::spawn_blocking(move || salvage_files(&dir)).await;
        let failed = |detail: String| NodeError::StorageFailed { detail };
        listed.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
    }

    /// Where a salvage file of this member would lie; none when that is no name of one.
    pub fn salvage_path(&self, name: &str) -> Option<PathBuf> {
        is_name(name).then(|| self.0.data_dir.join(SALVAGE_DIR).join(name))
    }

    /// Which of these requests were executed, as far as that is remembered, at this moment or later.
    pub async fn known_requests(&self, ctx: &RequestContext, keys: Vec<String>) -> Result<Vec<String>, NodeError> {
        self.read_barrier(ctx).await?;
        let store = self.0.store.clone();
        let found = tokio::task::spawn_blocking(move || {
            let mut known = Vec::new();
            for key in keys {
                if store.remembers(key.as_bytes())? {
                    known.push(key);
                }
            }
            Ok::<_, crate::store::ReadError>(known)
        });
        let failed = |detail: String| NodeError::StorageFailed { detail };
        let known = found.await.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
        Ok(known)
    }
}
