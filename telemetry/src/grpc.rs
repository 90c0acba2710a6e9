//! What metrics, lines and spans need to know of gRPC: is a request one, and how did it end.
//!
//! Not for: framing. Source: gRPC over HTTP/2; Envoy's `Grpc::Common` for what counts as gRPC and for derived codes.

use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderName};

/// `grpc-status`.
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// A status of the gRPC specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrpcStatus(u8);

/// The names Envoy prints, by number.
const NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

impl GrpcStatus {
    /// `OK`.
    pub const OK: Self = Self(0);
    /// `UNKNOWN`, also for every code outside the specification.
    pub const UNKNOWN: Self = Self(2);

    /// A status by its number; a number outside the specification is [`Self::UNKNOWN`], as gRPC clients read it.
    #[must_use]
    pub fn new(number: u32) -> Self {
        match u8::try_from(number) {
            Ok(number) if usize::from(number) < NAMES.len() => Self(number),
            _ => Self::UNKNOWN,
        }
    }

    /// The status that an HTTP status without a gRPC one stands for (`envoy:source/common/grpc/status.cc`); none for 0.
    #[must_use]
    pub fn from_http(code: u16) -> Option<Self> {
        Some(Self(match code {
            0 => return None,
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502 | 503 | 504 => 14,
            _ => 2,
        }))
    }

    /// The HTTP status that says the same (`envoy:source/common/grpc/status.cc`).
    #[must_use]
    pub fn to_http(self) -> u16 {
        match self.0 {
            0 => 200,
            1 => 499,
            3 | 9 | 11 => 400,
            4 => 504,
            5 => 404,
            6 | 10 => 409,
            7 => 403,
            8 => 429,
            12 => 501,
            14 => 503,
            16 => 401,
            _ => 500,
        }
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// Its name as Envoy prints it, `NotFound`.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }

    /// Whether a span with it has the status ERROR.
    pub(crate) fn fails_span(self) -> bool {
        matches!(self.0, 2 | 4 | 12..=15)
    }

    /// Whether a span with it carries `error`: the same, and `ResourceExhausted`.
    pub(crate) fn is_error(self) -> bool {
        self.fails_span() || self.0 == 8
    }
}

/// Whether these request headers are of gRPC: `application/grpc`, alone or followed by `+`; not gRPC-Web.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(rest) = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().strip_prefix(b"application/grpc")) else {
        return false;
    };
    rest.first().is_none_or(|next| *next == b'+')
}

/// `grpc-status` of headers or trailers. What is not a number of the specification is [`GrpcStatus::UNKNOWN`].
#[must_use]
pub fn status_of(headers: &HeaderMap) -> Option<GrpcStatus> {
    let value = headers.get(GRPC_STATUS)?;
    Some(value.to_str().ok().and_then(|text| text.parse().ok()).map_or(GrpcStatus::UNKNOWN, GrpcStatus::new))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn only_application_grpc_and_its_suffixes_are_grpc() {
        for (content_type, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&headers(CONTENT_TYPE, content_type)), expected, "{content_type}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn a_missing_grpc_status_is_derived_from_the_http_status() {
        let derived: Vec<_> =
            [400, 401, 403, 404, 429, 502, 503, 504, 200, 418].map(|code| GrpcStatus::from_http(code).unwrap().number()).into();
        assert_eq!(derived, [13, 16, 7, 12, 14, 14, 14, 14, 2, 2]);
        assert_eq!(GrpcStatus::from_http(0), None);
    }

    #[test]
    fn a_status_outside_the_specification_is_unknown() {
        assert_eq!(status_of(&headers(GRPC_STATUS, "5")).map(GrpcStatus::name), Some("NotFound"));
        assert_eq!(status_of(&headers(GRPC_STATUS, "4711")), Some(GrpcStatus::UNKNOWN));
        assert_eq!(status_of(&headers(GRPC_STATUS, "x")), Some(GrpcStatus::UNKNOWN));
        assert_eq!(status_of(&HeaderMap::new()), None);
    }
}
