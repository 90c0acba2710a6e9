//! Paths as rules and upstreams are to see them.
//!
//! Follows what istiod asks of Envoy: `BASE` (RFC 3986 §6.2.2: dot segments, escapes of unreserved characters, `\` read as
//! `/`, and escapes of what no path may have raw), `MERGE_SLASHES`, `DECODE_AND_MERGE_SLASHES`. A query is never touched.

use model::chain::EscapedSlashes;

use super::{HeadOptions, Malformed};

/// Whether there is a `%2F` or a `%5C` in it.
pub(super) fn has_escaped_slash(path: &str) -> bool {
    let bytes = path.as_bytes();
    (0..bytes.len()).any(|at| matches!(escaped(&bytes[at..]), Some(b'/' | b'\\')))
}

fn unescapes(options: &HeadOptions) -> bool {
    options.escaped_slashes != EscapedSlashes::Kept
}

/// The normalised path, or `None` if it is normal already.
///
/// # Errors
/// [`Malformed::PathInvalid`] if it has an escaped NUL and is to be normalised.
pub fn normalize_path(path: &str, options: &HeadOptions) -> Result<Option<String>, Malformed> {
    if is_normal(path, options) {
        return Ok(None);
    }
    let decoded = if options.normalize || unescapes(options) { decode(path, options)? } else { path.as_bytes().to_vec() };
    let resolved = if options.normalize { resolve_dots(&decoded) } else { decoded };
    let merged = if options.merge_slashes { merge_slashes(resolved) } else { resolved };
    let text = String::from_utf8(merged).map_err(|_invalid| Malformed::PathInvalid)?;
    Ok((text != path).then_some(text))
}

/// The common case, decided in one pass without allocation: nothing in it that any option touches.
fn is_normal(path: &str, options: &HeadOptions) -> bool {
    let mut before = 0_u8;
    for byte in path.bytes() {
        let is_special = match byte {
            b'%' | b'\\' => options.normalize || unescapes(options),
            b'.' => options.normalize && before == b'/',
            byte if is_escaped(byte) => options.normalize,
            b'/' => options.merge_slashes && before == b'/',
            _ => false,
        };
        if is_special {
            return false;
        }
        before = byte;
    }
    true
}

fn decode(path: &str, options: &HeadOptions) -> Result<Vec<u8>, Malformed> {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut bare = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                // A `%` that escapes nothing is a byte like others, as for Envoy.
                let Some(byte) = escaped(&bytes[at..]) else {
                    bare.push(decoded.len());
                    decoded.push(b'%');
                    at += 1;
                    continue;
                };
                if byte == 0 && options.normalize {
                    return Err(Malformed::PathInvalid);
                }
                let is_slash = matches!(byte, b'/' | b'\\') && unescapes(options);
                let is_unreserved = options.normalize && (byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
                if is_slash {
                    decoded.push(if options.normalize { b'/' } else { byte });
                } else if is_unreserved {
                    decoded.push(byte);
                } else {
                    decoded.extend_from_slice(&bytes[at..at + 3]);
                }
                at += 3;
                continue;
            }
            b'\\' if options.normalize => decoded.push(b'/'),
            byte if options.normalize && is_escaped(byte) => {
                decoded.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            byte => decoded.push(byte),
        }
        at += 1;
    }
    // What was decoded must not make an escape of a `%` that was none: `%%32e` is `%252e`, and not `%2e`, which the upstream would decode
    // behind the back of every rule.
    for at in bare.into_iter().rev() {
        if escaped(&decoded[at..]).is_some() {
            decoded.splice(at..=at, *b"%25");
        }
    }
    Ok(decoded)
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// What Envoy's `normalize_path` escapes, so that a rule on the escaped form sees both. Bytes beyond ASCII it refuses
/// over HTTP/1.1; here they are escaped.
const fn is_escaped(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x7f..)
}

/// The byte that an escape at the beginning of `bytes` stands for; none if there is no whole escape.
fn escaped(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else { return None };
    Some(hex(*high)? << 4 | hex(*low)?)
}

fn hex(digit: u8) -> Option<u8> {
    Some(match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => return None,
    })
}

/// RFC 3986 §5.2.4, except that empty segments count: `..` at the root stays there. Parameters of a dot segment (`/..;x/`) go with it, as
/// Envoy has it: servers that know them would resolve what no rule had seen.
fn resolve_dots(path: &[u8]) -> Vec<u8> {
    let Some(path) = path.strip_prefix(b"/") else { return path.to_vec() };
    let mut resolved: Vec<u8> = Vec::with_capacity(path.len() + 1);
    let mut segments = path.split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match without_parameters(segment) {
            dots @ (b"." | b"..") => {
                if dots == b".." {
                    let parent = resolved.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                    resolved.truncate(parent);
                }
                if is_last {
                    resolved.push(b'/');
                }
            }
            _ => {
                resolved.push(b'/');
                resolved.extend_from_slice(segment);
            }
        }
    }
    resolved
}

fn without_parameters(segment: &[u8]) -> &[u8] {
    segment.split(|byte| *byte == b';').next().unwrap_or(segment)
}

fn merge_slashes(mut path: Vec<u8>) -> Vec<u8> {
    path.dedup_by(|next, before| *next == b'/' && *before == b'/');
    path
}
