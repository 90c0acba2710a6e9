//! What every step works with: the control plane, the waypoint as the pod of its rendered Deployment, workloads, callers and a collector.
//!
//! Addresses and names are those of `tests/controlplane/mesh.yaml`. Invariant: nothing here outlives the [`Stage`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::StatusCode;
use rustls::ServerConfig;
use serde_json::Value;
use tests::istiod::{ControlPlane, MESH, Options, kube};
use tests::mesh_ca::Member;
use tests::otlp::SpanSink;
use tests::peer::{Answer, Peer, plain_get};
use tests::pod::{Placement, Pod, Start};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};
use tests::{net, process};

/// The waypoint's network namespace, and its address.
pub const NETWORK: &str = "waypoint";
pub const ADDRESS: &str = "10.244.0.100";

/// Services, as callers name them in CONNECT.
pub const WEB: &str = "10.96.1.1:80";
pub const REVIEWS: &str = "10.96.1.2:9080";

/// Pods of `web` and `reviews` with their addresses.
pub const PODS: &[(&str, &str)] = &[
    ("web-v1-1", "10.244.1.1"),
    ("web-v1-2", "10.244.1.2"),
    ("reviews-v1-1", "10.244.2.1"),
    ("reviews-v2-2", "10.244.2.2"),
    ("reviews-v3-3", "10.244.2.3"),
];

/// The collector behind `tempo.tempo.svc.cluster.local:4317`.
const COLLECTOR: &str = "10.244.8.1:4317";

/// What istiod, its debounce and the waypoint may take together until an object has its effect.
pub const EFFECT_DEADLINE: Duration = Duration::from_secs(30);
/// What startup takes at most: certificate, discovery, readiness.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// How much of a log a failure shows.
const LOG_LINES_MAX: usize = 60;

/// See above.
pub struct Stage {
    pub plane: ControlPlane,
    pub waypoint: Pod,
    pub deployment: Value,
    pub spans: SpanSink,
    pub frontend: Peer,
    pub batch: Peer,
    workloads: BTreeMap<&'static str, Workload>,
    tls: BTreeMap<&'static str, Arc<ServerConfig>>,
}

/// A file of `k8s/manifests/base`.
pub fn manifest(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s/manifests/base").join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// An object of the mesh's file.
pub fn mesh_object(kind: &str, name: &str) -> Result<Value> {
    let found = kube::documents(MESH)?.into_iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.with_context(|| format!("the mesh has no {kind} {name}"))
}

fn address_of(pod: &str) -> Result<IpAddr> {
    let (_, address) = PODS.iter().find(|(name, _)| *name == pod).with_context(|| format!("no pod {pod}"))?;
    Ok(address.parse()?)
}

async fn caller(plane: &ControlPlane, account: &str, source: &str) -> Result<Peer> {
    let member = Member::of(plane, "clients", account).await?;
    Ok(Peer::with_config(member.client_config()?, Some(source.parse()?)))
}

impl Stage {
    /// Starts everything; returns when the waypoint is ready.
    pub async fn start(folder: &Path) -> Result<Self> {
        let plane = ControlPlane::start(folder, Options::default()).await?;
        let deployment = plane.rendered_deployment("shop", "waypoint", |_| true).await?;
        let placement =
            Placement { name: "waypoint-0".to_owned(), address: ADDRESS.parse()?, node_name: "node-a".to_owned(), node_address: net::NODE };
        let binary = process::binary()?;
        let start = Start { deployment: &deployment, network: NETWORK, binary: &binary, extra_environment: &[], placement };
        let mut waypoint = Pod::start(&plane, start).await?;
        waypoint.wait_ready(&format!("http://{ADDRESS}:15021/healthz/ready"), READY_DEADLINE).await?;
        let tls = BTreeMap::from([
            ("web", Member::of(&plane, "shop", "web").await?.workload_config()?),
            ("reviews", Member::of(&plane, "shop", "reviews").await?.workload_config()?),
        ]);
        let frontend = caller(&plane, "frontend", "10.244.9.1").await?;
        let batch = caller(&plane, "batch", "10.244.9.2").await?;
        let spans = SpanSink::start(COLLECTOR.parse()?).await?;
        let mut stage = Self { plane, waypoint, deployment, spans, frontend, batch, workloads: BTreeMap::new(), tls };
        for (pod, _) in PODS {
            stage.start_workload(pod).await?;
        }
        Ok(stage)
    }

    /// Starts one of [`PODS`], as if its container came up.
    pub async fn start_workload(&mut self, pod: &'static str) -> Result<()> {
        let service = pod.split('-').next().unwrap_or_default();
        let tls = self.tls.get(service).with_context(|| format!("no certificate of {service}"))?;
        let workload = Workload::hbone(pod, address_of(pod)?, Arc::clone(tls), App::Http).await?;
        self.workloads.insert(pod, workload);
        Ok(())
    }

    /// A running pod.
    pub fn workload(&self, pod: &str) -> Result<&Workload> {
        self.workloads.get(pod).with_context(|| format!("{pod} does not run"))
    }

    /// A running pod, to end it.
    pub fn take_workload(&mut self, pod: &str) -> Result<Workload> {
        self.workloads.remove(pod).with_context(|| format!("{pod} does not run"))
    }

    /// Where the waypoint takes HBONE.
    pub fn hbone_address(&self) -> SocketAddr {
        waypoint_port(15008)
    }

    /// A GET on a connection and in a tunnel of its own.
    pub async fn get(&self, peer: &Peer, authority: &str, path: &str) -> Result<Answer> {
        peer.connect(self.hbone_address()).await?.get(authority, path).await
    }

    /// Asks again and again until the answer is as wanted: for the effect of an object that was applied.
    pub async fn get_until(&self, what: &str, peer: &Peer, wanted: impl Fn(&Answer) -> bool) -> Result<Answer> {
        let connection = peer.connect(self.hbone_address()).await?;
        until(what, EFFECT_DEADLINE, async || {
            let answer = connection.get(WEB, "/probe").await?;
            Ok(if wanted(&answer) { Look::Done(answer) } else { Look::NotYet(format!("{}: {}", answer.status, answer.text())) })
        })
        .await
    }

    /// The waypoint's metrics on a port.
    pub async fn metrics(&self, port: u16) -> Result<String> {
        let answer = plain_get(waypoint_port(port), "/stats/prometheus").await?;
        if answer.status != StatusCode::OK {
            bail!("port {port} answered {}: {}", answer.status, answer.text());
        }
        Ok(answer.text())
    }

    /// The access log's lines, as text and as JSON. What is no JSON is an error: nothing else may be on standard output.
    pub fn access_log(&self) -> Result<Vec<(String, Value)>> {
        let output = self.waypoint.stdout()?;
        let whole = output.rfind('\n').map_or("", |end| &output[..end]);
        let parse = |line: &str| Ok((line.to_owned(), serde_json::from_str(line).with_context(|| format!("a line of the log: {line}"))?));
        whole.lines().map(parse).collect()
    }

    /// Waits for the access log's line of a path.
    pub async fn access_line(&self, path: &str) -> Result<(String, Value)> {
        until(&format!("a log line of {path}"), Duration::from_secs(10), async || {
            let found = self.access_log()?.into_iter().find(|(_, line)| line["path"] == path);
            Ok(found.map_or_else(|| Look::NotYet("there is none".to_owned()), Look::Done))
        })
        .await
    }

    /// Applies the Telemetry object that operators apply, and waits until lines come.
    pub async fn turn_logging_on(&self) -> Result<()> {
        self.plane.apply_in("shop", &manifest("namespace/telemetry.yaml")?).await?;
        let connection = self.frontend.connect(self.hbone_address()).await?;
        let n_before = self.access_log()?.len();
        until("log lines", EFFECT_DEADLINE, async || {
            connection.get(WEB, "/is-it-logged").await?;
            let n_lines = self.access_log()?.len();
            Ok(if n_lines > n_before { Look::Done(()) } else { Look::NotYet("no new line".to_owned()) })
        })
        .await
    }

    /// The ends of the logs, for a failed step.
    pub fn print_logs(&self) {
        let error_log = self.waypoint.stderr().unwrap_or_else(|error| format!("{error:#}"));
        let access_log = self.waypoint.stdout().unwrap_or_else(|error| format!("{error:#}"));
        println!("-- waypoint, standard error:\n{}", last_lines(&error_log, LOG_LINES_MAX));
        println!("-- waypoint, standard output:\n{}", last_lines(&access_log, LOG_LINES_MAX / 6));
        let istiod = self.plane.run().join("istiod.log");
        let text = std::fs::read_to_string(&istiod).unwrap_or_default();
        println!("-- {}:\n{}", istiod.display(), last_lines(&text, LOG_LINES_MAX / 4));
    }
}

fn last_lines(text: &str, n_lines: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n_lines)..].join("\n")
}

/// A port of the waypoint's pod.
pub fn waypoint_port(port: u16) -> SocketAddr {
    SocketAddr::new(ADDRESS.parse().expect("an address"), port)
}
