//! A listener over sockets: its limits, its timeouts and its end, with a service of a few lines behind it.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;

use http_body_util::Full;
use hyper_util::rt::TokioIo as HyperIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::super::wire::{PATIENCE, Wire};
use super::*;

/// A listener whose service answers `/` at once and `/held` when it is let go.
struct Listening {
    address: SocketAddr,
    stop: StopSignal,
    served: tokio::task::JoinHandle<()>,
    counts: Arc<ConnectionCounts>,
    held: Arc<AtomicU64>,
    let_go: Arc<Semaphore>,
}

async fn listen(options: ServerOptions) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, counts) = (StopSignal::default(), Arc::new(ConnectionCounts::default()));
    let (held, let_go) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
    let (counter, gate) = (held.clone(), let_go.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (counter, gate) = (counter.clone(), gate.clone());
        async move {
            let held = request.uri().path() == "/held";
            let upgrades = request.headers().contains_key("upgrade");
            let upgrade = hyper::upgrade::on(request);
            if held {
                counter.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
            }
            let mut response = Response::new(Full::new(Bytes::from_static(b"done")));
            if upgrades {
                *response.status_mut() = hyper::StatusCode::SWITCHING_PROTOCOLS;
                *response.body_mut() = Full::default();
                response.headers_mut().insert("upgrade", "echo".parse().unwrap());
                response.headers_mut().insert("connection", "upgrade".parse().unwrap());
                tokio::spawn(async move {
                    let mut io = HyperIo::new(upgrade.await.unwrap());
                    let mut bytes = [0; 4];
                    io.read_exact(&mut bytes).await.unwrap();
                    io.write_all(&bytes).await.unwrap();
                });
            }
            Ok(response)
        }
    });
    let served = tokio::spawn(serve(listener, service, options, counts.clone(), stop.clone()));
    Listening { address, stop, served, counts, held, let_go }
}

impl Listening {
    async fn until_held(&self, wanted: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.held.load(Ordering::SeqCst) < wanted {
            assert!(Instant::now() < deadline, "the requests never arrived");
            tokio::task::yield_now().await;
        }
    }

    async fn ended(self) {
        tokio::time::timeout(PATIENCE, self.served).await.expect("the listener ends").unwrap();
        assert_eq!(self.counts.open.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test]
async fn requests_follow_each_other_on_one_connection_pipelined_or_not() {
    let listening = listen(ServerOptions::default()).await;
    let mut wire = Wire::connect(listening.address).await;
    assert_eq!(wire.get("/").await.body, b"done");
    assert_eq!(wire.get("/").await.body, b"done");
    wire.send("GET / HTTP/1.1\r\nHost: t\r\n\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n").await;
    assert_eq!(wire.answer(false).await.status, 200);
    assert_eq!(wire.answer(false).await.status, 200);
    assert_eq!(listening.counts.open.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_connection_that_is_one_too_many_is_told_so_and_the_next_is_served_when_there_is_room() {
    let listening = listen(ServerOptions { max_connections: 1, ..ServerOptions::default() }).await;
    let mut first = Wire::connect(listening.address).await;
    assert_eq!(first.get("/").await.status, 200);
    let mut second = Wire::connect(listening.address).await;
    let refusal = second.answer(false).await;
    assert_eq!((refusal.status, refusal.code().as_str()), (503, "too-many-connections"));
    assert_eq!(refusal.header("retry-after"), "1");
    assert!(second.is_closed().await);
    assert_eq!(listening.counts.refused.load(Ordering::Relaxed), 1);
    drop(first);
    let deadline = Instant::now() + PATIENCE;
    while Wire::connect(listening.address).await.get("/").await.status != 200 {
        assert!(Instant::now() < deadline, "there never was room again");
    }
}

#[tokio::test]
async fn an_unfinished_head_and_an_idle_connection_are_closed() {
    let millis = Duration::from_millis;
    let options =
        ServerOptions { header_timeout: millis(1500), idle_timeout: millis(1500), ..ServerOptions::default() };
    let listening = listen(options).await;
    let mut silent = Wire::connect(listening.address).await;
    let mut slow = Wire::connect(listening.address).await;
    slow.send("GET / HT").await;
    let mut idle = Wire::connect(listening.address).await;
    assert_eq!(idle.get("/").await.status, 200);
    assert!(silent.is_closed().await);
    assert!(slow.is_closed().await);
    assert!(idle.is_closed().await);
}

#[tokio::test]
async fn a_request_that_takes_longer_than_any_timeout_is_answered() {
    let millis = Duration::from_millis;
    let options =
        ServerOptions { header_timeout: millis(1500), idle_timeout: millis(1500), ..ServerOptions::default() };
    let listening = listen(options).await;
    let mut wire = Wire::connect(listening.address).await;
    wire.send("GET /held HTTP/1.1\r\nHost: t\r\n\r\n").await;
    listening.until_held(1).await;
    // The passing of this time is what is tried here: both timeouts, twice over.
    tokio::time::sleep(millis(3200)).await;
    listening.let_go.add_permits(1);
    assert_eq!(wire.answer(false).await.body, b"done");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_and_one_with_the_longest_keys_is_not() {
    let listening = listen(ServerOptions::default()).await;
    let key = "%ff".repeat(4096);
    let mut wire = Wire::connect(listening.address).await;
    assert_eq!(wire.get(&format!("/?start={key}&end={key}&after={key}")).await.status, 200);
    let mut wire = Wire::connect(listening.address).await;
    let large = "x".repeat(MAX_HEAD_BYTES);
    let head = format!("GET / HTTP/1.1\r\nHost: t\r\nX-Large: {large}\r\n\r\n");
    wire.try_send(head.as_bytes()).await;
    let answer = wire.answer_or_cut().await;
    assert!(answer.is_none_or(|answer| answer.status == 431), "a head beyond the limit was served");
    let mut wire = Wire::connect(listening.address).await;
    let many: String = (0..300).map(|n| format!("X-{n}: v\r\n")).collect();
    wire.send(format!("GET / HTTP/1.1\r\nHost: t\r\n{many}\r\n")).await;
    assert_eq!(wire.answer(false).await.status, 431);
    let mut wire = Wire::connect(listening.address).await;
    wire.send("GET / HTTP/1.1\r\nno colon\r\n\r\n").await;
    assert_eq!(wire.answer(false).await.status, 400);
}

#[tokio::test]
async fn stopping_answers_what_has_begun_and_accepts_nothing_more() {
    let listening = listen(ServerOptions::default()).await;
    let mut idle = Wire::connect(listening.address).await;
    assert_eq!(idle.get("/").await.status, 200);
    let mut busy = Wire::connect(listening.address).await;
    busy.send("GET /held HTTP/1.1\r\nHost: t\r\n\r\n").await;
    listening.until_held(1).await;
    listening.stop.stop();
    assert!(idle.is_closed().await);
    listening.let_go.add_permits(1);
    let answer = busy.answer(false).await;
    assert_eq!((answer.body.as_slice(), answer.header("connection")), (&b"done"[..], "close"));
    assert!(busy.is_closed().await);
    let address = listening.address;
    listening.ended().await;
    assert!(TcpStream::connect(address).await.is_err(), "the listener is gone");
}

#[tokio::test]
async fn an_announced_stop_serves_on_and_ends_each_connection_with_its_reply() {
    let listening = listen(ServerOptions::default()).await;
    let mut kept = Wire::connect(listening.address).await;
    assert_eq!(kept.get("/").await.status, 200);
    assert_eq!(kept.get("/").await.status, 200, "the connection is kept");
    listening.stop.announce();
    for mut wire in [kept, Wire::connect(listening.address).await] {
        let answer = wire.get("/").await;
        assert_eq!((answer.status, answer.header("connection")), (200, "close"));
        assert!(wire.is_closed().await);
    }
    listening.stop.stop();
    listening.ended().await;
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut() {
    let options = ServerOptions { drain_timeout: Duration::from_millis(20), ..ServerOptions::default() };
    let listening = listen(options).await;
    let mut busy = Wire::connect(listening.address).await;
    busy.send("GET /held HTTP/1.1\r\nHost: t\r\n\r\n").await;
    listening.until_held(1).await;
    listening.stop.stop();
    assert!(busy.is_closed().await);
    listening.ended().await;
}

#[tokio::test]
async fn a_connection_can_be_upgraded() {
    let listening = listen(ServerOptions::default()).await;
    let mut wire = Wire::connect(listening.address).await;
    wire.send("GET / HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nping").await;
    assert_eq!(wire.answer(true).await.status, 101);
    assert_eq!(wire.raw(4).await, b"ping");
}
