//! Replies about keys and values.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::model::{KeyMeta, Revision};

/// The reply to a put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WriteReply {
    /// The revision of this write.
    pub revision: Revision,
    /// The revision at which the key was created.
    pub create_revision: Revision,
    /// How many times the key was written since its creation, from 1.
    pub version: u64,
    /// The revision of the value that was replaced; none when the key did not exist.
    pub previous_revision: Option<Revision>,
    /// The lease that was granted with it, when a `ttl` was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    /// Only with `durability=mirrored`: whether a mirror in another site had it on its disk in time. It is committed either
    /// way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirrored: Option<bool>,
}

/// The reply to the deletion of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteReply {
    /// The store's revision afterwards; a new one only if something was deleted.
    pub revision: Revision,
    /// 1 or 0.
    pub deleted: u64,
    /// The revision of the deleted value; none when the key did not exist.
    pub previous_revision: Option<Revision>,
    /// Only with `durability=mirrored`: whether a mirror in another site had it on its disk in time. It is committed either
    /// way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirrored: Option<bool>,
}

/// The reply to the deletion of many keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteKeysReply {
    /// The store's revision afterwards; a new one only if something was deleted.
    pub revision: Revision,
    /// How many keys were deleted.
    pub deleted: u64,
    /// Only with `durability=mirrored`: whether a mirror in another site had it on its disk in time. It is committed either
    /// way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirrored: Option<bool>,
}

/// A key with its newest value, or its value at the revision that was asked for.
///
/// In JSON the key stands in `key` or `key_base64`, the value in `value`, `value_base64` or (keys only) in neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyItem {
    /// The key.
    pub key: Bytes,
    /// The value; none when only keys were asked for.
    pub value: Option<Bytes>,
    /// Its revisions, version and lease.
    pub meta: KeyMeta,
}

/// Writes a key as the field `key` or `key_base64`.
pub(super) fn put_key<M: SerializeMap>(map: &mut M, key: &[u8]) -> Result<(), M::Error> {
    match std::str::from_utf8(key) {
        Ok(text) => map.serialize_entry("key", text),
        Err(_) => map.serialize_entry("key_base64", &BASE64.encode(key)),
    }
}

impl Serialize for KeyItem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        put_key(&mut map, &self.key)?;
        if let Some(value) = &self.value {
            match std::str::from_utf8(value) {
                Ok(text) => map.serialize_entry("value", text)?,
                Err(_) => map.serialize_entry("value_base64", &BASE64.encode(value))?,
            }
        }
        map.serialize_entry("create_revision", &self.meta.create_revision)?;
        map.serialize_entry("mod_revision", &self.meta.mod_revision)?;
        map.serialize_entry("version", &self.meta.version)?;
        map.serialize_entry("lease", &self.meta.lease)?;
        map.end()
    }
}

/// How a [`KeyItem`] lies in JSON, for reading it.
#[derive(Deserialize)]
struct KeyItemForm {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    create_revision: Revision,
    mod_revision: Revision,
    version: u64,
    #[serde(default)]
    lease: u64,
}

/// Bytes as text when they are UTF-8, else as base64.
pub(super) fn bytes_as_text(bytes: &[u8]) -> Result<String, String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| BASE64.encode(bytes))
}

/// The bytes of a field of base64.
pub(super) fn bytes_from_text(what: &str, base64: &str) -> Result<Bytes, String> {
    BASE64.decode(base64).map(Bytes::from).map_err(|e| format!("{what}: {e}"))
}

/// The bytes of a pair of fields of which at most one may be there.
pub(super) fn text_or_base64(
    what: &str,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<Bytes>, String> {
    match (text, base64) {
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(base64)) => bytes_from_text(&format!("{what}_base64"), &base64).map(Some),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(format!("{what}: both {what} and {what}_base64 are given")),
    }
}

impl<'de> Deserialize<'de> for KeyItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = KeyItemForm::deserialize(deserializer)?;
        let key = text_or_base64("key", form.key, form.key_base64).map_err(D::Error::custom)?;
        Ok(KeyItem {
            key: key.ok_or_else(|| D::Error::missing_field("key"))?,
            value: text_or_base64("value", form.value, form.value_base64).map_err(D::Error::custom)?,
            meta: KeyMeta {
                create_revision: form.create_revision,
                mod_revision: form.mod_revision,
                version: form.version,
                lease: form.lease,
            },
        })
    }
}

/// One page of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeysPage {
    /// The revision that all items were read at.
    pub revision: Revision,
    /// The items, in the order of their keys' bytes.
    pub items: Vec<KeyItem>,
    /// Whether there are keys behind the last item.
    pub more: bool,
    /// The path of the next page at the same revision; there exactly when `more` is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The last line of a stream of keys. A stream that ends without it was cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeysEnd {
    /// Always true; it tells this line from an item.
    pub end: bool,
    /// The revision that all items were read at.
    pub revision: Revision,
    /// How many items the stream had.
    pub count: u64,
    /// Whether a limit cut it short of further keys.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &'static [u8], value: Option<&'static [u8]>) -> KeyItem {
        KeyItem {
            key: Bytes::from_static(key),
            value: value.map(Bytes::from_static),
            meta: KeyMeta { create_revision: 40, mod_revision: 43, version: 2, lease: 0 },
        }
    }

    #[test]
    fn items_look_as_documented_and_come_back() {
        let tail = r#""create_revision":40,"mod_revision":43,"version":2,"lease":0}"#;
        for (item, head) in [
            (item(b"a", Some(b"x")), r#"{"key":"a","value":"x","#),
            (item(b"a", Some(b"")), r#"{"key":"a","value":"","#),
            (item(b"a\"\n", None), r#"{"key":"a\"\n","#),
            (item(b"\xff", Some(b"\x00\xfe")), r#"{"key_base64":"/w==","value_base64":"AP4=","#),
        ] {
            let text = serde_json::to_string(&item).unwrap();
            assert_eq!(text, format!("{head}{tail}"));
            assert_eq!(serde_json::from_str::<KeyItem>(&text).unwrap(), item);
        }
    }

    #[test]
    fn an_item_without_a_key_or_with_two_or_with_bad_base64_is_refused() {
        let tail = r#""create_revision":40,"mod_revision":43,"version":2,"lease":0}"#;
        for head in ["{", r#"{"key":"a","key_base64":"YQ==","#, r#"{"key_base64":"YQ","#, r#"{"key_base64":"*","#] {
            let read = serde_json::from_str::<KeyItem>(&format!("{head}{tail}"));
            assert!(read.is_err(), "{head} was read as {read:?}");
        }
    }

    #[test]
    fn replies_look_as_documented() {
        let write = WriteReply {
            revision: 43,
            create_revision: 40,
            version: 2,
            previous_revision: None,
            lease: None,
            mirrored: None,
        };
        assert_eq!(
            serde_json::to_string(&write).unwrap(),
            r#"{"revision":43,"create_revision":40,"version":2,"previous_revision":null}"#
        );
        let page = KeysPage { revision: 44, items: vec![], more: false, next: None };
        assert_eq!(serde_json::to_string(&page).unwrap(), r#"{"revision":44,"items":[],"more":false}"#);
        let end = KeysEnd { end: true, revision: 44, count: 17, more: false };
        assert_eq!(serde_json::to_string(&end).unwrap(), r#"{"end":true,"revision":44,"count":17,"more":false}"#);
    }
}
