//! Asks an authorization service, through its cluster like any upstream.
//!
//! Not for: what it is told and what its answer means (`filters::ext_authz`), or what follows. Invariants: whatever goes wrong is
//! no answer; how many ask at a time, how long, and how much an answer may hold are bounded.

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

use crate::call::{self, verdict_of};
use crate::http::body::Body;
use crate::state::health::Verdict;
use crate::state::published::{ClusterEntry, ServedCluster};
use crate::state::table::EndpointEntry;
use crate::upstream::balance::{self, Wish};
use crate::upstream::failure::UpstreamFailure;
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
        let whole = ask_cluster(worker, filter.service.cluster(), request, limit).await?;
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

async fn ask_cluster(worker: &Worker, name: &str, request: Request<Bytes>, limit: Duration) -> Result<Whole, Cause> {
    let Some(ClusterEntry::Served(cluster)) = worker.published.cluster(name) else { return Err("there is no such cluster".into()) };
    let entry = balance::choose(&cluster, &Wish::default(), || worker.draw()).ok_or("no healthy endpoint")?;
    let began = Instant::now();
    let asked = exchange(worker, (&cluster, &entry), request);
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
