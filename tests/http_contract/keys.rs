//! Paths and keys: every byte string from 1 to 4096 bytes is a key, and nothing is normalised.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::Single;
use super::support::http::{self, Connection, Request, encode};

/// The key of a JSON item, whichever way it is written.
fn key_of(item: &serde_json::Value) -> Vec<u8> {
    match (item["key"].as_str(), item["key_base64"].as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(text)) => {
            let bytes = BASE64.decode(text).expect("standard base64 with padding");
            assert!(std::str::from_utf8(&bytes).is_err(), "{item} could be text");
            bytes
        }
        _ => panic!("an item needs one kind of key: {item}"),
    }
}

#[test]
fn a_path_means_its_bytes_and_nothing_else() {
    let member = Single::start();
    // The path as it is sent, and the key that it must mean.
    let cases: &[(&str, &[u8])] = &[
        ("a", b"a"),
        ("a/b", b"a/b"),
        ("a//b", b"a//b"),
        ("/", b"/"),
        ("//", b"//"),
        ("/leading", b"/leading"),
        ("trailing/", b"trailing/"),
        ("trailing", b"trailing"),
        (".", b"."),
        ("..", b".."),
        ("../../etc/passwd", b"../../etc/passwd"),
        ("a/../b", b"a/../b"),
        ("a/./b", b"a/./b"),
        ("%2E%2E/x", b"../x"),
        ("%00", b"\0"),
        ("nul%00inside", b"nul\0inside"),
        ("%FF%FE", b"\xff\xfe"),
        ("%c3%a9", "é".as_bytes()),
        ("%0D%0A", b"\r\n"),
        ("%20", b" "),
        ("a+b", b"a+b"),
        ("%25", b"%"),
        ("%2541", b"%41"),
        ("%3Frev=1", b"?rev=1"),
        ("%23", b"#"),
        ("a:b@c!$&'()*,;=~", b"a:b@c!$&'()*,;=~"),
        ("v1/keys", b"v1/keys"),
        ("%F0%9F%9A%A3", "🚣".as_bytes()),
    ];
    for (path, key) in cases {
        let value = format!("value of {path}");
        http::put(member.at, &format!("/v1/kv/{path}"), &value).expect(201);
        assert_eq!(http::get(member.at, &format!("/v1/kv/{path}")).expect(200).text(), value);
        // Fully encoded it is the same key.
        assert_eq!(http::get(member.at, &format!("/v1/kv/{}", encode(key))).expect(200).text(), value);
        let item = Request::new("GET", &format!("/v1/kv/{path}")).header("Accept", "application/json").send(member.at);
        assert_eq!(key_of(&item.expect(200).json()), *key, "the key that {path} means");
    }
    let mut expected: Vec<Vec<u8>> = cases.iter().map(|(_, key)| key.to_vec()).collect();
    expected.sort();
    let found: Vec<Vec<u8>> = member.items().iter().map(key_of).collect();
    assert_eq!(found, expected, "the keys in the order of their bytes");
    for (path, _) in cases {
        assert_eq!(http::delete(member.at, &format!("/v1/kv/{path}")).expect(200).json()["deleted"], 1, "{path}");
    }
    assert!(member.items().is_empty());
    member.assert_serves();
}

#[test]
fn upper_and_lower_hexadecimal_digits_are_the_same_and_slashes_may_be_encoded() {
    let member = Single::start();
    member.put("/v1/kv/%2f%ab", "x");
    for same in ["%2F%AB", "%2f%Ab", "/%aB"] {
        assert_eq!(http::get(member.at, &format!("/v1/kv/{same}")).expect(200).text(), "x");
    }
    member.put("/v1/kv/dir%2Ffile", "y");
    assert_eq!(http::get(member.at, "/v1/kv/dir/file").expect(200).text(), "y");
    assert_eq!(member.items().len(), 2);
}

#[test]
fn every_single_byte_is_a_key() {
    let member = Single::start();
    let mut connection = Connection::open(member.at).unwrap();
    for byte in 0..=255_u8 {
        let request = Request::new("PUT", &format!("/v1/kv/%{byte:02x}")).body([byte]);
        request.try_send_on(&mut connection).unwrap().expect(201);
    }
    let keys: Vec<Vec<u8>> = member.items().iter().map(key_of).collect();
    assert_eq!(keys, (0..=255_u8).map(|byte| vec![byte]).collect::<Vec<_>>());
    let answer = http::get(member.at, "/v1/kv/%00").expect(200);
    assert_eq!(answer.body, [0]);
}

#[test]
fn bad_percent_encoding_is_refused_by_name() {
    let member = Single::start();
    for path in ["%", "a%", "%4", "%zz", "%4z", "%z4", "%%", "a%2", "%+1", "%u0041"] {
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            let mut request = Request::new(method, &format!("/v1/kv/{path}"));
            if method == "PUT" {
                request = request.body("x");
            }
            let answer = request.send(member.at);
            if method == "HEAD" {
                answer.expect(400);
            } else {
                let problem = answer.expect_problem(400, "bad-key");
                assert_eq!(problem["retry"], "never");
                assert_eq!(problem["field"], "key", "{problem}");
            }
        }
    }
    assert!(member.items().is_empty());
    member.assert_serves();
}

#[test]
fn a_key_has_1_to_4096_bytes() {
    let member = Single::start();
    http::put(member.at, "/v1/kv/", "x").expect_problem(400, "bad-key");
    http::get(member.at, "/v1/kv/").expect_problem(400, "bad-key");
    http::delete(member.at, "/v1/kv/").expect_problem(400, "bad-key");

    let longest = vec![b'k'; 4096];
    let plain = String::from_utf8(longest.clone()).unwrap();
    http::put(member.at, &format!("/v1/kv/{plain}"), "long").expect(201);
    // The limit is on the key and not on the path, which is three times as long here.
    let binary = vec![0xfe; 4096];
    http::put(member.at, &format!("/v1/kv/{}", encode(&binary)), "binary").expect(201);
    assert_eq!(http::get(member.at, &format!("/v1/kv/{}", encode(&binary))).expect(200).text(), "binary");
    assert_eq!(member.items().len(), 2);

    for path in [format!("{plain}k"), format!("{}k", encode(&binary)), "x".repeat(20_000)] {
        http::put(member.at, &format!("/v1/kv/{path}"), "x").expect_problem(400, "bad-key");
        http::get(member.at, &format!("/v1/kv/{path}")).expect_problem(400, "bad-key");
    }
    let problem = http::get(member.at, &format!("/v1/keys?prefix={plain}kk")).expect_problem(400, "bad-parameter");
    assert_eq!(problem["field"], "prefix");
    assert_eq!(member.items().len(), 2);
}

#[test]
fn what_is_no_path_of_ours_is_not_found() {
    let member = Single::start();
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v1/kv",
        "/v1/keys/",
        "/v1/keysx",
        "/v1/unknown",
        "/v2/kv/a",
        "//v1/kv/a",
        "/V1/kv/a",
        "/health",
        "/health/",
        "/health/none",
        "/metrics/",
        "/v1/status/",
        "/..",
        "/v1/../v1/status",
        "/%761/kv/a",
    ] {
        let problem = http::get(member.at, path).expect_problem(404, "unknown-path");
        assert_eq!(problem["retry"], "never", "{path}");
    }
    assert!(member.items().is_empty());
}

#[test]
fn a_method_that_a_path_does_not_have_is_refused_with_those_it_has() {
    let member = Single::start();
    member.put("/v1/kv/a", "x");
    let cases = [
        ("POST", "/v1/kv/a", &["GET", "HEAD", "PUT", "DELETE"][..]),
        ("PATCH", "/v1/kv/a", &["GET", "HEAD", "PUT", "DELETE"]),
        ("BREW", "/v1/kv/a", &["GET", "HEAD", "PUT", "DELETE"]),
        ("PUT", "/v1/keys", &["GET", "DELETE"]),
        ("POST", "/v1/keys", &["GET", "DELETE"]),
        ("DELETE", "/v1/status", &["GET"]),
        ("PUT", "/v1/members", &["GET", "POST"]),
        ("POST", "/v1/members/n1", &["GET", "PATCH", "DELETE"]),
        ("PUT", "/v1/role", &["GET"]),
        ("GET", "/v1/leader", &["POST"]),
        ("POST", "/metrics", &["GET"]),
        ("POST", "/health/ready", &["GET", "HEAD"]),
    ];
    for (method, path, allowed) in cases {
        let answer = Request::new(method, path).body("{}").send(member.at);
        let allow: Vec<String> = answer.must_have("allow").split(',').map(|name| name.trim().to_string()).collect();
        for name in allowed {
            assert!(allow.iter().any(|a| a == name), "{method} {path}: {allow:?} without {name}");
        }
        assert!(!allow.iter().any(|a| a == method), "{method} {path} is refused and allowed");
        answer.expect_problem(405, "method-not-allowed");
    }
    assert_eq!(http::get(member.at, "/v1/kv/a").expect(200).text(), "x");
}
