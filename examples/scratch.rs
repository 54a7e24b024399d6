use bytes::Bytes;
use lifeboat::config::Config;
use lifeboat::metrics::Metrics;
use lifeboat::model::*;
use lifeboat::node::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
async fn start(name: &str, dir: &std::path::Path, join: Option<String>) -> (Node, String) {
    let l = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", l.local_addr().unwrap());
    let c = Config { bootstrap: join.is_none(), join: join.into_iter().collect(), ..Config::new(name, dir.join(name)) };
    let n =
        Node::start(&c, Addresses { client_url: "http://x".into(), peer_url: url.clone() }, Arc::new(Metrics::new()))
            .await
            .unwrap();
    let r = lifeboat::http::peer::router(n.clone());
    let l = l.into_std().unwrap();
    n.runtime().spawn(async move {
        axum::serve(
            axum::serve::ListenerExt::tap_io(tokio::net::TcpListener::from_std(l).unwrap(), |s| {
                s.set_nodelay(true).unwrap();
            }),
            r,
        )
        .await
        .unwrap();
    });
    (n, url)
}
fn main() {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let d = std::env::args().nth(1).unwrap();
        let d = std::path::Path::new(&d);
        let (n1, u) = start("n1", d, None).await;
        let (n2, _) = start("n2", d, Some(u.clone())).await;
        let (n3, _) = start("n3", d, Some(u)).await;
        while n1.members().iter().filter(|m| !m.joining).count() < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for (label, node) in [("leader", n1.clone()), ("follower", n2.clone())] {
            for clients in [1usize, 16, 64, 256] {
                let t = Instant::now();
                let cpu = cpu();
                let mut hs = vec![];
                for c in 0..clients {
                    let n = node.clone();
                    hs.push(tokio::spawn(async move {
                        let mut k = 0u64;
                        let mut lat = vec![];
                        while t.elapsed() < Duration::from_secs(3) {
                            let w = WriteCommand {
                                ops: vec![WriteOp::Put {
                                    space: KeySpace::User,
                                    key: Bytes::from(format!("k{}-{}", c, k % 1000)),
                                    value: vec![7u8; 256].into(),
                                    lease: 0,
                                }],
                                ..Default::default()
                            };
                            let s = Instant::now();
                            n.write(&RequestContext::anonymous(0, Duration::from_secs(10)), w)
                                .await
                                .map_err(|e| panic!("{e} at {:?}", t.elapsed()))
                                .ok();
                            lat.push(s.elapsed());
                            k += 1;
                        }
                        lat
                    }));
                }
                let mut lat = vec![];
                for h in hs {
                    lat.extend(h.await.unwrap());
                }
                lat.sort();
                let cpu = self::cpu() - cpu;
                println!(
                    "{label} {clients} clients: {:.0}/s p50 {:?} p99 {:?} cpu {:.1} us/op",
                    lat.len() as f64 / t.elapsed().as_secs_f64(),
                    lat[lat.len() / 2],
                    lat[lat.len() * 99 / 100],
                    cpu * 1e6 / lat.len() as f64
                );
            }
        }
        for (label, node) in [("leader", n1.clone()), ("follower", n2.clone())] {
            for clients in [1usize, 64, 256] {
                let t = Instant::now();
                let cpu = cpu();
                let mut hs = vec![];
                for c in 0..clients {
                    let n = node.clone();
                    hs.push(tokio::spawn(async move {
                        let mut k = 0u64;
                        while t.elapsed() < Duration::from_secs(2) {
                            n.read_barrier(&RequestContext::anonymous(0, Duration::from_secs(10))).await.unwrap();
                            n.store().get(KeySpace::User, format!("k{}-{}", c, k % 1000).as_bytes(), None).unwrap();
                            k += 1;
                        }
                        k
                    }));
                }
                let mut k = 0;
                for h in hs {
                    k += h.await.unwrap();
                }
                println!(
                    "read {label} {clients} clients: {:.0}/s cpu {:.1}us/op",
                    k as f64 / t.elapsed().as_secs_f64(),
                    (self::cpu() - cpu) * 1e6 / k as f64
                );
            }
        }
        for n in [n3, n2, n1] {
            n.stop().await.unwrap();
        }
    });
}
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
