//! What the salvage files of several members come to together: each stranded write once, of each key what it came to last,
//! and what that means beside what the key is now.
//!
//! The same write lies in the files of all members that had it; it is known again by its timeline and its log id. Where one
//! member had applied it and another only logged it, it was applied. Of each key only the last write counts; the changes
//! that a write made together, and that are still the last, are brought back together or not at all.
//!
//! Nothing here asks anybody. Proven by the tests below.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::api::{
    Fate, KeyItem, Revision, SalvageHeader, SalvagedAction, SalvagedKind, SalvagedOp, SalvagedWrite, TimelineId,
};

/// A salvage file that was read.
#[derive(Debug, Clone)]
pub struct Salvaged {
    /// Its name, for people.
    pub file: String,
    /// Its first line.
    pub header: SalvageHeader,
    /// The others.
    pub writes: Vec<SalvagedWrite>,
}

/// What a key came to on the abandoned timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Final {
    /// The key.
    pub key: Bytes,
    /// Its value; none when it was deleted.
    pub value: Option<Bytes>,
    /// Whether it hung on a lease.
    pub leased: bool,
    /// Whether it existed when the timelines parted; none when that is not known.
    pub existed: Option<bool>,
}

/// Changes that are brought back together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The timeline of the write.
    pub timeline: TimelineId,
    /// The write that made them.
    pub write: SalvagedWrite,
    /// A key that was changed behind this revision was changed on the new timeline.
    pub since: Revision,
    /// The changes that no later stranded write replaced.
    pub finals: Vec<Final>,
}

/// All files together.
#[derive(Debug, Clone, Default)]
pub struct Merged {
    /// What can be brought back, in order.
    pub units: Vec<Unit>,
    /// What only a person can: conditions and branches of which nobody knows what they came to.
    pub by_hand: Vec<(TimelineId, SalvagedWrite)>,
    /// Distinct writes.
    pub writes: u64,
    /// Of them, writes all of which later ones replaced.
    pub superseded: u64,
    /// Of them, those that change records of the system alone.
    pub system: u64,
    /// The last number that each sequence gave out, where that is known.
    pub sequences: BTreeMap<String, u64>,
    /// Writes of which compaction had taken a part.
    pub thinned: u64,
}

/// What is to be done with a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is brought back.
    Apply,
    /// The keys are so already.
    Same,
    /// It is in the new timeline.
    Common,
    /// Its request was executed on the new timeline.
    Executed,
    /// Its keys hung on a lease, which has ended.
    Leased,
    /// The keys were changed since, for these reasons.
    Conflict(Vec<String>),
}

/// Merges files, which must be of one cluster.
pub fn merge(files: &[Salvaged], applied_only: bool) -> Result<Merged, String> {
    if let Some(other) = files.iter().find(|file| file.header.cluster != files[0].header.cluster) {
        return Err(format!("{} and {} are of different clusters", files[0].file, other.file));
    }
    let mut merged = Merged::default();
    let mut last: BTreeMap<Bytes, usize> = BTreeMap::new();
    let mut existed: BTreeMap<Bytes, Option<bool>> = BTreeMap::new();
    let mut ordered: Vec<Unit> = Vec::new();
    for (timeline, write, since) in distinct(files) {
        if applied_only && write.fate == Fate::Unknown {
            continue;
        }
        merged.writes += 1;
        merged.thinned += u64::from(write.thinned);
        merged.note_sequences(&write);
        if !write.is_clients() {
            merged.system += 1;
            continue;
        }
        if needs_a_person(&write) {
            merged.by_hand.push((timeline, write));
            continue;
        }
        let finals = finals(&write).map_err(|why| format!("the write of position {}: {why}", write.position))?;
        for Final { key, .. } in &finals {
            existed.entry(key.clone()).or_insert_with(|| existed_before(&write, key));
            last.insert(key.clone(), ordered.len());
        }
        ordered.push(Unit { timeline, write, since, finals });
    }
    for (at, mut unit) in ordered.into_iter().enumerate() {
        unit.finals.retain(|change| last.get(&change.key) == Some(&at));
        for change in &mut unit.finals {
            change.existed = existed.get(&change.key).copied().flatten();
        }
        if unit.finals.is_empty() { merged.superseded += 1 } else { merged.units.push(unit) }
    }
    Ok(merged)
}

impl Merged {
    fn note_sequences(&mut self, write: &SalvagedWrite) {
        for op in write.ops.iter().filter(|op| op.record.as_deref() == Some("sequence")) {
            if let (Some(name), Some(Ok(last))) = (&op.key, op.value.as_ref().map(|value| value.parse::<u64>())) {
                let known = self.sequences.entry(name.clone()).or_default();
                *known = last.max(*known);
            }
        }
    }

    /// The idempotency keys of all writes that could be brought back or done by hand.
    pub fn idempotency_keys(&self) -> BTreeSet<String> {
        let units = self.units.iter().map(|unit| &unit.write);
        let all = units.chain(self.by_hand.iter().map(|(_, write)| write));
        all.filter_map(|write| write.idempotency_key.clone()).collect()
    }
}

/// Each write once, in order, with the revision behind which the new timeline is on its own.
fn distinct(files: &[Salvaged]) -> Vec<(TimelineId, SalvagedWrite, Revision)> {
    type Known<'w> = (&'w SalvagedWrite, bool, Revision, TimelineId);
    let mut known: BTreeMap<(u64, u64, u64, &str, TimelineId), Known<'_>> = BTreeMap::new();
    for Salvaged { header, writes, .. } in files {
        let since = header.common.revision.min(header.fork.revision);
        for write in writes {
            let id = (header.timeline.number, write.position, write.term, write.leader.as_str(), header.timeline.id);
            let (best, proven, latest, _) = known.entry(id).or_insert((write, false, 0, header.timeline.id));
            if write.fate < best.fate {
                *best = write;
            }
            *proven |= write.proven;
            // Each member's common point is proven, so the latest one is.
            *latest = since.max(*latest);
        }
    }
    let one =
        |(write, proven, since, timeline): Known<'_>| (timeline, SalvagedWrite { proven, ..write.clone() }, since);
    known.into_values().map(one).collect()
}

/// Whether nobody knows what a write would have done.
fn needs_a_person(write: &SalvagedWrite) -> bool {
    let ranged = write.ops.iter().any(|op| op.op == SalvagedAction::DeleteRange);
    let unclear = write.fate == Fate::Unknown && (write.conditional || write.kind == SalvagedKind::Txn);
    unclear || ranged || write.kind == SalvagedKind::Unreadable || !write.otherwise.is_empty()
}

/// What a write made of each client's key in the end.
fn finals(write: &SalvagedWrite) -> Result<Vec<Final>, String> {
    let mut finals: Vec<Final> = Vec::new();
    for op in write.ops.iter().filter(|op| op.record.is_none()) {
        let key = op.key()?;
        let value = (op.op == SalvagedAction::Put).then(|| op.value()).transpose()?;
        finals.retain(|before| before.key != key);
        finals.push(Final { key, value, leased: op.lease.is_some(), existed: None });
    }
    Ok(finals)
}

/// Whether a key existed before a write, as far as the write tells.
fn existed_before(write: &SalvagedWrite, key: &[u8]) -> Option<bool> {
    let of_key = |op: &&SalvagedOp| op.record.is_none() && op.key().is_ok_and(|found| found == key);
    let first = write.ops.iter().find(of_key)?;
    match (write.fate, first.op) {
        (Fate::Unknown, _) => None,
        (Fate::Applied, SalvagedAction::Put) => first.version.map(|version| version > 1),
        // Only what existed was deleted.
        (Fate::Applied, _) => Some(true),
    }
}

/// What is to be done with a unit, whose keys are `now` so. `executed` says whether its request was executed.
pub fn judge(unit: &Unit, now: &[Option<KeyItem>], executed: bool) -> Verdict {
    if executed {
        return Verdict::Executed;
    }
    let mut reasons = Vec::new();
    let (mut same, mut common, mut leased) = (0, 0, 0);
    for (change, now) in unit.finals.iter().zip(now) {
        match judge_key(unit, change, now.as_ref()) {
            Key::Same => same += 1,
            Key::Common => common += 1,
            Key::Apply if change.leased => leased += 1,
            Key::Apply => {}
            Key::Conflict(why) => reasons.push(why),
        }
    }
    let all = unit.finals.len();
    match () {
        () if !reasons.is_empty() => Verdict::Conflict(reasons),
        () if common > 0 && same + common == all => Verdict::Common,
        () if same + common == all => Verdict::Same,
        () if leased > 0 => Verdict::Leased,
        () => Verdict::Apply,
    }
}

enum Key {
    Apply,
    Same,
    Common,
    Conflict(String),
}

fn judge_key(unit: &Unit, change: &Final, now: Option<&KeyItem>) -> Key {
    let Some(now) = now else {
        return match (&change.value, change.existed) {
            (None, _) => Key::Same,
            (Some(_), Some(false)) => Key::Apply,
            (Some(_), Some(true)) => Key::Conflict("it was deleted since the fork".into()),
            (Some(_), None) => {
                Key::Conflict("it does not exist, and it is not known whether it did at the fork".into())
            }
        };
    };
    let (written, proven) = (now.meta.mod_revision, unit.write.proven);
    if !proven && unit.write.revision.is_some_and(|revision| revision == written) {
        return Key::Common;
    }
    if change.value.is_some() && change.value == now.value && now.meta.lease == 0 {
        return Key::Same;
    }
    if written > unit.since {
        return Key::Conflict(format!("it was changed since the fork, at revision {written}"));
    }
    if !proven {
        return Key::Conflict("the write may be in the new timeline already".into());
    }
    Key::Apply
}

#[cfg(test)]
mod tests;
