//! Who may use whom inside the crate: dependencies point down, and each foreign framework stays in its place.
//!
//! The two tables below are the rule; people edit them when they mean to change it. The test reads every file under
//! `src/`, finds each path that leads to another module of the crate or to a listed crate, wherever it stands (in a
//! `use`, in a signature, in the middle of an expression), and compares. Comments, strings and test code do not count.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// A module of the crate, and the modules that it may use. From the top down.
const MODULES: &[(&str, &[&str])] = &[
    ("main", &["lifeboat", "cli", "config"]),
    ("cli", &["api", "client", "config", "http", "metrics", "model", "node", "raft", "files"]),
    ("http", &["api", "config", "metrics", "model", "node", "raft", "store"]),
    ("node", &["api", "config", "crash_points", "files", "index", "metrics", "model", "raft", "store", "wal"]),
    ("raft", &["api", "files", "metrics", "model", "store", "wal"]),
    ("store", &["files", "history", "index", "model"]),
    ("history", &["files", "model"]),
    ("index", &["files", "model"]),
    ("wal", &["files", "model"]),
    ("client", &["api"]),
    ("config", &["model"]),
    ("api", &["model"]),
    ("metrics", &[]),
    ("model", &[]),
    ("files", &[]),
    ("crash_points", &[]),
];

/// A foreign crate that is kept in its place, and the modules that may use it.
const CRATES: &[(&str, &[&str])] = &[
    ("axum", &["http"]),
    ("hyper", &["http", "client"]),
    ("hyper_util", &["http", "client"]),
    ("http_body_util", &["http", "client"]),
    ("openraft", &["raft", "node"]),
    ("sled", &["index"]),
    ("rustix", &["files", "cli", "node"]),
    ("reqwest", &["raft", "node", "cli", "backup"]),
    ("clap", &["cli", "main"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("hdrhistogram", &["cli"]),
    ("toml", &["cli", "config"]),
    ("prometheus_client", &["metrics"]),
    ("schemars", &["api", "http", "model"]),
    // What is applied must not depend on a scheduler or on luck. (The wal draws the ids of its segments; the simulated
    // disk in `files` draws, from a seed, what a power cut leaves.)
    ("tokio", &["main", "cli", "http", "node", "raft", "client", "backup", "crash_points"]),
    ("rand", &["main", "cli", "http", "node", "raft", "client", "backup", "model", "wal", "files"]),
];

/// A use that the tables do not allow.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    file: PathBuf,
    line: usize,
    user: String,
    used: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {} may not use {}", self.file.display(), self.line, self.user, self.used)
    }
}

#[test]
fn every_import_follows_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 10, "only {} files under {}", files.len(), root.display());
    let mut violations = BTreeSet::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        violations.extend(check(file.strip_prefix(&root).unwrap(), &text));
    }
    let list: Vec<String> = violations.iter().map(Violation::to_string).collect();
    assert!(list.is_empty(), "{} uses are against the table in tests/layering.rs:\n{}", list.len(), list.join("\n"));
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The module path of a file under `src/`: `store/read.rs` is `[store, read]`, `store/mod.rs` is `[store]`.
fn module_of(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib") {
        parts.pop();
    }
    parts
}

/// Everything in one file that the tables do not allow.
fn check(file: &Path, text: &str) -> Vec<Violation> {
    let module = module_of(file);
    // The root of the crate names all modules. A file of tests may use what it likes.
    let Some(user) = module.first() else { return Vec::new() };
    if module.iter().any(|part| part == "tests" || part.ends_with("_tests")) {
        return Vec::new();
    }
    let mut violations = Vec::new();
    let mut refuse = |line: usize, used: &str| {
        violations.push(Violation { file: file.into(), line, user: user.clone(), used: used.into() });
    };
    let Some((_, allowed)) = MODULES.iter().find(|(name, _)| name == user) else {
        refuse(1, "anything: it is not in the table of modules");
        return violations;
    };
    let known = |name: &str| MODULES.iter().any(|(module, _)| *module == name);
    for Use { line, path } in uses(text, &module) {
        match path {
            Used::Module(name) if name == *user || !known(&name) => {}
            Used::Module(name) if allowed.contains(&name.as_str()) => {}
            Used::Module(name) => refuse(line, &name),
            Used::Crate(name) => {
                let place = CRATES.iter().find(|(listed, _)| *listed == name);
                if place.is_some_and(|(_, users)| !users.contains(&user.as_str())) {
                    refuse(line, &name);
                }
            }
        }
    }
    violations
}

#[derive(Debug, PartialEq, Eq)]
enum Used {
    /// A top-level module of this crate.
    Module(String),
    /// The first part of some other path.
    Crate(String),
}

struct Use {
    line: usize,
    path: Used,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Path,
    Mark(char),
}

/// Cuts a source file into words and marks, without comments, strings, characters and lifetimes.
fn tokens(text: &str) -> Vec<(usize, Token)> {
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut line) = (0, 1);
    let mut found = Vec::new();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    while at < chars.len() {
        let next = chars.get(at + 1).copied().unwrap_or('\0');
        match chars[at] {
            '\n' => line += 1,
            '/' if next == '/' => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
                continue;
            }
            '/' if next == '*' => {
                let mut depth = 0;
                while at < chars.len() {
                    match (chars[at], chars.get(at + 1)) {
                        ('/', Some('*')) => (depth, at) = (depth + 1, at + 1),
                        ('*', Some('/')) => (depth, at) = (depth - 1, at + 1),
                        ('\n', _) => line += 1,
                        _ => {}
                    }
                    at += 1;
                    if depth == 0 {
                        break;
                    }
                }
                continue;
            }
            '"' => {
                at += 1;
                while at < chars.len() && chars[at] != '"' {
                    line += usize::from(chars[at] == '\n');
                    at += if chars[at] == '\\' {
                        line += usize::from(chars.get(at + 1) == Some(&'\n'));
                        2
                    } else {
                        1
                    };
                }
            }
            'r' if raw_string_end(&chars, at).is_some() => {
                let end = raw_string_end(&chars, at).unwrap();
                line += chars[at..end].iter().filter(|c| **c == '\n').count();
                at = end;
                continue;
            }
            // A character: '\n', 'x'. Anything else behind an apostrophe is a lifetime, whose name does no harm.
            '\'' if next == '\\' => {
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
            }
            '\'' if chars.get(at + 2) == Some(&'\'') => at += 2,
            ':' if next == ':' => {
                found.push((line, Token::Path));
                at += 1;
            }
            c if is_word(c) => {
                let start = at;
                while at < chars.len() && is_word(chars[at]) {
                    at += 1;
                }
                found.push((line, Token::Word(chars[start..at].iter().collect())));
                continue;
            }
            c if !c.is_whitespace() => found.push((line, Token::Mark(c))),
            _ => {}
        }
        at += 1;
    }
    found
}

/// Where a raw string that begins here ends, if one does.
fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    if start > 0 && (chars[start - 1].is_alphanumeric() && chars[start - 1] != 'b' || chars[start - 1] == '_') {
        return None;
    }
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(start + 1 + hashes) != Some(&'"') {
        return None;
    }
    let closing: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = start + 2 + hashes;
    let length = chars[body..].windows(closing.len()).position(|window| window == closing)?;
    Some(body + length + closing.len())
}

/// All paths of a file that lead out of it.
fn uses(text: &str, module: &[String]) -> Vec<Use> {
    let tokens = tokens(text);
    let word = |at: usize| match tokens.get(at) {
        Some((_, Token::Word(word))) => Some(word.as_str()),
        _ => None,
    };
    let is = |at: usize, token: &Token| tokens.get(at).is_some_and(|(_, found)| found == token);
    let mut found = Vec::new();
    // How deep in braces we are, and at which depths an inline module was opened.
    let mut depth = 0;
    let mut inline: Vec<usize> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if let Some(end) = test_code(&tokens, at) {
            at = end;
            continue;
        }
        match &tokens[at].1 {
            Token::Mark('{') => depth += 1,
            Token::Mark('}') => {
                depth -= 1;
                while inline.last().is_some_and(|opened| *opened > depth) {
                    inline.pop();
                }
            }
            Token::Word(keyword) if keyword == "mod" && word(at + 1).is_some() && is(at + 2, &Token::Mark('{')) => {
                inline.push(depth + 1);
            }
            Token::Word(first) if is(at + 1, &Token::Path) && begins_path(&tokens, at) => {
                let mut here = at;
                let mut base: Option<usize> = match first.as_str() {
                    "crate" => Some(0),
                    "self" | "Self" => Some(usize::MAX),
                    "super" => Some(module.len() + inline.len()),
                    _ => None,
                };
                if first == "super" {
                    // Each `super` goes one up; those behind the first are taken together with it.
                    let mut up = 1;
                    while word(here + 2) == Some("super") && is(here + 3, &Token::Path) {
                        (here, up) = (here + 2, up + 1);
                    }
                    base = base.map(|length| length.saturating_sub(up));
                }
                match base {
                    None => found.push(Use { line: tokens[at].0, path: Used::Crate(first.clone()) }),
                    Some(0) => {
                        for (line, name) in names_behind(&tokens, here + 2) {
                            found.push(Use { line, path: Used::Module(name) });
                        }
                    }
                    // Inside of the module itself.
                    Some(_) => {}
                }
                at = here;
            }
            // `use sled;` and `extern crate sled;`
            Token::Word(keyword) if keyword == "use" || keyword == "crate" => {
                if let (Some(name), true) = (word(at + 1), is(at + 2, &Token::Mark(';')) || word(at + 2) == Some("as"))
                {
                    found.push(Use { line: tokens[at].0, path: Used::Crate(name.to_string()) });
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Whether the word here is the first of its path: no `::` before it, or one that itself begins the path.
fn begins_path(tokens: &[(usize, Token)], at: usize) -> bool {
    if at == 0 || tokens[at - 1].1 != Token::Path {
        return true;
    }
    match at.checked_sub(2).map(|before| &tokens[before].1) {
        Some(Token::Word(word)) => ["use", "as", "in", "dyn", "impl", "for", "mut", "return"].contains(&word.as_str()),
        Some(Token::Mark(mark)) => *mark != '>',
        Some(Token::Path) | None => true,
    }
}

/// The names that stand directly behind a `::`: one, or those of a group.
fn names_behind(tokens: &[(usize, Token)], at: usize) -> Vec<(usize, String)> {
    match tokens.get(at) {
        Some((line, Token::Word(name))) => vec![(*line, name.clone())],
        Some((_, Token::Mark('{'))) => {
            let mut names = Vec::new();
            let mut depth = 0;
            let mut expects_name = true;
            for (line, token) in &tokens[at..] {
                match token {
                    Token::Mark('{') => depth += 1,
                    Token::Mark('}') => depth -= 1,
                    Token::Mark(',') if depth == 1 => expects_name = true,
                    Token::Word(name) if depth == 1 && expects_name => {
                        names.push((*line, name.clone()));
                        expects_name = false;
                    }
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
            names
        }
        _ => Vec::new(),
    }
}

/// If `#[cfg(test)]` stands here: the place behind the item that it belongs to.
fn test_code(tokens: &[(usize, Token)], at: usize) -> Option<usize> {
    let pattern = [
        Token::Mark('#'),
        Token::Mark('['),
        Token::Word("cfg".into()),
        Token::Mark('('),
        Token::Word("test".into()),
        Token::Mark(')'),
        Token::Mark(']'),
    ];
    let begins = tokens.len() >= at + pattern.len() && pattern.iter().zip(&tokens[at..]).all(|(p, (_, t))| p == t);
    if !begins {
        return None;
    }
    let mut depth = 0;
    for (offset, (_, token)) in tokens[at + pattern.len()..].iter().enumerate() {
        let here = at + pattern.len() + offset;
        match token {
            Token::Mark('{') => depth += 1,
            Token::Mark('}') => {
                depth -= 1;
                if depth == 0 && !matches!(tokens.get(here + 1), Some((_, Token::Mark(';')))) {
                    return Some(here + 1);
                }
            }
            Token::Mark(';') if depth == 0 => return Some(here + 1),
            _ => {}
        }
    }
    Some(tokens.len())
}

/// The scanner on trial: what it finds in a file of this name.
fn found(file: &str, text: &str) -> Vec<String> {
    check(Path::new(file), text).into_iter().map(|violation| violation.used).collect()
}

#[test]
fn the_table_is_sound() {
    for (module, allowed) in MODULES {
        let own = MODULES.iter().position(|(name, _)| name == module).unwrap();
        for used in *allowed {
            let place = MODULES.iter().position(|(name, _)| name == used);
            if let Some(place) = place {
                assert!(place > own, "{module} may use {used}, which stands above it");
            }
        }
    }
}

#[test]
fn a_planted_violation_is_found() {
    assert_eq!(found("wal/mod.rs", "use crate::store::Store;"), ["store"]);
    assert_eq!(found("store/read.rs", "use crate::{files::Disk, node::{Node, x}, wal};"), ["node", "wal"]);
    assert_eq!(found("history/seal.rs", "fn f(store: &crate::store::Store) {}"), ["store"]);
    assert_eq!(found("index/mod.rs", "fn f() { let x = super::wal::open(); }"), ["wal"]);
    assert_eq!(found("index/deep/er.rs", "use super::super::super::raft::Log;"), ["raft"]);
    assert_eq!(found("index/mod.rs", "mod inner { use super::super::http::Server; }"), ["http"]);
    assert_eq!(found("store/mod.rs", "pub use ::openraft::Raft;"), ["openraft"]);
    assert_eq!(found("store/mod.rs", "fn f() -> sled::Db { panic!() }"), ["sled"]);
    assert_eq!(found("node/mod.rs", "use axum;"), ["axum"]);
    assert_eq!(found("node/mod.rs", "extern crate sled as s;"), ["sled"]);
    assert_eq!(found("api/mod.rs", "use crate::model::Revision;\nuse crate::node::Node;"), ["node"]);
    assert_eq!(found("client/mod.rs", "use crate::\n    // why\n    model::Revision;"), ["model"]);
    assert_eq!(found("unheard/of.rs", "").len(), 1);
}

#[test]
fn what_is_allowed_or_is_no_code_is_left_alone() {
    let nothing: [&str; 0] = [];
    assert_eq!(found("store/mod.rs", "use crate::history::History; use crate::index::{Index, sled_index};"), nothing);
    assert_eq!(found("store/read.rs", "use super::apply; use super::super::store::x; use self::y::z;"), nothing);
    assert_eq!(found("store/mod.rs", "// use crate::node::Node;\n/* crate::http::x /* nested */ axum::y */"), nothing);
    assert_eq!(found("store/mod.rs", "let s = \"crate::node::x \\\" axum::y\"; let r = r#\"sled::\"x\"#;"), nothing);
    assert_eq!(found("store/mod.rs", "let c = '\"'; let d = '\\''; fn f<'a>(x: &'a str) {}"), nothing);
    assert_eq!(found("wal/mod.rs", "#[cfg(test)]\nmod tests { use crate::node::Node; fn f() { { } } }"), nothing);
    assert_eq!(found("wal/mod.rs", "#[cfg(test)]\nuse crate::node::Node;"), nothing);
    assert_eq!(found("wal/tests.rs", "use crate::node::Node;"), nothing);
    assert_eq!(found("lib.rs", "pub mod node; pub use crate::node::Node;"), nothing);
    assert_eq!(found("node/mod.rs", "use openraft::Raft; use crate::raft::Log;"), nothing);
    // What follows test code counts again.
    assert_eq!(found("wal/mod.rs", "#[cfg(test)]\nmod tests;\nuse crate::node::Node;"), ["node"]);
    assert_eq!(found("wal/mod.rs", "#[cfg(test)]\nuse crate::x::{a, b};\nuse crate::node::Node;"), ["node"]);
}
