//! Threads that work in the background give way to those that somebody waits for.
//!
//! Sealing, compaction and verification take whole milliseconds of a core at a time, again and again, and all members of a
//! cluster that writes do so at about the same moments. On a machine with few cores, requests would stand in line behind
//! that. Such a thread runs at a lower priority of the scheduler; on a machine with cores to spare nothing changes.
//! `docs/decisions/0023-background-threads-give-way.md` has what was measured.

use tokio::sync::oneshot;

/// How much nicer than the others: about a tenth of the time of a thread that competes.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Lowers the priority of the calling thread, for good.
pub fn lower() {
    // Elsewhere it would be that of the whole process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "a background thread keeps its priority");
    }
}

/// Does `work` in a thread of its own at low priority. Not in the pool for what blocks, whose threads come back to work that
/// is waited for.
pub async fn in_background<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        lower();
        // Whoever asked may have gone.
        let _ = done.send(work());
    });
    thread.map_err(|error| format!("cannot start a thread: {error}"))?;
    result.await.map_err(|_| "the thread has panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the calling thread.
    #[cfg(target_os = "linux")]
    fn nice() -> i32 {
        rustix::process::nice(0).unwrap()
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn only_the_thread_in_the_background_gives_way() {
        let before = nice();
        assert_eq!(in_background("test", nice).await, Ok(before + NICE));
        assert_eq!(nice(), before);
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let ended = in_background("test", || panic!("on purpose")).await;
        assert_eq!(ended, Err::<(), _>("the thread has panicked".to_owned()));
    }
}
