//! Concurrent clients that record what they ask and what they are told, while a test hurts the cluster.
//!
//! Half of the clients keep to one member each, the others go to any; a request takes whatever member it meets. The
//! clients write *registers*, few keys that all of them fight over, for the judge of [`super::history`], by plain writes
//! and by transactions; and *journal* entries, each under a key of its own and never overwritten: an acknowledged one
//! must be there at the end, and one that was refused as not applied must not. They do not retry: a retry would hide what
//! the judge wants to see.
//!
//! An answer that the contract does not know is a failure of the test, whatever else happens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use serde_json::json;

use super::history::{Asked, By, Clock, Condition, Glimpse, History, Record, Told};
use super::http::{Answer, Connection, Failure, Request};
use super::{Seed, wait_for};

/// How many clients work at once.
const CLIENTS: usize = 8;
/// How many registers they fight over.
pub const REGISTERS: u32 = 5;
/// How long a client waits for an answer. Shorter than the server's own limit, so that a member which stands still
/// costs a client little, and makes an unknown fate.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest pause of a client between two operations. It bounds the length of the history, no more.
const LONGEST_PAUSE_MICROS: u64 = 4_000;
/// The pause after a failure, so that a member that is down is not asked thousands of times.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    targets: Vec<SocketAddr>,
    threads: Vec<JoinHandle<Notes>>,
}

#[derive(Default)]
struct Shared {
    clock: Clock,
    next_value: AtomicU64,
    stop: AtomicBool,
    acknowledged_writes: AtomicU64,
}

/// What one client wrote down.
#[derive(Default)]
struct Notes {
    records: Vec<Record>,
    glimpses: Vec<Glimpse>,
    journal: Journal,
    breaches: Vec<String>,
}

/// The fates of the journal's entries, by key.
#[derive(Debug, Default)]
pub struct Journal {
    /// Acknowledged, at these revisions.
    pub written: BTreeMap<String, u64>,
    /// Promised not to be applied.
    pub refused: BTreeSet<String>,
    /// Neither.
    pub unknown: BTreeSet<String>,
}

/// What all clients wrote down.
pub struct Outcome {
    /// The registers.
    pub history: History,
    /// The journal.
    pub journal: Journal,
    shared: Arc<Shared>,
    targets: Vec<SocketAddr>,
}

impl Load {
    /// Puts clients to work on these members.
    pub fn start(seed: &Seed, targets: Vec<SocketAddr>) -> Load {
        let shared = Arc::new(Shared { next_value: AtomicU64::new(1), ..Shared::default() });
        let threads = (0..CLIENTS)
            .map(|number| {
                let client = Client {
                    number,
                    home: (number % 2 == 0).then_some(number / 2 % targets.len()),
                    targets: targets.clone(),
                    connections: targets.iter().map(|_| None).collect(),
                    rng: seed.rng(1 + number as u64),
                    shared: Arc::clone(&shared),
                    remembered: [None; REGISTERS as usize],
                    notes: Notes::default(),
                };
                std::thread::spawn(move || client.work())
            })
            .collect();
        Load { shared, targets, threads }
    }

    /// Waits until so many writes more have been acknowledged.
    pub fn wait_progress(&self, writes: u64) {
        let start = self.shared.acknowledged_writes.load(Ordering::Relaxed);
        wait_for(&format!("{writes} acknowledged writes"), || {
            let count = self.shared.acknowledged_writes.load(Ordering::Relaxed) - start;
            if count >= writes { Ok(()) } else { Err(format!("only {count}")) }
        });
    }

    /// A moment of the clock by which the clients note when an operation began and ended.
    pub fn now(&self) -> i64 {
        self.shared.clock.now()
    }

    /// Lets the clients finish their last operation and collects what they wrote down.
    pub fn finish(mut self) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Notes::default();
        for thread in self.threads.drain(..) {
            let notes = thread.join().expect("a client does not panic");
            all.records.extend(notes.records);
            all.glimpses.extend(notes.glimpses);
            all.breaches.extend(notes.breaches);
            all.journal.written.extend(notes.journal.written);
            all.journal.refused.extend(notes.journal.refused);
            all.journal.unknown.extend(notes.journal.unknown);
        }
        assert!(all.breaches.is_empty(), "answers that the contract does not know:\n{}", all.breaches.join("\n"));
        let history = History { records: all.records, glimpses: all.glimpses };
        let (shared, targets) = (Arc::clone(&self.shared), self.targets.clone());
        Outcome { history, journal: all.journal, shared, targets }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // A test that fails must not leave clients behind that talk to addresses of the next.
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Outcome {
    /// Reads every register once more at a member and adds what it says to the history. The read must succeed.
    pub fn read_all(&mut self, member: SocketAddr) {
        for key in 0..REGISTERS {
            let began = self.shared.clock.now();
            let answer = Request::new("GET", &register(key)).send(member);
            let told = read_told(&answer).unwrap_or_else(|reason| panic!("the last read of {key}: {reason}"));
            let ended = self.shared.clock.now();
            let who = format!("last read at {member}");
            let number = self.targets.iter().position(|target| *target == member).expect("a member of the load");
            let by = By { member: number, timeline: timeline(&answer) };
            self.history.records.push(Record { key, who, began, ended, asked: Asked::Get, told, by });
        }
    }

    /// Fails unless the content (lines of JSON, one an item) agrees with what the journal's writers were told.
    #[track_caller]
    pub fn assert_journal(&self, content: &[String]) {
        let mut present = BTreeSet::new();
        for line in content {
            let item: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
            let key = item["key"].as_str().unwrap_or_else(|| panic!("no key in {line}"));
            if key.starts_with("journal/") {
                assert_eq!(item["value"], key, "another value than was written");
                assert_eq!(item["version"], 1, "written more than once: {line}");
                present.insert(key.to_string());
            }
        }
        let lost: Vec<_> = self.journal.written.keys().filter(|key| !present.contains(*key)).collect();
        assert!(lost.is_empty(), "{} acknowledged writes are lost: {lost:?}", lost.len());
        let risen: Vec<_> = self.journal.refused.intersection(&present).collect();
        assert!(risen.is_empty(), "writes appeared that were refused as not applied: {risen:?}");
        let unasked: Vec<_> = present
            .iter()
            .filter(|k| !self.journal.written.contains_key(*k) && !self.journal.unknown.contains(*k))
            .collect();
        assert!(unasked.is_empty(), "entries that nobody wrote: {unasked:?}");
    }
}

struct Client {
    number: usize,
    home: Option<usize>,
    targets: Vec<SocketAddr>,
    connections: Vec<Option<Connection>>,
    rng: StdRng,
    shared: Arc<Shared>,
    /// The value and revision that this client saw last of each register.
    remembered: [Option<(u64, u64)>; REGISTERS as usize],
    notes: Notes,
}

impl Client {
    fn work(mut self) -> Notes {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let target = self.home.unwrap_or_else(|| self.rng.random_range(0..self.targets.len()));
            let key = self.rng.random_range(0..REGISTERS);
            let fine = match self.rng.random_range(0..100) {
                0..45 => self.read(target, key),
                45..50 => self.glimpse(target, key),
                50..60 => self.write_journal(target),
                _ => self.write(target, key),
            };
            let pause = Duration::from_micros(self.rng.random_range(0..LONGEST_PAUSE_MICROS));
            std::thread::sleep(if fine { pause } else { PAUSE_AFTER_FAILURE });
        }
        self.notes
    }

    fn send(&mut self, target: usize, request: &Request) -> Result<Answer, Failure> {
        let mut connection = match self.connections[target].take() {
            Some(connection) => connection,
            None => Connection::open_within(self.targets[target], ANSWER_TIMEOUT).map_err(Failure::NotSent)?,
        };
        let answer = request.try_send_on(&mut connection)?;
        if answer.header("connection") != Some("close") {
            self.connections[target] = Some(connection);
        }
        Ok(answer)
    }

    fn read(&mut self, target: usize, key: u32) -> bool {
        let began = self.shared.clock.now();
        let Ok(answer) = self.send(target, &Request::new("GET", &register(key))) else { return false };
        let ended = self.shared.clock.now();
        match read_told(&answer) {
            Ok(told) => {
                self.remembered[key as usize] = match told {
                    Told::Value(value, revision) => Some((value, revision)),
                    _ => None,
                };
                self.note(By { member: target, timeline: timeline(&answer) }, key, (began, ended), Asked::Get, told);
                true
            }
            Err(reason) => self.breach_unless_retriable(&answer, reason),
        }
    }

    fn glimpse(&mut self, target: usize, key: u32) -> bool {
        let path = format!("{}?consistency=stale", register(key));
        let Ok(answer) = self.send(target, &Request::new("GET", &path)) else { return false };
        match read_told(&answer) {
            Ok(Told::Value(value, revision)) => {
                let by = By { member: target, timeline: timeline(&answer) };
                self.notes.glimpses.push(Glimpse { key, value, revision, by });
            }
            Ok(_) => {}
            Err(reason) => return self.breach_unless_retriable(&answer, reason),
        }
        true
    }

    /// A read may fail with 503, and at a fenced member; nothing else.
    fn breach_unless_retriable(&mut self, answer: &Answer, reason: String) -> bool {
        let fenced = answer.status == 421 && answer.json()["type"] == "urn:lifeboat:problem:fenced";
        if answer.status != 503 && !fenced {
            self.notes.breaches.push(reason);
        }
        false
    }

    fn write(&mut self, target: usize, key: u32) -> bool {
        let value = self.shared.next_value.fetch_add(1, Ordering::Relaxed);
        let remembered = self.remembered[key as usize];
        let (asked, condition_header) = match (self.rng.random_range(0..10), remembered) {
            (0, _) => (Asked::Delete(Condition::Always), None),
            (1, Some((old, revision))) => (Asked::Delete(Condition::Holds(old)), Some(("If-Match", revision))),
            (2, _) => (Asked::Put(value, Condition::Absent), None),
            (3..=6, Some((old, revision))) => (Asked::Put(value, Condition::Holds(old)), Some(("If-Match", revision))),
            _ => (Asked::Put(value, Condition::Always), None),
        };
        let request = if self.rng.random_range(0..4) == 0 {
            transaction(key, asked, condition_header.map(|(_, revision)| revision))
        } else {
            let mut request = match asked {
                Asked::Put(..) => Request::new("PUT", &register(key)).body(value.to_string()),
                _ => Request::new("DELETE", &register(key)),
            };
            if let Some((name, revision)) = condition_header {
                request = request.header(name, &format!("\"{revision}\""));
            } else if matches!(asked, Asked::Put(_, Condition::Absent)) {
                request = request.header("If-None-Match", "*");
            }
            request
        };
        let began = self.shared.clock.now();
        let (told, timeline) = self.told_of_write(target, &request);
        let ended = self.shared.clock.now();
        if let Told::Done { .. } = told {
            self.shared.acknowledged_writes.fetch_add(1, Ordering::Relaxed);
        }
        self.remembered[key as usize] = match (asked, told) {
            (Asked::Put(value, _), Told::Done { revision: Some(revision), .. }) => Some((value, revision)),
            _ => None,
        };
        self.note(By { member: target, timeline }, key, (began, ended), asked, told);
        !matches!(told, Told::Unknown | Told::NotApplied)
    }

    fn write_journal(&mut self, target: usize) -> bool {
        let number = self.shared.next_value.fetch_add(1, Ordering::Relaxed);
        let key = format!("journal/{}/{number}", self.number);
        let request = Request::new("PUT", &format!("/v1/kv/{key}")).body(&key);
        let fate = match self.told_of_write(target, &request).0 {
            Told::Done { revision, .. } => {
                let revision = revision.expect("a write of a new key makes a revision");
                return self.notes.journal.written.insert(key, revision).is_none();
            }
            Told::NotApplied => &mut self.notes.journal.refused,
            _ => &mut self.notes.journal.unknown,
        };
        fate.insert(key)
    }

    /// What became of a write, and on which timeline.
    fn told_of_write(&mut self, target: usize, request: &Request) -> (Told, Option<u128>) {
        match self.send(target, request) {
            Err(Failure::NotSent(_)) => (Told::NotApplied, None),
            Err(Failure::Unknown(_)) => (Told::Unknown, None),
            Ok(answer) => match write_told(&answer) {
                Ok(told) => (told, timeline(&answer)),
                Err(breach) => {
                    self.notes.breaches.push(breach);
                    (Told::Unknown, None)
                }
            },
        }
    }

    fn note(&mut self, by: By, key: u32, (began, ended): (i64, i64), asked: Asked, told: Told) {
        let who = format!("client {} at {}", self.number, self.targets[by.member].ip());
        self.notes.records.push(Record { key, who, began, ended, asked, told, by });
    }
}

/// The timeline that an answer says its member is on.
fn timeline(answer: &Answer) -> Option<u128> {
    let id = answer.header("lifeboat-timeline")?;
    Some(u128::from_str_radix(id, 16).unwrap_or_else(|error| panic!("no timeline ({error}): {answer}")))
}

/// The path of a register.
pub fn register(key: u32) -> String {
    format!("/v1/kv/register/{key}")
}

/// The same write as a transaction, which reads the register when its condition does not hold.
fn transaction(key: u32, asked: Asked, revision: Option<u64>) -> Request {
    let key = format!("register/{key}");
    let (condition, op) = match asked {
        Asked::Put(value, condition) => (condition, json!({"put": {"key": key, "value": value.to_string()}})),
        Asked::Delete(condition) => (condition, json!({"delete": {"key": key}})),
        Asked::Get => unreachable!("a read is no write"),
    };
    let compare = match condition {
        Condition::Always => json!([]),
        Condition::Absent => json!([{"key": key, "target": "version", "op": "==", "value": 0}]),
        Condition::Holds(_) => json!([{"key": key, "target": "mod_revision", "op": "==", "value": revision}]),
    };
    let body = json!({"compare": compare, "then": [op], "else": [{"get": {"key": key}}]});
    Request::new("POST", "/v1/txn").body(body.to_string())
}

/// What an answer to a read says.
fn read_told(answer: &Answer) -> Result<Told, String> {
    match answer.status {
        200 => {
            let revision = answer.etag_revision().ok_or(format!("a read without an ETag: {answer}"))?;
            let value = answer.text().parse().map_err(|error| format!("a value nobody wrote ({error}): {answer}"))?;
            Ok(Told::Value(value, revision))
        }
        404 => Ok(Told::Nothing),
        _ => Err(answer.to_string()),
    }
}

/// What an answer to a write says. An answer that says neither what happened nor that this is unknown is a breach.
fn write_told(answer: &Answer) -> Result<Told, String> {
    match answer.status {
        200 if answer.json().get("results").is_some() => {
            let body = answer.json();
            let (revision, result) = (body["revision"].as_u64(), &body["results"][0]);
            if body["succeeded"] == false {
                return Ok(Told::ConditionFailed(result["get"]["item"]["mod_revision"].as_u64()));
            }
            let done = result.get("put").or(result.get("delete")).ok_or(format!("no result of a write: {answer}"))?;
            let revision = if done["deleted"] == 0 { None } else { revision };
            Ok(Told::Done { revision, previous: done["previous_revision"].as_u64() })
        }
        200 | 201 => {
            let body = answer.json();
            let revision = body["revision"].as_u64().ok_or(format!("a write without a revision: {answer}"))?;
            let revision = (body["deleted"] != 0).then_some(revision);
            Ok(Told::Done { revision, previous: body["previous_revision"].as_u64() })
        }
        412 => Ok(Told::ConditionFailed(answer.etag_revision())),
        _ => {
            let problem = answer.json();
            match (answer.status, problem["outcome"].as_str()) {
                (503 | 429 | 421, Some("not-applied")) => Ok(Told::NotApplied),
                (504, Some("unknown")) => Ok(Told::Unknown),
                _ => Err(answer.to_string()),
            }
        }
    }
}
