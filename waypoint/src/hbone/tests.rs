//! HBONE over loopback sockets, with certificates of a PKI made for each test.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use model::authority::Authority;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::client::{ClientOptions, ConnectError};
use super::pool::{Pool, PoolObserver, PoolOptions};
use super::server::{Connect, ConnectRefusal, HandshakeRefusal, Server, ServerObserver, ServerOptions};
use super::stream::HboneStream;
use super::*;
use crate::drain::{Drain, DrainWatch, drain};
use crate::tls::tests::{CLIENT_ID, EXPIRED, Pki, SERVER_ID, mesh};
use crate::tls::{ClientTls, Identity, MeshTls};

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

fn authority() -> Authority {
    Authority::parse("10.96.1.1:80").unwrap()
}

/// Counts what it is told, and lets a test wait for it.
#[derive(Debug)]
struct Seen {
    events: Mutex<Vec<String>>,
    changed: watch::Sender<usize>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { events: Mutex::default(), changed: watch::channel(0).0 }
    }
}

impl Seen {
    fn add(&self, event: String) {
        self.events.lock().push(event);
        self.changed.send_modify(|count| *count += 1);
    }

    fn count(&self, event: &str) -> usize {
        self.events.lock().iter().filter(|seen| seen.starts_with(event)).count()
    }

    async fn wait(&self, event: &str, count: usize) {
        let mut changed = self.changed.subscribe();
        let reached = changed.wait_for(|_| self.count(event) >= count);
        if timeout(DEADLINE, reached).await.is_err() {
            panic!("waited for {event}, saw {:?}", self.events.lock());
        }
    }
}

impl ServerObserver for Seen {
    fn handshake_refused(&self, _: SocketAddr, _: Option<SocketAddr>, reason: &HandshakeRefusal) {
        self.add(format!("refused {}", reason.name()));
    }
    fn connection_opened(&self, _: &Downstream) {
        self.add("opened".to_owned());
    }
    fn connection_closed(&self, _: &Downstream, end: &ConnectionEnd) {
        self.add(format!("closed {end:?}"));
    }
    fn connect_refused(&self, _: &Downstream, authority: &str, reason: &ConnectRefusal) {
        self.add(format!("connect {authority} {}", reason.status().as_u16()));
    }
}

impl PoolObserver for Seen {
    fn connection_opened(&self, _: &Upstream) {
        self.add("opened".to_owned());
    }
    fn dial_failed(&self, _: SocketAddr, error: &ConnectError) {
        self.add(format!("dial {error}"));
    }
    fn connection_closed(&self, _: &Upstream, end: &ConnectionEnd) {
        self.add(format!("closed {end:?}"));
    }
    fn stale_retried(&self, _: SocketAddr) {
        self.add("stale".to_owned());
    }
}

/// A server under test; each CONNECT arrives on the channel.
struct Waypoint {
    address: SocketAddr,
    tls: Arc<MeshTls>,
    drain: Drain,
    seen: Arc<Seen>,
    connects: mpsc::UnboundedReceiver<Connect>,
}

impl Waypoint {
    async fn start(identity: Arc<Identity>, options: ServerOptions) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), identity, options).await
    }

    async fn start_at(address: SocketAddr, identity: Arc<Identity>, options: ServerOptions) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tls, seen) = (Arc::new(MeshTls::new()), Arc::new(Seen::default()));
        tls.publish(identity, mesh()).unwrap();
        let (drain, watch) = drain();
        let (sender, connects) = mpsc::unbounded_channel();
        let handler = move |connect: Connect| {
            // A test that has ended reads no more.
            let _ = sender.send(connect);
            async {}
        };
        let server = Server::new(Arc::clone(&tls), handler, Arc::clone(&seen) as _, options, watch.clone());
        tokio::spawn(accept(listener, Arc::new(server), watch));
        Self { address, tls, drain, seen, connects }
    }

    async fn next(&mut self) -> Connect {
        soon("a CONNECT", self.connects.recv()).await.unwrap()
    }
}

async fn accept<H: server::ConnectHandler>(listener: TcpListener, server: Arc<Server<H>>, mut watch: DrainWatch) {
    loop {
        let (tcp, peer) = tokio::select! {
            () = watch.draining() => return,
            accepted = listener.accept() => accepted.unwrap(),
        };
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.serve_connection(tcp, peer).await });
    }
}

struct Client {
    pool: Pool,
    tls: Arc<ClientTls>,
    seen: Arc<Seen>,
}

impl Client {
    fn new(identity: &Identity, options: PoolOptions) -> Self {
        let seen = Arc::new(Seen::default());
        let tls = Arc::new(ClientTls::new(identity, mesh()).unwrap());
        Self { pool: Pool::new(options, Arc::clone(&seen) as _), tls, seen }
    }

    async fn open(&self, address: SocketAddr) -> Result<HboneStream, ConnectError> {
        soon("a tunnel", self.pool.open(address, &self.tls, &authority(), &HeaderMap::new())).await
    }
}

async fn pair(waypoint: &mut Waypoint, client: &Client) -> (HboneStream, HboneStream) {
    let address = waypoint.address;
    let (near, far) = tokio::join!(client.open(address), async { waypoint.next().await.accept().unwrap() });
    (near.unwrap(), far)
}

async fn say(stream: &mut HboneStream, bytes: &[u8]) {
    soon("a write", async {
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
    })
    .await;
}

async fn hear(stream: &mut HboneStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    soon("a read", stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, bytes);
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_with_the_facts_of_its_connection() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let (target, mut headers) = (authority(), HeaderMap::new());
    headers.insert("forwarded", "for=\"10.99.0.10:37744\"".parse().unwrap());
    let (near, far) = tokio::join!(client.pool.open(waypoint.address, &client.tls, &target, &headers), async {
        let connect = waypoint.next().await;
        assert_eq!(connect.authority, authority());
        assert_eq!(connect.headers, headers);
        let mut answer = HeaderMap::new();
        answer.insert("baggage", "service.name=web".parse().unwrap());
        connect.answer.accept(answer).unwrap()
    });
    let (mut near, mut far) = (near.unwrap(), far);
    assert_eq!(near.answer_headers()["baggage"], "service.name=web");
    assert_eq!((near.connection().peer.as_str(), far.connection().peer.as_str()), (SERVER_ID, CLIENT_ID));
    assert_eq!(
        (near.connection().peer_address, near.connection().local_address),
        (far.connection().local_address, far.connection().peer_address)
    );
    say(&mut near, b"request").await;
    hear(&mut far, b"request").await;
    say(&mut far, b"answer").await;
    hear(&mut near, b"answer").await;
}
