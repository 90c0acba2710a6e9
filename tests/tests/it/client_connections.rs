//! How old the connections of clients inside tunnels may become, beside a real Envoy.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::StatusCode;
use serde_json::json;
use tests::envoy::Envoy;
use tests::peer::Peer;
use tests::scenario::{Mesh, WEB, WEB_CHAIN};
use tests::workload::{App, Workload};
use tokio::io::AsyncReadExt;

const AGE_MAX: Duration = Duration::from_secs(1);
/// What a clock that began a little later may show less.
const SLACK: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(15);
/// Between requests.
const PAUSE: Duration = Duration::from_millis(100);

struct Both {
    mesh: Mesh,
    envoy: Envoy,
    peer: Peer,
    _web: Workload,
}

impl Both {
    async fn start() -> Result<Self> {
        let mesh = Mesh::builder("01-plain")?.edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.http(WEB_CHAIN)?["common_http_protocol_options"]["max_connection_duration"] = json!("1s");
            Ok(())
        })?;
        let mesh = mesh.start().await?;
        let envoy = Envoy::beside(&mesh).start().await?;
        let web = mesh.pod("web-v1-1", App::Http).await?;
        let peer = mesh.peer("frontend-0")?;
        Ok(Self { mesh, envoy, peer, _web: web })
    }

    fn proxies(&self) -> [SocketAddr; 2] {
        [self.mesh.hbone(), self.envoy.hbone()]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http1_client_is_told_by_an_answer_that_its_old_connection_closes_alike() -> Result<()> {
    let both = Both::start().await?;
    for proxy in both.proxies() {
        let began = Instant::now();
        let mut http = both.peer.connect(proxy).await?.http1(WEB).await?;
        let told = async {
            loop {
                let answer = http.get("/x").await?;
                assert_eq!(answer.status, StatusCode::OK);
                if answer.header("connection") == "close" {
                    return anyhow::Ok(began.elapsed());
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let told = tokio::time::timeout(DEADLINE, told).await.context("it lasts")??;
        assert!(told >= AGE_MAX - SLACK, "{proxy}: {told:?}");
        assert!(http.get("/after").await.is_err(), "{proxy}: the connection is closed");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_http2_connection_takes_no_more_requests_and_loses_none_alike() -> Result<()> {
    let both = Both::start().await?;
    for proxy in both.proxies() {
        let began = Instant::now();
        let mut http = both.peer.connect(proxy).await?.http2(WEB).await?;
        let ended = async {
            // The first one is under way when its connection becomes too old.
            assert_eq!(http.get("/delay/1200").await?.status, StatusCode::OK);
            while http.get("/x").await.is_ok() {
                tokio::time::sleep(PAUSE).await;
            }
            anyhow::Ok(began.elapsed())
        };
        let ended = tokio::time::timeout(DEADLINE, ended).await.context("it lasts")??;
        assert!(ended >= AGE_MAX - SLACK, "{proxy}: {ended:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_has_said_nothing_is_closed_once_it_is_too_old_alike() -> Result<()> {
    let both = Both::start().await?;
    for proxy in both.proxies() {
        let mut stream = both.peer.connect(proxy).await?.tunnel(WEB).await?;
        let (began, mut heard) = (Instant::now(), Vec::new());
        // It ends, or is reset.
        let _end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut heard)).await.context("it lasts")?;
        assert!(began.elapsed() >= AGE_MAX - SLACK && began.elapsed() < AGE_MAX * 4, "{proxy}: {:?}", began.elapsed());
        assert_eq!(heard, b"");
    }
    Ok(())
}
