//! `/v1/members` and `/v1/members/{name}`: members that come and go.
//!
//! Everything is checked here before `node` is asked: a request that is wrong changes nothing.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::{Request, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::cluster::{read_json, read_reply};
use super::extract::Parameters;
use super::problem::{Asked, Failure};
use super::{Routes, Shared, json_reply, resource, respond};
use crate::api::{InviteRequest, MemberReply, MembersReply, ProblemCode, RoleChange};
use crate::config::{check_name, check_url};

const ALL_ALLOW: &str = "GET, HEAD, POST, OPTIONS";
const ONE_ALLOW: &str = "GET, HEAD, PATCH, DELETE, OPTIONS";
const PREFIX: &str = "/v1/members/";

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new()
        .route("/v1/members", resource(ALL_ALLOW, get(all).post(invite)))
        .route("/v1/members/{name}", resource(ONE_ALLOW, get(one).patch(change).delete(remove)))
}

pub(super) fn answer<T: Serialize>(status: StatusCode, result: Result<T, Failure>) -> Response {
    respond(result.map(|body| json_reply(status, &body)))
}

async fn all(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    let (members, warnings) = (shared.node.members(), shared.node.member_warnings());
    read_reply(&request, || MembersReply { members, warnings })
}

async fn invite(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    answer(StatusCode::ACCEPTED, do_invite(&shared, request, Instant::now()).await)
}

async fn do_invite(shared: &Shared, request: Request<AxumBody>, started: Instant) -> Result<MemberReply, Failure> {
    Parameters::none(request.uri().query())?;
    let asked = checked(read_json(shared, request).await?)?;
    let invited = shared.node.invite_member(&shared.context(started), asked).await;
    invited.map_err(|error| Failure::node(&error, Asked::Change))
}

/// An invitation whose names and address could be those of a member.
fn checked(asked: InviteRequest) -> Result<InviteRequest, Failure> {
    let bad = |field: &'static str| move |why: String| Failure::new(ProblemCode::BadBody, why).field(field);
    check_name(&asked.name).map_err(bad("name"))?;
    if let Some(site) = &asked.site {
        check_name(site).map_err(bad("site"))?;
    }
    let peer_url = asked.peer_url.as_deref().map(check_url).transpose().map_err(bad("peer_url"))?;
    Ok(InviteRequest { peer_url, ..asked })
}

async fn one(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    let started = Instant::now();
    let asked = Parameters::none(request.uri().query()).and_then(|()| name_of(&request));
    drop(request);
    let name = match asked {
        Ok(name) => name,
        Err(failure) => return failure.into_response(),
    };
    let found = shared.node.member(&shared.context(started), &name).await;
    answer(StatusCode::OK, found.map_err(|error| Failure::node(&error, Asked::Read)))
}

async fn change(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    answer(StatusCode::OK, do_change(&shared, request, Instant::now()).await)
}

async fn do_change(shared: &Shared, request: Request<AxumBody>, started: Instant) -> Result<MemberReply, Failure> {
    Parameters::none(request.uri().query())?;
    let name = name_of(&request)?;
    let change: RoleChange = read_json(shared, request).await?;
    let changed = shared.node.change_role(&shared.context(started), &name, change).await;
    changed.map_err(|error| Failure::node(&error, Asked::Change))
}

async fn remove(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    let started = Instant::now();
    let force = Parameters::parse(request.uri().query(), &["force"]).and_then(|given| given.switch("force"));
    let asked = force.and_then(|force| Ok((name_of(&request)?, force)));
    drop(request);
    let (name, force) = match asked {
        Ok(asked) => asked,
        Err(failure) => return failure.into_response(),
    };
    let removed = shared.node.remove_member(&shared.context(started), &name, force).await;
    answer(StatusCode::OK, removed.map_err(|error| Failure::node(&error, Asked::Change)))
}

/// The name in the path. What could not be a name is none of any member.
fn name_of(request: &Request<AxumBody>) -> Result<String, Failure> {
    check_member_name(request.uri().path())
}

/// The name behind `/v1/members/`.
pub(super) fn check_member_name(path: &str) -> Result<String, Failure> {
    let raw = path.strip_prefix(PREFIX).unwrap_or_default();
    // A client may write any character as %XX. What is no UTF-8 then is no name either.
    match check_name(&percent_decode_str(raw).decode_utf8_lossy()) {
        Ok(name) => Ok(name),
        Err(why) => Err(Failure::new(ProblemCode::UnknownMember, format!("no member can have this name: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_names_what_is_wrong_with_it() {
        let asked = |name: &str, peer_url: Option<&str>, site: Option<&str>| InviteRequest {
            name: name.into(),
            peer_url: peer_url.map(str::to_owned),
            role: None,
            site: site.map(str::to_owned),
        };
        let good = checked(asked("n4", Some("http://a:7401/"), Some("east"))).unwrap();
        assert_eq!(good.peer_url.as_deref(), Some("http://a:7401"));
        for (bad, field) in [
            (asked("", None, None), "name"),
            (asked("N4", None, None), "name"),
            (asked(&"n".repeat(64), None, None), "name"),
            (asked("n4", Some("a:7401"), None), "peer_url"),
            (asked("n4", Some("http://a:0"), None), "peer_url"),
            (asked("n4", None, Some("e/st")), "site"),
        ] {
            let failure = checked(bad).unwrap_err();
            assert_eq!(failure.problem().code(), Some(ProblemCode::BadBody));
            assert_eq!(failure.problem().field.as_deref(), Some(field));
        }
    }

    #[test]
    fn a_name_in_a_path_may_be_percent_encoded() {
        for path in ["/v1/members/east-1", "/v1/members/east%2D1", "/v1/members/%65ast-1"] {
            assert_eq!(check_member_name(path).unwrap(), "east-1");
        }
        for path in ["/v1/members/", "/v1/members/east%2F1", "/v1/members/east%", "/v1/members/%ff"] {
            assert_eq!(check_member_name(path).unwrap_err().problem().code(), Some(ProblemCode::UnknownMember));
        }
    }
}
