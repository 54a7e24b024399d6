//! What concurrent clients were told over a forced failover, judged timeline by timeline.
//!
//! Over a fork there is no one order: what the lost site acknowledged last is in no other branch. What can be demanded:
//!
//! - each answer belongs to one timeline, which its member names, and what the clients were told on each of the two has an
//!   order that explains it;
//! - the new one begins with what the old one held at the fork, which is a prefix of that: everything acknowledged up to the
//!   announced fork revision, and nothing acknowledged behind it;
//! - nothing that was written on one timeline alone is seen on the other, and no revision stands for two things.
//!
//! The state at the fork is read from the new timeline. To the old one it is a last read of all that it acknowledged up to
//! there, to the new one the writes before all others. A write of unknown fate belongs to the timeline that its answer
//! named; without an answer to every one that the member was on meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::cluster::Cluster;
use super::history::{Asked, By, Condition, History, NEVER, Record, Told, Verdict};
use super::http;
use super::workload::{Journal, REGISTERS};

/// The fork of a timeline from its parent.
pub struct Fork {
    /// The identity of the parent.
    pub old: u128,
    /// That of the timeline which began.
    pub new: u128,
    /// The last revision that both have.
    pub revision: u64,
    /// Where the revisions of the new one begin: those in between are of the old one alone.
    pub base: u64,
    /// What there was at that revision, line by line, as the new timeline has it.
    pub content: Vec<String>,
    /// When it was ordered, by the clock of the clients.
    pub ordered: i64,
    /// The members of the lost site, which the new timeline never had while the clients worked.
    pub lost: BTreeSet<usize>,
}

/// What became of the journal.
#[derive(Debug, PartialEq, Eq)]
pub struct JournalFate {
    /// Acknowledged by the old timeline up to the fork.
    pub kept: usize,
    /// Acknowledged by the old timeline behind the fork: these are not in the new one.
    pub lost: BTreeMap<String, u64>,
    /// Acknowledged by the new one.
    pub written: usize,
}

/// A timeline's id as a number.
pub fn id(text: &Value) -> u128 {
    u128::from_str_radix(text.as_str().unwrap_or_else(|| panic!("no id: {text}")), 16).expect("a timeline's id")
}

/// Where the newest timeline of a member that was forced once parted from the first, as it tells whoever asks for a revision
/// of the lost branch.
pub fn fork_revision(cluster: &Cluster, member: usize) -> u64 {
    let between = super::dr::FORCED - 1;
    let read = http::get(cluster.client(member), &format!("/v1/kv/anything?rev={between}"));
    read.expect_problem(410, "diverged")["fork"].as_u64().expect("a revision")
}

impl Fork {
    /// Judges all that the clients were told, and says why when that cannot be. `content` is what the new timeline holds in
    /// the end. Pictures of what has no explanation go to `directory`.
    pub fn judge(
        &self,
        history: &History,
        journal: &Journal,
        content: &[String],
        directory: Option<&Path>,
    ) -> Result<JournalFate, String> {
        history.revisions_name_one_thing()?;
        self.nothing_crosses(history)?;
        let parts = [
            ("old", self.of_old(history)),
            ("up-to-the-fork", self.up_to_fork(history)),
            ("new", self.of_new(history)),
        ];
        for (name, part) in parts {
            let picture = directory.map(|directory| directory.join(format!("{name}.html")));
            match part.judge(picture.as_deref()) {
                Verdict::Linearizable => println!("{name}: {}", part.summary()),
                verdict => return Err(format!("{name}: {verdict:?}, {}", part.summary())),
            }
        }
        self.journal(journal, content)
    }

    /// No answer of one timeline names a revision that only the other has.
    fn nothing_crosses(&self, history: &History) -> Result<(), String> {
        let told = history.records.iter().map(|record| {
            let revisions = match record.told {
                Told::Value(_, revision) => [Some(revision), None],
                Told::Done { revision, previous } => [revision, previous],
                Told::ConditionFailed(found) => [found, None],
                Told::Nothing | Told::Unknown | Told::NotApplied => [None, None],
            };
            (record.by, revisions, format!("{record:?}"))
        });
        let seen = history.glimpses.iter();
        let seen = seen.map(|glimpse| (glimpse.by, [Some(glimpse.revision), None], format!("{glimpse:?}")));
        for (by, revisions, words) in told.chain(seen) {
            for revision in revisions.into_iter().flatten() {
                let is_there = match by.timeline {
                    Some(on) if on == self.old => revision < self.base,
                    Some(on) if on == self.new => revision <= self.revision || self.base <= revision,
                    _ => return Err(format!("told by a member on another timeline: {words}")),
                };
                if !is_there {
                    return Err(format!("the fork is at {}, the base at {}, and: {words}", self.revision, self.base));
                }
            }
        }
        Ok(())
    }

    /// How many writes the old timeline acknowledged behind the fork.
    pub fn lost(&self, history: &History) -> usize {
        let is_lost = |record: &&Record| match record.told {
            Told::Done { revision: Some(revision), .. } => self.revision < revision && revision < self.base,
            _ => false,
        };
        history.records.iter().filter(is_lost).count()
    }

    fn of_old(&self, history: &History) -> History {
        let asked_before = |record: &&Record| self.lost.contains(&record.by.member) || record.began < self.ordered;
        let is_of = |record: &&Record| match (record.by.timeline, record.told) {
            (Some(on), _) => on == self.old,
            (None, _) => asked_before(record),
        };
        let records = history.records.iter().filter(is_of).cloned().collect();
        let glimpses =
            history.glimpses.iter().filter(|glimpse| glimpse.by.timeline == Some(self.old)).copied().collect();
        History { records, glimpses }
    }

    fn of_new(&self, history: &History) -> History {
        let asked_after = |record: &&Record| !self.lost.contains(&record.by.member) && record.ended > self.ordered;
        let is_of = |record: &&Record| match (record.by.timeline, record.told) {
            (Some(on), _) => on == self.new,
            (None, _) => asked_after(record),
        };
        let mut records: Vec<Record> = history.records.iter().filter(is_of).cloned().collect();
        records.extend(self.registers().into_iter().filter_map(|(key, held)| {
            let (value, revision) = held?;
            let told = Told::Done { revision: Some(revision), previous: None };
            let asked = Asked::Put(value, Condition::Always);
            Some(Record { key, who: "the fork".into(), began: -2, ended: -1, asked, told, by: By::default() })
        }));
        let glimpses =
            history.glimpses.iter().filter(|glimpse| glimpse.by.timeline == Some(self.new)).copied().collect();
        History { records, glimpses }
    }

    /// The writes that the old timeline acknowledged up to the fork, those of unknown fate, and what was there then.
    fn up_to_fork(&self, history: &History) -> History {
        let mut records = self.of_old(history).records;
        records.retain(|record| match record.told {
            Told::Done { revision, .. } => revision.is_some_and(|revision| revision <= self.revision),
            Told::Unknown => true,
            _ => false,
        });
        records.extend(self.registers().into_iter().map(|(key, held)| {
            let told = held.map_or(Told::Nothing, |(value, revision)| Told::Value(value, revision));
            let (began, ended) = (NEVER - 2, NEVER - 1);
            Record { key, who: "the fork".into(), began, ended, asked: Asked::Get, told, by: By::default() }
        }));
        History { records, glimpses: Vec::new() }
    }

    /// Each register at the fork: its value and the revision of that.
    fn registers(&self) -> BTreeMap<u32, Option<(u64, u64)>> {
        let items = items(&self.content);
        let held = |key: u32| {
            let item = items.get(&format!("register/{key}"))?;
            let value = item["value"].as_str().and_then(|value| value.parse().ok()).expect("a number");
            Some((value, item["mod_revision"].as_u64().expect("a revision")))
        };
        (0..REGISTERS).map(|key| (key, held(key))).collect()
    }

    fn journal(&self, journal: &Journal, content: &[String]) -> Result<JournalFate, String> {
        let held = items(content);
        let mut fate = JournalFate { kept: 0, lost: BTreeMap::new(), written: 0 };
        for (key, revision) in &journal.written {
            let part = self.revision < *revision && *revision < self.base;
            match (part, held.contains_key(key)) {
                (false, true) if *revision <= self.revision => fate.kept += 1,
                (false, true) => fate.written += 1,
                (true, false) => drop(fate.lost.insert(key.clone(), *revision)),
                (_, there) => {
                    return Err(format!("{key} of {revision}, with the fork at {}: there is {there}", self.revision));
                }
            }
        }
        for (key, item) in held.iter().filter(|(key, _)| key.starts_with("journal/")) {
            let asked = journal.written.contains_key(key) || journal.unknown.contains(key);
            if journal.refused.contains(key) || !asked || item["value"] != **key || item["version"] != 1 {
                return Err(format!("nobody was told that this is there: {item}"));
            }
        }
        Ok(fate)
    }
}

/// The items of a content, by key.
fn items(content: &[String]) -> BTreeMap<String, Value> {
    let items = content.iter().map(|line| {
        let item: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        (item["key"].as_str().unwrap_or_else(|| panic!("no key in {line}")).to_owned(), item)
    });
    items.collect()
}
