//! The metrics as they are documented: the table of `docs/operations.md` is made from the list in the code
//! (`lifeboat::metrics::catalogue`), every name in the documentation is in that list, and running members show all of it.
//!
//! With `LIFEBOAT_WRITE_DOCS=1`, which `make fix` sets, the first test writes the table instead of comparing it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::cluster::Plan;
use crate::support::http;
use crate::support::scrape::Metrics;
use crate::support::wait_for;
use lifeboat::metrics::catalogue::{ALL, By, Described, Kind};

/// Between these two lines of the page the table stands.
const BEGIN: &str = "<!-- The table of metrics: from src/metrics/catalogue.rs, by `make fix`. -->\n";
const END: &str = "<!-- The end of the table of metrics. -->\n";

/// The name under which a metric is stored by Prometheus; a histogram is three.
fn series(metric: &Described) -> Vec<String> {
    let name = metric.name;
    match metric.kind {
        Kind::Gauge => vec![name.to_owned()],
        Kind::Counter => vec![format!("{name}_total")],
        Kind::Histogram => ["bucket", "sum", "count"].map(|part| format!("{name}_{part}")).to_vec(),
    }
}

/// The unit, which the name of a metric says.
fn unit(metric: &Described) -> &'static str {
    let has = |word: &str| metric.name.split('_').any(|part| part == word);
    match () {
        () if has("seconds") => "s",
        () if has("bytes") => "bytes",
        () => "",
    }
}

fn kind(metric: &Described) -> &'static str {
    match metric.kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
        Kind::Histogram => "histogram",
    }
}

fn table() -> String {
    let mut table = "| metric | type | unit | shown by | meaning |\n|---|---|---|---|---|\n".to_owned();
    for metric in ALL {
        let name = if metric.kind == Kind::Counter { series(metric).remove(0) } else { metric.name.to_owned() };
        let labels = if metric.labels.is_empty() { String::new() } else { format!("{{{}}}", metric.labels.join(",")) };
        let by = match metric.by {
            By::Every => "every member",
            By::Leader => "the leader",
        };
        let (kind, unit, help) = (kind(metric), unit(metric), metric.help);
        table += &format!("| `{name}{labels}` | {kind} | {unit} | {by} | {help} |\n");
    }
    table
}

#[test]
fn the_table_of_the_operations_page_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the beginning of the table is marked");
    let (found, after) = rest.split_once(END).expect("the end of the table is marked");
    let made = table();
    // Only this value: a variable that is left over, or empty, must not make a check write.
    if std::env::var_os("LIFEBOAT_WRITE_DOCS").is_some_and(|value| value == "1") {
        if found != made {
            fs::write(&path, format!("{before}{BEGIN}{made}{END}{after}")).unwrap();
        }
        return;
    }
    let differs = found.lines().zip(made.lines()).find(|(found, made)| found != made);
    assert!(
        found == made,
        "the table of metrics in docs/operations.md is not that of the code: run `make fix`\n{differs:?}"
    );
}

#[test]
fn every_metric_that_the_documentation_or_the_chart_names_is_in_the_list() {
    let known: Vec<String> = ALL.iter().flat_map(|metric| series(metric)).collect();
    // A histogram is also named as a whole.
    let histogram = |name: &str| ALL.iter().any(|metric| metric.kind == Kind::Histogram && metric.name == name);
    let (mut pages, mut named) = (Vec::new(), 0);
    for directory in ["docs", "charts/lifeboat/files"] {
        let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)).unwrap();
        pages.extend(entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()));
    }
    for path in pages {
        let page = fs::read_to_string(&path).unwrap();
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        let is_metric = |word: &&str| word.strip_prefix("lifeboat_").is_some_and(|rest| !rest.is_empty());
        for name in page.split(|c| !is_name(c)).filter(is_metric) {
            assert!(known.iter().any(|known| known == name) || histogram(name), "{}: {name}", path.display());
            named += 1;
        }
    }
    // The table alone names each once.
    assert!(named > ALL.len() + 50, "{named}");
}

/// What a member shows: by the name of each metric its type, and the names of the labels of its samples.
fn shown(text: &str) -> BTreeMap<String, (String, Vec<Vec<String>>)> {
    let mut found: BTreeMap<String, (String, Vec<Vec<String>>)> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            current = name.to_owned();
            assert!(found.insert(current.clone(), (kind.to_owned(), Vec::new())).is_none(), "{name} is there twice");
        } else if !line.starts_with('#') {
            assert!(line.starts_with(&current), "{line} is not of {current}");
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
            // No value of a label has an equals sign here.
            let parts = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            let names = parts.filter(|name| name != "le").collect();
            found.get_mut(&current).unwrap().1.push(names);
        }
    }
    // A descriptor without samples is nothing that is shown.
    found.retain(|_, (_, samples)| !samples.is_empty());
    found
}

#[test]
fn running_members_show_every_metric_as_it_is_described() {
    let mut cluster = Plan::new(1, 1).flag("--canary-interval-ms", "100ms").start();
    // Before the first stop nothing is sealed.
    for member in [0, 1] {
        assert!(cluster.stop(member).success());
        cluster.start_member(member);
    }
    cluster.wait_all_ready();
    for member in [0, 1] {
        http::get(cluster.client(member), "/v1/status").expect(200);
    }
    wait_for("every metric to be shown", || {
        let (leader, mirror) = (Metrics::of(cluster.client(0)), Metrics::of(cluster.client(1)));
        let (leader, mirror) = (shown(leader.text()), shown(mirror.text()));
        for (name, (kind_shown, samples)) in leader.iter().chain(&mirror) {
            let metric =
                ALL.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("{name} is not in the list"));
            assert_eq!(kind_shown, kind(metric), "{name}");
            assert!(samples.iter().all(|labels| labels == metric.labels), "{name}: {samples:?}");
        }
        for metric in ALL.iter().filter(|metric| metric.by == By::Leader) {
            assert!(!mirror.contains_key(metric.name), "{} is shown by a mirror", metric.name);
        }
        let missing = |by: &[By], shown: &BTreeMap<String, _>| -> Vec<&str> {
            let wanted = ALL.iter().filter(|metric| by.contains(&metric.by)).map(|metric| metric.name);
            wanted.filter(|name| !shown.contains_key(*name)).collect()
        };
        let (leader, mirror) = (missing(&[By::Every, By::Leader], &leader), missing(&[By::Every], &mirror));
        if leader.is_empty() && mirror.is_empty() {
            Ok(())
        } else {
            Err(format!("the leader does not show {leader:?}, the mirror {mirror:?}"))
        }
    });
}
