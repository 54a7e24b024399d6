//! Query parameters and JSON bodies: what is unknown, doubled or of the wrong type is refused by its name.

use serde_json::json;

use super::Single;
use super::support::http::{self, Request};

#[test]
fn bad_parameters_are_refused_by_name() {
    let member = Single::start();
    let revision = member.put("/v1/kv/a", "x");
    let cases = [
        ("GET", "/v1/kv/a?foo=1", "foo"),
        ("GET", "/v1/kv/a?foo", "foo"),
        ("GET", "/v1/kv/a?Rev=1", "Rev"),
        ("PUT", "/v1/kv/a?rev=1", "rev"),
        ("PUT", "/v1/kv/a?consistency=stale", "consistency"),
        ("DELETE", "/v1/kv/a?rev=1", "rev"),
        ("GET", "/v1/kv/a?rev=1&rev=1", "rev"),
        ("GET", "/v1/kv/a?rev=", "rev"),
        ("GET", "/v1/kv/a?rev=abc", "rev"),
        ("GET", "/v1/kv/a?rev=-1", "rev"),
        ("GET", "/v1/kv/a?rev=+1", "rev"),
        ("GET", "/v1/kv/a?rev=1.0", "rev"),
        ("GET", "/v1/kv/a?rev=0x1", "rev"),
        ("GET", "/v1/kv/a?rev=18446744073709551616", "rev"),
        ("GET", "/v1/kv/a?consistency=strong", "consistency"),
        ("GET", "/v1/kv/a?consistency=", "consistency"),
        ("GET", "/v1/kv/a?consistency=stale&consistency=stale", "consistency"),
        ("GET", "/v1/kv/a?max_lag=5s", "max_lag"),
        ("GET", "/v1/kv/a?consistency=linearizable&max_lag=5s", "max_lag"),
        ("GET", "/v1/kv/a?consistency=stale&max_lag=5", "max_lag"),
        ("GET", "/v1/kv/a?consistency=stale&max_lag=s", "max_lag"),
        ("GET", "/v1/kv/a?consistency=stale&max_lag=-5s", "max_lag"),
        ("GET", "/v1/kv/a?consistency=stale&max_lag=5d", "max_lag"),
        ("GET", "/v1/kv/a?consistency=stale&max_lag=99999999999999999999s", "max_lag"),
        ("GET", "/v1/keys?limit=0", "limit"),
        ("GET", "/v1/keys?limit=10001", "limit"),
        ("GET", "/v1/keys?limit=-1", "limit"),
        ("GET", "/v1/keys?limit=ten", "limit"),
        ("GET", "/v1/keys?limit=5&limit=5", "limit"),
        ("GET", "/v1/keys?keys_only=yes", "keys_only"),
        ("GET", "/v1/keys?prefix=%zz", "prefix"),
        ("GET", "/v1/keys?prefix=%4", "prefix"),
        ("GET", "/v1/keys?start=a&start=b", "start"),
        ("GET", "/v1/keys?sort=desc", "sort"),
        ("DELETE", "/v1/keys?prefix=a&foo=1", "foo"),
        ("DELETE", "/v1/keys?prefix=a&rev=1", "rev"),
        ("GET", "/v1/status?verbose=1", "verbose"),
        ("GET", "/v1/members?x=1", "x"),
        ("GET", "/v1/role?x=1", "x"),
        ("GET", "/health/mirror?max_lag=soon", "max_lag"),
        ("GET", "/health/ready?x=1", "x"),
    ];
    for (method, target, field) in cases {
        let mut request = Request::new(method, target);
        if method == "PUT" {
            request = request.body("y");
        }
        let problem = request.send(member.at).expect_problem(400, "bad-parameter");
        assert_eq!(problem["field"], field, "{method} {target}: {problem}");
        assert_eq!(problem["retry"], "never", "{method} {target}: {problem}");
    }
    // A prefix and an interval at once mean two things.
    http::get(member.at, "/v1/keys?prefix=a&start=b").expect_problem(400, "bad-parameter");
    http::get(member.at, "/v1/keys?prefix=a&end=b").expect_problem(400, "bad-parameter");
    let answer = http::get(member.at, "/v1/kv/a").expect(200);
    assert_eq!((answer.text(), answer.etag_revision()), ("x", Some(revision)), "nothing of this changed anything");
    member.assert_serves();
}

#[test]
fn a_refused_write_says_that_it_was_not_applied() {
    let member = Single::start();
    for request in [
        Request::new("PUT", "/v1/kv/a?foo=1").body("x"),
        Request::new("PUT", "/v1/kv/a").header("If-Match", "oops").body("x"),
        Request::new("DELETE", "/v1/kv/%zz"),
        Request::new("PUT", "/v1/kv/a").body(vec![0; (1 << 20) + 1]),
    ] {
        let answer = request.send(member.at);
        assert!((400..500).contains(&answer.status), "{answer}");
        let problem = answer.json();
        assert_ne!(problem["outcome"], "unknown", "{problem}");
        assert_eq!(problem["retry"], "never", "{problem}");
    }
    assert!(member.items().is_empty());
}

#[test]
fn the_body_of_a_transfer_is_checked() {
    let member = Single::start();
    let post = |body: &str| Request::new("POST", "/v1/leader").body(body).send(member.at);
    let wrong = [
        "not json",
        "[]",
        "[\"n1\"]",
        "\"n1\"",
        "null",
        "7",
        "{\"to\":",
        "{\"to\":1}",
        "{\"to\":[\"n1\"]}",
        "{} {}",
        "\u{0}",
    ];
    let accepted: Vec<_> = wrong.into_iter().filter(|body| post(body).status != 400).collect();
    assert!(accepted.is_empty(), "taken for a request: {accepted:?}");
    post("not json").expect_problem(400, "bad-body");
    let problem = post("{\"to\":\"n1\",\"force\":true}").expect_problem(400, "bad-body");
    assert_eq!(problem["field"], "force", "{problem}");
    let problem = post("{\"to\":\"n1\",\"to\":\"n1\"}").expect_problem(400, "bad-body");
    assert_eq!(problem["field"], "to", "{problem}");
    post("{\"to\":\"nobody\"}").expect_problem(404, "unknown-member");
    post("{\"to\":\"\"}").expect_problem(404, "unknown-member");
    let reply = post("{\"to\":\"n1\"}").expect(200).json();
    assert_eq!(reply["leader"], "n1", "it led already");
    let deep = "[".repeat(100_000);
    post(&deep).expect_problem(400, "bad-body");
    let answer = post(&format!("{{\"to\":\"{}\"}}", "x".repeat(3 << 20)));
    assert!(answer.status == 413 || answer.status == 404 || answer.status == 400, "{answer}");
    let answer = http::post(member.at, "/v1/leader?x=1", &json!({"to": "n1"}));
    answer.expect_problem(400, "bad-parameter");
    member.assert_serves();
}
