//! One request inside a tunnel, from its head to the last byte of its answer.
//!
//! Not for: decisions (`filters`), codecs (`http`), or what is measured (`telemetry`). The order is that of `filters::chain`.
//! Invariants: every request is recorded exactly once, however it ends; nothing is sent upstream twice unless it is known
//! not to have arrived, or the route's policy asks for it; after bytes of an answer went to the client there is no retry.

mod attempt;
mod edits;
mod external;
mod limits;
mod mirror;
mod named_host;
mod recording;
mod replay;
mod reply;
mod route_filters;
mod seen;
mod size;
mod time_limits;
mod token;
mod trailers;
mod web;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use filters::chain::{Outcome, Selected, judge};
use filters::ext_authz::Header;
use filters::grpc_web::Web;
use filters::internal::{Asked, is_internal};
use filters::rbac::Decisions;
use filters::redirect::{has_location, location};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, Version};
use http_body::Body as _;
use model::authority::Authority as Target;
use model::chain::{Chain, ChainKind, HttpChain, HttpOptions};
use model::claims::TokenMetadata;
use model::headers::HeaderEdits;
use model::rewrite::RedirectPath;
use model::route::{Route, RouteAction};
use model::stream_view::forwarded_for;
use model::workload::Workload;
use telemetry::record::RequestRecord;
use tokio::time::Instant;

use self::recording::Recording;
use self::reply::LocalReply;
use self::size::{REQUEST_LINE_OVERHEAD, head_bytes, status_line_bytes, upgrade_bytes};
use crate::hbone::Downstream;
use crate::http::body::Body;
use crate::http::headers;
use crate::http::normalize::{HeadOptions, Malformed, SlashFound, UpgradeRequested};
use crate::http::session::{Abort, Exchange, Interim, Protocol};
use crate::policies;
use crate::sniff::Hello;
use crate::state::published::{Published, ServedChain};
use crate::upstream::proxy_protocol::Proxied;
use crate::worker::Worker;

pub use self::edits::change_request;
pub use self::replay::REPLAY_BYTES_MAX;
pub use self::seen::head_of;
use self::seen::{malformed_details, policy_input, recorded_head};
pub use self::token::{NoPath, apply_edits};

const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const X_ENVOY_DECORATOR_OPERATION: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");
const X_ENVOY_EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const X_ENVOY_UPSTREAM_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// The chain of a tunnel, kept current: a policy or route that changes holds for the next request on every open connection.
#[derive(Debug)]
pub struct ChainOfTunnel {
    name: Arc<str>,
    current: ArcSwap<ServedChain>,
    generation: AtomicU64,
}

impl ChainOfTunnel {
    /// Of the listeners with this number.
    #[must_use]
    pub fn new(served: Arc<ServedChain>, generation: u64) -> Self {
        Self { name: Arc::clone(&served.chain.name), current: ArcSwap::new(served), generation: AtomicU64::new(generation) }
    }

    /// The chain as it was last seen.
    #[must_use]
    pub fn last(&self) -> Arc<ServedChain> {
        self.current.load_full()
    }

    /// The chain as it is now; none once there is no chain of this name any more.
    fn now(&self, published: &Published) -> Option<Arc<ServedChain>> {
        let number = published.generation_number();
        if self.generation.load(Ordering::Relaxed) != number {
            let served = published.generation().and_then(|generation| generation.chains.get(&self.name).map(Arc::clone))?;
            self.current.store(served);
            self.generation.store(number, Ordering::Relaxed);
        }
        Some(self.last())
    }
}

/// What all requests of one tunnel have in common; computed once.
#[derive(Debug)]
pub struct TunnelContext {
    /// The chain that the CONNECT led to.
    pub served: ChainOfTunnel,
    /// The HBONE connection.
    pub connection: Arc<Downstream>,
    /// What the CONNECT asked for.
    pub target: Target,
    /// The client's workload, if discovery knows its address.
    pub source: Option<Arc<Workload>>,
    /// What is known of how the client begins.
    pub inspection: Inspection,
    /// When it was opened.
    pub began: Instant,
}

/// Whether a TCP connection's ClientHello is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspection {
    /// It is not.
    Off,
    /// As it passes, to tell of it.
    InPassing,
    /// It was, before anything else.
    Done(Hello),
    /// The client was silent for too long: it counts as one without a name, and must not turn out to have one.
    Silent,
}

impl TunnelContext {
    /// On whose behalf connections to endpoints are made.
    #[must_use]
    pub fn proxied(&self) -> Proxied {
        Proxied { client: self.connection.peer_address, destination: self.target.address() }
    }
}

/// Answers the requests of one tunnel.
#[derive(Clone, Debug)]
pub struct TunnelExchange {
    tunnel: Arc<TunnelContext>,
    worker: Arc<Worker>,
}

impl TunnelExchange {
    /// For one tunnel, on one worker.
    #[must_use]
    pub fn new(tunnel: Arc<TunnelContext>, worker: Arc<Worker>) -> Self {
        Self { tunnel, worker }
    }

    fn record(&self, served: &ServedChain, protocol: &'static str) -> Recording {
        let mut record = RequestRecord::new(Arc::clone(&served.telemetry), protocol);
        let stream = &mut record.stream;
        stream.source.clone_from(&self.tunnel.source);
        stream.source_identity = Some(self.tunnel.connection.peer.clone());
        stream.local_identity = Some(self.tunnel.connection.local.clone());
        stream.downstream_local = self.tunnel.target.address();
        stream.downstream_remote = Some(self.tunnel.connection.peer_address);
        Recording::new(record, Arc::clone(&self.worker))
    }
}

/// The chain that judges one request.
#[derive(Debug)]
pub struct Begun {
    served: Arc<ServedChain>,
    /// There is no chain of this name any more.
    is_gone: bool,
}

impl Exchange for TunnelExchange {
    type Begun = Begun;

    fn begin(&self, at_start: &HeadOptions) -> (Begun, HeadOptions) {
        let now = self.tunnel.served.now(&self.worker.published);
        let is_gone = now.is_none();
        let served = now.unwrap_or_else(|| self.tunnel.served.last());
        let options = match &served.chain.kind {
            ChainKind::Http(http) => head_options(&http.options),
            _ => *at_start,
        };
        (Begun { served, is_gone }, options)
    }

    fn exchange(
        &self,
        begun: Begun,
        request: Request<Body>,
        interim: Interim,
    ) -> impl Future<Output = Result<Response<Body>, Abort>> + Send + use<> {
        let protocol = protocol_name(request.version());
        let is_grpc = filters::route::is_grpc_content(request.headers());
        let Begun { served, is_gone } = begun;
        let recording = self.record(&served, protocol).ended_by(interim.client_reset());
        let (tunnel, worker) = (Arc::clone(&self.tunnel), Arc::clone(&self.worker));
        let run = Run {
            served,
            is_gone,
            tunnel,
            worker,
            recording,
            interim,
            is_grpc,
            decorator: None,
            told: HeaderMap::new(),
            back: Vec::new(),
            asked: None,
            web: None,
            route: None,
        };
        run.answer(request)
    }

    fn malformed(&self, protocol: Protocol, problem: &Malformed) {
        let name = match protocol {
            Protocol::Http1 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
        };
        let mut recording = self.record(&self.tunnel.served.last(), name);
        let record = recording.record();
        let is_answered = protocol == Protocol::Http1 || problem.reset().is_none();
        record.response_code = if is_answered { problem.status().as_u16() } else { 0 };
        if protocol == Protocol::Http1 {
            record.stream.bytes_sent = u64::try_from(problem.text().len()).unwrap_or(u64::MAX);
        }
        let (flag, details) = malformed_details(protocol, *problem);
        if let Some(flag) = flag {
            record.stream.flags.insert(flag);
        }
        record.stream.details = Some(details.into());
        recording.finish();
    }
}

/// How heads of requests are made uniform on a chain.
#[must_use]
pub fn head_options(options: &HttpOptions) -> HeadOptions {
    HeadOptions {
        normalize: options.normalize_path,
        merge_slashes: options.merge_slashes,
        escaped_slashes: options.escaped_slashes,
        accepts_http1_0: options.http1_0,
        underscores: options.underscores,
    }
}

/// Takes from a request what its client must not say, and adds what others rely on.
pub fn made_safe(headers: &mut HeaderMap, options: &HttpOptions) {
    if !options.keep_forwarded_client_cert {
        headers.remove(X_FORWARDED_CLIENT_CERT);
    }
    headers::remove_internal(headers, is_internal(headers, &options.internal_addresses));
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
}

/// What `%PROTOCOL%` prints.
fn protocol_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// One request on its way.
struct Run {
    tunnel: Arc<TunnelContext>,
    /// The chain for this request.
    served: Arc<ServedChain>,
    /// Its service has no chain here any more.
    is_gone: bool,
    worker: Arc<Worker>,
    recording: Recording,
    interim: Interim,
    /// Whether the client wants a gRPC answer.
    is_grpc: bool,
    /// What the answer says of the operation; nothing if the client named it.
    decorator: Option<HeaderValue>,
    /// Headers that filters set on the answer, whoever makes it.
    told: HeaderMap,
    /// What authorization services change in the answer, whoever makes it.
    back: Vec<Header>,
    /// What an internal caller asks of the proxy, once it is known where the request goes.
    asked: Option<Box<Asked>>,
    /// It came as gRPC-Web, and so must its answer.
    web: Option<Web>,
    /// The route, once the answer is known to depend on it: one that is made here, or that filters change.
    route: Option<Arc<Route>>,
}

/// The route of a request that may take it.
#[derive(Clone, Copy)]
struct Routed<'a> {
    http: &'a HttpChain,
    route: &'a Arc<Route>,
}

impl Run {
    async fn answer(mut self, request: Request<Body>) -> Result<Response<Body>, Abort> {
        let (mut parts, mut body) = request.into_parts();
        // What follows an upgrade belongs to the request.
        if body.is_end_stream() && parts.extensions.get::<UpgradeRequested>().is_none() {
            let stream = &mut self.recording.record().stream;
            stream.request_end = Some(stream.start);
        }
        let served = Arc::clone(&self.served);
        let http = match self.admit(&served.chain, &mut parts) {
            Ok(http) => http,
            Err(reply) => return Ok(self.reply(*reply)),
        };
        body = trailers::named(body, http.options.underscores);
        let mut chosen = None;
        // Boxed, so that requests of other chains do not carry the room for it; so are filters below.
        if http.has_first_filters {
            match Box::pin(self.pass_first(http, &mut parts)).await {
                Ok(selected) => chosen = Some(selected),
                Err(reply) => return Ok(self.reply(*reply)),
            }
        }
        if !http.early.is_empty() {
            match Box::pin(self.pass_early((http, chosen), &mut parts, &mut body)).await {
                Ok(selected) => chosen = Some(selected),
                Err(reply) => return Ok(self.reply(*reply)),
            }
        }
        let said = match &http.jwt {
            None => Ok(None),
            Some(authn) if authn.remote_keys().next().is_none() => self.authenticate(authn, http, &mut parts),
            Some(authn) => Box::pin(self.authenticate_with_remote_keys(authn, http, &mut parts)).await,
        };
        let decided = said.and_then(|claims| Ok((self.decide(&served.chain, chosen, &parts, claims.as_ref())?, claims)));
        let (route, claims) = match decided {
            Ok(decided) => decided,
            Err(reply) => return Ok(self.reply(*reply)),
        };
        let filters = route.map_or(&http.routeless[1], |route| &route.filters);
        if !filters.is_empty()
            && let Some(reply) = Box::pin(self.filter(filters, (route, claims.as_ref()), &mut parts)).await
        {
            return Ok(self.reply(reply));
        }
        match route {
            Some(route) => self.act(Routed { http, route }, parts, body).await,
            None => Ok(self.reply(LocalReply::no_route())),
        }
    }

    /// The chain of a request that is looked at at all.
    fn admit<'a>(&mut self, chain: &'a Chain, parts: &mut http::request::Parts) -> Result<&'a HttpChain, Box<LocalReply>> {
        let ChainKind::Http(http) = &chain.kind else { return Err(LocalReply::config_rejected().into()) };
        if self.is_gone {
            return Err(LocalReply::config_rejected().into());
        }
        if let Some(found) = parts.extensions.remove::<SlashFound>() {
            // It gets no id and no span, as what is no request at all.
            let record = self.recording.record();
            record.head = Some(recorded_head(parts));
            record.capture_request(&parts.headers);
            let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
            return Err(LocalReply::escaped_slash(found, path, self.is_grpc).into());
        }
        self.note_head(parts, http);
        Ok(http)
    }

    /// Passes the filters before policies and tokens, which do not change the route.
    async fn pass_first<'a>(&mut self, http: &'a HttpChain, parts: &mut http::request::Parts) -> Result<Selected<'a>, Box<LocalReply>> {
        let selected = filters::route::select(&http.routes, &head_of(parts));
        let route = selected.map(|(_, route)| route);
        let filters = route.map_or(&http.routeless[0], |route| &route.first_filters);
        match self.filter(filters, (route, None), parts).await {
            Some(reply) => Err(reply.into()),
            None => Ok(selected),
        }
    }

    /// The route of a request that policies let pass, if there is one.
    fn decide<'a>(
        &mut self,
        chain: &'a Chain,
        chosen: Option<Selected<'a>>,
        parts: &http::request::Parts,
        claims: Option<&TokenMetadata>,
    ) -> Result<Option<&'a Arc<Route>>, Box<LocalReply>> {
        let forwarded_for = self.recording.record().forwarded_for;
        let input = policy_input((&self.tunnel, forwarded_for), parts, claims);
        let mut decisions = Decisions::new();
        let outcome = judge(chain, &input, chosen, &mut decisions);
        policies::note(&decisions, &input, &mut self.recording.record().stream, &self.worker);
        match outcome {
            Outcome::Route(_, route) => {
                self.recording.record().stream.route_name.clone_from(&route.name);
                self.note_operation(route);
                Ok(Some(route))
            }
            Outcome::NoRoute => {
                self.recording.record().is_grpc = self.is_grpc;
                Ok(None)
            }
            Outcome::Denied { by, route } => {
                if let Some(route) = route {
                    self.note_route(route);
                }
                Err(LocalReply::denied(by.policy()).into())
            }
            Outcome::Rejected => Err(LocalReply::config_rejected().into()),
        }
    }

    /// Notes what the request is, and gives it its id and its span.
    fn note_head(&mut self, parts: &mut http::request::Parts, http: &HttpChain) {
        let line_bytes = parts.method.as_str().len() + parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
        // As it came, before anything of ours.
        let head_bytes = head_bytes(&parts.headers, line_bytes + REQUEST_LINE_OVERHEAD);
        self.recording.record().wire_bytes_received = head_bytes + upgrade_bytes(&parts.extensions);
        made_safe(&mut parts.headers, &http.options);
        if http.options.tells_port
            && let Some(address) = self.tunnel.target.address()
            && !parts.headers.contains_key(X_FORWARDED_PORT)
        {
            parts.headers.insert(X_FORWARDED_PORT, HeaderValue::from(address.port()));
        }
        let tracing = self.served.telemetry.tracing.as_ref();
        let decision =
            self.worker.with_random(|random| telemetry::trace::begin(tracing, &parts.headers, http.options.generate_request_id, random));
        decision.inject(&mut parts.headers);
        let operation = tracing.and_then(|_| parts.headers.remove(X_ENVOY_DECORATOR_OPERATION));
        let record = self.recording.record();
        // Once, before anything changes it, as in Envoy.
        record.forwarded_for = forwarded_for(&parts.headers);
        record.trace = decision.trace;
        record.request_id = decision.request_id;
        record.operation = operation.and_then(|value| value.to_str().ok().map(Arc::from));
        record.head = Some(recorded_head(parts));
        record.capture_request(&parts.headers);
    }

    /// Notes where it would go: also a refused request's labels name its service.
    fn note_route(&mut self, route: &Arc<Route>) {
        self.route = Some(Arc::clone(route));
        self.recording.record().stream.route_name.clone_from(&route.name);
        self.note_operation(route);
        self.note_destination(route);
    }

    fn note_destination(&mut self, route: &Route) {
        let RouteAction::Forward(forward) = &route.action else { return };
        let name = filters::route::next_cluster(&forward.clusters, self.worker.draw());
        self.recording.note_cluster(name, self.worker.published.cluster(name).as_ref());
    }

    /// Names the span after the route, unless the client did; where nothing is traced nobody is told of it.
    fn note_operation(&mut self, route: &Route) {
        let Some(operation) = route.operation.as_ref().filter(|_| self.served.telemetry.tracing.is_some()) else { return };
        let record = self.recording.record();
        if record.operation.is_none() {
            record.operation = Some(Arc::clone(&operation.name));
            self.decorator = Some(operation.header.clone());
        }
    }

    /// Does what the route says.
    async fn act(mut self, routed: Routed<'_>, mut parts: http::request::Parts, mut body: Body) -> Result<Response<Body>, Abort> {
        let Routed { http, route } = routed;
        if http.changes_answers {
            self.route = Some(Arc::clone(route));
            body = trailers::of_request(body, route.first_filters.iter().chain(&route.filters));
        }
        // What came as gRPC-Web is gRPC from here on, but not where it is answered here.
        let is_grpc = self.is_grpc || self.web.is_some();
        if let Some(web) = self.web {
            body = web::request_body(web, body);
        }
        let record = self.recording.record();
        record.is_grpc = is_grpc;
        if record.is_grpc && http.count_grpc_messages {
            record.grpc_messages = Some(telemetry::record::GrpcMessages::default());
        }
        if parts.extensions.get::<UpgradeRequested>().is_some_and(|UpgradeRequested(protocol)| !allows_upgrade(routed, protocol)) {
            self.route = Some(Arc::clone(route));
            self.decorator = None;
            return Ok(self.reply(LocalReply::upgrade_refused()));
        }
        let reply = match &route.action {
            RouteAction::Forward(forward) => {
                return attempt::forward(self, parts, body, &attempt::Forwarding { route, http, forward }).await;
            }
            RouteAction::Direct(direct) => {
                let location = has_location(direct.status).then(|| location(None, &head_of(&parts)));
                LocalReply::direct(direct).leading_to(location)
            }
            RouteAction::Redirect(redirect) => {
                let tells = !http.options.suppresses_envoy_headers;
                if let RedirectPath::Rewrite(rewrite) = &redirect.path {
                    if edits::rewrite_path(&mut parts, (rewrite, tells), &route.matches.path).is_err() {
                        return Ok(self.reply(LocalReply::no_path()));
                    }
                    edits::note(&mut self, &parts);
                }
                let location = location(Some(redirect), &head_of(&parts));
                LocalReply::redirect(redirect.status).leading_to(Some(location))
            }
        };
        Ok(self.reply_edited(reply, &route.response_headers))
    }

    /// Answers here, in place of the route, if one is known whose answers are another's: its changes to answers are made to this one as
    /// well, as Envoy does.
    fn reply(self, reply: LocalReply) -> Response<Body> {
        let route = self.route.clone().filter(|route| matches!(route.action, RouteAction::Forward(_)));
        self.reply_edited(reply, route.as_ref().map_or(&[], |route| &route.response_headers))
    }

    /// Answers here, with a route's changes to the answer.
    fn reply_edited(mut self, reply: LocalReply, edits: &[Arc<HeaderEdits>]) -> Response<Body> {
        let mut response = reply.for_grpc(self.is_grpc).response(self.recording.record(), edits);
        let served = Arc::clone(&self.served);
        let headers = response.headers_mut();
        match &served.chain.kind {
            ChainKind::Http(http) => {
                if http.options.suppresses_envoy_headers {
                    headers.remove(reply::X_ENVOY_OVERLOADED);
                }
                self.tell(headers, http);
                attempt::set_server(headers, http);
            }
            _ => self.tell_all(headers),
        }
        if let Some(operation) = self.decorator.take() {
            response.headers_mut().insert(X_ENVOY_DECORATOR_OPERATION, operation);
        }
        if let Some(web) = self.web {
            response = web::answer_here(web, response);
        }
        self.recording.answered_here(&response);
        response
    }

    /// Makes the changes of filters to an answer: those nearest to its maker first.
    fn tell(&mut self, headers: &mut HeaderMap, http: &HttpChain) {
        if http.changes_answers {
            self.change_answer(headers, http, false);
        }
        self.tell_all(headers);
        if http.changes_answers {
            self.change_answer(headers, http, true);
        }
    }

    /// Sets what filters set on an answer.
    fn tell_all(&mut self, headers: &mut HeaderMap) {
        if !self.told.is_empty() {
            let limits = route_filters::take_limits(&mut self.told);
            headers.extend(std::mem::take(&mut self.told));
            for (name, value) in limits {
                headers.append(name, value);
            }
        }
        if !self.back.is_empty() {
            filters::ext_authz::apply(&self.back, headers);
        }
    }
}

fn allows_upgrade(Routed { http, route }: Routed<'_>, protocol: &HeaderValue) -> bool {
    let of_chain = &http.options.upgrades;
    match &route.action {
        RouteAction::Forward(forward) => forward.upgrades.allow(protocol.as_bytes(), of_chain),
        RouteAction::Redirect(_) | RouteAction::Direct(_) => of_chain.say(protocol.as_bytes()).unwrap_or(false),
    }
}
