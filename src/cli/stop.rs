//! How a process learns that it shall stop.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Once whoever started this process is gone, it stops at the latest after this time.
const ORPHAN_STOP_MAX: Duration = Duration::from_secs(20);

/// What a parent writes before it closes the pipe when it stops all members of the cluster: then nobody could take the
/// lead over, and handing it over would only take its time.
pub const STOP_ALL: &[u8] = b"all\n";

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopRequest {
    /// Who asks, for the log.
    pub reason: &'static str,
    /// Whether a leader should try to hand over first.
    pub hand_over: bool,
}

/// Everything that asks this process to stop.
pub struct StopRequests {
    interrupt: Signal,
    terminate: Signal,
    parent_gone: Option<oneshot::Receiver<StopRequest>>,
}

impl StopRequests {
    /// Begins to listen. With `watch_parent`, standard input is a pipe whose other end the parent holds: when it
    /// closes, the parent wants this process to stop, or is dead. Must be called inside a runtime.
    pub fn listen(watch_parent: bool) -> io::Result<StopRequests> {
        Ok(StopRequests {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            parent_gone: watch_parent.then(watch_stdin).transpose()?,
        })
    }

    /// Waits for the next request.
    pub async fn next(&mut self) -> StopRequest {
        let signalled = |reason| StopRequest { reason, hand_over: true };
        let parent_gone = async {
            match self.parent_gone.as_mut() {
                Some(gone) => gone.await.unwrap_or(PARENT_GONE),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => signalled("interrupted"),
            _ = self.terminate.recv() => signalled("terminated"),
            request = parent_gone => {
                self.parent_gone = None;
                request
            }
        }
    }
}

const PARENT_GONE: StopRequest = StopRequest { reason: "standard input was closed", hand_over: true };

/// Reads what the parent writes until it closes the pipe.
fn read_to_end(mut input: impl io::Read) -> StopRequest {
    let mut text = Vec::new();
    let mut buffer = [0; 64];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
            // More than the one word is not understood, so no more than that is kept.
            Ok(count) if text.len() <= STOP_ALL.len() => text.extend_from_slice(&buffer[..count]),
            Ok(_) => {}
        }
    }
    if text == STOP_ALL { StopRequest { reason: "all members are stopped", hand_over: false } } else { PARENT_GONE }
}

/// Waits on a thread of its own for the end of standard input: a blocking read there would hold up the runtime's end.
fn watch_stdin() -> io::Result<oneshot::Receiver<StopRequest>> {
    let (gone, receiver) = oneshot::channel();
    let watch = move || {
        let _ = gone.send(read_to_end(io::stdin()));
        // Nobody is left to end a process that hangs while it stops.
        std::thread::sleep(ORPHAN_STOP_MAX);
        std::process::exit(1);
    };
    std::thread::Builder::new().name("watch-parent".to_owned()).spawn(watch)?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_parent_that_says_so_stops_all() {
        assert!(!read_to_end(STOP_ALL).hand_over);
        for other in [&b""[..], b"all", b"all\nall\n", &[b'a'; 1000]] {
            assert_eq!(read_to_end(other), PARENT_GONE, "{other:?}");
        }
    }
}
