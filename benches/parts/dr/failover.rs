//! The verbs: the write pause of a switchover and what a client notices of it; how long a forced failover takes from the
//! command to the first write that is accepted; and what it costs to bring the old site home and move back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lifeboat::client::Client;
use serde_json::{Value, json};

use super::Options;
use super::resync::{keys_of, mib, write};
use super::support::cluster::{Cluster, Plan};
use super::support::http::{self, Request};
use super::support::link::Way;
use super::support::wait_within;

/// Between the sites, for a switchover.
const EACH_WAY: Duration = Duration::from_micros(2500);
/// Bringing a gigabyte home may take so long.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Clients that put for ever and retry as they are told; each notes when it was answered last.
struct Writers {
    stop: Arc<AtomicBool>,
    longest_micros: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    tasks: tokio::task::JoinSet<()>,
}

impl Writers {
    fn start(runtime: &tokio::runtime::Runtime, cluster: &Cluster, count: usize) -> Writers {
        let endpoints: Vec<String> = cluster.clients().iter().map(|client| format!("http://{client}")).collect();
        let mut writers = Writers {
            stop: Arc::default(),
            longest_micros: Arc::default(),
            done: Arc::default(),
            failed: Arc::default(),
            tasks: tokio::task::JoinSet::new(),
        };
        for number in 0..count {
            let client = Client::builder().endpoints(endpoints.clone()).build().unwrap();
            let (stop, longest) = (writers.stop.clone(), writers.longest_micros.clone());
            let (done, failed) = (writers.done.clone(), writers.failed.clone());
            let work = async move {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let began = Instant::now();
                    match client.put(format!("bench/{number}/{}", n % 100), "value").await {
                        Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                        Err(_) => failed.fetch_add(1, Ordering::Relaxed),
                    };
                    longest.fetch_max(began.elapsed().as_micros() as u64, Ordering::Relaxed);
                }
            };
            writers.tasks.spawn_on(work, runtime.handle());
        }
        writers
    }

    async fn stop(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        (self.done.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

/// Moves the primary site and waits until that is over; gives what the cluster says of it.
fn move_to(cluster: &Cluster, asked: usize, site: &str) -> Value {
    http::post(cluster.client(asked), "/v1/dr/switchover", &json!({ "to_site": site })).expect(202);
    wait_within(PATIENCE, "the switchover to be over", || {
        let reply = http::get(cluster.client(asked), "/v1/dr/switchover").expect(200).json();
        match reply["state"].as_str() {
            Some("done") => Ok(reply),
            Some("went-back") => panic!("it went back: {reply}"),
            _ => Err(reply.to_string()),
        }
    })
}

fn wait_synchronized(cluster: &Cluster, asked: usize) {
    wait_within(PATIENCE, "all to be synchronized", || {
        let reply = http::get(cluster.client(asked), "/v1/replication");
        let reply = if reply.status == 200 { reply.json() } else { return Err(reply.to_string()) };
        let members = reply["members"].as_array().ok_or("no members")?;
        match members.iter().all(|member| member["state"] == "SYNCHRONIZED") {
            true => Ok(()),
            false => Err(reply.to_string()),
        }
    });
}

pub fn switchover(options: &Options) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cluster = Plan::new(3, 3).flag("--log", "warn").linked().start();
    cluster.link().delay(EACH_WAY);
    wait_synchronized(&cluster, 0);
    println!("\nswitchover: three voters and three mirrors, {:?} each way between the sites", EACH_WAY);
    println!("| to | clients | write pause ms | longest put ms | puts meanwhile | failed |\n|---|--:|--:|--:|--:|--:|");
    for round in 0..options.rounds {
        let (site, clients) = (["west", "east"][round % 2], [1, 16][round / 2 % 2]);
        let writers = Writers::start(&runtime, &cluster, clients);
        let done = writers.done.clone();
        wait_within(PATIENCE, "the load", || {
            if done.load(Ordering::Relaxed) > 200 { Ok(()) } else { Err("not yet".into()) }
        });
        writers.longest_micros.store(0, Ordering::Relaxed);
        let reply = move_to(&cluster, 0, site);
        let longest = writers.longest_micros.load(Ordering::Relaxed);
        let (puts, failed) = runtime.block_on(writers.stop());
        println!("| {site} | {clients} | {} | {:.0} | {puts} | {failed} |", reply["pause_ms"], longest as f64 / 1000.0);
        wait_synchronized(&cluster, 0);
    }
}

pub fn force(runtime: &tokio::runtime::Runtime, options: &Options) {
    let plan = Plan::new(1, 1).flag("--log", "warn").flag("--wal-keep-bytes", "64MiB");
    let cluster = plan.linked().start();
    let (voter, mirror) = (0, 1);
    let keys = keys_of(options.content_mib);
    let bytes = write(runtime, cluster.client(voter), 0..keys, 1);
    cluster.wait_converged();
    println!(
        "\nforce: {:.0} MiB of JSON in {keys} keys, a voter and a mirror; the link is compressed and not delayed",
        mib(bytes)
    );
    cluster.link().cut();
    write(runtime, cluster.client(voter), (0..keys).step_by(100), 2);
    let began = Instant::now();
    http::post(cluster.client(mirror), "/v1/dr/force", &json!({ "accept_data_loss": true })).expect(202);
    wait_within(PATIENCE, "a write to be accepted", || {
        let put = Request::new("PUT", "/v1/kv/after").body("x").try_send(cluster.client(mirror));
        match put {
            Ok(answer) if answer.status < 300 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    println!("from the command to the first accepted write: {:.2} s", began.elapsed().as_secs_f64());
    write(runtime, cluster.client(mirror), (50..keys).step_by(100), 3);
    cluster.link().heal();
    wait_within(PATIENCE, "the old primary to be fenced", || {
        let answer = Request::new("GET", "/v1/role").try_send(cluster.client(voter)).map_err(|e| e.to_string())?;
        if answer.text().contains("fenced") { Ok(()) } else { Err(answer.to_string()) }
    });
    let (began, before) = (Instant::now(), cluster.link().bytes(Way::ToEast));
    http::post(cluster.client(voter), "/v1/dr/rejoin", &json!({})).expect(202);
    wait_within(PATIENCE, "the old primary to be home", || {
        let reply = http::get(cluster.client(mirror), "/v1/replication");
        let reply = if reply.status == 200 { reply.json() } else { return Err(reply.to_string()) };
        let home = reply["members"].as_array().is_some_and(|members| {
            let follows = |member: &Value| member["state"] == "SYNCHRONIZED" && member["applied_index"].is_u64();
            members.len() == 2 && members.iter().all(follows)
        });
        if home { Ok(()) } else { Err(reply.to_string()) }
    });
    let seconds = began.elapsed().as_secs_f64();
    let sent = cluster.link().bytes(Way::ToEast) - before;
    println!(
        "rejoin with 1% stranded and 1% changed since: {:.1} MiB on the link, {seconds:.1} s until it follows",
        mib(sent)
    );
    wait_within(PATIENCE, "it to be verified", || {
        let file = std::fs::read_to_string(cluster.member(voter).data.join("member.json")).unwrap();
        if file.contains("\"rejoin\"") { Err(file) } else { Ok(()) }
    });
    println!("and {:.1} s until it is verified and may vote", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let reply = move_to(&cluster, mirror, "east");
    println!(
        "the switchover home: {:.1} s, with a write pause of {} ms",
        began.elapsed().as_secs_f64(),
        reply["pause_ms"]
    );
}
