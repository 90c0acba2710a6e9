//! Message heads, checked and made uniform. Pure functions, no I/O.
//!
//! Between [`request_in`] and [`request_out`] a request has one form, whatever it came by: an origin-form target (or `*`),
//! its authority in exactly one `host` field, a normalised path, one `content-length` at most, and no hop-by-hop
//! field. So what a rule decides on is what the upstream will see.
//!
//! What the HTTP/1.1 codec hides is not checked here: it drops a `content-length` beside a `transfer-encoding` and closes
//! after the answer, as RFC 9112 §6.3 allows (`docs/http-core.md` lists what the codec does by itself).

mod path;
#[cfg(test)]
mod tests;

use ::h2::Reason;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request;
use http::uri::{PathAndQuery, Scheme};
use http::{Method, StatusCode, Uri, Version};
use model::chain::{EscapedSlashes, UnderscoreNames};

use super::headers::{HTTP2_SETTINGS, KEEP_ALIVE, PROXY_CONNECTION};
use super::session::Protocol;
use path::has_escaped_slash;
pub use path::normalize_path;

/// How heads of requests are made uniform: settings of the connection manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadOptions {
    /// Resolve dot segments, decode escapes of unreserved characters, read `\` as `/`, escape what no path may have raw (`normalize_path`).
    pub normalize: bool,
    /// `//` becomes `/` (`merge_slashes`).
    pub merge_slashes: bool,
    /// What becomes of `%2F` and `%5C`, first (`path_with_escaped_slashes_action`).
    pub escaped_slashes: EscapedSlashes,
    /// HTTP/1.0 is accepted (`accept_http_10`).
    pub accepts_http1_0: bool,
    /// `headers_with_underscores_action`.
    pub underscores: UnderscoreNames,
}

impl Default for HeadOptions {
    /// Istio's default of paths, `BASE`: `//` and `%2F` stay. All that the codec reads is accepted.
    fn default() -> HeadOptions {
        HeadOptions {
            normalize: true,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::Kept,
            accepts_http1_0: true,
            underscores: UnderscoreNames::Allowed,
        }
    }
}

/// A request or response that is none, or that two readers could read differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// The codec could not read the head: RFC 9112 §2 to §5.
    #[error("the message head is malformed")]
    Syntax,
    /// The head is larger than allowed, or has too many fields (RFC 6585 §5).
    #[error("the message head is too large")]
    HeadTooLarge,
    /// No complete head in time.
    #[error("the message head did not arrive in time")]
    HeadTimeout,
    /// HTTP/1.0, which is not accepted.
    #[error("HTTP/1.0 is not accepted")]
    VersionTooLow,
    /// A header has an underscore in its name, where that is not allowed.
    #[error("a header's name has an underscore")]
    Underscore,
    /// HTTP/1.1 or HTTP/2 without an authority (RFC 9112 §3.2).
    #[error("the request has no host")]
    HostMissing,
    /// More than one `host` (RFC 9112 §3.2).
    #[error("the request has more than one host")]
    HostRepeated,
    /// Not `host[:port]`, or with user information (RFC 9110 §4.2.4).
    #[error("the host of the request is invalid")]
    HostInvalid,
    /// `:authority` names another host than `host` does (RFC 9113 §8.3.1).
    #[error("the host of the request differs from its target")]
    HostDiffers,
    /// `content-length` is no number, or repeated with another value (RFC 9112 §6.3).
    #[error("the content-length is invalid")]
    LengthInvalid,
    /// Both `content-length` and `transfer-encoding` (RFC 9112 §6.3); seen in responses, see the module's header.
    #[error("the message has a content-length and a transfer-encoding")]
    LengthAndCoding,
    /// A transfer coding other than one `chunked` (RFC 9112 §6.1).
    #[error("the transfer-encoding is not chunked alone")]
    CodingUnknown,
    /// The path does not begin with `/`, or has an escaped NUL where it is normalised.
    #[error("the path of the request is invalid")]
    PathInvalid,
    /// `CONNECT` inside the tunnel.
    #[error("CONNECT is not supported here")]
    Connect,
    /// A 101 that nobody asked for.
    #[error("the upgrade was not asked for")]
    UpgradeUnasked,
}

impl Malformed {
    /// What the client is answered.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Malformed::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Malformed::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
            Malformed::CodingUnknown => StatusCode::NOT_IMPLEMENTED,
            Malformed::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Malformed::VersionTooLow => StatusCode::UPGRADE_REQUIRED,
            Malformed::Syntax
            | Malformed::HostMissing
            | Malformed::HostRepeated
            | Malformed::HostInvalid
            | Malformed::HostDiffers
            | Malformed::LengthInvalid
            | Malformed::LengthAndCoding
            | Malformed::PathInvalid
            | Malformed::Underscore
            | Malformed::UpgradeUnasked => StatusCode::BAD_REQUEST,
        }
    }

    /// What an HTTP/1.1 client reads in that answer: Envoy's text.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Malformed::VersionTooLow => "Upgrade Required",
            Malformed::Underscore => "Bad Request",
            Malformed::HeadTimeout => "request header timeout",
            _ => "",
        }
    }

    /// With which code the stream of an HTTP/2 client is reset, if it gets no answer: as Envoy does.
    #[must_use]
    pub fn reset(self) -> Option<Reason> {
        (self == Malformed::Underscore).then_some(Reason::INTERNAL_ERROR)
    }
}

/// The protocol that a client asks to change to, by `connection: upgrade` or an extended CONNECT. In the request's extensions.
///
/// `h2c` never gets here: it would let HTTP/2 pass unseen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeRequested(pub HeaderValue);

/// The scheme that a request says, unless it is the `http` of an HTTP/2 request. In its extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestScheme(pub Scheme);

/// The path had escaped slashes, and the request goes no further. In its extensions; its path is as it would be without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlashFound {
    /// It is refused.
    Refused,
    /// The client is to ask for the path as it is now.
    Redirected,
}

impl SlashFound {
    /// Whether a client may be sent to this path, which it would take for another host's if it began with two slashes (RFC 3986 §4.2).
    #[must_use]
    pub fn redirects_to(self, path: &str) -> bool {
        self == Self::Redirected && !matches!(path.as_bytes().get(1), Some(b'/' | b'\\'))
    }
}

/// Fields that `connection` may not remove: what identifies, authorises, frames or traces the request end to end.
/// A client that could remove them would undo what a proxy before us added.
const NEVER_NOMINATED: [HeaderName; 12] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    header::DATE,
    header::FORWARDED,
    header::VIA,
    header::TE,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-request-id"),
];
/// Families of such fields.
const NEVER_NOMINATED_PREFIXES: [&str; 3] = ["x-forwarded-", "x-envoy-", "x-b3-"];

/// Checks a request's head as it came from a client, and makes it uniform.
///
/// # Errors
/// Why it must not be forwarded.
pub fn request_in(parts: &mut request::Parts, protocol: Protocol, options: &HeadOptions) -> Result<(), Malformed> {
    if parts.version == Version::HTTP_10 && !options.accepts_http1_0 {
        return Err(Malformed::VersionTooLow);
    }
    check_names(&mut parts.headers, options.underscores)?;
    let extended = extended_connect(parts)?;
    check_framing(&mut parts.headers)?;
    let upgrade = match protocol {
        Protocol::Http1 => upgrade_requested(parts),
        Protocol::Http2 => extended,
    };
    strip_hop_by_hop(&mut parts.headers);
    // Before any rule looks at cookies: crumbs are one field, and not a list joined by commas.
    merge_cookies(&mut parts.headers);
    check_host(parts, protocol)?;
    rewrite_target(parts, options)?;
    if let Some(upgrade) = upgrade {
        parts.extensions.insert(upgrade);
    }
    Ok(())
}

/// Checks a response's head as it came from an upstream, and removes what was meant for this hop only.
///
/// # Errors
/// Why it must not be forwarded.
pub fn response_in(status: StatusCode, headers: &mut HeaderMap) -> Result<(), Malformed> {
    if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
        return Err(Malformed::LengthAndCoding);
    }
    check_framing(headers)?;
    if status == StatusCode::NO_CONTENT {
        headers.remove(header::CONTENT_LENGTH);
    }
    strip_hop_by_hop(headers);
    Ok(())
}

/// Makes a uniform request one for an HTTP/1.1 upstream.
pub fn request_out_http1(parts: &mut request::Parts) {
    parts.version = Version::HTTP_11;
    merge_cookies(&mut parts.headers);
    if let Some(UpgradeRequested(protocol)) = parts.extensions.get::<UpgradeRequested>() {
        parts.headers.insert(header::UPGRADE, protocol.clone());
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// The target of a uniform request for an HTTP/2 upstream; its `host` becomes `:authority`.
///
/// # Errors
/// [`Malformed::HostInvalid`] or [`Malformed::PathInvalid`] if the request was not uniform.
pub fn target_http2(parts: &request::Parts) -> Result<Uri, Malformed> {
    if parts.method == Method::CONNECT && parts.uri.path_and_query().is_none() {
        // A tunnel has nothing but an authority (RFC 9113 §8.5).
        return Ok(parts.uri.clone());
    }
    let scheme = parts.extensions.get::<RequestScheme>().map_or(Scheme::HTTP, |RequestScheme(scheme)| scheme.clone());
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(scheme);
    uri.path_and_query = parts.uri.path_and_query().cloned();
    let host = parts.headers.get(header::HOST).ok_or(Malformed::HostMissing)?;
    uri.authority = Some(host.as_bytes().try_into().map_err(|_invalid| Malformed::HostInvalid)?);
    Uri::from_parts(uri).map_err(|_invalid| Malformed::PathInvalid)
}

/// The `content-length` of a head, if it has one that is a number.
#[must_use]
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    parse_length(headers.get(header::CONTENT_LENGTH)?).ok()
}

/// Removes the fields that mean only one connection (RFC 9110 §7.6.1): the well-known, and those that `connection` names.
/// `te` stays if it says `trailers`, since that is what an upstream is to know end to end.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // One look at the names, which nearly always finds none, is cheaper than a look-up for each that there may be.
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    if headers.contains_key(header::CONNECTION) {
        remove_nominated(headers);
        headers.remove(header::CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, HTTP2_SETTINGS] {
        headers.remove(name);
    }
    if headers.contains_key(header::TE) {
        let has_trailers = headers.get_all(header::TE).iter().flat_map(tokens).any(|token| token.eq_ignore_ascii_case(b"trailers"));
        if has_trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
}

/// Whether an HTTP/1.0 client asks for its connection to be kept (RFC 9112 §9.3).
#[must_use]
pub fn asks_to_keep_alive(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().flat_map(tokens).any(|token| token.eq_ignore_ascii_case(b"keep-alive"))
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(name.as_str(), "te" | "upgrade" | "connection" | "keep-alive" | "http2-settings" | "proxy-connection" | "transfer-encoding")
}

fn remove_nominated(headers: &mut HeaderMap) {
    let nominated: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(tokens)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !NEVER_NOMINATED.contains(name) && !NEVER_NOMINATED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix)))
        .collect();
    for name in nominated {
        headers.remove(name);
    }
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Names with underscores, of a request's headers or trailers.
///
/// # Errors
/// There is one, and it is to be refused.
pub fn check_names(headers: &mut HeaderMap, underscores: UnderscoreNames) -> Result<(), Malformed> {
    let has_underscore = |name: &HeaderName| name.as_str().contains('_');
    if underscores == UnderscoreNames::Allowed || !headers.keys().any(has_underscore) {
        return Ok(());
    }
    if underscores == UnderscoreNames::Refused {
        return Err(Malformed::Underscore);
    }
    let dropped: Vec<HeaderName> = headers.keys().filter(|name| has_underscore(name)).cloned().collect();
    for name in dropped {
        headers.remove(name);
    }
    Ok(())
}

/// One `content-length` at most, a number; one `transfer-encoding` at most, `chunked`.
fn check_framing(headers: &mut HeaderMap) -> Result<(), Malformed> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(Malformed::CodingUnknown);
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(()) };
    let length = parse_length(first)?;
    let mut is_repeated = false;
    for other in lengths {
        if parse_length(other)? != length {
            return Err(Malformed::LengthInvalid);
        }
        is_repeated = true;
    }
    if is_repeated {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(())
}

fn parse_length(value: &HeaderValue) -> Result<u64, Malformed> {
    let digits = value.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed::LengthInvalid);
    }
    digits
        .iter()
        .try_fold(0_u64, |length, digit| length.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .ok_or(Malformed::LengthInvalid)
}

/// An upgrade needs `upgrade`, and `connection` naming it (RFC 9110 §7.8).
fn upgrade_requested(parts: &request::Parts) -> Option<UpgradeRequested> {
    let protocol = parts.headers.get(header::UPGRADE)?;
    let is_asked = parts.headers.get_all(header::CONNECTION).iter().flat_map(tokens).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    let is_http2 = parts.headers.get_all(header::UPGRADE).iter().flat_map(tokens).any(|token| token.eq_ignore_ascii_case(b"h2c"));
    (is_asked && !is_http2 && parts.version == Version::HTTP_11).then(|| UpgradeRequested(protocol.clone()))
}

/// The protocol of an extended CONNECT, which is a `GET` from here on (Envoy). Its length is that of no body.
///
/// `h2c` is refused, since what is inside would be read by nobody here.
fn extended_connect(parts: &mut request::Parts) -> Result<Option<UpgradeRequested>, Malformed> {
    if parts.method != Method::CONNECT {
        return Ok(None);
    }
    let protocol = parts.extensions.remove::<::h2::ext::Protocol>().ok_or(Malformed::Connect)?;
    if protocol.as_str().eq_ignore_ascii_case("h2c") {
        return Err(Malformed::Connect);
    }
    let protocol = HeaderValue::from_str(protocol.as_str()).map_err(|_invalid| Malformed::Connect)?;
    parts.method = Method::GET;
    parts.headers.remove(header::CONTENT_LENGTH);
    Ok(Some(UpgradeRequested(protocol)))
}

fn check_host(parts: &mut request::Parts, protocol: Protocol) -> Result<(), Malformed> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Malformed::HostRepeated);
    }
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    match (host.map(HeaderValue::as_bytes), authority) {
        (Some(host), None) => check_host_value(host),
        (Some(host), Some(authority)) => {
            check_host_value(host)?;
            if is_same_host(host, authority) {
                return Ok(());
            }
            if protocol == Protocol::Http2 {
                return Err(Malformed::HostDiffers);
            }
            // RFC 9112 §3.2.2: the target's host is the one, and what is forwarded says so.
            check_host_value(authority)?;
            let authority = HeaderValue::from_bytes(authority).map_err(|_invalid| Malformed::HostInvalid)?;
            parts.headers.insert(header::HOST, authority);
            Ok(())
        }
        (None, Some(authority)) => {
            check_host_value(authority)?;
            let host = HeaderValue::from_bytes(authority).map_err(|_invalid| Malformed::HostInvalid)?;
            if protocol == Protocol::Http1 && parts.version != Version::HTTP_10 {
                return Err(Malformed::HostMissing);
            }
            parts.headers.insert(header::HOST, host);
            Ok(())
        }
        (None, None) => Err(Malformed::HostMissing),
    }
}

fn is_same_host(host: &[u8], authority: &[u8]) -> bool {
    let default_port = |name: &[u8]| name.strip_suffix(b":80").map_or(name.len(), <[u8]>::len);
    host[..default_port(host)].eq_ignore_ascii_case(&authority[..default_port(authority)])
}

/// Whether it may be the host of a request: `uri-host [ ":" port ]` (RFC 9110 §7.2), not empty, without user information.
#[must_use]
pub fn is_host(host: &[u8]) -> bool {
    check_host_value(host).is_ok()
}

/// As [`is_host`].
fn check_host_value(host: &[u8]) -> Result<(), Malformed> {
    let (name, port) = if host.first() == Some(&b'[') {
        let end = host.iter().position(|byte| *byte == b']').ok_or(Malformed::HostInvalid)?;
        let is_address = host[1..end].iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
        if !is_address {
            return Err(Malformed::HostInvalid);
        }
        (&host[..=end], &host[end + 1..])
    } else {
        let end = host.iter().position(|byte| *byte == b':').unwrap_or(host.len());
        let is_name = host[..end].iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte));
        if !is_name {
            return Err(Malformed::HostInvalid);
        }
        host.split_at(end)
    };
    let is_port = port.is_empty() || (port[0] == b':' && port.len() <= 6 && port[1..].iter().all(u8::is_ascii_digit));
    if name.is_empty() || !is_port { Err(Malformed::HostInvalid) } else { Ok(()) }
}

/// Origin form with a normalised path, or `*` for `OPTIONS`.
fn rewrite_target(parts: &mut request::Parts, options: &HeadOptions) -> Result<(), Malformed> {
    let is_absolute = parts.uri.authority().is_some();
    // Rules see it, and redirects lead there (Envoy: no other is valid).
    if parts.version != Version::HTTP_2 && parts.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err(Malformed::Syntax);
    }
    if let Some(scheme) = parts.uri.scheme()
        && (*scheme != Scheme::HTTP || parts.version != Version::HTTP_2)
    {
        parts.extensions.insert(RequestScheme(scheme.clone()));
    }
    let target = parts.uri.path_and_query().ok_or(Malformed::PathInvalid)?;
    if target.as_str() == "*" {
        if parts.method != Method::OPTIONS {
            return Err(Malformed::PathInvalid);
        }
    } else if !target.as_str().starts_with('/') {
        return Err(Malformed::PathInvalid);
    }
    let found = match options.escaped_slashes {
        EscapedSlashes::Kept | EscapedSlashes::Unescaped => None,
        EscapedSlashes::Redirected => Some(SlashFound::Redirected),
        EscapedSlashes::Refused => Some(SlashFound::Refused),
    };
    let mut options = *options;
    if let Some(found) = found
        && has_escaped_slash(target.path())
    {
        parts.extensions.insert(found);
        if found == SlashFound::Refused {
            // Nothing else is made of it (Envoy).
            (options.normalize, options.merge_slashes) = (false, false);
        }
    }
    let target = match normalize_path(target.path(), &options)? {
        Some(path) => {
            let text = match target.query() {
                Some(query) => format!("{path}?{query}"),
                None => path,
            };
            PathAndQuery::try_from(text).map_err(|_invalid| Malformed::PathInvalid)?
        }
        None if is_absolute => target.clone(),
        None => return Ok(()),
    };
    parts.uri = Uri::from(target);
    Ok(())
}

/// One `cookie` line for HTTP/1.1 from the crumbs that HTTP/2 allows (RFC 9113 §8.2.3).
fn merge_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut line = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        line.extend_from_slice(b"; ");
        line.extend_from_slice(crumb.as_bytes());
    }
    let line = HeaderValue::from_maybe_shared(bytes::Bytes::from(line)).expect("values joined by visible bytes are a value");
    headers.insert(header::COOKIE, line);
}
