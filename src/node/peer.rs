//! Requests of other members, between the listener and the parts that serve them.
//!
//! Everything but a join, a survey and what members of different timelines tell each other passes the fence first. A refusal by the fence is 421 and carries no vote.

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, StatusCode};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::dr::common::CommonQuestion;
use super::dr::drill::DrillNews;
use super::dr::force::{PromoteAnswer, PromoteOrder};
use super::dr::kin::Kin;
use super::dr::survey::SurveyQuestion;
use super::founding::SurveyAnswer;
use super::founding::protocol::Standing;
use super::join::JoinRequest;
use super::leases::{LeaseAnswer, LeaseQuestion};
use super::members::{MembersMessage, MembersRequest};
use super::mirrors::{ChainQuestion, MirroredAnswer, MirroredQuestion};
use super::reads::ReadIndexAnswer;
use super::repair::{COPY_FROM, PullRequest, PulledCopy};
use super::transfer::{TransferReply, TransferRequest};
use super::verify::{DigestQuestion, QuarantineOrder, ScrubQuestion};
use super::{Inner, RequestContext, proposals};
use crate::model::{ClusterId, MemberId};
use crate::raft::link;
use crate::raft::network::path;
use crate::raft::service::ServiceError;

/// The paths between members that are not Raft's own.
pub mod peer_path {
    /// Forwarded writes.
    pub const WRITE: &str = "/peer/v1/write";
    /// A ReadIndex round.
    pub const READ_INDEX: &str = "/peer/v1/read-index";
    /// Hands leadership over, asked by a person.
    pub const HAND_OVER: &str = "/peer/v1/hand-over";
    /// Who a member is, also before it has a cluster.
    pub const SURVEY: &str = "/peer/v1/survey";
    /// Asks a member without a cluster to agree to one.
    pub const HOLD: &str = "/peer/v1/hold";
    /// A question without content; the answer says how the member stands, and by its time how far away it is.
    pub const PING: &str = "/peer/v1/ping";
    /// Which branch of history goes on, told between members of different timelines.
    pub const KIN: &str = "/peer/v1/kin";
    /// How a member stands, asked before a forced failover, whatever timeline it is on.
    pub const DR_SURVEY: &str = "/peer/v1/dr-survey";
    /// Tells a member to begin a timeline.
    pub const PROMOTE: &str = "/peer/v1/promote";
    /// The chain hash at a position.
    pub const CHAIN: &str = "/peer/v1/chain";
    /// What the history holds at some positions, for a member of an abandoned timeline.
    pub const COMMON: &str = "/peer/v1/common";
    /// Waits until a mirror in another site has what is committed.
    pub const MIRRORED: &str = "/peer/v1/mirrored";
    /// Members that come and go, and how they follow, asked by a person.
    pub const MEMBERS: &str = "/peer/v1/members";
    /// A lease, of which the leader counts the time.
    pub const LEASE: &str = "/peer/v1/lease";
    /// A copy of the history for a member that repairs itself; answered as a stream.
    pub const PULL_COPY: &str = "/peer/v1/pull-copy";
    /// A step of a scrub.
    pub const SCRUB: &str = "/peer/v1/scrub";
    /// The digest of a range of keys.
    pub const DIGEST: &str = "/peer/v1/digest";
    /// The leader says that this member is wrong.
    pub const QUARANTINE: &str = "/peer/v1/quarantine";
    /// A mirror has rehearsed a failover.
    pub const DRILLED: &str = "/peer/v1/drilled";
    /// A verification that another member was asked for; answered as a stream.
    pub const VERIFY: &str = "/peer/v1/verify";
    /// A member that wants to belong to the cluster.
    pub const JOIN: &str = "/peer/v1/join";
    /// Pipelined appends.
    pub const APPEND_STREAM: &str = crate::raft::network::path::APPEND_STREAM;
    /// The protocol of the upgrade on [`APPEND_STREAM`].
    pub const APPEND_PROTOCOL: &str = crate::raft::append_stream::PROTOCOL;
}

/// A body as it arrives.
pub type PeerBody = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

/// What another member asks.
pub struct PeerRequest {
    /// The path.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: PeerBody,
}

/// What it gets.
pub struct PeerReply {
    /// The status.
    pub status: StatusCode,
    /// This member's identity.
    pub headers: HeaderMap,
    /// The body: the answer, or the reason for a refusal.
    pub body: Bytes,
}

/// Nobody waits longer for a mirror.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// No message but a snapshot is larger.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

impl Inner {
    pub(super) async fn serve_peer(self: &Arc<Self>, request: PeerRequest) -> PeerReply {
        let mut headers = self.http.identity().headers(None);
        if link::names_compression(&request.headers) {
            // This member can undo it, whatever the request is for.
            link::name_compression(&mut headers);
        }
        let (status, body) = match self.answer_peer(request).await {
            Ok(body) => (StatusCode::OK, body),
            Err((status, why)) => {
                tracing::debug!(%status, why, "a peer's request is refused");
                (status, Bytes::from(why))
            }
        };
        PeerReply { status, headers, body }
    }

    /// Whether a peer may open an append stream.
    pub(super) fn check_peer(&self, headers: &HeaderMap) -> Result<MemberId, (StatusCode, String)> {
        if let Some(why) = self.failure.borrow().clone() {
            return Err((StatusCode::SERVICE_UNAVAILABLE, why));
        }
        match self.http.identity().check_request(headers) {
            Ok(sender) => Ok(sender),
            Err(e) => {
                self.http.identity().note_refusal(e.to_string());
                Err((StatusCode::MISDIRECTED_REQUEST, e.to_string()))
            }
        }
    }

    /// Whether a member that is exempt from the fence is one of the same cluster.
    fn check_kin(&self, theirs: ClusterId) -> Result<(), (StatusCode, String)> {
        let ours = self.http.identity().cluster;
        match theirs == ours {
            true => Ok(()),
            false => Err((StatusCode::MISDIRECTED_REQUEST, format!("this member belongs to cluster {ours}"))),
        }
    }

    /// Who this member is, for members that look for a cluster or for each other.
    fn describe(&self) -> SurveyAnswer {
        let standing = Standing::Belongs { cluster: self.http.identity().cluster };
        SurveyAnswer::new(self.id, self.info.clone(), None, standing)
    }

    async fn answer_peer(self: &Arc<Self>, request: PeerRequest) -> Result<Bytes, (StatusCode, String)> {
        if request.path == peer_path::JOIN {
            let join: JoinRequest = read_json(&collect(request.body).await?)?;
            return Ok(write_json(&self.serve_join(join).await));
        }
        if request.path == peer_path::SURVEY {
            return Ok(write_json(&self.describe()));
        }
        if request.path == peer_path::DR_SURVEY {
            let question: SurveyQuestion = read_json(&collect(request.body).await?)?;
            self.check_kin(question.cluster)?;
            // Before the answer is made: whoever is told that this member has decided gives way.
            question.promoting.iter().for_each(|id| self.meet_rival(*id));
            return Ok(write_json(&self.own_survey()));
        }
        if request.path == peer_path::KIN {
            let theirs: Kin = read_json(&collect(request.body).await?)?;
            self.check_kin(theirs.cluster)?;
            self.meet(theirs);
            return Ok(write_json(&self.kin()));
        }
        if request.path == peer_path::COMMON {
            let question: CommonQuestion = read_json(&collect(request.body).await?)?;
            self.check_kin(question.cluster)?;
            let answer = self.answer_common(question).await;
            return answer.map(|answer| write_json(&answer)).map_err(|why| (StatusCode::SERVICE_UNAVAILABLE, why));
        }
        let sender = self.check_peer(&request.headers)?;
        if request.path == path::SNAPSHOT {
            let served = match link::names_compression(&request.headers) {
                true => self.service.snapshot(Box::pin(link::decode_body(request.body))).await,
                false => self.service.snapshot(request.body).await,
            };
            return served.map_err(service_error);
        }
        let path = request.path;
        let body = collect(request.body).await?;
        match path.as_str() {
            path::APPEND => self.service.append(body).await.map_err(service_error),
            path::COPY_POSITION => self.service.copy_position().await.map_err(service_error),
            path::VOTE => self.service.vote(&body, false).await.map_err(service_error),
            path::PRE_VOTE => self.service.vote(&body, true).await.map_err(service_error),
            path::TRANSFER => self.service.transfer(&body).await.map_err(service_error),
            peer_path::WRITE => {
                let served = proposals::serve_forwarded(self, body).await;
                served.map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))
            }
            peer_path::READ_INDEX => {
                let result = match self.refuse_removed(sender).await {
                    Ok(()) => self.read_index(true).await,
                    Err(e) => Err(e),
                };
                Ok(write_json(&ReadIndexAnswer { result }))
            }
            peer_path::LEASE => {
                let LeaseQuestion { id, keep_alive } = read_json(&body)?;
                let ctx = RequestContext::anonymous(0, self.limits.request_timeout);
                let result = self.lease_clock(&ctx, id, keep_alive, true).await;
                Ok(write_json(&LeaseAnswer { result }))
            }
            peer_path::HAND_OVER => {
                let request: TransferRequest = read_json(&body)?;
                let ctx = RequestContext::anonymous(0, self.limits.request_timeout);
                let result = self.transfer_leader(&ctx, request.to, true).await;
                Ok(write_json(&TransferReply { result }))
            }
            peer_path::PROMOTE => {
                let PromoteOrder { promotion } = read_json(&body)?;
                Ok(write_json(&PromoteAnswer { result: self.promoted(promotion) }))
            }
            peer_path::DRILLED => {
                let told = self.drilled(read_json::<DrillNews>(&body)?);
                told.map(|()| write_json(&())).map_err(|why| (StatusCode::CONFLICT, why))
            }
            peer_path::PING => Ok(write_json(&self.standing())),
            peer_path::CHAIN => Ok(write_json(&self.chain_for(read_json::<ChainQuestion>(&body)?).await)),
            peer_path::MIRRORED => {
                let question: MirroredQuestion = read_json(&body)?;
                let mirrored = self.wait_mirrored(Duration::from_millis(question.wait_ms).min(MAX_WAIT)).await;
                Ok(write_json(&MirroredAnswer { mirrored }))
            }
            peer_path::SCRUB => Ok(write_json(&self.scrub_step(read_json::<ScrubQuestion>(&body)?).await)),
            peer_path::DIGEST => Ok(write_json(&self.digest_range(read_json::<DigestQuestion>(&body)?).await)),
            peer_path::QUARANTINE => {
                let ordered = self.ordered_into_quarantine(sender, read_json::<QuarantineOrder>(&body)?);
                ordered.map(|()| write_json(&())).map_err(|why| (StatusCode::CONFLICT, why))
            }
            peer_path::MEMBERS => {
                let request: MembersRequest = read_json(&body)?;
                let ctx = RequestContext::anonymous(0, self.limits.request_timeout);
                let result = self.ask_members(&ctx, request, true).await;
                Ok(write_json(&MembersMessage { result }))
            }
            other => Err((StatusCode::NOT_FOUND, format!("no such path: {other}"))),
        }
    }
}

fn service_error(e: ServiceError) -> (StatusCode, String) {
    let status = match &e {
        ServiceError::Malformed(_) => StatusCode::BAD_REQUEST,
        ServiceError::Busy => StatusCode::CONFLICT,
        ServiceError::Stopped(_) | ServiceError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, e.to_string())
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, (StatusCode, String)> {
    serde_json::from_slice(body).map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))
}

pub(super) fn write_json(message: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(message).expect("messages between members always serialise").into()
}

pub(super) async fn collect(mut body: PeerBody) -> Result<Bytes, (StatusCode, String)> {
    use futures_util::StreamExt;
    let mut first = Bytes::new();
    let mut all = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| (StatusCode::BAD_REQUEST, e))?;
        if first.is_empty() && all.is_empty() {
            first = chunk;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&first);
        }
        if all.len() + chunk.len() > MAX_MESSAGE_BYTES {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, format!("more than {MAX_MESSAGE_BYTES} bytes")));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(if all.is_empty() { first } else { all.into() })
}

impl super::Node {
    /// Serves pipelined appends on a connection that was upgraded after [`super::Node::check_append_stream`], whose
    /// headers say whether they come compressed.
    pub async fn serve_append_stream<IO>(&self, io: IO, agreed: &HeaderMap) -> std::io::Result<()>
    where
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let decoder = link::names_compression(agreed).then(link::Decoder::new).transpose()?;
        tokio::select! {
            served = crate::raft::append_stream::serve(self.0.service.raft().clone(), io, decoder) => served,
            // The fence was looked at when the stream began; now it holds for what comes over it too.
            () = self.0.http.identity().is_fenced() => Ok(()),
        }
    }

    /// Sends a copy to a member that repairs itself: its headers and bytes, or the refusal.
    pub async fn serve_pull(
        &self,
        headers: &HeaderMap,
        body: PeerBody,
    ) -> Result<(HeaderMap, PeerBody), Box<PeerReply>> {
        let mut own = self.0.http.identity().headers(None);
        let pulled = async {
            self.0.check_peer(headers)?;
            let request: PullRequest = read_json(&collect(body).await?)?;
            let pulled = self.0.send_pulled(request).await;
            pulled.map_err(|why| (StatusCode::SERVICE_UNAVAILABLE, why))
        };
        match pulled.await {
            Ok(PulledCopy { from, chunks }) => {
                own.insert(COPY_FROM, from.into());
                let chunks =
                    futures_util::stream::unfold(
                        chunks,
                        |mut chunks| async move { Some((chunks.recv().await?, chunks)) },
                    );
                Ok((own, Box::pin(chunks)))
            }
            Err((status, why)) => Err(Box::new(PeerReply { status, headers: own, body: why.into() })),
        }
    }

    /// Whether a peer may open an append stream: the headers to answer with, or the refusal.
    pub fn check_append_stream(&self, headers: &HeaderMap) -> Result<HeaderMap, Box<PeerReply>> {
        let mut own = self.0.http.identity().headers(None);
        if link::names_compression(headers) {
            link::name_compression(&mut own);
        }
        match self.0.check_peer(headers) {
            Ok(_) => Ok(own),
            Err((status, why)) => Err(Box::new(PeerReply { status, headers: own, body: why.into() })),
        }
    }
}
