//! What the contract says about members that come and go, above all what is refused. That they do come and go is shown
//! by `tests/cluster/members.rs`.

use serde_json::{Value, json};

use super::Single;
use super::support::http::{self, Answer, Request};

fn send(member: &Single, method: &str, target: &str, body: &str) -> Answer {
    Request::new(method, target).body(body).send(member.at)
}

#[test]
fn an_invitation_that_is_wrong_is_refused_and_changes_nothing() {
    let member = Single::start();
    for (body, field) in [
        ("", None),
        ("[]", None),
        (r#"{"role":"voter"}"#, Some("name")),
        (r#"{"name":""}"#, Some("name")),
        (r#"{"name":"N2"}"#, Some("name")),
        (r#"{"name":"n/2"}"#, Some("name")),
        (r#"{"name":"n2","name":"n3"}"#, Some("name")),
        (r#"{"name":"n2","peer_url":"n2:7401"}"#, Some("peer_url")),
        (r#"{"name":"n2","peer_url":"https://n2"}"#, Some("peer_url")),
        (r#"{"name":"n2","site":"The West"}"#, Some("site")),
        (r#"{"name":"n2","rolle":"voter"}"#, Some("rolle")),
        (r#"{"name":"n2","role":"witness"}"#, Some("role")),
        (r#"{"name":7}"#, Some("name")),
    ] {
        let problem = send(&member, "POST", "/v1/members", body).expect_problem(400, "bad-body");
        assert_eq!(problem["field"].as_str(), field, "{body}: {problem}");
    }
    send(&member, "POST", "/v1/members", r#"{"name":"n1"}"#).expect_problem(409, "member-exists");
    send(&member, "POST", "/v1/members?force=true", r#"{"name":"n2"}"#).expect_problem(400, "bad-parameter");
    for name in ["n2", "n3", "n"] {
        http::get(member.at, &format!("/v1/members/{name}")).expect_problem(404, "unknown-member");
    }
    member.assert_serves();
}

#[test]
fn a_member_is_shown_with_its_progress() {
    let member = Single::start();
    let answer = http::get(member.at, "/v1/members/n1").expect(200);
    assert_eq!(answer.must_have("cache-control"), "no-cache");
    let one = answer.json();
    let listed = http::get(member.at, "/v1/members").expect(200).json()["members"][0].clone();
    for field in ["id", "name", "site", "role", "client_url", "peer_url", "leader"] {
        assert_eq!(one[field], listed[field], "{field}");
    }
    assert_eq!(one["progress"]["state"], "caught_up", "{one}");
    assert_eq!(one["progress"]["behind_entries"], 0, "{one}");
    assert_eq!(one["progress"]["matched_index"], one["progress"]["last_index"], "{one}");
    assert_eq!(one["warnings"], json!([]));
    Request::new("HEAD", "/v1/members/n1").send(member.at).expect(200);
    http::get(member.at, "/v1/members/n1?x=1").expect_problem(400, "bad-parameter");
    for nobody in ["n2", "N1", "n1%00", "%6e2", "n1/", "", "a..b"] {
        let answer = http::get(member.at, &format!("/v1/members/{nobody}"));
        assert_eq!(answer.status, 404, "{nobody}: {answer}");
    }
    // A name may be written as a client encodes it.
    assert_eq!(http::get(member.at, "/v1/members/%6e1").expect(200).json()["name"], "n1");
    let options = Request::new("OPTIONS", "/v1/members/n1").send(member.at).expect(204);
    assert_eq!(options.must_have("allow"), "GET, HEAD, PATCH, DELETE, OPTIONS");
    send(&member, "PUT", "/v1/members/n1", "{}").expect_problem(405, "method-not-allowed");
}

#[test]
fn the_only_voter_neither_goes_nor_becomes_a_mirror() {
    let member = Single::start();
    for body in ["{}", "", "[]", r#"{"role":"leader"}"#, r#"{"role":"mirror","forced":true}"#] {
        send(&member, "PATCH", "/v1/members/n1", body).expect_problem(400, "bad-body");
    }
    let mirror = |force: bool| json!({"role": "mirror", "force": force}).to_string();
    for force in [false, true] {
        let problem = send(&member, "PATCH", "/v1/members/n1", &mirror(force)).expect_problem(409, "quorum-at-risk");
        assert!(problem["detail"].as_str().unwrap().contains("last voter"), "{problem}");
        assert_eq!(problem["outcome"], Value::Null, "only writes have an outcome");
        let target = format!("/v1/members/n1?force={force}");
        http::delete(member.at, &target).expect_problem(409, "quorum-at-risk");
    }
    send(&member, "PATCH", "/v1/members/n7", &mirror(false)).expect_problem(404, "unknown-member");
    http::delete(member.at, "/v1/members/n7").expect_problem(404, "unknown-member");
    http::delete(member.at, "/v1/members/n1?force=yes").expect_problem(400, "bad-parameter");
    http::delete(member.at, "/v1/members/n1?forse=true").expect_problem(400, "bad-parameter");
    // To be what it is already is no change.
    let same = send(&member, "PATCH", "/v1/members/n1", r#"{"role":"voter"}"#).expect(200).json();
    assert_eq!((&same["role"], &same["leader"]), (&json!("voter"), &json!(true)));
    member.assert_serves();
}

#[test]
fn invitations_are_bounded() {
    let member = Single::start();
    for number in 0..100 {
        send(&member, "POST", "/v1/members", &format!(r#"{{"name":"guest-{number}"}}"#)).expect(202);
    }
    let one_more = r#"{"name":"guest-100"}"#;
    let problem = send(&member, "POST", "/v1/members", one_more).expect_problem(400, "refused");
    assert!(problem["detail"].as_str().unwrap().contains("100 members are invited"), "{problem}");
    // To change one, or to take one back, is always possible.
    send(&member, "POST", "/v1/members", r#"{"name":"guest-7","role":"mirror"}"#).expect(202);
    http::delete(member.at, "/v1/members/guest-7").expect(200);
    send(&member, "POST", "/v1/members", one_more).expect(202);
    // None of this is a key of a client.
    assert!(member.items().is_empty());
}
