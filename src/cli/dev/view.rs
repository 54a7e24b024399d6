//! What `lifeboat dev` shows: the greeting with curl lines, the table of members, and sentences about what changed.
//! Pure functions from what is known to lines of text; printing is the caller's.

use super::plan::PlannedMember;
use crate::api::{Role, Status};
use crate::config::MemberRole;

/// What is known of a member's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// It runs under this id.
    Running(u32),
    /// It ended and will be started again.
    Down,
}

/// What is known of a member.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Its process.
    pub process: Process,
    /// Its answer to the last question; none when it gave none.
    pub status: Option<Status>,
}

impl Seen {
    /// In one word.
    fn state(&self) -> &'static str {
        match (self.process, &self.status) {
            (Process::Down, _) => "down",
            (Process::Running(_), None) => "no answer",
            (Process::Running(_), Some(status)) if status.ready => "ready",
            (Process::Running(_), Some(_)) => "not ready",
        }
    }
}

/// Whether every member is ready and knows all others as what they are: then any of them may be killed.
pub fn is_complete(seen: &[Seen]) -> bool {
    let complete = |status: &Status| {
        status.ready && status.members.len() == seen.len() && status.members.iter().all(|member| !member.joining)
    };
    seen.iter().all(|seen| seen.status.as_ref().is_some_and(complete))
}

/// A command and what it shows.
pub struct CurlLine {
    /// What it shows.
    pub shows: &'static str,
    /// What to type.
    pub command: String,
}

/// Ten commands that work when they are typed one after the other on a new cluster, and on an old one.
pub fn curl_lines(members: &[PlannedMember]) -> Vec<CurlLine> {
    let voter = |i: usize| members[i.min(members.len() - 1)].client;
    let (first, second, third, last) = (voter(0), voter(1), voter(2), voter(members.len() - 1));
    let line = |shows: &'static str, command: String| CurlLine { shows, command };
    let mut lines = vec![
        line("write a value", format!("curl -X PUT -d 'hello' http://{first}/v1/kv/greeting")),
        line("read it from any member", format!("curl http://{third}/v1/kv/greeting")),
        line("with its revision", format!("curl -H 'Accept: application/json' http://{second}/v1/kv/greeting")),
        line(
            "create only: 201 once, then 412",
            format!("curl -i -X PUT -H 'If-None-Match: *' -d me http://{first}/v1/kv/lock"),
        ),
        line("keys and values", format!("curl 'http://{second}/v1/keys?prefix=gr'")),
        line(
            "as lines of JSON",
            format!("curl -H 'Accept: application/x-ndjson' 'http://{first}/v1/keys?keys_only=true'"),
        ),
        line("without asking the leader", format!("curl -i 'http://{last}/v1/kv/greeting?consistency=stale'")),
        line("delete", format!("curl -X DELETE http://{first}/v1/kv/lock")),
        line("the cluster as one member sees it", format!("curl http://{first}/v1/status")),
    ];
    lines.push(if members.len() > 1 {
        line("hand over the lead", format!("curl -d '{{\"to\":\"{}\"}}' http://{first}/v1/leader", members[1].name))
    } else {
        line("figures for Prometheus", format!("curl http://{first}/metrics"))
    });
    lines
}

/// What is printed once all members are ready.
pub fn greeting(members: &[PlannedMember], data_dir: &str, embedded: bool) -> Vec<String> {
    let mut lines = vec!["The cluster is ready. Clients are served at".to_owned(), String::new()];
    for member in members {
        let what = match member.role {
            MemberRole::Voter => "voter",
            MemberRole::Mirror => "mirror",
        };
        lines.push(format!("  {}  {what} {} in site {}", member.client_url(), member.name, member.site));
    }
    lines.extend([String::new(), "Worth trying in another terminal:".to_owned(), String::new()]);
    let curl_lines = curl_lines(members);
    lines.extend(curl_lines.iter().map(|line| format!("  # {}\n  {}", line.shows, line.command)));
    lines.push(String::new());
    if embedded {
        lines.push(format!("The one member runs in this process. Data: {data_dir}"));
    } else {
        lines.push(format!("Data and logs: {data_dir}/<member>, {data_dir}/<member>/log.txt"));
        lines.push("Kill a member (kill -9 <pid>) and watch; it is started again after a few seconds.".to_owned());
    }
    lines.push("Ctrl-C stops everything; the data stays.".to_owned());
    lines
}

/// The table of members: a heading and a line for each.
pub fn table(members: &[PlannedMember], seen: &[Seen]) -> Vec<String> {
    let mut rows =
        vec![["member", "site", "role", "state", "pid", "clients", "revision", "applied", "lag"].map(str::to_owned)];
    for (member, seen) in members.iter().zip(seen) {
        let status = seen.status.as_ref();
        let dash = || "-".to_owned();
        rows.push([
            member.name.clone(),
            member.site.to_owned(),
            status.map_or_else(|| member.role.to_string(), |s| s.role.to_string()),
            seen.state().to_owned(),
            match seen.process {
                Process::Running(pid) => pid.to_string(),
                Process::Down => dash(),
            },
            member.client_url(),
            status.map_or_else(dash, |s| s.revision.to_string()),
            status.and_then(|s| s.applied_index).map_or_else(dash, |index| index.to_string()),
            status.and_then(|s| s.lag_seconds).map_or_else(dash, |seconds| format!("{seconds:.2} s")),
        ]);
    }
    let widths: Vec<usize> =
        (0..rows[0].len()).map(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0)).collect();
    let line = |row: &[String; 9]| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// What a person would want to be told between two looks at the members: who answers, who leads. While the cluster
/// starts nobody is told that a member is not ready yet.
pub fn changes(members: &[PlannedMember], before: &[Seen], after: &[Seen], starting: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for (member, (before, after)) in members.iter().zip(before.iter().zip(after)) {
        // That a process ended or was started is told by whoever saw it.
        if before.state() != after.state() && after.process != Process::Down {
            let text = match after.state() {
                "ready" => "is ready",
                _ if starting => continue,
                "not ready" => "is not ready: it knows no leader with a quorum, or has not caught up",
                _ => "does not answer",
            };
            lines.push(format!("{} {text}", member.name));
        }
    }
    if let (before, Some(leader)) = (leader(before), leader(after))
        && before != Some(leader)
    {
        lines.push(format!("{} leads in term {}", leader.0, leader.1));
    }
    lines
}

/// The name and term of the member that says it leads; of several, the one of the newest term.
fn leader(seen: &[Seen]) -> Option<(&str, u64)> {
    let leaders = seen.iter().filter_map(|seen| seen.status.as_ref()).filter(|status| status.role == Role::Leader);
    leaders.max_by_key(|status| status.term).map(|status| (status.name.as_str(), status.term))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;

    use super::super::plan::{Shape, members};
    use super::*;
    use crate::api::Member;

    fn cluster(count: u16) -> Vec<PlannedMember> {
        let shape = Shape { members: count, host: IpAddr::from([127, 0, 0, 1]), base_port: 7400 };
        members(shape, Path::new("lifeboat-data"))
    }

    fn status(name: &str, role: Role, term: u64, ready: bool) -> Option<Status> {
        Some(Status {
            name: name.to_owned(),
            id: 1,
            site: "east".to_owned(),
            role,
            version: "0.1.0".to_owned(),
            feature_level: 1,
            ready,
            quarantined: None,
            cluster: None,
            leader: None,
            term,
            revision: 7,
            last_index: Some(9),
            committed_index: Some(9),
            applied_index: Some(9),
            sealed_index: None,
            lag_seconds: Some(0.014),
            uptime_seconds: 1.0,
            members: Vec::new(),
        })
    }

    fn three_and_a_mirror(leader: &str, term: u64) -> Vec<Seen> {
        let role = |name: &str| match name {
            "m1" => Role::Mirror,
            _ if name == leader => Role::Leader,
            _ => Role::Follower,
        };
        let seen = |name| Seen { process: Process::Running(100), status: status(name, role(name), term, true) };
        ["n1", "n2", "n3", "m1"].map(seen).to_vec()
    }

    #[test]
    fn there_are_ten_lines_at_the_right_addresses() {
        for count in [1, 3, 5] {
            let lines = curl_lines(&cluster(count));
            assert_eq!(lines.len(), 10);
            assert!(lines.iter().all(|line| line.command.starts_with("curl ")));
        }
        let all: Vec<String> = curl_lines(&cluster(3)).into_iter().map(|line| line.command).collect();
        for port in [7400, 7410, 7420, 7430] {
            assert!(all.iter().any(|line| line.contains(&format!("127.0.0.1:{port}/"))), "{port}");
        }
        assert!(all.contains(&r#"curl -d '{"to":"n2"}' http://127.0.0.1:7400/v1/leader"#.to_owned()), "{all:?}");
        let single: Vec<String> = curl_lines(&cluster(1)).into_iter().map(|line| line.command).collect();
        assert!(single.iter().all(|line| line.contains("127.0.0.1:7400/")), "{single:?}");
    }

    #[test]
    fn the_greeting_names_every_address_and_how_to_stop() {
        let text = greeting(&cluster(3), "lifeboat-data", false).join("\n");
        for part in ["http://127.0.0.1:7430  mirror m1 in site west", "voter n3 in site east", "log.txt", "Ctrl-C"] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(greeting(&cluster(1), "d", true).join("\n").contains("in this process"));
    }

    #[test]
    fn the_table_has_straight_columns() {
        let mut seen = three_and_a_mirror("n2", 3);
        seen[2] = Seen { process: Process::Down, status: None };
        let lines = table(&cluster(3), &seen);
        assert_eq!(
            lines,
            [
                "  member  site  role      state  pid  clients                revision  applied  lag",
                "  n1      east  follower  ready  100  http://127.0.0.1:7400  7         9        0.01 s",
                "  n2      east  leader    ready  100  http://127.0.0.1:7410  7         9        0.01 s",
                "  n3      east  voter     down   -    http://127.0.0.1:7420  -         -        -",
                "  m1      west  mirror    ready  100  http://127.0.0.1:7430  7         9        0.01 s",
            ]
        );
    }

    #[test]
    fn a_cluster_is_complete_when_all_know_all() {
        let one = |name: &str, joining: bool| Member {
            id: 1,
            name: name.to_owned(),
            site: "east".to_owned(),
            role: MemberRole::Voter,
            client_url: String::new(),
            peer_url: String::new(),
            leader: false,
            joining,
        };
        let knowing = |members: Vec<Member>| {
            let mut seen = three_and_a_mirror("n1", 1);
            for seen in &mut seen {
                seen.status.as_mut().unwrap().members = members.clone();
            }
            seen
        };
        let all = |joining| ["n1", "n2", "n3", "m1"].map(|name| one(name, joining && name == "n3")).to_vec();
        assert!(is_complete(&knowing(all(false))));
        assert!(!is_complete(&knowing(all(true))));
        assert!(!is_complete(&knowing(all(false)[..3].to_vec())));
        let mut unready = knowing(all(false));
        unready[2].status.as_mut().unwrap().ready = false;
        assert!(!is_complete(&unready));
        unready[2].status = None;
        assert!(!is_complete(&unready));
    }

    #[test]
    fn changes_are_told_once() {
        let members = cluster(3);
        let before = three_and_a_mirror("n1", 3);
        assert_eq!(changes(&members, &before, &before, false), Vec::<String>::new());
        let mut after = three_and_a_mirror("n2", 4);
        after[0] = Seen { process: Process::Down, status: None };
        after[2].status = None;
        after[3].status = status("m1", Role::Mirror, 4, false);
        let told = changes(&members, &before, &after, false);
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!(told[0], "n3 does not answer");
        assert!(told[1].starts_with("m1 is not ready"));
        assert_eq!(told[2], "n2 leads in term 4");
        assert_eq!(changes(&members, &after, &after, false), Vec::<String>::new());
        assert_eq!(changes(&members, &before, &after, true), ["n2 leads in term 4"]);
    }

    #[test]
    fn of_two_that_say_they_lead_the_newer_term_counts() {
        let mut seen = three_and_a_mirror("n1", 3);
        seen[1].status = status("n2", Role::Leader, 5, true);
        assert_eq!(leader(&seen), Some(("n2", 5)));
        assert_eq!(leader(&[]), None);
    }
}
