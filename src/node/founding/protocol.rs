//! Who founds, and when: the decisions of one member, without clocks, sockets or disks.
//!
//! ```text
//!            hold (as founder)            all others hold it too
//!   free ───────────────────────> held ──────────────────────────> begun      the founder
//!     ^       the founder no longer holds it  │  somebody has begun  │
//!     └───────────────────────────────────────┴──────────────────────┘         the others
//! ```
//!
//! A member holds at most one proposal, durably, and no other while it does. A proposal names a new cluster, its founder
//! and all its first voters. The founder begins when *all* of them hold it; whoever holds it begins when it sees one that
//! has begun. Only the founder takes a proposal back, by no longer holding it; the others follow when they see that. What
//! begins is a Raft cluster whose voters are all members of the proposal, so nothing is decided in it without a majority
//! of those that hold the proposal.
//!
//! Why there are never two: nobody proposes, agrees or begins unless *every* place where a member may be has answered, and
//! no answer spoke of a cluster or of another proposal ([`Round::silent`], [`obstacle`]). A cluster that lives has members
//! that kept their disks, and each of them is at one of those places; so it would have been met, whatever became of the
//! disks of the others. That covers what is there already. Of two that would come at the same moment: each would be held by
//! all its members; of fewer than twice as many members as are expected any two such sets share one ([`select`] refuses
//! more), and that one holds only one at a time; it gives up the first only when its founder did, and a founder that gave
//! up never begins it.
//!
//! A founder that lost its disk cannot take back anything. Those who see another without data under its name *freeze* the
//! proposal: they follow it only if they still meet a member that has begun. When all that are left have frozen it, nobody
//! has begun and nobody will, and they give it up. (Should the founder live after all, under a name that two members use,
//! then its cluster never gets the majority that it needs.)
//!
//! Proven by `founding/tests.rs`: thousands of random orders with lost messages, crashes and lost disks.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::model::{ClusterId, MemberId, MemberRole, TimelineId, format_member_id, parse_member_id};
use crate::raft::types::MemberInfo;

/// A cluster that does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// Its identity.
    pub cluster: ClusterId,
    /// The identity of its first timeline.
    pub timeline: TimelineId,
    /// The member that proposes it, 16 hexadecimal digits.
    founder: String,
    /// Its first voters, by id.
    members: BTreeMap<String, MemberInfo>,
}

impl Proposal {
    /// A proposal of `founder`.
    pub fn new(
        (cluster, timeline): (ClusterId, TimelineId),
        founder: MemberId,
        members: &BTreeMap<MemberId, MemberInfo>,
    ) -> Proposal {
        let members = members.iter().map(|(id, info)| (format_member_id(*id), info.clone())).collect();
        Proposal { cluster, timeline, founder: format_member_id(founder), members }
    }

    /// The member that proposes it; `None` when the message is malformed.
    pub fn founder(&self) -> Option<MemberId> {
        parse_member_id(&self.founder)
    }

    /// Its first voters. An id that is malformed is left out, and then the proposal is not accepted.
    pub fn members(&self) -> BTreeMap<MemberId, MemberInfo> {
        self.members.iter().filter_map(|(id, info)| Some((parse_member_id(id)?, info.clone()))).collect()
    }

    fn ids(&self) -> BTreeSet<MemberId> {
        self.members().into_keys().collect()
    }

    fn founder_name(&self) -> Option<&str> {
        self.members.get(&self.founder).map(|info| info.name.as_str())
    }
}

/// What a member that has not begun holds; durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// The proposal.
    pub proposal: Proposal,
    /// Its founder seems to have lost its disk: it is followed only when somebody has begun.
    pub frozen: bool,
}

/// What a member is, as it tells others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It has no data, and may hold a proposal.
    Empty {
        /// The proposal.
        held: Option<Held>,
        /// Whether it knows a cluster to join.
        sees_cluster: bool,
    },
    /// It belongs to a cluster.
    Belongs {
        /// Which.
        cluster: ClusterId,
    },
}

/// A member as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: MemberId,
    /// Its name, role and addresses.
    pub info: MemberInfo,
    /// How many voters it expects; none when it founds nothing.
    pub expect: Option<usize>,
    /// What it is.
    pub standing: Standing,
}

/// What a round of questions found: all places where a member may be were asked who is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Round {
    /// Those that answered, each once, without this member.
    pub seen: Vec<Seen>,
    /// The places that gave no answer: addresses, and names that have none at this moment. A cluster may live there.
    pub silent: Vec<String>,
}

/// This member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Its id.
    pub id: MemberId,
    /// Its name, role and addresses.
    pub info: MemberInfo,
    /// How many voters it expects; none when it founds nothing.
    pub expect: Option<usize>,
}

/// What a member does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing, for this reason.
    Wait(String),
    /// There is a cluster: join it.
    Join,
    /// Hold a proposal of one's own with these voters.
    Propose(BTreeMap<MemberId, MemberInfo>),
    /// Ask these to hold the proposal.
    Ask(BTreeSet<MemberId>),
    /// No longer hold the proposal, for this reason.
    GiveUp(String),
    /// Mark the proposal as one of a founder that lost its disk.
    Freeze,
    /// Belong to the cluster of the proposal from now on.
    Begin,
}

/// What to do, after all places were asked. They must have been asked after `held` was changed last.
pub fn decide(own: &Own, held: Option<&Held>, round: &Round) -> Step {
    let seen = &round.seen;
    let belongs = |one: &Seen| match one.standing {
        Standing::Belongs { cluster } => Some(cluster),
        Standing::Empty { .. } => None,
    };
    let clusters: BTreeSet<ClusterId> = seen.iter().filter_map(belongs).collect();
    if held.is_some_and(|held| clusters.contains(&held.proposal.cluster)) {
        return Step::Begin;
    }
    match clusters.len() {
        0 => {}
        1 => return Step::Join,
        count => return Step::Wait(format!("{count} different clusters are there, and it is not clear which to join")),
    }
    match held {
        None => decide_free(own, round),
        Some(held) if held.proposal.founder() == Some(own.id) => decide_as_founder(own, &held.proposal, round),
        Some(held) => decide_as_holder(own, held, seen),
    }
}

/// Which proposal a member holds.
fn held_by(one: &Seen) -> Option<&Held> {
    match &one.standing {
        Standing::Empty { held, .. } => held.as_ref(),
        Standing::Belongs { .. } => None,
    }
}

/// Why no new cluster may be founded as things are: there may be one already.
pub fn obstacle(round: &Round) -> Option<String> {
    for one in &round.seen {
        match one.standing {
            Standing::Belongs { .. } => return Some(format!("{} belongs to a cluster", one.info.name)),
            Standing::Empty { sees_cluster: true, .. } => {
                return Some(format!("{} knows a cluster to join", one.info.name));
            }
            Standing::Empty { .. } => {}
        }
    }
    match round.silent.as_slice() {
        [] => None,
        [one] => Some(format!("nobody answers at {one}, where a cluster may live")),
        [one, others @ ..] => {
            Some(format!("nobody answers at {one} and {} other places, where a cluster may live", others.len()))
        }
    }
}

fn decide_free(own: &Own, round: &Round) -> Step {
    let chosen = match select(own, round) {
        Ok(chosen) => chosen,
        Err(why) => return Step::Wait(why),
    };
    let Some((first, info)) = chosen.first_key_value() else { return Step::Wait("nobody is expected".into()) };
    if *first != own.id {
        return Step::Wait(format!("{} is to found the cluster", info.name));
    }
    // Whether it is one of the chosen or not: its proposal may have begun, and those who began have lost their disks.
    match round.seen.iter().find(|one| held_by(one).is_some()) {
        Some(one) => Step::Wait(format!("{} holds another proposal", one.info.name)),
        None => Step::Propose(chosen),
    }
}

fn decide_as_founder(own: &Own, proposal: &Proposal, round: &Round) -> Step {
    let members = proposal.ids();
    let others = || round.seen.iter().filter(|one| members.contains(&one.id));
    let holds = |one: &Seen| held_by(one).is_some_and(|held| held.proposal.cluster == proposal.cluster);
    if others().any(|one| holds(one) && held_by(one).is_some_and(|held| held.frozen)) {
        return Step::GiveUp("a member takes this one for lost".into());
    }
    let other_proposal = |one: &&Seen| held_by(one).is_some() && !holds(one);
    let other_founder = |one: &Seen| held_by(one).and_then(|held| held.proposal.founder());
    if round.seen.iter().filter(other_proposal).filter_map(other_founder).any(|founder| founder < own.id) {
        return Step::GiveUp("another founder comes first".into());
    }
    if others().filter(|one| holds(one)).count() + 1 == members.len() {
        // The last look before there is a cluster: everybody was asked after all had agreed.
        let other = round.seen.iter().find(other_proposal);
        let why = obstacle(round).or(other.map(|one| format!("{} holds another proposal", one.info.name)));
        return why.map_or(Step::Begin, Step::Wait);
    }
    let chosen = match select(own, round) {
        Ok(chosen) => chosen,
        Err(why) => return Step::Wait(why),
    };
    if !chosen.keys().eq(members.iter()) {
        return Step::GiveUp("other members are there now".into());
    }
    Step::Ask(others().filter(|one| !holds(one)).map(|one| one.id).collect())
}

fn decide_as_holder(own: &Own, held: &Held, seen: &[Seen]) -> Step {
    let proposal = &held.proposal;
    let by_id = |id: MemberId| seen.iter().find(|one| one.id == id);
    if let Some(founder) = proposal.founder().and_then(by_id) {
        return match held_by(founder) {
            Some(theirs) if theirs.proposal.cluster == proposal.cluster => {
                Step::Wait(format!("{} waits for all to agree", founder.info.name))
            }
            _ => Step::GiveUp(format!("{} has taken its proposal back", founder.info.name)),
        };
    }
    let lost = |id: MemberId, name: &str| seen.iter().any(|one| one.info.name == name && one.id != id);
    let name = proposal.founder_name().unwrap_or_default();
    if !proposal.founder().is_some_and(|id| lost(id, name)) {
        return Step::Wait(format!("this member has agreed to be founded by {name}, which does not answer"));
    }
    if !held.frozen {
        return Step::Freeze;
    }
    let harmless = |id: MemberId, name: &str| match by_id(id) {
        Some(one) => held_by(one).is_none_or(|theirs| theirs.frozen || theirs.proposal.cluster != proposal.cluster),
        None => lost(id, name),
    };
    let waits_for = proposal.members().into_iter().find(|(id, info)| *id != own.id && !harmless(*id, &info.name));
    match waits_for {
        None => Step::GiveUp(format!("{name} has lost its disk, and nobody has begun")),
        Some((_, info)) => {
            Step::Wait(format!("{name} has lost its disk; whether it had founded a cluster {} may know", info.name))
        }
    }
}

/// The expected number of voters without data: of all that are there those with the smallest ids.
fn select(own: &Own, round: &Round) -> Result<BTreeMap<MemberId, MemberInfo>, String> {
    let Some(expect) = own.expect.filter(|_| own.info.role == MemberRole::Voter) else {
        return Err("no cluster is there yet".into());
    };
    let mut names = BTreeMap::from([(own.info.name.as_str(), own.id)]);
    let mut present = BTreeMap::from([(own.id, own.info.clone())]);
    for one in &round.seen {
        if names.insert(one.info.name.as_str(), one.id).is_some_and(|other| other != one.id) {
            return Err(format!("two members are called {:?}", one.info.name));
        }
        match (one.expect, one.info.role) {
            (Some(theirs), MemberRole::Voter) if theirs != expect => {
                return Err(format!("{} expects {theirs} voters, this member {expect}", one.info.name));
            }
            (Some(_), MemberRole::Voter) => drop(present.insert(one.id, one.info.clone())),
            // A mirror, or one that only joins: it comes later.
            _ => {}
        }
    }
    let count = present.len();
    if count < expect {
        let names: Vec<&str> = present.values().map(|info| info.name.as_str()).collect();
        return Err(format!("{count} of {expect} expected voters are here: {}", names.join(", ")));
    }
    if let Some(why) = obstacle(round) {
        return Err(why);
    }
    // Any two choices must share a member.
    if count >= 2 * expect {
        return Err(format!("{count} voters without data are here, of which two clusters of {expect} could come"));
    }
    Ok(present.into_iter().take(expect).collect())
}

/// Whether to hold a proposal that a founder asks for. `obstacle`: why this member's own last round forbids it.
pub fn accepts(own: &Own, held: Option<&Held>, obstacle: Option<&str>, proposal: &Proposal) -> Result<(), String> {
    let members = proposal.members();
    let Some(founder) = proposal.founder().filter(|id| members.contains_key(id)) else {
        return Err("the proposal names no founder among its members".into());
    };
    if members.get(&own.id).is_none_or(|info| info.name != own.info.name) {
        return Err("the proposal does not name this member".into());
    }
    if own.expect != Some(members.len()) || own.info.role != MemberRole::Voter {
        return Err(format!("this member expects {:?} voters, the proposal has {}", own.expect, members.len()));
    }
    if let Some(why) = obstacle {
        return Err(why.into());
    }
    match held {
        None => Ok(()),
        Some(held) if held.proposal.cluster == proposal.cluster => match held.frozen {
            false => Ok(()),
            true => Err("this member takes the founder for lost".into()),
        },
        // A founder that has not begun may take its own proposal back at any time.
        Some(held) if held.proposal.founder() == Some(own.id) && founder < own.id => Ok(()),
        Some(held) => Err(format!("this member holds the proposal of {}", held.proposal.founder)),
    }
}
