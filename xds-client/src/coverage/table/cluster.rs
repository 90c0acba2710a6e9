//! Clusters, how they are balanced and reached, and their endpoints.
use super::super::check;
use super::super::rule::Kind::{Part, Routing, Security, Tuning};
use super::super::rule::Rule::{Extension, Honoured, Listed, Refused, Unused, Whole};
use super::super::rule::{Entry, entry, walked, when, whole, whole_when};

const TLS: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const RAW: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const INTERNAL: &str = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
const PROXY_PROTOCOL: &str = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";

pub(super) const ENTRIES: &[Entry] = &[
    entry(
        Routing,
        "envoy.config.cluster.v3.Cluster",
        &[
            ("name", Honoured),
            ("alt_stat_name", Honoured),
            (
                "type",
                when("EDS, STATIC, STRICT_DNS, LOGICAL_DNS, ORIGINAL_DST", check::is_known_discovery, "endpoints would be found elsewhere"),
            ),
            ("cluster_type", Extension(CLUSTER_TYPES)),
            ("eds_cluster_config", Honoured),
            ("load_assignment", Honoured),
            ("connect_timeout", Honoured),
            (
                "lb_policy",
                when(
                    "ROUND_ROBIN, LEAST_REQUEST, RANDOM, RING_HASH, MAGLEV; CLUSTER_PROVIDED with ORIGINAL_DST or a cluster_type",
                    check::is_known_balance,
                    "like requests would go to the same endpoint",
                ),
            ),
            ("load_balancing_policy", Refused("an extension would choose the endpoint")),
            ("lb_subset_config", Honoured),
            ("least_request_lb_config", Honoured),
            ("round_robin_lb_config", Honoured),
            ("ring_hash_lb_config", Honoured),
            ("maglev_lb_config", Honoured),
            ("original_dst_lb_config", Honoured),
            ("common_lb_config", Honoured),
            ("circuit_breakers", Honoured),
            ("outlier_detection", Honoured),
            ("health_checks", Refused("unhealthy endpoints would be left out")),
            ("transport_socket", Extension(TRANSPORT_SOCKETS)),
            ("transport_socket_matches", Honoured),
            ("typed_extension_protocol_options", Extension(&[walked("envoy.extensions.upstreams.http.v3.HttpProtocolOptions")])),
            ("filters", Extension(UPSTREAM_FILTERS)),
            ("metadata", Whole),
            ("upstream_connection_options", Honoured),
            ("per_connection_buffer_limit_bytes", Listed("buffers have our own bounds")),
            ("cleanup_interval", Unused("endpoints of ORIGINAL_DST are not kept")),
            ("close_connections_on_host_health_failure", Listed("connections end when the endpoint goes")),
            ("ignore_health_on_host_removal", Listed("a removed endpoint is not used any more")),
            ("max_requests_per_connection", Honoured),
            ("preconnect_policy", Listed("connections are made when they are needed")),
            ("wait_for_warm_on_init", Unused("clusters wait for nothing")),
            ("track_cluster_stats", Unused("Envoy's own statistics")),
            ("track_timeout_budgets", Unused("Envoy's own statistics")),
            ("dns_refresh_rate", Whole),
            ("dns_failure_refresh_rate", Whole),
            ("dns_jitter", Whole),
            ("dns_lookup_family", Honoured),
            ("respect_dns_ttl", Honoured),
            ("typed_dns_resolver_config", Extension(DNS_RESOLVERS)),
            ("upstream_bind_config", Refused("connections would come from another address")),
        ],
    ),
    entry(
        Routing,
        "envoy.config.cluster.v3.Cluster.LbSubsetConfig",
        &[
            ("fallback_policy", Honoured),
            ("default_subset", Whole),
            ("subset_selectors", Honoured),
            ("locality_weight_aware", Honoured),
            ("scale_locality_weight", Honoured),
            ("panic_mode_any", Honoured),
            ("list_as_any", when("false", check::is_false, "an endpoint would be in the subset of each value of a list")),
            (
                "metadata_fallback_policy",
                when("METADATA_NO_FALLBACK", check::is_first, "other subsets would be tried as a list in the route's metadata says"),
            ),
        ],
    ),
    entry(
        Routing,
        "envoy.config.cluster.v3.Cluster.LbSubsetConfig.LbSubsetSelector",
        &[
            ("keys", Honoured),
            ("fallback_policy", Honoured),
            ("fallback_keys_subset", Honoured),
            ("single_host_per_subset", when("false", check::is_false, "only one endpoint of a subset would be chosen")),
        ],
    ),
    entry(
        Tuning,
        "envoy.config.cluster.v3.UpstreamConnectionOptions",
        &[
            ("tcp_keepalive", Honoured),
            ("happy_eyeballs_config", Listed("families take turns, the first address's first")),
            ("set_local_interface_name_on_upstream_connections", Unused("Envoy's own filter state")),
        ],
    ),
    entry(
        Tuning,
        "envoy.config.core.v3.TcpKeepalive",
        &[("keepalive_probes", Honoured), ("keepalive_time", Honoured), ("keepalive_interval", Honoured)],
    ),
    entry(Part, "envoy.config.cluster.v3.Cluster.CustomClusterType", &[("name", Whole)]),
    entry(Part, "envoy.config.cluster.v3.Filter", &[("name", Whole), ("config_discovery", Refused("an extension would see traffic"))]),
    entry(
        Routing,
        "envoy.config.cluster.v3.Cluster.OriginalDstLbConfig",
        &[
            ("upstream_port_override", Honoured),
            ("use_http_header", when("false", check::is_false, "a header would say where requests go")),
            ("http_header_name", Unused("belongs to use_http_header, which is refused")),
            ("metadata_key", whole_when("of connect_originate", check::is_originating, "metadata would say where requests go")),
        ],
    ),
    entry(Routing, "envoy.config.cluster.v3.Cluster.EdsClusterConfig", &[("eds_config", Whole), ("service_name", Honoured)]),
    entry(
        Tuning,
        "envoy.config.cluster.v3.Cluster.CommonLbConfig",
        &[
            ("healthy_panic_threshold", Whole),
            ("locality_weighted_lb_config", Honoured),
            ("zone_aware_lb_config", Listed("zones are not preferred")),
            ("consistent_hashing_lb_config", Listed("addresses are hashed, loads have no bound")),
            ("override_host_status", Unused("no filter that is obeyed names an endpoint for a session")),
        ],
    ),
    entry(Tuning, "envoy.config.cluster.v3.Cluster.CommonLbConfig.LocalityWeightedLbConfig", &[]),
    entry(
        Tuning,
        "envoy.config.cluster.v3.Cluster.RingHashLbConfig",
        &[
            ("minimum_ring_size", Honoured),
            ("maximum_ring_size", Honoured),
            ("hash_function", when("XX_HASH", check::is_first, "the hash is xxHash64, so keys meet other endpoints")),
        ],
    ),
    entry(Tuning, "envoy.config.cluster.v3.Cluster.MaglevLbConfig", &[("table_size", Honoured)]),
    entry(
        Tuning,
        "envoy.config.cluster.v3.Cluster.LeastRequestLbConfig",
        &[("choice_count", Honoured), ("active_request_bias", Listed("the bias is one")), ("slow_start_config", Honoured)],
    ),
    entry(Tuning, "envoy.config.cluster.v3.Cluster.RoundRobinLbConfig", &[("slow_start_config", Honoured)]),
    entry(
        Tuning,
        "envoy.config.cluster.v3.Cluster.SlowStartConfig",
        &[("slow_start_window", Honoured), ("aggression", Whole), ("min_weight_percent", Whole)],
    ),
    entry(
        Tuning,
        "envoy.config.cluster.v3.OutlierDetection",
        &[
            ("consecutive_5xx", Honoured),
            ("enforcing_consecutive_5xx", Honoured),
            ("consecutive_gateway_failure", Honoured),
            ("enforcing_consecutive_gateway_failure", Honoured),
            ("consecutive_local_origin_failure", Honoured),
            ("enforcing_consecutive_local_origin_failure", Honoured),
            ("split_external_local_origin_errors", Honoured),
            ("interval", Honoured),
            ("base_ejection_time", Honoured),
            ("max_ejection_time", Honoured),
            ("max_ejection_time_jitter", Honoured),
            ("max_ejection_percent", Honoured),
            ("always_eject_one_host", Honoured),
            ("enforcing_success_rate", Honoured),
            ("enforcing_local_origin_success_rate", Honoured),
            ("enforcing_failure_percentage", Honoured),
            ("enforcing_failure_percentage_local_origin", Honoured),
            ("success_rate_minimum_hosts", Honoured),
            ("success_rate_request_volume", Honoured),
            ("success_rate_stdev_factor", Honoured),
            ("failure_percentage_threshold", Honoured),
            ("failure_percentage_minimum_hosts", Honoured),
            ("failure_percentage_request_volume", Honoured),
            ("successful_active_health_check_uneject_host", Unused("belongs to health checks, which are refused")),
        ],
    ),
    entry(
        Tuning,
        "envoy.config.cluster.v3.CircuitBreakers",
        &[("thresholds", Honoured), ("per_host_thresholds", Listed("endpoints have no breakers of their own"))],
    ),
    entry(
        Tuning,
        "envoy.config.cluster.v3.CircuitBreakers.Thresholds",
        &[
            ("max_connections", Honoured),
            ("max_pending_requests", Honoured),
            ("max_requests", Honoured),
            ("max_retries", Honoured),
            ("retry_budget", Honoured),
            ("priority", Honoured),
            ("track_remaining", Unused("Envoy's own statistics")),
        ],
    ),
    entry(
        Tuning,
        "envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget",
        &[("budget_percent", Whole), ("min_retry_concurrency", Honoured), ("budget_interval", Honoured)],
    ),
    entry(
        Routing,
        "envoy.config.cluster.v3.Cluster.TransportSocketMatch",
        &[("name", Whole), ("match", Whole), ("transport_socket", Extension(TRANSPORT_SOCKETS))],
    ),
    entry(Part, "envoy.config.core.v3.TransportSocket", &[("name", Whole)]),
    entry(
        Routing,
        INTERNAL,
        &[
            ("passthrough_metadata", Unused("what endpoints say reaches the connection anyway")),
            ("transport_socket", Extension(&[walked(RAW), walked(TLS), walked(PROXY_PROTOCOL)])),
        ],
    ),
    entry(Routing, RAW, &[]),
    entry(
        Routing,
        PROXY_PROTOCOL,
        &[
            ("config", Honoured),
            ("transport_socket", Extension(&[walked(RAW), walked(TLS)])),
            ("allow_unspecified_address", Unused("a client always has an address")),
            ("tlv_as_pool_key", Unused("belongs to added TLVs, which are refused")),
        ],
    ),
    entry(
        Routing,
        "envoy.config.core.v3.ProxyProtocolConfig",
        &[
            ("version", Honoured),
            ("pass_through_tlvs", Unused("clients do not speak the PROXY protocol to a waypoint")),
            ("added_tlvs", Refused("more would be told of the client")),
        ],
    ),
    // What is spoken to the application.
    entry(
        Routing,
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        &[
            ("explicit_http_config", Honoured),
            ("use_downstream_protocol_config", Honoured),
            ("auto_config", Refused("the protocol would be agreed on in the TLS handshake")),
            ("common_http_protocol_options", Honoured),
            ("upstream_http_protocol_options", Honoured),
            ("http_filters", Refused("requests would pass other filters")),
            ("outlier_detection", Listed("answers count by their status alone")),
            ("header_validation_config", Refused("headers would be validated by an extension")),
        ],
    ),
    entry(
        Security,
        "envoy.config.core.v3.UpstreamHttpProtocolOptions",
        &[
            ("auto_sni", Honoured),
            ("auto_san_validation", Honoured),
            ("override_auto_sni_header", Refused("another header would name the server")),
        ],
    ),
    entry(
        Routing,
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
        &[
            ("http_protocol_options", Honoured),
            ("http2_protocol_options", Honoured),
            ("http3_protocol_options", Refused("HTTP/3 would be spoken to the application")),
        ],
    ),
    entry(
        Routing,
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig",
        &[
            ("http_protocol_options", Honoured),
            ("http2_protocol_options", Honoured),
            ("http3_protocol_options", Unused("no client speaks HTTP/3 to a waypoint")),
        ],
    ),
    // Names.
    entry(
        Routing,
        "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        &[
            ("resolvers", Refused("other name servers would be asked")),
            ("use_resolvers_as_fallback", Refused("other name servers would be asked")),
            ("dns_resolver_options", Listed("TCP is used where an answer is cut; search domains as the system says")),
            ("filter_unroutable_families", Listed("families count whatever addresses the pod has")),
            ("udp_max_queries", Unused("each query has a socket of its own")),
            ("query_timeout_seconds", Listed("as the system says")),
            ("query_tries", Listed("as the system says")),
            ("rotate_nameservers", Listed("the faster one is asked")),
        ],
    ),
    entry(
        Routing,
        "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
        &[
            ("dns_cache_config", Honoured),
            ("sub_clusters_config", Refused("each host would be a cluster of its own")),
            ("allow_insecure_cluster_options", Honoured),
            ("allow_coalesced_connections", Listed("hosts do not share connections")),
        ],
    ),
    entry(
        Routing,
        "envoy.extensions.clusters.dns.v3.DnsCluster",
        &[
            ("dns_refresh_rate", Whole),
            ("dns_failure_refresh_rate", Whole),
            ("respect_dns_ttl", Honoured),
            ("dns_jitter", Whole),
            ("typed_dns_resolver_config", Extension(DNS_RESOLVERS)),
            ("dns_lookup_family", Honoured),
            ("all_addresses_in_single_endpoint", Honoured),
            ("dns_min_refresh_rate", Whole),
        ],
    ),
    entry(
        Routing,
        "envoy.extensions.common.dynamic_forward_proxy.v3.DnsCacheConfig",
        &[
            ("name", Whole),
            ("dns_lookup_family", Honoured),
            ("dns_refresh_rate", Whole),
            ("dns_min_refresh_rate", Whole),
            ("host_ttl", Whole),
            ("max_hosts", Honoured),
            ("dns_failure_refresh_rate", Whole),
            ("disable_dns_refresh_on_failure", Listed("a host that cannot be looked up is tried again")),
            ("dns_cache_circuit_breaker", Whole),
            ("dns_query_timeout", Whole),
            ("typed_dns_resolver_config", Extension(DNS_RESOLVERS)),
            ("dns_resolution_config", Refused("other name servers would be asked")),
            ("use_tcp_for_dns_lookups", Listed("TCP is used where an answer is cut")),
            ("preresolve_hostnames", Listed("hosts are looked up when they are asked for")),
            ("key_value_config", Listed("hosts are not kept beyond the process")),
            ("resolved_address_filter", Refused("addresses would be left out")),
        ],
    ),
    // Endpoints.
    entry(
        Routing,
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        &[
            ("cluster_name", Honoured),
            ("endpoints", Honoured),
            ("policy", Honoured),
            ("named_endpoints", Refused("endpoints would be shared between localities")),
        ],
    ),
    entry(
        Routing,
        "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy",
        &[
            ("drop_overloads", Refused("a share of requests would be dropped")),
            ("overprovisioning_factor", Honoured),
            ("weighted_priority_health", Honoured),
            ("endpoint_stale_after", Listed("endpoints do not expire")),
        ],
    ),
    entry(
        Routing,
        "envoy.config.endpoint.v3.LocalityLbEndpoints",
        &[
            ("lb_endpoints", Honoured),
            ("priority", Honoured),
            ("locality", Whole),
            ("load_balancing_weight", Honoured),
            ("metadata", Unused("not read by anything")),
            ("proximity", Unused("Envoy does not use it either")),
        ],
    ),
    entry(
        Routing,
        "envoy.config.endpoint.v3.LbEndpoint",
        &[("endpoint", Honoured), ("health_status", Honoured), ("load_balancing_weight", Honoured), ("metadata", Whole)],
    ),
    entry(
        Routing,
        "envoy.config.endpoint.v3.Endpoint",
        &[
            ("address", Honoured),
            ("additional_addresses", Honoured),
            ("hostname", Unused("belongs to DNS and to host rewriting")),
            ("health_check_config", Unused("belongs to health checks, which are refused")),
        ],
    ),
    entry(Routing, "envoy.config.endpoint.v3.Endpoint.AdditionalAddress", &[("address", Honoured)]),
];

const DNS_RESOLVERS: &[super::super::rule::Extension] = &[walked("envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig")];

const CLUSTER_TYPES: &[super::super::rule::Extension] =
    &[walked("envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig"), walked("envoy.extensions.clusters.dns.v3.DnsCluster")];

const TRANSPORT_SOCKETS: &[super::super::rule::Extension] = &[walked(INTERNAL), walked(RAW), walked(TLS), walked(PROXY_PROTOCOL)];

const UPSTREAM_FILTERS: &[super::super::rule::Extension] =
    &[walked("envoy.tcp.metadataexchange.config.MetadataExchange"), whole("envoy.extensions.network_filters.peer_metadata.UpstreamConfig")];
