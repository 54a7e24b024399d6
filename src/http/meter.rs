//! Whether anything moves on a connection: bytes counted on their way, and a watch that looks at the counts now and then.
//!
//! hyper has a timer for the head of a request, but it makes and drops one for every request and closes idle
//! connections after the same time. Here counting is an atomic addition, and one timer a connection wakes a few times a
//! minute.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How often in a header timeout the watch looks.
const LOOKS_PER_HEADER_TIMEOUT: u32 = 4;

/// What has happened on a connection so far.
#[derive(Debug, Default)]
pub struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    /// For how long the body of the newest reply may be quiet besides; 0 for one that has an end.
    quiet_ms: AtomicU64,
}

impl Activity {
    /// The head of a request has arrived.
    pub fn request_begins(&self) {
        self.quiet_ms.store(0, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// The head of its reply is ready.
    pub fn request_ends(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// The body that follows has no end of its own, and may be quiet for so long although all is well.
    pub fn may_be_quiet(&self, quiet: Duration) {
        self.quiet_ms.store(quiet.as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether the newest reply has no end of its own.
    pub fn is_endless(&self) -> bool {
        self.quiet_ms.load(Ordering::Relaxed) > 0
    }

    fn look(&self) -> Look {
        Look {
            begun: self.begun.load(Ordering::Relaxed),
            ended: self.ended.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    begun: u64,
    ended: u64,
    read_bytes: u64,
    written_bytes: u64,
}

/// Decides when a connection has been idle or slow for too long.
///
/// Between requests nothing may move for the idle timeout (and a stream may be quiet for so much longer as it said). From the look that first sees bytes of a new head, or from
/// the start of the connection, that head has the header timeout to be complete. A request that is being answered is
/// never overdue here: the request's own deadline ends it.
#[derive(Debug)]
pub struct Watch {
    activity: Arc<Activity>,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// What was seen when the connection last did something that is not part of an unfinished head.
    settled: Look,
    settled_at: Instant,
    /// Since when bytes of an unfinished head have been seen.
    head_since: Option<Instant>,
}

impl Watch {
    /// Begins with a new connection, which owes its first head.
    pub fn new(activity: Arc<Activity>, header_timeout: Duration, idle_timeout: Duration, now: Instant) -> Watch {
        let settled = activity.look();
        Watch { activity, header_timeout, idle_timeout, settled, settled_at: now, head_since: Some(now) }
    }

    /// How long to wait until the next look.
    pub fn interval(&self) -> Duration {
        self.header_timeout / LOOKS_PER_HEADER_TIMEOUT
    }

    /// Looks at the connection `now`: whether it should be closed.
    pub fn is_overdue(&mut self, now: Instant) -> bool {
        let seen = self.activity.look();
        let head_only = Look { read_bytes: self.settled.read_bytes, ..seen } == self.settled;
        if seen.begun != seen.ended || !head_only {
            self.settled = seen;
            self.settled_at = now;
            self.head_since = None;
            return false;
        }
        if seen.read_bytes != self.settled.read_bytes && self.head_since.is_none() {
            self.head_since = Some(now);
        }
        let head_overdue = self.head_since.is_some_and(|since| now - since >= self.header_timeout);
        let quiet = Duration::from_millis(self.activity.quiet_ms.load(Ordering::Relaxed));
        head_overdue || now - self.settled_at >= self.idle_timeout + quiet
    }
}

/// A TCP connection whose bytes are counted.
#[derive(Debug)]
pub struct Meter {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl Meter {
    /// Counts the bytes of `stream` in `activity`.
    pub fn new(stream: TcpStream, activity: Arc<Activity>) -> Meter {
        Meter { stream, activity }
    }

    fn written(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            self.activity.written_bytes.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        result
    }
}

impl AsyncRead for Meter {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            self.activity.read_bytes.fetch_add(read as u64, Ordering::Relaxed);
        }
        result
    }
}

impl AsyncWrite for Meter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(120);

    /// A connection and a time of its own, which passes look by look.
    struct Watched {
        activity: Arc<Activity>,
        watch: Watch,
        now: Instant,
    }

    impl Watched {
        fn new() -> Watched {
            let (activity, now) = (Arc::new(Activity::default()), Instant::now());
            Watched { watch: Watch::new(activity.clone(), HEADER, IDLE, now), activity, now }
        }

        /// How long until the connection is overdue; none if it is not within `limit`.
        fn overdue_after(&mut self, limit: Duration) -> Option<Duration> {
            let start = self.now;
            while self.now - start < limit {
                self.now += self.watch.interval();
                if self.watch.is_overdue(self.now) {
                    return Some(self.now - start);
                }
            }
            None
        }
    }

    #[test]
    fn a_new_connection_owes_a_head() {
        let mut connection = Watched::new();
        connection.activity.read_bytes.fetch_add(3, Ordering::Relaxed);
        assert_eq!(connection.overdue_after(IDLE), Some(HEADER));
        assert_eq!(Watched::new().overdue_after(IDLE), Some(HEADER), "also when it sends nothing at all");
    }

    #[test]
    fn a_request_that_is_being_answered_is_never_overdue() {
        let mut connection = Watched::new();
        connection.activity.request_begins();
        assert_eq!(connection.overdue_after(10 * IDLE), None);
        connection.activity.request_ends();
        let first_look = connection.watch.interval();
        assert_eq!(connection.overdue_after(2 * IDLE), Some(IDLE + first_look));
    }

    #[test]
    fn a_reply_that_may_be_quiet_is_overdue_so_much_later() {
        let mut connection = Watched::new();
        connection.activity.request_begins();
        connection.activity.may_be_quiet(Duration::from_secs(300));
        connection.activity.request_ends();
        assert!(connection.activity.is_endless());
        let overdue = connection.overdue_after(2 * IDLE + Duration::from_secs(300));
        assert_eq!(overdue, Some(IDLE + Duration::from_secs(300) + connection.watch.interval()));
        connection.activity.request_begins();
        assert!(!connection.activity.is_endless(), "the next request has nothing to do with it");
    }

    #[test]
    fn bytes_of_a_head_after_a_request_start_its_time() {
        let mut connection = Watched::new();
        connection.activity.request_begins();
        connection.activity.request_ends();
        assert_eq!(connection.overdue_after(Duration::from_secs(60)), None);
        connection.activity.read_bytes.fetch_add(1, Ordering::Relaxed);
        let first_look = connection.watch.interval();
        assert_eq!(connection.overdue_after(IDLE), Some(HEADER + first_look));
    }

    #[test]
    fn a_reply_that_goes_on_is_not_idle_and_one_that_nobody_takes_is() {
        let mut connection = Watched::new();
        connection.activity.request_begins();
        connection.activity.request_ends();
        for _ in 0..10 {
            connection.activity.written_bytes.fetch_add(1, Ordering::Relaxed);
            assert_eq!(connection.overdue_after(IDLE / 2), None);
        }
        assert_eq!(connection.overdue_after(2 * IDLE), Some(IDLE / 2 + connection.watch.interval()));
    }
}
