use super::*;
use crate::api::{
    KeyMeta, RandomId, SALVAGE_FORMAT, SalvageCommon, SalvageCounts, SalvageFork, SalvageLost, SalvageMember,
    SalvageTimeline,
};

fn id(digit: &str) -> RandomId {
    digit.repeat(32).parse().unwrap()
}

fn header(member: &str, common: Revision) -> SalvageHeader {
    SalvageHeader {
        format: SALVAGE_FORMAT.into(),
        version: 1,
        cluster: id("c"),
        timeline: SalvageTimeline { number: 1, id: id("1") },
        onto: SalvageTimeline { number: 2, id: id("2") },
        fork: SalvageFork { position: 200, revision: 100 },
        member: SalvageMember { id: member.repeat(16), name: format!("n{member}"), site: "east".into() },
        written_ms: 1,
        common: SalvageCommon { position: Some(200), revision: common, differs_from: 201, exact: true },
        counts: SalvageCounts::default(),
        lost: SalvageLost::default(),
    }
}

fn write(position: u64, fate: Fate, ops: Vec<SalvagedOp>) -> SalvagedWrite {
    SalvagedWrite {
        position,
        term: 3,
        leader: "1".repeat(16),
        fate,
        proven: true,
        revision: (fate == Fate::Applied).then_some(position - 100),
        time_ms: 1,
        kind: SalvagedKind::Write,
        idempotency_key: None,
        thinned: false,
        conditional: false,
        ops,
        otherwise: vec![],
    }
}

fn put(key: &str, value: &str, version: u64) -> SalvagedOp {
    let op = SalvagedOp::new(SalvagedAction::Put, key.as_bytes()).with_value(value.as_bytes());
    SalvagedOp { version: Some(version), ..op }
}

fn delete(key: &str) -> SalvagedOp {
    SalvagedOp::new(SalvagedAction::Delete, key.as_bytes())
}

fn file(member: &str, writes: Vec<SalvagedWrite>) -> Salvaged {
    Salvaged { file: member.into(), header: header(member, 100), writes }
}

fn now(key: &str, value: &str, mod_revision: Revision) -> Option<KeyItem> {
    let meta = KeyMeta { create_revision: 1, mod_revision, version: 1, lease: 0 };
    Some(KeyItem { key: key.to_owned().into(), value: Some(value.to_owned().into()), meta })
}

fn shown(merged: &Merged) -> Vec<(u64, Vec<String>)> {
    let key = |change: &Final| {
        let value = change.value.as_ref().map_or("-".into(), |value| String::from_utf8_lossy(value).into_owned());
        format!("{}={value}", String::from_utf8_lossy(&change.key))
    };
    merged.units.iter().map(|unit| (unit.write.position, unit.finals.iter().map(key).collect())).collect()
}

#[test]
fn the_same_write_of_several_members_is_one_and_applied_beats_unknown() {
    let same = |fate| write(201, fate, vec![put("a", "1", 1)]);
    let mut other = same(Fate::Unknown);
    other.term = 4;
    let files = [file("1", vec![same(Fate::Unknown)]), file("2", vec![same(Fate::Applied)]), file("3", vec![other])];
    let merged = merge(&files, false).unwrap();
    assert_eq!((merged.writes, merged.superseded), (2, 1));
    let merged = merge(&files, true).unwrap();
    assert_eq!((merged.writes, shown(&merged)), (1, vec![(201, vec!["a=1".into()])]));
    assert_eq!(merged.units[0].write.fate, Fate::Applied);
}

#[test]
fn of_each_key_the_last_write_counts_and_what_was_written_together_stays_together() {
    let writes = vec![
        write(201, Fate::Applied, vec![put("a", "1", 5), put("b", "1", 1)]),
        write(202, Fate::Applied, vec![put("a", "2", 6), put("a", "3", 7)]),
        write(203, Fate::Applied, vec![delete("c")]),
        write(204, Fate::Applied, vec![put("d", "1", 1)]),
        write(205, Fate::Unknown, vec![put("d", "2", 1)]),
    ];
    let merged = merge(&[file("1", writes)], false).unwrap();
    let expected = [(201, "b=1"), (202, "a=3"), (203, "c=-"), (205, "d=2")];
    assert_eq!(shown(&merged), expected.map(|(position, key)| (position, vec![key.to_owned()])));
    assert_eq!((merged.writes, merged.superseded), (5, 1));
    let existed: Vec<Option<bool>> = merged.units.iter().map(|unit| unit.finals[0].existed).collect();
    assert_eq!(existed, [Some(false), Some(true), Some(true), Some(false)]);
}

#[test]
fn what_nobody_knows_the_outcome_of_is_left_to_a_person_and_the_system_is_told_apart() {
    let conditional = SalvagedWrite { conditional: true, ..write(201, Fate::Unknown, vec![put("a", "1", 1)]) };
    let txn = SalvagedWrite { kind: SalvagedKind::Txn, ..write(202, Fate::Unknown, vec![put("a", "1", 1)]) };
    let range = write(203, Fate::Unknown, vec![SalvagedOp::new(SalvagedAction::DeleteRange, b"a")]);
    let sequence = SalvagedOp { record: Some("sequence".into()), ..put("orders", "17", 1) };
    let system = write(204, Fate::Applied, vec![sequence]);
    let merged = merge(&[file("1", vec![conditional, txn, range, system])], false).unwrap();
    assert_eq!((merged.by_hand.len(), merged.system, merged.units.len()), (3, 1, 0));
    assert_eq!(merged.sequences, [("orders".to_owned(), 17)].into());
}

#[test]
fn files_of_different_clusters_are_refused() {
    let mut other = file("2", vec![]);
    other.header.cluster = id("d");
    assert!(merge(&[file("1", vec![]), other], false).unwrap_err().contains("different clusters"));
}

#[test]
fn the_latest_proven_common_point_counts() {
    let same = || write(201, Fate::Applied, vec![put("a", "1", 2)]);
    let mut behind = file("2", vec![SalvagedWrite { proven: false, ..same() }]);
    behind.header.common.revision = 40;
    let merged = merge(&[behind.clone(), file("1", vec![same()])], false).unwrap();
    assert_eq!((merged.units[0].since, merged.units[0].write.proven), (100, true));
    let merged = merge(&[behind], false).unwrap();
    assert_eq!((merged.units[0].since, merged.units[0].write.proven), (40, false));
}

fn unit(op: SalvagedOp, fate: Fate) -> Unit {
    merge(&[file("1", vec![write(201, fate, vec![op])])], false).unwrap().units.remove(0)
}

fn conflicts(verdict: &Verdict, why: &str) -> bool {
    matches!(verdict, Verdict::Conflict(reasons) if reasons.iter().any(|reason| reason.contains(why)))
}

#[test]
fn a_key_that_was_changed_since_the_fork_is_a_conflict() {
    let over = unit(put("a", "new", 3), Fate::Applied);
    assert_eq!(judge(&over, &[now("a", "old", 100)], false), Verdict::Apply);
    assert!(conflicts(&judge(&over, &[now("a", "old", 1 << 40)], false), "changed since the fork, at revision"));
    assert_eq!(judge(&over, &[now("a", "new", 1 << 40)], false), Verdict::Same);
    assert!(conflicts(&judge(&over, &[None], false), "deleted since"));
    assert_eq!(judge(&over, &[now("a", "old", 100)], true), Verdict::Executed);
    let created = unit(put("a", "new", 1), Fate::Applied);
    assert_eq!(judge(&created, &[None], false), Verdict::Apply);
    assert!(conflicts(&judge(&unit(put("a", "new", 1), Fate::Unknown), &[None], false), "not known"));
    let gone = unit(delete("a"), Fate::Applied);
    assert_eq!(judge(&gone, &[None], false), Verdict::Same);
    assert_eq!(judge(&gone, &[now("a", "old", 7)], false), Verdict::Apply);
    assert!(conflicts(&judge(&gone, &[now("a", "old", 101)], false), "changed since"));
    let leased = unit(SalvagedOp { lease: Some(9), ..put("a", "new", 1) }, Fate::Applied);
    assert_eq!(judge(&leased, &[None], false), Verdict::Leased);
}

#[test]
fn a_write_that_may_be_in_the_new_timeline_is_not_written_twice() {
    let mut over = unit(put("a", "new", 3), Fate::Applied);
    over.write.proven = false;
    let revision = over.write.revision.unwrap();
    assert_eq!(judge(&over, &[now("a", "new", revision)], false), Verdict::Common);
    over.since = revision - 1;
    assert!(conflicts(&judge(&over, &[now("a", "later", revision + 1)], false), "changed since"));
    over.since = 100;
    assert!(conflicts(&judge(&over, &[now("a", "old", 1)], false), "may be in the new timeline"));
}

#[test]
fn one_conflict_holds_back_all_that_was_written_together() {
    let both = write(201, Fate::Applied, vec![put("a", "1", 2), put("b", "1", 2)]);
    let both = merge(&[file("1", vec![both])], false).unwrap().units.remove(0);
    assert_eq!(judge(&both, &[now("a", "0", 5), now("b", "0", 6)], false), Verdict::Apply);
    assert!(conflicts(&judge(&both, &[now("a", "0", 5), now("b", "0", 1 << 40)], false), "changed since"));
    assert_eq!(judge(&both, &[now("a", "1", 5), now("b", "0", 6)], false), Verdict::Apply);
}
