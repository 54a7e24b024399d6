//! What writes have in common: how they are named by `Idempotency-Key`, which lease they hang on, and what the log made
//! of them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::{HeaderValue, IF_MATCH, IF_NONE_MATCH};
use hyper::http::request::Parts;

use super::extract::{Durability, Parameters, RequestHeaders};
use super::problem::{Asked, Failure};
use super::{Reply, Shared, headers};
use crate::api::ProblemCode;
use crate::model::{
    Command, Guard, IdempotencyKey, LeaseGrant, Outcome, Request, RequestCommand, WriteCommand, WriteOp,
};
use crate::node::NodeError;

/// The longest idempotency key.
const MAX_KEY_BYTES: usize = 255;
/// The shortest and the longest span of a lease.
pub const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 60 * 60);
/// Ids of leases are smaller, because they are numbers in JSON.
pub const MAX_LEASE_ID: u64 = (1 << 53) - 1;

/// Under which name the outcome of a request is remembered; none when it has no key. The fingerprint covers all that
/// says what the request means: method, path, parameters, conditions and body.
pub fn idempotency(head: &Parts, request: &RequestHeaders<'_>, body: &[u8]) -> Result<Option<IdempotencyKey>, Failure> {
    let Some(key) = request.idempotency_key else { return Ok(None) };
    let visible = key.as_bytes().iter().all(|byte| (b'!'..=b'~').contains(byte));
    if key.is_empty() || key.len() > MAX_KEY_BYTES || !visible {
        let detail = format!("not 1 to {MAX_KEY_BYTES} visible ASCII characters");
        return Err(Failure::header(headers::IDEMPOTENCY_KEY.as_str(), detail));
    }
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    let condition = |name| head.headers.get(name).map(HeaderValue::as_bytes);
    let mut hasher = blake3::Hasher::new();
    let parts =
        [Some(head.method.as_str().as_bytes()), Some(target.as_bytes()), condition(IF_MATCH), condition(IF_NONE_MATCH)];
    for part in parts.into_iter().chain([Some(body)]) {
        // With their lengths, so that no two requests look the same when put together.
        let length = part.map_or(u64::MAX, |part| part.len() as u64);
        hasher.update(&length.to_le_bytes());
        hasher.update(part.unwrap_or_default());
    }
    let mut fingerprint = [0; 16];
    fingerprint.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Ok(Some(IdempotencyKey { key: Bytes::copy_from_slice(key.as_bytes()), fingerprint }))
}

/// Draws the id of a lease.
pub fn new_lease_id() -> u64 {
    rand::random_range(1..=MAX_LEASE_ID)
}

/// `lease` and `ttl`: the lease that a key hangs on, and what to grant for it.
pub fn lease_of(parameters: &Parameters<'_>) -> Result<(u64, Option<LeaseGrant>), Failure> {
    let ttl = parameters.duration("ttl")?;
    match (parameters.number("lease")?, ttl) {
        (None, None) => Ok((0, None)),
        (Some(_), Some(_)) => Err(Failure::parameter("ttl", "not together with lease")),
        (Some(lease), None) if (1..=MAX_LEASE_ID).contains(&lease) => Ok((lease, None)),
        (Some(_), None) => Err(Failure::parameter("lease", format!("not from 1 to {MAX_LEASE_ID}"))),
        (None, Some(ttl)) if TTL.contains(&ttl) => {
            let grant = LeaseGrant { id: new_lease_id(), ttl_ms: ttl.as_millis() as u64 };
            Ok((grant.id, Some(grant)))
        }
        (None, Some(_)) => Err(Failure::parameter("ttl", "not from 1s to 30 days")),
    }
}

/// The command of a write: the plain one when that can say it.
pub fn write_command(
    idempotency: Option<IdempotencyKey>,
    grant: Option<LeaseGrant>,
    guards: Vec<Guard>,
    ops: Vec<WriteOp>,
) -> Command {
    let leased = ops.iter().any(|op| matches!(op, WriteOp::Put { lease, .. } if *lease != 0));
    if idempotency.is_none() && !leased {
        return Command::Write(WriteCommand { time_ms: 0, guards, ops });
    }
    let request = Request::Write { grant, guards, ops };
    Command::Request(RequestCommand { time_ms: 0, idempotency, request })
}

/// What the log made of a write that took effect, and whether that was the outcome of an earlier request; what it
/// refused is a failure.
pub fn written(answer: Result<Outcome, NodeError>) -> Result<(Outcome, bool), Failure> {
    let outcome = answer.map_err(|error| Failure::node(&error, Asked::Write))?;
    let (outcome, replayed) = match outcome {
        Outcome::Replayed(first) => (*first, true),
        outcome => (outcome, false),
    };
    let refused = match outcome {
        Outcome::Written { .. } | Outcome::Txn { .. } | Outcome::Sequence { .. } => return Ok((outcome, replayed)),
        Outcome::Refused { current, .. } => Failure::condition_failed(current),
        Outcome::NoLease { lease, .. } => {
            Failure::new(ProblemCode::UnknownLease, format!("there is no lease {lease}")).field("lease")
        }
        Outcome::LeaseExists { lease, .. } => {
            Failure::new(ProblemCode::LeaseExists, format!("there is a lease {lease} already")).field("id")
        }
        Outcome::WrittenTwice { key, .. } => {
            let key = String::from_utf8_lossy(&key).into_owned();
            let detail = format!("the transaction writes the key {key:?} twice");
            Failure::new(ProblemCode::WrittenTwice, detail).field(&key)
        }
        Outcome::OtherRequest { .. } => {
            let detail = "this key was used for another request: a new request needs a new key";
            Failure::new(ProblemCode::IdempotencyMismatch, detail).field(headers::IDEMPOTENCY_KEY.as_str())
        }
        Outcome::TooLarge { .. } => {
            let detail = "that does not fit into one transaction: delete or read less at once";
            Failure::new(ProblemCode::TooLarge, detail)
        }
        Outcome::SequenceRefused { why, .. } => Failure::sequence(&why),
        Outcome::None | Outcome::Replayed(_) => {
            Failure::unexpected_outcome(format!("a write has the outcome {outcome:?}"))
        }
    };
    Err(refused.replayed(replayed))
}

/// Whether a mirror in another site has what was written, when that shall be waited for.
pub async fn mirrored(shared: &Shared, durability: Durability, started: Instant) -> Option<bool> {
    match durability {
        Durability::Majority => None,
        Durability::Mirrored => Some(shared.node.mirrored(&shared.context(started)).await),
    }
}

/// Tells the client that a reply is the outcome of an earlier request.
pub fn mark_replayed(reply: &mut Reply, replayed: bool) {
    if replayed {
        reply.headers_mut().insert(headers::REPLAYED, HeaderValue::from_static("true"));
    }
}
