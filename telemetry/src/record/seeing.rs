//! A record as changes to a request or its answer see it.
//!
//! Not for: lines and spans, which read what was kept.

use std::time::Duration;

use http::HeaderMap;
use model::refusal::{DryRun, Refusal};
use model::service::ServiceRef;
use model::stream_view::{Field, Moment, RequestHead, Side, StreamView, Value};
use model::workload::Workload;

use super::RequestRecord;

/// A record as changes to a request or its answer see it: with the headers at hand in place of those that were kept.
#[derive(Clone, Copy, Debug)]
pub struct Seeing<'a> {
    record: &'a RequestRecord,
    request: Option<&'a HeaderMap>,
    response: Option<&'a HeaderMap>,
}

impl RequestRecord {
    /// While these are the request's headers.
    #[must_use]
    pub fn seeing_request<'a>(&'a self, headers: &'a HeaderMap) -> Seeing<'a> {
        Seeing { record: self, request: Some(headers), response: None }
    }

    /// While these are the answer's headers.
    #[must_use]
    pub fn seeing_response<'a>(&'a self, headers: &'a HeaderMap) -> Seeing<'a> {
        Seeing { record: self, request: None, response: Some(headers) }
    }
}

impl StreamView for Seeing<'_> {
    fn request(&self) -> Option<RequestHead<'_>> {
        let head = self.record.request()?;
        Some(self.request.map_or(head, |headers| RequestHead { headers, ..head }))
    }

    fn response_headers(&self) -> Option<&HeaderMap> {
        self.response.or(self.record.response_headers())
    }

    fn response_trailers(&self) -> Option<&HeaderMap> {
        self.record.response_trailers()
    }

    fn field(&self, field: Field) -> Value<'_> {
        self.record.field(field)
    }

    fn moment(&self, moment: Moment) -> Option<Duration> {
        self.record.moment(moment)
    }

    fn service(&self) -> Option<&ServiceRef> {
        self.record.service()
    }

    fn peer(&self, side: Side) -> Option<&Workload> {
        self.record.peer(side)
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.record.variable(name)
    }

    fn refusal(&self) -> Option<&Refusal> {
        self.record.refusal()
    }

    fn dry_runs(&self) -> &[DryRun] {
        self.record.dry_runs()
    }
}
