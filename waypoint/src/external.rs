//! Asks an authorization service, through its cluster like any upstream.
//!
//! Not for: what it is told and what its answer means (`filters::ext_authz`), or what follows. Invariants: what goes wrong there is
//! no answer, what goes wrong here is a refusal; how many ask at a time, how long, and how much an answer may hold are bounded.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use filters::ext_authz::{Answer, Facts, grpc_call, http_call, read_grpc, read_http};
use filters::timeout::write_grpc_timeout;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use model::cluster::UpstreamProtocol;
use model::ext_authz::{AuthzService, ExtAuthz, GrpcAuthz};
use model::route::Priority;
use parking_lot::Mutex;

use crate::call::{self, verdict_of};
use crate::http::body::Body;
use crate::http::normalize;
use crate::state::health::Verdict;
use crate::state::published::{ClusterEntry, ServedCluster};
use crate::state::table::EndpointEntry;
use crate::upstream::balance::{self, Wish};
use crate::upstream::failure::UpstreamFailure;
use crate::worker::Worker;

/// The longest that a call may take; what istiod says where nobody said otherwise.
pub const CHECK_TIME_MAX: Duration = Duration::from_secs(600);
/// Calls of one service that one worker has under way; what goes beyond is refused.
const CHECKS_MAX: u32 = 1024;
/// Bytes of an answer's body; a longer one is none.
const CHECK_ANSWER_BYTES_MAX: usize = 256 * 1024;

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const GRPC_STATUS: &str = "grpc-status";
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const X_ENVOY_UPSTREAM_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const X_ENVOY_EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// Why there is no answer, for operators.
type Cause = Cow<'static, str>;

/// How many calls are under way, by the cluster of their service: one that hangs takes nothing from others.
#[derive(Debug, Default)]
pub struct Checks(Mutex<HashMap<Arc<str>, u32>>);

impl Checks {
    /// Takes a place; none if there is none.
    fn take(&self, cluster: &Arc<str>) -> Option<Place<'_>> {
        let mut counts = self.0.lock();
        let count = counts.entry(Arc::clone(cluster)).or_default();
        if *count >= CHECKS_MAX {
            return None;
        }
        *count += 1;
        Some(Place { of: self, cluster: Arc::clone(cluster) })
    }
}

/// A call that is under way.
struct Place<'a> {
    of: &'a Checks,
    cluster: Arc<str>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock();
        let Some(count) = counts.get_mut(&self.cluster) else { return };
        *count -= 1;
        if *count == 0 {
            counts.remove(&self.cluster);
        }
    }
}

/// Asks, for `time_max` at most. `traced`: the headers by which the call belongs to the request's trace.
///
/// # Cancel safety
/// Dropping the future cancels the call.
pub async fn ask(worker: &Worker, filter: &ExtAuthz, facts: &Facts<'_>, (traced, time_max): (HeaderMap, Duration)) -> Answer {
    let limit = filter.service.timeout().map_or(time_max, |limit| limit.min(time_max));
    let Some(_place) = worker.checks.take(filter.service.cluster()) else { return Answer::Overloaded };
    let asked = async {
        // What a caller makes unaskable is no failure of the service, which may let pass.
        let Some(request) = question(filter, facts) else { return Ok(Answer::Unusable) };
        let name = filter.service.cluster();
        let Some(ClusterEntry::Served(cluster)) = worker.published.cluster(name) else { return Err("there is no such cluster".into()) };
        let Some(mut request) = sayable(request, cluster.cluster.protocol) else { return Ok(Answer::Unusable) };
        request.headers_mut().extend(traced);
        if let (Some(limit), Ok(milliseconds)) = (filter.service.timeout(), u64::try_from(limit.as_millis())) {
            request.headers_mut().insert(X_ENVOY_EXPECTED_TIMEOUT, HeaderValue::from(milliseconds));
            if matches!(filter.service, AuthzService::Grpc(_)) {
                request.headers_mut().insert(GRPC_TIMEOUT, write_grpc_timeout(limit));
            }
        }
        let whole = ask_cluster(worker, &cluster, request, limit).await?;
        answer_of(filter, whole)
    };
    asked.await.unwrap_or_else(|cause: Cause| without_answer(filter, &cause))
}

/// Counts what came of it.
pub fn count(worker: &Worker, filter: &ExtAuthz, answer: &Answer) {
    let counters = worker.with_telemetry(|telemetry| telemetry.external.clone());
    match answer {
        Answer::Allowed(_) => counters.ok.inc(),
        Answer::Denied(_) => counters.denied.inc(),
        Answer::Unusable => counters.invalid.inc(),
        Answer::Overloaded => counters.overloaded.inc(),
        Answer::Failed(_) => {
            counters.error.inc();
            if filter.on_failure.allows {
                counters.failure_mode_allowed.inc();
            }
        }
    }
}

fn without_answer(filter: &ExtAuthz, cause: &Cause) -> Answer {
    tracing::debug!(filter = &*filter.name, cluster = &**filter.service.cluster(), %cause, "no answer of an authorization service");
    Answer::none()
}

fn question(filter: &ExtAuthz, facts: &Facts<'_>) -> Option<Request<Bytes>> {
    match (&filter.service, &facts.http) {
        (AuthzService::Grpc(grpc), _) => Some(grpc_question(grpc, grpc_call(&filter.told, facts))),
        (AuthzService::Http(service), Some(http)) => http_call(filter, service, http),
        (AuthzService::Http(_), None) => None,
    }
}

fn grpc_question(grpc: &GrpcAuthz, message: Bytes) -> Request<Bytes> {
    let mut request = Request::new(message);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from(PathAndQuery::from_static(CHECK));
    let headers = request.headers_mut();
    headers.insert(header::HOST, grpc.authority.clone());
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request
}

/// An answer, read to its end.
struct Whole {
    head: http::response::Parts,
    body: Bytes,
    trailers: HeaderMap,
}

fn answer_of(filter: &ExtAuthz, whole: Whole) -> Result<Answer, Cause> {
    match &filter.service {
        AuthzService::Http(service) => match read_http(service, whole.head.status.as_u16(), &whole.head.headers, whole.body) {
            Answer::Failed(_) => Err(format!("it answered {}", whole.head.status).into()),
            answer => Ok(answer),
        },
        AuthzService::Grpc(_) => {
            let status = whole.trailers.get(GRPC_STATUS).or_else(|| whole.head.headers.get(GRPC_STATUS));
            match status.map(HeaderValue::as_bytes) {
                Some(b"0") if whole.head.status == StatusCode::OK => Ok(read_grpc(&whole.body)),
                Some(status) => Err(format!("the call ended with gRPC status {}", String::from_utf8_lossy(status)).into()),
                None => Err(format!("it answered {} without a gRPC status", whole.head.status).into()),
            }
        }
    }
}

/// A request as it is, if it can be said in a cluster's protocol: not every host of HTTP/1.1 is an `:authority`.
fn sayable(request: Request<Bytes>, protocol: UpstreamProtocol) -> Option<Request<Bytes>> {
    let (parts, body) = request.into_parts();
    let is_sayable = protocol != UpstreamProtocol::Http2 || normalize::target_http2(&parts).is_ok();
    is_sayable.then(|| Request::from_parts(parts, body))
}

async fn ask_cluster(worker: &Worker, cluster: &ServedCluster, request: Request<Bytes>, limit: Duration) -> Result<Whole, Cause> {
    let entry = balance::choose(cluster, &Wish::default(), || worker.draw()).ok_or("no healthy endpoint")?;
    let began = Instant::now();
    let asked = exchange(worker, (cluster, &entry), request);
    let (verdict, answer) = match tokio::time::timeout(limit, asked).await {
        Ok(Ok((verdict, whole))) => (Some(verdict), whole),
        Ok(Err(failure)) => (failure.verdict(), Err(failure.transport_reason().cloned().unwrap_or_else(|| failure.details()))),
        Err(_elapsed) => (Some(Verdict::TimedOut), Err("it took too long".into())),
    };
    if let Some(verdict) = verdict {
        cluster.note(&entry, verdict);
    }
    let mut whole = answer?;
    // Where all headers of a refusal may reach the client, this one does as well, as from an Envoy.
    if let Ok(milliseconds) = u64::try_from(began.elapsed().as_millis()) {
        whole.head.headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME, HeaderValue::from(milliseconds));
    }
    Ok(whole)
}

async fn exchange(
    worker: &Worker,
    to: (&ServedCluster, &EndpointEntry),
    request: Request<Bytes>,
) -> Result<(Verdict, Result<Whole, Cause>), UpstreamFailure> {
    let (response, holding) = call::send(worker, to, request.map(Body::full), Priority::default()).await?;
    let verdict = verdict_of(&response);
    let whole = read(response).await;
    if whole.is_ok() {
        holding.give_back(worker);
    }
    Ok((verdict, whole))
}

async fn read(response: Response<Body>) -> Result<Whole, Cause> {
    let (head, mut body) = response.into_parts();
    let (mut bytes, mut trailers) = (BytesMut::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| error.to_string())?.into_data() {
            Ok(data) if bytes.len() + data.len() > CHECK_ANSWER_BYTES_MAX => return Err("its answer is too long".into()),
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    Ok(Whole { head, body: bytes.freeze(), trailers })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_service_that_hangs_takes_no_place_of_another() {
        let checks = Checks::default();
        let (slow, quick) = (Arc::from("slow"), Arc::from("quick"));
        let mut held: Vec<_> = (0..CHECKS_MAX).map(|_| checks.take(&slow).unwrap()).collect();
        assert!(checks.take(&slow).is_none());
        assert!(checks.take(&quick).is_some());
        held.pop();
        assert!(checks.take(&slow).is_some());
        drop(held);
        assert!(checks.0.lock().is_empty(), "what is over leaves nothing");
    }

    #[test]
    fn a_host_that_http_2_cannot_say_is_not_asked_about() {
        let ask = |host: &str, protocol| {
            let request = Request::builder().uri("/a").header(header::HOST, host).body(Bytes::new()).unwrap();
            sayable(request, protocol).is_some()
        };
        for (host, protocol, expected) in
            [("a%62", UpstreamProtocol::Http2, false), ("a%62", UpstreamProtocol::Http1, true), ("ab:80", UpstreamProtocol::Http2, true)]
        {
            assert_eq!(ask(host, protocol), expected, "{host} {protocol:?}");
        }
    }
}
