//! The client against clusters whose leaders are killed: writes are counted once, watches miss nothing, locks exclude,
//! elections go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::cluster::{Cluster, Plan};
use crate::support::{Seed, wait_for};
use lifeboat::api::{Change, TxnResult};
use lifeboat::client::{Client, WatchItem};
use rand::Rng as _;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Longer than an election takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn client(cluster: &Cluster, seed: u64) -> Client {
    let endpoints = cluster.clients().into_iter().map(|address| address.to_string());
    Client::builder().endpoints(endpoints).deadline(DEADLINE).seed(seed).build().unwrap()
}

/// Kills the leader with SIGKILL, waits until another one leads, and starts it again, so many times.
fn kill_leaders(cluster: &mut Cluster, times: usize) {
    for _ in 0..times {
        let leader = cluster.wait_leader();
        cluster.kill(leader);
        cluster.wait_leader();
        cluster.start_member(leader);
        cluster.wait_ready(leader);
    }
}

/// What runs until it is told to stop.
fn until_stopped<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    runtime: &Runtime,
    work: impl FnOnce(Arc<AtomicBool>) -> F,
) -> (Arc<AtomicBool>, JoinHandle<T>) {
    let stop = Arc::new(AtomicBool::new(false));
    let task = runtime.spawn(work(stop.clone()));
    (stop, task)
}

#[test]
fn what_was_acknowledged_is_counted_once_and_nothing_else_while_leaders_are_killed() {
    let seed = Seed::for_test("what_was_acknowledged_is_counted_once_and_nothing_else_while_leaders_are_killed");
    let mut cluster = Plan::new(3, 0).start();
    let runtime = runtime();
    const ENOUGH: u64 = 10;
    let stop = Arc::new(AtomicBool::new(false));
    let made: Arc<[AtomicU64; 4]> = Arc::default();
    let mut workers = Vec::new();
    for number in 0..4 {
        let (client, stop, made) = (client(&cluster, seed.rng(number).random()), stop.clone(), made.clone());
        // Each step is a transaction that only raises: done twice, it would count twice.
        workers.push(runtime.spawn(async move {
            let mut steps: u64 = 0;
            while !stop.load(Ordering::Relaxed) {
                let key = format!("count/{number}");
                let item = client.get(key.clone()).await.unwrap();
                let (before, revision) = item.map_or((0, 0), |item| {
                    let text = String::from_utf8(item.value.unwrap().to_vec()).unwrap();
                    (text.parse::<u64>().unwrap(), item.meta.mod_revision)
                });
                assert_eq!(before, steps, "a step was lost or done twice");
                let log = format!("log/{number}/{before}");
                let txn = client.txn().if_revision(key.clone(), revision).if_absent(log.clone());
                // A step that was done although its first attempt broke must be told as done, not as "somebody was
                // faster": there is nobody else.
                let reply = txn.then_put(key, (before + 1).to_string()).then_put(log, "x").await.unwrap();
                assert!(reply.succeeded, "the outcome of an earlier attempt was not given again");
                assert!(matches!(&reply.results[..], [TxnResult::Put { .. }, TxnResult::Put { version: 1, .. }]));
                steps += 1;
                made[number as usize].store(steps, Ordering::Relaxed);
            }
            steps
        }));
    }
    kill_leaders(&mut cluster, 4);
    wait_for("steps of every client", || match made.iter().all(|steps| steps.load(Ordering::Relaxed) > ENOUGH) {
        true => Ok(()),
        false => Err(format!("{made:?}")),
    });
    stop.store(true, Ordering::Relaxed);
    let steps: Vec<u64> = workers.into_iter().map(|worker| runtime.block_on(async { worker.await.unwrap() })).collect();
    let reader = client(&cluster, 1);
    for (number, steps) in steps.iter().enumerate() {
        assert!(*steps > ENOUGH, "the clients made hardly any steps: {steps:?}");
        let item = runtime.block_on(async { reader.get(format!("count/{number}")).await }).unwrap().unwrap();
        assert_eq!(item.value.unwrap(), steps.to_string());
        assert_eq!(item.meta.version, *steps);
    }
}

#[test]
fn a_watch_misses_and_repeats_nothing_while_members_are_killed() {
    let seed = Seed::for_test("a_watch_misses_and_repeats_nothing_while_members_are_killed");
    let mut cluster = Plan::new(3, 0).start();
    let runtime = runtime();
    let (watching, writing) = (client(&cluster, seed.rng(1).random()), client(&cluster, seed.rng(2).random()));
    let start = runtime.block_on(async { writing.put("w/begin", "x").await }).unwrap().revision;
    const ENOUGH: usize = 20;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let (stop, writer) = until_stopped(&runtime, |stop| async move {
        let mut written = BTreeMap::new();
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let reply = writing.put(format!("w/{number}"), number.to_string()).await.unwrap();
            written.insert(reply.revision, number.to_string());
            counted.store(written.len(), Ordering::Relaxed);
        }
        let end = writing.put("w/end", "x").await.unwrap().revision;
        (written, end)
    });
    let watcher = runtime.spawn(async move {
        let heartbeat = Duration::from_secs(1);
        let mut watcher = watching.watch("w/").since(start).heartbeat(heartbeat).patience(DEADLINE).start();
        let (mut seen, mut last) = (BTreeMap::new(), start);
        loop {
            let WatchItem::Change(event) = watcher.next().await.unwrap() else { continue };
            assert!(event.revision > last, "{} was told behind {last}", event.revision);
            last = event.revision;
            let [Change::Put(put)] = &event.changes[..] else { panic!("{event:?}") };
            if put.item.key == "w/end" {
                return (seen, last);
            }
            let value = String::from_utf8(put.item.value.as_deref().unwrap().to_vec()).unwrap();
            seen.insert(event.revision, value);
        }
    });
    kill_leaders(&mut cluster, 3);
    // And one that does not lead, so that each member was gone once for certain.
    let follower = cluster.running().into_iter().find(|&member| member != cluster.wait_leader()).unwrap();
    cluster.kill(follower);
    cluster.start_member(follower);
    cluster.wait_ready(follower);
    wait_for("writes", || match count.load(Ordering::Relaxed) {
        enough if enough > ENOUGH => Ok(()),
        few => Err(few.to_string()),
    });
    stop.store(true, Ordering::Relaxed);
    let (written, end) = runtime.block_on(writer).unwrap();
    let (seen, last) = runtime.block_on(async { tokio::time::timeout(DEADLINE, watcher).await }).unwrap().unwrap();
    assert!(written.len() > ENOUGH, "hardly anything was written: {}", written.len());
    assert_eq!((seen, last), (written, end));
}

#[test]
fn one_at_a_time_holds_a_lock_while_leaders_are_killed() {
    let seed = Seed::for_test("one_at_a_time_holds_a_lock_while_leaders_are_killed");
    let mut cluster = Plan::new(3, 0).start();
    let runtime = runtime();
    let (stop, inside) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut workers = Vec::new();
    for number in 0..4 {
        let (client, stop, inside) = (client(&cluster, seed.rng(number).random()), stop.clone(), inside.clone());
        workers.push(runtime.spawn(async move {
            let mut tokens = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let guard = client.mutex("locks/one").ttl(Duration::from_secs(10)).lock().await.unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the lock");
                // The write is fenced: it says whether the cluster sees it as we do.
                let put = client.txn().compare(guard.fence()).then_put("under/lock", guard.token().to_string());
                let written = put.await.unwrap();
                assert!(guard.is_held(), "lost although keep-alives were answered within the span");
                assert!(written.succeeded);
                tokens.push(guard.token());
                assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                guard.unlock().await.unwrap();
            }
            tokens
        }));
    }
    kill_leaders(&mut cluster, 3);
    stop.store(true, Ordering::Relaxed);
    let mut tokens = Vec::new();
    for worker in workers {
        let mine = runtime.block_on(worker).unwrap();
        assert!(!mine.is_empty(), "everybody has its turn");
        assert!(mine.is_sorted(), "tokens grow");
        tokens.extend(mine);
    }
    let count = tokens.len();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), count, "no two holders have one token");
    // The last write was of the last holder, as tokens grow from holder to holder.
    let reader = client(&cluster, 1);
    let item = runtime.block_on(async { reader.get("under/lock").await }).unwrap().unwrap();
    assert_eq!(item.value.unwrap(), tokens.last().unwrap().to_string());
    assert_eq!(item.meta.version, count as u64);
    let (left, leases) = runtime
        .block_on(async { tokio::try_join!(async { reader.list("locks/").await }, reader.leases(0, 100)) })
        .unwrap();
    assert_eq!((left.items.len(), leases.leases.len()), (0, 0), "nothing is left behind");
}

#[test]
fn a_holder_that_dies_is_followed_and_its_writes_are_fenced() {
    let cluster = Plan::new(3, 0).start();
    let runtime = runtime();
    let (one, other) = (client(&cluster, 1), client(&cluster, 2));
    runtime.block_on(async {
        let ttl = Duration::from_secs(30);
        let first = one.mutex("lock").ttl(ttl).value("first").lock().await.unwrap();
        assert!(other.mutex("lock").try_lock().await.unwrap().is_none());
        let waited = other.mutex("lock").lock_within(Duration::from_millis(100)).await.unwrap();
        assert!(waited.is_none());
        let holder = other.mutex("lock").holder().await.unwrap().unwrap();
        assert_eq!((holder.value.unwrap(), holder.meta.create_revision), ("first".into(), first.token()));
        // It is ended from outside: the holder hears of it by its keep-alive, the next one gets the lock at once.
        let second = other.mutex("lock").ttl(ttl);
        let (second, _) = tokio::join!(second.lock(), async { one.revoke(first.lease()).await.unwrap() });
        let second = second.unwrap();
        assert!(second.token() > first.token());
        tokio::time::timeout(DEADLINE, first.lost()).await.unwrap();
        assert!(!first.is_held());
        let late = one.txn().compare(first.fence()).then_put("k", "late").await.unwrap();
        assert!(!late.succeeded, "a write of one who has lost the lock");
        let fenced = other.txn().compare(second.fence()).then_put("k", "2").await.unwrap();
        assert!(fenced.succeeded);
        // Whoever is dropped while waiting leaves the line.
        let waiting = tokio::spawn({
            let one = one.clone();
            async move { one.mutex("lock").ttl(Duration::from_secs(600)).lock().await.map(drop) }
        });
        until(|| async { one.list("lock/").await.unwrap().items.len() == 2 }).await;
        waiting.abort();
        until(|| async { one.list("lock/").await.unwrap().items.len() == 1 }).await;
        drop(second);
        until(|| async { one.mutex("lock").holder().await.unwrap().is_none() }).await;
    });
}

/// Looks until it is so.
async fn until<F: Future<Output = bool>>(mut check: impl FnMut() -> F) {
    let looking = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, looking).await.expect("it becomes so");
}

#[test]
fn one_leads_and_when_it_dies_the_next_one_does_and_everybody_can_see_it() {
    let mut cluster = Plan::new(3, 0).start();
    let runtime = runtime();
    let (one, other, watcher) = (client(&cluster, 1), client(&cluster, 2), client(&cluster, 3));
    let ttl = Duration::from_secs(30);
    let (first, second, mut observer) = runtime.block_on(async {
        let election = one.election("jobs").ttl(ttl);
        let mut observer = watcher.election("jobs").observe();
        assert_eq!(observer.next().await.unwrap(), None);
        let first = election.campaign("one").await.unwrap();
        let seen = observer.next().await.unwrap().unwrap();
        assert_eq!((seen.value.unwrap(), seen.meta.create_revision), ("one".into(), first.token()));
        assert!(first.proclaim("one, at work").await.unwrap());
        assert_eq!(observer.next().await.unwrap().unwrap().value.unwrap(), "one, at work");
        let second = tokio::spawn(async move { other.election("jobs").ttl(ttl).campaign("other").await });
        (first, second, observer)
    });
    let leader = cluster.wait_leader();
    cluster.kill(leader);
    cluster.wait_leader();
    runtime.block_on(async {
        // It still leads: keep-alives went to the next leader of the cluster.
        assert_eq!(one.election("jobs").leader().await.unwrap().unwrap().value.unwrap(), "one, at work");
        assert!(!second.is_finished());
        let token = first.token();
        first.resign().await.unwrap();
        let second = tokio::time::timeout(DEADLINE, second).await.unwrap().unwrap().unwrap();
        assert!(second.token() > token && second.is_leading());
        loop {
            // Between the two nobody may have been seen to lead.
            if let Some(item) = observer.next().await.unwrap() {
                assert_eq!(item.value.unwrap(), "other");
                break;
            }
        }
    });
}
