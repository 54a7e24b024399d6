//! The records of leases, remembered outcomes, events and the planned pause, which lie in the history in [`KeySpace::System`].
//!
//! ```text
//! lease/<id>                      span in ms, u64           a lease (ids and times are eight bytes, big-endian)
//! leased/<id><key>                empty                     a user key that hangs on it
//! outcome/<idempotency key>       time u64, fingerprint 16, outcome     what became of a keyed request
//! outcome-order/<time><idempotency key>   empty             the same in the order of time
//! event/<number>                  JSON                      something that happened to the cluster
//! maintenance                     JSON                      the planned pause
//! switchover                      JSON                      the newest planned move of the primary site
//! ```
//!
//! The last three are written by the leader like any value, and only `node` reads what is in them.
//!
//! Apply alone writes them, in the frame of the request they come from; so snapshots, deltas and comparisons cover them.
//! What is counted here in memory is computed anew whenever a store opens.

use bytes::Bytes;

use super::sequence::SEQUENCE;
use super::state::{Body, index_key};
use super::system::{MAINTENANCE_KEY, SWITCHOVER_KEY};
use super::{Inner, KeyValue, RangeQuery, ReadError, Store, StoreError};
use crate::index::{Index, IndexEntry, IndexError, IndexKey};
use crate::model::codec::{DecodeError, Reader};
use crate::model::{KeySpace, Outcome, Revision, WriteOp};

const LEASE: &[u8] = b"lease/";
const LEASED: &[u8] = b"leased/";
const OUTCOME: &[u8] = b"outcome/";
const ORDER: &[u8] = b"outcome-order/";
const EVENT: &[u8] = b"event/";

/// How long the outcome of a keyed request is remembered, in milliseconds of log time. Part of the format.
pub const OUTCOME_KEPT_MS: u64 = 24 * 60 * 60 * 1000;
/// Larger outcomes cannot be remembered; their requests are refused. Part of the format.
pub(super) const MAX_OUTCOME_BYTES: usize = 64 << 10;

/// What is counted of the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordStats {
    /// Outcomes that are remembered.
    pub outcomes: u64,
    /// Leases that exist.
    pub leases: u64,
    /// Changes whenever a lease comes or goes.
    pub lease_changes: u64,
    /// The number of the newest event; 0 when there is none.
    pub last_event: u64,
    /// The revision at which the planned pause was written; 0 when there is none.
    pub maintenance: Revision,
    /// The revision at which the newest switchover was written; 0 when there was none.
    pub switchover: Revision,
}

/// What the state keeps of the records.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    pub stats: RecordStats,
    /// No outcome is older.
    pub oldest_ms: u64,
}

impl Counted {
    /// Counts what an index holds.
    pub fn of(index: &dyn Index) -> Result<Counted, IndexError> {
        // How many there are, and the key of the last.
        let count = |prefix: &[u8]| -> Result<(u64, Option<IndexKey>), IndexError> {
            let mut start = index_key(KeySpace::System, prefix);
            let end = successor(&start);
            let (mut live, mut newest) = (0, None);
            loop {
                let mut entries = index.scan(&start, Some(&end), 1024)?;
                let last = entries.last().map(|(key, _)| key.clone());
                let full = entries.len() == 1024;
                entries.retain(|(_, entry)| entry.live.is_some());
                live += entries.len() as u64;
                newest = entries.pop().map(|(key, _)| key).or(newest);
                match last {
                    Some(last) if full => start = [&last, [0].as_slice()].concat(),
                    _ => return Ok((live, newest)),
                }
            }
        };
        let written = |key| -> Result<Revision, IndexError> {
            let found = index.get(&index_key(KeySpace::System, key))?;
            Ok(found.and_then(|entry| entry.meta()).map_or(0, |meta| meta.mod_revision))
        };
        let stats = RecordStats {
            outcomes: count(OUTCOME)?.0,
            leases: count(LEASE)?.0,
            lease_changes: 0,
            last_event: count(EVENT)?.1.and_then(|key| event_number(&key[1..])).unwrap_or(0),
            maintenance: written(MAINTENANCE_KEY)?,
            switchover: written(SWITCHOVER_KEY)?,
        };
        Ok(Counted { stats, oldest_ms: 0 })
    }

    /// Takes a change of a key into the count.
    pub fn take(&mut self, index_key: &[u8], before: Option<IndexEntry>, now: IndexEntry) {
        if index_key[0] != KeySpace::System as u8 {
            return;
        }
        let key = &index_key[1..];
        let counter = if key.starts_with(OUTCOME) {
            &mut self.stats.outcomes
        } else if key.starts_with(LEASE) {
            self.stats.lease_changes += 1;
            &mut self.stats.leases
        } else if key == MAINTENANCE_KEY {
            self.stats.maintenance = now.meta().map_or(0, |meta| meta.mod_revision);
            return;
        } else if key == SWITCHOVER_KEY {
            self.stats.switchover = now.meta().map_or(0, |meta| meta.mod_revision);
            return;
        } else if key.starts_with(EVENT) {
            if now.live.is_some() {
                self.stats.last_event = self.stats.last_event.max(event_number(key).unwrap_or(0));
            }
            return;
        } else {
            return;
        };
        let lived = before.is_some_and(|entry| entry.live.is_some());
        *counter = *counter + u64::from(now.live.is_some()) - u64::from(lived);
    }
}

/// The first key behind all keys that begin with `prefix`, which must not be all 0xff.
fn successor(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    end
}

fn joined(parts: &[&[u8]]) -> Bytes {
    parts.concat().into()
}

pub(super) fn lease_key(id: u64) -> Bytes {
    joined(&[LEASE, &id.to_be_bytes()])
}

pub(super) fn lease_value(ttl_ms: u64) -> Bytes {
    Bytes::copy_from_slice(&ttl_ms.to_le_bytes())
}

pub(super) fn leased_key(id: u64, key: &[u8]) -> Bytes {
    joined(&[LEASED, &id.to_be_bytes(), key])
}

/// All records of keys that hang on a lease: the first, and the first behind them.
pub(super) fn leased_range(id: u64) -> (Bytes, Bytes) {
    let start = joined(&[LEASED, &id.to_be_bytes()]);
    let end = successor(&start).into();
    (start, end)
}

/// The user key in the key of a [`leased_key`].
pub(super) fn user_key(leased: &Bytes) -> Bytes {
    leased.slice(LEASED.len() + 8..)
}

pub(super) fn outcome_key(idempotency: &[u8]) -> Bytes {
    joined(&[OUTCOME, idempotency])
}

pub(super) fn order_key(time_ms: u64, idempotency: &[u8]) -> Bytes {
    joined(&[ORDER, &time_ms.to_be_bytes(), idempotency])
}

/// The records in the order of time from `time_ms` on: the first, and the first behind the last.
pub(super) fn order_range(time_ms: u64) -> (Bytes, Bytes) {
    (order_key(time_ms, b""), successor(ORDER).into())
}

/// The time and the idempotency key in the key of an [`order_key`].
pub(super) fn split_order(key: &Bytes) -> Result<(u64, Bytes), DecodeError> {
    let rest = key.slice(ORDER.len().min(key.len())..);
    let time = rest.first_chunk::<8>().ok_or(DecodeError { what: "record of an outcome's time" })?;
    Ok((u64::from_be_bytes(*time), rest.slice(8..)))
}

pub(super) fn outcome_value(time_ms: u64, fingerprint: &[u8; 16], outcome: &Outcome) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(&time_ms.to_le_bytes());
    out.extend_from_slice(fingerprint);
    outcome.encode_into(&mut out);
    out
}

/// The fingerprint and the outcome in a record.
pub(super) fn read_outcome(value: &Bytes) -> Result<([u8; 16], Outcome), DecodeError> {
    let mut reader = Reader::new(value.clone());
    reader.u64("time of an outcome")?;
    let mut fingerprint = [0; 16];
    fingerprint.copy_from_slice(&reader.take(16, "fingerprint of an outcome")?);
    let outcome = Outcome::decode(&mut reader)?;
    reader.finish("record of an outcome: bytes after its end")?;
    Ok((fingerprint, outcome))
}

/// A lease, as the history has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its id.
    pub id: u64,
    /// How long it lives without a keep-alive, in milliseconds.
    pub ttl_ms: u64,
    /// When it was granted.
    pub granted: Revision,
}

fn read_lease(found: &KeyValue) -> Result<LeaseRecord, DecodeError> {
    let id = found.key.get(LEASE.len()..).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes);
    let ttl_ms = found.value.as_ref().try_into().ok().map(u64::from_le_bytes);
    match (id, ttl_ms) {
        (Some(id), Some(ttl_ms)) => Ok(LeaseRecord { id, ttl_ms, granted: found.meta.create_revision }),
        _ => Err(DecodeError { what: "record of a lease" }),
    }
}

/// Something that happened to the cluster, as the history has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// Counts the cluster's events from 1.
    pub number: u64,
    /// What `node` wrote.
    pub value: Bytes,
}

/// A record and when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenRecord {
    /// What `node` wrote.
    pub value: Bytes,
    /// At this revision.
    pub written: Revision,
}

/// Of which kind a record of the system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemRecord {
    /// What became of the request with this idempotency key.
    Outcome(Bytes),
    /// The same, in the order of time.
    OutcomeOrder,
    /// The sequence of this name.
    Sequence(Bytes),
    /// The lease of this id.
    Lease(u64),
    /// A key that hangs on a lease.
    Leased(Bytes),
    /// The event of this number.
    Event(u64),
    /// Any other, by its key.
    Other(Bytes),
}

impl SystemRecord {
    /// What the record under a key of the system is.
    pub fn of(key: &Bytes) -> SystemRecord {
        let number = |prefix: &[u8]| key[prefix.len()..].first_chunk::<8>().map(|id| u64::from_be_bytes(*id));
        let rest = |prefix: &[u8]| key.slice(prefix.len()..);
        if key.starts_with(OUTCOME) {
            return SystemRecord::Outcome(rest(OUTCOME));
        } else if key.starts_with(ORDER) {
            return SystemRecord::OutcomeOrder;
        } else if key.starts_with(SEQUENCE) {
            return SystemRecord::Sequence(rest(SEQUENCE));
        } else if key.starts_with(LEASE)
            && let Some(id) = number(LEASE)
        {
            return SystemRecord::Lease(id);
        } else if key.starts_with(LEASED) && key.len() >= LEASED.len() + 8 {
            return SystemRecord::Leased(user_key(key));
        } else if key.starts_with(EVENT)
            && let Some(number) = number(EVENT)
        {
            return SystemRecord::Event(number);
        }
        SystemRecord::Other(key.clone())
    }
}

fn event_key(number: u64) -> Bytes {
    joined(&[EVENT, &number.to_be_bytes()])
}

fn event_number(key: &[u8]) -> Option<u64> {
    key.get(EVENT.len()..).and_then(|number| number.try_into().ok()).map(u64::from_be_bytes)
}

/// The operation that writes an event of the cluster.
pub fn event_op(number: u64, value: Bytes) -> WriteOp {
    WriteOp::Put { space: KeySpace::System, key: event_key(number), value, lease: 0 }
}

/// The operation that forgets the event of this number and all before it.
pub fn forget_event_op(number: u64) -> WriteOp {
    let (start, end) = (event_key(0), Some(event_key(number.saturating_add(1))));
    WriteOp::DeleteRange { space: KeySpace::System, start, end }
}

pub(super) fn corrupt(error: DecodeError) -> StoreError {
    StoreError::Corrupt { file: "the history".into(), offset: 0, what: error.to_string() }
}

impl Inner {
    /// When the oldest outcome was remembered. The next look begins there.
    fn oldest_outcome_ms(&self, body: &Body) -> Result<Option<u64>, StoreError> {
        let (start, end) = order_range(body.state.read().counted.oldest_ms);
        let mut start = index_key(KeySpace::System, &start);
        let end = index_key(KeySpace::System, &end);
        loop {
            let chunk = body.scan(&start, &end, 64)?;
            if let Some((key, _)) = chunk.entries.iter().find(|(_, entry)| entry.live.is_some()) {
                let key = Bytes::copy_from_slice(&key[1..]);
                let (oldest_ms, _) = split_order(&key).map_err(corrupt)?;
                // Time in the log never runs backwards, so nothing older will come.
                let counted = &mut body.state.write().counted;
                counted.oldest_ms = counted.oldest_ms.max(oldest_ms);
                return Ok(Some(oldest_ms));
            }
            match chunk.next {
                Some(next) => start = next,
                None => return Ok(None),
            }
        }
    }
}

impl Store {
    /// What is counted of leases and outcomes.
    pub fn records(&self) -> RecordStats {
        self.inner.body().state.read().counted.stats
    }

    /// Whether the outcome of a keyed request has been remembered for as long as promised, so that a sweep would forget
    /// it; by the log's time `now_ms`.
    pub fn has_expired_outcomes(&self, now_ms: u64) -> Result<bool, StoreError> {
        let oldest = self.inner.oldest_outcome_ms(&self.inner.body())?;
        Ok(oldest.is_some_and(|oldest| oldest + OUTCOME_KEPT_MS <= now_ms))
    }

    /// Whether the outcome of a keyed request is remembered here.
    pub fn remembers(&self, idempotency: &[u8]) -> Result<bool, ReadError> {
        Ok(self.get_meta(KeySpace::System, &outcome_key(idempotency), None)?.is_some())
    }

    /// A lease; none when it does not exist.
    pub fn lease(&self, id: u64) -> Result<Option<LeaseRecord>, ReadError> {
        let key = lease_key(id);
        match self.get(KeySpace::System, &key, None)? {
            Some(found) => Ok(Some(read_lease(&found).map_err(corrupt)?)),
            None => Ok(None),
        }
    }

    /// Up to `limit` leases whose ids are larger than `after`, in the order of their ids; whether there are more.
    pub fn leases(&self, after: u64, limit: usize) -> Result<(Vec<LeaseRecord>, bool), ReadError> {
        let query = RangeQuery {
            start: Bytes::from_static(LEASE),
            end: Some(successor(LEASE).into()),
            after: Some(lease_key(after)),
            limit,
            ..RangeQuery::all(KeySpace::System)
        };
        let page = self.range(&query)?;
        let leases: Result<_, _> = page.items.iter().map(read_lease).collect();
        Ok((leases.map_err(corrupt)?, page.more))
    }

    /// Up to `limit` keys that hang on a lease; whether there are more.
    pub fn lease_keys(&self, id: u64, limit: usize) -> Result<(Vec<Bytes>, bool), ReadError> {
        let (start, end) = leased_range(id);
        let query = RangeQuery { start, end: Some(end), limit, keys_only: true, ..RangeQuery::all(KeySpace::System) };
        let page = self.range(&query)?;
        Ok((page.items.iter().map(|item| user_key(&item.key)).collect(), page.more))
    }

    /// Up to `limit` events of the cluster behind the one of number `after`, in their order.
    pub fn events(&self, after: u64, limit: usize) -> Result<Vec<EventRecord>, ReadError> {
        let query = RangeQuery {
            start: event_key(after.saturating_add(1)),
            end: Some(successor(EVENT).into()),
            limit,
            ..RangeQuery::all(KeySpace::System)
        };
        let record = |item: KeyValue| match event_number(&item.key) {
            Some(number) => Ok(EventRecord { number, value: item.value }),
            None => Err(corrupt(DecodeError { what: "record of an event" })),
        };
        Ok(self.range(&query)?.items.into_iter().map(record).collect::<Result<_, _>>()?)
    }

    /// The record of the planned pause; none when there is none.
    pub fn maintenance(&self) -> Result<Option<WrittenRecord>, ReadError> {
        self.written_record(MAINTENANCE_KEY)
    }

    /// The record of the newest switchover; none when there was none.
    pub fn switchover(&self) -> Result<Option<WrittenRecord>, ReadError> {
        self.written_record(SWITCHOVER_KEY)
    }

    fn written_record(&self, key: &[u8]) -> Result<Option<WrittenRecord>, ReadError> {
        let found = self.get(KeySpace::System, key, None)?;
        Ok(found.map(|found| WrittenRecord { value: found.value, written: found.meta.mod_revision }))
    }

    /// Which commands the cluster may use; see [`crate::model::FEATURE_LEVEL`].
    pub fn feature_level(&self) -> u64 {
        self.inner.body().state.read().head.feature_level
    }
}
