//! Forced failover, the fence and the way home, as a test orders and sees them: over HTTP, and in `member.json` and the
//! salvage files of the members.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use super::cluster::Cluster;
use super::http::{self, Answer, Request};
use super::wait_for;

/// A timeline that was forced begins its revisions behind this.
pub const FORCED: u64 = 1 << 40;

/// An answer to one of these verbs: whatever it says, it names the command that makes sense next. (A body that is no request at
/// all is the mistake of a program, and not of a person who could be told what to do.)
#[track_caller]
pub fn told(answer: Answer) -> Answer {
    let said = answer.json();
    let malformed = said["type"] == "urn:lifeboat:problem:bad-body";
    assert!(malformed || http::names_next(&said), "no next command in {answer}");
    answer
}

/// Orders the site of this member to go on.
#[track_caller]
pub fn force(cluster: &Cluster, member: usize, body: &Value) -> Answer {
    told(http::post(cluster.client(member), "/v1/dr/force", body))
}

/// Lets this member rejoin.
#[track_caller]
pub fn rejoin(cluster: &Cluster, member: usize, body: &Value) -> Answer {
    told(http::post(cluster.client(member), "/v1/dr/rejoin", body))
}

/// What a member sees of all.
#[track_caller]
pub fn survey(cluster: &Cluster, member: usize) -> Value {
    told(http::get(cluster.client(member), "/v1/dr/survey")).expect(200).json()
}

/// What a member says that it is.
pub fn role(cluster: &Cluster, member: usize) -> Result<String, String> {
    let answer = Request::new("GET", "/v1/role").try_send(cluster.client(member)).map_err(|e| e.to_string())?;
    match answer.status {
        200 => Ok(answer.json()["role"].as_str().unwrap().to_owned()),
        _ => Err(answer.to_string()),
    }
}

/// Waits until a member says that it is this.
#[track_caller]
pub fn wait_role(cluster: &Cluster, member: usize, wanted: &str) {
    wait_for(&format!("n{} to be {wanted}", member + 1), || match role(cluster, member)? {
        role if role == wanted => Ok(()),
        other => Err(other),
    });
}

/// Kills all members of the site `east`.
pub fn lose_east(cluster: &mut Cluster, voters: usize) {
    for member in 0..voters {
        cluster.kill(member);
    }
}

/// Orders the mirror of a lost primary to go on, and waits until it leads.
#[track_caller]
pub fn force_and_wait(cluster: &Cluster, member: usize, order: &Value) -> Value {
    let reply = force(cluster, member, order).expect(202).json();
    wait_role(cluster, member, "leader");
    reply
}

/// Waits until nothing shows any more that the primary is there: a leader counts as one for as long as its lease may last.
pub fn wait_primary_gone(cluster: &Cluster, member: usize) {
    wait_for("the primary to be gone", || {
        let found = survey(cluster, member);
        if found["primary"].is_null() { Ok(()) } else { Err(found.to_string()) }
    });
}

/// Whether a member can say which of its site would be promoted.
pub fn surveys(cluster: &Cluster, member: usize) -> Result<(), String> {
    let answer = Request::new("GET", "/v1/dr/survey").try_send(cluster.client(member)).map_err(|e| e.to_string())?;
    if answer.status == 200 && answer.json()["best"].is_string() { Ok(()) } else { Err(answer.to_string()) }
}

/// What the salvage files of the old members hold together: the keys of user writes and their fate.
pub fn salvaged(cluster: &Cluster, members: &[usize]) -> Vec<(String, String, u64)> {
    let mut found = BTreeSet::new();
    for member in members {
        let Ok(files) = std::fs::read_dir(cluster.member(*member).data.join("salvage")) else { continue };
        for file in files {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for line in text.lines().skip(1) {
                let line: Value = serde_json::from_str(line).unwrap();
                let fate = line["fate"].as_str().unwrap().to_owned();
                for op in line["ops"].as_array().unwrap() {
                    if let Some(key) = op["key"].as_str().filter(|_| op["record"].is_null()) {
                        found.insert((key.to_owned(), fate.clone(), line["revision"].as_u64().unwrap_or(0)));
                    }
                }
            }
        }
    }
    found.into_iter().collect()
}

/// Waits until a member that rejoins is a synchronized member in the eyes of another, and verified.
#[track_caller]
pub fn wait_home(cluster: &Cluster, member: usize, asked: usize) {
    let name = &cluster.member(member).name;
    wait_for(&format!("{name} to be home"), || {
        let answer = http::get(cluster.client(asked), "/v1/replication");
        let reply = if answer.status == 200 { answer.json() } else { return Err(answer.to_string()) };
        let found = reply["members"].as_array().unwrap().iter().find(|found| found["name"] == name.as_str()).cloned();
        match found {
            Some(found) if found["state"] == "SYNCHRONIZED" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    wait_for(&format!("{name} to be verified"), || {
        let file = member_file(cluster, member);
        if !file["rejoin"].is_null() { Err(file.to_string()) } else { Ok(()) }
    });
}

/// Tells a fenced member to rejoin until it has written that down. It may be amid being opened anew, or die at once.
#[track_caller]
pub fn tell_to_rejoin(cluster: &Cluster, member: usize) {
    wait_for("a member to rejoin", || {
        let answer = Request::new("POST", "/v1/dr/rejoin").body("{}").try_send(cluster.client(member));
        let file = member_file(cluster, member);
        match answer {
            Ok(answer) if answer.status == 202 => {
                told(answer);
                Ok(())
            }
            _ if file["fenced"]["rejoin"] == true || file["fenced"].is_null() => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    });
}

/// What a member has written down of itself.
#[track_caller]
pub fn member_file(cluster: &Cluster, member: usize) -> Value {
    let text = std::fs::read_to_string(cluster.member(member).data.join("member.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The number of the timeline that a member is on.
pub fn timeline_number(cluster: &Cluster, member: usize) -> Result<u64, String> {
    let status = cluster.status(member)?;
    status["cluster"]["timeline"]["number"].as_u64().ok_or_else(|| status.to_string())
}

/// The commands of the plan of a member, as `/v1/dr` and `lifeboat dr plan` give them alike.
pub fn plan_of(cluster: &Cluster, member: usize) -> Result<Vec<Value>, String> {
    let answer = Request::new("GET", "/v1/dr").try_send(cluster.client(member)).map_err(|e| e.to_string())?;
    let reply = if answer.status == 200 { answer.json() } else { return Err(answer.to_string()) };
    Ok(reply["plan"].as_array().unwrap().iter().map(|step| step["command"].clone()).collect())
}

/// Waits until the plan of a member has a step whose reason and command contain these; all its commands are the program's.
#[track_caller]
pub fn wait_plan(cluster: &Cluster, member: usize, why: &str, command: &str) {
    let plan = wait_for(&format!("the plan of n{} to say {why:?}", member + 1), || {
        let answer = Request::new("GET", "/v1/dr").try_send(cluster.client(member)).map_err(|e| e.to_string())?;
        let reply = if answer.status == 200 { answer.json() } else { return Err(answer.to_string()) };
        let plan = reply["plan"].as_array().unwrap();
        let has = |step: &Value, field: &str, part: &str| step[field].as_str().unwrap().contains(part);
        let found = plan.iter().any(|step| has(step, "why", why) && has(step, "command", command));
        if found { Ok(plan.clone()) } else { Err(reply.to_string()) }
    });
    let commands: Vec<Value> = plan.iter().map(|step| step["command"].clone()).collect();
    assert_commands(&commands);
}

/// Each is a command that the program takes, word for word.
#[track_caller]
pub fn assert_commands(commands: &[Value]) {
    assert!(!commands.is_empty());
    for command in commands {
        let text = command.as_str().unwrap();
        let words = text.strip_prefix("lifeboat ").unwrap_or_else(|| panic!("no command of the program: {text}"));
        // What stands before it is looked at, and nothing is done.
        let looked =
            Command::new(env!("CARGO_BIN_EXE_lifeboat")).args(words.split(' ')).arg("--help").output().unwrap();
        assert!(looked.status.success(), "{text}: {}", String::from_utf8_lossy(&looked.stderr));
    }
}

/// Waits until all members are sound and hold the same, as `lifeboat verify` says when it is asked at this one. It is asked
/// again when it has not come to a verdict: a leader was lost amid it, or a member did not answer.
#[track_caller]
pub fn assert_verified(cluster: &Cluster, asked: usize) {
    const DISAGREE: i32 = 8;
    let endpoint = format!("http://{}", cluster.client(asked));
    wait_for("a verdict of the verification", || {
        let output =
            Command::new(env!("CARGO_BIN_EXE_lifeboat")).args(["verify", "--endpoints", &endpoint]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_ne!(output.status.code(), Some(DISAGREE), "{text}");
        if output.status.success() { Ok(()) } else { Err(text) }
    });
}

/// An answer that is not only "not now": who is asked may have lost its leader for a moment.
#[track_caller]
pub fn served(ask: impl Fn() -> Answer) -> Answer {
    wait_for("an answer", || match ask() {
        answer if answer.status == 503 => Err(answer.to_string()),
        answer => Ok(answer),
    })
}

/// How a failover ends: of all that run, this member alone leads (or whoever does, when none is named), all are on its timeline
/// and hold the same, nobody is on the way, and a verification agrees. Gives what they hold.
#[track_caller]
pub fn assert_one_timeline(cluster: &Cluster, leader: impl Into<Option<usize>>) -> Vec<String> {
    let (wanted, running) = (leader.into(), cluster.running());
    let led = wait_for("all to be on one timeline", || {
        let led = cluster.leader_now()?;
        if wanted.is_some_and(|wanted| led != wanted) {
            return Err(format!("{} leads", cluster.member(led).name));
        }
        let timeline = cluster.status(led)?["cluster"]["timeline"]["id"].clone();
        for &member in &running {
            let (role, status, file) = (role(cluster, member)?, cluster.status(member)?, member_file(cluster, member));
            let on = &status["cluster"]["timeline"]["id"];
            let settled = ["fenced", "rejoin", "promotion"].iter().all(|mark| file[mark].is_null());
            if *on != timeline || !settled || !(member == led || role == "follower" || role == "mirror") {
                return Err(format!("{}: {role} on {on}: {file}", cluster.member(member).name));
            }
        }
        Ok(led)
    });
    let content = cluster.assert_same_content();
    assert_verified(cluster, led);
    content
}
