//! What an answer means.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use model::ext_authz::{HeaderNames, HttpAuthz, is_reserved};

use super::change::{Allowed, Header, How, Unusable, header};
use super::wire;

/// Names headers of the request that an HTTP service wants taken away.
const HEADERS_TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";
/// Of a refusal that names no status.
const STATUS_DENIED: u16 = 403;
/// Changes that one answer may ask for; one that asks for more is not followed, and of a refusal's headers more are left out.
const CHANGES_MAX: usize = 256;

/// What the client gets of a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// Its status; none says nothing about it.
    pub status: Option<u16>,
    /// Headers, in place of ours of the same name.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It may pass.
    Allowed(Allowed),
    /// It may not.
    Denied(Refusal),
    /// The service could not say; what the client gets of that, if it does not pass all the same.
    Failed(Refusal),
    /// It may pass, but with a change that is not made; or it is a request that the service cannot be asked about.
    Unusable,
    /// We ask too much already: nobody was asked. That is no failure of the service, and never lets anything pass.
    Overloaded,
}

impl Answer {
    /// No answer at all.
    #[must_use]
    pub fn none() -> Self {
        Self::Failed(Refusal::default())
    }
}

/// The body of a gRPC answer whose call ended well.
#[must_use]
pub fn read_grpc(body: &Bytes) -> Answer {
    let Some(response) = wire::unframed::<wire::CheckResponse>(body) else { return Answer::none() };
    let is_ok = response.status.is_none_or(|status| status.code == 0);
    match (is_ok, response.http_response) {
        (true, Some(wire::HttpResponse::Ok(granted))) => allowed(granted).map_or(Answer::Unusable, Answer::Allowed),
        (true, _) => Answer::Allowed(Allowed::default()),
        (false, Some(wire::HttpResponse::Error(failed))) => Answer::Failed(refusal(failed)),
        (false, Some(wire::HttpResponse::Denied(denied))) => {
            let denied = refusal(denied);
            Answer::Denied(Refusal { status: denied.status.or(Some(STATUS_DENIED)), ..denied })
        }
        (false, _) => Answer::Denied(Refusal { status: Some(STATUS_DENIED), ..Refusal::default() }),
    }
}

fn allowed(granted: wire::Granted) -> Result<Allowed, Unusable> {
    let parameters = granted.query_parameters_to_set.len() + granted.query_parameters_to_remove.len();
    let headers = granted.headers.len() + granted.headers_to_remove.len() + granted.response_headers_to_add.len();
    if parameters + headers > CHANGES_MAX {
        return Err(Unusable);
    }
    // Envoy's order: what is set, then what is appended; on the way back what is added, set, added if absent, set if present.
    let (append, set): (Vec<_>, Vec<_>) = granted.headers.iter().partition(|one| one.append.is_some_and(|append| append.value));
    let set = set.into_iter().map(|one| (one, How::Set));
    let request = set.chain(append.into_iter().map(|one| (one, How::Append))).map(|(one, how)| option(one, how));
    let mut response = granted.response_headers_to_add.iter().map(|one| option(one, response_how(one)?)).collect::<Result<Vec<_>, _>>()?;
    response.sort_by_key(|header| match header.how {
        How::Add | How::Append => 0,
        How::Set => 1,
        How::AddIfAbsent => 2,
        How::SetIfPresent => 3,
    });
    Ok(Allowed {
        request: request.collect::<Result<_, _>>()?,
        removed: granted.headers_to_remove.iter().filter_map(|name| removable(name)).collect(),
        parameters: granted.query_parameters_to_set.into_iter().map(|one| (one.key, one.value)).collect(),
        removed_parameters: granted.query_parameters_to_remove,
        response,
    })
}

fn option(value: &wire::HeaderOption, how: How) -> Result<Header, Unusable> {
    let pair = value.header.as_ref().ok_or(Unusable)?;
    let bytes = if pair.value.is_empty() { &pair.raw_value[..] } else { pair.value.as_bytes() };
    header(&pair.key, bytes, how)
}

fn response_how(value: &wire::HeaderOption) -> Result<How, Unusable> {
    match (value.append, value.append_action) {
        (Some(append), _) => Ok(if append.value { How::Add } else { How::Set }),
        (None, 0) => Ok(How::Add),
        (None, 1) => Ok(How::AddIfAbsent),
        (None, 2) => Ok(How::Set),
        (None, 3) => Ok(How::SetIfPresent),
        (None, _) => Err(Unusable),
    }
}

/// A header that may be taken away: without its host or its framing a request would be another one.
fn removable(name: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| *name != http::header::HOST && !is_reserved(name))
}

fn refusal(denied: wire::Denied) -> Refusal {
    let mut headers = HeaderMap::new();
    for pair in denied.headers.iter().filter_map(|one| one.header.as_ref()).take(CHANGES_MAX) {
        let bytes = if pair.value.is_empty() { &pair.raw_value[..] } else { pair.value.as_bytes() };
        // A refusal stays one without a header that it cannot have.
        if let Ok(Header { name, value, .. }) = header(&pair.key, bytes, How::Add) {
            headers.append(name, value);
        }
    }
    Refusal { status: denied.status.and_then(|status| status_of(status.code)), headers, body: denied.body.into() }
}

/// A final status; what is none says nothing.
fn status_of(code: i32) -> Option<u16> {
    u16::try_from(code).ok().filter(|code| (200..600).contains(code))
}

/// The answer of an HTTP service.
#[must_use]
pub fn read_http(service: &HttpAuthz, status: u16, headers: &HeaderMap, body: Bytes) -> Answer {
    match status {
        200 => Answer::Allowed(granted(service, headers)),
        201..500 => {
            let passes = |name: &HeaderName| service.client_headers.as_ref().is_none_or(|names| client_header(names, name));
            let headers = passed(headers, passes).map(|(name, value)| (name.clone(), value.clone())).collect();
            Answer::Denied(Refusal { status: Some(status), headers, body })
        }
        _ => Answer::none(),
    }
}

/// Where a list says what may pass, these pass besides.
fn client_header(names: &HeaderNames, name: &HeaderName) -> bool {
    *name == http::header::WWW_AUTHENTICATE || *name == http::header::LOCATION || names.matches(name.as_str())
}

/// Headers that `wanted` names, but those that say something about the answer itself.
fn passed(headers: &HeaderMap, wanted: impl Fn(&HeaderName) -> bool) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    let is_own = |name: &HeaderName| is_reserved(name) || *name == http::header::HOST || *name == HEADERS_TO_REMOVE;
    headers.iter().filter(move |(name, _)| !is_own(name) && wanted(name))
}

fn granted(service: &HttpAuthz, headers: &HeaderMap) -> Allowed {
    let pick = |names: &HeaderNames, how| {
        let found = passed(headers, |name| names.matches(name.as_str()));
        found.map(|(name, value)| Header { name: name.clone(), value: value.clone(), how }).collect::<Vec<_>>()
    };
    let mut request = pick(&service.upstream_headers, How::Set);
    request.extend(pick(&service.upstream_headers_to_append, How::Add));
    let lists = headers.get_all(HEADERS_TO_REMOVE).iter().filter_map(|list| list.to_str().ok());
    let removed = lists.flat_map(|list| list.split(',')).filter_map(|name| removable(name.trim()));
    Allowed { request, removed: removed.collect(), response: pick(&service.client_headers_on_success, How::Add), ..Allowed::default() }
}
