//! External authorization: whom to ask about a request or connection, what to tell, and what may come of the answer.
//!
//! Not for: asking, or what an answer means; `filters::ext_authz` decides and `waypoint` asks. Source: Envoy's `ext_authz`.
//! Invariant: what could not be read is not here (its chain was refused), so that nothing passes unasked.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::fraction::Fraction;
use crate::matcher::StringMatcher;

/// Whether the service is asked: by the policy that matched last of all shadow rules so far.
#[derive(Clone, Debug)]
pub struct Gate {
    /// What its name must be like.
    pub test: StringMatcher,
    /// The other way round.
    pub invert: bool,
}

/// Names of headers.
#[derive(Clone, Debug, Default)]
pub struct HeaderNames(pub Vec<StringMatcher>);

impl HeaderNames {
    /// Whether one of them matches a name, which is in lower case.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|one| one.matches(name.as_bytes()))
    }
}

/// A service that speaks `envoy.service.auth.v3.Authorization`.
#[derive(Clone, Debug)]
pub struct GrpcAuthz {
    /// Its cluster.
    pub cluster: Arc<str>,
    /// `:authority` of calls.
    pub authority: HeaderValue,
    /// How long a call may take; none is no limit of its own.
    pub timeout: Option<Duration>,
}

/// A service that answers requests like the one in question.
#[derive(Clone, Debug)]
pub struct HttpAuthz {
    /// Its cluster.
    pub cluster: Arc<str>,
    /// How long a call may take; none is no limit of its own.
    pub timeout: Option<Duration>,
    /// Put before the path.
    pub path_prefix: Box<str>,
    /// Set on what it is asked.
    pub headers_to_add: Vec<(HeaderName, HeaderValue)>,
    /// Of a 200: set on the request.
    pub upstream_headers: HeaderNames,
    /// Of a 200: added to the request.
    pub upstream_headers_to_append: HeaderNames,
    /// Of a refusal: passed to the client; none names all of them.
    pub client_headers: Option<HeaderNames>,
    /// Of a 200: added to the response.
    pub client_headers_on_success: HeaderNames,
}

/// Who is asked.
#[derive(Clone, Debug)]
pub enum AuthzService {
    /// By gRPC.
    Grpc(GrpcAuthz),
    /// By HTTP.
    Http(Box<HttpAuthz>),
}

impl AuthzService {
    /// Its cluster.
    #[must_use]
    pub fn cluster(&self) -> &Arc<str> {
        match self {
            Self::Grpc(grpc) => &grpc.cluster,
            Self::Http(http) => &http.cluster,
        }
    }

    /// How long a call may take.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        match self {
            Self::Grpc(grpc) => grpc.timeout,
            Self::Http(http) => http.timeout,
        }
    }
}

/// How much of a request's body it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyShown {
    /// Bytes at most; never zero.
    pub bytes_max: usize,
    /// A longer body is shown in part; else it is refused with 413.
    pub allows_partial: bool,
}

/// What a service is told of requests.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Which headers, pseudo-headers included; none is all.
    pub headers: Option<HeaderNames>,
    /// Which not, of those.
    pub hidden_headers: HeaderNames,
    /// Each line by itself and as it came, not joined by commas and mended to UTF-8.
    pub raw_headers: bool,
    /// The body.
    pub body: Option<BodyShown>,
    /// The body is bytes, not mended to UTF-8.
    pub body_is_bytes: bool,
}

/// What happens when the service gives no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnFailure {
    /// The request passes all the same.
    pub allows: bool,
    /// And says so upstream (`x-envoy-auth-failure-mode-allowed`).
    pub adds_header: bool,
    /// The status of a refusal.
    pub status: u16,
}

/// One `ext_authz` filter.
#[derive(Clone, Debug)]
pub struct ExtAuthz {
    /// The filter's name, by which routes mean it.
    pub name: Arc<str>,
    /// Whom to ask.
    pub service: AuthzService,
    /// When; always without one.
    pub gate: Option<Gate>,
    /// Of how many requests (`filter_enabled`).
    pub share: Fraction,
    /// Those that are not asked about are refused (`deny_at_disable`).
    pub denies_unasked: bool,
    /// What to tell; nothing of TCP connections.
    pub told: Told,
    /// Without an answer.
    pub on_failure: OnFailure,
    /// The route is chosen anew after the answer changed the request.
    pub chooses_route_anew: bool,
    /// Bytes of a refusal's body that reach the client at most.
    pub denied_body_bytes_max: Option<usize>,
}

/// What a route says of one of these filters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteExternal {
    /// The filter's name.
    pub filter: Arc<str>,
    /// The service is not asked.
    pub is_off: bool,
    /// It sees nothing of the body.
    pub hides_body: bool,
    /// How much of the body it sees, in place of what the filter says.
    pub body: Option<BodyShown>,
    /// What it is told besides (`context_extensions`), by name.
    pub context: Box<[(Box<str>, Box<str>)]>,
}

/// Headers that say how a message is framed, or that are meant for the next hop only: no answer of a service may set them.
#[must_use]
pub fn is_reserved(name: &HeaderName) -> bool {
    const RESERVED: [&str; 9] = [
        "connection",
        "content-length",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    RESERVED.contains(&name.as_str())
}
