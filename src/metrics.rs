//! The numbers that a member shows at `/metrics`.
//!
//! Place in the path: `http` counts requests here, `node` counts forwarded writes and read-index rounds, and every layer
//! may add numbers that it keeps anyway, which are asked for only when somebody scrapes ([`Metrics::on_scrape`]).
//!
//! Counting on the path of a request is an atomic addition in a place found by array index: no lock, no map, no
//! allocation. All names begin with `lifeboat_` and are listed in [`catalogue`]; the text is OpenMetrics, which Prometheus
//! reads ([`CONTENT_TYPE`]).
//!
//! Nothing here survives a restart: counters begin at 0, as Prometheus expects.
//!
//! Proven by the tests below: what was counted is what is shown, under its name in the catalogue.

pub mod catalogue;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Metric, Registry};

use catalogue::{Described, Kind};

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A closure that reports numbers when somebody scrapes.
pub type ScrapeFn = Box<dyn Fn(&mut Sampler) + Send + Sync>;

/// All numbers of one member.
pub struct Metrics {
    registry: Mutex<Registry>,
    scraped: Arc<Mutex<Scraped>>,
    /// Requests of clients.
    pub http: Arc<HttpMetrics>,
    /// Copies of the history that this member sent and received.
    pub copies: CopyMetrics,
    /// Copies by which this member was repaired.
    pub repairs: RepairMetrics,
    /// Looks for something to compact that found nothing.
    pub compaction_idle: Counter,
    /// Leases that this member ended because their time had passed.
    pub leases_expired: Counter,
    /// Canaries that this member sent as the leader.
    pub canaries: Counter,
    /// Linearizable reads that this member served.
    pub reads_linearizable: Counter,
    /// Stale reads that this member served.
    pub reads_stale: Counter,
    /// Writes that this member sent on to the leader.
    pub writes_forwarded: Counter,
    /// Questions to the leader for the read index.
    pub read_index_rounds: Counter,
    /// Reads that waited for such a question; more than rounds when they shared one.
    pub read_index_waiters: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// All counters at 0.
    pub fn new() -> Metrics {
        let mut registry = Registry::default();
        let http = Arc::new(HttpMetrics::default());
        registry.register_collector(Box::new(HttpCollector(http.clone())));
        let scraped: Arc<Mutex<Scraped>> = Arc::default();
        registry.register_collector(Box::new(ScrapeCollector(scraped.clone())));

        let reads = family(&mut registry, &catalogue::READS_SERVED);
        let mut counter = |metric: &Described| {
            let counter = Counter::default();
            register(&mut registry, metric, counter.clone());
            counter
        };
        let writes_forwarded = counter(&catalogue::WRITES_FORWARDED);
        let read_index_rounds = counter(&catalogue::READ_INDEX_ROUNDS);
        let read_index_waiters = counter(&catalogue::READ_INDEX_WAITERS);
        let compaction_idle = counter(&catalogue::COMPACTION_IDLE_LOOKS);
        let leases_expired = counter(&catalogue::LEASES_EXPIRED);
        let canaries = counter(&catalogue::CANARIES_SENT);
        let copies = CopyMetrics::registered(&mut registry);
        let repairs = RepairMetrics::registered(&mut registry);
        Metrics {
            copies,
            repairs,
            compaction_idle,
            leases_expired,
            canaries,
            registry: Mutex::new(registry),
            scraped,
            http,
            reads_linearizable: reads("linearizable"),
            reads_stale: reads("stale"),
            writes_forwarded,
            read_index_rounds,
            read_index_waiters,
        }
    }

    /// Adds a closure that is asked at every scrape. It must not block; give it a weak reference to what owns these
    /// metrics, or neither is ever freed.
    pub fn on_scrape(&self, closure: ScrapeFn) {
        self.scraped.lock().by_layers.push(closure);
    }

    /// Lets this closure be asked until the first of [`Metrics::on_scrape`] is there, and never beside one: a member that
    /// is being opened is not told of twice.
    pub fn until_on_scrape(&self, closure: ScrapeFn) {
        self.scraped.lock().before = Some(closure);
    }

    /// Everything as text.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        text::encode(&mut out, &self.registry.lock()).expect("writing to a string cannot fail");
        out
    }
}

fn register(registry: &mut Registry, described: &Described, metric: impl Metric) {
    debug_assert!(metric_type(described.kind).as_str() == metric.metric_type().as_str(), "{described:?}");
    registry.register(described.name, described.help, metric);
}

/// A counter for each value of the one label that the metric has.
fn family(registry: &mut Registry, described: &Described) -> impl Fn(&'static str) -> Counter + use<> {
    let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
    register(registry, described, family.clone());
    let &[label] = described.labels else { unreachable!("{described:?} has one label") };
    move |value| family.get_or_create(&[(label, value)]).clone()
}

fn metric_type(kind: Kind) -> MetricType {
    match kind {
        Kind::Gauge => MetricType::Gauge,
        Kind::Counter => MetricType::Counter,
        Kind::Histogram => MetricType::Histogram,
    }
}

/// Copies of the history between members, by kind: `full`, or `delta` when only what a member lacks is sent.
#[derive(Debug, Clone)]
pub struct CopyMetrics {
    /// Full copies that arrived whole.
    pub full: Counter,
    /// Deltas that arrived whole.
    pub delta: Counter,
    /// Bytes of full copies.
    pub full_bytes: Counter,
    /// Bytes of deltas.
    pub delta_bytes: Counter,
}

impl CopyMetrics {
    fn registered(registry: &mut Registry) -> CopyMetrics {
        let sent = family(registry, &catalogue::COPIES_SENT);
        let bytes = family(registry, &catalogue::COPIES_SENT_BYTES);
        CopyMetrics { full: sent("full"), delta: sent("delta"), full_bytes: bytes("full"), delta_bytes: bytes("delta") }
    }
}

/// Repairs of this member's history, by the kind of the copy.
#[derive(Debug, Clone)]
pub struct RepairMetrics {
    /// Repairs by a full copy.
    pub full: Counter,
    /// Repairs by a delta.
    pub delta: Counter,
    /// Bytes of full copies.
    pub full_bytes: Counter,
    /// Bytes of deltas.
    pub delta_bytes: Counter,
}

impl RepairMetrics {
    fn registered(registry: &mut Registry) -> RepairMetrics {
        let repairs = family(registry, &catalogue::REPAIRS);
        let bytes = family(registry, &catalogue::REPAIR_BYTES);
        RepairMetrics {
            full: repairs("full"),
            delta: repairs("delta"),
            full_bytes: bytes("full"),
            delta_bytes: bytes("delta"),
        }
    }
}

/// What a scrape closure writes its numbers to. Values of one name may come from several closures.
#[derive(Debug, Default)]
pub struct Sampler {
    families: BTreeMap<&'static str, SampledFamily>,
}

#[derive(Debug)]
struct SampledFamily {
    described: &'static Described,
    samples: Vec<(Labels, Sample)>,
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug, Clone, Copy)]
enum Sample {
    Gauge(f64),
    Counter(u64),
}

impl Sampler {
    /// A number that goes up and down. What is unknown is left out, not reported as 0.
    pub fn gauge(&mut self, metric: &'static Described, value: f64) {
        self.gauge_with(metric, &[], value);
    }

    /// A number that goes up and down, one for each set of values of the metric's labels.
    pub fn gauge_with(&mut self, metric: &'static Described, labels: &[&str], value: f64) {
        debug_assert_eq!(metric.kind, Kind::Gauge, "{metric:?}");
        self.push(metric, labels, Sample::Gauge(value));
    }

    /// A number that only goes up, kept elsewhere.
    pub fn counter(&mut self, metric: &'static Described, value: u64) {
        self.counter_with(metric, &[], value);
    }

    /// A number that only goes up, kept elsewhere, one for each set of values of the metric's labels.
    pub fn counter_with(&mut self, metric: &'static Described, labels: &[&str], value: u64) {
        debug_assert_eq!(metric.kind, Kind::Counter, "{metric:?}");
        self.push(metric, labels, Sample::Counter(value));
    }

    fn push(&mut self, metric: &'static Described, values: &[&str], sample: Sample) {
        debug_assert_eq!(metric.labels.len(), values.len(), "{metric:?}");
        let new = SampledFamily { described: metric, samples: Vec::new() };
        let family = self.families.entry(metric.name).or_insert(new);
        let labels = metric.labels.iter().zip(values).map(|(label, text)| (*label, escape(text)));
        family.samples.push((labels.collect(), sample));
    }
}

/// A label's value as the text format wants it; prometheus-client writes values as they are.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn describe<'e>(encoder: &'e mut DescriptorEncoder, metric: &Described) -> Result<MetricEncoder<'e>, fmt::Error> {
    encoder.encode_descriptor(metric.name, metric.help, None, metric_type(metric.kind))
}

/// Who is asked at a scrape.
#[derive(Default)]
struct Scraped {
    /// As long as nobody else is there.
    before: Option<ScrapeFn>,
    by_layers: Vec<ScrapeFn>,
}

struct ScrapeCollector(Arc<Mutex<Scraped>>);

impl fmt::Debug for ScrapeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScrapeCollector")
    }
}

impl Collector for ScrapeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut sampler = Sampler::default();
        let scraped = self.0.lock();
        let before = scraped.before.iter().filter(|_| scraped.by_layers.is_empty());
        for closure in before.chain(&scraped.by_layers) {
            closure(&mut sampler);
        }
        drop(scraped);
        for family in sampler.families.values() {
            let SampledFamily { described, samples } = family;
            let mut family_encoder = describe(&mut encoder, described)?;
            for (labels, sample) in samples {
                let metric = if labels.is_empty() { None } else { Some(family_encoder.encode_family(labels)?) };
                match metric {
                    Some(encoder) => encode_sample(*sample, encoder)?,
                    None => encode_sample_plain(*sample, &mut family_encoder)?,
                }
            }
        }
        Ok(())
    }
}

fn encode_sample(sample: Sample, encoder: MetricEncoder) -> fmt::Result {
    match sample {
        Sample::Gauge(value) => ConstGauge::new(value).encode(encoder),
        Sample::Counter(value) => ConstCounter::new(value).encode(encoder),
    }
}

fn encode_sample_plain(sample: Sample, encoder: &mut MetricEncoder) -> fmt::Result {
    match sample {
        Sample::Gauge(value) => encoder.encode_gauge(&value),
        Sample::Counter(value) => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
    }
}

/// Upper bounds of the buckets of a [`Histogram`], in microseconds: from what a read in memory takes to what a request
/// may take at most.
const BUCKETS_MICROS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// Durations, counted in buckets without a lock. Cloning shares the numbers.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    inner: Arc<HistogramInner>,
}

#[derive(Debug, Default)]
struct HistogramInner {
    /// One for each bound, and the last for what is above all.
    buckets: [AtomicU64; BUCKETS_MICROS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // Rounded up, because a bucket holds what is at most its bound.
        let bucket = BUCKETS_MICROS.partition_point(|bound| *bound < nanos.div_ceil(1000));
        self.inner.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.inner.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    fn encode_to(&self, encoder: &mut MetricEncoder) -> fmt::Result {
        let bounds = BUCKETS_MICROS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::MAX]);
        let counts = self.inner.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        // The sum of the buckets, not a counter of its own: the two could disagree in the middle of a scrape.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum_seconds = self.inner.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(sum_seconds, count, &buckets, None)
    }

    fn is_unused(&self) -> bool {
        self.inner.buckets.iter().all(|count| count.load(Ordering::Relaxed) == 0)
    }
}

/// Declares a label with its values, so that counters of all its values can lie in an array.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            const ALL: &'static [$name] = &[$($name::$variant,)*];

            fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

label! {
    /// Which resource a request asked for.
    Route {
        /// `/v1/kv/{key}`
        Kv = "/v1/kv/{key}",
        /// `/v1/kv/{key}`, waiting for a change
        LongPoll = "/v1/kv/{key}?since",
        /// `/v1/watch`; its duration is that of the head
        Watch = "/v1/watch",
        /// `/v1/keys`
        Keys = "/v1/keys",
        /// `/v1/status`
        Status = "/v1/status",
        /// `/v1/members`
        Members = "/v1/members",
        /// `/v1/role`
        Role = "/v1/role",
        /// `/v1/leader`
        Leader = "/v1/leader",
        /// `/v1/replication`
        Replication = "/v1/replication",
        /// `/v1/dr`
        Dr = "/v1/dr",
        /// `/v1/dr/switchover`
        Switchover = "/v1/dr/switchover",
        /// `/v1/events`
        Events = "/v1/events",
        /// `/v1/seq/{name}`
        Sequences = "/v1/seq",
        /// `/v1/maintenance`
        Maintenance = "/v1/maintenance",
        /// `/v1/verify`; its duration is that of the head
        Verify = "/v1/verify",
        /// `/v1/snapshot`
        Snapshot = "/v1/snapshot",
        /// `/v1/txn`
        Txn = "/v1/txn",
        /// `/v1/leases` and what is below it
        Leases = "/v1/leases",
        /// `/v1/openapi.json`
        OpenApi = "/v1/openapi.json",
        /// `/health/…`
        Health = "/health",
        /// `/metrics`
        Metrics = "/metrics",
        /// What does not exist.
        Unknown = "unknown",
    }
}

label! {
    /// How it asked.
    Verb {
        /// GET
        Get = "GET",
        /// HEAD
        Head = "HEAD",
        /// PUT
        Put = "PUT",
        /// POST
        Post = "POST",
        /// DELETE
        Delete = "DELETE",
        /// Any other method.
        Other = "other",
    }
}

const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Requests of clients, by resource, method and class of status.
#[derive(Debug, Default)]
pub struct HttpMetrics {
    requests: [[[AtomicU64; STATUS_CLASSES.len()]; Verb::ALL.len()]; Route::ALL.len()],
    durations: [[Histogram; Verb::ALL.len()]; Route::ALL.len()],
    /// Connections of clients.
    pub connections: Arc<ConnectionCounts>,
}

/// The connections of one listener.
#[derive(Debug, Default)]
pub struct ConnectionCounts {
    /// How many are open.
    pub open: AtomicU64,
    /// How many were closed at once because too many were open.
    pub refused: AtomicU64,
}

impl HttpMetrics {
    /// Counts a request whose reply is ready.
    pub fn record(&self, route: Route, verb: Verb, status: u16, duration: Duration) {
        let class = usize::from(status / 100).clamp(1, STATUS_CLASSES.len()) - 1;
        self.requests[route as usize][verb as usize][class].fetch_add(1, Ordering::Relaxed);
        self.durations[route as usize][verb as usize].observe(duration);
    }
}

/// Shows what was used of [`HttpMetrics`]; combinations that never occurred are left out.
#[derive(Debug)]
struct HttpCollector(Arc<HttpMetrics>);

impl Collector for HttpCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut family = describe(&mut encoder, &catalogue::HTTP_REQUESTS)?;
        for (route, verb) in routes_and_verbs() {
            for (class, label) in STATUS_CLASSES.iter().enumerate() {
                let count = self.0.requests[route as usize][verb as usize][class].load(Ordering::Relaxed);
                if count > 0 {
                    let labels = labelled(&catalogue::HTTP_REQUESTS, &[route.as_str(), verb.as_str(), label]);
                    let mut metric = family.encode_family(&labels)?;
                    metric.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        let mut family = describe(&mut encoder, &catalogue::HTTP_REQUEST_DURATION_SECONDS)?;
        for (route, verb) in routes_and_verbs() {
            let histogram = &self.0.durations[route as usize][verb as usize];
            if !histogram.is_unused() {
                let labels = labelled(&catalogue::HTTP_REQUEST_DURATION_SECONDS, &[route.as_str(), verb.as_str()]);
                histogram.encode_to(&mut family.encode_family(&labels)?)?;
            }
        }
        let mut metric = describe(&mut encoder, &catalogue::HTTP_CONNECTIONS)?;
        metric.encode_gauge(&(self.0.connections.open.load(Ordering::Relaxed) as f64))?;
        let mut metric = describe(&mut encoder, &catalogue::HTTP_CONNECTIONS_REFUSED)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&self.0.connections.refused.load(Ordering::Relaxed), None)
    }
}

fn labelled<'v>(metric: &Described, values: &[&'v str]) -> Vec<(&'static str, &'v str)> {
    metric.labels.iter().copied().zip(values.iter().copied()).collect()
}

fn routes_and_verbs() -> impl Iterator<Item = (Route, Verb)> {
    Route::ALL.iter().flat_map(|route| Verb::ALL.iter().map(move |verb| (*route, *verb)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a line of the text; panics with the text when there is none.
    fn value(text: &str, series: &str) -> f64 {
        let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        let line = line.unwrap_or_else(|| panic!("no {series} in:\n{text}"));
        line[series.len() + 1..].parse().unwrap()
    }

    #[test]
    fn documented_counters_are_there_from_the_first_scrape() {
        let metrics = Metrics::new();
        metrics.reads_stale.inc();
        metrics.writes_forwarded.inc_by(3);
        let text = metrics.encode();
        assert_eq!(value(&text, r#"lifeboat_reads_served_total{consistency="linearizable"}"#), 0.0);
        assert_eq!(value(&text, r#"lifeboat_reads_served_total{consistency="stale"}"#), 1.0);
        assert_eq!(value(&text, "lifeboat_writes_forwarded_total"), 3.0);
        assert_eq!(value(&text, "lifeboat_read_index_rounds_total"), 0.0);
        assert_eq!(value(&text, "lifeboat_read_index_waiters_total"), 0.0);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn requests_are_counted_by_route_method_and_class() {
        let metrics = Metrics::new();
        metrics.http.record(Route::Kv, Verb::Put, 201, Duration::from_micros(300));
        metrics.http.record(Route::Kv, Verb::Put, 200, Duration::from_micros(100));
        metrics.http.record(Route::Kv, Verb::Get, 404, Duration::from_secs(3600));
        let text = metrics.encode();
        let puts = r#"{route="/v1/kv/{key}",method="PUT",status="2xx"}"#;
        assert_eq!(value(&text, &format!("lifeboat_http_requests_total{puts}")), 2.0);
        let gets = r#"{route="/v1/kv/{key}",method="GET",status="4xx"}"#;
        assert_eq!(value(&text, &format!("lifeboat_http_requests_total{gets}")), 1.0);
        let name = "lifeboat_http_request_duration_seconds";
        let labels = r#"route="/v1/kv/{key}",method="PUT""#;
        assert_eq!(value(&text, &format!(r#"{name}_bucket{{le="0.0001",{labels}}}"#)), 1.0);
        assert_eq!(value(&text, &format!(r#"{name}_bucket{{le="0.00025",{labels}}}"#)), 1.0);
        assert_eq!(value(&text, &format!(r#"{name}_bucket{{le="0.0005",{labels}}}"#)), 2.0);
        assert_eq!(value(&text, &format!("{name}_count{{{labels}}}")), 2.0);
        let slow = r#"route="/v1/kv/{key}",method="GET""#;
        assert_eq!(value(&text, &format!(r#"{name}_bucket{{le="10.0",{slow}}}"#)), 0.0);
        assert_eq!(value(&text, &format!(r#"{name}_bucket{{le="+Inf",{slow}}}"#)), 1.0);
        assert!(!text.contains("DELETE"), "what never occurred is left out");
    }

    #[test]
    fn what_is_told_until_others_tell_is_told_alone() {
        let (early, late) = (Metrics::new(), Metrics::new());
        let says =
            |value| -> ScrapeFn { Box::new(move |sampler: &mut Sampler| sampler.gauge(&catalogue::READY, value)) };
        early.until_on_scrape(says(0.0));
        assert_eq!(value(&early.encode(), "lifeboat_ready"), 0.0);
        early.on_scrape(says(1.0));
        // Whichever of the two comes first.
        late.on_scrape(says(1.0));
        late.until_on_scrape(says(0.0));
        for metrics in [early, late] {
            let text = metrics.encode();
            assert_eq!(value(&text, "lifeboat_ready"), 1.0);
            assert_eq!(text.lines().filter(|line| line.starts_with("lifeboat_ready ")).count(), 1, "{text}");
        }
    }

    #[test]
    fn other_layers_report_at_the_scrape() {
        let metrics = Metrics::new();
        for (member, far) in [("n2", 0.5), ("n\"3", 2.0)] {
            metrics.on_scrape(Box::new(move |sampler| {
                sampler.gauge_with(&catalogue::PEER_ROUND_TRIP_SECONDS, &[member], far);
            }));
        }
        metrics.on_scrape(Box::new(|sampler| {
            sampler.gauge(&catalogue::REVISION, 44.0);
            sampler.counter(&catalogue::SEALS, 7);
        }));
        let text = metrics.encode();
        assert_eq!(value(&text, r#"lifeboat_peer_round_trip_seconds{member="n2"}"#), 0.5);
        assert_eq!(value(&text, r#"lifeboat_peer_round_trip_seconds{member="n\"3"}"#), 2.0);
        assert_eq!(value(&text, "lifeboat_revision"), 44.0);
        assert_eq!(value(&text, "lifeboat_seals_total"), 7.0);
        assert_eq!(text.matches("# TYPE lifeboat_peer_round_trip_seconds ").count(), 1);
    }
}
