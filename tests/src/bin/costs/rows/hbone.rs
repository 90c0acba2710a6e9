//! A whole request with both HBONE connections: TCP on loopback, TLS, HTTP/2, a tunnel in each.
//!
//! The client and the workload live on a thread of their own, which is not counted. What arrives in one read is the kernel's choice, so
//! this row moves a little from run to run.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use arc_swap::ArcSwap;
use http::StatusCode;
use model::baggage::Baggage;
use tests::peer::Peer;
use tests::pki::{Pki, spiffe};
use tests::process::HBONE_PORT;
use tests::scenario::{Loopback, Scenario, WEB, WEB_CHAIN};
use tests::workload::{App, Workload};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use waypoint::drain::drain;
use waypoint::hbone::pool::{Pool, PoolOptions};
use waypoint::hbone::server::{Connect, Server, ServerOptions};
use waypoint::listen::tune;
use waypoint::tls::originate::Originator;
use waypoint::tls::verify::PeerMatcher;
use waypoint::tls::{Identity, MeshTls};
use waypoint::tunnel::serve_connect;
use waypoint::upstream::connect::Dialer;
use waypoint::upstream::introduction::Introduction;
use waypoint::worker::Worker;

use super::requests::REQUESTS;
use crate::mesh::{self, allow};
use crate::sinks::Sinks;
use crate::window::{WINDOWS, Windows};

/// Loopback addresses from here on have as many digits as the recorded ones.
const NUMBER_MIN: u8 = 100;

/// Everything on, as in `request`.
pub fn full(windows: &mut Windows) -> Result<()> {
    let net = loopback()?;
    let mut scenario = Scenario::load("07-telemetry", &net)?;
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    scenario.add_http_filters(WEB_CHAIN, vec![allow(3, 1)])?;
    let (sinks, pki) = (Sinks::new()?, Pki::new()?);
    let published = mesh::publish(&scenario, &sinks.telemetry)?;
    let tls = Arc::new(MeshTls::new());
    let (chain, key) = pki.member(&spiffe("shop", "waypoint"))?.parts();
    tls.publish(Arc::new(Identity::new(chain, key, &[pki.root()], 1)?), Arc::new(PeerMatcher::any()))?;
    let dialer = Dialer {
        pool: Pool::new(PoolOptions::default(), Arc::new(())),
        tls: Arc::clone(&tls),
        accepted: Arc::new(ArcSwap::from_pointee(PeerMatcher::any())),
        originator: Arc::new(Originator::new(Arc::clone(&tls), Arc::default())),
        introduction: Introduction::new("", &Baggage::default()),
    };
    let worker = Arc::new(Worker::new(published, dialer, sinks.telemetry.worker()));
    let (_drain, watch) = drain();
    let handler = {
        let watch = watch.clone();
        move |connect: Connect| serve_connect(connect, Arc::clone(&worker), watch.clone())
    };
    let server = Server::new(tls, handler, Arc::new(()), ServerOptions::default(), watch);

    let runtime = Builder::new_current_thread().enable_all().build()?;
    let address = SocketAddr::new(IpAddr::V4(net.waypoint()), HBONE_PORT);
    let listener = runtime.block_on(TcpListener::bind(address))?;
    runtime.spawn(async move {
        while let Ok((tcp, peer)) = listener.accept().await {
            if tune(&tcp).is_ok() {
                server.serve_connection(tcp, peer).await;
            }
        }
    });
    let mut peers = Peers::start(net, pki, address)?;
    for window in 0..WINDOWS {
        let mut outcome = Ok(());
        windows.number(window, REQUESTS, || outcome = runtime.block_on(peers.ask()));
        outcome?;
        let recorded = (window + 1) * REQUESTS;
        sinks.settle(recorded, recorded)?;
    }
    peers.end()
}

fn loopback() -> Result<Loopback> {
    // Those that are too short are held until one is found, or each would be offered again.
    let mut short = Vec::new();
    loop {
        let net = Loopback::take()?;
        if net.waypoint().octets()[1] >= NUMBER_MIN {
            return Ok(net);
        }
        short.push(net);
    }
}

/// The client and the workload, on their thread.
struct Peers {
    asks: mpsc::Sender<()>,
    done: mpsc::Receiver<()>,
    thread: JoinHandle<Result<()>>,
}

impl Peers {
    fn start(net: Loopback, pki: Pki, waypoint: SocketAddr) -> Result<Self> {
        let (asks, mut asked) = mpsc::channel(1);
        let (doing, done) = mpsc::channel(1);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("peers".to_owned()).spawn(move || {
            runtime.block_on(async {
                let tls = pki.workload_config(&pki.member(&spiffe("shop", "web"))?)?;
                let _web = Workload::hbone("web-v1-1", IpAddr::V4(net.pod(1, 1)), tls, App::Http).await?;
                let identity = pki.member(&spiffe("clients", "frontend"))?;
                let peer = Peer::new(&pki, Some(&identity), Some(IpAddr::V4(net.pod(9, 1))))?;
                let connection = peer.connect(waypoint).await?;
                let mut http = connection.http1(WEB).await?;
                while asked.recv().await.is_some() {
                    for _ in 0..REQUESTS {
                        let answer = http.get("/ok?a=1").await?;
                        ensure!(answer.status == StatusCode::OK, "answered {answer:?}");
                    }
                    doing.send(()).await?;
                }
                Ok(())
            })
        })?;
        Ok(Self { asks, done, thread })
    }

    /// Waits while the window's requests are made, one after another.
    async fn ask(&mut self) -> Result<()> {
        self.asks.send(()).await.map_err(|_| anyhow!("the client is gone"))?;
        self.done.recv().await.context("the client failed")
    }

    fn end(self) -> Result<()> {
        drop(self.asks);
        self.thread.join().map_err(|_| anyhow!("the client panicked"))?
    }
}
