//! The events of a watch, as lines of JSON or as the data of server-sent events.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::KeyItem;
use super::kv::{put_key, text_or_base64};
use crate::model::Revision;

/// One event of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum WatchEvent {
    /// The first event.
    Open {
        /// Changes after this revision follow.
        revision: Revision,
    },
    /// What one transaction did to the keys that are watched.
    Change(ChangeEvent),
    /// The stream lives.
    Heartbeat {
        /// Every change up to this revision was sent.
        revision: Revision,
    },
    /// The last event of a stream that the member ends. A stream that ends without it was cut.
    End(EndEvent),
    /// An event that this program does not know. Never sent.
    #[serde(other, skip_serializing)]
    Unknown,
}

impl WatchEvent {
    /// The revision up to which everything was sent once this event was read; none for an unknown event.
    pub fn revision(&self) -> Option<Revision> {
        match self {
            WatchEvent::Open { revision } | WatchEvent::Heartbeat { revision } => Some(*revision),
            WatchEvent::Change(change) => Some(change.revision),
            WatchEvent::End(end) => Some(end.revision),
            WatchEvent::Unknown => None,
        }
    }
}

/// All changes of one transaction that match; never split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangeEvent {
    /// The revision of the transaction.
    pub revision: Revision,
    /// The cluster's clock when the transaction was applied, in milliseconds since 1970.
    pub time_ms: u64,
    /// The changes, in the order in which the transaction made them. At least one.
    pub changes: Vec<Change>,
}

/// What happened to one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It was written.
    Put(PutChange),
    /// It was deleted.
    Delete(DeleteChange),
}

impl Change {
    /// The key.
    pub fn key(&self) -> &Bytes {
        match self {
            Change::Put(put) => &put.item.key,
            Change::Delete(delete) => &delete.key,
        }
    }
}

/// A key that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PutChange {
    /// The key as it was then; without its value when only keys were asked for.
    #[serde(flatten)]
    pub item: KeyItem,
    /// What was replaced, when it was asked for and the key existed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<KeyItem>,
}

/// A key that was deleted. In JSON the key stands in `key` or `key_base64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteChange {
    /// The key.
    pub key: Bytes,
    /// What was deleted, when it was asked for.
    pub previous: Option<KeyItem>,
}

impl Serialize for DeleteChange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        put_key(&mut map, &self.key)?;
        if let Some(previous) = &self.previous {
            map.serialize_entry("previous", previous)?;
        }
        map.end()
    }
}

/// How a [`DeleteChange`] lies in JSON, for reading it.
#[derive(Deserialize)]
struct DeleteForm {
    key: Option<String>,
    key_base64: Option<String>,
    #[serde(default)]
    previous: Option<KeyItem>,
}

impl<'de> Deserialize<'de> for DeleteChange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = DeleteForm::deserialize(deserializer)?;
        let key = text_or_base64("key", form.key, form.key_base64).map_err(D::Error::custom)?;
        Ok(DeleteChange { key: key.ok_or_else(|| D::Error::missing_field("key"))?, previous: form.previous })
    }
}

/// Why the member ended a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndEvent {
    /// Why.
    pub reason: EndReason,
    /// Every change up to this revision was sent: where to continue, unless changes were lost.
    pub revision: Revision,
    /// `compacted`: the lowest revision after which changes can still be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Revision>,
    /// What people read.
    #[serde(default)]
    pub detail: String,
}

/// Why a member ends a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EndReason {
    /// The read floor overtook what was still to be sent: changes are lost, read the keys anew.
    Compacted,
    /// The reader did not take what was ready for too long: continue with `since`.
    Slow,
    /// The member stops: continue elsewhere.
    Stopping,
    /// The history no longer contains the revision that was reached.
    Diverged,
    /// The member lags more than the reader said it may: continue elsewhere with `since`.
    Lagging,
    /// A planned pause began that refuses reads.
    Maintenance,
    /// A reason that this program does not know. Never sent.
    #[serde(other, skip_serializing)]
    Unknown,
}

impl EndReason {
    /// Every reason that a member gives.
    pub const ALL: &[EndReason] = &[
        EndReason::Compacted,
        EndReason::Slow,
        EndReason::Stopping,
        EndReason::Diverged,
        EndReason::Lagging,
        EndReason::Maintenance,
    ];

    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            EndReason::Compacted => "compacted",
            EndReason::Slow => "slow",
            EndReason::Stopping => "stopping",
            EndReason::Diverged => "diverged",
            EndReason::Lagging => "lagging",
            EndReason::Maintenance => "maintenance",
            EndReason::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::KeyMeta;

    fn item(key: &'static [u8], value: Option<&'static [u8]>) -> KeyItem {
        KeyItem {
            key: Bytes::from_static(key),
            value: value.map(Bytes::from_static),
            meta: KeyMeta { create_revision: 40, mod_revision: 43, version: 2, lease: 0 },
        }
    }

    fn end(reason: EndReason, floor: Option<Revision>) -> WatchEvent {
        WatchEvent::End(EndEvent { reason, revision: 57, floor, detail: "why".to_owned() })
    }

    #[test]
    fn events_look_as_documented_and_come_back() {
        let meta = r#""create_revision":40,"mod_revision":43,"version":2,"lease":0"#;
        let put = |item, previous| Change::Put(PutChange { item, previous });
        let delete =
            |key: &'static [u8], previous| Change::Delete(DeleteChange { key: Bytes::from_static(key), previous });
        let change = |changes| WatchEvent::Change(ChangeEvent { revision: 43, time_ms: 1_764_000_000_000, changes });
        let head = r#"{"type":"change","revision":43,"time_ms":1764000000000,"changes":["#;
        for (event, text) in [
            (WatchEvent::Open { revision: 42 }, r#"{"type":"open","revision":42}"#.to_owned()),
            (
                change(vec![put(item(b"a", Some(b"2")), Some(item(b"a", Some(b"1")))), delete(b"b", None)]),
                format!(
                    r#"{head}{{"put":{{"key":"a","value":"2",{meta},"previous":{{"key":"a","value":"1",{meta}}}}}}},{{"delete":{{"key":"b"}}}}]}}"#
                ),
            ),
            (
                change(vec![put(item(b"\xff", None), None), delete(b"\xfe", Some(item(b"\xfe", Some(b"\x80"))))]),
                format!(
                    r#"{head}{{"put":{{"key_base64":"/w==",{meta}}}}},{{"delete":{{"key_base64":"/g==","previous":{{"key_base64":"/g==","value_base64":"gA==",{meta}}}}}}}]}}"#
                ),
            ),
            (WatchEvent::Heartbeat { revision: 57 }, r#"{"type":"heartbeat","revision":57}"#.to_owned()),
            (
                end(EndReason::Compacted, Some(900)),
                r#"{"type":"end","reason":"compacted","revision":57,"floor":900,"detail":"why"}"#.to_owned(),
            ),
            (end(EndReason::Slow, None), r#"{"type":"end","reason":"slow","revision":57,"detail":"why"}"#.to_owned()),
        ] {
            assert_eq!(serde_json::to_string(&event).unwrap(), text);
            assert_eq!(serde_json::from_str::<WatchEvent>(&text).unwrap(), event);
        }
    }

    #[test]
    fn every_reason_comes_back_and_a_newer_members_events_are_read() {
        for reason in EndReason::ALL {
            let text = serde_json::to_string(reason).unwrap();
            assert_eq!(text, format!("\"{}\"", reason.as_str()));
            assert_eq!(serde_json::from_str::<EndReason>(&text).unwrap(), *reason);
        }
        let newer = r#"{"type":"end","reason":"tides","revision":57,"height":3}"#;
        let WatchEvent::End(read) = serde_json::from_str(newer).unwrap() else { panic!("not an end") };
        assert_eq!((read.reason, read.revision), (EndReason::Unknown, 57));
        assert_eq!(serde_json::from_str::<WatchEvent>(r#"{"type":"moon","phase":3}"#).unwrap(), WatchEvent::Unknown);
        assert!(serde_json::to_string(&WatchEvent::Unknown).is_err(), "what is not known is never sent");
    }

    #[test]
    fn a_change_without_a_key_is_refused() {
        for change in [r#"{"delete":{}}"#, r#"{"put":{"value":"x"}}"#, r#"{"delete":{"key":"a","key_base64":"YQ=="}}"#]
        {
            let read = serde_json::from_str::<Change>(change);
            assert!(read.is_err(), "{change} was read as {read:?}");
        }
    }
}
