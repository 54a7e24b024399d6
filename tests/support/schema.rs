//! Whether a JSON document is what a JSON schema says: the part of the dialect of 2020-12 that our own schemas use.
//!
//! A keyword that is not known here fails the test instead of being passed over, so a schema cannot say more than what
//! is checked. `format`, `contentEncoding` and `default` are remarks; what they mean is not checked.

use serde_json::{Map, Value};

/// Keywords that say nothing about what is valid.
const REMARKS: &[&str] = &["description", "title", "default", "format", "contentEncoding", "x-minimum", "x-maximum"];

/// A document with schemas that refer to each other by `#/…`.
pub struct Schemas<'d> {
    document: &'d Value,
}

impl<'d> Schemas<'d> {
    /// The schemas in this document.
    pub fn of(document: &'d Value) -> Schemas<'d> {
        Schemas { document }
    }

    /// What a reference points at.
    pub fn resolve(&self, reference: &str) -> &'d Value {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leads out of the document"));
        self.document.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
    }

    /// Everything that is wrong with `value`, each with its place; nothing: it is valid.
    pub fn check(&self, schema: &Value, value: &Value) -> Vec<String> {
        let mut wrong = Vec::new();
        self.look(schema, value, "$", &mut wrong);
        wrong
    }

    /// Whether `value` is valid.
    pub fn accepts(&self, schema: &Value, value: &Value) -> bool {
        self.check(schema, value).is_empty()
    }

    fn look(&self, schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
        let keywords = match schema {
            Value::Bool(true) => return,
            Value::Bool(false) => return wrong.push(format!("{at}: nothing is allowed here")),
            Value::Object(keywords) => keywords,
            other => panic!("{other} is no schema"),
        };
        for (keyword, rule) in keywords {
            let rules = || rule.as_array().unwrap_or_else(|| panic!("{keyword} is no list: {rule}")).iter();
            let mut expect = |holds: bool, what: &str| {
                if !holds {
                    wrong.push(format!("{at}: {value} {what} {rule}"));
                }
            };
            match keyword.as_str() {
                "$ref" => self.look(self.resolve(rule.as_str().unwrap()), value, at, wrong),
                "type" => match rule {
                    Value::Array(types) => {
                        expect(types.iter().any(|one| is_of_type(value, one)), "has none of the types")
                    }
                    one => expect(is_of_type(value, one), "has not the type"),
                },
                "enum" => expect(rules().any(|one| one == value), "is none of"),
                "const" => expect(rule == value, "is not"),
                "minimum" => expect(value.as_f64().is_none_or(|n| n >= rule.as_f64().unwrap()), "is less than"),
                "maximum" => expect(value.as_f64().is_none_or(|n| n <= rule.as_f64().unwrap()), "is more than"),
                "minLength" => expect(
                    value.as_str().is_none_or(|text| text.chars().count() as u64 >= rule.as_u64().unwrap()),
                    "is shorter than",
                ),
                "pattern" => expect(
                    value.as_str().is_none_or(|text| matches_pattern(rule.as_str().unwrap(), text)),
                    "does not match",
                ),
                "allOf" => rules().for_each(|one| self.look(one, value, at, wrong)),
                "anyOf" => expect(rules().any(|one| self.accepts(one, value)), "is valid by none of"),
                "oneOf" => {
                    let valid = rules().filter(|one| self.accepts(one, value)).count();
                    expect(valid == 1, &format!("is valid by {valid} instead of one of"));
                }
                "not" => expect(!self.accepts(rule, value), "is valid by"),
                "if" => {
                    let branch = if self.accepts(rule, value) { "then" } else { "else" };
                    if let Some(branch) = keywords.get(branch) {
                        self.look(branch, value, at, wrong);
                    }
                }
                "then" | "else" => assert!(keywords.contains_key("if"), "{keyword} without if"),
                "required" => {
                    if let Value::Object(fields) = value {
                        for name in rules().map(|name| name.as_str().unwrap()) {
                            expect(fields.contains_key(name), &format!("lacks {name} of"));
                        }
                    }
                }
                "properties" => {
                    if let Value::Object(fields) = value {
                        for (name, schema) in rule.as_object().unwrap() {
                            if let Some(field) = fields.get(name) {
                                self.look(schema, field, &format!("{at}.{name}"), wrong);
                            }
                        }
                    }
                }
                "additionalProperties" => {
                    if let Value::Object(fields) = value {
                        let known = |name: &String| keywords.get("properties").is_some_and(|p| p.get(name).is_some());
                        for (name, field) in fields.iter().filter(|(name, _)| !known(name)) {
                            self.look(rule, field, &format!("{at}.{name}"), wrong);
                        }
                    }
                }
                "items" => {
                    for (number, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.look(rule, item, &format!("{at}[{number}]"), wrong);
                    }
                }
                remark if REMARKS.contains(&remark) => {}
                unknown => panic!("the keyword {unknown} at {at} is not known to this checker"),
            }
        }
    }

    /// Walks every schema that can be reached from this one, so that a keyword or a reference that is wrong is found
    /// also where no value leads.
    pub fn walk(&self, schema: &Value, seen: &mut Vec<String>) {
        let Value::Object(keywords) = schema else { return assert!(schema.is_boolean(), "{schema} is no schema") };
        for (keyword, rule) in keywords {
            match keyword.as_str() {
                "$ref" => {
                    let name = rule.as_str().unwrap().to_owned();
                    let target = self.resolve(&name);
                    if !seen.contains(&name) {
                        seen.push(name);
                        self.walk(target, seen);
                    }
                }
                "properties" => rule.as_object().unwrap().values().for_each(|schema| self.walk(schema, seen)),
                "allOf" | "anyOf" | "oneOf" => {
                    assert!(rule.as_array().is_some_and(|all| !all.is_empty()), "{keyword} of nothing in {schema}");
                    rule.as_array().unwrap().iter().for_each(|schema| self.walk(schema, seen));
                }
                "items" | "not" | "if" | "then" | "else" | "additionalProperties" => self.walk(rule, seen),
                "type" => {
                    let types = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                    types.iter().for_each(|one| assert!(TYPES.contains(&one.as_str().unwrap()), "{rule} is no type"));
                }
                "pattern" => drop(matches_pattern(rule.as_str().unwrap(), "")),
                "enum" | "required" => assert!(rule.is_array(), "{keyword} is no list in {schema}"),
                "minimum" | "maximum" | "minLength" => assert!(rule.is_number(), "{keyword} is no number in {schema}"),
                "const" => {}
                remark => assert!(REMARKS.contains(&remark), "{remark} is not known to this checker, in {schema}"),
            }
        }
    }
}

const TYPES: &[&str] = &["null", "boolean", "integer", "number", "string", "array", "object"];

fn is_of_type(value: &Value, name: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64() || value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    }
}

/// The patterns of our schemas, each with what it means: there are so few that a table says more than an engine.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match pattern {
        "^[0-9a-f]{16}$" => text.len() == 16 && hex(text),
        "^[0-9a-f]{32}$" => text.len() == 32 && hex(text),
        "^[0-9]+(ms|s|m|h)$" => ["ms", "s", "m", "h"].iter().any(|unit| text.strip_suffix(unit).is_some_and(digits)),
        "^([0-9]+\\.[0-9]{3}|unknown)$" => {
            let number =
                text.split_once('.').is_some_and(|(whole, part)| digits(whole) && digits(part) && part.len() == 3);
            number || text == "unknown"
        }
        "^\"[0-9a-f]+\"$" => {
            let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
            inner.is_some_and(|inner| !inner.is_empty() && hex(inner))
        }
        "^(\\*|\"[0-9]+\"( *, *\"[0-9]+\")*)$" => {
            let tag = |tag: &str| tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).is_some_and(digits);
            text == "*" || text.split(',').all(|part| tag(part.trim_matches(' ')))
        }
        "^[!-~]{1,255}$" => (1..=255).contains(&text.len()) && text.bytes().all(|byte| (b'!'..=b'~').contains(&byte)),
        "^true$" | "^no-cache$" => pattern[1..pattern.len() - 1] == *text,
        unknown => panic!("the pattern {unknown} is not known to this checker"),
    }
}

/// The fields of an object; fails when it is none.
#[track_caller]
pub fn fields(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("{value} is no object"))
}
