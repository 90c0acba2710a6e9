//! Services and pods of our own suites, and what calls them.
//!
//! `store` is HTTP (pods v1 and v2; v3 has a service of its own only), half of `half` does
//! not listen, `flow` is TCP, `vault` TLS that is passed through.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rustls::ClientConfig;
use serde_json::Value;
use tests::peer::{Connection, Peer};
use tests::pki::Pki;
use tests::workload::{App, Record, Workload};

use super::case::Send;
use crate::objects::{NAMESPACE, PodSpec, Port, ServiceSpec, pod, service};
use crate::stage::{Stage, hbone_address};

const HTTP_PORTS: &[Port] = &[
    ("http", 80, 8080, Some("http")),
    ("http-alt", 8080, 8080, Some("http")),
    ("grpc", 7070, 7070, Some("grpc")),
    ("h2c", 8081, 8081, Some("kubernetes.io/h2c")),
    ("ws", 8082, 8082, Some("kubernetes.io/ws")),
];
const TCP_PORTS: &[Port] = &[("tcp", 9090, 9090, None)];
const TLS_PORTS: &[Port] = &[("tls", 443, 8443, None)];
/// Where a pod is reached past the waypoint.
const POD_PORT: u16 = 8080;
/// Where the calls come from.
const CLIENT: PodSpec = of("client", "client", "10.244.21.100");

const fn of(app: &'static str, name: &'static str, address: &'static str) -> PodSpec {
    PodSpec { namespace: NAMESPACE, name, address, app, version: "v1" }
}

const STORE: [PodSpec; 3] =
    [of("store", "store-v1", "10.244.21.1"), of("store", "store-v2", "10.244.21.2"), of("store", "store-v3", "10.244.21.3")];
const FLOW: [PodSpec; 2] = [of("flow", "flow-v1", "10.244.22.1"), of("flow", "flow-v2", "10.244.22.2")];
/// A pod that is Ready, says its status, and does not listen.
const GONE: PodSpec = of("store", "store-gone", "10.244.21.66");
const VAULT: PodSpec = of("vault", "vault-v1", "10.244.23.1");

fn services() -> Vec<ServiceSpec<'static>> {
    let http = |name, address, pods: &[PodSpec]| ServiceSpec { name, address, ports: HTTP_PORTS, pods: pods.to_vec() };
    let tcp = |name, address, pods: &[PodSpec]| ServiceSpec { name, address, ports: TCP_PORTS, pods: pods.to_vec() };
    let tls = |name, address| ServiceSpec { name, address, ports: TLS_PORTS, pods: vec![VAULT] };
    vec![
        http("store", "10.96.21.1", &STORE[..2]),
        http("store-v1", "10.96.21.2", &STORE[..1]),
        http("store-v2", "10.96.21.3", &STORE[1..2]),
        http("store-v3", "10.96.21.4", &STORE[2..]),
        http("half", "10.96.21.5", &[STORE[2], GONE]),
        tcp("flow", "10.96.22.1", &FLOW),
        tcp("flow-v1", "10.96.22.2", &FLOW[..1]),
        tcp("flow-v2", "10.96.22.3", &FLOW[1..]),
        tls("vault", "10.96.23.1"),
        tls("vault-v1", "10.96.23.2"),
    ]
}

/// Pods, services and endpoints.
pub fn objects() -> Vec<Value> {
    let pods = STORE.iter().chain(&FLOW).chain([&GONE, &VAULT, &CLIENT]).map(pod);
    pods.chain(services().iter().flat_map(service)).collect()
}

/// The running pods, and a caller.
pub struct Mesh {
    caller: Peer,
    /// TLS of a client of `vault`.
    pub vault_client: Arc<ClientConfig>,
    workloads: BTreeMap<&'static str, Workload>,
    n_unique: AtomicU64,
}

impl Mesh {
    /// Starts every pod.
    pub async fn start(stage: &Stage) -> Result<Self> {
        let tls = stage.called(NAMESPACE)?;
        let mut workloads = BTreeMap::new();
        for (pods, app) in [(&STORE[..], App::Http), (&FLOW[..], App::Tcp { greets: false })] {
            for pod in pods {
                workloads.insert(pod.name, Workload::hbone(pod.name, pod.address.parse()?, Arc::clone(&tls), app).await?);
            }
        }
        let pki = Pki::new()?;
        let identity = pki.application(&["abc.example.com"], SystemTime::now() + Duration::from_secs(12 * 3600))?;
        let layers = (tls, pki.application_config(&identity, None)?);
        workloads.insert(VAULT.name, Workload::hbone_with_tls(VAULT.name, VAULT.address.parse()?, layers, App::Http).await?);
        let caller = stage.caller(NAMESPACE, CLIENT.address)?;
        Ok(Self { caller, vault_client: pki.client_config(None)?, workloads, n_unique: AtomicU64::new(0) })
    }

    /// A connection to whoever serves what is sent, and the authority for CONNECT there.
    pub async fn connect(&self, send: &Send) -> Result<(Connection, String)> {
        if let Some(name) = &send.pod {
            let pod = STORE.iter().find(|pod| pod.name == name).with_context(|| format!("no pod {name}"))?;
            let server = SocketAddr::new(pod.address.parse()?, 15008);
            return Ok((self.caller.connect(server).await?, format!("{}:{POD_PORT}", pod.address)));
        }
        let services = services();
        let service = services.iter().find(|service| service.name == send.to).with_context(|| format!("no service {}", send.to))?;
        Ok((self.caller.connect(hbone_address()).await?, format!("{}:{}", service.address, send.port)))
    }

    /// What a pod has seen.
    pub fn record(&self, pod: &str) -> Result<&Record> {
        Ok(self.workloads.get(pod).with_context(|| format!("no pod {pod}"))?.record())
    }

    /// Requests that all pods got, by `METHOD path`.
    pub fn requests(&self, method_and_path: &str) -> u64 {
        self.workloads.values().map(|workload| workload.record().requests(method_and_path)).sum()
    }

    /// A path whose `{unique}` is what it says.
    pub fn unique(&self, path: &str) -> String {
        path.replace("{unique}", &format!("u{}", self.n_unique.fetch_add(1, Ordering::Relaxed)))
    }
}
