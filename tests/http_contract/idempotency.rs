//! `Idempotency-Key`: a request that is repeated is answered as it was and not executed again.
//!
//! That this holds through crashes and changes of leaders is shown by `tests/api/idempotency.rs`.

use serde_json::{Value, json};

use super::Single;
use super::support::cluster::Plan;
use super::support::http::{self, Answer, Request};

fn keyed(method: &str, target: &str, key: &str) -> Request {
    Request::new(method, target).header("Idempotency-Key", key)
}

/// Fails unless the second answer is the first again, and says so.
#[track_caller]
fn assert_replay(first: &Answer, again: &Answer) {
    assert_eq!(first.header("lifeboat-replayed"), None, "{first}");
    assert_eq!(again.header("lifeboat-replayed"), Some("true"), "{again}");
    assert_eq!((again.status, again.text()), (first.status, first.text()));
    for name in ["etag", "content-type"] {
        assert_eq!(again.header(name), first.header(name), "{name} of {again}");
    }
}

/// Every kind of request, what it is answered, and what would come of it if it were executed again.
#[test]
fn every_kind_of_write_is_answered_again_as_it_was() {
    let mut member = Single::start();
    for key in ["kept", "d", "r/1", "r/2"] {
        member.put(&format!("/v1/kv/{key}"), "0");
    }
    let revision = member.put("/v1/kv/cas", "0");
    let txn = json!({"compare": [{"key": "t", "target": "version", "op": "==", "value": 0}],
                     "then": [{"put": {"key": "t", "value": "1", "previous": true}}, {"get": {"key": "kept"}}],
                     "else": [{"delete": {"key": "kept"}}]});
    let twice = json!({"then": [{"put": {"key": "a", "value": "1"}}, {"delete": {"prefix": "a"}}]});
    let grant = json!({"ttl_seconds": 600});
    let requests = [
        (keyed("PUT", "/v1/kv/new", "put").body("1"), 201),
        (keyed("PUT", "/v1/kv/cas", "cas").header("If-Match", &format!("\"{revision}\"")).body("1"), 200),
        (keyed("PUT", "/v1/kv/lives", "ttl").header("If-None-Match", "*").body("1"), 201),
        (keyed("PUT", "/v1/kv/leased?ttl=10m", "with-ttl").body("1"), 201),
        (keyed("PUT", "/v1/kv/kept", "refused").header("If-None-Match", "*").body("1"), 412),
        (keyed("PUT", "/v1/kv/none", "refused-absent").header("If-Match", "*").body("1"), 412),
        (keyed("PUT", "/v1/kv/kept?lease=77", "no-lease").body("1"), 404),
        (keyed("DELETE", "/v1/kv/d", "delete"), 200),
        (keyed("DELETE", "/v1/kv/none", "delete-none"), 200),
        (keyed("DELETE", "/v1/kv/kept", "delete-refused").header("If-Match", "\"1000\""), 412),
        (keyed("DELETE", "/v1/keys?prefix=r/", "delete-range"), 200),
        (keyed("POST", "/v1/txn", "txn").body(txn.to_string()), 200),
        (keyed("POST", "/v1/txn", "written-twice").body(twice.to_string()), 400),
        (keyed("POST", "/v1/leases", "grant").body(grant.to_string()), 201),
        (keyed("POST", "/v1/leases", "grant-5").body(json!({"ttl_seconds": 600, "id": 5}).to_string()), 201),
        (keyed("POST", "/v1/leases", "grant-5-again").body(json!({"ttl_seconds": 600, "id": 5}).to_string()), 409),
    ];
    let answers: Vec<Answer> =
        requests.iter().map(|(request, status)| request.send(member.at).expect(*status)).collect();
    // Now each of them would come to something else.
    http::delete(member.at, "/v1/kv/new").expect(200);
    for key in ["d", "none", "r/1"] {
        member.put(&format!("/v1/kv/{key}"), "2");
    }
    http::delete(member.at, "/v1/kv/kept").expect(200);
    http::delete(member.at, "/v1/leases/5").expect(200);
    http::post(member.at, "/v1/leases", &json!({"ttl_seconds": 600, "id": 77})).expect(201);
    let (items, leases) = (member.items(), http::get(member.at, "/v1/leases").json());
    for restarted in [false, true] {
        if restarted {
            member.cluster.kill(0);
            member.cluster.start_member(0);
            member.cluster.wait_ready(0);
        }
        for ((request, _), first) in requests.iter().zip(&answers) {
            assert_replay(first, &request.send(member.at));
        }
        assert_eq!(member.items(), items, "restarted: {restarted}");
        assert_eq!(http::get(member.at, "/v1/leases").json(), leases, "restarted: {restarted}");
    }
    // A refusal that is repeated tells what it told, and a write that only failed its condition has no outcome.
    let refused = requests[4].0.send(member.at);
    assert!(refused.etag_revision().is_some(), "{refused}");
    assert_eq!(refused.expect_problem(412, "condition-failed")["outcome"], json!(null));
    // Without the key it is another request.
    Request::new("PUT", "/v1/kv/kept").header("If-None-Match", "*").body("1").send(member.at).expect(201);
    member.assert_serves();
}

#[test]
fn the_same_key_with_another_request_is_refused_and_nothing_is_done() {
    let member = Single::start();
    let revision = member.put("/v1/kv/a", "0");
    let tag = format!("\"{revision}\"");
    let other = json!({"then": [{"put": {"key": "a", "value": "1"}}]}).to_string();
    let first = keyed("PUT", "/v1/kv/a", "k").header("If-Match", &tag).body("1");
    let answer = first.send(member.at).expect(200);
    let items = member.items();
    for request in [
        keyed("PUT", "/v1/kv/a", "k").header("If-Match", &tag).body("2"),
        keyed("PUT", "/v1/kv/a", "k").header("If-Match", &tag).body(""),
        keyed("PUT", "/v1/kv/b", "k").header("If-Match", &tag).body("1"),
        keyed("PUT", "/v1/kv/a?ttl=10m", "k").header("If-Match", &tag).body("1"),
        keyed("PUT", "/v1/kv/a", "k").body("1"),
        keyed("PUT", "/v1/kv/a", "k").header("If-None-Match", &tag).body("1"),
        keyed("PUT", "/v1/kv/a", "k").header("If-Match", "*").body("1"),
        keyed("PUT", "/v1/kv/a", "k").header("If-Match", &tag).header("If-None-Match", "\"1000\"").body("1"),
        keyed("DELETE", "/v1/kv/a", "k").header("If-Match", &tag),
        keyed("DELETE", "/v1/kv/a", "k"),
        keyed("DELETE", "/v1/keys?prefix=a", "k"),
        keyed("POST", "/v1/txn", "k").body(&other),
        keyed("POST", "/v1/leases", "k").body(json!({"ttl_seconds": 600}).to_string()),
    ] {
        let problem = request.send(member.at).expect_problem(422, "idempotency-mismatch");
        assert!(problem["field"].as_str().is_some_and(|f| f.eq_ignore_ascii_case("idempotency-key")), "{problem}");
        assert_eq!(problem["retry"], "never", "{problem}");
    }
    assert_eq!(member.items(), items);
    assert_eq!(http::get(member.at, "/v1/leases").json()["leases"], json!([]));
    // None of this took the key from the request that had it.
    assert_replay(&answer, &first.send(member.at));
    // What does not change the meaning is no other request.
    let dressed = keyed("PUT", "/v1/kv/a", "k").header("If-Match", &tag).header("X-Attempt", "2").body("1");
    assert_replay(&answer, &dressed.send(member.at));
}

#[test]
fn a_key_is_1_to_255_visible_characters() {
    let member = Single::start();
    let all: String = (b'!'..=b'~').map(char::from).collect();
    for (number, key) in ["x".to_string(), "y".repeat(255), all].iter().enumerate() {
        let request = keyed("PUT", &format!("/v1/kv/{number}"), key).body("1");
        let first = request.send(member.at).expect(201);
        assert_replay(&first, &request.send(member.at));
    }
    let items = member.items();
    for key in ["", "a b", "a\tb", "é", &"x".repeat(256)] {
        for (method, target, body) in [
            ("PUT", "/v1/kv/a", "1"),
            ("DELETE", "/v1/kv/0", ""),
            ("DELETE", "/v1/keys?prefix=", ""),
            ("POST", "/v1/txn", "{\"then\":[{\"delete\":{\"prefix\":\"\"}}]}"),
            ("POST", "/v1/leases", "{\"ttl_seconds\":600}"),
        ] {
            let mut request = keyed(method, target, key);
            if method != "DELETE" {
                request = request.body(body);
            }
            let problem = request.send(member.at).expect_problem(400, "bad-header");
            assert!(problem["field"].as_str().is_some_and(|f| f.eq_ignore_ascii_case("idempotency-key")), "{problem}");
            assert_eq!(problem["outcome"], "not-applied", "{method} {target} with {key:?}: {problem}");
        }
    }
    let twice = keyed("PUT", "/v1/kv/a", "one").header("Idempotency-Key", "two").body("1");
    twice.send(member.at).expect_problem(400, "bad-header");
    assert_eq!(member.items(), items);
    assert_eq!(http::get(member.at, "/v1/leases").json()["leases"], json!([]));
}

#[test]
fn what_was_refused_before_it_was_decided_leaves_the_key_free() {
    let member = Single::start();
    keyed("PUT", "/v1/kv/a?ttl=1", "k").body("1").send(member.at).expect_problem(400, "bad-parameter");
    keyed("PUT", "/v1/kv/a", "k")
        .header("If-Match", "oops")
        .body("1")
        .send(member.at)
        .expect_problem(400, "bad-header");
    keyed("PUT", "/v1/kv/a", "k").body(vec![0; (1 << 20) + 1]).send(member.at).expect_problem(413, "too-large");
    keyed("POST", "/v1/txn", "k").body("{").send(member.at).expect_problem(400, "bad-body");
    let first = keyed("PUT", "/v1/kv/a", "k").body("1").send(member.at).expect(201);
    assert_eq!(first.header("lifeboat-replayed"), None);
}

#[test]
fn to_remember_an_outcome_makes_a_revision() {
    let member = Single::start();
    let revision = member.put("/v1/kv/a", "1");
    let nothing = keyed("DELETE", "/v1/kv/none", "k").send(member.at).expect(200);
    assert_eq!(nothing.json()["revision"], revision, "the request itself made none");
    assert_eq!(member.put("/v1/kv/a", "2"), revision + 2);
    keyed("DELETE", "/v1/kv/none", "k").send(member.at).expect(200);
    assert_eq!(member.put("/v1/kv/a", "3"), revision + 3, "a repeat makes none");
    keyed("PUT", "/v1/kv/a", "both").body("4").send(member.at).expect(200);
    assert_eq!(member.put("/v1/kv/a", "5"), revision + 5, "a write and its outcome share one");
}

/// 64 KiB of values can be remembered, more are refused; the refusal then is what is remembered.
#[test]
fn an_outcome_that_is_too_large_to_be_remembered_is_refused() {
    let member = Single::start();
    member.put("/v1/kv/small", vec![b'x'; 60 << 10]);
    member.put("/v1/kv/large", vec![b'x'; 64 << 10]);
    let request = |key: &str, read: &str| {
        let body = json!({"then": [{"put": {"key": "done", "value": key}}, {"get": {"key": read}}]});
        keyed("POST", "/v1/txn", key).body(body.to_string())
    };
    let first = request("fits", "small").send(member.at).expect(200);
    assert_replay(&first, &request("fits", "small").send(member.at));

    let items = member.items();
    let refused = request("does-not-fit", "large").send(member.at);
    assert_eq!(refused.clone().expect_problem(413, "too-large")["retry"], "never");
    assert_eq!(member.items(), items, "nothing is done");
    // Now it would fit, but it was decided.
    member.put("/v1/kv/large", "x");
    let items = member.items();
    assert_replay(&refused, &request("does-not-fit", "large").send(member.at));
    assert_eq!(member.items(), items);
    // Without a key nothing has to be remembered.
    member.put("/v1/kv/large", vec![b'x'; 64 << 10]);
    let body = json!({"then": [{"get": {"key": "large"}}]});
    http::post(member.at, "/v1/txn", &body).expect(200);
}

#[test]
fn when_no_more_outcomes_fit_new_keys_are_refused_and_all_else_goes_on() {
    let cluster = Plan::new(3, 1).flag("--max-outcomes", "3").start();
    let members = cluster.clients();
    let put = |key: &str| keyed("PUT", &format!("/v1/kv/{key}"), key).body("1");
    let first: Vec<Answer> = ["a", "b", "c"].iter().map(|key| put(key).send(members[0]).expect(201)).collect();
    for &at in &members {
        for request in [
            put("d"),
            keyed("DELETE", "/v1/kv/a", "e"),
            keyed("DELETE", "/v1/keys?prefix=a", "f"),
            keyed("POST", "/v1/txn", "g").body(json!({"then": [{"delete": {"key": "a"}}]}).to_string()),
            keyed("POST", "/v1/leases", "h").body(json!({"ttl_seconds": 60}).to_string()),
        ] {
            let refused = request.send(at);
            assert_eq!(refused.must_have("retry-after"), "60");
            let problem = refused.expect_problem(429, "outcomes-full");
            assert_eq!((&problem["retry"], &problem["outcome"]), (&json!("safe"), &json!("not-applied")), "{problem}");
        }
        // What is remembered is answered, by whichever member, and so is a mismatch.
        for (key, first) in ["a", "b", "c"].iter().zip(&first) {
            assert_replay(first, &put(key).send(at));
        }
        keyed("PUT", "/v1/kv/a", "a").body("2").send(at).expect_problem(422, "idempotency-mismatch");
        // Without a key everything goes on.
        http::put(at, "/v1/kv/free", "1");
        http::post(at, "/v1/txn", &json!({"then": [{"put": {"key": "t", "value": "1"}}]})).expect(200);
        let granted = http::post(at, "/v1/leases", &json!({"ttl_seconds": 60})).expect(201).json();
        http::delete(at, &format!("/v1/leases/{}", granted["id"])).expect(200);
    }
    let page = http::get(members[0], "/v1/keys?keys_only=true").expect(200).json();
    let keys: Vec<&Value> = page["items"].as_array().unwrap().iter().map(|item| &item["key"]).collect();
    assert_eq!(keys, ["a", "b", "c", "free", "t"], "nothing that was refused was done");
}

#[test]
fn a_request_is_repeated_at_any_member() {
    let cluster = Plan::new(3, 1).start();
    let members = cluster.clients();
    for (number, &at) in members.iter().enumerate() {
        let body = json!({"then": [{"put": {"key": format!("t{number}"), "value": "1"}}, {"range": {"prefix": "t"}}]});
        let requests = [
            keyed("PUT", &format!("/v1/kv/p{number}"), &format!("put-{number}")).body("1"),
            keyed("POST", "/v1/txn", &format!("txn-{number}")).body(body.to_string()),
            keyed("POST", "/v1/leases", &format!("grant-{number}")).body("{\"ttl_seconds\":600}"),
        ];
        for request in requests {
            let first = request.send(at);
            assert!(first.status == 200 || first.status == 201, "{first}");
            for &other in &members {
                assert_replay(&first, &request.send(other));
            }
        }
    }
    let leases = http::get(members[3], "/v1/leases").expect(200).json();
    assert_eq!(leases["leases"].as_array().unwrap().len(), members.len(), "{leases}");
    cluster.assert_same_content();
}
