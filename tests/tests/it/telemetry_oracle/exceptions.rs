//! Where lines and spans may differ: each by a name that a document explains, for the requests and fields that it says and no others.

use serde_json::Value;

use super::cases::Case;

const DIFFERENCES: &str = "differences.md";
const ORACLE: &str = "envoy-oracle.md";

/// One documented difference.
pub(super) struct Exception {
    pub(super) name: &'static str,
    /// The page of `docs` that has a row of this name.
    pub(super) document: &'static str,
    /// What the names of its requests begin with; empty for all.
    cases: &'static [&'static str],
    /// What the names of its fields begin with.
    fields: &'static [&'static str],
    /// What else has to hold of our value and of Envoy's.
    when: fn(Option<&Value>, Option<&Value>) -> bool,
}

impl Exception {
    pub(super) fn excuses(&self, case: &Case, field: &str, ours: Option<&Value>, theirs: Option<&Value>) -> bool {
        let begins = |of: &[&str], text: &str| of.iter().any(|start| text.starts_with(start));
        // A second line is one as the first.
        let second = field.strip_prefix("line2.").map(|rest| format!("line.{rest}"));
        let field = second.as_deref().unwrap_or(field);
        (self.cases.is_empty() || begins(self.cases, case.name)) && begins(self.fields, field) && (self.when)(ours, theirs)
    }
}

fn any(_: Option<&Value>, _: Option<&Value>) -> bool {
    true
}

fn only_ours(_: Option<&Value>, theirs: Option<&Value>) -> bool {
    theirs.is_none_or(Value::is_null)
}

const fn everywhere(name: &'static str, document: &'static str, fields: &'static [&'static str]) -> Exception {
    Exception { name, document, cases: &[], fields, when: any }
}

const fn of(name: &'static str, cases: &'static [&'static str], fields: &'static [&'static str]) -> Exception {
    Exception { name, document: DIFFERENCES, cases, fields, when: any }
}

const fn when(exception: Exception, when: fn(Option<&Value>, Option<&Value>) -> bool) -> Exception {
    Exception { when, ..exception }
}

/// Requests that Envoy's codec refuses.
const NO_REQUESTS: &[&str] = &["garbage", "HTTP/1.0", "no host"];
const NO_TUNNEL: &[&str] = &["refused tunnel", "refused at once", "TCP, refused"];
const OF_FAILURES: &[&str] = &[
    "line.attempts",
    "line.bytes_sent",
    "line.details",
    "line.flags_",
    "line.response_flags",
    "line.reason",
    "line.text",
    "line.upstream_",
    "line.op RESPONSE_CODE_DETAILS",
    "line.op UPSTREAM_LOCAL_ADDRESS",
    "line.op UPSTREAM_REMOTE_ADDRESS",
    "span.response_flags",
    "span.response_size",
];

/// Of a client that says no more and is not gone.
const OF_ENDS: &[&str] =
    &["line.bytes_sent", "line.details", "line.flags_", "line.response_", "line.text", "span.response_", "line.op RESPONSE_CODE_DETAILS"];

/// Answers that did not end, or that Envoy does not see the end of.
const UNFINISHED: &[&str] = &["cut answer", "client ", "gRPC refused by a policy", "WebSocket", "TCP"];

/// What is not kept of connections, tries and metadata.
const UNKEPT: &[&str] = &[
    "line.request_tx_duration",
    "line.response_trailers",
    "line.op CLUSTER_METADATA(istio)",
    "line.op COMMON_DURATION(US_CX_",
    "line.op CONNECTION_ID",
    "line.op DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "line.op DYNAMIC_METADATA(envoy.filters.http.rbac)",
    "line.op METADATA(UPSTREAM_HOST",
    "line.op UNIQUE_ID",
    "line.op UPSTREAM_CONNECTION_",
    "line.op UPSTREAM_DECOMPRESSED_",
    "line.op UPSTREAM_DETECTED_CLOSE_TYPE",
    "line.op UPSTREAM_HEADER_BYTES_",
    "line.op UPSTREAM_HOSTS_ATTEMPTED",
    "line.op UPSTREAM_HOST_NAMES_ATTEMPTED",
    "line.op UPSTREAM_METADATA(",
    "line.op UPSTREAM_WIRE_BYTES_",
];

/// What depends on which of two things comes first, so that it need not differ: whether a body has come before there is no connection, or it is reset.
pub(super) const RACES: [&str; 1] = ["unread-body"];

pub(super) const EXCEPTIONS: &[Exception] = &[
    when(everywhere("b3-log-fallback", DIFFERENCES, &["line.span_id"]), only_ours),
    when(everywhere("early-trace", DIFFERENCES, &["line.traceparent", "line.tracestate"]), only_ours),
    when(everywhere("refusals", DIFFERENCES, &["span.waypoint.refusal.", "line.waypoint_refusal"]), only_ours),
    everywhere("peer-address", DIFFERENCES, &["span.peer.address", "line.direct_remote", "line.op DOWNSTREAM_DIRECT_"]),
    everywhere(
        "wire-bytes",
        DIFFERENCES,
        &[
            "line.request_headers",
            "line.response_headers",
            "line.op DOWNSTREAM_WIRE_BYTES_",
            "line.op DOWNSTREAM_HEADER_BYTES_",
            "line.op DOWNSTREAM_DECOMPRESSED_",
        ],
    ),
    everywhere("telemetry-sdk", DIFFERENCES, &["resource.telemetry.sdk."]),
    everywhere("unkept", DIFFERENCES, UNKEPT),
    of("unkept", UNFINISHED, &["line.op COMMON_DURATION(DS_RX_BEG:DS_TX_END"]),
    of("unkept", &["TCP, refused"], &["line.op DOWNSTREAM_LOCAL_CLOSE_REASON", "line.op DOWNSTREAM_TRANSPORT_FAILURE_REASON"]),
    of("unkept", &["TCP"], &["line.stream_id"]),
    of("unkept", &["cut answer", "client leaves late"], &["line.response_tx_duration"]),
    of(
        "unread-body",
        &["gRPC without a connection", "gRPC reset"],
        &["line.bytes_received", "line.request_duration", "line.op COMMON_DURATION(DS_RX_BEG:DS_RX_END", "line.text", "span.request_size"],
    ),
    of("half-close", &["WebSocket"], OF_ENDS),
    of("hbone-connect-failure", NO_TUNNEL, OF_FAILURES),
    of("parent-decides", &["seldom: a sampled parent"], &["line.traceparent", "spans", "span.", "resource."]),
    of("http-edges", NO_REQUESTS, &["line.", "span", "resource."]),
    when(
        everywhere(
            "io.istio.http.peer_metadata.Config",
            ORACLE,
            &["span.istio.source_", "span.istio.destination_", "line.op FILTER_STATE(downstream_peer_obj"],
        ),
        only_ours,
    ),
    everywhere("bootstrap", ORACLE, &["span.node_id"]),
];
