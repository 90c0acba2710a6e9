//! A real Istio control plane without a cluster: etcd, kube-apiserver and an unmodified istiod, as children of a test.
//!
//! Real here are TokenReview, certificate signing, identity checks, delta xDS, status writing and the deployment controller, which
//! renders a waypoint's Deployment. What is missing are pods: nothing schedules or runs containers (see [`crate::pod`]), and pods
//! and their status are written by the test ([`MESH`]). Runs inside the network of [`crate::net`] only: all ports are fixed.
//!
//! Invariant: no server outlives its [`ControlPlane`].

pub mod exchange;
pub mod kube;
pub(crate) mod process;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use http::Method;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::net;
use crate::wait::{Look, until};
use kube::{Kube, documents};
use process::Server;
pub(crate) use process::tail;

/// The mesh that tests start from; its head lists names and addresses.
pub const MESH: &str = include_str!("../controlplane/mesh.yaml");

/// istiod's mesh configuration: JSON access logs, OTLP and ext_authz as providers.
pub const MESH_CONFIG: &str = include_str!("../controlplane/mesh-config.yaml");

const BUILD_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/controlplane/build.sh");
const BUILT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.build/controlplane");

/// How long each server may take until it answers; alone on a slow machine they need three seconds.
const SERVER_DEADLINE: Duration = Duration::from_secs(90);

/// How long a CRD may take to be established, and istiod to write an object.
const OBJECT_DEADLINE: Duration = Duration::from_secs(30);

/// CRDs that are applied at a time.
const CRDS_AT_A_TIME: usize = 4;

/// What kubelet asks for, for a waypoint.
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);

const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;
const API_PORT: u16 = 6443;
const XDS_PORT: u16 = 15012;
const ISTIOD_PLAIN_XDS_PORT: u16 = 15010;
const ISTIOD_WEBHOOK_PORT: u16 = 15017;
const ISTIOD_MONITORING_PORT: u16 = 15014;
const ISTIOD_HTTP_PORT: u16 = 8080;
const ISTIOD_INTROSPECTION_PORT: u16 = 9876;

/// Builds the servers if they are not built yet, with progress on standard output; minutes the first time, then milliseconds.
/// Call it before [`net::enter_or_reexec`]: inside, no module proxy can be reached.
pub fn build() -> Result<()> {
    let status = Command::new("bash").arg(BUILD_SCRIPT).status().with_context(|| format!("bash {BUILD_SCRIPT}"))?;
    if !status.success() {
        bail!("the control plane could not be built; see above");
    }
    Ok(())
}

/// What a test may choose.
#[derive(Debug, Clone)]
pub struct Options {
    /// YAML texts that are applied before istiod starts.
    pub objects: Vec<String>,
    /// istiod's mesh configuration, YAML.
    pub mesh_config: String,
    /// Added to istiod's environment.
    pub istiod_environment: Vec<(String, String)>,
    /// Services and proxies of both address families.
    pub dual_stack: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { objects: vec![MESH.to_owned()], mesh_config: MESH_CONFIG.to_owned(), istiod_environment: Vec::new(), dual_stack: false }
    }
}

/// A running control plane. Dropping it kills it.
#[derive(Debug)]
pub struct ControlPlane {
    // In the order in which they are to be dropped.
    istiod: Option<Server>,
    kube_apiserver: Server,
    _etcd: Server,
    kube: Kube,
    run: PathBuf,
    options: Options,
    root_cert: String,
    steps: Vec<(&'static str, Duration)>,
}

/// Measures steps one after the other.
struct Stopwatch {
    since: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl Stopwatch {
    fn lap(&mut self, step: &'static str) {
        self.steps.push((step, self.since.elapsed()));
        self.since = Instant::now();
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| anyhow!("{} is not UTF-8", path.display()))
}

/// Writes the API server's certificate and the key of service account tokens; returns the root that signs the former, as PEM.
fn write_keys(run: &Path) -> Result<String> {
    let root_key = KeyPair::generate()?;
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "test API server root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_pem = root.self_signed(&root_key)?.pem();
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key))?;
    std::fs::write(run.join("apiserver.pem"), leaf.pem())?;
    std::fs::write(run.join("apiserver.key"), key.serialize_pem())?;
    let service_accounts = KeyPair::generate()?;
    std::fs::write(run.join("service-accounts.key"), service_accounts.serialize_pem())?;
    std::fs::write(run.join("service-accounts.pub"), service_accounts.public_key_pem())?;
    Ok(root_pem)
}

fn tls_that_trusts(root_pem: &str) -> Result<Arc<rustls::ClientConfig>> {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root_pem.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

fn start_etcd(run: &Path) -> Result<Server> {
    let clients = format!("http://{}", loopback(ETCD_PORT));
    let mut command = Command::new(format!("{BUILT}/bin/etcd"));
    command
        .arg("--data-dir")
        .arg(run.join("etcd"))
        // A test's data need not survive a power failure.
        .args(["--unsafe-no-fsync", "--listen-client-urls", &clients, "--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &format!("http://{}", loopback(ETCD_PEER_PORT))]);
    Server::start("etcd", run, &mut command)
}

fn start_kube_apiserver(run: &Path, dual_stack: bool) -> Result<Server> {
    let file = |name: &str| path_text(&run.join(name)).map(str::to_owned);
    let services = if dual_stack { "10.96.0.0/16,fd00:10:96::/112" } else { "10.96.0.0/16" };
    let mut command = Command::new(format!("{BUILT}/bin/kube-apiserver"));
    command
        .arg(format!("--etcd-servers=http://{}", loopback(ETCD_PORT)))
        .arg(format!("--service-cluster-ip-range={services}"))
        .arg(format!("--secure-port={API_PORT}"))
        .arg("--bind-address=127.0.0.1")
        // Not loopback: without a default route it would find no address to advertise, and exit.
        .arg(format!("--advertise-address={}", net::NODE))
        .arg(format!("--cert-dir={}", file("apiserver")?))
        .arg(format!("--tls-cert-file={}", file("apiserver.pem")?))
        .arg(format!("--tls-private-key-file={}", file("apiserver.key")?))
        .arg(format!("--service-account-key-file={}", file("service-accounts.pub")?))
        .arg(format!("--service-account-signing-key-file={}", file("service-accounts.key")?))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg("--api-audiences=istio-ca,https://kubernetes.default.svc")
        .arg(format!("--token-auth-file={}", file("tokens.csv")?))
        .arg("--authorization-mode=RBAC")
        // Pods are written by the test: nothing may add to them or refuse them.
        .arg("--disable-admission-plugins=ServiceAccount,TaintNodesByCondition,Priority");
    Server::start("kube-apiserver", run, &mut command)
}

/// What the Helm chart of istiod would mount as its injection template and values.
fn write_injection(folder: &Path) -> Result<()> {
    let read = |name: &str| std::fs::read_to_string(Path::new(BUILT).join("share").join(name)).with_context(|| name.to_owned());
    let template = read("waypoint.template.yaml")?;
    let chart: Value = serde_yaml_ng::from_str(&read("values.yaml")?)?;
    let defaults = &chart["_internal_defaults_do_not_set"];
    let mut global = defaults["global"].clone();
    let global_fields = global.as_object_mut().ok_or_else(|| anyhow!("the chart's values have no global section"))?;
    global_fields.insert("hub".to_owned(), "registry.istio.io/release".into());
    global_fields.insert("tag".to_owned(), "1.31.0".into());
    let values = json!({
        "global": global,
        "sidecarInjectorWebhook": defaults["sidecarInjectorWebhook"],
        "pilot": {"cni": defaults["cni"], "env": defaults["env"]},
        "gateways": {"securityContext": defaults["gateways"]["securityContext"], "seccompProfile": defaults["gateways"]["seccompProfile"]},
        "revision": "",
    });
    let config = json!({
        "policy": "enabled", "alwaysInjectSelector": [], "neverInjectSelector": [], "defaultTemplates": [],
        "injectedAnnotations": {}, "templates": {"waypoint": template},
    });
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("values"), values.to_string())?;
    std::fs::write(folder.join("config"), config.to_string())?;
    Ok(())
}

fn write_kubeconfig(run: &Path, root_pem: &str, token: &str) -> Result<()> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://localhost:{API_PORT}"), "certificate-authority-data": BASE64_STANDARD.encode(root_pem)}}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
    });
    Ok(std::fs::write(run.join("kubeconfig"), kubeconfig.to_string())?)
}

fn istiod_command(run: &Path, options: &Options) -> Result<Command> {
    let mut command = Command::new(format!("{BUILT}/bin/pilot-discovery"));
    command
        .arg("discovery")
        .args(["--kubeconfig", path_text(&run.join("kubeconfig"))?])
        .args(["--meshConfig", path_text(&run.join("mesh-config.yaml"))?])
        .args(["--secureGRPCAddr", &SocketAddr::from((net::ISTIOD, XDS_PORT)).to_string()])
        .args(["--grpcAddr", &loopback(ISTIOD_PLAIN_XDS_PORT).to_string()])
        .args(["--httpsAddr", &loopback(ISTIOD_WEBHOOK_PORT).to_string()])
        .args(["--monitoringAddr", &loopback(ISTIOD_MONITORING_PORT).to_string()])
        .args(["--httpAddr", &loopback(ISTIOD_HTTP_PORT).to_string()])
        .args(["--ctrlz_port", &ISTIOD_INTROSPECTION_PORT.to_string(), "--log_output_level", "default:info"])
        // It finds its injection template in ./var/lib/istio/inject.
        .current_dir(run.join("istiod"))
        .env_clear()
        .env("HOME", run)
        .envs([
            ("PATH", "/usr/bin:/bin"),
            ("PILOT_ENABLE_AMBIENT", "true"),
            ("CLUSTER_ID", "Kubernetes"),
            ("POD_NAMESPACE", "istio-system"),
            ("POD_NAME", "istiod-0"),
            ("ENABLE_LEADER_ELECTION", "false"),
            ("INJECTION_WEBHOOK_CONFIG_NAME", "istio-sidecar-injector"),
            ("VALIDATION_WEBHOOK_CONFIG_NAME", ""),
            ("JWT_POLICY", "third-party-jwt"),
            ("PILOT_CERT_PROVIDER", "istiod"),
            ("ISTIOD_ADDR", "istiod.istio-system.svc:15012"),
        ])
        .env("ISTIO_DUAL_STACK", options.dual_stack.to_string())
        .envs(options.istiod_environment.iter().map(|(name, value)| (name, value)));
    Ok(command)
}

async fn apply_crds(kube: &Kube) -> Result<()> {
    let folder = Path::new(BUILT).join("share/crds");
    let mut crds = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("{}: run {BUILD_SCRIPT}", folder.display()))? {
        crds.extend(documents(&std::fs::read_to_string(entry?.path())?)?);
    }
    crds.retain(|object| object["kind"] == "CustomResourceDefinition");
    let each = crds.iter().map(|crd| async move {
        kube.apply_object(crd).await?;
        let name = crd["metadata"]["name"].as_str().unwrap_or_default();
        until(&format!("the CRD {name} is established"), OBJECT_DEADLINE, async || {
            let found = kube.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name).await?.unwrap_or_default();
            let conditions = found.pointer("/status/conditions").and_then(Value::as_array);
            let established = conditions.into_iter().flatten().any(|is| is["type"] == "Established" && is["status"] == "True");
            Ok(if established { Look::Done(()) } else { Look::NotYet(found["status"].to_string()) })
        })
        .await
    });
    stream::iter(each).buffer_unordered(CRDS_AT_A_TIME).try_collect().await
}

impl ControlPlane {
    /// Starts the three servers and applies the CRDs and `options.objects`; everything they write goes to `run`, which is
    /// made. Returns when istiod serves and has written its root certificate, some ten seconds later.
    pub async fn start(run: &Path, options: Options) -> Result<Self> {
        if !net::is_inside() {
            bail!("the control plane runs in the mesh's network only: call net::enter_or_reexec first");
        }
        std::fs::create_dir_all(run)?;
        let run = run.canonicalize()?;
        let mut stopwatch = Stopwatch { since: Instant::now(), steps: Vec::new() };
        let root_pem = write_keys(&run)?;
        // In a network of its own, a guessable token harms nobody.
        let token = "test-admin";
        std::fs::write(run.join("tokens.csv"), format!("{token},admin,1,\"system:masters\"\n"))?;
        write_kubeconfig(&run, &root_pem, token)?;
        std::fs::write(run.join("mesh-config.yaml"), &options.mesh_config)?;
        write_injection(&run.join("istiod/var/lib/istio/inject"))?;
        let mut etcd = start_etcd(&run)?;
        etcd.ready(&format!("http://{}/health", loopback(ETCD_PORT)), SERVER_DEADLINE).await?;
        stopwatch.lap("etcd");
        let kube_apiserver = start_kube_apiserver(&run, options.dual_stack)?;
        let kube = Kube::new(loopback(API_PORT), tls_that_trusts(&root_pem)?, token.to_owned());
        let mut plane = Self { istiod: None, kube_apiserver, _etcd: etcd, kube, run, options, root_cert: String::new(), steps: Vec::new() };
        plane.wait_for_kube_apiserver().await?;
        stopwatch.lap("kube-apiserver");
        apply_crds(&plane.kube).await?;
        stopwatch.lap("CRDs");
        for yaml in &plane.options.objects {
            plane.kube.apply(yaml).await?;
        }
        stopwatch.lap("objects");
        plane.start_istiod().await?;
        plane.root_cert = plane.wait_for_root_cert().await?;
        stopwatch.lap("istiod");
        plane.steps = stopwatch.steps;
        Ok(plane)
    }

    async fn wait_for_kube_apiserver(&mut self) -> Result<()> {
        until("kube-apiserver is ready", SERVER_DEADLINE, async || {
            self.kube_apiserver.check()?;
            Ok(match self.kube.call(Method::GET, "/readyz", None).await {
                Ok(Some(_)) => Look::Done(()),
                Ok(None) => Look::NotYet("404".to_owned()),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })
        .await
    }

    async fn wait_for_root_cert(&mut self) -> Result<String> {
        until("istiod has written its root certificate", OBJECT_DEADLINE, async || {
            let map = self.kube.get("v1", "ConfigMap", "istio-system", "istio-ca-root-cert").await?.unwrap_or_default();
            let pem = map.pointer("/data/root-cert.pem").and_then(Value::as_str);
            Ok(pem.map_or_else(|| Look::NotYet(map.to_string()), |pem| Look::Done(pem.to_owned())))
        })
        .await
    }

    /// How long each step of the start took.
    #[must_use]
    pub fn steps(&self) -> &[(&'static str, Duration)] {
        &self.steps
    }

    /// The folder of logs, kubeconfig and data.
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Where istiod serves xDS and its CA over TLS, as `istiod.istio-system.svc`.
    #[must_use]
    pub fn istiod_ads_address(&self) -> SocketAddr {
        (net::ISTIOD, XDS_PORT).into()
    }

    /// istiod's debug pages, for instance `/debug/syncz`.
    #[must_use]
    pub fn istiod_debug_address(&self) -> SocketAddr {
        loopback(ISTIOD_HTTP_PORT)
    }

    /// The mesh's root certificate, PEM.
    #[must_use]
    pub fn root_cert(&self) -> &str {
        &self.root_cert
    }

    /// The client of the API server, for calls that have no method here.
    #[must_use]
    pub fn kube(&self) -> &Kube {
        &self.kube
    }

    /// Applies every document of a YAML text, with its status where it has one.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        self.kube.apply(yaml).await
    }

    /// [`Self::apply`] for texts without namespaces, as `kubectl apply -n NAMESPACE` takes them.
    pub async fn apply_in(&self, namespace: &str, yaml: &str) -> Result<()> {
        self.kube.apply_in(namespace, yaml).await
    }

    /// Deletes one object; one that is not there is an error.
    pub async fn delete(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<()> {
        self.kube.delete(api_version, kind, namespace, name).await
    }

    /// Deletes every object of a YAML text, last first.
    pub async fn delete_yaml(&self, yaml: &str) -> Result<()> {
        self.kube.delete_yaml(yaml).await
    }

    /// An object, or `None`. `namespace` is ignored for kinds that have none.
    pub async fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        self.kube.get(api_version, kind, namespace, name).await
    }

    /// A service account's token for istiod (audience `istio-ca`).
    pub async fn token(&self, namespace: &str, service_account: &str) -> Result<String> {
        self.kube.token(namespace, service_account, "istio-ca", TOKEN_LIFETIME).await
    }

    /// The Deployment that istiod renders for a waypoint's Gateway: waits until `wanted` says yes to it.
    pub async fn rendered_deployment(&self, namespace: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        until(&format!("istiod has rendered the Deployment {namespace}/{name}"), OBJECT_DEADLINE, async || {
            let found = self.get("apps/v1", "Deployment", namespace, name).await?;
            Ok(match found {
                Some(deployment) if wanted(&deployment) => Look::Done(deployment),
                Some(deployment) => Look::NotYet(deployment["spec"].to_string()),
                None => Look::NotYet("there is none".to_owned()),
            })
        })
        .await
        .with_context(|| format!("istiod said:\n{}", tail(&self.run.join("istiod.log"))))
    }

    /// Kills istiod at once, as a crash would. Data, keys and the other servers stay.
    pub fn stop_istiod(&mut self) {
        self.istiod = None;
    }

    /// Starts istiod and waits until it is ready. Its CA is the one from before: it is kept in a Secret.
    pub async fn start_istiod(&mut self) -> Result<()> {
        let istiod = self.istiod.insert(Server::start("istiod", &self.run, &mut istiod_command(&self.run, &self.options)?)?);
        istiod.ready(&format!("http://{}/ready", loopback(ISTIOD_HTTP_PORT)), SERVER_DEADLINE).await
    }

    /// [`Self::stop_istiod`], then [`Self::start_istiod`].
    pub async fn restart_istiod(&mut self) -> Result<()> {
        self.stop_istiod();
        self.start_istiod().await
    }
}
