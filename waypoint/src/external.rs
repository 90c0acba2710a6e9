//! Asks an authorization service, through its cluster like any upstream.
//!
//! Not for: what it is told and what its answer means (`filters::ext_authz`), or what follows. Invariants: one call, and once more where
//! an idle connection turns out to have ended; whatever goes wrong is no answer; how many ask at a time, how long, and how much an
//! answer may hold are bounded.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use filters::ext_authz::{Answer, Facts, grpc_call, http_call, read_grpc, read_http};
use filters::timeout::write_grpc_timeout;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use model::ext_authz::{AuthzService, ExtAuthz, GrpcAuthz};
use model::route::Priority;

use crate::http::body::Body;
use crate::http::session::Protocol;
use crate::state::breaker::Resource;
use crate::state::health::{ActiveRequest, Verdict};
use crate::state::published::{ClusterEntry, ServedCluster};
use crate::upstream::balance::{self, Wish};
use crate::upstream::failure::UpstreamFailure;
use crate::upstream::pool::{Lease, Wanted};
use crate::worker::Worker;

/// The longest that a call may take; what istiod says where nobody said otherwise.
pub const CHECK_TIME_MAX: Duration = Duration::from_secs(600);
/// Bytes of an answer's body; a longer one is none.
const CHECK_ANSWER_BYTES_MAX: usize = 256 * 1024;

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const GRPC_STATUS: &str = "grpc-status";
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const X_ENVOY_UPSTREAM_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const X_ENVOY_EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// Why there is no answer, for operators.
type Cause = Cow<'static, str>;

/// Asks. `traced`: the headers by which the call belongs to the request's trace.
///
/// # Cancel safety
/// Dropping the future cancels the call.
pub async fn ask(worker: &Worker, filter: &ExtAuthz, facts: &Facts<'_>, traced: HeaderMap) -> Answer {
    let limit = filter.service.timeout().map_or(CHECK_TIME_MAX, |limit| limit.min(CHECK_TIME_MAX));
    let Ok(_permit) = worker.checks.try_acquire() else { return without_answer(filter, &"too many checks are under way".into()) };
    let asked = async {
        let Some(mut request) = question(filter, facts) else { return Err("the request cannot be said to the service".into()) };
        request.headers_mut().extend(traced);
        if let (Some(limit), Ok(milliseconds)) = (filter.service.timeout(), u64::try_from(limit.as_millis())) {
            request.headers_mut().insert(X_ENVOY_EXPECTED_TIMEOUT, HeaderValue::from(milliseconds));
            if matches!(filter.service, AuthzService::Grpc(_)) {
                request.headers_mut().insert(GRPC_TIMEOUT, write_grpc_timeout(limit));
            }
        }
        let whole = call(worker, filter.service.cluster(), request).await?;
        answer_of(filter, whole)
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(cause)) => without_answer(filter, &cause),
        Err(_elapsed) => without_answer(filter, &"it took too long".into()),
    }
}

/// Counts what came of it.
pub fn count(worker: &Worker, filter: &ExtAuthz, answer: &Answer) {
    let counters = worker.with_telemetry(|telemetry| telemetry.external.clone());
    match answer {
        Answer::Allowed(_) => counters.ok.inc(),
        Answer::Denied(_) => counters.denied.inc(),
        Answer::Unusable => counters.invalid.inc(),
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

async fn call(worker: &Worker, name: &str, request: Request<Bytes>) -> Result<Whole, Cause> {
    let Some(ClusterEntry::Served(cluster)) = worker.published.cluster(name) else { return Err("there is no such cluster".into()) };
    let entry = balance::choose(&cluster, &Wish::default(), || worker.draw()).ok_or("no healthy endpoint")?;
    let mut active = ActiveRequest::begin(&entry.state);
    let began = Instant::now();
    let sent = send(worker, &cluster, (&entry.endpoint, &mut active), request).await;
    let (response, lease) = match sent {
        Ok(sent) => sent,
        Err(failure) => {
            if let Some(verdict) = failure.verdict() {
                cluster.note(&entry, verdict);
            }
            return Err(failure.transport_reason().cloned().unwrap_or_else(|| failure.details()));
        }
    };
    cluster.note(&entry, Verdict::Answered(response.status().as_u16()));
    let mut whole = read(response).await?;
    // Where all headers of a refusal may reach the client, this one does as well, as from an Envoy.
    if let Ok(milliseconds) = u64::try_from(began.elapsed().as_millis()) {
        whole.head.headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME, HeaderValue::from(milliseconds));
    }
    worker.sessions.give_back(lease);
    Ok(whole)
}

/// One try, and once more where an idle connection turns out to have ended.
async fn send(
    worker: &Worker,
    cluster: &ServedCluster,
    (endpoint, active): (&model::endpoint::Endpoint, &mut ActiveRequest),
    request: Request<Bytes>,
) -> Result<(Response<Body>, Lease), UpstreamFailure> {
    let priority = Priority::default();
    let protocol = Protocol::of(cluster.cluster.protocol, request.version());
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let mut is_fresh = false;
    loop {
        let wanted = Wanted { cluster, endpoint, protocol, priority, host: host.as_deref() };
        let mut lease = match worker.sessions.at_hand(wanted, is_fresh) {
            Some(lease) => lease,
            None => Box::pin(worker.sessions.make(wanted, &worker.dialer)).await?,
        };
        match cluster.breakers.take(Resource::Request, priority) {
            Ok(permit) => active.hold(permit),
            Err(overflow) => {
                worker.sessions.give_back(lease);
                return Err(overflow.into());
            }
        }
        match lease.session.send(request.clone().map(Body::full), None).await {
            Ok(response) => return Ok((response, lease)),
            Err(error) if lease.is_reused && error.nothing_sent && !is_fresh => is_fresh = true,
            Err(error) => return Err(UpstreamFailure::from_send(error.kind, error.nothing_sent)),
        }
    }
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
