//! The link between the site `east` and every other site, as a TCP proxy inside the test.
//!
//! Every member stands behind a *gate*: an address of its own that it tells the others (`--peer-url`), from which the
//! proxy leads to where it listens. A connection crosses the link when it comes from a member of another site: the gate
//! reads who dials in the head of the first request (`lifeboat-from`, or the member id in the body of a member that joins)
//! and finds that member's site by its data directory. Connections within a site pass untouched. A survey, which names no
//! sender, passes too: it tells nothing but who is where.
//!
//! ```text
//! n1 (east) ──> gate of the mirror ══ delay · rate · stall · cut ══> mirror (west)
//! n1 (east) <══ delay · rate · stall · cut ══ gate of n1 <── mirror (west): reads, forwarded writes
//! n1 (east) <── gate of n1 <── n2 (east): untouched
//! ```
//!
//! Each direction has a condition of its own, which may change at any time and holds for bytes that are on their way
//! already. Bytes keep their order; a delay costs no throughput, because each chunk waits for its own time of arrival.
//! Bytes on their way are bounded a connection, as the buffers of a real link are: a sender that writes more is held.
//! Connecting itself crosses at once. Proven by `tests/mirrors/links.rs`.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

/// The site whose link to all others this is.
const EAST: &str = "east";
/// One read of a connection.
const CHUNK_BYTES: usize = 32 << 10;
/// Bytes of one connection on their way in one direction: enough for 80 MB/s at 100 ms.
const ON_THE_WAY_BYTES: usize = 8 << 20;
/// A rate is kept in pieces of so many bytes.
const RATE_SLICE_BYTES: usize = 4 << 10;
/// The head of a first request and the body of one that joins are smaller.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// A direction of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the site `east` to the others.
    ToWest,
    /// From the others to the site `east`.
    ToEast,
}

impl Way {
    fn other(self) -> Way {
        match self {
            Way::ToWest => Way::ToEast,
            Way::ToEast => Way::ToWest,
        }
    }
}

/// What a direction does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Flow {
    #[default]
    Goes,
    /// Takes bytes, up to a bound, and delivers none.
    Stalls,
}

#[derive(Debug, Clone, Copy, Default)]
struct Condition {
    delay: Duration,
    bytes_per_second: Option<u64>,
    flow: Flow,
    /// The connections that are dialled in this direction are cut, and new ones are refused.
    cut: bool,
}

impl Condition {
    /// Not cut any more, and so from now on.
    fn flows(&mut self, flow: Flow) {
        (self.flow, self.cut) = (flow, false);
    }
}

struct Direction {
    condition: watch::Sender<Condition>,
    /// Delivered so far.
    bytes: AtomicU64,
    /// When the bytes before have passed, at the rate that was set.
    free_at: Mutex<Instant>,
}

impl Direction {
    fn new() -> Direction {
        Direction {
            condition: watch::Sender::new(Condition::default()),
            bytes: AtomicU64::new(0),
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// When `bytes` more have passed, if a rate is set.
    fn reserve(&self, bytes: usize) -> Option<Instant> {
        let rate = self.condition.borrow().bytes_per_second?;
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        *free_at = (*free_at).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        Some(*free_at)
    }
}

struct Shared {
    to_west: Direction,
    to_east: Direction,
    /// Where the data of the members lie, which name their ids, and their sites.
    members: Mutex<Vec<(PathBuf, String)>>,
}

impl Shared {
    fn direction(&self, way: Way) -> &Direction {
        match way {
            Way::ToWest => &self.to_west,
            Way::ToEast => &self.to_east,
        }
    }

    /// The site of the member with this id, 16 hexadecimal digits; its data directory says who it is.
    fn site_of(&self, id: &str) -> Option<String> {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let is = |data: &PathBuf| std::fs::read_to_string(data.join("member.json")).is_ok_and(|text| text.contains(id));
        members.iter().find(|(data, _)| is(data)).map(|(_, site)| site.clone())
    }
}

/// The link. Everything ends when it is dropped.
pub struct Link {
    shared: Arc<Shared>,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// A clean link with no gate yet.
    pub fn new() -> Link {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            // An error means that the link was dropped: the same.
            let _ = runtime.block_on(stopped);
        });
        let members = Mutex::default();
        let shared = Arc::new(Shared { to_west: Direction::new(), to_east: Direction::new(), members });
        Link { shared, runtime: handle, stop: Some(stop), thread: Some(thread) }
    }

    /// Opens a gate at `listen` to the member of `site` that listens at `target` and has its data in `data`.
    pub fn open_gate(&self, listen: SocketAddr, target: SocketAddr, site: &str, data: PathBuf) {
        self.shared.members.lock().unwrap_or_else(PoisonError::into_inner).push((data, site.to_string()));
        let listener = std::net::TcpListener::bind(listen).expect("the address of a gate is free");
        listener.set_nonblocking(true).expect("a listener can be made not to block");
        let (shared, site) = (self.shared.clone(), site.to_string());
        self.runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener that does not block");
            loop {
                // A connection that is gone before it is accepted is no reason to end.
                let Ok((incoming, _)) = listener.accept().await else { continue };
                let (shared, site) = (shared.clone(), site.clone());
                tokio::spawn(async move {
                    // The two ends see that it broke, which is all that there is to tell.
                    let _ = serve(&shared, incoming, target, &site).await;
                });
            }
        });
    }

    /// Every byte takes so long in either direction: half of what is added to a round trip.
    pub fn delay(&self, each_way: Duration) {
        self.delay_way(Way::ToWest, each_way);
        self.delay_way(Way::ToEast, each_way);
    }

    /// Every byte takes so long in one direction.
    pub fn delay_way(&self, way: Way, delay: Duration) {
        self.change(way, |condition| condition.delay = delay);
    }

    /// No more bytes a second than this in one direction, over all connections together; `None` for no bound.
    pub fn rate(&self, way: Way, bytes_per_second: Option<u64>) {
        self.change(way, |condition| condition.bytes_per_second = bytes_per_second);
    }

    /// Both directions stand still: connections are accepted, and what is sent is taken, up to a bound, and held.
    pub fn stall(&self) {
        self.stall_way(Way::ToWest);
        self.stall_way(Way::ToEast);
    }

    /// One direction stands still.
    pub fn stall_way(&self, way: Way) {
        self.change(way, |condition| condition.flows(Flow::Stalls));
    }

    /// Only this direction goes on; the other stands still.
    pub fn one_way(&self, way: Way) {
        self.change(way, |condition| condition.flows(Flow::Goes));
        self.stall_way(way.other());
    }

    /// All connections are cut, what is on its way is lost, and new connections are refused.
    pub fn cut(&self) {
        // What stands still does so for ever: one direction must not go on before the other is cut.
        self.change(Way::ToWest, |condition| condition.cut = true);
        self.change(Way::ToEast, |condition| condition.cut = true);
    }

    /// The connections that are dialled in one direction are cut and refused, as by a firewall; the others go on.
    pub fn cut_way(&self, way: Way) {
        self.change(way, |condition| (condition.flow, condition.cut) = (Flow::Goes, true));
    }

    /// Ends stalls and cuts. Delay and rate stay.
    pub fn heal(&self) {
        self.change(Way::ToWest, |condition| condition.flows(Flow::Goes));
        self.change(Way::ToEast, |condition| condition.flows(Flow::Goes));
    }

    /// A link with no delay, no bound, and nothing cut.
    pub fn clean(&self) {
        self.change(Way::ToWest, |condition| *condition = Condition::default());
        self.change(Way::ToEast, |condition| *condition = Condition::default());
    }

    /// The bytes that one direction has delivered so far.
    pub fn bytes(&self, way: Way) -> u64 {
        self.shared.direction(way).bytes.load(Ordering::Relaxed)
    }

    fn change(&self, way: Way, change: impl FnOnce(&mut Condition)) {
        self.shared.direction(way).condition.send_modify(change);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It ends as soon as it sees that the sender is gone; a panic in it was printed already.
            let _ = thread.join();
        }
    }
}

/// Leads one connection to the member at `target`, whose site is `site`.
async fn serve(shared: &Shared, mut incoming: TcpStream, target: SocketAddr, site: &str) -> io::Result<()> {
    incoming.set_nodelay(true)?;
    let mut head = Vec::new();
    let dialler = read_dialler(shared, &mut incoming, &mut head).await?;
    let way = match dialler.as_deref() {
        Some(EAST) if site != EAST => Way::ToWest,
        Some(from) if from != EAST && site == EAST => Way::ToEast,
        _ => {
            let mut outgoing = TcpStream::connect(target).await?;
            outgoing.set_nodelay(true)?;
            outgoing.write_all(&head).await?;
            return tokio::io::copy_bidirectional(&mut incoming, &mut outgoing).await.map(|_| ());
        }
    };
    let mut condition = shared.direction(way).condition.subscribe();
    let crossing = async {
        let outgoing = TcpStream::connect(target).await?;
        outgoing.set_nodelay(true)?;
        let (from_dialler, to_dialler) = incoming.into_split();
        let (from_target, to_target) = outgoing.into_split();
        tokio::try_join!(
            pump(head, from_dialler, to_target, shared.direction(way)),
            pump(Vec::new(), from_target, to_dialler, shared.direction(way.other())),
        )
        .map(|_| ())
    };
    tokio::select! {
        biased;
        // Dropping the connections is the cut.
        _ = condition.wait_for(|condition| condition.cut) => Ok(()),
        ended = crossing => ended,
    }
}

/// Reads the head of the first request into `head`, and finds the site of the member that sent it; a member that joins
/// names itself in the body.
async fn read_dialler(shared: &Shared, incoming: &mut TcpStream, head: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if incoming.read_buf(head).await? == 0 || head.len() > MAX_HEAD_BYTES {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(head).to_lowercase();
        let Some((headers, body)) = text.split_once("\r\n\r\n") else { continue };
        let header = |name: &str| headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        if let Some(id) = header("lifeboat-from") {
            return Ok(shared.site_of(id));
        }
        let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if body.len() < length {
            continue;
        }
        let id = body.split_once("\"member_id\":\"").and_then(|(_, rest)| rest.get(..16));
        return Ok(id.and_then(|id| shared.site_of(id)));
    }
}

/// A piece on its way, since when, and its share of the bound.
type Chunk = (Instant, Vec<u8>, OwnedSemaphorePermit);

/// Carries bytes, `first` before all others, from one connection to another under the condition of a direction.
async fn pump(
    first: Vec<u8>,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: &Direction,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(ON_THE_WAY_BYTES));
    let (queue, mut queued) = mpsc::unbounded_channel::<Chunk>();
    let take = async move {
        let mut chunk = first;
        loop {
            if !chunk.is_empty() {
                let size = u32::try_from(chunk.len()).expect("a chunk is small");
                let permit = room.clone().acquire_many_owned(size).await.expect("it is never closed");
                if queue.send((Instant::now(), chunk, permit)).is_err() {
                    return Ok(());
                }
            }
            chunk = Vec::with_capacity(CHUNK_BYTES);
            if from.read_buf(&mut chunk).await? == 0 {
                return Ok(());
            }
        }
    };
    let deliver = async move {
        while let Some((since, chunk, _permit)) = queued.recv().await {
            arrive(direction, since).await;
            for piece in chunk.chunks(RATE_SLICE_BYTES) {
                if let Some(passed) = direction.reserve(piece.len()) {
                    tokio::time::sleep_until(passed).await;
                }
                // First, so that whoever has received something sees it counted.
                direction.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
                to.write_all(piece).await?;
            }
        }
        to.shutdown().await
    };
    tokio::try_join!(take, deliver).map(|_: ((), ())| ())
}

/// Waits until what was sent at `since` arrives, under a condition that may change meanwhile.
async fn arrive(direction: &Direction, since: Instant) {
    let mut condition = direction.condition.subscribe();
    loop {
        let Condition { delay, flow, .. } = *condition.borrow_and_update();
        let due = since + delay;
        if flow == Flow::Goes && Instant::now() >= due {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep_until(due), if flow == Flow::Goes => return,
            // The sender lives as long as the link.
            _ = condition.changed() => {}
        }
    }
}
