//! `/v1/keys`: ranges of keys, read page by page or as a stream, and deleted in one transaction.
//!
//! A range may touch the disk, so it is read on a blocking thread; so many run at a time and so many may wait
//! ([`RangeReads`]). A stream reads one page, sends it, and only then reads the next, all at the revision of the first:
//! its memory is one page, whatever its length. If a page cannot be read any more (the read floor has passed its
//! revision, the storage failed), the connection is cut, and the last line that tells the end is missing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper::http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tokio::sync::Semaphore;

use super::body::EdgeBody;
use super::extract::{Consistency, Durability, Form, Parameters, RequestHeaders, accepted_form};
use super::outcome::{idempotency, mark_replayed, mirrored, write_command, written};
use super::problem::Failure;
use super::{Routes, Shared, headers, json_reply, resource};
use crate::api::{DeleteKeysReply, KeyItem, KeysEnd, KeysPage, ProblemCode};
use crate::model::{Command, KeySpace, OpResult, Outcome, WriteOp};
use crate::node::Node;
use crate::store::{KeyValue, RangePage, RangeQuery, ReadError};

const ALLOW: &str = "GET, HEAD, DELETE, OPTIONS";
const GET_PARAMETERS: &[&str] =
    &["prefix", "start", "end", "limit", "after", "rev", "keys_only", "consistency", "max_lag"];
const BOUNDS: &[&str] = &["prefix", "start", "end"];
const DELETE_PARAMETERS: &[&str] = &["prefix", "start", "end", "durability"];

/// Items of a JSON page when no limit is given.
const DEFAULT_LIMIT: usize = 1000;
/// The largest limit.
const MAX_LIMIT: u64 = 10_000;
/// A JSON page ends once it has so many bytes of keys and values.
const PAGE_BYTES: usize = 4 << 20;
/// A stream is read and sent in pieces of so many items and so many bytes.
const STREAM_ITEMS: usize = 1000;
const STREAM_BYTES: usize = 1 << 20;

/// What is not encoded in the path of the next page.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new().route("/v1/keys", resource(ALLOW, get(read_keys).delete(delete_keys)))
}

/// Bounds the reads of ranges.
pub struct RangeReads {
    running: Semaphore,
    waiting: AtomicUsize,
    max_waiters: usize,
}

impl RangeReads {
    /// So many at a time, so many waiting.
    pub fn new(max_running: usize, max_waiters: usize) -> RangeReads {
        RangeReads { running: Semaphore::new(max_running), waiting: AtomicUsize::new(0), max_waiters }
    }

    /// Reads one page, off the threads that serve connections.
    async fn read(&self, node: &Node, query: RangeQuery) -> Result<RangePage, RangeFailure> {
        let _running = match self.running.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::begin(self)?;
                self.running.acquire().await.expect("this semaphore is never closed")
            }
        };
        let node = node.clone();
        match tokio::task::spawn_blocking(move || node.store().range(&query)).await {
            Ok(result) => result.map_err(RangeFailure::Read),
            Err(error) => Err(RangeFailure::Lost(error.to_string())),
        }
    }
}

/// One of those who wait; stops being one when dropped, also when its client goes away.
struct Waiting<'r>(&'r RangeReads);

impl<'r> Waiting<'r> {
    fn begin(reads: &'r RangeReads) -> Result<Waiting<'r>, RangeFailure> {
        let waiting = Waiting(reads);
        if reads.waiting.fetch_add(1, Ordering::Relaxed) >= reads.max_waiters {
            return Err(RangeFailure::TooMany);
        }
        Ok(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a page was not read.
#[derive(Debug)]
enum RangeFailure {
    Read(ReadError),
    TooMany,
    /// The thread that read ended without a result.
    Lost(String),
}

impl RangeFailure {
    fn into_failure(self, stale: bool) -> Failure {
        match self {
            RangeFailure::Read(error) => Failure::read(&error, stale),
            RangeFailure::TooMany => Failure::new(ProblemCode::TooManyReads, "too many ranges are being read"),
            RangeFailure::Lost(detail) => Failure::new(ProblemCode::StorageFailed, detail),
        }
    }
}

/// Which keys are meant: from `start` up to and without `end`.
pub struct Bounds {
    /// The first key.
    pub start: Bytes,
    /// The first key that is not meant any more; none for the end of all keys.
    pub end: Option<Bytes>,
}

impl Bounds {
    /// Reads `prefix`, or `start` and `end`.
    pub fn parse(parameters: &Parameters<'_>, max_key_bytes: usize) -> Result<Bounds, Failure> {
        let prefix = parameters.bytes("prefix", max_key_bytes)?;
        let start = parameters.bytes("start", max_key_bytes)?;
        let end = parameters.bytes("end", max_key_bytes)?;
        match prefix {
            None => Ok(Bounds { start: start.unwrap_or_default(), end }),
            Some(prefix) if start.is_none() && end.is_none() => {
                Ok(Bounds { end: end_of_prefix(&prefix), start: prefix })
            }
            Some(_) => Err(Failure::parameter("prefix", "either prefix, or start and end")),
        }
    }

    /// Whether no key can be meant, behind `after` if there is one.
    fn is_empty(&self, after: Option<&Bytes>) -> bool {
        let Some(end) = &self.end else { return false };
        self.start >= *end || after.is_some_and(|after| after >= end)
    }
}

/// The first key behind all keys with this prefix; none when there is no such key.
pub(super) fn end_of_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

async fn read_keys(State(shared): State<Arc<Shared>>, request: Parts) -> Response {
    let started = Instant::now();
    respond(read_range(&shared, &request, started).await)
}

fn respond(result: Result<Response, Failure>) -> Response {
    result.unwrap_or_else(Failure::into_response)
}

async fn read_range(shared: &Arc<Shared>, request: &Parts, started: Instant) -> Result<Response, Failure> {
    let headers = RequestHeaders::parse(&request.headers)?;
    headers.no_conditions()?;
    let form = accepted_form(headers.accept, "application/json", &[Form::Ndjson]);
    let parameters = Parameters::parse(request.uri.query(), GET_PARAMETERS)?;
    let consistency = parameters.consistency()?;
    let max_key_bytes = shared.node.limits().max_key_bytes;
    let limit = match parameters.number("limit")? {
        Some(limit) if (1..=MAX_LIMIT).contains(&limit) => Some(limit as usize),
        Some(_) => return Err(Failure::parameter("limit", format!("not between 1 and {MAX_LIMIT}"))),
        None => None,
    };
    let bounds = Bounds::parse(&parameters, max_key_bytes)?;
    let after = parameters.bytes("after", max_key_bytes)?;
    let nothing = bounds.is_empty(after.as_ref());
    let query = RangeQuery {
        space: KeySpace::User,
        start: bounds.start,
        end: bounds.end,
        after,
        at: parameters.number("rev")?,
        limit: limit.unwrap_or(DEFAULT_LIMIT),
        max_bytes: PAGE_BYTES,
        keys_only: parameters.switch("keys_only")?,
    };
    // What lies between an end and a later start is nothing, at whatever revision that exists.
    let query =
        if nothing { RangeQuery { start: Bytes::new(), end: Some(Bytes::new()), after: None, ..query } } else { query };

    shared.admit_read()?;
    let read_point = shared.settle(consistency, started).await?;
    let mut reply = if form == Form::Ndjson {
        stream_range(shared, query, limit, read_point.is_stale()).await?
    } else {
        let keys_only = query.keys_only;
        let page = shared.ranges.read(&shared.node, query).await;
        let page = page.map_err(|failure| failure.into_failure(read_point.is_stale()))?;
        let next = page.more.then(|| next_path(&parameters, consistency, &page)).flatten();
        let items = page.items.into_iter().map(|item| key_item(item, keys_only)).collect();
        let body = KeysPage { revision: page.revision, items, more: page.more, next };
        json_reply(StatusCode::OK, &body).map(EdgeBody::into_axum)
    };
    read_point.add_headers(reply.headers_mut());
    reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
    Ok(reply)
}

fn key_item(item: KeyValue, keys_only: bool) -> KeyItem {
    KeyItem { key: item.key, value: (!keys_only).then_some(item.value), meta: item.meta }
}

/// The path of the page behind `page`: what was asked for, pinned to the same revision.
fn next_path(parameters: &Parameters<'_>, consistency: Consistency, page: &RangePage) -> Option<String> {
    let last = &page.items.last()?.key;
    let mut path = String::from("/v1/keys?");
    for name in GET_PARAMETERS {
        // `consistency` is written only when it is not the default, the position is new.
        let repeated = match *name {
            "after" | "rev" => false,
            "consistency" => consistency != Consistency::Linearizable,
            _ => true,
        };
        if let (true, Some(raw)) = (repeated, parameters.raw(name)) {
            path.extend([name, "=", raw, "&"]);
        }
    }
    path.push_str("after=");
    path.extend(percent_encode(last, KEPT));
    path.push_str("&rev=");
    path.push_str(&page.revision.to_string());
    Some(path)
}

/// A stream that is on its way.
struct Streaming {
    shared: Arc<Shared>,
    query: RangeQuery,
    /// How many items may still come; none for all.
    left: Option<usize>,
    count: u64,
    /// A page that was read and not sent.
    page: Option<RangePage>,
    ended: bool,
}

async fn stream_range(
    shared: &Arc<Shared>,
    query: RangeQuery,
    limit: Option<usize>,
    stale: bool,
) -> Result<Response, Failure> {
    let query = RangeQuery { max_bytes: STREAM_BYTES, ..query };
    let mut streaming = Streaming { shared: shared.clone(), query, left: limit, count: 0, page: None, ended: false };
    // The first page is read before the reply begins, so that its failure still has a status.
    streaming.read().await.map_err(|failure| failure.into_failure(stale))?;
    let lines = stream::unfold(streaming, |mut streaming| async move {
        let piece = streaming.piece().await.transpose()?;
        Some((piece, streaming))
    });
    let mut reply = Response::new(AxumBody::from_stream(lines));
    reply.headers_mut().insert(CONTENT_TYPE, headers::NDJSON);
    Ok(reply)
}

impl Streaming {
    async fn read(&mut self) -> Result<(), RangeFailure> {
        self.query.limit = self.left.unwrap_or(usize::MAX).min(STREAM_ITEMS);
        let page = self.shared.ranges.read(&self.shared.node, self.query.clone()).await?;
        self.query.at = Some(page.revision);
        self.page = Some(page);
        Ok(())
    }

    /// The next lines; none at the end.
    async fn piece(&mut self) -> Result<Option<Bytes>, std::io::Error> {
        if self.ended {
            return Ok(None);
        }
        if self.page.is_none()
            && let Err(failure) = self.read().await
        {
            self.ended = true;
            tracing::warn!(?failure, "a stream of keys was cut");
            return Err(std::io::Error::other("the stream of keys was cut"));
        }
        let page = self.page.take().expect("a page was read above, or was there");
        self.count += page.items.len() as u64;
        self.left = self.left.map(|left| left.saturating_sub(page.items.len()));
        self.ended = !page.more || self.left == Some(0);
        self.query.after = page.items.last().map(|item| item.key.clone());
        let mut lines = Vec::with_capacity(STREAM_BYTES / 16);
        for item in page.items {
            write_line(&mut lines, &key_item(item, self.query.keys_only));
        }
        if self.ended {
            let end = KeysEnd { end: true, revision: page.revision, count: self.count, more: page.more };
            write_line(&mut lines, &end);
        }
        Ok(Some(lines.into()))
    }
}

fn write_line(lines: &mut Vec<u8>, line: &impl serde::Serialize) {
    serde_json::to_writer(&mut *lines, line).expect("items have nothing that JSON cannot hold");
    lines.push(b'\n');
}

async fn delete_keys(State(shared): State<Arc<Shared>>, request: Parts) -> Response {
    let started = Instant::now();
    respond(delete_range(&shared, &request, started).await)
}

async fn delete_range(shared: &Shared, request: &Parts, started: Instant) -> Result<Response, Failure> {
    let (command, durability) = delete_command(shared, request).map_err(Failure::before_proposal)?;
    let (outcome, replayed) = written(shared.node.write(&shared.context(started), command).await)?;
    match outcome {
        Outcome::Written { revision, results } => match results.as_slice() {
            [OpResult::Deleted { count, .. }] => {
                let mirrored = mirrored(shared, durability, started).await;
                let body = DeleteKeysReply { revision, deleted: *count, mirrored };
                let mut reply = json_reply(StatusCode::OK, &body);
                mark_replayed(&mut reply, replayed);
                Ok(reply.map(EdgeBody::into_axum))
            }
            other => Err(Failure::unexpected_outcome(format!("a deletion has the results {other:?}"))),
        },
        other => Err(Failure::unexpected_outcome(format!("a deletion has the outcome {other:?}"))),
    }
}

fn delete_command(shared: &Shared, request: &Parts) -> Result<(Command, Durability), Failure> {
    let read = RequestHeaders::parse(&request.headers)?;
    read.no_conditions()?;
    let parameters = Parameters::parse(request.uri.query(), DELETE_PARAMETERS)?;
    let bounds = Bounds::parse(&parameters, shared.node.limits().max_key_bytes)?;
    let durability = parameters.durability()?;
    if BOUNDS.iter().all(|name| parameters.raw(name).is_none()) {
        let detail = "name which keys to delete: prefix, start or end (prefix= with nothing is everything)";
        return Err(Failure::parameter("prefix", detail));
    }
    if bounds.is_empty(None) {
        return Err(Failure::parameter("end", "the end is not behind the start"));
    }
    let Bounds { start, end } = bounds;
    let ops = vec![WriteOp::DeleteRange { space: KeySpace::User, start, end }];
    Ok((write_command(idempotency(request, &read, b"")?, None, Vec::new(), ops), durability))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_key_without_it_begins() {
        for (prefix, end) in [
            (&b"a"[..], Some(&b"b"[..])),
            (b"a/", Some(b"a0")),
            (b"a\xff", Some(b"b")),
            (b"\xfe\xff\xff", Some(b"\xff")),
            (b"\xff", None),
            (b"\xff\xff", None),
            (b"", None),
        ] {
            assert_eq!(end_of_prefix(prefix).as_deref(), end, "{prefix:?}");
        }
    }

    #[test]
    fn the_next_page_repeats_the_question_and_pins_the_revision() {
        let page = |key: &'static [u8]| RangePage {
            items: vec![KeyValue {
                key: Bytes::from_static(key),
                value: Bytes::new(),
                meta: crate::model::KeyMeta { create_revision: 1, mod_revision: 1, version: 1, lease: 0 },
            }],
            more: true,
            revision: 44,
        };
        let next = |query: &'static str, key| {
            let parameters = Parameters::parse(Some(query), GET_PARAMETERS).unwrap();
            next_path(&parameters, parameters.consistency().unwrap(), &page(key)).unwrap()
        };
        assert_eq!(next("limit=1", b"a"), "/v1/keys?limit=1&after=a&rev=44");
        assert_eq!(
            next("after=x&rev=3&keys_only=true&prefix=a%2F&consistency=stale&max_lag=5s", b"a/\xff +&"),
            "/v1/keys?prefix=a%2F&keys_only=true&consistency=stale&max_lag=5s&after=a/%FF%20%2B%26&rev=44"
        );
        assert_eq!(next("consistency=linearizable", b"a"), "/v1/keys?after=a&rev=44");
    }
}
