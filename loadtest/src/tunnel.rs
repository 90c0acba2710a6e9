//! `loadtest tunnel`: a plain local port into the mesh, for curl, oha and browsers.
//!
//! Each accepted TCP connection becomes one CONNECT stream over a few HBONE connections, as ztunnel does it for an app:
//! bytes are copied both ways, half-closes included. When the tunnel is refused, the connection is closed (an app behind
//! ztunnel sees no more either) and the reason goes to stderr.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use http::header::FORWARDED;
use http::{HeaderMap, HeaderValue};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::hbone::client::Connector;
use crate::hbone::pool::Pool;
use crate::tls::TlsFiles;
use crate::units::HeaderLine;

/// Local connections served at a time; more wait in the kernel's accept queue.
const CONNECTIONS_MAX: usize = 10_000;

/// `loadtest tunnel`
#[derive(Debug, clap::Args)]
pub struct TunnelArgs {
    /// Local plain address
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// HBONE address of the waypoint, IP:15008
    #[arg(long)]
    pub waypoint: SocketAddr,
    /// What to CONNECT to, VIP:port
    #[arg(long)]
    pub target: String,
    #[command(flatten)]
    pub tls: TlsFiles,
    /// HBONE connections that carry the streams
    #[arg(long, default_value_t = 2)]
    pub connections: usize,
    /// Local address to dial from; the waypoint finds the caller's workload by it
    #[arg(long)]
    pub source: Option<IpAddr>,
    /// SPIFFE identity that the waypoint must show [default: any under the root]
    #[arg(long)]
    pub peer_identity: Option<String>,
    /// Further header of each CONNECT, NAME:VALUE (repeatable), such as baggage
    #[arg(long = "connect-header")]
    pub connect_headers: Vec<HeaderLine>,
}

/// Where accepted connections go.
#[derive(Debug)]
pub struct Tunnel {
    pool: Pool,
    target: String,
    connect_headers: HeaderMap,
    source: Option<IpAddr>,
}

impl Tunnel {
    /// `connect_headers` go with each CONNECT, beside `forwarded`.
    pub fn new(pool: Pool, target: String, connect_headers: HeaderMap) -> Self {
        Self { pool, target, connect_headers, source: None }
    }

    /// Serves `listener` for ever.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            let Some((tcp, peer)) = crate::accept::next(&listener).await else { continue };
            let tunnel = Arc::clone(&self);
            tokio::spawn(async move {
                let _slot = slot;
                if let Err(error) = tunnel.carry(tcp, peer).await {
                    eprintln!("CONNECT {}: {error:#}", tunnel.target);
                }
            });
        }
    }

    async fn carry(&self, mut tcp: TcpStream, peer: SocketAddr) -> anyhow::Result<()> {
        let mut headers = self.connect_headers.clone();
        // As ztunnel sends it: the app's own address; from --source, that address with the app's port.
        let app = SocketAddr::new(self.source.unwrap_or(peer.ip()), peer.port());
        headers.insert(FORWARDED, HeaderValue::from_str(&format!("for=\"{app}\""))?);
        let mut stream = self.pool.open(&self.target, headers).await?;
        // How either side leaves is theirs; each half is passed on as it ends.
        let _ended = copy_bidirectional(&mut tcp, &mut stream).await;
        Ok(())
    }
}

/// Serves until SIGINT or SIGTERM. Prints `ready …` on stdout once it listens.
pub async fn run(args: TunnelArgs) -> anyhow::Result<()> {
    let mut connector = Connector::new(args.tls.client_config()?);
    connector.source = args.source;
    connector.peer_identity = args.peer_identity;
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listening on {}", args.listen))?;
    let pool = Pool::new(connector, args.waypoint, args.connections);
    let mut tunnel = Tunnel::new(pool, args.target.clone(), args.connect_headers.into_iter().map(|line| (line.name, line.value)).collect());
    tunnel.source = args.source;
    tokio::spawn(Arc::new(tunnel).serve(listener));
    println!("ready tunnel {} to {} by {}", args.listen, args.target, args.waypoint);
    crate::signals::terminated().await
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::mesh::testing::{Mesh, workload};
    use crate::mesh::workload::Refusal;
    use http::StatusCode;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn tunnel_to(mesh: &Mesh, waypoint: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pool = Pool::new(mesh.connector("client"), waypoint, 2);
        tokio::spawn(Arc::new(Tunnel::new(pool, "10.0.0.1:80".to_owned(), HeaderMap::new())).serve(listener));
        address
    }

    /// Sends `request` in one piece, closes that half and reads to the end.
    async fn talk(address: SocketAddr, request: &str) -> String {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(request.as_bytes()).await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_plain_request_reaches_the_app_with_the_callers_identity_and_target() {
        let mesh = Mesh::new();
        let waypoint = workload(&mesh, Refusal::default()).await;
        let answer = talk(tunnel_to(&mesh, waypoint).await, "GET /headers HTTP/1.1\r\nhost: a\r\nx-a: 1\r\nx-a: 2\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("x-workload: pod"), "{answer}");
        let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(body["hbone"]["authority"], "10.0.0.1:80");
        assert_eq!(body["hbone"]["peer_identity"], "spiffe://cluster.local/ns/a/sa/client");
        assert_eq!(body["headers"], serde_json::json!([["host", "a"], ["x-a", "1"], ["x-a", "2"]]));
    }

    #[tokio::test]
    async fn a_body_larger_than_every_window_arrives_whole() {
        let mesh = Mesh::new();
        let waypoint = workload(&mesh, Refusal::default()).await;
        let answer = talk(tunnel_to(&mesh, waypoint).await, "GET /bytes/20000000 HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), 20_000_000);
    }

    #[tokio::test]
    async fn a_sink_tells_the_length_of_what_it_swallowed() {
        let mesh = Mesh::new();
        let waypoint = workload(&mesh, Refusal::default()).await;
        let answer = talk(tunnel_to(&mesh, waypoint).await, "POST /sink HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n\r\n1234567").await;
        assert_eq!(answer.split_once("\r\n\r\n").unwrap().1, "7\n");
    }

    #[tokio::test]
    async fn a_refused_connect_closes_the_local_connection_and_the_next_one_works() {
        let mesh = Mesh::new();
        let refusal = Refusal { refuse_first: Some(1), connect_status: Some(StatusCode::UNAUTHORIZED) };
        let address = tunnel_to(&mesh, workload(&mesh, refusal).await).await;
        let mut refused = TcpStream::connect(address).await.unwrap();
        let mut nothing = Vec::new();
        assert_eq!(refused.read_to_end(&mut nothing).await.unwrap(), 0);
        assert!(talk(address, "GET /status/204 HTTP/1.1\r\nhost: a\r\n\r\n").await.starts_with("HTTP/1.1 204 "));
    }
}
