//! Changes as JSON, made once for all watchers.
//!
//! The text of every change is kept in pieces, of which a watcher takes those it asked for:
//!
//! ```text
//! {"put":{"key":"a" │ ,"value":"2" │ ,"create_revision":… │ ,"previous":{"key":"a" │ ,"value":"1" │ ,"create_revision":…} │ }}
//!          always       not keys_only   always                previous                not keys_only   previous
//! ```
//!
//! Proven by the tests below: whatever is taken is the text that the wire types of `api` would have.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Serialize;

use super::scope::{Kinds, Scope};
use crate::api::{EndEvent, WatchEvent};
use crate::model::{KeyMeta, Revision};
use crate::store::{ChangesPage, KeyChange};

/// What stands around an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A server-sent event: its type, its revision as its id, and the JSON as its data.
    ServerSent,
    /// A line of JSON.
    Lines,
}

/// What a watcher wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Of which keys.
    pub scope: Scope,
    /// Which changes of them.
    pub kinds: Kinds,
    /// With what each change replaced.
    pub previous: bool,
    /// Without values.
    pub keys_only: bool,
    /// In which form.
    pub framing: Framing,
}

impl View {
    fn matches(&self, key: &[u8], is_put: bool) -> bool {
        self.kinds.contain(is_put) && self.scope.contains(key)
    }
}

/// Transactions that follow each other, as text.
#[derive(Debug)]
pub struct Batch {
    /// They come after this revision.
    pub after: Revision,
    /// There are no others up to this one.
    pub upto: Revision,
    /// Whether they have what each change replaced.
    pub has_previous: bool,
    transactions: Vec<Encoded>,
    changes: Vec<EncodedChange>,
    keys: Vec<u8>,
    text: Vec<u8>,
}

#[derive(Debug)]
struct Encoded {
    revision: Revision,
    time_ms: u64,
    changes: Range<usize>,
}

#[derive(Debug)]
struct EncodedChange {
    key: Range<usize>,
    is_put: bool,
    /// Where the pieces of its text begin, and where the last one ends.
    pieces: [usize; PIECES + 1],
}

const PIECES: usize = 6;
/// The pieces that hold a value.
const VALUES: [usize; 2] = [1, 4];
/// The first piece of what was replaced.
const PREVIOUS: usize = 3;

impl Batch {
    /// The changes of a page that `wanted` wants.
    pub fn encode(
        after: Revision,
        page: &ChangesPage,
        has_previous: bool,
        wanted: impl Fn(&[u8], bool) -> bool,
    ) -> Batch {
        let upto = page.upto;
        let mut batch = Batch {
            after,
            upto,
            has_previous,
            transactions: Vec::new(),
            changes: Vec::new(),
            keys: Vec::new(),
            text: Vec::new(),
        };
        for transaction in &page.transactions {
            let first = batch.changes.len();
            for change in &transaction.changes {
                if wanted(&change.key, change.put.is_some()) {
                    batch.push(change);
                }
            }
            if batch.changes.len() > first {
                let changes = first..batch.changes.len();
                let (revision, time_ms) = (transaction.revision, transaction.time_ms);
                batch.transactions.push(Encoded { revision, time_ms, changes });
            }
        }
        batch
    }

    /// The changes of a page that a view shows.
    pub fn encode_for(after: Revision, page: &ChangesPage, view: &View) -> Batch {
        Batch::encode(after, page, view.previous, |key, is_put| view.matches(key, is_put))
    }

    fn push(&mut self, change: &KeyChange) {
        let key_at = self.keys.len();
        self.keys.extend_from_slice(&change.key);
        let text = &mut self.text;
        let mut pieces = [text.len(); PIECES + 1];
        text.extend_from_slice(if change.put.is_some() { b"{\"put\":{" } else { b"{\"delete\":{" });
        put_field(text, "key", &change.key);
        pieces[1] = text.len();
        if let Some(put) = &change.put {
            put_value(text, &put.value);
        }
        pieces[2] = text.len();
        if let Some(put) = &change.put {
            put_meta(text, &put.meta);
        }
        pieces[PREVIOUS] = text.len();
        if change.previous.is_some() {
            text.extend_from_slice(b",\"previous\":{");
            put_field(text, "key", &change.key);
        }
        pieces[4] = text.len();
        if let Some(value) = change.previous.as_ref().and_then(|previous| previous.value.as_ref()) {
            put_value(text, value);
        }
        pieces[5] = text.len();
        if let Some(previous) = &change.previous {
            put_meta(text, &previous.meta);
            text.push(b'}');
        }
        pieces[PIECES] = text.len();
        let change = EncodedChange { key: key_at..self.keys.len(), is_put: change.put.is_some(), pieces };
        self.changes.push(change);
    }

    /// How many bytes of memory it takes, roughly.
    pub fn bytes(&self) -> usize {
        size_of::<Batch>()
            + self.text.capacity()
            + self.keys.capacity()
            + self.changes.capacity() * size_of::<EncodedChange>()
            + self.transactions.capacity() * size_of::<Encoded>()
    }

    /// The keys that were changed, in order, and whether each was put.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.changes.iter().map(|change| &self.keys[change.key.clone()])
    }

    /// Appends the events after a revision that a view shows, until the text has `max_bytes`. Says up to which revision
    /// nothing is left, and how many events there were.
    pub fn render(&self, after: Revision, view: &View, max_bytes: usize, out: &mut Vec<u8>) -> (Revision, u64) {
        let first = self.transactions.partition_point(|transaction| transaction.revision <= after);
        let (mut events, mut upto) = (0, after);
        for transaction in &self.transactions[first..] {
            if out.len() >= max_bytes {
                return (upto, events);
            }
            upto = transaction.revision;
            events += u64::from(self.render_one(transaction, view, out));
        }
        (self.upto, events)
    }

    fn render_one(&self, transaction: &Encoded, view: &View, out: &mut Vec<u8>) -> bool {
        let mut first = true;
        for change in &self.changes[transaction.changes.clone()] {
            if !view.matches(&self.keys[change.key.clone()], change.is_put) {
                continue;
            }
            if first {
                begin(out, view.framing, "change", transaction.revision);
                out.extend_from_slice(b"{\"type\":\"change\",\"revision\":");
                put_number(out, transaction.revision);
                out.extend_from_slice(b",\"time_ms\":");
                put_number(out, transaction.time_ms);
                out.extend_from_slice(b",\"changes\":[");
            } else {
                out.push(b',');
            }
            first = false;
            for piece in 0..PIECES {
                let unwanted = (view.keys_only && VALUES.contains(&piece)) || (!view.previous && piece >= PREVIOUS);
                if !unwanted {
                    out.extend_from_slice(&self.text[change.pieces[piece]..change.pieces[piece + 1]]);
                }
            }
            out.extend_from_slice(b"}}");
        }
        if !first {
            out.extend_from_slice(b"]}");
            finish(out, view.framing);
        }
        !first
    }
}

/// An event that is no change, in its frame.
pub fn render_event(framing: Framing, event: &WatchEvent) -> Bytes {
    let (kind, revision) = match event {
        WatchEvent::Open { revision } => ("open", *revision),
        WatchEvent::Heartbeat { revision } => ("heartbeat", *revision),
        WatchEvent::End(EndEvent { revision, .. }) => ("end", *revision),
        WatchEvent::Change(change) => ("change", change.revision),
        WatchEvent::Unknown => unreachable!("only reading an event gives an unknown one"),
    };
    let mut out = Vec::with_capacity(128);
    begin(&mut out, framing, kind, revision);
    put_json(&mut out, event);
    finish(&mut out, framing);
    out.into()
}

fn begin(out: &mut Vec<u8>, framing: Framing, kind: &str, revision: Revision) {
    if framing == Framing::ServerSent {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\nid: ");
        put_number(out, revision);
        out.extend_from_slice(b"\ndata: ");
    }
}

/// JSON has no line breaks of its own, so one ends the line, and the event with it.
fn finish(out: &mut Vec<u8>, framing: Framing) {
    out.extend_from_slice(if framing == Framing::ServerSent { b"\n\n" } else { b"\n" });
}

fn put_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("events have nothing that JSON cannot hold");
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    put_json(out, &number);
}

/// `"name":"text"` or `"name_base64":"…"`.
fn put_field(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            out.extend_from_slice(b"\":");
            put_json(out, text);
        }
        Err(_) => {
            out.extend_from_slice(b"_base64\":\"");
            let at = out.len();
            out.resize(at + bytes.len().div_ceil(3) * 4, 0);
            let written = BASE64.encode_slice(bytes, &mut out[at..]);
            out.truncate(at + written.expect("base64 makes four bytes of three"));
            out.push(b'"');
        }
    }
}

fn put_value(out: &mut Vec<u8>, value: &[u8]) {
    out.push(b',');
    put_field(out, "value", value);
}

fn put_meta(out: &mut Vec<u8>, meta: &KeyMeta) {
    for (name, number) in [
        (&b",\"create_revision\":"[..], meta.create_revision),
        (b",\"mod_revision\":", meta.mod_revision),
        (b",\"version\":", meta.version),
        (b",\"lease\":", meta.lease),
    ] {
        out.extend_from_slice(name);
        put_number(out, number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Change, ChangeEvent, DeleteChange, EndReason, KeyItem, PutChange};
    use crate::store::{PreviousVersion, PutVersion, Transaction};

    fn meta(mod_revision: Revision) -> KeyMeta {
        KeyMeta { create_revision: 40, mod_revision, version: 2, lease: 7301 }
    }

    fn page() -> ChangesPage {
        let put = |value: &'static [u8]| Some(PutVersion { value: Bytes::from_static(value), meta: meta(43) });
        let previous = |value: Option<&'static [u8]>| {
            Some(PreviousVersion { value: value.map(Bytes::from_static), meta: meta(41) })
        };
        let change = |key: &'static [u8], put, previous| KeyChange { key: Bytes::from_static(key), put, previous };
        let first = vec![
            change(b"a\"\n", put(b"two"), previous(Some(b"one"))),
            change(b"b\xff", put(b"\x00\xfe\xfd\xfc"), previous(Some(b"\x80"))),
            change(b"c", None, previous(None)),
            change(b"", None, previous(Some(b""))),
            change(b"ab", put(b""), None),
        ];
        let second = vec![change(b"c", put("grüße".as_bytes()), None)];
        let transactions = [(43, first), (45, second)];
        let transactions = transactions.map(|(revision, changes)| Transaction { revision, time_ms: 1_764, changes });
        ChangesPage { transactions: transactions.into(), upto: 46 }
    }

    /// What a view shows of a change, in the wire's types.
    fn wire(change: &KeyChange, view: &View) -> Change {
        let key = change.key.clone();
        let previous = change.previous.clone().filter(|_| view.previous).map(|previous| {
            let value = previous.value.filter(|_| !view.keys_only);
            KeyItem { key: key.clone(), value, meta: previous.meta }
        });
        match &change.put {
            None => Change::Delete(DeleteChange { key, previous }),
            Some(put) => {
                let value = (!view.keys_only).then(|| put.value.clone());
                Change::Put(PutChange { item: KeyItem { key, value, meta: put.meta }, previous })
            }
        }
    }

    fn views() -> Vec<View> {
        let mut views = Vec::new();
        for (scope, kinds) in [
            (Scope::all(), Kinds::All),
            (Scope::Prefix(Bytes::from_static(b"a")), Kinds::All),
            (Scope::Key(Bytes::from_static(b"c")), Kinds::Deletes),
            (Scope::Range { start: Bytes::from_static(b"b"), end: None }, Kinds::Puts),
        ] {
            for bits in 0..8 {
                let (previous, keys_only) = (bits & 1 > 0, bits & 2 > 0);
                let framing = if bits & 4 > 0 { Framing::Lines } else { Framing::ServerSent };
                views.push(View { scope: scope.clone(), kinds, previous, keys_only, framing });
            }
        }
        views
    }

    #[test]
    fn what_is_rendered_is_the_text_of_the_wire_types() {
        let page = page();
        for view in views() {
            let mut expected = Vec::new();
            for Transaction { revision, time_ms, changes } in &page.transactions {
                let changes = changes.iter().filter(|change| view.matches(&change.key, change.put.is_some()));
                let changes: Vec<Change> = changes.map(|change| wire(change, &view)).collect();
                if !changes.is_empty() {
                    let event = ChangeEvent { revision: *revision, time_ms: *time_ms, changes };
                    expected.extend_from_slice(&render_event(view.framing, &WatchEvent::Change(event)));
                }
            }
            for batch in [Batch::encode(42, &page, true, |_, _| true), Batch::encode_for(42, &page, &view)] {
                let mut out = Vec::new();
                let (upto, _) = batch.render(42, &view, usize::MAX, &mut out);
                let (out, expected) = (String::from_utf8(out).unwrap(), String::from_utf8(expected.clone()).unwrap());
                assert_eq!((upto, out), (46, expected), "{view:?}");
            }
        }
    }

    #[test]
    fn a_batch_is_rendered_in_parts_that_split_no_transaction() {
        let batch = Batch::encode(42, &page(), true, |_, _| true);
        for view in views().into_iter().filter(|view| view.kinds == Kinds::All) {
            let (mut whole, mut parts, mut at, mut events) = (Vec::new(), Vec::new(), 42, 0);
            let (_, count) = batch.render(42, &view, usize::MAX, &mut whole);
            while at < batch.upto {
                let mut part = Vec::new();
                let (upto, rendered) = batch.render(at, &view, 1, &mut part);
                assert!(upto > at && rendered <= 1, "{view:?}");
                (at, events) = (upto, events + rendered);
                parts.extend(part);
            }
            assert_eq!((parts, events), (whole, count), "{view:?}");
        }
    }

    #[test]
    fn other_events_stand_in_their_frame() {
        let open = WatchEvent::Open { revision: 42 };
        assert_eq!(
            render_event(Framing::ServerSent, &open),
            "event: open\nid: 42\ndata: {\"type\":\"open\",\"revision\":42}\n\n"
        );
        assert_eq!(render_event(Framing::Lines, &open), "{\"type\":\"open\",\"revision\":42}\n");
        let reason = EndReason::Slow;
        let end = WatchEvent::End(EndEvent { reason, revision: 57, floor: None, detail: "a\nb".into() });
        let text = String::from_utf8(render_event(Framing::ServerSent, &end).to_vec()).unwrap();
        assert!(text.starts_with("event: end\nid: 57\ndata: {"), "{text}");
        assert_eq!(text.lines().count(), 4, "a detail cannot break the frame: {text}");
    }
}
