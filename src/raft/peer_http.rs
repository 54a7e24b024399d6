//! The one place where a member dials another: HTTP/1.1 over reqwest, with the identity of both checked.
//!
//! `raft`'s network, `node`'s forwarding and the join handshake all go through [`PeerHttp`], so that transport security
//! is a change here and in the listener alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::fence::{self, FenceError, Identity};
use super::link;
use crate::model::MemberId;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Idle connections are closed before the listener's own limit closes them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a peer gave no usable answer.
#[derive(Debug, Error)]
pub enum PeerError {
    /// No byte of the request was sent.
    #[error("cannot connect to {url}: {source}")]
    Connect {
        /// The address dialled.
        url: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// The answer did not come in time.
    #[error("{url} did not answer in time")]
    Timeout {
        /// The address asked.
        url: String,
    },
    /// The connection broke.
    #[error("the connection to {url} broke: {source}")]
    Broken {
        /// The address asked.
        url: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// The peer answered with an error.
    #[error("{url} answered {status}: {body}")]
    Status {
        /// The address asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Whether a member said so. Something in between may answer when a member has taken the request already.
        by_member: bool,
        /// What it said.
        body: String,
    },
    /// The answer comes from a member that must not be believed.
    #[error("the answer of {url} is refused: {source}")]
    Fenced {
        /// The address asked.
        url: String,
        /// Why.
        source: FenceError,
    },
    /// The answer cannot be read.
    #[error("the answer of {url} is malformed: {detail}")]
    Malformed {
        /// The address asked.
        url: String,
        /// Why.
        detail: String,
    },
}

impl PeerError {
    fn from_reqwest(url: &str, source: reqwest::Error) -> PeerError {
        let url = url.to_string();
        // One that dials nobody fails when the request is built.
        if source.is_connect() || source.is_builder() {
            PeerError::Connect { url, source }
        } else if source.is_timeout() {
            PeerError::Timeout { url }
        } else {
            PeerError::Broken { url, source }
        }
    }
}

/// Dials other members.
#[derive(Debug, Clone)]
pub struct PeerHttp {
    client: reqwest::Client,
    identity: Arc<Identity>,
}

/// Set once in the process of a member that must not speak to any other.
static DIALS_NOBODY: AtomicBool = AtomicBool::new(false);

/// From now on nothing in this process dials another member: for a throwaway member, which has the history of a real one
/// and so the addresses of its cluster. For good, and for every dialler that is made afterwards.
pub fn dial_nobody() {
    DIALS_NOBODY.store(true, Ordering::Relaxed);
}

/// Whether [`dial_nobody`] was called.
pub fn dials_nobody() -> bool {
    DIALS_NOBODY.load(Ordering::Relaxed)
}

fn new_client() -> Result<reqwest::Client, reqwest::Error> {
    client(dials_nobody())
}

/// The one place where the clients of members are made. One that dials nobody takes only addresses that begin with
/// `https`, and no member has one.
fn client(dials_nobody: bool) -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .https_only(dials_nobody)
        .http1_only()
        .tcp_nodelay(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build()
}

/// Dials members without an identity: only the join handshake is spoken so.
#[derive(Debug, Clone)]
pub struct StrangerHttp(reqwest::Client);

impl StrangerHttp {
    /// A dialler.
    pub fn new() -> Result<StrangerHttp, reqwest::Error> {
        Ok(StrangerHttp(new_client()?))
    }
}

/// Asks members as one without an identity. A trait, so that tests have a network of their own.
pub trait AskStranger: Sync {
    /// Sends JSON and reads JSON; what went wrong comes back as words for people.
    fn post_json<A: DeserializeOwned>(
        &self,
        url: &str,
        message: &(impl Serialize + Sync),
        timeout: Duration,
    ) -> impl Future<Output = Result<A, String>> + Send;
}

impl AskStranger for StrangerHttp {
    async fn post_json<A: DeserializeOwned>(
        &self,
        url: &str,
        message: &(impl Serialize + Sync),
        timeout: Duration,
    ) -> Result<A, String> {
        read_answer(self.0.post(url).json(message).timeout(timeout).send().await).await
    }
}

/// As itself, to members of whatever timeline: for the few messages that are exempt from the fence.
impl AskStranger for PeerHttp {
    async fn post_json<A: DeserializeOwned>(
        &self,
        url: &str,
        message: &(impl Serialize + Sync),
        timeout: Duration,
    ) -> Result<A, String> {
        let request = self.client.post(url).headers(self.identity.headers(None));
        read_answer(request.json(message).timeout(timeout).send().await).await
    }
}

async fn read_answer<A: DeserializeOwned>(sent: Result<reqwest::Response, reqwest::Error>) -> Result<A, String> {
    let response = sent.map_err(|e| format!("no answer: {}", root_cause(&e)))?;
    let status = response.status();
    if !status.is_success() {
        let text = response.text().await.map_err(|e| e.to_string())?;
        return Err(format!("{status}: {text}"));
    }
    response.json().await.map_err(|e| format!("its answer cannot be read: {e}"))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

impl PeerHttp {
    /// A dialler that speaks as `identity`.
    pub fn new(identity: Arc<Identity>) -> Result<PeerHttp, reqwest::Error> {
        Ok(PeerHttp { client: new_client()?, identity })
    }

    /// Who this member is.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Sends a POST to the member `to` at `url` (its peer address) and gives the body of a 200 of that very member.
    pub async fn post(
        &self,
        to: MemberId,
        url: &str,
        path: &str,
        body: impl Into<reqwest::Body>,
        timeout: Duration,
    ) -> Result<Bytes, PeerError> {
        let (_, answer) = self.post_with(to, url, path, HeaderMap::new(), body, timeout).await?;
        Ok(answer)
    }

    /// Like [`PeerHttp::post`], with headers of its own, and gives those of the reply too.
    pub async fn post_with(
        &self,
        to: MemberId,
        url: &str,
        path: &str,
        headers: HeaderMap,
        body: impl Into<reqwest::Body>,
        timeout: Duration,
    ) -> Result<(HeaderMap, Bytes), PeerError> {
        let request = self.client.post(format!("{url}{path}")).headers(self.headers(to)).headers(headers);
        let response = request.body(body).timeout(timeout).send().await.map_err(|e| PeerError::from_reqwest(url, e))?;
        let response = self.accept(to, url, response, 200).await?;
        let headers = response.headers().clone();
        Ok((headers, response.bytes().await.map_err(|e| PeerError::from_reqwest(url, e))?))
    }

    /// Like [`PeerHttp::post`], with JSON both ways.
    pub async fn post_json<A: DeserializeOwned>(
        &self,
        to: MemberId,
        url: &str,
        path: &str,
        message: &impl Serialize,
        timeout: Duration,
    ) -> Result<A, PeerError> {
        let body = serde_json::to_vec(message).expect("messages between members always serialise");
        let answer = self.post(to, url, path, body, timeout).await?;
        serde_json::from_slice(&answer)
            .map_err(|e| PeerError::Malformed { url: url.to_string(), detail: e.to_string() })
    }

    /// Like [`PeerHttp::post`], for an answer that is read as it comes; `timeout` is for its beginning only.
    pub async fn post_stream(
        &self,
        to: MemberId,
        url: &str,
        path: &str,
        message: &impl Serialize,
        timeout: Duration,
    ) -> Result<reqwest::Response, PeerError> {
        let body = serde_json::to_vec(message).expect("messages between members always serialise");
        let request = self.client.post(format!("{url}{path}")).headers(self.headers(to)).body(body);
        let asked = async {
            let response = request.send().await.map_err(|e| PeerError::from_reqwest(url, e))?;
            self.accept(to, url, response, 200).await
        };
        match tokio::time::timeout(timeout, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(PeerError::Timeout { url: url.to_string() }),
        }
    }

    /// Turns a connection to the member `to` into a stream of frames by an HTTP upgrade. Says whether the member takes
    /// the compression that was offered.
    pub async fn upgrade(
        &self,
        to: MemberId,
        url: &str,
        path: &str,
        protocol: &'static str,
        offer_compression: bool,
        timeout: Duration,
    ) -> Result<(reqwest::Upgraded, bool), PeerError> {
        let mut headers = self.headers(to);
        if offer_compression {
            link::name_compression(&mut headers);
        }
        headers.insert(reqwest::header::CONNECTION, reqwest::header::HeaderValue::from_static("upgrade"));
        headers.insert(reqwest::header::UPGRADE, reqwest::header::HeaderValue::from_static(protocol));
        // Not the request's own timeout: that one would go on to limit the life of the upgraded connection.
        let dial = async {
            let sent = self.client.get(format!("{url}{path}")).headers(headers).send().await;
            let response = sent.map_err(|e| PeerError::from_reqwest(url, e))?;
            let response = self.accept(to, url, response, 101).await?;
            let taken = offer_compression && link::names_compression(response.headers());
            Ok((response.upgrade().await.map_err(|e| PeerError::from_reqwest(url, e))?, taken))
        };
        match tokio::time::timeout(timeout, dial).await {
            Ok(result) => result,
            Err(_) => Err(PeerError::Timeout { url: url.to_string() }),
        }
    }

    fn headers(&self, to: MemberId) -> HeaderMap {
        self.identity.headers(Some(to))
    }

    async fn accept(
        &self,
        to: MemberId,
        url: &str,
        response: reqwest::Response,
        expected: u16,
    ) -> Result<reqwest::Response, PeerError> {
        let status = response.status().as_u16();
        if status != expected {
            let by_member = fence::names_a_member(response.headers());
            let body = response.text().await.unwrap_or_else(|e| format!("(its body cannot be read: {e})"));
            if status == http::StatusCode::MISDIRECTED_REQUEST.as_u16() {
                self.identity.note_refusal(format!("{url} refused: {body}"));
                self.identity.note_stranger();
            }
            return Err(PeerError::Status { url: url.to_string(), status, by_member, body });
        }
        match self.identity.check_reply(response.headers(), to) {
            Ok(()) => Ok(response),
            Err(source) => {
                self.identity.note_refusal(format!("the answer of {url}: {source}"));
                Err(PeerError::Fenced { url: url.to_string(), source })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_dials_nobody_opens_no_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let sent = client(true).unwrap().post(&url).body("x").send().await.unwrap_err();
        assert!(matches!(PeerError::from_reqwest(&url, sent), PeerError::Connect { .. }));
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        // The same client otherwise does: the test tests something.
        let asked = client(false).unwrap().post(&url).timeout(Duration::from_millis(100)).body("x").send().await;
        assert!(asked.is_err());
        listener.accept().unwrap();
    }
}
