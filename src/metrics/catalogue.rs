//! Every metric that a member can show: its name, its type, its labels, who shows it, and what it means.
//!
//! Whoever counts names the metric by a constant of this list, so nothing can be shown that is not in it. The table of
//! `docs/operations.md` is made from it by `make fix`; `tests/tools/metrics_docs.rs` compares the two, and looks for every metric
//! in what running members show.

/// A metric.
#[derive(Debug)]
pub struct Described {
    /// Its name; a counter's has no `_total` here, which is added when it is shown.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// Who shows it.
    pub by: By,
    /// What it means, in a line.
    pub help: &'static str,
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only goes up, from 0 at the start of the process.
    Counter,
    /// Durations, counted in buckets.
    Histogram,
}

/// Who shows a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Every member.
    Every,
    /// The leader alone.
    Leader,
}

/// Declares a constant for each metric, and the list of all.
macro_rules! catalogue {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $by:ident $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $constant: Described =
                Described { name: $name, kind: Kind::$kind, labels: &[$($label),*], by: By::$by, help: $help };
        )*

        /// All of them, in the order of the table.
        pub static ALL: &[&Described] = &[$(&$constant),*];
    };
}

catalogue! {
    // How a member is.
    READY = Gauge "lifeboat_ready" [] Every
        "1 when `/health/ready` is healthy";
    LEADER = Gauge "lifeboat_leader" [] Every
        "1 when this member leads";
    LEADER_KNOWN = Gauge "lifeboat_leader_known" [] Every
        "1 when this member knows a leader";
    MEMBERS = Gauge "lifeboat_members" [] Every
        "Members in the membership";
    VOTERS = Gauge "lifeboat_voters" [] Leader
        "Members that vote";
    QUORUM_MARGIN = Gauge "lifeboat_quorum_margin" [] Leader
        "How many more voters of those that answer may fail before nothing can be written";
    FENCED = Gauge "lifeboat_fenced" [] Every
        "1 when history went on without this member, at a forced failover elsewhere: it serves nothing until it rejoins";
    TIMELINE = Gauge "lifeboat_timeline" [] Every
        "Number of the timeline; it rises at a forced failover";
    QUARANTINED = Gauge "lifeboat_quarantined" [] Every
        "1 while this member's history is damaged and not repaired yet: alert on it";
    FEATURE_LEVEL = Gauge "lifeboat_feature_level" [] Every
        "Which commands all members know; it rises after an upgrade, when the last member is new";
    UPTIME_SECONDS = Gauge "lifeboat_uptime_seconds" [] Every
        "Since the member was opened";
    CLOCK_SECONDS = Gauge "lifeboat_clock_seconds" [] Every
        "This member's clock, since 1970: compare it with that of the scrape";
    LAG_SECONDS = Gauge "lifeboat_lag_seconds" [] Every
        "Upper bound of the age of a stale read here; absent while it is not known";

    // The other members, as the leader knows them.
    PEER_ROUND_TRIP_SECONDS = Gauge "lifeboat_peer_round_trip_seconds" ["member"] Leader
        "How far away a member is from the leader; itself 0";
    MEMBER_STATE = Gauge "lifeboat_member_state" ["member", "state"] Leader
        "1 for the state that a member is in (docs/mirrors.md), 0 for the others";
    SEND_QUEUE_ENTRIES = Gauge "lifeboat_send_queue_entries" ["member"] Leader
        "Committed entries that a member is not known to have received";
    SEND_QUEUE_BYTES = Gauge "lifeboat_send_queue_bytes" ["member"] Leader
        "Roughly how many bytes the entries have that a member is not known to have received";
    SEND_QUEUE_OLDEST_SECONDS = Gauge "lifeboat_send_queue_oldest_seconds" ["member"] Leader
        "The age of the oldest committed entry that a member is not known to have received";
    REDO_QUEUE_ENTRIES = Gauge "lifeboat_redo_queue_entries" ["member"] Leader
        "Entries that a member has received and not applied";
    REDO_QUEUE_BYTES = Gauge "lifeboat_redo_queue_bytes" ["member"] Leader
        "Roughly how many bytes the entries have that a member has received and not applied";
    REDO_QUEUE_OLDEST_SECONDS = Gauge "lifeboat_redo_queue_oldest_seconds" ["member"] Leader
        "The age of the oldest entry that a member has received and not applied";
    MEMBER_LAG_SECONDS = Gauge "lifeboat_member_lag_seconds" ["member"] Leader
        "Upper bound of the age of what a member shows, as its leader knows it";
    MEMBER_LAST_CONTACT_SECONDS = Gauge "lifeboat_member_last_contact_seconds" ["member"] Leader
        "How long ago a member answered its leader";
    MEMBER_HASH_AGREED_REVISION = Gauge "lifeboat_member_hash_agreed_revision" ["member"] Leader
        "The newest revision at which the chain hash of a member agreed with its leader's";
    MEMBER_CANARY_SECONDS = Gauge "lifeboat_member_canary_seconds" ["member"] Leader
        "How long the newest canary took until a member showed it, or for how long the newest is on its way";
    RPO_SECONDS = Gauge "lifeboat_rpo_seconds" ["site"] Leader
        "The age of the oldest write that a standby site lacks: what the loss of the primary site would cost now";
    RTO_SECONDS = Gauge "lifeboat_rto_seconds" ["site"] Leader
        "How long a failover to a standby site would take, estimated";
    RPO_OBJECTIVE_SECONDS = Gauge "lifeboat_rpo_objective_seconds" [] Leader
        "What is aimed at for lifeboat_rpo_seconds";
    RTO_OBJECTIVE_SECONDS = Gauge "lifeboat_rto_objective_seconds" [] Leader
        "What is aimed at for lifeboat_rto_seconds";

    // What goes between members.
    LINK_SENT_BYTES = Counter "lifeboat_link_sent_bytes" ["member"] Every
        "Bytes of log and copies sent to a member, as they went over the connection, without what HTTP and TCP add";
    LINK_PAYLOAD_BYTES = Counter "lifeboat_link_payload_bytes" ["member"] Every
        "Bytes of log and copies sent to a member, before they were compressed";
    COPIES_SENT = Counter "lifeboat_copies_sent" ["kind"] Every
        "Copies of the history that reached their member, `full` or `delta`, counted by who sends";
    COPIES_SENT_BYTES = Counter "lifeboat_copies_sent_bytes" ["kind"] Every
        "Bytes of copies sent, also of those that were cut";
    STAGING_BYTES = Gauge "lifeboat_staging_bytes" [] Every
        "Bytes of a copy that is being received";
    REPAIRS = Counter "lifeboat_repairs" ["kind"] Every
        "Repairs of this member's damaged history since it was opened, by a `delta` or a `full` copy";
    REPAIR_BYTES = Counter "lifeboat_repair_bytes" ["kind"] Every
        "Bytes received for repairs, also of copies that were cut";
    CANARIES_SENT = Counter "lifeboat_canaries_sent" [] Every
        "Canaries that this member sent as the leader";

    // Clients.
    HTTP_REQUESTS = Counter "lifeboat_http_requests" ["route", "method", "status"] Every
        "Requests of clients";
    HTTP_REQUEST_DURATION_SECONDS = Histogram "lifeboat_http_request_duration_seconds" ["route", "method"] Every
        "Time from the head of a request to the head of its reply";
    HTTP_CONNECTIONS = Gauge "lifeboat_http_connections" [] Every
        "Connections of clients that are open";
    HTTP_CONNECTIONS_REFUSED = Counter "lifeboat_http_connections_refused" [] Every
        "Connections of clients that were closed because too many were open";
    READS_SERVED = Counter "lifeboat_reads_served" ["consistency"] Every
        "Reads served by this member itself";
    READ_INDEX_ROUNDS = Counter "lifeboat_read_index_rounds" [] Every
        "Questions to the leader for the read index";
    READ_INDEX_WAITERS = Counter "lifeboat_read_index_waiters" [] Every
        "Reads that waited for a read index; more than the questions when they shared one";
    WRITES_FORWARDED = Counter "lifeboat_writes_forwarded" [] Every
        "Writes sent on to the leader";
    WRITE_QUEUE = Gauge "lifeboat_write_queue" [] Every
        "Writes that wait to be proposed";
    WRITE_QUEUE_MAX = Gauge "lifeboat_write_queue_max" [] Every
        "Writes past which more are refused";
    WATCHERS = Gauge "lifeboat_watchers" [] Every
        "Watches and reads that wait for a change";
    WATCHERS_MAX = Gauge "lifeboat_watchers_max" [] Every
        "Watchers past which more are refused";
    WATCHERS_REFUSED = Counter "lifeboat_watchers_refused" [] Every
        "Watchers that were refused";
    WATCH_EVENTS = Counter "lifeboat_watch_events" [] Every
        "Events of changes sent to watchers";
    WATCHES_ENDED = Counter "lifeboat_watches_ended" ["reason"] Every
        "Watches that this member ended; `cut`: without a last event";
    WATCH_BUFFER_BYTES = Gauge "lifeboat_watch_buffer_bytes" [] Every
        "Bytes of changes kept for watchers";
    WATCH_BUFFER_BYTES_MAX = Gauge "lifeboat_watch_buffer_bytes_max" [] Every
        "What the changes kept for watchers may take";
    WATCH_HISTORY_READS = Counter "lifeboat_watch_history_reads" [] Every
        "Pages of the history read for watchers behind the buffer";
    LEASES = Gauge "lifeboat_leases" [] Every
        "Leases that exist";
    LEASES_EXPIRED = Counter "lifeboat_leases_expired" [] Every
        "Leases ended by this member as nobody kept them alive";
    OUTCOMES = Gauge "lifeboat_outcomes" [] Every
        "Outcomes of keyed requests that are remembered";
    OUTCOMES_MAX = Gauge "lifeboat_outcomes_max" [] Every
        "Outcomes past which more are refused";
    WEBHOOKS_SENT = Counter "lifeboat_webhooks_sent" [] Every
        "Events that webhooks have taken";
    WEBHOOKS_FAILED = Counter "lifeboat_webhooks_failed" [] Every
        "Events given up because a webhook took none for ten minutes";
    WEBHOOKS_DROPPED = Counter "lifeboat_webhooks_dropped" [] Every
        "Events dropped because 1,000 waited";

    // Raft and its log.
    RAFT_TERM = Gauge "lifeboat_raft_term" [] Every
        "Raft's term";
    RAFT_LAST_INDEX = Gauge "lifeboat_raft_last_index" [] Every
        "Last entry in this member's log; where one of these lags behind the one before, the member is stuck";
    RAFT_COMMITTED_INDEX = Gauge "lifeboat_raft_committed_index" [] Every
        "Last entry this member knows to be committed";
    RAFT_APPLIED_INDEX = Gauge "lifeboat_raft_applied_index" [] Every
        "Last applied entry";
    SEALED_INDEX = Gauge "lifeboat_sealed_index" [] Every
        "Last entry whose frame is in a sealed segment; absent before the first is";
    WAL_BYTES = Gauge "lifeboat_wal_bytes" [] Every
        "Bytes in the segments of the wal";
    WAL_KEEP_BYTES = Gauge "lifeboat_wal_keep_bytes" [] Every
        "Bytes past which the wal is purged";
    WAL_SEGMENTS = Gauge "lifeboat_wal_segments" [] Every
        "Segments of the wal";
    WAL_MEMORY_BYTES = Gauge "lifeboat_wal_memory_bytes" [] Every
        "Bytes of recent entries in memory";
    WAL_QUEUE_BYTES = Gauge "lifeboat_wal_queue_bytes" [] Every
        "Bytes that wait to be written";
    WAL_FIRST_INDEX = Gauge "lifeboat_wal_first_index" [] Every
        "First entry that is not purged";
    WAL_BATCHES = Counter "lifeboat_wal_batches" [] Every
        "Batches written";
    WAL_SYNCS = Counter "lifeboat_wal_syncs" [] Every
        "fdatasync calls; entries by syncs is the group commit";
    WAL_ENTRIES = Counter "lifeboat_wal_entries" [] Every
        "Entries appended";
    WAL_SYNC_SECONDS_SUM = Gauge "lifeboat_wal_sync_seconds_sum" [] Every
        "Time spent in fdatasync: a slow disk shows here";
    WAL_SYNC_SECONDS_MAX = Gauge "lifeboat_wal_sync_seconds_max" [] Every
        "Longest fdatasync";

    // The store and its disk.
    REVISION = Gauge "lifeboat_revision" [] Every
        "Newest applied revision";
    KEYS = Gauge "lifeboat_keys" [] Every
        "Keys that exist";
    APPLIED_ENTRIES = Counter "lifeboat_applied_entries" [] Every
        "Entries applied";
    HISTORY_BYTES = Gauge "lifeboat_history_bytes" [] Every
        "Bytes of sealed segments: the disk that the content takes";
    HISTORY_SEGMENTS = Gauge "lifeboat_history_segments" [] Every
        "Sealed segments";
    TAIL_BYTES = Gauge "lifeboat_tail_bytes" [] Every
        "Bytes of frames in memory, which wait to be sealed";
    SEALS = Counter "lifeboat_seals" [] Every
        "Tails sealed";
    SEAL_SECONDS_SUM = Gauge "lifeboat_seal_seconds_sum" [] Every
        "Time spent sealing";
    OVERLAY_ENTRIES = Gauge "lifeboat_overlay_entries" [] Every
        "Changes that wait for the index";
    OVERLAY_BYTES = Gauge "lifeboat_overlay_bytes" [] Every
        "Bytes of changes that wait for the index";
    VALUE_CACHE_BYTES = Gauge "lifeboat_value_cache_bytes" [] Every
        "Bytes of cached values";
    VALUE_CACHE_LOOKUPS = Counter "lifeboat_value_cache_lookups" ["result"] Every
        "Look-ups of newest values in the cache, `hit` or `miss`";
    TABLE_CACHE_LOOKUPS = Counter "lifeboat_table_cache_lookups" ["result"] Every
        "Look-ups of offset tables in the cache, `hit` or `miss`";
    READ_FLOOR = Gauge "lifeboat_read_floor" [] Every
        "Old versions below this revision may be gone";
    DELTA_FLOOR = Gauge "lifeboat_delta_floor" [] Every
        "A catch-up from below this position is a full copy";
    COMPACTIONS = Counter "lifeboat_compactions" [] Every
        "Steps of compaction";
    COMPACTION_IDLE_LOOKS = Counter "lifeboat_compaction_idle_looks" [] Every
        "Looks for something to compact that found nothing";
    COMPACTION_READ_BYTES = Counter "lifeboat_compaction_read_bytes" [] Every
        "Bytes that compaction read";
    COMPACTION_WRITTEN_BYTES = Counter "lifeboat_compaction_written_bytes" [] Every
        "Bytes that compaction wrote";
    COMPACTION_RECLAIMED_BYTES = Counter "lifeboat_compaction_reclaimed_bytes" [] Every
        "Bytes that compaction freed";
    GARBAGE_BYTES = Gauge "lifeboat_garbage_bytes" [] Every
        "Bytes that compaction could free, as estimated";
    DISK_SHORT = Gauge "lifeboat_disk_short" [] Every
        "1 when this member is short of disk room";
    DISK_FREE_BYTES = Gauge "lifeboat_disk_free_bytes" [] Every
        "Free bytes of the file system of the data directory";
}
