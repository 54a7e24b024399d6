//! Disaster recovery between sites: moving the service as planned, what happens when a site is lost, and the way home.
//!
//! ```text
//!   switchover: a plan in the cluster's own records, carried on or back by whoever leads; nothing is lost
//!
//!   survey ──> force ──> promote (offline, while the member is opened anew) ──> a new timeline leads
//!                                                                                │ kin: announced to all old members
//!                                                                                v
//!                                                          fence ──> (rejoin: salvage, rewind, join anew)
//!
//!   drill: a forced failover rehearsed in a throwaway member beside a mirror, which nobody hears of
//! ```
//!
//! Invariants: a member acts on what it has written down ([`Fenced`], [`Promotion`] in `member.json`), so that one that
//! dies anywhere goes on where it was; timelines are compared by identity and ancestry ([`crate::model::kinship`]); nothing
//! here changes a byte of a history but by an entry of the log. `docs/disaster-recovery.md` is the runbook.
//!
//! Proven by `tests/dr/switchover.rs`, `tests/dr/drill.rs`, `tests/dr/failover.rs` and its neighbours: `failover_clients` (judged
//! timeline by timeline), `failover_links` (the link lost at every place), `failover_again` (a third timeline amid a
//! rejoin), `failover_two_orders`, `failover_copies`, `failover_fenced`.

pub(in crate::node) mod advice;
pub(in crate::node) mod common;
pub mod drill;
pub(in crate::node) mod fence;
pub(in crate::node) mod force;
pub(in crate::node) mod forgotten;
pub(in crate::node) mod home;
pub(in crate::node) mod kin;
pub(in crate::node) mod promote;
pub(in crate::node) mod rejoin;
pub(in crate::node) mod rivals;
pub(in crate::node) mod salvage;
pub(in crate::node) mod salvage_files;
pub(in crate::node) mod survey;
pub(in crate::node) mod switchover;

pub use fence::Fenced;
pub use promote::Promotion;
pub use rejoin::Rejoin;
pub(in crate::node) use rivals::Rivalry;
