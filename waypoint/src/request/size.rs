//! How long heads are on the wire, as HTTP/1.1 would write them.

use http::{Extensions, HeaderMap, StatusCode};

use crate::http::normalize::UpgradeRequested;

/// Of a request's first line, beside method and path: two blanks, the version, the end of the line.
pub(super) const REQUEST_LINE_OVERHEAD: usize = 12;

/// Of an answer's: version, blank, status, blank, reason, the end of the line.
pub(super) fn status_line_bytes(status: StatusCode) -> usize {
    15 + status.canonical_reason().map_or(0, str::len)
}

/// Bytes that a head takes on the wire as HTTP/1.1 would write it: what `istio_request_bytes` counts beside the body.
pub(super) fn head_bytes(headers: &HeaderMap, line_bytes: usize) -> u64 {
    const FIELD_OVERHEAD: usize = 4; // colon, space, CRLF
    const END: usize = 2; // an empty line
    let fields: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD).sum();
    u64::try_from(line_bytes + fields + END).unwrap_or(u64::MAX)
}

/// Of a head that asks for another protocol or tells of it, the two fields that say so: they are of the connection, and no longer in it.
pub(super) fn upgrade_bytes(extensions: &Extensions) -> u64 {
    const FIELDS: &str = "connection: upgrade\r\nupgrade: \r\n";
    let fields = extensions.get::<UpgradeRequested>().map_or(0, |UpgradeRequested(protocol)| FIELDS.len() + protocol.len());
    u64::try_from(fields).unwrap_or(u64::MAX)
}
