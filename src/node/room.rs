//! Room on the disk: who is short of it, and what is refused meanwhile.
//!
//! Each member holds a reserve on its disk: a file of nothing, for two tails, the wal and a step of compaction. When
//! little is left beside it, or the data directory has reached its quota, the member is *short*: it gives the reserve
//! back to itself and says so in every message. The leader refuses every write that would make the store larger (507)
//! while a voter is short; deletes, the ends of leases and reads go on, so compaction finds something to take away. With
//! room again the reserve is made anew and writes go on without a hand. Apply never refuses for room.
//!
//! The less room there is the more often the member looks, so that nobody fills the margin between two looks. What is on its
//! way when a member becomes short (as many bytes as clients have in flight, twice: in the wal and in the history) has its
//! place in what is given back then; so the reserve has to be larger than that.
//!
//! A mirror that is short does not stop the primary site: it says so in its log, its events and its metrics.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::proposals::Waiting;
use super::{Inner, NodeError};
use crate::files::room;
use crate::model::{Command, KeySpace, MemberRole, Request, Txn, TxnOp, WriteOp};

/// Between two looks at the disk, when there is plenty of room.
const LOOK: Duration = Duration::from_millis(500);
/// And when there is little.
const LOOK_MIN: Duration = Duration::from_millis(10);
/// Faster than this no member fills its disk.
const FASTEST_BYTES_PER_SECOND: u64 = 1 << 30;
/// The file that holds the reserve.
const RESERVE: &str = "reserve";

/// How much room is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How much is held back.
    pub reserve_bytes: u64,
    /// What the data directory may grow to; 0 for the whole disk.
    pub quota_bytes: u64,
}

/// What a look at the disk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    free_bytes: u64,
    /// Without the reserve.
    used_bytes: u64,
}

impl Limits {
    /// What the quota leaves; nothing bounds it without one.
    pub fn quota_left(self, dir: &Path) -> io::Result<u64> {
        if self.quota_bytes == 0 {
            return Ok(u64::MAX);
        }
        let held = room::held(&dir.join(RESERVE))?;
        Ok(self.quota_bytes.saturating_sub(used_bytes(dir, held.len)?))
    }

    /// Whether a member is short, given whether it was.
    fn is_short(self, was: bool, found: Found) -> bool {
        // To become short a quarter of the reserve has to be all that is left; to end it there must be place for the
        // reserve and twice that, so that it does not flutter.
        let margin = self.reserve_bytes / 4;
        let (free, quota_margin) = if was { (self.reserve_bytes + 2 * margin, 2 * margin) } else { (margin, margin) };
        let quota = self.quota_bytes;
        found.free_bytes < free || (quota > 0 && found.used_bytes.saturating_add(quota_margin) > quota)
    }

    /// How long nothing can happen to a member that is not short.
    fn next_look(self, found: Found) -> Duration {
        let margin = self.reserve_bytes / 4;
        let of_quota = self.quota_bytes.saturating_sub(margin).saturating_sub(found.used_bytes);
        let of_disk = found.free_bytes.saturating_sub(margin);
        let left = if self.quota_bytes > 0 { of_disk.min(of_quota) } else { of_disk };
        Duration::from_millis(left.saturating_mul(1000) / FASTEST_BYTES_PER_SECOND).clamp(LOOK_MIN, LOOK)
    }
}

/// Looks at the disk again and again, on a thread of its own: Raft's is busiest when the disk fills fastest. It ends with
/// the member.
pub fn watch(inner: &Arc<Inner>) -> io::Result<()> {
    let (inner, dir, limits) = (Arc::downgrade(inner), inner.data_dir.clone(), inner.room_limits);
    let thread = std::thread::Builder::new().name("disk-room".into());
    let looks = move || {
        while let Some(was) = inner.upgrade().filter(|it| !it.is_stopping()).map(|it| it.http.identity().is_short()) {
            let pause = match look(&dir, limits, was) {
                Ok((short, pause)) => {
                    if let Some(inner) = inner.upgrade().filter(|_| short != was) {
                        inner.tell_room(short);
                    }
                    pause
                }
                Err(error) => {
                    tracing::warn!(%error, "how much room the disk has cannot be told");
                    LOOK
                }
            };
            std::thread::sleep(pause);
        }
    };
    thread.spawn(looks).map(drop)
}

/// What the data take, without the reserve.
fn used_bytes(dir: &Path, held_bytes: u64) -> io::Result<u64> {
    Ok(room::used_bytes(dir)?.saturating_sub(held_bytes))
}

/// Looks at the disk, and holds or releases the reserve; says whether the member is short, and when to look again. What is
/// held is read from the disk each time: a file from before a restart counts, and one that could not be made does not.
fn look(dir: &Path, limits: Limits, was: bool) -> io::Result<(bool, Duration)> {
    let reserve = dir.join(RESERVE);
    let held = room::held(&reserve)?;
    let used_bytes = if limits.quota_bytes > 0 { used_bytes(dir, held.len)? } else { 0 };
    let found = Found { free_bytes: room::free_bytes(dir)?, used_bytes };
    let short = limits.is_short(was, found);
    if short {
        room::release(&reserve)?;
        return Ok((true, LOOK));
    }
    if (held.allocated < limits.reserve_bytes || held.len != limits.reserve_bytes)
        && let Err(error) = room::hold(&reserve, limits.reserve_bytes)
    {
        // Not every file system can promise space, and now there may be too little. The margin alone has to do until it
        // can: the next look tries again.
        tracing::debug!(%error, "no room can be held back");
        room::release(&reserve)?;
    }
    // What is held now is no longer free.
    Ok((false, limits.next_look(Found { free_bytes: room::free_bytes(dir)?, ..found })))
}

impl Inner {
    fn tell_room(&self, short: bool) {
        self.http.identity().set_short(short);
        if short {
            tracing::warn!("this member is short of disk room: the cluster refuses writes that would make it larger");
            self.events.record("room-short", "this member is short of disk room".into());
        } else {
            tracing::info!("this member has room on its disk again");
            self.events.record("room-back", "this member has room on its disk again".into());
        }
    }

    /// The voters that are short of room, when there are any.
    pub(super) fn short_of_room(&self) -> Option<String> {
        let identity = self.http.identity();
        let view = self.view();
        let short = |id| if id == self.id { identity.is_short() } else { identity.said_short(id) };
        let names: Vec<&str> = view
            .members
            .iter()
            .filter(|member| member.role == MemberRole::Voter && short(member.id))
            .map(|member| member.name.as_str())
            .collect();
        match names.as_slice() {
            [] => None,
            [one] => Some(format!("{one} is")),
            many => Some(format!("{} are", many.join(", "))),
        }
    }

    /// Answers the writes that would make the store larger while a voter is short; gives back the others. A keyed request
    /// that is sent again makes nothing larger: it is answered with its first outcome.
    pub(super) fn refuse_growth(&self, batch: Vec<Waiting>) -> Vec<Waiting> {
        let Some(names) = self.short_of_room() else { return batch };
        let (refused, others): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|waiting| grows(waiting) && !self.is_known(waiting));
        for waiting in refused {
            let _ = waiting.answer.send(Err(NodeError::NoRoom { names: names.clone() }));
        }
        others
    }
}

/// Whether a command may put something into the store besides the cluster's own records. What cannot be read is refused
/// later, with its reason.
fn grows(waiting: &Waiting) -> bool {
    fn put(op: &WriteOp) -> bool {
        matches!(op, WriteOp::Put { space: KeySpace::User, .. })
    }
    fn txn_grows(txn: &Txn) -> bool {
        txn.then.iter().chain(&txn.otherwise).any(|op| match op {
            TxnOp::Put { .. } => true,
            TxnOp::Txn(nested) => txn_grows(nested),
            _ => false,
        })
    }
    match Command::decode(&waiting.command) {
        Ok(Command::Write(write)) => write.ops.iter().any(put),
        Ok(Command::Request(command)) => match &command.request {
            Request::Write { grant, ops, .. } => grant.is_some() || ops.iter().any(put),
            Request::Txn(txn) => txn_grows(txn),
            Request::Grant(_) | Request::Sequence { .. } => true,
            Request::Revoke { .. } | Request::Sweep { .. } | Request::Canary | Request::Record { .. } => false,
        },
        Ok(Command::Found { .. } | Command::Begin(_)) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_becomes_short_late_and_recovers_later() {
        let limits = Limits { reserve_bytes: 100, quota_bytes: 1000 };
        let found = |free_bytes, used_bytes| Found { free_bytes, used_bytes };
        for (was, found, short) in [
            (false, found(25, 0), false),
            (false, found(24, 0), true),
            (true, found(149, 0), true),
            (true, found(150, 0), false),
            (false, found(9999, 975), false),
            (false, found(9999, 976), true),
            (true, found(9999, 951), true),
            (true, found(9999, 950), false),
        ] {
            assert_eq!(limits.is_short(was, found), short, "{was} {found:?}");
        }
        let unbounded = Limits { quota_bytes: 0, ..limits };
        assert!(!unbounded.is_short(false, found(25, u64::MAX)));
    }

    #[test]
    fn the_less_room_the_sooner_the_next_look() {
        let limits = Limits { reserve_bytes: 64 << 20, quota_bytes: 0 };
        let found = |free: u64, used: u64| Found { free_bytes: free << 20, used_bytes: used << 20 };
        assert_eq!(limits.next_look(found(1 << 20, 0)), LOOK);
        assert_eq!(limits.next_look(found(16 + 256, 0)), Duration::from_millis(250));
        assert_eq!(limits.next_look(found(17, 0)), LOOK_MIN);
        let limits = Limits { quota_bytes: 1 << 30, ..limits };
        assert_eq!(limits.next_look(found(1 << 20, 0)), Duration::from_millis(500));
        assert_eq!(limits.next_look(found(1 << 20, 1024 - 16 - 128)), Duration::from_millis(125));
        assert_eq!(limits.next_look(found(1 << 20, 2000)), LOOK_MIN);
    }

    #[test]
    fn the_reserve_is_there_while_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = dir.path().join(RESERVE);
        let limits = Limits { reserve_bytes: 1 << 16, quota_bytes: 1 << 20 };
        assert!(!look(dir.path(), limits, false).unwrap().0);
        assert!(reserve.exists());
        std::fs::write(dir.path().join("data"), vec![0; (1 << 20) - 1000]).unwrap();
        assert!(look(dir.path(), limits, false).unwrap().0);
        assert!(!reserve.exists());
        std::fs::write(dir.path().join("data"), [0; 1000]).unwrap();
        assert!(!look(dir.path(), limits, true).unwrap().0);
        assert!(reserve.exists());
    }

    #[test]
    fn a_reserve_of_before_a_restart_is_not_counted_as_used() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { reserve_bytes: 1 << 20, quota_bytes: 3 << 20 };
        std::fs::write(dir.path().join("data"), vec![0; (5 << 20) / 2]).unwrap();
        assert!(!look(dir.path(), limits, false).unwrap().0);
        assert!(
            !look(dir.path(), limits, false).unwrap().0,
            "the first look after a restart knows nothing of the one before"
        );
        // A reserve of another size, from before a change of the setting, becomes one of this size.
        let smaller = Limits { reserve_bytes: 1 << 16, ..limits };
        assert!(!look(dir.path(), smaller, false).unwrap().0);
        assert_eq!(std::fs::metadata(dir.path().join(RESERVE)).unwrap().len(), 1 << 16);
    }

    #[test]
    fn a_reserve_that_cannot_be_made_is_not_counted_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = dir.path().join(RESERVE);
        // A directory in its place: no room can be held there, as on a disk with too little of it.
        let limits = Limits { reserve_bytes: 1 << 20, quota_bytes: 2 << 20 };
        std::fs::write(dir.path().join("data"), vec![0; (3 << 20) / 2]).unwrap();
        // So large that no file system has it.
        let hopeless = Limits { reserve_bytes: 1 << 62, quota_bytes: 0 };
        assert!(room::hold(&reserve, hopeless.reserve_bytes).is_err());
        room::release(&reserve).unwrap();
        assert!(!look(dir.path(), limits, false).unwrap().0);
        room::release(&reserve).unwrap();
        std::fs::write(dir.path().join("data"), vec![0; (2 << 20) + 1]).unwrap();
        assert!(look(dir.path(), limits, false).unwrap().0, "what is not held is not taken off what is used");
        std::fs::write(dir.path().join("data"), [0; 1000]).unwrap();
        // A file without blocks, as a failed attempt may leave it, is no reserve.
        std::fs::File::create(&reserve).unwrap().set_len(1 << 20).unwrap();
        assert!(!look(dir.path(), limits, true).unwrap().0);
        assert_eq!(room::held(&reserve).unwrap().allocated, 1 << 20);
    }
}
