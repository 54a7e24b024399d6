//! Watches and reads that wait, over sockets.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::server::ServerOptions;
use super::super::wire::{PATIENCE, Wire};
use super::super::{EdgeOptions, headers};
use super::{Member, start, start_as};

const NDJSON: (&str, &str) = ("Accept", "application/x-ndjson");

/// No test makes so many revisions. (The cluster makes some of its own, at any time.)
const FAR: u64 = 1000;

/// A watch in lines of JSON.
struct Lines {
    wire: Wire,
    received: Vec<u8>,
    events: VecDeque<Value>,
}

impl Lines {
    async fn open(member: &Member, query: &str) -> Lines {
        let mut wire = member.wire().await;
        let head = wire.stream(&format!("/v1/watch{query}"), &[NDJSON]).await;
        assert_eq!((head.status, head.header("content-type")), (200, "application/x-ndjson"), "{}", head.text());
        Lines { wire, received: Vec::new(), events: VecDeque::new() }
    }

    /// The next event; none at the end of the stream.
    async fn next(&mut self) -> Option<Value> {
        while self.events.is_empty() {
            self.received.extend(self.wire.chunk().await?);
            while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                self.events.push_back(serde_json::from_slice(&line).unwrap());
            }
        }
        self.events.pop_front()
    }

    /// The changes of the next event that is one.
    async fn changes(&mut self) -> Value {
        loop {
            let event = self.next().await.expect("the stream goes on");
            match event["type"].as_str() {
                Some("change") => return event["changes"].clone(),
                Some("heartbeat" | "open") => {}
                _ => panic!("{event}"),
            }
        }
    }
}

async fn put(member: &Member, key: &str, value: &str) -> u64 {
    let answer = member.wire().await.put(&format!("/v1/kv/{key}"), value.as_bytes()).await;
    answer.json()["revision"].as_u64().unwrap_or_else(|| panic!("{}", answer.text()))
}

async fn delete(member: &Member, path: &str) -> u64 {
    let answer = member.wire().await.ask("DELETE", path, &[], b"").await;
    answer.json()["revision"].as_u64().unwrap_or_else(|| panic!("{}", answer.text()))
}

async fn wait_for_watchers(member: &Member, count: u64) {
    let deadline = Instant::now() + PATIENCE;
    while member.node.watches().stats().watchers != count {
        assert!(Instant::now() < deadline, "{:?}", member.node.watches().stats());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_watch_tells_changes_as_documented() {
    let member = start().await;
    let before = put(&member, "a/1", "one").await;
    let mut all = Lines::open(&member, "?prefix=a/&previous=true").await;
    let mut names = Lines::open(&member, "?start=a/1&end=a/2&keys_only=true&filter=put").await;
    let mut gone = Lines::open(&member, &format!("?key=a/1&filter=delete&since={before}")).await;
    assert_eq!(all.next().await, Some(json!({"type":"open","revision":before})));
    let second = put(&member, "a/1", "two").await;
    put(&member, "b", "not watched").await;
    let put_2 = put(&member, "a/2", "three").await;
    let last = delete(&member, "/v1/keys?prefix=a/").await;

    let meta = |value: &str, mod_revision: u64, version: u64| json!({"key":"a/1","value":value,"create_revision":before,"mod_revision":mod_revision,"version":version,"lease":0});
    let mut replaced = meta("two", second, 2);
    replaced["previous"] = meta("one", before, 1);
    assert_eq!(all.changes().await, json!([{"put":replaced}]));
    let created =
        json!({"key":"a/2","value":"three","create_revision":put_2,"mod_revision":put_2,"version":1,"lease":0});
    assert_eq!(all.changes().await, json!([{"put":created}]));
    let event = all.next().await.unwrap();
    assert_eq!(event["revision"], last);
    assert!(event["time_ms"].as_u64().is_some_and(|time| time > 1_600_000_000_000), "{event}");
    let both = json!([
        {"delete":{"key":"a/1","previous":meta("two", second, 2)}},
        {"delete":{"key":"a/2","previous":created}},
    ]);
    assert_eq!(event["changes"], both, "one transaction is one event");

    let mut name = meta("two", second, 2);
    name.as_object_mut().unwrap().remove("value");
    assert_eq!(names.changes().await, json!([{"put":name}]));
    assert_eq!(gone.changes().await, json!([{"delete":{"key":"a/1"}}]));
    member.stop().await;
}

#[tokio::test]
async fn server_sent_events_are_the_default_and_go_on_behind_the_last_event_id() {
    let member = start().await;
    let first = put(&member, "a", "1").await;
    let second = put(&member, "a", "2").await;
    let mut wire = member.wire().await;
    let last_id = first.to_string();
    let head = wire.stream("/v1/watch?since=0", &[("Last-Event-ID", &last_id)]).await;
    assert_eq!((head.status, head.header("content-type")), (200, "text/event-stream"));
    assert_eq!(head.header("cache-control"), "no-cache");
    let mut text = String::new();
    while text.matches("\n\n").count() < 2 {
        text.push_str(std::str::from_utf8(&wire.chunk().await.unwrap()).unwrap());
    }
    let open = format!("event: open\nid: {first}\ndata: {{\"type\":\"open\",\"revision\":{first}}}\n\n");
    let rest = text.strip_prefix(&open).unwrap_or_else(|| panic!("{text}"));
    let expected =
        format!("event: change\nid: {second}\ndata: {{\"type\":\"change\",\"revision\":{second},\"time_ms\":");
    assert!(rest.starts_with(&expected), "{rest}");
    member.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_refused_before_the_stream_begins() {
    let member = start().await;
    let revision = put(&member, "a", "1").await;
    let mut wire = member.wire().await;
    for (query, field) in [
        ("color=red", "color"),
        ("since=x", "since"),
        ("since=1&since=2", "since"),
        ("filter=all", "filter"),
        ("heartbeat=999ms", "heartbeat"),
        ("heartbeat=6m", "heartbeat"),
        ("previous=1", "previous"),
        ("key=", "key"),
        ("key=a&prefix=a", "key"),
        ("key=a&end=b", "key"),
        ("prefix=a&start=b", "prefix"),
        ("key=%zz", "key"),
    ] {
        let answer = wire.get(&format!("/v1/watch?{query}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad-parameter"), "{query}");
        assert_eq!(answer.problem().field.as_deref(), Some(field), "{query}");
    }
    for (headers, field) in [
        (&[("Last-Event-ID", "abc")][..], "last-event-id"),
        (&[("Last-Event-ID", "1"), ("Last-Event-ID", "1")], "last-event-id"),
        (&[("If-None-Match", "\"1\"")], "if-none-match"),
    ] {
        let answer = wire.ask("GET", "/v1/watch", headers, b"").await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad-header"), "{headers:?}");
        assert_eq!(answer.problem().field.as_deref(), Some(field), "{headers:?}");
    }
    let answer = wire.get(&format!("/v1/watch?since={}", revision + FAR)).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "future-revision"));
    assert!(answer.problem().current.is_some_and(|current| (revision..revision + FAR).contains(&current)));
    member.node.store().set_read_floor(revision);
    for path in ["/v1/watch?since=0", "/v1/kv/b?since=0"] {
        let answer = wire.get(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (410, "compacted"), "{path}");
        assert_eq!(answer.problem().floor, Some(revision), "{path}");
    }
    let answer = wire.ask("OPTIONS", "/v1/watch", &[], b"").await;
    assert_eq!((answer.status, answer.header("allow")), (204, "GET, HEAD, OPTIONS"));
    let answer = wire.ask("POST", "/v1/watch", &[], b"").await;
    assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD, OPTIONS"));
    let answer = wire.ask("HEAD", "/v1/watch", &[], b"").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream"));
    wait_for_watchers(&member, 0).await;
    member.stop().await;
}

#[tokio::test]
async fn the_number_of_watchers_is_bounded_and_those_who_leave_are_forgotten() {
    let member = start_as(EdgeOptions::default(), |config| config.max_watchers = 1).await;
    let first = Lines::open(&member, "").await;
    let mut wire = member.wire().await;
    for path in ["/v1/watch", "/v1/kv/a?since=0"] {
        let answer = wire.get(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (429, "too-many-watchers"), "{path}");
        assert_eq!(answer.header("retry-after"), "1");
    }
    drop(first);
    wait_for_watchers(&member, 0).await;
    // Also one that waits for a change of a key and goes away.
    wire.send("GET /v1/kv/a?since=0&wait=5m HTTP/1.1\r\nHost: test\r\n\r\n").await;
    wait_for_watchers(&member, 1).await;
    drop(wire);
    wait_for_watchers(&member, 0).await;
    assert_eq!(member.wire().await.stream("/v1/watch", &[NDJSON]).await.status, 200);
    member.stop().await;
}

#[tokio::test]
async fn a_stop_ends_streams_and_waits_for_no_reader() {
    let server = ServerOptions { drain_timeout: PATIENCE * 2, ..ServerOptions::default() };
    let edge = EdgeOptions { server, ..EdgeOptions::default() };
    let member = start_as(edge, |config| config.watch_slow_timeout_ms = 600_000).await;
    let mut reads = Lines::open(&member, "").await;
    reads.next().await;
    // This one never reads, and so much is ready for it that it does not fit into any buffer.
    let stalled = Lines::open(&member, "").await;
    let value = "x".repeat(60 << 10);
    let mut last = 0;
    for _ in 0..200 {
        last = put(&member, "a", &value).await;
        reads.changes().await;
    }
    let mut waits = member.wire().await;
    waits.send("GET /v1/kv/none?since=0&wait=5m HTTP/1.1\r\nHost: test\r\n\r\n").await;
    wait_for_watchers(&member, 3).await;
    member.stop.announce();
    let end = reads.next().await.unwrap();
    assert_eq!((&end["type"], &end["reason"]), (&json!("end"), &json!("stopping")));
    assert!(end["revision"].as_u64() >= Some(last), "{end}");
    assert_eq!(reads.next().await, None, "the stream is complete");
    let answer = waits.answer(false).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "stopping"));
    let answer = member.wire().await.get("/v1/watch").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "stopping"));
    member.stop().await;
    drop(stalled);
}

#[tokio::test]
async fn a_quiet_stream_sends_heartbeats_with_the_newest_revision() {
    let member = start().await;
    let mut quiet = Lines::open(&member, "?key=quiet&heartbeat=1s").await;
    quiet.next().await;
    let revision = put(&member, "noise", "1").await;
    loop {
        let event = quiet.next().await.unwrap();
        assert_eq!(event["type"], "heartbeat");
        if event["revision"].as_u64() >= Some(revision) {
            break;
        }
    }
    member.stop().await;
}

#[tokio::test]
async fn a_read_waits_for_the_change_of_its_key() {
    let member = start().await;
    let created = put(&member, "a", "1").await;
    let changed = put(&member, "a", "2").await;
    let mut wire = member.wire().await;
    let answer = wire.get(&format!("/v1/kv/a?since={created}")).await;
    assert_eq!((answer.status, answer.text(), answer.header("etag")), (200, "2", &*format!("\"{changed}\"")));

    let path = format!("/v1/kv/a?since={changed}&wait=5m");
    for (consistency, value) in [("linearizable", "3"), ("stale", "4")] {
        let since = member.node.store().revision();
        wire.send(format!("GET /v1/kv/a?since={since}&wait=5m&consistency={consistency} HTTP/1.1\r\nHost: t\r\n\r\n"))
            .await;
        wait_for_watchers(&member, 1).await;
        put(&member, "b", "of no interest").await;
        put(&member, "a", value).await;
        let answer = wire.answer(false).await;
        assert_eq!((answer.status, answer.text()), (200, value));
    }
    let since = member.node.store().revision();
    wire.send(format!("GET /v1/kv/a?since={since} HTTP/1.1\r\nHost: t\r\n\r\n")).await;
    wait_for_watchers(&member, 1).await;
    let deleted = delete(&member, "/v1/kv/a").await;
    let answer = wire.answer(false).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "not-found"));
    let looked: u64 = answer.header(headers::REVISION.as_str()).parse().unwrap();
    assert!(looked >= deleted);
    // The deletion is a change after what was asked for, and none after itself.
    assert_eq!(wire.get(&path).await.status, 404);
    let later = put(&member, "b", "").await;
    let answer = wire.get(&format!("/v1/kv/a?since={deleted}&wait=0s")).await;
    let looked: u64 = answer.header(headers::REVISION.as_str()).parse().unwrap();
    assert_eq!((answer.status, looked >= later), (204, true));
    let answer = wire.get("/v1/kv/never?since=0&wait=10ms").await;
    assert_eq!((answer.status, answer.header("cache-control")), (204, "no-cache"));
    member.stop().await;
}

/// Returns once the feed has met everything that is written now.
async fn fed(member: &Member) {
    let before = member.node.store().revision();
    let mut wire = member.wire().await;
    wire.send(format!("GET /v1/kv/fed?since={before}&wait=5m HTTP/1.1\r\nHost: t\r\n\r\n")).await;
    wait_for_watchers(member, 2).await;
    put(member, "fed", "").await;
    assert_eq!(wire.answer(false).await.status, 200);
}

#[tokio::test]
async fn a_floor_that_passes_a_quiet_wait_costs_nothing() {
    let member = start().await;
    for (wait, change, status) in [("8s", false, 204), ("5m", true, 200)] {
        let since = put(&member, "a", "1").await;
        let mut wire = member.wire().await;
        wire.send(format!("GET /v1/kv/a?since={since}&wait={wait} HTTP/1.1\r\nHost: t\r\n\r\n")).await;
        wait_for_watchers(&member, 1).await;
        // What the wait began with is below the floor now.
        fed(&member).await;
        let floor = member.node.store().revision();
        member.node.store().set_read_floor(floor);
        if change {
            put(&member, "a", "2").await;
        }
        let answer = wire.answer(false).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        let looked: u64 = answer.header(headers::REVISION.as_str()).parse().unwrap();
        assert!(looked >= floor, "whoever goes on from {looked} is told 410");
        // Who names such a revision anew is told that it is gone.
        assert_eq!(wire.get(&format!("/v1/kv/a?since={since}&wait=0s")).await.status, 410);
    }
    member.stop().await;
}

#[tokio::test]
async fn a_read_that_waits_for_the_wrong_thing_is_refused() {
    let member = start().await;
    let revision = put(&member, "a", "1").await;
    let mut wire = member.wire().await;
    for (query, field) in [
        ("wait=1s", "wait"),
        ("since=0&wait=301s", "wait"),
        ("since=0&wait=1", "wait"),
        ("since=x", "since"),
        ("since=0&rev=1", "rev"),
    ] {
        let answer = wire.get(&format!("/v1/kv/a?{query}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad-parameter"), "{query}");
        assert_eq!(answer.problem().field.as_deref(), Some(field), "{query}");
    }
    let answer = wire.ask("GET", "/v1/kv/a?since=0", &[("If-None-Match", "\"1\"")], b"").await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "bad-header"));
    let answer = wire.get(&format!("/v1/kv/a?since={}", revision + FAR)).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "future-revision"));
    let answer = wire.get(&format!("/v1/kv/a?since={}&consistency=stale", revision + FAR)).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "not-here-yet"));
    member.stop().await;
}
