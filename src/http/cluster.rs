//! `/v1/status`, `/v1/role`, `/v1/leader`: the cluster as this member sees it, and who leads it.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::header::CACHE_CONTROL;
use hyper::{Request, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};

use super::body::{EdgeBody, collect};
use super::extract::Parameters;
use super::problem::{Asked, Failure};
use super::{Routes, Shared, headers, json_reply, resource};
use crate::api::{LeaderReply, LeaderRequest, ProblemCode, RoleReply};

const READ_ALLOW: &str = "GET, HEAD, OPTIONS";
const LEADER_ALLOW: &str = "POST, OPTIONS";
/// The largest JSON body of these resources.
pub(super) const MAX_JSON_BYTES: usize = 1 << 20;

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new()
        .route("/v1/status", resource(READ_ALLOW, get(status)))
        .route("/v1/role", resource(READ_ALLOW, get(role)))
        .route("/v1/leader", resource(LEADER_ALLOW, post(leader)))
}

async fn status(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    read_reply(&request, || shared.node.status())
}

async fn role(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    read_reply(&request, || {
        let status = shared.node.status();
        RoleReply {
            role: status.role,
            name: status.name,
            site: status.site,
            leader: status.leader.map(|leader| leader.name),
        }
    })
}

pub(super) fn read_reply<T: Serialize>(request: &Request<AxumBody>, body: impl FnOnce() -> T) -> Response {
    match Parameters::none(request.uri().query()) {
        Ok(()) => {
            let mut reply = json_reply(StatusCode::OK, &body());
            reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
            reply.map(EdgeBody::into_axum)
        }
        Err(failure) => failure.into_response(),
    }
}

async fn leader(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    let started = Instant::now();
    match move_leader(&shared, request, started).await {
        Ok(reply) => json_reply(StatusCode::OK, &reply).map(EdgeBody::into_axum),
        Err(failure) => failure.into_response(),
    }
}

async fn move_leader(shared: &Shared, request: Request<AxumBody>, started: Instant) -> Result<LeaderReply, Failure> {
    Parameters::none(request.uri().query())?;
    let asked: LeaderRequest = read_json(shared, request).await?;
    let moved = shared.node.transfer_leader(&shared.context(started), asked.to).await;
    moved.map_err(|error| Failure::node(&error, Asked::Change))
}

/// Reads a JSON body, of whatever content type it says it is.
pub(super) async fn read_json<T: DeserializeOwned>(shared: &Shared, request: Request<AxumBody>) -> Result<T, Failure> {
    let mut body = request.into_body();
    let text = collect(&mut body, MAX_JSON_BYTES, shared.body_timeout).await.map_err(Failure::body)?;
    parse_json(&text)
}

pub(super) fn parse_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, Failure> {
    // serde would take an array for an object's fields in order.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(Failure::new(ProblemCode::BadBody, "the body is not a JSON object"));
    }
    let refused = |message: String, path: Option<&Path>| {
        let field = field_at_fault(&message, path).map(str::to_owned);
        let failure = Failure::new(ProblemCode::BadBody, message);
        match field {
            Some(field) => failure.field(&field),
            None => failure,
        }
    };
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| refused(error.inner().to_string(), Some(error.path())))?;
    deserializer.end().map_err(|error| refused(error.to_string(), None))?;
    Ok(value)
}

/// The field that is wrong: the one that the message of serde or of a type's own checks (`field: why`) names, else the
/// one whose value was being read.
fn field_at_fault<'a>(message: &'a str, path: Option<&'a Path>) -> Option<&'a str> {
    let quoted = |kinds: &[&str]| {
        let rest = kinds.iter().find_map(|kind| message.strip_prefix(kind))?;
        rest.split_once('`').map(|(name, _)| name)
    };
    let own_check = || {
        let (field, _) = message.split_once(": ")?;
        let name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        (!field.is_empty() && field.bytes().all(name)).then_some(field)
    };
    let read = || match path?.iter().next_back()? {
        Segment::Map { key } => Some(key.as_str()),
        _ => None,
    };
    let named = quoted(&["unknown field `", "missing field `", "duplicate field `"]);
    // A variant is a field only where its enum stands in a list.
    named.or_else(own_check).or_else(read).or_else(|| quoted(&["unknown variant `"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_read_strictly() {
        let parse = |text: &str| parse_json::<LeaderRequest>(text.as_bytes());
        assert_eq!(parse(" {}\n").unwrap(), LeaderRequest { to: None });
        assert_eq!(parse(r#"{"to":"n2"}"#).unwrap(), LeaderRequest { to: Some("n2".into()) });
        for (text, field) in [
            (r#"{"too":"n2"}"#, Some("too")),
            (r#"{"to":"a","to":"b"}"#, Some("to")),
            (r#"{"to":7}"#, Some("to")),
            ("{", None),
            ("", None),
            ("null", None),
            ("[]", None),
            (r#"["n2"]"#, None),
            (r#"{"to":"n2"} {}"#, None),
        ] {
            let failure = parse(text).unwrap_err();
            assert_eq!(failure.problem().code(), Some(ProblemCode::BadBody), "{text}");
            assert_eq!(failure.problem().field.as_deref(), field, "{text}");
        }
    }
}
