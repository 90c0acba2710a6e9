//! The part of a chain that may have to ask an authorization service: what it reads of the request, and what comes of the answers.
//!
//! Invariants: nothing goes on before the answer; without one a request passes only where that is configured. What was read of a body
//! goes upstream as it came.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use filters::chain::Selected;
use filters::ext_authz::{Allowed, Answer, Facts, HttpFacts, Peer, Progress, Shown, Step, apply};
use filters::timeout::TimeLimits;
use http::header::{self, HeaderMap, HeaderName};
use http::uri::PathAndQuery;
use http::{StatusCode, request};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use model::chain::HttpChain;
use model::ext_authz::{BodyShown, ExtAuthz, RouteExternal};
use model::refusal::{PolicyRule, Refusal, RefusedBy};
use telemetry::costs::{Kept, Owner};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits;
use super::reply::LocalReply;
use super::{Run, head_bytes, head_of, policy_input, protocol_name};
use crate::external;
use crate::http::body::{Body, BodyError};
use crate::http::normalize::UpgradeRequested;
use crate::policies;
use crate::upstream::failure::UpstreamFailure;

/// How long a body that is to be shown may take to come.
const CHECK_BODY_TIME_MAX: Duration = Duration::from_secs(60);
/// What of a request's body counts as one unit of those that wait.
pub const CHECK_BODY_UNIT_BYTES: usize = 1024;

const FAILURE_MODE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");

/// A request on its way through the early part.
struct Asking<'a> {
    http: &'a HttpChain,
    body: Body,
    shown: Option<Shown>,
    selected: Selected<'a>,
}

impl<'a> Asking<'a> {
    /// What the route says of a filter.
    fn of_route(&self, filter: &ExtAuthz) -> Option<&'a RouteExternal> {
        let (_, route) = self.selected?;
        route.external_of(filter)
    }
}

impl Run {
    /// Passes what of a chain comes before tokens and policies: the route that was chosen, or the answer. The body stays whole.
    pub(super) async fn pass_early<'a>(
        &mut self,
        (http, chosen): (&'a HttpChain, Option<Selected<'a>>),
        parts: &mut request::Parts,
        body: &mut Body,
    ) -> Result<Selected<'a>, Box<LocalReply>> {
        let chain = &http.options.timeouts;
        let limits = TimeLimits { idle: chain.idle, stream: chain.stream, upload: chain.upload, ..TimeLimits::default() };
        let activity = limits.idle.map(|_| self.recording.watch_activity());
        let counted = self.recording.count_upload(std::mem::take(body));
        let upload = self.recording.upload();
        let selected = chosen.unwrap_or_else(|| filters::route::select(&http.routes, &head_of(parts)));
        let mut asking = Asking { http, body: counted, shown: None, selected };
        let passed = match limits::expiry(&limits, upload.clone(), activity) {
            None => self.judge_early(&mut asking, parts).await,
            Some(expiry) => tokio::select! {
                biased;
                passed = self.judge_early(&mut asking, parts) => passed,
                expired = expiry => {
                    let failure = expired.failure(upload.is_none_or(|upload| upload.has_ended()));
                    Err(LocalReply::failure(&failure, 503, false).into())
                }
            },
        };
        match passed {
            Ok(()) => {
                *body = asking.body;
                Ok(asking.selected)
            }
            Err(reply) => {
                if let Some((_, route)) = asking.selected {
                    self.note_route(route);
                }
                Err(reply)
            }
        }
    }

    async fn judge_early(&mut self, asking: &mut Asking<'_>, parts: &mut request::Parts) -> Result<(), Box<LocalReply>> {
        let mut progress = Progress::new(&asking.http.early);
        let forwarded_for = self.recording.record().forwarded_for;
        loop {
            let input = policy_input((&self.tunnel, forwarded_for), parts, None);
            let step = progress.next(&input, || self.worker.draw());
            policies::note(&std::mem::take(&mut progress.decisions), &input, &mut self.recording.record().stream, &self.worker);
            match step {
                Step::Passed => return Ok(()),
                Step::Denied(by) => return Err(LocalReply::denied(by.policy()).into()),
                Step::Unasked(filter) | Step::Ask(filter, _) if asking.of_route(filter).is_some_and(|route| route.is_off) => {}
                Step::Unasked(filter) => {
                    let reply = LocalReply::external_failed(filter.on_failure.status, None);
                    return Err(self.refused_by_service(None, reply.into()));
                }
                // Where there is no route and tokens cannot change that, the answer is 404 whatever the service says (Envoy).
                Step::Ask(..) if asking.selected.is_none() && asking.http.jwt.is_none() => {}
                Step::Ask(filter, policy) => {
                    let passed = self.ask(filter, asking, parts).await;
                    policies::note_external(policy.as_ref(), passed.is_err(), &self.worker);
                    if let Err(reply) = passed {
                        return Err(self.refused_by_service(policy.as_deref(), reply));
                    }
                }
            }
        }
    }

    /// Notes that a service refused, or did not answer, which was asked because of this policy.
    fn refused_by_service(&mut self, policy: Option<&str>, reply: Box<LocalReply>) -> Box<LocalReply> {
        let (rule, detail) = (policy.map(PolicyRule::of), Some(reply.details().to_owned().into()));
        self.recording.record().stream.refusal = Some(Box::new(Refusal { rule, detail, ..Refusal::new(RefusedBy::External) }));
        reply
    }

    async fn ask(&mut self, filter: &ExtAuthz, asking: &mut Asking<'_>, parts: &mut request::Parts) -> Result<(), Box<LocalReply>> {
        let began = Instant::now();
        let answer = match self.show(filter, asking, parts).await? {
            true => self.answer_of(filter, (asking.of_route(filter), asking.shown.as_ref()), parts).await,
            false => Answer::Overloaded,
        };
        self.recording.waited_since(began);
        let answer = match answer {
            Answer::Allowed(allowed) if self.change(&allowed, parts, asking.http).is_none() => Answer::Unusable,
            answer => answer,
        };
        external::count(&self.worker, filter, &answer);
        match answer {
            Answer::Allowed(allowed) => {
                if filter.chooses_route_anew && !allowed.is_unchanged() {
                    asking.selected = filters::route::select(&asking.http.routes, &head_of(parts));
                }
                self.back.extend(allowed.response);
                Ok(())
            }
            Answer::Denied(refusal) => Err(LocalReply::external_denied(refusal, filter.denied_body_bytes_max).into()),
            Answer::Unusable => Err(LocalReply::external_invalid().into()),
            Answer::Overloaded => Err(LocalReply::external_overloaded().into()),
            Answer::Failed(_) if filter.on_failure.allows => {
                if filter.on_failure.adds_header {
                    parts.headers.append(FAILURE_MODE_ALLOWED, http::HeaderValue::from_static("true"));
                }
                Ok(())
            }
            Answer::Failed(refusal) => Err(LocalReply::external_failed(filter.on_failure.status, Some(refusal)).into()),
        }
    }

    /// Reads of the body what the service is to see. False: there is no room to keep it.
    async fn show(&self, filter: &ExtAuthz, asking: &mut Asking<'_>, parts: &request::Parts) -> Result<bool, Box<LocalReply>> {
        asking.shown = None;
        let route = asking.of_route(filter);
        let wanted = route.and_then(|route| route.body).or(filter.told.body).filter(|_| !route.is_some_and(|route| route.hides_body));
        let Some(wanted) = wanted else { return Ok(true) };
        // So it is of an upgrade, too: what follows that is no body.
        if asking.body.is_end_stream() {
            return Ok(true);
        }
        // Nobody upstream will ask for the body before it is read.
        if parts.headers.contains_key(header::EXPECT) {
            self.interim.send(StatusCode::CONTINUE, &HeaderMap::new());
        }
        let mut read = Read::of(std::mem::take(&mut asking.body), Kept::new(&self.worker.costs, Owner::Authorization));
        match read.until(wanted, &self.worker.check_bodies).await {
            Ok(()) => {
                let (shown, body) = read.shown(wanted.bytes_max);
                (asking.shown, asking.body) = (Some(shown), body);
                Ok(true)
            }
            Err(NotRead::TooLong) => Err(LocalReply::payload_too_large().into()),
            Err(NotRead::NoRoom) => Ok(false),
            Err(NotRead::Late) => Err(LocalReply::failure(&UpstreamFailure::UploadTimeout, 503, false).into()),
            Err(NotRead::Broken(error)) => Err(LocalReply::failure(&UpstreamFailure::RequestBody(error), 503, false).into()),
        }
    }

    async fn answer_of(
        &self,
        filter: &ExtAuthz,
        (route, shown): (Option<&RouteExternal>, Option<&Shown>),
        parts: &request::Parts,
    ) -> Answer {
        let connection = &self.tunnel.connection;
        let (id, head) = (self.worker.draw(), head_of(parts));
        let http = HttpFacts {
            head,
            protocol: protocol_name(parts.version),
            time: self.recording.start_time(),
            id,
            size: self.recording.upload().map_or(0, |upload| upload.bytes()),
            shown,
            upgrade: parts.extensions.get::<UpgradeRequested>().map(|UpgradeRequested(protocol)| protocol.as_bytes()),
            context: route.map_or(&[], |route| &route.context),
        };
        let facts = Facts {
            source: Peer { address: Some(connection.peer_address), principal: connection.peer.as_str() },
            destination: Peer { address: self.tunnel.target.address(), principal: connection.local.as_str() },
            http: Some(http),
        };
        let mut traced = HeaderMap::new();
        if let Some(tracing) = &self.served.telemetry.tracing {
            let names = telemetry::trace::headers(tracing).iter();
            traced.extend(names.filter_map(|name| parts.headers.get(name).map(|value| (name.clone(), value.clone()))));
        }
        external::ask(&self.worker, filter, &facts, (traced, external::CHECK_TIME_MAX)).await
    }

    /// Makes the changes to a request; none if one of them cannot be made.
    fn change(&mut self, allowed: &Allowed, parts: &mut request::Parts, http: &HttpChain) -> Option<()> {
        if allowed.is_unchanged() {
            return Some(());
        }
        apply(&allowed.request, &mut parts.headers);
        for name in &allowed.removed {
            parts.headers.remove(name);
        }
        let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
        if let Some(path) = allowed.path(path).ok()? {
            parts.uri = super::token::with_path(&parts.uri, path)?;
        }
        let record = self.recording.record();
        if let Some(head) = &mut record.head {
            head.path = parts.uri.path_and_query().cloned();
        }
        record.capture_request(&parts.headers);
        // A request that no client could have sent is not sent either (Envoy).
        let bytes_max = u64::try_from(http.options.header_bytes_max).unwrap_or(u64::MAX);
        (head_bytes(&parts.headers, 0) <= bytes_max).then_some(())
    }
}

/// Why a body could not be shown.
#[derive(Debug, PartialEq, Eq)]
enum NotRead {
    /// It is longer than it may be.
    TooLong,
    /// Too much of others' bodies is kept.
    NoRoom,
    /// It takes too long to come.
    Late,
    /// Its sender failed.
    Broken(BodyError),
}

/// A body while its beginning is read: in one piece, however it comes, so that what is kept is what is counted.
struct Read {
    data: BytesMut,
    trailers: Option<HeaderMap>,
    rest: Body,
    has_ended: bool,
    kept: Option<OwnedSemaphorePermit>,
    counted: Kept,
}

impl Read {
    fn of(rest: Body, counted: Kept) -> Self {
        Self { data: BytesMut::new(), trailers: None, rest, has_ended: false, kept: None, counted }
    }

    /// Reads on until there is enough, or nothing more.
    async fn until(&mut self, wanted: BodyShown, room: &Arc<Semaphore>) -> Result<(), NotRead> {
        let enough = async {
            loop {
                let is_enough = wanted.allows_partial && self.data.len() >= wanted.bytes_max;
                self.has_ended |= self.rest.is_end_stream();
                if is_enough || self.has_ended {
                    return Ok(());
                }
                let Some(frame) = self.rest.frame().await else {
                    self.has_ended = true;
                    return Ok(());
                };
                match frame.map_err(NotRead::Broken)?.into_data() {
                    Ok(data) if data.len() > wanted.bytes_max.saturating_sub(self.data.len()) && !wanted.allows_partial => {
                        return Err(NotRead::TooLong);
                    }
                    Ok(data) => self.keep(&data, room)?,
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.has_ended = true;
                    }
                }
            }
        };
        tokio::time::timeout(CHECK_BODY_TIME_MAX, enough).await.unwrap_or(Err(NotRead::Late))
    }

    fn keep(&mut self, data: &[u8], room: &Arc<Semaphore>) -> Result<(), NotRead> {
        let units = (self.data.len() + data.len()).div_ceil(CHECK_BODY_UNIT_BYTES);
        let more = units - self.data.len().div_ceil(CHECK_BODY_UNIT_BYTES);
        if more > 0 {
            let more = u32::try_from(more).map_err(|_| NotRead::NoRoom)?;
            let permit = Arc::clone(room).try_acquire_many_owned(more).map_err(|_| NotRead::NoRoom)?;
            match &mut self.kept {
                Some(kept) => kept.merge(permit),
                None => self.kept = Some(permit),
            }
        }
        self.data.extend_from_slice(data);
        self.counted.add(data.len());
        Ok(())
    }

    /// What is shown, and the body as it came.
    fn shown(self, bytes_max: usize) -> (Shown, Body) {
        let Self { data, trailers, rest, has_ended, kept, counted } = self;
        let ahead = data.freeze();
        let is_partial = ahead.len() > bytes_max || !has_ended;
        let shown = Shown { bytes: ahead.slice(..ahead.len().min(bytes_max)), is_partial };
        // What remains says how the body was framed, even where it is nothing.
        let is_nothing = ahead.is_empty() && trailers.is_none() && rest.is_end_stream();
        (shown, if is_nothing { Body::empty() } else { Body::wrap(Whole { ahead, trailers, rest, kept, counted }) })
    }
}

/// A body of which the beginning was read.
struct Whole {
    ahead: Bytes,
    trailers: Option<HeaderMap>,
    rest: Body,
    kept: Option<OwnedSemaphorePermit>,
    counted: Kept,
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.ahead.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.ahead)))));
        }
        self.kept = None;
        self.counted.clear();
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut self.rest).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = u64::try_from(self.ahead.len()).unwrap_or(u64::MAX);
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(ahead));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(ahead)) {
            hint.set_upper(upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::collections::VecDeque;

    use telemetry::costs::WorkerCosts;

    use super::*;

    /// Frames that come at once; then the end, or silence.
    struct Frames(VecDeque<Frame<Bytes>>, bool);

    impl HttpBody for Frames {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            match self.0.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None if self.1 => Poll::Ready(None),
                None => Poll::Pending,
            }
        }
    }

    fn body(pieces: &[&'static str], ends: bool) -> Read {
        let frames = pieces.iter().map(|piece| Frame::data(Bytes::from_static(piece.as_bytes()))).collect();
        Read::of(Body::wrap(Frames(frames, ends)), Kept::new(&WorkerCosts::unread(), Owner::Authorization))
    }

    const fn up_to(bytes_max: usize, allows_partial: bool) -> BodyShown {
        BodyShown { bytes_max, allows_partial }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_in_small_pieces_takes_the_room_of_its_bytes_and_no_more_time_than_a_limit() {
        let room = Arc::new(Semaphore::new(2));
        let mut read = body(&["x"; 2000], false);
        assert_eq!(read.until(up_to(10_000, true), &room).await, Err(NotRead::Late));
        assert_eq!((read.data.len(), room.available_permits()), (2000, 0));
        assert_eq!(body(&["y"], true).until(up_to(10_000, true), &room).await, Err(NotRead::NoRoom));
        drop(read);
        assert_eq!(room.available_permits(), 2);
    }

    #[tokio::test]
    async fn a_body_is_shown_as_whole_only_once_its_end_is_known() {
        let room = Arc::new(Semaphore::new(9));
        for (pieces, ends, expected) in [
            (&["0123"][..], true, ("0123", false)),
            (&["01", "23", "4567"][..], false, ("01234", true)),
            (&["01234"][..], false, ("01234", true)),
        ] {
            let mut read = body(pieces, ends);
            read.until(up_to(5, true), &room).await.unwrap();
            let (shown, _body) = read.shown(5);
            assert_eq!((&shown.bytes[..], shown.is_partial), (expected.0.as_bytes(), expected.1));
        }
        assert_eq!(body(&["012", "345"], true).until(up_to(5, false), &room).await, Err(NotRead::TooLong));
    }

    #[tokio::test]
    async fn what_was_read_goes_on_as_it_came() {
        let room = Arc::new(Semaphore::new(9));
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("x-end"), http::HeaderValue::from_static("1"))]);
        let frames = [Frame::data(Bytes::from_static(b"01")), Frame::data(Bytes::from_static(b"2")), Frame::trailers(trailers.clone())];
        for bytes_max in [1, 3, 9] {
            let frames = frames.iter().map(|frame| match frame.data_ref() {
                Some(data) => Frame::data(data.clone()),
                None => Frame::trailers(trailers.clone()),
            });
            let mut read = Read::of(Body::wrap(Frames(frames.collect(), true)), Kept::new(&WorkerCosts::unread(), Owner::Authorization));
            read.until(up_to(bytes_max, true), &room).await.unwrap();
            let whole = read.shown(bytes_max).1.collect().await.unwrap();
            assert_eq!(whole.trailers(), Some(&trailers), "{bytes_max}");
            assert_eq!(&whole.to_bytes()[..], b"012", "{bytes_max}");
        }
        assert_eq!(room.available_permits(), 9);
    }
}
