//! Watchers while the read floor moves, by its record in the log, and compaction follows: everybody sees all, or is told
//! where what is kept begins.

use std::ops::ControlFlow;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use super::{Member, Model, PATIENCE, Reader, Seeded, limits, random_view};
use crate::api::{ChangeEvent, EndReason, WatchEvent};
use crate::model::Revision;
use crate::node::watches::{View, WatchError, WatchHub};
use crate::store::{CompactLimits, ReadError};

/// What a watcher saw without a gap: all after a revision, up to another.
struct Span {
    after: Revision,
    upto: Revision,
    seen: Vec<ChangeEvent>,
}

/// Watches until `goal`, slower than the floors move now and then; goes on at the floor when it is told that what it named
/// is gone.
async fn reader_past_floors(mut rng: StdRng, view: View, hub: watch::Receiver<WatchHub>, goal: Revision) -> Vec<Span> {
    let mut spans = vec![Span { after: 0, upto: 0, seen: Vec::new() }];
    loop {
        let span = spans.last_mut().unwrap();
        let begun = hub.borrow().watch(view.clone(), Some(span.upto), Duration::from_millis(20));
        let mut reader = match begun {
            Ok(watcher) => Reader::new(watcher),
            Err(WatchError::Read(ReadError::Future { .. }) | WatchError::Stopping) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            Err(WatchError::Read(ReadError::Compacted { floor })) => {
                assert!(floor > span.upto, "refused at {}, which is not below the floor {floor}", span.upto);
                spans.push(Span { after: floor, upto: floor, seen: Vec::new() });
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        while let Some(event) = reader.next().await {
            let span = spans.last_mut().unwrap();
            match event {
                WatchEvent::Change(change) => {
                    assert!(change.revision > span.upto);
                    span.upto = change.revision;
                    span.seen.push(change);
                }
                WatchEvent::Heartbeat { revision } | WatchEvent::Open { revision } => {
                    assert!(revision >= span.upto);
                    span.upto = revision;
                }
                WatchEvent::End(end) => {
                    span.upto = end.revision;
                    match (end.reason, end.floor) {
                        (EndReason::Stopping, None) => {}
                        (EndReason::Compacted, Some(floor)) => {
                            assert!(floor > end.revision, "ended at {}, floor {floor}", end.revision);
                            spans.push(Span { after: floor, upto: floor, seen: Vec::new() });
                        }
                        _ => panic!("{end:?}"),
                    }
                    break;
                }
                other => panic!("{other:?}"),
            }
            if spans.last().unwrap().upto >= goal {
                return spans;
            }
            match rng.random_range(0..60) {
                0 => break,
                1 => tokio::time::sleep(Duration::from_millis(rng.random_range(0..60))).await,
                _ => {}
            }
        }
        if rng.random_range(0..4) == 0 {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..60))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_floors_move_and_compaction_follows_everybody_sees_all_or_is_told_where_it_begins() {
    let mut seeded = Seeded::new();
    let mut model = Model::default();
    for _ in 0..3000 {
        match seeded.1.random_range(0..40) {
            0 => model.step_floors(&mut seeded.1),
            _ => model.step(&mut seeded.1),
        }
    }
    model.step_floors(&mut seeded.1);
    let goal = model.revision;
    let mut member = Member::new(limits());
    let (hubs, hub) = watch::channel(member.hub.clone());
    let readers: Vec<_> = (0..30)
        .map(|_| {
            let (view, rng) = (random_view(&mut seeded.1), StdRng::seed_from_u64(seeded.1.random()));
            (view.clone(), tokio::spawn(reader_past_floors(rng, view, hub.clone(), goal)))
        })
        .collect();
    let (mut done, mut reclaimed) = (0, 0);
    while done < model.entries.len() {
        let count = seeded.1.random_range(1..60).min(model.entries.len() - done);
        match seeded.1.random_range(0..20) {
            0 => {
                member = member.restart();
                let sealed = member.store.sealed().map_or(0, |log_id| log_id.index as usize + 1);
                member.apply(&model.entries[sealed..done]);
                hubs.send_replace(member.hub.clone());
                continue;
            }
            1..5 => {
                member.seal();
                let limits = CompactLimits {
                    step_bytes: 40 << 10,
                    garbage_percent: 5,
                    merge_segments: 3,
                    ..CompactLimits::default()
                };
                let report = member.store.compact(limits, &|_| ControlFlow::Continue(())).unwrap();
                reclaimed += report.read_bytes.saturating_sub(report.written_bytes);
                continue;
            }
            _ => member.apply(&model.entries[done..done + count]),
        }
        done += count;
        tokio::time::sleep(Duration::from_millis(seeded.1.random_range(0..5))).await;
    }
    assert_eq!(member.store.revision(), goal);
    let mut gaps = 0;
    for (view, task) in readers {
        let spans = tokio::time::timeout(PATIENCE, task).await.expect("every reader reaches the end").unwrap();
        gaps += spans.len() - 1;
        for Span { after, upto, seen } in spans {
            assert!(after == 0 || model.floors.contains(&after), "{after} was never the floor");
            let mut expected = model.seen_by(&view, after);
            expected.retain(|event| event.revision <= upto);
            assert_eq!(seen, expected, "between {after} and {upto} with {view:?}");
        }
    }
    assert!(gaps > 0 && reclaimed > 0, "{gaps} times below the floor, {reclaimed} bytes taken away");
}
