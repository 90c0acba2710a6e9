//! What a service is told: a `CheckRequest`, or a request like the one in question.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Method, Request, Uri};
use model::ext_authz::{ExtAuthz, HttpAuthz, Told};
use model::stream_view::RequestHead;

use super::wire;

const SERVICE_CLUSTER: &str = "x-envoy-downstream-service-cluster";
/// Says whether the body that is shown is all of it; what a caller says of it is not passed on.
pub(super) const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Its address, if it has one.
    pub address: Option<SocketAddr>,
    /// Who it has proven to be.
    pub principal: &'a str,
}

/// What was read of a body.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its first bytes.
    pub bytes: Bytes,
    /// Whether there are more.
    pub is_partial: bool,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
pub struct HttpFacts<'a> {
    /// Its head.
    pub head: RequestHead<'a>,
    /// `HTTP/1.1`.
    pub protocol: &'a str,
    /// When it came.
    pub time: SystemTime,
    /// What tells it from others.
    pub id: u64,
    /// Bytes of its body that have come.
    pub size: u64,
    /// What is shown of its body.
    pub shown: Option<&'a Shown>,
    /// The protocol that it asks to change to.
    pub upgrade: Option<&'a [u8]>,
    /// `context_extensions` of its route.
    pub context: &'a [(Box<str>, Box<str>)],
}

/// What a service may be told of.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The client.
    pub source: Peer<'a>,
    /// What was asked for, and who we are.
    pub destination: Peer<'a>,
    /// The request; none of a TCP connection.
    pub http: Option<HttpFacts<'a>>,
}

/// The body of a call of `Check`.
#[must_use]
pub fn grpc_call(told: &Told, facts: &Facts<'_>) -> Bytes {
    let mut source = peer(&facts.source);
    let service = facts.http.and_then(|http| http.head.headers.get(SERVICE_CLUSTER));
    source.service = service.map(|service| mended(service.as_bytes()).into_owned()).unwrap_or_default();
    let context = facts.http.iter().flat_map(|http| http.context);
    wire::framed(&wire::CheckRequest {
        attributes: Some(wire::Attributes {
            source: Some(source),
            destination: Some(peer(&facts.destination)),
            request: facts.http.as_ref().map(|http| request(told, http)),
            context_extensions: context.map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            metadata_context: Some(wire::Empty {}),
            route_metadata_context: facts.http.map(|_| wire::Empty {}),
        }),
    })
}

fn peer(peer: &Peer<'_>) -> wire::Peer {
    let address = peer.address.map(|address| wire::Address {
        socket_address: Some(wire::SocketAddress { address: address.ip().to_string(), port: Some(u32::from(address.port())) }),
    });
    wire::Peer { address, service: String::new(), principal: peer.principal.to_owned() }
}

fn request(told: &Told, http: &HttpFacts<'_>) -> wire::Request {
    let head = &http.head;
    let since = http.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut request = wire::HttpRequest {
        id: http.id.to_string(),
        method: head.method.to_owned(),
        path: mended(head.path.as_bytes()).into_owned(),
        host: head.authority.unwrap_or_default().to_owned(),
        scheme: head.scheme.to_owned(),
        size: i64::try_from(http.size).unwrap_or(i64::MAX),
        protocol: http.protocol.to_owned(),
        ..wire::HttpRequest::default()
    };
    if told.raw_headers {
        let line = |(name, value): (&str, &[u8])| wire::HeaderValue {
            key: name.to_owned(),
            value: String::new(),
            raw_value: Bytes::copy_from_slice(value),
        };
        request.header_map = Some(wire::HeaderMap { headers: lines(told, http).map(line).collect() });
    } else {
        for (name, value) in lines(told, http) {
            let value = mended(value);
            match request.headers.get_mut(name) {
                None => drop(request.headers.insert(name.to_owned(), value.into_owned())),
                Some(all) => {
                    all.push(',');
                    all.push_str(&value);
                }
            }
        }
    }
    if let Some(shown) = http.shown {
        if told.body_is_bytes {
            request.raw_body = shown.bytes.clone();
        } else {
            request.body = mended(&shown.bytes).into_owned();
        }
    }
    let time = wire::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    };
    wire::Request { time: Some(time), http: Some(request) }
}

/// The lines of a head that may be told, pseudo-headers first.
fn lines<'a>(told: &'a Told, http: &HttpFacts<'a>) -> impl Iterator<Item = (&'a str, &'a [u8])> {
    let head = http.head;
    let pseudo =
        [(":authority", head.authority.unwrap_or_default()), (":path", head.path), (":method", head.method), (":scheme", head.scheme)];
    let pseudo = pseudo.into_iter().map(|(name, value)| (name, value.as_bytes()));
    let rest = head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let partial = http.shown.map(|shown| (PARTIAL_BODY, if shown.is_partial { &b"true"[..] } else { &b"false"[..] }));
    let upgrade = http.upgrade.map(|protocol| ("upgrade", protocol));
    let told_of = pseudo.chain(rest.filter(|(name, _)| *name != PARTIAL_BODY && *name != header::HOST)).chain(upgrade);
    let is_told = |name: &str| told.headers.as_ref().is_none_or(|names| names.matches(name)) && !told.hidden_headers.matches(name);
    told_of.filter(move |(name, _)| is_told(name)).chain(partial)
}

/// A text of bytes; each that is no part of UTF-8 becomes an exclamation mark, as in Envoy.
fn mended(bytes: &[u8]) -> Cow<'_, str> {
    let mut rest = match std::str::from_utf8(bytes) {
        Ok(text) => return Cow::Borrowed(text),
        Err(_) => bytes,
    };
    let mut text = String::with_capacity(bytes.len());
    while let Err(error) = std::str::from_utf8(rest) {
        let (good, bad) = rest.split_at(error.valid_up_to());
        text.push_str(std::str::from_utf8(good).unwrap_or_default());
        text.push('!');
        rest = bad.get(1..).unwrap_or_default();
    }
    text.push_str(std::str::from_utf8(rest).unwrap_or_default());
    Cow::Owned(text)
}

/// What an HTTP service is asked; none if what was configured makes no request of it.
#[must_use]
pub fn http_call(filter: &ExtAuthz, service: &HttpAuthz, http: &HttpFacts<'_>) -> Option<Request<Bytes>> {
    let mut headers = HeaderMap::new();
    for (name, value) in lines(&filter.told, http).filter(|(name, _)| !name.starts_with(':')) {
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) else { continue };
        if model::ext_authz::is_reserved(&name) || name == header::EXPECT {
            continue;
        }
        join(&mut headers, name, &value, filter.told.raw_headers);
    }
    for (name, value) in &service.headers_to_add {
        headers.insert(name, value.clone());
    }
    // What the request itself has in its first line, it has whatever else is told.
    headers.insert(header::HOST, HeaderValue::from_str(http.head.authority?).ok()?);
    let body = http.shown.map(|shown| shown.bytes.clone()).unwrap_or_default();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(PathAndQuery::try_from(format!("{}{}", service.path_prefix, http.head.path)).ok()?);
    let mut request = Request::new(body);
    *request.method_mut() = Method::from_bytes(http.head.method.as_bytes()).ok()?;
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    *request.headers_mut() = headers;
    Some(request)
}

/// Lines of one name are one, unless each is to be by itself.
fn join(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue, is_raw: bool) {
    let joined = headers.get(&name).filter(|_| !is_raw).map(|known| [known.as_bytes(), b",", value.as_bytes()].concat());
    match joined.and_then(|joined| HeaderValue::from_bytes(&joined).ok()) {
        Some(joined) => drop(headers.insert(name, joined)),
        None => drop(headers.append(name, value.clone())),
    }
}
