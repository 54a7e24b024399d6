//! Transactions: `POST /v1/txn`.
//!
//! The forms that people write are wider than what they mean (`key` or `key_base64`, a prefix or a start and an end), so
//! each is read into a private form first, checked, and turned into the type that the rest of the program uses.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::KeyItem;
use super::kv::{bytes_as_text, text_or_base64};
use crate::model::Revision;
pub use crate::model::{CompareOp, CompareTarget};

/// If all of `compare` holds, all of `then` is done, else all of `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TxnRequest {
    /// What must hold; nothing: it holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compare: Vec<Compare>,
    /// What is done when it holds.
    #[serde(default)]
    pub then: Vec<TxnOp>,
    /// What is done when it does not.
    #[serde(default, rename = "else", skip_serializing_if = "Vec::is_empty")]
    pub otherwise: Vec<TxnOp>,
}

/// Which keys an operation or a comparison is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// One.
    One(Bytes),
    /// All that begin so.
    Prefix(Bytes),
    /// From `start` up to and without `end`; none: to the last one.
    Range {
        /// The first key.
        start: Bytes,
        /// The first key that is not in it any more.
        end: Option<Bytes>,
    },
}

/// A comparison of what is with what is expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CompareForm", into = "CompareForm")]
pub struct Compare {
    /// Of which keys.
    pub keys: Keys,
    /// How.
    pub op: CompareOp,
    /// What of the key, and with what.
    pub target: CompareTarget,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TxnOp {
    /// Writes a value.
    Put(PutOp),
    /// Deletes a key or a range.
    Delete(DeleteOp),
    /// Reads a key.
    Get(GetOp),
    /// Reads a range.
    Range(RangeOp),
    /// A transaction in the transaction.
    Txn(TxnRequest),
}

/// Writes a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OpForm", into = "OpForm")]
pub struct PutOp {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease it hangs on; 0 for none.
    pub lease: u64,
    /// Whether the result holds what was replaced.
    pub previous: bool,
}

/// Deletes a key or a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OpForm", into = "OpForm")]
pub struct DeleteOp {
    /// Which keys.
    pub keys: Keys,
    /// Whether the result holds what was deleted (one key only).
    pub previous: bool,
}

/// Reads a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OpForm", into = "OpForm")]
pub struct GetOp {
    /// The key.
    pub key: Bytes,
}

/// Reads a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OpForm", into = "OpForm")]
pub struct RangeOp {
    /// Which keys; never one.
    pub keys: Keys,
    /// At most so many.
    pub limit: Option<u64>,
    /// Without values.
    pub keys_only: bool,
}

/// The reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TxnReply {
    /// The revision after it; a new one if it wrote anything.
    pub revision: Revision,
    /// Whether `compare` held.
    pub succeeded: bool,
    /// One result an operation of the branch taken.
    pub results: Vec<TxnResult>,
    /// Only with `durability=mirrored`: whether a mirror in another site had it on its disk in time. It is committed either
    /// way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirrored: Option<bool>,
}

/// What an operation did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TxnResult {
    /// Of a put.
    Put {
        /// When the key was created (again).
        create_revision: Revision,
        /// How many times it was written since.
        version: u64,
        /// The revision of the value it replaced.
        previous_revision: Option<Revision>,
        /// What it replaced, when that was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
        previous: Option<Option<KeyItem>>,
    },
    /// Of a delete.
    Delete {
        /// How many keys.
        deleted: u64,
        /// The revision of the deleted value, of one key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        previous_revision: Option<Revision>,
        /// What it deleted, when that was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
        previous: Option<Option<KeyItem>>,
    },
    /// Of a get.
    Get {
        /// The key; none when it does not exist.
        item: Option<KeyItem>,
    },
    /// Of a range.
    Range {
        /// The keys.
        items: Vec<KeyItem>,
        /// Whether there are more.
        more: bool,
    },
    /// Of a nested transaction.
    Txn {
        /// Whether its `compare` held.
        succeeded: bool,
        /// One result an operation of the branch taken.
        results: Vec<TxnResult>,
    },
}

/// Tells a field that is null from one that is not there.
fn present<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}

/// The fields by which keys are named.
macro_rules! forms {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $name {
            #[serde(default, skip_serializing_if = "Option::is_none")]
            key: Option<String>,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            key_base64: Option<String>,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            prefix: Option<String>,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            prefix_base64: Option<String>,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            start: Option<String>,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            start_base64: Option<String>,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            end: Option<String>,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            end_base64: Option<String>,
            $(#[serde(default, skip_serializing_if = "Option::is_none")] $field: Option<$type>,)*
        }

        impl $name {
            fn set_keys(&mut self, keys: Keys) {
                match keys {
                    Keys::One(key) => (self.key, self.key_base64) = to_text_or_base64(key),
                    Keys::Prefix(prefix) => (self.prefix, self.prefix_base64) = to_text_or_base64(prefix),
                    Keys::Range { start, end } => {
                        (self.start, self.start_base64) = to_text_or_base64(start);
                        if let Some(end) = end {
                            (self.end, self.end_base64) = to_text_or_base64(end);
                        }
                    }
                }
            }

            fn take_keys(&mut self) -> Result<Keys, String> {
                let key = text_or_base64("key", self.key.take(), self.key_base64.take())?;
                let prefix = text_or_base64("prefix", self.prefix.take(), self.prefix_base64.take())?;
                let start = text_or_base64("start", self.start.take(), self.start_base64.take())?;
                let end = text_or_base64("end", self.end.take(), self.end_base64.take())?;
                match (key, prefix, start, end) {
                    (Some(key), None, None, None) => Ok(Keys::One(key)),
                    (None, Some(prefix), None, None) => Ok(Keys::Prefix(prefix)),
                    (None, None, Some(start), end) => Ok(Keys::Range { start, end }),
                    _ => Err("key: exactly one of key, prefix, or start (with or without end) must be given".into()),
                }
            }
        }
    };
}

forms! {
    /// A comparison as it is written.
    CompareForm { target: String, op: CompareOp, value: serde_json::Value, value_base64: String, }
}

forms! {
    /// An operation as it is written.
    OpForm {
        value: String, value_base64: String, lease: u64, previous: bool, limit: u64, keys_only: bool,
    }
}

fn to_text_or_base64(bytes: Bytes) -> (Option<String>, Option<String>) {
    match bytes_as_text(&bytes) {
        Ok(text) => (Some(text), None),
        Err(base64) => (None, Some(base64)),
    }
}

impl TryFrom<CompareForm> for Compare {
    type Error = String;

    fn try_from(mut form: CompareForm) -> Result<Compare, String> {
        let keys = form.take_keys()?;
        let op = form.op.ok_or("op: missing")?;
        let target = form.target.ok_or("target: missing")?;
        if target == "value" {
            let text = match form.value {
                None => None,
                Some(serde_json::Value::String(text)) => Some(text),
                Some(_) => return Err("value: with the target value it must be a string".into()),
            };
            let value = text_or_base64("value", text, form.value_base64)?.ok_or("value: missing")?;
            return Ok(Compare { keys, op, target: CompareTarget::Value(value) });
        }
        if form.value_base64.is_some() {
            return Err(format!("value_base64: cannot be compared with {target}"));
        }
        let number = form.value.ok_or("value: missing")?;
        let number = number.as_u64().ok_or_else(|| format!("value: with the target {target} it must be a number"))?;
        let target = match target.as_str() {
            "mod_revision" => CompareTarget::ModRevision(number),
            "create_revision" => CompareTarget::CreateRevision(number),
            "version" => CompareTarget::Version(number),
            "lease" => CompareTarget::Lease(number),
            other => {
                return Err(format!(
                    "target: {other:?} is none of mod_revision, create_revision, version, lease, value"
                ));
            }
        };
        Ok(Compare { keys, op, target })
    }
}

impl From<Compare> for CompareForm {
    fn from(compare: Compare) -> CompareForm {
        let mut form = CompareForm { op: Some(compare.op), ..CompareForm::default() };
        form.set_keys(compare.keys);
        let (target, number) = match compare.target {
            CompareTarget::ModRevision(number) => ("mod_revision", number),
            CompareTarget::CreateRevision(number) => ("create_revision", number),
            CompareTarget::Version(number) => ("version", number),
            CompareTarget::Lease(number) => ("lease", number),
            CompareTarget::Value(value) => {
                let (text, base64) = to_text_or_base64(value);
                form.target = Some("value".into());
                form.value = text.map(Into::into);
                form.value_base64 = base64;
                return form;
            }
        };
        form.target = Some(target.into());
        form.value = Some(number.into());
        form
    }
}

/// Refuses fields that an operation does not have.
fn refuse(fields: &[(&str, bool)]) -> Result<(), String> {
    match fields.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(format!("{name}: does not belong to this operation")),
        None => Ok(()),
    }
}

impl TryFrom<OpForm> for PutOp {
    type Error = String;

    fn try_from(mut form: OpForm) -> Result<PutOp, String> {
        refuse(&[("limit", form.limit.is_some()), ("keys_only", form.keys_only.is_some())])?;
        let Keys::One(key) = form.take_keys()? else { return Err("key: a put has exactly one".into()) };
        let value = text_or_base64("value", form.value, form.value_base64)?.ok_or("value: missing")?;
        Ok(PutOp { key, value, lease: form.lease.unwrap_or(0), previous: form.previous.unwrap_or(false) })
    }
}

impl From<PutOp> for OpForm {
    fn from(op: PutOp) -> OpForm {
        let (value, value_base64) = to_text_or_base64(op.value);
        let lease = (op.lease != 0).then_some(op.lease);
        let mut form =
            OpForm { value, value_base64, lease, previous: op.previous.then_some(true), ..OpForm::default() };
        form.set_keys(Keys::One(op.key));
        form
    }
}

impl TryFrom<OpForm> for DeleteOp {
    type Error = String;

    fn try_from(mut form: OpForm) -> Result<DeleteOp, String> {
        let value = form.value.is_some() || form.value_base64.is_some();
        let (limit, keys_only) = (form.limit.is_some(), form.keys_only.is_some());
        refuse(&[("value", value), ("lease", form.lease.is_some()), ("limit", limit), ("keys_only", keys_only)])?;
        let keys = form.take_keys()?;
        let previous = form.previous.unwrap_or(false);
        if previous && !matches!(keys, Keys::One(_)) {
            return Err("previous: what a range deletes is not returned; read it first".into());
        }
        Ok(DeleteOp { keys, previous })
    }
}

impl From<DeleteOp> for OpForm {
    fn from(op: DeleteOp) -> OpForm {
        let mut form = OpForm { previous: op.previous.then_some(true), ..OpForm::default() };
        form.set_keys(op.keys);
        form
    }
}

impl TryFrom<OpForm> for GetOp {
    type Error = String;

    fn try_from(mut form: OpForm) -> Result<GetOp, String> {
        let value = form.value.is_some() || form.value_base64.is_some();
        let (limit, keys_only) = (form.limit.is_some(), form.keys_only.is_some());
        refuse(&[("value", value), ("lease", form.lease.is_some()), ("previous", form.previous.is_some())])?;
        refuse(&[("limit", limit), ("keys_only", keys_only)])?;
        match form.take_keys()? {
            Keys::One(key) => Ok(GetOp { key }),
            _ => Err("key: a get has exactly one; a range reads many".into()),
        }
    }
}

impl From<GetOp> for OpForm {
    fn from(op: GetOp) -> OpForm {
        let mut form = OpForm::default();
        form.set_keys(Keys::One(op.key));
        form
    }
}

impl TryFrom<OpForm> for RangeOp {
    type Error = String;

    fn try_from(mut form: OpForm) -> Result<RangeOp, String> {
        let value = form.value.is_some() || form.value_base64.is_some();
        refuse(&[("value", value), ("lease", form.lease.is_some()), ("previous", form.previous.is_some())])?;
        let keys = form.take_keys()?;
        if matches!(keys, Keys::One(_)) {
            return Err("prefix: a range has a prefix or a start; a get reads one key".into());
        }
        Ok(RangeOp { keys, limit: form.limit, keys_only: form.keys_only.unwrap_or(false) })
    }
}

impl From<RangeOp> for OpForm {
    fn from(op: RangeOp) -> OpForm {
        let mut form = OpForm { limit: op.limit, keys_only: op.keys_only.then_some(true), ..OpForm::default() };
        form.set_keys(op.keys);
        form
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENTED: &str = concat!(
        r#"{"compare":[{"key":"a","target":"mod_revision","op":"==","value":42}],"#,
        r#""then":[{"put":{"key":"a","value":"2","previous":true}},{"delete":{"key":"b"}}],"#,
        r#""else":[{"get":{"key":"a"}}]}"#
    );

    #[test]
    fn a_transaction_looks_as_documented_and_comes_back() {
        let read: TxnRequest = serde_json::from_str(DOCUMENTED).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), DOCUMENTED);
        assert_eq!(read.then.len(), 2);
        assert_eq!(
            read.compare,
            vec![Compare {
                keys: Keys::One(Bytes::from_static(b"a")),
                op: CompareOp::Equal,
                target: CompareTarget::ModRevision(42)
            }]
        );
        let all = TxnRequest {
            compare: vec![
                Compare {
                    keys: Keys::Prefix(Bytes::from_static(b"\xff")),
                    op: CompareOp::NotEqual,
                    target: CompareTarget::Value(Bytes::from_static(b"\xfe")),
                },
                Compare {
                    keys: Keys::Range { start: Bytes::from_static(b"a"), end: Some(Bytes::from_static(b"b")) },
                    op: CompareOp::LessOrEqual,
                    target: CompareTarget::Lease(7),
                },
            ],
            then: vec![
                TxnOp::Range(RangeOp { keys: Keys::Prefix(Bytes::new()), limit: Some(4), keys_only: true }),
                TxnOp::Txn(TxnRequest::default()),
            ],
            otherwise: vec![TxnOp::Put(PutOp {
                key: Bytes::from_static(b"k"),
                value: Bytes::from_static(b"\xff"),
                lease: 3,
                previous: false,
            })],
        };
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<TxnRequest>(&text).unwrap(), all, "{text}");
    }

    #[test]
    fn what_is_not_a_transaction_is_refused_by_name() {
        for (bad, named) in [
            (r#"{"compares":[]}"#, "compares"),
            (r#"{"then":[{"put":{"key":"a"}}]}"#, "value"),
            (r#"{"then":[{"put":{"key":"a","value":"1","ttl":"3s"}}]}"#, "ttl"),
            (r#"{"then":[{"put":{"prefix":"a","value":"1"}}]}"#, "exactly one"),
            (r#"{"then":[{"get":{"key":"a","value":"1"}}]}"#, "value"),
            (r#"{"then":[{"get":{"key":"a","key_base64":"YQ=="}}]}"#, "key_base64"),
            (r#"{"then":[{"get":{}}]}"#, "exactly one"),
            (r#"{"then":[{"delete":{"prefix":"a","previous":true}}]}"#, "previous"),
            (r#"{"then":[{"range":{"key":"a"}}]}"#, "prefix"),
            (r#"{"then":[{"frob":{"key":"a"}}]}"#, "frob"),
            (r#"{"compare":[{"key":"a","target":"version","op":"=","value":1}]}"#, "="),
            (r#"{"compare":[{"key":"a","target":"age","op":"==","value":1}]}"#, "age"),
            (r#"{"compare":[{"key":"a","target":"version","op":"==","value":"1"}]}"#, "number"),
            (r#"{"compare":[{"key":"a","target":"value","op":"==","value":1}]}"#, "string"),
            (r#"{"compare":[{"key":"a","target":"value","op":"=="}]}"#, "value"),
        ] {
            let error = serde_json::from_str::<TxnRequest>(bad).unwrap_err().to_string();
            assert!(error.contains(named), "{bad}: {error}");
        }
    }

    #[test]
    fn results_look_as_documented_and_come_back() {
        let put = |previous| TxnResult::Put { create_revision: 4, version: 1, previous_revision: None, previous };
        for (result, text) in [
            (put(None), r#"{"put":{"create_revision":4,"version":1,"previous_revision":null}}"#),
            (put(Some(None)), r#"{"put":{"create_revision":4,"version":1,"previous_revision":null,"previous":null}}"#),
            (
                TxnResult::Delete { deleted: 17, previous_revision: None, previous: None },
                r#"{"delete":{"deleted":17}}"#,
            ),
            (TxnResult::Get { item: None }, r#"{"get":{"item":null}}"#),
            (TxnResult::Range { items: vec![], more: false }, r#"{"range":{"items":[],"more":false}}"#),
            (TxnResult::Txn { succeeded: true, results: vec![] }, r#"{"txn":{"succeeded":true,"results":[]}}"#),
        ] {
            assert_eq!(serde_json::to_string(&result).unwrap(), text);
            assert_eq!(serde_json::from_str::<TxnResult>(text).unwrap(), result);
        }
    }
}
