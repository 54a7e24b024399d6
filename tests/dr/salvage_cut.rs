//! `lifeboat salvage apply` that is cut: killed at a moment that the test knows, given twice at once, and with the leader of the
//! cluster dying under it. In the end all is as after one run that nobody disturbed: the same values, each written once,
//! the same requests remembered, the same conflicts reported.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::support::cluster::{Cluster, Plan};
use crate::support::gate::{Gate, Held};
use crate::support::http;
use crate::support::salvage::{File, done, put};
use crate::support::wait_for;
use serde_json::{Value, json};

/// The writes that salvage makes.
const WRITES: &str = "POST /v1/txn";
/// Stranded writes of one key each; of every third the request is known by a key. There is a deletion besides.
const SINGLE: usize = 24;
/// Keys that were changed since the fork.
const CONFLICTS: usize = 4;
/// Keys of one large stranded write.
const TOGETHER: usize = 130;
/// Keys of each transaction that brings it back.
const PART: usize = 60;

/// What is stranded.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Many writes, each brought back by a transaction, conflicts, and one for a person.
    Many,
    /// One write, which takes three transactions.
    Large,
}

impl Kind {
    /// The keys that are changed when it is brought back.
    fn changes(self) -> usize {
        if self == Kind::Many { SINGLE + 1 } else { TOGETHER }
    }

    /// The exit code: there is something left for a person, or not.
    fn code(self) -> i32 {
        if self == Kind::Many { 4 } else { 0 }
    }
}

/// What is stranded under a prefix of its own, so that what became of it can be compared with another's.
struct Stranded {
    kind: Kind,
    prefix: String,
    file: PathBuf,
}

/// What became of what was stranded: every key with its value and how often it was written, and the requests remembered.
#[derive(Debug, PartialEq)]
struct Came {
    keys: Vec<(String, String, u64)>,
    known: Vec<String>,
}

/// What was done with each key.
type Done = Vec<(String, String)>;

/// Strands one of each of these kinds.
fn strand<const N: usize>(cluster: &Cluster, kinds: [Kind; N]) -> [Stranded; N] {
    let prefixes: [(Kind, String); N] = std::array::from_fn(|n| (kinds[n], format!("s{n}/")));
    for (_, prefix) in prefixes.iter().filter(|(kind, _)| *kind == Kind::Many) {
        let names = (0..SINGLE).map(|n| format!("k{n}")).chain((0..CONFLICTS).map(|n| format!("c{n}")));
        for name in names.chain(["gone".into()]) {
            cluster.put_until_done(0, &format!("{prefix}{name}"), "old");
        }
    }
    let fork = cluster.put_until_done(0, "last", "shared");
    prefixes.map(|(kind, prefix)| {
        let mut file = File::new(cluster, "a", fork);
        let named = |name: String, value: &str, version| put(&format!("{prefix}{name}"), value, version);
        if kind == Kind::Large {
            file.write("applied", None, &(0..TOGETHER).map(|n| named(format!("t{n}"), "new", 1)).collect());
        } else {
            for n in 0..SINGLE {
                let request = (n % 3 == 0).then(|| format!("{prefix}try-{n}"));
                file.write("applied", request.as_deref(), &json!([named(format!("k{n}"), "new", 2)]));
            }
            for n in 0..CONFLICTS {
                cluster.put_until_done(0, &format!("{prefix}c{n}"), "changed");
                file.write("applied", None, &json!([named(format!("c{n}"), "stranded", 2)]));
            }
            file.write("applied", None, &json!([{ "op": "delete", "key": format!("{prefix}gone") }]));
            file.write("unknown", None, &json!([named("by-hand".into(), "new", 1)]));
            file.lines.last_mut().unwrap()["conditional"] = json!(true);
        }
        let file = file.save(&cluster.path().join(prefix.trim_end_matches('/')));
        Stranded { kind, prefix, file }
    })
}

impl Stranded {
    /// Begins to bring it back through these endpoints.
    fn begin(&self, endpoints: &str, flags: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(["salvage", "apply"]).arg(&self.file).args(["--apply", "-o", "json", "--endpoints", endpoints]);
        command.args(flags).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What one reports in the end that was begun.
    #[track_caller]
    fn ended(&self, child: Child, code: i32) -> Done {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let bare = |(key, what): (String, String)| (key.strip_prefix(&self.prefix).unwrap().to_owned(), what);
        done(&serde_json::from_str(&text).unwrap()).into_iter().map(bare).collect()
    }

    /// Brings it back, undisturbed.
    #[track_caller]
    fn run(&self, cluster: &Cluster) -> Done {
        self.ended(self.begin(&url(cluster, cluster.running()[0]), &[]), self.kind.code())
    }

    fn came(&self, cluster: &Cluster) -> Came {
        let content = cluster.assert_same_content();
        let items = content.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let keys = items.filter_map(|item| {
            let bare = item["key"].as_str().unwrap().strip_prefix(&self.prefix)?.to_owned();
            Some((bare, item["value"].as_str().unwrap().to_owned(), item["version"].as_u64().unwrap()))
        });
        let keys = keys.collect();
        let requests: Vec<String> = (0..SINGLE).map(|n| format!("{}try-{n}", self.prefix)).collect();
        let member = cluster.client(cluster.running()[0]);
        let reply = wait_for("a leader to say what it knows", || {
            let answer = http::post(member, "/v1/dr/salvage/known", &json!({ "idempotency_keys": requests }));
            if answer.status == 200 { Ok(answer.json()) } else { Err(answer.to_string()) }
        });
        let known = reply["known"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        let mut known: Vec<String> = known.map(|name| name.strip_prefix(&self.prefix).unwrap().to_owned()).collect();
        known.sort();
        Came { keys, known }
    }

    /// How many of the stranded changes are in the cluster.
    fn changed(&self, cluster: &Cluster) -> usize {
        let Came { keys, .. } = self.came(cluster);
        let deleted = self.kind == Kind::Many && !keys.iter().any(|(key, ..)| key == "gone");
        keys.iter().filter(|(_, value, _)| value == "new").count() + usize::from(deleted)
    }
}

fn url(cluster: &Cluster, member: usize) -> String {
    format!("http://{}", cluster.client(member))
}

/// Those of one outcome.
fn only<'d>(done: &'d Done, outcome: &str) -> Vec<&'d (String, String)> {
    done.iter().filter(|(_, what)| what == outcome).collect()
}

/// What is left for a person is the same.
#[track_caller]
fn assert_same_left(one: &Done, other: &Done) {
    for outcome in ["conflict", "by-hand"] {
        assert_eq!(only(one, outcome), only(other, outcome));
    }
}

/// How it goes when nobody disturbs it: what the first run reports, what a second one does, and what came of it.
fn undisturbed(cluster: &Cluster, stranded: &Stranded) -> (Done, Done, Came) {
    let first = stranded.run(cluster);
    assert_eq!(only(&first, "applied").len(), stranded.kind.changes(), "{first:?}");
    let came = stranded.came(cluster);
    assert_eq!(stranded.changed(cluster), stranded.kind.changes());
    let again = stranded.run(cluster);
    assert_eq!((only(&again, "applied"), stranded.came(cluster)), (vec![], came));
    (first, again, stranded.came(cluster))
}

/// The command is killed when so many of its writes are done and no other has come to the cluster, or when it has heard of
/// so many, and all that it has sent are done. It is given again, and what the first one had sent arrives behind that.
#[test]
fn one_that_is_killed_is_given_again_and_nothing_is_done_twice() {
    use Kind::{Large, Many};
    let cluster = Plan::new(1, 0).start();
    let [many, large, rest @ ..] = strand(&cluster, [Many, Large, Many, Many, Many, Many, Large, Large, Large]);
    let usual = [undisturbed(&cluster, &many), undisturbed(&cluster, &large)];
    let moments = [
        (Held::Request, 0),
        (Held::Request, 7),
        (Held::Answer, 0),
        (Held::Answer, 11),
        // A part of the large write is done.
        (Held::Request, 1),
        (Held::Request, 2),
        (Held::Answer, 1),
    ];
    for (stranded, (held, passes)) in rest.iter().zip(moments) {
        let kind = stranded.kind;
        let name = format!("{kind:?} {held:?} {passes}");
        let gate = Gate::new(cluster.client(0), WRITES, held, passes);
        let mut child = stranded.begin(&gate.url(), &[]);
        gate.wait_held(1);
        gate.wait_answered(passes);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(gate.passed(), passes, "{name}");
        let writes = if held == Held::Answer { gate.wait_settled() } else { passes };
        let changed = stranded.changed(&cluster);
        // Each is a write, or lets the request of one that is done be remembered.
        let known = stranded.came(&cluster).known.len();
        assert_eq!(if kind == Large { changed / PART } else { changed + known }, writes, "{name}");
        let (first, again, came) = &usual[usize::from(kind == Large)];
        let second = stranded.run(&cluster);
        // A write is told of with all its keys, also when a part of them was there.
        let left = if kind == Large { TOGETHER } else { kind.changes() - changed };
        assert_eq!(only(&second, "applied").len(), left, "{name}: {second:?}");
        assert_same_left(&second, first);
        assert_eq!(stranded.came(&cluster), *came, "{name}");
        gate.open();
        assert!(gate.wait_settled() > passes, "{name}: something was on its way");
        assert_eq!(stranded.came(&cluster), *came, "{name}: what arrives late changes nothing");
        assert_eq!((&stranded.run(&cluster), &stranded.came(&cluster)), (again, came), "{name}");
    }
}

/// Two bring back the same. The second has seen everything as it was before the first wrote, or both write at the same time:
/// neither takes what the other has brought back for a conflict.
#[test]
fn two_at_once_come_to_what_one_comes_to() {
    use Kind::{Large, Many};
    let cluster = Plan::new(1, 0).start();
    let [many, large, rest @ ..] = strand(&cluster, [Many, Large, Many, Large, Many, Large]);
    let usual = [undisturbed(&cluster, &many), undisturbed(&cluster, &large)];
    for (stranded, one_by_one) in rest.iter().zip([true, true, false, false]) {
        let kind = stranded.kind;
        let name = format!("{kind:?} {one_by_one}");
        let gates = [(); 2].map(|()| Gate::new(cluster.client(0), WRITES, Held::Request, 0));
        let children = gates.each_ref().map(|gate| stranded.begin(&gate.url(), &[]));
        // All that are looked at at first.
        let first_looks = if kind == Large { 1 } else { 16 };
        gates.iter().for_each(|gate| gate.wait_held(first_looks));
        let mut gates = gates.iter();
        let mut open = || gates.next().map(Gate::open);
        open();
        if !one_by_one {
            open();
        }
        let reports = children.map(|child| {
            let report = stranded.ended(child, kind.code());
            open();
            report
        });
        let (first, again, came) = &usual[usize::from(kind == Large)];
        for report in &reports {
            assert_same_left(report, first);
            let brought = ["applied", "same", "executed"].map(|outcome| only(report, outcome).len());
            assert_eq!(brought.iter().sum::<usize>(), kind.changes(), "{name}: {report:?}");
        }
        assert_eq!((&stranded.run(&cluster), &stranded.came(&cluster)), (again, came), "{name}");
    }
}

/// What was given up as lost with `--overwrite` is what was there at the first look, and nothing that came since.
#[test]
fn what_is_written_while_conflicts_are_overwritten_is_kept() {
    let cluster = Plan::new(1, 0).start();
    let [stranded] = strand(&cluster, [Kind::Many]);
    stranded.run(&cluster);
    let gates = [(); 2].map(|()| Gate::new(cluster.client(0), WRITES, Held::Request, 0));
    let children = gates.each_ref().map(|gate| stranded.begin(&gate.url(), &["--overwrite"]));
    gates.iter().for_each(|gate| gate.wait_held(CONFLICTS));
    cluster.put_until_done(0, &format!("{}c0", stranded.prefix), "newer");
    for (gate, child) in gates.iter().zip(children) {
        gate.open();
        let report = stranded.ended(child, 4);
        assert_eq!(only(&report, "conflict"), [&("c0".to_owned(), "conflict".to_owned())], "{report:?}");
    }
    let Came { keys, .. } = stranded.came(&cluster);
    let of =
        |name: &str| keys.iter().find(|(key, ..)| key == name).map(|(_, value, version)| (value.as_str(), *version));
    assert_eq!((of("c0"), of("c1")), (Some(("newer", 3)), Some(("stranded", 3))), "each once");
}

/// The leader stands still with writes of salvage on their way through it, and is killed: the command goes on through another
/// member to its end.
#[test]
fn the_death_of_the_leader_amid_it_is_not_noticed() {
    let plan = Plan::new(3, 0);
    let mut cluster = plan.quick().start();
    let [usual, disturbed, late] = strand(&cluster, [Kind::Many, Kind::Many, Kind::Large]);
    let (first, again, came) = undisturbed(&cluster, &usual);
    for stranded in [disturbed, late] {
        let leader = cluster.wait_leader();
        let gate = Gate::new(cluster.client(cluster.follower()), WRITES, Held::Request, 1);
        let child = stranded.begin(&gate.url(), &[]);
        gate.wait_held(1);
        cluster.pause(leader);
        gate.open();
        gate.wait_sent(2);
        cluster.kill(leader);
        let report = stranded.ended(child, stranded.kind.code());
        assert_eq!(only(&report, "applied").len(), stranded.kind.changes(), "{report:?}");
        cluster.start_member(leader);
        cluster.wait_all_ready();
        let keys = stranded.came(&cluster).keys;
        if stranded.kind == Kind::Many {
            assert_same_left(&report, &first);
            assert_eq!(stranded.came(&cluster), came);
            assert_eq!(stranded.run(&cluster), again);
        } else {
            let once = keys.iter().all(|(_, value, version)| value == "new" && *version == 1);
            assert!(once && keys.len() == TOGETHER, "{keys:?}");
        }
    }
}
