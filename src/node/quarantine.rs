//! Quarantine: what a member does when its copy of the history is found to be damaged, or to differ from the others'.
//!
//! In this order: it stops serving clients, writes a mark with the reason into `member.json`, tells people (log, event,
//! metric), hands leadership over when it leads, and asks whoever runs it to open it anew. The mark makes the next open
//! begin with a repair ([`super::repair`]), also after a crash. Raft goes on until then: votes and entries of its log are
//! as good as ever, it is what was made of them that is in doubt.
//!
//! Damage is noticed by the store itself, whatever read it ([`Store::set_damage_hook`](crate::store::Store)), by a scrub,
//! or by another member that compared. Damage of the wal is none of this: it stops the member, as errors of the disk do.
//! A member that has nobody to be repaired by is not quarantined: it serves what it can read and names what it cannot.
//!
//! Proven by `tests/mirrors/verify.rs`, and by `tests/mirrors/quarantine.rs` as others see it.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Inner, Node, NodeError};
use crate::model::Revision;
use crate::store::StoreError;

/// How long a member in quarantine goes on before it is opened anew, at least, so that replies that are under way, perhaps
/// the report that led to it, still get out.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// So long a verification that this member leads may go on first.
const LAST_REPORT: Duration = Duration::from_secs(10);

/// What is wrong with a member's copy, as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// What, in words.
    pub what: String,
    /// The file, when it is a record or a part of a file of this member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Where in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The position of the record in the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// The revision that it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// The first keys that it changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
}

impl Damage {
    /// The chain hash of this member differs from the leader's.
    pub fn chain(position: u64, leader: &str) -> Damage {
        let what = format!("its chain hash at position {position} disagrees with that of the leader, {leader}");
        Damage { position: Some(position), ..Damage::said(what) }
    }

    /// What another member found.
    pub fn said(what: impl Into<String>) -> Damage {
        let (file, offset, position, revision, keys) = (None, None, None, None, Vec::new());
        Damage { what: what.into(), file, offset, position, revision, keys }
    }

    /// Whether it is at a place in a file, so that what lies before it may be good.
    pub(super) fn is_local(&self) -> bool {
        self.file.is_some()
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.offset) {
            (Some(file), Some(offset)) => write!(f, "{file} is damaged at byte {offset}: {}", self.what)?,
            _ => f.write_str(&self.what)?,
        }
        if let Some(position) = self.position.filter(|_| self.is_local()) {
            write!(f, "; the record of position {position}")?;
        }
        if let Some(revision) = self.revision {
            write!(f, ", revision {revision}")?;
        }
        if !self.keys.is_empty() {
            write!(f, ", keys {}", self.keys.join(", "))?;
        }
        Ok(())
    }
}

/// The mark in `member.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Why.
    pub why: Damage,
    /// Since when, in milliseconds since 1970, by this member's clock.
    pub since_ms: u64,
    /// The name under which the damaged history is set aside, in the data directory.
    pub aside: String,
    /// What could be taken over of it is taken over.
    #[serde(default)]
    pub rescued: bool,
}

/// What a member that repairs itself answers to every question of another member, with status 503.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QuarantineAnswer {
    /// Its mark.
    pub quarantined: Quarantine,
}

/// What the names of damaged histories begin with.
pub(super) const ASIDE_PREFIX: &str = "history.damaged-";

impl Quarantine {
    pub(super) fn new(why: Damage) -> Quarantine {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since_ms = now.as_millis() as u64;
        Quarantine { why, since_ms, aside: format!("{ASIDE_PREFIX}{since_ms:013}"), rescued: false }
    }

    /// What is told to those who ask for data.
    pub fn error(&self) -> NodeError {
        NodeError::Quarantined { detail: self.why.to_string() }
    }
}

/// A key for people: as text where it is text, with its key space in front unless it is a client's.
pub(super) fn key_words(key: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(key).chars().take(200).collect();
    format!("{text:?}")
}

/// Where the store reports damage, before there is a member to report it to and afterwards.
#[derive(Default)]
pub(super) struct DamageNote {
    member: OnceLock<Weak<Inner>>,
    first: Mutex<Option<(String, u64, String)>>,
}

impl DamageNote {
    /// The store's hook.
    pub fn take(&self, error: &StoreError) {
        let StoreError::Corrupt { file, offset, what } = error else { return };
        match self.member.get().map(Weak::upgrade) {
            Some(Some(inner)) => inner.found_damaged(file, *offset, what),
            Some(None) => {}
            None => drop(self.first.lock().get_or_insert_with(|| (file.clone(), *offset, what.clone()))),
        }
    }

    /// From now on damage is the member's business, also what was met before.
    pub fn belongs_to(&self, inner: &Arc<Inner>) {
        let _ = self.member.set(Arc::downgrade(inner));
        if let Some((file, offset, what)) = self.first.lock().take() {
            inner.found_damaged(&file, offset, &what);
        }
    }

    /// What was met before there was a member.
    pub fn early(&self) -> Option<Damage> {
        let first = self.first.lock().take();
        first.map(|(file, offset, what)| Damage { file: Some(file), offset: Some(offset), ..Damage::said(what) })
    }
}

impl Inner {
    /// Why this member is in quarantine; none when it is not.
    pub fn quarantined(&self) -> Option<Quarantine> {
        if !self.in_quarantine.load(Ordering::Relaxed) {
            return None;
        }
        self.home.lock().file.quarantine.clone()
    }

    /// Whether this member may answer clients: it is neither fenced nor in quarantine.
    pub(super) fn check_serves(&self) -> Result<(), NodeError> {
        if let Some(fenced) = self.fenced() {
            return Err(fenced.error());
        }
        self.quarantined().map_or(Ok(()), |quarantine| Err(quarantine.error()))
    }

    /// The store met damage at a place in a file.
    fn found_damaged(self: &Arc<Self>, file: &str, offset: u64, what: &str) {
        if self.in_quarantine.load(Ordering::Relaxed) {
            return;
        }
        let mut damage = Damage { file: Some(file.to_owned()), offset: Some(offset), ..Damage::said(what) };
        if let Some(record) = self.store.describe(file, offset) {
            damage.position = Some(record.position);
            damage.revision = record.revision;
            damage.keys = record.keys.iter().map(|key| key_words(key)).collect();
        }
        self.quarantine(damage);
    }

    /// Puts this member into quarantine. It may be called from any thread and more than once; the first reason counts.
    pub fn quarantine(self: &Arc<Self>, why: Damage) {
        if self.members_by_id().keys().all(|id| *id == self.id) {
            tracing::error!(%why, "the history is damaged, and there is no other member to repair it from");
            let mut told = self.damage_told.lock();
            if told.as_ref() != Some(&why) {
                self.events.record("damaged", format!("{why}; there is no other member to repair it from"));
                *told = Some(why);
            }
            return;
        }
        if self.in_quarantine.swap(true, Ordering::Relaxed) {
            return;
        }
        let mark = Quarantine::new(why);
        {
            let mut home = self.home.lock();
            if let Err(error) = home.change(|file| file.quarantine = Some(mark.clone())) {
                // It stays out of service all the same; what is damaged is found again after a restart.
                tracing::error!(%error, "the quarantine cannot be written down");
                home.file.quarantine = Some(mark.clone());
            }
        }
        tracing::error!(why = %mark.why, aside = mark.aside, "this member is in quarantine and serves no clients");
        self.events.record("quarantined", mark.why.to_string());
        self.watches.stop();
        let inner = self.clone();
        self.background.handle.spawn(async move {
            // A verification that this member leads shall tell to its end what it finds.
            let last_words = async {
                let _too_late_is_cut = tokio::time::timeout(LAST_REPORT, inner.verifying.lock()).await;
                tokio::time::sleep(LAST_WORDS).await;
            };
            // Only what is worth waiting for: a member that does not lead has nothing to hand over.
            let (_, ()) = tokio::join!(inner.step_down(), last_words);
            inner.reopen.send_replace(true);
        });
    }
}

impl Node {
    /// Why this member serves no clients, fenced or in quarantine; none when it does.
    pub fn out_of_service(&self) -> Option<NodeError> {
        self.0.check_serves().err()
    }

    /// Returns when the member is in quarantine and has done what it can: it wants to be closed and opened anew.
    pub async fn wants_reopen(&self) {
        let mut reopen = self.0.reopen.subscribe();
        if reopen.wait_for(|wanted| *wanted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
