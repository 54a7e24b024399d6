//! The judge of histories on trial: what it must accept, and above all what it must refuse.
//!
//! A checker that accepts everything would make every fault test pass. So each kind of mistake that a replicated store
//! can make is planted here in a small history, and in a long one.

#![allow(clippy::unwrap_used)]

mod support;

use rand::Rng;
use serde_json::json;
use support::Seed;
use support::history::{Asked, By, Condition, Glimpse, History, NEVER, Record, Told, Verdict};
use support::timelines::{Fork, JournalFate};
use support::workload::Journal;

const A: u64 = 1;
const B: u64 = 2;
const C: u64 = 3;

/// The revision under which a value is written in these histories.
fn revision(value: u64) -> u64 {
    value * 10
}

fn record(began: i64, ended: i64, asked: Asked, told: Told) -> Record {
    Record { key: 0, who: "a client".into(), began, ended, asked, told, by: By::default() }
}

fn wrote(began: i64, ended: i64, value: u64, previous: Option<u64>) -> Record {
    let told = Told::Done { revision: Some(revision(value)), previous: previous.map(revision) };
    record(began, ended, Asked::Put(value, Condition::Always), told)
}

fn swapped(began: i64, ended: i64, from: u64, to: u64) -> Record {
    let told = Told::Done { revision: Some(revision(to)), previous: Some(revision(from)) };
    record(began, ended, Asked::Put(to, Condition::Holds(from)), told)
}

fn read(began: i64, ended: i64, value: Option<u64>) -> Record {
    let told = value.map_or(Told::Nothing, |value| Told::Value(value, revision(value)));
    record(began, ended, Asked::Get, told)
}

fn unknown(began: i64, value: u64) -> Record {
    record(began, NEVER, Asked::Put(value, Condition::Always), Told::Unknown)
}

fn judge(records: Vec<Record>) -> Verdict {
    History { records, glimpses: Vec::new() }.judge(None)
}

#[track_caller]
fn accept(records: Vec<Record>) {
    assert_eq!(judge(records), Verdict::Linearizable);
}

#[track_caller]
fn refuse(records: Vec<Record>) {
    let verdict = judge(records);
    assert!(matches!(verdict, Verdict::Refused(_)), "the judge let it pass: {verdict:?}");
}

#[test]
fn what_one_client_does_in_turn_is_accepted() {
    let deleted = Told::Done { revision: Some(99), previous: Some(revision(B)) };
    accept(vec![
        read(0, 1, None),
        wrote(2, 3, A, None),
        read(4, 5, Some(A)),
        swapped(6, 7, A, B),
        record(8, 9, Asked::Put(C, Condition::Holds(A)), Told::ConditionFailed(Some(revision(B)))),
        record(10, 11, Asked::Put(C, Condition::Absent), Told::ConditionFailed(Some(revision(B)))),
        read(12, 13, Some(B)),
        record(14, 15, Asked::Delete(Condition::Always), deleted),
        record(16, 17, Asked::Delete(Condition::Always), Told::Done { revision: None, previous: None }),
        read(18, 19, None),
    ]);
}

#[test]
fn writes_at_the_same_time_may_take_either_order() {
    for last in [A, B] {
        let first = A + B - last;
        accept(vec![wrote(0, 10, first, None), wrote(1, 9, last, Some(first)), read(11, 12, Some(last))]);
    }
}

#[test]
fn a_read_during_a_write_may_see_either_value() {
    for seen in [A, B] {
        accept(vec![wrote(0, 1, A, None), wrote(2, 9, B, Some(A)), read(3, 4, Some(seen))]);
    }
}

#[test]
fn an_unknown_write_may_take_effect_at_once_later_or_never() {
    accept(vec![wrote(0, 1, A, None), unknown(2, B), read(3, 4, Some(B))]);
    accept(vec![wrote(0, 1, A, None), unknown(2, B), read(3, 4, Some(A)), read(5, 6, Some(B))]);
    accept(vec![wrote(0, 1, A, None), unknown(2, B), read(3, 4, Some(A)), read(5, 6, Some(A))]);
}

#[test]
fn an_unknown_write_may_be_known_only_by_what_it_hid() {
    // Nobody read B, so nobody knows its revision; the write of C says that it replaced something else than A.
    let told = Told::Done { revision: Some(revision(C)), previous: Some(777) };
    accept(vec![wrote(0, 1, A, None), unknown(2, B), record(3, 4, Asked::Put(C, Condition::Always), told)]);
}

#[test]
fn a_stale_read_is_refused() {
    refuse(vec![wrote(0, 1, A, None), wrote(2, 3, B, Some(A)), read(4, 5, Some(A))]);
    refuse(vec![wrote(0, 1, A, None), read(2, 3, None)]);
}

#[test]
fn a_lost_update_is_refused() {
    // Both read A and both say that they replaced A.
    refuse(vec![wrote(0, 1, A, None), swapped(2, 9, A, B), swapped(3, 8, A, C)]);
    // An acknowledged write that nobody can see, although nothing replaced it.
    refuse(vec![wrote(0, 1, A, None), wrote(2, 3, B, Some(A)), wrote(4, 5, C, Some(A))]);
}

#[test]
fn an_acknowledged_write_that_vanished_is_refused() {
    refuse(vec![wrote(0, 1, A, None), wrote(2, 3, B, Some(A)), read(4, 5, Some(B)), read(6, 7, Some(A))]);
}

#[test]
fn a_compare_and_set_that_succeeded_twice_is_refused() {
    let again = Told::Done { revision: Some(revision(C)), previous: Some(revision(A)) };
    let again = record(4, 5, Asked::Put(C, Condition::Holds(A)), again);
    refuse(vec![wrote(0, 1, A, None), swapped(2, 3, A, B), again]);
    let create = |at: i64, value: u64| {
        let told = Told::Done { revision: Some(revision(value)), previous: None };
        record(at, at + 5, Asked::Put(value, Condition::Absent), told)
    };
    refuse(vec![create(0, A), create(1, B)]);
}

#[test]
fn a_condition_that_failed_although_it_held_is_refused() {
    let failed = record(2, 3, Asked::Put(B, Condition::Holds(A)), Told::ConditionFailed(Some(revision(A))));
    refuse(vec![wrote(0, 1, A, None), failed]);
    let failed = record(0, 1, Asked::Put(B, Condition::Absent), Told::ConditionFailed(None));
    refuse(vec![failed]);
}

#[test]
fn a_write_refused_as_not_applied_that_appears_is_refused() {
    let promise = record(2, 3, Asked::Put(B, Condition::Always), Told::NotApplied);
    accept(vec![wrote(0, 1, A, None), promise.clone(), read(4, 5, Some(A))]);
    refuse(vec![wrote(0, 1, A, None), promise.clone(), read(4, 5, Some(B))]);
    // A stale read is no part of the order, but it must not see the value either.
    let glimpses = vec![Glimpse { key: 0, value: B, revision: revision(B), by: By::default() }];
    let verdict = History { records: vec![wrote(0, 1, A, None), promise], glimpses }.judge(None);
    assert!(matches!(verdict, Verdict::Refused(_)), "{verdict:?}");
    // Nor may a delete that was refused empty the register.
    let promise = record(2, 3, Asked::Delete(Condition::Always), Told::NotApplied);
    refuse(vec![wrote(0, 1, A, None), promise, read(4, 5, None)]);
}

#[test]
fn a_write_whose_condition_failed_and_that_appears_is_refused() {
    let failed = record(2, 3, Asked::Put(B, Condition::Absent), Told::ConditionFailed(Some(revision(A))));
    refuse(vec![wrote(0, 1, A, None), failed, read(4, 5, Some(B))]);
}

#[test]
fn reads_that_go_backwards_between_members_are_refused() {
    // While a write is on its way one member shows it and then another does not.
    refuse(vec![wrote(0, 1, A, None), wrote(2, 20, B, Some(A)), read(3, 4, Some(B)), read(5, 6, Some(A))]);
    // The same with a write whose fate is unknown: once seen it has taken effect.
    refuse(vec![wrote(0, 1, A, None), unknown(2, B), read(3, 4, Some(B)), read(5, 6, Some(A))]);
}

#[test]
fn an_unknown_write_that_takes_effect_twice_is_refused() {
    refuse(vec![
        wrote(0, 1, A, None),
        unknown(2, B),
        read(3, 4, Some(B)),
        wrote(5, 6, C, Some(B)),
        read(7, 8, Some(B)),
    ]);
}

#[test]
fn a_value_from_nowhere_is_refused() {
    refuse(vec![wrote(0, 1, A, None), read(2, 3, Some(B))]);
}

#[test]
fn members_that_disagree_about_revisions_are_refused() {
    // The same value under two revisions.
    let told = Told::Value(A, revision(A) + 1);
    refuse(vec![wrote(0, 1, A, None), record(2, 3, Asked::Get, told)]);
    // Two values under one revision, of different keys even.
    let mut other = wrote(2, 3, B, None);
    other.key = 1;
    other.told = Told::Done { revision: Some(revision(A)), previous: None };
    refuse(vec![wrote(0, 1, A, None), other]);
}

#[test]
fn keys_are_judged_apart_and_one_bad_key_spoils_all() {
    let of_key = |key: u32, mut record: Record| {
        record.key = key;
        record
    };
    let fine = vec![wrote(0, 1, A, None), of_key(1, wrote(2, 3, B, None)), read(4, 5, Some(A))];
    accept(fine.clone());
    refuse([fine, vec![of_key(1, read(6, 7, None))]].concat());
}

/// A long history of many clients made by a real register, and the same with one read made stale.
#[test]
fn one_stale_read_among_thousands_is_found() {
    let seed = Seed::for_test("one_stale_read_among_thousands_is_found");
    let mut rng = seed.rng(0);
    let mut records = Vec::new();
    let mut state = None;
    let mut overwritten = Vec::new();
    for number in 1..4000_u64 {
        let moment = number as i64 * 100;
        // Every operation takes effect at its moment and overlaps with several neighbours.
        let (began, ended) = (moment - rng.random_range(1..300), moment + rng.random_range(1..300));
        if rng.random_bool(0.5) {
            records.push(read(began, ended, state));
        } else {
            records.push(wrote(began, ended, number, state));
            overwritten.extend(state.map(|old| (ended, old)));
            state = Some(number);
        }
    }
    accept(records.clone());
    let (replaced, old) = overwritten[overwritten.len() / 2];
    records.push(read(replaced + 1000, replaced + 1001, Some(old)));
    refuse(records);
}

const OLD: u128 = 1;
const NEW: u128 = 2;
/// Where the new timeline begins in these histories.
const BASE: u64 = 1000;

/// A fork at revision 20, where the register holds `held`: a value that has the revision of its name.
fn fork(held: Option<u64>) -> Fork {
    let content = held.map(|value| {
        json!({ "key": "register/0", "value": value.to_string(), "mod_revision": revision(value) }).to_string()
    });
    let content = content.into_iter().collect();
    Fork { old: OLD, new: NEW, revision: 20, base: BASE, content, ordered: 100, lost: [0].into() }
}

/// The member of the lost site answers on the old timeline, another one on the new.
fn on(timeline: u128, record: Record) -> Record {
    let by = By { member: usize::from(timeline == NEW), timeline: Some(timeline) };
    Record { by, ..record }
}

/// A write of the new timeline, over the value that was there.
fn wrote_anew(began: i64, value: u64, previous: Option<u64>) -> Record {
    let told = Told::Done { revision: Some(BASE + value), previous: previous.map(revision) };
    on(NEW, record(began, began + 1, Asked::Put(value, Condition::Always), told))
}

fn parted(held: Option<u64>, records: Vec<Record>) -> Result<JournalFate, String> {
    fork(held).judge(&History { records, glimpses: Vec::new() }, &Journal::default(), &[], None)
}

#[track_caller]
fn refuse_parted(held: Option<u64>, records: Vec<Record>, part: &str) {
    let why = parted(held, records).expect_err("the judge let it pass");
    assert!(why.contains(part), "{part:?} in {why}");
}

#[test]
fn two_timelines_that_part_at_a_fork_are_accepted() {
    let old = |more: Vec<Record>| {
        let all = [wrote(0, 1, A, None), wrote(2, 3, B, Some(A))].into_iter().chain(more);
        all.map(|record| on(OLD, record)).collect::<Vec<_>>()
    };
    // C is behind the fork: the old timeline goes on with it, the new one with what was there before.
    let mut records = old(vec![wrote(4, 5, C, Some(B)), read(200, 201, Some(C))]);
    records.extend([on(NEW, read(150, 151, Some(B))), wrote_anew(152, 7, Some(B))]);
    parted(Some(B), records).unwrap();
    // A write of unknown fate took effect before the fork.
    let mut records = vec![on(OLD, wrote(0, 1, A, None)), unknown(2, B)];
    records.push(on(NEW, read(150, 151, Some(B))));
    parted(Some(B), records).unwrap();
}

#[test]
fn a_fork_that_is_no_prefix_is_refused() {
    let old = || vec![on(OLD, wrote(0, 1, A, None)), on(OLD, wrote(2, 3, B, Some(A)))];
    refuse_parted(Some(A), old(), "up-to-the-fork");
    refuse_parted(None, old(), "up-to-the-fork");
    refuse_parted(Some(C), old(), "up-to-the-fork");
}

#[test]
fn what_crosses_from_one_timeline_to_the_other_is_refused() {
    let old = || vec![on(OLD, wrote(0, 1, A, None)), on(OLD, wrote(2, 3, C, Some(A)))];
    let and = |record: Record| old().into_iter().chain([record]).collect::<Vec<_>>();
    parted(Some(A), old()).unwrap();
    // What is behind the fork, seen on the new timeline.
    refuse_parted(Some(A), and(on(NEW, read(150, 151, Some(C)))), "the fork is at 20");
    // What the new timeline wrote, seen on the old one.
    let told = Told::Value(7, BASE + 7);
    refuse_parted(Some(A), and(on(OLD, record(150, 151, Asked::Get, told))), "the fork is at 20");
    // A write that a member of the lost site never answered, and that is not in the fork.
    let never_answered = unknown(4, B);
    let records = vec![on(OLD, wrote(0, 1, A, None)), never_answered, on(NEW, read(150, 151, Some(B)))];
    refuse_parted(Some(A), records, "new");
    // The new timeline does not begin with what the fork holds.
    refuse_parted(Some(A), and(on(NEW, read(150, 151, None))), "new");
    // A revision that both gave out.
    let told = Told::Done { revision: Some(revision(C)), previous: None };
    let again = on(NEW, record(150, 151, Asked::Put(8, Condition::Always), told));
    refuse_parted(Some(A), and(again), "and also");
    // Somebody on a third timeline.
    refuse_parted(Some(A), and(on(3, read(150, 151, Some(A)))), "another timeline");
}

#[test]
fn a_journal_that_does_not_end_at_the_fork_is_refused() {
    let journal = |written: &[(&str, u64)]| Journal {
        written: written.iter().map(|(key, revision)| (format!("journal/{key}"), *revision)).collect(),
        ..Journal::default()
    };
    let content = |keys: &[&str]| -> Vec<String> {
        let item =
            |key: &&str| json!({ "key": format!("journal/{key}"), "value": format!("journal/{key}"), "version": 1 });
        keys.iter().map(|key| item(key).to_string()).collect()
    };
    let judge = |written: &[(&str, u64)], there: &[&str]| {
        fork(None).judge(&History::default(), &journal(written), &content(there), None)
    };
    let fate = judge(&[("a", 20), ("b", 21), ("c", BASE)], &["a", "c"]).unwrap();
    assert_eq!((fate.kept, fate.lost.len(), fate.written), (1, 1, 1));
    judge(&[("a", 20)], &[]).unwrap_err();
    judge(&[("b", 21)], &["b"]).unwrap_err();
    judge(&[("c", BASE)], &[]).unwrap_err();
    judge(&[], &["d"]).unwrap_err();
}
