//! Whether and how a chain traces: `HttpConnectionManager.Tracing`, compiled.
//!
//! Not for: ids, propagation, export.

use std::sync::Arc;

use http::HeaderName;

use crate::collector::Collector;
use crate::format::{HeaderUse, TextFormat};
use crate::refusal::DryRunField;

/// Where a span's tag comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagSource {
    /// Always this text.
    Literal(Box<str>),
    /// A request header, or the default.
    RequestHeader {
        /// The header.
        name: HeaderName,
        /// When it is not there; empty leaves the tag out.
        default: Box<str>,
    },
    /// A format; missing leaves the tag out.
    Format(TextFormat),
    /// A variable of the environment, or the default. A process that knows its environment has a text in its place.
    Environment {
        /// The variable.
        name: Box<str>,
        /// When it is not there; empty leaves the tag out.
        default: Box<str>,
    },
    /// Metadata of the request, of which only what dry runs leave is known; `default` otherwise.
    Metadata {
        /// What of dry runs; none for other metadata.
        field: Option<DryRunField>,
        /// Instead of what is not there.
        default: Box<str>,
    },
}

/// One custom tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomTag {
    /// The attribute's key.
    pub tag: Arc<str>,
    /// Its value.
    pub source: TagSource,
}

/// Where finished spans go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpanProvider {
    /// Who takes them.
    pub collector: Collector,
    /// What it takes, and what callers and endpoints speak.
    pub dialect: Dialect,
}

/// How spans are written, and how others are told of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// OTLP, and W3C's headers.
    Otlp {
        /// The resource's `service.name`.
        service_name: Arc<str>,
        /// Whether the variable `OTEL_RESOURCE_ATTRIBUTES` adds to the resource.
        reads_environment: bool,
    },
    /// Zipkin's JSON, and B3's headers.
    Zipkin(Zipkin),
}

/// Zipkin's choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Zipkin {
    /// A request's span is that of its caller, seen from this side; otherwise it is a child.
    pub shares_spans: bool,
    /// Ids of traces that begin here have 128 bits.
    pub wide_trace_ids: bool,
    /// W3C's headers are read where there are none of B3, and written beside them.
    pub with_w3c: bool,
}

/// A share in hundredths of a percent: 10,000 is every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling(u32);

impl Sampling {
    /// From a percentage; out of range is clamped, as Envoy does.
    #[must_use]
    pub fn percent(percent: f64) -> Self {
        let hundredths = (percent.clamp(0.0, 100.0) * 100.0).round();
        Self((0..=10_000_u32).find(|candidate| f64::from(*candidate) >= hundredths).unwrap_or(10_000))
    }

    /// Whether a request with this random draw (any 64 bits) is taken.
    #[must_use]
    pub fn takes(self, draw: u64) -> bool {
        draw % 10_000 < u64::from(self.0)
    }
}

/// What a request id has to do with tracing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestIdUse {
    /// It decides; otherwise every request is traced that no caller has decided about.
    pub decides: bool,
    /// The decision is written into it.
    pub tells: bool,
}

impl Default for RequestIdUse {
    fn default() -> Self {
        Self { decides: true, tells: true }
    }
}

/// How a chain traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// The share of requests, without a decision of the caller, that are traced.
    pub random_sampling: Sampling,
    /// The share of those whose client asks for it.
    pub client_sampling: Sampling,
    /// An upper bound on all.
    pub overall_sampling: Sampling,
    /// What the request id has to do with it.
    pub request_id: RequestIdUse,
    /// Whether the endpoint is told of the trace.
    pub propagates: bool,
    /// Whether each try of a request has a span of its own.
    pub spans_of_tries: bool,
    /// Whether spans have the names of OpenTelemetry's conventions beside Envoy's.
    pub semantic_names: bool,
    /// Tags beside the standard ones; copies share them.
    pub custom_tags: Arc<[CustomTag]>,
    /// Where spans go; without it there are none, and trace headers pass as they came.
    pub provider: Option<Arc<SpanProvider>>,
    /// Bytes of the path in `http.url` at most.
    pub path_bytes_max: usize,
}

impl Tracing {
    /// Notes the headers that the tags read.
    pub fn uses(&self, headers: &mut HeaderUse) {
        for tag in &*self.custom_tags {
            match &tag.source {
                TagSource::RequestHeader { name, .. } => headers.add_request(name),
                TagSource::Format(format) => format.uses(headers),
                TagSource::Literal(_) | TagSource::Environment { .. } | TagSource::Metadata { .. } => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_takes_its_share() {
        let share = |percent: f64| {
            let sampling = Sampling::percent(percent);
            (0..10_000).filter(|draw| sampling.takes(*draw)).count()
        };
        assert_eq!((share(0.0), share(100.0), share(0.01), share(12.5), share(250.0)), (0, 10_000, 1, 1250, 10_000));
    }
}
