//! What a request asks for, read strictly: the key in its path, its query, its conditions, what it accepts.
//!
//! Invariants: a key is the percent-decoded bytes of the path and nothing else; nothing is normalised. What is given
//! twice, is unknown as a parameter, or is malformed is refused and named, never guessed at: a condition that is
//! misread would overwrite what it was meant to protect. Nothing here panics on any input.
//!
//! It does not read bodies (see `body`) and knows no statuses (see `problem`). Proven by `extract/tests.rs`.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};

use super::headers;
use super::problem::Failure;
use crate::api::ProblemCode;
use crate::model::{Condition, Guard, Revision, TimelineId};

#[cfg(test)]
mod tests;

/// More ETags than this in one header are refused.
const MAX_ETAGS: usize = 64;
/// More parameters than this are known to no resource.
const MAX_PARAMETERS: usize = 10;

/// The key in the raw path behind `/v1/kv/`.
pub fn key_from_path(raw: &str, max_key_bytes: usize) -> Result<Bytes, Failure> {
    let bad = |detail: String| Failure::new(ProblemCode::BadKey, detail).field("key");
    if raw.is_empty() {
        return Err(bad("a key has at least one byte".to_owned()));
    }
    // Decoding makes a key at most three times shorter: what is longer than that need not be decoded.
    let decoded = if raw.len() > max_key_bytes.saturating_mul(3) { None } else { Some(percent_decode(raw)) };
    match decoded {
        Some(Some(key)) if key.len() <= max_key_bytes => Ok(into_bytes(key)),
        Some(None) => Err(bad("a percent sign is not followed by two hexadecimal digits".to_owned())),
        _ => Err(bad(format!("a key has at most {max_key_bytes} bytes"))),
    }
}

/// Decodes `%XX`; none when a percent sign is not followed by two hexadecimal digits.
fn percent_decode(raw: &str) -> Option<Cow<'_, [u8]>> {
    let bytes = raw.as_bytes();
    let Some(first) = bytes.iter().position(|byte| *byte == b'%') else {
        return Some(Cow::Borrowed(bytes));
    };
    let mut decoded = Vec::with_capacity(bytes.len());
    decoded.extend_from_slice(&bytes[..first]);
    let mut rest = &bytes[first..];
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            decoded.push(byte);
            rest = tail;
            continue;
        }
        let [high, low, tail @ ..] = tail else { return None };
        decoded.push(hex_digit(*high)? << 4 | hex_digit(*low)?);
        rest = tail;
    }
    Some(Cow::Owned(decoded))
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

fn into_bytes(bytes: Cow<'_, [u8]>) -> Bytes {
    match bytes {
        Cow::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
        Cow::Owned(bytes) => bytes.into(),
    }
}

/// A number of decimal digits and nothing else; `"+5"` is none.
pub fn parse_number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A duration: whole `ms`, `s`, `m` or `h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let millis_each = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    parse_number(number)?.checked_mul(millis_each).map(Duration::from_millis)
}

/// The parameters of a query, still encoded, each at most once and none that the resource does not know.
#[derive(Debug)]
pub struct Parameters<'q> {
    names: &'static [&'static str],
    values: [Option<&'q str>; MAX_PARAMETERS],
}

/// The parameters that say how current a read has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// It sees every write that was acknowledged before it began.
    Linearizable,
    /// It sees what this member has.
    Stale {
        /// How old that may be at most.
        max_lag: Option<Duration>,
    },
}

/// Where a write has to be before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On the disks of a majority of the voters.
    Majority,
    /// On that of a mirror in another site besides, if that does not take too long.
    Mirrored,
}

impl<'q> Parameters<'q> {
    /// Reads a query, of which `names` are known.
    pub fn parse(query: Option<&'q str>, names: &'static [&'static str]) -> Result<Parameters<'q>, Failure> {
        assert!(names.len() <= MAX_PARAMETERS, "raise MAX_PARAMETERS");
        let mut values = [None; MAX_PARAMETERS];
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = match pair.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (pair, None),
            };
            let Some(at) = names.iter().position(|known| *known == name) else {
                let detail = if names.is_empty() {
                    "this path takes no parameters".to_owned()
                } else {
                    format!("unknown parameter; known here: {}", names.join(", "))
                };
                return Err(Failure::parameter(name, detail));
            };
            let Some(value) = value else {
                return Err(Failure::parameter(name, "the parameter has no value"));
            };
            if values[at].replace(value).is_some() {
                return Err(Failure::parameter(name, "the parameter is given twice"));
            }
        }
        Ok(Parameters { names, values })
    }

    /// Refuses any parameter.
    pub fn none(query: Option<&'q str>) -> Result<(), Failure> {
        Parameters::parse(query, &[]).map(|_| ())
    }

    /// The encoded value of a parameter.
    pub fn raw(&self, name: &str) -> Option<&'q str> {
        let at = self.names.iter().position(|known| *known == name)?;
        self.values[at]
    }

    /// Percent-decoded bytes, at most so many.
    pub fn bytes(&self, name: &str, max_bytes: usize) -> Result<Option<Bytes>, Failure> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        match percent_decode(raw) {
            Some(bytes) if bytes.len() <= max_bytes => Ok(Some(into_bytes(bytes))),
            Some(_) => Err(Failure::parameter(name, format!("longer than {max_bytes} bytes"))),
            None => Err(Failure::parameter(name, "a percent sign is not followed by two hexadecimal digits")),
        }
    }

    /// A whole number.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        self.parsed(name, parse_number, "not a whole number below 2^64")
    }

    /// `true` or `false`; false when it is not given.
    pub fn switch(&self, name: &str) -> Result<bool, Failure> {
        let parse = |text: &str| match text {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        };
        Ok(self.parsed(name, parse, "neither true nor false")?.unwrap_or(false))
    }

    /// A duration such as `5s`.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, Failure> {
        self.parsed(name, parse_duration, "not a whole number of ms, s, m or h, as in 5s")
    }

    fn parsed<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        complaint: &str,
    ) -> Result<Option<T>, Failure> {
        match self.raw(name) {
            None => Ok(None),
            Some(raw) => parse(raw).map(Some).ok_or_else(|| Failure::parameter(name, complaint)),
        }
    }

    /// `durability`.
    pub fn durability(&self) -> Result<Durability, Failure> {
        let parse = |text: &str| match text {
            "majority" => Some(Durability::Majority),
            "mirrored" => Some(Durability::Mirrored),
            _ => None,
        };
        Ok(self.parsed("durability", parse, "neither majority nor mirrored")?.unwrap_or(Durability::Majority))
    }

    /// `consistency` and `max_lag`.
    pub fn consistency(&self) -> Result<Consistency, Failure> {
        let max_lag = self.duration("max_lag")?;
        match (self.raw("consistency"), max_lag) {
            (Some("stale"), max_lag) => Ok(Consistency::Stale { max_lag }),
            (Some("linearizable") | None, None) => Ok(Consistency::Linearizable),
            (Some("linearizable") | None, Some(_)) => {
                Err(Failure::parameter("max_lag", "only for consistency=stale: other reads do not lag"))
            }
            (Some(_), _) => Err(Failure::parameter("consistency", "neither linearizable nor stale")),
        }
    }
}

/// The headers of a request that mean something to this API, each at most once.
#[derive(Debug, Default)]
pub struct RequestHeaders<'h> {
    /// `If-Match`.
    pub if_match: Option<&'h HeaderValue>,
    /// `If-None-Match`.
    pub if_none_match: Option<&'h HeaderValue>,
    /// `Accept`.
    pub accept: Option<&'h HeaderValue>,
    /// `Idempotency-Key`.
    pub idempotency_key: Option<&'h HeaderValue>,
    /// `Lifeboat-Timeline`.
    pub timeline: Option<TimelineId>,
    content_encoding: Option<&'h HeaderValue>,
    content_range: bool,
    if_modified_since: bool,
}

impl<'h> RequestHeaders<'h> {
    /// Reads the headers in one pass. Those that would change what the request means and are not understood are
    /// refused; others are ignored.
    pub fn parse(map: &'h HeaderMap) -> Result<RequestHeaders<'h>, Failure> {
        let mut read = RequestHeaders::default();
        for (name, value) in map {
            let slot = if *name == header::ACCEPT {
                &mut read.accept
            } else if *name == header::IF_MATCH {
                &mut read.if_match
            } else if *name == header::IF_NONE_MATCH {
                &mut read.if_none_match
            } else if *name == headers::IDEMPOTENCY_KEY {
                &mut read.idempotency_key
            } else if *name == header::CONTENT_ENCODING {
                &mut read.content_encoding
            } else if *name == headers::TIMELINE {
                let id = value.to_str().ok().and_then(|text| text.parse().ok());
                let id = id.ok_or_else(|| Failure::header(name.as_str(), "not 32 hexadecimal digits"))?;
                if read.timeline.replace(id).is_some() {
                    return Err(given_twice(name.as_str()));
                }
                continue;
            } else if *name == header::IF_UNMODIFIED_SINCE {
                return Err(Failure::header(name.as_str(), "not supported, and ignoring it could do harm"));
            } else {
                read.content_range |= *name == header::CONTENT_RANGE;
                read.if_modified_since |= *name == header::IF_MODIFIED_SINCE;
                continue;
            };
            if slot.replace(value).is_some() {
                return Err(given_twice(name.as_str()));
            }
        }
        Ok(read)
    }

    /// The guards of a put.
    pub fn put_guards(&self, key: &Bytes) -> Result<Vec<Guard>, Failure> {
        if self.content_range {
            return Err(Failure::header(header::CONTENT_RANGE.as_str(), "a value is written whole"));
        }
        if self.content_encoding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity")) {
            let detail = "values are kept as they come, and would be given back without this header";
            return Err(Failure::header(header::CONTENT_ENCODING.as_str(), detail));
        }
        let mut guards = self.if_match_guard(key)?;
        if let Some(value) = self.if_none_match {
            let condition = match strong_revisions(header::IF_NONE_MATCH.as_str(), value)? {
                None => Condition::Absent,
                Some(revisions) => Condition::ModRevisionNotIn(revisions),
            };
            guards.push(Guard { key: key.clone(), condition });
        }
        Ok(guards)
    }

    /// The guards of a deletion.
    pub fn delete_guards(&self, key: &Bytes) -> Result<Vec<Guard>, Failure> {
        if self.if_none_match.is_some() {
            return Err(Failure::header(header::IF_NONE_MATCH.as_str(), "a deletion takes If-Match"));
        }
        self.if_match_guard(key)
    }

    fn if_match_guard(&self, key: &Bytes) -> Result<Vec<Guard>, Failure> {
        if self.if_modified_since {
            let detail = "a write takes If-Match and If-None-Match";
            return Err(Failure::header(header::IF_MODIFIED_SINCE.as_str(), detail));
        }
        let Some(value) = self.if_match else { return Ok(Vec::new()) };
        let condition = match strong_revisions(header::IF_MATCH.as_str(), value)? {
            None => Condition::Exists,
            Some(revisions) => Condition::ModRevisionIn(revisions),
        };
        Ok(vec![Guard { key: key.clone(), condition }])
    }

    /// Refuses conditions where there is nothing that they could be about.
    pub fn no_conditions(&self) -> Result<(), Failure> {
        match (self.if_match, self.if_none_match) {
            (Some(_), _) => Err(Failure::header(header::IF_MATCH.as_str(), "this request takes no conditions")),
            (_, Some(_)) => Err(Failure::header(header::IF_NONE_MATCH.as_str(), "this request takes no conditions")),
            (None, None) => Ok(()),
        }
    }

    /// Whether the reader of a document has it already, as `If-None-Match` says.
    pub fn knows_document(&self, etag: &HeaderValue) -> Result<bool, Failure> {
        let Some(value) = self.if_none_match else { return Ok(false) };
        let own = etag.as_bytes().trim_ascii();
        Ok(match parse_etags(header::IF_NONE_MATCH.as_str(), value)? {
            None => true,
            Some(tags) => tags.iter().any(|tag| own == [b"\"", tag.opaque, b"\""].concat()),
        })
    }

    /// What a read compares the key's revision with: its reader has one of these already.
    pub fn known_revisions(&self) -> Result<Known, Failure> {
        if self.if_match.is_some() {
            return Err(Failure::header(header::IF_MATCH.as_str(), "a read takes If-None-Match"));
        }
        let Some(value) = self.if_none_match else { return Ok(Known::Nothing) };
        match parse_etags(header::IF_NONE_MATCH.as_str(), value)? {
            None => Ok(Known::Anything),
            // A tag that is weak or not of ours equals none of ours: the reader then gets the value, which is never
            // wrong.
            Some(tags) => Ok(Known::Revisions(tags.iter().filter_map(EntityTag::revision).collect())),
        }
    }
}

fn given_twice(name: &str) -> Failure {
    Failure::header(name, "the header is given twice")
}

/// What a reader already has of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// It did not say.
    Nothing,
    /// It has some value, and does not want any.
    Anything,
    /// It has the values of these revisions.
    Revisions(Vec<Revision>),
}

impl Known {
    /// Whether the reader has the value of this revision.
    pub fn contains(&self, revision: Revision) -> bool {
        match self {
            Known::Nothing => false,
            Known::Anything => true,
            Known::Revisions(list) => list.contains(&revision),
        }
    }
}

/// One ETag of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EntityTag<'v> {
    weak: bool,
    opaque: &'v [u8],
}

impl EntityTag<'_> {
    /// The revision it stands for, if it is one that a member could have made.
    fn revision(&self) -> Option<Revision> {
        let text = std::str::from_utf8(self.opaque).ok()?;
        let canonical = text == "0" || !text.starts_with('0');
        if self.weak || text.is_empty() || !canonical { None } else { parse_number(text) }
    }
}

/// The revisions of a condition of a write; none for `*`. Every tag has to be a revision: one that is not would make
/// `If-None-Match` hold by mistake.
fn strong_revisions(name: &str, value: &HeaderValue) -> Result<Option<Vec<Revision>>, Failure> {
    let Some(tags) = parse_etags(name, value)? else { return Ok(None) };
    let revisions = tags.iter().map(|tag| {
        tag.revision().ok_or_else(|| {
            let why = if tag.weak { "a weak ETag equals no value" } else { "not an ETag of this API" };
            Failure::header(name, format!("{why}: \"{}\"", String::from_utf8_lossy(tag.opaque)))
        })
    });
    revisions.collect::<Result<Vec<_>, _>>().map(Some)
}

/// A list of ETags; none for `*`.
fn parse_etags<'v>(name: &str, value: &'v HeaderValue) -> Result<Option<Vec<EntityTag<'v>>>, Failure> {
    let malformed = || Failure::header(name, "neither * nor a list of ETags, as in \"42\", \"43\"");
    let mut rest = value.as_bytes().trim_ascii();
    if rest == b"*" {
        return Ok(None);
    }
    let mut tags = Vec::new();
    while !rest.is_empty() {
        let (tag, tail) = split_etag(rest).ok_or_else(malformed)?;
        tags.push(tag);
        if tags.len() > MAX_ETAGS {
            return Err(Failure::header(name, format!("more than {MAX_ETAGS} ETags")));
        }
        rest = tail.trim_ascii_start();
        if let Some((separator, tail)) = rest.split_first() {
            rest = tail.trim_ascii_start();
            // A comma is followed by another tag: an end behind one is a list that was cut.
            if *separator != b',' || rest.is_empty() {
                return Err(malformed());
            }
        }
    }
    if tags.is_empty() { Err(malformed()) } else { Ok(Some(tags)) }
}

/// The first ETag of a list, and what follows it.
fn split_etag(list: &[u8]) -> Option<(EntityTag<'_>, &[u8])> {
    let (weak, quoted) = match list.strip_prefix(b"W/") {
        Some(quoted) => (true, quoted),
        None => (false, list),
    };
    let inner = quoted.strip_prefix(b"\"")?;
    let end = inner.iter().position(|byte| *byte == b'"')?;
    let opaque = &inner[..end];
    let allowed = |byte: &u8| matches!(byte, 0x21 | 0x23..=0x7e | 0x80..);
    opaque.iter().all(allowed).then_some((EntityTag { weak, opaque }, &inner[end + 1..]))
}

/// A form of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// What the resource gives when nothing is asked for.
    Default,
    /// `application/json`.
    Json,
    /// `application/x-ndjson`.
    Ndjson,
}

/// Which of `offered` an `Accept` header names with the highest weight; of equals the first in the header. The default
/// when it names none of them: an answer in another form is more useful than none. `default_type` is the default's own
/// name.
pub fn accepted_form(accept: Option<&HeaderValue>, default_type: &str, offered: &[Form]) -> Form {
    let Some(Ok(accept)) = accept.map(HeaderValue::to_str) else { return Form::Default };
    let mut best = (Form::Default, 0u32);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let form = if media_type.eq_ignore_ascii_case(default_type) {
            Form::Default
        } else if media_type.eq_ignore_ascii_case("application/json") {
            Form::Json
        } else if media_type.eq_ignore_ascii_case("application/x-ndjson") {
            Form::Ndjson
        } else {
            continue;
        };
        let weight =
            parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q="))).map_or(1000, milli_weight);
        if weight > best.1 && (form == Form::Default || offered.contains(&form)) {
            best = (form, weight);
        }
    }
    best.0
}

/// A weight of `Accept` in thousandths; 0 when it is malformed.
fn milli_weight(text: &str) -> u32 {
    match text.parse::<f32>() {
        Ok(weight) if (0.0..=1.0).contains(&weight) => (weight * 1000.0) as u32,
        _ => 0,
    }
}
