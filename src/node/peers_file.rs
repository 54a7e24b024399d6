//! `peers.json`: where the other members were when this one last looked, for a member whose own history cannot be read.
//!
//! A view of the membership and nothing more: it is written anew whenever the membership changes, and may be lost at any
//! time. Only a repair reads it ([`super::repair`]), to know whom to ask; the fence still looks at every answer.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Inner;
use crate::files::{Disk, RealDisk, read_file, replace_file};
use crate::model::{MemberId, TimelineId, format_member_id, parse_member_id};

const FILE: &str = "peers.json";

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PeersFile {
    /// The timeline that this member was on.
    pub timeline: TimelineId,
    /// All members, this one too.
    pub members: Vec<PeerPlace>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PeerPlace {
    /// Its id, 16 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where members reach it.
    pub peer_url: String,
}

impl PeerPlace {
    /// Its id as a number.
    pub fn member_id(&self) -> Option<MemberId> {
        parse_member_id(&self.id)
    }
}

impl PeersFile {
    /// Reads the file; one that is missing or cannot be read tells nothing.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Option<PeersFile> {
        let path = dir.join(FILE);
        let content = read_file(disk, &path).inspect_err(|error| tracing::warn!(%error, "{FILE} cannot be read"));
        serde_json::from_slice(&content.ok()??).inspect_err(|error| tracing::warn!(%error, "{FILE} is malformed")).ok()
    }
}

impl PeersFile {
    /// Removes the file: those that it names are not this member's peers any more.
    pub fn forget(disk: &dyn Disk, dir: &Path) {
        if let Err(error) = disk.remove(&dir.join(FILE))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "{FILE} is not removed");
        }
    }
}

impl Inner {
    /// Writes the file when the members are others than before.
    pub(super) async fn keep_peers_file(&self) {
        let members = self.members_by_id().into_iter().map(|(id, info)| {
            let peer_url = self.addresses.get(id).map_or(info.peer_url, |url| url.to_string());
            PeerPlace { id: format_member_id(id), name: info.name, peer_url }
        });
        let file = PeersFile { timeline: self.http.identity().timeline(), members: members.collect() };
        if file.members.is_empty() || self.peers_written.lock().as_ref() == Some(&file) {
            return;
        }
        let (dir, content) = (self.data_dir.clone(), serde_json::to_vec_pretty(&file));
        let content = content.expect("strings always serialise");
        let written = tokio::task::spawn_blocking(move || replace_file(&RealDisk, &dir, FILE, &content)).await;
        match written {
            Ok(Ok(())) => *self.peers_written.lock() = Some(file),
            Ok(Err(error)) => tracing::warn!(%error, "{FILE} is not written"),
            Err(_) => {}
        }
    }
}
