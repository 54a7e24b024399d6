//! Commands and outcomes come back from their bytes, and nothing that is cut or damaged panics.

use super::*;
use crate::model::{IdempotencyKey, Request, idempotency_of, new_random_id};

fn samples() -> Vec<Command> {
    let key = |s: &'static str| Bytes::from_static(s.as_bytes());
    vec![
        Command::Found { time_ms: 7, cluster: new_random_id(), timeline: new_random_id() },
        Command::Begin(BeginTimeline {
            time_ms: 8,
            id: new_random_id(),
            parent: new_random_id(),
            offset: u64::MAX,
            record: key("{}"),
        }),
        Command::Write(WriteCommand::default()),
        Command::Write(WriteCommand {
            time_ms: u64::MAX,
            guards: vec![
                Guard { key: key("a"), condition: Condition::Absent },
                Guard { key: key("b"), condition: Condition::Exists },
                Guard { key: key("c"), condition: Condition::ModRevisionIn(vec![1, 1 << 50]) },
                Guard { key: key(""), condition: Condition::ModRevisionNotIn(vec![]) },
            ],
            ops: vec![
                WriteOp::Put { space: KeySpace::User, key: key("k"), value: vec![0; 300].into(), lease: 9 },
                WriteOp::Delete { space: KeySpace::System, key: key("k") },
                WriteOp::DeleteRange { space: KeySpace::User, start: key("a"), end: Some(key("b")) },
                WriteOp::DeleteRange { space: KeySpace::User, start: key(""), end: None },
            ],
        }),
    ]
    .into_iter()
    .chain(requests())
    .collect()
}

fn requests() -> Vec<Command> {
    use crate::model::{Compare, CompareOp, CompareTarget, IdempotencyKey, KeySet, LeaseGrant, Request, Txn, TxnOp};
    let key = |s: &'static str| Bytes::from_static(s.as_bytes());
    let range = |end| KeySet::Range { start: key("a"), end };
    let compare = |keys, op, target| Compare { keys, op, target };
    let inner = Txn {
        compare: vec![
            compare(KeySet::One(key("k")), CompareOp::Equal, CompareTarget::Version(3)),
            compare(range(None), CompareOp::NotEqual, CompareTarget::Lease(1 << 50)),
        ],
        then: vec![TxnOp::DeleteRange { start: key("x"), end: None }],
        otherwise: vec![],
    };
    let txn = Txn {
        compare: vec![
            compare(range(Some(key("b"))), CompareOp::Less, CompareTarget::Value(key("v"))),
            compare(KeySet::One(key("k")), CompareOp::LessOrEqual, CompareTarget::ModRevision(1)),
            compare(KeySet::One(key("k")), CompareOp::GreaterOrEqual, CompareTarget::CreateRevision(1)),
            compare(KeySet::One(key("k")), CompareOp::Greater, CompareTarget::CreateRevision(1)),
        ],
        then: vec![
            TxnOp::Put { key: key("k"), value: key("v"), lease: 4, previous: true },
            TxnOp::Delete { key: key("d"), previous: false },
            TxnOp::Read { keys: range(None), limit: 10, keys_only: true },
        ],
        otherwise: vec![TxnOp::Txn(inner)],
    };
    let grant = LeaseGrant { id: 7, ttl_ms: 30_000 };
    let put = WriteOp::Put { space: KeySpace::User, key: key("k"), value: key("v"), lease: 7 };
    let guard = Guard { key: key("k"), condition: Condition::Absent };
    let write = Request::Write { grant: Some(grant), guards: vec![guard], ops: vec![put] };
    let keyed = || Some(IdempotencyKey { key: key("once"), fingerprint: [9; 16] });
    [
        (keyed(), write),
        (None, Request::Txn(txn)),
        (keyed(), Request::Grant(grant)),
        (None, Request::Revoke { id: 7, granted: 4, term: 2, max_keys: 10 }),
        (None, Request::Sweep { max: 9 }),
        (keyed(), Request::Sequence { name: key("orders"), count: 10, step: 0 }),
        (None, Request::Sequence { name: key("orders"), count: 1_000_000, step: 1 << 40 }),
        (None, Request::Canary),
        (None, Request::Record { key: key("maintenance"), written: 0, value: Some(key("{}")) }),
        (None, Request::Record { key: key("maintenance"), written: 1 << 41, value: None }),
    ]
    .map(|(idempotency, request)| Command::Request(RequestCommand { time_ms: 5, idempotency, request }))
    .into()
}

fn txn_outcome(meta: KeyMeta) -> TxnOutcome {
    use crate::model::{TxnItem, TxnResult};
    let item = |value| TxnItem { key: Bytes::from_static(b"k"), meta, value };
    let value = Some(Bytes::from_static(b"v"));
    let nested = TxnOutcome { succeeded: false, results: vec![TxnResult::Item(None)] };
    let results = vec![
        TxnResult::Put { meta, previous: None, replaced: None },
        TxnResult::Put { meta, previous: Some(3), replaced: Some(Some(item(value))) },
        TxnResult::Deleted { count: 1, previous: None, deleted: Some(None) },
        TxnResult::Items { items: vec![item(None)], more: true },
        TxnResult::Txn(nested),
    ];
    TxnOutcome { succeeded: true, results }
}

#[test]
fn commands_come_back() {
    for command in samples() {
        assert_eq!(Command::decode(&command.encode()), Ok(command));
    }
}

#[test]
fn the_idempotency_key_is_found_without_decoding() {
    let keyed = |command: &Command| match command {
        Command::Request(RequestCommand { idempotency: Some(key), .. }) => Some(key.key.clone()),
        _ => None,
    };
    let long = IdempotencyKey { key: vec![7; 300].into(), fingerprint: [0; 16] };
    let sweep = Request::Sweep { max: 1 };
    let long = Command::Request(RequestCommand { time_ms: 1, idempotency: Some(long), request: sweep });
    for command in samples().into_iter().chain([long]) {
        let bytes = command.encode();
        assert_eq!(idempotency_of(&bytes).map(Bytes::copy_from_slice), keyed(&command), "{command:?}");
        for end in 0..bytes.len() {
            let _no_panic = idempotency_of(&bytes[..end]);
        }
    }
}

#[test]
fn no_truncation_decodes_and_no_flip_panics() {
    for command in samples() {
        let bytes = command.encode();
        for end in 0..bytes.len() {
            assert!(Command::decode(&bytes.slice(..end)).is_err(), "cut at {end} of {command:?}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 0x81;
            let _may_be_anything_but_a_panic = Command::decode(&flipped.into());
        }
    }
}

#[test]
fn outcomes_come_back_and_no_truncation_decodes() {
    let meta = KeyMeta { create_revision: 1, mod_revision: 1 << 41, version: 3, lease: 0 };
    let outcomes = [
        Outcome::None,
        Outcome::Written { revision: 9, results: vec![] },
        Outcome::Written {
            revision: 9,
            results: vec![
                OpResult::Put { meta, previous: None },
                OpResult::Put { meta, previous: Some(8) },
                OpResult::Deleted { count: 2, previous: None },
                OpResult::Deleted { count: 1, previous: Some(3) },
            ],
        },
        Outcome::TooLarge { revision: 9 },
        Outcome::NoLease { revision: 9, lease: 7 },
        Outcome::LeaseExists { revision: 9, lease: 7 },
        Outcome::WrittenTwice { revision: 9, key: Bytes::from_static(b"k") },
        Outcome::OtherRequest { revision: 9 },
        Outcome::Sequence { revision: 9, numbers: SequenceNumbers { first: 1, last: 1 << 52, step: 7, unique: true } },
        Outcome::Replayed(Box::new(Outcome::Sequence {
            revision: 9,
            numbers: SequenceNumbers { first: 3, last: 3, step: 1, unique: false },
        })),
        Outcome::SequenceRefused { revision: 9, why: SequenceRefusal::OtherStep { step: 300 } },
        Outcome::SequenceRefused { revision: 9, why: SequenceRefusal::Exhausted { last: 1 << 52 } },
        Outcome::SequenceRefused { revision: 9, why: SequenceRefusal::BadCount },
        Outcome::Replayed(Box::new(Outcome::Txn { revision: 9, outcome: txn_outcome(meta) })),
        Outcome::Refused { revision: 9, guard: 0, current: None },
        Outcome::Refused { revision: 9, guard: 4, current: Some(meta) },
    ];
    for outcome in outcomes {
        let mut out = Vec::new();
        outcome.encode_into(&mut out);
        let bytes = Bytes::from(out);
        for end in 0..bytes.len() {
            assert!(Outcome::decode(&mut Reader::new(bytes.slice(..end))).is_err(), "cut at {end} of {outcome:?}");
        }
        let mut reader = Reader::new(bytes);
        assert_eq!(Outcome::decode(&mut reader), Ok(outcome));
        assert_eq!(reader.remaining(), 0);
    }
}

#[test]
fn the_time_of_any_command_can_be_set_after_it_was_encoded() {
    for command in samples() {
        let shared = command.encode();
        match Command::decode(&set_time(shared.clone(), 77)).unwrap() {
            Command::Write(write) => assert_eq!(write.time_ms, 77),
            Command::Found { time_ms, .. } => assert_eq!(time_ms, 77),
            Command::Request(request) => assert_eq!(request.time_ms, 77),
            Command::Begin(begin) => assert_eq!(begin.time_ms, 77),
        }
        assert_eq!(Command::decode(&shared), Ok(command));
    }
}
