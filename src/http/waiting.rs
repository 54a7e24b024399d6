//! What clients are told while a member waits to be taken into a cluster, begins a timeline, repairs its history before it
//! serves again, or is fenced: it lives, and it can do nothing for them but say how it stands and what to do (`/v1/dr`). A
//! fenced one says where history goes on, and can be told to rejoin.
//!
//! Without it a connection would be accepted by the operating system and answered by nobody, and an orchestrator would
//! take the member for dead. Every reply closes its connection, so that the next request meets the real edge.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use tokio::net::TcpListener;

use super::body::{EdgeBody, collect};
use super::cluster::{MAX_JSON_BYTES, parse_json};
use super::problem::{Asked, Failure};
use super::server::{self, ServerOptions, StopSignal};
use super::{Reply, json_reply};
use crate::api::{Health, RejoinReply, RejoinRequest, Role, RoleReply};
use crate::metrics::{self, Metrics, Sampler, catalogue};
use crate::node::Lobby;
use crate::raft::types::MemberInfo;

/// How long the body of a request may take.
const BODY: Duration = Duration::from_secs(10);

/// Answers on `listener` until `stop`, for the member in `lobby`.
pub async fn serve_waiting(listener: TcpListener, lobby: Lobby, metrics: Arc<Metrics>, stop: StopSignal) {
    let counts = metrics.http.connections.clone();
    let reported = lobby.clone();
    metrics.until_on_scrape(Box::new(move |sampler| report(&reported, sampler)));
    let service = service_fn(move |request| {
        let (lobby, metrics) = (lobby.clone(), metrics.clone());
        async move { Ok::<_, Infallible>(answer(request, &lobby, &metrics).await) }
    });
    server::serve(listener, service, ServerOptions::default(), counts, stop).await;
}

/// What an alert needs of a member that cannot serve: that it is not ready, and why.
fn report(lobby: &Lobby, sampler: &mut Sampler) {
    for metric in [&catalogue::READY, &catalogue::LEADER, &catalogue::LEADER_KNOWN] {
        sampler.gauge(metric, 0.0);
    }
    sampler.gauge(&catalogue::QUARANTINED, f64::from(u8::from(lobby.quarantined().is_some())));
    sampler.gauge(&catalogue::FENCED, f64::from(u8::from(lobby.fenced().is_some())));
}

async fn answer(request: Request<Incoming>, lobby: &Lobby, metrics: &Metrics) -> Reply {
    if !["/health/live", "/metrics"].contains(&request.uri().path()) {
        lobby.knows_itself().await;
    }
    let (fenced, why) = (lobby.fenced(), lobby.why());
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    let mut reply = match (request.uri().path(), fenced) {
        ("/metrics", _) => {
            let mut reply = Reply::new(EdgeBody::full(metrics.encode()));
            reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
            reply
        }
        ("/health/live", _) => json_reply(StatusCode::OK, &Health { healthy: true, reason: None }),
        (path, _) if path.starts_with("/health/") => {
            json_reply(StatusCode::SERVICE_UNAVAILABLE, &Health { healthy: false, reason: Some(why.to_string()) })
        }
        ("/v1/role", Some((_, MemberInfo { name, site, .. }))) if reads => {
            json_reply(StatusCode::OK, &RoleReply { role: Role::Fenced, name, site, leader: None })
        }
        ("/v1/dr", _) if reads => match lobby.dr() {
            Some(reply) => json_reply(StatusCode::OK, &reply),
            None => Failure::node(&why, Asked::Read).into_reply(),
        },
        ("/v1/dr/rejoin", Some(_)) if request.method() == Method::POST => match rejoin(request, lobby).await {
            Ok(reply) => json_reply(StatusCode::ACCEPTED, &reply),
            Err(failure) => failure.into_reply(),
        },
        _ => Failure::node(&why, if reads { Asked::Read } else { Asked::Write }).into_reply(),
    };
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

/// Lets a fenced member come home.
async fn rejoin(request: Request<Incoming>, lobby: &Lobby) -> Result<RejoinReply, Failure> {
    let mut body = request.into_body();
    let text = collect(&mut body, MAX_JSON_BYTES, BODY).await.map_err(Failure::body)?;
    let request: RejoinRequest = parse_json(&text)?;
    lobby.rejoin(&request).map_err(|error| Failure::node(&error, Asked::Change))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_shows_that_it_is_not_ready() {
        let metrics = Metrics::new();
        metrics.until_on_scrape(Box::new(|sampler| report(&Lobby::default(), sampler)));
        let text = metrics.encode();
        for name in ["ready", "leader", "leader_known", "quarantined", "fenced"] {
            assert!(text.lines().any(|line| line == format!("lifeboat_{name} 0.0")), "{name} in {text}");
        }
    }
}
