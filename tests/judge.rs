//! The judge of histories on trial: what it must accept, and above all what it must refuse.
//!
//! A checker that accepts everything would make every fault test pass. So each kind of mistake that a replicated store
//! can make is planted here in a small history, and in a long one.

#![allow(clippy::unwrap_used)]

mod support;

use rand::Rng;
use support::Seed;
use support::history::{Asked, Condition, Glimpse, History, NEVER, Record, Told, Verdict};

const A: u64 = 1;
const B: u64 = 2;
const C: u64 = 3;

/// The revision under which a value is written in these histories.
fn revision(value: u64) -> u64 {
    value * 10
}

fn record(began: i64, ended: i64, asked: Asked, told: Told) -> Record {
    Record { key: 0, who: "a client".into(), began, ended, asked, told }
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
    let glimpses = vec![Glimpse { key: 0, value: B, revision: revision(B) }];
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
