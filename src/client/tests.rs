//! The client against servers that fail in one exact way each: which requests are repeated, with which key, and what an
//! error says about the fate of a write.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;

use super::fake::{Act, FakeMember, WRITTEN, answer, problem, raw, written};
use super::*;
use crate::api::{Change, Keys, ProblemCode, RandomId};

/// Long enough for every test here on a busy machine; what is to fail by its deadline has a shorter one.
const PATIENCE: Duration = Duration::from_secs(20);

fn client(members: &[&FakeMember]) -> Client {
    with_deadline(members, PATIENCE)
}

fn with_deadline(members: &[&FakeMember], deadline: Duration) -> Client {
    let endpoints = members.iter().map(|member| member.url());
    Client::builder().endpoints(endpoints).deadline(deadline).seed(first_is_first(members.len())).build().unwrap()
}

/// A seed with which the first endpoint is asked first.
fn first_is_first(count: usize) -> u64 {
    (0..).find(|seed| Pauses::new(*seed).pick(count) == 0).unwrap()
}

fn no_leader() -> Act {
    problem(503, "no-leader", "safe", Some("not-applied"), "")
}

fn unknown() -> Act {
    problem(504, "unknown-outcome", "unknown", Some("unknown"), "")
}

const ITEM: &str = r#"{"key":"a","value":"x","create_revision":4,"mod_revision":5,"version":2,"lease":3}"#;

#[tokio::test]
async fn a_write_is_repeated_with_its_key_after_everything_that_leaves_it_unknown() {
    for doubt in [
        unknown(),
        Act::Close,
        Act::AnswerAndClose("HTTP/1.1 201 Created\r\nContent-Length: 999\r\n\r\n{\"rev".to_owned()),
        answer(502, "Content-Type: text/html\r\n", "bad gateway"),
        problem(500, "storage-failed", "unknown", Some("unknown"), ""),
    ] {
        let member = FakeMember::script(vec![doubt.clone(), doubt.clone(), written()]).await;
        let reply = client(&[&member]).put("a", "x").if_absent().ttl(Duration::from_secs(30)).await.unwrap();
        assert_eq!(reply.revision, 8);
        let got = member.got();
        assert_eq!(got.len(), 3, "{doubt:?}");
        assert!(got[0].key().is_some_and(|key| key.len() == 32), "{:?}", got[0]);
        assert!(got.iter().all(|each| *each == got[0]), "{doubt:?}: not the same bytes");
        assert_eq!(got[0].target, "/v1/kv/a?ttl=30000ms");
        assert_eq!(got[0].headers["if-none-match"], "*");
        assert_eq!(got[0].body, b"x");
    }
}

#[tokio::test]
async fn two_writes_never_share_a_key_whatever_the_seed() {
    let member = FakeMember::always(written()).await;
    let (one, other) = (client(&[&member]), client(&[&member]));
    one.put("a", "x").await.unwrap();
    one.put("a", "x").await.unwrap();
    other.put("a", "x").await.unwrap();
    let keys: std::collections::HashSet<_> = member.got().iter().map(|got| got.key().unwrap().to_owned()).collect();
    assert_eq!(keys.len(), 3);
}

#[tokio::test]
async fn a_write_without_a_key_is_repeated_only_when_nobody_can_have_done_it() {
    for doubt in [unknown(), Act::Close, answer(502, "", "")] {
        let member = FakeMember::script(vec![doubt.clone(), written()]).await;
        let error = client(&[&member]).put("a", "x").idempotent(false).await.unwrap_err();
        assert!(error.is_unknown(), "{doubt:?}: {error}");
        assert_eq!(member.count(), 1, "{doubt:?}");
        assert_eq!(member.got()[0].key(), None);
    }
    let member = FakeMember::script(vec![no_leader(), no_leader(), written()]).await;
    client(&[&member]).put("a", "x").idempotent(false).await.unwrap();
    assert_eq!(member.count(), 3);
}

#[tokio::test]
async fn a_connection_that_is_refused_sends_the_request_elsewhere() {
    let member = FakeMember::always(written()).await;
    let endpoints = [FakeMember::nobody().await, member.url()];
    let client = Client::builder().endpoints(endpoints).seed(first_is_first(2)).build().unwrap();
    client.put("a", "x").idempotent(false).await.unwrap();
    assert_eq!(member.count(), 1);
    let nobody = Client::builder().endpoints([FakeMember::nobody().await]).deadline(Duration::from_secs(2));
    let error = nobody.build().unwrap().put("a", "x").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { attempts: 2.., .. }), "{error:?}");
    assert!(!error.is_unknown(), "nothing was ever sent");
}

#[tokio::test]
async fn what_will_fail_again_is_not_repeated() {
    for (status, code) in
        [(400, "bad-key"), (412, "condition-failed"), (413, "too-large"), (422, "idempotency-mismatch")]
    {
        let member = FakeMember::always(problem(status, code, "never", None, "")).await;
        let error = client(&[&member]).put("a", "x").await.unwrap_err();
        assert_eq!(error.code().unwrap().as_str(), code);
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        assert_eq!(member.count(), 1);
    }
    let body = concat!(
        r#"{"type":"urn:lifeboat:problem:condition-failed","status":412,"#,
        r#""retry":"never","current_revision":42}"#
    );
    let member = FakeMember::always(answer(412, "Content-Type: application/problem+json\r\n", body)).await;
    let error = client(&[&member]).put("a", "x").if_revision(41).await.unwrap_err();
    assert_eq!(error.condition_failed(), Some(Some(42)));
    assert_eq!(member.got()[0].headers["if-match"], "\"41\"");
}

#[tokio::test]
async fn once_a_write_is_in_doubt_only_its_own_outcome_ends_the_doubt() {
    // The deadline comes while members only say that they did not take the repetition on.
    let member = FakeMember::start(|at, _| if at == 0 { Act::Close } else { no_leader() }).await;
    let error = with_deadline(&[&member], Duration::from_secs(2)).put("a", "x").await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    let Error::Unknown { idempotency_key, .. } = error else { panic!() };
    assert_eq!(idempotency_key.as_deref(), member.got()[0].key());
    // So does a refusal that is not an outcome.
    for not_an_outcome in [problem(503, "feature-not-active", "safe", Some("not-applied"), "")] {
        let member = FakeMember::script(vec![Act::Close, not_an_outcome]).await;
        let error = client(&[&member]).put("a", "x").await.unwrap_err();
        assert!(error.is_unknown(), "{error:?}");
    }
    // A condition that does not hold is one.
    let member = FakeMember::script(vec![Act::Close, problem(412, "condition-failed", "never", None, "")]).await;
    let error = client(&[&member]).put("a", "x").if_absent().await.unwrap_err();
    assert_eq!(error.condition_failed(), Some(None));
}

#[tokio::test]
async fn a_cluster_without_keys_is_an_error_unless_the_caller_does_without() {
    let member = FakeMember::start(|_, got| match got.key() {
        Some(_) => problem(503, "feature-not-active", "safe", Some("not-applied"), "Retry-After: 1\r\n"),
        None => written(),
    })
    .await;
    let client = client(&[&member]);
    let error = client.put("a", "x").await.unwrap_err();
    assert!(error.is_refused(ProblemCode::FeatureNotActive), "{error:?}");
    assert_eq!(member.count(), 1);
    client.put("a", "x").idempotent(false).await.unwrap();
}

#[tokio::test]
async fn a_member_is_left_alone_for_as_long_as_it_asks() {
    let full =
        |seconds: u8| problem(429, "queue-full", "safe", Some("not-applied"), &format!("Retry-After: {seconds}\r\n"));
    let member = FakeMember::script(vec![full(1), written()]).await;
    let start = Instant::now();
    client(&[&member]).put("a", "x").await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    // Another member may be asked at once.
    let (busy, free) = (FakeMember::always(full(60)).await, FakeMember::always(written()).await);
    with_deadline(&[&busy, &free], Duration::from_secs(30)).put("a", "x").await.unwrap();
    // Nobody waits for what lies behind the deadline.
    let later = problem(429, "outcomes-full", "safe", Some("not-applied"), "Retry-After: 60\r\n");
    let member = FakeMember::always(later).await;
    let start = Instant::now();
    let error = with_deadline(&[&member], Duration::from_secs(10)).put("a", "x").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { attempts: 1, .. }), "{error:?}");
    assert_eq!(error.code(), Some(ProblemCode::OutcomesFull));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn the_leader_that_members_name_is_asked_directly_and_left_when_it_is_gone() {
    let leader = FakeMember::start(|at, _| if at < 2 { written() } else { Act::Close }).await;
    let hint = format!("Lifeboat-Leader: {}\r\n", leader.url());
    let follower = FakeMember::always(answer(201, &hint, WRITTEN)).await;
    let client = client(&[&follower]);
    for _ in 0..4 {
        client.put("a", "x").await.unwrap();
    }
    // The first meets the follower, two meet the leader, the fourth is repeated at the follower with its key.
    assert_eq!((follower.count(), leader.count()), (2, 3));
    assert_eq!(follower.got()[1].key(), leader.got()[2].key());
    let stale = client.get("a").stale();
    let member = FakeMember::always(answer(200, &hint, ITEM)).await;
    drop(stale);
    let keeps = Client::builder().endpoints([member.url()]).follow_leader(false).build().unwrap();
    for _ in 0..3 {
        keeps.get("a").await.unwrap();
    }
    assert_eq!((member.count(), leader.count()), (3, 3));
}

/// What `/v1/dr` says, by a leader or by a member that speaks for itself.
fn plan_of(site: Option<&str>) -> Act {
    let reply = serde_json::json!({
        "primary_site": site, "standby_sites": [], "objectives": { "rpo_seconds": 1.0, "rto_seconds": 1.0 },
        "confirmed": site.is_some(), "quorum_margin": null, "switchover": null, "warnings": [], "plan": [],
    });
    answer(200, "", &reply.to_string())
}

#[tokio::test]
async fn a_plan_is_taken_from_a_leader_whoever_is_asked_first() {
    let (alone, other) = (FakeMember::always(plan_of(None)).await, FakeMember::always(plan_of(None)).await);
    let leads = FakeMember::always(plan_of(Some("east"))).await;
    for members in [[&alone, &leads], [&leads, &alone]] {
        let reply = client(&members).dr().await.unwrap();
        assert_eq!(reply.primary_site.as_deref(), Some("east"));
    }
    // Without one that knows more it is what it is.
    assert_eq!(client(&[&alone, &other]).dr().await.unwrap().primary_site, None);
    assert_eq!(client(&[&alone]).dr().await.unwrap().primary_site, None);
}

#[tokio::test]
async fn a_member_that_hangs_costs_one_attempt() {
    let (hangs, works) = (FakeMember::always(Act::Hang).await, FakeMember::always(written()).await);
    let client = Client::builder().endpoints([hangs.url(), works.url()]).seed(first_is_first(2));
    let client = client.attempt_timeout(Duration::from_millis(100)).build().unwrap();
    client.put("a", "x").await.unwrap();
    assert_eq!(hangs.got()[0].key(), works.got()[0].key());
    // Without a key the deadline is all it has.
    let before = works.count();
    let error = with_deadline(&[&hangs, &works], Duration::from_millis(200)).put("a", "x").idempotent(false).await;
    assert!(error.unwrap_err().is_unknown());
    assert_eq!(works.count(), before);
}

#[tokio::test]
async fn reads_are_repeated_until_there_is_a_whole_answer() {
    let cut = Act::AnswerAndClose(format!("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{ITEM}"));
    let no_quorum = problem(503, "no-quorum", "safe", None, "");
    let member = FakeMember::script(vec![Act::Close, cut, no_quorum, answer(200, "", ITEM)]).await;
    let answer = client(&[&member]).get("a").rev(5).answer().await.unwrap();
    let item = answer.value.unwrap();
    assert_eq!((&item.key[..], item.meta.lease, answer.revision), (&b"a"[..], 3, 7));
    assert_eq!(member.got()[3].target, "/v1/kv/a?rev=5");
    assert_eq!(member.got()[0].key(), None);
}

#[tokio::test]
async fn a_key_that_does_not_exist_is_an_answer_and_a_path_that_does_not_is_an_error() {
    let member = FakeMember::always(problem(404, "not-found", "never", None, "")).await;
    assert_eq!(client(&[&member]).get("a").await.unwrap(), None);
    let member = FakeMember::always(answer(404, "Content-Type: text/html\r\n", "<h1>nothing</h1>")).await;
    let error = client(&[&member]).get("a").await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    let member = FakeMember::always(answer(200, "", "not json")).await;
    let error = client(&[&member]).get("a").await.unwrap_err();
    assert!(error.to_string().contains("not json"), "{error}");
}

#[tokio::test]
async fn keys_travel_byte_for_byte() {
    let member = FakeMember::always(written()).await;
    let client = client(&[&member]);
    for key in [&b".."[..], b"a/../b", b"/", b"a%2F?#\0\xff"] {
        client.put(key.to_vec(), "x").await.unwrap();
    }
    let targets: Vec<String> = member.got().iter().map(|got| got.target.clone()).collect();
    assert_eq!(targets, ["/v1/kv/..", "/v1/kv/a/../b", "/v1/kv//", "/v1/kv/a%252F%3F%23%00%FF"]);
    assert!(matches!(client.put("", "x").await, Err(Error::Usage(_))));
    assert_eq!(member.count(), 4);
}

#[tokio::test]
async fn whoever_has_seen_a_timeline_names_it_and_hears_of_another_one() {
    let (old, new) = (
        "Lifeboat-Timeline: 0000000000000000000000000000000a\r\n",
        "Lifeboat-Timeline: 0000000000000000000000000000000b\r\n",
    );
    let fresh = FakeMember::start(move |_, got| match got.headers.get("lifeboat-timeline") {
        Some(named) if !named.ends_with('b') => problem(421, "wrong-timeline", "never", Some("not-applied"), new),
        _ => answer(201, new, WRITTEN),
    })
    .await;
    let stale = FakeMember::start(move |_, got| match got.headers.get("lifeboat-timeline") {
        Some(named) if !named.ends_with('a') => problem(421, "wrong-timeline", "never", Some("not-applied"), old),
        _ => answer(201, old, WRITTEN),
    })
    .await;
    let client = client(&[&fresh, &stale]);
    client.put("a", "x").await.unwrap();
    assert_eq!(fresh.got()[0].headers.get("lifeboat-timeline"), None);
    let mut last = [0; 16];
    last[15] = 0xb;
    assert_eq!(client.timeline(), Some(RandomId(last)));
    client.put("a", "x").await.unwrap();
    assert!(fresh.got()[1].headers["lifeboat-timeline"].ends_with('b'));
    // Of the old primary alone it gets nothing, and is told why.
    let only_old = client.at(&stale.url()).unwrap();
    let error = only_old.put("a", "x").await.unwrap_err();
    let Error::WrongTimeline { known, other, .. } = &error else { panic!("{error:?}") };
    assert_ne!(Some(known), other.as_ref());
    assert_eq!((known.0[15], other.unwrap().0[15]), (0xb, 0xa));
    only_old.accept_timeline(other.unwrap());
    only_old.put("a", "x").await.unwrap();
    assert_eq!(stale.count(), 2);
}

#[tokio::test]
async fn a_fenced_member_leads_to_the_primary_whoever_has_seen_nothing_yet_and_tells_all_others() {
    let new = "Lifeboat-Timeline: 0000000000000000000000000000000b\r\n";
    let primary = FakeMember::start(move |_, got| match got.headers.get("lifeboat-timeline") {
        Some(named) if !named.ends_with('b') => problem(421, "wrong-timeline", "never", Some("not-applied"), new),
        _ => answer(201, new, WRITTEN),
    })
    .await;
    let url = primary.url();
    let fenced = FakeMember::start(move |_, _| {
        let body = format!(
            r#"{{"type":"urn:lifeboat:problem:fenced","title":"","status":421,"detail":"x","retry":"safe",
            "outcome":"not-applied","primary":"{url}"}}"#
        );
        answer(421, "Content-Type: application/problem+json\r\n", &body)
    })
    .await;
    let fresh = client(&[&fenced]);
    fresh.put("a", "x").await.unwrap();
    assert_eq!((fenced.count(), primary.count()), (1, 1));
    let knows_the_old = client(&[&fenced]);
    let mut first = RandomId([0; 16]);
    first.0[15] = 0xa;
    knows_the_old.accept_timeline(first);
    let error = knows_the_old.put("a", "x").await.unwrap_err();
    assert!(matches!(&error, Error::WrongTimeline { known, .. } if *known == first), "{error:?}");
}

#[tokio::test]
async fn a_list_is_read_page_by_page_at_one_revision() {
    let member = FakeMember::start(|at, got| {
        let item = |key: &str| ITEM.replace(r#""key":"a""#, &format!(r#""key":"{key}""#));
        match at {
            0 => answer(
                200,
                "",
                &format!(r#"{{"revision":6,"items":[{},{}],"more":true,"next":"/x"}}"#, item("a"), item("b")),
            ),
            1 => {
                assert_eq!(got.target, "/v1/keys?prefix=&limit=1000&after=b&rev=6");
                answer(200, "", &format!(r#"{{"revision":6,"items":[{}],"more":false}}"#, item("c")))
            }
            _ => problem(410, "compacted", "never", None, ""),
        }
    })
    .await;
    let client = client(&[&member]);
    let items: Vec<_> = client.list("").stream().collect().await;
    let keys: Vec<_> = items.into_iter().map(|item| item.unwrap().key).collect();
    assert_eq!(keys, ["a", "b", "c"]);
    let items: Vec<_> = client.list("").stream().collect().await;
    assert!(items[0].as_ref().is_err_and(|error| error.is_refused(ProblemCode::Compacted)), "{items:?}");
}

fn lines(lines: &[&str]) -> String {
    let body = lines.iter().map(|line| format!("{:x}\r\n{line}\n\r\n", line.len() + 1)).collect::<String>();
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

fn change(revision: u64) -> String {
    format!(r#"{{"type":"change","revision":{revision},"time_ms":1,"changes":[{{"delete":{{"key":"k{revision}"}}}}]}}"#)
}

async fn told(watcher: &mut Watcher) -> u64 {
    match tokio::time::timeout(PATIENCE, watcher.next()).await.unwrap().unwrap() {
        WatchItem::Change(event) => {
            assert!(matches!(&event.changes[..], [Change::Delete(_)]));
            event.revision
        }
        WatchItem::Progress { revision } => 1000 + revision,
    }
}

#[tokio::test]
async fn a_watch_goes_on_elsewhere_from_the_last_revision_it_was_told() {
    let heartbeat = r#"{"type":"heartbeat","revision":9}"#;
    let first = [r#"{"type":"open","revision":4}"#, &change(5), &change(7), heartbeat];
    // Ends without a word, in the middle of an event.
    let cut = Act::AnswerAndClose(lines(&first) + "20\r\n{\"type\":\"change\",\"revi");
    let one = FakeMember::always(cut).await;
    let again = [r#"{"type":"open","revision":9}"#, &change(9), &change(12), r#"{"type":"moon"}"#, &change(13)];
    let end = r#"{"type":"end","reason":"stopping","revision":13}"#;
    let two = FakeMember::script(vec![
        Act::AnswerAndClose(lines(&[&again[..], &[end]].concat()) + "0\r\n\r\n"),
        Act::AnswerAndHang(lines(&[r#"{"type":"open","revision":13}"#, &change(14)])),
    ])
    .await;
    let client = client(&[&one, &two]);
    let mut watcher = client.watch("k").previous().heartbeat(Duration::from_secs(2)).start();
    let mut seen = Vec::new();
    for _ in 0..7 {
        seen.push(told(&mut watcher).await);
    }
    // 9 was told before by the heartbeat, so the event that comes again is not told twice.
    assert_eq!(seen, [1004, 5, 7, 1009, 1009, 12, 13]);
    assert_eq!(one.got()[0].target, "/v1/watch?prefix=k&previous=true&heartbeat=2000ms");
    assert_eq!(two.got()[0].target, "/v1/watch?prefix=k&since=9&previous=true&heartbeat=2000ms");
    assert_eq!(watcher.revision(), Some(13));
}

#[tokio::test]
async fn a_watch_never_hides_that_changes_are_lost() {
    let open = r#"{"type":"open","revision":4}"#;
    let end = r#"{"type":"end","reason":"compacted","revision":4,"floor":900,"detail":"x"}"#;
    let member = FakeMember::always(Act::AnswerAndClose(lines(&[open, end]))).await;
    let mut watcher = client(&[&member]).watch("").since(4).start();
    assert_eq!(told(&mut watcher).await, 1004);
    let error = watcher.next().await.unwrap_err();
    assert!(matches!(error, WatchError::Compacted { revision: 4, floor: Some(900) }), "{error:?}");
    let body = r#"{"type":"urn:lifeboat:problem:compacted","status":410,"retry":"never","floor":900}"#;
    let member = FakeMember::always(answer(410, "Content-Type: application/problem+json\r\n", body)).await;
    let error = client(&[&member]).watch("").since(4).start().next().await.unwrap_err();
    assert!(matches!(error, WatchError::Compacted { revision: 4, floor: Some(900) }), "{error:?}");
    assert_eq!(member.count(), 1, "it does not go on by itself");
}

#[tokio::test]
async fn a_member_that_falls_silent_is_left() {
    let silent = FakeMember::always(Act::AnswerAndHang(lines(&[r#"{"type":"open","revision":4}"#]))).await;
    let lively = FakeMember::always(Act::AnswerAndHang(lines(&[r#"{"type":"open","revision":4}"#, &change(5)]))).await;
    let client = client(&[&silent, &lively]);
    let mut watcher = client.watch_keys(Keys::One("k5".into())).since(4).heartbeat(Duration::from_secs(1)).start();
    assert_eq!((told(&mut watcher).await, told(&mut watcher).await, told(&mut watcher).await), (1004, 1004, 5));
    assert_eq!(silent.count(), 1);
    assert_eq!(watcher.endpoint(), Some(lively.url().as_str()));
}

#[tokio::test]
async fn a_watch_says_when_nobody_answers_and_goes_on_when_asked_again() {
    let member =
        FakeMember::start(|at, _| if at < 3 { Act::Close } else { Act::AnswerAndHang(lines(&[&change(5)])) }).await;
    let mut watcher = client(&[&member]).watch("").since(4).patience(Duration::ZERO).start();
    for _ in 0..3 {
        let error = watcher.next().await.unwrap_err();
        assert!(matches!(error, WatchError::Client(Error::Unavailable { .. })), "{error:?}");
    }
    assert_eq!(told(&mut watcher).await, 5);
}

#[tokio::test]
async fn a_wait_asks_again_from_where_the_last_question_ended() {
    let member = FakeMember::script(vec![answer(204, "", ""), Act::Close, answer(200, "", ITEM)]).await;
    let waited = client(&[&member]).wait("a").since(4).timeout(Duration::from_secs(9)).await.unwrap();
    let Waited::Changed { item: Some(item), revision: 5 } = waited else { panic!("{waited:?}") };
    assert_eq!(item.meta.mod_revision, 5);
    let since: Vec<String> = member.got().iter().map(|got| got.target.split('&').next().unwrap().to_owned()).collect();
    assert_eq!(since, ["/v1/kv/a?since=4", "/v1/kv/a?since=7", "/v1/kv/a?since=7"]);
    let gone = FakeMember::always(problem(404, "not-found", "never", None, "")).await;
    let waited = client(&[&gone]).wait("a").since(4).await.unwrap();
    assert_eq!(waited, Waited::Changed { item: None, revision: 7 });
}

#[tokio::test]
async fn an_observer_that_could_not_read_the_new_leader_reads_again_without_another_change() {
    for trouble in [problem(400, "bad-request", "never", None, ""), Act::Hang] {
        let lists = std::sync::atomic::AtomicUsize::new(0);
        let member = FakeMember::start(move |_, got| {
            if got.target.starts_with("/v1/watch") {
                // One change and never another.
                return Act::AnswerAndHang(lines(&[r#"{"type":"open","revision":6}"#, &change(7)]));
            }
            match lists.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => answer(200, "", &format!(r#"{{"revision":6,"items":[{ITEM}],"more":false}}"#)),
                1 => trouble.clone(),
                _ => answer(200, "", r#"{"revision":7,"items":[],"more":false}"#),
            }
        })
        .await;
        let mut observer = client(&[&member]).election("e").observe();
        assert!(tokio::time::timeout(PATIENCE, observer.next()).await.unwrap().unwrap().is_some());
        // It fails, or whoever waits gives up in the middle of it.
        tokio::select! {
            told = observer.next() => assert!(told.is_err(), "{told:?}"),
            () = async {
                while member.count() < 3 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            } => {}
        }
        assert_eq!(tokio::time::timeout(PATIENCE, observer.next()).await.unwrap().unwrap(), None);
    }
}

fn kept() -> Act {
    answer(200, "", r#"{"id":9,"ttl_seconds":3}"#)
}

#[tokio::test]
async fn a_keeper_counts_from_the_last_keepalive_that_was_answered() {
    // The first two keep-alives are answered, then the member falls silent: it may be lost, nobody knows.
    let member = FakeMember::start(|at, _| match at {
        0 => answer(201, "", r#"{"id":9,"ttl_seconds":3,"revision":3}"#),
        1 | 2 => kept(),
        _ => Act::Hang,
    })
    .await;
    let start = Instant::now();
    let keeper = client(&[&member]).keep(Duration::from_secs(3)).await.unwrap();
    assert!(keeper.is_alive() && keeper.remaining() <= Duration::from_secs(3));
    assert_eq!(tokio::time::timeout(PATIENCE, keeper.lost()).await.unwrap(), LeaseState::MayBeLost);
    assert!(start.elapsed() > Duration::from_millis(3900), "two keep-alives were answered: {:?}", start.elapsed());
    assert!(!keeper.is_alive());
    assert_eq!(member.got()[0].body, br#"{"ttl_seconds":3}"#);
    assert!(member.got()[0].key().is_some(), "a grant is known again");
    assert_eq!(member.got()[1].target, "/v1/leases/9/keepalive");
}

#[tokio::test]
async fn a_keeper_hears_that_its_lease_is_gone() {
    let member = FakeMember::start(|at, _| match at {
        0 => answer(201, "", r#"{"id":9,"ttl_seconds":3,"revision":3}"#),
        _ => problem(404, "unknown-lease", "never", None, ""),
    })
    .await;
    let client = client(&[&member]);
    let keeper = client.keep(Duration::from_secs(3)).await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, keeper.lost()).await.unwrap(), LeaseState::Lost);
    assert!(matches!(client.grant(Duration::from_millis(1500)).await, Err(Error::Usage(_))));
    assert_eq!(client.revoke(9).await.unwrap(), None, "it is gone, and that is what was wanted");
}

#[tokio::test]
async fn a_change_of_members_is_never_repeated_when_it_may_have_been_done() {
    let member = FakeMember::script(vec![no_leader(), Act::Close]).await;
    let error = client(&[&member]).remove_member("n 3", false).await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    let targets: Vec<_> = member.got().into_iter().map(|got| (got.method, got.target)).collect();
    assert_eq!(targets, vec![("DELETE".to_owned(), "/v1/members/n%203".to_owned()); 2]);
}

#[tokio::test]
async fn a_transaction_that_only_reads_needs_no_key() {
    let reply = r#"{"revision":7,"succeeded":true,"results":[{"get":{"item":null}}]}"#;
    let member = FakeMember::always(Act::Answer(raw(200, "", reply))).await;
    let client = client(&[&member]);
    assert!(client.txn().then_get("a").await.unwrap().succeeded);
    client.txn().if_absent("a").then_put("a", "1").else_get("a").await.unwrap();
    let got = member.got();
    assert_eq!((got[0].key(), got[1].key().is_some()), (None, true));
    assert_eq!(
        String::from_utf8_lossy(&got[1].body),
        concat!(
            r#"{"compare":[{"key":"a","target":"create_revision","op":"==","value":0}],"#,
            r#""then":[{"put":{"key":"a","value":"1"}}],"else":[{"get":{"key":"a"}}]}"#
        )
    );
}
