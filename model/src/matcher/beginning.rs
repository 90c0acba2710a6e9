//! The text that every match of an expression begins with, so that those which cannot match need not be tried.
//!
//! Not for: matching. Invariant: less may be said than is so, never more; an expression that is not tied to the beginning has none.

use regex_syntax::hir::{Hir, HirKind, Look};

/// Of an expression in the words of the `regex` crate.
pub(super) fn of(expression: &str) -> Vec<u8> {
    let mut text = Vec::new();
    // One that does not parse is none of ours.
    if let Ok(parsed) = regex_syntax::Parser::new().parse(expression)
        && let HirKind::Concat(parts) = parsed.kind()
        && let [first, rest @ ..] = &**parts
        && matches!(first.kind(), HirKind::Look(Look::Start))
    {
        let _is_all = rest.iter().all(|part| adds(part, &mut text));
    }
    text
}

/// Adds what a part begins with; false if something may follow that is not known.
fn adds(part: &Hir, text: &mut Vec<u8>) -> bool {
    match part.kind() {
        HirKind::Literal(literal) => {
            text.extend_from_slice(&literal.0);
            true
        }
        HirKind::Capture(group) => adds(&group.sub, text),
        HirKind::Concat(parts) => parts.iter().all(|part| adds(part, text)),
        // It is the beginning, or nothing matches.
        HirKind::Empty | HirKind::Look(Look::Start) => true,
        HirKind::Alternation(all) => {
            let mut beginnings = all.iter().map(|one| {
                let mut beginning = Vec::new();
                adds(one, &mut beginning);
                beginning
            });
            let first = beginnings.next().unwrap_or_default();
            text.extend(beginnings.fold(first, shared));
            false
        }
        HirKind::Class(_) | HirKind::Look(_) | HirKind::Repetition(_) => false,
    }
}

/// What both begin with.
pub(super) fn shared(mut one: Vec<u8>, other: impl AsRef<[u8]>) -> Vec<u8> {
    let length = one.iter().zip(other.as_ref()).take_while(|(one, other)| one == other).count();
    one.truncate(length);
    one
}
