//! Reads of one key: forms, ETags, older revisions, HEAD, and stale reads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::Single;
use super::support::http::{self, Request};

#[test]
fn a_value_comes_back_as_it_was_sent() {
    let member = Single::start();
    let all_bytes: Vec<u8> = (0..=255).collect();
    for (path, value) in [
        ("empty", &b""[..]),
        ("binary", &all_bytes),
        ("crlf", b"\r\n\r\n"),
        ("json", b"{\"not\": \"parsed\""),
        ("zero", b"\0"),
    ] {
        let revision = member.put(&format!("/v1/kv/{path}"), value);
        let answer = http::get(member.at, &format!("/v1/kv/{path}")).expect(200);
        assert_eq!(answer.body, value);
        assert_eq!(answer.must_have("content-type"), "application/octet-stream");
        assert_eq!(answer.must_have("content-length"), value.len().to_string());
        assert_eq!(answer.etag_revision(), Some(revision));
        assert_eq!(answer.must_have("lifeboat-create-revision"), revision.to_string());
        assert_eq!(answer.must_have("lifeboat-version"), "1");
    }
    // The content type of a write is nobody's business.
    for kind in ["application/json", "text/plain; charset=latin-1", "multipart/form-data", "nonsense"] {
        let answer = Request::new("PUT", "/v1/kv/typed").header("Content-Type", kind).body("{").send(member.at);
        assert!(answer.status < 300, "{kind}: {answer}");
    }
}

#[test]
fn head_is_get_without_the_body() {
    let member = Single::start();
    member.put("/v1/kv/a", "12345");
    let get = http::get(member.at, "/v1/kv/a").expect(200);
    let head = Request::new("HEAD", "/v1/kv/a").send(member.at).expect(200);
    for name in ["etag", "content-length", "content-type", "lifeboat-create-revision", "lifeboat-version"] {
        assert_eq!(head.must_have(name), get.must_have(name), "{name}");
    }
    Request::new("HEAD", "/v1/kv/none").send(member.at).expect(404);
    let tag = get.must_have("etag");
    Request::new("HEAD", "/v1/kv/a").header("If-None-Match", tag).send(member.at).expect(304);
    // Nothing of a body follows on the connection.
    let mut connection = http::Connection::open(member.at).unwrap();
    for path in ["/v1/kv/a", "/v1/kv/none", "/v1/kv/a?unknown=1"] {
        Request::new("HEAD", path).try_send_on(&mut connection).unwrap();
        assert_eq!(Request::new("GET", "/v1/kv/a").try_send_on(&mut connection).unwrap().expect(200).text(), "12345");
    }
}

#[test]
fn json_on_request() {
    let member = Single::start();
    let first = member.put("/v1/kv/a", "x");
    let second = member.put("/v1/kv/a", "y");
    let json_of = |path: &str| {
        let answer = Request::new("GET", path).header("Accept", "application/json").send(member.at).expect(200);
        assert_eq!(answer.must_have("content-type"), "application/json");
        answer.json()
    };
    let expected =
        json!({"key": "a", "value": "y", "create_revision": first, "mod_revision": second, "version": 2, "lease": 0});
    assert_eq!(json_of("/v1/kv/a"), expected);
    let binary = [0xff, 0x00, 0x80];
    member.put("/v1/kv/%fe", binary);
    let item = json_of("/v1/kv/%fe");
    assert_eq!(item["key_base64"], BASE64.encode([0xfe]));
    assert_eq!(item["value_base64"], BASE64.encode(binary));
    assert!(item.get("key").is_none() && item.get("value").is_none(), "{item}");
    member.put("/v1/kv/quote%22", "\"\\\n\u{1}é");
    let item = json_of("/v1/kv/quote%22");
    assert_eq!((&item["key"], &item["value"]), (&json!("quote\""), &json!("\"\\\n\u{1}é")));
}

#[test]
fn unchanged_values_need_not_travel() {
    let member = Single::start();
    let one = member.put("/v1/kv/a", "1");
    let get_unless = |tag: &str| Request::new("GET", "/v1/kv/a").header("If-None-Match", tag).send(member.at);
    let unchanged = get_unless(&format!("\"{one}\"")).expect(304);
    assert_eq!(unchanged.etag_revision(), Some(one));
    get_unless(&format!("\"7\", \"{one}\"")).expect(304);
    get_unless("*").expect(304);
    let two = member.put("/v1/kv/a", "2");
    assert_eq!(get_unless(&format!("\"{one}\"")).expect(200).text(), "2");
    get_unless(&format!("\"{two}\"")).expect(304);
    http::delete(member.at, "/v1/kv/a").expect(200);
    get_unless(&format!("\"{two}\"")).expect_problem(404, "not-found");
    get_unless("*").expect_problem(404, "not-found");
}

#[test]
fn what_does_not_exist_is_a_problem_document() {
    let member = Single::start();
    let answer = http::get(member.at, "/v1/kv/none");
    assert!(answer.header("etag").is_none());
    assert!(answer.header("lifeboat-revision").is_some(), "{answer}");
    let problem = answer.expect_problem(404, "not-found");
    assert_eq!(problem["retry"], "never");
    assert!(problem.get("outcome").is_none(), "a read has no outcome: {problem}");
}

#[test]
fn older_revisions_are_read_as_they_were() {
    let member = Single::start();
    let before = member.put("/v1/kv/other", "x");
    let one = member.put("/v1/kv/a", "1");
    let two = member.put("/v1/kv/a", "2");
    let deleted = http::delete(member.at, "/v1/kv/a").expect(200).json()["revision"].as_u64().unwrap();
    let three = member.put("/v1/kv/a", "3");
    let last = member.put("/v1/kv/other", "y");
    let at = |revision: u64| http::get(member.at, &format!("/v1/kv/a?rev={revision}"));
    at(before).expect_problem(404, "not-found");
    let then = at(one).expect(200);
    assert_eq!((then.text(), then.etag_revision()), ("1", Some(one)));
    assert_eq!(at(two).expect(200).must_have("lifeboat-version"), "2");
    at(deleted).expect_problem(404, "not-found");
    for revision in [three, last] {
        let then = at(revision).expect(200);
        assert_eq!((then.text(), then.etag_revision()), ("3", Some(three)));
        assert_eq!(then.must_have("lifeboat-create-revision"), three.to_string());
    }
    let problem = at(last + 1).expect_problem(400, "future-revision");
    assert_eq!(problem["current"], last);
    at(u64::MAX).expect_problem(400, "future-revision");
    let stale = http::get(member.at, &format!("/v1/kv/a?rev={}&consistency=stale", last + 1));
    let problem = stale.expect_problem(503, "not-here-yet");
    assert_eq!(problem["retry"], "safe");
}

#[test]
fn older_revisions_survive_a_restart() {
    let mut member = Single::start();
    let one = member.put("/v1/kv/a", "1");
    let two = member.put("/v1/kv/a", "2");
    http::delete(member.at, "/v1/kv/a").expect(200);
    for graceful in [true, false] {
        if graceful {
            assert!(member.cluster.stop(0).success());
        } else {
            member.cluster.kill(0);
        }
        member.cluster.start_member(0);
        member.cluster.wait_ready(0);
        assert_eq!(http::get(member.at, &format!("/v1/kv/a?rev={one}")).expect(200).text(), "1");
        assert_eq!(http::get(member.at, &format!("/v1/kv/a?rev={two}")).expect(200).text(), "2");
        http::get(member.at, "/v1/kv/a").expect_problem(404, "not-found");
    }
    assert_eq!(member.put("/v1/kv/b", "1"), two + 2, "no revision was handed out twice, and none left out");
}

#[test]
fn a_stale_read_says_how_old_it_may_be() {
    let member = Single::start();
    member.put("/v1/kv/a", "1");
    let answer = http::get(member.at, "/v1/kv/a?consistency=stale").expect(200);
    assert_eq!(answer.text(), "1");
    let lag = answer.must_have("lifeboat-lag-seconds");
    assert!(lag == "unknown" || lag.parse::<f64>().is_ok_and(|seconds| (0.0..60.0).contains(&seconds)), "{lag}");
    let fresh = http::get(member.at, "/v1/kv/a?consistency=linearizable").expect(200);
    assert_eq!(fresh.header("lifeboat-lag-seconds"), None);
    for lag in ["1h", "60m", "3600s", "100000ms"] {
        let answer = http::get(member.at, &format!("/v1/kv/a?consistency=stale&max_lag={lag}"));
        answer.expect(200).must_have("lifeboat-lag-seconds");
    }
}
