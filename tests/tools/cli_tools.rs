//! The commands for people against a real cluster: what they print, what they read, and what they end with.
//!
//! One cluster serves most of the checks, each with keys of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::support::cluster::{Cluster, Plan};
use crate::support::{PATIENCE, wait_for};
use serde_json::Value;

/// Runs commands against a cluster.
struct Tool {
    endpoints: String,
}

impl Tool {
    fn of(cluster: &Cluster) -> Tool {
        let endpoints: Vec<String> = cluster.clients().iter().map(|address| format!("http://{address}")).collect();
        Tool { endpoints: endpoints.join(",") }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LIFEBOAT_")) {
            command.env_remove(name);
        }
        command.args(arguments).env("LIFEBOAT_ENDPOINTS", &self.endpoints).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Fails unless the command ends with this code. Gives what it printed.
    #[track_caller]
    fn ends(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (said, printed) = (text(&output.stderr), text(&output.stdout));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{printed}\n{said}");
        if code == 0 {
            assert_eq!(said, "", "{arguments:?} complains");
        } else if code != 4 || !said.is_empty() {
            let command = arguments[0];
            assert!(said.starts_with(&format!("lifeboat {command}: ")) || said.starts_with("error: "), "{said}");
        }
        printed
    }

    #[track_caller]
    fn prints(&self, arguments: &[&str]) -> String {
        self.ends(0, arguments)
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.prints(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{arguments:?}: {error} in {printed}"))
    }

    /// What a command complains about.
    #[track_caller]
    fn complains(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stderr)
    }

    #[track_caller]
    fn fed(&self, input: &[u8], arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    fn spawn(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Running { child, lines, seen: Vec::new() }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A command that goes on. Killed when dropped.
struct Running {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    #[track_caller]
    fn line(&mut self) -> String {
        let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
            panic!("waited in vain for a line behind {:?}; ended: {:?}", self.seen, self.child.try_wait());
        };
        self.seen.push(line.clone());
        line
    }

    fn signal(&self, signal: &str) {
        let script = format!("kill -{signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    }

    #[track_caller]
    fn code(&mut self) -> i32 {
        wait_for("the command to end", || self.child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()))
            .code()
            .unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_commands_do_what_their_help_says() {
    let cluster = Plan::new(3, 1).start();
    let tool = Tool::of(&cluster);
    keys(&tool, &cluster);
    ranges(&tool);
    transactions(&tool);
    watches(&tool);
    leases(&tool);
    sequences(&tool);
    pauses(&tool);
    locks(&tool);
    elections(&tool);
    about_the_cluster(&tool);
    benchmarks(&tool);
    an_address_without_a_member(&tool);
}

fn sequences(tool: &Tool) {
    assert_eq!(tool.prints(&["seq", "tickets", "--step", "50"]), "1\t1\n");
    assert_eq!(tool.prints(&["seq", "tickets", "--count", "10"]), "2\t11\n");
    assert_eq!(tool.prints(&["seq", "tickets", "-o", "table"]), "12\n");
    assert_eq!(tool.json(&["seq", "tickets", "--idempotency-key", "t1"])["first"], 13);
    assert_eq!(tool.json(&["seq", "tickets", "--idempotency-key", "t1"])["first"], 13);
    assert_eq!(tool.prints(&["seq", "tickets", "--show"]), "13\t50\t0\n");
    assert_eq!(tool.json(&["seq", "tickets", "--show"])["unique"], true);
    assert!(tool.complains(1, &["seq", "tickets", "--step", "51"]).contains("step 50"));
    tool.ends(3, &["seq", "none", "--show"]);
    tool.ends(2, &["seq", "tickets", "--count", "0"]);
}

fn pauses(tool: &Tool) {
    assert_eq!(tool.prints(&["maintenance", "status"]), "none\n");
    let begun = tool.prints(&["maintenance", "start", "moving racks", "--until", "10m"]);
    assert!(begun.starts_with("active\t") && begun.ends_with("Z\twrites\tmoving racks\n"), "{begun:?}");
    assert_eq!(tool.json(&["maintenance", "status"])["message"], "moving racks");
    assert!(tool.complains(6, &["put", "paused", "1", "--timeout", "5s"]).contains("moving racks"));
    assert!(tool.complains(1, &["maintenance", "start", "m", "--until", "soon"]).contains("30m"));
    assert_eq!(tool.prints(&["maintenance", "end"]), "ended\n");
    assert_eq!(tool.prints(&["maintenance", "end"]), "none\n");
    tool.prints(&["put", "paused", "1"]);
    tool.prints(&["del", "paused"]);
}

fn keys(tool: &Tool, cluster: &Cluster) {
    let revision = tool.prints(&["put", "k/a", "one"]).trim().parse::<u64>().unwrap();
    assert_eq!(tool.prints(&["get", "k/a"]), "one", "byte for byte, without a line end");
    let item = tool.json(&["get", "k/a"]);
    assert_eq!((item["key"].as_str(), item["value"].as_str()), (Some("k/a"), Some("one")));
    assert_eq!(item["mod_revision"], revision);
    let reply = tool.json(&["put", "k/a", "two", "--if-revision", &revision.to_string()]);
    assert_eq!(reply["previous_revision"], revision);
    assert_eq!(tool.prints(&["get", "k/a", "--rev", &revision.to_string()]), "one");
    assert_eq!(tool.prints(&["get", "k/a", "--max-lag", "1m"]), "two");
    // What does not hold, does not exist, or is wrong.
    tool.ends(4, &["put", "k/a", "x", "--if-absent"]);
    tool.ends(4, &["put", "k/none", "x", "--if-present"]);
    assert!(tool.complains(3, &["get", "k/none"]).contains("\"k/none\" does not exist"));
    assert!(tool.complains(2, &["put", "k/a"]).contains("--file"));
    assert!(tool.complains(2, &["put", "k/a", "x", "--file", "/none"]).contains("twice"));
    assert!(tool.complains(2, &["get"]).contains("<KEY>"));
    assert!(tool.complains(1, &["get", "k/a", "--rev", "999999"]).contains("does not exist yet"));
    assert_eq!(tool.prints(&["get", "k/a"]), "two", "nothing was changed");
    // Bytes that are no text, from standard input and from a file, under keys that are no text.
    let bytes = b"\0\xff\n\ttail";
    let output = tool.fed(bytes, &["put", "--key-percent", "k/%ff", "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(tool.run(&["get", "--key-base64", "ay//"]).stdout, bytes);
    let file = cluster.path().join("value");
    std::fs::write(&file, bytes).unwrap();
    tool.prints(&["put", "k/file", "--file", file.to_str().unwrap()]);
    assert_eq!(tool.run(&["get", "k/file"]).stdout, bytes);
    tool.prints(&["put", "--", "..", "-5"]);
    assert_eq!(tool.prints(&["get", ".."]), "-5");
    tool.prints(&["del", ".."]);
    // The same write twice under one key is done once.
    let again = ["put", "k/once", "x", "--if-absent", "--idempotency-key", "cli-once"];
    assert_eq!(tool.prints(&again), tool.prints(&again));
    assert!(tool.complains(1, &["put", "k/once", "y", "--idempotency-key", "cli-once"]).contains("Idempotency-Key"));
    // Waiting for a change.
    let since = tool.prints(&["put", "k/wait", "1"]).trim().to_owned();
    assert!(tool.complains(6, &["get", "k/wait", "--wait", "50ms", "--since", &since]).contains("--since"));
    let mut waiting = tool.spawn(&["get", "k/wait", "--wait", "60s", "--since", &since, "-o", "json"]);
    tool.prints(&["put", "k/wait", "2"]);
    assert!(waiting.line().contains(r#""value":"2""#));
    assert_eq!(waiting.code(), 0);
}

fn ranges(tool: &Tool) {
    for number in 0..5 {
        tool.prints(&["put", &format!("r/{number}"), &format!("v\t{number}")]);
    }
    assert_eq!(tool.prints(&["list", "r/", "--limit", "2"]), "r/0\tv\\t0\nr/1\tv\\t1\n");
    assert_eq!(tool.prints(&["list", "r/", "--keys-only", "--after", "r/2"]), "r/3\nr/4\n");
    assert_eq!(tool.prints(&["list", "--start", "r/1", "--end", "r/3", "--keys-only"]), "r/1\nr/2\n");
    let lines = tool.prints(&["list", "r/", "-o", "json"]);
    let items: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((items.len(), items[4]["value"].as_str()), (5, Some("v\t4")));
    let table = tool.prints(&["list", "r/", "-o", "table"]);
    assert!(table.starts_with("KEY  VALUE"), "{table}");
    assert_eq!(tool.prints(&["list", "none/"]), "");
    // Deleting everything has to be said.
    tool.ends(2, &["del", "--prefix", ""]);
    tool.ends(2, &["del"]);
    assert_eq!(tool.prints(&["del", "r/0"]), "1\n");
    assert_eq!(tool.prints(&["del", "r/0"]), "0\n");
    assert_eq!(tool.prints(&["del", "--start", "r/1", "--end", "r/3"]), "2\n");
    assert_eq!(tool.json(&["del", "--prefix", "r/"])["deleted"], 2);
    // Whoever has read enough is no failure worth a word.
    tool.prints(&["put", "r/long", &"x".repeat(1000)]);
    let mut reading = tool.command(&["list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(reading.stdout.take());
    let output = reading.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(141), String::new()));
}

fn transactions(tool: &Tool) {
    let short = |condition: &str| -> Vec<String> {
        ["txn", "--if", condition, "--then", "put t/a '1 2'", "--then", "get t/a", "--else", "get t/a"]
            .map(str::to_owned)
            .to_vec()
    };
    let run =
        |code: i32, arguments: &[String]| tool.ends(code, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let printed = run(0, &short("t/a absent"));
    let lines: Vec<&str> = printed.lines().collect();
    let revision = lines[0].strip_prefix("then\t").unwrap();
    assert_eq!(lines[1..], [format!("put\t{revision}\t1"), format!("get\tt/a\t1 2\t{revision}")]);
    assert!(run(4, &short("t/a absent")).contains("get\tt/a\t1 2"));
    run(0, &short(&format!("t/a mod == {revision}")));
    assert!(tool.complains(2, &["txn", "--if", "t/a mod = 1"]).contains("absent"));
    // JSON, by standard input and file.
    let json =
        br#"{"compare":[{"key":"t/a","target":"version","op":"==","value":2}],"then":[{"delete":{"key":"t/a"}}]}"#;
    let output = tool.fed(json, &["txn", "-", "-o", "json"]);
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((reply["succeeded"].as_bool(), &reply["results"][0]["delete"]["deleted"]), (Some(true), &1.into()));
    let output = tool.fed(json, &["txn", "-"]);
    assert_eq!(output.status.code(), Some(4));
    let output = tool.fed(br#"{"thenn":[]}"#, &["txn", "-"]);
    assert_eq!(output.status.code(), Some(2), "nothing was sent");
    assert!(text(&output.stderr).contains("thenn"));
}

fn watches(tool: &Tool) {
    let begin = tool.prints(&["put", "w/begin", "x"]).trim().to_owned();
    let from = ["watch", "w/", "--since", &begin];
    let mut plain = tool.spawn(&[&from[..], &["--count", "3"]].concat());
    let put = tool.prints(&["put", "w/a", "1\n2"]).trim().to_owned();
    tool.prints(&["del", "w/a"]);
    tool.prints(&["txn", "--then", "put w/b 1", "--then", "put w/c 2"]);
    assert_eq!(plain.line(), format!("{put}\tput\tw/a\t1\\n2"));
    assert!(plain.line().ends_with("\tdelete\tw/a\t"));
    // A transaction is told whole, although only one more was wanted.
    assert!(plain.line().ends_with("\tput\tw/b\t1"));
    assert!(plain.line().ends_with("\tput\tw/c\t2"));
    assert_eq!(plain.code(), 0);
    let printed = tool.prints(&[&from[..], &["--count", "3", "-o", "json", "--previous"]].concat());
    let events: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 3);
    assert_eq!(events[1]["changes"][0]["delete"]["previous"]["value"], "1\n2");
    assert_eq!(events[2]["changes"].as_array().unwrap().len(), 2);
    let only = tool.prints(&[&from[..], &["--only", "delete", "--count", "1"]].concat());
    assert_eq!(only.lines().count(), 1);
    // A command for each change, with what it needs to know.
    let command = "echo \"$LIFEBOAT_REVISION $LIFEBOAT_TYPE $LIFEBOAT_KEY $(wc -l)\"";
    let printed = tool.prints(&[&from[..], &["--count", "2", "--exec", command]].concat());
    assert!(printed.starts_with(&format!("{put} put w/a 1\n")), "{printed}");
    let said = tool.complains(1, &[&from[..], &["--count", "2", "--exec", "exit 9"]].concat());
    assert!(said.contains("exit status: 9") && said.contains(&format!("--since {begin}")), "{said}");
}

fn leases(tool: &Tool) {
    let id = tool.prints(&["lease", "grant", "600s"]).trim().to_owned();
    tool.prints(&["put", "l/a", "x", "--lease", &id]);
    let lease = tool.json(&["lease", "get", &id]);
    assert_eq!((lease["ttl_seconds"].as_u64(), lease["keys"][0].as_str()), (Some(600), Some("l/a")));
    assert_eq!(tool.prints(&["lease", "keepalive", &id, "--once"]), "600\n");
    assert!(tool.prints(&["lease", "list"]).contains(&format!("{id}\t600\n")));
    assert_eq!(tool.prints(&["lease", "revoke", &id]), "1\n");
    tool.ends(3, &["get", "l/a"]);
    tool.ends(3, &["lease", "revoke", &id]);
    tool.ends(3, &["lease", "get", &id]);
    tool.ends(3, &["put", "l/a", "x", "--lease", &id]);
    tool.ends(2, &["lease", "grant", "1500ms"]);
    // A keeper that hears that its lease is gone.
    tool.prints(&["lease", "grant", "60s", "--id", "4711"]);
    tool.ends(1, &["lease", "grant", "60s", "--id", "4711"]);
    let mut keeper = tool.spawn(&["lease", "keepalive", "4711"]);
    tool.prints(&["lease", "revoke", "4711"]);
    // It may have been too slow to send its first keep-alive.
    assert!([3, 7].contains(&keeper.code()));
    let reply = tool.json(&["put", "l/ttl", "x", "--ttl", "500s"]);
    tool.prints(&["lease", "revoke", &reply["lease"].to_string()]);
}

fn locks(tool: &Tool) {
    let script = "echo \"$LIFEBOAT_LOCK_TOKEN $LIFEBOAT_LOCK_LEASE\"; exit 42";
    let printed = text(&tool.run(&["lock", "lock/a", "--", "sh", "-c", script]).stdout);
    let first: u64 = printed.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(tool.run(&["lock", "lock/a", "--", "sh", "-c", script]).status.code(), Some(42));
    tool.ends(3, &["lock", "lock/a", "--show"]);
    assert!(tool.complains(1, &["lock", "lock/a", "--", "/no/such/program"]).contains("/no/such/program"));
    tool.ends(3, &["lock", "lock/a", "--show"]);
    assert!(tool.complains(2, &["lock", "lock/a"]).contains("COMMAND"));
    // Held by one, not to be had by another. It listens before it speaks: whoever reads its line may tell it at once.
    let hold = "trap 'echo told; exit 5' TERM; echo $LIFEBOAT_LOCK_TOKEN $LIFEBOAT_LOCK_LEASE; for i in $(seq 600); do sleep 0.05; done";
    // A busy machine may need longer for it than the grace that is given by itself.
    let mut holder = tool.spawn(&["lock", "lock/a", "--value", "me", "--grace", "60s", "--", "sh", "-c", hold]);
    let line = holder.line();
    let (token, lease) = line.split_once(' ').unwrap();
    assert!(token.parse::<u64>().unwrap() > first, "tokens grow");
    assert!(tool.complains(6, &["lock", "lock/a", "--no-wait", "--", "true"]).contains("held by me"));
    tool.ends(6, &["lock", "lock/a", "--wait", "50ms", "--", "true"]);
    assert_eq!(tool.prints(&["lock", "lock/a", "--show"]), format!("{token}\tme\n"));
    // The lock is lost: the command is told, and the code says so.
    tool.prints(&["lease", "revoke", lease]);
    assert_eq!(holder.line(), "told");
    assert_eq!(holder.code(), 7);
    // A command that does not listen is ended all the same.
    let deaf = "trap '' TERM; echo $LIFEBOAT_LOCK_LEASE; for i in $(seq 600); do sleep 0.05; done";
    let mut holder = tool.spawn(&["lock", "lock/a", "--ttl", "60s", "--grace", "100ms", "--", "sh", "-c", deaf]);
    let lease = holder.line();
    tool.prints(&["lease", "revoke", &lease]);
    assert_eq!(holder.code(), 7);
    // A signal is passed on, and the lock is given up behind the command.
    let mut holder = tool.spawn(&["lock", "lock/a", "--", "sh", "-c", hold]);
    holder.line();
    holder.signal("TERM");
    assert_eq!((holder.line().as_str(), holder.code()), ("told", 5));
    tool.ends(3, &["lock", "lock/a", "--show"]);
    // And whoever only waits leaves the line.
    let mut holder = tool.spawn(&["lock", "lock/a", "--", "sh", "-c", hold]);
    holder.line();
    let mut waiting = tool.spawn(&["lock", "lock/a", "--", "true"]);
    wait_for("the second to wait", || match tool.prints(&["list", "lock/a/", "--keys-only"]).lines().count() {
        2 => Ok(()),
        count => Err(format!("{count} in the line")),
    });
    waiting.signal("INT");
    assert_eq!(waiting.code(), 130);
    wait_for("the second to leave", || match tool.prints(&["list", "lock/a/", "--keys-only"]).lines().count() {
        1 => Ok(()),
        count => Err(format!("{count} in the line")),
    });
    // A command outlives a holder that is killed, so this one is asked.
    holder.signal("TERM");
    assert_eq!(holder.code(), 5);
}

fn elections(tool: &Tool) {
    tool.ends(3, &["elect", "e/a", "--show"]);
    let mut observer = tool.spawn(&["elect", "e/a", "--observe"]);
    assert_eq!(observer.line(), "-");
    let mut leader = tool.spawn(&["elect", "e/a", "--value", "ann"]);
    let token = leader.line();
    assert_eq!(observer.line(), format!("{token}\tann"));
    assert_eq!(tool.json(&["elect", "e/a", "--show"])["value"], "ann");
    let mut next = tool.spawn(&["elect", "e/a", "--value", "bob", "--", "sh", "-c", "echo $LIFEBOAT_ELECTION_TOKEN"]);
    leader.signal("TERM");
    assert_eq!(leader.code(), 0);
    assert!(next.line().parse::<u64>().unwrap() > token.parse().unwrap());
    assert_eq!(next.code(), 0);
}

fn about_the_cluster(tool: &Tool) {
    let status = tool.json(&["status"]);
    let members = status["members"].as_array().unwrap();
    assert_eq!(members.len(), 4);
    assert!(members.iter().all(|member| member["reachable"] == true), "{status}");
    let leader = status["leader"].as_str().unwrap().to_owned();
    let plain = tool.prints(&["status"]);
    assert_eq!(plain.lines().count(), 4);
    assert!(plain.lines().all(|line| line.split('\t').count() == 10), "{plain}");
    assert!(tool.prints(&["status", "-o", "table"]).starts_with("MEMBER  SITE"));
    assert_eq!(tool.prints(&["members", "list", "-o", "json"]), tool.prints(&["members", "-o", "json"]));
    assert_eq!(tool.json(&["members"])["members"].as_array().unwrap().len(), 4);
    // A name may have a hyphen; that nobody has this one is told as of any other.
    assert!(tool.complains(3, &["members", "show", "no-such"]).contains("no-such"));
    let said = wait_for("the cluster to be healthy", || match tool.run(&["health"]) {
        output if output.status.success() => Ok(text(&output.stdout)),
        output => Err(text(&output.stderr)),
    });
    assert_eq!(said, "healthy\n");
    assert_eq!(tool.json(&["health", "live"])["healthy"], true);
    let (name, n1) = (tool.prints(&["leader"]), format!("{leader}\n"));
    assert_eq!(name, n1);
    let to = if leader == "n2" { "n3" } else { "n2" };
    assert_eq!(tool.prints(&["leader", "transfer", to]), format!("{to}\n"));
    tool.ends(3, &["leader", "transfer", "nobody"]);
    tool.ends(1, &["leader", "transfer", "n4"]);
    let events = tool.prints(&["events", "-o", "json"]);
    let last: Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    assert!(last["id"].as_u64().unwrap() >= events.lines().count() as u64);
    assert!(tool.prints(&["events"]).lines().all(|line| line.split('\t').count() == 5));
}

fn benchmarks(tool: &Tool) {
    for operation in ["put", "get", "get-stale", "mixed", "txn"] {
        let arguments = ["bench", operation, "--count", "60", "--clients", "3", "--keys", "20", "--size", "16"];
        let report = tool.json(&arguments);
        assert_eq!((report["succeeded"].as_u64(), report["failed"].as_u64()), (Some(60), Some(0)), "{report}");
        assert!(report["micros"]["p99"].as_u64().unwrap() >= report["micros"]["p50"].as_u64().unwrap());
    }
    let table = tool.prints(&["bench", "get", "--count", "15", "--rate", "50", "--keys", "5", "-o", "table"]);
    assert!(table.contains("a second") && table.contains("p99.9") && table.contains('#'), "{table}");
    let none = tool.prints(&["list", "bench/", "--keys-only"]);
    assert!(none.lines().count() >= 20);
}

fn an_address_without_a_member(tool: &Tool) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let said = tool.complains(6, &["put", "k", "v", "-e", &address, "--timeout", "200ms"]);
    assert!(said.contains("LIFEBOAT_ENDPOINTS"), "{said}");
    assert!(tool.complains(2, &["get", "k", "-e", "https://a:1"]).contains("TLS"));
    assert!(tool.complains(2, &["get", "k", "-e", "nowhere"]).contains("port"));
    // Somebody listens and never answers: nobody knows.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let said = tool.complains(5, &["put", "k", "v", "-e", &address, "--timeout", "200ms"]);
    assert!(said.contains("--idempotency-key"), "{said}");
}

#[test]
fn shells_and_man_get_what_they_need() {
    let tool = Tool { endpoints: "http://127.0.0.1:1".to_owned() };
    for shell in ["bash", "zsh", "fish"] {
        let script = tool.prints(&["completions", shell]);
        assert!(script.contains("lifeboat") && script.contains("keepalive"), "{shell}");
    }
    bash_completes(&tool.prints(&["completions", "bash"]));
    let page = tool.prints(&["man"]);
    assert!(page.contains(".TH lifeboat 1") && page.contains("Exit codes"), "{page}");
    let directory = tempfile::tempdir().unwrap();
    tool.prints(&["man", "--dir", directory.path().to_str().unwrap()]);
    let pages: Vec<String> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for page in ["lifeboat.1", "lifeboat-get.1", "lifeboat-lease-grant.1"] {
        assert!(pages.iter().any(|found| found == page), "{page} is not in {pages:?}");
    }
    // Flags are not given where they would have no effect.
    tool.ends(2, &["members", "-o", "json", "list"]);
    for (code, meaning) in [(5, "unknown"), (7, "lock")] {
        let help = tool.prints(&["--help"]);
        assert!(
            help.lines().any(|line| line.trim().starts_with(&code.to_string()) && line.contains(meaning)),
            "{help}"
        );
    }
}

/// What bash makes of the completions: it can read them, and they complete.
fn bash_completes(script: &str) {
    let bash = |arguments: &[&str], input: &str| {
        let mut bash = Command::new("bash");
        let piped = bash.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("a bash");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(bash(&["-n"], script), "");
    for (words, completed) in [
        ("lifeboat mem", "members"),
        ("lifeboat members rem", "remove"),
        ("lifeboat lease keep", "keepalive"),
        ("lifeboat put --outp", "--output"),
    ] {
        let last = words.split(' ').count() - 1;
        let current = words.rsplit(' ').next().unwrap();
        let before = words.split(' ').nth(last - 1).unwrap();
        let ask = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={last}; COMPREPLY=()\n_lifeboat lifeboat {current} {before}\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
        );
        let replies = bash(&["--norc"], &ask);
        assert_eq!(replies.lines().collect::<Vec<_>>(), [completed], "for {words:?}");
    }
}
