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

    /// Fails unless the member says that it is not ready, as an alert needs it, and whether it is fenced or in quarantine.
    #[track_caller]
    pub fn assert_cannot_serve(&self, fenced: bool, quarantined: bool) {
        let bit = |is: bool| f64::from(u8::from(is));
        for (name, wanted) in [
            ("lifeboat_ready", 0.0),
            ("lifeboat_leader", 0.0),
            ("lifeboat_leader_known", 0.0),
            ("lifeboat_fenced", bit(fenced)),
            ("lifeboat_quarantined", bit(quarantined)),
        ] {
            assert!(self.has(name) && self.sum(name, &[]) == wanted, "{name} is not {wanted}: {}", self.text);
        }
    }

    /// Waits until members have counted so many copies that they sent, of this kind or, with no label, of any. A copy is counted
    /// when its sender hears that it arrived, which its receiver may have everything before.
    #[track_caller]
    pub fn wait_copies(members: &[SocketAddr], labels: &[&str], least: f64) {
        super::wait_for(&format!("{least} copies {labels:?} to be counted"), || {
            let of = |member: &SocketAddr| Metrics::of(*member).sum("lifeboat_copies_sent_total", labels);
            let sent: f64 = members.iter().map(of).sum();
            if sent >= least { Ok(()) } else { Err(format!("{sent} are")) }
        });
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }
}
