//! Answers made here: refusals and failures, as Envoy words them.
//!
//! Not for: when to make them. Invariants: nothing internal reaches the client; a gRPC client gets a gRPC answer.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use filters::ext_authz::Refusal;
use filters::jwt::TokenProblem;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use model::flags::ResponseFlag;
use model::headers::HeaderEdits;
use model::rate_limit::RateLimit;
use model::route::{Abort, DirectResponse};
use telemetry::grpc::GrpcStatus;
use telemetry::record::RequestRecord;

use super::edits::edit_answer;
use crate::http::body::Body;
use crate::http::normalize::SlashFound;
use crate::http::session::LastAnswer;
use crate::upstream::failure::UpstreamFailure;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Bytes of an authorization service's text in the `grpc-message` of a refusal; it is cut.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Says that what came is no request that could be answered otherwise.
const STATUS_BAD_REQUEST: u16 = 400;
/// Of a refusal that names no status.
const STATUS_DENIED: u16 = 403;
pub(super) const X_ENVOY_OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Where a route's changes to answers come, as in Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before what is said of a refusal or a failure.
    Before,
    /// Behind what the route itself says.
    Behind,
    /// They do not: a filter makes the whole answer.
    Nowhere,
}

/// An answer to be made.
#[derive(Debug)]
pub(super) struct LocalReply {
    status: u16,
    body: Cow<'static, str>,
    bytes: Option<Bytes>,
    flag: Option<ResponseFlag>,
    details: Cow<'static, str>,
    headers: HeaderMap,
    /// In place of the one that the status gives.
    grpc_status: Option<u32>,
    /// Not even for a gRPC client is it a gRPC answer.
    is_plain: bool,
    is_grpc: bool,
    /// Whether it was not even tried, since a circuit breaker is open.
    is_overload: bool,
    /// The connection of an HTTP/1.1 client closes behind it.
    is_last: bool,
    /// What a route's changes to answers do to it.
    place: Place,
}

impl LocalReply {
    fn new(status: u16, body: impl Into<Cow<'static, str>>, details: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            body: body.into(),
            bytes: None,
            flag: None,
            details: details.into(),
            headers: HeaderMap::new(),
            grpc_status: None,
            is_plain: false,
            is_grpc: false,
            is_overload: false,
            // Envoy trusts no connection further on which it has met such a request.
            is_last: status == STATUS_BAD_REQUEST,
            place: Place::Before,
        }
    }

    fn flagged(mut self, flag: ResponseFlag) -> Self {
        self.flag = Some(flag);
        self
    }

    /// Whether the request came as gRPC.
    pub(super) fn for_grpc(mut self, is_grpc: bool) -> Self {
        self.is_grpc = is_grpc && !self.is_plain;
        self
    }

    pub(super) fn no_route() -> Self {
        Self::new(404, "", "route_not_found").flagged(ResponseFlag::NoRouteFound)
    }

    /// A route makes something of the path that is none; the text is for those who wrote it.
    pub(super) fn no_path() -> Self {
        Self::new(503, "the route gives the request no valid path", "rewritten_path_invalid")
    }

    /// The chain was refused: by name, never to another service.
    pub(super) fn config_rejected() -> Self {
        Self::new(503, "configuration of this service was rejected", "config_rejected")
    }

    pub(super) fn denied(policy: Option<&str>) -> Self {
        Self::new(403, "RBAC: access denied", format!("rbac_access_denied_matched_policy[{}]", policy.unwrap_or("none")))
    }

    /// A token that is missing or not accepted; the text is Envoy's and has nothing of it.
    pub(super) fn token_refused(problem: TokenProblem) -> Self {
        let text = problem.to_string();
        let details = format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_"));
        Self::new(problem.status(), text, details)
    }

    /// An authorization service refuses the request; what of it the client gets is the service's.
    pub(super) fn external_denied(refusal: Refusal, body_bytes_max: Option<usize>) -> Self {
        Self::external(refusal, STATUS_DENIED, body_bytes_max, "ext_authz_denied")
    }

    /// An authorization service gives no answer, or says that it cannot.
    pub(super) fn external_failed(status: u16, refusal: Option<Refusal>) -> Self {
        Self::external(refusal.unwrap_or_default(), status, None, "ext_authz_error")
    }

    /// An authorization service lets the request pass with a change that is not made.
    pub(super) fn external_invalid() -> Self {
        Self::external(Refusal::default(), 500, None, "ext_authz_invalid")
    }

    /// Nobody could be asked, since too much is asked already: no failure of the service.
    pub(super) fn external_overloaded() -> Self {
        Self { is_overload: true, ..Self::external(Refusal::default(), 503, None, "ext_authz_overloaded") }
    }

    fn external(refusal: Refusal, status: u16, body_bytes_max: Option<usize>, details: &'static str) -> Self {
        let status = refusal.status.unwrap_or(status);
        let mut bytes = refusal.body;
        bytes.truncate(body_bytes_max.unwrap_or(usize::MAX));
        // These have no body (RFC 9110 §15.3.5, §15.3.6, §15.4.5).
        if matches!(status, 204 | 205 | 304) {
            bytes.clear();
        }
        let mut headers = refusal.headers;
        if bytes.is_empty() {
            headers.remove(header::CONTENT_TYPE);
        }
        // For gRPC clients, whose message is a header.
        let message = bytes.get(..MESSAGE_BYTES_MAX).unwrap_or(&bytes);
        let text = String::from_utf8_lossy(message).into_owned();
        Self { bytes: Some(bytes), headers, ..Self::new(status, text, details) }.flagged(ResponseFlag::UnauthorizedExternalService)
    }

    /// A body that is longer than an authorization service is to see.
    pub(super) fn payload_too_large() -> Self {
        Self::new(413, "Payload Too Large", "request_payload_too_large")
    }

    /// The path had escaped slashes. Clients of gRPC follow no redirects, and are refused instead; so is a path that would lead a client to
    /// another host.
    pub(super) fn escaped_slash(found: SlashFound, path: &str, is_grpc: bool) -> Self {
        let is_redirect = found.redirects_to(path) && !is_grpc;
        let reply = Self::new(if is_redirect { 307 } else { 400 }, "", "path_normalization_failed");
        reply.leading_to(is_redirect.then(|| path.to_owned()))
    }

    pub(super) fn upgrade_refused() -> Self {
        Self { is_last: true, ..Self::new(403, "", "upgrade_failed") }
    }

    /// An extension that is not run here, and lets nothing pass that does not run.
    pub(super) fn extension_closed(name: &str) -> Self {
        Self::new(503, "", format!("wasm_fail_stream{{{name}}}"))
    }

    pub(super) fn direct(direct: &DirectResponse) -> Self {
        let bytes = Some(Bytes::copy_from_slice(&direct.body));
        Self { bytes, place: Place::Behind, ..Self::new(direct.status, "", "direct_response") }
    }

    /// A redirect; where to is said by [`Self::leading_to`].
    pub(super) fn redirect(status: u16) -> Self {
        Self { place: Place::Behind, ..Self::new(status, "", "direct_response") }
    }

    /// Says where to go; what cannot be said is another answer.
    pub(super) fn leading_to(mut self, location: Option<String>) -> Self {
        let Some(location) = location else { return self };
        match HeaderValue::try_from(location) {
            Ok(location) => {
                self.headers.insert(header::LOCATION, location);
                self
            }
            Err(_) => Self::no_path(),
        }
    }

    /// A fault that the route injects.
    pub(super) fn fault(abort: Abort) -> Self {
        let (status, grpc_status) = match abort {
            Abort::Http(status) => (status, None),
            Abort::Grpc(grpc_status) => (200, Some(grpc_status)),
        };
        Self { grpc_status, ..Self::new(status, "fault filter abort", "fault_filter_abort") }.flagged(ResponseFlag::FaultInjected)
    }

    /// Above a limit, whose changes to the answer are `headers`.
    pub(super) fn rate_limited(limit: &RateLimit, headers: HeaderMap) -> Self {
        let reply = Self::new(limit.status, "local_rate_limited", "local_rate_limited").flagged(ResponseFlag::RateLimited);
        Self { headers, grpc_status: limit.grpc_status, ..reply }
    }

    /// The answer to a preflight of CORS.
    pub(super) fn preflight(headers: HeaderMap) -> Self {
        Self { headers, is_plain: true, place: Place::Nowhere, ..Self::new(200, "", "cors_response") }
    }

    /// A failure of the upstream. `was_retried`: after more than one try.
    pub(super) fn failure(failure: &UpstreamFailure, cluster_not_found: u16, was_retried: bool) -> Self {
        let is_overload = *failure == UpstreamFailure::Overflow;
        Self {
            flag: failure.flag(),
            is_overload,
            ..Self::new(failure.status(cluster_not_found), failure.client_text(was_retried), failure.details())
        }
    }

    /// The same as a success without content, which is what an internal caller may ask for instead of 504.
    pub(super) fn with_no_content(self) -> Self {
        Self { status: 204, body: "".into(), ..self }
    }

    /// Why, for logs.
    pub(super) fn details(&self) -> &str {
        &self.details
    }

    /// Makes the answer, with these changes of a route, and notes why in the record.
    pub(super) fn response(mut self, record: &mut RequestRecord, edits: &[Arc<HeaderEdits>]) -> Response<Body> {
        if let Some(flag) = self.flag {
            record.stream.flags.insert(flag);
        }
        record.stream.details = Some(std::mem::take(&mut self.details));
        let mut headers = std::mem::take(&mut self.headers);
        if self.place == Place::Before {
            let mut first = HeaderMap::new();
            edits.iter().for_each(|edits| edit_answer(record, edits, &mut first));
            first.extend(headers);
            headers = first;
        }
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = if self.is_grpc {
            grpc(status, self.grpc_status, &self.body, headers)
        } else {
            let is_head = record.head.as_ref().is_some_and(|head| head.method == Method::HEAD);
            plain(status, self.bytes, self.body, is_head, headers)
        };
        if self.is_last {
            response.extensions_mut().insert(LastAnswer);
        }
        if self.is_overload {
            response.headers_mut().insert(X_ENVOY_OVERLOADED, HeaderValue::from_static("true"));
        }
        if self.place == Place::Behind {
            edits.iter().for_each(|edits| edit_answer(record, edits, response.headers_mut()));
        }
        response
    }
}

fn plain(status: StatusCode, bytes: Option<Bytes>, text: Cow<'static, str>, is_head: bool, headers: HeaderMap) -> Response<Body> {
    let body = bytes.unwrap_or_else(|| match text {
        Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
        Cow::Owned(text) => Bytes::from(text),
    });
    let length = body.len();
    // A HEAD is told the length of what a GET would get, and gets nothing (RFC 9110 §9.3.2).
    let mut response = Response::new(if is_head { Body::empty() } else { Body::full(body) });
    *response.status_mut() = status;
    // Without a body Envoy says nothing about it; HTTP/1.1's codec adds the length of none.
    if length > 0 {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response.headers_mut().extend(headers);
    response
}

/// Trailers-only: the status in the headers of a 200 (gRPC over HTTP/2, "Responses"). Statuses map as Envoy maps them.
/// `told` is from whoever refused; it never makes it another answer than gRPC's.
fn grpc(status: StatusCode, grpc_status: Option<u32>, text: &str, told: HeaderMap) -> Response<Body> {
    let code = grpc_status.unwrap_or_else(|| u32::from(GrpcStatus::from_http(status.as_u16()).unwrap_or(GrpcStatus::UNKNOWN).number()));
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    *headers = told;
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(GRPC_MESSAGE);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(code));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(text.as_bytes())).map_err(drop)
        && !text.is_empty()
    {
        headers.insert(GRPC_MESSAGE, message);
    }
    response
}

/// `grpc-message`: bytes outside of printable ASCII, and `%`, are percent-encoded.
pub(super) fn percent_encoded(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for &byte in text {
        if (0x20..=0x7e).contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_clients_get_a_trailers_only_answer() {
        let response = grpc(StatusCode::FORBIDDEN, None, "RBAC: access denied", HeaderMap::new());
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[GRPC_STATUS], "7");
        assert_eq!(response.headers()[GRPC_MESSAGE], "RBAC: access denied");
        assert_eq!(grpc(StatusCode::SERVICE_UNAVAILABLE, None, "a%\u{e9}", HeaderMap::new()).headers()[GRPC_MESSAGE], "a%25%C3%A9");
    }

    #[test]
    fn who_refuses_cannot_make_it_another_answer_than_grpc() {
        let told =
            [("content-type", "text/html"), ("content-length", "9"), ("grpc-status", "0"), ("grpc-message", "fine"), ("x-why", "no")];
        let told = told.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let response = grpc(StatusCode::UNAUTHORIZED, None, "", HeaderMap::from_iter(told));
        let expected = [("content-type", "application/grpc"), ("grpc-status", "16"), ("x-why", "no")];
        let expected = expected.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        assert_eq!(*response.headers(), HeaderMap::from_iter(expected));
    }
}
