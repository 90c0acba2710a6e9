//! The process contract: everything that comes from arguments, environment and files, read once, checked as a whole.
//!
//! Not for: what istiod sends. The only reader of `std::env` besides `main`.
//! Invariants: a [`Settings`] is complete and consistent; what is wrong is reported all at once, each with name, value and
//! what was expected. Source: the pod that istiod renders for a Gateway of class `istio-waypoint`, and pilot-agent's rules.

pub mod args;
mod pod_files;
mod proxy_config;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use args::ProxyArgs;
use model::chain::{OnRefusedPolicy, SkippedFilters};
use proxy_config::ProxyConfig;
use telemetry::{Bounds, HISTOGRAM_BOUNDS_MAX};

/// What `ISTIO_VERSION` says when the environment does not: the release whose configuration vocabulary is spoken.
pub const ISTIO_VERSION_DEFAULT: &str = "1.30.0";
/// Where istiod is unless ProxyConfig says otherwise.
const DISCOVERY_ADDRESS_DEFAULT: &str = "istiod.istio-system.svc:15012";
/// The DNS domain of the cluster when `--domain` does not say.
const CLUSTER_DOMAIN_DEFAULT: &str = "cluster.local";
/// Lifetime asked of the CA (`SECRET_TTL`).
const CERTIFICATE_TTL_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Kubernetes' grace period, which the rendered Deployment leaves at its default; draining has to end before it.
const POD_GRACE_PERIOD: Duration = Duration::from_secs(30);
/// Kept of the grace period for the exit itself.
const EXIT_RESERVE: Duration = Duration::from_secs(2);
/// ProxyConfig's `terminationDrainDuration` when unset.
const TERMINATION_DRAIN_DEFAULT: Duration = Duration::from_secs(5);

/// One setting that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingError {
    /// The flag, variable or file.
    pub name: String,
    /// What it says; empty if it is missing.
    pub value: String,
    /// What it should say.
    pub expected: String,
}

impl SettingError {
    /// A [`SettingError`] of these parts.
    #[must_use]
    pub fn new(name: &str, value: &str, expected: &str) -> Self {
        Self { name: name.to_owned(), value: value.to_owned(), expected: expected.to_owned() }
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.value.is_empty() {
            write!(formatter, "{} is missing: expected {}", self.name, self.expected)
        } else {
            write!(formatter, "{} is {:?}: expected {}", self.name, self.value, self.expected)
        }
    }
}

/// A control plane server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The name its certificate must have.
    pub server_name: String,
    /// Without TLS.
    pub plaintext: bool,
    /// PEM file of the roots to verify it with.
    pub root_file: PathBuf,
}

/// Where the process listens besides what istiod says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddresses {
    /// `/healthz/ready`, 15021.
    pub status: SocketAddr,
    /// `/stats/prometheus`, 15090.
    pub stats: SocketAddr,
    /// `/stats/prometheus`, `/quitquitquit`, `/drain`, 15020.
    pub agent: SocketAddr,
    /// The admin port, 15000; loopback only.
    pub admin: SocketAddr,
}

/// Which name servers are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsSettings {
    /// `resolv.conf`, as it is; empty if there is none.
    pub resolv_conf: Vec<u8>,
    /// Name servers, instead of those in it.
    pub servers: Vec<SocketAddr>,
}

/// Everything the process is told from outside.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Pod, namespace and the rest of the node's id.
    pub node: NodeSettings,
    /// istiod.
    pub discovery: ServerAddress,
    /// The CA; most often istiod too.
    pub ca: ServerAddress,
    /// The projected service account token.
    pub token_file: PathBuf,
    /// Lifetime asked of the CA.
    pub certificate_ttl: Duration,
    /// `ISTIO_META_CERT_SIGNER`.
    pub certificate_signer: String,
    /// `XDS_HEADER_…`.
    pub discovery_headers: Vec<(String, String)>,
    /// `CA_HEADER_…`.
    pub ca_headers: Vec<(String, String)>,
    /// Data plane threads asked for, in order of precedence: ProxyConfig or flag, `ISTIO_CPU_LIMIT`.
    pub concurrency: Option<usize>,
    /// `ISTIO_CPU_LIMIT`.
    pub cpu_limit: Option<usize>,
    /// How long a drain may take.
    pub termination_drain_duration: Duration,
    /// `EXIT_ON_ZERO_ACTIVE_CONNECTIONS`: a drain ends when nothing is open, and may use the whole grace period.
    pub exit_on_zero_active_connections: bool,
    /// `MINIMUM_DRAIN_DURATION`, for the above.
    pub drain_duration_minimum: Duration,
    /// Our own ports.
    pub local: LocalAddresses,
    /// What a chain does with a policy that cannot be read.
    pub on_refused_policy: OnRefusedPolicy,
    /// Filters that are left out where they are not known.
    pub skipped_filters: SkippedFilters,
    /// Whether JSON log lines say why a request was refused although their format does not.
    pub log_refusals: bool,
    /// Whether each try of a traced request has a span.
    pub spans_of_tries: bool,
    /// Whether spans have the names of OpenTelemetry's conventions, too.
    pub semantic_names: bool,
    /// Ready although a chain is refused without a last good version.
    pub ready_with_refused: bool,
    /// `/etc/resolv.conf`, and `WAYPOINT_DNS_SERVERS`.
    pub dns: DnsSettings,
    /// Buckets of histograms by the beginning of their names, from the pod's annotation.
    pub histogram_bounds: Vec<(String, Bounds)>,
    /// All variables, for tags of spans that are to say one.
    pub environment: BTreeMap<String, String>,
    /// How long a series may be idle, from the pod's annotation; none keeps all.
    pub series_idle_max: Option<Duration>,
    /// `log_output_level` of the process's own log.
    pub log_level: String,
    /// The process's own log as JSON.
    pub log_as_json: bool,
    /// Flags that mean nothing here.
    pub unknown_flags: Vec<String>,
}

/// Who this proxy says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// The pod's address that istiod finds it by.
    pub instance_ip: IpAddr,
    /// All its addresses, the first one included.
    pub instance_ips: Vec<IpAddr>,
    /// The pod's name.
    pub pod_name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// `cluster.local`.
    pub trust_domain: String,
    /// `shop.svc.cluster.local`.
    pub dns_domain: String,
    /// `waypoint.shop`.
    pub service_cluster: String,
    /// `Kubernetes`.
    pub cluster_id: String,
    /// The network it is on; empty is the default one.
    pub network: String,
    /// What it reports as its version.
    pub istio_version: String,
    /// `ISTIO_META_<KEY>` variables, keys without the prefix.
    pub meta: BTreeMap<String, String>,
    /// `ISTIO_METAJSON_…` objects, merged.
    pub meta_json: serde_json::Map<String, serde_json::Value>,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
    /// ProxyConfig as it came.
    pub proxy_config: serde_json::Value,
}

/// What settings are read from; the process passes its own, tests pass theirs.
pub struct Sources<'a> {
    /// All environment variables.
    pub env: BTreeMap<String, String>,
    /// Addresses of the pod's interfaces, loopback left out.
    pub interface_addresses: Vec<IpAddr>,
    /// Reads a text file.
    pub read_file: &'a dyn Fn(&Path) -> std::io::Result<String>,
}

impl fmt::Debug for Sources<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sources").field("interface_addresses", &self.interface_addresses).finish_non_exhaustive()
    }
}

/// Filters that are left out where they are not known, for who has no other settings.
///
/// # Errors
/// The setting is wrong.
pub fn skipped_filters(env: BTreeMap<String, String>) -> Result<SkippedFilters, Vec<SettingError>> {
    let read_file = |_: &Path| Err(std::io::ErrorKind::Unsupported.into());
    let mut reader = Reader { env, read_file: &read_file, errors: Vec::new() };
    let filters = reader.skipped_filters();
    if reader.errors.is_empty() { Ok(filters) } else { Err(reader.errors) }
}

impl Settings {
    /// Reads everything.
    ///
    /// # Errors
    /// All that is missing or wrong, at once.
    pub fn read(args: &ProxyArgs, sources: Sources<'_>) -> Result<Self, Vec<SettingError>> {
        let mut reader = Reader { env: sources.env, read_file: sources.read_file, errors: Vec::new() };
        let proxy_config = reader.proxy_config();
        reader.adopt_proxy_metadata(&proxy_config);
        let node = reader.node(args, &proxy_config, sources.interface_addresses);
        let settings = Self {
            discovery: reader.discovery(&proxy_config),
            ca: reader.ca(&proxy_config),
            token_file: reader.path("/var/run/secrets/tokens/istio-token"),
            certificate_ttl: reader.duration("SECRET_TTL").unwrap_or(CERTIFICATE_TTL_DEFAULT),
            certificate_signer: reader.text("ISTIO_META_CERT_SIGNER").unwrap_or_default(),
            discovery_headers: reader.headers("XDS_HEADER_"),
            ca_headers: reader.headers("CA_HEADER_"),
            concurrency: reader.concurrency(args, &proxy_config),
            cpu_limit: reader.count("ISTIO_CPU_LIMIT"),
            termination_drain_duration: reader.drain_duration(&proxy_config),
            exit_on_zero_active_connections: reader.flag("EXIT_ON_ZERO_ACTIVE_CONNECTIONS"),
            drain_duration_minimum: reader.duration("MINIMUM_DRAIN_DURATION").unwrap_or(TERMINATION_DRAIN_DEFAULT),
            local: reader.local_addresses(node.instance_ip),
            on_refused_policy: reader.on_refused_policy(),
            skipped_filters: reader.skipped_filters(),
            spans_of_tries: reader.flag("WAYPOINT_SPANS_OF_TRIES"),
            semantic_names: reader.flag("WAYPOINT_SEMANTIC_CONVENTIONS"),
            log_refusals: reader.switch("WAYPOINT_LOG_REFUSALS").unwrap_or(true),
            ready_with_refused: reader.flag("WAYPOINT_READY_WITH_REFUSED"),
            dns: reader.dns(),
            histogram_bounds: reader.histogram_bounds(&node.annotations),
            environment: reader.env.clone(),
            series_idle_max: reader.series_idle_max(&node.annotations),
            log_level: reader.text("WAYPOINT_LOG").or_else(|| args.log_output_level.clone()).unwrap_or_else(|| "default:info".to_owned()),
            log_as_json: args.log_as_json,
            unknown_flags: args.unknown.clone(),
            node,
        };
        if reader.errors.is_empty() { Ok(settings) } else { Err(reader.errors) }
    }

    /// The shortest a drain lasts, whatever is open: the whole of it, or `MINIMUM_DRAIN_DURATION` where it ends with the last connection.
    #[must_use]
    pub fn drain_duration_min(&self) -> Duration {
        if self.exit_on_zero_active_connections { self.drain_duration_minimum.min(self.drain_deadline()) } else { self.drain_deadline() }
    }

    /// The longest a drain may last: what was configured, and never into the end of the pod's grace period.
    #[must_use]
    pub fn drain_deadline(&self) -> Duration {
        let longest = POD_GRACE_PERIOD - EXIT_RESERVE;
        if self.exit_on_zero_active_connections { longest } else { self.termination_drain_duration.min(longest) }
    }
}

/// How long a series may be idle, `1h`.
const EVICTION_ANNOTATION: &str = "sidecar.istio.io/statsEvictionInterval";
/// Buckets of histograms, `{"istiocustom":[1,5,10]}`.
const HISTOGRAM_ANNOTATION: &str = "sidecar.istio.io/statsHistogramBuckets";

struct Reader<'a> {
    env: BTreeMap<String, String>,
    read_file: &'a dyn Fn(&Path) -> std::io::Result<String>,
    errors: Vec<SettingError>,
}

impl Reader<'_> {
    fn wrong(&mut self, name: &str, value: &str, expected: &str) {
        self.errors.push(SettingError::new(name, value, expected));
    }

    fn text(&self, name: &str) -> Option<String> {
        self.env.get(name).filter(|value| !value.is_empty()).cloned()
    }

    fn required(&mut self, name: &str, expected: &str) -> String {
        let value = self.text(name);
        if value.is_none() {
            self.wrong(name, "", expected);
        }
        value.unwrap_or_default()
    }

    fn parsed<T>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(&text);
        if value.is_none() {
            self.wrong(name, &text, expected);
        }
        value
    }

    fn on_refused_policy(&mut self) -> OnRefusedPolicy {
        let parse = |text: &str| match text {
            "deny" => Some(OnRefusedPolicy::Deny),
            "keep" => Some(OnRefusedPolicy::KeepLastGood),
            _ => None,
        };
        self.parsed("WAYPOINT_ON_REFUSED_POLICY", "keep or deny", parse).unwrap_or_default()
    }

    fn skipped_filters(&mut self) -> SkippedFilters {
        let expected =
            "names of filters, joined by commas, and none that decides who may do what (rbac, jwt_authn, ext_authz and the like)";
        self.parsed("WAYPOINT_SKIP_FILTERS", expected, SkippedFilters::parse).unwrap_or_default()
    }

    fn flag(&mut self, name: &str) -> bool {
        self.switch(name).unwrap_or(false)
    }

    fn switch(&mut self, name: &str) -> Option<bool> {
        let parse = |text: &str| match text {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        };
        self.parsed(name, "true or false", parse)
    }

    fn count(&mut self, name: &str) -> Option<usize> {
        self.parsed(name, "a number of cores", |text| text.parse().ok())
    }

    fn duration(&mut self, name: &str) -> Option<Duration> {
        self.parsed(name, "a duration such as 24h or 5s", proxy_config::duration)
    }

    /// A path of the pod, below `WAYPOINT_ROOT` where one is set (to run outside a pod).
    fn path(&self, absolute: &str) -> PathBuf {
        match self.text("WAYPOINT_ROOT") {
            Some(root) => Path::new(&root).join(absolute.trim_start_matches('/')),
            None => PathBuf::from(absolute),
        }
    }

    /// The system's settings, which are outside of `WAYPOINT_ROOT`; without any, names cannot be looked up, and all else works.
    fn dns(&mut self) -> DnsSettings {
        let resolv_conf = (self.read_file)(Path::new("/etc/resolv.conf")).unwrap_or_default();
        let parse = |text: &str| text.split(',').map(|one| one.trim().parse().ok()).collect();
        let servers = self.parsed("WAYPOINT_DNS_SERVERS", "addresses with ports, such as 10.96.0.10:53, joined by commas", parse);
        DnsSettings { resolv_conf: resolv_conf.into_bytes(), servers: servers.unwrap_or_default() }
    }

    fn histogram_bounds(&mut self, annotations: &BTreeMap<String, String>) -> Vec<(String, Bounds)> {
        let Some(text) = annotations.get(HISTOGRAM_ANNOTATION) else { return Vec::new() };
        let parsed = serde_json::from_str::<BTreeMap<String, Vec<f64>>>(text).ok();
        let bounds = parsed.and_then(|map| map.into_iter().map(|(prefix, bounds)| Some((prefix, Bounds::new(&bounds)?))).collect());
        bounds.unwrap_or_else(|| {
            let expected = format!("an object of lists with up to {HISTOGRAM_BOUNDS_MAX} rising numbers above 0");
            self.wrong(&format!("annotation {HISTOGRAM_ANNOTATION}"), text, &expected);
            Vec::new()
        })
    }

    fn series_idle_max(&mut self, annotations: &BTreeMap<String, String>) -> Option<Duration> {
        let text = annotations.get(EVICTION_ANNOTATION)?;
        let idle_max = proxy_config::duration(text).filter(|idle_max| !idle_max.is_zero());
        if idle_max.is_none() {
            self.wrong(&format!("annotation {EVICTION_ANNOTATION}"), text, "a duration above 0, such as 1h");
        }
        idle_max
    }

    fn headers(&self, prefix: &str) -> Vec<(String, String)> {
        let named = |(name, value): (&String, &String)| name.strip_prefix(prefix).map(|key| (key.to_ascii_lowercase(), value.clone()));
        self.env.iter().filter_map(named).collect()
    }

    fn proxy_config(&mut self) -> ProxyConfig {
        let Some(text) = self.text("PROXY_CONFIG") else { return ProxyConfig::default() };
        ProxyConfig::parse(&text).unwrap_or_else(|expected| {
            self.wrong("PROXY_CONFIG", text.trim(), &expected);
            ProxyConfig::default()
        })
    }

    /// `proxyMetadata` is environment too; what the pod sets itself wins.
    fn adopt_proxy_metadata(&mut self, proxy_config: &ProxyConfig) {
        for (name, value) in &proxy_config.proxy_metadata {
            self.env.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }

    fn pod_file(&mut self, name: &str) -> BTreeMap<String, String> {
        let path = self.path(&format!("/etc/istio/pod/{name}"));
        let shown = path.display().to_string();
        match (self.read_file)(&path) {
            Ok(text) => pod_files::parse(&text).unwrap_or_else(|line| {
                self.wrong(&shown, &line, "lines of the form key=\"value\"");
                BTreeMap::new()
            }),
            Err(error) => {
                self.wrong(&shown, &error.to_string(), "a readable file, mounted by the downward API");
                BTreeMap::new()
            }
        }
    }

    fn node(&mut self, args: &ProxyArgs, proxy_config: &ProxyConfig, interfaces: Vec<IpAddr>) -> NodeSettings {
        let namespace = self.required("POD_NAMESPACE", "the pod's namespace");
        let instance_ip = self.parsed("INSTANCE_IP", "the pod's address", |text| text.parse::<IpAddr>().ok());
        if instance_ip.is_none() && self.text("INSTANCE_IP").is_none() {
            self.wrong("INSTANCE_IP", "", "the pod's address");
        }
        let instance_ip = instance_ip.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let mut instance_ips = vec![instance_ip];
        instance_ips.extend(interfaces.into_iter().filter(|address| *address != instance_ip));
        let service_account = self.required("SERVICE_ACCOUNT", "the pod's service account");
        let labels = self.pod_file("labels");
        if labels.get("gateway.istio.io/managed").is_some_and(|by| by == "istio.io-eastwest-controller") {
            self.wrong("label gateway.istio.io/managed", "istio.io-eastwest-controller", "a waypoint; east-west gateways are not served");
        }
        let meta = |(name, value): (&String, &String)| name.strip_prefix("ISTIO_META_").map(|key| (key.to_owned(), value.clone()));
        let meta: BTreeMap<_, _> = self.env.iter().filter_map(meta).collect();
        let trust_domain = self.text("TRUST_DOMAIN").unwrap_or_else(|| CLUSTER_DOMAIN_DEFAULT.to_owned());
        NodeSettings {
            dns_domain: args.domain.clone().unwrap_or_else(|| format!("{namespace}.svc.{CLUSTER_DOMAIN_DEFAULT}")),
            service_cluster: args.service_cluster.clone().unwrap_or_else(|| format!("{service_account}.{namespace}")),
            cluster_id: meta.get("CLUSTER_ID").cloned().unwrap_or_else(|| "Kubernetes".to_owned()),
            network: meta.get("NETWORK").cloned().unwrap_or_default(),
            istio_version: meta.get("ISTIO_VERSION").cloned().unwrap_or_else(|| ISTIO_VERSION_DEFAULT.to_owned()),
            pod_name: self.required("POD_NAME", "the pod's name"),
            meta_json: self.meta_json(),
            annotations: self.pod_file("annotations"),
            proxy_config: proxy_config.raw.clone(),
            instance_ip,
            instance_ips,
            namespace,
            service_account,
            trust_domain,
            meta,
            labels,
        }
    }

    fn meta_json(&mut self) -> serde_json::Map<String, serde_json::Value> {
        let mut merged = serde_json::Map::new();
        let variables: Vec<_> =
            self.env.iter().filter(|(name, _)| name.starts_with("ISTIO_METAJSON_")).map(|(n, v)| (n.clone(), v.clone())).collect();
        for (name, value) in variables {
            match serde_json::from_str(&value) {
                Ok(serde_json::Value::Object(object)) => merged.extend(object),
                _ => self.wrong(&name, &value, "a JSON object"),
            }
        }
        merged
    }

    fn server(&mut self, name: &str, text: &str, root_variable: &str, plaintext: bool) -> ServerAddress {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        let (host, port) = parsed.filter(|(host, port)| !host.is_empty() && *port != 0).unwrap_or_else(|| {
            self.wrong(name, text, "host:port");
            ("", 0)
        });
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let root_file = self.text(root_variable).map_or_else(|| self.path("/var/run/secrets/istio/root-cert.pem"), PathBuf::from);
        let server_name = match self.text("ISTIOD_SAN") {
            Some(name) => name,
            None if host == "localhost" => "istiod.istio-system.svc".to_owned(),
            None => host.clone(),
        };
        ServerAddress { host, port, server_name, plaintext: plaintext || port == 15010, root_file }
    }

    fn discovery(&mut self, proxy_config: &ProxyConfig) -> ServerAddress {
        let text = proxy_config.discovery_address.clone().unwrap_or_else(|| DISCOVERY_ADDRESS_DEFAULT.to_owned());
        self.server("PROXY_CONFIG.discoveryAddress", &text, "XDS_ROOT_CA", proxy_config.control_plane_plaintext)
    }

    fn ca(&mut self, proxy_config: &ProxyConfig) -> ServerAddress {
        let text = self.text("CA_ADDR").or_else(|| proxy_config.discovery_address.clone());
        self.server("CA_ADDR", &text.unwrap_or_else(|| DISCOVERY_ADDRESS_DEFAULT.to_owned()), "CA_ROOT_CA", false)
    }

    fn concurrency(&mut self, args: &ProxyArgs, proxy_config: &ProxyConfig) -> Option<usize> {
        if let Some(text) = &args.concurrency {
            let parsed = text.parse().ok();
            if parsed.is_none() {
                self.wrong("--concurrency", text, "a number of threads; 0 is all cores");
            }
            return parsed;
        }
        proxy_config.concurrency
    }

    fn drain_duration(&mut self, proxy_config: &ProxyConfig) -> Duration {
        let configured = proxy_config.termination_drain_duration;
        self.duration("TERMINATION_DRAIN_DURATION_SECONDS").or(configured).unwrap_or(TERMINATION_DRAIN_DEFAULT)
    }

    fn local_addresses(&mut self, instance_ip: IpAddr) -> LocalAddresses {
        let any = if instance_ip.is_ipv6() { "::" } else { "0.0.0.0" };
        let bind = self.parsed("WAYPOINT_BIND_ADDRESS", "an address", |text| text.parse::<IpAddr>().ok());
        let bind = bind.unwrap_or_else(|| any.parse().expect("an unspecified address"));
        let loopback = if bind.is_loopback() { bind } else { IpAddr::from([127, 0, 0, 1]) };
        LocalAddresses {
            status: SocketAddr::new(bind, 15021),
            stats: SocketAddr::new(bind, 15090),
            agent: SocketAddr::new(bind, 15020),
            admin: SocketAddr::new(loopback, 15000),
        }
    }
}

/// Addresses of this machine's interfaces, loopback and link-local ones left out.
#[must_use]
pub fn interface_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut addresses: Vec<IpAddr> = interfaces
        .filter_map(|interface| {
            let storage = interface.address?;
            let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .collect();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests;
