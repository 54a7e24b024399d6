//! Bodies that are too large, too slow, announced, in pieces; and what happens to their connections.

use super::*;

/// Beyond the largest value of these members.
const TOO_LARGE_BYTES: usize = (64 << 10) + 1;

#[tokio::test]
async fn a_value_up_to_the_limit_is_kept_and_one_beyond_is_refused() {
    let member = start().await;
    let mut wire = member.wire().await;
    let largest = vec![7; TOO_LARGE_BYTES - 1];
    assert_eq!(wire.put("/v1/kv/a", &largest).await.status, 201);
    assert_eq!(wire.get("/v1/kv/a").await.body, largest);
    let refused = wire.put("/v1/kv/b", &vec![7; TOO_LARGE_BYTES]).await;
    assert_eq!((refused.status, refused.code().as_str()), (413, "too-large"));
    assert_eq!(refused.problem().outcome, Some(crate::api::WriteOutcome::NotApplied));
    assert_eq!(refused.header("connection"), "close");
    assert!(wire.is_closed().await);
    assert_eq!(member.wire().await.get("/v1/kv/b").await.status, 404);
    member.stop().await;
}

#[tokio::test]
async fn a_client_that_asks_first_never_sends_what_would_be_refused() {
    let member = start().await;
    let expect = |length| {
        format!("PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
    };
    let mut wire = member.wire().await;
    wire.send(expect(TOO_LARGE_BYTES)).await;
    let refused = wire.answer(false).await;
    assert_eq!((refused.status, refused.code().as_str()), (413, "too-large"));
    let mut wire = member.wire().await;
    wire.send(expect(5)).await;
    assert_eq!(wire.answer(false).await.status, 100);
    wire.send("12345").await;
    assert_eq!(wire.answer(false).await.status, 201);
    assert_eq!(wire.get("/v1/kv/a").await.body, b"12345");
    member.stop().await;
}

#[tokio::test]
async fn a_body_in_pieces_is_one_value_and_counts_as_it_comes() {
    let member = start().await;
    let mut wire = member.wire().await;
    let chunked = "PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
    wire.send(chunked).await;
    wire.send("3\r\nabc\r\n").await;
    wire.send("2\r\nde\r\n0\r\n\r\n").await;
    assert_eq!(wire.answer(false).await.status, 201);
    assert_eq!(wire.get("/v1/kv/a").await.body, b"abcde");
    wire.send(chunked).await;
    let piece = [b"4000\r\n".as_slice(), &[b'x'; 0x4000], b"\r\n"].concat();
    for _ in 0..5 {
        wire.try_send(&piece).await;
    }
    wire.try_send(b"0\r\n\r\n").await;
    assert_eq!(wire.answer(false).await.code(), "too-large");
    assert_eq!(member.wire().await.get("/v1/kv/a").await.body, b"abcde");
    member.stop().await;
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up_and_one_that_breaks_off_writes_nothing() {
    let options = EdgeOptions { body_timeout: Duration::from_millis(20), ..EdgeOptions::default() };
    let member = start_with(options).await;
    let mut wire = member.wire().await;
    let head = "PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\n";
    wire.send(head).await;
    wire.send("12").await;
    let refused = wire.answer(false).await;
    assert_eq!((refused.status, refused.code().as_str()), (408, "slow-request"));
    assert_eq!(refused.problem().outcome, Some(crate::api::WriteOutcome::NotApplied));
    assert!(wire.is_closed().await);
    let mut wire = member.wire().await;
    wire.send(head).await;
    wire.send("12").await;
    drop(wire);
    assert_eq!(member.wire().await.get("/v1/kv/a").await.status, 404);
    member.stop().await;
}

#[tokio::test]
async fn a_refused_request_with_a_body_leaves_a_usable_connection() {
    let member = start().await;
    let mut wire = member.wire().await;
    for _ in 0..3 {
        assert_eq!(wire.put("/v1/kv/%zz", &[b'x'; 30_000]).await.code(), "bad-key");
    }
    assert_eq!(wire.put("/v1/kv/a", b"x").await.status, 201);
    member.stop().await;
}
