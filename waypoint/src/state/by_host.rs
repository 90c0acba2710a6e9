//! Hosts that requests name themselves, of clusters that look them up when they are asked for (dynamic forward proxy): all workers read
//! them here, and wait here for the first answer.
//!
//! Not for: asking name servers; `upstream::dns` does, on the control thread. Invariants: a host is looked up once, however many wait for
//! it; there are never more hosts, nor requests that wait, than the cluster says; what was found stays while a name server fails; a host
//! that nobody asks for is forgotten.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::dns::ByHost;
use model::endpoint::{Endpoint, EndpointAddress};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use tokio::sync::{Notify, watch};

use super::health::EndpointState;
use super::table::EndpointEntry;

/// Added to the time that one lookup may take: a request that waits longer waits for nobody.
const WAIT_SLACK: Duration = Duration::from_secs(1);

/// Why there is no endpoint for a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoHost {
    /// It has no address, or could not be looked up.
    Unresolved(Cow<'static, str>),
    /// As many hosts are known as may be.
    TooMany,
    /// As many requests wait for an answer as may.
    TooManyWaiting,
}

/// What is known of a host.
#[derive(Clone, Debug)]
enum Found {
    NotYet,
    Nothing(Arc<str>),
    Entries(Arc<[EndpointEntry]>),
}

/// One host and port.
#[derive(Debug)]
pub struct KnownHost {
    /// In lower case.
    pub name: Box<str>,
    port: u16,
    found: watch::Sender<Found>,
    /// When it was last asked for, in milliseconds of the table's time.
    used: AtomicU64,
    evicted: Notify,
}

impl KnownHost {
    /// The endpoint of a try: the first address, after a failed try the next one. None: it is left out because of how it answers.
    #[must_use]
    pub fn choose(&self, avoid: &[EndpointAddress]) -> Option<EndpointEntry> {
        let Found::Entries(entries) = &*self.found.borrow() else { return None };
        let mut usable = entries.iter().filter(|entry| !entry.state.is_ejected());
        let first = usable.clone().next()?;
        Some(usable.find(|entry| !avoid.contains(&entry.endpoint.address)).unwrap_or(first).clone())
    }

    /// Its addresses; what is known of those that it had before stays known. None at all takes nothing away.
    pub fn resolved(&self, addresses: &[IpAddr]) {
        if addresses.is_empty() {
            return self.failed("no_address".into());
        }
        self.found.send_modify(|found| {
            let before: &[EndpointEntry] = if let Found::Entries(entries) = found { entries } else { &[] };
            let entry = |ip: &IpAddr| {
                let address = EndpointAddress::Plain(SocketAddr::new(*ip, self.port));
                before
                    .iter()
                    .find(|entry| entry.endpoint.address == address)
                    .cloned()
                    .unwrap_or_else(|| EndpointEntry { endpoint: Arc::new(Endpoint::at(address)), state: Arc::default() })
            };
            *found = Found::Entries(addresses.iter().map(entry).collect());
        });
    }

    /// It could not be looked up.
    pub fn failed(&self, reason: Arc<str>) {
        self.found.send_if_modified(|found| {
            let is_new = !matches!(found, Found::Entries(_));
            if is_new {
                *found = Found::Nothing(reason);
            }
            is_new
        });
    }

    /// Waits until its place was given to another host.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }

    fn answer(&self) -> Option<Result<(), NoHost>> {
        match &*self.found.borrow() {
            Found::NotYet => None,
            Found::Nothing(reason) => Some(Err(NoHost::Unresolved(reason.to_string().into()))),
            Found::Entries(_) => Some(Ok(())),
        }
    }
}

type Hosts = HashMap<Box<str>, SmallVec<[Arc<KnownHost>; 1]>>;

/// The hosts of one cluster.
#[derive(Debug)]
pub struct HostTable {
    /// How they are kept.
    pub rules: ByHost,
    hosts: RwLock<Hosts>,
    waiting: AtomicU32,
    /// Hosts that nobody looks up yet; no more than there are hosts.
    new: Mutex<Vec<Arc<KnownHost>>>,
    wanted: Notify,
    began: Instant,
}

impl HostTable {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(rules: ByHost) -> Self {
        Self {
            rules,
            hosts: RwLock::default(),
            waiting: AtomicU32::new(0),
            new: Mutex::default(),
            wanted: Notify::new(),
            began: Instant::now(),
        }
    }

    /// The host of an authority, once it is known what its addresses are.
    ///
    /// # Errors
    /// There is none.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn host(&self, authority: &str) -> Result<Arc<KnownHost>, NoHost> {
        let (name, port) = self.rules.host_and_port(authority).ok_or(NoHost::Unresolved("no_host".into()))?;
        let host = match self.find(&name, port) {
            Some(host) => host,
            None => self.insert(&name, port)?,
        };
        host.used.store(self.now(), Ordering::Relaxed);
        match host.answer() {
            Some(answer) => answer.map(|()| host),
            // Boxed, so that requests for known hosts do not carry the room for it.
            None => Box::pin(self.wait(host)).await,
        }
    }

    async fn wait(&self, host: Arc<KnownHost>) -> Result<Arc<KnownHost>, NoHost> {
        let _waiting = Waiting::begin(&self.waiting, self.rules.waiting_max).ok_or(NoHost::TooManyWaiting)?;
        let mut found = host.found.subscribe();
        let answered = found.wait_for(|found| !matches!(found, Found::NotYet));
        // The sender is the host's own, so that it outlives the wait.
        let has_answer = tokio::time::timeout(self.rules.lookup_timeout + WAIT_SLACK, answered).await.is_ok();
        let answer = host.answer().filter(|_| has_answer).unwrap_or(Err(NoHost::Unresolved("resolve_timeout".into())));
        answer.map(|()| host)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn find(&self, name: &str, port: u16) -> Option<Arc<KnownHost>> {
        self.hosts.read().get(name)?.iter().find(|host| host.port == port).map(Arc::clone)
    }

    fn insert(&self, name: &str, port: u16) -> Result<Arc<KnownHost>, NoHost> {
        let mut hosts = self.hosts.write();
        if let Some(host) = hosts.get(name).and_then(|ports| ports.iter().find(|host| host.port == port)) {
            return Ok(Arc::clone(host));
        }
        if hosts.values().map(SmallVec::len).sum::<usize>() >= self.rules.hosts_max && !make_room(&mut hosts) {
            return Err(NoHost::TooMany);
        }
        let used = AtomicU64::new(self.now());
        let host = Arc::new(KnownHost { name: name.into(), port, found: watch::Sender::new(Found::NotYet), used, evicted: Notify::new() });
        if let Ok(address) = name.parse::<IpAddr>() {
            host.resolved(&[address]);
        }
        hosts.entry(name.into()).or_default().push(Arc::clone(&host));
        self.new.lock().push(Arc::clone(&host));
        self.wanted.notify_one();
        Ok(host)
    }

    /// Waits for hosts that nobody looks up yet.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wanted(&self) -> Vec<Arc<KnownHost>> {
        loop {
            let new = std::mem::take(&mut *self.new.lock());
            if !new.is_empty() {
                return new;
            }
            self.wanted.notified().await;
        }
    }

    /// Forgets a host if nobody has asked for it for a time. True: it is not kept any more.
    pub fn forget_unused(&self, host: &Arc<KnownHost>) -> bool {
        let mut hosts = self.hosts.write();
        let unused = Duration::from_millis(self.now().saturating_sub(host.used.load(Ordering::Relaxed)));
        if unused < self.rules.unused_max {
            return false;
        }
        remove(&mut hosts, host);
        true
    }

    /// All endpoints.
    pub(super) fn entries(&self) -> Vec<EndpointEntry> {
        let hosts = self.hosts.read();
        let found = |host: &Arc<KnownHost>| match &*host.found.borrow() {
            Found::Entries(entries) => entries.to_vec(),
            _ => Vec::new(),
        };
        hosts.values().flatten().flat_map(found).collect()
    }

    /// Their states.
    pub(super) fn states(&self) -> Vec<Arc<EndpointState>> {
        self.entries().into_iter().map(|entry| entry.state).collect()
    }
}

/// Takes the host away that nobody has asked for longest, of those without an address: made-up names must not keep real ones out.
fn make_room(hosts: &mut Hosts) -> bool {
    let without = hosts.values().flatten().filter(|host| matches!(&*host.found.borrow(), Found::Nothing(_)));
    let Some(oldest) = without.min_by_key(|host| host.used.load(Ordering::Relaxed)).cloned() else { return false };
    oldest.evicted.notify_one();
    remove(hosts, &oldest);
    true
}

fn remove(hosts: &mut Hosts, host: &Arc<KnownHost>) {
    if let Some(ports) = hosts.get_mut(&host.name) {
        ports.retain(|one| !Arc::ptr_eq(one, host));
        if ports.is_empty() {
            hosts.remove(&host.name);
        }
    }
}

/// Counts a request that waits, until it does not any more.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicU32, max: u32) -> Option<Self> {
        let more = |waiting: u32| (waiting < max).then_some(waiting + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(count))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use model::dns::{Family, Refresh};

    use super::*;

    fn table(hosts_max: usize, waiting_max: u32) -> Arc<HostTable> {
        let second = Duration::from_secs(1);
        Arc::new(HostTable::new(ByHost {
            family: Family::Ipv4,
            refresh: Refresh {
                every: second,
                respects_lifetime: true,
                lifetime_min: second,
                jitter: Duration::ZERO,
                after_failure: second,
                after_failure_max: second,
            },
            unused_max: Duration::ZERO,
            hosts_max,
            waiting_max,
            lookup_timeout: second,
            port: 80,
        }))
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    async fn host_of(table: &HostTable, authority: &str) -> Result<String, NoHost> {
        table.host(authority).await.map(|host| host.choose(&[]).unwrap().endpoint.host.to_string())
    }

    #[tokio::test]
    async fn all_who_wait_for_a_host_hear_of_one_answer() {
        let table = table(8, 8);
        let waiting: Vec<_> = ["a.example.com", "A.example.com:80", "a.example.com"]
            .map(|authority| {
                let table = Arc::clone(&table);
                tokio::spawn(async move { host_of(&table, authority).await })
            })
            .into();
        let new = table.wanted().await;
        assert_eq!(new.iter().map(|host| &*host.name).collect::<Vec<_>>(), ["a.example.com"]);
        new[0].resolved(&[address(1), address(2)]);
        for one in waiting {
            assert_eq!(one.await.unwrap().unwrap(), "192.0.2.1:80");
        }
        let tried = [EndpointAddress::Plain((address(1), 80).into())];
        assert_eq!(&*new[0].choose(&tried).unwrap().endpoint.host, "192.0.2.2:80", "the next address after a failed try");
        new[0].failed("SERVFAIL".into());
        new[0].resolved(&[]);
        assert_eq!(host_of(&table, "a.example.com").await.unwrap(), "192.0.2.1:80", "what was found stays");
        assert!(table.forget_unused(&new[0]) && table.find("a.example.com", 80).is_none());
    }

    #[tokio::test]
    async fn an_address_that_stays_keeps_what_is_known_of_it() {
        let table = table(8, 8);
        let host = table.insert("a.example.com", 80).unwrap();
        host.resolved(&[address(1)]);
        host.choose(&[]).unwrap().state.set_ejected(true);
        assert!(host.choose(&[]).is_none());
        host.resolved(&[address(2), address(1)]);
        assert_eq!(&*host.choose(&[EndpointAddress::Plain((address(2), 80).into())]).unwrap().endpoint.host, "192.0.2.2:80");
    }

    #[tokio::test]
    async fn made_up_names_make_room_and_hosts_with_addresses_do_not() {
        let table = table(2, 8);
        let (good, bad) = (table.insert("a.example.com", 80).unwrap(), table.insert("b.example.com", 80).unwrap());
        good.resolved(&[address(1)]);
        assert_eq!(host_of(&table, "c.example.com").await, Err(NoHost::TooMany), "it may still have an address");
        bad.failed("no_address".into());
        assert_eq!(host_of(&table, "b.example.com").await, Err(NoHost::Unresolved("no_address".into())));
        table.insert("c.example.com", 80).unwrap().resolved(&[address(3)]);
        bad.evicted().await;
        assert_eq!(host_of(&table, "d.example.com").await, Err(NoHost::TooMany));
        assert_eq!(host_of(&table, "a.example.com").await.unwrap(), "192.0.2.1:80");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_is_bounded_in_number_and_time() {
        let table = table(8, 1);
        let first = tokio::spawn({
            let table = Arc::clone(&table);
            async move { host_of(&table, "a.example.com").await }
        });
        table.wanted().await;
        assert_eq!(host_of(&table, "b.example.com").await, Err(NoHost::TooManyWaiting));
        assert_eq!(first.await.unwrap(), Err(NoHost::Unresolved("resolve_timeout".into())));
        assert_eq!(host_of(&table, "not a host").await, Err(NoHost::Unresolved("no_host".into())));
        assert_eq!(host_of(&table, "192.0.2.7:8443").await.unwrap(), "192.0.2.7:8443", "an address needs no lookup");
    }
}
