//! Sends a request upstream: endpoint, connection, tries, time limits; then the answer on its way back.
//!
//! Not for: which results are tried again (`filters::retry`). Invariants: a request whose bytes may have arrived is sent
//! again only if the policy names that result; the body is sent again only if all of it was kept.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use filters::hash::Hashed;
use filters::retry::{TryResult, back_off, has_header, is_meant, told_back_off, wants_retry};
use filters::timeout::TimeLimits;
use http::header::HeaderValue;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, Version, request};
use http_body::Body as _;
use model::chain::{HttpChain, ServerHeader};
use model::endpoint::EndpointAddress;
use model::flags::ResponseFlag;
use model::retry::RetryPolicy;
use model::route::{Forward, Priority, Route, WeightedCluster};
use model::subset::Label;
use smallvec::SmallVec;
use telemetry::costs::{Kept, Owner, RetryReason};
use telemetry::trace::TraceContext;
use tokio::time::Interval;

use super::edits;
use super::limits::{self, Activity, Expiry};
use super::mirror;
use super::named_host::known_host;
use super::recording::{Held, RecordedBody, Recording};
use super::replay::Replay;
use super::reply::LocalReply;
use super::size::upgrade_bytes;
use super::time_limits::{limits_told, tell_limits};
use super::trailers;
use super::{Run, X_ENVOY_DECORATOR_OPERATION, X_ENVOY_UPSTREAM_SERVICE_TIME};
use crate::call::{grpc_status, verdict_of};
use crate::http::body::{Body, BodyError};
use crate::http::session::{Abort, Protocol};
use crate::http::upgrade::{self, Bounds};
use crate::state::breaker::{Permit, Resource};
use crate::state::by_host::KnownHost;
use crate::state::health::{ActiveRequest, Verdict};
use crate::state::published::{ClusterEntry, ServedCluster};
use crate::state::table::EndpointEntry;
use crate::upstream::balance::{self, Wish};
use crate::upstream::failure::UpstreamFailure;
use crate::upstream::pool::{Lease, Wanted};

const X_ENVOY_RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// What the filters decided.
pub(super) struct Forwarding<'a> {
    pub(super) route: &'a Arc<Route>,
    pub(super) http: &'a HttpChain,
    pub(super) forward: &'a Forward,
}

/// An answer's head, and what it holds.
struct Answered {
    response: Response<Body>,
    lease: Lease,
    active: ActiveRequest,
}

/// Forwards a request and answers it, whatever comes of it.
pub(super) async fn forward(mut run: Run, mut parts: request::Parts, body: Body, to: &Forwarding<'_>) -> Result<Response<Body>, Abort> {
    let (name, share) = filters::route::choose_cluster(&to.forward.clusters, run.worker.draw());
    let entry = run.worker.published.cluster(name);
    run.recording.note_cluster(name, entry.as_ref());
    let cluster = match entry {
        Some(ClusterEntry::Served(cluster)) => cluster,
        Some(ClusterEntry::Refused(_)) => return Ok(fail(run, &UpstreamFailure::ClusterRejected, to, false)),
        None => return Ok(fail(run, &UpstreamFailure::ClusterNotFound, to, false)),
    };
    if edits::edit(&mut run, &mut parts, to, share).is_err() {
        return Ok(run.reply(LocalReply::no_path()));
    }
    let is_http1 = parts.version != Version::HTTP_2;
    let known_host = match known_host(&mut run, (&parts, body.is_end_stream()), to, &cluster).await {
        Ok(known_host) => known_host,
        Err(failure) => return Ok(fail(run, &failure, to, false)),
    };
    let limits = limits_told(&mut run, &mut parts, to);
    let tells = !to.http.options.suppresses_envoy_headers;
    let try_idle = to.forward.retry.as_ref().and_then(|policy| policy.per_try_idle_timeout);
    let activity = limits.idle.or(try_idle).map(|_| run.recording.watch_activity());
    let try_idle = try_idle.zip(activity.clone());
    let subset = share.map_or(&to.forward.subset, |share| &share.subset);
    let body = mirror::start(&run, &parts, body, (to.forward, subset), limits.request);
    let body = run.recording.count_upload(body);
    let upload = run.recording.upload();
    let mut expiry = limits::expiry(&limits, upload.clone(), activity);
    let hashed = hashed(&run, &parts, to, &cluster);
    let asked = run.asked.as_ref().and_then(|asked| asked.policy(to.forward.retry.as_ref()));
    let retry = asked
        .as_ref()
        .or(to.forward.retry.as_ref())
        .filter(|policy| policy.request_headers.is_empty() || is_meant(policy, &super::head_of(&parts)));
    let (priority, hash) = (to.forward.priority, hashed.hash);
    let policy = Policy { retry, limits, tells, try_idle: try_idle.clone(), priority, hash, subset, known_host };
    let mut tries = Tries::new(&mut run, &cluster, parts, body, policy);
    let outcome = match &mut expiry {
        None => tries.run().await,
        Some(expiry) => tokio::select! {
            biased;
            outcome = tries.run() => outcome,
            expired = expiry => Err(expired.failure(upload.is_none_or(|upload| upload.has_ended()))),
        },
    };
    if let Err(failure) = &outcome {
        // A limit on the whole passed during a try.
        tries.note(failure.verdict());
        tries.run.recording.end_try(failure);
    }
    let was_retried = tries.retries > 0;
    match outcome {
        Ok(mut answered) => {
            for cookie in hashed.cookies {
                answered.response.headers_mut().append(http::header::SET_COOKIE, cookie);
            }
            let web = run.web;
            let response = pass_on(run, answered, to, share, limits::with_try(expiry, try_idle));
            match web {
                None => Ok(response),
                Some(web) => Ok(Box::pin(super::web::answer(web, response)).await),
            }
        }
        // HTTP/2 has a way to say it; in HTTP/1.1 an answer is the only one (RFC 9112 §7.1).
        Err(failure @ UpstreamFailure::RequestBody(BodyError::Malformed)) if is_http1 => Ok(fail(run, &failure, to, was_retried)),
        Err(UpstreamFailure::RequestBody(error)) => Err(error.into()),
        Err(failure) => Ok(fail(run, &failure, to, was_retried)),
    }
}

/// Waits for the answer to a gRPC request, and counts its messages meanwhile: a client may send for hours before there is one.
async fn counting<T>(recording: &mut Recording, mut reports: Box<Interval>, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            _ = reports.tick() => recording.report_messages(),
        }
    }
}

fn fail(mut run: Run, failure: &UpstreamFailure, to: &Forwarding<'_>, was_retried: bool) -> Response<Body> {
    run.recording.record().stream.failure_reason = failure.transport_reason().cloned();
    let mut reply = LocalReply::failure(failure, to.forward.cluster_not_found_status, was_retried);
    if run.asked.as_ref().is_some_and(|asked| asked.no_content) && failure.is_upstream_timeout() {
        reply = reply.with_no_content();
    }
    run.reply_edited(reply, &to.route.response_headers)
}

/// The request's hash, where it is what chooses the endpoint.
fn hashed(run: &Run, parts: &request::Parts, to: &Forwarding<'_>, cluster: &ServedCluster) -> Hashed {
    if to.forward.hash.is_empty() || !cluster.cluster.balance.is_hashing() {
        return Hashed::default();
    }
    filters::hash::of_request(&to.forward.hash, &super::head_of(parts), run.tunnel.connection.peer_address.ip(), run.worker.draw())
}

/// What the tries of one request obey.
struct Policy<'a> {
    retry: Option<&'a RetryPolicy>,
    limits: TimeLimits,
    /// Whether the upstream is told how long it has.
    tells: bool,
    /// How long a try may be silent.
    try_idle: Option<(Duration, Arc<Activity>)>,
    priority: Priority,
    hash: Option<u64>,
    /// Which subset of the cluster.
    subset: &'a [Label],
    known_host: Option<Arc<KnownHost>>,
}

/// The tries of one request.
struct Tries<'a> {
    run: &'a mut Run,
    cluster: &'a Arc<ServedCluster>,
    protocol: Protocol,
    policy: Policy<'a>,
    began: Instant,
    parts: Option<request::Parts>,
    /// Of the request, where its endpoint or a transport depends on it.
    host: Option<Box<str>>,
    body: Source,
    avoid: SmallVec<[EndpointAddress; 4]>,
    /// Priorities of the endpoints tried.
    priorities: SmallVec<[u32; 4]>,
    /// The endpoint of a try that has not ended, where it matters how it ends.
    trying: Option<EndpointEntry>,
    retries: u32,
    /// What the endpoint of the try is told of its span.
    told: Option<TraceContext>,
    /// Since when others are waited for.
    waiting: Option<Instant>,
    /// Counts the retry until there is an answer.
    retry_permit: Option<Permit>,
}

/// The request's body for the next try.
enum Source {
    Empty,
    Once(Option<Body>),
    Replay(Replay),
}

impl<'a> Tries<'a> {
    fn new(run: &'a mut Run, cluster: &'a Arc<ServedCluster>, parts: request::Parts, body: Body, policy: Policy<'a>) -> Self {
        let protocol = Protocol::of(cluster.cluster.protocol, parts.version);
        let body = match (body.is_end_stream(), policy.retry) {
            (true, _) => Source::Empty,
            (false, None) => Source::Once(Some(body)),
            (false, Some(_)) => Source::Replay(Replay::new(body, Kept::new(&run.worker.costs, Owner::Replay))),
        };
        let by_host = cluster.by_host.is_some() || cluster.cluster.sockets.tls().any(|tls| tls.depends_on_host());
        let host = parts.headers.get(http::header::HOST).filter(|_| by_host);
        let host = host.and_then(|host| host.to_str().ok()).map(Into::into);
        Self {
            run,
            cluster,
            protocol,
            policy,
            began: Instant::now(),
            parts: Some(parts),
            host,
            body,
            avoid: SmallVec::new(),
            priorities: SmallVec::new(),
            trying: None,
            retries: 0,
            told: None,
            waiting: None,
            retry_permit: None,
        }
    }

    async fn run(&mut self) -> Result<Answered, UpstreamFailure> {
        loop {
            let outcome = match (self.policy.limits.per_try, self.policy.try_idle.clone()) {
                (None, None) => self.once().await,
                (limit, idle) => {
                    let expiry = limits::of_try(limit.map(|limit| (limit, self.run.recording.upload())), idle);
                    tokio::select! {
                        biased;
                        outcome = self.once() => outcome,
                        failure = expiry => Err(failure),
                    }
                }
            };
            // Where the try was given up.
            self.waited();
            match &outcome {
                Ok(answered) => self.run.recording.record().try_answered(answered.response.status().as_u16()),
                Err(failure) => self.run.recording.end_try(failure),
            }
            self.note(match &outcome {
                Ok(answered) => Some(verdict_of(&answered.response)),
                Err(failure) => failure.verdict(),
            });
            let result = match &outcome {
                Ok(answered) => Some(answer_of(&answered.response, self.policy.retry)),
                Err(failure) => failure.try_result(),
            };
            let Some(policy) = self.policy.retry.filter(|policy| result.is_some_and(|result| wants_retry(policy, result))) else {
                return outcome;
            };
            if self.retries >= policy.retries_max {
                self.run.recording.record().stream.flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
                return outcome;
            }
            if !self.can_repeat() {
                return outcome;
            }
            // The retry before has ended.
            self.retry_permit = None;
            let Ok(permit) = self.cluster.breakers.take(Resource::Retry, self.policy.priority) else {
                self.run.recording.record().stream.flags.insert(ResponseFlag::UpstreamOverflow);
                return outcome;
            };
            self.retry_permit = permit;
            let is_unfinished = outcome.as_ref().is_ok_and(|answered| !answered.response.body().is_end_stream());
            let told = outcome.ok().and_then(|answered| self.told_back_off(policy, answered.response.headers()));
            self.retries += 1;
            self.run.recording.record().try_given_up(is_unfinished);
            if let Some(reason) = result.map(reason_of) {
                self.run.worker.costs.retried(reason);
            }
            self.waiting = Some(Instant::now());
            tokio::time::sleep(told.unwrap_or_else(|| back_off(policy, self.retries, self.run.worker.draw()))).await;
            self.waited();
        }
    }

    /// How long an answer asks to wait, where the policy listens.
    fn told_back_off(&self, policy: &RetryPolicy, answer: &HeaderMap) -> Option<Duration> {
        if policy.reset_headers.is_empty() {
            return None;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        told_back_off(policy, answer, now, self.run.worker.draw())
    }

    fn can_repeat(&self) -> bool {
        self.parts.is_some()
            && match &self.body {
                Source::Empty => true,
                Source::Once(body) => body.is_some(),
                Source::Replay(replay) => replay.can_repeat(),
            }
    }

    /// Whatever was waited for is there, or given up.
    fn waited(&mut self) {
        if let Some(began) = self.waiting.take() {
            self.run.recording.waited_since(began);
        }
    }

    /// Tells how the try went, once.
    fn note(&mut self, verdict: Option<Verdict>) {
        if let Some(entry) = self.trying.take()
            && let Some(verdict) = verdict
        {
            self.cluster.note(&entry, verdict);
        }
    }

    fn wish(&self) -> Wish<'_> {
        let (hash, host) = (self.policy.hash, self.policy.known_host.as_deref());
        let first = Wish { hash, host, subset: self.policy.subset, destination: self.run.tunnel.target.address(), ..Wish::default() };
        let Some(policy) = self.policy.retry.filter(|_| self.retries > 0) else {
            return first;
        };
        let mut wish = Wish { attempts_max: policy.host_attempts_max, ..first };
        if policy.avoid_previous_hosts {
            wish.avoid = &self.avoid;
        }
        if let Some(frequency) = policy.avoid_previous_priorities_every.and_then(|every| usize::try_from(every).ok()) {
            // Those of the tries since the last update count from the next on.
            let tried = self.priorities.len();
            wish.excluded = &self.priorities[..tried - tried % frequency.max(1)];
        }
        wish
    }

    /// One try, on an endpoint not tried before if there is one.
    async fn once(&mut self) -> Result<Answered, UpstreamFailure> {
        let worker = Arc::clone(&self.run.worker);
        self.run.recording.record().stream.attempts += 1;
        let entry = balance::choose(self.cluster, &self.wish(), || worker.draw()).ok_or(UpstreamFailure::NoEndpoint)?;
        let address = entry.endpoint.address;
        self.avoid.push(address);
        self.priorities.push(entry.endpoint.priority);
        self.trying = self.cluster.cluster.outlier.is_some().then(|| entry.clone());
        self.run.recording.note_endpoint(&entry);
        self.told = self.run.recording.record().begin_try(|| worker.draw());
        let mut active = ActiveRequest::begin(&entry.state);
        let mut is_fresh = false;
        loop {
            let host = self.host.as_deref();
            let (protocol, priority, proxied) = (self.protocol, self.policy.priority, Some(self.run.tunnel.proxied()));
            let wanted = Wanted { cluster: self.cluster, endpoint: &entry.endpoint, protocol, priority, host, proxied };
            let mut lease = match worker.sessions.at_hand(wanted, is_fresh) {
                Some(lease) => lease,
                // Boxed, so that requests that need no connect do not carry the room for one.
                None => {
                    self.waiting = Some(Instant::now());
                    let made = Box::pin(worker.sessions.make(wanted, &worker.dialer)).await;
                    self.waited();
                    made?
                }
            };
            match self.cluster.breakers.take(Resource::Request, self.policy.priority) {
                Ok(permit) => active.hold(permit),
                Err(overflow) => {
                    worker.sessions.give_back(lease);
                    return Err(overflow.into());
                }
            }
            self.cluster.note(&entry, Verdict::Connected);
            self.run.recording.note_connection(&lease);
            let request = self.request();
            let sending = lease.session.send(request, Some(self.run.interim.clone()));
            let begins = Instant::now();
            (self.waiting, self.run.recording.record().stream.upstream_start) = (Some(begins), Some(begins));
            let sent = match self.run.recording.message_reports() {
                None => sending.await,
                Some(reports) => counting(&mut self.run.recording, reports, sending).await,
            };
            self.waited();
            match sent {
                Ok(response) => return Ok(Answered { response, lease, active }),
                Err(mut error) => {
                    let nothing_sent = error.nothing_sent;
                    self.take_back(error.request.take());
                    // A connection that had ended while it was idle: nothing was sent, one fresh connection is tried.
                    if !(lease.is_reused && nothing_sent && !is_fresh && self.can_repeat()) {
                        return Err(UpstreamFailure::from_send(error.kind, nothing_sent));
                    }
                    is_fresh = true;
                    active.hold(None);
                }
            }
        }
    }

    /// The request for one try; kept for another as long as there may be one.
    fn request(&mut self) -> Request<Body> {
        let parts = if self.may_repeat_after_sending() { self.parts.clone() } else { self.parts.take() };
        let body = match &mut self.body {
            Source::Empty => Body::empty(),
            Source::Once(body) => body.take().unwrap_or_else(Body::empty),
            Source::Replay(replay) => replay.body(),
        };
        let mut parts = parts.expect("a try begins only while the request is at hand");
        if let Some(trace) = &self.told {
            trace.inject(&mut parts.headers);
        }
        if self.retries > 0 {
            tell_limits(&mut parts.headers, &self.policy.limits, (self.began.elapsed(), self.policy.tells));
        }
        Request::from_parts(parts, body)
    }

    /// Whether the policy could want the request again after it was sent; if not, its head need not be copied.
    fn may_repeat_after_sending(&mut self) -> bool {
        let is_grpc = self.run.recording.record().is_grpc;
        self.policy.retry.is_some_and(|policy| {
            let on = &policy.on;
            let on_codes = on.retriable_status_codes && !policy.status_codes.is_empty();
            is_grpc
                || self.protocol == Protocol::Http2
                || on.server_error
                || on.gateway_error
                || on.reset
                || on.retriable_4xx
                || on.envoy_rate_limited
                || on.retriable_headers
                || on_codes
        })
    }

    /// A request of which nothing was sent.
    fn take_back(&mut self, request: Option<Box<Request<Body>>>) {
        let Some(request) = request else { return };
        let (parts, body) = request.into_parts();
        self.parts.get_or_insert(parts);
        if let Source::Once(slot @ None) = &mut self.body {
            *slot = Some(body);
        }
    }
}

/// What a try came to that is followed by another.
fn reason_of(result: TryResult) -> RetryReason {
    match result {
        TryResult::NoConnection => RetryReason::ConnectFailure,
        TryResult::Refused => RetryReason::Refused,
        TryResult::Reset { .. } => RetryReason::Reset,
        TryResult::TryTimeout => RetryReason::Timeout,
        TryResult::Answer { status: 500.., .. } => RetryReason::ServerError,
        TryResult::Answer { grpc_status: Some(1..), .. } => RetryReason::GrpcStatus,
        TryResult::Answer { .. } => RetryReason::Answer,
    }
}

fn answer_of(response: &Response<Body>, policy: Option<&RetryPolicy>) -> TryResult {
    TryResult::Answer {
        has_header: policy.is_some_and(|policy| policy.on.retriable_headers && has_header(policy, response.headers())),
        status: response.status().as_u16(),
        grpc_status: grpc_status(response),
        is_rate_limited: response.headers().contains_key(X_ENVOY_RATE_LIMITED),
    }
}

/// The answer's head on its way to the client.
fn pass_on(
    mut run: Run,
    answered: Answered,
    to: &Forwarding<'_>,
    share: Option<&WeightedCluster>,
    expiry: Option<Expiry>,
) -> Response<Body> {
    let Answered { response, lease, active } = answered;
    let (mut parts, body) = response.into_parts();
    let now = Instant::now();
    let asked_at = run.recording.request_end();
    let record = run.recording.record();
    record.stream.response_start = Some(now);
    record.stream.details = Some("via_upstream".into());
    // Changes to the answer may print it.
    record.response_code = parts.status.as_u16();
    // Since all of the request had come, tries and connects included; an answer that begins earlier has none (Envoy).
    let service_time = asked_at.map(|asked_at| now.saturating_duration_since(asked_at).as_millis());
    if !to.http.options.suppresses_envoy_headers
        && let Some(Ok(milliseconds)) = service_time.map(u64::try_from)
    {
        parts.headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME, HeaderValue::from(milliseconds));
    }
    for edits in share.map_or(&to.route.response_headers, |share| &share.response_headers) {
        edits::edit_answer(run.recording.record(), edits, &mut parts.headers);
    }
    run.tell(&mut parts.headers, to.http);
    set_server(&mut parts.headers, to.http);
    if let Some(operation) = run.decorator.take() {
        parts.headers.insert(X_ENVOY_DECORATOR_OPERATION, operation);
    }
    run.recording.answered(parts.status, &parts.headers);
    run.recording.count_overhead();
    let mut response = Response::from_parts(parts, body);
    if to.http.changes_answers {
        let filters = to.route.first_filters.iter().chain(&to.route.filters).rev();
        response = response.map(|body| trailers::of_answer(body, filters));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        join(&mut response, run.recording, active, expiry);
        return response;
    }
    let worker = Arc::clone(&run.worker);
    response.map(|body| RecordedBody::attach(body, run.recording, Held { lease, _active: active, expiry }, &worker))
}

/// Lets what follows a 101 be recorded, and end when a limit has passed.
fn join(response: &mut Response<Body>, mut recording: Recording, active: ActiveRequest, expiry: Option<Expiry>) {
    recording.record().wire_bytes_sent += upgrade_bytes(response.extensions());
    let expired = Arc::new(OnceLock::new());
    let until = expiry.map(|expiry| {
        let expired = Arc::clone(&expired);
        Box::pin(async move { _ = expired.set(expiry.await) }) as _
    });
    let moved = recording.activity().map(|activity| Box::new(move || activity.touch()) as _);
    let ended = upgrade::watch(response, Bounds { until, moved });
    tokio::spawn(async move {
        let _active = active;
        if let Ok(ended) = ended.await {
            recording.record().carried(ended.n_bytes_up, ended.n_bytes_down);
            if let Some(expired) = expired.get() {
                recording.expired(*expired);
            }
            recording.finish();
        }
    });
}

/// Says who answers, as the chain wants it said of its own answers and of others.
pub(super) fn set_server(headers: &mut http::HeaderMap, http: &HttpChain) {
    let is_set = headers.contains_key(http::header::SERVER);
    let is_ours = match http.options.server_header {
        ServerHeader::Overwrite => true,
        ServerHeader::AppendIfAbsent => !is_set,
        ServerHeader::PassThrough => false,
    };
    if is_ours {
        headers.insert(http::header::SERVER, http.options.server_name.clone());
    }
}
