//! Path templates: `envoy.path.match.uri_template.v3`, which istiod makes of `{*}` and `{**}`.
//!
//! Source: Envoy's grammar: segments that are literal, `*` (one segment, not empty) or `**` (any rest, also an empty one), and text after the
//! last operator. Not for: variables (`{name}`), which only rewrites need.
//! Invariant: what Envoy's grammar refuses is refused; a path with a byte that no URI has is matched by no operator.

use super::{Regex, full_regex};

/// One segment's characters in Envoy: RFC 3986's without `*` and `=`.
const SEGMENT: &str = r"a-zA-Z0-9._~%!$&'()+,;:@\-";

/// A compiled template.
#[derive(Clone, Debug)]
pub struct UriTemplate {
    /// As it was written.
    pub text: Box<str>,
    regex: Regex,
}

impl UriTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// The template is none that Envoy takes, or has a variable; the text says which.
    pub fn new(template: &str) -> Result<Self, String> {
        let path = template.strip_prefix('/').ok_or("does not begin with a slash")?;
        if path.contains(['{', '}']) {
            return Err("has a variable, which is not supported".to_owned());
        }
        let mut expression = String::new();
        let mut had_rest = false;
        let n_segments = path.split('/').count();
        for (at, segment) in path.split('/').enumerate() {
            let is_last = at + 1 == n_segments;
            let (operator, literal) = operator(segment);
            if had_rest && operator.is_some() {
                return Err("has an operator after `**`".to_owned());
            }
            had_rest |= operator == Some(Operator::Rest);
            // Only at the end is a segment empty: a trailing slash, or the root alone.
            let is_empty = operator.is_none() && literal.is_empty();
            if (is_empty && !is_last) || !literal.bytes().all(is_literal) {
                return Err(format!("has a segment that is none: {segment:?}"));
            }
            if operator.is_some() && !literal.is_empty() && !is_last {
                return Err("has text after an operator before the last segment".to_owned());
            }
            expression.push('/');
            match operator {
                Some(Operator::One) => expression.push_str(&format!("[{SEGMENT}]+")),
                Some(Operator::Rest) => expression.push_str(&format!("[{SEGMENT}/]*")),
                None => {}
            }
            expression.push_str(&regex::escape(literal));
        }
        Ok(Self { text: template.into(), regex: full_regex(&expression)? })
    }

    /// What every path that matches begins with.
    #[must_use]
    pub fn literal_prefix(&self) -> &str {
        self.text.split('*').next().unwrap_or_default()
    }

    /// Whether a path without query and fragment matches.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        self.regex.is_match(path.as_bytes())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    One,
    Rest,
}

/// A segment's operator and the text after it.
fn operator(segment: &str) -> (Option<Operator>, &str) {
    if let Some(literal) = segment.strip_prefix("**") {
        (Some(Operator::Rest), literal)
    } else if let Some(literal) = segment.strip_prefix('*') {
        (Some(Operator::One), literal)
    } else {
        (None, segment)
    }
}

fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_take_a_segment_or_the_rest() {
        for (template, yes, no) in [
            (
                "/public/*/info/**",
                &["/public/a/info/", "/public/a/info/b/c", "/public/a%2Fb/info/x"][..],
                &["/public/a/info", "/public//info/x", "/public/a/b/info/x"][..],
            ),
            ("/foo/*", &["/foo/a", "/foo/."], &["/foo", "/foo/", "/foo/a/b", "/foo/a*b", "/foo/a=b"]),
            ("/**", &["/", "/a", "/a/b/"], &["", "/a*"]),
            ("/*.txt", &["/a.txt", "/a.b.txt"], &["/.txt", "/atxt", "/a/b.txt"]),
            ("/**/x", &["/a/b/x", "//x"], &["/a/b/y", "/x"]),
            ("/a/", &["/a/"], &["/a", "/a/b"]),
            ("/a.b", &["/a.b"], &["/aXb"]),
            ("/", &["/"], &["", "/a"]),
        ] {
            let compiled = UriTemplate::new(template).expect(template);
            for path in yes {
                assert!(compiled.matches(path), "{template} {path}");
            }
            for path in no {
                assert!(!compiled.matches(path), "{template} {path}");
            }
        }
    }

    #[test]
    fn what_is_no_template_to_envoy_is_refused() {
        for wrong in ["", "foo", "/a//b", "/**/*", "/**/**", "/{name}", "/*x/b", "/a*", "/a=b", "/***", "/a b", "/é", "/**a/b"] {
            assert!(UriTemplate::new(wrong).is_err(), "{wrong}");
        }
    }
}
