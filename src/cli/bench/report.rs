//! What a benchmark found, for people and for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::cli::exit::{Exit, Trouble};
use crate::client::Error;

/// An answer that takes longer counts as this long.
const LONGEST_MICROS: u64 = 120_000_000;
/// The longest bar of the histogram.
const BAR: usize = 50;
/// What is reported of the times.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// What was counted so far, or in the end.
pub struct Report {
    operation: &'static str,
    clients: u64,
    size: u64,
    rate: Option<u64>,
    times: Histogram<u64>,
    /// How many, by what they mean, with the first one's text.
    errors: BTreeMap<&'static str, (u64, String)>,
    elapsed: Duration,
    /// Successes at the last look.
    before: u64,
}

impl Report {
    /// Nothing is counted yet.
    pub fn new(operation: &'static str, clients: u64, size: u64, rate: Option<u64>) -> Result<Report, Trouble> {
        let times = Histogram::new_with_bounds(1, LONGEST_MICROS, 3)
            .map_err(|error| Trouble::new(Exit::Failed, format!("no histogram: {error}")))?;
        let (errors, elapsed, before) = (BTreeMap::new(), Duration::ZERO, 0);
        Ok(Report { operation, clients, size, rate, times, errors, elapsed, before })
    }

    /// Counts one operation. Only the times of those that succeeded are kept.
    pub fn add(&mut self, took: Duration, error: Option<&Error>) {
        match error {
            None => self.times.saturating_record((took.as_micros() as u64).max(1)),
            Some(error) => {
                let meaning = match error {
                    Error::Unknown { .. } => "unknown",
                    Error::Unavailable { .. } => "unavailable",
                    _ => "refused",
                };
                self.errors.entry(meaning).or_insert_with(|| (0, error.to_string())).0 += 1;
            }
        }
    }

    /// How many succeeded.
    pub fn succeeded(&self) -> u64 {
        self.times.len()
    }

    fn failed(&self) -> u64 {
        self.errors.values().map(|(count, _)| count).sum()
    }

    /// One line about the last second.
    pub fn progress(&mut self, elapsed: Duration) -> String {
        let (now, before) = (self.succeeded(), self.before);
        self.before = now;
        format!(
            "{:.0} s  {} {}/s  p99 {}  errors {}",
            elapsed.as_secs_f64(),
            self.operation,
            now - before,
            millis(self.times.value_at_quantile(0.99)),
            self.failed()
        )
    }

    /// Nothing more is counted.
    pub fn finish(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
    }

    fn per_second(&self) -> f64 {
        self.succeeded() as f64 / self.elapsed.as_secs_f64().max(0.001)
    }

    /// For programs.
    pub fn document(&self) -> Value {
        let mut micros: serde_json::Map<String, Value> =
            QUANTILES.iter().map(|(name, at)| ((*name).to_owned(), self.times.value_at_quantile(*at).into())).collect();
        micros.insert("mean".to_owned(), self.times.mean().into());
        micros.insert("max".to_owned(), self.times.max().into());
        let errors: serde_json::Map<String, Value> = self
            .errors
            .iter()
            .map(|(meaning, (count, first))| ((*meaning).to_owned(), json!({ "count": count, "first": first })))
            .collect();
        json!({
            "operation": self.operation,
            "clients": self.clients,
            "value_bytes": self.size,
            "rate_wanted": self.rate,
            "seconds": self.elapsed.as_secs_f64(),
            "succeeded": self.succeeded(),
            "failed": self.failed(),
            "per_second": self.per_second(),
            "micros": micros,
            "errors": errors,
        })
    }

    /// A name and a number a line.
    pub fn plain(&self) -> Vec<String> {
        let mut lines = vec![
            format!("operation\t{}", self.operation),
            format!("succeeded\t{}", self.succeeded()),
            format!("failed\t{}", self.failed()),
            format!("per_second\t{:.1}", self.per_second()),
        ];
        lines
            .extend(QUANTILES.iter().map(|(name, at)| format!("{name}_micros\t{}", self.times.value_at_quantile(*at))));
        lines.push(format!("max_micros\t{}", self.times.max()));
        lines
    }

    /// For people.
    pub fn table(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{} with {} clients, values of {} bytes, {:.1} s",
                self.operation,
                self.clients,
                self.size,
                self.elapsed.as_secs_f64()
            ),
            format!("  {:.0} a second, {} in all, {} errors", self.per_second(), self.succeeded(), self.failed()),
        ];
        for (meaning, (count, first)) in &self.errors {
            lines.push(format!("  {count} {meaning}, the first: {first}"));
        }
        if self.succeeded() == 0 {
            return lines;
        }
        let quantiles =
            QUANTILES.iter().map(|(name, at)| format!("{name} {}", millis(self.times.value_at_quantile(*at))));
        let quantiles = quantiles.collect::<Vec<_>>().join("   ");
        lines.push(format!("  {quantiles}   max {}", millis(self.times.max())));
        lines.push(String::new());
        lines.extend(self.bars());
        lines
    }

    /// The times, in buckets that double, with a bar each.
    fn bars(&self) -> Vec<String> {
        let mut buckets: BTreeMap<u32, u64> = BTreeMap::new();
        for value in self.times.iter_recorded() {
            *buckets.entry(value.value_iterated_to().max(1).ilog2()).or_default() += value.count_at_value();
        }
        let (Some(first), Some(last)) = (buckets.keys().next().copied(), buckets.keys().last().copied()) else {
            return Vec::new();
        };
        let most = buckets.values().copied().max().unwrap_or(1);
        (first..=last)
            .map(|bucket| {
                let count = buckets.get(&bucket).copied().unwrap_or(0);
                // What there is at all can be seen.
                let length = (count as usize * BAR).div_ceil(most as usize);
                let share = count as f64 * 100.0 / self.succeeded() as f64;
                format!("  < {:>9}  {share:>5.1} %  {}", millis(1 << (bucket + 1)), "#".repeat(length))
            })
            .collect()
    }
}

fn millis(micros: u64) -> String {
    match micros {
        0..10_000 => format!("{:.2} ms", micros as f64 / 1e3),
        10_000..1_000_000 => format!("{:.0} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_and_shows() {
        let mut report = Report::new("put", 4, 256, None).unwrap();
        for micros in (1..=1000).map(|n| n * 10) {
            report.add(Duration::from_micros(micros), None);
        }
        let unknown = Error::Unknown { reason: "cut".into(), problem: None, idempotency_key: None };
        report.add(Duration::from_secs(1), Some(&unknown));
        assert!(report.progress(Duration::from_secs(1)).contains("put 1000/s"));
        assert!(report.progress(Duration::from_secs(2)).contains("put 0/s"));
        report.finish(Duration::from_secs(2));
        let document = report.document();
        assert_eq!(document["succeeded"], 1000);
        assert_eq!(document["failed"], 1);
        assert_eq!(document["per_second"], 500.0);
        assert_eq!(document["errors"]["unknown"]["count"], 1);
        let p50 = document["micros"]["p50"].as_u64().unwrap();
        assert!((4950..=5050).contains(&p50), "{p50}");
        let table = report.table();
        assert!(table[1].contains("500 a second, 1000 in all, 1 errors"), "{table:?}");
        assert!(table.iter().any(|line| line.contains(&"#".repeat(BAR))), "{table:?}");
        assert_eq!(report.plain()[1], "succeeded\t1000");
    }

    #[test]
    fn nothing_at_all_is_reported_too() {
        let report = Report::new("get", 1, 0, None).unwrap();
        assert_eq!(report.document()["micros"]["max"], 0);
        assert_eq!(report.table().len(), 2);
    }
}
