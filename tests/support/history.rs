//! Operations with the times they began and ended, and the question whether they are linearizable.
//!
//! A *record* is what a client did and what it was told, with revisions as the server gives them. Before it is judged,
//! revisions are turned into values: every write of a test has a value of its own, and the history itself tells which
//! revision belongs to which value. Two values for one revision, or two revisions for one value, are a failure already.
//! What is judged is then a register for each key, whose operations say which value they saw, left or required.
//!
//! A write whose fate is unknown never ends: it may take effect at any later time, or never. A write that was refused
//! with the promise that it was not applied is taken out, so that a read which sees it has no explanation.
//!
//! Time is a counter, drawn before the first byte of a request is sent and after the last byte of its answer is read.
//! It orders operations just as a clock would, without ties.
//!
//! The judge itself is on trial in `tests/judge.rs`, with histories that it must refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use porcupine_rs::{CheckResult, Model, Operation};

/// How long the judge may search. Thousands of operations take milliseconds unless very many fates are unknown.
const SEARCH_LIMIT: Duration = Duration::from_secs(60);

/// The time that never comes: the end of an operation whose fate is unknown.
pub const NEVER: i64 = i64::MAX;

/// Counts moments.
#[derive(Default)]
pub struct Clock(AtomicI64);

impl Clock {
    /// A moment after all moments before.
    pub fn now(&self) -> i64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A linearizable read.
    Get,
    /// Write this value under a condition.
    Put(u64, Condition),
    /// Delete under a condition.
    Delete(Condition),
}

/// The condition of a write. One on an ETag carries the value that the client read with that ETag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// None.
    Always,
    /// `If-None-Match: *`
    Absent,
    /// `If-Match: "revision"` of this value.
    Holds(u64),
}

/// What a client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A read found a value, last written at a revision.
    Value(u64, u64),
    /// A read found nothing.
    Nothing,
    /// A write took effect at a revision, over a key last written at another, if it existed.
    Done {
        /// The revision of the write; a delete of nothing makes none.
        revision: Option<u64>,
        /// The revision of what was there before.
        previous: Option<u64>,
    },
    /// The condition did not hold; the key was last written at this revision.
    ConditionFailed(Option<u64>),
    /// Nothing that tells whether the write took effect.
    Unknown,
    /// The promise that the write was not applied.
    NotApplied,
}

/// One operation of one client.
#[derive(Debug, Clone)]
pub struct Record {
    /// Which register.
    pub key: u32,
    /// The client and the member it asked, for people.
    pub who: String,
    /// Before the request was sent.
    pub began: i64,
    /// After the answer was read.
    pub ended: i64,
    /// What was asked.
    pub asked: Asked,
    /// What was told.
    pub told: Told,
    /// Whom, and on which timeline.
    pub by: By,
}

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct By {
    /// The number of the member that was asked.
    pub member: usize,
    /// The timeline that it said it was on; none when there was no answer.
    pub timeline: Option<u128>,
}

/// Something read outside of the order, for example a stale read: it must be true of some moment.
#[derive(Debug, Clone, Copy)]
pub struct Glimpse {
    /// Which register.
    pub key: u32,
    /// What was there.
    pub value: u64,
    /// Its revision.
    pub revision: u64,
    /// Who said so.
    pub by: By,
}

/// All that happened in a test.
#[derive(Debug, Default)]
pub struct History {
    /// Operations, in no order.
    pub records: Vec<Record>,
    /// Values that were seen at a time unknown.
    pub glimpses: Vec<Glimpse>,
}

/// What an operation saw of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// This value, or none.
    Is(Option<u64>),
    /// A value written by an operation whose revision nobody learnt.
    Something,
}

impl Seen {
    fn agrees(self, state: Option<u64>) -> bool {
        match self {
            Seen::Is(value) => value == state,
            Seen::Something => state.is_some(),
        }
    }
}

/// One operation as it is judged.
#[derive(Debug, Clone)]
pub struct Step {
    key: u32,
    action: Action,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Read(Option<u64>),
    /// Left this value (or none) over what it saw.
    Wrote(Option<u64>, Condition, Seen),
    /// Its condition did not hold for what it saw.
    Refused(Condition, Seen),
    /// May have left this value at any time, if its condition held then.
    Open(Option<u64>, Condition),
}

/// A register that holds a value or none.
#[derive(Debug, Clone)]
pub struct Register;

impl Model for Register {
    type State = Option<u64>;
    type Op = Step;
    type Metadata = String;

    fn partition_operations(history: &[Operation<Self>]) -> Vec<Vec<Operation<Self>>> {
        let mut keys: BTreeMap<u32, Vec<Operation<Self>>> = BTreeMap::new();
        for operation in history {
            keys.entry(operation.op.key).or_default().push(operation.clone());
        }
        keys.into_values().collect()
    }

    fn init() -> Option<u64> {
        None
    }

    fn step(state: &Option<u64>, step: &Step) -> (bool, Option<u64>) {
        let holds = |condition: Condition| match condition {
            Condition::Always => true,
            Condition::Absent => state.is_none(),
            Condition::Holds(value) => *state == Some(value),
        };
        match step.action {
            Action::Read(seen) => (seen == *state, *state),
            Action::Wrote(left, condition, seen) => (holds(condition) && seen.agrees(*state), left),
            Action::Refused(condition, seen) => (!holds(condition) && seen.agrees(*state), *state),
            Action::Open(left, condition) if holds(condition) => (true, left),
            Action::Open(..) => (true, *state),
        }
    }

    fn describe_operation(step: &Step) -> String {
        format!("{:?}", step.action)
    }

    fn describe_metadata(who: Option<&String>) -> String {
        who.cloned().unwrap_or_default()
    }
}

/// What the judge found.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains everything.
    Linearizable,
    /// There is none, and why.
    Refused(String),
    /// The search took too long.
    Undecided,
}

impl History {
    /// Judges the history. A picture of what cannot be explained goes to `picture`.
    pub fn judge(&self, picture: Option<&Path>) -> Verdict {
        let steps = match self.steps() {
            Ok(steps) => steps,
            Err(reason) => return Verdict::Refused(reason),
        };
        match porcupine_rs::check_operations_timeout(&steps, SEARCH_LIMIT) {
            CheckResult::Ok => Verdict::Linearizable,
            CheckResult::Unknown => Verdict::Undecided,
            CheckResult::Illegal => {
                let mut reason = format!("no order explains these {} operations", steps.len());
                if let Some(path) = picture {
                    let (_, info) = porcupine_rs::check_operations_info_timeout(&steps, SEARCH_LIMIT);
                    match porcupine_rs::visualize_path::<Register>(&info, path) {
                        Ok(()) => reason += &format!("; see {}", path.display()),
                        Err(error) => reason += &format!("; no picture: {error}"),
                    }
                }
                Verdict::Refused(reason)
            }
        }
    }

    /// Fails unless the history is linearizable. The picture of a failure is put into `directory`.
    #[track_caller]
    pub fn assert_linearizable(&self, directory: &Path) {
        let verdict = self.judge(Some(&directory.join("history.html")));
        assert_eq!(verdict, Verdict::Linearizable, "{}", self.summary());
    }

    /// Says so when a revision stands for two things, or a value has two revisions.
    pub fn revisions_name_one_thing(&self) -> Result<(), String> {
        self.revisions().map(|_| ())
    }

    /// How many operations of each kind there are.
    pub fn summary(&self) -> String {
        let count = |wanted: fn(&Told) -> bool| self.records.iter().filter(|record| wanted(&record.told)).count();
        format!(
            "{} operations: {} reads, {} writes done, {} conditions failed, {} unknown, {} not applied",
            self.records.len(),
            count(|told| matches!(told, Told::Value(..) | Told::Nothing)),
            count(|told| matches!(told, Told::Done { .. })),
            count(|told| matches!(told, Told::ConditionFailed(_))),
            count(|told| matches!(told, Told::Unknown)),
            count(|told| matches!(told, Told::NotApplied)),
        )
    }

    /// Which value each revision stands for, or how members contradict each other.
    fn revisions(&self) -> Result<BTreeMap<u64, (u32, u64)>, String> {
        let mut of_revision: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
        let mut of_value: BTreeMap<u64, u64> = BTreeMap::new();
        let mut refused: BTreeSet<u64> = BTreeSet::new();
        let mut known: Vec<(u64, u32, u64)> = Vec::new();
        for Record { key, asked, told, .. } in &self.records {
            match (asked, told) {
                (Asked::Put(value, _), Told::Done { revision: Some(revision), .. }) => {
                    known.push((*revision, *key, *value));
                }
                (Asked::Get, Told::Value(value, revision)) => known.push((*revision, *key, *value)),
                (Asked::Put(value, _), Told::NotApplied | Told::ConditionFailed(_)) => {
                    refused.insert(*value);
                }
                _ => {}
            }
        }
        known.extend(self.glimpses.iter().map(|glimpse| (glimpse.revision, glimpse.key, glimpse.value)));
        for (revision, key, value) in known {
            if refused.contains(&value) {
                return Err(format!("value {value} of key {key} was refused, and was seen at revision {revision}"));
            }
            let other = *of_revision.entry(revision).or_insert((key, value));
            if other != (key, value) {
                return Err(format!("revision {revision} wrote {other:?} and also {:?}", (key, value)));
            }
            let other = *of_value.entry(value).or_insert(revision);
            if other != revision {
                return Err(format!("value {value} was written at revision {other} and also at {revision}"));
            }
        }
        Ok(of_revision)
    }

    /// The operations to be judged.
    fn steps(&self) -> Result<Vec<Operation<Register>>, String> {
        let revisions = self.revisions()?;
        let seen = |key: u32, revision: Option<u64>| match revision {
            None => Ok(Seen::Is(None)),
            Some(revision) => match revisions.get(&revision) {
                None => Ok(Seen::Something),
                Some((owner, value)) if *owner == key => Ok(Seen::Is(Some(*value))),
                Some((owner, _)) => Err(format!("key {key} is said to be of revision {revision}, which wrote {owner}")),
            },
        };
        let mut steps = Vec::new();
        for record in &self.records {
            let (left, condition) = match record.asked {
                Asked::Get => (None, Condition::Always),
                Asked::Put(value, condition) => (Some(value), condition),
                Asked::Delete(condition) => (None, condition),
            };
            let action = match (record.asked, record.told) {
                (_, Told::NotApplied) | (Asked::Get, Told::Unknown) => continue,
                (Asked::Get, Told::Value(value, _)) => Action::Read(Some(value)),
                (Asked::Get, Told::Nothing) => Action::Read(None),
                (Asked::Get, told) => return Err(format!("a read was told {told:?}")),
                (_, Told::Done { previous, .. }) => Action::Wrote(left, condition, seen(record.key, previous)?),
                (_, Told::ConditionFailed(found)) => Action::Refused(condition, seen(record.key, found)?),
                (_, Told::Unknown) => Action::Open(left, condition),
                (_, told) => return Err(format!("a write was told {told:?}")),
            };
            let never_ends = matches!(action, Action::Open(..));
            steps.push(Operation {
                client_id: None,
                call_time: record.began,
                return_time: if never_ends { NEVER } else { record.ended },
                op: Step { key: record.key, action },
                metadata: Some(record.who.clone()),
            });
        }
        drop_unseen(&mut steps);
        Ok(steps)
    }
}

/// Takes out writes of unknown fate whose value nobody saw: that they never took effect explains as much, and the search for
/// an order would try each of them everywhere. Where something was seen of which nobody knows what it was, all stay.
fn drop_unseen(steps: &mut Vec<Operation<Register>>) {
    let mut seen_values: BTreeSet<u64> = BTreeSet::new();
    let mut unclear: BTreeSet<u32> = BTreeSet::new();
    for Step { key, action } in steps.iter().map(|step| &step.op) {
        let (condition, seen) = match *action {
            Action::Read(value) => (Condition::Always, Seen::Is(value)),
            Action::Wrote(_, condition, seen) | Action::Refused(condition, seen) => (condition, seen),
            Action::Open(_, condition) => (condition, Seen::Is(None)),
        };
        match seen {
            Seen::Is(value) => seen_values.extend(value),
            Seen::Something => drop(unclear.insert(*key)),
        }
        if let Condition::Holds(value) = condition {
            seen_values.insert(value);
        }
    }
    steps.retain(|step| match step.op.action {
        Action::Open(Some(value), _) => seen_values.contains(&value) || unclear.contains(&step.op.key),
        _ => true,
    });
}
