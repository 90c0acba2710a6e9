//! A recorded mesh moved to loopback addresses, and all its members together: [`Mesh`].
//!
//! `10.244.a.b` of a recording becomes `127.N.a.b`, N being this mesh's own, so that fixed ports never collide; services keep their
//! virtual addresses, which nobody has to dial. Plain endpoints below port 1024 move up by [`PRIVILEGED_PORT_SHIFT`].
//!
//! Invariant: a recording is edited as JSON and encoded through the descriptors, so an edit that is no such message fails.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use model::chain::Chain;
use rustls::ServerConfig;
use serde_json::{Value, json};
use xds_client::ads::{Resource, ResourceType, Update};
use xds_client::apply::Applier;
use xds_client::observer::Change;

use crate::envoy;
use crate::fake_istiod::{self, FakeIstiod, Kind, Reply};
use crate::otlp::SpanSink;
use crate::peer::{Connection, Peer};
use crate::pki::{Pki, spiffe};
use crate::process::{HBONE_PORT, Launch, STATUS_PORT, Waypoint};
use crate::workload::{App, Workload};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/istiod-1.31");

/// All recordings.
pub const RECORDED: [&str; 10] = [
    "01-plain",
    "02-httproute",
    "03-grpcroute",
    "04-virtualservice",
    "05-authz",
    "06-jwt",
    "07-telemetry",
    "08-egress",
    "09-tcp",
    "10-unsupported",
];

/// The recorded services.
pub const WEB: &str = "10.96.1.1:80";
pub const REVIEWS: &str = "10.96.1.2:9080";
pub const RATINGS: &str = "10.96.1.3:9000";
pub const AUTO: &str = "10.96.1.4:7000";
pub const DB: &str = "10.96.1.5:5432";
pub const LEGACY: &str = "10.96.1.7:80";
pub const EMPTY: &str = "10.96.1.8:80";

/// The chain and the cluster of `web`.
pub const WEB_CHAIN: &str = "inbound-vip|80|http|web.shop.svc.cluster.local";
/// Those of `ratings`.
pub const RATINGS_CHAIN: &str = "inbound-vip|9000|http|ratings.shop.svc.cluster.local";
/// Those of `reviews`.
pub const REVIEWS_CHAIN: &str = "inbound-vip|9080|http|reviews.shop.svc.cluster.local";
/// Those of `db`.
pub const DB_CHAIN: &str = "inbound-vip|5432|tcp|db.shop.svc.cluster.local";

/// Added to ports of plain endpoints that only root may listen on.
pub const PRIVILEGED_PORT_SHIFT: u16 = 8000;
/// Whoever listens here owns the addresses `127.N.0.0/16`.
const OWNER_PORT: u16 = 15_999;
/// Where the recorded collector takes OTLP/gRPC.
const COLLECTOR_PORT: u16 = 4317;
/// How long the answer to a push may take.
const PUSH_DEADLINE: Duration = Duration::from_secs(10);

/// The loopback addresses of one mesh.
#[derive(Debug)]
pub struct Loopback {
    number: u8,
    _owner: TcpListener,
}

impl Loopback {
    /// Takes addresses that nobody else has, in this process or another.
    pub fn take() -> Result<Self> {
        static TAKEN: AtomicU32 = AtomicU32::new(0);
        // One after another, since what a mesh that has just ended is closing may still be open for a moment.
        let start = std::process::id().wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        for offset in 0..254 {
            let number = u8::try_from(start.wrapping_add(offset) % 254 + 1)?;
            let address = |c, d| Ipv4Addr::new(127, number, c, d);
            // Left behind by a test that was killed, a proxy would still hold its ports.
            let fixed = [
                (address(0, 100), STATUS_PORT),
                (address(0, 101), envoy::ADMIN_PORT),
                (address(0, 2), fake_istiod::PORT),
                (address(8, 1), COLLECTOR_PORT),
            ];
            let is_free = fixed.into_iter().all(|place| TcpListener::bind(place).is_ok());
            if let (Ok(owner), true) = (TcpListener::bind((address(0, 3), OWNER_PORT)), is_free) {
                return Ok(Self { number, _owner: owner });
            }
        }
        bail!("all loopback addresses are taken: too many meshes at once, or waypoints that outlived their tests")
    }

    /// Where `10.244.c.d` is.
    #[must_use]
    pub fn pod(&self, c: u8, d: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.number, c, d)
    }

    /// The waypoint's address.
    #[must_use]
    pub fn waypoint(&self) -> Ipv4Addr {
        self.pod(0, 100)
    }
}

/// The resources of a mesh, as JSON by kind and name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scenario(BTreeMap<Kind, BTreeMap<String, Value>>);

/// The file of a kind; secrets and extensions are in no recording.
fn file_of(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::Cluster => "Cluster.json",
        Kind::Endpoints => "ClusterLoadAssignment.json",
        Kind::Listener => "Listener.json",
        Kind::Workload => "Workload.json",
        Kind::Secret | Kind::Extension => return None,
    })
}

impl Scenario {
    /// A recorded one, as istiod sent it.
    pub fn recorded(name: &str) -> Result<Self> {
        let mut scenario = Self::default();
        for (kind, file) in Kind::ALL.into_iter().filter_map(|kind| Some((kind, file_of(kind)?))) {
            let path = Path::new(FIXTURES).join(name).join(file);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let file: Value = serde_json::from_str(&text)?;
            let resources = file["resources"].as_array().context("no list of resources")?;
            for resource in resources {
                let name = resource["name"].as_str().context("a resource without a name")?;
                scenario.0.entry(kind).or_default().insert(name.to_owned(), resource["resource"].clone());
            }
        }
        Ok(scenario)
    }

    /// A recorded one, moved to these addresses.
    pub fn load(name: &str, net: &Loopback) -> Result<Self> {
        let mut scenario = Self::recorded(name)?;
        scenario.0.values_mut().flat_map(BTreeMap::values_mut).for_each(|body| move_addresses(body, net));
        let terminate = scenario.resource(Kind::Listener, "connect_terminate")?;
        terminate["address"]["socket_address"]["address"] = net.waypoint().to_string().into();
        Ok(scenario)
    }

    /// A resource, to be edited.
    pub fn resource(&mut self, kind: Kind, name: &str) -> Result<&mut Value> {
        let found = self.0.get_mut(&kind).and_then(|resources| resources.get_mut(name));
        found.ok_or_else(|| anyhow!("there is no {kind:?} {name}"))
    }

    /// All resources of a kind, by name.
    pub fn resources(&self, kind: Kind) -> impl Iterator<Item = (&str, &Value)> {
        self.0.get(&kind).into_iter().flatten().map(|(name, value)| (name.as_str(), value))
    }

    /// Adds or replaces a resource.
    pub fn insert(&mut self, kind: Kind, name: &str, resource: Value) {
        self.0.entry(kind).or_default().insert(name.to_owned(), resource);
    }

    /// A filter chain of `main_internal`.
    pub fn chain(&mut self, name: &str) -> Result<&mut Value> {
        let listener = self.resource(Kind::Listener, "main_internal")?;
        let chains = listener["filter_chains"].as_array_mut().context("no chains")?;
        chains.iter_mut().find(|chain| chain["name"] == name).ok_or_else(|| anyhow!("there is no chain {name}"))
    }

    /// The HTTP connection manager of a chain.
    pub fn http(&mut self, chain: &str) -> Result<&mut Value> {
        let filters = self.chain(chain)?["filters"].as_array_mut().context("no filters")?;
        let manager = filters.iter_mut().find(|filter| filter["name"] == "envoy.filters.network.http_connection_manager");
        Ok(&mut manager.with_context(|| format!("{chain} is not HTTP"))?["typed_config"])
    }

    /// Puts routes before the ones a chain has.
    pub fn add_routes(&mut self, chain: &str, routes: Vec<Value>) -> Result<()> {
        let known = self.http(chain)?["route_config"]["virtual_hosts"][0]["routes"].as_array_mut().context("no routes")?;
        known.splice(0..0, routes);
        Ok(())
    }

    /// Puts HTTP filters before the ones a chain has, as istiod places policies.
    pub fn add_http_filters(&mut self, chain: &str, filters: Vec<Value>) -> Result<()> {
        let known = self.http(chain)?["http_filters"].as_array_mut().context("no HTTP filters")?;
        known.splice(0..0, filters);
        Ok(())
    }

    /// Leaves the first `n_endpoints` of a cluster, so that it is known where a request goes.
    pub fn keep_endpoints(&mut self, cluster: &str, n_endpoints: usize) -> Result<()> {
        let localities = self.resource(Kind::Endpoints, cluster)?["endpoints"].as_array_mut().context("no endpoints")?;
        let mut left = n_endpoints;
        for locality in localities.iter_mut() {
            let endpoints = locality["lb_endpoints"].as_array_mut().context("a locality without endpoints")?;
            endpoints.truncate(left);
            left -= endpoints.len();
        }
        localities.retain(|locality| locality["lb_endpoints"].as_array().is_some_and(|endpoints| !endpoints.is_empty()));
        Ok(())
    }

    /// The resources of a kind that `names` chooses, by name, as messages.
    pub fn encoded(&self, kind: Kind, names: impl Fn(&str, &Value) -> bool) -> Result<Vec<(String, Vec<u8>)>> {
        let resources = self.0.get(&kind).into_iter().flatten().filter(|(name, value)| names(name, value));
        resources
            .map(|(name, value)| {
                let bytes = xds_proto::message_from_json(kind.message(), value).with_context(|| format!("{kind:?} {name}"))?;
                Ok((name.clone(), bytes))
            })
            .collect()
    }

    /// A chain as the proxy obeys it.
    pub fn compiled(&self, chain: &str) -> Result<Arc<Chain>> {
        let resource = |(name, body)| Resource { name, version: String::new(), body: Bytes::from(body) };
        let resources = self.encoded(Kind::Listener, |_, _| true)?.into_iter().map(resource).collect();
        let outcome = Applier::default().apply(Update { of: ResourceType::Listener, resources, removed: Vec::new() });
        let listeners = outcome.changes.into_iter().find_map(|change| match change {
            Change::Listeners(listeners) => Some(listeners),
            _ => None,
        });
        listeners.and_then(|listeners| listeners.chains.get(chain).map(Arc::clone)).with_context(|| format!("there is no chain {chain}"))
    }

    /// Address, namespace and account of a recorded workload.
    fn member(&self, name: &str) -> Result<Member> {
        let workloads = self.0.get(&Kind::Workload).context("no workloads")?;
        let found = workloads.values().find(|workload| workload["name"] == name);
        let found = found.ok_or_else(|| anyhow!("there is no workload {name}"))?;
        let bytes = STANDARD.decode(found["addresses"][0].as_str().context("no address")?)?;
        let address: [u8; 4] = bytes.try_into().map_err(|_| anyhow!("the address of {name} is not IPv4"))?;
        let text = |key: &str| found[key].as_str().unwrap_or("default").to_owned();
        Ok(Member { address: address.into(), identity: spiffe(&text("namespace"), &text("service_account")) })
    }
}

struct Member {
    address: Ipv4Addr,
    identity: String,
}

/// Moves every pod address below `value` to loopback, in text and in the bytes of workloads.
fn move_addresses(value: &mut Value, net: &Loopback) {
    match value {
        Value::String(text) if text.contains("10.244.") => *text = text.replace("10.244.", &format!("127.{}.", net.number)),
        Value::Array(items) => items.iter_mut().for_each(|item| move_addresses(item, net)),
        Value::Object(fields) => {
            for (key, field) in fields {
                move_addresses(field, net);
                if key == "addresses" {
                    field.as_array_mut().into_iter().flatten().for_each(|address| move_bytes(address, net));
                }
                if key == "socket_address" {
                    move_port(field);
                }
            }
        }
        _ => {}
    }
}

fn move_bytes(address: &mut Value, net: &Loopback) {
    let bytes = address.as_str().and_then(|text| STANDARD.decode(text).ok());
    if let Some([10, 244, c, d]) = bytes.as_deref() {
        *address = STANDARD.encode(net.pod(*c, *d).octets()).into();
    }
}

fn move_port(socket_address: &mut Value) {
    let is_pod = socket_address["address"].as_str().is_some_and(|address| address.starts_with("127."));
    if let Some(port) = socket_address["port_value"].as_u64().filter(|port| is_pod && *port < 1024) {
        socket_address["port_value"] = json!(port + u64::from(PRIVILEGED_PORT_SHIFT));
    }
}

/// How to bring up a mesh.
pub struct MeshBuilder {
    scenario: Scenario,
    net: Loopback,
    pki: Arc<Pki>,
    environment: BTreeMap<String, Option<String>>,
    annotations: BTreeMap<String, String>,
    proxy_config: serde_json::Map<String, Value>,
    istiod_is_up: bool,
    certificate_lifetime: Option<Duration>,
    is_quiet: bool,
    counts_output: bool,
    runner: Vec<String>,
}

impl std::fmt::Debug for MeshBuilder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("MeshBuilder").field("net", &self.net).finish_non_exhaustive()
    }
}

impl MeshBuilder {
    /// Edits the recording before anybody sees it.
    pub fn edit(mut self, edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<Self> {
        edit(&mut self.scenario)?;
        Ok(self)
    }

    /// Uses a root that others know too.
    #[must_use]
    pub fn pki(mut self, pki: Pki) -> Self {
        self.pki = Arc::new(pki);
        self
    }

    /// Sets a variable of the waypoint, or takes one away.
    #[must_use]
    pub fn environment(mut self, name: &str, value: Option<&str>) -> Self {
        self.environment.insert(name.to_owned(), value.map(str::to_owned));
        self
    }

    /// Adds an annotation to the waypoint's pod.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets a field of PROXY_CONFIG.
    #[must_use]
    pub fn proxy_config(mut self, name: &str, value: Value) -> Self {
        self.proxy_config.insert(name.to_owned(), value);
        self
    }

    /// istiod is not there when the waypoint starts.
    #[must_use]
    pub fn without_istiod(mut self) -> Self {
        self.istiod_is_up = false;
        self
    }

    /// Certificates live this long.
    #[must_use]
    pub fn certificate_lifetime(mut self, lifetime: Duration) -> Self {
        self.certificate_lifetime = Some(lifetime);
        self
    }

    /// The waypoint's own log is not repeated at its end.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.is_quiet = true;
        self
    }

    /// The waypoint's standard output is counted, not kept.
    #[must_use]
    pub fn counting(mut self) -> Self {
        self.counts_output = true;
        self
    }

    /// A command that runs the waypoint's binary, such as `taskset -c 1`; it has to become it.
    #[must_use]
    pub fn runner(mut self, runner: Vec<String>) -> Self {
        self.runner = runner;
        self
    }

    /// The addresses of the mesh.
    #[must_use]
    pub fn net(&self) -> &Loopback {
        &self.net
    }

    /// Starts istiod, a collector and the waypoint; does not wait until it is ready.
    pub async fn start_unready(self) -> Result<Mesh> {
        let Self { scenario, net, pki, .. } = self;
        let mut istiod = FakeIstiod::new(Arc::clone(&pki), SocketAddr::new(IpAddr::V4(net.pod(0, 2)), fake_istiod::PORT))?;
        istiod.set_certificate_lifetime(self.certificate_lifetime);
        for kind in Kind::ALL {
            istiod.set(kind, scenario.encoded(kind, |_, _| true)?);
        }
        if self.istiod_is_up {
            istiod.start().await?;
        }
        let spans = SpanSink::start(SocketAddr::new(IpAddr::V4(net.pod(8, 1)), COLLECTOR_PORT)).await?;
        let launch = Launch {
            address: net.waypoint(),
            discovery: istiod.address(),
            root_pem: pki.root_pem(),
            environment: self.environment,
            annotations: self.annotations,
            proxy_config: self.proxy_config,
            counts_output: self.counts_output,
            runner: self.runner,
            tells_at_end: !self.is_quiet,
        };
        let waypoint = Waypoint::start(&launch).await?;
        Ok(Mesh { waypoint, istiod, spans, pki, net, scenario })
    }

    /// As [`Self::start_unready`], and waits.
    pub async fn start(self) -> Result<Mesh> {
        let mut mesh = self.start_unready().await?;
        mesh.waypoint.ready().await?;
        Ok(mesh)
    }
}

/// A waypoint between a scripted control plane, a collector, and what a test adds to it.
#[derive(Debug)]
pub struct Mesh {
    pub waypoint: Waypoint,
    pub istiod: FakeIstiod,
    pub spans: SpanSink,
    pub pki: Arc<Pki>,
    pub net: Loopback,
    scenario: Scenario,
}

impl Mesh {
    /// A mesh of a recorded scenario.
    pub fn builder(scenario: &str) -> Result<MeshBuilder> {
        let net = Loopback::take()?;
        Ok(MeshBuilder {
            scenario: Scenario::load(scenario, &net)?,
            net,
            pki: Arc::new(Pki::new()?),
            environment: BTreeMap::new(),
            annotations: BTreeMap::new(),
            proxy_config: serde_json::Map::new(),
            istiod_is_up: true,
            certificate_lifetime: None,
            is_quiet: false,
            counts_output: false,
            runner: Vec::new(),
        })
    }

    /// A ready one.
    pub async fn start(scenario: &str) -> Result<Self> {
        Self::builder(scenario)?.start().await
    }

    /// What istiod sends now.
    #[must_use]
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// A recorded pod of the mesh, running.
    pub async fn pod(&self, name: &str, app: App) -> Result<Workload> {
        let member = self.scenario.member(name)?;
        let tls = self.pki.workload_config(&self.pki.member(&member.identity)?)?;
        Workload::hbone(name, IpAddr::V4(member.address), tls, app).await
    }

    /// A recorded pod outside the mesh, running on `port`.
    pub async fn plain_pod(&self, name: &str, port: u16, app: App) -> Result<Workload> {
        let member = self.scenario.member(name)?;
        Workload::plain(name, SocketAddr::new(IpAddr::V4(member.address), port), app).await
    }

    /// A recorded pod whose application speaks TLS inside HBONE.
    pub async fn pod_with_tls(&self, name: &str, inner: Arc<ServerConfig>, app: App) -> Result<Workload> {
        let member = self.scenario.member(name)?;
        let tls = self.pki.workload_config(&self.pki.member(&member.identity)?)?;
        Workload::hbone_with_tls(name, IpAddr::V4(member.address), (tls, inner), app).await
    }

    /// A recorded pod outside the mesh that speaks TLS on `port`.
    pub async fn tls_pod(&self, name: &str, port: u16, tls: Arc<ServerConfig>, app: App) -> Result<Workload> {
        let member = self.scenario.member(name)?;
        Workload::tls(name, SocketAddr::new(IpAddr::V4(member.address), port), tls, app).await
    }

    /// A recorded pod as a caller: its certificate, its address.
    pub fn peer(&self, name: &str) -> Result<Peer> {
        let member = self.scenario.member(name)?;
        Peer::new(&self.pki, Some(&self.pki.member(&member.identity)?), Some(IpAddr::V4(member.address)))
    }

    /// An HBONE connection of a recorded pod to the waypoint.
    pub async fn connect(&self, name: &str) -> Result<Connection> {
        self.peer(name)?.connect(self.waypoint.hbone()).await
    }

    /// Where the waypoint speaks HBONE.
    #[must_use]
    pub fn hbone(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.net.waypoint()), HBONE_PORT)
    }

    /// Pushes an edit; returns what the waypoint answers for each kind that changed.
    pub async fn push(&mut self, edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<Vec<Reply>> {
        let before = self.scenario.clone();
        edit(&mut self.scenario)?;
        let mut replies = Vec::new();
        for kind in Kind::ALL {
            let known = before.0.get(&kind);
            let changed = self.scenario.encoded(kind, |name, value| known.and_then(|known| known.get(name)) != Some(value))?;
            if !changed.is_empty() {
                let generation = self.istiod.set(kind, changed);
                replies.push(self.istiod.reply(kind, generation, PUSH_DEADLINE).await?);
            }
        }
        Ok(replies)
    }

    /// Pushes an edit that has to be accepted.
    pub async fn push_accepted(&mut self, edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<()> {
        match self.push(edit).await?.into_iter().find(|reply| reply.refusal.is_some()) {
            Some(reply) => bail!("the waypoint refused a push: {reply:?}"),
            None => Ok(()),
        }
    }
}
