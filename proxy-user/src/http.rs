//! HTTP listeners that outlive a busy port.
//!
//! Takes an address and a router; binds, or says why it cannot and tries again. Never ends the
//! agent.

use crate::model::Warning;
use axum::Router;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;

/// How long to wait after the first failed attempt; twice as long after each further one.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// How long to wait at most.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Serves `router` on `addr` for ever. `what` says in words which listener this is; `report` is
/// told each time the address cannot be bound, and (`None`) when it was.
pub async fn serve(
    addr: SocketAddr,
    what: &str,
    router: Router,
    mut report: impl FnMut(Option<Warning>),
) {
    let mut wait = FIRST_WAIT;
    loop {
        let error = match TcpListener::bind(addr).await {
            Ok(listener) => {
                report(None);
                wait = FIRST_WAIT;
                match axum::serve(listener, router.clone()).await {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let message = format!("cannot listen on {addr}: {error}; retried until it can");
        report(Some(Warning { subject: format!("listener for {what}"), message }));
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use axum::routing::get as on_get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::mpsc;

    /// Serves `router` on a free loopback port, until the test ends.
    pub(crate) async fn listening(router: Router) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        drop(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
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

    #[tokio::test]
    async fn busy_port_is_reported_and_served_once_it_is_free() {
        let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = busy.local_addr().unwrap();
        let (send, mut receive) = mpsc::unbounded_channel();
        let router = Router::new().route("/", on_get(|| async { "here" }));
        let serving = tokio::spawn(async move {
            serve(addr, "test", router, |warning| send.send(warning).unwrap()).await;
        });

        let warning = receive.recv().await.unwrap().expect("the port is busy");
        assert!(warning.message.contains(&addr.to_string()), "{}", warning.message);
        drop(busy);
        while receive.recv().await.unwrap().is_some() {}
        assert!(get(addr, "/").await.ends_with("here"));
        serving.abort();
    }
}
