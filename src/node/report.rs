//! The numbers of Raft, the wal and the store, as they stand when somebody scrapes `/metrics`.

use std::sync::{Arc, Weak};

use openraft::async_runtime::WatchReceiver;

use super::Inner;
use crate::metrics::Sampler;

/// Lets `inner`'s numbers be asked for at every scrape, for as long as it lives.
pub fn register(inner: &Arc<Inner>) {
    let weak: Weak<Inner> = Arc::downgrade(inner);
    inner.metrics.on_scrape(Box::new(move |sampler| {
        if let Some(inner) = weak.upgrade() {
            inner.report_raft(sampler);
            inner.report_wal(sampler);
            inner.report_store(sampler);
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
        let mut index = |name, help, index: Option<u64>| {
            if let Some(index) = index {
                s.gauge(name, help, index as f64);
            }
        };
        index("lifeboat_raft_last_index", "Last entry in this member's log", metrics.last_log.map(|id| id.index));
        index(
            "lifeboat_raft_committed_index",
            "Last entry this member knows to be committed",
            metrics.local_committed.map(|id| id.index),
        );
        index("lifeboat_raft_applied_index", "Last applied entry", self.store.applied().map(|id| id.index));
        index(
            "lifeboat_sealed_index",
            "Last entry whose frame is in a sealed segment",
            self.store.sealed().map(|id| id.index),
        );
        s.gauge("lifeboat_raft_term", "Raft's term", view.term as f64);
        s.gauge("lifeboat_leader", "1 when this member leads", f64::from(u8::from(view.leads)));
        s.gauge(
            "lifeboat_leader_known",
            "1 when this member knows a leader",
            f64::from(u8::from(view.leader.is_some())),
        );
        s.gauge("lifeboat_ready", "1 when /health/ready is healthy", f64::from(u8::from(self.ready().is_ok())));
        s.gauge("lifeboat_members", "Members in the membership", view.members.len() as f64);
        if let Some(lag) = self.lag.get() {
            s.gauge("lifeboat_lag_seconds", "Upper bound of the age of a stale read here", lag.as_secs_f64());
        }
        s.gauge("lifeboat_uptime_seconds", "Since the member was opened", self.started.elapsed().as_secs_f64());
        let waiting = self.proposals.max_capacity() - self.proposals.capacity();
        s.gauge("lifeboat_write_queue", "Writes that wait to be proposed", waiting as f64);
        s.gauge("lifeboat_write_queue_max", "Writes past which more are refused", self.proposals.max_capacity() as f64);
    }

    fn report_wal(&self, s: &mut Sampler) {
        let wal = self.wal.stats();
        s.gauge("lifeboat_wal_bytes", "Bytes in the segments of the wal", wal.bytes as f64);
        s.gauge("lifeboat_wal_keep_bytes", "Bytes past which the wal is purged", self.wal_keep_bytes as f64);
        s.gauge("lifeboat_wal_segments", "Segments of the wal", wal.segments as f64);
        s.gauge("lifeboat_wal_memory_bytes", "Bytes of recent entries in memory", wal.memory_bytes as f64);
        s.gauge("lifeboat_wal_queue_bytes", "Bytes that wait to be written", wal.queue_bytes as f64);
        s.gauge("lifeboat_wal_first_index", "First entry that is not purged", wal.first_index as f64);
        s.counter("lifeboat_wal_batches", "Batches written", wal.batches);
        s.counter("lifeboat_wal_syncs", "fdatasync calls", wal.syncs);
        s.counter("lifeboat_wal_entries", "Entries appended", wal.entries_appended);
        s.gauge("lifeboat_wal_sync_seconds_sum", "Time spent in fdatasync", seconds(wal.sync_nanos_sum));
        s.gauge("lifeboat_wal_sync_seconds_max", "Longest fdatasync", seconds(wal.sync_nanos_max));
    }

    fn report_store(&self, s: &mut Sampler) {
        let store = self.store.stats();
        s.gauge("lifeboat_revision", "Newest applied revision", store.revision as f64);
        s.gauge("lifeboat_keys", "Keys that exist", store.live_keys as f64);
        s.gauge("lifeboat_history_segments", "Sealed segments", store.segments as f64);
        s.gauge("lifeboat_history_bytes", "Bytes of sealed segments", store.history_bytes as f64);
        s.gauge("lifeboat_tail_bytes", "Bytes of frames in memory", store.tail_bytes as f64);
        s.gauge("lifeboat_overlay_entries", "Changes that wait for the index", store.overlay_entries as f64);
        s.gauge("lifeboat_overlay_bytes", "Their bytes", store.overlay_bytes as f64);
        s.gauge("lifeboat_value_cache_bytes", "Bytes of cached values", store.value_cache_bytes as f64);
        for (result, value) in [("hit", store.value_cache_hits), ("miss", store.value_cache_misses)] {
            s.counter_with("lifeboat_value_cache_lookups", "Look-ups of newest values", &[("result", result)], value);
        }
        for (result, value) in [("hit", store.table_cache_hits), ("miss", store.table_cache_misses)] {
            s.counter_with("lifeboat_table_cache_lookups", "Look-ups of offset tables", &[("result", result)], value);
        }
        s.counter("lifeboat_applied_entries", "Entries applied", store.applied_entries);
        s.counter("lifeboat_seals", "Tails sealed", store.seals);
        s.gauge("lifeboat_seal_seconds_sum", "Time spent sealing", seconds(store.seal_nanos));
    }
}
