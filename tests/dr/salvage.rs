//! Salvage with real processes: the files of old members are listed and fetched, and what they hold is brought back where
//! nothing has changed since, looked at first, and never done twice.

use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{self, Request};
use crate::support::salvage::{File, done, pairs, put, report, salvage};
use serde_json::{Value, json};

fn keyed_put(cluster: &Cluster, key: &str, value: &str, idempotency: &str) {
    let request = Request::new("PUT", &format!("/v1/kv/{key}")).header("idempotency-key", idempotency).body(value);
    assert!([200, 201].contains(&request.send(cluster.client(0)).status));
}

#[test]
fn stranded_writes_are_listed_looked_at_and_brought_back_once() {
    let cluster = Plan::new(1, 1).start();
    for key in ["a", "b", "gone", "same"] {
        cluster.put_until_done(0, key, if key == "same" { "v" } else { "old" });
    }
    let fork = cluster.put_until_done(0, "last", "shared");
    // What the cluster did since.
    cluster.put_until_done(0, "b", "changed");
    Request::new("DELETE", "/v1/kv/gone").send(cluster.client(0)).expect(200);
    keyed_put(&cluster, "c", "1", "try-1");

    let mut first = File::new(&cluster, "a", fork);
    first.write("applied", None, &json!([put("a", "middle", 2)]));
    first.write("applied", None, &json!([put("a", "new", 3), put("created", "1", 1)]));
    first.write("applied", None, &json!([put("b", "stranded", 2)]));
    first.write("applied", None, &json!([put("gone", "back", 2)]));
    first.write("applied", Some("try-1"), &json!([put("c", "1", 1)]));
    first.write("applied", Some("try-9"), &json!([put("d", "1", 1)]));
    first.write("applied", None, &json!([put("same", "v", 2)]));
    // Another member had only logged the second of them, and something of which nobody knows what it came to.
    let mut second = File::new(&cluster, "b", fork);
    let mut logged = first.lines[1].clone();
    logged["fate"] = json!("unknown");
    second.lines.push(logged);
    second.write("unknown", None, &json!([put("if", "1", 1)]));
    second.lines[1]["conditional"] = json!(true);
    second.lines[1]["position"] = json!(300);
    let data = |member: usize| cluster.path().join(format!("n{}", member + 1));
    let paths = [first.save(&data(0)), second.save(&data(1))];

    // Listed where they are, and sent as they are.
    let listed = report(&cluster, 0, &["list"]);
    let files: Vec<&Value> =
        listed["members"].as_array().unwrap().iter().flat_map(|m| m["files"].as_array().unwrap()).collect();
    assert_eq!(files.len(), 2, "{listed}");
    assert_eq!(files[0]["header"]["counts"]["applied"], 7);
    assert!(listed["next"].as_str().unwrap().starts_with("lifeboat salvage apply"), "{listed}");
    let local = report(&cluster, 0, &["list", "--data-dir", data(1).to_str().unwrap()]);
    assert_eq!(local["members"][0]["files"][0]["file"], second.name());
    let target = format!("/v1/dr/salvage/{}", first.name());
    let sent = http::get(cluster.client(0), &target).expect(200);
    assert_eq!((sent.must_have("content-type"), sent.text()), ("application/x-ndjson", first.text().as_str()));
    for other in [second.name(), "x.ndjson".into(), "..%2Fmember.json".into()] {
        http::get(cluster.client(0), &format!("/v1/dr/salvage/{other}")).expect_problem(404, "unknown-file");
    }
    let known = |keys: &[&str]| {
        let asked = json!({ "idempotency_keys": keys });
        http::post(cluster.client(1), "/v1/dr/salvage/known", &asked).expect(200).json()["known"].clone()
    };
    assert_eq!(known(&["try-9", "try-1"]), json!(["try-1"]));

    // Looked at: nothing is written.
    let expected = |apply: &'static str| {
        pairs(&[
            ("a", apply),
            ("b", "conflict"),
            ("c", "executed"),
            ("created", apply),
            ("d", apply),
            ("gone", "conflict"),
            ("if", "by-hand"),
            ("same", "same"),
        ])
    };
    let looked = report(&cluster, 4, &["apply"]);
    assert_eq!(
        (done(&looked), &looked["writes"], &looked["superseded"]),
        (expected("apply"), &json!(8), &json!(1)),
        "{looked}"
    );
    assert!(looked["next"].as_str().unwrap().contains("apply --apply"), "{looked}");
    assert_eq!((cluster.get(0, "a").unwrap(), cluster.get(0, "d")), ("old".into(), None));

    // Done, from the files as they lie, and once more, which changes nothing.
    let paths = paths.map(|path| path.to_str().unwrap().to_owned());
    let brought = report(&cluster, 4, &["apply", &paths[0], &paths[1], "--apply"]);
    assert_eq!(done(&brought), expected("applied"), "{brought}");
    let value = |key: &str| cluster.get(0, key);
    assert_eq!([value("a"), value("created"), value("d")], [Some("new".into()), Some("1".into()), Some("1".into())]);
    assert_eq!((value("b"), value("gone")), (Some("changed".into()), None));
    assert_eq!(known(&["try-9"]), json!(["try-9"]));
    let again = report(&cluster, 4, &["apply", "--apply"]);
    let changed: Vec<_> = done(&again).into_iter().filter(|(_, what)| what == "applied").collect();
    assert_eq!(changed, [], "{again}");

    // Conflicts only when told.
    assert!(again["next"].as_str().unwrap().contains("--overwrite"), "{again}");
    let over = report(&cluster, 4, &["apply", "--apply", "--overwrite"]);
    let changed: Vec<_> = done(&over).into_iter().filter(|(_, what)| what == "applied").collect();
    assert_eq!(changed, pairs(&[("b", "applied"), ("gone", "applied")]), "{over}");
    assert_eq!((value("b"), value("gone")), (Some("stranded".into()), Some("back".into())));
    // Only what is certain, for people: nothing is left.
    let (code, printed, _) = salvage(&cluster, &["apply", "--applied-only", "-o", "table"]);
    assert_eq!(code, 0, "{printed}");
    assert!(printed.trim_end().lines().last().unwrap().starts_with("lifeboat dr plan"), "{printed}");
}

#[test]
fn files_that_are_cut_or_of_another_cluster_or_timeline_are_refused() {
    let cluster = Plan::new(1, 0).start();
    let fork = cluster.put_until_done(0, "a", "old");
    let mut good = File::new(&cluster, "a", fork);
    good.write("applied", None, &json!([put("a", "new", 2)]));
    let path = good.save(cluster.path());
    let path = path.to_str().unwrap();
    let refused = |text: String, why: &str| {
        std::fs::write(path, text).unwrap();
        let (code, printed, said) = salvage(&cluster, &["apply", path, "--apply"]);
        assert!(code == 1 && said.contains(why), "{code} {printed}{said}");
        assert!(said.contains("lifeboat salvage list"), "the next command: {said}");
    };
    let whole = good.text();
    refused(whole.lines().next().unwrap().to_owned(), "it was cut");
    refused(whole.replace("lifeboat-salvage", "something"), "something");
    refused(whole.replace("\"version\":1", "\"version\":9"), "version 9");
    let status = cluster.status(0).unwrap();
    let id = |name: &str| status["cluster"][name].as_str().map(str::to_owned);
    refused(whole.replace(&id("id").unwrap(), &"f".repeat(32)), "cluster");
    let timeline = status["cluster"]["timeline"]["id"].as_str().unwrap();
    refused(whole.replace(&"1".repeat(32), timeline), "nothing is stranded");
    assert_eq!(cluster.get(0, "a").unwrap(), "old");
    let (code, _, said) = salvage(&cluster, &["apply"]);
    assert!(code == 3 && said.contains("lifeboat salvage list"), "{said}");
    let (code, printed, _) = salvage(&cluster, &["list", "-o", "table"]);
    assert!(code == 0 && printed.contains("no member has a salvage file"), "{printed}");
}
