//! What is said of an operation: the words of the table in [`operations`](super::operations).

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::words::ALWAYS;
use crate::api::ProblemCode;
use crate::http::problem::answer;

/// Gives the schema of a wire type.
pub type Form = fn(&mut SchemaGenerator) -> Schema;

/// The schema of a wire type.
pub const fn form<T: JsonSchema>() -> Form {
    SchemaGenerator::subschema_for::<T>
}

/// One operation. A `get` stands for HEAD as well.
pub struct Operation {
    /// Its name in clients that are made of the document.
    pub id: &'static str,
    /// In lower case.
    pub method: &'static str,
    /// With `{…}` for what varies.
    pub path: &'static str,
    /// One of [`super::operations::TAGS`].
    pub tag: &'static str,
    /// In one line.
    pub summary: &'static str,
    /// What has to be known besides; may be empty.
    pub about: &'static str,
    /// Its query parameters, all of them.
    pub query: &'static [Parameter],
    /// The request headers that mean something to it, but for `Accept` and what every operation takes.
    pub headers: &'static [Parameter],
    /// What it takes.
    pub body: Option<Body>,
    /// What it answers when all is well.
    pub replies: &'static [Reply],
    /// What it answers otherwise.
    pub problems: &'static [&'static [ProblemCode]],
}

impl Operation {
    /// The problems by their statuses, each once.
    pub fn problems(&self) -> BTreeMap<u16, Vec<ProblemCode>> {
        let mut by_status: BTreeMap<u16, Vec<ProblemCode>> = BTreeMap::new();
        for code in ALWAYS.iter().chain(self.problems.iter().copied().flatten()) {
            let codes = by_status.entry(answer(*code).0.as_u16()).or_default();
            if !codes.contains(code) {
                codes.push(*code);
            }
        }
        by_status
    }
}

/// A query parameter or a request header. None is required.
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// What it means.
    pub what: &'static str,
}

/// What the value of a parameter looks like.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A whole number within bounds.
    Number { min: u64, max: Option<u64>, default: Option<u64> },
    /// `true` or `false`.
    Switch,
    /// As in `5s`, within bounds.
    Duration { min: Option<&'static str>, max: Option<&'static str>, default: Option<&'static str> },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Percent-encoded bytes of a key.
    KeyBytes,
    /// `*` or a list of ETags.
    ETags,
    /// Visible ASCII characters.
    Token,
}

/// What an operation takes.
#[derive(Clone, Copy)]
pub enum Body {
    /// Raw bytes.
    Value,
    /// A JSON object.
    Json(Form),
}

/// A reply that is no problem.
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// What it says.
    pub what: &'static str,
    /// Its headers, but for those of every reply.
    pub headers: &'static [&'static str],
    /// Its forms; none: it has no body.
    pub contents: &'static [Content],
}

/// A form of a reply's body.
pub enum Content {
    /// One JSON document.
    Json(Form),
    /// Raw bytes.
    Bytes,
    /// Text of this media type.
    Text(&'static str),
    /// A stream of this media type, each of whose lines (or events' data) is one of these.
    Stream(&'static str, &'static [Form]),
}
