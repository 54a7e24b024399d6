//! How members without data come to a cluster by themselves: all are started alike, with `--bootstrap-expect` and
//! `--discover`, and found one together, or find one and join it.
//!
//! ```text
//!   places ──resolve──> addresses ──survey──> who is there, and what they hold
//!                                                   │
//!        lobby: answers the same to others      protocol::decide ──> hold, ask, give up, begin, join
//!          └── member.json: the proposal held, durable before it is told
//! ```
//!
//! The decisions are [`protocol`]'s, which knows no sockets; [`lobby`] is what such a member answers to others; here is
//! the loop between them. It asks everybody, decides, and does one thing; what was seen before this member last changed
//! what it holds is not used. See `docs/decisions/0013-founding-together.md`.
//!
//! Invariants: what a member holds is durable before it tells anyone; it begins only what it holds; a member that
//! belongs to a cluster never comes here. Proven by `tests.rs` here (the protocol), `tests/loops.rs` (this loop and
//! the lobby, on disks that lose power) and `tests/cluster/founding.rs` (processes).

mod discover;
pub mod lobby;
pub mod protocol;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::identity::Belonging;
use super::join::{JoinAnswer, JoinRequest, ask};
use super::{StartError, peer_path};
use crate::config::Discovery;
use crate::model::{MemberId, format_member_id, new_random_id, parse_member_id};
use crate::raft::fence::PEER_FORMAT;
use crate::raft::peer_http::AskStranger;
use crate::raft::types::MemberInfo;

use lobby::Lobby;
use protocol::{Held, Proposal, Round, Seen, Standing, Step};

pub use discover::resolve;

/// How long one member may take to say who it is.
const SURVEY: Duration = Duration::from_secs(1);
/// Between two rounds.
pub const PAUSE: Duration = Duration::from_millis(200);

/// Asks a member who it is. Exempt from the fence: who asks may belong to no cluster yet.
#[derive(Debug, Serialize, Deserialize)]
pub struct SurveyRequest {
    /// The version of the messages between members.
    pub format: u32,
}

/// Who a member is.
#[derive(Debug, Serialize, Deserialize)]
pub struct SurveyAnswer {
    /// The version of the messages between members.
    pub format: u32,
    /// Its id, 16 hexadecimal digits.
    pub member_id: String,
    /// Its name, role and addresses.
    pub member: MemberInfo,
    /// How many voters it expects; none when it founds nothing.
    pub expect: Option<usize>,
    /// What it is.
    pub standing: Standing,
}

/// Asks a member to hold a proposal.
#[derive(Debug, Serialize, Deserialize)]
pub struct HoldRequest {
    /// The version of the messages between members.
    pub format: u32,
    /// The proposal.
    pub proposal: Proposal,
}

/// Whether it does.
#[derive(Debug, Serialize, Deserialize)]
pub struct HoldAnswer {
    /// Or why not.
    pub result: Result<(), String>,
}

impl SurveyAnswer {
    /// What a member says of itself.
    pub fn new(id: MemberId, member: MemberInfo, expect: Option<usize>, standing: Standing) -> SurveyAnswer {
        SurveyAnswer { format: PEER_FORMAT, member_id: format_member_id(id), member, expect, standing }
    }
}

/// What a survey found.
#[derive(Debug, Default)]
pub struct Surveyed {
    /// Those that answered, each once, and where.
    pub seen: Vec<(String, Seen)>,
    /// Where nobody answered.
    pub silent: Vec<String>,
}

/// Asks all at `urls` who they are. `but` is left out of those seen: this member meets itself.
pub async fn survey(http: &impl AskStranger, urls: &BTreeSet<String>, but: MemberId) -> Surveyed {
    let answers = urls.iter().map(|url| async move {
        let request = SurveyRequest { format: PEER_FORMAT };
        let asked = http.post_json::<SurveyAnswer>(&format!("{url}{}", peer_path::SURVEY), &request, SURVEY).await;
        match asked {
            Ok(answer) if answer.format != PEER_FORMAT => {
                tracing::warn!(url, theirs = answer.format, ours = PEER_FORMAT, "a member speaks another version");
                Err(url.clone())
            }
            Ok(answer) => match parse_member_id(&answer.member_id) {
                Some(id) => Ok((url.clone(), id, answer)),
                None => Err(url.clone()),
            },
            Err(error) => {
                tracing::debug!(url, error, "nobody answers a survey");
                Err(url.clone())
            }
        }
    });
    let mut ids = BTreeSet::from([but]);
    let mut surveyed = Surveyed::default();
    for answer in join_all(answers).await {
        match answer {
            // The same member may be found under several addresses.
            Ok((url, id, SurveyAnswer { member: info, expect, standing, .. })) => {
                if ids.insert(id) {
                    surveyed.seen.push((url, Seen { id, info, expect, standing }));
                }
            }
            Err(url) => surveyed.silent.push(url),
        }
    }
    surveyed
}

/// Founds a cluster with the others, or joins the one that is there. Returns when this member belongs to one, durably.
pub async fn found_or_join(
    http: &impl AskStranger,
    lobby: &Lobby,
    places: &[Discovery],
    between_rounds: Duration,
) -> Result<Belonging, StartError> {
    let (mut last_words, mut last_words_of_names) = (String::new(), String::new());
    loop {
        let (version, own) = lobby.own();
        let resolved = resolve(places, &mut last_words_of_names).await;
        let Surveyed { seen, mut silent } = survey(http, &resolved.urls, own.id).await;
        // A place that cannot be asked has not answered.
        silent.extend(resolved.unknown);
        let round = Round { seen: seen.iter().map(|(_, one)| one.clone()).collect(), silent };
        let mut pause = between_rounds;
        match lobby.step(version, &round) {
            // Somebody asked this member to hold a proposal meanwhile: what was seen is out of date.
            None => {}
            Some(Step::Wait(why)) => say(&mut last_words, &why),
            Some(Step::Join) => {
                say(&mut last_words, "a cluster is there: joining it");
                let members = seen.iter().filter(|(_, one)| matches!(one.standing, Standing::Belongs { .. }));
                let request = JoinRequest::new(own.id, own.info.clone(), None);
                for (url, _) in members {
                    match ask(http, url, &request).await {
                        Ok(JoinAnswer::Joined { cluster, timeline }) => {
                            let belonging = Belonging { id: cluster, timeline, founder: false, has_log: false };
                            lobby.belong(belonging)?;
                            return Ok(belonging);
                        }
                        Ok(JoinAnswer::Refused { detail } | JoinAnswer::Removed { detail }) => {
                            return Err(StartError::JoinRefused { url: url.clone(), detail });
                        }
                        Ok(JoinAnswer::AskLeader { .. }) => {}
                        Ok(JoinAnswer::Later { detail }) | Err(detail) => say(&mut last_words, &detail),
                    }
                }
            }
            Some(Step::Propose(members)) => {
                let proposal = Proposal::new((new_random_id(), new_random_id()), own.id, &members);
                tracing::info!(cluster = %proposal.cluster, voters = members.len(), "proposing a new cluster");
                lobby.hold(version, Some(Held { proposal, frozen: false }))?;
                pause = Duration::ZERO;
            }
            Some(Step::Ask(ids)) => {
                if let Some(held) = lobby.held() {
                    let others = seen.iter().filter(|(_, one)| ids.contains(&one.id));
                    ask_to_hold(http, others, &held.proposal).await;
                    pause = Duration::ZERO;
                }
            }
            Some(Step::GiveUp(why)) => {
                tracing::info!(why, "the proposed cluster is given up");
                lobby.hold(version, None)?;
            }
            Some(Step::Freeze) => {
                tracing::warn!("the founder of the proposed cluster seems to have lost its disk");
                if let Some(held) = lobby.held() {
                    lobby.hold(version, Some(Held { frozen: true, ..held }))?;
                }
            }
            Some(Step::Begin) => {
                if let Some(belonging) = lobby.begin(version)? {
                    tracing::info!(cluster = %belonging.id, "all have agreed: this member begins the new cluster");
                    return Ok(belonging);
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn ask_to_hold(http: &impl AskStranger, others: impl Iterator<Item = &(String, Seen)>, proposal: &Proposal) {
    let asked = others.map(|(url, one)| async move {
        let request = HoldRequest { format: PEER_FORMAT, proposal: proposal.clone() };
        let answer = http.post_json::<HoldAnswer>(&format!("{url}{}", peer_path::HOLD), &request, SURVEY).await;
        if let Err(why) = answer.map_err(|e| e.to_string()).and_then(|answer| answer.result) {
            tracing::info!(member = one.info.name, why, "a member does not agree to the new cluster yet");
        }
    });
    join_all(asked).await;
}

/// Logs a reason to wait, once for as long as it stays the same.
fn say(last_words: &mut String, words: &str) {
    if last_words != words {
        tracing::info!("{words}");
        *last_words = words.to_string();
    }
}
