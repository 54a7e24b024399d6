use std::ops::ControlFlow;

use bytes::Bytes;

use super::*;
use crate::files::read_file;
use crate::files::sim::SimDisk;
use crate::index::IndexKind;
use crate::model::{
    Compare, CompareOp, CompareTarget, Condition, Guard, IdempotencyKey, KeySet, LeaseGrant, LogId, RequestCommand,
    Txn, WriteCommand, new_random_id,
};
use crate::store::{CompactLimits, Floors, StoreConfig};
use crate::wal::WalConfig;

const DIR: &str = "/member";

/// A member of an abandoned timeline, as it was left.
struct Old {
    disk: SimDisk,
    store: Store,
    wal: Wal,
    cluster: ClusterId,
    next: u64,
}

fn open(disk: &SimDisk, cluster: ClusterId) -> (Store, Wal) {
    let config = StoreConfig { tail_bytes: 2 << 10, ..StoreConfig::default() };
    let index = IndexKind::Memory(Arc::default());
    disk.create_dir_all(&Path::new(DIR).join("wal")).unwrap();
    let store = Store::open(Arc::new(disk.clone()), &Path::new(DIR).join("history"), index, config).unwrap();
    let wal = Wal::open(Arc::new(disk.clone()), &Path::new(DIR).join("wal"), WalConfig::new(cluster, 7)).unwrap();
    (store, wal)
}

impl Old {
    fn new() -> Old {
        let (disk, cluster) = (SimDisk::new(), new_random_id());
        let (store, wal) = open(&disk, cluster);
        Old { disk, store, wal, cluster, next: 0 }
    }

    fn entry(&mut self, kind: EntryKind, payload: Bytes) -> Entry {
        let log_id = LogId { term: 3, leader: 7, index: self.next };
        self.next += 1;
        let entry = Entry { log_id, kind, payload };
        let (tx, rx) = std::sync::mpsc::channel();
        self.wal.append(vec![entry.clone()], Box::new(move |done| tx.send(done).unwrap()));
        rx.recv().unwrap().unwrap();
        entry
    }

    /// What came into the log and was applied.
    fn applied(&mut self, command: impl Into<Command>) {
        let entry = self.entry(EntryKind::Command, command.into().encode());
        self.store.apply(&[entry]).unwrap();
    }

    /// What only came into the log.
    fn logged(&mut self, command: impl Into<Command>) {
        self.entry(EntryKind::Command, command.into().encode());
    }

    fn salvage<T>(&self, first: u64, work: impl FnOnce(&Salvage<'_>) -> T) -> T {
        let last = self.store.applied().unwrap().index;
        self.store.close(last).unwrap();
        work(&Salvage {
            store: &self.store,
            wal: &self.wal,
            history: Found { last: first.checked_sub(1), differs_from: first },
            common_revision: 1,
            log: Found { last: Some(last), differs_from: last + 1 },
            cluster: self.cluster,
            timeline: SalvageTimeline { number: 1, id: "1".repeat(32).parse().unwrap() },
            onto: SalvageTimeline { number: 2, id: new_random_id() },
            fork: SalvageFork { position: first.saturating_sub(1), revision: 1 },
            member: SalvageMember { id: format_member_id(7), name: "n1".into(), site: "east".into() },
            now_ms: 5,
        })
    }
}

fn put(key: &str, value: &[u8]) -> WriteOp {
    let (key, value) = (key.to_owned().into(), Bytes::copy_from_slice(value));
    WriteOp::Put { space: KeySpace::User, key, value, lease: 0 }
}

fn write(ops: Vec<WriteOp>) -> WriteCommand {
    WriteCommand { time_ms: 77, guards: vec![], ops }
}

fn request(key: Option<&'static str>, request: Request) -> RequestCommand {
    let idempotency = key.map(|key| IdempotencyKey { key: key.into(), fingerprint: [1; 16] });
    RequestCommand { time_ms: 88, idempotency, request }
}

fn lines(disk: &SimDisk, file: &str) -> Option<(SalvageHeader, Vec<SalvagedWrite>)> {
    let content = read_file(disk, &Path::new(DIR).join(SALVAGE_DIR).join(file)).unwrap()?;
    let text = String::from_utf8(content).unwrap();
    assert!(text.ends_with('\n'));
    let mut lines = text.lines();
    let header = serde_json::from_str(lines.next().unwrap()).unwrap();
    Some((header, lines.map(|line| serde_json::from_str(line).unwrap()).collect()))
}

fn shown(ops: &[SalvagedOp]) -> Vec<String> {
    let show = |op: &SalvagedOp| {
        let record = op.record.as_ref().map_or(String::new(), |record| format!("{record}:"));
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("{:?} {record}{}={}{}", op.op, part(&op.key), part(&op.value), part(&op.value_base64))
    };
    ops.iter().map(show).collect()
}

fn guard(key: &'static str) -> Guard {
    Guard { key: key.into(), condition: Condition::Absent }
}

#[test]
fn everything_beyond_the_common_point_is_there_with_its_fate() {
    let mut old = Old::new();
    let shared = Command::Found { time_ms: 1, cluster: old.cluster, timeline: new_random_id() };
    old.applied(shared);
    old.applied(write(vec![put("shared", b"1")]));
    old.applied(write(vec![put("a", b"1"), put("b", &[0xff, 0])]));
    let keyed = Request::Write { grant: None, guards: vec![], ops: vec![put("c", b"once")] };
    old.applied(request(Some("try-1"), keyed));
    old.applied(WriteCommand { guards: vec![guard("a")], ..write(vec![put("a", b"refused")]) });
    old.applied(request(None, Request::Sequence { name: "orders".into(), count: 3, step: 10 }));
    let leased = WriteOp::Put { space: KeySpace::User, key: "l".into(), value: "x".into(), lease: 9 };
    let grant = Some(LeaseGrant { id: 9, ttl_ms: 1000 });
    old.applied(request(None, Request::Write { grant, guards: vec![], ops: vec![leased] }));
    old.applied(write(vec![WriteOp::Delete { space: KeySpace::User, key: "shared".into() }]));
    old.entry(EntryKind::Blank, Bytes::new());
    old.logged(write(vec![put("d", b"log")]));
    old.logged(WriteCommand { guards: vec![guard("e")], ..write(vec![put("e", b"if")]) });
    let compare = Compare { keys: KeySet::One("a".into()), op: CompareOp::Equal, target: CompareTarget::Version(1) };
    let op = |key: &'static str| TxnOp::Put { key: key.into(), value: "t".into(), lease: 0, previous: false };
    let txn = Txn { compare: vec![compare], then: vec![op("f")], otherwise: vec![op("g")] };
    old.logged(request(Some("try-2"), Request::Txn(txn)));
    old.logged(request(None, Request::Canary));
    let ranged = WriteOp::DeleteRange { space: KeySpace::User, start: "a".into(), end: Some("b".into()) };
    old.logged(write(vec![ranged]));
    old.entry(EntryKind::Command, Bytes::from_static(b"\x09of a later program"));
    let (file, header) =
        old.salvage(2, |salvage| (salvage.file_name(), salvage.write(&old.disk, Path::new(DIR)).unwrap().unwrap()));
    assert_eq!(file, format!("{}-0000000000000007.ndjson", "1".repeat(32)));
    let (read, writes) = lines(&old.disk, &file).unwrap();
    assert_eq!(read, header);
    let counts = SalvageCounts { applied: 5, unknown: 5, system: 2, unproven: 0 };
    assert_eq!((header.counts, &header.lost), (counts, &SalvageLost::default()));
    let applied: Vec<_> = writes.iter().filter(|write| write.fate == Fate::Applied).collect();
    assert_eq!(shown(&applied[0].ops), ["Put a=1", "Put b=/wA="]);
    assert_eq!((applied[0].position, applied[0].revision, applied[0].term), (2, Some(3), 3));
    assert_eq!(
        (applied[1].idempotency_key.as_deref(), shown(&applied[1].ops)),
        (Some("try-1"), vec!["Put c=once".into()])
    );
    assert_eq!(
        (applied[2].kind, shown(&applied[2].ops)),
        (SalvagedKind::Sequence, vec!["Put sequence:orders=3".into()])
    );
    assert!(applied[3].ops.iter().any(|op| op.lease == Some(9) && op.key.as_deref() == Some("l")));
    assert_eq!(shown(&applied[4].ops), ["Delete shared="]);
    assert_eq!(applied[4].ops[0].previous, Some(2));
    let unknown: Vec<_> = writes.iter().filter(|write| write.fate == Fate::Unknown).collect();
    assert_eq!(
        (shown(&unknown[0].ops), unknown[0].conditional, unknown[0].time_ms),
        (vec!["Put d=log".into()], false, 77)
    );
    assert!(unknown[1].conditional);
    assert_eq!((unknown[2].kind, unknown[2].conditional), (SalvagedKind::Txn, true));
    assert_eq!(
        (shown(&unknown[2].ops), shown(&unknown[2].otherwise)),
        (vec!["Put f=t".into()], vec!["Put g=t".into()])
    );
    assert_eq!(unknown[2].idempotency_key.as_deref(), Some("try-2"));
    assert_eq!((unknown[3].ops[0].op, unknown[3].ops[0].end.as_deref()), (SalvagedAction::DeleteRange, Some("b")));
    assert_eq!(unknown[4].kind, SalvagedKind::Unreadable);
    assert!(writes.iter().all(|write| write.proven));
}

#[test]
fn what_may_be_in_the_new_timeline_too_is_told_apart() {
    let mut old = Old::new();
    for n in 0..6 {
        old.applied(write(vec![put("k", &[b'0' + n])]));
    }
    old.logged(write(vec![put("k", b"6")]));
    old.logged(write(vec![put("k", b"7")]));
    let file = old.salvage(2, |salvage| {
        let history = Found { last: Some(1), differs_from: 4 };
        let log = Found { last: Some(6), differs_from: 8 };
        let (timeline, onto, member) = (salvage.timeline.clone(), salvage.onto.clone(), salvage.member.clone());
        let salvage = Salvage { history, log, timeline, onto, member, ..*salvage };
        assert_eq!(salvage.write(&old.disk, Path::new(DIR)).unwrap().unwrap().counts.unproven, 3);
        salvage.file_name()
    });
    let (header, writes) = lines(&old.disk, &file).unwrap();
    assert!(!header.common.exact);
    let proven: Vec<(u64, bool)> = writes.iter().map(|write| (write.position, write.proven)).collect();
    assert_eq!(proven, [(2, false), (3, false), (4, true), (5, true), (7, false)]);
}

#[test]
fn what_compaction_has_taken_is_counted() {
    let mut old = Old::new();
    for n in 0..60 {
        old.applied(write(vec![put("often", &[b'x'; 90]), put(&format!("once{n}"), b"1")]));
        old.applied(write(vec![put("often", b"again")]));
    }
    let floors = Floors { read: old.store.revision(), delta: 119 };
    let op = old.store.floors_op(floors).unwrap().unwrap();
    old.applied(write(vec![op]));
    old.store.close(120).unwrap();
    let limits = CompactLimits { garbage_percent: 5, ..CompactLimits::default() };
    while old.store.compact(limits, &|_| ControlFlow::Continue(())).unwrap().segments > 0 {}
    let header = old.salvage(10, |salvage| salvage.write(&old.disk, Path::new(DIR)).unwrap().unwrap());
    assert!(header.lost.thinned > 20 && header.lost.missing > 20, "{:?}", header.lost);
    assert_eq!(header.lost.thinned_revisions.len() as u64, header.lost.thinned.min(100));
    assert_eq!(header.counts.applied + header.lost.missing, 111);
}

#[test]
fn a_member_that_has_nothing_of_its_own_writes_no_file() {
    let mut old = Old::new();
    old.applied(write(vec![put("shared", b"1")]));
    old.applied(request(None, Request::Canary));
    old.entry(EntryKind::Blank, Bytes::new());
    let written = old.salvage(1, |salvage| salvage.write(&old.disk, Path::new(DIR)).unwrap());
    assert_eq!(written, None);
    assert!(old.disk.list(&Path::new(DIR).join(SALVAGE_DIR)).is_err());
}

#[test]
fn a_torn_log_is_salvaged_up_to_where_it_is_torn() {
    let mut old = Old::new();
    old.applied(write(vec![put("a", b"1")]));
    old.store.close(0).unwrap();
    old.logged(write(vec![put("a", b"durable")]));
    // The power goes while this batch is being made durable.
    old.disk.hold_syncs();
    let payload = Command::from(write(vec![put("a", &[b'x'; 3000])])).encode();
    let entry = Entry { log_id: LogId { term: 3, leader: 7, index: 2 }, kind: EntryKind::Command, payload };
    old.wal.append(vec![entry], Box::new(drop));
    old.disk.wait_for_held_sync();
    let states: Vec<SimDisk> = (0..12).map(|seed| old.disk.power_cut(seed)).collect();
    old.disk.release_syncs();
    let mut torn = 0;
    for disk in states {
        let (store, wal) = open(&disk, old.cluster);
        let last = wal.state().last.unwrap().index;
        torn += usize::from(last == 1);
        let old = Old { disk, store, wal, cluster: old.cluster, next: last + 1 };
        let file = old.salvage(0, |salvage| {
            salvage.write(&old.disk, Path::new(DIR)).unwrap();
            salvage.file_name()
        });
        let (_, writes) = lines(&old.disk, &file).unwrap();
        let fates: Vec<Fate> = writes.iter().map(|write| write.fate).collect();
        let unknown = (1..=last).map(|_| Fate::Unknown);
        assert_eq!(fates, [Fate::Applied].into_iter().chain(unknown).collect::<Vec<_>>());
    }
    assert!(torn > 0);
}

#[test]
fn after_a_cut_at_any_operation_the_file_is_whole_or_not_there() {
    let mut old = Old::new();
    old.applied(write(vec![put("shared", b"1")]));
    for n in 0..20u8 {
        old.applied(write(vec![put("key", &[n; 300])]));
    }
    old.logged(write(vec![put("key", b"log")]));
    let file = old.salvage(1, |salvage| salvage.file_name());
    let (mut whole, mut none) = (0, 0);
    for operations in 0.. {
        let disk = old.disk.process_kill();
        disk.crash_after(operations);
        let written = old.salvage(1, |salvage| salvage.write(&disk, Path::new(DIR)));
        let crashed = disk.has_crashed();
        for seed in 0..6 {
            let state = disk.power_cut(seed);
            match state.create_dir_all(&Path::new(DIR).join(SALVAGE_DIR)).map(|()| lines(&state, &file)).unwrap() {
                Some((header, writes)) => {
                    whole += 1;
                    assert_eq!(header.counts.applied + header.counts.unknown, writes.len() as u64);
                    assert_eq!(writes.len(), 21);
                }
                None => {
                    none += 1;
                    assert!(written.is_err(), "operation {operations}: it is lost");
                }
            }
            // The next attempt makes it, whatever the first left.
            old.salvage(1, |salvage| salvage.write(&state, Path::new(DIR)).unwrap());
            assert_eq!(lines(&state, &file).unwrap().1.len(), 21);
        }
        if !crashed {
            break;
        }
    }
    assert!(whole > 5 && none > 5, "{whole} {none}");
}
