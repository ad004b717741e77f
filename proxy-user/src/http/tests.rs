//! Listeners on real sockets: busy ports, idle and slow clients, both families.

use super::*;
use axum::routing::get as on_get;
use std::net::IpAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// Serves `router` on a free loopback port, until the test ends.
pub(crate) async fn listening(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(tokio::spawn(async move { accept(&listener, &router, &Connections::new(4)).await }));
    addr
}

/// The whole response to a GET, headers included.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

fn here() -> Router {
    Router::new().route("/", on_get(|| async { "here" }))
}

#[tokio::test]
async fn busy_port_is_reported_and_served_once_it_is_free() {
    let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = busy.local_addr().unwrap();
    let (send, mut receive) = mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        let report = |warning| send.send(warning).unwrap();
        serve(addr, "test", here(), Connections::new(4), report).await;
    });

    let warning = receive.recv().await.unwrap().expect("the port is busy");
    assert!(warning.message.contains(&addr.to_string()), "{}", warning.message);
    drop(busy);
    while receive.recv().await.unwrap().is_some() {}
    assert!(get(addr, "/").await.ends_with("here"));
    serving.abort();
}

#[tokio::test]
async fn idle_connections_keep_nobody_out() {
    let addr = listening(here()).await;
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(TcpStream::connect(addr).await.unwrap());
        assert!(get(addr, "/").await.ends_with("here"));
    }
}

#[tokio::test]
async fn a_connection_has_one_answer_and_five_seconds_to_ask() {
    let addr = listening(here()).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all("GET / HTTP/1.1\r\nHost: test\r\n\r\n".as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("closed by the listener");
    assert!(response.to_lowercase().contains("connection: close\r\n"), "{response}");

    let began = Instant::now();
    let mut slow = TcpStream::connect(addr).await.unwrap();
    slow.write_all(b"GET / HT").await.unwrap();
    let mut nothing = Vec::new();
    let read = timeout(HEADERS * 2, slow.read_to_end(&mut nothing)).await;
    drop(read.expect("closed in time"));
    assert!(began.elapsed() >= HEADERS, "{:?}", began.elapsed());
}

#[tokio::test]
async fn all_addresses_of_ipv6_are_those_of_ipv4_too_unless_told() {
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let connects = async |addr: IpAddr, port| TcpStream::connect((addr, port)).await.is_ok();
    let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());

    let both = Place::Addr("[::]:0".parse().unwrap()).bind().unwrap();
    assert!(connects(v4, port(&both)).await && connects(v6, port(&both)).await);
    let one = Place::Addr("0.0.0.0:0".parse().unwrap()).bind().unwrap();
    assert!(connects(v4, port(&one)).await && !connects(v6, port(&one)).await);
    let other = Place::AllV6(0).bind().unwrap();
    assert!(!connects(v4, port(&other)).await && connects(v6, port(&other)).await);
}
