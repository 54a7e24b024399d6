//! The numbers of Raft, the wal and the store, as they stand when somebody scrapes `/metrics`.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::async_runtime::WatchReceiver;

use super::Inner;
use super::view::View;
use crate::metrics::{Sampler, catalogue};
use crate::model::MemberRole;
use crate::raft::link::LinkTraffic;

/// A voter that has been silent for so many election timeouts counts as failed.
const SILENT_TIMEOUTS: u32 = 3;

/// Lets `inner`'s numbers be asked for at every scrape, for as long as it lives.
pub fn register(inner: &Arc<Inner>) {
    let weak: Weak<Inner> = Arc::downgrade(inner);
    inner.metrics.on_scrape(Box::new(move |sampler| {
        if let Some(inner) = weak.upgrade() {
            inner.report_raft(sampler);
            inner.report_replication(sampler);
            inner.report_wal(sampler);
            inner.report_store(sampler);
            inner.report_watches(sampler);
        }
    }));
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

impl Inner {
    fn report_raft(&self, s: &mut Sampler) {
        let view = self.view();
        let metrics = self.raft.data_metrics().borrow_watched().clone();
        let mut index = |metric, index: Option<u64>| {
            if let Some(index) = index {
                s.gauge(metric, index as f64);
            }
        };
        index(&catalogue::RAFT_LAST_INDEX, metrics.last_log.map(|id| id.index));
        index(&catalogue::RAFT_COMMITTED_INDEX, metrics.local_committed.map(|id| id.index));
        index(&catalogue::RAFT_APPLIED_INDEX, self.store.applied().map(|id| id.index));
        index(&catalogue::SEALED_INDEX, self.store.sealed().map(|id| id.index));
        s.gauge(&catalogue::RAFT_TERM, view.term as f64);
        s.gauge(&catalogue::LEADER, f64::from(u8::from(view.leads)));
        s.gauge(&catalogue::LEADER_KNOWN, f64::from(u8::from(view.leader.is_some())));
        s.gauge(&catalogue::READY, f64::from(u8::from(self.ready().is_ok())));
        s.gauge(&catalogue::FENCED, f64::from(u8::from(self.is_fenced())));
        if let Some(timeline) = self.store.timelines().last() {
            s.gauge(&catalogue::TIMELINE, timeline.number as f64);
        }
        let quarantined = f64::from(u8::from(self.quarantined().is_some()));
        s.gauge(&catalogue::QUARANTINED, quarantined);
        s.gauge(&catalogue::MEMBERS, view.members.len() as f64);
        s.gauge(&catalogue::CLOCK_SECONDS, self.clock_seconds());
        if view.leads {
            let (voters, margin) = self.quorum_margin(&view);
            s.gauge(&catalogue::VOTERS, voters as f64);
            s.gauge(&catalogue::QUORUM_MARGIN, margin as f64);
            let far = |id| if id == self.id { Some(Duration::ZERO) } else { self.contacts.round_trip(id) };
            for (name, far) in view.members.iter().filter_map(|member| Some((&member.name, far(member.id)?))) {
                s.gauge_with(&catalogue::PEER_ROUND_TRIP_SECONDS, &[name], far.as_secs_f64());
            }
        }
        for member in &view.members {
            // To itself, and to whom this member has not dialled, nothing has gone.
            let LinkTraffic { sent_bytes, payload_bytes } = self.links.traffic(member.id).unwrap_or_default();
            let labels = [&*member.name];
            s.counter_with(&catalogue::LINK_SENT_BYTES, &labels, sent_bytes);
            s.counter_with(&catalogue::LINK_PAYLOAD_BYTES, &labels, payload_bytes);
        }
        if let Some(lag) = self.lag.get() {
            s.gauge(&catalogue::LAG_SECONDS, lag.as_secs_f64());
        }
        s.gauge(&catalogue::UPTIME_SECONDS, self.started.elapsed().as_secs_f64());
        for (metric, count) in self.events.webhooks().counts() {
            s.counter(metric, count);
        }
        let waiting = self.proposals.max_capacity() - self.proposals.capacity();
        s.gauge(&catalogue::WRITE_QUEUE, waiting as f64);
        s.gauge(&catalogue::WRITE_QUEUE_MAX, self.proposals.max_capacity() as f64);
    }

    /// How many vote, and how many more of those that answer may fail before there is no quorum; below 0 when there is none.
    fn quorum_margin(&self, view: &View) -> (usize, i64) {
        let silence = self.election_max * SILENT_TIMEOUTS;
        let answers = |id| id == self.id || self.contacts.silent_for(id).is_some_and(|silent| silent < silence);
        let voters: Vec<_> = view.members.iter().filter(|m| m.role == MemberRole::Voter && !m.joining).collect();
        let answering = voters.iter().filter(|voter| answers(voter.id)).count();
        // No member has so many voters that the numbers do not fit.
        (voters.len(), answering as i64 - (voters.len() / 2 + 1) as i64)
    }

    fn clock_seconds(&self) -> f64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }

    fn report_wal(&self, s: &mut Sampler) {
        let wal = self.wal.stats();
        s.gauge(&catalogue::WAL_BYTES, wal.bytes as f64);
        s.gauge(&catalogue::WAL_KEEP_BYTES, self.wal_keep_bytes as f64);
        s.gauge(&catalogue::WAL_SEGMENTS, wal.segments as f64);
        s.gauge(&catalogue::WAL_MEMORY_BYTES, wal.memory_bytes as f64);
        s.gauge(&catalogue::WAL_QUEUE_BYTES, wal.queue_bytes as f64);
        s.gauge(&catalogue::WAL_FIRST_INDEX, wal.first_index as f64);
        s.counter(&catalogue::WAL_BATCHES, wal.batches);
        s.counter(&catalogue::WAL_SYNCS, wal.syncs);
        s.counter(&catalogue::WAL_ENTRIES, wal.entries_appended);
        s.gauge(&catalogue::WAL_SYNC_SECONDS_SUM, seconds(wal.sync_nanos_sum));
        s.gauge(&catalogue::WAL_SYNC_SECONDS_MAX, seconds(wal.sync_nanos_max));
    }

    fn report_store(&self, s: &mut Sampler) {
        let store = self.store.stats();
        s.gauge(&catalogue::REVISION, store.revision as f64);
        s.gauge(&catalogue::KEYS, store.live_keys as f64);
        s.gauge(&catalogue::HISTORY_SEGMENTS, store.segments as f64);
        s.gauge(&catalogue::HISTORY_BYTES, store.history_bytes as f64);
        s.gauge(&catalogue::TAIL_BYTES, store.tail_bytes as f64);
        s.gauge(&catalogue::OVERLAY_ENTRIES, store.overlay_entries as f64);
        s.gauge(&catalogue::OVERLAY_BYTES, store.overlay_bytes as f64);
        s.gauge(&catalogue::VALUE_CACHE_BYTES, store.value_cache_bytes as f64);
        for (result, value) in [("hit", store.value_cache_hits), ("miss", store.value_cache_misses)] {
            s.counter_with(&catalogue::VALUE_CACHE_LOOKUPS, &[result], value);
        }
        for (result, value) in [("hit", store.table_cache_hits), ("miss", store.table_cache_misses)] {
            s.counter_with(&catalogue::TABLE_CACHE_LOOKUPS, &[result], value);
        }
        let records = self.store.records();
        s.gauge(&catalogue::LEASES, records.leases as f64);
        s.gauge(&catalogue::OUTCOMES, records.outcomes as f64);
        s.gauge(&catalogue::OUTCOMES_MAX, self.max_outcomes as f64);
        s.gauge(&catalogue::FEATURE_LEVEL, self.store.feature_level() as f64);
        let short = f64::from(u8::from(self.http.identity().is_short()));
        s.gauge(&catalogue::DISK_SHORT, short);
        if let Ok(free) = crate::files::room::free_bytes(&self.data_dir) {
            s.gauge(&catalogue::DISK_FREE_BYTES, free as f64);
        }
        s.gauge(&catalogue::READ_FLOOR, store.read_floor as f64);
        s.gauge(&catalogue::DELTA_FLOOR, store.delta_floor as f64);
        s.counter(&catalogue::COMPACTIONS, store.compactions);
        s.counter(&catalogue::COMPACTION_READ_BYTES, store.compact_read_bytes);
        s.counter(&catalogue::COMPACTION_WRITTEN_BYTES, store.compact_written_bytes);
        s.counter(&catalogue::COMPACTION_RECLAIMED_BYTES, store.reclaimed_bytes);
        s.gauge(&catalogue::GARBAGE_BYTES, store.garbage_bytes as f64);
        s.gauge(&catalogue::STAGING_BYTES, store.staging_bytes as f64);
        s.counter(&catalogue::APPLIED_ENTRIES, store.applied_entries);
        s.counter(&catalogue::SEALS, store.seals);
        s.gauge(&catalogue::SEAL_SECONDS_SUM, seconds(store.seal_nanos));
    }

    fn report_watches(&self, s: &mut Sampler) {
        let watches = self.watches.stats();
        s.gauge(&catalogue::WATCHERS, watches.watchers as f64);
        s.gauge(&catalogue::WATCHERS_MAX, watches.max_watchers as f64);
        s.counter(&catalogue::WATCHERS_REFUSED, watches.refused);
        s.counter(&catalogue::WATCH_EVENTS, watches.events);
        for (reason, count) in watches.ended {
            s.counter_with(&catalogue::WATCHES_ENDED, &[reason], count);
        }
        s.gauge(&catalogue::WATCH_BUFFER_BYTES, watches.buffer_bytes as f64);
        s.gauge(&catalogue::WATCH_BUFFER_BYTES_MAX, watches.buffer_bytes_max as f64);
        s.counter(&catalogue::WATCH_HISTORY_READS, watches.history_reads);
    }
}
