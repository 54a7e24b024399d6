//! Bytes that no well-meaning client sends, connections that break, and clients that dawdle.
//!
//! After each of them nothing half-sent may have been applied, and the member must serve others.

use std::io;
use std::time::{Duration, Instant};

use super::Single;
use super::support::cluster::Plan;
use super::support::http::{self, Answer, Connection, Request};
use super::support::{PATIENCE, wait_for};

/// Sends bytes on a connection of their own and gives the answer, or none when the member just closed.
fn raw(member: &Single, bytes: &[u8]) -> Option<Answer> {
    let mut connection = Connection::open(member.at).unwrap();
    // The member may close before it has read everything.
    let _ = connection.send(bytes);
    match connection.read_answer(false) {
        Ok(answer) => Some(answer),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("the member neither answers nor closes"),
        Err(_) => None,
    }
}

/// Reads until the member closes or answers; fails when it does neither in time.
fn closed_or_refused(connection: &mut Connection, statuses: &[u16]) {
    match connection.read_answer(false) {
        Ok(answer) => assert!(statuses.contains(&answer.status), "expected one of {statuses:?}: {answer}"),
        Err(error) => {
            let kind = error.kind();
            let closed = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
            assert!(closed.contains(&kind), "neither an answer nor an end: {error}");
        }
    }
}

#[test]
fn what_is_not_http_is_refused() {
    let member = Single::start();
    // Bytes that are hardly HTTP: refused, or just closed.
    let noise: &[&[u8]] = &[
        b"\r\n\r\n\r\n\r\n",
        b"hello\r\n\r\n",
        b"PUT\r\n\r\n",
        b"PUT /v1/kv/a\r\n\r\n",
        b"PUT /v1/kv/a HTTP/9.9\r\nContent-Length: 1\r\n\r\nx",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00\x00\x00\x00\x00\x00\x00\x00\r\n\r\n",
    ];
    for case in noise {
        let mut connection = Connection::open(member.at).unwrap();
        let _ = connection.send(case);
        let _ = connection.finish_sending();
        closed_or_refused(&mut connection, &[400, 404, 405, 501, 505]);
    }
    // Requests with a fault: whoever sent one is told, because a closed connection looks like a write of unknown fate.
    let faulty = [
        "PUT /v1/kv/with space HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
        "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: one\r\n\r\nx",
        "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nx",
        "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nx",
        "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nBad Header: x\r\nContent-Length: 1\r\n\r\nx",
        "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\n: x\r\nContent-Length: 1\r\n\r\nx",
        "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n",
        "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx\r\n0\r\n\r\n",
        "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
        "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nx",
    ];
    let mut unanswered = Vec::new();
    for case in faulty {
        match raw(&member, case.as_bytes()) {
            Some(answer) => assert!([400, 413, 501].contains(&answer.status), "{case}: {answer}"),
            None => unanswered.push(case),
        }
    }
    assert!(member.items().is_empty(), "{:?}", member.items());
    member.assert_serves();
    assert!(unanswered.is_empty(), "closed without a word: {unanswered:#?}");
}

#[test]
fn two_lengths_for_one_body_do_not_smuggle_a_request() {
    let member = Single::start();
    // Who believes the length takes the rest for a second request, who believes the chunks does not.
    let inner = "PUT /v1/kv/smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
    let chunked = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    let outer = format!(
        "PUT /v1/kv/outer HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"
    );
    let answer = raw(&member, outer.as_bytes());
    assert!(answer.is_none_or(|answer| [200, 201, 400].contains(&answer.status)));
    http::get(member.at, "/v1/kv/smuggled").expect_problem(404, "not-found");
    member.assert_serves();
}

#[test]
fn a_header_section_that_is_too_large_is_refused() {
    let member = Single::start();
    let huge_value = "x".repeat(1 << 20);
    let one_large = format!("GET /v1/status HTTP/1.1\r\nHost: a\r\nX-Large: {huge_value}\r\n\r\n");
    let many: String = (0..5000).map(|n| format!("X-Header-{n}: some value that takes room\r\n")).collect();
    let many_small = format!("GET /v1/status HTTP/1.1\r\nHost: a\r\n{many}\r\n");
    for bytes in [one_large, many_small] {
        let mut connection = Connection::open(member.at).unwrap();
        let _ = connection.send(bytes.as_bytes());
        closed_or_refused(&mut connection, &[431]);
    }
    // What the member reads to its end gets its answer for certain.
    let many: String = (0..300).map(|n| format!("X-{n}: v\r\n")).collect();
    let answer = raw(&member, format!("GET /v1/status HTTP/1.1\r\nHost: a\r\n{many}\r\n").as_bytes());
    answer.expect("an answer to 300 headers").expect(431);
    let path = "p".repeat(1 << 20);
    let mut connection = Connection::open(member.at).unwrap();
    let _ = connection.send(format!("GET /v1/kv/{path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    closed_or_refused(&mut connection, &[400, 414, 431]);
    member.assert_serves();
}

#[test]
fn a_value_has_a_limit_and_one_over_it_is_refused_before_it_travels() {
    let member = Single::start();
    let largest = vec![7; 1 << 20];
    member.put("/v1/kv/largest", &largest);
    assert_eq!(http::get(member.at, "/v1/kv/largest").expect(200).body, largest);

    http::put(member.at, "/v1/kv/over", vec![7; (1 << 20) + 1]).expect_problem(413, "too-large");
    // The length alone is enough: no body is sent at all.
    let mut connection = Connection::open(member.at).unwrap();
    connection.send(b"PUT /v1/kv/over HTTP/1.1\r\nHost: a\r\nContent-Length: 1099511627776\r\n\r\n").unwrap();
    connection.read_answer(false).unwrap().expect_problem(413, "too-large");
    // Without a length it is cut when it passes the limit.
    let mut connection = Connection::open(member.at).unwrap();
    connection.send(b"PUT /v1/kv/over HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let chunk = [b"10000\r\n".as_slice(), &[7; 0x10000], b"\r\n"].concat();
    for _ in 0..40 {
        if connection.send(&chunk).is_err() {
            break;
        }
    }
    closed_or_refused(&mut connection, &[413]);
    http::get(member.at, "/v1/kv/over").expect_problem(404, "not-found");
    member.assert_serves();
}

#[test]
fn the_limit_of_a_value_is_a_setting() {
    let member = Single::with(Plan::new(1, 0).flag("--max-value-bytes", "100"));
    member.put("/v1/kv/a", [7; 100]);
    http::put(member.at, "/v1/kv/b", [7; 101]).expect_problem(413, "too-large");
    assert_eq!(member.items().len(), 1);
}

#[test]
fn a_body_in_chunks_is_a_body() {
    let member = Single::start();
    let head = "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer =
        raw(&member, format!("{head}1\r\na\r\n10;name=value\r\n0123456789abcdef\r\n2\r\n\r\n\r\n0\r\n\r\n").as_bytes());
    answer.unwrap().expect(201);
    assert_eq!(http::get(member.at, "/v1/kv/a").expect(200).text(), "a0123456789abcdef\r\n");
    let answer = raw(&member, format!("{head}0\r\nTrailer: ignored\r\n\r\n").as_bytes());
    answer.unwrap().expect(200);
    assert_eq!(http::get(member.at, "/v1/kv/a").expect(200).body, b"");
    // No body and no length is the empty value too, as HTTP has it.
    let answer = raw(&member, b"PUT /v1/kv/none HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(answer.status == 201 || answer.status == 411, "{answer}");
}

#[test]
fn a_body_that_breaks_off_is_not_applied() {
    let member = Single::start();
    member.put("/v1/kv/a", "before");
    let length = b"PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nonly this".as_slice();
    let chunks = b"PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n".as_slice();
    let in_chunk = b"PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf".as_slice();
    for bytes in [length, chunks, in_chunk] {
        // Closed for good.
        let mut connection = Connection::open(member.at).unwrap();
        connection.send(bytes).unwrap();
        drop(connection);
        // Closed in one direction: an answer could still come, and must not be a success.
        let mut connection = Connection::open(member.at).unwrap();
        connection.send(bytes).unwrap();
        connection.finish_sending().unwrap();
        closed_or_refused(&mut connection, &[400, 408]);
    }
    // The member has dealt with both kinds of ends, and only the first write and this one took effect.
    let revision = member.put("/v1/kv/b", "after");
    let answer = http::get(member.at, "/v1/kv/a").expect(200);
    assert_eq!(answer.text(), "before");
    assert_eq!(answer.etag_revision(), Some(revision - 1));
}

#[test]
fn requests_in_one_packet_are_answered_in_turn() {
    let member = Single::start();
    let mut bytes = Vec::new();
    for number in 0..50 {
        bytes.extend(Request::new("PUT", &format!("/v1/kv/{}", number % 5)).body(number.to_string()).bytes());
        bytes.extend(Request::new("GET", &format!("/v1/kv/{}", number % 5)).bytes());
    }
    let mut connection = Connection::open(member.at).unwrap();
    connection.send(&bytes).unwrap();
    for number in 0..50 {
        let written = connection.read_answer(false).unwrap();
        assert!(written.status == 200 || written.status == 201, "{written}");
        let read = connection.read_answer(false).unwrap().expect(200);
        assert_eq!(read.text(), number.to_string());
        assert_eq!(read.etag_revision(), written.etag_revision());
    }
}

#[test]
fn a_refusal_leaves_the_connection_usable_or_closes_it() {
    let member = Single::start();
    let refused = [
        Request::new("GET", "/v1/kv/none"),
        Request::new("GET", "/v1/kv/a?foo=1"),
        Request::new("POST", "/v1/kv/a").body("a body that nobody wants"),
        Request::new("PUT", "/v1/kv/%zz").body("another"),
        Request::new("PUT", "/v1/kv/a").header("If-Match", "\"1\"").body("x"),
        Request::new("GET", "/nowhere"),
        Request::new("GET", "/v1/status").body("a GET with a body"),
    ];
    for request in refused {
        let mut connection = Connection::open(member.at).unwrap();
        let answer = request.try_send_on(&mut connection).unwrap();
        match Request::new("GET", "/v1/role").try_send_on(&mut connection) {
            Ok(next) => assert_eq!(next.expect(200).json()["name"], "n1"),
            Err(_) => assert_eq!(answer.header("connection"), Some("close"), "{answer}"),
        }
    }
}

#[test]
fn a_client_may_ask_before_it_sends() {
    let member = Single::start();
    let mut connection = Connection::open(member.at).unwrap();
    connection.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").unwrap();
    let go_on = connection.read_any_answer(false).unwrap();
    assert_eq!(go_on.status, 100);
    connection.send(b"value").unwrap();
    connection.read_answer(false).unwrap().expect(201);
    assert_eq!(http::get(member.at, "/v1/kv/a").expect(200).text(), "value");
    // Refused without ever asking for the body.
    let mut connection = Connection::open(member.at).unwrap();
    connection
        .send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
        .unwrap();
    assert_eq!(connection.read_any_answer(false).unwrap().status, 413);
}

#[test]
fn http_1_0_is_understood() {
    let member = Single::start();
    member.put("/v1/kv/a", "x");
    let mut connection = Connection::open(member.at).unwrap();
    connection.send(b"GET /v1/kv/a HTTP/1.0\r\n\r\n").unwrap();
    let text = String::from_utf8(connection.read_to_end().unwrap()).unwrap();
    assert!(text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.ends_with("\r\n\r\nx"), "{text}");
}

/// Sends a byte now and then until the member has had enough, while others are served at once.
fn dawdle(member: &Single, head: &[u8], drip: &[u8], statuses: &[u16]) {
    let mut connection = Connection::open_within(member.at, Duration::from_millis(200)).unwrap();
    connection.send(head).unwrap();
    let start = Instant::now();
    let (mut asked, mut served) = (false, false);
    loop {
        assert!(start.elapsed() < PATIENCE, "the member waits for ever");
        match connection.read_answer(false) {
            Ok(answer) => {
                assert!(statuses.contains(&answer.status), "expected one of {statuses:?}: {answer}");
                break;
            }
            // Nothing yet: the next byte, and somebody else's request meanwhile.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // It is still borne with, and the other one has its answer.
                served |= asked;
                if connection.send(drip).is_err() {
                    break;
                }
                http::get(member.at, "/v1/role").expect(200);
                asked = true;
            }
            Err(_) => break,
        }
    }
    assert!(served, "a slow client keeps others waiting until it is cut");
}

#[test]
fn a_slow_body_is_cut() {
    let member = Single::with(Plan::new(1, 0).flag("--request-timeout-ms", "2s"));
    let head = b"PUT /v1/kv/slow HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n";
    dawdle(&member, head, b"x", &[408]);
    let head = b"PUT /v1/kv/slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    dawdle(&member, head, b"1\r\nx\r\n", &[408]);
    http::get(member.at, "/v1/kv/slow").expect_problem(404, "not-found");
    member.assert_serves();
}

#[test]
fn a_slow_header_section_is_cut() {
    let member = Single::with(Plan::new(1, 0).flag("--request-timeout-ms", "2s"));
    dawdle(&member, b"GET /v1/status HTTP/1.1\r\nHost: a\r\nX-Slow: ", b"x", &[408]);
    member.assert_serves();
}

#[test]
fn many_idle_connections_keep_nobody_out() {
    let member = Single::start();
    let mut idle: Vec<Connection> = (0..300).map(|_| Connection::open(member.at).unwrap()).collect();
    for connection in idle.iter_mut().step_by(3) {
        connection.send(b"GET /v1/kv/a HTTP/1.1\r\n").unwrap();
    }
    member.assert_serves();
    // Those that had said nothing yet may still speak.
    let answer = Request::new("GET", "/v1/role").try_send_on(&mut idle[1]).unwrap();
    answer.expect(200);
    drop(idle);
    wait_for("the member to go on", || {
        let answer = http::get(member.at, "/health/ready");
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
    member.assert_serves();
}
