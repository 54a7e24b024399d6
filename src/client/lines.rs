//! An answer that comes line by line: a verification, a drill.

use std::marker::PhantomData;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::error::Error;

/// A line of more bytes is none.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Lines of JSON as they come. Dropping it ends what the member does.
#[derive(Debug)]
pub struct Lines<T> {
    endpoint: String,
    body: Incoming,
    received: Vec<u8>,
    silence: Duration,
    /// What it is, for people.
    what: &'static str,
    line: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// The lines of a body. Lines come several times a second; after so long a silence there is nobody any more.
    pub(super) fn new(endpoint: String, body: Incoming, silence: Duration, what: &'static str) -> Lines<T> {
        Lines { endpoint, body, received: Vec::new(), silence, what, line: PhantomData }
    }

    /// The next line; none behind the report.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let read = serde_json::from_slice(&line).map(Some);
                return read.map_err(|error| Error::unreadable(&self.endpoint, error.to_string()));
            }
            if self.received.len() > MAX_LINE_BYTES {
                return Err(Error::unreadable(&self.endpoint, "a line without an end"));
            }
            let what = self.what;
            let cut = |why: String| Error::unreadable(&self.endpoint, format!("the {what} was cut: {why}"));
            match tokio::time::timeout(self.silence, self.body.frame()).await {
                Err(_) => return Err(cut("nothing came any more".into())),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(cut(error.to_string())),
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.received.extend_from_slice(data);
                    }
                }
            }
        }
    }
}
