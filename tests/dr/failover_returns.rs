//! Old members that come back in any order and number: a leader, its voters and the learner of a third site, fenced, killed
//! and started again, at last coming home. None of it changes what the new timeline holds.

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{
    assert_one_timeline, force_and_wait, member_file, role, salvaged, survey, tell_to_rejoin, wait_home, wait_role,
};
use crate::support::http::{self, Request};
use crate::support::{Seed, wait_for};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};

/// Three voters, the mirror that is forced, and one of a third site.
const VOTERS: [usize; 3] = [0, 1, 2];
const WEST: usize = 3;
const NORTH: usize = 4;
/// How often they come and go.
const ROUNDS: usize = 4;
/// As many positions as a member tells of at once.
const AT_ONCE: u64 = 64;

/// What a timeline is, up to a revision: what was there, and the chain hash at each position.
#[derive(PartialEq, Debug)]
struct Written {
    revision: u64,
    content: Vec<String>,
    chain: Vec<Value>,
}

impl Written {
    /// All that a member has written until now.
    fn by(cluster: &Cluster, member: usize) -> Written {
        let status = cluster.status(member).unwrap();
        let number = |field: &str| status[field].as_u64().unwrap();
        Written::up_to(cluster, member, number("revision"), number("applied_index"))
    }

    fn up_to(cluster: &Cluster, member: usize, revision: u64, position: u64) -> Written {
        let id = &member_file(cluster, member)["cluster"]["id"];
        let positions: Vec<u64> = (0..=position).collect();
        let chain = positions.chunks(AT_ONCE as usize).flat_map(|positions| {
            let question = json!({ "cluster": id, "positions": positions });
            let answer = http::post(cluster.member(member).peer, "/peer/v1/common", &question).expect(200).json();
            answer["at"].as_array().unwrap().clone()
        });
        Written { revision, content: cluster.content(member, revision), chain: chain.collect() }
    }

    /// A member holds this too, byte for byte.
    #[track_caller]
    fn assert_held(&self, cluster: &Cluster, member: usize) {
        let last = self.chain.last().unwrap()["position"].as_u64().unwrap();
        let now = Written::up_to(cluster, member, self.revision, last);
        assert_eq!(now.content, self.content, "n{}", member + 1);
        let changed = now.chain.iter().zip(&self.chain).find(|(now, before)| now["chain"] != before["chain"]);
        assert_eq!(changed, None, "n{}", member + 1);
    }
}

/// The members in some order, in groups that come at once.
fn groups(random: &mut StdRng, members: &[usize]) -> Vec<Vec<usize>> {
    let mut left = members.to_vec();
    left.shuffle(random);
    let mut groups = Vec::new();
    while !left.is_empty() {
        let size = random.random_range(1..=left.len());
        groups.push(left.drain(..size).collect());
    }
    groups
}

#[test]
fn old_members_come_back_in_any_order_and_number_and_change_nothing() {
    let seed = Seed::for_test("old_members_come_back_in_any_order_and_number_and_change_nothing");
    let mut random = seed.rng(1);
    let mut cluster = Plan::new(3, 1).prepare();
    cluster.add_member("mirror", "north");
    cluster.start_member(VOTERS[0]);
    cluster.wait_ready(VOTERS[0]);
    for member in 1..cluster.len() {
        cluster.start_member(member);
    }
    cluster.wait_joined();
    for n in 0..10 {
        cluster.put_until_done(0, &format!("k{n}"), "both");
    }
    cluster.wait_converged();
    // Its log has all of that on the disk; from here on the others write without it.
    assert!(cluster.stop(WEST).success());
    let mut stranded = Vec::new();
    for n in 5..10 {
        stranded.push((format!("k{n}"), cluster.put_until_done(0, &format!("k{n}"), "old")));
    }
    let last = cluster.wait_converged();
    let leader = cluster.wait_leader();
    let old: Vec<usize> = VOTERS.into_iter().chain([NORTH]).collect();
    for member in &old {
        cluster.kill(*member);
    }
    cluster.start_member(WEST);
    wait_for("the mirror to serve", || support::dr::surveys(&cluster, WEST));
    force_and_wait(&cluster, WEST, &json!({ "accept_data_loss": true }));
    for n in 3..7 {
        cluster.put_until_done(WEST, &format!("k{n}"), "new");
    }
    println!("n{} led the old timeline", leader + 1);
    for round in 0..ROUNDS {
        let before = Written::by(&cluster, WEST);
        assert!(before.content.iter().all(|line| !line.contains("\"old\"")), "{:?}", before.content);
        assert!(before.chain.iter().filter(|at| at["chain"].is_string()).count() > 10, "{:?}", before.chain);
        let come = groups(&mut random, &old);
        println!("round {round}: {come:?}");
        for group in &come {
            for member in group {
                cluster.start_member(*member);
            }
            // The next ones come while these may still believe that they take part.
            if random.random() {
                for member in group {
                    wait_role(&cluster, *member, "fenced");
                }
            }
            cluster.put_until_done(WEST, "new", &format!("{round}"));
        }
        for member in &old {
            wait_role(&cluster, *member, "fenced");
        }
        before.assert_held(&cluster, WEST);
        assert_eq!(role(&cluster, WEST).as_deref(), Ok("leader"));
        let found = survey(&cluster, WEST);
        let leads = found["members"].as_array().unwrap().iter().filter(|member| member["leads"] == true).count();
        assert_eq!(leads, 1, "{found}");
        if round + 1 < ROUNDS {
            for member in groups(&mut random, &old).concat() {
                cluster.kill(member);
            }
        }
    }
    let before = Written::by(&cluster, WEST);
    let come = groups(&mut random, &old);
    println!("home: {come:?}");
    for group in come {
        for member in &group {
            tell_to_rejoin(&cluster, *member);
        }
        for member in group {
            wait_home(&cluster, member, WEST);
        }
        cluster.put_until_done(WEST, "new", "home");
    }
    let content = assert_one_timeline(&cluster, WEST);
    assert!(content.iter().all(|line| !line.contains("\"old\"")), "{content:?}");
    for member in 0..cluster.len() {
        before.assert_held(&cluster, member);
    }
    let found = salvaged(&cluster, &old);
    for (key, revision) in stranded {
        // That the last one was committed may not have become durable anywhere.
        let applied = found.contains(&(key.clone(), "applied".to_owned(), revision));
        let unknown = revision == last && found.contains(&(key.clone(), "unknown".to_owned(), 0));
        assert!(applied || unknown, "{key} at {revision}: {found:?}");
    }
    let tells = Request::new("GET", "/v1/dr").send(cluster.client(WEST)).expect(200).text().to_owned();
    assert!(!tells.contains("dr rejoin"), "nobody is left out: {tells}");
}
