//! The one owner of a request's record: fills it, hands it over once, and watches the answer's body to its end.
//!
//! Invariant: a record that nobody finished is finished when it is dropped, as cancelled by the client: that is what being
//! dropped early means, since every other end of a request passes through [`Recording::finish`].

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use model::flags::ResponseFlag;
use parking_lot::Mutex;
use telemetry::record::{RequestRecord, UpstreamLocal};
use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior};

use super::limits::{Activity, Expired, Expiry};
use super::{head_bytes, status_line_bytes};
use crate::http::body::{Body, BodyError};
use crate::http::session::ClientReset;
use crate::state::health::ActiveRequest;
use crate::state::published::ClusterEntry;
use crate::state::table::EndpointEntry;
use crate::upstream::failure::{CLIENT_RESET, UpstreamFailure};
use crate::upstream::pool::Lease;
use crate::worker::Worker;

/// `%UPSTREAM_PROTOCOL%`.
const HTTP1: &str = "HTTP/1.1";
const HTTP2: &str = "HTTP/2";

/// A record on its way.
#[derive(Debug)]
pub(super) struct Recording {
    record: Option<Box<RequestRecord>>,
    worker: Arc<Worker>,
    upload: Option<Arc<Upload>>,
    /// Of a request with an idle time.
    activity: Option<Arc<Activity>>,
    /// Of a request whose client may take it back.
    client_reset: Option<ClientReset>,
}

impl Recording {
    pub(super) fn new(record: RequestRecord, worker: Arc<Worker>) -> Self {
        Self { record: Some(Box::new(record)), worker, upload: None, activity: None, client_reset: None }
    }

    /// By which its client may take the request back.
    pub(super) fn ended_by(mut self, client_reset: Option<ClientReset>) -> Self {
        self.client_reset = client_reset;
        self
    }

    /// The record, until it is finished.
    pub(super) fn record(&mut self) -> &mut RequestRecord {
        self.record.as_mut().expect("a recording is used only before it is finished")
    }

    /// Others were waited for since then.
    pub(super) fn waited_since(&mut self, began: Instant) {
        self.record().waited += began.elapsed();
    }

    /// The head of an endpoint's answer is on its way: what that took here.
    pub(super) fn count_overhead(&mut self) {
        let record = self.record();
        let took = record.stream.start.elapsed().saturating_sub(record.waited);
        self.worker.costs.overhead(took);
    }

    /// Where it is sent, and for which service.
    pub(super) fn note_cluster(&mut self, name: &Arc<str>, entry: Option<&ClusterEntry>) {
        let stream = &mut self.record().stream;
        if let Some(ClusterEntry::Served(served)) = entry {
            stream.cluster = Some(Arc::clone(name));
            stream.cluster_stat_name = Some(Arc::clone(&served.cluster.stat_name));
            stream.service.clone_from(&served.cluster.service);
        }
    }

    /// Which endpoint was chosen.
    pub(super) fn note_endpoint(&mut self, entry: &EndpointEntry) {
        let destination = self.worker.published.workload_at(&entry.endpoint.address);
        let stream = &mut self.record().stream;
        stream.upstream_host = Some(Arc::clone(&entry.endpoint.host));
        stream.destination = destination;
        stream.upstream_local = None;
        stream.upstream_remote = None;
        self.record().upstream_protocol = None;
    }

    /// That there is a connection to it.
    pub(super) fn note_connection(&mut self, lease: &Lease) {
        let record = self.record();
        record.stream.upstream_remote = lease.ends.remote_address;
        record.stream.upstream_local = Some(lease.ends.local_address.map_or(UpstreamLocal::Tunnel, UpstreamLocal::Socket));
        if record.stream.destination.is_none() {
            record.stream.destination.clone_from(&lease.ends.peer);
        }
        record.upstream_protocol = Some(if lease.session.is_shared() { HTTP2 } else { HTTP1 });
    }

    /// Watches for silence from now on; before [`Self::count_upload`].
    pub(super) fn watch_activity(&mut self) -> Arc<Activity> {
        Arc::clone(self.activity.insert(Arc::new(Activity::begin())))
    }

    /// What watches for it.
    pub(super) fn activity(&self) -> Option<Arc<Activity>> {
        self.activity.clone()
    }

    /// The request's body, counted as it is read.
    pub(super) fn count_upload(&mut self, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        let upload = Arc::new(Upload::default());
        self.upload = Some(Arc::clone(&upload));
        let messages = self.record().grpc_messages.map(|_| MessageCounter::default());
        Body::wrap(CountedUpload { inner: body, upload, messages, activity: self.activity.clone() })
    }

    /// When the request came.
    pub(super) fn start_time(&self) -> SystemTime {
        self.record.as_ref().map_or(SystemTime::UNIX_EPOCH, |record| record.stream.start_time)
    }

    /// When its last byte had come; none if it has not.
    pub(super) fn request_end(&self) -> Option<Instant> {
        match &self.upload {
            Some(upload) => *upload.ended_at.lock(),
            None => self.record.as_ref()?.stream.request_end,
        }
    }

    /// Its progress; none if there was no body.
    pub(super) fn upload(&self) -> Option<Arc<Upload>> {
        self.upload.clone()
    }

    /// An answer was made here: over with it.
    pub(super) fn answered_here(&mut self, response: &Response<Body>) {
        let body_bytes = response.body().size_hint().exact().unwrap_or(0);
        self.answered(response.status(), response.headers());
        let record = self.record();
        record.stream.bytes_sent = body_bytes;
        record.wire_bytes_sent += body_bytes;
        self.finish();
    }

    /// An answer's head is about to be sent.
    pub(super) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        let record = self.record();
        record.response_code = status.as_u16();
        record.capture_response(headers);
        record.wire_bytes_sent = head_bytes(headers, status_line_bytes(status));
    }

    /// When a gRPC stream's messages are next to be counted; none for every other request.
    pub(super) fn message_reports(&mut self) -> Option<Box<Interval>> {
        let record = self.record();
        record.grpc_messages?;
        let interval = record.stream.chain.stats.as_ref()?.reporting_interval;
        let mut reports = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Some(Box::new(reports))
    }

    /// Counts the messages of a gRPC stream so far.
    pub(super) fn report_messages(&mut self) {
        let Some(record) = &mut self.record else { return };
        if let Some(upload) = &self.upload {
            upload.note_messages(record);
        }
        self.worker.with_telemetry(|telemetry| telemetry.report_messages(record));
    }

    /// A try has failed without an answer.
    pub(super) fn end_try(&mut self, failure: &UpstreamFailure) {
        match failure {
            UpstreamFailure::TryTimeout | UpstreamFailure::TryIdle | UpstreamFailure::RequestTimeout => self.record().try_canceled(true),
            UpstreamFailure::StreamIdle { .. }
            | UpstreamFailure::StreamTimeout { .. }
            | UpstreamFailure::UploadTimeout
            | UpstreamFailure::RequestBody(_) => self.record().try_canceled(false),
            _ => self.record().try_failed(failure.flag()),
        }
    }

    /// A limit has ended it.
    pub(super) fn expired(&mut self, expired: Expired) {
        let (flag, details) = expired.told();
        // Envoy says of a try whose answer has begun that it was late only where the time was the try's own.
        self.record().try_canceled(expired == Expired::TryIdle);
        self.cut(flag, details);
    }

    /// Its endpoint has ended it.
    fn reset(&mut self, flag: ResponseFlag, details: String) {
        self.record().try_failed(Some(flag));
        self.cut(Some(flag), details);
    }

    /// Why it ended before its end.
    fn cut(&mut self, flag: Option<ResponseFlag>, details: impl Into<Cow<'static, str>>) {
        let stream = &mut self.record().stream;
        if let Some(flag) = flag {
            stream.flags.insert(flag);
        }
        stream.details = Some(details.into());
    }

    /// Hands the record over. Later calls do nothing.
    pub(super) fn finish(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        self.client_reset = None;
        if let Some(upload) = &self.upload {
            let bytes = upload.bytes.load(Ordering::Relaxed);
            record.stream.request_end = *upload.ended_at.lock();
            record.stream.bytes_received += bytes;
            record.wire_bytes_received += bytes;
            upload.note_messages(&mut record);
        }
        record.stream.end = Some(Instant::now());
        self.worker.with_telemetry(|telemetry| telemetry.record_request(&mut record));
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let was_reset = self.record.is_some() && self.client_reset.as_ref().is_some_and(ClientReset::has_come);
        if let Some(record) = &mut self.record {
            let (flag, details) = if was_reset {
                (ResponseFlag::DownstreamRemoteReset, CLIENT_RESET)
            } else {
                (ResponseFlag::DownstreamConnectionTermination, "downstream_remote_disconnect")
            };
            record.stream.flags.insert(flag);
            record.stream.details = Some(details.into());
            record.try_canceled(false);
            self.finish();
        }
    }
}

/// How far the client's body has come.
#[derive(Debug, Default)]
pub(super) struct Upload {
    bytes: AtomicU64,
    messages: AtomicU64,
    has_ended: AtomicBool,
    ended: Notify,
    ended_at: Mutex<Option<Instant>>,
}

impl Upload {
    /// Whether the last byte has come.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// How much has come.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits for the last byte.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn ended(&self) {
        let notified = self.ended.notified();
        if !self.has_ended() {
            notified.await;
        }
    }

    fn note_messages(&self, record: &mut RequestRecord) {
        if let Some(messages) = &mut record.grpc_messages {
            messages.request = self.messages.load(Ordering::Relaxed);
        }
    }

    fn end(&self) {
        self.ended_at.lock().get_or_insert_with(Instant::now);
        self.has_ended.store(true, Ordering::Release);
        self.ended.notify_waiters();
    }
}

struct CountedUpload {
    inner: Body,
    upload: Arc<Upload>,
    /// Of gRPC requests whose chain counts messages.
    messages: Option<MessageCounter>,
    activity: Option<Arc<Activity>>,
}

impl HttpBody for CountedUpload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(context));
        if let Some(activity) = &this.activity {
            activity.touch();
        }
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.upload.bytes.fetch_add(bytes_of(data), Ordering::Relaxed);
            if let Some(messages) = &mut this.messages {
                this.upload.messages.fetch_add(messages.feed(data), Ordering::Relaxed);
            }
        }
        if frame.is_none() || this.inner.is_end_stream() {
            this.upload.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn bytes_of(data: &Bytes) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}

/// Counts gRPC's length-prefixed messages in a body: a flag byte, four bytes of length, the message.
#[derive(Debug, Default)]
pub(super) struct MessageCounter {
    prefix: [u8; 5],
    prefix_bytes: usize,
    left: u64,
}

impl MessageCounter {
    /// Messages that begin in `data`.
    pub(super) fn feed(&mut self, mut data: &[u8]) -> u64 {
        let mut begun = 0;
        while !data.is_empty() {
            let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(data.len());
            self.left -= u64::try_from(skipped).unwrap_or(self.left);
            data = &data[skipped..];
            let taken = data.len().min(self.prefix.len() - self.prefix_bytes);
            if self.left > 0 || taken == 0 {
                continue;
            }
            self.prefix[self.prefix_bytes..self.prefix_bytes + taken].copy_from_slice(&data[..taken]);
            self.prefix_bytes += taken;
            data = &data[taken..];
            if self.prefix_bytes == self.prefix.len() {
                let [_, length @ ..] = self.prefix;
                self.left = u64::from(u32::from_be_bytes(length));
                self.prefix_bytes = 0;
                begun += 1;
            }
        }
        begun
    }
}

/// What an answer's body keeps until its end.
pub(super) struct Held {
    /// The connection; goes back when the exchange is over.
    pub(super) lease: Lease,
    /// Counts as load of the endpoint until then.
    pub(super) _active: ActiveRequest,
    /// When a time limit passes.
    pub(super) expiry: Option<Expiry>,
}

/// An answer's body, recorded to its end.
pub(super) struct RecordedBody {
    inner: Body,
    recording: Recording,
    held: Option<Held>,
    messages: MessageCounter,
    /// When they are next reported.
    reports: Option<Box<Interval>>,
    /// From `content-length`; a codec does not ask for more once it is reached.
    expected: Option<u64>,
}

impl RecordedBody {
    /// Wraps an answer's body, or, when there is none, ends at once and hands out what is left of it.
    pub(super) fn attach(inner: Body, mut recording: Recording, held: Held, worker: &Worker) -> Body {
        if inner.is_end_stream() {
            recording.finish();
            worker.sessions.give_back(held.lease);
            return inner;
        }
        let expected = inner.size_hint().exact();
        let reports = recording.message_reports();
        Body::wrap(Self { inner, recording, held: Some(held), messages: MessageCounter::default(), reports, expected })
    }

    fn complete(&mut self) {
        if self.recording.record.is_some() {
            self.recording.finish();
            if let Some(held) = self.held.take() {
                self.recording.worker.sessions.give_back(held.lease);
            }
        }
    }

    fn fail(&mut self, error: BodyError) {
        const AFTER: &str = "upstream_reset_after_response_started";
        let (flag, details) = match error {
            BodyError::TimedOut => return self.expire(Expired::Request),
            BodyError::Reset(_) => (ResponseFlag::UpstreamRemoteReset, format!("{AFTER}{{remote_reset}}")),
            // The codec that Envoy has inside a tunnel sees an end too early there, however the tunnel ended.
            BodyError::Io(_) if self.is_http1_in_tunnel() => (ResponseFlag::UpstreamProtocolError, format!("{AFTER}{{protocol_error}}")),
            BodyError::Io(_) | BodyError::Abandoned => {
                (ResponseFlag::UpstreamConnectionTermination, format!("{AFTER}{{connection_termination}}"))
            }
            BodyError::Truncated | BodyError::Malformed | BodyError::TooLarge => {
                (ResponseFlag::UpstreamProtocolError, format!("{AFTER}{{protocol_error}}"))
            }
        };
        self.recording.reset(flag, details);
        self.end();
    }

    fn expire(&mut self, expired: Expired) {
        self.recording.expired(expired);
        self.end();
    }

    fn is_http1_in_tunnel(&mut self) -> bool {
        let record = self.recording.record();
        record.upstream_protocol == Some(HTTP1) && record.stream.upstream_local == Some(UpstreamLocal::Tunnel)
    }

    /// The answer ends before its end.
    fn end(&mut self) {
        self.recording.finish();
        // The connection is not used again: dropping the lease ends it.
        self.held = None;
    }

    fn note(&mut self, frame: &Frame<Bytes>) {
        if let Some(activity) = &self.recording.activity {
            activity.touch();
        }
        let record = self.recording.record();
        if let Some(data) = frame.data_ref() {
            record.stream.bytes_sent += bytes_of(data);
            record.wire_bytes_sent += bytes_of(data);
            if let Some(messages) = &mut record.grpc_messages {
                messages.response += self.messages.feed(data);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            record.capture_trailers(trailers);
            record.wire_bytes_sent += head_bytes(trailers, 0);
        }
    }
}

impl HttpBody for RecordedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let expiry = this.held.as_mut().and_then(|held| held.expiry.as_mut());
        if let Some(Poll::Ready(expired)) = expiry.map(|expiry| expiry.as_mut().poll(context)) {
            this.expire(expired);
            return Poll::Ready(Some(Err(BodyError::TimedOut)));
        }
        if let Some(reports) = &mut this.reports {
            while reports.poll_tick(context).is_ready() {
                this.recording.report_messages();
            }
        }
        match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
            Some(Ok(frame)) => {
                if this.recording.record.is_some() {
                    this.note(&frame);
                }
                if this.inner.is_end_stream() || frame.is_trailers() {
                    this.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                if this.recording.record.is_some() {
                    this.fail(error);
                }
                Poll::Ready(Some(Err(error)))
            }
            None => {
                this.complete();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        let sent = self.recording.record.as_ref().map(|record| record.stream.bytes_sent);
        if sent.is_some() && sent == self.expected {
            self.complete();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_a_body_is_cut() {
        let mut body = Vec::new();
        for length in [0_u32, 3, 300] {
            body.push(0);
            body.extend_from_slice(&length.to_be_bytes());
            body.extend(std::iter::repeat_n(7, usize::try_from(length).expect("small")));
        }
        for chunk in [1, 2, 5, 7, 64, body.len()] {
            let mut counter = MessageCounter::default();
            let counted: u64 = body.chunks(chunk).map(|data| counter.feed(data)).sum();
            assert_eq!(counted, 3, "in chunks of {chunk}");
        }
    }
}
