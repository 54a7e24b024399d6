//! Who this member is, kept in `member.json` in its data directory.
//!
//! The member id is drawn before anything else and made durable before the member speaks to anyone, so that a join that
//! is repeated after a crash is the same join. The cluster is filled in once it is known; only then are a wal and a
//! history created. The file is replaced whole: temporary file, sync, rename, sync of the directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::files::{Disk, read_file, replace_file};
use crate::model::{ClusterId, MemberId, TimelineId, format_member_id, new_random_id, parse_member_id};

use super::StartError;
use super::dr::{Fenced, Promotion, Rejoin};
use super::founding::protocol::Held;
use super::quarantine::Quarantine;

const FILE: &str = "member.json";
const FORMAT: u32 = 1;

/// The content of `member.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberFile {
    format: u32,
    /// 16 hexadecimal digits.
    member_id: String,
    /// The name under which the member was started first; the data belongs to it.
    pub name: String,
    /// The cluster it belongs to; none until it has joined or founded one.
    pub cluster: Option<Belonging>,
    /// The proposal of a cluster that it has agreed to ([`super::founding`]); kept when it came of it, because it names
    /// the first voters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// Whether it was removed from that cluster. Its id never comes back, so its data are of no use to a member.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
    /// Why its history must not be used, until it is repaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Quarantine>,
    /// The timeline that this member begins, until all is done that belongs to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<Promotion>,
    /// The branch of history that went on without this member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<Fenced>,
    /// How far it has come back from it, until all is done that belongs to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejoin: Option<Rejoin>,
}

/// The file and where it lies, for whoever has to change it while the member runs.
#[derive(Clone)]
pub struct Home {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The data directory.
    pub dir: PathBuf,
    /// What the file says.
    pub file: MemberFile,
    /// The member was closed: the file is that of whoever opens it next.
    closed: bool,
}

impl Home {
    /// The file of a member that is about to be opened.
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, file: MemberFile) -> Home {
        Home { disk, dir, file, closed: false }
    }

    /// Nothing is changed from here any more.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Changes the file durably, or not at all.
    pub fn change(&mut self, change: impl FnOnce(&mut MemberFile)) -> Result<(), StartError> {
        if self.closed {
            return Err(StartError::Other("the member was closed".into()));
        }
        let mut file = self.file.clone();
        change(&mut file);
        file.save(&*self.disk, &self.dir)?;
        self.file = file;
        Ok(())
    }
}

/// The cluster that a member belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Belonging {
    /// The cluster.
    pub id: ClusterId,
    /// The timeline on which the member joined, or that it was promoted to begin.
    pub timeline: TimelineId,
    /// Whether this member founds the cluster: it initialises Raft if that has not happened yet.
    pub founder: bool,
    /// Whether the wal was created. From then on an empty directory is a lost log, not a new one: a member that forgot
    /// its vote and its entries must not go on as though nothing had been.
    pub has_log: bool,
}

fn new_member_id() -> String {
    let [a, b, c, d, e, f, g, h, ..] = new_random_id().0;
    format_member_id(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

impl MemberFile {
    /// Reads the file in `dir`, or draws an identity for `name` and writes it.
    pub fn open(disk: &dyn Disk, dir: &Path, name: &str) -> Result<MemberFile, StartError> {
        let path = dir.join(FILE);
        let damaged = |detail: String| StartError::MemberFile { path: path.clone(), detail };
        let content = read_file(disk, &path).map_err(|source| StartError::Io { path: path.clone(), source })?;
        let Some(content) = content else {
            let file = MemberFile::drawn(name, None);
            file.save(disk, dir)?;
            return Ok(file);
        };
        let file: MemberFile = serde_json::from_slice(&content).map_err(|e| damaged(e.to_string()))?;
        if file.format != FORMAT {
            return Err(damaged(format!("unknown format {}", file.format)));
        }
        if parse_member_id(&file.member_id).is_none() {
            return Err(damaged(format!("malformed member id {:?}", file.member_id)));
        }
        if file.name != name {
            return Err(StartError::OtherName { dir: dir.into(), theirs: file.name, ours: name.to_string() });
        }
        if let (true, Some(cluster)) = (file.removed, file.cluster) {
            return Err(StartError::Removed { dir: dir.into(), member_id: file.member_id, cluster: cluster.id });
        }
        Ok(file)
    }

    /// That of a member, never seen before, of the cluster `cluster`.
    pub fn drawn(name: &str, cluster: Option<Belonging>) -> MemberFile {
        MemberFile {
            format: FORMAT,
            member_id: new_member_id(),
            name: name.to_string(),
            cluster,
            held: None,
            removed: false,
            quarantine: None,
            promotion: None,
            fenced: None,
            rejoin: None,
        }
    }

    /// Draws another id. What was said under the old one counts for nothing any more.
    pub fn renew_id(&mut self) {
        self.member_id = new_member_id();
    }

    /// Makes the file durable.
    pub fn save(&self, disk: &dyn Disk, dir: &Path) -> Result<(), StartError> {
        let content = serde_json::to_vec_pretty(self).expect("strings and numbers always serialise");
        let written = replace_file(disk, dir, FILE, &content);
        written.map_err(|source| StartError::Io { path: dir.join(FILE), source })
    }

    /// This member's id.
    pub fn member_id(&self) -> MemberId {
        parse_member_id(&self.member_id).expect("checked when it was read or drawn")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::sim::SimDisk;

    #[test]
    fn an_identity_is_drawn_once_and_kept() {
        let disk = SimDisk::new();
        let dir = Path::new("/data");
        disk.create_dir_all(dir).unwrap();
        let mut first = MemberFile::open(&disk, dir, "n1").unwrap();
        assert_eq!(MemberFile::open(&disk, dir, "n1").unwrap(), first);
        first.cluster =
            Some(Belonging { id: new_random_id(), timeline: new_random_id(), founder: true, has_log: false });
        first.save(&disk, dir).unwrap();
        assert_eq!(MemberFile::open(&disk, dir, "n1").unwrap(), first);
        assert!(matches!(MemberFile::open(&disk, dir, "n2"), Err(StartError::OtherName { .. })));
    }

    #[test]
    fn a_damaged_identity_is_named_not_drawn_again() {
        let disk = SimDisk::new();
        let dir = Path::new("/data");
        disk.create_dir_all(dir).unwrap();
        for bad in ["", "{}", "{\"format\":2,\"member_id\":\"0000000000000001\",\"name\":\"n1\",\"cluster\":null}"] {
            replace_file(&disk, dir, FILE, bad.as_bytes()).unwrap();
            assert!(matches!(MemberFile::open(&disk, dir, "n1"), Err(StartError::MemberFile { .. })), "{bad}");
        }
    }
}
