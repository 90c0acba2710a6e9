//! Endpoints that are known by name: which names, how often they are looked up, and what the answers make of them.
//!
//! Not for: asking a name server. Invariant: an endpoint with a name stands for each of the name's addresses, with all else that was
//! said of it; one with an address stands for itself.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::{ADDRESSES_MAX, Endpoint, EndpointAddress, EndpointSet};

/// A name in DNS [RFC 1035 §2.3.4].
pub const NAME_BYTES_MAX: usize = 253;

/// Which addresses of a name count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv6, else IPv4.
    #[default]
    Ipv6ElseIpv4,
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// IPv4, else IPv6.
    Ipv4ElseIpv6,
    /// Both.
    Both,
}

/// When a name is looked up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refresh {
    /// After an answer.
    pub every: Duration,
    /// An answer's own lifetime counts instead, …
    pub respects_lifetime: bool,
    /// … and is at least this.
    pub lifetime_min: Duration,
    /// Up to this much is added, drawn by chance.
    pub jitter: Duration,
    /// After the first failure, doubled with each.
    pub after_failure: Duration,
    /// The longest after a failure.
    pub after_failure_max: Duration,
}

impl Refresh {
    /// The shortest time between two looks.
    pub const MIN: Duration = Duration::from_secs(1);

    /// How long until a name is looked up again. `lifetime`: of the answer, none after the given number of failures. `share`: 0 to 1,
    /// by chance.
    #[must_use]
    pub fn wait(&self, lifetime: Option<Duration>, failures: u32, share: f64) -> Duration {
        let wait = match lifetime {
            Some(lifetime) if self.respects_lifetime => lifetime.max(self.lifetime_min),
            Some(_) => self.every,
            None => self.after_failure.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.after_failure_max),
        };
        wait.max(Self::MIN) + self.jitter.mul_f64(share.clamp(0.0, 1.0))
    }
}

/// The endpoints of a cluster that DNS knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The endpoints, those with a name at its [`placeholder`].
    pub endpoints: Arc<EndpointSet>,
    /// The names.
    pub hosts: Box<[Box<str>]>,
    /// A name is one endpoint, whatever addresses it has (LOGICAL_DNS).
    pub first_only: bool,
    /// Which addresses count.
    pub family: Family,
    /// When names are looked up again.
    pub refresh: Refresh,
}

/// Hosts that requests name themselves (dynamic forward proxy): how they are looked up, how many are kept, and how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByHost {
    /// Which addresses count.
    pub family: Family,
    /// When a host is looked up again.
    pub refresh: Refresh,
    /// How long a host is kept that nobody asks for.
    pub unused_max: Duration,
    /// Hosts at a time.
    pub hosts_max: usize,
    /// Requests at a time that wait for a first answer.
    pub waiting_max: u32,
    /// How long one lookup may take.
    pub lookup_timeout: Duration,
    /// Where a request names no port.
    pub port: u16,
}

impl ByHost {
    /// Host, in lower case, and port of a request's authority; none if it is neither a name that DNS could hold nor an address.
    #[must_use]
    pub fn host_and_port<'a>(&self, authority: &'a str) -> Option<(Cow<'a, str>, u16)> {
        let (host, port) = match authority.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((host, rest))) => (host, rest.strip_prefix(':').or(rest.is_empty().then_some(""))?),
            Some(None) => return None,
            None => authority.split_once(':').unwrap_or((authority, "")),
        };
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = if port.is_empty() { self.port } else { port.parse().ok().filter(|port| is_number && *port > 0)? };
        let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        let is_host = (is_name && !host.is_empty() && host.len() <= NAME_BYTES_MAX) || host.parse::<IpAddr>().is_ok();
        let lower = if host.bytes().any(|byte| byte.is_ascii_uppercase()) { host.to_ascii_lowercase().into() } else { host.into() };
        is_host.then_some((lower, port))
    }
}

/// What stands for the name at this position of [`Named::hosts`]: an address of "this network", where nobody is [RFC 1122 §3.2.1.3].
#[must_use]
pub fn placeholder(position: usize) -> Option<IpAddr> {
    let number = u32::try_from(position).ok()?.checked_add(1).filter(|number| *number < 1 << 24)?;
    Some(IpAddr::V4(Ipv4Addr::from(number)))
}

impl Named {
    /// The endpoints, given the addresses found for each name; a name without any has no endpoint.
    #[must_use]
    pub fn resolved(&self, found: &[Vec<IpAddr>]) -> EndpointSet {
        let mut set = EndpointSet { endpoints: Vec::new(), ..(*self.endpoints).clone() };
        let mut seen = HashSet::new();
        for endpoint in &self.endpoints.endpoints {
            let EndpointAddress::Plain(address) = endpoint.address else {
                set.endpoints.push(Arc::clone(endpoint));
                continue;
            };
            let Some(position) = position(address.ip()) else {
                set.endpoints.push(Arc::clone(endpoint));
                continue;
            };
            let addresses = found.get(position).map_or(&[][..], Vec::as_slice);
            let (limit, n_others) = if self.first_only { (1, ADDRESSES_MAX - 1) } else { (addresses.len(), 0) };
            let at = |ip: &IpAddr| SocketAddr::new(*ip, address.port());
            for ip in addresses.iter().take(limit) {
                let address = at(ip);
                // Two names of one address are one endpoint, as with Envoy.
                if seen.insert((endpoint.priority, address)) {
                    let host = address.to_string().into();
                    let others = addresses.iter().skip(1).take(n_others).map(at).collect();
                    let address = EndpointAddress::Plain(address);
                    set.endpoints.push(Arc::new(Endpoint { address, others, host, ..(**endpoint).clone() }));
                }
            }
        }
        set
    }
}

/// Whether an address can be one of those.
#[must_use]
pub fn is_placeholder(address: IpAddr) -> bool {
    position(address).is_some()
}

fn position(address: IpAddr) -> Option<usize> {
    let IpAddr::V4(address) = address else { return None };
    let number = u32::from(address);
    (address.octets()[0] == 0 && number > 0).then(|| usize::try_from(number - 1).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFRESH: Refresh = Refresh {
        every: Duration::from_secs(60),
        respects_lifetime: true,
        lifetime_min: Duration::ZERO,
        jitter: Duration::from_millis(100),
        after_failure: Duration::from_secs(2),
        after_failure_max: Duration::from_secs(10),
    };

    fn endpoint(address: SocketAddr, weight: u32) -> Arc<Endpoint> {
        let address = EndpointAddress::Plain(address);
        Arc::new(Endpoint { weight, ..Endpoint::at(address) })
    }

    fn named(first_only: bool) -> Named {
        let ip = |position| placeholder(position).expect("few");
        let endpoints = vec![
            endpoint((ip(0), 443).into(), 3),
            endpoint(([192, 0, 2, 9], 443).into(), 1),
            endpoint((ip(1), 8443).into(), 1),
            endpoint((ip(0), 443).into(), 1),
        ];
        Named {
            endpoints: Arc::new(EndpointSet { endpoints, ..EndpointSet::default() }),
            hosts: Box::new(["a.example.com".into(), "b.example.com".into()]),
            first_only,
            family: Family::default(),
            refresh: REFRESH,
        }
    }

    fn hosts(set: &EndpointSet) -> Vec<(String, u32)> {
        set.endpoints.iter().map(|endpoint| (endpoint.host.to_string(), endpoint.weight)).collect()
    }

    #[test]
    fn an_endpoint_stands_for_each_address_of_its_name() {
        let found = [vec![IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])], Vec::new()];
        let expected = [("192.0.2.1:443", 3), ("192.0.2.2:443", 3), ("192.0.2.9:443", 1)].map(|(host, weight)| (host.to_owned(), weight));
        assert_eq!(hosts(&named(false).resolved(&found)), expected, "twice is once");
        let expected = [("192.0.2.1:443", 3), ("192.0.2.9:443", 1)].map(|(host, weight)| (host.to_owned(), weight));
        assert_eq!(hosts(&named(true).resolved(&found)), expected);
        assert_eq!(hosts(&named(false).resolved(&[])), [("192.0.2.9:443".to_owned(), 1)], "nothing is known yet");
    }

    #[test]
    fn a_name_is_looked_up_again_when_its_answer_ends_and_sooner_after_a_failure() {
        let seconds = Duration::from_secs;
        assert_eq!(REFRESH.wait(Some(seconds(7)), 0, 0.0), seconds(7));
        assert_eq!(REFRESH.wait(Some(Duration::ZERO), 0, 0.0), Refresh::MIN, "no name server is asked without a pause");
        assert_eq!(REFRESH.wait(Some(seconds(7)), 0, 0.5), seconds(7) + Duration::from_millis(50));
        assert_eq!(Refresh { respects_lifetime: false, ..REFRESH }.wait(Some(seconds(7)), 0, 0.0), seconds(60));
        assert_eq!(Refresh { lifetime_min: seconds(9), ..REFRESH }.wait(Some(seconds(7)), 0, 0.0), seconds(9));
        let after = |failures| REFRESH.wait(None, failures, 0.0);
        assert_eq!([after(1), after(2), after(3), after(4), after(40)], [2, 4, 8, 10, 10].map(seconds));
    }

    #[test]
    fn an_authority_is_a_host_and_a_port() {
        let by_host = ByHost {
            family: Family::default(),
            refresh: REFRESH,
            unused_max: Duration::from_secs(300),
            hosts_max: 1024,
            waiting_max: 1024,
            lookup_timeout: Duration::from_secs(5),
            port: 443,
        };
        let read = |authority| by_host.host_and_port(authority).map(|(host, port)| format!("{host} {port}"));
        for (authority, expected) in [
            ("a.Example.com", "a.example.com 443"),
            ("a.example.com:8443", "a.example.com 8443"),
            ("192.0.2.1:80", "192.0.2.1 80"),
            ("[2001:db8::1]", "2001:db8::1 443"),
            ("[2001:db8::1]:80", "2001:db8::1 80"),
        ] {
            assert_eq!(read(authority).as_deref(), Some(expected));
        }
        for authority in
            ["", ":80", "a.example.com:0", "a.example.com:65536", "a.example.com:+1", "a b", "2001:db8::1", "[2001:db8::1", "[::1]x", "a/b"]
        {
            assert_eq!(read(authority), None, "{authority:?}");
        }
        assert_eq!(read(&"a".repeat(NAME_BYTES_MAX + 1)), None);
    }
}
