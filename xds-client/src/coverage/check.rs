//! Which values of a field are obeyed, where that is not all of them.
use std::borrow::Cow;

use model::refusal::DryRunField;
use prost_reflect::{DynamicMessage, MapKey, ReflectMessage, Value};

use super::rule::Site;

/// Where an `envoy_internal_address` may lead: HBONE to the endpoint, to its network's gateway, and the plumbing of Envoy that we do without.
const INTERNAL_LISTENERS: [&str; 3] = ["connect_originate", "inner_connect_originate", "main_internal"];
/// Clusters through which an Envoy waypoint dials HBONE.
const HBONE_CLUSTERS: [&str; 3] = ["connect_originate", "inner_connect_originate", "outer_connect_originate"];
/// Secrets that mean our own certificate and our own roots.
const OWN_SECRETS: [&str; 2] = ["default", "ROOTCA"];
/// Filter state that an Envoy waypoint hands from one internal listener to the next, and where it comes from. We keep the same in a
/// connection's context.
const FILTER_STATE: [(&str, &str); 6] = [
    ("envoy.filters.listener.original_dst.local_ip", "%REQ(:AUTHORITY)%"),
    ("envoy.filters.listener.original_dst.local_ip", "%FILTER_STATE(envoy.filters.listener.original_dst.local_ip:PLAIN)%"),
    ("io.istio.connect_authority", "%REQ(:AUTHORITY)%"),
    ("envoy.filters.listener.original_dst.remote_ip", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("io.istio.peer_principal", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("io.istio.local_principal", "%DOWNSTREAM_LOCAL_URI_SAN%"),
];

const FORWARD_ONLY: i32 = 1;
const ALWAYS_FORWARD_ONLY: i32 = 4;
const ORIGINAL_DST: i32 = 4;
const CLUSTER_PROVIDED: i32 = 6;

/// The field of this name, or its default; none if the message has no such field.
fn field<'a>(message: &'a DynamicMessage, name: &str) -> Option<Cow<'a, Value>> {
    message.get_field_by_name(name)
}

fn text(message: &DynamicMessage, name: &str) -> String {
    field(message, name).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// What a wrapper such as `google.protobuf.BoolValue` wraps, or the value itself.
fn unwrapped(value: &Value) -> Cow<'_, Value> {
    match value {
        Value::Message(message) if message.descriptor().full_name().starts_with("google.protobuf.") => {
            field(message, "value").unwrap_or(Cow::Borrowed(value))
        }
        _ => Cow::Borrowed(value),
    }
}

/// Name of the resource that is walked.
fn resource_name(site: &Site<'_>) -> String {
    let mut outermost = site;
    while let Some(holder) = outermost.holder {
        outermost = holder;
    }
    text(outermost.message, "name")
}

fn is_one_of(value: &Value, numbers: &[i32]) -> bool {
    value.as_enum_number().is_some_and(|number| numbers.contains(&number))
}

pub(super) fn is_false(value: &Value, _: &Site<'_>) -> bool {
    unwrapped(value).as_bool() == Some(false)
}

pub(super) fn is_true(value: &Value, _: &Site<'_>) -> bool {
    unwrapped(value).as_bool() == Some(true)
}

/// In what is said about connections to endpoints, not about clients'.
pub(super) fn is_upstream(_: &Value, site: &Site<'_>) -> bool {
    site.holder.is_some_and(|holder| holder.message.descriptor().full_name().starts_with("envoy.extensions.upstreams.http."))
}

/// In the HTTP connection manager's options, not in a cluster's.
pub(super) fn is_of_connection_manager(_: &Value, site: &Site<'_>) -> bool {
    site.holder.is_some_and(is_connection_manager)
}

/// In the options of connections inside tunnels: neither a cluster's, nor those of the tunnels.
pub(super) fn is_of_inner_manager(value: &Value, site: &Site<'_>) -> bool {
    is_of_connection_manager(value, site) && !is_of_tunnels(value, site)
}

/// In the connection manager itself, not in that of HBONE connections from callers.
pub(super) fn is_inside_tunnels(_: &Value, site: &Site<'_>) -> bool {
    text(site.message, "stat_prefix") != "connect_terminate"
}

/// Not the options of HBONE connections from callers.
pub(super) fn is_not_of_tunnels(value: &Value, site: &Site<'_>) -> bool {
    !is_of_tunnels(value, site)
}

/// The options of HBONE connections from callers.
pub(super) fn is_of_tunnels(_: &Value, site: &Site<'_>) -> bool {
    site.holder.is_some_and(|holder| is_connection_manager(holder) && text(holder.message, "stat_prefix") == "connect_terminate")
}

/// Not the options of connections inside tunnels.
pub(super) fn is_of_tunnels_or_upstream(value: &Value, site: &Site<'_>) -> bool {
    is_of_tunnels(value, site) || !site.holder.is_some_and(is_connection_manager)
}

fn is_connection_manager(site: &Site<'_>) -> bool {
    site.message.descriptor().name() == "HttpConnectionManager"
}

/// An enum's first value.
pub(super) fn is_first(value: &Value, _: &Site<'_>) -> bool {
    is_one_of(value, &[0])
}

/// A text that is read as an expression.
pub(super) fn is_expression(value: &Value, _: &Site<'_>) -> bool {
    value.as_str().is_some_and(|text| model::format::Expression::parse(text).is_ok())
}

/// A map of such texts.
pub(super) fn are_expressions(value: &Value, site: &Site<'_>) -> bool {
    let is_label = |key: &MapKey| key.as_str().is_some_and(|name| crate::translate::stats::label(name).is_some());
    value.as_map().is_some_and(|map| map.iter().all(|(key, text)| is_label(key) && is_expression(text, site)))
}

/// `type`: STATIC, STRICT_DNS, LOGICAL_DNS, EDS and ORIGINAL_DST.
pub(super) fn is_known_discovery(value: &Value, _: &Site<'_>) -> bool {
    is_one_of(value, &[0, 1, 2, 3, ORIGINAL_DST])
}

/// `lb_policy`: ROUND_ROBIN, LEAST_REQUEST, RING_HASH, RANDOM, MAGLEV; CLUSTER_PROVIDED with ORIGINAL_DST or a cluster type of its own.
pub(super) fn is_known_balance(value: &Value, site: &Site<'_>) -> bool {
    let is_original = || field(site.message, "type").is_some_and(|kind| is_one_of(&kind, &[ORIGINAL_DST]));
    let is_provided = || is_original() || site.message.has_field_by_name("cluster_type");
    is_one_of(value, &[0, 1, 2, 3, 5]) || (is_one_of(value, &[CLUSTER_PROVIDED]) && is_provided())
}

/// In TLS that is spoken to an application; elsewhere TLS is the mesh's, and not negotiable.
pub(super) fn is_to_application(_: &Value, site: &Site<'_>) -> bool {
    const UPSTREAM_TLS: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";
    let mut at = Some(site);
    let mut is_upstream = false;
    while let Some(site) = at {
        let descriptor = site.message.descriptor();
        is_upstream |= matches!(descriptor.full_name(), UPSTREAM_TLS | SECRET);
        at = site.holder;
    }
    is_upstream && !HBONE_CLUSTERS.contains(&resource_name(site).as_str())
}

/// As [`is_h2_only`], or to an application.
pub(super) fn is_known_alpn(value: &Value, site: &Site<'_>) -> bool {
    is_h2_only(value, site) || is_to_application(value, site)
}

/// As [`is_own_secret`], or to an application.
pub(super) fn is_known_secret(value: &Value, site: &Site<'_>) -> bool {
    is_own_secret(value, site) || is_to_application(value, site)
}

/// As [`is_tls_1_3`], or to an application.
pub(super) fn is_known_version(value: &Value, site: &Site<'_>) -> bool {
    is_tls_1_3(value, site) || is_to_application(value, site)
}

/// As [`is_uri_name`], or to an application: mail, DNS, URI, address.
pub(super) fn is_known_name(value: &Value, site: &Site<'_>) -> bool {
    is_uri_name(value, site) || (is_one_of(value, &[1, 2, 3, 4]) && is_to_application(value, site))
}

/// In the cluster through which an Envoy waypoint dials HBONE.
pub(super) fn is_originating(_: &Value, site: &Site<'_>) -> bool {
    resource_name(site) == "connect_originate"
}

/// Tunnelling is obeyed where Envoy's plumbing has it: the connection to an ambient pod.
/// Those of HBONE are not made as they are described, but as HBONE is.
pub(super) fn is_known_tunnel(value: &Value, site: &Site<'_>) -> bool {
    const KNOWN: [&str; 3] = ["hostname", "headers_to_add", "propagate_response_headers"];
    let is_known = || value.as_message().is_some_and(|tunnel| tunnel.fields().all(|(field, _)| KNOWN.contains(&field.name())));
    text(site.message, "cluster") != "connect_originate" || is_known()
}

/// Of tunnels to pods: their hostname is the address that was asked for.
pub(super) fn is_of_tunnels_to_pods(_: &Value, site: &Site<'_>) -> bool {
    text(site.message, "hostname") == "%DOWNSTREAM_LOCAL_ADDRESS%"
}

/// Of tunnels to pods: nothing but what we say of ourselves.
pub(super) fn is_own_baggage(value: &Value, site: &Site<'_>) -> bool {
    let is_baggage = |option: &Value| {
        let option = option.as_message()?;
        let header = option.get_field_by_name("header")?;
        let header = header.as_message()?;
        let overwrites = option.get_field_by_name("append_action").is_some_and(|action| action.as_enum_number() == Some(2));
        let known = option.fields().all(|(field, _)| ["header", "append_action"].contains(&field.name()));
        Some(known && overwrites && text(header, "key") == "baggage" && text(header, "value") == "%FILTER_STATE(io.istio.baggage:PLAIN)%")
    };
    let options = value.as_list().unwrap_or_default();
    is_of_tunnels_to_pods(value, site) && options.len() == 1 && options.iter().all(|option| is_baggage(option) == Some(true))
}

pub(super) fn is_known_internal_listener(value: &Value, _: &Site<'_>) -> bool {
    value.as_str().is_some_and(|name| INTERNAL_LISTENERS.contains(&name))
}

pub(super) fn is_own_secret(value: &Value, _: &Site<'_>) -> bool {
    value.as_str().is_some_and(|name| OWN_SECRETS.contains(&name))
}

pub(super) fn is_h2_only(value: &Value, _: &Site<'_>) -> bool {
    value.as_list().is_some_and(|protocols| protocols.len() == 1 && protocols.first().and_then(Value::as_str) == Some("h2"))
}

/// TLS 1.3, or left to the implementation.
pub(super) fn is_tls_1_3(value: &Value, _: &Site<'_>) -> bool {
    is_one_of(value, &[0, 4])
}

/// A subject alternative name of kind URI.
pub(super) fn is_uri_name(value: &Value, _: &Site<'_>) -> bool {
    is_one_of(value, &[3])
}

/// The authority of a CONNECT.
pub(super) fn is_connect_authority(value: &Value, _: &Site<'_>) -> bool {
    value.as_str() == Some("io.istio.connect_authority")
}

pub(super) fn is_peer_principal(value: &Value, _: &Site<'_>) -> bool {
    value.as_str() == Some("io.istio.peer_principal")
}

/// ALLOW, DENY and LOG.
pub(super) fn is_known_action(value: &Value, _: &Site<'_>) -> bool {
    is_one_of(value, &[0, 1, 2])
}

/// In a filter of external authorization.
pub(super) fn is_of_authorization(_: &Value, site: &Site<'_>) -> bool {
    site.holder.is_some_and(|holder| holder.message.descriptor().name() == "ExtAuthz")
}

/// Elsewhere than in a filter of external authorization.
pub(super) fn is_not_of_authorization(value: &Value, site: &Site<'_>) -> bool {
    !is_of_authorization(value, site)
}

/// Filter states of peers, in a logger of the access log service.
pub(super) fn are_logged_peers(value: &Value, site: &Site<'_>) -> bool {
    let is_service = site.holder.is_some_and(|holder| holder.message.descriptor().name().ends_with("GrpcAccessLogConfig"));
    let is_peer = |name: &Value| matches!(name.as_str(), Some("upstream_peer" | "downstream_peer"));
    is_service && value.as_list().is_some_and(|names| names.iter().all(is_peer))
}

/// `collector_endpoint_version`: HTTP_JSON.
pub(super) fn is_http_json(value: &Value, _: &Site<'_>) -> bool {
    is_one_of(value, &[1])
}

/// `transport_api_version`: AUTO or V3.
pub(super) fn is_third_version(value: &Value, _: &Site<'_>) -> bool {
    is_one_of(value, &[0, 2])
}

/// Metadata that verified tokens leave, or shadow rules for the external authorization behind them.
pub(super) fn is_known_metadata(value: &Value, site: &Site<'_>) -> bool {
    match value.as_str() {
        Some("envoy.filters.http.jwt_authn") => true,
        Some("envoy.filters.http.rbac" | "envoy.filters.network.rbac") => is_of_authorization(value, site),
        _ => false,
    }
}

/// A tag of what dry runs came to.
pub(super) fn is_of_dry_run(value: &Value, _: &Site<'_>) -> bool {
    let known = || {
        let metadata = value.as_message()?;
        let (kind, key) = (field(metadata, "kind")?, field(metadata, "metadata_key")?);
        let (kind, key) = (kind.as_message()?, key.as_message()?);
        let path = field(key, "path")?;
        let [segment] = path.as_list()? else { return None };
        let is_known = DryRunField::parse(&text(key, "key"), &text(segment.as_message()?, "key")).is_some();
        Some(is_known && kind.has_field_by_name("request"))
    };
    known().unwrap_or(false)
}

/// `metadata_source` DYNAMIC.
pub(super) fn is_dynamic(value: &Value, _: &Site<'_>) -> bool {
    is_one_of(value, &[0])
}

/// Filter state that we keep in another way; see [`FILTER_STATE`].
pub(super) fn is_connection_context(value: &Value, _: &Site<'_>) -> bool {
    let known = |value: &Value| {
        let Some(state) = value.as_message() else { return false };
        let format = field(state, "format_string").and_then(|format| Some(inline_format(format.as_message()?)));
        let key = text(state, "object_key");
        // Where a CONNECT by name would have gone: a virtual address that nothing asks for here.
        key == "envoy.network.transport_socket.original_dst_address"
            || format.is_some_and(|format| FILTER_STATE.contains(&(key.as_str(), format.as_str())))
    };
    value.as_list().is_some_and(|states| states.iter().all(known))
}

fn inline_format(format: &DynamicMessage) -> String {
    field(format, "text_format_source").and_then(|source| Some(text(source.as_message()?, "inline_string"))).unwrap_or_default()
}

/// `upgrade_type`: CONNECT only where a tunnel is terminated, by its connection manager or by the route to what is inside.
pub(super) fn is_known_upgrade(value: &Value, site: &Site<'_>) -> bool {
    let Some(upgrade) = value.as_str() else { return false };
    let is_connect = upgrade.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("connect"));
    let of_tunnel = || site.holder.is_some_and(|holder| terminates(holder.message) || leads_inside(holder.message));
    !is_connect || of_tunnel()
}

/// In the connection manager that terminates tunnels, where no header of a tunnel's request reaches anyone.
pub(super) fn is_terminating(_: &Value, site: &Site<'_>) -> bool {
    terminates(site.message)
}

/// Whether a connection manager has a route to what is inside its tunnels.
fn terminates(manager: &DynamicMessage) -> bool {
    let in_any = |message: &DynamicMessage, list: &str, test: &dyn Fn(&DynamicMessage) -> bool| {
        field(message, list).is_some_and(|items| items.as_list().is_some_and(|items| items.iter().filter_map(Value::as_message).any(test)))
    };
    let route_leads_inside = |route: &DynamicMessage| {
        route.has_field_by_name("route") && field(route, "route").is_some_and(|action| action.as_message().is_some_and(leads_inside))
    };
    let routes = field(manager, "route_config");
    routes.is_some_and(|routes| {
        routes.as_message().is_some_and(|routes| in_any(routes, "virtual_hosts", &|host| in_any(host, "routes", &route_leads_inside)))
    })
}

/// An incoming `x-forwarded-client-cert` is kept as it is; on the tunnel it may be anything, see [`is_terminating`].
pub(super) fn is_known_certificate_forwarding(value: &Value, site: &Site<'_>) -> bool {
    is_one_of(value, &[FORWARD_ONLY, ALWAYS_FORWARD_ONLY]) || is_terminating(value, site)
}

/// `connect_matcher` in the route from the tunnel to what is inside.
pub(super) fn is_match_of_tunnel(_: &Value, site: &Site<'_>) -> bool {
    let action = site.holder.and_then(|route| field(route.message, "route"));
    action.is_some_and(|action| action.as_message().is_some_and(leads_inside))
}

/// In an upgrade of the route from the tunnel to what is inside.
pub(super) fn is_upgrade_of_tunnel(_: &Value, site: &Site<'_>) -> bool {
    site.holder.is_some_and(|action| leads_inside(action.message))
}

fn leads_inside(action: &DynamicMessage) -> bool {
    text(action, "cluster") == "main_internal"
}

/// An escaped slash stays as it came (KEEP_UNCHANGED), has its request refused or redirected, or becomes one before anything looks at it
/// (UNESCAPE_AND_FORWARD).
pub(super) fn is_known_slash_action(value: &Value, _: &Site<'_>) -> bool {
    is_one_of(value, &[1, 2, 3, 4])
}

/// `header_key_format` of a formatter that keeps the case in which names were sent.
pub(super) fn is_case_kept(value: &Value, _: &Site<'_>) -> bool {
    const PRESERVE_CASE: &str = "/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig";
    let formatter = value.as_message().and_then(|format| field(format, "stateful_formatter"));
    let config = formatter.as_ref().and_then(|formatter| field(formatter.as_message()?, "typed_config"));
    config.is_some_and(|config| config.as_message().is_some_and(|any| text(any, "type_url").ends_with(PRESERVE_CASE)))
}
