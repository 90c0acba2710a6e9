//! Conditions of policies in words, by the names of Istio's condition keys.
//!
//! Not for: parsing; what is written here is for people. Invariant: with [`Values::Hidden`] no value of a header or claim is written,
//! since those can be secrets.

use std::fmt::{self, Write as _};

use model::claims::{ClaimMatcher, ClaimTest};
use model::matcher::{Identities, StringMatcher};
use model::rbac::{Permission, Principal};
use model::route::{HeaderMatcher, HeaderTest, MatchedHeader};

use super::Clause;

/// Whether values of headers and claims are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// They are.
    Shown,
    /// They are not.
    Hidden,
}

/// What stands for the end of a text that is too long.
const CUT: &str = "…";

/// A condition in words, of at most `bytes_max` bytes and a mark that something is missing.
#[must_use]
pub fn words(clause: Clause<'_>, values: Values, bytes_max: usize) -> String {
    let mut out = Bounded { text: String::new(), bytes_max };
    // An error means that the text is full.
    let written = match clause {
        Clause::Principal(principal) => write_principal(principal, values, &mut out),
        Clause::Permission(permission) => write_permission(permission, values, &mut out),
    };
    if written.is_err() {
        out.text.push_str(CUT);
    }
    out.text
}

/// A text that takes so much and no more.
struct Bounded {
    text: String,
    bytes_max: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = self.bytes_max - self.text.len();
        if text.len() <= left {
            self.text.push_str(text);
            return Ok(());
        }
        let cut = (0..=left).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        self.text.push_str(&text[..cut]);
        self.bytes_max = self.text.len();
        Err(fmt::Error)
    }
}

fn write_permission(permission: &Permission, values: Values, out: &mut Bounded) -> fmt::Result {
    match permission {
        Permission::Any => out.write_str("anything"),
        Permission::And(all) => write_all(all, " and ", "anything", out, |one, out| write_permission(one, values, out)),
        Permission::Or(all) => write_all(all, " or ", "nothing", out, |one, out| write_permission(one, values, out)),
        Permission::Not(one) => {
            out.write_str("not (")?;
            write_permission(one, values, out)?;
            out.write_str(")")
        }
        Permission::Header(matcher) => write_header(matcher, values, out),
        Permission::UrlPath(matcher) => write_text("request.path", matcher, out),
        Permission::DestinationIp(range) => write!(out, "destination.ip in {range}"),
        Permission::DestinationPort(port) => write!(out, "destination.port is {port}"),
        Permission::DestinationPortRange(ports) => write!(out, "destination.port from {} below {}", ports.start, ports.end),
        Permission::UriTemplate(template) => write!(out, "request.path like {:?}", template.text),
        Permission::ServerName(matcher) => write_text("connection.sni", matcher, out),
        Permission::Claim(matcher) => write_claim(matcher, values, out),
    }
}

fn write_principal(principal: &Principal, values: Values, out: &mut Bounded) -> fmt::Result {
    match principal {
        Principal::Any => out.write_str("anyone"),
        Principal::And(all) => write_all(all, " and ", "anyone", out, |one, out| write_principal(one, values, out)),
        Principal::Or(all) => write_all(all, " or ", "nobody", out, |one, out| write_principal(one, values, out)),
        Principal::Not(one) => {
            out.write_str("not (")?;
            write_principal(one, values, out)?;
            out.write_str(")")
        }
        Principal::PeerPrincipal(StringMatcher::Globs(globs)) => match globs.identities() {
            Some(Identities::Namespace(namespace)) => write!(out, "source.namespace is {namespace:?}"),
            Some(Identities::Account { namespace, account }) => write!(out, "source.serviceAccount is \"{namespace}/{account}\""),
            None => write!(out, "source.principal like {:?}", globs.expression()),
        },
        Principal::PeerPrincipal(matcher) => write_text("source.principal", matcher, out),
        Principal::DirectRemoteIp(range) => write!(out, "source.ip in {range}"),
        Principal::RemoteIp(range) => write!(out, "remote.ip in {range}"),
        Principal::Header(matcher) => write_header(matcher, values, out),
        Principal::UrlPath(matcher) => write_text("request.path", matcher, out),
        Principal::Claim(matcher) => write_claim(matcher, values, out),
    }
}

fn write_all<T>(
    all: &[T],
    between: &str,
    if_empty: &str,
    out: &mut Bounded,
    mut write: impl FnMut(&T, &mut Bounded) -> fmt::Result,
) -> fmt::Result {
    if all.is_empty() {
        return out.write_str(if_empty);
    }
    for (at, one) in all.iter().enumerate() {
        if at > 0 {
            out.write_str(between)?;
        }
        write(one, out)?;
    }
    Ok(())
}

fn write_header(matcher: &HeaderMatcher, values: Values, out: &mut Bounded) -> fmt::Result {
    let is_not = if matcher.invert { "not " } else { "" };
    let name = match &matcher.name {
        MatchedHeader::Method => format!("{is_not}request.method"),
        MatchedHeader::Authority => format!("{is_not}request.host"),
        MatchedHeader::Path => format!("{is_not}:path"),
        MatchedHeader::Scheme => format!("{is_not}:scheme"),
        MatchedHeader::Name(name) => format!("{is_not}request.headers[{name}]"),
    };
    match (&matcher.test, &matcher.name) {
        (HeaderTest::Present(true), _) => write!(out, "{name} is there"),
        (HeaderTest::Present(false), _) => write!(out, "{name} is not there"),
        (HeaderTest::Text(_), MatchedHeader::Name(_)) if values == Values::Hidden => write!(out, "{name} has a value that is wanted"),
        (HeaderTest::Text(test), _) => write_text(&name, test, out),
    }
}

fn write_claim(matcher: &ClaimMatcher, values: Values, out: &mut Bounded) -> fmt::Result {
    out.write_str(if matcher.invert { "not request.auth" } else { "request.auth" })?;
    // The first part names the payload, which istiod calls `payload`.
    for name in matcher.path.iter().skip(1) {
        write!(out, "[{name}]")?;
    }
    match values {
        Values::Hidden => out.write_str(" has a value that is wanted"),
        Values::Shown => write_claim_test(&matcher.test, out),
    }
}

fn write_claim_test(test: &ClaimTest, out: &mut Bounded) -> fmt::Result {
    match test {
        ClaimTest::Null => out.write_str(" is null"),
        ClaimTest::Present => out.write_str(" is there"),
        ClaimTest::Never => out.write_str(" is never right"),
        ClaimTest::Number(number) => write!(out, " is {number}"),
        ClaimTest::NumberIn(range) => write!(out, " from {} below {}", range.start, range.end),
        ClaimTest::Bool(value) => write!(out, " is {value}"),
        ClaimTest::Text(matcher) => write_text("", matcher, out),
        ClaimTest::OneOf(one) => {
            out.write_str(" has an item that")?;
            write_claim_test(one, out)
        }
        ClaimTest::Or(all) => write_all(all, " or", " is never right", out, write_claim_test),
    }
}

fn write_text(what: &str, matcher: &StringMatcher, out: &mut Bounded) -> fmt::Result {
    let (how, text, any_case) = match matcher {
        StringMatcher::Exact(text) => ("is", text, ""),
        StringMatcher::Prefix(text) => ("begins with", text, ""),
        StringMatcher::Suffix(text) => ("ends with", text, ""),
        StringMatcher::Contains(text) => ("contains", text, ""),
        StringMatcher::ExactIgnoreCase(text) => ("is", text, " in any case"),
        StringMatcher::PrefixIgnoreCase(text) => ("begins with", text, " in any case"),
        StringMatcher::SuffixIgnoreCase(text) => ("ends with", text, " in any case"),
        StringMatcher::ContainsIgnoreCase(text) => ("contains", text, " in any case"),
        StringMatcher::Globs(globs) if globs.expression() == ".+" => return write!(out, "{what} is there"),
        StringMatcher::Globs(globs) => return write!(out, "{what} like {:?}", globs.expression()),
        StringMatcher::Regex(regex) => return write!(out, "{what} like {:?}", regex.as_str()),
    };
    write!(out, "{what} {how} {:?}{any_case}", String::from_utf8_lossy(text))
}
