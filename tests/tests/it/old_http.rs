//! HTTP/1.0 where no protocol is declared, beside a real Envoy.
//!
//! istiod names `'http/1.0'` among what is sniffed only where it is to be accepted; otherwise such a request is TCP like any other.

use anyhow::Result;
use tests::envoy::Envoy;
use tests::peer::Peer;
use tests::scenario::{AUTO, Mesh, WEB_CHAIN};
use tests::workload::{App, Workload};

use super::differential::{Seen, exchange_with, whole_answer};

struct Both {
    mesh: Mesh,
    envoy: Envoy,
    peer: Peer,
    _pods: [Workload; 2],
}

impl Both {
    async fn start() -> Result<Self> {
        let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
        let envoy = Envoy::beside(&mesh).start().await?;
        let pods = [mesh.pod("web-v1-1", App::Http).await?, mesh.pod("auto-v1-1", App::Http).await?];
        let peer = mesh.peer("frontend-0")?;
        Ok(Self { mesh, envoy, peer, _pods: pods })
    }

    /// The answer to these bytes through each, here and in Envoy.
    async fn hear(&self, target: &str, pieces: &[&str]) -> Result<[String; 2]> {
        let (ours, theirs) = (self.peer.connect(self.mesh.hbone()).await?, self.peer.connect(self.envoy.hbone()).await?);
        Ok([whole_answer(&ours, target, pieces).await?, whole_answer(&theirs, target, pieces).await?])
    }

    async fn see(&self, target: &str, request: &str) -> Result<[Seen; 2]> {
        let (ours, theirs) = (self.peer.connect(self.mesh.hbone()).await?, self.peer.connect(self.envoy.hbone()).await?);
        Ok([exchange_with(&ours, target, request).await?, exchange_with(&theirs, target, request).await?])
    }
}

fn without_date(answer: &str) -> Vec<&str> {
    answer.lines().filter(|line| !line.starts_with("date: ")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_is_tcp_where_no_protocol_is_declared_and_it_is_not_allowed() -> Result<()> {
    let both = Both::start().await?;
    let long = format!("GET /{} HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", "a".repeat(9000));
    let old: [&[&str]; 5] = [
        &["GET /a HTTP/1.0\r\nhost: web.shop\r\nconnection: keep-alive\r\n\r\n"],
        &["GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"],
        &["GET /a HTTP/1.0\nconnection: keep-alive\n\n"],
        &["PURGE /a HT", "TP/1", ".0\r\nconnection: keep-alive\r\n\r\n"],
        &[&long],
    ];
    for pieces in old {
        let [ours, theirs] = both.hear(AUTO, pieces).await?;
        assert_eq!(without_date(&ours), without_date(&theirs), "{pieces:?}");
        assert!(ours.contains("\r\nserver: auto-v1-1\r\n") && !ours.contains("x-request-id"), "no HTTP chain has touched it: {ours}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nhost: web.shop\r\n\r\n", "a".repeat(20_000));
    for request in ["GET /a HTTP/1.1\r\nhost: web.shop\r\n\r\n", &long] {
        let [ours, theirs] = both.see(AUTO, request).await?;
        assert_eq!(ours, theirs);
        assert_eq!(ours.headers["server"], ["istio-envoy"], "its neighbour is HTTP still");
    }
    Ok(())
}
