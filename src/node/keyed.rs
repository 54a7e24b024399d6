//! Keyed requests on their way through the log: which are proposed and not answered yet, and for which there is no place
//! among the outcomes that are kept.
//!
//! The leader decides before it proposes, as what it has applied is newest; but what it has applied lacks what is under
//! way, up to a few batches. So the keys under way are counted too, and `max_outcomes` holds.
//!
//! A key that is remembered, or is under way, is *known*: its request is let through whatever else is refused, because it
//! makes nothing larger and the answer is its first outcome. To refuse it would tell somebody "not applied" of what was.
//!
//! What nobody can answer any more (the quorum is gone) is no longer counted; it may be applied later, beyond the bound by
//! as much as was under way. Proven by the tests here and by `node/tests.rs`.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::proposals::Waiting;
use super::{Inner, NodeError};
use crate::model::idempotency_of;
use crate::store::ReadError;

/// The keys of the requests that are proposed and not answered yet, and how many requests have each.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<HashMap<Box<[u8]>, usize>>);

impl UnderWay {
    fn count(&self) -> u64 {
        self.0.lock().len() as u64
    }

    fn has(&self, key: &[u8]) -> bool {
        self.0.lock().contains_key(key)
    }

    fn enter(&self, key: &[u8]) {
        *self.0.lock().entry(key.into()).or_default() += 1;
    }

    /// A request has its answer, or never gets one.
    pub(super) fn leave(&self, key: &[u8]) {
        let mut keys = self.0.lock();
        if let Some(count) = keys.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                keys.remove(key);
            }
        }
    }

    /// Takes the requests whose outcomes have a place, of which `kept` are used; says what to answer the others.
    fn admit(
        &self,
        batch: Vec<Waiting>,
        places: u64,
        kept: impl Fn() -> u64,
        remembers: impl Fn(&[u8]) -> Result<bool, ReadError>,
    ) -> (Vec<Waiting>, Vec<(Waiting, NodeError)>) {
        // In this order: what is applied in between is counted twice and not missed.
        let under_way = self.count();
        let kept = kept();
        let mut room = places.saturating_sub(kept).saturating_sub(under_way);
        let is_plenty = batch.len() as u64 <= room;
        let (mut taken, mut refused) = (Vec::with_capacity(batch.len()), Vec::new());
        for waiting in batch {
            let Some(key) = idempotency_of(&waiting.command) else {
                taken.push(waiting);
                continue;
            };
            if !is_plenty && !self.has(key) {
                match remembers(key) {
                    Ok(true) => {}
                    Ok(false) if room > 0 => room -= 1,
                    Ok(false) => {
                        refused.push((waiting, NodeError::OutcomesFull { kept }));
                        continue;
                    }
                    Err(error) => {
                        refused.push((waiting, NodeError::StorageFailed { detail: error.to_string() }));
                        continue;
                    }
                }
            }
            self.enter(key);
            taken.push(waiting);
        }
        (taken, refused)
    }
}

impl Inner {
    /// Answers the keyed requests for whose outcomes there is no place; gives back the others, which are under way from now
    /// on. Only the task that proposes calls it.
    pub(super) fn refuse_outcomes(&self, batch: Vec<Waiting>) -> Vec<Waiting> {
        let kept = || self.store.records().outcomes;
        let (taken, refused) = self.under_way.admit(batch, self.max_outcomes, kept, |key| self.store.remembers(key));
        for (waiting, error) in refused {
            // A receiver that is gone has stopped waiting.
            let _ = waiting.answer.send(Err(error));
        }
        taken
    }

    /// Whether a request was executed already, or is about to be. When that cannot be read it counts as new; whoever
    /// proposes it meets the error again.
    pub(super) fn is_known(&self, waiting: &Waiting) -> bool {
        idempotency_of(&waiting.command)
            .is_some_and(|key| self.under_way.has(key) || self.store.remembers(key).unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{Command, IdempotencyKey, LeaseGrant, Request, RequestCommand};

    fn keyed(name: &str) -> Waiting {
        let key = IdempotencyKey { key: Bytes::copy_from_slice(name.as_bytes()), fingerprint: [0; 16] };
        let request = Request::Grant(LeaseGrant { id: 1, ttl_ms: 1000 });
        let command = Command::Request(RequestCommand { time_ms: 0, idempotency: Some(key), request }).encode();
        Waiting::new(command, false, tokio::sync::oneshot::channel().0)
    }

    fn plain() -> Waiting {
        let command = Command::Write(Default::default()).encode();
        Waiting::new(command, false, tokio::sync::oneshot::channel().0)
    }

    /// How many are taken and how many refused, with three places.
    fn admit(under_way: &UnderWay, kept: &[&str], batch: Vec<Waiting>) -> (usize, usize) {
        let remembers = |key: &[u8]| Ok(kept.iter().any(|name| name.as_bytes() == key));
        let (taken, refused) = under_way.admit(batch, 3, || kept.len() as u64, remembers);
        (taken.len(), refused.len())
    }

    #[test]
    fn what_is_under_way_takes_a_place_until_it_is_answered() {
        let under_way = UnderWay::default();
        assert_eq!(admit(&under_way, &[], vec![keyed("a"), plain(), keyed("b")]), (3, 0));
        assert_eq!(admit(&under_way, &[], vec![keyed("c"), keyed("d"), plain()]), (2, 1), "one place was left");
        assert_eq!(admit(&under_way, &[], vec![keyed("e")]), (0, 1));
        // The same request again needs no place of its own, before and after it is applied.
        assert_eq!(admit(&under_way, &[], vec![keyed("a"), keyed("d")]), (1, 1));
        under_way.leave(b"a");
        assert_eq!(admit(&under_way, &[], vec![keyed("d")]), (0, 1), "a is under way a second time");
        under_way.leave(b"a");
        under_way.leave(b"b");
        assert_eq!(admit(&under_way, &["a", "b"], vec![keyed("d"), keyed("b")]), (1, 1), "c is still under way");
        under_way.leave(b"b");
        under_way.leave(b"c");
        // One that was refused in the end is not kept.
        assert_eq!(admit(&under_way, &["a", "b"], vec![keyed("d"), keyed("e")]), (1, 1));
    }

    #[test]
    fn the_same_key_twice_in_a_batch_takes_one_place() {
        let under_way = UnderWay::default();
        let batch = vec![keyed("a"), keyed("a"), keyed("b"), keyed("b"), keyed("c")];
        assert_eq!(admit(&under_way, &[], batch), (5, 0));
    }
}
