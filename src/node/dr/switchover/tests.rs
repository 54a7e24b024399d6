//! The record of a switchover, and what members in this process do with it when it changes at a bad moment.

use super::*;
use crate::node::tests::{Member, PATIENCE, eventually, three_voters};

#[test]
fn a_plan_comes_back_as_it_was_written_and_older_ones_are_understood() {
    let text = concat!(
        r#"{"id":"0a","from_site":"east","to_site":"west","target":{"id":4,"name":"n4"},"#,
        r#""voters":[{"id":4,"name":"n4"}],"mirrors":[{"id":1,"name":"n1"}],"step":"handing-over","#,
        r#""began_ms":1000,"step_ms":2000}"#
    );
    let plan: Plan = serde_json::from_str(text).unwrap();
    assert_eq!((plan.pause_ms, plan.back.clone(), plan.written), (None, None, 0));
    assert_eq!(serde_json::from_slice::<Plan>(&serde_json::to_vec(&plan).unwrap()).unwrap(), plan);
    assert!(plan.can_abort());
    let reply = Plan { ended_ms: Some(4500), step: SwitchoverStep::Done, ..plan }.reply(Some("x".into()));
    assert_eq!((reply.state, reply.seconds, reply.waits_for), (SwitchoverState::Done, Some(3.5), None));
    assert_eq!(reply.next, "lifeboat dr switchover --to east");
}

/// A plan of these three voters that is over, so that nobody acts on it by itself.
fn over(all: &[Member; 3]) -> Plan {
    let planned = |member: &Member| Planned { id: member.id(), name: member.node.name().to_owned() };
    Plan {
        id: "0a".into(),
        from_site: "east".into(),
        to_site: "west".into(),
        target: planned(&all[1]),
        voters: vec![planned(&all[1])],
        mirrors: vec![planned(&all[0])],
        step: SwitchoverStep::WentBack,
        began_ms: 1000,
        step_ms: 1000,
        by: None,
        reason: None,
        back: Some("it was aborted".into()),
        pause_ms: None,
        ended_ms: Some(2000),
        written: 0,
    }
}

/// The record as it was written.
async fn write(inner: &Inner, plan: Plan) -> Plan {
    assert!(inner.write_plan(&plan).await.unwrap());
    (*inner.known_switchover().unwrap().unwrap()).clone()
}

#[tokio::test]
async fn a_plan_that_was_called_off_at_the_last_moment_moves_no_lead() {
    let dir = tempfile::tempdir().unwrap();
    let all = three_voters(dir.path()).await;
    let leader = &all[0].node.0;
    eventually("the level is in force", || leader.store.feature_level() >= crate::node::features::SWITCHOVERS).await;
    let first = write(leader, over(&all)).await;
    let second = write(leader, Plan { back: Some("again".into()), ..first.clone() }).await;
    assert!(second.written > first.written);
    leader.hand_over_for(&first).await.unwrap();
    leader.hand_back(&first, true).await.unwrap();
    assert!(leader.view().leads && leader.view().leader.as_ref().is_some_and(|led| led.id == all[0].id()));
    assert!(leader.proposing.hold(PATIENCE).await.is_some(), "the writes go on");
    leader.hand_over_for(&second).await.unwrap();
    eventually("the target leads", || all[1].node.0.view().leads).await;
    for member in all {
        member.stop().await;
    }
}

#[tokio::test]
async fn the_end_of_a_switchover_is_told_from_its_record_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let all = three_voters(dir.path()).await;
    let (leader, follower) = (&all[0].node.0, &all[1].node.0);
    eventually("the level is in force", || leader.store.feature_level() >= crate::node::features::SWITCHOVERS).await;
    let told = |inner: &Inner| inner.events.has("0a");
    // Nobody here has seen it under way: it was over long ago.
    let plan = write(leader, over(&all)).await;
    leader.watch_end(Some(&plan));
    leader.events.wait_written(PATIENCE).await;
    assert!(!told(leader));
    // Seen under way, and then over, without anybody who knows that he wrote that: one that only follows tells nothing.
    for inner in [follower, leader] {
        inner.watch_end(Some(&Plan { step: SwitchoverStep::GoingBack, ..plan.clone() }));
        inner.watch_end(Some(&plan));
        inner.watch_end(Some(&plan));
    }
    eventually("all know it", || told(leader) && told(follower)).await;
    let events = leader.events.read(0, usize::MAX, std::time::Instant::now()).await.events;
    let ends: Vec<_> = events.iter().filter(|event| event.kind == "switchover-went-back").collect();
    assert_eq!(ends.len(), 1, "{events:?}");
    assert!(ends[0].detail.contains("after 1.0 s: it was aborted"), "{ends:?}");
    // The next leader has heard of it.
    follower.watch_end(Some(&plan));
    assert_eq!(*follower.switchover.open.lock(), None);
    for member in all {
        member.stop().await;
    }
}

#[tokio::test]
async fn a_record_of_a_later_program_is_waited_for_and_ends_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let all = three_voters(dir.path()).await;
    let leader = &all[0].node.0;
    eventually("the level is in force", || leader.store.feature_level() >= crate::node::features::SWITCHOVERS).await;
    let text = serde_json::to_string(&over(&all)).unwrap().replace("went-back", "much-later");
    let key = Bytes::from_static(SWITCHOVER_KEY);
    let request = Request::Record { key, written: 0, value: Some(text.into()) };
    let written = leader.propose_own(Command::Request(RequestCommand { time_ms: 0, idempotency: None, request })).await;
    assert!(matches!(written, Ok(Outcome::Written { .. })), "{written:?}");
    for member in &all {
        let inner = &member.node.0;
        eventually("it is seen and logged", || *inner.switchover.unreadable.lock() > 0).await;
        assert!(matches!(inner.known_switchover(), Err(NodeError::NotNow { .. })));
        assert!(!inner.is_stopping() && inner.may_be_switching());
    }
    // Nobody knows what it is about, so nobody changes the members.
    let refused = leader.refuse_amid_switchover().await;
    assert!(matches!(&refused, Err(NodeError::NotNow { detail }) if detail.contains("much-later")), "{refused:?}");
    for member in all {
        member.stop().await;
    }
}

#[tokio::test]
async fn a_leader_acts_on_no_record_before_it_has_applied_what_others_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let all = three_voters(dir.path()).await;
    let leader = &all[0].node.0;
    assert!(leader.has_applied_its_lead() && !leader.may_be_switching());
    leader.refuse_amid_switchover().await.unwrap();
    let applied = leader.applied.borrow().unwrap();
    assert!(leader.is_of_its_lead(Some(applied)));
    for earlier in [None, Some(LogId { term: applied.term - 1, ..applied }), Some(LogId { leader: 1, ..applied })] {
        assert!(!leader.is_of_its_lead(earlier), "{earlier:?}");
    }
    // Whoever does not lead cannot know what may be under way.
    let follower = &all[1].node.0;
    assert!(follower.may_be_switching());
    let refused = follower.refuse_amid_switchover().await;
    assert!(matches!(refused, Err(NodeError::NoLeader { .. })), "{refused:?}");
    for member in all {
        member.stop().await;
    }
}

#[tokio::test]
async fn only_members_of_the_plan_stand_with_the_leader() {
    let dir = tempfile::tempdir().unwrap();
    let all = three_voters(dir.path()).await;
    let plan =
        Plan { step: SwitchoverStep::MovingVoters, written: all[0].node.0.store.records().switchover, ..over(&all) };
    let concerned: Vec<bool> = all.iter().map(|member| plan.concerns(member.id())).collect();
    assert_eq!(concerned, [true, true, false]);
    for member in all {
        member.stop().await;
    }
}
