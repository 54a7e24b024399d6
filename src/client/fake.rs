//! Servers that fail in one exact way each, for the tests of the client.
//!
//! A [`FakeMember`] listens on a port of its own, writes down each request that it gets, and asks the test's function
//! what to do with it: answer, answer a part, close without a word, or say nothing at all.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as it came over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Got {
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Got {
    pub fn key(&self) -> Option<&str> {
        self.headers.get("idempotency-key").map(String::as_str)
    }
}

/// What to do with a request.
#[derive(Debug, Clone)]
pub enum Act {
    /// Sends this and keeps the connection.
    Answer(String),
    /// Sends this and closes the connection.
    AnswerAndClose(String),
    /// Sends this and then nothing more, with the connection open.
    AnswerAndHang(String),
    /// Closes the connection without a word.
    Close,
    /// Does not answer.
    Hang,
}

/// An answer with headers that every member sends.
pub fn answer(status: u16, headers: &str, body: &str) -> Act {
    Act::Answer(raw(status, headers, body))
}

pub fn raw(status: u16, headers: &str, body: &str) -> String {
    let length = if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    format!("HTTP/1.1 {status} x\r\nLifeboat-Revision: 7\r\n{length}{headers}\r\n{body}")
}

/// A problem document.
pub fn problem(status: u16, code: &str, retry: &str, outcome: Option<&str>, headers: &str) -> Act {
    let outcome = outcome.map_or_else(String::new, |outcome| format!(r#","outcome":"{outcome}""#));
    let body = format!(
        r#"{{"type":"urn:lifeboat:problem:{code}","title":"{code}","status":{status},"detail":"why","retry":"{retry}"{outcome}}}"#
    );
    answer(status, &format!("Content-Type: application/problem+json\r\n{headers}"), &body)
}

pub const WRITTEN: &str = r#"{"revision":8,"create_revision":8,"version":1,"previous_revision":null}"#;

/// The answer to a put that was done.
pub fn written() -> Act {
    answer(201, "", WRITTEN)
}

/// A server that is no member.
pub struct FakeMember {
    pub address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
    task: JoinHandle<()>,
}

impl FakeMember {
    /// `act` is given the number of the request, from 0, and the request.
    pub async fn start(act: impl Fn(usize, &Got) -> Act + Send + Sync + 'static) -> FakeMember {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let got: Arc<Mutex<Vec<Got>>> = Arc::default();
        let act = Arc::new(act);
        let all = got.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(converse(stream, all.clone(), act.clone()));
            }
        });
        FakeMember { address, got, task }
    }

    /// Always does the same.
    pub async fn always(act: Act) -> FakeMember {
        FakeMember::start(move |_, _| act.clone()).await
    }

    /// Does these one after the other, and the last one for ever.
    pub async fn script(acts: Vec<Act>) -> FakeMember {
        FakeMember::start(move |at, _| acts[at.min(acts.len() - 1)].clone()).await
    }

    /// An address where nobody listens.
    pub async fn nobody() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn got(&self) -> Vec<Got> {
        self.got.lock().clone()
    }

    pub fn count(&self) -> usize {
        self.got.lock().len()
    }
}

impl Drop for FakeMember {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn converse(
    mut stream: TcpStream,
    all: Arc<Mutex<Vec<Got>>>,
    act: Arc<impl Fn(usize, &Got) -> Act + Send + Sync + 'static>,
) {
    let mut received = Vec::new();
    while let Some(got) = read_request(&mut stream, &mut received).await {
        let at = {
            let mut all = all.lock();
            all.push(got.clone());
            all.len() - 1
        };
        let text = match act(at, &got) {
            Act::Answer(text) => {
                if stream.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
                continue;
            }
            Act::AnswerAndClose(text) => {
                let _ = stream.write_all(text.as_bytes()).await;
                return;
            }
            Act::Close => return,
            Act::AnswerAndHang(text) => text,
            Act::Hang => String::new(),
        };
        let _ = stream.write_all(text.as_bytes()).await;
        // Until the client goes.
        let mut rest = [0; 64];
        while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
        return;
    }
}

async fn read_request(stream: &mut TcpStream, received: &mut Vec<u8>) -> Option<Got> {
    let head = loop {
        if let Some(at) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        receive(stream, received).await?;
    };
    let text = String::from_utf8(received.drain(..head + 4).collect()).unwrap();
    let mut lines = text.lines();
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while received.len() < length {
        receive(stream, received).await?;
    }
    Some(Got { method, target, headers, body: received.drain(..length).collect() })
}

async fn receive(stream: &mut TcpStream, received: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
    received.extend_from_slice(&buffer[..count]);
    Some(())
}
