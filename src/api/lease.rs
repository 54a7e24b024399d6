//! Leases: `/v1/leases`.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kv::{bytes_as_text, bytes_from_text};
use crate::model::Revision;

/// The body of `POST /v1/leases`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// How long it lives without a keep-alive.
    #[schemars(range(min = 1, max = 2_592_000))]
    pub ttl_seconds: u64,
    /// Its id; drawn when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_u64))]
    pub id: Option<u64>,
}

/// The reply to `POST /v1/leases`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GrantReply {
    /// Its id.
    pub id: u64,
    /// How long it lives without a keep-alive.
    pub ttl_seconds: u64,
    /// The revision at which it was granted.
    pub revision: Revision,
}

/// A lease: the reply to a keep-alive, and an item of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    /// Its id.
    pub id: u64,
    /// How long it lives without a keep-alive.
    pub ttl_seconds: u64,
}

/// The reply to `GET /v1/leases`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeasesReply {
    /// The leases, by id.
    pub leases: Vec<Lease>,
    /// Whether there are more, behind the last id.
    pub more: bool,
}

/// The reply to `GET /v1/leases/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseReply {
    /// Its id.
    pub id: u64,
    /// How long it lives without a keep-alive.
    pub ttl_seconds: u64,
    /// How long it lives from now on, as the leader counts.
    pub remaining_seconds: f64,
    /// The keys that hang on it.
    pub keys: Vec<LeasedKey>,
    /// Whether there are more keys than these.
    pub more: bool,
}

/// A key in a list of keys: a string, or `{"key_base64":…}` when it is not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "LeasedKeyForm", into = "LeasedKeyForm")]
pub struct LeasedKey(pub Bytes);

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum LeasedKeyForm {
    Text(String),
    Base64 { key_base64: String },
}

impl TryFrom<LeasedKeyForm> for LeasedKey {
    type Error = String;

    fn try_from(form: LeasedKeyForm) -> Result<LeasedKey, String> {
        match form {
            LeasedKeyForm::Text(text) => Ok(LeasedKey(text.into())),
            LeasedKeyForm::Base64 { key_base64 } => bytes_from_text("key_base64", &key_base64).map(LeasedKey),
        }
    }
}

impl From<LeasedKey> for LeasedKeyForm {
    fn from(key: LeasedKey) -> LeasedKeyForm {
        match bytes_as_text(&key.0) {
            Ok(text) => LeasedKeyForm::Text(text),
            Err(key_base64) => LeasedKeyForm::Base64 { key_base64 },
        }
    }
}

/// The reply to `DELETE /v1/leases/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RevokeReply {
    /// The revision after it.
    pub revision: Revision,
    /// How many keys were deleted.
    pub deleted: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_look_as_documented_and_come_back() {
        let lease = LeaseReply {
            id: 7301,
            ttl_seconds: 30,
            remaining_seconds: 12.5,
            keys: vec![LeasedKey(Bytes::from_static(b"a")), LeasedKey(Bytes::from_static(b"\xff"))],
            more: false,
        };
        let text =
            r#"{"id":7301,"ttl_seconds":30,"remaining_seconds":12.5,"keys":["a",{"key_base64":"/w=="}],"more":false}"#;
        assert_eq!(serde_json::to_string(&lease).unwrap(), text);
        assert_eq!(serde_json::from_str::<LeaseReply>(text).unwrap(), lease);
        let grant: GrantRequest = serde_json::from_str(r#"{"ttl_seconds":30}"#).unwrap();
        assert_eq!(grant, GrantRequest { ttl_seconds: 30, id: None });
        assert!(serde_json::from_str::<GrantRequest>(r#"{"ttl":30}"#).is_err());
    }
}
