//! Names of endpoints, looked up off the path of requests: on the control thread, as often as their clusters say. So are hosts that
//! requests name, the first time while their requests wait.
//!
//! Not for: what becomes of the answers (`model::dns`), or who uses them (`state::store`). Invariants: a name server that fails takes
//! nothing away; a name that has no addresses any more has no endpoints; a name is looked up only while a cluster has it.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use model::cluster::Discovery;
use model::dns::{Family, Named};
use model::endpoint::EndpointSet;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::config::DnsSettings;
use crate::state::by_host::{HostTable, KnownHost};
use crate::state::published::ServedCluster;

/// Names that are looked up at the same time; others wait.
pub const LOOKUPS_MAX: usize = 64;
/// Addresses of one name that are used.
pub const ADDRESSES_MAX: usize = 256;

/// Why a name could not be looked up.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct LookupFailure(String);

/// What a name server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// None, if the name has none or does not exist.
    pub addresses: Vec<IpAddr>,
    /// How long that holds; zero if it does not say.
    pub lifetime: Duration,
}

/// Asks name servers. Lives on the runtime that first asks.
pub struct Resolver {
    servers: Result<TokioResolver, LookupFailure>,
    lookups: Semaphore,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Resolver").field("lookups", &self.lookups.available_permits()).finish_non_exhaustive()
    }
}

impl Resolver {
    /// With settings that cannot be used every lookup fails, and says why.
    #[must_use]
    pub fn new(settings: &DnsSettings) -> Self {
        let servers = resolver(settings).map_err(|reason| LookupFailure(format!("no name server can be asked: {reason}")));
        Self { servers, lookups: Semaphore::new(LOOKUPS_MAX) }
    }

    /// Asks the same servers, with a number of lookups of its own.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self { servers: self.servers.clone(), lookups: Semaphore::new(LOOKUPS_MAX) }
    }

    /// Looks a name up.
    ///
    /// # Errors
    /// No name server could be asked, or none had an answer. A name without addresses is none.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn resolve(&self, host: &str, family: Family) -> Result<Answer, LookupFailure> {
        let servers = self.servers.as_ref().map_err(Clone::clone)?;
        let _permit = self.lookups.acquire().await.map_err(|_| LookupFailure("the process ends".to_owned()))?;
        let (v4, v6) = (RecordType::A, RecordType::AAAA);
        let mut answer = match family {
            Family::Ipv4 => lookup(servers, host, v4).await,
            Family::Ipv6 => lookup(servers, host, v6).await,
            Family::Ipv4ElseIpv6 => either(lookup(servers, host, v4).await, lookup(servers, host, v6)).await,
            Family::Ipv6ElseIpv4 => either(lookup(servers, host, v6).await, lookup(servers, host, v4)).await,
            Family::Both => both(lookup(servers, host, v4).await, lookup(servers, host, v6).await),
        }?;
        answer.addresses.truncate(ADDRESSES_MAX);
        Ok(answer)
    }
}

/// The first answer if it has addresses, else the second.
async fn either(
    first: Result<Answer, LookupFailure>,
    second: impl Future<Output = Result<Answer, LookupFailure>>,
) -> Result<Answer, LookupFailure> {
    match first {
        Ok(answer) if !answer.addresses.is_empty() => Ok(answer),
        _ => second.await,
    }
}

fn both(first: Result<Answer, LookupFailure>, second: Result<Answer, LookupFailure>) -> Result<Answer, LookupFailure> {
    let (mut first, second) = (first?, second?);
    // What has nothing says nothing about the lifetime of the other.
    first.lifetime = match (first.addresses.is_empty(), second.addresses.is_empty()) {
        (false, true) => first.lifetime,
        (true, false) => second.lifetime,
        _ => first.lifetime.min(second.lifetime),
    };
    first.addresses.extend(second.addresses);
    Ok(first)
}

async fn lookup(servers: &TokioResolver, host: &str, kind: RecordType) -> Result<Answer, LookupFailure> {
    let found = match servers.lookup(host, kind).await {
        Ok(found) => found,
        Err(error) if error.is_no_records_found() => return Ok(Answer { addresses: Vec::new(), lifetime: Duration::ZERO }),
        Err(error) => return Err(LookupFailure(error.to_string())),
    };
    let address = |data: &RData| match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    };
    let addresses = found.answers().iter().filter_map(|record| address(&record.data)).collect();
    Ok(Answer { addresses, lifetime: found.valid_until().saturating_duration_since(Instant::now()) })
}

fn resolver(settings: &DnsSettings) -> Result<TokioResolver, String> {
    let (config, mut options) = match hickory_resolver::system_conf::parse_resolv_conf(&settings.resolv_conf) {
        Ok(parsed) => parsed,
        Err(_) if !settings.servers.is_empty() => (ResolverConfig::from_parts(None, Vec::new(), Vec::new()), ResolverOpts::default()),
        Err(error) => return Err(error.to_string()),
    };
    let config = if settings.servers.is_empty() {
        config
    } else {
        let server = |address: &SocketAddr| {
            let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
            connections.iter_mut().for_each(|connection| connection.port = address.port());
            NameServerConfig::new(address.ip(), true, connections)
        };
        let servers = settings.servers.iter().map(server).collect();
        ResolverConfig::from_parts(config.domain().cloned(), config.search().to_vec(), servers)
    };
    // When an answer is old, its cluster says; a cache below would know better.
    options.cache_size = 0;
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
    builder.build().map_err(|error| error.to_string())
}

/// Is told the endpoints of a cluster whenever they are looked up.
pub type OnResolved = Arc<dyn Fn(&Arc<str>, &Arc<Named>, EndpointSet) + Send + Sync>;

/// Looks up what clusters name. Lives on the control thread.
pub struct DnsKeeper {
    resolver: Arc<Resolver>,
    on_resolved: OnResolved,
    running: HashMap<Arc<str>, Running>,
}

impl fmt::Debug for DnsKeeper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DnsKeeper").field("clusters", &self.running.len()).finish_non_exhaustive()
    }
}

/// What of a cluster is looked up.
#[derive(Clone)]
enum Names {
    Given(Arc<Named>),
    OfRequests(Arc<HostTable>),
}

impl Names {
    fn of(served: &ServedCluster) -> Option<Self> {
        match (&served.cluster.discovery, &served.by_host) {
            (Discovery::Named(named), _) => Some(Self::Given(Arc::clone(named))),
            (_, Some(table)) => Some(Self::OfRequests(Arc::clone(table))),
            _ => None,
        }
    }

    fn are_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Given(one), Self::Given(other)) => one == other,
            (Self::OfRequests(one), Self::OfRequests(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

struct Running {
    names: Names,
    /// Dropped, they end.
    _lookups: JoinSet<()>,
}

impl DnsKeeper {
    /// Nothing is looked up yet.
    #[must_use]
    pub fn new(resolver: Arc<Resolver>, on_resolved: OnResolved) -> Self {
        Self { resolver, on_resolved, running: HashMap::new() }
    }

    /// These are all clusters now. Must be called on the control thread's runtime.
    pub fn want<'a>(&mut self, clusters: impl Iterator<Item = &'a ServedCluster>) {
        let mut running = HashMap::new();
        for served in clusters {
            let (Some(names), name) = (Names::of(served), &served.cluster.name) else { continue };
            let known = self.running.remove(name).filter(|known| known.names.are_the_same(&names));
            running.insert(Arc::clone(name), known.unwrap_or_else(|| self.start(name, names)));
        }
        self.running = running;
    }

    fn start(&self, cluster: &Arc<str>, names: Names) -> Running {
        let named = match &names {
            Names::Given(named) => named,
            Names::OfRequests(table) => {
                let mut lookups = JoinSet::new();
                // What requests name must not hold up what clusters name.
                lookups.spawn(keep_hosts(Arc::clone(table), Arc::new(self.resolver.beside())));
                return Running { names, _lookups: lookups };
            }
        };
        let found = Arc::new(Mutex::new(vec![Vec::new(); named.hosts.len()]));
        let mut lookups = JoinSet::new();
        for position in 0..named.hosts.len() {
            let one = Looked {
                cluster: Arc::clone(cluster),
                named: Arc::clone(named),
                position,
                found: Arc::clone(&found),
                resolver: Arc::clone(&self.resolver),
                on_resolved: Arc::clone(&self.on_resolved),
            };
            lookups.spawn(one.keep());
        }
        Running { names, _lookups: lookups }
    }
}

/// Looks hosts up that requests name, each as long as it is asked for.
async fn keep_hosts(table: Arc<HostTable>, resolver: Arc<Resolver>) {
    let mut hosts = JoinSet::new();
    loop {
        tokio::select! {
            new = table.wanted() => {
                for host in new {
                    let (table, resolver) = (Arc::clone(&table), Arc::clone(&resolver));
                    hosts.spawn(async move {
                        tokio::select! {
                            () = host.evicted() => {}
                            () = keep_host(&table, &host, &resolver) => {}
                        }
                    });
                }
            }
            Some(_ended) = hosts.join_next() => {}
        }
    }
}

/// Looks a host up again and again; returns when it is forgotten.
async fn keep_host(table: &HostTable, host: &Arc<KnownHost>, resolver: &Resolver) {
    let rules = &table.rules;
    let is_address = host.name.parse::<IpAddr>().is_ok();
    let mut failures = 0;
    loop {
        let wait = if is_address {
            rules.unused_max
        } else {
            let lifetime = look_up(table, host, resolver).await;
            failures = if lifetime.is_some() { 0 } else { failures + 1 };
            rules.refresh.wait(lifetime, failures, fastrand::f64())
        };
        tokio::time::sleep(wait.min(rules.unused_max)).await;
        if table.forget_unused(host) {
            return;
        }
    }
}

/// How long the answer counts; none if there is none. Not logged: a client can ask for anything.
async fn look_up(table: &HostTable, host: &KnownHost, resolver: &Resolver) -> Option<Duration> {
    match tokio::time::timeout(table.rules.lookup_timeout, resolver.resolve(&host.name, table.rules.family)).await {
        Ok(Ok(answer)) => {
            host.resolved(&answer.addresses);
            Some(answer.lifetime).filter(|_| !answer.addresses.is_empty())
        }
        Ok(Err(LookupFailure(reason))) => {
            host.failed(reason.into());
            None
        }
        Err(_elapsed) => {
            host.failed("resolve_timeout".into());
            None
        }
    }
}

/// One name of a cluster.
struct Looked {
    cluster: Arc<str>,
    named: Arc<Named>,
    position: usize,
    found: Arc<Mutex<Vec<Vec<IpAddr>>>>,
    resolver: Arc<Resolver>,
    on_resolved: OnResolved,
}

impl Looked {
    /// Looks it up again and again.
    async fn keep(self) {
        let host = &self.named.hosts[self.position];
        let mut failures = 0;
        loop {
            let lifetime = match self.resolver.resolve(host, self.named.family).await {
                Ok(answer) => {
                    failures = 0;
                    let mut found = self.found.lock();
                    found[self.position] = answer.addresses;
                    (self.on_resolved)(&self.cluster, &self.named, self.named.resolved(&found));
                    // A name without addresses is looked for as one that failed would be: soon, and then less often.
                    Some(answer.lifetime).filter(|_| !found[self.position].is_empty())
                }
                Err(error) => {
                    tracing::warn!(cluster = %self.cluster, host, %error, "a name cannot be looked up; what was found before stays");
                    None
                }
            };
            failures = if lifetime.is_some() { 0 } else { failures + 1 };
            tokio::time::sleep(self.named.refresh.wait(lifetime, failures, fastrand::f64())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn answer(addresses: &[[u8; 4]], seconds: u64) -> Result<Answer, LookupFailure> {
        Ok(Answer { addresses: addresses.iter().map(|one| IpAddr::from(*one)).collect(), lifetime: Duration::from_secs(seconds) })
    }

    fn failed() -> Result<Answer, LookupFailure> {
        Err(LookupFailure("SERVFAIL".to_owned()))
    }

    #[tokio::test]
    async fn the_second_family_counts_where_the_first_has_nothing() {
        let (some, other) = (answer(&[[192, 0, 2, 1]], 5), answer(&[[192, 0, 2, 2]], 9));
        assert_eq!(either(some.clone(), async { other.clone() }).await, some);
        assert_eq!(either(answer(&[], 0), async { other.clone() }).await, other);
        assert_eq!(either(failed(), async { other.clone() }).await, other);
        assert_eq!(either(failed(), async { failed() }).await, failed());
    }

    #[test]
    fn both_families_live_as_long_as_the_shorter() {
        let (some, other) = (answer(&[[192, 0, 2, 1]], 5), answer(&[[192, 0, 2, 2]], 9));
        assert_eq!(both(some.clone(), other), answer(&[[192, 0, 2, 1], [192, 0, 2, 2]], 5));
        assert_eq!(both(answer(&[], 0), some.clone()), some);
        assert_eq!(both(some, failed()), failed(), "half an answer would take the other half away");
    }

    #[tokio::test]
    async fn without_a_name_server_every_lookup_says_so() {
        let resolver = Resolver::new(&DnsSettings { resolv_conf: b"search shop.svc.cluster.local\n".to_vec(), servers: Vec::new() });
        let reason = resolver.resolve("api.example.com", Family::Ipv4).await.unwrap_err().to_string();
        assert!(reason.starts_with("no name server can be asked: "), "{reason}");
    }
}
