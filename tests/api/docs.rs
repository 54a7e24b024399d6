//! The examples of `docs/http-api.md`, pasted into a shell against a real `lifeboat dev`, in the order of the page.
//!
//! In a `console` block a line that begins with `$ ` is a command (one that ends with `\`, or inside of quotes, goes on in
//! the next line), and what follows it is all that it prints, where
//!
//! - `…` in a line stands for whatever comes there, at least one character,
//! - a line of `…` alone stands for any lines, also none,
//! - a line that begins with spaces goes on where the line before it ended.
//!
//! Revisions are written as they come. For that the store is brought to the revision before the page's first one by
//! writes that leave nothing behind.

use std::collections::BTreeSet;

use crate::support;
use crate::support::http::Request;
use crate::support::tour::Dev;
use crate::support::{http, wait_for};

/// The revision that the first write of the page makes.
const FIRST_REVISION: u64 = 40;
const ANYTHING: &str = "…";

/// One command of the page.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    /// The heading that it stands below.
    heading: String,
    command: String,
    /// The lines that it prints.
    expected: Vec<String>,
}

/// The examples of a page.
fn examples(page: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut heading = "";
    let mut inside = false;
    let mut unfinished = false;
    for line in page.lines() {
        match line {
            "```console" => inside = true,
            line if line.starts_with("```") => inside = false,
            line if !inside => {
                if line.starts_with('#') {
                    heading = line.trim_start_matches('#').trim();
                }
            }
            line => {
                let begun = line.strip_prefix("$ ");
                let text = begun.unwrap_or(line);
                let goes_on = text.strip_suffix('\\');
                if begun.is_some() {
                    examples.push(Example { heading: heading.into(), command: String::new(), expected: Vec::new() });
                }
                let example = examples.last_mut().expect("a block begins with a command");
                if begun.is_some() || unfinished {
                    example.command += goes_on.unwrap_or(text).trim_start();
                    let in_quotes = example.command.matches('\'').count() % 2 == 1;
                    unfinished = goes_on.is_some() || in_quotes;
                } else if let (Some(last), true) = (example.expected.last_mut(), line.starts_with(' ')) {
                    last.push_str(line.trim_start());
                } else {
                    example.expected.push(line.to_owned());
                }
            }
        }
    }
    assert!(!inside && !unfinished, "the page ends inside of a block");
    for example in &mut examples {
        trim_end(&mut example.expected);
    }
    examples
}

/// Drops empty lines at the end: an answer need not end with a line's end, and a blank line makes blocks readable.
fn trim_end(lines: &mut Vec<String>) {
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
}

/// Whether what was printed is what was expected.
fn is_as_written(expected: &[String], printed: &[String]) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((line, rest)) if line == ANYTHING => {
            (0..=printed.len()).any(|skipped| is_as_written(rest, &printed[skipped..]))
        }
        Some((line, rest)) => printed.split_first().is_some_and(|(first, others)| {
            let parts: Vec<&str> = line.split(ANYTHING).collect();
            line_matches(&parts, first) && is_as_written(rest, others)
        }),
    }
}

/// Whether a line consists of these parts with something between each two.
fn line_matches(parts: &[&str], line: &str) -> bool {
    let Some(rest) = line.strip_prefix(parts[0]) else { return false };
    match &parts[1..] {
        [] => rest.is_empty(),
        others => {
            let begins = rest.char_indices().skip(1).map(|(at, _)| at).chain([rest.len()]);
            !rest.is_empty() && begins.into_iter().any(|at| line_matches(others, &rest[at..]))
        }
    }
}

#[test]
fn answers_are_compared_as_the_page_says() {
    let page = "# API\n\n## GET\n\n```console\n$ curl -i \\\n  'a\n  b'\nHTTP 200\n…\netag: \"4\"\n\n{\"id\":\"…\",\n  \"n\":1}\n\n$ curl b\nx\n```\n```json\n$ no\n```\n";
    let read = examples(page);
    let first = ["HTTP 200", "…", "etag: \"4\"", "", "{\"id\":\"…\",\"n\":1}"].map(str::to_owned);
    assert_eq!(
        read,
        [
            Example { heading: "GET".into(), command: "curl -i 'ab'".into(), expected: first.to_vec() },
            Example { heading: "GET".into(), command: "curl b".into(), expected: vec!["x".into()] },
        ]
    );
    let matches = |expected: &[&str], printed: &[&str]| {
        let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        is_as_written(&owned(expected), &owned(printed))
    };
    assert!(matches(&["a", "…", "b"], &["a", "b"]) && matches(&["a", "…", "b"], &["a", "x", "y", "b"]));
    assert!(!matches(&["a", "…", "b"], &["a", "b", "c"]) && !matches(&["a"], &["a", "b"]) && !matches(&["a"], &[]));
    assert!(matches(&["x…y…z"], &["x1y2yz"]) && matches(&["…"], &[]) && matches(&["x…"], &["x1"]));
    assert!(!matches(&["x…y"], &["xy"]) && !matches(&["x…y"], &["x1yz"]) && !matches(&["x…"], &["x"]));
}

/// The method and the path that a command asks for.
fn asked(command: &str) -> Option<(&str, &str)> {
    let (_, url) = command.split_once("http://127.0.0.1:74")?;
    let path = &url[2..url.find(['\'', '"', ' ', '?']).unwrap_or(url.len())];
    let method = match command.split_once("-X ") {
        Some((_, rest)) => rest.split(' ').next().unwrap(),
        None if command.contains(" -I ") => "HEAD",
        None if command.contains(" -d ") => "POST",
        None => "GET",
    };
    Some((method, path))
}

/// Brings a new cluster to the revision before the page's first one, without leaving a key.
fn prepare(dev: &Dev) {
    let member = dev.client(0);
    // The members agree on their feature level first, which is a revision of its own; so are the events of those who join.
    wait_for("the feature level", || {
        let status = http::get(member, "/v1/status").json();
        if status["feature_level"] == 3 { Ok(()) } else { Err(status.to_string()) }
    });
    support::wait_cluster_events(member, &[("member-joined", 3), ("member-votes", 2)]);
    // Whoever follows from now on makes no event by it.
    wait_for("all members to follow", || {
        let answer = http::get(member, "/v1/replication").json();
        let states = answer["members"].as_array().ok_or_else(|| answer.to_string())?;
        let followers = states.iter().filter(|one| one["leader"] == false).collect::<Vec<_>>();
        let follow = followers.iter().all(|one| one["state"] == "SYNCHRONIZED");
        if followers.len() == 3 && follow { Ok(()) } else { Err(answer.to_string()) }
    });
    // A keyed request makes a revision, because it is remembered, and this one does nothing else.
    for number in 0.. {
        let request = Request::new("DELETE", "/v1/kv/none").header("Idempotency-Key", &format!("prepare-{number}"));
        let revision: u64 = request.send(member).expect(200).must_have("lifeboat-revision").parse().unwrap();
        assert!(revision < FIRST_REVISION, "a new cluster has {revision} revisions already");
        if revision + 1 == FIRST_REVISION {
            break;
        }
    }
}

#[test]
fn the_examples_of_the_page_are_what_a_cluster_answers() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/http-api.md")).unwrap();
    let examples = examples(&page);
    let dev = Dev::start();
    prepare(&dev);
    let document = http::get(dev.client(0), "/v1/openapi.json").json();
    let printed = dev.run(examples.iter().map(|example| example.command.as_str()), false);
    assert_eq!(printed.outputs.len(), examples.len(), "{}", printed.errors);
    let mut wrong = String::new();
    for (example, output) in examples.iter().zip(&printed.outputs) {
        let mut lines: Vec<String> = output.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect();
        trim_end(&mut lines);
        if !is_as_written(&example.expected, &lines) {
            let (expected, lines) = (example.expected.join("\n"), lines.join("\n"));
            wrong += &format!("--- {}\n$ {}\n{lines}\n... and not\n{expected}\n\n", example.heading, example.command);
        }
    }
    assert!(wrong.is_empty(), "the page is not true any more:\n{wrong}{}", printed.errors);

    let shown: Vec<(&str, &str)> = examples.iter().filter_map(|example| asked(&example.command)).collect();
    let mut missing = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        // The head of a reply is shown once, for a key.
        let methods = item.as_object().unwrap().keys().filter(|method| *method != "parameters" && *method != "head");
        for method in methods.map(|method| method.to_uppercase()) {
            if !shown.iter().any(|(how, where_to)| *how == method && is_path(path, where_to)) {
                missing.insert(format!("{method} {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "the page has no example of {missing:?}");
    dev.stop();
}

/// Whether a path is one of those that a template stands for.
fn is_path(template: &str, path: &str) -> bool {
    if let Some(prefix) = template.strip_suffix("{key}") {
        return path.starts_with(prefix);
    }
    let (template, path): (Vec<&str>, Vec<&str>) = (template.split('/').collect(), path.split('/').collect());
    template.len() == path.len() && template.iter().zip(&path).all(|(t, p)| t == p || t.starts_with('{'))
}
