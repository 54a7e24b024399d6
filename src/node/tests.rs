//! Members in this process whose insides a test can reach: changes of the voters that a leader has left half done, and
//! keyed requests for which there is no room.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;

use super::{Addresses, HealthCheck, Node, NodeError, RequestContext, StartError};
use crate::api;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::model::{
    Command, IdempotencyKey, KeyMeta, KeySpace, MemberId, MemberRole, OpResult, Outcome, Request, RequestCommand,
    WriteOp,
};
use crate::raft::types::{MemberInfo, StoredMembership};

pub(in crate::node) const PATIENCE: Duration = Duration::from_secs(30);

pub(in crate::node) struct Member {
    pub(in crate::node) node: Node,
    peer_url: String,
    server: tokio::task::JoinHandle<()>,
}

fn config(name: &str, dir: &Path, join: Option<&str>) -> Config {
    Config {
        bootstrap: join.is_none(),
        join: join.map(str::to_string).into_iter().collect(),
        wal_segment_bytes: 1 << 20,
        max_outcomes: 300,
        // Slow, so that the first member goes on leading on a busy machine.
        election_min_ms: 1500,
        election_max_ms: 2000,
        ..Config::new(name, dir.join(name))
    }
}

pub(in crate::node) async fn start(name: &str, dir: &Path, join: Option<&str>) -> Member {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let peer_url = format!("http://{}", listener.local_addr().unwrap());
    let addresses = Addresses { client_url: format!("http://client.of.{name}"), peer_url: peer_url.clone() };
    let node = Node::start(&config(name, dir, join), addresses, Arc::new(Metrics::new())).await.unwrap();
    let (router, listener) = (crate::http::peer::router(node.clone()), listener.into_std().unwrap());
    let server = node.runtime().spawn(async move {
        axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), router).await.unwrap();
    });
    Member { node, peer_url, server }
}

impl Member {
    fn membership(&self) -> Arc<StoredMembership> {
        self.node.0.raft.server_metrics().borrow_watched().membership_config.clone()
    }

    fn committed(&self) -> Arc<StoredMembership> {
        self.node.0.raft.server_metrics().borrow_watched().committed_membership_config.clone()
    }

    pub(in crate::node) fn id(&self) -> MemberId {
        self.node.0.id
    }

    fn info(&self) -> MemberInfo {
        self.node.0.info.clone()
    }

    pub(in crate::node) async fn stop(self) {
        self.node.close().await.unwrap();
        self.server.abort();
    }
}

pub(in crate::node) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn is_joint(membership: &StoredMembership) -> bool {
    membership.membership().get_joint_config().len() > 1
}

pub(in crate::node) async fn three_voters(dir: &Path) -> [Member; 3] {
    let n1 = start("n1", dir, None).await;
    let n2 = start("n2", dir, Some(&n1.peer_url)).await;
    let n3 = start("n3", dir, Some(&n1.peer_url)).await;
    let all = [n1, n2, n3];
    for member in &all {
        eventually("three vote", || member.membership().voter_ids().count() == 3 && !is_joint(&member.membership()))
            .await;
        eventually("all are ready", || member.node.health(HealthCheck::Ready).is_ok()).await;
    }
    all
}

/// Begins a change of the voters and forgets it after its first step, as a leader does that dies there; then another
/// member leads. The old leader does not finish it, because its lock is held meanwhile.
async fn leave_half_done(all: &[Member; 3], change: ChangeMembers<MemberId, MemberInfo>, retain: bool) {
    let leader = &all[0];
    assert!(leader.node.0.view().leads);
    let lock = leader.node.0.membership_change.lock().await;
    {
        let changing = leader.node.0.raft.change_membership(change, retain);
        let polled = tokio::time::timeout(Duration::ZERO, changing).await;
        assert!(polled.is_err(), "the first poll only proposes the first step");
    }
    lose_the_lead_half_way(all).await;
    drop(lock);
}

/// Waits until the first step of a change of the voters is committed; then another member leads, and finishes it.
async fn lose_the_lead_half_way(all: &[Member; 3]) {
    let [leader, next, _] = all;
    for member in all {
        eventually("the change is half done", || is_joint(&member.membership())).await;
    }
    eventually("its first step is committed", || is_joint(&leader.committed())).await;
    // A lead is only taken by who has everything.
    let matched = |id| {
        let metrics = leader.node.0.raft.metrics().borrow_watched().clone();
        let matched = metrics.replication.as_ref().and_then(|map| map.get(&id).cloned().flatten());
        matched.map(|at| at.index) == metrics.last_log_index
    };
    eventually("the next leader has all", || matched(next.id())).await;
    leader.node.0.raft.trigger().transfer_leader(next.id()).await.unwrap();
    eventually("another leads", || next.node.0.view().leads).await;
    for member in &all[..2] {
        eventually("it is finished", || !is_joint(&member.membership()) && !is_joint(&member.committed())).await;
    }
}

#[tokio::test]
async fn a_change_whose_leader_loses_its_place_half_way_is_not_said_to_be_undone() {
    let dir = tempfile::tempdir().unwrap();
    let all = three_voters(dir.path()).await;
    let (leader, gone) = (&all[0].node.0, all[2].id());
    let lock = leader.membership_change.lock().await;
    let remove = || ChangeMembers::RemoveVoters([gone].into());
    {
        let mut changing = std::pin::pin!(leader.change_once(remove(), false, Instant::now() + PATIENCE));
        let polled = tokio::time::timeout(Duration::ZERO, &mut changing).await;
        assert!(polled.is_err(), "the first poll only proposes the first step");
        lose_the_lead_half_way(&all).await;
        let result = changing.await;
        assert!(matches!(result, Err(NodeError::Unknown { .. })), "{result:?}");
    }
    assert!(all[1].membership().membership().get_node(&gone).is_none(), "it was done after all");
    // Whoever does not lead proposes nothing, and says so.
    let result = leader.change_once(remove(), false, Instant::now() + PATIENCE).await;
    assert!(matches!(result, Err(NodeError::NoLeader { .. })), "{result:?}");
    drop(lock);
    for member in all {
        member.stop().await;
    }
}

#[tokio::test]
async fn the_next_leader_finishes_a_removal_that_was_left_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let all = three_voters(dir.path()).await;
    let gone = all[2].id();
    leave_half_done(&all, ChangeMembers::RemoveVoters([gone].into()), false).await;
    for member in &all[..2] {
        let membership = member.membership();
        assert_eq!(membership.voter_ids().count(), 2);
        assert!(membership.membership().get_node(&gone).is_none(), "it stays as a learner");
    }
    // And it is told, remembers it, and does not start again.
    let why = tokio::time::timeout(PATIENCE, all[2].node.failed()).await.expect("a removed member ends");
    assert!(all[2].node.was_removed() && why.contains("was removed from cluster"), "{why}");
    let [n1, n2, n3] = all;
    n3.stop().await;
    let addresses = Addresses { client_url: "http://a:1".into(), peer_url: "http://a:2".into() };
    let again = config("n3", dir.path(), Some(&n1.peer_url));
    let again = Node::start(&again, addresses, Arc::new(Metrics::new())).await.map(|_| ());
    assert!(matches!(again, Err(StartError::Removed { .. })), "{again:?}");
    n1.stop().await;
    n2.stop().await;
}

#[tokio::test]
async fn the_next_leader_finishes_a_change_of_role_that_was_left_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let all = three_voters(dir.path()).await;
    let (id, info) = (all[2].id(), MemberInfo { role: MemberRole::Mirror, ..all[2].info() });
    let set = ChangeMembers::SetNodes(BTreeMap::from([(id, info)]));
    let change = ChangeMembers::Batch(vec![set, ChangeMembers::RemoveVoters([id].into())]);
    leave_half_done(&all, change, true).await;
    assert_eq!(all[1].membership().voter_ids().count(), 2);
    eventually("it is a mirror", || all[2].node.role() == api::Role::Mirror).await;
    eventually("the mirror follows", || all[2].node.health(HealthCheck::Ready).is_ok()).await;
    assert!(!all[2].node.was_removed());
    for member in all {
        member.stop().await;
    }
}

#[tokio::test]
async fn the_next_leader_finishes_a_promotion_that_was_left_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let all = three_voters(dir.path()).await;
    let id = all[2].id();
    // A mirror first, which then is to vote.
    let leader = &all[0].node.0;
    {
        let _lock = leader.membership_change.lock().await;
        let info = MemberInfo { role: MemberRole::Mirror, ..all[2].info() };
        let set = ChangeMembers::SetNodes(BTreeMap::from([(id, info)]));
        let change = ChangeMembers::Batch(vec![set, ChangeMembers::RemoveVoters([id].into())]);
        leader.change(change, true).await.unwrap();
    }
    let set = ChangeMembers::SetNodes(BTreeMap::from([(id, all[2].info())]));
    let change = ChangeMembers::Batch(vec![set, ChangeMembers::AddVoterIds([id].into())]);
    leave_half_done(&all, change, true).await;
    assert_eq!(all[1].membership().voter_ids().count(), 3);
    // And says so, because the one that began it did not.
    let (mut since, deadline) = (0, Instant::now() + PATIENCE);
    loop {
        let told = all[1].node.events(since, 1000, deadline).await;
        let is = |event: &api::Event| event.kind == "member-votes" && event.member == "n2";
        if let Some(event) = told.events.iter().find(|event| is(event)) {
            assert_eq!(event.subject.as_deref(), Some("n3"), "{event:?}");
            break;
        }
        assert!(Instant::now() < deadline, "nobody told it: {:?}", all[1].node.events(0, 1000, deadline).await);
        since = told.events.last().map_or(since, |event| event.id);
    }
    for member in all {
        member.stop().await;
    }
}

#[tokio::test]
async fn a_request_that_was_executed_is_answered_with_its_outcome_while_there_is_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let member = start("n1", dir.path(), None).await;
    eventually("it is ready", || member.node.health(HealthCheck::Ready).is_ok()).await;
    let put = |key: &'static str, idempotency: Option<&str>| {
        let idempotency = idempotency.map(|key| IdempotencyKey { key: key.to_owned().into(), fingerprint: [1; 16] });
        let op = WriteOp::Put { space: KeySpace::User, key: key.into(), value: "1".into(), lease: 0 };
        let request = Request::Write { grant: None, guards: vec![], ops: vec![op] };
        let command = Command::Request(RequestCommand { time_ms: 0, idempotency, request });
        let node = member.node.clone();
        async move { node.write(&RequestContext::anonymous(1, PATIENCE), command).await }
    };
    let first = put("a", Some("once")).await.unwrap();
    let mut refused = 0;
    // The member looks at its disk now and then, and takes back what is said here: then the key is known from then on.
    for round in 0.. {
        if refused == 20 {
            break;
        }
        member.node.0.http.identity().set_short(true);
        match put("b", Some(&format!("new-{round}"))).await {
            Err(NodeError::NoRoom { .. }) => refused += 1,
            other => assert!(!member.node.0.http.identity().is_short(), "{other:?}"),
        }
        let again = put("a", Some("once")).await;
        assert_eq!(again, Ok(Outcome::Replayed(Box::new(first.clone()))));
    }
    member.stop().await;
}

#[tokio::test]
async fn no_more_outcomes_are_kept_than_there_are_places_for_however_many_requests_come_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let member = start("n1", dir.path(), None).await;
    eventually("it is ready", || member.node.health(HealthCheck::Ready).is_ok()).await;
    let places = member.node.0.max_outcomes;
    let kept = |member: &Member| member.node.store().records().outcomes;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..4 * places {
        let node = member.node.clone();
        tasks.spawn(async move {
            let idempotency = Some(IdempotencyKey { key: number.to_le_bytes().to_vec().into(), fingerprint: [1; 16] });
            let op = WriteOp::Put { space: KeySpace::User, key: "k".into(), value: "1".into(), lease: 0 };
            let request = Request::Write { grant: None, guards: vec![], ops: vec![op] };
            let command = Command::Request(RequestCommand { time_ms: 0, idempotency, request });
            match node.write(&RequestContext::anonymous(1, PATIENCE), command).await {
                Ok(_) => 1,
                Err(NodeError::OutcomesFull { .. }) => 0,
                Err(error) => panic!("{error}"),
            }
        });
    }
    let written: u64 = tasks.join_all().await.into_iter().sum();
    assert!(written <= places && kept(&member) == written, "{written} of {places}, {} kept", kept(&member));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_refuses_what_others_forward_during_a_planned_pause() {
    let dir = tempfile::tempdir().unwrap();
    let [leader, follower, other] = three_voters(dir.path()).await;
    eventually("the level is in force", || follower.node.0.store.feature_level() >= super::features::PAUSES).await;
    let ctx = || super::RequestContext::anonymous(1, PATIENCE);
    let pause = super::Maintenance { message: "m".into(), until_ms: u64::MAX, reads: false, written: 0 };
    // Begun at a follower: the record itself passes.
    follower.node.begin_maintenance(&ctx(), &pause).await.unwrap();
    assert!(follower.node.maintenance().unwrap().is_some());
    let put = |value: &'static str| {
        let space = crate::model::KeySpace::User;
        let (key, value) = (bytes::Bytes::from_static(b"k"), bytes::Bytes::from_static(value.as_bytes()));
        let ops = vec![crate::model::WriteOp::Put { space, key, value, lease: 0 }];
        crate::model::WriteCommand { ops, ..Default::default() }
    };
    // A member that has not applied the record sends what it was asked to the leader.
    let forwarded = |member: &Member| {
        let node = member.node.clone();
        async move { node.propose(&ctx(), put("1").into()).await }
    };
    let refused = forwarded(&follower).await;
    assert!(matches!(refused, Err(super::NodeError::Maintenance { .. })), "{refused:?}");
    for member in [&leader, &follower] {
        let refused = member.node.write(&ctx(), put("2")).await;
        assert!(matches!(refused, Err(super::NodeError::Maintenance { .. })), "{refused:?}");
    }
    assert!(leader.node.0.view().leads, "the leader has not changed meanwhile");
    let (_, ended) = follower.node.end_maintenance(&ctx()).await.unwrap();
    assert!(ended);
    assert!(forwarded(&follower).await.is_ok());
    for member in [other, follower, leader] {
        member.stop().await;
    }
}

/// Whoever brings a member in holds the lock of all changes of members meanwhile.
#[tokio::test]
async fn an_entry_that_is_not_applied_is_waited_for_as_long_as_a_request_may_take() {
    let dir = tempfile::tempdir().unwrap();
    let member = start("n1", dir.path(), None).await;
    let inner = &member.node.0;
    let begin = Instant::now();
    let result = inner.wait_applied_in_time(u64::MAX).await;
    assert!(matches!(result, Err(NodeError::NotNow { .. })), "{result:?}");
    assert!(begin.elapsed() >= inner.limits.request_timeout);
    inner.wait_applied_in_time(0).await.unwrap();
    member.stop().await;
}

#[tokio::test]
async fn whoever_does_not_lead_holds_no_writes_and_moves_no_lead() {
    let dir = tempfile::tempdir().unwrap();
    let all = three_voters(dir.path()).await;
    let [leader, follower, _] = &all;
    let ctx = || RequestContext::anonymous(1, PATIENCE);
    let inner = &follower.node.0;
    let held = inner.hold_writes(&ctx(), leader.id(), "n1").await.map(drop);
    assert!(matches!(held, Err(NodeError::NoLeader { .. })), "{held:?}");
    // One that has lost the lead while it held writes lets them go.
    let permit = inner.proposing.hold(PATIENCE).await.unwrap();
    let moved = inner.pass_lead(&ctx(), leader.id(), "n1".into(), permit).await;
    assert!(matches!(moved, Err(NodeError::NoLeader { .. })), "{moved:?}");
    assert!(inner.proposing.hold(Duration::ZERO).await.is_some());
    // Only a part of the time of whoever asks is spent on it.
    let under_way = leader.node.0.proposing.hold(PATIENCE).await.unwrap();
    let begun = Instant::now();
    let short = RequestContext::anonymous(1, Duration::from_millis(50));
    let held = leader.node.0.hold_writes(&short, follower.id(), "n2").await.map(drop);
    assert!(matches!(held, Err(NodeError::NotAtTip { .. })), "{held:?}");
    assert!(begun.elapsed() < leader.node.0.hold_limit(), "it took {:?}", begun.elapsed());
    drop(under_way);
    for member in all {
        member.stop().await;
    }
}

#[tokio::test]
async fn a_write_that_never_left_the_queue_is_not_applied() {
    let dir = tempfile::tempdir().unwrap();
    let member = start("n1", dir.path(), None).await;
    eventually("it is ready", || member.node.health(HealthCheck::Ready).is_ok()).await;
    let op = WriteOp::Put { space: KeySpace::User, key: "k".into(), value: "1".into(), lease: 0 };
    let put = || crate::model::WriteCommand { ops: vec![op.clone()], ..Default::default() };
    let held = member.node.0.proposing.hold(PATIENCE).await.unwrap();
    let ctx = RequestContext::anonymous(1, Duration::from_millis(50));
    assert_eq!(member.node.write(&ctx, put()).await, Err(NodeError::NotProposed));
    drop(held);
    // The leader may have written something of its own meanwhile: the key itself says that it was put once.
    let after = member.node.write(&RequestContext::anonymous(1, PATIENCE), put()).await;
    let Ok(Outcome::Written { results, .. }) = &after else { panic!("{after:?}") };
    assert!(matches!(results[..], [OpResult::Put { meta: KeyMeta { version: 1, .. }, .. }]), "{results:?}");
    member.stop().await;
}

#[tokio::test]
async fn a_leader_waits_for_a_place_in_the_queue_for_what_it_does_itself() {
    let dir = tempfile::tempdir().unwrap();
    let member = start("n1", dir.path(), None).await;
    eventually("it is ready", || member.node.health(HealthCheck::Ready).is_ok()).await;
    let inner = &member.node.0;
    let held = inner.proposing.hold(PATIENCE).await.unwrap();
    let command = || Command::Write(Default::default());
    let mut answers = Vec::new();
    // The task that drains the queue takes a batch out of it before it has to wait: so it is filled twice.
    eventually("the queue is full", || {
        let before = answers.len();
        loop {
            let (answer, rx) = tokio::sync::oneshot::channel();
            let waiting = super::proposals::Waiting::new(command().encode(), true, answer);
            if inner.proposals.try_send(waiting).is_err() {
                return before > 0 && answers.len() == before;
            }
            answers.push(rx);
        }
    })
    .await;
    let mut own = Box::pin(inner.propose_own(command()));
    let polled = tokio::time::timeout(Duration::ZERO, &mut own).await;
    assert!(polled.is_err(), "there is no place yet: {polled:?}");
    drop(held);
    let done = own.await;
    assert!(done.is_ok(), "{done:?}");
    member.stop().await;
}
