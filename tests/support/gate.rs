//! A gate before one member: a proxy that lets so many requests of one kind through and holds what comes after them, so
//! that a test knows how far a client has come when it does something to it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::wait_for;

/// Between two looks whether an answer has come.
const POLL: Duration = Duration::from_millis(2);

/// What is held of a request that may not pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Held {
    /// The request: the member does not see it.
    Request,
    /// The answer: the member has done it, and its client does not hear of that.
    Answer,
}

struct State {
    /// So many more may pass.
    left: usize,
    /// So many have passed, requests and answers.
    passed: usize,
    /// So many the member was sent.
    sent: usize,
    /// So many of them it has answered.
    answered: usize,
    /// So many connections of clients may bring more.
    connected: usize,
    /// Whose connection was accepted last.
    last: Option<SocketAddr>,
    /// So many are held now.
    waiting: usize,
    open: bool,
}

struct Shared {
    to: SocketAddr,
    /// How the first line of a request begins that counts.
    counts: &'static str,
    held: Held,
    state: Mutex<State>,
    changed: Condvar,
    ended: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more may pass; counts it if so.
    fn may_pass(&self) -> bool {
        let mut state = self.state();
        let may = state.open || state.left > 0;
        if may {
            state.left = state.left.saturating_sub(1);
            state.passed += 1;
        }
        may
    }

    /// Waits until the gate is open; an error when it is taken away instead.
    fn wait_open(&self) -> io::Result<()> {
        let shut = |state: &mut State| !state.open && !self.ended.load(Ordering::Relaxed);
        let mut state = self.state();
        state.waiting += 1;
        let mut state = self.changed.wait_while(state, shut).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        if !state.open {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        state.passed += 1;
        Ok(())
    }
}

/// A gate before one member.
pub struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Gate {
    /// Lets `left` requests through whose first line begins so, and holds the others; what does not begin so always passes.
    pub fn new(to: SocketAddr, counts: &'static str, held: Held, left: usize) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let state = Mutex::new(State {
            left,
            passed: 0,
            sent: 0,
            answered: 0,
            connected: 0,
            last: None,
            waiting: 0,
            open: false,
        });
        let (changed, ended) = (Condvar::new(), AtomicBool::new(false));
        let shared = Arc::new(Shared { to, counts, held, state, changed, ended });
        let accepts = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepts.ended.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), shared) = (stream, accepts.clone()) else { continue };
                {
                    let mut state = shared.state();
                    state.connected += 1;
                    state.last = stream.peer_addr().ok();
                }
                // Both ends see that a connection broke, which is all that there is to tell.
                std::thread::spawn(move || drop(serve(&shared, stream)));
            }
        });
        Gate { address, shared }
    }

    /// Where it is reached.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until at least so many are held.
    #[track_caller]
    pub fn wait_held(&self, at_least: usize) {
        wait_for(&format!("{at_least} requests to be held"), || match self.shared.state().waiting {
            waiting if waiting >= at_least => Ok(()),
            waiting => Err(format!("{waiting} are")),
        });
    }

    /// Waits until the member was sent so many.
    #[track_caller]
    pub fn wait_sent(&self, at_least: usize) {
        wait_for(&format!("{at_least} requests to be sent on"), || match self.shared.state().sent {
            sent if sent >= at_least => Ok(()),
            sent => Err(format!("{sent} are")),
        });
    }

    /// Waits until the member has answered so many.
    #[track_caller]
    pub fn wait_answered(&self, at_least: usize) {
        wait_for(&format!("{at_least} requests to be answered"), || match self.shared.state().answered {
            answered if answered >= at_least => Ok(()),
            answered => Err(format!("{answered} are")),
        });
    }

    /// How many have passed.
    pub fn passed(&self) -> usize {
        self.shared.state().passed
    }

    /// Waits until the member has answered all that clients have sent which are gone, and gives how many that were.
    #[track_caller]
    pub fn wait_settled(&self) -> usize {
        // Whoever connected before this one is known when this one is.
        let knock = TcpStream::connect(self.address).expect("the gate listens");
        let knocks = knock.local_addr().ok();
        wait_for("the gate to have accepted all", || match self.shared.state().last {
            last if last == knocks => Ok(()),
            last => Err(format!("{last:?}")),
        });
        drop(knock);
        wait_for("all requests to be answered", || {
            let State { sent, answered, connected, .. } = *self.shared.state();
            if connected == 0 && sent == answered {
                Ok(sent)
            } else {
                Err(format!("{answered} of {sent}, {connected}"))
            }
        })
    }

    /// Lets everything pass from now on, also what a client has sent that is gone.
    pub fn open(&self) {
        self.shared.state().open = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        {
            let _looked_at_before_it_waits = self.shared.state();
            self.shared.ended.store(true, Ordering::Relaxed);
        }
        self.shared.changed.notify_all();
        // It waits for a connection, and then sees that it is over.
        drop(TcpStream::connect(self.address));
    }
}

/// What the two directions of a connection tell each other.
#[derive(Default)]
struct Asked {
    /// A request that counts is not answered yet.
    awaited: AtomicBool,
    /// Its answer is held.
    held: AtomicBool,
}

/// A connection whose client may send more.
struct Connected(Arc<Shared>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.state().connected -= 1;
    }
}

/// Carries one connection, request by request.
fn serve(shared: &Arc<Shared>, mut client: TcpStream) -> io::Result<()> {
    let connected = Connected(shared.clone());
    let mut member = TcpStream::connect(shared.to)?;
    client.set_nodelay(true)?;
    member.set_nodelay(true)?;
    let asked = Arc::new(Asked::default());
    let (answers, back) = (member.try_clone()?, client.try_clone()?);
    let (gate, told) = (shared.clone(), asked.clone());
    let carries = std::thread::spawn(move || carry_answers(&gate, answers, back, &told));
    let carried = carry_requests(shared, &mut client, &mut member, &asked);
    drop(connected);
    // What a client has sent is done although it is gone.
    while asked.awaited.load(Ordering::Relaxed) && !carries.is_finished() && !shared.ended.load(Ordering::Relaxed) {
        std::thread::sleep(POLL);
    }
    // The other direction ends with it; what it says is the same.
    let _ = (member.shutdown(Shutdown::Both), carries.join());
    carried
}

fn carry_answers(shared: &Shared, mut member: TcpStream, mut client: TcpStream, asked: &Asked) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let count = member.read(&mut buffer)?;
        if count == 0 {
            return client.shutdown(Shutdown::Both);
        }
        if asked.awaited.load(Ordering::Relaxed) {
            shared.state().answered += 1;
            asked.awaited.store(false, Ordering::Relaxed);
        }
        if asked.held.swap(false, Ordering::Relaxed) {
            shared.wait_open()?;
        }
        hide_leader(&mut buffer[..count]);
        client.write_all(&buffer[..count])?;
    }
}

fn carry_requests(shared: &Shared, client: &mut TcpStream, member: &mut TcpStream, asked: &Asked) -> io::Result<()> {
    let mut received = Vec::new();
    loop {
        let Some(length) = next_request(client, &mut received)? else { return Ok(()) };
        let request: Vec<u8> = received.drain(..length).collect();
        if request.starts_with(shared.counts.as_bytes()) {
            match shared.may_pass() {
                true => {}
                false if shared.held == Held::Request => shared.wait_open()?,
                false => asked.held.store(true, Ordering::Relaxed),
            }
            asked.awaited.store(true, Ordering::Relaxed);
            shared.state().sent += 1;
        }
        member.write_all(&request)?;
    }
}

/// Takes the name away from the header that says where the leader is: clients would go there, past the gate. An answer's head
/// comes at once.
fn hide_leader(answer: &mut [u8]) {
    const NAME: &[u8] = b"\r\nlifeboat-leader:";
    if let Some(at) = answer.windows(NAME.len()).position(|found| found.eq_ignore_ascii_case(NAME)) {
        answer[at..at + NAME.len()].copy_from_slice(b"\r\nlifeboat-hidden:");
    }
}

/// Reads until a whole request is there, and gives its length; none when the client has closed.
fn next_request(client: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let mut buffer = [0; 16 << 10];
    loop {
        if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let length = end + 4 + length.unwrap_or(0);
            if received.len() >= length {
                return Ok(Some(length));
            }
        }
        let count = client.read(&mut buffer)?;
        if count == 0 {
            return Ok(None);
        }
        received.extend_from_slice(&buffer[..count]);
    }
}
