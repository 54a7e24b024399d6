//! What a member answers is what the document says it answers: status, headers, form, and the type of a problem.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::support::cluster::{Cluster, Plan};
use super::support::http::{Answer, Connection, Request};
use super::support::schema::{Schemas, fields};
use super::support::wait_for;
use super::{Document, OF_HTTP};

/// A cluster whose replies are held against the document.
struct Held {
    cluster: Cluster,
    document: Document,
    /// Operations that were answered with success.
    succeeded: BTreeSet<String>,
    /// Types of problems that were met.
    problems: BTreeSet<String>,
}

impl Held {
    fn start() -> Held {
        let cluster = Plan::new(1, 1).with_points().start();
        let document = Document::of(cluster.client(0));
        Held { cluster, document, succeeded: BTreeSet::new(), problems: BTreeSet::new() }
    }

    /// Asks the voter, and holds the answer to what the document says of this operation.
    #[track_caller]
    fn ask(&mut self, id: &str, status: u16, target: &str, shape: impl FnOnce(Request) -> Request) -> Answer {
        self.ask_member(0, id, status, target, shape)
    }

    #[track_caller]
    fn ask_member(
        &mut self,
        member: usize,
        id: &str,
        status: u16,
        target: &str,
        shape: impl FnOnce(Request) -> Request,
    ) -> Answer {
        let method = self.document.operation(id).method.to_uppercase();
        let answer = shape(Request::new(&method, target)).send(self.cluster.client(member)).expect(status);
        self.hold(id, &answer);
        answer
    }

    #[track_caller]
    fn json(&mut self, id: &str, status: u16, target: &str, body: &Value) -> Answer {
        let operation = self.document.operation(id);
        let schema = &operation.said["requestBody"]["content"]["application/json"]["schema"];
        let wrong = Schemas::of(&self.document.0).check(schema, body);
        assert!(wrong.is_empty(), "the schema refuses what is to be sent to {id}: {wrong:#?}");
        self.ask(id, status, target, |request| request.body(body.to_string()))
    }

    #[track_caller]
    fn hold(&mut self, id: &str, answer: &Answer) {
        let schemas = Schemas::of(&self.document.0);
        let operation = self.document.operation(id);
        let reply = operation.said["responses"].get(answer.status.to_string());
        let reply = reply.unwrap_or_else(|| panic!("{id} is not documented to answer so: {answer}"));
        let documented = fields(&reply["headers"]);
        for (name, value) in answer.headers.iter().filter(|(name, _)| !OF_HTTP.contains(&name.as_str())) {
            let header = documented.iter().find(|(documented, _)| documented.eq_ignore_ascii_case(name));
            let (_, header) = header.unwrap_or_else(|| panic!("{id}: the header {name} is not documented: {answer}"));
            let header = &self.document.follow(header)["schema"];
            let value = if header["type"] == "integer" { json!(value.parse::<u64>().unwrap()) } else { json!(value) };
            let wrong = schemas.check(header, &value);
            assert!(wrong.is_empty(), "{id}: the header {name}: {wrong:?}");
        }
        if (200..400).contains(&answer.status) || id.starts_with("check") {
            self.succeeded.insert(id.to_owned());
        }
        if answer.body.is_empty() {
            return;
        }
        let media_type = answer.must_have("content-type");
        let media = reply["content"].get(media_type);
        let media = media.unwrap_or_else(|| panic!("{id} is not documented to send {media_type}: {answer}"));
        let check = |schema: &Value, value: &Value| {
            let wrong = schemas.check(schema, value);
            assert!(wrong.is_empty(), "{id} sent {value}, of which its schema says {wrong:#?}");
        };
        if let Some(item) = media.get("x-item-schema") {
            let lines = answer.text().lines().filter(|line| !line.is_empty());
            for line in
                lines.filter_map(|line| if line.starts_with('{') { Some(line) } else { line.strip_prefix("data: ") })
            {
                check(item, &serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")));
            }
        } else if media_type.ends_with("json") {
            check(&media["schema"], &answer.json());
        }
        if answer.status >= 400 && media_type == "application/problem+json" {
            self.problems.insert(answer.json()["type"].as_str().unwrap().to_owned());
        }
    }

    /// Reads a stream until it has had events of all these types.
    fn follow(&mut self, target: &str, accept: &str, until: &[&str]) {
        let mut connection = Connection::open(self.cluster.client(0)).unwrap();
        connection.send(&Request::new("GET", target).header("Accept", accept).bytes()).unwrap();
        let mut answer = connection.read_stream().unwrap().expect(200);
        while !until.iter().all(|kind| answer.text().contains(&format!("\"type\":\"{kind}\""))) {
            answer.body.extend(connection.read_chunk().unwrap().expect("the stream goes on"));
        }
        self.hold("watch", &answer);
    }
}

#[test]
fn real_replies_are_what_the_document_says() {
    let mut held = Held::start();
    keys(&mut held);
    transactions(&mut held);
    leases(&mut held);
    sequences(&mut held);
    pauses(&mut held);
    switchovers(&mut held);
    the_cluster(&mut held);
    the_loss_of_a_site(&mut held);
    let all: BTreeSet<String> = held.document.operations().iter().map(|operation| operation.id().to_owned()).collect();
    // The other heads are the same code; that of a key is its own.
    let shown: BTreeSet<String> = all.into_iter().filter(|id| !id.ends_with("Head") || id == "readKeyHead").collect();
    let missing: Vec<_> = shown.difference(&held.succeeded).collect();
    assert!(missing.is_empty(), "no reply of these was looked at: {missing:?}");
    assert!(held.problems.len() >= 12, "only these problems were met: {:?}", held.problems);
}

fn keys(held: &mut Held) {
    let plain = |request: Request| request;
    held.ask("writeKey", 201, "/v1/kv/a", |request| request.body("1"));
    held.ask("writeKey", 200, "/v1/kv/a?ttl=1h", |request| request.body("2").header("Idempotency-Key", "k1"));
    held.ask("writeKey", 200, "/v1/kv/a?ttl=1h", |request| request.body("2").header("Idempotency-Key", "k1"));
    held.ask("writeKey", 422, "/v1/kv/a", |request| request.body("3").header("Idempotency-Key", "k1"));
    held.ask("writeKey", 412, "/v1/kv/a", |request| request.body("3").header("If-None-Match", "*"));
    held.ask("writeKey", 404, "/v1/kv/a?lease=9", |request| request.body("3"));
    held.ask("writeKey", 413, "/v1/kv/a", |request| request.body(vec![0; (1 << 20) + 1]));
    held.ask("writeKey", 400, "/v1/kv/%zz", |request| request.body("3"));
    held.ask("writeKey", 421, "/v1/kv/a", |request| request.body("3").header("Lifeboat-Timeline", &"0".repeat(32)));
    held.ask("writeKey", 201, "/v1/kv/%ff", |request| request.body(b"\xfe"));
    let read = held.ask("readKey", 200, "/v1/kv/a", plain);
    let etag = read.must_have("etag").to_owned();
    held.ask("readKey", 304, "/v1/kv/a", |request| request.header("If-None-Match", &etag));
    held.ask("readKeyHead", 200, "/v1/kv/a", plain);
    held.ask("readKeyHead", 404, "/v1/kv/none", plain);
    for key in ["a", "%ff"] {
        held.ask("readKey", 200, &format!("/v1/kv/{key}"), |request| request.header("Accept", "application/json"));
    }
    held.ask("readKey", 404, "/v1/kv/none?consistency=stale", plain);
    held.ask_member(1, "readKey", 200, "/v1/kv/a?consistency=linearizable", plain);
    held.ask("readKey", 400, "/v1/kv/a?rev=999999", plain);
    held.ask("readKey", 503, "/v1/kv/a?rev=999999&consistency=stale", plain);
    held.ask("readKey", 503, "/v1/kv/a?consistency=stale&max_lag=0ms", plain);
    let revision = read.etag_revision().unwrap();
    held.ask("readKey", 200, &format!("/v1/kv/a?since={}", revision - 1), plain);
    held.ask("readKey", 204, &format!("/v1/kv/a?since={revision}&wait=1ms"), plain);
    held.ask("listKeys", 200, "/v1/keys?limit=1", plain);
    held.ask("listKeys", 200, "/v1/keys?keys_only=true&consistency=stale", plain);
    held.ask("listKeys", 200, "/v1/keys", |request| request.header("Accept", "application/x-ndjson"));
    held.ask("listKeys", 400, "/v1/keys?limit=0", plain);
    held.ask("deleteKey", 412, "/v1/kv/a", |request| request.header("If-Match", "\"1\""));
    held.ask("deleteKey", 200, "/v1/kv/a", plain);
    held.ask("deleteKey", 200, "/v1/kv/a", plain);
    let all = ["open", "change", "heartbeat"];
    held.follow("/v1/watch?since=0&previous=true&heartbeat=1s", "application/x-ndjson", &all);
    held.follow("/v1/watch?since=0&keys_only=true&heartbeat=1s", "text/event-stream", &all);
    held.ask("watch", 400, "/v1/watch?since=999999", plain);
    held.ask("watchHead", 200, "/v1/watch", plain);
    held.ask("deleteKeys", 200, "/v1/keys?prefix=", |request| request.header("Idempotency-Key", "k2"));
    held.ask("deleteKeys", 200, "/v1/keys?prefix=", |request| request.header("Idempotency-Key", "k2"));
}

fn transactions(held: &mut Held) {
    let post = "/v1/txn";
    held.ask("writeKey", 201, "/v1/kv/a", |request| request.body("1"));
    let everything = json!({
        "compare": [{ "key": "a", "target": "version", "op": ">=", "value": 1 }],
        "then": [
            { "get": { "key": "a" } },
            { "get": { "key": "none" } },
            { "put": { "key": "a", "value": "2", "previous": true } },
            { "put": { "key_base64": "/w==", "value_base64": "/g==", "previous": true } },
            { "delete": { "key": "none", "previous": true } },
            { "delete": { "prefix": "none/" } },
            { "range": { "prefix": "", "limit": 1 } },
            { "txn": { "else": [], "then": [{ "range": { "start": "a", "end": "b", "keys_only": true } }] } },
        ],
    });
    held.json("transact", 200, post, &everything);
    held.json("transact", 200, post, &json!({}));
    let twice = json!({ "then": [{ "put": { "key": "b", "value": "1" } }, { "delete": { "key": "b" } }] });
    held.json("transact", 400, post, &twice);
    let hanging = json!({ "then": [{ "put": { "key": "b", "value": "1", "lease": 9 } }] });
    held.json("transact", 404, post, &hanging);
    held.ask("transact", 400, post, |request| request.body("{"));
}

fn leases(held: &mut Held) {
    let plain = |request: Request| request;
    held.json("grantLease", 201, "/v1/leases", &json!({ "ttl_seconds": 30, "id": 7301 }));
    held.json("grantLease", 409, "/v1/leases", &json!({ "ttl_seconds": 30, "id": 7301 }));
    held.ask("writeKey", 201, "/v1/kv/%fe?lease=7301", |request| request.body("x"));
    held.ask("writeKey", 201, "/v1/kv/leased?lease=7301", |request| request.body("x"));
    held.ask("keepLeaseAlive", 200, "/v1/leases/7301/keepalive", |request| request.body(""));
    held.ask("keepLeaseAlive", 404, "/v1/leases/9/keepalive", |request| request.body(""));
    held.ask("readLease", 200, "/v1/leases/7301", plain);
    held.ask("readLease", 404, "/v1/leases/9", plain);
    held.ask("listLeases", 200, "/v1/leases?limit=1", plain);
    held.ask("revokeLease", 200, "/v1/leases/7301", plain);
    held.ask("revokeLease", 404, "/v1/leases/7301", plain);
}

fn sequences(held: &mut Held) {
    let plain = |request: Request| request;
    held.ask("takeNumbers", 200, "/v1/seq/orders?count=2", |request| request.body("").header("Idempotency-Key", "s1"));
    held.ask("takeNumbers", 200, "/v1/seq/orders?count=2", |request| request.body("").header("Idempotency-Key", "s1"));
    held.ask("takeNumbers", 409, "/v1/seq/orders?step=7", |request| request.body(""));
    held.ask("takeNumbers", 400, "/v1/seq/orders?count=0", |request| request.body(""));
    held.ask("takeNumbers", 413, "/v1/seq/orders", |request| request.body("x"));
    held.ask("readSequence", 200, "/v1/seq/orders", plain);
    held.ask("readSequence", 404, "/v1/seq/none?consistency=stale", plain);
}

fn pauses(held: &mut Held) {
    let plain = |request: Request| request;
    held.ask("readMaintenance", 200, "/v1/maintenance", plain);
    let pause = json!({ "message": "m", "until": "1h", "reads": true }).to_string();
    held.ask("beginMaintenance", 200, "/v1/maintenance", |request| request.body(&pause));
    held.ask("beginMaintenance", 400, "/v1/maintenance", |request| request.body("{}"));
    held.ask("readMaintenance", 200, "/v1/maintenance", plain);
    held.ask("writeKey", 503, "/v1/kv/a", |request| request.body("1"));
    held.ask("readKey", 503, "/v1/kv/a", plain);
    held.ask("listKeys", 503, "/v1/keys", plain);
    held.ask("watch", 503, "/v1/watch", plain);
    held.ask("transact", 503, "/v1/txn", |request| request.body("{}"));
    held.ask("endMaintenance", 200, "/v1/maintenance", plain);
}

fn switchovers(held: &mut Held) {
    let plain = |request: Request| request;
    let at = "/v1/dr/switchover";
    held.ask("readSwitchover", 200, at, plain);
    let ask = |body: serde_json::Value| move |request: Request| request.body(body.to_string());
    held.ask("beginSwitchover", 400, at, ask(json!({})));
    held.ask("beginSwitchover", 404, at, ask(json!({ "to_site": "north" })));
    held.ask("beginSwitchover", 200, at, ask(json!({ "to_site": "east" })));
    held.ask("abortSwitchover", 409, at, plain);
    super::support::wait_for("a switchover to be possible", || {
        let body = json!({ "to_site": "west", "dry_run": true });
        let answer = super::support::http::post(held.cluster.client(0), at, &body);
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
    held.ask("beginSwitchover", 200, at, ask(json!({ "to_site": "west", "dry_run": true })));
    held.cluster.arm_hold("switchover-added");
    held.ask("beginSwitchover", 202, at, ask(json!({ "to_site": "west", "by": "ann", "reason": "practice" })));
    held.cluster.wait_held("switchover-added");
    held.ask("readSwitchover", 200, at, plain);
    held.ask("readDr", 200, "/v1/dr", plain);
    held.ask("abortSwitchover", 202, at, plain);
    held.cluster.release("switchover-added");
    super::support::wait_for("the switchover to be over", || {
        let shown = super::support::http::get(held.cluster.client(0), at).json();
        if shown["state"] == "went-back" { Ok(()) } else { Err(shown.to_string()) }
    });
    held.ask("readSwitchover", 200, at, plain);
}

fn the_cluster(held: &mut Held) {
    let plain = |request: Request| request;
    held.ask("readSnapshot", 200, "/v1/snapshot", plain);
    for member in 0..2 {
        for (id, target) in [
            ("readStatus", "/v1/status"),
            ("listMembers", "/v1/members"),
            ("readRole", "/v1/role"),
            ("listEvents", "/v1/events?limit=1"),
            ("readReplication", "/v1/replication"),
            ("readDr", "/v1/dr"),
            ("verify", "/v1/verify"),
            ("readMetrics", "/metrics"),
            ("readOpenApi", "/v1/openapi.json"),
        ] {
            held.ask_member(member, id, 200, target, plain);
        }
        let leads = member == 0;
        for (id, target, healthy) in [
            ("checkLive", "/health/live", true),
            ("checkReady", "/health/ready", true),
            ("checkLeader", "/health/leader", leads),
            ("checkPrimary", "/health/primary", leads),
            ("checkMirror", "/health/mirror?max_lag=1h", !leads),
        ] {
            let status = if healthy { 200 } else { 503 };
            // The lag of the mirror may be unknown for a moment.
            wait_for(target, || match plain(Request::new("GET", target)).send(held.cluster.client(member)) {
                answer if answer.status == status => Ok(()),
                answer => Err(answer.to_string()),
            });
            held.ask_member(member, id, status, target, plain);
        }
    }
    held.json("moveLeader", 200, "/v1/leader", &json!({ "to": "n1" }));
    held.json("moveLeader", 404, "/v1/leader", &json!({ "to": "nobody" }));
    held.json("moveLeader", 409, "/v1/leader", &json!({ "to": "n2" }));
    let invitation = json!({ "name": "n9", "peer_url": "http://n9:7401", "role": "voter", "site": "east" });
    held.json("inviteMember", 202, "/v1/members", &invitation);
    held.json("inviteMember", 409, "/v1/members", &json!({ "name": "n1" }));
    held.ask("readMember", 200, "/v1/members/n9", plain);
    held.ask("readMember", 200, "/v1/members/n2", plain);
    held.ask("readMember", 404, "/v1/members/nobody", plain);
    held.ask("suspendMember", 200, "/v1/members/n2/suspend", plain);
    held.ask("suspendMember", 400, "/v1/members/n1/suspend", plain);
    held.ask("suspendMember", 404, "/v1/members/nobody/suspend", plain);
    held.ask("resumeMember", 200, "/v1/members/n2/resume", plain);
    held.json("changeMember", 200, "/v1/members/n2", &json!({ "role": "mirror" }));
    held.json("changeMember", 409, "/v1/members/n1", &json!({ "role": "mirror", "force": true }));
    held.ask("removeMember", 409, "/v1/members/n1?force=true", plain);
    held.ask("removeMember", 404, "/v1/members/nobody", plain);
    held.ask("removeMember", 200, "/v1/members/n9", plain);
    held.ask("removeMember", 200, "/v1/members/n2", plain);
}

/// What a member of an abandoned timeline writes down.
fn salvage_file() -> String {
    let timeline = |number: u64| json!({ "number": number, "id": number.to_string().repeat(32) });
    let header = json!({
        "format": "lifeboat-salvage", "version": 1, "cluster": "c".repeat(32), "timeline": timeline(1), "onto": timeline(2),
        "fork": { "position": 9, "revision": 5 }, "member": { "id": "a".repeat(16), "name": "n1", "site": "east" },
        "written_ms": 1, "common": { "position": 9, "revision": 5, "differs_from": 10, "exact": true },
        "counts": { "applied": 1, "unknown": 0, "system": 0, "unproven": 0 }, "lost": { "thinned": 0, "missing": 0 },
    });
    let write = json!({
        "position": 10, "term": 3, "leader": "a".repeat(16), "fate": "applied", "proven": true, "revision": 6, "time_ms": 1,
        "kind": "write", "idempotency_key": "try-1",
        "ops": [{ "op": "put", "key": "a", "value_base64": "/w==", "version": 2, "previous": 3, "lease": 7 }],
    });
    format!("{header}\n{write}\n")
}

fn the_loss_of_a_site(held: &mut Held) {
    let plain = |request: Request| request;
    held.cluster = Plan::new(1, 1).start();
    held.ask("survey", 200, "/v1/dr/survey", plain);
    held.json("force", 400, "/v1/dr/force", &json!({ "accept_data_loss": true }));
    held.json("rejoin", 409, "/v1/dr/rejoin", &json!({}));
    held.json("drill", 409, "/v1/dr/drill", &json!({}));
    let (named, plain_json) = (json!({ "member": "n2" }).to_string(), ("Accept", "application/json"));
    held.ask_member(1, "drill", 200, "/v1/dr/drill", |request| request.body(named));
    held.ask_member(1, "drill", 200, "/v1/dr/drill", |request| request.body("{}").header(plain_json.0, plain_json.1));
    held.ask("listSalvage", 200, "/v1/dr/salvage", plain);
    held.ask("readSalvage", 404, "/v1/dr/salvage/none", plain);
    let name = format!("{}-{}.ndjson", "1".repeat(32), "a".repeat(16));
    let file = held.cluster.path().join("n1/salvage").join(&name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, salvage_file()).unwrap();
    held.ask("listSalvage", 200, "/v1/dr/salvage", plain);
    held.ask("readSalvage", 200, &format!("/v1/dr/salvage/{name}"), plain);
    held.json("knownRequests", 200, "/v1/dr/salvage/known", &json!({ "idempotency_keys": ["never-seen"] }));
    held.cluster.kill(0);
    held.ask_member(1, "survey", 200, "/v1/dr/survey", plain);
    let order = json!({ "accept_data_loss": true, "by": "me", "reason": "a test", "without": [] }).to_string();
    held.ask_member(1, "force", 202, "/v1/dr/force", |request| request.body(order));
    held.cluster.wait_other_leader(0);
    held.cluster.start_member(0);
    let client = held.cluster.client(0);
    wait_for("the old primary to be fenced", || {
        let answer = Request::new("GET", "/v1/role").try_send(client).map_err(|error| error.to_string())?;
        if answer.text().contains("fenced") { Ok(()) } else { Err(answer.to_string()) }
    });
    for (id, status, target) in [
        ("readKey", 421, "/v1/kv/a"),
        ("readRole", 200, "/v1/role"),
        ("readDr", 200, "/v1/dr"),
        ("checkLive", 200, "/health/live"),
        ("checkReady", 503, "/health/ready"),
    ] {
        held.ask(id, status, target, plain);
    }
    held.json("rejoin", 202, "/v1/dr/rejoin", &json!({}));
}
