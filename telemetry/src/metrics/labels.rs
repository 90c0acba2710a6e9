//! The labels of Istio's standard metrics: which values, in which order, and how they print.
//!
//! Not for: hot paths; labels are rendered once per series. Source: Istio's `istio.stats` filter as a waypoint runs it.
//! Invariant: no value is empty but that of `grpc_response_status`: consumers skip series whose labels are.

use std::hash::{Hash, Hasher};

use model::flags::ResponseFlags;
use model::format::Expression;
use model::identity::SpiffeId;
use model::metrics::{Label, Metric, Reporter, Stats};
use model::service::ServiceRef;
use model::stream_view::StreamView;
use model::workload::Workload;

use crate::grpc::GrpcStatus;
use crate::record::{RequestRecord, StreamRecord};

pub(super) const UNKNOWN: &str = "unknown";
/// Only a source without a revision is `latest`; the asymmetry is Istio's.
const SOURCE_REVISION_UNKNOWN: &str = "latest";
/// Every label of the series that takes what no longer got one of its own.
pub(super) const OVERFLOW: &str = "overflow";
/// Bytes of a label's value that comes from an expression; what is longer is cut, since a header can be as long as its sender likes.
pub const LABEL_BYTES_MAX: usize = 256;
/// How many labels, from the first, message counters carry.
const MESSAGE_LABELS: usize = 20;

/// `request_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Http,
    Grpc,
    Tcp,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// How it ended: labels 21 to 24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) protocol: Protocol,
    pub(crate) code: u16,
    pub(crate) grpc: Option<GrpcStatus>,
    pub(crate) flags: ResponseFlags,
}

impl Hash for Outcome {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.protocol, self.code, self.grpc).hash(state);
        for flag in self.flags.iter() {
            flag.as_str().hash(state);
        }
    }
}

impl Outcome {
    pub(crate) fn of_request(record: &RequestRecord) -> Self {
        Self {
            protocol: if record.is_grpc { Protocol::Grpc } else { Protocol::Http },
            code: record.response_code,
            grpc: if record.is_grpc { record.grpc_status_or_derived() } else { None },
            flags: record.stream.flags,
        }
    }

    pub(crate) fn of_connection(flags: ResponseFlags) -> Self {
        Self { protocol: Protocol::Tcp, code: 0, grpc: None, flags }
    }
}

/// What `destination_service_name` says when the cluster names no service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ServiceStandIn {
    Unknown,
    BlackHole,
    Passthrough,
    InboundPassthrough,
    InboundPassthroughIpv4,
    InboundPassthroughIpv6,
}

impl ServiceStandIn {
    fn of(stream: &StreamRecord) -> Self {
        if stream.service.is_some() {
            return Self::Unknown;
        }
        match (stream.route_name.as_deref(), stream.cluster.as_deref()) {
            (Some("block_all"), _) | (_, Some("BlackHoleCluster")) => Self::BlackHole,
            (Some("allow_any"), _) | (_, Some("PassthroughCluster")) => Self::Passthrough,
            (_, Some("InboundPassthroughCluster")) => Self::InboundPassthrough,
            (_, Some("InboundPassthroughClusterIpv4")) => Self::InboundPassthroughIpv4,
            (_, Some("InboundPassthroughClusterIpv6")) => Self::InboundPassthroughIpv6,
            _ => Self::Unknown,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => UNKNOWN,
            Self::BlackHole => "BlackHoleCluster",
            Self::Passthrough => "PassthroughCluster",
            Self::InboundPassthrough => "InboundPassthroughCluster",
            Self::InboundPassthroughIpv4 => "InboundPassthroughClusterIpv4",
            Self::InboundPassthroughIpv6 => "InboundPassthroughClusterIpv6",
        }
    }
}

/// Who talked to whom: labels 2 to 20, and 25.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends<'a> {
    pub(crate) source: Option<&'a Workload>,
    pub(crate) principal: Option<&'a SpiffeId>,
    pub(crate) mutual_tls: bool,
    pub(crate) destination: Option<&'a Workload>,
    pub(crate) service: Option<&'a ServiceRef>,
    pub(crate) stand_in: ServiceStandIn,
}

impl<'a> Ends<'a> {
    /// The ends of a stream. Istio learns the destination from response headers: a request without a response has none.
    pub(crate) fn of(stream: &'a StreamRecord, answered: bool) -> Self {
        Self {
            source: stream.source.as_deref(),
            principal: stream.source_identity.as_ref(),
            mutual_tls: stream.source_identity.is_some() && stream.local_identity.is_some(),
            destination: stream.destination.as_deref().filter(|_| answered),
            service: stream.service.as_deref(),
            stand_in: ServiceStandIn::of(stream),
        }
    }

    fn source(&self, label: Label) -> Option<&'a str> {
        let source = self.source;
        match label {
            Label::SourceWorkload => source.map(|peer| &*peer.workload_name),
            Label::SourceCanonicalService | Label::SourceApp => source.map(|peer| &*peer.canonical_name),
            Label::SourceCanonicalRevision | Label::SourceVersion => source.map(|peer| &*peer.canonical_revision),
            Label::SourceWorkloadNamespace => self.principal.map(SpiffeId::namespace).or_else(|| source.map(|peer| &*peer.namespace)),
            Label::SourcePrincipal => self.principal.map(SpiffeId::as_str),
            Label::SourceCluster => source.map(|peer| &*peer.cluster_id),
            _ => None,
        }
    }

    fn destination(&self, label: Label) -> Option<&'a str> {
        let destination = self.destination;
        match label {
            Label::DestinationWorkload => destination.map(|peer| &*peer.workload_name),
            Label::DestinationWorkloadNamespace => destination.map(|peer| &*peer.namespace),
            Label::DestinationPrincipal => destination.map(|peer| peer.identity.as_str()),
            Label::DestinationApp | Label::DestinationCanonicalService => destination.map(|peer| &*peer.canonical_name),
            Label::DestinationVersion | Label::DestinationCanonicalRevision => destination.map(|peer| &*peer.canonical_revision),
            Label::DestinationCluster => destination.map(|peer| &*peer.cluster_id),
            Label::DestinationService => self.service.map(|service| &*service.host),
            Label::DestinationServiceName => Some(self.service.map_or(self.stand_in.as_str(), service_name)),
            Label::DestinationServiceNamespace => self.service.map(|service| &*service.namespace),
            _ => None,
        }
    }
}

/// The service's name, or what its host name begins with.
fn service_name(service: &ServiceRef) -> &str {
    if service.name.is_empty() { service.host.split('.').next().unwrap_or_default() } else { &service.name }
}

/// Whether the metric carries the label at all.
fn carries(metric: Metric, label: Label) -> bool {
    match metric {
        Metric::RequestsTotal | Metric::RequestDurationMilliseconds | Metric::RequestBytes | Metric::ResponseBytes => true,
        Metric::RequestMessagesTotal | Metric::ResponseMessagesTotal => Label::ALL[..MESSAGE_LABELS].contains(&label),
        Metric::TcpConnectionsOpenedTotal
        | Metric::TcpConnectionsClosedTotal
        | Metric::TcpSentBytesTotal
        | Metric::TcpReceivedBytesTotal => !matches!(label, Label::ResponseCode | Label::GrpcResponseStatus),
    }
}

/// Hands over what a label by expression says, cut to [`LABEL_BYTES_MAX`]; none where it has no value.
pub(crate) fn with_label<R>(value: &Expression, view: &dyn StreamView, with: impl FnOnce(Option<&str>) -> R) -> R {
    value.with_text(view, |text| with(text.map(|text| &text[..text.floor_char_boundary(LABEL_BYTES_MAX)])))
}

/// Renders all labels of one series, `a="b",c="d"`.
pub(crate) fn render(stats: &Stats, metric: Metric, view: &dyn StreamView, (ends, outcome): (&Ends<'_>, &Outcome)) -> String {
    let mut out = String::with_capacity(1024);
    let tagged = |out: &mut String, name: &str, value: &Expression| {
        with_label(value, view, |text| push_pair(out, name, text.unwrap_or(UNKNOWN)));
    };
    for label in Label::ALL.into_iter().filter(|label| carries(metric, *label)) {
        if let Some(tag) = stats.tag(metric, label) {
            if let Some(value) = &tag.value {
                tagged(&mut out, label.name(), value);
            }
            continue;
        }
        match label {
            Label::Reporter => push(&mut out, label, stats.reporter.as_str()),
            Label::SourceCanonicalRevision => push(&mut out, label, or(ends.source(label), SOURCE_REVISION_UNKNOWN)),
            Label::RequestProtocol => push(&mut out, label, outcome.protocol.as_str()),
            Label::ResponseCode => push(&mut out, label, itoa::Buffer::new().format(outcome.code)),
            Label::GrpcResponseStatus => match outcome.grpc {
                Some(status) => push(&mut out, label, itoa::Buffer::new().format(status.number())),
                None => push(&mut out, label, ""),
            },
            Label::ResponseFlags => outcome.flags.with_text(|flags| push(&mut out, label, flags)),
            Label::ConnectionSecurityPolicy => push(&mut out, label, if ends.mutual_tls { "mutual_tls" } else { "none" }),
            _ => push(&mut out, label, or(ends.source(label).or_else(|| ends.destination(label)), UNKNOWN)),
        }
    }
    for (name, value) in stats.added(metric) {
        tagged(&mut out, name, value);
    }
    out
}

/// Renders the labels of the series that takes what no longer gets one of its own.
pub(crate) fn render_overflow(reporter: Reporter, metric: Metric) -> String {
    let mut out = String::new();
    for label in Label::ALL.into_iter().filter(|label| carries(metric, *label)) {
        push(&mut out, label, if label == Label::Reporter { reporter.as_str() } else { OVERFLOW });
    }
    out
}

/// The value, or what stands for an unknown one.
fn or<'a>(value: Option<&'a str>, otherwise: &'static str) -> &'a str {
    value.filter(|value| !value.is_empty()).unwrap_or(otherwise)
}

fn push(out: &mut String, label: Label, value: &str) {
    push_pair(out, label.name(), value);
}

/// Appends one label, escaped as the text format wants it.
pub(crate) fn push_pair(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
    out.push('"');
}
