//! Hostile and ordinary requests, read.

use hyper::header::{HeaderName, HeaderValue};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::*;

const MAX_KEY_BYTES: usize = 4096;

fn key(raw: &str) -> Result<Vec<u8>, ProblemCode> {
    key_from_path(raw, MAX_KEY_BYTES).map(|key| key.to_vec()).map_err(|failure| code(&failure))
}

fn code(failure: &Failure) -> ProblemCode {
    failure.problem().code().unwrap()
}

/// The field that a failure names, and its code.
fn named<T: std::fmt::Debug>(result: Result<T, Failure>) -> (ProblemCode, String) {
    let failure = result.unwrap_err();
    (code(&failure), failure.problem().field.clone().unwrap())
}

/// The seed of this run: from the environment, or new. Shown when a test fails.
fn seed() -> u64 {
    let seed = std::env::var("LIFEBOAT_TEST_SEED").ok().map_or_else(rand::random, |text| text.parse().unwrap());
    println!("LIFEBOAT_TEST_SEED={seed}");
    seed
}

#[test]
fn a_key_is_the_decoded_bytes_of_the_path_and_nothing_is_normalised() {
    for (raw, expected) in [
        ("a", &b"a"[..]),
        ("a/b/", b"a/b/"),
        ("/", b"/"),
        ("//a//b", b"//a//b"),
        ("..", b".."),
        ("../../v1/status", b"../../v1/status"),
        ("./a", b"./a"),
        ("%2e%2E%2f", b"../"),
        ("a%2Fb", b"a/b"),
        ("%00", b"\0"),
        ("%ff%FE", b"\xff\xfe"),
        ("%25", b"%"),
        ("%2525", b"%25"),
        ("a+b", b"a+b"),
        ("%20", b" "),
        ("\u{e9}", "\u{e9}".as_bytes()),
        ("a;b=c:d@e!$&'()*,", b"a;b=c:d@e!$&'()*,"),
    ] {
        assert_eq!(key(raw).as_deref(), Ok(expected), "{raw}");
    }
}

#[test]
fn a_bad_percent_sign_or_length_is_a_bad_key() {
    for raw in ["", "%", "%2", "a%", "a%f", "%zz", "%2g", "%g2", "%%41", "%+1", "% 1", "%2\u{e9}"] {
        assert_eq!(key(raw), Err(ProblemCode::BadKey), "{raw}");
    }
    assert_eq!(key(&"a".repeat(4096)).map(|key| key.len()), Ok(4096));
    assert_eq!(key(&"%61".repeat(4096)).map(|key| key.len()), Ok(4096));
    assert_eq!(key(&"a".repeat(4097)), Err(ProblemCode::BadKey));
    assert_eq!(key(&"%61".repeat(4097)), Err(ProblemCode::BadKey));
    assert_eq!(key(&"a".repeat(60_000)), Err(ProblemCode::BadKey));
}

#[test]
fn any_key_comes_back_however_it_is_encoded() {
    let mut rng = StdRng::seed_from_u64(seed());
    for _ in 0..2000 {
        let mut bytes = vec![0u8; rng.random_range(1..40)];
        rng.fill_bytes(&mut bytes);
        let raw: String = bytes
            .iter()
            .map(|byte| match byte {
                b'a'..=b'z' | b'/' if rng.random() => char::from(*byte).to_string(),
                _ if rng.random() => format!("%{byte:02x}"),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        assert_eq!(key(&raw), Ok(bytes), "{raw}");
    }
}

const KNOWN: &[&str] = &["prefix", "limit", "keys_only", "consistency", "max_lag"];

fn parameters(query: &str) -> Result<Parameters<'_>, Failure> {
    Parameters::parse(Some(query), KNOWN)
}

#[test]
fn what_is_unknown_twice_or_without_a_value_is_refused_and_named() {
    let bad = |name: &str| (ProblemCode::BadParameter, name.to_owned());
    assert_eq!(named(parameters("limit=1&limit=2")), bad("limit"));
    assert_eq!(named(parameters("limit=1&limit=1")), bad("limit"));
    assert_eq!(named(parameters("prefix=&prefix=")), bad("prefix"));
    assert_eq!(named(parameters("Limit=1")), bad("Limit"));
    assert_eq!(named(parameters("li%6Dit=1")), bad("li%6Dit"));
    assert_eq!(named(parameters("since=1")), bad("since"));
    assert_eq!(named(parameters("prefix")), bad("prefix"));
    assert_eq!(named(parameters("=1")), bad(""));
    assert_eq!(named(parameters("limit=1&x")), bad("x"));
    assert_eq!(named(Parameters::none(Some("a=1"))), bad("a"));
    for query in [None, Some(""), Some("&"), Some("&&")] {
        assert!(Parameters::none(query).is_ok(), "{query:?}");
    }
}

#[test]
fn values_of_parameters_are_bytes_and_a_plus_is_a_plus() {
    let bytes = |query| parameters(query).unwrap().bytes("prefix", 8);
    assert_eq!(bytes("limit=1").unwrap(), None);
    assert_eq!(bytes("prefix=").unwrap().unwrap(), "");
    assert_eq!(bytes("prefix=a+b%20c").unwrap().unwrap(), "a+b c");
    assert_eq!(bytes("prefix=a=b").unwrap().unwrap(), "a=b");
    assert_eq!(bytes("prefix=%FF%00%26").unwrap().unwrap(), &b"\xff\0&"[..]);
    assert_eq!(bytes("prefix=12345678").unwrap().unwrap(), "12345678");
    for query in ["prefix=123456789", "prefix=%", "prefix=%1", "prefix=%xx"] {
        assert_eq!(named(bytes(query)), (ProblemCode::BadParameter, "prefix".to_owned()), "{query}");
    }
}

#[test]
fn numbers_switches_and_durations_are_exact() {
    let number = |text: &str| parameters(&format!("limit={text}")).unwrap().number("limit");
    assert_eq!(number("0").unwrap(), Some(0));
    assert_eq!(number("18446744073709551615").unwrap(), Some(u64::MAX));
    for text in
        ["", "+5", "-5", "5 ", "0x5", "5.0", "1e3", "18446744073709551616", "\u{665}", "%35", "99999999999999999999999"]
    {
        assert!(number(text).is_err(), "{text}");
    }
    let switch = |text: &str| parameters(&format!("keys_only={text}")).unwrap().switch("keys_only");
    assert!(switch("true").unwrap());
    assert!(!switch("false").unwrap());
    for text in ["", "1", "yes", "TRUE"] {
        assert!(switch(text).is_err(), "{text}");
    }
    let duration = |text: &str| parameters(&format!("max_lag={text}")).unwrap().duration("max_lag");
    assert_eq!(duration("0s").unwrap(), Some(Duration::ZERO));
    assert_eq!(duration("1500ms").unwrap(), Some(Duration::from_millis(1500)));
    assert_eq!(duration("5s").unwrap(), Some(Duration::from_secs(5)));
    assert_eq!(duration("2m").unwrap(), Some(Duration::from_secs(120)));
    assert_eq!(duration("1h").unwrap(), Some(Duration::from_secs(3600)));
    for text in
        ["", "5", "s", "-1s", "+1s", "1.5s", "5S", "5s ", "1d", "18446744073709551615h", "18446744073709551616ms"]
    {
        assert!(duration(text).is_err(), "{text}");
    }
}

#[test]
fn only_a_stale_read_may_have_a_largest_lag() {
    let consistency = |query| parameters(query).unwrap().consistency();
    assert_eq!(consistency("").unwrap(), Consistency::Linearizable);
    assert_eq!(consistency("consistency=linearizable").unwrap(), Consistency::Linearizable);
    assert_eq!(consistency("consistency=stale").unwrap(), Consistency::Stale { max_lag: None });
    let five = Some(Duration::from_secs(5));
    assert_eq!(consistency("consistency=stale&max_lag=5s").unwrap(), Consistency::Stale { max_lag: five });
    let bad = |name: &str| (ProblemCode::BadParameter, name.to_owned());
    assert_eq!(named(consistency("max_lag=5s")), bad("max_lag"));
    assert_eq!(named(consistency("max_lag=5s&consistency=linearizable")), bad("max_lag"));
    assert_eq!(named(consistency("consistency=eventual")), bad("consistency"));
    assert_eq!(named(consistency("consistency=Stale")), bad("consistency"));
}

fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    map
}

fn put_condition(name: &'static str, value: &str) -> Result<Condition, Failure> {
    let map = map(&[(name, value)]);
    let guards = RequestHeaders::parse(&map)?.put_guards(&Bytes::from_static(b"k"))?;
    assert_eq!(guards.len(), 1);
    assert_eq!(guards[0].key, "k");
    Ok(guards[0].condition.clone())
}

#[test]
fn conditions_of_writes_are_stars_and_lists_of_revisions() {
    assert_eq!(put_condition("if-none-match", "*").unwrap(), Condition::Absent);
    assert_eq!(put_condition("if-match", " * ").unwrap(), Condition::Exists);
    assert_eq!(put_condition("if-match", "\"42\"").unwrap(), Condition::ModRevisionIn(vec![42]));
    assert_eq!(put_condition("if-match", "\"1\",\"2\" ,\t\"0\"").unwrap(), Condition::ModRevisionIn(vec![1, 2, 0]));
    assert_eq!(put_condition("if-none-match", "\"42\"").unwrap(), Condition::ModRevisionNotIn(vec![42]));
    let largest = "\"18446744073709551615\"";
    assert_eq!(put_condition("if-match", largest).unwrap(), Condition::ModRevisionIn(vec![u64::MAX]));
}

#[test]
fn a_condition_that_cannot_be_meant_is_refused_not_guessed() {
    let too_many = vec!["\"1\""; 65].join(",");
    for value in [
        "",
        " ",
        "42",
        "\"42",
        "42\"",
        "\"",
        "\"\"",
        "W/\"42\"",
        "w/\"42\"",
        "\"1\",W/\"2\"",
        "\"abc\"",
        "\"*\"",
        "\"042\"",
        "\"+42\"",
        "\"-1\"",
        "\" 42\"",
        "\"4 2\"",
        "\"18446744073709551616\"",
        "*,\"1\"",
        "\"1\",*",
        "**",
        "\"1\" \"2\"",
        "\"1\"\"2\"",
        "\"1\",",
        ",\"1\"",
        "\"1\",,\"2\"",
        "\"1\";\"2\"",
        "\u{e9}",
        "\"\u{e9}\"",
        &too_many,
    ] {
        for name in ["if-match", "if-none-match"] {
            assert_eq!(named(put_condition(name, value)), (ProblemCode::BadHeader, name.to_owned()), "{value}");
        }
    }
}

#[test]
fn both_conditions_of_a_put_have_to_hold() {
    let map = map(&[("if-none-match", "\"7\""), ("if-match", "*")]);
    let guards = RequestHeaders::parse(&map).unwrap().put_guards(&Bytes::from_static(b"k")).unwrap();
    let conditions: Vec<_> = guards.into_iter().map(|guard| guard.condition).collect();
    assert_eq!(conditions, [Condition::Exists, Condition::ModRevisionNotIn(vec![7])]);
}

#[test]
fn headers_that_would_change_the_meaning_are_refused() {
    let refused = |headers: &[(&'static str, &str)]| {
        let map = map(headers);
        let key = Bytes::from_static(b"k");
        named(RequestHeaders::parse(&map).and_then(|headers| headers.put_guards(&key)))
    };
    for (name, value) in [
        ("if-unmodified-since", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("if-modified-since", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("content-encoding", "gzip"),
        ("content-range", "bytes 0-1/2"),
        ("lifeboat-timeline", "1"),
        ("lifeboat-timeline", "zz000000000000000000000000000000"),
    ] {
        assert_eq!(refused(&[(name, value)]), (ProblemCode::BadHeader, name.to_owned()), "{name}: {value}");
    }
    let timeline = "000102030405060708090a0b0c0d0e0f";
    for (name, value) in
        [("if-match", "\"1\""), ("if-none-match", "*"), ("lifeboat-timeline", timeline), ("accept", "*/*")]
    {
        let twice = [(name, value), ("x-other", "1"), (name, value)];
        assert_eq!(refused(&twice), (ProblemCode::BadHeader, name.to_owned()));
    }
    let map = map(&[
        ("content-encoding", "identity"),
        ("x-unknown", "1"),
        ("x-unknown", "2"),
        ("lifeboat-timeline", timeline),
    ]);
    let headers = RequestHeaders::parse(&map).unwrap();
    assert_eq!(headers.timeline.unwrap().to_string(), timeline);
    assert_eq!(headers.put_guards(&Bytes::from_static(b"k")).unwrap(), []);
}

#[test]
fn a_deletion_takes_if_match_alone_and_many_keys_take_no_condition() {
    let key = Bytes::from_static(b"k");
    let none_match = map(&[("if-none-match", "*")]);
    let headers = RequestHeaders::parse(&none_match).unwrap();
    assert_eq!(named(headers.delete_guards(&key)).1, "if-none-match");
    assert_eq!(named(headers.no_conditions()).1, "if-none-match");
    let matching = map(&[("if-match", "\"3\"")]);
    let headers = RequestHeaders::parse(&matching).unwrap();
    assert_eq!(headers.delete_guards(&key).unwrap()[0].condition, Condition::ModRevisionIn(vec![3]));
    assert_eq!(named(headers.no_conditions()).1, "if-match");
    assert_eq!(named(headers.known_revisions()).1, "if-match");
}

#[test]
fn a_reader_knows_only_what_it_names_strongly() {
    let known = |value: &str| {
        let map = map(&[("if-none-match", value)]);
        RequestHeaders::parse(&map).unwrap().known_revisions()
    };
    assert!(known("*").unwrap().contains(7));
    assert!(known("\"6\", \"7\"").unwrap().contains(7));
    for value in ["\"8\"", "W/\"7\"", "\"abc\"", "\"07\"", "\"7 \""] {
        // A space is no character of an ETag; the others are ETags, of something else.
        match known(value) {
            Ok(known) => assert!(!known.contains(7), "{value}"),
            Err(failure) => assert_eq!((code(&failure), value), (ProblemCode::BadHeader, "\"7 \"")),
        }
    }
    assert!(known("7").is_err());
    let none = HeaderMap::new();
    assert!(!RequestHeaders::parse(&none).unwrap().known_revisions().unwrap().contains(0));
}

#[test]
fn the_form_with_the_highest_weight_is_chosen_and_the_default_is_never_refused() {
    let form = |text: &str| {
        let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
        accepted_form(Some(&value), "application/octet-stream", &[Form::Json])
    };
    for text in [
        "",
        "*/*",
        "text/html",
        "application/x-ndjson",
        "application/json;q=0",
        "application/json;q=x",
        "application/json; q=0.5, application/octet-stream",
        "application/octet-stream, application/json",
        "\u{e9}",
        "application/jsonx",
        "application/json;q=2",
        "application/json;q=NaN",
    ] {
        assert_eq!(form(text), Form::Default, "{text}");
    }
    for text in [
        "application/json",
        "Application/JSON",
        "text/html, application/json;charset=utf-8;q=0.1, */*",
        "application/octet-stream;q=0.5,application/json",
        "application/json, application/octet-stream",
    ] {
        assert_eq!(form(text), Form::Json, "{text}");
    }
    assert_eq!(accepted_form(None, "application/json", &[Form::Ndjson]), Form::Default);
    let ndjson = HeaderValue::from_static("application/x-ndjson, application/json;q=0.9");
    assert_eq!(accepted_form(Some(&ndjson), "application/json", &[Form::Ndjson]), Form::Ndjson);
    let json = HeaderValue::from_static("application/json");
    assert_eq!(accepted_form(Some(&json), "application/json", &[Form::Ndjson]), Form::Default);
}

#[test]
fn no_input_panics() {
    let mut rng = StdRng::seed_from_u64(seed());
    let pieces =
        ["%", "%2", "%ff", "\"", "W/", ",", "*", "42", "=", "&", "limit", "prefix", " ", "+", "\u{e9}", ";q=", "/"];
    for _ in 0..5000 {
        let text: String = (0..rng.random_range(0..12)).map(|_| pieces[rng.random_range(0..pieces.len())]).collect();
        let _key_or_refusal = key_from_path(&text, 8);
        if let Ok(parameters) = parameters(&text) {
            let _any = (parameters.bytes("prefix", 8), parameters.number("limit"), parameters.consistency());
        }
        let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
        let mut map = HeaderMap::new();
        map.insert("if-match", value.clone());
        map.insert("if-none-match", value.clone());
        map.insert("accept", value);
        let headers = RequestHeaders::parse(&map).unwrap();
        let _guards_or_refusal = headers.put_guards(&Bytes::new());
        let _form = accepted_form(headers.accept, "application/json", &[Form::Ndjson]);
    }
}
