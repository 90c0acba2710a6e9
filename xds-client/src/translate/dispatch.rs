//! The matcher tree of `main_internal`.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::extensions::matching::common_inputs::network::v3::FilterStateInput;
use envoy_types::pb::google::protobuf::{Any, StringValue};
use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
use envoy_types::pb::xds::r#type::matcher::v3 as proto;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::MatcherType;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_tree::TreeType;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::on_match::OnMatch;
use model::dispatch::{ByAddress, ByProtocol, Dispatch, Inspected, Node, PortTest};
use xds_proto::matcher::IpMatcher;

use super::{Problem, Translated, open, range, required, type_name};

const INPUTS: &str = "envoy.extensions.matching.common_inputs.network.v3.";
const IP_MATCHER: &str = "xds.type.matcher.v3.IPMatcher";
const TLS_INSPECTOR: &str = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
const STRING_VALUE: &str = "google.protobuf.StringValue";
/// The filter state in which Istio keeps a CONNECT's authority.
const CONNECT_AUTHORITY: &str = "io.istio.connect_authority";
/// Nesting that is followed; istiod's own is at most 4.
const DEPTH_MAX: usize = 16;

pub(super) fn dispatch(listener: &listener::Listener) -> Translated<Dispatch> {
    let root = listener.filter_chain_matcher.as_ref().map(|value| matcher(value, "filter_chain_matcher", 0)).transpose()?.flatten();
    Ok(Dispatch { root, server_names: server_names(&listener.listener_filters)? })
}

/// Where server names are read, of `listener_filters`.
fn server_names(filters: &[listener::ListenerFilter]) -> Translated<Inspected> {
    for (at, filter) in filters.iter().enumerate() {
        if let Some(listener::listener_filter::ConfigType::TypedConfig(config)) = &filter.config_type
            && type_name(config) == TLS_INSPECTOR
        {
            return Ok(match &filter.filter_disabled {
                None => Inspected::Everywhere,
                Some(test) => Inspected::Except(port_test(test, &format!("listener_filters[{at}].filter_disabled"), 0)?),
            });
        }
    }
    Ok(Inspected::Nowhere)
}

fn port_test(value: &listener::ListenerFilterChainMatchPredicate, path: &str, depth: usize) -> Translated<PortTest> {
    use listener::listener_filter_chain_match_predicate::{MatchSet, Rule};
    if depth > DEPTH_MAX {
        return Err(Problem::new(path, "is nested too deeply"));
    }
    let all = |set: &MatchSet| set.rules.iter().map(|one| port_test(one, path, depth + 1)).collect::<Translated<Vec<_>>>();
    Ok(match required(value.rule.as_ref(), path)? {
        Rule::OrMatch(set) => PortTest::One(all(set)?),
        Rule::AndMatch(set) => PortTest::All(all(set)?),
        Rule::NotMatch(one) => PortTest::Not(Box::new(port_test(one, path, depth + 1)?)),
        Rule::AnyMatch(true) => PortTest::Any,
        Rule::AnyMatch(false) => return Err(Problem::new(path, "any_match is false")),
        Rule::DestinationPortRange(ports) => PortTest::Range(ports.start..ports.end),
    })
}

/// None: a matcher that leads nowhere, as a waypoint without services has it.
fn matcher(value: &proto::Matcher, path: &str, depth: usize) -> Translated<Option<Node>> {
    if depth > DEPTH_MAX {
        return Err(Problem::new(path, "is nested too deeply"));
    }
    let otherwise = value.on_no_match.as_deref().map(|one| on_match(one, &format!("{path}.on_no_match"), depth)).transpose()?.flatten();
    match value.matcher_type.as_ref() {
        None => Ok(otherwise),
        Some(MatcherType::MatcherList(_)) => Err(Problem::new(path, "matcher_list is not supported")),
        Some(MatcherType::MatcherTree(tree)) => {
            let input = required(tree.input.as_ref().and_then(|input| input.typed_config.as_ref()), &format!("{path}.input"))?;
            let kind = type_name(input).strip_prefix(INPUTS).unwrap_or_default();
            match (kind, required(tree.tree_type.as_ref(), path)?) {
                ("DestinationIPInput", TreeType::CustomMatch(custom)) => by_address(custom, otherwise, path, depth).map(Some),
                ("DestinationPortInput", TreeType::ExactMatchMap(map)) => by_port(map, otherwise, path, depth).map(Some),
                ("ApplicationProtocolInput", TreeType::ExactMatchMap(map)) => by_protocol(map, otherwise, path, depth).map(Some),
                ("FilterStateInput", TreeType::ExactMatchMap(map)) => by_authority(input, map, otherwise, path, depth),
                _ => Err(Problem::new(path, format!("matching {} in this way is not known", type_name(input)))),
            }
        }
    }
}

fn on_match(value: &proto::matcher::OnMatch, path: &str, depth: usize) -> Translated<Option<Node>> {
    match required(value.on_match.as_ref(), path)? {
        OnMatch::Matcher(inner) => matcher(inner, path, depth + 1),
        OnMatch::Action(action) => chain(action, path).map(Some),
    }
}

fn chain(action: &TypedExtensionConfig, path: &str) -> Translated<Node> {
    let config = required(action.typed_config.as_ref(), path)?;
    if type_name(config) != STRING_VALUE {
        return Err(Problem::new(path, format!("the action {} is not known", type_name(config))));
    }
    let name: StringValue = open(config, path)?;
    Ok(Node::Chain(name.value.as_str().into()))
}

fn by_address(custom: &TypedExtensionConfig, otherwise: Option<Node>, path: &str, depth: usize) -> Translated<Node> {
    let config = required(custom.typed_config.as_ref(), path)?;
    if type_name(config) != IP_MATCHER {
        return Err(Problem::new(path, format!("the matcher {} is not known", type_name(config))));
    }
    let ips: IpMatcher = open(config, path)?;
    let mut entries = Vec::new();
    for (at, one) in ips.range_matchers.iter().enumerate() {
        let path = format!("{path}.range_matchers[{at}]");
        let ranges = one.ranges.iter().map(|cidr| range(&cidr.address_prefix, cidr.prefix_len.as_ref().map(|length| length.value), &path));
        let ranges = ranges.collect::<Translated<Vec<_>>>()?;
        let target = on_match(required(one.on_match.as_ref(), &path)?, &path, depth)?;
        entries.extend(target.map(|target| (ranges, target)));
    }
    Ok(Node::Address(ByAddress::new(entries, otherwise)))
}

fn entries(map: &proto::matcher::matcher_tree::MatchMap, path: &str, depth: usize) -> Translated<Vec<(String, Node)>> {
    let mut found = Vec::new();
    for (key, one) in &map.map {
        found.extend(on_match(one, &format!("{path}[{key}]"), depth)?.map(|node| (key.clone(), node)));
    }
    Ok(found)
}

fn by_port(map: &proto::matcher::matcher_tree::MatchMap, otherwise: Option<Node>, path: &str, depth: usize) -> Translated<Node> {
    let mut ports = HashMap::new();
    for (key, node) in entries(map, path, depth)? {
        let port = key.parse::<u16>().map_err(|_| Problem::new(path, format!("{key:?} is no port")))?;
        ports.insert(port, node);
    }
    Ok(Node::Port(ports, otherwise.map(Box::new)))
}

/// Keys keep the quotes of Envoy's input: `'http/1.1'`.
fn by_protocol(map: &proto::matcher::matcher_tree::MatchMap, otherwise: Option<Node>, path: &str, depth: usize) -> Translated<Node> {
    let mut by = ByProtocol { other: otherwise.map(Box::new), ..ByProtocol::default() };
    for (key, node) in entries(map, path, depth)? {
        let slot = match key.as_str() {
            "'http/1.1'" => &mut by.http1,
            "'http/1.0'" => &mut by.http1_0,
            "'h2c'" => &mut by.http2,
            _ => return Err(Problem::new(path, format!("the protocol {key} is not known"))),
        };
        *slot = Some(Box::new(node));
    }
    Ok(Node::Protocol(by))
}

fn by_authority(
    input: &Any,
    map: &proto::matcher::matcher_tree::MatchMap,
    otherwise: Option<Node>,
    path: &str,
    depth: usize,
) -> Translated<Option<Node>> {
    let input: FilterStateInput = open(input, path)?;
    if input.key != CONNECT_AUTHORITY {
        return Err(Problem::new(path, format!("matching the filter state {:?} is not known", input.key)));
    }
    let named = entries(map, path, depth)?.into_iter().map(|(key, node)| (key.to_ascii_lowercase().into_boxed_str(), node));
    Ok(Some(Node::Authority(named.collect(), otherwise.map(Box::new))))
}
