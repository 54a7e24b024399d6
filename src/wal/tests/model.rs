//! The oracle of the random tests: a plain `Vec`, and every state it went through.
//!
//! After a crash the wal must be in one of these states: not before the last confirmed one, not after the last one
//! asked for. Since a batch may be cut between any two records, each record makes a state of its own.

use super::*;

/// What a log amounts to; the committed id apart, which may be older after a crash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    entries: Vec<Entry>,
}

impl Content {
    pub fn of(wal: &Wal) -> Content {
        let WalState { vote, purged, last, .. } = wal.state();
        Content { vote, purged, last, entries: all(wal) }
    }

    /// Adds entries.
    pub fn extend(&mut self, new: Vec<Entry>) {
        self.entries.extend(new);
        self.last = self.entries.last().map(|entry| entry.log_id);
    }

    /// Whether a log that only grew by entries may have looked like this before it looked like `later`; entries that
    /// `later` has replaced or purged are not compared.
    pub fn precedes(&self, later: &Content) -> bool {
        let index = |entry: &&Entry| entry.log_id.index;
        let contiguous = self.entries.windows(2).all(|pair| pair[0].log_id.index + 1 == pair[1].log_id.index);
        let same_or_replaced = self.entries.iter().all(|entry| {
            let counterpart = later.entries.iter().find(|other| index(other) == entry.log_id.index);
            counterpart.is_none_or(|other| other == entry || other.log_id.term > entry.log_id.term)
        });
        contiguous && same_or_replaced
    }
}

/// All states that the log went through, by record.
pub(super) struct Oracle {
    states: Vec<Content>,
    confirmed: usize,
    committed: Option<LogId>,
    /// What `done` will say, and how many records it stands for.
    waiting: VecDeque<(usize, Receiver<Result<(), WalError>>)>,
    pub failed: bool,
    term: u64,
}

impl Oracle {
    pub fn new() -> Oracle {
        Oracle {
            states: vec![Content::default()],
            confirmed: 0,
            committed: None,
            waiting: VecDeque::new(),
            failed: false,
            term: 1,
        }
    }

    /// Goes on from what a restart has reported, which is final.
    pub fn restart(&mut self, wal: &Wal) {
        self.states = vec![Content::of(wal)];
        self.committed = wal.state().committed;
        self.term = self.now().last.map_or(1, |last| last.term);
        (self.confirmed, self.failed) = (0, false);
        self.waiting.clear();
    }

    fn now(&self) -> &Content {
        self.states.last().unwrap()
    }

    fn record(&mut self, change: impl FnOnce(&mut Content)) {
        let mut next = self.now().clone();
        change(&mut next);
        self.states.push(next);
    }

    /// Does something random, to the wal and to the model.
    pub fn step(&mut self, wal: &Wal, rng: &mut StdRng) {
        let (done, result) = done();
        let (last, floor) = (self.now().last, next_index(self.committed.max(self.now().purged)));
        let next = next_index(last);
        match rng.random_range(0..100) {
            0..60 => {
                self.term += u64::from(rng.random_bool(0.1));
                let count = rng.random_range(0..6);
                let bytes = [0, 30, 300, 3000][rng.random_range(0..4)];
                let new: Vec<_> = (next..next + count).map(|index| entry(self.term, index, bytes)).collect();
                for entry in &new {
                    self.record(|content| {
                        content.last = Some(entry.log_id);
                        content.entries.push(entry.clone());
                    });
                }
                wal.append(new, done);
            }
            60..70 => {
                let vote = Vote { term: self.term, member: rng.random(), committed: rng.random() };
                self.record(|content| content.vote = Some(vote));
                wal.save_vote(vote, done);
            }
            70..80 if next > floor => {
                let keep = rng.random_range(floor..=next);
                let purged = self.now().purged;
                self.record(|content| {
                    content.entries.retain(|entry| entry.log_id.index < keep);
                    content.last = content.entries.last().map(|entry| entry.log_id).or(purged);
                });
                self.term += 1;
                wal.truncate_after(self.now().last, done);
            }
            80..90 if !self.now().entries.is_empty() => {
                let at = rng.random_range(0..self.now().entries.len());
                let committed = self.now().entries[at].log_id;
                self.committed = self.committed.max(Some(committed));
                wal.set_committed(committed);
                return;
            }
            90..98 if next_index(self.committed) > next_index(self.now().purged) => {
                let upto = self.committed.unwrap();
                self.record(|content| {
                    content.entries.retain(|entry| entry.log_id.index > upto.index);
                    content.purged = Some(upto);
                });
                wal.purge(upto);
                return;
            }
            98 => {
                let upto = id(self.term, next + rng.random_range(0..5));
                self.committed = Some(upto);
                self.record(|content| {
                    *content = Content { purged: Some(upto), last: Some(upto), vote: content.vote, entries: vec![] };
                });
                wal.purge(upto);
                return;
            }
            _ => return,
        }
        self.waiting.push_back((self.states.len() - 1, result));
        if rng.random_bool(0.3) {
            self.wait();
        }
    }

    /// Waits for everything that was asked for.
    pub fn wait(&mut self) {
        for (state, result) in self.waiting.drain(..) {
            match result.recv().unwrap() {
                Ok(()) if self.failed => panic!("confirmed after a failure"),
                Ok(()) => self.confirmed = state,
                Err(_) => self.failed = true,
            }
        }
    }

    /// The wal is exactly where the model is.
    pub fn check_now(&self, wal: &Wal) {
        assert_eq!(&Content::of(wal), self.now());
        assert_eq!(wal.state().committed, self.committed);
    }

    /// After a crash: the wal is in a state that the model went through, not before the last confirmed one.
    pub fn check_after_crash(&self, wal: &Wal) {
        let found = Content::of(wal);
        let allowed = &self.states[self.confirmed..];
        assert!(
            allowed.contains(&found),
            "found {found:?}, confirmed {:?}, asked for {:?}, known before: {:?}",
            self.states[self.confirmed],
            self.now(),
            self.states[..self.confirmed].iter().rposition(|state| *state == found),
        );
        let committed = wal.state().committed;
        assert!(next_index(committed) <= next_index(self.committed), "committed {committed:?} was never said");
        assert!(next_index(committed) <= next_index(found.last), "committed {committed:?} is beyond the log");
        if let Some(committed) = committed.filter(|committed| next_index(found.purged) <= committed.index) {
            assert_eq!(wal.log_id_at(committed.index).unwrap(), Some(committed));
        }
    }
}

#[test]
fn the_wal_does_what_a_vector_does_and_remembers_it() {
    for round in 0..20 {
        let seed = seed(1000 + round);
        let _note = OnPanic(format!("LIFEBOAT_TEST_SEED={seed}"));
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimDisk::new();
        let mut oracle = Oracle::new();
        let mut config = config();
        config.memory_bytes = [0, 2000, 1 << 20][rng.random_range(0..3)];
        for _ in 0..6 {
            let wal = open_with(&disk, config.clone()).unwrap();
            oracle.check_now(&wal);
            for _ in 0..rng.random_range(0..60) {
                oracle.step(&wal, &mut rng);
            }
            oracle.check_now(&wal);
            oracle.wait();
            assert!(!oracle.failed, "{:?}", wal.failure());
            oracle.check_now(&wal);
            wal.close().unwrap();
        }
    }
}
