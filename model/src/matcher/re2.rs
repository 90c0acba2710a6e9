//! RE2's expressions in the words of the `regex` crate: the same meaning, or an error.
//!
//! Envoy compiles with RE2's defaults: UTF-8, Perl classes of ASCII. The crate's syntax differs in a few places: `\d`, `\s`, `\w` and `\b` are
//! Unicode's, `\s` has a vertical tab, `\<` is a boundary, classes nest and have set operations, and there are flags that RE2 does not know.
//! Not for: compiling, or limits of size.
//! Invariant: what both accept and read differently is rewritten or refused; nothing is passed on with another meaning.

use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::print::Printer;
use regex_syntax::ast::{
    Assertion, AssertionKind, Ast, ClassPerl, ClassPerlKind, ClassSet, ClassSetItem, ClassUnicode, ClassUnicodeKind, Flag, Flags,
    FlagsItemKind, GroupKind, HexLiteralKind, Literal, LiteralKind, RepetitionKind, RepetitionRange, SpecialLiteralKind,
};

/// Repetitions that RE2 refuses beyond (`kMaxRepeat`).
const REPEAT_MAX: u32 = 1000;

/// The expression for the `regex` crate, with Unicode on.
pub(super) fn translated(expression: &str) -> Result<String, String> {
    let mut ast = Parser::new().parse(expression).map_err(|error| error.to_string())?;
    rewrite(&mut ast)?;
    let mut text = String::with_capacity(expression.len());
    Printer::new().print(&ast, &mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn unknown(what: &str) -> String {
    format!("RE2 does not know {what}, or means another thing by it")
}

/// Recursion is bounded by the parser's nesting limit.
fn rewrite(ast: &mut Ast) -> Result<(), String> {
    match ast {
        Ast::Empty(_) | Ast::Dot(_) => Ok(()),
        Ast::Flags(set) => flags(&set.flags),
        Ast::Literal(one) => literal(one),
        Ast::Assertion(one) => match assertion(one)? {
            Some(rewritten) => {
                *ast = rewritten;
                Ok(())
            }
            None => Ok(()),
        },
        Ast::ClassUnicode(class) => unicode(class),
        Ast::ClassPerl(class) => {
            *ast = parsed(perl_class(class));
            Ok(())
        }
        Ast::ClassBracketed(class) => set(&mut class.kind),
        Ast::Repetition(repetition) => {
            let most = match &repetition.op.kind {
                RepetitionKind::Range(RepetitionRange::Exactly(most) | RepetitionRange::Bounded(_, most)) => *most,
                RepetitionKind::Range(RepetitionRange::AtLeast(least)) => *least,
                _ => 0,
            };
            if most > REPEAT_MAX {
                return Err(format!("repeats more than {REPEAT_MAX} times, which RE2 refuses"));
            }
            rewrite(&mut repetition.ast)
        }
        Ast::Group(group) => {
            if let GroupKind::NonCapturing(set) = &group.kind {
                flags(set)?;
            }
            rewrite(&mut group.ast)
        }
        Ast::Alternation(all) => all.asts.iter_mut().try_for_each(rewrite),
        Ast::Concat(all) => all.asts.iter_mut().try_for_each(rewrite),
    }
}

fn flags(flags: &Flags) -> Result<(), String> {
    let is_known = |kind: &FlagsItemKind| match kind {
        FlagsItemKind::Negation => true,
        FlagsItemKind::Flag(flag) => {
            matches!(flag, Flag::CaseInsensitive | Flag::MultiLine | Flag::DotMatchesNewLine | Flag::SwapGreed)
        }
    };
    if flags.items.iter().all(|item| is_known(&item.kind)) { Ok(()) } else { Err(unknown("a flag other than i, m, s and U")) }
}

fn literal(literal: &Literal) -> Result<(), String> {
    match literal.kind {
        LiteralKind::HexFixed(HexLiteralKind::UnicodeShort | HexLiteralKind::UnicodeLong)
        | LiteralKind::HexBrace(HexLiteralKind::UnicodeShort | HexLiteralKind::UnicodeLong) => Err(unknown("\\u and \\U")),
        LiteralKind::Special(SpecialLiteralKind::Space) => Err(unknown("the flag x")),
        _ => Ok(()),
    }
}

/// What stands for an assertion, if not itself.
fn assertion(assertion: &Assertion) -> Result<Option<Ast>, String> {
    match assertion.kind {
        AssertionKind::StartLine | AssertionKind::EndLine | AssertionKind::StartText | AssertionKind::EndText => Ok(None),
        AssertionKind::WordBoundary => Ok(Some(parsed(r"(?-u:\b)"))),
        AssertionKind::NotWordBoundary => Ok(Some(parsed(r"(?-u:\B)"))),
        // An escaped punctuation mark is itself.
        AssertionKind::WordBoundaryStartAngle => Ok(Some(parsed("<"))),
        AssertionKind::WordBoundaryEndAngle => Ok(Some(parsed(">"))),
        AssertionKind::WordBoundaryStart
        | AssertionKind::WordBoundaryEnd
        | AssertionKind::WordBoundaryStartHalf
        | AssertionKind::WordBoundaryEndHalf => Err(unknown("\\b{…}")),
    }
}

fn unicode(class: &ClassUnicode) -> Result<(), String> {
    match class.kind {
        ClassUnicodeKind::OneLetter(_) | ClassUnicodeKind::Named(_) => Ok(()),
        ClassUnicodeKind::NamedValue { .. } => Err(unknown("\\p{name=value}")),
    }
}

fn set(kind: &mut ClassSet) -> Result<(), String> {
    match kind {
        ClassSet::Item(one) => item(one),
        ClassSet::BinaryOp(_) => Err(unknown("set operations in a class")),
    }
}

fn item(one: &mut ClassSetItem) -> Result<(), String> {
    match one {
        ClassSetItem::Literal(one) => literal(one),
        ClassSetItem::Range(range) => literal(&range.start).and_then(|()| literal(&range.end)),
        ClassSetItem::Empty(_) | ClassSetItem::Ascii(_) => Ok(()),
        ClassSetItem::Unicode(class) => unicode(class),
        ClassSetItem::Perl(class) => {
            let Ast::ClassBracketed(ref class) = parsed(perl_class(class)) else { return Err(unknown("a class")) };
            *one = ClassSetItem::Bracketed(class.clone());
            Ok(())
        }
        ClassSetItem::Bracketed(_) => Err(unknown("classes in a class")),
        ClassSetItem::Union(union) => union.items.iter_mut().try_for_each(item),
    }
}

/// Perl's classes as RE2 has them: ASCII, and no vertical tab in `\s`.
fn perl_class(class: &ClassPerl) -> &'static str {
    match (&class.kind, class.negated) {
        (ClassPerlKind::Digit, false) => "[0-9]",
        (ClassPerlKind::Digit, true) => "[^0-9]",
        (ClassPerlKind::Space, false) => r"[\t\n\f\r\x20]",
        (ClassPerlKind::Space, true) => r"[^\t\n\f\r\x20]",
        (ClassPerlKind::Word, false) => "[0-9A-Za-z_]",
        (ClassPerlKind::Word, true) => "[^0-9A-Za-z_]",
    }
}

fn parsed(constant: &str) -> Ast {
    Parser::new().parse(constant).expect("a constant of this file that its tests parse")
}

#[cfg(test)]
mod tests {
    use regex::bytes::Regex;

    use super::*;

    fn matches(expression: &str, text: &[u8]) -> bool {
        let translated = translated(expression).expect("RE2 knows it");
        Regex::new(&format!("^(?:{translated})$")).expect("compiles").is_match(text)
    }

    #[test]
    fn perl_classes_are_of_ascii() {
        assert!(matches(r"\d+\s\w+", b"17 a_B9"));
        for text in ["\u{661}", "\u{ff11}"] {
            assert!(!matches(r"\d", text.as_bytes()) && matches(r"\D", text.as_bytes()) && matches(r"[^\d]", text.as_bytes()));
        }
        assert!(!matches(r"\w", "é".as_bytes()) && matches(r"\W", "é".as_bytes()) && !matches(r"[\w]", "é".as_bytes()));
        assert!(!matches(r"\s", b"\x0b") && matches(r"[[:space:]]", b"\x0b") && !matches(r"\s", "\u{a0}".as_bytes()));
        assert!(matches(r"[\d.]+[\s-]", b"1.2-"));
    }

    #[test]
    fn boundaries_are_of_ascii_and_escaped_angles_are_angles() {
        assert!(matches(r"a\bé", "aé".as_bytes()) && !matches(r"a\Bé", "aé".as_bytes()));
        assert!(matches(r"\<a\>", b"<a>") && !matches(r"\<a\>", b"a"));
    }

    #[test]
    fn a_dot_is_a_character_and_no_newline_and_case_folds_by_unicode() {
        assert!(matches(".", "é".as_bytes()) && !matches(".", b"\n") && !matches(".", b"\xff") && matches("(?s).", b"\n"));
        assert!(matches("(?i)k", "\u{212a}".as_bytes()) && matches("(?i)straße", "STRAßE".as_bytes()));
    }

    #[test]
    fn what_re2_reads_otherwise_or_not_at_all_is_refused() {
        for other in
            ["[a&&b]", "[a--b]", "[a[b]]", r"\u0041", "(?x)a b", "(?-u:a)", "(?R)a", r"\b{start}a", r"\p{sc=Greek}", "a{1001}", "a{2,1001}"]
        {
            assert!(translated(other).is_err(), "{other}");
        }
    }

    #[test]
    fn an_expression_keeps_its_meaning_otherwise() {
        for (expression, yes, no) in [
            ("a(b|c)*d?", &b"abcbc"[..], &b"ad d"[..]),
            ("(?P<name>x{2,3})|y", b"xxx", b"xxxx"),
            (r"[]a]\x41\.\-", b"]A.-", b"aA.x"),
            (r"[^[:alpha:]]\pL", b"1b", b"b1"),
            (r"^/v[0-9]+/.*$", b"/v1/", b"/vx/"),
        ] {
            assert!(matches(expression, yes) && !matches(expression, no), "{expression}");
        }
    }
}
