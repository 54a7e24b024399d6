//! The numbers that a member shows at `/metrics`.
//!
//! Place in the path: `http` counts requests here, `node` counts forwarded writes and read-index rounds, and every layer
//! may add numbers that it keeps anyway, which are asked for only when somebody scrapes ([`Metrics::on_scrape`]).
//!
//! Counting on the path of a request is an atomic addition in a place found by array index: no lock, no map, no
//! allocation. All names begin with `lifeboat_`; the text is OpenMetrics, which Prometheus reads ([`CONTENT_TYPE`]).
//!
//! Nothing here survives a restart: counters begin at 0, as Prometheus expects.
//!
//! Proven by the tests below: what was counted is what is shown, under the documented names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry};

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A closure that reports numbers when somebody scrapes.
pub type ScrapeFn = Box<dyn Fn(&mut Sampler) + Send + Sync>;

/// All numbers of one member.
pub struct Metrics {
    registry: Mutex<Registry>,
    scraped: Arc<Mutex<Vec<ScrapeFn>>>,
    /// Requests of clients.
    pub http: Arc<HttpMetrics>,
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
        let scraped: Arc<Mutex<Vec<ScrapeFn>>> = Arc::default();
        registry.register_collector(Box::new(ScrapeCollector(scraped.clone())));

        let reads = Family::<[(&'static str, &'static str); 1], Counter>::default();
        registry.register("lifeboat_reads_served", "Reads served by this member", reads.clone());
        let read_counter = |consistency| reads.get_or_create(&[("consistency", consistency)]).clone();
        let reads_linearizable = read_counter("linearizable");
        let reads_stale = read_counter("stale");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let writes_forwarded = counter("lifeboat_writes_forwarded", "Writes sent on to the leader");
        let read_index_rounds = counter("lifeboat_read_index_rounds", "Questions to the leader for the read index");
        let read_index_waiters = counter("lifeboat_read_index_waiters", "Reads that waited for a read index");
        Metrics {
            registry: Mutex::new(registry),
            scraped,
            http,
            reads_linearizable,
            reads_stale,
            writes_forwarded,
            read_index_rounds,
            read_index_waiters,
        }
    }

    /// Adds a metric that another layer keeps, for example a [`Counter`] or a [`Histogram`]. The name has no `_total`:
    /// a counter gets it when it is shown.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry.lock().register(name, help, metric);
    }

    /// Adds a closure that is asked at every scrape. It must not block; give it a weak reference to what owns these
    /// metrics, or neither is ever freed.
    pub fn on_scrape(&self, closure: ScrapeFn) {
        self.scraped.lock().push(closure);
    }

    /// Everything as text.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        text::encode(&mut out, &self.registry.lock()).expect("writing to a string cannot fail");
        out
    }
}

/// What a scrape closure writes its numbers to. Values of one name may come from several closures.
#[derive(Debug, Default)]
pub struct Sampler {
    families: BTreeMap<&'static str, SampledFamily>,
}

#[derive(Debug)]
struct SampledFamily {
    help: &'static str,
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
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.gauge_with(name, help, &[], value);
    }

    /// A number that goes up and down, one for each set of labels.
    pub fn gauge_with(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: f64) {
        self.push(name, help, labels, Sample::Gauge(value));
    }

    /// A number that only goes up, kept elsewhere. The name has no `_total`; it is added.
    pub fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.counter_with(name, help, &[], value);
    }

    /// A number that only goes up, kept elsewhere, one for each set of labels.
    pub fn counter_with(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        value: u64,
    ) {
        self.push(name, help, labels, Sample::Counter(value));
    }

    fn push(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], sample: Sample) {
        let family = self.families.entry(name).or_insert_with(|| SampledFamily { help, samples: Vec::new() });
        family.samples.push((labels.iter().map(|(label, text)| (*label, escape(text))).collect(), sample));
    }
}

/// A label's value as the text format wants it; prometheus-client writes values as they are.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

struct ScrapeCollector(Arc<Mutex<Vec<ScrapeFn>>>);

impl fmt::Debug for ScrapeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScrapeCollector")
    }
}

impl Collector for ScrapeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut sampler = Sampler::default();
        for closure in self.0.lock().iter() {
            closure(&mut sampler);
        }
        for (name, family) in &sampler.families {
            let kind = match family.samples.first() {
                Some((_, Sample::Counter(_))) => MetricType::Counter,
                Some((_, Sample::Gauge(_))) | None => MetricType::Gauge,
            };
            let mut family_encoder = encoder.encode_descriptor(name, family.help, None, kind)?;
            for (labels, sample) in &family.samples {
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

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        self.encode_to(&mut encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
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
        let help = "Requests of clients";
        let mut family = encoder.encode_descriptor("lifeboat_http_requests", help, None, MetricType::Counter)?;
        for (route, verb) in routes_and_verbs() {
            for (class, label) in STATUS_CLASSES.iter().enumerate() {
                let count = self.0.requests[route as usize][verb as usize][class].load(Ordering::Relaxed);
                if count > 0 {
                    let labels = [("route", route.as_str()), ("method", verb.as_str()), ("status", label)];
                    let labels = labels.as_slice();
                    let mut metric = family.encode_family(&labels)?;
                    metric.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        let help = "Time from the head of a request to the head of its reply";
        let name = "lifeboat_http_request_duration_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (route, verb) in routes_and_verbs() {
            let histogram = &self.0.durations[route as usize][verb as usize];
            if !histogram.is_unused() {
                let labels = [("route", route.as_str()), ("method", verb.as_str())];
                let labels = labels.as_slice();
                histogram.encode_to(&mut family.encode_family(&labels)?)?;
            }
        }
        let help = "Connections of clients that are open";
        let mut metric = encoder.encode_descriptor("lifeboat_http_connections", help, None, MetricType::Gauge)?;
        metric.encode_gauge(&(self.0.connections.open.load(Ordering::Relaxed) as f64))?;
        let help = "Connections of clients that were closed because too many were open";
        let name = "lifeboat_http_connections_refused";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&self.0.connections.refused.load(Ordering::Relaxed), None)
    }
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
    fn other_layers_report_at_the_scrape() {
        let metrics = Metrics::new();
        for (peer, lag_seconds) in [("n2", 0.5), ("n\"3", 2.0)] {
            let help = "How far a peer lags";
            metrics.on_scrape(Box::new(move |sampler| {
                sampler.gauge_with("lifeboat_lag_seconds", help, &[("peer", peer)], lag_seconds);
            }));
        }
        metrics.on_scrape(Box::new(|sampler| {
            sampler.gauge("lifeboat_revision", "The newest revision", 44.0);
            sampler.counter("lifeboat_seals", "Segments sealed", 7);
        }));
        let histogram = Histogram::default();
        metrics.register("lifeboat_wal_sync_seconds", "A sync", histogram.clone());
        histogram.observe(Duration::from_millis(1));
        let text = metrics.encode();
        assert_eq!(value(&text, r#"lifeboat_lag_seconds{peer="n2"}"#), 0.5);
        assert_eq!(value(&text, r#"lifeboat_lag_seconds{peer="n\"3"}"#), 2.0);
        assert_eq!(value(&text, "lifeboat_revision"), 44.0);
        assert_eq!(value(&text, "lifeboat_seals_total"), 7.0);
        assert_eq!(value(&text, "lifeboat_wal_sync_seconds_count"), 1.0);
        assert_eq!(text.matches("# TYPE lifeboat_lag_seconds ").count(), 1);
    }
}
