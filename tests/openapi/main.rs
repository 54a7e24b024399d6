//! The OpenAPI document against a running member: what it says is there is there, what is there it says, and real
//! replies are what their schemas say.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod bodies;
mod replies;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::Value;

use support::cluster::Plan;
use support::http::{self, Answer, Connection, Request};
use support::schema::{Schemas, fields};

const METHODS: &[&str] = &["get", "head", "put", "post", "delete", "patch"];
/// A parameter that nothing knows.
const UNHEARD_OF: &str = "unheard_of";
/// Headers of replies that belong to HTTP and not to the API.
const OF_HTTP: &[&str] = &["content-type", "content-length", "transfer-encoding", "date", "connection"];

/// The document of a member, and what may be asked of it.
struct Document(Value);

/// One operation: its path, its method in lower case, what is said of it.
struct Operation<'d> {
    path: &'d str,
    method: &'d str,
    said: &'d Value,
    /// The parameters of the path and its own.
    parameters: Vec<&'d Value>,
}

impl Document {
    fn of(member: SocketAddr) -> Document {
        let answer = http::get(member, "/v1/openapi.json").expect(200);
        assert_eq!(answer.must_have("content-type"), "application/json");
        Document(answer.json())
    }

    fn operations(&self) -> Vec<Operation<'_>> {
        let mut all = Vec::new();
        for (path, item) in fields(&self.0["paths"]) {
            let shared = item["parameters"].as_array().into_iter().flatten();
            for (method, said) in fields(item).iter().filter(|(method, _)| *method != "parameters") {
                let own = said["parameters"].as_array().unwrap();
                let parameters = shared.clone().chain(own).map(|parameter| self.follow(parameter)).collect();
                all.push(Operation { path, method, said, parameters });
            }
        }
        all
    }

    fn operation(&self, id: &str) -> Operation<'_> {
        let found = self.operations().into_iter().find(|operation| operation.said["operationId"] == id);
        found.unwrap_or_else(|| panic!("no operation {id}"))
    }

    /// What stands here, or where it leads.
    fn follow<'d>(&'d self, value: &'d Value) -> &'d Value {
        value["$ref"].as_str().map_or(value, |reference| Schemas::of(&self.0).resolve(reference))
    }
}

impl Operation<'_> {
    fn id(&self) -> &str {
        self.said["operationId"].as_str().unwrap()
    }

    fn names(&self, place: &str) -> BTreeSet<&str> {
        let there = self.parameters.iter().filter(|parameter| parameter["in"] == place);
        there.map(|parameter| parameter["name"].as_str().unwrap()).collect()
    }

    /// A path of this operation on which nothing can go wrong by its names.
    fn some_path(&self) -> String {
        self.path.replace("{key}", "some/key").replace("{id}", "77").replace("{name}", "n1")
    }
}

fn send(member: SocketAddr, method: &str, target: &str) -> Answer {
    let request = Request::new(&method.to_uppercase(), target);
    let request = if ["put", "post", "patch"].contains(&method) { request.body("") } else { request };
    request.send(member)
}

#[test]
fn the_document_is_well_formed_openapi() {
    let cluster = Plan::new(1, 0).start();
    let document = Document::of(cluster.client(0));
    let root = &document.0;
    let known = ["openapi", "info", "servers", "tags", "paths", "components"];
    assert!(fields(root).keys().all(|key| known.contains(&key.as_str())), "{:?}", fields(root).keys());
    assert_eq!(root["openapi"], "3.1.0");
    assert_eq!(root["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(root["info"]["title"].is_string() && root["info"]["license"]["name"].is_string());
    let tags: Vec<&Value> = root["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();

    let schemas = Schemas::of(root);
    let mut seen = Vec::new();
    for (name, schema) in fields(&root["components"]["schemas"]) {
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{name}");
        schemas.walk(schema, &mut seen);
    }
    for header in fields(&root["components"]["headers"]).values() {
        schemas.walk(&header["schema"], &mut seen);
    }
    let mut ids = BTreeSet::new();
    for operation in document.operations() {
        let (id, said) = (operation.id(), operation.said);
        assert!(ids.insert(id.to_owned()), "{id} is there twice");
        assert!(METHODS.contains(&operation.method), "{id}: {}", operation.method);
        assert!(said["summary"].as_str().is_some_and(|text| !text.is_empty()), "{id}");
        assert!(said["tags"].as_array().unwrap().iter().all(|tag| tags.contains(&tag)), "{id}: {}", said["tags"]);
        let in_path: BTreeSet<&str> =
            operation.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        assert_eq!(operation.names("path"), in_path, "{id}");
        let mut places = BTreeSet::new();
        for parameter in &operation.parameters {
            let (name, place) = (parameter["name"].as_str().unwrap(), parameter["in"].as_str().unwrap());
            assert!(places.insert((name, place)), "{id}: {name} stands twice");
            assert!(["path", "query", "header"].contains(&place), "{id}: {name} in {place}");
            assert_eq!(parameter["required"].as_bool().unwrap_or(false), place == "path", "{id}: {name}");
            assert!(!parameter["description"].as_str().unwrap().is_empty(), "{id}: {name}");
            schemas.walk(&parameter["schema"], &mut seen);
        }
        for media in said["requestBody"]["content"].as_object().into_iter().flat_map(|content| content.values()) {
            media.get("schema").into_iter().for_each(|schema| schemas.walk(schema, &mut seen));
        }
        let replies = fields(&said["responses"]);
        assert!(replies.keys().any(|status| status.starts_with('2')), "{id} never succeeds");
        for (status, reply) in replies {
            assert!(status.parse::<u16>().is_ok_and(|status| (200..600).contains(&status)), "{id}: {status}");
            assert!(!reply["description"].as_str().unwrap().is_empty(), "{id}: {status}");
            for header in fields(&reply["headers"]).values() {
                document.follow(header)["schema"].as_object().unwrap();
            }
            for media in reply["content"].as_object().into_iter().flat_map(|content| content.values()) {
                for name in ["schema", "x-item-schema"] {
                    media.get(name).into_iter().for_each(|schema| schemas.walk(schema, &mut seen));
                }
            }
        }
    }
    let named = fields(&root["components"]["schemas"]).keys();
    for name in named {
        assert!(seen.contains(&format!("#/components/schemas/{name}")), "nothing uses the schema {name}");
    }
}

#[test]
fn methods_and_parameters_are_those_of_the_document() {
    let cluster = Plan::new(1, 0).start();
    let member = cluster.client(0);
    let document = Document::of(member);
    let mut methods: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for operation in document.operations() {
        methods.entry(operation.path).or_default().insert(operation.method);
        let target = format!("{}?{UNHEARD_OF}=1", operation.some_path());
        let answer = send(member, operation.method, &target);
        assert_eq!(answer.status, 400, "{} {target}: {answer}", operation.method);
        if operation.method == "head" {
            continue;
        }
        let problem = answer.expect_problem(400, "bad-parameter");
        assert_eq!(problem["field"], UNHEARD_OF, "{problem}");
        // The member names what it knows; nobody knows it better.
        let detail = problem["detail"].as_str().unwrap();
        let accepted: BTreeSet<&str> =
            detail.split_once("known here: ").map(|(_, names)| names.split(", ").collect()).unwrap_or_default();
        assert_eq!(operation.names("query"), accepted, "{}", operation.id());
    }
    for (path, documented) in methods {
        let target = path.replace("{key}", "some/key").replace("{id}", "77").replace("{name}", "n1");
        let answer = Request::new("OPTIONS", &target).send(member).expect(204);
        let mut allowed: BTreeSet<String> = answer.must_have("allow").split(", ").map(str::to_lowercase).collect();
        assert!(allowed.remove("options"), "{answer}");
        assert_eq!(allowed, documented.iter().map(|method| (*method).to_owned()).collect(), "{path}");
        for method in METHODS.iter().filter(|method| !documented.contains(*method)) {
            let answer = send(member, method, &format!("{target}?{UNHEARD_OF}=1"));
            assert_eq!(answer.status, 405, "{method} {path} is not documented: {answer}");
        }
    }
}

#[test]
fn the_bounds_of_parameters_are_those_of_the_document() {
    let cluster = Plan::new(1, 0).start();
    let member = cluster.client(0);
    http::put(member, "/v1/kv/some/key", "x").expect(201);
    let document = Document::of(member);
    let mut tried = 0;
    for operation in document.operations().iter().filter(|operation| operation.method != "head") {
        for parameter in operation.parameters.iter().filter(|parameter| parameter["in"] == "query") {
            let (name, schema) = (parameter["name"].as_str().unwrap(), &parameter["schema"]);
            let mut outside = match schema["type"].as_str().unwrap() {
                "integer" => vec!["x".to_owned(), "-1".to_owned(), "1.5".to_owned()],
                "boolean" => vec!["yes".to_owned()],
                _ if schema["enum"].is_array() => vec!["neither".to_owned()],
                _ if schema["pattern"].is_string() => vec!["5".to_owned(), "5d".to_owned(), "s".to_owned()],
                _ => vec!["%zz".to_owned()],
            };
            outside.extend(schema["minimum"].as_u64().filter(|least| *least > 0).map(|least| (least - 1).to_string()));
            outside.extend(schema["maximum"].as_u64().map(|most| (most + 1).to_string()));
            outside.extend(schema["x-minimum"].as_str().map(|least| format!("{}ms", millis(least) - 1)));
            outside.extend(schema["x-maximum"].as_str().map(|most| format!("{}ms", millis(most) + 1)));
            // A wait makes sense with something to wait for.
            let besides = if name == "wait" { "since=0&" } else { "" };
            for value in outside {
                let target = format!("{}?{besides}{name}={value}", operation.some_path());
                let answer = send(member, operation.method, &target).expect_problem(400, "bad-parameter");
                assert_eq!(answer["field"], name, "{target}: {answer}");
                tried += 1;
            }
            let mut inside: Vec<String> = Vec::new();
            inside.extend(schema["maximum"].as_u64().map(|most| most.to_string()));
            inside.extend(schema["x-maximum"].as_str().map(str::to_owned));
            for value in inside.iter().filter(|_| name != "wait") {
                let target = format!("{}?{besides}{name}={value}", operation.some_path());
                let mut connection = Connection::open(member).unwrap();
                connection.send(&Request::new(&operation.method.to_uppercase(), &target).body("x").bytes()).unwrap();
                let answer = connection.read_stream().unwrap();
                assert_ne!(answer.status, 400, "{target}: {answer}");
            }
        }
        for parameter in operation.parameters.iter().filter(|parameter| parameter["in"] == "header") {
            let name = parameter["name"].as_str().unwrap();
            if operation.path.ends_with("/openapi.json") && name == "If-None-Match" {
                continue;
            }
            let body = if operation.id() == "grantLease" { r#"{"ttl_seconds":30}"# } else { "{}" };
            let request = Request::new(&operation.method.to_uppercase(), &with_range(operation));
            let request = if operation.said["requestBody"].is_object() { request.body(body) } else { request };
            let problem = request.header(name, "not one").send(member).expect_problem(400, "bad-header");
            assert_eq!(problem["field"], name.to_lowercase(), "{}: {problem}", operation.id());
            tried += 1;
        }
    }
    assert!(tried > 100, "only {tried} values were tried");
}

/// A deletion of keys must say which.
fn with_range(operation: &Operation<'_>) -> String {
    let path = operation.some_path();
    if operation.id() == "deleteKeys" { format!("{path}?prefix=none/") } else { path }
}

fn millis(duration: &str) -> u64 {
    let at = duration.find(|c: char| !c.is_ascii_digit()).unwrap();
    let each = match &duration[at..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        unit => panic!("{unit} is no unit"),
    };
    duration[..at].parse::<u64>().unwrap() * each
}

#[test]
fn the_document_is_sent_again_only_when_it_has_changed() {
    let cluster = Plan::new(1, 1).start();
    let first = http::get(cluster.client(0), "/v1/openapi.json").expect(200);
    let etag = first.must_have("etag");
    assert_eq!(first.must_have("cache-control"), "no-cache");
    let ask = |member: usize, known: &str| {
        Request::new("GET", "/v1/openapi.json").header("If-None-Match", known).send(cluster.client(member))
    };
    for known in [etag, "*", &format!("\"other\", {etag}"), &format!("W/{etag}")] {
        let again = ask(1, known).expect(304);
        assert!(again.body.is_empty());
        assert_eq!(again.must_have("etag"), etag);
    }
    assert_eq!(ask(1, "\"other\"").expect(200).body, first.body);
    ask(1, "other").expect_problem(400, "bad-header");
    let head = Request::new("HEAD", "/v1/openapi.json").send(cluster.client(0)).expect(200);
    assert_eq!(head.must_have("content-length"), first.body.len().to_string());
}
