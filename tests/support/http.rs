//! HTTP/1.1 over a plain blocking socket.
//!
//! Its own small client, for two reasons: a test must be able to send bytes that no library would send, and a judge of
//! histories must know whether a request that failed had been sent. It does not follow redirects, does not retry and
//! does not hide a connection that broke.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// How long a client of a test waits for a connection or for the next bytes of an answer. Longer than any limit of the
/// server that a test relies on.
pub const SOCKET_TIMEOUT: Duration = Duration::from_secs(20);

/// The largest answer that is taken; more is a mistake of the test or of the server.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The problems of those who recover from a disaster: each names the command that makes sense next.
const WITH_NEXT: [&str; 8] = [
    "fenced",
    "not-fenced",
    "primary-answers",
    "standby-incomplete",
    "switchover-refused",
    "drill-refused",
    "unknown-site",
    "unknown-file",
];

/// Whether what a member says, a reply or a problem, names the command that makes sense next.
pub fn names_next(said: &Value) -> bool {
    let words = said["next"].as_str().or(said["detail"].as_str()).unwrap_or_default();
    let commands = ["dr", "salvage", "members", "replication", "events", "verify"];
    commands.iter().any(|command| words.contains(&format!("lifeboat {command}")))
}

/// Why no answer came.
#[derive(Debug)]
pub enum Failure {
    /// No connection: the request cannot have been seen.
    NotSent(io::Error),
    /// The connection broke, or nothing came in time, after bytes were sent: the request may have been done.
    Unknown(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NotSent(error) => write!(f, "not sent: {error}"),
            Failure::Unknown(error) => write!(f, "sent, but no answer: {error}"),
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    /// The body, chunks put together.
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header that may come once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n == &name.to_ascii_lowercase());
        let first = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "header {name} came twice: {self}");
        first
    }

    /// The value of a header that must be there.
    #[track_caller]
    pub fn must_have(&self, name: &str) -> &str {
        self.header(name).unwrap_or_else(|| panic!("no header {name} in {self}"))
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self}"))
    }

    /// The body as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_else(|error| panic!("not text ({error}): {self}"))
    }

    /// The revision in the `ETag`: a strong one, quoted, decimal.
    pub fn etag_revision(&self) -> Option<u64> {
        self.header("etag").map(|tag| {
            let digits = tag.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
            digits.and_then(|d| d.parse().ok()).unwrap_or_else(|| panic!("{tag} is not an ETag of ours"))
        })
    }

    /// Fails unless the answer has this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Fails unless this is a problem document of this status and type, with what every problem carries.
    #[track_caller]
    pub fn expect_problem(self, status: u16, kind: &str) -> Value {
        assert_eq!(self.status, status, "expected {status} {kind}: {self}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self}");
        let problem = self.json();
        assert_eq!(problem["type"], format!("urn:lifeboat:problem:{kind}"), "{self}");
        assert_eq!(problem["status"], status, "{self}");
        for text in ["title", "detail"] {
            assert!(problem[text].as_str().is_some_and(|t| !t.is_empty()), "problem without {text}: {self}");
        }
        if WITH_NEXT.contains(&kind) {
            assert!(names_next(&problem), "problem without the next command: {self}");
        }
        let retry = problem["retry"].as_str().unwrap_or_default();
        assert!(["safe", "unknown", "never"].contains(&retry), "problem with retry {retry:?}: {self}");
        problem
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "HTTP {}", self.status)?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {value}")?;
        }
        let shown = &self.body[..self.body.len().min(2000)];
        write!(f, "\n{}", String::from_utf8_lossy(shown))
    }
}

/// One connection, kept open between requests.
pub struct Connection {
    stream: TcpStream,
    /// Bytes that came and belong to the next answer.
    received: Vec<u8>,
}

impl Connection {
    /// Connects, or says why not.
    pub fn open(address: SocketAddr) -> io::Result<Connection> {
        Connection::open_within(address, SOCKET_TIMEOUT)
    }

    /// Connects; `timeout` holds for the connection and for every wait for bytes.
    pub fn open_within(address: SocketAddr, timeout: Duration) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, received: Vec::new() })
    }

    /// The address this side got.
    pub fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr().expect("a connected socket has an address")
    }

    /// Whether the other side has not closed it while nothing was under way. A client looks before it uses one again.
    pub fn is_open(&self) -> bool {
        let looked = self.stream.set_nonblocking(true).and_then(|()| self.stream.peek(&mut [0]));
        let nothing_came = looked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        nothing_came && self.stream.set_nonblocking(false).is_ok()
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that nothing more will be sent; answers can still come.
    pub fn finish_sending(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Reads the next answer. `head` says that the request was a HEAD, whose answer has no body.
    pub fn read_answer(&mut self, head: bool) -> io::Result<Answer> {
        loop {
            let answer = self.read_any_answer(head)?;
            // 1xx answers come before the real one.
            if answer.status >= 200 {
                return Ok(answer);
            }
        }
    }

    /// Reads the next answer, an interim one (1xx) too.
    pub fn read_any_answer(&mut self, head: bool) -> io::Result<Answer> {
        let end = loop {
            if let Some(at) = find(&self.received, b"\r\n\r\n") {
                break at;
            }
            self.receive()?;
        };
        let header_section: Vec<u8> = self.received.drain(..end + 4).collect();
        let (status, headers) = parse_headers(&header_section[..end])?;
        let mut answer = Answer { status, headers, body: Vec::new() };
        if head || status < 200 || status == 204 || status == 304 {
            return Ok(answer);
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = self.read_chunks()?;
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().map_err(|_| malformed("Content-Length is not a number"))?;
            answer.body = self.take(length)?;
        } else {
            answer.body = self.read_to_end()?;
        }
        Ok(answer)
    }

    /// Reads the head of an answer whose body comes in chunks, one by one; any other answer whole.
    pub fn read_stream(&mut self) -> io::Result<Answer> {
        let end = loop {
            if let Some(at) = find(&self.received, b"\r\n\r\n") {
                break at;
            }
            self.receive()?;
        };
        let (status, headers) = parse_headers(&self.received[..end])?;
        let answer = Answer { status, headers, body: Vec::new() };
        if answer.header("transfer-encoding") != Some("chunked") {
            return self.read_answer(false);
        }
        self.received.drain(..end + 4);
        Ok(answer)
    }

    /// The next chunk of a body; none at its end.
    pub fn read_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.read_line()?;
        let text = std::str::from_utf8(&line).map_err(|_| malformed("a chunk size that is not text"))?;
        let digits = text.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).map_err(|_| malformed("a chunk size that is no number"))?;
        if size == 0 {
            while !self.read_line()?.is_empty() {}
            return Ok(None);
        }
        let chunk = self.take(size)?;
        if !self.take(2)?.eq(b"\r\n") {
            return Err(malformed("a chunk without its end"));
        }
        Ok(Some(chunk))
    }

    /// Everything until the other side closes.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut all = std::mem::take(&mut self.received);
        self.stream.read_to_end(&mut all)?;
        Ok(all)
    }

    /// The next bytes that come, at least one; an error when the other side closed.
    pub fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let count = self.stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other side closed the connection"));
        }
        if self.received.len() + count > MAX_ANSWER_BYTES {
            return Err(malformed("the answer does not end"));
        }
        self.received.extend_from_slice(&buffer[..count]);
        Ok(())
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.received.len() < count {
            self.receive()?;
        }
        Ok(self.received.drain(..count).collect())
    }

    fn read_line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = find(&self.received, b"\r\n") {
                let line = self.received.drain(..end + 2).take(end).collect();
                return Ok(line);
            }
            self.receive()?;
        }
    }

    fn read_chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(chunk) = self.read_chunk()? {
            body.extend(chunk);
        }
        Ok(body)
    }
}

/// A request on its way to being bytes.
#[derive(Clone)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    /// A request for a path that is already percent-encoded.
    pub fn new(method: &str, target: &str) -> Request {
        Request { method: method.into(), target: target.into(), headers: Vec::new(), body: None }
    }

    /// With a header more.
    pub fn header(mut self, name: &str, value: &str) -> Request {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With a body and its Content-Length.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Request {
        self.body = Some(body.as_ref().to_vec());
        self
    }

    /// The bytes that go over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\nHost: test\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if let Some(body) = &self.body {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }

    /// Sends the request on a connection of its own.
    pub fn try_send(&self, address: SocketAddr) -> Result<Answer, Failure> {
        let mut connection = Connection::open(address).map_err(Failure::NotSent)?;
        self.try_send_on(&mut connection)
    }

    /// Sends the request on an open connection.
    pub fn try_send_on(&self, connection: &mut Connection) -> Result<Answer, Failure> {
        connection.send(&self.bytes()).map_err(Failure::Unknown)?;
        connection.read_answer(self.method == "HEAD").map_err(Failure::Unknown)
    }

    /// Sends the request and fails the test when no answer comes.
    #[track_caller]
    pub fn send(&self, address: SocketAddr) -> Answer {
        match self.try_send(address) {
            Ok(answer) => answer,
            Err(failure) => panic!("{} {} to {address}: {failure}", self.method, self.target),
        }
    }
}

/// GET.
#[track_caller]
pub fn get(address: SocketAddr, target: &str) -> Answer {
    Request::new("GET", target).send(address)
}

/// PUT with a body.
#[track_caller]
pub fn put(address: SocketAddr, target: &str, body: impl AsRef<[u8]>) -> Answer {
    Request::new("PUT", target).body(body).send(address)
}

/// DELETE.
#[track_caller]
pub fn delete(address: SocketAddr, target: &str) -> Answer {
    Request::new("DELETE", target).send(address)
}

/// POST with JSON.
#[track_caller]
pub fn post(address: SocketAddr, target: &str, body: &Value) -> Answer {
    Request::new("POST", target).header("Content-Type", "application/json").body(body.to_string()).send(address)
}

/// Percent-encodes every byte that is not a letter or a digit.
pub fn encode(bytes: &[u8]) -> String {
    percent_encoding::percent_encode(bytes, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn parse_headers(section: &[u8]) -> io::Result<(u16, Vec<(String, String)>)> {
    let text = std::str::from_utf8(section).map_err(|_| malformed("headers that are not text"))?;
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| status_line.strip_prefix("HTTP/1.0 "))
        .and_then(|rest| rest.get(..3))
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| malformed("a status line that is none"))?;
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| malformed("a header without a colon"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
    }
    Ok((status, headers))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
