//! Apply of requests: transactions with branches, leases, and outcomes that are remembered.
//!
//! As everywhere in apply, what comes of a request depends on the log alone. A request that is refused leaves no trace,
//! except that a keyed one leaves its outcome. All comparisons are evaluated before the first operation; reads see what
//! the operations before them did.
//!
//! The bounds here are part of the format: every member must refuse the same, for ever.
//!
//! Proven by `store/tests/requests.rs`.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::apply::{Applier, Before, Context, DeleteBudget, Done, Failure};
use super::records::{self, OUTCOME_KEPT_MS};
use super::state::{index_end, index_key};
use crate::history::FrameOutcome;
use crate::index::{IndexEntry, IndexKey};
use crate::model::{
    Compare, CompareOp, CompareTarget, IdempotencyKey, KeyMeta, KeySet, KeySpace, LeaseGrant, OpResult, Outcome,
    Request, RequestCommand, Revision, Txn, TxnItem, TxnOp, TxnOutcome, TxnResult,
};

/// A range that a transaction compares or reads has at most so many keys.
const MAX_RANGE_KEYS: usize = 1000;
/// A transaction reads values and keys of at most so many bytes.
const MAX_READ_BYTES: usize = 4 << 20;
/// How many keys a scan looks at in one step.
const SCAN_ENTRIES: usize = 256;

/// Why a request ends before it is done.
pub(super) enum Stop {
    /// This member cannot go on.
    Failed(Failure),
    /// Every member refuses it.
    Refused(Outcome),
}

impl<E: Into<Failure>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Failed(error.into())
    }
}

/// A transaction whose comparisons are evaluated.
struct Decided<'t> {
    succeeded: bool,
    ops: Vec<DecidedOp<'t>>,
}

enum DecidedOp<'t> {
    Op(&'t TxnOp),
    Txn(Decided<'t>),
}

/// What a transaction has done so far.
struct Run {
    revision: Revision,
    budget: DeleteBudget,
    read_bytes: usize,
    /// The values it wrote, by index key.
    written: BTreeMap<IndexKey, Bytes>,
}

impl Applier {
    pub(super) fn request(&mut self, cx: &Context, before: &Before, command: RequestCommand) -> Result<Done, Failure> {
        let RequestCommand { time_ms, idempotency, request } = command;
        // Only this one may touch records that the head follows.
        let system = matches!(request, Request::Record { value: Some(_), .. });
        let canary = matches!(request, Request::Canary);
        let done = |outcome, frame_outcome| Done { outcome, frame_outcome, time_ms, system, canary, jump: None };
        if let Some(key) = &idempotency
            && let Some(outcome) = self.remembered(cx, before, key)?
        {
            return Ok(done(outcome, FrameOutcome::Refused));
        }
        let now_ms = before.clock_ms.max(time_ms);
        let (outcome, frame_outcome) = match self.perform_request(cx, before, now_ms, request) {
            Ok(outcome) => (outcome, FrameOutcome::Written),
            Err(Stop::Failed(failure)) => return Err(failure),
            Err(Stop::Refused(outcome)) => {
                self.forget();
                (outcome, FrameOutcome::Refused)
            }
        };
        let Some(IdempotencyKey { key, fingerprint }) = idempotency else {
            return Ok(done(outcome, frame_outcome));
        };
        let mut record = records::outcome_value(now_ms, &fingerprint, &outcome);
        let (mut outcome, mut frame_outcome) = (outcome, frame_outcome);
        if record.len() > records::MAX_OUTCOME_BYTES {
            // The refusal is remembered instead: a repeat must not be executed after all.
            self.forget();
            (outcome, frame_outcome) = (Outcome::TooLarge { revision: before.revision }, FrameOutcome::Refused);
            record = records::outcome_value(now_ms, &fingerprint, &outcome);
        }
        for (name, value) in
            [(records::outcome_key(&key), record.into()), (records::order_key(now_ms, &key), Bytes::new())]
        {
            self.put(cx, before.revision + 1, KeySpace::System, name, value, 0)?;
        }
        Ok(done(outcome, frame_outcome))
    }

    /// What became of a request that was executed before; none for a new one.
    fn remembered(&mut self, cx: &Context, before: &Before, key: &IdempotencyKey) -> Result<Option<Outcome>, Failure> {
        let name = index_key(KeySpace::System, &records::outcome_key(&key.key));
        let Some(entry) = cx.body.newest(&name)? else { return Ok(None) };
        let Some(value) = cx.value(&name, entry)? else { return Ok(None) };
        let (fingerprint, outcome) = records::read_outcome(&value)?;
        if fingerprint != key.fingerprint {
            return Ok(Some(Outcome::OtherRequest { revision: before.revision }));
        }
        Ok(Some(Outcome::Replayed(Box::new(outcome))))
    }

    fn perform_request(
        &mut self,
        cx: &Context,
        before: &Before,
        now_ms: u64,
        request: Request,
    ) -> Result<Outcome, Stop> {
        let revision = before.revision + 1;
        match request {
            Request::Write { grant, guards, ops } => {
                if let Some(refused) = self.check_guards(cx, before, &guards)? {
                    return Err(Stop::Refused(refused));
                }
                if let Some(grant) = grant {
                    self.grant(cx, before, grant)?;
                }
                for op in &ops {
                    if let crate::model::WriteOp::Put { space: KeySpace::User, lease, .. } = op {
                        self.check_lease(cx, before, *lease)?;
                    }
                }
                let Some(results) = self.write_ops(cx, revision, ops)? else {
                    return Err(Stop::Refused(Outcome::TooLarge { revision: before.revision }));
                };
                Ok(Outcome::Written { revision: self.revision_after(before), results })
            }
            Request::Txn(txn) => {
                let decided = self.decide(cx, before, &txn)?;
                let mut run =
                    Run { revision, budget: DeleteBudget::default(), read_bytes: 0, written: BTreeMap::new() };
                let outcome = self.execute(cx, before, &decided, &mut run)?;
                Ok(Outcome::Txn { revision: self.revision_after(before), outcome })
            }
            Request::Grant(grant) => {
                let granted = self.grant(cx, before, grant)?;
                Ok(Outcome::Written { revision, results: vec![granted] })
            }
            Request::Revoke { id, granted, term, max_keys } => {
                if term != 0 && term != before.term {
                    return Err(Stop::Refused(Outcome::NoLease { revision: before.revision, lease: id }));
                }
                self.revoke(cx, before, id, granted, max_keys)
            }
            Request::Sweep { max } => {
                let count = self.sweep(cx, before, now_ms, max)?;
                let results = vec![OpResult::Deleted { count, previous: None }];
                Ok(Outcome::Written { revision: self.revision_after(before), results })
            }
            Request::Sequence { name, count, step } => self.sequence(cx, before, &name, count, step),
            Request::Canary => Ok(Outcome::None),
            Request::Record { key, written, value } => self.record(cx, before, key, written, value),
        }
    }

    /// Writes or deletes a record that is as its writer saw it.
    fn record(
        &mut self,
        cx: &Context,
        before: &Before,
        key: Bytes,
        written: Revision,
        value: Option<Bytes>,
    ) -> Result<Outcome, Stop> {
        let (_, now) = self.versions(cx, KeySpace::System, &key)?;
        let current = now.and_then(|entry| entry.meta());
        if current.map_or(0, |meta| meta.mod_revision) != written {
            return Err(Stop::Refused(Outcome::Refused { revision: before.revision, guard: 0, current }));
        }
        let revision = before.revision + 1;
        let result = match value {
            Some(value) => self.put(cx, revision, KeySpace::System, key, value, 0)?,
            None => {
                let previous = self.delete(cx, revision, KeySpace::System, key)?;
                OpResult::Deleted { count: u64::from(previous.is_some()), previous }
            }
        };
        Ok(Outcome::Written { revision: self.revision_after(before), results: vec![result] })
    }

    /// Its result names the lease, which a request that is repeated may not know.
    fn grant(&mut self, cx: &Context, before: &Before, grant: LeaseGrant) -> Result<OpResult, Stop> {
        let key = records::lease_key(grant.id);
        let (_, now) = self.versions(cx, KeySpace::System, &key)?;
        if now.is_some_and(|entry| entry.live.is_some()) {
            return Err(Stop::Refused(Outcome::LeaseExists { revision: before.revision, lease: grant.id }));
        }
        let revision = before.revision + 1;
        self.put(cx, revision, KeySpace::System, key, records::lease_value(grant.ttl_ms), 0)?;
        let meta = KeyMeta { create_revision: revision, mod_revision: revision, version: 1, lease: grant.id };
        Ok(OpResult::Put { meta, previous: None })
    }

    fn check_lease(&mut self, cx: &Context, before: &Before, lease: u64) -> Result<(), Stop> {
        if lease == 0 {
            return Ok(());
        }
        let (_, now) = self.versions(cx, KeySpace::System, &records::lease_key(lease))?;
        match now {
            Some(entry) if entry.live.is_some() => Ok(()),
            _ => Err(Stop::Refused(Outcome::NoLease { revision: before.revision, lease })),
        }
    }

    /// Its result names the revision at which the lease was granted when the lease itself is gone.
    fn revoke(
        &mut self,
        cx: &Context,
        before: &Before,
        id: u64,
        granted: Revision,
        max_keys: u64,
    ) -> Result<Outcome, Stop> {
        let (_, now) = self.versions(cx, KeySpace::System, &records::lease_key(id))?;
        let found = now.and_then(|entry| entry.meta()).map(|meta| meta.create_revision);
        if found.is_none_or(|found| granted != 0 && granted != found) {
            return Err(Stop::Refused(Outcome::NoLease { revision: before.revision, lease: id }));
        }
        let revision = before.revision + 1;
        let limit = usize::try_from(max_keys).unwrap_or(usize::MAX);
        let (start, end) = records::leased_range(id);
        let leased = self.live_keys(cx, KeySpace::System, &start, Some(&end), limit)?;
        for key in &leased.keys {
            // Its record under the lease goes with it.
            self.delete(cx, revision, KeySpace::User, records::user_key(key))?;
        }
        let previous = match leased.more {
            true => None,
            false => self.delete(cx, revision, KeySpace::System, records::lease_key(id))?,
        };
        let results = vec![OpResult::Deleted { count: leased.keys.len() as u64, previous }];
        Ok(Outcome::Written { revision, results })
    }

    /// Forgets outcomes whose time has passed; returns how many.
    fn sweep(&mut self, cx: &Context, before: &Before, now_ms: u64, max: u64) -> Result<u64, Stop> {
        let oldest_ms = cx.body.state.read().counted.oldest_ms;
        let (start, end) = records::order_range(oldest_ms);
        let limit = usize::try_from(max).unwrap_or(usize::MAX);
        let order = self.live_keys(cx, KeySpace::System, &start, Some(&end), limit)?;
        let (mut count, mut reached_ms) = (0, oldest_ms);
        for key in order.keys {
            let (time_ms, idempotency) = records::split_order(&key)?;
            reached_ms = time_ms;
            if time_ms + OUTCOME_KEPT_MS > now_ms {
                break;
            }
            self.delete(cx, before.revision + 1, KeySpace::System, records::outcome_key(&idempotency))?;
            self.delete(cx, before.revision + 1, KeySpace::System, key)?;
            count += 1;
        }
        // Where the next sweep begins; it only spares work, as everything older is gone.
        cx.body.state.write().counted.oldest_ms = reached_ms;
        Ok(count)
    }

    fn decide<'t>(&mut self, cx: &Context, before: &Before, txn: &'t Txn) -> Result<Decided<'t>, Stop> {
        let mut succeeded = true;
        for compare in &txn.compare {
            if !self.compare(cx, before, compare)? {
                succeeded = false;
                break;
            }
        }
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        let mut ops = Vec::with_capacity(branch.len());
        for op in branch {
            ops.push(match op {
                TxnOp::Txn(nested) => DecidedOp::Txn(self.decide(cx, before, nested)?),
                op => DecidedOp::Op(op),
            });
        }
        Ok(Decided { succeeded, ops })
    }

    fn compare(&mut self, cx: &Context, before: &Before, compare: &Compare) -> Result<bool, Stop> {
        match &compare.keys {
            KeySet::One(key) => self.compare_key(cx, key, compare),
            KeySet::Range { start, end } => {
                let found = self.live_keys(cx, KeySpace::User, start, end.as_deref(), MAX_RANGE_KEYS)?;
                if found.more {
                    return Err(Stop::Refused(Outcome::TooLarge { revision: before.revision }));
                }
                for key in &found.keys {
                    if !self.compare_key(cx, key, compare)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        }
    }

    fn compare_key(&mut self, cx: &Context, key: &[u8], compare: &Compare) -> Result<bool, Stop> {
        let name = index_key(KeySpace::User, key);
        let entry = cx.body.newest(&name)?;
        let meta = entry.and_then(|entry| entry.meta());
        let number = |of: fn(&KeyMeta) -> u64| meta.as_ref().map_or(0, of);
        let ordering = match &compare.target {
            CompareTarget::ModRevision(wanted) => number(|meta| meta.mod_revision).cmp(wanted),
            CompareTarget::CreateRevision(wanted) => number(|meta| meta.create_revision).cmp(wanted),
            CompareTarget::Version(wanted) => number(|meta| meta.version).cmp(wanted),
            CompareTarget::Lease(wanted) => number(|meta| meta.lease).cmp(wanted),
            CompareTarget::Value(wanted) => match entry.map(|entry| cx.value(&name, entry)).transpose()?.flatten() {
                Some(value) => value.as_ref().cmp(wanted),
                None => return Ok(compare.op == CompareOp::NotEqual),
            },
        };
        Ok(compare.op.holds(ordering))
    }

    fn execute(&mut self, cx: &Context, before: &Before, decided: &Decided, run: &mut Run) -> Result<TxnOutcome, Stop> {
        let mut results = Vec::with_capacity(decided.ops.len());
        for op in &decided.ops {
            results.push(match op {
                DecidedOp::Op(op) => self.execute_op(cx, before, op, run)?,
                DecidedOp::Txn(nested) => TxnResult::Txn(self.execute(cx, before, nested, run)?),
            });
        }
        Ok(TxnOutcome { succeeded: decided.succeeded, results })
    }

    fn execute_op(&mut self, cx: &Context, before: &Before, op: &TxnOp, run: &mut Run) -> Result<TxnResult, Stop> {
        match op {
            TxnOp::Put { key, value, lease, previous } => {
                self.check_once(before, key)?;
                self.check_lease(cx, before, *lease)?;
                let replaced = if *previous { Some(self.item(cx, before, key, false, run)?) } else { None };
                let done = self.put(cx, run.revision, KeySpace::User, key.clone(), value.clone(), *lease)?;
                run.written.insert(index_key(KeySpace::User, key).into(), value.clone());
                let OpResult::Put { meta, previous } = done else { unreachable!("a put answers as one") };
                Ok(TxnResult::Put { meta, previous, replaced })
            }
            TxnOp::Delete { key, previous } => {
                self.check_once(before, key)?;
                let deleted = if *previous { Some(self.item(cx, before, key, false, run)?) } else { None };
                let previous = self.delete(cx, run.revision, KeySpace::User, key.clone())?;
                Ok(TxnResult::Deleted { count: u64::from(previous.is_some()), previous, deleted })
            }
            TxnOp::DeleteRange { start, end } => {
                if let Some(key) = self.written_within(start, end.as_deref()) {
                    return Err(Stop::Refused(Outcome::WrittenTwice { revision: before.revision, key }));
                }
                let count =
                    self.delete_range(cx, run.revision, KeySpace::User, start, end.as_deref(), &mut run.budget)?;
                match count {
                    Some(count) => Ok(TxnResult::Deleted { count, previous: None, deleted: None }),
                    None => Err(Stop::Refused(Outcome::TooLarge { revision: before.revision })),
                }
            }
            TxnOp::Read { keys: KeySet::One(key), keys_only, .. } => {
                Ok(TxnResult::Item(self.item(cx, before, key, *keys_only, run)?))
            }
            TxnOp::Read { keys: KeySet::Range { start, end }, limit, keys_only } => {
                let limit = usize::try_from(*limit).unwrap_or(usize::MAX).clamp(1, MAX_RANGE_KEYS);
                let found = self.live_keys(cx, KeySpace::User, start, end.as_deref(), limit)?;
                let mut items = Vec::with_capacity(found.keys.len());
                for key in &found.keys {
                    items.extend(self.item(cx, before, key, *keys_only, run)?);
                }
                Ok(TxnResult::Items { items, more: found.more })
            }
            TxnOp::Txn(_) => unreachable!("nested transactions are decided before anything is executed"),
        }
    }

    /// Refuses a key that this transaction has written already.
    fn check_once(&self, before: &Before, key: &Bytes) -> Result<(), Stop> {
        match self.changed(&index_key(KeySpace::User, key)) {
            Some(_) => Err(Stop::Refused(Outcome::WrittenTwice { revision: before.revision, key: key.clone() })),
            None => Ok(()),
        }
    }

    /// A key of the range that this transaction has written already.
    fn written_within(&self, start: &[u8], end: Option<&[u8]>) -> Option<Bytes> {
        let (start, end) = (index_key(KeySpace::User, start), index_end(KeySpace::User, end));
        let found = self.changed_within(&start, &end).min_by(|a, b| a.0.cmp(b.0));
        found.map(|(key, _)| Bytes::copy_from_slice(&key[1..]))
    }

    /// A key as it is after the operations so far.
    fn item(
        &mut self,
        cx: &Context,
        before: &Before,
        key: &Bytes,
        keys_only: bool,
        run: &mut Run,
    ) -> Result<Option<TxnItem>, Stop> {
        let name = index_key(KeySpace::User, key);
        let (_, now) = self.versions(cx, KeySpace::User, key)?;
        let Some((entry, meta)) = now.and_then(|entry| Some((entry, entry.meta()?))) else { return Ok(None) };
        let value = match run.written.get(name.as_slice()) {
            _ if keys_only => None,
            Some(value) => Some(value.clone()),
            None => cx.value(&name, entry)?,
        };
        run.read_bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        if run.read_bytes > MAX_READ_BYTES {
            return Err(Stop::Refused(Outcome::TooLarge { revision: before.revision }));
        }
        Ok(Some(TxnItem { key: key.clone(), meta, value }))
    }

    /// Up to `limit` keys of a range that exist after the operations so far, in order.
    fn live_keys(
        &mut self,
        cx: &Context,
        space: KeySpace,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<LiveKeys, Failure> {
        let (mut start, end) = (index_key(space, start), index_end(space, end));
        let mut found = LiveKeys { keys: Vec::new(), more: false };
        loop {
            let chunk = cx.body.scan(&start, &end, SCAN_ENTRIES)?;
            let mut entries: BTreeMap<IndexKey, IndexEntry> = chunk.entries;
            let upto = chunk.next.as_deref().unwrap_or(&end);
            for (key, now) in self.changed_within(&start, upto) {
                entries.insert(key.into(), now);
            }
            for (key, _) in entries.into_iter().filter(|(_, entry)| entry.live.is_some()) {
                if found.keys.len() == limit {
                    found.more = true;
                    return Ok(found);
                }
                found.keys.push(Bytes::from(key).slice(1..));
            }
            match chunk.next {
                Some(next) => start = next,
                None => return Ok(found),
            }
        }
    }
}

/// Some keys of a range.
struct LiveKeys {
    keys: Vec<Bytes>,
    more: bool,
}
