//! Named places where a test lets a member die or wait: the steps of the disaster-recovery verbs, and of a repair.
//!
//! In a debug build, with `LIFEBOAT_TEST_POINTS=<directory>`, which all members may share, a test arms and disarms places
//! while they run: the first that comes to a place for which there is a file `crash-<name>` takes it away (`crashed-<name>`
//! is there then) and dies as by `kill -9`; where there is `hold-<name>`, everyone writes `held-<name>` and goes on when it
//! is gone, so that a test can kill somebody else meanwhile. A release build has none of this: both functions are empty.
//!
//! Each place is in the list of its verb, in the order in which the verb comes to it; the tests go over these lists.

/// A planned move of the primary site, on the members that carry it on.
pub const SWITCHOVER: &[&str] = &[
    "switchover-caught-up",
    "switchover-adding-voter",
    "switchover-added",
    "switchover-voter-seen",
    "switchover-handing-over",
    "switchover-held",
    "switchover-passing-lead",
    "switchover-leading",
    "switchover-moving-voters",
    "switchover-voters-answer",
    "switchover-joint",
    "switchover-moved",
    "switchover-ended",
];
/// The way back of one, on the members that carry it.
pub const SWITCHOVER_BACK: &[&str] = &["switchover-going-back", "switchover-removed", "switchover-ended"];
/// A forced failover, on the member that is promoted.
pub const FORCE: &[&str] = &[
    "force-order-written",
    "force-vote-written",
    "force-log-written",
    "force-timeline-named",
    "force-timeline-applied",
    "force-finished",
];
/// The return of a fenced member.
pub const REJOIN: &[&str] = &[
    "rejoin-begun",
    "rejoin-common-point-found",
    "rejoin-salvage-written",
    "rejoin-salvaged",
    "rejoin-history-aside",
    "rejoin-all-aside",
    "rejoin-id-drawn",
    "rejoin-rewound",
    "rejoin-rewind-marked",
    "rejoin-joined",
    "rejoin-join-marked",
    "rejoin-cleared",
    "rejoin-finished",
];
/// A rehearsal of a failover, on the mirror.
pub const DRILL: &[&str] = &["drill-forked", "drill-child-started", "drill-leads", "drill-checked"];
/// The repair of a member in quarantine.
pub const REPAIR: &[&str] = &["repair-before-pull"];

/// A place in code that may wait.
pub async fn reach(name: &'static str) {
    #[cfg(debug_assertions)]
    if let Some(held) = armed::reached(name) {
        while held.exists() {
            tokio::time::sleep(armed::LOOK_AGAIN).await;
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}

/// A place in code that blocks its thread.
pub fn reach_blocking(name: &'static str) {
    #[cfg(debug_assertions)]
    if let Some(held) = armed::reached(name) {
        while held.exists() {
            std::thread::sleep(armed::LOOK_AGAIN);
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod armed {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    pub const LOOK_AGAIN: Duration = Duration::from_millis(5);

    fn die(name: &str) -> ! {
        eprintln!("crash point {name} is reached");
        // As kill -9: nothing is flushed, no destructor runs.
        let _ = std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
        std::process::abort();
    }

    /// What the directory that members share says of a place.
    fn shared(dir: &Path, name: &str) -> Option<PathBuf> {
        let file = |what: &str| dir.join(format!("{what}-{name}"));
        // Of two that come to it at once only one can rename the file.
        if std::fs::rename(file("crash"), file("crashed")).is_ok() {
            die(name);
        }
        let hold = file("hold");
        (hold.exists() && std::fs::write(file("held"), name).is_ok()).then_some(hold)
    }

    /// Ends the process, or gives the file to wait for.
    pub fn reached(name: &str) -> Option<PathBuf> {
        let lists =
            [super::SWITCHOVER, super::SWITCHOVER_BACK, super::FORCE, super::REJOIN, super::DRILL, super::REPAIR];
        assert!(lists.iter().any(|list| list.contains(&name)), "{name} is in the list of its verb");
        std::env::var_os("LIFEBOAT_TEST_POINTS").and_then(|dir| shared(&PathBuf::from(dir), name))
    }
}
