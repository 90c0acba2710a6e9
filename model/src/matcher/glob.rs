//! Expressions that are plain texts with gaps, such as those that istiod makes of namespaces and service accounts, without an automaton.
//!
//! Not for: other expressions; [`Globs::of`] says none and they are compiled.
//! Invariant: equal to the expression as RE2 reads it, for every text: gaps take no newline and only whole characters.

use super::beginning::shared;

/// Alternatives that one expression may have: each of istiod's two optional groups doubles them.
const ALTERNATIVES_MAX: usize = 4;

/// One of these must match the whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Globs {
    alternatives: Box<[Glob]>,
    expression: Box<str>,
    identities: Option<Identities>,
}

/// Which identities istiod means by an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identities {
    /// All of a namespace: `.*/ns/NAMESPACE/.*`.
    Namespace(Box<str>),
    /// One service account, whatever its trust domain: `spiffe://.+/ns/NAMESPACE/(.+/|)sa/ACCOUNT(/.+)?`.
    Account {
        /// Its namespace.
        namespace: Box<str>,
        /// Its name.
        account: Box<str>,
    },
}

impl Identities {
    fn of(expression: &str) -> Option<Self> {
        if let Some(namespace) = expression.strip_prefix(".*/ns/").and_then(|rest| rest.strip_suffix("/.*")) {
            return Some(Self::Namespace(path_part(namespace)?));
        }
        let parts = expression.strip_prefix("spiffe://.+/ns/")?.strip_suffix("(/.+)?")?;
        let (namespace, account) = parts.split_once("/(.+/|)sa/")?;
        Some(Self::Account { namespace: path_part(namespace)?, account: path_part(account)? })
    }
}

/// A text without gaps and slashes, unescaped.
fn path_part(expression: &str) -> Option<Box<str>> {
    let (mut text, mut left) = (String::new(), expression);
    while !left.is_empty() {
        let (byte, after) = literal(left).filter(|(byte, _)| *byte != b'/')?;
        text.push(char::from(byte));
        left = after;
    }
    Some(text.into())
}

/// Text, and then each time a gap and text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Glob {
    first: Vec<u8>,
    rest: Vec<(Gap, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gap {
    /// `.*`
    Any,
    /// `.+`
    Some,
}

impl Globs {
    /// An expression of letters, escaped punctuation, `.*`, `.+`, and the groups `(.+/|)` and `(/.+)?`; none if it has anything else.
    pub(super) fn of(expression: &str) -> Option<Self> {
        let mut globs = vec![Glob::default()];
        let mut left = expression;
        while !left.is_empty() {
            if let Some(after) = left.strip_prefix("(.+/|)") {
                globs = doubled(globs, |glob| glob.gap(Gap::Some).is_some().then(|| glob.text(b'/')).is_some())?;
                left = after;
            } else if let Some(after) = left.strip_prefix("(/.+)?") {
                globs = doubled(globs, |glob| {
                    glob.text(b'/');
                    glob.gap(Gap::Some).is_some()
                })?;
                left = after;
            } else if let Some(after) = left.strip_prefix(".*") {
                globs.iter_mut().try_for_each(|glob| glob.gap(Gap::Any))?;
                left = after;
            } else if let Some(after) = left.strip_prefix(".+") {
                globs.iter_mut().try_for_each(|glob| glob.gap(Gap::Some))?;
                left = after;
            } else {
                let (byte, after) = literal(left)?;
                globs.iter_mut().for_each(|glob| glob.text(byte));
                left = after;
            }
        }
        Some(Self { alternatives: globs.into_boxed_slice(), expression: expression.into(), identities: Identities::of(expression) })
    }

    /// The expression that it was.
    #[must_use]
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// Which identities istiod means by it; none if it is not of such a form.
    #[must_use]
    pub fn identities(&self) -> Option<&Identities> {
        self.identities.as_ref()
    }

    /// What all alternatives begin with.
    pub(super) fn beginning(&self) -> Vec<u8> {
        let mut firsts = self.alternatives.iter().map(|glob| &glob.first);
        let first = firsts.next().cloned().unwrap_or_default();
        firsts.fold(first, shared)
    }

    /// Whether the whole text matches.
    #[must_use]
    pub fn matches(&self, text: &[u8]) -> bool {
        let is_lines_or_bytes = || text.contains(&b'\n') || std::str::from_utf8(text).is_err();
        self.alternatives.iter().any(|glob| glob.matches(text)) && !is_lines_or_bytes()
    }
}

/// Each as it is, and each changed.
fn doubled(globs: Vec<Glob>, change: impl Fn(&mut Glob) -> bool) -> Option<Vec<Glob>> {
    if globs.len() * 2 > ALTERNATIVES_MAX {
        return None;
    }
    let mut all = globs.clone();
    for mut glob in globs {
        change(&mut glob).then_some(())?;
        all.push(glob);
    }
    Some(all)
}

/// One literal character of ASCII at the beginning, and what follows it; none if a quantifier follows, or it is none.
fn literal(expression: &str) -> Option<(u8, &str)> {
    let (byte, after) = match expression.as_bytes() {
        [b'\\', byte, ..] if byte.is_ascii_punctuation() => (*byte, &expression[2..]),
        [byte, ..] if byte.is_ascii_alphanumeric() || b"-_/:@%=,;~!&'\"# <>".contains(byte) => (*byte, &expression[1..]),
        _ => return None,
    };
    (!after.starts_with(['*', '+', '?', '{'])).then_some((byte, after))
}

impl Glob {
    fn text(&mut self, byte: u8) {
        self.rest.last_mut().map_or(&mut self.first, |(_, text)| text).push(byte);
    }

    /// Adds a gap; none where two that need a character each come together.
    fn gap(&mut self, gap: Gap) -> Option<()> {
        match self.rest.last_mut() {
            Some((before, text)) if text.is_empty() => match (*before, gap) {
                (Gap::Some, Gap::Some) => None,
                (_, Gap::Any) => Some(()),
                (Gap::Any, Gap::Some) => {
                    *before = Gap::Some;
                    Some(())
                }
            },
            _ => {
                self.rest.push((gap, Vec::new()));
                Some(())
            }
        }
    }

    /// Texts between gaps are taken where they come first, which leaves most for what follows.
    fn matches(&self, text: &[u8]) -> bool {
        let Some((last, between)) = self.rest.split_last() else { return text == self.first };
        let Some(mut left) = text.strip_prefix(self.first.as_slice()) else { return false };
        for (gap, wanted) in between {
            let Some(searched) = left.get(gap.bytes_min()..) else { return false };
            let Some(at) = find(searched, wanted) else { return false };
            left = &searched[at + wanted.len()..];
        }
        let (gap, end) = last;
        left.len() >= gap.bytes_min() + end.len() && left.ends_with(end)
    }
}

/// Where `wanted` comes first. Looks for its first byte: identities and paths have few of any.
fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    let Some(first) = wanted.first() else { return Some(0) };
    let starts = text.len().checked_sub(wanted.len())? + 1;
    memchr::memchr_iter(*first, &text[..starts]).find(|at| text[*at..].starts_with(wanted))
}

impl Gap {
    fn bytes_min(self) -> usize {
        match self {
            Self::Any => 0,
            Self::Some => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use regex::bytes::Regex;

    use super::super::full_regex;
    use super::*;

    const SHAPES: [&str; 8] = [
        ".*/ns/shop/.*",
        ".*/ns/sh.*op/.*",
        ".*/ns/.*/.*",
        "spiffe://.+/ns/shop/(.+/|)sa/web(/.+)?",
        "spiffe://.+/ns/shop/(.+/|)sa/web-v\\.1(/.+)?",
        ".+",
        ".*",
        "spiffe://.*\\.example\\.org/.*",
    ];

    static EXPRESSIONS: LazyLock<Vec<Regex>> = LazyLock::new(|| SHAPES.iter().map(|shape| full_regex(shape).expect("compiles")).collect());

    /// Texts from the pieces that the shapes are made of, so that most come close to matching.
    fn texts() -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop::sample::select(vec![
            "spiffe://",
            "cluster.local",
            "a.example.org",
            "/ns/",
            "ns/",
            "shop",
            "sh",
            "op",
            "/",
            "sa/",
            "/sa/",
            "web",
            "web-v.1",
            "web-vx1",
            "k/v",
            "é",
            "\n",
            "\u{1f600}",
            "x",
        ]);
        let whole = prop::collection::vec(pieces, 0..9).prop_map(|pieces| pieces.concat().into_bytes());
        (whole, prop::option::weighted(0.1, any::<u8>())).prop_map(|(mut text, byte)| {
            text.extend(byte);
            text
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn a_glob_equals_the_expression(at in 0..SHAPES.len(), text in texts()) {
            let globs = Globs::of(SHAPES[at]).expect("a shape of istiod's");
            prop_assert_eq!(globs.matches(&text), EXPRESSIONS[at].is_match(&text), "{}", SHAPES[at]);
        }
    }

    #[test]
    fn a_name_of_the_namespace_or_account_is_matched_whole() {
        let globs = Globs::of("spiffe://.+/ns/shop/(.+/|)sa/web(/.+)?").expect("istiod's");
        for id in ["spiffe://td/ns/shop/sa/web", "spiffe://td/ns/shop/k/v/sa/web", "spiffe://td/ns/shop/sa/web/k/v"] {
            assert!(globs.matches(id.as_bytes()), "{id}");
        }
        for id in [
            "spiffe:///ns/shop/sa/web",
            "spiffe://td/ns/shop/sa/website",
            "spiffe://td/ns/shop/xsa/web",
            "spiffe://td/ns/shop/sa/web/",
            "spiffe://td/ns/shopping/sa/web",
            "xspiffe://td/ns/shop/sa/web",
        ] {
            assert!(!globs.matches(id.as_bytes()), "{id}");
        }
    }

    #[test]
    fn namespaces_and_accounts_are_known_by_name() {
        let of = |expression: &str| Globs::of(expression).and_then(|globs| globs.identities().cloned());
        assert_eq!(of(".*/ns/shop/.*"), Some(Identities::Namespace("shop".into())));
        let account = Identities::Account { namespace: "shop".into(), account: "web.v1".into() };
        assert_eq!(of("spiffe://.+/ns/shop/(.+/|)sa/web\\.v1(/.+)?"), Some(account));
        for other in [".*/ns/sh.*op/.*", ".*/ns/a/b/.*", ".+", "spiffe://.+/ns/.*/(.+/|)sa/web(/.+)?"] {
            assert!(Globs::of(other).is_some() && of(other).is_none(), "{other}");
        }
    }

    #[test]
    fn other_expressions_are_left_to_the_engine() {
        for other in ["a*", "[a]", "a|b", "(a)", "a{2}", ".", ".?", "é", "\\d", ".+.+", "^a", "a$", "(.+/|)(.+/|)(/.+)?"] {
            assert_eq!(Globs::of(other), None, "{other}");
        }
    }
}
