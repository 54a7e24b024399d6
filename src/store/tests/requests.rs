//! Transactions with branches, leases and remembered outcomes, by hand.

use std::sync::Arc;

use bytes::Bytes;

use super::open;
use crate::files::sim::SimDisk;
use crate::index::MemoryIndex;
use crate::model::{
    Command, Compare, CompareOp, CompareTarget, Condition, Entry, EntryKind, Guard, IdempotencyKey, KeyMeta, KeySet,
    KeySpace, LeaseGrant, LogId, OpResult, Outcome, Request, RequestCommand, Txn, TxnItem, TxnOp, TxnOutcome,
    TxnResult, WriteOp,
};
use crate::store::Store;
use crate::store::records::OUTCOME_KEPT_MS;

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A store and the time of its log.
struct Bench {
    disk: SimDisk,
    index: Arc<MemoryIndex>,
    store: Store,
    now_ms: u64,
}

impl Bench {
    fn new() -> Bench {
        let (disk, index) = (SimDisk::new(), Arc::default());
        let store = open(&disk, &index).unwrap();
        Bench { disk, index, store, now_ms: 1000 }
    }

    fn ask(&self, idempotency: Option<&str>, request: Request) -> Outcome {
        let idempotency = idempotency.map(|name| {
            // "name" and "name!" are the same key with another request.
            let fingerprint = if name.ends_with('!') { [1; 16] } else { [0; 16] };
            IdempotencyKey { key: key(name.trim_end_matches('!')), fingerprint }
        });
        let command = Command::Request(RequestCommand { time_ms: self.now_ms, idempotency, request });
        let index = self.store.applied().map_or(0, |log_id| log_id.index + 1);
        let log_id = LogId { term: 1, leader: 1, index };
        let entry = Entry { log_id, kind: EntryKind::Command, payload: command.encode() };
        self.store.apply(&[entry]).unwrap().remove(0)
    }

    fn put(&self, name: &str, value: &str, lease: u64) -> Outcome {
        self.ask(None, write(name, value, lease))
    }

    fn txn(&self, txn: Txn) -> Outcome {
        self.ask(None, Request::Txn(txn))
    }

    fn value(&self, name: &str) -> Option<String> {
        let found = self.store.get(KeySpace::User, name.as_bytes(), None).unwrap();
        found.map(|found| String::from_utf8(found.value.to_vec()).unwrap())
    }

    fn lease_keys(&self, id: u64) -> Vec<Bytes> {
        self.store.lease_keys(id, 100).unwrap().0
    }

    /// Seals everything and opens it again.
    fn restart(self) -> Bench {
        let Bench { disk, index, store, now_ms } = self;
        let end = store.applied().unwrap().index;
        store.close(end).unwrap();
        drop(store);
        let store = open(&disk, &index).unwrap();
        Bench { disk, index, store, now_ms }
    }
}

fn write(name: &str, value: &str, lease: u64) -> Request {
    let ops = vec![WriteOp::Put { space: KeySpace::User, key: key(name), value: key(value), lease }];
    Request::Write { grant: None, guards: vec![], ops }
}

fn put(name: &str, value: &str) -> TxnOp {
    TxnOp::Put { key: key(name), value: key(value), lease: 0, previous: false }
}

fn get(name: &str) -> TxnOp {
    TxnOp::Read { keys: KeySet::One(key(name)), limit: 1, keys_only: false }
}

fn compare(name: &str, op: CompareOp, target: CompareTarget) -> Compare {
    Compare { keys: KeySet::One(key(name)), op, target }
}

fn range(start: &str, end: &str) -> KeySet {
    KeySet::Range { start: key(start), end: Some(key(end)) }
}

fn done(outcome: &Outcome) -> (u64, &TxnOutcome) {
    match outcome {
        Outcome::Txn { revision, outcome } => (*revision, outcome),
        other => panic!("{other:?}"),
    }
}

fn values(result: &TxnResult) -> Vec<String> {
    let text = |item: &TxnItem| String::from_utf8(item.value.clone().unwrap().to_vec()).unwrap();
    match result {
        TxnResult::Item(item) => item.iter().map(text).collect(),
        TxnResult::Items { items, .. } => items.iter().map(text).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_transaction_takes_one_branch_at_one_revision() {
    let bench = Bench::new();
    bench.put("a", "1", 0);
    let txn = |wanted| Txn {
        compare: vec![compare("a", CompareOp::Equal, CompareTarget::ModRevision(wanted))],
        then: vec![put("a", "2"), put("b", "2"), TxnOp::Delete { key: key("c"), previous: true }],
        otherwise: vec![get("a")],
    };
    let outcome = bench.txn(txn(7));
    let (revision, refused) = done(&outcome);
    assert_eq!((revision, refused.succeeded, values(&refused.results[0])), (1, false, vec!["1".to_owned()]));
    assert_eq!(bench.store.revision(), 1, "what only reads makes no revision");

    let outcome = bench.txn(txn(1));
    let (revision, taken) = done(&outcome);
    let a = KeyMeta { create_revision: 1, mod_revision: 2, version: 2, lease: 0 };
    let b = KeyMeta { create_revision: 2, mod_revision: 2, version: 1, lease: 0 };
    let expected = vec![
        TxnResult::Put { meta: a, previous: Some(1), replaced: None },
        TxnResult::Put { meta: b, previous: None, replaced: None },
        TxnResult::Deleted { count: 0, previous: None, deleted: Some(None) },
    ];
    assert_eq!((revision, taken.succeeded, &taken.results), (2, true, &expected));
}

#[test]
fn comparisons_look_at_what_was_before_and_reads_at_what_is_now() {
    let bench = Bench::new();
    bench.put("a", "1", 0);
    bench.put("b", "1", 0);
    let nested = Txn {
        compare: vec![compare("a", CompareOp::Equal, CompareTarget::Value(key("1")))],
        then: vec![get("a"), TxnOp::Read { keys: range("a", "d"), limit: 10, keys_only: false }],
        otherwise: vec![],
    };
    let then = vec![
        TxnOp::Put { key: key("a"), value: key("2"), lease: 0, previous: true },
        TxnOp::Delete { key: key("b"), previous: true },
        put("c", "3"),
        TxnOp::Txn(nested),
    ];
    let outcome = bench.txn(Txn { compare: vec![], then, otherwise: vec![] });
    let (_, outer) = done(&outcome);
    for (at, was) in [(0, "1"), (1, "1")] {
        let (TxnResult::Put { replaced: old, .. } | TxnResult::Deleted { deleted: old, .. }) = &outer.results[at]
        else {
            panic!("{:?}", outer.results[at]);
        };
        assert_eq!(old.as_ref().unwrap().as_ref().unwrap().value, Some(key(was)));
    }
    let TxnResult::Txn(inner) = &outer.results[3] else { panic!("{outer:?}") };
    assert!(inner.succeeded, "the nested comparison saw what the outer put wrote");
    assert_eq!(values(&inner.results[0]), ["2"]);
    assert_eq!(values(&inner.results[1]), ["2", "3"]);
}

#[test]
fn every_comparison_means_what_it_says() {
    use CompareOp::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let bench = Bench::new();
    bench.put("x", "0", 0);
    bench.put("a", "m", 0);
    bench.put("a", "m", 0);
    let holds = |compare| {
        let outcome = bench.txn(Txn { compare: vec![compare], then: vec![], otherwise: vec![] });
        done(&outcome).1.succeeded
    };
    for (target, there, absent) in [
        (CompareTarget::ModRevision as fn(u64) -> CompareTarget, 3, 0),
        (CompareTarget::CreateRevision, 2, 0),
        (CompareTarget::Version, 2, 0),
        (CompareTarget::Lease, 0, 0),
    ] {
        for (name, value) in [("a", there), ("none", absent)] {
            for wanted in [0, 1, 2, 3, 4] {
                let expected = [
                    (Equal, value == wanted),
                    (NotEqual, value != wanted),
                    (Less, value < wanted),
                    (LessOrEqual, value <= wanted),
                    (Greater, value > wanted),
                    (GreaterOrEqual, value >= wanted),
                ];
                for (op, expected) in expected {
                    assert_eq!(
                        holds(compare(name, op, target(wanted))),
                        expected,
                        "{name} {op:?} {:?}",
                        target(wanted)
                    );
                }
            }
        }
    }
    for (op, wanted, there) in [
        (Equal, "m", true),
        (Equal, "n", false),
        (NotEqual, "n", true),
        (Less, "n", true),
        (Greater, "l", true),
        (LessOrEqual, "l", false),
        (GreaterOrEqual, "m", true),
    ] {
        assert_eq!(holds(compare("a", op, CompareTarget::Value(key(wanted)))), there, "{op:?} {wanted}");
        let absent = holds(compare("none", op, CompareTarget::Value(key(wanted))));
        assert_eq!(absent, op == NotEqual, "a key that does not exist, {op:?} {wanted}");
    }
    let ranged = |op, number| holds(Compare { keys: range("a", "z"), op, target: CompareTarget::Version(number) });
    assert!(ranged(GreaterOrEqual, 1) && !ranged(GreaterOrEqual, 2) && !ranged(Equal, 2));
    assert!(holds(Compare { keys: range("m", "n"), op: Equal, target: CompareTarget::Version(77) }), "of no key");
}

#[test]
fn a_key_written_twice_is_refused_and_nothing_is_done() {
    let bench = Bench::new();
    bench.put("k1", "1", 0);
    let delete = |name| TxnOp::Delete { key: key(name), previous: false };
    let delete_range = |start, end| TxnOp::DeleteRange { start: key(start), end: Some(key(end)) };
    let nested = |op| TxnOp::Txn(Txn { then: vec![op], ..Txn::default() });
    for (ops, named) in [
        (vec![put("a", "1"), put("a", "2")], "a"),
        (vec![put("a", "1"), nested(put("a", "2"))], "a"),
        (vec![delete("k1"), put("k1", "2")], "k1"),
        (vec![put("k1", "2"), delete("k1")], "k1"),
        (vec![put("k2", "2"), delete_range("k", "l")], "k2"),
        (vec![delete_range("k", "l"), put("k1", "2")], "k1"),
    ] {
        let outcome = bench.txn(Txn { then: ops.clone(), ..Txn::default() });
        assert_eq!(outcome, Outcome::WrittenTwice { revision: 1, key: key(named) }, "{ops:?}");
        assert_eq!((bench.store.revision(), bench.value("k1")), (1, Some("1".to_owned())));
    }
    // The branch that is not taken does not count.
    let never = Txn {
        compare: vec![compare("k1", CompareOp::Equal, CompareTarget::Version(9))],
        then: vec![put("a", "1")],
        otherwise: vec![],
    };
    let outcome = bench.txn(Txn { then: vec![put("a", "1"), TxnOp::Txn(never)], ..Txn::default() });
    assert_eq!(done(&outcome).0, 2);
}

#[test]
fn what_reads_too_much_is_refused_and_nothing_is_done() {
    let bench = Bench::new();
    let big = "x".repeat(1 << 20);
    for name in ["a", "b", "c", "d", "e"] {
        bench.put(name, &big, 0);
    }
    let read = |end| TxnOp::Read { keys: range("a", end), limit: 10, keys_only: false };
    let outcome = bench.txn(Txn { then: vec![put("z", "1"), read("z")], ..Txn::default() });
    assert_eq!(outcome, Outcome::TooLarge { revision: 5 });
    assert_eq!(bench.value("z"), None);
    assert!(matches!(bench.txn(Txn { then: vec![put("z", "1"), read("d")], ..Txn::default() }), Outcome::Txn { .. }));
    // An outcome that cannot be remembered is refused as well.
    let keyed = bench.ask(Some("once"), Request::Txn(Txn { then: vec![put("y", "1"), get("a")], ..Txn::default() }));
    assert_eq!((keyed, bench.value("y")), (Outcome::TooLarge { revision: 6 }, None));
    // The refusal is an outcome like any other: with a smaller value the repeat would be executed after all.
    bench.put("a", "small", 0);
    let keyed = bench.ask(Some("once"), Request::Txn(Txn { then: vec![put("y", "1"), get("a")], ..Txn::default() }));
    let first = Box::new(Outcome::TooLarge { revision: 6 });
    assert_eq!((keyed, bench.value("y")), (Outcome::Replayed(first), None));
    assert_eq!(bench.store.records().outcomes, 1);
}

#[test]
fn a_repeated_request_is_answered_and_not_executed() {
    let mut bench = Bench::new();
    let counted = Txn { then: vec![get("n"), put("n", "1")], ..Txn::default() };
    let first = bench.ask(Some("t1"), Request::Txn(counted.clone()));
    let guarded = |name: &str| Request::Write {
        grant: None,
        guards: vec![Guard { key: key("n"), condition: Condition::Absent }],
        ops: vec![WriteOp::Delete { space: KeySpace::User, key: key(name) }],
    };
    let refused = bench.ask(Some("t2"), guarded("n"));
    assert!(matches!(refused, Outcome::Refused { guard: 0, current: Some(_), .. }), "{refused:?}");
    let granted = bench.ask(Some("t3"), Request::Grant(LeaseGrant { id: 5, ttl_ms: 1000 }));
    // The guard would hold now: what was refused stays refused.
    bench.ask(
        None,
        Request::Write {
            grant: None,
            guards: vec![],
            ops: vec![WriteOp::Delete { space: KeySpace::User, key: key("n") }],
        },
    );
    for restarted in [false, true] {
        if restarted {
            bench = bench.restart();
        }
        let revision = bench.store.revision();
        assert_eq!(bench.store.records().outcomes, 3, "restarted: {restarted}");
        let replayed = |outcome: &Outcome| Outcome::Replayed(Box::new(outcome.clone()));
        assert_eq!(bench.ask(Some("t1"), Request::Txn(counted.clone())), replayed(&first));
        assert_eq!(bench.ask(Some("t2"), guarded("n")), replayed(&refused));
        let again = bench.ask(Some("t3"), Request::Grant(LeaseGrant { id: 6, ttl_ms: 1000 }));
        assert_eq!(again, replayed(&granted));
        assert_eq!(bench.ask(Some("t1!"), write("m", "1", 0)), Outcome::OtherRequest { revision });
        assert_eq!((bench.store.revision(), bench.value("n"), bench.value("m")), (revision, None, None));
    }
}

#[test]
fn outcomes_are_forgotten_after_their_time_and_not_before() {
    let mut bench = Bench::new();
    for (name, at_ms) in [("a", 1000), ("b", 2000), ("c", 3000)] {
        bench.now_ms = at_ms;
        bench.ask(Some(name), write(name, "1", 0));
    }
    let sweep = |bench: &Bench, max| match bench.ask(None, Request::Sweep { max }) {
        Outcome::Written { results, .. } => match results.as_slice() {
            [OpResult::Deleted { count, .. }] => *count,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    bench.now_ms = 1000 + OUTCOME_KEPT_MS - 1;
    assert!(!bench.store.has_expired_outcomes(bench.now_ms).unwrap());
    assert_eq!(sweep(&bench, 10), 0);
    bench.now_ms = 2000 + OUTCOME_KEPT_MS;
    assert!(bench.store.has_expired_outcomes(bench.now_ms).unwrap());
    assert_eq!((sweep(&bench, 1), sweep(&bench, 1), sweep(&bench, 1)), (1, 1, 0));
    assert!(!bench.store.has_expired_outcomes(bench.now_ms).unwrap());
    assert!(!bench.store.remembers(b"b").unwrap() && bench.store.remembers(b"c").unwrap());
    assert!(matches!(bench.ask(Some("a"), write("a", "2", 0)), Outcome::Written { .. }), "a new request");
    let bench = bench.restart();
    assert_eq!(bench.store.records().outcomes, 2);
    // A leader whose clock runs behind does not make outcomes live shorter: the log's clock never goes back.
    assert!(!bench.store.has_expired_outcomes(bench.now_ms).unwrap());
}

#[test]
fn keys_hang_on_the_lease_they_were_written_with_last() {
    let bench = Bench::new();
    assert_eq!(bench.put("a", "1", 7), Outcome::NoLease { revision: 0, lease: 7 });
    let grant = |id| bench.ask(None, Request::Grant(LeaseGrant { id, ttl_ms: 5000 }));
    assert!(matches!(grant(7), Outcome::Written { .. }) && matches!(grant(8), Outcome::Written { .. }));
    assert_eq!(grant(7), Outcome::LeaseExists { revision: 2, lease: 7 });
    for (name, lease) in [("a", 7), ("b", 7), ("c", 7), ("d", 7), ("e", 8)] {
        bench.put(name, "1", lease);
    }
    bench.put("a", "2", 0);
    bench.put("b", "2", 8);
    bench.txn(Txn { then: vec![TxnOp::DeleteRange { start: key("c"), end: Some(key("d")) }], ..Txn::default() });
    assert_eq!((bench.lease_keys(7), bench.lease_keys(8)), (vec![key("d")], vec![key("b"), key("e")]));
    let bench = bench.restart();
    assert_eq!((bench.store.records().leases, bench.store.leases(0, 10).unwrap().0.len()), (2, 2));

    let revoke = |id, granted, max_keys| bench.ask(None, Request::Revoke { id, granted, term: 0, max_keys });
    let deleted = |outcome| match outcome {
        Outcome::Written { results, .. } => match results.as_slice() {
            [OpResult::Deleted { count, .. }] => *count,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    // In parts, and the lease goes with the last of them.
    assert_eq!(deleted(revoke(8, 0, 1)), 1);
    assert_eq!(
        (bench.value("b"), bench.value("e"), bench.store.lease(8).unwrap().is_some()),
        (None, Some("1".into()), true)
    );
    assert_eq!(deleted(revoke(8, 0, 10)), 1);
    assert_eq!((bench.value("e"), bench.store.lease(8).unwrap()), (None, None));
    assert!(matches!(revoke(8, 0, 10), Outcome::NoLease { lease: 8, .. }));
    // The end of a lease that was granted anew is the end of another lease.
    let granted = bench.store.lease(7).unwrap().unwrap().granted;
    // What the leader of another term counted is void; entries here are of term 1.
    let of_term = |term| bench.ask(None, Request::Revoke { id: 7, granted, term, max_keys: 0 });
    assert!(matches!(of_term(2), Outcome::NoLease { lease: 7, .. }));
    assert_eq!(deleted(of_term(1)), 0);
    assert!(matches!(revoke(7, granted + 1, 10), Outcome::NoLease { lease: 7, .. }));
    assert_eq!(deleted(revoke(7, granted, 10)), 1);
    assert_eq!((bench.value("a"), bench.value("d")), (Some("2".into()), None));
    assert_eq!(bench.store.records().leases, 0);
}

#[test]
fn a_write_grants_its_lease_or_does_nothing() {
    let bench = Bench::new();
    let request = |condition| Request::Write {
        grant: Some(LeaseGrant { id: 9, ttl_ms: 1000 }),
        guards: vec![Guard { key: key("a"), condition }],
        ops: vec![WriteOp::Put { space: KeySpace::User, key: key("a"), value: key("1"), lease: 9 }],
    };
    assert!(matches!(bench.ask(None, request(Condition::Exists)), Outcome::Refused { .. }));
    assert_eq!((bench.store.lease(9).unwrap(), bench.store.revision()), (None, 0));
    assert!(matches!(bench.ask(None, request(Condition::Absent)), Outcome::Written { revision: 1, .. }));
    assert_eq!(bench.lease_keys(9), vec![key("a")]);
    assert_eq!(bench.store.lease(9).unwrap().unwrap().ttl_ms, 1000);
}

/// Sealing, caches and restarts are this member's own business: what comes of a request is not.
#[test]
fn members_that_seal_and_restart_differently_agree() {
    let (mut one, mut two) = (Bench::new(), Bench::new());
    for step in 0..600u64 {
        let name = format!("k{}", step % 17);
        let request = match step % 7 {
            0 => Request::Grant(LeaseGrant { id: step + 1, ttl_ms: 1000 }),
            1 | 2 => write(&name, &step.to_string().repeat(20), step - step % 7 + 1),
            3 => Request::Txn(Txn {
                compare: vec![compare(&name, CompareOp::Greater, CompareTarget::Version(2))],
                then: vec![TxnOp::DeleteRange { start: key("k1"), end: Some(key("k3")) }, get("k5")],
                otherwise: vec![put(&name, "x"), TxnOp::Read { keys: range("k", "l"), limit: 5, keys_only: false }],
            }),
            4 => Request::Revoke { id: step.saturating_sub(30), granted: 0, term: step % 5 / 4, max_keys: 3 },
            5 => write(&name, "keyed", 0),
            _ => Request::Sweep { max: 3 },
        };
        let idempotency = (step % 3 == 0).then(|| format!("key-{}", step % 90));
        for bench in [&mut one, &mut two] {
            bench.now_ms = step * 20 * 60 * 1000;
        }
        let outcome = one.ask(idempotency.as_deref(), request.clone());
        assert_eq!(two.ask(idempotency.as_deref(), request), outcome, "step {step}");
        if step % 50 == 49 {
            two = two.restart();
        }
        if step % 23 == 0 {
            one.store.seal_all(u64::MAX).unwrap();
        }
        assert_eq!(one.store.chain(), two.store.chain(), "step {step}");
        assert_eq!(one.store.records().outcomes, two.store.records().outcomes, "step {step}");
        assert_eq!(one.store.records().leases, two.store.records().leases, "step {step}");
    }
}
