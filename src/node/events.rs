//! What happened lately, for people who ask why: one numbered list.
//!
//! Two kinds of events meet in it. What concerns one member (a compaction, room on its disk) stays in its memory and ends
//! with its process. What concerns the cluster is written by the leader as a record through the log
//! ([`Inner::record_cluster_event`]); every member shows it, in the order of the log, also after a restart.
//!
//! ```text
//!   record ───────────────────────────────────────────────┐
//!   record_cluster_event ──> queue ──> log ──> store ──> follow ──> list ──> GET /v1/events
//!                                       └──> webhooks
//! ```
//!
//! Bounds: [`KEPT`] events in the list and as many records in the store (the one that is written beyond them deletes the
//! oldest in the same write); [`MAX_WAITING`] wait to be written, more are only kept here. An event is a revision, so this
//! is for what happens rarely. Numbers in the list are each member's own, because members see different things; an event
//! has the same `event_id` everywhere.
//!
//! A leader that is deposed before it has written what it saw tells the next one.
//!
//! What a crash loses: what the leader had not written yet, and what concerned one member. The log file has all of it.
//!
//! Proven by the tests here and by `tests/api/events.rs`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::features::CLUSTER_EVENTS;
use super::members::MembersRequest;
use super::webhooks::Webhooks;
use super::{Inner, NodeError, RequestContext};
use crate::api::{Event, EventScope, EventsReply};
use crate::model::{Command, WriteCommand};
use crate::store::{EventRecord, ReadError, Store, event_op, forget_event_op};

/// So many events are kept.
const KEPT: usize = 1000;
/// So many events of the cluster wait to be written.
pub(super) const MAX_WAITING: usize = 256;
/// Events in one write.
const MAX_BATCH: usize = 32;
/// Between two looks for events that the log brought.
const FOLLOW: Duration = Duration::from_millis(100);
/// Before a write that did not succeed is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// An event that could not be written for so long is only kept here.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Something that happened, before it has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// What kind of thing, for programs.
    pub kind: &'static str,
    /// What, for people.
    pub detail: String,
    /// The member that it is about.
    pub subject: Option<String>,
    /// What that was before, or who.
    pub from: Option<String>,
    /// What it is now, or who.
    pub to: Option<String>,
    /// What it is known by everywhere; none for a random name.
    pub id: Option<String>,
}

impl NewEvent {
    /// An event of this kind.
    pub fn new(kind: &'static str, detail: String) -> NewEvent {
        NewEvent { kind, detail, subject: None, from: None, to: None, id: None }
    }

    /// It is about this member.
    pub fn about(mut self, member: impl Into<String>) -> NewEvent {
        self.subject = Some(member.into());
        self
    }

    /// It is known by this, whoever tells it.
    pub fn with_id(mut self, id: impl Into<String>) -> NewEvent {
        self.id = Some(id.into());
        self
    }

    /// Something changed from this, when that is known, to that.
    pub fn change(mut self, from: Option<String>, to: impl Into<String>) -> NewEvent {
        self.from = from;
        self.to = Some(to.into());
        self
    }
}

/// The list.
pub struct Events {
    member: String,
    list: Mutex<List>,
    last: watch::Sender<u64>,
    waiting: mpsc::Sender<Waiting>,
    /// How many events of the cluster are not written yet.
    unwritten: watch::Sender<usize>,
    webhooks: Webhooks,
}

#[derive(Default)]
struct List {
    kept: VecDeque<Event>,
    /// The number of the newest event of the cluster that is in it.
    followed: u64,
}

/// An event of the cluster that is to be written.
pub struct Waiting {
    event: Event,
    since: Instant,
}

impl Events {
    /// An empty list of the member called `member`, and where the events wait that are to be written.
    pub fn new(member: &str, webhooks: Webhooks) -> (Events, mpsc::Receiver<Waiting>) {
        let (waiting, queue) = mpsc::channel(MAX_WAITING);
        let last = watch::Sender::new(0);
        let unwritten = watch::Sender::new(0);
        (Events { member: member.to_owned(), list: Mutex::default(), last, waiting, unwritten, webhooks }, queue)
    }

    /// What counts the posts of webhooks.
    pub fn webhooks(&self) -> &Webhooks {
        &self.webhooks
    }

    /// Adds an event that concerns this member only.
    pub fn record(&self, kind: &'static str, detail: String) {
        self.record_event(NewEvent::new(kind, detail));
    }

    /// The same with what it is about.
    pub fn record_event(&self, event: NewEvent) {
        let event = self.complete(event, EventScope::Member);
        self.webhooks.announce(&event);
        self.add(&mut self.list.lock(), event);
    }

    fn complete(&self, event: NewEvent, scope: EventScope) -> Event {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let NewEvent { kind, detail, subject, from, to, id } = event;
        Event {
            id: 0,
            time_ms: now.as_millis() as u64,
            kind: kind.to_owned(),
            detail,
            member: self.member.clone(),
            scope: Some(scope),
            subject,
            from,
            to,
            event_id: Some(id.unwrap_or_else(|| format!("{:016x}", rand::random::<u64>()))),
        }
    }

    fn add(&self, list: &mut List, event: Event) {
        let id = *self.last.borrow() + 1;
        if list.kept.len() == KEPT {
            list.kept.pop_front();
        }
        list.kept.push_back(Event { id, ..event });
        self.last.send_replace(id);
    }

    /// Whether the list has this event.
    pub fn has(&self, event_id: &str) -> bool {
        self.list.lock().kept.iter().any(|event| event.event_id.as_deref() == Some(event_id))
    }

    /// The newest of the events that are kept for which this holds.
    pub fn newest(&self, holds: impl Fn(&Event) -> bool) -> Option<Event> {
        self.list.lock().kept.iter().rev().find(|event| holds(event)).cloned()
    }

    /// Takes the events of the cluster into the list that are not in it yet.
    pub fn follow(&self, store: &Store) -> Result<(), ReadError> {
        let last = store.records().last_event;
        let mut list = self.list.lock();
        if last < list.followed {
            // Another history has taken this one's place.
            list.followed = last;
        }
        if last == list.followed {
            return Ok(());
        }
        for EventRecord { number, value } in store.events(list.followed, KEPT)? {
            match serde_json::from_slice::<Event>(&value) {
                Ok(event) => self.add(&mut list, event),
                Err(error) => tracing::warn!(number, %error, "an event of the cluster cannot be read"),
            }
            list.followed = number;
        }
        Ok(())
    }

    /// Whether an event of this kind about one of these is among those that are kept.
    pub fn has_of_kind(&self, kind: &str, subjects: &[String]) -> bool {
        let list = self.list.lock();
        let of_these = |subject: &Option<String>| subject.as_ref().is_some_and(|subject| subjects.contains(subject));
        list.kept.iter().any(|event| event.kind == kind && of_these(&event.subject))
    }

    /// Up to `limit` events behind `since`; when there is none, the first that happens before `deadline`.
    pub async fn read(&self, since: u64, limit: usize, deadline: Instant) -> EventsReply {
        let mut last = self.last.subscribe();
        let newer = last.wait_for(|last| *last > since);
        // Too late is an empty list.
        let _ = tokio::time::timeout_at(deadline.into(), newer).await;
        let list = self.list.lock();
        let events: Vec<Event> = list.kept.iter().filter(|event| event.id > since).take(limit).cloned().collect();
        let next = events.last().map_or(since, |event| event.id);
        EventsReply { events, next }
    }
}

impl Inner {
    /// Records what concerns the cluster; for the leader, and for what happens rarely. It is written in the background.
    pub(super) fn record_cluster_event(&self, event: NewEvent) {
        self.queue_event(self.events.complete(event, EventScope::Cluster));
    }

    /// Takes over the events that an earlier leader has seen and could not write, and waits until they are written.
    pub(super) async fn take_over_events(&self, events: Vec<Event>) {
        for event in events {
            let written = event.event_id.as_ref().is_some_and(|id| self.events.has(id));
            if !written {
                self.queue_event(event);
            }
        }
        self.events.wait_written(self.limits.request_timeout).await;
    }

    fn queue_event(&self, event: Event) {
        let since = Instant::now();
        self.events.unwritten.send_modify(|unwritten| *unwritten += 1);
        if let Err(refused) = self.events.waiting.try_send(Waiting { event, since }) {
            self.events.unwritten.send_modify(|unwritten| *unwritten -= 1);
            let Waiting { event, .. } = refused.into_inner();
            tracing::warn!(kind = event.kind, "too many events wait to be written: only this member keeps this one");
            self.events.keep_here(event);
        }
    }

    /// Writes events, numbered behind those that there are.
    async fn write_events(&self, batch: &[Waiting]) -> Result<(), NodeError> {
        if self.store.feature_level() < CLUSTER_EVENTS {
            return Err(NodeError::FeatureNotActive { needed: CLUSTER_EVENTS, level: self.store.feature_level() });
        }
        // Whatever earlier leaders wrote must be seen, or a number would be given twice.
        let index = self.read_index(true).await?;
        if !self.wait_applied(index).await {
            return Err(NodeError::Stopping);
        }
        let last = self.store.records().last_event;
        let written = self.is_written(last, batch).map_err(|e| NodeError::StorageFailed { detail: e.to_string() })?;
        if written {
            return Ok(());
        }
        let mut ops = Vec::with_capacity(batch.len() + 1);
        for (number, waiting) in (last + 1..).zip(batch) {
            ops.push(event_op(number, encode(&waiting.event)));
        }
        let newest = last + batch.len() as u64;
        if let Some(too_old) = newest.checked_sub(KEPT as u64).filter(|number| *number > 0) {
            ops.push(forget_event_op(too_old));
        }
        self.propose_own(Command::Write(WriteCommand { ops, ..WriteCommand::default() })).await.map(|_| ())
    }

    /// Lets the leader write them.
    async fn tell_leader(&self, batch: &[Waiting]) -> Result<(), NodeError> {
        let events = batch.iter().map(|waiting| waiting.event.clone()).collect();
        // A little longer than the leader takes to write them.
        let ctx = RequestContext::anonymous(0, self.limits.request_timeout + AGAIN);
        self.ask_members(&ctx, MembersRequest::TakeOverEvents(events), false).await.map(|_| ())
    }

    /// Whether these are the newest events already: an earlier attempt without an answer may have been applied.
    fn is_written(&self, last: u64, batch: &[Waiting]) -> Result<bool, ReadError> {
        let Some(before) = last.checked_sub(batch.len() as u64) else { return Ok(false) };
        let newest = self.store.events(before, batch.len())?;
        let same = newest.iter().zip(batch).all(|(record, waiting)| record.value == encode(&waiting.event));
        Ok(newest.len() == batch.len() && same)
    }
}

impl Events {
    /// Waits until all that was recorded of the cluster is written, or kept here for good; so long at most. A leader that
    /// hands over does, as what it has not written then nobody else knows.
    pub async fn wait_written(&self, limit: Duration) {
        let mut unwritten = self.unwritten.subscribe();
        // Too late: they are kept here.
        let _ = tokio::time::timeout(limit, unwritten.wait_for(|unwritten| *unwritten == 0)).await;
    }

    /// Keeps an event of the cluster in this member's list alone.
    fn keep_here(&self, event: Event) {
        let event = Event { scope: Some(EventScope::Member), ..event };
        self.webhooks.announce(&event);
        self.add(&mut self.list.lock(), event);
    }
}

fn encode(event: &Event) -> Bytes {
    serde_json::to_vec(event).expect("an event of strings and numbers always serialises").into()
}

/// Writes what waits, or tells it to whoever leads instead by then.
pub async fn write(inner: Arc<Inner>, mut queue: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while queue.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let count = batch.len();
        loop {
            if inner.is_stopping() {
                return;
            }
            match inner.write_events(&batch).await {
                Ok(()) => {
                    batch.iter().for_each(|waiting| inner.events.webhooks.announce(&waiting.event));
                    break;
                }
                Err(error) => {
                    tracing::debug!(%error, "events of the cluster are not written yet");
                    let deposed = matches!(error, NodeError::NoLeader { .. }) && !inner.view().leads;
                    if deposed && inner.tell_leader(&batch).await.is_ok() {
                        break;
                    }
                    if batch.iter().any(|waiting| waiting.since.elapsed() > GIVE_UP) {
                        batch.drain(..).for_each(|waiting| inner.events.keep_here(waiting.event));
                        break;
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
        batch.clear();
        inner.events.unwritten.send_modify(|unwritten| *unwritten -= count);
    }
}

/// Shows what the log brings.
pub async fn follow(inner: Arc<Inner>) {
    let mut tick = tokio::time::interval(FOLLOW);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if inner.is_stopping() {
            return;
        }
        if let Err(error) = inner.events.follow(&inner.store) {
            return inner.fail(format!("the events of the cluster cannot be read: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_are_numbered_bounded_and_waited_for() {
        let (events, _queue) = Events::new("n1", Webhooks::none());
        let now = Instant::now();
        assert_eq!(events.read(0, 10, now).await, EventsReply { events: vec![], next: 0 });
        for n in 0..KEPT + 5 {
            events.record("test", n.to_string());
        }
        let first = events.read(0, 2, now).await;
        assert_eq!((first.events[0].id, first.events[0].detail.as_str(), first.next), (6, "5", 7));
        assert_eq!(first.events[0].scope, Some(EventScope::Member));
        let last = KEPT as u64 + 5;
        assert_eq!(events.read(last - 1, 10, now).await.next, last);
        let waits = events.read(last, 10, now + Duration::from_secs(600));
        let (waited, ()) = tokio::join!(waits, async { events.record("test", "new".into()) });
        assert_eq!(waited.events[0].detail, "new");
    }

    #[test]
    fn an_event_says_what_changed() {
        let (events, _queue) = Events::new("n1", Webhooks::none());
        let new = NewEvent::new("leader-elected", "n2 leads".into()).about("n2").change(Some("n1".into()), "n2");
        let event = events.complete(new, EventScope::Cluster);
        let text = serde_json::to_value(&event).unwrap();
        let shown = [&text["kind"], &text["scope"], &text["subject"], &text["from"], &text["to"]];
        assert_eq!(shown, ["leader-elected", "cluster", "n2", "n1", "n2"]);
        assert_eq!(serde_json::from_slice::<Event>(&encode(&event)).unwrap(), event);
        assert_eq!(event.event_id.unwrap().len(), 16);
    }
}
