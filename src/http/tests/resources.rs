//! Ranges, the cluster's resources, health, metrics; and methods and paths that do not exist.

use super::*;
use crate::api;

async fn fill(wire: &mut Wire, count: usize) -> u64 {
    let mut revision = 0;
    for at in 0..count {
        let put = wire.put(&format!("/v1/kv/k/{at:04}"), format!("v{at}").as_bytes()).await;
        revision = put.json()["revision"].as_u64().unwrap();
    }
    revision
}

#[tokio::test]
async fn pages_follow_each_other_at_one_revision() {
    let member = start().await;
    let mut wire = member.wire().await;
    let revision = fill(&mut wire, 7).await;
    wire.put("/v1/kv/l", b"not k").await;
    let mut path = format!("/v1/keys?prefix=k/&limit=3&rev={revision}");
    let (mut keys, mut pages) = (Vec::new(), 0);
    loop {
        let page: api::KeysPage = serde_json::from_slice(&wire.get(&path).await.body).unwrap();
        assert_eq!(page.revision, revision);
        assert_eq!(page.more, page.next.is_some());
        keys.extend(page.items.iter().map(|item| (item.key.clone(), item.value.clone().unwrap())));
        pages += 1;
        // Not seen by the pages that follow.
        wire.put("/v1/kv/k/0001b", b"late").await;
        match page.next {
            Some(next) => path = next,
            None => break,
        }
    }
    let expected: Vec<_> = (0..7).map(|at| (format!("k/{at:04}").into(), format!("v{at}").into())).collect();
    assert_eq!((keys, pages), (expected, 3));
    member.stop().await;
}

#[tokio::test]
async fn ranges_are_half_open_and_may_be_empty() {
    let member = start().await;
    let mut wire = member.wire().await;
    let revision = fill(&mut wire, 5).await;
    let mut keys = async |query: &str| {
        let page: api::KeysPage = serde_json::from_slice(&wire.get(&format!("/v1/keys{query}")).await.body).unwrap();
        assert!(!page.more);
        assert_eq!(page.revision, revision);
        page.items.iter().map(|item| String::from_utf8_lossy(&item.key[2..]).into_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(keys("").await, "0000 0001 0002 0003 0004");
    assert_eq!(keys("?start=k/0001&end=k/0003").await, "0001 0002");
    assert_eq!(keys("?start=k/0003").await, "0003 0004");
    assert_eq!(keys("?end=k/0001").await, "0000");
    assert_eq!(keys("?prefix=k%2F0002").await, "0002");
    assert_eq!(keys("?prefix=k/&after=k/0003").await, "0004");
    for empty in [
        "?prefix=x",
        "?start=b&end=a",
        "?start=k/0001&end=k/0001",
        "?prefix=k/&after=z",
        "?start=a&end=k/0002&after=k/0002",
        "?prefix=k/&after=k/0004",
        "?end=",
    ] {
        assert_eq!(keys(empty).await, "", "{empty}");
    }
    let only = wire.get("/v1/keys?keys_only=true&limit=1").await;
    assert!(!only.text().contains("value"), "{}", only.text());
    for (query, field) in [
        ("?limit=0", "limit"),
        ("?limit=10001", "limit"),
        ("?limit=+1", "limit"),
        ("?prefix=a&start=b", "prefix"),
        ("?keys_only=1", "keys_only"),
        ("?order=desc", "order"),
        ("?prefix=a&prefix=b", "prefix"),
        ("?prefix=%f", "prefix"),
    ] {
        let refused = wire.get(&format!("/v1/keys{query}")).await;
        assert_eq!((refused.status, refused.problem().field.as_deref()), (400, Some(field)), "{query}");
    }
    member.stop().await;
}

#[tokio::test]
async fn a_stream_has_every_key_once_and_says_where_it_ends() {
    let member = start().await;
    let mut wire = member.wire().await;
    // More than one piece of a stream; written by many clients, because each waits for the disk.
    let ranges = (0..50).map(|range| {
        let member = &member;
        async move {
            let mut wire = member.wire().await;
            for at in range * 22..(range + 1) * 22 {
                assert_eq!(wire.put(&format!("/v1/kv/k/{at:04}"), b"v").await.status, 201);
            }
        }
    });
    futures_util::future::join_all(ranges).await;
    let revision = member.node.store().revision();
    let ndjson = [("accept", "application/x-ndjson")];
    let stream = wire.ask("GET", "/v1/keys?prefix=k/", &ndjson, b"").await;
    assert_eq!(stream.header("content-type"), "application/x-ndjson");
    let lines: Vec<&str> = stream.text().lines().collect();
    let (end, items) = lines.split_last().unwrap();
    assert_eq!(*end, format!("{{\"end\":true,\"revision\":{revision},\"count\":1100,\"more\":false}}"));
    for (at, line) in items.iter().enumerate() {
        let item: api::KeyItem = serde_json::from_str(line).unwrap();
        assert_eq!(item.key, format!("k/{at:04}"));
    }
    assert_eq!(items.len(), 1100);
    let cut = wire.ask("GET", "/v1/keys?prefix=k/&limit=1050&keys_only=true", &ndjson, b"").await;
    let end = format!("{{\"end\":true,\"revision\":{revision},\"count\":1050,\"more\":true}}");
    assert_eq!(cut.text().lines().count(), 1051);
    assert_eq!(cut.text().lines().last(), Some(end.as_str()));
    let empty = wire.ask("GET", "/v1/keys?prefix=x", &ndjson, b"").await;
    assert_eq!(empty.text(), format!("{{\"end\":true,\"revision\":{revision},\"count\":0,\"more\":false}}\n"));
    member.stop().await;
}

#[tokio::test]
async fn many_keys_are_deleted_in_one_transaction() {
    let member = start().await;
    let mut wire = member.wire().await;
    let revision = fill(&mut wire, 5).await;
    let deleted = wire.ask("DELETE", "/v1/keys?start=k/0001&end=k/0003", &[], b"").await;
    assert_eq!(deleted.text(), format!("{{\"revision\":{},\"deleted\":2}}", revision + 1));
    let none = wire.ask("DELETE", "/v1/keys?prefix=x", &[], b"").await;
    assert_eq!(none.text(), format!("{{\"revision\":{},\"deleted\":0}}", revision + 1));
    let all = wire.ask("DELETE", "/v1/keys?prefix=", &[], b"").await;
    assert_eq!(all.text(), format!("{{\"revision\":{},\"deleted\":3}}", revision + 2));
    member.stop().await;
}

#[tokio::test]
async fn too_many_ranges_at_once_are_refused() {
    let options = EdgeOptions { max_range_reads: 0, max_range_waiters: 0, ..EdgeOptions::default() };
    let member = start_with(options).await;
    let mut wire = member.wire().await;
    let refused = wire.get("/v1/keys").await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "too-many-reads"));
    assert_eq!(refused.header("retry-after"), "1");
    member.stop().await;
}

#[tokio::test]
async fn the_cluster_shows_itself() {
    let member = start().await;
    let mut wire = member.wire().await;
    let status: api::Status = serde_json::from_slice(&wire.get("/v1/status").await.body).unwrap();
    assert_eq!((status.name.as_str(), status.role, status.ready), ("n1", api::Role::Leader, true));
    assert_eq!(status.members.len(), 1);
    let members: api::MembersReply = serde_json::from_slice(&wire.get("/v1/members").await.body).unwrap();
    assert_eq!(members.members, status.members);
    assert_eq!(wire.get("/v1/role").await.text(), r#"{"role":"leader","name":"n1","site":"default","leader":"n1"}"#);
    let same = wire.ask("POST", "/v1/leader", &[], br#"{"to":"n1"}"#).await;
    assert_eq!((same.status, same.json()["leader"].as_str()), (200, Some("n1")));
    let unknown = wire.ask("POST", "/v1/leader", &[], br#"{"to":"n9"}"#).await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "unknown-member"));
    let misspelt = wire.ask("POST", "/v1/leader", &[], br#"{"too":"n1"}"#).await;
    assert_eq!((misspelt.status, misspelt.problem().field.as_deref()), (400, Some("too")));
    assert_eq!(wire.get("/v1/status?x=1").await.code(), "bad-parameter");
    member.stop().await;
}

#[tokio::test]
async fn health_is_asked_in_five_ways() {
    let member = start().await;
    let mut wire = member.wire().await;
    for check in ["live", "ready", "leader", "primary"] {
        let healthy = wire.get(&format!("/health/{check}")).await;
        assert_eq!((healthy.status, healthy.text()), (200, r#"{"healthy":true}"#), "{check}");
        assert_eq!(wire.ask("HEAD", &format!("/health/{check}"), &[], b"").await.status, 200);
    }
    let mirror = wire.get("/health/mirror?max_lag=5s").await;
    let health: api::Health = serde_json::from_slice(&mirror.body).unwrap();
    assert_eq!((mirror.status, health.healthy, health.reason.is_some()), (503, false, true));
    assert_eq!(wire.get("/health/mirror?max_lag=5").await.code(), "bad-parameter");
    assert_eq!(wire.get("/health/ready?max_lag=5s").await.code(), "bad-parameter");
    assert_eq!(wire.get("/health/spirits").await.code(), "unknown-path");
    member.stop().await;
}

#[tokio::test]
async fn what_does_not_exist_is_told_apart_and_options_lists_what_does() {
    let member = start().await;
    let mut wire = member.wire().await;
    for (path, allow) in [
        ("/v1/kv/a", "GET, HEAD, PUT, DELETE, OPTIONS"),
        ("/v1/keys", "GET, HEAD, DELETE, OPTIONS"),
        ("/v1/status", "GET, HEAD, OPTIONS"),
        ("/v1/leader", "POST, OPTIONS"),
        ("/health/live", "GET, HEAD, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"),
    ] {
        let options = wire.ask("OPTIONS", path, &[], b"").await;
        assert_eq!((options.status, options.header("allow")), (204, allow), "{path}");
        let refused = wire.ask("PATCH", path, &[], b"").await;
        assert_eq!((refused.status, refused.code().as_str()), (405, "method-not-allowed"), "{path}");
        assert_eq!(refused.header("allow"), allow, "{path}");
    }
    for path in ["/", "/v1", "/v1/keys/", "/v1/status/", "/v2/kv/a", "/v1/%6bv/a", "/health", "/v1/keys/.."] {
        let missing = wire.get(path).await;
        assert_eq!((missing.status, missing.code().as_str()), (404, "unknown-path"), "{path}");
        assert_eq!(missing.header("lifeboat-timeline").len(), 32, "{path}");
    }
    let metrics = wire.get("/metrics").await;
    assert!(
        metrics
            .text()
            .contains("lifeboat_http_requests_total{route=\"/v1/kv/{key}\",method=\"other\",status=\"2xx\"} 1")
    );
    assert!(metrics.text().contains("\nlifeboat_http_connections 1.0\n"), "{}", metrics.text());
    member.stop().await;
}
