//! What of Istio's standard metrics a chain records: `stats.PluginConfig`, compiled.
//!
//! Not for: recording. Source: `docs/contracts.md`, metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::format::{Expression, HeaderUse};

/// How often a long TCP connection or gRPC stream reports when nothing else is configured.
pub const REPORTING_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);

/// Metrics that one chain may have beside Istio's own.
pub const CUSTOM_METRICS_MAX: usize = 64;

/// Istio's standard metrics, by the short names of `PluginConfig.metrics[].name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "each is istio_<name>")]
pub enum Metric {
    RequestsTotal,
    RequestDurationMilliseconds,
    RequestBytes,
    ResponseBytes,
    RequestMessagesTotal,
    ResponseMessagesTotal,
    TcpConnectionsOpenedTotal,
    TcpConnectionsClosedTotal,
    TcpSentBytesTotal,
    TcpReceivedBytesTotal,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 10] = [
        Self::RequestsTotal,
        Self::RequestDurationMilliseconds,
        Self::RequestBytes,
        Self::ResponseBytes,
        Self::RequestMessagesTotal,
        Self::ResponseMessagesTotal,
        Self::TcpConnectionsOpenedTotal,
        Self::TcpConnectionsClosedTotal,
        Self::TcpSentBytesTotal,
        Self::TcpReceivedBytesTotal,
    ];

    /// The name in the exposition.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestsTotal => "istio_requests_total",
            Self::RequestDurationMilliseconds => "istio_request_duration_milliseconds",
            Self::RequestBytes => "istio_request_bytes",
            Self::ResponseBytes => "istio_response_bytes",
            Self::RequestMessagesTotal => "istio_request_messages_total",
            Self::ResponseMessagesTotal => "istio_response_messages_total",
            Self::TcpConnectionsOpenedTotal => "istio_tcp_connections_opened_total",
            Self::TcpConnectionsClosedTotal => "istio_tcp_connections_closed_total",
            Self::TcpSentBytesTotal => "istio_tcp_sent_bytes_total",
            Self::TcpReceivedBytesTotal => "istio_tcp_received_bytes_total",
        }
    }

    /// Whether it counts connections, not requests.
    #[must_use]
    pub const fn is_tcp(self) -> bool {
        matches!(
            self,
            Self::TcpConnectionsOpenedTotal | Self::TcpConnectionsClosedTotal | Self::TcpSentBytesTotal | Self::TcpReceivedBytesTotal
        )
    }

    /// Reads a short name (`requests_total`).
    #[must_use]
    pub fn parse(short: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.name().strip_prefix("istio_") == Some(short))
    }
}

/// The standard labels in Istio's order, which consumers rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "each is the label of the same name")]
pub enum Label {
    Reporter,
    SourceWorkload,
    SourceCanonicalService,
    SourceCanonicalRevision,
    SourceWorkloadNamespace,
    SourcePrincipal,
    SourceApp,
    SourceVersion,
    SourceCluster,
    DestinationWorkload,
    DestinationWorkloadNamespace,
    DestinationPrincipal,
    DestinationApp,
    DestinationVersion,
    DestinationService,
    DestinationCanonicalService,
    DestinationCanonicalRevision,
    DestinationServiceName,
    DestinationServiceNamespace,
    DestinationCluster,
    RequestProtocol,
    ResponseCode,
    GrpcResponseStatus,
    ResponseFlags,
    ConnectionSecurityPolicy,
}

impl Label {
    /// All 25, in order.
    pub const ALL: [Self; 25] = [
        Self::Reporter,
        Self::SourceWorkload,
        Self::SourceCanonicalService,
        Self::SourceCanonicalRevision,
        Self::SourceWorkloadNamespace,
        Self::SourcePrincipal,
        Self::SourceApp,
        Self::SourceVersion,
        Self::SourceCluster,
        Self::DestinationWorkload,
        Self::DestinationWorkloadNamespace,
        Self::DestinationPrincipal,
        Self::DestinationApp,
        Self::DestinationVersion,
        Self::DestinationService,
        Self::DestinationCanonicalService,
        Self::DestinationCanonicalRevision,
        Self::DestinationServiceName,
        Self::DestinationServiceNamespace,
        Self::DestinationCluster,
        Self::RequestProtocol,
        Self::ResponseCode,
        Self::GrpcResponseStatus,
        Self::ResponseFlags,
        Self::ConnectionSecurityPolicy,
    ];

    /// The label's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reporter => "reporter",
            Self::SourceWorkload => "source_workload",
            Self::SourceCanonicalService => "source_canonical_service",
            Self::SourceCanonicalRevision => "source_canonical_revision",
            Self::SourceWorkloadNamespace => "source_workload_namespace",
            Self::SourcePrincipal => "source_principal",
            Self::SourceApp => "source_app",
            Self::SourceVersion => "source_version",
            Self::SourceCluster => "source_cluster",
            Self::DestinationWorkload => "destination_workload",
            Self::DestinationWorkloadNamespace => "destination_workload_namespace",
            Self::DestinationPrincipal => "destination_principal",
            Self::DestinationApp => "destination_app",
            Self::DestinationVersion => "destination_version",
            Self::DestinationService => "destination_service",
            Self::DestinationCanonicalService => "destination_canonical_service",
            Self::DestinationCanonicalRevision => "destination_canonical_revision",
            Self::DestinationServiceName => "destination_service_name",
            Self::DestinationServiceNamespace => "destination_service_namespace",
            Self::DestinationCluster => "destination_cluster",
            Self::RequestProtocol => "request_protocol",
            Self::ResponseCode => "response_code",
            Self::GrpcResponseStatus => "grpc_response_status",
            Self::ResponseFlags => "response_flags",
            Self::ConnectionSecurityPolicy => "connection_security_policy",
        }
    }

    /// Reads a label's name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|label| label.name() == name)
    }
}

/// Who reports, for the label `reporter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// `reporter: SERVER_GATEWAY`: `waypoint`.
    Waypoint,
    /// Unspecified: `destination`.
    Destination,
}

impl Reporter {
    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waypoint => "waypoint",
            Self::Destination => "destination",
        }
    }
}

/// What is changed of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Of which metric; none is every one.
    pub metric: Option<Metric>,
    /// A standard label, or one of its own, which comes after those.
    pub name: Box<str>,
    /// What it says; none takes it away.
    pub value: Option<Expression>,
}

/// What a metric that is not Istio's own counts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CustomKind {
    /// Adds up values.
    Counter,
    /// The value of the latest request.
    Gauge,
    /// Values by their size.
    Histogram,
}

/// A metric that is not Istio's own: `PluginConfig.definitions`. It has the labels that are given to it, and none of Istio's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomMetric {
    /// Its name in the exposition, `istio_` included.
    pub name: Arc<str>,
    /// What it counts with.
    pub kind: CustomKind,
    /// What it counts of a request or connection at its end: a whole number; anything else counts as 0.
    pub value: Expression,
    /// Its labels, by name.
    pub labels: BTreeMap<Box<str>, Expression>,
}

/// What a chain records. A chain without the filter `istio.stats` has none and records nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Who reports.
    pub reporter: Reporter,
    /// Metrics that are switched off.
    pub dropped: Vec<Metric>,
    /// Labels that are not Istio's own; of two for the same label the later counts.
    pub tags: Vec<Tag>,
    /// Metrics beside Istio's own, each name once.
    pub custom: Vec<CustomMetric>,
    /// How often long connections and streams report.
    pub reporting_interval: Duration,
}

impl Stats {
    /// Whether the metric is recorded.
    #[must_use]
    pub fn records(&self, metric: Metric) -> bool {
        !self.dropped.contains(&metric)
    }

    /// What is changed of a standard label of a metric.
    #[must_use]
    pub fn tag(&self, metric: Metric, label: Label) -> Option<&Tag> {
        self.of(metric).rev().find(|tag| *tag.name == *label.name())
    }

    /// The labels that a metric has beside the standard ones, by name.
    #[must_use]
    pub fn added(&self, metric: Metric) -> BTreeMap<&str, &Expression> {
        let added = self.of(metric).filter(|tag| Label::parse(&tag.name).is_none());
        added.filter_map(|tag| Some((&*tag.name, tag.value.as_ref()?))).collect()
    }

    fn of(&self, metric: Metric) -> impl DoubleEndedIterator<Item = &Tag> {
        self.tags.iter().filter(move |tag| tag.metric.is_none_or(|of| of == metric))
    }

    /// The expressions of labels whose values differ from request to request.
    pub fn varying(&self) -> impl Iterator<Item = &Expression> {
        let custom = self.custom.iter().flat_map(|metric| metric.labels.values());
        self.tags.iter().filter_map(|tag| tag.value.as_ref()).chain(custom).filter(|value| !value.is_constant())
    }

    /// Notes the headers that labels and values read.
    pub fn uses(&self, headers: &mut HeaderUse) {
        self.varying().chain(self.custom.iter().map(|metric| &metric.value)).for_each(|value| value.uses(headers));
    }
}
