//! The schemas of forms that serde is told by hand: a key in `key` or `key_base64`, operations with the fields of their
//! kind, ids as digits.
//!
//! Everything else derives its schema. What these say is held against what a member takes and sends by
//! `tests/openapi`: a form that is refused there is refused here, and the other way round.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::{Compare, CompareOp, DeleteChange, DeleteOp, GetOp, KeyItem, PutOp, RangeOp};

/// The largest id of a lease; 0 stands for none.
const MAX_LEASE_ID: u64 = (1 << 53) - 1;

/// A member id in JSON.
pub struct MemberIdText;

impl JsonSchema for MemberIdText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "MemberId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9a-f]{16}$" })
    }
}

/// The two fields of which one holds some bytes.
fn bytes_fields(name: &str, what: &str) -> [(String, Value); 2] {
    let text = json!({ "type": "string", "description": format!("{what}, when it is valid UTF-8") });
    let base64 = json!({
        "type": "string", "contentEncoding": "base64",
        "description": format!("{what}, in base64 (standard alphabet, padded)"),
    });
    [(name.to_owned(), text), (format!("{name}_base64"), base64)]
}

/// That exactly one of the fields of these names is given.
fn exactly_one(names: &[&str]) -> Value {
    let each = names.iter().flat_map(|name| [(*name).to_owned(), format!("{name}_base64")]);
    let each: Vec<Value> = each.map(|field| json!({ "required": [field] })).collect();
    json!({ "oneOf": each })
}

/// That not both fields of this name are given.
fn at_most_one(name: &str) -> Value {
    json!({ "not": { "required": [name, format!("{name}_base64")] } })
}

fn whole_number(what: &str) -> Value {
    json!({ "type": "integer", "minimum": 0, "format": "uint64", "description": what })
}

fn switch(what: &str) -> Value {
    json!({ "type": "boolean", "default": false, "description": what })
}

fn object(properties: Map<String, Value>, required: &[&str], rules: Vec<Value>) -> Schema {
    json_schema!({ "type": "object", "properties": properties, "required": required, "allOf": rules })
}

/// An object that has no other fields.
fn strict(mut schema: Schema, what: &str) -> Schema {
    schema.insert("additionalProperties".into(), false.into());
    schema.insert("description".into(), what.into());
    schema
}

/// The fields that name one key or a range, and the rules of which may stand together.
fn keys_fields() -> (Map<String, Value>, Vec<Value>) {
    let mut properties = Map::new();
    properties.extend(bytes_fields("key", "The key"));
    properties.extend(range_fields());
    (properties, vec![exactly_one(&["key", "prefix", "start"]), end_needs_start(), at_most_one("end")])
}

fn range_fields() -> impl Iterator<Item = (String, Value)> {
    let prefix = bytes_fields("prefix", "All keys that begin so");
    let start = bytes_fields("start", "The first key");
    let end = bytes_fields("end", "The first key that is not meant any more; none: to the last key");
    prefix.into_iter().chain(start).chain(end)
}

fn end_needs_start() -> Value {
    let either = |name: &str| json!({ "anyOf": exactly_one(&[name])["oneOf"] });
    json!({ "if": either("end"), "then": either("start") })
}

/// Implements the schema of a type as an expression over a generator.
macro_rules! by_hand {
    ($($type:ident = |$generator:ident| $schema:expr;)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    )*};
}

by_hand! {
    KeyItem = |_generator| {
        let mut properties = Map::new();
        properties.extend(bytes_fields("key", "The key"));
        properties.extend(bytes_fields("value", "The value; neither field when only keys were asked for"));
        properties.insert("create_revision".into(), whole_number("The revision at which the key was created"));
        properties.insert("mod_revision".into(), whole_number("The revision of its last write"));
        properties.insert("version".into(), whole_number("How many times it was written since, from 1"));
        properties.insert("lease".into(), whole_number("The lease it hangs on; 0 for none"));
        let rules = vec![exactly_one(&["key"]), at_most_one("value")];
        object(properties, &["create_revision", "mod_revision", "version", "lease"], rules)
    };
    DeleteChange = |generator| {
        let mut properties = Map::new();
        properties.extend(bytes_fields("key", "The key that was deleted"));
        properties.insert("previous".into(), generator.subschema_for::<KeyItem>().into());
        object(properties, &[], vec![exactly_one(&["key"])])
    };
    PutOp = |_generator| {
        let mut properties = Map::new();
        properties.extend(bytes_fields("key", "The key"));
        properties.extend(bytes_fields("value", "The value"));
        let mut lease = whole_number("The lease it hangs on; 0 for none");
        lease["maximum"] = MAX_LEASE_ID.into();
        properties.insert("lease".into(), lease);
        properties.insert("previous".into(), switch("Whether the result holds what was replaced"));
        strict(object(properties, &[], vec![exactly_one(&["key"]), exactly_one(&["value"])]), "Writes a value.")
    };
    DeleteOp = |_generator| {
        let (mut properties, mut rules) = keys_fields();
        properties.insert("previous".into(), switch("Whether the result holds what was deleted (one key only)"));
        let asked = json!({ "properties": { "previous": { "const": true } }, "required": ["previous"] });
        rules.push(json!({ "if": asked, "then": exactly_one(&["key"]) }));
        strict(object(properties, &[], rules), "Deletes a key or a range.")
    };
    GetOp = |_generator| {
        let properties = bytes_fields("key", "The key").into_iter().collect();
        strict(object(properties, &[], vec![exactly_one(&["key"])]), "Reads a key.")
    };
    RangeOp = |_generator| {
        let mut properties: Map<String, Value> = range_fields().collect();
        let mut limit = whole_number("At most so many keys");
        (limit["minimum"], limit["maximum"], limit["default"]) = (1.into(), 1000.into(), 1000.into());
        properties.insert("limit".into(), limit);
        properties.insert("keys_only".into(), switch("Without values"));
        let rules = vec![exactly_one(&["prefix", "start"]), end_needs_start(), at_most_one("end")];
        strict(object(properties, &[], rules), "Reads a range.")
    };
    Compare = |generator| {
        let (mut properties, mut rules) = keys_fields();
        let targets = ["mod_revision", "create_revision", "version", "lease", "value"];
        properties.insert("target".into(), json!({ "enum": targets, "description": "What of the key is compared" }));
        properties.insert("op".into(), generator.subschema_for::<CompareOp>().into());
        let value = json!({ "type": ["integer", "string"], "description": "What it is compared with" });
        properties.insert("value".into(), value);
        properties.extend(bytes_fields("value", "What the value is compared with").into_iter().skip(1));
        let bytes = json!({
            "properties": { "target": { "const": "value" }, "value": { "type": "string" } },
            "allOf": [exactly_one(&["value"])],
        });
        let number = json!({
            "properties": {
                "target": { "enum": targets[..4] },
                "value": { "type": "integer", "minimum": 0, "format": "uint64" },
                "value_base64": false,
            },
            "required": ["value"],
        });
        rules.push(json!({ "oneOf": [number, bytes] }));
        strict(object(properties, &["target", "op"], rules), "Compares what is with what is expected.")
    };
}
