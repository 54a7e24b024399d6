//! `/v1/leases` and the keys that hang on leases.
//!
//! That leases live through changes of leaders is shown by `tests/api/leases.rs`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Single;
use super::support::cluster::Plan;
use super::support::http::{self, Request};
use super::support::wait_for;

const MAX_ID: u64 = (1 << 53) - 1;
const MAX_TTL_SECONDS: u64 = 30 * 24 * 60 * 60;

#[track_caller]
fn grant(member: &Single, id: u64, ttl_seconds: u64) -> Value {
    http::post(member.at, "/v1/leases", &json!({"id": id, "ttl_seconds": ttl_seconds})).expect(201).json()
}

/// A lease as it stands.
#[track_caller]
fn look(member: &Single, id: u64) -> Value {
    http::get(member.at, &format!("/v1/leases/{id}")).expect(200).json()
}

#[track_caller]
fn assert_unknown(member: &Single, id: u64) {
    for (method, path) in [("GET", ""), ("POST", "/keepalive"), ("DELETE", "")] {
        let answer = Request::new(method, &format!("/v1/leases/{id}{path}")).send(member.at);
        let problem = answer.expect_problem(404, "unknown-lease");
        assert_eq!((&problem["retry"], &problem["outcome"]), (&json!("never"), &json!(null)), "{method}: {problem}");
    }
}

/// The lease that a key hangs on.
#[track_caller]
fn lease_of(member: &Single, key: &str) -> Value {
    let request = Request::new("GET", &format!("/v1/kv/{key}")).header("Accept", "application/json");
    request.send(member.at).expect(200).json()["lease"].clone()
}

#[test]
fn a_lease_is_granted_looked_at_kept_alive_and_ended() {
    let member = Single::start();
    let before = member.put("/v1/kv/x", "1");
    let granted = grant(&member, 7301, 30);
    assert_eq!(granted, json!({"id": 7301, "ttl_seconds": 30, "revision": before + 1}));
    let seen = look(&member, 7301);
    let remaining = seen["remaining_seconds"].as_f64().unwrap();
    assert!(remaining > 20.0 && remaining <= 30.0, "{seen}");
    assert_eq!((&seen["ttl_seconds"], &seen["keys"], &seen["more"]), (&json!(30), &json!([]), &json!(false)));
    let kept = Request::new("POST", "/v1/leases/7301/keepalive").send(member.at).expect(200);
    assert_eq!(kept.json(), json!({"id": 7301, "ttl_seconds": 30}));
    assert!(look(&member, 7301)["remaining_seconds"].as_f64().unwrap() > 20.0);

    for key in ["a", "b"] {
        member.put(&format!("/v1/kv/{key}?lease=7301"), "1");
    }
    assert_eq!(look(&member, 7301)["keys"], json!(["a", "b"]));
    assert_eq!(lease_of(&member, "a"), 7301);
    let ended = http::delete(member.at, "/v1/leases/7301").expect(200).json();
    assert_eq!(ended, json!({"revision": before + 4, "deleted": 2}));
    assert_eq!(member.items().len(), 1, "x stays");
    // They went at one revision.
    let page = http::get(member.at, &format!("/v1/keys?rev={}", before + 3)).expect(200).json();
    assert_eq!(page["items"].as_array().unwrap().len(), 3);
    assert_unknown(&member, 7301);

    // The id may be used again, for another lease.
    assert_eq!(grant(&member, 7301, 60)["revision"], before + 5);
    let ended = http::delete(member.at, "/v1/leases/7301").expect(200).json();
    assert_eq!(ended, json!({"revision": before + 6, "deleted": 0}));
    member.assert_serves();
}

#[test]
fn an_id_is_drawn_when_it_is_left_out() {
    let member = Single::start();
    let mut ids: Vec<u64> = (0..20)
        .map(|_| {
            let granted = http::post(member.at, "/v1/leases", &json!({"ttl_seconds": 30})).expect(201).json();
            granted["id"].as_u64().unwrap()
        })
        .collect();
    assert!(ids.iter().all(|id| (1..=MAX_ID).contains(id)), "{ids:?}");
    let listed = http::get(member.at, "/v1/leases").expect(200).json();
    ids.sort();
    let expected: Vec<Value> = ids.iter().map(|id| json!({"id": id, "ttl_seconds": 30})).collect();
    assert_eq!(listed, json!({"leases": expected, "more": false}), "in the order of their ids");
    ids.dedup();
    assert_eq!(ids.len(), 20);
}

#[test]
fn a_lease_that_exists_is_not_granted_again() {
    let member = Single::start();
    grant(&member, 7, 600);
    member.put("/v1/kv/a?lease=7", "1");
    let answer = http::post(member.at, "/v1/leases", &json!({"id": 7, "ttl_seconds": 30}));
    let problem = answer.expect_problem(409, "lease-exists");
    assert_eq!((&problem["field"], &problem["retry"]), (&json!("id"), &json!("never")), "{problem}");
    let seen = look(&member, 7);
    assert_eq!((&seen["ttl_seconds"], &seen["keys"]), (&json!(600), &json!(["a"])), "{seen}");
}

#[test]
fn bad_leases_are_refused_by_name() {
    let member = Single::start();
    for (body, field) in [
        (json!({}), json!("ttl_seconds")),
        (json!({"ttl_seconds": 0}), json!("ttl_seconds")),
        (json!({"ttl_seconds": MAX_TTL_SECONDS + 1}), json!("ttl_seconds")),
        (json!({"ttl_seconds": u64::MAX}), json!("ttl_seconds")),
        (json!({"ttl_seconds": 30, "ttl": "30s"}), json!("ttl")),
        (json!({"ttl_seconds": 30, "id": 0}), json!("id")),
        (json!({"ttl_seconds": 30, "id": MAX_ID + 1}), json!("id")),
        (json!({"ttl_seconds": 30, "id": u64::MAX}), json!("id")),
        (json!({"ttl_seconds": -1}), json!("ttl_seconds")),
        (json!({"ttl_seconds": 1.5}), json!("ttl_seconds")),
        (json!({"ttl_seconds": "30"}), json!("ttl_seconds")),
        (json!({"ttl_seconds": 30, "id": "7"}), json!("id")),
        (json!({"ttl_seconds": 30, "id": -7}), json!("id")),
    ] {
        let problem = http::post(member.at, "/v1/leases", &body).expect_problem(400, "bad-body");
        assert_eq!((&problem["field"], &problem["outcome"]), (&field, &json!("not-applied")), "{body}: {problem}");
    }
    for body in ["", "null", "[30]", "{", "{\"ttl_seconds\":30} x"] {
        Request::new("POST", "/v1/leases").body(body).send(member.at).expect_problem(400, "bad-body");
    }
    let long = format!("{{\"ttl_seconds\":30{}}}", " ".repeat(1 << 20));
    let answer = Request::new("POST", "/v1/leases").body(long).send(member.at);
    assert!(answer.status == 413, "{answer}");
    http::post(member.at, "/v1/leases?x=1", &json!({"ttl_seconds": 30})).expect_problem(400, "bad-parameter");
    let guarded = Request::new("POST", "/v1/leases").header("If-None-Match", "*").body("{\"ttl_seconds\":30}");
    guarded.send(member.at).expect_problem(400, "bad-header");

    for id in ["0", "-1", "+1", "abc", "1.0", "%20", "9007199254740992", "18446744073709551616"] {
        for (method, path) in [("GET", ""), ("DELETE", ""), ("POST", "/keepalive")] {
            let answer = Request::new(method, &format!("/v1/leases/{id}{path}")).send(member.at);
            let problem = answer.expect_problem(400, "bad-parameter");
            assert_eq!(problem["field"], "id", "{method} {id}: {problem}");
        }
    }
    for target in
        ["/v1/leases/7?x=1", "/v1/leases?x=1", "/v1/leases?limit=0", "/v1/leases?limit=1001", "/v1/leases?after=x"]
    {
        http::get(member.at, target).expect_problem(400, "bad-parameter");
    }
    Request::new("POST", "/v1/leases/7/keepalive?x=1").send(member.at).expect_problem(400, "bad-parameter");
    http::delete(member.at, "/v1/leases/7?x=1").expect_problem(400, "bad-parameter");
    // Where repeating does no harm there is nothing to remember.
    let keyed = Request::new("DELETE", "/v1/leases/7").header("Idempotency-Key", "k").send(member.at);
    keyed.expect_problem(400, "bad-header");
    for (method, target, allow) in [
        ("PUT", "/v1/leases", "GET, HEAD, POST, OPTIONS"),
        ("DELETE", "/v1/leases", "GET, HEAD, POST, OPTIONS"),
        ("PUT", "/v1/leases/7", "GET, HEAD, DELETE, OPTIONS"),
        ("GET", "/v1/leases/7/keepalive", "POST, OPTIONS"),
    ] {
        let answer = Request::new(method, target).send(member.at);
        assert_eq!(answer.must_have("allow"), allow, "{method} {target}");
        answer.expect_problem(405, "method-not-allowed");
    }
    http::get(member.at, "/v1/leases/7/keys").expect_problem(404, "unknown-path");
    assert_eq!(http::get(member.at, "/v1/leases").json(), json!({"leases": [], "more": false}));
    assert_unknown(&member, 7);

    // The largest and the smallest are leases.
    grant(&member, MAX_ID, MAX_TTL_SECONDS);
    assert_eq!(look(&member, MAX_ID)["ttl_seconds"], MAX_TTL_SECONDS);
    grant(&member, 1, 1);
    member.assert_serves();
}

#[test]
fn leases_are_listed_in_pages() {
    let member = Single::start();
    let ids: Vec<u64> = (1..=25).map(|number| number * 1000 + number % 3).collect();
    for id in ids.iter().rev() {
        grant(&member, *id, 600);
    }
    let page = |query: &str| http::get(member.at, &format!("/v1/leases{query}")).expect(200).json();
    let listed = |page: &Value| -> Vec<u64> {
        page["leases"].as_array().unwrap().iter().map(|lease| lease["id"].as_u64().unwrap()).collect()
    };
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = page(&format!("?limit=10&after={after}"));
        let ids = listed(&page);
        after = *ids.last().unwrap();
        all.extend(ids);
        if page["more"] == false {
            break;
        }
        assert_eq!(all.len() % 10, 0, "a page that is not the last is full");
    }
    assert_eq!(all, ids);
    assert_eq!(listed(&page("?limit=25")), ids);
    assert_eq!(page("?limit=25")["more"], false);
    assert_eq!(page("?limit=24")["more"], true);
    assert_eq!(listed(&page("?after=25001")), [0u64; 0]);
    assert_eq!(listed(&page(&format!("?after={}", ids[22] - 1))), &ids[22..]);
    let head = Request::new("HEAD", "/v1/leases").send(member.at).expect(200);
    assert_eq!(head.must_have("cache-control"), "no-cache");
}

#[test]
fn a_write_hangs_its_key_on_a_lease_or_takes_it_off() {
    let member = Single::start();
    grant(&member, 7, 600);
    grant(&member, 8, 600);
    for key in ["a", "b", "c", "d", "%FF"] {
        member.put(&format!("/v1/kv/{key}?lease=7"), "1");
    }
    assert_eq!(look(&member, 7)["keys"], json!(["a", "b", "c", "d", {"key_base64": "/w=="}]));
    // To another lease, off it by a write without one, off it by a deletion, and written again after that.
    member.put("/v1/kv/a?lease=8", "2");
    member.put("/v1/kv/b", "2");
    http::delete(member.at, "/v1/kv/c").expect(200);
    http::post(member.at, "/v1/txn", &json!({"then": [{"put": {"key": "d", "value": "2"}}]})).expect(200);
    member.put("/v1/kv/e?lease=7", "1");
    http::delete(member.at, "/v1/keys?prefix=e").expect(200);
    assert_eq!(look(&member, 7)["keys"], json!([{"key_base64": "/w=="}]));
    assert_eq!(look(&member, 8)["keys"], json!(["a"]));
    assert_eq!(["a", "b", "d"].map(|key| lease_of(&member, key)), [json!(8), json!(0), json!(0)]);
    assert_eq!(http::delete(member.at, "/v1/leases/7").expect(200).json()["deleted"], 1);
    assert_eq!(http::delete(member.at, "/v1/leases/8").expect(200).json()["deleted"], 1);
    let keys: Vec<Value> = member.items().iter().map(|item| item["key"].clone()).collect();
    assert_eq!(keys, ["b", "d"]);
}

#[test]
fn a_write_with_a_lease_that_does_not_exist_is_refused_and_nothing_is_written() {
    let member = Single::start();
    let revision = member.put("/v1/kv/a", "1");
    for target in ["/v1/kv/a?lease=7", "/v1/kv/new?lease=7"] {
        let problem = http::put(member.at, target, "2").expect_problem(404, "unknown-lease");
        assert_eq!((&problem["field"], &problem["retry"]), (&json!("lease"), &json!("never")), "{problem}");
    }
    // Conditions are looked at first.
    let refused = Request::new("PUT", "/v1/kv/a?lease=7").header("If-None-Match", "*").body("2").send(member.at);
    refused.expect_problem(412, "condition-failed");
    for (query, field) in [
        ("lease=0", "lease"),
        ("lease=", "lease"),
        ("lease=x", "lease"),
        ("lease=-1", "lease"),
        ("lease=9007199254740992", "lease"),
        ("lease=7&lease=7", "lease"),
        ("lease=7&ttl=30s", "ttl"),
        ("ttl=", "ttl"),
        ("ttl=30", "ttl"),
        ("ttl=0s", "ttl"),
        ("ttl=999ms", "ttl"),
        ("ttl=721h", "ttl"),
        ("ttl=2592000001ms", "ttl"),
        ("ttl=-1s", "ttl"),
        ("ttl=1d", "ttl"),
        ("ttl=99999999999999999999s", "ttl"),
    ] {
        let problem = http::put(member.at, &format!("/v1/kv/a?{query}"), "2").expect_problem(400, "bad-parameter");
        assert_eq!(
            (&problem["field"], &problem["outcome"]),
            (&json!(field), &json!("not-applied")),
            "{query}: {problem}"
        );
    }
    for target in ["/v1/kv/a?lease=7", "/v1/kv/a?ttl=30s"] {
        http::delete(member.at, target).expect_problem(400, "bad-parameter");
        http::get(member.at, target).expect_problem(400, "bad-parameter");
    }
    assert_eq!(http::get(member.at, "/v1/kv/a").etag_revision(), Some(revision));
    assert_eq!(member.put("/v1/kv/b", "1"), revision + 1, "nothing made a revision");
    assert_eq!(http::get(member.at, "/v1/leases").json()["leases"], json!([]));
}

#[test]
fn a_ttl_grants_a_lease_of_its_own_in_the_same_transaction() {
    let member = Single::start();
    let revision = member.put("/v1/kv/a", "1");
    let reply = http::put(member.at, "/v1/kv/t?ttl=30m", "1").expect(201).json();
    let lease = reply["lease"].as_u64().unwrap();
    assert_eq!(
        reply,
        json!({"revision": revision + 1, "create_revision": revision + 1, "version": 1, "previous_revision": null,
               "lease": lease})
    );
    let seen = look(&member, lease);
    assert_eq!((&seen["ttl_seconds"], &seen["keys"]), (&json!(1800), &json!(["t"])), "{seen}");
    // Another write has another lease, and the first one hangs around empty until its time has passed.
    let again = http::put(member.at, "/v1/kv/t?ttl=1h", "2").expect(200).json()["lease"].as_u64().unwrap();
    assert_ne!(again, lease);
    assert_eq!((&look(&member, lease)["keys"], &look(&member, again)["keys"]), (&json!([]), &json!(["t"])));
    // A condition that does not hold grants nothing.
    let refused = Request::new("PUT", "/v1/kv/t?ttl=30s").header("If-None-Match", "*").body("3").send(member.at);
    refused.expect_problem(412, "condition-failed");
    assert_eq!(http::get(member.at, "/v1/leases").json()["leases"].as_array().unwrap().len(), 2);
    for ttl in ["1s", "1000ms", "720h", "43200m", "2592000s"] {
        let reply = http::put(member.at, &format!("/v1/kv/bounds?ttl={ttl}"), "1");
        assert!(reply.status < 300, "{ttl}: {reply}");
    }
    // Without either there is no lease in the reply.
    assert!(http::put(member.at, "/v1/kv/t", "4").expect(200).json().get("lease").is_none());
    assert_eq!(lease_of(&member, "t"), 0);
}

/// Not before its time, and soon after it.
#[test]
fn a_lease_ends_when_its_time_has_passed() {
    let member = Single::start();
    let granted_at = Instant::now();
    grant(&member, 7, 2);
    let revision = member.put("/v1/kv/a?lease=7", "1");
    member.put("/v1/kv/b?lease=7", "1");
    let ttl = http::put(member.at, "/v1/kv/own?ttl=2s", "1").expect(201).json()["lease"].as_u64().unwrap();
    member.put("/v1/kv/stays", "1");
    let gone_at = wait_for("the lease to end", || {
        let asked_at = Instant::now();
        match http::get(member.at, "/v1/kv/a").status {
            404 => Ok(Instant::now()),
            _ => Err(format!("it lives {:?} after it was granted", asked_at - granted_at)),
        }
    });
    assert!(gone_at - granted_at >= Duration::from_secs(2), "only {:?}", gone_at - granted_at);
    wait_for("the other one to end", || match http::get(member.at, "/v1/kv/own").status {
        404 => Ok(()),
        status => Err(status.to_string()),
    });
    let keys: Vec<Value> = member.items().iter().map(|item| item["key"].clone()).collect();
    assert_eq!(keys, ["stays"]);
    // a and b went together: there is no revision that has one of them only.
    let newest = http::get(member.at, "/v1/keys").must_have("lifeboat-revision").parse::<u64>().unwrap();
    for rev in revision + 1..=newest {
        let page = http::get(member.at, &format!("/v1/keys?rev={rev}&end=c")).expect(200).json();
        assert!([0, 2].contains(&page["items"].as_array().unwrap().len()), "{page}");
    }
    assert_unknown(&member, 7);
    assert_unknown(&member, ttl);
    http::put(member.at, "/v1/kv/late?lease=7", "1").expect_problem(404, "unknown-lease");
    // The id is free, and nothing of the earlier lease is left.
    grant(&member, 7, 600);
    assert_eq!(look(&member, 7)["keys"], json!([]));
}

/// More than 10,000 keys go in several transactions; exactly so many in one.
#[test]
fn a_lease_with_very_many_keys_is_ended_whole() {
    const PART: u64 = 10_000;
    let member = Single::start();
    for (lease, count) in [(7, PART), (8, PART + 1), (9, 1001)] {
        grant(&member, lease, 3600);
        for chunk in 0..count.div_ceil(125) {
            let ops: Vec<Value> = (chunk * 125..(chunk * 125 + 125).min(count))
                .map(|number| json!({"put": {"key": format!("{lease}/{number:05}"), "value": "", "lease": lease}}))
                .collect();
            http::post(member.at, "/v1/txn", &json!({ "then": ops })).expect(200);
        }
    }
    let seen = look(&member, 9);
    assert_eq!((seen["keys"].as_array().unwrap().len(), &seen["more"]), (1000, &json!(true)));
    let before = member.put("/v1/kv/x", "1");
    let ended = http::delete(member.at, "/v1/leases/7").expect(200).json();
    assert_eq!(ended, json!({"revision": before + 1, "deleted": PART}));
    let ended = http::delete(member.at, "/v1/leases/8").expect(200).json();
    assert_eq!(ended, json!({"revision": before + 3, "deleted": PART + 1}));
    for lease in [7, 8] {
        assert_unknown(&member, lease);
    }
    assert_eq!(http::delete(member.at, "/v1/leases/9").expect(200).json()["deleted"], 1001);
    assert_eq!(member.items().len(), 1);
}

#[test]
fn any_member_answers_for_leases() {
    let cluster = Plan::new(3, 1).start();
    for (number, &at) in cluster.clients().iter().enumerate() {
        let id = number as u64 + 1;
        let granted = http::post(at, "/v1/leases", &json!({"id": id, "ttl_seconds": 600})).expect(201).json();
        assert_eq!(granted["id"], id);
        http::put(at, &format!("/v1/kv/{id}?lease={id}"), "1").expect(201);
        for &other in &cluster.clients() {
            let seen = http::get(other, &format!("/v1/leases/{id}")).expect(200).json();
            assert_eq!(seen["keys"], json!([id.to_string()]), "{seen}");
            let kept = Request::new("POST", &format!("/v1/leases/{id}/keepalive")).send(other).expect(200).json();
            assert_eq!(kept, json!({"id": id, "ttl_seconds": 600}));
            let listed = http::get(other, "/v1/leases").expect(200).json();
            assert_eq!(listed["leases"].as_array().unwrap().len(), number + 1, "{listed}");
        }
    }
    for (number, &at) in cluster.clients().iter().enumerate() {
        assert_eq!(http::delete(at, &format!("/v1/leases/{}", number + 1)).expect(200).json()["deleted"], 1);
        http::get(at, &format!("/v1/leases/{}", number + 1)).expect_problem(404, "unknown-lease");
    }
    assert_eq!(cluster.assert_same_content(), Vec::<String>::new());
}
