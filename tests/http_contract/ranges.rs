//! Ranges: which keys, in pages at one pinned revision, as JSON and NDJSON, and deleting them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::Single;
use super::support::http::{self, Request};
use super::support::wait_for;

fn keys_at(member: &Single, target: &str) -> Vec<String> {
    let page = http::get(member.at, target).expect(200).json();
    page["items"].as_array().unwrap().iter().map(|item| item["key"].as_str().unwrap().to_string()).collect()
}

fn ndjson(member: &Single, target: &str) -> Vec<Value> {
    let answer = Request::new("GET", target).header("Accept", "application/x-ndjson").send(member.at).expect(200);
    assert_eq!(answer.must_have("content-type"), "application/x-ndjson");
    assert!(answer.text().ends_with('\n'), "every line ends");
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_range_is_chosen_by_prefix_or_by_start_and_end() {
    let member = Single::start();
    for key in ["a", "a/1", "a/2", "a/%ff", "b", "b/1", "c"] {
        member.put(&format!("/v1/kv/{key}"), key);
    }
    http::delete(member.at, "/v1/kv/c").expect(200);
    member.put("/v1/kv/c%2B", "plus");
    for (query, expected) in [
        ("?prefix=b", &["b", "b/1"][..]),
        ("?prefix=b/", &["b/1"]),
        ("?prefix=nothing", &[]),
        ("?prefix=c%2B", &["c+"]),
        ("?prefix=c+", &["c+"]),
        ("?start=b", &["b", "b/1", "c+"]),
        ("?start=a/1&end=a/2", &["a/1"]),
        ("?start=a&end=a%00", &["a"]),
        ("?end=a/2", &["a", "a/1"]),
        ("?start=b&end=b", &[]),
        ("?start=c&end=a", &[]),
        ("?start=b&after=b", &["b/1", "c+"]),
        ("?prefix=b&after=a", &["b", "b/1"]),
        ("?prefix=b&after=b/1", &[]),
    ] {
        assert_eq!(keys_at(&member, &format!("/v1/keys{query}")), expected, "{query}");
    }
    let all = http::get(member.at, "/v1/keys").expect(200).json();
    assert_eq!(all["items"].as_array().unwrap().len(), 7);
    assert_eq!(all["more"], false);
    assert!(all.get("next").is_none(), "{all}");
}

#[test]
fn an_item_is_whole_or_without_its_value() {
    let member = Single::start();
    let one = member.put("/v1/kv/a", "x");
    let two = member.put("/v1/kv/a", "y");
    let page = http::get(member.at, "/v1/keys").expect(200);
    assert_eq!(page.must_have("content-type"), "application/json");
    let item = json!({"key": "a", "value": "y", "create_revision": one, "mod_revision": two, "version": 2, "lease": 0});
    assert_eq!(page.json(), json!({"revision": two, "items": [item], "more": false}));
    let page = http::get(member.at, "/v1/keys?keys_only=true").expect(200).json();
    let item = json!({"key": "a", "create_revision": one, "mod_revision": two, "version": 2, "lease": 0});
    assert_eq!(page["items"], json!([item]));
    let page = http::get(member.at, "/v1/keys?keys_only=false").expect(200).json();
    assert_eq!(page["items"][0]["value"], "y");
    let page = http::get(member.at, &format!("/v1/keys?rev={one}")).expect(200).json();
    assert_eq!((&page["revision"], &page["items"][0]["value"]), (&json!(one), &json!("x")));
}

#[test]
fn pages_show_one_revision_while_writes_go_on() {
    let member = Single::start();
    const KEYS: usize = 60;
    for number in 0..KEYS {
        member.put(&format!("/v1/kv/k/{number:03}"), format!("old {number}"));
    }
    let pinned = http::get(member.at, "/v1/keys?prefix=k/&limit=1").expect(200).json()["revision"].as_u64().unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, at) = (Arc::clone(&stop), member.at);
        std::thread::spawn(move || {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                for number in 0..KEYS {
                    http::put(at, &format!("/v1/kv/k/{number:03}"), format!("new {rounds}"));
                    http::put(at, &format!("/v1/kv/k/{number:03}/more"), "added");
                    if number % 3 == 0 {
                        http::delete(at, &format!("/v1/kv/k/{number:03}"));
                    }
                }
                rounds += 1;
            }
        })
    };
    wait_for("writes to go on", || {
        let status = http::get(member.at, "/v1/status").json();
        if status["revision"].as_u64() > Some(pinned + 20) { Ok(()) } else { Err(status.to_string()) }
    });
    for query in [format!("?prefix=k/&limit=7&rev={pinned}"), format!("?prefix=k/&limit=7&rev={pinned}&keys_only=true")]
    {
        let mut target = format!("/v1/keys{query}");
        let mut seen = Vec::new();
        loop {
            let page = http::get(member.at, &target).expect(200).json();
            assert_eq!(page["revision"], pinned, "a page left its revision");
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= 7);
            for item in items {
                if !query.contains("keys_only") {
                    assert_eq!(item["value"], format!("old {}", seen.len()));
                }
                seen.push(item["key"].as_str().unwrap().to_string());
            }
            if page["more"] == false {
                assert!(page.get("next").is_none(), "{page}");
                break;
            }
            target = page["next"].as_str().expect("more pages have an address").to_string();
        }
        assert_eq!(seen, (0..KEYS).map(|n| format!("k/{n:03}")).collect::<Vec<_>>());
    }
    let lines = ndjson(&member, &format!("/v1/keys?prefix=k/&rev={pinned}"));
    assert_eq!(lines.len(), KEYS + 1);
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();

    // The first page pins by itself.
    let page = http::get(member.at, "/v1/keys?limit=1").expect(200).json();
    let next = page["next"].as_str().unwrap();
    let revision = page["revision"].as_u64().unwrap();
    member.put("/v1/kv/zzz", "later");
    let mut all = Vec::new();
    let mut target = next.to_string();
    loop {
        let page = http::get(member.at, &target).expect(200).json();
        assert_eq!(page["revision"], revision);
        all.extend(page["items"].as_array().unwrap().iter().map(|item| item["key"].clone()));
        match page["next"].as_str() {
            Some(next) => target = next.to_string(),
            None => break,
        }
    }
    assert!(!all.contains(&json!("zzz")), "a later page shows a later write");
}

#[test]
fn pages_continue_behind_any_key() {
    let member = Single::start();
    let keys = ["%00", "a%26b", "a+b", "a%20b", "%3D", "%25", "%ff%fe", "x%23y", "%c3%a9"];
    for key in keys {
        member.put(&format!("/v1/kv/{key}"), "v");
    }
    let mut target = "/v1/keys?limit=1".to_string();
    let mut items = Vec::new();
    loop {
        let page = http::get(member.at, &target).expect(200).json();
        items.extend(page["items"].as_array().unwrap().clone());
        assert!(items.len() <= keys.len(), "the pages go in circles at {target}");
        match page["next"].as_str() {
            Some(next) => target = next.to_string(),
            None => break,
        }
    }
    assert_eq!(items, member.items());
}

#[test]
fn a_stream_ends_with_a_line_that_says_so() {
    let member = Single::start();
    for number in 0..2500 {
        member.put(&format!("/v1/kv/{number:05}"), "v");
    }
    let revision = http::get(member.at, "/v1/keys?limit=1").expect(200).json()["revision"].clone();
    let lines = ndjson(&member, "/v1/keys");
    assert_eq!(lines.len(), 2501, "a stream has no limit of its own");
    assert_eq!(lines[0]["key"], "00000");
    assert_eq!(lines[2500], json!({"end": true, "revision": revision, "count": 2500, "more": false}));
    let lines = ndjson(&member, "/v1/keys?limit=10&keys_only=true");
    assert_eq!(lines[10], json!({"end": true, "revision": revision, "count": 10, "more": true}));
    assert!(lines[0].get("value").is_none());
    let lines = ndjson(&member, "/v1/keys?prefix=none");
    assert_eq!(lines, [json!({"end": true, "revision": revision, "count": 0, "more": false})]);
    // JSON has a limit of its own.
    let page = http::get(member.at, "/v1/keys").expect(200).json();
    assert_eq!(page["items"].as_array().unwrap().len(), 1000);
    assert_eq!(page["more"], true);
}

#[test]
fn a_page_ends_early_when_its_values_are_large() {
    let member = Single::start();
    let value = "v".repeat(1 << 20);
    for number in 0..7 {
        member.put(&format!("/v1/kv/{number}"), &value);
    }
    let mut target = "/v1/keys".to_string();
    let mut counts = Vec::new();
    loop {
        let page = http::get(member.at, &target).expect(200).json();
        counts.push(page["items"].as_array().unwrap().len());
        match page["next"].as_str() {
            Some(next) => target = next.to_string(),
            None => break,
        }
    }
    assert_eq!(counts.iter().sum::<usize>(), 7);
    assert!(counts.iter().all(|count| (1..=5).contains(count)), "pages of {counts:?} MiB");
    assert_eq!(ndjson(&member, "/v1/keys").len(), 8);
    // A page never is empty as long as there is more, and keys alone are small.
    assert_eq!(keys_at(&member, "/v1/keys?keys_only=true").len(), 7);
}

#[test]
fn a_range_is_deleted_in_one_transaction() {
    let member = Single::start();
    for key in ["a", "b/1", "b/2", "b/3", "c", "d"] {
        member.put(&format!("/v1/kv/{key}"), key);
    }
    let before = http::get(member.at, "/v1/keys").expect(200).json()["revision"].as_u64().unwrap();
    let reply = http::delete(member.at, "/v1/keys?prefix=b/").expect(200).json();
    assert_eq!(reply, json!({"revision": before + 1, "deleted": 3}));
    assert_eq!(keys_at(&member, "/v1/keys"), ["a", "c", "d"]);
    assert_eq!(keys_at(&member, &format!("/v1/keys?rev={before}")).len(), 6, "the past is kept");
    let reply = http::delete(member.at, "/v1/keys?prefix=b/").expect(200).json();
    assert_eq!(reply, json!({"revision": before + 1, "deleted": 0}), "nothing to delete makes no revision");
    let reply = http::delete(member.at, "/v1/keys?start=a&end=c").expect(200).json();
    assert_eq!(reply, json!({"revision": before + 2, "deleted": 1}));

    http::delete(member.at, "/v1/keys").expect_problem(400, "bad-parameter");
    http::delete(member.at, "/v1/keys?limit=1&prefix=c").expect_problem(400, "bad-parameter");
    assert_eq!(keys_at(&member, "/v1/keys"), ["c", "d"]);
    assert_eq!(http::delete(member.at, "/v1/keys?prefix=").expect(200).json()["deleted"], 2);
    assert!(member.items().is_empty());
    member.assert_serves();
}
