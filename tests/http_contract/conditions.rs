//! Writes: their replies, their conditions, and the ETags that the conditions name.

use serde_json::json;

use super::Single;
use super::support::http::{self, Answer, Request};

fn put_if(member: &Single, path: &str, name: &str, tag: &str, value: &str) -> Answer {
    Request::new("PUT", path).header(name, tag).body(value).send(member.at)
}

fn delete_if(member: &Single, path: &str, tag: &str) -> Answer {
    Request::new("DELETE", path).header("If-Match", tag).send(member.at)
}

#[test]
fn a_put_says_what_it_did() {
    let member = Single::start();
    let created = http::put(member.at, "/v1/kv/a", "1").expect(201);
    let first = created.json()["revision"].as_u64().unwrap();
    assert_eq!(
        created.json(),
        json!({"revision": first, "create_revision": first, "version": 1, "previous_revision": null})
    );
    assert_eq!(created.must_have("etag"), format!("\"{first}\""));
    assert_eq!(created.must_have("content-type"), "application/json");

    let other = member.put("/v1/kv/b", "1");
    assert_eq!(other, first + 1, "every write makes the next revision");
    let replaced = http::put(member.at, "/v1/kv/a", "2").expect(200);
    assert_eq!(
        replaced.json(),
        json!({"revision": first + 2, "create_revision": first, "version": 2, "previous_revision": first})
    );
    assert_eq!(replaced.etag_revision(), Some(first + 2));
    assert_eq!(replaced.must_have("lifeboat-revision"), (first + 2).to_string());

    // The same value again is a write as well.
    assert_eq!(http::put(member.at, "/v1/kv/a", "2").expect(200).json()["version"], 3);

    // A key that was deleted begins anew.
    http::delete(member.at, "/v1/kv/a").expect(200);
    let again = http::put(member.at, "/v1/kv/a", "3").expect(201).json();
    assert_eq!(again["version"], 1);
    assert_eq!(again["create_revision"], again["revision"]);
    assert_eq!(again["previous_revision"], json!(null));
}

#[test]
fn a_delete_says_what_it_did_and_one_of_nothing_makes_no_revision() {
    let member = Single::start();
    let revision = member.put("/v1/kv/a", "1");
    let nothing = http::delete(member.at, "/v1/kv/none").expect(200).json();
    assert_eq!(nothing, json!({"revision": revision, "deleted": 0, "previous_revision": null}));
    let deleted = http::delete(member.at, "/v1/kv/a").expect(200).json();
    assert_eq!(deleted, json!({"revision": revision + 1, "deleted": 1, "previous_revision": revision}));
    http::get(member.at, "/v1/kv/a").expect_problem(404, "not-found");
    let again = http::delete(member.at, "/v1/kv/a").expect(200).json();
    assert_eq!(again, json!({"revision": revision + 1, "deleted": 0, "previous_revision": null}));
}

#[test]
fn create_only_creates_once() {
    let member = Single::start();
    let revision = put_if(&member, "/v1/kv/a", "If-None-Match", "*", "1").expect(201).etag_revision().unwrap();
    let refused = put_if(&member, "/v1/kv/a", "If-None-Match", "*", "2");
    assert_eq!(refused.etag_revision(), Some(revision), "a refusal carries the ETag as it is");
    let problem = refused.expect_problem(412, "condition-failed");
    assert_eq!(problem["current_revision"], revision);
    assert_eq!(problem["retry"], "never");
    assert_eq!(http::get(member.at, "/v1/kv/a").expect(200).text(), "1");
    http::delete(member.at, "/v1/kv/a").expect(200);
    put_if(&member, "/v1/kv/a", "If-None-Match", "*", "3").expect(201);
}

#[test]
fn replace_only_replaces() {
    let member = Single::start();
    let refused = put_if(&member, "/v1/kv/a", "If-Match", "*", "1");
    assert_eq!(refused.header("etag"), None, "what does not exist has no ETag");
    refused.expect_problem(412, "condition-failed");
    http::get(member.at, "/v1/kv/a").expect_problem(404, "not-found");
    member.put("/v1/kv/a", "1");
    put_if(&member, "/v1/kv/a", "If-Match", "*", "2").expect(200);
    delete_if(&member, "/v1/kv/a", "*").expect(200);
    let problem = delete_if(&member, "/v1/kv/a", "*").expect_problem(412, "condition-failed");
    assert_eq!(problem["current_revision"], json!(null));
}

#[test]
fn compare_and_set_compares_the_revision() {
    let member = Single::start();
    let one = member.put("/v1/kv/a", "1");
    let two = put_if(&member, "/v1/kv/a", "If-Match", &format!("\"{one}\""), "2").expect(200).etag_revision().unwrap();
    assert!(two > one);
    let refused = put_if(&member, "/v1/kv/a", "If-Match", &format!("\"{one}\""), "3");
    assert_eq!(refused.etag_revision(), Some(two));
    refused.expect_problem(412, "condition-failed");
    // The newest revision of another key is not this key's.
    let other = member.put("/v1/kv/b", "1");
    put_if(&member, "/v1/kv/a", "If-Match", &format!("\"{other}\""), "3").expect_problem(412, "condition-failed");
    // One of several is enough.
    let list = format!("\"{one}\", \"{two}\" ,\"999999\"");
    let three = put_if(&member, "/v1/kv/a", "If-Match", &list, "3").expect(200).etag_revision().unwrap();
    let none = format!("\"{one}\",\"{two}\"");
    put_if(&member, "/v1/kv/a", "If-Match", &none, "4").expect_problem(412, "condition-failed");
    assert_eq!(http::get(member.at, "/v1/kv/a").expect(200).text(), "3");

    delete_if(&member, "/v1/kv/a", &format!("\"{two}\"")).expect_problem(412, "condition-failed");
    delete_if(&member, "/v1/kv/a", &format!("\"{three}\"")).expect(200);
    delete_if(&member, "/v1/kv/a", &format!("\"{three}\"")).expect_problem(412, "condition-failed");
}

#[test]
fn unless_it_is_at_a_revision() {
    let member = Single::start();
    let one = member.put("/v1/kv/a", "1");
    let tag = format!("\"{one}\"");
    put_if(&member, "/v1/kv/a", "If-None-Match", &tag, "2").expect_problem(412, "condition-failed");
    member.put("/v1/kv/a", "2");
    put_if(&member, "/v1/kv/a", "If-None-Match", &tag, "3").expect(200);
    // What does not exist is not at that revision either.
    put_if(&member, "/v1/kv/new", "If-None-Match", &tag, "1").expect(201);
}

#[test]
fn a_refused_condition_makes_no_revision() {
    let member = Single::start();
    let revision = member.put("/v1/kv/a", "1");
    for _ in 0..5 {
        put_if(&member, "/v1/kv/a", "If-None-Match", "*", "2").expect(412);
    }
    assert_eq!(member.put("/v1/kv/b", "1"), revision + 1);
}

#[test]
fn an_etag_that_is_not_ours_never_matches() {
    let member = Single::start();
    let revision = member.put("/v1/kv/a", "1");
    // Not an entity tag at all: refused by name.
    for tag in [
        format!("{revision}"),
        "\"".into(),
        "".into(),
        format!("\"{revision}"),
        format!("'{revision}'"),
        format!("\"{revision}\" x"),
        format!("\"{revision}\",,x"),
        format!("* , \"{revision}\""),
    ] {
        let answer = put_if(&member, "/v1/kv/a", "If-Match", &tag, "2");
        let problem = answer.expect_problem(400, "bad-header");
        assert!(problem["field"].as_str().is_some_and(|f| f.eq_ignore_ascii_case("if-match")), "{tag}: {problem}");
    }
    // Entity tags, but none that this key ever had: either refused or without a match, never a write.
    for tag in [
        format!("W/\"{revision}\""),
        "\"x\"".into(),
        format!("\"0{revision}\""),
        format!("\"+{revision}\""),
        "\"-1\"".into(),
        "\"18446744073709551616\"".into(),
        "\"\"".into(),
        format!("\" {revision}\""),
    ] {
        let answer = put_if(&member, "/v1/kv/a", "If-Match", &tag, "2");
        assert!(answer.status == 400 || answer.status == 412, "If-Match: {tag}: {answer}");
    }
    assert_eq!(http::get(member.at, "/v1/kv/a").expect(200).etag_revision(), Some(revision));
}

#[test]
fn headers_that_would_change_the_meaning_are_refused_when_doubled_or_not_understood() {
    let member = Single::start();
    let revision = member.put("/v1/kv/a", "1");
    let named = |answer: Answer, name: &str| {
        let problem = answer.expect_problem(400, "bad-header");
        assert!(problem["field"].as_str().is_some_and(|f| f.eq_ignore_ascii_case(name)), "{name}: {problem}");
    };
    for name in ["If-Match", "If-None-Match"] {
        let twice = Request::new("PUT", "/v1/kv/a").header(name, "*").header(name, "\"1\"").body("2");
        named(twice.send(member.at), name);
    }
    for (name, value) in [("Idempotency-Key", "a b"), ("If-Unmodified-Since", "Wed, 21 Oct 2015 07:28:00 GMT")] {
        named(Request::new("PUT", "/v1/kv/a").header(name, value).body("2").send(member.at), name);
        named(Request::new("DELETE", "/v1/kv/a").header(name, value).send(member.at), name);
    }
    // A condition that deletes do not have.
    let answer = Request::new("DELETE", "/v1/kv/a").header("If-None-Match", "*").send(member.at);
    assert!(answer.status == 400 || answer.status == 412, "{answer}");
    // Others are nobody's business.
    let answer = Request::new("PUT", "/v1/kv/other").header("X-Whatever", "1").header("Lifeboat-Nothing", "1");
    answer.body("x").send(member.at).expect(201);
    assert_eq!(http::get(member.at, "/v1/kv/a").expect(200).etag_revision(), Some(revision));
}

#[test]
fn a_request_may_name_the_timeline_it_means() {
    let member = Single::start();
    let answer = http::put(member.at, "/v1/kv/a", "1").expect(201);
    let timeline = answer.must_have("lifeboat-timeline").to_string();
    assert!(timeline.len() == 32 && timeline.bytes().all(|b| b.is_ascii_hexdigit()), "{timeline}");
    let status = http::get(member.at, "/v1/status").expect(200).json();
    assert_eq!(status["cluster"]["timeline"]["id"], timeline);

    let with = |method: &str, value: &str| {
        Request::new(method, "/v1/kv/a").header("Lifeboat-Timeline", value).body("2").send(member.at)
    };
    with("PUT", &timeline).expect(200);
    with("GET", &timeline).expect(200);
    let other = "0123456789abcdef0123456789abcdef";
    with("PUT", other).expect_problem(421, "wrong-timeline");
    with("GET", other).expect_problem(421, "wrong-timeline");
    with("DELETE", other).expect_problem(421, "wrong-timeline");
    for malformed in ["", "1", "zz23456789abcdef0123456789abcdef", &format!("{other}0")] {
        with("PUT", malformed).expect_problem(400, "bad-header");
    }
    assert_eq!(http::get(member.at, "/v1/kv/a").expect(200).json(), 2);
}
