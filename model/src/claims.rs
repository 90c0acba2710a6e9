//! What a verified token says, and conditions on it: Envoy's dynamic metadata of `envoy.filters.http.jwt_authn` and its `MetadataMatcher`.
//!
//! Not for: verifying tokens. Other filters' metadata is not kept, and conditions on it are refused where they are read.
//! Invariant: a claim that is missing, or of another type than a condition is about, meets no condition but an inverted one.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::matcher::StringMatcher;

/// A JSON value, as protobuf's `Value` has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// Any number.
    Number(f64),
    /// A text.
    Text(Box<str>),
    /// A list.
    List(Vec<Claim>),
    /// An object, its names sorted and each once.
    Object(Vec<(Box<str>, Claim)>),
}

impl Claim {
    /// A member of an object.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Self::Object(members) = self else { return None };
        let at = members.binary_search_by(|(member, _)| (**member).cmp(name)).ok()?;
        Some(&members[at].1)
    }

    /// A text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// What the verified tokens of one request say, by the name under which each provider keeps it (`payload`).
#[derive(Clone, Debug, Default)]
pub struct TokenMetadata {
    payloads: SmallVec<[(Arc<str>, Arc<Claim>); 1]>,
    /// Whether the route is chosen anew with it (`clear_route_cache`).
    pub is_seen_by_routes: bool,
}

impl TokenMetadata {
    /// Keeps a payload; of several with one name the last stays.
    pub fn insert(&mut self, name: &Arc<str>, payload: Arc<Claim>) {
        self.payloads.retain(|(known, _)| known != name);
        self.payloads.push((Arc::clone(name), payload));
    }

    /// The value at a path, whose first part is the name of a payload.
    #[must_use]
    pub fn at(&self, path: &[Box<str>]) -> Option<&Claim> {
        let (name, members) = path.split_first()?;
        let (_, payload) = self.payloads.iter().find(|(known, _)| **known == **name)?;
        members.iter().try_fold(&**payload, |claim, member| claim.get(member))
    }
}

/// What a claim must be.
#[derive(Clone, Debug)]
pub enum ClaimTest {
    /// `null`.
    Null,
    /// There, whatever it is.
    Present,
    /// Never met: `present_match: false`.
    Never,
    /// This number.
    Number(f64),
    /// A number from the first up to the last, which is left out.
    NumberIn(Range<f64>),
    /// This truth value.
    Bool(bool),
    /// A text like this.
    Text(StringMatcher),
    /// A list, one item of which meets this.
    OneOf(Box<ClaimTest>),
    /// One of these is met.
    Or(Vec<ClaimTest>),
}

impl ClaimTest {
    fn is_met_by(&self, claim: &Claim) -> bool {
        match (self, claim) {
            (Self::Present, _) | (Self::Null, Claim::Null) => true,
            (Self::Or(tests), claim) => tests.iter().any(|test| test.is_met_by(claim)),
            #[expect(clippy::float_cmp, reason = "the condition is equality, as Envoy has it")]
            (Self::Number(wanted), Claim::Number(number)) => wanted == number,
            (Self::NumberIn(range), Claim::Number(number)) => range.contains(number),
            (Self::Bool(wanted), Claim::Bool(value)) => wanted == value,
            (Self::Text(matcher), Claim::Text(text)) => matcher.matches(text.as_bytes()),
            (Self::OneOf(test), Claim::List(items)) => items.iter().any(|item| test.is_met_by(item)),
            _ => false,
        }
    }
}

/// One condition on what tokens say.
#[derive(Clone, Debug)]
pub struct ClaimMatcher {
    /// `payload`, and then names of members, outermost first.
    pub path: Vec<Box<str>>,
    /// The condition.
    pub test: ClaimTest,
    /// The opposite of it.
    pub invert: bool,
}

impl ClaimMatcher {
    /// Whether it is met; without metadata as if every claim were missing.
    #[must_use]
    pub fn matches(&self, metadata: Option<&TokenMetadata>) -> bool {
        let claim = metadata.and_then(|metadata| metadata.at(&self.path));
        claim.is_some_and(|claim| self.test.is_met_by(claim)) != self.invert
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Claim {
        Claim::Text(value.into())
    }

    fn is(value: &str) -> ClaimTest {
        ClaimTest::Text(StringMatcher::Exact(value.as_bytes().into()))
    }

    fn metadata() -> TokenMetadata {
        let nested = Claim::Object(vec![("team".into(), text("blue"))]);
        let members = vec![
            ("admin".into(), Claim::Bool(true)),
            ("groups".into(), Claim::List(vec![text("dev"), Claim::Number(1.0), text("ops")])),
            ("level".into(), Claim::Number(3.0)),
            ("nested".into(), nested),
            ("none".into(), Claim::Null),
        ];
        let mut metadata = TokenMetadata::default();
        metadata.insert(&"payload".into(), Arc::new(Claim::Object(members)));
        metadata
    }

    fn meets(path: &[&str], test: ClaimTest) -> bool {
        let path: Vec<Box<str>> = std::iter::once("payload").chain(path.iter().copied()).map(Box::from).collect();
        let plain = ClaimMatcher { path, test, invert: false };
        let inverted = ClaimMatcher { invert: true, ..plain.clone() };
        assert_ne!(plain.matches(Some(&metadata())), inverted.matches(Some(&metadata())));
        assert!(!plain.matches(None) && inverted.matches(None), "without a token nothing is there");
        plain.matches(Some(&metadata()))
    }

    #[test]
    fn claims_are_found_by_path_and_judged_by_their_type() {
        assert!(meets(&["nested", "team"], is("blue")) && !meets(&["nested", "team"], is("green")));
        assert!(!meets(&["nested"], is("blue")) && !meets(&["groups", "team"], is("blue")) && !meets(&["missing"], is("")));
        assert!(meets(&["admin"], ClaimTest::Bool(true)) && !meets(&["admin"], is("true")));
        assert!(meets(&["level"], ClaimTest::Number(3.0)) && meets(&["level"], ClaimTest::NumberIn(3.0..4.0)));
        assert!(!meets(&["level"], ClaimTest::NumberIn(1.0..3.0)) && !meets(&["level"], is("3")));
        assert!(meets(&["none"], ClaimTest::Null) && !meets(&["missing"], ClaimTest::Null));
        assert!(meets(&["none"], ClaimTest::Present) && !meets(&["missing"], ClaimTest::Present) && !meets(&["none"], ClaimTest::Never));
    }

    #[test]
    fn one_item_of_a_list_is_enough_and_a_text_is_no_list() {
        let one = |value| ClaimTest::OneOf(Box::new(is(value)));
        assert!(meets(&["groups"], one("ops")) && !meets(&["groups"], one("adm")) && !meets(&["groups"], is("ops")));
        assert!(!meets(&["nested", "team"], one("blue")));
        assert!(meets(&["nested", "team"], ClaimTest::Or(vec![one("blue"), is("blue")])));
    }

    #[test]
    fn of_two_payloads_with_one_name_the_last_stays() {
        let mut two = metadata();
        two.insert(&"payload".into(), Arc::new(Claim::Object(Vec::new())));
        assert!(two.at(&["payload".into(), "level".into()]).is_none());
    }
}
