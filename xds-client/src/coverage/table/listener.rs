//! Listeners, the matcher tree that picks a chain, and the chains' own fields.
use super::super::check;
use super::super::rule::Kind::{Part, Routing, Tuning};
use super::super::rule::Rule::{Extension, Honoured, Listed, Refused, Unused, Whole};
use super::super::rule::{Entry, entry, listed, refused, walked, when, whole, whole_when};

pub(super) const ENTRIES: &[Entry] = &[
    entry(
        Routing,
        "envoy.config.listener.v3.Listener",
        &[
            ("name", Honoured),
            ("address", Honoured),
            ("additional_addresses", Honoured),
            ("internal_listener", Whole),
            ("filter_chains", Honoured),
            ("filter_chain_matcher", Honoured),
            ("default_filter_chain", Refused("connections that match no chain would be served")),
            ("listener_filters", Extension(LISTENER_FILTERS)),
            ("access_log", Extension(super::telemetry::ACCESS_LOGS)),
            ("use_original_dst", when("false", check::is_false, "connections would be handed to other listeners")),
            ("bind_to_port", when("true", check::is_true, "the port would not be bound")),
            ("traffic_direction", Whole),
            ("connection_balance_config", Listed("connections are spread over workers by the kernel")),
            ("enable_reuse_port", Listed("every worker always has its own socket")),
            ("per_connection_buffer_limit_bytes", Listed("buffers have our own bounds")),
            ("tcp_backlog_size", Listed("the backlog is our own")),
            ("max_connections_to_accept_per_socket_event", Listed("the number is our own")),
            ("listener_filters_timeout", Listed("sniffing has our own time limit")),
            ("continue_on_listener_filters_timeout", Listed("silence always means TCP")),
            ("socket_options", Listed("not set")),
            ("ignore_global_conn_limit", Listed("there is no such limit")),
            ("bypass_overload_manager", Listed("there is no overload manager")),
            ("stat_prefix", Unused("names Envoy's own statistics")),
            ("metadata", Unused("not read by anything")),
        ],
    ),
    entry(Part, "envoy.config.listener.v3.AdditionalAddress", &[("address", Honoured), ("socket_options", Listed("not set"))]),
    entry(
        Part,
        "envoy.config.core.v3.Address",
        &[("socket_address", Honoured), ("envoy_internal_address", Honoured), ("pipe", Refused("connections would go to a Unix socket"))],
    ),
    entry(
        Part,
        "envoy.config.core.v3.SocketAddress",
        &[
            ("address", Honoured),
            ("port_value", Honoured),
            ("ipv4_compat", Honoured),
            ("protocol", Refused("only TCP is spoken")),
            ("named_port", Refused("the name would have to be resolved")),
            ("resolver_name", Refused("the address would come from a resolver")),
        ],
    ),
    entry(
        Part,
        "envoy.config.core.v3.EnvoyInternalAddress",
        &[
            (
                "server_listener_name",
                when("connect_originate, main_internal", check::is_known_internal_listener, "double HBONE is not spoken"),
            ),
            ("endpoint_id", Honoured),
        ],
    ),
    entry(
        Part,
        "envoy.config.listener.v3.ListenerFilter",
        &[("name", Whole), ("filter_disabled", Honoured), ("config_discovery", Refused("an extension would look at every connection"))],
    ),
    entry(
        Routing,
        "envoy.config.listener.v3.ListenerFilterChainMatchPredicate",
        &[
            ("or_match", Honoured),
            ("and_match", Honoured),
            ("not_match", Honoured),
            ("any_match", when("true", check::is_true, "nobody knows what it would mean")),
            ("destination_port_range", Honoured),
        ],
    ),
    entry(Routing, "envoy.config.listener.v3.ListenerFilterChainMatchPredicate.MatchSet", &[("rules", Honoured)]),
    entry(Tuning, "envoy.extensions.filters.listener.original_dst.v3.OriginalDst", &[]),
    entry(Tuning, "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector", &[]),
    entry(
        Tuning,
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        &[("initial_read_buffer_size", Listed("the buffer's size is our own"))],
    ),
    // The tree from the address asked for to a chain.
    entry(
        Routing,
        "xds.type.matcher.v3.Matcher",
        &[
            ("matcher_tree", Honoured),
            ("on_no_match", Honoured),
            ("matcher_list", Refused("chains would be chosen by a list of predicates")),
        ],
    ),
    entry(
        Routing,
        "xds.type.matcher.v3.Matcher.MatcherTree",
        &[
            ("input", Extension(INPUTS)),
            ("exact_match_map", Honoured),
            ("custom_match", Extension(&[walked("xds.type.matcher.v3.IPMatcher")])),
            ("prefix_match_map", Refused("chains would be chosen by a prefix")),
        ],
    ),
    entry(Routing, "xds.type.matcher.v3.Matcher.MatcherTree.MatchMap", &[("map", Honoured)]),
    entry(
        Routing,
        "xds.type.matcher.v3.Matcher.OnMatch",
        &[
            ("matcher", Honoured),
            ("action", Extension(&[walked("google.protobuf.StringValue")])),
            ("keep_matching", Refused("matching would go on after a match")),
        ],
    ),
    entry(Routing, "xds.type.matcher.v3.IPMatcher", &[("range_matchers", Honoured)]),
    entry(
        Routing,
        "xds.type.matcher.v3.IPMatcher.IPRangeMatcher",
        &[("ranges", Honoured), ("on_match", Honoured), ("exclusive", Refused("a wider range would not be tried after a narrower one"))],
    ),
    entry(Routing, "xds.core.v3.CidrRange", &[("address_prefix", Honoured), ("prefix_len", Whole)]),
    entry(Part, "xds.core.v3.TypedExtensionConfig", &[("name", Whole)]),
    entry(Routing, "envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput", &[]),
    entry(
        Routing,
        "envoy.extensions.matching.common_inputs.network.v3.FilterStateInput",
        &[("key", when("io.istio.connect_authority", check::is_connect_authority, "chains would be chosen by other filter state"))],
    ),
    entry(Routing, "envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput", &[]),
    entry(Routing, "envoy.extensions.matching.common_inputs.network.v3.ApplicationProtocolInput", &[]),
    // Chains.
    entry(
        Routing,
        "envoy.config.listener.v3.FilterChain",
        &[
            ("name", Honoured),
            ("filters", Extension(NETWORK_FILTERS)),
            ("transport_socket", Extension(DOWNSTREAM_SOCKETS)),
            ("filter_chain_match", Refused("connections would reach the chain by other criteria")),
            ("transport_socket_connect_timeout", Listed("handshakes have our own time limit")),
            ("metadata", Unused("not read by anything")),
        ],
    ),
    entry(Part, "envoy.config.listener.v3.Filter", &[("name", Whole), ("config_discovery", Honoured)]),
    entry(
        Routing,
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
        &[("on_new_connection", whole_when("the address asked for", check::is_connection_context, "other filter state would be set"))],
    ),
    entry(
        Routing,
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
        &[(
            "on_request_headers",
            whole_when("addresses and identities of a tunnel", check::is_connection_context, "other filter state would be set"),
        )],
    ),
];

const LISTENER_FILTERS: &[super::super::rule::Extension] = &[
    walked("envoy.extensions.filters.listener.original_dst.v3.OriginalDst"),
    walked("envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"),
    walked("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"),
    refused("envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol", "addresses would come from the PROXY protocol"),
];

const INPUTS: &[super::super::rule::Extension] = &[
    walked("envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput"),
    walked("envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput"),
    walked("envoy.extensions.matching.common_inputs.network.v3.ApplicationProtocolInput"),
    walked("envoy.extensions.matching.common_inputs.network.v3.FilterStateInput"),
];

pub(super) const NETWORK_FILTERS: &[super::super::rule::Extension] = &[
    walked("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
    walked("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
    walked("envoy.extensions.filters.network.rbac.v3.RBAC"),
    walked("envoy.extensions.filters.network.set_filter_state.v3.Config"),
    walked("envoy.tcp.metadataexchange.config.MetadataExchange"),
    walked("stats.PluginConfig"),
    walked("envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"),
    walked("envoy.extensions.filters.network.wasm.v3.Wasm"),
    walked("envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig"),
    whole("envoy.extensions.network_filters.peer_metadata.Config"),
    refused("envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit", "connections would be limited"),
    refused("envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit", "connections would be limited"),
    listed("envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy", "MongoDB is forwarded as TCP, without its statistics"),
];

const DOWNSTREAM_SOCKETS: &[super::super::rule::Extension] = &[walked("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext")];
