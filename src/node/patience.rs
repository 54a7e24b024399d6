//! How long a request waits while nobody leads.
//!
//! Between two leaders there is a moment in which no member can take a write or confirm a read: a few round trips when the
//! lead is handed over, about an election timeout when a leader is lost. A request that comes in that moment, or that was
//! refused in it before it reached a log, waits here for the next leader, so that its client sees a pause and no error.
//!
//! The patience counts from when the leader was lost and not from when the request came: in a cluster that stays without
//! one, requests are refused at once, as before. A request that a leader refused because it led no more waits as long from
//! that refusal. Nothing waits here that may be in a log.
//!
//! Bounds: writes wait in their bounded queue, or (refused once) in tasks of which there are no more than clients that
//! wait; reads wait in their bounded queue. Proven by the tests below and by `tests/dr/switchover.rs`, in which no request of
//! a client fails while the lead moves.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Inner;

/// Between two attempts to do what a leader refused because it led no more.
const AGAIN: Duration = Duration::from_millis(5);

/// Since when no leader is known; none while one is.
#[derive(Debug)]
pub struct Leaderless(watch::Sender<Option<Instant>>);

impl Default for Leaderless {
    fn default() -> Self {
        Leaderless(watch::Sender::new(Some(Instant::now())))
    }
}

impl Leaderless {
    /// Whether a leader is known now.
    pub fn note(&self, known: bool) {
        self.0.send_if_modified(|since| {
            let changed = since.is_none() != known;
            if changed {
                *since = (!known).then(Instant::now);
            }
            changed
        });
    }

    /// Waits until a leader is known, or none has been for so long.
    pub async fn wait(&self, patience: Duration) {
        let mut since = self.0.subscribe();
        loop {
            let Some(lost) = *since.borrow_and_update() else { return };
            let late = lost + patience;
            if Instant::now() >= late || tokio::time::timeout_at(late.into(), since.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Inner {
    /// So long a request waits for a leader: an election is over by then, unless it fails.
    pub(super) fn patience(&self) -> Duration {
        self.election_max * 2
    }

    /// Waits until a leader is known, as long as one may be expected soon.
    pub(super) async fn wait_for_leader(&self) {
        if !self.is_stopping() {
            self.leaderless.wait(self.patience()).await;
        }
    }

    /// What was refused at `first` because nobody led: whether to try again, after a moment.
    pub(super) async fn try_again(&self, first: Instant) -> bool {
        if self.is_stopping() || first.elapsed() >= self.patience() {
            return false;
        }
        tokio::time::sleep(AGAIN).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn patience_counts_from_when_the_leader_was_lost() {
        let leaderless = Leaderless::default();
        leaderless.note(true);
        let begun = Instant::now();
        leaderless.wait(Duration::from_secs(600)).await;
        assert!(begun.elapsed() < Duration::from_secs(60), "a leader is known: nothing to wait for");
        leaderless.note(false);
        // Longer lost than anybody is patient.
        leaderless.wait(Duration::ZERO).await;
        let back = async {
            tokio::task::yield_now().await;
            leaderless.note(true);
        };
        tokio::join!(leaderless.wait(Duration::from_secs(600)), back);
    }
}
