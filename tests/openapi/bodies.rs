//! What a member takes is what the schemas take, form by form.

use serde_json::{Value, json};

use super::Document;
use super::support::cluster::Plan;
use super::support::http::Request;
use super::support::schema::Schemas;

#[test]
fn a_schema_takes_the_bodies_that_a_member_takes() {
    let cluster = Plan::new(1, 0).start();
    let member = cluster.client(0);
    let document = Document::of(member);
    let txn = |ops: Value| json!({ "then": [ops] });
    let compare = |compare: Value| json!({ "compare": [compare] });
    let bodies = [
        ("transact", json!({ "other": [] })),
        ("transact", json!({ "then": {} })),
        ("transact", txn(json!({}))),
        ("transact", txn(json!({ "put": { "key": "a", "value": "1" }, "get": { "key": "a" } }))),
        ("transact", txn(json!({ "put": { "key": "a", "value": "1" } }))),
        ("transact", txn(json!({ "put": { "key": "a" } }))),
        ("transact", txn(json!({ "put": { "key": "a", "value": 1 } }))),
        ("transact", txn(json!({ "put": { "key": "a", "value": "1", "value_base64": "MQ==" } }))),
        ("transact", txn(json!({ "put": { "key": "a", "key_base64": "YQ==", "value": "1" } }))),
        ("transact", txn(json!({ "put": { "prefix": "a", "value": "1" } }))),
        ("transact", txn(json!({ "put": { "key": "a", "value": "1", "limit": 1 } }))),
        ("transact", txn(json!({ "put": { "key": "a", "value": "1", "lease": 1u64 << 53 } }))),
        ("transact", txn(json!({ "put": { "key": "a", "value": "1", "previous": "yes" } }))),
        ("transact", txn(json!({ "delete": { "key": "a", "previous": true } }))),
        ("transact", txn(json!({ "delete": { "prefix": "a", "previous": true } }))),
        ("transact", txn(json!({ "delete": { "prefix": "a", "previous": false } }))),
        ("transact", txn(json!({ "delete": { "start": "b", "end": "c" } }))),
        ("transact", txn(json!({ "delete": { "start_base64": "Yg==", "end": "c", "end_base64": "Yw==" } }))),
        ("transact", txn(json!({ "delete": { "end": "c" } }))),
        ("transact", txn(json!({ "delete": { "key": "a", "end": "c" } }))),
        ("transact", txn(json!({ "delete": { "key": "a", "prefix": "a" } }))),
        ("transact", txn(json!({ "delete": {} }))),
        ("transact", txn(json!({ "delete": { "key": "a", "value": "1" } }))),
        ("transact", txn(json!({ "get": { "key_base64": "YQ==" } }))),
        ("transact", txn(json!({ "get": { "prefix": "a" } }))),
        ("transact", txn(json!({ "get": { "key": "a", "previous": true } }))),
        ("transact", txn(json!({ "range": { "prefix_base64": "YQ==", "limit": 1000, "keys_only": true } }))),
        ("transact", txn(json!({ "range": { "key": "a" } }))),
        ("transact", txn(json!({ "range": { "prefix": "a", "limit": 0 } }))),
        ("transact", txn(json!({ "range": { "prefix": "a", "limit": 1001 } }))),
        ("transact", txn(json!({ "range": { "prefix": "a", "lease": 1 } }))),
        ("transact", txn(json!({ "txn": { "else": [{ "get": { "key": "a" } }] } }))),
        ("transact", txn(json!({ "txn": { "otherwise": [] } }))),
        ("transact", txn(json!({ "nothing": {} }))),
        ("transact", compare(json!({ "key": "a", "target": "version", "op": "==", "value": 1 }))),
        ("transact", compare(json!({ "prefix": "a", "target": "lease", "op": "!=", "value": 0 }))),
        ("transact", compare(json!({ "key": "a", "target": "value", "op": "<", "value": "1" }))),
        ("transact", compare(json!({ "key": "a", "target": "value", "op": "<", "value_base64": "MQ==" }))),
        ("transact", compare(json!({ "key": "a", "target": "value", "op": "<", "value": 1 }))),
        ("transact", compare(json!({ "key": "a", "target": "value", "op": "<" }))),
        ("transact", compare(json!({ "key": "a", "target": "version", "op": "==", "value": "1" }))),
        ("transact", compare(json!({ "key": "a", "target": "version", "op": "==", "value_base64": "MQ==" }))),
        ("transact", compare(json!({ "key": "a", "target": "version", "op": "==", "value": -1 }))),
        ("transact", compare(json!({ "key": "a", "target": "version", "op": "=", "value": 1 }))),
        ("transact", compare(json!({ "key": "a", "target": "size", "op": "==", "value": 1 }))),
        ("transact", compare(json!({ "key": "a", "op": "==", "value": 1 }))),
        ("transact", compare(json!({ "key": "a", "target": "version", "value": 1 }))),
        ("transact", compare(json!({ "target": "version", "op": "==", "value": 1 }))),
        ("grantLease", json!({ "ttl_seconds": 1 })),
        ("grantLease", json!({ "ttl_seconds": 2_592_000, "id": (1u64 << 53) - 1 })),
        ("grantLease", json!({ "ttl_seconds": 0 })),
        ("grantLease", json!({ "ttl_seconds": 2_592_001 })),
        ("grantLease", json!({ "ttl_seconds": 30, "id": 0 })),
        ("grantLease", json!({ "ttl_seconds": 30, "id": 1u64 << 53 })),
        ("grantLease", json!({ "ttl_seconds": "30s" })),
        ("grantLease", json!({ "ttl": 30 })),
        ("grantLease", json!({})),
        ("inviteMember", json!({ "name": "n7" })),
        ("inviteMember", json!({ "name": "n8", "peer_url": "http://n8:7401", "role": "mirror", "site": "west" })),
        ("inviteMember", json!({ "name": "n7", "role": "leader" })),
        ("inviteMember", json!({ "role": "voter" })),
        ("inviteMember", json!({ "name": "n7", "force": true })),
        ("changeMember", json!({ "role": "voter", "force": true })),
        ("changeMember", json!({ "role": "witness" })),
        ("changeMember", json!({ "role": "voter", "force": "yes" })),
        ("changeMember", json!({ "force": true })),
        ("beginSwitchover", json!({ "to_site": "east", "by": "ann", "reason": "why", "dry_run": true })),
        ("beginSwitchover", json!({ "to_site": 1 })),
        ("beginSwitchover", json!({ "to_site": "east", "dry_run": "yes" })),
        ("beginSwitchover", json!({ "to": "east" })),
        ("beginSwitchover", json!({})),
        ("moveLeader", json!({})),
        ("moveLeader", json!({ "to": "n1" })),
        ("moveLeader", json!({ "to": null })),
        ("moveLeader", json!({ "to": 1 })),
        ("moveLeader", json!({ "too": "n1" })),
    ];
    let mut refused = 0;
    for (id, body) in bodies {
        let operation = document.operation(id);
        let schema = &operation.said["requestBody"]["content"]["application/json"]["schema"];
        let accepted = Schemas::of(&document.0).accepts(schema, &body);
        let request = Request::new(&operation.method.to_uppercase(), &operation.some_path()).body(body.to_string());
        let answer = request.send(member);
        let taken = answer.status != 400;
        assert_eq!(accepted, taken, "{body}: the schema and the member disagree: {answer}");
        if !taken {
            answer.expect_problem(400, "bad-body");
            refused += 1;
        }
    }
    assert!(refused > 20);
}
