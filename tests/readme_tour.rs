//! The tour of the README, pasted into a shell against a real `lifeboat dev`.
//!
//! Everything in a `sh` or `console` block between `<!-- tour:begin -->` and `<!-- tour:end -->` runs, in one bash, in
//! order, with the address 127.0.0.1 replaced by one that this test owns. A command that fails, fails the test, and so
//! does a problem document that the tour did not announce. A comment behind a command says what it prints: one word, a
//! status with its reason (`201 Created`), or a beginning that ends in `…`. Any other comment is for people.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};

use support::address::{Addresses, CLIENT_PORT, Permit};
use support::http::Request;
use support::{wait_for, wait_within};

/// The members of `lifeboat dev` listen for clients this far apart.
const PORT_STEP: u16 = 10;
const MEMBERS: u16 = 4;
/// What a line of output begins with that says which command's output follows.
const MARK: &str = "@@@ command ";

/// `lifeboat dev` with four members. Stopped when dropped.
struct Dev {
    child: Child,
    host: IpAddr,
    directory: Option<tempfile::TempDir>,
}

impl Dev {
    fn start(host: IpAddr) -> Dev {
        let directory = tempfile::tempdir().unwrap();
        let log = File::create(directory.path().join("dev.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_lifeboat"))
            .args(["dev", "--host", &host.to_string(), "--base-port", &CLIENT_PORT.to_string()])
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the binary under test starts");
        let mut dev = Dev { child, host, directory: Some(directory) };
        for member in 0..MEMBERS {
            wait_for("all members to be ready", || {
                let ended = dev.child.try_wait().unwrap();
                assert!(ended.is_none(), "dev ended with {ended:?}:\n{}", dev.log());
                match Request::new("GET", "/health/ready").try_send(dev.client(member)) {
                    Ok(answer) if answer.status == 200 => Ok(()),
                    Ok(answer) => Err(answer.to_string()),
                    Err(failure) => Err(failure.to_string()),
                }
            });
        }
        dev
    }

    fn client(&self, member: u16) -> SocketAddr {
        SocketAddr::new(self.host, CLIENT_PORT + member * PORT_STEP)
    }

    fn log(&self) -> String {
        let path = self.directory.as_ref().unwrap().path().join("dev.log");
        std::fs::read_to_string(path).unwrap_or_default()
    }

    fn terminate(&self) {
        let script = format!("kill -TERM {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success(), "{script}");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // The members notice when it is gone, and stop.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- what dev said\n{}", self.log());
            let kept = self.directory.take().unwrap().keep();
            eprintln!("the data and logs of the members are kept in {}", kept.display());
        }
    }
}

/// One command of the tour.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: String,
    /// What its output must contain.
    expected: Option<String>,
}

/// The commands of the tour in a README.
fn steps(readme: &str) -> Vec<Step> {
    let (_, rest) = readme.split_once("<!-- tour:begin -->").expect("the README has a tour");
    let (tour, _) = rest.split_once("<!-- tour:end -->").expect("the tour ends");
    let mut steps = Vec::new();
    let mut inside = false;
    let mut unfinished = String::new();
    for line in tour.lines() {
        match line.trim() {
            "```sh" | "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            "" => {}
            text if text.starts_with('#') => {}
            text => {
                let text = text.strip_prefix("$ ").unwrap_or(text);
                if let Some(begun) = text.strip_suffix('\\') {
                    unfinished += begun;
                    continue;
                }
                let command = std::mem::take(&mut unfinished) + text;
                let comment = command.rsplit_once(" # ").map(|(_, comment)| comment.trim().to_string());
                steps.push(Step { command, expected: comment.and_then(|comment| expectation(&comment)) });
            }
        }
    }
    assert!(!inside && unfinished.is_empty(), "the tour ends inside of a block");
    steps
}

/// What a comment promises about the output, if it does.
fn expectation(comment: &str) -> Option<String> {
    let words: Vec<&str> = comment.split_whitespace().collect();
    let is_status = |word: &str| word.len() == 3 && word.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(beginning) = comment.strip_suffix('…') {
        return Some(beginning.trim_end().to_string());
    }
    match words[..] {
        [word] => Some(word.to_string()),
        [status, reason, ..] if is_status(status) && reason.starts_with(char::is_uppercase) => {
            Some(comment.to_string())
        }
        _ => None,
    }
}

#[test]
fn a_comment_may_promise_what_is_printed() {
    assert_eq!(expectation("hello").as_deref(), Some("hello"));
    assert_eq!(expectation("412 Precondition Failed").as_deref(), Some("412 Precondition Failed"));
    assert_eq!(expectation("Lifeboat-Lag-Seconds: …").as_deref(), Some("Lifeboat-Lag-Seconds:"));
    assert_eq!(expectation("503 if it is older"), None);
    assert_eq!(expectation("for people to read"), None);
    let readme =
        "curl no\n<!-- tour:begin -->\n```sh\ncurl a \\\n  b   # x\n```\nprose\n```rust\nno\n```\n<!-- tour:end -->";
    let expected = Step { command: "curl a b   # x".into(), expected: Some("x".into()) };
    assert_eq!(steps(readme), [expected]);
}

#[test]
fn the_tour_of_the_readme_works_when_pasted() {
    let _permit = Permit::acquire(usize::from(MEMBERS));
    let addresses = Addresses::reserve();
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let steps = steps(&readme);
    assert!(steps.len() >= 10, "a tour of {} commands", steps.len());
    let dev = Dev::start(addresses.client(0).ip());

    let mut script = String::from("set -euo pipefail\n");
    for (number, step) in steps.iter().enumerate() {
        let command = step.command.replace("127.0.0.1", &dev.host.to_string());
        // Behind the mark comes the output; an answer need not end with a line's end.
        script += &format!("printf '\\n{MARK}%s\\n' {number}\n{command}\n");
    }
    let mut bash = Command::new("bash")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir(dev.directory.as_ref().unwrap().path())
        .spawn()
        .expect("bash is there");
    let mut stdin = bash.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    let output = bash.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "the tour stopped with {}:\n{printed}\n{errors}", output.status);

    let outputs: Vec<&str> = printed.split(&format!("\n{MARK}")).skip(1).collect();
    assert_eq!(outputs.len(), steps.len(), "{printed}");
    let mut promises = 0;
    for (step, output) in steps.iter().zip(outputs) {
        let announced = step.expected.as_deref().unwrap_or_default();
        if let Some(expected) = &step.expected {
            // The names of headers have no case.
            let found = output.to_lowercase().contains(&expected.to_lowercase());
            assert!(found, "`{}` printed\n{output}", step.command);
            promises += 1;
        }
        let failed = output.contains("urn:lifeboat:problem:");
        assert!(!failed || announced.starts_with(['4', '5']), "`{}` failed:\n{output}", step.command);
    }
    assert!(promises >= 5, "the tour promises only {promises} things");
    stop(dev);
}

/// Ctrl-C or SIGTERM ends it, and with it every member.
fn stop(mut dev: Dev) {
    dev.terminate();
    let status = wait_within(support::PATIENCE, "dev to end", || {
        dev.child.try_wait().unwrap().ok_or_else(|| "it still runs".to_string())
    });
    assert!(status.success(), "dev ended with {status}:\n{}", dev.log());
    for member in 0..MEMBERS {
        let answer = Request::new("GET", "/health/live").try_send(dev.client(member));
        assert!(answer.is_err(), "a member outlived dev: {}", answer.unwrap());
    }
}
