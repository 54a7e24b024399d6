//! The coordinator: what the leader does from the first question to the report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::mpsc;

use super::ask::{DigestAnswer, DigestQuestion, ScrubAnswer, ScrubQuestion, Unasked, bytes};
use super::encode;
use crate::api::{Role, VerifyDoubt, VerifyLine, VerifyMember, VerifyPhase, VerifyProgress, VerifyReport, VerifyState};
use crate::model::{MemberId, MemberRole, Revision};
use crate::node::Inner;
use crate::node::quarantine::{Damage, key_words};

/// A range of keys that is compared at once has at most so many keys and about so many bytes.
const RANGE_KEYS: u64 = 4096;
const RANGE_BYTES: u64 = 8 << 20;
/// Between two lines of progress.
const TELL: Duration = Duration::from_millis(500);
/// So many keys whose answers are in doubt are named.
const NAMED_KEYS: usize = 100;
/// How often the contents are compared anew, at a newer revision, when compaction has passed the one before.
const ATTEMPTS: usize = 3;

/// How far it is, for the lines of progress.
#[derive(Default)]
struct Counts {
    done: AtomicU64,
    total: AtomicU64,
    bytes: AtomicU64,
}

struct Verification {
    inner: Arc<Inner>,
    began: Instant,
    lines: mpsc::Sender<bytes::Bytes>,
    members: BTreeMap<MemberId, VerifyMember>,
    counts: Arc<Counts>,
    notes: Vec<String>,
    keys: u64,
    bytes: u64,
    /// This member itself is wrong: it goes into quarantine when the report is out.
    own: Option<Damage>,
}

/// Verifies and tells.
pub(super) async fn run(inner: Arc<Inner>, rev: Option<Revision>, lines: mpsc::Sender<bytes::Bytes>) {
    let members = inner.members_by_id().into_iter().map(|(id, info)| {
        let role = match (id == inner.id, info.role) {
            (true, _) => Role::Leader,
            (false, MemberRole::Voter) => Role::Follower,
            (false, MemberRole::Mirror) => Role::Mirror,
        };
        let state = VerifyState::Agrees;
        (id, VerifyMember { name: info.name, role, state, scrubbed_bytes: 0, detail: None, doubt: None })
    });
    let members = members.collect();
    let (counts, began, notes) = (Arc::default(), Instant::now(), Vec::new());
    let mut it = Verification { inner, began, lines, members, counts, notes, keys: 0, bytes: 0, own: None };
    tracing::info!("verification begins");
    it.scrub().await;
    let revision = it.content(rev).await;
    it.report(revision).await;
}

impl Verification {
    fn sound(&self) -> Vec<MemberId> {
        let sound = self.members.iter().filter(|(_, member)| member.state == VerifyState::Agrees);
        sound.map(|(id, _)| *id).collect()
    }

    fn found(&mut self, id: MemberId, state: VerifyState, detail: impl Into<String>) {
        if let Some(member) = self.members.get_mut(&id) {
            (member.state, member.detail) = (state, Some(detail.into()));
        }
    }

    fn unasked(&mut self, id: MemberId, why: Unasked) {
        match why {
            Unasked::OldProgram => self.found(id, VerifyState::OldProgram, "its program is too old to be asked"),
            Unasked::Quarantined(why) => self.found(id, VerifyState::Quarantined, why),
            Unasked::Unreachable(why) => self.found(id, VerifyState::Unreachable, why),
        }
    }

    /// Waits for work and tells meanwhile how far it is.
    async fn telling<T>(&self, phase: VerifyPhase, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut ticks = tokio::time::interval(TELL);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick() => self.tell(phase),
            }
        }
    }

    fn tell(&self, phase: VerifyPhase) {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let line = VerifyLine::Progress(VerifyProgress {
            phase,
            done: count(&self.counts.done),
            total: count(&self.counts.total),
            bytes: count(&self.counts.bytes),
            elapsed_seconds: self.began.elapsed().as_secs_f64(),
        });
        // A reader that is slow misses some; the report it gets.
        let _ = self.lines.try_send(encode(&line));
    }

    /// All members read their files.
    async fn scrub(&mut self) {
        let asked = self.members.keys().map(|id| scrub_member(self.inner.clone(), *id, self.counts.clone()));
        let found = self.telling(VerifyPhase::Scrub, join_all(asked)).await;
        for (id, bytes, ended) in found {
            if let Some(member) = self.members.get_mut(&id) {
                member.scrubbed_bytes = bytes;
            }
            match ended {
                Ok(None) => {}
                Ok(Some(damage)) => self.found(id, VerifyState::Damaged, damage.to_string()),
                Err(why) => self.unasked(id, why),
            }
        }
    }

    /// Compares contents; gives the revision at which.
    async fn content(&mut self, rev: Option<Revision>) -> Revision {
        let mut revision = rev.unwrap_or_else(|| self.inner.store.revision());
        if !self.sound().contains(&self.inner.id) {
            self.notes.push("contents were not compared, because the leader itself is damaged: verify again".into());
            return revision;
        }
        for attempt in 1.. {
            let total = self.inner.store.stats().live_keys;
            self.counts.done.store(0, Ordering::Relaxed);
            self.counts.total.store(total, Ordering::Relaxed);
            (self.keys, self.bytes) = (0, 0);
            match self.compare(revision).await {
                Compared::Done => break,
                Compared::Compacted if rev.is_none() && attempt < ATTEMPTS => revision = self.inner.store.revision(),
                Compared::Compacted => {
                    self.notes.push("compaction has passed the revision: contents were not compared to the end".into());
                    let left = self.sound();
                    left.into_iter().for_each(|id| self.found(id, VerifyState::Behind, "not compared to the end"));
                    break;
                }
            }
        }
        revision
    }

    async fn compare(&mut self, revision: Revision) -> Compared {
        let mut after: Option<String> = None;
        let mut ahead = None;
        loop {
            let own = self.inner.id;
            let sound = self.sound();
            if !sound.contains(&own) {
                return Compared::Done;
            }
            let question = DigestQuestion {
                revision,
                after: after.clone(),
                upto: None,
                max_keys: RANGE_KEYS,
                max_bytes: RANGE_BYTES,
                list: false,
                bytes_per_second: self.inner.verify_bytes_per_second,
            };
            let answer = match ahead.take() {
                Some(answer) => answer,
                None => {
                    let asked = self.inner.ask_digest(own, question.clone());
                    self.telling(VerifyPhase::Content, asked).await
                }
            };
            let (digest, keys, len, last) = match answer {
                Ok(DigestAnswer::All { digest, keys, bytes, last }) => (digest, keys, bytes, last),
                Ok(DigestAnswer::Compacted { .. }) => return Compared::Compacted,
                other => {
                    self.judge_odd(own, other);
                    self.notes.push("the leader could not read its own content: verify again".into());
                    return Compared::Done;
                }
            };
            // The leader goes on with its next range meanwhile: nobody reads faster than he may, and the others need not wait.
            let following = last.clone().map(|last| DigestQuestion { after: Some(last), ..question.clone() });
            // The others digest the very same range, whatever they have in it.
            let (max_keys, max_bytes) = (RANGE_KEYS * 4, RANGE_BYTES * 64);
            let question = DigestQuestion { upto: last.clone(), max_keys, max_bytes, ..question };
            let unbounded = DigestQuestion { max_keys: u64::MAX, max_bytes: u64::MAX, ..question.clone() };
            let question = if last.is_none() { unbounded } else { question };
            let others: Vec<MemberId> = sound.into_iter().filter(|id| *id != own).collect();
            let asked = others.iter().map(|id| self.inner.ask_digest(*id, question.clone()));
            let go_on = async {
                match following {
                    Some(question) => Some(self.inner.ask_digest(own, question).await),
                    None => None,
                }
            };
            let both = async { tokio::join!(join_all(asked), go_on) };
            let (answers, next) = self.telling(VerifyPhase::Content, both).await;
            ahead = next;
            let mut sides: BTreeMap<String, BTreeSet<MemberId>> = BTreeMap::new();
            sides.entry(digest).or_default().insert(own);
            for (id, answer) in others.into_iter().zip(answers) {
                match answer {
                    Ok(DigestAnswer::All { digest, bytes, .. }) => {
                        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
                        sides.entry(digest).or_default().insert(id);
                    }
                    Ok(DigestAnswer::Compacted { .. }) => return Compared::Compacted,
                    other => self.judge_odd(id, other),
                }
            }
            (self.keys, self.bytes) = (self.keys + keys, self.bytes + len);
            self.counts.bytes.fetch_add(len, Ordering::Relaxed);
            self.counts.done.fetch_add(keys, Ordering::Relaxed);
            // A leader that has found damage in its own data is no judge.
            let is_sound = matches!(ahead, None | Some(Ok(DigestAnswer::All { .. } | DigestAnswer::Compacted { .. })));
            if sides.len() > 1 && is_sound {
                self.decide(&sides, &question).await;
            }
            match last {
                Some(last) => after = Some(last),
                None => return Compared::Done,
            }
        }
    }

    /// A member gave no digest.
    fn judge_odd(&mut self, id: MemberId, answer: Result<DigestAnswer, Unasked>) {
        match answer {
            Ok(DigestAnswer::Behind { revision }) => {
                self.found(id, VerifyState::Behind, format!("it has applied only revision {revision}"));
            }
            Ok(DigestAnswer::Damaged(damage)) => self.found(id, VerifyState::Damaged, damage.to_string()),
            Ok(DigestAnswer::Failed(why)) => self.found(id, VerifyState::Unreachable, why),
            Ok(DigestAnswer::All { .. } | DigestAnswer::Each(_) | DigestAnswer::Compacted { .. }) => {
                self.found(id, VerifyState::Unreachable, "it answered something else");
            }
            Err(why) => self.unasked(id, why),
        }
    }

    /// Members hold different things in a range: says who is wrong, and puts them into quarantine.
    async fn decide(&mut self, sides: &BTreeMap<String, BTreeSet<MemberId>>, range: &DigestQuestion) {
        let own = self.inner.id;
        let weight = |side: &BTreeSet<MemberId>| (side.len(), side.contains(&own));
        let Some(right) = sides.values().max_by_key(|side| weight(side)).cloned() else { return };
        let count: usize = sides.values().map(BTreeSet::len).sum();
        if right.len() * 2 <= count {
            let words = format!(
                "{} of {count} members agree with each other, no majority: the leader's side counts",
                right.len()
            );
            self.notes.push(words);
        }
        let model = if right.contains(&own) { Some(own) } else { right.first().copied() };
        let Some(model) = model else { return };
        let list = DigestQuestion { list: true, ..range.clone() };
        let expected = self.inner.ask_digest(model, list.clone()).await;
        for id in sides.values().flatten().copied().filter(|id| !right.contains(id)).collect::<Vec<_>>() {
            let held = self.inner.ask_digest(id, list.clone()).await;
            let differing = match (&expected, &held) {
                (Ok(DigestAnswer::Each(expected)), Ok(DigestAnswer::Each(held))) => differences(expected, held),
                _ => Vec::new(),
            };
            self.wrong(id, range.revision, &right, &differing).await;
        }
    }

    /// A member holds something else than those who are right.
    async fn wrong(&mut self, id: MemberId, revision: Revision, right: &BTreeSet<MemberId>, differing: &[Difference]) {
        let names = right.iter().filter_map(|id| Some(self.members.get(id)?.name.clone()));
        let names = names.collect::<Vec<_>>().join(", ");
        let current = self.inner.store.revision();
        let mut why = Damage::said(format!("at revision {revision} it holds something else than {names}"));
        if let Some(first) = differing.first() {
            why.what = format!("{}; the first key that differs is {}", why.what, first.key);
            why.revision = first.held.or(first.expected);
            why.keys = differing.iter().take(8).map(|difference| difference.key.clone()).collect();
        }
        let since = differing.iter().filter_map(|difference| {
            difference.expected.min(difference.held).or(difference.held.or(difference.expected))
        });
        let doubt = VerifyDoubt {
            keys: differing.iter().take(NAMED_KEYS).map(|difference| difference.key.clone()).collect(),
            count: differing.len() as u64,
            from_revision: since.min().unwrap_or(0),
            to_revision: current,
        };
        let leads = id == self.inner.id;
        let mut detail = why.to_string();
        if leads {
            let VerifyDoubt { count, from_revision, to_revision, .. } = &doubt;
            let words = format!(
                "it leads: its answers about {count} keys at revisions {from_revision} to {to_revision} are in doubt"
            );
            why.what = format!("{}; {words}", why.what);
            detail = format!("{detail}; {words}");
        }
        tracing::error!(member = self.members.get(&id).map(|member| &member.name), detail, "a member is wrong");
        self.found(id, VerifyState::Differs, detail);
        if let Some(member) = self.members.get_mut(&id) {
            member.doubt = Some(doubt);
        }
        if leads {
            self.own.get_or_insert(why);
        } else if let Err(error) = self.inner.order_quarantine(id, why).await {
            self.notes.push(format!("a member that is wrong could not be told so: {error:?}"));
        }
    }

    async fn report(self, revision: Revision) {
        let wrong = |member: &VerifyMember| {
            matches!(member.state, VerifyState::Differs | VerifyState::Damaged | VerifyState::Quarantined)
        };
        let mut members: Vec<VerifyMember> = self.members.into_values().collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let report = VerifyReport {
            revision,
            leader: self.inner.info.name.clone(),
            agreed: !members.iter().any(wrong),
            complete: members.iter().all(|member| member.state == VerifyState::Agrees || wrong(member)),
            keys: self.keys,
            bytes: self.bytes,
            seconds: self.began.elapsed().as_secs_f64(),
            members,
            notes: self.notes,
        };
        let (agreed, complete) = (report.agreed, report.complete);
        tracing::info!(revision, agreed, complete, "verification has ended");
        let found: Vec<&str> = report.members.iter().filter(|member| wrong(member)).map(|m| m.name.as_str()).collect();
        let detail = match (agreed, complete) {
            (true, true) => format!("all members hold the same at revision {revision}"),
            (true, false) => format!("what was verified is the same at revision {revision}; not all could be verified"),
            (false, _) => format!("at revision {revision} these are wrong: {}", found.join(", ")),
        };
        self.inner.events.record("verified", detail);
        let _ = self.lines.send(encode(&VerifyLine::Report(report))).await;
        if let Some(why) = self.own {
            self.inner.quarantine(why);
        }
    }
}

enum Compared {
    Done,
    Compacted,
}

/// Lets one member read all its files. Gives how many bytes it read, and the damage it found.
async fn scrub_member(
    inner: Arc<Inner>,
    id: MemberId,
    counts: Arc<Counts>,
) -> (MemberId, u64, Result<Option<Damage>, Unasked>) {
    let (mut from, mut read, mut counted) = (0, 0, false);
    loop {
        let question = ScrubQuestion { from, bytes_per_second: inner.verify_bytes_per_second };
        match inner.ask_scrub(id, question).await {
            Ok(ScrubAnswer::Sound { next, bytes, left }) => {
                read += bytes;
                if !counted {
                    counts.total.fetch_add(bytes + left, Ordering::Relaxed);
                    counted = true;
                }
                counts.done.fetch_add(bytes, Ordering::Relaxed);
                counts.bytes.fetch_add(bytes, Ordering::Relaxed);
                match next {
                    // Never back: a member that says otherwise would be asked for ever.
                    Some(next) if next > from => from = next,
                    _ => return (id, read, Ok(None)),
                }
            }
            Ok(ScrubAnswer::Damaged(damage)) => return (id, read, Ok(Some(damage))),
            Ok(ScrubAnswer::Failed(why)) => return (id, read, Err(Unasked::Unreachable(why))),
            Err(why) => return (id, read, Err(why)),
        }
    }
}

/// A key of which two members hold different things.
struct Difference {
    key: String,
    expected: Option<Revision>,
    held: Option<Revision>,
}

/// What differs between two lists of keys, in the order of keys.
fn differences(expected: &[(String, String, Revision)], held: &[(String, String, Revision)]) -> Vec<Difference> {
    let by_key = |list: &[(String, String, Revision)]| -> BTreeMap<Vec<u8>, (String, Revision)> {
        let pairs = list.iter().filter_map(|(key, hash, at)| Some((bytes(key)?.to_vec(), (hash.clone(), *at))));
        pairs.collect()
    };
    let (expected, held) = (by_key(expected), by_key(held));
    let keys: BTreeSet<&Vec<u8>> = expected.keys().chain(held.keys()).collect();
    let differ = keys.into_iter().filter(|key| expected.get(*key) != held.get(*key));
    let revision = |map: &BTreeMap<Vec<u8>, (String, Revision)>, key: &Vec<u8>| map.get(key).map(|(_, at)| *at);
    differ
        .map(|key| Difference {
            key: key_words(key.get(1..).unwrap_or_default()),
            expected: revision(&expected, key),
            held: revision(&held, key),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::verify::ask::text;

    #[test]
    fn what_differs_is_named_in_the_order_of_keys() {
        let key = |name: &str, hash: &str, at| (text(&format!("\u{1}{name}").into()), hash.to_owned(), at);
        let expected = [key("a", "x", 1), key("b", "x", 2), key("d", "x", 4)];
        let held = [key("a", "x", 1), key("b", "y", 2), key("c", "x", 3)];
        let found = differences(&expected, &held);
        let found: Vec<_> = found.iter().map(|d| (d.key.as_str(), d.expected, d.held)).collect();
        assert_eq!(found, [("\"b\"", Some(2), Some(2)), ("\"c\"", None, Some(3)), ("\"d\"", Some(4), None)]);
    }
}
