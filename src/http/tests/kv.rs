//! One key: written, read, conditioned, deleted.

use super::*;

#[tokio::test]
async fn a_value_is_created_replaced_read_and_deleted() {
    let member = start().await;
    let mut wire = member.wire().await;
    let created = wire.put("/v1/kv/a", b"x\0\xff").await;
    assert_eq!(created.status, 201);
    let first = created.json()["revision"].as_u64().unwrap();
    assert_eq!(created.header("etag"), format!("\"{first}\""));
    let expected =
        format!("{{\"revision\":{first},\"create_revision\":{first},\"version\":1,\"previous_revision\":null}}");
    assert_eq!(created.text(), expected);

    let replaced = wire.put("/v1/kv/a", b"").await;
    let second = first + 1;
    assert_eq!(replaced.status, 200);
    let expected =
        format!("{{\"revision\":{second},\"create_revision\":{first},\"version\":2,\"previous_revision\":{first}}}");
    assert_eq!(replaced.text(), expected);

    let read = wire.get("/v1/kv/a").await;
    assert_eq!((read.status, read.body.as_slice()), (200, &b""[..]));
    assert_eq!(read.header("content-type"), "application/octet-stream");
    assert_eq!(read.header("etag"), format!("\"{second}\""));
    assert_eq!(read.header("lifeboat-create-revision"), first.to_string());
    assert_eq!(read.header("lifeboat-version"), "2");
    assert_eq!(read.header("lifeboat-revision"), second.to_string());
    assert_eq!(read.header("lifeboat-leader"), format!("http://{}", member.address));
    assert_eq!(read.header("lifeboat-timeline").len(), 32);
    let old = wire.get(&format!("/v1/kv/a?rev={first}")).await;
    assert_eq!(old.body, b"x\0\xff");
    let json = wire.ask("GET", &format!("/v1/kv/a?rev={first}"), &[("accept", "application/json")], b"").await;
    let expected = format!(
        "{{\"key\":\"a\",\"value_base64\":\"eAD/\",\"create_revision\":{first},\"mod_revision\":{first},\"version\":1,\"lease\":0}}"
    );
    assert_eq!(json.text(), expected);
    assert_eq!(json.header("content-type"), "application/json");

    let third = second + 1;
    let deleted = wire.ask("DELETE", "/v1/kv/a", &[], b"").await;
    assert_eq!(deleted.text(), format!("{{\"revision\":{third},\"deleted\":1,\"previous_revision\":{second}}}"));
    let again = wire.ask("DELETE", "/v1/kv/a", &[], b"").await;
    assert_eq!(again.text(), format!("{{\"revision\":{third},\"deleted\":0,\"previous_revision\":null}}"));
    let missing = wire.get("/v1/kv/a").await;
    assert_eq!((missing.status, missing.code().as_str()), (404, "not-found"));
    assert_eq!(missing.header("lifeboat-revision"), third.to_string());
    member.stop().await;
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let member = start().await;
    let mut wire = member.wire().await;
    wire.put("/v1/kv/a", b"12345").await;
    let get = wire.get("/v1/kv/a").await;
    let mut head = wire.ask("HEAD", "/v1/kv/a", &[], b"").await;
    assert_eq!((head.status, head.header("content-length")), (200, "5"));
    head.headers.insert("date".to_owned(), get.header("date").to_owned());
    assert_eq!(head.headers, get.headers);
    assert_eq!(wire.ask("HEAD", "/v1/kv/b", &[], b"").await.status, 404);
    assert_eq!(wire.get("/v1/kv/a").await.body, b"12345", "the connection goes on");
    member.stop().await;
}

#[tokio::test]
async fn every_spelling_of_a_path_is_a_key_of_its_own() {
    let member = start().await;
    let mut wire = member.wire().await;
    let keys = [
        "a/../b",
        "..",
        "../v1/status",
        "a//b",
        "a/b",
        "a/b/",
        "/",
        "%2F%2F",
        "%00",
        "%ff%fe",
        "%20",
        "a+b",
        "a%20b",
        "%25",
        "caf\u{e9}",
    ];
    for (at, key) in keys.iter().enumerate() {
        let put = wire.put(&format!("/v1/kv/{key}"), at.to_string().as_bytes()).await;
        assert_eq!(put.status, 201, "{key}: {}", put.text());
    }
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(wire.get(&format!("/v1/kv/{key}")).await.text(), at.to_string(), "{key}");
    }
    assert_eq!(wire.get("/v1/kv/a%2Fb").await.text(), "4", "encoded or not, it is the same byte");
    for (path, status, code) in [
        ("/v1/kv/", 400, "bad-key"),
        ("/v1/kv/%", 400, "bad-key"),
        ("/v1/kv/%zz", 400, "bad-key"),
        ("/v1/kv", 404, "unknown-path"),
        ("//v1/kv/a", 404, "unknown-path"),
        ("/V1/kv/a", 404, "unknown-path"),
    ] {
        let answer = wire.get(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path}");
    }
    member.stop().await;
}

#[tokio::test]
async fn conditions_guard_writes_and_save_reads() {
    let member = start().await;
    let mut wire = member.wire().await;
    let mut put = async |name: &str, value: &str| wire.ask("PUT", "/v1/kv/a", &[(name, value)], b"x").await;
    let refused = put("if-match", "*").await;
    assert_eq!((refused.status, refused.code().as_str()), (412, "condition-failed"));
    assert_eq!(refused.problem().current_revision, None);
    assert!(!refused.headers.contains_key("etag"), "there is no key to have one");
    let created = put("if-none-match", "*").await;
    assert_eq!(created.status, 201);
    let etag = created.header("etag").to_owned();
    let revision = created.json()["revision"].as_u64().unwrap();
    let refused = put("if-none-match", "*").await;
    assert_eq!((refused.status, refused.header("etag")), (412, etag.as_str()));
    assert_eq!(refused.problem().current_revision, Some(revision));
    assert_eq!(refused.problem().outcome, None, "it was decided, and changed nothing");
    assert_eq!(put("if-none-match", &etag).await.status, 412);
    assert_eq!(put("if-match", "\"999999\"").await.status, 412);
    let listed = put("if-match", &format!("\"999999\", {etag}")).await;
    assert_eq!((listed.status, listed.json()["version"].as_u64()), (200, Some(2)));
    assert_eq!(put("if-match", &format!("W/{etag}")).await.code(), "bad-header");

    let current = listed.header("etag").to_owned();
    let unchanged = wire.ask("GET", "/v1/kv/a", &[("if-none-match", &current)], b"").await;
    assert_eq!((unchanged.status, unchanged.header("etag")), (304, current.as_str()));
    assert_eq!(wire.ask("GET", "/v1/kv/a", &[("if-none-match", &etag)], b"").await.status, 200);
    assert_eq!(wire.ask("DELETE", "/v1/kv/a", &[("if-match", &etag)], b"").await.status, 412);
    assert_eq!(wire.ask("DELETE", "/v1/kv/a", &[("if-match", &current)], b"").await.status, 200);
    member.stop().await;
}

#[tokio::test]
async fn a_stale_read_tells_its_lag_and_a_linearizable_one_does_not_have_any() {
    let member = start().await;
    let mut wire = member.wire().await;
    wire.put("/v1/kv/a", b"x").await;
    assert!(!wire.get("/v1/kv/a").await.headers.contains_key("lifeboat-lag-seconds"));
    for path in ["/v1/kv/a?consistency=stale", "/v1/kv/absent?consistency=stale", "/v1/keys?consistency=stale"] {
        let stale = wire.get(path).await;
        let lag = stale.header("lifeboat-lag-seconds");
        assert!(lag == "unknown" || lag.parse::<f64>().is_ok_and(|lag| lag >= 0.0), "{path}: {lag}");
    }
    let metrics = wire.get("/metrics").await;
    for line in [
        "lifeboat_reads_served_total{consistency=\"linearizable\"} 1",
        "lifeboat_reads_served_total{consistency=\"stale\"} 3",
    ] {
        assert!(metrics.text().lines().any(|shown| shown == line), "no {line} in\n{}", metrics.text());
    }
    member.stop().await;
}

#[tokio::test]
async fn a_revision_that_does_not_exist_yet_is_told_from_one_that_is_not_here_yet() {
    let member = start().await;
    let mut wire = member.wire().await;
    // The cluster makes revisions of its own, so only a lower bound is known.
    let current = wire.put("/v1/kv/a", b"x").await.json()["revision"].as_u64().unwrap();
    let future = wire.get("/v1/kv/a?rev=1000000").await;
    assert_eq!((future.status, future.code().as_str()), (400, "future-revision"));
    assert!(future.problem().current.is_some_and(|told| (current..1_000_000).contains(&told)));
    let not_here = wire.get("/v1/kv/a?rev=1000000&consistency=stale").await;
    assert_eq!((not_here.status, not_here.code().as_str()), (503, "not-here-yet"));
    assert_eq!(not_here.header("retry-after"), "1");
    member.stop().await;
}

#[tokio::test]
async fn another_timeline_is_refused_and_nothing_is_written() {
    let member = start().await;
    let mut wire = member.wire().await;
    let own = wire.get("/v1/kv/a").await.header("lifeboat-timeline").to_owned();
    let other = "0".repeat(32);
    for (method, path) in
        [("PUT", "/v1/kv/a"), ("GET", "/v1/kv/a"), ("GET", "/v1/status"), ("DELETE", "/v1/keys?prefix=")]
    {
        let refused = wire.ask(method, path, &[("lifeboat-timeline", &other)], b"").await;
        assert_eq!((refused.status, refused.code().as_str()), (421, "wrong-timeline"), "{method} {path}");
    }
    assert_eq!(wire.get("/v1/kv/a").await.status, 404);
    assert_eq!(wire.ask("PUT", "/v1/kv/a", &[("lifeboat-timeline", &own)], b"x").await.status, 201);
    member.stop().await;
}

#[tokio::test]
async fn what_is_refused_before_the_log_says_so() {
    let member = start().await;
    let mut wire = member.wire().await;
    for (method, path, headers, code, field) in [
        ("PUT", "/v1/kv/%zz", &[][..], "bad-key", Some("key")),
        ("PUT", "/v1/kv/a?ttl=5", &[][..], "bad-parameter", Some("ttl")),
        ("PUT", "/v1/kv/a?ttl=999ms", &[][..], "bad-parameter", Some("ttl")),
        ("PUT", "/v1/kv/a?ttl=5s&lease=3", &[][..], "bad-parameter", Some("ttl")),
        ("PUT", "/v1/kv/a?lease=0", &[][..], "bad-parameter", Some("lease")),
        ("PUT", "/v1/kv/a", &[("idempotency-key", "a b")][..], "bad-header", Some("idempotency-key")),
        ("DELETE", "/v1/keys?prefix=a", &[("idempotency-key", "")][..], "bad-header", Some("idempotency-key")),
        ("PUT", "/v1/kv/a", &[("if-match", "\"1\""), ("if-match", "\"2\"")][..], "bad-header", Some("if-match")),
        ("DELETE", "/v1/kv/a?rev=1", &[][..], "bad-parameter", Some("rev")),
        ("DELETE", "/v1/kv/a", &[("if-none-match", "*")][..], "bad-header", Some("if-none-match")),
        ("DELETE", "/v1/keys", &[][..], "bad-parameter", Some("prefix")),
        ("DELETE", "/v1/keys?start=b&end=a", &[][..], "bad-parameter", Some("end")),
    ] {
        let body: &[u8] = if method == "PUT" { b"x" } else { b"" };
        let problem = wire.ask(method, path, headers, body).await.problem();
        assert_eq!(problem.code().unwrap().as_str(), code, "{method} {path}");
        assert_eq!(problem.field.as_deref(), field, "{method} {path}");
        assert_eq!(problem.outcome, Some(crate::api::WriteOutcome::NotApplied), "{method} {path}");
    }
    assert_eq!(wire.get("/v1/kv/a").await.status, 404);
    member.stop().await;
}
