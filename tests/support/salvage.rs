//! `lifeboat salvage` as a test runs it, and salvage files that a test makes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::cluster::Cluster;

/// Runs `lifeboat salvage` and gives its exit code and what it printed.
pub fn salvage(cluster: &Cluster, arguments: &[&str]) -> (i32, String, String) {
    let endpoints: Vec<String> = cluster.clients().iter().map(|address| format!("http://{address}")).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.arg("salvage").args(arguments).env("LIFEBOAT_ENDPOINTS", endpoints.join(",")).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
pub fn report(cluster: &Cluster, code: i32, arguments: &[&str]) -> Value {
    let (ended, printed, said) = salvage(cluster, &[arguments, &["-o", "json"]].concat());
    assert_eq!(ended, code, "{arguments:?}: {printed}{said}");
    serde_json::from_str(&printed).unwrap()
}

/// What was done with each key.
pub fn done(report: &Value) -> Vec<(String, String)> {
    let changes = report["done"].as_array().unwrap().iter();
    let pairs = changes.flat_map(|change| {
        let what = change["what"].as_str().unwrap().to_owned();
        let keys = change["keys"].as_array().unwrap().iter();
        keys.map(move |key| (key.as_str().unwrap().to_owned(), what.clone())).collect::<Vec<_>>()
    });
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort();
    pairs
}

pub fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(key, what)| ((*key).to_owned(), (*what).to_owned())).collect()
}

/// The lines of a salvage file of a member of a timeline that the cluster has left behind.
pub struct File {
    pub header: Value,
    pub lines: Vec<Value>,
}

impl File {
    pub fn new(cluster: &Cluster, member: &str, fork: u64) -> File {
        let status = cluster.status(0).unwrap();
        let current = &status["cluster"]["timeline"];
        let header = json!({
            "format": "lifeboat-salvage", "version": 1, "cluster": status["cluster"]["id"],
            "timeline": { "number": 1, "id": "1".repeat(32) },
            "onto": { "number": current["number"], "id": current["id"] },
            "fork": { "position": 100, "revision": fork },
            "member": { "id": member.repeat(16), "name": format!("old{member}"), "site": "east" },
            "written_ms": 1, "common": { "position": 100, "revision": fork, "differs_from": 101, "exact": true },
            "lost": { "thinned": 0, "missing": 0 },
        });
        File { header, lines: Vec::new() }
    }

    pub fn write(&mut self, fate: &str, key: Option<&str>, ops: &Value) {
        let position = 101 + self.lines.len();
        let mut line = json!({
            "position": position, "term": 3, "leader": "1".repeat(16), "fate": fate, "proven": true, "time_ms": 1,
            "kind": "write", "ops": ops,
        });
        if fate == "applied" {
            line["revision"] = json!(position);
        }
        if let Some(key) = key {
            line["idempotency_key"] = json!(key);
        }
        self.lines.push(line);
    }

    pub fn text(&self) -> String {
        let count = |fate: &str| self.lines.iter().filter(|line| line["fate"] == fate).count();
        let mut header = self.header.clone();
        let (applied, unknown) = (count("applied"), count("unknown"));
        header["counts"] = json!({ "applied": applied, "unknown": unknown, "system": 0, "unproven": 0 });
        let lines = std::iter::once(&header).chain(&self.lines).map(|line| format!("{line}\n"));
        lines.collect()
    }

    pub fn name(&self) -> String {
        let (timeline, member) = (self.header["timeline"]["id"].as_str(), self.header["member"]["id"].as_str());
        format!("{}-{}.ndjson", timeline.unwrap(), member.unwrap())
    }

    pub fn save(&self, data_dir: &Path) -> PathBuf {
        let dir = data_dir.join("salvage");
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(self.name());
        std::fs::write(&path, self.text()).unwrap();
        path
    }
}

pub fn put(key: &str, value: &str, version: u64) -> Value {
    json!({ "op": "put", "key": key, "value": value, "version": version })
}
