//! The OpenAPI document, made of the table of operations and the schemas of the wire types.

use std::collections::BTreeMap;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::operations::TAGS;
use super::table::{Body, Content, Form, Kind, Operation, Parameter};
use crate::api::{Problem, ProblemCode};
use crate::http::problem::answer;

const TITLE: &str = "Lifeboat";
const ABOUT: &str = "A Raft-replicated key-value store. Any member takes any request. Values are raw bytes, everything \
    else is JSON, errors are problem documents (RFC 9457). Unknown query parameters are refused with 400. \
    docs/http-api.md says more.";
/// The headers that every reply of a member carries which belongs to a cluster.
const COMMON_HEADERS: &[&str] = &["Lifeboat-Revision", "Lifeboat-Timeline", "Lifeboat-Leader"];
/// Beside the schema of a stream's media type: the schema of each line, or of each event's data. OpenAPI 3.1 has no word
/// for it.
const ITEM_SCHEMA: &str = "x-item-schema";

/// In the order in which people expect it.
#[derive(Serialize)]
struct Document {
    openapi: &'static str,
    info: Value,
    servers: Value,
    tags: Vec<Value>,
    paths: BTreeMap<&'static str, Map<String, Value>>,
    components: Value,
}

/// The document as JSON.
pub fn text() -> String {
    let mut schemas = Schemas::new();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for operation in super::all_operations() {
        let path = paths.entry(operation.path).or_default();
        path.insert(operation.method.into(), operation_object(operation, &mut schemas));
        if operation.method == "get" {
            path.insert("head".into(), head_of(operation, &path["get"]));
        }
        let parameters = path_parameters(operation.path);
        if !parameters.is_empty() {
            path.insert("parameters".into(), parameters.into());
        }
    }
    let components = json!({
        "schemas": schemas.definitions(),
        "headers": reply_headers(),
        "parameters": { "Lifeboat-Timeline": {
            "name": "Lifeboat-Timeline", "in": "header", "schema": { "type": "string", "pattern": "^[0-9a-f]{32}$" },
            "description": "The timeline that the member must be on; it refuses the request with 421 otherwise",
        } },
    });
    let document = Document {
        openapi: "3.1.0",
        info: json!({
            "title": TITLE, "description": ABOUT, "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        }),
        servers: json!([{ "url": "/", "description": "The member that gave this document" }]),
        tags: TAGS.iter().map(|(name, what)| json!({ "name": name, "description": what })).collect(),
        paths,
        components,
    };
    serde_json::to_string(&document).expect("a document of strings and numbers always serialises")
}

/// The schemas of what is sent and of what is taken: the same type may have fields that must be sent and may be left out.
struct Schemas {
    sent: SchemaGenerator,
    taken: SchemaGenerator,
}

impl Schemas {
    fn new() -> Schemas {
        let mut settings = SchemaSettings::draft2020_12();
        settings.definitions_path = "/components/schemas".into();
        // It is the dialect of OpenAPI 3.1.
        settings.meta_schema = None;
        let sent = settings.clone().for_serialize().into_generator();
        Schemas { sent, taken: settings.for_deserialize().into_generator() }
    }

    fn sent(&mut self, form: Form) -> Value {
        form(&mut self.sent).into()
    }

    fn taken(&mut self, form: Form) -> Value {
        form(&mut self.taken).into()
    }

    fn definitions(mut self) -> Map<String, Value> {
        let mut all: Map<String, Value> = self.sent.take_definitions(true);
        for (name, schema) in self.taken.take_definitions(true) {
            let other = all.insert(name.clone(), schema.clone());
            assert!(other.is_none_or(|other| other == schema), "{name} is sent in one form and taken in another");
        }
        all
    }
}

fn operation_object(operation: &Operation, schemas: &mut Schemas) -> Value {
    let mut object = Map::new();
    object.insert("operationId".into(), operation.id.into());
    object.insert("tags".into(), json!([operation.tag]));
    object.insert("summary".into(), operation.summary.into());
    if !operation.about.is_empty() {
        object.insert("description".into(), operation.about.into());
    }
    let mut parameters: Vec<Value> = operation.query.iter().map(|parameter| described(parameter, "query")).collect();
    parameters.extend(operation.headers.iter().map(|parameter| described(parameter, "header")));
    parameters.push(json!({ "$ref": "#/components/parameters/Lifeboat-Timeline" }));
    object.insert("parameters".into(), parameters.into());
    match operation.body {
        None => {}
        Some(Body::Value) => {
            let content = json!({ "application/octet-stream": {} });
            let what = "The value: any bytes. The type it is sent as is not kept";
            object.insert("requestBody".into(), json!({ "content": content, "description": what, "required": true }));
        }
        Some(Body::Json(form)) => {
            let content = json!({ "application/json": { "schema": schemas.taken(form) } });
            object.insert("requestBody".into(), json!({ "content": content, "required": true }));
        }
    }
    object.insert("responses".into(), responses(operation, schemas).into());
    object.into()
}

/// The same question with HEAD: the same heads, no bodies.
fn head_of(operation: &Operation, get: &Value) -> Value {
    let mut head = get.clone();
    head["operationId"] = format!("{}Head", operation.id).into();
    head["summary"] = format!("{}: the head of the reply alone", operation.summary).into();
    if let Some(replies) = head["responses"].as_object_mut() {
        for reply in replies.values_mut().filter_map(Value::as_object_mut) {
            reply.remove("content");
        }
    }
    head
}

fn responses(operation: &Operation, schemas: &mut Schemas) -> Map<String, Value> {
    let mut all = Map::new();
    for reply in operation.replies {
        let mut object = Map::new();
        object.insert("description".into(), reply.what.into());
        object.insert("headers".into(), header_refs(reply.headers));
        let contents = reply.contents.iter().map(|content| content_entry(content, schemas));
        let contents: Map<String, Value> = contents.collect();
        if !contents.is_empty() {
            object.insert("content".into(), contents.into());
        }
        all.insert(reply.status.to_string(), Value::from(object));
    }
    for (status, codes) in operation.problems() {
        let problem = problem_response(operation, status, &codes, schemas);
        match all.get_mut(&status.to_string()) {
            // A health check that fails says why in its own form.
            Some(reply) => {
                reply["content"]["application/problem+json"] = problem["content"]["application/problem+json"].clone()
            }
            None => {
                all.insert(status.to_string(), problem);
            }
        }
    }
    all
}

fn content_entry(content: &Content, schemas: &mut Schemas) -> (String, Value) {
    match content {
        Content::Json(form) => ("application/json".into(), json!({ "schema": schemas.sent(*form) })),
        Content::Bytes => ("application/octet-stream".into(), json!({})),
        Content::Text(media_type) => ((*media_type).into(), json!({ "schema": { "type": "string" } })),
        Content::Stream(media_type, forms) => {
            let items: Vec<Value> = forms.iter().map(|form| schemas.sent(*form)).collect();
            let item = if let [item] = items.as_slice() { item.clone() } else { json!({ "anyOf": items }) };
            ((*media_type).into(), json!({ "schema": { "type": "string" }, ITEM_SCHEMA: item }))
        }
    }
}

fn problem_response(operation: &Operation, status: u16, codes: &[ProblemCode], schemas: &mut Schemas) -> Value {
    let problem = schemas.sent(SchemaGenerator::subschema_for::<Problem>);
    let types: Vec<String> = codes.iter().map(|code| code.urn()).collect();
    let described: Vec<String> = codes.iter().map(|code| format!("`{code}`: {}", code.title())).collect();
    let mut headers = Vec::new();
    if codes.iter().any(|code| answer(*code).2.is_some()) {
        headers.push("Retry-After");
    }
    if codes.contains(&ProblemCode::ConditionFailed) {
        headers.push("ETag");
    }
    if operation.query.iter().any(|parameter| parameter.name == "consistency") {
        headers.push("Lifeboat-Lag-Seconds");
    }
    if operation.headers.iter().any(|parameter| parameter.name == "Idempotency-Key") {
        headers.push("Lifeboat-Replayed");
    }
    let schema = json!({
        "allOf": [problem], "properties": { "type": { "enum": types }, "status": { "const": status } },
    });
    json!({
        "description": described.join(". "),
        "headers": header_refs(&headers),
        "content": { "application/problem+json": { "schema": schema } },
    })
}

fn header_refs(names: &[&str]) -> Value {
    let all = COMMON_HEADERS.iter().chain(names);
    let refs = all.map(|name| ((*name).to_owned(), json!({ "$ref": format!("#/components/headers/{name}") })));
    Value::Object(refs.collect())
}

fn reply_headers() -> Value {
    let header = |what: &str, schema: Value| json!({ "description": what, "schema": schema });
    let number = || json!({ "type": "integer", "minimum": 0 });
    let pattern = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    json!({
        "Lifeboat-Revision": header("This member's newest applied revision when it answered", number()),
        "Lifeboat-Timeline": header("The identity of the timeline it is on", pattern("^[0-9a-f]{32}$")),
        "Lifeboat-Leader": header("The client address of the leader, when known", json!({ "type": "string" })),
        "Lifeboat-Create-Revision": header("The revision at which the key was created", number()),
        "Lifeboat-Version": header("How many times the key was written since, from 1", number()),
        "Lifeboat-Lag-Seconds": header(
            "Of a stale read: how old it may be at most, in seconds", pattern("^([0-9]+\\.[0-9]{3}|unknown)$")
        ),
        "Lifeboat-Replayed": header("`true`: the outcome of an earlier request with this key", pattern("^true$")),
        "Lifeboat-Snapshot-Bytes": header("About how many bytes it will have", number()),
        "ETag": header("The revision of the key's last write in quotes; of this document, its hash", pattern("^\"[0-9a-f]+\"$")),
        "Cache-Control": header("`no-cache`: ask again each time", pattern("^no-cache$")),
        "Retry-After": header("When to try again, in seconds", number()),
    })
}

/// A query parameter or a header of a request.
fn described(parameter: &Parameter, place: &str) -> Value {
    let schema = match parameter.kind {
        Kind::Number { min, max, default } => {
            let mut schema = json!({ "type": "integer", "format": "uint64", "minimum": min });
            if let Some(max) = max {
                schema["maximum"] = max.into();
            }
            if let Some(default) = default {
                schema["default"] = default.into();
            }
            schema
        }
        Kind::Switch => json!({ "type": "boolean", "default": false }),
        Kind::Duration { min, max, default } => {
            let mut schema = json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" });
            for (name, value) in [("x-minimum", min), ("x-maximum", max), ("default", default)] {
                if let Some(value) = value {
                    schema[name] = value.into();
                }
            }
            schema
        }
        Kind::Choice(words) => json!({ "type": "string", "enum": words }),
        Kind::KeyBytes => json!({ "type": "string" }),
        Kind::ETags => json!({ "type": "string", "pattern": "^(\\*|\"[0-9]+\"( *, *\"[0-9]+\")*)$" }),
        Kind::Token => json!({ "type": "string", "pattern": "^[!-~]{1,255}$" }),
    };
    let mut object = json!({
        "name": parameter.name, "in": place, "required": false, "schema": schema, "description": parameter.what,
    });
    if place == "query" && matches!(parameter.kind, Kind::KeyBytes) {
        // Bytes that are percent-encoded by the client; a slash may stand as it is.
        object["allowReserved"] = true.into();
    }
    object
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameter = |name: &str| {
        let (schema, what) = match name {
            "key" => (
                json!({ "type": "string", "minLength": 1 }),
                "The key: 1 to 4096 bytes, percent-encoded. Everything behind `/v1/kv/` belongs to it, slashes too",
            ),
            "id" => (json!({ "type": "integer", "minimum": 1, "maximum": (1u64 << 53) - 1 }), "The id of the lease"),
            "file" => (json!({ "type": "string", "minLength": 1 }), "The name of the file"),
            "name" => (json!({ "type": "string", "minLength": 1 }), "The name of the member, or of the sequence"),
            other => unreachable!("the path parameter {other} is described here"),
        };
        json!({ "name": name, "in": "path", "required": true, "schema": schema, "description": what })
    };
    names.map(parameter).collect()
}
