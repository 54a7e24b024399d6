//! A client for tests that sends exactly the bytes it is told to: paths that others would tidy up, heads that are never
//! finished.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Nothing here should take so long; if it does, the test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One connection.
pub struct Wire(BufReader<TcpStream>);

/// A reply.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
    }

    /// The code of a problem document, after checking what every one has.
    pub fn problem(&self) -> crate::api::Problem {
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem: crate::api::Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status);
        problem
    }

    pub fn code(&self) -> String {
        self.problem().code().map_or_else(|| self.problem().kind, |code| code.to_string())
    }
}

async fn patiently<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("the server answers in time")
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Wire {
        Wire(BufReader::new(TcpStream::connect(address).await.unwrap()))
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends what may be refused half-way.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.0.get_mut().write_all(bytes).await.is_ok()
    }

    /// A whole request with a body of known length.
    pub async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method == "PUT" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.send([head.as_bytes(), body].concat()).await;
        self.answer(method == "HEAD").await
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"").await
    }

    pub async fn put(&mut self, path: &str, body: &[u8]) -> Answer {
        self.ask("PUT", path, &[], body).await
    }

    /// The next reply; `head_only` when its body does not follow.
    pub async fn answer(&mut self, head_only: bool) -> Answer {
        patiently(self.read_answer(head_only)).await.expect("a whole reply")
    }

    /// The next reply, or none when the connection was closed before its end.
    pub async fn answer_or_cut(&mut self) -> Option<Answer> {
        patiently(self.read_answer(false)).await
    }

    /// The next bytes, whatever they are.
    pub async fn raw(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        patiently(self.0.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// Whether the server closes without another byte.
    pub async fn is_closed(&mut self) -> bool {
        // A reset closes as well.
        patiently(self.0.read_u8()).await.is_err()
    }

    /// The head of a reply whose body is read by [`Wire::chunk`]; any other reply whole.
    pub async fn stream(&mut self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut head = format!("GET {path} HTTP/1.1\r\nHost: test\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        self.send(head + "\r\n").await;
        let (status, headers) = patiently(self.read_head()).await.expect("a whole head");
        if headers.contains_key("content-length") {
            let mut body = vec![0; headers["content-length"].parse().unwrap()];
            patiently(self.0.read_exact(&mut body)).await.unwrap();
            return Answer { status, headers, body };
        }
        Answer { status, headers, body: Vec::new() }
    }

    /// The next chunk of a body; none at its end, or when it was cut.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        patiently(self.read_chunk()).await
    }

    async fn read_chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(&self.line().await?, 16).unwrap();
        let mut chunk = vec![0; size + 2];
        self.0.read_exact(&mut chunk).await.ok()?;
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).await.ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    }

    async fn read_head(&mut self) -> Option<(u16, HashMap<String, String>)> {
        let status_line = self.line().await?;
        let status: u16 =
            status_line.split(' ').nth(1).unwrap_or_else(|| panic!("no reply: {status_line:?}")).parse().unwrap();
        let mut headers = HashMap::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let (name, value) =
                line.split_once(':').unwrap_or_else(|| panic!("{line:?} is no header, after {headers:?}"));
            let earlier = headers.insert(name.to_lowercase(), value.trim().to_owned());
            assert_eq!(earlier, None, "{name} is sent twice");
        }
        Some((status, headers))
    }

    async fn read_answer(&mut self, head_only: bool) -> Option<Answer> {
        let (status, headers) = self.read_head().await?;
        let bodiless = head_only || status == 304 || status == 204 || status < 200;
        let mut body = Vec::new();
        if bodiless {
        } else if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            loop {
                let size = usize::from_str_radix(&self.line().await?, 16).unwrap();
                let mut chunk = vec![0; size + 2];
                self.0.read_exact(&mut chunk).await.ok()?;
                if size == 0 {
                    break;
                }
                body.extend_from_slice(&chunk[..size]);
            }
        } else {
            body = vec![0; headers["content-length"].parse().unwrap()];
            self.0.read_exact(&mut body).await.ok()?;
        }
        Some(Answer { status, headers, body })
    }
}
