//! The short form of transactions: `--if 'a mod == 42' --then 'put a 2' --else 'get a'`.
//!
//! A part is words, separated by spaces. A word in quotes may have spaces: `'it''s'` is taken as it is, in `"…"` a
//! backslash takes the next character as it is. Nothing else is special. What is not understood is refused, with what
//! would have been.

use bytes::Bytes;

use super::exit::Trouble;
use super::text::KeyForm;
use crate::api::{Compare, CompareOp, CompareTarget, DeleteOp, GetOp, Keys, PutOp, RangeOp, TxnOp};

/// What a comparison looks like.
const COMPARE_FORMS: &str = "KEY exists, KEY absent, or KEY mod|create|version|lease|value ==|!=|<|<=|>|>= VALUE";
/// What an operation looks like.
const OP_FORMS: &str = "put KEY VALUE [LEASE], del KEY, del-prefix PREFIX, get KEY, or list PREFIX";

/// Cuts a part into words.
pub(super) fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(words);
        }
        let mut word = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
            match c {
                '\'' => loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("a ' is not closed".to_owned()),
                    }
                },
                '"' => loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => word.push(chars.next().ok_or("a \" is not closed")?),
                        Some(c) => word.push(c),
                        None => return Err("a \" is not closed".to_owned()),
                    }
                },
                c => word.push(c),
            }
        }
        words.push(word);
    }
}

fn wrong(part: &str, why: &str, forms: &str) -> Trouble {
    Trouble::usage(format!("{part:?}: {why}")).hint(format!("it is: {forms}"))
}

fn number(part: &str, text: &str) -> Result<u64, Trouble> {
    text.parse().map_err(|_| wrong(part, &format!("{text:?} is not a number"), COMPARE_FORMS))
}

/// Reads a comparison.
pub fn compare(part: &str, form: KeyForm) -> Result<Compare, Trouble> {
    let words = words(part).map_err(|why| wrong(part, &why, COMPARE_FORMS))?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (key, op, target) = match words[..] {
        [key, "exists"] => (key, CompareOp::NotEqual, CompareTarget::CreateRevision(0)),
        [key, "absent"] => (key, CompareOp::Equal, CompareTarget::CreateRevision(0)),
        [key, what, op, value] => {
            let op = match op {
                "==" => CompareOp::Equal,
                "!=" => CompareOp::NotEqual,
                "<" => CompareOp::Less,
                "<=" => CompareOp::LessOrEqual,
                ">" => CompareOp::Greater,
                ">=" => CompareOp::GreaterOrEqual,
                _ => return Err(wrong(part, &format!("{op:?} does not compare"), COMPARE_FORMS)),
            };
            let target = match what {
                "mod" => CompareTarget::ModRevision(number(part, value)?),
                "create" => CompareTarget::CreateRevision(number(part, value)?),
                "version" => CompareTarget::Version(number(part, value)?),
                "lease" => CompareTarget::Lease(number(part, value)?),
                "value" => CompareTarget::Value(Bytes::copy_from_slice(value.as_bytes())),
                _ => return Err(wrong(part, &format!("a key has no {what:?}"), COMPARE_FORMS)),
            };
            (key, op, target)
        }
        _ => return Err(wrong(part, "this is no comparison", COMPARE_FORMS)),
    };
    Ok(Compare { keys: Keys::One(form.read(key)?), op, target })
}

/// Reads an operation.
pub fn op(part: &str, form: KeyForm) -> Result<TxnOp, Trouble> {
    let words = words(part).map_err(|why| wrong(part, &why, OP_FORMS))?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let put = |key: &str, value: &str, lease: u64| {
        let value = Bytes::copy_from_slice(value.as_bytes());
        Ok(TxnOp::Put(PutOp { key: form.read(key)?, value, lease, previous: false }))
    };
    match words[..] {
        ["put", key, value] => put(key, value, 0),
        ["put", key, value, lease] => {
            let id = lease.parse().ok().filter(|id| *id > 0);
            let id = id.ok_or_else(|| wrong(part, &format!("{lease:?} is not a lease"), OP_FORMS))?;
            put(key, value, id)
        }
        ["del", key] => Ok(TxnOp::Delete(DeleteOp { keys: Keys::One(form.read(key)?), previous: false })),
        ["del-prefix", prefix] => {
            Ok(TxnOp::Delete(DeleteOp { keys: Keys::Prefix(form.read(prefix)?), previous: false }))
        }
        ["get", key] => Ok(TxnOp::Get(GetOp { key: form.read(key)? })),
        ["list", prefix] => {
            Ok(TxnOp::Range(RangeOp { keys: Keys::Prefix(form.read(prefix)?), limit: None, keys_only: false }))
        }
        _ => Err(wrong(part, "this is no operation", OP_FORMS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_may_be_quoted() {
        for (text, expected) in [
            ("put a 2", vec!["put", "a", "2"]),
            ("  put 'a b'  \"c \\\" \\\\d\" ", vec!["put", "a b", "c \" \\d"]),
            ("put a ''", vec!["put", "a", ""]),
            ("a'b'\"c\"", vec!["abc"]),
            ("put a\\b 'c\\d'", vec!["put", "a\\b", "c\\d"]),
            ("", vec![]),
        ] {
            assert_eq!(words(text).unwrap(), expected, "{text}");
        }
        for open in ["put 'a", "put \"a", "put \"a\\"] {
            assert!(words(open).is_err(), "{open}");
        }
    }

    #[test]
    fn parts_mean_what_the_api_calls_them() {
        let form = KeyForm::default();
        let json = |part: &str| serde_json::to_string(&compare(part, form).unwrap()).unwrap();
        assert_eq!(json("a mod == 42"), r#"{"key":"a","target":"mod_revision","op":"==","value":42}"#);
        assert_eq!(json("a absent"), r#"{"key":"a","target":"create_revision","op":"==","value":0}"#);
        assert_eq!(json("a exists"), r#"{"key":"a","target":"create_revision","op":"!=","value":0}"#);
        assert_eq!(json("'a b' value >= 'c d'"), r#"{"key":"a b","target":"value","op":">=","value":"c d"}"#);
        let json = |part: &str| serde_json::to_string(&op(part, form).unwrap()).unwrap();
        assert_eq!(json("put a 2"), r#"{"put":{"key":"a","value":"2"}}"#);
        assert_eq!(json("put a 2 77"), r#"{"put":{"key":"a","value":"2","lease":77}}"#);
        assert_eq!(json("del a"), r#"{"delete":{"key":"a"}}"#);
        assert_eq!(json("del-prefix a/"), r#"{"delete":{"prefix":"a/"}}"#);
        assert_eq!(json("get a"), r#"{"get":{"key":"a"}}"#);
        assert_eq!(json("list a/"), r#"{"range":{"prefix":"a/"}}"#);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let form = KeyForm::default();
        for bad in ["", "a", "a mod 42", "a mod = 42", "a age == 42", "a mod == x", "a mod == 4 2", "a Exists"] {
            let trouble = compare(bad, form).unwrap_err();
            assert!(trouble.hint.unwrap().contains("absent"), "{bad}");
        }
        for bad in ["", "put a", "put a b c", "put a b 0", "put a b 1 2", "delete a", "get", "get a b", "list"] {
            let trouble = op(bad, form).unwrap_err();
            assert!(trouble.hint.unwrap().contains("del-prefix"), "{bad}");
        }
    }
}
