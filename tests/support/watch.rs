//! Watches over plain sockets: one stream of events, and a watcher that goes on at another member when its stream ends.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::PATIENCE;
use super::http::{Answer, Connection, Request};

/// Between two attempts to go on.
const PAUSE: Duration = Duration::from_millis(20);
/// A member that is silent for longer, heartbeats included, is left.
const SILENCE: Duration = Duration::from_secs(4);

/// One stream of events.
pub struct Stream {
    connection: Connection,
    received: Vec<u8>,
    events: VecDeque<Value>,
}

impl Stream {
    /// Begins a watch; gives the answer when it is none.
    pub fn open(address: SocketAddr, query: &str) -> io::Result<Result<Stream, Answer>> {
        let mut connection = Connection::open_within(address, SILENCE)?;
        let request = Request::new("GET", &format!("/v1/watch?heartbeat=1s&{query}"));
        connection.send(&request.header("Accept", "application/x-ndjson").bytes())?;
        let head = connection.read_stream()?;
        if head.status != 200 {
            return Ok(Err(head));
        }
        Ok(Ok(Stream { connection, received: Vec::new(), events: VecDeque::new() }))
    }

    /// The next event; none at the end of the stream.
    pub fn next(&mut self) -> io::Result<Option<Value>> {
        while self.events.is_empty() {
            let Some(chunk) = self.connection.read_chunk()? else { return Ok(None) };
            self.received.extend(chunk);
            while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let event = serde_json::from_slice(&line);
                self.events.push_back(event.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&line))));
            }
        }
        Ok(self.events.pop_front())
    }
}

/// How a watcher fared.
#[derive(Debug, Default)]
pub struct Report {
    /// Every event of changes, in order.
    pub events: Vec<Value>,
    /// How many streams it needed.
    pub streams: usize,
    /// The reasons of streams that were ended, and were not cut.
    pub ends: Vec<String>,
}

/// Watches from `since` until everything up to the revision `goal` was seen, beginning at the first of the members and
/// going on with the next one whenever a stream ends or breaks. Fails when an event is out of order or when the API
/// is not kept to. `pace` is called after each event.
pub fn follow(
    members: &[SocketAddr],
    query: &str,
    since: u64,
    goal: impl Fn() -> Option<u64>,
    mut pace: impl FnMut(&Value),
) -> Report {
    let mut report = Report::default();
    let mut at = since;
    let mut last_change = since;
    let mut progress = Instant::now();
    for member in members.iter().cycle() {
        assert!(progress.elapsed() < PATIENCE, "the watch at {at} does not get on: {:?}", report.ends);
        std::thread::sleep(PAUSE);
        let mut stream = match Stream::open(*member, &format!("{query}&since={at}")) {
            Err(_) => continue,
            Ok(Err(answer)) => {
                // Whatever was seen, the cluster has; only the member may not be able to find out at the moment.
                assert_eq!(answer.status, 503, "going on at {at}: {answer}");
                continue;
            }
            Ok(Ok(stream)) => stream,
        };
        report.streams += 1;
        while let Ok(Some(event)) = stream.next() {
            let revision = event["revision"].as_u64().unwrap_or_else(|| panic!("no revision in {event}"));
            assert!(revision >= at, "{event} after {at}");
            match event["type"].as_str().unwrap_or_default() {
                "open" => assert_eq!(revision, at, "{event}"),
                "heartbeat" => {}
                "change" => {
                    assert!(revision > last_change, "{event} after {last_change}");
                    last_change = revision;
                    report.events.push(event.clone());
                }
                "end" => report.ends.push(event["reason"].to_string()),
                _ => panic!("an unknown event: {event}"),
            }
            if revision > at {
                progress = Instant::now();
            }
            at = revision;
            if goal().is_some_and(|goal| at >= goal) {
                return report;
            }
            pace(&event);
        }
    }
    unreachable!("the members are a circle")
}
