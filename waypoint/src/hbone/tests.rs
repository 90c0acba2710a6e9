//! HBONE over loopback sockets, with certificates of a PKI made for each test.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use model::authority::Authority;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
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

#[test]
fn a_connection_whose_driver_is_gone_is_told_to_be_closed_on_both_sides() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (waypoint, client) = runtime.block_on(async {
        let pki = Pki::new("mesh");
        let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
        let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
        pair(&mut waypoint, &client).await;
        (waypoint, client)
    });
    let counts = |seen: &Seen| (seen.count("opened"), seen.count("closed"), seen.count("closed Dropped"));
    assert_eq!((counts(&waypoint.seen), counts(&client.seen)), ((1, 0, 0), (1, 0, 0)));
    drop(runtime);
    assert_eq!((counts(&waypoint.seen), counts(&client.seen)), ((1, 1, 1), (1, 1, 1)));
}

#[tokio::test]
async fn a_connection_whose_driver_panics_is_told_to_be_closed() {
    let pki = Pki::new("mesh");
    let (tls, seen) = (Arc::new(MeshTls::new()), Arc::new(Seen::default()));
    tls.publish(pki.identity(SERVER_ID, 1), mesh()).unwrap();
    let (_drain, watch) = drain();
    let handler = |_: Connect| -> std::future::Ready<()> { panic!("as a mistake would") };
    let server = Server::new(tls, handler, Arc::clone(&seen) as _, ServerOptions::default(), watch.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(accept(listener, Arc::new(server), watch));
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    assert!(client.open(address).await.is_err());
    seen.wait("closed Dropped", 1).await;
    assert_eq!((seen.count("opened"), seen.count("closed")), (1, 1));
}

/// A raw HTTP/2 client on a tunnel port, for what our own client never sends.
async fn raw_client(waypoint: &Waypoint, tls: &ClientTls) -> h2::client::SendRequest<Bytes> {
    let tcp = TcpStream::connect(waypoint.address).await.unwrap();
    let (stream, _) = tls.connect(tcp, waypoint.address.ip()).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    send
}

async fn status(send: &mut h2::client::SendRequest<Bytes>, method: Method, uri: &str) -> StatusCode {
    let request = Request::builder().method(method).uri(uri).body(()).unwrap();
    let (response, _) = send.send_request(request, true).unwrap();
    soon("an answer", response).await.unwrap().status()
}

#[tokio::test]
async fn what_is_no_tls_is_refused_and_named() {
    let pki = Pki::new("mesh");
    let waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let mut tcp = TcpStream::connect(waypoint.address).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
    soon("the end", tcp.read_to_end(&mut Vec::new())).await.ok();
    waypoint.seen.wait("refused not_tls", 1).await;
}

#[tokio::test]
async fn what_is_no_http2_inside_tls_is_refused_and_named() {
    let pki = Pki::new("mesh");
    let waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let tls = ClientTls::new(&pki.identity(CLIENT_ID, 1), mesh()).unwrap();
    let tcp = TcpStream::connect(waypoint.address).await.unwrap();
    let (mut stream, _) = tls.connect(tcp, waypoint.address.ip()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
    soon("the end", stream.read_to_end(&mut Vec::new())).await.ok();
    waypoint.seen.wait("refused not_http2", 1).await;
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_and_named() {
    let pki = Pki::new("mesh");
    let waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let config = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(crate::tls::tests::server_verifier(&pki))
        .with_no_client_auth();
    let tcp = TcpStream::connect(waypoint.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("waypoint").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    if let Ok(mut stream) = stream {
        soon("the alert", stream.read(&mut [0])).await.unwrap_err();
    }
    waypoint.seen.wait("refused no_certificate", 1).await;
}

#[tokio::test]
async fn certificates_that_are_not_accepted_are_named_on_both_sides() {
    let (pki, stranger) = (Pki::new("mesh"), Pki::new("stranger"));
    let waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let cases = [
        ("refused foreign_trust_domain", pki.identity("spiffe://elsewhere/ns/clients/sa/frontend", 1)),
        ("refused certificate_expired", pki.identity_valid(CLIENT_ID, 1, EXPIRED)),
        ("refused unknown_issuer", stranger.identity_trusting(CLIENT_ID, &pki)),
    ];
    for (reason, identity) in cases {
        let client = Client::new(&identity, PoolOptions::default());
        let error = client.open(waypoint.address).await.unwrap_err();
        assert!(matches!(error, ConnectError::Tls(TlsFailure::Alert(_))), "{reason}: {error:?}");
        assert!(error.transport_failure_reason().starts_with("TLS_error:_"), "{}", error.transport_failure_reason());
        waypoint.seen.wait(reason, 1).await;
        assert_eq!(client.seen.count("stale"), 0, "a refusal is not retried");
    }
    let good = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let mut waypoint = waypoint;
    pair(&mut waypoint, &good).await;
}

#[tokio::test]
async fn a_server_with_another_identity_is_refused_by_the_client() {
    let pki = Pki::new("mesh");
    let waypoint = Waypoint::start(pki.identity("spiffe://elsewhere/ns/shop/sa/web", 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let error = client.open(waypoint.address).await.unwrap_err();
    assert!(matches!(&error, ConnectError::Tls(failure) if failure.name() == "foreign_trust_domain"), "{error:?}");
}

#[tokio::test]
async fn without_a_certificate_of_ours_connections_are_refused() {
    let pki = Pki::new("mesh");
    let waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let (sender, _receiver) = drain();
    let seen = Arc::new(Seen::default());
    let handler = |_: Connect| async {};
    let server = Server::new(Arc::new(MeshTls::new()), handler, Arc::clone(&seen) as _, ServerOptions::default(), _receiver);
    let tcp = TcpStream::connect(waypoint.address).await.unwrap();
    server.serve_connection(tcp, waypoint.address).await;
    assert_eq!(seen.count("refused no_identity"), 1);
    drop(sender);
}

#[tokio::test]
async fn only_connect_to_a_readable_target_reaches_the_handler() {
    let pki = Pki::new("mesh");
    let waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let tls = ClientTls::new(&pki.identity(CLIENT_ID, 1), mesh()).unwrap();
    let mut send = raw_client(&waypoint, &tls).await;
    assert_eq!(status(&mut send, Method::GET, "http://10.96.1.1:80/").await, StatusCode::NOT_FOUND);
    assert_eq!(status(&mut send, Method::CONNECT, "web").await, StatusCode::BAD_REQUEST);
    assert_eq!(status(&mut send, Method::CONNECT, "web:0").await, StatusCode::BAD_REQUEST);
    assert_eq!((waypoint.seen.count("connect 10.96.1.1:80 404"), waypoint.seen.count("connect web 400")), (1, 1));
}

#[tokio::test]
async fn header_fields_above_the_limit_are_answered_431_and_harm_no_other_stream() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let tls = ClientTls::new(&pki.identity(CLIENT_ID, 1), mesh()).unwrap();
    let mut send = raw_client(&waypoint, &tls).await;
    let large = "x".repeat(usize::try_from(HEADER_LIST_BYTES_MAX).unwrap());
    let request = Request::builder().method(Method::CONNECT).uri("10.96.1.1:80").header("baggage", large).body(()).unwrap();
    let (response, _) = send.send_request(request, true).unwrap();
    assert_eq!(soon("an answer", response).await.unwrap().status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let answer = async { waypoint.next().await.accept().unwrap() };
    let (next, _tunnel) = tokio::join!(status(&mut send, Method::CONNECT, "10.96.1.1:80"), answer);
    assert_eq!(next, StatusCode::OK);
}

#[tokio::test]
async fn a_connect_that_nobody_answers_is_answered_by_the_limits() {
    let pki = Pki::new("mesh");
    let options = ServerOptions { answer_timeout: Duration::from_secs(1), unanswered_max: 2, ..ServerOptions::default() };
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), options).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let address = waypoint.address;
    let tunnels = async { tokio::join!(client.open(address), client.open(address), client.open(address)) };
    let held = async {
        let held = waypoint.next().await;
        drop(waypoint.next().await);
        held
    };
    let ((first, second, third), held) = tokio::join!(tunnels, held);
    let status = |tunnel: Result<HboneStream, ConnectError>| match tunnel.unwrap_err() {
        ConnectError::TunnelStatus(status) => status.as_u16(),
        other => panic!("{other:?}"),
    };
    let mut answers = [status(first), status(second), status(third)];
    answers.sort_unstable();
    assert_eq!(answers, [500, 503, 504], "dropped, too many, too late");
    assert_eq!(held.accept().unwrap_err(), server::AnswerError::TooLate);
}

#[tokio::test]
async fn a_refused_connect_tells_its_status_and_spares_the_connection() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let address = waypoint.address;
    let (tunnel, ()) = tokio::join!(client.open(address), async { waypoint.next().await.reject(StatusCode::SERVICE_UNAVAILABLE) });
    let error = tunnel.unwrap_err();
    assert_eq!(error, ConnectError::TunnelStatus(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(error.transport_failure_reason(), "tunnel_response:503");
    pair(&mut waypoint, &client).await;
    assert_eq!(client.seen.count("opened"), 1);
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_a_refused_connection() {
    let pki = Pki::new("mesh");
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = client.open(free).await.unwrap_err();
    assert_eq!(error.transport_failure_reason(), "delayed_connect_error:_Connection_refused");
    assert_eq!(client.pool.connections(), 0);
}

#[tokio::test]
async fn parallel_tunnels_share_as_few_connections_as_the_limit_allows() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Arc::new(Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default()));
    let address = waypoint.address;
    let mut tunnels = tokio::task::JoinSet::new();
    for _ in 0..150 {
        let client = Arc::clone(&client);
        tunnels.spawn(async move { client.open(address).await.unwrap() });
    }
    let mut far = Vec::new();
    for _ in 0..150 {
        far.push(waypoint.next().await.accept().unwrap());
    }
    let near = soon("all tunnels", tunnels.join_all()).await;
    assert_eq!(near.len(), 150);
    assert_eq!((client.seen.count("opened"), client.pool.connections()), (2, 2));
}

#[tokio::test]
async fn each_side_can_end_its_half_and_still_read() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    for near_first in [true, false] {
        let (near, far) = pair(&mut waypoint, &client).await;
        let (mut first, mut last) = if near_first { (near, far) } else { (far, near) };
        first.write_all(b"all I had").await.unwrap();
        first.shutdown().await.unwrap();
        let mut got = Vec::new();
        soon("the end", last.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got, b"all I had");
        say(&mut last, b"more").await;
        hear(&mut first, b"more").await;
        last.shutdown().await.unwrap();
        assert_eq!(soon("the end", first.read(&mut [0])).await.unwrap(), 0);
        assert_eq!(first.write(b"x").await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    }
}

#[tokio::test]
async fn a_reset_is_an_error_at_the_other_side_and_no_end_of_file() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    for near_first in [true, false] {
        let (near, far) = pair(&mut waypoint, &client).await;
        let (mut first, mut last) = if near_first { (near, far) } else { (far, near) };
        say(&mut first, b"part").await;
        hear(&mut last, b"part").await;
        drop(first);
        let error = soon("the reset", last.read(&mut [0])).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(last.write_all(&[0; 64 * 1024]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    for reason in [h2::Reason::INTERNAL_ERROR, h2::Reason::NO_ERROR] {
        let (near, mut far) = pair(&mut waypoint, &client).await;
        near.reset(reason);
        assert_eq!(soon("the reset", far.read(&mut [0])).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert_eq!(client.pool.connections(), 1, "other streams of the connection are not touched");
}

#[tokio::test]
async fn a_tunnel_that_ended_both_ways_loses_nothing_when_it_is_dropped() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    for near_first in [true, false] {
        let (near, far) = pair(&mut waypoint, &client).await;
        let (mut first, mut last) = if near_first { (near, far) } else { (far, near) };
        last.shutdown().await.unwrap();
        assert_eq!(soon("the end", first.read(&mut [0])).await.unwrap(), 0);
        first.write_all(&vec![7; 100_000]).await.unwrap();
        first.shutdown().await.unwrap();
        drop(first);
        let mut got = Vec::new();
        soon("the rest", last.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got.len(), 100_000);
    }
}

#[tokio::test]
async fn a_server_that_has_said_all_may_leave_without_reading_the_rest() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let (mut near, mut far) = pair(&mut waypoint, &client).await;
    say(&mut near, b"a long request").await;
    far.write_all(b"413").await.unwrap();
    far.shutdown().await.unwrap();
    drop(far);
    // Once writing fails, the reset has arrived: before anything was read.
    let refused = async {
        loop {
            let written = async {
                near.write_all(b"more").await?;
                near.flush().await
            };
            match written.await {
                Ok(()) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        }
    };
    assert_eq!(soon("the reset", refused).await.kind(), std::io::ErrorKind::BrokenPipe);
    let mut got = Vec::new();
    soon("the answer", near.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"413");
}

#[tokio::test]
async fn a_drain_lets_open_tunnels_finish_and_sends_new_ones_elsewhere() {
    let pki = Pki::new("mesh");
    let mut old = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let (mut near, mut far) = pair(&mut old, &client).await;
    old.drain.begin(Instant::now() + DEADLINE);
    let mut new = loop {
        match TcpListener::bind(old.address).await {
            Ok(listener) => {
                drop(listener);
                break Waypoint::start_at(old.address, pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
            }
            Err(_) => tokio::task::yield_now().await,
        }
    };
    // Until its last GOAWAY the old process still serves what arrives; from then on the new one does.
    loop {
        let answer = async {
            tokio::select! {
                connect = old.connects.recv() => (false, connect.unwrap().accept().unwrap()),
                connect = new.connects.recv() => (true, connect.unwrap().accept().unwrap()),
            }
        };
        let (tunnel, (arrived, _far)) = tokio::join!(client.open(old.address), answer);
        tunnel.unwrap();
        if arrived {
            break;
        }
    }
    say(&mut near, b"still here").await;
    hear(&mut far, b"still here").await;
    near.shutdown().await.unwrap();
    far.shutdown().await.unwrap();
    assert_eq!(soon("the end", far.read(&mut [0])).await.unwrap(), 0);
    drop((near, far));
    assert_eq!(old.drain.wait_idle(Instant::now() + DEADLINE).await, Ok(()));
    old.seen.wait("closed Closed", 1).await;
}

#[tokio::test]
async fn a_connection_made_during_the_drain_is_served_once_and_then_told_to_leave() {
    let pki = Pki::new("mesh");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = Arc::new(MeshTls::new());
    tls.publish(pki.identity(SERVER_ID, 1), mesh()).unwrap();
    let (drain, watch) = drain();
    drain.begin(Instant::now() + DEADLINE);
    let handler = |connect: Connect| async move { connect.accept().unwrap().shutdown().await.unwrap() };
    let server = Arc::new(Server::new(tls, handler, Arc::new(()), ServerOptions::default(), watch));
    tokio::spawn(async move {
        loop {
            let (tcp, peer) = listener.accept().await.unwrap();
            let server = Arc::clone(&server);
            tokio::spawn(async move { server.serve_connection(tcp, peer).await });
        }
    });
    let client_tls = ClientTls::new(&pki.identity(CLIENT_ID, 1), mesh()).unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let (stream, _) = client_tls.connect(tcp, address.ip()).await.unwrap();
    let (mut send, mut connection) = h2::client::handshake(stream).await.unwrap();
    let mut ping = connection.ping_pong().unwrap();
    tokio::spawn(connection);
    // After a round trip, whatever the server had to say has arrived.
    soon("a round trip", ping.ping(h2::Ping::opaque())).await.unwrap();
    assert_eq!(status(&mut send, Method::CONNECT, "10.96.1.1:80").await, StatusCode::OK);
    soon("a round trip", ping.ping(h2::Ping::opaque())).await.ok();
    assert!(send.ready().await.is_err(), "told to leave");
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    while client.seen.count("opened") < 3 {
        drop(client.open(address).await.unwrap());
    }
    client.seen.wait("closed Closed", 1).await;
}

#[tokio::test]
async fn a_flood_of_cancelled_connects_harms_no_other_connection() {
    let pki = Pki::new("mesh");
    let handler = |connect: Connect| async move {
        // Answered after the client has gone.
        tokio::task::yield_now().await;
        if let Ok(mut tunnel) = connect.accept() {
            tunnel.shutdown().await.ok();
        }
    };
    let tls = Arc::new(MeshTls::new());
    tls.publish(pki.identity(SERVER_ID, 1), mesh()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_drain, watch) = drain();
    let server = Server::new(tls, handler, Arc::new(()), ServerOptions::default(), watch.clone());
    tokio::spawn(accept(listener, Arc::new(server), watch));
    let identity = pki.identity(CLIENT_ID, 1);
    let flood = async {
        let tls = ClientTls::new(&identity, mesh()).unwrap();
        let tcp = TcpStream::connect(address).await.unwrap();
        let (stream, _) = tls.connect(tcp, address.ip()).await.unwrap();
        let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        for _ in 0..5000 {
            let Ok(ready) = send.ready().await else { return };
            send = ready;
            let request = Request::builder().method(Method::CONNECT).uri("10.96.1.1:80").body(()).unwrap();
            let Ok((_, mut body)) = send.send_request(request, false) else { return };
            body.send_reset(h2::Reason::CANCEL);
            tokio::task::yield_now().await;
        }
    };
    let client = Client::new(&identity, PoolOptions::default());
    let good = async {
        for _ in 0..50 {
            drop(client.open(address).await.unwrap());
        }
    };
    soon("both", async { tokio::join!(flood, good) }).await;
    assert_eq!(client.seen.count("opened"), 1);
}

#[tokio::test]
async fn the_deadline_of_a_drain_cuts_what_is_left() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let (mut near, _far) = pair(&mut waypoint, &client).await;
    waypoint.drain.begin(Instant::now());
    soon("the cut", near.read(&mut [0])).await.unwrap_err();
    waypoint.seen.wait("closed Stopped", 1).await;
}

#[tokio::test]
async fn an_old_connection_gets_a_goaway_and_its_tunnel_goes_on() {
    let pki = Pki::new("mesh");
    let options = ServerOptions { age_max: Some(Duration::from_millis(50)), ..ServerOptions::default() };
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), options).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let (mut near, mut far) = pair(&mut waypoint, &client).await;
    while client.seen.count("opened") < 2 {
        pair(&mut waypoint, &client).await;
    }
    say(&mut near, b"still here").await;
    hear(&mut far, b"still here").await;
}

#[tokio::test]
async fn a_stalled_handshake_is_cut_and_holds_nobody_up() {
    let pki = Pki::new("mesh");
    let options = ServerOptions { handshake_timeout: Duration::from_secs(2), ..ServerOptions::default() };
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), options).await;
    let mut stalled = TcpStream::connect(waypoint.address).await.unwrap();
    stalled.write_all(&[0x16, 3, 1]).await.unwrap();
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    pair(&mut waypoint, &client).await;
    assert_eq!(soon("the cut", stalled.read(&mut [0])).await.unwrap_or(0), 0);
    waypoint.seen.wait("refused handshake_timeout", 1).await;
}

fn hasty() -> KeepaliveOptions {
    KeepaliveOptions { interval: Duration::from_millis(50), timeout: Duration::from_secs(1) }
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_found_out() {
    let pki = Pki::new("mesh");
    let options = ServerOptions { keepalive: hasty(), ..ServerOptions::default() };
    let waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), options).await;
    let tls = ClientTls::new(&pki.identity(CLIENT_ID, 1), mesh()).unwrap();
    let tcp = TcpStream::connect(waypoint.address).await.unwrap();
    let (stream, _) = tls.connect(tcp, waypoint.address.ip()).await.unwrap();
    // Never polled again: to the server, a peer that has vanished without a word.
    let _frozen = h2::client::handshake::<_>(stream).await.unwrap();
    waypoint.seen.wait("closed KeepaliveTimeout", 1).await;
}

#[tokio::test]
async fn a_server_that_answers_no_ping_fails_its_tunnels() {
    let pki = Pki::new("mesh");
    let server = Arc::new(crate::tls::ServerTls::new(&pki.identity(SERVER_ID, 1), mesh()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client_options = ClientOptions { keepalive: hasty(), ..ClientOptions::default() };
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions { client: client_options, ..PoolOptions::default() });
    let frozen = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let (stream, _) = server.accept(tcp).await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        let body: h2::SendStream<Bytes> = respond.send_response(http::Response::new(()), false).unwrap();
        // Let the answer out, then never again.
        std::future::poll_fn(|cx| {
            let _ = connection.poll_closed(cx).map(drop);
            Poll::Ready(())
        })
        .await;
        (connection, body)
    };
    let (near, _kept) = tokio::join!(client.open(address), frozen);
    soon("the failure", near.unwrap().read(&mut [0])).await.unwrap_err();
    client.seen.wait("closed KeepaliveTimeout", 1).await;
}

/// A server whose first connection answers one CONNECT and dies at the second; later ones live.
async fn treacherous(listener: TcpListener, server: Arc<crate::tls::ServerTls>, connections: Arc<AtomicUsize>) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let first = connections.fetch_add(1, Ordering::Relaxed) == 0;
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let (stream, _) = server.accept(tcp).await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut answered = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                if first && !answered.is_empty() {
                    return;
                }
                let body: h2::SendStream<Bytes> = respond.send_response(http::Response::new(()), false).unwrap();
                answered.push((request, body));
            }
        });
    }
}

#[tokio::test]
async fn a_stale_connection_is_replaced_unseen() {
    let pki = Pki::new("mesh");
    let server = Arc::new(crate::tls::ServerTls::new(&pki.identity(SERVER_ID, 1), mesh()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    tokio::spawn(treacherous(listener, server, Arc::clone(&connections)));
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let _first = client.open(address).await.unwrap();
    let _second = client.open(address).await.unwrap();
    assert_eq!((connections.load(Ordering::Relaxed), client.seen.count("stale")), (2, 1));
}

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_drops_no_old_one() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let mut client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let (mut near, mut far) = pair(&mut waypoint, &client).await;
    waypoint.tls.publish(pki.identity(SERVER_ID, 2), mesh()).unwrap();
    client.tls = Arc::new(ClientTls::new(&pki.identity(CLIENT_ID, 2), mesh()).unwrap());
    let (near_new, far_new) = pair(&mut waypoint, &client).await;
    assert_ne!(near.connection().tls.peer_certificate, near_new.connection().tls.peer_certificate);
    assert_ne!(far.connection().tls.peer_certificate, far_new.connection().tls.peer_certificate);
    say(&mut near, b"still here").await;
    hear(&mut far, b"still here").await;
    drop((near, far));
    client.seen.wait("closed Closed", 1).await;
    assert_eq!(client.pool.connections(), 1);
}

#[tokio::test]
async fn a_flushed_address_gets_new_connections_and_keeps_its_tunnels() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let (mut near, mut far) = pair(&mut waypoint, &client).await;
    client.pool.flush(waypoint.address);
    let _new = pair(&mut waypoint, &client).await;
    assert_eq!(client.seen.count("opened"), 2);
    say(&mut near, b"still here").await;
    hear(&mut far, b"still here").await;
}

#[tokio::test]
async fn a_connection_without_tunnels_is_closed_after_its_idle_time() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let options = PoolOptions { idle_timeout: Duration::from_millis(30), ..PoolOptions::default() };
    let client = Client::new(&pki.identity(CLIENT_ID, 1), options);
    drop(pair(&mut waypoint, &client).await);
    client.seen.wait("closed Closed", 1).await;
    waypoint.seen.wait("closed Closed", 1).await;
    assert_eq!(client.pool.connections(), 0);
}

/// Writes to a tunnel that nobody reads until nothing more is taken; says how much was.
async fn fill(stream: &mut HboneStream) -> usize {
    let chunk = vec![7; 16 * 1024];
    let mut taken = 0;
    // The other tasks run at each pause; when a thousand of them bring no room, there is none.
    for _ in 0..1000 {
        let written = std::future::poll_fn(|cx| match Pin::new(&mut *stream).poll_write(cx, &chunk) {
            Poll::Ready(written) => Poll::Ready(written.unwrap()),
            Poll::Pending => Poll::Ready(0),
        });
        match written.await {
            0 => tokio::task::yield_now().await,
            written => taken += written,
        }
    }
    taken
}

#[tokio::test]
async fn tunnels_whose_readers_stopped_hold_little_and_stop_no_other() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let mut stalled = Vec::new();
    let stream_bytes = usize::try_from(WindowOptions::default().stream()).unwrap();
    for _ in 0..20 {
        let (mut near, far) = pair(&mut waypoint, &client).await;
        let taken = fill(&mut near).await;
        assert!(taken <= stream_bytes + SEND_QUEUE_BYTES_MAX + stream::GATHERED_BYTES_MAX, "{taken}");
        stalled.push((near, far));
    }
    let (mut near, mut far) = pair(&mut waypoint, &client).await;
    assert_eq!(client.pool.connections(), 1);
    say(&mut near, b"room for me").await;
    hear(&mut far, b"room for me").await;
}

#[tokio::test]
async fn bulk_flows_both_ways_at_once_past_slow_readers() {
    const TOTAL: usize = 64 * 1024 * 1024;
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let (near, far) = pair(&mut waypoint, &client).await;
    let pump = |stream: HboneStream| async move {
        let (mut read, mut write) = tokio::io::split(stream);
        let send = async {
            let chunk = vec![1; 64 * 1024];
            for _ in 0..TOTAL / chunk.len() {
                write.write_all(&chunk).await.unwrap();
            }
            write.shutdown().await.unwrap();
        };
        let receive = async {
            let (mut buffer, mut total) = (vec![0; 7000], 0);
            loop {
                match read.read(&mut buffer).await.unwrap() {
                    0 => break total,
                    count => total += count,
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(send, receive).1
    };
    let (near, far) = soon("all bytes", async { tokio::join!(pump(near), pump(far)) }).await;
    assert_eq!((near, far), (TOTAL, TOTAL));
}

#[tokio::test]
async fn every_form_of_target_arrives_as_it_was_sent() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    for text in ["10.244.1.7:8080", "[2001:db8::7]:8080", "web.shop.svc.cluster.local:80"] {
        let (target, headers) = (Authority::parse(text).unwrap(), HeaderMap::new());
        let open = client.pool.open(waypoint.address, &client.tls, &target, &headers);
        let (tunnel, arrived) = tokio::join!(open, async {
            let Connect { authority, answer, .. } = waypoint.next().await;
            answer.accept(HeaderMap::new()).unwrap();
            authority
        });
        tunnel.unwrap();
        assert_eq!(arrived.to_string(), text);
    }
}

#[tokio::test]
async fn each_silence_of_the_other_side_has_its_own_time_limit() {
    let pki = Pki::new("mesh");
    let limited = |connect_timeout, answer_timeout| {
        let client = ClientOptions { connect_timeout, answer_timeout, ..ClientOptions::default() };
        Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions { client, ..PoolOptions::default() })
    };
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = limited(Duration::from_millis(300), DEADLINE);
    assert_eq!(client.open(silent.local_addr().unwrap()).await.unwrap_err(), ConnectError::HandshakeTimeout);
    let client = limited(DEADLINE, Duration::from_secs(1));
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    assert_eq!(client.open(waypoint.address).await.unwrap_err(), ConnectError::TunnelTimeout);
    // The stream was reset, so the late answer finds nobody, and the connection still serves.
    drop(waypoint.next().await);
    pair(&mut waypoint, &client).await;
    assert_eq!(client.seen.count("opened"), 1);
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_the_dial_to_the_next() {
    let pki = Pki::new("mesh");
    let mut waypoint = Waypoint::start(pki.identity(SERVER_ID, 1), ServerOptions::default()).await;
    let client = Client::new(&pki.identity(CLIENT_ID, 1), PoolOptions::default());
    let (target, headers) = (authority(), HeaderMap::new());
    {
        let open = client.pool.open(waypoint.address, &client.tls, &target, &headers);
        let mut open = std::pin::pin!(open);
        std::future::poll_fn(|cx| {
            assert!(open.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
    }
    client.seen.wait("opened", 1).await;
    pair(&mut waypoint, &client).await;
    assert_eq!(client.seen.count("opened"), 1);
}

#[test]
fn reasons_are_in_the_words_of_envoy_without_spaces() {
    let unreachable = std::io::Error::from_raw_os_error(113);
    let cases = [
        (ConnectError::from_tcp(&std::io::ErrorKind::ConnectionRefused.into()), "delayed_connect_error:_Connection_refused"),
        (ConnectError::from_tcp(&unreachable), "delayed_connect_error:_No_route_to_host"),
        (ConnectError::TunnelStatus(StatusCode::UNAUTHORIZED), "tunnel_response:401"),
        (ConnectError::Tls(TlsFailure::Expired), "TLS_error:_the_peer's_certificate_has_expired"),
    ];
    for (error, reason) in cases {
        assert_eq!(error.transport_failure_reason(), reason);
    }
}
