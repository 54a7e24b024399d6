//! `lifeboat txn`: one transaction, as JSON or in the short form of [`super::words`].

use std::path::PathBuf;

use clap::Args;

use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::keys::{Repeat, repeatable};
use super::output::{Format, json, line};
use super::text::{KeyForm, Source, line_of};
use super::words;
use crate::api::{TxnReply, TxnRequest, TxnResult};

/// `lifeboat txn`.
#[derive(Debug, Args)]
#[command(after_help = "Short form:\n  \
    --if    'KEY exists', 'KEY absent', 'KEY mod|create|version|lease|value ==|!=|<|<=|>|>= VALUE'\n  \
    --then  'put KEY VALUE [LEASE]', 'del KEY', 'del-prefix PREFIX', 'get KEY', 'list PREFIX'\n  \
    --else  the same\n\n\
    Each may be given several times. Without --if the comparisons hold. A word with spaces stands in quotes.\n\
    JSON is as in POST /v1/txn. When the comparisons do not hold, --else is done and the exit code is 4.")]
pub struct TxnArgs {
    /// The transaction as JSON; - reads it from standard input
    #[arg(conflicts_with_all = ["conditions", "then", "otherwise"])]
    json: Option<String>,
    /// Reads the transaction as JSON from a file
    #[arg(long, value_name = "PATH", conflicts_with_all = ["conditions", "then", "otherwise"])]
    file: Option<PathBuf>,
    /// What must hold
    #[arg(long = "if", value_name = "COMPARISON")]
    conditions: Vec<String>,
    /// What is done when it holds
    #[arg(long, value_name = "OPERATION")]
    then: Vec<String>,
    /// What is done when it does not
    #[arg(long = "else", value_name = "OPERATION")]
    otherwise: Vec<String>,
    #[command(flatten)]
    form: KeyForm,
    #[command(flatten)]
    repeat: Repeat,
    #[command(flatten)]
    connect: Connect,
}

impl TxnArgs {
    fn request(&self) -> Result<TxnRequest, Trouble> {
        if self.conditions.is_empty() && self.then.is_empty() && self.otherwise.is_empty() {
            let text = Source::of(self.json.clone(), self.file.clone(), "the transaction")?.read()?;
            return serde_json::from_slice(&text)
                .map_err(|error| Trouble::usage(format!("the transaction cannot be read: {error}")));
        }
        let ops = |parts: &[String]| parts.iter().map(|part| words::op(part, self.form)).collect::<Result<_, _>>();
        let compare = self.conditions.iter().map(|part| words::compare(part, self.form));
        Ok(TxnRequest {
            compare: compare.collect::<Result<_, _>>()?,
            then: ops(&self.then)?,
            otherwise: ops(&self.otherwise)?,
        })
    }
}

/// Does a transaction and prints what came of each operation.
pub async fn txn(args: TxnArgs) -> Result<Exit, Trouble> {
    let client = args.connect.client()?;
    let request = args.request()?;
    let reply = repeatable!(client.txn_of(request), args.repeat).await?;
    match args.connect.format() {
        Format::Json => json(&reply)?,
        _ => lines(&reply).iter().try_for_each(|text| line(text))?,
    }
    Ok(if reply.succeeded { Exit::Done } else { Exit::Condition })
}

/// The reply as plain lines: whether the comparisons held, then a line a result, or a line a key of a range.
fn lines(reply: &TxnReply) -> Vec<String> {
    let held = if reply.succeeded { "then" } else { "else" };
    let mut lines = vec![format!("{held}\t{}", reply.revision)];
    results(&reply.results, &mut lines);
    lines
}

fn results(results: &[TxnResult], lines: &mut Vec<String>) {
    for result in results {
        match result {
            TxnResult::Put { create_revision, version, .. } => {
                lines.push(format!("put\t{create_revision}\t{version}"));
            }
            TxnResult::Delete { deleted, .. } => lines.push(format!("del\t{deleted}")),
            TxnResult::Get { item: None } => lines.push("get".to_owned()),
            TxnResult::Get { item: Some(item) } => lines.push(item_line("get", item)),
            TxnResult::Range { items, .. } => lines.extend(items.iter().map(|item| item_line("list", item))),
            TxnResult::Txn { succeeded, results: nested } => {
                lines.push(format!("txn\t{}", if *succeeded { "then" } else { "else" }));
                self::results(nested, lines);
            }
        }
    }
}

fn item_line(what: &str, item: &crate::api::KeyItem) -> String {
    let value = item.value.as_deref().unwrap_or_default();
    format!("{what}\t{}\t{}\t{}", line_of(&item.key), line_of(value), item.meta.mod_revision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{KeyItem, KeyMeta};

    #[test]
    fn results_are_printed_in_their_order() {
        let meta = KeyMeta { create_revision: 4, mod_revision: 5, version: 2, lease: 0 };
        let item = KeyItem { key: "a".into(), value: Some("x\ty".into()), meta };
        let reply = TxnReply {
            mirrored: None,
            revision: 9,
            succeeded: false,
            results: vec![
                TxnResult::Put { create_revision: 4, version: 3, previous_revision: Some(5), previous: None },
                TxnResult::Delete { deleted: 17, previous_revision: None, previous: None },
                TxnResult::Get { item: None },
                TxnResult::Txn { succeeded: true, results: vec![TxnResult::Get { item: Some(item.clone()) }] },
                TxnResult::Range { items: vec![item.clone(), item], more: false },
            ],
        };
        let expected = [
            "else\t9",
            "put\t4\t3",
            "del\t17",
            "get",
            "txn\tthen",
            "get\ta\tx\\ty\t5",
            "list\ta\tx\\ty\t5",
            "list\ta\tx\\ty\t5",
        ];
        assert_eq!(lines(&reply), expected);
    }
}
