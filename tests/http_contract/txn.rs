//! `POST /v1/txn`: what transactions compare, do, answer and refuse.

use serde_json::{Value, json};

use super::Single;
use super::support::http::{self, Answer, Request};

const MAX_PARTS: usize = 128;

fn txn(member: &Single, body: &Value) -> Answer {
    http::post(member.at, "/v1/txn", body)
}

/// The reply to a transaction that is executed.
#[track_caller]
fn done(member: &Single, body: &Value) -> Value {
    txn(member, body).expect(200).json()
}

fn put(key: &str, value: &str) -> Value {
    json!({"put": {"key": key, "value": value}})
}

fn get(key: &str) -> Value {
    json!({"get": {"key": key}})
}

/// Fails when the revision or anything stored is not what it was.
struct Unchanged<'m> {
    member: &'m Single,
    before: (String, Vec<Value>),
}

impl Unchanged<'_> {
    fn look(member: &Single) -> Unchanged<'_> {
        Unchanged { member, before: Self::state(member) }
    }

    fn state(member: &Single) -> (String, Vec<Value>) {
        let answer = http::get(member.at, "/v1/keys").expect(200);
        (answer.must_have("lifeboat-revision").to_string(), answer.json()["items"].as_array().unwrap().clone())
    }

    #[track_caller]
    fn check(&self, what: impl std::fmt::Display) {
        assert_eq!(Self::state(self.member), self.before, "{what}");
    }
}

#[test]
fn one_branch_is_taken_and_done_at_one_revision() {
    let member = Single::start();
    let first = member.put("/v1/kv/a", "1");
    member.put("/v1/kv/b", "1");
    let request = |revision: u64| {
        json!({"compare": [{"key": "a", "target": "mod_revision", "op": "==", "value": revision}],
               "then": [{"put": {"key": "a", "value": "2", "previous": true}}, {"delete": {"key": "b"}}, put("c", "1")],
               "else": [get("a"), get("none")]})
    };
    let refused = txn(&member, &request(first + 7)).expect(200);
    assert_eq!(refused.must_have("content-type"), "application/json");
    assert_eq!(refused.header("lifeboat-replayed"), None);
    let a =
        json!({"key": "a", "value": "1", "create_revision": first, "mod_revision": first, "version": 1, "lease": 0});
    assert_eq!(
        refused.json(),
        json!({"revision": first + 1, "succeeded": false, "results": [{"get": {"item": a}}, {"get": {"item": null}}]})
    );

    let revision = first + 2;
    assert_eq!(
        done(&member, &request(first)),
        json!({"revision": revision, "succeeded": true, "results": [
            {"put": {"create_revision": first, "version": 2, "previous_revision": first, "previous": a}},
            {"delete": {"deleted": 1, "previous_revision": first + 1}},
            {"put": {"create_revision": revision, "version": 1, "previous_revision": null}},
        ]})
    );
    let revisions: Vec<_> = member.items().iter().map(|item| item["mod_revision"].clone()).collect();
    assert_eq!(revisions, [json!(revision), json!(revision)], "a and c, written together");
    // One revision earlier there is nothing of it.
    let before = http::get(member.at, &format!("/v1/keys?rev={}", revision - 1)).expect(200).json();
    let keys: Vec<_> = before["items"].as_array().unwrap().iter().map(|item| item["key"].clone()).collect();
    assert_eq!(keys, ["a", "b"]);
}

#[test]
fn a_transaction_that_writes_nothing_makes_no_revision() {
    let member = Single::start();
    let revision = member.put("/v1/kv/a", "1");
    let nothing = json!({"revision": revision, "succeeded": true, "results": []});
    assert_eq!(done(&member, &json!({})), nothing);
    assert_eq!(done(&member, &json!({"compare": [], "then": [], "else": [put("b", "1")]})), nothing);
    let reply =
        done(&member, &json!({"then": [{"delete": {"key": "none"}}, {"delete": {"prefix": "none"}}, get("a")]}));
    assert_eq!(reply["revision"], revision);
    assert_eq!(reply["results"][0], json!({"delete": {"deleted": 0}}));
    assert_eq!(reply["results"][1], json!({"delete": {"deleted": 0}}));
    assert_eq!(member.put("/v1/kv/a", "2"), revision + 1);
}

#[test]
fn operations_answer_as_documented() {
    let member = Single::start();
    let start = member.put("/v1/kv/k/0", "0");
    for number in 1..5 {
        member.put(&format!("/v1/kv/k/{number}"), number.to_string());
    }
    let item = |number: u64| {
        let revision = start + number;
        json!({"key": format!("k/{number}"), "value": number.to_string(), "create_revision": revision,
               "mod_revision": revision, "version": 1, "lease": 0})
    };
    let mut bare = item(1);
    bare.as_object_mut().unwrap().remove("value");
    let reply = done(
        &member,
        &json!({"then": [
            {"range": {"prefix": "k/", "limit": 2}},
            {"range": {"start": "k/3"}},
            {"range": {"start": "k/1", "end": "k/2", "keys_only": true}},
            {"range": {"prefix": ""}},
            {"delete": {"key": "k/0", "previous": true}},
            {"delete": {"key": "none", "previous": true}},
            {"delete": {"start": "k/1", "end": "k/3"}},
            {"delete": {"prefix": "k/3"}},
            {"put": {"key": "new", "value": "", "previous": true}},
            {"txn": {"compare": [{"key": "k/4", "target": "value", "op": "==", "value": "4"}],
                     "then": [get("k/4")], "else": [put("never", "1")]}},
            {"txn": {"compare": [{"key": "k/4", "target": "value", "op": "!=", "value": "4"}], "then": [put("never", "1")]}},
        ]}),
    );
    let revision = start + 5;
    let all: Vec<Value> = (0..5).map(item).collect();
    assert_eq!(
        reply,
        json!({"revision": revision, "succeeded": true, "results": [
            {"range": {"items": [item(0), item(1)], "more": true}},
            {"range": {"items": [item(3), item(4)], "more": false}},
            {"range": {"items": [bare], "more": false}},
            {"range": {"items": all, "more": false}},
            {"delete": {"deleted": 1, "previous_revision": start, "previous": item(0)}},
            {"delete": {"deleted": 0, "previous": null}},
            {"delete": {"deleted": 2}},
            {"delete": {"deleted": 1}},
            {"put": {"create_revision": revision, "version": 1, "previous_revision": null, "previous": null}},
            {"txn": {"succeeded": true, "results": [{"get": {"item": item(4)}}]}},
            {"txn": {"succeeded": false, "results": []}},
        ]})
    );
    let keys: Vec<_> = member.items().iter().map(|item| item["key"].clone()).collect();
    assert_eq!(keys, ["k/4", "new"]);
}

#[test]
fn keys_and_values_may_be_any_bytes() {
    let member = Single::start();
    let reply = done(
        &member,
        &json!({"then": [
            {"put": {"key_base64": "/wE=", "value_base64": "AP8="}},
            {"put": {"key_base64": "YQ==", "value_base64": "Yg=="}},
            {"put": {"key": "é\u{0}", "value": "\u{1F6A3}"}},
            {"get": {"key_base64": "/wE="}},
            {"range": {"prefix_base64": "/w=="}},
            {"range": {"start_base64": "/w==", "end_base64": "/wI=", "keys_only": true}},
            {"range": {"start": "a", "end": "b"}},
        ]}),
    );
    let results = &reply["results"];
    for read in [&results[3]["get"]["item"], &results[4]["range"]["items"][0]] {
        assert_eq!((&read["key_base64"], &read["value_base64"]), (&json!("/wE="), &json!("AP8=")), "{reply}");
        assert!(read.get("key").is_none() && read.get("value").is_none(), "{reply}");
    }
    assert_eq!(results[5]["range"]["items"][0]["key_base64"], "/wE=");
    // What is text comes as text, however it was written.
    assert_eq!(results[6]["range"]["items"][0]["key"], "a");
    assert_eq!(results[6]["range"]["items"][0]["value"], "b");
    assert_eq!(http::get(member.at, "/v1/kv/%FF%01").expect(200).body, [0, 0xff]);
    assert_eq!(http::get(member.at, "/v1/kv/%C3%A9%00").expect(200).text(), "\u{1F6A3}");
    let held = done(
        &member,
        &json!({"compare": [
            {"key_base64": "/wE=", "target": "value", "op": "==", "value_base64": "AP8="},
            {"key_base64": "/wE=", "target": "value", "op": ">", "value": ""},
        ]}),
    );
    assert_eq!(held["succeeded"], true, "{held}");
}

/// Every target with every operator, of a key that exists and of one that does not.
#[test]
fn comparisons_mean_what_they_say() {
    let member = Single::start();
    let lease = http::post(member.at, "/v1/leases", &json!({"ttl_seconds": 600, "id": 7})).expect(201).json();
    let created = member.put("/v1/kv/k", "l");
    member.put("/v1/kv/k", "l");
    let modified = member.put("/v1/kv/k?lease=7", "m");
    assert_eq!(lease["revision"].as_u64().unwrap() + 1, created);
    let holds = |compare: Value| done(&member, &json!({ "compare": [compare] }))["succeeded"].as_bool().unwrap();
    for (target, there) in [("mod_revision", modified), ("create_revision", created), ("version", 3), ("lease", 7)] {
        for (key, value) in [("k", there), ("none", 0)] {
            for wanted in [0, value.saturating_sub(1), value, value + 1] {
                let expected = [
                    ("==", value == wanted),
                    ("!=", value != wanted),
                    ("<", value < wanted),
                    ("<=", value <= wanted),
                    (">", value > wanted),
                    (">=", value >= wanted),
                ];
                for (op, expected) in expected {
                    let compare = json!({"key": key, "target": target, "op": op, "value": wanted});
                    assert_eq!(holds(compare.clone()), expected, "{compare}, it is {value}");
                }
            }
        }
    }
    for wanted in ["", "l", "m", "m\u{0}", "n"] {
        let expected = [
            ("==", "m" == wanted),
            ("!=", "m" != wanted),
            ("<", "m" < wanted),
            ("<=", "m" <= wanted),
            (">", "m" > wanted),
            (">=", "m" >= wanted),
        ];
        for (op, expected) in expected {
            let compare = json!({"key": "k", "target": "value", "op": op, "value": wanted});
            assert_eq!(holds(compare.clone()), expected, "{compare}");
            let compare = json!({"key": "none", "target": "value", "op": op, "value": wanted});
            assert_eq!(holds(compare.clone()), op == "!=", "{compare}: the key does not exist");
        }
    }
    // All have to hold.
    let version = |op: &str, value: u64| json!({"key": "k", "target": "version", "op": op, "value": value});
    let both = |second| done(&member, &json!({"compare": [version("==", 3), second]}))["succeeded"].clone();
    assert_eq!((both(version(">", 2)), both(version(">", 3))), (json!(true), json!(false)));
}

#[test]
fn a_comparison_of_a_range_is_one_of_every_key_in_it() {
    let member = Single::start();
    for key in ["r/1", "r/2", "r/3"] {
        member.put(&format!("/v1/kv/{key}"), "x");
    }
    member.put("/v1/kv/r/3", "y");
    let holds = |keys: Value, target: &str, op: &str, value: Value| {
        let mut compare = json!({"target": target, "op": op, "value": value});
        compare.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        done(&member, &json!({ "compare": [compare] }))["succeeded"].as_bool().unwrap()
    };
    assert!(holds(json!({"prefix": "r/"}), "version", ">=", json!(1)));
    assert!(!holds(json!({"prefix": "r/"}), "version", "==", json!(1)));
    assert!(holds(json!({"start": "r/1", "end": "r/3"}), "version", "==", json!(1)));
    assert!(!holds(json!({"start": "r/1"}), "value", "==", json!("x")));
    assert!(holds(json!({"start": "r/1", "end": "r/3"}), "value", "==", json!("x")));
    assert!(holds(json!({"prefix": "nobody/"}), "version", "==", json!(77)), "there is no key that differs");

    // At most 1000 keys.
    for chunk in 0..8 {
        let ops: Vec<Value> = (0..125).map(|number| put(&format!("many/{:04}", chunk * 125 + number), "x")).collect();
        done(&member, &json!({ "then": ops }));
    }
    assert!(holds(json!({"prefix": "many/"}), "version", "==", json!(1)));
    member.put("/v1/kv/many/x", "1");
    let unchanged = Unchanged::look(&member);
    let too_many = json!({"compare": [{"prefix": "many/", "target": "version", "op": "==", "value": 1}],
                          "then": [put("a", "1")], "else": [put("a", "2")]});
    txn(&member, &too_many).expect_problem(413, "too-large");
    unchanged.check("a comparison of too many keys");
    // A read of so many ends at its limit.
    let read = done(&member, &json!({"then": [{"range": {"prefix": "many/"}}]}));
    assert_eq!(read["results"][0]["range"]["items"].as_array().unwrap().len(), 1000);
    assert_eq!(read["results"][0]["range"]["more"], true);
}

#[test]
fn comparisons_come_first_and_reads_see_what_was_done_before_them() {
    let member = Single::start();
    let revision = member.put("/v1/kv/a", "1");
    let reply = done(
        &member,
        &json!({"then": [
            get("a"), put("a", "2"), get("a"), put("b", "1"), {"range": {"prefix": ""}}, {"delete": {"prefix": "c"}},
            {"txn": {"compare": [{"key": "a", "target": "value", "op": "==", "value": "1"},
                                 {"key": "b", "target": "version", "op": "==", "value": 0}],
                     "then": [get("a"), {"txn": {"compare": [{"key": "a", "target": "version", "op": "==", "value": 1}],
                                                 "then": [put("c", "3"), get("c")]}}]}},
        ]}),
    );
    let results = &reply["results"];
    assert_eq!(reply["revision"], revision + 1);
    assert_eq!((&results[0]["get"]["item"]["value"], &results[2]["get"]["item"]["value"]), (&json!("1"), &json!("2")));
    assert_eq!(results[2]["get"]["item"]["mod_revision"], revision + 1);
    let range: Vec<_> = results[4]["range"]["items"].as_array().unwrap().iter().map(|i| i["value"].clone()).collect();
    assert_eq!(range, ["2", "1"]);
    let nested = &results[6]["txn"];
    assert_eq!(nested["succeeded"], true, "the nested comparison saw what the outer put wrote: {reply}");
    assert_eq!(nested["results"][0]["get"]["item"]["value"], "2");
    assert_eq!(nested["results"][1]["txn"]["results"][1]["get"]["item"]["value"], "3");
}

#[test]
fn a_key_that_would_be_written_twice_is_named_and_nothing_is_done() {
    let member = Single::start();
    member.put("/v1/kv/k1", "1");
    member.put("/v1/kv/k2", "1");
    let unchanged = Unchanged::look(&member);
    let nested = |op: Value| json!({"txn": {"then": [op]}});
    let (delete, range) = (json!({"delete": {"key": "k1"}}), json!({"delete": {"prefix": "k"}}));
    for (ops, key) in [
        (json!([put("new", "1"), put("new", "1")]), "new"),
        (json!([put("k1", "2"), put("b", "1"), delete]), "k1"),
        (json!([delete, put("k1", "2")]), "k1"),
        (json!([range, put("k2", "2")]), "k2"),
        (json!([put("k2", "2"), range]), "k2"),
        (json!([put("new", "1"), nested(put("new", "1"))]), "new"),
        (json!([nested(put("new", "1")), nested(nested(put("new", "1")))]), "new"),
        (json!([nested(range.clone()), delete]), "k1"),
    ] {
        let problem = txn(&member, &json!({ "then": ops })).expect_problem(400, "written-twice");
        assert_eq!(problem["field"], key, "{ops}: {problem}");
        assert_eq!(problem["retry"], "never", "{problem}");
        unchanged.check(&ops);
    }
    // Only the branches taken count, and deleting what does not exist is no write.
    let fine = json!({"compare": [{"key": "k1", "target": "version", "op": ">", "value": 7}],
                      "then": [put("k1", "2")],
                      "else": [put("k1", "3"), {"delete": {"key": "none"}}, {"delete": {"key": "none"}},
                               {"txn": {"compare": [{"key": "k2", "target": "version", "op": "==", "value": 0}],
                                        "then": [put("k1", "4")], "else": [put("k2", "3")]}}]});
    assert_eq!(done(&member, &fine)["succeeded"], false);
    assert_eq!(http::get(member.at, "/v1/kv/k1").text(), "3");
    assert_eq!(http::get(member.at, "/v1/kv/k2").text(), "3");
}

#[test]
fn what_is_not_a_transaction_is_refused_by_name() {
    let member = Single::start();
    member.put("/v1/kv/a", "1");
    let unchanged = Unchanged::look(&member);
    let long = "x".repeat(4097);
    let number =
        |key: &str, value: Value| json!({"compare": [{"key": "a", "target": key, "op": "==", "value": value}]});
    let op = |op: Value| json!({ "then": [op] });
    let cases = [
        (json!({"compares": []}), "bad-body", "compares"),
        (json!({"then": [put("a", "2")], "otherwise": []}), "bad-body", "otherwise"),
        (op(json!({"frob": {"key": "a"}})), "bad-body", "frob"),
        (op(json!({"put": {"key": "a"}})), "bad-body", "value"),
        (op(json!({"put": {"value": "a"}})), "bad-body", "key"),
        (op(json!({"put": {"key": "a", "key_base64": "YQ==", "value": "1"}})), "bad-body", "key"),
        (op(json!({"put": {"key": "a", "value": "1", "value_base64": "YQ=="}})), "bad-body", "value"),
        (op(json!({"put": {"key_base64": "*", "value": "1"}})), "bad-body", "key_base64"),
        (op(json!({"put": {"key_base64": "YQ", "value": "1"}})), "bad-body", "key_base64"),
        (op(json!({"put": {"key": "a", "value_base64": "YQ"}})), "bad-body", "value_base64"),
        (op(json!({"put": {"key": "a", "value": "1", "ttl": "30s"}})), "bad-body", "ttl"),
        (op(json!({"put": {"key": "a", "value": "1", "limit": 1}})), "bad-body", "limit"),
        (op(json!({"put": {"key": "a", "value": "1", "lease": 1u64 << 53}})), "bad-body", "lease"),
        (op(json!({"put": {"prefix": "a", "value": "1"}})), "bad-body", "key"),
        (op(put("", "1")), "bad-key", "key"),
        (op(put(&long, "1")), "bad-key", "key"),
        (op(get("")), "bad-key", "key"),
        (op(json!({"get": {"key": "a", "value": "1"}})), "bad-body", "value"),
        (op(json!({"get": {"prefix": "a"}})), "bad-body", "key"),
        (op(json!({"get": {}})), "bad-body", "key"),
        (op(json!({"range": {"key": "a"}})), "bad-body", "prefix"),
        (op(json!({"range": {"prefix": "a", "start": "a"}})), "bad-body", "key"),
        (op(json!({"range": {"end": "a"}})), "bad-body", "key"),
        (op(json!({"range": {"prefix": "a", "limit": 0}})), "bad-body", "limit"),
        (op(json!({"range": {"prefix": "a", "limit": 1001}})), "bad-body", "limit"),
        (op(json!({"range": {"start": "b", "end": "a"}})), "bad-body", "end"),
        (op(json!({"range": {"start": "b", "end": "b"}})), "bad-body", "end"),
        (op(json!({"range": {"start": &long}})), "bad-body", "range"),
        (op(json!({"delete": {"prefix": "a", "previous": true}})), "bad-body", "previous"),
        (op(json!({"delete": {"key": "a", "value": "1"}})), "bad-body", "value"),
        (op(json!({"delete": {"prefix": &long}})), "bad-body", "delete"),
        (op(json!({"txn": {"then": [], "unless": []}})), "bad-body", "unless"),
        (json!({"compare": [{"key": "a", "op": "==", "value": 1}]}), "bad-body", "target"),
        (json!({"compare": [{"key": "a", "target": "version", "value": 1}]}), "bad-body", "op"),
        (json!({"compare": [{"key": "a", "target": "version", "op": "="}]}), "bad-body", "op"),
        (json!({"compare": [{"key": "a", "target": "version", "op": "==", "value": 1, "not": 1}]}), "bad-body", "not"),
        (json!({"compare": [{"target": "version", "op": "==", "value": 1}]}), "bad-body", "key"),
        (json!({"compare": [{"key": "", "target": "version", "op": "==", "value": 1}]}), "bad-key", "key"),
        (number("age", json!(1)), "bad-body", "target"),
        (number("version", json!("1")), "bad-body", "value"),
        (number("version", json!(-1)), "bad-body", "value"),
        (number("version", json!(1.5)), "bad-body", "value"),
        (number("version", json!(null)), "bad-body", "value"),
        (number("value", json!(1)), "bad-body", "value"),
    ];
    for (body, kind, field) in cases {
        let problem = txn(&member, &body).expect_problem(400, kind);
        assert_eq!(problem["field"], field, "{body}: {problem}");
        assert_eq!((&problem["retry"], &problem["outcome"]), (&json!("never"), &json!("not-applied")), "{problem}");
    }
    let raw = |body: &str| Request::new("POST", "/v1/txn").body(body).send(member.at);
    for body in ["", "null", "[]", "7", "\"x\"", "{", "{} {}", "{\"then\":{}}", "{\"then\":[[]]}", "{\"then\":[{}]}"] {
        raw(body).expect_problem(400, "bad-body");
    }
    let doubled = raw("{\"then\":[],\"then\":[]}").expect_problem(400, "bad-body");
    assert_eq!(doubled["field"], "then");
    raw("{\"then\":[{\"put\":{\"key\":\"a\",\"value\":\"1\"},\"delete\":{\"key\":\"b\"}}]}")
        .expect_problem(400, "bad-body");
    raw(&format!("{}1", "{\"then\":[{\"txn\":".repeat(50_000))).expect_problem(400, "bad-body");
    unchanged.check("what was refused");

    let empty = json!({"then": [put("a", "2")]});
    let problem = http::post(member.at, "/v1/txn?x=1", &empty).expect_problem(400, "bad-parameter");
    assert_eq!(problem["field"], "x");
    for name in ["If-Match", "If-None-Match", "If-Unmodified-Since"] {
        let answer = Request::new("POST", "/v1/txn").header(name, "*").body(empty.to_string()).send(member.at);
        let problem = answer.expect_problem(400, "bad-header");
        assert!(problem["field"].as_str().is_some_and(|field| field.eq_ignore_ascii_case(name)), "{problem}");
    }
    let elsewhere = "0123456789abcdef0123456789abcdef";
    let answer = Request::new("POST", "/v1/txn").header("Lifeboat-Timeline", elsewhere).body(empty.to_string());
    answer.send(member.at).expect_problem(421, "wrong-timeline");
    for method in ["GET", "PUT", "DELETE"] {
        let answer = Request::new(method, "/v1/txn").send(member.at);
        assert_eq!(answer.must_have("allow"), "POST, OPTIONS");
        answer.expect_problem(405, "method-not-allowed");
    }
    unchanged.check("what was refused");
    member.assert_serves();
}

#[test]
fn a_transaction_has_limits() {
    let member = Single::start();
    let puts = |count: usize| (0..count).map(|number| put(&format!("p/{number:03}"), "1")).collect::<Vec<_>>();
    assert_eq!(done(&member, &json!({"then": puts(MAX_PARTS)}))["results"].as_array().unwrap().len(), MAX_PARTS);
    assert_eq!(member.items().len(), MAX_PARTS);

    let unchanged = Unchanged::look(&member);
    let compare = json!({"key": "none", "target": "version", "op": "==", "value": 0});
    let too_many = [
        json!({"then": puts(MAX_PARTS + 1)}),
        json!({"then": puts(64), "else": puts(65)}),
        json!({"compare": vec![compare.clone(); 2], "then": puts(MAX_PARTS - 1)}),
        // The nested transaction is a part itself.
        json!({"then": [{"txn": {"then": puts(MAX_PARTS)}}]}),
        json!({"then": [{"txn": {"compare": vec![compare; 64], "then": puts(64)}}]}),
    ];
    for body in too_many {
        let problem = txn(&member, &body).expect_problem(400, "bad-body");
        assert_eq!((&problem["field"], &problem["outcome"]), (&json!("txn"), &json!("not-applied")), "{problem}");
        unchanged.check("more than 128 parts");
    }
    done(&member, &json!({"then": [{"txn": {"then": puts(MAX_PARTS - 1)}}]}));

    let deep = |levels: usize| {
        (1..levels).fold(json!({"then": [put("deep", "1")]}), |inner, _| json!({"then": [{"txn": inner}]}))
    };
    done(&member, &deep(3));
    let unchanged = Unchanged::look(&member);
    for levels in [4, 5, 20] {
        assert_eq!(txn(&member, &deep(levels)).expect_problem(400, "bad-body")["field"], "txn", "{levels} levels");
    }
    // In a branch that would not be taken as well: what is wrong is wrong wherever it stands.
    let mut hidden = deep(4);
    hidden = json!({"else": hidden["then"]});
    txn(&member, &hidden).expect_problem(400, "bad-body");

    let large = "x".repeat((1 << 20) + 1);
    let problem =
        txn(&member, &json!({"then": [put("a", "1"), put("large", &large)]})).expect_problem(413, "too-large");
    assert_eq!((&problem["field"], &problem["outcome"]), (&json!("value"), &json!("not-applied")), "{problem}");
    unchanged.check("a value that is too large");

    // The body: at most 4 MiB, whatever is in it.
    let body = |bytes: usize| {
        let text = json!({"then": [put("padded", "1")]}).to_string();
        format!("{text}{}", " ".repeat(bytes - text.len()))
    };
    let send = |body: String| Request::new("POST", "/v1/txn").body(body).try_send(member.at);
    send(body(4 << 20)).unwrap().expect(200);
    http::delete(member.at, "/v1/kv/padded").expect(200);
    let unchanged = Unchanged::look(&member);
    let answer = send(body((4 << 20) + 1)).unwrap();
    assert_eq!(answer.header("connection"), Some("close"));
    answer.expect_problem(413, "too-large");
    unchanged.check("a body that is too large");
    member.assert_serves();
}

#[test]
fn a_transaction_reads_and_deletes_so_much_and_no_more() {
    let member = Single::start();
    let large = vec![b'x'; 1 << 20];
    for number in 0..5 {
        member.put(&format!("/v1/kv/large/{number}"), &large[..(1 << 20) - 100]);
    }
    let read = |ops: Value| json!({ "then": ops });
    let four = json!({"range": {"prefix": "large/", "limit": 4}});
    let reply = done(&member, &read(json!([four])));
    assert_eq!(reply["results"][0]["range"]["items"].as_array().unwrap().len(), 4);
    let unchanged = Unchanged::look(&member);
    for ops in [
        json!([put("a", "1"), {"range": {"prefix": "large/"}}]),
        json!([put("a", "1"), four, get("large/4")]),
        json!([put("a", "1"), {"txn": {"then": [four, get("large/0")]}}]),
        json!([four, {"delete": {"key": "large/4", "previous": true}}]),
        json!([four, {"put": {"key": "large/4", "value": "", "previous": true}}]),
    ] {
        let problem = txn(&member, &read(ops.clone())).expect_problem(413, "too-large");
        assert_eq!(problem["retry"], "never", "{problem}");
        unchanged.check(&ops);
    }
    // Keys alone are small.
    let keys = done(&member, &read(json!([{"range": {"prefix": "large/", "keys_only": true}}])));
    assert_eq!(keys["results"][0]["range"]["items"].as_array().unwrap().len(), 5);
    member.assert_serves();
}

#[test]
fn a_transaction_hangs_keys_on_leases_that_exist() {
    let member = Single::start();
    http::post(member.at, "/v1/leases", &json!({"ttl_seconds": 600, "id": 7})).expect(201);
    let leased = |key: &str, lease: u64| json!({"put": {"key": key, "value": "1", "lease": lease}});
    let reply = done(&member, &json!({"then": [leased("a", 7), put("b", "1"), get("a"), get("b")]}));
    assert_eq!(reply["results"][2]["get"]["item"]["lease"], 7);
    assert_eq!(reply["results"][3]["get"]["item"]["lease"], 0);
    let unchanged = Unchanged::look(&member);
    let problem = txn(&member, &json!({"then": [put("c", "1"), leased("d", 8)]})).expect_problem(404, "unknown-lease");
    assert_eq!(problem["field"], "lease", "{problem}");
    unchanged.check("a put on a lease that does not exist");
    assert_eq!(http::get(member.at, "/v1/leases/7").json()["keys"], json!(["a"]));
}
