//! What a fenced member answers to those who ask it: to members nothing that has to do with Raft, in whoever's name they
//! ask and also after a restart; to people who misspell the way home, what is wrong, and it changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Barrier;

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{
    assert_one_timeline, force_and_wait, member_file, role, salvaged, tell_to_rejoin, told, wait_home,
    wait_primary_gone, wait_role,
};
use crate::support::http::{Answer, Failure, Request};
use crate::support::wait_for;
use lifeboat::model::{LogId, MemberId, Vote, parse_member_id};
use lifeboat::node::peer_path;
use lifeboat::raft::fence::Identity;
use lifeboat::raft::network::path;
use lifeboat::raft::types::{TypeConfig, to_raft_log_id, to_raft_vote};
use lifeboat::raft::wire;
use openraft::raft::AppendEntriesRequest;
use serde_json::{Value, json};

/// A term and a log that no real member comes to: whoever votes votes for them.
const TERM: u64 = 1000;

fn member_id(cluster: &Cluster, member: usize) -> MemberId {
    parse_member_id(member_file(cluster, member)["member_id"].as_str().unwrap()).unwrap()
}

/// A member that speaks to another one in the way of Raft.
struct Speaker {
    identity: Identity,
    to: MemberId,
    at: SocketAddr,
}

impl Speaker {
    /// As this member, on a timeline of this id.
    fn new(cluster: &Cluster, speaks: usize, timeline: &Value, to: usize) -> Speaker {
        let id = &member_file(cluster, speaks)["cluster"]["id"];
        let [id, timeline] = [id, timeline].map(|id| id.as_str().unwrap().parse().unwrap());
        let identity = Identity::new(member_id(cluster, speaks), id, timeline);
        Speaker { identity, to: member_id(cluster, to), at: cluster.member(to).peer }
    }

    fn ask(&self, method: &str, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.try_ask(method, path, body).unwrap_or_else(|failure| panic!("{path}: {failure}"))
    }

    fn try_ask(&self, method: &str, path: &str, body: impl AsRef<[u8]>) -> Result<Answer, Failure> {
        let headers = self.identity.headers(Some(self.to));
        let request = headers.iter().fold(Request::new(method, path), |request, (name, value)| {
            request.header(name.as_str(), value.to_str().unwrap())
        });
        request.body(body).try_send(self.at)
    }

    /// The end of a log that is longer than all others.
    fn last(&self, term: u64) -> Option<LogId> {
        Some(LogId { term, leader: self.identity.member, index: 1 << 30 })
    }

    fn vote(&self, path: &str, term: u64) -> Answer {
        let vote = Vote { term, member: self.identity.member, committed: false };
        let message = wire::VoteMessage { vote, last_log_id: self.last(term), leadership_transfer: true };
        self.ask("POST", path, serde_json::to_vec(&message).unwrap())
    }

    /// A heartbeat of a leader.
    fn append(&self, term: u64) -> Answer {
        let vote = to_raft_vote(Vote { term, member: self.identity.member, committed: true });
        let prev_log_id = self.last(term).map(to_raft_log_id);
        let request =
            AppendEntriesRequest::<TypeConfig> { vote, prev_log_id, entries: Vec::new(), leader_commit: prev_log_id };
        let mut frame = Vec::new();
        wire::put_append(&mut frame, &request);
        self.ask("POST", path::APPEND, frame)
    }

    /// All that members ask each other by way of Raft, and for clients.
    fn all(&self, term: u64) -> Vec<(&'static str, Answer)> {
        let from_leader = Vote { term, member: self.identity.member, committed: true };
        let transfer = wire::TransferMessage { from_leader, to: self.to, last_log_id: self.last(term) };
        let transfer = serde_json::to_vec(&transfer).unwrap();
        let mut answers = vec![
            (path::PRE_VOTE, self.vote(path::PRE_VOTE, term)),
            (path::VOTE, self.vote(path::VOTE, term)),
            (path::APPEND, self.append(term)),
            (path::TRANSFER, self.ask("POST", path::TRANSFER, transfer)),
            (path::APPEND_STREAM, self.ask("GET", path::APPEND_STREAM, "")),
        ];
        let others = [
            path::SNAPSHOT,
            path::COPY_POSITION,
            peer_path::WRITE,
            peer_path::READ_INDEX,
            peer_path::HAND_OVER,
            peer_path::PROMOTE,
            peer_path::CHAIN,
            peer_path::COMMON,
            peer_path::PULL_COPY,
            peer_path::JOIN,
            peer_path::PING,
        ];
        answers.extend(others.map(|path| (path, self.ask("POST", path, "{}"))));
        answers
    }
}

/// What a member keeps of itself, of its votes and of its entries, byte for byte.
fn kept(cluster: &Cluster, member: usize) -> BTreeMap<String, Vec<u8>> {
    fn gather(directory: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => gather(&path, found),
                false => drop(found.insert(path.display().to_string(), std::fs::read(&path).unwrap())),
            }
        }
    }
    let data = &cluster.member(member).data;
    let mut found = BTreeMap::from([("member.json".to_owned(), std::fs::read(data.join("member.json")).unwrap())]);
    gather(&data.join("wal"), &mut found);
    assert!(found.len() > 1, "there is a log: {:?}", found.keys());
    found
}

#[track_caller]
fn assert_kept(cluster: &Cluster, member: usize, before: &BTreeMap<String, Vec<u8>>) {
    let now = kept(cluster, member);
    assert!(now.keys().eq(before.keys()), "{:?} became {:?}", before.keys(), now.keys());
    let changed = now.iter().find(|(name, bytes)| before[*name] != **bytes);
    assert_eq!(changed.map(|(name, _)| name), None, "a fenced member wrote");
}

/// Waits until a fenced member is opened anew: before it says that it is fenced, and may be amid that.
#[track_caller]
fn wait_in_lobby(cluster: &Cluster, member: usize, speaker: &Speaker) {
    wait_role(cluster, member, "fenced");
    wait_for("the fenced member to be opened anew", || {
        let answer = speaker.try_ask("POST", peer_path::PING, "{}").map_err(|failure| failure.to_string())?;
        // The lobby closes every connection, so that the next request meets the member itself.
        let in_lobby = answer.status == 421 && answer.header("connection") == Some("close");
        if in_lobby { Ok(()) } else { Err(answer.to_string()) }
    });
    // Nobody else answers its clients by now, and it never says anything else.
    assert_eq!(role(cluster, member).as_deref(), Ok("fenced"));
}

/// The same vote that the member grants before it is fenced.
#[test]
fn a_fenced_member_votes_for_nobody_and_answers_nothing_of_raft_after_a_restart_too() {
    const WEST: usize = 3;
    let (candidate, voter, third) = (0, 1, 2);
    let mut cluster = Plan::new(3, 1).start();
    cluster.put_until_done(0, "k", "east");
    cluster.wait_converged();
    let old = cluster.status(voter).unwrap()["cluster"]["timeline"]["id"].clone();
    cluster.kill(candidate);
    cluster.kill(third);
    let asks = Speaker::new(&cluster, candidate, &old, voter);
    // Granted only when no leader was heard of for a while.
    wait_for("a voter that is not fenced to vote", || {
        let answer = asks.vote(path::VOTE, TERM);
        if answer.status != 200 || answer.json()["granted"] != true { Err(answer.to_string()) } else { Ok(()) }
    });
    assert_eq!(asks.append(TERM).status, 200, "and it takes the heartbeat of whom it voted for");

    wait_primary_gone(&cluster, WEST);
    let new = force_and_wait(&cluster, WEST, &json!({ "accept_data_loss": true }))["timeline"].clone();
    cluster.put_until_done(WEST, "k", "west");
    // In the name of an old voter, and in that of the leader of the very timeline by which it is fenced.
    let speakers = [asks, Speaker::new(&cluster, candidate, &new, voter), Speaker::new(&cluster, WEST, &new, voter)];
    wait_in_lobby(&cluster, voter, &speakers[0]);
    let before = kept(&cluster, voter);
    for restarted in [false, true] {
        if restarted {
            cluster.kill(voter);
            cluster.start_member(voter);
            wait_in_lobby(&cluster, voter, &speakers[0]);
            assert_kept(&cluster, voter, &before);
        }
        for speaker in &speakers {
            for (path, answer) in speaker.all(TERM + 1) {
                assert_eq!((answer.status, answer.text()), (421, "this member is fenced"), "{path}: {answer}");
            }
        }
        assert_kept(&cluster, voter, &before);
        assert_eq!(role(&cluster, voter).as_deref(), Ok("fenced"));
    }
    assert_eq!(cluster.get(WEST, "k").as_deref(), Some("west"));
}

/// Bodies that are no order to rejoin, and the field that is wrong with each.
const WRONG: [(&str, Option<&str>); 7] = [
    ("[]", None),
    ("", None),
    ("{", None),
    ("come home", None),
    (r#"{"abandon_timeline":7}"#, Some("abandon_timeline")),
    (r#"{"abandon_timeline":"seven"}"#, Some("abandon_timeline")),
    (r#"{"x":1}"#, Some("x")),
];

fn rejoin(cluster: &Cluster, member: usize, body: &str) -> Answer {
    told(Request::new("POST", "/v1/dr/rejoin").body(body).send(cluster.client(member)))
}

#[track_caller]
fn assert_wrong_orders_change_nothing(cluster: &Cluster, member: usize) {
    let before = (role(cluster, member), member_file(cluster, member));
    for (body, field) in WRONG {
        let problem = rejoin(cluster, member, body).expect_problem(400, "bad-body");
        assert_eq!(problem["field"].as_str(), field, "{body}: {problem}");
        assert_eq!((role(cluster, member), member_file(cluster, member)), before, "{body}");
    }
}

#[test]
fn a_wrong_order_to_rejoin_is_refused_by_name_and_two_right_ones_at_once_are_one() {
    let (east, west) = (0, 1);
    let mut cluster = Plan::new(1, 1).with_points().quick().start();
    cluster.put_until_done(east, "k", "both");
    cluster.wait_converged();
    // Stopped, not killed: what a mirror applies may not be in its log on the disk yet.
    assert!(cluster.stop(west).success());
    let stranded = cluster.put_until_done(east, "k", "east");
    assert_wrong_orders_change_nothing(&cluster, east);
    assert!(cluster.stop(east).success());
    cluster.start_member(west);
    wait_for("the mirror to serve", || support::dr::surveys(&cluster, west));
    force_and_wait(&cluster, west, &json!({ "accept_data_loss": true }));
    cluster.put_until_done(west, "k", "west");
    cluster.start_member(east);
    let old = member_file(&cluster, east)["cluster"]["timeline"].clone();
    wait_in_lobby(&cluster, east, &Speaker::new(&cluster, west, &old, east));
    wait_for("the promotion to be finished", || match &member_file(&cluster, west)["promotion"] {
        Value::Null => Ok(()),
        promotion => Err(promotion.to_string()),
    });
    for member in [east, west] {
        assert_wrong_orders_change_nothing(&cluster, member);
    }
    let refused = rejoin(&cluster, west, "{}").expect_problem(409, "not-fenced");
    assert!(refused["detail"].as_str().unwrap().contains("n2 is not fenced"), "{refused}");

    cluster.arm_hold("rejoin-begun");
    let start = Barrier::new(2);
    let answers = std::thread::scope(|scope| {
        let asked = [0, 1].map(|_| {
            scope.spawn(|| {
                start.wait();
                rejoin(&cluster, east, "{}")
            })
        });
        asked.map(|asked| asked.join().unwrap().expect(202).json())
    });
    assert_eq!(answers[0], answers[1]);
    assert_eq!((&answers[0]["member"], &answers[0]["site"]), (&json!("n1"), &json!("west")));
    cluster.wait_held("rejoin-begun");
    // Also amid it, and what is wrong stays wrong.
    assert_eq!(rejoin(&cluster, east, "{}").expect(202).json(), answers[0]);
    assert_wrong_orders_change_nothing(&cluster, east);
    cluster.release("rejoin-begun");
    tell_to_rejoin(&cluster, east);
    wait_home(&cluster, east, west);
    assert_one_timeline(&cluster, west);
    let files = std::fs::read_dir(cluster.member(east).data.join("salvage")).unwrap().count();
    assert_eq!(files, 1, "it came home once");
    assert_eq!(salvaged(&cluster, &[east]), [("k".to_owned(), "applied".to_owned(), stranded)]);
    assert_eq!(cluster.get(east, "k").as_deref(), Some("west"));
    // Home again, it is a member like the others.
    assert_wrong_orders_change_nothing(&cluster, east);
    rejoin(&cluster, east, "{}").expect_problem(409, "not-fenced");
}
