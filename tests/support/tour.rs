//! Commands of the documentation, pasted into one shell beside a real `lifeboat dev`.
//!
//! The pages say 127.0.0.1; the commands run with an address that the test owns, and what they print is given back with
//! 127.0.0.1 again.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::address::{Addresses, CLIENT_PORT, Permit};
use super::http::Request;
use super::{PATIENCE, wait_for, wait_within};

/// The members of `lifeboat dev` listen for clients this far apart.
const PORT_STEP: u16 = 10;
const MEMBERS: u16 = 4;
/// The address in the documentation.
const WRITTEN: &str = "127.0.0.1";
/// What a line of output begins with that says which command's output follows.
const MARK: &str = "@@@ command ";
/// What every member is started with. A page tells of one cluster in which nothing else happens: elections are so slow that
/// nobody takes the lead who was not asked to, nor is any member said to be away, which would both be events, and an event
/// is a revision. A mirror has long enough for what waits for it.
const CALM: [&str; 4] =
    ["--election-min-ms=5s", "--election-max-ms=6s", "--mirror-wait-ms=30s", "--request-timeout-ms=30s"];

/// `lifeboat dev` with four members: the voters n1, n2, n3 and the mirror m1. Stopped when dropped.
pub struct Dev {
    child: Child,
    host: IpAddr,
    directory: Option<tempfile::TempDir>,
    _addresses: Addresses,
    _permit: Permit,
}

/// What the commands printed.
pub struct Printed {
    /// How the shell ended.
    pub status: ExitStatus,
    /// The output of each command that was begun.
    pub outputs: Vec<String>,
    /// What curl and the shell complained about.
    pub errors: String,
}

impl Dev {
    /// Starts it and waits until all members are ready.
    pub fn start() -> Dev {
        let permit = Permit::acquire(usize::from(MEMBERS));
        let addresses = Addresses::reserve();
        let host = addresses.client(0).ip();
        let directory = tempfile::tempdir().unwrap();
        let log = File::create(directory.path().join("dev.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_lifeboat"))
            .args(["dev", "--host", &host.to_string(), "--base-port", &CLIENT_PORT.to_string()])
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .arg("--")
            .args(CALM)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the binary under test starts");
        let mut dev = Dev { child, host, directory: Some(directory), _addresses: addresses, _permit: permit };
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

    /// Where the member with this number listens for clients, from 0.
    pub fn client(&self, member: u16) -> SocketAddr {
        SocketAddr::new(self.host, CLIENT_PORT + member * PORT_STEP)
    }

    fn directory(&self) -> &Path {
        self.directory.as_ref().expect("the directory is there until the drop").path()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory().join("dev.log")).unwrap_or_default()
    }

    /// Runs commands in one bash, in order; with `strict` the first that fails is the last.
    pub fn run<'c>(&self, commands: impl Iterator<Item = &'c str>, strict: bool) -> Printed {
        let host = self.host.to_string();
        let mut script = String::from(if strict { "set -euo pipefail\n" } else { "" });
        for (number, command) in commands.enumerate() {
            let command = command.replace(WRITTEN, &host);
            // Behind the mark comes the output; an answer need not end with a line's end.
            script += &format!("printf '\\n{MARK}%s\\n' {number}\n{command}\n");
        }
        let mut bash = Command::new("bash")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir(self.directory())
            .spawn()
            .expect("bash is there");
        let mut stdin = bash.stdin.take().unwrap();
        stdin.write_all(script.as_bytes()).unwrap();
        drop(stdin);
        let output = bash.wait_with_output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).replace(&host, WRITTEN);
        let mark = format!("\n{MARK}");
        let begun = printed.split(&mark).skip(1);
        let outputs = begun.map(|output| output.split_once('\n').map_or("", |(_, rest)| rest).to_owned()).collect();
        // What is not curl's meter.
        let said = String::from_utf8_lossy(&output.stderr);
        let errors = said.lines().filter(|line| line.starts_with("curl:") || line.starts_with("bash:"));
        Printed { status: output.status, outputs, errors: errors.collect::<Vec<_>>().join("\n") }
    }

    /// SIGTERM, as by Ctrl-C, ends it, and with it every member.
    pub fn stop(mut self) {
        let script = format!("kill -TERM {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success(), "{script}");
        let status = wait_within(PATIENCE, "dev to end", || {
            self.child.try_wait().unwrap().ok_or_else(|| "it still runs".to_string())
        });
        assert!(status.success(), "dev ended with {status}:\n{}", self.log());
        for member in 0..MEMBERS {
            let answer = Request::new("GET", "/health/live").try_send(self.client(member));
            assert!(answer.is_err(), "a member outlived dev: {}", answer.unwrap());
        }
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
