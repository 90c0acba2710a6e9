//! Where a CONNECT goes: the matcher tree of `main_internal`, compiled.
//!
//! Not for: reading bytes; when the tree asks for the application protocol, the caller sniffs and asks again.
//! Invariant: of overlapping ranges the longest prefix wins (Envoy's IP matcher).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;

use crate::authority::Authority;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SniffedProtocol {
    /// An HTTP/1.1 request.
    Http1,
    /// An HTTP/1.0 request.
    Http1_0,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// None of them.
    Other,
}

/// Choice by sniffed protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByProtocol {
    /// `'http/1.1'`.
    pub http1: Option<Box<Node>>,
    /// `'http/1.0'`, which istiod names only where it is accepted.
    pub http1_0: Option<Box<Node>>,
    /// `'h2c'`.
    pub http2: Option<Box<Node>>,
    /// Everything else.
    pub other: Option<Box<Node>>,
}

/// Choice by destination address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByAddress {
    exact: HashMap<IpAddr, Arc<Node>>,
    /// Longest prefix first.
    ranges: Vec<(IpNet, Arc<Node>)>,
    other: Option<Box<Node>>,
}

impl ByAddress {
    /// From ranges and what they lead to. Of equal ranges the first counts.
    #[must_use]
    pub fn new(entries: Vec<(Vec<IpNet>, Node)>, other: Option<Node>) -> Self {
        let mut built = Self { other: other.map(Box::new), ..Self::default() };
        for (ranges, node) in entries {
            let node = Arc::new(node);
            for range in ranges {
                if range.prefix_len() == range.max_prefix_len() {
                    built.exact.entry(range.addr()).or_insert_with(|| Arc::clone(&node));
                } else {
                    built.ranges.push((range.trunc(), Arc::clone(&node)));
                }
            }
        }
        built.ranges.sort_by_key(|(range, _)| std::cmp::Reverse(range.prefix_len()));
        built
    }

    fn find(&self, address: IpAddr) -> Option<&Node> {
        let of_range = || self.ranges.iter().find(|(range, _)| range.contains(&address));
        self.exact.get(&address).map(Arc::as_ref).or_else(|| of_range().map(|(_, node)| node.as_ref())).or(self.other.as_deref())
    }
}

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// This chain.
    Chain(Arc<str>),
    /// It depends on the address.
    Address(ByAddress),
    /// It depends on the port.
    Port(HashMap<u16, Node>, Option<Box<Node>>),
    /// It depends on the whole authority, `host:port` in lower case.
    Authority(HashMap<Box<str>, Node>, Option<Box<Node>>),
    /// It depends on the first bytes.
    Protocol(ByProtocol),
}

/// Where the tree ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// At this chain.
    Chain(&'a Arc<str>),
    /// The protocol has to be known.
    Sniff(&'a ByProtocol),
    /// Nowhere.
    NotFound,
}

/// Ports where a ClientHello's server name is read: where Envoy's `tls_inspector` is not disabled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Inspected {
    /// On none.
    #[default]
    Nowhere,
    /// On all.
    Everywhere,
    /// On all but these.
    Except(PortTest),
}

impl Inspected {
    /// Whether it is read on a port.
    #[must_use]
    pub fn is_on(&self, port: u16) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Everywhere => true,
            Self::Except(disabled) => !disabled.matches(port),
        }
    }
}

/// `ListenerFilterChainMatchPredicate`: a condition on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortTest {
    /// Holds for any.
    Any,
    /// From the first up to the last, which is left out.
    Range(Range<i32>),
    /// All hold.
    All(Vec<PortTest>),
    /// One holds.
    One(Vec<PortTest>),
    /// Does not hold.
    Not(Box<PortTest>),
}

impl PortTest {
    fn matches(&self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Range(ports) => ports.contains(&i32::from(port)),
            Self::All(all) => all.iter().all(|one| one.matches(port)),
            Self::One(all) => all.iter().any(|one| one.matches(port)),
            Self::Not(one) => !one.matches(port),
        }
    }
}

/// The tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dispatch {
    /// None: nothing is attached.
    pub root: Option<Node>,
    /// Where server names are read.
    pub server_names: Inspected,
}

impl Dispatch {
    /// Follows the tree for a CONNECT.
    #[must_use]
    pub fn lookup(&self, target: &Authority) -> Lookup<'_> {
        self.root.as_ref().map_or(Lookup::NotFound, |node| follow(node, target))
    }

    /// Every single address and port that leads to a chain, and the chain; where it depends on the first bytes, each of them.
    pub fn destinations(&self) -> impl Iterator<Item = (SocketAddr, &Arc<str>)> {
        let by_address = self.root.iter().filter_map(|node| if let Node::Address(by) = node { Some(by) } else { None });
        by_address.flat_map(|by| &by.exact).flat_map(|(address, node)| {
            let Node::Port(ports, _) = node.as_ref() else { return Vec::new() };
            ports.iter().flat_map(|(port, node)| chains(node).into_iter().map(|chain| (SocketAddr::new(*address, *port), chain))).collect()
        })
    }
}

/// The chains at the end of a port.
fn chains(node: &Node) -> Vec<&Arc<str>> {
    match node {
        Node::Chain(name) => vec![name],
        Node::Protocol(by) => [&by.http1, &by.http1_0, &by.http2, &by.other].into_iter().flatten().flat_map(|node| chains(node)).collect(),
        Node::Address(_) | Node::Port(..) | Node::Authority(..) => Vec::new(),
    }
}

impl ByProtocol {
    fn node(&self, protocol: SniffedProtocol) -> Option<&Node> {
        let node = match protocol {
            SniffedProtocol::Http1 => self.http1.as_deref(),
            SniffedProtocol::Http1_0 => self.http1_0.as_deref(),
            SniffedProtocol::Http2 => self.http2.as_deref(),
            SniffedProtocol::Other => None,
        };
        node.or(self.other.as_deref())
    }

    /// Whether HTTP/1.0 leads elsewhere than HTTP/1.1, so that the end of a request line has to be known.
    #[must_use]
    pub fn tells_versions_apart(&self) -> bool {
        self.node(SniffedProtocol::Http1) != self.node(SniffedProtocol::Http1_0)
    }

    /// Follows the tree further once the protocol is known.
    #[must_use]
    pub fn lookup(&self, protocol: SniffedProtocol, target: &Authority) -> Lookup<'_> {
        self.node(protocol).map_or(Lookup::NotFound, |node| follow(node, target))
    }
}

fn follow<'a>(node: &'a Node, target: &Authority) -> Lookup<'a> {
    let next = match node {
        Node::Chain(name) => return Lookup::Chain(name),
        Node::Protocol(by) => return Lookup::Sniff(by),
        Node::Address(by) => match target.address() {
            Some(address) => by.find(address.ip()),
            // No range has a name.
            None => by.other.as_deref(),
        },
        Node::Port(ports, other) => ports.get(&target.port()).or(other.as_deref()),
        Node::Authority(authorities, other) => authorities.get(target.to_string().as_str()).or(other.as_deref()),
    };
    next.map_or(Lookup::NotFound, |node| follow(node, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(name: &str) -> Node {
        Node::Chain(name.into())
    }

    fn target(text: &str) -> Authority {
        Authority::parse(text).expect("authority")
    }

    fn dispatch() -> Dispatch {
        let sniffed =
            ByProtocol { http1: Some(Box::new(chain("auto-http"))), other: Some(Box::new(chain("auto-tcp"))), ..ByProtocol::default() };
        let web = Node::Port(HashMap::from([(80, chain("web")), (7000, Node::Protocol(sniffed))]), None);
        let net = |text: &str| text.parse().expect("range");
        let by = ByAddress::new(
            vec![
                (vec![net("10.96.1.1/32"), net("fd00::1/128")], web),
                (vec![net("10.0.0.0/8")], chain("wide")),
                (vec![net("10.244.0.0/16")], chain("pods")),
            ],
            None,
        );
        Dispatch { root: Some(Node::Address(by)), ..Dispatch::default() }
    }

    #[test]
    fn a_virtual_address_and_its_port_choose_the_chain() {
        let dispatch = dispatch();
        for (text, name) in [("10.96.1.1:80", "web"), ("[fd00::1]:80", "web"), ("10.244.9.9:1", "pods"), ("10.1.1.1:1", "wide")] {
            assert_eq!(dispatch.lookup(&target(text)), Lookup::Chain(&name.into()), "{text}");
        }
    }

    #[test]
    fn the_protocol_is_asked_for_only_where_it_matters() {
        let dispatch = dispatch();
        let Lookup::Sniff(by) = dispatch.lookup(&target("10.96.1.1:7000")) else { panic!("must sniff") };
        assert_eq!(by.lookup(SniffedProtocol::Http1, &target("10.96.1.1:7000")), Lookup::Chain(&"auto-http".into()));
        for other in [SniffedProtocol::Http2, SniffedProtocol::Http1_0] {
            assert_eq!(by.lookup(other, &target("10.96.1.1:7000")), Lookup::Chain(&"auto-tcp".into()), "{other:?}");
        }
    }

    #[test]
    fn versions_are_told_apart_only_where_they_lead_to_different_chains() {
        let to = |name: &str| Some(Box::new(chain(name)));
        let by = |http1_0| ByProtocol { http1: to("auto-http"), http1_0, http2: None, other: to("auto-tcp") };
        assert!(by(None).tells_versions_apart());
        assert!(by(to("old-http")).tells_versions_apart());
        assert!(!by(to("auto-http")).tells_versions_apart());
        assert!(!ByProtocol { other: to("auto-tcp"), ..ByProtocol::default() }.tells_versions_apart());
    }

    #[test]
    fn single_addresses_and_their_ports_are_listed_with_their_chains() {
        let dispatch = dispatch();
        let mut listed: Vec<_> = dispatch.destinations().map(|(address, chain)| format!("{address} {chain}")).collect();
        listed.sort();
        let expected = ["80 web", "7000 auto-http", "7000 auto-tcp"].map(|end| [format!("10.96.1.1:{end}"), format!("[fd00::1]:{end}")]);
        let mut expected = expected.concat();
        expected.sort();
        assert_eq!(listed, expected);
    }

    #[test]
    fn what_nobody_attached_is_not_found() {
        let dispatch = dispatch();
        for text in ["10.96.1.1:81", "192.168.1.1:80", "web.shop:80"] {
            assert_eq!(dispatch.lookup(&target(text)), Lookup::NotFound, "{text}");
        }
        assert_eq!(Dispatch::default().lookup(&target("10.96.1.1:80")), Lookup::NotFound);
    }
}
