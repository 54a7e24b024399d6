//! How a process learns that it shall stop.

use std::io::{self, Read as _};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Once whoever started this process is gone, it stops at the latest after this time.
const ORPHAN_STOP_MAX: Duration = Duration::from_secs(20);

/// Everything that asks this process to stop.
pub struct StopRequests {
    interrupt: Signal,
    terminate: Signal,
    parent_gone: Option<oneshot::Receiver<()>>,
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

    /// Waits for the next request and says what it was.
    pub async fn next(&mut self) -> &'static str {
        let parent_gone = async {
            match self.parent_gone.as_mut() {
                Some(gone) => drop(gone.await),
                None => std::future::pending().await,
            }
        };
        let reason = tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
            () = parent_gone => "standard input was closed",
        };
        if reason.starts_with("standard input") {
            self.parent_gone = None;
        }
        reason
    }
}

/// Waits on a thread of its own for the end of standard input: a blocking read there would hold up the runtime's end.
fn watch_stdin() -> io::Result<oneshot::Receiver<()>> {
    let (gone, receiver) = oneshot::channel();
    let watch = move || {
        let mut buffer = [0; 64];
        loop {
            match io::stdin().read(&mut buffer) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        let _ = gone.send(());
        // Nobody is left to end a process that hangs while it stops.
        std::thread::sleep(ORPHAN_STOP_MAX);
        std::process::exit(1);
    };
    std::thread::Builder::new().name("watch-parent".to_owned()).spawn(watch)?;
    Ok(receiver)
}
