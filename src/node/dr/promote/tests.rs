//! The edit of a stopped log: from every membership, cut off at every operation, and done twice.

use std::collections::BTreeSet;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::files::Disk;
use crate::files::sim::SimDisk;
use crate::index::IndexKind;
use crate::model::{KeySpace, RandomId, Timeline, WriteCommand, WriteOp, new_random_id};
use crate::node::dr::kin::Place;
use crate::node::identity::{Belonging, MemberFile};
use crate::raft::types::decode_membership;
use crate::store::StoreConfig;
use crate::wal::WalConfig;

const DIR: &str = "/m";
/// The last entry of the log before the edit.
const LAST: u64 = 29;
const OLD_TERM: u64 = 5;

fn info(name: &str, role: MemberRole) -> MemberInfo {
    MemberInfo {
        name: name.into(),
        site: "west".into(),
        role,
        client_url: format!("http://{name}:1"),
        peer_url: format!("http://{name}:2"),
    }
}

/// A mirror as it was when it was told: its log is longer than what it has applied, and the end of it is not known to be
/// committed.
struct Member {
    disk: SimDisk,
    promotion: Promotion,
    id: u64,
}

impl Member {
    fn new(voters: Vec<BTreeSet<u64>>) -> Member {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new(DIR)).unwrap();
        let mut file = MemberFile::open(&disk, Path::new(DIR), "m1").unwrap();
        let (cluster, parent) = (new_random_id(), new_random_id());
        let fork = Fork {
            cluster,
            id: new_random_id(),
            parent,
            began_ms: 77,
            by: "somebody".into(),
            reason: String::new(),
            member: "m1".into(),
            site: "west".into(),
            survivor: false,
            loss: Loss {
                kept_revision: 1,
                kept_index: LAST,
                known_committed_index: None,
                entries_at_least: 0,
                window_seconds: None,
                unbounded: true,
            },
            members: Vec::new(),
            rejoin: Vec::new(),
        };
        let promotion = Promotion { id: fork.id, parent, offset: 5, fork, decided: false };
        file.cluster = Some(Belonging { id: cluster, timeline: parent, founder: false, has_log: true });
        file.promotion = Some(promotion.clone());
        file.save(&disk, Path::new(DIR)).unwrap();
        let member = Member { id: file.member_id(), disk, promotion };
        let (wal, store, _) = member.open().unwrap();
        let nodes = |id: u64| (id, info(&format!("n{id}"), MemberRole::Voter));
        let membership = RaftMembership::new(voters, (1..=4).map(nodes).collect::<BTreeMap<_, _>>()).unwrap();
        let entries: Vec<Entry> = (0..=LAST)
            .map(|index| {
                let log_id = LogId { term: OLD_TERM, leader: 1, index };
                let command = |command: Command| (EntryKind::Command, command.encode());
                let (kind, payload) = match index {
                    0 => command(Command::Found { time_ms: 1, cluster, timeline: parent }),
                    1 => (EntryKind::Membership, encode_membership(&membership)),
                    _ => {
                        let (key, value) = (format!("k{index}").into(), "v".into());
                        let ops = vec![WriteOp::Put { space: KeySpace::User, key, value, lease: 0 }];
                        command(Command::Write(WriteCommand { ops, ..WriteCommand::default() }))
                    }
                };
                Entry { log_id, kind, payload }
            })
            .collect();
        store.apply(&entries[..20]).unwrap();
        let (tx, rx) = std::sync::mpsc::channel();
        let tell = || {
            let tx = tx.clone();
            Box::new(move |result: Result<(), _>| tx.send(result).unwrap()) as Done
        };
        wal.save_vote(Vote { term: OLD_TERM, member: 1, committed: true }, tell());
        wal.append(entries, tell());
        for _ in 0..2 {
            rx.recv().unwrap().unwrap();
        }
        store.close(LAST).unwrap();
        wal.close().unwrap();
        member
    }

    fn open(&self) -> Result<(Wal, Store, Home), StartError> {
        open(&self.disk)
    }
}

fn open(disk: &SimDisk) -> Result<(Wal, Store, Home), StartError> {
    let dir = Path::new(DIR);
    let file = MemberFile::open(disk, dir, "m1")?;
    let cluster = file.cluster.unwrap();
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    // Small, because every segment is written full of zeros first.
    let config = WalConfig { segment_bytes: 16 << 10, ..WalConfig::new(cluster.id, file.member_id()) };
    let wal = Wal::open(disk.clone(), &dir.join("wal"), config)?;
    let kind = IndexKind::Memory(Arc::default());
    let store = Store::open(disk.clone(), &dir.join("history"), kind, StoreConfig::default())?;
    Ok((wal, store, Home::new(disk, dir.into(), file)))
}

/// The other members, of whom one may answer how it stands.
#[derive(Default)]
struct Others(Option<Survey>);

impl AskStranger for Others {
    async fn post_json<A: serde::de::DeserializeOwned>(
        &self,
        _url: &str,
        _message: &(impl Serialize + Sync),
        _timeout: Duration,
    ) -> Result<A, String> {
        let answer = self.0.as_ref().ok_or("no answer")?;
        Ok(serde_json::from_value(serde_json::to_value(answer).unwrap()).unwrap())
    }
}

/// Opens what lies on a disk and edits it.
async fn edited(disk: &SimDisk) -> Result<(), StartError> {
    let (wal, store, mut home) = open(disk)?;
    let id = home.file.member_id();
    let result =
        edit(&mut home, &wal, &store, (id, &info("m1", MemberRole::Mirror)), &Others::default(), &Lobby::default())
            .await;
    drop(store);
    let closed = wal.close();
    result?;
    Ok(closed?)
}

/// What the log says after an edit, which must be all that was asked and nothing else.
fn check(disk: &SimDisk, member: &Member) {
    let (wal, _, home) = open(disk).unwrap();
    let Promotion { id, parent, .. } = member.promotion;
    assert_eq!(home.file.cluster.unwrap().timeline, id);
    let decided = Promotion { decided: true, ..member.promotion.clone() };
    assert_eq!(home.file.promotion, Some(decided), "what comes after the edit is still to be done");
    let state = wal.state();
    let entries = wal.entries(0, u64::MAX, usize::MAX).unwrap();
    assert_eq!(entries.len() as u64, LAST + 3);
    let (before, new) = entries.split_at(LAST as usize + 1);
    assert!(before.iter().all(|entry| entry.log_id.term == OLD_TERM));
    let [membership, begin] = new else { panic!("{new:?}") };
    assert_eq!((membership.log_id.index, begin.log_id.index), (LAST + 1, LAST + 2));
    let vote = state.vote.unwrap();
    assert_eq!((vote.member, vote.committed), (member.id, false));
    for entry in new {
        assert_eq!((entry.log_id.term, entry.log_id.leader), (vote.term, member.id));
    }
    assert!(vote.term > OLD_TERM);
    let decoded = decode_membership(&membership.payload).unwrap();
    assert_eq!(decoded.get_joint_config(), &vec![BTreeSet::from([member.id])]);
    assert_eq!(decoded.get_node(&member.id).unwrap().role, MemberRole::Voter);
    let Command::Begin(begin) = Command::decode(&begin.payload).unwrap() else { panic!("not a timeline") };
    assert_eq!((begin.id, begin.parent, begin.time_ms), (id, parent, 77));
    let fork: Fork = serde_json::from_slice(&begin.record).unwrap();
    assert_eq!(fork, member.promotion.fork);
}

#[tokio::test]
async fn a_log_is_edited_from_any_membership_once() {
    let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])];
    for voters in [vec![BTreeSet::from([1, 2, 3])], joint] {
        let member = Member::new(voters);
        for _ in 0..3 {
            edited(&member.disk).await.unwrap();
            check(&member.disk, &member);
        }
        // What was edited applies, and makes the timeline.
        let (wal, store, _) = member.open().unwrap();
        let next = store.applied().map_or(0, |applied| applied.index + 1);
        let entries = wal.entries(next, u64::MAX, usize::MAX).unwrap();
        store.apply(&entries).unwrap();
        let Timeline { number, fork_position, .. } = store.timelines().pop().unwrap();
        // The new membership belongs to the new timeline already, and is its first entry.
        assert_eq!((number, fork_position), (2, LAST + 1));
    }
}

#[tokio::test]
async fn an_edit_that_is_cut_off_anywhere_is_gone_on_with() {
    let seed = 1;
    for operations in 0.. {
        let member = Member::new(vec![BTreeSet::from([1, 2, 3])]);
        member.disk.crash_after(operations);
        let done = edited(&member.disk).await;
        if !member.disk.has_crashed() {
            done.unwrap();
            assert!(operations > 5, "the edit has {operations} operations");
            return;
        }
        for cut in 0..10 {
            let mut rng = StdRng::seed_from_u64(seed ^ (operations << 20) ^ cut);
            let survivor = match cut {
                0 => member.disk.power_cut_keep_nothing(),
                1 => member.disk.power_cut_keep_all(),
                2 => member.disk.process_kill(),
                _ => member.disk.power_cut(rng.random()),
            };
            edited(&survivor).await.unwrap();
            check(&survivor, &member);
            // And it stays, in the worst power cut.
            check(&survivor.power_cut_keep_nothing(), &member);
        }
    }
}

fn old(name: &str, site: &str) -> OldMember {
    OldMember {
        id: "0000000000000001".into(),
        site: site.into(),
        role: MemberRole::Voter,
        place: Place { name: name.into(), peer_url: format!("http://{name}"), client_url: String::new() },
    }
}

/// The mark of a member that died before it had asked the others of its site.
#[tokio::test]
async fn an_order_that_was_not_decided_gives_way_to_another_one_at_the_start() {
    let (small, large) = (RandomId([0; 16]), RandomId([255; 16]));
    for (theirs, decided, drops) in
        [(small, false, true), (large, false, false), (small, true, true), (large, true, true)]
    {
        let mut member = Member::new(vec![BTreeSet::from([1, 2, 3])]);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        member.promotion.fork.began_ms = now;
        member.promotion.fork.members = vec![old("m2", "west")];
        let closed = Survey::while_closed(1, member.promotion.fork.cluster, member.promotion.parent);
        let others = Others(Some(Survey { promoting: Some(theirs), decided, ..closed }));
        let (wal, store, mut home) = member.open().unwrap();
        home.change(|file| file.promotion = Some(member.promotion.clone())).unwrap();
        let info = info("m1", MemberRole::Mirror);
        edit(&mut home, &wal, &store, (member.id, &info), &others, &Lobby::default()).await.unwrap();
        let kept = home.file.promotion.as_ref().map(|promotion| promotion.decided);
        assert_eq!(kept, (!drops).then_some(true), "{theirs} {decided}");
        assert_eq!(wal.state().last.unwrap().index, if drops { LAST } else { LAST + 2 });
    }
}

#[tokio::test]
async fn an_order_that_lay_for_long_is_dropped_when_history_went_on() {
    let survey = |member: &Member, timelines: Vec<Timeline>, leads| {
        let closed = Survey::while_closed(1, member.promotion.fork.cluster, member.promotion.parent);
        Survey { timelines, leads, ..closed }
    };
    let parent = |member: &Member| Timeline::first(member.promotion.parent);
    for (timelines, leads, dropped) in [(1, true, true), (1, false, false), (2, false, true)] {
        let mut member = Member::new(vec![BTreeSet::from([1, 2, 3])]);
        member.promotion.fork.members = vec![old("n1", "east")];
        let (_, _, mut home) = member.open().unwrap();
        home.change(|file| file.promotion = Some(member.promotion.clone())).unwrap();
        let all = [parent(&member), Timeline::first(new_random_id())];
        let others = Others(Some(survey(&member, all[..timelines].to_vec(), leads)));
        let (wal, store, mut home) = member.open().unwrap();
        let info = info("m1", MemberRole::Mirror);
        edit(&mut home, &wal, &store, (member.id, &info), &others, &Lobby::default()).await.unwrap();
        assert_eq!(home.file.promotion.is_none(), dropped, "{timelines} {leads}");
        assert_eq!(wal.state().last.unwrap().index, if dropped { LAST } else { LAST + 2 });
    }
}
