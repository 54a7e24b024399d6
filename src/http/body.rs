//! Bodies: how those of requests are read, within a size and a time, and what those of replies are made of.
//!
//! A small body that came together with its head is used as it lies in the connection's buffer, without a copy and
//! without a timer; a larger one of known length is gathered in one buffer of that length.
//!
//! Proven by the tests below and, over sockets, by those of `server`.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body as AxumBody;
use bytes::{Buf, Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use thiserror::Error;

/// How much of a body that is not wanted is read and thrown away so that its sender hears the reply: closing a
/// connection with unread bytes in it resets it, and the sender may never see why.
const DISCARD_BYTES: u64 = 8 << 20;
/// How long that may take.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the body of a request could not be read.
#[derive(Debug, Error)]
pub enum BodyError {
    /// It is larger than allowed.
    #[error("the body is larger than {limit_bytes} bytes")]
    TooLarge {
        /// What is allowed.
        limit_bytes: usize,
    },
    /// It did not arrive in time.
    #[error("the body did not arrive within {seconds} s")]
    Slow {
        /// What is allowed.
        seconds: u64,
    },
    /// The connection broke, or the body is not what its head says.
    #[error("the body could not be read: {0}")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What can be read: a request's body as hyper or as axum hands it over.
pub trait Source: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin {}
impl<B> Source for B where B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin {}

/// Reads a whole body of at most `limit_bytes`, within `timeout`. A length that the head announces is checked before
/// anything is read, so that a client which asked first (`Expect: 100-continue`) never sends it.
pub async fn collect(body: &mut impl Source, limit_bytes: usize, timeout: Duration) -> Result<Bytes, BodyError> {
    let announced = body.size_hint().exact();
    if announced.is_some_and(|length| length > limit_bytes as u64) {
        return Err(BodyError::TooLarge { limit_bytes });
    }
    let mut gathering = Gathering { whole: Bytes::new(), parts: BytesMut::new(), limit_bytes };
    let first = poll_fn(|cx| Poll::Ready(gathering.poll(body, cx))).await;
    if let Poll::Ready(result) = first {
        return result;
    }
    match tokio::time::timeout(timeout, poll_fn(|cx| gathering.poll(body, cx))).await {
        Ok(result) => result,
        Err(_) => Err(BodyError::Slow { seconds: timeout.as_secs() }),
    }
}

/// A body half read.
struct Gathering {
    /// The first piece, which often is all.
    whole: Bytes,
    /// All pieces, once there is a second.
    parts: BytesMut,
    limit_bytes: usize,
}

impl Gathering {
    fn poll(&mut self, body: &mut impl Source, cx: &mut Context<'_>) -> Poll<Result<Bytes, BodyError>> {
        loop {
            let frame = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(BodyError::Broken(error.into()))),
                Poll::Ready(None) => return Poll::Ready(Ok(self.take())),
                Poll::Pending => return Poll::Pending,
            };
            // Trailers carry nothing that this API knows.
            let Ok(data) = frame.into_data() else { continue };
            let so_far = self.whole.len() + self.parts.len();
            if data.len() > self.limit_bytes - so_far {
                return Poll::Ready(Err(BodyError::TooLarge { limit_bytes: self.limit_bytes }));
            }
            self.push(data, body.size_hint().lower());
            if body.is_end_stream() {
                return Poll::Ready(Ok(self.take()));
            }
        }
    }

    /// Adds a piece; `rest` is how much is known to follow.
    fn push(&mut self, data: Bytes, rest: u64) {
        if self.whole.is_empty() && self.parts.is_empty() {
            self.whole = data;
            return;
        }
        if self.parts.is_empty() {
            let rest = usize::try_from(rest).unwrap_or(usize::MAX).min(self.limit_bytes);
            self.parts.reserve(self.whole.len() + data.len() + rest);
            self.parts.extend_from_slice(&self.whole);
            self.whole.clear();
        }
        self.parts.extend_from_slice(&data);
    }

    fn take(&mut self) -> Bytes {
        if self.parts.is_empty() { std::mem::take(&mut self.whole) } else { self.parts.split().freeze() }
    }
}

/// Reads and forgets what is left of a body, within limits, so that the reply reaches whoever still sends.
pub async fn discard(body: &mut impl Source) {
    discard_within(body, DISCARD_BYTES, DISCARD_TIMEOUT).await;
}

async fn discard_within(body: &mut impl Source, mut left_bytes: u64, timeout: Duration) {
    if body.is_end_stream() || body.size_hint().lower() > left_bytes {
        return;
    }
    let drain = poll_fn(|cx| {
        loop {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let length = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                    left_bytes = left_bytes.saturating_sub(length);
                    if left_bytes == 0 {
                        return Poll::Ready(());
                    }
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    // Running out of time is as good as being done: the reply is sent either way.
    let _elapsed_or_done = tokio::time::timeout(timeout, drain).await;
}

/// The body of a reply: bytes, or whatever axum made.
#[derive(Debug)]
pub enum EdgeBody {
    /// All of it; none once it was handed to the connection.
    Full(Option<Bytes>),
    /// A stream, or the reply of a handler behind the router.
    Axum(AxumBody),
}

impl EdgeBody {
    /// Nothing.
    pub fn empty() -> EdgeBody {
        EdgeBody::Full(None)
    }

    /// These bytes.
    pub fn full(bytes: impl Into<Bytes>) -> EdgeBody {
        let bytes = bytes.into();
        EdgeBody::Full((!bytes.is_empty()).then_some(bytes))
    }

    /// The same for a handler behind the router.
    pub fn into_axum(self) -> AxumBody {
        match self {
            EdgeBody::Full(Some(bytes)) => AxumBody::from(bytes),
            EdgeBody::Full(None) => AxumBody::empty(),
            EdgeBody::Axum(body) => body,
        }
    }
}

impl Body for EdgeBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            EdgeBody::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            EdgeBody::Axum(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            EdgeBody::Full(bytes) => bytes.is_none(),
            EdgeBody::Axum(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            EdgeBody::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            EdgeBody::Axum(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn streamed(parts: &[&'static str]) -> AxumBody {
        let parts: Vec<Result<Bytes, std::io::Error>> =
            parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect();
        AxumBody::from_stream(stream::iter(parts))
    }

    #[tokio::test]
    async fn bodies_up_to_the_limit_are_read_whole() {
        for parts in [&[][..], &["abcd"][..], &["a", "b", "", "cd"][..]] {
            let read = collect(&mut streamed(parts), 4, TIMEOUT).await.unwrap();
            assert_eq!(read, parts.concat().as_bytes(), "{parts:?}");
        }
        assert_eq!(collect(&mut AxumBody::from("abcd"), 4, TIMEOUT).await.unwrap(), "abcd");
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused_announced_or_not() {
        for mut body in [AxumBody::from("abcde"), streamed(&["abcde"]), streamed(&["abc", "de"])] {
            let error = collect(&mut body, 4, TIMEOUT).await.unwrap_err();
            assert!(matches!(error, BodyError::TooLarge { limit_bytes: 4 }), "{error}");
        }
        // What is announced is not even asked for: this stream would panic.
        let mut body = AxumBody::from("abcde");
        assert!(collect(&mut body, 4, TIMEOUT).await.is_err());
        assert_eq!(collect(&mut body, 5, TIMEOUT).await.unwrap(), "abcde", "nothing was read");
    }

    #[tokio::test]
    async fn a_body_that_stalls_runs_out_of_time() {
        let mut body = AxumBody::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let error = collect(&mut body, 4, Duration::from_millis(5)).await.unwrap_err();
        assert!(matches!(error, BodyError::Slow { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_body_that_breaks_is_not_taken_for_a_short_one() {
        let parts = [Ok(Bytes::from_static(b"ab")), Err(std::io::Error::other("gone"))];
        let mut body = AxumBody::from_stream(stream::iter(parts));
        let error = collect(&mut body, 4, TIMEOUT).await.unwrap_err();
        assert!(matches!(error, BodyError::Broken(_)), "{error}");
    }

    #[tokio::test]
    async fn discarding_ends_by_end_by_size_and_by_time() {
        let mut small = streamed(&["a", "b"]);
        discard_within(&mut small, 64, TIMEOUT).await;
        assert_eq!(collect(&mut small, 4, TIMEOUT).await.unwrap(), "", "all of it is gone");

        let mut pieces = 0;
        let endless = stream::repeat_with(move || {
            pieces += 1;
            assert!(pieces <= 4, "no more is read than allowed");
            Ok::<_, std::io::Error>(Bytes::from_static(&[0; 16]))
        });
        discard_within(&mut AxumBody::from_stream(endless), 64, TIMEOUT).await;

        let mut announced = AxumBody::from("abcde");
        discard_within(&mut announced, 4, TIMEOUT).await;
        assert_eq!(collect(&mut announced, 5, TIMEOUT).await.unwrap(), "abcde", "what is too much is not begun");

        let stalled = stream::pending::<Result<Bytes, std::io::Error>>();
        discard_within(&mut AxumBody::from_stream(stalled), 64, Duration::from_millis(5)).await;
    }
}
