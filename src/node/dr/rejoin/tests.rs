use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;
use crate::api::{Fate, SalvageHeader, SalvagedWrite};
use crate::files::sim::SimDisk;
use crate::files::{Disk, RealDisk};
use crate::index::IndexKind;
use crate::model::{
    BeginTimeline, Command, Entry, EntryKind, KeySpace, LogId, TimelineId, WriteCommand, WriteOp, new_random_id,
};
use crate::node::identity::MemberFile;
use crate::store::StoreConfig;

/// The members of the new timeline, by their addresses.
#[derive(Default)]
struct Net {
    stores: BTreeMap<String, Store>,
    asked: Mutex<Vec<String>>,
    joined: Mutex<Vec<JoinRequest>>,
    cluster: ClusterId,
}

impl AskStranger for Net {
    async fn post_json<A: DeserializeOwned>(
        &self,
        url: &str,
        message: &(impl Serialize + Sync),
        _timeout: Duration,
    ) -> Result<A, String> {
        self.asked.lock().push(url.to_owned());
        let place = url.split("/peer/").next().unwrap();
        let store = self.stores.get(place).ok_or("no answer")?;
        let message: Value = serde_json::to_value(message).unwrap();
        let answer = if url.ends_with(peer_path::COMMON) {
            let question: CommonQuestion = serde_json::from_value(message).unwrap();
            assert_eq!(question.cluster, self.cluster);
            serde_json::to_value(CommonAnswer::of(store, &question).unwrap()).unwrap()
        } else {
            self.joined.lock().push(serde_json::from_value(message).unwrap());
            let timeline = store.timelines().last().unwrap().id;
            serde_json::to_value(JoinAnswer::Joined { cluster: self.cluster, timeline }).unwrap()
        };
        Ok(serde_json::from_value(answer).unwrap())
    }
}

fn write(key: &str, value: &str) -> Command {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    let op = WriteOp::Put { space: KeySpace::User, key, value, lease: 0 };
    Command::Write(WriteCommand { time_ms: 5, guards: vec![], ops: vec![op] })
}

fn entry(term: u64, index: u64, command: &Command) -> Entry {
    Entry { log_id: LogId { term, leader: term, index }, kind: EntryKind::Command, payload: command.encode() }
}

struct Place {
    dir: tempfile::TempDir,
    config: Config,
    info: MemberInfo,
    first: TimelineId,
    net: Net,
    timelines: Vec<Timeline>,
    /// The entries of the new timeline up to its fork.
    shared: Vec<Entry>,
}

const URL: &str = "http://new";

/// A member that had applied entries up to `applied`, knew that those up to `committed` are, and had logged some more: the
/// first `shared` entries are those of the new timeline, the others are its own. The new timeline forked after 200.
impl Place {
    async fn new(shared: u64, committed: u64, applied: u64, logged: u64) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { tail_bytes: 4 << 10, ..Config::new("n1", dir.path()) };
        let (cluster, first, second) = (new_random_id(), new_random_id(), new_random_id());
        let found = Command::Found { time_ms: 1, cluster, timeline: first };
        let shared_entries: Vec<Entry> = [entry(1, 0, &found)]
            .into_iter()
            .chain((1..200).map(|n| entry(1, n, &write(&format!("key{}", n % 50), &"x".repeat(100)))))
            .collect();
        let index = || IndexKind::Memory(Arc::default());
        let store_config = StoreConfig { tail_bytes: 4 << 10, ..StoreConfig::default() };
        let new = Store::open(Arc::new(SimDisk::new()), Path::new("/h"), index(), store_config).unwrap();
        new.apply(&shared_entries).unwrap();
        let payload = Bytes::from_static(b"{}");
        let log_id = LogId { term: 100, leader: 9, index: 200 };
        new.apply(&[Entry { log_id, kind: EntryKind::Membership, payload }]).unwrap();
        let begins = BeginTimeline { time_ms: 9, id: second, parent: first, offset: 5, record: Bytes::new() };
        new.apply(&[entry(100, 201, &Command::Begin(begins))]).unwrap();
        for n in 202..260 {
            new.apply(&[entry(100, n, &write(&format!("new{n}"), "of the new timeline"))]).unwrap();
        }
        new.close(259).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let mut file = MemberFile::open(&*disk, dir.path(), "n1").unwrap();
        let belonging = Belonging { id: cluster, timeline: first, founder: true, has_log: true };
        file.cluster = Some(belonging);
        file.save(&*disk, dir.path()).unwrap();
        let (wal, store) = open_storage(disk, &config, &belonging, file.member_id(), None).await.unwrap();
        let own = (shared..logged).map(|n| entry(7, n, &write(&format!("own{n}"), "stranded")));
        let entries: Vec<Entry> = shared_entries[..shared as usize].iter().cloned().chain(own).collect();
        let (tx, rx) = tokio::sync::oneshot::channel();
        wal.append(entries.clone(), Box::new(move |done| drop(tx.send(done))));
        rx.await.unwrap().unwrap();
        wal.set_committed(entries[committed as usize - 1].log_id);
        for some in entries[..applied as usize].chunks(20) {
            store.apply(some).unwrap();
            store.seal(logged).unwrap();
            store.flush_index().unwrap();
        }
        wal.close().unwrap();
        let timelines = new.timelines();
        assert_eq!((timelines.len(), timelines[1].fork_position), (2, 200));
        let net = Net { stores: [(URL.to_owned(), new)].into(), cluster, ..Net::default() };
        let info = MemberInfo {
            name: "n1".into(),
            site: "east".into(),
            role: MemberRole::Voter,
            client_url: "http://c".into(),
            peer_url: "http://p".into(),
        };
        Place { dir, config, info, first, net, timelines, shared: shared_entries }
    }

    fn home(&self) -> Home {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let file = MemberFile::open(&*disk, self.dir.path(), "n1").unwrap();
        Home::new(disk, self.dir.path().to_owned(), file)
    }

    async fn step(&self, peers: &[String]) -> Step {
        let mut home = self.home();
        let Place { config, info, timelines, net, .. } = self;
        let branch = || Branch { timelines: timelines.clone(), peers: peers.to_vec() };
        Rejoining { config, home: &mut home, info, branch: &branch, http: net }.step().await.unwrap()
    }

    /// Goes all the way, as often as a crash behind each step would have it.
    async fn run(&self, repeat: bool) -> Home {
        let peers = [URL.to_owned()];
        loop {
            let before = self.home();
            let done = self.step(&peers).await;
            if repeat {
                before.file.save(&*before.disk, &before.dir).unwrap();
                assert_eq!(self.step(&peers).await, done);
            }
            if done == Step::Joined {
                return self.home();
            }
        }
    }

    fn salvaged(&self, home: &Home) -> (SalvageHeader, Vec<SalvagedWrite>) {
        let (file, counts) = home.file.rejoin.as_ref().unwrap().salvage.clone().unwrap();
        let text = std::fs::read_to_string(self.dir.path().join(SALVAGE_DIR).join(file)).unwrap();
        let mut lines = text.lines();
        let header: SalvageHeader = serde_json::from_str(lines.next().unwrap()).unwrap();
        assert_eq!(header.counts, counts);
        (header, lines.map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    /// Opens what came of it, receives what is missing, and gives how many bytes that were.
    async fn receive(&self, home: &mut Home) -> u64 {
        let new = &self.net.stores[URL];
        let belonging = home.file.cluster.unwrap();
        let opened = open_storage(home.disk.clone(), &self.config, &belonging, home.file.member_id(), None).await;
        let (wal, store) = opened.unwrap();
        assert_eq!(wal.state(), Default::default());
        let mut reader = new.copy_for(&store.delta_position(0).unwrap()).unwrap();
        let mut installer = store.begin_install().unwrap();
        while let Some(chunk) = reader.next_chunk().unwrap() {
            installer.push(&chunk).unwrap();
        }
        let bytes = installer.received_bytes();
        store.install(installer.finish().unwrap()).unwrap();
        assert_eq!(store.head(), new.head());
        for key in ["key7", "new210", "own205"] {
            let read = |store: &Store| store.get(KeySpace::User, key.as_bytes(), None).unwrap();
            assert_eq!(read(&store), read(new), "{key}");
        }
        bytes
    }
}

#[tokio::test]
async fn a_member_comes_home_with_what_is_common_and_leaves_what_is_its_own_in_a_file() {
    for repeat in [false, true] {
        let place = Place::new(180, 190, 190, 196).await;
        let old_id = format_member_id(place.home().file.member_id());
        let mut home = place.run(repeat).await;
        let mark = home.file.rejoin.clone().unwrap();
        assert_eq!(mark.old_id, old_id);
        assert_ne!(format_member_id(home.file.member_id()), old_id);
        let belonging = home.file.cluster.unwrap();
        assert_eq!((belonging.timeline, belonging.founder, belonging.has_log), (place.timelines[1].id, false, false));
        let joined = place.net.joined.lock().last().unwrap().clone();
        assert_eq!((joined.member.role, joined.cluster), (MemberRole::Mirror, None));
        assert_eq!(joined.member_id, format_member_id(home.file.member_id()));
        let (header, writes) = place.salvaged(&home);
        assert_eq!((header.common.position, header.common.exact), (Some(179), true));
        assert_eq!((header.timeline.id, header.onto.id), (place.first, place.timelines[1].id));
        assert_eq!((header.fork.position, &header.member.id), (200, &old_id));
        let fates: Vec<(u64, Fate)> = writes.iter().map(|write| (write.position, write.fate)).collect();
        let fate = |position| if position < 190 { Fate::Applied } else { Fate::Unknown };
        assert_eq!(fates, (180..196).map(|position| (position, fate(position))).collect::<Vec<_>>());
        assert!(writes.iter().all(|write| write.proven));
        assert!(mark.taken.contains("up to position 179"), "{}", mark.taken);
        let all = place.net.stores[URL].snapshot().unwrap().len_bytes();
        let received = place.receive(&mut home).await;
        assert!(received < all / 2, "{received} of {all}");
        // What was set aside goes when all is verified, and not before.
        let aside = [&mark.history_aside, &mark.wal_aside].map(|name| place.dir.path().join(name));
        assert!(aside.iter().all(|aside| aside.is_dir()));
        for _ in 0..2 {
            let kept = Mutex::new(home);
            finish(&kept).unwrap();
            home = kept.into_inner();
            assert!(aside.iter().all(|aside| !aside.exists()) && home.file.rejoin.is_none());
        }
        place.salvaged_file_is_kept();
    }
}

impl Place {
    fn salvaged_file_is_kept(&self) {
        let files = std::fs::read_dir(self.dir.path().join(SALVAGE_DIR)).unwrap();
        assert_eq!(files.count(), 1);
    }
}

/// What it knows to be committed and had not applied is applied; what its log shares with the new timeline is not stranded.
#[tokio::test]
async fn log_entries_that_the_new_timeline_has_are_not_salvaged() {
    let place = Place::new(190, 150, 140, 195).await;
    let home = place.run(true).await;
    let (header, writes) = place.salvaged(&home);
    assert_eq!((header.common.position, header.common.exact), (Some(149), true));
    let found: Vec<(u64, Fate)> = writes.iter().map(|write| (write.position, write.fate)).collect();
    assert_eq!(found, (190..195).map(|position| (position, Fate::Unknown)).collect::<Vec<_>>());
    assert_eq!(place.shared.len(), 200);
}

#[tokio::test]
async fn a_member_that_has_nothing_of_its_own_writes_no_file() {
    let place = Place::new(190, 190, 190, 190).await;
    let mut home = place.run(false).await;
    let mark = home.file.rejoin.clone().unwrap();
    assert_eq!((mark.salvage.clone(), mark.parted.as_ref().unwrap().history.last), (None, Some(189)));
    assert!(mark.salvaged().contains("nothing that the new timeline lacks"));
    assert!(!place.dir.path().join(SALVAGE_DIR).exists());
    place.receive(&mut home).await;
}

#[tokio::test]
async fn whoever_does_not_answer_or_does_not_know_the_timeline_yet_is_passed_over() {
    let mut place = Place::new(180, 190, 190, 196).await;
    let behind = Store::open(
        Arc::new(SimDisk::new()),
        Path::new("/h"),
        IndexKind::Memory(Arc::default()),
        StoreConfig::default(),
    );
    let behind = behind.unwrap();
    behind.apply(&place.shared).unwrap();
    place.net.stores.insert("http://behind".into(), behind);
    let peers = ["http://dead", "http://behind", URL].map(str::to_owned);
    assert_eq!(place.step(&peers).await, Step::Begun);
    assert_eq!(place.step(&peers).await, Step::Salvaged);
    assert_eq!(place.salvaged(&place.home()).0.common.position, Some(179));
    let asked = place.net.asked.lock();
    assert!(asked[0].starts_with("http://dead") && asked[1].starts_with("http://behind"));
}

#[tokio::test]
async fn old_files_that_are_damaged_are_kept_and_hold_nobody_up() {
    for what in ["history", "wal"] {
        let place = Place::new(180, 190, 190, 196).await;
        let dir = place.dir.path().join(what);
        let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let file = if what == "wal" { &files[0] } else { &files[1] };
        let mut content = std::fs::read(file).unwrap();
        // Behind the header of the first segment: entries that later batches prove; within a segment's header.
        content[if what == "wal" { 20 } else { 10 }] ^= 1;
        std::fs::write(file, content).unwrap();
        let mut home = place.run(true).await;
        let mark = home.file.rejoin.clone().unwrap();
        assert!(mark.damage.is_some() && mark.salvage.is_none());
        assert!(mark.salvaged().contains(&mark.history_aside) && mark.taken.starts_with("nothing"));
        place.receive(&mut home).await;
        let kept = Mutex::new(home);
        finish(&kept).unwrap();
        assert!(place.dir.path().join(&mark.history_aside).is_dir() && place.dir.path().join(&mark.wal_aside).is_dir());
    }
}
