//! Authorization: the RBAC filters and what their policies are made of.
use super::super::check;
use super::super::rule::Kind::{Part, Security};
use super::super::rule::Rule::{Extension, Honoured, Listed, Refused, Unused};
use super::super::rule::{Entry, entry, walked, when};

pub(super) const ENTRIES: &[Entry] = &[
    entry(
        Security,
        "envoy.extensions.filters.http.rbac.v3.RBAC",
        &[
            ("rules", Honoured),
            ("rules_stat_prefix", Unused("names Envoy's own statistics")),
            ("shadow_rules", Honoured),
            ("shadow_rules_stat_prefix", Unused("names Envoy's own statistics and metadata of dry runs")),
            ("matcher", Refused("requests would be decided about by a matcher tree")),
            ("shadow_matcher", Listed("dry runs are not evaluated")),
            ("track_per_rule_stats", Unused("Envoy's own statistics")),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.filters.network.rbac.v3.RBAC",
        &[
            ("rules", Honoured),
            ("stat_prefix", Unused("names Envoy's own statistics")),
            ("shadow_rules", Honoured),
            ("shadow_rules_stat_prefix", Unused("names Envoy's own statistics and metadata of dry runs")),
            ("enforcement_type", Refused("every packet would be decided about")),
            ("delay_deny", Refused("denied connections would be held open")),
            ("matcher", Refused("connections would be decided about by a matcher tree")),
            ("shadow_matcher", Listed("dry runs are not evaluated")),
        ],
    ),
    entry(
        Security,
        "envoy.config.rbac.v3.RBAC",
        &[
            ("action", when("ALLOW, DENY, LOG", check::is_known_action, "nobody knows what a match would do")),
            ("policies", Honoured),
            ("audit_logging_options", Listed("decisions are not written to an audit log")),
        ],
    ),
    entry(
        Security,
        "envoy.config.rbac.v3.Policy",
        &[
            ("permissions", Honoured),
            ("principals", Honoured),
            ("condition", Refused("the policy would hold only where an expression does")),
            ("checked_condition", Refused("the policy would hold only where an expression does")),
            ("cel_config", Refused("the policy would hold only where an expression does")),
        ],
    ),
    entry(
        Security,
        "envoy.config.rbac.v3.Permission",
        &[
            ("and_rules", Honoured),
            ("or_rules", Honoured),
            ("not_rule", Honoured),
            ("any", when("true", check::is_true, "nobody knows what it would mean")),
            ("header", Honoured),
            ("url_path", Honoured),
            ("destination_ip", Honoured),
            ("destination_port", Honoured),
            ("destination_port_range", Honoured),
            ("requested_server_name", Honoured),
            ("uri_template", Extension(&[walked(URI_TEMPLATE)])),
            ("metadata", Honoured),
            ("sourced_metadata", Honoured),
            ("matcher", Refused("the policy would hold by an extension")),
        ],
    ),
    entry(Part, "envoy.type.v3.Int32Range", &[("start", Honoured), ("end", Honoured)]),
    entry(Security, URI_TEMPLATE, &[("path_template", Honoured)]),
    entry(Security, "envoy.config.rbac.v3.Permission.Set", &[("rules", Honoured)]),
    entry(
        Security,
        "envoy.config.rbac.v3.Principal",
        &[
            ("and_ids", Honoured),
            ("or_ids", Honoured),
            ("not_id", Honoured),
            ("any", when("true", check::is_true, "nobody knows what it would mean")),
            ("filter_state", Honoured),
            ("direct_remote_ip", Honoured),
            ("remote_ip", Honoured),
            ("header", Honoured),
            ("url_path", Honoured),
            ("metadata", Honoured),
            ("sourced_metadata", Honoured),
            ("authenticated", Refused("the policy would hold by the certificate of an inner connection")),
            ("source_ip", Refused("the form is deprecated; direct_remote_ip and remote_ip are its successors")),
            ("custom", Refused("the policy would hold by an extension")),
        ],
    ),
    entry(
        Security,
        "envoy.config.rbac.v3.SourcedMetadata",
        &[
            ("metadata_matcher", Honoured),
            ("metadata_source", when("DYNAMIC", check::is_dynamic, "the policy would hold by metadata of the route")),
        ],
    ),
    entry(Security, "envoy.config.rbac.v3.Principal.Set", &[("ids", Honoured)]),
    entry(
        Security,
        "envoy.type.matcher.v3.FilterStateMatcher",
        &[
            ("key", when("io.istio.peer_principal", check::is_peer_principal, "the policy would hold by other filter state")),
            ("string_match", Honoured),
            ("address_match", Refused("the policy would hold by an address in filter state")),
        ],
    ),
    entry(Security, "envoy.type.matcher.v3.PathMatcher", &[("path", Honoured)]),
    entry(Part, "envoy.config.core.v3.CidrRange", &[("address_prefix", Honoured), ("prefix_len", Honoured)]),
    entry(Part, "envoy.config.core.v3.TypedExtensionConfig", &[("name", Honoured)]),
];

const URI_TEMPLATE: &str = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
