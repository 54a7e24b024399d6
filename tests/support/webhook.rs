//! A receiver of webhooks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;

use serde_json::Value;

use super::PATIENCE;

/// What a webhook was sent.
pub struct Post {
    /// The path and the query.
    pub path: String,
    /// The header that names the event.
    pub event_id: String,
    /// The event.
    pub body: Value,
}

/// A receiver that answers the first `refused` posts with 500, and all others with 204.
pub fn receiver(mut refused: usize) -> (String, mpsc::Receiver<Post>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook?from=test", listener.local_addr().unwrap());
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let Some(post) = read_post(&mut reader) else { continue };
            let status = if refused > 0 { "500 Not Now" } else { "204 No Content" };
            refused = refused.saturating_sub(1);
            let reply = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            reader.get_mut().write_all(reply.as_bytes()).unwrap();
            if tx.send(post).is_err() {
                return;
            }
        }
    });
    (url, rx)
}

fn read_post(reader: &mut BufReader<std::net::TcpStream>) -> Option<Post> {
    let mut line = String::new();
    let mut read_line = |reader: &mut BufReader<_>| {
        line.clear();
        let read = reader.read_line(&mut line).ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    };
    let first = read_line(reader)?;
    let path = first.split(' ').nth(1)?.to_owned();
    let (mut length, mut event_id) = (0, String::new());
    loop {
        let header = read_line(reader)?;
        let Some((name, value)) = header.split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "lifeboat-event-id" => event_id = value.trim().to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Post { path, event_id, body: serde_json::from_slice(&body).unwrap() })
}

/// The posts that come until one is of this kind; the last is that one.
pub fn posts_until(posts: &mpsc::Receiver<Post>, kind: &str) -> Vec<Post> {
    let mut seen: Vec<Post> = Vec::new();
    while seen.last().is_none_or(|post| post.body["kind"] != kind) {
        seen.push(posts.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no post of {kind}")));
    }
    seen
}
