//! HTTP/1.0, allowed and not, on ports with and without a declared protocol, beside a real Envoy.
//!
//! istiod names `'http/1.0'` among what is sniffed only where it is to be accepted; otherwise such a request is TCP like any other.

use anyhow::Result;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::Peer;
use tests::scenario::{AUTO, Mesh, Scenario, WEB, WEB_CHAIN};
use tests::workload::{App, Workload};

use super::differential::{Seen, exchange_with, whole_answer};

const AUTO_CHAIN: &str = "inbound-vip|7000|http|auto.shop.svc.cluster.local";

/// Has `'http/1.0'` lead where `'http/1.1'` does, as istiod does with `PILOT_HTTP10`.
fn add_key(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(same) = fields.get("'http/1.1'").cloned() {
                fields.insert("'http/1.0'".to_owned(), same);
            }
            fields.values_mut().for_each(add_key);
        }
        Value::Array(items) => items.iter_mut().for_each(add_key),
        _ => {}
    }
}

fn allow(scenario: &mut Scenario) -> Result<()> {
    add_key(&mut scenario.resource(Kind::Listener, "main_internal")?["filter_chain_matcher"]);
    for chain in [WEB_CHAIN, AUTO_CHAIN] {
        scenario.http(chain)?["http_protocol_options"] = json!({"accept_http_10": true});
    }
    Ok(())
}

struct Both {
    mesh: Mesh,
    envoy: Envoy,
    peer: Peer,
    _pods: [Workload; 2],
}

impl Both {
    async fn start(edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<Self> {
        let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.edit(edit)?.start().await?;
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
    let both = Both::start(|_| Ok(())).await?;
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
    let long = format!("GET /{} HTTP/1.1\r\nhost: web.shop\r\n\r\n", "a".repeat(5000));
    for request in ["GET /a HTTP/1.1\r\nhost: web.shop\r\n\r\n", &long] {
        let [ours, theirs] = both.see(AUTO, request).await?;
        assert_eq!(ours, theirs);
        assert_eq!(ours.headers["server"], ["istio-envoy"], "its neighbour is HTTP still");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_is_refused_where_http_is_declared_and_it_is_not_allowed() -> Result<()> {
    let both = Both::start(|_| Ok(())).await?;
    for (at, lines) in ["host: web.shop\r\n", "host: web.shop\r\nconnection: keep-alive\r\n", ""].into_iter().enumerate() {
        let [ours, theirs] = both.hear(WEB, &[&format!("GET /{at} HTTP/1.0\r\n{lines}\r\n")]).await?;
        for answer in [&ours, &theirs] {
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
            // Its codec answers in the version of its request, Envoy's in its own.
            assert!(head.starts_with("HTTP/1.") && head[8..].starts_with(" 426 Upgrade Required\r\n"), "{answer}");
            let says = |line: &str| head.lines().any(|one| one == line);
            assert!(says("connection: close") && says("content-type: text/plain"), "{answer}");
            assert_eq!(body, "Upgrade Required");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_is_served_where_it_is_allowed() -> Result<()> {
    let both = Both::start(allow).await?;
    for target in [WEB, AUTO] {
        for request in [
            "GET /a HTTP/1.0\r\nhost: web.shop\r\n\r\n",
            "GET /a HTTP/1.0\r\nhost: web.shop\r\nconnection: keep-alive\r\n\r\n",
            "POST /a HTTP/1.0\r\nhost: web.shop\r\ncontent-length: 3\r\n\r\nabc",
            "GET http://other.example/a?b HTTP/1.0\r\nhost: web.shop\r\n\r\n",
            "GET /status/404 HTTP/1.0\r\nhost: web.shop\r\n\r\n",
            "GET /a HTTP/1.0\r\nhost: web.shop\r\nte: trailers\r\n\r\n",
        ] {
            let [ours, theirs] = both.see(target, request).await?;
            assert_eq!(ours, theirs, "{target} {request:?}");
            assert!(ours.status.starts_with("HTTP/1.0 "), "{}", ours.status);
        }
        // Without a length the end of the connection is the answer's, and no client is to be told otherwise.
        for lines in ["", "connection: keep-alive\r\n"] {
            let [ours, theirs] = both.hear(target, &[&format!("GET /stream/2 HTTP/1.0\r\nhost: web.shop\r\n{lines}\r\n")]).await?;
            for answer in [&ours, &theirs] {
                assert!(answer.contains("\r\nconnection: close\r\n") && answer.ends_with("\r\n\r\nchunk 0\nchunk 1\n"), "{answer}");
            }
        }
    }
    Ok(())
}
