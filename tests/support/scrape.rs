//! Reads numbers out of the Prometheus text that a member shows under `/metrics`.

use std::net::SocketAddr;

use super::http;

/// What a member counts now.
pub struct Metrics {
    text: String,
}

impl Metrics {
    /// Asks a member.
    #[track_caller]
    pub fn of(address: SocketAddr) -> Metrics {
        Metrics { text: http::get(address, "/metrics").expect(200).text().to_string() }
    }

    /// The sum of all samples of this name whose labels contain all of `labels`, each written `name="value"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let mut sum = 0.0;
        for line in self.text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (series_name, series_labels) = series.split_once('{').unwrap_or((series, ""));
            if series_name == name && labels.iter().all(|label| series_labels.contains(label)) {
                sum += value.parse::<f64>().unwrap_or_else(|error| panic!("{line}: {error}"));
            }
        }
        sum
    }

    /// Whether a family of this name is shown at all.
    pub fn has(&self, name: &str) -> bool {
        self.text
            .lines()
            .any(|line| line.split([' ', '{']).next() == Some(name) || line.starts_with(&format!("# TYPE {name} ")))
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }
}
