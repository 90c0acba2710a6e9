//! Tracing: whose trace a request belongs to, what goes on to the endpoint, and the SERVER span at its end; on demand one for each try.
//!
//! Not for: spans of our own code. Source: Envoy's OpenTelemetry tracer and UUID request ids, with `parent-decides`: the flag of an
//! incoming `traceparent` decides alone. Invariant: a malformed `traceparent` means no span, and is passed on as it came.

mod b3;
mod propagation;
mod sampling;
mod semantic;
mod span;
mod tries;
mod zipkin;

use http::{HeaderMap, HeaderName, HeaderValue};
use model::tracing::{Dialect, Tracing};

use crate::record::{RequestRecord, X_REQUEST_ID};

use self::propagation::Incoming;
pub use self::propagation::{TRACEPARENT, TRACESTATE, Told, TraceContext};
pub(crate) use self::span::SpanWriter;
pub(crate) use self::span::{SpanIdentity, nanoseconds};
pub use self::tries::{TRY_SPANS_MAX, TrySpan};

/// What was decided about a request when it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Its span, sampled or not; none without tracing or with a malformed `traceparent`.
    pub trace: Option<TraceContext>,
    /// `x-request-id` as it is to be forwarded and logged.
    pub request_id: Option<HeaderValue>,
    changed_request_id: bool,
    propagates: bool,
}

impl Decision {
    /// Writes what changes into the headers that are forwarded: `x-request-id` if it is new, `traceparent` and `tracestate` if there
    /// is a span and the chain tells endpoints of it. Everything else, a malformed `traceparent` too, stays as it came.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Some(id) = self.request_id.as_ref().filter(|_| self.changed_request_id) {
            headers.insert(X_REQUEST_ID, id.clone());
        }
        if let Some(trace) = self.trace.as_ref().filter(|_| self.propagates) {
            trace.inject(headers);
        }
    }
}

/// Decides about a request by its headers. `tracing` is the chain's; `generate_request_id` gives requests without an id one.
#[must_use]
pub fn begin(tracing: Option<&Tracing>, headers: &HeaderMap, generate_request_id: bool, random: &mut fastrand::Rng) -> Decision {
    let received = headers.get(X_REQUEST_ID);
    let generated = received.is_none() && generate_request_id;
    let mut request_id = if generated { Some(sampling::new_request_id(random)) } else { received.cloned() };
    let Some(tracing) = tracing else {
        return Decision { trace: None, request_id, changed_request_id: generated, propagates: false };
    };
    let verdict = sampling::decide(tracing, request_id.as_ref(), headers);
    let rewritten = verdict.request_id.is_some();
    request_id = verdict.request_id.or(request_id);
    let trace = match tracing.provider.as_ref().map(|provider| &provider.dialect) {
        // Nobody would ever see the span: as in Envoy, what came goes on untouched.
        None => None,
        Some(Dialect::Zipkin(zipkin)) => b3::begin(*zipkin, headers, verdict.sampled, random),
        Some(Dialect::Otlp { .. }) => match propagation::extract(headers) {
            Incoming::None => Some(TraceContext::root(verdict.sampled, propagation::tracestate(headers), random)),
            Incoming::Parent(parent) => Some(TraceContext::child(parent, propagation::tracestate(headers), random)),
            Incoming::Malformed => None,
        },
    };
    Decision { trace, request_id, changed_request_id: generated || rewritten, propagates: tracing.propagates }
}

/// The headers by which a call belongs to the trace of its request.
#[must_use]
pub fn headers(tracing: &Tracing) -> &'static [HeaderName] {
    match tracing.provider.as_ref().map(|provider| &provider.dialect) {
        Some(Dialect::Zipkin(_)) => &b3::HEADERS,
        Some(Dialect::Otlp { .. }) | None => &propagation::HEADERS,
    }
}

/// Takes back, in headers that are forwarded, that a request's span is sampled.
pub fn unsample(tracing: &Tracing, headers: &mut HeaderMap) {
    propagation::unsample(headers);
    if tracing.provider.as_ref().is_some_and(|provider| matches!(provider.dialect, Dialect::Zipkin(_))) {
        b3::unsample(headers);
    }
}

/// One worker's spans.
#[derive(Debug)]
pub(crate) struct WorkerSpans {
    writer: SpanWriter,
}

impl WorkerSpans {
    pub(crate) fn new(identity: SpanIdentity) -> Self {
        Self { writer: SpanWriter::new(identity) }
    }

    /// Hands over the request's span, if it was sampled and its chain names a collector.
    pub(crate) fn record(&mut self, record: &RequestRecord) {
        let chain = &record.stream.chain;
        let (Some(trace), Some(tracing), Some(outbox)) = (&record.trace, &chain.tracing, &chain.spans) else { return };
        if trace.sampled {
            for one in &record.tries {
                outbox.push(|| self.writer.write_try(record, one, tracing));
            }
            outbox.push(|| self.writer.write(record, trace, tracing));
        }
    }
}

#[cfg(test)]
mod tests;
